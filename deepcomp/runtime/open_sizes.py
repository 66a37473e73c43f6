"""Runs a network with open sizes: an engine is made for each size that it meets."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from deepcomp.dcz.codes import InvalidNetworkError, Shape
from deepcomp.dcz.network import Network, open_output_shapes, with_sizes
from deepcomp.errors import DataError
from deepcomp.runtime.ends import Ends

_KEPT = 4  # engines: each has the weights packed for its size


class OpenEngine:
    """A compressed network whose inputs have open sizes: `engine(inputs)`, for inputs of any size.

    The first call with a size makes an engine for it, which takes as long as loading; those of the last few sizes are
    kept. `input_shape` and `output_shape` have None for a size that is open. Any number of threads may call an engine
    at the same time.
    """

    def __init__(self, network: Network, make: Callable[[Network], Any]):
        self._network, self._make = network, make
        shapes = open_output_shapes(network)
        self._ends = Ends.of(network, tuple(shapes[number] for number in network.outputs))._replace(
            inputs=tuple(network.open_shapes)
        )
        self._engines: OrderedDict[tuple[Shape, ...], Any] = OrderedDict()
        self._lock = threading.Lock()
        # Of the sizes in the file, so that one that asks for too much is refused now.
        self.threads = self._engine(tuple(network.input_shapes)).threads

    @property
    def input_shape(self) -> tuple:
        """The shape of the input, or the shapes of all inputs."""
        return self._ends.input_shape

    @property
    def output_shape(self) -> tuple:
        """The shape of the output, or the shapes of all outputs."""
        return self._ends.output_shape

    @property
    def weight_bytes(self) -> int:
        """The memory for weights in the engines that are kept, in bytes."""
        return sum(engine.weight_bytes for engine in [*self._engines.values()])

    @property
    def arena_bytes(self) -> int:
        """The memory for activations in the engines that are kept, in bytes."""
        return sum(engine.arena_bytes for engine in [*self._engines.values()])

    def __repr__(self) -> str:
        return f"<Engine {self._ends}: {self.weight_bytes:,} bytes of weights, {self.threads} threads>"

    def __reduce__(self) -> tuple:
        """Copies and pickles are made anew from the coded network, as those of other engines."""
        return next(iter(self._engines.values())).__reduce__()

    def __call__(self, inputs: Any) -> Any:
        """The network's outputs for inputs of any size, as those of `Engine`. Raises `DataError`."""
        return self._engine(self._ends.sizes(inputs))(inputs)

    def _engine(self, shapes: tuple[Shape, ...]) -> Any:
        """The engine for inputs of these shapes. Raises `DataError` where the network does not run on them."""
        with self._lock:
            if shapes not in self._engines:
                try:
                    network = with_sizes(self._network, shapes)
                except InvalidNetworkError as error:
                    raise DataError(f"The network does not run on inputs of these sizes: {error}") from error
                self._engines[shapes] = self._make(network)
                if len(self._engines) > _KEPT:
                    self._engines.popitem(last=False)
            self._engines.move_to_end(shapes)
            return self._engines[shapes]
