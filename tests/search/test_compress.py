"""The smallest file within a limit: what is tried, what is returned, and what a search survives."""

import json
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import deepcomp
from deepcomp import data, search
from deepcomp.data import DataSet
from deepcomp.dcz import container
from deepcomp.errors import DataError, RecipeError, StageError
from deepcomp.search.journal import AS_IT_IS, LAYERS, PRUNED, SHARED
from deepcomp.second_order import layerwise
from deepcomp.training import parametrize
from tests.common import learn

FAST = {"steps": 200, "rounds": 3, "batch": 50, "examples": 100, "verbose": False}


@pytest.fixture(scope="module")
def small(digits):
    """A trained network that classifies digits, and is not small for what it does."""
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(6, 5, strides=3, use_bias=False),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    learn(parametrize.free(model), digits, steps=150, batch=50, learning_rate=5e-3)
    return model


def accuracy(outputs, part):
    return float(np.mean(outputs.argmax(axis=1) == part.y))


def test_a_classifier_end_to_end(small, digits, tmp_path):
    before = small.get_weights()
    found = deepcomp.compress(small, digits, 2.0, folder=tmp_path, **FAST)
    assert all(np.array_equal(a, b) for a, b in zip(before, small.get_weights(), strict=True))
    report, chosen = found.report, found.report.chosen
    assert [one.how for one in report.candidates][:3] == [AS_IT_IS, LAYERS, LAYERS]
    rounds = [(one.how, one.steps) for one in report.candidates if one.steps]
    assert rounds == [(PRUNED, 50), (SHARED, 50), (SHARED, 100)]
    assert chosen.bytes == len(found.data) == min(one.bytes for one in report.candidates if one.within)
    assert report.dense_bytes / chosen.bytes > 15

    # The bytes are those of the network returned, and it keeps to the limit.
    (tmp_path / "small.dcz").write_bytes(found.data)
    engine = deepcomp.load(tmp_path / "small.dcz")
    held = digits.validation
    full = accuracy(small(held.x[..., None] / np.float32(255)).numpy(), held)
    assert report.limit.full == pytest.approx(full)
    assert accuracy(engine(held.x), held) == pytest.approx(chosen.metric)
    assert chosen.metric >= full - 0.02 - 1e-9
    np.testing.assert_allclose(engine(held.x), found.model(held.x[..., None] / np.float32(255)), rtol=1e-3, atol=1e-3)
    scores = small(digits.test.x[..., None] / np.float32(255)).numpy(), engine(digits.test.x)
    assert report.test == pytest.approx([accuracy(one, digits.test) for one in scores])
    assert report.interval.low <= report.interval.difference <= report.interval.high
    assert report.interval.difference == pytest.approx(chosen.metric - full)


def test_a_network_that_can_spare_few_weights_is_not_pruned_by_training(digits):
    keras.utils.set_random_seed(3)
    pooling = [keras.layers.AveragePooling2D(4), keras.layers.Flatten()]
    tight = keras.Sequential([keras.Input((28, 28, 1)), *pooling, keras.layers.Dense(10)])
    learn(parametrize.free(tight), digits, steps=150, batch=50, learning_rate=5e-3)
    found = deepcomp.compress(tight, digits, 3.0, **FAST)
    ways = [one.how for one in found.report.candidates]
    assert set(ways[1:-3]) == {LAYERS}
    assert ways[-3:] == [SHARED] * 3
    given = deepcomp.compress(tight, digits, 3.0, density=0.9, **FAST)
    assert [one.how for one in given.report.candidates][:2] == [AS_IT_IS, PRUNED]


def test_the_full_network_is_compressed_layer_by_layer_where_no_pruned_one_is_within_the_limit(small, digits):
    found = deepcomp.compress(small, digits, **{**FAST, "learning_rate": 0.5, "density": 0.01})
    ways = [(one.how, one.source, one.within) for one in found.report.candidates]
    assert ways[:2] == [(AS_IT_IS, 0, True), (PRUNED, 0, False)]
    assert {way[:2] for way in ways[2:-2]} == {(LAYERS, 0)}
    assert ways[-1][0] == SHARED


def test_the_same_call_again_finds_all_of_it_done(small, digits, tmp_path, capsys):
    first = deepcomp.compress(small, digits, 2.0, folder=tmp_path, **FAST)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "candidates").iterdir()}
    again = deepcomp.compress(small, digits, 2.0, folder=tmp_path, **{**FAST, "verbose": True})
    assert again.data == first.data
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "candidates").iterdir()} == files
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    with pytest.raises(StageError, match="holds another search, of another tolerance"):
        deepcomp.compress(small, digits, 1.0, folder=tmp_path, **FAST)


def test_a_report_as_text_as_a_table_and_as_a_picture(small, digits, tmp_path):
    report = deepcomp.compress(small, digits, 2.0, **{**FAST, "train": False}).report
    assert max(map(len, str(report).splitlines())) <= 100
    table = json.loads(json.dumps(report.table()))
    assert table["file_bytes"] == report.chosen.bytes
    assert [one["bytes"] for one in table["candidates"]] == [one.bytes for one in report.candidates]
    assert table["limit"]["bound"] == pytest.approx(report.limit.full - 0.02)
    report.picture(tmp_path / "search.png")
    assert (tmp_path / "search.png").read_bytes()[:4] == b"\x89PNG"


def test_nothing_within_the_limit_but_the_network_as_it_is(small, digits, monkeypatch):
    monkeypatch.setattr("deepcomp.search.limit.Limit.allows", lambda *arguments: False)
    found = deepcomp.compress(small, digits, **{**FAST, "train": False})
    assert (found.report.chosen.how, found.report.chosen.number) == (AS_IT_IS, 0)
    assert sum(one.how == LAYERS for one in found.report.candidates) > 3
    back = deepcomp.to_keras(container.loads(found.data)).get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(back, small.get_weights(), strict=True))


@pytest.mark.parametrize("compiled", [False, True])
def test_inputs_without_labels(small, digits, capsys, compiled):
    if compiled:  # with a loss that would need labels
        small = deepcomp.prune(small, steps=0, sparsity=0.0, verbose=False)
        small.compile("adam", "sparse_categorical_crossentropy")
    x = digits.x_train.astype(np.float32)[..., None] / 255
    found = deepcomp.compress(small, x, 5.0, **{**FAST, "verbose": True})
    assert found.report.limit.metric == "agreement"
    assert found.report.limit.full == 1.0
    assert {one.how for one in found.report.candidates} == {AS_IT_IS, LAYERS}
    outputs = small(x).numpy(), found.model(x).numpy()
    assert np.mean(outputs[0].argmax(axis=1) == outputs[1].argmax(axis=1)) > 0.9
    assert "There are no labels, so nothing was trained." in capsys.readouterr().out


def test_a_regression_by_its_loss():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((800, 6)).astype(np.float32)
    y = np.sin(x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((6,)), *(keras.layers.Dense(64, activation="tanh") for _ in range(2)), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.Adam(1e-2), "mse")
    model.fit(x, y, epochs=20, batch_size=50, verbose=0)
    found = deepcomp.compress(model, (x, y), 10.0, **FAST)
    limit, chosen = found.report.limit, found.report.chosen
    assert (limit.metric, limit.rises) == ("loss", False)
    assert chosen.metric <= 1.1 * limit.full + 1e-6
    assert chosen.bytes < 4 * model.count_params() / 3


def test_a_network_that_no_file_holds(digits):
    @keras.saving.register_keras_serializable("tests")
    class Own(keras.layers.Layer):
        def call(self, x):
            return x * 2

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((28, 28)), keras.layers.Flatten(), Own(), keras.layers.Dense(10)])
    found = deepcomp.compress(model, digits, 20.0, **{**FAST, "train": False})
    assert found.report.notes[0].startswith("The file holds the weights alone.")
    assert container.loads(found.data).is_weights_alone


@pytest.mark.parametrize(
    ("arguments", "fields", "error", "message"),
    [
        ((-1.0,), {}, RecipeError, r"tolerance=-1\.0: it must be a number, 0 or more\."),
        ((float("nan"),), {}, RecipeError, r"tolerance=nan"),
        ((True,), {}, RecipeError, r"tolerance=True"),
        ((0.0, 0), {}, RecipeError, r"minutes=0: it must be a number above 0\."),
        ((), {"metric": "f1"}, RecipeError, r"metric='f1': the network is measured by accuracy\."),
        ((), {"sparsity": 0.5}, RecipeError, "There is no option 'sparsity'"),
    ],
)
def test_wrong_arguments_are_one_line(small, digits, arguments, fields, error, message):
    with pytest.raises(error, match=message):
        deepcomp.compress(small, digits, *arguments, **{**FAST, **fields})


def test_the_scripts_examples_are_held_out(small, tmp_path, digits):
    """Once, they were others: a network that the scripts had trained knew most of them, and seemed to lose more."""
    whole = DataSet.of((digits.x_train, digits.y_train))
    arrays = {"x_train": digits.x_train, "y_train": digits.y_train, "x_test": digits.x_test, "y_test": digits.y_test}
    np.savez(tmp_path / "digits.npz", **arrays)
    scripts = data.load(tmp_path / "digits.npz", validation=300, seed=3)
    found = search._with_held_out(whole, 0.2, seed=3)
    assert np.array_equal(found.x_validation, scripts.x_validation)
    assert np.array_equal(found.x_train, scripts.x_train)


def test_data_that_nothing_can_be_held_out_of(small, digits):
    with pytest.raises(DataError, match="data=None: give some hundred inputs"):
        deepcomp.compress(small, None)
    with pytest.raises(DataError, match="1 examples are too few to hold some out"):
        deepcomp.compress(small, (digits.x_train[:1], digits.y_train[:1]), **FAST)
    batches = tf.data.Dataset.from_tensor_slices((digits.x_train[:100, ..., None], digits.y_train[:100])).batch(20)
    with pytest.raises(DataError, match=r"give deepcomp\.DataSet\.of\(train, validation=\.\.\.\)"):
        deepcomp.compress(small, batches, **FAST)
    held = DataSet.of(batches, validation=(digits.x_validation, digits.y_validation))
    found = deepcomp.compress(small, held, 5.0, **{**FAST, "steps": 20, "rounds": 1})
    assert found.report.held_out == 200


PROGRAM = """
import sys
from deepcomp.__main__ import main
main(["compress", sys.argv[1], "--data", sys.argv[2], "--out", sys.argv[3], "--tolerance", "2", "--steps", "150",
      "--set", "rounds=2", "--set", "batch=50", "--set", "examples=100", "--set", "save_every=7"])
"""


def test_a_search_that_is_killed_again_and_again_gives_the_same_file(small, digits_file, tmp_path):
    small.save(tmp_path / "small.keras")

    def command(name):
        return [sys.executable, "-c", PROGRAM, str(tmp_path / "small.keras"), str(digits_file), str(tmp_path / name)]

    subprocess.run(command("whole.dcz"), check=True, capture_output=True)
    report = json.loads((tmp_path / "whole.search" / "report.json").read_text())
    watched, kills = tmp_path / "killed.search", 0
    for stage in ("search.json", "candidates/003.dcz", "training.npz", "candidates/009.dcz", "training.npz"):
        process = subprocess.Popen(command("killed.dcz"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while not list(watched.glob(stage)) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert kills >= 3
    subprocess.run(command("killed.dcz"), check=True, capture_output=True)
    assert (tmp_path / "killed.dcz").read_bytes() == (tmp_path / "whole.dcz").read_bytes()
    again = json.loads((watched / "report.json").read_text())
    assert [(one["bytes"], one["metric"]) for one in again["candidates"]] == [
        (one["bytes"], one["metric"]) for one in report["candidates"]
    ]
    shutil.rmtree(watched)


def test_layers_are_compressed_by_examples_of_all_kinds(small, digits, monkeypatch):
    """The digits are sorted by class: the first ones would be all alike."""
    seen, measure = [], layerwise.measure

    def spied(model, inputs, **how):
        seen.append(np.asarray(inputs))
        return measure(model, inputs, **how)

    monkeypatch.setattr(layerwise, "measure", spied)
    deepcomp.compress(small, digits, 5.0, **{**FAST, "train": False})
    assert [len(inputs) for inputs in seen] == [100]
    classes = {(x / np.float32(255)).tobytes(): y for x, y in zip(digits.x_train, digits.y_train, strict=True)}
    assert len({int(classes[one.tobytes()]) for one in seen[0]}) == 10
