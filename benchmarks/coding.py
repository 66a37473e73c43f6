"""Bytes of the index tensors of quantized networks: both coders, order-0 entropy, and the DeepCABAC of NNCodec.

    python benchmarks/coding.py RUN|FILE.dcz|resnet-50 [...] [--spread 0.25] [--environment runs/nncodec-env]

NNCodec 2.1.3 (ISO/IEC 15938-17) is built once, into an environment of its own. It needs NumPy 1; its coder is a
compiled module that needs nothing else. It codes the same integers: 0 for a pruned weight, and negative integers for
negative values. For each tensor, the best result over three orientations and all settings counts. For all tensors
together, the best of one stream each and one common stream counts. Codebooks and headers of NNCodec are not counted.

`resnet-50` is synthetic: kernels of ResNet-50's shapes are normal, with channels of different scale, `--spread` being
the standard deviation of the scales' logarithms; the largest tenth of each kernel is left and shares 16 values.
"""

import argparse
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

NNCODEC, NUMPY = "nncodec==2.1.3", "numpy<2"
UNARY_LENGTHS, FLAGS = (5, 10, 16), (0, 1)
SYNTHETIC, LEFT, VALUES = "resnet-50", 0.1, 16
AS_PEER = "--as-peer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar=f"RUN|FILE.dcz|{SYNTHETIC}")
    parser.add_argument("--spread", type=float, default=0.25, help=f"of the scales of channels of {SYNTHETIC}")
    parser.add_argument("--environment", type=Path, default=Path("runs/nncodec-env"))
    options = parser.parse_args()
    from deepcomp import tables

    try:
        python = peer_python(options.environment)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        print(f"NNCodec cannot be built in {options.environment}, so ours are alone: {reason}")
        python = None
    columns = {"tensor": "bytes", "weights": "weights:,", "left": "left %:.2f", "values": "values"}
    columns |= {"entropy": "entropy:,.0f", "huffman": "huffman:,.0f", "range": "range:,.0f"}
    columns |= {"peer": "NNCodec:,", "ratio": "range / NNCodec:.3f"} if python else {}
    totals = []
    for run in options.runs:
        rows = rows_of(synthetic(options.spread) if str(run) == SYNTHETIC else tensors_of(run), python)
        print(f"\n{run}\n{tables.table(rows, columns)}")
        totals.append({**rows[-1], "tensor": str(run)})
    print(f"\nall index tensors of each network\n{tables.table(totals, columns)}")


def tensors_of(run: Path) -> list[tuple[str, np.ndarray, Any]]:
    """Name, indices and spec of each index tensor of a run's quantized network, or of a file."""
    from deepcomp.dcz import container
    from deepcomp.dcz import conversion as exchange
    from deepcomp.experiment.run_folder import Run

    network = container.load(run) if run.is_file() else exchange.from_keras(Run(run).stage("quantized").load_model())
    stored = [tensor for tensor in container.tensors(network) if tensor.indices is not None]
    return [(f"{tensor.layer} {tensor.name}", tensor.indices, tensor.spec) for tensor in stored]


def synthetic(spread: float) -> list[tuple[str, np.ndarray, Any]]:
    """The same of random kernels of ResNet-50's shapes."""
    import keras

    from deepcomp.dcz.coding import Spec
    from deepcomp.quantization import codebook, share

    rng, found = np.random.default_rng(0), []
    for layer in keras.applications.ResNet50(weights=None).layers:
        if not isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            continue
        kernel = rng.normal(size=layer.kernel.shape).astype(np.float32)
        for axis in (-1, -2):
            sizes = np.exp(rng.normal(0, spread, kernel.shape[axis])).astype(np.float32)
            kernel *= sizes if axis == -1 else sizes[:, None]
        kernel[np.abs(kernel) < np.quantile(np.abs(kernel), 1 - LEFT)] = 0
        kernel = share(kernel, VALUES, init="optimal")
        centroids, indices = codebook(kernel)
        spec = Spec(indices.shape, centroids.size, int((centroids < 0).sum()))
        found.append((f"{layer.name} kernel", indices, spec))
    return found


def rows_of(named: list[tuple[str, np.ndarray, Any]], python: Path | None) -> list[dict]:
    """A row for each index tensor, and one for all together."""
    from deepcomp.dcz import coding

    _, arrays, specs = zip(*named, strict=True)
    rows = [
        {
            "tensor": name,
            "weights": spec.size,
            "nonzero": np.count_nonzero(array),
            "values": spec.centroids,
            "entropy": entropy(array, spec.centroids),
        }
        for name, array, spec in named
    ]
    total = {key: sum(row[key] for row in rows) for key in ("weights", "nonzero", "entropy")}
    rows.append({"tensor": "all", **total, "values": None})
    for coder in coding.CODERS:
        coded = coding.encode(arrays, specs, coder)
        decoded = coding.decode(coded.data, specs, coder)
        for array, again in zip(arrays, decoded, strict=True):
            if array.dtype != again.dtype or not np.array_equal(array, again):
                raise SystemExit(f"{coder} does not decode to what it coded.")
        sizes = [sum(bits) / 8 for bits in coded.bits] + [len(coded.data)]
        for row, size in zip(rows, sizes, strict=True):
            row[coder] = size
    if python:
        for row, size in zip(rows, peer_sizes(python, arrays, specs), strict=True):
            row["peer"], row["ratio"] = size, row["range"] / size
    return [{**row, "left": 100 * row["nonzero"] / row["weights"]} for row in rows]


def entropy(indices: np.ndarray, centroids: int) -> float:
    """The least bytes of positions and values if each is independent of all others."""
    counts = np.bincount(indices.ravel(), minlength=centroids + 1)
    counts = counts[counts > 0]
    return float(counts @ np.log2(indices.size / counts)) / 8


# The peer's side


def peer_python(folder: Path) -> Path:
    """The interpreter of NNCodec's environment; the environment is made if it is missing."""
    python = folder.absolute() / ("Scripts" if os.name == "nt" else "bin") / "python"
    if not list(folder.glob("**/nncodec/extensions/deepCABAC*.*")):
        print(f"Building {NNCODEC} in {folder}", flush=True)
        # The coder itself needs NumPy only, none of the other dependencies such as torch.
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps", NUMPY, NNCODEC]
        for command in ([sys.executable, "-m", "venv", folder], install):
            subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
    return python


def peer_sizes(python: Path, arrays: list[np.ndarray], specs: list) -> list[int]:
    """NNCodec's bytes for each tensor, and for all together."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tensors.npz"
        levels = {}
        for number, (array, spec) in enumerate(zip(arrays, specs, strict=True)):
            level = array.astype(np.int32) - spec.negatives
            level[array <= spec.negatives] -= 1  # there is no level between the two signs
            level[array == 0] = 0
            levels[f"{number:05d}"] = level.reshape(-1, *spec.box[2:])
        np.savez(path, codebooks=[(spec.centroids + 1, spec.negatives) for spec in specs], **levels)
        command = [python, __file__, AS_PEER, path]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(answer)


def as_peer(path: str) -> None:
    """Print the sizes of the tensors in a file; this runs in NNCodec's environment."""
    coder = load_coder()
    with np.load(path) as file:
        codebooks = file["codebooks"].tolist()
        tensors = [file[name] for name in sorted(set(file.files) - {"codebooks"})]
    sizes, best = [], []
    for tensor, codebook in zip(tensors, codebooks, strict=True):
        tried = {}
        for way in itertools.product(range(3), UNARY_LENGTHS, FLAGS, FLAGS, ((0, 0), tuple(codebook))):
            tried[way] = size_in_one_stream(coder, [turned(tensor, way[0])], [way[1:]])
        way = min(tried, key=tried.get)
        sizes.append(tried[way])
        best.append((turned(tensor, way[0]), way[1:]))
    matrices, ways = zip(*best, strict=True)
    together = [sum(sizes), size_in_one_stream(coder, matrices, ways)]
    for start in itertools.product(UNARY_LENGTHS, FLAGS):  # the same contexts for all tensors
        together.append(size_in_one_stream(coder, matrices, [(*start, *way[2:]) for way in ways], keep=True))
    print(json.dumps([*sizes, min(together)]))


def load_coder():
    """The compiled coder alone: its package imports much that the coder does not need."""
    (path,) = Path(sysconfig.get_path("platlib")).glob("nncodec/extensions/deepCABAC*.*")
    spec = importlib.util.spec_from_file_location("deepCABAC", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def turned(tensor: np.ndarray, orientation: int) -> np.ndarray:
    """A tensor of window x inputs x outputs as a matrix: its rows are outputs, of two orders, or its columns."""
    outputs = tensor.shape[-1]
    if orientation == 0:
        matrix = tensor.reshape(-1, outputs).T
    elif orientation == 1:
        matrix = tensor.transpose(2, 1, 0).reshape(outputs, -1)
    else:
        matrix = tensor.reshape(-1, outputs)
    return np.ascontiguousarray(matrix, np.int32)


def size_in_one_stream(coder, matrices, ways, keep: bool = False) -> int:
    """Bytes of matrices in one stream, with new contexts for each or the same; a way is all settings of the coder."""
    encoder = coder.Encoder()
    for number, (matrix, (unary, optimise, skip, codebook)) in enumerate(zip(matrices, ways, strict=True)):
        if number == 0 or not keep:
            encoder.initCtxModels(unary, optimise)
        empty = (~matrix.any(axis=1)).astype(np.int32)
        off = coder.HdspMode.AlwaysOff, np.zeros(2, np.int8)
        encoder.encodeLayer(matrix, 0, 0, 1, 0, skip, empty, *off, *codebook)
    return len(encoder.finish())


if __name__ == "__main__":
    if sys.argv[1:2] == [AS_PEER]:
        as_peer(sys.argv[2])
    else:
        main()
