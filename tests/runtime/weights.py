"""Random weights for the tests of packing and of kernels."""

import numpy as np

from deepcomp.runtime.packing import PackedFull, pack_full


def weights(rng: np.random.Generator, units: int, taps: int, density: float, kind: str) -> tuple[tuple, np.ndarray]:
    """Arguments of a packing function and the dense matrix (units, taps) of the same weights."""
    count = {"uint8": 200, "uint16": 300, "float32": 9, "short": 32}[kind]
    codebook = (rng.uniform(0.5, 1.5, count) * rng.choice([-1, 1], count)).astype(np.float32)
    indices = rng.integers(0, count, (units, taps))
    matrix = np.where(rng.random((units, taps)) < density, codebook[indices], 0).astype(np.float32)
    unit, tap = np.nonzero(matrix)
    if kind == "float32":
        return (unit, tap, matrix[unit, tap], None, units, taps), matrix
    chosen = indices[unit, tap].astype("uint16" if kind == "uint16" else "uint8")
    return (unit, tap, chosen, codebook, units, taps), matrix


def packed_full(unit: np.ndarray, tap: np.ndarray, value: np.ndarray, codebook, units: int, taps: int) -> PackedFull:
    """The packed form of weights of which none is pruned; arguments as in `pack_conv`."""
    assert len(unit) == units * taps
    return pack_full(value.reshape(units, taps), codebook)
