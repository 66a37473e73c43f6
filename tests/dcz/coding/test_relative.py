import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcomp.dcz.coding import relative
from deepcomp.errors import FormatError, RecipeError


def u8(*values):
    return np.array(values, np.uint8)


def kernel(size, survivors):
    """Indices with the value 1 at `survivors`."""
    indices = np.zeros(size, np.uint8)
    indices[survivors] = 1
    return indices


def plain_encode(indices, bits):
    """Weight by weight, as figure 2 of the paper does it."""
    entries, gap = [], 0
    for index in indices:
        if index:
            entries.append((gap, index))
            gap = 0
        elif gap == 2**bits - 1:
            entries.append((gap, 0))
            gap = 0
        else:
            gap += 1
    while entries and not entries[-1][1]:  # nothing follows them
        entries.pop()
    return entries


def damaged(gaps, values, size, bits, message):
    with pytest.raises(FormatError, match=message) as caught:
        relative.decode(np.asarray(gaps), np.asarray(values), size, bits)
    assert "\n" not in str(caught.value)


def check(indices, bits):
    gaps, values = relative.encode(indices, bits)
    np.testing.assert_array_equal(relative.decode(gaps, values, indices.size, bits), indices.ravel())
    return list(zip(gaps.tolist(), values.tolist(), strict=True))


def test_figure_2_of_the_paper():
    indices = np.zeros(16, np.uint8)
    indices[[1, 4, 15]] = 3, 1, 2
    gaps, values = relative.encode(indices, 3)
    assert gaps.dtype == values.dtype == np.uint8
    assert gaps.tolist() == [1, 2, 7, 2]  # the figure has distances: 1, 3, 8, 3
    assert values.tolist() == [3, 1, 0, 2]
    decoded = relative.decode(gaps, values, 16, 3)
    assert decoded.dtype == np.uint8
    assert decoded.tolist() == [0, 3, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]


@pytest.mark.parametrize(
    ("size", "survivors", "entries"),
    [
        (0, [], []),
        (5, [], []),
        (1, [0], [(0, 1)]),
        (3, [0, 1, 2], [(0, 1), (0, 1), (0, 1)]),
        (8, [7], [(7, 1)]),  # the largest gap
        (9, [8], [(7, 0), (0, 1)]),  # one over
        (16, [15], [(7, 0), (7, 1)]),
        (17, [16], [(7, 0), (7, 0), (0, 1)]),
        (30, [0, 9], [(0, 1), (7, 0), (0, 1)]),  # zeros after the last survivor take nothing
    ],
)
def test_awkward_kernels(size, survivors, entries):
    assert check(kernel(size, survivors), 3) == entries


@pytest.mark.parametrize("bits", range(1, 17))
def test_the_largest_gap_and_one_over(bits):
    most = 2**bits - 1
    gaps, _ = relative.encode(kernel(most + 1, [most]), bits)
    assert gaps.dtype == (np.uint8 if bits <= 8 else np.uint16)
    assert check(kernel(most + 1, [most]), bits) == [(most, 1)]
    assert check(kernel(most + 2, [most + 1]), bits) == [(most, 0), (0, 1)]
    assert check(kernel(2 * most + 3, [2 * most + 2]), bits) == [(most, 0), (most, 0), (0, 1)]


@given(
    st.lists(st.tuples(st.integers(0, 70), st.integers(1, 65_535)), max_size=30),
    st.integers(0, 20),
    st.integers(1, 16),
    st.sampled_from([np.uint16, np.uint32]),
)
def test_round_trip(runs, rest, bits, dtype):
    indices = np.array([v for gap, value in runs for v in [0] * gap + [value]] + [0] * rest, dtype)
    gaps, values = relative.encode(indices, bits)
    assert values.dtype == dtype
    assert list(zip(gaps.tolist(), values.tolist(), strict=True)) == plain_encode(indices, bits)
    decoded = relative.decode(gaps, values, indices.size, bits)
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, indices)


def test_any_shape():
    indices = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 5
    gaps, values = relative.encode(indices.transpose(2, 0, 1), 2)
    np.testing.assert_array_equal(relative.decode(gaps, values, 24, 2), indices.transpose(2, 0, 1).ravel())


@pytest.mark.parametrize("density", [0.004, 0.08, 0.5])
def test_there_is_an_entry_for_each_survivor_and_each_whole_gap(density):
    rng = np.random.default_rng(0)
    indices = (rng.random(20_000) < density) * rng.integers(1, 6, 20_000, dtype=np.uint8)
    gaps = np.diff(np.flatnonzero(indices), prepend=-1) - 1
    for bits in range(1, 17):
        _, values = relative.encode(indices, bits)
        assert values.size == np.count_nonzero(indices) + np.sum(gaps >> bits)


@pytest.mark.parametrize("bits", [0, 17, -1])
def test_bits_out_of_range(bits):
    with pytest.raises(RecipeError, match=f"bits={bits}"):
        relative.encode(u8(1), bits)
    damaged(u8(0), u8(1), 1, bits, f"{bits} bits")


def test_indices_that_are_not_unsigned():
    with pytest.raises(RecipeError, match="int64"):
        relative.encode(np.array([1, 0]), 4)


# Damage, by name


def test_a_gap_past_the_end():
    damaged(u8(1, 2), u8(1, 1), 4, 3, "position 4 of 4")
    damaged(u8(0), u8(1), 0, 3, "position 0 of 0")
    damaged(np.full(1000, 65_535, np.uint16), np.ones(1000, np.uint8), 1000, 16, "past the end")


def test_a_gap_of_too_many_bits():
    damaged(u8(8), u8(1), 100, 3, "the largest is 7")
    damaged(np.array([3, -2]), u8(1, 1), 100, 3, "gaps from -2")


def test_needless_fillers():
    damaged(u8(7, 6, 0), u8(0, 0, 1), 100, 3, "a filler with a gap of 6")
    damaged(u8(7, 7), u8(1, 0), 100, 3, "ends in a filler")
    damaged(u8(7), u8(0), 100, 3, "ends in a filler")


def test_numbers_that_do_not_agree():
    damaged(u8(1, 2), u8(1), 100, 3, "2 gaps and 1 values")
    damaged(u8(), u8(), -1, 3, "size of -1")


def test_random_entries_are_refused_or_canonical():
    rng = np.random.default_rng(0)
    accepted = 0
    for _ in range(3000):
        bits, size, entries = rng.integers(1, 4), int(rng.integers(0, 40)), rng.integers(0, 8)
        gaps = rng.integers(0, 1 << bits, entries).astype(np.uint8)
        values = np.where(gaps == (1 << bits) - 1, rng.integers(0, 3, entries), 1).astype(np.uint8)
        try:
            indices = relative.decode(gaps, values, size, int(bits))
        except FormatError:
            continue
        accepted += 1
        again = relative.encode(indices, int(bits))
        assert again[0].tolist() == gaps.tolist()
        assert again[1].tolist() == values.tolist()
    assert accepted > 500
