"""Codes candidates into the bytes of their files, and measures them on held-out examples."""

import zlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from deepcomp import models
from deepcomp.data import DataSet, Part
from deepcomp.dcz import container, conversion
from deepcomp.dcz.conversion import weights as conversion_of_weights
from deepcomp.search.journal import State
from deepcomp.training.predict import is_constant, predictor

_FOLDS = 20  # of the held-out examples, whose differences say how far sampling moves the metric


class Judge:
    """Judges states of networks of one architecture.

    One copy of the network holds the state that is judged, so that its graph is made once.
    """

    def __init__(self, model: keras.Model, dataset: DataSet, task: Any, *, keep_frozen: bool, inputs: Any = None):
        self.task, self.held = task, dataset.validation
        self._unscaled, self._keep_frozen = dataset.scale is False, keep_frozen
        self._probe = models.clone(model, inputs=inputs)
        self._predict = predictor(self._probe, scale=bool(dataset.scale))
        self.obstacles = conversion.check(model)

    def judged(self, state: State, *, as_it_is: bool = False) -> tuple[bytes, dict[str, float]]:
        """The file of the network in this state, and its measures on the held-out examples.

        Batch normalization is folded first, unless the network is to be coded `as_it_is`.
        """
        model = self._taken(state, as_it_is)
        return self._coded(model), self.task.measured(self._predict, self.held)

    def is_dead(self) -> bool:
        """Whether the network judged last puts out the same for every example."""
        return is_constant(self._predict, self.held)

    def measured(self, state: State, part: Part, *, as_it_is: bool) -> dict[str, float]:
        """The measures of the network in this state on other examples."""
        self._taken(state, as_it_is)
        return self.task.measured(self._predict, part)

    def network(self, state: State, *, as_it_is: bool) -> keras.Model:
        """The network of the file of this state, as a model of its own."""
        model = self._taken(state, as_it_is)
        return model if model is not self._probe else models.clone(self._probe)

    def folds(self, metric: str) -> np.ndarray:
        """A metric of the network judged last, on each of some parts of the held-out examples."""
        count = min(_FOLDS, len(self.held))
        parts = [self.held.take(slice(number, None, count)) for number in range(count)]
        return np.array([self.task.measured(self._predict, part)[metric] for part in parts])

    def _taken(self, state: State, as_it_is: bool) -> keras.Model:
        """The network in this state, as it is coded."""
        state.put_into(self._probe)
        if as_it_is or self.obstacles:
            return self._probe
        conversion.fold_normalization(self._probe, keep_frozen=self._keep_frozen)
        model, _ = conversion.without_unused_neurons(self._probe)
        conversion.order_neurons(model)
        return model

    def _coded(self, model: keras.Model) -> bytes:
        if self.obstacles:  # No file holds the network: it holds the weights alone.
            return container.dumps(conversion_of_weights.weights_of(model))
        network = conversion.from_keras(model)
        return container.dumps(conversion.with_unscaled_inputs(network) if self._unscaled else network)


def standard_error(differences: np.ndarray) -> float:
    """That of the mean of some differences; those that are no number, as of a fold without a class, do not count."""
    differences = differences[np.isfinite(differences)]
    return float(differences.std(ddof=1)) / differences.size**0.5 if differences.size > 1 else float("inf")


def checksum(arrays: Sequence[np.ndarray]) -> int:
    """A number that tells arrays apart: the CRC-32 of their bytes."""
    found = 0
    for array in arrays:
        found = zlib.crc32(np.ascontiguousarray(array).tobytes(), found)
    return found
