"""Recipes: dataclasses <-> TOML <-> flags. A recipe holds every choice of a run."""

import dataclasses
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcomp import opening, options
from deepcomp.errors import RecipeError
from deepcomp.options import Distillation, Options, Pruning, Search, Sharing, Training, nested, option

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT = "auto"  # the recipe of a run that asks for none
_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel has the recipes inside the package, a checkout has them beside it.
FOLDER = (_PACKAGE if (_PACKAGE / "recipes").is_dir() else _PACKAGE.parent) / "recipes"


@dataclass(frozen=True, kw_only=True)
class Data(Options):
    """What a run learns from."""

    source: str = option("auto", "auto, mnist, mnist-5k, fashion-mnist, or a path that ends in .npz")
    validation: float = option(
        0.1, "examples held out of training: a number, or a fraction below 1; none where a file has x_validation"
    )
    shift: int = option(0, "random moves of images in training, in pixels", least=0, below=2**15)
    flip: bool = option(False, "mirror half of the images in training, left to right")
    rotate: float = option(0.0, "random rotations of images in training, in degrees", least=0, most=180)
    scale: bool | None = option(None, "divide uint8 inputs by 255; none: unless the model takes them as they are")


@dataclass(frozen=True, kw_only=True)
class Model(Options):
    """Which network a run begins with."""

    name: str = option("reference", "a network of deepcomp, or a model file")
    stddev: float = option(0.0, "standard deviation of the first weights; 0: He's rule", least=0, below=math.inf)
    weights_only: bool = option(False, "whether deploy.py writes the weights alone, of a network that no file holds")


@dataclass(frozen=True, kw_only=True)
class Full(Options):
    """Stage 1: train the dense network."""

    training: Training = nested(Training, "how it is trained")


@dataclass(frozen=True, kw_only=True)
class Searched(Options):
    """Stages 2 and 3 by a search, which trains as the section `pruned` says."""

    tolerance: float | None = option(
        None, "what the metric may lose, in points or percent; none: no search", least=0, below=math.inf
    )
    search: Search = nested(Search, "how it is made")

    def check(self) -> None:
        if self.tolerance is not None and not self.search.steps:
            raise RecipeError(f"tolerance={self.tolerance:g} needs steps above 0.")


@dataclass(frozen=True, kw_only=True)
class Pruned(Options):
    """Stage 2: remove weights, and train the others."""

    pruning: Pruning = nested(Pruning, "which weights are removed")
    training: Training = nested(Training, "how the others are trained")


@dataclass(frozen=True, kw_only=True)
class Quantized(Options):
    """Stage 3: have weights share values, and train those."""

    sharing: Sharing = nested(Sharing, "which values are shared")
    training: Training = nested(Training, "how they are trained")


@dataclass(frozen=True)
class Recipe:
    """All that determines a run. The table of a section is flat: `[pruned]` has the fields of pruning and training."""

    name: str = "reference"
    seed: int = 0
    data: Data = Data()
    model: Model = Model()
    full: Full = Full()
    search: Searched = Searched()
    pruned: Pruned = Pruned()
    quantized: Quantized = Quantized()

    def __post_init__(self) -> None:
        if type(self.seed) is not int or not 0 <= self.seed < 2**31:
            raise RecipeError(f"seed={self.seed!r}: it must be a whole number from 0 to {2**31 - 1}.")
        if not isinstance(self.name, str):
            raise RecipeError(f"name={self.name!r}: it must be a text.")

    def training(self, stage: str) -> Training:
        """How a stage is trained, with what the recipe says elsewhere: seed, changes of images and scaling."""
        own, data = getattr(self, "pruned" if self.searches and stage == "quantized" else stage).training, self.data
        changes = {"shift": data.shift, "flip": data.flip, "rotate": data.rotate}
        return dataclasses.replace(own, seed=self.seed, scale=data.scale, **changes)

    @property
    def searches(self) -> bool:
        """Whether stages 2 and 3 find their goals by a search."""
        return self.search.tolerance is not None

    def testing(self, stage: str) -> Training:
        """The same for a finished network, which is tested without a teacher."""
        return dataclasses.replace(self.training(stage), distillation=Distillation())


def find(name: str) -> Path:
    """The file of a recipe: a path that ends in `.toml`, or a name in the folder `recipes`. Raises `RecipeError`."""
    if name.endswith(".toml"):
        return Path(name)
    path = FOLDER / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.toml")))
        raise RecipeError(f"No recipe {name!r}: use {known} or a path that ends in .toml.")
    return path


def load(path: Path) -> Recipe:
    """Read a recipe; what it leaves out has the default. Raises `RecipeError`, one line."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError(f"No recipe file {path}.") from error
    except (OSError, ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits, too
        raise RecipeError(f"{path} cannot be read as TOML: {error}") from error
    return from_table({"name": path.stem, **table}, str(path))


def dumps(recipe: Recipe) -> str:
    """The recipe as TOML, every value spelled out but those that are none."""
    import tomli_w

    return tomli_w.dumps(to_table(recipe))


def to_table(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a table of tables, as TOML has it."""
    table: dict[str, Any] = {"name": recipe.name, "seed": recipe.seed}
    for section in sections_of():
        kind = type(getattr(recipe, section))
        allowed = recipe_fields(kind)
        flat = options.flat(getattr(recipe, section))
        table[section] = {name: value for name, value in flat.items() if name in allowed and value is not None}
    return table


def from_table(table: Mapping[str, Any], where: str) -> Recipe:
    """A recipe out of a table of tables; raises `RecipeError`, one line that begins with `where`."""
    kinds = {one.name: one.type for one in dataclasses.fields(Recipe)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in kinds:
            raise RecipeError(f"{where}: no field {key!r} in recipe; there are {', '.join(kinds)}.")
        if key not in sections_of():
            values[key] = value
            continue
        if not isinstance(value, Mapping):
            raise RecipeError(f"{where}: {key} must be a table, not {value!r}.")
        kind = type(getattr(Recipe(), key))
        try:
            for name in options.current(kind, value):
                if name not in recipe_fields(kind):
                    raise RecipeError(options.unknown(name, [*recipe_fields(kind), *options.aliases(kind)]))
            values[key] = options.build(kind, value)
        except RecipeError as error:
            raise RecipeError(f"{where}: {key}: {error}") from error
    try:
        return Recipe(**values)
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


def recipe_fields(kind: type[Options]) -> list[str]:
    """The flat names of the fields of a section that a recipe may set."""
    return [name for name, one in options.documented(kind).items() if one.metadata["recipe"]]


def override(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """The recipe with `section.field=value` settings applied, values in TOML's notation (quotes optional)."""
    table = to_table(recipe)
    for setting in settings:
        key, equals, text = setting.partition("=")
        *sections, last = key.strip().split(".")
        if not equals or len(sections) > 1:
            raise RecipeError(f"--set {setting!r}: write it as section.field=value, like full.steps=1000.")
        target = table
        for section in sections:
            if section not in sections_of():
                raise RecipeError(f"--set {setting!r}: no section {section!r}; there are {', '.join(sections_of())}.")
            target = target[section]
        if last in options.CRITERIA and sections == ["pruned"]:  # A new criterion replaces the old one.
            for other in (*options.CRITERIA, "by", "value"):
                target.pop(other, None)
        if sections:  # A name of an earlier version replaces that of now.
            kind = type(getattr(recipe, sections[0]))
            renamed = options.aliases(kind).get(last)
            target.pop(renamed[0] if isinstance(renamed, tuple) else renamed, None)
        target[last] = parsed(text.strip())
    return from_table(table, "--set")


def with_absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with files by absolute paths, so that later stages find them from any folder."""

    def absolute(name: str, is_file: bool) -> str:
        return str(Path(name).resolve()) if is_file else name

    source, model = recipe.data.source, recipe.model.name
    return dataclasses.replace(
        recipe,
        data=dataclasses.replace(recipe.data, source=absolute(source, source.endswith(".npz"))),
        model=dataclasses.replace(recipe.model, name=absolute(model, opening.is_model_file(model))),
    )


def sections_of() -> list[str]:
    """The names of a recipe's sections."""
    return ["data", "model", "full", "search", "pruned", "quantized"]


def differences(old: Recipe, new: Recipe) -> list[str]:
    """What differs, as `section.field = old, not new`, in the order of the fields."""
    before, after = _flat(to_table(old)), _flat(to_table(new))
    keys = dict.fromkeys([*before, *after])
    return [f"{k} = {before.get(k)}, not {after.get(k)}" for k in keys if before.get(k) != after.get(k)]


def searched(recipe: Recipe) -> Recipe:
    """A recipe without what a search does not go by: goals, the steps of stages, and how values are trained."""
    plain = Training()
    unused = {name: getattr(plain, name) for name in ("steps", "evaluate_every", "save_every")}
    pruned = Pruned(training=dataclasses.replace(recipe.pruned.training, **unused))
    return dataclasses.replace(recipe, pruned=pruned, quantized=Quantized())


def _flat(table: dict) -> dict[str, Any]:
    flat = {}
    for key, value in table.items():
        if key in sections_of():
            flat |= {f"{key}.{inner}": v for inner, v in value.items()}
        else:
            flat[key] = value
    return flat


def parsed(text: str) -> Any:
    """A value in TOML's notation; what is none is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text
