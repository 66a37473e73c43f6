"""The graph that a network is lowered to: nodes, each a future step, values, and the blocks that nodes are made of."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from deepcomp.dcz.limits import Limits
from deepcomp.dcz.network import SharedWeight, entries
from deepcomp.runtime.rows import (
    ADD,
    CELL,
    CONVOLUTION,
    DENSE,
    FUNCTIONS,
    GATHER,
    MAP,
    MATMUL,
    MAX_POOL,
    MERGES,
    NORMALIZE,
    SCALE,
    SOFTMAX,
)
from deepcomp.runtime.vectors import AVERAGE, MAX, NONE

Shape = tuple[int, ...]
Function = tuple[int, tuple[float, ...]]  # of `rows.FUNCTIONS`, and its parameters
STEP_WORK = 2**20  # operations that take as long as planning a step
PLACE_BYTES = 16  # that planning takes for each number that a step puts out
_PLACE_WORK = 2**8  # operations that take as long as planning such a number
_CELL_WORK = 2**16  # operations that take as long as planning a step in time
_IN_ORDER = (DENSE, SOFTMAX, NORMALIZE, MATMUL, GATHER, CELL)  # their outputs are no feature maps


def grid_of(shape: Shape) -> tuple[int, int, int]:
    """Rows, columns and channels of any shape."""
    if len(shape) == 3:
        return shape
    return 1, math.prod(shape[:-1]), shape[-1]


def pads(size: int, reach: int, stride: int, padding: str) -> tuple[int, int]:
    """Zeros before and after, as in TensorFlow."""
    if padding == "same":
        missing = max(0, (-(-size // stride) - 1) * stride + reach - size)
        return missing // 2, missing - missing // 2
    return (reach - 1 if padding == "causal" else 0), 0


class Window(NamedTuple):
    """How a window slides over rows and columns, with zeros before and after; `counts`: positions on each axis."""

    size: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    counts: tuple[int, ...]

    @property
    def margins(self) -> tuple[int, int, int, int]:
        """The zeros above, below, left and right."""
        return (self.before[0], self.after[0], self.before[1], self.after[1])

    @classmethod
    def sliding(cls, shape: Shape, size, strides, dilation=(1, 1), padding: str = "valid") -> "Window":
        """The window over an input of `shape`."""
        size, strides, dilation = ((1,) * (2 - len(of)) + tuple(of) for of in (size, strides, dilation))
        before, after, counts = [], [], []
        for length, taps, stride, rate in zip(grid_of(shape)[:2], size, strides, dilation, strict=True):
            reach = (taps - 1) * rate + 1
            zeros = pads(length, reach, stride, padding)
            before.append(zeros[0])
            after.append(zeros[1])
            counts.append((length + sum(zeros) - reach) // stride + 1)
        return cls(size, strides, dilation, tuple(before), tuple(after), tuple(counts))


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
    addend: "Value | None" = None  # what a convolution adds to its output before it is clamped
    scale: np.ndarray | None = None
    shift: np.ndarray | None = None
    cell_functions: tuple[Function, ...] = ()  # of a recurrent layer: of its states and of its gates
    backwards: bool = False
    first: int = 0  # of an input: the number of its first element among those of all inputs
    layer: str = ""  # the name of the layer that it belongs to
    number: int = -1  # in the graph
    twin: "Node | None" = None  # an earlier node that has the same weights, which are packed once
    # Both programs share these:
    packed: int | None = None  # number of the weights
    input_order: np.ndarray | None = None  # of a dense layer: the number of each input in memory

    @cached_property
    def weights_left(self) -> int:
        """The weights of the kernel that are not pruned."""
        if self.twin is not None:
            return self.twin.weights_left
        return 0 if self.kernel is None else int(np.count_nonzero(entries(self.kernel)))

    @property
    def work(self) -> int:
        """Multiply-adds, comparisons or other operations for one image."""
        if self.op == CELL and self.kernel is not None:
            return self.shape[0] * (int(np.count_nonzero(entries(self.kernel))) + _CELL_WORK)
        if self.op == MATMUL:
            return math.prod(self.shape) * self.inputs[0].shape[-1]
        if self.window is None:
            return math.prod(self.shape)
        if self.kernel is not None:
            return self.weights_left * math.prod(self.window.counts)
        rows, columns, channels = grid_of(self.inputs[0].shape)
        window = min(self.window.size[0], rows) * min(self.window.size[1], columns)
        return window * math.prod(self.window.counts) * channels


class Graph:
    """Nodes in the order in which they run, and the values that they put out.

    A layer is fused into the node of its input where it can be: a scale, a clamp, or a pooling after a convolution.
    Nodes count against the limits as they are made, because one layer may need thousands.
    """

    def __init__(self, limits: Limits) -> None:
        self.nodes: list[Node] = []
        self._limits, self._work, self._places = limits, 0, 0
        self.layer = ""  # the name of the layer that is being lowered
        self.shared: set[Value] = set()  # values of several readers: no reader may be fused into their node
        self.outputs: list[Value] = []

    def add(self, node: Node) -> Value:
        """Append a node; returns its value. Raises `FormatError` for more than the limits allow."""
        places = math.prod(node.shape)
        self._work += node.work + STEP_WORK + _PLACE_WORK * places
        self._places += places
        self._limits.check_memory(PLACE_BYTES * self._places)
        self._limits.check_work(self._work)
        node.layer, node.number = self.layer, len(self.nodes)
        self.nodes.append(node)
        return Value(node.shape, node)

    def fusible(self, value: Value, *ops: int, may_add: bool = False) -> Node | None:
        """The node of `value` if its reader can be fused into it: of one of the operations, and not clamped yet.

        may_add: whether the node may have an addend.
        """
        node = value.node
        if node is None or value in self.shared or node.op not in ops or node.shape != value.shape:
            return None
        return node if (node.low, node.high) == (-math.inf, math.inf) and (may_add or not node.addend) else None

    def product(
        self,
        value: Value,
        kernel: SharedWeight | np.ndarray,
        window: Window,
        shape: Shape,
        bias: SharedWeight | np.ndarray | None,
        groups: int = 1,
        twin: Node | None = None,
    ) -> Value:
        """A convolution, or a dense layer where the window has one position. `twin`: a node of the same weights."""
        op = DENSE if window.counts == (1, 1) else CONVOLUTION
        scale = np.ones(shape[-1])
        shift = np.zeros(shape[-1]) if bias is None else np.asarray(bias, np.float64)
        settings = {"kernel": kernel, "groups": groups, "window": window, "scale": scale, "shift": shift, "twin": twin}
        return self.add(Node(op, (value,), shape, **settings))

    def scaled(self, value: Value, scale: np.ndarray, shift: np.ndarray) -> Value:
        """`value * scale + shift`; both are arrays of one number, of one for each channel, or that fit the shape."""
        plain = scale.ndim == shift.ndim == 1
        node = self.fusible(value, SCALE, *(CONVOLUTION, DENSE) * plain)
        if node is None or node.scale is None or node.shift is None or node.pool != NONE:
            return self.add(Node(SCALE, (value,), value.shape, scale=scale, shift=shift))
        node.scale, node.shift = node.scale * scale, node.shift * scale + shift
        return value

    def pooled(self, op: int, value: Value, window: Window, shape: Shape) -> Value:
        """A pooling; one of 2x2 is fused into a convolution before it."""
        node = value.node
        fits = window.size == window.strides == (2, 2) and window.before == window.after == (0, 0)
        fits = fits and value not in self.shared
        if not fits or node is None or node.op != CONVOLUTION or node.pool != NONE or node.addend is not None:
            return self.add(Node(op, (value,), shape, window=window))
        node.pool, node.shape = (MAX if op == MAX_POOL else AVERAGE), shape
        return Value(shape, node)

    def clamped(self, value: Value, low: float, high: float) -> Value:
        """`value` within `low` and `high`."""
        node = self.fusible(value, CONVOLUTION, DENSE, SCALE, *MERGES, may_add=True)
        if node is None or node.pool == AVERAGE:
            one, zero = np.ones(1), np.zeros(1)
            return self.add(Node(SCALE, (value,), value.shape, low=low, high=high, scale=one, shift=zero))
        node.low, node.high = low, high
        return value

    def normalized(self, value: Value, axes: Sequence[int], kind: int, epsilon: float) -> Value:
        """NORMALIZE along some axes."""
        rest = [axis for axis in range(len(value.shape)) if axis not in axes]
        order, shape = (*rest, *axes), value.shape
        moved = tuple(shape[axis] for axis in order)
        columns = math.prod(shape[axis] for axis in axes)
        rows = view((math.prod(moved) // columns, columns), lambda p: p.transpose(order).reshape(-1, columns), value)
        result = self.add(Node(NORMALIZE, (rows,), rows.shape, function=kind, parameters=(epsilon,)))
        back = tuple(np.argsort(order))
        return view(shape, lambda places: places.reshape(moved).transpose(back), result)

    def matmul(self, a: Value, b: Value) -> Value:
        """Products of matrices, (..., rows, inner) and (..., inner, columns)."""
        return self.add(Node(MATMUL, (a, b), (*a.shape[:-1], b.shape[-1])))

    def mapped(self, value: Value, name: str, *parameters: float) -> Value:
        """A function of `rows.FUNCTIONS` of each number."""
        return self.add(Node(MAP, (value,), value.shape, function=FUNCTIONS[name], parameters=parameters))

    def merged(self, op: int, a: Value, b: Value) -> Value:
        """An elementwise operation on two values of one rank; sizes of 1 are repeated.

        A sum is fused into a convolution whose output is one of the values, if the other is known before it.
        """
        if op == ADD and a.shape == b.shape:
            for value, other in sorted(((a, b), (b, a)), key=lambda pair: self._number(pair[0]), reverse=True):
                node = self.fusible(value, CONVOLUTION)
                if node is not None and node.pool == NONE and 0 <= self._number(other) < self._number(value):
                    node.addend = other
                    return value
        return self.add(Node(op, (a, b), tuple(map(max, zip(a.shape, b.shape, strict=True)))))

    def _number(self, value: Value) -> int:
        """The number of the node whose output a value is, or -1 if it is not the whole output of one."""
        node = value.node
        return -1 if node is None or node.shape != value.shape else node.number

    def activated(self, value: Value, name: str) -> Value:
        """An activation with Keras's default parameters."""
        if name == "linear":
            return value
        if name in ("relu", "relu6"):
            return self.clamped(value, 0.0, 6.0 if name == "relu6" else math.inf)
        if name == "softmax":
            return self.add(Node(SOFTMAX, (value,), value.shape))
        function, parameters = function_of(name)
        return self.add(Node(MAP, (value,), value.shape, function=function, parameters=parameters))


def function_of(name: str) -> Function:
    """An activation with Keras's default parameters, one that is for each number alone."""
    parameters = {
        "linear": (1.0,),
        "relu": (0.0, 0.0, math.inf),
        "relu6": (0.0, 0.0, 6.0),
        "leaky_relu": (0.2,),
        "elu": (1.0,),
        "celu": (1.0,),
        "hard_shrink": (0.5,),
        "soft_shrink": (0.5,),
        "squareplus": (4.0,),
    }.get(name, ())
    return FUNCTIONS[{"linear": "leaky_relu", "relu6": "relu"}.get(name, name)], parameters


def view(shape: Shape, arrange: Callable[..., np.ndarray], *parts: Value) -> Value:
    """A value that computes nothing: `arrange` gives its places from those of its parts."""
    return Value(shape, parts=parts, arrange=arrange)


def reshaped(value: Value, shape: Shape) -> Value:
    """The same numbers in another shape."""
    return value if shape == value.shape else view(shape, lambda places: places.reshape(shape), value)


def add_margins(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The margins `a` and `b` around each other."""
    return tuple(x + y for x, y in zip(a, b, strict=True))


def feature_map_of(value: Value) -> tuple[Node, tuple[int, ...]] | None:
    """The node that computes `value`, and the margins around it; None for a view that is not just padded."""
    margins = (0, 0, 0, 0)
    while value.margins is not None:
        margins = add_margins(margins, value.margins)
        (value,) = value.parts
    return (value.node, margins) if value.node is not None and value.node.op not in _IN_ORDER else None
