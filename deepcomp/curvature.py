"""Weight sharing by the curvature of the loss: the clusters that are best when weights can make up for each other.

Near where it is, the loss is about a parabola of the weights that are left. Its slope comes from automatic
differentiation, its curvature is the Gauss-Newton matrix, each weight with each (Schraudolph, Neural Computation 2002).
What a weight loses in its cluster, others can then make good in theirs, as in Optimal Brain Surgeon (Hassibi and Stork,
NIPS 1992), and a few thousand weights are settled in seconds; the parabola is taken anew for each round.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from deepcomp import data, quantization, training
from deepcomp.data import ImageSet
from deepcomp.errors import RecipeError
from deepcomp.parametrize import Network, Shared

MAX_SURVIVORS = 20_000  # whose matrix takes 3 GB, and as much again while it is in use

_BATCH = 1_000
_COPIES = 2  # of the training images a round looks at, where they are moved
_ROWS = 20  # of the matrix's square root that are drawn, for each survivor
_SWEEPS = 10
_DAMPING, _LEAST_DAMPING, _TRIES = 0.2, 0.01, 4


def reassign(
    network: Network,
    images: ImageSet,
    *,
    rounds: int,
    price: float = 0.0,
    shift: int = 0,
    seed: int = 0,
    start: int = 0,
) -> dict[str, list]:
    """Give each survivor of shared weights the cluster, or none, and each cluster the value, that cost least.

    The cost is the cross-entropy of the training images, moved by up to `shift` pixels, plus the price of the bits of
    `quantization.code_lengths`: a bit costs `price` times the mean loss of all survivors, were each removed alone. In
    each of `rounds` slope and curvature are measured, of the first where latent weights stand if the loss is less
    there, and a change that costs more than it saves is undone. Clusters keep their number or empty; what is not shared
    stays as it is. Returns a history like that of `training.train`, an entry for each round, `step` counting from
    `start`; loss and accuracy are those on the round's own images. The same input gives the same result on one machine.
    Raises `RecipeError` for more than 20,000 survivors, or none.
    """
    history: dict[str, list] = {"step": [], "loss": [], "accuracy": [], "validation_accuracy": []}
    if not rounds:
        return history
    found = _Assignment.of(network)
    if not found.clusters.size:
        raise RecipeError("newton_rounds has nothing to settle: no weight is shared, or none is left.")
    if found.clusters.size > MAX_SURVIVORS:
        raise RecipeError(
            f"newton_rounds settles at most {MAX_SURVIVORS:,} weights, with their biases, and {found.clusters.size:,} "
            "are left: prune more, or share by training alone with newton_rounds=0."
        )
    landscape = _Landscape(network, images, found.names, shift=shift, seed=seed)
    dice = np.random.default_rng(seed)
    predict, held = training.predictor(network), len(images.x_validation)
    damping, worth = _DAMPING, None
    with training.progress_bar("curvature", 0, rounds, unit="round") as bar:
        for number in range(rounds):
            landscape.look_at(number)
            values = found.values()
            loss, right = landscape.loss(values)
            # Weights as they were trained lie in a valley, weights as they were rounded to on a slope.
            latent = found.latent() if number == 0 else None
            at = latent if latent is not None and landscape.loss(latent)[0] < loss else values
            slope, curvature = landscape.slope(at), landscape.curvature(at, dice)
            if worth is None:
                worth = price * float(np.mean(0.5 * np.diag(curvature) * at**2))
            before = loss + worth * found.bits()
            for _ in range(_TRIES):
                trial = _settled(found, at, slope, curvature, worth, damping, dice)
                trial_loss, trial_right = landscape.loss(trial.values())
                if trial_loss + worth * trial.bits() < before:
                    found, loss, right = trial, trial_loss, trial_right
                    damping = max(damping / 2, _LEAST_DAMPING)
                    break
                damping *= 4
            found.write(network)
            history["step"].append(start + number + 1)
            history["loss"].append(loss)
            history["accuracy"].append(right)
            seen = training.accuracy(predict, images.x_validation, images.y_validation) if held else None
            history["validation_accuracy"].append(seen)
            left = int(np.count_nonzero(found.clusters))
            bar.set_postfix(loss=f"{loss:.4f}", accuracy=f"{right:.4f}", survivors=left, refresh=False)
            bar.update()
    return history


@dataclass(frozen=True)
class _Assignment:
    """Which cluster each survivor of all shared weights has, `clusters` `int32 (n,)`, 0 for none; their centroids."""

    shared: dict[str, Shared]
    clusters: np.ndarray
    codebooks: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, network: Network) -> "_Assignment":
        shared = network.shared
        clusters = [np.asarray(made.clusters.numpy(), np.int32) for made in shared.values()]
        return cls(shared, _joined(clusters), tuple(made.codebook() for made in shared.values()))

    @property
    def names(self) -> dict[str, int]:
        """How many survivors each shared weight has, by name."""
        return {name: made.positions.size for name, made in self.shared.items()}

    def parts(self, values: np.ndarray) -> list[np.ndarray]:
        """What is said of all survivors, by shared weight."""
        return np.split(values, np.cumsum(list(self.names.values()))[:-1])

    def values(self) -> np.ndarray:
        """The survivors' values: `float64 (n,)`."""
        looked_up = zip(self.parts(self.clusters), self.codebooks, strict=True)
        return _joined([np.concatenate(([0.0], codebook))[clusters] for clusters, codebook in looked_up])

    def latent(self) -> np.ndarray | None:
        """The survivors' values before they were shared, if all have them: `float64 (n,)`."""
        if not all(made.weights for made in self.shared.values()):
            return None
        return _joined([np.asarray(made.weights[0].numpy(), np.float64) for made in self.shared.values()])

    def options(self) -> np.ndarray:
        """The values each survivor may take, none being 0: `float64 (n, k + 1)`; short codebooks are filled up."""
        return self._table([np.tile(np.concatenate(([0.0], own)), (n, 1)) for n, own in self._sizes()], 0.0)

    def lengths(self) -> np.ndarray:
        """The bits that each choice takes: `float64 (n, k + 1)`, infinite where a codebook is filled up."""
        of_each = zip(self.shared.values(), self.parts(self.clusters), strict=True)
        return self._table([made.code_lengths(clusters) for made, clusters in of_each], np.inf)

    def bits(self) -> float:
        """The bits of all survivors as they are."""
        return float(np.take_along_axis(self.lengths(), self.clusters[:, None], axis=1).sum())

    def members(self) -> np.ndarray:
        """The cluster of each survivor, numbered through all codebooks, -1 for none: `int64 (n,)`."""
        first = np.repeat(np.cumsum([0, *(own.size for own in self.codebooks)])[:-1], list(self.names.values()))
        return np.where(self.clusters == 0, -1, first + self.clusters - 1)

    def moved(self, by: np.ndarray) -> "_Assignment":
        """With its centroids moved, as near as they can be stored."""
        steps = np.split(by, np.cumsum([own.size for own in self.codebooks])[:-1])
        of_each = zip(self.shared.values(), self.codebooks, steps, strict=True)
        return replace(self, codebooks=tuple(made.storable(own + step) for made, own, step in of_each))

    def write(self, network: Network) -> None:
        """Put it into the network."""
        for name, clusters, codebook in zip(self.shared, self.parts(self.clusters), self.codebooks, strict=True):
            network.shared[name].assign(clusters, codebook)

    def _sizes(self):
        return zip(self.names.values(), self.codebooks, strict=True)

    def _table(self, parts: list[np.ndarray], filler: float) -> np.ndarray:
        width = max(part.shape[1] for part in parts)
        return np.vstack([np.pad(p, ((0, 0), (0, width - p.shape[1])), constant_values=filler) for p in parts])


def _settled(
    found: _Assignment,
    at: np.ndarray,
    slope: np.ndarray,
    curvature: np.ndarray,
    worth: float,
    damping: float,
    dice: np.random.Generator,
) -> _Assignment:
    """The assignment that costs least by slope and curvature `at` those values; clusters and centroids take turns.

    `damping` is added to the curvature of each weight, in parts of it: the parabola is not to be trusted far away.
    """
    bend = curvature.copy()
    own = np.diag(curvature)
    np.fill_diagonal(bend, own * (1 + damping) + 1e-9 * own.mean())
    for _ in range(_SWEEPS):
        clusters, options = found.clusters.copy(), found.options()
        here = slope + bend @ (found.values() - at)
        order = dice.permutation(clusters.size)
        changed = quantization.descend(clusters, options, worth * found.lengths(), here, bend, order)
        found = replace(found, clusters=clusters)
        here = slope + bend @ (found.values() - at)
        count = sum(codebook.size for codebook in found.codebooks)
        found = found.moved(quantization.refit(found.members(), count, here, bend))
        if not changed:
            break
    return found


class _Landscape:
    """The loss over the values of survivors, on a sample of the training images, moved, that each round draws."""

    def __init__(self, network: Network, images: ImageSet, names: dict[str, int], *, shift: int, seed: int):
        self._network, self._images, self._names = network, images, names
        self._shift, self._seed, self._round = shift, seed, 0
        outputs = training.predictor(network)(images.x_train[:64])
        self._probabilities, self._classes = training.are_probabilities(outputs), outputs.shape[1]
        self._batches = -(-len(images.x_train) * (_COPIES if shift else 1) // _BATCH)
        # As many rows at once as keep the gradients of whole kernels, which a row begins as, within 256 MB.
        self._chunk = max(1, min(128, 2**26 // network.model.count_params()))
        kinds = self._chances, self._measure, self._gradient, self._row_gradients
        self._chances_of, self._measured, self._slope_of, self._rows_of = map(tf.function, kinds)

    def look_at(self, number: int) -> None:
        """Draw the sample of this round."""
        self._round = number

    def loss(self, values: np.ndarray) -> tuple[float, float]:
        """The mean cross-entropy, and the fraction of images that are classified rightly."""
        theta = _tensor(values)
        found = [[part.numpy() for part in self._measured(theta, x, y)] for x, y in self._sample()]
        loss, accuracy = np.mean(found, axis=0, dtype=np.float64)
        return float(loss), float(accuracy)

    def slope(self, values: np.ndarray) -> np.ndarray:
        """Its gradient: `float64 (n,)`."""
        theta = _tensor(values)
        return sum(self._slope_of(theta, x, y).numpy().astype(np.float64) for x, y in self._sample()) / self._batches

    def curvature(self, values: np.ndarray, dice: np.random.Generator) -> np.ndarray:
        """Its Gauss-Newton matrix, from a sample of rows: `float64 (n, n)`.

        The matrix is the mean over images of sum_c p_c r_c r_c^T, p being the chances of classes and r_c the gradient
        of class c's logit less the mean one. Rows with p (1 - p) near 0 add next to nothing: they are drawn seldom, and
        count for those that were not drawn.
        """
        theta = _tensor(values)
        chances = np.concatenate([self._chances_of(theta, x).numpy() for x, _ in self._sample()])
        drawn = _drawing(chances * (1 - chances), int(_ROWS * values.size))
        matrix = np.zeros((values.size, values.size), np.float32)
        with _quiet():
            for x, weights in self._rows(chances, drawn, dice):
                rows = self._rows_of(theta, x, weights).numpy()
                matrix += rows.T @ rows
        return matrix.astype(np.float64) / len(chances)

    def _rows(self, chances, drawn, dice) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        """The images of the rows drawn, and what each logit weighs in the row, by the chunk; the last is filled up."""
        kept: list[tuple[np.ndarray, np.ndarray]] = []
        held = 0
        for start, (x, _) in zip(range(0, len(chances), _BATCH), self._sample(), strict=True):
            own, chance = chances[start : start + _BATCH], drawn[start : start + _BATCH]
            image, label = np.nonzero(dice.random(chance.shape) < chance)
            scale = np.sqrt(own[image, label] / chance[image, label])
            weights = (np.eye(self._classes)[label] - own[image]) * scale[:, None]
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

    def _sample(self) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
        order = {"batch": _BATCH, "seed": self._seed, "start": self._round * self._batches, "shift": self._shift}
        shape = training.fixed_shape(self._network.model)
        stream = data.batches(self._images.x_train, self._images.y_train, shape=shape, **order)
        return iter(stream.take(self._batches))

    def _scores(self, theta: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        values = dict(zip(self._names, tf.split(theta, list(self._names.values())), strict=True))
        return training.scores(self._network.outputs(x, values), self._probabilities)

    def _chances(self, theta, x):
        return tf.nn.softmax(self._scores(theta, x))

    def _measure(self, theta, x, y):
        scores = self._scores(theta, x)
        right = tf.equal(tf.argmax(scores, axis=1, output_type=y.dtype), y)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, scores)
        return tf.reduce_mean(losses), tf.reduce_mean(tf.cast(right, tf.float32))

    def _gradient(self, theta, x, y):
        with tf.GradientTape() as tape:
            tape.watch(theta)
            loss, _ = self._measure(theta, x, y)
        return tape.gradient(loss, theta)

    def _row_gradients(self, theta, x, weights):
        def row(one):
            image, own = one
            with tf.GradientTape() as tape:
                tape.watch(theta)
                total = tf.reduce_sum(self._scores(theta, image[None]) * own)
            return tape.gradient(total, theta)

        return tf.vectorized_map(row, (x, weights))


def _drawing(spread: np.ndarray, rows: int) -> np.ndarray:
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


@contextlib.contextmanager
def _quiet():
    """Keep TensorFlow from saying that a gradient of each image by itself takes a loop."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)


def _tensor(values: np.ndarray) -> tf.Tensor:
    return tf.constant(values, tf.float32)
