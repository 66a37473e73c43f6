"""The weights of models that no file holds as networks: saved alone, and given back to a model that is built anew."""

import keras
import numpy as np
import pytest
from keras import layers

import deepcomp
from deepcomp import errors, models
from deepcomp.__main__ import main
from deepcomp.dcz import container
from tests.zoo import fill


class Own(keras.Model):
    """Layers that a file cannot hold, and variables of several kinds."""

    def __init__(self, units=5, dtype="float32"):
        super().__init__(name="own")
        self.first = layers.Dense(units, dtype=dtype)
        self.again = layers.Lambda(lambda x: keras.ops.sin(x))
        self.drop = layers.Dropout(0.5, seed=3)
        self.norm = layers.BatchNormalization()
        self.count = self.add_weight(shape=(), dtype="int32", name="count", trainable=False, initializer="zeros")

    def call(self, x, training=False):
        return self.norm(self.drop(self.again(self.first(x)), training=training), training=training)


def built(**options):
    model = Own(**options)
    model(np.zeros((2, 7), np.float32))
    return model


def assert_same(model, other):
    for one, two in zip(model.weights, other.weights, strict=True):
        assert one.dtype == two.dtype
        assert one.numpy().tobytes() == two.numpy().tobytes()


@pytest.mark.parametrize("coder", ["range", "huffman"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "mixed_bfloat16"])
def test_weights_of_every_dtype_come_back_to_the_bit(dtype, coder, tmp_path):
    model = built(dtype=dtype)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        variable.assign(rng.normal(size=variable.shape) * (rng.random(variable.shape) < 0.3) + 0)
    model.count.assign(2_000_000_011)
    path = tmp_path / "own.dcz"
    deepcomp.save_weights(model, path, coder)
    other = built(dtype=dtype)
    deepcomp.load_weights(other, path)
    assert_same(model, other)
    assert other.count.numpy() == 2_000_000_011
    assert container.dumps(container.load(path), coder) == path.read_bytes()


def test_a_pruned_and_shared_model_takes_a_file_as_small_as_that_of_the_network(tmp_path):
    model = models.build("lenet-300-100", (28, 28, 1), 10)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        kept = rng.random(variable.shape) < 0.1
        variable.assign(np.round(rng.normal(size=variable.shape), 0) / 4 * kept + 0)
    deepcomp.save(model, tmp_path / "network.dcz")
    deepcomp.save_weights(model, tmp_path / "weights.dcz")
    sizes = [(tmp_path / name).stat().st_size for name in ("network.dcz", "weights.dcz")]
    assert sizes[1] < 1.02 * sizes[0] + 200
    other = models.build("lenet-300-100", (28, 28, 1), 10)
    deepcomp.load_weights(other, tmp_path / "weights.dcz")
    assert_same(model, other)


def test_names_that_keras_numbers_do_not_matter(tmp_path):
    def model():
        return keras.Sequential([keras.Input((4,)), layers.Dense(3), layers.Dense(3), layers.Dense(2)])

    first, second = fill(model()), model()
    assert [one.path for one in first.weights] != [one.path for one in second.weights]
    deepcomp.save_weights(first, tmp_path / "a.dcz")
    deepcomp.load_weights(second, tmp_path / "a.dcz")
    assert_same(first, second)


def test_weights_go_by_path_where_the_order_differs(tmp_path):
    def model(*names):
        return keras.Sequential([keras.Input((3,)), *(layers.Dense(3, name=name) for name in names)], name="m")

    first, second = fill(model("a", "b")), model("b", "a")
    deepcomp.save_weights(first, tmp_path / "a.dcz")
    deepcomp.load_weights(second, tmp_path / "a.dcz")
    assert np.array_equal(first.get_layer("a").kernel, second.get_layer("a").kernel)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: built(units=6), r"'own/dense(_\d+)?/kernel', float32 \(7, 6\), .* which has .* float32 \(7, 5\)"),
        (lambda: built(dtype="float16"), "float16 .* which has .* float32"),
        (lambda: keras.Sequential([keras.Input((4,)), layers.Dense(3)]), "holds 7 weights, and the model .* has 2"),
        (lambda: keras.Sequential([layers.Dense(3)], name="s"), "The model 's' has no weights: build it, or call it"),
        (lambda: np.zeros(3), "A Keras model is needed, not ndarray"),
    ],
)
def test_weights_of_another_model_are_refused_and_nothing_changes(other, message, tmp_path):
    deepcomp.save_weights(fill(built()), tmp_path / "own.dcz")
    model = other()
    before = [variable.numpy() for variable in model.weights] if isinstance(model, keras.Model) else []
    with pytest.raises(errors.RecipeError, match=message):
        deepcomp.load_weights(model, tmp_path / "own.dcz")
    after = [variable.numpy() for variable in model.weights] if isinstance(model, keras.Model) else []
    assert all(map(np.array_equal, before, after))


def test_a_weight_that_is_not_finite_is_refused_by_name(tmp_path):
    model = built()
    model.first.bias.assign([1, 2, np.nan, 4, 5])
    with pytest.raises(errors.UnsupportedLayerError, match=r"The weight 'own/dense(_\d+)?/bias' is not finite"):
        deepcomp.save_weights(model, tmp_path / "own.dcz")
    assert not [*tmp_path.iterdir()]


def test_weights_alone_are_no_network_and_a_network_is_no_weights_alone(tmp_path):
    model = built()
    deepcomp.save_weights(model, tmp_path / "weights.dcz")
    for read in (deepcomp.load, deepcomp.to_keras):
        with pytest.raises(errors.FormatError, match="holds the weights of a model alone: build the model"):
            read(tmp_path / "weights.dcz")
    deepcomp.save(keras.Sequential([keras.Input((4,)), layers.Dense(3)]), tmp_path / "network.dcz")
    with pytest.raises(errors.FormatError, match=r"network.dcz holds a network, not weights alone: use"):
        deepcomp.load_weights(model, tmp_path / "network.dcz")


def test_the_command_saves_weights_alone(tmp_path, capsys):
    taken = keras.Input((6,))
    model = keras.Model(taken, layers.Dense(3, name="d")(keras.ops.cumsum(taken, axis=1)))
    model.save(tmp_path / "own.keras")
    main(["save", "--weights-only", str(tmp_path / "own.keras"), str(tmp_path / "own.dcz")])
    assert "84 bytes -> " in capsys.readouterr().out
    model.get_layer("d").kernel.assign(np.zeros((6, 3)))
    deepcomp.load_weights(model, tmp_path / "own.dcz")
    assert np.count_nonzero(model.get_layer("d").kernel) == 18
    main(["inspect", str(tmp_path / "own.dcz")])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines if line.startswith("d/")] == [["d/kernel", "18"], ["d/bias", "3"]]
