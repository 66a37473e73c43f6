"""What a search keeps: candidates that a kill cannot damage, and nothing of another search."""

import json

import numpy as np
import pytest

from deepcomp.errors import FormatError, StageError
from deepcomp.search.journal import AS_IT_IS, LAYERS, SHARED, Journal, State
from deepcomp.second_order.layerwise import Moved

MOVED = {"dense": Moved(np.ones((2, 3), np.float32), np.full((2, 3), 0.5, np.float32))}
SAME = {"network": 7, "tolerance": 0.5}


def add(journal, how, size, within, goal=0.0, steps=0):
    state = State([np.full(3, size, np.float32), np.int32(size)], {} if how == AS_IT_IS else MOVED)
    found = {"source": 0, "goal": goal, "steps": steps, "metric": 0.9, "error": 0.0, "within": within}
    return journal.add(how, bytes(size), state, found)


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path, SAME)
    add(journal, AS_IT_IS, 90, True)
    add(journal, LAYERS, 40, True, goal=1e-6)
    add(journal, LAYERS, 10, False, goal=4e-6)
    add(journal, SHARED, 20, True, goal=160.0, steps=5)
    add(journal, SHARED, 15, False, goal=120.0, steps=5)
    return journal


def test_another_process_finds_all_that_was_kept(journal, tmp_path):
    again = Journal(tmp_path, SAME)
    assert again.candidates == journal.candidates
    assert [one.number for one in again.candidates] == [0, 1, 2, 3, 4]
    assert (again.smallest.number, again.smallest.bytes) == (3, 20)
    assert again.data(again.smallest) == bytes(20)
    state = again.state(again.candidates[-1])
    assert [array.tolist() for array in state.weights] == [[15.0, 15.0, 15.0], 15]
    assert state.moved["dense"].latent.tolist() == MOVED["dense"].latent.tolist()
    assert state.moved["dense"].importance.tolist() == MOVED["dense"].importance.tolist()


def test_states_that_nothing_goes_on_from_are_dropped(journal, tmp_path):
    journal.drop_states({0, 3})
    names = {path.name for path in (tmp_path / "candidates").iterdir()}
    assert names == {f"{number:03d}.dcz" for number in range(5)} | {"000.npz", "003.npz"}


def test_what_comes_next_is_known_until_it_is_done(journal, tmp_path):
    journal.begin({"number": 3, "steps": 7, "bits": 99.5, "start": 4})
    assert Journal(tmp_path, SAME).plan == {"number": 3, "steps": 7, "bits": 99.5, "start": 4}
    add(journal, SHARED, 12, True)
    assert Journal(tmp_path, SAME).plan == {}


def test_the_time_before_an_interruption_counts(journal, tmp_path):
    text = json.loads(journal.path.read_text())
    journal.path.write_text(json.dumps({**text, "seconds": 100.0}))
    assert 100 <= Journal(tmp_path, SAME).seconds < 160


def test_the_folder_of_another_search_is_refused(journal, tmp_path):
    with pytest.raises(StageError, match="holds another search, of another tolerance: choose another folder"):
        Journal(tmp_path, {**SAME, "tolerance": 1.0})
    assert Journal(tmp_path, SAME).candidates == journal.candidates


@pytest.mark.parametrize("text", ["", "{", "[]", '{"search": {}}', '{"search": {}, "seconds": 1, "candidates": [{}]}'])
def test_a_damaged_journal_is_one_line(journal, tmp_path, text):
    journal.path.write_text(text)
    with pytest.raises(FormatError, match=r"search\.json is damaged: .*; remove .* to begin anew"):
        Journal(tmp_path, SAME)


def test_a_missing_state_is_one_line(journal, tmp_path):
    (tmp_path / "candidates" / "003.npz").unlink()
    with pytest.raises(FormatError, match=r"003\.npz is missing: remove .* to begin anew"):
        journal.state(journal.candidates[3])


def test_the_state_of_a_round_that_is_done_is_not_that_of_the_next(journal, tmp_path):
    """A kill between the entry of a candidate and the removal of its round's state leaves that state."""
    journal.checkpoint.save_state([np.ones(3)], {"step": 5})
    journal.begin({"number": 3})
    assert Journal(tmp_path, SAME).checkpoint.load_state() is None
