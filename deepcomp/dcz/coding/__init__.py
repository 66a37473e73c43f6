"""Lossless coders of index tensors: `huffman`, the paper's, and `range`, which mixes contexts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deepcomp.dcz.coding import mixing, paper
from deepcomp.dcz.coding.mixing import descending_order
from deepcomp.dcz.coding.tensors import MAX_CENTROIDS, Spec
from deepcomp.errors import RecipeError

CODERS = ("huffman", "range")
__all__ = ["CODERS", "MAX_CENTROIDS", "Coded", "Spec", "decode", "descending_order", "encode", "memory"]

_HOMES = {"huffman": paper, "range": mixing}


class Coded(NamedTuple):
    """A coded section, and what each tensor's positions and values take of it in bits."""

    data: bytes
    bits: list[tuple[float, float]]


def encode(arrays: Sequence[np.ndarray], specs: Sequence[Spec], coder: str) -> Coded:
    """Code index tensors, unsigned arrays of the specs' shapes, into one section. Raises `RecipeError`."""
    for array, spec in zip(arrays, specs, strict=True):
        top = int(array.max(initial=0))
        if array.shape != spec.shape or top > spec.centroids or not 0 <= spec.negatives <= spec.centroids:
            raise RecipeError(f"Indices up to {top} of shape {array.shape} do not fit {spec}.")
        if spec.centroids > MAX_CENTROIDS:
            raise RecipeError(f"A codebook of {spec.centroids} values is too large: {MAX_CENTROIDS} at most.")
    return Coded(
        *_home(coder).encode([a.astype(s.dtype, copy=False) for a, s in zip(arrays, specs, strict=True)], specs)
    )


def decode(data: bytes, specs: Sequence[Spec], coder: str, version: int = 3) -> list[np.ndarray]:
    """The tensors of a section of a file of some version, of each spec's shape and dtype. Raises `FormatError`."""
    return _home(coder).decode(data, specs)


def memory(specs: Sequence[Spec], coder: str) -> int:
    """The most bytes that `decode` takes, its result included."""
    working = max((_home(coder).working_memory(spec) for spec in specs), default=0)
    return working + sum(spec.size * np.dtype(spec.dtype).itemsize for spec in specs)


def _home(coder: str):
    if coder not in _HOMES:
        raise RecipeError(f"No coder {coder!r}: use {' or '.join(CODERS)}.")
    return _HOMES[coder]
