"""What a network learns: its loss and measures, as compiled, as given, or as outputs and labels imply.

| outputs | labels | loss |
|---|---|---|
| of a softmax, or linear, two or more | class numbers, or one 1 among zeros | categorical cross-entropy |
| sigmoid | zeros and ones, one for each output | binary cross-entropy |
| linear | numbers, one for each output | mean squared error |

Where this is not certain, the loss is asked for in one line.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deepcomp import keras_private
from deepcomp.data import DataSet, Part, Stream, leaves, mapped
from deepcomp.errors import DataError, RecipeError, shape_text
from deepcomp.options import Distillation, Training
from deepcomp.training import batches
from deepcomp.training.predict import are_probabilities, as_array, rebuilt, scores

SPARSE, CATEGORICAL = "sparse_categorical_crossentropy", "categorical_crossentropy"
BINARY, SQUARED = "binary_crossentropy", "mean_squared_error"
_SOFTMAX, _SIGMOID, _VALUES = "softmax", "sigmoid", "values"  # what outputs are, by which a teacher teaches
_KINDS = {
    **dict.fromkeys((SPARSE, CATEGORICAL, "categorical_focal_crossentropy"), _SOFTMAX),
    **dict.fromkeys((BINARY, "binary_focal_crossentropy"), _SIGMOID),
    **dict.fromkeys((SQUARED, "mean_absolute_error", "huber", "huber_loss", "log_cosh", "mse", "mae"), _VALUES),
}
_SAMPLE = 256
_MUCH_LESS, _MUCH_MORE = 0.8, 0.2  # parts of a loss; an accuracy more


class Teacher:
    """Another network whose outputs stand for a part of the labels; all are softened (Hinton et al., 2015)."""

    def __init__(self, options: Distillation, kinds: Sequence[str], inputs: Any):
        self.model, self.weight, self.temperature = options.teacher, options.weight, options.temperature
        self.kinds = kinds
        self.probabilities = [are_probabilities(as_array(one)) for one in leaves(self.model(inputs, training=False))]

    def targets(self, x: Any) -> list[tf.Tensor]:
        """What the teacher says of inputs, one tensor for each output."""
        outputs = leaves(self.model(x, training=False))
        return [self._soft(*one) for one in zip(outputs, self.kinds, self.probabilities, strict=True)]

    def _soft(self, outputs: tf.Tensor, kind: str, probabilities: bool) -> tf.Tensor:
        if kind == _SOFTMAX:
            return tf.nn.softmax(scores(outputs, probabilities) / self.temperature)
        return tf.cast(outputs, tf.float32)

    def divergence(self, targets: tf.Tensor, outputs: tf.Tensor, kind: str, probabilities: bool) -> tf.Tensor:
        """How far outputs are from the targets: one number for each distribution or value."""
        if kind == _SOFTMAX:
            own = scores(outputs, probabilities) / self.temperature
            return self.temperature**2 * tf.nn.softmax_cross_entropy_with_logits(targets, own)
        if kind == _SIGMOID:
            return keras.losses.binary_crossentropy(targets, outputs)
        return keras.losses.mean_squared_error(targets, outputs)


class Classification:
    """One output of class scores `(N, classes)` and class numbers `(N,)`: softmax cross-entropy, judged by accuracy."""

    counted = ("loss", "accuracy")  # means over training batches
    measures = ("accuracy",)

    def __init__(
        self, probabilities: bool, classes: int, label_smoothing: float, teacher: Distillation | None, inputs: Any
    ):
        self.probabilities, self.classes, self.label_smoothing = probabilities, classes, label_smoothing
        self.teacher = Teacher(teacher, [_SOFTMAX], inputs) if teacher else None
        self.description = f"cross-entropy of {classes} classes, from {'probabilities' if probabilities else 'logits'}"

    def loss(self, model: keras.Model, example: Mapping[str, Any], outputs: Any, count: Any, share: float) -> tf.Tensor:
        """The loss of a batch of `count` examples, of which this worker has the part `share`, in a graph."""
        (outputs,) = leaves(outputs)
        outputs = tf.cast(outputs, tf.float32) if outputs.dtype in (tf.float16, tf.bfloat16) else outputs
        labels = tf.one_hot(example["y"], outputs.shape[-1], dtype=outputs.dtype)
        losses = keras.losses.categorical_crossentropy(
            labels, outputs, from_logits=not self.probabilities, label_smoothing=self.label_smoothing
        )
        if self.teacher:
            own = self.teacher.divergence(example["targets"][0], outputs, _SOFTMAX, self.probabilities)
            losses = (1 - self.teacher.weight) * losses + self.teacher.weight * own
        if "w" in example:
            losses *= tf.cast(example["w"], losses.dtype)
        return tf.reduce_sum(losses) / tf.cast(count, losses.dtype) + share * _penalty(model, losses.dtype)

    def right(self, example: Mapping[str, Any], outputs: Any, count: Any) -> tf.Tensor:
        """The fraction of the batch whose largest output is at its label, in a graph."""
        (outputs,) = leaves(outputs)
        hits = tf.equal(tf.argmax(outputs, axis=1, output_type=example["y"].dtype), example["y"])
        return tf.reduce_sum(tf.cast(hits, tf.float32)) / tf.cast(count, tf.float32)

    def measured(self, predict: Callable, part: Part | Stream) -> dict[str, float]:
        """The fraction of all examples whose largest output is at their label."""
        hits, count = 0, 0
        for piece in [part] if isinstance(part, Part) else part.pieces(1):
            (outputs,) = leaves(predict(piece.x))
            hits, count = hits + int(np.sum(outputs.argmax(axis=1) == piece.y)), count + len(piece)
        return {"accuracy": hits / count}


class Compiled:
    """A Keras loss of any outputs and labels, with the metrics of the compiled model."""

    counted = ("loss",)

    def __init__(self, model: keras.Model, names: Sequence[str | None], teacher: Distillation | None, inputs: Any):
        self.model = model
        self.description = ", ".join(name or "the model's own loss" for name in names)
        self.teacher = None
        if teacher:
            kinds = [_KINDS.get(name or "") for name in names]
            if None in kinds:
                raise RecipeError(
                    f"distillation_weight={teacher.weight:g}: what a teacher says is not known for the loss "
                    f"{names[kinds.index(None)]!r}; it is for {', '.join(_KINDS)}."
                )
            self.teacher = Teacher(teacher, kinds, inputs)
        self.names, self.probabilities = (
            names,
            [are_probabilities(as_array(o)) for o in leaves(model(inputs, training=False))],
        )

    @property
    def measures(self) -> tuple[str, ...]:
        """What `measured` gives, first what the network is judged by."""
        metrics = keras_private.compiled_metrics(self.model)
        names = list(metrics.result()) if metrics is not None and metrics.built else []
        return (*sorted(names, key=lambda name: "acc" not in name), "loss")

    def loss(self, model: keras.Model, example: Mapping[str, Any], outputs: Any, count: Any, share: float) -> tf.Tensor:
        """The loss of a batch, of which this worker has the part `share`, in a graph."""
        loss = tf.cast(self._total(model, example, outputs), tf.float32)
        if self.teacher:
            penalty, taught = _penalty(model, tf.float32), 0.0
            for one in zip(example["targets"], leaves(outputs), self.teacher.kinds, self.probabilities, strict=True):
                taught += tf.reduce_mean(tf.cast(self.teacher.divergence(*one), tf.float32))
            loss += self.teacher.weight * (taught - (loss - penalty))
        return share * loss

    def right(self, example: Mapping[str, Any], outputs: Any, count: Any) -> None:
        """Nothing is counted while training."""

    def _total(self, model: keras.Model, example: Mapping[str, Any], outputs: Any) -> tf.Tensor:
        return model.compute_loss(x=example["x"], y=example.get("y"), y_pred=outputs, sample_weight=example.get("w"))

    def measured(self, predict: Callable, part: Part | Stream) -> dict[str, float]:
        """The compiled metrics and the mean loss over all examples, by name."""
        metrics = keras_private.compiled_metrics(self.model)
        if metrics is not None:
            metrics.reset_state()
        total, count = 0.0, 0
        for piece in part.pieces(_SAMPLE):
            outputs = mapped(tf.constant, predict(piece.x))
            y, w = mapped(tf.constant, piece.y), mapped(tf.constant, piece.w)
            total += len(piece) * float(self._total(self.model, {"x": piece.x, "y": y, "w": w}, outputs))
            count += len(piece)
            if metrics is not None:
                metrics.update_state(y, outputs, w)
        found = {} if metrics is None else {name: float(value) for name, value in metrics.result().items()}
        found = {name: found[name] for name in sorted(found, key=lambda name: "acc" not in name)}
        return {**found, "loss": total / count}


Task = Classification | Compiled


def task_of(model: keras.Model, source: keras.Model, dataset: DataSet, training: Training) -> tuple[Task, DataSet]:
    """What `model`, a copy of `source`, learns from a data set, and that as the network and its loss take it.

    The loss is `training.loss`, or that which `source` was compiled with, or one that is certain. A copy whose loss is
    not softmax cross-entropy is compiled. Where nobody says whether uint8 inputs are scaled, the loss of some examples
    does. Raises `RecipeError`, `DataError`.
    """
    fitted = batches.fitted(dataset, source, training.scale)
    undecided = fitted.scale and training.scale is None and dataset.scale is None
    if undecided and _learned_unscaled(model, source, fitted, training):
        fitted = replace(fitted, scale=False)
    return _task_of(model, source, fitted, training)


def _learned_unscaled(model: keras.Model, source: keras.Model, dataset: DataSet, training: Training) -> bool:
    """Whether a network was trained on uint8 inputs as they are: its loss is then much less than where they are scaled.

    Of a network that was not trained, it is larger. Larger inputs alone make a classifier surer, and the loss less
    where it is right: so it must be right more often, too. Of other losses than those of classes and of values nothing
    is known.
    """
    task, dataset = _task_of(model, source, dataset.some(_SAMPLE), replace(training, distillation=Distillation()))
    classes = isinstance(task, Classification)
    if not classes and any(_KINDS.get(name or "") != _VALUES for name in task.names):
        return False
    known = {name: mapped(tf.constant, getattr(dataset.train, name)) for name in ("y", "w")}
    known = {name: values for name, values in known.items() if values is not None}

    def found(scale: bool) -> tuple[float, float]:
        x = mapped(tf.constant, batches.scaled(dataset.x_train, scale))
        example, outputs = {"x": x, **known}, model(x, training=False)
        loss = float(task.loss(model, example, outputs, len(dataset.train), 1.0))
        return loss, float(task.right(example, outputs, len(dataset.train))) if classes else 0.0

    (scaled, right), (unscaled, more) = found(scale=True), found(scale=False)
    return unscaled < _MUCH_LESS * scaled and (more > right + _MUCH_MORE or not classes)


def _task_of(model: keras.Model, source: keras.Model, dataset: DataSet, training: Training) -> tuple[Task, DataSet]:
    """As `task_of`, of inputs that are as the network takes them."""
    dataset = _with_targets(model, dataset, training)
    sample = dataset.train.sample(_SAMPLE)
    inputs = mapped(tf.constant, batches.scaled(sample.x, dataset.scale))
    try:
        outputs = leaves(model(inputs, training=False))
    except (ValueError, TypeError, tf.errors.OpError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"The network {model.name!r} does not take this data: {reason}") from error
    outputs = [as_array(one) for one in outputs]
    teacher = training.distillation if training.distillation.weight else None
    arguments = _arguments(source, training)
    if arguments is None:
        arguments = {"loss": _implied(model, outputs, sample), "metrics": training.metrics}
    probabilities = len(outputs) == 1 and are_probabilities(outputs[0])
    found = _as_classification(arguments, outputs, sample, probabilities)
    if found is not None:
        smoothing = training.label_smoothing or found
        dataset = _with_labels(dataset, lambda y: class_numbers(y, outputs[0].shape[-1]))
        _check_classes(model, dataset, outputs[0].shape[-1])
        task: Task = Classification(probabilities, outputs[0].shape[-1], smoothing, teacher, inputs)
    else:
        names = [_loss_name(loss) for loss in _per_output(arguments["loss"], len(outputs))]
        if training.label_smoothing:
            raise RecipeError(f"label_smoothing={training.label_smoothing:g} is for classes: give a loss that has it.")
        kinds = [_KINDS.get(name or "") for name in names]
        if arguments.get("metrics") is None and kinds in ([_SOFTMAX], [_SIGMOID]):
            arguments = {**arguments, "metrics": ["accuracy"]}
        _compile(model, source, arguments)
        dataset = _with_labels(dataset, lambda y: _labels_for(model, names, outputs, y))
        task = Compiled(model, names, teacher, inputs)
    if training.class_weight is not None:
        dataset = _with_class_weights(dataset, training.class_weight)
    return task, dataset


def _arguments(source: keras.Model, training: Training) -> dict[str, Any] | None:
    """What to compile a network with: the loss that was given, or that of the source."""
    compiled = keras_private.compile_arguments(source)
    if training.loss is not None:
        try:
            keras.tree.map_structure(keras.losses.get, training.loss)
        except (ValueError, TypeError) as error:
            raise RecipeError(f"loss={training.loss!r}: {str(error).splitlines()[0]}") from error
        return {"loss": training.loss, "metrics": training.metrics}
    if compiled is not None:
        return compiled if training.metrics is None else {**compiled, "metrics": training.metrics}
    own = type(source).compute_loss is not keras.Model.compute_loss
    return {"loss": None, "metrics": training.metrics} if own and getattr(source, "compiled", False) else None


def _compile(model: keras.Model, source: keras.Model, arguments: Mapping[str, Any]) -> None:
    """Compile a copy as its source was; metrics are made anew, so that those of the source do not change."""

    def again(metric: Any) -> Any:
        return type(metric).from_config(metric.get_config()) if isinstance(metric, keras.Metric) else metric

    changed = {
        name: keras.tree.map_structure(again, value) if "metrics" in name and value is not None else value
        for name, value in arguments.items()
    }
    model.compile(**changed)


def as_source(model: keras.Model, source: keras.Model, training: Training) -> None:
    """Compile a copy as its source was, or with the loss that was given, if there is one."""
    arguments = _arguments(source, training)
    if arguments is not None and not getattr(model, "compiled", False):
        _compile(model, source, arguments)


def class_numbers(y: Any, classes: int) -> Any:
    """Labels as class numbers `(N,)`, from `(N,)`, `(N, 1)` or one-hot `(N, classes)`; NumPy or TensorFlow."""
    (y,) = leaves(y)
    if tf.is_tensor(y):
        if y.shape.rank == 2:
            y = tf.argmax(y, axis=-1) if y.shape[-1] == classes and classes > 1 else y[:, 0]
        return tf.cast(y, tf.int32)
    if y.ndim == 2:
        y = y.argmax(axis=-1) if y.shape[-1] == classes and classes > 1 else y[:, 0]
    return y.astype(np.int32)


def _penalty(model: keras.Model, dtype: Any) -> tf.Tensor:
    """The model's own losses: regularizers and what its layers add."""
    losses = model.losses
    return tf.add_n([tf.cast(tf.reduce_sum(loss), dtype) for loss in losses]) if losses else tf.zeros([], dtype)


def has_targets(model: keras.Model, dataset: DataSet, training: Training) -> bool:
    """Whether there is something to learn: labels, or inputs to put out again, or a loss that may need no labels."""
    sample = dataset.train.sample(1)
    own = training.loss is not None or type(model).compute_loss is not keras.Model.compute_loss
    return sample.y is not None or own or _puts_out_inputs(model, sample)


def _with_targets(model: keras.Model, dataset: DataSet, training: Training) -> DataSet:
    """A data set without labels whose inputs are what the network is to put out, if they are of that shape."""
    sample = dataset.train.sample(1)
    if sample.y is not None:
        return dataset
    if not _puts_out_inputs(model, sample):
        if keras_private.compile_arguments(model) is None and _arguments(model, training) is None:
            raise DataError(
                f"The data has no labels, and the network {model.name!r} does not put out its inputs again."
            )
        return dataset
    return dataset.with_parts(lambda part: replace(part, y=batches.scaled(part.x, dataset.scale)))


def _puts_out_inputs(model: keras.Model, sample: Part) -> bool:
    """Whether the outputs of a network have the shapes of its inputs."""
    tensors, found = getattr(model, "outputs", None), leaves(sample.x)
    return (
        bool(tensors)
        and len(tensors) == len(found)
        and all(
            len(t.shape) == leaf.ndim and all(a in (None, b) for a, b in zip(t.shape[1:], leaf.shape[1:], strict=True))
            for t, leaf in zip(tensors, found, strict=True)
        )
    )


def _with_labels(dataset: DataSet, change: Callable[[Any], Any]) -> DataSet:
    return dataset.with_parts(lambda part: replace(part, y=None if part.y is None else change(part.y)))


def _with_class_weights(dataset: DataSet, weights: Mapping[int, float]) -> DataSet:
    if isinstance(dataset.train, Stream):
        raise RecipeError("class_weight is for arrays: a stream gives (x, y, weights) itself.")

    def weighted(part: Part) -> Part:
        if part.y is None:
            return part
        (y,) = leaves(part.y)
        numbers = y if y.ndim == 1 else y.argmax(axis=-1) if y.shape[-1] > 1 else y[:, 0]
        own = np.array([weights.get(int(number), 1.0) for number in numbers], np.float32)
        return replace(part, w=own if part.w is None else leaves(part.w)[0] * own)

    return replace(dataset, train=weighted(dataset.train))


def _check_classes(model: keras.Model, dataset: DataSet, outputs: int) -> None:
    classes = dataset.classes
    if classes is not None and classes > outputs:
        raise DataError(f"The data has {classes} classes but the network {model.name!r} gives outputs of {outputs}.")


def _as_classification(
    arguments: Mapping[str, Any], outputs: Sequence[np.ndarray], sample: Part, probabilities: bool
) -> float | None:
    """The label smoothing of a loss that is plain softmax cross-entropy of one output, or None for another loss."""
    (loss, *more) = _per_output(arguments["loss"], len(outputs))
    plain_metrics = all(
        isinstance(one, str) and one in ("accuracy", "acc")
        for one in leaves(arguments.get("metrics"))
        if one is not None
    ) and not arguments.get("weighted_metrics")
    if more or len(outputs) != 1 or outputs[0].ndim != 2 or outputs[0].shape[-1] < 2 or len(leaves(sample.y)) != 1:
        return None
    if not plain_metrics or arguments.get("loss_weights") is not None or _loss_name(loss) not in (SPARSE, CATEGORICAL):
        return None
    (y,) = leaves(sample.y)
    numbers = y.dtype.kind in "iu" and (y.ndim == 1 or y.shape[1:] == (1,))
    if not numbers and not (y.shape == outputs[0].shape and _one_hot(y)):
        return None
    if isinstance(loss, keras.losses.Loss):
        config = loss.get_config()
        usual = config.get("axis", -1) == -1 and config.get("ignore_class") is None
        if not usual or loss.reduction not in ("sum_over_batch_size", "mean") or config["from_logits"] == probabilities:
            return None
        return float(config.get("label_smoothing", 0.0))
    # A name says probabilities, unless it is our own choice.
    return 0.0 if probabilities or isinstance(loss, _Implied) else None


class _Implied(str):
    """The name of a loss that nobody gave: of logits, where outputs are no probabilities."""


def _implied(model: keras.Model, outputs: Sequence[np.ndarray], sample: Part) -> Any:
    """The loss of each output that is certain from outputs and labels. Raises `RecipeError`, `DataError`."""
    labels = leaves(sample.y)
    tensors = getattr(model, "outputs", None) or [None] * len(outputs)
    names = keras_private.output_names(model) or [f"output {number}" for number in range(len(outputs))]
    if len(labels) != len(outputs):
        raise DataError(
            f"The data has {len(labels)} arrays of labels but the network {model.name!r} gives {len(outputs)} outputs."
        )
    activations = _activations(tensors)
    found = [_implied_one(*one) for one in zip(activations, outputs, labels, names, strict=True)]
    return found[0] if len(found) == 1 else found


def _implied_one(activation: str | None, outputs: np.ndarray, labels: np.ndarray, name: str) -> Any:
    whole = labels.dtype.kind in "iub"
    units = outputs.shape[-1]
    inside = bool(np.all((outputs >= 0) & (outputs <= 1)))
    probabilities = units > 1 and are_probabilities(outputs)
    sigmoid = activation == "sigmoid" or (activation is None and inside and not probabilities)
    linear = not probabilities and not sigmoid and activation in (None, "linear")
    each = labels.size == outputs.size
    binary = bool(np.isin(labels, (0, 1)).all())
    numbers = whole and units > 1 and labels.size * units == outputs.size
    if probabilities or linear:
        if numbers:
            return _Implied(SPARSE) if probabilities else _logits(SPARSE, outputs)
        if each and units > 1 and _one_hot(labels.reshape(outputs.shape)):
            return _Implied(CATEGORICAL) if probabilities else _logits(CATEGORICAL, outputs)
    if each and sigmoid and binary:
        return BINARY
    if each and not probabilities and not sigmoid and not binary:
        return SQUARED
    asked = "the labels are no class numbers, zeros and ones, or values for each output"
    if sigmoid and numbers:
        asked = "sigmoids are no softmax, and labels are class numbers"
    elif each and (sigmoid or binary):
        asked = "more than one loss fits"
    raise RecipeError(
        f"The loss of {name!r} is not certain from outputs of {shape_text(outputs.shape[1:])} and labels of "
        f"{shape_text(labels.shape[1:]) or 'one number'} ({labels.dtype}): {asked}. Compile the model with a loss, or "
        "give Training(loss=...)."
    )


def _logits(name: str, outputs: np.ndarray) -> Any:
    """The loss of logits: a name where `Classification` takes it, else a loss object of Keras."""
    if outputs.ndim == 2:
        return _Implied(name)
    kinds = {SPARSE: keras.losses.SparseCategoricalCrossentropy, CATEGORICAL: keras.losses.CategoricalCrossentropy}
    return kinds[name](from_logits=True)


def _activations(tensors: Sequence[Any]) -> list[str | None]:
    """The name of the activation that each output comes out of, or None where that cannot be told."""
    found: list[str | None] = []
    for tensor in tensors:
        layer = keras_private.origin(tensor)
        while isinstance(layer, keras.Model) and getattr(layer, "outputs", None):
            layer = keras_private.origin(layer.outputs[0])
        if isinstance(layer, keras.layers.Softmax):
            found.append("softmax")
        else:
            activation = getattr(layer, "activation", None)
            found.append(getattr(activation, "__name__", None) if activation is not None else None)
    return found


def _one_hot(y: np.ndarray) -> bool:
    return bool(y.ndim >= 2 and y.shape[-1] > 1 and np.isin(y, (0, 1)).all() and (y.sum(axis=-1) == 1).all())


def _per_output(loss: Any, count: int) -> list[Any]:
    found = (
        list(loss.values()) if isinstance(loss, Mapping) else list(loss) if isinstance(loss, list | tuple) else [loss]
    )
    return found if len(found) == count else (found * count)[:count]


def _loss_name(loss: Any) -> str | None:
    """The name of one of Keras's losses, by its function; None for another."""
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(str(loss))
        except ValueError:
            return None
    function = getattr(loss, "fn", loss)
    return getattr(function, "__name__", None)


def _labels_for(model: keras.Model, names: Sequence[str | None], outputs: Sequence[np.ndarray], y: Any) -> Any:
    """Labels in the forms that the losses take: class numbers become one-hot, and one-hot class numbers, by need."""
    changed = [_label_for(*one) for one in zip(names, outputs, leaves(y), strict=False)]
    if len(changed) != len(leaves(y)) or len(changed) != len(outputs):
        return y
    structure = keras_private.outputs_structure(model)
    if isinstance(structure, Mapping) and not isinstance(y, Mapping):
        return dict(zip(structure, changed, strict=True))
    return rebuilt(y, iter(changed))


def _label_for(name: str | None, outputs: np.ndarray, y: Any) -> Any:
    units, tensor = outputs.shape[-1], tf.is_tensor(y)
    rank = len(y.shape)
    whole = y.dtype.is_integer if tensor else y.dtype.kind in "iu"
    column = rank == outputs.ndim and y.shape[-1] == 1
    if name == SPARSE and not whole and rank == outputs.ndim and y.shape[-1] == units and units > 1:
        return tf.argmax(y, axis=-1) if tensor else y.argmax(axis=-1)
    one_hot = name in (CATEGORICAL, BINARY, "categorical_focal_crossentropy", "binary_focal_crossentropy")
    if one_hot and whole and units > 1 and (column or rank == outputs.ndim - 1):
        numbers = y[..., 0] if column else y
        if tensor:
            return tf.one_hot(numbers, units)
        if numbers.size and numbers.max() >= units:
            raise DataError(f"The data has {numbers.max() + 1} classes but an output has {units} numbers.")
        return np.eye(units, dtype=np.float32)[numbers]
    if name is not None and name != SPARSE and units == 1 and rank == outputs.ndim - 1:
        return y[..., None]
    return y
