"""The four scripts as a user runs them: end to end, killed and resumed, on two workers, and used wrongly."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import deepcomp
from deepcomp import models, opening, sparse
from deepcomp.experiment import recipe

ROOT = Path(__file__).resolve().parents[2]
TRAINING_SCRIPTS = {"full": "train_full.py", "pruned": "prune.py", "quantized": "quantize.py"}

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


def start(script, *arguments, **environment):
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env={**os.environ, **environment}, text=True, **pipes)


def outcome(process, timeout=300):
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, output, errors


def run(script, *arguments):
    status, output, errors = outcome(start(script, *arguments))
    assert status == 0, errors
    return output


def left(kernels):
    return {name: np.count_nonzero(kernel) for name, kernel in kernels.items()}


def weights(folder):
    return opening.load(folder / "model.keras").get_weights()


def assert_same_weights(one, other):
    assert all(np.array_equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """A run that went through all four scripts without interruption."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run("train_full.py", *tiny, "--run", folder)
    for script in ("prune.py", "quantize.py", "deploy.py"):
        run(script, "--run", folder)
    return folder


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
    command = [sys.executable, "-c", LIBRARY, str(finished), str(tmp_path), str(digits_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
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


def killed_after_a_save(stage, reached, pause, script, *arguments):
    """Start a script, kill it soon after it saved a step beyond `reached`; returns the step saved last."""
    process = start(script, *arguments)
    while saved_step(stage) <= reached:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    time.sleep(pause)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (stage / "stage.json").exists()
    return saved_step(stage)


def saved_step(stage):
    try:
        with np.load(stage / "state.npz") as saved:
            return json.loads(saved["progress"].tobytes())["step"]
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize("stage", TRAINING_SCRIPTS)
def test_killed_at_any_moment_a_stage_goes_on_to_the_same_bits(finished, tiny, tmp_path, stage):
    script, folder = TRAINING_SCRIPTS[stage], tmp_path / "run"
    arguments = ["--run", folder, *(tiny if stage == "full" else [])]
    if stage != "full":
        shutil.copytree(finished, folder)
        for later in [*TRAINING_SCRIPTS, "deployed"][list(TRAINING_SCRIPTS).index(stage) :]:
            shutil.rmtree(folder / later)
    reached = 0
    for pause in (0.0, 0.03):  # somewhere in the next steps, or in the next write
        reached = killed_after_a_save(folder / stage, reached, pause, script, *arguments)
    run(script, *arguments)
    assert_same_weights(folder / stage, finished / stage)
    histories = [json.loads((f / stage / "stage.json").read_text())["history"] for f in (folder, finished)]
    assert histories[0] == histories[1]


def two_workers(script, folders, *arguments, kill=False):
    """Run a script as two workers on this machine, each in its folder; with `kill`, kill both once both saved."""
    sockets = [socket.socket() for _ in range(2)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    workers = [f"127.0.0.1:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    processes = []
    for index, folder in enumerate(folders):
        config = json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}})
        processes.append(start(script, *arguments, "--run", folder, TF_CONFIG=config))
    if kill:
        while not all((folder / "full" / "state.npz").exists() for folder in folders):
            assert all(process.poll() is None for process in processes)
            time.sleep(0.01)
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        return
    for status, _, errors in [outcome(process) for process in processes]:
        assert status == 0, errors


def test_two_workers_end_with_identical_weights_in_every_stage(tiny, tmp_path):
    folders = [tmp_path / "0", tmp_path / "1"]
    for stage, script in TRAINING_SCRIPTS.items():
        short = ["--set", f"{stage}.steps=20"]  # two epochs of 500 images
        short += ["--set", f"{stage}.ramp=10"] if stage != "full" else []
        two_workers(script, folders, *(tiny if stage == "full" else []), *short)
        assert_same_weights(folders[0] / stage, folders[1] / stage)
    kernels = models.kernel_values(opening.load(folders[0] / "quantized" / "model.keras"))
    assert all(len(np.unique(kernel)) <= 7 for kernel in kernels.values())


def test_two_workers_compute_what_one_does_also_when_killed_and_one_lost_its_state(tiny, tmp_path):
    # Without dropout and batch normalization, whose batches are each worker's own.
    plain = [*tiny[:4], "--model", "lenet-300-100", "--set", "full.steps=60", "--set", "full.learning_rate=1e-3"]
    run("train_full.py", *plain, "--run", tmp_path / "one")
    folders = [tmp_path / "0", tmp_path / "1"]
    two_workers("train_full.py", folders, *plain, kill=True)
    (folders[1] / "full" / "state.npz").unlink()
    two_workers("train_full.py", folders, *plain)
    assert_same_weights(folders[0] / "full", folders[1] / "full")
    for one, two in zip(weights(tmp_path / "one" / "full"), weights(folders[0] / "full"), strict=True):
        assert np.allclose(one, two, atol=2e-3)
        assert not np.allclose(one, 0)


def refused(script, *arguments, says):
    status, output, errors = outcome(start(script, *arguments))
    assert (status, errors.count("\n")) == (2, 1), (status, output, errors)
    assert "Traceback" not in errors
    assert says in errors
    assert errors.startswith(f"{script}: ")


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


def test_sparsities_chosen_by_a_tolerance_are_the_same_after_a_kill(finished, tmp_path):
    folders = [tmp_path / "killed", tmp_path / "whole"]
    # depthwise has a sparsity of its own; the others get what the scan says.
    settings = ["pruned.tolerance=3", "pruned.layers={depthwise=0.25}", "pruned.steps=100"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    for folder in folders:
        shutil.copytree(finished / "full", folder / "full")
        shutil.copy(finished / "recipe.toml", folder)
    killed_after_a_save(folders[0] / "pruned", 0, 0.0, "prune.py", "--run", folders[0], *arguments)
    run("prune.py", "--run", folders[0])
    output = run("prune.py", "--run", folders[1], *arguments)
    assert_same_weights(folders[0] / "pruned", folders[1] / "pruned")
    chosen, again = (json.loads((folder / "pruned" / "stage.json").read_text())["sparsities"] for folder in folders)
    assert chosen == again
    assert chosen["depthwise"] == 0.25
    kernels = models.kernel_values(opening.load(folders[1] / "pruned" / "model.keras"))
    for name, sparsity in chosen.items():
        assert f"{sparsity:.4f}" in output
        assert np.count_nonzero(kernels[name]) == kernels[name].size - int(kernels[name].size * sparsity + 1e-9)


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
    refused("prune.py", "--run", folder, "--set", "full.steps=5", says="prune.py sets fields of pruned alone")
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
    command = [sys.executable, "-c", program, str(ROOT / "deploy.py"), "--run", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "The sparse network's outputs are off by up to" in done.stderr
    assert ": not deployed." in done.stderr
    assert not (folder / "deployed" / "report.json").exists()
