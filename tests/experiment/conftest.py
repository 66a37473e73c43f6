"""A run of the four scripts that the tests of a worker share; they copy what they change."""

import keras
import pytest

from tests.scripts import run

RECIPE = """
name = "tiny"
[data]
validation = 100
shift = 1
[full]
steps = 200
batch = 50
learning_rate = 1e-2
evaluate_every = 50
save_every = 10
[pruned]
sparsity = 0.6
layers = {dense = 0.8}
scope = "layer"
scores = "saliency"
distillation_weight = 0.5
end = 30
every = 10
steps = 200
batch = 50
evaluate_every = 50
save_every = 10
[quantized]
clusters = 6
bias_clusters = 3
rate_distortion_lambda = 0.01
distillation_weight = 0.1
second_order_rounds = 1
end = 100
every = 10
steps = 200
batch = 50
evaluate_every = 50
save_every = 10
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, digits_file):
    """A recipe and a functional network of our own, with dropout, and the flags that use them."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.toml").write_text(RECIPE)
    keras.utils.set_random_seed(7)
    image = keras.Input((28, 28, 1), name="image")
    x = keras.layers.Conv2D(4, 5, strides=4, padding="same", activation="relu", name="conv")(image)
    y = keras.layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    y = keras.layers.BatchNormalization(momentum=0.9, name="norm")(y)
    x = keras.layers.Flatten(name="flatten")(keras.layers.Add(name="add")([x, y]))
    x = keras.layers.Dropout(0.3, name="drop")(x)
    network = keras.Model(image, keras.layers.Dense(10, activation="softmax", name="dense")(x))
    network.save(folder / "tiny.keras")
    return ["--recipe", folder / "tiny.toml", "--data", digits_file, "--model", folder / "tiny.keras"]


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory, testrun_uid):
    """A run that went through all four scripts without interruption, made by the first worker that needs it."""
    shared = tmp_path_factory.getbasetemp().parent / f"finished-{testrun_uid}"
    if shared.exists():
        return shared
    folder = tmp_path_factory.mktemp("finished") / "run"
    run("train_full.py", *tiny, "--run", folder)
    for script in ("prune.py", "quantize.py", "deploy.py"):
        run(script, "--run", folder)
    try:
        return folder.rename(shared)
    except OSError:  # Another worker was faster.
        return folder
