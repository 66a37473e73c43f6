"""The kinds of layers that a `.dcz` file can hold: the options, the weights and the output shape of each.

Reading, writing, converting and running all follow one table, `KINDS`. docs/format.md describes how options are
written.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deepcomp.dcz import shapes
from deepcomp.dcz.codes import ANY_SIZE, FLAG, POSITIVE, SHAPE, SIZE, Choice, Real, Row, Shape, Whole

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


_PADDING = Option(Choice(("valid", "same")), "valid")
_FILTERS = {"filters": Option(SIZE)}
_GROUPS = {"groups": Option(SIZE, 1)}
_MULTIPLIER = {"depth_multiplier": Option(SIZE, 1)}
_OUTPUT = {"activation": Option(Choice(ACTIVATIONS), "linear"), "use_bias": Option(FLAG, True)}
_KEEPDIMS = {"keepdims": Option(FLAG, False)}
_MARGIN = Row(ANY_SIZE, 2)

KINDS: dict[str, Kind] = {
    "InputLayer": Kind(shapes.same),
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
}


def supported() -> str:
    """The kinds of layers that a file can hold, in words."""
    return ", ".join(kind for kind in KINDS if kind != "InputLayer")
