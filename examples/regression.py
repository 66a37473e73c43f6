"""A regression on a table of numbers: one call finds the smallest file within a limit of its loss.

python examples/regression.py
"""

import keras
import numpy as np

import deepcomp


def main(epochs: int = 30, steps: int = 3000, path: str = "regression.dcz") -> deepcomp.Compressed:
    """Fit a network of 8 inputs and 2 outputs, and compress it until its loss is at most 5% higher."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 8)).astype(np.float32)
    y = np.stack([np.sin(x[:, 0]) + x[:, 1] * x[:, 2], x[:, 3:].mean(axis=1)], axis=1)
    layers = [keras.layers.Dense(64, activation="relu"), keras.layers.Dense(64, activation="relu")]
    model = keras.Sequential([keras.Input((8,)), *layers, keras.layers.Dense(2)])
    model.compile("adam", "mse")
    model.fit(x[:3000], y[:3000], epochs=epochs, verbose=0)

    data = deepcomp.DataSet.of((x[:3000], y[:3000]), validation=(x[3000:], y[3000:]))
    result = deepcomp.compress(model, data, tolerance=5, steps=steps)
    deepcomp.save(result.model, path)
    outputs = deepcomp.load(path)(x[3000:])
    print(f"mean squared error from {path}: {np.mean((outputs - y[3000:]) ** 2):.4f}")
    return result


if __name__ == "__main__":
    main()
