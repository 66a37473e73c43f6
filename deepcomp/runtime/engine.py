"""The engine: takes any number of images, shares them among threads and lends each thread scratch memory."""

import os
import threading
from collections import deque
from itertools import chain
from queue import SimpleQueue
from typing import Any

import numpy as np

from deepcomp.errors import DataError, shape_text
from deepcomp.runtime import cpu
from deepcomp.runtime.kernels import BLOCKS, WIDTH, Cells
from deepcomp.runtime.plan import Plan, Schedule, Weights

_FULL = max(2, WIDTH // 3)  # images: from as many on a block pays, fewer run one by one
_SHARED_WORK = 100_000  # vector operations: less is done before another thread has woken up
_TOGETHER_WORK = 500_000  # vector operations on one block: less is done before all have met after each step
_PARTS, _PART = 16, 16_384  # of a step at most, and the vector operations that are worth one
_LOOKS = 100_000  # for another job, half a millisecond of them, before a helper sleeps
_BELL = np.zeros(1, np.int64)  # rung by compiled code once it has let go of Python's lock, which helpers need
_LINE = 64  # bytes: of a cache line, and of the longest vector
_FLOAT = np.dtype(np.float32)


class Engine:
    """A compressed network that runs on the CPU: `engine(images)`.

    `input_shape` and `output_shape` are those of one image and of its output; `threads` is the most that share a call.
    Any number of threads may call an engine at the same time.
    """

    def __init__(self, plan: Plan, threads: int):
        self.input_shape, self.output_shape, self.threads = plan.input_shape, plan.output_shape, threads
        self._one_output, self.weight_bytes = (1, *plan.output_shape), plan.weight_bytes
        self._plan = plan  # keeps alive what has only its address in the table
        rows = [_addresses(weights, plan.constants) for weights in plan.weights]
        weights = np.array(rows, np.int64).reshape(-1, cpu.KERNEL)
        self._many, self._one = _Kit(plan, plan.many, WIDTH, weights), _Kit(plan, plan.one, 1, weights)
        self._quick = threads == 1 or self._one.work <= _TOGETHER_WORK  # a thread alone does one image

    @property
    def arena_bytes(self) -> int:
        """What scratch memory for activations has been allocated so far, in bytes."""
        return self._many.bytes + self._one.bytes

    def __repr__(self) -> str:
        sizes = f"{shape_text(self.input_shape)} -> {shape_text(self.output_shape)}"
        return f"<Engine {sizes}: {self.weight_bytes:,} bytes of weights, {self.threads} threads>"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """The network's outputs, `float32 (N, *output_shape)`, for images `(N, *input_shape)`.

        Images are float32, of another float type, which is converted, or uint8, which is scaled to 0..1 as
        `deepcomp.data.to_float` does; a last axis of size 1 may be missing. Outputs are Keras's within rounding; an
        input that is not finite reaches no further than weights that are left. Raises `DataError` for anything else.
        """
        if (
            type(images) is not np.ndarray
            or images.dtype is not _FLOAT
            or images.shape[1:] != self.input_shape
            or not images.flags.carray  # compiled code is for such alone
        ):
            images = self._checked(images)
        count = len(images)
        if count == 1 and self._quick:
            output = np.empty(self._one_output, _FLOAT)
            _work(self._one, 1, images.ravel(), output.ravel(), 0, 1)
            return output
        output = np.empty((count, *self.output_shape), _FLOAT)
        flat, out = images.ravel(), output.ravel()  # of the same memory
        alone = count % WIDTH if count % WIDTH < _FULL else 0
        if count > alone:
            self._run(self._many, flat, out, 0, count - alone)
        if alone:
            self._run(self._one, flat, out, count - alone, alone)
        return output

    def _run(self, kit: "_Kit", images: np.ndarray, output: np.ndarray, first: int, count: int) -> None:
        blocks = -(-count // kit.lanes)
        work, parts = blocks * kit.work, min(blocks, BLOCKS) if kit.lanes > 1 else 1  # blocks of a task
        if self.threads == 1 or work <= (_SHARED_WORK if blocks > 1 else _TOGETHER_WORK):
            _work(kit, parts, images, output, first, count)
            return
        arena = None
        if work > _TOGETHER_WORK and (blocks == 1 or (kit.flat and blocks <= BLOCKS)):
            arena, helpers = kit.lend(), self.threads - 1
            shared = np.zeros(cpu.PROGRESS + 2 * len(kit.steps) + 2, np.int64)
            shared[0] = arena[0]
        else:
            helpers = min(self.threads, blocks) - 1
            shared = np.zeros(cpu.PROGRESS + 2, np.int64)
            parts = min(parts, -(-blocks // (helpers + 1)))
        job = (kit, parts, images, output, first, count, shared)
        _crew.help(helpers, job, arena)
        _work(*job)
        if arena is not None:
            kit.arenas.append(arena)

    def _checked(self, images: Any) -> np.ndarray:
        try:
            images = np.asarray(images)
        except ValueError as error:
            raise DataError(f"Images must be an array: {error}.") from error
        if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
            raise DataError(f"Images are {images.dtype}: they must be uint8 (0 to 255) or float.")
        shape = images.shape[1:]
        if images.ndim and shape != self.input_shape and (*shape, 1) == self.input_shape:
            shape = self.input_shape
        if not images.ndim or shape != self.input_shape:
            raise DataError(
                f"Images have the shape {images.shape}: the network takes (N, {', '.join(map(str, self.input_shape))})."
            )
        images = images.reshape(len(images), *shape)
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / np.float32(255)
        return np.require(images, np.float32, ("C", "A", "W"))


class _Kit:
    """A schedule with what it needs to run: frames, and arenas that are lent to one thread at a time."""

    def __init__(self, plan: Plan, schedule: Schedule, lanes: int, weights: np.ndarray):
        self.steps, self.lanes, self.bytes = schedule.steps, lanes, 0
        # Reading an image costs about an operation for each number.
        self.work = schedule.work + int(np.prod(plan.input_shape)) * lanes
        # Only dense layers: weights that are read once for all blocks count more than what moves between the caches.
        self.flat = lanes > 1 and not schedule.size
        places = schedule.size + BLOCKS * schedule.block if lanes > 1 else schedule.size + schedule.block
        scratch = -(-(places * lanes + _LINE) // _LINE) * _LINE  # behind some slack: vectors read over the end
        self._floats = scratch + schedule.scratch + 2 * lanes
        lengths = (int(np.prod(plan.input_shape)), int(np.prod(plan.output_shape)))
        rest = (self._floats, scratch, *lengths, _PARTS, _PART, _BELL.ctypes.data, _LOOKS)
        self._tables = (schedule.steps, weights, plan.constants, plan.moves, plan.offsets)
        rest += tuple(chain(*((table.ctypes.data, len(table)) for table in self._tables)))
        head = (schedule.tail, schedule.size, schedule.block, lanes)
        self._frames = np.array([(*head, group, *rest) for group in range(BLOCKS + 1)], np.int64)
        self.frames = [row.ctypes.data for row in self._frames]  # addresses: for tasks of so many blocks
        self.arenas: deque[tuple[int, np.ndarray]] = deque()

    def lend(self) -> tuple[int, np.ndarray]:
        """An arena that nobody else has, and its address; a new one is all zeros and begins with a cache line."""
        try:
            return self.arenas.pop()
        except IndexError:
            room = np.zeros(self._floats + _LINE // 4, np.float32)
            self.bytes += room.nbytes
            address = room.ctypes.data
            return address + -address % _LINE, room


def _work(kit: _Kit, group: int, images, output, first: int, count: int, shared=None, rung: int = 0) -> None:
    """Do tasks of a job, a few blocks each, as long as there are any; arguments as in `cpu.execute`."""
    own, address = kit.lend(), 0 if shared is None else shared.ctypes.data
    cpu.execute(kit.frames[group], own[0], images, output, first, count, address, rung)
    kit.arenas.append(own)


class _Crew:
    """Threads that help with the calls of all engines; one that comes late finds the work done.

    After a job they stay awake for a moment: waking up would take longer than a small network's next call.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple] = SimpleQueue()
        self._threads = 0
        self._lock = threading.Lock()

    def help(self, helpers: int, job: tuple, arena) -> None:
        """Let so many threads work at a job, once they are awake; they keep alive the arena that all share, if any."""
        if self._threads < helpers:
            with self._lock:
                for _ in range(self._threads, helpers):
                    threading.Thread(target=self._serve, args=(self._jobs,), daemon=True, name="deepcomp").start()
                self._threads = max(self._threads, helpers)
        rung = int(_BELL[0]) + 1  # by the caller, when it begins
        for _ in range(helpers):
            self._jobs.put((job, rung, arena))

    @staticmethod
    def _serve(jobs: SimpleQueue) -> None:
        while True:
            job, rung, arena = jobs.get()
            _work(*job, rung=rung)
            del job, arena  # and with them the images, until the next one comes


_crew = _Crew()
if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
    os.register_at_fork(after_in_child=_crew.__init__)


def _addresses(weights: Weights, constants: np.ndarray) -> tuple[int, ...]:
    """A row of the table of weights, with the columns of `cpu.KERNEL`."""
    packed = weights.packed
    arrays = (array.ctypes.data for array in (packed.taps, packed.values, packed.codebook, packed.starts))
    scales = (constants.ctypes.data + 4 * number for number in (weights.scale, weights.shift))
    own = (0, 0, 0, 0)
    if isinstance(packed, Cells):
        own = (packed.tile, packed.span, packed.counts.ctypes.data, packed.members.ctypes.data)
    return (packed.kind, *arrays, packed.tiles, packed.units, *scales, *own)
