"""deepcomp on a GPU: correctness, and microseconds a batch side by side with dense engines: `make bench-gpu`, or

    python benchmarks/gpu.py [NETWORK ...] [--batches 1 64 1024] [--rounds 30]

with the extras `cuda` and `test` installed. First, every network of the zoo in tests/runtime/test_cuda.py runs on the
GPU and on the CPU. Then the networks of benchmarks/speed.py are timed, from NumPy array to NumPy array, in one process,
which runs the engines alternately. The peers are those that are installed and find the GPU: TensorFlow runs the dense
network, including the pruned zeros; CuPy runs the dense layer of vgg-fc6, with cuBLAS and, as a CSR matrix, with
cuSPARSE. "+-" is half the interquartile range of the rounds, in percent of their median; "ours is" is the peer's median
divided by ours.

Exit status: 0, or 1 if an output is wrong, or 2 if there is no GPU.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # TensorFlow takes the whole GPU otherwise

import numpy as np
import speed

import deepcomp
from deepcomp import tables
from deepcomp.dcz import container
from deepcomp.errors import RecipeError

TOLERANCE = 1e-4  # relative to the largest output
BATCHES = (1, 64, 1024)
IMAGES = (1, 3, 64, 200)  # of the zoo
SECONDS = 0.02  # of a round, and at least one call

Call = Callable[[], np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("lenet-5", "reference", "vgg-fc6")
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=f"default: {' '.join(names)}")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        try:
            wrong = check_zoo(Path(folder))
        except RecipeError as error:
            print(error, file=sys.stderr)
            return 2
        for name in options.networks or names:
            print(f"\n{name}, microseconds a batch")
            wrong |= time_network(name, Path(folder), options.batches, options.rounds)
    return int(wrong)


def check_zoo(folder: Path) -> bool:
    """Run every network of the zoo on both devices and print their differences; returns whether one is wrong."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "runtime"))
    from test_cuda import ZOO

    rows = []
    for make in ZOO:
        path = folder / f"{make.__name__}.dcz"
        container.save(make(), path)
        gpu, cpu = deepcomp.load(path, device="cuda"), deepcomp.load(path)
        images = np.random.default_rng(0).normal(size=(max(IMAGES), *cpu.input_shape)).astype(np.float32)
        apart = max(distance(gpu(images[:count]), cpu(images[:count])) for count in IMAGES)
        rows.append({"network": make.__name__, "apart": apart, "verdict": "right" if apart < TOLERANCE else "WRONG"})
    print(tables.table(rows, {"network": "network", "apart": "GPU to CPU:.1e", "verdict": ""}))
    return any(row["verdict"] != "right" for row in rows)


def distance(output: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference relative to the largest output."""
    return float(np.abs(output - expected).max() / np.abs(expected).max())


def time_network(name: str, folder: Path, batches: list[int], rounds: int) -> bool:
    """Print the time of a call of each engine for each batch; returns whether an output is wrong."""
    from deepcomp import models

    model, path, wrong = speed.build(name), folder / f"{name}.dcz", False
    deepcomp.save(model, path, coder="huffman")
    images = np.random.default_rng(0).random((max(batches), *models.input_shape(model)), np.float32)
    expected = deepcomp.load(path)(images)
    engine = deepcomp.load(path, device="cuda")
    print(f"{engine.weight_bytes:,} bytes of weights on the GPU, {4 * model.count_params():,} in the dense network")
    cells, reasons = [], {}
    for batch in batches:
        calls: dict[str, Call] = {speed.OURS: lambda batch=images[:batch]: engine(batch)}
        for peer, make in PEERS.items():
            try:
                calls[peer] = make(model, images[:batch])
            except Exception as error:  # one peer that fails must not stop the others
                reasons[peer] = speed.reason(error)
        for peer, call in calls.items():
            apart = distance(call(), expected[:batch])
            # Dense products may round their operands to fewer bits.
            if apart > (TOLERANCE if peer == speed.OURS else speed.TOLERANCE):
                print(f"batch {batch}: the outputs of {peer} are {apart:.1e} off")
                wrong |= peer == speed.OURS
        for peer, times in measured(calls, rounds).items():
            cells.append({"network": name, "batch": batch, "engine": peer, **speed.summary(times)})
    shown = [cell for batch in batches for cell in speed.with_ratios([c for c in cells if c["batch"] == batch])]
    print(speed.speed_table(shown))
    for peer, reason in reasons.items():
        print(f"missing: {peer}: {reason}")
    return wrong


def measured(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Microseconds of a call in each round; the engines run alternately."""
    repeats = {name: max(1, round(SECONDS / seconds(call, 3))) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(1e6 * seconds(call, repeats[name]))
    return times


def seconds(call: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


# The peers: each makes a call of a Keras model and a batch of images


def tensorflow(model, images: np.ndarray) -> Call:
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        raise RuntimeError("TensorFlow sees no GPU")
    function = tf.function(model, autograph=False, input_signature=[tf.TensorSpec(images.shape, tf.float32)])
    return lambda: function(images).numpy()


def cublas(model, images: np.ndarray) -> Call:
    return product(model, images, sparse=False)


def cusparse(model, images: np.ndarray) -> Call:
    return product(model, images, sparse=True)


def product(model, images: np.ndarray, sparse: bool) -> Call:
    import cupy
    from cupyx.scipy.sparse import csr_matrix

    if [layer.name for layer in model.layers] != ["fc6"]:
        raise ValueError("CuPy runs a dense layer alone")
    kernel, bias = (cupy.asarray(weight) for weight in model.layers[0].get_weights())
    matrix = csr_matrix(kernel.T) if sparse else kernel.T

    def call() -> np.ndarray:
        output = matrix @ cupy.asarray(images).T
        return cupy.maximum(output.T + bias, 0).get()

    return call


PEERS = {"TensorFlow": tensorflow, "cuBLAS": cublas, "cuSPARSE": cusparse}


if __name__ == "__main__":
    sys.exit(main())
