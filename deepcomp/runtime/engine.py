"""The engine: splits a batch among threads and gives each thread an arena for its activations."""

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, ClassVar

import numpy as np

from deepcomp.dcz import container
from deepcomp.dcz.network import Network
from deepcomp.runtime import bounds, cpu, profiling, rows
from deepcomp.runtime.packing import PackedDense, PackedFull, PackedTable
from deepcomp.runtime.plan import Plan, Program, StepWeights
from deepcomp.runtime.rows import WEIGHT, Launch, WeightRow
from deepcomp.runtime.vectors import MAX_BLOCKS, WIDTH

_MIN_BLOCK = max(2, WIDTH // 3)  # images: a block pays from this number on, fewer run one by one
# Bytes of the activations of a block: more do not stay in a core's caches, and images run one by one.
_MAX_BLOCK_BYTES = 2**23
# Work is counted in vector operations.
_THREADING_WORK = 100_000  # a call with less work is done before another thread has woken up
_STEP_SPLIT_WORK = 500_000  # a block with less work is done before all threads have met after each step
_MAX_PARTS, _PART_WORK = 16, 16_384  # the most parts of a step, and the work that is worth a part
_SPINS = 100_000  # how often a worker looks for the next job before it sleeps: about half a millisecond
# Compiled code increments it after it has released Python's lock, which the workers need to take a job.
_WAKE_COUNTER = np.zeros(1, np.int64)
_LINE = 64  # bytes of a cache line, and of the longest vector
_FLOAT = np.dtype(np.float32)


class Engine:
    """A compressed network that runs on the CPU: `engine(images)`.

    `input_shape` and `output_shape` are those of one image and of its output, or a tuple of shapes where there are
    several; `threads` is the most that share a call.
    Any number of threads may call an engine at the same time.
    """

    _device = "cpu"
    _is_direct = False  # whether one image with one output is run at once: a call less
    restore: ClassVar[Callable]  # makes an engine of bytes, threads and device; runtime/__init__.py sets it

    def __init__(self, plan: Plan, threads: int, source: Network | bytes | None = None):
        self._source = source  # what the plan was made of: a network, or the bytes of its file
        self._set_ends(plan)
        self.threads, self.weight_bytes = threads, plan.weight_bytes
        self._plan = plan  # the tables hold addresses of its arrays, so it must stay alive
        rows = [_weight_row(weights, plan.constants) for weights in plan.weights]
        weights = np.array(rows, np.int64).reshape(-1, len(WEIGHT))
        self._batched, self._single = None, _Executor(plan, plan.single, 1, weights)
        if plan.batched is not None and plan.batched.size * WIDTH * _FLOAT.itemsize <= _MAX_BLOCK_BYTES:
            self._batched = _Executor(plan, plan.batched, WIDTH, weights)
        self._one_thread_an_image = threads == 1 or self._single.work <= _STEP_SPLIT_WORK
        self._is_direct = self._one_thread_an_image and self._one_output

    def _set_ends(self, plan: Plan) -> None:
        self.input_shape, self.output_shape = plan.ends.input_shape, plan.ends.output_shape
        self._one_output = len(plan.ends.outputs) == 1
        self._output_sizes = plan.ends.outputs[0] if self._one_output else (plan.ends.output_floats,)
        self._one_shape = (1, *self._output_sizes)

    @property
    def arena_bytes(self) -> int:
        """The memory for activations that has been allocated so far, in bytes."""
        return self._single.bytes + (self._batched.bytes if self._batched is not None else 0)

    def __repr__(self) -> str:
        return f"<Engine {self._plan.ends}: {self.weight_bytes:,} bytes of weights, {self.threads} threads>"

    def __reduce__(self) -> tuple:
        """Copies and pickles are made anew from the coded network: addresses and layouts hold in this process only."""
        if self._source is None:
            raise TypeError("This engine was made from a plan: only engines of deepcomp.load or prepare are copied.")
        return self.restore, (coded(self._source), self.threads, self._device, *self._plan.limits)

    def __call__(self, images: Any) -> Any:
        """The network's outputs, `float32 (N, *output_shape)`, for images `(N, *input_shape)`.

        Images are float32, of another float type, which is converted, or uint8, which is scaled to 0..1 unless the
        network has a Rescaling of its own; a last axis of size 1 may be missing. An input that the network declares as
        whole numbers, or looks up in an Embedding, may be of any integer type. Several inputs are given as a list or by
        name, and several outputs come as the model gives them, as a list or a dictionary. Outputs equal Keras's within
        rounding, but an input that is not finite passes through the remaining weights only, not through pruned ones.
        Raises `DataError` for any other input.
        """
        if (
            type(images) is not np.ndarray
            or images.dtype is not _FLOAT
            or images.shape[1:] != self.input_shape
            or not images.flags.carray  # compiled code reads contiguous arrays only
        ):
            images = self._plan.ends.flat(images)
        count = len(images)
        if count == 1 and self._is_direct:
            output = np.empty(self._one_shape, _FLOAT)
            _execute(self._single, 1, images.ravel(), output.ravel(), 0, 1)
            return output
        output = np.empty((count, *self._output_sizes), _FLOAT)
        self._compute(images.ravel(), output.ravel(), count)  # views of the same memory
        return output if self._one_output else self._plan.ends.split(output)

    def profile(self, inputs: Any = 1, seconds: float = 0.5) -> profiling.Profile:
        """Where the time of `engine(inputs)` goes: microseconds and multiply-adds of each layer, by one thread.

        A number stands for so many random inputs. Every step is timed in its turn, again and again for `seconds`;
        medians are returned. Raises `DataError` as a call does, and for a number below 1.
        """
        ends = self._plan.ends
        flat = ends.examples(profiling.counted(inputs)) if isinstance(inputs, int) else ends.flat(inputs)
        output = np.empty((len(flat), *self._output_sizes), _FLOAT)
        return profiling.measure(self._plan, self._parts(len(flat)), flat.ravel(), output.ravel(), seconds)

    def _compute(self, images: np.ndarray, output: np.ndarray, count: int) -> None:
        """Run `count` examples, given flat, and write their outputs."""
        if count == 1 and self._one_thread_an_image:
            _execute(self._single, 1, images, output, 0, 1)
            return
        for executor, first, part in self._parts(count):
            self._run(executor, images, output, first, part)

    def _parts(self, count: int) -> list[tuple["_Executor", int, int]]:
        """What runs `count` images: a program, its first image, and how many it runs."""
        rest = count % WIDTH if count % WIDTH < _MIN_BLOCK else 0  # images that run one by one
        if self._batched is None:
            rest = count
        parts = []
        if count > rest and self._batched is not None:
            parts.append((self._batched, 0, count - rest))
        if rest:
            parts.append((self._single, count - rest, rest))
        return parts

    def _run(self, executor: "_Executor", images: np.ndarray, output: np.ndarray, first: int, count: int) -> None:
        blocks = -(-count // executor.lanes)
        work, blocks_a_task = blocks * executor.work, min(blocks, executor.blocks)
        split = work > _STEP_SPLIT_WORK and (blocks == 1 or (executor.dense_only and blocks <= executor.blocks))
        # Each thread has an arena of its own. Those that split steps have a common one too.
        most = executor.most_arenas
        threads = min(self.threads, most - 1) if split else min(self.threads, most, blocks)
        if threads <= 1 or work <= (_THREADING_WORK if blocks > 1 else _STEP_SPLIT_WORK):
            _execute(executor, blocks_a_task, images, output, first, count)
            return
        # Without memory for the caller's arenas the call ends here, before a worker knows of it.
        own, common = executor.take_arena(), executor.take_arena() if split else None
        if common is not None:
            progress = np.zeros(cpu.PROGRESS + 2 * len(executor.steps) + 2, np.int64)
            progress[0] = common[0]
        else:
            progress = np.zeros(cpu.PROGRESS + 2, np.int64)
            blocks_a_task = min(blocks_a_task, -(-blocks // threads))
        job = (executor, blocks_a_task, images, output, first, count, progress)
        _thread_pool.submit(threads - 1, job, common)
        _execute(*job, own=own)
        if common is not None:
            executor.arenas.append(common)


def coded(source: Network | bytes) -> bytes:
    """The bytes of the file that an engine was made of, or those of its network."""
    return source if isinstance(source, bytes) else container.dumps(source, "huffman")


class _Executor:
    """A program with what it needs to run: launch parameters, and a pool of arenas, each for one thread at a time.

    `blocks`: the most blocks of images that an arena holds. `most_arenas`: how many fit in the plan's limit of memory.
    """

    def __init__(self, plan: Plan, program: Program, lanes: int, weights: np.ndarray):
        self.program, self.steps, self.lanes, self.bytes = program, program.steps, lanes, 0
        # Reading an image costs about an operation for each number.
        self.work = program.work + plan.ends.input_floats * lanes
        # With dense layers only, it is cheaper to read each weight once for all blocks than to keep a block's
        # activations in one core's cache.
        self.dense_only = lanes > 1 and not program.size
        room = plan.limits.memory // _FLOAT.itemsize  # floats
        self.blocks = 1
        if lanes > 1:
            self.blocks = max(1, min(MAX_BLOCKS, (room // lanes - program.size) // max(1, program.block)))
        places = program.size + self.blocks * program.block
        scratch = -(-(places * lanes + bounds.SLACK) // _LINE) * _LINE
        self._floats = scratch + program.scratch + rows.SCRATCH * lanes
        self.most_arenas = max(1, room // self._floats)
        tables = {name: getattr(plan, name) for name in ("constants", "moves", "offsets")}
        self._tables = {"steps": program.steps, "weights": weights, **tables}  # kept alive: they are used by address
        launch = Launch(
            tail=program.tail,
            size=program.size,
            block=program.block,
            lanes=lanes,
            blocks_a_task=0,
            floats=self._floats,
            scratch=scratch,
            input_floats=plan.ends.input_floats,
            output_floats=plan.ends.output_floats,
            most_parts=_MAX_PARTS,
            part_work=_PART_WORK,
            wake_counter=_WAKE_COUNTER.ctypes.data,
            spins=_SPINS,
            **{name: table.ctypes.data for name, table in self._tables.items()},
            **{f"{name}_count": len(table) for name, table in self._tables.items()},
        )
        launches = [launch._replace(blocks_a_task=blocks) for blocks in range(self.blocks + 1)]
        self._launches = np.array(launches, np.int64)
        self.launches = [row.ctypes.data for row in self._launches]  # addresses, by the number of blocks of a task
        self.arenas: deque[tuple[int, np.ndarray]] = deque()

    def take_arena(self) -> tuple[int, np.ndarray]:
        """An arena that no other thread uses, as address and array; a new one is all zeros and starts a cache line."""
        try:
            return self.arenas.pop()
        except IndexError:
            arena = np.zeros(self._floats + _LINE // 4, np.float32)
            self.bytes += arena.nbytes
            address = arena.ctypes.data
            return address + -address % _LINE, arena


def _execute(
    executor: _Executor,
    blocks_a_task: int,
    images,
    output,
    first: int,
    count: int,
    progress=None,
    wake_count: int = 0,
    own=None,
) -> None:
    """Do tasks of a job until none is left; arguments as in `cpu.execute`, `own` an arena that has been taken."""
    own, address = own or executor.take_arena(), 0 if progress is None else progress.ctypes.data
    cpu.execute(executor.launches[blocks_a_task], own[0], images, output, first, count, address, wake_count)
    executor.arenas.append(own)


class _ThreadPool:
    """Worker threads for the calls of all engines; a worker that wakes up late finds the work done.

    After a job they spin for a moment: waking up would take longer than a small network's next call. The caller does
    the work of workers that cannot: there is no memory for them.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple] = SimpleQueue()
        self._threads = 0
        self._lock = threading.Lock()

    def submit(self, workers: int, job: tuple, arena) -> None:
        """Give a job to this many workers; they keep its shared `arena`, if any, alive."""
        if self._threads < workers:
            with self._lock:
                try:
                    while self._threads < workers:
                        threading.Thread(target=self._serve, args=(self._jobs,), daemon=True, name="deepcomp").start()
                        self._threads += 1
                except (RuntimeError, MemoryError):  # the system has no more threads
                    workers = min(workers, self._threads)
        wake_count = int(_WAKE_COUNTER[0]) + 1  # what the caller makes of it when it begins
        for _ in range(workers):
            self._jobs.put((job, wake_count, arena))

    @staticmethod
    def _serve(jobs: SimpleQueue) -> None:
        while True:
            job, wake_count, arena = jobs.get()
            with suppress(MemoryError):  # of its own arena, before it has begun
                _execute(*job, wake_count=wake_count)
            del job, arena  # a waiting worker must not keep the images alive


_thread_pool = _ThreadPool()
if hasattr(os, "register_at_fork"):  # a forked process has none of the threads
    os.register_at_fork(after_in_child=_thread_pool.__init__)


def _weight_row(weights: StepWeights, constants: np.ndarray) -> WeightRow:
    """The row of a step's weights; the addresses are valid while `weights` and `constants` live."""
    packed = weights.packed
    if isinstance(packed, PackedTable):
        addresses = {"values": packed.values.ctypes.data, "codebook": packed.codebook.ctypes.data}
        empty = {"taps": 0, "starts": 0, "scale": 0, "shift": 0}
        return WeightRow(kind=packed.kind, tiles=packed.rows, units=packed.units, **addresses, **empty)
    is_full = isinstance(packed, PackedFull)
    row = WeightRow(
        kind=packed.kind,
        taps=0 if is_full else packed.taps.ctypes.data,
        values=packed.values.ctypes.data,
        codebook=packed.codebook.ctypes.data,
        starts=0 if is_full else packed.starts.ctypes.data,
        tiles=1 if is_full else packed.tiles,
        units=packed.units,
        scale=constants.ctypes.data + 4 * weights.scale,
        shift=constants.ctypes.data + 4 * weights.shift,
        inputs=packed.taps if is_full else 0,
    )
    if isinstance(packed, PackedDense):
        addresses = {"counts": packed.counts.ctypes.data, "members": packed.members.ctypes.data}
        row = row._replace(tile=packed.tile, span=packed.span, **addresses)
    return row
