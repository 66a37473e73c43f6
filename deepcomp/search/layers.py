"""Candidates without training: all layers compressed one by one, at one price of a bit."""

import math
from collections.abc import Callable
from typing import Any

import keras

from deepcomp import models
from deepcomp.search.journal import State
from deepcomp.second_order import layerwise

_FIRST_LOSS = 0.1  # nats that all bits of a network cost at the first price, at two bits a weight
_FACTOR = 4.0  # between two prices until the limit lies between them
_NEAR_FACTOR = 2.0  # the same, where the first price is that of a similar network
_MOST = 8  # prices until then
_HALVINGS, _NEAR_HALVINGS = 3, 2  # of the distance of the last two


def first_price(model: keras.Model) -> float:
    """The price of a bit to begin with."""
    return _FIRST_LOSS / (2 * sum(values.size for values in models.kernel_values(model).values()))


def search_price(
    first: float, within: Callable[[float], bool], more: Callable[[], bool], *, near: bool = False
) -> None:
    """Try prices until the highest that is `within` the limit is known; `more()` is whether there is time.

    `near`: the first price is that of a similar network.
    """
    highest, lowest, price = 0.0, math.inf, first
    factor, halvings = (_NEAR_FACTOR, _NEAR_HALVINGS) if near else (_FACTOR, _HALVINGS)
    for _ in range(_MOST):
        if not more():
            return
        if within(price):
            highest = max(highest, price)
        else:
            lowest = min(lowest, price)
        if highest and lowest < math.inf:
            break
        price = price * factor if highest else price / factor
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

    def compressed(self, price: float) -> State:
        """The network at a price, in nats of the loss for a bit."""
        moved = layerwise.compress(self._state.put_into(self._copy), self._curvatures, price)
        layerwise.correct(self._copy, self._model, self._inputs)
        return State.of(self._copy, moved)
