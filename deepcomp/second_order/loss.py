"""The loss as a function of the weights that are left: its value, its gradient, its curvature.

The curvature is the Gauss-Newton matrix, each weight with each (Schraudolph, Neural Computation 2002), from a sample of
the training images. Unused neurons are left out of the computation, which makes it several times faster.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping

import keras
import numpy as np
import tensorflow as tf

from deepcomp.data import DataSet, Stream, leaves
from deepcomp.dcz import conversion
from deepcomp.errors import RecipeError
from deepcomp.options import Training
from deepcomp.training import batches
from deepcomp.training.losses import Classification, Task
from deepcomp.training.predict import scores

Places = Mapping[str, tuple[keras.Variable, np.ndarray]]

_BATCH = 1_000
_ROWS_PER_WEIGHT = 10  # rows of the matrix's square root that are drawn, for each weight
_PRODUCT_ROWS = 2_048  # rows that are multiplied at once
_MEMORY = 0.6  # weight of earlier measurements of the matrix, where the new one weighs 1


class SurvivorLoss:
    """The loss of `model` over the values of some of its weights: vectors `float64 (n,)`, the other weights stay.

    `places` names variables and gives the flat positions of those weights in each, in the order of the vectors. The
    loss is the mean cross-entropy of the training images, each moved by up to `training.shift` pixels, anew for each
    sample that `draw_sample` draws; a teacher of the task counts as in training. Raises `RecipeError` for a task that
    is not classification by one softmax, or for a stream of batches.
    """

    def __init__(self, model: keras.Model, places: Places, dataset: DataSet, task: Task, training: Training):
        weighted = isinstance(dataset.train, Stream) or dataset.train.w is not None
        if not isinstance(task, Classification) or weighted:
            raise RecipeError(
                "second_order_rounds are for networks with one softmax output, class numbers in arrays and no weights "
                f"of examples, not for {task.description}: leave the rounds out."
            )
        self._dataset, self._task, self._training = dataset, task, training
        self._batches = -(-len(dataset.train) // _BATCH)
        self._model, self._kept, self._makers = _without_unused(model, places)
        self.size = sum(own.size for _, own in places.values())
        self._classes, self._teacher = task.classes, task.teacher
        # The parts of the loss: the weight and the temperature of each.
        self._parts = [(1.0, 1.0)]
        if self._teacher:
            self._parts = [(1 - self._teacher.weight, 1.0), (self._teacher.weight, self._teacher.temperature)]
        # As many rows at once as keep the gradients of whole kernels, which a row begins as, within 256 MB.
        self._chunk = max(1, min(128, 2**26 // self._model.count_params()))
        compiled = self._probabilities, self._measure, self._gradient, self._row_gradients
        self._probabilities_of, self._measured, self._gradient_of, self._rows_of = (
            tf.function(function, autograph=False) for function in compiled
        )
        self._targets_of = tf.function(self._teacher.targets, autograph=False) if self._teacher else None
        self.draw_sample(0)

    def draw_sample(self, number: int) -> None:
        """Draw sample `number`; it is a function of that and the seed."""
        self._targets: list[tf.Tensor] | None = None
        self._stream = batches.batches(
            self._dataset.train,
            batch=_BATCH,
            seed=self._training.seed,
            start=number * self._batches,
            changes=batches.Changes.of(self._training, self._dataset),
            scale=self._dataset.scale,
        ).take(self._batches)

    def loss(self, values: np.ndarray) -> tuple[float, float]:
        """The mean loss, and the fraction of images that are classified rightly."""
        theta = self._own(values)
        found = [[part.numpy() for part in self._measured(theta, *example)] for example in self._examples()]
        loss, accuracy = np.mean(found, axis=0, dtype=np.float64)
        return float(loss), float(accuracy)

    def gradient(self, values: np.ndarray) -> np.ndarray:
        """The gradient of the loss: `float64 (n,)`."""
        theta = self._own(values)
        own = sum(self._gradient_of(theta, *example).numpy().astype(np.float64) for example in self._examples())
        gradient = np.zeros(self.size)
        gradient[self._kept] = own / self._batches
        return gradient

    def curvature(self, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The Gauss-Newton matrix of the loss, from a sample of rows: `float64 (n, n)`.

        The matrix is the mean over images of sum_c p_c r_c r_c^T, where p_c is the probability of class c, and r_c the
        gradient of its logit less the mean gradient; a softened part of the loss has softened probabilities. Rows with
        p (1 - p) near 0 add next to nothing: they are drawn seldom, and weigh for those that were not drawn.
        """
        theta = self._own(values)
        probabilities = np.concatenate([self._probabilities_of(theta, x).numpy() for x, _, _ in self._examples()])
        weights = np.array([part for part, _ in self._parts])[:, None]
        spread = weights * probabilities * (1 - probabilities)
        rows = int(_ROWS_PER_WEIGHT * theta.shape[0])
        drawn = draw_probabilities(spread.reshape(len(spread), -1), rows).reshape(spread.shape)
        matrix = np.zeros((theta.shape[0],) * 2, np.float32)
        waiting: list[np.ndarray] = []  # a product of many rows takes hardly longer than one of few
        for x, weights in self._rows(probabilities, drawn, rng):
            waiting.append(self._rows_of(theta, x, weights).numpy())
            if sum(map(len, waiting)) >= _PRODUCT_ROWS:
                matrix += _squared(waiting)
                waiting.clear()
        if waiting:
            matrix += _squared(waiting)
        whole = np.zeros((self.size, self.size))
        whole[np.ix_(self._kept, self._kept)] = matrix / len(probabilities)
        return whole

    def _rows(self, probabilities, drawn, rng) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """The images of the rows drawn, and what each logit weighs in the row, by the chunk; the last is filled up."""
        kept: list[tuple[np.ndarray, np.ndarray]] = []
        held = 0
        for start, (x, _, _) in zip(range(0, len(probabilities), _BATCH), self._examples(), strict=True):
            own, chance = probabilities[start : start + _BATCH], drawn[start : start + _BATCH]
            image, part, label = np.nonzero(rng.random(chance.shape) < chance)
            share = np.array([share for share, _ in self._parts])[part]
            scale = np.sqrt(share * own[image, part, label] / chance[image, part, label])
            weights = (np.eye(self._classes)[label] - own[image, part]) * scale[:, None]
            kept.append((x.numpy()[image], weights.astype(np.float32)))
            held += image.size
            last = start + _BATCH >= len(probabilities)
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
        """Inputs, labels and the teacher's targets, batch by batch; the teacher is asked once for each sample."""
        if self._targets is None:
            none = [tf.zeros([_BATCH, self._classes])] * self._batches
            self._targets = (
                [self._targets_of(example["x"])[0] for example in self._stream] if self._targets_of else none
            )
        pairs = zip(self._stream, self._targets, strict=True)
        return ((example["x"], example["y"], targets) for example, targets in pairs)

    def _own(self, values: np.ndarray) -> tf.Tensor:
        return tf.constant(values[self._kept], tf.float32)

    def _scores(self, theta: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        made = zip(self._model.trainable_variables, (maker(theta) for maker in self._makers), strict=True)
        with keras.StatelessScope(state_mapping=list(made)):
            outputs = self._model(x, training=False)
        return scores(leaves(outputs)[0], self._task.probabilities)

    def _probabilities(self, theta, x, *_):
        logits = self._scores(theta, x)
        return tf.stack([tf.nn.softmax(logits / temperature) for _, temperature in self._parts], axis=1)

    def _measure(self, theta, x, y, targets):
        logits = self._scores(theta, x)
        right = tf.equal(tf.argmax(logits, axis=1, output_type=y.dtype), y)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
        if self._teacher:
            # Less the entropy of the targets, which differs from sample to sample.
            weight, temperature = self._teacher.weight, self._teacher.temperature
            own = tf.nn.softmax_cross_entropy_with_logits(targets, logits / temperature)
            own += tf.reduce_sum(tf.math.xlogy(targets, targets), axis=1)
            losses = (1 - weight) * losses + weight * temperature**2 * own
        return tf.reduce_mean(losses), tf.reduce_mean(tf.cast(right, tf.float32))

    def _gradient(self, theta, x, y, targets):
        with tf.GradientTape() as tape:
            tape.watch(theta)
            loss, _ = self._measure(theta, x, y, targets)
        return tf.convert_to_tensor(tape.gradient(loss, theta))

    def _row_gradients(self, theta, x, weights):
        def row(one):
            image, own = one
            with tf.GradientTape() as tape:
                tape.watch(theta)
                total = tf.reduce_sum(self._scores(theta, image[None]) * own)
            return tf.convert_to_tensor(tape.gradient(total, theta))

        return tf.vectorized_map(row, (x, weights))


class RunningMean:
    """A matrix that is measured again and again: an earlier measurement weighs less and less."""

    def __init__(self):
        self._sum, self._count = 0.0, 0.0

    def add(self, matrix: np.ndarray) -> np.ndarray:
        """The mean with a new measurement."""
        self._sum, self._count = _MEMORY * self._sum + matrix, _MEMORY * self._count + 1
        return self._sum / self._count

    def keep(self, kept: np.ndarray) -> None:
        """Only the rows and columns that are `kept`, `bool (n,)`, matter from now on."""
        self._sum = self._sum[np.ix_(kept, kept)]


def draw_probabilities(spread: np.ndarray, rows: int) -> np.ndarray:
    """The chance with which each row is drawn, in proportion to its `spread` and at most 1, for so many in the mean."""
    falling = np.sort(spread[spread > 0].astype(np.float64))[::-1]
    if rows >= falling.size:
        return np.where(spread > 0, 1.0, 0.0)
    # The first of them, if their share is above 1, are certain; the others share what is left.
    others = np.cumsum(falling[::-1])[::-1]
    scales = (rows - np.arange(rows)) / others[:rows]
    certain = int(np.argmax(np.append(scales * falling[:rows] <= 1, True)))
    scale = scales[certain] if certain < rows else 0.0
    probabilities = scale * spread.astype(np.float64)
    return np.where(spread >= falling[certain - 1], 1.0, np.minimum(1.0, probabilities)) if certain else probabilities


def _squared(parts: list[np.ndarray]) -> np.ndarray:
    rows = np.concatenate(parts)
    return rows.T @ rows


def _without_unused(model: keras.Model, places: Places):
    """A smaller model that computes the same, which of the vectors' entries it has, and how its weights are made."""
    small, origins = conversion.without_unused_neurons(model)
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
    """Silence TensorFlow's warnings that each loss is traced anew, and that a gradient for each image takes a loop."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)
