import keras
import numpy as np
import pytest
from keras import layers

import deepcomp
from deepcomp import Sharing, Training, models
from deepcomp.dcz import container, conversion
from deepcomp.dcz.folding import fold_normalization
from deepcomp.dcz.network import Layer, Network
from tests.zoo import fill

ONES = np.ones(2, np.float32)


def normalization(name="norm", source=1, **weights):
    own = {"gamma": ONES, "beta": ONES, "moving_mean": 3 * ONES, "moving_variance": 3 * ONES} | weights
    return Layer("BatchNormalization", name, (source,), {"epsilon": 1.0}, own)


def convolution(name="conv", source=0, activation="linear"):
    weights = {"kernel": np.ones((1, 1, 2, 2), np.float32), "bias": np.float32([4, 5])}
    options = {"filters": 2, "kernel_size": (1, 1), "activation": activation}
    return Layer("Conv2D", name, (source,), options, weights)


def network(*made, outputs=()):
    return Network("net", (4, 4, 2), (Layer("InputLayer", "image"), *made), outputs)


def weights_of(layer):
    return {name: array.tolist() for name, array in layer.weights.items()}


def test_scale_and_shift_are_golden():
    """gamma / sqrt(3 + 1) = 1/2 and, with the bias, 1 - (3 - 4) / 2 and 1 - (3 - 5) / 2; times sqrt(1 + 1) in gamma."""
    _, conv, norm = fold_normalization(network(convolution(), normalization())).layers
    assert weights_of(norm) == {
        "gamma": [float(np.float16(2**-0.5))] * 2,
        "beta": [1.5, 2.0],
        "moving_mean": [0, 0],
        "moving_variance": [1, 1],
    }
    assert conv.weights["bias"].tolist() == [0, 0]
    assert all(array.dtype == np.float32 for array in norm.weights.values())


@pytest.mark.parametrize(
    ("made", "outputs"),
    [
        ((convolution(activation="relu"), normalization()), ()),
        ((convolution(), Layer("ReLU", "relu", (1,)), normalization(source=2)), ()),
        ((convolution(), normalization(), Layer("Add", "add", (1, 2))), ()),
        ((convolution(), normalization()), (1, 2)),
    ],
    ids=["activation", "layer between", "second reader", "output"],
)
def test_a_bias_that_others_read_stays(made, outputs):
    folded = fold_normalization(Network("net", (4, 4, 2), (Layer("InputLayer", "image"), *made), outputs, None, ()))
    assert folded.layers[1].weights["bias"].tolist() == [4, 5]
    norm = next(layer for layer in folded.layers if layer.kind == "BatchNormalization")
    assert norm.weights["beta"].tolist() == [-0.499755859375] * 2  # 1 - 3 / 2, and 3 times what gamma has lost
    assert norm.weights["moving_mean"].tolist() == [0, 0]


def test_a_sum_has_one_shift():
    made = (
        convolution(),
        normalization(),
        convolution("short", 0),
        normalization("other", 0),
        Layer("Add", "add", (2, 3, 4)),
    )
    _, conv, norm, short, other, _ = fold_normalization(network(*made)).layers
    assert conv.weights["bias"].tolist() == short.weights["bias"].tolist() == other.weights["beta"].tolist() == [0, 0]
    assert norm.weights["beta"].tolist() == [1.5 + 4 - 0.5, 2 + 5 - 0.5]


def test_a_sum_that_is_broadcast_has_shifts_of_its_own():
    pooled = Layer("GlobalAveragePooling2D", "mean", (0,), {"keepdims": True})
    made = convolution(), normalization(), pooled, convolution("short", 3), Layer("Add", "add", (2, 4))
    assert fold_normalization(network(*made)).layers[4].weights["bias"].tolist() == [4, 5]


def test_what_is_kept_or_called_again_or_has_no_beta_stays():
    one = network(convolution(), normalization())
    assert [
        weights_of(a) == weights_of(b) for a, b in zip(fold_normalization(one, {1}).layers, one.layers, strict=True)
    ][1]
    assert weights_of(fold_normalization(one, {2}).layers[2]) == weights_of(one.layers[2])
    again = Layer("Conv2D", "conv:2", (2,), convolution().options, {}, 1)
    assert fold_normalization(network(convolution(), normalization(), again)).layers[1].weights["bias"].tolist() == [
        4,
        5,
    ]
    bare = normalization()
    del bare.weights["beta"]
    bare = Layer("BatchNormalization", "norm", (1,), {"epsilon": 1.0, "center": False}, bare.weights)
    assert weights_of(fold_normalization(network(convolution(), bare)).layers[2]) == weights_of(bare)


def test_what_is_divided_by_nothing_stays():
    bare = normalization(moving_variance=np.float32([0, 1]))
    bare = Layer("BatchNormalization", "norm", (1,), {"epsilon": 0.0}, bare.weights)
    assert weights_of(fold_normalization(network(convolution(), bare)).layers[2]) == weights_of(bare)


def test_values_that_float16_does_not_suit_are_kept():
    large = normalization(gamma=np.float32([1e6, 1e-9]), moving_variance=0 * ONES, moving_mean=0 * ONES)
    _, _, norm = fold_normalization(network(convolution(activation="relu"), large)).layers
    np.testing.assert_allclose(norm.weights["gamma"], np.float32([2**0.5 * 1e6, 2**0.5 * 1e-9]), rtol=1e-6)
    assert norm.weights["beta"].tolist() == [1, 1]


def residual():
    def block(x, filters, strides=1, constraint=None):
        y = layers.Conv2D(filters, 3, strides, padding="same")(x)
        y = layers.ReLU()(layers.BatchNormalization(gamma_constraint=constraint)(y))
        y = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(y))
        short = layers.Conv2D(filters, 1, strides)(x) if strides > 1 else x
        return layers.ReLU()(layers.Add()([short, y]))

    inputs = keras.Input((9, 8, 3))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3)(inputs))
    x = block(block(block(x, 4, constraint=keras.constraints.NonNeg()), 6, 2), 6)
    x = layers.BatchNormalization(scale=False)(layers.Dense(5)(layers.GlobalMaxPooling2D()(x)))
    return keras.Model(inputs, layers.Dense(2)(x))


def test_a_network_computes_the_same():
    model = fill(residual())
    for variable in model.weights:
        if "mean" in variable.name or "beta" in variable.name or variable.name == "bias":
            variable.assign(variable - 0.5)
    images = np.random.default_rng(0).normal(size=(20, 9, 8, 3)).astype(np.float32)
    expected, before = model(images).numpy(), len(container.dumps(conversion.from_keras(model)))
    conversion.fold_normalization(model)
    np.testing.assert_allclose(model(images), expected, atol=3e-3 * np.abs(expected).max())
    assert len(container.dumps(conversion.from_keras(model))) < before - 12 * 4 * 6
    shortcut = next(layer for layer in model.layers if isinstance(layer, layers.Conv2D) and layer.kernel_size == (1, 1))
    assert not np.any(shortcut.bias)
    once = [variable.numpy() for variable in model.weights]
    conversion.fold_normalization(model)
    for variable, right in zip(model.weights, once, strict=True):
        np.testing.assert_allclose(variable, right, rtol=1e-3)


@pytest.mark.parametrize(
    ("means", "deviations", "halves"),
    [
        ((2e3, 1e3, 0), (3, 1, 1), [True, False]),
        ((0, 0, 0), (2e4, 15, 1e7), [False, True]),
        ((0, 0, 0), (1, 1e7, 1e8), [False, True]),
        ((1.5e9, 0, 0), (1e7, 1, 1), [False, True]),
        ((3, -2, 0.1), (1, 2, 0.5), [True, True]),
    ],
)
def test_tables_of_any_scale_keep_their_outputs(means, deviations, halves):
    """float16 numbers of one largest value are 0 for others, and a large mean takes away what they have."""
    inputs = keras.Input((3,))
    model = keras.Model(inputs, layers.Dense(4)(layers.BatchNormalization()(inputs)))
    norm = model.layers[1]
    norm.moving_mean.assign(means)
    norm.moving_variance.assign(np.square(deviations))
    table = np.random.default_rng(0).normal(means, deviations, (50, 3)).astype(np.float32)
    expected = model(table).numpy()
    conversion.fold_normalization(model)
    np.testing.assert_allclose(model(table), expected, atol=0.01 * np.abs(expected).max())
    with np.errstate(over="ignore"):
        are_half = [np.array_equal(one, one.numpy().astype(np.float16)) for one in (norm.gamma, norm.beta)]
    assert are_half == halves


def test_quantize_takes_operators_and_layers_that_are_called_again():
    inputs = keras.Input((6,))
    norm, dense = layers.BatchNormalization(), layers.Dense(6)
    x = norm(dense(keras.ops.relu(norm(dense(inputs))) + inputs))
    model = fill(keras.Model(inputs, keras.ops.mean(x, axis=1)))
    rows = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    shared = deepcomp.quantize(model, None, Sharing(clusters=64), Training(steps=0, verbose=False))
    np.testing.assert_allclose(shared(rows), model(rows), rtol=1e-2, atol=1e-2)
    assert np.any(shared.get_layer(norm.name).moving_mean)  # it stays as it is


def test_quantize_folds_what_is_not_frozen_or_constrained():
    model = fill(residual())
    model.layers[2].trainable = False  # the first batch normalization
    quiet = Training(steps=0, verbose=False, freeze=True)
    shared = deepcomp.quantize(model, None, Sharing(clusters=4), quiet)
    own, made = (
        [layer for layer in one.layers if isinstance(layer, layers.BatchNormalization)] for one in (model, shared)
    )
    means = [bool(np.any(layer.moving_mean)) for layer in made]
    assert np.array_equal(own[0].moving_mean, made[0].moving_mean)
    assert means == [True, True, *[False] * 5, True]  # frozen, constrained, and one without a gamma
    for layer in made[2:-1]:
        for values in (layer.gamma.numpy(), layer.beta.numpy()):
            assert np.array_equal(values, values.astype(np.float16))
    everything = deepcomp.quantize(model, None, Sharing(clusters=4), Training(steps=0, verbose=False, freeze=False))
    assert not np.any(everything.layers[2].moving_mean)


def test_all_but_the_kernels_of_a_small_residual_network_take_1300_bytes():
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    model, draws = models.build("resnet-8", (32, 32, 3)), np.random.default_rng(0)
    assert model.count_params() == 78_666
    for variable in model.weights:
        if len(variable.shape) == 1:
            variable.assign(draws.uniform(0.1, 2, variable.shape))
    shared = deepcomp.quantize(model, None, Sharing(clusters=16), Training(steps=0, verbose=False))
    parts = container.parts(conversion.from_keras(shared))
    kernels = sum(part.bits for part in parts.tensors if part.weight == "kernel")
    assert sum(part.bits for part in parts.tensors) - kernels + parts.overhead_bits <= 8 * 1_300
