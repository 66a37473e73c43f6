import re
from pathlib import Path

import pytest

from deepcomp.errors import RecipeError
from deepcomp.experiment import recipe
from deepcomp.experiment.recipe import Full, Pruned, Recipe
from deepcomp.options import Distillation, Pruning, SecondOrderPruning, SecondOrderSharing, Sharing, Training


def test_every_shipped_recipe_loads_and_has_its_file_s_name():
    names = {path.stem for path in recipe.FOLDER.glob("*.toml")}
    assert names >= {"seed", "reference", "lenet-300-100", "lenet-5"}
    for name in names:
        assert recipe.load(recipe.find(name)).name == name


def test_the_seed_recipe_is_the_original_s_number_by_number():
    seed = recipe.load(recipe.find("seed"))
    for stage in (seed.full.training, seed.pruned.training, seed.quantized.training):
        assert (stage.steps, stage.batch, stage.optimizer) == (500, 50, "adam")
        assert (stage.learning_rate, stage.schedule) == (1e-4, "constant")
    assert (seed.model.name, seed.model.stddev, seed.data.shift) == ("reference", 0.1, 0)
    assert seed.pruned.pruning == Pruning(threshold=0.1)
    assert seed.quantized.sharing == Sharing(clusters=5, init="linear", centroid_learning_rate=1e-4)


def test_a_recipe_survives_toml(tmp_path):
    path = tmp_path / "mine.toml"
    mine = recipe.override(Recipe(), ["pruned.layers={'conv.*' = 0.5, fc1 = 0.99}", "quantized.layers={fc2 = 4}"])
    path.write_text(recipe.dumps(mine))
    assert recipe.load(path) == mine
    assert mine.pruned.pruning.layers == {"conv.*": 0.5, "fc1": 0.99}


def test_every_shipped_recipe_is_written_with_the_names_of_now(tmp_path):
    for path in recipe.FOLDER.glob("*.toml"):
        whole = recipe.load(path)
        (tmp_path / path.name).write_text(recipe.dumps(whole))
        assert recipe.load(tmp_path / path.name) == whole
        old = set(re.findall(r"^(\w+) =", path.read_text(), re.MULTILINE)) & {"by", "value", "ramp", "bit_price"}
        assert not old


def test_a_recipe_of_an_earlier_version_is_read(tmp_path):
    path = tmp_path / "old.toml"
    path.write_text(
        "[pruned]\nby = 'quality'\nvalue = 0.5\nramp = 20\ndistillation = 0.5\ntemperature = 2\nnewton_rounds = 3\n"
        "newton_value = 0.9\nnewton_shift = -1\n[quantized]\nbit_price = 0.1\nramp = 30\nnewton_rounds = 2\n"
    )
    old = recipe.load(path)
    assert old.pruned.pruning == Pruning(quality=0.5, end=20, second_order=SecondOrderPruning(rounds=3, sparsity=0.9))
    assert old.pruned.training == Training(distillation=Distillation(weight=0.5, temperature=2.0))
    rounds = SecondOrderSharing(rounds=2)
    assert old.quantized.sharing == Sharing(rate_distortion_lambda=0.1, end=30, second_order=rounds)


def test_stages_train_with_the_seed_the_shift_and_the_scaling_of_the_recipe():
    settings = ["seed=3", "data.shift=2", "data.flip=true", "data.rotate=9.0", "data.scale=false", "pruned.steps=7"]
    mine = recipe.override(Recipe(), settings)
    assert mine.training("pruned") == Training(steps=7, seed=3, shift=2, flip=True, rotate=9.0, scale=False)
    assert mine.training("full") == Training(seed=3, shift=2, flip=True, rotate=9.0, scale=False)


def test_a_finished_network_is_tested_without_a_teacher():
    taught = recipe.override(Recipe(), ["pruned.distillation_weight=0.5", "pruned.loss=mse"])
    assert taught.testing("pruned") == Training(loss="mse")


def test_a_file_gives_what_it_says_and_defaults_for_the_rest(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[full]\nsteps = 7\nlearning_rate = 1\n")
    mine = recipe.load(path)
    assert mine == Recipe(name="mine", full=Full(training=Training(steps=7, learning_rate=1.0)))


def test_settings_override_with_their_types():
    changed = recipe.override(
        Recipe(), ["full.steps=5", "pruned.quality=1", "data.source=mnist", "seed=3", 'model.name="x"']
    )
    assert (changed.full.training.steps, changed.pruned.pruning.quality, changed.data.source) == (5, 1.0, "mnist")
    assert (changed.seed, changed.model.name) == (3, "x")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("full.steps", "write it as section.field=value"),
        ("full.a.b=1", "write it as section.field=value"),
        ("fool.steps=1", "no section 'fool'; there are data, model, full, search, pruned, quantized"),
        ("seed.steps=1", "no section 'seed'"),
        ("full.stops=1", "full: There is no option 'stops': do you mean 'steps'"),
        ("data.seed=1", "data: There is no option 'seed': there are source, validation, shift, flip, rotate, scale"),
        ("full.seed=1", "full: There is no option 'seed': there are steps, batch"),
        ("full.steps=1.5", "steps=1.5 of Training: it must be a whole number"),
        ("full.steps=true", "steps=True of Training: it must be a whole number"),
        ("full.steps=many", "steps='many' of Training: it must be a whole number"),
        ("full.steps=-1", "steps=-1: it must be from 0"),
        ("seed=-1", "seed=-1: it must be a whole number from 0"),
        ("seed=x", "seed='x': it must be a whole number from 0"),
        ("name=3", "name=3: it must be a text"),
        ("data.scale=1", "scale=1 of Data: it must be true or false"),
        ("pruned.layers=3", "layers=3 of Pruning: it must be a table"),
        ("pruned.layers={a='x'}", "layers={'a': 'x'} of Pruning: it must be a table"),
        ("pruned.layers={a=1.5}", r"layers={'a': 1.5}: a sparsity must be from 0 to less than 1"),
        ("quantized.layers={a=0}", r"layers\['a'\]=0: it must be 1 or more"),
        ("quantized.bit_price=0.1", "a lambda above 0 needs an end or rounds"),
        ("quantized.ramp=10", "and an end needs a lambda"),
        ("quantized.bias_clusters=-1", "bias_clusters=-1: it must be from 0"),
        ("quantized.newton_rounds=-1", "rounds=-1: it must be 0 or more"),
        ("pruned.newton_rounds=-1", "rounds=-1: it must be 0 or more"),
        (
            "pruned.newton_value=0.9",
            "second_order_sparsity=0.9 and second_order_steps=0 need second_order_rounds above",
        ),
        ("pruned.newton_value=1", "sparsity=1.0: it must be from 0 to less than 1"),
        ("pruned.newton_value=nan", "sparsity=nan"),
        ("pruned.newton_shift=-2", "shift=-2: it must be 0 or more"),
        ("quantized.newton_shift=-2", "shift=-2: it must be 0 or more"),
        ("pruned.newton_learning_rate=nan", "learning_rate=nan: it must be a finite number, 0 or more"),
        ("pruned.newton_steps=-1", "steps=-1: it must be 0 or more"),
        ("pruned.newton_steps=10", "second_order_steps=10 need second_order_rounds above 0"),
        ("pruned.tolerance=-1", "tolerance=-1.0: it must be from 0 to less than 100"),
        ("pruned.tolerance=100", "tolerance=100.0: it must be"),
        ("pruned.tolerance=nan", "tolerance=nan: it must be"),
        ("pruned.flops_power=-1", "flops_power=-1.0: it must be from 0 to 10"),
        ("pruned.flops_power=nan", "flops_power=nan: it must be from 0 to 10"),
        ("full=3", "full must be a table, not 3"),
    ],
)
def test_bad_settings_are_refused_in_one_line(setting, message):
    with pytest.raises(RecipeError, match=message) as raised:
        recipe.override(Recipe(), [setting])
    assert str(raised.value).startswith("--set")
    assert "\n" not in str(raised.value)


def test_settings_that_do_not_go_together_are_refused():
    tolerant = ["pruned.tolerance=0.5", "pruned.scores=lamp"]
    assert recipe.override(Recipe(), tolerant).pruned.pruning.tolerance == 0.5
    with pytest.raises(RecipeError, match=r"tolerance=0\.5 chooses sparsities: it goes without threshold"):
        recipe.override(Recipe(), [*tolerant, "pruned.by=threshold"])
    with pytest.raises(RecipeError, match=r"flops_power=1 compares layers: it needs .* not sparsity and 'layer'"):
        recipe.override(Recipe(), ["pruned.flops_power=1", "pruned.scope=layer"])


@pytest.mark.parametrize(
    ("settings", "criterion", "goal"),
    [
        (["pruned.by=threshold", "pruned.value=0.2"], "threshold", 0.2),
        (["pruned.value=0.2"], "threshold", 0.2),
        (["pruned.by=sparsity"], "sparsity", 0.1),
        (["pruned.quality=2"], "quality", 2.0),
        (["pruned.value=0.3", "pruned.quality=2"], "quality", 2.0),
        (["pruned.quality=2", "pruned.value=0.3"], "quality", 0.3),
        (["pruned.sparsity=0.5", "pruned.quality=2"], "quality", 2.0),
    ],
)
def test_the_last_criterion_that_is_set_is_the_one(settings, criterion, goal):
    base = Recipe(pruned=Pruned(pruning=Pruning(threshold=0.1)))
    found = recipe.override(base, settings).pruned.pruning
    assert (found.criterion, found.goal) == (criterion, goal)


def test_a_name_of_an_earlier_version_replaces_that_of_now_and_the_other_way_round():
    both = ["quantized.bit_price=0.1", "quantized.end=5"]
    old_last = recipe.override(Recipe(), [*both, "quantized.rate_distortion_lambda=0.2", "quantized.bit_price=0.3"])
    new_last = recipe.override(Recipe(), [*both, "quantized.bit_price=0.3", "quantized.rate_distortion_lambda=0.2"])
    found = [one.quantized.sharing.rate_distortion_lambda for one in (old_last, new_last)]
    assert found == [0.3, 0.2]


def test_missing_and_malformed_files_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"No recipe 'nothing': use auto, lenet-300-100, .*, reference, .*seed"):
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
