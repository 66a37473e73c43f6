"""The tables of a plan: the operations, and the columns of every kind of row. Planner, CPU and GPU read them by name.

A row is a NamedTuple of integers, and the planner makes rows by name. The CPU's kernels get rows as `int64` arrays and
index them by column numbers: `row[POOL.height]`. A CUDA kernel gets a tuple and names it: `PoolStep(*row).height`. Both
compile to the same code as literal numbers would.
"""

from collections.abc import Sequence
from typing import NamedTuple

# The operations. INPUT reads an image, OUTPUT writes an output.
INPUT, OUTPUT, COPY, CLEAR, SCALE, ADD, MULTIPLY, SUBTRACT, MAXIMUM, MINIMUM, MAP = range(11)
SOFTMAX, NORMALIZE, MAX_POOL, REDUCE_MAX, AVERAGE_POOL, CONVOLUTION, DENSE, MATMUL, GATHER, CELL = range(11, 21)
# As in TensorFlow, MAX_POOL ignores NaN and -inf. REDUCE_MAX passes both on.
POOLS = (MAX_POOL, REDUCE_MAX, AVERAGE_POOL)
MERGES = (ADD, MULTIPLY, SUBTRACT, MAXIMUM, MINIMUM)  # they take two values
ELEMENTWISE = (INPUT, OUTPUT, COPY, SCALE, *MERGES, MAP)  # their rows are `MoveStep`

# What NORMALIZE makes of a row x with mean m: (x - m) / sqrt(mean((x - m)^2) + epsilon), x / sqrt(mean(x^2) + epsilon),
# and x / sqrt(max(sum(x^2), epsilon)).
CENTERED, ROOT_MEAN_SQUARE, UNIT_NORM = range(3)

# What CELL computes, and the gates of each. A GRU resets its state after a product with it, or before: then RESET comes
# before that product, and UPDATE after it.
SIMPLE, LSTM, GRU, RESET, UPDATE = range(5)
GATES = (1, 4, 3, 3, 3)
# A long sum is that of the sums of so many numbers each: one after the other, rounding errors of equal numbers add up.
SUMMED = 128
SCRATCH = 3  # floats for each lane of a row that softmax and normalization need

# The functions of MAP; some have parameters. DIFFERS is 1 where a number is not its parameter, else 0.
(
    RELU, LEAKY_RELU, ELU, SELU, SIGMOID, HARD_SIGMOID, TANH,
    SOFTPLUS, SOFTSIGN, SILU, HARD_SILU, GELU, EXPONENTIAL, MISH,
    CELU, HARD_TANH, HARD_SHRINK, SOFT_SHRINK, TANH_SHRINK, LOG_SIGMOID, SQUAREPLUS,
    SPARSE_PLUS, SPARSE_SIGMOID, DIFFERS, RECIPROCAL,
) = range(25)  # fmt: skip
FUNCTIONS = {
    "relu": RELU,
    "leaky_relu": LEAKY_RELU,
    "elu": ELU,
    "selu": SELU,
    "sigmoid": SIGMOID,
    "hard_sigmoid": HARD_SIGMOID,
    "tanh": TANH,
    "softplus": SOFTPLUS,
    "softsign": SOFTSIGN,
    "silu": SILU,
    "hard_silu": HARD_SILU,
    "gelu": GELU,
    "exponential": EXPONENTIAL,
    "mish": MISH,
    "celu": CELU,
    "hard_tanh": HARD_TANH,
    "hard_shrink": HARD_SHRINK,
    "soft_shrink": SOFT_SHRINK,
    "tanh_shrink": TANH_SHRINK,
    "log_sigmoid": LOG_SIGMOID,
    "squareplus": SQUAREPLUS,
    "sparse_plus": SPARSE_PLUS,
    "sparse_sigmoid": SPARSE_SIGMOID,
    "differs": DIFFERS,
    "reciprocal": RECIPROCAL,
}

# The rows of steps. Each begins with the columns of `Step`. `target` and `source` are places; `plane` and `pitch` are
# the places from one channel to the next and from one row to the next. Constants are given by number; `low` and `high`
# clamp a result.


class Step(NamedTuple):
    """What every step has: the operation, and its vector operations for a block of images, or for one image.

    `work` is 0 for steps that are not worth splitting among threads.
    """

    op: int
    work: int


class MoveStep(NamedTuple):
    """An elementwise operation on the elements that `moves` rows of the table of moves list, from `first_move` on.

    `shift` is the number of a shift minus that of its scale. `parameters` is the number of the first parameter of
    `function`.
    """

    op: int
    work: int
    first_move: int
    moves: int
    low: int = 0
    high: int = 0
    shift: int = 0
    function: int = 0
    parameters: int = 0


class ClearStep(NamedTuple):
    """Sets to 0 what is around `rows` rows of `width` places in each of `maps` maps of `size` places.

    The first row begins `first` places after its map; the maps are `plane` places apart, and the rows `pitch`. Without
    rows, `first` is the size.
    """

    op: int
    work: int
    target: int
    maps: int
    plane: int
    size: int
    first: int
    rows: int = 0
    pitch: int = 0
    width: int = 0


class SoftmaxStep(NamedTuple):
    """Softmax over the columns of each row; rows and columns lie side by side."""

    op: int
    work: int
    target: int
    source: int
    rows: int
    columns: int


class NormalizeStep(NamedTuple):
    """NORMALIZE of each row; rows and columns lie side by side. `epsilon` is the number of a constant."""

    op: int
    work: int
    target: int
    source: int
    rows: int
    columns: int
    kind: int
    epsilon: int


class MatmulStep(NamedTuple):
    """`batch` products of a `rows` x `inner` matrix and an `inner` x `columns` matrix; results lie side by side.

    `source_batch`, `source_row` and `source_inner` are the places from one matrix, row and column of the first factor
    to the next; `other_batch`, `other_inner` and `other_column` those of the second.
    """

    op: int
    work: int
    target: int
    source: int
    other: int
    batch: int
    rows: int
    inner: int
    columns: int
    source_batch: int
    source_row: int
    source_inner: int
    other_batch: int
    other_inner: int
    other_column: int


class GatherStep(NamedTuple):
    """For each of `positions` numbers, the row of a table with that number; NaN where there is no such row.

    `source_step`, `target_step`: places from one position to the next. `plane`: places from one column to the next.
    """

    op: int
    work: int
    weights: int
    target: int
    target_step: int
    plane: int
    source: int
    source_step: int
    positions: int


class CellStep(NamedTuple):
    """A step in time of a recurrent layer: CELL of kind `kind`, over `units` units.

    `previous` and `target` are its state before and after, `product` that of the state before with the recurrent
    kernel, which is overwritten, and `carry` the second state: in a GRU, what the state is multiplied by to be reset.
    `source` is the first gate of the input, `source_step` the places from one gate to the next. Where the number in
    place `mask` is 0, the states stay; there is no mask if it is -1. The functions are `rows.FUNCTIONS`, each with the
    number of its first parameter.
    """

    op: int
    work: int
    kind: int
    target: int
    previous: int
    product: int
    carry: int
    source: int
    source_step: int
    units: int
    mask: int
    function: int
    parameters: int
    recurrent_function: int
    recurrent_parameters: int


class PoolStep(NamedTuple):
    """Pooling of `channels` maps of `height` x `width` to maps of `rows` x `columns`.

    `top` and `left`: the padding before the first window.
    """

    op: int
    work: int
    target: int
    plane: int
    pitch: int
    source: int
    source_plane: int
    source_pitch: int
    channels: int
    height: int
    width: int
    rows: int
    columns: int
    window_y: int
    window_x: int
    stride_y: int
    stride_x: int
    top: int
    left: int


class ConvolutionStep(NamedTuple):
    """A convolution with an output of `height` x `width` before pooling of kind `pool` (see `vectors`).

    `source` is the corner of the first window; `step_y` and `step_x` are the places from one window to the next.
    `offsets` is the number of the first offset of a tap. `per_group`: output channels of a group; `group_step`: places
    between the inputs of two groups. `addend`: the first place of what is added before clamping, where nothing is
    pooled, or -1; `addend_plane` and `addend_pitch`: the places between its channels and between its rows.

    The last five columns serve one image alone. There, `target` is the start of the first channel, which is `top` rows
    above the first output row. The rows of a channel go in turn to `phases` maps, `phase` places apart. If `odd` is not
    0, every second column goes to another map, `odd` places after. `tile`: the rows, before pooling, that all channels
    are computed for before the next.
    """

    op: int
    work: int
    weights: int
    target: int
    plane: int
    pitch: int
    source: int
    step_y: int
    step_x: int
    height: int
    width: int
    pool: int
    low: int
    high: int
    offsets: int
    per_group: int
    group_step: int
    addend: int
    addend_plane: int
    addend_pitch: int
    top: int
    phases: int
    phase: int
    odd: int
    tile: int


class DenseStep(NamedTuple):
    """A dense layer of inputs that lie side by side."""

    op: int
    work: int
    weights: int
    target: int
    source: int
    low: int
    high: int


class Move(NamedTuple):
    """Reads `count` places, from `source` on and `step` apart, and writes as many side by side, from `target` on.

    `other` is the first element of a second operand, `other_step` the step between its elements.
    """

    target: int
    source: int
    other: int
    step: int
    other_step: int
    count: int


class WeightRow(NamedTuple):
    """The weights of a step on the CPU; arrays, scales and shifts by address (see `kernels`).

    The four columns from `tile` on belong to dense layers alone. Of a table, `tiles` is the number of rows and `units`
    that of columns. `inputs`: of each unit of a layer without pruned weights, which has no taps; else 0.
    """

    kind: int
    taps: int
    values: int
    codebook: int
    starts: int
    tiles: int
    units: int
    scale: int
    shift: int
    tile: int = 0
    span: int = 0
    counts: int = 0
    members: int = 0
    inputs: int = 0


class Launch(NamedTuple):
    """The parameters of `cpu.execute`, of a program and of how it runs; tables by address and number of rows.

    `floats`: the size of an arena; `scratch`: the index of its first float of scratch memory. `most_parts`: the most
    parts of a step; `part_work`: the vector operations that are worth a part. `wake_counter`: the address of the
    counter that wakes workers; `spins`: how often they read it before they sleep.
    """

    tail: int
    size: int
    block: int
    lanes: int
    blocks_a_task: int
    floats: int
    scratch: int
    input_floats: int
    output_floats: int
    most_parts: int
    part_work: int
    wake_counter: int
    spins: int
    steps: int
    steps_count: int
    weights: int
    weights_count: int
    constants: int
    constants_count: int
    moves: int
    moves_count: int
    offsets: int
    offsets_count: int


# The column numbers of each kind of row.
STEP = Step(*range(len(Step._fields)))
MOVE_STEP = MoveStep(*range(len(MoveStep._fields)))
CLEAR_STEP = ClearStep(*range(len(ClearStep._fields)))
SOFTMAX_STEP = SoftmaxStep(*range(len(SoftmaxStep._fields)))
NORMALIZE_STEP = NormalizeStep(*range(len(NormalizeStep._fields)))
MATMUL_STEP = MatmulStep(*range(len(MatmulStep._fields)))
GATHER_STEP = GatherStep(*range(len(GatherStep._fields)))
CELL_STEP = CellStep(*range(len(CellStep._fields)))
POOL = PoolStep(*range(len(PoolStep._fields)))
CONV = ConvolutionStep(*range(len(ConvolutionStep._fields)))
DENSE_STEP = DenseStep(*range(len(DenseStep._fields)))
MOVE = Move(*range(len(Move._fields)))
WEIGHT = WeightRow(*range(len(WeightRow._fields)))
LAUNCH = Launch(*range(len(Launch._fields)))

STEP_KINDS = {
    **dict.fromkeys(ELEMENTWISE, MoveStep),
    CLEAR: ClearStep,
    SOFTMAX: SoftmaxStep,
    NORMALIZE: NormalizeStep,
    MATMUL: MatmulStep,
    GATHER: GatherStep,
    CELL: CellStep,
    **dict.fromkeys(POOLS, PoolStep),
    CONVOLUTION: ConvolutionStep,
    DENSE: DenseStep,
}
STEP_COLUMNS = max(len(kind._fields) for kind in STEP_KINDS.values())


def step_of(row: Sequence[int]):
    """A row of the table of steps as the NamedTuple of its operation."""
    kind = STEP_KINDS[row[STEP.op]]
    return kind(*row[: len(kind._fields)])
