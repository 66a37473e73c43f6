"""The smallest file of a network within a limit of accuracy: candidates are made, coded and measured, one by one."""

import functools
import math
import tempfile
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from deepcomp import options
from deepcomp.data import DataSet, Part, Stream, data_set, leaves, mapped, split
from deepcomp.errors import DataError, RecipeError, printable
from deepcomp.files import locked
from deepcomp.options import Distillation, Search, Training
from deepcomp.search import augmentation, layers, rounds
from deepcomp.search.journal import AS_IT_IS, LAYERS, PRUNED, SHARED, Candidate, Journal, State
from deepcomp.search.judge import Judge, checksum, standard_error
from deepcomp.search.limit import Agreement, is_scores, limit_of
from deepcomp.search.planning import Planner
from deepcomp.search.report import Interval, Report, Table
from deepcomp.search.schedule import Clock
from deepcomp.training import batches, losses
from deepcomp.training.batches import Changes
from deepcomp.training.losses import Task
from deepcomp.training.predict import predictor, rebuilt
from deepcomp.training.record import Record
from deepcomp.work import Work, prepared, require_model

__all__ = ["Compressed", "compress", "prune"]

_DISTILLATION = Distillation(weight=0.5)
_REMOVED = 0.5, 0.02  # parts of the weights that first prices remove: where training follows, and in a pruned network
_REMOVED_ALONE = 0.2  # the same without training
_QUICK, _AMID_TRAINING = {"most": 3, "halvings": 0}, {"halvings": 1}  # how many prices are tried where training follows
# Held-out examples that are changed to see what the full network bears, and the part of the time for each such change.
_FEW_CHANGED, _MOST_CHANGED, _FOR_CHANGES = 500, 5_000, 0.005
_FEW_HELD, _MOST_HELD = 500, 10_000  # examples; the first also where they are more than the part asked for


@dataclass(frozen=True)
class Compressed:
    """What `compress` returns.

    model: the smallest network within the limit, a plain `keras.Model`; data: the bytes of its file; report: all that
    was tried, as text, as a picture and as a table for programs.
    """

    model: keras.Model
    data: bytes
    report: Report


@options.by_name({"search": Search, "training": Training})
def compress(
    model: keras.Model,
    data: Any,
    tolerance: float = 0.0,
    minutes: float = 30.0,
    search: Search = Search(),
    training: Training = Training(distillation=_DISTILLATION),
    *,
    folder: str | Path | None = None,
    record: Record | None = None,
) -> Compressed:
    """The smallest `.dcz` file of a network whose metric, on held-out examples, falls by at most `tolerance`.

    The metric is accuracy, or the first of the compiled model, or the loss; `tolerance` is in percentage points of a
    metric that is better the higher it is, and else in percent of that of the full network. `data` is as for `prune`;
    examples are held out of training where it has no validation part. First, layers are compressed one by one without
    training, at the highest price of a bit that the limit allows. Then rounds of training remove weights as long as the
    limit allows, and its layers are compressed again; at last its shared values are trained at fewer and fewer bits. It
    learns from the full network's outputs too. With `train=False`, or without labels, there is no training; without
    labels the metric is the agreement with the full network. It takes about `minutes`, or `steps` of training. In a
    `folder` candidates are kept, and an interrupted call goes on when it is made again. `record` keeps the history, an
    entry for each round. Raises `RecipeError`, `DataError`, `UnsupportedLayerError`, and `StageError` for the folder of
    another search.
    """
    _check_number("tolerance", tolerance, 0)
    _check_number("minutes", minutes, 1e-9)
    with ExitStack() as stack:
        place = Path(folder) if folder is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        one = _begun(stack, model, data, (search, training), place, record)
        found = one.run(tolerance, minutes)
        one.work.model = found.model
    if training.verbose:
        print(printable(found.report.summary()), flush=True)
    return found


def prune(
    model: keras.Model,
    data: Any,
    tolerance: float,
    search: Search,
    training: Training,
    *,
    folder: str | Path,
    record: Record | None = None,
) -> keras.Model:
    """What `compress` makes by its rounds that prune: a copy of the model, with most zeros within the limit.

    `compress` goes on in the same folder. It goes by `search.steps`, for a time says nothing of a part of a search.
    Arguments, and what is raised, as for `compress`.
    """
    _check_number("tolerance", tolerance, 0)
    if not search.steps:
        raise RecipeError("steps=0: a search that is made in parts needs steps of training.")
    with ExitStack() as stack:
        one = _begun(stack, model, data, (search, training), Path(folder), record)
        one.work.model = one.prune(tolerance)
    return one.work.model


def _check_number(name: str, value: Any, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
        raise RecipeError(f"{name}={value!r}: it must be a number{', 0 or more' if not least else ' above 0'}.")


def _begun(
    stack: ExitStack,
    model: keras.Model,
    data: Any,
    how: tuple[Search, Training],
    folder: Path,
    record: Record | None,
) -> "_Search":
    """A search that works on a copy of the model; what is to be ended is on the stack."""
    began, (search, training) = time.monotonic(), how
    require_model(model)
    if data is None:
        raise DataError("data=None: give some hundred inputs, or examples to train on.")
    dataset = _with_held_out(data_set(data, seed=training.seed), search.held_out, training.seed)
    fitted = batches.fitted(dataset, model, training.scale)
    if not losses.has_targets(model, fitted, training):
        work = stack.enter_context(prepared(model, None, replace(training, steps=0), record, "search"))
        if training.verbose and (line := batches.scaling_line(fitted)):
            print(line, flush=True)
        found = fitted, Agreement(predictor(model, scale=bool(fitted.scale)))
    else:
        try:
            work = stack.enter_context(prepared(model, dataset, training, record, "search"))
        except RecipeError:
            if training.distillation != _DISTILLATION:
                raise
            # The loss is one by which no teacher can teach.
            alone = replace(training, distillation=Distillation())
            work = stack.enter_context(prepared(model, dataset, alone, record, "search"))
        found = work.dataset, work.required_task("Searches")
    stack.enter_context(locked(folder))
    return _Search(work, *found, search, folder, began)


class _Search:
    """One search: it makes candidates, has them judged, and keeps them in its journal."""

    def __init__(
        self, work: Work, dataset: DataSet, task: Task | Agreement, search: Search, folder: Path, began: float
    ):
        self.began = began
        self.work, self.dataset, self.task, self.search, self.folder = work, dataset, task, search, folder
        inputs = self._sample()
        self.judge = Judge(work.source, dataset, task, keep_frozen=work.training.freeze, inputs=inputs)
        self.full = State.of(work.source)
        self.trains = search.train and work.task is not None
        self.notes: list[str] = []
        if self.judge.obstacles:
            self.notes.append(f"The file holds the weights alone. {self.judge.obstacles[0]}")
        if search.train and not self.trains:
            self.notes.append("There are no labels, so nothing was trained.")

    def run(self, tolerance: float, minutes: float) -> Compressed:
        """The smallest network within the limit."""
        self._begin(tolerance, minutes)
        if self.trains:
            self._train((PRUNED, SHARED))
            if self.journal.smallest.how == AS_IT_IS:
                self._compress_layers(self.journal.candidates[0])
        return self._result()

    def prune(self, tolerance: float) -> keras.Model:
        """The sparsest network within the limit, of the rounds that prune."""
        self._begin(tolerance, 1.0)
        if self.trains:
            self._train((PRUNED,))
        pruned = self.planner.result_of_pruning()
        self.work.record.history = self._history(pruned)
        return self.journal.state(pruned).put_into(self.work.model)

    def _begin(self, tolerance: float, minutes: float) -> None:
        data, measures = self.judge.judged(self.full, as_it_is=True)
        self.limit = limit_of(measures, self.search, tolerance)
        self.full_folds = self.judge.folds(self.limit.metric)
        self.journal = Journal(self.folder, self._fingerprint())
        spent = self.journal.seconds + time.monotonic() - self.began
        self.clock = Clock(minutes, self.search.steps, self.search.rounds, spent)
        if self.trains and self.search.augment:
            self._augment()
        self.planner = Planner(self.work, self.search, self.journal, self.limit, self.clock)
        self.dense_bytes = 4 * sum(values.size for values in self.full.weights)
        self.table = Table(self.limit, self.dense_bytes, self.work.training.verbose)
        for candidate in self.journal.candidates:  # of an interrupted search
            self.table.add(candidate, None)
        if not self.journal.candidates:
            self._add(AS_IT_IS, data, measures, self.full, goal=0.0)
        if not (self.trains and self.search.steps and self.search.density):
            # They say what training has to prune, and are a result where the time ends before a round does.
            self._compress_layers(self.journal.candidates[0], quick=self.trains)

    def _augment(self) -> None:
        """Have training change images as far as the full network bears it, where the caller asked for no change."""
        training, train = self.work.training, self.dataset.train
        asked = Changes.of(training, self.dataset)
        if asked or isinstance(train, Stream):
            return

        def measured(part: Part) -> float:
            return self.judge.measured(self.full, part, as_it_is=True)[self.limit.metric]

        count = _MOST_CHANGED
        if not self.search.steps:  # A large network has no time for so many.
            began = time.monotonic()
            measured(self.dataset.validation.spread(_FEW_CHANGED))
            count = _FEW_CHANGED * _FOR_CHANGES * self.clock.seconds / (time.monotonic() - began)
        held = self.dataset.validation.spread(round(min(max(count, _FEW_CHANGED), _MOST_CHANGED)))
        limit = replace(self.limit, full=measured(held), tolerance=0.0).loosened()
        found = augmentation.borne(asked, held, lambda changed: limit.allows(measured(changed)), training.seed)
        self.work.training = replace(training, shift=found.shift, flip=found.flip, rotate=found.rotate)
        if found:
            self.notes.append(f"Images were {found} in training, as the full network bears it.")

    def _add(self, how: str, data: bytes, measures: Mapping[str, float], state: State, **found: Any) -> Candidate:
        metric, error, within = measures[self.limit.metric], 0.0, how == AS_IT_IS
        able = not within and self.limit.allows(metric) and not self.judge.is_dead()
        # What trained networks lack of the limit says what the next round aims at.
        if able or (how in (PRUNED, SHARED) and math.isfinite(metric)):
            error = standard_error(self.judge.folds(self.limit.metric) - self.full_folds)
        if able:
            within = self.limit.allows(metric, error, self.search.margin) or self._keeps(metric, found["source"])
        found = {"steps": 0, "source": 0, **found, "metric": metric, "error": error, "within": within}
        candidate = self.journal.add(how, data, state, found)
        self.journal.drop_states(self.planner.needed())
        self.table.add(candidate, None if self.search.steps else self.clock.left)
        return candidate

    def _keeps(self, metric: float, source: int) -> bool:
        """Whether a metric is no worse than that of the pruned network, itself within the limit, it was made of.

        A reserve is for the luck of the best of many; no luck is needed to stay as good.
        """
        before = self.journal.candidates[source]
        is_good = before.how == PRUNED and self.limit.allows(before.metric)
        return is_good and replace(self.limit, full=before.metric, tolerance=0.0).allows(metric)

    def _compress_layers(self, source: Candidate, *, quick: bool = False) -> None:
        """Candidates made of another, layer by layer, without training, up to the highest price within the limit.

        quick: three prices at most.
        """
        tried = {one.goal: one for one in self.journal.of(LAYERS) if one.source == source.number}

        @functools.cache
        def compressor() -> layers.LayerCompressor:
            model, inputs = self.journal.state(source).put_into(self.work.model), self._examples()
            how = {"classes": self._tells_classes(), "seed": self.work.training.seed}
            return layers.LayerCompressor(model, inputs, **how)

        def within(price: float) -> bool:
            if price not in tried:
                began = time.monotonic()
                state, found = compressor().compressed(price), {"goal": price, "source": source.number}
                tried[price] = self._add(LAYERS, *self.judge.judged(state), state, **found)
                self.clock.layer_seconds = time.monotonic() - began
            return tried[price].within

        more = self.clock.allows_layers if quick else self.clock.allows
        if more():
            removed = _REMOVED[source.how == PRUNED] if self.trains else _REMOVED_ALONE
            first = next(iter(tried), None) or compressor().first_price(removed)
            effort = _QUICK if quick else _AMID_TRAINING if self.trains else {}
            layers.search_price(first, within, more, **effort)

    def _train(self, kinds: Collection[str]) -> None:
        """Rounds of training of these kinds: first those that prune, then those that share values."""
        while True:
            if not self.journal.plan:
                has_pruned = self.planner.has_pruned()
                if has_pruned and SHARED not in kinds:
                    return
                if has_pruned and not self.journal.of(SHARED):
                    self._compress_layers(self.planner.pruned())
                self.journal.begin(self.planner.next_round())
            plan = self.journal.plan
            if not plan:
                return
            start = self.journal.state(self.journal.candidates[plan["source"]])
            how, steps = plan["how"], plan["steps"]
            seed = self.work.training.seed + plan["number"]
            learning = replace(self.work.training, steps=steps, seed=seed)
            train = rounds.prune if how == PRUNED else functools.partial(rounds.share, gently=plan["gently"])
            self.clock.begin_round()
            try:
                state = train(
                    self.work,
                    start,
                    plan["goal"],
                    learning,
                    checkpoint=self.journal.checkpoint,
                    label=f"round {plan['number']}",
                    arrived=self.clock.arrived,
                )
            except RecipeError as error:  # The loss is no number: what was found until then is the result.
                self.notes.append(str(error))
                return
            found = {name: plan[name] for name in ("goal", "steps", "source")}
            self._add(how, *self.judge.judged(state), state, **found)
            self.clock.end_round(steps)

    def _history(self, result: Candidate) -> dict[str, list]:
        """The metric of the full network, after each round and of the result, as `Record` has it."""
        found = [one for one in self.journal.candidates if one.steps or not one.number]
        steps = np.cumsum([one.steps for one in found]).tolist()
        if result is not found[-1]:
            found, steps = [*found, result], [*steps, steps[-1]]
        return {"step": steps, f"validation_{self.limit.metric}": [one.metric for one in found]}

    def _result(self) -> Compressed:
        chosen = self.journal.smallest
        state, as_it_is = self.journal.state(chosen), chosen.how == AS_IT_IS
        metric, test = self.limit.metric, None
        self.work.record.history = self._history(chosen)
        interval = Interval.of(chosen.metric - self.limit.full, chosen.error)
        if len(self.dataset.test):
            full, own = (
                self.judge.measured(one, self.dataset.test, as_it_is=how)[metric]
                for one, how in ((self.full, True), (state, as_it_is))
            )
            test = full, own
        report = Report(
            tuple(self.journal.candidates),
            chosen,
            self.limit,
            self.dense_bytes,
            held_out=len(self.dataset.validation),
            interval=interval,
            test=test,
            notes=tuple(self.notes),
        )
        return Compressed(self.judge.network(state, as_it_is=as_it_is), self.journal.data(chosen), report)

    def _tells_classes(self) -> bool:
        """Whether outputs are scores of classes, whose cross-entropy is the loss."""
        outputs = leaves(predictor(self.work.source, scale=False, compiled=False)(self._sample()))
        return is_scores(outputs) and isinstance(self.task, losses.Classification | Agreement)

    def _sample(self) -> Any:
        """A few inputs, as the network takes them."""
        return mapped(np.asarray, batches.scaled(self.dataset.train.sample(8).x, self.dataset.scale))

    def _examples(self) -> Any:
        """Some inputs of training, as the network takes them; of a stream, the first."""
        train, wanted = self.dataset.train, self.search.examples
        if isinstance(train, Part):
            order = np.random.default_rng([self.work.training.seed, len(train)]).permutation(len(train))
            return batches.scaled(train.take(np.sort(order[:wanted])).x, self.dataset.scale)
        found: list[Part] = []
        pieces = train.pieces(1)
        while sum(map(len, found)) < wanted and (piece := next(pieces, None)) is not None:
            found.append(piece)
        arrays = [np.concatenate(parts)[:wanted] for parts in zip(*(leaves(one.x) for one in found), strict=True)]
        return batches.scaled(rebuilt(found[0].x, iter(arrays)), self.dataset.scale)

    def _fingerprint(self) -> dict[str, Any]:
        """What decides the results, but for the time."""
        how, sample = options.flat(self.work.training), self.dataset.train.sample()
        plain = {name: value for name, value in how.items() if isinstance(value, bool | int | float | str | None)}
        unimportant = ("steps", "verbose", "save_every", "evaluate_every")
        arrays = [*leaves(sample.x), *leaves(sample.y), *leaves(self.dataset.validation.x)]
        return {
            "network": checksum(self.full.weights),
            "data": checksum([np.asarray(array) for array in arrays]),
            "tolerance": self.limit.tolerance,
            **{f"search.{name}": value for name, value in options.flat(self.search).items()},
            **{f"training.{name}": value for name, value in plain.items() if name not in unimportant},
        }


def _with_held_out(dataset: DataSet, fraction: float, seed: int) -> DataSet:
    """The data set with validation examples, some of training where it has none, and a test part of its own, if any.

    They are those that the scripts hold out, so that a network trained by these has not seen them. Raises `DataError`.
    """
    if dataset.test is dataset.validation:
        dataset = replace(dataset, test=Part(None))
    if len(dataset.validation):
        return dataset
    if isinstance(dataset.train, Stream):
        raise DataError(
            "A search needs examples that are held out, and a stream of batches has none: give "
            "deepcomp.DataSet.of(train, validation=...)."
        )
    count = len(dataset.train)
    held = min(max(round(fraction * count), min(_FEW_HELD, count // 2)), _MOST_HELD)
    if not held:
        raise DataError(f"{count} examples are too few to hold some out.")
    kept, held_out = split(dataset.name, count, held, seed)
    return replace(dataset, train=dataset.train.take(kept), validation=dataset.train.take(held_out))
