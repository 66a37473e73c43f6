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

from deepcomp.dcz.network import Layer, Network, output_shapes, values

# Kinds whose bias, if they have one, is added to every position of a channel.
_WITH_BIAS = ("Dense", "Conv1D", "Conv2D", "Conv3D", "DepthwiseConv1D", "DepthwiseConv2D")
_WITH_BIAS += ("SeparableConv1D", "SeparableConv2D", "Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose")

_DEVIATIONS = 8  # of inputs from their mean for which outputs are to stay
_TOLERANCE = 2.0**-7  # of the size of an output, within which they are to stay


def fold_normalization(network: Network, kept: Collection[int] = ()) -> Network:
    """The same network with batch normalization folded; the layers numbered `kept` stay as they are.

    So does batch normalization without a gamma or without a beta, and one that is called again. A bias becomes 0 where
    only a batch normalization, or a sum with one, reads what it is added to. Numbers that float16 cannot hold exactly
    enough stay float32: while the inputs of a normalization are within 8 standard deviations of their mean, its
    outputs change by at most 2^-7 of |gamma| + |beta|, as these were before.
    """
    layers, shapes = list(network.layers), output_shapes(network)
    users = Counter(source for layer in layers for source in layer.inputs) + Counter(network.outputs)
    fixed = {*kept, *(layer.same_as for layer in layers)}
    free = [number for number, layer in enumerate(layers) if number not in fixed and layer.same_as is None]
    able = {number for number in free if _can_fold(layers[number])}
    # What nobody but the layer after it reads, which can have its shift.
    movable = {number for number in free if users[number] == 1 and (number in able or _has_bias(layers[number]))}
    sizes: dict[int, np.ndarray] = {}  # of the outputs of each
    for number in sorted(able):
        source, bias = layers[number].inputs[0], np.zeros(1)
        if source in movable and source not in able:
            bias = _taken(layers, source)
        sizes[number] = np.abs(values(layers[number].weights["gamma"])) + np.abs(values(layers[number].weights["beta"]))
        layers[number] = _folded(layers[number], bias, sizes[number])
    for layer in network.layers:
        holders = [number for number in layer.inputs if number in movable] if layer.kind == "Add" else []
        into = next((number for number in holders if number in able), None)
        for number in holders:
            if into is not None and number != into and shapes[number] == shapes[into]:
                shift, weights = _taken(layers, number), layers[into].weights
                sizes[into] = sizes[into] + sizes.get(number, np.abs(shift))
                layers[into] = replace(layers[into], weights={**weights, "beta": values(weights["beta"]) + shift})
    for number in able:
        weights = layers[number].weights
        beta = _halves(values(weights["beta"]), _TOLERANCE * sizes[number])
        single = {name: np.float32(values(one)) + np.float32(0) for name, one in {**weights, "beta": beta}.items()}
        layers[number] = replace(layers[number], weights=single)
    return replace(network, layers=tuple(layers))


def _can_fold(layer: Layer) -> bool:
    """Whether it is a batch normalization with scale and shift, and of a variance that can be divided by."""
    if layer.kind != "BatchNormalization" or not {"gamma", "beta"} <= layer.weights.keys():
        return False
    return bool(np.all(values(layer.weights["moving_variance"]) + np.float32(layer.options["epsilon"]) > 0))


def _has_bias(layer: Layer) -> bool:
    return layer.kind in _WITH_BIAS and "bias" in layer.weights and layer.options["activation"] == "linear"


def _taken(layers: list[Layer], number: int) -> np.ndarray:
    """The bias or beta of a layer, which becomes 0."""
    weights = layers[number].weights
    name = "bias" if "bias" in weights else "beta"
    shift = values(weights[name]).astype(np.float64)
    layers[number] = replace(layers[number], weights={**weights, name: np.zeros(shift.shape, np.float32)})
    return shift


def _folded(layer: Layer, bias: np.ndarray, size: np.ndarray) -> Layer:
    """A batch normalization of mean 0 and variance 1 that does the same, also for inputs to which a bias was added.

    Its weights are float64. The rounding of a scale is multiplied by the mean, for which the shift makes up.
    """
    own = {name: np.float64(values(one)) for name, one in layer.weights.items()}
    mean, unit = own["moving_mean"] - bias, np.sqrt(1 + layer.options["epsilon"])
    deviation = np.sqrt(own["moving_variance"] + layer.options["epsilon"])
    exact = own["gamma"] / deviation * unit
    scale = _halves(exact, _TOLERANCE * size / (_DEVIATIONS * deviation) * unit)
    made = {
        "gamma": scale,
        "beta": own["beta"] - mean * scale / unit,
        "moving_mean": np.zeros(scale.shape),
        "moving_variance": np.ones(scale.shape),
    }
    return replace(layer, weights={name: made[name] for name in own})


def _halves(exact: np.ndarray, most: np.ndarray) -> np.ndarray:
    """The nearest float16 numbers if none is off by more than half of `most`; else the numbers themselves."""
    with np.errstate(over="ignore"):
        halves = exact.astype(np.float16).astype(np.float64)
    return halves if np.all(np.abs(halves - exact) <= most / 2) else exact
