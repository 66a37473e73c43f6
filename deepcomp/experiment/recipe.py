"""Recipes: dataclasses <-> TOML <-> flags. A recipe holds every choice of a run."""

import dataclasses
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from deepcomp.errors import RecipeError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).resolve().parents[2] / "recipes"


@dataclass(frozen=True)
class Data:
    """`source` and `validation` as in `data.load`; `shift`: random moves of up to so many pixels in training."""

    source: str = "auto"
    validation: float = 0.1
    shift: int = 0


@dataclass(frozen=True)
class Model:
    """`name`: one of `models.NETWORKS` or a model file; `stddev` of the first weights, 0 for He's rule."""

    name: str = "reference"
    stddev: float = 0.0


@dataclass(frozen=True)
class Training:
    """What every training stage says to `training.train`, by the names of its arguments."""

    steps: int = 1000
    batch: int = 100
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    evaluate_every: int = 250
    save_every: int = 500

    def training(self) -> dict[str, Any]:
        """The arguments for `training.train`."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(Training)}


@dataclass(frozen=True)
class Full(Training):
    """Stage 1: train the dense network."""


@dataclass(frozen=True)
class FineTuning(Training):
    """A later stage; `distillation` and `temperature` as in `training.train`, the teacher is the run's full network.

    `newton_shift` is the `data.shift` of the rounds by curvature and of what follows them, -1 for that of the data.
    """

    distillation: float = 0.0
    temperature: float = 4.0
    newton_shift: int = -1

    def __post_init__(self) -> None:
        if self.newton_shift < -1:
            raise RecipeError(
                f"{type(self).__name__.lower()}.newton_shift={self.newton_shift}: it must be a number of pixels, or -1 "
                "for data.shift."
            )
        if not (0 <= self.distillation <= 1 and 0 < self.temperature < math.inf):
            raise RecipeError(
                f"{type(self).__name__.lower()}.distillation={self.distillation} at temperature={self.temperature}: "
                "the first must be from 0 to 1, the second finite and above 0."
            )


@dataclass(frozen=True)
class Pruned(FineTuning):
    """Stage 2: `by`, `value`, `layers`, `scope`, `scores` as in `pruning.masks`; `ramp`, `every` of its `Schedule`.

    A `tolerance` above 0 takes the place of `value`: a sparsity for each layer, chosen by a scan, with which that layer
    alone, before fine-tuning, costs at most so many percentage points of validation accuracy; see `pruning.tolerated`.
    A `flops_power` above 0 makes a network that runs faster: with `scope="global"`, scores are divided by that power of
    the multiplications that a weight costs for one image (`models.multiplications`).
    After training come `newton_rounds` of `curvature.prune`, which prune all kernels together on to `newton_value`, a
    sparsity, and after them `newton_steps` more of training at `newton_learning_rate`, which prune nothing.
    """

    by: str = "sparsity"
    value: float = 0.9
    layers: dict[str, float] = field(default_factory=dict)
    scope: str = "layer"
    scores: str = "magnitude"
    tolerance: float = 0.0
    flops_power: float = 0.0
    ramp: int = 0
    every: int = 100
    newton_rounds: int = 0
    newton_value: float = 0.0
    newton_steps: int = 0
    newton_learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.newton_learning_rate < math.inf:
            raise RecipeError(
                f"pruned.newton_learning_rate={self.newton_learning_rate}: it must be a number from 0 on."
            )
        goals = self.newton_rounds, self.newton_value, self.newton_steps
        if min(goals) < 0 or not self.newton_value < 1 or (any(goals) and not self.newton_rounds):
            raise RecipeError(
                "pruned has newton_rounds={}, newton_value={}, newton_steps={}: rounds and steps are 0 or more, and a "
                "value, a sparsity from 0 to less than 1, and steps need rounds.".format(*goals)
            )
        if not 0 <= self.tolerance < 100:
            raise RecipeError(f"pruned.tolerance={self.tolerance}: it must be from 0 to less than 100 points.")
        if self.tolerance and (self.by, self.scope) != ("sparsity", "layer"):
            raise RecipeError(
                f"pruned.tolerance={self.tolerance} chooses sparsities by layer: it needs pruned.by='sparsity' and "
                f"pruned.scope='layer', not {self.by!r} and {self.scope!r}."
            )
        if not 0 <= self.flops_power <= 10:
            raise RecipeError(f"pruned.flops_power={self.flops_power}: it must be a number from 0 to 10.")
        if self.flops_power and (self.by, self.scope) != ("sparsity", "global"):
            raise RecipeError(
                f"pruned.flops_power={self.flops_power} compares layers: it needs pruned.by='sparsity' and "
                f"pruned.scope='global', not {self.by!r} and {self.scope!r}."
            )

    def settling(self) -> dict[str, Any]:
        """The arguments for `training.train` after the rounds."""
        return {**self.training(), "steps": self.newton_steps, "learning_rate": self.newton_learning_rate}


@dataclass(frozen=True)
class Quantized(FineTuning):
    """Stage 3: `clusters`, by layer with `layers`, and `init` as in `quantization.cluster`.

    `bias_clusters`: how many values a layer's bias shares, 0 to leave it unshared. With a `bit_price` above 0, weights
    go to cheaper clusters, or to none, as in `parametrize.Network.reassign`: every `every` steps while the price rises,
    as the fraction of `pruning.Schedule` does, until step `ramp`. After training come `newton_rounds` of
    `curvature.share`, at the whole price.
    """

    clusters: int = 16
    layers: dict[str, int] = field(default_factory=dict)
    init: str = "linear"
    bias_clusters: int = 0
    bit_price: float = 0.0
    ramp: int = 0
    every: int = 50
    newton_rounds: int = 0
    centroid_learning_rate: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = self.bias_clusters, self.bit_price, self.ramp, self.newton_rounds
        priced = self.bit_price > 0
        if min(numbers) < 0 or (self.ramp and not priced) or (priced and not (self.ramp or self.newton_rounds)):
            raise RecipeError(
                "quantized has bias_clusters={}, bit_price={}, ramp={}, newton_rounds={}: they must be 0 or more, a "
                "bit_price needs a ramp or newton_rounds, and a ramp needs a bit_price.".format(*numbers)
            )

    def training(self) -> dict[str, Any]:
        """The arguments for `training.train`, but for what the stage learns from."""
        return {**super().training(), "centroid_learning_rate": self.centroid_learning_rate}


@dataclass(frozen=True)
class Recipe:
    """All that determines a run."""

    name: str = "reference"
    seed: int = 0
    data: Data = Data()
    model: Model = Model()
    full: Full = Full()
    pruned: Pruned = Pruned()
    quantized: Quantized = Quantized()

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**31:
            raise RecipeError(f"seed={self.seed}: it must be from 0 to {2**31 - 1}.")


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
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path} cannot be read as TOML: {error}") from error
    return _build(Recipe, {"name": path.stem, **table}, str(path))


def dumps(recipe: Recipe) -> str:
    """The recipe as TOML, every value spelled out."""
    import tomli_w

    return tomli_w.dumps(dataclasses.asdict(recipe))


def override(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """The recipe with `section.field=value` settings applied, values in TOML's notation (quotes optional)."""
    table = dataclasses.asdict(recipe)
    for setting in settings:
        key, equals, text = setting.partition("=")
        *sections, last = key.strip().split(".")
        if not equals or len(sections) > 1:
            raise RecipeError(f"--set {setting!r}: write it as section.field=value, like full.steps=1000.")
        target = table
        for section in sections:
            if not isinstance(target.get(section), dict):
                raise RecipeError(f"--set {setting!r}: no section {section!r}; there are {', '.join(sections_of())}.")
            target = target[section]
        target[last] = _parse(text.strip())
    return _build(Recipe, table, "--set")


def sections_of() -> list[str]:
    """The names of a recipe's sections."""
    return [f.name for f in dataclasses.fields(Recipe) if dataclasses.is_dataclass(f.type)]


def differences(old: Recipe, new: Recipe) -> list[str]:
    """What differs, as `section.field = old, not new`, in the order of the fields."""
    before, after = _flat(dataclasses.asdict(old)), _flat(dataclasses.asdict(new))
    return [f"{key} = {before[key]}, not {after[key]}" for key in before if before[key] != after[key]]


def _flat(table: dict) -> dict[str, Any]:
    flat = {}
    for key, value in table.items():
        if key in sections_of():
            flat |= {f"{key}.{inner}": v for inner, v in value.items()}
        else:
            flat[key] = value
    return flat


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _build(kind: type, table: dict[str, Any], where: str) -> Any:
    """A dataclass out of a table whose keys and types must be its own."""
    hints = get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    values = {}
    for key, value in table.items():
        if key not in names:
            raise RecipeError(f"{where}: no field {key!r} in {kind.__name__.lower()}; there are {', '.join(names)}.")
        values[key] = _convert(hints[key], value, f"{where}: {key}")
    return kind(**values)


def _convert(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _build(kind, value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind in (dict[str, float], dict[str, int]) and isinstance(value, dict):
        inner = kind.__args__[1]
        return {pattern: _convert(inner, v, f"{where}.{pattern}") for pattern, v in value.items()}
    if kind in (int, float, str) and type(value) is kind:
        return value
    wanted = (
        "a table" if dataclasses.is_dataclass(kind) or kind not in (int, float, str) else f"of type {kind.__name__}"
    )
    raise RecipeError(f"{where} must be {wanted}, not {value!r}.")
