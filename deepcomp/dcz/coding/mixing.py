"""A binary range coder whose probabilities are mixed from many adaptive contexts.

Every weight is coded as a few binary decisions: is it a survivor? Which half of the codebook has its value, which half
of that half, and so on? Several counters predict a decision at once, such as those of its row, its column and its
neighbours within the kernel. Their predictions are averaged in the logistic domain with weights that are learned
(Mattern, 2012, after the PAQ archivers). The averaged prediction drives a carry-less range coder.

The order of n neurons does not change a network, so an order that is known in advance saves log2(n!) bits. The coder
knows one: columns in lexicographically descending order, those with an early survivor first. While neighbouring columns
are equal, and one of them has no survivor in a row, the next has none either, and no decision is needed.

All arithmetic is on integers, so the decoder repeats the encoder's steps on every machine. Encoder and decoder are one
function, so they cannot differ. A change of this code changes the format.
"""

from collections.abc import Sequence
from functools import cache

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
_HALF = 3072
_ONE = 1 << 30  # a counter's probability 1
# For each counter that predicts a survivor: its initial weight in units of 2^-16, and its greatest age.
# They are: all, row, column, densities, input, neighbours, sides, hint. The last weight is for the odds of a tie.
_MIXING_WEIGHTS = (-8192, 20480, 20480, 4096, 12288, 4096, 0, 8192, 65536)
_LIMITS = (4095, 255, 255, 511, 511, 511, 511, 511, 0)
_VALUE_MIXING_WEIGHTS = (8192, 8192, 8192, 16384, 16384)  # node, column, input, levels, signs
_VALUE_LIMIT = 255
_TIED, _VALUES, _SETS = 4, 5, 9  # sets of mixing weights: 0 to 3 by neighbours, 4 for ties, 5 to 8 by level of the tree
_LEARNING_RATE, _VALUE_LEARNING_RATE = 8, 64  # of the mixing weights, at first
_MANY_VALUES = 64  # Codebooks of more values have no counters by column and input,
_MANY_COUNTERS = 1 << 22  # and nor do tensors that need more counters, so that memory is bounded by the weights.
_MAX_TRIAL = 1 << 22  # Larger tensors, in weights, are coded in their own order; the other is not tried.
# The indices in the window around one that are coded before it: rows up, columns left, weight of the sign.
_NEIGHBOURS = (
    *((1, 0, 4), (0, 1, 4), (1, 1, 2), (1, -1, 2)),
    *((2, 0, 2), (0, 2, 2), (1, 2, 1), (1, -2, 1), (2, 1, 1), (2, -1, 1)),
)

# Compiled loops are fast with plain arrays; these are subscripts of the arrays.
_LOW, _HIGH, _CODE, _POSITION, _DECODES = range(5)  # the coder's registers; 1 if it decodes
_PROBABILITY, _AGE = range(2)  # of a counter
_WEIGHT, _LIMIT, _LOGIT = range(3)  # for each counter in a set of mixing weights
_DECISIONS, _RATE = range(2)  # of a set: its decisions so far, which slow its learning; its first learning rate
_SQUASH, _STRETCH, _PACES, _DIGITS = 0, 6144, 6144 + 65536, 6144 + 65536 + 4096  # where tables begin


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """One array of probabilities by logit, logits by probability, counters' step sizes and bit lengths; bit costs."""
    steps = np.arange(2 * _HALF)
    low, high = _KNOTS[steps >> 7], _KNOTS[(steps >> 7) + 1]
    # No probability is below 4 / 65536, so a decision costs more than 2^-14 bits.
    squash = np.clip(low + ((high - low) * (steps & 127) >> 7), 4, 65532)
    stretch = np.clip(np.searchsorted(squash, np.arange(65536)), 1, 2 * _HALF - 1) - _HALF
    # After n observations a counter moves by 1 / (n + 1.5) of its error.
    paces = 2 * 65536 // (2 * np.arange(4096) + 3)
    digits = [n.bit_length() for n in range(1025)]
    cost = -np.log2((np.arange(65536) + 0.5) / 65536)
    return np.concatenate([squash, stretch, paces, digits]).astype(np.int32), cost


def encode(arrays: Sequence[np.ndarray], specs: Sequence[Spec]) -> tuple[bytes, list[tuple[float, float]]]:
    """Code tensors of indices one after the other into one stream.

    arrays: unsigned, of the shapes of `specs`. Returns the stream and, for each tensor, the bits of its positions and
    of its values by the probabilities that the coder used.
    """
    registers, history, pieces, sizes = _start(decodes=False), _History(), [], []
    for array, spec in zip(arrays, specs, strict=True):
        orders = (0, 1) if array.size <= _MAX_TRIAL else (0,)
        trials = [_piece(array, spec, order, history, registers) for order in orders]
        piece, registers, bits = min(trials, key=lambda trial: len(trial[0]))  # the first of equals
        pieces.append(piece)
        sizes.append((float(bits[0]), float(bits[1])))
        history.add(array)
    pieces.append(_tail(registers))
    return b"".join(piece.tobytes() for piece in pieces), sizes


def _piece(array, spec, order, history, registers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bytes of one tensor in one order, the registers afterwards, and the bits of positions and values."""
    room = 1024 + array.size // 8
    while True:
        after, buffer = registers.copy(), np.empty(room, np.uint8)
        after[_POSITION] = 0
        bits = _pass(array, spec, order, history, after, buffer)
        room = int(after[_POSITION])  # If the buffer was too small, code again.
        if room <= buffer.size:
            return buffer[:room], after, bits


def decode(data: bytes, specs: Sequence[Spec]) -> list[np.ndarray]:
    """The tensors of a stream, with each spec's shape and dtype. Raises `FormatError` if bytes are left or missing.

    Any bytes decode to some tensors; the checksum of the container tells whether they are the right ones.
    """
    buffer = np.frombuffer(bytearray(data), np.uint8)  # writable, as the compiled loop is for the encoder too
    registers, history, arrays = _start(decodes=True), _History(), []
    for number in range(4):
        registers[_CODE] = registers[_CODE] << 8 | (int(buffer[number]) if number < len(buffer) else 0)
    for spec in specs:
        array = np.zeros(spec.shape, spec.dtype)
        _pass(array, spec, 0, history, registers, buffer)
        if not spec.centroids and array.any():
            raise FormatError("A tensor without a codebook has weights left.")
        history.add(array)
        arrays.append(array)
    position, tail = int(registers[_POSITION]), _tail(registers)
    if bytes(data[position:]) != tail.tobytes():
        raise FormatError(f"The coded weights end after {position + len(tail)} bytes, not {len(data)}.")
    return arrays


def descending_order(kernel: np.ndarray) -> np.ndarray:
    """The order of outputs, the kernel's last dimension, in which `range` takes the fewest bits.

    kernel: weights or indices, 0 where pruned. Returns `int64 (outputs,)`: `kernel[..., order]` has columns in
    lexicographically descending order. The network stays the same if biases and the next kernel's inputs move too.
    """
    columns = np.packbits((kernel.reshape(-1, kernel.shape[-1]) != 0).T, axis=1)
    return np.array(sorted(range(len(columns)), key=lambda column: columns[column].tobytes(), reverse=True), np.int64)


class _History:
    """The number of survivors of each output of the previous kernel: a dead output makes a dead input likely."""

    def __init__(self):
        self.left = np.zeros(0, np.int64)

    def add(self, array: np.ndarray) -> None:
        if array.ndim > 1:
            self.left = np.count_nonzero(array.reshape(-1, array.shape[-1]), axis=0).astype(np.int64)

    def of(self, inputs: int) -> np.ndarray:
        """A hint for each of so many inputs: the bit length of the number of survivors, or -1 if unknown."""
        if len(self.left) != inputs:
            return np.full(inputs, -1, np.int64)
        return np.array([int(count).bit_length() for count in self.left], np.int64)


def _start(decodes: bool) -> np.ndarray:
    return np.array([0, 0xFFFFFFFF, 0, 0, decodes], np.int64)


def _tail(registers: np.ndarray) -> np.ndarray:
    """The fewest bytes that, followed by zeros, lie in the coder's last interval."""
    low, high = int(registers[_LOW]), int(registers[_HIGH])
    size, number = 0, 0 if low == 0 else 1 << 32
    while number > high:  # Four bytes are always enough: then the number is low itself.
        size += 1
        number = -(-low >> 32 - 8 * size) << 32 - 8 * size  # low, rounded up to so many bytes
    return np.frombuffer((number >> 32 - 8 * size).to_bytes(size, "big"), np.uint8)


def _pass(array, spec, order, history, registers, buffer) -> np.ndarray:
    """Code one tensor in the given order; the order is the first decision."""
    bits, (tables, cost) = np.zeros(2), _tables()
    order = _plain_bit(registers, buffer, order)
    a, b, inputs, outputs = spec.box
    view = np.require(array, requirements=["C", "W"]).reshape(spec.box)
    hints = history.of(inputs)
    if order:
        view = np.ascontiguousarray(view.transpose(0, 1, 3, 2))
        inputs, outputs, hints = outputs, inputs, np.full(outputs, -1, np.int64)
    decode = registers[_DECODES] == 1
    matrix = view.reshape(a * b * inputs, outputs)
    descending = _plain_bit(registers, buffer, 0 if decode else _is_descending(matrix))
    slots = _layout(inputs, outputs, spec.centroids)
    wide = slots[9] == slots[10]
    mixer = np.zeros((_SETS, 3, 1 + len(_MIXING_WEIGHTS)), np.int64)
    mixer[:_VALUES, _WEIGHT, :-1], mixer[:_VALUES, _LIMIT, :-1] = _MIXING_WEIGHTS, _LIMITS
    mixer[:, :2, -1] = 0, _LEARNING_RATE
    value_weights = _VALUE_MIXING_WEIGHTS[:1] + _VALUE_MIXING_WEIGHTS[3:] if wide else _VALUE_MIXING_WEIGHTS
    mixer[_VALUES:, _WEIGHT, : len(value_weights)], mixer[_VALUES:, _LIMIT] = value_weights, _VALUE_LIMIT
    mixer[_VALUES:, _LIMIT, -1] = _VALUE_LEARNING_RATE
    numbers = np.array([a, b, inputs, outputs, spec.centroids, spec.negatives, descending])
    _code_tensor(view.reshape(-1), numbers, hints, slots, mixer, registers, buffer, tables, cost, bits)
    if decode and registers[_POSITION] > buffer.size:  # the loop has stopped
        raise FormatError(f"The coded weights go on after their {buffer.size} bytes.")
    if decode and not descending and _is_descending(matrix):
        raise FormatError("Columns in descending order are not coded as such.")
    if order and decode:
        array.reshape(spec.box)[:] = view.transpose(0, 1, 3, 2)
    return bits


def _plain_bit(registers, buffer, bit: int) -> int:
    """Code a bit with probability 1/2, outside the compiled loop."""
    return int(_step(registers, buffer, int(bit), 32768))


def working_memory(spec: Spec) -> int:
    """The most bytes that decoding a tensor takes beside the tensor: a copy in its own order, counters, counts."""
    a, b, inputs, outputs = spec.box
    lines = a * b * inputs + a * b * outputs + inputs + outputs
    return (
        spec.size * np.dtype(spec.dtype).itemsize + 8 * int(_layout(inputs, outputs, spec.centroids)[-1]) + 32 * lines
    )


def _layout(inputs, outputs, centroids) -> np.ndarray:
    """The offset of each family of counters in one array, and the number of all counters.

    Without counters of values by column and input, these families are empty.
    """
    wide = centroids > _MANY_VALUES or (centroids + 1) * (inputs + outputs) > _MANY_COUNTERS
    tree = centroids + 1
    families = [
        1,  # all positions
        1,  # the row, anew for each
        outputs,  # by column
        12 * 12 * 7,  # by the densities of column and row so far and the survivors around
        inputs,  # by input, over the window
        7 * 4,  # by the survivors around and beside
        16 * 16,  # by the rows beside in the window
        16 * 12,  # by the previous kernel's survivors of this input, and the row so far
        tree,  # values: by node of the tree
        0 if wide else tree * outputs,  # by node and column
        0 if wide else tree * inputs,  # by node and input
        tree * 9,  # by node and the levels above and beside
        tree * 17,  # by node and the signs around
    ]
    return np.concatenate([[0], np.cumsum(families)]).astype(np.int64)


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
def _step(registers, buffer, bit, probability):
    """Code one decision, which is 1 with the given probability, 1 to 65535 of 65536; returns it."""
    decode = registers[_DECODES] == 1
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
        position = registers[_POSITION]
        if decode:
            following = np.int64(buffer[position + 4]) if position + 4 < buffer.size else 0
            registers[_CODE] = (registers[_CODE] << 8 | following) & 0xFFFFFFFF
        elif position < buffer.size:
            buffer[position] = high >> 24
        registers[_POSITION] = position + 1
        low, high = low << 8 & 0xFFFFFFFF, (high << 8 | 0xFF) & 0xFFFFFFFF
    registers[_LOW], registers[_HIGH] = low, high
    return bit


@compiled()
def _guess(counters, slot, other, quarters, limit):
    """Start a counter with the probability of another; its age is the higher, the more certain that one is."""
    probability = np.int64(counters[other, _PROBABILITY])
    rare = max(min(probability, _ONE - probability), 1)
    counters[slot, _PROBABILITY] = probability
    counters[slot, _AGE] = min(max(quarters * (_ONE // 4) // rare, 1), limit)


@compiled(inline="always")
def _decide(bit, chosen, count, group, offset, zeros, counters, mixer, tables, registers, buffer):
    """Predict a decision from the first `count` `chosen` counters, code it, update the counters and their weights.

    Returns the decision and its probability. A new counter starts with the probability of the first one. `offset` is
    one more logit. A 0 counts as so many `zeros`.
    """
    mixer[group, _LOGIT, count] = offset
    total = mixer[group, _WEIGHT, count] * offset
    for k in range(count):
        slot = chosen[k]
        if counters[slot, _AGE] == 0:
            _guess(counters, slot, chosen[0], 1, mixer[group, _LIMIT, k])
        logit = np.int64(tables[_STRETCH + (counters[slot, _PROBABILITY] >> 14)])
        mixer[group, _LOGIT, k] = logit
        total += mixer[group, _WEIGHT, k] * logit
    mixed = min(max(total >> 16, -_HALF), _HALF - 1)
    probability = np.int64(tables[_SQUASH + _HALF + mixed])
    bit = _step(registers, buffer, bit, probability)
    rate = 1 + mixer[group, _RATE, -1] * 500 // (500 + mixer[group, _DECISIONS, -1])
    mixer[group, _DECISIONS, -1] += 1
    error = ((65535 if bit else 0) - probability) * rate
    for k in range(count + 1):
        mixer[group, _WEIGHT, k] += (mixer[group, _LOGIT, k] * error + (1 << 19)) >> 20
    goal = _ONE - 1 if bit else 0
    for k in range(count):
        slot = chosen[k]
        age, before = np.int64(counters[slot, _AGE]), np.int64(counters[slot, _PROBABILITY])
        if bit or zeros == 1:
            after, age = before + (((goal - before) * tables[_PACES + age] + 32768) >> 16), age + 1
        else:
            after, age = before - before * 2 * zeros // (2 * age + 2 * zeros + 1), age + zeros
        counters[slot, _PROBABILITY], counters[slot, _AGE] = after, min(age, mixer[group, _LIMIT, k])
    return bit, probability if bit else 65536 - probability


@compiled(inline="always")
def _bits(number):
    """The bit length of a number."""
    digits = 0
    while number > 0:
        number >>= 1
        digits += 1
    return digits


@compiled(inline="always")
def _at(indices, here, a, b, columns, plane, up, left):
    """The index so many rows up and columns left in the window, 0 outside it."""
    if a < up or b < left or b - left >= columns:
        return np.int64(0)
    return np.int64(indices[here - (up * columns + left) * plane])


@compiled(inline="always")
def _level(index, negatives):
    """The signed rank of an index's value: ..., -2, -1, 0 where pruned, 1, 2, ..."""
    if index == 0:
        return 0
    return index - negatives if index > negatives else index - negatives - 1


# With checks for division by zero, the compiler would count references within the loops.
@compiled(error_model="numpy")
def _code_tensor(indices, numbers, hints, slots, mixer, registers, buffer, tables, cost, bits):
    """Code the indices of one tensor in the order of memory; a decoder writes them, and stops where its bytes do."""
    rows, columns, inputs, outputs, centroids, negatives, descending = numbers
    plane, tree, wide = inputs * outputs, centroids + 1, slots[9] == slots[10]
    decode = registers[_DECODES] == 1
    counters = np.zeros((slots[-1], 2), np.int32)
    # Unsigned, so that the compiler does not check for negative subscripts.
    chosen = np.zeros(len(_MIXING_WEIGHTS), np.uint64)
    counters[0] = _ONE // 10, 1
    for slot in range(slots[2], slots[3]):
        _guess(counters, slot, 0, 8, _LIMITS[2])
    counters[slots[8] : slots[9], _PROBABILITY], counters[slots[8] : slots[9], _AGE] = _ONE // 2, 1
    row_left, column_left = np.zeros(rows * columns * inputs, np.int64), np.zeros(outputs, np.int64)
    # At the first of equal neighbouring columns: the number of columns that are equal so far.
    ties = np.ones(outputs, np.int64)
    if descending and outputs:
        ties[0] = outputs
    root = negatives if 0 < negatives < centroids else (1 + centroids) // 2
    for a in range(rows):
        for b in range(columns):
            for i in range(inputs):
                row = (a * columns + b) * inputs + i
                above = min(_bits(row_left[row - columns * inputs] + 1), 15) if a else 0
                beside = min(_bits(row_left[row - inputs] + 1), 15) if b else 0
                sides = slots[6] + above * 16 + beside
                # A row's counter starts with the probability of rows with similar neighbours.
                _guess(counters, slots[1], sides if counters[sides, _AGE] else 0, 8, _LIMITS[1])
                hint = slots[7] + min(hints[i] + 1, 15) * 12
                left = 0
                first = 0
                while first < outputs:
                    tie = ties[first]
                    # The columns of a tie share counter and count until one of them has no survivor.
                    probability = counters[slots[2] + first, _PROBABILITY]
                    age = counters[slots[2] + first, _AGE]
                    so_far = column_left[first]
                    for place in range(tie):
                        if decode and registers[_POSITION] > buffer.size:  # the stream has ended before
                            return
                        o = first + place
                        here = row * outputs + o
                        if place:
                            counters[slots[2] + o, _PROBABILITY] = probability
                            counters[slots[2] + o, _AGE] = age
                            column_left[o] = so_far
                        near = 0
                        if rows * columns > 1:
                            near += 2 * (_at(indices, here, a, b, columns, plane, 1, 0) > 0)
                            near += 2 * (_at(indices, here, a, b, columns, plane, 0, 1) > 0)
                            near += _at(indices, here, a, b, columns, plane, 1, 1) > 0
                            near += _at(indices, here, a, b, columns, plane, 1, -1) > 0
                        before = 1 if i and indices[here - outputs] else 0
                        last = 1 if o and indices[here - 1] else 0
                        column_level = tables[_DIGITS + column_left[o] * 1024 // (row + 1)]
                        row_level = tables[_DIGITS + left * 1024 // (o + 1)]
                        chosen[0] = 0
                        chosen[1] = slots[1]
                        chosen[2] = slots[2] + o
                        chosen[3] = slots[3] + (column_level * 12 + row_level) * 7 + near
                        chosen[4] = slots[4] + i
                        chosen[5] = slots[5] + near * 4 + before * 2 + last
                        chosen[6] = sides
                        chosen[7] = hint + row_level
                        # In descending order: the odds that one more column of the tie has a survivor.
                        offset = np.int64(tables[_STRETCH + (tie - place) * 65536 // (tie + 1)]) if tie > 1 else 0
                        group = _TIED if tie > 1 else min(near, 3)
                        bit = 1 if not decode and indices[here] else 0
                        bit, odds = _decide(
                            bit, chosen, 8, group, offset, tie - place, counters, mixer, tables, registers, buffer
                        )
                        bits[0] += cost[odds]
                        if not bit:
                            if place:
                                ties[first], ties[o] = place, tie - place
                            break
                        left += 1
                        row_left[row] += 1
                        column_left[o] += 1
                        levels, signs = 0, 0
                        if rows * columns > 1:
                            for up, back, worth in _NEIGHBOURS:
                                level = _level(_at(indices, here, a, b, columns, plane, up, back), negatives)
                                signs += worth * ((level > 0) - (level < 0))
                                levels += level if worth == 4 else 0
                        # Descend a tree. Each node splits its values into halves, the root by sign.
                        low, high, node, depth = 1, centroids, root, 0
                        value = np.int64(indices[here])
                        while low < high:
                            chosen[0] = slots[8] + node
                            count = 1
                            if not wide:
                                chosen[1] = slots[9] + o * tree + node
                                chosen[2] = slots[10] + i * tree + node
                                count = 3
                            chosen[count] = slots[11] + min(max(levels + 4, 0), 8) * tree + node
                            chosen[count + 1] = slots[12] + min(max(signs + 8, 0), 16) * tree + node
                            bit = 1 if value > node else 0
                            group = _VALUES + min(depth, 3)
                            bit, odds = _decide(
                                bit, chosen, count + 2, group, 0, 1, counters, mixer, tables, registers, buffer
                            )
                            bits[1] += cost[odds]
                            if bit:
                                low = node + 1
                            else:
                                high = node
                            node = (low + high) // 2
                            depth += 1
                        if decode:
                            indices[here] = low
                    first += tie
