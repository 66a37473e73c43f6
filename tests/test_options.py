"""The option classes: defaults, ranges, names of earlier versions, and options given by name."""

import numpy as np
import pytest

from deepcomp import options
from deepcomp.errors import DeepcompError, RecipeError
from deepcomp.options import Pruning, Schedule, SecondOrderPruning, Sharing, Training


def test_a_schedule_without_an_end_changes_everything_at_once():
    assert Schedule().update_steps == [0]
    assert Schedule().fraction(0) == 1.0


def test_a_schedule_rises_as_a_cubic_and_ends_at_its_end():
    schedule = Schedule(begin=10, end=35, every=10)
    assert schedule.update_steps == [10, 20, 30, 35]
    assert [schedule.fraction(step) for step in (0, 10, 35, 99)] == [0.0, 0.0, 1.0, 1.0]
    assert schedule.fraction(20) == pytest.approx(1 - 0.6**3)


def test_one_criterion_of_pruning_is_given_and_the_default_is_a_sparsity():
    assert (Pruning().criterion, Pruning().goal) == ("sparsity", 0.9)
    assert (Pruning(threshold=0.1).criterion, Pruning(threshold=0.1).goal) == ("threshold", 0.1)
    some = Pruning(sparsity={"conv.*": 0.5})
    assert (some.goal, some.own_goals) == (0.0, {"conv.*": 0.5})
    with pytest.raises(RecipeError, match="not sparsity and quality together"):
        Pruning(sparsity=0.5, quality=1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pruning(sparsity=1.0), r"sparsity=1.0: it must be from 0 to less than 1"),
        (lambda: Pruning(sparsity={"a": -1}), r"sparsity\['a'\]=-1.0: it must be from 0 to less than 1"),
        (lambda: Pruning(sparsity=float("nan")), r"sparsity=nan: it must be from 0"),
        (lambda: Pruning(sparsity="much"), r"sparsity='much' of Pruning: it must be a number or a table"),
        (lambda: Pruning(scope="everywhere"), r"scope='everywhere': it must be one of global, layer"),
        (lambda: Pruning(layers={"a": 1.5}), r"a sparsity must be from 0 to less than 1"),
        (lambda: Pruning(flops_power=1, threshold=0.1), r"flops_power=1 compares layers"),
        (lambda: Pruning(tolerance=1, threshold=0.1), r"tolerance=1 chooses sparsities"),
        (lambda: SecondOrderPruning(sparsity=0.5), r"need second_order_rounds above 0"),
        (lambda: Sharing(clusters=0), r"clusters=0: it must be from 1 to 65536"),
        (lambda: Sharing(clusters=2.5), r"clusters=2.5 of Sharing: it must be a whole number or a table"),
        (lambda: options.build(Sharing, {"bits": "four"}), r"bits='four': it must be a whole number from 0 to 16"),
        (lambda: options.build(Sharing, {"bits": {"a": 40}}), r"bits=40: it must be a whole number from 0 to 16"),
        (lambda: options.build(Sharing, {"bias_bits": -1}), r"bits=-1: it must be a whole number from 0 to 16"),
        (lambda: Sharing(end=10), r"a lambda above 0 needs an end or rounds"),
        (lambda: Sharing(rate_distortion_lambda=0.1), r"a lambda above 0 needs an end or rounds"),
        (lambda: Training(steps=10**20), r"steps=100000000000000000000: it must be from 0 to"),
        (lambda: Training(steps=True), r"steps=True of Training: it must be a whole number"),
        (lambda: Training(batch=0), r"batch=0: it must be"),
        (lambda: Training(learning_rate=float("inf")), r"learning_rate=inf: it must be a finite number, 0 or more"),
        (lambda: Training(optimizer="sdg"), r"optimizer='sdg': it must be one of adam"),
        (
            lambda: options.build(Training, {"distillation": 0.5, "temperature": 0.0}),
            r"temperature=0: it must be above",
        ),
    ],
)
def test_what_is_out_of_range_is_refused_in_one_line(make, message):
    with pytest.raises(RecipeError, match=message) as caught:
        make()
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, DeepcompError)
    assert "\n" not in str(caught.value)


def test_numbers_of_numpy_are_numbers():
    assert Training(steps=np.int64(5), learning_rate=np.float32(0.5)).steps == 5
    assert Pruning(sparsity=np.float64(0.5)).goal == 0.5


def test_names_of_earlier_versions_are_read():
    old = {"by": "threshold", "value": 0.1, "ramp": 30, "newton_rounds": 2, "newton_value": 0.5, "newton_shift": -1}
    built = options.build(Pruning, old)
    assert (built.threshold, built.sparsity, built.end) == (0.1, None, 30)
    assert built.second_order == SecondOrderPruning(rounds=2, sparsity=0.5, shift=None)
    shared = options.build(Sharing, {"bits": {"conv": 3}, "bias_bits": 2, "bit_price": 0.1, "newton_rounds": 1})
    assert (shared.clusters, shared.bias_clusters, shared.rate_distortion_lambda) == ({"conv": 8}, 4, 0.1)
    taught = options.build(Training, {"distillation": 0.5, "temperature": 2})
    assert (taught.distillation.weight, taught.distillation.temperature) == (0.5, 2.0)


def test_a_value_alone_changes_the_criterion_that_is_there():
    base = Pruning(threshold=0.1)
    assert options.build(Pruning, {**options.flat(base), "value": 0.2}).threshold == 0.2


def test_a_flat_table_gives_the_same_options_back():
    pruning = Pruning(sparsity=0.5, end=10, second_order=SecondOrderPruning(rounds=1, sparsity=0.7))
    assert options.build(Pruning, options.flat(pruning)) == pruning


@options.by_name({"pruning": Pruning, "training": Training})
def called(model, data, pruning=None, training=None):
    """A function as the library has them."""
    return pruning, training


def test_options_are_given_as_objects_or_by_name_or_both():
    assert called("m", "d") == (Pruning(), Training())
    assert called("m", "d", sparsity=0.5, steps=7) == (Pruning(sparsity=0.5), Training(steps=7))
    both = called("m", "d", Pruning(sparsity=0.5, end=3), Training(batch=9), threshold=0.1, steps=4)
    assert both == (Pruning(threshold=0.1, end=3), Training(batch=9, steps=4))
    assert called("m", data="d", ramp=3)[0].end == 3


def test_mistakes_of_a_call_are_answered_in_one_line():
    with pytest.raises(RecipeError, match=r"called: There is no option 'sparcity': do you mean 'sparsity'\."):
        called("m", "d", sparcity=0.5)
    with pytest.raises(RecipeError, match=r"pruning must be a deepcomp.Pruning, not an array of shape \(3,\)"):
        called("m", "x", np.zeros(3))
    with pytest.raises(RecipeError, match=r"called: missing a required argument: 'data'"):
        called("m")


def test_every_option_is_in_the_reference_page():
    page = options.reference_page()
    for kind in (Pruning, Sharing, Training):
        assert [name for name in options.documented(kind) if f"| `{name}`" not in page] == []
    assert "second_order_rounds" in page
    assert "distillation_weight" in page


def test_errors_of_nested_options_name_them_as_they_were_given():
    for kind, table, says in (
        (Pruning, {"second_order_rounds": -1}, r"^second_order_rounds=-1: it must be 0 or more"),
        (Sharing, {"second_order_shift": 0.5}, r"^second_order_shift=0.5 of SecondOrderSharing"),
        (Training, {"distillation_temperature": -1.0}, r"^distillation_temperature=-1"),
        (Training, {"distillation_weight": 2}, r"^distillation_weight=2"),
        (Pruning, {"begin": -2}, r"^begin=-2"),
    ):
        with pytest.raises(RecipeError, match=says):
            options.build(kind, table)
