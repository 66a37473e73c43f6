"""Which network a search goes on from, and when it stops pruning."""

import dataclasses

import pytest

from deepcomp.options import Search
from deepcomp.search.journal import AS_IT_IS, LAYERS, PRUNED, SHARED, Candidate
from deepcomp.search.limit import Limit
from deepcomp.search.planning import Planner
from deepcomp.search.schedule import Clock

FULL = Candidate(0, AS_IT_IS, 0, 0.0, 0, 10_000, 0.9, 0.0, True, 0.0)


class Candidates(list):
    """A journal that is in memory."""

    candidates = property(lambda self: self)
    smallest = property(lambda self: min((one for one in self if one.within), key=lambda one: one.bytes))

    def of(self, how):
        return [one for one in self if one.how == how]


def planner(*others, density=0.5, tolerance=0.0, rounds=4, steps=1000):
    made = [dataclasses.replace(one, number=number) for number, one in enumerate((FULL, *others))]
    limit = Limit("accuracy", True, 0.9, tolerance)
    return Planner(None, Search(density=density), Candidates(made), limit, Clock(1.0, steps, rounds, 0.0))


def pruned(metric, error=0.0, within=False, goal=0.5):
    return dataclasses.replace(
        FULL, how=PRUNED, metric=metric, error=error, within=within, goal=goal, steps=200, bytes=5000
    )


def layers(metric, size, within=False):
    return dataclasses.replace(FULL, how=LAYERS, metric=metric, bytes=size, within=within)


def test_the_sparsest_pruned_network_within_the_limit_is_gone_on_from():
    assert planner().base().number == 0
    assert planner(pruned(0.9, 0.01, within=True), pruned(0.8)).base().number == 1


def test_a_pruned_network_needs_no_reserve_to_be_gone_on_from():
    """Once, one that was better than the full network by less than the reserve was dropped: 13 times, not 170."""
    found = planner(pruned(0.901, 0.003))
    assert found.base().number == 1
    assert found.has_pruned()


def test_pruning_ends_after_enough_rounds_or_with_a_loss():
    assert not planner(pruned(0.9, 0.01, within=True)).has_pruned()
    assert planner(pruned(0.9, 0.01, within=True), pruned(0.9, 0.01, within=True)).has_pruned()
    assert planner(pruned(0.85)).has_pruned()


@pytest.mark.parametrize(("kept", "has_pruned"), [(0.31, True), (0.3, False), (0.05, False)])
def test_what_is_left_without_training_says_whether_training_prunes(kept, has_pruned, monkeypatch):
    found = planner(layers(0.899, 2000), density=0.0)
    monkeypatch.setattr(found, "_density", lambda: kept)
    assert found.has_pruned() == has_pruned
    if not has_pruned:
        assert found.next_round()["goal"] == pytest.approx(0.5 * kept)


def test_training_prunes_where_layers_alone_are_beyond_the_limit():
    found = planner(layers(0.5, 2000), density=0.0)
    assert not found.has_pruned()
    assert found.next_round() == {"number": 1, "steps": 200, "how": PRUNED, "goal": 0.5, "source": 0}


def test_states_that_are_gone_on_from_are_needed():
    found = planner(pruned(0.9, 0.01, within=True), pruned(0.8), layers(0.9, 900, within=True), layers(0.7, 500))
    assert found.needed() == {0, 1, 2, 3}
    shared = dataclasses.replace(layers(0.9, 800), how=SHARED, steps=200)
    assert planner(layers(0.9, 900, within=True), shared, shared).needed() == {0, 1, 3}
