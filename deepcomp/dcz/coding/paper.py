"""The paper's coding of index tensors: relative indices and values, each Huffman coded (paper sections 2 and 4).

A tensor is, byte after byte: the number of index bits; the number of entries, survivors and fillers, as a varint (7
bits a byte, the lowest first, the highest bit set in all bytes but the last); the Huffman stream of the gaps, of an
alphabet of 2^bits; the Huffman stream of the values, of an alphabet of centroids + 1. A tensor with nothing left has 0
index bits and nothing after them.
"""

from collections.abc import Sequence

import numpy as np

from deepcomp.dcz.coding import huffman, relative
from deepcomp.dcz.coding.tensors import Spec
from deepcomp.errors import FormatError


def encode(arrays: Sequence[np.ndarray], specs: Sequence[Spec]) -> tuple[bytes, list[tuple[float, float]]]:
    """Code tensors of indices one after the other; returns the bytes and each tensor's bits for indices and values."""
    pieces, sizes = [], []
    for array, spec in zip(arrays, specs, strict=True):
        bits = best_bits(array, spec)
        if not bits:
            pieces.append(b"\0")
            sizes.append((8.0, 0.0))
            continue
        gaps, values = relative.encode(array, bits)
        head = bytes([bits]) + _varint(len(gaps))
        coded = huffman.encode(gaps, 1 << bits), huffman.encode(values, spec.centroids + 1)
        pieces += [head, *coded]
        sizes.append((8.0 * (len(head) + len(coded[0])), 8.0 * len(coded[1])))
    return b"".join(pieces), sizes


def decode(data: bytes, specs: Sequence[Spec]) -> list[np.ndarray]:
    """The tensors of `encode`'s bytes, of each spec's shape and dtype. Raises `FormatError`."""
    view, arrays = memoryview(data), []
    for spec in specs:
        if not len(view):
            raise FormatError("The coded weights end before the last tensor.")
        bits, view = view[0], view[1:]
        if not bits:
            arrays.append(np.zeros(spec.shape, spec.dtype))
            continue
        count, view = _read_varint(view)
        if bits > relative.MAX_BITS or not 1 <= count <= spec.size:
            raise FormatError(f"A tensor of {spec.size} weights has {count} entries of {bits} index bits.")
        gaps, used = huffman.decode(view, count, 1 << bits)
        view = view[used:]
        values, used = huffman.decode(view, count, spec.centroids + 1)
        view = view[used:]
        indices = relative.decode(gaps, values, spec.size, bits)
        arrays.append(indices.astype(spec.dtype, copy=False).reshape(spec.shape))
    if len(view):
        raise FormatError(f"{len(view)} bytes follow the coded weights.")
    return arrays


def working_memory(spec: Spec) -> int:
    """The most bytes that decoding a tensor takes beside the tensor: it may have an entry for each weight."""
    return 4 * spec.size


def best_bits(array: np.ndarray, spec: Spec) -> int:
    """The number of index bits, 1 to 16, that makes a tensor smallest; 0 for a tensor with nothing left."""
    survivors = np.flatnonzero(array)
    if not survivors.size:
        return 0
    gaps, counts = np.unique(np.diff(survivors, prepend=-1) - 1, return_counts=True)
    by_value = np.bincount(array.ravel()[survivors], minlength=spec.centroids + 1)
    sizes = {}
    for bits in range(1, relative.MAX_BITS + 1):
        longest = (1 << bits) - 1
        fillers = int((gaps >> bits) @ counts)
        by_value[0] = fillers
        by_gap = np.bincount(gaps & longest, counts, longest + 1).astype(np.int64)
        by_gap[longest] += fillers
        streams = sum(-(-sum(huffman.size_bits(histogram)) // 8) for histogram in (by_gap, by_value))
        sizes[bits] = streams + len(_varint(survivors.size + fillers))
    return min(sizes, key=sizes.get)  # the fewest of equals


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def _read_varint(view: memoryview) -> tuple[int, memoryview]:
    number = 0
    for place in range(min(len(view), 5)):
        number |= (view[place] & 0x7F) << 7 * place
        if not view[place] & 0x80:
            if place and not view[place]:
                raise FormatError("A number in the coded weights is not in its shortest form.")
            return number, view[place + 1 :]
    raise FormatError("A number in the coded weights does not end.")
