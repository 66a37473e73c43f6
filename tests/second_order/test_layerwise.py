"""Compression layer by layer without training: what is measured, what is made of it, and what is corrected."""

import math

import keras
import numpy as np
import pytest
from keras import layers

from deepcomp import models
from deepcomp.second_order import layerwise

INPUTS = np.random.default_rng(0).standard_normal((48, 9, 8, 4)).astype(np.float32)


def built(shape, *made):
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input(shape), *made])


def seen_by(layer, inputs):
    """The windows of a layer as it sees them itself, `(rows, groups, n)`: it is given kernels with a single 1."""
    kernel = layer.kernel
    size = int(np.prod(kernel.shape[:-1]))
    depthwise = type(layer).__name__.startswith("Depthwise")
    groups = kernel.shape[-2] if depthwise else getattr(layer, "groups", 1)
    taps = size // groups if depthwise else size
    found = []
    for tap in range(taps):
        one = np.zeros(kernel.shape, np.float32)
        one.reshape(taps, -1)[tap] = 1
        kernel.assign(one)
        out = np.asarray(layer(inputs))
        out = out.reshape(-1, out.shape[-1])
        found.append(out[:, :: out.shape[1] // groups])
    return np.stack(found, axis=2)


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: layers.Dense(3, use_bias=False), INPUTS[:, 0, 0]),
        (lambda: layers.Dense(3, use_bias=False), INPUTS[:, 0]),
        (lambda: layers.Conv2D(3, 3, padding="same", use_bias=False), INPUTS),
        (lambda: layers.Conv2D(3, (3, 2), strides=2, padding="valid", use_bias=False), INPUTS),
        (lambda: layers.Conv2D(3, 3, strides=2, padding="same", use_bias=False), INPUTS),
        (lambda: layers.Conv2D(3, 2, dilation_rate=2, use_bias=False), INPUTS),
        (lambda: layers.Conv2D(6, 3, groups=2, use_bias=False), INPUTS),
        (lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same", use_bias=False), INPUTS),
        (lambda: layers.Conv1D(3, 3, strides=2, padding="same", use_bias=False), INPUTS[:, 0]),
        (lambda: layers.Conv1D(3, 3, dilation_rate=2, padding="causal", use_bias=False), INPUTS[:, 0]),
        (lambda: layers.DepthwiseConv1D(3, use_bias=False), INPUTS[:, 0]),
    ],
)  # fmt: skip
def test_the_products_are_those_of_what_the_layer_sees(make, inputs):
    layer = make()
    model = built(inputs.shape[1:], layer)
    (found,) = layerwise.measure(model, inputs, classes=False).values()
    windows = seen_by(layer, inputs).astype(np.float64)
    assert len(found.groups) == windows.shape[1]
    for group, (part,) in enumerate(found.groups):
        own = windows[:, group]
        np.testing.assert_allclose(part, own.T @ own / len(own), rtol=1e-4, atol=1e-5)
    assert found.importance.size == math.prod(layer.kernel.shape) // windows.shape[2]
    assert "call" not in vars(layer)


def test_the_importance_of_a_linear_network_is_that_of_its_outputs():
    """The squared error of output i counts by its variance, the same in all units of one layer."""
    model = built((6,), layers.Dense(2, use_bias=False))
    inputs = np.random.default_rng(1).standard_normal((4000, 6)).astype(np.float32)
    (found,) = layerwise.measure(model, inputs, classes=False).values()
    np.testing.assert_allclose(found.importance, 1 / model(inputs).numpy().var(), rtol=0.15)


@pytest.mark.parametrize("activation", ["softmax", "linear"])
def test_the_importance_of_a_class_is_its_variance(activation):
    """By cross-entropy: p (1 - p) for the score of a class, whether the network puts out scores or probabilities."""
    model = built((3,), layers.Dense(2, activation=activation, use_bias=False))
    model.layers[0].kernel.assign([[1.0, -1.0], [0.0, 0.0], [0.0, 0.0]])
    inputs = np.tile(np.float32([1, 1, 1]), (2000, 1))
    (found,) = layerwise.measure(model, inputs, classes=True).values()
    chance = 1 / (1 + np.exp(-2.0))
    np.testing.assert_allclose(found.importance, chance * (1 - chance), rtol=0.15)


def test_a_network_that_is_sure_of_all_its_classes_is_measured_at_a_temperature():
    """Else the curvature would be that of a few doubtful examples, or none."""
    model = built((3,), layers.Dense(2, use_bias=False))
    model.layers[0].kernel.assign([[16.0, -16.0], [0.0, 0.0], [0.0, 0.0]])
    inputs = np.tile(np.float32([1, 1, 1]), (2000, 1))
    (found,) = layerwise.measure(model, inputs, classes=True).values()
    chance = 1 / (1 + np.exp(-32.0 / 16))  # at temperature 16, where it is 0.88
    np.testing.assert_allclose(found.importance, chance * (1 - chance) / 16**2, rtol=0.15)


def test_few_windows_stand_for_many(monkeypatch):
    monkeypatch.setattr(layerwise, "_MOST_ROWS", 200)
    model = built(INPUTS.shape[1:], layers.Conv2D(3, 3, padding="same"))
    (few,) = layerwise.measure(model, INPUTS, classes=False).values()
    monkeypatch.undo()
    (all_of_them,) = layerwise.measure(model, INPUTS, classes=False).values()
    one, other = few.groups[0][0], all_of_them.groups[0][0]
    assert not np.array_equal(one, other)
    assert np.linalg.norm(one - other) < 0.5 * np.linalg.norm(other)


def test_few_gradients_stand_for_many_where_a_network_is_large(monkeypatch):
    model = built(INPUTS.shape[1:], layers.Conv2D(3, 3, padding="same"), layers.Flatten(), layers.Dense(4))
    seen, measured = [], layerwise._squared_gradients

    def spied(model, variables, inputs, *others):
        seen.append(inputs)
        return measured(model, variables, inputs, *others)

    monkeypatch.setattr(layerwise, "_squared_gradients", spied)
    monkeypatch.setattr(layerwise, "_LEAST_GRADIENTS", 12)
    layerwise.measure(model, INPUTS, classes=True)
    monkeypatch.setattr(layerwise, "_GRADIENT_WORK", 16 * (9 * 8 * 3 * 3 * 4 * 3 + 9 * 8 * 3 * 4))
    layerwise.measure(model, INPUTS, classes=True)
    monkeypatch.setattr(layerwise, "_GRADIENT_WORK", 0)
    layerwise.measure(model, INPUTS, classes=True)
    whole, some, least = seen
    assert np.array_equal(whole, INPUTS)
    assert np.array_equal(some, INPUTS[::3])
    assert np.array_equal(least, INPUTS[::4])


def test_a_weight_s_saliency_is_half_its_square_times_its_curvature():
    groups = [[np.diag([1.0, 4.0])], [np.diag([9.0, 16.0])]]
    curvature = layerwise.Curvature(groups, np.array([1.0, 2.0]))
    assert curvature.saliencies(np.float32([[2, 1], [1, 3]])).tolist() == [[2.0, 9.0], [2.0, 144.0]]


def test_weights_that_were_pruned_before_stay_so_and_have_no_weight_behind_them():
    model = built((6,), layers.Dense(5, name="dense"))
    kernel = model.layers[0].kernel.numpy()
    kernel[np.random.default_rng(2).random(kernel.shape) < 0.5] = 0
    model.layers[0].kernel.assign(kernel)
    inputs = np.random.default_rng(1).standard_normal((200, 6)).astype(np.float32)
    curvatures = layerwise.measure(model, inputs, classes=False)
    (moved,) = layerwise.compress(model, curvatures, 1e-4).values()
    assert not np.any(model.layers[0].kernel.numpy()[kernel == 0])
    assert not np.any(moved.latent[kernel == 0])
    assert np.any(moved.latent[kernel != 0])


def odd():
    """Kernels whose inputs are known and others, a layer that is called twice, a normalization."""
    image = keras.Input((9, 8, 4))
    x = layers.Conv2D(8, 3, padding="same", name="first")(image)
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    again = layers.Conv2D(8, 3, padding="same", activation="relu", name="again")
    x = layers.Add()([again(x), again(again(x))])
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.SeparableConv2D(6, 3, name="separable")(x)
    x = layers.LSTM(5, name="lstm")(layers.Reshape((-1, 6))(x))
    return keras.Model(image, layers.Dense(3, activation="softmax", name="out")(x))


def agreement(one, other):
    return float(np.mean(one(INPUTS).numpy().argmax(1) == other(INPUTS).numpy().argmax(1)))


def test_every_kernel_is_pruned_and_shared_and_outputs_stay_near():
    keras.utils.set_random_seed(3)
    source = odd()
    for layer in source.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign(np.full(8, 0.1))
    curvatures = layerwise.measure(source, INPUTS, classes=True)
    assert curvatures.keys() == models.kernels(source).keys()
    model = models.clone(source)
    layerwise.compress(model, curvatures, 1e-8)  # this network hardly tells inputs apart
    for kernel in models.kernel_values(model).values():
        assert np.unique(kernel).size < kernel.size
    off = np.abs(model(INPUTS).numpy() - source(INPUTS).numpy()).mean()
    layerwise.correct(model, source, INPUTS)
    assert np.abs(model(INPUTS).numpy() - source(INPUTS).numpy()).mean() < off
    assert agreement(model, source) > 0.9
    assert all("call" not in vars(layer) for layer in (*model.layers, *source.layers))


def test_normalization_and_biases_are_corrected_by_what_a_damage_changed():
    keras.utils.set_random_seed(3)
    parts = [layers.Conv2D(5, 3, activation="relu"), layers.BatchNormalization(), layers.Conv2D(4, 3)]
    source = keras.Sequential([keras.Input((9, 8, 4)), *parts])
    source.layers[1].moving_mean.assign(np.arange(5) / 10)
    model = models.clone(source)
    model.layers[0].kernel.assign(0.5 * source.layers[0].kernel)
    layerwise.correct(model, source, INPUTS)
    for number, before in ((0, "conv"), (2, "last")):
        name = source.layers[number].name
        outputs = [keras.Model(one.inputs[0], one.layers[number].output)(INPUTS).numpy() for one in (source, model)]
        if before == "last":
            means = [one.mean(axis=(0, 1, 2)) for one in outputs]
            np.testing.assert_allclose(means[1], means[0], atol=1e-4, err_msg=name)
    # Half the deviation before, so a quarter of the variance after.
    ratio = model.layers[1].moving_variance / source.layers[1].moving_variance
    assert (np.asarray(ratio) < 0.9).all()
