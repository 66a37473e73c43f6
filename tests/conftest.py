"""What tests share: quiet TensorFlow, small real digits, small networks."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import pytest
from hypothesis import settings

from deepcomp import data

settings.register_profile("deepcomp", derandomize=True, deadline=None, max_examples=40)
settings.load_profile("deepcomp")


@pytest.fixture(scope="session")
def digits() -> data.ImageSet:
    """600 real digits to train on, 200 to validate, 200 to test."""
    whole = data.load("mnist-5k", validation=200, seed=0)  # sorted by class
    return data.ImageSet(
        "digits",
        whole.x_train[::6][:600],
        whole.y_train[::6][:600],
        whole.x_validation,
        whole.y_validation,
        whole.x_test[::5],
        whole.y_test[::5],
    )


@pytest.fixture(scope="session")
def digits_file(digits, tmp_path_factory):
    """The same digits as a file for `--data`."""
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, x_train=digits.x_train, y_train=digits.y_train, x_test=digits.x_test, y_test=digits.y_test)
    return path


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
