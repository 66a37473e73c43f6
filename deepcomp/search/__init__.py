"""The smallest file of a network within a limit of accuracy: candidates are made, coded and measured, one by one."""

import math
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from deepcomp import options
from deepcomp.data import DataSet, Part, Stream, data_set, leaves, mapped
from deepcomp.errors import DataError, RecipeError, printable
from deepcomp.files import locked
from deepcomp.options import Distillation, Search, Training
from deepcomp.search import layers, rounds
from deepcomp.search.journal import AS_IT_IS, LAYERS, PRUNED, SHARED, Candidate, Journal, State
from deepcomp.search.judge import Judge, checksum
from deepcomp.search.limit import Agreement, is_scores, limit_of
from deepcomp.search.report import Report, Table
from deepcomp.search.schedule import Clock, next_goal
from deepcomp.training import batches, losses
from deepcomp.training.losses import Task
from deepcomp.training.predict import predictor, rebuilt
from deepcomp.work import Work, prepared, require_model

__all__ = ["Compressed", "compress"]

_DISTILLATION = Distillation(weight=0.5)
_PRUNING = 0.375  # of the rounds
_TRIAL_DENSITY = 0.9  # of the round that says how long a step takes
_FIRST_DENSITY, _FIRST_BITS = 0.5, 0.85  # the first goals of rounds, in parts of what there was before
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
) -> Compressed:
    """The smallest `.dcz` file of a network whose metric, on held-out examples, falls by at most `tolerance`.

    The metric is accuracy, or the first of the compiled model, or the loss; `tolerance` is in percentage points of a
    metric that is better the higher it is, and else in percent of that of the full network. `data` is as for `prune`;
    examples are held out of training where it has no validation part. First, layers are compressed one by one without
    training, at the highest price of a bit that the limit allows. Then rounds of training prune the network, and after
    each its layers are compressed again; at last its shared values are trained at fewer and fewer bits. It learns from
    the full network's outputs too. With `train=False`, or without labels, there is no training; without
    labels the metric is the agreement with the full network. It takes about `minutes`, or `steps` of training. In a
    `folder` candidates are kept, and an interrupted call goes on when it is made again. Raises `RecipeError`,
    `DataError`, `UnsupportedLayerError`, and `StageError` for the folder of another search.
    """
    for name, value, least in (("tolerance", tolerance, 0), ("minutes", minutes, 1e-9)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < math.inf:
            raise RecipeError(f"{name}={value!r}: it must be a number{', 0 or more' if not least else ' above 0'}.")
    with ExitStack() as stack:
        work, dataset, task = _begun(stack, model, data, search, training)
        place = Path(folder) if folder is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(locked(place))
        one = _Search(work, dataset, task, search, place)
        found = one.run(tolerance, minutes)
        work.model = found.model
    if work.training.verbose:
        print(printable(found.report.summary()), flush=True)
    return found


def _begun(
    stack: ExitStack, model: keras.Model, data: Any, search: Search, training: Training
) -> tuple[Work, DataSet, Task | Agreement]:
    """A copy of the model, its data with held-out examples, and its task; what is to be ended is on the stack."""
    require_model(model)
    if data is None:
        raise DataError("data=None: give some hundred inputs, or examples to train on.")
    dataset = _with_held_out(data_set(data, seed=training.seed), search.held_out, training.seed)
    fitted = batches.fitted(dataset, model, training.scale)
    if not losses.has_targets(model, fitted, training):
        work = stack.enter_context(prepared(model, None, replace(training, steps=0), None, "search"))
        return work, fitted, Agreement(predictor(model, scale=bool(fitted.scale)))
    try:
        work = stack.enter_context(prepared(model, dataset, training, None, "search"))
    except RecipeError:
        if training.distillation != _DISTILLATION:
            raise
        # The loss is one by which no teacher can teach.
        alone = replace(training, distillation=Distillation())
        work = stack.enter_context(prepared(model, dataset, alone, None, "search"))
    return work, work.dataset, work.required_task("Searches")


class _Search:
    """One search: it makes candidates, has them judged, and keeps them in its journal."""

    def __init__(self, work: Work, dataset: DataSet, task: Task | Agreement, search: Search, folder: Path):
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
        data, measures = self.judge.judged(self.full, as_it_is=True)
        self.limit = limit_of(measures, self.search, tolerance)
        self.journal = Journal(self.folder, self._fingerprint())
        self.clock = Clock(minutes, self.search.steps, self.search.rounds, self.journal.seconds)
        dense_bytes = 4 * sum(values.size for values in self.full.weights)
        self.table = Table(self.limit, dense_bytes, self.work.training.verbose)
        for candidate in self.journal.candidates:  # of an interrupted search
            self.table.add(candidate, None)
        if not self.journal.candidates:
            self._add(AS_IT_IS, data, measures, self.full, goal=0.0)
        self._compress_layers(self.journal.candidates[0])
        if self.trains:
            self._train()
        return self._result(dense_bytes)

    def _add(self, how: str, data: bytes, measures: Mapping[str, float], state: State, **found: Any) -> Candidate:
        metric = measures[self.limit.metric]
        within = how == AS_IT_IS or (self.limit.allows(metric) and not self.judge.is_dead())
        found = {"steps": 0, "source": 0, **found, "metric": metric, "within": within}
        candidate = self.journal.add(how, data, state, found)
        kept = [self.journal.smallest, self._start(), self._base(), *self._of(PRUNED)[-1:], *self._of(SHARED)[-1:]]
        self.journal.drop_states({0, *(one.number for one in kept)})
        self.table.add(candidate, None if self.search.steps else self.clock.left)
        return candidate

    def _compress_layers(self, source: Candidate) -> None:
        """Candidates made of another, layer by layer, without training, up to the highest price within the limit."""
        tried = {one.goal: one for one in self._of(LAYERS) if one.source == source.number}
        made: list[layers.LayerCompressor] = []

        def within(price: float) -> bool:
            if price not in tried:
                if not made:
                    model, inputs = self.journal.state(source).put_into(self.work.model), self._examples()
                    how = {"classes": self._tells_classes(), "seed": self.work.training.seed}
                    made.append(layers.LayerCompressor(model, inputs, **how))
                began = time.monotonic()
                state, found = made[0].compressed(price), {"goal": price, "source": source.number}
                tried[price] = self._add(LAYERS, *self.judge.judged(state), state, **found)
                self.clock.layer_seconds = time.monotonic() - began
            return tried[price].within

        before = [one.goal for one in self._of(LAYERS) if one.within and one.source < source.number]
        more = self.clock.allows_layers if self.trains and not source.number else self.clock.allows
        if before:
            layers.search_price(before[-1], within, more, near=True)
        else:
            layers.search_price(layers.first_price(self.work.source), within, more)

    def _train(self) -> None:
        """Rounds of training: first those that prune, then those that share values."""
        while True:
            for pruned in self._of(PRUNED)[-1:]:
                if pruned.within and not self.journal.plan:
                    self._compress_layers(pruned)
            plan = self.journal.plan or self._planned()
            if not plan:
                return
            if not self.journal.plan:
                self.journal.begin(plan)
            start = self.journal.state(self.journal.candidates[plan["source"]])
            how, steps = plan["how"], plan["steps"]
            seed = self.work.training.seed + plan["number"]
            learning = replace(self.work.training, steps=steps, seed=seed)
            self.clock.begin_round()
            try:
                state = (rounds.prune if how == PRUNED else rounds.share)(
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

    def _planned(self) -> dict[str, Any]:
        """The next round: its kind, number, steps and goal, and the candidate it goes on from; nothing at the end."""
        done = [one for one in self.journal.candidates if one.steps]
        steps = self.clock.next_steps([one.steps for one in done])
        if not steps:
            return {}
        found = {"number": len(done) + 1, "steps": steps}
        if self.clock.is_trial or len(done) < int(_PRUNING * self.clock.rounds):
            pruned = [(one.goal, self._has_gained(one)) for one in self._of(PRUNED) if one.goal != _TRIAL_DENSITY]
            goal = _TRIAL_DENSITY if self.clock.is_trial else next_goal(1.0, pruned, _FIRST_DENSITY)
            return {**found, "how": PRUNED, "goal": goal, "source": self._base().number}
        start, shared = self._start(), self._of(SHARED)
        if start.how != LAYERS:  # There was no time for one.
            return {}
        begin = rounds.bits_of(self.work, self.journal.state(start))
        first = _FIRST_BITS if start.within else 1.0
        goal = next_goal(begin, [(one.goal, one.within) for one in shared], first)
        return {**found, "how": SHARED, "goal": goal, "source": (shared[-1] if shared else start).number}

    def _of(self, how: str) -> list[Candidate]:
        return [one for one in self.journal.candidates if one.how == how]

    def _base(self) -> Candidate:
        """The candidate that is pruned further: the sparsest within the limit, else the full network."""
        return next((one for one in reversed(self._of(PRUNED)) if self._has_gained(one)), self.journal.candidates[0])

    def _has_gained(self, pruned: Candidate) -> bool:
        """Whether a pruned network is within the limit, and no denser one gave a smaller file, as far as is known."""
        made = [one.bytes for one in self._of(LAYERS) if one.within and one.source == pruned.number]
        before = [one.bytes for one in self.journal.candidates[: pruned.number] if one.within]
        return pruned.within and (not made or min(made) < min(before))

    def _start(self) -> Candidate:
        """The candidate whose values are trained: the smallest that is within the limit or that training can bring so.

        Where there is none, it is the smallest within the limit.
        """
        able = [one for one in self._of(LAYERS) if self.limit.loosened().allows(one.metric)]
        return min(able, key=lambda one: one.bytes, default=self.journal.smallest)

    def _result(self, dense_bytes: int) -> Compressed:
        chosen = self.journal.smallest
        state, as_it_is = self.journal.state(chosen), chosen.how == AS_IT_IS
        metric, test = self.limit.metric, None
        interval = self.judge.compared((state, as_it_is), (self.full, True), metric)
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
            dense_bytes,
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

    Raises `DataError`.
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
    order = np.random.default_rng([seed, count]).permutation(count)
    train, validation = (dataset.train.take(np.sort(some)) for some in (order[held:], order[:held]))
    return replace(dataset, train=train, validation=validation)
