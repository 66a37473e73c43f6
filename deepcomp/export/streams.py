"""Positions and values of the weights of a layer as the bytes that `kernels.c` decodes while the layer runs.

A small model, for a decoder that has few bytes of memory: the size of each step to the next position in bits, its two
leading bits, and each bit of an index are decisions whose odds adapt. All arithmetic is on integers, as in C.
"""

import numpy as np

from deepcomp.compiled import compiled
from deepcomp.dcz.coding import arithmetic

_EVEN, _MOST, _SEEN = 32768, 65472, 255  # chances of 65536; how often a decision counts as made
_SIZES, _LEADING, _INDICES, _END = 0, 32, 32 + 4 * 32, 32 + 4 * 32 + 256  # where contexts begin


def encode(steps: np.ndarray, indices: np.ndarray, bits: int) -> np.ndarray:
    """The bytes of steps, from 1 on, and of indices of so many bits: `uint8`."""
    room = 64 + 6 * steps.size
    registers, buffer = arithmetic.start(decodes=False), np.zeros(room, np.uint8)
    _encode(steps.astype(np.int64), indices.astype(np.int64), bits, registers, buffer)
    used = buffer[: int(registers[arithmetic.POSITION])]
    return np.concatenate([used, arithmetic.tail(registers)])


@compiled()
def _encode(steps, indices, bits, registers, buffer):
    chances, seen = np.full(_END, _EVEN), np.zeros(_END, np.int64)
    for number in range(len(steps)):
        step, size = steps[number], arithmetic.bit_length(steps[number]) - 1
        for length in range(size + 1):
            _decide(1 if length < size else 0, _SIZES + length, chances, seen, registers, buffer)
        made = 1
        for i in range(size - 1, -1, -1):
            context = -1
            if i > size - 3:
                context = _LEADING + 4 * size + (0 if i == size - 1 else 1 + (made & 1))
            made = 2 * made + _decide(step >> i & 1, context, chances, seen, registers, buffer)
        node = 1
        for i in range(bits - 1, -1, -1):
            context = _INDICES + node if node < 256 else -1
            node = 2 * node + _decide(indices[number] >> i & 1, context, chances, seen, registers, buffer)


@compiled()
def _decide(bit, context, chances, seen, registers, buffer):
    if context < 0:
        return arithmetic.step(registers, buffer, bit, _EVEN)
    arithmetic.step(registers, buffer, bit, chances[context])
    off = (_MOST if bit else 65536 - _MOST) - chances[context]
    moved = 2 * abs(off) // (2 * seen[context] + 3)  # towards 0, as in C
    chances[context] += moved if off > 0 else -moved
    seen[context] = min(seen[context] + 1, _SEEN)
    return bit
