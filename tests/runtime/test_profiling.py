"""Where the time of a call goes: every step of every layer is counted once."""

import numpy as np
import pytest

import deepcomp
from deepcomp import runtime
from deepcomp.errors import DataError
from deepcomp.runtime.kernels import WIDTH
from deepcomp.runtime.profiling import LayerTime, Profile
from tests.runtime.test_cuda import Builder


def two_branches():
    """A 6x6 image; a convolution with pooling, one beside it, their sum, a Dense and a softmax."""
    builder = Builder(6, 6, 2)
    first = builder.convolve("Conv2D", 3, 3, 2, 4, padding="same", activation="relu")
    second = builder.convolve("Conv2D", 3, 3, 4, 4, padding="same")
    builder.add("Add", first, second)
    builder.add("Flatten")
    builder.dense(144, 5)
    builder.add("Softmax")
    return builder.network


def left(layer):
    return int(np.count_nonzero(layer.weights["kernel"].indices))


@pytest.mark.parametrize("count", [1, WIDTH, 5 * WIDTH + 1])
def test_multiply_adds_are_those_of_the_weights_that_are_left(count):
    network = two_branches()
    found = runtime.prepare(network, threads=1).profile(np.zeros((count, 6, 6, 2), np.float32), seconds=0)
    assert found.examples == count
    first, second, dense = (network.layers[number] for number in (1, 2, 5))
    done = {layer.layer: layer.multiply_adds for layer in found.layers if layer.multiply_adds}
    blocks = {1: 1, WIDTH: WIDTH, 5 * WIDTH + 1: 5 * WIDTH + 1}[count]
    assert done == {
        first.name: 36 * left(first) * blocks,
        second.name: 36 * left(second) * blocks,
        dense.name: left(dense) * blocks,
    }


def test_layers_stand_in_the_order_in_which_they_run():
    """The sum is part of the convolution before it."""
    found = runtime.prepare(two_branches(), threads=1).profile(3, seconds=0)
    assert [layer.layer for layer in found.layers] == [
        "input",
        "layer_1",
        "layer_2",
        "layer_5",
        "layer_6",
        "",
    ]
    assert [layer.steps for layer in found.layers][-3:] == ["dense", "softmax", "write output"]
    assert found.microseconds > 0
    assert all(layer.microseconds >= 0 for layer in found.layers)


def test_a_profile_changes_no_output():
    engine = runtime.prepare(two_branches(), threads=1)
    images = np.random.default_rng(1).normal(size=(2 * WIDTH, 6, 6, 2)).astype(np.float32)
    before = engine(images), engine(images[:1])
    engine.profile(images, seconds=0)
    engine.profile(images[:1], seconds=0)
    after = engine(images), engine(images[:1])
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_profile_prints_as_a_table():
    layers = (
        LayerTime("conv", "convolution, clear", 3_000, 1.5),
        LayerTime("a" * 40, "add", 0, 0.5),
        LayerTime("", "write output", 0, 0.0),
    )
    assert str(Profile(1, 2.5, layers)).splitlines() == [
        "layer                         steps               multiply-adds   us  share %   a us",
        "----------------------------  ------------------  -------------  ---  -------  -----",
        "conv                          convolution, clear          3,000  1.5     75.0  2,000",
        "aaaaaaaaaaaaaaaaaaaaaaaaa...  add                             -  0.5     25.0      -",
        "(outputs)                     write output                    -  0.0      0.0      -",
        "all                                                       3,000  2.0    100.0  1,500",
    ]


def test_a_number_stands_for_random_inputs():
    engine = runtime.prepare(two_branches(), threads=1)
    assert engine.profile(2 * WIDTH, seconds=0).examples == 2 * WIDTH
    for wrong in (0, -1, True):
        with pytest.raises(DataError, match=f"No batch of {wrong}"):
            engine.profile(wrong)
    with pytest.raises(DataError):
        engine.profile(np.zeros((1, 5), np.float32))
    assert engine.profile(np.zeros((0, 6, 6, 2), np.float32), seconds=0) == Profile(0, 0.0, ())


def test_recurrent_steps_and_tables_are_counted():
    builder = Builder(4)
    builder.add("Embedding", weights={"embeddings": builder.kernel(7, 3)}, input_dim=7, output_dim=3)
    weights = {
        "kernel": builder.kernel(3, 8),
        "recurrent_kernel": builder.kernel(2, 8),
        "bias": builder.vector(8),
    }
    builder.add("LSTM", weights=weights, units=2)
    builder.dense(2, 3)
    found = {layer.layer: layer for layer in runtime.prepare(builder.network, threads=1).profile(2, seconds=0).layers}
    assert found["layer_1"].steps == "look up"
    taken, own = (int(np.count_nonzero(weights[name].indices)) for name in ("kernel", "recurrent_kernel"))
    assert found["layer_2"].multiply_adds == 2 * 4 * (taken + own)
    assert "recurrent cell" in found["layer_2"].steps


def test_open_sizes_are_profiled_at_those_of_the_inputs(tmp_path):
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.Input((None, None, 2)), keras.layers.Conv2D(3, 3, name="conv")])
    deepcomp.save(model, tmp_path / "open.dcz")
    engine = deepcomp.load(tmp_path / "open.dcz", threads=1)
    found = engine.profile(np.zeros((1, 10, 8, 2), np.float32), seconds=0)
    (work,) = (layer.multiply_adds for layer in found.layers if layer.layer == "conv")
    assert work == 8 * 6 * 54
    assert engine.profile(3, seconds=0).examples == 3
