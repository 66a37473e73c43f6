"""The kinds of layers that a `.dcz` file can hold: the options, the weights and the output shape of each.

Reading, writing, converting and running all follow one table, `KINDS`. docs/format.md describes how options are
written.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deepcomp.dcz import shapes
from deepcomp.dcz.codes import ANY_SIZE, FLAG, POSITIVE, SHAPE, SIZE, Choice, Real, Row, Shape, Some, Whole

MAX_LAYERS = 65_535
_MAX_AXIS = 8

REQUIRED = object()


@dataclass(frozen=True)
class Option:
    """How an option is written, and its default: a value, a function of the options before it, or `REQUIRED`."""

    code: Any
    default: Any = REQUIRED

    def default_in(self, options: Mapping[str, Any]) -> Any:
        """The default, given the options before it."""
        return self.default(options) if callable(self.default) else self.default


@dataclass(frozen=True)
class Kind:
    """A kind of layer.

    `plan(options, *input_shapes)` gives the output shape and the shapes of the weights, by name; shapes are without
    the batch. A layer takes one input, or two and more if it `merges`. It `keeps` if it changes neither the shape nor
    the meaning of a position.
    """

    plan: Callable[..., tuple[Shape, dict[str, Shape]]]
    options: Mapping[str, Option] = field(default_factory=dict)
    merges: bool = False
    keeps: bool = False


# The table of kinds. Both orders, of kinds and of options, are part of the format: add at the end only.

ACTIVATIONS = (
    *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "sigmoid", "hard_sigmoid", "tanh", "softmax"),
    *("softplus", "softsign", "silu", "hard_silu", "gelu", "exponential", "mish"),
)
DTYPES = (
    *("float32", "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "bfloat16", "float64"),
)
KINDS_BEFORE_3 = 32  # that files of version 1 and 2 know
LAYERS = Whole(1, MAX_LAYERS)


def _windows(rank: int, *paddings: str) -> dict[str, Option]:
    ones = Option(Row(SIZE, rank), (1,) * rank)
    return {
        "kernel_size": Option(Row(SIZE, rank)),
        "strides": ones,
        "padding": Option(Choice(("valid", "same", *paddings)), "valid"),
        "dilation_rate": ones,
    }


def _pools(rank: int) -> Kind:
    pool_size = Option(Row(SIZE, rank), (2,) * rank)
    strides = Option(Row(SIZE, rank), lambda options: options["pool_size"])
    return Kind(shapes.pooling, {"pool_size": pool_size, "strides": strides, "padding": _PADDING})


def _transposed(rank: int) -> Kind:
    windows = _windows(rank) | {"output_padding": Option(Row(ANY_SIZE, rank), None)}
    return Kind(shapes.transposed_convolution, _FILTERS | windows | _OUTPUT)


def _adaptive(rank: int) -> Kind:
    return Kind(shapes.adaptive_pooling(rank + 1), {"output_size": Option(Row(SIZE, rank))})


_PADDING = Option(Choice(("valid", "same")), "valid")
_FILTERS = {"filters": Option(SIZE)}
_GROUPS = {"groups": Option(SIZE, 1)}
_MULTIPLIER = {"depth_multiplier": Option(SIZE, 1)}
_OUTPUT = {"activation": Option(Choice(ACTIVATIONS), "linear"), "use_bias": Option(FLAG, True)}
_KEEPDIMS = {"keepdims": Option(FLAG, False)}
_MARGIN = Row(ANY_SIZE, 2)
_AXIS = Whole(1, _MAX_AXIS)
_AXES = Some(_AXIS)
_AFFINE = {"center": Option(FLAG, True), "scale": Option(FLAG, True)}
_INTERPOLATIONS = Choice(("nearest", "bilinear"))
_NEAREST, _BILINEAR = Option(_INTERPOLATIONS, "nearest"), Option(_INTERPOLATIONS, "bilinear")

KINDS: dict[str, Kind] = {
    "InputLayer": Kind(shapes.same, {"shape": Option(Some(SIZE), ()), "dtype": Option(Choice(DTYPES), "float32")}),
    "Dense": Kind(shapes.dense, {"units": Option(SIZE), **_OUTPUT}),
    "Conv1D": Kind(shapes.convolution, _FILTERS | _windows(1, "causal") | _GROUPS | _OUTPUT),
    "Conv2D": Kind(shapes.convolution, _FILTERS | _windows(2) | _GROUPS | _OUTPUT),
    "DepthwiseConv1D": Kind(shapes.depthwise, _windows(1) | _MULTIPLIER | _OUTPUT),
    "DepthwiseConv2D": Kind(shapes.depthwise, _windows(2) | _MULTIPLIER | _OUTPUT),
    "SeparableConv1D": Kind(shapes.separable, _FILTERS | _windows(1) | _MULTIPLIER | _OUTPUT),
    "SeparableConv2D": Kind(shapes.separable, _FILTERS | _windows(2) | _MULTIPLIER | _OUTPUT),
    "BatchNormalization": Kind(
        shapes.batch_normalization,
        {
            "momentum": Option(Real(), 0.99),
            "epsilon": Option(POSITIVE, 0.001),
            "center": Option(FLAG, True),
            "scale": Option(FLAG, True),
        },
        keeps=True,
    ),
    "MaxPooling1D": _pools(1),
    "MaxPooling2D": _pools(2),
    "AveragePooling1D": _pools(1),
    "AveragePooling2D": _pools(2),
    "GlobalMaxPooling1D": Kind(shapes.global_pooling(2), _KEEPDIMS),
    "GlobalMaxPooling2D": Kind(shapes.global_pooling(3), _KEEPDIMS),
    "GlobalAveragePooling1D": Kind(shapes.global_pooling(2), _KEEPDIMS),
    "GlobalAveragePooling2D": Kind(shapes.global_pooling(3), _KEEPDIMS),
    "Flatten": Kind(shapes.flatten),
    "Reshape": Kind(shapes.reshape, {"target_shape": Option(SHAPE)}),
    "Permute": Kind(shapes.permute, {"dims": Option(SHAPE)}),
    "ZeroPadding1D": Kind(shapes.zero_padding(2), {"padding": Option(_MARGIN, (1, 1))}),
    "ZeroPadding2D": Kind(shapes.zero_padding(3), {"padding": Option(Row(_MARGIN, 2), ((1, 1), (1, 1)))}),
    "Add": Kind(shapes.elementwise, merges=True),
    "Multiply": Kind(shapes.elementwise, merges=True),
    "Concatenate": Kind(shapes.concatenate, {"axis": Option(Whole(-1, _MAX_AXIS), -1)}, merges=True),
    "Dropout": Kind(shapes.same, {"rate": Option(Real(0, 1), 0.5)}, keeps=True),
    "Rescaling": Kind(shapes.same, {"scale": Option(Real()), "offset": Option(Real(), 0.0)}, keeps=True),
    "Activation": Kind(shapes.same, {"activation": Option(Choice(ACTIVATIONS))}, keeps=True),
    "ReLU": Kind(
        shapes.same,
        {
            "max_value": Option(POSITIVE, None),
            "negative_slope": Option(POSITIVE, 0.0),
            "threshold": Option(POSITIVE, 0.0),
        },
        keeps=True,
    ),
    "LeakyReLU": Kind(shapes.same, {"negative_slope": Option(POSITIVE, 0.3)}, keeps=True),
    "ELU": Kind(shapes.same, {"alpha": Option(Real(), 1.0)}, keeps=True),
    "Softmax": Kind(shapes.same, keeps=True),
    # Since version 3
    "Subtract": Kind(shapes.pair, merges=True),
    "Average": Kind(shapes.elementwise, merges=True),
    "Maximum": Kind(shapes.elementwise, merges=True),
    "Minimum": Kind(shapes.elementwise, merges=True),
    "Dot": Kind(shapes.dot, {"axes": Option(Row(_AXIS, 2)), "normalize": Option(FLAG, False)}, merges=True),
    "Conv3D": Kind(shapes.convolution, _FILTERS | _windows(3) | _GROUPS | _OUTPUT),
    "Conv1DTranspose": _transposed(1),
    "Conv2DTranspose": _transposed(2),
    "Conv3DTranspose": _transposed(3),
    "MaxPooling3D": _pools(3),
    "AveragePooling3D": _pools(3),
    "GlobalMaxPooling3D": Kind(shapes.global_pooling(4), _KEEPDIMS),
    "GlobalAveragePooling3D": Kind(shapes.global_pooling(4), _KEEPDIMS),
    "AdaptiveMaxPooling1D": _adaptive(1),
    "AdaptiveMaxPooling2D": _adaptive(2),
    "AdaptiveMaxPooling3D": _adaptive(3),
    "AdaptiveAveragePooling1D": _adaptive(1),
    "AdaptiveAveragePooling2D": _adaptive(2),
    "AdaptiveAveragePooling3D": _adaptive(3),
    "ZeroPadding3D": Kind(shapes.zero_padding(4), {"padding": Option(Row(_MARGIN, 3), ((1, 1),) * 3)}),
    "Cropping1D": Kind(shapes.cropping(2), {"cropping": Option(_MARGIN, (1, 1))}),
    "Cropping2D": Kind(shapes.cropping(3), {"cropping": Option(Row(_MARGIN, 2), ((0, 0), (0, 0)))}),
    "Cropping3D": Kind(shapes.cropping(4), {"cropping": Option(Row(_MARGIN, 3), ((1, 1),) * 3)}),
    "UpSampling1D": Kind(shapes.up_sampling(2), {"size": Option(SIZE, 2)}),
    "UpSampling2D": Kind(shapes.up_sampling(3), {"size": Option(Row(SIZE, 2), (2, 2)), "interpolation": _NEAREST}),
    "UpSampling3D": Kind(shapes.up_sampling(4), {"size": Option(Row(SIZE, 3), (2, 2, 2))}),
    "Resizing": Kind(shapes.resizing, {"height": Option(SIZE), "width": Option(SIZE), "interpolation": _BILINEAR}),
    "RepeatVector": Kind(shapes.repeat_vector, {"n": Option(SIZE)}),
    "Normalization": Kind(shapes.statistics, {"axis": Option(_AXES), "invert": Option(FLAG, False)}),
    "LayerNormalization": Kind(
        shapes.layer_normalization, {"axis": Option(_AXES), "epsilon": Option(POSITIVE, 0.001), **_AFFINE}
    ),
    "GroupNormalization": Kind(
        shapes.group_normalization,
        {"groups": Option(SIZE, 32), "epsilon": Option(POSITIVE, 0.001), **_AFFINE},
    ),
    "RMSNormalization": Kind(shapes.root_mean_square_normalization, {"epsilon": Option(POSITIVE, 1e-6)}),
    "UnitNormalization": Kind(shapes.unit_normalization, {"axis": Option(_AXES)}),
    "LayerScale": Kind(shapes.channel_scale),
    "CustomScaleLayer": Kind(shapes.pair, {"scale": Option(Real())}, merges=True),
    "PReLU": Kind(shapes.parametric_relu, {"shared_axes": Option(_AXES, ())}),
    "Embedding": Kind(shapes.embedding, {"input_dim": Option(SIZE), "output_dim": Option(SIZE)}),
}


def is_kernel(name: str) -> bool:
    """Whether a weight of this name is one that is pruned and shared: a kernel, or the table of an embedding."""
    return name.endswith(("kernel", "embeddings"))


def supported() -> str:
    """The kinds of layers that a file can hold, in words."""
    return ", ".join(kind for kind in KINDS if kind != "InputLayer")
