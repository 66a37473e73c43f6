"""Hidden neurons change places; the network stays the same, and its file gets smaller."""

from dataclasses import replace

import keras
import numpy as np
import pytest

from deepcomp import models
from deepcomp.dcz import container, neurons
from deepcomp.dcz import conversion as exchange
from deepcomp.dcz.network import Layer, Network, SharedWeight, entries


def dense(name, indices, bias):
    indices = np.array(indices, np.uint8)
    codebook = np.arange(1, 4, dtype=np.float32)
    weights = {"kernel": SharedWeight(codebook, indices), "bias": np.array(bias, np.float32)}
    return Layer("Dense", name, (), {"units": indices.shape[1]}, weights)


def chain(*layers):
    first = Layer("InputLayer", "in")
    following = [replace(layer, inputs=(number,)) for number, layer in enumerate(layers)]
    return Network("net", (layers[0].weights["kernel"].indices.shape[0],), (first, *following))


def test_columns_are_ordered_and_take_their_bias_and_the_next_inputs_with_them():
    one = dense("one", [[0, 1, 2], [3, 0, 1]], [5, 6, 7])
    two = dense("two", [[1, 0], [0, 2], [3, 3]], [8, 9])
    _, first, last = neurons.order_neurons(chain(one, two)).layers
    assert first.weights["kernel"].indices.tolist() == [[2, 1, 0], [1, 0, 3]]
    assert first.weights["bias"].tolist() == [7, 6, 5]
    assert last.weights["kernel"].indices.tolist() == [[3, 3], [0, 2], [1, 0]]
    assert last.weights["bias"].tolist() == [8, 9]  # classes stay where they are


def test_columns_that_nobody_reads_go_and_so_do_those_that_only_they_read():
    one = dense("one", [[0, 1, 2], [3, 0, 1]], [5, 6, 7])
    two = dense("two", [[1, 0, 3], [0, 0, 0], [2, 0, 0]], [8, 9, 4])  # nobody reads one's second column
    three = dense("three", [[0, 1], [3, 3], [0, 0]], [1, 2])  # nor two's third: then one's third is read by its first
    _, first, second, last = neurons.remove_unused(chain(one, two, three)).layers
    assert first.weights["kernel"].indices.tolist() == [[0, 2], [3, 1]]
    assert (first.weights["bias"].tolist(), first.options["units"]) == ([5, 7], 2)
    assert second.weights["kernel"].indices.tolist() == [[1, 0], [2, 0]]
    assert (second.weights["bias"].tolist(), second.options["units"]) == ([8, 9], 2)
    assert last.weights["kernel"].indices.tolist() == [[0, 1], [3, 3]]
    assert (last.weights["bias"].tolist(), last.options["units"]) == ([1, 2], 2)


def test_a_chain_of_unused_neurons_is_removed():
    one = dense("one", [[1, 1], [1, 1]], [1, 1])
    two = dense("two", [[1, 0], [0, 1]], [1, 1])
    three = dense("three", [[1], [0]], [1])
    layers = neurons.remove_unused(chain(one, two, three)).layers
    assert [layer.options["units"] for layer in layers[1:]] == [1, 1, 1]
    nothing = neurons.remove_unused(chain(one, dense("two", [[0], [0]], [1])))
    assert nothing.layers[1].options["units"] == 1  # a layer of none there is not


def test_what_softmax_compares_stays():
    one = dense("one", [[0, 1, 2], [3, 0, 1]], [5, 6, 7])
    one = replace(one, options={**one.options, "activation": "softmax"})
    two = dense("two", [[1, 0], [0, 0], [3, 3]], [8, 9])
    assert neurons.remove_unused(chain(one, two)).layers[1].options["units"] == 3


def sequential(*layers, shape=(9, 8, 2)):
    return keras.Sequential([keras.Input(shape), *layers])


def branched():
    """What the sum takes must stay; what comes after may not."""
    inputs = keras.Input((9, 8, 2))
    x = keras.layers.Conv2D(5, 3, name="stays")(inputs)
    y = keras.layers.Conv2D(5, 3, padding="same", name="moves")(x)
    y = keras.layers.Conv2D(5, 1, name="stays_too")(y)
    x = keras.layers.Add()([x, y])
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(6, 2, name="moves_too")(x))
    return keras.Model(inputs, keras.layers.Dense(3)(x))


MODELS = {
    "convolutions": lambda: sequential(
        keras.layers.Conv2D(6, 3, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.MaxPooling2D(2),
        keras.layers.Conv2D(7, 2, padding="same"),
        keras.layers.Flatten(),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(11, activation="tanh"),
        keras.layers.Dense(4),
        keras.layers.Softmax(),
    ),
    "one dimension": lambda: sequential(
        keras.layers.ZeroPadding1D(2),
        keras.layers.Conv1D(6, 3, strides=2),
        keras.layers.LeakyReLU(),
        keras.layers.AveragePooling1D(2),
        keras.layers.Dense(5, activation="relu"),
        keras.layers.GlobalMaxPooling1D(),
        keras.layers.Dense(3),
        shape=(14, 3),
    ),
    "groups and depthwise": lambda: sequential(
        keras.layers.Conv2D(4, 2),
        keras.layers.Conv2D(8, 2, groups=2),
        keras.layers.DepthwiseConv2D(2),
        keras.layers.SeparableConv2D(6, 2),
        keras.layers.Flatten(),
        keras.layers.Dense(3),
    ),
    "reshape": lambda: sequential(
        keras.layers.Conv2D(4, 2), keras.layers.Reshape((4, 56)), keras.layers.Conv1D(3, 2), keras.layers.Flatten()
    ),
    "branches": branched,
}


@pytest.mark.parametrize("name", MODELS)
def test_it_stays_the_same_network(name):
    keras.utils.set_random_seed(5)
    model = MODELS[name]()
    rng = np.random.default_rng(6)
    for variable in model.weights:
        kernel = variable.name.endswith("kernel")
        values = rng.normal(size=variable.shape) * (rng.random(variable.shape) < 0.3 if kernel else 1)
        variable.assign(np.abs(values) + 0.1 if "variance" in variable.name else values)
    x = rng.normal(size=(3, *model.input_shape[1:])).astype(np.float32)
    before, weights = model(x).numpy(), model.get_weights()
    exchange.order_neurons(model)
    np.testing.assert_allclose(model(x).numpy(), before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    after = model.get_weights()
    moved = [not np.array_equal(a, b) for a, b in zip(weights, after, strict=True)]
    assert any(moved) == (name not in ("groups and depthwise", "reshape"))
    exchange.order_neurons(model)
    assert all(np.array_equal(a, b) for a, b in zip(after, model.get_weights(), strict=True))
    if name == "branches":
        changed = [variable.path for variable, has in zip(model.weights, moved, strict=True) if has]
        assert [path for path in changed if path.startswith("stays/")] == []


@pytest.mark.parametrize("name", MODELS)
def test_without_unused_neurons_it_is_the_same_network(name):
    keras.utils.set_random_seed(5)
    model, rng = MODELS[name](), np.random.default_rng(6)
    for variable in model.weights:
        kernel = variable.name.endswith("kernel")
        values = rng.normal(size=variable.shape) * (rng.random(variable.shape) < 0.05 if kernel else 1)
        variable.assign(np.abs(values) + 0.1 if "variance" in variable.name else values)
    network = exchange.from_keras(model)
    smaller = neurons.remove_unused(network)
    x = rng.normal(size=(3, *model.input_shape[1:])).astype(np.float32)
    expected = model(x).numpy()
    found = exchange.to_keras(smaller)(x).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    sizes = [sum(w.size for w in map(entries, layer.weights.values())) for layer in network.layers]
    left = [sum(w.size for w in map(entries, layer.weights.values())) for layer in smaller.layers]
    assert (sum(left) < sum(sizes)) == (name not in ("groups and depthwise", "reshape"))


def test_the_file_gets_smaller():
    model = models.build("lenet-300-100", (28, 28, 1), 10)
    rng = np.random.default_rng(3)
    for variable in model.weights:
        keeps = rng.random(variable.shape) < (0.02 if variable.shape[0] > 100 else 0.3)
        variable.assign(keeps * rng.choice([-0.5, 0.25, 1.0], variable.shape))
    network = exchange.from_keras(model)
    ordered = neurons.order_neurons(network)
    saved = container.parts(network).bits / 8 - container.parts(ordered).bits / 8
    # 300 and 100 neurons in any order: log2(300!) + log2(100!) bits are 350 bytes.
    assert 250 < saved < 360


def test_what_no_file_holds_stays_as_it_is():
    class Own(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    model = sequential(keras.layers.Dense(4), Own(), keras.layers.Dense(2), shape=(3,))
    before = model.get_weights()
    exchange.order_neurons(model)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
