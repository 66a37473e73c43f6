"""Candidates without training: all layers compressed one by one, at one price of a bit."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from deepcomp import models
from deepcomp.search.journal import State
from deepcomp.second_order import layerwise

_BITS = 8  # of a weight that is just worth its bits
_LEAST_PRICE = 1e-30  # nats
_FACTOR = 4.0  # between two prices until the limit lies between them
_MOST = 8  # prices until then
_HALVINGS = 3


def search_price(
    first: float,
    within: Callable[[float], bool],
    more: Callable[[], bool],
    *,
    halvings: int = _HALVINGS,
    most: int = _MOST,
) -> None:
    """Try prices until the highest that is `within` the limit is known; `more()` is whether there is time.

    most: how many prices are tried until some are within and some beyond the limit. halvings: how often the distance
    between a price within and one beyond, as logarithms, is halved after that.
    """
    highest, lowest, price = 0.0, math.inf, first
    for _ in range(most):
        if not more():
            return
        if within(price):
            highest = max(highest, price)
        else:
            lowest = min(lowest, price)
        if highest and lowest < math.inf:
            break
        price = price * _FACTOR if highest else price / _FACTOR
    for _ in range(halvings if highest and lowest < math.inf else 0):
        if not more():
            return
        price = math.sqrt(highest * lowest)
        if within(price):
            highest = price
        else:
            lowest = price


class LayerCompressor:
    """Compresses the layers of a network, which stays as it is, at one price of a bit after another.

    Arguments are those of `layerwise.measure`.
    """

    def __init__(self, model: keras.Model, inputs: Any, *, classes: bool, seed: int):
        self._model, self._inputs = model, inputs
        self._state, self._copy = State.of(model), models.clone(model)
        self._curvatures = layerwise.measure(model, inputs, classes=classes, seed=seed)

    def first_price(self, removed: float) -> float:
        """The price of a bit at which about this part of the weights is removed."""
        kernels = models.kernel_values(self._state.put_into(self._copy))
        found = np.concatenate([self._curvatures[name].saliencies(one).ravel() for name, one in kernels.items()])
        return max(float(np.quantile(found[found > 0], removed)) if found.any() else 0.0, _LEAST_PRICE) / _BITS

    def compressed(self, price: float) -> State:
        """The network at a price, in nats of the loss for a bit."""
        moved = layerwise.compress(self._state.put_into(self._copy), self._curvatures, price)
        layerwise.correct(self._copy, self._model, self._inputs)
        return State.of(self._copy, moved)
