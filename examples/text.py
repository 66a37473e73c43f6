"""An LSTM on sequences of any length: pruned and shared, and kept as a Keras file.

python examples/text.py
"""

import keras
import numpy as np

import deepcomp


def main(steps: int = 300, path: str = "text.keras") -> float:
    """Train an LSTM to tell whether a word comes before another; returns the accuracy of the compressed network."""
    rng = np.random.default_rng(0)
    words = rng.integers(1, 30, (2000, 12))
    labels = (words[:, :6].max(axis=1) > words[:, 6:].max(axis=1)).astype(int)
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.LSTM(24)(keras.layers.Embedding(30, 12)(tokens))
    model = keras.Model(tokens, keras.layers.Dense(2, activation="softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(words, labels, epochs=max(1, steps // 40), verbose=0)

    pruned = deepcomp.prune(model, (words, labels), sparsity=0.7, end=steps // 2, steps=steps)
    shared = deepcomp.quantize(pruned, (words, labels), clusters=16, steps=steps // 3)
    shared.save(path)
    return shared.evaluate(words, labels, verbose=0, return_dict=True)["accuracy"]


if __name__ == "__main__":
    print(f"accuracy of the compressed network: {main():.3f}")
