"""Plans: what becomes a step, where things lie, how the weights are kept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcomp.dcz import kinds
from deepcomp.runtime import lowering, moves, rows, vectors
from deepcomp.runtime.layout import Layout
from deepcomp.runtime.plan import Plan
from tests.runtime.networks import conv, dense, kernel, network, normalization


def operations(program):
    names = ("INPUT", "OUTPUT", "COPY", "CLEAR", "SCALE", "ADD", "DENSE", "CONVOLUTION", "SOFTMAX")
    numbers = {getattr(rows, name): name for name in names}
    return [numbers.get(step.op, step.op) for step in steps(program)]


def steps(program):
    return [rows.step_of(row) for row in program.steps.tolist()]


def test_every_kind_of_layer_is_lowered():
    assert {*lowering._LOWER} == {*kinds.KINDS} - {"InputLayer", "Variable"}
    tables = {"linear", "relu", "relu6", "softmax"}
    assert {*kinds.ACTIVATIONS} - tables <= {*rows.FUNCTIONS}


def test_a_chain_is_as_few_steps_as_can_be():
    chain = network(
        (28, 28, 1),
        conv(6, 1),
        normalization(6),
        ("ReLU", {}),
        ("MaxPooling2D", {}),
        ("Dropout", {}),
        conv(8, 6, activation="relu6"),
        ("AveragePooling2D", {}),
        ("Flatten", {}),
        dense(12, 200),
        normalization(12),
        ("Activation", {"activation": "relu"}),
        dense(10, 12, activation="softmax"),
    )
    for program in (Plan.of(chain).batched, Plan.of(chain).single):
        assert operations(program) == ["INPUT", "CONVOLUTION", "CONVOLUTION", "DENSE", "DENSE", "SOFTMAX", "OUTPUT"]
        assert program.tail == 3
        assert [step.pool for step in steps(program)[1:3]] == [vectors.MAX, vectors.AVERAGE]


def test_what_others_read_is_not_changed():
    kind, _, weights = normalization(4)
    add = ("Add", {"inputs": (1, 2, 3)})
    chosen = Plan.of(network((6, 6, 2), conv(4, 2), ("ReLU", {}), (kind, {"inputs": (1,)}, weights), add))
    assert operations(chosen.batched) == ["INPUT", "CONVOLUTION", "SCALE", "SCALE", "ADD", "ADD", "OUTPUT"]


def test_a_sum_is_part_of_the_convolution_that_comes_last():
    same = {"padding": "same"}
    layers = [conv(4, 2, **same), conv(4, 4, **same), ("Add", {"inputs": (1, 2)}), ("ReLU", {})]
    chosen = Plan.of(network((6, 6, 2), *layers))
    for program in (chosen.batched, chosen.single):
        assert operations(program) == ["INPUT", "CONVOLUTION", "CONVOLUTION", "OUTPUT"]
        first, second = steps(program)[1:3]
        assert first.addend == -1
        assert second.addend == first.target + first.top * first.pitch
        assert (second.addend_plane, second.addend_pitch) == (first.plane, first.pitch)
        assert chosen.constants[second.low] == 0
    beside = [conv(4, 2, **same), conv(4, 2, inputs=(0,), **same), ("Add", {"inputs": (2, 1)})]
    assert operations(Plan.of(network((6, 6, 2), *beside)).single) == ["INPUT", "CONVOLUTION", "CONVOLUTION", "OUTPUT"]


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param([conv(2, 2, 1, activation="relu"), ("Add", {"inputs": (1, 0)})], id="clamped before"),
        pytest.param([conv(2, 2, 1), ("Add", {"inputs": (1, 0)}), ("Add", {"inputs": (1, 2)})], id="read by another"),
        pytest.param([conv(2, 2, 1), ("Activation", {"activation": "tanh", "inputs": (0,)}),
                      ("Add", {"inputs": (1, 2)})], id="known later"),
        pytest.param([conv(2, 2, 1), ("GlobalAveragePooling2D", {"keepdims": True, "inputs": (0,)}),
                      ("Add", {"inputs": (1, 2)})], id="repeated"),
        pytest.param([conv(2, 2, 1), ("Subtract", {"inputs": (1, 0)})], id="a difference"),
    ],
)  # fmt: skip
def test_other_sums_are_steps_of_their_own(layers):
    chosen = Plan.of(network((6, 6, 2), *layers))
    assert all(step.addend == -1 for step in steps(chosen.single) if step.op == rows.CONVOLUTION)
    assert any(step.op in rows.MERGES for step in steps(chosen.single))


def test_what_follows_a_sum_in_a_convolution_stays_after_it():
    def after_a_sum(layer):
        return Plan.of(network((6, 6, 2), conv(2, 2, 1), ("Add", {"inputs": (1, 0)}), layer))

    assert operations(after_a_sum(normalization(2)).batched) == ["INPUT", "CONVOLUTION", "SCALE", "OUTPUT"]
    pooled = after_a_sum(("MaxPooling2D", {}))
    assert operations(pooled.batched) == ["INPUT", "CONVOLUTION", rows.MAX_POOL, "OUTPUT"]


def test_a_sum_with_a_map_in_phases_is_a_step_in_place():
    layers = [
        conv(4, 2, padding="same"),
        conv(4, 2, padding="same", inputs=(0,)),
        conv(3, 4, strides=(2, 2), inputs=(1,)),
        ("Add", {"inputs": (1, 2)}),
        ("Flatten", {"inputs": (3,)}),
        ("Flatten", {"inputs": (4,)}),
        ("Concatenate", {"inputs": (5, 6)}),
    ]
    chosen = Plan.of(network((8, 8, 2), *layers))
    assert "ADD" not in operations(chosen.batched)
    assert operations(chosen.single).count("ADD") == 1


def test_a_map_of_many_phases_is_cleared_at_once():
    found = Plan.of(network((4, 4, 3), ("MaxPooling2D", {"pool_size": (2, 2), "strides": (1, 1)}),
                            conv(4, 3, padding="same", strides=(1, 65537))))  # fmt: skip
    (step,) = (step for step in steps(found.single) if step.op == rows.CLEAR)
    assert (step.rows, step.first, step.size) == (0, step.plane, step.plane)


def test_margins_alone_are_cleared():
    """Of each phase, what is before its first row, between its rows, and after its last."""
    for margins, phases, gap in (
        ((1, 1, 1, 1), (1, 1), 0),
        ((1, 1, 1, 1), (1, 1), 3),
        ((0, 0, 2, 1), (1, 1), 0),
        ((0, 1, 2, 0), (2, 2), 0),
        ((3, 0, 0, 3), (1, 2), 0),
        ((1, 0, 0, 0), (3, 3), 0),
    ):
        grid = (5, 4, 2)
        layout = Layout.of(grid, margins, phases, gap)
        places = np.zeros(layout.plane * 2, int)
        for offset, size, first, lines, width in layout.gaps(grid):
            for channel in range(2):
                own = np.ones(size, int)
                for line in range(lines):
                    own[first + line * layout.pitch :][:width] = 0
                start = channel * layout.plane + offset
                places[start : start + size] += own
        if phases != (3, 3):
            places[layout.places(grid)] += 1
        assert (places == 1).all()


def test_strides_make_phases_for_one_image_only():
    strided = network((9, 9, 2), conv(4, 2, strides=(2, 2), padding="same"), conv(3, 4, strides=(2, 2)))
    chosen = Plan.of(strided)
    assert operations(chosen.batched) == ["INPUT", "CONVOLUTION", "CONVOLUTION", "OUTPUT"]
    assert operations(chosen.single) == ["INPUT", "CONVOLUTION", "CONVOLUTION", "OUTPUT"]  # it writes to phases itself
    third = Plan.of(network((9, 9, 2), conv(4, 2, padding="same"), conv(3, 4, strides=(3, 3))))
    assert operations(third.single) == ["INPUT", "CONVOLUTION", "COPY", "CONVOLUTION", "OUTPUT"]
    assert steps(chosen.batched)[1].step_x == 2
    assert len(chosen.weights) == 2


def test_rows_are_as_far_apart_as_in_the_map_that_is_written_from_them():
    """Then no row is copied; margins are the gaps between rows, or a convolution reads no further than needed."""
    same = {"padding": "same"}
    block = conv(4, 2, **same), conv(4, 4, 1), conv(4, 4, **same), ("GlobalAveragePooling2D", {})
    chosen = steps(Plan.of(network((8, 8, 2), *block)).single)
    first, second, third, pool = (step for step in chosen if step.op in (rows.CONVOLUTION, *rows.POOLS))
    assert [step.step_y for step in (first, second, third)] == [9, 9, 9]
    assert [step.pitch for step in (first, second, third)] == [9, 9, 8]
    assert (pool.height, pool.width, pool.rows, pool.columns) == (1, 64, 1, 1)  # a map is a row
    # Sixteen channels with gaps would cost more than four whose rows are copied.
    wide = conv(16, 2, 1), conv(4, 16, 1), conv(4, 4, **same), ("Flatten", {}), dense(2, 256)
    chosen = steps(Plan.of(network((8, 8, 2), *wide)).single)
    assert [step.pitch for step in chosen if step.op == rows.CONVOLUTION] == [8, 9, 8]
    narrow = conv(4, 2, **same), conv(4, 4, 1), conv(4, 4, **same)
    chosen = steps(Plan.of(network((4, 4, 2), *narrow)).single)
    assert [step.pitch for step in chosen if step.op == rows.CONVOLUTION] == [4, 5, 4]


def test_rows_are_as_far_apart_as_a_row_has_windows():
    """Margins on both sides share their places, and a window of one column stands on each of them."""
    padded = network((4, 6, 2), ("ZeroPadding2D", {"padding": ((0, 0), (3, 3))}), conv(3, 2, 1), conv(2, 3, 1))
    for program in (Plan.of(padded).batched, Plan.of(padded).single):
        first, second = (step for step in steps(program) if step.op == rows.CONVOLUTION)
        assert (first.width, first.step_y, first.pitch, second.step_y) == (12, 12, 12, 12)


def test_views_move_nothing():
    turned = network(
        (4, 6, 2),
        ("Permute", {"dims": (3, 1, 2)}),
        ("Reshape", {"target_shape": (8, 6)}),
        ("Flatten", {}),
        dense(3, 48),
    )
    assert operations(Plan.of(turned).batched) == ["INPUT", "DENSE", "OUTPUT"]
    padded = network((4, 6, 2), ("ZeroPadding2D", {}), ("ZeroPadding2D", {}), conv(3, 2))
    assert operations(Plan.of(padded).batched) == ["INPUT", "CONVOLUTION", "OUTPUT"]
    joined = network((4, 6, 2), ("Concatenate", {"inputs": (0, 0)}), ("Flatten", {}))
    assert operations(Plan.of(joined).batched) == ["INPUT", "OUTPUT"]


def test_a_window_that_fits_once_is_a_dense_layer():
    assert operations(Plan.of(network((3, 3, 2), conv(4, 2))).batched) == ["INPUT", "DENSE", "OUTPUT"]
    same = Plan.of(network((1, 1, 2), conv(4, 2, padding="same")))
    assert operations(same.batched) == ["INPUT", "DENSE", "OUTPUT"]
    middle = np.count_nonzero(kernel(3, 3, 2, 4).indices[1, 1])  # all others are over the edge
    assert len(same.weights[0].packed.entries()[2]) == middle


@pytest.mark.parametrize(("centroids", "kind"), [(256, np.uint8), (257, np.uint16), (3000, np.float32)])
def test_weights_are_kept_as_small_as_can_be(centroids, kind):
    weights = {"kernel": kernel(40, 60, centroids=centroids), "bias": np.zeros(60, np.float32)}
    chosen = Plan.of(network((40,), ("Dense", {"units": 60}, weights)))
    nonzero = np.count_nonzero(weights["kernel"].indices)
    assert chosen.weights[0].packed.values.dtype == kind
    assert chosen.weights[0].packed.taps.dtype == np.uint16
    assert chosen.weight_bytes == chosen.weights[0].packed.nbytes + chosen.constants.nbytes
    assert len(chosen.weights[0].packed.entries()[2]) == nonzero


def test_a_small_layer_is_packed_whole_for_one_image():
    """A large one stays in tiles for one image too: its weights are in memory once."""
    small = Plan.of(network((600,), dense(20, 600)))
    assert [weights.packed.tiles for weights in small.weights] == [3, 1]
    assert (steps(small.batched)[1].weights, steps(small.single)[1].weights) == (0, 1)
    large = Plan.of(network((600,), dense(200, 600)))
    assert [weights.packed.tiles for weights in large.weights] == [3]


def test_memory_is_used_again():
    """A deep network of wide layers needs little more than its two largest."""
    deep = Plan.of(network((16, 16, 8), *[conv(8, 8, activation="tanh", padding="same") for _ in range(20)]))
    assert deep.batched.size <= 3 * 18 * 18 * 8
    assert operations(deep.batched).count("CLEAR") == 20  # margins that others may have written to
    small = Plan.of(network((16, 16, 8), conv(8, 8, padding="same"), conv(8, 8, padding="same")))
    assert "CLEAR" not in operations(small.batched)


def moves_of(target, source, other, bases=(0,), common=0):
    """Places before allocation, but for `other`."""
    return moves.list_moves(target, source, other, (True, True, False), np.array(bases), common)


@given(st.lists(st.tuples(st.integers(1, 2), st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=40))
def test_moves_reach_every_place_once(steps):
    target, source, other = np.cumsum(np.array(steps), axis=0).T
    shuffle = np.random.default_rng(0).permutation(len(target))
    found = moves_of(target[shuffle], source[shuffle], other[shuffle])
    assert found.dtype == np.int32
    reached = [
        (at + i, of + i * step, also + i * other_step)
        for at, of, also, step, other_step, count in found.tolist()
        for i in range(count)
    ]
    assert reached == list(zip(target.tolist(), source.tolist(), other.tolist(), strict=True))


def test_a_move_stays_in_one_region():
    """A kernel looks at the first place of a move alone: it would miss the offset of a block in the others."""
    source = 2**moves.BUFFER_BITS + np.arange(5)
    found = moves_of(np.arange(5), source, np.zeros(5, int), bases=(7, 9), common=10)
    assert found.tolist() == [[7, 9, 0, 1, 0, 1], [8, 10, 0, 1, 0, 2], [10, 12, 0, 1, 0, 2]]


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_buffers_share_no_place_while_they_are_used(buffers):
    sizes, first, length = np.array(buffers, np.int64).T
    low, last = moves.first_fit(sizes, first.copy(), first + length, 5), first + length
    assert low.min() == 5
    for i in range(len(buffers)):
        for j in range(i):
            apart = last[i] < first[j] or last[j] < first[i]
            assert apart or low[i] + sizes[i] <= low[j] or low[j] + sizes[j] <= low[i]


def test_moves_are_few():
    """Rows of five out of rows of eight; a stride; a broadcast."""
    rows = (np.arange(4)[:, None] * 8 + np.arange(5)).ravel()
    assert moves_of(rows, np.arange(20), np.zeros(20, int)).tolist() == [
        [0, 0, 0, 1, 0, 5],
        [8, 5, 0, 1, 0, 5],
        [16, 10, 0, 1, 0, 5],
        [24, 15, 0, 1, 0, 5],
    ]
    assert moves_of(np.arange(9), np.arange(9) * 3, np.full(9, 4)).tolist() == [[0, 0, 4, 3, 0, 9]]
    assert moves_of(np.array([7]), np.array([2]), np.array([0])).tolist() == [[7, 2, 0, 1, 0, 1]]
