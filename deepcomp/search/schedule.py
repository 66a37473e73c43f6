"""How a search shares out its time or its steps, and which size it tries next."""

import math
import time
from collections.abc import Sequence

_LEAST_STEP = 0.93  # from one goal to the next
_FASTER, _SLOWER = 1.25, 0.6  # how the step, as a logarithm, changes after success on success, and after a failure
_TURNED = 0.7  # how it changes after success on a failure
_MOST_STEP = 1.0  # of those after the first
# Of bits, as logarithms: what each round of training makes up for, the last number all later ones; the largest step.
_GAINS, _MOST_BITS = (0.2, 0.1, 0.0), 0.22
_FEWEST_STEPS = 50  # of a round
_TRIAL_STEPS = 60  # of the round that says how long a step takes
_KEPT = 0.04  # of the time, for what comes after the last round
_FOR_LAYERS = 0.3  # of the time, at most, before training
# How long the rounds are that share values: two find the network, the others only bring it near to the limit.
_SHARING, _LONG = (3, 6, 1, 1), 2


def next_goal(begin: float, tried: Sequence[bool], first: float) -> float:
    """The size to train at next, from that of the network before training and those of all rounds, in their order.

    first: the first goal, in parts of the size before. tried: whether the result of each round was within the limit.
    Success makes the goal smaller and failure larger, by steps that become larger while the goal is far from the limit,
    and smaller near to it.
    """
    step, before, goal = -math.log(min(first, _LEAST_STEP)), True, begin * first
    for within in tried:
        change = (_FASTER if before else _TURNED) if within else _SLOWER
        step = min(step, _MOST_STEP / change) * change
        goal *= math.exp(-step if within else step)
        before = within
    return goal


def next_bits(bits: float, room: float, slope: float, *, done: int) -> float:
    """The bits that the next round brings a network of so many bits to, so that it is just within the limit.

    room: how far its metric is within the limit, below 0 where it is beyond. slope: how much worse the metric becomes
    without training where the bits become fewer, over the logarithm of their ratio. done: how many rounds have trained
    its values.
    """
    gain = _GAINS[min(done, len(_GAINS) - 1)]
    step = (room / slope if slope > 0 else math.copysign(math.inf, room)) + gain
    return bits * math.exp(-max(-_MOST_BITS, min(_MOST_BITS, step))) if math.isfinite(room) else bits


def part_of_pruning(rounds: int) -> float:
    """The part of the steps left that a round takes, the first of so many left, where it prunes.

    Rounds that prune are equally long, and twice as much is left after them.
    """
    return 1 / (rounds + 1) if rounds > 1 else 1.0


def part_of_sharing(rounds: int, done: int) -> float:
    """The part of the steps left that a round takes, the first of so many left, after others that shared values.

    It is 0 where there is no round to be.
    """
    lengths = _SHARING[done : done + max(rounds, 0)]
    return lengths[0] / sum(lengths) if lengths else 0.0


def is_short(done: int) -> bool:
    """Whether a round, after so many that shared values, only brings a trained network nearer to the limit."""
    return done >= _LONG


class Clock:
    """The time that is left, and the steps of the next round: out of `steps` in all, or of `minutes` if these are 0."""

    def __init__(self, minutes: float, steps: int, rounds: int, spent: float):
        self._end, self.seconds = time.monotonic() + 60 * minutes - spent, 60 * minutes
        self.steps = steps
        self.rounds = min(rounds, max(1, steps // _FEWEST_STEPS - 1)) if steps else rounds
        self._arrivals: list[tuple[int, float]] = []
        self._step_seconds, self._other_seconds = 0.0, 0.0
        self.layer_seconds = 0.0  # that the last candidate without training took

    @property
    def left(self) -> float:
        """The seconds that are left; they do not count where steps are given."""
        return self._end - time.monotonic()

    def allows_layers(self) -> bool:
        """Whether there is time for another candidate without training before training begins."""
        return bool(self.steps) or self.left - self.layer_seconds > (1 - _FOR_LAYERS) * self.seconds

    def allows(self) -> bool:
        """Whether there is time for another candidate without training."""
        return bool(self.steps) or self.left - self.layer_seconds > _KEPT * self.seconds

    def next_steps(self, taken: Sequence[int], part: float) -> int:
        """The steps of the next round, which takes this part of what rounds of `taken` steps left; 0 for none."""
        if self.steps:
            left = self.steps - sum(taken)
            return left if part == 1 else min(left, max(1, int(part * left)))
        if not self._step_seconds:
            return _TRIAL_STEPS if self.allows() else 0
        left = self.left - _KEPT * self.seconds
        for some in (part, 1.0):  # Where there is too little time for several rounds, one takes all of it.
            fit = int((some * left - self._other_seconds) / self._step_seconds)
            if fit >= _FEWEST_STEPS:
                return fit
        return 0

    def was_trial(self, steps: int) -> bool:
        """Whether a round of so many steps was to say how long a step takes."""
        return not self.steps and steps == _TRIAL_STEPS

    @property
    def is_trial(self) -> bool:
        """Whether the next round is to say how long a step takes."""
        return not self.steps and not self._step_seconds

    def begin_round(self) -> None:
        """A round begins."""
        self._arrivals = [(-1, time.monotonic())]

    def arrived(self, step: int) -> None:
        """A step of the round is taken."""
        self._arrivals.append((step, time.monotonic()))

    def end_round(self, steps: int) -> None:
        """A round of so many steps ends: what it took says what the next will take."""
        began, ended = self._arrivals[0][1], time.monotonic()
        if len(self._arrivals) > 2:  # A round that was interrupted may have no change left.
            (first, start), (last, end) = self._arrivals[1], self._arrivals[-1]
            self._step_seconds = (end - start) / (last - first)
            self._other_seconds = max(0.0, ended - began - steps * self._step_seconds)
