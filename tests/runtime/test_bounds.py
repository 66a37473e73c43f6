"""Plans are proved safe before they run; networks that ask for too much are refused, and odd ones run right."""

import pickle
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcomp import errors, runtime
from deepcomp.dcz import codes, container, kinds
from deepcomp.dcz.limits import Limits
from deepcomp.dcz.network import SharedWeight, output_shapes
from deepcomp.runtime import bounds, rows
from deepcomp.runtime import plan as planning
from deepcomp.runtime.kernels import MAX_BLOCKS, WIDTH
from deepcomp.runtime.lowering import lower
from deepcomp.runtime.plan import Plan
from tests.clock import seconds
from tests.runtime.networks import conv, dense, kernel, network, recurrent

# A network with every kind of step.
PLAN = Plan.of(
    network(
        (7, 6, 2),
        conv(5, 2, padding="same"),
        ("LeakyReLU", {}),
        ("MaxPooling2D", {"pool_size": (3, 3), "strides": (2, 2), "padding": "same"}),
        conv(5, 5, padding="same"),
        ("Add", {"inputs": (4, 3)}),
        conv(5, 5, padding="same", strides=(2, 2)),
        ("GlobalAveragePooling2D", {"keepdims": True}),
        ("Multiply", {"inputs": (3, 7)}),
        ("Add", {"inputs": (3, 8)}),
        ("Flatten", {}),
        dense(20, 60),
        ("Softmax", {}),
        ("Reshape", {"target_shape": (5, 4)}),
        recurrent("LSTM", 3, 4, 4),
    )
)
# What some operations do not read, and the strides and margins of windows, which are cut at the edges of a map.
UNREAD = {"op", "work", "low", "high", "shift", "function", "parameters", "pool", "per_group", "group_step"}
UNREAD |= {"recurrent_parameters"}
UNREAD |= {"window_y", "window_x", "stride_y", "stride_x", "top", "left"}
PROGRAM_UNREAD = {"batched": {"phases", "phase", "odd", "tile"}, "single": {"step_x"}}


def columns(name):
    for line, row in enumerate(getattr(PLAN, name).steps.tolist()):
        step = rows.step_of(row)
        one = {"pitch"} if getattr(step, "rows", 2) == 1 else set()  # no step to the next
        one |= {"phase"} if getattr(step, "phases", 2) == 1 else set()
        one |= {"plane"} if getattr(step, "maps", 2) == 1 else set()
        one |= {"addend_plane", "addend_pitch"} if getattr(step, "addend", 0) == -1 else set()
        for column, field in enumerate(step._fields):
            if field not in UNREAD | PROGRAM_UNREAD[name] | one:
                yield name, line, column


COLUMNS = [*columns("batched"), *columns("single")]


def test_every_operation_is_proved():
    found = {row[0] for name in ("batched", "single") for row in getattr(PLAN, name).steps.tolist()}
    assert {rows.INPUT, rows.OUTPUT, rows.MAP, rows.ADD, rows.MULTIPLY, rows.SOFTMAX, rows.MAX_POOL} <= found
    assert {rows.AVERAGE_POOL, rows.CONVOLUTION, rows.DENSE, rows.CELL, rows.CLEAR} <= found
    for program in (PLAN.batched, PLAN.single):
        steps = [rows.step_of(row) for row in program.steps.tolist()]
        assert any(step.addend >= 0 for step in steps if step.op == rows.CONVOLUTION)


@given(st.sampled_from(COLUMNS), st.sampled_from([2**20, 2**31, 2**40, -(2**20), -(2**40)]))
def test_a_step_that_reaches_far_away_is_refused(where, value):
    name, line, column = where
    program = getattr(PLAN, name)
    steps = program.steps.copy()
    steps[line, column] = value
    changed = replace(PLAN, **{name: replace(program, steps=steps)})
    with pytest.raises(errors.FormatError, match="cannot be proved safe"):
        bounds.prove(changed)


@given(st.integers(0, len(PLAN.moves) - 1), st.sampled_from(["target", "count"]), st.sampled_from([2**30, -(2**30)]))
def test_a_move_that_reaches_far_away_is_refused(line, field, value):
    moves = PLAN.moves.copy()
    moves[line, rows.Move._fields.index(field)] = value
    with pytest.raises(errors.FormatError, match="cannot be proved safe"):
        bounds.prove(replace(PLAN, moves=moves))


def outputs(network, count=17):
    engine = runtime.prepare(network, threads=1)
    images = np.random.default_rng(1).standard_normal((count, *engine.input_shape)).astype(np.float32)
    together = engine(images)
    assert np.allclose(together, np.concatenate([engine(image[None]) for image in images]), atol=1e-5)
    return images, together


def test_maps_that_are_joined_against_their_order_in_memory():
    """Once, a pooling read the joined maps as if they lay in the order of their channels, and beyond its arena."""
    joined = network(
        (4, 4, 1),
        ("LeakyReLU", {"negative_slope": 1.0}),
        ("ELU", {"inputs": (0,)}),
        ("Concatenate", {"inputs": (2, 1)}),
        ("MaxPooling2D", {}),
    )
    images, found = outputs(joined)
    both = np.concatenate([np.where(images > 0, images, np.expm1(images)), images], axis=-1)
    assert np.allclose(found, both.reshape(-1, 2, 2, 2, 2, 2).max(axis=(2, 4)), atol=1e-5)


@pytest.mark.parametrize("count", [1, 17])
@pytest.mark.parametrize("kind", ["Average", "Max"])
def test_a_window_far_wider_than_a_map_takes_no_longer(kind, count):
    options = {"pool_size": (1, 2**31 - 1), "strides": (1, 3), "padding": "same"}
    images, found = outputs(network((2, 7, 3), (f"{kind}Pooling2D", options)), count)
    whole = images.max(axis=2) if kind == "Max" else images.mean(axis=2)
    np.testing.assert_allclose(found, np.repeat(whole[:, :, None], 3, axis=2), rtol=1e-5, atol=1e-6)


def test_a_window_wholly_in_the_margins_leaves_the_bias():
    kernel = SharedWeight(np.ones(1, np.float32), np.ones((2, 2, 3, 2), np.uint8))
    weights = {"kernel": kernel, "bias": np.array([0.5, -1], np.float32)}
    options = {"filters": 2, "kernel_size": (2, 2), "dilation_rate": (2, 2), "padding": "same"}
    _, found = outputs(network((1, 1, 3), ("Conv2D", options, weights)))
    assert np.array_equal(found.reshape(-1, 2), np.tile([0.5, -1], (17, 1)))


def test_a_thousand_views_of_views():
    turned = [("Permute", {"dims": (2, 1)}) for _ in range(999)]
    images, found = outputs(network((2, 3), *turned, ("Reshape", {"target_shape": (6,)})))
    assert np.array_equal(found, images.transpose(0, 2, 1).reshape(-1, 6))


@pytest.mark.parametrize(
    ("shape", "found", "message"),
    [
        ((1, 1, 1), ("ZeroPadding2D", {"padding": ((5000, 5000), (5000, 5000))}), "max_memory"),
        (
            (300, 300, 1),
            ("MaxPooling2D", {"pool_size": (300, 300), "strides": (1, 1), "padding": "same"}),
            "max_work",
        ),
        ((28, 28, 1), conv(1, 1, padding="same", strides=(1, 2**28)), "max_memory"),
        ((2**20, 1), recurrent("LSTM", 1, 1, 4), "max_work"),
        ((2**16, 1), recurrent("GRU", 100, 1, 3), "max_work"),
        ((2**20, 1, 1), ("TimeDistributed", {"layer": kinds.Inner("MaxPooling1D", {"pool_size": (1,)})}), "max_work"),
        ((2**14, 1), ("Attention", {"inputs": (0, 0)}), "max_memory"),
    ],
)
def test_a_small_network_that_asks_for_much_is_refused(shape, found, message):
    with pytest.raises(errors.FormatError, match=f"give load a larger {message}"):
        runtime.prepare(network(shape, found))


def test_limits_follow_from_the_size_of_a_file_and_from_arguments():
    assert Limits.of(100) == (2**30 + 100 * 2**14, 2**32 + 100 * 2**17)
    assert Limits.of(100, 5, 6) == (5, 6)
    for wrong in (0, -1, 1.5, True, "1"):
        with pytest.raises(errors.RecipeError, match="max_memory="):
            Limits.of(100, wrong)


def test_planning_takes_no_more_memory_than_it_says():
    """Limits are checked before the memory is taken, so the estimate must not be too low."""
    rng = np.random.default_rng(0)
    window = SharedWeight(np.ones(1, np.float32), (rng.random((90, 90, 4, 1)) < 0.1).astype(np.uint8))
    plain = {"kernel": rng.standard_normal((700, 300)).astype(np.float32), "bias": np.zeros(300, np.float32)}
    image = (90, 90, 8)
    for one in (
        network(image, ("LeakyReLU", {}), ("ELU", {})),
        network(image, ("Permute", {"dims": (2, 1, 3)}), ("ELU", {}), ("Permute", {"dims": (3, 1, 2)}), ("ELU", {})),
        network(image, ("Permute", {"dims": (2, 1, 3)}), ("Add", {"inputs": (0, 1)}), ("Softmax", {})),
        network(image, ("ELU", {}), ("Concatenate", {"inputs": (0, 1)}), ("MaxPooling2D", {"pool_size": (2, 2)})),
        network(image, conv(8, 8, padding="same"), conv(8, 8, padding="same", strides=(2, 2)), ("ELU", {})),
        network(
            (91, 91, 4), ("Conv2D", {"filters": 1, "kernel_size": (90, 90), "use_bias": False}, {"kernel": window})
        ),
        network((700,), ("Dense", {"units": 300}, plain)),
        network((2000,), dense(500, 2000)),
        network((4000,), ("Dense", {"units": 1000, "use_bias": False}, {"kernel": kernel(4000, 1000, density=0)})),
    ):
        plan, graph = Plan.of(one), lower(one, Limits.of(2**30))
        outputs = max(map(planning._output_bytes, (output_shapes(one), [node.shape for node in graph.nodes])))
        said = outputs + planning._kernel_bytes(one) + planning._MOVE_BYTES * len(plan.moves)
        tracemalloc.start()
        Plan.of(one)
        taken = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert said / 6 < taken < said


def chain(count):
    """The file of so many layers without options."""
    body = (
        container.MAGIC + b"\2\1" + b"\0\0" + codes.varint(count - 1) + b"\x1d\0" * count + b"\1n" + b"\0" * (count + 1)
    )
    return body + zlib.crc32(body).to_bytes(4, "little")


def ones(inputs, units):
    """The file of a Dense without a pruned weight, whose indices take no bits."""
    weights = {"kernel": SharedWeight(np.ones(1, np.float32), np.ones((inputs, units), np.uint8))}
    return container.dumps(network((inputs,), ("Dense", {"units": units, "use_bias": False}, weights)), "huffman")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # 33 bytes: 2^24 outputs of a Dense. Once they took 19 s and 2.8 GB.
        (bytes.fromhex("44435a02000000000104ffffff0700016e000007003c0180808008d0a8fe219f5d"), "max_memory"),
        (chain(16_000), "max_work"),
        (chain(65_535), "max_work"),
        (ones(2**24, 1), "max_memory"),
    ],
    ids=["outputs", "16,000 layers", "65,535 layers", "inputs"],
)
def test_a_bomb_is_refused_soon(data, message, tmp_path):
    (tmp_path / "a.dcz").write_bytes(data)
    with pytest.raises(errors.FormatError):  # compiles
        runtime.load(tmp_path / "a.dcz")
    with seconds() as taken, pytest.raises(errors.FormatError, match=message) as caught:
        runtime.load(tmp_path / "a.dcz")
    assert taken[0] < 1
    assert "\n" not in str(caught.value)


def test_many_equal_weights_of_a_small_file_take_a_byte_each(tmp_path):
    """Once, 16 million weights in 50 bytes took more memory than such a file may, since planning listed each."""
    (tmp_path / "a.dcz").write_bytes(ones(2**12, 2**12))
    engine = runtime.load(tmp_path / "a.dcz")
    assert engine.weight_bytes < 1.01 * 2**24
    assert (engine(np.full((1, 2**12), 0.5, np.float32)) == 2**11).all()
    with seconds() as taken, pytest.raises(errors.FormatError, match="max_memory"):
        runtime.load(tmp_path / "a.dcz", max_memory=2**28)
    assert taken[0] < 1


def test_arenas_of_many_threads_and_blocks_stay_within_the_limit():
    """Once, each thread took an arena of several blocks of images, whatever the limit."""
    wide = network((20_000,), ("LeakyReLU", {}), dense(10, 20_000))
    images = np.random.default_rng(0).standard_normal((300, 20_000)).astype(np.float32)
    plan = Plan.of(wide)
    expected = runtime.Engine(plan, threads=1)(images)
    common, block = 4 * WIDTH * plan.batched.size, 4 * WIDTH * plan.batched.block
    for blocks, arenas in ((MAX_BLOCKS, 4), (2, 1), (1, 1)):
        memory = arenas * (common + blocks * block) + 2**16  # and some for scratch memory
        engine = runtime.Engine(replace(plan, limits=Limits(memory, 2**40)), threads=8)
        assert np.allclose(engine(images), expected, atol=1e-4)
        assert engine._batched.bytes <= memory
        assert (engine._batched.blocks, engine._batched.most_arenas) == (blocks, arenas)


def test_images_run_one_by_one_where_a_block_of_them_is_too_large():
    deep = network((64, 64, 4), conv(4, 4, padding="same", dilation_rate=(40, 40)))  # of wide margins
    memory = 2_000_000  # for planning and for an image, but not for a block of them
    plan = Plan.of(deep, Limits.of(0, memory))
    assert plan.batched is None
    engine = runtime.Engine(plan, threads=2)
    images = np.random.default_rng(0).standard_normal((9, 64, 64, 4)).astype(np.float32)
    assert np.allclose(engine(images), runtime.prepare(deep, threads=1)(images), atol=1e-5)


def test_a_copy_of_an_engine_has_its_limits(tmp_path):
    """Once, an engine that was loaded with larger limits could not be copied: the copy had those of its file's size."""
    container.save(
        network((900, 900, 1), ("LeakyReLU", {}), ("ELU", {}), ("GlobalMaxPooling2D", {})), tmp_path / "big.dcz"
    )
    with pytest.raises(errors.FormatError, match="The network needs more than"):
        runtime.load(tmp_path / "big.dcz", max_memory=2**20)
    engine = runtime.load(tmp_path / "big.dcz", threads=1, max_memory=2**40, max_work=2**50)
    copied = pickle.loads(pickle.dumps(engine))
    assert copied._plan.limits == engine._plan.limits == (2**40, 2**50)


def bare_kernel(*shape):
    return {"kernel": np.zeros(shape, np.float32), "bias": np.zeros(shape[-1], np.float32)}


MANY_STEPS = {
    "candidates of a maximum": ((2**20, 1), "AdaptiveMaxPooling1D", {"output_size": (1,)}, {}),
    "terms of a mean": ((2**20, 1), "AdaptiveAveragePooling1D", {"output_size": (1,)}, {}),
    "frames of a pooling": (
        (2**15, 1, 1, 1),
        "MaxPooling3D",
        {"pool_size": (2**15, 1, 1), "strides": (1, 1, 1), "padding": "same"},
        {},
    ),
    "frames of a convolution": (
        (2**15, 1, 1, 1),
        "Conv3D",
        {"filters": 1, "kernel_size": (1, 1, 1)},
        bare_kernel(1, 1, 1, 1, 1),
    ),
    "views of frames": (
        (1024, 16, 16, 1),
        "Conv3D",
        {"filters": 1, "kernel_size": (1024, 1, 1), "padding": "same"},
        bare_kernel(1024, 1, 1, 1, 1),
    ),
    "residues": (
        (1, 1, 1),
        "Conv2DTranspose",
        {"filters": 1, "kernel_size": (1, 1), "strides": (3000, 3000)},
        bare_kernel(1, 1, 1, 1),
    ),
    "residues of a large kernel": (
        (1, 1, 1),
        "Conv2DTranspose",
        {"filters": 1, "kernel_size": (2000, 2000), "strides": (500, 500)},
        bare_kernel(2000, 2000, 1, 1),
    ),
}


@pytest.mark.parametrize("case", MANY_STEPS)
def test_a_layer_that_becomes_many_steps_is_refused_soon(case):
    """Steps and views count as they are made: one layer may need millions."""
    shape, kind, options, weights = MANY_STEPS[case]
    one = network(shape, (kind, dict(options), weights))
    with seconds() as taken, pytest.raises(errors.FormatError, match="over the limit of"):
        Plan.of(one, Limits.of(100))
    assert taken[0] < 1
