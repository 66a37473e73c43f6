"""The kinds of layers that a `.dcz` file can hold: the options, the weights and the output shape of each.

Reading, writing, converting and running all follow one table, `KINDS`. docs/format.md describes how options are
written.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deepcomp.errors import DeepcompError, FormatError, shape_text

MAX_SIZE = 2**31 - 1  # of a dimension and of a tensor
MAX_LAYERS = 65_535
_MAX_RANK = 8

Shape = tuple[int, ...]


class InvalidNetworkError(DeepcompError):
    """A network that cannot exist. It becomes a `FormatError` when read, an `UnsupportedLayerError` when written."""


def require(condition: bool, message: str) -> None:
    """Raise `InvalidNetworkError` with this message unless the condition holds."""
    if not condition:
        raise InvalidNetworkError(message)


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put `where` in front of the message of an `InvalidNetworkError`."""
    try:
        yield
    except InvalidNetworkError as error:
        raise InvalidNetworkError(f"{where}: {error}") from error


# How options are written


class Reader:
    """Reads bytes from the front to the end, and never beyond."""

    def __init__(self, data: memoryview, position: int):
        self.data, self.position = data, position

    @property
    def left(self) -> int:
        return len(self.data) - self.position

    def take(self, count: int) -> memoryview:
        if count > self.left:
            raise FormatError(f"it needs {count} more bytes at byte {self.position} and has {self.left}.")
        self.position += count
        return self.data[self.position - count : self.position]

    def varint(self) -> int:
        """An unsigned LEB128 number of at most 5 bytes, in its shortest form."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                if byte == 0 and shift:
                    raise FormatError(f"the number before byte {self.position} is overlong.")
                return value
        raise FormatError(f"the number before byte {self.position} has more than 5 bytes.")


def varint(value: int) -> bytes:
    """A number from 0 on as an unsigned LEB128 number."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


@dataclass(frozen=True)
class Whole:
    """A whole number from `low` to `high`: the difference from `low`, as a varint."""

    low: int
    high: int = MAX_SIZE

    def write(self, value: Any) -> bytes:
        fits = isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high
        require(fits, f"{value!r} is not a whole number from {self.low} to {self.high}.")
        return varint(value - self.low)

    def read(self, source: Reader) -> int:
        value = source.varint() + self.low
        require(value <= self.high, f"{value} is more than {self.high}.")
        return value


@dataclass(frozen=True)
class Choice:
    """One of a few values: its position among them, as a varint."""

    values: tuple

    def write(self, value: Any) -> bytes:
        require(value in self.values, f"{value!r} is not one of {', '.join(map(str, self.values))}.")
        return varint(self.values.index(value))

    def read(self, source: Reader) -> Any:
        number = source.varint()
        require(number < len(self.values), f"there is no choice {number} among {', '.join(map(str, self.values))}.")
        return self.values[number]


@dataclass(frozen=True)
class Real:
    """A finite number from `low` to `high`, as a float64."""

    low: float = -math.inf
    high: float = math.inf

    def write(self, value: Any) -> bytes:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        fits = fits and math.isfinite(value) and self.low <= value <= self.high
        require(fits, f"{value!r} is not a finite number from {self.low} to {self.high}.")
        return np.array(value, "<f8").tobytes()

    def read(self, source: Reader) -> float:
        value = float(np.frombuffer(source.take(8), "<f8")[0])
        self.write(value)
        return value


@dataclass(frozen=True)
class Row:
    """A tuple of `length` values, one after the other. If `length` is None, their number, 1 to 8, comes first."""

    code: Any
    length: int | None = None

    def write(self, value: Any) -> bytes:
        require(isinstance(value, tuple), f"{value!r} is not a tuple.")
        require(self.length in (None, len(value)), f"{value!r} does not have {self.length} entries.")
        length = b"" if self.length else _RANK.write(len(value))
        return length + b"".join(map(self.code.write, value))

    def read(self, source: Reader) -> tuple:
        return tuple(self.code.read(source) for _ in range(self.length or _RANK.read(source)))


REQUIRED = object()


@dataclass(frozen=True)
class Option:
    """How an option is written, and its default: a value, a function of the options before it, or `REQUIRED`."""

    code: Any
    default: Any = REQUIRED

    def default_in(self, options: Mapping[str, Any]) -> Any:
        """The default, given the options before it."""
        return self.default(options) if callable(self.default) else self.default


@dataclass(frozen=True)
class Kind:
    """A kind of layer.

    `plan(options, *input_shapes)` gives the output shape and the shapes of the weights, by name; shapes are without
    the batch. A layer takes one input, or two and more if it `merges`. It `keeps` if it changes neither the shape nor
    the meaning of a position.
    """

    plan: Callable[..., tuple[Shape, dict[str, Shape]]]
    options: Mapping[str, Option] = field(default_factory=dict)
    merges: bool = False
    keeps: bool = False


# The output shape and the weights of each kind


def _same(options, shape):
    return shape, {}


def _bias(options, size):
    return {"bias": (size,)} if options["use_bias"] else {}


def _dense(options, shape):
    units = options["units"]
    return (*shape[:-1], units), {"kernel": (shape[-1], units), **_bias(options, units)}


def _require_rank(shape, rank):
    require(len(shape) == rank, f"it takes inputs of {rank} dimensions, not {shape_text(shape)}.")


def _slide(options, shape, window, dilation):
    """The number of positions of a window along each spatial dimension."""
    _require_rank(shape, len(window) + 1)
    counts = []
    for size, reach, rate, step in zip(shape[:-1], window, dilation, options["strides"], strict=True):
        beyond = (reach - 1) * rate if options["padding"] == "valid" else 0
        counts.append(-((beyond - size) // step))
    require(min(counts) > 0, f"its window of {shape_text(window)} does not fit into {shape_text(shape)}.")
    return tuple(counts)


def _convolve(options, shape):
    require(
        max(options["strides"]) == 1 or max(options["dilation_rate"]) == 1,
        f"strides={options['strides']} and dilation_rate={options['dilation_rate']} cannot both be over 1.",
    )
    return _slide(options, shape, options["kernel_size"], options["dilation_rate"])


def _convolution(options, shape):
    image, filters, groups = _convolve(options, shape), options["filters"], options["groups"]
    require(shape[-1] % groups == filters % groups == 0, f"{groups} groups do not divide {shape[-1]} and {filters}.")
    kernel = (*options["kernel_size"], shape[-1] // groups, filters)
    return (*image, filters), {"kernel": kernel, **_bias(options, filters)}


def _depthwise(options, shape):
    image, multiplier = _convolve(options, shape), options["depth_multiplier"]
    channels = shape[-1] * multiplier
    kernel = (*options["kernel_size"], shape[-1], multiplier)
    return (*image, channels), {"kernel": kernel, **_bias(options, channels)}


def _separable(options, shape):
    image, multiplier, filters = _convolve(options, shape), options["depth_multiplier"], options["filters"]
    window = options["kernel_size"]
    kernels = {
        "depthwise_kernel": (*window, shape[-1], multiplier),
        "pointwise_kernel": (*(1,) * len(window), shape[-1] * multiplier, filters),
    }
    return (*image, filters), {**kernels, **_bias(options, filters)}


def _normalization(options, shape):
    names = ["gamma"] * options["scale"] + ["beta"] * options["center"] + ["moving_mean", "moving_variance"]
    return shape, dict.fromkeys(names, shape[-1:])


def _pooling(options, shape):
    window = options["pool_size"]
    return (*_slide(options, shape, window, (1,) * len(window)), shape[-1]), {}


def _global_pooling(rank):
    def plan(options, shape):
        _require_rank(shape, rank)
        return ((1,) * (rank - 1) if options["keepdims"] else ()) + shape[-1:], {}

    return plan


def _flatten(options, shape):
    return (math.prod(shape),), {}


def _reshape(options, shape):
    target = options["target_shape"]
    require(math.prod(target) == math.prod(shape), f"{shape_text(shape)} cannot become {shape_text(target)}.")
    return target, {}


def _permute(options, shape):
    dims = options["dims"]
    require(sorted(dims) == [*range(1, len(shape) + 1)], f"dims={dims} do not permute {shape_text(shape)}.")
    return tuple(shape[dim - 1] for dim in dims), {}


def _zero_padding(rank):
    def plan(options, shape):
        _require_rank(shape, rank)
        margins = options["padding"] if rank > 2 else (options["padding"],)
        return (*(size + sum(margin) for size, margin in zip(shape[:-1], margins, strict=True)), shape[-1]), {}

    return plan


def _elementwise(options, *shapes):
    require(len(set(map(len, shapes))) == 1, f"its inputs differ in rank: {', '.join(map(shape_text, shapes))}.")
    output = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    fits = all(size in (1, most) for shape in shapes for size, most in zip(shape, output, strict=True))
    require(fits, f"its inputs do not fit each other: {', '.join(map(shape_text, shapes))}.")
    return output, {}


def _concatenate(options, *shapes):
    rank, axis = len(shapes[0]), options["axis"]
    require(axis == -1 or 0 < axis < rank, f"axis={axis} is neither -1 nor 1 to {rank - 1}.")
    place = axis - 1 if axis > 0 else rank - 1
    rests = {(len(shape), shape[:place], shape[place + 1 :]) for shape in shapes}
    require(len(rests) == 1, f"its inputs do not fit each other: {', '.join(map(shape_text, shapes))}.")
    return (*shapes[0][:place], sum(shape[place] for shape in shapes), *shapes[0][place + 1 :]), {}


# The table of kinds. Both orders, of kinds and of options, are part of the format: add at the end only.

ACTIVATIONS = (
    *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "sigmoid", "hard_sigmoid", "tanh", "softmax"),
    *("softplus", "softsign", "silu", "hard_silu", "gelu", "exponential", "mish"),
)
_SIZE, _ANY_SIZE, _RANK = Whole(1), Whole(0), Whole(1, _MAX_RANK)
_FLAG, _POSITIVE = Choice((False, True)), Real(0)
SHAPE = Row(_SIZE)
LAYERS = Whole(1, MAX_LAYERS)


def _windows(rank: int, *paddings: str) -> dict[str, Option]:
    ones = Option(Row(_SIZE, rank), (1,) * rank)
    return {
        "kernel_size": Option(Row(_SIZE, rank)),
        "strides": ones,
        "padding": Option(Choice(("valid", "same", *paddings)), "valid"),
        "dilation_rate": ones,
    }


def _pools(rank: int) -> Kind:
    pool_size = Option(Row(_SIZE, rank), (2,) * rank)
    strides = Option(Row(_SIZE, rank), lambda options: options["pool_size"])
    return Kind(_pooling, {"pool_size": pool_size, "strides": strides, "padding": _PADDING})


_PADDING = Option(Choice(("valid", "same")), "valid")
_FILTERS = {"filters": Option(_SIZE)}
_GROUPS = {"groups": Option(_SIZE, 1)}
_MULTIPLIER = {"depth_multiplier": Option(_SIZE, 1)}
_OUTPUT = {"activation": Option(Choice(ACTIVATIONS), "linear"), "use_bias": Option(_FLAG, True)}
_KEEPDIMS = {"keepdims": Option(_FLAG, False)}
_MARGIN = Row(_ANY_SIZE, 2)

KINDS: dict[str, Kind] = {
    "InputLayer": Kind(_same),
    "Dense": Kind(_dense, {"units": Option(_SIZE), **_OUTPUT}),
    "Conv1D": Kind(_convolution, _FILTERS | _windows(1, "causal") | _GROUPS | _OUTPUT),
    "Conv2D": Kind(_convolution, _FILTERS | _windows(2) | _GROUPS | _OUTPUT),
    "DepthwiseConv1D": Kind(_depthwise, _windows(1) | _MULTIPLIER | _OUTPUT),
    "DepthwiseConv2D": Kind(_depthwise, _windows(2) | _MULTIPLIER | _OUTPUT),
    "SeparableConv1D": Kind(_separable, _FILTERS | _windows(1) | _MULTIPLIER | _OUTPUT),
    "SeparableConv2D": Kind(_separable, _FILTERS | _windows(2) | _MULTIPLIER | _OUTPUT),
    "BatchNormalization": Kind(
        _normalization,
        {
            "momentum": Option(Real(), 0.99),
            "epsilon": Option(_POSITIVE, 0.001),
            "center": Option(_FLAG, True),
            "scale": Option(_FLAG, True),
        },
        keeps=True,
    ),
    "MaxPooling1D": _pools(1),
    "MaxPooling2D": _pools(2),
    "AveragePooling1D": _pools(1),
    "AveragePooling2D": _pools(2),
    "GlobalMaxPooling1D": Kind(_global_pooling(2), _KEEPDIMS),
    "GlobalMaxPooling2D": Kind(_global_pooling(3), _KEEPDIMS),
    "GlobalAveragePooling1D": Kind(_global_pooling(2), _KEEPDIMS),
    "GlobalAveragePooling2D": Kind(_global_pooling(3), _KEEPDIMS),
    "Flatten": Kind(_flatten),
    "Reshape": Kind(_reshape, {"target_shape": Option(SHAPE)}),
    "Permute": Kind(_permute, {"dims": Option(SHAPE)}),
    "ZeroPadding1D": Kind(_zero_padding(2), {"padding": Option(_MARGIN, (1, 1))}),
    "ZeroPadding2D": Kind(_zero_padding(3), {"padding": Option(Row(_MARGIN, 2), ((1, 1), (1, 1)))}),
    "Add": Kind(_elementwise, merges=True),
    "Multiply": Kind(_elementwise, merges=True),
    "Concatenate": Kind(_concatenate, {"axis": Option(Whole(-1, _MAX_RANK), -1)}, merges=True),
    "Dropout": Kind(_same, {"rate": Option(Real(0, 1), 0.5)}, keeps=True),
    "Rescaling": Kind(_same, {"scale": Option(Real()), "offset": Option(Real(), 0.0)}, keeps=True),
    "Activation": Kind(_same, {"activation": Option(Choice(ACTIVATIONS))}, keeps=True),
    "ReLU": Kind(
        _same,
        {
            "max_value": Option(_POSITIVE, None),
            "negative_slope": Option(_POSITIVE, 0.0),
            "threshold": Option(_POSITIVE, 0.0),
        },
        keeps=True,
    ),
    "LeakyReLU": Kind(_same, {"negative_slope": Option(_POSITIVE, 0.3)}, keeps=True),
    "ELU": Kind(_same, {"alpha": Option(Real(), 1.0)}, keeps=True),
    "Softmax": Kind(_same, keeps=True),
}


def supported() -> str:
    """The kinds of layers that a file can hold, in words."""
    return ", ".join(kind for kind in KINDS if kind != "InputLayer")
