"""Lowers the layers of a network to nodes, each a future step; layers are fused into one node where possible."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from deepcomp.dcz.network import Layer, Network, SharedWeight, entries, output_shapes
from deepcomp.runtime.rows import (
    ADD,
    AVERAGE_POOL,
    CONVOLUTION,
    COPY,
    DENSE,
    FUNCTIONS,
    INPUT,
    MAP,
    MAX_POOL,
    MULTIPLY,
    REDUCE_MAX,
    SCALE,
    SOFTMAX,
)
from deepcomp.runtime.vectors import AVERAGE, MAX, NONE

Shape = tuple[int, ...]


class Window(NamedTuple):
    """How a window slides over rows and columns, with zeros before and after; `counts`: positions on each axis."""

    size: tuple[int, int]
    strides: tuple[int, int]
    dilation: tuple[int, int]
    before: tuple[int, int]
    after: tuple[int, int]
    counts: tuple[int, int]

    @property
    def margins(self) -> tuple[int, int, int, int]:
        """The zeros above, below, left and right."""
        return (self.before[0], self.after[0], self.before[1], self.after[1])


@dataclass(eq=False)
class Value:
    """A value of `shape`: the output of a node, or a view of other values (`parts`).

    `arrange` computes the places of a view from those of its parts. `margins` are the zeros (top, bottom, left, right)
    around the only part of a padded view; the layout of the node has places for them.
    """

    shape: Shape
    node: "Node | None" = None
    parts: tuple["Value", ...] = ()
    arrange: Callable[..., np.ndarray] | None = None
    margins: tuple[int, int, int, int] | None = None


@dataclass(eq=False)
class Node:
    """A future step: its operation, inputs and settings; settings that do not belong to the operation keep defaults."""

    op: int
    inputs: tuple[Value, ...]
    shape: Shape
    low: float = -math.inf
    high: float = math.inf
    function: int = 0
    parameters: tuple[float, ...] = ()
    kernel: SharedWeight | np.ndarray | None = None  # (rows, columns, channels of a group, units)
    groups: int = 1
    window: Window | None = None
    pool: int = NONE  # after a convolution, over 2x2: `vectors.MAX` or `vectors.AVERAGE`
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    # Both programs share these:
    packed: int | None = None  # number of the weights
    input_order: np.ndarray | None = None  # of a dense layer: the number of each input in memory

    @property
    def work(self) -> int:
        """Multiply-adds, comparisons or other operations for one image."""
        if self.window is None:
            return math.prod(self.shape)
        if self.kernel is not None:
            return int(np.count_nonzero(entries(self.kernel))) * math.prod(self.window.counts)
        rows, columns, channels = grid_of(self.inputs[0].shape)
        window = min(self.window.size[0], rows) * min(self.window.size[1], columns)
        return window * math.prod(self.window.counts) * channels


def grid_of(shape: Shape) -> tuple[int, int, int]:
    """Rows, columns and channels of any shape."""
    if len(shape) == 3:
        return shape
    return 1, math.prod(shape[:-1]), shape[-1]


def _pads(size: int, reach: int, stride: int, padding: str) -> tuple[int, int]:
    """Zeros before and after, as in TensorFlow."""
    if padding == "same":
        missing = max(0, (-(-size // stride) - 1) * stride + reach - size)
        return missing // 2, missing - missing // 2
    return (reach - 1 if padding == "causal" else 0), 0


def _window(shape: Shape, size, strides, dilation=(1, 1), padding: str = "valid") -> Window:
    size, strides, dilation = ((1,) * (2 - len(of)) + tuple(of) for of in (size, strides, dilation))
    before, after, counts = [], [], []
    for length, taps, stride, rate in zip(grid_of(shape)[:2], size, strides, dilation, strict=True):
        reach = (taps - 1) * rate + 1
        pads = _pads(length, reach, stride, padding)
        before.append(pads[0])
        after.append(pads[1])
        counts.append((length + sum(pads) - reach) // stride + 1)
    return Window(size, strides, dilation, tuple(before), tuple(after), tuple(counts))


class Graph:
    """The nodes of a network in order, and its output."""

    def __init__(self, network: Network):
        self.nodes: list[Node] = []
        self._readers = Counter(source for layer in network.layers for source in layer.inputs)
        self._readers[network.output] += 1
        sizes = output_shapes(network)
        self._values = [self._add(INPUT, (), network.input_shape)]
        self._exclusive = True  # whether the current layer is the only reader of its inputs
        for layer, shape in zip(network.layers[1:], sizes[1:], strict=True):
            inputs = [self._values[number] for number in layer.inputs]
            self._exclusive = all(self._readers[number] == 1 for number in layer.inputs)
            value = _LOWER[layer.kind](self, layer, inputs, shape)
            if "activation" in layer.options:
                self._exclusive = self._exclusive or value is not inputs[0]
                value = self._activate(value, layer.options["activation"])
            self._values.append(value)
            if value is inputs[0]:  # a layer that does nothing adds its readers to those of its input
                for number in layer.inputs:
                    self._readers[len(self._values) - 1] += self._readers[number] - 1
        self.output = self._values[-1]

    def _add(self, op: int, inputs: Sequence[Value], shape: Shape, **settings) -> Value:
        self.nodes.append(Node(op, tuple(inputs), shape, **settings))
        return Value(shape, self.nodes[-1])

    def _fusible(self, value: Value, *ops: int) -> Node | None:
        """The node of `value`, if the current layer can be fused into it: no other reader, and no clamp yet."""
        node = value.node
        fits = self._exclusive and node is not None and node.op in ops and node.shape == value.shape
        return node if fits and (node.low, node.high) == (-math.inf, math.inf) else None

    # Each of these lowers a kind of layer: (layer, inputs, output shape) -> value

    def pass_through(self, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
        return inputs[0]

    def dense(self, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
        kernel, window = _kernel_2d(layer.weights["kernel"]), _window(inputs[0].shape, (1, 1), (1, 1))
        return self._product(inputs[0], kernel, window, shape, layer.weights.get("bias"))

    def convolve(self, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
        kernel, groups = layer.weights["kernel"], layer.options.get("groups")
        if groups is None:
            kernel, groups = _depthwise(kernel), inputs[0].shape[-1]
        window = _window_of(layer, inputs[0])
        return self._product(inputs[0], _kernel_2d(kernel), window, shape, layer.weights.get("bias"), groups)

    def separate(self, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
        depthwise, pointwise = _depthwise(layer.weights["depthwise_kernel"]), layer.weights["pointwise_kernel"]
        between = (*shape[:-1], entries(depthwise).shape[-1])
        window = _window_of(layer, inputs[0])
        value = self._product(inputs[0], depthwise, window, between, None, inputs[0].shape[-1])
        window = _window(between, (1, 1), (1, 1))
        return self._product(value, _kernel_2d(pointwise), window, shape, layer.weights.get("bias"))

    def _product(
        self,
        value: Value,
        kernel: SharedWeight | np.ndarray,
        window: Window,
        shape: Shape,
        bias: np.ndarray | None,
        groups: int = 1,
    ) -> Value:
        op = DENSE if window.counts == (1, 1) else CONVOLUTION
        scale = np.ones(shape[-1])
        shift = np.zeros(shape[-1]) if bias is None else bias.astype(np.float64)
        settings = {"kernel": kernel, "groups": groups, "window": window, "scale": scale, "shift": shift}
        return self._add(op, [value], shape, **settings)

    def normalize(self, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
        weights = {name: array.astype(np.float64) for name, array in layer.weights.items()}
        scale = weights.get("gamma", 1.0) / np.sqrt(weights["moving_variance"] + layer.options["epsilon"])
        return self._scale(inputs[0], scale, weights.get("beta", 0.0) - weights["moving_mean"] * scale)

    def rescale(self, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
        return self._scale(inputs[0], np.array([layer.options["scale"]]), np.array([layer.options["offset"]]))

    def _scale(self, value: Value, scale: np.ndarray, shift: np.ndarray) -> Value:
        node = self._fusible(value, CONVOLUTION, DENSE, SCALE)
        if node is None or node.pool != NONE:
            return self._add(SCALE, [value], value.shape, scale=scale, shift=shift)
        node.scale, node.shift = node.scale * scale, node.shift * scale + shift
        return value

    def pool(self, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
        options = layer.options
        window = _window(inputs[0].shape, options["pool_size"], options["strides"], padding=options["padding"])
        value, maximum = inputs[0], layer.kind.startswith("Max")
        node = value.node
        fits = window.size == window.strides == (2, 2) and window.before == window.after == (0, 0)
        if fits and self._exclusive and node is not None and node.op == CONVOLUTION and node.pool == NONE:
            node.pool, node.shape = (MAX if maximum else AVERAGE), shape
            return Value(shape, node)
        return self._add(MAX_POOL if maximum else AVERAGE_POOL, [value], shape, window=window)

    def pool_globally(self, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
        value = inputs[0]
        window = _window(value.shape, grid_of(value.shape)[:2], (1, 1))
        op = REDUCE_MAX if layer.kind.startswith("GlobalMax") else AVERAGE_POOL
        return _reshaped(self._add(op, [value], shape[-1:], window=window), shape)

    def reshape(self, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
        return _reshaped(inputs[0], shape)

    def permute(self, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
        axes = tuple(dim - 1 for dim in layer.options["dims"])
        return Value(shape, parts=(inputs[0],), arrange=lambda places: places.transpose(axes))

    def pad(self, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
        padding = layer.options["padding"]
        rows, columns = padding if len(shape) == 3 else ((0, 0), padding)
        value, margins = inputs[0], (*rows, *columns)
        if value.margins is not None:
            (value,), margins = value.parts, add_margins(value.margins, margins)
        elif feature_map_of(value) is None:  # only the output of a node can have zeros around it
            value = self._add(COPY, [value], value.shape)
        return Value(shape, parts=(value,), margins=margins)

    def concatenate(self, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
        axis = layer.options["axis"]
        axis = axis - 1 if axis > 0 else len(shape) - 1
        return Value(shape, parts=tuple(inputs), arrange=lambda *places: np.concatenate(places, axis))

    def merge(self, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
        op = ADD if layer.kind == "Add" else MULTIPLY
        value = inputs[0]
        for other in inputs[1:]:
            value = self._add(op, [value, other], tuple(map(max, zip(value.shape, other.shape, strict=True))))
        return value

    def activate(self, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
        return inputs[0]  # the activation is an option, applied to the result of every layer

    def relu(self, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
        options = layer.options
        most = math.inf if options["max_value"] is None else options["max_value"]
        if not options["negative_slope"] and not options["threshold"]:
            return self._clamp(inputs[0], 0.0, most)
        if options["max_value"] is None and not options["threshold"]:
            return self._map(inputs[0], "leaky_relu", options["negative_slope"])
        return self._map(inputs[0], "relu", options["negative_slope"], options["threshold"], most)

    def leaky_relu(self, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
        return self._map(inputs[0], "leaky_relu", layer.options["negative_slope"])

    def elu(self, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
        return self._map(inputs[0], "elu", layer.options["alpha"])

    def softmax(self, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
        return self._add(SOFTMAX, inputs, shape)

    def _activate(self, value: Value, name: str) -> Value:
        if name == "linear":
            return value
        if name in ("relu", "relu6"):
            return self._clamp(value, 0.0, 6.0 if name == "relu6" else math.inf)
        if name == "softmax":
            return self._add(SOFTMAX, [value], value.shape)
        parameters = {"leaky_relu": (0.2,), "elu": (1.0,)}.get(name, ())  # Keras's defaults
        return self._map(value, name, *parameters)

    def _clamp(self, value: Value, low: float, high: float) -> Value:
        node = self._fusible(value, CONVOLUTION, DENSE, SCALE, ADD, MULTIPLY)
        if node is None or node.pool == AVERAGE:
            value = self._scale_by_one(value)
            node = value.node
        node.low, node.high = low, high
        return value

    def _scale_by_one(self, value: Value) -> Value:
        return self._add(SCALE, [value], value.shape, scale=np.ones(1), shift=np.zeros(1))

    def _map(self, value: Value, name: str, *parameters: float) -> Value:
        return self._add(MAP, [value], value.shape, function=FUNCTIONS[name], parameters=parameters)


_LOWER: dict[str, Callable[[Graph, Layer, list[Value], Shape], Value]] = {
    "Dense": Graph.dense,
    **dict.fromkeys(("Conv1D", "Conv2D", "DepthwiseConv1D", "DepthwiseConv2D"), Graph.convolve),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), Graph.separate),
    "BatchNormalization": Graph.normalize,
    **dict.fromkeys(("MaxPooling1D", "MaxPooling2D", "AveragePooling1D", "AveragePooling2D"), Graph.pool),
    **dict.fromkeys(("GlobalMaxPooling1D", "GlobalMaxPooling2D"), Graph.pool_globally),
    **dict.fromkeys(("GlobalAveragePooling1D", "GlobalAveragePooling2D"), Graph.pool_globally),
    **dict.fromkeys(("Flatten", "Reshape"), Graph.reshape),
    "Permute": Graph.permute,
    **dict.fromkeys(("ZeroPadding1D", "ZeroPadding2D"), Graph.pad),
    **dict.fromkeys(("Add", "Multiply"), Graph.merge),
    "Concatenate": Graph.concatenate,
    **dict.fromkeys(("Dropout", "Activation"), Graph.pass_through),
    "Rescaling": Graph.rescale,
    "ReLU": Graph.relu,
    "LeakyReLU": Graph.leaky_relu,
    "ELU": Graph.elu,
    "Softmax": Graph.softmax,
}  # fmt: skip


def _window_of(layer: Layer, value: Value) -> Window:
    options = layer.options
    return _window(
        value.shape, options["kernel_size"], options["strides"], options["dilation_rate"], options["padding"]
    )


def _reshaped(value: Value, shape: Shape) -> Value:
    if shape == value.shape:
        return value
    return Value(shape, parts=(value,), arrange=lambda places: places.reshape(shape))


def _reshaped_kernel(kernel: SharedWeight | np.ndarray, *shape: int) -> SharedWeight | np.ndarray:
    if isinstance(kernel, SharedWeight):
        return SharedWeight(kernel.codebook, kernel.indices.reshape(shape))
    return kernel.reshape(shape)


def _kernel_2d(kernel: SharedWeight | np.ndarray) -> SharedWeight | np.ndarray:
    """The kernel with rows and columns, of size 1 if it has none."""
    shape = entries(kernel).shape
    return _reshaped_kernel(kernel, *(1,) * (4 - len(shape)), *shape)


def _depthwise(kernel: SharedWeight | np.ndarray) -> SharedWeight | np.ndarray:
    """A depthwise kernel (..., channels, multiplier) as the kernel of a convolution with groups of one channel."""
    *window, channels, multiplier = entries(kernel).shape
    return _kernel_2d(_reshaped_kernel(kernel, *window, 1, channels * multiplier))


def add_margins(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The margins `a` and `b` around each other."""
    return tuple(x + y for x, y in zip(a, b, strict=True))


def feature_map_of(value: Value) -> tuple[Node, tuple[int, ...]] | None:
    """The node that computes `value`, and the margins around it; None for a view that is not just padded."""
    margins = (0, 0, 0, 0)
    while value.margins is not None:
        margins = add_margins(margins, value.margins)
        (value,) = value.parts
    return (value.node, margins) if value.node is not None and value.node.op not in (DENSE, SOFTMAX) else None
