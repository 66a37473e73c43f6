"""Words of floating-point values, losslessly and fast: each byte of the words is a plane by itself.

The sign moves from the highest bit to the lowest. So the highest plane has the exponent, whose values are few, and the
lower ones have the mantissa, whose bits are nearly random. From the highest plane to the lowest, a plane is a byte 1
and the Huffman stream of its bytes where that is shorter than the bytes, else a byte 0 and the bytes.
"""

import numpy as np

from deepcomp.compiled import compiled
from deepcomp.dcz.coding import huffman
from deepcomp.errors import FormatError


def encode(words: np.ndarray) -> list[bytes | np.ndarray]:
    """Code words, `unsigned (n,)`; returns pieces of bytes that follow each other, none for no words."""
    pieces: list[bytes | np.ndarray] = []
    for place in _places(words.size, words.dtype):
        plane = np.empty(words.size, np.uint8)
        _take(words, place, plane)
        if _pays(plane):
            pieces += [b"\1", huffman.encode(plane, 256)]
        else:
            pieces += [b"\0", plane]
    return pieces


def decode(data: memoryview, count: int, dtype: np.dtype) -> tuple[np.ndarray, int]:
    """Read `count` words from the start of `data`; returns them and the number of bytes that they took.

    Raises FormatError where `data` is not what `encode` makes of so many words.
    """
    position, words = 0, np.zeros(0, dtype)
    for place in _places(count, dtype):
        coded = data[position] if position < len(data) else 2
        position += 1
        if coded == 1:
            plane, used = huffman.decode(data[position:], count, 256)
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
    return words, position


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
