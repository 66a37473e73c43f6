"""What the callbacks cost in `model.fit`, and how well they prune beside the pipeline of the library.

    python benchmarks/callbacks.py
    python benchmarks/callbacks.py --accuracy --data mnist-5k

The costs are of MLPerf Tiny's ResNet-8 on random images of 32x32x3: fits without a callback, with one, and with both
take turns on one network, which has the same weights and is compiled anew before each. `fit` is the time of a whole
fit and `step` that of a training step after the second, both over the time without a callback: the medians over the
turns of the ratios within a turn. `once` is what a fit takes longer until its second step has ended. On a noisy
machine these vary by several percent: `alone` is the time of the constraints of all kernels, run by themselves, over
that of a step.

The accuracy is the error of LeNet-5 on the test set, in percent: pruned to 90% by `PruningCallback` in `fit`, and by
`deepcomp.prune`, from the same network and with the same steps.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import deepcomp
from deepcomp import data, models
from deepcomp.training.predict import evaluate

CALLBACKS: dict[str, Callable[[int], list]] = {
    "none": lambda steps: [],
    "pruning": lambda steps: [deepcomp.PruningCallback(sparsity=0.9, scope="layer", end=steps, every=50)],
    "sharing": lambda steps: [deepcomp.SharingCallback(clusters=16)],
    "both": lambda steps: [*CALLBACKS["pruning"](steps), *CALLBACKS["sharing"](steps)],
}


def resnet_8() -> keras.Model:
    """ResNet-8 of MLPerf Tiny: 78,666 parameters, three blocks of 16, 32 and 64 channels."""

    def convolution(x, channels, size, stride):
        how = {"padding": "same", "kernel_initializer": "he_normal", "kernel_regularizer": keras.regularizers.L2(1e-4)}
        return keras.layers.Conv2D(channels, size, strides=stride, **how)(x)

    def normalized(x):
        return keras.layers.BatchNormalization()(x)

    def relu(x):
        return keras.layers.Activation("relu")(x)

    image = keras.Input((32, 32, 3))
    x = relu(normalized(convolution(image, 16, 3, 1)))
    for channels, stride in ((16, 1), (32, 2), (64, 2)):
        y = relu(normalized(convolution(x, channels, 3, stride)))
        y = normalized(convolution(y, channels, 3, 1))
        if stride > 1:
            x = convolution(x, channels, 1, stride)
        x = relu(keras.layers.Add()([x, y]))
    x = keras.layers.Flatten()(keras.layers.AveragePooling2D(8)(x))
    return keras.Model(image, keras.layers.Dense(10, activation="softmax")(x), name="resnet_8")


class Clock(keras.callbacks.Callback):
    """Seconds of a whole fit, until the second step has ended, and of one step after it."""

    def __init__(self):
        super().__init__()
        self.begin, self.end, self.ends = time.perf_counter(), 0.0, []

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())

    def on_train_end(self, logs=None):
        self.end = time.perf_counter()

    @property
    def fit(self) -> float:
        return self.end - self.begin

    @property
    def once(self) -> float:
        return self.ends[1] - self.begin

    @property
    def step(self) -> float:
        return (self.ends[-1] - self.ends[1]) / (len(self.ends) - 2)


def costs(steps: int, batch: int, turns: int) -> dict[str, tuple[float, float, float, float, float]]:
    """By callback: milliseconds of a step, ratios of a fit and a step to those without one, `alone` and `once`."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(steps * batch, 32, 32, 3)).astype(np.float32)
    y = rng.integers(0, 10, len(x))
    network = resnet_8()
    weights = network.get_weights()
    clocks: dict[str, list[Clock]] = {name: [] for name in CALLBACKS}
    for turn in range(-1, turns):  # The first turn warms up; it does not count.
        names = list(CALLBACKS)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            network.set_weights(weights)
            network.compile("adam", "sparse_categorical_crossentropy")
            # The clock comes last, so that it sees what the callbacks do after a step.
            found = CALLBACKS[name](steps)
            clock = Clock()
            network.fit(x, y, batch_size=batch, verbose=0, callbacks=[*found, clock])
            if turn >= 0:
                clocks[name].append(clock)
    plain = clocks["none"]
    usual = statistics.median(clock.step for clock in plain)

    def ratio(own: list[Clock], what: str) -> float:
        return statistics.median(getattr(a, what) / getattr(b, what) for a, b in zip(own, plain, strict=True))

    return {
        name: (
            1e3 * statistics.median(clock.step for clock in own),
            ratio(own, "fit"),
            ratio(own, "step"),
            alone(network, CALLBACKS[name](steps)) / usual,
            statistics.median(clock.once - other.once for clock, other in zip(own, plain, strict=True)),
        )
        for name, own in clocks.items()
    }


def alone(network: keras.Model, callbacks: list[deepcomp.PruningCallback | deepcomp.SharingCallback]) -> float:
    """Seconds of the constraints that the callbacks put on the network's kernels, the median of 300 runs."""
    for callback in callbacks:
        callback.set_params({})
        callback.set_model(network)
    for callback in callbacks:
        callback.on_train_begin()
        callback.on_epoch_begin(0)
    held = [variable for variable in network.trainable_variables if variable.constraint is not None]

    @tf.function
    def project():
        for variable in held:
            variable.assign(variable.constraint(variable))

    project()
    times = []
    for _ in range(300):
        begin = time.perf_counter()
        project()
        times.append(time.perf_counter() - begin)
    for callback in callbacks:
        callback.release()
    return statistics.median(times)


def errors(images: data.DataSet, steps: int, seed: int) -> tuple[float, float, float]:
    """The error of a LeNet-5 in percent: trained; pruned by the callback; pruned by `deepcomp.prune`."""
    keras.utils.set_random_seed(seed)
    full = models.build("lenet-5", images.shape, images.classes)
    full = deepcomp.train(full, images, steps=steps, seed=seed, verbose=False)
    own = models.clone(full)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    own.compile(keras.optimizers.Adam(rate), loss)
    how = {"sparsity": 0.9, "scope": "global", "every": 100}
    batches = max(1, len(images.x_train) // 100)
    own.fit(
        data.to_float(images.x_train)[: batches * 100].reshape(-1, *images.shape),
        images.y_train[: batches * 100],
        batch_size=100,
        epochs=-(-steps // batches),
        verbose=0,
        callbacks=[deepcomp.PruningCallback(end=steps // 2, **how), Last(steps)],
    )
    staged = deepcomp.prune(full, images, end=steps // 2, steps=steps, seed=seed, verbose=False, **how)
    for network in (own, staged):
        kernels = models.kernel_values(network).values()
        left = sum(np.count_nonzero(kernel) for kernel in kernels) / sum(kernel.size for kernel in kernels)
        if not 0.09 < left < 0.101:
            raise SystemExit(f"{left:.1%} of the weights are left, not 10%.")
    return tuple(100 * (1 - evaluate(network, images.x_test, images.y_test)) for network in (full, own, staged))


class Last(keras.callbacks.Callback):
    """Ends `fit` after so many steps."""

    def __init__(self, steps: int):
        super().__init__()
        self.left = steps

    def on_train_batch_end(self, batch, logs=None):
        self.left -= 1
        self.model.stop_training = self.left <= 0


def main(arguments: list[str] | None = None) -> None:
    """Print one of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accuracy", action="store_true", help="compare errors instead of times")
    parser.add_argument("--steps", type=int, help="training steps of a fit; 200 for times, 3000 for errors")
    parser.add_argument("--batch", type=int, default=32, help="images in a step, for times (default 32)")
    parser.add_argument("--turns", type=int, default=7, help="repetitions, for times (default 7)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds, for errors (default 3)")
    parser.add_argument("--data", default="mnist-5k", help="mnist-5k, mnist or FILE.npz, for errors")
    options = parser.parse_args(arguments)
    if options.accuracy:
        images, differences = data.load(options.data, validation=0, seed=0), []
        print(f"LeNet-5 on {options.data}: error in percent\nseed   full  callback  prune  difference")
        for seed in range(options.seeds):
            full, own, staged = errors(images, options.steps or 3000, seed)
            differences.append(own - staged)
            print(f"{seed:4} {full:6.2f} {own:9.2f} {staged:6.2f} {differences[-1]:+11.2f}", flush=True)
        print(f"mean difference {statistics.mean(differences):+.2f}")
        return
    steps = options.steps or 200
    print(f"ResNet-8, batches of {options.batch}, {steps} steps, {options.turns} turns")
    print(f"{'callback':8} {'ms a step':>9} {'fit':>7} {'step':>7} {'alone':>7} {'once, s':>8}")
    for name, (milliseconds, fit, step, own, once) in costs(steps, options.batch, options.turns).items():
        print(f"{name:8} {milliseconds:9.1f} {fit - 1:+7.1%} {step - 1:+7.1%} {own:+7.1%} {once:+8.1f}")


if __name__ == "__main__":
    main()
