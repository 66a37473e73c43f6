"""The limit that a search keeps to: which metric, which way is better, and how far it may fall."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from deepcomp.data import Part, Stream, leaves
from deepcomp.errors import RecipeError
from deepcomp.options import Search

# Parts of the names of metrics that are better the higher they are; others are errors and losses.
_RISING = ("acc", "auc", "precision", "recall", "iou", "f1", "fbeta", "r2", "cosine", "agreement", "dice", "score")
_RISING += ("sensitivity", "specificity", "positives", "negatives")
_POINTS, _PERCENT = 0.5, 5.0  # that a network may lose before it is trained
_FALLING = ("false_positives", "false_negatives")


@dataclass(frozen=True)
class Limit:
    """The least, or for a metric that is better the lower it is the most, that a metric may be.

    `tolerance` is in percentage points of a metric that rises, and else in percent of that of the full network, `full`.
    """

    metric: str
    rises: bool
    full: float
    tolerance: float

    @property
    def bound(self) -> float:
        """The limit itself."""
        if self.rises:
            return self.full - self.tolerance / 100
        return self.full + self.tolerance / 100 * abs(self.full)

    def room(self, value: float, error: float = 0.0, margin: float = 0.0) -> float:
        """How far a metric, were it worse by `margin` standard errors, is within the limit; below 0 where beyond."""
        return (value - self.bound if self.rises else self.bound - value) - (margin * error if margin else 0.0)

    def allows(self, value: float, error: float = 0.0, margin: float = 0.0) -> bool:
        """Whether a metric, were it worse by `margin` standard errors, is within the limit; rounding is no loss."""
        rounding = 1e-9 + 1e-6 * abs(self.full) * (not self.rises)
        return self.room(value, error, margin) >= -rounding

    def loosened(self, part: float = 1.0) -> "Limit":
        """The limit with the tolerance, or a part of it, that training makes up for."""
        return replace(self, tolerance=self.tolerance + part * (_POINTS if self.rises else _PERCENT))

    def shown(self, value: float) -> str:
        """The value for people: percent where the metric rises, else the number."""
        return f"{100 * value:.2f}%" if self.rises else f"{value:.4g}"

    def __str__(self) -> str:
        side = "at least" if self.rises else "at most"
        return f"{self.metric} {side} {self.shown(self.bound)} (the full network's {self.shown(self.full)})"


def limit_of(measures: Mapping[str, float], search: Search, tolerance: float) -> Limit:
    """The limit, from the measures of the full network. Raises `RecipeError` for a metric that there is not."""
    name = search.metric or next(iter(measures))
    if name not in measures:
        raise RecipeError(f"metric={search.metric!r}: the network is measured by {', '.join(measures)}.")
    if not math.isfinite(measures[name]):
        raise RecipeError(f"The full network's {name} is {measures[name]}: there is nothing to compare with.")
    return Limit(name, rises(name) if search.rises is None else search.rises, measures[name], tolerance)


def rises(metric: str) -> bool:
    """Whether a metric is better the higher it is, by its name."""
    name = metric.lower()
    return any(part in name for part in _RISING) and not any(part in name for part in _FALLING)


class Agreement:
    """A task without labels: how far a network puts out what the full network does.

    For class scores `(N, classes)` that is the fraction of examples whose largest output is the same; for other outputs
    the part of their variance that is the same: 1 - mean squared difference / variance.
    """

    measures = ("agreement",)
    description = "none: judged by agreement with the full network"

    def __init__(self, predict: Callable[[Any], Any]):
        self._predict = predict

    def measured(self, predict: Callable[[Any], Any], part: Part | Stream) -> dict[str, float]:
        """The agreement over all examples."""
        found = [self._of(leaves(self._predict(one.x)), leaves(predict(one.x))) for one in part.pieces(500)]
        counts, sums = np.array(found, np.float64).sum(axis=0)
        return {"agreement": float(sums / max(counts, 1e-30))}

    def _of(self, expected: list[np.ndarray], outputs: list[np.ndarray]) -> tuple[float, float]:
        if is_scores(expected):
            same = np.argmax(expected[0], axis=1) == np.argmax(outputs[0], axis=1)
            return len(same), float(same.sum())
        whole = sum(float(np.sum((one - one.mean(axis=0)) ** 2, dtype=np.float64)) for one in expected)
        lost = sum(float(np.sum((a - b) ** 2, dtype=np.float64)) for a, b in zip(expected, outputs, strict=True))
        return whole, whole - lost


def is_scores(outputs: list[np.ndarray]) -> bool:
    """Whether outputs look like scores of classes: one array `(N, classes)` of three classes or more."""
    return len(outputs) == 1 and outputs[0].ndim == 2 and outputs[0].shape[1] >= 3
