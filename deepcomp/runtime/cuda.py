"""Runs a plan on a GPU: a CUDA kernel for each operation, all steps in order on one stream (package numba-cuda).

A GPU runs the program for batches. A place holds `lanes` floats, one for each image that runs at the same time.
Threads are numbered along the images first, then along the places, so memory access is coalesced for one image as for
a thousand. The weights stay compressed in the device's memory: the threads of a block decode one weight each, then
every thread, which holds four sums, multiplies by all of them.
"""

import importlib.util
import math
import threading
from typing import Any, NamedTuple

import numpy as np
from numba.core import config

from deepcomp.dcz.network import Network
from deepcomp.errors import FormatError, RecipeError
from deepcomp.runtime import rows
from deepcomp.runtime.engine import Engine
from deepcomp.runtime.packing import TILE
from deepcomp.runtime.plan import Plan, StepWeights
from deepcomp.runtime.profiling import Profile
from deepcomp.runtime.vectors import MAX, NONE

_INSTALL = "device='cuda' needs the package numba-cuda: pip install 'deepcomp[cuda]'."
try:
    from numba import cuda
except ImportError as error:
    raise RecipeError(_INSTALL) from error
except AttributeError as error:  # numba-cuda 0.30.4 asks NumPy 2.5 for `row_stack`, which is gone
    raise RecipeError(
        f"numba-cuda does not work with NumPy {np.__version__}: {error}. Install an older NumPy."
    ) from error

THREADS = 128  # of a block, a power of 2
SIDE = 32  # of the square tiles that transpose images to lanes and back; at most THREADS
PITCH = SIDE + 1  # floats of a tile's row: an odd number avoids bank conflicts
_ITEMS = 4  # sums of a thread
_MAX_FLOATS = 2**26  # of device memory: a batch that needs more runs in parts
_LEAST = float(np.finfo(np.float32).min)  # the start of a maximum in TensorFlow
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


# Functions of the kernels


@cuda.jit(device=True)
def _clamped(x, low, high):
    """NaN stays NaN."""
    x = low if x < low else x
    return high if x > high else x


@cuda.jit(device=True)
def _larger(x, most):
    """NaN is ignored."""
    return x if x > most else most


@cuda.jit(device=True)
def _decoded(values, codebook, number):
    """Weight number `number`; without a codebook the values are the weights."""
    return codebook[int(values[number])] if len(codebook) > 0 else np.float32(values[number])


@cuda.jit(device=True)
def _reduced(shared, width, value, maximum):
    """The sum, or the maximum, over the threads of a block whose numbers are equal modulo `width`."""
    thread, half = cuda.threadIdx.x, THREADS // 2
    shared[thread] = value
    cuda.syncthreads()
    while half >= width:
        if thread < half:
            a, b = shared[thread], shared[thread + half]
            shared[thread] = _larger(a, b) if maximum else a + b
        cuda.syncthreads()
        half //= 2
    value = shared[thread % width]
    cuda.syncthreads()
    return value


# Input, output, and steps that are lists of moves: element n goes from place `sources[n]` to place `targets[n]`


@cuda.jit
def _read_input(targets, sources, length, lanes, images, memory):
    tile = cuda.shared.array((SIDE, PITCH), np.float32)
    tiles = (len(targets) + SIDE - 1) // SIDE
    first, image = cuda.blockIdx.x % tiles * SIDE, cuda.blockIdx.x // tiles * SIDE
    column = cuda.threadIdx.x % SIDE
    for row in range(cuda.threadIdx.x // SIDE, SIDE, THREADS // SIDE):
        if first + column < len(targets) and image + row < lanes:
            tile[row, column] = images[(image + row) * length + sources[first + column]]
    cuda.syncthreads()
    for row in range(cuda.threadIdx.x // SIDE, SIDE, THREADS // SIDE):
        if first + row < len(targets) and image + column < lanes:
            memory[targets[first + row] * lanes + image + column] = tile[column, row]


@cuda.jit
def _write_output(targets, sources, length, lanes, memory, output):
    tile = cuda.shared.array((SIDE, PITCH), np.float32)
    tiles = (len(targets) + SIDE - 1) // SIDE
    first, image = cuda.blockIdx.x % tiles * SIDE, cuda.blockIdx.x // tiles * SIDE
    column = cuda.threadIdx.x % SIDE
    for row in range(cuda.threadIdx.x // SIDE, SIDE, THREADS // SIDE):
        if first + row < len(targets) and image + column < lanes:
            tile[row, column] = memory[sources[first + row] * lanes + image + column]
    cuda.syncthreads()
    for row in range(cuda.threadIdx.x // SIDE, SIDE, THREADS // SIDE):
        if first + column < len(targets) and image + row < lanes:
            output[(image + row) * length + targets[first + column]] = tile[column, row]


@cuda.jit
def _copy(targets, sources, lanes, memory):
    item = cuda.grid(1)
    number, lane = item // lanes, item % lanes
    if number < len(targets):
        memory[targets[number] * lanes + lane] = memory[sources[number] * lanes + lane]


@cuda.jit
def _clear(row, lanes, memory):
    """A thread: a place of a map for an image."""
    step = rows.ClearStep(*row)
    item = cuda.grid(1)
    number, lane = item // lanes, item % lanes
    if number < step.maps * step.size:
        place = number % step.size
        inside = place - step.first
        if inside < 0 or inside // max(step.pitch, 1) >= step.rows or inside % max(step.pitch, 1) >= step.width:
            memory[(step.target + number // step.size * step.plane + place) * lanes + lane] = np.float32(0)


@cuda.jit
def _scale(targets, sources, others, low, high, to_shift, lanes, memory, constants):
    item = cuda.grid(1)
    number, lane = item // lanes, item % lanes
    if number < len(targets):
        scale, shift = constants[others[number]], constants[others[number] + to_shift]
        x = memory[sources[number] * lanes + lane] * scale + shift
        memory[targets[number] * lanes + lane] = _clamped(x, constants[low], constants[high])


@cuda.jit
def _merge(targets, sources, others, low, high, op, lanes, memory, constants):
    item = cuda.grid(1)
    number, lane = item // lanes, item % lanes
    if number < len(targets):
        x, y = memory[sources[number] * lanes + lane], memory[others[number] * lanes + lane]
        if op == rows.ADD:
            x = x + y
        elif op == rows.MULTIPLY:
            x = x * y
        elif op == rows.SUBTRACT:
            x = x - y
        elif op == rows.MAXIMUM:
            x = x if x > y or x != x else y
        else:
            x = x if x < y or x != x else y
        memory[targets[number] * lanes + lane] = _clamped(x, constants[low], constants[high])


@cuda.jit(device=True)
def _sigmoid(x):
    return np.float32(1) / (np.float32(1) + np.float32(math.exp(-x)))


@cuda.jit(device=True)
def _softplus(x):
    return max(x, np.float32(0)) + np.float32(math.log1p(math.exp(-abs(x)))) if x == x else x


@cuda.jit(device=True)
def _hard_sigmoid(x):
    return _clamped(x + np.float32(3), np.float32(0), np.float32(6)) / np.float32(6)


@cuda.jit(device=True)
def _relu(x, slope, threshold, most):
    above, below = x if x > threshold else np.float32(0), threshold - x
    if threshold == np.float32(0) and x != x:
        above = x  # NaN stays NaN, as on the CPU
    above = most if above > most else above
    below = np.float32(0) if below < np.float32(0) else below
    return above - slope * below if slope != np.float32(0) else above


@cuda.jit(device=True)
def _mapped(function, x, constants, first):
    """A function of `rows.FUNCTIONS`; its parameters are constants from number `first` on."""
    if function == rows.RELU:
        return _relu(x, constants[first], constants[first + 1], constants[first + 2])
    if function == rows.LEAKY_RELU:
        return x if x > np.float32(0) else x * constants[first]
    if function == rows.ELU:
        return x if x > np.float32(0) else constants[first] * np.float32(math.expm1(x))
    if function == rows.SELU:
        return np.float32(_SELU_SCALE) * (
            x if x > np.float32(0) else np.float32(_SELU_ALPHA) * np.float32(math.expm1(x))
        )
    if function == rows.SIGMOID:
        return _sigmoid(x)
    if function == rows.HARD_SIGMOID:
        return _hard_sigmoid(x)
    if function == rows.TANH:
        return np.float32(math.tanh(x))
    if function == rows.SOFTPLUS:
        return _softplus(x)
    if function == rows.SOFTSIGN:
        return x / (abs(x) + np.float32(1))
    if function == rows.SILU:
        return x * _sigmoid(x)
    if function == rows.HARD_SILU:
        return x * _hard_sigmoid(x)
    if function == rows.GELU:
        return np.float32(0.5) * x * (np.float32(1) + np.float32(math.erf(x * np.float32(math.sqrt(0.5)))))
    if function == rows.EXPONENTIAL:
        return np.float32(math.exp(x))
    if function == rows.CELU:
        alpha = constants[first]
        return x if x > np.float32(0) else alpha * np.float32(math.expm1(x / alpha))
    if function == rows.HARD_TANH:
        return _clamped(x, np.float32(-1), np.float32(1))
    if function == rows.HARD_SHRINK:
        return np.float32(0) if abs(x) <= constants[first] else x
    if function == rows.SOFT_SHRINK:
        return x - _clamped(x, -constants[first], constants[first])
    if function == rows.TANH_SHRINK:
        return x - np.float32(math.tanh(x))
    if function == rows.LOG_SIGMOID:
        return -_softplus(-x)
    if function == rows.SQUAREPLUS:
        return np.float32(0.5) * (x + np.float32(math.sqrt(x * x + constants[first])))
    if function == rows.SPARSE_PLUS:
        square = np.float32(0.25) * (x + np.float32(1)) * (x + np.float32(1))
        return np.float32(0) if x <= np.float32(-1) else (x if x >= np.float32(1) else square)
    if function == rows.SPARSE_SIGMOID:
        return _clamped(np.float32(0.5) * (x + np.float32(1)), np.float32(0), np.float32(1))
    if function == rows.DIFFERS:
        return np.float32(0) if x == constants[first] else np.float32(1)
    if function == rows.RECIPROCAL:
        return np.float32(1) / x
    return x * np.float32(math.tanh(_softplus(x)))  # mish


@cuda.jit
def _map(targets, sources, function, first, lanes, memory, constants):
    item = cuda.grid(1)
    number, lane = item // lanes, item % lanes
    if number < len(targets):
        x = memory[sources[number] * lanes + lane]
        memory[targets[number] * lanes + lane] = _mapped(function, x, constants, first)


class _Layer(NamedTuple):
    """Of a convolution or a dense layer: its units, tiles of inputs, and the numbers of its first scale and shift."""

    units: int
    tiles: int
    scale: int
    shift: int


# Other steps: `row` is a row of the table of steps


@cuda.jit
def _softmax(row, lanes, wide, memory):
    """A block: a row of `wide` images; `THREADS // wide` threads share it."""
    shared = cuda.shared.array(THREADS, np.float32)
    step = rows.SoftmaxStep(*row)
    number, lane = cuda.blockIdx.x % step.rows, cuda.blockIdx.x // step.rows * wide + cuda.threadIdx.x % wide
    target, source = step.target + number * step.columns, step.source + number * step.columns
    start, last = cuda.threadIdx.x // wide, step.columns if lane < lanes else 0
    most, total = np.float32(-np.inf), np.float32(0)
    for column in range(start, last, THREADS // wide):
        most = _larger(memory[(source + column) * lanes + lane], most)
    most = _reduced(shared, wide, most, True)
    for column in range(start, last, THREADS // wide):
        x = np.float32(math.exp(memory[(source + column) * lanes + lane] - most))
        memory[(target + column) * lanes + lane] = x
        total += x
    total = _reduced(shared, wide, total, False)
    for column in range(start, last, THREADS // wide):
        memory[(target + column) * lanes + lane] /= total


@cuda.jit
def _normalize(row, lanes, memory, constants):
    """A thread: a row of an image."""
    step = rows.NormalizeStep(*row)
    item = cuda.grid(1)
    number, lane = item // lanes, item % lanes
    if number >= step.rows:
        return
    target, source = step.target + number * step.columns, step.source + number * step.columns
    mean, squares = np.float32(0), np.float32(0)
    if step.kind == rows.CENTERED:
        for first in range(0, step.columns, rows.SUMMED):
            part = np.float32(0)
            for column in range(first, min(first + rows.SUMMED, step.columns)):
                part += memory[(source + column) * lanes + lane]
            mean += part
        mean /= np.float32(step.columns)
        rest = np.float32(0)
        for column in range(step.columns):
            rest += memory[(source + column) * lanes + lane] - mean
        mean += rest / np.float32(step.columns)
    for first in range(0, step.columns, rows.SUMMED):
        part = np.float32(0)
        for column in range(first, min(first + rows.SUMMED, step.columns)):
            x = memory[(source + column) * lanes + lane] - mean
            part += x * x
        squares += part
    if step.kind == rows.UNIT_NORM:
        squares = max(squares, constants[step.epsilon])
    else:
        squares = squares / np.float32(step.columns) + constants[step.epsilon]
    factor = np.float32(1) / np.float32(math.sqrt(squares))
    for column in range(step.columns):
        memory[(target + column) * lanes + lane] = (memory[(source + column) * lanes + lane] - mean) * factor


@cuda.jit
def _matmul(row, lanes, memory):
    """A thread: an element of a product of an image."""
    step = rows.MatmulStep(*row)
    item = cuda.grid(1)
    number, lane = item // lanes, item % lanes
    if number >= step.batch * step.rows * step.columns:
        return
    column, line, matrix = (
        number % step.columns,
        number // step.columns % step.rows,
        number // (step.columns * step.rows),
    )
    left = step.source + matrix * step.source_batch + line * step.source_row
    right = step.other + matrix * step.other_batch + column * step.other_column
    total = np.float32(0)
    for _ in range(step.inner):
        total += memory[left * lanes + lane] * memory[right * lanes + lane]
        left += step.source_inner
        right += step.other_inner
    memory[(step.target + number) * lanes + lane] = total


@cuda.jit
def _gather(row, count, units, lanes, memory, values, codebook):
    """A thread: a number of a table's row for an image."""
    step = rows.GatherStep(*row)
    item = cuda.grid(1)
    place, lane = item // lanes, item % lanes
    position, unit = place // units, place % units
    if position >= step.positions:
        return
    number = memory[(step.source + position * step.source_step) * lanes + lane]
    value = np.float32(math.nan)
    if number >= np.float32(0) and number < np.float32(count):
        value = _decoded(values, codebook, int(number) * units + unit)
    memory[(step.target + position * step.target_step + unit * step.plane) * lanes + lane] = value


@cuda.jit
def _cell(row, lanes, memory, constants):
    """A thread: a unit of an image."""
    step = rows.CellStep(*row)
    item = cuda.grid(1)
    unit, lane = item // lanes, item % lanes
    if unit >= step.units:
        return
    if step.mask >= 0 and memory[step.mask * lanes + lane] == np.float32(0):
        memory[(step.target + unit) * lanes + lane] = memory[(step.previous + unit) * lanes + lane]
        return
    gate = (step.source + unit * step.source_step) * lanes + lane
    gate_step = step.units * step.source_step * lanes
    product, product_step = (step.product + unit) * lanes + lane, step.units * lanes
    before, carry = memory[(step.previous + unit) * lanes + lane], (step.carry + unit) * lanes + lane
    function, own, other, others = (
        step.function,
        step.parameters,
        step.recurrent_function,
        step.recurrent_parameters,
    )
    after = before
    if step.kind == rows.SIMPLE:
        after = _mapped(function, memory[product] + memory[gate], constants, own)
    elif step.kind == rows.LSTM:
        taken = _mapped(other, memory[product] + memory[gate], constants, others)
        kept = _mapped(other, memory[product + product_step] + memory[gate + gate_step], constants, others)
        new = _mapped(function, memory[product + 2 * product_step] + memory[gate + 2 * gate_step], constants, own)
        shown = _mapped(other, memory[product + 3 * product_step] + memory[gate + 3 * gate_step], constants, others)
        memory[carry] = kept * memory[carry] + taken * new
        after = shown * _mapped(function, memory[carry], constants, own)
    elif step.kind == rows.RESET:
        x = memory[product + product_step] + memory[gate + gate_step]
        after = _mapped(other, x, constants, others) * before
    else:
        new = memory[product + 2 * product_step]
        if step.kind == rows.GRU:
            x = memory[product + product_step] + memory[gate + gate_step]
            new *= _mapped(other, x, constants, others)
        new = _mapped(function, memory[gate + 2 * gate_step] + new, constants, own)
        kept = _mapped(other, memory[product] + memory[gate], constants, others)
        after = kept * before + (np.float32(1) - kept) * new
    memory[(step.target + unit) * lanes + lane] = after


@cuda.jit
def _pool(row, lanes, memory):
    step = rows.PoolStep(*row)
    item = cuda.grid(1)
    lane, x, y, c = (
        item % lanes,
        item // lanes % step.columns,
        item // (lanes * step.columns) % step.rows,
        item // (lanes * step.columns * step.rows),
    )
    if c >= step.channels:
        return
    first_y, first_x = y * step.stride_y - step.top, x * step.stride_x - step.left
    last_y, last_x = min(first_y + step.window_y, step.height), min(first_x + step.window_x, step.width)
    first_y, first_x = max(first_y, 0), max(first_x, 0)
    result = np.float32(0)
    if step.op != rows.AVERAGE_POOL:
        result = np.float32(_LEAST if step.op == rows.MAX_POOL else -math.inf)
    for source_y in range(first_y, last_y):
        line = step.source + c * step.source_plane + source_y * step.source_pitch
        for begin in range(first_x, last_x, rows.SUMMED):
            part = np.float32(0)
            for source_x in range(begin, min(begin + rows.SUMMED, last_x)):
                value = memory[(line + source_x) * lanes + lane]
                if step.op == rows.AVERAGE_POOL:
                    part += value
                elif step.op == rows.MAX_POOL:
                    result = _larger(value, result)
                else:
                    result = result if result > value or result != result else value
            if step.op == rows.AVERAGE_POOL:
                result += part
    if step.op == rows.AVERAGE_POOL:
        result /= np.float32((last_y - first_y) * (last_x - first_x))
    memory[(step.target + c * step.plane + y * step.pitch + x) * lanes + lane] = result


@cuda.jit
def _convolution(row, layer, columns, across, lanes, wide, memory, constants, offsets, taps, values, codebook, starts):
    """A block: `wide` items of one output channel; `THREADS // wide` threads share the weights of an item.

    An item is a pooling window, or four neighbouring outputs in `columns` columns, of one image; `across`: the items of
    an output row.
    """
    weights = cuda.shared.array(THREADS, np.float32)
    places = cuda.shared.array(THREADS, np.uint32)
    inputs = cuda.local.array(_ITEMS, np.uint32)
    sums = cuda.local.array(_ITEMS, np.float32)
    step, layer = rows.ConvolutionStep(*row), _Layer(*layer)
    thread = cuda.threadIdx.x
    unit, item = cuda.blockIdx.x % layer.units, cuda.blockIdx.x // layer.units * wide + thread % wide
    lane, x, y = item % lanes, item // lanes % across * columns, item // (lanes * across) * (_ITEMS // columns)
    source = step.source + unit // step.per_group * step.group_step
    for i in range(_ITEMS):  # outputs beyond the edge repeat the last one inside
        source_y, source_x = min(y + i // columns, step.height - 1), min(x + i % columns, step.width - 1)
        inputs[i] = np.uint32((source + source_y * step.step_y + source_x * step.step_x) * lanes + lane)
        sums[i] = np.float32(0)
    for tile in range(layer.tiles):
        stop = starts[unit * layer.tiles + tile + 1]
        for start in range(starts[unit * layer.tiles + tile], stop, THREADS):
            if start + thread < stop:
                place = offsets[step.offsets + tile * TILE + taps[start + thread]] * lanes
                places[thread] = np.uint32(place)
                weights[thread] = _decoded(values, codebook, start + thread)
            cuda.syncthreads()
            k = thread // wide
            while k < min(THREADS, stop - start):  # `range` and signed indices would cost as much as the rest
                weight, place = weights[np.uint32(k)], places[np.uint32(k)]
                for i in range(_ITEMS):
                    sums[i] += weight * memory[np.uint32(inputs[i] + place)]
                k += THREADS // wide
            cuda.syncthreads()
    for i in range(_ITEMS):
        if wide < THREADS:
            sums[i] = _reduced(weights, wide, sums[i], False)
        x_scaled = sums[i] * constants[layer.scale + unit] + constants[layer.shift + unit]
        if step.addend >= 0:
            own_y, own_x = min(y + i // columns, step.height - 1), min(x + i % columns, step.width - 1)
            place = step.addend + unit * step.addend_plane + own_y * step.addend_pitch + own_x
            x_scaled += memory[place * lanes + lane]
        sums[i] = _clamped(x_scaled, constants[step.low], constants[step.high])
    if thread >= wide:
        return
    target = step.target + unit * step.plane
    if step.pool == NONE:
        for i in range(_ITEMS):
            target_y, target_x = y + i // columns, x + i % columns
            if target_y < step.height and target_x < step.width:
                memory[(target + target_y * step.pitch + target_x) * lanes + lane] = sums[i]
    elif y + 1 < step.height:
        if step.pool == MAX:
            result = np.float32(_LEAST)
            for i in range(_ITEMS):
                result = _larger(sums[i], result)
        else:
            result = (sums[0] + sums[1] + sums[2] + sums[3]) * np.float32(0.25)
        memory[(target + y // 2 * step.pitch + x // 2) * lanes + lane] = result


def _dense_kernel(items: int):
    """The kernel of a dense layer, whose threads hold `items` images each."""

    @cuda.jit
    def dense(row, layer, lanes, wide, memory, constants, taps, values, codebook, starts):
        """A block: one output of `items * wide` images; `THREADS // wide` threads share the weights of an image."""
        weights = cuda.shared.array(THREADS, np.float32)
        places = cuda.shared.array(THREADS, np.uint32)
        inputs = cuda.local.array(items, np.uint32)
        sums = cuda.local.array(items, np.float32)
        step, layer = rows.DenseStep(*row), _Layer(*layer)
        thread = cuda.threadIdx.x
        unit, first = cuda.blockIdx.x % layer.units, cuda.blockIdx.x // layer.units * (items * wide) + thread % wide
        for i in range(items):
            inputs[i] = np.uint32(step.source * lanes + min(first + i * wide, lanes - 1))
            sums[i] = np.float32(0)
        for tile in range(layer.tiles):
            stop = starts[unit * layer.tiles + tile + 1]
            for start in range(starts[unit * layer.tiles + tile], stop, THREADS):
                if start + thread < stop:
                    places[thread] = np.uint32((tile * TILE + taps[start + thread]) * lanes)
                    weights[thread] = _decoded(values, codebook, start + thread)
                cuda.syncthreads()
                k = thread // wide
                while k < min(THREADS, stop - start):  # `range` and signed indices would cost as much as the rest
                    weight, place = weights[np.uint32(k)], places[np.uint32(k)]
                    for i in range(items):
                        sums[i] += weight * memory[np.uint32(inputs[i] + place)]
                    k += THREADS // wide
                cuda.syncthreads()
        for i in range(items):
            if wide < THREADS:
                sums[i] = _reduced(weights, wide, sums[i], False)
            if thread < wide and first + i * wide < lanes:
                x = sums[i] * constants[layer.scale + unit] + constants[layer.shift + unit]
                x = _clamped(x, constants[step.low], constants[step.high])
                memory[(step.target + unit) * lanes + first + i * wide] = x

    return dense


_dense_single, _dense = _dense_kernel(1), _dense_kernel(_ITEMS)


# The engine


class _DeviceWeights(NamedTuple):
    """Weights in the device's memory, sorted by unit, then by tile of 65,536 inputs, without fillers."""

    taps: Any
    values: Any
    codebook: Any
    starts: Any
    layer: _Layer

    @classmethod
    def of(cls, weights: StepWeights) -> "_DeviceWeights":
        """The weights of a plan."""
        packed = weights.packed
        unit, tap, value = packed.entries()
        order = np.lexsort((tap, unit))
        tiles = 1 + int(tap.max(initial=0)) // TILE
        counts = np.bincount(unit[order] * tiles + tap[order] // TILE, minlength=packed.units * tiles)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        arrays = ((tap[order] % TILE).astype(np.uint16), value[order], packed.codebook, starts)
        return cls(*map(cuda.to_device, arrays), _Layer(packed.units, tiles, weights.scale, weights.shift))

    @property
    def arrays(self) -> tuple[Any, ...]:
        return self[:4]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


def require_gpu() -> None:
    """Raise `RecipeError` if there is no GPU or if its software is missing."""
    if not config.ENABLE_CUDASIM and importlib.util.find_spec("numba_cuda") is None:
        raise RecipeError(_INSTALL)
    if not cuda.is_available():
        raise RecipeError("device='cuda' needs an NVIDIA GPU with its driver, and finds none: use device='cpu'.")


class CudaEngine(Engine):
    """A compressed network that runs on a GPU: `engine(images)`.

    Any number of threads may call an engine at the same time; the GPU runs one call after the other. Raises
    `RecipeError` if there is no GPU or if its software is missing.
    """

    _device = "cuda"

    def __init__(self, plan: Plan, source: Network | bytes | None = None):
        require_gpu()
        # Kernels count places in 32 bits.
        if plan.batched is None or plan.batched.size + plan.batched.block > 2**31:
            raise FormatError("The activations of the network are too large for a GPU: use device='cpu'.")
        cuda.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # one image cannot fill a GPU
        self._source, self._plan = source, plan
        self._set_ends(plan)
        self.threads = 1
        self._sizes = (
            plan.batched.size + plan.batched.block,
            plan.ends.input_floats,
            plan.ends.output_floats,
        )  # floats of an image: in the arena, input, output
        self._most = max(1, _MAX_FLOATS // max(self._sizes))  # images at once
        steps = [rows.step_of(row) for row in plan.batched.steps.tolist()]
        used = {step.weights for step in steps if step.op in (rows.CONVOLUTION, rows.DENSE)}
        self._weights = {number: _DeviceWeights.of(plan.weights[number]) for number in used}
        packed = {step.weights: plan.weights[step.weights].packed for step in steps if step.op == rows.GATHER}
        self._device_tables = {
            number: (table, cuda.to_device(table.values), cuda.to_device(table.codebook))
            for number, table in packed.items()
        }
        self._constants, self._offsets = cuda.to_device(plan.constants), cuda.to_device(plan.offsets)
        self.weight_bytes = self._constants.nbytes + sum(own.nbytes for own in self._weights.values())
        self.weight_bytes += sum(table.nbytes for table in packed.values())
        self._steps = [(step, _elements(step, plan.moves)) for step in steps]
        self._lanes = 0
        self._buffers = [cuda.device_array(0, np.float32) for _ in self._sizes]
        self._launches: list[tuple[Any, int, tuple]] = []
        self._stream, self._lock = cuda.stream(), threading.Lock()

    @property
    def arena_bytes(self) -> int:
        """The device memory for activations, images and outputs, in bytes."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def __repr__(self) -> str:
        return f"<CudaEngine {self._plan.ends}: {self.weight_bytes:,} bytes of weights>"

    def profile(self, inputs: Any = 1, seconds: float = 0.5) -> Profile:
        """Raises `RecipeError`: the steps of a GPU are not timed."""
        raise RecipeError("profile times the steps of the CPU: load the file with device='cpu'.")

    def _compute(self, images: np.ndarray, output: np.ndarray, count: int) -> None:
        parts = -(-count // self._most)
        lanes = -(-count // max(parts, 1))
        (_, inputs, outputs) = self._sizes
        with self._lock:
            for first in range(0, count, lanes or 1):
                last = min(first + lanes, count)
                self._run(lanes, images[first * inputs : last * inputs], output[first * outputs : last * outputs])

    def _run(self, lanes: int, images: np.ndarray, output: np.ndarray) -> None:
        """Run at most `lanes` images; unused lanes compute meaningless outputs, which are not copied back."""
        if lanes != self._lanes:
            self._prepare(lanes)
        _, device_images, device_output = self._buffers
        _head(device_images, images.size).copy_to_device(images, stream=self._stream)
        for kernel, blocks, arguments in self._launches:
            kernel[blocks, THREADS, self._stream](*arguments)
        _head(device_output, output.size).copy_to_host(output, stream=self._stream)
        self._stream.synchronize()

    def _prepare(self, lanes: int) -> None:
        """Allocate buffers for `lanes` images at once, zero all margins, and list the launches."""
        self._buffers = [
            buffer if buffer.size >= lanes * size else cuda.device_array(lanes * size, np.float32)
            for buffer, size in zip(self._buffers, self._sizes, strict=True)
        ]
        places = self._sizes[0]
        if places:
            everything = rows.ClearStep(rows.CLEAR, 0, target=0, maps=1, plane=places, size=places, first=places)
            _clear[_blocks(lanes * places), THREADS, self._stream](tuple(everything), lanes, self._buffers[0])
        self._launches = [self._launch(step, elements, lanes) for step, elements in self._steps]
        self._lanes = lanes

    def _launch(self, step: tuple, elements: tuple, lanes: int) -> tuple[Any, int, tuple]:
        """The kernel of a step, its number of blocks, and its arguments."""
        memory, images, output = self._buffers
        if step.op in (rows.INPUT, rows.OUTPUT):
            blocks = -(-len(elements[0]) // SIDE) * -(-lanes // SIDE)
            if step.op == rows.INPUT:
                return _read_input, blocks, (*elements[:2], self._sizes[1], lanes, images, memory)
            return _write_output, blocks, (*elements[:2], self._sizes[2], lanes, memory, output)
        if step.op == rows.CLEAR:
            return _clear, _blocks(step.maps * step.size * lanes), (tuple(step), lanes, memory)
        if step.op in rows.ELEMENTWISE:
            blocks, clamp, last = _blocks(len(elements[0]) * lanes), (step.low, step.high), (lanes, memory)
            if step.op == rows.COPY:
                return _copy, blocks, (*elements[:2], *last)
            if step.op == rows.SCALE:
                return _scale, blocks, (*elements, *clamp, step.shift, *last, self._constants)
            if step.op == rows.MAP:
                return _map, blocks, (*elements[:2], step.function, step.parameters, *last, self._constants)
            return _merge, blocks, (*elements, *clamp, step.op, *last, self._constants)
        if step.op == rows.SOFTMAX:
            wide = _wide(lanes)
            return _softmax, step.rows * -(-lanes // wide), (tuple(step), lanes, wide, memory)
        if step.op == rows.NORMALIZE:
            return _normalize, _blocks(step.rows * lanes), (tuple(step), lanes, memory, self._constants)
        if step.op == rows.MATMUL:
            return _matmul, _blocks(step.batch * step.rows * step.columns * lanes), (tuple(step), lanes, memory)
        if step.op == rows.GATHER:
            table, values, codebook = self._device_tables[step.weights]
            sizes = (table.rows, table.units, lanes)
            return (
                _gather,
                _blocks(step.positions * table.units * lanes),
                (tuple(step), *sizes, memory, values, codebook),
            )
        if step.op == rows.CELL:
            return _cell, _blocks(step.units * lanes), (tuple(step), lanes, memory, self._constants)
        if step.op in rows.POOLS:
            return _pool, _blocks(step.channels * step.rows * step.columns * lanes), (tuple(step), lanes, memory)
        weights = self._weights[step.weights]
        head = (tuple(step), tuple(weights.layer))
        if step.op == rows.DENSE:
            items = _ITEMS if lanes >= THREADS else 1
            wide = _wide(-(-lanes // items))
            blocks = weights.layer.units * -(-lanes // (items * wide))
            kernel = _dense if items > 1 else _dense_single
            return kernel, blocks, (*head, lanes, wide, memory, self._constants, *weights.arrays)
        columns = _ITEMS if step.height == 1 else 2  # of an item
        down, across = -(-step.height // (_ITEMS // columns)), -(-step.width // columns)
        if step.pool != NONE:
            down, across = step.height // 2, step.width // 2
        wide = _wide(down * across * lanes)
        blocks = weights.layer.units * -(-down * across * lanes // wide)
        arrays = (memory, self._constants, self._offsets, *weights.arrays)
        return _convolution, blocks, (*head, columns, across, lanes, wide, *arrays)


def _elements(step: tuple, moves: np.ndarray) -> tuple:
    """For a list of moves: targets, sources and others of each element, `int32`, in the device's memory; else ()."""
    if step.op not in rows.ELEMENTWISE:
        return ()
    move = rows.Move(*moves[step.first_move : step.first_move + step.moves].T)
    number = np.arange(move.count.sum()) - np.repeat(np.cumsum(move.count) - move.count, move.count)
    target = np.repeat(move.target, move.count) + number
    source = np.repeat(move.source, move.count) + number * np.repeat(move.step, move.count)
    other = np.repeat(move.other, move.count) + number * np.repeat(move.other_step, move.count)
    # Sorted by source, neighbouring threads read neighbouring floats of an image.
    order = np.argsort(source) if step.op == rows.INPUT else np.arange(number.size)
    return tuple(cuda.to_device(table[order].astype(np.int32)) for table in (target, source, other))


def _wide(items: int) -> int:
    """How many threads of a block have items of their own; the others share the sums of these items."""
    return min(THREADS, 1 << (items - 1).bit_length())


def _blocks(items: int) -> int:
    """How many blocks have a thread for each item."""
    return -(-items // THREADS)


def _head(array: Any, size: int) -> Any:
    return array if array.size == size else array[:size]
