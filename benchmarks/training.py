"""The training loop against `keras.Model.fit`: seconds for the same steps of the same network, in turn.

    python benchmarks/training.py [--steps 100] [--rounds 5]

Ours runs with free, masked and shared kernels; `fit` gets the same batches as a dataset, and arrays, its fastest.
"""

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from deepcomp import data, models, quantization, tables
from deepcomp.data import DataSet, Part
from deepcomp.options import Training
from deepcomp.training import batches, loop, losses, parametrize

BATCH = 100


def random_images(count: int) -> DataSet:
    """Noise of the shape of digits, with random labels."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (count, 28, 28, 1), np.uint8), rng.integers(0, 10, count).astype(np.int32)
    return DataSet.of((x, y), Part(x[:0], y[:0]), (x[:100], y[:100]), name="random")


def ours(name: str, kind: str, images: DataSet, steps: int):
    """A function that trains for `steps`; compilation happens at its first call, which is not timed."""
    model = models.build(name)
    if kind != "free":
        for variable in models.kernels(model).values():
            values = variable.numpy()
            values[np.abs(values) < np.quantile(np.abs(values), 0.95)] = 0
            variable.assign(quantization.share(values, 16) if kind == "shared" else values)
    how = Training(steps=steps, batch=BATCH, schedule="constant")
    task, dataset = losses.task_of(model, model, batches.fitted(images, model), how)
    network = getattr(parametrize, kind)(model)
    advance = loop.stepper(network, loop.optimizers(network, how, 1e-4), dataset, how, task)
    return lambda: advance(steps)


def theirs(name: str, kind: str, images: DataSet, steps: int):
    """A function that trains for `steps` with `fit`, on arrays or on the batches that our loop gets."""
    model = models.build(name)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    if kind == "arrays":
        x, y = data.to_float(images.x_train), images.y_train
        return lambda: model.fit(x, y, batch_size=BATCH, epochs=1, verbose=0)
    dataset = batches.batches(images.train, batch=BATCH, seed=0).map(lambda one: (one["x"], one["y"]))
    return lambda: model.fit(dataset, steps_per_epoch=steps, epochs=1, verbose=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    images = random_images(options.steps * BATCH)
    rows = []
    for name in models.NETWORKS:
        runners = {kind: ours(name, kind, images, options.steps) for kind in ("free", "masked", "shared")}
        runners |= {f"fit {kind}": theirs(name, kind, images, options.steps) for kind in ("dataset", "arrays")}
        times = {kind: [] for kind in runners}
        for run in runners.values():
            run()
        for _ in range(options.rounds):
            for kind, run in runners.items():
                began = time.perf_counter()
                run()
                times[kind].append((time.perf_counter() - began) / options.steps * 1000)
        best_fit = min(np.median(times["fit dataset"]), np.median(times["fit arrays"]))
        for kind, seen in times.items():
            row = {"network": name, "loop": kind, "median": np.median(seen), "least": min(seen), "most": max(seen)}
            rows.append({**row, "ratio": np.median(seen) / best_fit})
    columns = {"network": "network", "loop": "loop", "median": "ms/step:.2f", "least": "least:.2f", "most": "most:.2f"}
    print(f"batches of {BATCH}, {options.steps} steps, {options.rounds} rounds in turn")
    print(tables.table(rows, {**columns, "ratio": "of the faster fit:.2f"}))


if __name__ == "__main__":
    main()
