"""Rounds of training, each of which brings a network down to a part of its weights, or to a number of bits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from deepcomp import models
from deepcomp import pruning as scoring
from deepcomp.data import Part
from deepcomp.errors import UnsupportedLayerError
from deepcomp.options import Pruning, Schedule, Training
from deepcomp.search.journal import State
from deepcomp.second_order.layerwise import Moved
from deepcomp.training import loop, parametrize
from deepcomp.training.parametrize import ParametrizedModel
from deepcomp.training.record import Record, StateFile
from deepcomp.work import Work

_SALIENT = ("adam", "adamw", "nadam", "rmsprop")  # optimizers that keep squared gradients
# Of the learning rate, for weights that share values: in a round of 1,000 steps, and at most. It rises with the root of
# the steps: the longer a round is, the farther from the full network's weights it can look for better ones.
_SHARED_RATE, _MOST_SHARED_RATE = 0.3, 1.0
_GENTLE_RATE = 0.2  # of that, where a round only changes a trained network a little
_CENTROID_RATE = 0.1  # of that: a centroid moves all its members at once
_FALLING, _SETTLED = 0.6, 0.8  # of the steps: until when the bits fall, and from when on weights keep their values
_MOST_SPARSITY = 0.9999
_CHANGES = 30  # of weights in a round, about
_LEAST_BETWEEN = 10  # steps between two changes
_CHANGE_WORK = 4000  # multiply-adds of training in four times the time in which a weight finds its value


def bits_of(work: Work, state: State) -> float:
    """The bits that the values of a state's kernels take."""
    return _network(work, state).bits()


def density_of(work: Work, state: State) -> float:
    """The part of the weights of a state's kernels that is not zero."""
    return _density(models.kernel_values(state.put_into(work.model)))


def prune(
    work: Work,
    state: State,
    density: float,
    training: Training,
    *,
    checkpoint: StateFile,
    label: str,
    arrived: Callable[[int], None] | None = None,
) -> State:
    """Train a network for `training.steps` while weights go until the part `density` is left; returns its new state.

    Weights are ranked by saliency where the optimizer knows it, else by magnitude. `arrived(step)` is called at each
    change.
    """
    network = parametrize.masked(state.put_into(work.model))
    scores = "saliency" if training.optimizer in _SALIENT else "magnitude"
    schedule, begun = _schedule(training.steps), _density(network.kernels())
    density = min(density, begun)  # What is zero stays zero.

    def change(step: int) -> None:
        sparsity = 1 - begun - (density - begun) * schedule.fraction(step)
        squares = network.squared_gradients() if scores == "saliency" else None
        how = Pruning(sparsity=min(max(0.0, sparsity), _MOST_SPARSITY), scores=scores)
        network.set_masks(scoring.masks(network.kernels(), how, squares=squares))
        if arrived is not None:
            arrived(step)

    steps = range(schedule.every, schedule.end + 1, schedule.every)
    _train(work, network, training, change, [*steps, schedule.end], Record(checkpoint, label=label, transient=True))
    return State.of(network.write_back())


def share(
    work: Work,
    state: State,
    bits: float,
    training: Training,
    *,
    checkpoint: StateFile,
    label: str,
    gently: bool = False,
    arrived: Callable[[int], None] | None = None,
) -> State:
    """Train a network for `training.steps` while its values come to take no more than `bits`; returns its new state.

    First the bits change step by step, then weights still change values at that number of bits, and at last values,
    biases and the like are trained alone. Where a trained network is changed `gently`, learning is slower.
    `arrived(step)` is called at each change.
    """
    network, settled = _network(work, state), int(_SETTLED * training.steps)
    rate = min(_SHARED_RATE * (training.steps / 1000) ** 0.5, _MOST_SHARED_RATE) * (_GENTLE_RATE if gently else 1.0)
    training = replace(training, learning_rate=rate * training.learning_rate)
    schedule = _schedule(training.steps)
    between = min(_between(work, network, training.batch), schedule.every)
    importance = {name: moved.importance for name, moved in state.moved.items()}
    network.anchor(importance)
    begun = max(network.bits(), 1.0)

    def change(step: int) -> None:
        exactly = step % schedule.every == 0 or step == settled
        network.reassign_within(begun * (bits / begun) ** schedule.fraction(step), importance, exactly=exactly)
        if arrived is not None and exactly:
            arrived(step)

    steps = {*range(0, settled, between), *range(0, settled, schedule.every), settled}
    _train(work, network, training, change, sorted(steps), Record(checkpoint, label=label, transient=True))
    moved = {name: Moved(made.latent_kernel(), importance[name]) for name, made in network.shared.items()}
    return State.of(network.write_back(), moved)


def _train(
    work: Work,
    network: ParametrizedModel,
    training: Training,
    change: Callable[[int], None],
    steps: Sequence[int],
    record: Record,
) -> None:
    """Train, with changes at these steps; the held-out examples are for whole rounds."""
    loop.train(
        network,
        replace(work.dataset, validation=Part(None)),
        replace(training, evaluate_every=max(1, training.steps)),
        task=work.required_task("Rounds of training"),
        centroid_learning_rate=_CENTROID_RATE * training.learning_rate,
        update=change,
        update_steps=steps,
        record=record,
    )


def _density(kernels: Mapping[str, np.ndarray]) -> float:
    """The part of all weights that is not zero."""
    return sum(map(np.count_nonzero, kernels.values())) / sum(one.size for one in kernels.values())


def _schedule(steps: int) -> Schedule:
    """When weights are removed or change their values: until most steps are taken."""
    return Schedule(begin=0, end=int(_FALLING * steps), every=max(_LEAST_BETWEEN, steps // _CHANGES))


def _between(work: Work, network: ParametrizedModel, batch: int) -> int:
    """The steps between two changes of values, one if training takes by far the most of the time then.

    The fewer the better: until weights take other values, each moves on by gradients that no longer hold.
    """
    try:
        times = models.multiplications(work.model)
    except UnsupportedLayerError:  # such as recurrent layers, whose steps take long
        return 1
    worked = batch * sum(values.size * times.get(name, 1) for name, values in models.kernel_values(work.model).items())
    movable = sum(made.positions.size for made in network.shared.values() if made.weights)
    return max(1, round(_CHANGE_WORK * movable / worked))


def _network(work: Work, state: State) -> ParametrizedModel:
    """The network of a state, with shared kernels."""
    kernels = models.kernel_values(state.put_into(work.model))
    latent = {name: moved.latent for name, moved in state.moved.items() if kernels[name].any()}
    return parametrize.shared(work.model, latent, latent=latent)
