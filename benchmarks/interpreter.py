"""What a network computes, layer by layer in NumPy and float64, after docs/format.md: slow, plain, and independent.

It shares no code with `deepcomp.runtime`, so that the two can be compared. A new kind of layer needs one function here.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.interpreter_sequences import SEQUENCES, mask_of
from deepcomp.dcz import masks
from deepcomp.dcz.network import Layer, Network, SharedWeight

Weights = Mapping[str, np.ndarray]


def interpret(
    network: Network, images: np.ndarray, noise: float = 0.0, seed: int = 0, most: float = math.inf
) -> np.ndarray:
    """The outputs, `float64 (N, *output_shape)`, for images `(N, *input_shape)`, of the first input and output.

    All inputs are side by side in `(N, numbers)` where there are several, and so are all outputs then.

    With `noise`, every weight gets a random error of that fraction. The inputs and outputs of every layer get one of
    that fraction of the largest, and so does what a recurrent layer computes inside, such as its activations. The
    difference says how much rounding may change the outputs. Raises `OverflowError` where a value of any layer is over
    `most`, and as `SEQUENCES`.
    """
    draw = np.random.default_rng(seed)

    def rough_call(kind, options, weights, inputs):
        value = _call(kind, options, weights, inputs)
        return _rough(draw, value, max(np.abs(inputs[0]).max(), np.abs(value).max()), noise)

    call = rough_call if noise else _call
    values, first = [], 0
    for shape in network.input_shapes:
        size = math.prod(shape)
        flat = images.reshape(len(images), -1)[:, first : first + size]
        values.append(flat.reshape(len(images), *shape).astype(np.float64))
        first += size
    following = masks.Masks[np.ndarray](
        lambda number: mask_of(*_made_by(network.layers[number], values)),
        np.logical_or,
        lambda number, given: _joined(given, [values[source] for source in network.layers[number].inputs]),
    )
    with np.errstate(all="ignore"):
        for layer in network.layers:
            given = following.enter(layer)
            if layer.kind == "InputLayer":
                continue
            weights = {name: _dense(weight) for name, weight in layer.weights.items()}
            inputs = [values[number] for number in layer.inputs]
            if noise:
                weights = {name: _rough(draw, weight, np.abs(weight), noise) for name, weight in weights.items()}
                if not is_discrete(layer):
                    inputs = [_rough(draw, value, np.abs(value).max(), noise) for value in inputs]
            before = _before_activation(layer.kind, layer.options, weights, inputs, given, call)
            value = _activated(layer.kind, layer.options, before)
            if np.abs(value).max() > most:
                raise OverflowError(f"The layer {layer.name!r} has values over {most:g}.")
            if noise:  # what an activation gets may be larger than what it puts out
                value = _rough(draw, value, max(np.abs(before).max(), np.abs(value).max()), noise)
            values.append(value)
    outputs = [values[number] for number in network.outputs]
    if len(outputs) == 1:
        return outputs[0]
    return np.concatenate([output.reshape(len(output), -1) for output in outputs], axis=1)


def _rough(draw: np.random.Generator, value: np.ndarray, largest: np.ndarray | float, noise: float) -> np.ndarray:
    return value + noise * largest * draw.standard_normal(value.shape)


def is_discrete(layer: Layer) -> bool:
    """Whether small changes of a layer's inputs may be large ones of its outputs: rows of a table, steps of a mask."""
    inner = layer.options.get("layer")
    return layer.kind == "Masking" or "Embedding" in (layer.kind, inner.kind if inner is not None else "")


def _made_by(layer: Layer, values: Sequence[np.ndarray]) -> tuple[str, Mapping[str, Any], np.ndarray]:
    return layer.kind, layer.options, values[layer.inputs[0]]


def _joined(given: Sequence[np.ndarray | None], values: Sequence[np.ndarray]) -> np.ndarray:
    """The mask of sequences one after the other; where one has none, all of its steps count."""
    every = [
        np.ones(value.shape[:-1], bool) if mask is None else mask for mask, value in zip(given, values, strict=True)
    ]
    return np.concatenate(every, axis=1)


def _call(kind: str, options: Mapping[str, Any], weights: Weights, inputs: Sequence[np.ndarray]) -> np.ndarray:
    """The output of one layer, which gets no masks."""
    given = [None] * len(inputs)
    return _activated(kind, options, _before_activation(kind, options, weights, inputs, given, _call))


def _before_activation(
    kind: str,
    options: Mapping[str, Any],
    weights: Weights,
    inputs: Sequence[np.ndarray],
    given: Sequence[np.ndarray | None],
    call: Callable[..., np.ndarray],
) -> np.ndarray:
    """The output of one layer, which gets these masks with its inputs, but for the activation that comes last.

    `call` computes the layers that a recurrent one is made of.
    """
    if kind in SEQUENCES:
        return SEQUENCES[kind](options, weights, inputs, given, call)
    value = INTERPRET[kind](options, weights, inputs)
    return value + weights["bias"] if "bias" in weights else value


def _activated(kind: str, options: Mapping[str, Any], value: np.ndarray) -> np.ndarray:
    """The activation that comes last; recurrent layers have theirs inside."""
    inside = "recurrent_activation" in options or kind == "SimpleRNN"
    return value if inside or "activation" not in options else ACTIVATIONS[options["activation"]](value)


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
    "celu": lambda x: _elu(x, 1),
    "hard_tanh": lambda x: np.clip(x, -1, 1),
    "hard_shrink": lambda x: np.where(np.abs(x) > 0.5, x, 0),
    "soft_shrink": lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0),
    "tanh_shrink": lambda x: x - np.tanh(x),
    "log_sigmoid": lambda x: -_softplus(-x),
    "squareplus": lambda x: (x + np.sqrt(x * x + 4)) / 2,
    "sparse_plus": lambda x: np.where(x <= -1, 0, np.where(x < 1, (x + 1) ** 2 / 4, x)),
    "sparse_sigmoid": lambda x: np.clip((x + 1) / 2, 0, 1),
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
    scale = weights.get("gamma", 1.0) / np.sqrt(weights["moving_variance"] + _epsilon(options))
    return (inputs[0] - weights["moving_mean"]) * scale + weights.get("beta", 0.0)


def _reshape(options, weights, inputs):
    target, axis = [*options.get("target_shape", (-1,))], options.get("open_axis", 0)
    if axis:
        target[axis - 1] = -1
    return inputs[0].reshape(len(inputs[0]), *target)


def _zero_padding(options, weights, inputs):
    margins = options["padding"]
    return np.pad(inputs[0], [(0, 0), *(margins if inputs[0].ndim > 3 else [margins]), (0, 0)])


def _cropping(options, weights, inputs):
    margins = options["cropping"] if inputs[0].ndim > 3 else [options["cropping"]]
    kept = [slice(first, size - last) for (first, last), size in zip(margins, inputs[0].shape[1:-1], strict=True)]
    return inputs[0][(slice(None), *kept)]


def _epsilon(options):
    """As float32, in which networks compute: a tiny one is 0."""
    return float(np.float32(options["epsilon"]))


def _transposed(options, weights, inputs):
    """Each input adds the kernel, times its value, to the outputs from `place * stride` on."""
    x, kernel = inputs[0], weights["kernel"]
    reaches, sizes, before = [], [], []
    for axis, n in enumerate(x.shape[1:-1]):
        taps, stride = kernel.shape[axis], options["strides"][axis]
        reach = (taps - 1) * options["dilation_rate"][axis] + 1
        more = None if options["output_padding"] is None else options["output_padding"][axis]
        if options["padding"] == "valid":
            size, cut = (n - 1) * stride + reach + (max(stride - reach, 0) if more is None else more), 0
        else:
            size = n * stride if more is None else (n - 1) * stride + reach % 2 + more
            cut = max((n - 1) * stride + reach - size, 0) // 2
        reaches.append(reach)
        sizes.append(size)
        before.append(cut)
    room = [max(b + s, (n - 1) * stride + reach) for b, s, n, stride, reach in zip(
        before, sizes, x.shape[1:-1], options["strides"], reaches, strict=True)]  # fmt: skip
    result = np.zeros((len(x), *room, kernel.shape[-2]))
    for tap in np.ndindex(*kernel.shape[:-2]):
        places = tuple(
            slice(t * rate, t * rate + n * stride, stride)
            for t, rate, n, stride in zip(tap, options["dilation_rate"], x.shape[1:-1], options["strides"], strict=True)
        )
        result[(slice(None), *places)] += x @ kernel[tap].T
    return result[(slice(None), *(slice(b, b + s) for b, s in zip(before, sizes, strict=True)))]


def _adaptive(reduce):
    def pool(options, weights, inputs):
        x = inputs[0]
        for axis, size in enumerate(options["output_size"], 1):
            length = x.shape[axis]
            windows = [np.arange(i * length // size, -(-(i + 1) * length // size)) for i in range(size)]
            x = np.stack([reduce(np.take(x, window, axis), axis=axis) for window in windows], axis)
        return x

    return pool


def _resized(x, sizes, interpolation):
    for axis, size in enumerate(sizes, 1):
        length = x.shape[axis]
        center = (np.arange(size) + 0.5) * length / size
        if interpolation == "nearest":
            x = np.take(x, np.minimum(np.floor(center), length - 1).astype(int), axis)
            continue
        lower = np.floor(center - 0.5)
        part = (center - 0.5 - lower).reshape(-1, *(1,) * (x.ndim - axis - 1))
        low, high = (np.take(x, np.clip(n, 0, length - 1).astype(int), axis) for n in (lower, lower + 1))
        x = low * (1 - part) + high * part
    return x


def _up_sampling(options, weights, inputs):
    factors = options["size"] if isinstance(options["size"], tuple) else (options["size"],)
    sizes = [size * factor for size, factor in zip(inputs[0].shape[1:-1], factors, strict=True)]
    return _resized(inputs[0], sizes, options.get("interpolation", "nearest"))


def _along(weight, axes, rank):
    """A weight of some axes, counted from 1, that fits inputs of `rank` dimensions."""
    sizes = iter(weight.shape)
    return weight.reshape([next(sizes) if axis in axes else 1 for axis in range(1, rank + 1)])


def _standardization(options, weights, inputs):
    x, axes = inputs[0], options["axis"]
    mean, variance = (
        _along(weights[name], axes, x.ndim - 1) if axes else weights[name] for name in ("mean", "variance")
    )
    deviation = np.maximum(np.sqrt(variance), 1e-7)
    return x * deviation + mean if options["invert"] else (x - mean) / deviation


def _layer_normalization(options, weights, inputs):
    x, axes = inputs[0], options["axis"]
    off = x - x.mean(axis=axes, keepdims=True)
    x = off / np.sqrt((off**2).mean(axis=axes, keepdims=True) + _epsilon(options))
    rank = x.ndim - 1
    if "gamma" in weights:
        x = x * _along(weights["gamma"], axes, rank)
    return x + _along(weights["beta"], axes, rank) if "beta" in weights else x


def _group_normalization(options, weights, inputs):
    x = inputs[0].reshape(len(inputs[0]), -1, options["groups"], inputs[0].shape[-1] // options["groups"])
    off = x - x.mean(axis=(1, 3), keepdims=True)
    x = (off / np.sqrt((off**2).mean(axis=(1, 3), keepdims=True) + _epsilon(options))).reshape(inputs[0].shape)
    return x * weights.get("gamma", 1.0) + weights.get("beta", 0.0)


def _root_mean_square(options, weights, inputs):
    x = inputs[0]
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + _epsilon(options)) * weights["scale"]


def _unit(x, axes):
    return x / np.sqrt(np.maximum((x**2).sum(axis=axes, keepdims=True), 1e-12))


def _dot(options, weights, inputs):
    if options["normalize"]:
        inputs = [_unit(x, (axis,)) for x, axis in zip(inputs, options["axes"], strict=True)]
    left, right = (np.moveaxis(x, axis, -1) for x, axis in zip(inputs, options["axes"], strict=True))
    n, inner = len(left), left.shape[-1]
    product = left.reshape(n, -1, inner) @ right.reshape(n, -1, inner).transpose(0, 2, 1)
    return product.reshape(n, *(left.shape[1:-1] + right.shape[1:-1] or (1,)))


def _embedding(options, weights, inputs):
    number, table = inputs[0], weights["embeddings"]
    there = (number >= 0) & (number < len(table))
    rows = table[np.where(there, number, 0).astype(int)]
    return np.where(there[..., None], rows, np.nan)


def _parametric_relu(options, weights, inputs):
    return np.where(inputs[0] > 0, inputs[0], weights["alpha"] * inputs[0])


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
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), _convolution),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), _depthwise),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), _separable),
    "BatchNormalization": _normalization,
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), _transposed),
    **{f"MaxPooling{rank}D": _pooling(-np.inf, np.maximum) for rank in (1, 2, 3)},
    **{f"AveragePooling{rank}D": _pooling(0.0, np.add) for rank in (1, 2, 3)},
    **{f"GlobalMaxPooling{rank}D": _global_pooling(np.max) for rank in (1, 2, 3)},
    **{f"GlobalAveragePooling{rank}D": _global_pooling(np.mean) for rank in (2, 3)},
    **{f"AdaptiveMaxPooling{rank}D": _adaptive(np.max) for rank in (1, 2, 3)},
    **{f"AdaptiveAveragePooling{rank}D": _adaptive(np.mean) for rank in (1, 2, 3)},
    **dict.fromkeys(("Flatten", "Reshape"), _reshape),
    "Permute": lambda options, weights, inputs: inputs[0].transpose(0, *options["dims"]),
    **dict.fromkeys(("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D"), _zero_padding),
    **dict.fromkeys(("Cropping1D", "Cropping2D", "Cropping3D"), _cropping),
    **dict.fromkeys(("UpSampling1D", "UpSampling2D", "UpSampling3D"), _up_sampling),
    "Resizing": lambda options, weights, inputs: _resized(
        inputs[0], (options["height"], options["width"]), options["interpolation"]
    ),
    "RepeatVector": lambda options, weights, inputs: np.repeat(inputs[0][:, None], options["n"], axis=1),
    "Normalization": _standardization,
    "LayerNormalization": _layer_normalization,
    "GroupNormalization": _group_normalization,
    "RMSNormalization": _root_mean_square,
    "UnitNormalization": lambda options, weights, inputs: _unit(inputs[0], options["axis"]),
    "LayerScale": lambda options, weights, inputs: inputs[0] * weights["gamma"],
    "CustomScaleLayer": lambda options, weights, inputs: inputs[0] + inputs[1] * options["scale"],
    "PReLU": _parametric_relu,
    "Embedding": _embedding,
    "Dot": _dot,
    "Subtract": lambda options, weights, inputs: inputs[0] - inputs[1],
    "Average": lambda options, weights, inputs: sum(inputs[1:], start=inputs[0]) / len(inputs),
    "Maximum": lambda options, weights, inputs: functools.reduce(np.maximum, inputs),
    "Minimum": lambda options, weights, inputs: functools.reduce(np.minimum, inputs),
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
