"""The operations of a plan by number, and the columns of their rows."""

# The operations, each with the columns of its row after the first one, which is the operation. A move is a row of the
# table of moves: target, source, other, source step, other step, count. It reads `count` places, from `source` on and
# `source step` apart, and writes as many neighbouring places from `target` on. `other` is a second source with its own
# step. INPUT reads an image, OUTPUT writes an output. Constants are given by number: `low` and `high`, which clamp
# the result, scales, shifts, parameters.
(
    INPUT,  # first move, moves
    OUTPUT,  # first move, moves
    COPY,  # first move, moves
    CLEAR,  # place, size
    SCALE,  # first move, moves, low, high, shift - scale: other is the number of the scale
    ADD,  # first move, moves, low, high
    MULTIPLY,  # first move, moves, low, high
    MAP,  # first move, moves, function, parameters
    SOFTMAX,  # see `plan._Planner._softmax`
    MAX_POOL,  # see `plan._Planner._pool`; as in TensorFlow it ignores NaN and -inf
    REDUCE_MAX,  # as MAX_POOL, but NaN and -inf stay what they are
    AVERAGE_POOL,
    CONVOLUTION,  # see `plan._Planner._convolution`
    DENSE,  # see `plan._Planner._dense`
) = range(14)
MOVERS = (INPUT, OUTPUT, COPY, SCALE, ADD, MULTIPLY, MAP)
POOLS = (MAX_POOL, REDUCE_MAX, AVERAGE_POOL)
COLUMNS = 24
WORK = COLUMNS - 1  # of CONVOLUTION and DENSE: vector operations for a block of images, or for one image
MOVE = 6  # columns of a move

# The functions of MAP; some have parameters.
FUNCTIONS = (
    *("relu", "leaky_relu", "elu", "selu", "sigmoid", "hard_sigmoid", "tanh", "softplus", "softsign", "silu"),
    *("hard_silu", "gelu", "exponential", "mish"),
)
