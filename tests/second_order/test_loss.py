import math
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
from deepcomp.second_order.landscape import Averaged, Landscape

from deepcomp import models
from deepcomp.second_order import landscape
from deepcomp.training import loop as training
from deepcomp.training import parametrize


def places_of(model):
    named = parametrize.shareable(model, biases=True)
    return {name: (variable, np.flatnonzero(variable.numpy())) for name, variable in named.items()}


def values_of(places):
    return np.concatenate([variable.numpy().ravel()[own] for variable, own in places.values()]).astype(np.float64)


@pytest.mark.parametrize(
    ("softmax", "distillation"), [(False, 0.0), (True, 0.75), (False, 1.0)], ids=["labels", "both", "teacher"]
)
def test_loss_slope_and_curvature_are_those_of_the_network(trained, few, monkeypatch, softmax, distillation):
    few = replace(few, x_train=few.x_train[:24], y_train=few.y_train[:24])
    teacher, model = trained(steps=60, softmax=softmax), trained(steps=20, softmax=softmax)
    monkeypatch.setattr(landscape, "_ROWS", 10**6)
    monkeypatch.setattr(landscape, "_BATCH", 12)
    places = places_of(model)
    learning = {"teacher": teacher, "distillation": distillation, "temperature": 3.0} if distillation else {}
    ground, at = Landscape(model, places, few, **learning), values_of(places)
    assert ground.size == at.size
    assert ground._model.get_layer("hidden").units < 40  # what nobody reads is left out

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
    assert ground.loss(at) == pytest.approx((float(loss), right), abs=1e-5)
    slope = gradient(loss)
    assert np.allclose(ground.slope(at), slope, atol=1e-5 * np.abs(slope).max())

    jacobian = np.array([gradient(one) for one in by_image], np.float64).reshape(24, 10, -1)
    expected = 0
    for share, temperature in ((1 - distillation, 1), (distillation, 3)):
        p = tf.nn.softmax(logits / temperature).numpy().astype(np.float64)
        bent = np.eye(10) * p[:, :, None] - p[:, :, None] * p[:, None, :]
        expected = expected + share * np.einsum("nci,ncd,ndj->ij", jacobian, bent, jacobian) / 24
    whole = ground.curvature(at, np.random.default_rng(0))
    assert np.allclose(whole, expected, atol=1e-4 * np.abs(expected).max())

    # A part of the rows says about the same: chances make up for those that were not drawn.
    monkeypatch.setattr(landscape, "_ROWS", 100 / ground.size)
    some = np.mean([ground.curvature(at, np.random.default_rng(seed)) for seed in range(8)], axis=0)
    assert not np.allclose(some, expected, atol=1e-4 * np.abs(expected).max())
    assert np.linalg.norm(some - expected) < 0.2 * np.linalg.norm(expected)


def test_each_look_is_a_sample_of_its_own(trained, few):
    model = trained(steps=5)
    places = places_of(model)
    ground, again = (Landscape(model, places, few, shift=2, seed=3) for _ in range(2))
    at = values_of(places)
    losses = []
    for number in (0, 1, 0):
        ground.look_at(number)
        losses.append(ground.loss(at))
        assert ground.loss(at) == losses[-1]
    again.look_at(1)
    assert losses[0] == losses[2] != losses[1] == again.loss(at)


def test_a_model_that_no_file_can_hold(few, monkeypatch):
    class Doubled(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    keras.utils.set_random_seed(0)
    layers = keras.layers.Flatten(), keras.layers.Dense(12, activation="relu"), Doubled(), keras.layers.Dense(10)
    model = keras.Sequential([keras.Input((28, 28, 1)), *layers])
    places = places_of(model)
    monkeypatch.setattr(landscape, "_BATCH", 60)
    ground = Landscape(model, places, few)
    assert ground._model is model
    assert ground.size == math.prod((784, 12)) + 120
    assert ground.loss(values_of(places))[1] == pytest.approx(training.evaluate(model, few.x_train, few.y_train))
    model_before = model.get_weights()
    assert ground.loss(np.zeros(ground.size))[0] == pytest.approx(math.log(10))
    assert all(np.array_equal(a, b) for a, b in zip(model_before, model.get_weights(), strict=True))


def test_what_is_not_asked_about_stays(trained, few):
    model = trained(steps=20)
    kernel = models.kernels(model)["dense"]
    ground = Landscape(model, {"dense": (kernel, np.array([11, 12, 25]))}, few)
    at = kernel.numpy().ravel()[[11, 12, 25]].astype(np.float64)
    assert ground.slope(at).shape == (3,)
    assert ground.curvature(at, np.random.default_rng(0)).shape == (3, 3)
    before = ground.loss(at)
    kernel.assign(np.zeros(kernel.shape))
    assert ground.loss(at) == before


def test_rows_are_drawn_as_often_as_asked():
    spread = np.random.default_rng(0).random((500, 10)) ** 8
    chances = landscape.drawing(spread, 1000)
    assert chances.max() == 1
    assert chances.sum() == pytest.approx(1000, rel=1e-6)
    low = chances < 1
    assert np.allclose(chances[low] / spread[low], (chances[low] / spread[low])[0])
    assert np.all(landscape.drawing(spread, 5000) == 1)
    assert landscape.drawing(np.array([[0.2, 0.1], [0.0, 0.1]]), 2).tolist() == [[1.0, 0.5], [0.0, 0.5]]
    assert landscape.drawing(np.array([[1e9, 0.1], [0.3, 0.1]]), 1).sum() == pytest.approx(1)
    assert not landscape.drawing(np.zeros((5, 2)), 10).any()


def test_an_older_measurement_counts_less():
    measured = Averaged()
    assert measured.add(np.full((2, 2), 3.0)).tolist() == [[3.0, 3.0], [3.0, 3.0]]
    # (0.6 x 3 + 11) / 1.6
    assert measured.add(np.array([[11.0, 3.0], [3.0, 3.0]])) == pytest.approx(np.array([[8.0, 3.0], [3.0, 3.0]]))
    measured.keep(np.array([True, False]))
    assert measured.add(np.array([[8.0]])) == pytest.approx(np.array([[8.0]]))
