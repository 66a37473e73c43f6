"""Time and memory to encode and to decode a VGG-16 sized network, 138 million weights, on one core of Linux.

    python benchmarks/vgg.py [--coder range huffman] [--scale 1.0] [--unshared]

The network has VGG-16's shapes and the paper's densities (table 5). Its values are Laplacian, pruned by magnitude,
at random places, and shared: 255 values in a convolution, so that an index is a byte, and 32 in a dense layer.
Each measurement is a process of its own that compiles on a small network first; seconds are of processor time.
"beyond" is the peak of memory less what the process held before and, when decoding, less the network that comes out.
Its limit is twice the largest dense layer in float32. With `--unshared` all weights are left and have values of their
own, and "memory" is the peak as a part of the network's bytes.
"""

import argparse
import gc
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deepcomp import quantization, tables
from deepcomp.dcz import coding, container
from deepcomp.dcz.network import Layer, Network, SharedWeight

CONVOLUTIONS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
CONVOLUTION_DENSITIES = ((58, 22), (34, 36), (53, 24, 42), (32, 27, 34), (35, 29, 36))  # percent
UNITS, UNIT_DENSITIES = (4096, 4096, 1000), (4, 4, 23)
CONVOLUTION_VALUES, DENSE_VALUES = 255, 32
IMAGE = (224, 224, 3)
SAMPLE, CHUNK = 100_000, 1 << 20
WARM_UP_SCALE = 0.05
SECONDS_AT_MOST = {"encode": 60, "decode": 15}
UNSHARED_SECONDS_AT_MOST = {"encode": 10, "decode": 5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--coder", nargs="+", choices=coding.CODERS, default=["range", "huffman"])
    parser.add_argument("--scale", type=float, default=1.0, help="part of the channels and units of each layer")
    parser.add_argument("--unshared", action="store_true", help="no weight is pruned or shared")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.coder[0], options.scale, options.file, options.unshared)))
        return
    if options.unshared:
        options.coder = options.coder[:1]  # they differ in indices alone
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for coder in options.coder:
            path = Path(folder) / f"{coder}.dcz"
            rows += [{"coder": coder, "part": part, **in_process(part, coder, options, path)} for part in PARTS]
    if len({row["fingerprint"] for row in rows}) > 1:
        raise SystemExit("What was decoded is not what was encoded.")
    for row in rows:
        row["ratio"] = row["dense"] / row["bytes"]
        limits = UNSHARED_SECONDS_AT_MOST if options.unshared else SECONDS_AT_MOST
        row["seconds at most"] = limits[row["part"]] if options.scale == 1 else None
        row["memory"], row["memory at most"] = 1 + row["beyond"] / row["dense"], 1.3
        row["beyond at most"] = 2 * row["largest"]
        for key in ("beyond", "beyond at most"):
            row[key] /= 1e6
    columns = {"coder": "coder", "part": "part", "seconds": "seconds:.1f", "seconds at most": "at most"}
    if options.unshared:
        columns |= {"memory": "memory:.2f", "memory at most": "at most"}
    else:
        columns |= {"beyond": "beyond MB:,.0f", "beyond at most": "at most:,.0f"}
    columns |= {"bytes": "bytes:,", "ratio": "ratio:.1f"}
    print(f"{row['weights']:,} weights, {100 * row['nonzero'] / row['weights']:.2f}% left, one core")
    print(tables.table(rows, columns))


def vgg(scale: float, unshared: bool = False) -> Network:
    """VGG-16; `scale` is the part of the channels and units that it has."""
    rng = np.random.default_rng(0)
    layers, channels = [Layer("InputLayer", "input")], IMAGE[-1]

    def add(kind: str, name: str, options: dict | None = None, weights: dict | None = None) -> None:
        layers.append(Layer(kind, name, (len(layers) - 1,), options or {}, weights or {}))

    for block, (filters, densities) in enumerate(zip(CONVOLUTIONS, CONVOLUTION_DENSITIES, strict=True), 1):
        for place, (full, density) in enumerate(zip(filters, densities, strict=True), 1):
            size = scaled(full, scale)
            options = {"filters": size, "kernel_size": (3, 3), "padding": "same", "activation": "relu"}
            weights = weights_of(rng, (3, 3, channels, size), density / 100, CONVOLUTION_VALUES, unshared)
            add("Conv2D", f"conv{block}_{place}", options, weights)
            channels = size
        add("MaxPooling2D", f"pool{block}")
    add("Flatten", "flatten")
    inputs = channels * (IMAGE[0] >> len(CONVOLUTIONS)) * (IMAGE[1] >> len(CONVOLUTIONS))
    for number, (full, density) in enumerate(zip(UNITS, UNIT_DENSITIES, strict=True), 6):
        size = scaled(full, scale)
        options = {"units": size, "activation": "softmax" if number == 8 else "relu"}
        add("Dense", f"fc{number}", options, weights_of(rng, (inputs, size), density / 100, DENSE_VALUES, unshared))
        inputs = size
    return Network("vgg16", IMAGE, tuple(layers))


def scaled(size: int, scale: float) -> int:
    return max(1, round(size * scale))


def weights_of(rng: np.random.Generator, shape: tuple[int, ...], density: float, clusters: int, unshared: bool) -> dict:
    """A kernel of shared Laplacian values of which the largest are left, and a bias whose values fit float16.

    Or a kernel of normal values.
    """
    if unshared:
        kernel = rng.standard_normal(shape, np.float32)
        kernel *= np.float32(np.prod(shape[:-1]) ** -0.5)
        return {"kernel": kernel, "bias": np.zeros(shape[-1], np.float32)}
    threshold = np.float32(-np.log(density))  # that part of a Laplacian lies beyond it, exponential again

    def survivors(count: int) -> np.ndarray:
        signs = rng.integers(0, 2, count, np.int8) * np.float32(2) - 1
        return signs * (rng.standard_exponential(count, np.float32) + threshold)

    codebook = quantization.cluster(survivors(SAMPLE), clusters)[0]
    cuts = (codebook[1:] + codebook[:-1]) / 2
    indices = np.zeros(np.prod(shape), np.min_scalar_type(codebook.size))
    for start in range(0, indices.size, CHUNK):
        part = indices[start : start + CHUNK]
        left = np.flatnonzero(rng.random(part.size, np.float32) < density)
        part[left] = np.searchsorted(cuts, survivors(left.size)) + 1
    spread = np.float32(np.prod(shape[:-1]) ** -0.5)
    bias = rng.normal(0, 0.1, shape[-1]).astype(np.float16).astype(np.float32)
    return {"kernel": SharedWeight(codebook * spread, indices.reshape(shape)), "bias": bias}


# What each process does


def in_process(part: str, coder: str, options: argparse.Namespace, path: Path) -> dict:
    """What one part measures, in a process of its own."""
    command = [sys.executable, __file__, "--part", part, "--coder", coder, "--file", path]
    command += ["--scale", str(options.scale), *["--unshared"] * options.unshared]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def encode(coder: str, scale: float, path: Path, unshared: bool) -> dict:
    warm_up(coder, path, unshared)
    network = vgg(scale, unshared)
    _, measured = measure(lambda: container.save(network, path, coder))
    return {**measured, **facts(network), "bytes": path.stat().st_size}


def decode(coder: str, scale: float, path: Path, unshared: bool) -> dict:
    warm_up(coder, path.with_suffix(".small"), unshared)
    network, measured = measure(lambda: container.load(path))
    measured["beyond"] -= sum(array.nbytes for array in arrays_of(network))
    return {**measured, **facts(network), "bytes": path.stat().st_size}


PARTS = {"encode": encode, "decode": decode}


def warm_up(coder: str, path: Path, unshared: bool) -> None:
    """Compile; from here on one core is all there is."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    container.save(vgg(WARM_UP_SCALE, unshared), path, coder)
    container.load(path)


def measure(work: Callable[[], Any]) -> tuple[Any, dict]:
    """What `work` returns; its seconds of processor time, and by how many bytes memory rose at its peak."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from now on
    before, began = memory("VmRSS"), time.process_time()
    result = work()
    return result, {"seconds": time.process_time() - began, "beyond": memory("VmHWM") - before}


def memory(name: str) -> int:
    """A figure of the process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def arrays_of(network: Network) -> list[np.ndarray]:
    weights = [weight for layer in network.layers for weight in layer.weights.values()]
    kernels = [weight for weight in weights if isinstance(weight, SharedWeight)]
    plain = [weight for weight in weights if not isinstance(weight, SharedWeight)]
    return [array for kernel in kernels for array in (kernel.codebook, kernel.indices)] + plain


def facts(network: Network) -> dict:
    """Weights, those left, bytes of all parameters and of the largest dense layer in float32, every bit's hash."""
    arrays = arrays_of(network)
    kernels = [array for array in arrays if array.ndim > 1]
    parameters = sum(array.size for array in kernels) + sum(
        weight.size for layer in network.layers for name, weight in layer.weights.items() if name == "bias"
    )
    layers = [(layer.kind, layer.name, layer.inputs, sorted(layer.options.items())) for layer in network.layers]
    bits = hashlib.sha256(repr([*layers, *((array.dtype, array.shape) for array in arrays)]).encode())
    for array in arrays:
        bits.update(np.ascontiguousarray(array))
    return {
        "weights": sum(array.size for array in kernels),
        "nonzero": sum(int(np.count_nonzero(array)) for array in kernels),
        "dense": 4 * parameters,
        "largest": 4 * max(array.size for array in kernels if array.ndim == 2),
        "fingerprint": bits.hexdigest(),
    }


if __name__ == "__main__":
    main()
