"""Networks and data that once went wrong: each is compressed rightly now, or refused in one line."""

import keras
import numpy as np
import pytest

import deepcomp
from deepcomp import models

L = keras.layers
QUIET = {"steps": 3, "batch": 16, "verbose": False}


def sequential(*layers, shape=(28, 28, 1), name=None):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input(shape), *layers], name=name)


def classifier(*first, **more):
    return sequential(*first, L.Flatten(), L.Dense(12, activation="relu", name="a"), L.Dense(10, name="b"), **more)


@pytest.mark.parametrize("goal", [{"quality": 9.0}, {"threshold": 9.0}, {"sparsity": 0.9999, "scope": "global"}])
def test_a_dead_network_is_refused_with_the_names_of_its_layers(few, goal):
    with pytest.raises(deepcomp.RecipeError, match=r"No weight is left in .*'a'.* the same for every input"):
        deepcomp.prune(classifier(), few, **goal, **QUIET)


def test_a_layer_without_weights_beside_others_is_warned_of(few):
    image = keras.Input((28, 28, 1))
    flat = L.Flatten()(image)
    both = L.Add()([L.Dense(8, name="kept")(flat), L.Dense(8, name="gone")(flat)])
    model = keras.Model(image, L.Dense(10, name="out")(both))
    model.get_layer("gone").kernel.assign(np.full((784, 8), 1e-6))
    with pytest.warns(deepcomp.DeepcompWarning, match="No weight is left in 'gone'"):
        deepcomp.prune(model, few, threshold=1e-4, **QUIET)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_before_anything_is_trained(few, bad):
    model = classifier()
    kernel = model.get_layer("a").kernel.numpy()
    kernel[0, 0] = bad
    model.get_layer("a").kernel.assign(kernel)
    for call in (deepcomp.prune, deepcomp.quantize):
        with pytest.raises(deepcomp.RecipeError, match=r"'.*a/kernel' has 1 values that are (nan|inf)"):
            call(model, few, **QUIET)


def test_a_frozen_variable_stays_and_freeze_false_includes_it(few, capsys):
    model = classifier()
    model.get_layer("a").kernel.trainable = False
    before = model.get_layer("a").kernel.numpy()
    pruned = deepcomp.prune(model, few, sparsity=0.5, **{**QUIET, "verbose": True})
    assert "1 of 2 kernels are frozen" in capsys.readouterr().out
    assert np.array_equal(pruned.get_layer("a").kernel, before)
    assert not pruned.get_layer("a").kernel.trainable
    assert np.count_nonzero(pruned.get_layer("b").kernel) == 60
    whole = deepcomp.prune(model, few, sparsity=0.5, scope="layer", freeze=False, **QUIET)
    assert np.count_nonzero(whole.get_layer("a").kernel) == 784 * 6
    assert not whole.get_layer("a").kernel.trainable
    model.trainable = False
    with pytest.raises(deepcomp.UnsupportedLayerError, match="2 are frozen; freeze=False includes them"):
        deepcomp.prune(model, few, sparsity=0.5, **QUIET)


@pytest.mark.parametrize("constraint", ["non_neg", "max_norm"])
def test_constraints_go_on_holding(few, constraint):
    hidden = L.Dense(12, activation="relu", kernel_constraint=constraint, name="a")
    model = sequential(L.Flatten(), hidden, L.Dense(10))
    hidden.kernel.assign(hidden.kernel.constraint(hidden.kernel.value))
    how = {**QUIET, "steps": 30, "learning_rate": 1e-2}
    pruned = deepcomp.prune(model, few, sparsity=0.5, **how)
    shared = deepcomp.quantize(pruned, few, clusters=6, centroid_learning_rate=1e-2, **how)
    for made in (pruned, shared):
        kernel = made.get_layer("a").kernel
        assert np.allclose(kernel.constraint(kernel.value), kernel, atol=1e-3)


def test_a_constraint_that_shared_values_cannot_keep_is_warned_of(few):
    hidden = L.Dense(12, activation="relu", kernel_constraint="unit_norm", name="a")
    model = sequential(L.Flatten(), hidden, L.Dense(10))
    with pytest.warns(deepcomp.DeepcompWarning, match="The constraint UnitNorm of 'a' holds only nearly"):
        deepcomp.quantize(model, few, clusters=5, **QUIET)


def test_uint8_is_left_as_it_is_where_the_network_rescales(few, capsys):
    model = classifier(L.Rescaling(1 / 255))
    same = deepcomp.prune(model, few, sparsity=0.0, steps=0)
    assert "uint8 inputs: as they are, 0 to 255." in capsys.readouterr().out
    assert np.array_equal(same.predict(few.x_test, verbose=0), model.predict(few.x_test, verbose=0))
    deepcomp.prune(classifier(), few, sparsity=0.0, steps=0)
    assert "uint8 inputs: divided by 255." in capsys.readouterr().out
    deepcomp.prune(classifier(), few, sparsity=0.0, steps=0, scale=False)
    assert "as they are" in capsys.readouterr().out


class Stem(L.Layer):
    """A block with an adapted Normalization inside."""

    def __init__(self, **options):
        super().__init__(**options)
        self.normalize, self.dense = L.Normalization(axis=None), L.Dense(8, activation="relu")

    def build(self, shape):
        if not self.normalize.built:
            self.normalize.build(shape)
        self.dense.build(shape)

    def call(self, inputs):
        return self.dense(self.normalize(inputs))


def test_an_adapted_normalization_in_a_block_survives_the_copy(digits):
    x = digits.x_train.reshape(-1, 784).astype(np.float32)
    stem = Stem()
    stem.normalize.adapt(x)
    model = sequential(stem, L.Dense(10), shape=(784,))
    same = deepcomp.prune(model, (x, digits.y_train), sparsity=0.0, steps=0, verbose=False)
    assert np.allclose(same.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5, atol=1e-5)


class Counted(L.Layer):
    """A layer whose state is neither configuration nor weight."""

    factor = 1.0

    def call(self, inputs):
        return inputs * self.factor


def test_a_copy_that_computes_something_else_is_refused(few):
    counted = Counted()
    counted.factor = 3.0
    with pytest.raises(
        deepcomp.UnsupportedLayerError, match=r"A copy of the network 'sequential.*' computes something"
    ):
        deepcomp.prune(classifier(counted), few, sparsity=0.5, **QUIET)


@pytest.mark.parametrize("name", ["_hidden", "-1", "net"])
def test_names_that_begin_oddly_or_are_the_network_s_own(few, name):
    model = sequential(L.Flatten(), L.Dense(8, activation="relu", name=name), L.Dense(10, name="out"), name="net")
    assert list(models.kernels(model)) == [name, "out"]
    pruned = deepcomp.prune(model, few, sparsity={name: 0.5}, **QUIET)
    assert np.count_nonzero(pruned.layers[1].kernel) == 784 * 4
    shared = deepcomp.quantize(pruned, few, clusters=3, **QUIET)
    assert len(np.unique(shared.layers[1].kernel)) <= 4


def test_lambdas_operators_and_layers_in_use_twice(few):
    image = keras.Input((28, 28, 1))
    flat = L.Flatten()(L.Lambda(lambda x: x * 2)(image))
    twice = L.Dense(784, name="twice")
    x = twice(twice(flat) * 0.1) + flat
    model = keras.Model(image, L.Dense(10, name="out")(keras.ops.relu(x)))
    pruned = deepcomp.prune(model, few, sparsity=0.5, **QUIET)
    assert list(models.kernels(pruned)) == ["twice", "out"]
    assert sum(map(np.count_nonzero, models.kernel_values(pruned).values())) == (784 * 784 + 7840) // 2


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_other_precisions(few, policy):
    model = sequential(L.Flatten(), L.Dense(12, activation="relu", dtype=policy), L.Dense(10, dtype=policy))
    pruned = deepcomp.prune(model, few, sparsity=0.5, **QUIET)
    shared = deepcomp.quantize(pruned, few, clusters=4, **QUIET)
    for kernel in models.kernel_values(shared).values():
        assert len(np.unique(kernel[kernel != 0])) <= 4
        assert kernel.dtype == (np.float64 if policy == "float64" else np.float32)


def test_outputs_and_inputs_by_name(few):
    image = keras.Input((28, 28, 1), name="image")
    model = keras.Model({"image": image}, {"digit": L.Dense(10)(L.Flatten()(image))})
    pruned = deepcomp.prune(model, few, sparsity=0.5, **QUIET)
    assert np.count_nonzero(pruned.layers[-1].kernel) == 3920


def test_adamw_does_not_shrink_centroids_or_weights_unless_asked(few):
    model = deepcomp.quantize(classifier(), few, clusters=4, steps=0, verbose=False)
    how = {**QUIET, "optimizer": "adamw", "learning_rate": 0.0, "centroid_learning_rate": 0.0}
    after = deepcomp.quantize(model, few, clusters=4, **how)
    for name, kernel in models.kernel_values(model).items():
        assert np.array_equal(np.unique(kernel), np.unique(models.kernel_values(after)[name]))


def test_without_data_nothing_is_trained_and_steps_are_refused():
    pruned = deepcomp.prune(classifier(), sparsity=0.5, steps=0, verbose=False)
    assert sum(map(np.count_nonzero, models.kernel_values(pruned).values())) == (784 * 12 + 120) // 2
    shared = deepcomp.quantize(pruned, clusters=3, steps=0, verbose=False)
    assert all(len(np.unique(kernel)) <= 4 for kernel in models.kernel_values(shared).values())
    with pytest.raises(deepcomp.RecipeError, match="data=None goes with steps=0, not steps=5"):
        deepcomp.prune(classifier(), sparsity=0.5, steps=5)
    for call in (deepcomp.prune, deepcomp.quantize):
        with pytest.raises(deepcomp.RecipeError, match="rounds by curvature need data: with data=None leave them out"):
            call(classifier(), steps=0, second_order_rounds=1, verbose=False)
    with pytest.raises(deepcomp.RecipeError, match="scores by saliency need data"):
        deepcomp.prune(classifier(), steps=0, scores="saliency", verbose=False)


def test_x_and_y_as_two_arguments_are_answered_in_one_line(few):
    with pytest.raises(deepcomp.RecipeError, match=r"pruning must be a deepcomp.Pruning, not an array of shape"):
        deepcomp.prune(classifier(), few.x_train, few.y_train, sparsity=0.5)
    with pytest.raises(deepcomp.RecipeError, match=r"model is str: give a keras.Model"):
        deepcomp.prune("model.keras", few, sparsity=0.5)
    with pytest.raises(deepcomp.DataError, match="which can be read only once"):
        deepcomp.prune(classifier(), iter([few.x_train]), sparsity=0.5)


def test_the_result_is_compiled_as_the_network_was(few):
    model = classifier()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    pruned = deepcomp.prune(model, few, sparsity=0.5, **QUIET)
    found = pruned.evaluate(few.x_test / 255, few.y_test, verbose=0, return_dict=True)
    assert set(found) == {"loss", "accuracy"}


def test_a_call_tells_and_keeps_what_came_out(few, capsys, tmp_path):
    record = deepcomp.Record(checkpoint=tmp_path / "state.npz")
    deepcomp.prune(classifier(), few, sparsity=0.5, steps=6, save_every=3, evaluate_every=3, record=record)
    assert record.history["step"] == [0, 3, 6]
    assert [row["name"] for row in record.layers] == ["a", "b"]
    assert 0 <= record.before["accuracy"] <= 1 and 0 <= record.after["accuracy"] <= 1  # noqa: PT018
    shown = capsys.readouterr().out
    assert "accuracy" in shown and "all " in shown  # noqa: PT018
    assert (tmp_path / "state.npz").is_file()
