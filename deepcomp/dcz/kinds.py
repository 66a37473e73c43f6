"""The kinds of layers that a `.dcz` file can hold: the options, the weights and the output shape of each.

Reading, writing, converting and running all follow one table, `KINDS`. docs/format.md describes how options are
written.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deepcomp.dcz import shapes, shapes_sequences, variables
from deepcomp.dcz.codes import (
    ANY_SIZE,
    FLAG,
    POSITIVE,
    SHAPE,
    SIZE,
    Choice,
    Reader,
    Real,
    Row,
    Shape,
    Some,
    Text,
    Whole,
    located,
    require,
    varint,
)

MAX_LAYERS = 65_535
_MAX_DEPTH = 8  # of layers inside of each other
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

    @property
    def inner(self) -> bool:
        """Whether a layer of this kind can be inside another that takes one input."""
        others = [KINDS[name] for name in ("InputLayer", "Normalization", "Variable")]
        return not self.merges and all(self is not other for other in others)


@dataclass(frozen=True)
class Inner:
    """A layer inside another: its kind, its options, and its name, empty for Keras's own.

    `options` are plain values under Keras's names; those left out get Keras's defaults.
    """

    kind: str
    options: Mapping[str, Any]
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", with_defaults(self.kind, self.options))

    def plan(self, *inputs: Shape) -> tuple[Shape, dict[str, Shape]]:
        """The shapes of its output and of its weights, given those of its inputs."""
        return KINDS[self.kind].plan(self.options, *inputs)


@dataclass(frozen=True)
class InnerCode:
    """A layer inside another, of one of some kinds, or of any that takes one input: kind, mask, options and name."""

    kinds: tuple[str, ...] = ()

    def write(self, value: Any) -> bytes:
        require(isinstance(value, Inner), f"{value!r} is no layer.")
        self._check(value.kind)
        with located(value.kind):
            check_options(value.kind, value.options)
            mask, written = write_options(value.kind, value.options)
        return varint(NUMBERS[value.kind]) + varint(mask) + written + Text().write(value.name)

    def read(self, source: Reader) -> Inner:
        require(source.depth < _MAX_DEPTH, f"more than {_MAX_DEPTH} layers are inside of each other.")
        source.depth += 1
        number = source.varint()
        require(number < len(KINDS), f"a layer inside another is of the unknown kind {number}.")
        kind = [*KINDS][number]
        self._check(kind)
        mask = source.varint()
        require(mask % 2 == 0, f"{kind} is inside another layer and has inputs of its own.")
        options = read_options(source, kind, mask)
        source.depth -= 1
        return Inner(kind, options, Text().read(source))

    def holds(self, kind: str) -> bool:
        """Whether a layer of this kind may be inside."""
        return kind in self.kinds if self.kinds else kind in KINDS and KINDS[kind].inner

    def _check(self, kind: str) -> None:
        require(self.holds(kind), f"{kind} cannot be inside another layer.")


def with_defaults(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a kind of layer, with the defaults of those left out."""
    options = dict(options)
    for name, option in KINDS[kind].options.items() if kind in KINDS else ():
        if name not in options and option.default is not REQUIRED:
            options[name] = option.default_in(options)
    return options


def changed_options(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a kind of layer that are required or differ from their defaults."""
    own = KINDS[kind].options
    return {
        name: value
        for name, value in options.items()
        if own[name].default is REQUIRED or value != own[name].default_in(options)
    }


def check_options(kind: str, options: Mapping[str, Any]) -> None:
    """Raise `InvalidNetworkError` unless a kind of layer has these options."""
    own = KINDS[kind].options
    wrong = options.keys() ^ own.keys()
    require(not wrong, f"{', '.join(sorted(wrong))}: it has the options {', '.join(own) or 'none'}.")
    for name, value in changed_options(kind, options).items():
        with located(name):
            own[name].code.write(value)


def write_options(kind: str, options: Mapping[str, Any]) -> tuple[int, bytes]:
    """The bits from 2 on that tell which options are written, and the options that are."""
    bit, mask, values = 1, 0, b""
    for name, option in KINDS[kind].options.items():
        value, written = options[name], True
        if option.default is not REQUIRED:
            bit, written = 2 * bit, value != option.default_in(options)
            mask |= bit * written
        if written:
            values += option.code.write(value)
    return mask, values


def read_options(source: Reader, kind: str, mask: int) -> dict[str, Any]:
    """The options that come next, of which the bits of `mask` from 2 on tell which are written."""
    bit, options = 1, {}
    for key, option in KINDS[kind].options.items():
        written = True
        if option.default is not REQUIRED:
            bit *= 2
            written = mask & bit
        options[key] = option.code.read(source) if written else option.default_in(options)
    require(mask < 2 * bit, f"it has options that {kind} does not have.")
    return options


def snake_case(kind: str) -> str:
    """`MaxPooling2D` -> `max_pooling2d`: an underscore before a capital after a small letter, or before a small one."""
    name = kind[0]
    for i in range(1, len(kind)):
        starts = kind[i].isupper() and (kind[i - 1].islower() or kind[i + 1 : i + 2].islower())
        name += "_" * starts + kind[i]
    return name.lower()


# The table of kinds. Both orders, of kinds and of options, are part of the format: add at the end only.

ACTIVATIONS = (
    *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "sigmoid", "hard_sigmoid", "tanh", "softmax"),
    *("softplus", "softsign", "silu", "hard_silu", "gelu", "exponential", "mish"),
    # Since version 3
    *("celu", "hard_tanh", "hard_shrink", "soft_shrink", "tanh_shrink", "log_sigmoid", "squareplus", "sparse_plus"),
    "sparse_sigmoid",
)
DTYPES = (
    *("float32", "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "bfloat16", "float64"),
)
KINDS_BEFORE_3 = 32  # that files of version 1 and 2 know
LAYERS = Whole(1, MAX_LAYERS)


def _backward(options: Mapping[str, Any]) -> Inner:
    """The layer that runs backwards unless another is given: the same, in the other direction."""
    layer = options["layer"]
    other = {**layer.options, "go_backwards": not layer.options["go_backwards"]}
    return Inner(layer.kind, other, f"backward_{layer.name or snake_case(layer.kind)}")


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


def _convolutional_lstm(rank: int) -> Kind:
    options = _FILTERS | _windows(rank) | _RECURRENT | _GATES | _SEQUENCES
    del options["units"]
    return Kind(shapes_sequences.convolutional_lstm, options)


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
_ACTIVATION = Choice(ACTIVATIONS)
_SEQUENCES = {
    "return_sequences": Option(FLAG, False),
    "go_backwards": Option(FLAG, False),
    "zero_output_for_mask": Option(FLAG, False),
}
_RECURRENT = {"units": Option(SIZE), "activation": Option(_ACTIVATION, "tanh"), "use_bias": Option(FLAG, True)}
_CAUSAL = {"use_causal_mask": Option(FLAG, False)}
_ATTENTION = {
    "use_bias": Option(FLAG, True),
    "use_gate": Option(FLAG, False),
    "sliding_window": Option(SIZE, None),
    "dropout": Option(Real(0, 1), 0.0),
    **_CAUSAL,
}
_GATES = {"recurrent_activation": Option(_ACTIVATION, "sigmoid")}
_NEAREST, _BILINEAR = Option(_INTERPOLATIONS, "nearest"), Option(_INTERPOLATIONS, "bilinear")

_TENSOR = {"shape": Option(Some(SIZE), ()), "dtype": Option(Choice(DTYPES), "float32")}

KINDS: dict[str, Kind] = {
    "InputLayer": Kind(shapes.of_input, {**_TENSOR, "open_axes": Option(_AXES, ())}),
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
    "Reshape": Kind(shapes.reshape, {"target_shape": Option(SHAPE), "open_axis": Option(Whole(0, _MAX_AXIS), 0)}),
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
    "Embedding": Kind(
        shapes.embedding,
        {"input_dim": Option(SIZE), "output_dim": Option(SIZE), "mask_zero": Option(FLAG, False)},
    ),
    "SimpleRNN": Kind(shapes_sequences.recurrent(1), _RECURRENT | _SEQUENCES),
    "LSTM": Kind(shapes_sequences.recurrent(4), _RECURRENT | _GATES | _SEQUENCES),
    "GRU": Kind(shapes_sequences.recurrent(3), _RECURRENT | _GATES | {"reset_after": Option(FLAG, True)} | _SEQUENCES),
    "Bidirectional": Kind(
        shapes_sequences.bidirectional,
        {
            "layer": Option(InnerCode(("SimpleRNN", "LSTM", "GRU"))),
            "merge_mode": Option(Choice(("concat", "sum", "mul", "ave")), "concat"),
            "backward_layer": Option(InnerCode(("SimpleRNN", "LSTM", "GRU")), _backward),
        },
    ),
    "TimeDistributed": Kind(shapes_sequences.time_distributed, {"layer": Option(InnerCode())}),
    "ConvLSTM1D": _convolutional_lstm(1),
    "ConvLSTM2D": _convolutional_lstm(2),
    "MultiHeadAttention": Kind(
        shapes_sequences.multi_head_attention,
        {
            "num_heads": Option(SIZE),
            "key_dim": Option(SIZE),
            "value_dim": Option(SIZE, lambda options: options["key_dim"]),
            "output_shape": Option(Some(SIZE), ()),
            **_ATTENTION,
        },
        merges=True,
    ),
    "GroupedQueryAttention": Kind(
        shapes_sequences.grouped_query_attention,
        {
            "head_dim": Option(SIZE),
            "num_query_heads": Option(SIZE),
            "num_key_value_heads": Option(SIZE),
            **_ATTENTION,
        },
        merges=True,
    ),
    "Attention": Kind(
        shapes_sequences.attention,
        {"use_scale": Option(FLAG, False), "score_mode": Option(Choice(("dot", "concat")), "dot"), **_CAUSAL},
        merges=True,
    ),
    "AdditiveAttention": Kind(
        shapes_sequences.additive_attention, {"use_scale": Option(FLAG, True), **_CAUSAL}, merges=True
    ),
    "EinsumDense": Kind(
        shapes_sequences.einsum_dense,
        {
            "equation": Option(Text()),
            "output_shape": Option(Some(ANY_SIZE)),
            "bias_axes": Option(Text(), ""),
            "activation": Option(_ACTIVATION, "linear"),
        },
    ),
    "Masking": Kind(shapes.same, {"mask_value": Option(Real(), 0.0)}),
    "ConvLSTM3D": _convolutional_lstm(3),
    "Variable": Kind(variables.plan, {"path": Option(Text(is_path=True)), **_TENSOR}),  # no layer of Keras
}
NUMBERS = {kind: number for number, kind in enumerate(KINDS)}


def is_kernel(name: str) -> bool:
    """Whether a weight of this name is one that is pruned and shared: a kernel, or the table of an embedding."""
    return name.endswith(("kernel", "embeddings"))


def supported() -> str:
    """The kinds of layers that a file can hold, in words."""
    return ", ".join(kind for kind in KINDS if kind not in ("InputLayer", "Variable"))
