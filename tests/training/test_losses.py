"""Which loss a network learns with: compiled, given, implied by outputs and labels, or asked for."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from deepcomp.data import DataSet
from deepcomp.errors import DataError, RecipeError
from deepcomp.options import Distillation, Training
from deepcomp.training.losses import Classification, Compiled, task_of

L = keras.layers
RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 6)).astype(np.float32)
NUMBERS = RNG.integers(0, 3, 40)
ONE_HOT = np.eye(3, dtype=np.float32)[NUMBERS]


def network(units, activation=None):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6,)), L.Dense(units, activation=activation, name="out")])


def task(model, y, x=X, **fields):
    training = Training(verbose=False, **fields)
    return task_of(model, model, DataSet.of((x, y) if y is not None else x), training)


@pytest.mark.parametrize(
    "labels", [NUMBERS, NUMBERS[:, None], ONE_HOT, NUMBERS.astype(np.int64), NUMBERS.astype(np.uint8)]
)
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_classes_of_logits_or_probabilities_are_told_by_class_numbers_and_one_hot_labels(labels, activation):
    found, dataset = task(network(3, activation), labels)
    assert isinstance(found, Classification)
    assert found.probabilities == (activation == "softmax")
    assert dataset.y_train.dtype == np.int32
    assert dataset.y_train.tolist() == NUMBERS.tolist()


@pytest.mark.parametrize(
    ("units", "activation", "labels", "description"),
    [
        (1, "sigmoid", NUMBERS > 0, "binary_crossentropy"),
        (1, "sigmoid", (NUMBERS > 0).astype(np.float32)[:, None], "binary_crossentropy"),
        (3, "sigmoid", ONE_HOT, "binary_crossentropy"),
        (1, None, X[:, 0], "mean_squared_error"),
        (3, None, X[:, :3], "mean_squared_error"),
        (3, "tanh", X[:, :3], "mean_squared_error"),
    ],
)
def test_other_losses_that_are_certain(units, activation, labels, description):
    found, _ = task(network(units, activation), labels)
    assert isinstance(found, Compiled)
    assert found.description == description


@pytest.mark.parametrize(
    ("units", "activation", "labels", "says"),
    [
        (3, "sigmoid", NUMBERS, "sigmoids are no softmax"),
        (1, None, NUMBERS > 0, "more than one loss fits"),
        (3, "sigmoid", np.abs(X[:, :3]) / 9, "more than one loss fits"),
        (3, None, NUMBERS.astype(np.float32), "the labels are no class numbers"),
    ],
)
def test_a_loss_that_is_not_certain_is_asked_for(units, activation, labels, says):
    with pytest.raises(RecipeError, match=rf"The loss of 'out' is not certain .*{says}.*Training\(loss=") as raised:
        task(network(units, activation), labels)
    assert "\n" not in str(raised.value)


def test_ten_sigmoids_compiled_with_binary_cross_entropy_get_one_hot_labels():
    model = network(3, "sigmoid")
    model.compile("adam", "binary_crossentropy")
    found, dataset = task(model, NUMBERS)
    assert isinstance(found, Compiled)
    assert np.array_equal(dataset.y_train, ONE_HOT)
    assert found.measures[-1] == "loss"


def test_the_compiled_loss_goes_before_the_implied_one_and_the_given_one_before_it():
    model = network(3)
    model.compile("adam", "mae", metrics=["mse"])
    assert task(model, X[:, :3])[0].description == "mean_absolute_error"
    assert task(model, X[:, :3], loss="huber")[0].description == "huber"
    with pytest.raises(RecipeError, match="loss='hubber'"):
        task(model, X[:, :3], loss="hubber")


def test_a_compiled_softmax_loss_is_plain_classification_and_an_unusual_one_is_not():
    model = network(3)
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    assert isinstance(task(model, NUMBERS)[0], Classification)
    model.compile("adam", keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1))
    smooth, _ = task(model, ONE_HOT)
    assert isinstance(smooth, Classification)
    assert smooth.label_smoothing == 0.1
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2))
    assert isinstance(task(model, NUMBERS)[0], Compiled)
    model.compile("adam", "sparse_categorical_crossentropy")  # which takes the logits for probabilities
    assert isinstance(task(model, NUMBERS)[0], Compiled)


def test_the_loss_and_metrics_are_those_of_keras():
    model = network(2)
    labels, weights = X[:, :2], RNG.random(40).astype(np.float32)
    model.compile("adam", "mse", metrics=["mae"], weighted_metrics=["mse"])
    found, _ = task(model, labels)
    expected = model.evaluate(X, labels, sample_weight=weights, verbose=0, batch_size=40, return_dict=True)
    part = DataSet.of((X, labels, weights)).train
    measured = found.measured(lambda x: model.predict(x, verbose=0), part)
    assert measured.keys() == expected.keys()
    assert all(measured[name] == pytest.approx(expected[name], rel=1e-5) for name in expected)
    example = {"x": tf.constant(X), "y": tf.constant(labels), "w": tf.constant(weights)}
    loss = found.loss(model, example, model(X), 40, 1.0)
    assert float(loss) == pytest.approx(expected["loss"], rel=1e-5)


def test_data_without_labels_is_to_be_put_out_again():
    model = network(6)
    found, dataset = task(model, None)
    assert found.description == "mean_squared_error"
    assert np.array_equal(dataset.y_train, dataset.x_train)
    with pytest.raises(DataError, match="no labels"):
        task(network(3), None)


def test_class_weights_weigh_examples():
    found, dataset = task(network(3), NUMBERS, class_weight={0: 2.0, 2: 0.5})
    assert dataset.train.w.tolist() == [{0: 2.0, 1: 1.0, 2: 0.5}[int(number)] for number in NUMBERS]
    logits = network(3)(X)
    each = keras.losses.sparse_categorical_crossentropy(NUMBERS, logits, from_logits=True).numpy()
    example = {"x": X, "y": tf.constant(NUMBERS, tf.int32), "w": tf.constant(dataset.train.w)}
    assert float(found.loss(network(3), example, logits, 40, 1.0)) == pytest.approx(np.mean(each * dataset.train.w))


def test_more_classes_than_outputs_are_refused():
    with pytest.raises(DataError, match=r"The data has 3 classes but the network 'sequential.*' gives outputs of 2"):
        task(network(2), np.append(NUMBERS[:-1], 2))


def test_a_teacher_of_values_and_of_sigmoids_pulls_outputs_to_its_own():
    for activation, labels in ((None, X[:, :2]), ("sigmoid", (X[:, :2] > 0).astype(np.float32))):
        student, teacher = network(2, activation), network(2, activation)
        found, _ = task(student, labels, distillation=Distillation(weight=1.0, teacher=teacher))
        example = {"x": tf.constant(X), "y": tf.constant(labels), "targets": found.teacher.targets(tf.constant(X))}
        with tf.GradientTape() as tape:
            loss = found.loss(student, example, student(X), 40, 1.0)
        gradients = tape.gradient(loss, [variable.value for variable in student.trainable_variables])
        assert max(float(tf.reduce_max(tf.abs(gradient))) for gradient in gradients) < 1e-6  # they are the same network


def test_distillation_of_a_loss_of_ones_own_is_refused():
    def own(y, outputs):
        return keras.ops.mean((y - outputs) ** 4)

    with pytest.raises(RecipeError, match="what a teacher says is not known for the loss"):
        task(network(2), X[:, :2], loss=own, distillation=Distillation(weight=0.5, teacher=network(2)))


BYTES = RNG.integers(0, 256, (300, 6)).astype(np.uint8)


def tells_dark_from_bright(largest):
    """A network that was trained on inputs from 0 to `largest`."""
    model = network(2)
    kernel = np.zeros((6, 2), np.float32)
    kernel[0, 1] = 20 / largest
    model.set_weights([kernel, np.array([0, -10], np.float32)])
    return model


@pytest.mark.parametrize("labels", [BYTES[:, 0] > 127, np.eye(2, dtype=np.float32)[(BYTES[:, 0] > 127).astype(int)]])
def test_a_network_gets_uint8_inputs_as_it_learned_them(labels):
    labels = labels.astype(np.int64) if labels.ndim == 1 else labels
    found = [task(tells_dark_from_bright(largest), labels, x=BYTES)[1] for largest in (1, 255)]
    assert [dataset.scale for dataset in found] == [True, False]
    assert all(np.array_equal(dataset.x_train, BYTES) for dataset in found)


def test_examples_that_come_class_by_class_say_how_inputs_are_scaled():
    x = np.sort(RNG.integers(0, 256, (2000, 6)).astype(np.uint8), axis=0)  # the first 256 are dark
    assert task(tells_dark_from_bright(255), (x[:, 0] > 127).astype(int), x=x)[1].scale is False


def test_a_teacher_does_not_say_how_inputs_are_scaled():
    model = tells_dark_from_bright(255)
    taught = {"distillation": Distillation(weight=0.9, teacher=network(2))}
    assert task(model, (BYTES[:, 0] > 127).astype(int), x=BYTES, **taught)[1].scale is False


def test_a_regression_of_uint8_inputs_as_they_are():
    model = network(1)
    model.set_weights([np.eye(6, 1, dtype=np.float32), np.zeros(1, np.float32)])
    assert task(model, BYTES[:, :1].astype(np.float32), x=BYTES)[1].scale is False
    assert task(model, BYTES[:, :1].astype(np.float32) / 255, x=BYTES)[1].scale is True


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
def test_a_network_that_larger_inputs_only_make_surer_gets_scaled_inputs(activation):
    model = network(1 if activation == "sigmoid" else 2, activation)
    kernel = np.zeros((6, 2), np.float32)
    kernel[0, 1] = kernel[1, 0] = 9
    model.set_weights(
        [kernel[:, 1:] - kernel[:, :1] if activation == "sigmoid" else kernel, np.zeros(model.output_shape[1])]
    )
    labels = (BYTES[:, 0].astype(int) > BYTES[:, 1]).astype(int)
    found, dataset = task(model, labels, x=BYTES)
    assert dataset.scale is True
    assert isinstance(found, Compiled if activation == "sigmoid" else Classification)


def test_a_network_that_was_not_trained_gets_scaled_inputs():
    for seed in range(5):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([keras.Input((6,)), L.Dense(16, "relu"), L.BatchNormalization(), L.Dense(3)])
        assert task(model, RNG.integers(0, 3, len(BYTES)), x=BYTES)[1].scale is True


def test_who_says_how_inputs_are_scaled_is_not_overruled():
    labels = (BYTES[:, 0] > 127).astype(int)
    assert task(tells_dark_from_bright(255), labels, x=BYTES, scale=True)[1].scale is True
    assert task(tells_dark_from_bright(1), labels, x=BYTES, scale=False)[1].scale is False
    model = tells_dark_from_bright(255)
    given = dataclasses.replace(DataSet.of((BYTES, labels)), scale=True)
    assert task_of(model, model, given, Training())[1].scale is True
