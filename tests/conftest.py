"""What tests share: quiet TensorFlow, small real digits, small networks."""

import functools
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
from hypothesis import settings

from deepcomp import data
from deepcomp.data import DataSet

settings.register_profile("deepcomp", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("deepcomp")

# They begin first, so that no worker is left alone with one of them at the end.
LONGEST = ("test_stages", "test_rounds", "test_interruptions", "test_any_task", "test_cuda", "test_compression")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def digits() -> DataSet:
    """600 real digits to train on, 200 to validate, 200 to test."""
    whole = data.load("mnist-5k", validation=200, seed=0)  # sorted by class
    train = whole.train.take(slice(None, None, 6)).take(slice(600))
    return DataSet("digits", train, whole.validation, whole.test.take(slice(None, None, 5)))


@pytest.fixture(scope="session")
def digits_file(digits, tmp_path_factory):
    """The same digits as a file for `--data`."""
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, x_train=digits.x_train, y_train=digits.y_train, x_test=digits.x_test, y_test=digits.y_test)
    return path


@pytest.fixture(autouse=True)
def without_determinism():
    """What `distribute.make_deterministic` sets is undone after each test: Keras uses no XLA where it is in effect."""
    yield
    if config := sys.modules.get("tensorflow.python.framework.config"):
        config.disable_op_determinism()


@pytest.fixture
def deterministic():
    """`distribute.make_deterministic`."""
    from deepcomp.training import distribute

    return distribute.make_deterministic


@pytest.fixture
def without_xla(monkeypatch):
    """`fit` compiles by TensorFlow alone: XLA takes many times as long, more than the few steps of a test save."""
    monkeypatch.setattr("keras.src.trainers.trainer.model_supports_jit", lambda model: False)


@pytest.fixture
def network():
    """A small convolutional network with batch normalization and dropout, freshly drawn."""
    import keras

    keras.utils.set_random_seed(7)
    return keras.Sequential(
        [
            keras.Input((28, 28, 1), name="image"),
            keras.layers.Conv2D(4, 5, strides=4, activation="relu", name="conv"),
            keras.layers.BatchNormalization(momentum=0.9, name="norm"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dropout(0.3, name="drop"),
            keras.layers.Dense(10, name="dense"),
        ],
        name="small",
    )


@pytest.fixture
def few(digits):
    """120 of the digits."""
    return DataSet("few", digits.train.sample(120), digits.validation, digits.test)


@pytest.fixture(scope="session")
def trained(digits):
    """A function that trains a small network for so many `steps`, prunes it, and trains what is left as long.

    About 700 weights are left, and some of its hidden neurons are not read. Each call gives a network of its own.
    """
    import keras

    from deepcomp import models
    from deepcomp.training import parametrize
    from tests.common import learn

    @functools.cache
    def made(steps, softmax):
        keras.utils.set_random_seed(1)
        model = keras.Sequential(
            [
                keras.Input((28, 28, 1)),
                keras.layers.Conv2D(4, 5, strides=4, activation="relu", name="conv"),
                keras.layers.BatchNormalization(name="norm"),
                keras.layers.Flatten(),
                keras.layers.Dense(40, activation="relu", name="hidden"),
                keras.layers.Dense(10, activation="softmax" if softmax else None, name="dense"),
            ],
            name="small",
        )
        how = {"steps": steps, "batch": 50, "learning_rate": 5e-3}
        learn(parametrize.free(model), digits, **how)
        dense = model.get_layer("dense").kernel
        dense.assign(dense.numpy() * (np.arange(40)[:, None] % 8 > 0))
        for variable in models.kernels(model).values():
            kernel = variable.numpy()
            left = min(kernel.size, 300)
            variable.assign(np.where(np.abs(kernel) < np.sort(np.abs(kernel), axis=None)[-left], 0, kernel))
        network = parametrize.masked(model)
        learn(network, digits, **how)
        return network.write_back()

    def trained(steps=150, softmax=False):
        return models.clone(made(steps, softmax))

    return trained
