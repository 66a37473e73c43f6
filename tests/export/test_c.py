"""Exported C compiles without a warning, and computes what the network does, with no error that a sanitizer sees."""

import re
import shutil
import subprocess

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import layers

import deepcomp
from deepcomp.dcz import conversion
from deepcomp.dcz.limits import Limits
from deepcomp.errors import FormatError, RecipeError
from deepcomp.export import c, export_c, streams
from tests.zoo import (
    SEVERAL,
    STAND_INS,
    TEXTS,
    WHOLE,
    ZOO,
    fill,
    inputs_for,
    row,
    several_inputs_for,
    texts_for,
)

COMPILER = shutil.which("gcc") or shutil.which("cc")
pytestmark = pytest.mark.skipif(not COMPILER, reason="there is no C compiler")

WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
# Memory that was not written is not 0 by luck.
MAIN = """\
#include <stdio.h>
#include <stdlib.h>
#include "net.h"

int main(void)
{
    float *input = malloc(sizeof(float) * NET_INPUT), *output = malloc(sizeof(float) * NET_OUTPUT);
    float *scratch = malloc(sizeof(float) * NET_SCRATCH);
    for (int i = 0; i < NET_SCRATCH; i++)
        scratch[i] = 1e30f;
    while (fread(input, sizeof(float), NET_INPUT, stdin) == NET_INPUT) {
        net_run(input, output, scratch);
        fwrite(output, sizeof(float), NET_OUTPUT, stdout);
    }
    free(input);
    free(output);
    free(scratch);
    return 0;
}
"""
# Together they use every kernel.
SOME = {
    **{name: (ZOO[name], inputs_for) for name in ("Activation of rare curves", "Masking", "GroupNormalization")},
    **{name: (WHOLE[name], inputs_for) for name in ("u_net",)},
    **{name: (TEXTS[name], texts_for) for name in ("attention with masks", "Masking", "Transformer with masks")},
    **{name: (SEVERAL[name], several_inputs_for) for name in ("table_and_image",)},
}
ALL = {
    **{name: (make, inputs_for) for name, make in {**ZOO, **WHOLE, **STAND_INS}.items()},
    **{f"{name} of texts": (make, texts_for) for name, make in TEXTS.items()},
    **{name: (make, several_inputs_for) for name, make in SEVERAL.items()},
}


def written(network, folder, coded=False, name="net"):
    header, source, _ = c.sources(network, name, Limits.of(10**6), coded)
    (folder / f"{name}.h").write_text(header)
    (folder / f"{name}.c").write_text(source)
    return header, source


def run(folder, inputs, *flags):
    """The outputs of the program of `net.c`, `float32 (N, numbers)`."""
    (folder / "main.c").write_text(MAIN)
    command = [COMPILER, *WARNINGS, *flags, "-o", "main", "net.c", "main.c", "-lm"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert not built.returncode, built.stderr
    done = subprocess.run([folder / "main"], input=flat(inputs).tobytes(), capture_output=True)
    assert not done.returncode, done.stderr.decode()
    return np.frombuffer(done.stdout, np.float32).reshape(len(flat(inputs)), -1)


def flat(tensors):
    """Tensors of one tree side by side, `float32 (N, numbers)`."""
    arrays = [np.asarray(one, np.float32) for one in keras.tree.flatten(tensors)]
    return np.concatenate([one.reshape(len(one), -1) for one in arrays], axis=1)


def assert_same(make, draw, folder, coded):
    model = fill(make())
    inputs = draw(model, 5)
    written(conversion.from_keras(model), folder, coded)
    expected = flat(model(inputs))
    size = np.nanmax(np.abs(expected))
    np.testing.assert_allclose(run(folder, inputs, *SANITIZERS), expected, rtol=1e-4, atol=1e-5 * size)


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("name", SOME)
def test_a_network_in_c_puts_out_what_it_does_in_keras(name, coded, tmp_path):
    assert_same(*SOME[name], tmp_path, coded)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_every_kind_of_layer_in_c(name, coded, tmp_path):
    assert_same(*ALL[name], tmp_path, coded)


def test_a_network_of_no_weights_left(tmp_path):
    model = row((6, 6, 2), lambda: layers.Conv2D(3, 3), lambda: layers.Flatten(), lambda: layers.Dense(4))()
    for weight in model.weights:
        weight.assign(np.full(weight.shape, 0.5 if weight.name == "bias" else 0))
    for coded in (False, True):
        written(conversion.from_keras(model), tmp_path, coded)
        np.testing.assert_array_equal(run(tmp_path, np.ones((2, 72)), *SANITIZERS), np.full((2, 4), 0.5))


def test_a_kernel_of_many_values_and_long_gaps(tmp_path):
    model = row((2000,), lambda: layers.Dense(3), lambda: layers.Dense(700))()
    generator = np.random.default_rng(0)
    first = np.zeros((2000, 3), np.float32)
    first[[0, 255, 256, 511, 1999], [0, 0, 1, 2, 2]] = [1, 2, 3, 4, 5]
    model.set_weights([first, np.zeros(3), generator.normal(size=(3, 700)), generator.normal(size=700)])
    inputs = generator.normal(size=(3, 2000)).astype(np.float32)
    for coded in (False, True):
        written(conversion.from_keras(model), tmp_path, coded)
        np.testing.assert_allclose(run(tmp_path, inputs, *SANITIZERS), model(inputs), rtol=1e-4, atol=1e-4)


def test_names_that_c_does_not_allow(tmp_path):
    names = ["dense", "walk", "int", "9 lives", "*/ boom", "na\u00efve\n#error", "exp"]
    inputs = keras.Input((3,), name="input")
    x = inputs
    for _ in names:
        x = layers.Dense(3, activation="tanh")(x)
    network = conversion.from_keras(fill(keras.Model(inputs, x)))
    renamed = [network.layers[0]]
    renamed += [
        type(one)(one.kind, name, one.inputs, one.options, one.weights)
        for one, name in zip(network.layers[1:], names, strict=True)
    ]
    network = type(network)("*/ net", network.input_shape, tuple(renamed))
    _, source = written(network, tmp_path)
    assert source.isascii()
    assert run(tmp_path, np.ones((1, 3)), *SANITIZERS).shape == (1, 3)


def test_what_the_header_says(tmp_path):
    model = row((4, 4, 1), lambda: layers.Conv2D(2, 3, use_bias=False, name="conv"), lambda: layers.Flatten())()
    kernel = np.zeros((3, 3, 1, 2), np.float32)
    kernel[0, 0, 0, 0], kernel[2, 2, 0, 1] = 1.5, -2.0
    model.set_weights([kernel])
    header, source = written(conversion.from_keras(model), tmp_path)
    sizes = dict(re.findall(r"#define NET_(\w+) (\d+)", header))
    assert sizes == {"INPUT": "16", "OUTPUT": "8", "SCRATCH": "8"}
    assert "2 weights that are not 0" in header
    assert "conv_values[2] = {\n    1.5f, -2.0f\n};" in source
    assert "conv_steps[2] = {\n    1, 17\n};" in source
    images = np.arange(32, dtype=np.float32).reshape(2, 16)
    np.testing.assert_array_equal(run(tmp_path, images), model(images.reshape(2, 4, 4, 1)))


def test_files_are_written_and_the_same_each_time(tmp_path):
    model = fill(row((4,), lambda: layers.Dense(3))())
    deepcomp.save(model, tmp_path / "m.dcz")
    header, source, constants = deepcomp.export_c(tmp_path / "m.dcz", tmp_path / "out", name="tiny", weights="coded")
    assert (header, source) == (tmp_path / "out" / "tiny.h", tmp_path / "out" / "tiny.c")
    assert "int tiny_run(const float *input, float *output, float *scratch);" in header.read_text()
    assert f"flash   {constants} bytes of constants" in header.read_text()
    before = source.read_bytes()
    export_c(tmp_path / "m.dcz", tmp_path / "out", name="tiny", weights="coded")
    assert source.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "9lives"}, r"name='9lives': it must be a name of C"),
        ({"name": "a b"}, r"name='a b': it must be a name of C"),
        ({"weights": "zip"}, r"weights='zip': it must be direct or coded"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message, tmp_path):
    deepcomp.save(fill(row((4,), lambda: layers.Dense(3))()), tmp_path / "m.dcz")
    with pytest.raises(RecipeError, match=message):
        export_c(tmp_path / "m.dcz", tmp_path, **arguments)
    assert not [*tmp_path.glob("*.c")]


def test_weights_alone_cannot_be_run(tmp_path):
    deepcomp.save_weights(fill(row((4,), lambda: layers.Dense(3))()), tmp_path / "m.dcz")
    with pytest.raises(FormatError, match="holds the weights of a model alone"):
        export_c(tmp_path / "m.dcz", tmp_path)


def decoded(data, count, bits):
    """What `kernels.c` reads, in Python: steps and indices."""
    position, low, high, code = 4, 0, 0xFFFFFFFF, int.from_bytes((data + bytes(4))[:4], "big")
    odds: dict[tuple, list[int]] = {}

    def decide(context=None):
        nonlocal position, low, high, code
        chance, seen = odds.setdefault(context, [32768, 0]) if context else (32768, 0)
        width = high - low
        middle = low + (width >> 16) * chance + ((width & 65535) * chance >> 16)
        bit = int(code <= middle)
        low, high = (low, middle) if bit else (middle + 1, high)
        while not (low ^ high) >> 24:
            low, high = low << 8 & 0xFFFFFFFF, (high << 8 | 255) & 0xFFFFFFFF
            code = (code << 8 | (data[position] if position < len(data) else 0)) & 0xFFFFFFFF
            position += 1
        if context:
            odds[context] = [chance + int(2 * ((65472 if bit else 64) - chance) / (2 * seen + 3)), min(seen + 1, 255)]
        return bit

    found = []
    for _ in range(count):
        size, step, node = 0, 1, 1
        while decide(("size", size)):
            size += 1
        for i in reversed(range(size)):
            context = ("leading", size, 0 if i == size - 1 else 1 + step % 2) if i > size - 3 else None
            step = 2 * step + decide(context)
        for _ in range(bits):
            node = 2 * node + decide(("index", node) if node < 256 else None)
        found.append((step, node - (1 << bits)))
    return found


@given(st.integers(0, 9).flatmap(lambda bits: st.tuples(
    st.just(bits), st.lists(st.tuples(st.integers(1, 2**20), st.integers(0, 2**bits - 1)), max_size=60)
)))  # fmt: skip
def test_what_was_coded_is_decoded(drawn):
    bits, pairs = drawn
    steps, indices = np.array(pairs, np.int64).reshape(-1, 2).T
    data = streams.encode(steps, indices, bits).tobytes()
    assert decoded(data, len(pairs), bits) == pairs


def test_few_values_and_even_gaps_take_few_bytes():
    """Entropy: 1.5 bits of values and none of gaps; 1,000 weights, so 188 bytes and what the odds cost to learn."""
    indices = np.random.default_rng(0).choice(3, 1000, p=[0.5, 0.25, 0.25])
    assert 188 < streams.encode(np.full(1000, 7), indices, 2).size < 215
