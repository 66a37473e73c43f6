"""Rounding of one layer with compensation, against rounding each weight by itself."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcomp.second_order import rounding
from deepcomp.second_order.rounding import round_layer


def looked_up(centroids, choices, *_):
    return np.concatenate(([0.0], centroids))[choices]


def correlated(rng, n, rank=6):
    """The products of inputs that depend on each other, as those of neighbouring pixels do."""
    inputs = rng.standard_normal((400, rank)) @ rng.standard_normal((rank, n)) + 0.1 * rng.standard_normal((400, n))
    return inputs.T @ inputs / len(inputs)


def loss(curvature, importance, moved):
    return 0.5 * float(np.einsum("iu,ij,ju,u->", moved, curvature, moved, importance))


def bits(choices):
    shares = np.bincount(choices.ravel()) / choices.size
    return -choices.size * float(np.sum(shares[shares > 0] * np.log2(shares[shares > 0])))


def test_without_correlation_each_weight_takes_the_value_of_least_loss_and_bits():
    weights = np.array([[1.0, 1.0, 1.0, -1.0], [1.02, 0.98, 0.02, 0.01]])
    centroids, choices, *_ = round_layer(weights, [[np.eye(2)]], np.ones(4), 0.01)
    assert choices.tolist() == [[2, 2, 2, 1], [2, 2, 0, 0]]
    np.testing.assert_allclose(centroids, [-1, 1], atol=0.01)


@pytest.mark.parametrize("n", [12, 40, 300])
def test_what_a_weight_loses_the_others_make_up_for(n):
    rng = np.random.default_rng(n)
    curvature, importance = correlated(rng, n), rng.uniform(0.5, 2, 12)
    weights = rng.standard_normal((n, 12))
    centroids, choices, *_ = round_layer(weights, [[curvature]], importance, 0.02)
    values = np.concatenate(([0.0], centroids))
    nearest = values[np.argmin(np.abs(weights[:, :, None] - values), axis=2)]
    made, plain = (loss(curvature, importance, one - weights) for one in (looked_up(centroids, choices), nearest))
    assert made < 0.6 * plain


def test_factors_that_are_known_change_nothing():
    rng = np.random.default_rng(4)
    groups, weights = [[correlated(rng, 20)], [correlated(rng, 20)]], rng.standard_normal((20, 6))
    own = round_layer(weights, groups, np.ones(6), 0.01)
    known = round_layer(weights, groups, np.ones(6), 0.01, factors=rounding.factors_of(groups))
    assert all(np.array_equal(one, other) for one, other in zip(own, known, strict=True))


def test_a_higher_price_gives_fewer_bits_and_more_loss():
    rng = np.random.default_rng(5)
    curvature, importance, weights = correlated(rng, 60), np.ones(20), rng.standard_normal((60, 20))
    found = [round_layer(weights, [[curvature]], importance, price) for price in (1e-4, 1e-3, 1e-2, 1e-1)]
    lengths = [bits(one.choices) for one in found]
    losses = [loss(curvature, importance, looked_up(*one) - weights) for one in found]
    assert lengths == sorted(lengths, reverse=True)
    assert losses == sorted(losses)
    assert lengths[0] > 3 * lengths[-1]


def test_units_that_matter_more_are_rounded_more_finely():
    rng = np.random.default_rng(6)
    weights, importance = rng.standard_normal((50, 40)), np.repeat([0.01, 1.0], 20)
    centroids, choices, *_ = round_layer(weights, [[np.eye(50)]], importance, 0.05)
    errors = ((looked_up(centroids, choices) - weights) ** 2).mean(axis=0)
    assert errors[20:].max() < errors[:20].min()


def test_groups_and_parts_have_curvatures_of_their_own():
    rng = np.random.default_rng(7)
    weights, one, other = rng.standard_normal((8, 6)), correlated(rng, 8), correlated(rng, 8)
    groups = [[one], [other]]
    centroids, choices, *_ = round_layer(weights, groups, np.ones(6), 0.01)
    moved = looked_up(centroids, choices) - weights
    own = loss(one, np.ones(3), moved[:, :3]) + loss(other, np.ones(3), moved[:, 3:])
    swapped = looked_up(*round_layer(weights, groups[::-1], np.ones(6), 0.01)) - weights
    assert own < loss(one, np.ones(3), swapped[:, :3]) + loss(other, np.ones(3), swapped[:, 3:])
    halves = [[one[:5, :5], one[5:, 5:]]]
    centroids, choices, *_ = round_layer(weights, halves, np.ones(6), 0.01)
    assert choices.shape == (8, 6)
    assert np.abs(looked_up(centroids, choices) - weights).max() < 1


def test_blocks_of_weights_are_rounded_as_one_would_be(monkeypatch):
    rng = np.random.default_rng(8)
    arguments = rng.standard_normal((30, 4)), [[correlated(rng, 30)]], np.ones(4), 0.01
    whole = looked_up(*round_layer(*arguments))
    monkeypatch.setattr(rounding, "_BLOCK", 7)
    np.testing.assert_allclose(looked_up(*round_layer(*arguments)), whole, atol=1e-9)


@pytest.mark.parametrize(("weights", "importance"), [(np.zeros((3, 2)), np.ones(2)), (np.ones((3, 2)), np.zeros(2))])
def test_what_does_not_matter_is_pruned(weights, importance):
    centroids, choices, *_ = round_layer(weights, [[np.eye(3)]], importance, 0.1)
    assert centroids.size == 0
    assert not choices.any()


@given(st.integers(0, 999), st.integers(1, 20), st.integers(1, 5), st.sampled_from([1e-9, 1e-3, 0.1, 10.0]))
def test_values_are_few_distinct_and_used(seed, n, units, price):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((n, units)) * rng.choice([1e-3, 1, 30])
    inputs = rng.standard_normal((7, n)) * (rng.random(n) < 0.7)  # some inputs are always 0, and there are few
    centroids, choices, *_ = round_layer(weights, [[inputs.T @ inputs]], rng.random(units), price)
    assert choices.shape == weights.shape
    assert np.isfinite(centroids).all()
    assert centroids.size <= 254
    assert (np.diff(centroids) >= 0).all()
    assert not (centroids == 0).any()
    assert {*range(1, centroids.size + 1)} <= {*choices.ravel().tolist()}


def test_weights_that_are_zero_stay_zero_and_others_make_up_for_that():
    rng = np.random.default_rng(11)
    curvature, importance = correlated(rng, 40), np.ones(8)
    weights = np.where(rng.random((40, 8)) < 0.5, 0.0, rng.standard_normal((40, 8)))
    made = looked_up(*round_layer(weights, [[curvature]], importance, 1e-3))
    assert np.all(made[weights == 0] == 0)
    step = np.abs(weights).max() / 4
    plain = np.where(weights == 0, 0, np.rint(weights / step) * step)
    assert loss(curvature, importance, made - weights) < loss(curvature, importance, plain - weights)


def test_what_weights_had_become_when_they_took_their_values():
    """With inputs that have nothing in common no weight moves, and each bends the loss by its input alone."""
    rng = np.random.default_rng(12)
    weights, powers = rng.standard_normal((6, 3)), np.arange(1.0, 7.0)
    rounded = round_layer(weights, [[np.diag(powers)]], np.array([1.0, 2.0, 3.0]), 0.01)
    np.testing.assert_allclose(rounded.moved, weights, atol=1e-12)
    expected = (powers + 0.01 * powers.mean())[:, None] * [1.0, 2.0, 3.0]
    np.testing.assert_allclose(rounded.bends, expected, rtol=1e-9)
