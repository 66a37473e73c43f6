import dataclasses
from pathlib import Path

import pytest

from deepcomp.errors import RecipeError
from deepcomp.experiment import recipe
from deepcomp.experiment.recipe import Recipe


def test_every_shipped_recipe_loads_and_has_its_file_s_name():
    names = {path.stem for path in recipe.FOLDER.glob("*.toml")}
    assert names >= {"seed", "reference", "lenet-300-100", "lenet-5"}
    for name in names:
        assert recipe.load(recipe.find(name)).name == name


def test_the_seed_recipe_is_the_original_s_number_by_number():
    seed = recipe.load(recipe.find("seed"))
    for stage in (seed.full, seed.pruned, seed.quantized):
        assert (stage.steps, stage.batch, stage.optimizer) == (500, 50, "adam")
        assert (stage.learning_rate, stage.schedule) == (1e-4, "constant")
    assert (seed.model.name, seed.model.stddev, seed.data.shift) == ("reference", 0.1, 0)
    assert (seed.pruned.by, seed.pruned.value, seed.pruned.ramp) == ("threshold", 0.1, 0)
    assert (seed.quantized.clusters, seed.quantized.init) == (5, "linear")
    assert seed.quantized.centroid_learning_rate == 1e-4


def test_a_recipe_survives_toml(tmp_path):
    path = tmp_path / "mine.toml"
    mine = recipe.override(Recipe(), ["pruned.layers={'conv.*' = 0.5, fc1 = 0.99}", "quantized.layers={fc2 = 4}"])
    path.write_text(recipe.dumps(mine))
    assert recipe.load(path) == mine
    assert mine.pruned.layers == {"conv.*": 0.5, "fc1": 0.99}


def test_a_file_gives_what_it_says_and_defaults_for_the_rest(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[full]\nsteps = 7\nlearning_rate = 1\n")
    mine = recipe.load(path)
    assert mine == dataclasses.replace(
        Recipe(), name="mine", full=dataclasses.replace(Recipe().full, steps=7, learning_rate=1.0)
    )


def test_settings_override_with_their_types():
    changed = recipe.override(
        Recipe(), ["full.steps=5", "pruned.value=1", "data.source=mnist", "seed=3", 'model.name="x"']
    )
    assert (changed.full.steps, changed.pruned.value, changed.data.source) == (5, 1.0, "mnist")
    assert (changed.seed, changed.model.name) == (3, "x")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("full.steps", "write it as section.field=value"),
        ("full.a.b=1", "write it as section.field=value"),
        ("fool.steps=1", "no section 'fool'; there are data, model, full, pruned, quantized"),
        ("seed.steps=1", "no section 'seed'"),
        ("full.stops=1", "no field 'stops' in full; there are steps, batch"),
        ("full.steps=1.5", "steps must be of type int, not 1.5"),
        ("full.steps=true", "steps must be of type int, not True"),
        ("full.steps=many", "steps must be of type int, not 'many'"),
        ("pruned.layers=3", "layers must be a table, not 3"),
        ("pruned.layers={a='x'}", "layers.a must be of type float, not 'x'"),
        ("quantized.bit_price=0.1", "a bit_price needs a ramp"),
        ("quantized.ramp=10", "a ramp needs a bit_price"),
        ("quantized.bias_clusters=-1", "bias_clusters=-1"),
        ("quantized.newton_rounds=-1", "newton_rounds=-1"),
        ("pruned.newton_rounds=-1", "pruned has newton_rounds=-1"),
        ("pruned.newton_value=0.9", "newton_value=0.9, newton_steps=0: rounds and steps are"),
        ("pruned.newton_value=1", "newton_value=1.0"),
        ("pruned.newton_value=nan", "newton_value=nan"),
        ("pruned.newton_shift=-2", "pruned.newton_shift=-2: it must be a number of pixels, or -1"),
        ("quantized.newton_shift=-2", "quantized.newton_shift=-2"),
        ("pruned.newton_learning_rate=nan", "newton_learning_rate=nan: it must be a number from 0 on"),
        ("pruned.newton_steps=-1", "newton_steps=-1: rounds and steps are 0 or more"),
        ("pruned.newton_steps=10", "newton_steps=10: rounds and steps are 0 or more, and a value"),
        ("pruned.tolerance=-1", "tolerance=-1.0: it must be from 0 to less than 100"),
        ("pruned.tolerance=100", "tolerance=100.0: it must be"),
        ("pruned.tolerance=nan", "tolerance=nan: it must be"),
        ("pruned.flops_power=-1", "flops_power=-1.0: it must be a number from 0 to 10"),
        ("pruned.flops_power=nan", "flops_power=nan: it must be a number from 0 to 10"),
        ("pruned.flops_power=1", r"flops_power=1.0 compares layers: it needs .* not 'sparsity' and 'layer'"),
        ("full=3", "full must be a table, not 3"),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(RecipeError, match=message):
        recipe.override(Recipe(), [setting])


@pytest.mark.parametrize("other", ["pruned.by=threshold", "pruned.scope=global"])
def test_a_tolerance_is_for_sparsities_by_layer(other):
    settings = ["pruned.tolerance=0.5", "pruned.scores=lamp"]
    assert recipe.override(Recipe(), settings).pruned.tolerance == 0.5
    with pytest.raises(RecipeError, match=r"needs pruned\.by='sparsity' and pruned\.scope='layer', not"):
        recipe.override(Recipe(), [*settings, other])


def test_missing_and_malformed_files_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"No recipe 'nothing': use lenet-300-100, .*, reference, .*seed"):
        recipe.find("nothing")
    with pytest.raises(RecipeError, match="No recipe file"):
        recipe.load(Path("nothing.toml"))
    path = tmp_path / "bad.toml"
    for content in (b"steps = ", b"\xff\xfe", b"[full]\nsteps=1\nsteps=2"):
        path.write_bytes(content)
        with pytest.raises(RecipeError, match="cannot be read as TOML"):
            recipe.load(path)


def test_differences_are_named():
    changed = recipe.override(Recipe(), ["full.steps=5", "seed=3"])
    assert recipe.differences(Recipe(), changed) == ["seed = 0, not 3", "full.steps = 1000, not 5"]
    assert recipe.differences(Recipe(), Recipe()) == []
