"""Relative index: positions of the surviving weights as differences of a fixed number of bits.

Source: Han, Mao and Dally, Deep Compression, ICLR 2016, section 2 and figure 2. An entry is a gap, the number of
zeros since the entry before, and a value. A gap of 2^bits or more is bridged by fillers: entries of the largest gap,
2^bits - 1, and the value 0. After the last survivor nothing is stored. `report.accounting` counts the same entries.
"""

import numpy as np

from deepcomp.compiled import compiled
from deepcomp.errors import FormatError, RecipeError

MAX_BITS = 16


def encode(indices: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Make entries, survivors and fillers, of a kernel of indices.

    indices: `unsigned, any shape`, 0 for a pruned weight, else its entry in the codebook; bits: 1 to 16 for a gap.
    Returns gaps, `uint8 or uint16 (entries,)`, 0 to 2^bits - 1, and values, `dtype of indices (entries,)`, 0 for a
    filler. Raises RecipeError for bits out of range or indices that are not unsigned. Source: section 2.
    """
    if not 1 <= bits <= MAX_BITS:
        raise RecipeError(f"bits={bits} for a gap: it must be from 1 to {MAX_BITS}.")
    indices = np.asarray(indices).ravel()
    if indices.dtype.kind != "u":
        raise RecipeError(f"Indices of type {indices.dtype}: they must be unsigned.")
    survivors = np.flatnonzero(indices != 0)
    skipped = np.diff(survivors, prepend=-1) - 1
    ends = np.cumsum((skipped >> bits) + 1) - 1  # of each survivor among the entries, after its fillers
    entries = int(ends[-1]) + 1 if ends.size else 0
    most = (1 << bits) - 1
    gaps = np.full(entries, most, np.min_scalar_type(most))
    gaps[ends] = skipped & most
    values = np.zeros(entries, indices.dtype)
    values[ends] = indices[survivors]
    return gaps, values


def decode(gaps: np.ndarray, values: np.ndarray, size: int, bits: int) -> np.ndarray:
    """Make the kernel of indices, flattened, that entries describe: the inverse of `encode`.

    gaps, values: `unsigned (entries,)`; size: weights of the kernel; bits: 1 to 16. Returns `dtype of values (size,)`.
    Raises FormatError where `encode` would not have made these entries of any kernel of this size: a gap past the
    end or of too many bits, a filler whose gap is not the largest, a filler that no survivor follows.
    """
    if not 1 <= bits <= MAX_BITS or size < 0:
        raise FormatError(f"A relative index has {bits} bits, 1 to {MAX_BITS} are possible, and a size of {size}.")
    gaps, values = np.asarray(gaps), np.asarray(values)
    if gaps.size != values.size:
        raise FormatError(f"A relative index has {gaps.size} gaps and {values.size} values.")
    indices, most = np.zeros(size, values.dtype), (1 << bits) - 1
    end = _fill(indices, gaps, values, most)
    if end < 0:
        _refuse(gaps, values == 0, most)
    if end > size:
        raise FormatError(f"A relative index has a gap past the end: position {end - 1} of {size} weights.")
    return indices


@compiled()
def _fill(indices, gaps, values, most):
    """Write the values at their positions; returns the end of the last, or -1 if no kernel has such entries."""
    end = 0
    for number in range(gaps.size):
        gap, value = np.int64(gaps[number]), values[number]
        if gap < 0 or gap > most or (value == 0 and (gap != most or number + 1 == gaps.size)):
            return -1
        end += gap + 1
        if end <= indices.size:
            indices[end - 1] = value
    return end


def _refuse(gaps: np.ndarray, filler: np.ndarray, most: int) -> None:
    """Raise the FormatError of entries that no kernel has."""
    if gaps.min() < 0 or gaps.max() > most:
        raise FormatError(f"A relative index has gaps from {gaps.min()} to {gaps.max()}: the largest is {most}.")
    if filler[-1]:
        raise FormatError("A relative index ends in a filler.")
    gap = gaps[filler & (gaps != most)][0]
    raise FormatError(f"A relative index has a filler with a gap of {gap}: fillers have the largest, {most}.")
