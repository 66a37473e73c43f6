"""A quadratic model of the loss near some weights, and steps that are tried with more and more damping."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from deepcomp.data import DataSet
from deepcomp.errors import RecipeError
from deepcomp.second_order.loss import Places, SurvivorLoss
from deepcomp.training.losses import Task

MAX_SURVIVORS = 20_000  # whose matrix takes 3 GB, and as much again while it is in use
RAMP = 0.8  # the part of the rounds in which weights are pruned or assigned; later rounds adjust what is left
FIRST_DAMPING = 0.2

_LEAST_DAMPING, _TRIES = 0.01, 4
_TOLERANCE = 0.1  # of the loss: how far a trial may be above the prediction of the model


class Trial(NamedTuple):
    """What was tried, its loss and accuracy, and the damping to begin the next round with."""

    result: Any
    loss: float
    accuracy: float
    damping: float


class QuadraticModel(NamedTuple):
    """The loss near `values`, by its gradient and curvature: `float64 (n,)`, `(n,)` and `(n, n)`."""

    values: np.ndarray
    loss: float
    gradient: np.ndarray
    curvature: np.ndarray

    @property
    def finite(self) -> bool:
        """Whether every number of the model is finite."""
        numbers = self.loss, self.gradient.sum(), self.curvature.sum()
        return bool(np.isfinite(numbers).all())

    def predicted(self, values: np.ndarray) -> float:
        """The loss at other values."""
        move = values - self.values
        return float(self.loss + self.gradient @ move + 0.5 * move @ self.curvature @ move)

    def damped(self, damping: float) -> np.ndarray:
        """The curvature with `damping` times its own diagonal added: far from `values` the model does not hold."""
        curvature = self.curvature.copy()
        own = np.diag(curvature)
        np.fill_diagonal(curvature, own * (1 + damping) + 1e-9 * own.mean())
        return curvature

    def best_trial(
        self,
        losses: SurvivorLoss,
        make: Callable[[float], Any],
        values_of: Callable[[Any], np.ndarray],
        damping: float,
    ) -> Trial | None:
        """Of what `make(damping)` gives with more and more damping, the first whose loss is about as predicted.

        Where none is, the one of least loss; None where every matrix is singular or every loss not finite.
        """
        best: Trial | None = None
        for _ in range(_TRIES):
            try:
                result = make(damping)
            except np.linalg.LinAlgError:
                damping = 4 * damping
                continue
            values = values_of(result)
            if not np.isfinite(values).all():
                damping = 4 * damping
                continue
            loss, accuracy = losses.loss(values)
            if np.isfinite(loss) and (best is None or loss < best.loss):
                best = Trial(result, loss, accuracy, damping)
            if loss <= self.predicted(values) + _TOLERANCE * self.loss and best is not None:
                return best._replace(damping=max(damping / 2, _LEAST_DAMPING))
            damping *= 4
        return best


class RoundHistory:
    """A history of `loop.train` that goes on, a step for each round."""

    def __init__(self, before: Mapping[str, list] | None):
        keys = "step", "loss", "accuracy", "validation_accuracy"
        self.entries = {key: list(before[key]) if before else [] for key in keys}

    def add(self, loss: float, accuracy: float, task: Task, predict: Callable, dataset: DataSet) -> None:
        """Note what a round reached."""
        step = self.entries["step"][-1] + 1 if self.entries["step"] else 1
        held = task.measured(predict, dataset.validation)["accuracy"] if len(dataset.validation) else None
        for key, value in zip(self.entries, (step, loss, accuracy, held), strict=True):
            self.entries[key].append(value)

    def last(self) -> dict[str, str]:
        """Loss and accuracy of the last round, for a progress bar."""
        return {key: f"{self.entries[key][-1]:.4f}" for key in ("loss", "accuracy")}


def check_size(count: int) -> None:
    """Raise `RecipeError` for more weights than a matrix of them fits into memory."""
    if count > MAX_SURVIVORS:
        raise RecipeError(
            f"second_order_rounds take at most {MAX_SURVIVORS:,} weights, with their biases, and {count:,} are left: "
            "prune more before, or train alone with second_order_rounds=0."
        )


def check_round(model: QuadraticModel, trial: Trial | None, number: int) -> None:
    """Raise `RecipeError`, naming the round, where the loss or its derivatives are not finite, or no trial worked."""
    if not model.finite:
        raise RecipeError(
            f"Round {number + 1} by curvature: loss, gradient or curvature is not finite (loss {model.loss:g}): train "
            "with a lower learning rate before, or use fewer rounds. The network is as it was before the round."
        )
    if trial is None:
        raise RecipeError(
            f"Round {number + 1} by curvature: the curvature stays singular, or the loss not finite, with all damping: "
            "use fewer rounds, or prune less in them. The network is as it was before the round."
        )


def write_values(places: Places, values: np.ndarray) -> None:
    """Write a vector of weights into the variables that it was read from."""
    ends = np.cumsum([own.size for _, own in places.values()])
    for (variable, own), part in zip(places.values(), np.split(values, ends[:-1]), strict=True):
        whole = np.array(variable.numpy())
        np.put(whole, own, part)
        variable.assign(whole)
