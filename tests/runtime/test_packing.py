"""Packed weights: nothing is lost, and they are as small as they claim."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcomp.runtime.packing import pack_conv, pack_dense, pack_single_tile
from deepcomp.runtime.vectors import WIDTH
from tests.runtime.weights import packed_full, weights


def test_a_convolution_of_more_taps_than_16_bits_count_can_be_listed() -> None:
    arguments, matrix = weights(np.random.default_rng(4), 3, 70_000, 0.001, "uint8")
    runs = pack_conv(*arguments)
    assert runs.tiles == 2
    unit, tap, value = runs.entries()
    assert (unit.tolist(), tap.tolist()) == (arguments[0].tolist(), arguments[1].tolist())
    np.testing.assert_array_equal(arguments[3][value], matrix[unit, tap])


def test_threads_can_share_a_large_layer_of_few_units() -> None:
    rng = np.random.default_rng(7)
    unit, tap = np.divmod(np.sort(rng.choice(200 * 4000, 300_000, replace=False)), 4000)
    cells = pack_dense(unit, tap, np.zeros(300_000, np.uint8), np.ones(1, np.float32), 200, 4000)
    assert cells.span == 16
    few = pack_dense(unit[:999], tap[:999], np.zeros(999, np.uint8), np.ones(1, np.float32), 300, 4000)
    assert few.span == 160 if WIDTH == 16 else 152


def test_convolution_weights_take_three_bytes_each() -> None:
    arguments, matrix = weights(np.random.default_rng(6), 64, 1600, 0.35, "short")
    runs = pack_conv(*arguments)
    assert runs.longest == (matrix != 0).sum(axis=1).max()
    assert runs.nbytes < 3.1 * np.count_nonzero(matrix)


@given(
    st.integers(0, 99),
    st.integers(1, 300),
    st.integers(1, 600),
    st.sampled_from([0.0, 0.05, 0.5, 1.0]),
    st.sampled_from([pack_conv, pack_dense, pack_single_tile]),
)
def test_packing_keeps_every_weight(seed: int, units: int, taps: int, density: float, pack) -> None:
    arguments, matrix = weights(np.random.default_rng(seed), units, taps, density, "uint8")
    packed = pack(*arguments)
    unit, tap, value = packed.entries()
    unpacked = np.zeros_like(matrix)
    unpacked[unit, tap] = packed.codebook[value]
    np.testing.assert_array_equal(unpacked, matrix)
    assert len(value) == np.count_nonzero(matrix)


@pytest.mark.parametrize(("kind", "size"), [("float32", 4), ("uint8", 1), ("uint16", 2)])
def test_weights_without_a_pruned_one_take_their_values_alone(kind: str, size: int) -> None:
    arguments, matrix = weights(np.random.default_rng(3), 24, 70, 1.0, kind)
    packed = packed_full(*arguments)
    codebook = 0 if kind == "float32" else packed.codebook.nbytes + 64 * size  # and zeros after the last index
    assert packed.nbytes == size * 24 * 70 + codebook
    unit, tap, value = packed.entries()
    unpacked = np.zeros_like(matrix)
    unpacked[unit, tap] = value if kind == "float32" else packed.codebook[value]
    np.testing.assert_array_equal(unpacked, matrix)
