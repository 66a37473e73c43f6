import keras
import numpy as np
import pytest
import tensorflow as tf

from deepcomp import models, quantization
from deepcomp.errors import RecipeError
from deepcomp.options import Training
from deepcomp.training import parametrize
from deepcomp.training.loop import optimizers

IMAGES = np.random.default_rng(0).random((8, 28, 28, 1), np.float32)


def prune_half(model):
    for variable in models.kernels(model).values():
        values = variable.numpy()
        variable.assign(np.where(np.abs(values) < np.median(np.abs(values)), 0, values))


def share_four(model):
    for variable in models.kernels(model).values():
        variable.assign(quantization.share(variable.numpy(), 4).astype(np.float16))


def test_every_kind_gives_the_model_s_own_outputs(network):
    prune_half(network)
    share_four(network)
    expected = network(IMAGES).numpy()
    for kind in (parametrize.free, parametrize.masked, parametrize.shared):
        outputs, _, loss = kind(network)(IMAGES, loss=lambda made: tf.reduce_sum(made))
        assert np.array_equal(outputs, expected)
        assert float(loss) == pytest.approx(expected.sum(), rel=1e-4)


def test_the_model_is_untouched_until_written_back(network):
    before = network.get_weights()
    masked = parametrize.masked(network)
    masked.set_masks({"dense": np.zeros((144, 10)), "conv": np.ones((5, 5, 1, 4))})
    assert all(np.array_equal(a, b) for a, b in zip(before, network.get_weights(), strict=True))
    assert not masked.kernels()["dense"].any()
    masked.write_back()
    assert not network.get_layer("dense").kernel.numpy().any()
    assert np.array_equal(network.get_layer("conv").kernel.numpy(), before[0])


def test_pruned_weights_are_plus_zero(network):
    masked = parametrize.masked(network)
    masked.set_masks({"dense": np.zeros((144, 10))})
    assert not np.signbit(masked.write_back().get_layer("dense").kernel.numpy()).any()


def test_a_masked_kernel_gets_no_gradient_where_it_is_pruned(network):
    prune_half(network)
    masked = parametrize.masked(network)
    with tf.GradientTape() as tape:
        outputs, _, _ = masked(IMAGES)
        loss = tf.reduce_sum(outputs**2)
    gradients = tape.gradient(loss, [variable.value for variable in masked.weights])
    for variable, gradient in zip(masked.weights, gradients, strict=True):
        if variable.name == "kernel":
            pruned = variable.numpy() == 0
            assert pruned.any()
            assert not np.any(gradient.numpy()[pruned])


def test_a_centroid_gets_the_sum_of_its_members_gradients_by_hand():
    kernel = np.array([[1.0, 0.0, 2.0], [2.0, 1.0, 0.0]], np.float32)
    upstream = np.array([[1.0, 10.0, 100.0], [1000.0, 10000.0, 100000.0]], np.float32)
    shared = parametrize.SharedKernel(keras.Variable(kernel))
    assert shared.trained.numpy().tolist() == [1.0, 2.0]
    with tf.GradientTape() as tape:
        made = shared.kernel()
        loss = tf.reduce_sum(made * upstream)
    assert np.array_equal(made, kernel)
    assert tape.gradient(loss, shared.trained.value).numpy().tolist() == [10001.0, 1100.0]


def test_the_summed_gradient_is_automatic_differentiation_s():
    rng = np.random.default_rng(3)
    kernel = rng.integers(-3, 4, (7, 11)).astype(np.float32)
    upstream = rng.normal(size=(7, 11)).astype(np.float32)
    shared = parametrize.SharedKernel(keras.Variable(kernel))
    centroids, indices = quantization.codebook(kernel)
    plain = tf.Variable(centroids)
    with tf.GradientTape() as tape:
        ours = tf.reduce_sum(shared.kernel() * upstream)
        gathered = tf.gather(tf.concat([[0.0], plain], 0), indices.astype(np.int32))
        theirs = tf.reduce_sum(gathered * upstream)
        both = ours + theirs
    ours, theirs = tape.gradient(both, [shared.trained.value, plain])
    assert np.allclose(ours, tf.convert_to_tensor(theirs), rtol=1e-5)


def test_beside_shared_kernels_everything_is_kept_to_float16(network):
    dense = network.get_layer("dense")
    dense.bias.assign([0.1] * 9 + [1e-5])
    network.get_layer("norm").beta.assign(np.full(4, 1e-6))  # too small for float16's precision
    shared = parametrize.shared(network)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(shared(IMAGES)[0])
    gradients = tape.gradient(loss, [dense.bias.value])
    assert np.allclose(gradients[0], len(IMAGES))  # as if nothing had been rounded
    shared.write_back()
    assert np.array_equal(dense.bias.numpy(), np.array([0.1] * 9 + [1e-5], np.float16))
    assert np.array_equal(network.get_layer("norm").beta.numpy(), np.full(4, 1e-6, np.float32))
    share_four(network)
    for kernel in models.kernel_values(parametrize.shared(network).write_back()).values():
        assert np.array_equal(kernel, kernel.astype(np.float16).astype(np.float32))


def test_kernels_with_nothing_left_or_one_value_work(network):
    network.get_layer("dense").kernel.assign(np.zeros((144, 10)))
    network.get_layer("conv").kernel.assign(np.full((5, 5, 1, 4), 0.25))
    shared = parametrize.shared(network)
    assert [tuple(variable.shape) for variable in shared.centroids] == [(1,), (0,)]
    with tf.GradientTape() as tape:
        outputs, _, _ = shared(IMAGES, training=True)
        loss = tf.reduce_sum(outputs)
    gradients = tape.gradient(loss, [variable.value for variable in shared.centroids])
    assert gradients[1].shape == (0,)
    assert not shared.kernels()["dense"].any()


def test_a_shared_kernel_with_latent_weights_passes_each_its_gradient_and_moves_it(network):
    dense = network.get_layer("dense")
    latent = np.zeros((144, 10), np.float32)
    latent[:5, 0] = [0.1, 0.3, 0.9, 1.1, -1.0]
    dense.kernel.assign(np.where(latent > 0.5, 1, np.where(latent > 0, 0.25, -1.0)) * (latent != 0))
    shared = parametrize.shared(network, ["dense"], latent={"dense": latent})
    made = shared.parametrizations["dense"]
    upstream = np.random.default_rng(0).random((144, 10), np.float32)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(made.kernel() * upstream)
    ours, own = tape.gradient(loss, [made.trained.value, made.weights[0].value])
    assert np.allclose(own, upstream[:5, 0])
    assert np.allclose(ours, [upstream[4, 0], upstream[:2, 0].sum(), upstream[2:4, 0].sum()])
    assert shared.weights[0] is not made.weights[0]
    assert any(variable is made.weights[0] for variable in shared.weights)


def test_shared_weights_move_to_the_cluster_that_costs_least(network):
    bias = network.get_layer("dense").bias
    latent = np.array([0.1, 0.3, 0.9, 1.1, -1.0, 0, 0, 0, 0, 0], np.float32)
    bias.assign([0.25, 0.25, 1, 1, -1, 0, 0, 0, 0, 0])
    made = parametrize.shared(network, ["dense/bias"], latent={"dense/bias": latent}).parametrizations["dense/bias"]
    made.weights[0].assign([0.7, 0.3, 0.9, 0.01, -1.0])

    def left(importance, price):
        made.reassign(np.array(importance), price)
        return made.kernel().numpy().tolist()

    assert left([1, 1, 1, 1, 1], 0.0) == [1, 0.25, 1, 0, -1, 0, 0, 0, 0, 0]
    # Half of the places had a survivor: none costs a bit or less, a survivor more by the bits of its value.
    assert left([0, 9, 0, 0, 9], 1e-3) == [0, 0.25, 0, 0, -1, 0, 0, 0, 0, 0]
    assert left([1, 1, 1, 1, 1], 0.0) == [1, 0.25, 1, 0, -1, 0, 0, 0, 0, 0]
    assert left([1, 1, 1, 1, 1], 9.0) == [0] * 10


def test_biases_are_shared_by_name(network):
    tensors = parametrize.shareable(network)
    assert list(tensors) == ["conv", "dense", "conv/bias", "dense/bias"]
    assert list(parametrize.biases(network)) == ["conv/bias", "dense/bias"]
    tensors["dense/bias"].assign([0, 0, 0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, -1])
    shared = parametrize.shared(network, ["dense/bias"])
    assert [variable.numpy().tolist() for variable in shared.centroids] == [[-1.0, 0.25, 0.5]]
    shared.centroids[0].assign([-2, 0.125, 0.75])
    shared.write_back()
    assert tensors["dense/bias"].numpy().tolist() == [0, 0, 0, 0.75, 0.75, 0.75, 0.75, 0.125, 0.125, -2]


def test_squared_gradients_are_those_of_the_optimizer(network):
    masked = parametrize.masked(network)
    groups = optimizers(masked, Training(schedule="constant", steps=10))
    masked.watch(groups)
    assert not masked.squared_gradients()["dense"].any()
    gradients = [np.full(variable.shape, 2.0, np.float32) for variable in masked.weights]
    groups[0][0].apply(gradients, masked.weights)
    squares = masked.squared_gradients()
    assert list(squares) == ["conv", "dense"]
    assert np.allclose(squares["dense"], 0.001 * 4)
    plain = parametrize.masked(network)
    plain.watch(optimizers(plain, Training(optimizer="sgd", steps=10)))
    with pytest.raises(RecipeError, match="use adam, adamw, nadam or rmsprop"):
        plain.squared_gradients()


def test_shared_by_name_leaves_the_others_masked(network):
    share_four(network)
    shared = parametrize.shared(network, ["dense"])
    assert len(shared.centroids) == 1
    assert {variable.path for variable in shared.weights} >= {"small/conv/kernel", "small/dense/bias"}


def test_training_state_and_losses_come_back_functionally(network):
    free = parametrize.free(network)
    before = [variable.numpy() for variable in network.non_trainable_variables]
    _, still, _ = free(IMAGES, training=True)
    after = [variable.numpy() for variable in network.non_trainable_variables]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    names = [network.non_trainable_variables[index].name for index in still]
    assert names == ["moving_mean", "moving_variance", "seed_generator_state"]
    assert not np.array_equal(still[0], before[0])
    network.get_layer("norm").trainable = False
    _, still, _ = parametrize.free(network)(IMAGES, training=True)
    assert [network.non_trainable_variables[index].name for index in still] == ["seed_generator_state"]


def test_a_regularizer_sees_the_made_kernel():
    dense = keras.layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.5), name="dense")
    model = keras.Sequential([keras.Input((3,)), dense])
    dense.kernel.assign([[1, 2], [3, 4], [5, 6]])
    masked = parametrize.masked(model)
    masked.set_masks({"dense": np.array([[1, 0], [0, 1], [0, 0]])})
    _, _, penalty = masked(np.zeros((1, 3), np.float32), training=True, loss=lambda made: model.losses[0])
    assert float(penalty) == 0.5 * (1 + 16)


def test_a_latent_weight_may_come_back_from_zero(network):
    kernel = network.get_layer("dense").kernel
    latent = kernel.numpy()
    kernel.assign(np.where(np.abs(latent) < 0.1, 0, np.sign(latent) / 8))
    shared = parametrize.shared(network, ["dense"], latent={"dense": latent})
    made = shared.shared["dense"]
    assert np.array_equal(shared.kernels()["dense"], kernel.numpy())
    np.testing.assert_array_equal(made.latent_kernel(), latent)
    plenty = {"dense": np.ones(latent.shape)}
    shared.reassign_within(np.inf, plenty)  # bits are free: each takes the nearest of -1/8, 0, 1/8
    expected = np.where(np.abs(latent) < 1 / 16, 0, np.sign(latent) / 8)
    np.testing.assert_array_equal(shared.kernels()["dense"], expected)


def test_weights_fit_into_a_number_of_bits(network):
    kernel = network.get_layer("dense").kernel
    latent = kernel.numpy()
    kernel.assign(quantization.share(latent, 8))
    shared = parametrize.shared(network, ["dense"], latent={"dense": latent})
    importance, before = {"dense": np.ones(latent.shape)}, shared.bits()
    assert before > 3 * latent.size
    for part in (0.9, 0.7, 0.4):
        for _ in range(4):  # code lengths follow the choices
            shared.reassign_within(part * before, importance)
        assert 0.5 * part * before < shared.bits() <= 1.01 * part * before


def test_bits_fall_as_they_should_while_weights_move(network):
    """Also where the state was saved and restored between two steps."""
    kernel, rng = network.get_layer("dense").kernel, np.random.default_rng(4)
    latent = rng.laplace(size=kernel.shape).astype(np.float32)
    kernel.assign(quantization.share(latent, 8))
    importance = {"dense": np.ones(latent.shape)}
    shared, again = (parametrize.shared(network, ["dense"], latent={"dense": latent}) for _ in range(2))
    before = shared.bits()
    for step in range(60):
        goal = before * max(0.7, 1 - 0.01 * step)
        own = shared.shared["dense"].weights[0]
        own.assign(own.value + 0.01 * latent.std() * rng.standard_normal(own.shape))
        for variable, saved in zip(again.variables, shared.variables, strict=True):
            variable.assign(saved.value)
        for one in (shared, again):
            one.reassign_within(goal, importance, exactly=step % 20 == 0)
        np.testing.assert_array_equal(again.kernels()["dense"], shared.kernels()["dense"])
        assert shared.bits() == pytest.approx(goal, rel=0.06)


def test_a_network_begins_to_train_as_it_is(network):
    """Values that another rule chose stay when weights are first reassigned at the same bits."""
    kernel, rng = network.get_layer("dense").kernel, np.random.default_rng(4)
    latent = kernel.numpy()
    shared_values = quantization.share(latent, 8)
    mixed = np.where(rng.random(latent.shape) < 0.05, rng.permutation(shared_values.ravel()).reshape(latent.shape), 0)
    kernel.assign(np.where(mixed != 0, mixed, shared_values))
    importance = {"dense": np.ones(latent.shape)}

    def changed(anchored):
        shared = parametrize.shared(network, ["dense"], latent={"dense": latent})
        if anchored:
            shared.anchor(importance)
        before = shared.kernels()["dense"]
        shared.reassign_within(shared.bits(), importance)
        return np.mean(shared.kernels()["dense"] != before)

    assert changed(False) > 0.03
    assert changed(True) < changed(False) / 2
