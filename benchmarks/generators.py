"""Random options for each kind of layer, mostly small, sometimes extreme: what `structures` builds networks of.

A new kind of layer needs one function here.
"""

import math
import random
from collections.abc import Callable
from typing import Any

from deepcomp.dcz.codes import Shape
from deepcomp.dcz.kinds import ACTIVATIONS, KINDS, Inner


class Draw(random.Random):
    """A source of random options."""

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self.random() < probability

    def size(self, usual: int, least: int = 1) -> int:
        """A whole number, mostly small, sometimes huge."""
        if self.chance(0.02):
            return self.choice((2**7, 2**8 + 1, 2**10, 2**16, 2**16 + 1, 2**20, 2**28, 2**31 - 1))
        return self.randint(least, usual)

    def pair(self, rank: int, usual: int, least: int = 1) -> tuple[int, ...]:
        """Such a number for each of `rank` axes, often the same."""
        if self.chance(0.5):
            return (self.size(usual, least),) * rank
        return tuple(self.size(usual, least) for _ in range(rank))

    def real(self) -> float:
        """A number around 0, or a special one."""
        return self.choice((0.0, 1.0, 0.5, round(self.gauss(0, 1), 3)))

    def activation(self) -> dict[str, Any]:
        """An activation, and whether there is a bias."""
        name = self.choice(("linear", "relu", self.choice(ACTIVATIONS)))
        return {"activation": name, "use_bias": self.chance(0.7)}


def _windows(draw: Draw, shape: Shape, *paddings: str) -> dict[str, Any]:
    rank = len(shape) - 1
    options = {"kernel_size": draw.pair(rank, 4), "padding": draw.choice(("valid", "same", *paddings))}
    if draw.chance(0.4):
        options[draw.choice(("strides", "dilation_rate"))] = draw.pair(rank, 3)
    if draw.chance(0.1):
        options["kernel_size"] = shape[:-1]  # one position
    return options


def _groups(draw: Draw, shape: Shape) -> dict[str, Any]:
    groups = draw.choice([n for n in range(1, min(shape[-1], 12) + 1) if shape[-1] % n == 0])
    return {"groups": groups if draw.chance(0.4) else 1}


def _convolution(draw: Draw, shape: Shape, *others: Shape) -> dict[str, Any]:
    padding = ("causal",) if len(shape) == 2 else ()
    groups = _groups(draw, shape)
    filters = {"filters": groups["groups"] * draw.size(6)}
    return filters | _windows(draw, shape, *padding) | groups | draw.activation()


def _depthwise(draw: Draw, shape: Shape, *others: Shape) -> dict[str, Any]:
    return _windows(draw, shape) | {"depth_multiplier": draw.size(3)} | draw.activation()


def _separable(draw: Draw, shape: Shape, *others: Shape) -> dict[str, Any]:
    return {"filters": draw.size(6)} | _depthwise(draw, shape)


def _pooling(draw: Draw, shape: Shape, *others: Shape) -> dict[str, Any]:
    rank = len(shape) - 1
    options = {"pool_size": draw.pair(rank, 3), "padding": draw.choice(("valid", "same"))}
    return options | ({"strides": draw.pair(rank, 3)} if draw.chance(0.5) else {})


def _reshape(draw: Draw, shape: Shape, *others: Shape) -> dict[str, Any]:
    left, target = math.prod(shape), []
    for _ in range(draw.randint(0, 4)):
        target.append(draw.choice([n for n in range(1, min(left, 40) + 1) if left % n == 0]))
        left //= target[-1]
    at = draw.randint(0, len(target))
    is_open = draw.chance(0.3)
    target.insert(at, 1 if is_open else left)
    return {"target_shape": tuple(target), "open_axis": (at + 1) * is_open}


def _permute(draw: Draw, shape: Shape, *others: Shape) -> dict[str, Any]:
    return {"dims": tuple(draw.sample(range(1, len(shape) + 1), len(shape)))}


def _zero_padding(draw: Draw, shape: Shape, *others: Shape) -> dict[str, Any]:
    margins = [draw.pair(2, 3, least=0) for _ in shape[:-1]]
    return {"padding": tuple(margins) if len(margins) > 1 else margins[0]}


def _normalization(draw: Draw, shape: Shape, *others: Shape) -> dict[str, Any]:
    return {"epsilon": draw.choice((0.001, 1e-5, 0.1)), "center": draw.chance(0.7), "scale": draw.chance(0.7)}


def _relu(draw: Draw, shape: Shape, *others: Shape) -> dict[str, Any]:
    found = {"max_value": 1.5 * draw.random(), "negative_slope": draw.random(), "threshold": draw.random()}
    return {name: value for name, value in found.items() if draw.chance(0.4)}


def _transposed(draw: Draw, shape: Shape, *others: Shape) -> dict[str, Any]:
    options = {"filters": draw.size(6)} | _windows(draw, shape) | draw.activation()
    if draw.chance(0.3):
        options["output_padding"] = draw.pair(len(shape) - 1, 2, least=0)
    return options | {"dilation_rate": (1,) * (len(shape) - 1)}  # Keras has no other on a CPU


def _cropping(draw: Draw, shape: Shape, *others: Shape) -> dict[str, Any]:
    margins = [draw.pair(2, 2, least=0) for _ in shape[:-1]]
    return {"cropping": tuple(margins) if len(margins) > 1 else margins[0]}


def _adaptive(draw: Draw, shape: Shape, *others: Shape) -> dict[str, Any]:
    return {"output_size": tuple(draw.randint(1, size) for size in shape[:-1])}


def _up_sampling(draw: Draw, shape: Shape, *others: Shape) -> dict[str, Any]:
    rank = len(shape) - 1
    options: dict[str, Any] = {"size": draw.pair(rank, 3) if rank > 1 else draw.size(3)}
    return options | ({"interpolation": draw.choice(("nearest", "bilinear"))} if rank == 2 else {})


def _resizing(draw: Draw, shape: Shape, *others: Shape) -> dict[str, Any]:
    interpolation = draw.choice(("nearest", "bilinear"))
    return {"height": draw.size(9), "width": draw.size(9), "interpolation": interpolation}


def _axes(draw: Draw, shape: Shape) -> tuple[int, ...]:
    return tuple(axis for axis in range(1, len(shape) + 1) if draw.chance(0.5)) or (len(shape),)


def _layer_normalization(draw: Draw, shape: Shape, *others: Shape) -> dict[str, Any]:
    return {"axis": _axes(draw, shape)} | _normalization(draw, shape)


def _group_normalization(draw: Draw, shape: Shape, *others: Shape) -> dict[str, Any]:
    return _groups(draw, shape) | _normalization(draw, shape)


def _dot(draw: Draw, *shapes: Shape) -> dict[str, Any]:
    a, b = shapes[0], shapes[-1]
    pairs = [(i, j) for i, n in enumerate(a, 1) for j, m in enumerate(b, 1) if n == m]
    return {"axes": draw.choice(pairs or [(1, 1)]), "normalize": draw.chance(0.3)}


_FLAGS = ("return_sequences", "go_backwards", "zero_output_for_mask")


def _flags(draw: Draw, *names: str) -> dict[str, Any]:
    return {name: draw.chance(0.4) for name in names}


def _gate(draw: Draw) -> dict[str, Any]:
    return {"recurrent_activation": draw.choice(("sigmoid", "sigmoid", draw.choice(ACTIVATIONS)))}


def _recurrent(draw: Draw, *shapes: Shape) -> dict[str, Any]:
    tanh = {"activation": "tanh"} if draw.chance(0.5) else {}
    return {"units": draw.size(6)} | draw.activation() | tanh | _flags(draw, *_FLAGS)


def _lstm(draw: Draw, *shapes: Shape) -> dict[str, Any]:
    return _recurrent(draw) | _gate(draw)


def _gru(draw: Draw, *shapes: Shape) -> dict[str, Any]:
    return _lstm(draw) | _flags(draw, "reset_after")


def _bidirectional(draw: Draw, *shapes: Shape) -> dict[str, Any]:
    kind = draw.choice(("SimpleRNN", "LSTM", "GRU"))
    layer = Inner(kind, GENERATE[kind](draw))
    options: dict[str, Any] = {"layer": layer, "merge_mode": draw.choice(("concat", "sum", "mul", "ave"))}
    if draw.chance(0.3):
        other = {"go_backwards": not layer.options["go_backwards"], "units": layer.options["units"]}
        other["return_sequences"] = layer.options["return_sequences"]
        options["backward_layer"] = Inner("GRU", GENERATE["GRU"](draw) | other)
    return options


def _time_distributed(draw: Draw, shape: Shape) -> dict[str, Any]:
    inner, rank = shape[1:], f"{len(shape) - 2}D"
    fits = [kind for kind in GENERATE if KINDS[kind].inner and kind != "Embedding"]
    fits = [kind for kind in fits if kind.endswith(rank) or not kind.endswith("D")]
    kind = draw.choice(fits)
    return {"layer": Inner(kind, GENERATE[kind](draw, inner or (1,)))}


def _convolutional_lstm(draw: Draw, shape: Shape, *others: Shape) -> dict[str, Any]:
    options = {"filters": draw.size(4)} | _windows(draw, shape[1:]) | draw.activation()
    return options | _gate(draw) | _flags(draw, *_FLAGS)


def _attention_by_heads(draw: Draw) -> dict[str, Any]:
    window = {"sliding_window": draw.size(4)} if draw.chance(0.2) else {}
    dropout = {"dropout": 0.1} if draw.chance(0.3) else {}
    return window | dropout | _flags(draw, "use_bias", "use_gate", "use_causal_mask")


def _multi_head(draw: Draw, *shapes: Shape) -> dict[str, Any]:
    options: dict[str, Any] = {"num_heads": draw.size(3), "key_dim": draw.size(4)} | _attention_by_heads(draw)
    if draw.chance(0.3):
        options["value_dim"] = draw.size(5)
    return options | ({"output_shape": draw.pair(draw.randint(1, 2), 5)} if draw.chance(0.3) else {})


def _grouped_query(draw: Draw, *shapes: Shape) -> dict[str, Any]:
    groups = draw.size(3)
    sizes = {"head_dim": draw.size(4), "num_query_heads": groups * draw.size(3), "num_key_value_heads": groups}
    return sizes | _attention_by_heads(draw)


def _einsum(draw: Draw, shape: Shape) -> dict[str, Any]:
    """An equation whose axes are in any order; some of the input are summed, some of the kernel are new."""
    axes, sizes = list("bcde"[: len(shape)]), dict(zip("bcde", shape, strict=False))
    summed = draw.sample(axes, draw.randint(1, len(axes)))
    units = list("xyz"[: draw.randint(0, 2)])
    sizes |= {axis: draw.size(5) for axis in units}
    kernel, output = summed + units, [axis for axis in axes if axis not in summed] + units
    draw.shuffle(kernel)
    draw.shuffle(output)
    bias = "".join(axis for axis in output if draw.chance(0.4))
    return {
        "equation": f"a{''.join(axes)},{''.join(kernel)}->a{''.join(output)}",
        "output_shape": tuple(0 if axis in axes and draw.chance(0.3) else sizes[axis] for axis in output),
        "bias_axes": bias,
        "activation": draw.choice(("linear", draw.choice(ACTIVATIONS))),
    }


def _no_options(draw: Draw, *shapes: Shape) -> dict[str, Any]:
    return {}


# For each kind of layer a function that draws its options, given the shapes of its inputs. They need not fit.
GENERATE: dict[str, Callable[..., dict[str, Any]]] = {
    "Dense": lambda draw, *shapes: {"units": draw.size(9)} | draw.activation(),
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), _convolution),
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), _transposed),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), _depthwise),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), _separable),
    "BatchNormalization": _normalization,
    **{f"{what}Pooling{rank}D": _pooling for what in ("Max", "Average") for rank in (1, 2, 3)},
    **{f"Adaptive{what}Pooling{rank}D": _adaptive for what in ("Max", "Average") for rank in (1, 2, 3)},
    **dict.fromkeys(
        [f"Global{what}Pooling{rank}D" for what in ("Max", "Average") for rank in (1, 2, 3)],
        lambda draw, *shapes: {"keepdims": draw.chance(0.5)},
    ),
    "Flatten": _no_options,
    "Reshape": _reshape,
    "Permute": _permute,
    **dict.fromkeys(("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D"), _zero_padding),
    **dict.fromkeys(("Cropping1D", "Cropping2D", "Cropping3D"), _cropping),
    **dict.fromkeys(("UpSampling1D", "UpSampling2D", "UpSampling3D"), _up_sampling),
    "Resizing": _resizing,
    "RepeatVector": lambda draw, *shapes: {"n": draw.size(5)},
    "Normalization": lambda draw, shape: {"axis": draw.choice(((), _axes(draw, shape))), "invert": draw.chance(0.3)},
    "LayerNormalization": _layer_normalization,
    "GroupNormalization": _group_normalization,
    "RMSNormalization": lambda draw, *shapes: {"epsilon": draw.choice((1e-6, 0.01))},
    "UnitNormalization": lambda draw, shape: {"axis": _axes(draw, shape)},
    "LayerScale": _no_options,
    "CustomScaleLayer": lambda draw, *shapes: {"scale": draw.real()},
    "PReLU": lambda draw, shape: {"shared_axes": draw.choice(((), _axes(draw, shape)))},
    "Embedding": lambda draw, *shapes: {
        "input_dim": draw.size(5),
        "output_dim": draw.size(6),
        **_flags(draw, "mask_zero"),
    },
    "SimpleRNN": _recurrent,
    "LSTM": _lstm,
    "GRU": _gru,
    "Bidirectional": _bidirectional,
    "TimeDistributed": _time_distributed,
    **dict.fromkeys(("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"), _convolutional_lstm),
    "MultiHeadAttention": _multi_head,
    "GroupedQueryAttention": _grouped_query,
    "Attention": lambda draw, *shapes: {
        "score_mode": draw.choice(("dot", "concat")),
        **_flags(draw, "use_scale", "use_causal_mask"),
    },
    "AdditiveAttention": lambda draw, *shapes: _flags(draw, "use_scale", "use_causal_mask"),
    "EinsumDense": _einsum,
    "Masking": lambda draw, *shapes: {"mask_value": draw.choice((0.0, 0.0, draw.real()))},
    "Dot": _dot,
    **dict.fromkeys(("Add", "Multiply", "Subtract", "Average", "Maximum", "Minimum"), _no_options),
    "Concatenate": lambda draw, *shapes: {"axis": draw.choice((-1, draw.randint(1, len(shapes[0]))))},
    "Dropout": lambda draw, *shapes: {"rate": 0.25},
    "Rescaling": lambda draw, *shapes: {"scale": draw.real(), "offset": draw.real()},
    "Activation": lambda draw, *shapes: {"activation": draw.choice(ACTIVATIONS)},
    "ReLU": _relu,
    "LeakyReLU": lambda draw, *shapes: {"negative_slope": abs(draw.real())},
    "ELU": lambda draw, *shapes: {"alpha": draw.real()},
    "Softmax": _no_options,
}
