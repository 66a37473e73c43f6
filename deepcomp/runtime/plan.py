"""Compiles a network to a plan: tables of steps over one arena of memory, and the weights, still compressed.

A plan is data: an engine executes its table of steps. Activations are planar, [channel][row][column]. A place is a
position in the arena; it holds one float for each image that runs at the same time. Each value knows the places of its
elements, so flattening, reshaping, permuting, padding with zeros and concatenating copy nothing.

There are two programs over the same weights. The one for batches keeps each channel of a convolution's input as one
padded map. In the one for a single image, the input of a convolution of stride s is split into s x s phases, each a
map of its own, so that neighbouring outputs read neighbouring places.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from deepcomp.dcz.kinds import is_kernel
from deepcomp.dcz.limits import Limits
from deepcomp.dcz.network import Network, Shape, SharedWeight, entries, output_shapes
from deepcomp.errors import FormatError
from deepcomp.runtime import bounds, kernels, packing
from deepcomp.runtime.ends import Ends
from deepcomp.runtime.graph import (
    PLACE_BYTES,
    STEP_WORK,
    Graph,
    Node,
    Value,
    Window,
    add_margins,
    feature_map_of,
    grid_of,
)
from deepcomp.runtime.layout import Layout
from deepcomp.runtime.lowering import lower
from deepcomp.runtime.moves import BUFFER_BITS, affine, buffers_of, first_fit, list_moves
from deepcomp.runtime.rows import (
    ADD,
    CELL,
    CLEAR,
    CONVOLUTION,
    COPY,
    DENSE,
    GATES,
    GATHER,
    INPUT,
    LSTM,
    MAP,
    MATMUL,
    MERGES,
    MOVE,
    NORMALIZE,
    OUTPUT,
    POOLS,
    RESET,
    SCALE,
    SOFTMAX,
    STEP,
    STEP_COLUMNS,
    UPDATE,
    CellStep,
    ClearStep,
    ConvolutionStep,
    DenseStep,
    GatherStep,
    MatmulStep,
    Move,
    MoveStep,
    NormalizeStep,
    PoolStep,
    SoftmaxStep,
)
from deepcomp.runtime.vectors import FLOAT32, NONE, UINT8, UINT16

_ALIGNMENT = 16  # places
_GAP_SHARE = 8  # gaps between rows of at least so many times their width cost less than copies of the rows
_MAX_KEPT = 2**14  # places: padded buffers of at most this size together share no memory, so margins stay zero
_BUFFER_STRIDE = 1 << BUFFER_BITS
_FLOAT = np.dtype(np.float32).itemsize
_VIEW_BYTES = np.dtype(np.int64).itemsize  # of each place of a view
# The bytes that planning takes: for each output; for each number of the largest output, beside `PLACE_BYTES`;
# for each input of a window; for each weight of the largest kernel, and for each that is left of it, if some are
# pruned or none is; for each move.
_OUTPUT_BYTES, _STEP_BYTES, _TAP_BYTES, _ENTRY_BYTES, _LEFT_BYTES, _FULL_BYTES, _MOVE_BYTES = (
    2**13,
    80,
    64,
    2,
    144,
    16,
    72,
)
_PLAIN_PRODUCTS = ("Dense", "Conv1D", "Conv2D")  # without groups, their kernels are packed as they are
_ROW_BYTES = 2**11  # that planning takes for a step in time of a recurrent layer


@dataclass(frozen=True, eq=False)
class StepWeights:
    """The packed kernel of one step, and the scales and shifts of its outputs (numbers of constants)."""

    packed: packing.PackedConv | packing.PackedDense | packing.PackedFull | packing.PackedTable
    scale: int
    shift: int


@dataclass(frozen=True, eq=False)
class Program:
    """A table of steps, `int64 (steps, STEP_COLUMNS)`.

    The steps before step `tail` run for one block of images after the other, the later ones for several blocks at once.
    All blocks use the first `size` places of the arena; `block` places for each block follow. `scratch` floats of
    scratch memory are needed too. `layers` names the layer of each step; those that write outputs have none.
    """

    steps: np.ndarray
    layers: tuple[str, ...]
    tail: int
    size: int
    block: int
    scratch: int

    @property
    def work(self) -> int:
        """The vector operations of all steps: for a block of images, or for an image."""
        return int(self.steps[:, STEP.work].sum())


@dataclass(frozen=True, eq=False)
class Plan:
    """A network ready to run: `batched` for blocks of images, `single` for one image; both share all other tables.

    `batched` is None where a block of images would take too much memory: then images run one by one.
    """

    ends: Ends
    batched: Program | None
    single: Program
    weights: tuple[StepWeights, ...]
    constants: np.ndarray
    moves: np.ndarray
    offsets: np.ndarray
    limits: Limits

    @classmethod
    def of(cls, network: Network, limits: Limits | None = None) -> "Plan":
        """The plan of a network, proved safe to run; by default the limits are those of a file of its weights.

        Raises `UnsupportedLayerError` as `network.output_shapes`, and `FormatError` for a network that asks for more
        than the limits, or whose plan cannot be proved to stay within its memory.
        """
        if limits is None:
            limits = Limits.of(
                sum(entries(array).nbytes for layer in network.layers for array in layer.weights.values())
            )
        kernel_bytes = _kernel_bytes(network)
        limits.check_memory(kernel_bytes + _output_bytes(output_shapes(network)))
        limits.check_work(STEP_WORK * len(network.layers))
        # Where a file has odd weights, NaN and infinity stand for what follows from them, as they do in Keras.
        with np.errstate(all="ignore"):
            graph, tables = lower(network, limits), _Tables(limits)
            limits.check_memory(kernel_bytes + _output_bytes([node.shape for node in graph.nodes]))
            try:
                batched = _Planner(graph, tables, limits, kernels.WIDTH).program()
            except FormatError:
                batched = None
            single = _Planner(graph, tables, limits, 1).program()
        arrays = (table.array() for table in (tables.constants, tables.moves, tables.offsets))
        ends = Ends.of(network, tuple(value.shape for value in graph.outputs))
        plan = cls(ends, batched, single, tuple(tables.weights), *arrays, limits)
        bounds.prove(plan)
        return plan

    @property
    def weight_bytes(self) -> int:
        """The memory of the weights, codebooks and constants, in bytes."""
        return sum(weights.packed.nbytes for weights in self.weights) + self.constants.nbytes


def _kernel_bytes(network: Network) -> int:
    """The most memory that planning takes for one kernel."""
    kernels = [
        _TAP_BYTES * (kernel.size // kernel.shape[-1])
        + _ENTRY_BYTES * kernel.size
        + (_FULL_BYTES if left == kernel.size and is_plain else _LEFT_BYTES) * left
        for layer in network.layers
        for is_plain in (layer.kind in _PLAIN_PRODUCTS and layer.options.get("groups", 1) == 1,)
        for name, weight in layer.weights.items()
        if is_kernel(name)
        for kernel in (entries(weight),)
        for left in (int(np.count_nonzero(kernel)),)
    ]
    return max(kernels, default=0)


def _output_bytes(shapes: Sequence[Shape]) -> int:
    """The most memory that planning takes for layers or nodes with outputs of these shapes.

    Buffers and moves are not in it: they are counted as they are made.
    """
    places = [math.prod(shape) for shape in shapes]
    return _OUTPUT_BYTES * len(places) + PLACE_BYTES * sum(places) + _STEP_BYTES * max(places)


@dataclass(eq=False)
class _Step:
    """A step before memory is allocated: `row(locate)` makes its row, where `locate` gives final places."""

    op: int
    reads: frozenset[int]
    writes: int | None
    row: Callable[[Callable], Sequence[int]]
    layer: str


class _Table:
    """Rows that are appended in pieces."""

    def __init__(self, dtype: type, *columns: int) -> None:
        self._pieces, self._rows = [np.zeros((0, *columns), dtype)], 0

    def __len__(self) -> int:
        return self._rows

    def append(self, piece: np.ndarray) -> int:
        """Append rows; returns the number of the first."""
        first = self._rows
        self._pieces.append(piece)
        self._rows += len(piece)
        return first

    def array(self) -> np.ndarray:
        """All rows."""
        return np.concatenate(self._pieces)


class _Tables:
    """The tables that both programs share."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.constants, self.offsets = _Table(np.float32), _Table(np.int32)
        self.moves = _Table(np.int32, len(Move._fields))
        self.weights: list[StepWeights] = []
        self._numbers: dict[bytes, int] = {}

    def add_moves(self, moves: np.ndarray) -> int:
        """Append moves; returns the number of the first. Raises `FormatError` for more than the limit of memory."""
        first = self.moves.append(moves)
        self.limits.check_memory(_MOVE_BYTES * len(self.moves))
        return first

    def constant(self, *values: float | np.ndarray) -> int:
        """Store constants, aligned to `_ALIGNMENT`; returns the number of the first."""
        array = np.concatenate([np.atleast_1d(np.asarray(value, np.float32)) for value in values])
        key = array.tobytes()
        if key not in self._numbers:
            self._numbers[key] = self.constants.append(np.pad(array, (0, -len(array) % _ALIGNMENT)))
        return self._numbers[key]


class _Planner:
    """Chooses the layouts of the nodes' outputs and makes the steps of a program."""

    def __init__(self, graph: Graph, tables: _Tables, limits: Limits, lanes: int):
        self.graph, self.tables, self.limits, self.lanes = graph, tables, limits, lanes
        self.phases = lanes == 1
        self.sizes: list[int] = []  # of the buffers
        self.padded: dict[int, tuple[Layout, tuple[int, int, int]]] = {}  # the maps of buffers that have margins
        self.steps: list[_Step] = []
        self.layer = ""  # the name of the layer whose steps are being made
        self.layouts: dict[Node, Layout] = {}
        self.bases: dict[Node, int] = {}
        self.places: dict[Node, np.ndarray] = {}
        self.views: dict[Value, np.ndarray] = {}  # the places of views
        self.viewed = 0  # how many these will be
        self.scratch = 0
        # Once memory is allocated: the places that all blocks share, and the first place of each buffer.
        self.common, self.starts = 0, np.zeros(0, np.int64)
        self._any_layout: set[Value] = set()
        self.columns: dict[Node, int] = {}  # the most that a convolution has of windows in a row
        self.gapless: set[Node] = set()  # whose readers do not want gaps between rows
        self.readers: dict[Node, list] = {node: [] for node in graph.nodes}
        for node in graph.nodes:
            for value in node.inputs:
                if node.op == CONVOLUTION:
                    self._add_reader(value, self._phases(node.window), node.window.margins, node.window.counts[1])
                else:
                    self._add_reader(value, (1, 1) if node.op in POOLS else None, (0, 0, 0, 0), is_gapless=True)
            if node.addend is not None:
                self._add_reader(node.addend, None, (0, 0, 0, 0))
        for value in graph.outputs:
            self._add_reader(value, None, (0, 0, 0, 0), is_gapless=True)
        self.gaps = self._find_gaps() if self.phases else {}
        make = {CONVOLUTION: self._convolution, DENSE: self._dense, SOFTMAX: self._softmax, NORMALIZE: self._normalize}
        make |= {MATMUL: self._matmul, GATHER: self._gather, CELL: self._recurrent}
        make.update(dict.fromkeys(POOLS, self._pool))
        for node in graph.nodes:
            self.layer = node.layer
            make.get(node.op, self._elementwise)(node)
        first, self.layer = 0, ""
        for value in graph.outputs:
            source = self._places_of(value)
            self._move(OUTPUT, None, first + np.arange(source.size).reshape(source.shape), source)
            first += source.size

    def _phases(self, window: Window) -> tuple[int, int]:
        return window.strides if self.phases else (1, 1)

    # Layouts

    def _add_reader(
        self,
        value: Value,
        phases: tuple[int, int] | None,
        margins: tuple[int, ...],
        columns: int = 0,
        is_gapless: bool = False,
    ) -> None:
        """Note how the output of a value's node is read: in which phases (None for any), with which margins.

        `columns`: of the windows of a convolution; its rows must be as far apart. `is_gapless`: whether the reader is
        faster where rows follow each other without a gap.
        """
        unread = [value]
        while unread:
            one = unread.pop()
            traced = feature_map_of(one)
            if traced is not None:
                node, own = traced
                self.readers[node] += [(None, own), (phases, add_margins(own, margins))]
                self.columns[node] = max(columns, self.columns.get(node, 0))
                if is_gapless:
                    self.gapless.add(node)
            elif one not in self._any_layout:
                self._any_layout.add(one)
                self.viewed += math.prod(one.shape)
                self.limits.check_memory(_VIEW_BYTES * self.viewed)
                unread += one.parts
            phases, margins = None, (0, 0, 0, 0)

    def _wanted(self, node: Node) -> tuple[tuple[int, int], tuple[int, ...], bool]:
        """Phases and margins of a node's output that suit its readers best, and whether a window reads it."""
        readers = self.readers[node]
        wanted = {phases for phases, _ in readers if phases is not None}
        phases = min(wanted, default=(1, 1))
        if node.op in POOLS or (
            node.op == CONVOLUTION and max(phases) > 2
        ):  # these cannot write to phases, or only to two
            phases = (1, 1)
        fitting = [margins for these, margins in readers if these in (None, phases)]
        return phases, tuple(map(max, zip((0, 0, 0, 0), *fitting, strict=True))), bool(wanted)

    def _find_gaps(self) -> dict[Node, int]:
        """Gaps between the rows of maps that convolutions read, as wide as those of the maps they write.

        Then all rows of a channel are computed as one, and none is copied. A gap costs the convolution that writes the
        map about as much, unless it reads a map with gaps itself.
        """
        gaps: dict[Node, int] = {}
        for node in reversed(self.graph.nodes):
            if node.op != CONVOLUTION or node.window.strides != (1, 1) or node.pool != NONE:
                continue
            (phases, margins, _), (_, width, channels) = self._wanted(node), grid_of(node.shape)
            gap = max(gaps.get(node, 0), self.columns.get(node, 0) - width, *margins[2:])
            if phases != (1, 1) or gap * _GAP_SHARE > width + 1:
                continue
            read = (feature_map_of(value) for value in (node.inputs[0], node.addend) if value is not None)
            for source, _ in filter(None, read):
                if source in self.gapless or source.op not in (CONVOLUTION, *POOLS):
                    continue
                _, columns, own = grid_of(source.shape)
                if columns == width and (own <= channels or any(source.window.margins[2:])):
                    gaps[source] = max(gap, gaps.get(source, 0))
        return gaps

    def _place_output(self, node: Node) -> int:
        """Choose a layout and a new buffer for the output of a node; returns the buffer."""
        phases, margins, is_read = self._wanted(node)
        grid = grid_of(node.shape)
        unit = _ALIGNMENT if self.phases and is_read and math.prod(grid[:2]) > 1 else 1
        gap = max(self.gaps.get(node, 0), self.columns.get(node, 0) - grid[1])
        layout = self.layouts[node] = Layout.of(grid, margins, phases, gap, unit)
        buffer = self._map_buffer(layout, grid)
        self.bases[node] = buffer * _BUFFER_STRIDE
        self.places[node] = (buffer * _BUFFER_STRIDE + layout.places(grid)).reshape(node.shape)
        return buffer

    def _map_buffer(self, layout: Layout, grid: tuple[int, int, int]) -> int:
        buffer = self._buffer(layout.plane * grid[2])
        if any(layout.margins):
            self.padded[buffer] = layout, grid
        return buffer

    def _buffer(self, size: int) -> int:
        self.limits.check_memory(size * self.lanes * _FLOAT)
        if size >= _BUFFER_STRIDE:
            raise FormatError(f"The network is too large to run: a map takes {size:,} places.")
        self.sizes.append(size)
        return len(self.sizes) - 1

    def _places_of(self, value: Value) -> np.ndarray:
        needed = [value]  # a recursion would be too deep for long chains of views
        while needed:
            one = needed.pop()
            if self._known(one) is not None:
                continue
            missing = [] if feature_map_of(one) else [part for part in one.parts if self._known(part) is None]
            if missing:
                needed += [one, *missing]
            else:
                self.views[one] = self._view(one)
        return self._known(value)

    def _known(self, value: Value) -> np.ndarray | None:
        return self.views.get(value) if value.node is None else self.places[value.node]

    def _view(self, value: Value) -> np.ndarray:
        traced = feature_map_of(value)
        if traced is None:
            return value.arrange(*map(self._known, value.parts))
        node, margins = traced
        places = self.layouts[node].places(grid_of(node.shape), margins)
        return (self.bases[node] + places).reshape(value.shape)

    def _feature_map(
        self, value: Value, phases: tuple[int, int], margins: tuple[int, ...], columns: int = 0
    ) -> tuple[int, Layout, int, int]:
        """A feature map as a window needs it, copied if necessary: base, layout, row and column of its corner.

        The corner is that of the map with its margins; `columns` as in `_add_reader`.
        """
        traced = feature_map_of(value)
        if traced is not None:
            node, own = traced
            layout, needed = self.layouts[node], add_margins(own, margins)
            if layout.phases == phases and all(a >= b for a, b in zip(layout.margins, needed, strict=True)):
                return self.bases[node], layout, -needed[0], -needed[2]
        grid = grid_of(value.shape)
        places = self._places_of(value).reshape(grid)
        if phases == (1, 1) and not any(margins):
            base = int(places[0, 0, 0])
            pitch = int(places[1, 0, 0]) - base if grid[0] > 1 else grid[1]
            plane = int(places[0, 0, 1]) - base if grid[2] > 1 else pitch * grid[0]
            layout = Layout((0, 0, 0, 0), (1, 1), pitch, plane, plane)
            # The places of one buffer alone stay where they are when memory is allocated.
            inside = base == places.min() and base // _BUFFER_STRIDE == places.max() // _BUFFER_STRIDE
            if inside and pitch >= grid[1] and np.array_equal(places, base + layout.places(grid)):
                return base, layout, 0, 0
        layout = Layout.of(grid, margins, phases, columns - grid[1])
        buffer = self._map_buffer(layout, grid)
        self._move(COPY, buffer, buffer * _BUFFER_STRIDE + layout.places(grid), places)
        return buffer * _BUFFER_STRIDE, layout, -margins[0], -margins[2]

    # Steps

    def _step(self, op: int, writes: int | None, reads: Sequence[np.ndarray | int], row: Callable) -> None:
        self._add_step(op, frozenset().union(*map(buffers_of, reads)), writes, row)

    def _add_step(self, op: int, reads: frozenset[int], writes: int | None, row: Callable) -> None:
        self.steps.append(_Step(op, reads, writes, row, self.layer))

    def _move(self, op, writes, target, source, other=None, other_moves=False, **columns) -> None:
        """Add a step that is a list of moves; INPUT has no source places, OUTPUT no target places."""
        reads = [] if op == INPUT else [source]
        if other_moves:
            reads.append(other)

        located = (op != OUTPUT, op != INPUT, other_moves)

        def row(locate):
            listed = list_moves(target, source, 0 if other is None else other, located, self.starts, self.common)
            if op == INPUT:  # neighbouring inputs, of several channels, are read at once
                listed = listed[np.argsort(listed[:, MOVE.source], kind="stable")]
            first = self.tables.add_moves(listed)
            return MoveStep(op, 0, first, len(listed), **columns)

        self._step(op, writes, reads, row)

    def _elementwise(self, node: Node) -> None:
        sources = [self._places_of(value) for value in node.inputs]
        buffer = self._place_output(node)
        target, other, columns = self.places[node], None, {}
        if node.op == INPUT:
            sources = [node.first + np.arange(target.size).reshape(target.shape)]
        elif node.op in MERGES:
            sources, other, columns = sources[:1], sources[1], self._clamp(node)
        elif node.op == SCALE:
            scale, shift = np.broadcast_arrays(node.scale, node.shift)
            first = self.tables.constant(scale.ravel())
            other = first + np.arange(scale.size).reshape(scale.shape)
            columns = {**self._clamp(node), "shift": self.tables.constant(shift.ravel()) - first}
        elif node.op == MAP:
            columns = {"function": node.function, "parameters": self._parameters(node.parameters)}
        self._move(node.op, buffer, target, sources[0], other, node.op in MERGES, **columns)

    def _clamp(self, node: Node) -> dict[str, int]:
        return {"low": self.tables.constant(node.low), "high": self.tables.constant(node.high)}

    def _side_by_side(self, node: Node) -> tuple[int, int]:
        """The first place of an input whose rows lie side by side, copied if necessary, and a buffer for the output.

        The output lies as the input does.
        """
        source = self._places_of(node.inputs[0])
        base, rows = source.min(), source.size // node.shape[-1]
        order = source - base
        if not np.array_equal(np.sort(order.reshape(rows, -1)), np.arange(source.size).reshape(rows, -1)):
            base, order = self._copied(source), np.arange(source.size).reshape(node.shape)
        buffer = self._buffer(source.size)
        self.places[node] = buffer * _BUFFER_STRIDE + order
        return base, buffer

    def _copied(self, places: np.ndarray) -> int:
        """Copy numbers side by side to a new buffer; returns the first place."""
        buffer = self._buffer(places.size)
        base = buffer * _BUFFER_STRIDE
        self._move(COPY, buffer, base + np.arange(places.size).reshape(places.shape), places)
        return base

    def _softmax(self, node: Node) -> None:
        base, buffer = self._side_by_side(node)
        columns = node.shape[-1]
        sizes = math.prod(node.shape) // columns, columns

        def row(locate):
            return SoftmaxStep(SOFTMAX, 0, locate(buffer * _BUFFER_STRIDE), locate(base), *sizes)

        self._step(SOFTMAX, buffer, [base], row)

    def _normalize(self, node: Node) -> None:
        base, buffer = self._side_by_side(node)
        columns, epsilon = node.shape[-1], self.tables.constant(*node.parameters)
        settings = math.prod(node.shape) // columns, columns, node.function, epsilon

        def row(locate):
            return NormalizeStep(NORMALIZE, 0, locate(buffer * _BUFFER_STRIDE), locate(base), *settings)

        self._step(NORMALIZE, buffer, [base], row)

    def _matrices(self, value: Value) -> tuple[int, tuple[int, ...]]:
        """The first place of matrices, and the places from one matrix, row and column to the next; copied if needed."""
        places = self._places_of(value).reshape(-1, *value.shape[-2:])
        base, steps = affine(places)
        if steps is None:
            base, steps = self._copied(places), (places[0].size, places.shape[2], 1)
        return base, steps

    def _matmul(self, node: Node) -> None:
        (source, first), (other, second) = map(self._matrices, node.inputs)
        buffer = self._buffer(math.prod(node.shape))
        target = buffer * _BUFFER_STRIDE
        self.places[node] = target + np.arange(math.prod(node.shape)).reshape(node.shape)
        *batch, rows, columns = node.shape
        sizes = math.prod(batch), rows, node.inputs[0].shape[-1], columns

        def row(locate):
            return MatmulStep(MATMUL, 0, locate(target), locate(source), locate(other), *sizes, *first, *second)

        self._step(MATMUL, buffer, [source, other], row)

    def _gather(self, node: Node) -> None:
        places = self._places_of(node.inputs[0]).reshape(1, 1, -1)
        source, steps = affine(places)
        if steps is None:
            source, steps = self._copied(places), (0, 0, 1)
        units, positions = node.shape[-1], places.size
        buffer = self._buffer(units * positions)
        target = buffer * _BUFFER_STRIDE
        order = np.arange(units * positions).reshape(units, *node.shape[:-1])
        self.places[node] = target + np.moveaxis(order, 0, -1)
        owner = node.twin or node
        if owner.packed is None:
            owner.packed = self._pack_table(node.kernel)
        number = owner.packed

        def row(locate):
            return GatherStep(
                op=GATHER,
                work=0,
                weights=number,
                target=locate(target),
                target_step=1,
                plane=positions,
                source=locate(source),
                source_step=steps[2],
                positions=positions,
            )

        self._step(GATHER, buffer, [source], row)

    def _pack_table(self, table: SharedWeight | np.ndarray) -> int:
        """Pack the rows of an embedding; returns its number in the table of weights."""
        rows, units = entries(table).shape
        if isinstance(table, SharedWeight):
            codebook = np.append(np.float32(0), table.codebook)
            values = table.indices.astype(np.min_scalar_type(table.codebook.size)).ravel()
        else:
            codebook, values = np.zeros(0, np.float32), table.ravel()
        kind = {"uint8": UINT8, "uint16": UINT16, "float32": FLOAT32}[values.dtype.name]
        self.tables.weights.append(StepWeights(packing.PackedTable(kind, values, codebook, rows, units), 0, 0))
        return len(self.tables.weights) - 1

    def _pool(self, node: Node) -> None:
        window, (height, width, channels) = node.window, grid_of(node.inputs[0].shape)
        base, layout, y, x = self._feature_map(node.inputs[0], (1, 1), (0, 0, 0, 0))
        buffer = self._place_output(node)
        out, start, source = self.layouts[node], self.bases[node], base + layout.place(y, x, 0)
        (window_y, window_x), (stride_y, stride_x), (top, left) = window.size, window.strides, window.before
        if self.phases and window.counts == (1, 1) and window.size == (height, width) and layout.pitch == width:
            # The window is the whole map, and its rows follow each other: they are one row.
            height, width, window_y, window_x = 1, height * width, 1, height * width
        self.scratch = max(self.scratch, (width + 1) * self.lanes)

        def row(locate):
            return PoolStep(
                op=node.op,
                work=0,
                target=locate(start + out.place(0, 0, 0)),
                plane=out.plane,
                pitch=out.pitch,
                source=locate(source),
                source_plane=layout.plane,
                source_pitch=layout.pitch,
                channels=channels,
                height=height,
                width=width,
                rows=window.counts[0],
                columns=window.counts[1],
                window_y=window_y,
                window_x=window_x,
                stride_y=stride_y,
                stride_x=stride_x,
                top=top,
                left=left,
            )

        self._step(node.op, buffer, [base], row)

    def _convolution(self, node: Node) -> None:
        window, kernel, owner = node.window, entries(node.kernel), node.twin or node
        phases = self._phases(window)
        base, layout, y, x = self._feature_map(node.inputs[0], phases, window.margins, window.counts[1])
        buffer = self._place_output(node)
        out, start, source = self.layouts[node], self.bases[node], base + layout.place(y, x, 0)
        taps = [np.arange(size) for size in kernel.shape[:3]]
        down, right = (taps[axis] * window.dilation[axis] for axis in (0, 1))
        offsets = layout.place(y + down[:, None], x + right, taps[2][:, None, None]) - layout.place(y, x, 0)
        if owner.packed is None and kernel.all():
            owner.packed = self._pack_full(node, kernel.transpose(3, 2, 0, 1).reshape(kernel.shape[3], -1))
        if owner.packed is None:
            left = np.flatnonzero(kernel != 0)
            i, j, c, unit = np.unravel_index(left, kernel.shape)
            tap = (c * kernel.shape[0] + i) * kernel.shape[1] + j
            owner.packed = self._pack(node, packing.pack_conv, unit, tap, kernel.ravel()[left], offsets.size)
        number = owner.packed
        packed = self.tables.weights[number].packed
        height, width = window.counts
        step_y, step_x = (layout.pitch, 1) if self.phases else (window.strides[0] * layout.pitch, window.strides[1])
        tile = height
        if self.phases:
            per_group = kernel.shape[-1] // node.groups
            # Where no two output channels read the same inputs, a tile gains nothing.
            read = kernel.shape[2] * layout.plane * _FLOAT if per_group > 1 else 0
            tile = kernels.tile_rows(height, width, step_y, read)
            tile += tile % 2 * (node.pool != NONE)
            scratch = kernels.conv_positions_scratch(packed, tile, step_y)
            work = packed.values.size * -(-height * step_y // kernels.WIDTH)
        else:
            scratch = kernels.conv_lanes_scratch(packed)
            work = packed.values.size * height * width
        self.scratch = max(self.scratch, scratch)
        # Vectors read whole tables, and a unit's weights are followed by those of the next.
        tiles = packed.tiles if isinstance(packed, packing.PackedConv) else 1
        padding = -offsets.size % packing.TILE if tiles > 1 else 0
        offsets = bounds.as_int32(np.pad(offsets.ravel(), (0, padding)), self.lanes * 4, "of a window's inputs")
        first_offset = self.tables.offsets.append(offsets)
        clamp = unfused = self._clamp(node)
        addend, added = self._addend(node)
        if node.addend is not None and addend is None:
            clamp = {"low": self.tables.constant(-math.inf), "high": self.tables.constant(math.inf)}
        (row_phases, column_phases), top = out.phases, out.margins[0] if self.phases else 0

        def row(locate):
            return ConvolutionStep(
                op=CONVOLUTION,
                work=work,
                weights=number,
                target=locate(start + out.place(-top, 0, 0)),
                plane=out.plane,
                pitch=out.pitch,
                source=locate(source),
                step_y=step_y,
                step_x=step_x,
                height=height,
                width=width,
                pool=node.pool,
                **clamp,
                offsets=first_offset,
                per_group=kernel.shape[-1] // node.groups,
                group_step=kernel.shape[2] * layout.plane if node.groups > 1 else 0,
                addend=-1 if addend is None else locate(added),
                addend_plane=0 if addend is None else addend.plane,
                addend_pitch=0 if addend is None else addend.pitch,
                top=top,
                phases=row_phases,
                phase=column_phases * out.phase,
                odd=out.place(0, 1, 0) - out.place(0, 0, 0) if column_phases > 1 else 0,
                tile=tile,
            )

        self._step(CONVOLUTION, buffer, [base] if addend is None else [base, added], row)
        if node.addend is not None and addend is None:
            places = self.places[node]
            self._move(ADD, None, places, places, self._places_of(node.addend), True, **unfused)

    def _addend(self, node: Node) -> tuple[Layout | None, int]:
        """The layout and the first place of what a convolution adds; no layout if its kernel cannot read that."""
        if node.addend is None:
            return None, 0
        other = node.addend.node
        if other not in self.layouts or self.layouts[other].phases != (1, 1):
            return None, 0
        layout = self.layouts[other]
        return layout, self.bases[other] + layout.place(0, 0, 0)

    def _dense(self, node: Node) -> None:
        """A convolution whose window has one position is a dense layer of the inputs in that window."""
        value, window, kernel, owner = node.inputs[0], node.window, entries(node.kernel), node.twin or node
        grid = grid_of(value.shape)
        rows, columns = (
            np.arange(size) * rate - before
            for size, rate, before in zip(window.size, window.dilation, window.before, strict=True)
        )
        rows, columns = rows[:, None, None], columns[:, None]
        inside = (rows >= 0) & (rows < grid[0]) & (columns >= 0) & (columns < grid[1])
        inputs = np.where(inside, (rows * grid[1] + columns) * grid[2] + np.arange(grid[2]), -1)
        used = inputs[inputs >= 0]
        places = self._places_of(value).ravel()[used]
        # A window wholly in the margins has no inputs.
        source = int(places.min() if places.size else self._places_of(value).flat[0])
        if owner.input_order is None:
            owner.input_order = np.argsort(np.argsort(places, kind="stable"), kind="stable")
        if not np.array_equal(places - source, owner.input_order):
            buffer = self._buffer(used.size)
            source = buffer * _BUFFER_STRIDE
            self._move(COPY, buffer, source + owner.input_order, places)
        if owner.packed is None and used.size and node.groups == 1 and kernel.all():
            full = np.empty((kernel.shape[-1], used.size), kernel.dtype)
            full[:, owner.input_order] = kernel.reshape(-1, kernel.shape[-1])[inputs.ravel() >= 0].T
            owner.packed = self._pack_full(node, full)
        if self._needs_packing(owner):
            numbers = np.full(math.prod(grid) + 1, -1)  # the last entry stands for zeros in the margins
            numbers[used] = owner.input_order
            left = np.flatnonzero(kernel != 0)
            i, j, c, unit = np.unravel_index(left, kernel.shape)
            c += unit // (kernel.shape[-1] // node.groups) * kernel.shape[2]
            tap = numbers[inputs[i, j, c]]
            pack = packing.pack_dense if owner.packed is None else packing.pack_single_tile
            owner.packed = self._pack(node, pack, unit, tap, kernel.ravel()[left], used.size)
        units = kernel.shape[-1]
        target = self._buffer(-(-units // _ALIGNMENT) * _ALIGNMENT)
        self.places[node] = (target * _BUFFER_STRIDE + np.arange(units)).reshape(node.shape)
        number, work, clamp = owner.packed, self._prepare_dense(owner.packed), self._clamp(node)

        def row(locate):
            return DenseStep(DENSE, work, number, locate(target * _BUFFER_STRIDE), locate(source), **clamp)

        self._step(DENSE, target, [source], row)

    def _prepare_dense(self, number: int) -> int:
        """Provide the scratch memory that a dense layer needs; returns its work."""
        packed = self.tables.weights[number].packed
        if isinstance(packed, packing.PackedFull) and not self.phases:
            self.scratch = max(self.scratch, kernels.dense_full_scratch(packed))
        return packed.values.size // (4 if self.phases else 1)

    def _needs_packing(self, owner: Node) -> bool:
        """Whether weights of a dense layer are not packed yet, or for one image should be packed in a single tile."""
        if owner.packed is None:
            return True
        return self.phases and packing.needs_single_tile(self.tables.weights[owner.packed].packed)

    def _recurrent(self, node: Node) -> None:
        """A recurrent layer: for each step in time a dense layer of its state, and a CELL.

        The states lie one after the other; the one before the first step in time is 0.
        """
        owner, (count, units) = node.twin or node, node.shape
        places, kind = self._places_of(node.inputs[0]), node.function
        source, steps = affine(places)
        if steps is None:
            source, steps = self._copied(places), (places.shape[1], 1)
        self.limits.check_memory(_ROW_BYTES * count)
        masks = [-1] * count if len(node.inputs) == 1 else self._places_of(node.inputs[1]).ravel().tolist()
        parts = (0, 2 * units, 3 * units) if kind == UPDATE else (0, GATES[kind] * units)
        if self._needs_packing(owner):
            self._pack_recurrent(node, owner, parts)
        number = owner.packed
        room = -(-places.shape[1] // _ALIGNMENT) * _ALIGNMENT + _ALIGNMENT
        states, product, carry = (self._buffer(size) for size in ((count + 1) * units, room, units))
        (function, own), (gate, gates) = node.cell_functions
        functions = function, self._parameters(own), gate, self._parameters(gates)
        first, between, other = (buffer * _BUFFER_STRIDE for buffer in (states, product, carry))
        self.places[node] = first + units + np.arange(count * units).reshape(count, units)
        clamp = {"low": self.tables.constant(-math.inf), "high": self.tables.constant(math.inf)}
        inputs = frozenset().union(buffers_of(source), *({mask >> BUFFER_BITS} for mask in {*masks} - {-1}))
        inner = frozenset((states, product, carry))

        def clear(start):
            return lambda locate: ClearStep(CLEAR, 0, locate(start), maps=1, plane=units, size=units, first=units)

        def multiply(number, target, source):
            work = self._prepare_dense(number)
            return lambda locate: DenseStep(DENSE, work, number, locate(target), locate(source), **clamp)

        def cell(kind, target, previous, at, mask):
            def row(locate):
                near = map(locate, (target, previous, between, other, at))
                return CellStep(CELL, 0, kind, *near, steps[1], units, mask if mask < 0 else locate(mask), *functions)

            return row

        self._step(CLEAR, states, [], clear(first))
        if kind == LSTM:
            self._step(CLEAR, carry, [], clear(other))
        for step in range(count):
            here = count - 1 - step if node.backwards else step
            at, before, after = source + here * steps[0], first + step * units, first + (step + 1) * units
            self._add_step(DENSE, inner, product, multiply(number, between, before))
            if kind == UPDATE:
                self._add_step(CELL, inner | inputs, carry, cell(RESET, other, before, at, -1))
                self._add_step(DENSE, inner, product, multiply(number + 1, between + 2 * units, other))
            self._add_step(CELL, inner | inputs, states, cell(kind, after, before, at, masks[here]))

    def _parameters(self, parameters: tuple[float, ...]) -> int:
        return self.tables.constant(*parameters) if parameters else 0

    def _pack_recurrent(self, node: Node, owner: Node, parts: Sequence[int]) -> None:
        """Pack the columns of a recurrent kernel from each of `parts` to the next, under consecutive numbers."""
        pack = packing.pack_dense if owner.packed is None else packing.pack_single_tile
        kernel, numbers = entries(node.kernel), []
        for first, last in pairwise(parts):
            columns = kernel[:, first:last]
            own = replace(node, scale=node.scale[first:last], shift=node.shift[first:last])
            if columns.all():
                numbers.append(self._pack_full(own, columns.T))
                continue
            left = np.flatnonzero(columns != 0)
            tap, unit = np.unravel_index(left, columns.shape)
            numbers.append(self._pack(own, pack, unit, tap, columns.ravel()[left], len(kernel)))
        owner.packed = numbers[0]

    def _pack(self, node: Node, pack: Callable, unit: np.ndarray, tap: np.ndarray, value: np.ndarray, taps: int) -> int:
        """Pack weights, given the unit, input and entry of each; returns their number in the table of weights."""
        units = node.scale.size
        kept = tap >= 0
        unit, tap, value = (
            unit[kept].astype(np.min_scalar_type(units)),
            tap[kept].astype(np.min_scalar_type(taps)),
            value[kept],
        )
        order = np.lexsort((tap, unit))
        value, codebook = self._values(node, value)
        packed = pack(unit[order].astype(np.int64), tap[order].astype(np.int64), value[order], codebook, units, taps)
        return self._add_weights(node, packed)

    def _pack_full(self, node: Node, entries: np.ndarray) -> int:
        """Pack the weights of a layer without a pruned one, given the entries `(units, taps)`; returns their number."""
        return self._add_weights(node, packing.pack_full(*self._values(node, entries)))

    @staticmethod
    def _values(node: Node, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Values of entries of a kernel, none of them pruned, and their codebook, or None where floats take less."""
        if not isinstance(node.kernel, SharedWeight):
            return entries, None
        codebook, value = node.kernel.codebook, entries - 1  # entry 0 is a pruned weight
        index = np.min_scalar_type(max(codebook.size - 1, 0))
        if index.itemsize * value.size + codebook.nbytes < 4 * value.size:
            return value.astype(index), codebook
        return codebook[value], None

    def _add_weights(self, node: Node, packed: packing.PackedConv | packing.PackedDense | packing.PackedFull) -> int:
        scale, shift = self.tables.constant(node.scale), self.tables.constant(node.shift)
        self.tables.weights.append(StepWeights(packed, scale, shift))
        return len(self.tables.weights) - 1

    # Memory

    def program(self) -> Program:
        """Allocate the buffers and return the finished program."""
        operations = [step.op for step in self.steps]
        maps = [i for i, op in enumerate(operations) if op in (CONVOLUTION, *POOLS)]
        later = range(max(maps, default=0), len(operations))
        tail = next((i for i in later if operations[i] == DENSE), len(operations))
        lifetimes = {buffer: [len(operations), -1] for buffer in range(len(self.sizes))}
        for i, step in enumerate(self.steps):
            for buffer in step.reads | ({step.writes} - {None}):
                lifetimes[buffer] = [min(lifetimes[buffer][0], i), max(lifetimes[buffer][1], i)]
        cleared = self.padded.keys() if sum(self.sizes[buffer] for buffer in self.padded) > _MAX_KEPT else set()
        for buffer in self.padded.keys() - cleared:
            lifetimes[buffer] = [0, len(operations)]
        common = [buffer for buffer, (_, last) in lifetimes.items() if last < tail or tail == len(operations)]
        per_block = sorted(lifetimes.keys() - {*common})
        self.starts = bases = np.zeros(len(self.sizes), np.int64)
        size = self._allocate(common, lifetimes, bases, 0)
        block = self._allocate(per_block, lifetimes, bases, size) - size
        self.common = size
        self.limits.check_memory(((size + block) * self.lanes + self.scratch) * _FLOAT)

        def locate(place):
            return bases[place >> BUFFER_BITS] + place % _BUFFER_STRIDE

        rows, layers, cleared_before_tail = [], [], 0
        for i, step in enumerate(self.steps):
            own = [*self._clear(step.writes)] if step.writes in cleared else []
            cleared_before_tail += len(own) * (i < tail)
            rows += [*own, step.row(locate)]
            layers += [step.layer] * (len(own) + 1)
        table = np.zeros((len(rows), STEP_COLUMNS), np.int64)
        for line, row in zip(table, rows, strict=True):
            line[: len(row)] = row
        return Program(table, tuple(layers), tail + cleared_before_tail, size, block, self.scratch)

    def _clear(self, buffer: int) -> Iterator[ClearStep]:
        """The steps that set the margins of a buffer to 0."""
        layout, grid = self.padded[buffer]
        for offset, size, first, rows, width in layout.gaps(grid):
            yield ClearStep(
                CLEAR,
                work=0,
                target=self.starts[buffer] + offset,
                maps=grid[2],
                plane=layout.plane,
                size=size,
                first=first,
                rows=rows,
                pitch=layout.pitch if rows else 0,
                width=width,
            )

    def _allocate(self, buffers: list[int], lifetimes: dict[int, list[int]], bases: np.ndarray, start: int) -> int:
        """Give each buffer, largest first, the first places free during its lifetime; returns the end of all places."""
        order = sorted(buffers, key=lambda buffer: -self.sizes[buffer])
        sizes = -(-np.array([self.sizes[buffer] for buffer in order], np.int64) // _ALIGNMENT) * _ALIGNMENT
        first, last = np.array([lifetimes[buffer] for buffer in order], np.int64).reshape(-1, 2).T.copy()
        bases[order] = low = first_fit(sizes, first, last, start)
        return int((low + sizes).max(initial=start))
