import itertools

import numpy as np
import pytest

from deepcomp import models, pruning, quantization
from deepcomp.errors import RecipeError
from deepcomp.options import Pruning
from deepcomp.second_order import quadratic, sharing
from deepcomp.second_order.loss import SurvivorLoss
from deepcomp.training import parametrize
from deepcomp.training.predict import evaluate
from tests.common import prune_rounds, share_rounds

HISTORY = {"step": [0, 100], "loss": [None, 0.5], "accuracy": [None, 0.8], "validation_accuracy": [0.1, 0.7]}


def share(model, clusters=4):
    tensors = parametrize.shareable(model)
    latent = {name: variable.numpy() for name, variable in tensors.items()}
    for name, variable in tensors.items():
        variable.assign(quantization.share(latent[name], clusters, init="optimal"))
    return parametrize.shared(model, tensors, latent=latent)


def test_pruning_loses_less_where_the_rest_makes_up_for_it(digits, trained):
    model = trained()
    kernels = models.kernel_values(model)
    sparsity = 0.93
    plain = trained()
    masks = pruning.masks(kernels, Pruning(sparsity=sparsity))
    for name, variable in models.kernels(plain).items():
        variable.assign(kernels[name] * masks[name])
    history = prune_rounds(model, digits, sparsity=sparsity, rounds=5, history=HISTORY)
    found = models.kernel_values(model)
    whole = sum(kernel.size for kernel in kernels.values())
    assert sum(np.count_nonzero(kernel) for kernel in found.values()) == whole - int(whole * sparsity + 1e-9)
    assert all(not np.any(found[name][kernels[name] == 0]) for name in kernels)
    before, after = (evaluate(one, digits.x_train, digits.y_train) for one in (plain, model))
    assert after > before + 0.05
    assert history["step"] == [0, 100, 101, 102, 103, 104, 105]
    assert history["accuracy"][-1] == pytest.approx(after, abs=0.02)
    assert history["validation_accuracy"][-1] == evaluate(model, digits.x_validation, digits.y_validation)


@pytest.mark.slow
def test_pruning_without_a_goal_adjusts_what_is_left(digits, few, trained):
    model, again = trained(steps=30), trained(steps=30)
    left = {name: kernel != 0 for name, kernel in models.kernel_values(model).items()}
    teacher = trained()
    learning = {"teacher": teacher, "distillation": 0.5, "temperature": 2.0, "shift": 1}
    for one in (model, again):
        history = prune_rounds(one, few, sparsity=0.0, rounds=2, seed=3, **learning)
    assert history["loss"][1] < history["loss"][0]
    assert all(np.array_equal(kernel != 0, left[name]) for name, kernel in models.kernel_values(model).items())
    assert all(np.array_equal(a, b) for a, b in zip(model.get_weights(), again.get_weights(), strict=True))
    assert prune_rounds(model, few, sparsity=0.0, rounds=0, history=HISTORY) == HISTORY


def test_rounds_win_back_what_sharing_lost(digits, trained):
    model = trained()
    free = evaluate(model, digits.x_train, digits.y_train)
    network = share(model, clusters=3)
    before = evaluate(network, digits.x_train, digits.y_train)
    history = share_rounds(network, digits, rounds=4, history=HISTORY)
    after = evaluate(network, digits.x_train, digits.y_train)
    assert before < free - 0.03
    assert after > before + 0.03
    assert history["step"] == [0, 100, 101, 102, 103, 104]
    assert history["accuracy"][-1] == pytest.approx(after, abs=0.02)
    assert history["validation_accuracy"][-1] == evaluate(network, digits.x_validation, digits.y_validation)
    written = network.write_back()
    for kernel in models.kernel_values(written).values():
        values = np.unique(kernel[kernel != 0])
        assert len(values) <= 3
        assert np.array_equal(values, values.astype(np.float16))
    assert evaluate(written, digits.x_train, digits.y_train) == after


@pytest.mark.parametrize(
    ("prices", "rounds"),
    [((0.0, 0.2, 1e6), 1), pytest.param((0.0, 0.02, 0.2, 1e6), 2, marks=pytest.mark.slow)],
    ids=["one round", "two rounds"],
)
def test_a_price_takes_bits_and_latent_weights_are_where_it_begins(few, trained, prices, rounds):
    bits, left = [], []
    for price in prices:
        network = share(trained(), clusters=4)
        survivors = {name: made.positions.copy() for name, made in network.shared.items()}
        share_rounds(network, few, rounds=rounds, price=price, shift=1)
        found = sharing._Assignment.of(network)
        bits.append(found.bits())
        left.append(np.count_nonzero(found.clusters))
        for name, made in network.shared.items():
            assert set(np.flatnonzero(made.kernel())) <= set(survivors[name])
    assert bits == sorted(bits, reverse=True)
    assert all(more > fewer for more, fewer in itertools.pairwise(left))


@pytest.mark.slow
def test_the_same_rounds_twice_are_the_same(few, trained, deterministic):
    def settled(seed):
        network = share(trained(steps=30))
        share_rounds(network, few, rounds=2, price=0.01, shift=1, seed=seed)
        return [array.tobytes() for array in network.write_back().get_weights()]

    deterministic(0)
    first = settled(0)
    assert first == settled(0)
    assert first != settled(1)


def test_what_is_not_shared_stays_and_what_is_worse_is_undone(digits, few, monkeypatch, trained):
    model = trained(steps=30)
    network = parametrize.shared(model, ["dense"])
    before = model.get_weights()
    dense = [variable.path for variable in model.variables].index("small/dense/kernel")
    share_rounds(network, few, rounds=1)
    after = network.write_back().get_weights()
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        assert np.array_equal(np.float16(old), np.float16(new)) == (number != dense)

    network = parametrize.shared(share(trained(steps=30)).write_back(), ["dense", "hidden"])
    before = sharing._Assignment.of(network)
    tries = []

    def worse(found, *rest):
        tries.append(rest)
        return found.moved(np.full(sum(own.size for own in found.codebooks), 3.0))  # up to a far worse loss

    monkeypatch.setattr(sharing, "_with_clusters_changed", worse)
    share_rounds(network, few, rounds=1)
    after = sharing._Assignment.of(network)
    assert np.array_equal(before.values(), after.values())
    assert [rest[-1] for rest in tries] == pytest.approx([0.2, 0.8, 3.2, 12.8])  # damped more and more


def test_where_moving_centroids_ruins_the_network_they_stay(few, monkeypatch, trained):
    network = share(trained(steps=30))
    with_more, held = sharing._with_more_assigned, []

    def ruinous(found, *rest, **how):
        held.append(bool(how))
        made = with_more(found, *rest, **how)
        if not how:
            return made.moved(np.full(sum(own.size for own in found.codebooks), 30.0))
        assert all(np.array_equal(old, new) for old, new in zip(found.codebooks, made.codebooks, strict=True))
        return made

    monkeypatch.setattr(sharing, "_with_more_assigned", ruinous)
    history = share_rounds(network, few, rounds=2)
    assert held[:5] == [False] * 4 + [True]
    assert history["loss"][0] < 1
    assert evaluate(network, few.x_train, few.y_train) > 0.8


def test_of_two_ruins_the_lesser_is_taken(few, monkeypatch, trained):
    network = share(trained(steps=30))

    def ruinous(found, *rest, fixed=False):
        count = sum(own.size for own in found.codebooks)
        return found.assigned().moved(np.full(count, 1000.0 if fixed else 30.0))

    monkeypatch.setattr(sharing, "_with_more_assigned", ruinous)
    share_rounds(network, few, rounds=1)
    assert 25 < sharing._Assignment.of(network).codebooks[0].mean() < 35


def test_too_many_weights_and_none(digits, few, monkeypatch, trained):
    network = share(trained(steps=5))
    monkeypatch.setattr(quadratic, "MAX_SURVIVORS", 100)
    with pytest.raises(RecipeError, match=r"at most 100 weights, with their biases, and \d{3} are left: prune more"):
        share_rounds(network, few, rounds=1)
    with pytest.raises(RecipeError, match="at most 100 weights"):
        prune_rounds(network.model, few, sparsity=0.5, rounds=1)
    assert share_rounds(network, few, rounds=0)["step"] == []
    with pytest.raises(RecipeError, match="nothing to assign"):
        share_rounds(parametrize.masked(network.model), few, rounds=1)


@pytest.mark.parametrize("what", ["loss", "gradient", "curvature"])
def test_what_is_not_finite_is_refused_with_the_number_of_the_round(few, monkeypatch, trained, what):
    model = trained(steps=5)
    before = [array.copy() for array in model.get_weights()]
    own = getattr(SurvivorLoss, what)
    broken = (lambda *_: (np.nan, 0.5)) if what == "loss" else lambda *arguments: own(*arguments) * np.nan
    monkeypatch.setattr(SurvivorLoss, what, broken)
    with pytest.raises(RecipeError, match="Round 1 by curvature: loss, gradient or curvature is not finite"):
        prune_rounds(model, few, sparsity=0.5, rounds=2)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.slow
def test_a_singular_curvature_is_damped_or_refused(few, monkeypatch, trained):
    model = trained(steps=5)
    before = [array.copy() for array in model.get_weights()]
    surgery, calls = pruning.surgery, []

    def singular(times):
        def make(*arguments):
            calls.append(arguments)
            if len(calls) <= times:
                raise np.linalg.LinAlgError("Singular matrix")
            return surgery(*arguments)

        return make

    monkeypatch.setattr(pruning, "surgery", singular(4))
    with pytest.raises(RecipeError, match="Round 1 by curvature: the curvature stays singular"):
        prune_rounds(model, few, sparsity=0.5, rounds=1)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    calls.clear()
    monkeypatch.setattr(pruning, "surgery", singular(1))
    prune_rounds(model, few, sparsity=0.97, rounds=1)
    assert all(np.isfinite(array).all() for array in model.get_weights())


def test_weights_without_influence_do_not_stop_the_rounds(few, trained):
    model = trained(steps=5)
    model.get_layer("hidden").kernel.assign(np.zeros(model.get_layer("hidden").kernel.shape))
    prune_rounds(model, few, sparsity=0.97, rounds=2)
    assert all(np.isfinite(array).all() for array in model.get_weights())
