"""Damaged .dcz files by the thousand: each is refused with FormatError or gives a valid network, soon and in bounds.

    python -m benchmarks.fuzz [--files 100000] [--repaired 20000] [--seed 0]

Small files of varied networks are damaged and loaded in child processes of limited memory. `--files` of them keep the
checksum as it is: none may load as another network. `--repaired` have a checksum that fits, so that the parser and the
coders see the damage: such a file may be another valid network, but nothing else. A crash, a hang, any exception but
FormatError and memory beyond the limit are bad: the file is kept in `--out`, for `deepcomp inspect FILE`, and the exit
status is 1. The tables count the files by kind of damage and by what became of them; milliseconds are of the slowest.
"""

import argparse
import importlib.util
import os
import random
import resource
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks import children
from deepcomp.dcz import coding, container
from deepcomp.dcz.network import Layer, Network, SharedWeight, layer_shapes, output_shapes
from deepcomp.errors import DeepcompError, FormatError

MEMORY = 2 << 30  # bytes that a load may take beyond what Python and its modules take
PATIENCE = 20.0  # seconds until a load counts as hung
CHUNK = 5_000  # files for one child process
_CHECKSUM = 4  # bytes
_SMALL = 1 << 18  # weights of a network that is written and read again, to see that it is whole

GOOD = ("refused", "same", "another")
BAD = ("wrong", "invalid", "exception", "memory", "hang", "crash")


# The files that are damaged


class Original(NamedTuple):
    """A whole file: its network, its bytes, and where its sections begin and end."""

    network: Network
    data: bytes
    cuts: tuple[int, ...]


def originals() -> list[Original]:
    """The files that are damaged: every network by every coder."""
    return [_original(network, coder) for network in networks() for coder in coding.CODERS]


def _original(network: Network, coder: str) -> Original:
    parts = container.parts(network, coder)
    tables = parts.tables_bits + sum(part.codebook_bits + part.plain_bits for part in parts.tensors)
    indices = sum(part.index_bits + part.value_bits for part in parts.tensors)
    cuts = [0, parts.header_bits // 8 - _CHECKSUM]
    for bits in (parts.architecture_bits, parts.names_bits, tables, indices, 8 * _CHECKSUM):
        cuts.append(cuts[-1] + bits // 8)
    return Original(network, container.dumps(network, coder), tuple(cuts))


def networks() -> list[Network]:
    """Small networks that have, together, every form of tensor and most kinds of layers."""
    return [_lenet(), _residual(), _series(), _awkward()]


def _lenet() -> Network:
    """Convolutions, pooling, dense layers; sparse kernels of few values."""
    return _network(
        "lenet",
        (12, 12, 1),
        ("Conv2D", {"filters": 4, "kernel_size": (5, 5), "activation": "relu"}),
        ("MaxPooling2D", {}),
        ("Conv2D", {"filters": 6, "kernel_size": (3, 3), "strides": (2, 2), "padding": "same", "use_bias": False}),
        ("Flatten", {}),
        ("Dropout", {"rate": 0.25}),
        ("Dense", {"units": 24, "activation": "relu"}),
        ("Dense", {"units": 10}),
    )


def _residual() -> Network:
    """Batch normalization, depthwise and grouped convolutions, shortcuts, a gate of every channel."""
    return _network(
        "residual",
        (8, 8, 3),
        ("Rescaling", {"scale": 1 / 255}),
        ("Conv2D", {"filters": 4, "kernel_size": (3, 3), "strides": (2, 2), "padding": "same", "use_bias": False}),
        ("BatchNormalization", {"epsilon": 1e-5}),
        ("ReLU", {"max_value": 6.0}),
        ("DepthwiseConv2D", {"kernel_size": (3, 3), "padding": "same", "use_bias": False}),
        ("BatchNormalization", {}),
        ("Conv2D", {"filters": 4, "kernel_size": (1, 1), "groups": 2}),
        ("Add", {}, 7, 4),
        ("SeparableConv2D", {"filters": 6, "kernel_size": (3, 3), "padding": "same", "activation": "silu"}),
        ("Concatenate", {}, 9, 8, 2),
        ("GlobalAveragePooling2D", {"keepdims": True}),
        ("Multiply", {}, 10, 11),
        ("GlobalMaxPooling2D", {}),
        ("Dense", {"units": 5, "activation": "softmax"}),
    )


def _series() -> Network:
    """One-dimensional layers, and those that move entries about."""
    return _network(
        "series",
        (16, 2),
        ("ZeroPadding1D", {"padding": (2, 0)}),
        ("Conv1D", {"filters": 4, "kernel_size": (3,), "padding": "causal", "dilation_rate": (2,)}),
        ("LeakyReLU", {}),
        ("DepthwiseConv1D", {"kernel_size": (3,), "depth_multiplier": 2}),
        ("AveragePooling1D", {"pool_size": (3,), "strides": (2,), "padding": "same"}),
        ("SeparableConv1D", {"filters": 3, "kernel_size": (2,)}),
        ("Permute", {"dims": (2, 1)}),
        ("Reshape", {"target_shape": (3, 7, 1)}),
        ("ZeroPadding2D", {"padding": ((0, 1), (1, 0))}),
        ("Flatten", {}),
        ("Softmax", {}),
        ("Dense", {"units": 4}),
    )


def _awkward() -> Network:
    """One value, none, all pruned, 300 values, kernels value by value, vectors of one value and of two."""
    draw = np.random.default_rng(5)
    wide = np.linspace(-2, 2, 300, dtype=np.float32)
    vector = np.where(np.arange(600) % 7 == 0, np.float32(0.1), np.float32(0))
    kernels = (
        SharedWeight(_values(0.5), np.ones((1, 1), np.uint8)),
        SharedWeight(_values(0.5), (draw.random((1, 600)) < 0.02).astype(np.uint8)),
        SharedWeight(_values(), np.zeros((600, 3), np.uint8)),
        draw.standard_normal((3, 40)).astype(np.float32),
        SharedWeight(wide, draw.integers(0, 301, (40, 4)).astype(np.uint16)),
    )
    biases = (_values(0), vector, np.full(3, 0.1, np.float32), np.zeros(40, np.float32), _values(0, 1, -0.0, 3))
    layers = [Layer("InputLayer", "input_layer")]
    for number, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        weights = {"kernel": kernel, "bias": bias}
        layers.append(Layer("Dense", f"größe_{number}", (number,), {"units": bias.size}, weights))
    return Network("awkward", (1,), tuple(layers))


def _network(name: str, shape: tuple[int, ...], *layers: tuple) -> Network:
    """A network of layers `(kind, options, inputs...)` under their default names, with weights drawn for it."""
    draw = np.random.default_rng(len(layers))
    counts: Counter[str] = Counter()
    made = [Layer("InputLayer", "image")]
    for number, (kind, options, *inputs) in enumerate(layers):
        made.append(Layer(kind, f"{kind}_{counts[kind]}", tuple(inputs or [number]), options))
        counts[kind] += 1
    bare = Network(name, shape, tuple(made))
    made = []
    for layer, (_, weights, _) in zip(bare.layers, layer_shapes(bare), strict=True):
        drawn = {key: _draw(key, size, draw) for key, size in weights.items()}
        made.append(Layer(layer.kind, layer.name, layer.inputs, layer.options, drawn))
    return Network(name, shape, tuple(made))


def _draw(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> SharedWeight | np.ndarray:
    """A kernel that is a fifth of 7 values, the rest pruned; ones; or values of any size."""
    if name.endswith("kernel"):
        indices = draw.integers(1, 8, shape) * (draw.random(shape) < 0.2)
        return SharedWeight(_values(-1, -0.5, -0.1, 0.125, 0.3, 0.6, 2), indices.astype(np.uint8))
    if name == "gamma":
        return np.ones(shape, np.float32)
    return np.abs(draw.standard_normal(shape)).astype(np.float32)


def _values(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


# Damage: each takes the generator, the file and another file, and returns new bytes


def flip_bits(draw: random.Random, file: Original, other: Original) -> bytes:
    """1 to 16 bits turned over."""
    data = bytearray(file.data)
    for _ in range(draw.choice((1, 1, 2, draw.randint(1, 16)))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(data)


def truncate(draw: random.Random, file: Original, other: Original) -> bytes:
    """The front, or all but a few of the last bytes."""
    size = len(file.data)
    return file.data[: draw.choice((draw.randrange(size), max(0, size - draw.randint(1, 12))))]


def insert(draw: random.Random, file: Original, other: Original) -> bytes:
    """1 to 8 new bytes."""
    at = draw.randint(0, len(file.data))
    return file.data[:at] + draw.randbytes(draw.randint(1, 8)) + file.data[at:]


def delete(draw: random.Random, file: Original, other: Original) -> bytes:
    """Up to 32 bytes left out."""
    start, end = _block(draw, file, 32)
    return file.data[:start] + file.data[end:]


def splice(draw: random.Random, file: Original, other: Original) -> bytes:
    """A section, or a block of any place, replaced by one of another file."""
    if draw.random() < 0.5:
        section = draw.randrange(len(file.cuts) - 1)
        (start, end), (first, last) = (one.cuts[section : section + 2] for one in (file, other))
    else:
        (start, end), (first, last) = _block(draw, file, 64), _block(draw, other, 64)
    return file.data[:start] + other.data[first:last] + file.data[end:]


def duplicate(draw: random.Random, file: Original, other: Original) -> bytes:
    """A block of up to 64 bytes once more, behind itself or anywhere."""
    start, end = _block(draw, file, 64)
    at = draw.choice((end, draw.randint(0, len(file.data))))
    return file.data[:at] + file.data[start:end] + file.data[at:]


def randomize(draw: random.Random, file: Original, other: Original) -> bytes:
    """A run of up to 32 random bytes in place of what was there."""
    start, end = _block(draw, file, 32)
    return file.data[:start] + draw.randbytes(end - start) + file.data[end:]


def zero(draw: random.Random, file: Original, other: Original) -> bytes:
    """A run of up to 32 bytes 00."""
    start, end = _block(draw, file, 32)
    return file.data[:start] + bytes(end - start) + file.data[end:]


def fill(draw: random.Random, file: Original, other: Original) -> bytes:
    """A run of up to 32 bytes FF."""
    start, end = _block(draw, file, 32)
    return file.data[:start] + b"\xff" * (end - start) + file.data[end:]


DAMAGE: dict[str, Callable[[random.Random, Original, Original], bytes]] = {
    "bits flipped": flip_bits,
    "truncated": truncate,
    "inserted": insert,
    "deleted": delete,
    "spliced": splice,
    "duplicated": duplicate,
    "random run": randomize,
    "zero run": zero,
    "FF run": fill,
}


def _block(draw: random.Random, file: Original, most: int) -> tuple[int, int]:
    """Start and end of a block of 1 to `most` bytes, short ones as often as long ones."""
    start = draw.randrange(len(file.data))
    size = min(most, 1 << draw.randrange(most.bit_length()))
    return start, min(start + draw.randint(1, size), len(file.data))


class Case(NamedTuple):
    """A damaged file."""

    damage: str
    file: Original
    data: bytes


def make(files: list[Original], seed: int, repaired: bool, number: int) -> Case:
    """The damaged file of a number, always the same for a seed, and never the same as its original.

    `repaired` gives it the magic, the version and a checksum that fits.
    """
    draw = random.Random(f"{seed} {repaired} {number}")
    while True:
        file, other = draw.sample(files, 2)
        damage = draw.choice(list(DAMAGE))
        data = DAMAGE[damage](draw, file, other)
        if repaired:
            data = repair(data)
        if data != file.data:
            return Case(damage, file, data)


def repair(data: bytes) -> bytes:
    """The bytes with magic, version and a checksum that fits in place of their own."""
    return seal(container.MAGIC + bytes([container.VERSION]) + data[4:-_CHECKSUM])


def seal(body: bytes) -> bytes:
    """The bytes and their checksum."""
    return body + zlib.crc32(body).to_bytes(_CHECKSUM, "little")


# Loading


def judge(case: Case, repaired: bool) -> tuple[str, str, float]:
    """What becomes of a damaged file: one of `GOOD` or `BAD`, in words, and the seconds it took to load."""
    begin = time.perf_counter()
    try:
        network = container.loads(case.data)
    except (FormatError, MemoryError) as error:
        memory = isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError)
        return "memory" if memory else "refused", repr(error) if memory else "", time.perf_counter() - begin
    except Exception as error:
        return "exception", repr(error), time.perf_counter() - begin
    seconds = time.perf_counter() - begin
    if same(network, case.file.network):
        return "same", "", seconds
    if not repaired:
        return "wrong", "it loads as another network", seconds
    fault = flaw(network)
    return ("invalid", fault, seconds) if fault else ("another", "", seconds)


def same(one: Network, two: Network) -> bool:
    """Whether two networks are equal, weights to the bit."""
    return _plain(one) == _plain(two)


def _plain(network: Network) -> tuple:
    layers = []
    for layer in network.layers:
        weights = {name: _parts(weight) for name, weight in layer.weights.items()}
        layers.append((layer.kind, layer.name, layer.inputs, sorted(layer.options.items()), weights))
    return network.name, network.input_shape, layers


def _parts(weight: SharedWeight | np.ndarray) -> list[tuple]:
    arrays = [weight.codebook, weight.indices] if isinstance(weight, SharedWeight) else [weight]
    return [(array.dtype, array.shape, array.tobytes()) for array in arrays]


def flaw(network: Network) -> str:
    """What is wrong with a network; nothing if it is whole: shapes fit, indices are in codebooks, values are finite."""
    try:
        output_shapes(network)
        for layer in network.layers:
            for name, weight in layer.weights.items():
                if not _is_sound(weight):
                    return f"the weight {name} of {layer.name!r} is not sound"
        size = sum(_indices(weight).size for layer in network.layers for weight in layer.weights.values())
        for coder in coding.CODERS if size <= _SMALL else ():
            if not same(container.loads(container.dumps(network, coder)), network):
                return f"it is another network once written and read by {coder}"
    except DeepcompError as error:
        return repr(error)
    return ""


def _indices(weight: SharedWeight | np.ndarray) -> np.ndarray:
    return weight.indices if isinstance(weight, SharedWeight) else weight


def _is_sound(weight: SharedWeight | np.ndarray) -> bool:
    if not isinstance(weight, SharedWeight):
        return weight.dtype == np.float32 and bool(np.isfinite(weight).all())
    codebook, indices = weight.codebook, weight.indices
    ascends = bool(np.isfinite(codebook).all() and (np.diff(codebook) > 0).all() and (codebook != 0).all())
    return codebook.dtype == np.float32 and ascends and indices.dtype.kind == "u" and indices.max() <= codebook.size


def limit_memory(room: int) -> None:
    """Let this process take `room` more bytes of address space than it has, where the system tells and enforces it."""
    status = Path("/proc/self/statm")
    if status.exists():
        taken = int(status.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + room, taken + room))


Judge = Callable[[Case, bool], tuple[str, str, float]]


class Result(NamedTuple):
    """What became of a damaged file."""

    repaired: bool
    number: int
    damage: str
    outcome: str
    detail: str
    seconds: float


def run(
    files: int,
    repaired: int,
    seed: int = 0,
    workers: int = 2,
    memory: int = MEMORY,
    patience: float = PATIENCE,
    judge: Judge = judge,
) -> Iterator[Result]:
    """Make and load so many damaged files in child processes; yields what became of each, in any order.

    memory: bytes that a load may take; patience: seconds until it counts as hung.
    """
    cases = [(mode, number) for mode, count in ((True, repaired), (False, files)) for number in range(count)]
    for judged in children.run(_judge, (seed, memory, judge), cases, workers, patience, CHUNK):
        mode, number = judged.case
        if judged.end:
            damage = make(originals(), seed, mode, number).damage
            yield Result(mode, number, damage, judged.end, judged.detail, judged.seconds)
        else:
            yield Result(mode, number, *judged.answer)


def _judge(seed: int, memory: int, judge: Judge) -> Callable[[tuple[bool, int]], tuple]:
    """The judge of a child: it gives the damage, and what `judge` says."""
    files = originals()
    for file in files:  # compile before memory is limited and time counts
        container.loads(file.data)
    limit_memory(memory)

    def answer(number: tuple[bool, int]) -> tuple:
        case = make(files, seed, *number)
        return case.damage, *judge(case, number[0])

    return answer


# The report


def table(results: list[Result]) -> str:
    """Files by kind of damage and by what became of them, with the slowest load in milliseconds."""
    rows = [("damage", "files", *GOOD, *BAD, "slowest ms")]
    for damage in [*DAMAGE, "all"]:
        own = [result for result in results if damage in (result.damage, "all")]
        counts = Counter(result.outcome for result in own)
        slowest = 1000 * max((result.seconds for result in own), default=0)
        rows.append((damage, len(own), *(counts[outcome] for outcome in (*GOOD, *BAD)), f"{slowest:.1f}"))
    return aligned(rows)


def aligned(rows: list[tuple]) -> str:
    """Rows of a table in columns, the first to the left, the others to the right."""
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        f"{row[0]:{widths[0]}}" + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def keep(result: Result, seed: int, folder: Path) -> Path:
    """Write a damaged file into a folder, to be looked at."""
    mode = "repaired" if result.repaired else "plain"
    path = folder / f"{result.outcome}-{mode}-{seed}-{result.number}.dcz"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(make(originals(), seed, result.repaired, result.number).data)
    return path


def _progress(results: Iterator[Result], total: int) -> Iterable[Result]:
    if importlib.util.find_spec("tqdm") is None:
        return results
    from tqdm import tqdm

    return tqdm(results, total=total, unit=" files", disable=None)


def main() -> int:
    """Run and report; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=100_000, help="damaged files whose checksum is left as it is")
    parser.add_argument("--repaired", type=int, default=20_000, help="damaged files whose checksum fits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="child processes at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="where bad files are kept")
    flags = parser.parse_args()
    begin, results, bad = time.monotonic(), [], 0
    for result in _progress(
        run(flags.files, flags.repaired, flags.seed, flags.workers), total=flags.files + flags.repaired
    ):
        results.append(result)
        if result.outcome in BAD:
            bad += 1
            print(f"{keep(result, flags.seed, flags.out)}: {result.outcome}, {result.detail}", flush=True)
    for repaired, title in ((False, "The checksum as it is"), (True, "The checksum repaired")):
        print(f"{title}\n{table([result for result in results if result.repaired == repaired])}\n")
    print(f"{len(results):,} files of seed {flags.seed} in {time.monotonic() - begin:.0f} s: {bad} bad.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
