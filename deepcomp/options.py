"""Every option, said once: small frozen dataclasses that validate themselves.

Recipes, arguments of the library, callbacks, error messages and docs/options.md are all made from these classes. A
nested class is written flat in a recipe and as an argument: `second_order_rounds` is `rounds` of `second_order`.
"""

import dataclasses
import difflib
import functools
import inspect
import math
import numbers
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from deepcomp.errors import RecipeError

CRITERIA = ("sparsity", "quality", "threshold")
SCOPES = ("global", "layer")
SCORES = ("magnitude", "lamp", "saliency")
INITS = ("linear", "density", "random", "optimal")
OPTIMIZERS = ("adam", "adamw", "nadam", "rmsprop", "sgd", "lion")
RATE_SCHEDULES = ("constant", "linear", "cosine")

_MOST_WHOLE = 2**31  # what TensorFlow's whole numbers hold

PerLayer = float | Mapping[str, float]
PerLayerCount = int | Mapping[str, int]


def option(
    default: Any,
    text: str,
    *,
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
    choices: Iterable[str] = (),
    recipe: bool = True,
) -> Any:
    """A field of an option class: its default, what it means, its range, and whether a recipe may set it."""
    limits = {"least": least, "most": most, "below": below, "choices": tuple(choices)}
    metadata = {"text": text, "recipe": recipe, **limits}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def nested(kind: type, text: str, prefix: str = "") -> Any:
    """A field that is an option class itself; its fields are written flat behind `prefix`."""
    return field(default_factory=kind, metadata={"text": text, "prefix": prefix, "recipe": True})


@dataclass(frozen=True)
class Options:
    """The base of all option classes: numbers are converted, types and ranges are checked. Raises `RecipeError`."""

    # Names of earlier versions: {old: new}. A function takes the value and gives the new one.
    ALIASES: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        for one, hint in _hints(type(self)):
            object.__setattr__(self, one.name, _checked(type(self).__name__, one, hint, getattr(self, one.name)))
        self.check()

    def check(self) -> None:
        """What the options must be together. Raises `RecipeError`."""


@dataclass(frozen=True)
class Schedule(Options):
    """When something changes, and how far: at once at step `begin`, or in small parts until step `end`.

    The fraction of the goal rises as 1 - (1 - t)^3 (Zhu and Gupta, 2017).
    """

    begin: int = option(0, "the first step at which anything changes", least=0)
    end: int = option(0, "the step at which the goal is reached; no later than `begin`: all at once", least=0)
    every: int = option(100, "steps between two changes", least=1)

    ALIASES: ClassVar[Mapping[str, Any]] = {"ramp": "end"}

    @property
    def update_steps(self) -> list[int]:
        """The steps at which something changes: `begin`, every `every` steps after it, and `end`."""
        return [*range(self.begin, self.end, self.every), max(self.begin, self.end)]

    def fraction(self, step: int) -> float:
        """The fraction of the goal at `step`, from 0 to 1."""
        if step < self.begin:
            return 0.0
        return 1.0 if step >= self.end else 1 - (1 - (step - self.begin) / (self.end - self.begin)) ** 3


@dataclass(frozen=True, kw_only=True)
class SecondOrderPruning(Options):
    """Pruning by the curvature of the loss, after training (Optimal Brain Surgeon; Hassibi and Stork, NIPS 1992).

    For networks with one softmax output of which at most 20,000 weights are left.
    """

    rounds: int = option(0, "rounds; 0 leaves this out", least=0)
    sparsity: float = option(0.0, "fraction of all kernels' weights that is zero after the rounds", least=0, below=1)
    steps: int = option(0, "steps of training after the rounds, which prune nothing", least=0)
    learning_rate: float = option(1e-3, "learning rate of those steps", least=0, below=math.inf)
    shift: int | None = option(None, "random shift of images, in pixels, from the rounds on; none: as before", least=0)

    def check(self) -> None:
        if not self.rounds and (self.sparsity or self.steps):
            raise RecipeError(
                f"second_order_sparsity={self.sparsity:g} and second_order_steps={self.steps} need "
                f"second_order_rounds above {self.rounds}."
            )


@dataclass(frozen=True, kw_only=True)
class SecondOrderSharing(Options):
    """Weight sharing by the curvature of the loss, after training; for networks as in `SecondOrderPruning`."""

    rounds: int = option(0, "rounds; 0 leaves this out", least=0)
    shift: int | None = option(None, "random shift of images, in pixels, in the rounds; none: as before", least=0)


def _pixels(value: Any) -> Any:
    """A shift as recipes of earlier versions wrote it: -1 stood for none."""
    return None if value == -1 else value


def _second_order(*names: str) -> dict[str, Any]:
    """Aliases of the earlier prefix."""
    own = {f"newton_{name}": f"second_order_{name}" for name in names}
    return own | {"newton_shift": ("second_order_shift", _pixels)}


@dataclass(frozen=True, kw_only=True)
class Pruning(Schedule):
    """Which weights to remove, and when (paper section 2).

    Give one of `sparsity`, `quality` and `threshold`: a number for every layer, or `{regular expression: number}`, and
    then layers that none matches are left whole. Without any of them the sparsity is 0.9.
    """

    sparsity: PerLayer | None = option(None, "fraction of weights to remove", least=0, below=1)
    quality: PerLayer | None = option(
        None, "remove magnitudes below this many standard deviations of the layer's weights", least=0, below=math.inf
    )
    threshold: PerLayer | None = option(None, "remove magnitudes below this", least=0, below=math.inf)
    layers: Mapping[str, float] = option({}, "other goals for some layers, {regular expression: number}", least=0)
    scope: str = option("global", "rank weights of all layers together, or within each layer", choices=SCOPES)
    scores: str = option("magnitude", "what ranks weights", choices=SCORES)
    tolerance: float = option(
        0.0,
        "above 0: a scan chooses each layer's sparsity; pruning it alone costs at most so many percentage points",
        least=0,
        below=100,
    )
    flops_power: float = option(
        0.0, "divide scores by this power of the multiplications that a weight costs, for speed", least=0, most=10
    )
    second_order: SecondOrderPruning = nested(
        SecondOrderPruning, "rounds by curvature, after training", "second_order_"
    )

    ALIASES: ClassVar[Mapping[str, Any]] = {
        **Schedule.ALIASES,
        **_second_order("rounds", "steps", "learning_rate", "sparsity"),
        "newton_value": "second_order_sparsity",
    }

    @property
    def criterion(self) -> str:
        """Which of `CRITERIA` is given."""
        return next((name for name in CRITERIA if getattr(self, name) is not None), "sparsity")

    @property
    def goal(self) -> float:
        """The goal of the layers that have none of their own."""
        given = getattr(self, self.criterion)
        return 0.9 if given is None else 0.0 if isinstance(given, Mapping) else given

    @property
    def own_goals(self) -> dict[str, float]:
        """The goals of some layers, `{regular expression: number}`; the first that matches decides."""
        given = getattr(self, self.criterion)
        return {**self.layers, **(given if isinstance(given, Mapping) else {})}

    def check(self) -> None:
        given = [name for name in CRITERIA if getattr(self, name) is not None]
        if len(given) > 1:
            raise RecipeError(f"Pruning takes one of {', '.join(CRITERIA)}, not {' and '.join(given)} together.")
        if self.criterion == "sparsity" and not all(value < 1 for value in self.layers.values()):
            raise RecipeError(f"layers={self.layers}: a sparsity must be from 0 to less than 1.")
        if self.tolerance and self.criterion != "sparsity":
            raise RecipeError(f"tolerance={self.tolerance:g} chooses sparsities: it goes without {self.criterion}.")
        if self.flops_power and (self.criterion, self.scope) != ("sparsity", "global"):
            raise RecipeError(
                f"flops_power={self.flops_power:g} compares layers: it needs a sparsity and scope='global', not "
                f"{self.criterion} and {self.scope!r}."
            )


@dataclass(frozen=True, kw_only=True)
class Sharing(Schedule):
    """How many values a layer's weights share, and which (paper section 3).

    A number for every layer, or `{regular expression: number}`, and then layers that none matches are left unshared.
    """

    every: int = option(50, "steps between two changes", least=1)
    clusters: PerLayerCount = option(16, "distinct non-zero values of a layer", least=1, most=65_536)
    layers: Mapping[str, int] = option({}, "other numbers for some layers, {regular expression: number}", least=1)
    init: str = option("optimal", "where k-means starts; optimal: the least squared error", choices=INITS)
    bias_clusters: int = option(0, "values that a layer's bias shares; 0 leaves it unshared", least=0, most=65_536)
    rate_distortion_lambda: float = option(
        0.0,
        "what a bit costs, in parts of the mean loss of removing a weight: weights move to cheaper clusters, or to 0",
        least=0,
        below=math.inf,
    )
    centroid_learning_rate: float = option(1e-4, "learning rate of the shared values", least=0, below=math.inf)
    second_order: SecondOrderSharing = nested(
        SecondOrderSharing, "rounds by curvature, after training", "second_order_"
    )

    ALIASES: ClassVar[Mapping[str, Any]] = {
        **Schedule.ALIASES,
        **_second_order("rounds"),
        "bit_price": "rate_distortion_lambda",
        "bits": ("clusters", lambda bits: _each(bits, _clusters_of)),
        "bias_bits": ("bias_clusters", lambda bits: _clusters_of(bits)),
    }

    def check(self) -> None:
        moves = self.end or self.second_order.rounds
        if bool(self.rate_distortion_lambda) != bool(moves) and (self.end or self.rate_distortion_lambda):
            raise RecipeError(
                f"rate_distortion_lambda={self.rate_distortion_lambda:g}, end={self.end}, "
                f"second_order_rounds={self.second_order.rounds}: a lambda above 0 needs an end or rounds, and an end "
                "needs a lambda."
            )


@dataclass(frozen=True, kw_only=True)
class Distillation(Options):
    """Learn from the outputs of a teacher as well (Hinton, Vinyals and Dean, 2015)."""

    weight: float = option(0.0, "the part of the loss that goes by the teacher's outputs", least=0, most=1)
    temperature: float = option(4.0, "softens both networks' outputs; above 0", least=0, below=math.inf)
    teacher: Any = option(None, "a model; none: the network as it was before the call", recipe=False)

    def check(self) -> None:
        if not self.temperature > 0:
            raise RecipeError(f"distillation_temperature={self.temperature:g}: it must be above 0.")


@dataclass(frozen=True, kw_only=True)
class Training(Options):
    """How a network is trained or fine-tuned."""

    steps: int = option(1000, "batches", least=0, most=10**8)
    batch: int = option(100, "examples in a batch; a stream of batches keeps its own", least=1, most=2**24)
    optimizer: str = option("adam", "what trains the weights", choices=OPTIMIZERS)
    learning_rate: float = option(1e-3, "learning rate of the weights", least=0, below=math.inf)
    schedule: str = option("cosine", "how learning rates fall over the steps", choices=RATE_SCHEDULES)
    weight_decay: float = option(
        0.0, "times the learning rate: the part of each weight that goes at every step", least=0, below=math.inf
    )
    label_smoothing: float = option(0.0, "part of a label that is spread over all classes", least=0, below=1)
    distillation: Distillation = nested(Distillation, "learning from a teacher", "distillation_")
    evaluate_every: int = option(250, "steps between two entries of the history", least=1)
    save_every: int = option(500, "steps between two saves of the state, where there is a run folder", least=1)
    shift: int = option(0, "random moves of images in training, in pixels", least=0, below=2**15, recipe=False)
    flip: bool = option(False, "mirror half of the images in training, left to right", recipe=False)
    rotate: float = option(0.0, "random rotations of images in training, in degrees", least=0, most=180, recipe=False)
    seed: int = option(0, "seed of the order of examples, and of k-means", least=0, below=2**31, recipe=False)
    loss: Any = option(None, "a Keras loss; none: the compiled one, or the one that outputs and labels imply")
    metrics: Any = option(None, "Keras metrics; none: the compiled ones, or accuracy of classes")
    class_weight: Mapping[int, float] | None = option(None, "weight of each class in the loss", recipe=False)
    scale: bool | None = option(
        None, "divide uint8 inputs by 255; none: unless the model takes them as they are", recipe=False
    )
    freeze: bool = option(True, "leave variables that are not trainable as they are", recipe=False)
    verbose: bool = option(True, "show progress, and a table of layers", recipe=False)

    ALIASES: ClassVar[Mapping[str, Any]] = {
        "distillation": "distillation_weight",
        "temperature": "distillation_temperature",
        "teacher": "distillation_teacher",
    }


@dataclass(frozen=True, kw_only=True)
class Search(Options):
    """How the smallest file within a limit is looked for."""

    steps: int = option(0, "steps of training in all, in place of a time; 0: as many as the time allows", least=0)
    train: bool = option(True, "train the candidates; else layers make up for lost weights by their inputs alone")
    metric: str = option("", "what the limit is of; none: accuracy, or else the first compiled metric, or the loss")
    rises: bool | None = option(None, "whether the metric is better the higher it is; none: by its name")
    examples: int = option(512, "training examples by whose inputs layers are compressed without training", least=1)
    held_out: float = option(
        0.1, "part of the training examples that is held out where there are no validation examples", least=0, below=1
    )
    augment: bool = option(
        True, "change images in training as far as the full network bears it, where no change is asked for"
    )
    rounds: int = option(
        6, "rounds of training: at most half of them prune, and at most four share values", least=1, most=100
    )
    density: float = option(
        0.0, "part of the weights that the first round of pruning leaves; 0: found without training", least=0, below=1
    )
    margin: float = option(
        1.0, "standard errors of a fall, as sampling alone causes them, that are kept in reserve", least=0, most=10
    )


# Options <-> flat tables


def flat(options: Options) -> dict[str, Any]:
    """All fields of an option class by their flat names, nested ones behind their prefix."""
    table: dict[str, Any] = {}
    for one in fields(options):
        value = getattr(options, one.name)
        if isinstance(value, Options):
            table |= {one.metadata["prefix"] + name: inner for name, inner in flat(value).items()}
        else:
            table[one.name] = value
    return table


def documented(kind: type[Options], prefix: str = "") -> dict[str, dataclasses.Field]:
    """The fields of an option class by their flat names."""
    found: dict[str, dataclasses.Field] = {}
    for one, hint in _hints(kind):
        if _is_options(hint):
            found |= documented(hint, prefix + one.metadata["prefix"])
        else:
            found[prefix + one.name] = one
    return found


def aliases(kind: type[Options]) -> dict[str, Any]:
    """The names of earlier versions, of the class and of those nested in it without a prefix."""
    found = dict(kind.ALIASES)
    for one, hint in _hints(kind):
        if _is_options(hint) and not one.metadata["prefix"]:
            found = {**aliases(hint), **found}
    return found


def current(kind: type[Options], table: Mapping[str, Any]) -> dict[str, Any]:
    """A flat table with names of earlier versions replaced by those of now."""
    known = aliases(kind)
    renamed: dict[str, Any] = {}
    for name, value in table.items():
        target = known.get(name, name)
        if isinstance(target, tuple):
            target, convert = target
            value = convert(value)
        renamed[target] = value
    if "sparsity" in documented(kind) and ("by" in renamed or "value" in renamed):
        renamed = _with_criterion(renamed)
    return renamed


def build(kind: type[Options], table: Mapping[str, Any], base: Options | None = None) -> Any:
    """An option class out of a flat table; what the table leaves out is as in `base`, or has its default.

    Raises `RecipeError` for a name that the class does not have.
    """
    table = current(kind, table)
    known = documented(kind)
    for name in table:
        if name not in known:
            raise RecipeError(unknown(name, [*known, *aliases(kind)]))
    if any(name in table for name in CRITERIA) and "sparsity" in known:  # A new criterion replaces the old one.
        table = {**dict.fromkeys(CRITERIA), **table}
    return _built(kind, {**(flat(base) if base is not None else {}), **table}, "")


def unknown(name: str, names: Iterable[str]) -> str:
    """What to say of an option that does not exist."""
    near = difflib.get_close_matches(name, names, 1, 0.6)
    hint = f"do you mean {near[0]!r}" if near else f"there are {', '.join(names)}"
    return f"There is no option {name!r}: {hint}."


def by_name(kinds: Mapping[str, type[Options]]) -> Callable[[Callable], Callable]:
    """Let a function's option arguments also be given field by field: `steps=500` for `training=Training(steps=500)`.

    `kinds` maps arguments of the function to their option classes; fields given by name go before those of the object.
    Raises `RecipeError`, one line, for an unknown name and for something else in the place of an option object.
    """

    def decorate(function: Callable) -> Callable:
        signature = inspect.signature(function)
        own, called = set(signature.parameters), function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def call(*arguments, **fields):
            given = {name: fields.pop(name) for name in [*fields] if name in own}
            try:
                bound = signature.bind(*arguments, **given).arguments
            except TypeError as error:
                raise RecipeError(f"{called}: {error}; it is {called}{signature}.") from error
            tables: dict[str, dict[str, Any]] = {name: {} for name in kinds}
            for name, value in fields.items():
                takers = [arg for arg, kind in kinds.items() if name in documented(kind) or name in aliases(kind)]
                if not takers:
                    names = [n for kind in kinds.values() for n in (*documented(kind), *aliases(kind))]
                    raise RecipeError(f"{called}: {unknown(name, names)}")
                tables[takers[0]][name] = value
            for argument, kind in kinds.items():
                options = bound.get(argument, signature.parameters[argument].default)
                if options is not None and not isinstance(options, kind):
                    raise RecipeError(_misplaced(called, argument, kind, options, "data" in own))
                bound[argument] = build(kind, tables[argument], options) if tables[argument] else options or kind()
            return function(**bound)

        return call

    return decorate


def reference_page() -> str:
    """docs/options.md: every option class as a table, in Markdown."""
    parts = [
        "# Options\n\nMade by `make docs` from `deepcomp/options.py`. Each field can be given in its class "
        "(`deepcomp.Pruning(sparsity=0.9)`), by name (`deepcomp.prune(model, data, sparsity=0.9)`) and, but for those "
        "marked with a star, in a recipe (`--set pruned.sparsity=0.9`).\n"
    ]
    for kind in (Pruning, Sharing, Search, Training):
        parts.append(f"## {kind.__name__}\n\n{inspect.getdoc(kind)}\n")
        rows = [
            f"| `{name}`{'' if one.metadata['recipe'] else ' *'} | `{_default(one)}` | {_described(one)} |"
            for name, one in documented(kind).items()
        ]
        parts.append("\n".join(["| field | default | meaning |", "|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def _default(one: dataclasses.Field) -> str:
    return "{}" if one.default is dataclasses.MISSING else repr(one.default)


def _described(one: dataclasses.Field) -> str:
    choices = one.metadata["choices"]
    return one.metadata["text"] + (f": {', '.join(f'`{choice}`' for choice in choices)}" if choices else "")


def _misplaced(called: str, argument: str, kind: type, given: Any, takes_data: bool) -> str:
    """What to say where something else stands in the place of an option object, as in `prune(model, x, y)`."""
    received = f"an array of shape {tuple(given.shape)}" if hasattr(given, "shape") else repr(given)
    advice = f"data is one argument, as in {called}(model, (x, y), deepcomp.{kind.__name__}(...))"
    if not takes_data:
        advice = "give one, or its fields by name"
    return f"{called}: {argument} must be a deepcomp.{kind.__name__}, not {received[:80]}; {advice}."


def _built(kind: type[Options], table: Mapping[str, Any], prefix: str) -> Any:
    values = {}
    for one, hint in _hints(kind):
        if _is_options(hint):
            values[one.name] = _built(hint, table, prefix + one.metadata["prefix"])
        elif prefix + one.name in table:
            values[one.name] = table[prefix + one.name]
    try:
        return kind(**values)
    except RecipeError as error:
        # A nested class does not know the prefix by which its fields were given.
        if prefix and re.split(r"\W", str(error), maxsplit=1)[0] in values:
            raise RecipeError(f"{prefix}{error}") from error
        raise


def _with_criterion(table: dict[str, Any]) -> dict[str, Any]:
    """A pruning goal as recipes of earlier versions wrote it: `by` and `value`."""
    table = dict(table)
    present = next((name for name in CRITERIA if table.get(name) is not None), "sparsity")
    by, old = table.pop("by", present), table.get(present)
    value = table.pop("value", 0.9 if old is None else old)
    if by not in CRITERIA:
        raise RecipeError(f"by={by!r}: it must be one of {', '.join(CRITERIA)}.")
    return {**table, **dict.fromkeys(CRITERIA), by: value}


@functools.cache
def _hints(kind: type) -> list[tuple[dataclasses.Field, Any]]:
    hints = typing.get_type_hints(kind)
    return [(one, hints[one.name]) for one in fields(kind)]


def _is_options(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Options)


def _clusters_of(bits: Any) -> int:
    """How many values an index of so many bits tells apart."""
    if isinstance(bits, bool) or not isinstance(bits, numbers.Integral) or not 0 <= bits <= 16:
        raise RecipeError(f"bits={bits!r}: it must be a whole number from 0 to 16.")
    return 2 ** int(bits)


def _each(value: Any, convert: Callable[[Any], Any]) -> Any:
    return {name: convert(one) for name, one in value.items()} if isinstance(value, Mapping) else convert(value)


def _checked(owner: str, one: dataclasses.Field, hint: Any, value: Any) -> Any:
    """The value of a field, converted; raises `RecipeError` unless it is of its type and in its range."""
    if hint is Any:
        return value
    kinds = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        if typing.get_origin(kind) is not None and isinstance(value, Mapping):
            key, inner = typing.get_args(kind)
            found = {name: _scalar(inner, each) for name, each in value.items() if isinstance(name, key)}
            if len(found) == len(value) and None not in found.values():
                return {name: _in_range(f"{one.name}[{name!r}]", one, each) for name, each in found.items()}
        elif _is_options(kind) and isinstance(value, kind):
            return value
        elif isinstance(kind, type) and (found := _scalar(kind, value)) is not None:
            return _in_range(one.name, one, found)
    wanted = " or ".join(_kind_name(kind) for kind in kinds if kind is not type(None))
    raise RecipeError(f"{one.name}={value!r} of {owner}: it must be {wanted}.")


def _scalar(kind: Any, value: Any) -> Any:
    """`value` as a bool, int, float or str, or None where it is none."""
    if kind is bool:
        return value if isinstance(value, bool) else None
    if isinstance(value, bool):
        return None
    if kind is int:
        return int(value) if isinstance(value, numbers.Integral) else None
    if kind is float:
        try:
            return float(value) if isinstance(value, numbers.Real) else None
        except OverflowError:  # a whole number
            return math.inf if value > 0 else -math.inf
    return value if isinstance(value, kind) else None


def _in_range(name: str, one: dataclasses.Field, value: Any) -> Any:
    least, most, below, choices = (one.metadata.get(key) for key in ("least", "most", "below", "choices"))
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value), choices, 1)
        raise RecipeError(
            f"{name}={value!r}: it must be one of {', '.join(choices)}{f'; {near[0]!r}?' if near else ''}."
        )
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return value
    high = most is not None and not value <= most
    if (least is not None and not value >= least) or high or (below is not None and not value < below):
        if most is None and below in (None, math.inf):
            limits = f"{least:g} or more" if below is None else f"a finite number, {least:g} or more"
        else:
            limits = f"from {least:g} to {most:g}" if most is not None else f"from {least:g} to less than {below:g}"
        raise RecipeError(f"{name}={value!r}: it must be {limits}.")
    if isinstance(value, int) and abs(value) >= _MOST_WHOLE:
        raise RecipeError(f"{name}={value!r}: it must be less than {_MOST_WHOLE}.")
    return value


def _kind_name(kind: Any) -> str:
    if typing.get_origin(kind) is not None:
        return "a table {name: " + _kind_name(typing.get_args(kind)[1]) + "}"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(kind, f"of class {getattr(kind, '__name__', kind)}")
