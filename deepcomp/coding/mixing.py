"""A binary range coder whose probabilities are mixed from many adaptive contexts.

Every weight is coded as a few binary decisions: is it left? which side of the codebook, which half of that side...? A
decision is predicted by several counters at once, such as those of its row, its column and its neighbours within the
kernel; their predictions are averaged in the logistic domain with weights that learn (Mattern, 2012; the idea is that
of the PAQ archivers). The prediction drives a carry-less range coder.

All of it is integer arithmetic, so the decoder mirrors the encoder on every machine; encoder and decoder are one
function, so neither can drift from the other. A changed line here is a changed format.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numba import njit

from deepcomp.coding.tensors import Spec
from deepcomp.errors import FormatError

# 65536 / (1 + exp(-x)) for x = -12, -11.5, ... 12; between them lines, in steps of 1/256.
# fmt: off
_KNOTS = np.array([
    0, 1, 1, 2, 3, 5, 8, 13, 22, 36, 60, 98, 162, 267, 439, 720, 1179, 1921, 3108, 4971, 7812, 11955, 17625,
    24743, 32768, 40793, 47911, 53581, 57724, 60565, 62428, 63615, 64357, 64816, 65097, 65269, 65374, 65438,
    65476, 65500, 65514, 65523, 65528, 65531, 65533, 65534, 65535, 65535, 65536,
], np.int64)
# fmt: on
_HALF = 3072
_ONE = 1 << 22  # a counter's probability 1
_YOUNG = 6  # how many observations a counter's first guess, taken from another, is worth
_INPUTS = 9  # counters that predict a decision, at most
_TREE_SETS = 4  # weights for the levels of the codebook's tree; the last is for all deeper ones
_WIDE = 64  # codebooks of more values have no counters by column and input: there would be too many
_BROAD = 1 << 22  # nor have tensors that would need more than this of them, so that memory follows the weights
_TRIAL = 1 << 22  # tensors of more weights are coded in their own order, without a trial of the other

# Registers of the coder, and flags of a pass.
_LOW, _HIGH, _CODE, _POSITION = range(4)
_ENCODE, _DECODE = 0, 1


@cache
def _tables() -> tuple[np.ndarray, ...]:
    """Probability of a logit, logit of a probability, a counter's rates, and a decision's bits (for reports only)."""
    steps = np.arange(2 * _HALF)
    low, high = _KNOTS[steps >> 7], _KNOTS[(steps >> 7) + 1]
    # A probability of less than 4 / 65536 is never believed, so a weight costs more than 2^-14 bits.
    squash = np.clip(low + ((high - low) * (steps & 127) >> 7), 4, 65532)
    stretch = np.clip(np.searchsorted(squash, np.arange(65536)), 1, 2 * _HALF - 1) - _HALF
    # After n observations a counter moves by 1 / (n + 1.5) of its error.
    rates = 2 * 65536 // (2 * np.arange(256) + 3)
    cost = -np.log2((np.arange(65536) + 0.5) / 65536)
    return squash.astype(np.int32), stretch.astype(np.int32), rates.astype(np.int32), cost


def encode(arrays: Sequence[np.ndarray], specs: Sequence[Spec]) -> tuple[bytes, list[tuple[float, float]]]:
    """Code tensors of indices one after the other into one stream.

    arrays: unsigned, of the shapes of `specs`. Returns the stream and, of each tensor, what its positions and its
    values take in bits, by the probabilities that the coder used.
    """
    registers, history, pieces, sizes = _start(), _History(), [], []
    for array, spec in zip(arrays, specs, strict=True):
        orders = (0, 1) if array.size <= _TRIAL else (0,)
        trials = [_piece(array, spec, order, history, registers) for order in orders]
        piece, registers, bits = min(trials, key=lambda trial: len(trial[0]))  # the first of equals
        pieces.append(piece)
        sizes.append((float(bits[0]), float(bits[1])))
        history.add(array)
    pieces.append(_tail(registers))
    return b"".join(piece.tobytes() for piece in pieces), sizes


def _piece(array, spec, order, history, registers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the coder shifts out for one tensor in one order, its registers after that, and the bits."""
    room = 1024 + array.size // 8
    while True:
        after, buffer = registers.copy(), np.empty(room, np.uint8)
        after[_POSITION] = 0
        bits = _pass(array, spec, order, history, after, buffer, _ENCODE)
        room = int(after[_POSITION])  # more than there was: then once more
        if room <= buffer.size:
            return buffer[:room], after, bits


def decode(data: bytes, specs: Sequence[Spec]) -> list[np.ndarray]:
    """The tensors of a stream, of each spec's shape and dtype; `FormatError` if bytes are left or missing.

    Any bytes decode to some tensors; that they are the right ones is the container's checksum to say.
    """
    buffer = np.frombuffer(bytearray(data), np.uint8)  # writable, as the compiled loop is for the encoder too
    registers, history, arrays = _start(), _History(), []
    for number in range(4):
        registers[_CODE] = registers[_CODE] << 8 | (int(buffer[number]) if number < len(buffer) else 0)
    for spec in specs:
        array = np.zeros(spec.shape, spec.dtype)
        _pass(array, spec, 0, history, registers, buffer, _DECODE)
        if not spec.centroids and array.any():
            raise FormatError("A tensor without a codebook has weights left.")
        history.add(array)
        arrays.append(array)
    position, tail = int(registers[_POSITION]), _tail(registers)
    if position > len(data) or bytes(data[position:]) != tail.tobytes():
        raise FormatError(f"The coded weights end after {position + len(tail)} bytes, not {len(data)}.")
    return arrays


class _History:
    """How many weights each output of the kernel before has left: a dead one hints at a dead input of the next."""

    def __init__(self):
        self.left = np.zeros(0, np.int64)

    def add(self, array: np.ndarray) -> None:
        if array.ndim > 1:
            self.left = np.count_nonzero(array.reshape(-1, array.shape[-1]), axis=0).astype(np.int64)

    def of(self, inputs: int) -> np.ndarray:
        """A hint for each of so many inputs: bits of the number left, or -1 where nothing is known."""
        if len(self.left) != inputs:
            return np.full(inputs, -1, np.int64)
        return np.array([int(count).bit_length() for count in self.left], np.int64)


def _start() -> np.ndarray:
    return np.array([0, 0xFFFFFFFF, 0, 0], np.int64)


def _tail(registers: np.ndarray) -> np.ndarray:
    """The fewest bytes after which zeros lead into the coder's last interval."""
    low, high = int(registers[_LOW]), int(registers[_HIGH])
    size, number = 0, 0 if low == 0 else 1 << 32
    while number > high:  # four bytes always do: then the number is low itself
        size += 1
        number = -(-low >> 32 - 8 * size) << 32 - 8 * size  # low, rounded up to so many bytes
    return np.frombuffer((number >> 32 - 8 * size).to_bytes(size, "big"), np.uint8)


def _pass(array, spec, order, history, registers, buffer, mode) -> np.ndarray:
    """Send one tensor through the coder in the given order, which is itself the first decision."""
    bits = np.zeros(2)
    squash, stretch, rates, cost = _tables()
    order = _plain_bit(registers, buffer, order, mode)
    a, b, inputs, outputs = spec.box
    view = np.require(array, requirements=["C", "W"]).reshape(spec.box)
    hints = history.of(inputs)
    if order:
        view = np.ascontiguousarray(view.transpose(0, 1, 3, 2))
        inputs, outputs, hints = outputs, inputs, np.full(outputs, -1, np.int64)
    wide = spec.centroids > _WIDE or (spec.centroids + 1) * (inputs + outputs) > _BROAD
    slots = _layout(a, b, inputs, outputs, spec.centroids, wide)
    probabilities, seen = np.zeros(slots[-1], np.int32), np.zeros(slots[-1], np.uint8)
    weights = np.zeros((1 + _TREE_SETS, _INPUTS), np.int64)
    weights[0] = [-13107, 39321, 39321, 6553, 6553, 6553, 6553, 6553, 6553]
    weights[1:] = 15000
    _code_tensor(
        view.reshape(-1),
        np.array([a, b, inputs, outputs]),
        spec.centroids,
        spec.negatives,
        wide,
        hints,
        slots,
        probabilities,
        seen,
        weights,
        registers,
        buffer,
        bits,
        mode,
        squash,
        stretch,
        rates,
        cost,
    )
    if order and mode == _DECODE:
        array.reshape(spec.box)[:] = view.transpose(0, 1, 3, 2)
    return bits


def _plain_bit(registers, buffer, bit: int, mode: int) -> int:
    """A decision of even odds, outside the compiled loop."""
    return int(_step(registers, buffer, bit, 32768, mode))


def _layout(a, b, inputs, outputs, centroids, wide) -> np.ndarray:
    """Where each family of counters begins in the array of all, and the number of all."""
    tree = centroids + 1
    families = [
        1,  # all positions
        a * b * inputs,  # by row
        outputs,  # by column
        1024,  # by the densities of row and column so far and the neighbours in the window
        inputs,  # by input, over the window
        inputs * outputs if a * b > 1 else 0,  # by filter, over the window
        64,  # by neighbours
        256,  # by the rows beside in the window
        128,  # by what the kernel before has left of this input, and the row so far
        tree,  # values: by node of the tree
        0 if wide else tree * outputs,  # by node and column
        0 if wide else tree * inputs,  # by node and input
        tree * a * b * 8 if tree * a * b <= 1 << 16 else tree * 8,  # by node, place in the window, neighbours' signs
    ]
    return np.concatenate([[0], np.cumsum(families)]).astype(np.int64)


@njit(cache=True)
def _step(registers, buffer, bit, probability, mode):
    """Code one decision, of which a one has the given probability, 1 to 65535 of 65536; returns it."""
    low, high = registers[_LOW], registers[_HIGH]
    width = high - low
    middle = low + (width >> 16) * probability + ((width & 0xFFFF) * probability >> 16)
    if mode == _DECODE:
        bit = 1 if registers[_CODE] <= middle else 0
    if bit:
        high = middle
    else:
        low = middle + 1
    while (low ^ high) >> 24 == 0:
        position = registers[_POSITION]
        if mode == _DECODE:
            following = np.int64(buffer[position + 4]) if position + 4 < buffer.size else 0
            registers[_CODE] = (registers[_CODE] << 8 | following) & 0xFFFFFFFF
        elif position < buffer.size:
            buffer[position] = high >> 24
        registers[_POSITION] = position + 1
        low, high = low << 8 & 0xFFFFFFFF, (high << 8 | 0xFF) & 0xFFFFFFFF
    registers[_LOW], registers[_HIGH] = low, high
    return bit


@njit(cache=True, inline="always")
def _decide(
    bit, chosen, count, logits, probabilities, seen, weights, registers, buffer, mode, squash, stretch, rates, rate
):
    """Predict a decision from the `chosen` counters, code it, and teach counters and weights; returns it and its odds.

    The first counter is the one that the others take their first guess from.
    """
    total = np.int64(0)
    for k in range(count):
        slot = chosen[k]
        if seen[slot] == 0:
            probabilities[slot] = probabilities[chosen[0]] if k else _ONE >> 1
            seen[slot] = _YOUNG if k else 1
        logits[k] = stretch[probabilities[slot] >> 6]
        total += weights[k] * logits[k]
    mixed = min(max(total >> 16, -_HALF), _HALF - 1)
    probability = np.int64(squash[mixed + _HALF])
    bit = _step(registers, buffer, bit, probability, mode)
    error = (65535 if bit else 0) - probability
    goal = _ONE - 1 if bit else 0
    for k in range(count):
        weights[k] += (logits[k] * error * rate + (1 << 19)) >> 20
        slot = chosen[k]
        probabilities[slot] += ((goal - probabilities[slot]) * np.int64(rates[seen[slot]]) + 32768) >> 16
        if seen[slot] < 255:
            seen[slot] += 1
    return bit, probability if bit else 65536 - probability


@njit(cache=True)
def _bits(number):
    """How many binary digits a number has."""
    digits = 0
    while number > 0:
        number >>= 1
        digits += 1
    return digits


@njit(cache=True)
def _code_tensor(
    indices,
    box,
    centroids,
    negatives,
    wide,
    hints,
    slots,
    probabilities,
    seen,
    weights,
    registers,
    buffer,
    bits,
    mode,
    squash,
    stretch,
    rates,
    cost,
):
    """Code the indices of one tensor in the order of memory; a decoder fills them in."""
    rows, columns, inputs, outputs = box
    here = 0
    taken = 0  # decisions on positions, which slow the learning of their weights
    taken_values = np.zeros(_TREE_SETS, np.int64)
    row_left, column_left = np.zeros(rows * columns * inputs, np.int64), np.zeros(outputs, np.int64)
    # Unsigned, so that the compiler need not look for subscripts that count from the end.
    chosen, logits = np.zeros(_INPUTS, np.uint64), np.zeros(_INPUTS, np.int64)
    probabilities[0], seen[0] = _ONE // 10, 1
    start = negatives if 0 < negatives < centroids else (1 + centroids) // 2
    places = slots[13] - slots[12] == (centroids + 1) * rows * columns * 8
    for a in range(rows):
        for b in range(columns):
            for i in range(inputs):
                row = (a * columns + b) * inputs + i
                above = _bits(row_left[row - columns * inputs] + 1) if a else 0
                beside = _bits(row_left[row - inputs] + 1) if b else 0
                by_sides = slots[7] + min(above, 15) * 16 + min(beside, 15)
                # A row's first guess is that of rows with such rows beside them.
                if seen[by_sides]:
                    probabilities[slots[1] + row], seen[slots[1] + row] = probabilities[by_sides], _YOUNG
                left = 0
                for o in range(outputs):
                    up = np.int64(indices[here - columns * inputs * outputs]) if a else 0
                    side = np.int64(indices[here - inputs * outputs]) if b else 0
                    up_left = np.int64(indices[here - (columns + 1) * inputs * outputs]) if a and b else 0
                    up_right = (
                        np.int64(indices[here - (columns - 1) * inputs * outputs]) if a and b + 1 < columns else 0
                    )
                    before = np.int64(indices[here - outputs]) if i else 0
                    last = np.int64(indices[here - 1]) if o else 0
                    near = (up > 0) * 2 + (side > 0) * 2 + (up_left > 0) + (up_right > 0)
                    column_level = _bits(column_left[o] * 64 // (row + 1))
                    row_level = _bits(left * 64 // (o + 1))

                    chosen[0] = 0
                    chosen[1] = slots[1] + row
                    chosen[2] = slots[2] + o
                    chosen[3] = slots[3] + (column_level * 8 + row_level) * 8 + near
                    chosen[4] = slots[4] + i
                    chosen[5] = slots[6] + near * 4 + (before > 0) * 2 + (last > 0)
                    chosen[6] = by_sides
                    chosen[7] = slots[8] + min(hints[i] + 1, 15) * 8 + row_level
                    count = 8
                    if rows * columns > 1:
                        chosen[8] = slots[5] + i * outputs + o
                        count = 9
                    rate = 1 + 16 * 2000 // (2000 + taken)
                    taken += 1
                    bit = 1 if mode == _ENCODE and indices[here] else 0
                    bit, odds = _decide(
                        bit,
                        chosen,
                        count,
                        logits,
                        probabilities,
                        seen,
                        weights[0],
                        registers,
                        buffer,
                        mode,
                        squash,
                        stretch,
                        rates,
                        rate,
                    )
                    bits[0] += cost[odds]
                    if bit:
                        left += 1
                        row_left[row] += 1
                        column_left[o] += 1
                        signs = 4
                        for other in (up, side, before, last):
                            if other:
                                signs += 1 if other > negatives else -1
                        # Down a tree of which each node splits its values in halves, the root by sign.
                        low, high, node, level = 1, centroids, start, 0
                        value = np.int64(indices[here])
                        while low < high:
                            chosen[0] = slots[9] + node
                            count = 1
                            if not wide:
                                chosen[1] = slots[10] + o * (centroids + 1) + node
                                chosen[2] = slots[11] + i * (centroids + 1) + node
                                count = 3
                            place = (a * columns + b) * 8 if places else 0
                            chosen[count] = slots[12] + (place + min(signs, 7)) * (centroids + 1) + node
                            depth = min(level, _TREE_SETS - 1)
                            rate = 1 + 16 * 2000 // (2000 + taken_values[depth])
                            taken_values[depth] += 1
                            upper, odds = _decide(
                                1 if value > node else 0,
                                chosen,
                                count + 1,
                                logits,
                                probabilities,
                                seen,
                                weights[1 + depth],
                                registers,
                                buffer,
                                mode,
                                squash,
                                stretch,
                                rates,
                                rate,
                            )
                            bits[1] += cost[odds]
                            if upper:
                                low = node + 1
                            else:
                                high = node
                            node = (low + high) // 2
                            level += 1
                        if mode == _DECODE:
                            indices[here] = low
                    here += 1
