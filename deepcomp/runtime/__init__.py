"""Runs a `.dcz` file on its compressed weights, with NumPy and Numba only."""

import os
from pathlib import Path

from deepcomp.dcz import container, neurons
from deepcomp.dcz.limits import Limits
from deepcomp.dcz.network import Network, require_layers
from deepcomp.errors import FormatError, RecipeError
from deepcomp.runtime.engine import Engine
from deepcomp.runtime.open_sizes import OpenEngine
from deepcomp.runtime.plan import Plan

__all__ = ["Engine", "OpenEngine", "load", "prepare"]


def load(
    path: str | Path,
    threads: int | None = None,
    device: str = "cpu",
    max_memory: int | None = None,
    max_work: int | None = None,
) -> Engine | OpenEngine:
    """The engine of a `.dcz` file: `engine(images)`, `float32 (N, *input_shape)` -> `float32 (N, *output_shape)`.

    `threads` is the most that share a call, by default one for each core that the process may use. `device` is "cpu",
    or "cuda" for an NVIDIA GPU, which takes the extra `cuda` and no `threads`. `max_memory` is the most bytes that the
    network may need, `max_work` the most operations for an image; by default they follow from the file's size. An
    engine can be copied, pickled and sent to other processes: the bytes of the file are what is sent. A network with
    open sizes takes inputs of any size; its engine is planned anew for each size that it meets. Raises
    `FormatError` for a file that is missing or damaged, or that asks for more, and `RecipeError` for other arguments
    and for a GPU that is not there.
    """
    return _prepared(container.read(path), threads, device, max_memory, max_work, str(path))


def prepare(network: Network, threads: int | None = None, device: str = "cpu") -> Engine | OpenEngine:
    """The engine of a network in memory; arguments and errors as for `load`, limits those of its weights' bytes."""
    return _engine(network, threads, device, network, None)


def _prepared(
    data: bytes,
    threads: int | None,
    device: str,
    max_memory: int | None = None,
    max_work: int | None = None,
    name: str = "This file",
) -> Engine | OpenEngine:
    """The engine of the bytes of a file; pickled engines are restored by it."""
    limits = Limits.of(len(data), max_memory, max_work)
    network = container.loads(data, name=name, limits=limits)
    try:
        return _engine(network, threads, device, data, limits)
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from error
    except MemoryError as error:
        raise FormatError(f"{name} needs more memory than there is.") from error


def _engine(
    network: Network, threads: int | None, device: str, source: Network | bytes, limits: Limits | None
) -> Engine | OpenEngine:
    if device not in ("cpu", "cuda"):
        raise RecipeError(f"No device {device!r}: use 'cpu' or 'cuda'.")
    if threads is None:
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise RecipeError(f"No number of threads {threads!r}: use a whole number from 1 on.")
    require_layers(network, "the file")
    network = neurons.remove_unused(network)

    def make(sized: Network) -> Engine:
        plan = Plan.of(sized, limits)
        if device == "cuda":
            from deepcomp.runtime.cuda import CudaEngine

            return CudaEngine(plan, source)
        return Engine(plan, threads, source)

    return OpenEngine(network, make, source) if network.has_open_sizes else make(network)


Engine.restore = staticmethod(_prepared)
