"""A slow reader of `.dcz` files in plain Python, written from docs/format.md alone, against deepcomp's own.

The reader is the first half of this file. It imports nothing of deepcomp and no NumPy, and follows the document chapter
by chapter. The second half holds it against the golden files in tests/golden, which every later deepcomp must read.
"""

import itertools
import math
import re
import struct
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deepcomp.dcz import coding, container
from deepcomp.dcz.kinds import KINDS as LAYER_KINDS
from deepcomp.dcz.kinds import Inner
from deepcomp.dcz.network import Layer, Network, SharedWeight, layer_shapes

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"


class Damaged(Exception):
    """The bytes are not what the document describes."""


def require(condition, message):
    if not condition:
        raise Damaged(message)


# Notation


class Source:
    """Bytes, taken from the front."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        require(self.at + count <= len(self.data), "the bytes end early")
        self.at += count
        return self.data[self.at - count : self.at]

    def varint(self):
        number = 0
        for place in range(5):
            (byte,) = self.take(1)
            number |= (byte & 127) << 7 * place
            if byte < 128:
                require(byte or not place, "a varint is longer than needed")
                return number
        raise Damaged("a varint has more than 5 bytes")


def whole(low, high=2**31 - 1):
    def read(source):
        number = source.varint() + low
        require(number <= high, f"{number} is over {high}")
        return number

    return read


def choice(*values):
    def read(source):
        number = source.varint()
        require(number < len(values), f"no choice {number}")
        return values[number]

    return read


def real(low=-math.inf, high=math.inf):
    def read(source):
        (number,) = struct.unpack("<d", source.take(8))
        require(math.isfinite(number) and low <= number <= high, f"{number} is not from {low} to {high}")
        return number

    return read


def row(*arguments):
    def read(source):
        *count, kind = arguments
        return tuple(kind(source) for _ in range(count[0] if count else whole(1, 8)(source)))

    return read


def some(kind):
    def read(source):
        return tuple(kind(source) for _ in range(whole(0, 8)(source)))

    return read


def text(source):
    return str(source.take(source.varint()), "utf-8")


SIZE, FLAG = whole(1), choice(False, True)

# Architecture: the tables of kinds and options

ALWAYS = object()  # no default: always written
ACTIVATION = choice(
    *("linear", "relu", "relu6", "leaky_relu", "elu", "selu", "sigmoid", "hard_sigmoid", "tanh", "softmax"),
    *("softplus", "softsign", "silu", "hard_silu", "gelu", "exponential", "mish", "celu", "hard_tanh", "hard_shrink"),
    *("soft_shrink", "tanh_shrink", "log_sigmoid", "squareplus", "sparse_plus", "sparse_sigmoid"),
)
CONVOLUTION = "strides padding dilation_rate"
SEQUENCES = "return_sequences go_backwards zero_output_for_mask"
ATTENTION = "use_bias use_gate sliding_window dropout use_causal_mask"
RECURRENT = ("SimpleRNN", "LSTM", "GRU", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")
KINDS = [
    ("InputLayer", "shape dtype open_axes"),
    ("Dense", "units activation use_bias"),
    ("Conv1D", f"filters kernel_size {CONVOLUTION} groups activation use_bias"),
    ("Conv2D", f"filters kernel_size {CONVOLUTION} groups activation use_bias"),
    ("DepthwiseConv1D", f"kernel_size {CONVOLUTION} depth_multiplier activation use_bias"),
    ("DepthwiseConv2D", f"kernel_size {CONVOLUTION} depth_multiplier activation use_bias"),
    ("SeparableConv1D", f"filters kernel_size {CONVOLUTION} depth_multiplier activation use_bias"),
    ("SeparableConv2D", f"filters kernel_size {CONVOLUTION} depth_multiplier activation use_bias"),
    ("BatchNormalization", "momentum epsilon center scale"),
    ("MaxPooling1D", "pool_size strides padding"),
    ("MaxPooling2D", "pool_size strides padding"),
    ("AveragePooling1D", "pool_size strides padding"),
    ("AveragePooling2D", "pool_size strides padding"),
    ("GlobalMaxPooling1D", "keepdims"),
    ("GlobalMaxPooling2D", "keepdims"),
    ("GlobalAveragePooling1D", "keepdims"),
    ("GlobalAveragePooling2D", "keepdims"),
    ("Flatten", ""),
    ("Reshape", "target_shape open_axis"),
    ("Permute", "dims"),
    ("ZeroPadding1D", "padding"),
    ("ZeroPadding2D", "padding"),
    ("Add", ""),
    ("Multiply", ""),
    ("Concatenate", "axis"),
    ("Dropout", "rate"),
    ("Rescaling", "scale offset"),
    ("Activation", "activation"),
    ("ReLU", "max_value negative_slope threshold"),
    ("LeakyReLU", "negative_slope"),
    ("ELU", "alpha"),
    ("Softmax", ""),
    ("Subtract", ""),
    ("Average", ""),
    ("Maximum", ""),
    ("Minimum", ""),
    ("Dot", "axes normalize"),
    ("Conv3D", f"filters kernel_size {CONVOLUTION} groups activation use_bias"),
    ("Conv1DTranspose", f"filters kernel_size {CONVOLUTION} output_padding activation use_bias"),
    ("Conv2DTranspose", f"filters kernel_size {CONVOLUTION} output_padding activation use_bias"),
    ("Conv3DTranspose", f"filters kernel_size {CONVOLUTION} output_padding activation use_bias"),
    ("MaxPooling3D", "pool_size strides padding"),
    ("AveragePooling3D", "pool_size strides padding"),
    ("GlobalMaxPooling3D", "keepdims"),
    ("GlobalAveragePooling3D", "keepdims"),
    *[(f"AdaptiveMaxPooling{d}D", "output_size") for d in (1, 2, 3)],
    *[(f"AdaptiveAveragePooling{d}D", "output_size") for d in (1, 2, 3)],
    ("ZeroPadding3D", "padding"),
    ("Cropping1D", "cropping"),
    ("Cropping2D", "cropping"),
    ("Cropping3D", "cropping"),
    ("UpSampling1D", "size"),
    ("UpSampling2D", "size interpolation"),
    ("UpSampling3D", "size"),
    ("Resizing", "height width interpolation"),
    ("RepeatVector", "n"),
    ("Normalization", "axis invert"),
    ("LayerNormalization", "axis epsilon center scale"),
    ("GroupNormalization", "groups epsilon center scale"),
    ("RMSNormalization", "epsilon"),
    ("UnitNormalization", "axis"),
    ("LayerScale", ""),
    ("CustomScaleLayer", "scale"),
    ("PReLU", "shared_axes"),
    ("Embedding", "input_dim output_dim mask_zero"),
    ("SimpleRNN", "units activation use_bias return_sequences go_backwards zero_output_for_mask"),
    ("LSTM", f"units activation use_bias recurrent_activation {SEQUENCES}"),
    ("GRU", f"units activation use_bias recurrent_activation reset_after {SEQUENCES}"),
    ("Bidirectional", "layer merge_mode backward_layer"),
    ("TimeDistributed", "layer"),
    ("ConvLSTM1D", f"filters kernel_size {CONVOLUTION} activation use_bias recurrent_activation {SEQUENCES}"),
    ("ConvLSTM2D", f"filters kernel_size {CONVOLUTION} activation use_bias recurrent_activation {SEQUENCES}"),
    ("MultiHeadAttention", f"num_heads key_dim value_dim output_shape {ATTENTION}"),
    ("GroupedQueryAttention", f"head_dim num_query_heads num_key_value_heads {ATTENTION}"),
    ("Attention", "use_scale score_mode use_causal_mask"),
    ("AdditiveAttention", "use_scale use_causal_mask"),
    ("EinsumDense", "equation output_shape bias_axes activation"),
    ("Masking", "mask_value"),
    ("ConvLSTM3D", f"filters kernel_size {CONVOLUTION} activation use_bias recurrent_activation {SEQUENCES}"),
    ("Variable", "path shape dtype"),
]
AGAIN = 120
DTYPE = choice(
    *("float32", "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "bfloat16", "float64"),
)
# Kinds that change neither the shape nor the meaning of a position.
KEEPING = {"BatchNormalization", "Dropout", "Rescaling", "Activation", "ReLU", "LeakyReLU", "ELU", "Softmax"}


def option(kind, name):
    """How an option is read, and its default."""
    d = next((int(letter) for letter in kind if letter.isdigit()), 2)
    if "Pooling" in kind and name == "strides":
        return row(d, SIZE), "pool_size"
    if kind.startswith(("ZeroPadding", "Cropping")):
        return row(2 * d, whole(0)), (0 if kind == "Cropping2D" else 1,) * 2 * d
    if name == "interpolation":
        return choice("nearest", "bilinear"), "nearest" if kind == "UpSampling2D" else "bilinear"
    if name == "axis" and kind != "Concatenate":
        return some(whole(1, 8)), ALWAYS
    if (kind, name) == ("UpSampling1D", "size"):
        return SIZE, 2
    if (kind, name) == ("GroupNormalization", "groups"):
        return SIZE, 32
    if (kind, name) == ("RMSNormalization", "epsilon"):
        return real(0), 1e-6
    if name in ("layer", "backward_layer"):
        kinds = RECURRENT[:3] if kind == "Bidirectional" else None
        return lambda source: read_inner(source, kinds), ALWAYS if name == "layer" else "backward"
    if name == "activation" and kind in RECURRENT:
        return ACTIVATION, "tanh"
    if (kind, name) == ("AdditiveAttention", "use_scale"):
        return FLAG, True
    if (kind, name) == ("EinsumDense", "output_shape"):
        return some(whole(0)), ALWAYS
    if name == "padding":
        return choice("valid", "same", *["causal"] * (kind == "Conv1D")), "valid"
    if (kind, name) == ("Activation", "activation"):
        return ACTIVATION, ALWAYS
    if (kind, name) in (("Rescaling", "scale"), ("CustomScaleLayer", "scale")):
        return real(), ALWAYS
    if (kind, name) == ("LeakyReLU", "negative_slope"):
        return real(0), 0.3
    return {
        **dict.fromkeys(("units", "n", "height", "width", "input_dim", "output_dim"), (SIZE, ALWAYS)),
        **dict.fromkeys(("num_heads", "key_dim", "head_dim", "num_query_heads"), (SIZE, ALWAYS)),
        **dict.fromkeys((*SEQUENCES.split(), "mask_zero", "use_causal_mask", "use_gate", "use_scale"), (FLAG, False)),
        "num_key_value_heads": (SIZE, ALWAYS),
        "recurrent_activation": (ACTIVATION, "sigmoid"),
        "reset_after": (FLAG, True),
        "score_mode": (choice("dot", "concat"), "dot"),
        "merge_mode": (choice("concat", "sum", "mul", "ave"), "concat"),
        "value_dim": (SIZE, "key_dim"),
        "output_shape": (some(SIZE), ()),
        "sliding_window": (SIZE, None),
        "dropout": (real(0, 1), 0.0),
        "equation": (text, ALWAYS),
        "path": (text, ALWAYS),
        "bias_axes": (text, ""),
        "mask_value": (real(), 0.0),
        "shape": (some(SIZE), ()),
        "dtype": (DTYPE, "float32"),
        "axes": (row(2, whole(1, 8)), ALWAYS),
        "shared_axes": (some(whole(1, 8)), ()),
        "open_axes": (some(whole(1, 8)), ()),
        "open_axis": (whole(0, 8), 0),
        "normalize": (FLAG, False),
        "invert": (FLAG, False),
        "size": (row(d, SIZE), (2,) * d),
        "output_size": (row(d, SIZE), ALWAYS),
        "output_padding": (row(d, whole(0)), None),
        "filters": (SIZE, ALWAYS),
        "kernel_size": (row(d, SIZE), ALWAYS),
        "strides": (row(d, SIZE), (1,) * d),
        "dilation_rate": (row(d, SIZE), (1,) * d),
        "groups": (SIZE, 1),
        "depth_multiplier": (SIZE, 1),
        "activation": (ACTIVATION, "linear"),
        "use_bias": (FLAG, True),
        "center": (FLAG, True),
        "scale": (FLAG, True),
        "momentum": (real(), 0.99),
        "epsilon": (real(0), 0.001),
        "pool_size": (row(d, SIZE), (2,) * d),
        "keepdims": (FLAG, False),
        "target_shape": (row(SIZE), ALWAYS),
        "dims": (row(SIZE), ALWAYS),
        "axis": (whole(-1, 8), -1),
        "rate": (real(0, 1), 0.5),
        "offset": (real(), 0.0),
        "max_value": (real(0), None),
        "negative_slope": (real(0), 0.0),
        "threshold": (real(0), 0.0),
        "alpha": (real(), 1.0),
    }[name]


def read_layer(source, own, earlier, version):
    """Kind, inputs and options of layer number `own`."""
    number = source.varint()
    if number == AGAIN and version > 2:
        count = whole(1, 65535)(source)
        first, *inputs = (own - whole(1, own)(source) for _ in range(count + 1))
        return {**earlier[first], "inputs": inputs, "again": first}
    require((version < 3) <= number < (len(KINDS) if version > 2 else 32), f"no kind {number}")
    kind, names = KINDS[number]
    mask, inputs = source.varint(), [own - 1] if number else []
    if mask & 1:
        count = whole(1, 65535)(source)
        inputs = [own - whole(1, own)(source) for _ in range(count)]
    return {"kind": kind, "inputs": inputs, "options": read_options(source, kind, names, mask)}


def read_options(source, kind, names, mask):
    """The options of a kind, those that the mask leaves out with their defaults."""
    options, bit = {}, 1
    for name in names.split():
        read, default = option(kind, name)
        written = True
        if default is not ALWAYS:
            written = mask >> bit & 1
            bit += 1
        if not written:
            options[name] = options[default] if default in ("pool_size", "key_dim") else default
            if default == "backward":
                layer = options["layer"]
                inverted = {**layer["options"], "go_backwards": not layer["options"]["go_backwards"]}
                own = layer["name"] or default_names([layer["kind"]])[0]
                options[name] = {"kind": layer["kind"], "options": inverted, "name": f"backward_{own}"}
        else:
            options[name] = read(source)
    require(mask >> bit == 0, "a bit of the mask is not one of the kind's")
    return options


def read_inner(source, kinds):
    """A layer inside another."""
    kind, names = KINDS[source.varint()]
    require(
        kind in kinds if kinds else kind not in ("InputLayer", "Normalization", "Variable"),
        f"{kind} inside another layer",
    )
    mask = source.varint()
    require(mask % 2 == 0, "a layer inside another has inputs")
    options = read_options(source, kind, names, mask)
    return {"kind": kind, "options": options, "name": text(source)}


# Architecture: shapes and weights


def slide(options, shape, window):
    """The spatial dimensions that come out of a window that slides."""
    rates = options.get("dilation_rate", (1,) * len(window))
    sizes = []
    for n, reach, rate, stride in zip(shape[:-1], window, rates, options["strides"], strict=True):
        n -= (reach - 1) * rate if options["padding"] == "valid" else 0
        sizes.append(-(-n // stride))
    require(min(sizes) > 0, "a window does not fit")
    return tuple(sizes)


def outcome(kind, options, *shapes):
    """The shape that a layer puts out, and its weights' shapes by name, in the file's order."""
    shape, c = shapes[0], shapes[0][-1]
    mult, filters = options.get("depth_multiplier"), options.get("filters")
    kernel_size = options.get("kernel_size")
    bias = lambda size: {"bias": (size,)} if options["use_bias"] else {}  # noqa: E731
    if kind == "Dense":
        units = options["units"]
        return (*shape[:-1], units), {"kernel": (c, units), **bias(units)}
    if kind.endswith("Transpose"):
        image = []
        for i, n in enumerate(shape[:-1]):
            stride, more = options["strides"][i], options["output_padding"]
            reach = (kernel_size[i] - 1) * options["dilation_rate"][i] + 1
            if options["padding"] == "valid":
                image.append((n - 1) * stride + reach + (max(stride - reach, 0) if more is None else more[i]))
            else:
                image.append(n * stride if more is None else (n - 1) * stride + reach % 2 + more[i])
        return (*image, filters), {"kernel": (*kernel_size, filters, c), **bias(filters)}
    if kind in ("Conv1D", "Conv2D", "Conv3D"):
        image = slide(options, shape, kernel_size)
        return (*image, filters), {"kernel": (*kernel_size, c // options["groups"], filters), **bias(filters)}
    if kind.startswith("Depthwise"):
        image = slide(options, shape, kernel_size)
        return (*image, c * mult), {"kernel": (*kernel_size, c, mult), **bias(c * mult)}
    if kind.startswith("Separable"):
        weights = {
            "depthwise_kernel": (*kernel_size, c, mult),
            "pointwise_kernel": (*[1] * len(kernel_size), c * mult, filters),
        }
        return (*slide(options, shape, kernel_size), filters), {**weights, **bias(filters)}
    if kind == "BatchNormalization":
        names = ["gamma"] * options["scale"] + ["beta"] * options["center"] + ["moving_mean", "moving_variance"]
        return shape, dict.fromkeys(names, (c,))
    if kind.startswith("Global"):
        return ((*[1] * (len(shape) - 1), c) if options["keepdims"] else (c,)), {}
    if kind.startswith("Adaptive"):
        return (*options["output_size"], c), {}
    if "Pooling" in kind:
        return (*slide(options, shape, options["pool_size"]), c), {}
    if kind == "Flatten":
        return (math.prod(shape),), {}
    if kind == "Reshape":
        target, axis = options["target_shape"], options["open_axis"]
        if axis:
            require(target[axis - 1] == 1, "the size of an open axis is not 1")
            target = (*target[: axis - 1], math.prod(shape) // math.prod(target), *target[axis:])
        return target, {}
    if kind == "Permute":
        return tuple(shape[dim - 1] for dim in options["dims"]), {}
    if kind.startswith("ZeroPadding"):
        margins = options["padding"]
        return (*(n + margins[2 * i] + margins[2 * i + 1] for i, n in enumerate(shape[:-1])), c), {}
    if kind.startswith("Cropping"):
        margins = options["cropping"]
        return (*(n - margins[2 * i] - margins[2 * i + 1] for i, n in enumerate(shape[:-1])), c), {}
    if kind.startswith("UpSampling"):
        factors = options["size"] if kind != "UpSampling1D" else (options["size"],)
        return (*(n * factor for n, factor in zip(shape[:-1], factors, strict=True)), c), {}
    if kind == "Resizing":
        return (options["height"], options["width"], c), {}
    if kind == "RepeatVector":
        return (options["n"], c), {}
    if kind == "Normalization":
        return shape, dict.fromkeys(("mean", "variance"), tuple(shape[a - 1] for a in options["axis"]) or (1,))
    if kind in ("LayerNormalization", "GroupNormalization"):
        sizes = tuple(shape[axis - 1] for axis in options["axis"]) if "axis" in options else (c,)
        return shape, dict.fromkeys(["gamma"] * options["scale"] + ["beta"] * options["center"], sizes)
    if kind in ("RMSNormalization", "LayerScale"):
        return shape, {"scale" if kind == "RMSNormalization" else "gamma": (c,)}
    if kind == "PReLU":
        return shape, {"alpha": tuple(1 if i in options["shared_axes"] else n for i, n in enumerate(shape, 1))}
    if kind in RECURRENT[:3]:
        units, gates = options["units"], {"SimpleRNN": 1, "LSTM": 4, "GRU": 3}[kind]
        weights = {"kernel": (c, gates * units), "recurrent_kernel": (units, gates * units)}
        sizes = (2, gates * units) if options.get("reset_after") else (gates * units,)
        return (*shape[: options["return_sequences"]], units), weights | (
            {"bias": sizes} if options["use_bias"] else {}
        )
    if kind == "Bidirectional":
        made = [outcome(one["kind"], one["options"], shape) for one in (options["layer"], options["backward_layer"])]
        (forward, ahead), (backward, behind) = made
        weights = {f"forward_{key}": size for key, size in ahead.items()}
        weights |= {f"backward_{key}": size for key, size in behind.items()}
        joined = (*forward[:-1], forward[-1] + backward[-1])
        return joined if options["merge_mode"] == "concat" else forward, weights
    if kind == "TimeDistributed":
        inside, weights = outcome(options["layer"]["kind"], options["layer"]["options"], shape[1:])
        return (shape[0], *inside), weights
    if kind.startswith("ConvLSTM"):
        image = slide(options, shape[1:], kernel_size)
        weights = {"kernel": (*kernel_size, c, 4 * filters), "recurrent_kernel": (*kernel_size, filters, 4 * filters)}
        return (*shape[: options["return_sequences"]], *image, filters), weights | bias(4 * filters)
    if kind.endswith("HeadAttention") or kind.startswith("Grouped"):
        query, value, key = shapes[0], shapes[1], shapes[-1]
        if kind.startswith("Grouped"):
            size = value_size = options["head_dim"]
            heads, groups, output = options["num_query_heads"], options["num_key_value_heads"], query[-1:]
        else:
            size, value_size = options["key_dim"], options["value_dim"]
            heads = groups = options["num_heads"]
            output = options["output_shape"] or query[-1:]
        found = {"query": (query[-1], heads, size), "key": (key[-1], groups, size)}
        if options["use_gate"]:
            found["gate"] = (query[-1], heads, value_size)
        found |= {"value": (value[-1], groups, value_size), "output": (heads, value_size, *output)}
        weights = {}
        for key, own in found.items():
            weights[f"{key}_kernel"] = own
            if options["use_bias"]:
                weights[f"{key}_bias"] = own[-len(output) :] if key == "output" else own[-2:]
        return (*query[:-1], *output), weights
    if kind in ("Attention", "AdditiveAttention"):
        names = ["scale"] * options["use_scale"] + ["concat_score_weight"] * (options.get("score_mode") == "concat")
        sizes = shape[-1:] if kind == "AdditiveAttention" else (1,)
        return (shape[0], shapes[1][-1]), dict.fromkeys(names, sizes)
    if kind == "Variable":
        size = options["shape"] or (1,)
        if "float" not in options["dtype"] or options["dtype"] == "float64":
            bits = 8 if options["dtype"] == "bool" else int(re.sub(r"\D", "", options["dtype"]))
            size = (*options["shape"], max(bits // 16, 1))
        return shape, {"kernel" if len(size) > 1 else "values": size}
    if kind == "EinsumDense":
        return by_equation(options, shape)
    if kind == "Embedding":
        sizes = options["input_dim"], options["output_dim"]
        return (*shape, sizes[1]), {"embeddings": sizes}
    if kind == "Dot":
        left = [n for one, axis in zip(shapes, options["axes"], strict=True) for n in (*one[: axis - 1], *one[axis:])]
        return tuple(left) or (1,), {}
    if kind in ("Add", "Multiply", "Subtract", "Average", "Maximum", "Minimum", "CustomScaleLayer"):
        return tuple(map(max, zip(*shapes, strict=True))), {}
    if kind == "Concatenate":
        axis = options["axis"]
        place = len(shape) - 1 if axis == -1 else axis - 1
        return (*shape[:place], sum(one[place] for one in shapes), *shape[place + 1 :]), {}
    return shape, {}


def by_equation(options, shape):
    """The shapes of an EinsumDense whose equation has no ellipsis in the middle."""
    source, weight, target = re.split(",|->", options["equation"].replace("...", "*"))
    full = (0, *shape)
    elided = [str(number) for number in range(len(full) - len(source.replace("*", "")))]
    source, target = (
        [one for axis in axes for one in (elided if axis == "*" else [axis])] for axes in (source, target)
    )
    sizes = dict(zip(source, full, strict=True))
    first = len(elided) - 1 if options["equation"].startswith("...") else 0
    inner = list(shape[:first]) + list(options["output_shape"])
    inner += list(shape[len(shape) - (len(target) - 1 - len(inner)) :]) if len(inner) < len(target) - 1 else []
    for axis, size in zip(target[1:], inner, strict=True):
        sizes[axis] = sizes.get(axis) or size
    weights = {"kernel": tuple(sizes[axis] for axis in weight)}
    if options["bias_axes"]:
        start = min(map(target.index, options["bias_axes"]))
        weights["bias"] = tuple(sizes[axis] if axis in options["bias_axes"] else 1 for axis in target[start:])
    return tuple(sizes[axis] for axis in target[1:]), weights


# Names


def default_names(kinds):
    names = []
    for place, kind in enumerate(kinds):
        name = kind[:1]
        for before, own, after in zip(kind, kind[1:], kind[2:] + " ", strict=False):
            name += "_" + own if own.isupper() and (before.islower() or after.islower()) else own
        earlier = kinds[:place].count(kind)
        names.append(name.lower() + (f"_{earlier}" if earlier else ""))
    return names


def next_name(name):
    stem, digits = re.fullmatch("(.*?)([0-9]*)", name).groups()
    require(digits, "no number to go on from")
    return stem + str(int(digits) + 1).rjust(len(digits), "0")


def read_name(source, version, default, earlier):
    how = source.varint()
    if version > 1 and how and how % 2 == 0:
        require(how // 2 <= len(earlier), "no such earlier layer")
        return next_name(earlier[-how // 2])
    length = (how + 1) // 2 if version > 1 else how
    return str(source.take(length), "utf-8") if length else default


def read_form(source):
    """None for one tensor alone, () for a list, or the keys of a dictionary."""
    how = whole(0, 2)(source)
    if how < 2:
        return () if how else None
    return tuple(read_name(source, 2, "", []) for _ in range(whole(1, 65535)(source)))


# Tables


FLOAT32, FLOAT16, BFLOAT16 = range(3)


def read_values(source, count, kind):
    if kind == BFLOAT16:
        return float_of([word << 16 for word in struct.unpack(f"<{count}H", source.take(2 * count))])
    code, size = ("e", 2) if kind == FLOAT16 else ("f", 4)
    return list(struct.unpack(f"<{count}{code}", source.take(count * size)))


def float_of(words):
    """The float32 numbers of words of 32 bits."""
    return list(struct.unpack(f"<{len(words)}f", struct.pack(f"<{len(words)}I", *words)))


class InPlanes:
    """A weight whose values follow the tables: their type and number, and whether the rest are zeros."""

    def __init__(self, kind, count, sparse):
        self.kind, self.count, self.sparse = kind, count, sparse


def read_table(source, version, shape):
    """An entry: a list of all values, a codebook in a tuple, or what is known of planes."""
    entry, size = source.varint(), math.prod(shape)
    if version > 2:
        form, kind = entry // 4, entry % 4
        require(kind < 3, f"no type {kind}")
        if form in (2, 3):
            count = source.varint() if form == 3 else size
            require(form == 2 or 64 * (size - count) >= size, "too many values for form 3")
            return InPlanes(kind, count, form == 3)
        count = form - 4
    else:
        form, kind = entry // 2, entry % 2
        count = form - 2
        require(version > 1 or form < 3, f"no form {form}")
    if form == 0:
        return read_values(source, size, kind)
    if form == 1:
        return read_values(source, 1, kind) * size
    return tuple(read_values(source, count if version > 1 else source.varint(), kind))


def read_planes(source, planes):
    """The values of a weight, of which those that are 0.0 may be missing."""
    size = 4 if planes.kind == FLOAT32 else 2
    words = [0] * planes.count
    for place in range(size - 1, -1, -1) if planes.count else ():
        (coded,) = source.take(1)
        require(coded < 2, "neither a plane nor a Huffman stream")
        plane = read_huffman(source, planes.count, 256) if coded else source.take(planes.count)
        words = [word | byte << 8 * place for word, byte in zip(words, plane, strict=True)]
    words = [word >> 1 | (word & 1) << (8 * size - 1) for word in words]
    if planes.kind == FLOAT16:
        return list(struct.unpack(f"<{len(words)}e", struct.pack(f"<{len(words)}H", *words)))
    return float_of([word << 16 for word in words] if planes.kind == BFLOAT16 else words)


# Huffman


class Bits:
    """The bits of bytes, from the highest bit of the first byte on."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def bit(self):
        require(self.at < 8 * len(self.data), "the bits end early")
        self.at += 1
        return self.data[(self.at - 1) // 8] >> (7 - (self.at - 1) % 8) & 1

    def zeros(self):
        """How many zeros stand before the next one, which is read too."""
        count = 0
        while not self.bit():
            count += 1
        return count

    def gamma(self):
        number = 1
        for _ in range(self.zeros()):
            number = 2 * number + self.bit()
        return number


def best_lengths(counts):
    """The length of each symbol's codeword by package-merge; `counts` has those that occur."""
    symbols = [(counts[symbol], symbol, None) for symbol in sorted(counts, key=lambda s: (counts[s], -s))]
    items = symbols
    for _ in range(23):
        packages = [(a[0] + b[0], a, b) for a, b in zip(items[::2], items[1::2], strict=False)]
        items = sorted(symbols + packages, key=lambda item: (item[0], item[2] is not None))  # stable
    lengths, left = dict.fromkeys(counts, 0), items[: 2 * len(counts) - 2]
    while left:
        _, one, other = left.pop()
        if other is None:
            lengths[one] += 1
        else:
            left += [one, other]
    return lengths


def read_huffman(source, count, alphabet):
    """A Huffman stream of `count` symbols."""
    bits = Bits(source.data[source.at :])
    holes, below, above = bits.gamma() - 1, bits.gamma() - 1, bits.gamma() - 1
    present, next_symbol = [], below
    for _ in range(holes):
        run, hole = bits.gamma(), bits.gamma()
        present += range(next_symbol, next_symbol + run)
        next_symbol += run + hole
    require(next_symbol < alphabet - above, "symbols beyond the alphabet")
    present += range(next_symbol, alphabet - above)

    lengths, length = [], (len(present) - 1).bit_length()
    for _ in range(len(present) - 1):
        zeros = bits.zeros()
        length += (zeros + 1) // 2 if zeros % 2 else -(zeros // 2)
        require(1 <= length <= 24, f"a codeword of {length} bits")
        lengths.append(length)
    left = 2**24 - sum(2 ** (24 - length) for length in lengths)
    require(left > 0 and left & (left - 1) == 0, "the code is not complete")
    lengths.append(24 - (left.bit_length() - 1))

    words, word, before = {}, 0, 0
    for length, symbol in sorted(zip(lengths, present, strict=True)):
        word <<= length - before
        words[length, word] = symbol
        word, before = word + 1, length

    symbols = []
    for _ in range(count):
        length = word = 0
        while (length, word) not in words:
            length, word = length + 1, 2 * word + bits.bit()
        symbols.append(words[length, word])
    while bits.at % 8:
        require(not bits.bit(), "padding that is not zero")
    source.take(bits.at // 8)
    require(best_lengths(Counter(symbols)) == dict(zip(present, lengths, strict=True)), "the code is not the best")
    return symbols


def huffman_tensors(data, tensors, version=3):
    """The indices of each tensor, of (shape, k, negatives), flat."""
    source, found = Source(data), []
    for shape, k, _ in tensors:
        indices = [0] * math.prod(shape)
        (bits,) = source.take(1)
        require(bits <= 16, f"{bits} index bits")
        if bits:
            entries = source.varint()
            require(1 <= entries <= len(indices), f"{entries} entries")
            gaps = read_huffman(source, entries, 2**bits)
            values = read_huffman(source, entries, k + 1)
            require(values[-1] > 0, "a filler at the end")
            position = -1
            for gap, value in zip(gaps, values, strict=True):
                require(value > 0 or gap == 2**bits - 1, "a needless filler")
                position += gap + 1
                require(position < len(indices), "a gap past the end")
                indices[position] = value
        found.append(indices)
    require(source.at == len(data), "bytes follow the indices")
    return found


# Range

KNOTS = [0, 1, 1, 2, 3, 5, 8, 13, 22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625, 24743]
KNOTS += [32768, *(65536 - knot for knot in reversed(KNOTS))]


def squash_table():
    table = []
    for x in range(6144):
        i, f = x >> 7, x & 127
        table.append(min(max(KNOTS[i] + ((KNOTS[i + 1] - KNOTS[i]) * f >> 7), 4), 65532))
    return table


def stretch_table(squash):
    table, below = [], 0
    for p in range(65536):
        while below < len(squash) and squash[below] < p:
            below += 1
        table.append(min(max(below, 1), 6143) - 3072)
    return table


SQUASH = squash_table()
STRETCH = stretch_table(SQUASH)
PACE = [131072 // (2 * n + 3) for n in range(4096)]


class RangeDecoder:
    """Low, high and code, of 32 bits each."""

    def __init__(self, data):
        self.data, self.shifted = data, 0
        self.low, self.high, self.code = 0, 2**32 - 1, int.from_bytes(data[:4].ljust(4, b"\0"), "big")

    def decision(self, p):
        width = self.high - self.low
        middle = self.low + (width >> 16) * p + ((width & 65535) * p >> 16)
        one = self.code <= middle
        if one:
            self.high = middle
        else:
            self.low = middle + 1
        while self.low >> 24 == self.high >> 24:
            following = self.data[self.shifted + 4] if self.shifted + 4 < len(self.data) else 0
            self.shifted += 1
            self.low = self.low << 8 & 0xFFFFFFFF
            self.high = self.high << 8 & 0xFFFFFFFF | 255
            self.code = self.code << 8 & 0xFFFFFFFF | following
        return int(one)

    def check_end(self):
        for size in range(5):
            unit = 2 ** (32 - 8 * size)
            number = -(-self.low // unit) * unit
            if number <= self.high:
                tail = (number // unit).to_bytes(size, "big")
                break
        require(self.data[self.shifted :] == tail, "the tail is not the shortest")


class Mixer:
    """The counters of one tensor: [probability in 2^30, age], made when they are first asked or guessed."""

    def __init__(self, coder):
        self.coder, self.counters = coder, {}

    def guess(self, key, other, quarters, limit):
        q = self.counters[other][0]
        age = quarters * 2**28 // max(1, min(q, 2**30 - q))
        self.counters[key] = [q, min(max(age, 1), limit)]

    def asked(self, chosen, limits):
        for key, limit in zip(chosen, limits, strict=True):
            if key not in self.counters:
                self.guess(key, chosen[0], 1, limit)
        return [self.counters[key] for key in chosen]

    def learn(self, counters, limits, one, zeros):
        for counter, limit in zip(counters, limits, strict=True):
            q, age = counter
            if not one and zeros > 1:
                counter[:] = q - 2 * q * zeros // (2 * age + 2 * zeros + 1), min(age + zeros, limit)
            else:
                counter[:] = q + (((2**30 - 1) * one - q) * PACE[age] + 2**15 >> 16), min(age + 1, limit)

    def decide(self, chosen, limits, weights, offset=0, zeros=1):
        """`weights` is a set: the weights, the last of them the offset's, first_rate, decisions."""
        counters = self.asked(chosen, limits)
        logits = [*(STRETCH[q >> 14] for q, _ in counters), offset]
        total = sum(weight * logit for weight, logit in zip(weights["weights"], logits, strict=True)) >> 16
        p = SQUASH[min(max(total, -3072), 3071) + 3072]
        one = self.coder.decision(p)
        error, rate = 65535 * one - p, 1 + 500 * weights["first_rate"] // (500 + weights["decisions"])
        weights["decisions"] += 1
        for place, logit in enumerate(logits):
            weights["weights"][place] += logit * error * rate + 2**19 >> 20
        self.learn(counters, limits, one, zeros)
        return one


WORTH = {(1, 0): 4, (0, 1): 4, (1, 1): 2, (1, -1): 2, (2, 0): 2, (0, 2): 2}
WORTH |= dict.fromkeys([(1, 2), (1, -2), (2, 1), (2, -1)], 1)


def range_tensor(coder, shape, k, negatives, left_before):
    """The indices of one tensor, flat and in the order of its shape."""
    swapped = coder.decision(32768)
    descending = coder.decision(32768)
    shape = (1,) * (4 - len(shape)) + tuple(shape)
    A, B, I, O = math.prod(shape[:-3]), *shape[-3:]  # noqa: E741
    hints = [left.bit_length() for left in left_before] if len(left_before) == I and not swapped else None
    if swapped:
        I, O = O, I  # noqa: E741
    narrow = k <= 64 and (k + 1) * (I + O) <= 2**22
    mixer = Mixer(coder)
    mixer.counters[("all",)] = [107374182, 1]
    for o in range(O):
        mixer.guess(("column", o), ("all",), 8, 255)
    for node in range(k + 1):
        mixer.counters["node", node] = [2**29, 1]
    new_set = lambda first_rate, *weights: {"weights": [*weights], "first_rate": first_rate, "decisions": 0}  # noqa: E731
    survival_sets = [new_set(8, -8192, 20480, 20480, 4096, 12288, 4096, 0, 8192, 65536) for _ in range(5)]
    survival_limits = [4095, 255, 255, 511, 511, 511, 511, 511]
    value_sets = [new_set(64, 8192, *[8192, 8192] * narrow, 16384, 16384, 0) for _ in range(4)]
    rows, columns = [0] * (A * B * I), [0] * O
    ties = [range(O)] if descending else [range(o, o + 1) for o in range(O)]
    index = {}

    def rank(x):
        return 0 if x == 0 else x - negatives if x > negatives else x - negatives - 1

    for a, b, i in itertools.product(range(A), range(B), range(I)):
        r = (a * B + b) * I + i
        above = min((rows[r - B * I] + 1).bit_length(), 15) if a else 0
        beside = min((rows[r - I] + 1).bit_length(), 15) if b else 0
        sides = ("sides", above, beside)
        mixer.guess(("row",), sides if sides in mixer.counters else ("all",), 8, 255)
        next_ties = []
        for tie in ties:
            first_counter, first_left = list(mixer.counters["column", tie[0]]), columns[tie[0]]
            next_ties.append(tie)
            for s, o in enumerate(tie):
                if s:
                    mixer.counters["column", o], columns[o] = list(first_counter), first_left
                around = {(u, v): index.get((a - u, b - v, i, o), 0) for u, v in WORTH}
                is_left = {place: int(x > 0) for place, x in around.items()}
                near = 2 * is_left[1, 0] + 2 * is_left[0, 1] + is_left[1, 1] + is_left[1, -1]
                before, last = index.get((a, b, i - 1, o), 0), index.get((a, b, i, o - 1), 0)
                in_column = (1024 * columns[o] // (r + 1)).bit_length()
                in_row = (1024 * rows[r] // (o + 1)).bit_length()
                chosen = [
                    ("all",),
                    ("row",),
                    ("column", o),
                    ("densities", in_column, in_row, near),
                    ("input", i),
                    ("neighbours", near, before > 0, last > 0),
                    sides,
                    ("hint", min(hints[i] + 1, 15) if hints else 0, in_row),
                ]
                T = len(tie)
                offset = STRETCH[65536 * (T - s) // (T + 1)] if T > 1 else 0
                weights = survival_sets[4 if T > 1 else min(near, 3)]
                if not mixer.decide(chosen, survival_limits, weights, offset, T - s):
                    index |= {(a, b, i, other): 0 for other in tie[s:]}
                    if s:
                        next_ties[-1:] = [tie[:s], tie[s:]]
                    break
                require(k > 0, "a survivor without a codebook")
                rows[r] += 1
                columns[o] += 1
                ranks = {place: rank(x) for place, x in around.items()}
                levels = min(max(ranks[1, 0] + ranks[0, 1], -4), 4)
                signs = sum(worth * ((ranks[place] > 0) - (ranks[place] < 0)) for place, worth in WORTH.items())
                signs = min(max(signs, -8), 8)
                low, high, level = 1, k, 0
                node = negatives if 0 < negatives < k else (1 + k) // 2
                while low < high:
                    chosen = [("node", node)]
                    if narrow:
                        chosen += [("column and node", o, node), ("input and node", i, node)]
                    chosen += [("levels and node", levels, node), ("signs and node", signs, node)]
                    upper = mixer.decide(chosen, [255] * len(chosen), value_sets[min(level, 3)])
                    low, high = (node + 1, high) if upper else (low, node)
                    node = (low + high) // 2
                    level += 1
                index[a, b, i, o] = low
        ties = next_ties
    columns = [[index[a, b, i, o] > 0 for a in range(A) for b in range(B) for i in range(I)] for o in range(O)]
    require(descending == (columns == sorted(columns, reverse=True)), "the descending bit is wrong")
    if swapped:
        return [index[a, b, i, o] for a in range(A) for b in range(B) for o in range(O) for i in range(I)]
    return [index[a, b, i, o] for a in range(A) for b in range(B) for i in range(I) for o in range(O)]


PLACES = [(0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (1, 2), (1, -2), (2, 1), (2, -1), (2, 2), (2, -2)]
CLASSES = [3, 11, 22, 38, 60, 92, 136, 199, 288, 414, 593, 845]
SHARES = [76, 108, 152, 215, 304, 430, 609, 861]
NEAR_WEIGHTS = [
    [-16800, 10900, 16200, 16100, 11600, 9800, 11100, 15300, 65536],
    [-16700, 12700, 18000, 12100, 2400, 4600, 1800, 1000, 65536],
    [-23000, 6900, 7800, 8800, -1200, 4700, -500, -3900, 65536],
    [-25900, 4300, 7200, 5900, -3200, 16100, -600, -2600, 65536],
    [-18400, 16600, 18700, 17600, 7100, 4600, 11200, 7000, 59000],
]
OTHER_WEIGHTS = [-14000, 16000, 19200, 14300, 8200, 8500, 7600, 6700, 65536]
LEVEL_WEIGHTS = [
    [-24400, -3500, -3600, 43100, -4500, -4600, 52900],
    [-12300, 16200, 16300, 21600, 5200, 13300, 2700],
    [-1500, 8100, 9800, 15400, 8600, 9500, 4800],
    [5700, -900, -900, 9300, 800, 3600, -1000],
]
AIM_WEIGHTS = [-700, 10600, 10700, 20400, 10800, 14700, 13600]


def class_of(x, bounds=CLASSES):
    return sum(bound <= x for bound in bounds)


class SetMixer(Mixer):
    """As `Mixer`, but a decision has several sets of weights, made when they are first asked: [weights, decisions]."""

    def __init__(self, coder):
        super().__init__(coder)
        self.sets = {}

    def decide_by(self, chosen, limits, sets, first_rate, offset=0, zeros=1):
        """`sets` maps the name of each set to its first weights."""
        held = [self.sets.setdefault(name, [list(first), 0]) for name, first in sets.items()]
        counters = self.asked(chosen, limits)
        logits = [*(STRETCH[q >> 14] for q, _ in counters), offset]
        total = sum(sum(weights[place] for weights, _ in held) * logit for place, logit in enumerate(logits))
        p = SQUASH[min(max((total >> 16) // len(held), -3072), 3071) + 3072]
        one = self.coder.decision(p)
        for one_set in held:
            rate = 2 + 500 * first_rate // (500 + one_set[1])
            one_set[1] += 1
            for place, logit in enumerate(logits):
                one_set[0][place] += logit * (65535 * one - p) * rate + 2**19 >> 20
        self.learn(counters, limits, one, zeros)
        return one


class Channels:
    """What is known of channels from earlier tensors."""

    def __init__(self):
        self.left, self.outputs, self.inputs = [], {}, {}

    def note(self, shape, indices):
        if len(shape) < 2:
            return
        m, n = shape[-1], shape[-2]
        self.left = [sum(map(bool, indices[o::m])) for o in range(m)]
        rows = [sum(map(bool, indices[place : place + m])) for place in range(0, len(indices), m)]

        def share(counts):
            total = max(sum(counts), 1)
            return [1 + class_of(256 * count * len(counts) // total, SHARES) for count in counts]

        self.outputs[m] = share(self.left)
        self.inputs[n] = share([sum(rows[i::n]) for i in range(n)])
        self.inputs[m] = share(self.left)


def range_tensor_3(coder, shape, k, negatives, channels):
    """The indices of one tensor, flat and in the order of its shape."""
    swapped = coder.decision(32768)
    descending = coder.decision(32768)
    shape = (1,) * (4 - len(shape)) + tuple(shape)
    A, B, I, O = math.prod(shape[:-3]), *shape[-3:]  # noqa: E741
    hints = [0] * I
    if len(channels.left) == I and not swapped:
        hints = [min(left.bit_length() + 1, 15) for left in channels.left]
    inputs, outputs = channels.inputs.get(I), channels.outputs.get(O)
    if swapped:
        I, O = O, I  # noqa: E741
        hints = [0] * I
        inputs, outputs = channels.outputs.get(I), channels.inputs.get(O)
    inputs, outputs = inputs or [0] * I, outputs or [0] * O
    narrow = k <= 64 and (k + 1) * (I + O) <= 2**22
    window = A * B > 1
    mixer = SetMixer(coder)
    mixer.counters[("all",)] = [107374182, 1]
    for o in range(O):
        mixer.guess(("column", o), ("all",), 8, 255)
    for node in range(k + 1):
        mixer.counters["node", node] = [2**29, 1]
    limits = [4095, 255, 255, 511, 511, 511, 511, 511]
    rows, columns, sides, index = [0] * (A * B * I), [0] * O, {}, {}
    sizes = [0] * O
    ties = [range(O)] if descending else [range(o, o + 1) for o in range(O)]
    base, s, v = 1677721, [1677721] * 2 + [838860] * 2 + [0] * 8, [2516582] * 2 + [838860] * 2 + [0] * 8

    def rank(x):
        return 0 if x == 0 else x - negatives if x > negatives else x - negatives - 1

    def size_of(x):
        return 256 * abs(rank(x)) // max(negatives, k - negatives, 1)

    def signed(x):
        return size_of(x) if rank(x) > 0 else -size_of(x)

    for a, b, i in itertools.product(range(A), range(B), range(I)):
        r = (a * B + b) * I + i
        above = min((rows[r - B * I] + 1).bit_length(), 15) if a else 0
        beside = min((rows[r - I] + 1).bit_length(), 15) if b else 0
        side = ("beside", above, beside) if a or b else ("channel", hints[i], inputs[i])
        if side in sides:
            mixer.counters[side] = sides[side]
        mixer.guess(("row",), side if side in sides else ("all",), 8, 255)
        next_ties, row_size = [], 0
        for tie in ties:
            first_counter, first_left = list(mixer.counters["column", tie[0]]), columns[tie[0]]
            next_ties.append(tie)
            for place, o in enumerate(tie):
                if place:
                    mixer.counters["column", o], columns[o] = list(first_counter), first_left
                around = [index.get((a - up, b - left, i, o), 0) if window else 0 for up, left in PLACES]
                is_left = [int(x > 0) for x in around]
                f = [signed(x) for x in around]
                near = 2 * is_left[0] + 2 * is_left[1] + is_left[2] + is_left[3]
                known = 4 * min(near, 3) + min(3, sum(is_left[4:10]))
                if not window:
                    known = 2 * (index.get((a, b, i, o - 1), 0) > 0) + (index.get((a, b, i, o - 2), 0) > 0)
                likely = base + sum(weight for weight, survives in zip(s, is_left, strict=True) if survives)
                predicted = sum(weight * own for weight, own in zip(v, f, strict=True)) >> 24
                odds, strength = class_of(min(max(likely >> 14, 0), 1024)), class_of(min(abs(predicted), 592))
                in_column = (1024 * columns[o] // (r + 1)).bit_length()
                in_row = (1024 * rows[r] // (o + 1)).bit_length()
                chosen = [
                    ("all",),
                    ("row",),
                    ("column", o),
                    ("input", i),
                    ("hint", hints[i], in_row),
                    ("window", strength, odds, in_column),
                    ("neighbours", known, i if A * B * O >= 16 else 0),
                    ("channels", outputs[o], inputs[i], in_column, in_row),
                ]
                T, which = len(tie), 4 if len(tie) > 1 else min(near, 3)
                sets = {
                    ("near", which): NEAR_WEIGHTS[which],
                    ("window", odds, min(strength // 2, 3)): OTHER_WEIGHTS,
                    ("density", min(in_column, 7), min(in_row, 7)): OTHER_WEIGHTS,
                }
                offset = STRETCH[65536 * (T - place) // (T + 1)] if T > 1 else 0
                survives = mixer.decide_by(chosen, limits, sets, 8, offset, T - place)
                if window:
                    miss = 2**24 * survives - likely
                    base += miss >> 9
                    if any(around):
                        share = miss // (50 * (4 + sum(is_left)))
                        s = [weight + share * one for weight, one in zip(s, is_left, strict=True)]
                if not survives:
                    index |= {(a, b, i, other): 0 for other in tie[place:]}
                    if place:
                        next_ties[-1:] = [tie[:place], tie[place:]]
                    break
                require(k > 0, "a survivor without a codebook")
                means = [
                    min(7, total // (32 * n)) if n else 0 for total, n in ((sizes[o], columns[o]), (row_size, rows[r]))
                ]
                rows[r] += 1
                columns[o] += 1
                levels = min(max(rank(around[0]) + rank(around[1]), -4), 4)
                aim = strength if predicted >= 0 else -strength
                low, high, level = 1, k, 0
                node = negatives if 0 < negatives < k else (1 + k) // 2
                while low < high:
                    chosen = [("node", node), ("levels", levels, node), ("aim", aim, node)]
                    first = [[8192, 19200, 10500, 0]] * 2
                    if narrow:
                        density = [min(max(digits - 3, 0), 7) for digits in (in_column, in_row)]
                        chosen[1:1] = [("node of column", o, node), ("node of input", i, node)]
                        chosen[4:4] = [("densities", *density, node), ("sizes", *means, node)]
                        first = [[*LEVEL_WEIGHTS[min(level, 3)], 0], [*AIM_WEIGHTS, 0]]
                    names = [("level", min(level, 3)), ("aim of level", aim, min(level, 3))]
                    upper = mixer.decide_by(chosen, [255] * len(chosen), dict(zip(names, first, strict=True)), 64)
                    low, high = (node + 1, high) if upper else (low, node)
                    node = (low + high) // 2
                    level += 1
                index[a, b, i, o] = low
                row_size, sizes[o] = row_size + size_of(low), sizes[o] + size_of(low)
                if e := sum(own * own for own in f):
                    miss = (signed(low) - predicted) * 335544
                    v = [weight + miss * own // (19661 + e) for weight, own in zip(v, f, strict=True)]
        ties = next_ties
        q, age = sides.get(side, [mixer.counters["all",][0], 0])
        sides[side] = [q + 2 * ((rows[r] * 2**30 // O) - q) // (2 * age + 3), min(age + 1, 63)]
    columns = [[index[a, b, i, o] > 0 for a in range(A) for b in range(B) for i in range(I)] for o in range(O)]
    require(descending == (columns == sorted(columns, reverse=True)), "the descending bit is wrong")
    if swapped:
        return [index[a, b, i, o] for a in range(A) for b in range(B) for o in range(O) for i in range(I)]
    return [index[a, b, i, o] for a in range(A) for b in range(B) for i in range(I) for o in range(O)]


def range_tensors(data, tensors, version=3):
    """The indices of each tensor, of (shape, k, negatives), flat."""
    coder, found, channels = RangeDecoder(data), [], Channels()
    for shape, k, negatives in tensors:
        if version > 2:
            indices = range_tensor_3(coder, shape, k, negatives, channels)
        else:
            indices = range_tensor(coder, shape, k, negatives, channels.left)
        channels.note(shape, indices)
        found.append(indices)
    coder.check_end()
    return found


# The file


def read_dcz(data):
    """A `.dcz` file as plain values: coder, name, shape of the input, layers with kind, name, inputs, options, weights.

    A weight is a list of its values, or a tuple of its codebook and the list of its indices.
    """
    version = data[3]
    require(data[:3] == b"DCZ" and version in (1, 2, 3) and data[4] < 2, "the header is wrong")
    require(zlib.crc32(data[:-4]) == int.from_bytes(data[-4:], "little"), "the checksum is wrong")
    source = Source(data[5:-4])
    shape = row(SIZE)(source)
    layers = [{"kind": "InputLayer", "inputs": [], "options": {"shape": (), "dtype": "float32", "open_axes": ()}}]
    count, ends = (source.varint() + 2, 0) if version > 2 else (whole(1, 65535)(source), 0)
    if version > 2:
        count, ends = count // 2, count % 2
        require(count <= 65535, "too many layers")
    for number in range(1, count + 1):
        layers.append(read_layer(source, number, layers, version))
    results, forms = [count], [None, None]
    if ends:
        number = source.varint()
        layers[0]["options"]["dtype"] = DTYPE(Source(bytes([number % 32])))
        if number >= 32:
            layers[0]["options"]["open_axes"] = row(whole(1, 8))(source)
        results = [count - source.varint() for _ in range(whole(1, 65535)(source))]
        forms = [read_form(source), read_form(source)]
    name = read_name(source, version, "", [])
    names = []
    kinds = ["" if "again" in layer else layer["kind"] for layer in layers]
    for layer, default in zip(layers, default_names(kinds), strict=True):
        if "again" in layer:
            calls = sum(other.get("again") == layer["again"] for other in layers[: len(names)])
            layer["name"] = f"{names[layer['again']]}:{calls + 2}"
        else:
            layer["name"] = read_name(source, version, default, names)
        names.append(layer["name"])

    outputs, shared, planes = [], [], []
    for number, layer in enumerate(layers):
        if layer["kind"] == "InputLayer":
            outputs.append(layer["options"]["shape"] if number else shape)
            layer["weights"] = {}
            continue
        output, weights = outcome(layer["kind"], layer["options"], *(outputs[i] for i in layer["inputs"]))
        outputs.append(output)
        if "again" in layer:
            continue
        layer["weights"] = {}
        for key, own in weights.items():
            layer["weights"][key] = entry = read_table(source, version, own)
            if isinstance(entry, InPlanes):
                planes.append((layer, key, entry))
            if isinstance(entry, list) or (isinstance(entry, InPlanes) and not entry.sparse):
                continue
            if layer["kind"] == "Dense" and key == "kernel":
                (before,) = layer["inputs"]
                while layers[before]["kind"] in KEEPING:
                    (before,) = layers[before]["inputs"]
                if layers[before]["kind"] == "Flatten":
                    own = (*outputs[layers[before]["inputs"][0]], own[-1])
            sparse = isinstance(entry, InPlanes)
            coded = (own, 1, 0) if sparse else (own, len(entry), sum(value < 0 for value in entry))
            shared.append((layer, key, coded))

    for layer, key, entry in planes:
        layer["weights"][key] = read_planes(source, entry)
    section = source.data[source.at :]
    if shared:
        read = (huffman_tensors, range_tensors)[data[4]]
        for (layer, key, _), indices in zip(
            shared, read(section, [tensor for *_, tensor in shared], version), strict=True
        ):
            codebook = layer["weights"][key]
            decoded = (codebook, indices)
            if isinstance(codebook, list):
                left = iter(codebook)
                decoded = [next(left) if i else 0.0 for i in indices]
                require(next(left, None) is None, "more values than positions")
            elif not key.endswith(("kernel", "embeddings")):
                decoded = [codebook[i - 1] if i else 0.0 for i in indices]
            layer["weights"][key] = decoded
    else:
        require(not section, "bytes follow the tables")
    for layer in layers:
        layer["weights"] = layers[layer.get("again", layers.index(layer))]["weights"]
    found = {"name": name, "shape": shape, "layers": layers, "outputs": tuple(results), "forms": tuple(forms)}
    return {"coder": ("huffman", "range")[data[4]], **found}


# The golden files


class Draws:
    """Whole numbers that look random, the same on every machine and with every NumPy for ever."""

    def __init__(self, seed):
        self.state = seed

    def below(self, bound):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (self.state >> 33) % bound


def shared_kernel(draws, shape, codebook, percent):
    """A pruned and shared kernel that survives here more and there less, with an output in five dead."""
    outputs = [draws.below(5) and draws.below(2 * percent + 1) for _ in range(shape[-1])]
    rows = [draws.below(2 * percent + 1) for _ in range(math.prod(shape[:-1]))]
    k = len(codebook)
    indices = [
        min(draws.below(k), draws.below(k)) + 1 if k and draws.below(100) < (row + output) // 2 and output else 0
        for row in rows
        for output in outputs
    ]
    dtype = np.uint8 if k < 256 else np.uint16
    return SharedWeight(np.array(codebook, np.float32), np.array(indices, dtype).reshape(shape))


def values(draws, size, step=1 / 1024):
    """Plain weights: multiples of `step`, so that float16 keeps them where it is a power of two."""
    return np.array([(draws.below(513) - 256) * step for _ in range(size)], np.float32)


def lenet():
    """Convolutions, dense layers and biases, pruned and shared; the classifier has an input order by Flatten."""
    draws = Draws(1)
    five = [-0.75, -0.25, 0.125, 0.5, 1.0]
    relu = {"activation": "relu"}
    conv = {"kernel_size": (3, 3), "padding": "same", **relu}
    return Network(
        "lenet",
        (12, 12, 1),
        (
            Layer("InputLayer", "image"),
            Layer(
                "Conv2D",
                "conv1",
                (0,),
                {"filters": 6, **conv},
                {"kernel": shared_kernel(draws, (3, 3, 1, 6), five, 70), "bias": values(draws, 6, 0.1)},
            ),
            Layer("MaxPooling2D", "max_pooling2d", (1,)),
            Layer(
                "Conv2D",
                "conv2",
                (2,),
                {"filters": 8, **conv},
                {"kernel": shared_kernel(draws, (3, 3, 6, 8), [-0.5, -0.1, 0.3], 30), "bias": values(draws, 8)},
            ),
            Layer("MaxPooling2D", "max_pooling2d_1", (3,)),
            Layer("Flatten", "flatten", (4,)),
            Layer("Dropout", "dropout", (5,)),
            Layer(
                "Dense",
                "fc1",
                (6,),
                {"units": 48, **relu},
                {"kernel": shared_kernel(draws, (72, 48), five, 10), "bias": np.zeros(48, np.float32)},
            ),
            Layer(
                "Dense",
                "fc2",
                (7,),
                {"units": 10, "activation": "softmax"},
                {"kernel": shared_kernel(draws, (48, 10), [-0.2, 0.4], 25), "bias": values(draws, 10)},
            ),
        ),
    )


def branches():
    """Every two-dimensional kind, options other than the defaults, branches, and every form of a weight."""
    draws = Draws(2)
    wide = [(i - 40.5) / 16 for i in range(81)]
    three = [-1.0, 0.5, 2.0]
    few = np.array([0.25, 0, 0, -3] * 16, np.float32)
    few[5] = 0.1
    return Network(
        "Zweige, größer",
        (11, 10, 2),
        (
            Layer("InputLayer", "input_layer"),
            Layer("Rescaling", "rescaling", (0,), {"scale": 1 / 255, "offset": -0.5}),
            Layer("ZeroPadding2D", "pad", (1,), {"padding": ((0, 1), (2, 0))}),  # 12 x 12 x 2
            Layer(
                "Conv2D",
                "conv2d",
                (2,),
                {"filters": 64, "kernel_size": (2, 3), "strides": (2, 2), "padding": "same", "groups": 2},
                {"kernel": shared_kernel(draws, (2, 3, 1, 64), wide, 40), "bias": few},
            ),  # 6 x 6 x 64
            Layer(
                "BatchNormalization",
                "batch_normalization",
                (3,),
                {"momentum": 0.9, "epsilon": 1e-5, "center": False},
                {
                    "gamma": np.full(64, 1.1, np.float32),
                    "moving_mean": np.array([-0.0] + [0.5] * 63, np.float32),
                    "moving_variance": np.full(64, 2.0, np.float32),
                },
            ),
            Layer("ReLU", "re_lu", (4,), {"max_value": 6.0, "threshold": 0.25}),
            Layer(
                "DepthwiseConv2D",
                "depthwise",
                (2,),
                {"kernel_size": (3, 2), "strides": (2, 2), "padding": "same", "depth_multiplier": 3, "use_bias": False},
                {"kernel": shared_kernel(draws, (3, 2, 2, 3), three, 60)},
            ),  # 6 x 6 x 6
            Layer("LeakyReLU", "leaky_re_lu", (6,), {"negative_slope": 0.2}),
            Layer(
                "SeparableConv2D",
                "separable",
                (7,),
                {"filters": 64, "kernel_size": (3, 3), "padding": "same", "dilation_rate": (2, 1), "activation": "elu"},
                {
                    "depthwise_kernel": values(draws, 54, 0.3).reshape(3, 3, 6, 1),
                    "pointwise_kernel": shared_kernel(draws, (1, 1, 6, 64), [0.75], 40),
                    "bias": np.zeros(64, np.float32),
                },
            ),  # 6 x 6 x 64
            Layer("Add", "add", (5, 8)),
            Layer("MaxPooling2D", "max_pooling2d", (9,), {"pool_size": (3, 2), "strides": (3, 3), "padding": "same"}),
            Layer("AveragePooling2D", "average_pooling2d", (9,), {"pool_size": (3, 3)}),
            Layer("Concatenate", "concatenate", (10, 11), {"axis": 2}),  # 2 x 4 x 64
            Layer("GlobalMaxPooling2D", "global_max_pooling2d", (12,), {"keepdims": True}),
            Layer("Activation", "gate", (13,), {"activation": "sigmoid"}),
            Layer("Multiply", "multiply", (12, 14)),
            Layer("GlobalAveragePooling2D", "global_average_pooling2d", (15,)),
            Layer(
                "Dense",
                "gone",
                (16,),
                {"units": 3},
                {"kernel": shared_kernel(draws, (64, 3), [], 0), "bias": values(draws, 3)},
            ),
            Layer("ELU", "elu", (17,), {"alpha": 0.5}),
            Layer("Permute", "permute", (15,), {"dims": (3, 1, 2)}),  # 64 x 2 x 4
            Layer("Reshape", "reshape", (19,), {"target_shape": (8, 2, 2, 16)}),
            Layer("Flatten", "flatten", (20,)),
            Layer("Activation", "activation", (21,), {"activation": "tanh"}),
            Layer(
                "Dense",
                "dense",
                (22,),
                {"units": 3},
                {"kernel": shared_kernel(draws, (512, 3), three, 15), "bias": values(draws, 3)},
            ),
            Layer("Concatenate", "concatenate_1", (23, 18)),
            Layer(
                "Dense",
                "dense_1",
                (24,),
                {"units": 4, "activation": "gelu"},
                {"kernel": values(draws, 24).reshape(6, 4), "bias": values(draws, 4, 0.3)},
            ),
            Layer("Softmax", "softmax", (25,)),
        ),
    )


def sequence():
    """Every one-dimensional kind, and a codebook of more than 255 values."""
    draws = Draws(3)
    three = [-0.5, 0.25, 1.5]
    many = [(i - 99.5) / 8 for i in range(260)]
    return Network(
        "sequence",
        (20, 4),
        (
            Layer("InputLayer", "input_layer"),
            Layer("ZeroPadding1D", "zero_padding1d", (0,)),  # 22 x 4
            Layer(
                "Conv1D",
                "conv1d",
                (1,),
                {"filters": 20, "kernel_size": (5,), "padding": "causal", "dilation_rate": (2,), "activation": "mish"},
                {"kernel": shared_kernel(draws, (5, 4, 20), three, 30), "bias": values(draws, 20)},
            ),  # 22 x 20
            Layer("MaxPooling1D", "max_pooling1d", (2,)),  # 11 x 20
            Layer(
                "DepthwiseConv1D",
                "depthwise_conv1d",
                (3,),
                {"kernel_size": (3,), "activation": "silu"},
                {"kernel": shared_kernel(draws, (3, 20, 1), [-2.0, -1.0], 50), "bias": values(draws, 20)},
            ),  # 9 x 20
            Layer(
                "SeparableConv1D",
                "separable_conv1d",
                (4,),
                {"filters": 12, "kernel_size": (2,), "strides": (2,), "use_bias": False},
                {
                    "depthwise_kernel": shared_kernel(draws, (2, 20, 1), [1.0, 3.0], 50),
                    "pointwise_kernel": shared_kernel(draws, (1, 20, 12), three, 30),
                },
            ),  # 4 x 12
            Layer("AveragePooling1D", "average_pooling1d", (5,), {"pool_size": (2,), "strides": (1,)}),  # 3 x 12
            Layer("GlobalMaxPooling1D", "global_max_pooling1d", (6,)),
            Layer("GlobalAveragePooling1D", "global_average_pooling1d", (6,)),
            Layer("Concatenate", "concatenate", (7, 8)),
            Layer(
                "Dense",
                "dense",
                (9,),
                {"units": 30, "use_bias": False},
                {"kernel": shared_kernel(draws, (24, 30), many, 40)},
            ),
        ),
    )


def plain():
    """Kernels whose values are not shared, of every type, with and without zeros."""
    draws = Draws(4)

    def kernel(shape, step, percent=100):
        made = values(draws, math.prod(shape), step)
        made[[draws.below(100) >= percent for _ in made]] = 0
        return made.reshape(shape)

    return Network(
        "plain",
        (12, 10),
        (
            Layer("InputLayer", "input_layer"),
            Layer("Flatten", "flatten", (0,)),
            Layer(
                "Dense", "dense", (1,), {"units": 6}, {"kernel": kernel((120, 6), 0.1, 10), "bias": values(draws, 6)}
            ),
            Layer(
                "Dense", "dense_1", (2,), {"units": 60, "use_bias": False}, {"kernel": kernel((6, 60), 1 / 1024, 60)}
            ),
            Layer(
                "Dense",
                "dense_2",
                (3,),
                {"units": 5, "use_bias": False},
                {"kernel": np.trunc(kernel((60, 5), 1 / 4)) * np.float32(2.0**-40)},
            ),
            Layer("Dense", "dense_3", (4,), {"units": 52}, {"kernel": kernel((5, 52), 0.1), "bias": values(draws, 52)}),
        ),
    )


def later():
    """Every kind since version 3, two types of inputs, a dictionary of outputs, and a layer that is called again."""
    made = [Layer("InputLayer", "volume"), Layer("InputLayer", "words", (), {"shape": (3,), "dtype": "uint8"})]

    def add(kind, *inputs, again=None, **options):
        if again is not None:
            earlier = made[again]
            calls, inputs = sum(layer.same_as == again for layer in made), inputs or (len(made) - 1,)
            made.append(Layer(kind, f"{earlier.name}:{calls + 2}", inputs, earlier.options, {}, again))
        else:
            made.append(Layer(kind, f"l{len(made)}", inputs or (len(made) - 1,), options))
        return len(made) - 1

    add("Conv3D", 0, filters=2, kernel_size=(2, 1, 2), groups=2, padding="same")
    add("MaxPooling3D", strides=(1, 2, 1))
    add("AveragePooling3D", padding="same")
    add("Conv3DTranspose", filters=2, kernel_size=(2, 2, 2), strides=(2, 1, 1), output_padding=(1, 0, 0))
    add("ZeroPadding3D", padding=((0, 1), (2, 0), (1, 1)))
    add("Cropping3D")
    add("UpSampling3D", size=(1, 2, 1))
    volume = add("AdaptiveMaxPooling3D", output_size=(2, 2, 2))
    pooled = [add(f"{kind}Pooling3D", volume) for kind in ("GlobalMax", "GlobalAverage")]
    add("AdaptiveAveragePooling3D", volume, output_size=(1, 2, 2))
    add("Reshape", target_shape=(2, 2, 2))
    add("Conv2DTranspose", filters=3, kernel_size=(3, 2), strides=(2, 2), padding="same", activation="relu")
    add("Resizing", height=5, width=4, interpolation="nearest")
    add("Cropping2D", cropping=((1, 0), (0, 1)))
    add("UpSampling2D", interpolation="bilinear")
    add("AdaptiveMaxPooling2D", output_size=(3, 3))
    add("AdaptiveAveragePooling2D", output_size=(2, 3))
    add("Normalization", axis=(3,))
    add("LayerNormalization", axis=(1, 3), epsilon=1e-6, center=False)
    add("GroupNormalization", groups=3)
    add("UnitNormalization", axis=(3,))
    image = add("PReLU", shared_axes=(1, 2))
    add("Embedding", 1, input_dim=5, output_dim=3)
    add("Conv1DTranspose", filters=3, kernel_size=(2,))
    add("Cropping1D", cropping=(1, 0))
    add("UpSampling1D")
    add("AdaptiveMaxPooling1D", output_size=(4,))
    add("AdaptiveAveragePooling1D", output_size=(3,))
    add("RMSNormalization")
    rows = add("LayerScale")
    dense = add("Dense", units=3)
    add("Dense", again=dense)
    called = [add("Dense", again=dense), rows]
    both = [add(kind, *called) for kind in ("Subtract", "Average", "Maximum", "Minimum")]
    add("CustomScaleLayer", *both[:2], scale=0.25)
    dot = add("Dot", len(made) - 1, both[2], axes=(2, 2), normalize=True)
    add("Flatten", both[3])
    repeated = add("RepeatVector", n=2)
    bare = Network("later", (3, 4, 3, 2), tuple(made), (repeated, dot, image, *pooled), (), tuple("abcde"))
    return drawn(bare, 5)


def drawn(bare, seed):
    """A network with weights."""
    draws, layers = Draws(seed), []
    for layer, one in zip(bare.layers, layer_shapes(bare), strict=True):
        weights = {
            key: shared_kernel(draws, shape, [-0.5, 0.25, 1.5], 60)
            if key.endswith(("kernel", "embeddings"))
            else np.abs(values(draws, math.prod(shape))).reshape(shape)
            for key, shape in one.weights.items()
        }
        weights = weights if layer.same_as is None else layers[layer.same_as].weights
        layers.append(replace(layer, weights=weights))
    return replace(bare, layers=tuple(layers))


def texts():
    """Recurrent layers, attention, equations, and layers inside others."""
    made = [Layer("InputLayer", "words", (), {"dtype": "int32"})]

    def add(kind, *inputs, **options):
        made.append(Layer(kind, f"t{len(made)}", inputs or (len(made) - 1,), options))
        return len(made) - 1

    words = add("Embedding", input_dim=6, output_dim=3, mask_zero=True)
    every = {"return_sequences": True}
    add("Masking", mask_value=-1.0)
    add("SimpleRNN", units=2, activation="relu", **every)
    add("LSTM", units=2, recurrent_activation="hard_sigmoid", go_backwards=True, **every)
    add("GRU", units=2, reset_after=False, use_bias=False, **every)
    add("Bidirectional", layer=Inner("GRU", {"units": 2, **every}, "gru"))
    ahead = Inner("LSTM", {"units": 3, **every})
    behind = Inner("SimpleRNN", {"units": 3, "go_backwards": True, **every}, "back")
    recurrent = add("Bidirectional", layer=ahead, merge_mode="ave", backward_layer=behind)
    heads = {"num_heads": 2, "key_dim": 3}
    add("MultiHeadAttention", recurrent, words, **heads, output_shape=(2, 2), use_bias=False, use_causal_mask=True)
    add("TimeDistributed", layer=Inner("TimeDistributed", {"layer": Inner("Dense", {"units": 3})}, "inside"))
    distributed = add("TimeDistributed", layer=Inner("Flatten", {}))
    attended = add("MultiHeadAttention", recurrent, recurrent, words, **heads, value_dim=1, use_gate=True, dropout=0.5)
    sizes = {"head_dim": 2, "num_query_heads": 4, "num_key_value_heads": 2, "sliding_window": 2}
    grouped = add("GroupedQueryAttention", attended, words, **sizes)
    scored = add("Attention", grouped, words, recurrent, use_scale=True, score_mode="concat")
    added = add("AdditiveAttention", grouped, words)
    add("EinsumDense", scored, equation="abc,cde->abde", output_shape=(0, 2, 2), bias_axes="de", activation="celu")
    add("EinsumDense", equation="...x,xy->...y", output_shape=(4,))
    add("Reshape", target_shape=(2, 2, 2, 4))
    add("ConvLSTM2D", filters=2, kernel_size=(1, 2), padding="same", **every)
    add("Reshape", target_shape=(2, 4, 2))
    add("ConvLSTM1D", filters=2, kernel_size=(3,), use_bias=False, **every)
    add("Reshape", target_shape=(2, 2, 1, 2, 1))
    last = add("ConvLSTM3D", filters=1, kernel_size=(2, 1, 1), strides=(1, 1, 2))
    return drawn(Network("texts", (4,), tuple(made), (last, added, distributed), None, ()), 6)


def variables():
    """Weights alone, of several dtypes."""
    made = [Layer("InputLayer", "weights")]
    for path, shape, dtype in (
        ("own/dense/kernel", (7, 5), "float32"),
        ("own/dense/bias", (5,), "bfloat16"),
        ("own/count", (), "int64"),
        ("own/flags", (3,), "bool"),
        ("own/steps", (2, 2), "float64"),
    ):
        options = {"path": path, "shape": shape, "dtype": dtype}
        made.append(Layer("Variable", f"v{len(made)}", (len(made) - 1,), options))
    return drawn(Network("own", (1,), tuple(made)), 7)


def of_any_size():
    """Two inputs with open sizes, and a Reshape that follows from them."""
    made = [
        Layer("InputLayer", "image", (), {"open_axes": (1, 2)}),
        Layer("InputLayer", "rows", (), {"shape": (4, 2), "open_axes": (1,)}),
        Layer("Conv2D", "conv", (0,), {"filters": 3, "kernel_size": (2, 2), "strides": (2, 2)}),
        Layer("Reshape", "pixels", (2,), {"target_shape": (1, 3), "open_axis": 1}),
        Layer("Dense", "dense", (1,), {"units": 3}),
        Layer("Concatenate", "both", (3, 4), {"axis": 1}),
        Layer("GlobalMaxPooling1D", "most", (5,)),
    ]
    return drawn(Network("any", (6, 4, 1), tuple(made), (6,), ()), 8)


NETWORKS = {
    "lenet": lenet,
    "branches": branches,
    "sequence": sequence,
    "plain": plain,
    "later": later,
    "texts": texts,
    "variables": variables,
    "open": of_any_size,
}
# The first version with a golden file of a network, where that is not 1.
SINCE = {"plain": 3, "later": 3, "texts": 3, "variables": 3, "open": 3}


def golden():
    """Write the golden files of today's format anew: `python -c "import test_format; test_format.golden()"` in tests.

    Only for a new format version, under new names: the files of earlier versions stay.
    """
    GOLDEN.mkdir(exist_ok=True)
    for name, make in NETWORKS.items():
        for coder in coding.CODERS:
            golden_file(name, coder).write_bytes(container.dumps(make(), coder))


def golden_file(name, coder, version=container.VERSION):
    """The golden file of a network; those of version 1 bear no number."""
    return GOLDEN / (f"{name}-{coder}.dcz" if version == 1 else f"{name}-{coder}-{version}.dcz")


# The tests

BREAKING = (
    "today's writer writes other bytes than the golden file: a changed bit stream is a breaking change. Raise the "
    "format's version, keep reading the old one, and keep its golden files."
)


def float_bytes(numbers):
    return struct.pack(f"<{len(numbers)}f", *numbers)


def flat(option):
    """A tuple of tuples as one tuple, and a layer inside another as a dictionary."""
    if isinstance(option, Inner):
        own = {key: flat(value) for key, value in option.options.items()}
        return {"kind": option.kind, "options": own, "name": option.name}
    if not isinstance(option, tuple):
        return option
    return tuple(x for one in option for x in (one if isinstance(one, tuple) else (one,)))


def assert_same(read, network):
    assert (read["name"], read["shape"]) == (network.name, network.input_shape)
    assert (read["outputs"], read["forms"]) == (network.outputs, (network.input_form, network.output_form))
    assert len(read["layers"]) == len(network.layers)
    for own, layer in zip(read["layers"], network.layers, strict=True):
        assert (own["kind"], own["name"], tuple(own["inputs"])) == (layer.kind, layer.name, tuple(layer.inputs))
        assert own["options"] == {key: flat(value) for key, value in layer.options.items()}
        assert list(own["weights"]) == list(layer.weights)
        for key, weight in layer.weights.items():
            if isinstance(weight, SharedWeight):
                codebook, indices = own["weights"][key]
                assert float_bytes(codebook) == weight.codebook.tobytes()
                assert indices == weight.indices.ravel().tolist()
            else:
                assert float_bytes(own["weights"][key]) == weight.tobytes()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.dcz")), ids=lambda path: path.stem)
def test_a_reading_of_the_document_decodes_every_golden_file(path):
    data = path.read_bytes()
    network = container.loads(data)
    read = read_dcz(data)
    assert read["coder"] == container.coder_of(data)
    assert_same(read, network)
    assert len(data) < 4000


@pytest.mark.parametrize("coder", coding.CODERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_todays_writer_writes_the_golden_files(name, coder):
    network, data = NETWORKS[name](), golden_file(name, coder).read_bytes()
    assert_same(read_dcz(data), network)
    assert container.dumps(network, coder) == data, BREAKING
    for version in range(SINCE.get(name, 1), container.VERSION + 1):
        earlier = golden_file(name, coder, version).read_bytes()
        assert container.dumps(container.loads(earlier), coder) == data, BREAKING


def test_the_golden_files_have_every_kind_of_layer():
    files = [read_dcz(path.read_bytes()) for path in GOLDEN.glob("*.dcz")]
    assert {layer["kind"] for file in files for layer in file["layers"]} == {kind for kind, _ in KINDS}
    assert [kind for kind, _ in KINDS] == list(LAYER_KINDS)


@pytest.mark.parametrize(
    ("name", "earlier", "today"),
    [
        ("lenet-5", 2_432, 2_432),
        ("lenet-5-small", 1_542, 1_535),
        ("lenet-5-plain", 5_732, 5_636),
        ("lenet-5-fast", 4_554, 4_465),
        ("lenet-300-100", 4_559, 4_460),
        ("lenet-300-100-plain", 9_371, 9_197),
        ("lenet-300-100-fast", 5_001, 4_927),
        ("reference", 19_069, 18_689),
        ("reference-fast", 31_647, 30_910),
    ],
)
def test_what_the_files_of_the_records_take_as_they_are_and_in_version_3(name, earlier, today):
    data = (HERE.parents[1] / "models" / f"{name}.dcz").read_bytes()
    assert (len(data), len(container.dumps(container.loads(data)))) == (earlier, today)


@pytest.mark.parametrize("coder", coding.CODERS)
@pytest.mark.parametrize(
    ("shapes", "k", "negatives", "density"),
    [
        ([(1,), (2, 1)], 1, 1, 1.0),
        ([(40, 12), (12, 40)], 2, 0, 0.1),
        ([(50, 11), (11, 30), (30, 2)], 16, 16, 0.3),
        ([(3, 9, 8), (7, 4)], 65, 1, 0.5),
        ([(5, 5, 4, 6), (6, 9)], 7, 3, 0.4),
        ([(2, 3, 2, 4, 5)], 64, 31, 0.7),
        ([(30, 2, 4)], 3000, 1700, 0.9),  # wide
        ([(700, 2)], 40_000, 20_000, 1.0),
        ([(31, 17), (9, 9)], 0, 0, 0.0),
        ([(1, 70_000)], 3, 1, 0.0002),
    ],
)
def test_a_reading_of_the_document_decodes_other_tensors(coder, shapes, k, negatives, density):
    rng = np.random.default_rng(4)
    arrays = []
    for shape in shapes:
        odds = density * 2 * rng.random((*shape[:-1], 1)) if density < 0.5 else density
        arrays.append((rng.integers(0, k + 1, shape) * (rng.random(shape) < odds)).astype(np.uint16))
    arrays += [array[..., coding.descending_order(array)] for array in arrays]
    tensors = [(shape, k, negatives) for shape in shapes] * 2
    data = coding.encode(arrays, [coding.Spec(*tensor) for tensor in tensors], coder).data
    read = (huffman_tensors, range_tensors)[coding.CODERS.index(coder)](data, tensors)
    assert read == [array.ravel().tolist() for array in arrays]


def document():
    return (HERE.parents[1] / "docs" / "format.md").read_text(encoding="utf-8")


def test_the_tables_of_this_reader_are_those_of_the_document():
    architecture, _, _ = document().partition("## Names")
    rows = re.findall(r"^\| (\d+) \| (\w+) \| ?([\w, ]*?) ?\|$", architecture, re.MULTILINE)
    kinds = [(int(number), kind, options.replace(", ", " ")) for number, kind, options in rows]
    assert kinds == [(number, *kind) for number, kind in enumerate(KINDS)]
    assert " ".join(map(str, KNOTS)) in " ".join(document().split())


def tiny():
    """The example of the document."""
    indices = [[0, 2, 0, 0, 1, 2], [0, 0, 0, 0, 0, 1], [0, 2, 0, 0, 0, 2]]
    conv = SharedWeight(np.array([-0.5, 1], np.float32), np.array(indices, np.uint8).reshape(3, 3, 1, 2))
    fc = SharedWeight(np.zeros(0, np.float32), np.zeros((8, 3), np.uint8))
    options = {"filters": 2, "kernel_size": (3, 3), "activation": "relu", "use_bias": False}
    return Network(
        "tiny",
        (4, 4, 1),
        (
            Layer("InputLayer", "image"),
            Layer("Conv2D", "conv", (0,), options, {"kernel": conv}),
            Layer("Flatten", "flatten", (1,)),
            Layer("Dense", "fc", (2,), {"units": 3}, {"kernel": fc, "bias": np.array([0.1, 0, 0.25], np.float32)}),
        ),
    )


def example(heading):
    """The bytes at the beginning of the lines of the first block below a heading."""
    block = document().split(f"# {heading}\n")[1].split("```")[1]
    return bytes.fromhex("".join(re.findall(r"^(?:[0-9A-F]{2} )+", block, re.MULTILINE)))


def test_the_examples_of_the_document_are_files(monkeypatch):
    by_range, tail = example("The file with the range coder"), example("The file with the Huffman coder")
    assert container.dumps(tiny(), "range") == by_range
    assert container.dumps(tiny(), "huffman") == by_range[:4] + b"\0" + by_range[5:61] + tail
    assert_same(read_dcz(by_range), tiny())

    decisions, decision = [], RangeDecoder.decision

    def spy(coder, p):
        before = [str(p), *(f"{register:08X}" for register in (coder.low, coder.high, coder.code))]
        decisions.append(" | ".join([*before, str(decision(coder, p))]))
        return int(decisions[-1][-1])

    monkeypatch.setattr(RangeDecoder, "decision", spy)
    read_dcz(by_range)
    rows = re.findall(r"^\| [^|]+ \| (\d+ \| [0-9A-F]{8} .*) \|$", document(), re.MULTILINE)
    assert len(rows) == 10
    assert rows == decisions[:10]


def test_a_reader_takes_any_order_of_a_scan_and_any_number_of_index_bits(monkeypatch):
    network = lenet()
    monkeypatch.setattr(coding.arithmetic, "_MAX_TRIAL", -1)  # every tensor in its own order
    monkeypatch.setattr(coding.paper, "best_bits", lambda array, spec: 5)
    for coder in coding.CODERS:
        data = container.dumps(network, coder)
        assert data != golden_file("lenet", coder).read_bytes()
        assert_same(read_dcz(data), network)
        assert_same(read_dcz(data), container.loads(data))
