"""Pruning and sharing of one layer without training: what a weight loses, the others of its unit make up for.

The loss is the squared change of the layer's outputs on some inputs, a quadratic function of each unit's weights.
Weights take their values one after the other, each that of least loss and bits, and those without one yet move to where
the loss is least. Sources: Optimal Brain Compression (arXiv 2208.11580), GPTQ (arXiv 2210.17323), and CERWU (arXiv
2505.18758), which has a price of bits too.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from deepcomp.compiled import compiled

MOST_INPUTS = 4096  # of a unit, for which one matrix is made; more are taken in parts
_BLOCK = 128  # weights of a unit between two updates of all later ones
_DAMPING = 0.01  # added to the diagonal, in parts of its mean
_LEAST_IMPORTANCE = 1e-3  # of a unit, in parts of the layer's mean
_MOST_VALUES = 127  # on either side of zero
_ROUNDS, _FEWER_ROUNDS = 4, 2  # in each the bits are those of the choices before; fewer for a large layer
_LARGE = 2**32  # multiply-adds of such a round
_SEEN = 0.3  # what each value's count begins at, so that none is impossible
_RIDGE = 1e-9
_MOST_WORK = 2**34  # multiply-adds for the values of a layer
_COLUMNS = 256  # of a product


class Factor(NamedTuple):
    """The order in which weights take their values, most used inputs first, and the upper factor of the inverse."""

    order: np.ndarray
    upper: np.ndarray


class Rounded(NamedTuple):
    """The values of a layer's weights.

    centroids: `float64 (k,)`. choices: `int32 (n, units)`, numbered as in `quantization.codebook`: 0 for a pruned
    weight, i + 1 for centroids[i]. moved: `float64 (n, units)`, what each weight had become to make up for others when
    it took its value. bends: `float64 (n, units)`, half of which its squared error costs, after the others have made up
    for it.
    """

    centroids: np.ndarray
    choices: np.ndarray
    moved: np.ndarray
    bends: np.ndarray


def round_layer(
    weights: np.ndarray,
    groups: Sequence[Sequence[np.ndarray]],
    importance: np.ndarray,
    price: float,
    *,
    factors: Sequence[Factor] | None = None,
) -> Rounded:
    """Give each weight of a layer a shared value, or none.

    weights: `float (n, units)`. groups: for each group of units, all of one size, the mean products of two inputs,
    `float64 (n, n)`, in parts along the diagonal where there are more than `MOST_INPUTS`. importance: `float64
    (units,)`, half of which the squared error of a unit's output costs; price: what a bit costs; factors: those of the
    groups, where they are known. A weight that is zero already stays zero.
    """
    weights = np.asarray(weights, np.float64)
    importance = np.maximum(importance, _LEAST_IMPORTANCE * importance.mean())
    if not importance.max() > 0 or not weights.any():
        return Rounded(np.zeros(0), np.zeros(weights.shape, np.int32), weights, np.zeros(weights.shape))
    blocks = list(_blocks(groups, weights.shape[1]))
    factors = factors_of(groups) if factors is None else factors
    step = _step(weights, factors, float(importance.mean()), price)
    most = min(_MOST_VALUES, math.ceil(np.abs(weights).max() / step))
    values = np.arange(-most, most + 1) * step
    choices = np.clip(np.rint(weights / step), -most, most).astype(np.int64) + most
    moved, bends = weights.copy(), np.zeros(weights.shape)
    for (rows, units, _), (order, factor) in zip(blocks, factors, strict=True):
        bends[rows, units][order] = importance[units] / np.diag(factor)[:, None] ** 2
    for _ in range(_ROUNDS if _work(blocks) < _LARGE else _FEWER_ROUNDS):
        counts = np.bincount(choices.ravel(), minlength=values.size) + _SEEN
        costs = price * -np.log2(counts / counts.sum())
        for (rows, units, _), (order, factor) in zip(blocks, factors, strict=True):
            ordered = np.ascontiguousarray(weights[rows, units][order])
            made, errors = _round(ordered, factor, importance[units], values, costs)
            choices[rows, units][order] = made
            moved[rows, units][order] = values[made] + errors * np.diag(factor)[:, None]
    return Rounded(*_refitted(weights, blocks, importance, values, choices), moved, bends)


def _blocks(groups: Sequence[Sequence[np.ndarray]], units: int) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """The rows, the units and the curvature of each part of each group."""
    per = units // len(groups)
    for number, parts in enumerate(groups):
        first = 0
        for part in parts:
            yield slice(first, first + len(part)), slice(number * per, (number + 1) * per), part
            first += len(part)


def _work(blocks: Sequence[tuple[slice, slice, np.ndarray]]) -> int:
    """The multiply-adds of the products of all curvatures and the weights of their units."""
    return sum((units.stop - units.start) * len(curvature) ** 2 for _, units, curvature in blocks)


def factors_of(groups: Sequence[Sequence[np.ndarray]]) -> list[Factor]:
    """The factors of all parts of all groups, which take most of the time of a large layer."""
    return [_factor(part) for parts in groups for part in parts]


def _factor(curvature: np.ndarray) -> Factor:
    diagonal = np.diag(curvature)
    order = np.argsort(-diagonal, kind="stable")
    damped = curvature[np.ix_(order, order)].astype(np.float64)
    damped[np.diag_indices_from(damped)] += _DAMPING * max(float(diagonal.mean()), 1e-30)
    return Factor(order, np.ascontiguousarray(np.linalg.cholesky(np.linalg.inv(damped)).T))


def _step(weights: np.ndarray, factors: Sequence[Factor], importance: float, price: float) -> float:
    """The distance of two values where one bit more saves as much loss as it costs (Gish and Pierce, 1968)."""
    logarithms = [-2 * np.log(np.diag(factor)) for _, factor in factors]
    bend = importance * math.exp(float(np.mean(np.concatenate(logarithms))))
    largest = float(np.abs(weights).max())
    return max(math.sqrt(12 * price / (math.log(2) * bend)), largest / _MOST_VALUES)


def _round(weights, factor, importance, values, costs) -> tuple[np.ndarray, np.ndarray]:
    """The number of the value that each weight takes, `int64 (n, units)`, and its error in parts of the diagonal."""
    choices, errors, pruned = np.zeros(weights.shape, np.int64), weights.copy(), weights == 0
    for first in range(0, len(weights), _BLOCK):
        last = min(first + _BLOCK, len(weights))
        some, own = slice(first, last), factor[first:last, first:last]
        _round_block(errors[some], pruned[some], own, importance, values, costs, choices[some])
        errors[last:] -= factor[first:last, last:].T @ errors[first:last]
    return choices, errors


@compiled()
def _round_block(weights, pruned, factor, importance, values, costs, choices):
    """Round some weights of all units in place of which their errors stay, in parts of the factor's diagonal."""
    count, units = weights.shape
    step = values[1] - values[0]
    middle = values.size // 2
    for i in range(count):
        diagonal = factor[i, i]
        for unit in range(units):
            weight, bend = weights[i, unit], 0.5 * importance[unit] / diagonal**2
            nearest = min(max(int(np.rint(weight / step)) + middle, 0), values.size - 1)
            # A value further away than the nearest one is worth it only towards zero, where bits are few.
            low, high = (middle, nearest) if nearest >= middle else (nearest, middle)
            best, least = nearest, np.inf
            if pruned[i, unit]:
                low, high = middle, middle
            for value in range(low, high + 1):
                cost = bend * (weight - values[value]) ** 2 + costs[value]
                if cost < least:
                    best, least = value, cost
            choices[i, unit] = best
            weights[i, unit] = (weight - values[best]) / diagonal
        for row in range(i + 1, count):
            share = factor[i, row]
            for unit in range(units):
                weights[row, unit] -= share * weights[i, unit]


def _refitted(weights, blocks, importance, values, choices) -> tuple[np.ndarray, np.ndarray]:
    """The values moved to where the loss is least, and the choices among those that are used."""
    zero = values.size // 2
    used = np.setdiff1d(np.unique(choices), [zero])
    inner, outer = np.zeros((used.size, used.size)), np.zeros(used.size)
    every = max(1, used.size * _work(blocks) // _MOST_WORK)  # of the units, where all would take long
    together = -(-_COLUMNS // max(1, used.size))  # units: one product of many columns is faster than many of few
    for rows, units, curvature in blocks:
        some = np.arange(units.start, units.stop, every)
        for part in np.array_split(some, -(-some.size // together)):
            belongs = (choices[rows, part, None] == used).astype(np.float64)
            bent = (curvature @ belongs.reshape(len(belongs), -1)).reshape(belongs.shape)
            for number, unit in enumerate(part):
                inner += importance[unit] * (belongs[:, number].T @ bent[:, number])
                outer += importance[unit] * (bent[:, number].T @ weights[rows, unit])
    inner[np.diag_indices_from(inner)] += _RIDGE * max(float(np.trace(inner)), 1e-30) / max(1, used.size)
    fitted = np.linalg.solve(inner, outer)
    numbers = np.zeros(values.size, np.int32)
    # A value that would change its sign stays.
    fitted = np.where(np.sign(fitted) == np.sign(values[used]), fitted, values[used])
    order = np.argsort(fitted, kind="stable")
    numbers[used[order]] = np.arange(1, used.size + 1)
    return fitted[order], numbers[choices]
