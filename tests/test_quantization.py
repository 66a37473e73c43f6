import itertools
import subprocess
import sys
import time

import kmeans1d
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from deepcomp import quantization
from deepcomp.errors import RecipeError
from deepcomp.quantization import (
    INITS,
    cheapest,
    cluster,
    code_lengths,
    codebook,
    commit,
    descend,
    from_codebook,
    initial_centroids,
    refit,
)

LOCAL = ("linear", "density", "random")
TINY = np.float32(1.1754944e-38)

PAPER = np.float32(
    [[2.09, -0.98, 1.48, 0.09], [0.05, -0.14, -1.08, 2.12], [-0.91, 1.92, 0, -1.03], [1.87, 0, 1.53, 1.49]]
)  # figure 3

weights = arrays(np.float32, array_shapes(max_dims=2, max_side=30), elements=st.floats(-100, 100, width=32))
lattice = arrays(np.float32, st.integers(1, 200), elements=st.integers(-20, 20).map(lambda i: i / 8))
fast = settings(derandomize=True, deadline=None, max_examples=60)


def f32(*values):
    return np.array(values, np.float32)


def squares(values, centroids):
    """Sum of squares to the nearest of ascending centroids."""
    centroids = np.asarray(centroids, np.float64)
    nearest = centroids[np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)]
    return float(np.sum(np.square(values - nearest)))


def plain_lloyd(values, centroids, iterations=300):
    """Lloyd's algorithm on all the values, in float64; empty clusters are dropped."""
    ordered = np.sort(values).astype(np.float64)
    sums = np.concatenate(([0.0], np.cumsum(ordered)))
    for _ in range(iterations):
        inner = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        edges = np.unique(np.concatenate(([0], inner, [ordered.size])))
        centroids = np.diff(sums[edges]) / np.diff(edges)
    return centroids


# Golden values


def test_figure_3_of_the_paper():
    centroids, indices = cluster(PAPER, 4)
    np.testing.assert_allclose(centroids, [-1.0, 0.0, 1.5, 2.0], atol=1e-6)
    np.testing.assert_array_equal(indices, [[3, 0, 2, 1], [1, 1, 0, 3], [0, 3, 1, 0], [3, 1, 2, 2]])


@pytest.mark.parametrize("init", ["linear", "density", "optimal"])
def test_three_groups(init):
    centroids, indices = cluster(f32(12, -3, 1, 11, 2, -5, 3, 10), 3, init=init)
    np.testing.assert_array_equal(centroids, f32(-4, 2, 11))
    np.testing.assert_array_equal(indices, [2, 0, 1, 2, 1, 0, 1, 2])
    assert centroids.dtype == np.float32
    assert indices.dtype == np.uint8


def test_linear_start():
    np.testing.assert_array_equal(initial_centroids(f32(1, 2, 2.5, 3, 9), 3), [1, 5, 9])


def test_density_start():
    start = initial_centroids(np.arange(1, 9, dtype=np.float32), 4, init="density")
    np.testing.assert_array_equal(start, [2, 4, 6, 8])


def test_random_start_draws_distinct_values():
    ordered = np.sort(np.tile(np.arange(1, 10, dtype=np.float32), 5))
    start = initial_centroids(ordered, 8, init="random", seed=3)
    assert np.unique(start).size == 8
    assert np.isin(start, ordered).all()


def test_linear_stays_in_a_poor_optimum_that_optimal_leaves():
    values = f32(0, 1, 5, 6, 100)  # linear starts at 0, 50 and 100: 50 empties
    assert squares(values, cluster(values, 3, init="optimal")[0]) == 1.0
    np.testing.assert_array_equal(cluster(values, 3, init="optimal")[0], f32(0.5, 5.5, 100))
    np.testing.assert_array_equal(plain_lloyd(values, np.array([0.0, 50, 100])), [3, 100])


def test_equally_near_is_the_lower():
    np.testing.assert_array_equal(cluster(f32(1, 1, 1, 2, 3, 3, 3), 2)[1], [0, 0, 0, 0, 1, 1, 1])


# Awkward remainders


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("clusters", [1, 2, 256])
def test_empty(init, clusters):
    centroids, indices = cluster(np.empty((0, 3), np.float32), clusters, init=init)
    assert (centroids.shape, centroids.dtype) == ((0,), np.float32)
    assert (indices.shape, indices.dtype) == ((0, 3), np.uint8)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("clusters", [1, 2, 65_536])
def test_one_value(init, clusters):
    for values in (f32(-0.3), f32(-0.3, -0.3, -0.3)):
        centroids, indices = cluster(values, clusters, init=init)
        np.testing.assert_array_equal(centroids, f32(-0.3))
        np.testing.assert_array_equal(indices, np.zeros(values.size))


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("clusters", [4, 5, 2_000])
def test_no_more_distinct_values_than_clusters(init, clusters):
    values = f32(0.3, 3.4e38, -0.1, 0.3, 1e-45, -0.1)
    centroids, indices = cluster(values, clusters, init=init)
    np.testing.assert_array_equal(centroids, f32(-0.1, 1e-45, 0.3, 3.4e38))
    np.testing.assert_array_equal(centroids[indices], values)


@pytest.mark.parametrize("init", INITS)
def test_one_cluster_is_the_mean(init):
    centroids, indices = cluster(f32(1, 2, 6), 1, init=init)
    np.testing.assert_array_equal(centroids, f32(3))
    np.testing.assert_array_equal(indices, [0, 0, 0])


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (f32(-1, 1), TINY),
        (f32(0, 0), TINY),
        (f32(0, 0, -1e-45), -TINY),
        (f32(0, 0, 1e-45), TINY),
    ],
)
def test_no_centroid_is_zero(init, values, expected):
    centroids, indices = cluster(values, 1, init=init)
    np.testing.assert_array_equal(centroids, expected)
    np.testing.assert_array_equal(indices, np.zeros(values.size))


def test_a_zero_centroid_never_meets_a_neighbour():
    for values in (f32(-1, 0, 1), f32(0, TINY, 1), f32(-1e-45, 0, 1)):
        centroids, indices = cluster(values, 3)
        assert (centroids != 0).all()
        assert (np.diff(centroids) > 0).all()
        assert set(indices) == set(range(centroids.size))


@pytest.mark.parametrize(("count", "dtype"), [(256, np.uint8), (257, np.uint16), (65_536, np.uint16)])
def test_index_type(count, dtype):
    values = np.arange(1, count + 1, dtype=np.float32)
    centroids, indices = cluster(values, count)
    assert (centroids.size, indices.dtype) == (count, dtype)
    np.testing.assert_array_equal(indices, values - 1)


@pytest.mark.parametrize("init", LOCAL)
def test_more_clusters_than_scikit_learn_is_asked_for(init):
    values = np.append(np.random.default_rng(0).normal(size=5_000), 50).astype(np.float32)
    centroids, indices = cluster(values, 1_500, init=init)
    assert centroids.size < 1_500 if init == "linear" else centroids.size <= 1_500  # many are dropped
    assert np.unique(indices).size == centroids.size


def test_heavy_ties():
    values = np.concatenate((np.full(100_000, 0.25), np.linspace(-1, 1, 20_001))).astype(np.float32)
    for init in INITS:
        centroids, indices = cluster(values, 16, init=init)
        assert centroids.size == 16
        assert indices.max() == 15


@pytest.mark.parametrize("init", ["linear", "density", "optimal"])
def test_extremes_of_float32(init):
    centroids, indices = cluster(f32(3.4e38, -3.4e38, 3.3e38, 1, -3.4e38), 3, init=init)
    np.testing.assert_allclose(centroids, f32(-3.4e38, 1, 3.35e38), rtol=1e-6)
    np.testing.assert_array_equal(indices, [2, 0, 2, 1, 0])


def test_a_far_outlier_takes_few_bins():
    values = np.random.default_rng(0).normal(size=40_000).astype(np.float32)
    alone = squares(values, cluster(values, 31, init="optimal")[0])
    beside = np.append(values, np.float32(1e5))
    assert squares(beside, cluster(beside, 32, init="optimal")[0]) < alone * 1.001


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite(bad):
    with pytest.raises(RecipeError, match=r"A weight is (nan|inf|-inf): give finite weights") as error:
        cluster(np.array([0.5, bad, 0.25]), 2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("clusters", [0, -1, 65_537, 2.5, "5", None])
def test_clusters_out_of_range(clusters):
    with pytest.raises(RecipeError, match=f"clusters is {clusters!r}: give a whole number from 1 to 65536"):
        cluster(f32(1, 2, 3), clusters)


def test_unknown_init():
    with pytest.raises(RecipeError, match="init is 'kmeans': give one of linear, density, random, optimal"):
        cluster(f32(1, 2, 3), 2, init="kmeans")


def test_too_many_clusters_for_optimal():
    with pytest.raises(RecipeError, match="clusters is 1025: init 'optimal' takes at most 1024"):
        cluster(np.arange(2_000, dtype=np.float32), 1_025, init="optimal")


# Properties


@fast
@given(st.one_of(weights, lattice), st.integers(1, 12), st.sampled_from(INITS), st.integers(0, 9))
def test_properties(values, clusters, init, seed):
    centroids, indices = cluster(values, clusters, init=init, seed=seed)
    assert centroids.dtype == np.float32
    assert indices.shape == values.shape
    assert 1 <= centroids.size <= clusters
    assert (np.diff(centroids) > 0).all()
    assert (centroids != 0).all()
    assert set(indices.flat) == set(range(centroids.size))

    exact = values.astype(np.float64).ravel()
    distances = np.abs(exact[:, None] - centroids)
    np.testing.assert_array_equal(distances[np.arange(values.size), indices.ravel()], distances.min(axis=1))
    means = np.bincount(indices.ravel(), exact) / np.bincount(indices.ravel())
    np.testing.assert_allclose(centroids, means, rtol=1e-6, atol=1e-6 * np.abs(exact).max() + TINY)

    ordered = np.sort(values, axis=None)
    if np.unique(ordered).size > clusters:
        start = initial_centroids(ordered, clusters, init=init, seed=seed)
        assert squares(exact, centroids) <= squares(exact, start) * (1 + 1e-6) + 1e-10 * np.sum(exact**2)


@fast
@given(st.one_of(weights, lattice), st.integers(1, 12))
def test_optimal_is_the_optimum(values, clusters):
    exact = values.astype(np.float64).ravel()
    if np.unique(exact).size > clusters:
        best = squares(exact, np.sort(kmeans1d.cluster(exact.tolist(), clusters).centroids))
        ours = squares(exact, cluster(values, clusters, init="optimal")[0])
        assert ours == pytest.approx(best, rel=1e-6, abs=1e-10 * np.sum(exact**2))


@pytest.mark.parametrize("init", INITS)
def test_same_input_same_bits(init):
    values = np.random.default_rng(0).laplace(size=50_000).astype(np.float32)
    one, other = (cluster(values, 64, init=init, seed=5) for _ in range(2))
    assert one[0].tobytes() == other[0].tobytes()
    assert one[1].tobytes() == other[1].tobytes()
    shuffled = cluster(values[::-1], 64, init=init, seed=5)[0]
    assert one[0].tobytes() == shuffled.tobytes()


def test_seed_counts_for_random_only():
    values = np.random.default_rng(0).normal(size=2_000).astype(np.float32)
    for init in INITS:
        same = np.array_equal(cluster(values, 16, init=init)[0], cluster(values, 16, init=init, seed=1)[0])
        assert same == (init != "random")


# Scale


def test_optimal_on_bins_is_near_the_optimum():
    values = np.random.default_rng(0).standard_t(3, 200_000).astype(np.float32)
    best = squares(values, np.sort(kmeans1d.cluster(values.tolist(), 32).centroids))
    assert best * (1 - 1e-9) <= squares(values, cluster(values, 32, init="optimal")[0]) <= best * 1.005


@pytest.mark.parametrize("init", LOCAL)
def test_a_million_weights_as_good_as_plain_lloyd_and_fast(init):
    bell = np.random.default_rng(0).normal(size=4_000_000).astype(np.float32)
    values = bell[np.abs(bell) > 1][:1_000_000]
    cluster(values[:99], 3)  # imports scikit-learn
    begin = time.process_time()
    centroids, indices = cluster(values, 256, init=init)
    assert time.process_time() - begin < 5
    plain = plain_lloyd(values, initial_centroids(np.sort(values), 256, init=init))
    assert np.sum(np.square(values.astype(np.float64) - centroids[indices])) < squares(values, plain) * 1.005


# The codebook of a kernel


def test_codebook():
    kernel = f32([0, 0.5, -0.0], [-1, 0.5, 2])
    centroids, indices = codebook(kernel)
    np.testing.assert_array_equal(centroids, f32(-1, 0.5, 2))
    np.testing.assert_array_equal(indices, [[0, 2, 0], [1, 2, 3]])
    assert (centroids.dtype, indices.dtype) == (np.float32, np.uint8)
    assert from_codebook(centroids, indices).tobytes() == f32([0, 0.5, 0], [-1, 0.5, 2]).tobytes()


@pytest.mark.parametrize("kernel", [np.zeros((3, 0), np.float32), np.zeros((5, 5), np.float32), f32(-0.0)])
def test_codebook_of_nothing(kernel):
    centroids, indices = codebook(kernel)
    assert (centroids.shape, centroids.dtype) == ((0,), np.float32)
    assert (indices.shape, indices.dtype) == (kernel.shape, np.uint8)
    assert from_codebook(centroids, indices).tobytes() == np.zeros_like(kernel).tobytes()


@pytest.mark.parametrize(
    ("count", "dtype"), [(255, np.uint8), (256, np.uint16), (65_535, np.uint16), (65_536, np.uint32)]
)
def test_codebook_index_type(count, dtype):
    kernel = np.arange(count + 1, dtype=np.float32)
    centroids, indices = codebook(kernel)
    assert indices.dtype == dtype
    np.testing.assert_array_equal(from_codebook(centroids, indices), kernel)


def test_codebook_of_a_clustered_kernel():
    kernel = np.random.default_rng(0).normal(size=(50, 40)).astype(np.float32)
    kernel[np.abs(kernel) < 0.5] = 0
    centroids, indices = cluster(kernel[kernel != 0], 16)
    kernel[kernel != 0] = centroids[indices]
    read, places = codebook(kernel)
    assert read.tobytes() == centroids.tobytes()
    np.testing.assert_array_equal(places[kernel != 0], indices + 1)


@fast
@given(arrays(np.float32, array_shapes(), elements=st.floats(width=32, allow_nan=False)))
def test_codebook_round_trip(kernel):
    made = from_codebook(*codebook(kernel))
    expected = np.where(kernel == 0, np.float32(0), kernel)
    assert (made.dtype, made.shape, made.tobytes()) == (np.float32, kernel.shape, expected.tobytes())


def test_code_lengths_by_hand():
    indices = np.array([[1, 0, 2], [0, 0, 2]])  # density 3.5 / 7
    rows, columns = np.array([2.5, 1.5]) / 4, np.array([1.5, 0.5, 2.5]) / 3
    chance = np.minimum(np.outer(rows, columns) / 0.5, 0.98)
    bits = code_lengths(indices, 2, np.array([0, 2, 5]))
    expected = chance[[0, 0, 1], [0, 2, 2]]
    np.testing.assert_allclose(bits[:, 0], -np.log2(1 - expected))
    np.testing.assert_allclose(bits[:, 1], -np.log2(expected * 1.5 / 4))
    np.testing.assert_allclose(bits[:, 2], -np.log2(expected * 2.5 / 4))


def test_code_lengths_of_a_vector_know_its_density_alone():
    bits = code_lengths(np.array([1, 0, 0, 1]), 1, np.array([0, 1, 3]))
    np.testing.assert_allclose(bits, np.full((3, 2), 1.0))
    assert code_lengths(np.zeros((2, 3), int), 0, np.zeros(0, int)).shape == (0, 1)


@fast
@given(arrays(np.uint8, array_shapes(min_dims=1, max_dims=4, max_side=5), elements=st.integers(0, 3)))
def test_code_lengths_are_those_of_a_code(indices):
    bits = code_lengths(indices, 3, np.arange(indices.size))
    assert np.all(bits > 0)
    np.testing.assert_allclose((2.0**-bits).sum(axis=1), 1)


def test_the_cheapest_cluster_is_the_nearest_unless_bits_cost_more():
    values, centroids = np.array([0.1, 0.4, 1.2, -0.9]), np.array([-1.0, 0.5, 1.0])
    costs, one = np.zeros((4, 4)), np.ones(4)
    assert cheapest(values, one, centroids, costs).tolist() == [0, 2, 3, 1]
    costs[:, 1:] = 0.2
    assert cheapest(values, one, centroids, costs).tolist() == [0, 0, 3, 1]
    assert cheapest(values, np.array([1, 9, 1, 0]), centroids, costs).tolist() == [0, 2, 3, 0]
    assert cheapest(values, one, np.zeros(0), np.zeros((4, 1))).tolist() == [0, 0, 0, 0]


def settled(values, options, costs, slope, curvature, sweeps=1):
    choices = np.argmin((values[:, None] - options) ** 2, axis=1).astype(np.int32)
    slope = slope + curvature @ (options[np.arange(len(values)), choices] - values)
    order = np.arange(len(values))
    changed = [descend(choices, options, costs, slope, curvature, order) for _ in range(sweeps)]
    return choices, slope, changed


def test_what_one_weight_loses_another_makes_good():
    # Only the sum of the two counts, which was 1.0: rounded alone, both would go to 0 and lose all of it.
    values, options = np.array([0.4, 0.45]), np.array([[0.0, 1.0], [0.0, 1.0]])
    together = np.ones((2, 2))
    choices, slope, changed = settled(values, options, np.zeros((2, 2)), np.zeros(2), together)
    assert choices.tolist() == [1, 0]
    assert changed == [1]
    assert np.allclose(slope, [0.15, 0.15])
    assert settled(values, options, np.zeros((2, 2)), np.zeros(2), np.eye(2))[0].tolist() == [0, 0]
    # A price of more than the loss of 0.85^2 / 2 keeps both at nothing, and so does an option that is not there.
    for cost in (0.36, np.inf):
        costs = np.array([[0.0, cost], [0.0, cost]])
        assert settled(values, options, costs, np.zeros(2), together)[0].tolist() == [0, 0]


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 5))
@fast
def test_descent_never_costs_more_and_knows_its_slope(seed, count, width):
    dice = np.random.default_rng(seed)
    values, options, costs = dice.normal(size=count), dice.normal(size=(count, width)), dice.random((count, width))
    root, slope = dice.normal(size=(count + 1, count)), dice.normal(size=count)
    curvature = root.T @ root

    def cost(choices):
        move = options[np.arange(count), choices] - values
        return slope @ move + move @ curvature @ move / 2 + costs[np.arange(count), choices].sum()

    passes = [settled(values, options, costs, slope, curvature, sweeps) for sweeps in range(4)]
    found = [cost(choices) for choices, _, _ in passes]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(found))
    for choices, now, _ in passes:
        assert np.allclose(now, slope + curvature @ (options[np.arange(count), choices] - values))
    if not passes[3][2][-1]:  # Settled: no single weight can do better.
        choices = passes[3][0]
        for weight in range(count):
            for option in range(width):
                other = choices.copy()
                other[weight] = option
                assert cost(other) >= cost(choices) - 1e-9


def test_clusters_move_to_where_the_loss_is_least():
    root = np.random.default_rng(0).normal(size=(9, 5))
    curvature, slope = root.T @ root, np.array([0.5, -1.0, 0.25, 0.0, 2.0])
    members = np.array([0, 2, -1, 0, 2])
    moves = refit(members, 4, slope, curvature)
    assert moves.shape == (4,)
    assert not moves[[1, 3]].any()
    after = slope + curvature @ np.where(members < 0, 0, moves[members])
    assert abs(after[[0, 3]].sum()) < 1e-4
    assert abs(after[[1, 4]].sum()) < 1e-4
    assert abs(after[2]) > 0.01
    assert refit(np.full(5, -1), 0, slope, curvature).shape == (0,)


def test_import_is_light():
    code = "import sys, deepcomp.quantization; print({'sklearn', 'tensorflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_weights_that_take_a_centroid_by_hand():
    def taken(values, inverse, costs, count=1, last=2):
        values, inverse = np.array(values), np.array(inverse)
        weights = len(costs)
        ends = np.full(weights, weights), np.full(weights, last)
        choices = commit(values, inverse, *ends, np.array(costs, np.float64), count)
        return choices.tolist(), values.round(9).tolist()

    # A weight at 1 and a centroid at 0.8 that is four times as stiff: both go to 0.84.
    own = [[1.0, 0.0], [0.0, 0.25]]
    assert taken([1.0, 0.8], own, [[0.0, 0.0]]) == ([1], [0.84, 0.84])
    assert taken([1.0, 0.8], own, [[0.0, 9.0]]) == ([0], [0.0, 0.8])  # a value that costs too much: none
    assert taken([1.0, 0.8], own, [[0.0, 0.0]], count=0) == ([-1], [1.0, 0.8])
    assert taken([0.0, 0.8], own, [[0.0, 0.0]], count=7) == ([0], [0.0, 0.8])
    # Of two weights the nearer goes first; what is left of the error goes to the other.
    both = [[1.0, -0.5, 0.0], [-0.5, 1.0, 0.0], [0.0, 0.0, 1e-12]]
    assert taken([1.0, 0.6, 0.8], both, [[0.0, 0.0], [0.0, 0.0]], last=3) == ([1, -1], [0.8, 0.7, 0.8])
    assert taken([0.9, 0.1, 0.8], both, [[0.0, 0.0], [0.0, 0.0]], last=3, count=2)[0] == [1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_all_that_are_bound_settle_together(seed):
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(10, 30))
    curvature = root @ root.T
    before = np.concatenate([rng.normal(size=7), [-1.0, 0.5, 1.0]])
    first, last = np.array([7, 7, 7, 7, 9, 9, 9]), np.array([9, 9, 9, 9, 10, 10, 10])
    values, inverse = before.copy(), np.linalg.inv(curvature)
    choices = commit(values, inverse, first, last, np.zeros((7, 3)), 5)
    assert np.count_nonzero(choices >= 0) == 5
    # The least of the parabola among all values for which what was chosen holds.
    bound = np.zeros((5, 10))
    for row, weight in enumerate(np.flatnonzero(choices >= 0)):
        bound[row, weight] = 1
        if choices[weight]:
            bound[row, first[weight] + choices[weight] - 1] = -1
    assert bound @ values == pytest.approx(np.zeros(5), abs=1e-9)
    system = np.block([[curvature, bound.T], [bound, np.zeros((5, 5))]])
    expected = np.linalg.solve(system, np.concatenate([curvature @ before, np.zeros(5)]))[:10]
    assert values == pytest.approx(expected, abs=1e-8)


@given(seed=st.integers(0, 2**16), bits=st.floats(0.05, 1.2))
def test_the_cheapest_choices_within_a_number_of_bits(seed, bits):
    rng = np.random.default_rng(seed)
    layers = []
    for shape in ((20, 3), (7, 11)):
        values, centroids = rng.standard_normal(shape), np.sort(rng.standard_normal(4))
        indices = rng.integers(0, 5, shape)
        arguments = values.ravel(), rng.random(values.size) + 0.1, centroids, indices, np.arange(values.size)
        layers.append((arguments, quantization.PricedWeights.of(*arguments)))
    free, _ = quantization.cheapest_within([one for _, one in layers], np.inf)
    needed = sum(one.choices(0.0)[1] for _, one in layers)
    goal = bits * needed
    found, price = quantization.cheapest_within([one for _, one in layers], goal)
    assert (price == 0) == (goal >= needed)
    taken = 0.0
    for choices, without_price, ((values, importance, centroids, indices, positions), one) in zip(
        found, free, layers, strict=True
    ):
        lengths = quantization.code_lengths(indices, 4, positions)
        np.testing.assert_array_equal(
            choices, quantization.cheapest(values, importance, centroids, price * lengths)
        )  # the one price decides in all layers
        np.testing.assert_array_equal(without_price, quantization.cheapest(values, importance, centroids, 0 * lengths))
        taken += lengths[positions, choices].sum()
        assert one.choices(price)[1] == pytest.approx(lengths[positions, choices].sum())
    least = sum(one.choices(1e9)[1] for _, one in layers)
    assert taken <= max(goal, least) * (1 + 1e-9)


@pytest.mark.parametrize("far", [1e-6, 0.2, 0.9, 1.1, 5.0, 1e6])
def test_a_price_near_to_the_right_one_changes_no_bits(far):
    rng = np.random.default_rng(0)
    values, centroids = rng.laplace(size=(80, 50)), np.linspace(-3, 3, 8)
    indices = np.abs(values[..., None] - np.concatenate(([0.0], centroids))).argmin(axis=-1)
    positions = np.arange(values.size)
    layer = quantization.PricedWeights.of(values.ravel(), np.ones(values.size), centroids, indices, positions)
    goal = 0.8 * layer.choices(0.0)[1]
    (exact,), price = quantization.cheapest_within([layer], goal)
    (found,), again = quantization.cheapest_within([layer], goal, near=price)
    np.testing.assert_array_equal(found, exact)
    assert again == price
    _, price = quantization.cheapest_within([layer], goal, near=far * price, tolerance=0.01)
    assert 0.99 * goal <= layer.choices(price)[1] <= goal
