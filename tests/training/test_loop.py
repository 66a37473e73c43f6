import copy
import json

import keras
import numpy as np
import pytest

from deepcomp import compression, models, options, quantization
from deepcomp.data import DataSet, Part
from deepcomp.errors import FormatError, RecipeError
from deepcomp.training import distribute, parametrize, record
from deepcomp.training.predict import evaluate, predictor
from tests.common import learn


class Memory:
    """A checkpoint that keeps every state it was given."""

    def __init__(self):
        self.states = []

    def save_state(self, arrays, progress):
        self.states.append(([array.copy() for array in arrays], json.loads(json.dumps(progress))))

    def load_state(self):
        return copy.deepcopy(self.states[-1]) if self.states else None


def weights(model):
    return [array.tolist() for array in model.get_weights()]


def fresh(network):
    keras.utils.set_random_seed(11)
    model = keras.models.clone_model(network)
    model.set_weights(network.get_weights())
    return model


def test_histories_of_one_training_after_another_are_one():
    before = {"step": [0, 5, 6], "loss": [None, 0.5, 0.4], "validation_accuracy": [0.1, 0.2, 0.3]}
    after = {"step": [0, 10, 15], "loss": [None, 0.3, 0.2], "validation_accuracy": [0.3, 0.4, 0.5]}
    assert record.joined(before, after) == {
        "step": [0, 5, 6, 16, 21],
        "loss": [None, 0.5, 0.4, 0.3, 0.2],
        "validation_accuracy": [0.1, 0.2, 0.3, 0.4, 0.5],
    }


def test_training_learns_and_keeps_a_history(network, digits):
    history = learn(parametrize.free(network), digits, steps=60, batch=50, evaluate_every=25, learning_rate=5e-3)
    assert history["step"] == [0, 25, 50, 60]
    assert history["loss"][0] is None
    assert history["loss"][1] > history["loss"][-1]
    assert history["validation_accuracy"][-1] > 0.6 > history["validation_accuracy"][0]
    exact = evaluate(network, digits.x_validation, digits.y_validation)
    assert history["validation_accuracy"][-1] == pytest.approx(exact, abs=1e-9)


def test_batch_normalization_statistics_move(network, digits):
    before = network.get_layer("norm").moving_mean.numpy()
    learn(parametrize.free(network), digits, steps=3)
    assert not np.allclose(before, network.get_layer("norm").moving_mean.numpy())


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [("free", "adam"), ("shared", "adam"), *(("masked", name) for name in options.OPTIMIZERS)],
)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(network, digits, kind, optimizer, deterministic):
    deterministic(3)
    how = {"optimizer": optimizer, "steps": 40, "batch": 30, "shift": 1, "evaluate_every": 15, "save_every": 10}
    for variable in models.kernels(network).values():
        variable.assign(np.round(variable.numpy() * 20) / 20)
    make = getattr(parametrize, kind)

    def run(model, checkpoint):
        wrapped = make(model)
        history = learn(wrapped, digits, checkpoint=checkpoint, **how)
        return weights(wrapped.write_back()), history

    memory = Memory()
    expected = run(fresh(network), memory)
    assert [progress["step"] for _, progress in memory.states] == [10, 20, 30, 40]
    for kept in (1, 4):
        interrupted = Memory()
        interrupted.states = memory.states[:kept]
        assert run(fresh(network), interrupted) == expected


def test_a_resumed_run_that_reassigns_has_the_bits_of_an_uninterrupted_one(network, digits, deterministic):
    deterministic(3)
    network.get_layer("dense").bias.assign(np.linspace(-0.2, 0.2, 10))

    def run(checkpoint):
        model = fresh(network)
        tensors = parametrize.shareable(model)
        latent = {name: variable.numpy() for name, variable in tensors.items()}
        for name, variable in tensors.items():
            variable.assign(quantization.share(latent[name], 3))
        shared = parametrize.shared(model, tensors, latent=latent)
        options = {"update": lambda step: shared.reassign(0.05), "update_steps": [10, 20, 30], "save_every": 10}
        learn(shared, digits, steps=40, batch=30, shift=1, checkpoint=checkpoint, **options)
        return weights(shared.write_back())

    memory = Memory()
    expected = run(memory)
    assert 0 < np.count_nonzero(np.array(expected[-2])) < 1440  # some weights went
    for kept in (1, 2):
        interrupted = Memory()
        interrupted.states = memory.states[:kept]
        assert run(interrupted) == expected


def test_masks_hold_whatever_the_optimizer_does(network, digits):
    for optimizer in options.OPTIMIZERS:
        model = fresh(network)
        pruned = {}
        for name, variable in models.kernels(model).items():
            pruned[name] = np.abs(variable.numpy()) < 0.1
            variable.assign(np.where(pruned[name], 0, variable.numpy()))
        masked = parametrize.masked(model)
        learn(masked, digits, steps=5, optimizer=optimizer, learning_rate=1e-2)
        for name, kernel in models.kernel_values(masked.write_back()).items():
            assert pruned[name].any()
            assert not kernel[pruned[name]].any()


def test_shared_kernels_stay_shared_and_centroids_have_their_own_step(network, digits):
    model = compression.quantize(network, digits, bits=2, init="linear", steps=0)
    still = fresh(model)
    learn(parametrize.shared(still), digits, steps=5, learning_rate=1e-2, centroid_learning_rate=0.0)
    kernels = models.kernel_values(still)
    assert all(np.array_equal(kernels[name], kernel) for name, kernel in models.kernel_values(model).items())
    moved = parametrize.shared(fresh(model))
    learn(moved, digits, steps=5, learning_rate=0.0, centroid_learning_rate=1e-3)
    for name, kernel in models.kernel_values(moved.write_back()).items():
        assert len(np.unique(kernel)) == 4
        assert not np.array_equal(kernel, kernels[name])


def test_updates_come_at_their_steps(network, digits):
    seen = []
    learn(parametrize.free(network), digits, steps=30, batch=10, update=seen.append, update_steps=[0, 7, 25, 30])
    assert seen == [0, 7, 25, 30]
    with pytest.raises(RecipeError, match="until step 31, but there are only 30 steps"):
        learn(parametrize.free(network), digits, steps=30, update=seen.append, update_steps=[0, 31])


def test_outputs_may_be_probabilities(network, digits):
    soft = keras.Sequential([keras.Input((28, 28, 1)), network, keras.layers.Softmax()])
    plain = fresh(network)
    soft.layers[0].set_weights(network.get_weights())
    options = {"steps": 20, "batch": 20, "learning_rate": 1e-2}
    logits = learn(parametrize.free(plain), digits, **options)["loss"][-1]
    assert learn(parametrize.free(soft), digits, **options)["loss"][-1] == pytest.approx(logits, rel=0.2)


def test_smoothed_labels_have_a_part_on_every_class(digits):
    model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    logits = predictor(model)(digits.x_train)
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    right = logs[np.arange(len(logs)), digits.y_train].mean()
    for part in (0.0, 0.3):
        options = {"steps": 1, "batch": len(logs), "learning_rate": 0.0, "label_smoothing": part}
        loss = learn(parametrize.free(model), digits, **options)["loss"][-1]
        assert loss == pytest.approx(-((1 - part) * right + part * logs.mean()), rel=1e-4)


@pytest.mark.parametrize("certain", [False, True])
def test_a_teacher_takes_the_place_of_a_part_of_the_labels(digits, certain):
    """Student and teacher may end in logits or in probabilities."""

    def build():
        return keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])

    student, teacher = build(), build()
    logs = []
    for model in (student, teacher):
        logits = predictor(model)(digits.x_train)
        logs.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
        if certain:
            model.add(keras.layers.Softmax())
    (own, other), options = logs, {"steps": 1, "batch": len(digits.x_train), "learning_rate": 0.0, "temperature": 2.0}
    right = own[np.arange(len(own)), digits.y_train].mean()
    soft, wanted = np.exp(own / 2), np.exp(other / 2)
    soft, wanted = (part / part.sum(axis=1, keepdims=True) for part in (soft, wanted))
    apart = -(wanted * np.log(soft)).sum(axis=1).mean()
    for part in (0.0, 0.3, 1.0):
        history = learn(parametrize.free(student), digits, teacher=teacher, distillation=part, **options)
        assert history["loss"][-1] == pytest.approx((1 - part) * -right + part * 4 * apart, rel=1e-3)


def test_weight_decay_shrinks_weights_and_leaves_centroids(network, digits):
    model = compression.quantize(network, digits, bits=2, init="linear", steps=0)
    conv = network.get_layer("conv").kernel.numpy()
    options = {"steps": 1, "optimizer": "sgd", "schedule": "constant", "weight_decay": 0.5}
    for decay, left in ((0.0, 1.0), (0.5, 0.99)):
        free, shared = parametrize.free(fresh(network)), parametrize.shared(fresh(model))
        options["weight_decay"] = decay
        learn(free, digits, learning_rate=0.02, **options)
        plain = parametrize.free(fresh(network))
        learn(plain, digits, learning_rate=0.02, **options | {"weight_decay": 0.0})
        kernels = [made.write_back().get_layer("conv").kernel.numpy() for made in (free, plain)]
        assert np.allclose(kernels[0] - kernels[1], (left - 1) * conv, atol=1e-6)
        learn(shared, digits, learning_rate=0.0, centroid_learning_rate=0.0, **options)
        assert np.array_equal(shared.write_back().get_layer("conv").kernel, model.get_layer("conv").kernel)


def test_no_validation_part_leaves_its_column_empty(network, digits):
    bare = DataSet("bare", digits.train, Part(None), digits.test)
    assert learn(parametrize.free(network), bare, steps=2)["validation_accuracy"] == [None, None]


def test_zero_steps_change_nothing(network, digits):
    before = weights(network)
    history = learn(parametrize.free(network), digits, steps=0)
    assert history["step"] == [0]
    assert weights(network) == before


def test_tensorboard_scalars_are_written(network, digits, tmp_path):
    learn(parametrize.free(network), digits, steps=2, tensorboard=tmp_path / "board")
    assert list((tmp_path / "board").glob("events*"))


def test_networks_that_take_flat_images_or_any_size_are_fed(digits):
    flat = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])
    pool = [keras.layers.Conv2D(4, 3), keras.layers.GlobalMaxPooling2D(), keras.layers.Dense(10)]
    anything = keras.Sequential([keras.Input((None, None, 1)), *pool])
    for model in (flat, anything):
        learn(parametrize.free(model), digits, steps=2, shift=1)
        assert 0 <= evaluate(model, digits.x_test, digits.y_test) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps=-1"),
        ({"steps": 5, "batch": 0}, "batch=0"),
        ({"steps": 5, "weight_decay": -1.0}, "weight_decay=-1.0: it must be"),
        ({"steps": 5, "label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"steps": 5, "distillation": 1.5}, "weight=1.5"),
        ({"steps": 5, "temperature": 0.0}, "temperature=0: it must be above 0"),
        ({"steps": 5, "optimizer": "magic"}, "optimizer='magic': it must be one of adam"),
        ({"steps": 5, "schedule": "magic"}, "schedule='magic': it must be one of constant"),
        ({"steps": 5, "learning_rate": -1.0}, "learning_rate=-1.0"),
        ({"steps": 50, "learning_rate": 1e30, "optimizer": "sgd"}, "lower the learning rate"),
    ],
)
def test_bad_settings_are_refused(network, digits, options, message):
    with pytest.raises(RecipeError, match=message):
        learn(parametrize.free(network), digits, **options)


def test_a_state_of_another_network_is_refused(network, digits):
    memory = Memory()
    learn(parametrize.free(fresh(network)), digits, steps=2, checkpoint=memory)
    other = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    with pytest.raises(FormatError, match="another network"):
        learn(parametrize.free(other), digits, steps=2, checkpoint=memory)


@pytest.mark.parametrize(
    "config", ["{", "{}", '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}']
)
def test_a_malformed_cluster_is_refused(monkeypatch, config):
    monkeypatch.setenv("TF_CONFIG", config)
    with pytest.raises(RecipeError, match="TF_CONFIG does not describe"):
        distribute.start()
