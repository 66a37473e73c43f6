"""Networks of random structure by the thousand: each runs as an independent interpreter says, in guarded memory.

    python -m benchmarks.structures [--networks 50000] [--checked 2000] [--seed 0] [--again FILE.dcz ...]
    python -m benchmarks.structures --device cuda

Each network has random layers, options, shapes and branches, some of extreme sizes. It is written as a file; of every
fourth file some bytes are changed and the checksum is repaired. The file is loaded within random limits and run: one
image and several, by one thread and by two, twice. Arena, tables, weights, images and outputs end where a memory page
begins that nobody may touch, or begin where one ends. Outputs are compared with those of `interpreter`. `--checked` of
the networks run once more on kernels that are compiled with Numba's checks of subscripts. With `--device cuda`, a GPU
runs the networks, in one part and in several; NVIDIA's compute-sanitizer sees what they touch there.

A file is right, refused in one line, or bad: wrong outputs, another exception, a crash, or a hang. Bad files are kept
in `--out`; `--again` runs them once more. The exit status is 1 if there is one.
"""

import argparse
import ctypes
import importlib
import importlib.util
import itertools
import math
import mmap
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import children, fuzz
from benchmarks.generators import GENERATE, Draw
from benchmarks.interpreter import interpret, is_discrete
from deepcomp.dcz import coding, container, neurons
from deepcomp.dcz.codes import MAX_SIZE, InvalidNetworkError, Shape
from deepcomp.dcz.kinds import KINDS, is_kernel
from deepcomp.dcz.limits import Limits
from deepcomp.dcz.network import Layer, Network, SharedWeight, plan_layer, with_sizes
from deepcomp.errors import FormatError, RecipeError, UnsupportedLayerError
from deepcomp.runtime import engine
from deepcomp.runtime.plan import Plan

GOOD = ("right", "refused")
BAD = ("wrong", "exception", *children.ENDS)
PATIENCE = 60.0  # seconds until a network counts as hung
CHUNK = 2_000  # networks for one child process
MOST_WEIGHTS = 2**17  # of a tensor, so that a network takes milliseconds
MOST_NUMBERS = 2**16  # of a layer's output
_WORK = 2**28  # operations
_MEMORY = (2**18, 2**20, 2**22, 2**24, 2**26)  # bytes; few let images run in blocks, or threads share a call
_COUNTS = (2, 15, 16, 17, 37, 100, 150)  # images
_GUARD = 2**20  # bytes on either side
_MOST = 1e15  # of a value, whose square float32 can hold
_TOLERANCE = 1e-5  # of the largest output
_ROUNDING = 2e-7  # the error of a layer's values, as a fraction of the largest
_DRAWS = 3  # of such errors
_CHANGES = 30  # how many times the effect of such errors is allowed
_FEW_FLOATS = 2**12  # of a GPU's memory for activations: few images run at once


# Networks


def network(seed: int, number: int, attempt: int = 0) -> Network:
    """The network of a number, always the same for a seed."""
    draw = Draw(f"{seed} {number}" + f" {attempt}" * (attempt > 0))
    shapes = [_input_shape(draw)]
    axes = tuple(axis for axis in range(1, len(shapes[0]) + 1) if draw.chance(0.5)) if draw.chance(0.4) else ()
    layers = [Layer("InputLayer", "image", (), {"open_axes": axes})]
    wanted = draw.choice((1, 2, 3, 5, 8, draw.randint(9, 30)))
    for _ in range(20 * wanted):
        if len(layers) > wanted:
            break
        _add(draw, layers, shapes, draw.choice([*GENERATE]))
    _join(draw, layers, shapes)
    if math.prod(shapes[-1]) > MAX_SIZE:
        return network(seed, number, attempt + 1)
    values = np.random.default_rng([seed, number])
    made = []
    for layer in layers:
        weights = {}
        if layer.inputs:
            _, of_kind = plan_layer(layer, [shapes[source] for source in layer.inputs])
            weights = {name: _weight(draw, values, name, shape) for name, shape in of_kind.items()}
        made.append(replace(layer, weights=weights))
    return Network("network", shapes[0], tuple(made))


def _input_shape(draw: Draw) -> Shape:
    rank = draw.choice((1, 2, 2, 3, 3, 3, 4, 4, 5))
    channels = draw.choice((1, 2, 3, draw.randint(4, 40), 300 if draw.chance(0.1) else 1))
    return (*(draw.randint(1, 12 if rank < 4 else 4) for _ in range(rank - 1)), channels)


def _add(draw: Draw, layers: list[Layer], shapes: list[Shape], kind: str) -> None:
    """Add a layer of this kind, if one with random inputs and options fits."""
    used = {source for layer in layers for source in layer.inputs}
    unused = [number for number in range(len(layers)) if number not in used]
    first = draw.choice((len(layers) - 1, draw.choice(unused), draw.randrange(len(layers))))
    inputs = [0 if kind == "Embedding" else first]
    # Conv2D takes three dimensions, ConvLSTM2D those at each of some steps
    if kind.endswith("D") and len(shapes[first]) != int(kind[-2]) + 1 + kind.startswith("ConvLSTM"):
        return
    if KINDS[kind].merges:
        rank = len(shapes[first])
        alike = [number for number in range(len(layers)) if len(shapes[number]) == rank]
        others = 1 if kind in ("Subtract", "Dot", "CustomScaleLayer") else draw.choice((1, 1, 2, 3))
        inputs += [draw.choice(alike) for _ in range(others)]
        draw.shuffle(inputs)
        if kind.endswith("Attention"):  # what it looks at is often one sequence, or its own
            inputs = [inputs[0], *draw.choice((inputs[1:3], inputs[1:2] * 2, inputs[:1]))]
    taken = [shapes[number] for number in inputs]
    layer = Layer(kind, f"{kind}_{len(layers)}", tuple(inputs), GENERATE[kind](draw, *taken))
    try:
        shape, weights = plan_layer(layer, taken)
    except InvalidNetworkError:
        return
    small = math.prod(shape) <= MOST_NUMBERS or draw.chance(0.05)  # others will be refused
    if small and all(math.prod(size) <= MOST_WEIGHTS for size in weights.values()):
        layers.append(layer)
        shapes.append(shape)


def _join(draw: Draw, layers: list[Layer], shapes: list[Shape]) -> None:
    """Have all outputs lead to one: those that no layer takes are flattened and concatenated."""
    used = {source for layer in layers for source in layer.inputs}
    ends = [number for number in range(len(layers)) if number not in used]
    if ends == [0]:
        ends = [0, 0]
    if len(ends) == 1:
        return
    flat = []
    for number in ends:
        if len(shapes[number]) > 1:
            layers.append(Layer("Flatten", f"Flatten_{len(layers)}", (number,)))
            shapes.append((math.prod(shapes[number]),))
            number = len(layers) - 1
        flat.append(number)
    draw.shuffle(flat)
    layers.append(Layer("Concatenate", f"Concatenate_{len(layers)}", tuple(flat)))
    shapes.append((sum(shapes[number][0] for number in flat),))


def _weight(draw: Draw, values: np.random.Generator, name: str, shape: Shape) -> SharedWeight | np.ndarray:
    """A kernel of some density and number of values, or a vector; activations stay near 1."""
    if not is_kernel(name):
        low, high = (0.5, 1.5) if name in ("gamma", "moving_variance", "variance") else (-0.5, 0.5)
        vector = values.uniform(low, high, shape).astype(np.float32)
        return np.full(shape, vector.flat[0]) if draw.chance(0.2) else vector
    density = draw.choice((0.0, 0.02, 0.3, 0.3, 0.7, 1.0))
    fan_in = math.prod(shape[:-2]) if name == "depthwise_kernel" else math.prod(shape[:-1])
    scale = 1 / math.sqrt(max(1, fan_in * density))
    left = values.random(shape) < density
    if draw.chance(0.15):
        return (values.normal(0, scale, shape) * left).astype(np.float32)
    count = draw.choice((1, 2, 7, 31, 32, 33, 255, 300))
    codebook = np.unique(values.normal(0, scale, count).astype(np.float32))
    codebook = codebook[codebook != 0]
    indices = values.integers(1, codebook.size + 1, shape) * left
    return SharedWeight(codebook, indices.astype(np.min_scalar_type(codebook.size)))


def file(seed: int, number: int) -> bytes:
    """The file of a number; every fourth has changed bytes, most of them in what describes the layers."""
    one = network(seed, number)
    draw = Draw(f"file {seed} {number}")
    coder = draw.choice(coding.CODERS)
    data = container.dumps(one, coder)
    if number % 4:
        return data
    parts = container.parts(one, coder)
    first = 5
    last = first + parts.architecture_bits // 8 if draw.chance(0.8) else len(data) - 4
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(first, last)
        changed[at] = draw.choice((changed[at] ^ (1 << draw.randrange(8)), draw.randrange(8), draw.randrange(256)))
    return fuzz.repair(bytes(changed))


# Guarded memory


class Guarded:
    """Arrays between pages that nobody may touch; what they are views of must live as long as they."""

    _libc = ctypes.CDLL(None, use_errno=True)

    def __init__(self, at_end: bool):
        self.at_end = at_end
        self._libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def empty(self, shape: Shape | int, dtype: Any = np.float64, align: int = 1) -> np.ndarray:
        """An array, all zeros, that ends where a guard begins or begins where one ends; `align` in bytes."""
        shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if not size:
            return np.empty(shape, dtype)
        room = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, room + 2 * _GUARD, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for guard in (address, address + _GUARD + room):
            if self._libc.mprotect(guard, _GUARD, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        start = _GUARD + (room - size) // align * align * self.at_end
        return np.frombuffer(memory, np.uint8, size, start).view(dtype).reshape(shape)

    def copy(self, array: np.ndarray) -> np.ndarray:
        """Such an array of the same contents."""
        copied = self.empty(array.shape, array.dtype)
        copied[...] = array
        return copied

    def plan(self, plan: Plan) -> Plan:
        """The plan with all its tables and weights in guarded memory."""
        weights = [
            replace(one, packed=one.packed._replace(**{name: self.copy(a) for name, a in _arrays(one.packed)}))
            for one in plan.weights
        ]
        programs = {
            name: program and replace(program, steps=self.copy(program.steps))
            for name, program in (("batched", plan.batched), ("single", plan.single))
        }
        tables = {name: self.copy(getattr(plan, name)) for name in ("constants", "moves", "offsets")}
        return replace(plan, weights=tuple(weights), **programs, **tables)


def _arrays(packed: NamedTuple) -> list[tuple[str, np.ndarray]]:
    return [(name, value) for name, value in packed._asdict().items() if isinstance(value, np.ndarray)]


class _GuardedNumPy:
    """NumPy as the engine sees it: its outputs and arenas are guarded."""

    def __init__(self, guarded: Guarded):
        self._guarded = guarded

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: Shape | int, dtype: Any = np.float64) -> np.ndarray:
        return self._guarded.empty(shape, dtype)


def _take_arena(executor) -> tuple[int, np.ndarray]:
    """Stands in for the engine's own method: an arena that ends with its last float."""
    try:
        return executor.arenas.pop()
    except IndexError:
        arena = executor.guarded.empty(executor._floats, np.float32, align=64)
        return arena.ctypes.data, arena


# Judging


class Verdict(NamedTuple):
    """What became of a network: one of `GOOD` or `BAD`, in words; its kinds of layers; the seconds that it took."""

    outcome: str
    detail: str
    kinds: tuple[str, ...]
    changed: bool
    seconds: float


def prepare(seed: int, device: str) -> Callable[[int], Verdict]:
    """The judge of a child, of the networks of a seed by number, run by a device."""
    warnings.simplefilter("error")
    for name in ("_THREADING_WORK", "_STEP_SPLIT_WORK"):  # threads share the least work
        setattr(engine, name, 0)
    engine._PART_WORK = 64
    # Compile before time counts: what is refused does not run.
    next(number for number in itertools.count(1) if judge(file(seed, number), number, device).outcome == "right")
    return lambda number: judge(file(seed, number), number, device)


def judge(data: bytes, number: int, device: str = "cpu") -> Verdict:
    """Load and run a file, and compare with the interpreter; the number chooses limits and images."""
    begin, kinds = time.perf_counter(), ()
    outcome, detail = "right", ""
    try:
        draw = Draw(number)
        limits = Limits(draw.choice(_MEMORY), _WORK)
        loaded = container.loads(data, limits=limits)
        kinds = tuple(layer.kind for layer in loaded.layers[1:])
        loaded = _resized(draw, loaded)
        plan = Plan.of(neurons.remove_unused(loaded), limits)
        detail = _compare(loaded, plan, draw, device)
        outcome = "wrong" if detail else "right"
    except (FormatError, UnsupportedLayerError) as error:
        fine = isinstance(error, FormatError) and "\n" not in str(error) and "cannot be proved" not in str(error)
        outcome, detail = "refused" if fine else "exception", str(error)
    except Exception as error:
        outcome, detail = "exception", repr(error)
    return Verdict(outcome, detail, kinds, number % 4 == 0, time.perf_counter() - begin)


def _resized(draw: Draw, loaded: Network) -> Network:
    """The network with other sizes of its open axes, if it runs on those."""
    shapes = [
        tuple(draw.choice((1, draw.randint(1, 12), 24)) if size is None else size for size in shape)
        for shape in loaded.open_shapes
    ]
    try:
        return with_sizes(loaded, shapes) if loaded.has_open_sizes else loaded
    except InvalidNetworkError:
        return loaded


def _engines(plan: Plan, guarded: Guarded, device: str) -> Iterator[tuple[str, engine.Engine]]:
    """The engines that run a plan, and how each does it."""
    if device == "cpu":
        for threads in (1, 2):
            yield f"by {threads} threads", engine.Engine(guarded.plan(plan), threads)
        return
    from deepcomp.runtime import cuda

    most = cuda._MAX_FLOATS
    yield "on a GPU", cuda.CudaEngine(plan)
    cuda._MAX_FLOATS = _FEW_FLOATS
    try:
        yield "on a GPU, in parts", cuda.CudaEngine(plan)
    finally:
        cuda._MAX_FLOATS = most


def _compare(loaded: Network, plan: Plan, draw: Draw, device: str) -> str:
    """What is wrong with the outputs; nothing if they are right."""
    guarded = Guarded(at_end=draw.chance(0.7))
    numpy, take_arena = engine.np, engine._Executor.take_arena
    engine.np, engine._Executor.take_arena, engine._Executor.guarded = _GuardedNumPy(guarded), _take_arena, guarded
    try:
        count = draw.choice(_COUNTS)
        size = plan.ends.input_floats + plan.ends.output_floats
        count = count if count * size < 2**20 else 17
        values = np.random.default_rng(draw.getrandbits(32)).standard_normal((count, *_sizes(plan.ends.inputs)))
        tables = [layer for layer in loaded.layers if layer.kind == "Embedding"]
        masking = [layer for layer in loaded.layers if layer.kind == "Masking"]
        if tables:
            rows = min(layer.options["input_dim"] for layer in tables)
            values = np.floor(np.abs(values) % rows)
        if masking and abs(masking[0].options["mask_value"]) < _MOST:
            values[values[..., 0] > 0.5] = masking[0].options["mask_value"]
        images = guarded.copy(values.astype(np.float32))
        expected = _expected(loaded, images)
        # Rounding may choose another row of a table, or mask another step, of what is not the input itself.
        comparable = expected is not None and all(layer.inputs == (0,) for layer in loaded.layers if is_discrete(layer))
        allowed = _TOLERANCE * np.abs(expected).max() + 1e-30 if comparable else 0.0
        is_least = True  # what the effect of rounding allows besides takes long to find, and is needed rarely
        for how, ready in _engines(plan, guarded, device):
            for number in (count, 1, count):
                found = np.empty((number, *_sizes(plan.ends.outputs)), np.float32)
                ready._compute(images[:number].ravel(), found.ravel(), number)
                off = np.abs(found - expected[:number]).max() if comparable else 0.0
                if not off <= allowed and is_least:
                    allowed, is_least = allowed + _CHANGES * _rounding(loaded, images, expected), False
                    comparable = allowed < _MOST
                if comparable and not off <= allowed:
                    return f"{number} images {how} are off by {off:.3g}, {allowed:.3g} is allowed"
        return ""
    finally:
        engine.np, engine._Executor.take_arena = numpy, take_arena


def _expected(loaded: Network, images: np.ndarray) -> np.ndarray | None:
    """The outputs; None where float32 cannot hold what leads to them."""
    try:
        outputs = interpret(loaded, images, most=_MOST)
    except OverflowError:
        return None
    return outputs if np.isfinite(outputs).all() else None


def _rounding(loaded: Network, images: np.ndarray, outputs: np.ndarray) -> float:
    """How much rounding changes the outputs; infinitely much where float32 cannot hold what leads to them."""
    try:
        rough = max(np.abs(interpret(loaded, images, _ROUNDING, seed) - outputs).max() for seed in range(_DRAWS))
    except OverflowError:
        return math.inf
    return float(rough) if np.isfinite(rough) else math.inf


def _sizes(shapes: Sequence[Shape]) -> Shape:
    """The shape of one tensor, or the numbers of several side by side."""
    return shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)


# Running


def run(
    networks: int, seed: int, workers: int, patience: float = PATIENCE, first: int = 0, device: str = "cpu"
) -> Iterator[tuple]:
    """Judge the networks of so many numbers in child processes; yields (number, verdict), in any order."""
    numbers = range(first, first + networks)
    for judged in children.run(prepare, (seed, device), numbers, workers, patience, CHUNK):
        if judged.end:
            yield judged.case, Verdict(judged.end, judged.detail, (), judged.case % 4 == 0, judged.seconds)
        else:
            yield judged.case, judged.answer


def table(verdicts: Sequence[Verdict]) -> str:
    """Networks by kind of layer and by what became of them, with the slowest in milliseconds."""
    rows: list[tuple] = [("layer", "networks", *GOOD, *BAD, "slowest ms")]
    groups: Mapping[str, list[Verdict]] = {kind: [v for v in verdicts if kind in v.kinds] for kind in GENERATE}
    others = {"unread": [v for v in verdicts if not v.kinds], "changed": [v for v in verdicts if v.changed]}
    for name, own in {**groups, **others, "all": verdicts}.items():
        counts = Counter(verdict.outcome for verdict in own)
        slowest = 1000 * max((verdict.seconds for verdict in own), default=0)
        rows.append((name, len(own), *(counts[outcome] for outcome in (*GOOD, *BAD)), f"{slowest:.0f}"))
    return fuzz.aligned(rows)


def _progress(results: Iterable, total: int) -> Iterable:
    if importlib.util.find_spec("tqdm") is None:
        return results
    from tqdm import tqdm

    return tqdm(results, total=total, unit=" networks", disable=None)


def _report(title: str, networks: int, flags: argparse.Namespace, workers: int) -> int:
    """Run, keep bad files, print a table; returns the number of bad networks."""
    begin, verdicts, bad = time.monotonic(), [], 0
    judged = run(networks, flags.seed, workers, first=flags.first, device=flags.device)
    for number, verdict in _progress(judged, networks):
        verdicts.append(verdict)
        if verdict.outcome in BAD:
            bad += 1
            path = flags.out / f"{verdict.outcome}-{flags.seed}-{number}.dcz"
            flags.out.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file(flags.seed, number))
            print(f"{path}: {verdict.outcome}, {verdict.detail}", flush=True)
    print(f"{title}\n{table(verdicts)}\n")
    seconds = time.monotonic() - begin
    print(f"{len(verdicts):,} networks of seed {flags.seed} in {seconds:.0f} s: {bad} bad.", flush=True)
    return bad


def main() -> int:
    """Run and report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", type=int, default=50_000)
    parser.add_argument("--checked", type=int, default=2_000, help="networks on kernels with checked subscripts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first network")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="child processes at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="where bad files are kept")
    parser.add_argument("--again", type=Path, nargs="+", metavar="FILE.dcz", help="judge these files, and no others")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what runs the networks")
    flags = parser.parse_args()
    if flags.device == "cuda":
        try:
            importlib.import_module("deepcomp.runtime.cuda").require_gpu()
        except RecipeError as error:
            parser.error(str(error))
    if flags.again:
        prepare(flags.seed, flags.device)
        judged = [
            (path, judge(path.read_bytes(), int(path.stem.rpartition("-")[2]), flags.device)) for path in flags.again
        ]
        for path, verdict in judged:
            print(f"{path}: {verdict.outcome} {verdict.detail}")
        return int(any(verdict.outcome in BAD for _, verdict in judged))
    title = "In guarded memory" if flags.device == "cpu" else "On a GPU"
    bad = _report(title, flags.networks, flags, flags.workers) if flags.networks else 0
    if flags.checked and flags.device == "cpu":
        # Compiled code with checks has a folder of its own; children inherit the environment.
        with tempfile.TemporaryDirectory() as folder:
            os.environ |= {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": folder}
            bad += _report("With checked subscripts", flags.checked, flags, 1)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
