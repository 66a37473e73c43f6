"""Bytes of networks whose weights are pruned and not shared: the `.dcz` file, raw floats, gzip of the `.keras` file.

    python benchmarks/unshared.py MODEL [MODEL ...] [--sparsity 0 0.5 0.9]

Models are files that `deepcomp.opening` opens. So much of all kernels is pruned, by magnitude.
"""

import argparse
import gzip
import math
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from deepcomp import models, opening, tables
from deepcomp.dcz import conversion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.0, 0.5, 0.9])
    options = parser.parse_args()
    rows = []
    for path in options.models:
        for sparsity in options.sparsity:
            model = opening.load(path)
            prune(model, sparsity)
            rows.append({"network": path.stem, "pruned": f"{100 * sparsity:.0f}%", **sizes(model)})
    columns = {"network": "network", "pruned": "pruned", "raw": "floats, bytes:,", "gzip": "gzip of .keras:,"}
    columns |= {"dcz": ".dcz:,", "to_raw": ".dcz / floats:.3f", "to_gzip": ".dcz / gzip:.3f"}
    print(tables.table(rows, columns))


def prune(model: keras.Model, sparsity: float) -> None:
    """Set the kernel weights of the smallest magnitude to 0."""
    kernels = list(models.kernels(model).values())
    magnitudes = np.concatenate([np.abs(kernel.numpy()).ravel() for kernel in kernels])
    threshold = np.quantile(magnitudes, sparsity)
    for kernel in kernels if sparsity else ():
        values = kernel.numpy()
        kernel.assign(np.where(np.abs(values) >= threshold, values, 0))


def sizes(model: keras.Model) -> dict:
    """Bytes of a model's weights as floats, of its `.keras` file, without the optimizer, in gzip, and of its `.dcz`."""
    plain = keras.models.clone_model(model)
    plain.set_weights(model.get_weights())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        plain.save(path)
        zipped = len(gzip.compress(path.read_bytes(), 9))
        conversion.save(model, Path(folder) / "model.dcz")
        size = (Path(folder) / "model.dcz").stat().st_size
    raw = sum(np.dtype(weight.dtype).itemsize * math.prod(weight.shape) for weight in model.weights)
    return {"raw": raw, "gzip": zipped, "dcz": size, "to_raw": size / raw, "to_gzip": size / zipped}


if __name__ == "__main__":
    main()
