"""Batches of examples in memory and of streams, and how data meets a network."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from deepcomp.data import DataSet, Part, Stream
from deepcomp.errors import DataError
from deepcomp.training import batches
from deepcomp.training.batches import Changes

X = np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5, 1)
Y = np.array([0, 1, 2, 0, 1, 2], np.int32)


def take(count, *, shift=0, flip=False, rotate=0.0, **options):
    dataset = batches.batches(Part(X, Y), changes=Changes(shift, flip, rotate), **options)
    return [(one["x"].numpy(), one["y"].numpy()) for one in dataset.take(count)]


def test_every_image_comes_once_an_epoch_in_another_order():
    found = take(6, batch=2, seed=3)
    first = np.concatenate([x[:, 0, 0, 0] for x, _ in found[:3]])
    second = np.concatenate([x[:, 0, 0, 0] for x, _ in found[3:]])
    assert np.allclose(np.sort(first) * 255, X[:, 0, 0, 0])
    assert np.allclose(np.sort(second) * 255, X[:, 0, 0, 0])
    assert not np.array_equal(first, second)


def test_labels_stay_with_their_images():
    for x, y in take(5, batch=4, seed=1):
        assert np.array_equal(Y[np.round(x[:, 0, 0, 0] * 255 / 20).astype(int)], y)


def test_several_inputs_and_weights_stay_together():
    part = Part({"image": X, "number": np.arange(6)}, (Y, np.arange(6.0)), np.arange(6) / 2)
    for one in batches.batches(part, batch=4, seed=1).take(4):
        numbers = one["x"]["number"].numpy()
        assert np.array_equal(one["x"]["image"].numpy()[:, 0, 0, 0], X[numbers, 0, 0, 0] / np.float32(255))
        assert np.array_equal(one["y"][0], Y[numbers])
        assert np.array_equal(one["y"][1], numbers)
        assert np.array_equal(one["w"], numbers / 2)


@pytest.mark.parametrize(
    ("shift", "flip", "rotate"), [(0, False, 0), (2, False, 0), (0, True, 0), (0, False, 30), (2, True, 30)]
)
def test_a_resumed_stream_goes_on_as_the_interrupted_one_would_have(shift, flip, rotate):
    whole = take(7, batch=4, seed=5, shift=shift, flip=flip, rotate=rotate)
    resumed = take(3, batch=4, seed=5, shift=shift, flip=flip, rotate=rotate, start=4)
    for (x, y), (x2, y2) in zip(whole[4:], resumed, strict=True):
        assert np.array_equal(x, x2)
        assert np.array_equal(y, y2)


def test_workers_share_out_each_batch():
    whole = take(3, batch=5, seed=5, shift=1, flip=True, rotate=20)
    parts = [take(3, batch=5, seed=5, shift=1, flip=True, rotate=20, shard=(i, 2)) for i in (0, 1)]
    for (x, y), (x0, y0), (x1, y1) in zip(whole, *parts, strict=True):
        assert np.array_equal(x, np.concatenate([x0, x1]))
        assert np.array_equal(y, np.concatenate([y0, y1]))


@given(st.integers(1, 3), st.integers(0, 1000))
def test_a_shift_moves_an_image_and_brings_in_zeros(margin, seed):
    image = np.full((1, 4, 5, 1), 255, np.uint8)
    image[0, 2, 2] = 128
    (one,) = batches.batches(
        Part(image, np.zeros(1, np.int32)), batch=1, seed=seed, changes=Changes(shift=margin)
    ).take(1)
    x = one["x"].numpy()[0, :, :, 0]
    padded = np.pad(image[0, :, :, 0] / np.float32(255), margin)
    windows = [padded[r : r + 4, c : c + 5] for r in range(2 * margin + 1) for c in range(2 * margin + 1)]
    assert any(np.allclose(x, window) for window in windows)


def test_about_half_of_the_images_are_mirrored_anew_in_each_epoch():
    plain, found = take(40, batch=6, seed=5, scale=False), take(40, batch=6, seed=5, flip=True, scale=False)
    mirrored = []
    for (x, y), (x2, y2) in zip(plain, found, strict=True):
        assert np.array_equal(y, y2)
        for one, other in zip(x, x2, strict=True):
            mirrored.append(np.array_equal(one[:, ::-1], other))
            assert mirrored[-1] or np.array_equal(one, other)
    assert 90 < sum(mirrored) < 150
    assert mirrored[:6] != mirrored[6:12]


def test_an_image_is_rotated_about_its_center_and_zeros_come_in():
    images = np.random.default_rng(0).random((3, 5, 5, 2), np.float32)
    turned = batches._rotated(tf.constant(images), tf.constant([0.0, np.pi / 2, -np.pi / 2], tf.float32)).numpy()
    np.testing.assert_array_equal(turned[0], images[0])
    np.testing.assert_allclose(turned[1], np.rot90(images[1]), atol=1e-5)
    np.testing.assert_allclose(turned[2], np.rot90(images[2], -1), atol=1e-5)
    ones = batches._rotated(tf.ones((1, 9, 9, 1)), tf.constant([np.pi / 4])).numpy()[0, :, :, 0]
    assert (ones[4, 4], ones[0, 0], ones[8, 8]) == (1, 0, 0)


def test_each_image_is_rotated_by_an_angle_of_its_own_up_to_the_most():
    line = np.zeros((64, 33, 33, 1), np.float32)
    line[:, 16] = 1
    part = Part(line, np.zeros(64, np.int32))
    (one,) = batches.batches(part, batch=64, seed=2, changes=Changes(rotate=30), scale=False).take(1)
    columns = one["x"].numpy()[:, :, 28, 0]  # 12 pixels from the center
    heights = columns @ np.arange(-16, 17) / np.maximum(columns.sum(axis=1), 1e-6)
    most = 12 * np.tan(np.radians(30))
    assert np.abs(heights).max() <= most + 0.5
    assert heights.min() < -most / 2
    assert heights.max() > most / 2
    assert len(np.unique(heights.round(3))) > 40


def test_all_images_of_an_example_are_mirrored_alike_and_nothing_else_is():
    part = Part({"one": X, "other": X[:, :3], "number": np.arange(6), "flat": X.reshape(6, 20)})
    (one,) = batches.batches(
        part, batch=6, seed=1, changes=Changes(flip=True, image_shape=(4, 5, 1)), scale=False
    ).take(1)
    x = {name: leaf.numpy() for name, leaf in one["x"].items()}
    assert np.array_equal(x["one"][:, :3], x["other"])
    assert np.array_equal(x["one"].reshape(6, 20), x["flat"])
    assert sorted(x["number"]) == [*range(6)]


def test_what_has_no_images_cannot_be_shifted_or_mirrored():
    with pytest.raises(DataError, match="flip=True mirrors images, and this data has none: inputs are 20"):
        batches.batches(Part(X.reshape(6, 20)), batch=2, seed=0, changes=Changes(flip=True))
    with pytest.raises(DataError, match=r"rotate=7\.5 rotates images, and this data has none: inputs are 20"):
        batches.batches(Part(X.reshape(6, 20)), batch=2, seed=0, changes=Changes(rotate=7.5))
    with pytest.raises(DataError, match="shift=2 moves images, and this data has none: inputs are 20"):
        batches.batches(Part(X.reshape(6, 20)), batch=2, seed=0, changes=Changes(shift=2))
    stream = Stream(tf.data.Dataset.from_tensor_slices(X).batch(2))
    for changes in (Changes(shift=1), Changes(flip=True), Changes(rotate=5)):
        with pytest.raises(DataError, match="cannot be shifted, mirrored"):
            batches.batches(stream, batch=2, seed=0, changes=changes)


def test_a_shift_or_a_batch_beyond_all_measure_is_refused():
    with pytest.raises(DataError, match="shift=30000 moves images of 4x5 pixels away"):
        batches.batches(Part(X), batch=2, seed=0, changes=Changes(shift=30_000))
    with pytest.raises(DataError, match=r"batch=1000000000 examples takes \d+ GB of memory"):
        batches.batches(Part(X), batch=10**9, seed=0)


def test_floats_are_kept_and_uint8_is_divided_by_255_unless_told_not_to():
    images = np.linspace(-1, 1, 40, dtype=np.float32).reshape(2, 4, 5, 1)
    (one,) = batches.batches(Part(images), batch=2, seed=0).take(1)
    assert np.array_equal(np.sort(one["x"].numpy().ravel()), images.ravel())
    assert set(one) == {"x"}
    (whole,) = batches.batches(Part(X), batch=6, seed=0, scale=False).take(1)
    assert whole["x"].dtype == tf.uint8
    assert np.array_equal(batches.scaled(X, True), X / np.float32(255))


@pytest.mark.parametrize("kind", ["tf.data", "PyDataset"])
def test_a_stream_goes_on_without_an_end_from_where_it_was(kind):
    class Stored(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, number):
            return X[2 * number : 2 * number + 2], Y[2 * number : 2 * number + 2]

    stream = Stream(Stored() if kind == "PyDataset" else tf.data.Dataset.from_tensor_slices((X, Y)).batch(2))
    whole = [one["x"].numpy() for one in batches.batches(stream, batch=2, seed=3).take(7)]
    assert np.allclose(np.sort(np.concatenate(whole[:3])[:, 0, 0, 0]) * 255, X[:, 0, 0, 0])
    assert np.allclose(np.sort(np.concatenate(whole[3:6])[:, 0, 0, 0]) * 255, X[:, 0, 0, 0])
    resumed = [one["x"].numpy() for one in batches.batches(stream, batch=2, seed=3, start=4).take(3)]
    assert all(np.array_equal(one, other) for one, other in zip(whole[4:], resumed, strict=True))


def test_data_gets_the_axes_and_types_that_a_network_takes():
    flat = keras.Sequential([keras.Input((20,)), keras.layers.Dense(3)])
    found = batches.fitted(DataSet.of((X, Y.astype(np.int64)), (X[:2] / 255, Y[:2] / 2)), flat)
    assert (found.shape, found.scale, found.y_train.dtype) == ((20,), True, np.int32)
    assert (found.x_test.shape, found.x_test.dtype, found.y_test.dtype) == ((2, 20), np.float32, np.float32)
    images = keras.Sequential([keras.Input((4, 5, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    assert batches.fitted(DataSet.of((X[..., 0], Y)), images).shape == (4, 5, 1)
    rows = keras.Sequential([keras.Input((4, 5)), keras.layers.LSTM(3)])
    assert batches.fitted(DataSet.of((X, Y)), rows).shape == (4, 5)
    pool = [keras.layers.Conv2D(2, 3), keras.layers.GlobalMaxPooling2D(), keras.layers.Dense(3)]
    open_sizes = keras.Sequential([keras.Input((None, None, 1)), *pool])
    assert batches.fitted(DataSet.of((X, Y)), open_sizes).shape == (4, 5, 1)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((6, 28, 28, 3)), "images of 28x28x3 but the network 'small' takes 28x28x1"),
        (np.zeros((6, 27, 28)), "images of 27x28 but the network 'small' takes 28x28x1"),
        ((np.zeros((6, 28, 28)), Y), "The data has 2 inputs but the network 'small' takes 1: image"),
        ({"picture": np.zeros((6, 28, 28))}, "The data has no input 'image': the network takes image, not picture"),
    ],
)
def test_data_that_does_not_fit_is_refused(network, x, message):
    with pytest.raises(DataError, match=message) as raised:
        batches.fitted(DataSet.of((x, Y)), network)
    assert "\n" not in str(raised.value)


def test_fractions_do_not_fit_a_network_that_takes_integers():
    words = keras.Sequential([keras.Input((3,), dtype="int32", name="words"), keras.layers.Embedding(9, 2)])
    assert batches.fitted(DataSet.of(np.ones((2, 3))), words).shape == (3,)
    with pytest.raises(DataError, match=r"has fractions but the network .* takes int32 for 'words'"):
        batches.fitted(DataSet.of(np.full((2, 3), 0.5)), words)


def test_a_network_says_itself_what_uint8_means():
    plain = keras.Sequential([keras.Input((4, 5, 1)), keras.layers.Conv2D(2, 3)])
    own = keras.Sequential([keras.Input((4, 5, 1)), keras.layers.Rescaling(1 / 127), keras.layers.Conv2D(2, 3)])
    raw = DataSet.of(X)
    assert [batches.fitted(raw, model).scale for model in (plain, own)] == [True, False]
    assert [batches.fitted(raw, plain, scale).scale for scale in (True, False)] == [True, False]
    assert batches.fitted(DataSet.of(X / 255), plain).scale is None
    lines = [batches.scaling_line(batches.fitted(one, own)) for one in (raw, DataSet.of(X / 255))]
    assert lines == ["uint8 inputs: as they are, 0 to 255.", ""]
    assert batches.scaling_line(batches.fitted(raw, plain)) == "uint8 inputs: divided by 255."
