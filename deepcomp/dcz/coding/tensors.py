"""What encoder and decoder both know of a tensor of indices."""

from dataclasses import dataclass

import numpy as np

MAX_CENTROIDS = 65_535


@dataclass(frozen=True)
class Spec:
    """A tensor of indices: 0 for a pruned weight, else 1 to `centroids`, the first `negatives` for negative values.

    `shape` is read as window x inputs x outputs, like a convolution's kernel.
    """

    shape: tuple[int, ...]
    centroids: int
    negatives: int

    @property
    def size(self) -> int:
        """The number of weights."""
        return int(np.prod(self.shape, dtype=object))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The shape in four dimensions: window rows, window columns, inputs, outputs."""
        shape = (1,) * (4 - len(self.shape)) + tuple(self.shape)
        return (int(np.prod(shape[:-3])), *shape[-3:])

    @property
    def dtype(self) -> type:
        """The type of the indices."""
        return np.uint8 if self.centroids < 256 else np.uint16
