"""The hot loops: sparse convolution and dense product on compressed weights, for throughput and for latency.

The weights of an output unit are a run of `taps` (uint16: which of the unit's inputs) and `values` (uint8 or uint16
indices into a codebook, or float32 themselves); they stay so in memory. Where an input lies in a buffer is not their
business, so one copy of them serves every layout: a convolution takes a small table of the taps' `offsets`, a dense
product counts positions. For throughput a vector holds images (`lanes`), for latency it holds positions, or weights.

Arguments are int64: addresses, counts and strides, in positions of a buffer (convolutions) or floats (dense products).
The name of an array stands for its address. No kernel checks a bound or allocates.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from deepcomp.runtime.vectors import (
    BLOCKS,
    COLUMNS,
    FEW_COLUMNS,
    FLOAT32,
    NONE,
    SHORT,
    SIZES,
    UINT8,
    UINT16,
    WIDTH,
    accumulate,
    convolve_lanes,
    convolve_positions,
    dot_lanes,
    dot_run,
    finish_row,
    finish_vector,
    load_f32,
    load_i32,
    load_u8,
    load_u16,
    unpack,
)

_SLACK = 64  # zeros behind the last weight
_TILE = 65536  # inputs that uint16 taps tell apart
_CHUNK = 4096  # weights of a convolution that are unpacked at once
_CACHED = 2048  # positions of a few blocks of images that fit in a second-level cache
_LONG_RUN = 64  # weights of a unit that fill vectors of their own well
_SHORT_CODEBOOK = 32  # entries that two registers hold

_compiled = njit(nogil=True, error_model="numpy")  # kept on disk as part of `cpu.execute`


class Runs(NamedTuple):
    """Compressed weights of one layer, in the order in which the kernels read them.

    A tile is a range of `tile` inputs; a group is `lanes` units, whose weights take turns (first weights of each, then
    second weights...), filled up with weights of value 0. starts: int32, of each tile and in it of each group, then the
    end; in a convolution of each unit and in it of each tile. order: which unit of the layer each unit here is. Behind
    the last weight come zeros, which a vector may read.
    """

    kind: int
    taps: np.ndarray
    values: np.ndarray
    codebook: np.ndarray
    starts: np.ndarray
    order: np.ndarray
    units: int
    tiles: int
    tile: int
    lanes: int
    longest: int

    @property
    def nbytes(self) -> int:
        """Bytes that stay in memory; `order` is needed only while loading."""
        return self.taps.nbytes + self.values.nbytes + self.codebook.nbytes + self.starts.nbytes


def pack_conv(
    unit: np.ndarray, tap: np.ndarray, value: np.ndarray, codebook: np.ndarray | None, units: int, taps: int
) -> Runs:
    """The runs of a convolution, its units in order.

    unit, tap: integers, for each weight that is left, sorted by unit, then tap. tap: (channel of the group * kernel
    height + row) * kernel width + column. value: uint8 or uint16 indices into `codebook`, of which entry 0 is 0.0 and
    unused, or float32 weights without one. units, taps: how many there are.
    """
    return _pack(unit, tap, value, codebook, units, _TILE, max(1, -(-taps // _TILE)), 1, by_unit=True)


def pack_dense(
    unit: np.ndarray, tap: np.ndarray, value: np.ndarray, codebook: np.ndarray | None, units: int, taps: int
) -> Runs:
    """The runs of a dense layer, in an order of units that suits the kernels; arguments as in `pack_conv`.

    tap: position of the input. Units with many weights are tiled over their inputs, so that a tile of several blocks of
    images stays in cache. Units with few share vectors, sorted by the number of their weights so that these come out
    even.
    """
    tile, mean = _CACHED, len(tap) / max(units, 1)
    while tile < min(taps, _TILE) and mean * tile / taps < _LONG_RUN:
        tile *= 2
    tile = max(1, min(tile, taps, _TILE))
    lanes = 1 if taps and mean * tile / taps >= _LONG_RUN else WIDTH
    return _pack(unit, tap, value, codebook, units, tile, max(1, -(-taps // tile)), lanes)


def _pack(
    unit: np.ndarray,
    tap: np.ndarray,
    value: np.ndarray,
    codebook: np.ndarray | None,
    units: int,
    tile: int,
    tiles: int,
    lanes: int,
    by_unit: bool = False,
) -> Runs:
    groups = -(-units // lanes)
    lengths = np.bincount(unit, minlength=units)
    order = np.arange(units) if lanes == 1 else np.argsort(-lengths, kind="stable")
    rank = np.empty(units, np.int64)
    rank[order] = np.arange(units)

    # A cell is what one unit has in one tile. Sorted as they come, the weights of a cell are neighbours.
    part = tap // tile if tiles > 1 else np.zeros(len(tap), np.int64)
    cell = unit * tiles + part if by_unit else part * (groups * lanes) + rank[unit]
    first = np.flatnonzero(np.diff(cell, prepend=-1))
    number = np.arange(len(cell)) - np.repeat(first, np.diff(first, append=len(cell)))
    counts = np.bincount(cell, minlength=tiles * groups * lanes).reshape(tiles * groups, lanes)
    starts = np.concatenate([[0], np.cumsum(counts.max(axis=1, initial=0) * lanes)])
    slot = starts[cell // lanes] + number * lanes + cell % lanes

    taps = np.zeros(starts[-1] + _SLACK, np.uint16)
    values = np.zeros(starts[-1] + _SLACK, value.dtype)
    taps[slot] = tap - part * tile
    values[slot] = value
    kind = {"uint8": UINT8, "uint16": UINT16, "float32": FLOAT32}[value.dtype.name]
    codebook = np.zeros(0, np.float32) if codebook is None else np.asarray(codebook, np.float32)
    if kind == UINT8 and len(codebook) <= _SHORT_CODEBOOK and WIDTH == 16:
        kind, codebook = SHORT, np.pad(codebook, (0, _SHORT_CODEBOOK - len(codebook)))
    longest = int(lengths.max(initial=0))
    return Runs(kind, taps, values, codebook, starts.astype(np.int32), order, units, tiles, tile, lanes, longest)


def conv_lanes_scratch(longest: int) -> int:
    """Floats of scratch memory that `conv_lanes` needs for runs of at most `longest` weights."""
    return 2 * (max(longest, _CHUNK) + WIDTH)


def conv_positions_scratch(longest: int, height: int, step_y: int) -> int:
    """Floats of scratch memory that `conv_positions` needs for an output of `height` rows."""
    return 2 * (max(longest, _CHUNK) + WIDTH) + height * step_y + 4 * WIDTH


@_compiled
def _chunk(first, last, tiles, starts):
    """The end of the units from `first` on that scratch memory has room for."""
    start, until = load_i32(starts + 4 * first * tiles), first + 1
    while until < last and load_i32(starts + 4 * (until + 1) * tiles) - start <= _CHUNK:
        until += 1
    return until


@_compiled
def _unpack(first, last, kind, tiles, taps, values, codebook, starts, offsets, size, places, weights):
    """Write the weights of some units and their inputs' places in bytes to scratch memory."""
    tables = 1 if tiles == 1 else (last - first) * tiles  # with one table of offsets, all the runs are as one
    cells = (last - first) * tiles // tables
    for number in range(tables):
        start = load_i32(starts + 4 * (first * tiles + number * cells))
        count = load_i32(starts + 4 * (first * tiles + (number + 1) * cells)) - start
        unpack(kind, taps + 2 * start, values + SIZES[kind] * start, codebook, count,
               offsets + 4 * (number % tiles) * _TILE, size, places, weights)  # fmt: skip
        places += 4 * count
        weights += 4 * count


@_compiled
def conv_lanes(
    first, last, kind, taps, values, codebook, starts, tiles, offsets, per_group, group_step,
    source, step_y, step_x, target, plane, pitch, height, width, pool, scale, shift, low, high, scratch,
):  # fmt: skip
    """Output channels `first` to `last` of a convolution of one block of `WIDTH` images, clamped and pooled.

    offsets: int32, positions from a window's origin to each tap's input; 65,536 for each tile where there are several.
    per_group, group_step: output channels of a group, and positions between the inputs of two groups. source: origin of
    the first window; step_y, step_x: from one window to the next. target: first output of channel 0; plane, pitch:
    positions between its channels, its rows. height, width: of the output before pooling. scale, shift: float32 of each
    output channel.
    """
    size = 4 * WIDTH
    if pool != NONE:
        height, width = height // 2 * 2, width // 2 * 2
    if height < 1 or width < 1:
        return
    widest = COLUMNS if step_x <= 2 else FEW_COLUMNS
    parts = (width + widest - 1) // widest
    columns = (width + parts - 1) // parts
    if pool != NONE:
        columns += columns % 2
    rows = min(height, 2)
    shrink = 1 if pool == NONE else 2
    while first < last:
        # As many channels at once as scratch memory has room for, so that the inputs of a tile stay in cache.
        start, until = load_i32(starts + 4 * first * tiles), _chunk(first, last, tiles, starts)
        count = load_i32(starts + 4 * until * tiles) - start
        weights = scratch + 4 * (count + WIDTH)
        _unpack(first, until, kind, tiles, taps, values, codebook, starts, offsets, size, scratch, weights)
        for step in range(0, height, rows):
            y = min(step, height - rows)  # the last tile may do again what its neighbour has done
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
                        load_f32(shift + 4 * unit), low, high,
                    )  # fmt: skip
        first = until


@_compiled
def conv_positions(
    first, last, kind, taps, values, codebook, starts, tiles, offsets, per_group, group_step,
    source, step_y, target, plane, pitch, top, phases, phase, odd, height, width, pool,
    scale, shift, low, high, scratch,
):  # fmt: skip
    """Output channels `first` to `last` of a convolution of one image, clamped and pooled; arguments as `conv_lanes`.

    target: where the first row of channel 0 would lie `top` rows above. Of a channel, every row goes to one of `phases`
    pictures (1 or 2) in turn, `phase` positions apart; unless `odd` is 0, every second output to one so far behind.
    A vector holds neighbouring windows, which run on from row to row: between the `width` outputs of a row and the
    next row lie `step_y - width` that mean nothing. They are dropped on the way from scratch memory to the target.
    """
    vectors = ((height - 1) * step_y + width + WIDTH - 1) // WIDTH
    size = 4 * WIDTH
    if pool != NONE:
        height, width = height // 2, width // 2
    if height < 1 or width < 1:
        return
    parts = (vectors + 2 * COLUMNS - 1) // (2 * COLUMNS)
    columns = (vectors + parts - 1) // parts
    step = 4 * step_y if pool == NONE else 8 * step_y
    while first < last:
        start, until = load_i32(starts + 4 * first * tiles), _chunk(first, last, tiles, starts)
        count = load_i32(starts + 4 * until * tiles) - start
        weights = scratch + 4 * (count + WIDTH)
        plain = weights + 4 * (count + WIDTH)
        plain += -plain % size
        _unpack(first, until, kind, tiles, taps, values, codebook, starts, offsets, 4, scratch, weights)
        for unit in range(first, until):
            done = load_i32(starts + 4 * unit * tiles)
            count = load_i32(starts + 4 * (unit + 1) * tiles) - done
            inputs = source + 4 * (unit // per_group * group_step)
            for part in range(parts):
                x = min(part * columns, vectors - columns) * size
                convolve_positions(
                    columns, scratch + 4 * (done - start), weights + 4 * (done - start), count, inputs + x, plain + x,
                    load_f32(scale + 4 * unit), load_f32(shift + 4 * unit), low, high,
                )  # fmt: skip
            for y in range(height):
                below = y + top  # a division here would cost as much as the row
                row = unit * plane + (below & (phases - 1)) * phase + (below >> (phases - 1)) * pitch
                finish_row(pool, plain + y * step, 4 * step_y, target + 4 * row, 4 * odd, width)
        first = until


@_compiled
def dense_lanes(
    first, last, blocks, kind, taps, values, codebook, starts, tiles, units, lanes, tile,
    source, source_position, source_block, target, target_position, target_block, scale, shift, low, high,
):  # fmt: skip
    """Outputs `first` to `last`, as packed, of a dense layer for several blocks of `WIDTH` images, clamped.

    first: a multiple of `WIDTH`. source_position, source_block: floats between positions, between blocks; the same for
    the target, which holds partial sums while tiles are left to do.
    """
    groups = (units + lanes - 1) // lanes
    size = SIZES[kind]
    together = max(4, min(BLOCKS, _CACHED * 4 // tile))
    together = (blocks + (blocks + together - 1) // together - 1) // ((blocks + together - 1) // together)
    for block in range(0, blocks, together):
        number = min(together, blocks - block)
        for part in range(tiles):
            inputs = source + 4 * (block * source_block + part * tile * source_position)
            ended = part == tiles - 1
            for unit in range(first, last):
                group = unit // lanes
                start = load_i32(starts + 4 * (part * groups + group))
                stop = load_i32(starts + 4 * (part * groups + group + 1))
                entry = start + unit - group * lanes
                while stop > start and _is_filler(kind, values, entry + stop - start - lanes):
                    stop -= lanes
                accumulate(
                    number, kind, taps + 2 * entry, values + size * entry, codebook, stop - start, lanes,
                    inputs, 4 * source_position, 4 * source_block, part == 0,
                    target + 4 * (block * target_block + unit * target_position), 4 * target_block,
                    load_f32(scale + 4 * unit) if ended else np.float32(1),
                    load_f32(shift + 4 * unit) if ended else np.float32(0),
                    low if ended else np.float32(-np.inf), high if ended else np.float32(np.inf),
                )  # fmt: skip


@_compiled
def _is_filler(kind, values, entry):
    if kind == FLOAT32:
        return load_f32(values + 4 * entry) == 0
    return (load_u16(values + 2 * entry) if kind == UINT16 else load_u8(values + entry)) == 0


@_compiled
def dense_single(
    first, last, kind, taps, values, codebook, starts, tiles, units, lanes, tile,
    source, target, scale, shift, low, high,
):  # fmt: skip
    """Outputs `first` to `last`, as packed, of a dense layer for one image, clamped.

    first: a multiple of `WIDTH`. scale, shift, target: room for a multiple of `WIDTH`, all of which is read or written.
    """
    groups = (units + lanes - 1) // lanes
    size = SIZES[kind]
    for part in range(tiles):
        inputs = source + 4 * part * tile
        for group in range(first // lanes, (last + lanes - 1) // lanes):
            start = load_i32(starts + 4 * (part * groups + group))
            stop = load_i32(starts + 4 * (part * groups + group + 1))
            if lanes == 1:
                dot_run(kind, taps + 2 * start, values + size * start, codebook, stop - start, inputs, part == 0,
                        target + 4 * group)  # fmt: skip
            else:
                dot_lanes(kind, taps + 2 * start, values + size * start, codebook, stop - start, inputs, part == 0,
                          target + 4 * group * lanes)  # fmt: skip
    for unit in range(first, last, WIDTH):
        finish_vector(target + 4 * unit, scale + 4 * unit, shift + 4 * unit, low, high)
