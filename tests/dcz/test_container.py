import math
import os
import struct
import subprocess
import sys
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deepcomp.dcz import architecture, coding, container
from deepcomp.dcz.accounting import apportion
from deepcomp.dcz.kinds import ACTIVATIONS, KINDS, KINDS_BEFORE_3
from deepcomp.dcz.network import Layer, Network, SharedWeight, layer_shapes, output_shapes
from deepcomp.errors import FormatError, OutputError, RecipeError, UnsupportedLayerError


class Spec(NamedTuple):
    shape: tuple[int, ...]
    centroids: int
    negatives: int

    @property
    def width(self):
        return np.min_scalar_type(self.centroids).newbyteorder("<")


class RawCoder:
    """Stands in for the coders, whose bytes would make these tests depend on them: an index takes whole bytes."""

    CODERS = ("huffman", "range")
    Spec = Spec
    seen = ()

    @classmethod
    def encode(cls, arrays, specs, coder):
        assert all(array.shape == spec.shape for array, spec in zip(arrays, specs, strict=True))
        assert coder in cls.CODERS
        RawCoder.seen = tuple(specs)
        pieces = [array.astype(spec.width).tobytes() for array, spec in zip(arrays, specs, strict=True)]
        return SimpleNamespace(data=b"".join(pieces), bits=[(0.25, 8 * len(piece) - 0.25) for piece in pieces])

    @staticmethod
    def memory(specs, coder, version):
        return sum(math.prod(spec.shape) * spec.width.itemsize for spec in specs)

    @staticmethod
    def decode(data, specs, coder, version=3):
        arrays = []
        for spec in specs:
            size = math.prod(spec.shape) * spec.width.itemsize
            if size > len(data):
                raise FormatError("the section ends early")
            arrays.append(np.frombuffer(data[:size], spec.width).reshape(spec.shape))
            data = data[size:]
        if data:
            raise FormatError("bytes follow the section")
        return arrays


@pytest.fixture(autouse=True, scope="module")
def raw_coder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(container, "coding", RawCoder)
        yield


def f32(*values):
    return np.array(values, np.float32)


def seal(body):
    return body + zlib.crc32(body).to_bytes(4, "little")


def weights_of(network):
    """Random weights for every layer of a network that has none: shared kernels, plain arrays of each form."""
    generator = np.random.default_rng(5)
    layers = []
    for layer, one in zip(network.layers, layer_shapes(network), strict=True):
        weights = {}
        for name, shape in one.weights.items():
            if name.endswith("kernel"):
                indices = generator.integers(0, 4, shape).astype(np.uint8)
                weights[name] = SharedWeight(f32(-0.75, 0.1, 2), indices)
            else:
                weights[name] = {
                    "gamma": np.ones(shape, np.float32),
                    "moving_variance": generator.random(shape, np.float32),
                }.get(name, generator.integers(-9, 9, shape).astype(np.float32) / 4)
        layers.append(Layer(layer.kind, layer.name, layer.inputs, layer.options, weights))
    return Network(network.name, network.input_shape, tuple(layers))


def chain(shape, *layers, name="net"):
    """A network of one layer after the other, from `(kind, options)`."""
    made = [Layer("InputLayer", "input_layer")]
    for kind, options in layers:
        made.append(Layer(kind, f"{kind}_{len(made)}", (len(made) - 1,), options))
    return weights_of(Network(name, shape, tuple(made)))


def tiny(**changes):
    parts = {
        "codebook": f32(-0.5, 1),
        "bias": f32(0.1, 0, 0.25),
        "indices": np.array([0, 1, 2] * 6, np.uint8).reshape(3, 3, 1, 2),
        "name": "tiny",
        **changes,
    }
    layers = (
        Layer("InputLayer", "image"),
        Layer(
            "Conv2D",
            "conv",
            (0,),
            {"filters": 2, "kernel_size": (3, 3), "activation": "relu", "use_bias": False},
            {"kernel": SharedWeight(parts["codebook"], parts["indices"])},
        ),
        Layer("Flatten", "flatten", (1,)),
        Layer(
            "Dense",
            "fc",
            (2,),
            {"units": 3},
            {"kernel": SharedWeight(f32(), np.zeros((8, 3), np.uint8)), "bias": parts["bias"]},
        ),
    )
    return Network(parts["name"], (4, 4, 1), layers)


def branched():
    """A residual network with every way that a layer can take its inputs."""
    layers = (
        Layer("InputLayer", "image"),
        Layer("Conv2D", "stem", (0,), {"filters": 4, "kernel_size": (3, 3), "padding": "same", "strides": (2, 2)}),
        Layer("BatchNormalization", "norm", (1,), {"epsilon": 1e-5}),
        Layer("Activation", "active", (2,), {"activation": "silu"}),
        Layer("SeparableConv2D", "separable", (3,), {"filters": 4, "kernel_size": (3, 3), "padding": "same"}),
        Layer("Add", "add", (4, 1)),
        Layer("GlobalAveragePooling2D", "squeeze", (5,), {"keepdims": True}),
        Layer("Multiply", "scale", (5, 6)),
        Layer("Concatenate", "join", (7, 3, 3)),
        Layer("Flatten", "flatten", (8,)),
        Layer("Dropout", "drop", (9,), {"rate": 0.25}),
        Layer("Dense", "out", (10,), {"units": 3, "activation": "softmax"}),
    )
    return weights_of(Network("branched", (5, 5, 2), layers))


def bits(array):
    return np.ascontiguousarray(array).view(np.uint32).ravel().tolist()


def same(a, b):
    """Whether two networks are the same in all that Python can see."""
    assert (a.name, a.input_shape, len(a.layers)) == (b.name, b.input_shape, len(b.layers))
    for one, other in zip(a.layers, b.layers, strict=True):
        assert (one.kind, one.name, one.inputs, one.options) == (other.kind, other.name, other.inputs, other.options)
        assert list(one.weights) == list(other.weights)
        for name, weight in one.weights.items():
            stored = other.weights[name]
            assert type(weight) is type(stored)
            if isinstance(weight, SharedWeight):
                assert bits(weight.codebook) == bits(stored.codebook)
                assert stored.indices.dtype == np.min_scalar_type(weight.codebook.size)
                np.testing.assert_array_equal(weight.indices, stored.indices)
            else:
                assert weight.shape == stored.shape
                assert stored.dtype == np.float32
                assert bits(weight) == bits(stored)
    return True


# Golden bytes

HEADER = bytes.fromhex("44435a 03 01")
ARCHITECTURE = bytes.fromhex(
    "02 03 03 00"  # three dimensions: 4, 4, 1, each less 1
    "04"  # three layers, less 1, times 2: no more follows than layers
    "03 60 01 02 02 01 00"  # Conv2D; activation and use_bias differ; 2 filters, 3 x 3, relu, no bias
    "11 00"  # Flatten
    "01 00 02"  # Dense; 3 units
)
NAMES = b"\7tiny\11image\7conv\0\3fc"
TABLES = bytes.fromhex(
    "19 00b8 003c"  # shared, float16, two centroids: -0.5 and 1
    "11"  # shared, no centroid
    "00 cdcccc3d 00000000 0000803e"  # float32: 0.1, 0, 0.25
)
SECTION = bytes([0, 1, 2] * 6 + [0] * 24)
GOLDEN = HEADER + ARCHITECTURE + NAMES + TABLES + SECTION + bytes.fromhex("19a32bd7")

# The same in version 2, where the number of layers is written as it is, and the forms of the tables have other numbers.
ARCHITECTURE_2 = ARCHITECTURE.replace(bytes.fromhex("0300 04"), bytes.fromhex("0300 02"))
TABLES_2 = bytes.fromhex("09 00b8 003c 05 00 cdcccc3d 00000000 0000803e")
HEADER_2 = bytes.fromhex("44435a 02 01")
GOLDEN_2 = HEADER_2 + ARCHITECTURE_2 + NAMES + TABLES_2 + SECTION + bytes.fromhex("808b3ce4")

# The same in version 1, where nothing is named after another layer, and the number of centroids follows the form.
HEADER_1 = bytes.fromhex("44435a 01 01")
NAMES_1 = b"\4tiny\5image\4conv\0\2fc"
TABLES_1 = bytes.fromhex("05 02 00b8 003c 05 00 00 cdcccc3d 00000000 0000803e")
GOLDEN_1 = HEADER_1 + ARCHITECTURE_2 + NAMES_1 + TABLES_1 + SECTION + bytes.fromhex("24efdfe9")


def test_golden_bytes():
    assert container.dumps(tiny()).hex(" ") == GOLDEN.hex(" ")
    for data in (GOLDEN, GOLDEN_1, GOLDEN_2):
        same(container.loads(data), tiny())
        assert container.coder_of(data) == "range"


def test_huffman_is_coder_0():
    data = container.dumps(tiny(), "huffman")
    assert data[:5] == bytes.fromhex("44435a 03 00")
    assert data[5:-4] == GOLDEN[5:-4]
    assert container.coder_of(data) == "huffman"


def test_a_branch_as_bytes():
    network = branched()
    data = container.dumps(network)
    add = bytes.fromhex("16 01 01 00 03")  # Add; inputs follow: two of them, 1 and 4 layers back
    join = bytes.fromhex("18 01 02 00 04 04")  # Concatenate: three of them, 1, 5 and 5 layers back
    assert add in data
    assert join in data
    assert bytes.fromhex("08 04 f168e388b5f8e43e") in data  # BatchNormalization with epsilon 1e-5


def test_a_lenet_5_needs_few_bytes_besides_its_weights():
    convolution = {"kernel_size": (5, 5), "activation": "relu"}
    layers = (
        Layer("InputLayer", "image"),
        Layer("Conv2D", "conv1", (0,), {"filters": 20, **convolution}),
        Layer("MaxPooling2D", "pool1", (1,)),
        Layer("Conv2D", "conv2", (2,), {"filters": 50, **convolution}),
        Layer("MaxPooling2D", "pool2", (3,)),
        Layer("Flatten", "flatten", (4,)),
        Layer("Dense", "fc1", (5,), {"units": 500, "activation": "relu"}),
        Layer("Dense", "fc2", (6,), {"units": 10}),
    )
    network = weights_of(Network("lenet_5", (28, 28, 1), layers))
    parts = container.parts(network)
    sizes = (parts.header_bits, parts.architecture_bits, parts.names_bits)
    assert [size // 8 for size in sizes] == [9, 31, 34]
    assert parts.tables_bits == 8 * 8
    assert output_shapes(network) == [
        (28, 28, 1), (24, 24, 20), (12, 12, 20), (8, 8, 50), (4, 4, 50), (800,), (500,), (10,)
    ]  # fmt: skip
    assert [spec.shape for spec in RawCoder.seen if len(spec.shape) > 1][-2:] == [(4, 4, 50, 500), (500, 10)]


@pytest.mark.parametrize(
    ("name", "following"),
    [
        ("conv1", "conv2"),
        ("x09", "x10"),
        ("x099", "x100"),
        ("block_9_99", "block_9_100"),
        ("7", "8"),
        ("conv", None),
        ("conv1_", None),
        ("x\u0663", None),  # a digit of another script
        ("9" * 254, "1" + "0" * 254),
        ("9" * 255, None),
    ],
)
def test_the_next_name(name, following):
    assert architecture._next_name(name) == following


@given(st.lists(st.sampled_from(["a1", "a2", "a3", "a03", "a04", "a4", "b", "dense_1", "dense_3"]), unique=True))
def test_a_layer_is_named_after_the_nearest_that_it_follows(names):
    layers = [Layer("InputLayer", "a02")]
    layers += [Layer("Activation", name, (number,), {"activation": "relu"}) for number, name in enumerate(names)]
    network = Network("a1", (3,), (*layers, Layer("Dense", "dense", (len(names),), {"units": 2})))
    data = container.dumps(weights_of(network))
    assert [layer.name for layer in container.loads(data).layers] == ["a02", *names, "dense"]
    assert container.dumps(container.loads(data)) == data


def test_numbered_names_take_one_byte():
    layers = [("Activation", {"activation": "relu"})] * 4
    network = chain((3,), *layers)  # Activation_1 ... Activation_4
    assert b"\5net\0\x17Activation_1\2\2\2" in container.dumps(network)


# Round trips

CHAINS = {
    "dense": ((7,), ("Dense", {"units": 5, "activation": "gelu"}), ("Dense", {"units": 1, "use_bias": False})),
    "dense on rows": ((4, 7), ("Dense", {"units": 5})),
    "convolution 1-D": (
        (9, 4),
        ("Conv1D", {"filters": 6, "kernel_size": (3,), "padding": "causal", "dilation_rate": (2,), "groups": 2}),
        ("Conv1D", {"filters": 2, "kernel_size": (2,), "strides": (3,), "padding": "same"}),
        ("GlobalMaxPooling1D", {}),
    ),
    "convolution 2-D": (
        (9, 8, 3),
        ("ZeroPadding2D", {"padding": ((0, 1), (2, 3))}),
        ("Conv2D", {"filters": 6, "kernel_size": (3, 2), "strides": (2, 1), "groups": 3}),
        ("GlobalAveragePooling2D", {}),
    ),
    "depthwise": (
        (9, 4),
        ("DepthwiseConv1D", {"kernel_size": (3,), "depth_multiplier": 2}),
        ("Reshape", {"target_shape": (7, 2, 4)}),
        ("DepthwiseConv2D", {"kernel_size": (2, 2), "use_bias": False, "strides": (2, 2)}),
    ),
    "separable": (
        (9, 4),
        ("SeparableConv1D", {"filters": 6, "kernel_size": (3,), "depth_multiplier": 2}),
        ("Reshape", {"target_shape": (7, 2, 3)}),
        ("SeparableConv2D", {"filters": 2, "kernel_size": (2, 2), "dilation_rate": (3, 1)}),
    ),
    "pooling": (
        (16, 16, 2),
        ("MaxPooling2D", {"pool_size": (3, 3), "strides": (2, 2), "padding": "same"}),
        ("AveragePooling2D", {}),
        ("Reshape", {"target_shape": (16, 2)}),
        ("MaxPooling1D", {"pool_size": (3,)}),
        ("AveragePooling1D", {"strides": (1,)}),
        ("ZeroPadding1D", {"padding": (0, 3)}),
        ("GlobalAveragePooling1D", {"keepdims": True}),
    ),
    "global pooling": ((4, 5, 3), ("GlobalMaxPooling2D", {}), ("Dense", {"units": 2})),
    "normalization": (
        (4, 3),
        ("BatchNormalization", {}),
        ("Permute", {"dims": (2, 1)}),
        ("BatchNormalization", {"momentum": 0.5, "center": False, "scale": False}),
    ),
    "pointwise": (
        (300,),
        ("Rescaling", {"scale": 1 / 255}),
        ("Dropout", {"rate": 0.1}),
        ("ReLU", {"max_value": 6.0, "negative_slope": 0.1}),
        ("LeakyReLU", {}),
        ("ELU", {"alpha": 0.5}),
        ("Rescaling", {"scale": 2.0, "offset": -1.0}),
        ("Softmax", {}),
    ),
}


@pytest.mark.parametrize("coder", RawCoder.CODERS)
@pytest.mark.parametrize("case", CHAINS)
def test_round_trip(case, coder):
    network = chain(*CHAINS[case])
    data = container.dumps(network, coder)
    assert same(container.loads(data), network)
    assert container.dumps(container.loads(data), coder) == data


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation):
    network = chain((3,), ("Activation", {"activation": activation}), ("Dense", {"units": 2, "activation": activation}))
    assert same(container.loads(container.dumps(network)), network)


def test_branches():
    network = branched()
    data = container.dumps(network)
    assert same(container.loads(data), network)
    assert container.dumps(container.loads(data)) == data
    assert output_shapes(network)[5:9] == [(3, 3, 4), (1, 1, 4), (3, 3, 4), (3, 3, 12)]
    assert network.outputs == (11,)


def test_every_kind_is_round_tripped():
    covered = {layer.kind for layer in (*branched().layers, *tiny().layers)}
    covered |= {kind for _, *layers in CHAINS.values() for kind, _ in layers}
    assert covered == {*list(KINDS)[:KINDS_BEFORE_3]}  # test_layers.py has the others


def test_what_the_coders_see():
    container.dumps(branched())
    shapes = [(spec.shape, spec.centroids, spec.negatives) for spec in RawCoder.seen]
    assert shapes == [
        ((3, 3, 2, 4), 3, 1),
        ((3, 3, 4, 1), 3, 1),
        ((1, 1, 4, 4), 3, 1),
        ((3, 3, 12, 3), 3, 1),  # a Dense behind a Flatten, through a Dropout
    ]
    container.dumps(chain((4, 7), ("Flatten", {}), ("Dense", {"units": 2}), ("Dense", {"units": 3})))
    assert [spec.shape for spec in RawCoder.seen] == [(4, 7, 2), (2, 3)]


def test_default_names_take_a_byte():
    kinds = [
        "InputLayer",
        "MaxPooling2D",
        "ReLU",
        "MaxPooling2D",
        "ELU",
        "GlobalAveragePooling2D",
        "BatchNormalization",
    ]
    names = ["input_layer", "max_pooling2d", "re_lu", "max_pooling2d_1", "elu"]
    names += ["global_average_pooling2d", "batch_normalization"]
    assert architecture._default_names(kinds) == names
    layers = [Layer(k, name, (i - 1,) if i else ()) for i, (k, name) in enumerate(zip(kinds, names, strict=True))]
    network = weights_of(Network("n", (8, 8, 1), tuple(layers)))
    assert b"\1n" + bytes(7) in container.dumps(network)
    assert same(container.loads(container.dumps(network)), network)


def test_names_of_any_language():
    network = tiny(name="Größe 网络 🙂")
    assert container.loads(container.dumps(network)).name == network.name


def test_the_same_network_gives_the_same_bytes():
    assert container.dumps(branched()) == container.dumps(branched())


def test_files(tmp_path):
    path = tmp_path / "model.dcz"
    parts = container.save(tiny(), path)
    assert path.read_bytes() == GOLDEN
    assert parts == container.parts(tiny())
    assert same(container.load(path), tiny())
    assert [p.name for p in tmp_path.iterdir()] == ["model.dcz"]
    with pytest.raises(FormatError, match=r"none\.dcz: No such file"):
        container.load(tmp_path / "none.dcz")
    path.write_bytes(GOLDEN[:-1])
    with pytest.raises(FormatError, match=r"model\.dcz is damaged"):
        container.load(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="Cannot write"):
        container.save(tiny(), tmp_path / "folder")


@pytest.mark.parametrize("coder", coding.CODERS)
@pytest.mark.parametrize("network", [tiny, branched, *(lambda case=case: chain(*case) for case in CHAINS.values())])
def test_round_trip_with_the_coders(network, coder, monkeypatch):
    monkeypatch.setattr(container, "coding", coding)
    data = container.dumps(network(), coder)
    assert same(container.loads(data), network())
    assert container.dumps(container.loads(data), coder) == data
    assert container.parts(network(), coder).bits == 8 * len(data)
    for size in range(0, len(data), 7):
        with pytest.raises(FormatError):
            container.loads(data[:size])


# How weights are stored


def stored(bias):
    """Table entry and values of the bias of a network, whose other bytes are known; how it comes back."""
    bias = np.asarray(bias, np.float32)
    layer = Layer(
        "Dense",
        "d",
        (0,),
        {"units": len(bias)},
        {"kernel": SharedWeight(f32(), np.zeros((1, len(bias)), np.uint8)), "bias": bias},
    )
    network = Network("n", (1,), (Layer("InputLayer", "i"), layer))
    data = container.dumps(network)
    loaded = container.loads(data).layers[1].weights["bias"]
    assert bits(loaded) == bits(bias)
    assert container.dumps(container.loads(data)) == data
    start = data.index(b"\1n\1i\1d\21") + 7
    return data[start:-4]


def test_float16_where_it_keeps_every_bit():
    assert stored([0.5, -2, 65504]) == struct.pack("<B3e", 1, 0.5, -2, 65504) + bytes(3)
    assert stored([6e-8, -0.0, 0.0])[0] == 0
    assert stored([2**-24, -0.0])[0] == 1


def test_bfloat16_where_float16_does_not():
    assert stored([65536, 1]) == b"\2" + bytes.fromhex("8047 803f") + bytes(2)
    assert stored([2.0**-120, -0.0]) == b"\2" + bytes.fromhex("8003 0080") + bytes(2)


def test_float32_otherwise():
    assert stored([0.1, 1]) == struct.pack("<B2f", 0, 0.1, 1) + bytes(2)
    assert stored([1e10, 1])[0] == 0
    assert stored([3.4e38, 1e-45])[0] == 0


def test_one_value():
    assert stored([0.25] * 4096) == struct.pack("<Be", 5, 0.25) + bytes(4096)
    assert stored([0.1] * 5) == struct.pack("<Bf", 4, 0.1) + bytes(5)
    assert stored([0] * 5) == b"\5\0\0" + bytes(5)
    assert stored([-0.0] * 5) == b"\5\0\x80" + bytes(5)
    assert stored([0.25]) == struct.pack("<Be", 1, 0.25) + bytes(1)
    assert stored([0.0, -0.0])[0] == 1


def test_more_equal_values_are_shared():
    assert stored([0.25] * 4097) == struct.pack("<Be", 21, 0.25) + bytes(4097) + b"\1" * 4097
    assert stored([0] * 4097) == b"\21" + bytes(2 * 4097)


def test_few_values_are_shared():
    values = [0.1, 0, -3] * 20
    assert stored(values) == struct.pack("<B2f", 24, -3, np.float32(0.1)) + bytes(60) + bytes([2, 0, 1] * 20)
    assert stored([-0.0, *values])[0] == 0  # an index has no sign
    assert stored([0.1, 0, -3] * 2)[0] == 0  # not worth it


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=80))
@example([0.0, -0.0])
@example([1.0] * 79 + [2.0])
def test_any_plain_array_comes_back_bit_by_bit(values):
    stored(values)


def dense_kernel(kernel):
    """A network of one kernel and nothing else."""
    layer = Layer("Dense", "d", (0,), {"units": kernel.shape[1], "use_bias": False}, {"kernel": kernel})
    return Network("n", kernel.shape[:1], (Layer("InputLayer", "i"), layer))


def test_large_plain_weights_are_coded_in_planes():
    kernel = np.linspace(1, 1.99, 300, dtype=np.float32).reshape(3, 100)
    data = container.dumps(dense_kernel(kernel))
    start = data.index(b"\1n\1i\1d") + 6
    assert data[start : start + 3] == bytes.fromhex("08 01 80")  # form 2, float32; the exponents are coded, and alike
    assert len(data) == start + 1 + (1 + 4) + 3 * (1 + 300) + 4
    assert bits(container.loads(data).layers[1].weights["kernel"]) == bits(kernel)


def test_zeros_of_plain_kernels_are_positions():
    kernel = np.linspace(-1, 1, 320, dtype=np.float32).reshape(4, 80)
    kernel[:, 10:] = 0
    kernel[0, 0] = -0.0  # a value, not a zero
    data = container.dumps(dense_kernel(kernel))
    start = data.index(b"\1n\1i\1d") + 6
    assert data[start : start + 2] == bytes([12, 40])  # form 3, float32; 40 values
    assert data[-324:-4] == (kernel.view(np.uint32) != 0).astype(np.uint8).tobytes()
    assert bits(container.loads(data).layers[1].weights["kernel"]) == bits(kernel)
    kernel[:, 10:] = 0.5
    kernel[0, 10:15] = 0
    assert container.dumps(dense_kernel(kernel))[start : start + 2] == bytes([12, 0xBB])  # 5 of 320
    kernel[0, 14] = 1
    assert container.dumps(dense_kernel(kernel))[start] == 8


def test_positions_that_are_too_few_or_too_many_are_refused():
    kernel = np.linspace(-1, 1, 320, dtype=np.float32).reshape(4, 80)
    kernel[:, 10:] = 0
    data = container.dumps(dense_kernel(kernel))
    for at in (-324, -5):
        damaged = bytearray(data[:-4])
        damaged[at + 4] ^= 1
        with pytest.raises(FormatError, match="positions for 40 values"):
            container.loads(seal(bytes(damaged)))
    with pytest.raises(FormatError, match="has 316 values in planes"):
        container.loads(seal(data[:-4].replace(b"\x0c\x28", b"\x0c\xbc\x02")))


PLAIN = {
    "float32": lambda draw: draw.normal(0, 0.05, (60, 40)),
    "pruned": lambda draw: np.where(draw.random((60, 40)) < 0.1, draw.normal(0, 0.05, (60, 40)), 0),
    "float16": lambda draw: draw.normal(0, 0.05, (60, 40)).astype(np.float16),
    "bfloat16": lambda draw: draw.normal(0, 0.05, (60, 40)).astype(np.float32).view(np.uint32) & 0xFFFF0000,
    "random bits": lambda draw: draw.integers(0, 0x7F000000, (60, 40)).astype(np.uint32),
}


@pytest.mark.parametrize("coder", ["huffman", "range"])
@pytest.mark.parametrize("case", PLAIN)
def test_plain_weights_take_hardly_more_than_their_values(case, coder, monkeypatch):
    monkeypatch.setattr(container, "coding", coding)
    made = PLAIN[case](np.random.default_rng(1))
    kernel = made.view(np.float32) if made.dtype == np.uint32 else made.astype(np.float32)
    network = dense_kernel(kernel)
    data = container.dumps(network, coder)
    raw = kernel.size * {"float16": 2, "bfloat16": 2}.get(case, 4)
    at_most = {"pruned": 0.16, "float16": 0.92, "bfloat16": 0.76, "float32": 0.9}
    assert len(data) - 40 < at_most.get(case, 1.01) * raw
    assert bits(container.loads(data).layers[1].weights["kernel"]) == bits(kernel)
    assert container.parts(network, coder).bits == 8 * len(data)


def test_plain_kernels_stay_plain():
    kernel = f32(0.1, 0.1).reshape(1, 2)
    layer = Layer("Dense", "d", (0,), {"units": 2, "use_bias": False}, {"kernel": kernel})
    data = container.dumps(Network("n", (1,), (Layer("InputLayer", "i"), layer)))
    loaded = container.loads(data).layers[1].weights["kernel"]
    assert data[-13:-4] == struct.pack("<B2f", 0, 0.1, 0.1)
    np.testing.assert_array_equal(loaded, kernel)


@pytest.mark.parametrize(("count", "dtype"), [(255, np.uint8), (256, np.uint16), (65_535, np.uint16)])
def test_types_of_indices(count, dtype):
    indices = np.arange(count + 1, dtype=np.uint32).reshape(1, -1)
    shared = SharedWeight(np.arange(1, count + 1, dtype=np.float32), indices)
    layer = Layer("Dense", "d", (0,), {"units": count + 1, "use_bias": False}, {"kernel": shared})
    network = Network("n", (1,), (Layer("InputLayer", "i"), layer))
    loaded = container.loads(container.dumps(network)).layers[1].weights["kernel"]
    assert loaded.indices.dtype == dtype
    np.testing.assert_array_equal(loaded.indices, indices)


# Where every byte went


@pytest.mark.parametrize("network", [tiny, branched])
def test_parts_add_up(network):
    parts = container.parts(network())
    assert parts.bits == 8 * len(container.dumps(network()))
    assert parts.coder == "range"


def test_parts_of_the_golden_file():
    parts = container.parts(tiny())
    assert (parts.header_bits, parts.architecture_bits) == (8 * 9, 8 * len(ARCHITECTURE))
    assert (parts.names_bits, parts.tables_bits) == (8 * len(NAMES), 8 * 3)
    kernel, dense, bias = parts.tensors
    assert (kernel.layer, kernel.weight, kernel.shape, kernel.weights) == ("conv", "kernel", (3, 3, 1, 2), 18)
    assert (kernel.nonzero, kernel.centroids, kernel.codebook_bits, kernel.plain_bits) == (12, 2, 32, 0)
    assert kernel.index_bits + kernel.value_bits == 144
    assert (dense.nonzero, dense.centroids, dense.codebook_bits) == (0, 0, 0)
    assert (bias.weight, bias.nonzero, bias.centroids, bias.plain_bits, bias.bits) == ("bias", 2, None, 96, 96)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.integers(0, 10**7))
def test_bits_are_rounded_by_largest_remainder(shares, total):
    rounded = apportion(shares, total)
    assert sum(rounded) == total
    whole = math.fsum(shares)
    if whole > 1e-3:
        assert all(abs(r - s * total / whole) <= 1 for r, s in zip(rounded, shares, strict=True))


def test_rounding_by_hand():
    assert apportion([1.5, 1.25, 1.25], 4) == [2, 1, 1]
    assert apportion([2.6, 0.4], 3) == [3, 0]
    assert apportion([0.0, 0.0], 8) == [8, 0]
    assert apportion([], 0) == []


# What cannot be saved


def layers(*made, shape=(4, 4, 1)):
    return Network("n", shape, (Layer("InputLayer", "i"), *made))


UNSAVABLE = {
    "kind": (
        layers(Layer("Hashing", "hashing", (0,))),
        "layer 'hashing' is of kind Hashing; supported are Dense, Conv1D",
    ),
    "missing option": (layers(Layer("Dense", "d", (0,))), "units: it has the options units, activation, use_bias"),
    "unknown option": (layers(Layer("Flatten", "f", (0,), {"axis": 1})), "axis: it has the options none"),
    "option": (layers(Layer("Dense", "d", (0,), {"units": 0})), "units: 0 is not a whole number from 1"),
    "option's type": (layers(Layer("Dense", "d", (0,), {"units": True})), "units: True is not a whole number"),
    "padding": (
        layers(Layer("Conv2D", "c", (0,), {"filters": 1, "kernel_size": (3, 3), "padding": "causal"})),
        "padding: 'causal' is not one of valid, same",
    ),
    "option's length": (
        layers(Layer("MaxPooling2D", "p", (0,), {"pool_size": (2,)})),
        r"\(2,\) does not have 2",
    ),
    "no tuple": (layers(Layer("Permute", "p", (0,), {"dims": 2})), "2 is not a tuple"),
    "not a number": (layers(Layer("Rescaling", "r", (0,), {"scale": math.nan})), "scale: nan is not a finite number"),
    "rate": (layers(Layer("Dropout", "r", (0,), {"rate": 1.5})), "rate: 1.5 is not a finite number from 0 to 1"),
    "no number": (layers(Layer("Rescaling", "r", (0,), {"scale": (1.0,)})), r"scale: \(1.0,\) is not a finite"),
    "open size": (layers(Layer("Flatten", "f", (0,)), shape=(None, 3)), "None is not a whole number"),
    "no layer": (layers(), "has 0 layers after its input: it needs 1 to"),
    "input twice": (
        layers(Layer("ReLU", "r", (0,)), Layer("InputLayer", "j", (0,))),
        "Layer 2, 'j', is of kind InputLayer",
    ),
    "forward input": (
        layers(Layer("Flatten", "f", (1,))),
        r"takes the layers \(1,\), not earlier ones: those are 0 to 0",
    ),
    "two inputs": (layers(Layer("Flatten", "f", (0, 0))), "takes one input, not 2"),
    "one input": (layers(Layer("Add", "a", (0,))), "takes two or more inputs, not 1"),
    "duplicate name": (layers(Layer("Flatten", "i", (0,))), "'i' is that of several layers"),
    "empty name": (layers(Layer("Flatten", "", (0,))), "not empty"),
    "no name": (layers(Layer("Flatten", None, (0,))), "must be a text and not empty, not None"),
    "long name": (layers(Layer("Flatten", "ä" * 128, (0,))), "more than 255 bytes"),
    "slash": (layers(Layer("Flatten", "a/b", (0,))), "'/', which no name may have"),
    "control character": (layers(Layer("Flatten", "a\x1b[2J", (0,))), "which no name may have"),
    "surrogate": (layers(Layer("Flatten", "a\ud800", (0,))), "which no name may have"),
    "unreachable layer": (layers(Layer("Flatten", "f", (0,)), Layer("ReLU", "r", (0,))), "'f' leads nowhere"),
    "rank": (layers(Layer("MaxPooling1D", "p", (0,))), "takes inputs of 2 dimensions, not 4x4x1"),
    "window": (layers(Layer("MaxPooling2D", "p", (0,), {"pool_size": (5, 1)})), "5x1 does not fit into 4x4x1"),
    "dilation": (
        layers(
            Layer("DepthwiseConv2D", "c", (0,), {"kernel_size": (1, 1), "strides": (2, 2), "dilation_rate": (1, 2)})
        ),
        "cannot both be over 1",
    ),
    "groups": (layers(Layer("Conv2D", "c", (0,), {"filters": 2, "kernel_size": (1, 1), "groups": 2})), "do not divide"),
    "reshape": (layers(Layer("Reshape", "r", (0,), {"target_shape": (3, 5)})), "4x4x1 cannot become 3x5"),
    "permute": (layers(Layer("Permute", "p", (0,), {"dims": (1, 2, 2)})), "do not permute 4x4x1"),
    "axis": (layers(Layer("Concatenate", "c", (0, 0), {"axis": 3})), "axis=3 is neither -1 nor 1 to 2"),
    "misfits": (layers(Layer("Flatten", "f", (0,)), Layer("Add", "a", (0, 1))), "differ in rank: 4x4x1, 16"),
    "sizes": (
        layers(Layer("MaxPooling2D", "p", (0,)), Layer("Multiply", "a", (0, 1))),
        "do not fit each other: 4x4x1, 2x2x1",
    ),
    "joined sizes": (layers(Layer("MaxPooling2D", "p", (0,)), Layer("Concatenate", "c", (0, 1))), "do not fit each"),
    "too large": (
        layers(Layer("ZeroPadding2D", "z", (0,), {"padding": ((2**20, 0), (2**20, 0))})),
        "a tensor of 1048580x1048580x1 is too large",
    ),
    "missing weight": (layers(Layer("Dense", "d", (0,), {"units": 1})), "weights none; it must have kernel, bias"),
}


@pytest.mark.parametrize("case", UNSAVABLE)
def test_cannot_be_saved(case):
    network, message = UNSAVABLE[case]
    with pytest.raises(UnsupportedLayerError, match=message):
        container.dumps(network)


UNSAVABLE_WEIGHTS = {
    "not finite": ({"bias": f32(0, np.nan, 1)}, r"'bias' of the layer 'fc'.* \[nan\]: only finite"),
    "infinite": ({"bias": f32(0, np.inf, 1)}, r"\[inf\]: only finite"),
    "float64": ({"bias": np.zeros(3)}, "float64, not float32"),
    "shape": ({"bias": f32(1, 2)}, r"shape \(2,\), not \(3,\)"),
    "shared bias": ({"bias": SharedWeight(f32(1), np.zeros(3, np.uint8))}, "only kernels can be shared"),
    "codebook with 0": ({"codebook": f32(0, 1)}, "has a 0"),
    "codebook not ascending": ({"codebook": f32(1, 1)}, "does not ascend"),
    "codebook not finite": ({"codebook": f32(1, np.nan)}, "not finite"),
    "codebook of float64": ({"codebook": np.array([1.0, 2])}, "not a float32 vector"),
    "codebook too large": ({"codebook": np.arange(1, 65_537, dtype=np.float32)}, "larger than 65535"),
    "index out of range": ({"codebook": f32(1)}, "none over 1"),
    "signed indices": ({"indices": np.zeros((3, 3, 1, 2), np.int8)}, "unsigned indices"),
    "shape of indices": ({"indices": np.zeros((3, 3, 2, 1), np.uint8)}, "unsigned indices"),
}


@pytest.mark.parametrize("case", UNSAVABLE_WEIGHTS)
def test_weights_that_cannot_be_saved(case):
    changes, message = UNSAVABLE_WEIGHTS[case]
    with pytest.raises(UnsupportedLayerError, match=message):
        container.dumps(tiny(**changes))


def test_unknown_coder():
    with pytest.raises(RecipeError, match="No coder 'zip': use huffman or range"):
        container.dumps(tiny(), "zip")


# Malformed files


def altered(old, new, source=GOLDEN):
    """The golden file with some bytes replaced, its checksum right."""
    assert source[:-4].count(old) == 1
    return seal(source[:-4].replace(old, new))


def spliced(architecture=ARCHITECTURE, names=NAMES, tables=TABLES, section=SECTION, header=HEADER):
    return seal(header + architecture + names + tables + section)


def arch(*pieces, shape="02 03 03 00"):
    return bytes.fromhex(shape) + bytes([2 * (len(pieces) - 1)]) + b"".join(map(bytes.fromhex, pieces))


CONV, FLATTEN, DENSE = "03 60 01 02 02 01 00", "11 00", "01 00 02"
TWO_NAMES = b"\7tiny\11image\1a\1b"

MALFORMED = {
    "empty": (b"", "not a .dcz file: it begins with b''"),
    "wrong magic": (seal(b"ZIP" + GOLDEN[3:-4]), "not a .dcz file: it begins with b'ZIP'"),
    "only magic": (b"DCZ\3", "only 4 bytes"),
    "newer version": (altered(b"DCZ\3", b"DCZ\4"), "version 4 of a newer deepcomp; this one reads 1 to 3"),
    "version 0": (altered(b"DCZ\3", b"DCZ\0"), "version 0 of no deepcomp"),
    "unknown coder": (altered(b"DCZ\3\1", b"DCZ\3\2"), "unknown coder 2"),
    "checksum": (GOLDEN[:-1] + b"\0", "checksum"),
    "wrong bit": (GOLDEN[:40] + bytes([GOLDEN[40] ^ 1]) + GOLDEN[41:], "checksum"),
    "overlong number": (spliced(arch(CONV, FLATTEN, "01 00 82 00")), "overlong"),
    "number of 6 bytes": (spliced(arch(CONV, FLATTEN, "01 00 80 80 80 80 80 01")), "more than 5 bytes"),
    "rank 9": (spliced(arch(FLATTEN, shape="08 01 01 01 01 01 01 01 01 01")), "9 is more than 8"),
    "huge input": (spliced(arch(FLATTEN, shape="02 ffffff7f ffffff7f ffffff7f")), "too large"),
    "huge size": (spliced(arch(CONV, FLATTEN, "01 00 ffffffff7f")), "is more than 2147483647"),
    "huge layer": (spliced(arch(CONV, FLATTEN, "01 00 ffffffff07")), "a tensor of 8x2147483648|is more than"),
    "many weights": (
        spliced(arch(CONV, FLATTEN, "01 00 ffffff3f", "01 00 0e"), NAMES + b"\1e"),
        "declares 3221225505 weights, more than the limit of 2147483648",
    ),
    "unpaid weights": (
        spliced(arch(CONV, FLATTEN, "01 00 ffffff07"), tables=TABLES[:6] + b"\21"),
        "weights in 42 bytes",
    ),
    "huge count of layers": (spliced(bytes.fromhex("02 03 03 00 feff03")), "is of the unknown kind|more bytes|choice"),
    "too many layers": (spliced(bytes.fromhex("02 03 03 00 feff07")), "65536 is not a whole number from 1 to 65535"),
    "unknown kind": (spliced(arch(CONV, FLATTEN, "77 00")), "layer 3 is of the unknown kind 119"),
    "second input": (spliced(arch(CONV, FLATTEN, "00 00")), "Layer 3, 'fc', is of kind InputLayer"),
    "unknown option": (spliced(arch(CONV, "11 02", DENSE)), "layer 2: it has options that Flatten does not have"),
    "unknown choice": (spliced(arch("03 60 01 02 02 1a 00", FLATTEN, DENSE)), "no choice 26 among linear, relu"),
    "default written": (spliced(arch("03 60 01 02 02 00 00", FLATTEN, DENSE)), "canonical form"),
    "previous layer written": (spliced(arch(CONV, "11 01 00 00", DENSE)), "canonical form"),
    "input before the first": (spliced(arch(CONV, "11 01 00 02", DENSE)), "3 is more than 2"),
    "no such window": (spliced(arch("03 60 01 08 08 01 00", FLATTEN, DENSE)), "9x9 does not fit into 4x4x1"),
    "two inputs": (spliced(arch(CONV, "11 01 01 00 01", DENSE)), "takes one input, not 2"),
    "merging one": (spliced(arch(CONV, "16 00", DENSE)), "takes two or more inputs, not 1"),
    "unreachable layer": (spliced(arch("1f 00", "11 01 00 01"), TWO_NAMES, b"", b""), "'a' leads nowhere"),
    "nan option": (spliced(arch("19 02 000000000000f87f"), b"\1n\0\0", b"", b""), "nan is not a finite number"),
    "rate 2": (spliced(arch("19 02 0000000000000040"), b"\1n\0\0", b"", b""), "2.0 is not a finite number from 0 to 1"),
    "duplicate name": (altered(b"\7conv", b"\11image"), "'image' is that of several"),
    "duplicate default name": (altered(b"\7conv", b"\15flatten"), "'flatten' is that of several"),
    "default name written": (altered(b"conv\0", b"conv\15flatten"), "canonical form"),
    "nameless": (altered(b"\7tiny", b"\0"), "no name"),
    "long name": (altered(b"\7tiny", b"\xff\3" + b"a" * 256), "256 bytes is longer than 255"),
    "name beyond the end": (altered(b"\7tiny", b"\xfd\3tiny"), "more bytes"),
    "name not UTF-8": (altered(b"tiny", b"tin\xff"), "not UTF-8"),
    "name with a slash": (altered(b"tiny", b"ti/y"), "'/', which no name may have"),
    "name with a control character": (altered(b"tiny", b"ti\x1by"), "which no name may have"),
    "name after itself": (altered(b"\3fc", b"\10"), "follows that of 4 layers before, but there are 3"),
    "name after none": (altered(b"\3fc", b"\4"), "follows 'conv', which has no next name"),
    "name after one whose next is too long": (
        altered(b"\7conv\0\3fc", b"\xfd\3" + b"9" * 255 + b"\0\4"),
        "9', which has no next name",
    ),
    "next name written": (altered(b"\7conv\0\3fc", b"\3c9\0\5c10"), "canonical form"),
    "name of the network after another": (altered(b"\7tiny", b"\10tiny"), "before, but there are 0"),
    "kernel of one value": (altered(bytes.fromhex("19 00b8 003c"), bytes.fromhex("05 00b8")), "cannot have one value"),
    "unsorted codebook": (altered(bytes.fromhex("00b8 003c"), bytes.fromhex("003c 00b8")), "does not ascend"),
    "repeated centroid": (altered(bytes.fromhex("00b8 003c"), bytes.fromhex("003c 003c")), "does not ascend"),
    "nan in the codebook": (altered(bytes.fromhex("00b8 003c"), bytes.fromhex("00b8 007e")), "not all finite"),
    "0 in the codebook": (altered(bytes.fromhex("00b8 003c"), bytes.fromhex("00b8 0000")), "has a 0"),
    "-0 in the codebook": (altered(bytes.fromhex("00b8 003c"), bytes.fromhex("0080 003c")), "has a 0"),
    "huge codebook": (altered(bytes.fromhex("19 00b8"), bytes.fromhex("fdffff7f 00b8")), "needs 134217718 more"),
    "codebook of 65,536": (
        spliced(tables=b"\x90\x80\x10" + np.arange(1, 65_537, dtype="<f4").tobytes() + TABLES[5:]),
        "larger than 65535",
    ),
    "float32 for float16": (
        altered(bytes.fromhex("19 00b8 003c"), b"\30" + struct.pack("<2f", -0.5, 1)),
        "canonical form",
    ),
    "infinite bias": (altered(bytes.fromhex("0000803e"), bytes.fromhex("0000807f")), "not all finite"),
    "bias not shared": (spliced(tables=TABLES[:6] + b"\25\x00\x3c", section=SECTION + bytes(3)), "canonical form"),
    "index out of range": (spliced(section=b"\3" + SECTION[1:]), "out of its codebook"),
    "section too short": (spliced(section=SECTION[1:]), "section ends early"),
    "trailing bytes": (spliced(section=SECTION + b"\0"), "bytes follow"),
    "no section": (spliced(section=b""), "section ends early"),
    "version 1 with the names of 2": (spliced(ARCHITECTURE_2, tables=TABLES_1, header=HEADER_1), "no name may have"),
    "version 1 with the tables of 2": (
        spliced(ARCHITECTURE_2, names=NAMES_1, tables=TABLES_2, header=HEADER_1),
        "version 1 has no form 9",
    ),
    "default name written in version 1": (altered(b"conv\0", b"conv\7flatten", GOLDEN_1), "canonical form"),
    "long name in version 1": (altered(b"\4tiny", b"\x80\2" + b"a" * 256, GOLDEN_1), "256 bytes is longer than 255"),
    "huge codebook in version 1": (
        altered(bytes.fromhex("05 02 00b8"), bytes.fromhex("05 ffffff7f 00b8"), GOLDEN_1),
        "needs 536870910 more",
    ),
    "overlong size of a codebook in version 1": (
        altered(bytes.fromhex("05 02 00b8"), bytes.fromhex("05 8200 00b8"), GOLDEN_1),
        "overlong",
    ),
    "version 2 with the tables of 1": (
        spliced(ARCHITECTURE_2, tables=TABLES_1, header=HEADER_2),
        "cannot have one value",
    ),
    "bytes after a network without indices": (spliced(arch("11 00"), b"\1n\0\0", b"", b"x"), "1 bytes follow"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(case):
    data, message = MALFORMED[case]
    with pytest.raises(FormatError, match=message):
        container.loads(data)


def test_the_spliced_file_is_right_where_nothing_is_changed():
    assert spliced() == GOLDEN
    assert spliced(arch(CONV, FLATTEN, DENSE)) == GOLDEN


def test_limit():
    assert container.loads(GOLDEN, limit=45)
    with pytest.raises(FormatError, match="45 weights, more than the limit of 44"):
        container.loads(GOLDEN, limit=44)


def test_nothing_is_allocated_for_weights_that_are_not_there():
    """2^29 weights in 100 bytes are refused without taking memory for them."""
    data = spliced(arch(CONV, FLATTEN, "01 00 ffffff1f"), tables=TABLES[:6] + b"\4")
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n"
        "from deepcomp import errors; from deepcomp.dcz import container\n"
        "container.coding = __import__('types').SimpleNamespace(CODERS=('huffman', 'range'),"
        " Spec=lambda shape, centroids, negatives: __import__('types').SimpleNamespace(shape=shape))\n"
        f"try: container.loads(bytes.fromhex('{data.hex()}'))\n"
        "except errors.FormatError as error: print(error)\n"
        "assert not {'tensorflow', 'keras'} & sys.modules.keys()\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "is damaged: a bias of 67108864 weights cannot have one value" in ran.stdout


def test_truncated_at_every_byte():
    for data in (GOLDEN, GOLDEN_1, GOLDEN_2, container.dumps(branched())):
        for size in range(len(data)):
            with pytest.raises(FormatError):
                container.loads(data[:size])
            with pytest.raises(FormatError):
                container.loads(seal(data[: min(size, len(data) - 5)]))


def written(network, coder, version):
    """The file of a network in any version."""

    def front(version):
        head, stored = container._head(network, coder, version)
        return b"".join([*head, container._tables(stored, version)])

    section = container.dumps(network, coder)[len(front(container.VERSION)) : -4]
    return seal(front(version) + section)


def only_format_errors(data):
    """Loads a file that somebody made up: it is refused, or it is the one file of its version of what is in it."""
    try:
        network = container.loads(data, limit=10**6)
    except FormatError:
        return False
    assert written(network, container.coder_of(data), data[3]) == data
    return True


@pytest.fixture(scope="module")
def bodies(raw_coder):
    """Files of every version and kind of layer, without their checksums."""
    networks = [tiny(), branched(), *(chain(*case) for case in CHAINS.values())]
    return [written(network, "range", version)[:-4] for version in (3, 2, 1) for network in networks]


@pytest.mark.slow
def test_every_byte_changed(bodies):
    accepted = 0
    for body in bodies[:2]:
        for place, byte in enumerate(body):
            for value in {0, 1, 2, 127, 128, 255, byte ^ 1, byte ^ 128} - {byte}:
                accepted += only_format_errors(seal(body[:place] + bytes([value]) + body[place + 1 :]))
    assert accepted > 100  # names, rates and indices may change


@st.composite
def mutations(draw, bodies):
    """A file's body with a few bytes changed, put in, taken out or copied from elsewhere."""
    body = bytearray(draw(st.sampled_from(bodies)))
    for _ in range(draw(st.integers(1, 4))):
        place, size = draw(st.integers(5, len(body))), draw(st.integers(0, 6))
        new = draw(st.binary(max_size=6))
        if draw(st.booleans()):
            start = draw(st.integers(0, len(body)))
            new = bytes(body[start : start + size])
        body[place : place + size] = new
    return bytes(body)


@settings(max_examples=1500)
@given(data=st.data())
def test_mutated_files_with_the_right_checksum(bodies, data):
    only_format_errors(seal(data.draw(mutations(bodies))))


# The document


def test_the_document_has_the_table_of_kinds():
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    for number, (kind, entry) in enumerate(KINDS.items()):
        cells = [str(number), kind, ", ".join(entry.options)]
        assert f"| {' | '.join(cells)} |".replace("|  |", "| |") in text
    assert ", ".join(ACTIVATIONS) in " ".join(text.split())
    keeps = [kind for kind, entry in KINDS.items() if entry.keeps]
    assert ", ".join(keeps[:-1]) + " and " + keeps[-1] in " ".join(text.split())


def unshared(units):
    """A dense layer of a million weights for each 1,000 units, none of which is shared."""
    kernel = np.random.default_rng(0).normal(size=(1_000, units)).astype(np.float32)
    dense = Layer("Dense", "dense", (0,), {"units": units, "use_bias": False}, {"kernel": kernel})
    return Network("net", (1_000,), (Layer("InputLayer", "x"), dense)), kernel


def test_files_are_written_and_read_piece_by_piece(tmp_path):
    """Once the coded file, 0.85 of the network, was held in memory besides it."""
    network, kernel = unshared(4_000)
    container.save(network, tmp_path / "a.dcz")  # compiles
    container.load(tmp_path / "a.dcz")
    tracemalloc.start()
    container.save(network, tmp_path / "a.dcz")
    assert tracemalloc.get_traced_memory()[1] < 0.4 * kernel.nbytes  # one of four planes, and its code
    tracemalloc.reset_peak()
    read = container.load(tmp_path / "a.dcz")
    assert tracemalloc.get_traced_memory()[1] < 1.3 * kernel.nbytes
    tracemalloc.stop()
    assert (tmp_path / "a.dcz").read_bytes() == container.dumps(network)
    assert np.array_equal(read.layers[1].weights["kernel"], kernel)


def test_a_file_that_becomes_shorter_while_it_is_read_is_damaged(tmp_path, monkeypatch):
    network, _ = unshared(100)
    container.save(network, tmp_path / "a.dcz")
    opened = container._open

    def cut(data, name):
        found = opened(data, name)
        os.truncate(tmp_path / "a.dcz", 5_000)
        return found

    monkeypatch.setattr(container, "_open", cut)
    with pytest.raises(FormatError, match=r"a\.dcz is damaged: it has become shorter than its \d+ bytes"):
        container.load(tmp_path / "a.dcz")


def test_a_network_that_cannot_be_saved_leaves_no_file_or_folder(tmp_path):
    network, _ = unshared(100)
    broken = replace(network, name="")
    with pytest.raises(UnsupportedLayerError, match="has no name"):
        container.save(broken, tmp_path / "new" / "a.dcz")
    assert list(tmp_path.iterdir()) == []


def test_a_dense_layer_of_one_number_without_axes_is_refused():
    """Once a file of it ended in an IndexError."""
    inputs = Layer("InputLayer", "x"), Layer("InputLayer", "one", (), {"shape": ()})
    network = Network("net", (3,), (*inputs, Layer("Dense", "next", (1,), {"units": 2})), (0, 2), (), ())
    with pytest.raises(UnsupportedLayerError, match=r"'next' .* does not take inputs of 0 dimensions"):
        container.dumps(network)
