import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deepcomp import options, pruning
from deepcomp.errors import RecipeError
from deepcomp.options import CRITERIA, SCOPES, SCORES, Pruning

KERNEL = np.array([[0.5, -0.1, 0.0], [-0.09, 0.3, -0.7]], np.float32)


def decide(kernels, goals=None, fraction=1.0, squares=None, costs=None, **fields):
    how = Pruning(**{"scope": "layer", **fields})
    return pruning.masks(kernels, how, goals, fraction=fraction, squares=squares, costs=costs)


def masks(kernels, *goals, **how):
    return {name: mask.astype(int).tolist() for name, mask in decide(kernels, *goals, **how).items()}


def test_threshold_keeps_magnitudes_at_or_above_it():
    kernel = np.array([0.5, -0.1, 0.0, -0.09, 0.1], np.float64)
    assert masks({"a": kernel}, threshold=0.1) == {"a": [1, 1, 0, 0, 1]}


def test_quality_is_a_threshold_in_standard_deviations():
    kernel = np.array([-3.0, -1.0, 1.0, 3.0])  # standard deviation sqrt(5) = 2.236
    assert masks({"a": kernel}, quality=1.0) == {"a": [1, 0, 0, 1]}
    assert masks({"a": kernel}, quality=0.4) == {"a": [1, 1, 1, 1]}
    assert masks({"a": kernel}, quality=1.4) == {"a": [0, 0, 0, 0]}


def test_sparsity_removes_exactly_its_share_and_of_equals_the_last():
    assert masks({"a": KERNEL}, sparsity=0.5) == {"a": [[1, 0, 0], [0, 1, 1]]}
    assert masks({"a": np.ones(5)}, sparsity=0.6) == {"a": [1, 1, 0, 0, 0]}
    kept = decide({"a": np.arange(1, 101.0)}, sparsity=0.95)["a"]
    assert np.count_nonzero(kept) == 5
    assert masks({"a": np.array([2.0])}, sparsity=0.99) == {"a": [1]}


def test_global_sparsity_ranks_all_layers_together():
    kernels = {"a": np.array([1.0, 2.0, 3.0]), "b": np.array([10.0, 20.0, 30.0])}
    assert masks(kernels, sparsity=0.5, scope="global") == {"a": [0, 0, 0], "b": [1, 1, 1]}


def test_lamp_scores_by_hand_and_saves_every_layer_s_largest():
    # Squares 1, 4, 9: 9 of 9, 4 of 13, 1 of 14.
    assert np.allclose(pruning.lamp(np.array([-1.0, 3.0, 2.0])), [1 / 14, 1.0, 4 / 13])
    kernels = {"a": np.array([1.0, 2.0, 3.0]), "b": np.array([10.0, 20.0, 30.0])}
    kept = masks(kernels, sparsity=0.5, scope="global", scores="lamp")
    assert kept == {"a": [0, 1, 1], "b": [0, 0, 1]}  # of the equal scores 4/13 the first stays
    assert pruning.lamp(np.zeros(3)).tolist() == [0, 0, 0]


def test_saliency_is_a_weight_s_square_times_its_squared_gradient():
    kernels = {"a": np.array([1.0, -2.0, 3.0]), "b": np.array([10.0, 20.0, 0.0])}
    squares = {"a": np.array([1.0, 1.0, 1.0]), "b": np.array([0.001, 0.02, 5.0])}
    # 1, 4, 9 and 0.1, 8, 0.
    assert np.allclose(pruning.saliency(kernels["b"], squares["b"]), [0.1, 8.0, 0.0])
    how = {"scores": "saliency", "squares": squares}
    assert masks(kernels, sparsity=0.5, scope="global", **how) == {"a": [0, 1, 1], "b": [0, 1, 0]}
    assert masks(kernels, sparsity=0.4, **how) == {"a": [0, 1, 1], "b": [1, 1, 0]}
    assert masks(kernels, {"b": 0.7}, sparsity=0.5, scope="global", **how) == {"a": [0, 1, 1], "b": [0, 1, 0]}


def test_scores_are_divided_by_what_a_weight_of_the_layer_costs():
    kernels = {"a": np.array([1.0, 2.0, 3.0]), "b": np.array([10.0, 20.0, 30.0])}
    how = {"scope": "global", "costs": {"b": 9.0}}  # 1, 2, 3 and 1.11, 2.22, 3.33
    assert masks(kernels, sparsity=0.5, **how) == {"a": [0, 0, 1], "b": [0, 1, 1]}
    assert masks(kernels, sparsity=0.25, **how) == {"a": [0, 1, 1], "b": [1, 1, 1]}
    assert masks(kernels, {"a": 0.0}, sparsity=0.5, **how) == {"a": [1, 1, 1], "b": [0, 1, 1]}


@pytest.mark.parametrize("squares", [None, {"a": np.zeros(3)}])
def test_saliency_needs_squared_gradients_once_it_prunes(squares):
    how = {"sparsity": 0.5, "scores": "saliency", "squares": squares}
    with pytest.raises(RecipeError, match="give an end, so that pruning is gradual"):
        decide({"a": np.ones(3)}, **how)
    if squares:
        assert masks({"a": np.ones(3)}, fraction=0.0, **how) == {"a": [1, 1, 1]}


def test_a_layer_s_own_setting_takes_it_out_of_the_common_pool():
    kernels = {"a": np.array([1.0, 2.0]), "b": np.array([10.0, 20.0]), "c": np.array([30.0, 40.0])}
    kept = masks(kernels, {"c": 0.0}, sparsity=0.5, scope="global")
    assert kept == {"a": [0, 0], "b": [1, 1], "c": [1, 1]}
    kept = masks(kernels, {"a": 0.0}, threshold=15.0)
    assert kept == {"a": [1, 1], "b": [0, 1], "c": [1, 1]}


def test_empty_layers_and_no_layers():
    assert decide({}, sparsity=0.5, scope="global") == {}
    assert masks({"a": np.zeros(3)}, sparsity=0.5) == {"a": [0, 0, 0]}


KERNELS = st.dictionaries(
    st.sampled_from("abc"),
    hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=6), elements=st.floats(-4, 4, width=16)),
    min_size=1,
)


@given(
    KERNELS,
    st.sampled_from(CRITERIA),
    st.floats(0, 0.99),
    st.sampled_from(SCOPES),
    st.sampled_from(SCORES),
    st.floats(0, 1),
)
def test_pruning_never_resurrects_a_weight_and_goes_on_from_where_it_is(kernels, by, value, scope, scores, fraction):
    squares = {name: 1 + np.abs(kernel) for name, kernel in kernels.items()}
    how = {by: value, "scope": scope, "scores": scores, "squares": squares}
    first = decide(kernels, fraction=fraction, **how)
    pruned = {name: kernel * first[name] for name, kernel in kernels.items()}
    second = decide(pruned, **how)
    for name, kernel in kernels.items():
        assert first[name].shape == kernel.shape
        assert first[name].dtype == bool
        assert not np.any(first[name] & (kernel == 0))
        assert not np.any(second[name] & ~first[name])
    if by == "sparsity":
        total = sum(kernel.size for kernel in kernels.values())
        left = sum(np.count_nonzero(mask) for mask in second.values())
        floors = total if scope == "global" else 0
        allowed = (
            floors - int(floors * value + 1e-9)
            if floors
            else sum(kernel.size - int(kernel.size * value + 1e-9) for kernel in kernels.values())
        )
        assert left <= allowed


def test_tolerated_sparsities_by_hand():
    accuracies = {
        "falls": [0.99, 0.98, 0.96, 0.5],  # 0.975, 1.5 points down, is a quarter of the way from 0.5 to 0.8
        "holds": [0.99, 0.99, 1.0, 0.975],  # to the last that was measured
        "comes back": [0.99, 0.9, 0.99, 0.99],  # what lies beyond a fall does not count: 0.5 x 1.5 / 9
        "at once": [0.99, 0.975, 0.1, 0.1],  # 0.5 is just tolerated
    }
    chosen = pruning.tolerated(accuracies, 1.5, [0, 0.5, 0.8, 0.99])
    assert chosen == {"falls": 0.575, "holds": 0.99, "comes back": 0.0833, "at once": 0.5}
    assert pruning.tolerated({}, 1.0) == {}


@given(
    st.lists(st.integers(0, 6000), min_size=len(pruning.SPARSITIES), max_size=len(pruning.SPARSITIES)),
    st.floats(0.01, 90),
    st.floats(0, 9),
)
def test_tolerated_sparsities_are_usable_cost_no_more_and_grow_with_the_tolerance(right, tolerance, more):
    accuracies = {"a": [count / 6000 for count in right]}
    small, large = (pruning.tolerated(accuracies, points)["a"] for points in (tolerance, tolerance + more))
    assert 0 <= small <= large < 1
    before = [a for s, a in zip(pruning.SPARSITIES, accuracies["a"], strict=True) if s <= small]
    before.append(np.interp(small, pruning.SPARSITIES, accuracies["a"]))
    assert min(before) >= accuracies["a"][0] - tolerance / 100 - 1e-8
    assert decide({"a": KERNEL}, sparsity=large)["a"].any()


def curved(size, seed):
    """Values, a gradient and a positive definite curvature."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, 2 * size))
    return rng.normal(size=size), rng.normal(size=size), root @ root.T / size


def test_surgery_by_hand():
    alone = np.eye(2)
    together = np.array([[1.0, 0.9], [0.9, 1.0]])
    values, still, both = np.array([1.0, 0.5]), np.zeros(2), np.ones(2, bool)
    assert pruning.surgery(values, still, alone, both, 0).tolist() == [1.0, 0.5]
    assert pruning.surgery(values, still, alone, both, 1).tolist() == [1.0, 0.0]
    assert pruning.surgery(values, still, together, both, 1) == pytest.approx([1.45, 0.0])  # 1 + 0.9 x 0.5
    assert pruning.surgery(values, still, together, np.array([True, False]), 1) == pytest.approx([0.0, 1.4])
    assert pruning.surgery(values, np.array([0.25, 0.0]), alone, both, 1).tolist() == [0.75, 0.0]
    assert pruning.surgery(values, still, alone, both, 5).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("seed", range(5))
def test_surgery_removes_what_costs_least_and_the_rest_makes_up_for_it(seed):
    values, gradient, curvature = curved(9, seed)

    def cheapest_without(gone):
        left = np.setdiff1d(np.arange(9), gone)
        move = -values.copy()
        move[left] = np.linalg.solve(
            curvature[np.ix_(left, left)], -gradient[left] + curvature[np.ix_(left, gone)] @ values[gone]
        )
        return gradient @ move + 0.5 * move @ curvature @ move, values + move

    gone = []
    for _ in range(3):  # one after the other, by trying each
        gone.append(min(set(range(8)) - {*gone}, key=lambda one: cheapest_without([*gone, one])[0]))
    found = pruning.surgery(values, gradient, curvature, np.arange(9) < 8, 3)
    assert np.flatnonzero(found == 0).tolist() == sorted(gone)
    assert found == pytest.approx(cheapest_without(gone)[1])


def test_pruning_is_in_one_shot_or_gradual():
    shot = Pruning()
    assert (shot.update_steps, shot.fraction(0)) == ([0], 1.0)
    gradual = Pruning(end=250, every=100)
    assert gradual.update_steps == [0, 100, 200, 250]
    assert [round(gradual.fraction(step), 3) for step in gradual.update_steps] == [0.0, 0.784, 0.992, 1.0]
    assert gradual.fraction(1000) == 1.0
    kernels = {"a": np.arange(1, 101.0)}
    left = [int(decide(kernels, sparsity=0.5, fraction=fraction)["a"].sum()) for fraction in (0.0, 0.5, 1.0)]
    assert left == [100, 75, 50]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"by": "sparsity", "value": 1.0}, "sparsity=1.0: it must be from 0 to less than 1"),
        ({"by": "sparsity", "value": -0.1}, "sparsity=-0.1"),
        ({"quality": -1.0}, "quality=-1.0: it must be a finite number, 0 or more"),
        ({"by": "threshold", "value": float("nan")}, "threshold=nan"),
        ({"by": "size", "value": 0.5}, "by='size'"),
        ({"scope": "world"}, "scope='world'"),
        ({"scores": "luck"}, "scores='luck'"),
        ({"end": -1}, "end=-1: it must be 0 or more"),
        ({"every": 0}, "every=0: it must be 1 or more"),
    ],
)
def test_bad_settings_are_refused(how, message):
    with pytest.raises(RecipeError, match=message):
        options.build(Pruning, how)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_kernel_that_is_not_finite_is_refused_by_its_name(value):
    with pytest.raises(RecipeError, match="The kernel of 'b' has values that are not finite: has the network diverged"):
        decide({"a": np.ones(2), "b": np.array([1.0, value])}, sparsity=0.5)
