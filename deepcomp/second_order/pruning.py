"""Pruning by the curvature of the loss: what goes is what the other weights can best make up for.

Near where it is, the loss is about a quadratic function of the weights that are left. What is lost with a weight that
goes the others can then make up for, as in Optimal Brain Surgeon (Hassibi and Stork, NIPS 1992), and a few thousand
weights are adjusted in seconds; the quadratic model is measured anew for each round.
"""

import math
from collections.abc import Mapping
from functools import partial

import keras
import numpy as np

from deepcomp import models, pruning
from deepcomp.data import DataSet
from deepcomp.options import SecondOrderPruning, Training
from deepcomp.second_order.loss import Places, RunningMean, SurvivorLoss, quiet
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
from deepcomp.training.predict import predictor
from deepcomp.training.record import progress_bar


def prune(
    model: keras.Model,
    dataset: DataSet,
    options: SecondOrderPruning,
    *,
    task: Task,
    training: Training,
    history: Mapping[str, list] | None = None,
) -> dict[str, list]:
    """Prune the kernels of `model`, all together, on to `options.sparsity`.

    In each round gradient and curvature of the loss are measured, some weights go, fewer and fewer, and all others,
    biases too, move to where the loss is least; in the last fifth of the rounds none goes. Seed, shift and what is
    learned are those of `training` and `task`. Returns the `history` of `loop.train` with an entry more for each round,
    a step each; loss and accuracy are those on the round's own images. The same input gives the same result on one
    machine. Raises `RecipeError` for more than 20,000 weights that are left, a task that is no classification, or a
    loss that is not finite.
    """
    record, rounds = RoundHistory(history), options.rounds
    if not rounds:
        return record.entries
    kernels = models.kernels(model)
    whole = sum(math.prod(kernel.shape) for kernel in kernels.values())
    first = sum(int(np.count_nonzero(kernel.numpy())) for kernel in kernels.values())
    goal = max(1, whole - int(whole * options.sparsity + 1e-9))
    rng, measured, damping = np.random.default_rng(training.seed), RunningMean(), FIRST_DAMPING
    ramp = math.ceil(RAMP * rounds)
    predict = predictor(model, scale=bool(dataset.scale))
    with quiet(), progress_bar("curvature", 0, rounds, unit="round", shown=training.verbose) as bar:
        for number in range(rounds):
            places = _survivors(model)
            check_size(sum(own.size for _, own in places.values()))
            losses = SurvivorLoss(model, places, dataset, task, training)
            losses.draw_sample(number)
            values = np.concatenate([variable.numpy().ravel()[own] for variable, own in places.values()])
            values = values.astype(np.float64)
            removable = np.repeat([name in kernels for name in places], [own.size for _, own in places.values()])
            ahead = (1 - min(number + 1, ramp) / ramp) ** 2
            count = max(0, np.count_nonzero(removable) - goal - int(max(0, first - goal) * ahead))
            loss, accuracy = losses.loss(values)
            curvature = measured.add(losses.curvature(values, rng))
            near = QuadraticModel(values, loss, losses.gradient(values), curvature)
            trial = None
            if near.finite:
                trial = near.best_trial(losses, partial(_without, near, removable, count), np.asarray, damping)
            check_round(near, trial, number)
            damping = trial.damping
            if count or trial.loss < loss:
                values, loss, accuracy = trial[:3]
            write_values(places, values)
            measured.keep(np.float32(values) != 0)
            record.add(loss, accuracy, task, predict, dataset)
            bar.set_postfix(**record.last(), left=int(np.count_nonzero(values[removable])), refresh=False)
            bar.update()
    return record.entries


def _survivors(model: keras.Model) -> Places:
    """The kernels and biases of a model, by name, and where each is not zero."""
    named = parametrize.shareable(model)
    return {name: (variable, np.flatnonzero(variable.numpy())) for name, variable in named.items()}


def _without(near: QuadraticModel, removable: np.ndarray, count: int, damping: float) -> np.ndarray:
    """The values in which `count` fewer weights are left, without those that cost least."""
    return pruning.surgery(near.values, near.gradient, near.damped(damping), removable, count)
