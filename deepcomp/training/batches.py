"""How a data set meets a network: inputs fitted to what it takes, scaling of uint8, and batches for the loop."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deepcomp import keras_private
from deepcomp.data import DataSet, Part, Stream, leaves, mapped
from deepcomp.errors import DataError, shape_text
from deepcomp.options import Training

_MOST_BATCH_BYTES = 2**31
# Layers that say themselves what the numbers of an input mean.
_SCALING_LAYERS = ("Rescaling", "Normalization", "Embedding", "Discretization", "IntegerLookup", "CategoryEncoding")


def scales_inputs(model: keras.Model) -> bool:
    """Whether a network says itself what the numbers of its inputs mean: uint8 is then left as it is.

    It does if a layer of it rescales, normalizes or looks up its inputs, or if it takes integers.
    """
    if any(str(tensor.dtype).startswith(("int", "uint", "string")) for tensor in getattr(model, "inputs", None) or ()):
        return True
    return any(type(layer).__name__ in _SCALING_LAYERS for layer in keras_private.all_layers(model))


def fitted(dataset: DataSet, model: keras.Model, scale: bool | None = None) -> DataSet:
    """The data set as `model` takes it: names of inputs, axes, types; with the choice whether uint8 is scaled.

    `scale` is the caller's choice, None to leave it to the data set's and else to `scales_inputs`. Raises `DataError`
    for data that does not fit.
    """
    chosen = dataset.scale if scale is None else scale
    if chosen is None:
        chosen = not scales_inputs(model)
    uint8 = any(leaf.dtype == np.uint8 for leaf in leaves(dataset.train.sample(1).x))
    changed = dataset.with_parts(lambda part: replace(part, x=inputs_for(model, part.x), y=_labels(part.y)))
    before, after = (leaves(one.train.sample(1).x)[0].shape[1:] for one in (dataset, changed))
    flat = before if len(before) == 3 and len(after) == 1 else dataset.image_shape
    return replace(changed, scale=chosen if uint8 else None, image_shape=flat)


def scaling_line(dataset: DataSet) -> str:
    """What was done to uint8 inputs, for people; an empty text where there are none."""
    if dataset.scale is None:
        return ""
    return "uint8 inputs: divided by 255." if dataset.scale else "uint8 inputs: as they are, 0 to 255."


def scaled(x: Any, scale: bool | None) -> Any:
    """Inputs, NumPy or TensorFlow, with uint8 divided by 255 where `scale` says so."""

    def change(leaf):
        if not scale or leaf.dtype != np.uint8:
            return leaf
        return (
            leaf.astype(np.float32) / np.float32(255)
            if isinstance(leaf, np.ndarray)
            else tf.cast(leaf, tf.float32) / 255.0
        )

    return mapped(change, x)


@dataclass(frozen=True)
class Changes:
    """Random changes of images: the inputs of three axes, or flat ones of `image_shape`.

    Images are moved by up to `shift` pixels and rotated by up to `rotate` degrees either way, and with `flip` half of
    them are mirrored, left to right, all images of an example alike. What comes in at the sides is 0.
    """

    shift: int = 0
    flip: bool = False
    rotate: float = 0.0
    image_shape: tuple[int, ...] | None = None

    @classmethod
    def of(cls, training: Training, dataset: DataSet) -> "Changes":
        """Those that a training asks for."""
        return cls(training.shift, training.flip, training.rotate, dataset.image_shape)

    def __bool__(self) -> bool:
        return bool(self.shift or self.flip or self.rotate)

    def __str__(self) -> str:
        made = {
            f"moved by up to {self.shift} pixel{'s' * (self.shift > 1)}": self.shift,
            "mirrored": self.flip,
            f"rotated by up to {self.rotate:g} degrees": self.rotate,
        }
        return ", ".join(text for text, asked in made.items() if asked) or "left as they are"

    def check(self, x: Any) -> None:
        """Raise `DataError` for inputs that cannot be changed so."""
        if not self:
            return
        sides = self.sides(x)
        if not sides:
            ways = {f"shift={self.shift} moves": self.shift, "flip=True mirrors": self.flip}
            what = next((way for way, asked in ways.items() if asked), f"rotate={self.rotate:g} rotates")
            raise DataError(f"{what} images, and this data has none: inputs are {_shapes(x)}.")
        if self.shift >= min(sides):
            raise DataError(
                f"shift={self.shift} moves images of {shape_text(sides[:2])} pixels away: it must be smaller."
            )

    def sides(self, x: Any) -> list[int]:
        """The heights and widths of the images among the inputs, in pixels; nothing where there are none."""
        images = [leaf.shape[1:3] for leaf in leaves(x) if leaf.ndim == 4] or [(self.image_shape or ())[:2]]
        return [side for shape in images for side in shape]

    def made(self, x: Any, batch: int, seed: list, own: slice) -> Any:
        """The changed inputs of the examples `own` of a batch; `seed` says all about the batch."""
        if self.shift:
            most = 2 * self.shift + 1
            by = tf.random.stateless_uniform([batch, 2], seed, minval=0, maxval=most, dtype=tf.int32)[own]
            x = self._images(x, lambda images: _shifted(images, by, self.shift))
        if self.flip:
            mirrored = tf.random.stateless_uniform([batch], _seed(seed, 1))[own] < 0.5
            x = self._images(x, lambda images: tf.where(mirrored[:, None, None, None], tf.reverse(images, [2]), images))
        if self.rotate:
            most = math.radians(self.rotate)
            angles = tf.random.stateless_uniform([batch], _seed(seed, 2), -most, most)[own]
            x = self._images(x, lambda images: _rotated(images, angles))
        return x

    def _images(self, x: Any, change: Callable) -> Any:
        """The inputs with their images changed; other inputs stay."""

        def one(leaf):
            if leaf.shape.rank == 4:
                return change(leaf)
            if self.image_shape and leaf.shape.rank == 2 and leaf.shape[1] == math.prod(self.image_shape):
                return tf.reshape(change(tf.reshape(leaf, [-1, *self.image_shape])), tf.shape(leaf))
            return leaf

        return mapped(one, x)


def batches(
    part: Part | Stream,
    *,
    batch: int,
    seed: int,
    start: int = 0,
    changes: Changes = Changes(),
    scale: bool | None = True,
    shard: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """An endless `tf.data.Dataset` of batches, beginning with batch number `start`.

    Yields `{"x": inputs, "y": labels, "w": weights}`, without those that there are none of. Of examples in memory
    batch `t` is a function of `seed` and `t` alone, so that a resumed run sees what the interrupted one would have
    seen: every example comes once an epoch; a batch may cross the border of two epochs, none is ever short. With
    `shard=(i, n)` worker `i` of `n` gets its part of each batch. A stream keeps its own batches. Raises `DataError`.
    """
    if isinstance(part, Stream):
        if changes or shard != (0, 1):
            raise DataError(
                "A stream of batches cannot be shifted, mirrored, rotated or cut up for several workers: give arrays."
            )
        dataset = _streamed(part, seed, start)
        make = lambda element: {**element, "x": scaled(element["x"], scale)}  # noqa: E731
        return _with_options(dataset.map(make, num_parallel_calls=2, deterministic=True))
    return _shuffled(part, batch, seed, start, changes, scale, shard)


def _shuffled(part, batch, seed, start, changes, scale, shard) -> tf.data.Dataset:
    count = len(part)
    worker, workers = shard
    first, last = batch * worker // workers, batch * (worker + 1) // workers
    examples = {name: tree for name, tree in (("x", part.x), ("y", part.y), ("w", part.w)) if tree is not None}
    with tf.device("CPU:0"):
        held = mapped(tf.constant, examples)
    changes.check(part.x)
    size = 4 * batch * sum(math.prod(leaf.shape[1:]) for leaf in leaves((part.x, part.y, part.w)))
    if size > _MOST_BATCH_BYTES:
        raise DataError(f"A batch of batch={batch} examples takes {size / 1e9:,.0f} GB of memory: it must be smaller.")

    def make(step):
        position = step * batch + tf.range(batch, dtype=tf.int64)
        epoch = position // count
        seeds = tf.stack([tf.fill([batch], np.int64(seed)), epoch, tf.zeros_like(epoch)], axis=1)
        index = tf.raw_ops.RandomIndexShuffle(
            index=position % count, seed=seeds, max_index=tf.constant(count - 1, tf.int64), rounds=4
        )[first:last]
        chosen = mapped(lambda leaf: tf.gather(leaf, index), held)
        x = scaled(chosen["x"], scale)
        return {**chosen, "x": changes.made(x, batch, [seed, step], slice(first, last))}

    steps = tf.data.Dataset.range(start, np.iinfo(np.int64).max)
    return _with_options(steps.map(make, num_parallel_calls=2, deterministic=True).prefetch(4))


def _streamed(part: Stream, seed: int, start: int) -> tf.data.Dataset:
    source = part.source
    if isinstance(source, tf.data.Dataset):
        dataset = source if source.cardinality() == tf.data.INFINITE_CARDINALITY else source.repeat()
        return dataset.map(lambda *element: _named(element if len(element) > 1 else element[0])).skip(start)
    count = len(source)
    open_sizes = tf.nest.map_structure(
        lambda leaf: tf.TensorSpec((None,) * np.ndim(leaf), tf.as_dtype(np.asarray(leaf).dtype)), _named(source[0])
    )

    def generate():
        epoch, place = divmod(start, count)
        while True:
            order = np.random.default_rng([seed, epoch]).permutation(count)
            for number in order[place:]:
                yield tf.nest.map_structure(np.asarray, _named(source[int(number)]))
            epoch, place = epoch + 1, 0
            source.on_epoch_end()

    return tf.data.Dataset.from_generator(generate, output_signature=open_sizes).prefetch(2)


def _named(element: Any) -> dict[str, Any]:
    """`x`, `(x, y)` or `(x, y, weights)` as `{"x": ..., "y": ..., "w": ...}`."""
    entries = element if isinstance(element, tuple) else (element,)
    return {name: entry for name, entry in zip("xyw", entries, strict=False) if entry is not None}


def _with_options(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)


def _shifted(images, by, margin: int):
    """Each image moved by its own row and column of `by` (0 to 2 x `margin`), with zeros moving in."""
    _, height, width, _ = images.shape
    padded = tf.pad(images, [[0, 0], [margin, margin], [margin, margin], [0, 0]])
    rows = tf.gather(padded, by[:, :1] + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(rows, by[:, 1:] + tf.range(width), axis=2, batch_dims=1)


def _rotated(images, angles):
    """Each image rotated about its center by its own angle, in radians, with zeros moving in."""
    _, height, width, _ = images.shape
    x, y = (width - 1) / 2, (height - 1) / 2
    cos, sin, none = tf.cos(angles), tf.sin(angles), tf.zeros_like(angles)
    rows = [cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y, none, none]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack(rows, axis=1),
        output_shape=tf.constant([height, width], tf.int32),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )


def _seed(seed: list, number: int):
    """Another seed made of one."""
    return tf.random.experimental.stateless_fold_in(tf.cast(tf.stack(seed), tf.int32), number)


def _labels(y: Any) -> Any:
    """Labels in the types that losses take: float64 as float32, whole numbers of any size as int32 where they fit."""

    def change(leaf: np.ndarray) -> np.ndarray:
        if leaf.dtype == np.float64:
            return leaf.astype(np.float32)
        fits = leaf.dtype.kind in "iu" and leaf.size and leaf.min() >= -(2**31) and leaf.max() < 2**31
        return leaf.astype(np.int32) if fits else leaf

    return mapped(change, y)


def inputs_for(model: keras.Model, x: Any) -> Any:
    """The inputs in the structure and with the axes that `model` takes; a subclassed model takes them as they are."""
    floats = model.compute_dtype if model.compute_dtype == "float64" else "float32"
    x = mapped(lambda leaf: leaf.astype(floats) if leaf.dtype.kind == "f" else leaf, x)
    tensors = getattr(model, "inputs", None)
    if not tensors or x is None:
        return x
    structure = keras_private.inputs_structure(model)
    named = {tensor.name: tensor for tensor in tensors}
    if isinstance(x, dict):
        missing = [name for name in named if name not in x]
        keys = list(structure) if isinstance(structure, dict) else list(named)
        if missing and not (isinstance(structure, dict) and set(structure) <= set(x)):
            raise DataError(
                f"The data has no input {missing[0]!r}: the network takes {', '.join(keys)}, not {', '.join(x)}."
            )
        given = [x[key] for key in keys]
    else:
        given = list(x) if isinstance(x, tuple | list) else [x]
    if len(given) != len(tensors):
        raise DataError(
            f"The data has {len(given)} inputs but the network {model.name!r} takes {len(tensors)}: {', '.join(named)}."
        )
    order = list(structure.values()) if isinstance(structure, dict) else tensors
    found = [_input(model, leaf, tensor) for leaf, tensor in zip(given, order, strict=True)]
    if isinstance(structure, dict):
        return dict(zip(structure, found, strict=True))
    return tuple(found) if isinstance(structure, tuple | list) else found[0]


def _input(model: keras.Model, leaf: np.ndarray, tensor: Any) -> np.ndarray:
    """One input with the axes that it must have. Raises `DataError`."""
    expected, shape = tuple(tensor.shape[1:]), leaf.shape[1:]
    if len(shape) == len(expected) + 1 and shape[-1] == 1:
        leaf = leaf[..., 0]
    elif len(shape) == len(expected) - 1 and expected[-1] in (1, None):
        leaf = leaf[..., None]
    elif (
        None not in expected
        and len(expected) < 3
        and len(shape) != len(expected)
        and math.prod(shape) == math.prod(expected)
    ):
        leaf = leaf.reshape(len(leaf), *expected)
    found = leaf.shape[1:]
    if len(found) != len(expected) or any(size not in (None, own) for size, own in zip(expected, found, strict=True)):
        what = "images" if len(expected) == 3 else "inputs"
        raise DataError(
            f"The data has {what} of {shape_text(shape)} but the network {model.name!r} takes {shape_text(expected)}."
        )
    if leaf.dtype.kind == "f" and str(tensor.dtype).startswith(("int", "uint")) and not np.all(leaf == np.round(leaf)):
        raise DataError(
            f"The data has fractions but the network {model.name!r} takes {tensor.dtype} for {tensor.name!r}."
        )
    return leaf


def _shapes(x: Any) -> str:
    return ", ".join(shape_text(leaf.shape[1:]) for leaf in leaves(x))
