"""Weight sharing by the curvature of the loss: weights take shared values, and the others make up for it.

The quadratic model of the loss, as in `second_order.pruning`, says what it costs to give a weight the value of a
cluster. Each round assigns the cheapest weights first.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from deepcomp import quantization
from deepcomp.data import DataSet
from deepcomp.errors import RecipeError
from deepcomp.options import Sharing, Training
from deepcomp.second_order.loss import RunningMean, SurvivorLoss, quiet
from deepcomp.second_order.quadratic import (
    FIRST_DAMPING,
    RAMP,
    QuadraticModel,
    RoundHistory,
    check_round,
    check_size,
    write_values,
)
from deepcomp.training import parametrize
from deepcomp.training.losses import Task
from deepcomp.training.parametrize import ParametrizedModel, SharedKernel
from deepcomp.training.predict import predictor
from deepcomp.training.record import progress_bar

_SWEEPS = 10
_WAITING = 0.3  # weight of the curvature of unassigned weights in that of the centroid that is nearest to them
_RUINED = 2.0  # times the loss: the centroids moved where the model does not hold; then none may move


def share(
    network: ParametrizedModel,
    dataset: DataSet,
    options: Sharing,
    *,
    task: Task,
    training: Training,
    history: Mapping[str, list] | None = None,
) -> dict[str, list]:
    """Give each survivor of shared weights the cluster, or none, and each cluster the value, that cost least.

    The cost is the loss plus lambda times the bits of `quantization.code_lengths`; `options.rate_distortion_lambda` is
    in parts of the mean loss of removing one survivor. Each of `options.second_order.rounds` measures gradient and
    curvature. Survivors with latent weights begin at those. Each round gives some of them the values of clusters, the
    cheapest first and fewer from round to round; the unassigned weights and the centroids make up for it. In the last
    fifth of the rounds, or without latent weights in all, survivors change clusters, and a round that costs more than
    it saves is undone. The number of clusters never grows, and what is not shared stays as it is. `training`, `task`,
    what is returned and what is raised are as for `second_order.pruning.prune`; `RecipeError` also where nothing is
    left.
    """
    record, rounds = RoundHistory(history), options.second_order.rounds
    if not rounds:
        return record.entries
    found = _Assignment.of(network)
    if not found.clusters.size:
        raise RecipeError("second_order_rounds have nothing to assign: no weight is shared, or none is left.")
    check_size(found.clusters.size)
    network.write_back()
    variables = parametrize.shareable(network.model)
    places = {name: (variables[name], made.positions) for name, made in network.shared.items()}
    losses = SurvivorLoss(network.model, places, dataset, task, training)
    # Before training, the latent weights have the lower loss; after it, the shared values have.
    if losses.loss(found.values())[0] >= losses.loss(found.assigned().values())[0]:
        found = found.assigned()
    rng, measured, damping, bit_cost = np.random.default_rng(training.seed), RunningMean(), FIRST_DAMPING, 0.0
    ramp, first = math.ceil(RAMP * rounds), np.count_nonzero(found.unassigned)
    predict = predictor(network.model, scale=bool(dataset.scale))
    with quiet(), progress_bar("curvature", 0, rounds, unit="round", shown=training.verbose) as bar:
        for number in range(rounds):
            losses.draw_sample(number)
            values = found.values()
            loss, accuracy = losses.loss(values)
            curvature = measured.add(losses.curvature(values, rng))
            near = QuadraticModel(values, loss, losses.gradient(values), curvature)
            if number == 0:
                bit_cost = options.rate_distortion_lambda * float(np.mean(0.5 * np.diag(curvature) * values**2))
            unassigned = np.count_nonzero(found.unassigned)
            if unassigned:
                count = unassigned - int(first * (1 - min(number + 1, ramp) / ramp) ** 2)
                make = partial(_with_more_assigned, found, near, bit_cost, count)
            else:
                make = partial(_with_clusters_changed, found, near, bit_cost, rng)
            trial = near.best_trial(losses, make, _Assignment.values, damping) if near.finite else None
            if unassigned and near.finite and (trial is None or trial.loss > _RUINED * loss):
                fixed = near.best_trial(losses, partial(make, fixed=True), _Assignment.values, damping)
                trial = min((one for one in (trial, fixed) if one), key=lambda one: one.loss, default=None)
            check_round(near, trial, number)
            damping = trial.damping
            if unassigned or trial.loss + bit_cost * trial.result.bits() < loss + bit_cost * found.bits():
                found, loss, accuracy = trial[:3]
            write_values(places, found.values())
            record.add(loss, accuracy, task, predict, dataset)
            bar.set_postfix(**record.last(), left=int(np.count_nonzero(found.values())), refresh=False)
            bar.update()
    found.write(network)
    return record.entries


@dataclass(frozen=True)
class _Assignment:
    """Which cluster each survivor of all shared weights has, `clusters` `int32 (n,)`, 0 for none; their centroids.

    Those that are `unassigned`, `bool (n,)`, have the value of `latent`, `float64 (n,)`, and not yet that of a cluster.
    """

    shared: dict[str, SharedKernel]
    clusters: np.ndarray
    codebooks: tuple[np.ndarray, ...]
    latent: np.ndarray
    unassigned: np.ndarray

    @classmethod
    def of(cls, network: ParametrizedModel) -> "_Assignment":
        """The network's: all unassigned, if all have latent weights."""
        made = network.shared.values()
        clusters = _joined([np.asarray(one.clusters.numpy(), np.int32) for one in made])
        codebooks = tuple(one.codebook() for one in made)
        unassigned = np.full(clusters.size, all(one.weights for one in made))
        latent = np.zeros(clusters.size)
        if unassigned.any():
            latent = _joined([np.asarray(one.weights[0].numpy(), np.float64) for one in made])
        return cls(network.shared, clusters, codebooks, latent, unassigned)

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
        return np.where(self.unassigned, self.latent, own)

    def assigned(self) -> "_Assignment":
        """With no survivor unassigned."""
        return replace(self, unassigned=np.zeros_like(self.unassigned))

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

    def write(self, network: ParametrizedModel) -> None:
        """Put it into the network."""
        for name, clusters, codebook in zip(self.shared, self.parts(self.clusters), self.codebooks, strict=True):
            network.shared[name].assign(clusters, codebook)

    def _sizes(self):
        return zip(self.names.values(), self.codebooks, strict=True)

    def _table(self, parts: list[np.ndarray], filler: float) -> np.ndarray:
        width = max(part.shape[1] for part in parts)
        return np.vstack([np.pad(p, ((0, 0), (0, width - p.shape[1])), constant_values=filler) for p in parts])


def _with_more_assigned(
    found: _Assignment, near: QuadraticModel, bit_cost: float, count: int, damping: float, fixed: bool = False
) -> _Assignment:
    """The assignment in which `count` more survivors have the values of clusters: those that cost least.

    With `fixed` no centroid moves.
    """
    gradient, curvature = near.gradient, near.curvature
    free, (first, last) = np.flatnonzero(found.unassigned), found.ranges()
    members, centroids = found.members(), np.concatenate(found.codebooks)
    # Unassigned weights move one by one, the others with their centroids.
    belongs = (np.where(found.unassigned, -1, members)[:, None] == np.arange(centroids.size)).astype(np.float64)
    half = np.hstack([curvature[:, free], curvature @ belongs])
    inner = np.vstack([half[free], belongs.T @ half])
    # A centroid with few members so far stays near the unassigned weights that are nearest to it.
    waiting = np.zeros(centroids.size)
    expected = members[free]
    np.add.at(waiting, expected[expected >= 0], np.diag(curvature)[free][expected >= 0])
    own = np.diag(inner) * (1 + damping) + 1e-9 * np.diag(curvature).mean()
    own[free.size :] += _WAITING * waiting + (1e9 * own.max() if fixed else 0.0)
    np.fill_diagonal(inner, own)
    inverse = np.linalg.inv(inner)
    values = np.concatenate([found.latent[free], centroids])
    values -= inverse @ np.concatenate([gradient[free], belongs.T @ gradient])
    ends = first[free] + free.size, last[free] + free.size
    choices = quantization.commit(values, inverse, *ends, bit_cost * found.lengths()[free], count)

    latent, still, clusters = found.latent.copy(), found.unassigned.copy(), found.clusters.copy()
    latent[free], still[free] = values[: free.size], choices < 0
    found = replace(found, latent=latent, unassigned=still).moved(values[free.size :] - centroids)
    clusters[free] = np.where(choices < 0, found.nearest()[free], choices)
    return replace(found, clusters=clusters)


def _with_clusters_changed(
    found: _Assignment, near: QuadraticModel, bit_cost: float, rng: np.random.Generator, damping: float
) -> _Assignment:
    """The assignment that costs least, clusters and centroids taking turns."""
    gradient, curvature = near.gradient, near.damped(damping)
    for _ in range(_SWEEPS):
        clusters, options = found.clusters.copy(), found.options()
        here = gradient + curvature @ (found.values() - near.values)
        order = rng.permutation(clusters.size)
        changed = quantization.descend(clusters, options, bit_cost * found.lengths(), here, curvature, order)
        found = replace(found, clusters=clusters)
        here = gradient + curvature @ (found.values() - near.values)
        count = sum(codebook.size for codebook in found.codebooks)
        found = found.moved(quantization.refit(found.members(), count, here, curvature))
        if not changed:
            break
    return found


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.zeros(0)
