"""Pruning and sharing by the curvature of the loss, which knows what weights can make up for each other.

Near where it is, the loss is about a parabola of the weights that are left: `landscape.Landscape` has its slope and its
curvature, each weight with each. What is lost with a weight that goes, or that must take the value of its cluster,
others can then make good, as in Optimal Brain Surgeon (Hassibi and Stork, NIPS 1992), and a few thousand weights are
settled in seconds; the parabola is taken anew for each round.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import keras
import numpy as np

from deepcomp import models, pruning, quantization
from deepcomp.data import ImageSet
from deepcomp.errors import RecipeError
from deepcomp.second_order import landscape
from deepcomp.second_order.landscape import Averaged, Landscape
from deepcomp.training import loop as training
from deepcomp.training import parametrize
from deepcomp.training.parametrize import Network, Shared

MAX_SURVIVORS = 20_000  # whose matrix takes 3 GB, and as much again while it is in use

_SWEEPS = 10
_RAMP = 0.8  # the part of the rounds in which weights go; those after it settle what is left
_DAMPING, _LEAST_DAMPING, _TRIES = 0.2, 0.01, 4
_STIFFNESS = 0.3  # of the curvature of weights that wait for a centroid, which it has besides
_RUIN = 2.0  # times the loss: a centroid went where no parabola holds, such as to the other sign; none may move then
_TRUST = 0.1  # of the loss: how far a trial may be above what the parabola foretells


def prune(
    model: keras.Model,
    images: ImageSet,
    *,
    sparsity: float,
    rounds: int,
    seed: int = 0,
    history: Mapping[str, list] | None = None,
    **learning,
) -> dict[str, list]:
    """Prune the kernels of `model`, all together, on to `sparsity`; what goes is what others can best make up for.

    In each of `rounds` slope and curvature of the loss are measured, some weights go, fewer and fewer, and all others,
    biases too, move to where the loss is least; in the last fifth none goes. `learning` goes to `landscape.Landscape`:
    `shift`, `teacher`, `distillation`, `temperature`. Returns the `history` of `training.train` with an entry more for
    each round, a step each; loss and accuracy are those on the round's own images. The same input gives the same result
    on one machine. Raises `RecipeError` for more than 20,000 weights that are left, or a `sparsity` or a number of
    rounds that cannot be.
    """
    record = _History(history)
    if rounds < 0 or not 0 <= sparsity < 1 or (sparsity and not rounds):
        raise RecipeError(
            f"{rounds} rounds by curvature to a sparsity of {sparsity}: the first must be 0 or more, the second from 0 "
            "to less than 1, and a sparsity needs rounds."
        )
    if not rounds:
        return record.entries
    kernels = models.kernels(model)
    whole = sum(math.prod(kernel.shape) for kernel in kernels.values())
    first = sum(int(np.count_nonzero(kernel.numpy())) for kernel in kernels.values())
    goal = max(1, whole - int(whole * sparsity + 1e-9))
    dice, measured, damping = np.random.default_rng(seed), Averaged(), _DAMPING
    ramp = math.ceil(_RAMP * rounds)
    predict = training.predictor(model)
    with landscape.quiet(), training.progress_bar("curvature", 0, rounds, unit="round") as bar:
        for number in range(rounds):
            places = _places(model)
            _check_size(sum(own.size for _, own in places.values()))
            ground = Landscape(model, places, images, seed=seed, **learning)
            ground.look_at(number)
            values = np.concatenate([variable.numpy().ravel()[own] for variable, own in places.values()])
            values = values.astype(np.float64)
            removable = np.repeat([name in kernels for name in places], [own.size for _, own in places.values()])
            ahead = (1 - min(number + 1, ramp) / ramp) ** 2
            count = max(0, np.count_nonzero(removable) - goal - int(max(0, first - goal) * ahead))
            loss, right = ground.loss(values)
            bend = measured.add(ground.curvature(values, dice))
            near = _Parabola(values, loss, ground.slope(values), bend)
            trial = near.settled(ground, partial(_operated, near, removable, count), np.asarray, damping)
            damping = trial.damping
            if count or trial.loss < loss:
                values, loss, right = trial[:3]
            _write(places, values)
            measured.keep(np.float32(values) != 0)
            record.add(loss, right, predict, images)
            bar.set_postfix(**record.last(), left=int(np.count_nonzero(values[removable])), refresh=False)
            bar.update()
    return record.entries


def share(
    network: Network,
    images: ImageSet,
    *,
    rounds: int,
    price: float = 0.0,
    seed: int = 0,
    history: Mapping[str, list] | None = None,
    **learning,
) -> dict[str, list]:
    """Give each survivor of shared weights the cluster, or none, and each cluster the value, that cost least.

    The cost is the loss plus the price of the bits of `quantization.code_lengths`: a bit costs `price` times the mean
    loss of all survivors, were each removed alone. In each of `rounds` slope and curvature are measured. Survivors that
    have latent weights begin there and take the values of their clusters by and by, fewer and fewer, those first that
    cost least; the others, and the clusters, make up for it. In the last fifth, or where there are no latent weights in
    all, survivors change clusters, and what costs more than it saves is undone. Clusters keep their number or
    empty; what is not shared stays as it is. `learning`, what is returned and what is raised are as for `prune`;
    `RecipeError` also where nothing is left.
    """
    record = _History(history)
    if not rounds:
        return record.entries
    found = _Assignment.of(network)
    if not found.clusters.size:
        raise RecipeError("newton_rounds has nothing to settle: no weight is shared, or none is left.")
    _check_size(found.clusters.size)
    network.write_back()
    variables = parametrize.shareable(network.model, biases=True)
    places = {name: (variables[name], made.positions) for name, made in network.shared.items()}
    ground = Landscape(network.model, places, images, seed=seed, **learning)
    # Weights as they were trained lie in a valley, weights as they were rounded to on a slope; not so after training.
    if ground.loss(found.values())[0] >= ground.loss(found.tight().values())[0]:
        found = found.tight()
    dice, measured, damping, worth = np.random.default_rng(seed), Averaged(), _DAMPING, 0.0
    ramp, first = math.ceil(_RAMP * rounds), np.count_nonzero(found.loose)
    predict = training.predictor(network.model)
    with landscape.quiet(), training.progress_bar("curvature", 0, rounds, unit="round") as bar:
        for number in range(rounds):
            ground.look_at(number)
            values = found.values()
            loss, right = ground.loss(values)
            bend = measured.add(ground.curvature(values, dice))
            near = _Parabola(values, loss, ground.slope(values), bend)
            if number == 0:
                worth = price * float(np.mean(0.5 * np.diag(bend) * values**2))
            loose = np.count_nonzero(found.loose)
            if loose:
                count = loose - int(first * (1 - min(number + 1, ramp) / ramp) ** 2)
                make = partial(_committed, found, near, worth, count)
            else:
                make = partial(_changed, found, near, worth, dice)
            trial = near.settled(ground, make, _Assignment.values, damping)
            if loose and trial.loss > _RUIN * loss:
                held = near.settled(ground, partial(make, held=True), _Assignment.values, damping)
                trial = min(trial, held, key=lambda one: one.loss)
            damping = trial.damping
            if loose or trial.loss + worth * trial.what.bits() < loss + worth * found.bits():
                found, loss, right = trial[:3]
            _write(places, found.values())
            record.add(loss, right, predict, images)
            bar.set_postfix(**record.last(), left=int(np.count_nonzero(found.values())), refresh=False)
            bar.update()
    found.write(network)
    return record.entries


class _Trial(NamedTuple):
    """What was tried, its loss and accuracy, and the damping to begin the next round with."""

    what: Any
    loss: float
    right: float
    damping: float


class _Parabola(NamedTuple):
    """The loss near `values`, as slope and curvature foretell it."""

    values: np.ndarray
    loss: float
    slope: np.ndarray
    curvature: np.ndarray

    def foretold(self, values: np.ndarray) -> float:
        """The loss there."""
        move = values - self.values
        return float(self.loss + self.slope @ move + 0.5 * move @ self.curvature @ move)

    def damped(self, damping: float) -> np.ndarray:
        """The curvature with `damping` added to that of each weight, in parts of it: far away no parabola holds."""
        bend = self.curvature.copy()
        own = np.diag(bend)
        np.fill_diagonal(bend, own * (1 + damping) + 1e-9 * own.mean())
        return bend

    def settled(self, ground: Landscape, make: Callable[[float], Any], values_of, damping: float) -> _Trial:
        """Of what is made with more and more damping, the first whose loss is about as foretold, or the least one."""
        best: _Trial | None = None
        for _ in range(_TRIES):
            what = make(damping)
            values = values_of(what)
            loss, right = ground.loss(values)
            if best is None or loss < best.loss:
                best = _Trial(what, loss, right, damping)
            if loss <= self.foretold(values) + _TRUST * self.loss:
                return best._replace(damping=max(damping / 2, _LEAST_DAMPING))
            damping *= 4
        return best


class _History:
    """A history of `training.train` that goes on, a step for each round."""

    def __init__(self, before: Mapping[str, list] | None):
        keys = "step", "loss", "accuracy", "validation_accuracy"
        self.entries = {key: list(before[key]) if before else [] for key in keys}

    def add(self, loss: float, right: float, predict, images: ImageSet) -> None:
        """Note what a round reached."""
        step = self.entries["step"][-1] + 1 if self.entries["step"] else 1
        held = len(images.x_validation)
        seen = training.accuracy(predict, images.x_validation, images.y_validation) if held else None
        for key, value in zip(self.entries, (step, loss, right, seen), strict=True):
            self.entries[key].append(value)

    def last(self) -> dict[str, str]:
        """Loss and accuracy of the last round, for a progress bar."""
        return {key: f"{self.entries[key][-1]:.4f}" for key in ("loss", "accuracy")}


def _check_size(count: int) -> None:
    if count > MAX_SURVIVORS:
        raise RecipeError(
            f"newton_rounds settles at most {MAX_SURVIVORS:,} weights, with their biases, and {count:,} are left: "
            "prune more before, or train alone with newton_rounds=0."
        )


def _places(model: keras.Model) -> Mapping[str, tuple[keras.Variable, np.ndarray]]:
    """The kernels and biases of a model, by name, and where each is not zero."""
    named = parametrize.shareable(model, biases=True)
    return {name: (variable, np.flatnonzero(variable.numpy())) for name, variable in named.items()}


def _write(places: Mapping[str, tuple[keras.Variable, np.ndarray]], values: np.ndarray) -> None:
    ends = np.cumsum([own.size for _, own in places.values()])
    for (variable, own), part in zip(places.values(), np.split(values, ends[:-1]), strict=True):
        whole = np.array(variable.numpy())
        np.put(whole, own, part)
        variable.assign(whole)


def _operated(near: _Parabola, removable: np.ndarray, count: int, damping: float) -> np.ndarray:
    """The values in which `count` fewer weights are left, those that cost least."""
    return pruning.surgery(near.values, near.slope, near.damped(damping), removable, count)


@dataclass(frozen=True)
class _Assignment:
    """Which cluster each survivor of all shared weights has, `clusters` `int32 (n,)`, 0 for none; their centroids.

    Those that are `loose`, `bool (n,)`, have not taken its value yet, but that of `latent`, `float64 (n,)`.
    """

    shared: dict[str, Shared]
    clusters: np.ndarray
    codebooks: tuple[np.ndarray, ...]
    latent: np.ndarray
    loose: np.ndarray

    @classmethod
    def of(cls, network: Network) -> "_Assignment":
        """The network's: all loose, if all have latent weights."""
        made = network.shared.values()
        clusters = _joined([np.asarray(one.clusters.numpy(), np.int32) for one in made])
        codebooks = tuple(one.codebook() for one in made)
        loose = np.full(clusters.size, all(one.weights for one in made))
        latent = np.zeros(clusters.size)
        if loose.any():
            latent = _joined([np.asarray(one.weights[0].numpy(), np.float64) for one in made])
        return cls(network.shared, clusters, codebooks, latent, loose)

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
        own = _joined([np.concatenate(([0.0], codebook))[clusters] for clusters, codebook in looked_up])
        return np.where(self.loose, self.latent, own)

    def tight(self) -> "_Assignment":
        """With no survivor loose."""
        return replace(self, loose=np.zeros_like(self.loose))

    def nearest(self) -> np.ndarray:
        """The cluster whose value is nearest to a survivor's own: `int32 (n,)`."""
        of_each = zip(self.parts(self.values()), self.codebooks, strict=True)
        return _joined([np.argmin(np.abs(v[:, None] - c), axis=1).astype(np.int32) + 1 for v, c in of_each if v.size])

    def ranges(self) -> tuple[np.ndarray, np.ndarray]:
        """Of all codebooks' centroids the number of the first each survivor may take, and of the one after the last."""
        ends = np.cumsum([0, *(own.size for own in self.codebooks)])
        sizes = list(self.names.values())
        return np.repeat(ends[:-1], sizes), np.repeat(ends[1:], sizes)

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
        return np.where(self.clusters == 0, -1, self.ranges()[0] + self.clusters - 1)

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


def _committed(
    found: _Assignment, near: _Parabola, worth: float, count: int, damping: float, held: bool = False
) -> _Assignment:
    """The assignment in which `count` more survivors have the values of clusters, those that cost least.

    Where centroids are `held`, none moves.
    """
    slope, curvature = near.slope, near.curvature
    loose, (first, last) = np.flatnonzero(found.loose), found.ranges()
    members, centroids = found.members(), np.concatenate(found.codebooks)
    # Loose weights move one by one, the others with their centroids.
    belongs = (np.where(found.loose, -1, members)[:, None] == np.arange(centroids.size)).astype(np.float64)
    half = np.hstack([curvature[:, loose], curvature @ belongs])
    inner = np.vstack([half[loose], belongs.T @ half])
    # A centroid that few have taken yet stays near those whose nearest it is.
    waiting = np.zeros(centroids.size)
    expected = members[loose]
    np.add.at(waiting, expected[expected >= 0], np.diag(curvature)[loose][expected >= 0])
    own = np.diag(inner) * (1 + damping) + 1e-9 * np.diag(curvature).mean()
    own[loose.size :] += _STIFFNESS * waiting + (1e9 * own.max() if held else 0.0)
    np.fill_diagonal(inner, own)
    inverse = np.linalg.inv(inner)
    values = np.concatenate([found.latent[loose], centroids])
    values -= inverse @ np.concatenate([slope[loose], belongs.T @ slope])
    ends = first[loose] + loose.size, last[loose] + loose.size
    choices = quantization.commit(values, inverse, *ends, worth * found.lengths()[loose], count)

    latent, still, clusters = found.latent.copy(), found.loose.copy(), found.clusters.copy()
    latent[loose], still[loose] = values[: loose.size], choices < 0
    found = replace(found, latent=latent, loose=still).moved(values[loose.size :] - centroids)
    clusters[loose] = np.where(choices < 0, found.nearest()[loose], choices)
    return replace(found, clusters=clusters)


def _changed(
    found: _Assignment, near: _Parabola, worth: float, dice: np.random.Generator, damping: float
) -> _Assignment:
    """The assignment that costs least, clusters and centroids taking turns."""
    slope, bend = near.slope, near.damped(damping)
    for _ in range(_SWEEPS):
        clusters, options = found.clusters.copy(), found.options()
        here = slope + bend @ (found.values() - near.values)
        order = dice.permutation(clusters.size)
        changed = quantization.descend(clusters, options, worth * found.lengths(), here, bend, order)
        found = replace(found, clusters=clusters)
        here = slope + bend @ (found.values() - near.values)
        count = sum(codebook.size for codebook in found.codebooks)
        found = found.moved(quantization.refit(found.members(), count, here, bend))
        if not changed:
            break
    return found


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)
