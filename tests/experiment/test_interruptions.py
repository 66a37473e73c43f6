"""Stages that are killed go on to the same bits, as two workers too."""

import json
import shutil
import socket
import time

import numpy as np
import pytest

from deepcomp import models, opening
from tests.scripts import TRAINING_SCRIPTS, assert_same_weights, run, start, weights


def killed_after_a_save(stage, reached, pause, script, *arguments):
    """Start a script, kill it soon after it saved a step beyond `reached`; returns the step saved last."""
    process = start(script, *arguments)
    while saved_step(stage) <= reached:
        assert not process.ended(), process.outcome()
        time.sleep(0.005)
    time.sleep(pause)
    process.kill()
    assert not (stage / "stage.json").exists()
    return saved_step(stage)


def saved_step(stage):
    try:
        with np.load(stage / "state.npz") as saved:
            return json.loads(saved["progress"].tobytes())["step"]
    except FileNotFoundError:
        return 0


@pytest.mark.parametrize(
    "stage", [pytest.param(stage, marks=pytest.mark.slow if stage != "pruned" else ()) for stage in TRAINING_SCRIPTS]
)
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


@pytest.mark.slow
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
            assert not any(process.ended() for process in processes)
            time.sleep(0.01)
        for process in processes:
            process.kill()
        return
    for status, _, errors in [process.outcome() for process in processes]:
        assert status == 0, errors


@pytest.mark.slow
def test_two_workers_end_with_identical_weights_in_every_stage(tiny, tmp_path):
    folders = [tmp_path / "0", tmp_path / "1"]
    for stage, script in TRAINING_SCRIPTS.items():
        short = ["--set", f"{stage}.steps=20"]  # two epochs of 500 images
        short += ["--set", f"{stage}.ramp=10"] if stage != "full" else []
        two_workers(script, folders, *(tiny if stage == "full" else []), *short)
        assert_same_weights(folders[0] / stage, folders[1] / stage)
    kernels = models.kernel_values(opening.load(folders[0] / "quantized" / "model.keras"))
    assert all(len(np.unique(kernel)) <= 7 for kernel in kernels.values())


@pytest.mark.slow
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
