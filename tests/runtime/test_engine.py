"""The engine against Keras, on a zoo that has every kind of layer and every activation."""

import copy
import math
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from functools import cache
from unittest.mock import Mock

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import deepcomp
from deepcomp import data, models, runtime
from deepcomp.dcz import container, kinds, neurons
from deepcomp.dcz import conversion as exchange
from deepcomp.dcz.network import entries
from deepcomp.errors import DataError, FormatError, RecipeError
from deepcomp.runtime import Engine, cpu
from deepcomp.runtime import engine as engine_module
from deepcomp.runtime.kernels import WIDTH
from deepcomp.runtime.plan import Plan
from tests.runtime import networks

RELATIVE = 1e-4


def draw(model, seed=0, density=0.4, centroids=15):
    """Give a model weights that keep its activations near 1; kernels are pruned and share values."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        shape = weight.shape
        if weight.name.endswith("kernel"):
            values = rng.normal(0, 1, shape)
            if centroids:
                grid = np.linspace(-2.5, 2.5, centroids)
                values = grid[np.abs(values[..., None] - grid).argmin(-1)] if values.size < 1e6 else values
            fan_in = np.prod(shape[:-2]) if "depthwise" in weight.path else np.prod(shape[:-1])
            values = values * (rng.random(shape) < density) / np.sqrt(max(1.0, density * fan_in))
        elif weight.name in ("gamma", "moving_variance"):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(0, 0.3, shape)
        weight.assign(values)
    return model


def sequential(shape, *stack, **weights):
    return draw(keras.Sequential([keras.Input(shape), *stack]), **weights)


def functional(shape, build, **weights):
    image = keras.Input(shape)
    return draw(keras.Model(image, build(image)), **weights)


def images(model, count, seed=1):
    return np.random.default_rng(seed).normal(0, 1, (count, *model.input_shape[1:])).astype(np.float32)


def assert_equal(actual, expected, tolerance=RELATIVE):
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max(initial=1e-30))


def through_file(model, folder, threads=2):
    path = folder / "model.dcz"
    deepcomp.save(model, path)
    return deepcomp.load(path, threads=threads)


def check(model, folder, counts=(1, WIDTH + 3)):
    engine = through_file(model, folder)
    assert (engine.input_shape, engine.output_shape) == (model.input_shape[1:], model.output_shape[1:])
    x = images(model, max(counts))
    expected = model.predict_on_batch(x)
    assert np.abs(expected).max() > 1e-6
    for count in counts:
        assert_equal(engine(x[:count]), expected[:count])
    return engine


# Convolutions and dense layers, whose options are the awkward part

CONV2D = {
    "plain": ((7, 6, 3), {"filters": 5, "kernel_size": 3}),
    "same": ((7, 6, 3), {"filters": 5, "kernel_size": 3, "padding": "same"}),
    "even window, same": ((5, 8, 2), {"filters": 3, "kernel_size": (4, 2), "padding": "same"}),
    "strides 3": ((11, 13, 2), {"filters": 4, "kernel_size": 4, "strides": 3}),
    "strides 3, same": ((11, 13, 2), {"filters": 4, "kernel_size": 2, "strides": 3, "padding": "same"}),
    "strides beyond the window": ((9, 9, 2), {"filters": 4, "kernel_size": 1, "strides": (3, 2)}),
    "strides of one axis": ((9, 10, 2), {"filters": 4, "kernel_size": (3, 2), "strides": (1, 2), "padding": "same"}),
    "dilation 2": ((9, 10, 2), {"filters": 4, "kernel_size": 3, "dilation_rate": 2}),
    "dilation 3 by 2, same": (
        (8, 9, 2),
        {"filters": 4, "kernel_size": (2, 3), "dilation_rate": (3, 2), "padding": "same"},
    ),
    "groups": ((6, 5, 6), {"filters": 9, "kernel_size": 3, "groups": 3, "padding": "same"}),
    "a group for each channel": ((6, 5, 4), {"filters": 8, "kernel_size": 2, "groups": 4, "strides": 2}),
    "one pixel": ((1, 1, 5), {"filters": 3, "kernel_size": 1}),
    "one pixel, wide window": ((1, 1, 5), {"filters": 3, "kernel_size": 5, "padding": "same", "groups": 1}),
    "one pixel, groups": ((1, 1, 6), {"filters": 4, "kernel_size": 3, "padding": "same", "groups": 2}),
    "one output": ((4, 3, 2), {"filters": 3, "kernel_size": (4, 3)}),
    "one output of strides": ((3, 3, 2), {"filters": 3, "kernel_size": 2, "strides": 3, "padding": "same"}),
    "one channel to one": ((5, 5, 1), {"filters": 1, "kernel_size": 4, "use_bias": False}),
    "one row": ((1, 20, 2), {"filters": 3, "kernel_size": (1, 4)}),
    "one column": ((20, 1, 2), {"filters": 3, "kernel_size": (4, 1), "padding": "same"}),
    "wide": ((3, 70, 1), {"filters": 2, "kernel_size": 3}),
    "many filters": ((4, 4, 3), {"filters": 70, "kernel_size": 3}),
}


@pytest.mark.parametrize("name", CONV2D)
def test_conv2d(name, tmp_path):
    shape, options = CONV2D[name]
    check(sequential(shape, layers.Conv2D(**options)), tmp_path)


@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
@pytest.mark.parametrize(
    "options",
    [{"kernel_size": 3}, {"kernel_size": 4, "strides": 3}, {"kernel_size": 2, "dilation_rate": 3, "groups": 2}],
)
def test_conv1d(options, padding, tmp_path):
    check(sequential((14, 4), layers.Conv1D(6, padding=padding, activation="relu", **options)), tmp_path)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("options", [{}, {"strides": 2}, {"dilation_rate": 2}, {"depth_multiplier": 3}])
def test_depthwise_and_separable(options, padding, tmp_path):
    def build(image):
        x = layers.DepthwiseConv2D(3, padding=padding, **options)(image)
        return layers.SeparableConv2D(7, 2, padding=padding, activation="relu6", **options)(x)

    check(functional((13, 12, 3), build, density=0.8), tmp_path)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_depthwise_and_separable_1d(padding, tmp_path):
    def build(image):
        x = layers.DepthwiseConv1D(3, strides=2, padding=padding, depth_multiplier=2)(image)
        return layers.SeparableConv1D(5, 3, padding=padding, depth_multiplier=2, dilation_rate=2)(x)

    check(functional((17, 3), build, density=0.8), tmp_path)


@pytest.mark.parametrize("shape", [(9,), (4, 9), (3, 4, 9), (2, 3, 2, 9)])
def test_dense_of_any_rank(shape, tmp_path):
    check(sequential(shape, layers.Dense(5), layers.Dense(1, activation="relu"), layers.Dense(3)), tmp_path)


def test_many_units_and_long_runs(tmp_path):
    model = sequential((3000,), layers.Dense(37, activation="relu"), layers.Dense(130))
    check(model, tmp_path, (1, 5, 5 * WIDTH + 1))


def test_gaps_of_more_than_65535(tmp_path):
    model = sequential((140_000,), layers.Dense(3), density=1e-4)
    kernel = np.zeros((140_000, 3), np.float32)
    kernel[[0, 65_535, 65_536, 131_071, 139_999], [0, 0, 1, 1, 2]] = [1, 2, 3, 4, 5]
    model.layers[0].kernel.assign(kernel)
    check(model, tmp_path)


@pytest.mark.parametrize("centroids", [1, 255, 256, 300, 0])
def test_codebooks(centroids, tmp_path):
    """Indices of one byte and of two, and more values than a codebook pays for."""
    rng = np.random.default_rng(0)
    model = sequential((20, 20, 2), layers.Conv2D(40, 5), layers.Flatten(), layers.Dense(16))
    for weight in (model.layers[0].kernel, model.layers[2].kernel):
        grid = np.linspace(-0.1, 0.12, centroids) if centroids else rng.normal(0, 0.1, weight.shape)
        values = rng.choice(grid, weight.shape) if centroids else grid
        weight.assign(values * (rng.random(weight.shape) < 0.5))
    engine = check(model, tmp_path)
    weights = sum(np.count_nonzero(weight) for weight in model.get_weights())
    assert engine.weight_bytes < {1: 3.6, 255: 3.6, 256: 4.6, 300: 4.6, 0: 6.8}[centroids] * weights


@pytest.mark.parametrize("density", [0, 1])
def test_all_or_none_pruned(density, tmp_path):
    stack = (layers.Conv2D(4, 3, strides=2, padding="same"), layers.Flatten(), layers.Dense(5, activation="tanh"))
    model = sequential((9, 9, 2), *stack, density=density or 1e-9, centroids=0)
    if not density:
        for layer in (model.layers[0], model.layers[2]):
            layer.kernel.assign(np.zeros(layer.kernel.shape))
    check(model, tmp_path)


# All other kinds of layers


def pool(kind, rank, **options):
    return getattr(layers, f"{kind}Pooling{rank}D")(**options)


@pytest.mark.parametrize("kind", ["Max", "Average"])
@pytest.mark.parametrize(
    "options",
    [
        {"pool_size": 2},
        {"pool_size": 3, "strides": 2, "padding": "same"},
        {"pool_size": 2, "strides": 1, "padding": "same"},
        {"pool_size": 3, "strides": 3},
        {"pool_size": 2, "padding": "same"},
        {"pool_size": 1, "strides": 2},
        {"pool_size": 4, "strides": 5, "padding": "same"},
    ],
    ids=str,
)
def test_pooling(kind, options, tmp_path):
    def build(image):
        alone = pool(kind, 2, **options)(image)
        behind = pool(kind, 2, **options)(layers.Conv2D(4, 3, padding="same", activation="relu")(image))
        line = pool(kind, 1, **options)(layers.Reshape((11 * 13, 3))(image))
        return layers.Concatenate()([layers.Flatten()(x) for x in (alone, behind, line)])

    check(functional((11, 13, 3), build), tmp_path)


@pytest.mark.parametrize("activation", ["linear", "relu", "relu6", "tanh"])
@pytest.mark.parametrize("kind", ["Max", "Average"])
@pytest.mark.parametrize("size", [(12, 12), (11, 9), (5, 40)])
def test_pooling_behind_a_convolution(kind, size, activation, tmp_path):
    stack = (
        layers.Conv2D(6, 4, activation=activation),
        pool(kind, 2, pool_size=2),
        layers.BatchNormalization(),
        layers.ReLU(),
    )
    check(sequential((*size, 3), *stack), tmp_path)


@pytest.mark.parametrize("kind", ["Max", "Average"])
@pytest.mark.parametrize("keepdims", [False, True])
def test_global_pooling(kind, keepdims, tmp_path):
    def build(image):
        flat = pool(f"Global{kind}", 2, keepdims=keepdims)(layers.ZeroPadding2D()(image))
        line = pool(f"Global{kind}", 1, keepdims=keepdims)(layers.Reshape((35, 3))(image))
        return layers.Add()([layers.Flatten()(flat), layers.Flatten()(line)])

    check(functional((5, 7, 3), build), tmp_path)


@pytest.mark.parametrize("activation", kinds.ACTIVATIONS)
def test_activation(activation, tmp_path):
    """In a dense layer, in a convolution and alone, over a wide range."""

    def build(image):
        x = layers.Conv2D(3, 2, activation=activation)(image)
        scale = 5.0 if activation.endswith("shrink") else 0.2  # of small numbers, some leave nothing
        x = layers.Activation(activation)(layers.Rescaling(scale)(x))
        return layers.Dense(7, activation=activation)(layers.Flatten()(x))

    check(functional((4, 5, 2), build), tmp_path)
    alone = sequential((3, 5), layers.Activation(activation))
    x = np.concatenate([np.linspace(-110, 110, 331), np.linspace(-1, 1, 335), np.geomspace(1e-30, 1, 54)])
    x = x.astype(np.float32).reshape(-1, 3, 5)
    expected = alone.predict_on_batch(x)
    actual = through_file(alone, tmp_path)(x)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6)


RELUS = [
    *({"max_value": 2.0}, {"max_value": 0.5}, {"negative_slope": 0.3}, {"threshold": 0.5}, {"max_value": 6.0}),
    {"max_value": 1.0, "negative_slope": 0.1},
    {"max_value": 1.0, "negative_slope": 2.0, "threshold": 0.25},
]


@pytest.mark.parametrize(
    "layer",
    [
        *(layers.ReLU(**options) for options in RELUS),
        *(layers.LeakyReLU(0.1), layers.LeakyReLU(1.5), layers.ELU(0.7), layers.ELU(-1.0), layers.Softmax()),
        *(layers.Rescaling(2.0, -1.0), layers.Dropout(0.5), layers.BatchNormalization()),
        *(layers.BatchNormalization(scale=False), layers.BatchNormalization(center=False, epsilon=0.1)),
    ],
    ids=lambda layer: layer.name,
)
def test_one_layer(layer, tmp_path):
    """As the first of a network, and behind a convolution and a dense layer."""
    stack = [layers.Conv2D(4, 2), type(layer).from_config(layer.get_config() | {"name": "second"})]
    last = type(layer).from_config(layer.get_config() | {"name": "third"})
    check(sequential((6, 5, 3), layer, *stack, layers.Flatten(), layers.Dense(5), last), tmp_path)


def test_padding_of_everything(tmp_path):
    """Zeros around an input, an output of each kind of step, a view, and in front of each kind of step."""

    def build(image):
        x = layers.ZeroPadding2D(((1, 0), (2, 3)))(image)
        x = layers.ZeroPadding2D(((0, 2), (0, 1)))(x)
        strided = layers.Conv2D(4, 3, strides=2)(layers.ZeroPadding2D(((0, 1), (0, 1)))(x))
        pooled = layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(2)(layers.Conv2D(4, 3, padding="same")(x)))
        added = layers.Add()([layers.ZeroPadding2D(1)(image), layers.ZeroPadding2D(((2, 0), (0, 2)))(image)])
        turned = layers.ZeroPadding2D(1)(layers.Permute((2, 3, 1))(image))
        single = layers.ZeroPadding2D(2)(layers.Conv2D(3, (5, 6))(image))
        line = layers.ZeroPadding1D((2, 1))(layers.Reshape((18, 5))(image))
        line = layers.Conv1D(3, 4, padding="causal")(line)
        return layers.Concatenate()([layers.Flatten()(x) for x in (strided, pooled, added, turned, single, line)])

    check(functional((5, 6, 3), build), tmp_path)


def test_reshape_permute_and_flatten(tmp_path):
    def build(image):
        x = layers.Conv2D(6, 3, padding="same")(image)
        turned = layers.Permute((3, 1, 2))(x)
        a = layers.Conv2D(4, 2, strides=2, padding="same")(turned)
        b = layers.Conv1D(3, 3)(layers.Reshape((14, 12))(x))
        c = layers.Dense(5)(layers.Reshape((7, 2, 3, 4))(turned))
        d = layers.Softmax()(layers.Permute((2, 1))(layers.Reshape((12, 14))(x)))
        e = layers.Dense(4)(layers.Flatten()(turned))
        f = layers.Conv2D(3, 3)(layers.Reshape((4, 7, 6))(x))
        return layers.Concatenate()([layers.Flatten()(part) for part in (a, b, c, d, e, f)])

    check(functional((4, 7, 3), build), tmp_path)


@pytest.mark.parametrize("kind", [layers.Add, layers.Multiply])
def test_elementwise_with_broadcasting(kind, tmp_path):
    def build(image):
        x = layers.Conv2D(4, 3, padding="same", strides=2)(image)
        gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
        gate = layers.Conv2D(4, 1, activation="sigmoid")(layers.Conv2D(2, 1, activation="silu")(gate))
        rows, lone = layers.Conv2D(4, (1, 4))(x), layers.Conv2D(1, 3, padding="same")(x)
        x = layers.ReLU()(kind()([x, gate]))
        x = kind()([rows, x, lone])
        x = layers.Conv2D(3, 3, padding="same")(x)
        return kind()([layers.Flatten()(x), layers.Dense(1)(layers.Flatten()(gate))])

    check(functional((9, 8, 3), build), tmp_path)


@pytest.mark.parametrize("axis", [1, 2, 3, -1])
def test_concatenate(axis, tmp_path):
    def build(image):
        a, b = layers.Conv2D(3, 3, padding="same")(image), layers.Conv2D(3, 1, activation="relu")(image)
        x = layers.Concatenate(axis=axis)([a, image, a, b])
        return layers.Add()([layers.Conv2D(2, 3, padding="same")(x), layers.DepthwiseConv2D(1)(layers.Dense(2)(x))])

    check(functional((6, 5, 3), build), tmp_path)


def test_shared_by_several(tmp_path):
    """What one value is read by decides what may be folded into it."""

    def build(image):
        x = layers.Conv2D(4, 3, padding="same")(image)
        y = layers.Dropout(0.1)(x)
        norm, relu, half = layers.BatchNormalization()(y), layers.ReLU()(y), layers.Conv2D(4, 3, strides=2)(y)
        pooled = layers.MaxPooling2D()(x)
        linear = layers.Activation("linear")(norm)
        parts = (x, norm, relu, half, pooled, linear, layers.ReLU()(linear), layers.Activation("relu6")(norm))
        return layers.Concatenate()([layers.Flatten()(part) for part in parts])

    check(functional((6, 7, 2), build), tmp_path)


def test_normalization_is_folded_into_what_stands_before_it(tmp_path):
    stack = [layers.Conv2D(5, 3), layers.BatchNormalization(), layers.ReLU(), layers.MaxPooling2D()]
    dense = [layers.Flatten(), layers.Dense(6), layers.BatchNormalization(), layers.Activation("relu6")]
    model = sequential((8, 8, 2), *stack, *dense)
    check(model, tmp_path)
    plan = Plan.of(exchange.from_keras(model))
    assert len(plan.batched.steps) == len(plan.single.steps) == 4  # take, convolution, dense, give


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda image: image, (3, 2)),
        (lambda image: layers.Dropout(0.5)(image), (4,)),
        (lambda image: layers.Flatten()(image), (3, 2, 2)),
        (lambda image: layers.Permute((2, 1))(image), (3, 2)),
        (lambda image: layers.ZeroPadding2D(2)(image), (1, 1, 2)),
        (lambda image: layers.Concatenate()([image, image]), (2, 2)),
        (lambda image: layers.Add()([image, image, image]), (1,)),
        (lambda image: layers.Dense(3)(layers.Concatenate()([image, image])), (2,)),
    ],
)
def test_networks_of_next_to_nothing(build, shape, tmp_path):
    image = keras.Input(shape)
    output = build(image)
    if output is image:
        output = layers.Reshape(shape)(image)
    check(draw(keras.Model(image, output)), tmp_path)


@pytest.mark.parametrize("centroids", [0, 16])
def test_layers_without_a_pruned_weight(centroids, tmp_path):
    def build(image):
        x = layers.Conv2D(9, 3, strides=2, padding="same", activation="relu")(image)
        x = layers.Add()([x, layers.Conv2D(9, 3, padding="same")(x)])
        x = layers.DepthwiseConv2D(3, padding="same")(x)
        x = layers.MaxPooling2D()(layers.Conv2D(12, 2, groups=3)(x))
        x = layers.Dense(13, activation="relu")(layers.Flatten()(x))
        return layers.Dense(3)(x)

    model = functional((11, 12, 3), build, density=1.0, centroids=centroids)
    engine = check(model, tmp_path, (1, 2, WIDTH, WIDTH + 3, 4 * WIDTH + 1))
    kinds = {type(weights.packed).__name__ for weights in engine._plan.weights}
    assert kinds == {"PackedFull"}
    taken = sum(weights.packed.values.nbytes for weights in engine._plan.weights)
    kernels = sum(math.prod(kernel.shape) for kernel in models.kernels(model).values())
    assert taken == (4 * kernels if centroids == 0 else kernels + 64 * len(engine._plan.weights))


@pytest.mark.parametrize("channels", [WIDTH - 1, WIDTH, 2 * WIDTH + 3])
@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (6, 5), (5, WIDTH + 2)])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_images_of_many_channels_come_and_leave_channels_last(channels, shape, padding, tmp_path):
    size = 3 if padding == "same" else 1
    model = functional((*shape, channels), layers.DepthwiseConv2D(size, padding=padding), density=1.0)
    check(model, tmp_path, (1, 2, WIDTH - 1, WIDTH, 2 * WIDTH + 1))


# Whole networks


@cache
def whole(name):
    if name in models.NETWORKS:
        return draw(models.build(name), density=0.05, centroids=8)
    return {"resnet": resnet, "mobilenet": mobilenet}[name]()


def resnet():
    def block(x, filters, strides):
        short = x
        if strides > 1:
            short = layers.BatchNormalization()(layers.Conv2D(filters, 1, strides=strides, use_bias=False)(x))
        x = layers.Conv2D(filters, 3, strides=strides, padding="same", use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.BatchNormalization()(layers.Conv2D(filters, 3, padding="same", use_bias=False)(x))
        return layers.ReLU()(layers.Add()([x, short]))

    def build(image):
        x = layers.MaxPooling2D(3, 2, padding="same")(layers.Conv2D(8, 5, strides=2, padding="same")(image))
        for filters, strides in ((8, 1), (16, 2), (16, 1), (24, 2)):
            x = block(x, filters, strides)
        return layers.Dense(10, activation="softmax")(layers.GlobalAveragePooling2D()(x))

    return functional((32, 32, 3), build)


def mobilenet():
    def block(x, filters, strides):
        x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x) if strides > 1 else x
        x = layers.DepthwiseConv2D(3, strides=strides, padding="valid" if strides > 1 else "same", use_bias=False)(x)
        x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
        return layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(filters, 1, use_bias=False)(x)))

    def build(image):
        x = layers.ReLU(6.0)(layers.BatchNormalization()(layers.Conv2D(8, 3, strides=2, padding="same")(image)))
        for filters, strides in ((12, 1), (16, 2), (20, 1), (24, 2)):
            x = block(x, filters, strides)
        x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D(keepdims=True)(x))
        return layers.Flatten()(layers.Conv2D(10, 1)(x))

    return functional((28, 28, 3), build)


@pytest.mark.parametrize("name", [*models.NETWORKS, "resnet", "mobilenet"])
def test_whole_network(name, tmp_path):
    check(whole(name), tmp_path, (0, 1, 2, 3, 15, 16, 17, 33, 100))


@pytest.mark.parametrize(
    ("application", "options"),
    [
        ("MobileNetV2", {"alpha": 0.35}),
        ("MobileNet", {"alpha": 0.25}),
        pytest.param("DenseNet121", {}, marks=pytest.mark.slow),
    ],
)
def test_application(application, options, tmp_path):
    options = {"weights": None, "classes": 10, "classifier_activation": None, **options}
    check(draw(getattr(keras.applications, application)(input_shape=(32, 32, 3), **options)), tmp_path)


# Random networks


def add_layer(x, pick):
    """Any layer that fits behind `x`."""
    window, step = pick(1, 2, 3), pick(1, 1, 2, 3)
    padding = "same" if min(x.shape[1:3]) < window else pick("valid", "same")
    options = {"strides": step, "padding": padding}
    kind = pick(*range(12))
    if kind == 0:
        return layers.Conv2D(pick(1, 4, 17), window, activation=pick("relu", "tanh", None), **options)(x)
    if kind == 1:
        return layers.DepthwiseConv2D(window, depth_multiplier=pick(1, 2), **options)(x)
    if kind == 2:
        return layers.MaxPooling2D(window, **options)(x)
    if kind == 3:
        return layers.AveragePooling2D(window, **options)(x)
    if kind == 4:
        return layers.BatchNormalization()(x)
    if kind == 5:
        return layers.ReLU()(x)
    if kind == 6:
        return layers.ZeroPadding2D(((pick(0, 1), 1), (0, pick(0, 2))))(x)
    if kind == 7:
        return layers.Permute(pick((2, 1, 3), (3, 1, 2)))(x)
    if kind == 8:
        return layers.Add()([x, layers.Dense(x.shape[-1])(x)])
    if kind == 9:
        return layers.Multiply()([layers.GlobalMaxPooling2D(keepdims=True)(x), x])
    if kind == 10:
        return layers.Concatenate(axis=pick(1, 2, 3))([x, x])
    return layers.Reshape((x.shape[2], x.shape[1], x.shape[3]))(x)


@settings(max_examples=25)
@given(st.data())
def test_random_networks(drawn):
    """Small functional networks of whatever fits, any part of which may be read again."""

    def pick(*choices):
        return drawn.draw(st.sampled_from(choices))

    image = keras.Input((pick(1, 5, 8), pick(1, 6, 9), pick(1, 3)))
    values = [image]
    for _ in range(pick(1, 2, 3, 4, 5)):
        values.append(add_layer(pick(*values), pick))
    outputs = [layers.Flatten()(value) for value in values[1:-1] if pick(False, True)]
    outputs.append(layers.Dense(3)(layers.Flatten()(values[-1])))
    model = draw(keras.Model(image, layers.Concatenate()(outputs) if len(outputs) > 1 else outputs[0]), density=0.7)
    engine = Engine(Plan.of(exchange.from_keras(model)), threads=1)
    x = images(model, WIDTH + 1)
    expected = model(x).numpy()
    assert_equal(engine(x), expected)
    assert_equal(engine(x[:2]), expected[:2])


# Calls


def test_a_file_is_loaded_and_described(tmp_path):
    engine = through_file(whole("lenet-5"), tmp_path, threads=3)
    read = neurons.remove_unused(exchange.from_keras(whole("lenet-5")))
    kernels = [entries(layer.weights["kernel"]) for layer in read.layers if layer.weights]
    nonzero = sum(map(np.count_nonzero, kernels))
    assert (engine.input_shape, engine.output_shape, engine.threads) == ((28, 28, 1), (10,), 3)
    assert 2 * nonzero < engine.weight_bytes < 8 * nonzero
    assert repr(engine) == f"<Engine 28x28x1 -> 10: {engine.weight_bytes:,} bytes of weights, 3 threads>"
    assert engine.arena_bytes == 0
    engine(np.zeros((1, 28, 28, 1), np.float32))
    alone = engine.arena_bytes
    engine(np.zeros((100, 28, 28, 1), np.float32))
    assert 0 < alone < engine.arena_bytes < 10e6
    assert deepcomp.load(tmp_path / "model.dcz").threads >= 1


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda engine: pickle.loads(pickle.dumps(engine))])
@pytest.mark.parametrize("source", ["file", "network"])
def test_a_copy_of_an_engine_is_an_engine_of_its_own(source, make, tmp_path):
    network = exchange.from_keras(whole("lenet-300-100"))
    container.save(network, tmp_path / "model.dcz")
    loaded = deepcomp.load(tmp_path / "model.dcz", threads=3)
    engine = loaded if source == "file" else runtime.prepare(network, threads=3)
    (tmp_path / "model.dcz").unlink()  # the bytes are what is copied
    x = images(whole("lenet-300-100"), WIDTH + 1)
    expected, repeated = engine(x), repr(engine)
    copied = make(engine)
    del engine, loaded
    assert repr(copied) == repeated
    assert copied.threads == 3
    assert np.array_equal(copied(x), expected)


def test_an_engine_of_a_plan_is_not_pickled():
    engine = Engine(Plan.of(exchange.from_keras(whole("lenet-300-100"))), threads=1)
    with pytest.raises(TypeError, match="was made from a plan"):
        pickle.dumps(engine)


WORKER = """
import multiprocessing, sys
import numpy as np
import deepcomp

def work(engine, answers):
    answers.put(engine(np.ones((4, *engine.input_shape), np.float32)))

if __name__ == "__main__":
    engine = deepcomp.load(sys.argv[1], threads=2)
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    process = spawn.Process(target=work, args=(engine, answers))
    process.start()
    output = answers.get(timeout=240)
    process.join()
    assert process.exitcode == 0
    assert np.array_equal(output, engine(np.ones((4, *engine.input_shape), np.float32)))
"""


def test_an_engine_is_sent_to_a_worker_process(tmp_path):
    deepcomp.save(whole("lenet-5"), tmp_path / "a.dcz")
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, str(tmp_path / "worker.py"), str(tmp_path / "a.dcz")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["lenet-5", "reference", "lenet-300-100", "resnet"])
def test_results_do_not_depend_on_batch_call_or_threads(name, monkeypatch):
    network = exchange.from_keras(whole(name))
    x = images(whole(name), 7 * WIDTH + 5)
    alone = Engine(Plan.of(network), threads=1)
    expected = alone(x)
    for _ in range(2):
        assert np.array_equal(alone(x), expected)
    for count in (1, 2, WIDTH - 1, WIDTH, WIDTH + 1, 3 * WIDTH, len(x)):
        assert_equal(alone(x[:count]), expected[:count], 1e-5)
    monkeypatch.setattr("deepcomp.runtime.engine._THREADING_WORK", 0)
    monkeypatch.setattr("deepcomp.runtime.engine._STEP_SPLIT_WORK", 0)
    monkeypatch.setattr("deepcomp.runtime.engine._PART_WORK", 64)
    shared = Engine(Plan.of(network), threads=3)
    for count in (1, 2, WIDTH, WIDTH + 1, 3 * WIDTH, len(x)):
        first = shared(x[:count])
        assert_equal(first, expected[:count], 1e-5)
        for _ in range(3):
            assert np.array_equal(shared(x[:count]), first)


def assert_forgotten(left):
    """What a weak reference refers to is gone soon: other threads may still be about to let it go."""
    limit = time.monotonic() + 5
    while left() is not None and time.monotonic() < limit:
        time.sleep(0.01)
    assert left() is None


def test_an_idle_worker_keeps_no_images_alive():
    engine = Engine(Plan.of(exchange.from_keras(whole("lenet-300-100"))), threads=2)
    images = np.ones((2048, 28, 28, 1), np.float32)
    for _ in range(5):
        engine(images)
    left = weakref.ref(images)
    del images
    assert_forgotten(left)


SHARED_WORK = {
    "images": (networks.network((24, 24, 4), networks.conv(16, 4, padding="same"), networks.conv(8, 16)), 40 * WIDTH),
    "steps": (networks.network((2048,), networks.dense(2300, 2048)), 1),
}


@pytest.fixture(params=SHARED_WORK)
def shared_work(request, monkeypatch):
    """A pool of its own; an engine, images that two threads share, by images or by steps, and the right outputs."""
    monkeypatch.setattr(engine_module, "_thread_pool", engine_module._ThreadPool())
    return prepared(request.param)


@cache
def prepared(name):
    network, count = SHARED_WORK[name]
    images = np.random.default_rng(0).standard_normal((count, *network.input_shape)).astype(np.float32)
    return runtime.prepare(network, threads=2), images, runtime.prepare(network, threads=1)(images)


def without_memory(monkeypatch, named):
    """Let threads of this name have no arena."""
    take = engine_module._Executor.take_arena

    def take_arena(self):
        if threading.current_thread().name == named:
            raise MemoryError
        return take(self)

    monkeypatch.setattr(engine_module._Executor, "take_arena", take_arena)


def test_a_worker_without_memory_lives_on_and_keeps_nothing(shared_work, monkeypatch):
    """Once it died and was still counted: each later call left its images in the queue."""
    engine, images, expected = shared_work
    images, pool = images.copy(), engine_module._thread_pool
    with monkeypatch.context() as patch:
        without_memory(patch, "deepcomp")
        for _ in range(3):
            assert np.allclose(engine(images), expected, atol=1e-4)
    assert pool._threads == 1
    for _ in range(3):
        assert np.allclose(engine(images), expected, atol=1e-4)
    left = weakref.ref(images)
    del images
    assert_forgotten(left)
    assert pool._jobs.empty()


def test_a_caller_without_memory_leaves_no_work_behind(shared_work, monkeypatch):
    engine, images, expected = shared_work
    with monkeypatch.context() as patch:
        without_memory(patch, threading.current_thread().name)
        with pytest.raises(MemoryError):
            engine(images)
    assert engine_module._thread_pool._jobs.empty()
    assert np.allclose(engine(images), expected, atol=1e-4)


def test_a_caller_does_the_work_of_threads_that_the_system_does_not_give(shared_work, monkeypatch):
    engine, images, expected = shared_work
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", Mock(side_effect=RuntimeError("can't start new thread")))
        assert np.allclose(engine(images), expected, atol=1e-4)
    assert engine_module._thread_pool._threads == 0
    assert engine_module._thread_pool._jobs.empty()
    assert np.allclose(engine(images), expected, atol=1e-4)
    assert engine_module._thread_pool._threads == 1


def test_types_of_images(monkeypatch):
    engine = Engine(Plan.of(exchange.from_keras(whole("lenet-5"))), threads=1)
    grey = np.random.default_rng(3).integers(0, 256, (20, 28, 28, 1)).astype(np.uint8)
    x = data.to_float(grey)
    expected = engine(x)
    untouched = grey.copy()
    assert np.array_equal(engine(grey), expected)
    assert np.array_equal(grey, untouched)
    assert np.array_equal(engine(x.astype(np.float64)), expected)
    assert np.array_equal(engine(x.astype(">f4")), expected)
    assert np.array_equal(engine(x[..., 0]), expected)
    assert np.array_equal(engine(x.tolist()), expected)
    assert np.array_equal(engine(np.asfortranarray(x)), expected)
    assert np.array_equal(engine(x[::-1])[::-1], engine(np.ascontiguousarray(x[::-1]))[::-1])
    frozen = np.frombuffer(b"." + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape)
    taken = []
    monkeypatch.setattr(
        cpu, "execute", lambda *arguments, run=cpu.execute: (taken.append(arguments[2]), run(*arguments))
    )
    for odd in (frozen, np.broadcast_to(x[:1], x.shape)):
        assert not odd.flags.carray  # it cannot be written to, or lies at an odd address
        assert np.array_equal(engine(odd), engine(odd.copy()))
    assert len(taken) >= 4
    assert all(images.flags.carray for images in taken)  # compiled code is for such alone
    half = x.astype(np.float16)
    assert np.array_equal(engine(half), engine(half.astype(np.float32)))
    assert engine(x[:0]).shape == (0, 10)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (np.zeros((2, 27, 28, 1)), r"shape \(2, 27, 28, 1\): the network takes \(N, 28, 28, 1\)"),
        (np.zeros((28, 28, 1)), r"shape \(28, 28, 1\)"),
        (np.zeros((2, 784)), r"shape \(2, 784\)"),
        (np.zeros(()), r"shape \(\)"),
        (np.zeros((2, 28, 28, 1), np.int64), "Images are int64: they must be uint8"),
        (np.zeros((2, 28, 28, 1), bool), "Images are bool"),
        (np.zeros((2, 28, 28, 1), complex), "Images are complex128"),
        ("digits", "Images are <U6"),
        (None, "Images are object"),
        ([[1, 2], [3]], "Images must be an array"),
    ],
    ids=str,
)
def test_wrong_images(wrong, says):
    engine = Engine(Plan.of(exchange.from_keras(whole("lenet-5"))), threads=1)
    with pytest.raises(DataError, match=says) as error:
        engine(wrong)
    assert "\n" not in str(error.value)


def test_wrong_arguments(tmp_path):
    container.save(exchange.from_keras(whole("lenet-300-100")), tmp_path / "a.dcz")
    for threads in (0, -1, 1.5, True, "2"):
        with pytest.raises(RecipeError, match="No number of threads"):
            deepcomp.load(tmp_path / "a.dcz", threads=threads)
    with pytest.raises(RecipeError, match="No device 'tpu'"):
        deepcomp.load(tmp_path / "a.dcz", device="tpu")
    with pytest.raises(FormatError, match=r"Cannot read .*none\.dcz"):
        deepcomp.load(tmp_path / "none.dcz")
    (tmp_path / "a.dcz").write_bytes((tmp_path / "a.dcz").read_bytes()[:-1])
    with pytest.raises(FormatError, match="damaged"):
        deepcomp.load(tmp_path / "a.dcz")


def test_what_is_not_finite_goes_where_keras_lets_it_go(tmp_path):
    """With no weight pruned: a pruned weight lets nothing through. Compiled, Keras turns the NaN of a ReLU into 0."""

    def build(image):
        x = layers.Conv2D(3, 3, padding="same", activation="relu")(image)
        x = layers.AveragePooling2D(2)(layers.BatchNormalization()(x))
        x = layers.Flatten()(layers.MaxPooling2D(2, 1)(x))
        gate = layers.Concatenate()([layers.GlobalMaxPooling2D()(image), layers.GlobalAveragePooling2D()(image)])
        return layers.Concatenate()([gate, x, layers.Dense(5, activation="tanh")(x)])

    model = functional((6, 6, 2), build, density=1.0, centroids=0)
    x = images(model, WIDTH + 2)
    x[0, 2, 2, 0], x[1, 5, 5, 1], x[2, 0, 0, 0] = np.nan, np.inf, -np.inf
    expected, engine = model(x).numpy(), through_file(model, tmp_path)
    assert np.isnan(expected[0]).any()
    assert not np.isfinite(expected[:3]).all(axis=1).any()
    assert np.isfinite(expected[3:]).all()
    for actual in (engine(x), np.concatenate([engine(one[None]) for one in x])):
        np.testing.assert_allclose(actual, expected, rtol=RELATIVE, atol=1e-5)


def test_many_threads_call_one_engine():
    """`make threads` does it for ten seconds."""
    seconds = float(os.environ.get("THREADS_SECONDS", "0.5"))
    for name in ("lenet-5", "lenet-300-100"):
        engine = Engine(Plan.of(exchange.from_keras(whole(name))), threads=2)
        assert calls_from_threads(engine, images(whole(name), 6 * WIDTH), seconds / 2) == []


def calls_from_threads(engine, x, seconds, threads=8):
    """Wrong answers of an engine that threads call with batches of their own."""
    expected, wrong, end = engine(x), [], time.monotonic() + seconds

    def call(number):
        rng = np.random.default_rng(number)
        while time.monotonic() < end:
            first = int(rng.integers(len(x)))
            count = int(rng.integers(1, len(x) - first + 1))
            actual = engine(x[first : first + count])
            if not np.allclose(actual, expected[first : first + count], rtol=RELATIVE, atol=1e-6):
                wrong.append((number, first, count))

    callers = [threading.Thread(target=call, args=(number,)) for number in range(threads)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return wrong


def test_another_process_needs_numpy_and_numba_only(tmp_path):
    """It forks while threads sleep, its children run too, and nobody hangs at the end."""
    deepcomp.save(whole("lenet-5"), tmp_path / "a.dcz")
    program = (
        "import os, sys, deepcomp, numpy as np\n"
        "engine = deepcomp.load(sys.argv[1], threads=2)\n"
        "x = np.ones((320, 28, 28, 1), np.float32)\n"
        "y = engine(x)\n"
        "print({'tensorflow', 'keras', 'sklearn', 'matplotlib'} & set(sys.modules), flush=True)\n"
        "child = os.fork() if hasattr(os, 'fork') else 0\n"
        "assert np.array_equal(engine(x), y)\n"
        "if child: assert os.waitpid(child, 0)[1] == 0\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program, str(tmp_path / "a.dcz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr


def test_compiled_code_on_disk_is_of_these_very_sources(tmp_path, monkeypatch):
    """Numba by itself sees no change but of the file that it compiles."""
    (tmp_path / "cpu.py").write_text("")
    (tmp_path / "kernels.py").write_text("1")
    monkeypatch.setattr(cpu, "__file__", str(tmp_path / "cpu.py"))
    before = cpu._stamp()
    assert cpu._stamp() == before
    (tmp_path / "kernels.py").write_text("22")
    assert cpu._stamp() != before


@pytest.mark.parametrize("count", [1, 40])
def test_equal_numbers_have_no_variance(count):
    """A plain sum of many float32 is off by more than the numbers differ: then rounding was all that came out."""
    one = networks.network((600, 3), ("GroupNormalization", {"groups": 1, "center": False, "scale": False}))
    outputs = runtime.prepare(one, threads=1)(np.full((count, 600, 3), 0.1, np.float32))
    assert not outputs.any()
