"""Starting TensorFlow, and training on several workers, each with one device."""

import json
import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deepcomp.errors import RecipeError, StageError


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


def one_value(scope: tf.distribute.Strategy, value: Any, dtype: str) -> Any:
    """One value for all replicas: statistics are averaged; random seeds are the same on each."""
    if "float" in dtype:
        return scope.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None)
    return scope.experimental_local_results(value)[0]


def of_chief(saved: tuple[list[np.ndarray], dict] | None, variables: Sequence[keras.Variable]) -> Any:
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
