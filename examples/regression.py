"""A regression on a table of numbers: two calls, no settings but the goals.

python examples/regression.py
"""

import keras
import numpy as np

import deepcomp


def main(steps: int = 600, path: str = "regression.dcz") -> tuple[float, float]:
    """Fit, prune and share a network of 8 inputs and 2 outputs; returns its error before and after."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 8)).astype(np.float32)
    y = np.stack([np.sin(x[:, 0]) + x[:, 1] * x[:, 2], x[:, 3:].mean(axis=1)], axis=1)
    layers = [keras.layers.Dense(64, activation="relu"), keras.layers.Dense(64, activation="relu")]
    model = keras.Sequential([keras.Input((8,)), *layers, keras.layers.Dense(2)])
    model.compile("adam", "mse")
    model.fit(x, y, epochs=max(1, steps // 60), verbose=0)

    pruned = deepcomp.prune(model, (x, y), sparsity=0.7, end=steps // 2, steps=steps)
    shared = deepcomp.quantize(pruned, (x, y), clusters=16, steps=steps // 2)
    deepcomp.save(shared, path)
    errors = [float(np.mean((outputs - y) ** 2)) for outputs in (model.predict(x, verbose=0), deepcomp.load(path)(x))]
    print(f"mean squared error: {errors[0]:.4f} dense, {errors[1]:.4f} from {path}")
    return errors[0], errors[1]


if __name__ == "__main__":
    main()
