"""Runs a network with open sizes: an engine is made for each size that it meets."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from deepcomp.dcz.codes import InvalidNetworkError, Shape
from deepcomp.dcz.network import Network, open_output_shapes, with_sizes
from deepcomp.errors import DataError, shape_text
from deepcomp.runtime.ends import Ends
from deepcomp.runtime.engine import Engine, coded
from deepcomp.runtime.profiling import Profile

_KEPT = 16  # engines at most: each has the weights packed for its size, and arenas


class OpenEngine:
    """A compressed network whose inputs have open sizes: `engine(inputs)`, for inputs of any size.

    The first call with a size makes an engine for it, which takes as long as loading. Those of the last sizes are kept
    while all together they are within the network's limit of memory. `input_shape` and `output_shape` have None for a
    size that is open. Any number of threads may call an engine at the same time.
    """

    def __init__(self, network: Network, make: Callable[[Network], Engine], source: Network | bytes):
        self._network, self._make, self._source = network, make, source
        shapes = open_output_shapes(network)
        self._ends = Ends.of(network, tuple(shapes[number] for number in network.outputs))._replace(
            inputs=tuple(network.open_shapes)
        )
        self.input_shape, self.output_shape = self._ends.input_shape, self._ends.output_shape
        self._engines: OrderedDict[tuple[Shape, ...], Engine] = OrderedDict()
        self._lock = threading.Lock()
        # Of the sizes in the file, so that one that asks for too much is refused now.
        first = self._engine(tuple(network.input_shapes))
        self.threads, self._device, self._limits = first.threads, first._device, first._plan.limits

    @property
    def weight_bytes(self) -> int:
        """The memory for weights in the engines that are kept, in bytes."""
        with self._lock:
            return sum(engine.weight_bytes for engine in self._engines.values())

    @property
    def arena_bytes(self) -> int:
        """The memory for activations in the engines that are kept, in bytes."""
        with self._lock:
            return sum(engine.arena_bytes for engine in self._engines.values())

    def __repr__(self) -> str:
        return f"<Engine {self._ends}: {self.weight_bytes:,} bytes of weights, {self.threads} threads>"

    def __reduce__(self) -> tuple:
        """Copies and pickles are made anew from the coded network, as those of other engines."""
        return Engine.restore, (coded(self._source), self.threads, self._device, *self._limits)

    def __call__(self, inputs: Any) -> Any:
        """The network's outputs for inputs of any size, as those of `Engine`.

        Raises `DataError` for inputs that the network does not take, and `FormatError` for a size for which it needs
        more memory or work than its limits.
        """
        return self._engine(self._ends.sizes(inputs))(inputs)

    def profile(self, inputs: Any = 1, seconds: float = 0.5) -> Profile:
        """Where the time of a call goes, as `Engine.profile`; random inputs have the sizes that the file has."""
        fixed = isinstance(inputs, int)
        sizes = tuple(self._network.input_shapes) if fixed else self._ends.sizes(inputs)
        return self._engine(sizes).profile(inputs, seconds)

    def _engine(self, shapes: tuple[Shape, ...]) -> Engine:
        """The engine for inputs of these shapes; errors as for a call."""
        with self._lock:
            if shapes in self._engines:
                self._engines.move_to_end(shapes)
                return self._engines[shapes]
        try:
            network = with_sizes(self._network, shapes)
        except InvalidNetworkError as error:
            given = " and ".join(map(shape_text, shapes))
            raise DataError(f"The network does not run on inputs of {given}: {error}") from error
        engine = self._make(network)  # without the lock: calls of other sizes go on
        with self._lock:
            engine = self._engines.setdefault(shapes, engine)
            self._engines.move_to_end(shapes)
            while len(self._engines) > 1 and (len(self._engines) > _KEPT or self._bytes() > engine._plan.limits.memory):
                self._engines.popitem(last=False)
        return engine

    def _bytes(self) -> int:
        return sum(engine.weight_bytes + engine.arena_bytes for engine in self._engines.values())
