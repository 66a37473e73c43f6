"""How two networks differ."""

from dataclasses import replace

import numpy as np

from deepcomp.dcz.comparison import differences
from deepcomp.dcz.network import Layer, Network, SharedWeight

KERNEL = SharedWeight(np.array([-1, 0.5], np.float32), np.array([[0, 1], [2, 0], [1, 1]], np.uint8))
DENSE = Layer("Dense", "fc", (0,), {"units": 2}, {"kernel": KERNEL, "bias": np.zeros(2, np.float32)})
NETWORK = Network("net", (3,), (Layer("InputLayer", "image"), DENSE))


def other(**changes):
    return replace(NETWORK, layers=(NETWORK.layers[0], replace(DENSE, **changes)))


def with_kernel(array):
    return other(weights={**DENSE.weights, "kernel": np.array(array, np.float32)})


def test_the_same_values_are_the_same_however_they_are_held():
    assert differences(NETWORK, NETWORK) == []
    assert differences(NETWORK, with_kernel([[0, -1], [0.5, 0], [-1, -1]])) == []


def test_each_difference_is_a_line():
    assert differences(NETWORK, replace(NETWORK, name="other")) == ["name: 'net' and 'other'"]
    assert differences(NETWORK, replace(NETWORK, input_shape=(4,))) == ["inputs: [(3,)] and [(4,)]"]
    assert differences(NETWORK, with_kernel([[0, -1], [0.5, 0.25], [-1, -0.75]])) == [
        "layer 1, fc: kernel has 2 of 6 values that differ, by at most 0.25"
    ]
    assert differences(NETWORK, with_kernel([[-0.0, -1], [0.5, 0], [-1, -1]])) == [
        "layer 1, fc: kernel has 1 of 6 values that differ, by at most 0"
    ]
    assert differences(NETWORK, with_kernel([[0, 0]])) == ["layer 1, fc: kernel has the shapes 3x2 and 1x2"]
    assert differences(NETWORK, other(options={"units": 2, "use_bias": False}, weights={"kernel": KERNEL})) == [
        "layer 1, fc: use_bias True and False",
        "layer 1, fc: bias is in the first alone",
    ]
    assert differences(NETWORK, other(name="out")) == ["layer 1, fc: named 'fc' and 'out'"]
    assert differences(NETWORK, replace(NETWORK, layers=(NETWORK.layers[0], Layer("ReLU", "r", (0,))))) == [
        "layer 1, fc: of kind Dense and, as r, of kind ReLU"
    ]
    assert differences(NETWORK, replace(NETWORK, layers=(*NETWORK.layers, Layer("ReLU", "r", (1,))), outputs=(2,))) == [
        "outputs: (1,) and (2,)",
        "number of layers: 2 and 3",
    ]
