"""Runs a plan on the CPU: one compiled function executes the table of steps.

It is the same for every network and is kept on disk, so a process starts fast. A place holds `lanes` floats, one for
each image: `vectors.WIDTH` or 1.
"""

import math
import os
import zlib
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from deepcomp.runtime import kernels, opcodes, vectors

_compiled = njit(nogil=True, error_model="numpy")
# Inlined before LLVM: saves compile time, since LLVM optimizes each other function once more for each caller.
_inlined = njit(nogil=True, error_model="numpy", inline="always")


@intrinsic
def _fetch_add(typing, address, value):
    """Add to the int64 at `address` atomically; returns the value before."""

    def generate(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def _pointer(typing, address):
    """An address as a pointer, for `carray`."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


# Functions of one number, written in operations that LLVM vectorizes.


@_compiled
def _exp_parts(x):
    """`part` and two factors of `scale` of exp(x) = scale + part * scale (coefficients: Cephes, expf).

    For small x, `part` tends to x. A float can hold each of the two factors, but not always their product.
    """
    number = x == x
    x = x if number else np.float32(0)
    x = x if x > np.float32(-104) else np.float32(-104)
    x = x if x < np.float32(104) else np.float32(104)
    whole = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    rest = x - whole * np.float32(0.693359375) - whole * np.float32(-2.12194440e-4)
    part = np.float32(1.9875691500e-4)
    part = part * rest + np.float32(1.3981999507e-3)
    part = part * rest + np.float32(8.3334519073e-3)
    part = part * rest + np.float32(4.1665795894e-2)
    part = part * rest + np.float32(1.6666665459e-1)
    part = part * rest + np.float32(5.0000001201e-1)
    part = part * rest * rest + rest
    part = part if number else np.float32(np.nan)
    power = np.int32(whole)
    half = power >> np.int32(1)
    first = np.int32((half + np.int32(127)) << np.int32(23)).view(np.float32)
    second = np.int32((power - half + np.int32(127)) << np.int32(23)).view(np.float32)
    return part, first, second


@_compiled
def _exp(x):
    part, first, second = _exp_parts(x)
    return (part + np.float32(1)) * first * second


@_compiled
def _expm1(x):
    part, first, second = _exp_parts(x)
    scale = first * second
    # If the scale overflows, the 1 does not count and exp(x) is the result.
    return (
        part * scale + (scale - np.float32(1)) if scale < np.float32(1e38) else (part + np.float32(1)) * first * second
    )


@_compiled
def _sigmoid(x):
    return np.float32(1) / (np.float32(1) + _exp(-x))


@_compiled
def _tanh(x):
    """Cephes, tanhf."""
    size = abs(x)
    square = x * x
    near = np.float32(-5.70498872745e-3)
    near = near * square + np.float32(2.06390887954e-2)
    near = near * square + np.float32(-5.37397155531e-2)
    near = near * square + np.float32(1.33314422036e-1)
    near = near * square + np.float32(-3.33332819422e-1)
    near = near * square * x + x
    offset = np.float32(1) - np.float32(2) / (_exp(size + size) + np.float32(1))
    return near if size < np.float32(0.625) else (-offset if x < np.float32(0) else offset)


@_compiled
def _softplus(x):
    return max(x, np.float32(0)) + np.float32(math.log1p(_exp(-abs(x)))) if x == x else x


@_compiled
def _relu6(x):
    x = np.float32(0) if x < np.float32(0) else x
    return np.float32(6) if x > np.float32(6) else x


def _elementwise(function):
    """A compiled loop that applies `function(x, constants, first)`, whose parameters are `constants[first:]`."""
    function = _compiled(function)

    @_compiled
    def loop(target, source, constants, first):
        for i in range(len(target)):
            target[i] = function(source[i], constants, first)

    return loop


def _relu(x, constants, first):
    slope, threshold, most = constants[first], constants[first + 1], constants[first + 2]
    below = threshold - x
    below = np.float32(0) if below < np.float32(0) else below
    if threshold != np.float32(0):
        above = x if x > threshold else np.float32(0)
    else:
        above = np.float32(0) if x < np.float32(0) else x
    above = most if above > most else above
    return above - slope * below if slope != np.float32(0) else above


_map_relu = _elementwise(_relu)
_map_leaky_relu = _elementwise(lambda x, constants, first: x if x > np.float32(0) else x * constants[first])
_map_elu = _elementwise(lambda x, constants, first: x if x > np.float32(0) else constants[first] * _expm1(x))
_map_selu = _elementwise(
    lambda x, constants, first: (
        np.float32(1.0507009873554805) * x if x > np.float32(0) else np.float32(1.7580993408473766) * _expm1(x)
    )
)
_map_sigmoid = _elementwise(lambda x, constants, first: _sigmoid(x))
_map_hard_sigmoid = _elementwise(lambda x, constants, first: _relu6(x + np.float32(3)) / np.float32(6))
_map_tanh = _elementwise(lambda x, constants, first: _tanh(x))
_map_softplus = _elementwise(lambda x, constants, first: _softplus(x))
_map_softsign = _elementwise(lambda x, constants, first: x / (abs(x) + np.float32(1)))
_map_silu = _elementwise(lambda x, constants, first: x * _sigmoid(x))
_map_hard_silu = _elementwise(lambda x, constants, first: x * (_relu6(x + np.float32(3)) / np.float32(6)))
_map_gelu = _elementwise(
    lambda x, constants, first: (
        np.float32(0.5) * x * (np.float32(1) + np.float32(math.erf(x * np.float32(math.sqrt(0.5)))))
    )
)
_map_exponential = _elementwise(lambda x, constants, first: _exp(x))
_map_mish = _elementwise(lambda x, constants, first: x * _tanh(_softplus(x)))


@_compiled
def _apply(function, target, source, constants, first):
    """The functions in the order of `opcodes.FUNCTIONS`."""
    if function == 0:
        _map_relu(target, source, constants, first)
    elif function == 1:
        _map_leaky_relu(target, source, constants, first)
    elif function == 2:
        _map_elu(target, source, constants, first)
    elif function == 3:
        _map_selu(target, source, constants, first)
    elif function == 4:
        _map_sigmoid(target, source, constants, first)
    elif function == 5:
        _map_hard_sigmoid(target, source, constants, first)
    elif function == 6:
        _map_tanh(target, source, constants, first)
    elif function == 7:
        _map_softplus(target, source, constants, first)
    elif function == 8:
        _map_softsign(target, source, constants, first)
    elif function == 9:
        _map_silu(target, source, constants, first)
    elif function == 10:
        _map_hard_silu(target, source, constants, first)
    elif function == 11:
        _map_gelu(target, source, constants, first)
    elif function == 12:
        _map_exponential(target, source, constants, first)
    else:
        _map_mish(target, source, constants, first)


# Steps that are lists of moves (see `opcodes`)


@_compiled
def _index(place, size, offset, lanes):
    """The index of the first float of a place; places from `size` on belong to a block, `offset` places further."""
    return (place + offset if place >= size else place) * lanes


@_compiled
def _copy_floats(target, source):
    for i in range(len(target)):  # assigning a slice would compile to much code for its errors
        target[i] = source[i]


@_compiled
def _read_input(row, moves, size, offset, lanes, arena, images, first, count, length):
    for m in range(row[1], row[1] + row[2]):
        target = _index(moves[m, 0], size, offset, lanes)
        source, step, places = moves[m, 1], moves[m, 3], moves[m, 5]
        if lanes == 1:
            start = first * length + source
            if step == 1:
                _copy_floats(arena[target : target + places], images[start : start + places])
            else:
                out = arena[target : target + places]
                for i in range(places):
                    out[i] = images[start + i * step]
        else:
            whole = places if step == 1 and count == kernels.WIDTH and places >= kernels.WIDTH else 0
            for place in range(0, whole, kernels.WIDTH):
                i = min(place, places - kernels.WIDTH)  # the last one may overlap its neighbour
                start = images.ctypes.data + 4 * (first * length + source + i)
                vectors.transpose(start, 4 * length, arena.ctypes.data + 4 * (target + i * lanes), 4 * lanes)
            for i in range(whole, places):
                out = arena[target + i * lanes : target + (i + 1) * lanes]
                start = first * length + source + i * step
                for lane in range(count):
                    out[lane] = images[start + lane * length]
                for lane in range(count, lanes):
                    out[lane] = np.float32(0)


@_compiled
def _write_output(row, moves, size, offset, lanes, arena, output, first, count, length):
    for m in range(row[1], row[1] + row[2]):
        source = _index(moves[m, 1], size, offset, lanes)
        target, step, places = moves[m, 0], moves[m, 3] * lanes, moves[m, 5]
        if lanes > 1 and count == lanes:
            for place in range(0, places, lanes):
                i = max(min(place, places - lanes), 0)  # the last one may overlap its neighbour
                start = output.ctypes.data + 4 * (first * length + target + i)
                inner = arena.ctypes.data + 4 * (source + i * step)
                if places >= lanes:
                    vectors.transpose(inner, 4 * step, start, 4 * length)
                else:
                    vectors.transpose_few(inner, 4 * step, places, start, 4 * length)
            continue
        for lane in range(count):
            start = (first + lane) * length + target
            out = output[start : start + places]
            for i in range(places):
                out[i] = arena[source + lane + i * step]


@_compiled
def _copy(row, moves, size, offset, lanes, arena):
    for m in range(row[1], row[1] + row[2]):
        target = _index(moves[m, 0], size, offset, lanes)
        source = _index(moves[m, 1], size, offset, lanes)
        step, places = moves[m, 3], moves[m, 5]
        if step == 1:
            _copy_floats(arena[target : target + places * lanes], arena[source : source + places * lanes])
        else:
            for i in range(places):
                for lane in range(lanes):
                    arena[target + i * lanes + lane] = arena[source + i * step * lanes + lane]


@_compiled
def _clamped(x, low, high):
    """NaN stays NaN."""
    x = low if x < low else x
    return high if x > high else x


@_compiled
def _scale(row, moves, size, offset, lanes, arena, constants):
    low, high, between = constants[row[3]], constants[row[4]], row[5]
    for m in range(row[1], row[1] + row[2]):
        target = _index(moves[m, 0], size, offset, lanes)
        source = _index(moves[m, 1], size, offset, lanes)
        other, step, other_step, places = moves[m, 2], moves[m, 3], moves[m, 4], moves[m, 5]
        run = places if step == 1 and (other_step == 0 or places == 1) else 1  # neighbouring places with the same scale
        for _ in range(0, places, run):
            scale, shift = constants[other], constants[other + between]
            a = arena[target : target + run * lanes]
            b = arena[source : source + run * lanes]
            for j in range(len(a)):
                a[j] = _clamped(b[j] * scale + shift, low, high)
            target += run * lanes
            source += step * lanes
            other += other_step


@_compiled
def _merge(row, moves, size, offset, lanes, arena, constants, multiply):
    low, high = constants[row[3]], constants[row[4]]
    for m in range(row[1], row[1] + row[2]):
        target = _index(moves[m, 0], size, offset, lanes)
        source = _index(moves[m, 1], size, offset, lanes)
        other = _index(moves[m, 2], size, offset, lanes)
        step, other_step, places = moves[m, 3], moves[m, 4], moves[m, 5]
        if lanes == 1 and step == 1 and other_step == 0:
            a = arena[target : target + places]
            b = arena[source : source + places]
            x = arena[other]
            for j in range(len(a)):
                a[j] = _clamped(b[j] * x if multiply else b[j] + x, low, high)
            continue
        run = places if step == 1 and other_step == 1 else 1
        for _ in range(0, places, run):
            a = arena[target : target + run * lanes]
            b = arena[source : source + run * lanes]
            c = arena[other : other + run * lanes]
            if multiply:
                for j in range(len(a)):
                    a[j] = _clamped(b[j] * c[j], low, high)
            else:
                for j in range(len(a)):
                    a[j] = _clamped(b[j] + c[j], low, high)
            target += run * lanes
            source += step * lanes
            other += other_step * lanes


@_compiled
def _map(row, moves, size, offset, lanes, arena, constants):
    for m in range(row[1], row[1] + row[2]):
        target = _index(moves[m, 0], size, offset, lanes)
        source = _index(moves[m, 1], size, offset, lanes)
        step, places = moves[m, 3], moves[m, 5]
        run = places if step == 1 else 1
        for _ in range(0, places, run):
            _apply(
                row[3], arena[target : target + run * lanes], arena[source : source + run * lanes], constants, row[4]
            )
            target += run * lanes
            source += step * lanes


# Steps with columns of their own (see `plan`)


@_compiled
def _softmax(row, size, offset, lanes, arena, scratch):
    """`scratch` has room for 2 x `lanes` floats: the largest number and the sum of each lane."""
    target, source = _index(row[1], size, offset, lanes), _index(row[2], size, offset, lanes)
    rows, columns = row[3], row[4]
    most, total = scratch[:lanes], scratch[lanes : 2 * lanes]
    for _ in range(rows):
        a = arena[target : target + columns * lanes]
        b = arena[source : source + columns * lanes]
        most[:] = np.float32(-np.inf)
        total[:] = np.float32(0)
        for i in range(columns):
            for lane in range(lanes):
                x = b[i * lanes + lane]
                most[lane] = x if x > most[lane] else most[lane]
        for i in range(columns):
            for lane in range(lanes):
                x = _exp(b[i * lanes + lane] - most[lane])
                a[i * lanes + lane] = x
                total[lane] += x
        for i in range(columns):
            for lane in range(lanes):
                a[i * lanes + lane] /= total[lane]
        target += columns * lanes
        source += columns * lanes


@_compiled
def _pool(row, size, offset, lanes, arena):
    target, plane, pitch = _index(row[1], size, offset, lanes), row[2] * lanes, row[3] * lanes
    source, source_plane, source_pitch = _index(row[4], size, offset, lanes), row[5] * lanes, row[6] * lanes
    channels, height, width, rows, columns = row[7], row[8], row[9], row[10], row[11]
    window_y, window_x, stride_y, stride_x, top, left = row[12], row[13], row[14], row[15], row[16], row[17]
    average, reduce = row[0] == opcodes.AVERAGE_POOL, row[0] == opcodes.REDUCE_MAX
    start = np.float32(0) if average else np.float32(-np.inf) if reduce else np.float32(np.finfo(np.float32).min)
    for c in range(channels):
        for y in range(rows):
            out = arena[target + c * plane + y * pitch : target + c * plane + y * pitch + columns * lanes]
            out[:] = start
            first_y, last_y = max(y * stride_y - top, 0), min(y * stride_y - top + window_y, height)
            for row_y in range(first_y, last_y):
                line = source + c * source_plane + row_y * source_pitch
                for x in range(columns):
                    first_x, last_x = max(x * stride_x - left, 0), min(x * stride_x - left + window_x, width)
                    for column in range(first_x, last_x):
                        a = arena[line + column * lanes : line + (column + 1) * lanes]
                        b = out[x * lanes : (x + 1) * lanes]
                        if average:
                            for lane in range(lanes):
                                b[lane] += a[lane]
                        elif reduce:
                            for lane in range(lanes):
                                b[lane] = b[lane] if b[lane] > a[lane] or b[lane] != b[lane] else a[lane]
                        else:
                            for lane in range(lanes):
                                b[lane] = a[lane] if a[lane] > b[lane] else b[lane]
            if average:
                for x in range(columns):
                    first_x, last_x = max(x * stride_x - left, 0), min(x * stride_x - left + window_x, width)
                    number = np.float32((last_y - first_y) * (last_x - first_x))
                    for lane in range(lanes):
                        out[x * lanes + lane] /= number


@_inlined
def _convolution(row, size, offset, lanes, arena, weights, constants, offsets, scratch, part, parts):
    memory = arena.ctypes.data
    target, source = memory + 4 * _index(row[2], size, offset, lanes), memory + 4 * _index(row[5], size, offset, lanes)
    low, high, table = constants[row[11]], constants[row[12]], offsets.ctypes.data + 4 * row[13]
    w = weights[row[1]]
    kind, taps, values, codebook, starts, tiles, units = w[0], w[1], w[2], w[3], w[4], w[5], w[6]
    scale, shift = w[7], w[8]
    first, last, room = units * part // parts, units * (part + 1) // parts, scratch.ctypes.data
    if lanes == 1:
        kernels.conv_positions(
            first, last, kind, taps, values, codebook, starts, tiles, table, row[14], row[15],
            source, row[6], target, row[3], row[4], row[16], row[17], row[18], row[19], row[8], row[9], row[10],
            scale, shift, low, high, room,
        )  # fmt: skip
    else:
        kernels.conv_lanes(
            first, last, kind, taps, values, codebook, starts, tiles, table, row[14], row[15],
            source, row[6], row[7], target, row[3], row[4], row[8], row[9], row[10], scale, shift, low, high, room,
        )  # fmt: skip


@_inlined
def _dense(row, size, offset, block, lanes, blocks, arena, weights, constants, part, parts):
    memory = arena.ctypes.data
    target, source = memory + 4 * _index(row[2], size, offset, lanes), memory + 4 * _index(row[3], size, offset, lanes)
    low, high = constants[row[5]], constants[row[6]]
    w = weights[row[1]]
    kind, taps, values, codebook, starts, tiles, units = w[0], w[1], w[2], w[3], w[4], w[5], w[6]
    scale, shift, tile, span, counts, members = w[7], w[8], w[9], w[10], w[11], w[12]
    spans = (units + span - 1) // span
    first, last = spans * part // parts, spans * (part + 1) // parts
    if lanes == 1:
        kernels.dense_single(
            first, last, kind, taps, values, codebook, starts, counts, members, units, tiles, tile, span,
            source, target, scale, shift, low, high,
        )  # fmt: skip
    else:
        kernels.dense_lanes(
            first, last, blocks, kind, taps, values, codebook, starts, counts, members, units, tiles, tile, span,
            source, block * lanes, target, block * lanes, scale, shift, low, high,
        )  # fmt: skip


# Execution

# The launch parameters of `execute`, `int64`: `tail`, `size` and `block` of the program; lanes; blocks of a task;
# floats of an arena, and the first one of its scratch memory; floats of an image and of an output; the most parts of a
# step, and the vector operations that are worth a part; the address of the counter that wakes workers, and how often
# they read it before they sleep; then address and length of each table. The tables are passed as addresses because
# passing an array from Python costs as much as a small layer.
(
    TAIL, SIZE, BLOCK, LANES, GROUP, FLOATS, SCRATCH, LENGTH, OUTPUT, PARTS, PART, WAKE_COUNTER, SPINS,
    STEPS, WEIGHTS, CONSTANTS, MOVES, OFFSETS,
) = (*range(13), *range(13, 23, 2))  # fmt: skip
FRAME = 23
# Columns of the table of weights: kind; addresses of taps, values, codebook and starts; tiles, units; addresses of
# scales and shifts; for a dense layer: inputs of a tile, units of a cell, addresses of counts and members.
KERNEL = 13

if os.name == "posix":
    _sleep = types.ExternalFunction("usleep", types.intc(types.uintc))
else:

    @_compiled
    def _sleep(microseconds):
        pass


@_compiled
def _step(
    row, frame, number, blocks, first, count, part, parts,
    arena, scratch, weights, constants, moves, offsets, images, output,
):  # fmt: skip
    """One step, or a part of it, for `blocks` blocks from block `number` on: `count` images from number `first` on."""
    size, block, lanes = frame[SIZE], frame[BLOCK], frame[LANES]
    if row[0] == opcodes.DENSE:
        _dense(row, size, number * block, block, lanes, blocks, arena, weights, constants, part, parts)
        return
    for i in range(blocks):
        offset, image, here = (number + i) * block, first + i * lanes, min(lanes, count - i * lanes)
        if row[0] == opcodes.CONVOLUTION:
            _convolution(row, size, offset, lanes, arena, weights, constants, offsets, scratch, part, parts)
        elif row[0] == opcodes.INPUT:
            _read_input(row, moves, size, offset, lanes, arena, images, image, here, frame[LENGTH])
        elif row[0] == opcodes.OUTPUT:
            _write_output(row, moves, size, offset, lanes, arena, output, image, here, frame[OUTPUT])
        elif row[0] == opcodes.COPY:
            _copy(row, moves, size, offset, lanes, arena)
        elif row[0] == opcodes.CLEAR:
            target = _index(row[1], size, offset, lanes)
            arena[target : target + row[2] * lanes] = np.float32(0)
        elif row[0] == opcodes.SCALE:
            _scale(row, moves, size, offset, lanes, arena, constants)
        elif row[0] == opcodes.ADD or row[0] == opcodes.MULTIPLY:
            _merge(row, moves, size, offset, lanes, arena, constants, row[0] == opcodes.MULTIPLY)
        elif row[0] == opcodes.MAP:
            _map(row, moves, size, offset, lanes, arena, constants)
        elif row[0] == opcodes.SOFTMAX:
            _softmax(row, size, offset, lanes, arena, scratch)
        else:
            _pool(row, size, offset, lanes, arena)


@_compiled
def _wait(done, tasks):
    """Return when `tasks` tasks are done: other threads work on the last ones."""
    turns = 0
    while _fetch_add(done, 0) < tasks:
        turns += 1
        if turns > 20_000:  # a hundred microseconds: that thread has lost its core, so give it this one
            _sleep(50)


@_inlined
def _run_steps(
    begin, end, steps, frame, number, blocks, first, count,
    arena, scratch, weights, constants, moves, offsets, images, output,
):  # fmt: skip
    for i in range(begin, end):
        _step(
            steps[i], frame, number, blocks, first, count, 0, 1,
            arena, scratch, weights, constants, moves, offsets, images, output,
        )  # fmt: skip


@_inlined
def _next_task(counter, last):
    """The number of the next task: from the counter, or `last + 1` if there is no counter."""
    return _fetch_add(counter, 1) if counter else last + 1


# What the threads of a job share, `int64`: the address of their common arena, or 0; then pairs of counters, tasks begun
# and tasks done, all 0 at first: one pair for the job or, with a common arena, one for the steps before the tail and
# one for each step of the tail.
PROGRESS = 1


@_compiled
def _execute(frame, own, images, output, first, count, shared, is_caller):
    """Run `count` images from number `first` on.

    `own` is the address of an arena that no other thread uses, `shared` that of what the threads of the job share, or 0
    for one thread alone. Each thread takes one task after the other. A task is a few blocks of images, in the thread's
    own arena. With a common arena, a task is a part of a step, and the next step begins when all parts are done. The
    caller's thread returns when all tasks are done.
    """
    steps = carray(_pointer(frame[STEPS]), (frame[STEPS + 1], opcodes.COLUMNS), np.int64)
    weights = carray(_pointer(frame[WEIGHTS]), (frame[WEIGHTS + 1], KERNEL), np.int64)
    constants = carray(_pointer(frame[CONSTANTS]), frame[CONSTANTS + 1], np.float32)
    moves = carray(_pointer(frame[MOVES]), (frame[MOVES + 1], opcodes.MOVE), np.int32)
    offsets = carray(_pointer(frame[OFFSETS]), frame[OFFSETS + 1], np.int32)
    own = carray(_pointer(own), frame[FLOATS], np.float32)
    arena, split, begun = own, False, 0
    if shared:
        common = carray(_pointer(shared), PROGRESS, np.int64)[0]
        split, begun = common != 0, shared + 8 * PROGRESS
        if split:
            arena = carray(_pointer(common), frame[FLOATS], np.float32)
    tail, lanes = frame[TAIL], frame[LANES]
    scratch = own[frame[SCRATCH] :]
    done = begun + 8
    if not split:
        most = lanes * frame[GROUP]  # images of a task
        tasks = (count + most - 1) // most
        task = _next_task(begun, -1)
        while task < tasks:
            image, left = first + task * most, min(most, count - task * most)
            blocks = (left + lanes - 1) // lanes
            for number in range(blocks):
                _run_steps(
                    0, tail, steps, frame, number, 1, image + number * lanes, left - number * lanes,
                    arena, scratch, weights, constants, moves, offsets, images, output,
                )  # fmt: skip
            _run_steps(
                tail, len(steps), steps, frame, 0, blocks, image, left,
                arena, scratch, weights, constants, moves, offsets, images, output,
            )  # fmt: skip
            if begun:
                _fetch_add(done, 1)
            task = _next_task(begun, task)
        if is_caller:
            _wait(done, tasks)
        return
    blocks, i = (count + lanes - 1) // lanes, 0
    if blocks > 1:  # Before the tail, each block is a part.
        number = _fetch_add(begun, 1)
        while number < blocks:
            _run_steps(
                0, tail, steps, frame, number, 1, first + number * lanes, count - number * lanes,
                arena, scratch, weights, constants, moves, offsets, images, output,
            )  # fmt: skip
            _fetch_add(done, 1)
            number = _fetch_add(begun, 1)
        _wait(done, blocks)
        i = tail
    while i < len(steps):
        begun += 16
        done += 16
        parts = min(frame[PARTS], 1 + steps[i, opcodes.WORK] * blocks // frame[PART])
        part = _fetch_add(begun, 1)
        while part < parts:
            _step(
                steps[i], frame, 0, blocks, first, count, part, parts,
                arena, scratch, weights, constants, moves, offsets, images, output,
            )  # fmt: skip
            _fetch_add(done, 1)
            part = _fetch_add(begun, 1)
        _wait(done, parts)
        i += 1


@_compiled
def _spin(counter, wake_count, spins):
    """Return when the counter is no longer `wake_count`, or after `spins` reads of it."""
    while spins > 0 and _fetch_add(counter, 0) == wake_count:
        spins -= 1


def _entry(sources: int):
    """`execute` for this state of the sources: Numba's files on disk notice changes of this file only."""

    @njit(cache=True, nogil=True, error_model="numpy")
    def execute(frame, own, images, output, first, count, shared, wake_count):
        known = carray(_pointer(frame), FRAME, np.int64)
        is_caller = shared != 0 and wake_count == 0
        if is_caller:
            _fetch_add(known[WAKE_COUNTER], 1)
        _execute(known, own, images, output, first, count, shared, is_caller)
        if wake_count:
            # A worker spins here. If it went back to Python now, it would wait for the lock that the caller has just
            # taken. The next call releases that lock and increments the counter.
            _spin(known[WAKE_COUNTER], wake_count, known[SPINS])
        return sources

    return execute


def _stamp() -> int:
    """A number that changes when a file of this folder does, by time and size as in Numba's own check."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return zlib.crc32(repr([(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files]).encode())


_compile_on_call = _entry(_stamp())


def _first_call(*arguments):
    """The first `execute` loads the compiled code or compiles it; later calls skip Numba's look at their types."""
    global execute
    _compile_on_call(*arguments)
    (compiled,) = _compile_on_call.overloads.values()
    execute = compiled.entry_point


# Arguments: address of the launch parameters, own, images, output, first, count, shared as in `_execute`; then 0 for
# the caller's thread, or for a worker the value of the wake counter for this job.
execute = _first_call
