"""Linear layers as sparse matrices, and the TensorFlow layers that multiply with them.

A convolution is a linear map of the flattened image, so it is ONE matrix, which repeats every weight once for
each position of the output where the weight meets the image. Of a pruned kernel it is sparse twice over.
Images are flattened channels last: pixel (y, x), channel c, has the number (y * width + x) * channels + c.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from deepcomp import keras_private, models
from deepcomp.errors import RecipeError, UnsupportedLayerError

DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
SUPPORTED = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D, *TRANSPOSED, *DEPTHWISE, *SEPARABLE)
# Keras's own layers whose kernels act within a loop, a product of two inputs, or an equation: they stay as they are.
_KEPT = (layers.RNN, layers.Bidirectional, layers.TimeDistributed, layers.EinsumDense)
_KEPT += (layers.MultiHeadAttention, layers.GroupQueryAttention)


@dataclass(frozen=True, eq=False)
class SparseMatrix:
    """The non-zero entries of a linear map `input_shape` -> `output_shape`, sorted by row, then column.

    `rows` and `columns`, `int64 (entries,)`, are positions in the flattened input and output; `values`,
    `(entries,)`, has the kernel's dtype; `weights`, `int64 (entries,)`, says which weight each entry is, as
    an index into the flattened kernel.
    """

    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns: the sizes of the flattened input and output."""
        return prod(self.input_shape), prod(self.output_shape)

    def to_dense(self) -> np.ndarray:
        """The whole matrix, zeros included, of `shape` and the dtype of `values`."""
        dense = np.zeros(self.shape, self.values.dtype)
        dense[self.rows, self.columns] = self.values
        return dense


def dense_matrix(kernel: np.ndarray) -> SparseMatrix:
    """The matrix of a dense layer: the non-zero entries of its kernel `(D_in, D_out)`."""
    rows, columns = np.nonzero(kernel)
    weights = np.flatnonzero(kernel)
    return SparseMatrix(rows, columns, kernel.ravel()[weights], weights, kernel.shape[:1], kernel.shape[1:])


def convolution_matrix(
    kernel: np.ndarray,
    input_shape: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: str = "valid",
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> SparseMatrix:
    """The matrix of a convolution in one, two or more dimensions, with TensorFlow's rules for padding.

    `kernel` is `(k_1, ..., k_d, D_in / groups, D_out)`; `input_shape` is `(n_1, ..., n_d, D_in)`, without the
    batch; `padding` is "valid", "same" or, in one dimension, "causal". The matrix has a row for each value of
    the input and a column for each value of the output; what padding adds is not part of it.
    Raises `RecipeError` if kernel, input, padding and groups do not fit each other.
    Source: the reference system's deployment of convolutions.
    """
    *sizes, inputs_per_group, channels_out = kernel.shape
    *image, channels_in = input_shape
    if len(sizes) != len(image) or inputs_per_group * groups != channels_in or channels_out % groups:
        received = f"A kernel of shape {kernel.shape} with groups={groups}"
        raise RecipeError(f"{received} does not fit an input of shape {tuple(input_shape)}.")
    steps, dilations = (np.broadcast_to(option, len(sizes)) for option in (strides, dilation))
    spans = (np.array(sizes) - 1) * dilations + 1
    outputs, before = _output_and_padding(np.array(image), spans, steps, padding)

    # For each offset in the kernel (a tap) and each output position: where in the image the two meet.
    taps = np.indices(sizes).reshape(len(sizes), -1).T
    places = np.indices(outputs).reshape(len(sizes), -1).T
    sources = places * steps + taps[:, None] * dilations - before
    inside = np.asarray(((sources >= 0) & (sources < image)).all(axis=-1))
    pixels = np.asarray(np.ravel_multi_index(tuple(np.moveaxis(sources, -1, 0)), image, mode="clip"))

    # Every non-zero weight makes an entry at each output position where its tap is inside the image.
    weights = np.flatnonzero(kernel)
    tap, channel, output = np.array(np.unravel_index(weights, (len(taps), inputs_per_group, channels_out)))
    channel += output // (channels_out // groups) * inputs_per_group
    chosen, place = np.nonzero(inside[tap])
    rows = pixels[tap[chosen], place] * channels_in + channel[chosen]
    columns = place * channels_out + output[chosen]

    order = np.argsort(rows * (len(places) * channels_out) + columns)
    rows, columns, weights = rows[order], columns[order], weights[chosen[order]]
    output_shape = (*outputs, channels_out)
    return SparseMatrix(rows, columns, kernel.ravel()[weights], weights, tuple(input_shape), output_shape)


def depthwise_matrix(
    kernel: np.ndarray,
    input_shape: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: str = "valid",
    dilation: int | Sequence[int] = 1,
) -> SparseMatrix:
    """The matrix of a depthwise convolution, which is a convolution with one group for each input channel.

    `kernel` is `(k_1, ..., k_d, D_in, multiplier)`; the other arguments and errors are those of `convolution_matrix`.
    """
    *sizes, channels, multiplier = kernel.shape
    grouped = kernel.reshape(*sizes, 1, channels * multiplier)
    geometry = {"strides": strides, "padding": padding, "dilation": dilation}
    return convolution_matrix(grouped, input_shape, **geometry, groups=channels)


def transposed_matrix(
    kernel: np.ndarray,
    input_shape: Sequence[int],
    output_shape: Sequence[int],
    *,
    strides: int | Sequence[int] = 1,
    padding: str = "valid",
    dilation: int | Sequence[int] = 1,
) -> SparseMatrix:
    """The matrix of a transposed convolution: that of the convolution from its output to its input, transposed.

    `kernel` is `(k_1, ..., k_d, D_out, D_in)`; the shapes are without the batch. Raises `RecipeError` as
    `convolution_matrix`, and where a convolution of the output does not have the shape of the input.
    """
    back = convolution_matrix(kernel, output_shape, strides=strides, padding=padding, dilation=dilation)
    if back.output_shape != tuple(input_shape):
        raise RecipeError(f"A kernel of shape {kernel.shape} does not lead from {input_shape} to {output_shape}.")
    order = np.lexsort((back.rows, back.columns))
    rows, columns, weights = back.columns[order], back.rows[order], back.weights[order]
    return SparseMatrix(rows, columns, back.values[order], weights, tuple(input_shape), tuple(output_shape))


class SparseLinear(layers.Layer):
    """A Keras layer that multiplies its inputs with a constant sparse matrix and adds a constant bias.

    Inputs are `(batch, ..., *matrix.input_shape)`, outputs `float32 (batch, ..., *matrix.output_shape)`.
    `bias`, `(D_out,)`, goes to the last axis, the channels; `activation` is anything that Keras takes as one.
    """

    def __init__(self, matrix: SparseMatrix, bias: np.ndarray | None = None, activation=None, name: str | None = None):
        super().__init__(name=name, dtype="float32")
        self.matrix = matrix
        self.activation = keras.activations.get(activation)
        rank = len(matrix.input_shape)
        axes = {axis - rank: size for axis, size in enumerate(matrix.input_shape)}
        self.input_spec = layers.InputSpec(min_ndim=rank + 1, axes=axes)
        self.supports_jit = False  # XLA cannot compile the sparse product.
        self.supports_masking = rank == 1  # A product along the last axis leaves a mask of the others valid.
        positions = np.stack([matrix.rows, matrix.columns], axis=1)
        self._matrix = tf.SparseTensor(positions, matrix.values.astype(np.float32), matrix.shape)
        self._bias = None if bias is None else tf.constant(bias, tf.float32)

    def call(self, inputs):
        rank = len(self.matrix.input_shape)
        flat = tf.reshape(tf.cast(inputs, tf.float32), (-1, self.matrix.shape[0]))
        # As fast as any arrangement of transposes and adjoint flags, and the plainest.
        products = tf.sparse.sparse_dense_matmul(flat, self._matrix)
        outer = tf.shape(inputs)[:-rank]
        outputs = tf.reshape(products, tf.concat([outer, self.matrix.output_shape], axis=0))
        if self._bias is not None:
            outputs += self._bias
        return self.activation(outputs)

    def compute_output_shape(self, input_shape):
        return (*input_shape[: -len(self.matrix.input_shape)], *self.matrix.output_shape)


def to_sparse(model: keras.Model) -> keras.Model:
    """Copy a Sequential or functional model, with every dense or convolution layer as a `SparseLinear`.

    Nested models, branches, shared layers and their names stay as they are; a separable convolution becomes
    two sparse layers in a row. Layers without a kernel are copied with their weights, and so are recurrent layers,
    attention and EinsumDense: `kept` names them. `model` is not changed; the copy is for inference and not compiled.
    Raises `UnsupportedLayerError` for a subclassed model, and for a layer with a kernel that is not in
    `SUPPORTED`, is quantized, has channels first, or convolves inputs of unknown sizes or of several.
    """
    if models.input_shape(model) is None:
        raise _unsupported(model, "is not a built Sequential or functional model")
    return models.clone(model, lambda layer: _sparse_layer(layer) if type(layer) in SUPPORTED else _copy(layer))


def kept(model: keras.Model) -> list[str]:
    """The names of the layers with kernels that `to_sparse` copies as they are."""
    found, inside = [], set()
    for layer in keras_private.all_layers(model):
        if isinstance(layer, _KEPT) and id(layer) not in inside:
            found.append(layer.name)
            inside |= {id(one) for one in keras_private.all_layers(layer)}
    return found


def check(model: keras.Model) -> None:
    """Raise `UnsupportedLayerError` if `to_sparse` cannot copy `model`, whatever its weights."""
    bare = models.clone(model)
    for variable in models.kernels(bare).values():
        variable.assign(np.zeros(variable.shape))
    to_sparse(bare)


def _output_and_padding(image, spans, strides, padding) -> tuple[list[int], np.ndarray]:
    """The sizes of the output, and those of the padding before the image, of a kernel that spans `spans`."""
    before = np.zeros_like(image)
    if padding == "valid":
        outputs = (image - spans) // strides + 1
    elif padding == "same":
        outputs = -(-image // strides)
        before = np.maximum((outputs - 1) * strides + spans - image, 0) // 2
    elif padding == "causal" and len(image) == 1:
        outputs = -(-image // strides)
        before = spans - 1
    else:
        raise RecipeError(f"padding={padding!r} in {len(image)}-D: use 'valid', 'same' or, in 1-D, 'causal'.")
    if (outputs < 1).any():
        raise RecipeError(f"A kernel that spans {spans} is larger than the input {image}: use padding='same'.")
    return outputs.tolist(), before


def _sparse_layer(layer) -> layers.Layer:
    """The sparse form of a layer whose class is in `SUPPORTED`."""
    if getattr(layer, "quantization_mode", None):
        raise _unsupported(layer, f"is quantized to {layer.quantization_mode}")
    finish = {"bias": None if layer.bias is None else layer.bias.numpy(), "activation": layer.activation}
    if isinstance(layer, layers.Dense):
        return SparseLinear(dense_matrix(layer.kernel.numpy()), **finish, name=layer.name)
    image = _input_shape(layer)
    geometry = {"strides": layer.strides, "padding": layer.padding, "dilation": layer.dilation_rate}
    if isinstance(layer, SEPARABLE):
        depthwise = depthwise_matrix(layer.depthwise_kernel.numpy(), image, **geometry)
        # The pointwise kernel acts at every position on its own, as a dense layer does.
        pointwise = dense_matrix(layer.pointwise_kernel.numpy().reshape(-1, layer.filters))
        first = SparseLinear(depthwise, name=f"{layer.name}_depthwise")
        second = SparseLinear(pointwise, **finish, name=f"{layer.name}_pointwise")
        return keras.Sequential([first, second], name=layer.name)
    if isinstance(layer, DEPTHWISE):
        matrix = depthwise_matrix(layer.kernel.numpy(), image, **geometry)
    elif isinstance(layer, TRANSPOSED):
        made = layer.compute_output_shape((None, *image))[1:]
        matrix = transposed_matrix(layer.kernel.numpy(), image, made, **geometry)
    else:
        matrix = convolution_matrix(layer.kernel.numpy(), image, **geometry, groups=layer.groups)
    return SparseLinear(matrix, **finish, name=layer.name)


def _input_shape(layer) -> tuple[int, ...]:
    """The one input shape, without the batch, with which a convolution layer was called."""
    if layer.data_format != "channels_last":
        raise _unsupported(layer, f"has data_format={layer.data_format!r}")
    shapes = {tuple(node.input_tensors[0].shape[1:]) for node in keras_private.calls_of(layer)}
    if len(shapes) != 1:
        raise _unsupported(layer, f"is called with {len(shapes)} different input shapes")
    shape = shapes.pop()
    if None in shape:
        raise _unsupported(layer, f"has an input of unknown size {shape}")
    return shape


def _copy(layer):
    """A layer, or an operation between layers, made anew from its configuration."""
    if isinstance(layer, keras.Model):
        raise _unsupported(layer, "is a subclassed model")
    is_kept = isinstance(layer, _KEPT) and type(layer).__module__.startswith("keras.")
    if not is_kept and any(weight.name.endswith("kernel") for weight in getattr(layer, "weights", ())):
        raise _unsupported(layer, "has a kernel but no sparse form")
    try:
        return type(layer).from_config(layer.get_config())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise _unsupported(layer, "cannot be copied through its get_config") from error


def _unsupported(layer, reason: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"Layer {layer.name!r} ({type(layer).__name__}) {reason}. Supported are Sequential and functional "
        "models of layers without a kernel and, with channels last and known input sizes, "
        f"{', '.join(kind.__name__ for kind in SUPPORTED)}; recurrent layers, attention, EinsumDense stay as they are."
    )
