"""The limit of a search: which metrics rise, how far they may fall, and agreement where there are no labels."""

import numpy as np
import pytest

from deepcomp.data import Part
from deepcomp.errors import RecipeError
from deepcomp.options import Search
from deepcomp.search.judge import standard_error
from deepcomp.search.limit import Agreement, Limit, limit_of, rises


@pytest.mark.parametrize("name", ["accuracy", "val_acc", "AUC", "binary_accuracy", "iou", "r2_score", "agreement"])
def test_metrics_that_are_better_the_higher_they_are(name):
    assert rises(name)


@pytest.mark.parametrize("name", ["loss", "mean_absolute_error", "mse", "false_positives", "kl_divergence"])
def test_metrics_that_are_better_the_lower_they_are(name):
    assert not rises(name)


def test_points_of_a_metric_that_rises_and_percent_of_one_that_falls():
    accuracy, loss = Limit("accuracy", True, 0.9, 0.5), Limit("loss", False, 2.0, 10.0)
    assert accuracy.bound == pytest.approx(0.895)
    assert loss.bound == pytest.approx(2.2)
    assert [accuracy.allows(value) for value in (0.8949, 0.895, 0.9, 1.0)] == [False, True, True, True]
    assert [loss.allows(value) for value in (2.21, 2.2, 2.0, 0.1)] == [False, True, True, True]
    assert str(accuracy) == "accuracy at least 89.50% (the full network's 90.00%)"
    assert str(loss) == "loss at most 2.2 (the full network's 2)"


def test_nothing_may_be_lost_but_rounding():
    exact = Limit("loss", False, 0.25, 0.0)
    assert exact.allows(0.25 + 1e-8)
    assert not exact.allows(0.2501)
    assert Limit("accuracy", True, 0.97, 0.0).allows(0.97)


def test_a_reserve_counts_as_lost():
    accuracy, loss = Limit("accuracy", True, 0.9, 0.5), Limit("loss", False, 2.0, 10.0)
    assert [accuracy.allows(0.897, error, 0.5) for error in (0.0, 0.004, 0.006)] == [True, True, False]
    assert [loss.allows(2.15, error, 1.0) for error in (0.0, 0.05, 0.06)] == [True, True, False]
    assert accuracy.allows(0.897, float("inf"), 0.0)  # one example has no standard error
    assert not accuracy.allows(0.897, float("inf"), 0.5)


def test_a_fold_whose_metric_is_no_number_does_not_count():
    assert standard_error(np.array([1.0, np.nan, 3.0])) == standard_error(np.array([1.0, 3.0])) == 1.0
    assert standard_error(np.array([0.5])) == float("inf")


def test_what_training_makes_up_for_is_more():
    limit = Limit("accuracy", True, 0.9, 0.5)
    assert limit.loosened().bound == pytest.approx(0.89)
    assert limit.loosened(0.5).bound == pytest.approx(0.8925)
    assert limit.bound == pytest.approx(0.895)


def test_the_metric_is_the_first_or_the_one_that_is_named():
    measures = {"accuracy": 0.9, "loss": 0.3}
    assert limit_of(measures, Search(), 1.0).metric == "accuracy"
    named = limit_of(measures, Search(metric="loss"), 1.0)
    assert (named.metric, named.rises, named.full) == ("loss", False, 0.3)
    assert limit_of({"own": 0.5}, Search(rises=True), 1.0).bound == pytest.approx(0.49)
    with pytest.raises(RecipeError, match=r"metric='auc': the network is measured by accuracy, loss\."):
        limit_of(measures, Search(metric="auc"), 1.0)
    with pytest.raises(RecipeError, match="loss is nan: there is nothing to compare with"):
        limit_of({"loss": float("nan")}, Search(), 1.0)


def test_agreement_of_classes_and_of_numbers():
    expected = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]], np.float32)
    agreement = Agreement(lambda x: expected[x])
    examples = Part(np.arange(4))
    assert agreement.measured(lambda x: expected[x], examples) == {"agreement": 1.0}
    assert agreement.measured(lambda x: expected[[0, 1, 2, 0]][x], examples) == {"agreement": 0.75}
    values = np.array([[0.0], [2.0]], np.float32)  # of variance 1
    agreement = Agreement(lambda x: values[x])
    assert agreement.measured(lambda x: values[x], Part(np.arange(2))) == {"agreement": 1.0}
    off = agreement.measured(lambda x: values[x] + 0.5, Part(np.arange(2)))
    assert off["agreement"] == pytest.approx(0.75)
