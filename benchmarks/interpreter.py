"""What a network computes, layer by layer in NumPy and float64, after docs/format.md: slow, plain, and independent.

It shares no code with `deepcomp.runtime`, so that the two can be compared. A new kind of layer needs one function here.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deepcomp.dcz.network import Network, SharedWeight

Weights = Mapping[str, np.ndarray]


def interpret(network: Network, images: np.ndarray, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """The outputs, `float64 (N, *output_shape)`, for images `(N, *input_shape)`.

    With `noise`, every value gets a random error of that fraction of the largest value of its layer: the difference
    says how much rounding may change the outputs.
    """
    draw = np.random.default_rng(seed)
    values = [np.asarray(images, np.float64)]
    with np.errstate(all="ignore"):
        for layer in network.layers[1:]:
            weights = {name: _dense(weight) for name, weight in layer.weights.items()}
            value = INTERPRET[layer.kind](layer.options, weights, [values[number] for number in layer.inputs])
            if "bias" in weights:
                value = value + weights["bias"]
            if "activation" in layer.options:
                value = ACTIVATIONS[layer.options["activation"]](value)
            if noise:
                value = value + noise * np.abs(value).max() * draw.standard_normal(value.shape)
            values.append(value)
    return values[-1]


def _dense(weight: SharedWeight | np.ndarray) -> np.ndarray:
    if isinstance(weight, SharedWeight):
        return np.concatenate([[0.0], weight.codebook.astype(np.float64)])[weight.indices]
    return weight.astype(np.float64)


# Activations


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _softplus(x):
    return np.logaddexp(x, 0)


def _elu(x, alpha):
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _softmax(x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


_erf = np.vectorize(math.erf, otypes=[np.float64])

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "elu": lambda x: _elu(x, 1),
    "selu": lambda x: 1.0507009873554805 * _elu(x, 1.6732632423543772),
    "sigmoid": _sigmoid,
    "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "tanh": np.tanh,
    "softmax": _softmax,
    "softplus": _softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "silu": lambda x: x * _sigmoid(x),
    "hard_silu": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "gelu": lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "exponential": np.exp,
    "mish": lambda x: x * np.tanh(_softplus(x)),
}


# Windows


def _windows(x: np.ndarray, size, strides, dilation, padding: str) -> Iterator[tuple[tuple, np.ndarray, np.ndarray]]:
    """The taps of a window: position, the input of all outputs `(N, rows..., channels)`, and where it is inside.

    A tap that is outside everywhere is left out.
    """
    axes, counts = [], _counts(x, size, strides, dilation, padding)
    for length, taps, stride, rate, count in zip(x.shape[1:-1], size, strides, dilation, counts, strict=True):
        reach, before = (taps - 1) * rate + 1, 0
        if padding == "same":
            before = max(0, (count - 1) * stride + reach - length) // 2
        elif padding == "causal":
            before = reach - 1
        first = np.arange(count, dtype=np.int64) * stride - before
        nearest, farthest = -(int(first[-1]) // rate), (length - 1 - int(first[0])) // rate
        axes.append([(tap, first + tap * rate) for tap in range(max(0, nearest), min(taps, farthest + 1))])
    for one in itertools.product(*axes):
        tap, chosen = zip(*one, strict=True)
        inside = [(place >= 0) & (place < length) for place, length in zip(chosen, x.shape[1:-1], strict=True)]
        if not all(of_axis.any() for of_axis in inside):
            continue
        patch = x
        for axis, place in enumerate(chosen, 1):
            patch = patch.take(place.clip(0, x.shape[axis] - 1), axis)
        yield tap, patch, np.stack(np.meshgrid(*inside, indexing="ij")).all(axis=0)[..., None]


def _counts(x: np.ndarray, size, strides, dilation, padding: str) -> list[int]:
    """The number of positions of a window along each axis."""
    counts = []
    for length, taps, stride, rate in zip(x.shape[1:-1], size, strides, dilation, strict=True):
        free = length - (taps - 1) * rate if padding == "valid" else length
        counts.append(-(-free // stride))
    return counts


def _grouped(x, kernel, options, groups):
    channels, units = kernel.shape[-2], kernel.shape[-1] // groups
    window = options["kernel_size"], options["strides"], options["dilation_rate"], options["padding"]
    result = np.zeros((len(x), *_counts(x, *window), kernel.shape[-1]))
    for tap, patch, inside in _windows(x, *window):
        patch = np.where(inside, patch, 0)
        for group in range(groups):
            own = slice(group * units, (group + 1) * units)
            result[..., own] += patch[..., group * channels : (group + 1) * channels] @ kernel[tap][:, own]
    return result


def _convolution(options, weights, inputs):
    return _grouped(inputs[0], weights["kernel"], options, options["groups"])


def _channel_by_channel(x, kernel, options):
    """Output `channel * multiplier + m` is of that channel alone."""
    *window, channels, multiplier = kernel.shape
    return _grouped(x, kernel.reshape(*window, 1, channels * multiplier), options, channels)


def _depthwise(options, weights, inputs):
    return _channel_by_channel(inputs[0], weights["kernel"], options)


def _separable(options, weights, inputs):
    between = _channel_by_channel(inputs[0], weights["depthwise_kernel"], options)
    pointwise = weights["pointwise_kernel"]
    return between @ pointwise.reshape(pointwise.shape[-2:])


def _pooling(start, combine):
    def pool(options, weights, inputs):
        x, window = inputs[0], (options["pool_size"], options["strides"])
        window = (*window, (1,) * len(window[0]), options["padding"])
        result = np.full((len(x), *_counts(x, *window), x.shape[-1]), start)
        number = np.zeros(result.shape[1:])
        for _, patch, inside in _windows(x, *window):
            result = combine(result, np.where(inside, patch, start))
            number += inside
        return result / number if combine is np.add else result

    return pool


def _global_pooling(reduce):
    def pool(options, weights, inputs):
        axes = tuple(range(1, inputs[0].ndim - 1))
        return reduce(inputs[0], axis=axes, keepdims=options["keepdims"])

    return pool


# The other kinds


def _matrix(options, weights, inputs):
    return inputs[0] @ weights["kernel"]


def _normalization(options, weights, inputs):
    scale = weights.get("gamma", 1.0) / np.sqrt(weights["moving_variance"] + options["epsilon"])
    return (inputs[0] - weights["moving_mean"]) * scale + weights.get("beta", 0.0)


def _reshape(options, weights, inputs):
    return inputs[0].reshape(len(inputs[0]), *options.get("target_shape", (-1,)))


def _zero_padding(options, weights, inputs):
    margins = options["padding"]
    return np.pad(inputs[0], [(0, 0), *(margins if inputs[0].ndim == 4 else [margins]), (0, 0)])


def _relu(options, weights, inputs):
    x, slope, threshold = inputs[0], options["negative_slope"], options["threshold"]
    above = np.where(x > threshold, x, 0)
    if options["max_value"] is not None:
        above = np.minimum(above, options["max_value"])
    return above - slope * np.maximum(threshold - x, 0)


def _product(options, weights, inputs):
    return math.prod(inputs[1:], start=inputs[0])


INTERPRET: dict[str, Callable[[Mapping[str, Any], Weights, Sequence[np.ndarray]], np.ndarray]] = {
    "Dense": _matrix,
    **dict.fromkeys(("Conv1D", "Conv2D"), _convolution),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), _depthwise),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), _separable),
    "BatchNormalization": _normalization,
    **dict.fromkeys(("MaxPooling1D", "MaxPooling2D"), _pooling(-np.inf, np.maximum)),
    **dict.fromkeys(("AveragePooling1D", "AveragePooling2D"), _pooling(0.0, np.add)),
    **dict.fromkeys(("GlobalMaxPooling1D", "GlobalMaxPooling2D"), _global_pooling(np.max)),
    **dict.fromkeys(("GlobalAveragePooling1D", "GlobalAveragePooling2D"), _global_pooling(np.mean)),
    **dict.fromkeys(("Flatten", "Reshape"), _reshape),
    "Permute": lambda options, weights, inputs: inputs[0].transpose(0, *options["dims"]),
    **dict.fromkeys(("ZeroPadding1D", "ZeroPadding2D"), _zero_padding),
    "Add": lambda options, weights, inputs: sum(inputs[1:], start=inputs[0]),
    "Multiply": _product,
    "Concatenate": lambda options, weights, inputs: np.concatenate(inputs, options["axis"]),
    **dict.fromkeys(("Dropout", "Activation"), lambda options, weights, inputs: inputs[0]),
    "Rescaling": lambda options, weights, inputs: inputs[0] * options["scale"] + options["offset"],
    "ReLU": _relu,
    "LeakyReLU": lambda options, weights, inputs: np.where(
        inputs[0] > 0, inputs[0], options["negative_slope"] * inputs[0]
    ),
    "ELU": lambda options, weights, inputs: _elu(inputs[0], options["alpha"]),
    "Softmax": lambda options, weights, inputs: _softmax(inputs[0]),
}
