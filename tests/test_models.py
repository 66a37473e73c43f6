import keras
import numpy as np
import pytest

from deepcomp import models
from deepcomp.errors import DataError, RecipeError, UnsupportedLayerError


@pytest.mark.parametrize(
    ("name", "parameters", "shapes"),
    [
        (
            "reference",
            3_273_504,
            {"conv1": (5, 5, 1, 32), "conv2": (5, 5, 32, 64), "fc1": (3136, 1024), "fc2": (1024, 10)},
        ),
        ("lenet-300-100", 266_610, {"fc1": (784, 300), "fc2": (300, 100), "fc3": (100, 10)}),
        ("lenet-5", 431_080, {"conv1": (5, 5, 1, 20), "conv2": (5, 5, 20, 50), "fc1": (800, 500), "fc2": (500, 10)}),
        (
            "resnet-8",
            78_666 - 2 * 9 * 16,  # MLPerf Tiny's, on images of one channel
            {
                "conv2d": (3, 3, 1, 16),
                "conv2d_1": (3, 3, 16, 16),
                "conv2d_2": (3, 3, 16, 16),
                "conv2d_3": (3, 3, 16, 32),
                "conv2d_4": (3, 3, 32, 32),
                "conv2d_5": (1, 1, 16, 32),
                "conv2d_6": (3, 3, 32, 64),
                "conv2d_7": (3, 3, 64, 64),
                "conv2d_8": (1, 1, 32, 64),
                "dense": (64, 10),
            },
        ),
    ],
)
def test_networks_have_the_published_sizes(name, parameters, shapes):
    model = models.build(name)
    assert model.count_params() == parameters
    assert {name: tuple(variable.shape) for name, variable in models.kernels(model).items()} == shapes
    assert model.output_shape == (None, 10)


def test_weights_follow_the_seed_and_the_standard_deviation():
    keras.utils.set_random_seed(1)
    one = models.build("lenet-300-100", stddev=0.1)
    keras.utils.set_random_seed(1)
    same = models.build("lenet-300-100", stddev=0.1)
    assert all(np.array_equal(a, b) for a, b in zip(one.get_weights(), same.get_weights(), strict=True))
    assert np.std(one.get_weights()[0]) == pytest.approx(0.1, rel=0.01)
    he = models.build("lenet-300-100")
    assert np.std(he.get_weights()[0]) == pytest.approx(np.sqrt(2 / 784), rel=0.02)


def test_networks_that_cannot_be_built_are_refused():
    with pytest.raises(DataError, match="labels are no class numbers: use --model FILE"):
        models.build("lenet-5", classes=None)
    with pytest.raises(RecipeError, match="No network 'alexnet': use reference"):
        models.build("alexnet")
    with pytest.raises(DataError, match="Images of 4x4x1 do not fit the network 'lenet-5'"):
        models.build("lenet-5", (4, 4, 1))


def odd_network():
    image = keras.Input((8, 8, 3))
    x = keras.layers.SeparableConv2D(4, 3, padding="same", name="separable")(image)
    inner = keras.Sequential([keras.Input((8, 8, 4)), keras.layers.Conv2D(4, 1, name="conv")], name="inner")
    x = keras.layers.Add()([inner(x), x])
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = keras.layers.Conv2D(4, 1, name="frozen", trainable=False)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(image, keras.layers.Dense(2, name="dense", activation="softmax")(x), name="odd")


def test_kernels_are_found_in_every_kind_of_layer_and_nothing_else_is():
    found = models.kernels(odd_network())
    assert {name: tuple(variable.shape) for name, variable in found.items()} == {
        "separable/depthwise_kernel": (3, 3, 3, 1),
        "separable/pointwise_kernel": (1, 1, 3, 4),
        "inner/conv": (1, 1, 4, 4),
        "depthwise": (3, 3, 4, 1),
        "dense": (4, 2),
    }


def test_a_weight_is_multiplied_once_for_each_position():
    assert models.multiplications(odd_network()) == {
        "separable/depthwise_kernel": 64,
        "separable/pointwise_kernel": 64,
        "inner/conv": 64,
        "depthwise": 36,
        "dense": 1,
    }
    assert models.multiplications(models.build("lenet-5")) == {"conv1": 576, "conv2": 64, "fc1": 1, "fc2": 1}
    sequence = keras.Sequential([keras.Input((7, 3)), keras.layers.Dense(2, name="each")])
    assert models.multiplications(sequence) == {"each": 7}
    layers = [
        keras.layers.SpectralNormalization(keras.layers.Conv2D(3, 3), name="normed"),
        keras.layers.Conv2DTranspose(2, 3, strides=2, name="up"),
        keras.layers.Reshape((13, -1)),
        keras.layers.TimeDistributed(keras.layers.Dense(3), name="timed"),
    ]
    counts = models.multiplications(keras.Sequential([keras.Input((8, 8, 3)), *layers]))
    assert {name.split("/")[0]: count for name, count in counts.items()} == {"normed": 36, "up": 36, "timed": 13}


@pytest.mark.parametrize(
    ("shape", "layer"), [((None, 3), keras.layers.Dense(2, name="it")), ((7, 3), keras.layers.LSTM(2, name="it"))]
)
def test_positions_that_are_not_known_are_not_guessed(shape, layer):
    with pytest.raises(UnsupportedLayerError, match=r"How often the layer 'it.*' is applied to an image is not known"):
        models.multiplications(keras.Sequential([keras.Input(shape), layer]))


def test_two_layers_of_one_name_keep_apart():
    block = [keras.Sequential([keras.layers.Dense(3, name="fc")], name=f"block{i}") for i in (1, 2)]
    model = keras.Sequential([keras.Input((3,)), *block])
    assert len(models.kernels(model)) == 2


def test_a_network_without_kernels_is_refused():
    with pytest.raises(UnsupportedLayerError, match="no trainable kernel"):
        models.kernels(keras.Sequential([keras.Input((3,)), keras.layers.ReLU()], name="empty"))


def test_the_first_pattern_that_matches_a_whole_name_decides():
    names = ["conv1", "conv2", "fc"]
    assert models.per_layer({"conv1": 1, "conv.*": 2}, names, "x") == {"conv1": 1, "conv2": 2}
    assert models.per_layer({".*": 3}, names, "x") == {"conv1": 3, "conv2": 3, "fc": 3}
    with pytest.raises(RecipeError, match=r"x: 'conv' matches no layer; the layers are conv1, conv2, fc"):
        models.per_layer({"conv": 1}, names, "x")
    with pytest.raises(RecipeError, match=r"x: '\(' is not a regular expression"):
        models.per_layer({"(": 1}, names, "x")


def everything():
    """A functional model of layers with state or code of their own, one used twice, one as named as the model."""
    image = keras.Input((8, 8, 3))
    normal = keras.layers.Normalization(name="normal")
    normal.adapt(np.random.default_rng(0).normal(2, 3, (50, 8, 8, 3)))
    x = keras.layers.Lambda(lambda x: 2 * x, name="twice")(normal(image))
    again = keras.layers.Conv2D(3, 3, padding="same", name="again")
    x = again(again(x)) + x
    block = keras.Sequential([keras.layers.Conv2D(4, 1, name="everything"), keras.layers.BatchNormalization()])
    x = keras.layers.Dropout(0.5, seed=3)(keras.layers.Flatten()(block(x)))
    return keras.Model(image, keras.layers.Dense(2, name="everything")(x), name="everything")


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="own")
        self.hidden = keras.layers.Dense(4, activation="relu", name="hidden")
        self.out = keras.layers.Dense(2, name="out")

    def call(self, inputs):
        return self.out(self.hidden(inputs["a"]) + inputs["b"])

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls()


def test_a_copy_computes_the_same_and_shares_nothing():
    model, inputs = everything(), np.random.default_rng(1).normal(2, 3, (5, 8, 8, 3)).astype(np.float32)
    model.get_layer("again").trainable = False
    model.compile("adam", "mse")
    copy = models.clone(model, inputs=inputs)
    expected = model(inputs).numpy()
    np.testing.assert_array_equal(copy(inputs).numpy(), expected)
    assert [v.trainable for v in copy.variables] == [v.trainable for v in model.variables]
    assert not {id(v) for v in copy.variables} & {id(v) for v in model.variables}
    assert not copy.compiled
    assert model.compiled
    for variable in copy.trainable_variables:
        variable.assign(0 * variable)
    np.testing.assert_array_equal(model(inputs).numpy(), expected)


def test_a_subclassed_model_is_copied_with_inputs_or_as_it_was_built():
    model, inputs = Subclassed(), {"a": np.ones((3, 5), np.float32), "b": np.ones((3, 4), np.float32)}
    with pytest.raises(UnsupportedLayerError, match="'own' cannot be copied, is it built"):
        models.clone(model)
    expected = model(inputs).numpy()
    np.testing.assert_array_equal(models.clone(model, inputs=inputs)(inputs).numpy(), expected)


def test_a_copy_that_computes_something_else_is_refused():
    @keras.saving.register_keras_serializable("tests")
    class Forgetful(keras.layers.Layer):
        """A layer whose factor is neither in its configuration nor in its weights."""

        factor = 1.0

        def call(self, inputs):
            return self.factor * inputs

    model = keras.Sequential([keras.Input((3,)), Forgetful(), keras.layers.Dense(2)], name="forgetful")
    model.layers[0].factor = 3.0
    with pytest.raises(UnsupportedLayerError, match="A copy of the network 'forgetful' computes something else"):
        models.clone(model, inputs=np.ones((2, 3), np.float32))


def test_layers_can_be_replaced_on_the_way():
    def replace(layer):
        if isinstance(layer, keras.layers.Dense):
            return keras.layers.Dense(layer.units, activation="relu", name=layer.name)
        return type(layer).from_config(layer.get_config())

    inputs = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
    found = models.clone(model, replace)(inputs).numpy()
    np.testing.assert_array_equal(found, np.maximum(model(inputs).numpy(), 0))


def test_names_are_paths_without_the_model_s_own_name():
    names = ["again", "sequential/everything", "everything"]
    keras.utils.clear_session()
    assert list(models.kernels(everything())) == names
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="_hidden")], name="_model")
    assert list(models.kernels(model)) == ["_hidden"]


def test_what_is_frozen_is_said_and_can_be_included_for_a_while():
    model = odd_network()
    assert models.frozen_line(model) == (
        "Note: 1 of 6 kernels are frozen and stay as they are. They have 16 of 115 weights, which no pruning or "
        "sharing reaches; freeze=False includes them."
    )
    with models.unfrozen(model):
        assert "frozen" in models.kernels(model)
        assert models.frozen_line(model) == ""
    assert "frozen" not in models.kernels(model)
    assert not model.get_layer("frozen").trainable
    assert model.get_layer("dense").trainable
    model.trainable = False
    with pytest.raises(UnsupportedLayerError, match="no trainable kernel: 6 are frozen; freeze=False includes them"):
        models.kernels(model)
