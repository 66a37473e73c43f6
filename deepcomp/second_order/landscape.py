"""The loss as a function of the weights that are left: its value, its slope, its curvature.

The curvature is the Gauss-Newton matrix, each weight with each (Schraudolph, Neural Computation 2002), from a sample of
the training images. Neurons that nobody reads are left out of the computation, which makes it several times faster.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from deepcomp import data
from deepcomp.data import ImageSet
from deepcomp.dcz import conversion as exchange
from deepcomp.training import loop as training

_BATCH = 1_000
_ROWS = 10  # of the matrix's square root that are drawn, for each weight
_PRODUCT = 2_048  # rows that are multiplied at once
_MEMORY = 0.6  # what a matrix that was measured before still counts, where a new one counts 1


class Landscape:
    """The loss of `model` over the values of some of its weights: vectors `float64 (n,)`, the other weights stay.

    `places` names variables and gives the flat positions of those weights in each, in the order of the vectors. The
    loss is the mean cross-entropy of the training images, each moved by up to `shift` pixels, anew for each sample that
    `look_at` draws; with a `teacher` the part `distillation` of it is the divergence from the teacher's outputs, both
    softened by `temperature`, as in `training.train`.
    """

    def __init__(
        self,
        model: keras.Model,
        places: Mapping[str, tuple[keras.Variable, np.ndarray]],
        images: ImageSet,
        *,
        teacher: keras.Model | None = None,
        distillation: float = 0.0,
        temperature: float = 4.0,
        shift: int = 0,
        seed: int = 0,
    ):
        self._images, self._shift, self._seed, self._look = images, shift, seed, 0
        self._batches = -(-len(images.x_train) // _BATCH)
        self._model, self._kept, self._makers = _without_the_unread(model, places)
        self.size = sum(own.size for _, own in places.values())
        outputs = training.predictor(self._model)(images.x_train[:64])
        self._probabilities, self._classes = training.are_probabilities(outputs), outputs.shape[1]
        self._teacher, self._taught, self._temperature = teacher, distillation, temperature
        if teacher is not None:
            self._certain = training.are_probabilities(training.predictor(teacher)(images.x_train[:64]))
        # What the loss is mixed of: its parts, and the temperature of each.
        self._parts = [(1 - distillation, 1.0), (distillation, temperature)] if distillation else [(1.0, 1.0)]
        self._soft: list[tf.Tensor] | None = None
        # As many rows at once as keep the gradients of whole kernels, which a row begins as, within 256 MB.
        self._chunk = max(1, min(128, 2**26 // self._model.count_params()))
        compiled = self._chances, self._measure, self._gradient, self._row_gradients, self._taught_by
        self._chances_of, self._measured, self._slope_of, self._rows_of, self._soft_of = map(tf.function, compiled)

    def look_at(self, number: int) -> None:
        """Draw sample `number`; it is a function of that and the seed."""
        self._look, self._soft = number, None

    def loss(self, values: np.ndarray) -> tuple[float, float]:
        """The mean loss, and the fraction of images that are classified rightly."""
        theta = self._own(values)
        found = [[part.numpy() for part in self._measured(theta, *example)] for example in self._examples()]
        loss, accuracy = np.mean(found, axis=0, dtype=np.float64)
        return float(loss), float(accuracy)

    def slope(self, values: np.ndarray) -> np.ndarray:
        """The gradient of the loss: `float64 (n,)`."""
        theta = self._own(values)
        own = sum(self._slope_of(theta, *example).numpy().astype(np.float64) for example in self._examples())
        slope = np.zeros(self.size)
        slope[self._kept] = own / self._batches
        return slope

    def curvature(self, values: np.ndarray, dice: np.random.Generator) -> np.ndarray:
        """The Gauss-Newton matrix of the loss, from a sample of rows: `float64 (n, n)`.

        The matrix is the mean over images of sum_c p_c r_c r_c^T, p being the chances of classes and r_c the gradient
        of class c's logit less the mean one; a softened part of the loss has softened chances. Rows with p (1 - p) near
        0 add next to nothing: they are drawn seldom, and count for those that were not drawn.
        """
        theta = self._own(values)
        chances = np.concatenate([self._chances_of(theta, x).numpy() for x, _, _ in self._examples()])
        weights = np.array([part for part, _ in self._parts])[:, None]
        spread = weights * chances * (1 - chances)
        drawn = drawing(spread.reshape(len(spread), -1), int(_ROWS * theta.shape[0])).reshape(spread.shape)
        matrix = np.zeros((theta.shape[0],) * 2, np.float32)
        waiting: list[np.ndarray] = []  # a product of many rows takes hardly longer than one of few
        for x, weights in self._rows(chances, drawn, dice):
            waiting.append(self._rows_of(theta, x, weights).numpy())
            if sum(map(len, waiting)) >= _PRODUCT:
                matrix += _squared(waiting)
                waiting.clear()
        if waiting:
            matrix += _squared(waiting)
        whole = np.zeros((self.size, self.size))
        whole[np.ix_(self._kept, self._kept)] = matrix / len(chances)
        return whole

    def _rows(self, chances, drawn, dice) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """The images of the rows drawn, and what each logit weighs in the row, by the chunk; the last is filled up."""
        kept: list[tuple[np.ndarray, np.ndarray]] = []
        held = 0
        for start, (x, _, _) in zip(range(0, len(chances), _BATCH), self._examples(), strict=True):
            own, chance = chances[start : start + _BATCH], drawn[start : start + _BATCH]
            image, part, label = np.nonzero(dice.random(chance.shape) < chance)
            share = np.array([share for share, _ in self._parts])[part]
            scale = np.sqrt(share * own[image, part, label] / chance[image, part, label])
            weights = (np.eye(self._classes)[label] - own[image, part]) * scale[:, None]
            kept.append((x.numpy()[image], weights.astype(np.float32)))
            held += image.size
            last = start + _BATCH >= len(chances)
            if held < self._chunk and not last:
                continue
            x, weights = (np.concatenate(part) for part in zip(*kept, strict=True))
            filler = -held % self._chunk if last else 0
            x, weights = (np.pad(a, ((0, filler), *((0, 0),) * (a.ndim - 1))) for a in (x, weights))
            whole = len(x) - len(x) % self._chunk
            for first in range(0, whole, self._chunk):
                yield tf.constant(x[first : first + self._chunk]), tf.constant(weights[first : first + self._chunk])
            kept, held = [(x[whole:], weights[whole:])], len(x) - whole

    def _examples(self) -> Iterator[tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
        """Images, labels and what the teacher says of them, batch by batch; the teacher is asked once a look."""
        order = {"batch": _BATCH, "seed": self._seed, "start": self._look * self._batches, "shift": self._shift}
        shape = training.fixed_shape(self._model)
        stream = data.batches(self._images.x_train, self._images.y_train, shape=shape, **order).take(self._batches)
        if self._soft is None:
            unasked = [tf.zeros([_BATCH, self._classes])] * self._batches
            self._soft = [self._soft_of(x) for x, _ in stream] if self._taught else unasked
        return ((x, y, soft) for (x, y), soft in zip(stream, self._soft, strict=True))

    def _own(self, values: np.ndarray) -> tf.Tensor:
        return tf.constant(values[self._kept], tf.float32)

    def _taught_by(self, x):
        return tf.nn.softmax(training.scores(self._teacher(x, training=False), self._certain) / self._temperature)

    def _scores(self, theta: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        still = [variable.value for variable in self._model.non_trainable_variables]
        outputs, _ = self._model.stateless_call([made(theta) for made in self._makers], still, x, training=False)
        return training.scores(outputs, self._probabilities)

    def _chances(self, theta, x, *_):
        scores = self._scores(theta, x)
        return tf.stack([tf.nn.softmax(scores / temperature) for _, temperature in self._parts], axis=1)

    def _measure(self, theta, x, y, soft):
        scores = self._scores(theta, x)
        right = tf.equal(tf.argmax(scores, axis=1, output_type=y.dtype), y)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, scores)
        if self._taught:
            # Less the entropy of what the teacher says, which differs from sample to sample.
            own = tf.nn.softmax_cross_entropy_with_logits(soft, scores / self._temperature)
            own += tf.reduce_sum(tf.math.xlogy(soft, soft), axis=1)
            losses = (1 - self._taught) * losses + self._taught * self._temperature**2 * own
        return tf.reduce_mean(losses), tf.reduce_mean(tf.cast(right, tf.float32))

    def _gradient(self, theta, x, y, soft):
        with tf.GradientTape() as tape:
            tape.watch(theta)
            loss, _ = self._measure(theta, x, y, soft)
        return tf.convert_to_tensor(tape.gradient(loss, theta))

    def _row_gradients(self, theta, x, weights):
        def row(one):
            image, own = one
            with tf.GradientTape() as tape:
                tape.watch(theta)
                total = tf.reduce_sum(self._scores(theta, image[None]) * own)
            return tf.convert_to_tensor(tape.gradient(total, theta))

        return tf.vectorized_map(row, (x, weights))


class Averaged:
    """A matrix that is measured again and again: what was measured before counts less and less."""

    def __init__(self):
        self._sum, self._count = 0.0, 0.0

    def add(self, matrix: np.ndarray) -> np.ndarray:
        """The mean with a new measurement."""
        self._sum, self._count = _MEMORY * self._sum + matrix, _MEMORY * self._count + 1
        return self._sum / self._count

    def keep(self, kept: np.ndarray) -> None:
        """Only the rows and columns that are `kept`, `bool (n,)`, matter from now on."""
        self._sum = self._sum[np.ix_(kept, kept)]


def drawing(spread: np.ndarray, rows: int) -> np.ndarray:
    """The chance with which each row is drawn, in proportion to its `spread` and at most 1, for so many in the mean."""
    falling = np.sort(spread[spread > 0].astype(np.float64))[::-1]
    if rows >= falling.size:
        return np.where(spread > 0, 1.0, 0.0)
    # The first of them, if their share is above 1, are certain; the others share what is left.
    others = np.cumsum(falling[::-1])[::-1]
    scales = (rows - np.arange(rows)) / others[:rows]
    certain = int(np.argmax(np.append(scales * falling[:rows] <= 1, True)))
    scale = scales[certain] if certain < rows else 0.0
    chances = scale * spread.astype(np.float64)
    return np.where(spread >= falling[certain - 1], 1.0, np.minimum(1.0, chances)) if certain else chances


def _squared(parts: list[np.ndarray]) -> np.ndarray:
    rows = np.concatenate(parts)
    return rows.T @ rows


def _without_the_unread(model: keras.Model, places: Mapping[str, tuple[keras.Variable, np.ndarray]]):
    """A smaller model that computes the same, which of the vectors' entries it has, and how its weights are made."""
    small, origins = exchange.without_unused_neurons(model)
    numbers = {id(variable): np.zeros(math.prod(variable.shape) + 1, np.int64) for variable, _ in origins}
    first = 1
    for variable, own in places.values():
        numbers[id(variable)][own] = np.arange(first, first + own.size)
        first += own.size
    found = [numbers[id(variable)][there].ravel() for variable, there in origins]
    kept = np.unique(np.concatenate(found))
    kept = kept[kept > 0]
    makers = [_maker(variable, own, kept) for variable, own in zip(small.trainable_variables, found, strict=True)]
    return small, kept - 1, makers


def _maker(variable: keras.Variable, numbers: np.ndarray, kept: np.ndarray) -> Callable[[tf.Tensor], tf.Tensor]:
    """What makes a weight of a vector: `numbers` are those of the entries at its flat places, 0 where it stays."""
    places = np.flatnonzero(numbers)
    still, entries = np.array(variable.numpy()).ravel(), np.searchsorted(kept, numbers[places])
    still[places] = 0

    def made(theta: tf.Tensor) -> tf.Tensor:
        moving = tf.scatter_nd(places[:, None], tf.gather(theta, entries), [still.size])
        return tf.reshape(still + moving, variable.shape)

    return made


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep TensorFlow from saying that each landscape is traced anew, and that a gradient by image takes a loop."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)
