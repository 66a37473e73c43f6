"""How a search shares out its steps, and which number of bits comes next."""

import math

import pytest

from deepcomp.search.schedule import Clock, next_bits, next_goal


def test_goals_fall_faster_after_success_and_rise_after_failure():
    assert next_goal(1000, [], 0.8) == pytest.approx(800)
    second = next_goal(1000, [True], 0.8)
    third = next_goal(1000, [True, True], 0.8)
    assert third / second < second / 800 < 0.8
    back = next_goal(1000, [True, False], 0.8)
    assert second < back < 800


def test_the_first_goal_may_be_the_size_that_there_is():
    assert next_goal(1000, [], 1.0) == 1000
    assert 880 < next_goal(1000, [True], 1.0) < 930
    assert next_goal(1000, [False], 1.0) > 1000


def test_no_goal_but_the_first_is_far_from_the_one_before():
    assert next_goal(1.0, [True], 0.08) == pytest.approx(0.08 / math.e)
    assert next_goal(1.0, [True, True], 0.08) == pytest.approx(0.08 / math.e**2)
    assert next_goal(1.0, [True, True, False], 0.08) == pytest.approx(0.08 * math.exp(-2 + 0.6))
    assert next_goal(1.0, [False], 0.01) == pytest.approx(0.01 * math.e)


def test_goals_close_in_on_a_limit():
    tried, least = [], 1000
    for _ in range(14):
        goal = next_goal(1000, tried, 0.8)
        tried.append(goal >= 300)
        least = min(least, goal) if tried[-1] else least
    assert 300 <= least < 330


def test_goals_follow_a_limit_that_moves():
    """More training makes a smaller size enough."""
    tried, least = [], 1000
    for number in range(14):
        goal = next_goal(1000, tried, 0.8)
        tried.append(goal >= 600 - 25 * number)
        least = min(least, goal) if tried[-1] else least
    assert least < 400


def test_bits_fall_as_far_as_the_metric_has_room():
    assert next_bits(1000, 0.0, 7.0, first=True) == pytest.approx(1000 * math.exp(-0.16))
    assert next_bits(1000, 0.7, 7.0, first=False) == pytest.approx(1000 * math.exp(-0.13))
    assert next_bits(1000, -0.7, 7.0, first=False) == pytest.approx(1000 * math.exp(0.07))


@pytest.mark.parametrize(("room", "slope", "ratio"), [(9, 7, -0.22), (-9, 7, 0.22), (0.1, 0, -0.22), (-0.1, 0, 0.22)])
def test_no_round_changes_bits_by_more_than_a_part(room, slope, ratio):
    assert next_bits(1000, room, slope, first=False) == pytest.approx(1000 * math.exp(ratio))


@pytest.mark.parametrize("room", [math.nan, math.inf, -math.inf])
def test_bits_stay_where_a_metric_is_no_number(room):
    assert next_bits(1000, room, 7.0, first=False) == 1000


@pytest.mark.parametrize(("steps", "rounds"), [(1000, 4), (997, 8), (50, 8), (1, 1), (120, 8), (400, 100)])
def test_the_steps_of_all_rounds_add_up(steps, rounds):
    clock, taken = Clock(1.0, steps, rounds, 0.0), []
    while more := clock.next_steps(taken, clock.rounds - len(taken)):
        taken.append(more)
    assert sum(taken) == steps
    assert len(taken) <= rounds
    assert taken[-1] == max(taken)


def test_the_last_of_several_rounds_is_twice_as_long():
    clock = Clock(1.0, 900, 2, 0.0)
    assert [clock.next_steps([], 2), clock.next_steps([300], 1), clock.next_steps([300, 600], 0)] == [300, 600, 0]
    assert Clock(1.0, 900, 1, 0.0).next_steps([], 1) == 900


def test_without_a_number_of_steps_the_first_round_says_how_long_one_takes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = Clock(10.0, 0, 4, 0.0)
    assert (clock.next_steps([], 4), clock.is_trial) == (60, True)
    clock.begin_round()
    now[0] = 20.0  # until the graph is made
    for step in (0, 10, 20, 30, 40):
        clock.arrived(step)
        now[0] += 5.0
    clock.end_round(60)
    assert not clock.is_trial
    # 555 of 600 seconds are left, of which 24 are kept; five parts; a step takes half a second and a round 15 s more
    assert clock.next_steps([60], 4) == int(((600 - 45 - 24) / 5 - 15) / 0.5)
    now[0] = 540.0
    assert clock.next_steps([60, 182], 3) == 0  # not enough for a round of fifty
    now[0] = 500.0  # 76 s are left, which is enough for 122 steps
    assert clock.next_steps([60, 182, 182, 182], 1) == clock.next_steps([60, 182, 182, 182, 240], 0) == 122
    assert clock.next_steps([60, 182, 182, 182, 250], 0) == 0  # all four rounds are done, and this one would be too short
    now[0] = 540.0
    assert clock.allows()
    now[0] = 580.0
    assert not clock.allows()


def test_time_before_an_interruption_counts(monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    assert Clock(10.0, 0, 4, 590.0).left == pytest.approx(10.0)


def test_a_round_that_went_on_after_its_last_change_says_nothing_of_time():
    clock = Clock(10.0, 0, 4, 0.0)
    clock.begin_round()
    clock.end_round(60)
    assert clock.is_trial


def test_a_candidate_begins_only_if_it_is_likely_to_end_in_time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = Clock(10.0, 0, 4, 0.0)
    now[0] = 500.0
    assert clock.allows()
    clock.layer_seconds = 90.0  # more than the 100 seconds that are left, less 24 that are kept
    assert not clock.allows()
