"""Histories of trainings, one after another."""

from deepcomp.training.record import continued, joined

BEFORE = {"step": [0, 50, 100], "loss": [None, 0.5, 0.25]}
AFTER = {"step": [0, 20, 30], "loss": [None, 0.2, 0.1]}


def test_one_history_goes_on_from_another():
    assert joined(BEFORE, AFTER) == {"step": [0, 50, 100, 120, 130], "loss": [None, 0.5, 0.25, 0.2, 0.1]}


def test_the_later_part_of_a_history_begins_at_none():
    assert continued(joined(BEFORE, AFTER), 100) == {"step": [0, 20, 30], "loss": [0.25, 0.2, 0.1]}
    assert continued(BEFORE, 100) == {"step": [0], "loss": [0.25]}
    assert continued({"step": [0, 50, 50], "loss": [1, 2, 3]}, 50) == {"step": [0, 0], "loss": [2, 3]}
