"""How a search shares out its steps, and which number of bits comes next."""

import math

import pytest

from deepcomp.search.schedule import Clock, next_bits, next_goal, part_of_pruning, part_of_sharing


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
    assert next_bits(1000, 0.0, 7.0, done=0) == pytest.approx(1000 * math.exp(-0.2))
    assert next_bits(1000, 0.7, 7.0, done=1) == pytest.approx(1000 * math.exp(-0.2))
    assert next_bits(1000, -0.7, 7.0, done=2) == next_bits(1000, -0.7, 7.0, done=3)
    assert next_bits(1000, -0.7, 7.0, done=2) == pytest.approx(1000 * math.exp(0.1))


@pytest.mark.parametrize(("room", "slope", "ratio"), [(9, 7, -0.22), (-9, 7, 0.22), (0.1, 0, -0.22), (-0.1, 0, 0.22)])
def test_no_round_changes_bits_by_more_than_a_part(room, slope, ratio):
    assert next_bits(1000, room, slope, done=1) == pytest.approx(1000 * math.exp(ratio))


@pytest.mark.parametrize("room", [math.nan, math.inf, -math.inf])
def test_bits_stay_where_a_metric_is_no_number(room):
    assert next_bits(1000, room, 7.0, done=1) == 1000


def shared_out(clock, part):
    """The steps of all rounds; `part(left, done)` is that of what is left."""
    taken = []
    while share := part(clock.rounds - len(taken), len(taken)):
        if not (more := clock.next_steps(taken, share)):
            break
        taken.append(more)
    return taken


@pytest.mark.parametrize(("steps", "rounds"), [(1000, 4), (997, 8), (50, 8), (1, 1), (120, 8), (400, 100)])
@pytest.mark.parametrize("part", [part_of_sharing, lambda left, done: part_of_pruning(left)])
def test_the_steps_of_all_rounds_add_up(steps, rounds, part):
    taken = shared_out(Clock(1.0, steps, rounds, 0.0), part)
    assert sum(taken) == steps
    assert len(taken) <= rounds
    assert min(taken) > 0


@pytest.mark.parametrize(
    ("rounds", "taken"), [(1, [1100]), (2, [366, 734]), (3, [330, 660, 110]), (6, [300, 600, 100, 100])]
)
def test_rounds_that_share_values_are_two_long_ones_and_short_ones(rounds, taken):
    assert shared_out(Clock(1.0, 1100, rounds, 0.0), part_of_sharing) == taken


def test_rounds_that_prune_are_alike_and_leave_the_rest():
    assert [round(1 / part_of_pruning(left)) for left in (6, 5, 4, 2, 1, 0)] == [7, 6, 5, 3, 1, 1]


def test_without_a_number_of_steps_the_first_round_says_how_long_one_takes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    clock = Clock(10.0, 0, 4, 0.0)
    assert (clock.next_steps([], 0.2), clock.is_trial) == (60, True)
    clock.begin_round()
    now[0] = 20.0  # until the graph is made
    for step in (0, 10, 20, 30, 40):
        clock.arrived(step)
        now[0] += 5.0
    clock.end_round(60)
    assert not clock.is_trial
    # 555 of 600 seconds are left, of which 24 are kept; five parts; a step takes half a second and a round 15 s more
    assert clock.next_steps([60], 0.2) == int(((600 - 45 - 24) / 5 - 15) / 0.5)
    now[0] = 540.0
    assert clock.next_steps([60, 182], 0.25) == 0  # not enough for a round of fifty
    now[0] = 500.0  # 76 s are left, which is enough for 122 steps
    assert clock.next_steps([60, 182], 1.0) == clock.next_steps([60, 182], 0.5) == 122  # half of it were too few
    assert clock.next_steps([60, 182], 0.9) == 106
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
