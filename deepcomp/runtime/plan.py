"""A network as a plan: tables of steps over one stretch of memory, and the weights, still compressed.

A plan is data: whoever runs it walks a table of steps. Activations are planar, [channel][row][column]; a place is a
position in the memory, and each position holds as many images as run at once. A value on its way through the network
knows the places of its elements: flattening, reshaping, permuting, padding with zeros and concatenating move nothing.

There are two tables over the same weights. The one for many images keeps a convolution's input as one padded picture
a channel; in the one for a single image a convolution of stride s finds the s x s phases of the picture apart, so that
neighbouring outputs read neighbouring places.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from deepcomp.dcz.network import Network, SharedWeight, entries
from deepcomp.runtime import kernels
from deepcomp.runtime.lowering import Lowered, Node, Shape, Value, Window, add_margins, grid_of, trace
from deepcomp.runtime.opcodes import (
    ADD,
    CLEAR,
    COLUMNS,
    CONVOLUTION,
    COPY,
    DENSE,
    GIVE,
    MAP,
    MOVE,
    MULTIPLY,
    POOLS,
    SCALE,
    SOFTMAX,
    TAKE,
    WORK,
)

_ALIGNMENT = 16  # positions
_LONE = 2**14  # positions: padded pictures up to this together keep their places to themselves
_BUFFER = 2**40  # place p of buffer b is b * _BUFFER + p until the buffers have found their places


@dataclass(frozen=True, eq=False)
class Weights:
    """The kernel of one step, packed; what its outputs are scaled by and shifted by (numbers of constants)."""

    packed: kernels.Runs | kernels.Cells
    scale: int
    shift: int


@dataclass(frozen=True, eq=False)
class Schedule:
    """A table of steps, `int64 (steps, COLUMNS)`.

    From step `tail` on the steps treat several blocks of images at once; before, one after the other. The first `size`
    places of the memory serve any block; then come `block` places for each. `scratch` floats are needed beside.
    """

    steps: np.ndarray
    tail: int
    size: int
    block: int
    scratch: int

    @property
    def work(self) -> int:
        """The vector operations of all steps: for a block of images, or for an image."""
        return int(self.steps[:, WORK].sum())


@dataclass(frozen=True, eq=False)
class Plan:
    """All that runs a network: `many` treats blocks of images, `one` an image; both share weights and constants."""

    input_shape: Shape
    output_shape: Shape
    many: Schedule
    one: Schedule
    weights: tuple[Weights, ...]
    constants: np.ndarray
    moves: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, network: Network) -> "Plan":
        """The plan of a network. Raises `UnsupportedLayerError` as `network.output_shapes`."""
        lowered, pools = Lowered(network), _Pools()
        many, one = (_Schedule(lowered, pools, phases).finished() for phases in (False, True))
        tables = (np.concatenate(pool) for pool in (pools.constants, pools.moves, pools.offsets))
        return cls(network.input_shape, lowered.output.shape, many, one, tuple(pools.weights), *tables)

    @property
    def weight_bytes(self) -> int:
        """What the weights take in memory, in bytes: with codebooks, and the constants."""
        return sum(weights.packed.nbytes for weights in self.weights) + self.constants.nbytes


@dataclass(frozen=True)
class _Layout:
    """Where a planar picture lies: channel c of row y, column x, counted without the margins, at `place(y, x, c)`.

    `phases` (sy, sx): every sy-th row and sx-th column make a picture of their own.
    """

    margins: tuple[int, int, int, int]
    phases: tuple[int, int]
    pitch: int
    phase: int  # places of one phase
    plane: int  # places of one channel

    @classmethod
    def of(cls, grid: tuple[int, int, int], margins=(0, 0, 0, 0), phases=(1, 1)) -> "_Layout":
        """The layout of a picture of `grid` rows, columns and channels."""
        rows = -(-(margins[0] + grid[0] + margins[1]) // phases[0])
        pitch = -(-(margins[2] + grid[1] + margins[3]) // phases[1])
        return cls(margins, phases, pitch, rows * pitch, phases[0] * phases[1] * rows * pitch)

    def place(self, y, x, c):
        """The place of numbers or of arrays of them."""
        (sy, sx), y, x = self.phases, y + self.margins[0], x + self.margins[2]
        return c * self.plane + (y % sy * sx + x % sx) * self.phase + y // sy * self.pitch + x // sx

    def places(self, grid: tuple[int, int, int], margins=(0, 0, 0, 0)) -> np.ndarray:
        """The places of a whole picture and of some of its margins."""
        top, bottom, left, right = margins
        rows, columns, channels = (
            np.arange(-top, grid[0] + bottom),
            np.arange(-left, grid[1] + right),
            np.arange(grid[2]),
        )
        return self.place(rows[:, None, None], columns[:, None], channels)


@dataclass(eq=False)
class _Step:
    """A step before the buffers have their places: `row` makes its row, given what turns places into final ones."""

    op: int
    reads: frozenset[int]
    writes: int | None
    row: Callable[[Callable], Sequence[int]]
    work: int


class _Pools:
    """What the two tables share."""

    def __init__(self) -> None:
        self.constants: list[np.ndarray] = []
        self.moves: list[np.ndarray] = [np.zeros((0, MOVE), np.int32)]
        self.offsets: list[np.ndarray] = [np.zeros(0, np.int32)]
        self.weights: list[Weights] = []
        self._numbers: dict[bytes, int] = {}

    def constant(self, *values: float | np.ndarray) -> int:
        """The number of the first of these constants; they begin on a boundary of `_ALIGNMENT`."""
        array = np.concatenate([np.atleast_1d(np.asarray(value, np.float32)) for value in values])
        key = array.tobytes()
        if key not in self._numbers:
            self._numbers[key] = sum(map(len, self.constants))
            self.constants.append(np.pad(array, (0, -len(array) % _ALIGNMENT)))
        return self._numbers[key]

    @staticmethod
    def append(pool: list[np.ndarray], array: np.ndarray) -> int:
        """The number of the first of these rows in the pool."""
        pool.append(array)
        return sum(map(len, pool[:-1]))


class _Schedule:
    """Lays out what the nodes put out and makes their steps."""

    def __init__(self, lowered: Lowered, pools: _Pools, phases: bool):
        self.lowered, self.pools, self.phases = lowered, pools, phases
        self.sizes: list[int] = []  # of the buffers
        self.padded: list[bool] = []
        self.steps: list[_Step] = []
        self.layouts: dict[Node, _Layout] = {}
        self.bases: dict[Node, int] = {}
        self.at: dict[Node, np.ndarray] = {}
        self.scratch = 0
        self.wants: dict[Node, list] = {node: [] for node in lowered.nodes}
        for node in lowered.nodes:
            for value in node.inputs:
                if node.op == CONVOLUTION:
                    self._want(value, self._phases(node.window), node.window.around)
                elif node.op in POOLS:
                    self._want(value, (1, 1), (0, 0, 0, 0))
                else:
                    self._want(value, None, (0, 0, 0, 0))
        self._want(lowered.output, None, (0, 0, 0, 0))
        made = {CONVOLUTION: self._convolution, DENSE: self._dense, SOFTMAX: self._softmax}
        made.update(dict.fromkeys(POOLS, self._pool))
        for node in lowered.nodes:
            made.get(node.op, self._elementwise)(node)
        source = self._places(lowered.output)
        self._move(GIVE, None, np.arange(source.size).reshape(source.shape), source)

    def _phases(self, window: Window) -> tuple[int, int]:
        return window.strides if self.phases else (1, 1)

    # Layouts

    def _want(self, value: Value, phases: tuple[int, int] | None, margins: tuple[int, ...]) -> None:
        """Note for the node behind a value how its picture is read: in which phases, None for any."""
        traced = trace(value)
        if traced is not None:
            node, own = traced
            self.wants[node] += [(None, own), (phases, add_margins(own, margins))]
        for part in value.parts if traced is None else ():
            self._want(part, None, (0, 0, 0, 0))

    def _lay(self, node: Node) -> int:
        """Give what a node puts out a layout and a buffer; returns the buffer."""
        wants = self.wants[node]
        wanted = {phases for phases, _ in wants if phases is not None}
        phases = min(wanted, default=(1, 1))
        if node.op in POOLS or (node.op == CONVOLUTION and max(phases) > 2):  # which cannot write to phases, or so many
            phases = (1, 1)
        fitting = [margins for these, margins in wants if these in (None, phases)]
        margins = tuple(map(max, zip((0, 0, 0, 0), *fitting, strict=True)))
        grid = grid_of(node.shape)
        layout = self.layouts[node] = _Layout.of(grid, margins, phases)
        buffer = self._buffer(layout.plane * grid[2], any(margins))
        self.bases[node] = buffer * _BUFFER
        self.at[node] = (buffer * _BUFFER + layout.places(grid)).reshape(node.shape)
        return buffer

    def _buffer(self, size: int, padded: bool = False) -> int:
        self.sizes.append(size)
        self.padded.append(padded)
        return len(self.sizes) - 1

    def _places(self, value: Value) -> np.ndarray:
        traced = trace(value)
        if value.node is not None:
            return self.at[value.node]
        if traced is not None:
            node, margins = traced
            places = self.layouts[node].places(grid_of(node.shape), margins)
            return (self.bases[node] + places).reshape(value.shape)
        return value.arrange(*map(self._places, value.parts))

    def _picture(
        self, value: Value, phases: tuple[int, int], margins: tuple[int, ...]
    ) -> tuple[int, _Layout, int, int]:
        """A picture as a window needs it, copied if it is not there: base, layout, row and column of its corner.

        The corner is that of the picture with these margins around it.
        """
        traced = trace(value)
        if traced is not None:
            node, own = traced
            layout, needed = self.layouts[node], add_margins(own, margins)
            if layout.phases == phases and all(a >= b for a, b in zip(layout.margins, needed, strict=True)):
                return self.bases[node], layout, -needed[0], -needed[2]
        grid = grid_of(value.shape)
        places = self._places(value).reshape(grid)
        if phases == (1, 1) and not any(margins):
            base = int(places[0, 0, 0])
            pitch = int(places[1, 0, 0]) - base if grid[0] > 1 else grid[1]
            plane = int(places[0, 0, 1]) - base if grid[2] > 1 else pitch * grid[0]
            layout = _Layout((0, 0, 0, 0), (1, 1), pitch, plane, plane)
            inside = base // _BUFFER == places.max() // _BUFFER
            if inside and pitch >= grid[1] and np.array_equal(places, base + layout.places(grid)):
                return base, layout, 0, 0
        layout = _Layout.of(grid, margins, phases)
        buffer = self._buffer(layout.plane * grid[2], any(margins))
        self._move(COPY, buffer, buffer * _BUFFER + layout.places(grid), places)
        return buffer * _BUFFER, layout, -margins[0], -margins[2]

    # Steps

    def _step(
        self, op: int, writes: int | None, reads: Sequence[np.ndarray | int], row: Callable, work: int = 0
    ) -> None:
        numbers = frozenset(int(number) for places in reads for number in np.unique(np.asarray(places) // _BUFFER))
        self.steps.append(_Step(op, numbers, writes, row, work))

    def _move(self, op, writes, target, source, other=None, others_move=False, extra=()) -> None:
        """A step that goes by moves; TAKE and GIVE have no places on one side."""
        reads = [] if op == TAKE else [source]
        if others_move:
            reads.append(other)

        def row(locate):
            final = (
                target if op == GIVE else locate(target),
                source if op == TAKE else locate(source),
                np.zeros_like(source) if other is None else locate(other) if others_move else other,
            )
            moves = _moves(*(np.broadcast_to(places, target.shape).ravel() for places in final))
            return self.pools.append(self.pools.moves, moves), len(moves), *extra

        self._step(op, writes, reads, row)

    def _elementwise(self, node: Node) -> None:
        sources = [self._places(value) for value in node.inputs]
        buffer = self._lay(node)
        target, other, extra = self.at[node], None, ()
        if node.op == TAKE:
            sources = [np.arange(target.size).reshape(target.shape)]
        clamp = (self.pools.constant(node.low), self.pools.constant(node.high))
        if node.op in (ADD, MULTIPLY):
            sources, other, extra = sources[:1], sources[1], clamp
        elif node.op == SCALE:
            scale = self.pools.constant(node.scale)
            other = scale + (np.arange(len(node.scale)) if len(node.scale) > 1 else np.zeros(1, np.int64))
            extra = (*clamp, self.pools.constant(node.shift) - scale)
        elif node.op == MAP:
            extra = (node.function, self.pools.constant(*node.parameters) if node.parameters else 0)
        self._move(node.op, buffer, target, sources[0], other, node.op in (ADD, MULTIPLY), extra)

    def _softmax(self, node: Node) -> None:
        """Columns: target, source, rows, size of a row."""
        source = self._places(node.inputs[0])
        base, rows = source.min(), source.size // node.shape[-1]
        order = source - base
        if not np.array_equal(np.sort(order.reshape(rows, -1)), np.arange(source.size).reshape(rows, -1)):
            buffer = self._buffer(source.size)
            order = np.arange(source.size).reshape(node.shape)
            base = buffer * _BUFFER
            self._move(COPY, buffer, base + order, source)
        target = self._buffer(source.size)
        self.at[node] = target * _BUFFER + order
        self._step(
            SOFTMAX,
            target,
            [base],
            lambda locate: (locate(target * _BUFFER), locate(base), rows, node.shape[-1]),
        )

    def _pool(self, node: Node) -> None:
        """Columns: target, plane, pitch, source, plane, pitch, channels, rows, columns, then (rows, columns) each of

        what comes out, the window, its strides and the padding before.
        """
        window, (rows, columns, channels) = node.window, grid_of(node.inputs[0].shape)
        base, layout, y, x = self._picture(node.inputs[0], (1, 1), (0, 0, 0, 0))
        buffer = self._lay(node)
        out, start, source = self.layouts[node], self.bases[node], base + layout.place(y, x, 0)
        sizes = (channels, rows, columns, *window.counts, *window.size, *window.strides, *window.before)
        self._step(
            node.op,
            buffer,
            [base],
            lambda locate: (
                locate(start + out.place(0, 0, 0)),
                out.plane,
                out.pitch,
                locate(source),
                layout.plane,
                layout.pitch,
                *sizes,
            ),
        )

    def _convolution(self, node: Node) -> None:
        """Columns: weights, target, plane, pitch, source, its steps down and right, rows, columns, pool, low, high,

        first offset, units of a group, places between groups; of an image alone, whose target is that of a row above
        the margin, rows of the margin, phases of rows, places between these, places to the odd columns or 0.
        """
        window, kernel = node.window, entries(node.kernel)
        base, layout, y, x = self._picture(node.inputs[0], self._phases(window), window.around)
        buffer = self._lay(node)
        out, start, source = self.layouts[node], self.bases[node], base + layout.place(y, x, 0)
        taps = [np.arange(size) for size in kernel.shape[:3]]
        down, right = (taps[axis] * window.dilation[axis] for axis in (0, 1))
        offsets = layout.place(y + down[:, None], x + right, taps[2][:, None, None]) - layout.place(y, x, 0)
        if node.packed is None:
            left = np.flatnonzero(kernel != 0)
            i, j, c, unit = np.unravel_index(left, kernel.shape)
            tap = (c * kernel.shape[0] + i) * kernel.shape[1] + j
            node.packed = self._pack(node, kernels.pack_conv, unit, tap, kernel.ravel()[left], offsets.size)
        runs = self.pools.weights[node.packed].packed
        strides = (1, 1) if self.phases else window.strides
        steps = (strides[0] * layout.pitch, strides[1])
        if self.phases:
            scratch = kernels.conv_positions_scratch(runs.longest, window.counts[0], steps[0])
        else:
            scratch = kernels.conv_lanes_scratch(runs.longest)
        self.scratch = max(self.scratch, scratch)
        work = len(runs.taps) * (
            -(-window.counts[0] * steps[0] // kernels.WIDTH) if self.phases else math.prod(window.counts)
        )
        first = self.pools.append(self.pools.offsets, offsets.ravel().astype(np.int32))
        units = kernel.shape[-1] // node.groups
        settings = (
            *window.counts,
            node.pool,
            self.pools.constant(node.low),
            self.pools.constant(node.high),
            first,
            units,
        )
        between = kernel.shape[2] * layout.plane if node.groups > 1 else 0
        (down, right), top = out.phases, out.margins[0] if self.phases else 0
        odd = out.place(0, 1, 0) - out.place(0, 0, 0) if right > 1 else 0
        phases = (top, down, right * out.phase, odd)
        self._step(
            CONVOLUTION,
            buffer,
            [base],
            lambda locate: (
                *(node.packed, locate(start + out.place(-top, 0, 0)), out.plane, out.pitch),
                *(locate(source), *steps, *settings, between, *phases),
            ),
            work,
        )

    def _dense(self, node: Node) -> None:
        """Columns: weights, target, source, units, low, high.

        A window that fits once is a dense layer of what lies in it.
        """
        value, window, kernel = node.inputs[0], node.window, entries(node.kernel)
        grid = grid_of(value.shape)
        margins = [*zip(window.before, window.after, strict=True), (0, 0)]
        inputs = np.pad(np.arange(math.prod(grid)).reshape(grid), margins, constant_values=-1)
        corner = [
            slice(0, (size - 1) * rate + 1, rate) for size, rate in zip(window.size, window.dilation, strict=True)
        ]
        inputs = inputs[tuple(corner)]
        used = inputs[inputs >= 0]
        places = self._places(value).ravel()[used]
        source = int(places.min())
        if node.numbering is None:
            node.numbering = np.argsort(np.argsort(places, kind="stable"), kind="stable")
        if not np.array_equal(places - source, node.numbering):
            buffer = self._buffer(used.size)
            source = buffer * _BUFFER
            self._move(COPY, buffer, source + node.numbering, places)
        if node.packed is None or (self.phases and kernels.deserves_whole(self.pools.weights[node.packed].packed)):
            numbers = np.full(math.prod(grid) + 1, -1)  # the last one for zeros in the margins
            numbers[used] = node.numbering
            left = np.flatnonzero(kernel != 0)
            i, j, c, unit = np.unravel_index(left, kernel.shape)
            c += unit // (kernel.shape[-1] // node.groups) * kernel.shape[2]
            tap = numbers[inputs[i, j, c]]
            pack = kernels.pack_dense if node.packed is None else kernels.pack_whole
            node.packed = self._pack(node, pack, unit, tap, kernel.ravel()[left], used.size)
        cells = self.pools.weights[node.packed].packed
        units = kernel.shape[-1]
        target = self._buffer(-(-units // _ALIGNMENT) * _ALIGNMENT)
        self.at[node] = (target * _BUFFER + np.arange(units)).reshape(node.shape)
        clamp = (self.pools.constant(node.low), self.pools.constant(node.high))
        packed, work = node.packed, len(cells.taps) // (4 if self.phases else 1)
        self._step(
            DENSE,
            target,
            [source],
            lambda locate: (packed, locate(target * _BUFFER), locate(source), units, *clamp),
            work,
        )

    def _pack(self, node: Node, pack: Callable, unit: np.ndarray, tap: np.ndarray, value: np.ndarray, taps: int) -> int:
        """Pack the weights of a node, given for each its unit, its input and its entry; returns their number."""
        units = node.scale.size
        kept = tap >= 0
        unit, tap, value = (
            unit[kept].astype(np.min_scalar_type(units)),
            tap[kept].astype(np.min_scalar_type(taps)),
            value[kept],
        )
        order = np.lexsort((tap, unit))
        codebook = None
        if isinstance(node.kernel, SharedWeight):
            codebook, value = node.kernel.codebook, value - 1  # entry 0 is a weight that is not there
            index = np.min_scalar_type(max(codebook.size - 1, 0))
            if index.itemsize * value.size + codebook.nbytes < 4 * value.size:
                value = value.astype(index)
            else:
                value, codebook = codebook[value], None
        packed = pack(unit[order].astype(np.int64), tap[order].astype(np.int64), value[order], codebook, units, taps)
        scale, shift = self.pools.constant(node.scale), self.pools.constant(node.shift)
        self.pools.weights.append(Weights(packed, scale, shift))
        return len(self.pools.weights) - 1

    # Memory

    def finished(self) -> Schedule:
        """The table, once every buffer has found its places."""
        operations = [step.op for step in self.steps]
        pictures = [i for i, op in enumerate(operations) if op in (CONVOLUTION, *POOLS)]
        later = range(max(pictures, default=0), len(operations))
        tail = next((i for i in later if operations[i] == DENSE), len(operations))
        lives = {buffer: [len(operations), -1] for buffer in range(len(self.sizes))}
        for i, step in enumerate(self.steps):
            for buffer in step.reads | ({step.writes} - {None}):
                lives[buffer] = [min(lives[buffer][0], i), max(lives[buffer][1], i)]
        padded = sum(size for size, has in zip(self.sizes, self.padded, strict=True) if has)
        cleared = {buffer for buffer, has in enumerate(self.padded) if has and padded > _LONE}
        for buffer, has in enumerate(self.padded):
            if has and buffer not in cleared:
                lives[buffer] = [0, len(operations)]
        inner = [buffer for buffer, (_, last) in lives.items() if last < tail or tail == len(operations)]
        outer = [buffer for buffer in lives if buffer not in {*inner}]
        bases = np.zeros(len(self.sizes), np.int64)
        size = self._allocate(inner, lives, bases, 0)
        block = self._allocate(outer, lives, bases, size) - size

        def locate(places):
            return bases[places // _BUFFER] + places % _BUFFER

        rows, work, before = [], [], 0
        for i, step in enumerate(self.steps):
            if step.writes in cleared:
                rows.append((CLEAR, bases[step.writes], self.sizes[step.writes]))
                work.append(0)
                before += i < tail
            rows.append((step.op, *step.row(locate)))
            work.append(step.work)
        table = np.zeros((len(rows), COLUMNS), np.int64)
        for row, columns in zip(table, rows, strict=True):
            row[: len(columns)] = columns
        table[:, WORK] = work
        return Schedule(table, tail + before, size, block, self.scratch)

    def _allocate(self, buffers: list[int], lives: dict[int, list[int]], bases: np.ndarray, start: int) -> int:
        """Give each buffer the first places that are free all its life, the largest first; returns where they end."""
        placed: list[tuple[int, int, int]] = []  # base, end, buffer
        for buffer in sorted(buffers, key=lambda buffer: -self.sizes[buffer]):
            first, last = lives[buffer]
            base, size = start, -(-self.sizes[buffer] // _ALIGNMENT) * _ALIGNMENT
            for low, high, other in sorted(placed):
                if lives[other][0] <= last and first <= lives[other][1]:
                    if base + size <= low:
                        break
                    base = max(base, high)
            bases[buffer] = base
            placed.append((base, base + size, buffer))
        return max((high for _, high, _ in placed), default=start)


def _moves(target: np.ndarray, source: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The fewest moves, in the order of their targets, that reach all of them: `int32 (moves, MOVE)`."""
    order = np.argsort(target, kind="stable")
    places = np.stack([target[order], source[order], other[order]])
    steps = np.diff(places)
    number = np.arange(places.shape[1])
    torn = np.ones(number.size, bool)
    torn[1:] = steps[0] != 1
    turned = torn.copy()
    turned[2:] |= (steps[1:, 1:] != steps[1:, :-1]).any(axis=0)
    # Where the step changes twice in a row, the first change is the jump to the next move, the second one no end.
    begins = torn | (turned & ~np.concatenate([[False], turned[:-1]]))
    since = number - np.maximum.accumulate(np.where(begins, number, 0))
    first = np.flatnonzero(turned & (since % 2 == 0))
    count = np.diff(first, append=number.size)
    step = np.where(count > 1, steps[1:, np.minimum(first, number.size - 2)], 1) if number.size > 1 else [[1], [0]]
    return np.stack([*places[:, first], *step, count], axis=1).astype(np.int32)
