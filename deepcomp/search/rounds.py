"""Rounds of training, each of which brings a network down to a number of bits."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from deepcomp import models
from deepcomp.data import Part
from deepcomp.options import Schedule, Training
from deepcomp.search.journal import State
from deepcomp.second_order.layerwise import Moved
from deepcomp.training import loop, parametrize
from deepcomp.training.parametrize import ParametrizedModel
from deepcomp.training.record import Record, StateFile
from deepcomp.work import Work

_CENTROID_RATE = 0.1  # of the learning rate: a centroid moves all its members at once
_FALLING, _SETTLED = 0.6, 0.8  # of the steps: until when the bits fall, and from when on weights keep their values
_CHANGES = 200  # times that weights change values in a round
_LEAST_BETWEEN = 10  # steps between two changes


def bits_of(work: Work, state: State) -> float:
    """The bits that the values of a state's kernels take."""
    return _network(work, state).bits()


def train(
    work: Work,
    state: State,
    bits: float,
    training: Training,
    *,
    checkpoint: StateFile,
    label: str,
    arrived: Callable[[int], None] | None = None,
) -> State:
    """Train a network for `training.steps` while its values come to take no more than `bits`; returns its new state.

    First the bits change step by step, then weights still change values at that number of bits, and at last values,
    biases and the like are trained alone. `arrived(step)` is called at each change.
    """
    network = _network(work, state)
    settled = int(_SETTLED * training.steps)
    schedule = Schedule(begin=0, end=int(_FALLING * training.steps), every=max(_LEAST_BETWEEN, settled // _CHANGES))
    importance = {name: moved.importance for name, moved in state.moved.items()}
    begun = max(network.bits(), 1.0)

    def change(step: int) -> None:
        network.reassign_within(begun * (bits / begun) ** schedule.fraction(step), importance)
        if arrived is not None:
            arrived(step)

    loop.train(
        network,
        replace(work.dataset, validation=Part(None)),
        replace(training, evaluate_every=max(1, training.steps)),
        task=work.required_task("Rounds of training"),
        centroid_learning_rate=_CENTROID_RATE * training.learning_rate,
        update=change,
        update_steps=range(0, settled + 1, schedule.every),
        record=Record(checkpoint=checkpoint, label=label, transient=True),
    )
    moved = {name: Moved(made.latent_kernel(), importance[name]) for name, made in network.shared.items()}
    network.write_back()
    return State([np.asarray(v.numpy()) for v in work.model.variables], moved)


def _network(work: Work, state: State) -> ParametrizedModel:
    """The network of a state, with shared kernels."""
    for variable, values in zip(work.model.variables, state.weights, strict=True):
        variable.assign(values)
    kernels = models.kernel_values(work.model)
    latent = {name: moved.latent for name, moved in state.moved.items() if kernels[name].any()}
    return parametrize.shared(work.model, latent, latent=latent)
