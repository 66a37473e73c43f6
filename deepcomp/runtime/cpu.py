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

from deepcomp.compiled import compiled, told
from deepcomp.runtime import kernels, rows, vectors
from deepcomp.runtime.rows import (
    CELL_STEP,
    CLEAR_STEP,
    CONV,
    DENSE_STEP,
    GATHER_STEP,
    LAUNCH,
    MATMUL_STEP,
    MOVE,
    MOVE_STEP,
    NORMALIZE_STEP,
    POOL,
    SOFTMAX_STEP,
    STEP,
    WEIGHT,
)

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


@_compiled
def _clamped(x, low, high):
    """NaN stays NaN."""
    x = low if x < low else x
    return high if x > high else x


def _elementwise(function):
    """A compiled loop that applies `function(x, constants, first)`, whose parameters are `constants[first:]`."""
    function = _inlined(function)

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
_map_celu = _elementwise(
    lambda x, constants, first: x if x > np.float32(0) else constants[first] * _expm1(x / constants[first])
)
_map_hard_tanh = _elementwise(lambda x, constants, first: _clamped(x, np.float32(-1), np.float32(1)))
_map_hard_shrink = _elementwise(
    lambda x, constants, first: np.float32(0) if abs(x) <= constants[first] else x  # NaN stays NaN
)
_map_soft_shrink = _elementwise(lambda x, constants, first: x - _clamped(x, -constants[first], constants[first]))
_map_tanh_shrink = _elementwise(lambda x, constants, first: x - _tanh(x))
_map_log_sigmoid = _elementwise(lambda x, constants, first: -_softplus(-x))
_map_squareplus = _elementwise(lambda x, constants, first: np.float32(0.5) * (x + np.sqrt(x * x + constants[first])))
_map_sparse_plus = _elementwise(
    lambda x, constants, first: (
        np.float32(0)
        if x <= np.float32(-1)
        else (x if x >= np.float32(1) else np.float32(0.25) * (x + np.float32(1)) * (x + np.float32(1)))
    )
)
_map_sparse_sigmoid = _elementwise(
    lambda x, constants, first: _clamped(np.float32(0.5) * (x + np.float32(1)), np.float32(0), np.float32(1))
)
_map_differs = _elementwise(lambda x, constants, first: np.float32(0) if x == constants[first] else np.float32(1))
_map_reciprocal = _elementwise(lambda x, constants, first: np.float32(1) / x)


@_compiled
def _apply(function, target, source, constants, first):
    """Apply a function of `rows.FUNCTIONS`; its parameters are constants from number `first` on."""
    if function == rows.RELU:
        _map_relu(target, source, constants, first)
    elif function == rows.LEAKY_RELU:
        _map_leaky_relu(target, source, constants, first)
    elif function == rows.ELU:
        _map_elu(target, source, constants, first)
    elif function == rows.SELU:
        _map_selu(target, source, constants, first)
    elif function == rows.SIGMOID:
        _map_sigmoid(target, source, constants, first)
    elif function == rows.HARD_SIGMOID:
        _map_hard_sigmoid(target, source, constants, first)
    elif function == rows.TANH:
        _map_tanh(target, source, constants, first)
    elif function == rows.SOFTPLUS:
        _map_softplus(target, source, constants, first)
    elif function == rows.SOFTSIGN:
        _map_softsign(target, source, constants, first)
    elif function == rows.SILU:
        _map_silu(target, source, constants, first)
    elif function == rows.HARD_SILU:
        _map_hard_silu(target, source, constants, first)
    elif function == rows.GELU:
        _map_gelu(target, source, constants, first)
    elif function == rows.EXPONENTIAL:
        _map_exponential(target, source, constants, first)
    elif function == rows.CELU:
        _map_celu(target, source, constants, first)
    elif function == rows.HARD_TANH:
        _map_hard_tanh(target, source, constants, first)
    elif function == rows.HARD_SHRINK:
        _map_hard_shrink(target, source, constants, first)
    elif function == rows.SOFT_SHRINK:
        _map_soft_shrink(target, source, constants, first)
    elif function == rows.TANH_SHRINK:
        _map_tanh_shrink(target, source, constants, first)
    elif function == rows.LOG_SIGMOID:
        _map_log_sigmoid(target, source, constants, first)
    elif function == rows.SQUAREPLUS:
        _map_squareplus(target, source, constants, first)
    elif function == rows.SPARSE_PLUS:
        _map_sparse_plus(target, source, constants, first)
    elif function == rows.SPARSE_SIGMOID:
        _map_sparse_sigmoid(target, source, constants, first)
    elif function == rows.DIFFERS:
        _map_differs(target, source, constants, first)
    elif function == rows.RECIPROCAL:
        _map_reciprocal(target, source, constants, first)
    else:
        _map_mish(target, source, constants, first)


# Steps that are lists of moves


@_compiled
def _index(place, size, offset, lanes):
    """The index of the first float of a place; places from `size` on belong to a block, `offset` places further."""
    return (place + offset if place >= size else place) * lanes


@_compiled
def _copy_floats(target, source):
    for i in range(len(target)):  # assigning a slice would compile to much code for its errors
        target[i] = source[i]


@_compiled
def _matrix_moves(moves, m, end):
    """How many moves from number `m` on move a matrix and transpose it: `WIDTH`, of neighbouring sources, or 1."""
    width, target, source = kernels.WIDTH, moves[m, MOVE.target], moves[m, MOVE.source]
    if moves[m, MOVE.step] == 1 or m + width > end or moves[m + width - 1, MOVE.source] != source + width - 1:
        return 1
    apart = moves[m + 1, MOVE.target] - target
    for i in range(m + 1, m + width):
        if moves[i, MOVE.source] != source + i - m or moves[i, MOVE.target] != target + (i - m) * apart:
            return 1
        if moves[i, MOVE.step] != moves[m, MOVE.step] or moves[i, MOVE.count] != moves[m, MOVE.count]:
            return 1
    return width


@_compiled
def _move_single(row, moves, source, first, target, start):
    """Do moves for one image: to the floats of `target` from number `start` on, from those of `source`, from `first`.

    One image has all its places in common, so they need no offset.
    """
    m, end = row[MOVE_STEP.first_move], row[MOVE_STEP.first_move] + row[MOVE_STEP.moves]
    while m < end:
        together, step, places = _matrix_moves(moves, m, end), moves[m, MOVE.step], moves[m, MOVE.count]
        to, at = start + moves[m, MOVE.target], first + moves[m, MOVE.source]
        if together > 1 and places >= together:
            apart = moves[m + 1, MOVE.target] - moves[m, MOVE.target]
            for place in range(0, places, together):
                i = min(place, places - together)  # the last one may overlap its neighbour
                inner = source.ctypes.data + 4 * (at + i * step)
                vectors.transpose(inner, 4 * step, target.ctypes.data + 4 * (to + i), 4 * apart)
            m += together
            continue
        if step == 1:
            _copy_floats(target[to : to + places], source[at : at + places])
        else:
            out = target[to : to + places]
            for i in range(places):
                out[i] = source[at + i * step]
        m += 1


@_compiled
def _read_input(row, moves, size, offset, lanes, arena, images, first, count, length):
    m, end = row[MOVE_STEP.first_move], row[MOVE_STEP.first_move] + row[MOVE_STEP.moves]
    while m < end:
        move, together = moves[m], _matrix_moves(moves, m, end) if count == kernels.WIDTH else 1
        target = _index(move[MOVE.target], size, offset, lanes)
        source, step, places = first * length + move[MOVE.source], move[MOVE.step], move[MOVE.count]
        if together > 1:
            apart = moves[m + 1][MOVE.target] - move[MOVE.target]
            for i in range(places):
                start = images.ctypes.data + 4 * (source + i * step)
                vectors.transpose(start, 4 * length, arena.ctypes.data + 4 * (target + i * lanes), 4 * apart * lanes)
            m += together
            continue
        whole = places if step == 1 and count == kernels.WIDTH and places >= kernels.WIDTH else 0
        for place in range(0, whole, kernels.WIDTH):
            i = min(place, places - kernels.WIDTH)  # the last one may overlap its neighbour
            start = images.ctypes.data + 4 * (source + i)
            vectors.transpose(start, 4 * length, arena.ctypes.data + 4 * (target + i * lanes), 4 * lanes)
        for i in range(whole, places):
            out = arena[target + i * lanes : target + (i + 1) * lanes]
            start = source + i * step
            for lane in range(count):
                out[lane] = images[start + lane * length]
            for lane in range(count, lanes):
                out[lane] = np.float32(0)
        m += 1


@_compiled
def _write_output(row, moves, size, offset, lanes, arena, output, first, count, length):
    for m in range(row[MOVE_STEP.first_move], row[MOVE_STEP.first_move] + row[MOVE_STEP.moves]):
        move = moves[m]
        source = _index(move[MOVE.source], size, offset, lanes)
        target, step, places = move[MOVE.target], move[MOVE.step] * lanes, move[MOVE.count]
        if count == lanes:
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
    for m in range(row[MOVE_STEP.first_move], row[MOVE_STEP.first_move] + row[MOVE_STEP.moves]):
        move = moves[m]
        target = _index(move[MOVE.target], size, offset, lanes)
        source = _index(move[MOVE.source], size, offset, lanes)
        step, places = move[MOVE.step], move[MOVE.count]
        if step == 1:
            _copy_floats(arena[target : target + places * lanes], arena[source : source + places * lanes])
        else:
            for i in range(places):
                for lane in range(lanes):
                    arena[target + i * lanes + lane] = arena[source + i * step * lanes + lane]


@_compiled
def _scale(row, moves, size, offset, lanes, arena, constants):
    low, high, to_shift = constants[row[MOVE_STEP.low]], constants[row[MOVE_STEP.high]], row[MOVE_STEP.shift]
    for m in range(row[MOVE_STEP.first_move], row[MOVE_STEP.first_move] + row[MOVE_STEP.moves]):
        move = moves[m]
        target = _index(move[MOVE.target], size, offset, lanes)
        source = _index(move[MOVE.source], size, offset, lanes)
        other, step, other_step, places = move[MOVE.other], move[MOVE.step], move[MOVE.other_step], move[MOVE.count]
        run = places if step == 1 and (other_step == 0 or places == 1) else 1  # neighbouring places with the same scale
        for _ in range(0, places, run):
            scale, shift = constants[other], constants[other + to_shift]
            a = arena[target : target + run * lanes]
            b = arena[source : source + run * lanes]
            for j in range(len(a)):
                a[j] = _clamped(b[j] * scale + shift, low, high)
            target += run * lanes
            source += step * lanes
            other += other_step


@_compiled
def _merged(op, a, b, c, low, high):
    if op == rows.ADD:
        for j in range(len(a)):
            a[j] = _clamped(b[j] + c[j], low, high)
    elif op == rows.MULTIPLY:
        for j in range(len(a)):
            a[j] = _clamped(b[j] * c[j], low, high)
    elif op == rows.SUBTRACT:
        for j in range(len(a)):
            a[j] = _clamped(b[j] - c[j], low, high)
    elif op == rows.MAXIMUM:
        for j in range(len(a)):
            a[j] = _clamped(b[j] if b[j] > c[j] or b[j] != b[j] else c[j], low, high)
    else:
        for j in range(len(a)):
            a[j] = _clamped(b[j] if b[j] < c[j] or b[j] != b[j] else c[j], low, high)


@_compiled
def _merge(row, moves, size, offset, lanes, arena, constants):
    op = row[STEP.op]
    low, high = constants[row[MOVE_STEP.low]], constants[row[MOVE_STEP.high]]
    for m in range(row[MOVE_STEP.first_move], row[MOVE_STEP.first_move] + row[MOVE_STEP.moves]):
        move = moves[m]
        target = _index(move[MOVE.target], size, offset, lanes)
        source = _index(move[MOVE.source], size, offset, lanes)
        other = _index(move[MOVE.other], size, offset, lanes)
        step, other_step, places = move[MOVE.step], move[MOVE.other_step], move[MOVE.count]
        if lanes == 1 and step == 1 and other_step == 0 and (op == rows.ADD or op == rows.MULTIPLY):
            a = arena[target : target + places]
            b = arena[source : source + places]
            x = arena[other]
            for j in range(len(a)):
                a[j] = _clamped(b[j] * x if op == rows.MULTIPLY else b[j] + x, low, high)
            continue
        run = places if step == 1 and other_step == 1 else 1
        for _ in range(0, places, run):
            a = arena[target : target + run * lanes]
            b = arena[source : source + run * lanes]
            c = arena[other : other + run * lanes]
            _merged(op, a, b, c, low, high)
            target += run * lanes
            source += step * lanes
            other += other_step * lanes


@_compiled
def _map(row, moves, size, offset, lanes, arena, constants):
    for m in range(row[MOVE_STEP.first_move], row[MOVE_STEP.first_move] + row[MOVE_STEP.moves]):
        move = moves[m]
        target = _index(move[MOVE.target], size, offset, lanes)
        source = _index(move[MOVE.source], size, offset, lanes)
        step, places = move[MOVE.step], move[MOVE.count]
        run = places if step == 1 else 1
        for _ in range(0, places, run):
            out, inputs = arena[target : target + run * lanes], arena[source : source + run * lanes]
            _apply(row[MOVE_STEP.function], out, inputs, constants, row[MOVE_STEP.parameters])
            target += run * lanes
            source += step * lanes


# Other steps


@_compiled
def _clear(row, size, offset, lanes, arena):
    start = _index(row[CLEAR_STEP.target], size, offset, lanes)
    first, pitch, width = (
        row[CLEAR_STEP.first] * lanes,
        row[CLEAR_STEP.pitch] * lanes,
        row[CLEAR_STEP.width] * lanes,
    )
    lines, end = row[CLEAR_STEP.rows], row[CLEAR_STEP.size] * lanes
    for _ in range(row[CLEAR_STEP.maps]):
        arena[start : start + first] = np.float32(0)
        place = start + first + width
        for _ in range(lines - 1):
            arena[place : place + pitch - width] = np.float32(0)
            place += pitch
        if lines > 0:
            arena[place : start + end] = np.float32(0)
        start += row[CLEAR_STEP.plane] * lanes


@_compiled
def _softmax(row, size, offset, lanes, arena, scratch):
    """`scratch` has room for `rows.SCRATCH` floats a lane: the largest number, the sum, and that of a part."""
    target = _index(row[SOFTMAX_STEP.target], size, offset, lanes)
    source = _index(row[SOFTMAX_STEP.source], size, offset, lanes)
    columns = row[SOFTMAX_STEP.columns]
    most, total, part = scratch[:lanes], scratch[lanes : 2 * lanes], scratch[2 * lanes : 3 * lanes]
    for _ in range(row[SOFTMAX_STEP.rows]):
        a = arena[target : target + columns * lanes]
        b = arena[source : source + columns * lanes]
        most[:] = np.float32(-np.inf)
        total[:] = np.float32(0)
        for i in range(columns):
            for lane in range(lanes):
                x = b[i * lanes + lane]
                most[lane] = x if x > most[lane] else most[lane]
        for first in range(0, columns, rows.SUMMED):
            part[:] = np.float32(0)
            for i in range(first, min(first + rows.SUMMED, columns)):
                for lane in range(lanes):
                    x = _exp(b[i * lanes + lane] - most[lane])
                    a[i * lanes + lane] = x
                    part[lane] += x
            for lane in range(lanes):
                total[lane] += part[lane]
        for i in range(columns):
            for lane in range(lanes):
                a[i * lanes + lane] /= total[lane]
        target += columns * lanes
        source += columns * lanes


@_compiled
def _normalize(row, size, offset, lanes, arena, scratch, constants):
    """`scratch` has room for `rows.SCRATCH` floats a lane: the mean, the sum of squares, and that of a part."""
    target = _index(row[NORMALIZE_STEP.target], size, offset, lanes)
    source = _index(row[NORMALIZE_STEP.source], size, offset, lanes)
    columns, kind = row[NORMALIZE_STEP.columns], row[NORMALIZE_STEP.kind]
    epsilon, number = constants[row[NORMALIZE_STEP.epsilon]], np.float32(columns)
    mean, squares, part = scratch[:lanes], scratch[lanes : 2 * lanes], scratch[2 * lanes : 3 * lanes]
    for _ in range(row[NORMALIZE_STEP.rows]):
        a = arena[target : target + columns * lanes]
        b = arena[source : source + columns * lanes]
        mean[:] = np.float32(0)
        squares[:] = np.float32(0)
        if kind == rows.CENTERED:
            for first in range(0, columns, rows.SUMMED):
                part[:] = np.float32(0)
                for i in range(first, min(first + rows.SUMMED, columns)):
                    for lane in range(lanes):
                        part[lane] += b[i * lanes + lane]
                for lane in range(lanes):
                    mean[lane] += part[lane]
            for lane in range(lanes):
                mean[lane] /= number
            # The mean of what is left takes away the rounding of so many sums: equal numbers become exactly 0.
            for i in range(columns):
                for lane in range(lanes):
                    squares[lane] += b[i * lanes + lane] - mean[lane]
            for lane in range(lanes):
                mean[lane] += squares[lane] / number
            squares[:] = np.float32(0)
        for first in range(0, columns, rows.SUMMED):
            part[:] = np.float32(0)
            for i in range(first, min(first + rows.SUMMED, columns)):
                for lane in range(lanes):
                    x = b[i * lanes + lane] - mean[lane]
                    part[lane] += x * x
            for lane in range(lanes):
                squares[lane] += part[lane]
        for lane in range(lanes):
            if kind == rows.UNIT_NORM:
                squares[lane] = max(squares[lane], epsilon)
            else:
                squares[lane] = squares[lane] / number + epsilon
            squares[lane] = np.float32(1) / np.sqrt(squares[lane])
        for i in range(columns):
            for lane in range(lanes):
                a[i * lanes + lane] = (b[i * lanes + lane] - mean[lane]) * squares[lane]
        target += columns * lanes
        source += columns * lanes


@_compiled
def _matmul(row, size, offset, lanes, arena):
    target = _index(row[MATMUL_STEP.target], size, offset, lanes)
    source = _index(row[MATMUL_STEP.source], size, offset, lanes)
    other = _index(row[MATMUL_STEP.other], size, offset, lanes)
    columns, step = row[MATMUL_STEP.columns], row[MATMUL_STEP.other_column] * lanes
    for i in range(row[MATMUL_STEP.batch]):
        for r in range(row[MATMUL_STEP.rows]):
            out = arena[target : target + columns * lanes]
            out[:] = np.float32(0)
            left = source + (i * row[MATMUL_STEP.source_batch] + r * row[MATMUL_STEP.source_row]) * lanes
            right = other + i * row[MATMUL_STEP.other_batch] * lanes
            for _ in range(row[MATMUL_STEP.inner]):
                if lanes == 1 and step == 1:
                    x, b = arena[left], arena[right : right + columns]
                    for c in range(len(out)):
                        out[c] += x * b[c]
                else:
                    a = arena[left : left + lanes]
                    for c in range(columns):
                        b = arena[right + c * step : right + c * step + lanes]
                        sums = out[c * lanes : (c + 1) * lanes]
                        for lane in range(lanes):
                            sums[lane] += a[lane] * b[lane]
                left += row[MATMUL_STEP.source_inner] * lanes
                right += row[MATMUL_STEP.other_inner] * lanes
            target += columns * lanes


@_compiled
def _gather(row, size, offset, lanes, arena, weights):
    target = _index(row[GATHER_STEP.target], size, offset, lanes)
    source = _index(row[GATHER_STEP.source], size, offset, lanes)
    w = weights[row[GATHER_STEP.weights]]
    count, units, kind = w[WEIGHT.tiles], w[WEIGHT.units], w[WEIGHT.kind]
    codebook = carray(_pointer(w[WEIGHT.codebook]), 2**16, np.float32)
    bytes_ = carray(_pointer(w[WEIGHT.values]), count * units, np.uint8)
    words = carray(_pointer(w[WEIGHT.values]), count * units, np.uint16)
    floats = carray(_pointer(w[WEIGHT.values]), count * units, np.float32)
    for position in range(row[GATHER_STEP.positions]):
        for lane in range(lanes):
            number = arena[source + position * row[GATHER_STEP.source_step] * lanes + lane]
            there = number >= np.float32(0) and number < np.float32(count)
            first = np.int64(number) * units if there else 0
            out = target + position * row[GATHER_STEP.target_step] * lanes + lane
            for unit in range(units):
                value = np.float32(np.nan)
                if there and kind == vectors.UINT8:
                    value = codebook[bytes_[first + unit]]
                elif there and kind == vectors.UINT16:
                    value = codebook[words[first + unit]]
                elif there:
                    value = floats[first + unit]
                arena[out + unit * row[GATHER_STEP.plane] * lanes] = value


@_compiled
def _add_gates(row, first, last, source, product, lanes, arena):
    """Add the inputs of the gates from number `first` up to, but without, `last` to the product."""
    step = row[CELL_STEP.source_step] * lanes
    for gate in range(first, last):
        a = arena[product + gate * lanes : product + (gate + 1) * lanes]
        b = arena[source + gate * step : source + gate * step + lanes]
        for lane in range(len(a)):
            a[lane] += b[lane]


@_compiled
def _cell(row, size, offset, lanes, arena, constants):
    kind, units = row[CELL_STEP.kind], row[CELL_STEP.units]
    target = _index(row[CELL_STEP.target], size, offset, lanes)
    previous = _index(row[CELL_STEP.previous], size, offset, lanes)
    product = _index(row[CELL_STEP.product], size, offset, lanes)
    carry = _index(row[CELL_STEP.carry], size, offset, lanes)
    source = _index(row[CELL_STEP.source], size, offset, lanes)
    function, own = row[CELL_STEP.function], row[CELL_STEP.parameters]
    gate, others = row[CELL_STEP.recurrent_function], row[CELL_STEP.recurrent_parameters]
    count = units * lanes
    after, before, second = (
        arena[target : target + count],
        arena[previous : previous + count],
        arena[carry : carry + count],
    )
    a, b = arena[product : product + count], arena[product + count : product + 2 * count]
    if kind == rows.RESET:
        _add_gates(row, units, 2 * units, source, product, lanes, arena)
        _apply(gate, b, b, constants, others)
        for j in range(count):
            second[j] = b[j] * before[j]
        return
    if kind == rows.SIMPLE:
        _add_gates(row, 0, units, source, product, lanes, arena)
        _apply(function, after, a, constants, own)
    elif kind == rows.LSTM:
        c, d = arena[product + 2 * count : product + 3 * count], arena[product + 3 * count : product + 4 * count]
        _add_gates(row, 0, 4 * units, source, product, lanes, arena)
        _apply(gate, a, a, constants, others)
        _apply(gate, b, b, constants, others)
        _apply(function, c, c, constants, own)
        _apply(gate, d, d, constants, others)
        for j in range(count):
            a[j] = b[j] * second[j] + a[j] * c[j]
        _apply(function, c, a, constants, own)
        for j in range(count):
            after[j] = d[j] * c[j]
    else:
        c = arena[product + 2 * count : product + 3 * count]
        if kind == rows.GRU:
            _add_gates(row, 0, 2 * units, source, product, lanes, arena)
            _apply(gate, b, b, constants, others)
            for j in range(count):
                c[j] *= b[j]
        else:
            _add_gates(row, 0, units, source, product, lanes, arena)
        _apply(gate, a, a, constants, others)
        _add_gates(row, 2 * units, 3 * units, source, product, lanes, arena)
        _apply(function, c, c, constants, own)
        for j in range(count):
            after[j] = a[j] * before[j] + (np.float32(1) - a[j]) * c[j]
    if row[CELL_STEP.mask] >= 0:
        mask = _index(row[CELL_STEP.mask], size, offset, lanes)
        for j in range(count):
            if arena[mask + j % lanes] == np.float32(0):
                after[j] = before[j]
                a[j] = second[j]
    if kind == rows.LSTM:
        for j in range(count):
            second[j] = a[j]


@_compiled
def _reduce(op, target, source):
    """Take numbers into the maximum or the sum of each place."""
    if op == rows.AVERAGE_POOL:
        for i in range(len(target)):
            target[i] += source[i]
    elif op == rows.MAX_POOL:
        for i in range(len(target)):
            target[i] = source[i] if source[i] > target[i] else target[i]
    else:
        for i in range(len(target)):
            target[i] = target[i] if target[i] > source[i] or target[i] != target[i] else source[i]


@_compiled
def _pool_columns(op, out, line, first, last, scratch):
    """Pool the columns `first` to `last` of a row of the windows, whose places hold `len(out)` floats each."""
    lanes = len(out)
    if op == rows.AVERAGE_POOL:
        part = scratch[:lanes]
        for begin in range(first, last, rows.SUMMED):
            part[:] = np.float32(0)
            for column in range(begin, min(begin + rows.SUMMED, last)):
                _reduce(op, part, line[column * lanes : (column + 1) * lanes])
            _reduce(op, out, part)
    else:
        for column in range(first, last):
            _reduce(op, out, line[column * lanes : (column + 1) * lanes])


@_compiled
def _pool_numbers(op, out, line, window, stride, left):
    """`_pool_columns` of all windows of a row where a place holds one float: each column of all windows at once.

    `_reduce` of slices would take twice as long where a row has few windows.
    """
    width = len(line)
    # A window may be much wider than the row: columns that lie in the padding of all windows are left out.
    for column in range(max(left - (len(out) - 1) * stride, 0), min(window, width + left)):
        first = (max(left - column, 0) + stride - 1) // stride
        last = min(len(out), (width - 1 + left - column) // stride + 1)
        start = column - left
        if op == rows.AVERAGE_POOL:
            for x in range(first, last):
                out[x] += line[start + x * stride]
        elif op == rows.MAX_POOL:
            for x in range(first, last):
                value = line[start + x * stride]
                out[x] = value if value > out[x] else out[x]
        else:
            for x in range(first, last):
                value = line[start + x * stride]
                out[x] = out[x] if out[x] > value or out[x] != out[x] else value


@_compiled
def _pool(row, size, offset, lanes, arena, scratch):
    """Pool the rows of a row of windows, then the columns. `scratch` has room for a row and a place more."""
    op = row[STEP.op]
    target, source = _index(row[POOL.target], size, offset, lanes), _index(row[POOL.source], size, offset, lanes)
    plane, pitch = row[POOL.plane] * lanes, row[POOL.pitch] * lanes
    source_plane, source_pitch = row[POOL.source_plane] * lanes, row[POOL.source_pitch] * lanes
    height, width, columns = row[POOL.height], row[POOL.width], row[POOL.columns]
    window_y, window_x, top, left = row[POOL.window_y], row[POOL.window_x], row[POOL.top], row[POOL.left]
    stride_y, stride_x = row[POOL.stride_y], row[POOL.stride_x]
    start = np.float32(np.finfo(np.float32).min)
    if op != rows.MAX_POOL:
        start = np.float32(0) if op == rows.AVERAGE_POOL else np.float32(-np.inf)
    line, rest = scratch[: width * lanes], scratch[width * lanes :]
    for c in range(row[POOL.channels]):
        for y in range(row[POOL.rows]):
            first_y, last_y = max(y * stride_y - top, 0), min(y * stride_y - top + window_y, height)
            line[:] = start
            for row_y in range(first_y, last_y):
                above = source + c * source_plane + row_y * source_pitch
                _reduce(op, line, arena[above : above + width * lanes])
            place = target + c * plane + y * pitch
            out = arena[place : place + columns * lanes]
            out[:] = start
            # Sums of long rows are sums of parts.
            at_once = lanes == 1 and (op != rows.AVERAGE_POOL or columns == 1 or min(window_x, width) <= rows.SUMMED)
            if at_once and columns == 1:
                first_x, last_x = max(-left, 0), min(window_x - left, width)
                for begin in range(first_x, last_x, vectors.WIDTH * rows.SUMMED):
                    count = min(last_x - begin, vectors.WIDTH * rows.SUMMED)
                    vectors.pool_row(op, line.ctypes.data + 4 * begin, count, rest.ctypes.data, start)
                    _reduce(op, out, rest[:1])
            elif at_once:
                _pool_numbers(op, out, line, window_x, stride_x, left)
            for x in range(columns if op == rows.AVERAGE_POOL or not at_once else 0):
                first_x, last_x = max(x * stride_x - left, 0), min(x * stride_x - left + window_x, width)
                one = out[x * lanes : (x + 1) * lanes]
                if not at_once:
                    _pool_columns(op, one, line, first_x, last_x, rest)
                if op == rows.AVERAGE_POOL:
                    number = np.float32((last_y - first_y) * (last_x - first_x))
                    for lane in range(lanes):
                        one[lane] /= number


@_inlined
def _convolution(row, size, offset, lanes, arena, weights, constants, offsets, scratch, part, parts):
    memory, w = arena.ctypes.data, weights[row[CONV.weights]]
    target = memory + 4 * _index(row[CONV.target], size, offset, lanes)
    source = memory + 4 * _index(row[CONV.source], size, offset, lanes)
    addend = 0
    if row[CONV.addend] >= 0:
        addend = memory + 4 * _index(row[CONV.addend], size, offset, lanes)
    low, high = constants[row[CONV.low]], constants[row[CONV.high]]
    table, room = offsets.ctypes.data + 4 * row[CONV.offsets], scratch.ctypes.data
    together = vectors.UNITS if w[WEIGHT.inputs] else 1  # a part has as many units as are computed at once
    groups = (w[WEIGHT.units] + together - 1) // together
    first = groups * part // parts * together
    last = min(groups * (part + 1) // parts * together, w[WEIGHT.units])
    if lanes == 1:
        kernels.conv_positions(
            first, last, w[WEIGHT.kind], w[WEIGHT.taps], w[WEIGHT.values], w[WEIGHT.codebook], w[WEIGHT.starts],
            w[WEIGHT.tiles], w[WEIGHT.inputs], table, row[CONV.per_group], row[CONV.group_step],
            source, row[CONV.step_y], target, row[CONV.plane], row[CONV.pitch], row[CONV.top],
            row[CONV.phases], row[CONV.phase], row[CONV.odd],
            row[CONV.height], row[CONV.width], row[CONV.tile], row[CONV.pool],
            addend, row[CONV.addend_plane], row[CONV.addend_pitch],
            w[WEIGHT.scale], w[WEIGHT.shift], low, high, room,
        )  # fmt: skip
    else:
        kernels.conv_lanes(
            first, last, w[WEIGHT.kind], w[WEIGHT.taps], w[WEIGHT.values], w[WEIGHT.codebook], w[WEIGHT.starts],
            w[WEIGHT.tiles], w[WEIGHT.inputs], table, row[CONV.per_group], row[CONV.group_step],
            source, row[CONV.step_y], row[CONV.step_x], target, row[CONV.plane], row[CONV.pitch],
            row[CONV.height], row[CONV.width], row[CONV.pool],
            addend, row[CONV.addend_plane], row[CONV.addend_pitch],
            w[WEIGHT.scale], w[WEIGHT.shift], low, high, room,
        )  # fmt: skip


@_inlined
def _dense(row, size, offset, block, lanes, blocks, arena, weights, constants, scratch, part, parts):
    memory, w = arena.ctypes.data, weights[row[DENSE_STEP.weights]]
    target = memory + 4 * _index(row[DENSE_STEP.target], size, offset, lanes)
    source = memory + 4 * _index(row[DENSE_STEP.source], size, offset, lanes)
    low, high = constants[row[DENSE_STEP.low]], constants[row[DENSE_STEP.high]]
    span = kernels.WIDTH if w[WEIGHT.inputs] else w[WEIGHT.span]
    spans = (w[WEIGHT.units] + span - 1) // span
    first, last = spans * part // parts, spans * (part + 1) // parts
    if w[WEIGHT.inputs] and lanes == 1:
        kernels.dense_full_single(
            first, last, w[WEIGHT.kind], w[WEIGHT.values], w[WEIGHT.codebook], w[WEIGHT.units], w[WEIGHT.inputs],
            source, target, w[WEIGHT.scale], w[WEIGHT.shift], low, high,
        )  # fmt: skip
    elif w[WEIGHT.inputs]:
        kernels.dense_full_lanes(
            first, last, blocks, w[WEIGHT.kind], w[WEIGHT.values], w[WEIGHT.codebook], w[WEIGHT.units],
            w[WEIGHT.inputs], source, block * lanes, target, block * lanes, w[WEIGHT.scale], w[WEIGHT.shift],
            low, high, scratch.ctypes.data,
        )  # fmt: skip
    elif lanes == 1:
        kernels.dense_single(
            first, last, w[WEIGHT.kind], w[WEIGHT.taps], w[WEIGHT.values], w[WEIGHT.codebook], w[WEIGHT.starts],
            w[WEIGHT.counts], w[WEIGHT.members], w[WEIGHT.units], w[WEIGHT.tiles], w[WEIGHT.tile], w[WEIGHT.span],
            source, target, w[WEIGHT.scale], w[WEIGHT.shift], low, high,
        )  # fmt: skip
    else:
        kernels.dense_lanes(
            first, last, blocks, w[WEIGHT.kind], w[WEIGHT.taps], w[WEIGHT.values], w[WEIGHT.codebook],
            w[WEIGHT.starts], w[WEIGHT.counts], w[WEIGHT.members], w[WEIGHT.units], w[WEIGHT.tiles], w[WEIGHT.tile],
            w[WEIGHT.span], source, block * lanes, target, block * lanes, w[WEIGHT.scale], w[WEIGHT.shift], low, high,
        )  # fmt: skip


# Execution

if os.name == "posix":
    _sleep = types.ExternalFunction("usleep", types.intc(types.uintc))
else:

    @_compiled
    def _sleep(microseconds):
        pass


@_compiled
def _step(
    row, launch, number, blocks, first, count, part, parts,
    arena, scratch, weights, constants, moves, offsets, images, output,
):  # fmt: skip
    """One step, or a part of it, for `blocks` blocks from block `number` on: `count` images from number `first` on."""
    size, block, lanes = launch[LAUNCH.size], launch[LAUNCH.block], launch[LAUNCH.lanes]
    if row[STEP.op] == rows.DENSE:
        _dense(row, size, number * block, block, lanes, blocks, arena, weights, constants, scratch, part, parts)
        return
    for i in range(blocks):
        offset, image, here = (number + i) * block, first + i * lanes, min(lanes, count - i * lanes)
        if row[STEP.op] == rows.CONVOLUTION:
            _convolution(row, size, offset, lanes, arena, weights, constants, offsets, scratch, part, parts)
        elif row[STEP.op] == rows.INPUT and lanes == 1:
            _move_single(row, moves, images, image * launch[LAUNCH.input_floats], arena, np.int64(0))
        elif row[STEP.op] == rows.OUTPUT and lanes == 1:
            _move_single(row, moves, arena, np.int64(0), output, image * launch[LAUNCH.output_floats])
        elif row[STEP.op] == rows.COPY and lanes == 1:
            _move_single(row, moves, arena, np.int64(0), arena, np.int64(0))
        elif row[STEP.op] == rows.INPUT:
            _read_input(row, moves, size, offset, lanes, arena, images, image, here, launch[LAUNCH.input_floats])
        elif row[STEP.op] == rows.OUTPUT:
            _write_output(row, moves, size, offset, lanes, arena, output, image, here, launch[LAUNCH.output_floats])
        elif row[STEP.op] == rows.COPY:
            _copy(row, moves, size, offset, lanes, arena)
        elif row[STEP.op] == rows.CLEAR:
            _clear(row, size, offset, lanes, arena)
        elif row[STEP.op] == rows.SCALE:
            _scale(row, moves, size, offset, lanes, arena, constants)
        elif row[STEP.op] == rows.MAP:
            _map(row, moves, size, offset, lanes, arena, constants)
        elif row[STEP.op] < rows.MAP:
            _merge(row, moves, size, offset, lanes, arena, constants)
        elif row[STEP.op] == rows.SOFTMAX:
            _softmax(row, size, offset, lanes, arena, scratch)
        elif row[STEP.op] == rows.NORMALIZE:
            _normalize(row, size, offset, lanes, arena, scratch, constants)
        elif row[STEP.op] == rows.MATMUL:
            _matmul(row, size, offset, lanes, arena)
        elif row[STEP.op] == rows.GATHER:
            _gather(row, size, offset, lanes, arena, weights)
        elif row[STEP.op] == rows.CELL:
            _cell(row, size, offset, lanes, arena, constants)
        else:
            _pool(row, size, offset, lanes, arena, scratch)


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
    begin, end, steps, launch, number, blocks, first, count,
    arena, scratch, weights, constants, moves, offsets, images, output,
):  # fmt: skip
    # Plain integers: a literal is a type of its own, for which all would be compiled once more.
    for i in range(begin, end):
        _step(
            steps[i], launch, np.int64(number), np.int64(blocks), first, count, np.int64(0), np.int64(1),
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
def _execute(launch, own, images, output, first, count, shared, is_caller):
    """Run `count` images from number `first` on.

    `own` is the address of an arena that no other thread uses, `shared` that of what the threads of the job share, or 0
    for one thread alone. Each thread takes one task after the other. A task is a few blocks of images, in the thread's
    own arena. With a common arena, a task is a part of a step, and the next step begins when all parts are done. The
    caller's thread returns when all tasks are done.
    """
    steps = carray(_pointer(launch[LAUNCH.steps]), (launch[LAUNCH.steps_count], rows.STEP_COLUMNS), np.int64)
    weights = carray(_pointer(launch[LAUNCH.weights]), (launch[LAUNCH.weights_count], len(WEIGHT)), np.int64)
    constants = carray(_pointer(launch[LAUNCH.constants]), launch[LAUNCH.constants_count], np.float32)
    moves = carray(_pointer(launch[LAUNCH.moves]), (launch[LAUNCH.moves_count], len(MOVE)), np.int32)
    offsets = carray(_pointer(launch[LAUNCH.offsets]), launch[LAUNCH.offsets_count], np.int32)
    own = carray(_pointer(own), launch[LAUNCH.floats], np.float32)
    arena, split, begun = own, False, 0
    if shared:
        common = carray(_pointer(shared), PROGRESS, np.int64)[0]
        split, begun = common != 0, shared + 8 * PROGRESS
        if split:
            arena = carray(_pointer(common), launch[LAUNCH.floats], np.float32)
    tail, lanes = launch[LAUNCH.tail], launch[LAUNCH.lanes]
    scratch = own[launch[LAUNCH.scratch] :]
    done = begun + 8
    if not split:
        most = lanes * launch[LAUNCH.blocks_a_task]  # images of a task
        tasks = (count + most - 1) // most
        task = _next_task(begun, -1)
        while task < tasks:
            image, left = first + task * most, min(most, count - task * most)
            blocks = (left + lanes - 1) // lanes
            for number in range(blocks):
                _run_steps(
                    0, tail, steps, launch, number, 1, image + number * lanes, left - number * lanes,
                    arena, scratch, weights, constants, moves, offsets, images, output,
                )  # fmt: skip
            _run_steps(
                tail, len(steps), steps, launch, 0, blocks, image, left,
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
                0, tail, steps, launch, number, 1, first + number * lanes, count - number * lanes,
                arena, scratch, weights, constants, moves, offsets, images, output,
            )  # fmt: skip
            _fetch_add(done, 1)
            number = _fetch_add(begun, 1)
        _wait(done, blocks)
        i = tail
    while i < len(steps):
        begun += 16
        done += 16
        parts = min(launch[LAUNCH.most_parts], 1 + steps[i, STEP.work] * blocks // launch[LAUNCH.part_work])
        part = _fetch_add(begun, 1)
        while part < parts:
            _step(
                steps[i], launch, np.int64(0), blocks, first, count, part, parts,
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

    @compiled(nogil=True, error_model="numpy")
    def execute(launch, own, images, output, first, count, shared, wake_count):
        parameters = carray(_pointer(launch), len(LAUNCH), np.int64)
        is_caller = shared != 0 and wake_count == 0
        if is_caller:
            _fetch_add(parameters[LAUNCH.wake_counter], 1)
        _execute(parameters, own, images, output, first, count, shared, is_caller)
        if wake_count:
            # A worker spins here. If it went back to Python now, it would wait for the lock that the caller has just
            # taken. The next call releases that lock and increments the counter.
            _spin(parameters[LAUNCH.wake_counter], wake_count, parameters[LAUNCH.spins])
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
    with told("deepcomp: the engine is being compiled, once for this machine; it takes up to two minutes."):
        _compile_on_call(*arguments)
    (compiled,) = _compile_on_call.overloads.values()
    execute = compiled.entry_point


# Arguments: address of a row `Launch`, own, images, output, first, count, shared as in `_execute`; then 0 for
# the caller's thread, or for a worker the value of the wake counter for this job.
execute = _first_call
