"""Any model and any task: pruned to 80%, shared to 16 values, exactly, and no worse than the same masks in Keras."""

import keras
import numpy as np
import pytest

import deepcomp
from deepcomp import models
from deepcomp.data import leaves
from deepcomp.dcz import container
from deepcomp.dcz.kinds import is_kernel

L = keras.layers
RNG = np.random.default_rng(0)
STEPS, BATCH = 40, 32


def table(count=320, features=12):
    x = RNG.normal(size=(count, features)).astype(np.float32)
    return x, x @ RNG.normal(size=(features, 3)).astype(np.float32)


def regression():
    x, y = table()
    return keras.Sequential([keras.Input((12,)), L.Dense(32, activation="relu"), L.Dense(3)]), (x, y), "mse"


def one_sigmoid():
    x, y = table()
    model = keras.Sequential([keras.Input((12,)), L.Dense(16, activation="relu"), L.Dense(1, activation="sigmoid")])
    return model, (x, (y[:, 0] > 0).astype(int)), "binary_crossentropy"


def ten_sigmoids():
    x = RNG.normal(size=(320, 12)).astype(np.float32)
    y = (x @ RNG.normal(size=(12, 10)) > 0).astype(np.float32)
    model = keras.Sequential([keras.Input((12,)), L.Dense(24, activation="relu"), L.Dense(10, activation="sigmoid")])
    return model, (x, y), "binary_crossentropy"


def table_classifier():
    x, y = table()
    model = keras.Sequential([keras.Input((12,)), L.Dense(24, activation="relu"), L.Dense(3)])
    return model, (x, y.argmax(1)), keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def u_net():
    image = keras.Input((16, 16, 1))
    first = L.Conv2D(6, 3, padding="same", activation="relu")(image)
    inner = L.Conv2D(8, 3, strides=2, padding="same", activation="relu")(first)
    up = L.Conv2DTranspose(6, 2, strides=2, activation="relu")(inner)
    outputs = L.Conv2D(3, 1, activation="softmax")(L.Concatenate()([first, up]))
    x = RNG.random((64, 16, 16, 1)).astype(np.float32)
    y = np.digitize(x[..., 0], [0.3, 0.7])
    return keras.Model(image, outputs), (x, y), "sparse_categorical_crossentropy"


def autoencoder():
    x = (RNG.normal(size=(256, 4)) @ RNG.normal(size=(4, 16))).astype(np.float32)
    return keras.Sequential([keras.Input((16,)), L.Dense(8), L.Dense(16)]), x, "mse"


def two_by_two(kind):
    one, other = keras.Input((6,), name="one"), keras.Input((4,), name="other")
    both = L.Concatenate()([L.Dense(12, activation="relu", name="left")(one), L.Dense(8, name="right")(other)])
    value, group = L.Dense(1, name="value")(both), L.Dense(3, activation="softmax", name="group")(both)
    a, b = RNG.normal(size=(256, 6)).astype(np.float32), RNG.normal(size=(256, 4)).astype(np.float32)
    y, z = a[:, :1] - b[:, :1], np.digitize(a[:, 1], [-0.5, 0.5])
    if kind == "tuple":
        losses = ["mse", "sparse_categorical_crossentropy"]
        return keras.Model([one, other], [value, group]), ((a, b), (y, z)), losses
    losses = {"value": "mse", "group": "sparse_categorical_crossentropy"}
    model = keras.Model({"one": one, "other": other}, {"value": value, "group": group})
    return model, ({"one": a, "other": b}, {"value": y, "group": z}), losses


def text_lstm():
    model = keras.Sequential([keras.Input((None,), dtype="int32"), L.Embedding(20, 8), L.LSTM(12), L.Dense(2)])
    x = RNG.integers(0, 20, (256, 9))
    return model, (x, (x[:, 0] > 9).astype(int)), keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def transformer():
    tokens = keras.Input((None,), dtype="int32")
    x = L.Embedding(20, 8)(tokens)
    x = L.LayerNormalization()(x + L.MultiHeadAttention(2, 4)(x, x))
    x = L.LayerNormalization()(x + L.Dense(8)(L.Dense(16, activation="relu")(x)))
    model = keras.Model(tokens, L.Dense(2)(L.GlobalAveragePooling1D()(x)))
    data = RNG.integers(0, 20, (256, 7))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return model, (data, (data.mean(1) > 9.5).astype(int)), loss


def mixed_precision():
    x, y = table()
    hidden = L.Dense(32, activation="relu", dtype="mixed_float16")
    return keras.Sequential([keras.Input((12,)), hidden, L.Dense(3, dtype="float32")]), (x, y), "mse"


def sample_weights():
    model, (x, y), loss = table_classifier()
    return model, (x, y, RNG.random(len(x)).astype(np.float32)), loss


TASKS = {
    "regression": regression,
    "one sigmoid": one_sigmoid,
    "ten sigmoids": ten_sigmoids,
    "U-Net": u_net,
    "autoencoder": autoencoder,
    "two inputs and outputs, tuples": lambda: two_by_two("tuple"),
    "two inputs and outputs, dicts": lambda: two_by_two("dict"),
    "LSTM": text_lstm,
    "Transformer": transformer,
    "table classifier": table_classifier,
    "mixed precision": mixed_precision,
    "sample weights": sample_weights,
}


class Hold(keras.callbacks.Callback):
    """Masks in plain Keras: what a user would write."""

    def __init__(self, masks):
        super().__init__()
        self.masks = masks

    def on_train_batch_end(self, batch, logs=None):
        for variable, mask in self.masks:
            variable.assign(variable * mask)


def arrays_of(data):
    x, y, w = (*data, None, None)[:3] if isinstance(data, tuple) else (data, data, None)
    return x, y, w


@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_pruned_and_shared_and_as_good_as_with_plain_keras(name):
    keras.utils.set_random_seed(3)
    model, data, loss = TASKS[name]()
    model.compile("adam", loss, jit_compile=False)
    x, y, w = arrays_of(data)
    if isinstance(x, tuple):
        x, y = list(x), list(y)
    fit = {"sample_weight": w, "batch_size": BATCH, "verbose": 0}
    model.fit(x, y, epochs=12, **fit)

    def loss_with(weights):
        """The loss of the network with these weights; one network, for to compile another takes long."""
        model.set_weights(weights)
        found = model.evaluate(x, y, **fit)
        return found[0] if isinstance(found, list) else found

    quiet = {"verbose": False, "batch": BATCH, "learning_rate": 2e-3}
    pruned = deepcomp.prune(model, data, sparsity=0.8, scope="layer", steps=STEPS, **quiet)
    kernels = models.kernel_values(pruned)
    for kernel in kernels.values():
        assert np.count_nonzero(kernel) == kernel.size - int(0.8 * kernel.size + 1e-9)

    shared = deepcomp.quantize(pruned, data, clusters=16, steps=20, **quiet)
    for layer, kernel in models.kernel_values(shared).items():
        assert len(np.unique(kernel[kernel != 0])) <= 16
        assert np.array_equal(np.sort(kernel == 0, axis=None), np.sort(kernels[layer] == 0, axis=None))

    model.set_weights(deepcomp.prune(model, sparsity=0.8, scope="layer", steps=0, verbose=False).get_weights())
    masks = [(variable, (variable.numpy() != 0).astype("float32")) for variable in models.kernels(model).values()]
    model.optimizer.learning_rate.assign(2e-3)
    epochs = -(-STEPS * BATCH // len(leaves(x)[0]))
    model.fit(x, y, epochs=epochs, callbacks=[Hold(masks)], **fit)
    plain = loss_with(model.get_weights())
    assert loss_with(pruned.get_weights()) < 1.3 * plain + 0.02
    assert loss_with(shared.get_weights()) < 1.3 * loss_with(pruned.get_weights()) + 0.05


def test_a_stream_of_tf_data_and_a_py_dataset_train_as_well(digits):
    import tensorflow as tf

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            part = slice(50 * index, 50 * index + 50)
            return x[part], y[part]

    order = RNG.permutation(len(digits.train))
    x, y = digits.x_train[order].astype(np.float32) / 255, digits.y_train[order]
    model = keras.Sequential([keras.Input((28, 28, 1)), L.Flatten(), L.Dense(10)])
    stream = tf.data.Dataset.from_tensor_slices((x, y)).batch(50)
    for data in (stream, stream.repeat(), Batches()):
        pruned = deepcomp.prune(model, data, sparsity=0.8, steps=60, learning_rate=5e-3, verbose=False)
        assert np.mean(pruned.predict(x, verbose=0).argmax(1) == y) > 0.7


def test_a_network_of_texts_goes_through_all_steps_and_into_a_file(tmp_path):
    """Kernels of inputs, of states and of attention, and the table of an embedding: all pruned and shared."""
    keras.utils.set_random_seed(3)
    words = keras.Input((7,), dtype="int32")
    x = L.Embedding(20, 8, mask_zero=True)(words)
    x = L.LayerNormalization()(L.Add()([x, L.MultiHeadAttention(2, 4)(x, x)]))
    model = keras.Model(words, L.Dense(2)(L.Bidirectional(L.LSTM(6))(x)))
    data = RNG.integers(0, 20, (64, 7))
    pruned = deepcomp.prune(model, sparsity=0.5, scope="layer", steps=0, verbose=False)
    shared = deepcomp.quantize(pruned, clusters=8, steps=0, verbose=False)
    deepcomp.save(shared, tmp_path / "model.dcz")
    tensors = container.parts(container.load(tmp_path / "model.dcz")).tensors
    kernels = models.kernel_values(shared)
    assert [tensor.shape for tensor in tensors if is_kernel(tensor.weight)] == [own.shape for own in kernels.values()]
    for kernel in kernels.values():
        assert np.count_nonzero(kernel) == kernel.size // 2
        assert len(np.unique(kernel)) <= 9
    found = deepcomp.load(tmp_path / "model.dcz", threads=1)(data)
    np.testing.assert_allclose(found, shared.predict(data, verbose=0), rtol=1e-4, atol=1e-4)
