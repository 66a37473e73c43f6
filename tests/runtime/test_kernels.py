"""The hot loops against plain NumPy products, for throughput and for latency."""

import math

import numpy as np
import pytest
from numba import njit

from deepcomp.runtime import kernels, packing, rows
from deepcomp.runtime.packing import PackedConv, PackedDense, PackedFull, pack_conv, pack_dense, pack_single_tile
from deepcomp.runtime.vectors import AVERAGE, MAX, NONE, TILE_COLUMNS, WIDTH, pool_row, transpose_few
from tests.runtime.weights import packed_full, weights

INFINITE = (np.float32(-np.inf), np.float32(np.inf))
SPARE = 7.5  # what buffers hold before, so that a kernel that writes beside its target shows


def addresses(runs: PackedConv | PackedFull) -> tuple[int, ...]:
    if isinstance(runs, PackedFull):
        return runs.kind, 0, runs.values.ctypes.data, runs.codebook.ctypes.data, 0, 1, runs.taps
    arrays = (array.ctypes.data for array in (runs.taps, runs.values, runs.codebook, runs.starts))
    return runs.kind, *arrays, runs.tiles, 0


def padded(values: np.ndarray) -> np.ndarray:
    return np.pad(values.astype(np.float32), (0, -len(values) % WIDTH))


def cells_addresses(cells: PackedDense) -> tuple[int, ...]:
    names = ("taps", "values", "codebook", "starts", "counts", "members")
    arrays = (getattr(cells, name).ctypes.data for name in names)
    return cells.kind, *arrays, cells.units, cells.tiles, cells.tile, cells.span


def full_addresses(full: PackedFull) -> tuple[int, ...]:
    return full.kind, full.values.ctypes.data, full.codebook.ctypes.data, full.units, full.taps


def dense(
    cells: PackedDense | PackedFull, inputs: np.ndarray, scale: np.ndarray, shift: np.ndarray, clamp=INFINITE
) -> np.ndarray:
    """Outputs (blocks, units, WIDTH) of inputs (blocks, taps, WIDTH)."""
    blocks, taps, _ = inputs.shape
    room = -(-cells.units // WIDTH) * WIDTH
    target = np.full((blocks, room, WIDTH), SPARE, np.float32)
    scale, shift = padded(scale), padded(shift)
    spans = room // WIDTH if isinstance(cells, PackedFull) else -(-cells.units // cells.span)
    for first, last in ((0, spans // 2), (spans // 2, spans)):  # as two threads do it
        rest = (
            inputs.ctypes.data, taps * WIDTH, target.ctypes.data, room * WIDTH,
            scale.ctypes.data, shift.ctypes.data, *clamp,
        )  # fmt: skip
        if isinstance(cells, PackedFull):
            scratch = np.full(kernels.dense_full_scratch(cells), SPARE, np.float32)
            kernels.dense_full_lanes(first, last, blocks, *full_addresses(cells), *rest, scratch.ctypes.data)
        else:
            kernels.dense_lanes(first, last, blocks, *cells_addresses(cells), *rest)
    assert (target[:, cells.units :] == SPARE).all()
    return target[:, : cells.units]


def dense_single(
    cells: PackedDense | PackedFull, inputs: np.ndarray, scale: np.ndarray, shift: np.ndarray, clamp=INFINITE
) -> np.ndarray:
    """Outputs (units) of inputs (taps)."""
    room = -(-cells.units // WIDTH) * WIDTH
    target = np.full(room + 1, SPARE, np.float32)
    scale, shift = padded(scale), padded(shift)
    spans = room // WIDTH if isinstance(cells, PackedFull) else -(-cells.units // cells.span)
    for first, last in ((spans // 2, spans), (0, spans // 2)):
        rest = (inputs.ctypes.data, target.ctypes.data, scale.ctypes.data, shift.ctypes.data, *clamp)
        if isinstance(cells, PackedFull):
            kernels.dense_full_single(first, last, *full_addresses(cells), *rest)
        else:
            kernels.dense_single(first, last, *cells_addresses(cells), *rest)
    assert target[-1] == SPARE
    return target[: cells.units]


def check_dense(
    rng: np.random.Generator, units: int, taps: int, density: float, kind: str, blocks: int, pack=pack_dense
) -> PackedDense:
    arguments, matrix = weights(rng, units, taps, density, kind)
    cells = pack(*arguments)
    scale, shift = rng.uniform(-2, 2, (2, units)).astype(np.float32)
    inputs = rng.standard_normal((blocks, taps, WIDTH)).astype(np.float32)
    expected = matrix.astype(np.float64) @ inputs * scale[:, None] + shift[:, None]
    size = 1e-5 * math.sqrt(1 + density * taps)
    np.testing.assert_allclose(dense(cells, inputs, scale, shift), expected, rtol=1e-5, atol=size)
    clamp = (np.float32(0), np.float32(6))
    np.testing.assert_allclose(dense(cells, inputs, scale, shift, clamp), expected.clip(0, 6), rtol=1e-5, atol=size)
    image = np.ascontiguousarray(inputs[0, :, 0])
    np.testing.assert_allclose(dense_single(cells, image, scale, shift), expected[0, :, 0], rtol=1e-5, atol=size)
    np.testing.assert_allclose(
        dense_single(cells, image, scale, shift, clamp), expected[0, :, 0].clip(0, 6), rtol=1e-5, atol=size
    )
    return cells


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "short"])
@pytest.mark.parametrize(("units", "taps", "density", "blocks"), [(37, 50, 0.2, 3), (3, 700, 0.3, 9), (1, 1, 1.0, 1)])
def test_dense_equals_a_matrix_product(kind: str, units: int, taps: int, density: float, blocks: int) -> None:
    check_dense(np.random.default_rng(units), units, taps, density, kind, blocks)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "short"])
@pytest.mark.parametrize(("units", "taps", "blocks"), [(37, 50, 3), (4, 700, 9), (1, 1, 1), (2 * WIDTH + 6, 513, 4)])
def test_dense_without_pruned_weights(kind: str, units: int, taps: int, blocks: int) -> None:
    check_dense(np.random.default_rng(units), units, taps, 1.0, kind, blocks, packed_full)


@pytest.mark.parametrize("blocks", range(1, 12))
def test_dense_takes_any_number_of_blocks(blocks: int) -> None:
    check_dense(np.random.default_rng(blocks), 18, 40, 0.1, "uint8", blocks)


@pytest.mark.parametrize("pack", [pack_dense, pack_single_tile])
@pytest.mark.parametrize(("units", "taps", "density"), [(600, 300, 0.02), (300, 700, 0.3), (257, 1, 1.0)])
def test_units_of_several_spans(pack, units: int, taps: int, density: float) -> None:
    cells = check_dense(np.random.default_rng(units), units, taps, density, "short", 2, pack)
    spans = -(-units // 256)
    assert units <= spans * cells.span < units + spans * WIDTH  # even ones
    assert len(cells.counts) == len(cells.members) == spans * cells.span * cells.tiles


def test_few_weights_are_in_one_tile() -> None:
    cells = check_dense(np.random.default_rng(0), 200, 1000, 0.003, "uint8", 2)
    assert cells.tiles == 1
    assert (np.diff(cells.counts.astype(int)) <= 0).all()


def test_many_weights_are_tiled() -> None:
    cells = check_dense(np.random.default_rng(1), 256, 4000, 0.04, "short", 5)
    assert (cells.tiles, cells.tile) == (16, 250)
    weight = len(cells.entries()[2])
    slots = 16 * 256
    assert cells.nbytes < 3.25 * weight + 3 * slots + 8 * 16 + 4 * 32 + 3 * 64
    assert not packing.needs_single_tile(cells)
    small = check_dense(np.random.default_rng(1), 50, 600, 0.04, "short", 5)
    assert small.tiles == 3
    assert packing.needs_single_tile(small)


@pytest.mark.parametrize("density", [0.0001, 0.02])
def test_dense_takes_more_inputs_than_16_bits_count(density: float) -> None:
    cells = check_dense(np.random.default_rng(2), 5, 140_000, density, "uint16", 1)
    assert cells.tiles > 2


def test_the_first_and_the_last_tap_of_a_tile() -> None:
    codebook, value = np.array([1, 10, 100, 1000, 10_000], np.float32), np.arange(5, dtype=np.uint8)
    tap = np.array([0, 26_214, 26_215, 52_429, 131_072])
    cells = pack_dense(np.zeros(5, int), tap, value, codebook, 1, 131_073)
    assert (cells.tiles, cells.tile) == (5, 26_215)
    inputs = np.zeros((1, 131_073, WIDTH), np.float32)
    inputs[0, tap] = np.array([1, 2, 3, 4, 5])[:, None]
    one, none = np.ones(1, np.float32), np.zeros(1, np.float32)
    assert (dense(cells, inputs, one, none) == 54_321).all()
    assert dense_single(cells, np.ascontiguousarray(inputs[0, :, 0]), one, none) == [54_321]
    tap = np.array([0, 65_535, 65_536, 131_071, 131_072])
    runs = pack_conv(np.zeros(5, int), tap, value, codebook, 1, 131_073)
    assert runs.starts.tolist() == [0, 2, 4, 5]
    assert runs.taps[:5].tolist() == [0, 65_535, 0, 65_535, 0]


@njit
def turn_few(source, stride, count, target, pitch):
    transpose_few(source, stride, count, target, pitch)


@pytest.mark.parametrize("count", range(1, WIDTH + 1))
def test_few_rows_are_transposed_and_nothing_beside(count: int) -> None:
    rows = np.arange(count * WIDTH, dtype=np.float32).reshape(count, WIDTH)
    target = np.full((WIDTH, WIDTH + 3), SPARE, np.float32)
    turn_few(rows.ctypes.data, 4 * WIDTH, count, target.ctypes.data, 4 * (WIDTH + 3))
    np.testing.assert_array_equal(target[:, :count], rows.T)
    assert (target[:, count:] == SPARE).all()


def test_units_without_weights_and_with_one() -> None:
    cells = pack_dense(np.array([2, 4, 4]), np.array([1, 0, 2]), np.array([0, 1, 0], np.uint8),
                      np.array([3, -1], np.float32), 6, 3)  # fmt: skip
    inputs = np.repeat(np.array([[[5], [7], [11]]], np.float32), WIDTH, axis=2)
    scale, shift = np.full(6, 2, np.float32), np.arange(6, dtype=np.float32)
    expected = [0, 1, 2 + 42, 3, 4 + 56, 5]
    assert (dense(cells, inputs, scale, shift) == np.array(expected)[:, None]).all()
    assert dense_single(cells, np.array([5, 7, 11], np.float32), scale, shift).tolist() == expected


def test_a_layer_without_any_weight_is_its_shift() -> None:
    nothing = np.zeros(0, int)
    cells = pack_dense(nothing, nothing, np.zeros(0, np.float32), None, 3, 4)
    inputs = np.full((2, 4, WIDTH), np.nan, np.float32)
    shift = np.array([1, 2, 3], np.float32)
    assert (dense(cells, inputs, shift, shift) == shift[:, None]).all()
    assert dense_single(cells, inputs[0, :, 0].copy(), shift, shift).tolist() == [1, 2, 3]


@pytest.mark.parametrize("pack", [pack_dense, pack_single_tile])
@pytest.mark.parametrize("taps", [40, 3000])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_reach_the_units_that_see_them(bad: float, taps: int, pack) -> None:
    """And no others: what fills a group up points to the first input."""
    rng = np.random.default_rng(3)
    (unit, tap, *rest), matrix = weights(rng, 33, taps, 0.1, "short")
    cells = pack(unit, tap, *rest)
    inputs = rng.standard_normal((1, taps, WIDTH)).astype(np.float32)
    inputs[0, 0] = bad
    scale, shift, clamp = np.ones(33, np.float32), np.zeros(33, np.float32), (np.float32(-1e9), np.float32(np.inf))
    for result in (dense(cells, inputs, scale, shift, clamp)[0, :, 0],
                   dense_single(cells, np.ascontiguousarray(inputs[0, :, 0]), scale, shift, clamp)):  # fmt: skip
        seen = matrix[:, 0]
        expected = bad * seen[seen != 0]
        np.testing.assert_array_equal(result[seen != 0], np.where(expected < 0, np.float32(-1e9), expected))
        assert np.isfinite(result[seen == 0]).all()


def pooled(y: np.ndarray, pool: int) -> np.ndarray:
    """2 x 2 pooling of (units, rows, columns, ...), remainders dropped."""
    if pool == NONE:
        return y
    units, height, width, *lanes = y.shape
    windows = y[:, : height // 2 * 2, : width // 2 * 2].reshape(units, height // 2, 2, width // 2, 2, *lanes)
    return windows.max(axis=(2, 4)) if pool == MAX else windows.mean(axis=(2, 4))


def convolve(kernel: np.ndarray, x: np.ndarray, stride: int, dilation: int, groups: int) -> np.ndarray:
    """Output (units, rows, columns, WIDTH) of kernel (units, channels of a group, h, w) and x (channels, rows, ...)."""
    units, channels, h, w = kernel.shape
    span = (h - 1) * dilation + 1, (w - 1) * dilation + 1
    windows = np.lib.stride_tricks.sliding_window_view(x, span, axis=(1, 2))
    windows = windows[:, ::stride, ::stride, :, ::dilation, ::dilation]
    windows = windows.reshape(groups, channels, *windows.shape[1:]).astype(np.float64)
    kernel = kernel.reshape(groups, units // groups, channels, h, w)
    result = np.einsum("guchw,gcyxlhw->guyxl", kernel, windows)
    return result.reshape(units, *result.shape[2:])


CONVOLUTIONS = {  # channels, units, rows, columns, kernel, stride, dilation, groups, density
    "plain": (3, 7, 12, 17, (3, 2), 1, 1, 1, 0.5),
    "one column": (2, 3, 5, 4, (2, 4), 1, 1, 1, 1.0),
    "one row": (2, 3, 3, 40, (3, 3), 1, 1, 1, 0.6),
    "wide": (1, 2, 8, 70, (3, 3), 1, 1, 1, 0.7),
    "stride 2": (2, 5, 15, 35, (5, 5), 2, 1, 1, 0.3),
    "stride 3": (2, 5, 20, 31, (3, 3), 3, 1, 1, 0.5),
    "dilated": (2, 4, 13, 14, (3, 3), 1, 2, 1, 0.5),
    "stride 2, dilated": (2, 4, 16, 21, (3, 3), 2, 3, 1, 0.5),
    "groups": (6, 4, 9, 9, (3, 3), 1, 1, 2, 0.5),
    "depthwise": (5, 10, 8, 11, (3, 3), 1, 1, 5, 0.6),
    "one by one": (9, 4, 6, 7, (1, 1), 1, 1, 1, 0.4),
    "more weights than are unpacked at once": (64, 20, 6, 5, (3, 3), 1, 1, 1, 0.9),
}


def check_gaps(maps: np.ndarray, height: int, width: int, pitch: int) -> None:
    """Require zeros between the rows of each map, and put back what was there."""
    gaps = np.arange(height - 1)[:, None] * pitch + np.arange(width, pitch)
    np.testing.assert_array_equal(maps[:, gaps], 0)
    maps[:, gaps] = SPARE


def check_convolution(
    rng: np.random.Generator,
    case: tuple,
    pool: int,
    kind: str,
    bad: float | None = None,
    tile: int = 99,
    adds: bool = False,
    pack=pack_conv,
) -> None:
    channels, units, rows, columns, (h, w), stride, dilation, groups, density = case
    inside = channels // groups
    arguments, matrix = weights(rng, units, inside * h * w, density, kind)
    runs = pack(*arguments)
    x = rng.standard_normal((channels, rows, columns, WIDTH)).astype(np.float32)
    if bad is not None:
        x[0, 3, 3] = bad
    scale, shift = rng.uniform(-2, 2, (2, units)).astype(np.float32)
    whole = convolve(matrix.reshape(units, inside, h, w), x, stride, dilation, groups)
    low, high = np.float32(-3), np.float32(6)
    addend = rng.standard_normal((units, whole.shape[1] + 1, whole.shape[2] + 3, WIDTH)).astype(np.float32)
    whole = whole * scale[:, None, None, None] + shift[:, None, None, None]
    whole = (whole + adds * addend[:, :-1, :-3]).clip(low, high)
    height, width = whole.shape[1:3]
    expected = pooled(whole, pool)
    group = units // groups
    c, i, j = np.ogrid[:inside, : h * dilation : dilation, : w * dilation : dilation]

    def run(kernel, source: np.ndarray, offsets: np.ndarray, plane: int, steps: tuple, room: int, lanes: int) -> None:
        phases, size = ((0, 1, 0, 0), (height, width, tile)) if lanes == 1 else ((), (height, width))
        added = np.concatenate([addend[..., :lanes].ravel(), np.zeros(WIDTH, np.float32)])
        offsets = np.ascontiguousarray(offsets.ravel(), np.int32)
        scratch = np.full(room, SPARE, np.float32)
        margin = np.pad(expected[..., :lanes], ((0, 0), (1, 1), (1, 2), (0, 0)))
        target = np.full_like(margin, SPARE, np.float32)
        for first, last in ((0, units // 2), (units // 2, units)):
            kernel(
                first, last, *addresses(runs), offsets.ctypes.data, group, inside * plane,
                source.ctypes.data, *steps, target[0, 1, 1].ctypes.data, math.prod(target.shape[1:3]),
                target.shape[2], *phases, *size, pool, added.ctypes.data * adds, math.prod(addend.shape[1:3]),
                addend.shape[2], scale.ctypes.data, shift.ctypes.data, low, high, scratch.ctypes.data,
            )  # fmt: skip
        np.testing.assert_allclose(target[:, 1:-1, 1:-2], expected[..., :lanes], rtol=1e-5, atol=1e-4)
        target[:, 1:-1, 1:-2] = SPARE
        if lanes == 1 and pool == NONE and steps == (target.shape[2],):  # as far apart as in the source
            check_gaps(target.reshape(units, -1)[:, target.shape[2] + 1 :], height, width, target.shape[2])
        assert (target == SPARE).all()

    room = kernels.conv_lanes_scratch(runs)
    offsets = (c * rows + i) * columns + j
    run(kernels.conv_lanes, x, offsets, rows * columns, (stride * columns, stride), room, WIDTH)

    tall, pitch = -(-rows // stride), -(-columns // stride)
    phases = np.zeros((channels, stride, stride, tall, pitch), np.float32)
    for y in range(stride):
        for z in range(stride):
            phase = x[:, y::stride, z::stride, 0]
            phases[:, y, z, : phase.shape[1], : phase.shape[2]] = phase
    image = np.concatenate([phases.ravel(), np.full(WIDTH, np.nan, np.float32)])
    offsets = (((c * stride + i % stride) * stride + j % stride) * tall + i // stride) * pitch + j // stride
    room = kernels.conv_positions_scratch(runs, min(tile, height), pitch)
    run(kernels.conv_positions, image, offsets, stride * stride * tall * pitch, (pitch,), room, 1)


@pytest.mark.parametrize("width", [1, 2, 7, 15, 16, 17, 33])
@pytest.mark.parametrize("pool", [NONE, MAX])
def test_convolution_of_one_image_puts_every_second_row_and_column_elsewhere(width: int, pool: int) -> None:
    shrink, top = 1 if pool == NONE else 2, 3
    x = np.random.default_rng(width).random((5 * shrink, width * shrink)).astype(np.float32)
    runs = pack_conv(np.zeros(1, int), np.zeros(1, int), np.ones(1, np.uint8), np.array([0, 2], np.float32), 1, 1)
    one, none, offsets = np.ones(1, np.float32), np.zeros(1, np.float32), np.zeros(1, np.int32)
    image = np.concatenate([x.ravel(), np.zeros(WIDTH, np.float32)])
    scratch = np.empty(kernels.conv_positions_scratch(runs, *x.shape), np.float32)
    target = np.full((2, 2, 4, 40), SPARE, np.float32)  # rows of two pictures, of each two of columns
    kernels.conv_positions(
        0, 1, *addresses(runs), offsets.ctypes.data, 1, 0, image.ctypes.data, x.shape[1], target.ctypes.data, 0,
        40, top, 2, target[0].size, target[0, 0].size, *x.shape, len(x), pool, 0, 0, 0, one.ctypes.data,
        none.ctypes.data, *INFINITE, scratch.ctypes.data,
    )  # fmt: skip
    expected = np.full_like(target, SPARE)
    found = 2 * (x if pool == NONE else x.reshape(5, 2, width, 2).max(axis=(1, 3)))
    for y in range(5):
        for column in range(width):
            expected[(y + top) % 2, column % 2, (y + top) // 2, column // 2] = found[y, column]
    np.testing.assert_array_equal(target, expected)


@pytest.mark.parametrize("pool", [NONE, MAX, AVERAGE])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_equals_numpy(name: str, pool: int) -> None:
    check_convolution(np.random.default_rng(len(name)), CONVOLUTIONS[name], pool, "short")


@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("pool", [NONE, MAX, AVERAGE])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_in_tiles_is_the_same(name: str, pool: int, tile: int) -> None:
    check_convolution(np.random.default_rng(tile), CONVOLUTIONS[name], pool, "short", tile=tile)


@pytest.mark.parametrize("tile", [1, 3, 99])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_adds_before_it_clamps(name: str, tile: int) -> None:
    check_convolution(np.random.default_rng(tile), CONVOLUTIONS[name], NONE, "short", tile=tile, adds=True)


@pytest.mark.parametrize("pack", [pack_conv, packed_full])
@pytest.mark.parametrize("tile", [1, 99])
@pytest.mark.parametrize("gap", [0, 1, 3])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, WIDTH), (3, 5), (7, 7), (8, WIDTH), (2, 30 * WIDTH), (5, 12 * WIDTH + 1)])
def test_rows_as_far_apart_as_in_the_source_are_cut_anew(size: tuple, adds: bool, gap: int, tile: int, pack) -> None:
    (height, width), guard = size, 5
    pitch = width + gap
    total = height * pitch - gap
    rng = np.random.default_rng(total)
    arguments, matrix = weights(rng, 4, 6, 0.7 if pack is pack_conv else 1.0, "short")
    runs = pack(*arguments)
    image = rng.standard_normal((6, total)).astype(np.float32)
    addend = rng.standard_normal((4, total)).astype(np.float32)
    scale, shift = rng.uniform(-2, 2, (2, 4)).astype(np.float32)
    whole = np.tensordot(matrix, image, 1) * scale[:, None] + shift[:, None]
    offsets = np.arange(0, 6 * total, total, dtype=np.int32)
    room = np.zeros(WIDTH, np.float32)
    source, added = (np.concatenate([array.ravel(), room]) for array in (image, addend))
    target = np.full((4, 2 * pitch + total + guard), SPARE, np.float32)  # two rows are above the first
    scratch = np.empty(kernels.conv_positions_scratch(runs, min(tile, height), pitch), np.float32)
    for first, last in ((0, 3), (3, 4)) if pack is pack_conv else ((0, 4),):
        kernels.conv_positions(
            first, last, *addresses(runs), offsets.ctypes.data, 4, 0, source.ctypes.data, pitch,
            target.ctypes.data, target.shape[1], pitch, 2, 1, 0, 0, *size, tile, NONE, added.ctypes.data * adds, total,
            pitch, scale.ctypes.data, shift.ctypes.data, np.float32(-1), np.float32(2), scratch.ctypes.data,
        )  # fmt: skip
    expected, found = (whole + adds * addend).clip(-1, 2), target[:, 2 * pitch : -guard]
    check_gaps(found, height, width, pitch)
    expected[:, np.arange(total) % pitch >= width] = SPARE
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    found[:] = SPARE
    assert (target == SPARE).all()


def test_tiles_have_all_rows_or_what_registers_hold() -> None:
    registers = 2 * TILE_COLUMNS * WIDTH
    assert kernels.tile_rows(56, 56, 58, 2**17) == 56
    assert kernels.tile_rows(56, registers, registers + 2, 2**17 + 1) == 1
    assert kernels.tile_rows(56, registers - 1, registers - 1, 2**20) == 1
    assert kernels.tile_rows(56, registers // 2, registers // 2, 2**20) == 2
    assert kernels.tile_rows(3, 1, 1, 2**20) == 3


@pytest.mark.parametrize("kind", ["short", "float32"])
@pytest.mark.parametrize("pool", [NONE, MAX, AVERAGE])
@pytest.mark.parametrize("tile", [2, 99])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_without_pruned_weights(name: str, tile: int, pool: int, kind: str) -> None:
    case = (*CONVOLUTIONS[name][:-1], 1.0)
    check_convolution(np.random.default_rng(tile), case, pool, kind, tile=tile, pack=packed_full)
    if pool == NONE:
        check_convolution(np.random.default_rng(tile), case, pool, kind, tile=tile, adds=True, pack=packed_full)


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32"])
def test_convolution_takes_every_kind_of_value(kind: str) -> None:
    check_convolution(np.random.default_rng(4), CONVOLUTIONS["plain"], NONE, kind)


@pytest.mark.parametrize("width", range(1, 32))
def test_convolution_of_any_width(width: int) -> None:
    for pool in (NONE, MAX):
        check_convolution(np.random.default_rng(width), (2, 2, 5, width + 1, (2, 2), 1, 1, 1, 0.7), pool, "uint8")


@pytest.mark.parametrize("pool", [NONE, MAX, AVERAGE])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_pass_a_convolution(bad: float, pool: int) -> None:
    check_convolution(np.random.default_rng(5), (2, 5, 12, 17, (3, 3), 1, 1, 1, 1.0), pool, "short", bad)


def test_convolution_takes_more_taps_than_16_bits_count() -> None:
    taps = 70_000
    runs = pack_conv(np.array([0, 0, 1, 1, 1]), np.array([0, 69_999, 1, 65_535, 65_536]),
                     np.array([1, 2, 1, 2, 3], np.uint8), np.array([0, 1, 10, 100], np.float32), 2, taps)  # fmt: skip
    assert runs.tiles == 2
    offsets = np.zeros(2 * 65_536, np.int32)
    offsets[:taps] = np.arange(taps)
    x = np.zeros((taps, WIDTH), np.float32)
    x[[0, 1, 65_535, 65_536, 69_999]] = np.array([1, 2, 3, 4, 5])[:, None]
    scale, shift, target = np.ones(2, np.float32), np.zeros(2, np.float32), np.full((2, WIDTH), SPARE, np.float32)
    scratch = np.empty(kernels.conv_positions_scratch(runs, 1, 1), np.float32)
    image = np.concatenate([x[:, 0], np.zeros(WIDTH, np.float32)])
    common = (0, 2, *addresses(runs), offsets.ctypes.data, 2, 0)
    rest = (NONE, 0, 0, 0, scale.ctypes.data, shift.ctypes.data, *INFINITE, scratch.ctypes.data)
    kernels.conv_lanes(*common, x.ctypes.data, 1, 1, target.ctypes.data, 1, 1, 1, 1, *rest)
    assert (target == [[51], [432]]).all()
    target[:] = SPARE
    kernels.conv_positions(*common, image.ctypes.data, 1, target.ctypes.data, 1, 1, 0, 1, 0, 0, 1, 1, 1, *rest)
    assert target.ravel()[:3].tolist() == [51, 432, SPARE]


@njit
def pool_one(op: int, source: int, count: int, target: int, start: float) -> None:
    pool_row(op, source, count, target, start)


@pytest.mark.parametrize("count", [0, 1, WIDTH - 1, WIDTH, WIDTH + 1, 3 * WIDTH + 5])
def test_a_row_is_pooled_to_one_number(count: int) -> None:
    rng = np.random.default_rng(count)
    row, target = np.full(count + WIDTH, SPARE * 9, np.float32), np.full(2, SPARE, np.float32)
    row[:count] = rng.uniform(-5, 5, count)
    lowest = np.finfo(np.float32).min

    def pool(op: int, start: float) -> np.float32:
        pool_one(op, row.ctypes.data, count, target.ctypes.data, np.float32(start))
        assert target[1] == SPARE
        return target[0]

    assert pool(rows.AVERAGE_POOL, 0) == pytest.approx(row[:count].astype(float).sum(), abs=1e-5)
    for op, start in ((rows.MAX_POOL, lowest), (rows.REDUCE_MAX, -np.inf)):
        assert pool(op, start) == max([start, *row[:count]])
    for place in range(count):
        with np.errstate(invalid="ignore"):
            whole, row[place] = row[place], np.nan
            others = np.delete(row[:count], place)
            assert pool(rows.MAX_POOL, lowest) == max([lowest, *others])
            assert np.isnan(pool(rows.REDUCE_MAX, -np.inf))
            assert np.isnan(pool(rows.AVERAGE_POOL, 0))
            row[place] = -np.inf
            assert pool(rows.REDUCE_MAX, -np.inf) == max([-np.inf, *others])
            row[place] = whole
