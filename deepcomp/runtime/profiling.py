"""Where the time of a call goes: the steps of a plan, each timed in its turn."""

import time
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deepcomp import tables
from deepcomp.errors import DataError
from deepcomp.runtime import cpu, rows
from deepcomp.runtime.packing import PackedConv, PackedDense, PackedFull
from deepcomp.runtime.rows import LAUNCH

if TYPE_CHECKING:
    from deepcomp.runtime.engine import _Executor
    from deepcomp.runtime.plan import Plan

_LEAST_ROUNDS = 5
_CHARACTERS = 28  # of a layer's name, and of what its steps do, in a table
_WORDS = {
    rows.INPUT: "read input",
    rows.OUTPUT: "write output",
    rows.COPY: "copy",
    rows.CLEAR: "clear",
    rows.SCALE: "scale",
    rows.ADD: "add",
    rows.MULTIPLY: "multiply",
    rows.SUBTRACT: "subtract",
    rows.MAXIMUM: "maximum",
    rows.MINIMUM: "minimum",
    rows.SOFTMAX: "softmax",
    rows.NORMALIZE: "normalize",
    rows.MAX_POOL: "max pooling",
    rows.REDUCE_MAX: "maximum of a map",
    rows.AVERAGE_POOL: "average pooling",
    rows.CONVOLUTION: "convolution",
    rows.DENSE: "dense",
    rows.MATMUL: "matrix product",
    rows.GATHER: "look up",
    rows.CELL: "recurrent cell",
}
_FUNCTIONS = {number: name for name, number in rows.FUNCTIONS.items()}


class LayerTime(NamedTuple):
    """The part of a layer in a call: what its steps do, its multiply-adds, and microseconds.

    Multiply-adds are those of the weights that are left. A layer that the engine computes together with the one before
    it, such as batch normalization, an activation or pooling after a convolution, has no entry of its own. `layer` is
    "" for the steps that write outputs.
    """

    layer: str
    steps: str
    multiply_adds: int
    microseconds: float


class Profile(NamedTuple):
    """The layers of a call on `examples` examples, in the order in which they run; `str` of it is a table.

    `microseconds`: of the whole call by one thread. The layers add up to about as much.
    """

    examples: int
    microseconds: float
    layers: tuple[LayerTime, ...]

    def __str__(self) -> str:
        total = sum(layer.microseconds for layer in self.layers)
        lines = [
            {
                "layer": tables.shortened(layer.layer or "(outputs)", _CHARACTERS),
                "steps": tables.shortened(layer.steps, _CHARACTERS),
                "multiply_adds": layer.multiply_adds or None,
                "microseconds": layer.microseconds,
                "share": 100 * layer.microseconds / total if total else 0.0,
                "rate": layer.multiply_adds / layer.microseconds if layer.multiply_adds else None,
            }
            for layer in self.layers
        ]
        everything = sum(layer.multiply_adds for layer in self.layers)
        whole = {"layer": "all", "steps": "", "multiply_adds": everything, "microseconds": total, "share": 100.0}
        columns = {
            "layer": "layer",
            "steps": "steps",
            "multiply_adds": "multiply-adds:,",
            "microseconds": "us:,.1f",
            "share": "share %:.1f",
            "rate": "a us:,.0f",
        }
        return tables.table([*lines, {**whole, "rate": everything / total if total else None}], columns, left=["steps"])


def counted(examples: int) -> int:
    """A number of examples. Raises `DataError` for one below 1."""
    if isinstance(examples, bool) or examples < 1:
        raise DataError(f"No batch of {examples}: use a whole number from 1 on.")
    return examples


def measure(
    plan: "Plan", parts: Sequence[tuple["_Executor", int, int]], images: np.ndarray, output: np.ndarray, seconds: float
) -> Profile:
    """The profile of a call, whose programs run their parts of the images one after the other.

    parts: a program, the number of its first image, and how many it runs. images, output: `float32`, flat.
    """
    if not parts:
        return Profile(0, 0.0, ())
    calls = [call for executor, first, count in parts for call in _calls(plan, executor, first, count)]
    arenas = {executor: executor.take_arena() for executor, _, _ in parts}

    def run(launch: np.ndarray, executor: "_Executor", first: int, count: int) -> float:
        address, own = launch.ctypes.data, arenas[executor][0]
        begin = time.perf_counter()
        cpu.execute(address, own, images, output, first, count, 0, 0)
        return time.perf_counter() - begin

    whole = [(executor._launches[executor.blocks], executor, first, count) for executor, first, count in parts]
    for one in whole:  # the first call ever compiles
        run(*one)
    nothing = _launch(whole[0][1], 0, 0, 0)
    rounds: list[list[float]] = []
    wholes, empty, end = [], [], time.perf_counter() + seconds
    while len(rounds) < _LEAST_ROUNDS or time.perf_counter() < end:
        wholes.append(sum(run(*one) for one in whole))
        rounds.append([run(*call.arguments) for call in calls])
        empty.append(run(nothing, *whole[0][1:]))
    for executor, arena in arenas.items():
        executor.arenas.append(arena)
    spent = np.median(rounds, axis=0) - median(empty)
    return Profile(
        examples=sum(count for _, _, count in parts),
        microseconds=1e6 * median(wholes),
        layers=_by_layer(calls, 1e6 * np.maximum(spent, 0)),
    )


class _Call(NamedTuple):
    """A step for some images: the layer, what it does, its multiply-adds, and the arguments of a run."""

    layer: str
    words: str
    multiply_adds: int
    arguments: tuple


def _calls(plan: "Plan", executor: "_Executor", first: int, count: int) -> list[_Call]:
    """A program's steps in the order in which they run: those before the tail for each block, the tail for several."""
    program, calls = executor.program, []
    steps = [rows.step_of(row) for row in program.steps.tolist()]
    work = [_multiply_adds(plan, step) for step in steps]
    launches = [_launch(executor, number, 1, int(number < program.tail)) for number in range(len(steps))]

    def add(begin: int, end: int, image: int, images: int) -> None:
        for number in range(begin, end):
            arguments = (launches[number], executor, image, images)
            calls.append(_Call(program.layers[number], _words(steps[number]), images * work[number], arguments))

    most = executor.blocks * executor.lanes
    for task in range(first, first + count, most):
        images = min(most, first + count - task)
        for block in range(task, task + images, executor.lanes):
            add(0, program.tail, block, min(executor.lanes, task + images - block))
        add(program.tail, len(steps), task, images)
    return calls


def _launch(executor: "_Executor", number: int, steps: int, tail: int) -> np.ndarray:
    """The parameters of `cpu.execute` for so many of a program's steps, from `number` on."""
    launch = executor._launches[executor.blocks].copy()
    launch[LAUNCH.steps] += number * executor.steps.strides[0]
    launch[LAUNCH.steps_count], launch[LAUNCH.tail] = steps, tail
    return launch


def _multiply_adds(plan: "Plan", step) -> int:
    """The multiply-adds of a step for one image."""
    if isinstance(step, rows.MatmulStep):
        return step.batch * step.rows * step.inner * step.columns
    if not isinstance(step, rows.ConvolutionStep | rows.DenseStep):
        return 0
    packed = plan.weights[step.weights].packed
    positions = step.height * step.width if isinstance(step, rows.ConvolutionStep) else 1
    if isinstance(packed, PackedFull):
        return packed.units * packed.taps * positions
    if isinstance(packed, PackedConv):
        return int(packed.starts[-1]) * positions
    return int(packed.counts.sum()) if isinstance(packed, PackedDense) else 0


def _words(step) -> str:
    return _FUNCTIONS[step.function].replace("_", " ") if step.op == rows.MAP else _WORDS[step.op]


def _by_layer(calls: Sequence[_Call], microseconds: np.ndarray) -> tuple[LayerTime, ...]:
    """The calls of each layer added up."""
    groups: dict[str, list[int]] = {}
    for number, call in enumerate(calls):
        groups.setdefault(call.layer, []).append(number)
    return tuple(
        LayerTime(
            layer=layer,
            steps=", ".join(dict.fromkeys(calls[number].words for number in numbers)),
            multiply_adds=sum(calls[number].multiply_adds for number in numbers),
            microseconds=float(microseconds[numbers].sum()),
        )
        for layer, numbers in groups.items()
    )
