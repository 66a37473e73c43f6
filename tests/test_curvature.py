import keras
import numpy as np
import pytest
import tensorflow as tf

from deepcomp import curvature, data, models, parametrize, quantization, training
from deepcomp.errors import RecipeError


@pytest.fixture
def few(digits):
    """120 of the digits."""
    return data.ImageSet(
        "few",
        digits.x_train[:120],
        digits.y_train[:120],
        digits.x_validation,
        digits.y_validation,
        digits.x_test,
        digits.y_test,
    )


def trained(digits, steps=150, softmax=False):
    """A small network, trained and then pruned: about 300 weights are left."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(4, 5, strides=4, activation="relu", name="conv"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax" if softmax else None, name="dense"),
        ],
        name="small",
    )
    training.train(parametrize.free(model), digits, steps=steps, batch=50, learning_rate=5e-3, label="test")
    for variable in models.kernels(model).values():
        kernel = variable.numpy()
        left = min(kernel.size, 200)
        variable.assign(np.where(np.abs(kernel) < np.sort(np.abs(kernel), axis=None)[-left], 0, kernel))
    return model


def share(model, clusters=4, biases=True):
    tensors = parametrize.shareable(model, biases=biases)
    latent = {name: variable.numpy() for name, variable in tensors.items()}
    for name, variable in tensors.items():
        variable.assign(quantization.share(latent[name], clusters, init="optimal"))
    return parametrize.shared(model, tensors, latent=latent)


@pytest.mark.parametrize("softmax", [False, True], ids=["logits", "probabilities"])
def test_slope_and_curvature_are_those_of_the_loss(digits, few, monkeypatch, softmax):
    network = share(trained(digits, softmax=softmax))
    monkeypatch.setattr(curvature, "_ROWS", 10**6)
    monkeypatch.setattr(curvature, "_BATCH", 60)
    found = curvature._Assignment.of(network)
    ground = curvature._Landscape(network, few, found.names, shift=0, seed=0)
    at = tf.constant(found.values(), tf.float32)
    sizes = list(found.names.values())
    x = tf.concat([x for x, _ in ground._sample()], 0)
    y = tf.concat([y for _, y in ground._sample()], 0)
    assert x.shape == (120, 28, 28, 1)
    assert sorted(y.numpy()) == sorted(few.y_train)

    def scores(values):
        outputs = network.outputs(x, dict(zip(found.names, tf.split(values, sizes), strict=True)))
        return tf.math.log(outputs + 1e-7) if softmax else outputs

    assert np.allclose(network.outputs(x, {}), network(x)[0], atol=1e-6)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(at)
        logits = scores(at)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits))
    slope = tape.gradient(loss, at).numpy()
    jacobian = tape.jacobian(logits, at, experimental_use_pfor=False).numpy().astype(np.float64)
    p = tf.nn.softmax(logits).numpy().astype(np.float64)
    bent = np.eye(10) * p[:, :, None] - p[:, :, None] * p[:, None, :]
    expected = np.einsum("nci,ncd,ndj->ij", jacobian, bent, jacobian) / 120
    assert ground.loss(found.values()) == pytest.approx((float(loss), np.mean(p.argmax(1) == y)), abs=1e-5)
    assert np.allclose(ground.slope(found.values()), slope, atol=1e-5 * np.abs(slope).max())
    whole = ground.curvature(found.values(), np.random.default_rng(0))
    assert np.allclose(whole, expected, atol=1e-4 * np.abs(expected).max())

    # A tenth of the rows says about the same: chances make up for those that were not drawn.
    monkeypatch.setattr(curvature, "_ROWS", 120 / found.clusters.size)  # 120 of 1,200
    some = np.mean([ground.curvature(found.values(), np.random.default_rng(seed)) for seed in range(8)], axis=0)
    assert not np.allclose(some, expected, atol=1e-4 * np.abs(expected).max())
    assert np.linalg.norm(some - expected) < 0.15 * np.linalg.norm(expected)


def test_rows_are_drawn_as_often_as_asked():
    spread = np.random.default_rng(0).random((500, 10)) ** 8
    chances = curvature._drawing(spread, 1000)
    assert chances.max() == 1
    assert chances.sum() == pytest.approx(1000, rel=1e-6)
    low = chances < 1
    assert np.allclose(chances[low] / spread[low], (chances[low] / spread[low])[0])
    assert np.all(curvature._drawing(spread, 5000) == 1)
    assert curvature._drawing(np.array([[0.2, 0.1], [0.0, 0.1]]), 2).tolist() == [[1.0, 0.5], [0.0, 0.5]]
    assert curvature._drawing(np.array([[1e9, 0.1], [0.3, 0.1]]), 1).sum() == pytest.approx(1)
    assert not curvature._drawing(np.zeros((5, 2)), 10).any()


def test_rounds_make_good_what_sharing_lost(digits):
    model = trained(digits)
    free = training.evaluate(model, digits.x_train, digits.y_train)
    network = share(model, clusters=3)
    before = training.evaluate(network, digits.x_train, digits.y_train)
    history = curvature.reassign(network, digits, rounds=4, start=100)
    after = training.evaluate(network, digits.x_train, digits.y_train)
    assert before < free - 0.03
    assert after > before + 0.03
    assert history["step"] == [101, 102, 103, 104]
    assert history["accuracy"][-1] == pytest.approx(after, abs=0.02)
    assert history["loss"][-1] < history["loss"][0]
    assert history["validation_accuracy"][-1] == training.evaluate(network, digits.x_validation, digits.y_validation)
    written = network.write_back()
    for kernel in models.kernel_values(written).values():
        values = np.unique(kernel[kernel != 0])
        assert len(values) <= 3
        assert np.array_equal(values, values.astype(np.float16))
    assert training.evaluate(written, digits.x_train, digits.y_train) == after


def test_a_price_takes_bits_and_latent_weights_are_where_it_begins(digits, few):
    bits, left = [], []
    for price in (0.0, 0.02, 0.2, 1e6):
        network = share(trained(digits), clusters=4)
        survivors = {name: made.positions.copy() for name, made in network.shared.items()}
        curvature.reassign(network, few, rounds=2, price=price, shift=1)
        found = curvature._Assignment.of(network)
        bits.append(found.bits())
        left.append(np.count_nonzero(found.clusters))
        for name, made in network.shared.items():
            assert set(np.flatnonzero(made.kernel())) <= set(survivors[name])
    assert bits == sorted(bits, reverse=True)
    assert left[0] > left[1] > left[2] > left[3]


def test_the_same_rounds_twice_are_the_same(digits, few):
    def settled(seed):
        network = share(trained(digits, steps=30))
        curvature.reassign(network, few, rounds=2, price=0.01, shift=1, seed=seed)
        return [array.tobytes() for array in network.write_back().get_weights()]

    training.make_deterministic(0)
    first = settled(0)
    assert first == settled(0)
    assert first != settled(1)


def test_what_is_not_shared_stays_and_what_is_worse_is_undone(digits, few, monkeypatch):
    model = trained(digits, steps=30)
    network = parametrize.shared(model, ["dense"])
    before = model.get_weights()
    dense = [variable.path for variable in model.variables].index("small/dense/kernel")
    curvature.reassign(network, few, rounds=1)
    after = network.write_back().get_weights()
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        assert np.array_equal(np.float16(old), np.float16(new)) == (number != dense)

    network = share(trained(digits, steps=30))
    before = curvature._Assignment.of(network)
    tries = []

    def worse(found, *rest):
        tries.append(rest)
        return found.moved(np.full(sum(own.size for own in found.codebooks), 3.0))

    monkeypatch.setattr(curvature, "_settled", worse)
    curvature.reassign(network, few, rounds=1)
    after = curvature._Assignment.of(network)
    assert np.array_equal(before.values(), after.values())
    assert [rest[4] for rest in tries] == pytest.approx([0.2, 0.8, 3.2, 12.8])  # damped more and more


def test_too_many_weights_and_none(digits, few, monkeypatch):
    network = share(trained(digits, steps=5))
    monkeypatch.setattr(curvature, "MAX_SURVIVORS", 100)
    with pytest.raises(RecipeError, match=r"at most 100 weights, with their biases, and 3\d\d are left: prune more"):
        curvature.reassign(network, few, rounds=1)
    assert curvature.reassign(network, few, rounds=0)["step"] == []
    with pytest.raises(RecipeError, match="nothing to settle"):
        curvature.reassign(parametrize.masked(network.model), few, rounds=1)
