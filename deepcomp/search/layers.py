"""Candidates without training: all layers compressed one by one, at one price of a bit."""

import math
from collections.abc import Callable

import keras
import numpy as np

from deepcomp import models
from deepcomp.search.journal import State
from deepcomp.second_order import layerwise

_FIRST_LOSS = 0.1  # nats that all bits of a network cost at the first price, at two bits a weight
_FACTOR = 4.0  # between two prices until the limit lies between them
_MOST = 8  # prices until then
_HALVINGS = 3  # of the distance of the last two


def first_price(model: keras.Model) -> float:
    """The price of a bit to begin with."""
    return _FIRST_LOSS / (2 * sum(values.size for values in models.kernel_values(model).values()))


def search_price(first: float, within: Callable[[float], bool], more: Callable[[], bool]) -> None:
    """Try prices until the highest that is `within` the limit is known; `more()` is whether there is time."""
    highest, lowest, price = 0.0, math.inf, first
    for _ in range(_MOST):
        if not more():
            return
        if within(price):
            highest = max(highest, price)
        else:
            lowest = min(lowest, price)
        if highest and lowest < math.inf:
            break
        price = price * _FACTOR if highest else price / _FACTOR
    for _ in range(_HALVINGS if highest and lowest < math.inf else 0):
        if not more():
            return
        price = math.sqrt(highest * lowest)
        if within(price):
            highest = price
        else:
            lowest = price


def compressed(
    source: keras.Model, curvatures: dict[str, layerwise.Curvature], price: float, inputs: object, copy: keras.Model
) -> State:
    """A network compressed at a price; `copy` is a copy of the source, whose weights are changed."""
    for variable, own in zip(copy.variables, source.variables, strict=True):
        variable.assign(own.value)
    moved = layerwise.compress(copy, curvatures, price)
    layerwise.correct(copy, source, inputs)
    return State([np.asarray(v.numpy()) for v in copy.variables], moved)
