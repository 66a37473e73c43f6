"""Compresses a network layer by layer without training: it goes by what a few hundred inputs do in it.

A layer's inputs say how far its weights can make up for each other; gradients of the network's outputs say how much a
change of each unit's output matters (the product of both approximates the curvature of the loss; Martens and Grosse,
2015). One price of a bit for all layers then shares out the bytes. Afterwards batch normalization and biases are
corrected by what the outputs of layers have become.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from deepcomp import keras_private, models
from deepcomp.data import Part, leaves, mapped
from deepcomp.second_order.rounding import MOST_INPUTS, Factor, factors_of, round_layer
from deepcomp.training.predict import are_probabilities, as_array, scores

_BATCH = 32  # examples that go through the network at once
_CERTAIN, _MOST_TEMPERATURE = 0.9, 16.0  # the mean probability of its first class that a network may have
_SQUARED = 8  # examples whose gradients are added up before they are squared
_GRADIENT_WORK, _LEAST_GRADIENTS = 2**37, 64  # multiply-adds of the examples that have gradients, and their number
_MOST_ROWS, _MOST_NUMBERS = 2**17, 2**26  # windows of a layer, and what they hold
_MOST_WORK = 2**36  # multiply-adds for the products of a layer's windows
_UNKNOWN = 64  # weights of a part of a kernel whose inputs are not known
_CORRECTED = 2**28  # bytes of the largest output of a layer that is corrected
_PRODUCTS = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)  # the layers whose inputs are known
Around = Callable[..., Any]


@dataclass(frozen=True)
class Curvature:
    """How the weights of a kernel bend the loss.

    groups: as in `rounding.round_layer`. importance: `float64 (units,)`, of a unit's squared error at every position.
    """

    groups: list[list[np.ndarray]]
    importance: np.ndarray

    @cached_property
    def factors(self) -> list[Factor]:
        """Those of the groups, as `rounding.round_layer` takes them."""
        return factors_of(self.groups)

    def saliencies(self, kernel: np.ndarray) -> np.ndarray:
        """What the loss would lose with each weight alone, `float64 (n, units)`."""
        diagonals = [np.concatenate([np.diag(part) for part in parts]) for parts in self.groups]
        powers = np.repeat(np.stack(diagonals, axis=1), self.importance.size // len(diagonals), axis=1)
        return 0.5 * self.importance * powers * kernel.reshape(powers.shape).astype(np.float64) ** 2


class Moved(NamedTuple):
    """What the weights of a kernel had become when they took their values, and how their squared errors bend the loss.

    Both have the kernel's shape and type; as `moved` and `bends` of `rounding.Rounded`.
    """

    latent: np.ndarray
    importance: np.ndarray


def measure(model: keras.Model, inputs: Any, *, classes: bool, seed: int = 0) -> dict[str, Curvature]:
    """The curvature of the loss by the kernels of a model, by name as in `models.kernels`.

    inputs: some hundred, as the model takes them. `classes`: whether the output is class scores, whose cross-entropy is
    the loss; else it is the squared error of the outputs, in parts of their variance.
    """
    kernels, rng = models.kernels(model), np.random.default_rng(seed)
    owners = {name: layer for name, variable in kernels.items() for layer in _layers(model) if _has(layer, variable)}
    sums: dict[str, list[list[np.ndarray]]] = {}
    rows, work = dict.fromkeys(owners, 0), dict.fromkeys(owners, 0)
    batches = -(-_count(inputs) // _BATCH)

    def watched(name: str) -> Around:
        def around(call: Callable, given: Any, *arguments, **options) -> Any:
            windows = _windows(owners[name], as_array(given), batches, rng)
            rows[name] += len(windows)
            found = [_products(one) for one in np.ascontiguousarray(windows.transpose(1, 0, 2))]
            if name in sums:
                for total, part in zip(chain(*sums[name]), chain(*found), strict=True):
                    total += part
            else:
                sums[name] = found
            output = call(given, *arguments, **options)
            work[name] = math.prod(output.shape[1:-1]) * math.prod(kernels[name].shape)
            return output

        return around

    outputs: list[list[np.ndarray]] = []
    with intercepted({layer: watched(name) for name, layer in owners.items()}):
        for piece in Part(inputs).pieces(_BATCH):
            outputs.append([as_array(one) for one in leaves(model(mapped(tf.constant, piece.x), training=False))])
    label = _Label(outputs, classes)
    most = max(_GRADIENT_WORK // max(1, sum(work.values())), _LEAST_GRADIENTS)
    some = Part(inputs).spread(most).x
    squares = _squared_gradients(model, [variable.value for variable in kernels.values()], some, label, rng)
    return {
        name: _curvature(square, [[part / rows[name] for part in parts] for parts in sums[name]])
        if name in sums
        else _unknown(square)
        for name, square in zip(kernels, squares, strict=True)
    }


def compress(model: keras.Model, curvatures: Mapping[str, Curvature], price: float) -> dict[str, Moved]:
    """Prune and share all kernels of a model in place, and return the rest of what is known of them, by name.

    A bit costs `price` of the loss, in nats. Weights that are zero stay zero.
    """
    found: dict[str, Moved] = {}
    for name, variable in models.kernels(model).items():
        kernel, known = np.asarray(variable.numpy()), curvatures[name]
        matrix = kernel.reshape(-1, known.importance.size)
        rounded = round_layer(matrix, known.groups, known.importance, price, factors=known.factors)
        made = np.concatenate(([0.0], rounded.centroids))[rounded.choices]
        variable.assign(made.reshape(kernel.shape).astype(kernel.dtype))
        latent = np.where(matrix == 0, 0, rounded.moved)  # Weights that were pruned before stay so.
        found[name] = Moved(*(one.reshape(kernel.shape).astype(kernel.dtype) for one in (latent, rounded.bends)))
    return found


def correct(model: keras.Model, source: keras.Model, inputs: Any) -> None:
    """Correct normalization and biases of a model, in place, by what layers put out in `source`, of the same layers.

    The moving mean and variance of a batch normalization change as those of its inputs have changed; a bias changes by
    what the mean of its layer's outputs has lost. Layer by layer: a later one sees the corrections of those before.
    """
    twins = dict(zip(_layers(model), _layers(source), strict=True))
    twins = {layer: twin for layer, twin in twins.items() if _is_correctable(layer)}
    wanted: dict[keras.layers.Layer, tuple[tf.Tensor, tf.Tensor]] = {}
    corrected: set[keras.layers.Layer] = set()

    def noted(layer: keras.layers.Layer) -> Around:
        def around(call: Callable, given: Any, *arguments, **options) -> Any:
            if layer not in wanted:
                wanted[layer] = _moments(layer, call, given, *arguments, **options)
            return call(given, *arguments, **options)

        return around

    def changed(layer: keras.layers.Layer, twin: keras.layers.Layer) -> Around:
        def around(call: Callable, given: Any, *arguments, **options) -> Any:
            if layer not in corrected and twin in wanted:  # a layer that is called again is corrected by its first call
                corrected.add(layer)
                mean, variance = _moments(layer, call, given, *arguments, **options)
                _correct(layer, mean - wanted[twin][0], variance, wanted[twin][1])
            return call(given, *arguments, **options)

        return around

    some = Part(inputs).sample(_corrected_count(source, inputs)).x
    with intercepted({twin: noted(twin) for twin in twins.values()}):
        source(mapped(tf.constant, some), training=False)
    with intercepted({layer: changed(layer, twin) for layer, twin in twins.items()}):
        model(mapped(tf.constant, some), training=False)


@contextlib.contextmanager
def intercepted(around: Mapping[keras.layers.Layer, Around]) -> Iterator[None]:
    """Run `around[layer](call, *arguments)` instead of each layer's `call`, while a model runs eagerly."""

    def wrapped(call: Callable, own: Around) -> Callable:
        return lambda *arguments, **options: own(call, *arguments, **options)

    for layer, own in around.items():
        layer.call = wrapped(layer.call, own)
    try:
        yield
    finally:
        for layer in around:
            del layer.call


def _layers(model: keras.Model) -> list[keras.layers.Layer]:
    return keras_private.all_layers(model)


def _count(inputs: Any) -> int:
    return len(leaves(inputs)[0])


def _has(layer: keras.layers.Layer, variable: keras.Variable) -> bool:
    """Whether a variable is the kernel of a layer whose inputs are known."""
    known = type(layer) in _PRODUCTS and getattr(layer, "data_format", "channels_last") == "channels_last"
    return known and layer.kernel is variable


def _windows(layer: keras.layers.Layer, given: np.ndarray, batches: int, rng: np.random.Generator) -> np.ndarray:
    """What the units of a layer see, `float32 (rows, groups, n)`: some windows where there are many."""
    if isinstance(layer, keras.layers.Dense):
        rows = given.reshape(-1, 1, given.shape[-1])
        return rows[_some(len(rows), rows.shape[2], 1, batches, rng)]
    image, size, strides, rates = given, layer.kernel_size, layer.strides, layer.dilation_rate
    if image.ndim == 3:
        image, size, strides, rates = image[:, None], (1, *size), (1, *strides[-1:]), (1, *rates[-1:])
    padding = layer.padding
    if padding == "causal":
        image, padding = np.pad(image, ((0, 0), (0, 0), ((size[1] - 1) * rates[1], 0), (0, 0))), "valid"
    channels = image.shape[-1]
    groups = channels if type(layer).__name__.startswith("Depthwise") else layer.groups
    taps = math.prod(size) * channels // groups
    positions = math.prod(layer.compute_output_shape(given.shape)[1:-1])
    # Twice as many images as are needed, so that windows are not all of a few of them.
    images = -(-2 * _limit(taps, groups, batches) // positions)
    if images < len(image):
        image = image[np.sort(rng.choice(len(image), images, replace=False))]
    windows = tf.image.extract_patches(
        image, [1, *size, 1], [1, *strides[-2:], 1], [1, *rates, 1], padding=padding.upper()
    ).numpy()
    windows = windows.reshape(-1, math.prod(size), groups, channels // groups)
    windows = windows[_some(len(windows), taps, groups, batches, rng)]
    return windows.transpose(0, 2, 1, 3).reshape(len(windows), groups, taps)


def _limit(taps: int, groups: int, batches: int) -> int:
    """The most windows of a batch that are looked at."""
    most = min(_MOST_ROWS, _MOST_NUMBERS // (groups * taps), _MOST_WORK // (groups * taps**2))
    return -(-max(2 * taps, most) // batches)


def _some(count: int, taps: int, groups: int, batches: int, rng: np.random.Generator) -> slice | np.ndarray:
    most = _limit(taps, groups, batches)
    return slice(None) if count <= most else np.sort(rng.choice(count, most, replace=False))


def _products(windows: np.ndarray) -> list[np.ndarray]:
    """The sums of the products of two inputs over windows `(rows, n)`, in parts: `float64`."""
    parts = np.array_split(windows.astype(np.float32, copy=False), -(-windows.shape[1] // MOST_INPUTS), axis=1)
    return [(part.T @ part).astype(np.float64) for part in parts]


def _curvature(square: np.ndarray, groups: list[list[np.ndarray]]) -> Curvature:
    """From the mean squared gradients of a kernel, and from its inputs."""
    taps = sum(map(len, groups[0]))
    square = square.reshape(taps, -1)
    sizes = np.array([sum(map(np.trace, parts)) for parts in groups])
    return Curvature(groups, square.sum(axis=0) / np.repeat(np.maximum(sizes, 1e-30), square.shape[1] // len(groups)))


def _unknown(square: np.ndarray) -> Curvature:
    """Where inputs are not known, weights cannot make up for each other."""
    square = square.reshape(-1, square.shape[-1])
    parts = [np.eye(min(_UNKNOWN, len(square) - first)) for first in range(0, len(square), _UNKNOWN)]
    return Curvature([parts], square.mean(axis=0))


class _Label:
    """Labels drawn as a network itself expects them, and its loss on them.

    The loss of a network that is sure of nearly all examples bends by a few doubtful ones alone. So class scores are
    divided by a temperature, as for a student of the network, at which it is less sure.
    """

    def __init__(self, outputs: Sequence[Sequence[np.ndarray]], classes: bool):
        self._classes, self._probabilities = classes, are_probabilities(outputs[0][0])
        self._spreads = [
            float(np.concatenate([one.ravel() for one in parts]).std()) or 1.0 for parts in zip(*outputs, strict=True)
        ]
        self._temperature = 1.0
        if classes:
            found = scores(tf.constant(np.concatenate([parts[0] for parts in outputs])), self._probabilities)
            while self._temperature < _MOST_TEMPERATURE and _certainty(found / self._temperature) > _CERTAIN:
                self._temperature *= 2

    def loss(self, outputs: Any, seed: tf.Tensor) -> tf.Tensor:
        """The loss of all examples; other labels are as far from the outputs as these vary."""
        found = [tf.cast(one, tf.float32) for one in leaves(outputs)]
        if self._classes:
            logits = scores(found[0], self._probabilities) / self._temperature
            drawn = tf.random.stateless_categorical(tf.stop_gradient(logits), 1, seed)[:, 0]
            return tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(drawn, logits))
        noise = [tf.random.stateless_normal(tf.shape(one), seed + number) for number, one in enumerate(found)]
        terms = zip(noise, found, self._spreads, strict=True)
        return tf.add_n([tf.reduce_sum(one * own) / spread for one, own, spread in terms])


def _certainty(logits: tf.Tensor) -> float:
    """The mean of the largest probabilities."""
    return float(tf.reduce_mean(tf.reduce_max(tf.nn.softmax(tf.cast(logits, tf.float32)), axis=-1)))


def _squared_gradients(
    model: keras.Model, variables: Sequence[Any], inputs: Any, label: _Label, rng: np.random.Generator
) -> list[np.ndarray]:
    """The mean squared gradients of the loss of one example."""

    @tf.function(reduce_retracing=True, autograph=False)
    def gradients(x, seed):
        with tf.GradientTape() as tape:
            tape.watch(variables)
            total = label.loss(model(x, training=False), seed)
        return tape.gradient(total, variables, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    sums = [np.zeros(variable.shape) for variable in variables]
    for piece in Part(inputs).pieces(_SQUARED):
        seed = rng.integers(0, 2**31, 2, dtype=np.int32)
        for total, gradient in zip(sums, gradients(mapped(tf.constant, piece.x), seed), strict=True):
            total += np.asarray(tf.convert_to_tensor(gradient), np.float64) ** 2
    return [total / _count(inputs) for total in sums]


def _is_correctable(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, keras.layers.BatchNormalization):
        return layer.trainable
    return layer.trainable and type(layer) in _PRODUCTS and layer.use_bias


def _moments(
    layer: keras.layers.Layer, call: Callable, given: Any, *arguments, **options
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance of each channel that a normalization takes, or that another layer makes before activation."""
    if isinstance(layer, keras.layers.BatchNormalization):
        values, axis = given, layer.axis % len(given.shape)
    else:
        activation, layer.activation = layer.activation, keras.activations.linear
        try:
            values = call(given, *arguments, **options)
        finally:
            layer.activation = activation
        axis = len(values.shape) - 1
    mean, variance = tf.nn.moments(tf.cast(values, tf.float64), [i for i in range(len(values.shape)) if i != axis])
    return mean, variance


def _correct(layer: keras.layers.Layer, lost: tf.Tensor, variance: tf.Tensor, before: tf.Tensor) -> None:
    if isinstance(layer, keras.layers.BatchNormalization):
        ratio = (variance + layer.epsilon) / (before + layer.epsilon)
        layer.moving_mean.assign(layer.moving_mean + tf.cast(lost, layer.moving_mean.dtype))
        layer.moving_variance.assign(layer.moving_variance * tf.cast(ratio, layer.moving_variance.dtype))
    else:
        layer.bias.assign(layer.bias - tf.cast(lost, layer.bias.dtype))


def _corrected_count(model: keras.Model, inputs: Any) -> int:
    """How many inputs can be in memory at once in the layers that are corrected."""
    largest = [1]

    def around(call: Callable, given: Any, *arguments, **options) -> Any:
        outputs = call(given, *arguments, **options)
        largest[0] = max(largest[0], 8 * math.prod(outputs.shape))
        return outputs

    with intercepted({layer: around for layer in _layers(model) if _is_correctable(layer)}):
        model(mapped(tf.constant, Part(inputs).sample(1).x), training=False)
    return max(1, min(_count(inputs), _CORRECTED // largest[0]))
