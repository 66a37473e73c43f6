import keras
import numpy as np
import pytest

import deepcomp
from deepcomp import compression, models
from deepcomp.dcz import conversion as exchange
from deepcomp.errors import DataError
from deepcomp.training import parametrize
from deepcomp.training.predict import evaluate
from tests.common import learn

OPTIONS = {"steps": 5, "batch": 20, "verbose": False}


def density(model):
    return {name: np.count_nonzero(kernel) / kernel.size for name, kernel in models.kernel_values(model).items()}


def test_prune_and_quantize_a_network_end_to_end(network, digits):
    learn(parametrize.free(network), digits, steps=80, batch=50, learning_rate=5e-3)
    before = network.get_weights()
    pruned = deepcomp.prune(network, digits, sparsity=0.5, scope="layer", steps=40, batch=50, ramp=20, every=10)
    shared = deepcomp.quantize(pruned, digits, bits=3, steps=20, batch=50)
    assert all(np.array_equal(a, b) for a, b in zip(before, network.get_weights(), strict=True))
    assert density(pruned) == {"conv": 0.5, "dense": 0.5}
    exchange.order_neurons(pruned)  # as `quantize` does: the order depends on what is left alone
    for name, kernel in models.kernel_values(shared).items():
        assert 0 < len(np.unique(kernel[kernel != 0])) <= 8
        assert not np.any(kernel[models.kernel_values(pruned)[name] == 0])
    dense, small = (evaluate(model, digits.x_test, digits.y_test) for model in (network, shared))
    assert small > dense - 0.15


def test_settings_by_layer(network, digits):
    pruned = deepcomp.prune(network, digits, sparsity={"den.*": 0.75}, **OPTIONS)
    assert density(pruned) == {"conv": 1.0, "dense": 0.25}
    shared = deepcomp.quantize(pruned, digits, bits={"dense": 2}, **OPTIONS)
    kernels = models.kernel_values(shared)
    assert len(np.unique(kernels["dense"])) == 5
    assert len(np.unique(kernels["conv"])) > 50
    assert density(shared) == density(pruned)


def test_thresholds(network, digits):
    pruned = deepcomp.prune(network, digits, threshold=0.1, steps=0)
    for name, kernel in models.kernel_values(network).items():
        assert np.array_equal(models.kernel_values(pruned)[name] != 0, np.abs(kernel) >= 0.1)
    pruned = deepcomp.prune(network, digits, quality={".*": 1.0}, steps=0)
    for name, kernel in models.kernel_values(network).items():
        assert np.array_equal(models.kernel_values(pruned)[name] != 0, np.abs(kernel) >= kernel.std())


def test_saliency_and_a_price_for_bits(network, digits, monkeypatch):
    monkeypatch.setattr(exchange, "order_neurons", lambda model: None)
    network.get_layer("dense").bias.assign(np.linspace(-0.1, 0.1, 10))
    options = {"batch": 20, "steps": 30, "ramp": 20, "every": 10}
    pruned = deepcomp.prune(network, digits, sparsity=0.8, scope="global", scores="saliency", **options)
    assert sum(map(np.count_nonzero, models.kernel_values(pruned).values())) == 308  # a fifth of 100 + 1440
    plain, priced = (
        deepcomp.quantize(pruned, digits, bits=3, bias_bits=1, **one) for one in (OPTIONS, options | {"bit_price": 0.3})
    )
    for name, kernel in models.kernel_values(priced).items():
        assert not np.any(kernel[models.kernel_values(pruned)[name] == 0])
    dense = [model.get_layer("dense") for model in (plain, priced)]
    assert np.count_nonzero(dense[1].kernel) < np.count_nonzero(dense[0].kernel)
    assert all(len(np.unique(layer.bias.numpy())) <= 3 for layer in dense)
    for wrong in ({"bit_price": 0.1}, {"ramp": 10}, {"newton_rounds": -1}):
        with pytest.raises(deepcomp.RecipeError, match=r"a lambda above 0 needs an end|rounds=-1: it must be 0"):
            deepcomp.quantize(pruned, digits, **wrong)


def test_rounds_by_curvature_prune_on_after_training(network, digits):
    rounds = {"newton_rounds": 2, "newton_sparsity": 0.9}
    once, on = (deepcomp.prune(network, digits, sparsity=0.8, **more, **OPTIONS) for more in ({}, rounds))
    before, after = models.kernel_values(once), models.kernel_values(on)
    whole = sum(kernel.size for kernel in after.values())
    assert sum(np.count_nonzero(kernel) for kernel in after.values()) == whole - int(0.9 * whole)
    assert all(not np.any(after[name][before[name] == 0]) for name in before)

    settled = models.kernel_values(deepcomp.prune(network, digits, sparsity=0.8, **rounds, newton_steps=10, **OPTIONS))
    for name, kernel in settled.items():
        assert np.array_equal(kernel != 0, after[name] != 0)
        assert np.mean(kernel[kernel != 0] != after[name][kernel != 0]) > 0.9
    for wrong, says in (
        ({"newton_steps": 10}, "need second_order_rounds"),
        ({"newton_shift": -2}, "shift=-2: it must be 0"),
    ):
        with pytest.raises(deepcomp.RecipeError, match=says):
            deepcomp.prune(network, digits, sparsity=0.8, **wrong, **OPTIONS)
    with pytest.raises(deepcomp.RecipeError, match="shift=-2"):
        deepcomp.quantize(network, digits, newton_shift=-2, **OPTIONS)


def test_rounds_by_curvature_instead_of_training(network, digits, monkeypatch):
    monkeypatch.setattr(exchange, "order_neurons", lambda model: None)
    network = deepcomp.prune(network, digits, sparsity=0.8, scope="global", **OPTIONS)
    plain, settled = (
        deepcomp.quantize(network, digits, bits=2, bias_bits=2, init="optimal", steps=0, **rounds)
        for rounds in ({}, {"newton_rounds": 2, "bit_price": 1e-4})
    )
    plain_accuracy = evaluate(plain, digits.x_train, digits.y_train)
    assert evaluate(settled, digits.x_train, digits.y_train) > plain_accuracy
    for name, kernel in models.kernel_values(settled).items():
        assert len(np.unique(kernel[kernel != 0])) <= 4
        assert not np.any(kernel[models.kernel_values(network)[name] == 0])


@pytest.mark.slow
def test_rounds_move_images_by_a_shift_of_their_own(network, few):
    learn(parametrize.free(network), few, steps=10, batch=20)

    def pruned(**shifts):
        made = deepcomp.prune(network, few, sparsity=0.9, steps=0, batch=20, newton_rounds=1, newton_steps=2, **shifts)
        return [array.tobytes() for array in made.get_weights()]

    def shared(**shifts):
        made = deepcomp.quantize(network, few, bits=2, steps=0, batch=20, newton_rounds=1, **shifts)
        return [array.tobytes() for array in made.get_weights()]

    network = deepcomp.prune(network, few, sparsity=0.9, steps=0, batch=20)
    for compressed in (pruned, shared):
        assert compressed(shift=2, newton_shift=0) == compressed() != compressed(shift=2)


def test_a_power_of_the_multiplications_spares_them(network, digits):
    options = {"sparsity": 0.5, "scope": "global", "steps": 0}
    counts = models.multiplications(network)
    taken = []
    for power in (0.0, 0.2):
        kernels = models.kernel_values(deepcomp.prune(network, digits, flops_power=power, **options))
        left = {name: np.count_nonzero(kernel) for name, kernel in kernels.items()}
        assert sum(left.values()) == 770
        taken.append(sum(left[name] * counts[name] for name in left))
    assert taken[1] < taken[0]
    quality = {"sparsity": None, "quality": 0.5}
    for wrong in ({"scope": "layer"}, quality, {"flops_power": -1.0}, {"flops_power": 400.0}, {"flops_power": np.nan}):
        with pytest.raises(deepcomp.RecipeError, match="flops_power"):
            deepcomp.prune(network, digits, **{**options, "flops_power": 1.0, **wrong})


def test_a_pair_of_arrays_will_do(network, digits):
    pruned = deepcomp.prune(network, (digits.x_train[..., 0], digits.y_train), sparsity=0.9, scope="layer", **OPTIONS)
    assert density(pruned)["dense"] == 0.1


def test_a_compiled_network_with_an_adapted_normalization_keeps_it(digits):
    normalization = keras.layers.Normalization(axis=None, name="norm")
    normalization.adapt(digits.x_train.astype(np.float32))
    layers = [keras.Input((28, 28, 1)), normalization, keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential(layers)
    model.compile(loss=lambda y, x: x)
    pruned = deepcomp.prune(model, digits, sparsity=0.0, steps=0)
    images = digits.x_test.astype(np.float32)
    assert np.array_equal(pruned(images), model(images))
    assert model.compiled


def test_a_network_that_cannot_be_copied_is_refused(digits):
    with pytest.raises(deepcomp.UnsupportedLayerError, match=r"has no trainable kernel|cannot be copied, is it built"):
        deepcomp.prune(Subclassed(), digits, sparsity=0.5)


class Subclassed(keras.Model):
    """A network that is code, not a graph."""

    def __init__(self, **options):
        super().__init__(**options)
        self.flat, self.hidden, self.out = keras.layers.Flatten(), keras.layers.Dense(8), keras.layers.Dense(10)

    def call(self, x, training=False):
        return self.out(keras.ops.relu(self.hidden(self.flat(x))))


class Scaled(keras.layers.Layer):
    """A layer of somebody's own, with a kernel."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 10), name="kernel")

    def call(self, x):
        return x @ self.kernel


def functional():
    image = keras.Input((28, 28, 1))
    x = keras.layers.Conv2D(4, 3, strides=3, padding="same", activation="relu")(image)
    y = keras.layers.DepthwiseConv2D(3, padding="same")(x)
    y = keras.layers.BatchNormalization()(y)
    x = keras.layers.Add()([x, y])
    x = keras.Sequential([keras.layers.SeparableConv2D(6, 3, strides=2)], name="nested")(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(image, keras.layers.Dense(10, activation="softmax")(x))


@pytest.mark.parametrize("kind", ["functional", "subclassed", "custom"])
def test_every_kind_of_network(digits, kind):
    if kind == "functional":
        model = functional()
    elif kind == "subclassed":
        model = Subclassed()
        model(np.zeros((1, 28, 28, 1), np.float32))
    else:
        model = keras.Sequential([keras.Input((28, 28, 1)), keras.layers.Flatten(), Scaled(name="own")])
    pruned = deepcomp.prune(model, digits, sparsity=0.5, scope="layer", **OPTIONS)
    assert all(value <= 0.51 for value in density(pruned).values())
    shared = deepcomp.quantize(pruned, digits, bits=2, **OPTIONS)
    for kernel in models.kernel_values(shared).values():
        assert len(np.unique(kernel[kernel != 0])) <= 4


@pytest.mark.parametrize(
    ("call", "options", "message"),
    [
        ("prune", {"sparsity": 0.5, "quality": 1.0}, "not sparsity and quality together"),
        ("prune", {"sparsity": 1.5}, "sparsity=1.5: it must be"),
        ("prune", {"sparsity": {"fc": 0.5}}, "layers: 'fc' matches no layer; the layers are conv, dense"),
        ("quantize", {"bits": 17}, "bits=17: it must be"),
        ("quantize", {"bits": 2, "init": "magic"}, "magic"),
    ],
)
def test_bad_arguments_are_refused(network, digits, call, options, message):
    with pytest.raises(deepcomp.RecipeError, match=message):
        getattr(deepcomp, call)(network, digits, steps=0, **options)


def test_data_of_another_shape_is_refused(network):
    with pytest.raises(deepcomp.DataError, match="images of 8x8 but the network 'small' takes 28x28x1"):
        deepcomp.prune(network, (np.zeros((20, 8, 8), np.uint8), np.arange(20) % 10), sparsity=0.5)


def test_sensitivity_is_the_accuracy_of_each_layer_pruned_alone_and_leaves_the_network_as_it_was(network, digits):
    learn(parametrize.free(network), digits, steps=80, batch=50, learning_rate=5e-3)
    before, (x, y) = network.get_weights(), (digits.x_validation, digits.y_validation)
    found = compression.sensitivity(network, digits, sparsities=[0, 0.5, 0.95])
    assert compression.sensitivity(network, (x, y), sparsities=[0, 0.5, 0.95]) == found
    assert all(np.array_equal(a, b) for a, b in zip(before, network.get_weights(), strict=True))
    for name in ("conv", "dense"):
        one = [deepcomp.prune(network, digits, sparsity={name: sparsity}, steps=0) for sparsity in (0, 0.5, 0.95)]
        assert found[name] == [evaluate(model, x, y) for model in one]
        assert found[name][0] > 0.6 > found[name][2]
    with pytest.raises(DataError, match="no examples to scan on"):
        compression.sensitivity(network, None)
