"""Sparse convolution and sparse dense product on compressed weights, for throughput and for latency.

Weights are packed as `packing` describes. A convolution reads a small table of the taps' `offsets`, and the inputs of a
dense product lie side by side. For throughput a vector holds images (`lanes`); for latency it holds positions or units.

Arguments are int64: addresses, counts and strides, in positions of a buffer (convolutions) or floats (dense products).
An argument named like an array is its address. No kernel checks a bound or allocates.
"""

import numpy as np
from numba import njit

from deepcomp.runtime.packing import TILE, PackedConv, PackedFull
from deepcomp.runtime.vectors import (
    FLOAT32,
    MAX_BLOCKS,
    NONE,
    STRIDED_COLUMNS,
    TILE_COLUMNS,
    UNITS,
    UNITS_COLUMNS,
    VALUE_BYTES,
    WIDTH,
    accumulate,
    clear,
    clear_gaps,
    convolve_lanes,
    convolve_positions,
    decode,
    dot,
    finish_lanes,
    finish_row,
    finish_vector,
    load_f32,
    load_i32,
    multiply_rows,
    multiply_units,
    pool_lanes,
    scale_places,
    store_i32,
    unpack,
)

_CACHE = 2**17  # bytes: inputs of so many stay in the second-level cache while all output channels use them
_CHUNK = 4096  # weights of a convolution that are decoded at once
_POOLED = UNITS * 2 * (TILE_COLUMNS + 1) * WIDTH  # floats: rows of several units that `conv_lanes` pools
_FULL_TILE = 512  # inputs of a dense layer without pruned weights that stay in the second-level cache for a few blocks

_LOWEST, _HIGHEST = np.float32(-np.inf), np.float32(np.inf)

_compiled = njit(nogil=True, error_model="numpy")  # kept on disk as part of `cpu.execute`


def _decoded(packed: PackedConv | PackedFull) -> int:
    """Floats of scratch memory for the weights and places that a convolution decodes at once."""
    if isinstance(packed, PackedConv):
        return 2 * (max(packed.longest, _CHUNK) + WIDTH)
    return packed.taps + WIDTH + max(UNITS * packed.taps, _CHUNK) + WIDTH


def conv_lanes_scratch(packed: PackedConv | PackedFull) -> int:
    """Floats of scratch memory that `conv_lanes` needs."""
    return _decoded(packed) + _POOLED


def _rows_floats(height: int, step_y: int) -> int:
    """Floats of scratch memory for rows of one output channel before they go to the target."""
    return max(height * step_y, 2 * TILE_COLUMNS * WIDTH) + 4 * WIDTH


_rows_room = _compiled(_rows_floats)


def conv_positions_scratch(packed: PackedConv | PackedFull, height: int, step_y: int) -> int:
    """Floats of scratch memory that `conv_positions` needs for tiles of `height` rows, before pooling."""
    units = UNITS if isinstance(packed, PackedFull) else 1
    return _decoded(packed) + units * _rows_floats(height, step_y)


def dense_full_scratch(packed: PackedFull) -> int:
    """Floats of scratch memory that `dense_full_lanes` needs."""
    return (1 + UNITS) * (min(packed.taps, _FULL_TILE) + WIDTH)


def tile_rows(height: int, width: int, step_y: int, input_bytes: int) -> int:
    """The rows of a tile of `conv_positions`: all, if their inputs stay in cache, or as many as registers hold.

    input_bytes: of all inputs that an output channel may read.
    """
    if input_bytes <= _CACHE:
        return height
    return max(1, min(height, (2 * TILE_COLUMNS * WIDTH - width) // step_y + 1))


@_compiled
def _start(unit, tiles, starts, inputs):
    """The number of a unit's first weight; `inputs` as in `conv_lanes`."""
    return unit * inputs if inputs else load_i32(starts + 4 * unit * tiles)


@_compiled
def _chunk_end(first, last, kind, tiles, starts, inputs):
    """The end of the units from `first` on whose weights fit in scratch memory."""
    if inputs:
        return last if kind == FLOAT32 else min(last, first + max(_CHUNK // inputs, UNITS))
    start, until = load_i32(starts + 4 * first * tiles), first + 1
    while until < last and load_i32(starts + 4 * (until + 1) * tiles) - start <= _CHUNK:
        until += 1
    return until


@_compiled
def _unpack(first, last, kind, tiles, taps, values, codebook, starts, inputs, offsets, size, scratch):
    """Decode the weights of some units, and the places of their inputs in bytes; returns the weights' address.

    Places are written to the start of scratch memory: for each weight, or for each input where no weight is pruned.
    """
    places = scratch
    if inputs:
        scale_places(offsets, inputs, size, places)
        if kind == FLOAT32:
            return values + 4 * first * inputs
        weights = scratch + 4 * (inputs + WIDTH)
        decode(kind, values + VALUE_BYTES[kind] * first * inputs, codebook, (last - first) * inputs, weights)
        return weights
    total = load_i32(starts + 4 * last * tiles) - load_i32(starts + 4 * first * tiles)
    decoded = weights = scratch + 4 * (total + WIDTH)
    tables = 1 if tiles == 1 else (last - first) * tiles  # with one table of offsets, all units are decoded at once
    cells = (last - first) * tiles // tables
    for number in range(tables):
        start = load_i32(starts + 4 * (first * tiles + number * cells))
        count = load_i32(starts + 4 * (first * tiles + (number + 1) * cells)) - start
        unpack(kind, taps + 2 * start, values + VALUE_BYTES[kind] * start, codebook, count,
               offsets + 4 * (number % tiles) * TILE, size, places, weights)  # fmt: skip
        places += 4 * count
        weights += 4 * count
    return decoded


@_compiled
def _together(unit, last, per_group, inputs):
    """How many units from `unit` on are computed together: those without pruned weights that read the same inputs."""
    shares = inputs and unit + UNITS <= last and (unit + UNITS - 1) // per_group == unit // per_group
    return UNITS if shares else 1


@_compiled
def conv_lanes(
    first, last, kind, taps, values, codebook, starts, tiles, inputs, offsets, per_group, group_step,
    source, step_y, step_x, target, plane, pitch, height, width, pool, addend, addend_plane, addend_pitch,
    scale, shift, low, high, scratch,
):  # fmt: skip
    """Output channels `first` to `last` of a convolution of one block of `WIDTH` images, clamped and pooled.

    inputs: of each unit, where no weight is pruned; then there are no taps and starts. Else 0.
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
    plain, scratch = scratch, scratch + 4 * _POOLED
    strips = (columns + UNITS_COLUMNS - 1) // UNITS_COLUMNS  # of what is computed at once for several units
    strip = (columns + strips - 1) // strips
    while first < last:
        # As many channels at once as fit in scratch memory, so that the inputs of a tile stay in cache.
        start, until = _start(first, tiles, starts, inputs), _chunk_end(first, last, kind, tiles, starts, inputs)
        weights = _unpack(first, until, kind, tiles, taps, values, codebook, starts, inputs, offsets, size, scratch)
        for step in range(0, height, rows):
            y = min(step, height - rows)  # the last tile may overlap its neighbour
            for part in range(parts):
                x = min(part * columns, width - columns)
                window = source + size * (y * step_y + x * step_x)
                output = target + size * (y // shrink * pitch + x // shrink)
                unit = first
                while unit < until:
                    done = _start(unit, tiles, starts, inputs)
                    count = _start(unit + 1, tiles, starts, inputs) - done
                    places = scratch if inputs else scratch + 4 * (done - start)
                    own, read = weights + 4 * (done - start), window + size * (unit // per_group * group_step)
                    together = _together(unit, until, per_group, inputs)
                    if together == 1:
                        convolve_lanes(
                            rows, columns, places, own, count, read, size * step_y, size * step_x, pool,
                            output + size * (unit * plane), size * pitch, load_f32(scale + 4 * unit),
                            load_f32(shift + 4 * unit), inner_low, inner_high,
                        )  # fmt: skip
                    else:
                        out, apart, below = output + size * (unit * plane), plane, pitch
                        if pool != NONE:
                            out, apart, below = plain, 2 * columns, columns
                        for line in range(rows):
                            for number in range(strips):
                                left = min(number * strip, columns - strip)
                                multiply_units(
                                    1, together, strip, places, own, 4 * count, count,
                                    read + size * (line * step_y + left * step_x), size * step_x,
                                    out + size * (line * below + left), size * apart, size,
                                    scale + 4 * unit, shift + 4 * unit, inner_low, inner_high,
                                )  # fmt: skip
                        for number in range(together if pool != NONE else 0):
                            upper = plain + size * number * apart
                            pool_lanes(pool, upper, upper + size * below, columns,
                                       output + size * ((unit + number) * plane))  # fmt: skip
                    following = unit + together
                    while addend and unit < following:
                        for line in range(rows):
                            out = output + size * (unit * plane + line * pitch)
                            other = addend + size * (unit * addend_plane + (y + line) * addend_pitch + x)
                            finish_row(NONE, out, 0, other, out, 0, columns * WIDTH, low, high)
                        unit += 1
                    unit = following
        first = until


@_compiled
def conv_positions(
    first, last, kind, taps, values, codebook, starts, tiles, inputs, offsets, per_group, group_step,
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
    plain, apart = scratch + -scratch % size, 4 * _rows_room(min(tile, height) * shrink, step_y)
    scratch += apart * (UNITS if inputs else 1)
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
        start, until = _start(first, tiles, starts, inputs), _chunk_end(first, last, kind, tiles, starts, inputs)
        weights = _unpack(first, until, kind, tiles, taps, values, codebook, starts, inputs, offsets, 4, scratch)
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
            strips = (vectors + UNITS_COLUMNS - 1) // UNITS_COLUMNS  # the parts of several units
            strip = (vectors + strips - 1) // strips
            unit = first
            while unit < until:
                together = _together(unit, until, per_group, inputs)
                done = _start(unit, tiles, starts, inputs)
                count = _start(unit + 1, tiles, starts, inputs) - done
                own, read = weights + 4 * (done - start), source + begin * step + 4 * (unit // per_group * group_step)
                out = target + 4 * (unit * plane + begin * pitch) if direct else plain
                if together == 1:
                    places = scratch if inputs else scratch + 4 * (done - start)
                    for part in range(parts):
                        x = min(part * columns, vectors - columns) * size
                        convolve_positions(
                            columns, places, own, count, read + x, out + x, load_f32(scale + 4 * unit),
                            load_f32(shift + 4 * unit), inner_low, inner_high,
                        )  # fmt: skip
                else:
                    for part in range(strips):
                        x = min(part * strip, vectors - strip) * size
                        multiply_units(
                            1, together, strip, scratch, own, 4 * count, count, read + x, size, out + x,
                            4 * plane if direct else apart, size, scale + 4 * unit, shift + 4 * unit,
                            inner_low, inner_high,
                        )  # fmt: skip
                following = unit + together
                while unit < following:
                    gaps = target + 4 * (unit * plane + first_gap * row_pitch + row_width)
                    for y in range(begin, end if addend or not direct else begin):
                        below = y + top  # shifts, since a division would cost as much as the row
                        row = unit * plane + (below & (phases - 1)) * phase + (below >> (phases - 1)) * pitch
                        other = addend + 4 * (unit * addend_plane + y * addend_pitch) if addend else 0
                        finish_row(pool, out + (y - begin) * step, 4 * step_y, other, target + 4 * row, 4 * odd,
                                   wide // shrink, low, high)  # fmt: skip
                    clear_gaps(gaps, 4 * row_pitch, last_gap - first_gap, gap)
                    out += 4 * plane if direct else apart
                    unit += 1
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
def dense_full_lanes(
    first, last, blocks, kind, values, codebook, units, taps,
    source, source_block, target, target_block, scale, shift, low, high, scratch,
):  # fmt: skip
    """Outputs of the groups `first` to `last` of `WIDTH` units of a dense layer without pruned weights.

    Arguments as in `dense_lanes`; taps: inputs of a unit.
    """
    vector, begin, end = 4 * WIDTH, first * WIDTH, min(last * WIDTH, units)
    one = min(taps, _FULL_TILE)
    for tap in range(one):
        store_i32(tap * vector, scratch + 4 * tap)
    decoded = scratch + 4 * (one + WIDTH)
    parts = (blocks + UNITS_COLUMNS - 1) // UNITS_COLUMNS
    most = (blocks + parts - 1) // parts
    for block in range(0, blocks, most):
        number = min(most, blocks - block)
        inputs, outputs = source + 4 * block * source_block, target + 4 * block * target_block
        for i in range(number):
            clear(outputs + 4 * i * target_block + vector * begin, (end - begin) * WIDTH)
        for tap in range(0, taps, one):
            count, unit = min(one, taps - tap), begin
            while unit < end:
                together = UNITS if unit + UNITS <= end else 1
                own, pitch = values + 4 * (unit * taps + tap), 4 * taps
                if kind != FLOAT32:
                    own, pitch = decoded, 4 * (one + WIDTH)
                    for i in range(together):
                        start = values + VALUE_BYTES[kind] * ((unit + i) * taps + tap)
                        decode(kind, start, codebook, count, own + pitch * i)
                multiply_units(
                    0, together, number, scratch, own, pitch, count, inputs + vector * tap, 4 * source_block,
                    outputs + vector * unit, vector, 4 * target_block, scale, shift, low, high,
                )  # fmt: skip
                unit += together
        for i in range(0, number, MAX_BLOCKS):
            finish_lanes(
                min(MAX_BLOCKS, number - i), end - begin, outputs + 4 * i * target_block + vector * begin,
                4 * target_block, scale + 4 * begin, shift + 4 * begin, low, high,
            )  # fmt: skip


@_compiled
def dense_full_single(first, last, kind, values, codebook, units, taps, source, target, scale, shift, low, high):
    """Outputs of the groups `first` to `last` of `WIDTH` units of a dense layer without pruned weights, for one image.

    Arguments as in `dense_single`; taps: inputs of a unit.
    """
    unit, end = first * WIDTH, min(last * WIDTH, units)
    while unit < end:
        together = UNITS if unit + UNITS <= end else 1
        own = values + VALUE_BYTES[kind] * unit * taps
        multiply_rows(together, kind, own, codebook, taps, source, target + 4 * unit)
        unit += together
    for unit in range(first * WIDTH, end, WIDTH):
        finish_vector(target + 4 * unit, scale + 4 * unit, shift + 4 * unit, low, high)


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
