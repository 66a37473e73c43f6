"""A binary range coder, the counters that predict its decisions, and how tensors follow each other in one stream.

All arithmetic is on integers, so the decoder repeats the encoder's steps on every machine. Encoder and decoder are one
function, so they cannot differ. A change of this code changes the format.

The order of n neurons does not change a network, so an order that is known in advance saves log2(n!) bits. The coders
know one: columns in lexicographically descending order, those with an early survivor first. While neighbouring columns
are equal, and one of them has no survivor in a row, the next has none either, and no decision is needed.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from deepcomp.compiled import compiled
from deepcomp.dcz.coding.tensors import Spec
from deepcomp.errors import FormatError

# 65536 / (1 + exp(-x)) for x = -12, -11.5, ... 12, interpolated linearly in steps of 1/256.
# fmt: off
_KNOTS = np.array([
    0, 1, 1, 2, 3, 5, 8, 13, 22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625,
    24743, 32768, 40793, 47911, 53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438,
    65476, 65500, 65514, 65523, 65528, 65531, 65533, 65534, 65535, 65535, 65536,
], np.int64)
# fmt: on
HALF = 3072
ONE = 1 << 30  # a counter's probability 1
_MAX_TRIAL = 1 << 22  # Larger tensors, in weights, are coded in their own order; the other is not tried.
# The indices in the window around one that are coded before it: rows up, columns left, weight of the sign.
NEIGHBOURS = (
    *((1, 0, 4), (0, 1, 4), (1, 1, 2), (1, -1, 2)),
    *((2, 0, 2), (0, 2, 2), (1, 2, 1), (1, -2, 1), (2, 1, 1), (2, -1, 1)),
)

# Compiled loops are fast with plain arrays; these are subscripts of the arrays.
_LOW, _HIGH, _CODE, POSITION, DECODES = range(5)  # the coder's registers; 1 if it decodes
PROBABILITY, AGE = range(2)  # of a counter
SQUASH, STRETCH, PACES, DIGITS = 0, 6144, 6144 + 65536, 6144 + 65536 + 4096  # where tables begin


class Model(NamedTuple):
    """What predicts decisions: `history()` makes what is known of the tensors before, to which `add` adds one.

    `code(indices, numbers, hints, registers, buffer, bits)` codes the indices of one tensor in the order of memory; a
    decoder writes them. `numbers` are window rows and columns, inputs, outputs, centroids, negatives, and whether the
    columns are in descending order; hints come from `history.hints(inputs, outputs, order)`.
    """

    history: Callable[[], Any]
    code: Callable[..., None]
    counters: Callable[[int, int, int, int], int]  # of window positions, inputs, outputs and centroids


def working_memory(spec: Spec, model: Model) -> int:
    """The most bytes that decoding a tensor takes beside the tensor: a copy in its own order, counters, counts."""
    a, b, inputs, outputs = spec.box
    lines = a * b * inputs + a * b * outputs + inputs + outputs
    counters = max(model.counters(a * b, *sizes, spec.centroids) for sizes in ((inputs, outputs), (outputs, inputs)))
    return spec.size * np.dtype(spec.dtype).itemsize + 8 * counters + 32 * lines


@cache
def tables() -> tuple[np.ndarray, np.ndarray]:
    """One array of probabilities by logit, logits by probability, counters' step sizes and bit lengths; bit costs."""
    steps = np.arange(2 * HALF)
    low, high = _KNOTS[steps >> 7], _KNOTS[(steps >> 7) + 1]
    # No probability is below 4 / 65536, so a decision costs more than 2^-14 bits.
    squash = np.clip(low + ((high - low) * (steps & 127) >> 7), 4, 65532)
    stretch = np.clip(np.searchsorted(squash, np.arange(65536)), 1, 2 * HALF - 1) - HALF
    # After n observations a counter moves by 1 / (n + 1.5) of its error.
    paces = 2 * 65536 // (2 * np.arange(4096) + 3)
    digits = [n.bit_length() for n in range(1025)]
    cost = -np.log2((np.arange(65536) + 0.5) / 65536)
    return np.concatenate([squash, stretch, paces, digits]).astype(np.int32), cost


def encode(
    arrays: Sequence[np.ndarray], specs: Sequence[Spec], model: Model
) -> tuple[bytes, list[tuple[float, float]]]:
    """Code tensors of indices one after the other into one stream.

    arrays: unsigned, of the shapes of `specs`. Returns the stream and, for each tensor, the bits of its positions and
    of its values by the probabilities that the coder used.
    """
    registers, history, pieces, sizes = start(decodes=False), model.history(), [], []
    for array, spec in zip(arrays, specs, strict=True):
        orders = (0, 1) if array.size <= _MAX_TRIAL else (0,)
        trials = [_piece(array, spec, order, model, history, registers) for order in orders]
        piece, registers, bits = min(trials, key=lambda trial: len(trial[0]))  # the first of equals
        pieces.append(piece)
        sizes.append((float(bits[0]), float(bits[1])))
        history.add(array)
    pieces.append(tail(registers))
    return b"".join(piece.tobytes() for piece in pieces), sizes


def _piece(array, spec, order, model, history, registers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bytes of one tensor in one order, the registers afterwards, and the bits of positions and values."""
    room = 1024 + array.size // 8
    while True:
        after, buffer = registers.copy(), np.empty(room, np.uint8)
        after[POSITION] = 0
        bits = _code(array, spec, order, model, history, after, buffer)
        room = int(after[POSITION])  # If the buffer was too small, code again.
        if room <= buffer.size:
            return buffer[:room], after, bits


def decode(data: bytes, specs: Sequence[Spec], model: Model) -> list[np.ndarray]:
    """The tensors of a stream, with each spec's shape and dtype. Raises `FormatError` if bytes are left or missing.

    Any bytes decode to some tensors; the checksum of the container tells whether they are the right ones.
    """
    buffer = np.frombuffer(bytearray(data), np.uint8)  # writable, as the compiled loop is for the encoder too
    registers, history, arrays = start(decodes=True), model.history(), []
    for number in range(4):
        registers[_CODE] = registers[_CODE] << 8 | (int(buffer[number]) if number < len(buffer) else 0)
    for spec in specs:
        array = np.zeros(spec.shape, spec.dtype)
        _code(array, spec, 0, model, history, registers, buffer)
        if registers[POSITION] > len(data):
            raise FormatError(f"The coded weights go on after their {len(data)} bytes.")
        if not spec.centroids and array.any():
            raise FormatError("A tensor without a codebook has weights left.")
        history.add(array)
        arrays.append(array)
    position, rest = int(registers[POSITION]), tail(registers)
    if position > len(data) or bytes(data[position:]) != rest.tobytes():
        raise FormatError(f"The coded weights end after {position + len(rest)} bytes, not {len(data)}.")
    return arrays


def descending_order(kernel: np.ndarray) -> np.ndarray:
    """The order of outputs, the kernel's last dimension, in which `range` takes the fewest bits.

    kernel: weights or indices, 0 where pruned. Returns `int64 (outputs,)`: `kernel[..., order]` has columns in
    lexicographically descending order. The network stays the same if biases and the next kernel's inputs move too.
    """
    columns = np.packbits((kernel.reshape(-1, kernel.shape[-1]) != 0).T, axis=1)
    return np.array(sorted(range(len(columns)), key=lambda column: columns[column].tobytes(), reverse=True), np.int64)


def start(decodes: bool) -> np.ndarray:
    """The coder's registers at the beginning."""
    return np.array([0, 0xFFFFFFFF, 0, 0, decodes], np.int64)


def tail(registers: np.ndarray) -> np.ndarray:
    """The fewest bytes that, followed by zeros, lie in the coder's last interval."""
    low, high = int(registers[_LOW]), int(registers[_HIGH])
    size, number = 0, 0 if low == 0 else 1 << 32
    while number > high:  # Four bytes are always enough: then the number is low itself.
        size += 1
        number = -(-low >> 32 - 8 * size) << 32 - 8 * size  # low, rounded up to so many bytes
    return np.frombuffer((number >> 32 - 8 * size).to_bytes(size, "big"), np.uint8)


def _code(array, spec, order, model, history, registers, buffer) -> np.ndarray:
    """Code one tensor in the given order; the order is the first decision."""
    bits = np.zeros(2)
    order = _plain_bit(registers, buffer, order)
    a, b, inputs, outputs = spec.box
    view = np.require(array, requirements=["C", "W"]).reshape(spec.box)
    decode = registers[DECODES] == 1
    if order:
        inputs, outputs = outputs, inputs
        shape = (a, b, inputs, outputs)
        view = np.zeros(shape, array.dtype) if decode else np.ascontiguousarray(view.transpose(0, 1, 3, 2))
    matrix = view.reshape(a * b * inputs, outputs)
    descending = _plain_bit(registers, buffer, 0 if decode else _is_descending(matrix))
    numbers = np.array([a, b, inputs, outputs, spec.centroids, spec.negatives, descending])
    model.code(view.reshape(-1), numbers, history.hints(inputs, outputs, order), registers, buffer, bits)
    if decode and registers[POSITION] > buffer.size:  # the caller refuses it
        return bits
    if decode and not descending and _is_descending(matrix):
        raise FormatError("Columns in descending order are not coded as such.")
    if order and decode:
        array.reshape(spec.box)[:] = view.transpose(0, 1, 3, 2)
    return bits


def _plain_bit(registers, buffer, bit: int) -> int:
    """Code a bit with probability 1/2, outside the compiled loop."""
    return int(step(registers, buffer, int(bit), 32768))


@compiled()
def _is_descending(matrix):
    """Whether the columns of a matrix are in lexicographically descending order: a survivor before none."""
    rows, columns = matrix.shape
    tied = np.ones(columns, np.bool_)
    left = columns - 1
    for row in range(rows):
        if left <= 0:
            break
        for column in range(1, columns):
            if tied[column] and (matrix[row, column] > 0) != (matrix[row, column - 1] > 0):
                if matrix[row, column]:
                    return False
                tied[column] = False
                left -= 1
    return True


@compiled(inline="always")
def step(registers, buffer, bit, probability):
    """Code one decision, which is 1 with the given probability, 1 to 65535 of 65536; returns it."""
    decode = registers[DECODES] == 1
    low, high = registers[_LOW], registers[_HIGH]
    width = high - low
    middle = low + (width >> 16) * probability + ((width & 0xFFFF) * probability >> 16)
    if decode:
        bit = 1 if registers[_CODE] <= middle else 0
    if bit:
        high = middle
    else:
        low = middle + 1
    while (low ^ high) >> 24 == 0:
        position = registers[POSITION]
        if decode:
            following = np.int64(buffer[position + 4]) if position + 4 < buffer.size else 0
            registers[_CODE] = (registers[_CODE] << 8 | following) & 0xFFFFFFFF
        elif position < buffer.size:
            buffer[position] = high >> 24
        registers[POSITION] = position + 1
        low, high = low << 8 & 0xFFFFFFFF, (high << 8 | 0xFF) & 0xFFFFFFFF
    registers[_LOW], registers[_HIGH] = low, high
    return bit


@compiled()
def guess(counters, slot, other, quarters, limit):
    """Start a counter with the probability of another; its age is the higher, the more certain that one is."""
    probability = np.int64(counters[other, PROBABILITY])
    rare = max(min(probability, ONE - probability), 1)
    counters[slot, PROBABILITY] = probability
    counters[slot, AGE] = min(max(quarters * (ONE // 4) // rare, 1), limit)


# Without branches: where there are some, the compiler counts references to the arrays, which takes most of the time.
@compiled(inline="always")
def learn(counters, slot, goal, limit, tables):
    """Move a counter towards the probability `goal` of a decision; its age is `limit` at most."""
    age, before = np.int64(counters[slot, AGE]), np.int64(counters[slot, PROBABILITY])
    counters[slot, PROBABILITY] = before + (((goal - before) * tables[PACES + age] + 32768) >> 16)
    counters[slot, AGE] = min(age + 1, limit)


@compiled(inline="always")
def learn_zeros(counters, slot, zeros, limit):
    """Move a counter towards a decision of 0 that counts as so many."""
    age, before = np.int64(counters[slot, AGE]), np.int64(counters[slot, PROBABILITY])
    counters[slot, PROBABILITY] = before - before * 2 * zeros // (2 * age + 2 * zeros + 1)
    counters[slot, AGE] = min(age + zeros, limit)


@compiled(inline="always")
def bit_length(number):
    """The bit length of a number."""
    digits = 0
    while number > 0:
        number >>= 1
        digits += 1
    return digits


@compiled(inline="always")
def quotient(number, divisor):
    """`number // divisor` of numbers from 0 to 2^52, which is exact in float64, where a division takes less time."""
    return np.int64(np.float64(number) / np.float64(divisor))


@compiled(inline="always")
def at(indices, here, a, b, columns, plane, up, left):
    """The index so many rows up and columns left in the window, 0 outside it."""
    if a < up or b < left or b - left >= columns:
        return np.int64(0)
    return np.int64(indices[here - (up * columns + left) * plane])


@compiled(inline="always")
def level_of(index, negatives):
    """The signed rank of an index's value: ..., -2, -1, 0 where pruned, 1, 2, ..."""
    if index == 0:
        return 0
    return index - negatives if index > negatives else index - negatives - 1
