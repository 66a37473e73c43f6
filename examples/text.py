"""An LSTM on sequences of any length: one call finds its smallest file within half a point of accuracy.

python examples/text.py
"""

import keras
import numpy as np

import deepcomp


def main(epochs: int = 20, steps: int = 1000, path: str = "text.dcz") -> deepcomp.Compressed:
    """Train an LSTM to tell which half of a sentence has the largest word, and compress it."""
    rng = np.random.default_rng(0)
    words = rng.integers(1, 30, (4000, 12))
    labels = (words[:, :6].max(axis=1) > words[:, 6:].max(axis=1)).astype(int)
    tokens = keras.Input((None,), dtype="int32")
    x = keras.layers.LSTM(24)(keras.layers.Embedding(30, 12)(tokens))
    model = keras.Model(tokens, keras.layers.Dense(2, activation="softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(words[:3000], labels[:3000], epochs=epochs, verbose=0)

    data = deepcomp.DataSet.of((words[:3000], labels[:3000]), validation=(words[3000:], labels[3000:]))
    result = deepcomp.compress(model, data, tolerance=0.5, steps=steps)
    deepcomp.save(result.model, path)
    print(f"{path}: {result.report.ratio_line()}")
    return result


if __name__ == "__main__":
    main()
