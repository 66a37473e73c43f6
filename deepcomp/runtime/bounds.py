"""Proves that a plan is safe: kernels touch nothing outside of their arena, their tables and their weights.

No kernel checks a bound, and a file decides shapes, strides and weights. So when a plan is made, each step is checked
once: all places and table entries that it can touch, and all offsets that its integer types must hold. Everything is
computed on Python's integers or on int64 that cannot overflow. What cannot be proved is a `FormatError`.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from deepcomp.errors import FormatError
from deepcomp.runtime import kernels, packing, rows
from deepcomp.runtime.packing import PackedConv, PackedDense, PackedFull, PackedTable
from deepcomp.runtime.vectors import AVERAGE, FLOAT32, MAX, NONE, SHORT, UINT8, UINT16, WIDTH

if TYPE_CHECKING:
    from deepcomp.runtime.plan import Plan, Program, StepWeights

SLACK = 64  # floats after the last place of an arena: vectors read past the end
_INT32 = 2**31 - 1
_PARAMETERS = {
    **{rows.RELU: 3, rows.LEAKY_RELU: 1, rows.ELU: 1, rows.CELU: 1, rows.HARD_SHRINK: 1, rows.SOFT_SHRINK: 1},
    **{rows.SQUAREPLUS: 1, rows.DIFFERS: 1},
}  # that a function reads
_FUNCTIONS = len(rows.FUNCTIONS)
_VALUE_TYPES = {UINT8: np.uint8, SHORT: np.uint8, UINT16: np.uint16, FLOAT32: np.float32}


def as_int32(array: np.ndarray, unit: int, what: str) -> np.ndarray:
    """Integers as int32. Raises `FormatError` where one of them times `unit` does not fit."""
    if array.size and max(-int(array.min()), int(array.max())) * unit > _INT32:
        raise FormatError(f"The network is too large to run: the places {what} do not fit 32 bits.")
    return array.astype(np.int32)


def prove(plan: "Plan") -> None:
    """Raise `FormatError` unless the programs of a plan are safe to run."""
    for number, weights in enumerate(plan.weights):
        _require(_weights_are_safe(plan, weights), f"weights {number}")
    for program, lanes in ((plan.batched, WIDTH), (plan.single, 1)):
        if program is not None:
            _Proof(plan, program, lanes).run()


def _unsafe(what: str) -> FormatError:
    return FormatError(f"The network cannot be proved safe to run: {what} may leave the memory.")


def _require(safe: Any, what: str) -> None:
    if not safe:
        raise _unsafe(what)


def _weights_are_safe(plan: "Plan", weights: "StepWeights") -> bool:
    """Whether weights index their own arrays and the plan's constants only, wherever their inputs may lie."""
    if isinstance(weights.packed, PackedTable):
        return _table_is_safe(weights.packed)
    packed, units = weights.packed, -(-weights.packed.units // WIDTH) * WIDTH
    safe = [
        packed.kind != SHORT or packed.codebook.size == 2 * WIDTH,
        min(weights.scale, weights.shift) >= 0,
        max(weights.scale, weights.shift) + units <= plan.constants.size,
    ]
    if isinstance(packed, PackedFull):
        return all(safe) and _full_is_safe(packed)
    count = packed.taps.size - WIDTH  # a vector may be read from the last weight on
    decodes = packed.kind != FLOAT32 and (packed.starts[-1] if isinstance(packed, PackedConv) else packed.counts.any())
    safe += [
        packed.values.size == packed.taps.size,
        not decodes or int(packed.values.max()) < packed.codebook.size,
    ]
    if isinstance(packed, PackedConv):
        starts = packed.starts.astype(np.int64)
        most = np.diff(starts[:: packed.tiles])
        safe += [
            starts.size == packed.units * packed.tiles + 1,
            starts[0] == 0 and starts[-1] <= count,
            bool((np.diff(starts) >= 0).all()),
            int(most.max(initial=0)) <= packed.longest,
        ]
    else:
        spans = -(-packed.units // packed.span)
        counts = packed.counts.astype(np.int64)
        groups = counts.reshape(spans * packed.tiles, -1, WIDTH)
        first, slots = packed.starts.astype(np.int64).T
        ends = first + WIDTH * groups[:, :, 0].sum(axis=1)
        read = np.arange(packed.span) < -(-slots[:, None] // WIDTH) * WIDTH  # slots of a cell
        unit = np.repeat(np.arange(spans), packed.tiles)[:, None] * packed.span + packed.members.reshape(len(first), -1)
        safe += [
            packed.span % WIDTH == 0 and packed.span <= 2**8,  # uint8 members
            first.size == slots.size == spans * packed.tiles,
            packed.members.size == packed.counts.size == first.size * packed.span,
            bool(((slots >= 0) & (slots <= packed.span)).all()),
            bool((groups <= groups[:, :, :1]).all()),  # the first slot of a group is the longest
            bool((first >= 0).all()),
            bool((ends <= np.append(first[1:], count)).all()),
            bool((unit[read] < units).all()),
            packed.tile <= packing.TILE,  # uint16 taps
        ]
    return all(safe)


def _full_is_safe(packed: PackedFull) -> bool:
    """Whether weights without a pruned one index their own arrays only."""
    beyond = 0 if packed.kind == FLOAT32 else WIDTH  # floats are read in place, indices in vectors
    return (
        packed.values.dtype == _VALUE_TYPES[packed.kind]
        and min(packed.units, packed.taps) > 0
        and packed.units * packed.taps + beyond <= packed.values.size
        and (packed.kind == FLOAT32 or int(packed.values.max()) < packed.codebook.size)
    )


def _table_is_safe(packed: PackedTable) -> bool:
    """Whether a table indexes its own arrays only, and whether a float tells its rows apart."""
    return (
        packed.kind != SHORT
        and packed.values.dtype == _VALUE_TYPES[packed.kind]
        and packed.values.size == packed.rows * packed.units
        and 0 < packed.rows <= 2**24
        and packed.units > 0
        and (packed.kind == FLOAT32 or int(packed.values.max()) < packed.codebook.size)
    )


class _Proof:
    """The proof for one program, where each place holds `lanes` floats."""

    def __init__(self, plan: "Plan", program: "Program", lanes: int):
        self.plan, self.program, self.lanes = plan, program, lanes

    def run(self) -> None:
        """Raise `FormatError` unless every step is safe."""
        program = self.program
        _require(0 <= program.tail <= len(program.steps) and min(program.size, program.block) >= 0, "the program")
        check: dict[type, Callable[[Any], None]] = {
            rows.MoveStep: self._moves,
            rows.ClearStep: self._clear,
            rows.SoftmaxStep: self._softmax,
            rows.NormalizeStep: self._normalize,
            rows.MatmulStep: self._matmul,
            rows.GatherStep: self._gather,
            rows.CellStep: self._cell,
            rows.PoolStep: self._pool,
            rows.ConvolutionStep: self._convolution,
            rows.DenseStep: self._dense,
        }
        for row in program.steps.tolist():
            step = rows.step_of(row)
            check[type(step)](step)

    def _within(self, low: Any, high: Any) -> Any:
        """Whether places, both ends included, lie among those that all blocks share or among those of one block.

        A kernel knows by the first place of a step or a move which of the two it is.
        """
        size, block = self.program.size, self.program.block
        return ((low >= 0) & (low <= high) & (high < size)) | ((low >= size) & (low <= high) & (high < size + block))

    def _touches(self, what: str, start: int, count: int) -> None:
        _require(count >= 0 and (not count or self._within(start, start + count - 1)), what)

    def _box(self, what: str, base: int, *axes: tuple[int, int], shift: int = 0) -> None:
        """Require the places from `base + shift` on, along axes of (count, step), to lie where `base` lies."""
        _require(all(count > 0 for count, _ in axes), what)
        ends = [step * (count - 1) for count, step in axes]
        low, high = (base + shift + sum(bound(end, 0) for end in ends) for bound in (min, max))
        _require(self._within(low, high) and (base < self.program.size) == (low < self.program.size), what)

    def _constants(self, *numbers: int) -> None:
        _require(all(0 <= number < self.plan.constants.size for number in numbers), "a constant")

    def _moves(self, step: rows.MoveStep) -> None:
        plan, what = self.plan, f"a list of moves of operation {step.op}"
        _require(step.first_move >= 0 and 0 <= step.moves <= len(plan.moves) - step.first_move, what)
        table = plan.moves[step.first_move : step.first_move + step.moves].astype(np.int64)
        target, source, other, stride, other_stride, count = table.T

        def ends(first, by):
            last = first + by * (count - 1)
            return np.minimum(first, last), np.maximum(first, last)

        def inside(first, by, limit):
            low, high = ends(first, by)
            return (low >= 0) & (high < limit)

        def within(first, by):
            low, high = ends(first, by)
            return self._within(low, high)

        safe = [count >= 1]
        if step.op == rows.OUTPUT:
            safe.append(inside(target, 1, plan.ends.output_floats))
        else:
            safe.append(within(target, 1))
        if step.op == rows.INPUT:
            safe.append(inside(source, stride, plan.ends.input_floats))
        else:
            safe.append(within(source, stride))
        if step.op in rows.MERGES:
            safe.append(within(other, other_stride))
        elif step.op == rows.SCALE:
            safe += [inside(other + shift, other_stride, plan.constants.size) for shift in (0, step.shift)]
        elif step.op == rows.MAP:
            self._function(what, step.function, step.parameters)
        if step.op in (*rows.MERGES, rows.SCALE):
            self._constants(step.low, step.high)
        _require(all(bool(one.all()) for one in safe), what)

    def _function(self, what: str, function: int, parameters: int) -> None:
        _require(0 <= function < _FUNCTIONS, what)
        self._constants(*range(parameters, parameters + _PARAMETERS.get(function, 0)))

    def _cell(self, step: rows.CellStep) -> None:
        what = "a recurrent layer"
        _require(0 <= step.kind < len(rows.GATES) and step.units > 0, what)
        gates = rows.GATES[step.kind] * step.units
        for start in (step.target, step.previous, step.carry):
            self._touches(what, start, step.units)
        self._touches(what, step.product, gates)
        self._box(what, step.source, (gates, step.source_step))
        if step.mask != -1:
            self._touches(what, step.mask, 1)
        self._function(what, step.function, step.parameters)
        self._function(what, step.recurrent_function, step.recurrent_parameters)

    def _clear(self, step: rows.ClearStep) -> None:
        what = "a clear step"
        last = step.first + max(step.rows - 1, 0) * step.pitch + step.width  # the end of the rows
        _require(min(step.maps, step.size) > 0 and min(step.first, step.rows, step.width) >= 0, what)
        _require(step.width <= step.pitch and last <= step.size, what)
        if step.rows:
            _require(step.pitch > 0, what)
        else:
            _require(last == step.first == step.size and step.pitch == 0, what)
        self._box(what, step.target, (step.maps, step.plane), (step.size, 1))

    def _softmax(self, step: rows.SoftmaxStep) -> None:
        _require(min(step.rows, step.columns) > 0, "a softmax")
        for start in (step.target, step.source):
            self._touches("a softmax", start, step.rows * step.columns)

    def _normalize(self, step: rows.NormalizeStep) -> None:
        _require(min(step.rows, step.columns) > 0, "a normalization")
        for start in (step.target, step.source):
            self._touches("a normalization", start, step.rows * step.columns)
        self._constants(step.epsilon)

    def _matmul(self, step: rows.MatmulStep) -> None:
        batch, rows_, inner, columns = step.batch, step.rows, step.inner, step.columns
        _require(min(batch, rows_, inner, columns) > 0, "a matrix product")
        self._touches("a matrix product", step.target, batch * rows_ * columns)
        axes = (batch, step.source_batch), (rows_, step.source_row), (inner, step.source_inner)
        self._box("a matrix product", step.source, *axes)
        axes = (batch, step.other_batch), (inner, step.other_inner), (columns, step.other_column)
        self._box("a matrix product", step.other, *axes)

    def _gather(self, step: rows.GatherStep) -> None:
        packed = self._packed(step.weights)
        if not isinstance(packed, PackedTable):
            raise _unsafe("a table")
        self._box("a table", step.source, (step.positions, step.source_step))
        self._box("a table", step.target, (step.positions, step.target_step), (packed.units, step.plane))

    def _pool(self, step: rows.PoolStep) -> None:
        _require(min(step.window_y, step.window_x, step.stride_y, step.stride_x) > 0, "a pooling")
        self._box("a pooling", step.target, (step.channels, step.plane), (step.rows, step.pitch), (step.columns, 1))
        channels = step.channels, step.source_plane
        self._box("a pooling", step.source, channels, (step.height, step.source_pitch), (step.width, 1))
        _require(self.program.scratch >= (step.width + 1) * self.lanes, "a pooling")
        # Subscripts of floats, and positions of windows.
        far = max(step.rows * step.stride_y + step.window_y, step.columns * step.stride_x + step.window_x)
        _require(far < 2**62, "a pooling")

    def _convolution(self, step: rows.ConvolutionStep) -> None:
        what, plan, packed = "a convolution", self.plan, self._packed(step.weights)
        if not isinstance(packed, PackedConv | PackedFull):
            raise _unsafe(what)
        _require(min(step.height, step.width, step.per_group) > 0 and step.pool in (NONE, MAX, AVERAGE), what)
        self._constants(step.low, step.high)
        if isinstance(packed, PackedFull):
            count, length = packed.units * packed.taps, packed.taps
        else:
            count = int(packed.starts[-1])
            length = packed.tiles * packing.TILE if packed.tiles > 1 else int(packed.taps.max(initial=0)) + 1
        _require(0 <= step.offsets <= len(plan.offsets) - (length if packed.values.size else 0), what)
        offsets = plan.offsets[step.offsets : step.offsets + length]
        low, high = (int(offsets.min()), int(offsets.max())) if count else (0, 0)
        _require(max(-low, high) * 4 * self.lanes <= _INT32, what)
        groups = (packed.units - 1) // step.per_group + 1
        if count:
            step_x = 1 if self.lanes == 1 else step.step_x
            axes = ((groups, step.group_step), (step.height, step.step_y), (step.width, step_x))
            for offset in (low, high):
                self._box(what, step.source, *axes, shift=offset)
        shrink = 1 if step.pool == NONE else 2
        height, width = step.height // shrink, step.width // shrink
        if not height or not width:
            return
        if step.addend != -1:
            _require(step.pool == NONE, what)
            axes = (packed.units, step.addend_plane), (height, step.addend_pitch), (width, 1)
            self._box(what, step.addend, *axes)
        scratch = kernels.conv_lanes_scratch(packed)
        if self.lanes == 1:
            _require(step.tile > 0 and (shrink == 1 or step.tile % 2 == 0), what)
            scratch = kernels.conv_positions_scratch(packed, step.tile, step.step_y)
            _require(step.width <= step.step_y and step.phases in (1, 2) and step.top >= 0, what)
            # Rows go in turn to the maps of a channel, and so do columns.
            lines = [range(step.top, step.top + height)[start :: step.phases] for start in range(step.phases)]
            columns = [(0, -(-width // 2)), (step.odd, width // 2)] if step.odd else [(0, width)]
            for line in filter(None, lines):
                first = line[0] % step.phases * step.phase + line[0] // step.phases * step.pitch
                for shift, count in columns:
                    if count:
                        axes = ((packed.units, step.plane), (len(line), step.pitch), (count, 1))
                        self._box(what, step.target, *axes, shift=first + shift)
        else:
            self._box(what, step.target, (packed.units, step.plane), (height, step.pitch), (width, 1))
        _require(scratch <= self.program.scratch, what)

    def _dense(self, step: rows.DenseStep) -> None:
        packed = self._packed(step.weights)
        if not isinstance(packed, PackedDense | PackedFull):
            raise _unsafe("a dense layer")
        self._constants(step.low, step.high)
        self._touches("a dense layer", step.target, -(-packed.units // WIDTH) * WIDTH)
        if isinstance(packed, PackedFull):
            self._touches("a dense layer", step.source, packed.taps)
            scratch = kernels.dense_full_scratch(packed) if self.lanes > 1 else 0
            _require(scratch <= self.program.scratch, "a dense layer")
            return
        if packed.counts.any():
            cells = np.flatnonzero(packed.starts[:, 1])
            highest = np.maximum.reduceat(packed.taps, packed.starts[cells, 0])  # fillers have tap 0
            highest = int((cells % packed.tiles * packed.tile + highest).max())
            self._touches("a dense layer", step.source, highest + 1)
            # A filler reads the first input of its tile.
            self._touches("a dense layer", step.source, packed.tile * (packed.tiles - 1) + 1)

    def _packed(self, number: int) -> PackedConv | PackedDense | PackedFull | PackedTable:
        _require(0 <= number < len(self.plan.weights), "a number of weights")
        return self.plan.weights[number].packed
