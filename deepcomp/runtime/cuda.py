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

from deepcomp.errors import RecipeError
from deepcomp.runtime import opcodes
from deepcomp.runtime.engine import Engine
from deepcomp.runtime.plan import Plan, StepWeights
from deepcomp.runtime.vectors import MAX, NONE

_INSTALL = "device='cuda' needs the package numba-cuda: pip install 'deepcomp[cuda]'."
try:
    from numba import cuda
except ImportError as error:
    raise RecipeError(_INSTALL) from error

THREADS = 128  # of a block, a power of 2
SIDE = 32  # of the square tiles that transpose images to lanes and back; at most THREADS
PITCH = SIDE + 1  # floats of a tile's row: an odd number avoids bank conflicts
_ITEMS = 4  # sums of a thread
_TILE = 65536  # inputs of a tile: uint16 taps tell so many apart
_MAX_FLOATS = 2**26  # of device memory: a batch that needs more runs in parts
_LEAST = float(np.finfo(np.float32).min)  # the start of a maximum in TensorFlow
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
(
    _RELU, _LEAKY_RELU, _ELU, _SELU, _SIGMOID, _HARD_SIGMOID, _TANH,
    _SOFTPLUS, _SOFTSIGN, _SILU, _HARD_SILU, _GELU, _EXPONENTIAL, _MISH,
) = range(len(opcodes.FUNCTIONS))  # fmt: skip


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
def _clear(first, count, memory):
    item = cuda.grid(1)
    if item < count:
        memory[first + item] = np.float32(0)


@cuda.jit
def _scale(targets, sources, others, low, high, between, lanes, memory, constants):
    item = cuda.grid(1)
    number, lane = item // lanes, item % lanes
    if number < len(targets):
        scale, shift = constants[others[number]], constants[others[number] + between]
        x = memory[sources[number] * lanes + lane] * scale + shift
        memory[targets[number] * lanes + lane] = _clamped(x, constants[low], constants[high])


@cuda.jit
def _merge(targets, sources, others, low, high, multiply, lanes, memory, constants):
    item = cuda.grid(1)
    number, lane = item // lanes, item % lanes
    if number < len(targets):
        x, y = memory[sources[number] * lanes + lane], memory[others[number] * lanes + lane]
        x = x * y if multiply else x + y
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
    above = most if above > most else above
    below = np.float32(0) if below < np.float32(0) else below
    return above - slope * below if slope != np.float32(0) else above


@cuda.jit(device=True)
def _mapped(function, x, constants, first):
    """A function of `opcodes.FUNCTIONS`; its parameters are constants from number `first` on."""
    if function == _RELU:
        return _relu(x, constants[first], constants[first + 1], constants[first + 2])
    if function == _LEAKY_RELU:
        return x if x > np.float32(0) else x * constants[first]
    if function == _ELU:
        return x if x > np.float32(0) else constants[first] * np.float32(math.expm1(x))
    if function == _SELU:
        return np.float32(_SELU_SCALE) * (
            x if x > np.float32(0) else np.float32(_SELU_ALPHA) * np.float32(math.expm1(x))
        )
    if function == _SIGMOID:
        return _sigmoid(x)
    if function == _HARD_SIGMOID:
        return _hard_sigmoid(x)
    if function == _TANH:
        return np.float32(math.tanh(x))
    if function == _SOFTPLUS:
        return _softplus(x)
    if function == _SOFTSIGN:
        return x / (abs(x) + np.float32(1))
    if function == _SILU:
        return x * _sigmoid(x)
    if function == _HARD_SILU:
        return x * _hard_sigmoid(x)
    if function == _GELU:
        return np.float32(0.5) * x * (np.float32(1) + np.float32(math.erf(x * np.float32(math.sqrt(0.5)))))
    if function == _EXPONENTIAL:
        return np.float32(math.exp(x))
    return x * np.float32(math.tanh(_softplus(x)))  # mish


@cuda.jit
def _map(targets, sources, function, first, lanes, memory, constants):
    item = cuda.grid(1)
    number, lane = item // lanes, item % lanes
    if number < len(targets):
        x = memory[sources[number] * lanes + lane]
        memory[targets[number] * lanes + lane] = _mapped(function, x, constants, first)


# Steps with columns of their own (see `plan`)


@cuda.jit
def _softmax(sizes, lanes, wide, memory):
    """A block: a row of `wide` images; `THREADS // wide` threads share it."""
    shared = cuda.shared.array(THREADS, np.float32)
    target, source, rows, columns = sizes
    row, lane = cuda.blockIdx.x % rows, cuda.blockIdx.x // rows * wide + cuda.threadIdx.x % wide
    start, last = cuda.threadIdx.x // wide, columns if lane < lanes else 0
    most, total = np.float32(-np.inf), np.float32(0)
    for column in range(start, last, THREADS // wide):
        most = _larger(memory[(source + row * columns + column) * lanes + lane], most)
    most = _reduced(shared, wide, most, True)
    for column in range(start, last, THREADS // wide):
        x = np.float32(math.exp(memory[(source + row * columns + column) * lanes + lane] - most))
        memory[(target + row * columns + column) * lanes + lane] = x
        total += x
    total = _reduced(shared, wide, total, False)
    for column in range(start, last, THREADS // wide):
        memory[(target + row * columns + column) * lanes + lane] /= total


@cuda.jit
def _pool(sizes, op, lanes, memory):
    target, plane, pitch, source, source_plane, source_pitch, channels, height, width = sizes[:9]
    rows, columns, window_y, window_x, stride_y, stride_x, top, left = sizes[9:]
    item = cuda.grid(1)
    lane, x, y, c = (
        item % lanes,
        item // lanes % columns,
        item // (lanes * columns) % rows,
        item // (lanes * columns * rows),
    )
    if c >= channels:
        return
    first_y, last_y = max(y * stride_y - top, 0), min(y * stride_y - top + window_y, height)
    first_x, last_x = max(x * stride_x - left, 0), min(x * stride_x - left + window_x, width)
    result = np.float32(0)
    if op != opcodes.AVERAGE_POOL:
        result = np.float32(_LEAST if op == opcodes.MAX_POOL else -math.inf)
    for row in range(first_y, last_y):
        for column in range(first_x, last_x):
            value = memory[(source + c * source_plane + row * source_pitch + column) * lanes + lane]
            if op == opcodes.AVERAGE_POOL:
                result += value
            elif op == opcodes.MAX_POOL:
                result = _larger(value, result)
            else:
                result = result if result > value or result != result else value
    if op == opcodes.AVERAGE_POOL:
        result /= np.float32((last_y - first_y) * (last_x - first_x))
    memory[(target + c * plane + y * pitch + x) * lanes + lane] = result


@cuda.jit
def _convolution(sizes, lanes, wide, memory, constants, offsets, taps, values, codebook, starts):
    """A block: `wide` items of one output channel; `THREADS // wide` threads share the weights of an item.

    An item is a pooling window, or four neighbouring outputs, of one image.
    """
    weights = cuda.shared.array(THREADS, np.float32)
    places = cuda.shared.array(THREADS, np.uint32)
    inputs = cuda.local.array(_ITEMS, np.uint32)
    sums = cuda.local.array(_ITEMS, np.float32)
    units, tiles, scale, shift, target, plane, pitch, source, step_y, step_x, height, width = sizes[:12]
    pool, low, high, offset, per_group, between, columns, across = sizes[12:]
    thread = cuda.threadIdx.x
    unit, item = cuda.blockIdx.x % units, cuda.blockIdx.x // units * wide + thread % wide
    lane, x, y = item % lanes, item // lanes % across * columns, item // (lanes * across) * (_ITEMS // columns)
    source += unit // per_group * between
    for i in range(_ITEMS):  # outputs beyond the edge repeat the last one inside
        row, column = min(y + i // columns, height - 1), min(x + i % columns, width - 1)
        inputs[i] = np.uint32((source + row * step_y + column * step_x) * lanes + lane)
        sums[i] = np.float32(0)
    for tile in range(tiles):
        stop = starts[unit * tiles + tile + 1]
        for start in range(starts[unit * tiles + tile], stop, THREADS):
            if start + thread < stop:
                place = offsets[offset + tile * _TILE + taps[start + thread]] * lanes
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
        x_scaled = sums[i] * constants[scale + unit] + constants[shift + unit]
        sums[i] = _clamped(x_scaled, constants[low], constants[high])
    if thread >= wide:
        return
    target += unit * plane
    if pool == NONE:
        for i in range(_ITEMS):
            row, column = y + i // columns, x + i % columns
            if row < height and column < width:
                memory[(target + row * pitch + column) * lanes + lane] = sums[i]
    elif y + 1 < height:
        if pool == MAX:
            result = np.float32(_LEAST)
            for i in range(_ITEMS):
                result = _larger(sums[i], result)
        else:
            result = (sums[0] + sums[1] + sums[2] + sums[3]) * np.float32(0.25)
        memory[(target + y // 2 * pitch + x // 2) * lanes + lane] = result


def _dense_kernel(items: int):
    """The kernel of a dense layer, whose threads hold `items` images each."""

    @cuda.jit
    def dense(sizes, lanes, wide, memory, constants, taps, values, codebook, starts):
        """A block: one output of `items * wide` images; `THREADS // wide` threads share the weights of an image."""
        weights = cuda.shared.array(THREADS, np.float32)
        places = cuda.shared.array(THREADS, np.uint32)
        inputs = cuda.local.array(items, np.uint32)
        sums = cuda.local.array(items, np.float32)
        units, tiles, scale, shift, target, source, low, high = sizes
        thread = cuda.threadIdx.x
        unit, first = cuda.blockIdx.x % units, cuda.blockIdx.x // units * (items * wide) + thread % wide
        for i in range(items):
            inputs[i] = np.uint32(source * lanes + min(first + i * wide, lanes - 1))
            sums[i] = np.float32(0)
        for tile in range(tiles):
            stop = starts[unit * tiles + tile + 1]
            for start in range(starts[unit * tiles + tile], stop, THREADS):
                if start + thread < stop:
                    places[thread] = np.uint32((tile * _TILE + taps[start + thread]) * lanes)
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
                x = sums[i] * constants[scale + unit] + constants[shift + unit]
                memory[(target + unit) * lanes + first + i * wide] = _clamped(x, constants[low], constants[high])

    return dense


_dense_single, _dense = _dense_kernel(1), _dense_kernel(_ITEMS)


# The engine


class _DeviceWeights(NamedTuple):
    """Weights in the device's memory, sorted by unit, then by tile of 65,536 inputs, without fillers."""

    taps: Any
    values: Any
    codebook: Any
    starts: Any
    units: int
    tiles: int
    scale: int
    shift: int

    @classmethod
    def of(cls, weights: StepWeights) -> "_DeviceWeights":
        """The weights of a plan."""
        packed = weights.packed
        unit, tap, value = packed.entries()
        order = np.lexsort((tap, unit))
        tiles = 1 + int(tap.max(initial=0)) // _TILE
        counts = np.bincount(unit[order] * tiles + tap[order] // _TILE, minlength=packed.units * tiles)
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        arrays = ((tap[order] % _TILE).astype(np.uint16), value[order], packed.codebook, starts)
        return cls(*map(cuda.to_device, arrays), packed.units, tiles, weights.scale, weights.shift)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self[:4])


class CudaEngine(Engine):
    """A compressed network that runs on a GPU: `engine(images)`.

    Any number of threads may call an engine at the same time; the GPU runs one call after the other. Raises
    `RecipeError` if there is no GPU or if its software is missing.
    """

    def __init__(self, plan: Plan):
        if not config.ENABLE_CUDASIM and importlib.util.find_spec("numba_cuda") is None:
            raise RecipeError(_INSTALL)
        if not cuda.is_available():
            raise RecipeError("device='cuda' needs an NVIDIA GPU with its driver, and finds none: use device='cpu'.")
        cuda.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # one image cannot fill a GPU
        self.input_shape, self.output_shape, self.threads = plan.input_shape, plan.output_shape, 1
        self._sizes = (
            plan.batched.size + plan.batched.block,
            math.prod(plan.input_shape),
            math.prod(plan.output_shape),
        )  # floats of an image: in the arena, input, output
        self._most = max(1, _MAX_FLOATS // max(self._sizes))  # images at once
        used = {row[1] for row in plan.batched.steps.tolist() if row[0] in (opcodes.CONVOLUTION, opcodes.DENSE)}
        self._weights = {number: _DeviceWeights.of(plan.weights[number]) for number in used}
        self._constants, self._offsets = cuda.to_device(plan.constants), cuda.to_device(plan.offsets)
        self.weight_bytes = self._constants.nbytes + sum(own.nbytes for own in self._weights.values())
        self._steps = [(row, _tables(row, plan.moves)) for row in plan.batched.steps.tolist()]
        self._lanes = 0
        self._buffers = [cuda.device_array(0, np.float32) for _ in self._sizes]
        self._launches: list[tuple[Any, int, tuple]] = []
        self._stream, self._lock = cuda.stream(), threading.Lock()

    @property
    def arena_bytes(self) -> int:
        """The device memory for activations, images and outputs, in bytes."""
        return sum(buffer.nbytes for buffer in self._buffers)

    def __repr__(self) -> str:
        return f"<CudaEngine {self.input_shape} -> {self.output_shape}: {self.weight_bytes:,} bytes of weights>"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        images = self._checked(images)
        output = np.empty((len(images), *self.output_shape), np.float32)
        parts = -(-len(images) // self._most)
        lanes = -(-len(images) // max(parts, 1))
        with self._lock:
            for first in range(0, len(images), lanes or 1):
                self._run(lanes, images[first : first + lanes].reshape(-1), output[first : first + lanes].reshape(-1))
        return output

    __call__.__doc__ = Engine.__call__.__doc__

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
        memory, size = self._buffers[0], lanes * self._sizes[0]
        _clear[_blocks(size), THREADS, self._stream](0, size, memory)
        self._launches = [self._launch(row, tables, lanes) for row, tables in self._steps]
        self._lanes = lanes

    def _launch(self, row: list[int], tables: tuple, lanes: int) -> tuple[Any, int, tuple]:
        """The kernel of a step, its number of blocks, and its arguments."""
        memory, images, output = self._buffers
        op, *columns = row
        if op in (opcodes.INPUT, opcodes.OUTPUT):
            blocks = -(-len(tables[0]) // SIDE) * -(-lanes // SIDE)
            if op == opcodes.INPUT:
                return _read_input, blocks, (*tables[:2], self._sizes[1], lanes, images, memory)
            return _write_output, blocks, (*tables[:2], self._sizes[2], lanes, memory, output)
        if op == opcodes.CLEAR:
            place, size = columns[0] * lanes, columns[1] * lanes
            return _clear, _blocks(size), (place, size, memory)
        if tables:
            blocks, extra = _blocks(len(tables[0]) * lanes), columns[2:]
            if op == opcodes.COPY:
                return _copy, blocks, (*tables[:2], lanes, memory)
            if op == opcodes.SCALE:
                return _scale, blocks, (*tables, *extra[:3], lanes, memory, self._constants)
            if op == opcodes.MAP:
                return _map, blocks, (*tables[:2], *extra[:2], lanes, memory, self._constants)
            return _merge, blocks, (*tables, *extra[:2], op == opcodes.MULTIPLY, lanes, memory, self._constants)
        if op == opcodes.SOFTMAX:
            wide = _wide(lanes)
            return _softmax, columns[2] * -(-lanes // wide), (tuple(columns[:4]), lanes, wide, memory)
        if op in opcodes.POOLS:
            items = math.prod(columns[i] for i in (6, 9, 10)) * lanes
            return _pool, _blocks(items), (tuple(columns[:17]), op, lanes, memory)
        return self._launch_product(row, lanes)

    def _launch_product(self, row: list[int], lanes: int) -> tuple[Any, int, tuple]:
        """The launch of a dense layer or a convolution."""
        op, number, *columns = row
        weights = self._weights[number]
        sizes = (weights.units, weights.tiles, weights.scale, weights.shift)
        inputs, arrays = (self._buffers[0], self._constants), weights[:4]
        if op == opcodes.DENSE:
            items = _ITEMS if lanes >= THREADS else 1
            wide = _wide(-(-lanes // items))
            target, source, _, low, high = columns[:5]
            blocks = weights.units * -(-lanes // (items * wide))
            kernel = _dense if items > 1 else _dense_single
            return kernel, blocks, ((*sizes, target, source, low, high), lanes, wide, *inputs, *arrays)
        height, width, pool = columns[6:9]
        side = _ITEMS if height == 1 else 2  # columns of an item
        down, across = -(-height // (_ITEMS // side)), -(-width // side)
        if pool != NONE:
            down, across = height // 2, width // 2
        wide = _wide(down * across * lanes)
        blocks = weights.units * -(-down * across * lanes // wide)
        sizes = (*sizes, *columns[:14], side, across)
        return _convolution, blocks, (sizes, lanes, wide, *inputs, self._offsets, *arrays)


def _tables(row: list[int], moves: np.ndarray) -> tuple:
    """For a list of moves: targets, sources and others of each element, `int32`, in the device's memory; else ()."""
    if row[0] not in opcodes.MOVERS:
        return ()
    target, source, other, step, other_step, count = moves[row[1] : row[1] + row[2]].T
    number = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    target, source = np.repeat(target, count) + number, np.repeat(source, count) + number * np.repeat(step, count)
    other = np.repeat(other, count) + number * np.repeat(other_step, count)
    # Sorted by source, neighbouring threads read neighbouring floats of an image.
    order = np.argsort(source) if row[0] == opcodes.INPUT else np.arange(number.size)
    return tuple(cuda.to_device(table[order].astype(np.int32)) for table in (target, source, other))


def _wide(items: int) -> int:
    """How many threads of a block have items of their own; the others share the sums of these items."""
    return min(THREADS, 1 << (items - 1).bit_length())


def _blocks(items: int) -> int:
    """How many blocks have a thread for each item."""
    return -(-items // THREADS)


def _head(array: Any, size: int) -> Any:
    return array if array.size == size else array[:size]
