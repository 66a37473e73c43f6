"""The callbacks for the user's own fit: exact after every batch, on schedule, and nothing of them left afterwards."""

import importlib.util
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest

import deepcomp
from deepcomp import keras_private, models
from deepcomp.callbacks import Clustered, Masked, Projection, PruningCallback, SharingCallback
from deepcomp.errors import DeepcompWarning, RecipeError, UnsupportedLayerError
from deepcomp.options import Pruning, Sharing

ROOT = Path(__file__).resolve().parent.parent
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.01),
    "adamw": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "rmsprop": lambda: keras.optimizers.RMSprop(0.01),
    "lion": lambda: keras.optimizers.Lion(0.01),
}

X = np.random.default_rng(0).normal(size=(48, 6, 6, 1)).astype(np.float32)
Y = np.arange(48) % 3


def net(**options):
    """36 -> 54 + 192 weights: one convolution, one dense layer."""
    keras.utils.set_random_seed(3)
    parts = [
        keras.Input((6, 6, 1)),
        keras.layers.Conv2D(4, 3, activation="relu", name="conv", **options),
        keras.layers.Flatten(),
        keras.layers.Dense(3, name="dense", **options),
    ]
    return keras.Sequential(parts, name="net")


def compiled(model, optimizer="sgd", **options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if not {"jit_compile", "steps_per_execution"} & {*options}:
        options = {"run_eagerly": True, **options}  # which saves the time that compiling takes
    model.compile(OPTIMIZERS[optimizer]() if isinstance(optimizer, str) else optimizer, loss, **options)
    return model


def fit(model, *found, x=X, y=Y, epochs=1, **options):
    """Four steps an epoch; returns the history."""
    options = {"batch_size": 12, "shuffle": False, "verbose": 0, **options}
    return model.fit(x, y, epochs=epochs, callbacks=list(found), **options).history


def kernels(model):
    return {name: np.array(variable.numpy()) for name, variable in models.kernels(model).items()}


def zeros(model):
    """How many weights of each kernel are zero."""
    return [int(np.count_nonzero(kernel == 0)) for kernel in kernels(model).values()]


def distinct(model):
    """How many distinct values that are not zero each kernel has."""
    return [np.unique(kernel[kernel != 0]).size for kernel in kernels(model).values()]


class Watch(keras.callbacks.Callback):
    """The kernels after every batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(kernels(self.model))


class Stop(keras.callbacks.Callback):
    """An interruption after so many epochs."""

    def __init__(self, epochs):
        super().__init__()
        self.epochs = epochs

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epochs:
            raise KeyboardInterrupt


def in_subprocess(code, tmp_path, **environment):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code), encoding="utf-8")
    place = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2", **environment}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=place, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


# Exactness


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_zeros_and_values_are_exact_after_every_batch(optimizer):
    model, watch = compiled(net(), optimizer, jit_compile=False), Watch()
    start = kernels(model)["dense"]
    history = fit(model, PruningCallback(sparsity=0.75, scope="layer"), SharingCallback(clusters=4), watch, epochs=2)
    assert len(watch.seen) == 8
    for seen in watch.seen:
        for name, kernel in seen.items():
            assert np.count_nonzero(kernel == 0) == kernel.size * 3 // 4
            assert 1 < np.unique(kernel[kernel != 0]).size <= 4
            assert np.array_equal(kernel == 0, watch.seen[0][name] == 0)
            assert not np.signbit(kernel[kernel == 0]).any()
    assert not np.array_equal(watch.seen[0]["dense"], watch.seen[-1]["dense"])
    assert np.array_equal(watch.seen[0]["dense"] != 0, np.abs(start) >= np.sort(np.abs(start), axis=None)[144])
    assert history["sparsity"] == [pytest.approx(0.75)] * 2
    assert history["values"] == [4, 4]


@pytest.mark.parametrize(
    "options",
    [{"jit_compile": True}, {"jit_compile": False, "steps_per_execution": 10}, {"run_eagerly": True}],
    ids=["compiled by XLA", "ten in a call", "eager"],
)
def test_however_the_step_is_run(options):
    model, watch = compiled(net(), "adam", **options), Watch()
    fit(model, SharingCallback(clusters=3), PruningCallback(sparsity=0.5, scope="layer"), watch, epochs=2)
    assert len(watch.seen) == (2 if "steps_per_execution" in options else 8)
    for seen in watch.seen:
        assert [np.count_nonzero(kernel == 0) for kernel in seen.values()] == [18, 96]
        assert all(1 < np.unique(kernel[kernel != 0]).size <= 3 for kernel in seen.values())


def test_each_cluster_goes_to_its_mean():
    kernel = np.array([[1.0, 1.1, 0.0], [5.0, 5.2, 1.2]], np.float32)
    clustered = Clustered(kernel, 2, "optimal")
    moved = keras.ops.convert_to_numpy(clustered(kernel + np.float32([[0.3, 0, 9], [0, 0.2, 0]])))
    assert moved == pytest.approx(np.array([[1.2, 1.2, 0], [5.2, 5.2, 1.2]]), abs=1e-6)
    assert np.unique(moved).size == 3
    clustered.keep(np.array([[True, False, False], [True, True, True]]))
    left = keras.ops.convert_to_numpy(clustered(kernel))
    assert left == pytest.approx(np.array([[1.1, 0, 0], [5.1, 5.1, 1.1]]), abs=1e-6)


def test_shared_values_stay_bit_for_bit_while_nothing_moves():
    values = np.random.default_rng(1).normal(size=3).astype(np.float32)
    kernel = values[np.random.default_rng(2).integers(0, 3, 100_000)]
    assert np.array_equal(keras.ops.convert_to_numpy(Clustered(kernel, 4, "optimal")(kernel)), kernel)


def test_what_is_not_finite_does_not_come_back_from_a_pruned_weight():
    masked = Masked(np.array([1.0, 0.0], np.float32))
    assert keras.ops.convert_to_numpy(masked(np.float32([2.0, np.inf]))).tolist() == [2.0, 0.0]


def test_averages_of_weights_that_replace_them_at_the_end_are_projected_too():
    model = compiled(net(), keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5))
    fit(model, PruningCallback(sparsity=0.5, scope="layer"), SharingCallback(clusters=3))
    assert zeros(model) == [18, 96]
    assert distinct(model) == [3, 3]


# When


def test_a_schedule_in_steps():
    model, watch = compiled(net()), Watch()
    pruning = PruningCallback(Pruning(sparsity=0.5, scope="layer", begin=2, end=10, every=4))
    fit(model, pruning, watch, epochs=3)
    found = [np.count_nonzero(seen["dense"] == 0) for seen in watch.seen]
    # The fractions at steps 2, 6 and 10 are 0, 7/8 and 1.
    assert found == [0] * 5 + [84] * 4 + [96] * 3


def test_sharing_begins_at_its_step_and_holds_zeros_before():
    model, watch = compiled(net()), Watch()
    model.get_layer("dense").kernel.assign(np.where(np.arange(192).reshape(64, 3) % 2, kernels(model)["dense"], 0))
    history = fit(model, SharingCallback(clusters=5, begin=6), watch, epochs=2)
    assert [np.unique(seen["conv"]).size for seen in watch.seen] == [36] * 5 + [5] * 3
    assert [np.count_nonzero(seen["dense"] == 0) for seen in watch.seen] == [96] * 8
    assert history["values"] == [96, 5]


def test_with_several_steps_in_one_call_changes_come_at_the_next_boundary():
    model, watch = compiled(net(), jit_compile=False, steps_per_execution=3), Watch()
    fit(model, PruningCallback(sparsity=0.5, scope="layer", begin=4, end=4), watch, batch_size=4)
    assert [np.count_nonzero(seen["dense"] == 0) for seen in watch.seen] == [0, 96, 96, 96]


def test_accumulated_gradients_make_one_step():
    optimizer = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
    model, watch = compiled(net(), optimizer), Watch()
    fit(model, PruningCallback(sparsity=0.5, scope="layer", begin=3, end=3), watch, epochs=2)
    assert [np.count_nonzero(seen["dense"] == 0) for seen in watch.seen] == [0] * 5 + [96] * 3


def test_steps_of_fits_before_do_not_count_and_those_of_the_same_callback_go_on():
    model, watch = compiled(net(), "adam"), Watch()
    fit(model, epochs=3)
    pruning = PruningCallback(sparsity=0.5, scope="layer", begin=6, end=6)
    with pytest.warns(DeepcompWarning, match=r"fit ended after step 4, its goal is reached at step 6"):
        fit(model, pruning, watch)
    compiled(model, "adam")  # a new optimizer counts from 0
    fit(model, pruning, watch)
    assert [np.count_nonzero(seen["dense"] == 0) for seen in watch.seen] == [0] * 5 + [96] * 3


@pytest.mark.parametrize("first", [True, False])
def test_an_interrupted_fit_that_is_restored_gives_the_same_bits(tmp_path, first):
    def run(model, *more):
        own = [PruningCallback(sparsity=0.6, end=10, every=3), SharingCallback(clusters=4, begin=11)]
        fit(model, *(own + list(more) if first else list(more) + own), epochs=4)
        return model

    whole = run(compiled(net(), "adam"))
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        run(compiled(net(), "adam"), backup, Stop(2))
    resumed = run(compiled(net(), "adam"), keras.callbacks.BackupAndRestore(tmp_path / "backup"))
    assert int(resumed.optimizer.iterations) == 16
    for name, kernel in kernels(whole).items():
        assert np.array_equal(kernel, kernels(resumed)[name]), name


def test_a_fit_from_a_later_epoch_counts_those_before():
    model = compiled(net())
    fit(model, PruningCallback(sparsity=0.5, scope="layer", begin=9, end=9), epochs=3, initial_epoch=2)
    assert zeros(model) == [18, 96]


# What was there comes back


def test_a_step_compiled_before_is_compiled_anew_and_the_optimizer_keeps_its_state():
    model = compiled(net(), "adam", jit_compile=False)
    fit(model)
    before = [np.array(variable.numpy()) for variable in model.optimizer.variables]

    class Look(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 0:
                self.found = [np.array(variable.numpy()) for variable in model.optimizer.variables]

    look = Look()
    fit(model, PruningCallback(sparsity=0.5), look)
    assert all(np.array_equal(one, other) for one, other in zip(before, look.found, strict=True))
    assert sum(zeros(model)) == 114
    assert [variable.constraint for variable in model.variables] == [None] * 4
    fit(model)
    assert sum(zeros(model)) == 0


def test_the_constraints_that_a_model_had_hold_and_come_back():
    def half(w):
        return keras.ops.clip(w, 0.02, 0.3)

    model, watch = compiled(net(kernel_constraint=keras.constraints.NonNeg())), Watch()
    old = model.get_layer("conv").kernel.constraint
    fit(model, SharingCallback(clusters=4), watch)
    assert all(np.all(kernel >= 0) for seen in watch.seen for kernel in seen.values())
    assert all(np.unique(kernel[kernel != 0]).size <= 4 for seen in watch.seen for kernel in seen.values())
    assert model.get_layer("conv").kernel.constraint is old

    model = compiled(net(kernel_constraint=half))
    fit(model, PruningCallback(sparsity=0.5, scope="layer"))
    kernel = kernels(model)["dense"]
    assert np.count_nonzero(kernel == 0) == 96
    assert np.all((kernel == 0) | ((kernel >= np.float32(0.02)) & (kernel <= np.float32(0.3))))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_step_leaves_no_constraint(error):
    class Failing(keras.Sequential):
        def train_step(self, data):
            if int(self.optimizer.iterations) == 2:
                raise error
            return super().train_step(data)

    keras.utils.set_random_seed(0)
    model = Failing([keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(3, name="dense")])
    compiled(model, run_eagerly=True)
    with pytest.raises(error):
        fit(model, PruningCallback(sparsity=0.5), SharingCallback(clusters=2))
    assert [variable.constraint for variable in model.variables] == [None, None]
    assert zeros(model) == [54]


def test_after_an_interruption_elsewhere_constraints_are_released_or_replaced_and_never_nest():
    model, pruning = compiled(net()), PruningCallback(sparsity=0.5)
    dense = model.get_layer("dense").kernel
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(model, pruning, Stop(1), epochs=2)
        assert isinstance(dense.constraint, Masked)
        assert dense.constraint.previous is None
    pruning.release()
    assert dense.constraint is None
    with pytest.raises(KeyboardInterrupt):
        fit(model, pruning, Stop(1), epochs=2)
    fit(model, SharingCallback(clusters=3))
    assert dense.constraint is None


def test_an_error_in_one_callback_releases_the_others():
    model = compiled(net())
    with pytest.raises(RecipeError, match="matches no layer"):
        fit(model, PruningCallback(sparsity=0.5), SharingCallback(clusters={"none": 3}))
    assert [variable.constraint for variable in model.variables] == [None] * 4


def test_the_model_is_plain_afterwards(tmp_path):
    model = compiled(net(), "adam")
    fit(model, PruningCallback(sparsity=0.75, scope="layer"), SharingCallback(clusters=4))
    model.save(tmp_path / "model.keras")
    code = """
        import sys, keras, numpy as np
        model = keras.models.load_model("model.keras")
        for name in ("conv", "dense"):
            kernel = model.get_layer(name).kernel.numpy()
            print(np.count_nonzero(kernel == 0), np.unique(kernel[kernel != 0]).size)
        print(len(model.optimizer.variables), "deepcomp" in sys.modules)
    """
    assert in_subprocess(code, tmp_path).split() == ["27", "4", "144", "4", "10", "False"]


# Which kernels


def test_settings_by_layer():
    model = compiled(net())
    fit(model, PruningCallback(sparsity={"conv": 0.5}), SharingCallback(clusters=4, layers={"d.*": 2}))
    assert zeros(model) == [18, 0]
    assert distinct(model) == [4, 2]
    model = compiled(net())
    fit(model, SharingCallback(Sharing(clusters={"conv": 3})))
    assert distinct(model) == [3, 192]
    fit(model, PruningCallback(threshold=0.1, layers={"conv": 0.0}))
    assert zeros(model)[0] == 0
    assert np.abs(kernels(model)["dense"]).max() > 0.1


def test_frozen_kernels_stay_and_are_named(capsys):
    model = net()
    model.get_layer("conv").trainable = False
    before = kernels(net())["conv"]
    compiled(model)
    fit(model, PruningCallback(sparsity=0.5), verbose=2)
    assert "PruningCallback: frozen kernels stay as they are: conv.\n" in capsys.readouterr().out
    assert np.array_equal(model.get_layer("conv").kernel.numpy(), before)
    assert zeros(model) == [96]


def test_mixed_precision_shared_layers_and_nested_models():
    keras.utils.set_random_seed(0)
    policy = keras.DTypePolicy("mixed_float16")
    twice = keras.layers.Dense(8, activation="relu", name="twice", dtype=policy)
    inner_input = keras.Input((8,))
    inner = keras.Model(inner_input, keras.layers.Dense(8, name="deep", dtype=policy)(inner_input), name="inner")
    given = keras.Input((8,))
    out = keras.layers.Dense(3, name="out", dtype="float32")(inner(twice(twice(given))))
    model = keras.Model(given, out, name="outer")
    compiled(model, keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)))
    watch = Watch()
    x = np.random.default_rng(0).normal(size=(48, 8)).astype(np.float32)
    fit(model, PruningCallback(sparsity=0.75, scope="layer", end=4, every=2), SharingCallback(clusters=2), watch, x=x)
    assert [np.count_nonzero(kernel == 0) for kernel in watch.seen[-1].values()] == [48, 48, 18]
    assert all(np.unique(k[k != 0]).size <= 2 for seen in watch.seen for k in seen.values())
    assert watch.seen[-1]["twice"].dtype == np.float32


@keras.saving.register_keras_serializable("deepcomp-tests")
class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.flatten = keras.layers.Flatten()
        self.dense = keras.layers.Dense(3, dtype="float64")

    def call(self, x):
        return self.dense(self.flatten(x))


def test_a_subclassed_model_of_float64():
    model = Own()
    model(X[:1])
    compiled(model, "adam")
    fit(model, PruningCallback(sparsity=0.5), SharingCallback(clusters=3))
    kernel = model.dense.kernel.numpy()
    assert kernel.dtype == np.float64
    assert np.count_nonzero(kernel == 0) == 54
    assert np.unique(kernel[kernel != 0]).size == 3


def test_saliency_reads_the_second_moments_of_the_optimizer():
    model = compiled(net(), "rmsprop")
    fit(model)
    dense = model.get_layer("dense").kernel
    (own,) = keras_private.second_moments(model.optimizer, [dense])
    private = model.optimizer._velocities[model.optimizer._get_variable_index(dense)]
    assert np.array_equal(own.numpy(), private.numpy())
    score = kernels(model)["dense"].astype(np.float64) ** 2 * private.numpy()
    watch = Watch()
    fit(model, PruningCallback(sparsity=0.5, scores="saliency", scope="layer"), watch)
    kept = watch.seen[0]["dense"] != 0
    assert np.array_equal(kept, score >= np.sort(score, axis=None)[96])


# What is said


def test_an_emptied_layer_is_named_once():
    model = compiled(net())
    model.get_layer("conv").kernel.assign(kernels(model)["conv"] * 1e-6)
    with pytest.warns(DeepcompWarning, match=r"PruningCallback: no weight is left in conv: ") as caught:
        fit(model, PruningCallback(sparsity=0.5, end=4, every=2))
    assert len([one for one in caught if one.category is DeepcompWarning]) == 1


def test_logs_may_be_none():
    model, pruning, sharing = compiled(net()), PruningCallback(sparsity=0.5), SharingCallback(clusters=3)
    for callback in (pruning, sharing):
        callback.set_model(model)
        callback.set_params({})
        callback.on_train_begin()
        callback.on_epoch_begin(0)
        callback.on_epoch_end(0, None)
        callback.on_train_end()
    assert sum(zeros(model)) == 114


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: PruningCallback(0.9),
            "PruningCallback: pruning must be a deepcomp.Pruning, not 0.9",
        ),
        (lambda: PruningCallback(sparsty=0.9), r"no option 'sparsty': do you mean 'sparsity'"),
        (lambda: PruningCallback(sparsity=1.5), r"sparsity=1.5: it must be from 0 to less than 1"),
        (lambda: PruningCallback(tolerance=0.5), r"PruningCallback does not take tolerance=0.5: it takes sparsity, "),
        (lambda: PruningCallback(second_order_rounds=2), r"does not take second_order_rounds=2"),
        (lambda: SharingCallback(Pruning()), "SharingCallback: sharing must be a deepcomp.Sharing, not Pruning"),
        (lambda: SharingCallback(every=10), r"does not take every=10: it takes clusters, layers, init, begin"),
        (lambda: SharingCallback(bias_clusters=4), r"does not take bias_clusters=4"),
        (lambda: SharingCallback(rate_distortion_lambda=0.1, end=9), r"does not take end=9"),
    ],
)
def test_options_that_a_fit_cannot_follow_are_refused_in_one_line(make, message):
    with pytest.raises(RecipeError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: PruningCallback(sparsity={"cnv": 0.5}), r"sparsity: 'cnv' matches no layer"),
        (lambda: PruningCallback(scores="saliency"), r"saliency' needs an optimizer that keeps .* not SGD"),
        (lambda: SharingCallback(clusters=2000), r"clusters=2000: init='optimal' makes at most 1024"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused_before_training(callback, message):
    model = compiled(net())
    before = kernels(model)
    with pytest.raises(RecipeError, match=message):
        fit(model, callback())
    assert all(np.array_equal(kernel, kernels(model)[name]) for name, kernel in before.items())


def test_models_that_cannot_be_treated():
    empty = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.BatchNormalization(), keras.layers.Flatten()])
    with pytest.raises(UnsupportedLayerError, match="has no trainable kernel"):
        fit(compiled(empty), PruningCallback())
    callback = PruningCallback()
    callback.set_model(compiled(Own()))
    with pytest.raises(RecipeError, match="is not built: call it on a batch"):
        callback.on_train_begin()
    callback.set_model(net())
    with pytest.raises(RecipeError, match="has no optimizer"):
        callback.on_train_begin()


def test_the_names_are_public():
    assert deepcomp.PruningCallback is PruningCallback
    assert deepcomp.SharingCallback is SharingCallback
    assert issubclass(deepcomp.DeepcompWarning, UserWarning)
    assert issubclass(Masked, Projection)


# Several devices, other backends

SCRIPT = """
    import sys
    import numpy as np, keras
    {setup}
    import deepcomp
    x, y = np.random.default_rng(0).normal(size=(48, 8)).astype("float32"), np.arange(48) % 3
    with scope():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8, name="a"), keras.layers.Dense(3, name="b")])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=keras.backend.backend() == "jax")

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            for layer in self.model.layers:
                for kernel in copies(layer.kernel):
                    print(np.count_nonzero(kernel == 0), np.unique(kernel[kernel != 0]).size)
                assert all(np.array_equal(kernel, copies(layer.kernel)[0]) for kernel in copies(layer.kernel))

    pruning = deepcomp.PruningCallback(sparsity=0.5, scope="layer", end={end}, every=2)
    sharing = deepcomp.SharingCallback(clusters=3, begin={begin})
    model.fit(x, y, batch_size=12, epochs=2, verbose=0, callbacks=[pruning, sharing, Watch()])
    assert all(variable.constraint is None for variable in model.variables)
"""


@pytest.mark.slow
def test_two_replicas_stay_exact_and_identical(tmp_path):
    setup = """
    import tensorflow as tf
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    scope = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope
    copies = lambda variable: [copy.numpy() for copy in variable.value.values]
    """
    found = in_subprocess(SCRIPT.format(setup=setup, end=0, begin=0), tmp_path).split()
    assert found == ["32", "3", "32", "3", "12", "3", "12", "3"] * 8


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend(tmp_path, backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    setup = """
    from contextlib import nullcontext as scope
    copies = lambda variable: [keras.ops.convert_to_numpy(variable)]
    """
    found = in_subprocess(SCRIPT.format(setup=setup, end=2, begin=3), tmp_path, KERAS_BACKEND=backend).split()
    assert found == ["0", "64", "0", "24", "32", "32", "12", "12"] + ["32", "3", "12", "3"] * 6
