"""Words of floating-point values, losslessly and fast: each byte of the words is a plane by itself.

The sign moves from the highest bit to the lowest. So the highest plane has the exponent, whose values are few, and the
lower ones have the mantissa, whose bits are nearly random. From the highest plane to the lowest, a plane is a byte 1
and the Huffman stream of its bytes where that is shorter than the bytes, else a byte 0 and the bytes.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from deepcomp.compiled import compiled
from deepcomp.dcz.coding import huffman
from deepcomp.errors import FormatError

_TABLE = 2**10  # bytes, more than the table of a Huffman code of bytes takes


def encode(words: np.ndarray) -> Iterator[bytes | memoryview | np.ndarray]:
    """Code words, `unsigned (n,)`; makes pieces of bytes that follow each other, one after the other."""
    for place in _places(words.size, words.dtype):
        plane = np.empty(words.size, np.uint8)
        _take(words, place, plane)
        if _pays(plane):
            yield b"\1"
            yield from huffman.encode_pieces(plane, 256)
        else:
            yield b"\0"
            yield plane
        del plane  # there is one at a time


def decode(data: Any, count: int, dtype: np.dtype, first: int = 0) -> tuple[np.ndarray, int]:
    """Read `count` words from the byte `first` of `data` on; returns them and the number of bytes that they took.

    data: anything that has a length and gives bytes as integers, slices of them as buffers. Raises FormatError where it
    is not what `encode` makes of so many words.
    """
    position, words = first, np.zeros(0, dtype)
    for place in _places(count, dtype):
        coded = data[position] if position < len(data) else 2
        position += 1
        if coded == 1:
            plane, used = huffman.decode(data[position : position + count + _TABLE], count, 256)
            if used >= count and not _pays(plane):
                raise FormatError(f"A plane of {count} bytes is coded, though that is not shorter.")
        elif coded == 0 and position + count <= len(data):
            plane, used = np.frombuffer(data[position : position + count], np.uint8), count
            if _pays(plane):
                raise FormatError(f"A plane of {count} bytes is not coded, though that is shorter.")
        else:
            raise FormatError("The values end within a plane.")
        position += used
        if not words.size:
            words = np.zeros(count, dtype)
        _put(words, place, plane)
        del plane  # there is one at a time
    return words, position - first


def _places(count: int, dtype: np.dtype) -> range:
    """Where each plane begins in a word whose sign has moved: bits from the lowest, the highest plane first."""
    return range(8 * dtype.itemsize - 8, -1, -8) if count else range(0)


def _pays(plane: np.ndarray) -> bool:
    """Whether the Huffman stream of a plane is shorter than the plane."""
    return sum(huffman.size_bits(huffman.histogram(plane, 256))) < 8 * plane.size


@compiled()
def _take(words, place, plane):
    for i in range(words.size):
        word = np.int64(words[i])
        # Bit j of a word moves to j + 1, so a plane has the bits from `place` - 1 on; the lowest has the sign last.
        if place:
            plane[i] = (word >> (place - 1)) & 255
        else:
            plane[i] = (word << 1) & 254 | (1 if words[i] >> (8 * words.itemsize - 1) else 0)


@compiled()
def _put(words, place, plane):
    for i in range(words.size):
        byte = np.int64(plane[i])
        if place:
            words[i] |= byte << (place - 1)
        else:
            words[i] |= byte >> 1 | (byte & 1) << (8 * words.itemsize - 1)
