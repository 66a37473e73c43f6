"""Sparse convolution and sparse dense product on compressed weights, for throughput and for latency.

Weights are packed as `packing` describes. A convolution reads a small table of the taps' `offsets`, and the inputs of a
dense product lie side by side. For throughput a vector holds images (`lanes`); for latency it holds positions or units.

Arguments are int64: addresses, counts and strides, in positions of a buffer (convolutions) or floats (dense products).
An argument named like an array is its address. No kernel checks a bound or allocates.
"""

import numpy as np
from numba import njit

from deepcomp.runtime.packing import TILE
from deepcomp.runtime.vectors import (
    MAX_BLOCKS,
    NONE,
    STRIDED_COLUMNS,
    TILE_COLUMNS,
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

_CACHE = 2**17  # bytes: inputs of so many stay in the second-level cache while all output channels use them
_CHUNK = 4096  # weights of a convolution that are decoded at once

_LOWEST, _HIGHEST = np.float32(-np.inf), np.float32(np.inf)

_compiled = njit(nogil=True, error_model="numpy")  # kept on disk as part of `cpu.execute`


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
