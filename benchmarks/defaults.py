"""What the defaults of `prune` and `quantize` cost networks, at half of the weights and 16 values a layer.

    python benchmarks/defaults.py lenet-5 mnist MODEL.h5 DATA.npz ...

A model is a file, or the name of one of deepcomp's networks, which is trained first. The table has errors on the test
examples, in percent: of the full network, after pruning and after sharing. Below the seeds are the medians; `lost`, in
percentage points, is that of the seeds' own.

Exit status: 0, or 1 where a median is above 0, or 2 for a mistake.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from statistics import median

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras

import deepcomp
from deepcomp import data, models, opening, tables
from deepcomp.data import DataSet
from deepcomp.errors import DataError, DeepcompError
from deepcomp.options import Training
from deepcomp.training import distribute, losses
from deepcomp.training.predict import predictor

_FULL_STEPS = 3000  # of a network that is trained first
_COLUMNS = {"model": "model", "seed": "seed", "full": "full:.2f", "pruned": "pruned:.2f", "shared": "shared:.2f"}
_COLUMNS |= {"lost": "lost:.2f", "seconds": "seconds:.0f"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pairs", metavar="MODEL DATA", nargs="+", help="a model and its data, as often as you like")
    parser.add_argument("--seeds", metavar="N", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    options = parser.parse_args()
    if len(options.pairs) % 2:
        parser.error("give each model its data: MODEL DATA MODEL DATA ...")
    found = []
    try:
        for model, source in zip(options.pairs[::2], options.pairs[1::2], strict=True):
            rows = [row_of(model, source, seed) for seed in options.seeds]
            found += [*rows, middle(rows)]
            print(f"\n{tables.table(found, _COLUMNS)}\n", flush=True)
    except DeepcompError as error:
        print(f"defaults.py: {error}", file=sys.stderr)
        return 2
    return int(any(row["lost"] > 0 for row in found if row["seed"] == "median"))


def row_of(name: str, source: str, seed: int) -> dict:
    """The errors of one network, compressed with one seed."""
    distribute.make_deterministic(seed)
    dataset = data.load(source, seed=seed)
    model = opening.load(name) if opening.is_model_file(name) else trained(name, dataset, seed)
    began = time.monotonic()
    pruned = deepcomp.prune(model, dataset, sparsity=0.5, seed=seed)
    shared = deepcomp.quantize(pruned, dataset, seed=seed)
    seconds = time.monotonic() - began
    full, *others = (error_of(one, dataset) for one in (model, pruned, shared))
    errors = dict(zip(("pruned", "shared"), others, strict=True))
    return {
        "model": model.name,
        "seed": str(seed),
        "full": full,
        **errors,
        "lost": errors["shared"] - full,
        "seconds": seconds,
    }


def trained(name: str, dataset: DataSet, seed: int) -> keras.Model:
    """One of deepcomp's networks, trained."""
    return deepcomp.train(models.build(name, dataset.shape, dataset.classes), dataset, steps=_FULL_STEPS, seed=seed)


def error_of(model: keras.Model, dataset: DataSet) -> float:
    """The part of the test examples that a network gets wrong, in percent."""
    task, dataset = losses.task_of(model, model, dataset, Training())
    measured = task.measured(predictor(model, scale=bool(dataset.scale)), dataset.test)
    accuracy = next((value for name, value in measured.items() if "accuracy" in name), None)
    if accuracy is None:
        raise DataError(f"The network {model.name!r} is measured by {', '.join(measured)}: give one with an accuracy.")
    return 100 * (1 - accuracy)


def middle(rows: Sequence[dict]) -> dict:
    """The median of each figure by itself."""
    figures = ("full", "pruned", "shared", "lost", "seconds")
    return {"model": rows[0]["model"], "seed": "median", **{key: median(row[key] for row in rows) for key in figures}}


if __name__ == "__main__":
    sys.exit(main())
