"""The one training loop, which knows nothing of pruning or quantization; prediction and evaluation."""

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from deepcomp import data, models
from deepcomp.data import ImageSet
from deepcomp.errors import FormatError, RecipeError, StageError
from deepcomp.training.parametrize import Network

OPTIMIZERS = ("adam", "adamw", "nadam", "rmsprop", "sgd", "lion")
SCHEDULES = ("constant", "linear", "cosine")

# Steps that run in one call of the compiled loop: enough to hide the call, few enough for a lively progress bar.
_CHUNK = 20
_PREDICTION_BATCH = 500


class Checkpoint(Protocol):
    """Where `train` keeps its state, so that an interrupted run goes on: see `checkpoint.Stage`."""

    def load_state(self) -> tuple[list[np.ndarray], dict] | None: ...
    def save_state(self, arrays: Sequence[np.ndarray], progress: dict) -> None: ...


def make_deterministic(seed: int) -> None:
    """Seed Keras, NumPy and Python, and ask TensorFlow for operations that give the same bits in every run."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()


def start() -> tf.distribute.Strategy:
    """Start TensorFlow: MultiWorkerMirrored where `TF_CONFIG` describes several workers, else its one device.

    Each worker uses one device. Call it before anything else uses TensorFlow. Raises `RecipeError` for a malformed
    `TF_CONFIG`.
    """
    config = os.environ.get("TF_CONFIG")
    if config:
        try:
            cluster, task = json.loads(config)["cluster"], json.loads(config)["task"]
            workers = sum(map(len, cluster.values()))
            valid = set(cluster) <= {"chief", "worker"} and 0 <= task["index"] < len(cluster[task["type"]])
        except (ValueError, KeyError, TypeError, AttributeError):
            valid = False
        if not valid:
            raise RecipeError(f"TF_CONFIG does not describe a cluster of workers and a task in it: {config}")
        if workers > 1:
            tf.config.set_visible_devices(tf.config.list_physical_devices("GPU")[:1], "GPU")
            return tf.distribute.MultiWorkerMirroredStrategy()
    tf.config.list_logical_devices()
    return tf.distribute.get_strategy()


def agreed(done: bool) -> bool:
    """Whether the stage is `done`, on which all workers must agree. Raises `StageError` on all if they do not."""
    scope = tf.distribute.get_strategy()
    if scope.num_replicas_in_sync > 1:
        count = int(_sum_of_workers(scope, np.array([done], np.int32))[0])
        if count % scope.num_replicas_in_sync:
            raise StageError(
                f"{count} of {scope.num_replicas_in_sync} workers have finished this stage: copy its folder from one "
                "that has to the others, or use --force on all."
            )
    return done


def use_full_precision() -> None:
    """Have GPUs multiply in float32, where they would round to TensorFloat-32."""
    tf.config.experimental.enable_tensor_float_32_execution(False)


def train(
    network: Network,
    images: ImageSet,
    *,
    steps: int,
    batch: int = 100,
    seed: int = 0,
    shift: int = 0,
    optimizer: str = "adam",
    learning_rate: float = 1e-3,
    centroid_learning_rate: float = 1e-4,
    schedule: str = "cosine",
    weight_decay: float = 0.0,
    label_smoothing: float = 0.0,
    teacher: keras.Model | None = None,
    distillation: float = 0.0,
    temperature: float = 4.0,
    evaluate_every: int = 250,
    update: Callable[[int], None] | None = None,
    update_steps: Sequence[int] = (),
    checkpoint: Checkpoint | None = None,
    save_every: int = 500,
    label: str = "training",
    tensorboard: Path | None = None,
) -> dict[str, list]:
    """Train `network` for `steps` batches with softmax cross-entropy; returns the history.

    Free and masked weights move with `learning_rate`, centroids with `centroid_learning_rate`; both follow `schedule`
    over `steps`. `weight_decay` times the learning rate is the part of each free, masked or latent weight that goes at
    every step (Loshchilov and Hutter, ICLR 2019); 0 leaves it to the optimizer. `label_smoothing` is the part of a
    label that is spread over all classes (Szegedy et al., CVPR 2016). `distillation` is the part of the loss that goes
    by what the `teacher` puts out instead of labels, both networks' outputs softened by `temperature` (Hinton, Vinyals
    and Dean, 2015). `update(step)` is called at each of `update_steps`, before the step is taken. The history has
    `step`, `loss` and `accuracy` (over the training batches since the entry before) and `validation_accuracy`, an entry
    every `evaluate_every` steps and one before the first and after the last step.
    With a `checkpoint`, state is saved every `save_every` steps and training begins where that state ends; the
    weights are then, bit for bit, those of an uninterrupted run. Raises `RecipeError`, `FormatError`.
    """
    if min(steps, shift) < 0 or min(batch, evaluate_every, save_every) < 1:
        raise RecipeError(
            f"Training needs steps and shift >= 0 and batch, evaluate_every and save_every >= 1, not steps={steps}, "
            f"shift={shift}, batch={batch}, evaluate_every={evaluate_every}, save_every={save_every}."
        )
    if not 0 <= label_smoothing < 1:
        raise RecipeError(f"label_smoothing={label_smoothing}: it must be from 0 to less than 1.")
    if not (0 <= distillation <= 1 and 0 < temperature < np.inf) or (distillation and teacher is None):
        raise RecipeError(
            f"distillation={distillation} at temperature={temperature}: the first must be from 0 to 1, the second "
            "finite and above 0, and there must be a teacher to learn from."
        )
    rates = (learning_rate, centroid_learning_rate)
    groups = optimizers(network, optimizer, *rates, schedule, steps, weight_decay=weight_decay)
    network.watch(groups)
    variables = [*network.variables, *(v for built, _ in groups for v in built.variables)]
    update_steps = set(update_steps) if update else set()
    if max(update_steps, default=0) > steps:
        raise RecipeError(
            f"Masks change until step {max(update_steps)}, but there are only {steps} steps: shorten the ramp."
        )
    saved = _of_chief(checkpoint.load_state(), variables) if checkpoint is not None else None
    state = _restore(variables, *saved) if saved else _State()
    order = {"batch": batch, "seed": seed, "start": state.step, "shift": shift}
    learning = {"label_smoothing": label_smoothing, "distillation": distillation, "temperature": temperature}
    advance = stepper(network, groups, images, **order, **learning, teacher=teacher if distillation else None)
    predict = predictor(network)
    writer = _scalar_writer(tensorboard)

    def arrive(step: int) -> None:
        """All that happens between two steps."""
        if step in update_steps:
            update(step)
        if step % evaluate_every == 0 or step == steps:
            state.record(predict, images)
            _write_scalars(writer, state.history)
        if checkpoint is not None and step and (step % save_every == 0 or step == steps):
            checkpoint.save_state([np.asarray(v.numpy()) for v in variables], state.progress())

    if state.step == 0:
        arrive(0)
    stops = _stops(steps, (_CHUNK, evaluate_every, save_every), update_steps)
    with progress_bar(label, state.step, steps) as bar:
        for stop in stops[np.searchsorted(stops, state.step, side="right") :]:
            count = int(stop) - state.step
            loss, accuracy = advance(count)
            bar.set_postfix(loss=f"{loss:.4f}", accuracy=f"{accuracy:.4f}", refresh=False)
            bar.update(count)
            if not np.isfinite(loss):
                raise RecipeError(f"{label}: the loss became {loss} at step {stop}: lower the learning rate.")
            state.add(count, loss, accuracy)
            arrive(int(stop))
    return state.history


def optimizers(
    network: Network,
    name: str,
    learning_rate: float,
    centroid_learning_rate: float,
    schedule: str,
    steps: int,
    *,
    weight_decay: float = 0.0,
) -> list[tuple[keras.Optimizer, list[keras.Variable]]]:
    """An optimizer for the weights and one for the centroids, each with what it trains; arguments as for `train`."""
    if name not in OPTIMIZERS or schedule not in SCHEDULES:
        raise RecipeError(
            f"No optimizer {name!r} with schedule {schedule!r}: optimizers are {', '.join(OPTIMIZERS)}; "
            f"schedules are {', '.join(SCHEDULES)}."
        )
    built = []
    groups = (network.weights, learning_rate, weight_decay), (network.centroids, centroid_learning_rate, 0.0)
    for variables, rate, decay in groups:
        if not min(rate, decay) >= 0:
            raise RecipeError(f"A learning rate and a weight decay must be 0 or more, not {rate} and {decay}.")
        if variables:
            optimizer = keras.optimizers.get({"class_name": name, "config": {}})
            if decay:
                optimizer.weight_decay = decay
            optimizer.learning_rate = _rate(schedule, rate, steps)
            optimizer.build(variables)
            built.append((optimizer, variables))
    return built


def stepper(
    network: Network,
    groups: Sequence[tuple[keras.Optimizer, list[keras.Variable]]],
    images: ImageSet,
    *,
    batch: int,
    seed: int = 0,
    start: int = 0,
    shift: int = 0,
    label_smoothing: float = 0.0,
    teacher: keras.Model | None = None,
    distillation: float = 0.0,
    temperature: float = 4.0,
) -> Callable[[int], tuple[float, float]]:
    """`advance(count)`: take `count` steps, from batch number `start` on; returns mean loss and accuracy of them.

    `groups` are `optimizers`. Each worker of the strategy in scope takes its part of every batch.
    """
    scope = tf.distribute.get_strategy()
    logits = not are_probabilities(predictor(network)(images.x_train[:64]))
    trained = [variable.value for _, variables in groups for variable in variables]
    carried = network.model.non_trainable_variables
    guided = teacher is not None
    certain = guided and are_probabilities(predictor(teacher)(images.x_train[:64]))
    options = {"batch": batch, "seed": seed, "start": start, "shift": shift, "shape": fixed_shape(network.model)}

    def batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
        shard = (context.input_pipeline_id, context.num_input_pipelines)
        return data.batches(images.x_train, images.y_train, shard=shard, **options)

    def replica_step(x, y):
        if guided:
            soft = tf.nn.softmax(scores(teacher(x, training=False), certain) / temperature)
        with tf.GradientTape() as tape:
            outputs, still, penalty = network(x, training=True)
            labels = tf.one_hot(y, outputs.shape[-1])
            losses = keras.losses.categorical_crossentropy(
                labels, outputs, from_logits=logits, label_smoothing=label_smoothing
            )
            if guided:
                own = tf.nn.softmax_cross_entropy_with_logits(soft, scores(outputs, not logits) / temperature)
                losses = (1 - distillation) * losses + distillation * temperature**2 * own
            loss = tf.reduce_sum(losses) / batch + penalty / scope.num_replicas_in_sync
        gradients = tape.gradient(loss, trained)
        for optimizer, variables in groups:
            optimizer.apply(gradients[: len(variables)], variables)
            gradients = gradients[len(variables) :]
        right = tf.equal(tf.argmax(outputs, axis=1, output_type=y.dtype), y)
        return loss, tf.reduce_sum(tf.cast(right, tf.float32)) / batch, still

    @tf.function
    def run(iterator, count):
        loss, accuracy = tf.zeros([]), tf.zeros([])
        for _ in tf.range(count):
            one_loss, one_accuracy, still = scope.run(replica_step, args=next(iterator))
            loss += scope.reduce(tf.distribute.ReduceOp.SUM, one_loss, axis=None)
            accuracy += scope.reduce(tf.distribute.ReduceOp.SUM, one_accuracy, axis=None)
            for index, value in still.items():
                carried[index].assign(_one_value(scope, value, carried[index].dtype))
        return loss, accuracy

    iterator = iter(scope.distribute_datasets_from_function(batches))

    def advance(count: int) -> tuple[float, float]:
        loss, accuracy = run(iterator, tf.constant(count))
        return float(loss) / count, float(accuracy) / count

    return advance


def joined(before: Mapping[str, list], after: Mapping[str, list]) -> dict[str, list]:
    """One history out of that of a training and that of another after it, whose steps are counted on.

    The entry before the other's first step is left out: it is that after the last step.
    """
    last = before["step"][-1]
    steps = {"step": [last + step for step in after["step"]]}
    return {key: before[key] + values[1:] for key, values in {**after, **steps}.items()}


def predictor(forward: Network | keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """A function from images, uint8 or float `(N, H, W, C)`, to outputs, float32 `(N, classes)`, batch by batch."""
    shape = fixed_shape(forward.model if isinstance(forward, Network) else forward)

    @tf.function(reduce_retracing=True)
    def run(x):
        return forward(x)[0] if isinstance(forward, Network) else forward(x, training=False)

    def predict(images: np.ndarray) -> np.ndarray:
        outputs = []
        for piece in np.split(images, range(_PREDICTION_BATCH, len(images), _PREDICTION_BATCH)):
            x = data.to_float(piece)
            outputs.append(run(tf.constant(x if shape is None else x.reshape(len(x), *shape))).numpy())
        return np.concatenate(outputs)

    return predict


def evaluate(forward: Network | keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of `images` whose largest output is at their label."""
    return accuracy(predictor(forward), images, labels)


class _State:
    """How far training is, and what it has to show for it."""

    def __init__(self, step=0, history=None, loss=0.0, accuracy=0.0, since=0):
        self.step, self.loss, self.accuracy, self.since = step, loss, accuracy, since
        self.history = history or {"step": [], "loss": [], "accuracy": [], "validation_accuracy": []}

    def progress(self) -> dict:
        return dict(vars(self))

    def add(self, count: int, loss: float, accuracy: float) -> None:
        """`count` steps taken, with these means."""
        self.step, self.since = self.step + count, self.since + count
        self.loss, self.accuracy = self.loss + count * loss, self.accuracy + count * accuracy

    def record(self, predict, images: ImageSet) -> None:
        """An entry of the history; averages begin anew."""
        held = len(images.x_validation)
        right = accuracy(predict, images.x_validation, images.y_validation) if held else None
        self.history["step"].append(self.step)
        self.history["loss"].append(self.loss / self.since if self.since else None)
        self.history["accuracy"].append(self.accuracy / self.since if self.since else None)
        self.history["validation_accuracy"].append(right)
        self.loss, self.accuracy, self.since = 0.0, 0.0, 0


def _rate(schedule: str, rate: float, steps: int):
    schedules = keras.optimizers.schedules
    if schedule == "cosine":
        return schedules.CosineDecay(rate, max(steps, 1))
    if schedule == "linear":
        return schedules.PolynomialDecay(rate, max(steps, 1), end_learning_rate=0.0)
    return rate


def _one_value(scope, value, dtype: str):
    """One value for all replicas: statistics are averaged; random seeds are the same on each."""
    if "float" in dtype:
        return scope.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None)
    return scope.experimental_local_results(value)[0]


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether a network ends in a softmax; asked of its outputs, since the layer may be anything."""
    return bool(np.all(outputs >= 0) and np.allclose(outputs.sum(axis=1), 1, atol=1e-3))


def scores(outputs: tf.Tensor, probabilities: bool) -> tf.Tensor:
    """Outputs as logits, which they are unless they are `probabilities`."""
    return tf.math.log(outputs + keras.config.epsilon()) if probabilities else outputs


def fixed_shape(model: keras.Model) -> tuple[int, ...] | None:
    """The shape that one image must be given, or None where the network takes it as it is."""
    shape = models.input_shape(model)
    return None if shape is None or None in shape else shape


def _stops(steps: int, periods: Sequence[int], extra: set[int]) -> np.ndarray:
    """Where the compiled loop comes up for air: every multiple of a period, every step in `extra`, the end."""
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
    return _State(**progress)


def _of_chief(saved, variables):
    """What the first worker saved, on all workers: one that was killed sooner, or lost its folder, takes part again."""
    scope = tf.distribute.get_strategy()
    if scope.num_replicas_in_sync == 1:
        return saved
    resolver = scope.cluster_resolver
    first = "chief" if "chief" in resolver.cluster_spec().jobs else "worker"
    mine = saved if (resolver.task_type, resolver.task_id) == (first, 0) else None
    text = np.frombuffer(json.dumps(mine[1]).encode(), np.uint8).astype(np.int32) if mine else np.zeros(0, np.int32)
    length = int(_sum_of_workers(scope, np.array([text.size], np.int32))[0])
    if not length:
        return None
    text = _sum_of_workers(scope, np.resize(text, length) if mine else np.zeros(length, np.int32))
    arrays = []
    for number, variable in enumerate(variables):
        dtype = np.dtype(variable.dtype)
        carrier = np.float32 if dtype == np.float32 else np.int64
        array = mine[0][number].astype(carrier) if mine else np.zeros(variable.shape, carrier)
        arrays.append(_sum_of_workers(scope, array).astype(dtype))
    return arrays, json.loads(text.astype(np.uint8).tobytes())


def _sum_of_workers(scope: tf.distribute.Strategy, array: np.ndarray) -> np.ndarray:
    """The sum of an array over all workers, on each of them."""
    shared = scope.run(lambda: tf.constant(array))
    return np.asarray(scope.reduce(tf.distribute.ReduceOp.SUM, shared, axis=None).numpy())


def accuracy(predict: Callable[[np.ndarray], np.ndarray], images: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of `images` for which the largest number that `predict` gives is at their label."""
    return float(np.mean(predict(images).argmax(axis=1) == labels))


def _scalar_writer(folder: Path | None):
    if folder is None:
        return None
    if importlib.util.find_spec("tensorboard") is None:
        raise RecipeError("Scalars for TensorBoard need the package tensorboard: pip install tensorboard.")
    return tf.summary.create_file_writer(str(folder))


def _write_scalars(writer, history: dict[str, list]) -> None:
    if writer is None:
        return
    with writer.as_default():
        for name, values in history.items():
            if name != "step" and values[-1] is not None:
                tf.summary.scalar(name, values[-1], step=history["step"][-1])
    writer.flush()


def progress_bar(label: str, start: int, steps: int, unit: str = "step") -> tqdm:
    """A progress bar for long work; in a log file, a line now and then."""
    terminal = sys.stderr.isatty()
    return tqdm(
        initial=start,
        total=steps,
        desc=f"{label:9}",
        unit=unit,
        mininterval=0.1 if terminal else 15,
        dynamic_ncols=terminal,
        ncols=None if terminal else 100,
    )
