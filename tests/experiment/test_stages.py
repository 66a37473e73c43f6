"""The four scripts as a user runs them: end to end, and used wrongly."""

import json
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest

import deepcomp
from deepcomp import models, opening, sparse
from deepcomp.experiment import recipe
from tests.scripts import ROOT, TRAINING_SCRIPTS, assert_same_weights, refused, run, weights


def test_the_run_folder_holds_what_the_contract_says(finished):
    for stage in TRAINING_SCRIPTS:
        assert sorted(path.name for path in (finished / stage).iterdir()) == ["model.keras", "stage.json"]
        record = json.loads((finished / stage / "stage.json").read_text())
        assert record["stage"] == stage
        assert record["recipe"] == "tiny"
        assert record["seed"] == 0
        assert record["steps"] == record["history"]["step"][-1]
        assert record["seconds"] > 0
        assert record["data"] == {"name": "digits.npz", "train": 500, "validation": 100, "test": 200, "scale": True}
        assert record["loss"] == "cross-entropy of 10 classes, from probabilities"
        assert record["test_error"] == pytest.approx(100 * (1 - record["test_accuracy"]))
        rounds = [201] if stage == "quantized" else []  # of second_order_rounds, after training
        assert record["history"]["step"] == [0, 50, 100, 150, 200, *rounds]
        assert [layer["name"] for layer in record["layers"]] == ["conv", "depthwise", "dense"]
        assert set(record["versions"]) >= {"deepcomp", "keras", "tensorflow", "numpy", "python"}
    deployed = finished / "deployed"
    assert sorted(path.name for path in deployed.iterdir()) == ["accuracy.png", "bytes.png", "model.dcz", "report.json"]
    report = json.loads((deployed / "report.json").read_text())
    assert report["dense_bytes"] == 4 * (100 + 4 + 36 + 4 + 16 + 1960 + 10)
    parts = sum(value for layer in report["layers"] for key, value in layer.items() if key.endswith("_bits"))
    assert parts == 8 * report["file_bytes"]
    assert report["file_bytes"] == (deployed / "model.dcz").stat().st_size == report["bytes_by_coder"]["range"]
    assert report["ratio"] == pytest.approx(report["dense_bytes"] / report["file_bytes"])


def test_every_stage_does_its_part_and_keeps_what_the_one_before_reached(finished):
    full, pruned, quantized = (
        models.kernel_values(opening.load(finished / stage / "model.keras")) for stage in TRAINING_SCRIPTS
    )
    records = [json.loads((finished / stage / "stage.json").read_text()) for stage in TRAINING_SCRIPTS]
    assert records[0]["test_accuracy"] > 0.6
    assert min(record["test_accuracy"] for record in records[1:]) > 0.5
    assert {name: np.count_nonzero(kernel) for name, kernel in full.items()} == {
        "conv": 100,
        "depthwise": 36,
        "dense": 1960,
    }
    assert {name: np.count_nonzero(kernel) for name, kernel in pruned.items()} == {
        "conv": 40,
        "depthwise": 15,
        "dense": 392,
    }
    for name, kernel in quantized.items():
        assert not np.any(kernel[pruned[name] == 0])
        assert 1 < len(np.unique(kernel[kernel != 0])) <= 6


def test_the_file_holds_the_quantized_network_bit_for_bit_in_every_coder(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    assert "(huffman)" in run("deploy.py", "--run", folder, "--force", "--coder", "huffman")
    assert json.loads((folder / "deployed" / "report.json").read_text())["coder"] == "huffman"
    expected = weights(finished / "quantized")
    for file in (finished / "deployed" / "model.dcz", folder / "deployed" / "model.dcz"):
        found = deepcomp.to_keras(file).get_weights()
        assert all(np.array_equal(a, b) for a, b in zip(expected, found, strict=True))
    rounded = [array.astype(np.float16).astype(np.float32) for array in expected]
    trained = [i for i, v in enumerate(opening.load(finished / "quantized" / "model.keras").weights) if v.trainable]
    assert all(np.array_equal(expected[i], rounded[i]) for i in trained)


LIBRARY = """
import sys
import deepcomp
from deepcomp import Distillation, Pruning, SecondOrderSharing, Sharing, Training, data, opening
from deepcomp.training import distribute

run, out, source = sys.argv[1:]
# Keras draws the seeds of dropout when it opens a file.
distribute.make_deterministic(0)
full, digits = opening.load(run + "/full/model.keras"), data.load(source, validation=100, seed=0)
how = {"steps": 200, "batch": 50, "seed": 0, "shift": 1, "evaluate_every": 50, "verbose": False}

# Without a teacher it is the network before the call.
pruning = Pruning(sparsity=0.6, layers={"dense": 0.8}, scope="layer", scores="saliency", end=30, every=10)
pruned = deepcomp.prune(full, digits, pruning, Training(distillation=Distillation(weight=0.5), **how))
pruned.save(out + "/pruned.keras")

distribute.make_deterministic(0)
pruned = opening.load(out + "/pruned.keras")
rounds = SecondOrderSharing(rounds=1)
sharing = Sharing(clusters=6, bias_clusters=3, rate_distortion_lambda=0.01, end=100, every=10, second_order=rounds)
taught = Distillation(weight=0.1, teacher=full)
deepcomp.quantize(pruned, digits, sharing, Training(distillation=taught, **how)).save(out + "/quantized.keras")
"""


def test_scripts_and_library_give_the_same_bits(finished, digits_file, tmp_path):
    (tmp_path / "library.py").write_text(LIBRARY)
    run(tmp_path / "library.py", finished, tmp_path, digits_file)
    for stage in ("pruned", "quantized"):
        found = opening.load(tmp_path / f"{stage}.keras").get_weights()
        for ours, theirs in zip(found, weights(finished / stage), strict=True):
            assert ours.tobytes() == theirs.tobytes(), stage


def test_the_sparse_network_computes_what_the_quantized_one_does(finished, digits):
    model = opening.load(finished / "quantized" / "model.keras")
    images = digits.x_test.astype(np.float32) / 255
    assert np.allclose(sparse.to_sparse(model)(images), model(images), atol=1e-5)


def test_what_is_done_is_skipped_and_redone_with_force(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = (folder / "pruned" / "stage.json").stat().st_mtime_ns
    assert "done already" in run("prune.py", "--run", folder)
    assert (folder / "pruned" / "stage.json").stat().st_mtime_ns == before
    settings = ["pruned.steps=10", "pruned.ramp=0", "pruned.scores=magnitude"]  # in one shot
    settings += ["pruned.newton_rounds=1", "pruned.newton_value=0.8", "pruned.newton_steps=20"]
    settings += ["pruned.newton_shift=1"]
    run("prune.py", "--run", folder, "--force", *(word for setting in settings for word in ("--set", setting)))
    record = json.loads((folder / "pruned" / "stage.json").read_text())
    assert record["history"]["step"] == [0, 10, 11, 31]
    assert sum(layer["nonzero"] for layer in record["layers"]) == 420  # a fifth of 100 + 36 + 4 + 1960
    assert "steps = 10" in (folder / "recipe.toml").read_text()
    assert not (folder / "quantized").exists()
    assert not (folder / "deployed").exists()
    assert_same_weights(folder / "full", finished / "full")


def test_a_script_is_a_program():
    command = [sys.executable, str(ROOT / "train_full.py"), "--wrong"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


def test_bad_command_lines_are_refused(tmp_path):
    folder = ["--run", tmp_path / "run"]
    refused("train_full.py", *folder, "--wrong", says="--wrong")
    refused("train_full.py", *folder, "--seed", "x", says="invalid int value: 'x'")
    refused("train_full.py", *folder, "--recipe", "nothing", says="No recipe 'nothing'")
    refused("train_full.py", *folder, "--set", "full.stops=3", says="There is no option 'stops'")
    refused("prune.py", *folder, "--data", "mnist", says="--data")
    assert not (tmp_path / "run").exists()


def test_bad_data_and_models_are_refused(tiny, tmp_path):
    folder = ["--run", tmp_path / "run"]
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 and no more")
    refused("train_full.py", *folder, "--data", tmp_path / "bad.npz", says="bad.npz cannot be read")
    refused(
        "train_full.py",
        *folder,
        "--data",
        tmp_path / "none.npz",
        says="No data file",
    )
    refused("train_full.py", *folder, "--data", tiny[3], "--model", "alexnet", says="No network 'alexnet'")
    refused("train_full.py", *folder, "--data", tiny[3], "--model", "none.keras", says="No model file")


SHORT = [f"{stage}.{field}" for stage in ("pruned", "quantized") for field in ("steps=6", "end=4", "every=2")]
SHORT = [word for field in (*SHORT, "full.steps=0", "quantized.second_order_rounds=0") for word in ("--set", field)]


def deployed(tiny, model, folder, *flags, shape=(28, 28, 1)):
    """What `deploy.py` prints of a run of a few steps with a model of one's own."""
    taken = keras.Input(shape)
    model = keras.Model(taken, keras.layers.Dense(10, name="dense")(model(keras.layers.MaxPooling2D(4)(taken))))
    model.save(folder / "own.keras")
    flags = [*tiny[:4], "--model", folder / "own.keras", "--run", folder / "run", *SHORT, *flags]
    if "--weights-only" in flags:
        refused(
            "train_full.py",
            *(flag for flag in flags if flag != "--weights-only"),
            says="deploy.py could not write this network. The operation 'cumsum'",
        )
    run("train_full.py", *flags)
    for script in ("prune.py", "quantize.py"):
        run(script, "--run", folder / "run")
    return model, run("deploy.py", "--run", folder / "run")


def test_a_network_that_no_file_holds_is_refused_before_training_and_its_weights_are_deployed(tiny, tmp_path):
    def sums(x):
        return keras.ops.cumsum(keras.layers.Flatten()(x), axis=1)

    model, printed = deployed(tiny, sums, tmp_path, "--weights-only")
    assert "build the network, and give it them with deepcomp.load_weights" in printed
    folder = tmp_path / "run" / "deployed"
    record = json.loads((folder / "report.json").read_text())
    assert record["file_bytes"] == (folder / "model.dcz").stat().st_size
    assert record["ratio"] == record["dense_bytes"] / record["file_bytes"]
    assert [row["name"] for row in record["layers"]] == ["dense/kernel", "dense/bias", "overhead"]
    assert (folder / "bytes.png").is_file()
    deepcomp.load_weights(model, folder / "model.dcz")
    for ours, theirs in zip(model.get_weights(), weights(tmp_path / "run" / "quantized"), strict=True):
        assert np.array_equal(ours, theirs)


def test_layers_without_a_sparse_product_are_told(tiny, tmp_path):
    def rows(x):
        return keras.layers.LSTM(6, name="lstm")(keras.layers.Reshape((7, 7))(x))

    _, printed = deployed(tiny, rows, tmp_path)
    assert "deployed: runs" in printed
    assert "As sparse products run all layers but lstm." in printed


def test_a_network_of_open_sizes_is_deployed_without_sparse_products(tiny, tmp_path):
    def pooled(x):
        return keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(6, 3, name="conv")(x))

    _, printed = deployed(tiny, pooled, tmp_path, shape=(None, None, 1))
    assert "deployed: runs" in printed
    assert "Not run as sparse products. The network" in printed
    assert "Layer 'conv'" in printed


def test_the_first_stage_sets_fields_of_later_ones_too(tiny, tmp_path):
    settings = ["--set", "full.steps=0", "--set", "pruned.value=0.25", "--set", "quantized.clusters=3", "--seed", "4"]
    run("train_full.py", *tiny, "--run", tmp_path / "run", *settings)
    kept = recipe.load(tmp_path / "run" / "recipe.toml")
    assert (kept.seed, kept.full.training.steps) == (4, 0)
    assert (kept.pruned.pruning.goal, kept.quantized.sharing.clusters) == (0.25, 3)


def files(folder):
    """What each file holds and when it was written."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_a_scan_says_what_each_layer_can_spare_and_changes_nothing(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = files(folder)
    output = run("prune.py", "--run", folder, "--scan", "--set", "pruned.tolerance=3", "--set", "pruned.layers={}")
    assert "chosen" in output.splitlines()[1]
    assert {"scan.json", "scan.png"} == {path.name for path in files(folder).keys() - before.keys()}
    assert {path: files(folder)[path] for path in before} == before
    scan = json.loads((folder / "scan.json").read_text())
    assert scan["sparsities"] == [0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995]
    assert list(scan["accuracies"]) == list(scan["chosen"]) == ["conv", "depthwise", "dense"]
    record = json.loads((finished / "full" / "stage.json").read_text())
    for accuracies in scan["accuracies"].values():
        assert accuracies[0] == record["history"]["validation_accuracy"][-1]
        assert accuracies[-1] < accuracies[0]
    assert (folder / "scan.png").read_bytes().startswith(b"\x89PNG")


def test_wrong_uses_of_a_scan_are_refused(finished, tmp_path):
    folder = tmp_path / "run"
    refused("quantize.py", "--run", folder, "--scan", says="unrecognized arguments: --scan")
    refused("prune.py", "--run", folder, "--scan", says="run train_full.py first")
    refused("prune.py", "--run", finished, "--scan", "--force", says="goes without --force")
    refused("prune.py", "--run", finished, "--scan", "--set", "pruned.tolerance=-1", says="tolerance=-1")
    assert not folder.exists()


def test_a_stage_before_its_predecessor_is_refused(finished, tmp_path):
    folder = tmp_path / "run"
    refused("prune.py", "--run", folder, says="run train_full.py first")
    folder.mkdir()
    shutil.copy(finished / "recipe.toml", folder)
    for script, before in (
        ("prune.py", "train_full.py"),
        ("quantize.py", "train_full.py"),
        ("deploy.py", "train_full.py"),
    ):
        refused(script, "--run", folder, says=f"run {before} first")
    shutil.copytree(finished / "full", folder / "full")
    refused("quantize.py", "--run", folder, says=f"No checkpoint in {folder / 'pruned'}: run prune.py first")
    shutil.copytree(finished / "pruned", folder / "pruned")
    refused("deploy.py", "--run", folder, says="run quantize.py first")


def test_another_recipe_in_the_same_folder_is_refused_and_loses_nothing(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    refused("train_full.py", "--run", folder, "--seed", "5", says="holds a run with seed = 0, not 5")
    refused("prune.py", "--run", folder, "--set", "pruned.steps=5", says="pruned.steps = 200, not 5")
    refused("prune.py", "--run", folder, "--set", "full.steps=5", says="sets fields of search and pruned alone")
    assert (folder / "deployed" / "report.json").is_file()
    assert (folder / "recipe.toml").read_bytes() == (finished / "recipe.toml").read_bytes()


def test_a_forced_redo_that_fails_loses_nothing(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    before = sorted(path for path in folder.rglob("*"))
    refused("train_full.py", "--run", folder, "--force", "--data", "none.npz", says="No data file")
    refused("prune.py", "--run", folder, "--force", "--set", "pruned.value=1.5", says="sparsity=1.5")
    refused("prune.py", "--run", folder, "--force", "--set", "pruned.steps=10", says="give an earlier end")
    assert sorted(path for path in folder.rglob("*")) == before
    assert (folder / "recipe.toml").read_bytes() == (finished / "recipe.toml").read_bytes()


def test_a_comment_in_the_recipe_does_not_cost_the_interrupted_stage(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    with (folder / "recipe.toml").open("a") as file:
        file.write("# mine\n")
    assert "done already" in run("quantize.py", "--run", folder)
    assert (folder / "deployed" / "report.json").is_file()


def test_damaged_checkpoints_are_refused(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "deployed")
    model = folder / "quantized" / "model.keras"
    whole = model.read_bytes()
    model.write_bytes(whole[: len(whole) // 2])
    refused("deploy.py", "--run", folder, says="quantize.py --run")
    model.write_bytes(whole)
    (folder / "pruned" / "stage.json").write_text('{"stage": ')
    refused("deploy.py", "--run", folder, says="stage.json is damaged")
    (folder / "recipe.toml").write_text("seed = ")
    refused("deploy.py", "--run", folder, says="cannot be read as TOML")


def test_a_sparse_network_that_predicts_otherwise_is_not_deployed(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "deployed")
    program = (
        "import sys, runpy; from deepcomp import sparse; right = sparse.dense_matrix\n"
        "import dataclasses\n"
        "def wrong(kernel):\n"
        "    matrix = right(kernel)\n"
        "    return dataclasses.replace(matrix, values=-matrix.values)\n"
        "sparse.dense_matrix = wrong\n"
        "runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
    )
    (tmp_path / "program.py").write_text(program)
    arguments = [tmp_path / "program.py", ROOT / "deploy.py", "--run", folder]
    errors = refused(*arguments, says="The sparse network's outputs are off by up to", program="deploy.py")
    assert ": not deployed." in errors
    assert not (folder / "deployed" / "report.json").exists()
