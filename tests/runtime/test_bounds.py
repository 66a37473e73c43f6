"""Plans are proved safe before they run; networks that ask for too much are refused, and odd ones run right."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcomp import errors, runtime
from deepcomp.dcz.network import Layer, Network, SharedWeight
from deepcomp.runtime import bounds, rows
from deepcomp.runtime.limits import Limits
from deepcomp.runtime.plan import Plan

# Columns that do not say where a kernel reads or writes, or that a plan may leave unread: with one row, group or map
# the step to the next is never taken, and windows are cut at the edges of a map.
HARMLESS = {"op", "work", "function", "parameters", "low", "high", "pool", "top", "moves", "first_move", "shift"}
HARMLESS |= {"group_step", "odd", "phase", "phases", "step_x", "per_group", "plane", "pitch", "source_plane", "left"}
HARMLESS |= {"window_y", "window_x", "stride_y", "stride_x", "source_pitch", "weights"}


def network(shape, *found):
    """A network of (kind, options, inputs, weights) in a row; the inputs are those before unless they are given."""
    layers = [Layer("InputLayer", "image")]
    for number, (kind, options, inputs, weights) in enumerate(found):
        layers.append(Layer(kind, f"{kind}_{number}", inputs or (number,), options, weights))
    return Network("network", shape, tuple(layers))


def layer(kind, inputs=(), weights=None, **options):
    return kind, options, inputs, weights or {}


def convolution(inputs=(), *, channels, filters, size=(3, 3), **options):
    indices = np.random.default_rng(0).integers(0, 3, (*size, channels, filters)).astype(np.uint8)
    weights = {
        "kernel": SharedWeight(np.array([-0.5, 0.25], np.float32), indices),
        "bias": np.ones(filters, np.float32),
    }
    return layer("Conv2D", inputs, weights, filters=filters, kernel_size=size, **options)


def everything():
    """A network with every kind of step."""
    kernel = np.linspace(-1, 1, 30 * 20, dtype=np.float32).reshape(30, 20)
    return network(
        (7, 6, 2),
        convolution(channels=2, filters=5, padding="same"),
        layer("LeakyReLU"),
        layer("MaxPooling2D", pool_size=(3, 3), strides=(2, 2), padding="same"),
        convolution(channels=5, filters=5, padding="same", strides=(2, 2)),
        layer("GlobalAveragePooling2D", keepdims=True),
        layer("Multiply", (3, 5)),
        layer("Add", (3, 6)),
        layer("Flatten"),
        layer("Dense", (), {"kernel": np.tile(kernel, (2, 1)), "bias": np.ones(20, np.float32)}, units=20),
        layer("Softmax"),
    )


PLAN = Plan.of(everything())
COLUMNS = [
    (name, line, column)
    for name in ("batched", "single")
    for line, row in enumerate(getattr(PLAN, name).steps.tolist())
    for column, field in enumerate(rows.step_of(row)._fields)
    if field not in HARMLESS
]


def test_every_operation_is_proved():
    found = {row[0] for name in ("batched", "single") for row in getattr(PLAN, name).steps.tolist()}
    assert {rows.INPUT, rows.OUTPUT, rows.MAP, rows.ADD, rows.MULTIPLY, rows.SOFTMAX, rows.MAX_POOL} <= found
    assert {rows.AVERAGE_POOL, rows.CONVOLUTION, rows.DENSE} <= found


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
        layer("LeakyReLU", negative_slope=1.0),
        layer("ELU", (0,)),
        layer("Concatenate", (2, 1)),
        layer("MaxPooling2D"),
    )
    images, found = outputs(joined)
    both = np.concatenate([np.where(images > 0, images, np.expm1(images)), images], axis=-1)
    assert np.allclose(found, both.reshape(-1, 2, 2, 2, 2, 2).max(axis=(2, 4)), atol=1e-5)


def test_a_window_wholly_in_the_margins_leaves_the_bias():
    kernel = SharedWeight(np.ones(1, np.float32), np.ones((2, 2, 3, 2), np.uint8))
    weights = {"kernel": kernel, "bias": np.array([0.5, -1], np.float32)}
    options = {"filters": 2, "kernel_size": (2, 2), "dilation_rate": (2, 2), "padding": "same"}
    _, found = outputs(network((1, 1, 3), layer("Conv2D", (), weights, **options)))
    assert np.array_equal(found.reshape(-1, 2), np.tile([0.5, -1], (17, 1)))


def test_a_thousand_views_of_views():
    turned = [layer("Permute", dims=(2, 1)) for _ in range(999)]
    images, found = outputs(network((2, 3), *turned, layer("Reshape", target_shape=(6,))))
    assert np.array_equal(found, images.transpose(0, 2, 1).reshape(-1, 6))


@pytest.mark.parametrize(
    ("shape", "found", "message"),
    [
        ((1, 1, 1), layer("ZeroPadding2D", padding=((5000, 5000), (5000, 5000))), "max_memory"),
        ((300, 300, 1), layer("MaxPooling2D", pool_size=(300, 300), strides=(1, 1), padding="same"), "max_work"),
        (
            (28, 28, 1),
            convolution(channels=1, filters=1, size=(1, 3), strides=(1, 2**28), padding="same"),
            "max_memory",
        ),
    ],
)
def test_a_small_network_that_asks_for_much_is_refused(shape, found, message):
    with pytest.raises(errors.FormatError, match=f"give load a larger {message}"):
        runtime.prepare(network(shape, found))


def test_limits_follow_from_the_size_of_a_file_and_from_arguments():
    assert Limits.of(100) == (2**30 + 100 * 2**14, 2**32 + 100 * 2**24)
    assert Limits.of(100, 5, 6) == (5, 6)
    for wrong in (0, -1, 1.5, True, "1"):
        with pytest.raises(errors.RecipeError, match="max_memory="):
            Limits.of(100, wrong)


def test_images_run_one_by_one_where_a_block_of_them_is_too_large():
    deep = network((64, 64, 4), convolution(channels=4, filters=4, padding="same"))
    memory = 24 * 2 * 64 * 64 * 4
    plan = Plan.of(deep, Limits.of(0, memory))
    assert plan.batched is None
    engine = runtime.Engine(plan, threads=2)
    images = np.random.default_rng(0).standard_normal((9, 64, 64, 4)).astype(np.float32)
    assert np.allclose(engine(images), runtime.prepare(deep, threads=1)(images), atol=1e-5)
