"""Predictions of a network, batch by batch, and how many of them are right."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deepcomp.data import Part, Stream, leaves, mapped
from deepcomp.training import batches
from deepcomp.training.parametrize import ParametrizedModel

_BATCH = 500
_CHECKED = 256  # examples whose outputs must differ


def predictor(
    forward: ParametrizedModel | keras.Model, scale: bool | None = None, *, compiled: bool = True
) -> Callable[[Any], Any]:
    """A function from inputs, NumPy arrays `(N, ...)` in any structure that the network takes, to its outputs.

    uint8 inputs are divided by 255 if `scale` says so; None leaves it to `batches.scales_inputs`. Outputs are NumPy
    arrays in the structure that the network gives. Not `compiled` it is better for one small batch: to trace a graph
    takes longer than to run that. The function raises `DataError` for inputs that do not fit.
    """
    model = forward.model if isinstance(forward, ParametrizedModel) else forward
    scale = not batches.scales_inputs(model) if scale is None else scale

    def run(x):
        return forward(x)[0] if isinstance(forward, ParametrizedModel) else forward(x, training=False)

    if compiled:
        run = tf.function(run, reduce_retracing=True, autograph=False)

    def predict(inputs: Any) -> Any:
        found, whole = [], Part(batches.inputs_for(model, mapped(np.asarray, inputs)))
        # Pieces of one size, where that can be, need one graph.
        size = -(-len(whole) // max(1, -(-len(whole) // _BATCH)))
        for piece in whole.pieces(max(1, size)):
            found.append(run(mapped(tf.constant, batches.scaled(piece.x, scale))))
        arrays = [
            np.concatenate([as_array(leaf) for leaf in pieces]) for pieces in zip(*map(leaves, found), strict=True)
        ]
        return rebuilt(found[0], iter(arrays))

    return predict


def rebuilt(structure: Any, arrays: Any) -> Any:
    """The structure of outputs, filled with these arrays in their order."""
    return mapped(lambda _: next(arrays), structure)


def as_array(tensor: Any) -> np.ndarray:
    """A tensor as a NumPy array; half-precision numbers become float32."""
    return np.asarray(tf.cast(tensor, tf.float32) if tensor.dtype in (tf.float16, tf.bfloat16) else tensor)


def evaluate(forward: ParametrizedModel | keras.Model, images: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of `images` whose largest output is at their label."""
    return accuracy(predictor(forward), images, labels)


def accuracy(predict: Callable[[np.ndarray], np.ndarray], images: np.ndarray, labels: np.ndarray) -> float:
    """The fraction of `images` for which the largest number that `predict` gives is at their label."""
    return float(np.mean(predict(images).argmax(axis=1) == labels))


def is_constant(predict: Callable[[Any], Any], part: Part | Stream) -> bool:
    """Whether outputs are the same for the first examples, more than one."""
    sample = part.sample(_CHECKED)
    return len(sample) > 1 and all(bool(np.all(one == one[:1])) for one in leaves(predict(sample.x)))


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether outputs are those of a softmax; asked of the numbers, since the layer may be anything."""
    return bool(np.all(outputs >= 0) and np.allclose(outputs.sum(axis=-1), 1, atol=1e-3))


def scores(outputs: tf.Tensor, probabilities: bool) -> tf.Tensor:
    """Outputs as logits, which they are unless they are `probabilities`."""
    return tf.math.log(outputs + keras.config.epsilon()) if probabilities else outputs
