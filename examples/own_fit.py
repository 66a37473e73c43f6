"""Your own fit: prune and share weights with two callbacks, then write one small file and run it.

python examples/own_fit.py
"""

import argparse

import keras
import numpy as np

import deepcomp
from deepcomp import data


def main(epochs: int = 4, path: str = "own_fit.dcz") -> float:
    """Train, prune, share, save and run a small network on 4,000 digits; returns the accuracy of the file."""
    digits = data.load("mnist-5k", validation=0)
    x, y = digits.x_train.astype(np.float32) / 255, digits.y_train
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(12, 5, strides=2, activation="relu"),
            keras.layers.Conv2D(24, 5, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(2e-3), loss, metrics=["accuracy"])
    model.fit(x, y, epochs=epochs, verbose=2)

    steps = epochs * -(-len(x) // 32)
    pruning = deepcomp.PruningCallback(sparsity=0.8, end=steps * 3 // 4)
    model.fit(x, y, epochs=epochs, verbose=2, callbacks=[pruning])
    model.fit(x, y, epochs=1, verbose=2, callbacks=[deepcomp.SharingCallback(clusters=16)])

    deepcomp.save(model, path)
    outputs = deepcomp.load(path)(digits.x_test)
    accuracy = float(np.mean(outputs.argmax(axis=1) == digits.y_test))
    print(f"{path}: {100 * accuracy:.1f}% of {len(outputs):,} test digits are right")
    return accuracy


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    main(parser.parse_args().epochs)
