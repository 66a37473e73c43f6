"""Networks whose inputs have open sizes: in the file, in the engine for each size, and back in Keras."""

import copy
import os
import pickle
import threading

import keras
import numpy as np
import pytest
from keras import layers, ops

from deepcomp import runtime
from deepcomp.dcz import container, conversion
from deepcomp.dcz.codes import InvalidNetworkError
from deepcomp.dcz.network import Layer, Network, open_output_shapes, with_sizes
from deepcomp.errors import DataError, FormatError, UnsupportedLayerError
from tests.zoo import fill


def model(inputs, build):
    inputs = [keras.Input(*one) if isinstance(one[0], tuple) else keras.Input(one) for one in inputs]
    return keras.Model(inputs if len(inputs) > 1 else inputs[0], build(*inputs))


def segmenting(x):
    """A small U-Net."""
    fine = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    coarse = layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same")(layers.MaxPooling2D()(fine)))
    return layers.Conv2D(2, 1)(layers.Concatenate()([fine, layers.Conv2DTranspose(4, 2, strides=2)(coarse)]))


def classifying(x):
    x = layers.Conv2D(5, 3, strides=2, activation="relu")(layers.Rescaling(1 / 255)(x))
    return layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x))


def reading(words):
    x = layers.Embedding(20, 4, mask_zero=True)(words)
    return layers.Dense(2)(layers.Bidirectional(layers.LSTM(3))(x))


def attending(x):
    x = layers.Reshape((-1, 6))(layers.Conv2D(6, 2, strides=2)(x))
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 3)(x, x))
    return layers.Dense(3)(ops.mean(x, axis=1))


def of_frames(x):
    frame = keras.Sequential([keras.Input((6, 5, 1)), layers.Conv2D(2, 3, strides=2), layers.Flatten()])
    return layers.GRU(4)(layers.TimeDistributed(frame)(x))


def of_two(rows, others):
    score = layers.Attention()([layers.Dense(3)(rows), layers.Dense(3)(others)])
    return {"score": layers.GlobalMaxPooling1D()(score), "rows": layers.Conv1D(2, 3, padding="causal")(rows)[:, 1:]}


def far_apart(x):
    """Six halvings: 32 and 64 positions both become one."""
    for _ in range(6):
        x = layers.Conv1D(4, 3, strides=2, padding="same")(x)
    return layers.Dense(2)(layers.Reshape((-1, 4))(x))


def of_long_windows(x):
    return layers.GlobalMaxPooling1D()(layers.Conv1D(3, 400, strides=160)(x))


def of_frames_of_any_size(x):
    frame = keras.Sequential([keras.Input((None, None, 1)), layers.Conv2D(2, 3), layers.GlobalAveragePooling2D()])
    return layers.LSTM(3)(layers.TimeDistributed(frame)(x))


# By name: the shapes of the inputs; what they lead to; the output shapes; sizes of the open axes to try.
MODELS = {
    "segmentation": ([(None, None, 3)], segmenting, (None, None, 2), [(8, 4), (6, 10), (32, 32)]),
    "one open axis": ([(None, 4, 3)], segmenting, (None, 4, 2), [(8,), (2,)]),
    "images": ([(None, None, 1)], classifying, (3,), [(3, 3), (28, 28), (9, 40)]),
    "text": ([((None,), None, "int32")], reading, (2,), [(1,), (7,), (33,)]),
    "patches": ([(None, None, 2)], attending, (3,), [(2, 2), (8, 6), (9, 4)]),
    "frames": ([(None, 6, 5, 1)], of_frames, (4,), [(1,), (5,)]),
    "halvings": ([(None, 2)], far_apart, (None, 2), [(300,), (64,), (5,)]),
    "long windows": ([(None, 1)], of_long_windows, (3,), [(400,), (1_000,)]),
    "frames of any size": ([(3, None, None, 1)], of_frames_of_any_size, (3,), [(5, 6), (4, 3)]),
    "two": ([(None, 2), (None, 3)], of_two, ((None, 2), (3,)), [(4, 7), (9, 2)]),
}


def made(name):
    inputs, build, outputs, sizes = MODELS[name]
    return fill(model(inputs, build)), outputs, sizes


def draw(one, sizes, count):
    """Inputs of these open sizes, as the model takes them."""
    generator, sizes = np.random.default_rng(0), iter(sizes)

    def of(tensor):
        shape = (count, *(next(sizes) if size is None else size for size in tensor.shape[1:]))
        if tensor.dtype == "int32":
            return generator.integers(0, 20, shape).astype(np.int32)
        return generator.normal(size=shape).astype(np.float32)

    return keras.tree.map_structure(of, one.input)


def assert_close(found, expected):
    for own, right in zip(keras.tree.flatten(found), keras.tree.flatten(expected), strict=True):
        right = np.asarray(right)
        assert own.shape == right.shape
        np.testing.assert_allclose(own, right, rtol=1e-4, atol=1e-5 * np.abs(right).max())


@pytest.mark.parametrize("name", MODELS)
def test_a_network_of_open_sizes_runs_on_each_size_as_in_keras(name):
    own, outputs, all_sizes = made(name)
    network = conversion.from_keras(own)
    data = container.dumps(network)
    read = container.loads(data)
    assert container.dumps(read) == data
    rebuilt = conversion.to_keras(read)
    assert conversion.check(rebuilt) == []
    assert keras.tree.map_structure(lambda x: x.shape, rebuilt.input) == keras.tree.map_structure(
        lambda x: x.shape, own.input
    )
    engine = runtime.prepare(read, threads=1)
    assert engine.input_shape == (
        own.input.shape[1:] if len(read.input_shapes) == 1 else tuple(x.shape[1:] for x in own.input)
    )
    assert engine.output_shape == outputs
    for sizes in all_sizes:
        for count in (1, 18):
            inputs = draw(own, sizes, count)
            expected = own(inputs)
            assert_close(engine(inputs), expected)
            for one, right in zip(keras.tree.flatten(rebuilt(inputs)), keras.tree.flatten(expected), strict=True):
                np.testing.assert_allclose(one, right, rtol=1e-6, atol=1e-6)


def test_what_looks_fixed_at_small_sizes_is_found_at_larger_ones():
    def first(x):
        for _ in range(6):
            x = layers.Conv1D(4, 3, strides=2, padding="same")(x)
        return layers.GlobalAveragePooling1D()(x[:, :1])

    obstacles = conversion.check(model([(None, 2)], first))
    assert len(obstacles) == 1
    assert "computes something else for each of the open sizes" in str(obstacles[0])


def test_every_layer_that_depends_on_an_open_size_is_listed():
    def ends(x):
        return layers.Concatenate()([x[:, 0], x[:, -1], layers.Dense(2, kernel_initializer="ones")(ops.sum(x, axis=1))])

    own = model([(None, 4)], ends)
    own.layers[-2].kernel.assign(np.full((4, 2), np.nan))
    found = [str(obstacle) for obstacle in conversion.check(own)]
    assert sum("computes something else" in one for one in found) + sum("nan" in one for one in found) == len(found)
    assert len(found) >= 1


def test_an_open_axis_of_a_reshape_follows_from_the_input():
    network = conversion.from_keras(made("patches")[0])
    reshapes = [layer.options for layer in network.layers if layer.kind == "Reshape"]
    assert reshapes[0] == {"target_shape": (1, 6), "open_axis": 1}
    assert reshapes[1] == {"target_shape": (1, 6), "open_axis": 1}  # of the mean over all patches
    assert reshapes[2] == {"target_shape": (6,), "open_axis": 0}
    assert network.layers[0].options["open_axes"] == (1, 2)
    assert (network.input_shape, network.open_shapes) == ((32, 32, 2), [(None, None, 2)])


def test_sizes_that_a_network_does_not_run_on_are_refused_in_one_line():
    engine = runtime.prepare(conversion.from_keras(made("segmentation")[0]))
    for shape, message in (
        ((2, 5, 8, 3), "does not run on inputs of 5x8x3: The layer 'concatenate"),
        ((2, 8, 8, 4), r"have the shape \(2, 8, 8, 4\): the network takes \(N, \?, \?, 3\)"),
        ((8, 8, 3), r"the network takes \(N, \?, \?, 3\)"),
        ((2, 0, 8, 3), "does not run on inputs of 0x8x3"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            engine(np.zeros(shape, np.float32))
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="they must be"):
        engine(np.zeros((1, 8, 8, 3), np.int32))


def test_a_last_axis_of_one_channel_may_be_missing_and_whole_images_are_scaled():
    own, _, _ = made("images")
    engine = runtime.prepare(conversion.from_keras(own))
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 12), np.uint8)
    assert_close(engine(images), own(images[..., None].astype(np.float32)))


def test_weights_that_depend_on_the_size_refuse_others():
    """A file may declare an axis open on which the weights depend: no kernel may read beyond them."""
    dense = Layer("Dense", "d", (1,), {"units": 2}, {"kernel": np.ones((12, 2), np.float32), "bias": np.zeros(2, "f4")})
    layers_ = (Layer("InputLayer", "x", (), {"open_axes": (1,)}), Layer("Flatten", "f", (0,)), dense)
    network = Network("n", (4, 3), layers_)
    assert container.loads(container.dumps(network)).open_shapes == [(None, 3)]
    with pytest.raises(InvalidNetworkError, match="the weights of 'd' do not fit these sizes"):
        with_sizes(network, [(5, 3)])
    assert open_output_shapes(network) == [(None,) * 2, (None,), (None,)]  # it runs on no other size
    with pytest.raises(FormatError, match="Keras cannot build the layer 'd' for inputs of open sizes"):
        conversion.to_keras(network)
    engine = runtime.prepare(network)
    assert engine(np.ones((1, 4, 3), np.float32)).tolist() == [[12, 12]]
    with pytest.raises(DataError, match="the weights of 'd' do not fit these sizes"):
        engine(np.ones((1, 5, 3), np.float32))


@pytest.mark.parametrize("axes", [(0,), (3,), (2, 1), (1, 1)])
def test_open_axes_that_are_none_of_the_input_are_refused(axes):
    network = Network("n", (4, 3), (Layer("InputLayer", "x", (), {"open_axes": axes}), Layer("ReLU", "r", (0,))))
    with pytest.raises(UnsupportedLayerError, match=r"open_axes|open axes") as caught:
        container.dumps(network)
    assert "\n" not in str(caught.value)


def test_engines_of_the_last_sizes_are_kept():
    own, _, _ = made("images")
    engine = runtime.prepare(conversion.from_keras(own), threads=1)
    one_size = engine.weight_bytes
    for size in range(3, 30):
        engine(np.zeros((1, size, size, 1), np.float32))
    assert engine.weight_bytes == 16 * one_size
    assert engine.arena_bytes > 0
    assert repr(engine).startswith("<Engine ?x?x1 -> 3: ")


def test_copies_take_any_size_too(tmp_path):
    own, _, _ = made("images")
    container.save(conversion.from_keras(own), tmp_path / "a.dcz")
    images = np.random.default_rng(0).random((5, 7, 9, 1), np.float32)
    for engine in (runtime.load(tmp_path / "a.dcz", 2), runtime.prepare(conversion.from_keras(own), 2)):
        for other in (copy.copy(engine), pickle.loads(pickle.dumps(engine))):
            assert other.input_shape == (None, None, 1)
            np.testing.assert_array_equal(other(images), engine(images))


def test_threads_may_call_with_different_sizes():
    own, _, _ = made("images")
    engine = runtime.prepare(conversion.from_keras(own), threads=1)
    images = [np.random.default_rng(size).random((3, size, size, 1), np.float32) for size in range(3, 11)]
    expected, found = [engine(one) for one in images], {}

    def call(first):
        for number in range(first, first + 16):
            found[first, number] = engine(images[number % 8]).tolist() == expected[number % 8].tolist()

    threads = [threading.Thread(target=call, args=(first,)) for first in (0, 3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 48
    assert all(found.values())


def test_limits_hold_for_each_size(tmp_path):
    own, _, _ = made("segmentation")
    container.save(conversion.from_keras(own), tmp_path / "a.dcz")
    engine = runtime.load(tmp_path / "a.dcz", max_memory=2**24)
    engine(np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(FormatError, match="over the limit of 16,777,216"):
        engine(np.zeros((1, 1024, 1024, 3), np.float32))


def test_engines_that_are_kept_share_the_limit_of_memory(tmp_path):
    own, _, _ = made("images")
    container.save(conversion.from_keras(own), tmp_path / "a.dcz")
    engine = runtime.load(tmp_path / "a.dcz", threads=1, max_memory=2**21)
    for size in range(60, 70):
        engine(np.zeros((1, size, size, 1), np.float32))
        assert engine.weight_bytes + engine.arena_bytes <= 2**21
    assert engine.weight_bytes + engine.arena_bytes > 2**19


def test_pipes_are_read_too(tmp_path):
    own, _, _ = made("images")
    network = conversion.from_keras(own)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(container.dumps(network)))
    writer.start()
    assert container.load(tmp_path / "pipe").open_shapes == [(None, None, 1)]
    writer.join()
