"""Plans the rounds of a search: which network is trained next, how, for how long and to which size."""

import math
from dataclasses import replace
from typing import Any

import numpy as np

from deepcomp.options import Search
from deepcomp.search import rounds
from deepcomp.search.journal import LAYERS, PRUNED, SHARED, Candidate, Journal
from deepcomp.search.limit import Limit
from deepcomp.search.schedule import Clock, is_short, next_bits, next_goal, part_of_pruning, part_of_sharing
from deepcomp.work import Work

_PRUNING = 0.5  # of the rounds, at most
_FAILURES = 2  # of rounds that prune, at most
_PRUNING_LOSS = 0.5  # of the tolerance, at most, is for pruning
_LUCK = 1.0  # standard errors, by which a pruned network may seem worse: it is measured again after what follows
_TRIAL_DENSITY = 0.9  # of the round that says how long a step takes
_REDUNDANT = 0.3  # part of the weights: training prunes networks that keep fewer without it
_NEAR = 3.0  # times what training makes up for: candidates so far from the limit say how fast the metric falls
_FIRST_DENSITY = 0.5  # the first goal, in parts of the weights that are left without training


class Planner:
    """Knows what the candidates of a search mean for those that come next."""

    def __init__(self, work: Work, search: Search, journal: Journal, limit: Limit, clock: Clock):
        self._work, self._search, self._journal, self._limit, self._clock = work, search, journal, limit, clock

    def next_round(self) -> dict[str, Any]:
        """The next round: its kind, number, steps and goal, and the candidate it goes on from; nothing at the end."""
        done, has_pruned = [one for one in self._journal.candidates if one.steps], self.has_pruned()
        shared, tried = self._rounds(SHARED), self._successes()
        left = self._clock.rounds - len(shared) - len(tried)
        part = part_of_sharing(left, len(shared)) if has_pruned else part_of_pruning(left)
        steps = self._clock.next_steps([one.steps for one in done], part) if part else 0
        if not steps:
            return {}
        found = {"number": len(done) + 1, "steps": steps}
        if not has_pruned:
            first = self._search.density or _FIRST_DENSITY * self._density()
            goal = _TRIAL_DENSITY if self._clock.is_trial else next_goal(1.0, tried, first)
            return {**found, "how": PRUNED, "goal": goal, "source": self.base().number}
        start = self.start()
        if start.how != LAYERS:  # There was no time for one.
            return {}
        last = self._last_shared() or start
        bits = begun = rounds.bits_of(self._work, self._journal.state(last))
        if not self._clock.is_trial:
            room = self._limit.room(last.metric, last.error, self._search.margin)
            bits = next_bits(bits, room, self._slope(start), done=len(shared))
        gently = is_short(len(shared))
        if bits > begun and shared and not gently:  # Values that were too few do not become good by more of them.
            last = start
            bits = min(bits, rounds.bits_of(self._work, self._journal.state(last)))
        too_few = [one.goal for one in shared if not one.within and one.number > last.number]
        if bits < max(too_few, default=0.0) < begun:
            bits = math.sqrt(begun * max(too_few))
        return {**found, "how": SHARED, "goal": bits, "source": last.number, "gently": gently}

    def base(self) -> Candidate:
        """The candidate that is pruned further: the sparsest that leaves room, or else the full network."""
        return self._sparsest(_PRUNING_LOSS, _LUCK) or self._journal.candidates[0]

    def pruned(self) -> Candidate:
        """The candidate whose layers are compressed once pruning has ended.

        It is the sparsest that leaves room, else the sparsest within the limit, else the full network.
        """
        return self._sparsest(_PRUNING_LOSS, _LUCK) or self._sparsest(1.0, _LUCK) or self._journal.candidates[0]

    def result_of_pruning(self) -> Candidate:
        """The sparsest candidate within the limit, by pruning alone."""
        return self._sparsest(1.0, 0.0) or self._journal.candidates[0]

    def start(self) -> Candidate:
        """The candidate whose values are trained: the smallest that is within the limit or that training can bring so.

        Where there is none, it is the smallest within the limit.
        """
        able = [one for one in self._journal.of(LAYERS) if self._limit.loosened().allows(one.metric)]
        return min(able, key=lambda one: one.bytes, default=self._journal.smallest)

    def _last_shared(self) -> Candidate | None:
        """The candidate of shared values to go on from: the last, but in short rounds the smallest within the limit."""
        shared = self._rounds(SHARED)
        within = [one for one in shared if one.within]
        if is_short(len(shared)) and within:
            return min(within, key=lambda one: one.bytes)
        return shared[-1] if shared else None

    def has_pruned(self) -> bool:
        """Whether rounds that share values are next.

        They are if there were enough rounds that prune, if two of these left no room, or if training has little to
        prune.
        """
        if self._journal.of(SHARED):
            return True
        is_open = not self._journal.of(PRUNED) and not self._search.density and self.start().how == LAYERS
        if is_open and self._density() > _REDUNDANT:
            return True
        tried = self._successes()
        enough = len(tried) >= max(1, int(_PRUNING * self._clock.rounds)) or tried.count(False) >= _FAILURES
        return enough and not self._clock.is_trial

    def needed(self) -> set[int]:
        """The numbers of the candidates that are gone on from."""
        last = [one for how in (PRUNED, SHARED) for one in self._journal.of(how)[-1:]]
        pruned = self.base(), self.pruned(), self.result_of_pruning()
        found = [self._journal.smallest, self.start(), *pruned, self._last_shared(), *last]
        return {0, *(one.number for one in found if one)}

    def _rounds(self, how: str) -> list[Candidate]:
        """What rounds of a kind have made, without the one that says how long a step takes."""
        return [one for one in self._journal.of(how) if not self._clock.was_trial(one.steps)]

    def _sparsest(self, part: float, luck: float) -> Candidate | None:
        """The sparsest pruned candidate that took no more than a part of the tolerance, if any.

        luck: so many standard errors more may have been taken, for sampling alone may have.
        """
        able = [one for one in self._rounds(PRUNED) if self._took(one, part, luck)]
        return min(able, key=lambda one: one.goal, default=None)

    def _took(self, one: Candidate, part: float, luck: float) -> bool:
        """Whether a candidate took no more than a part of the tolerance and so many standard errors."""
        limit = replace(self._limit, tolerance=part * self._limit.tolerance)
        return limit.allows(one.metric, one.error, -luck)

    def _successes(self) -> list[bool]:
        """Of each round that pruned, whether it left room for what follows."""
        return [self._took(one, _PRUNING_LOSS, _LUCK) for one in self._rounds(PRUNED)]

    def _density(self) -> float:
        """The part of its weights that the network keeps without training; all of them where nothing is known."""
        start = self.start()
        return rounds.density_of(self._work, self._journal.state(start)) if start.how == LAYERS else 1.0

    def _slope(self, start: Candidate) -> float:
        """How much worse the metric becomes without training, over the logarithm of how many times fewer the bytes."""
        alike = [one for one in self._journal.of(LAYERS) if one.source == start.source]
        near = [one for one in alike if self._limit.loosened(_NEAR).allows(one.metric)]
        alike = near if len(near) > 1 else alike  # Far from the limit a metric falls much faster.
        sizes = np.log([one.bytes for one in alike])
        rooms = np.array([self._limit.room(one.metric) for one in alike])
        known = np.isfinite(rooms)
        if np.ptp(sizes[known]) < 1e-6:
            return 0.0
        return float(np.polyfit(sizes[known], rooms[known], 1)[0])
