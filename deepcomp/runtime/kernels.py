"""Sparse convolution and sparse dense product on compressed weights, for throughput and for latency.

A weight is a tap (uint16: the number of the input within its unit or cell) and a value (uint8 or uint16 index into a
codebook, or float32). Weights stay in this form in memory, sorted by unit, or by cell in a dense layer. They do not
say where an input lies in a buffer, so one copy of them serves every layout: a convolution reads a small table of the
taps' `offsets`, and the inputs of a dense product lie side by side. For throughput a vector holds images (`lanes`);
for latency it holds positions, or units.

Arguments are int64: addresses, counts and strides, in positions of a buffer (convolutions) or floats (dense products).
An argument named like an array is its address. No kernel checks a bound or allocates.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from deepcomp.runtime.vectors import (
    FLOAT32,
    MAX_BLOCKS,
    NONE,
    SHORT,
    STRIDED_COLUMNS,
    TILE_COLUMNS,
    UINT8,
    UINT16,
    VALUE_BYTES,
    WIDTH,
    accumulate,
    clear,
    clear_gaps,
    convolve_lanes,
    convolve_positions,
    dot,
    finish_lanes,
    finish_row,
    finish_vector,
    load_f32,
    load_i32,
    unpack,
)

_SLACK = 64  # zeros after the last weight
TILE = 65536  # inputs of a tile: uint16 taps tell so many apart
_CACHE = 2**17  # bytes: inputs of so many stay in the second-level cache while all output channels use them
_CHUNK = 4096  # weights of a convolution that are decoded at once
_SPAN = 256  # units of a cell: uint8 tells so many apart, and their sums for a few blocks of images stay in cache
_SPANS = 16  # the least spans of a large layer, so that threads can share it
_LARGE = 2**18  # weights of a large layer
_MIN_TILE = 256  # inputs of a cell: for a few blocks of images they nearly fit the first-level cache
_MIN_UNIT_WEIGHTS = 4  # weights of a unit in a cell: with fewer, its sums are not worth loading
_MAX_TILE = 2**15  # inputs of a cell
_MAX_REPACKED = 2**15  # weights, fillers included, of a layer that is packed a second time in a single tile
_SHORT_CODEBOOK = 32  # entries that two registers hold

_LOWEST, _HIGHEST = np.float32(-np.inf), np.float32(np.inf)

_compiled = njit(nogil=True, error_model="numpy")  # kept on disk as part of `cpu.execute`


class PackedConv(NamedTuple):
    """Compressed weights of a convolution, sorted by unit and within a unit by tile of 65,536 inputs.

    starts: int32, the first weight of each tile of each unit, then the end. longest: the most weights of a unit. The
    last weight is followed by zeros, which a vector may read.
    """

    kind: int
    taps: np.ndarray
    values: np.ndarray
    codebook: np.ndarray
    starts: np.ndarray
    units: int
    tiles: int
    longest: int

    @property
    def nbytes(self) -> int:
        """Bytes that stay in memory."""
        return self.taps.nbytes + self.values.nbytes + self.codebook.nbytes + self.starts.nbytes

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit, tap and value of each weight."""
        unit, tile = divmod(np.repeat(np.arange(self.units * self.tiles), np.diff(self.starts)), self.tiles)
        return unit, tile * TILE + self.taps[: len(unit)], self.values[: len(unit)]


class PackedDense(NamedTuple):
    """Compressed weights of a dense layer, sorted by cell: those of `span` neighbouring units in a tile of inputs.

    A cell has a slot for each of its units, sorted by falling number of weights: slot n belongs to unit `members[n]`
    of the cell and has `counts[n]` weights. `WIDTH` neighbouring slots are a group: their weights are interleaved (the
    first weight of each slot, then the second of each...), and shorter slots are filled up.

    starts: int32, for each cell its first weight and how many slots have weights; cells of the same units are
    neighbours. counts: uint16. members: uint8. The last weight is followed by zeros, which a vector may read.
    """

    kind: int
    taps: np.ndarray
    values: np.ndarray
    codebook: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    members: np.ndarray
    units: int
    tiles: int
    tile: int
    span: int

    @property
    def nbytes(self) -> int:
        """Bytes that stay in memory."""
        arrays = (self.taps, self.values, self.codebook, self.starts, self.counts, self.members)
        return sum(array.nbytes for array in arrays)

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit, tap and value of each weight."""
        slot, place = _interleaved(self.counts)
        part, tile = divmod(slot // self.span, self.tiles)
        unit, tap = part * self.span + self.members[slot], tile * self.tile + self.taps[place]
        return unit, tap, self.values[place]


class PackedTable(NamedTuple):
    """A table of `rows` x `units` weights, row by row: indices into `codebook`, or float32 where that is empty."""

    kind: int
    values: np.ndarray
    codebook: np.ndarray
    rows: int
    units: int

    @property
    def nbytes(self) -> int:
        """Bytes that stay in memory."""
        return self.values.nbytes + self.codebook.nbytes


def pack_conv(
    unit: np.ndarray, tap: np.ndarray, value: np.ndarray, codebook: np.ndarray | None, units: int, taps: int
) -> PackedConv:
    """The packed weights of a convolution.

    unit, tap: integers, for each remaining weight, sorted by unit, then tap. tap: (channel of the group * kernel
    height + row) * kernel width + column. value: uint8 or uint16 indices into `codebook`, or float32 weights if
    that is None. units, taps: how many there are.
    """
    tiles = max(1, -(-taps // TILE))
    starts = np.searchsorted(unit * tiles + tap // TILE, np.arange(units * tiles + 1))
    longest = int(np.bincount(unit, minlength=1).max())
    taps, values = (np.pad(array, (0, _SLACK)) for array in ((tap % TILE).astype(np.uint16), value))
    codebook, kind = _codebook_and_kind(value, codebook)
    return PackedConv(kind, taps, values, codebook, starts.astype(np.int32), units, tiles, longest)


def pack_dense(
    unit: np.ndarray, tap: np.ndarray, value: np.ndarray, codebook: np.ndarray | None, units: int, taps: int
) -> PackedDense:
    """The packed weights of a dense layer; arguments as in `pack_conv`. tap: position of the input.

    A tile has few inputs, so that they stay in cache for a few blocks of images, but several weights of each unit.
    """
    tile = _MIN_TILE
    while tile < min(taps, _MAX_TILE) and len(tap) * tile < _MIN_UNIT_WEIGHTS * units * taps:
        tile *= 2
    return _pack_cells(unit, tap, value, codebook, units, taps, -(-taps // tile))


def pack_single_tile(
    unit: np.ndarray, tap: np.ndarray, value: np.ndarray, codebook: np.ndarray | None, units: int, taps: int
) -> PackedDense:
    """The packed weights of a dense layer of at most 32,768 inputs in a single tile; arguments as in `pack_dense`.

    This suits one image, whose inputs all stay in cache.
    """
    return _pack_cells(unit, tap, value, codebook, units, taps, 1)


def needs_single_tile(cells: PackedDense) -> bool:
    """Whether a layer should also be packed in a single tile: it is so small that this takes little memory."""
    return cells.tiles > 1 and cells.tiles * cells.tile <= _MAX_TILE and len(cells.taps) <= _MAX_REPACKED


def _pack_cells(
    unit: np.ndarray,
    tap: np.ndarray,
    value: np.ndarray,
    codebook: np.ndarray | None,
    units: int,
    taps: int,
    tiles: int,
) -> PackedDense:
    tiles = max(1, tiles)
    tile = -(-taps // tiles)
    spans = max(-(-units // _SPAN), min(_SPANS, -(-units // WIDTH)) if len(tap) >= _LARGE else 1)
    span = -(-units // (spans * WIDTH)) * WIDTH
    cell = unit // span * tiles + tap // max(tile, 1)

    counts = np.bincount(cell * span + unit % span, minlength=-(-units // span) * tiles * span).reshape(-1, span)
    members = np.argsort(-counts, axis=1, kind="stable")
    slots = np.argsort(members, axis=1)  # of each unit of each cell
    counts = np.take_along_axis(counts, members, axis=1)
    sequence = np.lexsort((tap, slots[cell, unit % span], cell))
    _, place = _interleaved(counts)
    most = counts[:, ::WIDTH].sum(axis=1) * WIDTH  # entries of each cell, fillers too
    starts = np.stack([np.cumsum(most) - most, np.count_nonzero(counts, axis=1)], axis=1)

    filled_taps, filled_values = np.zeros(most.sum() + _SLACK, np.uint16), np.zeros(most.sum() + _SLACK, value.dtype)
    filled_taps[place] = (tap - tap // max(tile, 1) * tile)[sequence]
    filled_values[place] = value[sequence]
    codebook, kind = _codebook_and_kind(value, codebook)
    return PackedDense(
        kind, filled_taps, filled_values, codebook, starts.astype(np.int32), counts.astype(np.uint16).ravel(),
        members.astype(np.uint8).ravel(), units, tiles, tile, span,
    )  # fmt: skip


def _interleaved(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slot and place of each weight, sorted by slot, where the weights of `WIDTH` neighbouring slots are interleaved.

    counts: the number of weights of each slot, in a group never rising.
    """
    counts = counts.ravel().astype(np.int64)
    most = counts[::WIDTH] * WIDTH
    slot = np.repeat(np.arange(len(counts)), counts)
    turn = np.arange(len(slot)) - np.repeat(np.cumsum(counts) - counts, counts)
    return slot, (np.cumsum(most) - most)[slot // WIDTH] + turn * WIDTH + slot % WIDTH


def _codebook_and_kind(value: np.ndarray, codebook: np.ndarray | None) -> tuple[np.ndarray, int]:
    """The codebook as the kernels read it, and the kind of the values."""
    kind = {"uint8": UINT8, "uint16": UINT16, "float32": FLOAT32}[value.dtype.name]
    codebook = np.zeros(0, np.float32) if codebook is None else np.asarray(codebook, np.float32)
    if kind == UINT8 and len(codebook) <= _SHORT_CODEBOOK and WIDTH == 16:
        return np.pad(codebook, (0, _SHORT_CODEBOOK - len(codebook))), SHORT
    return codebook, kind


def conv_lanes_scratch(longest: int) -> int:
    """Floats of scratch memory that `conv_lanes` needs for units of at most `longest` weights."""
    return 2 * (max(longest, _CHUNK) + WIDTH)


def conv_positions_scratch(longest: int, height: int, step_y: int) -> int:
    """Floats of scratch memory that `conv_positions` needs for tiles of `height` rows, before pooling."""
    return 2 * (max(longest, _CHUNK) + WIDTH) + max(height * step_y, 2 * TILE_COLUMNS * WIDTH) + 4 * WIDTH


def tile_rows(height: int, width: int, step_y: int, input_bytes: int) -> int:
    """The rows of a tile of `conv_positions`: all, if their inputs stay in cache, or as many as registers hold.

    input_bytes: of all inputs that an output channel may read.
    """
    if input_bytes <= _CACHE:
        return height
    return max(1, min(height, (2 * TILE_COLUMNS * WIDTH - width) // step_y + 1))


@_compiled
def _chunk_end(first, last, tiles, starts):
    """The end of the units from `first` on whose weights fit in scratch memory."""
    start, until = load_i32(starts + 4 * first * tiles), first + 1
    while until < last and load_i32(starts + 4 * (until + 1) * tiles) - start <= _CHUNK:
        until += 1
    return until


@_compiled
def _unpack(first, last, kind, tiles, taps, values, codebook, starts, offsets, size, places, weights):
    """Decode the weights of some units, and the places of their inputs in bytes, to scratch memory."""
    tables = 1 if tiles == 1 else (last - first) * tiles  # with one table of offsets, all units are decoded at once
    cells = (last - first) * tiles // tables
    for number in range(tables):
        start = load_i32(starts + 4 * (first * tiles + number * cells))
        count = load_i32(starts + 4 * (first * tiles + (number + 1) * cells)) - start
        unpack(kind, taps + 2 * start, values + VALUE_BYTES[kind] * start, codebook, count,
               offsets + 4 * (number % tiles) * TILE, size, places, weights)  # fmt: skip
        places += 4 * count
        weights += 4 * count


@_compiled
def conv_lanes(
    first, last, kind, taps, values, codebook, starts, tiles, offsets, per_group, group_step,
    source, step_y, step_x, target, plane, pitch, height, width, pool, addend, addend_plane, addend_pitch,
    scale, shift, low, high, scratch,
):  # fmt: skip
    """Output channels `first` to `last` of a convolution of one block of `WIDTH` images, clamped and pooled.

    offsets: int32, positions from a window's origin to each tap's input; 65,536 for each tile if there are several.
    per_group, group_step: output channels of a group, and positions between the inputs of two groups. source: origin of
    the first window; step_y, step_x: positions from one window to the next. target: first output of channel 0; plane,
    pitch: positions between its channels, its rows. height, width: of the output before pooling. scale, shift: float32
    of each output channel. addend: 0, or the first number of what is added before clamping, where nothing is pooled;
    addend_plane, addend_pitch: positions between its channels, its rows.
    """
    size = 4 * WIDTH
    inner_low, inner_high = (low, high) if addend == 0 else (_LOWEST, _HIGHEST)
    if pool != NONE:
        height, width = height // 2 * 2, width // 2 * 2
    if height < 1 or width < 1:
        return
    widest = TILE_COLUMNS if step_x <= 2 else STRIDED_COLUMNS
    parts = (width + widest - 1) // widest
    columns = (width + parts - 1) // parts
    if pool != NONE:
        columns += columns % 2
    rows = min(height, 2)
    shrink = 1 if pool == NONE else 2
    while first < last:
        # As many channels at once as fit in scratch memory, so that the inputs of a tile stay in cache.
        start, until = load_i32(starts + 4 * first * tiles), _chunk_end(first, last, tiles, starts)
        count = load_i32(starts + 4 * until * tiles) - start
        weights = scratch + 4 * (count + WIDTH)
        _unpack(first, until, kind, tiles, taps, values, codebook, starts, offsets, size, scratch, weights)
        for step in range(0, height, rows):
            y = min(step, height - rows)  # the last tile may overlap its neighbour
            for part in range(parts):
                x = min(part * columns, width - columns)
                inputs = source + size * (y * step_y + x * step_x)
                output = target + size * (y // shrink * pitch + x // shrink)
                for unit in range(first, until):
                    done = load_i32(starts + 4 * unit * tiles)
                    count = load_i32(starts + 4 * (unit + 1) * tiles) - done
                    convolve_lanes(
                        rows, columns, scratch + 4 * (done - start), weights + 4 * (done - start), count,
                        inputs + size * (unit // per_group * group_step), size * step_y, size * step_x, pool,
                        output + size * (unit * plane), size * pitch, load_f32(scale + 4 * unit),
                        load_f32(shift + 4 * unit), inner_low, inner_high,
                    )  # fmt: skip
                    if addend:
                        for line in range(rows):
                            own = output + size * (unit * plane + line * pitch)
                            other = addend + size * (unit * addend_plane + (y + line) * addend_pitch + x)
                            finish_row(NONE, own, 0, other, own, 0, columns * WIDTH, low, high)
        first = until


@_compiled
def conv_positions(
    first, last, kind, taps, values, codebook, starts, tiles, offsets, per_group, group_step,
    source, step_y, target, plane, pitch, top, phases, phase, odd, height, width, tile, pool,
    addend, addend_plane, addend_pitch, scale, shift, low, high, scratch,
):  # fmt: skip
    """Output channels `first` to `last` of a convolution of one image, clamped and pooled; arguments as `conv_lanes`.

    target: the start of channel 0, which is `top` rows above the first output row. The rows of a channel go in turn to
    `phases` (1 or 2) maps that are `phase` positions apart; if `odd` is not 0, every second column goes to another map,
    `odd` positions after. A vector holds neighbouring windows, across the ends of rows: the `width` outputs of a row
    are followed by `step_y - width` meaningless ones, which are not copied from scratch memory to the target.

    tile: rows before pooling. All channels are computed for a tile before the next, so that its inputs stay in cache.

    Where rows are as far apart in the target as in the source, they are cut anew: a row is then what registers hold,
    and goes to the target without a copy. The gaps between the rows of the target are set to 0.
    """
    size, shrink = 4 * WIDTH, 1 if pool == NONE else 2
    height, tile, last_width = height // shrink, max(tile // shrink, 1), width
    if height < 1 or width < shrink:
        return
    is_cut = pool == NONE and phases == 1 and odd == 0 and step_y == pitch and (addend == 0 or addend_pitch == pitch)
    row_pitch, row_width, rows, gap = pitch, width, height, 0
    if is_cut:
        gap = pitch - width
        target, top, total = target + 4 * top * pitch, 0, (height - 1) * pitch + width
        vectors = (total + WIDTH - 1) // WIDTH
        height = (vectors + 2 * TILE_COLUMNS - 1) // (2 * TILE_COLUMNS)
        width = (vectors + height - 1) // height * WIDTH
        height = (total + width - 1) // width
        last_width = total - (height - 1) * width
        tile = max(height - 1, 1) if tile >= rows else 1
        step_y = pitch = addend_pitch = width
    step = 4 * shrink * step_y
    inner_low, inner_high = (low, high) if addend == 0 else (_LOWEST, _HIGHEST)
    while first < last:
        start, until = load_i32(starts + 4 * first * tiles), _chunk_end(first, last, tiles, starts)
        count = load_i32(starts + 4 * until * tiles) - start
        weights = scratch + 4 * (count + WIDTH)
        plain = weights + 4 * (count + WIDTH)
        plain += -plain % size
        _unpack(first, until, kind, tiles, taps, values, codebook, starts, offsets, 4, scratch, weights)
        for begin in range(0, height, tile):
            # The last of rows that are cut anew may not fill its vectors: it is a tile of its own.
            end = min(begin + tile, height)
            wide = last_width if end == height else width
            direct = is_cut and wide % WIDTH == 0
            first_gap = last_gap = 0
            if gap:  # Those of which a place lies in this tile: the next may begin in one.
                first_gap = begin * width // row_pitch
                last_gap = min(((end - 1) * width + wide - row_width + row_pitch - 1) // row_pitch, rows - 1)
            vectors = (((end - begin) * shrink - 1) * step_y + wide + WIDTH - 1) // WIDTH
            parts = (vectors + 2 * TILE_COLUMNS - 1) // (2 * TILE_COLUMNS)
            columns = (vectors + parts - 1) // parts
            for unit in range(first, until):
                done = load_i32(starts + 4 * unit * tiles)
                count = load_i32(starts + 4 * (unit + 1) * tiles) - done
                inputs = source + begin * step + 4 * (unit // per_group * group_step)
                out = target + 4 * (unit * plane + begin * pitch) if direct else plain
                for part in range(parts):
                    x = min(part * columns, vectors - columns) * size
                    convolve_positions(
                        columns, scratch + 4 * (done - start), weights + 4 * (done - start), count, inputs + x,
                        out + x, load_f32(scale + 4 * unit), load_f32(shift + 4 * unit), inner_low, inner_high,
                    )  # fmt: skip
                gaps = target + 4 * (unit * plane + first_gap * row_pitch + row_width)
                if direct and addend == 0:
                    clear_gaps(gaps, 4 * row_pitch, last_gap - first_gap, gap)
                    continue
                other = addend
                for y in range(begin, end):
                    below = y + top  # shifts, since a division would cost as much as the row
                    row = unit * plane + (below & (phases - 1)) * phase + (below >> (phases - 1)) * pitch
                    if addend:
                        other = addend + 4 * (unit * addend_plane + y * addend_pitch)
                    finish_row(pool, out + (y - begin) * step, 4 * step_y, other, target + 4 * row, 4 * odd,
                               wide // shrink, low, high)  # fmt: skip
                clear_gaps(gaps, 4 * row_pitch, last_gap - first_gap, gap)
        first = until


@_compiled
def dense_lanes(
    first, last, blocks, kind, taps, values, codebook, starts, counts, members, units, tiles, tile, span,
    source, source_block, target, target_block, scale, shift, low, high,
):  # fmt: skip
    """Outputs of the spans `first` to `last` of a dense layer for a few blocks of `WIDTH` images, clamped.

    source_block, target_block: floats between blocks; positions are vectors, side by side. The target also holds the
    partial sums.
    """
    size, vector = VALUE_BYTES[kind], 4 * WIDTH
    begin, end = first * span, min(last * span, units)
    for block in range(0, blocks, MAX_BLOCKS):
        number = min(MAX_BLOCKS, blocks - block)
        inputs, outputs = source + 4 * block * source_block, target + 4 * block * target_block
        for i in range(number):
            clear(outputs + 4 * i * target_block + vector * begin, (end - begin) * WIDTH)
        for part in range(tiles):
            for cell in range(first * tiles + part, last * tiles + part, tiles):
                start = load_i32(starts + 8 * cell)
                accumulate(
                    number, kind, taps + 2 * start, values + size * start, codebook, counts + 2 * cell * span,
                    members + cell * span, load_i32(starts + 8 * cell + 4), inputs + vector * part * tile,
                    4 * source_block, outputs + vector * (cell // tiles * span), 4 * target_block,
                )  # fmt: skip
        finish_lanes(number, end - begin, outputs + vector * begin, 4 * target_block, scale + 4 * begin,
                     shift + 4 * begin, low, high)  # fmt: skip


@_compiled
def dense_single(
    first, last, kind, taps, values, codebook, starts, counts, members, units, tiles, tile, span,
    source, target, scale, shift, low, high,
):  # fmt: skip
    """Outputs of the spans `first` to `last` of a dense layer for one image, clamped.

    scale, shift, target: room for a multiple of `WIDTH`, all of which is read or written.
    """
    size = VALUE_BYTES[kind]
    begin, end = first * span, min(last * span, units)
    clear(target + 4 * begin, end - begin)
    for cell in range(first * tiles, last * tiles):
        start = load_i32(starts + 8 * cell)
        dot(
            kind, taps + 2 * start, values + size * start, codebook, counts + 2 * cell * span,
            members + cell * span, load_i32(starts + 8 * cell + 4), source + 4 * (cell % tiles * tile),
            target + 4 * (cell // tiles * span),
        )  # fmt: skip
    for unit in range(begin, end, WIDTH):
        finish_vector(target + 4 * unit, scale + 4 * unit, shift + 4 * unit, low, high)
