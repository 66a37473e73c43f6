"""Where the bytes of a `.dcz` file go, tensor by tensor, in bits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deepcomp.dcz.codes import Shape


@dataclass(frozen=True)
class Part:
    """What one weight tensor takes in the file, in bits; `centroids` is None for an array stored value by value."""

    layer: str
    weight: str
    shape: Shape
    weights: int
    nonzero: int
    centroids: int | None
    codebook_bits: int
    index_bits: int
    value_bits: int
    plain_bits: int

    @property
    def bits(self) -> int:
        """All its bits."""
        return self.codebook_bits + self.index_bits + self.value_bits + self.plain_bits


@dataclass(frozen=True)
class Parts:
    """What each part of a file takes, in bits: the weight tensors, and all that is not weight data.

    The header has magic, version, coder and checksum. The tables say how each tensor is stored.
    """

    coder: str
    header_bits: int
    architecture_bits: int
    names_bits: int
    tables_bits: int
    tensors: tuple[Part, ...]

    @property
    def overhead_bits(self) -> int:
        """All that is not weight data."""
        return self.header_bits + self.architecture_bits + self.names_bits + self.tables_bits

    @property
    def bits(self) -> int:
        """8 x the size of the file in bytes."""
        return self.overhead_bits + sum(part.bits for part in self.tensors)


def apportion(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to `shares` that add up to `total`: the largest remainders are rounded up."""
    if not shares:
        return []
    whole = math.fsum(shares)
    quotas = [share * total / whole for share in shares] if whole else [float(total)] + [0.0] * (len(shares) - 1)
    floors = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda i: floors[i] - quotas[i])
    for i in by_remainder[: total - sum(floors)]:
        floors[i] += 1
    return floors
