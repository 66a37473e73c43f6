"""What the callbacks for `model.fit` cost and reach.

    python benchmarks/callbacks.py                                  # time on ResNet-8, over fit without a callback
    python benchmarks/callbacks.py --accuracy --data FILE.npz       # LeNet-5 pruned to 90%: callback against pipeline

The time is that of an epoch of the same compiled step, with random images of 32x32x3: medians over interleaved
repetitions. The accuracy is that of the test part, for the same full network, number of steps and learning rates.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median

import keras
import numpy as np

import deepcomp
from deepcomp import data, models, tables
from deepcomp.options import Training
from deepcomp.training.predict import evaluate

BATCH = 32


def resnet_8() -> keras.Model:
    """The residual network of MLPerf Tiny for images of 32x32x3, uncompiled."""
    layers = keras.layers

    def convolution(x, filters, stride=1, window=3, relu=True):
        x = layers.Conv2D(filters, window, stride, "same", use_bias=False)(x)
        x = layers.BatchNormalization()(x)
        return layers.ReLU()(x) if relu else x

    image = keras.Input((32, 32, 3))
    x = convolution(image, 16)
    for filters, stride in ((16, 1), (32, 2), (64, 2)):
        y = convolution(convolution(x, filters, stride), filters, relu=False)
        x = x if stride == 1 else layers.Conv2D(filters, 1, stride, "same")(x)
        x = layers.ReLU()(layers.Add()([x, y]))
    return keras.Model(image, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def costs(images: int, repetitions: int) -> list[dict]:
    """Seconds of an epoch without and with each callback, in turn, and their ratios."""
    rng = np.random.default_rng(0)
    x, y = rng.random((images, 32, 32, 3), np.float32), rng.integers(0, 10, images)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    steps = repetitions * -(-images // BATCH)
    callbacks: dict[str, Callable[[], list]] = {
        "no callback": list,
        "PruningCallback": lambda: [deepcomp.PruningCallback(sparsity=0.9, end=steps, every=100)],
        "SharingCallback": lambda: [deepcomp.SharingCallback(clusters=16)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in callbacks}

    class Clock(keras.callbacks.Callback):
        """The time from the second batch of an epoch to its end, without compilation."""

        def on_train_batch_end(self, batch, logs=None):
            if batch == 0:
                self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds = time.perf_counter() - self.start

    fitted = {}
    for name in callbacks:
        keras.utils.set_random_seed(0)
        fitted[name] = resnet_8()
        fitted[name].compile(keras.optimizers.Adam(1e-3), loss)
    for repetition in range(repetitions + 1):  # the first one warms up
        for name, make in callbacks.items():
            clock = Clock()
            fitted[name].fit(x, y, batch_size=BATCH, verbose=0, callbacks=[*make(), clock])
            if repetition:
                seconds[name].append(clock.seconds)
    base = seconds["no callback"]
    ratios = {name: [a / b for a, b in zip(own, base, strict=True)] for name, own in seconds.items()}
    return [
        {"name": name, "seconds": median(own), "ratio": median(ratios[name]), "least": min(ratios[name])}
        for name, own in seconds.items()
    ]


def accuracies(source: str, seeds: Sequence[int], steps: int) -> list[dict]:
    """Test errors of LeNet-5 pruned to 90% by the pipeline and by the callback, in percent."""
    rows = []
    for seed in seeds:
        dataset = data.load(source, seed=seed)
        keras.utils.set_random_seed(seed)
        full = models.build("lenet-5")
        training = Training(steps=steps, seed=seed, verbose=False)
        full = deepcomp.train(full, dataset, training)
        goal = {"sparsity": 0.9, "end": steps // 2}
        ours = deepcomp.prune(full, dataset, training=training, **goal)

        theirs = models.clone(full)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        theirs.compile(keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(1e-3, steps)), loss)
        batches = -(-len(dataset.train) // training.batch)
        x = dataset.x_train.astype(np.float32) / 255
        epochs = -(-steps // batches)
        callback = deepcomp.PruningCallback(**goal)
        theirs.fit(x, dataset.y_train, batch_size=training.batch, epochs=epochs, verbose=0, callbacks=[callback])
        errors = [100 * (1 - evaluate(model, dataset.x_test, dataset.y_test)) for model in (full, ours, theirs)]
        rows.append(dict(zip(("name", "full", "pipeline", "callback"), (str(seed), *errors), strict=True)))
        rows[-1]["apart"] = errors[2] - errors[1]
    middle = {key: median(row[key] for row in rows) for key in ("full", "pipeline", "callback", "apart")}
    return [*rows, {"name": "median", **middle}]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accuracy", action="store_true", help="compare accuracies instead of times")
    parser.add_argument("--data", default="mnist-5k", help="for --accuracy: mnist, mnist-5k or FILE.npz")
    parser.add_argument("--steps", type=int, default=3000, help="for --accuracy: steps of training and of pruning")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=3200)
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args(arguments)
    if options.accuracy:
        columns = {"name": "seed", "full": "full, error %:.2f", "pipeline": "pipeline:.2f"}
        columns |= {"callback": "callback:.2f", "apart": "callback less pipeline:+.2f"}
        print(tables.table(accuracies(options.data, options.seeds, options.steps), columns))
    else:
        columns = {
            "name": "fit with",
            "seconds": "seconds:.2f",
            "ratio": "median ratio:.3f",
            "least": "least ratio:.3f",
        }
        print(tables.table(costs(options.images, options.repetitions), columns))


if __name__ == "__main__":
    main()
