"""Rounds of training: what is left, how many bits values take, and from where they begin."""

import numpy as np
import pytest

from deepcomp import models
from deepcomp.data import leaves
from deepcomp.options import Training
from deepcomp.search import layers, rounds
from deepcomp.search.journal import State
from deepcomp.training.record import StateFile
from deepcomp.work import prepared

TRAINING = Training(steps=60, batch=20, verbose=False)


@pytest.fixture
def work(network, digits):
    with prepared(network, digits, TRAINING, None, "test") as work:
        yield work
        State.of(work.source).put_into(work.model)  # the result, which is checked


def density(work, state):
    kernels = models.kernel_values(state.put_into(work.model)).values()
    return sum(map(np.count_nonzero, kernels)) / sum(kernel.size for kernel in kernels)


def run(work, make, state, goal, folder):
    seen = []
    state = make(work, state, goal, TRAINING, checkpoint=StateFile(folder / "t.npz"), label="r", arrived=seen.append)
    (folder / "t.npz").unlink()
    return state, seen


def test_a_round_prunes_from_what_is_left_to_its_goal(work, tmp_path):
    half, seen = run(work, rounds.prune, State.of(work.source), 0.5, tmp_path)
    assert density(work, half) == pytest.approx(0.5, abs=1e-3)
    assert seen == [10, 20, 30, 36]
    tenth, _ = run(work, rounds.prune, half, 0.1, tmp_path)
    assert density(work, tenth) == pytest.approx(0.1, abs=1e-3)
    before, after = (models.kernel_values(state.put_into(work.model)) for state in (half, tenth))
    assert not any(np.any((after[name] != 0) & (before[name] == 0)) for name in before)


def test_a_round_with_a_goal_above_what_is_left_removes_nothing_and_brings_nothing_back(work, tmp_path):
    tenth, _ = run(work, rounds.prune, State.of(work.source), 0.1, tmp_path)
    again, _ = run(work, rounds.prune, tenth, 0.9, tmp_path)
    before, after = (models.kernel_values(state.put_into(work.model)) for state in (tenth, again))
    assert all(np.array_equal(after[name] != 0, before[name] != 0) for name in before)


def test_a_round_brings_values_down_to_a_number_of_bits(work, tmp_path):
    inputs = leaves(work.dataset.train.sample(60).x)[0] / np.float32(255)
    made = layers.LayerCompressor(work.source, inputs, classes=True, seed=0).compressed(1e-8)
    begin = rounds.bits_of(work, made)
    assert begin > 1000
    state, seen = run(work, rounds.share, made, 0.6 * begin, tmp_path)
    assert seen == [0, 10, 20, 30, 40, 48]
    assert 0.4 * begin < rounds.bits_of(work, state) <= 0.62 * begin
    kernels = models.kernel_values(state.put_into(work.model))
    assert all(len(np.unique(kernel)) < 256 for kernel in kernels.values())
    assert state.moved.keys() == kernels.keys()


def test_compressing_layers_leaves_the_network_as_it_is(work):
    before = work.source.get_weights()
    inputs = leaves(work.dataset.train.sample(60).x)[0] / np.float32(255)
    compressor = layers.LayerCompressor(work.source, inputs, classes=True, seed=0)
    first, other, again = (compressor.compressed(price) for price in (1e-7, 1e-4, 1e-7))
    assert all(np.array_equal(a, b) for a, b in zip(before, work.source.get_weights(), strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(first.weights, again.weights, strict=True))
    assert rounds.bits_of(work, first) > 2 * rounds.bits_of(work, other)


@pytest.mark.parametrize(("limit", "expected"), [(1e-3, 1e-3), (3e-7, 3e-7), (1e-6, 1e-6)])
@pytest.mark.parametrize("halvings", [1, 3])
def test_the_highest_price_within_a_limit_is_found(limit, expected, halvings):
    tried = []

    def within(price):
        tried.append(price)
        return price <= limit

    layers.search_price(1e-5, within, lambda: True, halvings=halvings)
    assert expected / 4 ** (0.5**halvings) <= max(price for price in tried if price <= limit) * 1.0001
    assert max(price for price in tried if price <= limit) <= expected
    assert len(tried) == len(set(tried)) <= 11


def test_few_prices_are_tried_where_few_are_asked_for():
    tried = []
    layers.search_price(1e-5, lambda price: tried.append(price), lambda: True, halvings=0, most=2)
    assert tried == pytest.approx([1e-5, 2.5e-6])


def test_the_first_price_removes_about_the_part_that_is_asked_for(work):
    inputs = leaves(work.dataset.train.sample(60).x)[0] / np.float32(255)
    compressor = layers.LayerCompressor(work.source, inputs, classes=True, seed=0)
    few, many = (density(work, compressor.compressed(compressor.first_price(part))) for part in (0.1, 0.7))
    assert 0.7 < few <= 1
    assert 0.15 < many < 0.5


def test_no_price_is_tried_without_time():
    layers.search_price(1e-5, lambda price: pytest.fail("there was no time"), lambda: False)
