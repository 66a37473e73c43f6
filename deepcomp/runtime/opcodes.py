"""The steps of a plan by number, and what the columns of their rows say."""

# Steps and what the columns of their rows say, after the step itself. A move is a row of the table of moves: target,
# source, other, source step, other step, count. It goes from `count` places, the first one `source`, to as many
# neighbours from `target` on; `other` is a second source, with a step of its own. TAKE moves from an image, GIVE to an
# output. Constants go by their numbers: `low` and `high`, which clamp what comes out, scales, shifts, parameters.
(
    TAKE,  # first move, moves
    GIVE,  # first move, moves
    COPY,  # first move, moves
    CLEAR,  # place, size
    SCALE,  # first move, moves, low, high, shift - scale: other is the number of the scale
    ADD,  # first move, moves, low, high
    MULTIPLY,  # first move, moves, low, high
    MAP,  # first move, moves, function, parameters
    SOFTMAX,  # see `plan._Schedule._softmax`
    MAX_POOL,  # see `plan._Schedule._pool`; as in TensorFlow it passes NaN over and its least number is finite
    REDUCE_MAX,  # as MAX_POOL, but of NaN and -inf it makes NaN and -inf
    AVERAGE_POOL,
    CONVOLUTION,  # see `plan._Schedule._convolution`
    DENSE,  # see `plan._Schedule._dense`
) = range(14)
MOVERS = (TAKE, GIVE, COPY, SCALE, ADD, MULTIPLY, MAP)
POOLS = (MAX_POOL, REDUCE_MAX, AVERAGE_POOL)
COLUMNS = 24
WORK = COLUMNS - 1  # of CONVOLUTION and DENSE: vector operations for a block of images, or for an image
MOVE = 6  # columns of a move

# The functions of MAP, with parameters where they have some.
FUNCTIONS = (
    *("relu", "leaky_relu", "elu", "selu", "sigmoid", "hard_sigmoid", "tanh", "softplus", "softsign", "silu"),
    *("hard_silu", "gelu", "exponential", "mish"),
)
