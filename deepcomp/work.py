"""A call of the library as it begins and ends: a copy of the model, its data and task, and checks of the result."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deepcomp import models, tables
from deepcomp.data import DataSet, Part, data_set, mapped
from deepcomp.dcz import conversion
from deepcomp.errors import DeepcompWarning, RecipeError, printable
from deepcomp.options import Training
from deepcomp.training import batches, loop, losses
from deepcomp.training.losses import Task
from deepcomp.training.parametrize import ParametrizedModel
from deepcomp.training.predict import is_constant, predictor
from deepcomp.training.record import Record

_MEASURED = 2_000  # training examples that a network is measured on where none are held out


@dataclass
class Work:
    """A copy of a model, what it learns from and with which task; no task where there is no data."""

    source: keras.Model
    model: keras.Model
    dataset: DataSet
    task: Task | None
    training: Training
    record: Record

    def train(
        self,
        network: ParametrizedModel,
        training: Training,
        *,
        centroid_learning_rate: float = 0.0,
        update: Callable[[int], None] | None = None,
        update_steps: Sequence[int] = (),
        write_back: bool = True,
    ) -> dict[str, list]:
        """Train as `loop.train`, or without data do what is to be done at step 0; returns the history."""
        history: dict[str, list] = {}
        if self.task is not None:
            history = loop.train(
                network,
                self.dataset,
                training,
                task=self.task,
                centroid_learning_rate=centroid_learning_rate,
                update=update,
                update_steps=update_steps,
                record=self.record,
            )
        elif update is not None and 0 in update_steps:
            update(0)
        if write_back:
            network.write_back()
        return history

    def required_task(self, what: str) -> Task:
        """The task, for `what` cannot do without. Raises `RecipeError` where there is no data."""
        if self.task is None:
            raise RecipeError(f"{what} need data: with data=None leave them out.")
        return self.task

    def check_alive(self, network: ParametrizedModel, emptied: Sequence[str]) -> None:
        """Raise `RecipeError` for a network that puts out the same for every example, warn of layers without weights.

        `emptied` are the layers in which no weight is left.
        """
        if not emptied:
            return
        names = ", ".join(map(repr, emptied))
        if self.task is not None and self._is_constant(network) and not self._is_constant(self.source):
            raise RecipeError(
                f"No weight is left in {names}, and the network puts out the same for every input: prune less, or give "
                "these layers goals of their own with layers={...}."
            )
        warnings.warn(
            f"No weight is left in {names}: prune less, or give goals with layers={{...}}.", DeepcompWarning, 4
        )

    def check_result(self) -> None:
        """Raise `RecipeError` for weights that are not finite or a constant output, naming a layer."""
        _check_finite(self.model, "The result is not usable")
        if self.task is not None and self._is_constant(self.model) and not self._is_constant(self.source):
            kernels = models.kernel_values(self.model)
            least = min(kernels, key=lambda name: np.count_nonzero(kernels[name]) / kernels[name].size)
            raise RecipeError(
                f"The network puts out the same for every input: its layers are dead, most likely {least!r}, which has "
                f"{np.count_nonzero(kernels[least]):,} weights left. Prune less, or train with a lower learning rate."
            )

    def measures(self, model: keras.Model) -> dict[str, float]:
        """What the task measures of a model, on the examples that are held out, or on some of training."""
        if self.task is None:
            return {}
        return self.task.measured(predictor(model, scale=bool(self.dataset.scale)), self._measured_part()[1])

    def report(self) -> str:
        """A table of layers, and the measures before and after, for people."""
        lines = [tables.layer_table(self.record.layers)]
        for name, after in self.record.after.items():
            where, part = self._measured_part()
            lines.append(f"{name} {self.record.before[name]:.4f} -> {after:.4f} on {len(part):,} {where} examples")
        return "\n".join(lines)

    def remove_unused_neurons(self) -> None:
        """Leave out hidden neurons whose outputs no kernel uses, where no constraint or regularizer would be lost."""
        if not any(v.constraint is not None or v.regularizer is not None for v in self.model.variables):
            self.model, _ = conversion.without_unused_neurons(self.model)

    def _measured_part(self) -> tuple[str, Part]:
        if len(self.dataset.validation):
            return "validation", self.dataset.validation
        if len(self.dataset.test):
            return "test", self.dataset.test
        return "training", self.dataset.train.sample(_MEASURED)

    def _is_constant(self, network: ParametrizedModel | keras.Model) -> bool:
        """Whether outputs are the same for all of some examples."""
        return is_constant(predictor(network, scale=bool(self.dataset.scale), compiled=False), self.dataset.train)


@contextlib.contextmanager
def prepared(model: keras.Model, data: Any, training: Training, record: Record | None, label: str) -> Iterator[Work]:
    """Copy a model and prepare data and task; afterwards check the result, measure it and say what came out."""
    require_model(model)
    record = record or Record()
    record.label = label
    dataset = data_set(data, seed=training.seed)
    known = not (isinstance(dataset.train, Part) and dataset.train.x is None)
    if not known and training.steps:
        raise RecipeError(f"data=None goes with steps=0, not steps={training.steps}: give data to fine-tune on.")
    _check_finite(model, f"The network {model.name!r} cannot be compressed")
    inputs = None
    if known:
        some = batches.fitted(dataset.some(8), model, training.scale)
        inputs = mapped(tf.constant, batches.scaled(some.x_train, some.scale))
    copy = models.clone(model, inputs=inputs)
    if training.distillation.weight and training.distillation.teacher is None:
        training = replace(training, distillation=replace(training.distillation, teacher=model))
    with contextlib.nullcontext() if training.freeze else models.unfrozen(copy):
        task = None
        if known:
            task, dataset = losses.task_of(copy, model, dataset, training)
        work = Work(model, copy, dataset, task, training, record)
        lines = [batches.scaling_line(dataset), models.frozen_line(copy) if training.freeze else ""]
        lines += [f"loss: {task.description}"] if task else []
        if training.verbose:
            print(*map(printable, filter(None, lines)), sep="\n", flush=True)
        record.before = work.measures(model)
        yield work
        work.check_result()
        losses.as_source(work.model, model, training)
        record.after = work.measures(work.model)
        record.layers = tables.layers(models.kernel_values(work.model), tables.sizes(models.kernel_values(model)))
        if training.verbose:
            print(work.report(), flush=True)


def require_model(model: Any) -> None:
    """Raise `RecipeError` for something else than a Keras model."""
    if not isinstance(model, keras.Model):
        raise RecipeError(f"model is {type(model).__name__}: give a keras.Model; deepcomp.load is for .dcz files.")


def _check_finite(model: keras.Model, what: str) -> None:
    for variable in model.weights:
        values = np.asarray(variable.numpy())
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            bad = values[~np.isfinite(values)]
            raise RecipeError(f"{what}: {variable.path!r} has {bad.size:,} values that are {bad[0]}; has it diverged?")
