"""Floating-point values as words of the smallest type that keeps every bit of them."""

from typing import NamedTuple

import numpy as np

from deepcomp.compiled import compiled


class Words(NamedTuple):
    """Values as unsigned words: `type` is the number of their floating-point type in a file, a place in `TYPES`."""

    type: int
    words: np.ndarray


FLOAT32, FLOAT16, BFLOAT16 = range(3)
TYPES = (np.dtype("<u4"), np.dtype("<u2"), np.dtype("<u2"))  # of the words of each type


def smallest(values: np.ndarray) -> Words:
    """The words of the first type of float16, bfloat16 and float32 that keeps all values: `float32, any shape`."""
    bits = np.ascontiguousarray(values).view(np.uint32).ravel()
    if _fit_bfloat16(bits):
        half = _float16(values)
        return Words(BFLOAT16, (bits >> 16).astype("<u2")) if half is None else Words(FLOAT16, half)
    # A look at a few values spares most tensors a copy.
    half = None if _float16(values.ravel()[:256]) is None else _float16(values)
    return Words(FLOAT32, bits.astype("<u4", copy=False)) if half is None else Words(FLOAT16, half)


def narrow(values: np.ndarray) -> Words:
    """The words of the first type of float16 and float32 that keeps all values, as versions 1 and 2 have it."""
    found = smallest(values)
    return found if found.type != BFLOAT16 else Words(FLOAT32, values.ravel().view("<u4"))


def values(type: int, words: np.ndarray) -> np.ndarray:
    """The values of words: `float32, flat`."""
    if type == FLOAT16:
        return words.view("<f2").astype(np.float32)
    if type == BFLOAT16:
        return (words.astype(np.uint32) << 16).view(np.float32)
    return words.view("<f4").astype(np.float32, copy=False)


def are_finite(values: np.ndarray) -> bool:
    """Whether no value is infinite or not a number; takes no memory."""
    return not values.size or bool(np.isfinite(values.min()) and np.isfinite(values.max()))


def _float16(values: np.ndarray) -> np.ndarray | None:
    """The words of values as float16, or None where that loses a bit."""
    with np.errstate(over="ignore"):
        half = values.astype("<f2").ravel()
    same = np.array_equal(half.astype(np.float32).view(np.uint32), np.ascontiguousarray(values).view(np.uint32).ravel())
    return half.view("<u2") if same else None


@compiled()
def _fit_bfloat16(bits):
    lowest = 0
    for word in bits:
        lowest |= word & 0xFFFF
        if lowest:
            break
    return lowest == 0
