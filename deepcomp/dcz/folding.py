"""Batch normalization folded into one scale and one shift a channel, of 16 bits each.

In inference a batch normalization computes gamma (x - mean) / sqrt(variance + epsilon) + beta: a scale and a shift.
Kept as four vectors of float32 they take 128 bits a channel. Folded, the mean is 0 and the variance 1, which a file
holds in a few bytes a layer, and gamma and beta are float16 numbers. A bias in front of it only adds to the shift. Of
the shifts that a residual connection adds up, one holds the sum.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from deepcomp import quantization
from deepcomp.dcz.network import Layer, Network, output_shapes, values

# Kinds whose bias, if they have one, is added to every position of a channel.
_WITH_BIAS = ("Dense", "Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D")
_WITH_BIAS += ("SeparableConv1D", "SeparableConv2D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")


def fold_normalization(network: Network, kept: Collection[int] = ()) -> Network:
    """The same network with batch normalization folded; the layers numbered `kept` stay as they are.

    So does batch normalization without a gamma or without a beta. A bias becomes 0 where only a batch normalization, or
    a sum with one, reads what it is added to. Outputs change by the rounding to float16, of 2^-11 of a scale or shift.
    """
    layers, shapes = list(network.layers), output_shapes(network)
    users = Counter(source for layer in layers for source in layer.inputs) + Counter(network.outputs)
    called = {layer.same_as for layer in layers}
    # Layers that nobody but the layer after them reads, so that it can have their shift.
    alone = {
        number
        for number, layer in enumerate(layers)
        if users[number] == 1 and number not in {*kept, *called} and layer.same_as is None
    }
    folded = [number for number, layer in enumerate(layers) if number not in kept and _can_fold(layer)]
    for number in folded:
        layers[number] = _folded(layers[number])
        source = layers[number].inputs[0]
        if source in alone and number not in called and _has_bias(layers[source]):
            scale = values(layers[number].weights["gamma"]) / np.sqrt(1 + layers[number].options["epsilon"])
            _move_shift(layers, source, number, scale)
    for layer in list(layers):
        if layer.kind == "Add":
            holders = [n for n in layer.inputs if n in alone and (n in folded or _has_bias(layers[n]))]
            for into in [n for n in holders if n in folded][:1]:
                for number in holders:
                    if number != into and shapes[number] == shapes[into]:
                        _move_shift(layers, number, into, 1.0)
    for number in folded:
        halves = {name: _halves(values(weight)) for name, weight in layers[number].weights.items()}
        layers[number] = replace(layers[number], weights=halves)
    return replace(network, layers=tuple(layers))


def _can_fold(layer: Layer) -> bool:
    return layer.kind == "BatchNormalization" and layer.same_as is None and {"gamma", "beta"} <= layer.weights.keys()


def _has_bias(layer: Layer) -> bool:
    return layer.kind in _WITH_BIAS and "bias" in layer.weights and layer.options["activation"] == "linear"


def _move_shift(layers: list[Layer], source: int, target: int, scale: np.ndarray | float) -> None:
    """Add the bias or beta of a layer, times `scale`, to the beta of another; it becomes 0."""
    name = "bias" if "bias" in layers[source].weights else "beta"
    shift, weights = values(layers[source].weights[name]), layers[target].weights
    layers[target] = replace(layers[target], weights={**weights, "beta": values(weights["beta"]) + scale * shift})
    layers[source] = replace(layers[source], weights={**layers[source].weights, name: np.zeros_like(shift)})


def _folded(layer: Layer) -> Layer:
    """A batch normalization of mean 0 and variance 1 that does the same, with weights of float64."""
    epsilon, own = layer.options["epsilon"], {name: np.float64(values(one)) for name, one in layer.weights.items()}
    scale = own["gamma"] / np.sqrt(own["moving_variance"] + epsilon)
    made = {
        "gamma": scale * np.sqrt(1 + epsilon),
        "beta": own["beta"] - own["moving_mean"] * scale,
        "moving_mean": np.zeros(scale.shape),
        "moving_variance": np.ones(scale.shape),
    }
    return replace(layer, weights={name: made[name] for name in own})


def _halves(exact: np.ndarray) -> np.ndarray:
    """The nearest float16 numbers, as float32, where float16 suits them."""
    halves = exact.astype(np.float16) if quantization.suits_float16(exact) else exact
    return halves.astype(np.float32) + np.float32(0)  # no -0.0
