"""The predictions of `range` in format versions 1 and 2: one set of mixed counters for each kind of decision.

Every weight is coded as a few binary decisions: is it a survivor? Which half of the codebook has its value, which half
of that half, and so on? Several counters predict a decision at once, such as those of its row, its column and its
neighbours within the kernel. Their predictions are averaged in the logistic domain with weights that are learned
(Mattern, 2012, after the PAQ archivers).
"""

import numpy as np

from deepcomp.compiled import compiled
from deepcomp.dcz.coding import arithmetic
from deepcomp.dcz.coding.arithmetic import (
    AGE,
    DECODES,
    DIGITS,
    HALF,
    NEIGHBOURS,
    ONE,
    POSITION,
    PROBABILITY,
    SQUASH,
    STRETCH,
    at,
    bit_length,
    guess,
    learn,
    learn_zeros,
    level_of,
    step,
)

# For each counter that predicts a survivor: its initial weight in units of 2^-16, and its greatest age.
# They are: all, row, column, densities, input, neighbours, sides, hint. The last weight is for the odds of a tie.
_MIXING_WEIGHTS = (-8192, 20480, 20480, 4096, 12288, 4096, 0, 8192, 65536)
_LIMITS = (4095, 255, 255, 511, 511, 511, 511, 511, 0)
_VALUE_MIXING_WEIGHTS = (8192, 8192, 8192, 16384, 16384)  # node, column, input, levels, signs
_VALUE_LIMIT = 255
_TIED, _VALUES, _SETS = 4, 5, 9  # sets of mixing weights: 0 to 3 by neighbours, 4 for ties, 5 to 8 by level of the tree
_LEARNING_RATE, _VALUE_LEARNING_RATE = 8, 64  # of the mixing weights, at first
# Subscripts of the arrays of the compiled loop.
_WEIGHT, _LIMIT, _LOGIT = range(3)  # for each counter in a set of mixing weights
_DECISIONS, _RATE = range(2)  # of a set: its decisions so far, which slow its learning; its first learning rate
_MANY_VALUES = 64  # Codebooks of more values have no counters by column and input,
_MANY_COUNTERS = 1 << 22  # and nor do tensors that need more counters, so that memory is bounded by the weights.


class _History:
    """The number of survivors of each output of the previous kernel: a dead output makes a dead input likely."""

    def __init__(self):
        self.left = np.zeros(0, np.int64)

    def add(self, array: np.ndarray) -> None:
        if array.ndim > 1:
            self.left = np.count_nonzero(array.reshape(-1, array.shape[-1]), axis=0).astype(np.int64)

    def hints(self, inputs: int, outputs: int, order: int) -> np.ndarray:
        """A hint for each of so many inputs: the bit length of the number of survivors, or -1 if unknown."""
        if len(self.left) != inputs or order:
            return np.full(inputs, -1, np.int64)
        return np.array([int(count).bit_length() for count in self.left], np.int64)


def _code(indices, numbers, hints, registers, buffer, bits) -> None:
    """Code one tensor: `arithmetic.Model.code`."""
    _, _, inputs, outputs, centroids, _, _ = (int(number) for number in numbers)
    tables, cost = arithmetic.tables()
    slots, wide = _slots(inputs, outputs, centroids)
    mixer = np.zeros((_SETS, 3, 1 + len(_MIXING_WEIGHTS)), np.int64)
    mixer[:_VALUES, _WEIGHT, :-1], mixer[:_VALUES, _LIMIT, :-1] = _MIXING_WEIGHTS, _LIMITS
    mixer[:, :2, -1] = 0, _LEARNING_RATE
    value_weights = _VALUE_MIXING_WEIGHTS[:1] + _VALUE_MIXING_WEIGHTS[3:] if wide else _VALUE_MIXING_WEIGHTS
    mixer[_VALUES:, _WEIGHT, : len(value_weights)], mixer[_VALUES:, _LIMIT] = value_weights, _VALUE_LIMIT
    mixer[_VALUES:, _LIMIT, -1] = _VALUE_LEARNING_RATE
    _code_tensor(indices, numbers, hints, slots, mixer, registers, buffer, tables, cost, bits)


def _slots(inputs, outputs, centroids) -> tuple[np.ndarray, bool]:
    """`_layout` for a tensor, and whether it has no counters of values by column and input."""
    wide = centroids > _MANY_VALUES or (centroids + 1) * (inputs + outputs) > _MANY_COUNTERS
    return _layout(inputs, outputs, centroids, wide), wide


def _counters(window: int, inputs: int, outputs: int, centroids: int) -> int:
    return int(_slots(inputs, outputs, centroids)[0][-1])


def _layout(inputs, outputs, centroids, wide) -> np.ndarray:
    """The offset of each family of counters in one array, and the number of all counters."""
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
        if counters[slot, AGE] == 0:
            guess(counters, slot, chosen[0], 1, mixer[group, _LIMIT, k])
        logit = np.int64(tables[STRETCH + (counters[slot, PROBABILITY] >> 14)])
        mixer[group, _LOGIT, k] = logit
        total += mixer[group, _WEIGHT, k] * logit
    mixed = min(max(total >> 16, -HALF), HALF - 1)
    probability = np.int64(tables[SQUASH + HALF + mixed])
    bit = step(registers, buffer, bit, probability)
    rate = 1 + mixer[group, _RATE, -1] * 500 // (500 + mixer[group, _DECISIONS, -1])
    mixer[group, _DECISIONS, -1] += 1
    error = ((65535 if bit else 0) - probability) * rate
    for k in range(count + 1):
        mixer[group, _WEIGHT, k] += (mixer[group, _LOGIT, k] * error + (1 << 19)) >> 20
    goal, once = ONE - 1 if bit else 0, count if bit or zeros == 1 else 0
    for k in range(once):
        learn(counters, chosen[k], goal, mixer[group, _LIMIT, k], tables)
    for k in range(once, count):
        learn_zeros(counters, chosen[k], zeros, mixer[group, _LIMIT, k])
    return bit, probability if bit else 65536 - probability


# With checks for division by zero, the compiler would count references within the loops.
@compiled(error_model="numpy")
def _code_tensor(indices, numbers, hints, slots, mixer, registers, buffer, tables, cost, bits):
    """Code the indices of one tensor in the order of memory; a decoder writes them."""
    rows, columns, inputs, outputs, centroids, negatives, descending = numbers
    plane, tree, wide = inputs * outputs, centroids + 1, slots[9] == slots[10]
    decode = registers[DECODES] == 1
    counters = np.zeros((slots[-1], 2), np.int32)
    # Unsigned, so that the compiler does not check for negative subscripts.
    chosen = np.zeros(len(_MIXING_WEIGHTS), np.uint64)
    counters[0, PROBABILITY], counters[0, AGE] = ONE // 10, 1
    for slot in range(slots[2], slots[3]):
        guess(counters, slot, 0, 8, _LIMITS[2])
    counters[slots[8] : slots[9], PROBABILITY], counters[slots[8] : slots[9], AGE] = ONE // 2, 1
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
                above = min(bit_length(row_left[row - columns * inputs] + 1), 15) if a else 0
                beside = min(bit_length(row_left[row - inputs] + 1), 15) if b else 0
                sides = slots[6] + above * 16 + beside
                # A row's counter starts with the probability of rows with similar neighbours.
                guess(counters, slots[1], sides if counters[sides, AGE] else 0, 8, _LIMITS[1])
                hint = slots[7] + min(hints[i] + 1, 15) * 12
                left = 0
                first = 0
                while first < outputs:
                    tie = ties[first]
                    # The columns of a tie share counter and count until one of them has no survivor.
                    probability = counters[slots[2] + first, PROBABILITY]
                    age = counters[slots[2] + first, AGE]
                    so_far = column_left[first]
                    for place in range(tie):
                        if decode and registers[POSITION] > buffer.size:  # the stream has ended before
                            return
                        o = first + place
                        here = row * outputs + o
                        if place:
                            counters[slots[2] + o, PROBABILITY] = probability
                            counters[slots[2] + o, AGE] = age
                            column_left[o] = so_far
                        near = 0
                        if rows * columns > 1:
                            near += 2 * (at(indices, here, a, b, columns, plane, 1, 0) > 0)
                            near += 2 * (at(indices, here, a, b, columns, plane, 0, 1) > 0)
                            near += at(indices, here, a, b, columns, plane, 1, 1) > 0
                            near += at(indices, here, a, b, columns, plane, 1, -1) > 0
                        before = 1 if i and indices[here - outputs] else 0
                        last = 1 if o and indices[here - 1] else 0
                        column_level = tables[DIGITS + column_left[o] * 1024 // (row + 1)]
                        row_level = tables[DIGITS + left * 1024 // (o + 1)]
                        chosen[0] = 0
                        chosen[1] = slots[1]
                        chosen[2] = slots[2] + o
                        chosen[3] = slots[3] + (column_level * 12 + row_level) * 7 + near
                        chosen[4] = slots[4] + i
                        chosen[5] = slots[5] + near * 4 + before * 2 + last
                        chosen[6] = sides
                        chosen[7] = hint + row_level
                        # In descending order: the odds that one more column of the tie has a survivor.
                        offset = np.int64(tables[STRETCH + (tie - place) * 65536 // (tie + 1)]) if tie > 1 else 0
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
                            for up, back, worth in NEIGHBOURS:
                                level = level_of(at(indices, here, a, b, columns, plane, up, back), negatives)
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


MODEL = arithmetic.Model(_History, _code, _counters)
