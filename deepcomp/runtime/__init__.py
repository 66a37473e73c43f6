"""Runs a `.dcz` file on its compressed weights, with NumPy and Numba only."""

import os
from pathlib import Path

from deepcomp.dcz import container, neurons
from deepcomp.dcz.network import Network
from deepcomp.errors import RecipeError
from deepcomp.runtime.engine import Engine
from deepcomp.runtime.plan import Plan

__all__ = ["Engine", "load", "prepare"]


def load(path: str | Path, threads: int | None = None, device: str = "cpu") -> Engine:
    """The engine of a `.dcz` file: `engine(images)`, `float32 (N, *input_shape)` -> `float32 (N, *output_shape)`.

    `threads` is the most that share a call, by default one for each core that the process may use. `device` is "cpu",
    or "cuda" for an NVIDIA GPU, which takes the extra `cuda` and no `threads`. An engine can be copied, pickled and
    sent to other processes: the bytes of the file are what is sent. Raises `FormatError` for a file that is missing or
    damaged, `RecipeError` for other arguments and for a GPU that is not there.
    """
    return _prepared(container.read(path), threads, device, str(path))


def prepare(network: Network, threads: int | None = None, device: str = "cpu") -> Engine:
    """The engine of a network in memory; arguments and errors as for `load`."""
    return _engine(network, threads, device, network)


def _prepared(data: bytes, threads: int | None, device: str, name: str = "This file") -> Engine:
    """The engine of the bytes of a file; pickled engines are restored by it."""
    return _engine(container.loads(data, name=name), threads, device, data)


def _engine(network: Network, threads: int | None, device: str, source: Network | bytes) -> Engine:
    if device not in ("cpu", "cuda"):
        raise RecipeError(f"No device {device!r}: use 'cpu' or 'cuda'.")
    if threads is None:
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise RecipeError(f"No number of threads {threads!r}: use a whole number from 1 on.")
    plan = Plan.of(neurons.remove_unused(network))
    if device == "cuda":
        from deepcomp.runtime.cuda import CudaEngine

        return CudaEngine(plan, source)
    return Engine(plan, threads, source)


Engine.restore = staticmethod(_prepared)
