import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcomp import data
from deepcomp.errors import DataError

X = np.arange(6 * 4 * 5, dtype=np.uint8).reshape(6, 4, 5)
Y = np.array([0, 1, 2, 0, 1, 2], np.int64)


def save(tmp_path, **changes):
    arrays = {"x_train": X, "y_train": Y, "x_test": X[:2], "y_test": Y[:2], **changes}
    path = tmp_path / "images.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_a_file_becomes_three_parts_of_nhwc_images(tmp_path):
    images = data.load(str(save(tmp_path)), validation=2)
    assert images.summary() == {"name": "images.npz", "train": 4, "validation": 2, "test": 2}
    assert images.shape == (4, 5, 1)
    assert images.classes == 3
    assert images.x_train.dtype == np.uint8
    assert images.y_train.dtype == np.int32
    everything = np.concatenate([images.x_train, images.x_validation])
    assert sorted(everything[:, 0, 0, 0]) == sorted(X[:, 0, 0])


def test_validation_is_a_number_or_a_fraction_and_the_seed_decides_which(tmp_path):
    path = str(save(tmp_path))
    assert len(data.load(path, validation=0.5).x_validation) == 3
    assert len(data.load(path, validation=0).x_validation) == 0
    one, same, other = (data.load(path, validation=3, seed=seed).x_validation for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_mnist_5k_has_its_4000_and_1000_digits_whatever_the_seed():
    one, other = data.load("mnist-5k", validation=400, seed=1), data.load("mnist-5k", validation=400, seed=2)
    assert one.summary() == {"name": "mnist-5k", "train": 3600, "validation": 400, "test": 1000}
    assert np.array_equal(one.x_test, other.x_test)
    assert np.bincount(np.concatenate([one.y_train, one.y_validation, one.y_test])).tolist() == [500] * 10


def test_auto_says_what_it_took(monkeypatch, capsys):
    def no_network(name):
        raise DataError("no network")

    monkeypatch.setattr(data, "_through_keras", no_network)
    assert data.load("auto").name == "mnist-5k"
    assert "using mnist-5k" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_test": None}, "has no x_test"),
        ({"x_train": X.reshape(6, 20)}, r"shape \(6, 20\)"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "empty"),
        ({"y_train": Y[:5]}, "one label is needed for each of 6 images"),
        ({"y_train": Y.astype(float)}, "labels are integers"),
        ({"y_train": Y - 1}, "label -1"),
        ({"y_train": Y + 2**40}, "no class number"),
        ({"y_test": np.array([0, 7])}, "label 7"),
        ({"x_train": X.astype(np.int64)}, "uint8"),
        ({"x_train": np.where(X == 7, np.nan, X).astype(np.float32)}, "1 values that are not finite"),
        ({"x_test": X[:2, :3]}, "training images are 4x5x1 but test images are 3x5x1"),
        ({"x_train": np.array([object()] * 6)}, "cannot be read"),
    ],
)
def test_malformed_files_are_refused_in_one_line(tmp_path, changes, message):
    with pytest.raises(DataError, match=message) as raised:
        data.load(str(save(tmp_path, **changes)))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("validation", [6, 600.0, -1, float("nan"), float("inf")])
def test_an_impossible_validation_part_is_refused(tmp_path, validation):
    with pytest.raises(DataError, match="cannot hold out"):
        data.load(str(save(tmp_path)), validation=validation)


def test_truncated_missing_and_unknown_sources_are_refused(tmp_path):
    path = save(tmp_path)
    whole = path.read_bytes()
    for size in (0, 1, 50, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match="cannot be read"):
            data.load(str(path))
    path.write_bytes(b"not a zip file")
    with pytest.raises(DataError, match="cannot be read"):
        data.load(str(path))
    with pytest.raises(DataError, match="No data file"):
        data.load(str(tmp_path / "absent.npz"))
    with pytest.raises(DataError, match="No data source 'imagenet'"):
        data.load("imagenet")


def test_flipped_bits_in_a_compressed_file_are_refused_or_harmless(tmp_path):
    path = tmp_path / "images.npz"
    np.savez_compressed(path, x_train=X, y_train=Y, x_test=X[:2], y_test=Y[:2])
    whole = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    for position in rng.integers(0, len(whole), 400):
        damaged = whole.copy()
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with contextlib.suppress(DataError):
            data.load(str(path), validation=0)


def take(count, **options):
    dataset = data.batches(X[..., None], Y.astype(np.int32), **options)
    return [(x.numpy(), y.numpy()) for x, y in dataset.take(count)]


def test_every_image_comes_once_an_epoch_in_another_order():
    batches = take(6, batch=2, seed=3)
    first = np.concatenate([x[:, 0, 0, 0] for x, _ in batches[:3]])
    second = np.concatenate([x[:, 0, 0, 0] for x, _ in batches[3:]])
    assert np.allclose(np.sort(first) * 255, X[:, 0, 0])
    assert np.allclose(np.sort(second) * 255, X[:, 0, 0])
    assert not np.array_equal(first, second)


def test_labels_stay_with_their_images():
    for x, y in take(5, batch=4, seed=1):
        assert np.array_equal(Y[np.round(x[:, 0, 0, 0] * 255 / 20).astype(int)], y)


@pytest.mark.parametrize("shift", [0, 2])
def test_a_resumed_stream_goes_on_as_the_interrupted_one_would_have(shift):
    whole = take(7, batch=4, seed=5, shift=shift)
    resumed = take(3, batch=4, seed=5, shift=shift, start=4)
    for (x, y), (x2, y2) in zip(whole[4:], resumed, strict=True):
        assert np.array_equal(x, x2)
        assert np.array_equal(y, y2)


def test_workers_share_out_each_batch():
    whole = take(3, batch=5, seed=5, shift=1)
    parts = [take(3, batch=5, seed=5, shift=1, shard=(i, 2)) for i in (0, 1)]
    for (x, y), (x0, y0), (x1, y1) in zip(whole, *parts, strict=True):
        assert np.array_equal(x, np.concatenate([x0, x1]))
        assert np.array_equal(y, np.concatenate([y0, y1]))


@given(st.integers(1, 3), st.integers(0, 1000))
def test_a_shift_moves_an_image_and_brings_in_zeros(margin, seed):
    image = np.full((1, 4, 5, 1), 255, np.uint8)
    image[0, 2, 2] = 128
    ((x, _),) = data.batches(image, np.zeros(1, np.int32), batch=1, seed=seed, shift=margin).take(1)
    x = x.numpy()[0, :, :, 0]
    padded = np.pad(image[0, :, :, 0] / np.float32(255), margin)
    windows = [padded[r : r + 4, c : c + 5] for r in range(2 * margin + 1) for c in range(2 * margin + 1)]
    assert any(np.allclose(x, window) for window in windows)


def test_float_images_are_kept_and_given_the_network_s_shape():
    images = np.linspace(-1, 1, 40, dtype=np.float32).reshape(2, 4, 5, 1)
    ((x, _),) = data.batches(images, np.zeros(2, np.int32), batch=2, seed=0, shape=(20,)).take(1)
    assert x.shape == (2, 20)
    assert np.array_equal(np.sort(x.numpy().ravel()), images.ravel())


def test_a_pair_of_arrays_is_an_image_set():
    images = data.from_arrays(X, Y, validation=2)
    assert images.shape == (4, 5, 1)
    assert np.array_equal(images.x_test, images.x_validation)


def test_the_test_part_needs_no_other(tmp_path):
    path = save(tmp_path, x_train=None, y_train=None)
    name, images, labels = data.load_test(str(path))
    assert (name, images.shape, labels.tolist()) == ("images.npz", (2, 4, 5, 1), [0, 1])
    with pytest.raises(DataError, match="has no x_train, y_train"):
        data.load(str(path))


def test_images_without_labels(tmp_path):
    path = tmp_path / "some.npz"
    np.savez(path, photos=X)
    assert np.array_equal(data.load_images(path), X)
    np.savez(path, photos=X, x_test=X[:2])
    assert len(data.load_images(path)) == 2
    assert len(data.load_images(path, "photos")) == 6
    with pytest.raises(DataError, match="has no images: it needs images"):
        data.load_images(path, "images")
    np.savez(path, photos=X, others=X)
    with pytest.raises(DataError, match="holds photos, others: say which to take with --key"):
        data.load_images(path)
