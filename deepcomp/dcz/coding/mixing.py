"""The predictions of `range`: many adaptive contexts, mixed with weights that several contexts select.

Every weight is coded as a few binary decisions: is it a survivor? Which half of the codebook has its value, which half
of that half, and so on? Several counters predict a decision at once, such as those of its row, its column and the
channel in other kernels. Their predictions are averaged in the logistic domain (Mattern, 2012, after the PAQ
archivers). The weights of the average are the mean of a few sets, each selected by another context; all learn.

Within a window, neighbours are alike. Two linear predictors learn from the twelve indices around that are coded before:
how likely a survivor is, and which value it has. What they predict is a context as well.
"""

import numpy as np

from deepcomp.compiled import compiled
from deepcomp.dcz.coding import arithmetic
from deepcomp.dcz.coding.arithmetic import (
    AGE,
    DECODES,
    DIGITS,
    HALF,
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
    quotient,
    step,
)

# For each counter that predicts a survivor: its first weight in units of 2^-16, and its greatest age. They are: all,
# row, column, input, hint, window, input with its neighbours, channels. The last weight is for the odds of a tie. First
# weights are the means of those that sets had learned at the end of tensors of several networks.
_NEAR_WEIGHTS = (
    (-16800, 10900, 16200, 16100, 11600, 9800, 11100, 15300, 65536),
    (-16700, 12700, 18000, 12100, 2400, 4600, 1800, 1000, 65536),
    (-23000, 6900, 7800, 8800, -1200, 4700, -500, -3900, 65536),
    (-25900, 4300, 7200, 5900, -3200, 16100, -600, -2600, 65536),
    (-18400, 16600, 18700, 17600, 7100, 4600, 11200, 7000, 59000),  # of ties
)
_WEIGHTS = (-14000, 16000, 19200, 14300, 8200, 8500, 7600, 6700, 65536)
_LIMITS = (4095, 255, 255, 511, 511, 511, 511, 511, 0)
# The same for a value: node, column, input, levels, densities, sizes, prediction.
_DEPTH_WEIGHTS = (
    (-24400, -3500, -3600, 43100, -4500, -4600, 52900),
    (-12300, 16200, 16300, 21600, 5200, 13300, 2700),
    (-1500, 8100, 9800, 15400, 8600, 9500, 4800),
    (5700, -900, -900, 9300, 800, 3600, -1000),
)
_VALUE_WEIGHTS = (-700, 10600, 10700, 20400, 10800, 14700, 13600)
_WIDE_WEIGHTS = (8192, 19200, 10500)  # node, levels, prediction
_VALUE_LIMIT = 255
_ROWS = 63  # the greatest age, in rows, of the counters that rows start with
_RATE, _VALUE_RATE = 8, 64  # of the learning of weights, at first
# Where the sets of weights begin: by neighbours, with one for ties; by window; by densities; of values by depth; of
# values by prediction; the end.
_NEAR, _WINDOW, _DENSITY, _DEPTH, _PREDICTION, _SETS = 0, 5, 69, 133, 137, 237
_MANY_VALUES = 64  # Codebooks of more values have no counters by column and input,
_MANY_COUNTERS = 1 << 22  # and nor do tensors that need more counters, so that memory is bounded by the weights.
# The indices around one that are coded before it, in the window: rows up, columns left.
_UP = np.array([0, 1, 1, 1, 0, 2, 1, 1, 2, 2, 2, 2])
_LEFT = np.array([1, 0, 1, -1, 2, 0, 2, -2, 1, -1, 2, -2])
_FAR = 10  # the first so many count as neighbours
_SCALE = 24  # bits after the point of the predictors' weights
# Sizes in classes: the least number of each class from 1 on; two classes for each doubling.
_CLASSES = np.array([3, 11, 22, 38, 60, 92, 136, 199, 288, 414, 593, 845])
_SHARES = np.array([76, 108, 152, 215, 304, 430, 609, 861])  # the same of a channel's density, 256 for the mean


class _History:
    """What earlier tensors tell of channels: the survivors of the last tensor's outputs, densities by channel."""

    def __init__(self):
        self.left = np.zeros(0, np.int64)
        self.outputs: dict[int, np.ndarray] = {}
        self.inputs: dict[int, np.ndarray] = {}

    def add(self, array: np.ndarray) -> None:
        if array.ndim > 1:
            *others, taken, made = range(array.ndim)
            left = np.count_nonzero(array, axis=(*others, taken)).astype(np.int64)
            read = np.count_nonzero(array, axis=(*others, made)).astype(np.int64)
            self.left, densities = left, _shares(left)
            self.outputs[left.size] = densities
            self.inputs[read.size] = _shares(read)
            self.inputs[left.size] = densities  # what one kernel puts out, a later one may take

    def hints(self, inputs: int, outputs: int, order: int) -> np.ndarray:
        """Hints for each input, hints and densities, and for each output, a density: one array, 0 if unknown."""
        hints = np.zeros(2 * inputs + outputs, np.int64)
        if len(self.left) == inputs and not order:
            hints[:inputs] = [min(int(count).bit_length() + 1, 15) for count in self.left]
        rows, columns = (self.outputs, self.inputs) if order else (self.inputs, self.outputs)
        if inputs in rows:
            hints[inputs : 2 * inputs] = rows[inputs]
        if outputs in columns:
            hints[2 * inputs :] = columns[outputs]
        return hints


def _shares(counts: np.ndarray) -> np.ndarray:
    """The density of each channel in classes from 1 to 9; 5 is the mean."""
    relative = 256 * counts * counts.size // max(int(counts.sum()), 1)
    return np.searchsorted(_SHARES, relative, side="right") + 1


def _code(indices, numbers, hints, registers, buffer, bits) -> None:
    """Code one tensor: `arithmetic.Model.code`."""
    rows, columns, inputs, outputs, centroids, _, _ = (int(number) for number in numbers)
    tables, cost = arithmetic.tables()
    slots, wide = _slots(rows * columns, inputs, outputs, centroids)
    weights = np.zeros((_SETS, len(_WEIGHTS) + 1), np.int64)  # the last is how many decisions a set has made
    weights[:_WINDOW, : len(_WEIGHTS)], weights[_WINDOW:_DEPTH, : len(_WEIGHTS)] = _NEAR_WEIGHTS, _WEIGHTS
    if wide:
        weights[_DEPTH:, : len(_WIDE_WEIGHTS)] = _WIDE_WEIGHTS
    else:
        weights[_DEPTH:_PREDICTION, : len(_VALUE_WEIGHTS)] = _DEPTH_WEIGHTS
        weights[_PREDICTION:, : len(_VALUE_WEIGHTS)] = _VALUE_WEIGHTS
    classes = np.searchsorted(_CLASSES, np.arange(1025), side="right")
    # NumPy gives zeros without writing them: a file that declares many columns takes no time for those never reached.
    counters, row_left = np.zeros((slots[-1], 2), np.int32), np.zeros(rows * columns * inputs, np.int64)
    in_column = np.zeros((3, outputs), np.int64)
    _code_tensor(
        indices, numbers, hints, slots, counters, row_left, in_column, weights,
        registers, buffer, tables, classes, cost, bits,
    )  # fmt: skip


def _slots(window, inputs, outputs, centroids) -> tuple[np.ndarray, bool]:
    """`_layout` for a tensor, and whether it has no counters of values by column and input."""
    wide = centroids > _MANY_VALUES or (centroids + 1) * (inputs + outputs) > _MANY_COUNTERS
    pairs = 16 * inputs if window * outputs >= 16 else 16
    return _layout(inputs, outputs, centroids, wide, pairs), wide


def _counters(window: int, inputs: int, outputs: int, centroids: int) -> int:
    return int(_slots(window, inputs, outputs, centroids)[0][-1])


def _layout(inputs, outputs, centroids, wide, pairs) -> np.ndarray:
    """The offset of each family of counters in one array, and the number of all counters."""
    tree = centroids + 1
    families = [
        1,  # all positions
        1,  # the row, anew for each
        outputs,  # by column
        inputs,  # by input, over the window
        16 * 12,  # by the previous kernel's survivors of this input, and the row so far
        12 * 16 * 12,  # by both predictions, and the column so far
        pairs,  # by input and neighbours
        10 * 10 * 12 * 12,  # by the densities of both channels in earlier kernels, and those of column and row so far
        16 * 16 + 16 * 10,  # by the rows beside in the window, else by hint and density: rows start with it
        tree,  # values: by node of the tree
        0 if wide else tree * outputs,  # by node and column
        0 if wide else tree * inputs,  # by node and input
        tree * 9,  # by node and the levels above and beside
        0 if wide else tree * 64,  # by node and the densities of column and row
        0 if wide else tree * 64,  # by node and the mean sizes in column and row
        tree * 23,  # by node and the predicted value
    ]
    return np.concatenate([[0], np.cumsum(families)]).astype(np.int64)


@compiled(inline="always")
def _decide(
    bit, chosen, count, sets, number, rate, offset, zeros,
    counters, limits, weights, logits, tables, registers, buffer,
):  # fmt: skip
    """Predict a decision from the first `count` `chosen` counters, code it, update the counters and their weights.

    The weights are the mean of the first `number` `sets`. Returns the decision and its probability. A new counter
    starts with the probability of the first one. `offset` is one more logit. A 0 counts as so many `zeros`.
    """
    logits[count] = offset
    total = np.int64(0)
    for k in range(count + 1):
        if k < count:
            slot = chosen[k]
            if counters[slot, AGE] == 0:
                guess(counters, slot, chosen[0], 1, limits[k])
            logits[k] = np.int64(tables[STRETCH + (counters[slot, PROBABILITY] >> 14)])
        weight = np.int64(0)
        for s in range(number):
            weight += weights[sets[s], k]
        total += weight * logits[k]
    mixed = min(max((total >> 16) // number, -HALF), HALF - 1)
    probability = np.int64(tables[SQUASH + HALF + mixed])
    bit = step(registers, buffer, bit, probability)
    error = (65535 if bit else 0) - probability
    for s in range(number):
        chosen_set = sets[s]
        made, faster = weights[chosen_set, -1], 0
        if made <= 500 * (rate - 1):  # else the quotient is 0, and a division takes long
            faster = rate * 500 // (500 + made)
        scaled = error * (2 + faster)
        weights[chosen_set, -1] = made + 1
        for k in range(count + 1):
            weights[chosen_set, k] += (logits[k] * scaled + (1 << 19)) >> 20
    goal, once = ONE - 1 if bit else 0, count if bit or zeros == 1 else 0
    for k in range(once):
        learn(counters, chosen[k], goal, limits[k], tables)
    for k in range(once, count):
        learn_zeros(counters, chosen[k], zeros, limits[k])
    return bit, probability if bit else 65536 - probability


# With checks for division by zero, the compiler would count references within the loops.
@compiled(error_model="numpy")
def _code_tensor(
    indices, numbers, hints, slots, counters, row_left, in_column, weights,
    registers, buffer, tables, classes, cost, bits,
):  # fmt: skip
    """Code the indices of one tensor in the order of memory; a decoder writes them."""
    rows, columns, inputs, outputs, centroids, negatives, descending = numbers
    plane, tree, wide = inputs * outputs, centroids + 1, slots[10] == slots[11]
    largest = max(negatives, centroids - negatives, 1)
    window, pairs = rows * columns > 1, slots[7] - slots[6] > 16
    decode = registers[DECODES] == 1
    limits, value_limits = np.array(_LIMITS), np.full(len(_VALUE_WEIGHTS), _VALUE_LIMIT)
    # Unsigned, so that the compiler does not check for negative subscripts.
    chosen, sets, logits = np.zeros(8, np.uint64), np.zeros(3, np.uint64), np.zeros(9, np.int64)
    # Number by number: to assign a row takes seconds to compile, for the errors of its shape.
    counters[0, PROBABILITY], counters[0, AGE] = ONE // 10, 1
    new_column = np.zeros((1, 2), np.int32)
    new_column[0, PROBABILITY] = counters[0, PROBABILITY]
    guess(new_column, 0, 0, 8, _LIMITS[2])
    counters[slots[9] : slots[10], PROBABILITY], counters[slots[9] : slots[10], AGE] = ONE // 2, 1
    # By column: its survivors; the sum of its values' sizes, 256 for the largest; at the first of neighbouring columns
    # that are equal so far, how many more they are.
    column_left, column_size, ties = in_column[0], in_column[1], in_column[2]
    if descending and outputs:
        ties[0] = outputs - 1
    root = negatives if 0 < negatives < centroids else (1 + centroids) // 2
    around, features = np.zeros(_UP.size, np.int64), np.zeros(_UP.size, np.int64)
    survival, value_of = np.zeros(_UP.size, np.int64), np.zeros(_UP.size, np.int64)  # the predictors' weights
    survival[:2], survival[2:4] = (1 << _SCALE) // 10, (1 << _SCALE) // 20
    value_of[:2], value_of[2:4] = (1 << _SCALE) * 3 // 20, (1 << _SCALE) // 20
    base = np.int64((1 << _SCALE) // 10)
    for a in range(rows):
        for b in range(columns):
            for i in range(inputs):
                row = (a * columns + b) * inputs + i
                above = min(bit_length(row_left[row - columns * inputs] + 1), 15) if a else 0
                beside = min(bit_length(row_left[row - inputs] + 1), 15) if b else 0
                sides = slots[8] + above * 16 + beside if a or b else slots[8] + 256 + hints[i] * 10 + hints[inputs + i]
                # A row's counter starts with the probability of rows with similar neighbours.
                guess(counters, slots[1], sides if counters[sides, AGE] else 0, 8, _LIMITS[1])
                left, row_size = 0, 0
                first = 0
                while first < outputs:
                    tie = ties[first] + 1
                    if not row:
                        counters[slots[2] + first, PROBABILITY] = new_column[0, PROBABILITY]
                        counters[slots[2] + first, AGE] = new_column[0, AGE]
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
                        near, far, found, power, predicted, likely = 0, 0, 0, 0, 0, base
                        if window:
                            for j in range(around.size):
                                index = at(indices, here, a, b, columns, plane, _UP[j], _LEFT[j])
                                around[j], features[j] = index, 0
                                if index:
                                    level = level_of(index, negatives)
                                    size = abs(level) * 256 // largest
                                    features[j] = size if level > 0 else -size
                                    found += 1
                                    power += size * size
                                    predicted += value_of[j] * features[j]
                                    likely += survival[j]
                            near += 2 * (around[0] > 0) + 2 * (around[1] > 0) + (around[2] > 0) + (around[3] > 0)
                            for j in range(4, _FAR):
                                far += around[j] > 0
                            far, predicted = min(far, 3), predicted >> _SCALE
                            known = min(near, 3) * 4 + far
                        else:
                            last = 1 if o and indices[here - 1] else 0
                            known = 2 * last + (1 if o > 1 and indices[here - 2] else 0)
                        strength = classes[min(abs(predicted), 592)]
                        odds_class = classes[min(max(likely >> _SCALE - 10, 0), 1024)]
                        column_level = tables[DIGITS + quotient(column_left[o] * 1024, row + 1)]
                        row_level = tables[DIGITS + quotient(left * 1024, o + 1)]
                        channels = hints[inputs + i] + 10 * hints[2 * inputs + o]
                        chosen[0] = 0
                        chosen[1] = slots[1]
                        chosen[2] = slots[2] + o
                        chosen[3] = slots[3] + i
                        chosen[4] = slots[4] + hints[i] * 12 + row_level
                        chosen[5] = slots[5] + (strength * 16 + odds_class) * 12 + column_level
                        chosen[6] = slots[6] + (16 * i if pairs else 0) + known
                        chosen[7] = slots[7] + (channels * 12 + column_level) * 12 + row_level
                        # In descending order: the odds that one more column of the tie has a survivor.
                        offset = np.int64(tables[STRETCH + (tie - place) * 65536 // (tie + 1)]) if tie > 1 else 0
                        sets[0] = _NEAR + (4 if tie > 1 else min(near, 3))
                        sets[1] = _WINDOW + odds_class * 4 + min(strength // 2, 3)
                        sets[2] = _DENSITY + min(column_level, 7) * 8 + min(row_level, 7)
                        bit = 1 if not decode and indices[here] else 0
                        bit, odds = _decide(
                            bit, chosen, 8, sets, 3, _RATE, offset, tie - place,
                            counters, limits, weights, logits, tables, registers, buffer,
                        )  # fmt: skip
                        bits[0] += cost[odds]
                        if window:
                            miss = ((1 << _SCALE) if bit else 0) - likely
                            base += miss >> 9
                            if found:
                                share = miss // (50 * (4 + found))
                                for j in range(around.size):
                                    survival[j] += share if around[j] else 0
                        if not bit:
                            if place:
                                ties[first], ties[o] = place - 1, tie - place - 1
                            break
                        # The mean sizes before this value.
                        sizes = min(row_size // (32 * left), 7) if left else 0
                        if column_left[o]:
                            sizes += 8 * min(column_size[o] // (32 * column_left[o]), 7)
                        left += 1
                        row_left[row] += 1
                        column_left[o] += 1
                        levels = 0
                        if window:
                            levels = level_of(around[0], negatives) + level_of(around[1], negatives)
                        aim = strength if predicted >= 0 else -strength
                        densities = 8 * min(max(column_level - 3, 0), 7) + min(max(row_level - 3, 0), 7)
                        # Descend a tree. Each node splits its values into halves, the root by sign.
                        low, high, node, depth = 1, centroids, root, 0
                        value = np.int64(indices[here])
                        while low < high:
                            chosen[0] = slots[9] + node
                            count = 1
                            if not wide:
                                chosen[1] = slots[10] + o * tree + node
                                chosen[2] = slots[11] + i * tree + node
                                count = 3
                            chosen[count] = slots[12] + min(max(levels + 4, 0), 8) * tree + node
                            count += 1
                            if not wide:
                                chosen[count] = slots[13] + densities * tree + node
                                chosen[count + 1] = slots[14] + sizes * tree + node
                                count += 2
                            chosen[count] = slots[15] + (aim + 11) * tree + node
                            sets[0] = _DEPTH + min(depth, 3)
                            sets[1] = _PREDICTION + (aim + 12) * 4 + min(depth, 3)
                            bit = 1 if value > node else 0
                            bit, odds = _decide(
                                bit, chosen, count + 1, sets, 2, _VALUE_RATE, 0, 1,
                                counters, value_limits, weights, logits, tables, registers, buffer,
                            )  # fmt: skip
                            bits[1] += cost[odds]
                            if bit:
                                low = node + 1
                            else:
                                high = node
                            node = (low + high) // 2
                            depth += 1
                        if decode:
                            indices[here] = low
                        level = level_of(low, negatives)
                        size = abs(level) * 256 // largest
                        row_size += size
                        column_size[o] += size
                        if power:
                            miss = ((size if level > 0 else -size) - predicted) * 335544
                            for j in range(around.size):
                                value_of[j] += miss * features[j] // (19661 + power)
                    first += tie
                if counters[sides, AGE] == 0:
                    counters[sides, PROBABILITY] = counters[0, PROBABILITY]
                age, before = np.int64(counters[sides, AGE]), np.int64(counters[sides, PROBABILITY])
                counters[sides, PROBABILITY] = before + 2 * (left * ONE // max(outputs, 1) - before) // (2 * age + 3)
                counters[sides, AGE] = min(age + 1, _ROWS)


MODEL = arithmetic.Model(_History, _code, _counters)
