"""Which network a search goes on from, and when it stops pruning."""

import dataclasses
import math

import pytest

from deepcomp.options import Search
from deepcomp.search import planning
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


def test_the_sparsest_pruned_network_that_leaves_room_is_gone_on_from():
    assert planner().base().number == 0
    assert planner(pruned(0.9, 0.01, within=True), pruned(0.8)).base().number == 1
    tried = pruned(0.896, goal=0.4), pruned(0.88, goal=0.1), pruned(0.895, goal=0.2)
    assert planner(*tried, tolerance=1.0).base().number == 3
    assert planner(*tried, tolerance=1.0).pruned().number == 3


def test_layers_of_one_within_the_limit_are_compressed_where_none_leaves_room():
    found = planner(pruned(0.893), tolerance=1.0)
    assert (found.base().number, found.pruned().number) == (0, 1)


def test_a_pruned_network_may_seem_worse_by_a_standard_error_but_is_no_result_then():
    """Once, one image of 6,000 ended pruning at 5% of the weights where 3% were as good."""
    found = planner(pruned(0.8998, 0.0006))
    assert (found.base().number, found.pruned().number, found.result_of_pruning().number) == (1, 1, 0)
    assert planner(pruned(0.8993, 0.0006)).pruned().number == 0
    assert planner(pruned(0.9, 0.0006)).result_of_pruning().number == 1


def test_the_round_that_measures_a_step_is_not_gone_on_from():
    """Once, after a failure it was: nine tenths of the weights were left, and all the time went on its layers."""
    trial = dataclasses.replace(pruned(0.91, within=True, goal=0.9), steps=60)
    found = planner(trial, pruned(0.89, goal=0.01), steps=0)
    assert (found.base().number, found.pruned().number) == (0, 0)


def test_a_pruned_network_needs_no_reserve_to_be_gone_on_from():
    """Once, one that was better than the full network by less than the reserve was dropped: 13 times, not 170."""
    found = planner(pruned(0.901, 0.003))
    assert found.base().number == found.pruned().number == 1


def test_pruning_ends_after_enough_rounds_or_two_losses():
    good, bad = pruned(0.9, 0.01, within=True), pruned(0.85)
    assert not planner(good).has_pruned()
    assert not planner(bad).has_pruned()
    assert planner(good, good).has_pruned()
    assert not planner(good, bad, rounds=6).has_pruned()
    assert planner(good, bad, bad, rounds=8).has_pruned()


def test_a_round_that_lost_nothing_is_followed_by_another_and_one_that_lost_by_a_larger_goal():
    """Once, one round that pruned was all: a network of which 8% was left, without a loss, stayed so."""
    more = planner(pruned(0.9, goal=0.08), density=0.08).next_round()
    assert (more["how"], more["source"], more["goal"]) == (PRUNED, 1, pytest.approx(0.08 / 2.71828, rel=1e-4))
    again = planner(pruned(0.85, goal=0.01), density=0.01).next_round()
    assert (again["how"], again["source"], again["goal"]) == (PRUNED, 0, pytest.approx(0.0271828, rel=1e-4))


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


def test_the_result_of_pruning_is_kept_where_a_sparser_network_is_pruned_on():
    """Once, its state was removed as soon as a sparser one, worse by less than a standard error, came after it."""
    found = planner(pruned(0.9, 0.0006, goal=0.08), pruned(0.8998, 0.0006, goal=0.03), pruned(0.8, goal=0.01), rounds=6)
    assert (found.base().number, found.result_of_pruning().number) == (2, 1)
    assert found.needed() == {0, 1, 2, 3}


def test_short_rounds_go_on_from_the_smallest_network_within_the_limit(monkeypatch):
    """Once, they went on from the last, which had just been trained to too few bits: twice as much was lost."""
    alone = layers(0.9, 1200, within=True), layers(0.896, 900)

    def shared(size, metric, within):
        return dataclasses.replace(
            FULL, how=SHARED, steps=200, bytes=size, goal=8.0 * size, metric=metric, within=within
        )

    monkeypatch.setattr(planning.rounds, "bits_of", lambda work, state: 8.0 * state.bytes)
    monkeypatch.setattr(Candidates, "state", lambda self, one: one, raising=False)
    long, few = (shared(1100, 0.9, False), shared(1000, 0.905, True)), shared(900, 0.89, False)
    found = [planner(*alone, *some, rounds=6).next_round() for some in (long[:1], long, (*long, few))]
    assert [one["source"] for one in found] == [3, 4, 4]
    assert [one["gently"] for one in found] == [False, True, True]
    # A long round makes up for some bits. After the short one that had too few, the next has some between.
    goals = [8800 * math.exp(-0.1), 8000 * math.exp(-0.22), math.sqrt(8000 * 7200)]
    assert [one["goal"] for one in found] == pytest.approx(goals)


def test_a_long_round_of_more_bits_begins_anew(monkeypatch):
    """Once, it went on from the network of too few bits: one and a half times the training left it as bad."""
    monkeypatch.setattr(planning.rounds, "bits_of", lambda work, state: 8.0 * state.bytes)
    monkeypatch.setattr(Candidates, "state", lambda self, one: one, raising=False)
    bad = dataclasses.replace(FULL, how=SHARED, steps=200, goal=7200.0, bytes=900, metric=0.895, within=False)
    again = planner(layers(0.9, 1200, within=True), layers(0.896, 1000), bad, rounds=6).next_round()
    assert again["source"] == 2
    assert 7200 < again["goal"] <= 8000


def test_states_that_are_gone_on_from_are_needed():
    found = planner(pruned(0.9, 0.01, within=True), pruned(0.8), layers(0.9, 900, within=True), layers(0.7, 500))
    assert found.needed() == {0, 1, 2, 3}
    shared = dataclasses.replace(layers(0.9, 800), how=SHARED, steps=200)
    assert planner(layers(0.9, 900, within=True), shared, shared).needed() == {0, 1, 3}
