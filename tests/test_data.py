import contextlib

import numpy as np
import pytest

from deepcomp import data
from deepcomp.data import DataSet, Part, Stream
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


def test_a_file_may_have_a_validation_part_of_its_own(tmp_path):
    """Once, the scripts split one off the training part though the file had one."""
    images = data.load(str(save(tmp_path, x_validation=X[2:5], y_validation=Y[2:5])), validation=2)
    assert images.summary() == {"name": "images.npz", "train": 6, "validation": 3, "test": 2}
    assert np.array_equal(images.x_validation[..., 0], X[2:5])
    assert images.y_validation.tolist() == [2, 0, 1]


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
        ({"x_train": X.reshape(6, 20)}, "training inputs are 20 but test inputs 4x5x1"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "empty"),
        ({"y_train": Y[:5]}, "one label is needed for each of 6 examples"),
        ({"y_train": np.array(3)}, r"y_train has shape \(\): one label is needed"),
        ({"y_train": np.eye(3)[Y]}, "training labels are 3 but test labels "),
        ({"y_train": np.where(Y == 1, np.nan, Y)}, "y_train has 2 values that are not finite"),
        ({"y_train": Y - 1}, "label -1"),
        ({"y_train": Y + 2**40}, "no class number"),
        ({"y_test": np.array([0, 7])}, "label 7"),
        ({"x_train": X.astype(np.int64)}, "training inputs are int64 but test inputs uint8"),
        ({"x_train": X.astype(np.float32) / 255}, "training inputs are float32 but test inputs uint8"),
        ({"x_train": X.astype(complex), "x_test": X[:2].astype(complex)}, "x_train is complex128: give numbers"),
        ({"x_train": np.where(X == 7, np.nan, X).astype(np.float32)}, "1 values that are not finite"),
        ({"x_test": X[:2, :3]}, "training inputs are 4x5x1 but test inputs 3x5x1"),
        ({"x_train": np.array([object()] * 6)}, "cannot be read"),
        ({"x_validation": X}, "has x_validation alone: give x_validation and y_validation, or neither"),
        ({"x_validation": X[:, :3], "y_validation": Y}, "training inputs are 4x5x1 but validation inputs 3x5x1"),
        ({"x_validation": X, "y_validation": Y + 1}, "y_validation has label 3, which y_train never has"),
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


def test_tables_sequences_and_labels_of_any_kind_are_taken(tmp_path):
    tables = {"x_train": X.reshape(6, 20).astype(np.float64), "x_test": X[:2].reshape(2, 20).astype(np.float16)}
    found = data.load(str(save(tmp_path, **tables, y_train=Y / 2, y_test=Y[:2] / 2)), validation=2)
    assert (found.shape, found.classes, found.x_train.dtype, found.x_test.dtype) == ((20,), None, "float32", "float32")
    assert sorted([*found.y_train, *found.y_validation]) == [0, 0, 0.5, 0.5, 1, 1]
    tokens = data.load(str(save(tmp_path, x_train=Y[:, None] + np.arange(3), x_test=Y[:2, None] + np.arange(3))))
    assert (tokens.shape, tokens.classes, tokens.x_train.dtype) == ((3,), 3, np.int64)
    one_hot = data.load(str(save(tmp_path, y_train=np.eye(3)[Y], y_test=np.eye(3)[Y[:2]])))
    assert (one_hot.classes, one_hot.y_test.tolist()) == (None, [[1, 0, 0], [0, 1, 0]])
    column = data.load(str(save(tmp_path, y_train=Y[:, None], y_test=Y[:2, None])))
    assert (column.classes, column.y_test.tolist()) == (3, [0, 1])


def test_what_fit_takes_is_a_data_set():
    images = DataSet.of((X, Y), (X[:2], Y[:2]), name="mine")
    assert images.summary() == {"name": "mine", "train": 6, "validation": 2, "test": 2}
    assert (images.shape, images.classes) == ((4, 5), 3)
    assert np.array_equal(images.x_test, images.x_validation)
    alone = DataSet.of(X)
    assert (len(alone.train), len(alone.validation), len(alone.test), alone.classes) == (6, 0, 0, None)
    weighted = DataSet.of([X, Y, Y / 2]).train
    assert weighted.w.tolist() == (Y / 2).tolist()
    several = DataSet.of(({"image": X, "number": Y}, (Y, X[:, 0, 0] > 20)))
    assert (several.shape, several.classes, several.y_train[1].dtype) == ((4, 5), None, np.float32)
    piece = several.train.take([5, 0])
    assert (len(piece), piece.x["number"].tolist(), piece.y[1].tolist()) == (2, [2, 0], [1, 0])
    assert [len(one) for one in several.train.pieces(4)] == [4, 2]


def test_everything_the_library_takes_as_data_is_a_data_set(tmp_path):
    path = save(tmp_path)
    assert data.data_set(path).summary() == {"name": "images.npz", "train": 6, "validation": 0, "test": 2}
    images = DataSet.of((X, Y))
    assert data.data_set(images) is images
    assert data.data_set(None).train == Part(None)
    assert data.data_set((X, Y)).classes == 3


def test_a_stream_is_read_batch_by_batch():
    class Stored:
        """As a Keras PyDataset."""

        def __len__(self):
            return 2

        def __getitem__(self, number):
            return X[4 * number : 4 * number + 4], Y[4 * number : 4 * number + 4]

        def on_epoch_end(self):
            pass

    class Batches:
        """As a tf.data.Dataset."""

        def as_numpy_iterator(self):
            return iter([{"a": X}, {"a": X}])

    stored = DataSet.of(Stored(), (X[:2], Y[:2]))
    assert isinstance(stored.train, Stream)
    assert stored.summary() == {"name": "data", "train": None, "validation": 2, "test": 2}
    assert (stored.shape, stored.classes) == ((4, 5), 2)
    assert [len(piece) for piece in stored.train.pieces(1)] == [4, 2]
    assert stored.train.sample(3).y.tolist() == [0, 1, 2]
    assert len(Stream(Batches()).sample(2).x["a"]) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((X, Y[:5]), "train has arrays of different lengths: x 6x4x5, y 5; one label is needed for each example"),
        ((X, Y, Y, Y), r"train is a tuple of 4: give x, \(x, y\) or \(x, y, weights\)"),
        ((X, 3), "train: y is '3': give an array"),
        ((None, Y), "train has no inputs"),
        ((X[:0], Y[:0]), r"train: x is empty: its shape is \(0, 4, 5\)"),
        (np.full((2, 3), np.inf), "train: x has 6 values that are not finite"),
        (np.array([object(), None]), "train: x is object: give numbers"),
        ((batch for batch in [X]), "train is a generator, which can be read only once"),
    ],
)
def test_data_that_cannot_be_learned_from_is_refused_in_one_line(given, message):
    with pytest.raises(DataError, match=message) as raised:
        DataSet.of(given)
    assert "\n" not in str(raised.value)


def test_an_empty_stream_is_refused():
    class Batches:
        def as_numpy_iterator(self):
            return iter([])

    with pytest.raises(DataError, match="stream of batches is empty"):
        Stream(Batches()).sample()


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


def test_a_file_may_have_inputs_alone(tmp_path):
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    np.savez(tmp_path / "a.npz", x_train=x)
    found = data.load_any(tmp_path / "a.npz")
    assert (found.name, len(found.train), len(found.validation), len(found.test)) == ("a.npz", 4, 0, 0)
    assert found.train.y is None
    np.savez(tmp_path / "b.npz", x_train=x, y_train=np.arange(4), x_test=x[:2], y_test=np.arange(2), x_validation=x[:1])
    found = data.load_any(str(tmp_path / "b.npz"))
    assert found.train.y.tolist() == [0, 1, 2, 3]
    assert (len(found.validation), found.validation.y, found.test.y.tolist()) == (1, None, [0, 1])
    np.savez(tmp_path / "c.npz", x=x)
    with pytest.raises(DataError, match=r"c\.npz has no x_train: it holds x\."):
        data.load_any(tmp_path / "c.npz")
    with pytest.raises(DataError, match="No data file"):
        data.load_any(tmp_path / "none.npz")
