"""Lossless coders of index tensors: `huffman`, the paper's, and `range`, which mixes contexts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deepcomp.dcz.coding import arithmetic, mixing, mixing_2, paper
from deepcomp.dcz.coding.arithmetic import descending_order
from deepcomp.dcz.coding.tensors import MAX_CENTROIDS, Spec
from deepcomp.errors import RecipeError

CODERS = ("huffman", "range")
__all__ = ["CODERS", "MAX_CENTROIDS", "Coded", "Spec", "decode", "descending_order", "encode", "memory"]


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
    _check(coder)
    held = [array.astype(spec.dtype, copy=False) for array, spec in zip(arrays, specs, strict=True)]
    return Coded(*(paper.encode(held, specs) if coder == "huffman" else arithmetic.encode(held, specs, mixing.MODEL)))


def decode(data: bytes, specs: Sequence[Spec], coder: str, version: int = 3) -> list[np.ndarray]:
    """The tensors of a section of a file of some version, of each spec's shape and dtype. Raises `FormatError`."""
    _check(coder)
    if coder == "huffman":
        return paper.decode(data, specs)
    return arithmetic.decode(data, specs, mixing.MODEL if version > 2 else mixing_2.MODEL)


def memory(specs: Sequence[Spec], coder: str, version: int = 3) -> int:
    """The most bytes that `decode` takes, its result included."""
    if coder == "huffman":
        working = [paper.working_memory(spec) for spec in specs]
    else:
        model = mixing.MODEL if version > 2 else mixing_2.MODEL
        working = [arithmetic.working_memory(spec, model) for spec in specs]
    return max(working, default=0) + sum(spec.size * np.dtype(spec.dtype).itemsize for spec in specs)


def _check(coder: str) -> None:
    if coder not in CODERS:
        raise RecipeError(f"No coder {coder!r}: use {' or '.join(CODERS)}.")
