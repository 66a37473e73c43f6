import math
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from deepcomp import models
from deepcomp.data import Part
from deepcomp.errors import RecipeError
from deepcomp.second_order import loss as second_order_loss
from deepcomp.second_order.loss import RunningMean, SurvivorLoss, draw_probabilities
from deepcomp.training import parametrize
from deepcomp.training.predict import evaluate
from tests.common import prepared


def places_of(model):
    named = parametrize.shareable(model)
    return {name: (variable, np.flatnonzero(variable.numpy())) for name, variable in named.items()}


def loss_of(model, places, dataset, **fields):
    training, task, fitted = prepared(model, dataset, **fields)
    return SurvivorLoss(model, places, fitted, task, training)


def values_of(places):
    return np.concatenate([variable.numpy().ravel()[own] for variable, own in places.values()]).astype(np.float64)


@pytest.mark.parametrize(
    ("softmax", "distillation"),
    [
        pytest.param(False, 0.0, id="labels", marks=pytest.mark.slow),
        pytest.param(True, 0.75, id="both"),
        pytest.param(False, 1.0, id="teacher", marks=pytest.mark.slow),
    ],
)
def test_loss_gradient_and_curvature_are_those_of_the_network(trained, few, monkeypatch, softmax, distillation):
    few = replace(few, train=few.train.sample(10))
    teacher, model = trained(steps=30, softmax=softmax), trained(steps=5, softmax=softmax)
    monkeypatch.setattr(second_order_loss, "_ROWS_PER_WEIGHT", 10**6)
    monkeypatch.setattr(second_order_loss, "_BATCH", 5)
    places = places_of(model)
    learning = {"teacher": teacher, "distillation": distillation, "temperature": 3.0} if distillation else {}
    losses, at = loss_of(model, places, few, **learning), values_of(places)
    assert losses.size == at.size
    assert losses._model.get_layer("hidden").units < 40  # unused neurons are left out

    def scores(network, x):
        outputs = network(x, training=False)
        return tf.math.log(outputs + 1e-7) if softmax else outputs

    x, y = few.x_train.astype(np.float32) / 255, few.y_train
    soft = tf.nn.softmax(scores(teacher, x) / 3)
    variables = [variable for variable, _ in places.values()]
    with tf.GradientTape(persistent=True) as tape:
        logits = scores(model, x)
        labelled = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
        taught = tf.reduce_mean(keras.losses.kl_divergence(soft, tf.nn.softmax(logits / 3)))
        loss = (1 - distillation) * labelled + distillation * 9 * taught
        by_image = tf.unstack(tf.reshape(logits, [-1]))

    def gradient(of):
        found = tape.gradient(of, [variable.value for variable in variables])
        return np.concatenate([g.numpy().ravel()[own] for g, (_, own) in zip(found, places.values(), strict=True)])

    right = np.mean(logits.numpy().argmax(1) == y)
    assert losses.loss(at) == pytest.approx((float(loss), right), abs=1e-5)
    gradient_of_loss = gradient(loss)
    assert np.allclose(losses.gradient(at), gradient_of_loss, atol=1e-5 * np.abs(gradient_of_loss).max())

    jacobian = np.array([gradient(one) for one in by_image], np.float64).reshape(10, 10, -1)
    expected = 0
    for share, temperature in ((1 - distillation, 1), (distillation, 3)):
        p = tf.nn.softmax(logits / temperature).numpy().astype(np.float64)
        spread = np.eye(10) * p[:, :, None] - p[:, :, None] * p[:, None, :]
        expected = expected + share * np.einsum("nci,ncd,ndj->ij", jacobian, spread, jacobian) / 10
    whole = losses.curvature(at, np.random.default_rng(0))
    assert np.allclose(whole, expected, atol=1e-4 * np.abs(expected).max())

    # A part of the rows gives about the same: rows weigh for those that were not drawn.
    monkeypatch.setattr(second_order_loss, "_ROWS_PER_WEIGHT", 100 / losses.size)
    some = np.mean([losses.curvature(at, np.random.default_rng(seed)) for seed in range(8)], axis=0)
    assert not np.allclose(some, expected, atol=1e-4 * np.abs(expected).max())
    assert np.linalg.norm(some - expected) < 0.2 * np.linalg.norm(expected)


def test_each_sample_is_another_and_a_function_of_its_number(trained, few):
    model = trained(steps=5)
    places = places_of(model)
    losses, again = (loss_of(model, places, few, shift=2, seed=3) for _ in range(2))
    at = values_of(places)
    found = []
    for number in (0, 1, 0):
        losses.draw_sample(number)
        found.append(losses.loss(at))
        assert losses.loss(at) == found[-1]
    again.draw_sample(1)
    assert found[0] == found[2] != found[1] == again.loss(at)


def test_a_model_that_no_file_can_hold(few, monkeypatch):
    class Doubled(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    keras.utils.set_random_seed(0)
    layers = keras.layers.Flatten(), keras.layers.Dense(12, activation="relu"), Doubled(), keras.layers.Dense(10)
    model = keras.Sequential([keras.Input((28, 28, 1)), *layers])
    places = places_of(model)
    monkeypatch.setattr(second_order_loss, "_BATCH", 60)
    losses = loss_of(model, places, few)
    assert losses._model is model
    assert losses.size == math.prod((784, 12)) + 120
    assert losses.loss(values_of(places))[1] == pytest.approx(evaluate(model, few.x_train, few.y_train))
    model_before = model.get_weights()
    assert losses.loss(np.zeros(losses.size))[0] == pytest.approx(math.log(10))
    assert all(np.array_equal(a, b) for a, b in zip(model_before, model.get_weights(), strict=True))


def test_weights_without_a_place_stay(trained, few):
    model = trained(steps=20)
    kernel = models.kernels(model)["dense"]
    losses = loss_of(model, {"dense": (kernel, np.array([11, 12, 25]))}, few)
    at = kernel.numpy().ravel()[[11, 12, 25]].astype(np.float64)
    assert losses.gradient(at).shape == (3,)
    assert losses.curvature(at, np.random.default_rng(0)).shape == (3, 3)
    before = losses.loss(at)
    kernel.assign(np.zeros(kernel.shape))
    assert losses.loss(at) == before


def test_rows_are_drawn_as_often_as_asked():
    spread = np.random.default_rng(0).random((500, 10)) ** 8
    probabilities = draw_probabilities(spread, 1000)
    assert probabilities.max() == 1
    assert probabilities.sum() == pytest.approx(1000, rel=1e-6)
    low = probabilities < 1
    assert np.allclose(probabilities[low] / spread[low], (probabilities[low] / spread[low])[0])
    assert np.all(draw_probabilities(spread, 5000) == 1)
    assert draw_probabilities(np.array([[0.2, 0.1], [0.0, 0.1]]), 2).tolist() == [[1.0, 0.5], [0.0, 0.5]]
    assert draw_probabilities(np.array([[1e9, 0.1], [0.3, 0.1]]), 1).sum() == pytest.approx(1)
    assert not draw_probabilities(np.zeros((5, 2)), 10).any()


def test_an_older_measurement_weighs_less():
    measured = RunningMean()
    assert measured.add(np.full((2, 2), 3.0)).tolist() == [[3.0, 3.0], [3.0, 3.0]]
    # (0.6 x 3 + 11) / 1.6
    assert measured.add(np.array([[11.0, 3.0], [3.0, 3.0]])) == pytest.approx(np.array([[8.0, 3.0], [3.0, 3.0]]))
    measured.keep(np.array([True, False]))
    assert measured.add(np.array([[8.0]])) == pytest.approx(np.array([[8.0]]))


def test_other_tasks_and_weighted_examples_are_refused(few, trained):
    model = trained(steps=1)
    places = places_of(model)
    weighted = replace(few, train=Part(few.x_train, few.y_train, np.ones(120, np.float32)))
    values = replace(few, train=Part(few.x_train, np.zeros((120, 10), np.float32) + 0.5))
    for dataset, fields in ((weighted, {}), (values, {"loss": "mse"})):
        with pytest.raises(RecipeError, match="second_order_rounds are for networks with one softmax output"):
            loss_of(model, places, dataset, **fields)
