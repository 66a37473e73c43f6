"""Places as few loops, and buffers that share memory."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcomp.export.memory import Memory, arranged_like, in_order, planar, walks


def visited(found, arrays):
    """The places of each array, in the order in which the loops come by."""
    places = [[] for _ in arrays]
    for walk in found:
        for at in np.ndindex(walk.counts):
            for own, first, steps in zip(places, walk.firsts, walk.steps, strict=True):
                own.append(first + sum(number * step for number, step in zip(at, steps, strict=True)))
    return places


def test_a_map_in_order_and_channel_by_channel_is_one_walk():
    target, source = planar((4, 5, 3), 100), in_order((4, 5, 3), 0)
    (walk,) = walks(target, source)
    assert walk.counts == (1, 1, 3, 20)
    assert walk.steps == ((0, 0, 20, 1), (0, 0, 1, 3))


def test_parts_side_by_side_are_a_walk_each():
    first, second = planar((4, 5, 3), 0), planar((4, 5, 2), 500)
    joined = np.concatenate([first, second], axis=-1)
    found = walks(planar(joined.shape, 1000), joined)
    assert [walk.firsts for walk in found] == [(1000, 0), (1060, 500)]


def test_places_without_a_pattern_are_no_walks():
    source = np.random.default_rng(0).permutation(100)
    assert walks(in_order((100,), 0), source) is None
    assert len(walks(in_order((100,), 0), source, most=np.inf)) > 16


@given(st.lists(st.integers(1, 3), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_walks_visit_each_place_once(shape, draw):
    size = int(np.prod(shape))
    axes = draw.sample(range(len(shape)), len(shape))
    source = np.arange(size).reshape([shape[axis] for axis in axes]).transpose(np.argsort(axes))
    other = np.broadcast_to(np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1)), shape)
    target = in_order(shape, 7)
    places = visited(walks(target, source, other, most=np.inf), (target, source, other))
    order = np.argsort(places[0])
    for own, array in zip(places, (target, source, other), strict=True):
        np.testing.assert_array_equal(np.array(own)[order], array.ravel())


def test_an_output_lies_as_its_input_does():
    assert np.array_equal(arranged_like(planar((2, 3, 4), 50), 0), planar((2, 3, 4), 0))
    assert np.array_equal(arranged_like(np.array([[0, 2], [4, 6]]), 9), [[9, 10], [11, 12]])


def test_buffers_that_are_never_used_at_once_share_memory():
    memory = Memory()
    given_by_caller, first, second, third = memory.add(3, "input"), memory.add(10), memory.add(4), memory.add(10)
    for step, places in enumerate(([given_by_caller, first], [first, second], [second, third])):
        for place in places:
            memory.use(step, place)
    memory.allocate()
    assert memory.size == 14
    assert memory.address(first) == memory.address(third) == "scratch"
    assert memory.address(second + 1) == "scratch + 11"
    assert memory.address(given_by_caller + 2) == "input + 2"


@pytest.mark.parametrize("array", ["output+0", "output+5"])
def test_a_buffer_can_become_memory_of_the_caller(array):
    memory = Memory()
    place = memory.add(4)
    assert memory.is_whole(place, 4)
    assert not memory.is_whole(place, 3)
    memory.use(0, place)
    memory.give(place, array)
    memory.allocate()
    assert memory.size == 0
    assert memory.address(place + 1) == f"output + {1 + int(array[-1])}"
