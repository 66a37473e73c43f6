"""Compiles ahead of time what a file and its engine need, for images of containers and for impatient users."""

import time

import numpy as np

from deepcomp.dcz import coding, container, neurons
from deepcomp.dcz.network import Layer, Network, SharedWeight
from deepcomp.runtime.engine import Engine
from deepcomp.runtime.plan import Plan

_IMAGES = 64


def warm() -> float:
    """Compile what `load` and engines need, unless it is on disk; returns the seconds that this took.

    The code is kept in the folder that `NUMBA_CACHE_DIR` names, else beside the package, else in the user's cache
    folder.
    """
    begin, network = time.perf_counter(), _network()
    for coder in coding.CODERS:
        engine = Engine(Plan.of(neurons.remove_unused(container.loads(container.dumps(network, coder)))), threads=1)
        engine(np.zeros((_IMAGES, *engine.input_shape), np.float32))
    return time.perf_counter() - begin


def _network() -> Network:
    """Weights of every form: shared ones, others, and vectors."""
    draw = np.random.default_rng(0)
    values = np.linspace(-1, 1, 4, dtype=np.float32)
    shared = SharedWeight(values, draw.integers(0, 5, (3, 3, 1, 4)).astype(np.uint8))
    plain = draw.normal(size=(16, 3)).astype(np.float32)
    convolution = {"filters": 4, "kernel_size": (3, 3), "use_bias": False}
    layers = (
        Layer("InputLayer", "input"),
        Layer("Conv2D", "convolution", (0,), convolution, {"kernel": shared}),
        Layer("Flatten", "flatten", (1,)),
        Layer("Dense", "dense", (2,), {"units": 3}, {"kernel": plain, "bias": draw.normal(size=3).astype(np.float32)}),
    )
    return Network("network", (4, 4, 1), layers)
