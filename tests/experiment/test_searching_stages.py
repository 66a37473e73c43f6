"""The four scripts by a recipe with a tolerance: stages 2 and 3 are the two parts of one search."""

import json
import shutil

import numpy as np
import pytest

import deepcomp
from deepcomp import models, opening
from deepcomp.experiment import recipe
from tests.scripts import refused, run, start

RECIPE = """
name = "searched"
[data]
validation = 100
[full]
steps = 200
batch = 50
learning_rate = 1e-2
evaluate_every = 100
[search]
tolerance = 4
steps = 200
rounds = 3
density = 0.5
examples = 60
[pruned]
batch = 50
"""


@pytest.fixture(scope="module")
def searched(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("searched")
    (folder / "searched.toml").write_text(RECIPE)
    flags = ["--recipe", folder / "searched.toml", *tiny[2:]]
    run("train_full.py", *flags, "--run", folder / "run")
    for script in ("prune.py", "quantize.py", "deploy.py"):
        run(script, "--run", folder / "run")
    return folder / "run"


def record(folder, stage):
    return json.loads((folder / stage / "stage.json").read_text())


def candidates(folder, stage):
    return json.loads((folder / stage / "search" / "search.json").read_text())["candidates"]


def test_the_stages_are_two_parts_of_one_search(searched):
    pruned, quantized = candidates(searched, "pruned"), candidates(searched, "quantized")
    assert quantized[: len(pruned)] == pruned
    assert [one["steps"] for one in quantized if one["steps"]] == [50, 50, 100]
    assert [one["how"] for one in pruned if one["steps"]] == ["pruned"]
    assert [one["how"] for one in quantized if one["steps"]] == ["pruned", "shared", "shared"]
    full, *histories = (record(searched, stage)["history"] for stage in ("full", "pruned", "quantized"))
    assert [history["step"][:2] for history in histories] == [[0, 50], [0, 50]]
    assert [history["step"][-1] for history in histories] == [50, 150]
    assert histories[0]["validation_accuracy"][0] == pytest.approx(full["validation_accuracy"][-1])
    assert histories[1]["validation_accuracy"][0] == histories[0]["validation_accuracy"][1]
    # Each ends with the network that the stage keeps.
    within = [one for one in quantized if one["within"]]
    assert histories[1]["validation_accuracy"][-1] == min(within, key=lambda one: one["bytes"])["metric"]


def test_the_deployed_file_is_the_smallest_candidate_within_the_limit(searched):
    within = [one for one in candidates(searched, "quantized") if one["within"]]
    size = (searched / "deployed" / "model.dcz").stat().st_size
    assert size == min(one["bytes"] for one in within)
    report = json.loads((searched / "deployed" / "report.json").read_text())
    assert report["file_bytes"] == size
    assert report["ratio"] > 4
    kernels = models.kernel_values(opening.load(searched / "pruned" / "model.keras"))
    assert sum(map(np.count_nonzero, kernels.values())) < sum(kernel.size for kernel in kernels.values())
    assert (searched / "quantized" / "search.png").stat().st_size > 5000
    assert deepcomp.load(searched / "deployed" / "model.dcz")


def test_a_stage_that_is_redone_gives_the_same_and_takes_later_ones_along(searched, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(searched, folder)
    assert "done already" in run("quantize.py", "--run", folder)
    run("quantize.py", "--run", folder, "--force")
    assert not (folder / "deployed" / "model.dcz").exists()
    again = opening.load(folder / "quantized" / "model.keras").get_weights()
    before = opening.load(searched / "quantized" / "model.keras").get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(again, before, strict=True))
    run("prune.py", "--run", folder, "--force", "--set", "search.tolerance=20")
    assert not (folder / "quantized" / "search").exists()
    assert candidates(folder, "pruned")[0]["metric"] == candidates(searched, "pruned")[0]["metric"]


@pytest.mark.parametrize("setting", ["pruned.sparsity=0.8", "pruned.steps=5", "quantized.clusters=8"])
def test_goals_that_a_search_would_not_go_by_are_refused(tiny, searched, tmp_path, setting):
    name, value = setting.split("=")
    says = f"search.tolerance=0 finds the goals, so {name} = {value} does nothing: take a recipe without a tolerance"
    refused("train_full.py", "--recipe", "auto", *tiny[2:], "--run", tmp_path / "run", "--set", setting, says=says)
    assert not (tmp_path / "run").exists()
    script = "prune.py" if name.startswith("pruned") else "quantize.py"
    refused(script, "--run", searched, "--force", "--set", setting, says=f"{name} = {value} does nothing")
    assert (searched / "deployed" / "model.dcz").is_file()


def test_a_search_runs_on_one_worker(tiny, tmp_path):
    process = start("train_full.py", "--recipe", "auto", *tiny[2:], "--run", tmp_path / "run", TF_CONFIG="{}")
    status, _, errors = process.outcome()
    assert status == 2
    assert errors == (
        "train_full.py: search.tolerance=0: a search runs on one worker. Unset TF_CONFIG, or take a recipe without a "
        "tolerance, such as --recipe reference.\n"
    )


def test_a_tolerance_needs_steps():
    with pytest.raises(deepcomp.DeepcompError, match=r"search: tolerance=1 needs steps above 0"):
        recipe.from_table({"search": {"tolerance": 1}}, "here")
    assert not recipe.from_table({}, "here").searches
    assert recipe.load(recipe.find("auto")).searches
    assert recipe.DEFAULT == "auto"
