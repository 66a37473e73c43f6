"""The one training loop, which knows nothing of pruning or quantization."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deepcomp import keras_private
from deepcomp.data import DataSet, Part
from deepcomp.errors import FormatError, RecipeError
from deepcomp.options import Training
from deepcomp.training import batches, distribute
from deepcomp.training.losses import Task
from deepcomp.training.parametrize import ParametrizedModel
from deepcomp.training.predict import predictor
from deepcomp.training.record import Record, progress_bar

Groups = list[tuple[keras.Optimizer, list[keras.Variable]]]

# Steps that run in one call of the compiled loop: enough to hide the call, few enough for a lively progress bar.
_CHUNK = 20
_LOSS_SCALE = 1024.0  # keeps gradients of float16 layers above the least float16 number


def train(
    network: ParametrizedModel,
    dataset: DataSet,
    training: Training,
    *,
    task: Task,
    centroid_learning_rate: float = 0.0,
    update: Callable[[int], None] | None = None,
    update_steps: Sequence[int] = (),
    record: Record | None = None,
) -> dict[str, list]:
    """Train `network` for `training.steps` batches; returns the history.

    Data set and task are those of `losses.task_of`. Free and masked weights move with the learning rate of `training`,
    centroids with `centroid_learning_rate`. `update(step)` is called at each of `update_steps`, before the step is
    taken. The history has `step`, `loss` and, for classes, `accuracy` (over the training batches since the entry
    before), and `validation_` measures, an entry every `evaluate_every` steps and one before the first and after the
    last step. With a checkpoint in `record`, state is saved every `save_every` steps and training begins where that
    state ends; the weights are then, bit for bit, those of an uninterrupted run. Raises `RecipeError`, `FormatError`.
    """
    record = record or Record()
    groups = optimizers(network, training, centroid_learning_rate)
    network.watch(groups)
    variables = [*network.variables, *(v for built, _ in groups for v in built.variables)]
    update_steps = set(update_steps) if update else set()
    if max(update_steps, default=0) > training.steps:
        raise RecipeError(
            f"Masks or clusters change until step {max(update_steps)}, but there are only {training.steps} steps: give "
            "an earlier end."
        )
    checkpoint = record.checkpoint
    saved = distribute.of_chief(checkpoint.load_state(), variables) if checkpoint is not None else None
    state = _restore(variables, *saved) if saved else _State()
    advance = stepper(network, groups, dataset, training, task, state.step)
    predict = predictor(network, scale=bool(dataset.scale))

    def arrive(step: int) -> None:
        """All that happens between two steps."""
        if step in update_steps:
            update(step)
        if step % training.evaluate_every == 0 or step == training.steps:
            state.record(task, predict, dataset)
            record.write_scalars(state.history)
        if checkpoint is not None and step and (step % training.save_every == 0 or step == training.steps):
            checkpoint.save_state([np.asarray(v.numpy()) for v in variables], state.progress())

    if state.step == 0:
        arrive(0)
    stops = _stops(training.steps, (_CHUNK, training.evaluate_every, training.save_every), update_steps)
    with progress_bar(
        record.label, state.step, training.steps, shown=training.verbose, transient=record.transient
    ) as bar:
        for stop in stops[np.searchsorted(stops, state.step, side="right") :]:
            count = int(stop) - state.step
            means = advance(count)
            bar.set_postfix({name: f"{mean:.4f}" for name, mean in means.items()}, refresh=False)
            bar.update(count)
            if not np.isfinite(means["loss"]):
                raise RecipeError(
                    f"{record.label}: the loss became {means['loss']} at step {stop}: lower the learning rate "
                    f"({training.learning_rate:g})."
                )
            state.add(count, means)
            arrive(int(stop))
    record.history = state.history
    return state.history


def optimizers(network: ParametrizedModel, training: Training, centroid_learning_rate: float = 0.0) -> Groups:
    """An optimizer for the weights and one for the centroids, each with what it trains. Centroids never decay."""
    built = []
    weights = network.weights, training.learning_rate, training.weight_decay
    for variables, rate, decay in (weights, (network.centroids, centroid_learning_rate, 0.0)):
        if variables:
            optimizer = keras.optimizers.get({"class_name": training.optimizer, "config": {}})
            optimizer.weight_decay = decay or None  # AdamW has a decay of its own, and 0 must mean 0
            optimizer.learning_rate = _rate(training.schedule, rate, training.steps)
            optimizer.build(variables)
            built.append((optimizer, variables))
    return built


def stepper(
    network: ParametrizedModel, groups: Groups, dataset: DataSet, training: Training, task: Task, start: int = 0
) -> Callable[[int], dict[str, float]]:
    """`advance(count)`: take `count` steps, from batch number `start` on; returns means over them, by name.

    `groups` are `optimizers`. Each worker of the strategy in scope takes its part of every batch.
    """
    scope = tf.distribute.get_strategy()
    share = 1 / scope.num_replicas_in_sync
    trained = [variable.value for _, variables in groups for variable in variables]
    carried = network.model.non_trainable_variables
    fixed = training.batch if isinstance(dataset.train, Part) else None
    teacher = task.teacher
    magnified = _LOSS_SCALE if _computes_in_float16(network.model) else 1.0
    order = {"batch": training.batch, "seed": training.seed, "start": start}
    changes = batches.Changes.of(training, dataset)

    def parts(context: tf.distribute.InputContext) -> tf.data.Dataset:
        shard = (context.input_pipeline_id, context.num_input_pipelines)
        return batches.batches(dataset.train, changes=changes, scale=dataset.scale, shard=shard, **order)

    @tf.autograph.experimental.do_not_convert
    def replica_step(example):
        count = fixed or tf.shape(tf.nest.flatten(example["x"])[0])[0]
        if teacher:
            example = {**example, "targets": teacher.targets(example["x"])}
        with tf.GradientTape() as tape:
            outputs, still, loss = network(
                example["x"], training=True, loss=lambda made: task.loss(network.model, example, made, count, share)
            )
            total = loss * magnified if magnified > 1 else loss
        gradients = tape.gradient(total, trained)
        if magnified > 1:
            gradients = [None if gradient is None else gradient / magnified for gradient in gradients]
        for optimizer, variables in groups:
            optimizer.apply(gradients[: len(variables)], variables)
            gradients = gradients[len(variables) :]
        network.constrain()
        right = task.right(example, outputs, count)
        return {"loss": loss, **({} if right is None else {"accuracy": right})}, still

    @tf.function
    def run(iterator, count):
        sums = {name: tf.zeros([]) for name in task.counted}
        for _ in tf.range(count):
            means, still = scope.run(replica_step, args=(next(iterator),))
            reduced = {name: scope.reduce(tf.distribute.ReduceOp.SUM, mean, axis=None) for name, mean in means.items()}
            sums = {name: total + tf.cast(reduced[name], tf.float32) for name, total in sums.items()}
            for index, value in still.items():
                carried[index].assign(distribute.one_value(scope, value, carried[index].dtype))
        return sums

    iterator = iter(scope.distribute_datasets_from_function(parts))

    def advance(count: int) -> dict[str, float]:
        return {name: float(total) / count for name, total in run(iterator, tf.constant(count)).items()}

    return advance


class _State:
    """How far training is, and what it has to show for it."""

    def __init__(self, step=0, history=None, sums=None, since=0):
        self.step, self.sums, self.since = step, sums or {}, since
        self.history: dict[str, list] = history or {}

    def progress(self) -> dict[str, Any]:
        return dict(vars(self))

    def add(self, count: int, means: Mapping[str, float]) -> None:
        """`count` steps taken, with these means."""
        self.step, self.since = self.step + count, self.since + count
        self.sums = {name: self.sums.get(name, 0.0) + count * mean for name, mean in means.items()}

    def record(self, task: Task, predict: Callable, dataset: DataSet) -> None:
        """An entry of the history; averages begin anew."""
        held = task.measured(predict, dataset.validation) if len(dataset.validation) else {}
        means = {name: self.sums[name] / self.since if self.since else None for name in task.counted}
        measures = {f"validation_{name}": held.get(name) for name in held or task.measures}
        for name, value in {"step": self.step, **means, **measures}.items():
            self.history.setdefault(name, []).append(value)
        self.sums, self.since = {}, 0


def _rate(schedule: str, rate: float, steps: int) -> Any:
    schedules = keras.optimizers.schedules
    if schedule == "cosine":
        return schedules.CosineDecay(rate, max(steps, 1))
    if schedule == "linear":
        return schedules.PolynomialDecay(rate, max(steps, 1), end_learning_rate=0.0)
    return rate


def _computes_in_float16(model: keras.Model) -> bool:
    return any(layer.compute_dtype == "float16" for layer in (model, *keras_private.all_layers(model)))


def _stops(steps: int, periods: Sequence[int], extra: set[int]) -> np.ndarray:
    """Where the compiled loop stops: every multiple of a period, every step in `extra`, the end."""
    stops = {steps, *(step for step in extra if 0 < step < steps)}
    for period in periods:
        stops.update(range(period, steps, period))
    return np.array(sorted(stops - {0}), dtype=np.int64)


def _restore(variables, arrays, progress) -> _State:
    shapes = [tuple(v.shape) for v in variables]
    if [a.shape for a in arrays] != shapes:
        raise FormatError("The state of the interrupted stage is of another network: run it again with --force.")
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
    try:
        return _State(**progress)
    except TypeError as error:
        raise FormatError(
            "The state of the interrupted stage is of another version: run it again with --force."
        ) from error
