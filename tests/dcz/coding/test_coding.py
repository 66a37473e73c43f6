"""Both coders behind the one interface, and what the mixing coder promises by itself."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcomp.dcz import coding
from deepcomp.dcz.coding import Spec, arithmetic, mixing_2
from deepcomp.errors import FormatError, RecipeError
from tests.clock import seconds


def sparse_tensor(shape, density, centroids, seed):
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < density, rng.integers(1, centroids + 1, shape), 0).astype(np.uint16)


def entropy_bytes(array):
    _, counts = np.unique(array, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


@pytest.mark.parametrize("coder", coding.CODERS)
@pytest.mark.parametrize(
    ("shape", "density", "centroids", "negatives"),
    [
        ((0,), 0.5, 3, 1),
        ((1,), 1.0, 1, 0),
        ((7,), 0.5, 300, 150),
        ((5, 0, 3), 0.5, 3, 1),
        ((40, 30), 0.0, 0, 0),
        ((40, 30), 0.0, 4, 2),
        ((40, 30), 1.0, 1, 1),
        ((40, 30), 0.1, 16, 16),
        ((40, 30), 0.1, 17, 0),
        ((30, 20), 0.9, 65, 32),
        ((4, 6, 9), 0.4, 8, 4),
        ((5, 5, 6, 7), 0.3, 8, 4),
        ((1, 3, 6, 7), 0.3, 8, 4),
        ((2, 3, 2, 4, 5), 0.3, 8, 4),
        ((30, 20), 0.5, 60_000, 30_000),
    ],
)
def test_tensors_come_back(coder, shape, density, centroids, negatives):
    array = sparse_tensor(shape, density, max(centroids, 1), 1)
    specs = [Spec(shape, centroids, negatives)] * 2
    coded = coding.encode([array, array], specs, coder)
    for back in coding.decode(coded.data, specs, coder):
        assert np.array_equal(back, array)
        assert back.dtype == specs[0].dtype
    assert sum(map(sum, coded.bits)) <= 8 * len(coded.data) + 16
    assert coding.encode([array, array], specs, coder).data == coded.data
    if coder == "huffman":
        assert sum(map(sum, coded.bits)) == 8 * len(coded.data)


TENSORS = st.tuples(
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.floats(0, 1),
    st.integers(1, 40),
    st.integers(0, 1000),
)


@pytest.mark.parametrize("coder", coding.CODERS)
@settings(max_examples=60)
@given(tensors=st.lists(TENSORS, min_size=0, max_size=3), data=st.data())
def test_any_tensors_come_back(coder, tensors, data):
    arrays = [sparse_tensor(tuple(shape), density, k, seed) for shape, density, k, seed in tensors]
    specs = [Spec(tuple(shape), k, data.draw(st.integers(0, k))) for shape, _, k, _ in tensors]
    coded = coding.encode(arrays, specs, coder)
    for array, back in zip(arrays, coding.decode(coded.data, specs, coder), strict=True):
        assert np.array_equal(array, back)


@settings(max_examples=30)
@given(tensors=st.lists(TENSORS, min_size=1, max_size=3))
def test_the_coder_of_earlier_versions_is_read(tensors):
    arrays = [sparse_tensor(tuple(shape), density, k, seed).astype(np.uint8) for shape, density, k, seed in tensors]
    specs = [Spec(tuple(shape), k, k // 2) for shape, _, k, _ in tensors]
    data, _ = arithmetic.encode(arrays, specs, mixing_2.MODEL)
    for array, back in zip(arrays, coding.decode(data, specs, "range", 2), strict=True):
        assert np.array_equal(array, back)


def test_a_decoder_stops_soon_after_its_input_has_ended():
    """Many weights are declared, and the few bytes that there are decode to a few rows of survivors."""
    spec = Spec((1 << 12, 1 << 13), 3, 1)
    for version in (2, 3):
        with pytest.raises(FormatError):
            coding.decode(bytes(64), [Spec((1, 1), 3, 1)], "range", version)  # compiles
        with seconds() as taken, pytest.raises(FormatError, match="go on after their 64 bytes"):
            coding.decode(bytes(64), [spec], "range", version)
        assert taken[0] < 20


@pytest.mark.parametrize("coder", coding.CODERS)
def test_damaged_sections_are_refused_or_decode_to_tensors_of_the_right_shape(coder):
    specs = [Spec((12, 9), 5, 2), Spec((30,), 3, 1)]
    arrays = [sparse_tensor(spec.shape, 0.3, spec.centroids, 3) for spec in specs]
    whole = coding.encode(arrays, specs, coder).data
    rng = np.random.default_rng(0)
    cases = [whole[:size] for size in range(len(whole))] + [whole + b"\0", b"", bytes(rng.bytes(60))]
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        cases.append(bytes(damaged))
    refused = 0
    for case in cases:
        try:
            back = coding.decode(case, specs, coder)
        except FormatError:
            refused += 1
            continue
        for array, spec in zip(back, specs, strict=True):
            assert array.shape == spec.shape
            assert array.max(initial=0) <= spec.centroids
    assert refused > len(whole)


@pytest.mark.parametrize("shape", [(16, 2**22), (2**22, 16), (2**13, 2**13)])
def test_the_range_decoder_stops_where_its_bytes_end(shape):
    """Once it decoded on: 31 kB that declared two billion weights took minutes."""
    specs = [Spec((8, 2), 2, 1), Spec(shape, 3, 1)]
    start = coding.encode([sparse_tensor((8, 2), 0.5, 2, 0)], specs[:1], "range").data
    coding.decode(start, specs[:1], "range")  # compiles
    with seconds() as taken, pytest.raises(FormatError, match="go on after their"):
        coding.decode(start + np.random.default_rng(1).bytes(300), specs, "range")
    assert taken[0] < 1


def test_bad_arguments_are_refused():
    array = np.array([[0, 3]], np.uint8)
    for spec in (Spec((2,), 3, 1), Spec((1, 2), 2, 1), Spec((1, 2), 3, 4), Spec((1, 2), 70_000, 1)):
        with pytest.raises(RecipeError):
            coding.encode([array], [spec], "range")
    with pytest.raises(RecipeError, match="No coder 'zip': use huffman or range"):
        coding.encode([array], [Spec((1, 2), 3, 1)], "zip")


def test_the_arrays_given_are_not_written_to():
    array = sparse_tensor((6, 5), 0.5, 3, 0).astype(np.uint8)
    array.flags.writeable = False
    coding.encode([array], [Spec((6, 5), 3, 1)], "range")


def test_golden_streams():
    """A changed bit stream is a breaking change: raise the format's version before you change these."""
    array = np.array([[0, 1, 0, 0, 2, 0], [0, 0, 0, 3, 0, 0], [0, 1, 0, 0, 2, 0]], np.uint8)
    specs = [Spec((3, 6), 3, 1)]
    assert coding.encode([array], specs, "range").data.hex() == "c8a57ceb"
    for version in (1, 2):
        assert np.array_equal(coding.decode(bytes.fromhex("cb1028c4"), specs, "range", version)[0], array)
    assert coding.encode([array], specs, "huffman").data.hex() == "010afdb8e5663a60"


def test_mixing_finds_structure_that_entropy_does_not_see():
    rng = np.random.default_rng(5)
    density = np.outer(rng.gamma(0.5, 1, 300), rng.gamma(0.5, 1, 200))
    array = np.where(rng.random((300, 200)) < np.minimum(1, 0.05 * density), rng.integers(1, 9, (300, 200)), 0)
    size = len(coding.encode([array.astype(np.uint8)], [Spec((300, 200), 8, 4)], "range").data)
    assert size < 0.9 * entropy_bytes(array)


def test_mixing_costs_little_where_there_is_no_structure():
    for density in (0.01, 0.1, 0.5):
        array = sparse_tensor((300, 200), density, 16, 7)
        size = len(coding.encode([array], [Spec((300, 200), 16, 8)], "range").data)
        assert size < 1.03 * entropy_bytes(array) + 40


def test_dead_outputs_of_one_kernel_hint_at_the_next():
    rng = np.random.default_rng(9)
    first, second = sparse_tensor((50, 400), 0.2, 4, 1), sparse_tensor((400, 50), 0.2, 4, 2)
    dead = rng.random(400) < 0.5
    first[:, dead], second[dead] = 0, 0
    specs = [Spec((50, 400), 4, 2), Spec((400, 50), 4, 2)]
    together = len(coding.encode([first, second], specs, "range").data)
    alone = [coding.encode([array], [spec], "range").data for array, spec in zip((first, second), specs, strict=True)]
    apart = sum(map(len, alone))
    assert together < apart - 20


@pytest.mark.parametrize("shape", [(300, 200), (3, 3, 40, 200), (300, 1), (1, 200)])
def test_columns_in_descending_order_cost_less(shape):
    array = sparse_tensor(shape, 0.02, 8, 3)
    order = coding.descending_order(array)
    ordered = array[..., order]
    assert sorted(order) == list(range(shape[-1]))
    columns = [bytes(column) for column in (ordered.reshape(-1, shape[-1]) > 0).T]
    assert columns == sorted(columns, reverse=True)
    specs = [Spec(shape, 8, 4)]
    size = len(coding.encode([array], specs, "range").data)
    data = coding.encode([ordered], specs, "range").data
    assert np.array_equal(coding.decode(data, specs, "range")[0], ordered)
    if min(array.size // shape[-1], shape[-1]) > 1:
        saved = math.lgamma(shape[-1] + 1) / math.log(2) / 8  # log2(n!), in bytes
        assert len(data) < size - 0.8 * saved


def test_order_keeps_that_of_equal_columns():
    assert coding.descending_order(np.array([[0, -1.5, 0, 0.5, 2], [1, 0, 0, 0, 0]])).tolist() == [1, 3, 4, 0, 2]


def test_dead_columns_cost_next_to_nothing():
    array = sparse_tensor((400, 100), 0.05, 4, 1)
    wider = np.concatenate([array[:, coding.descending_order(array)], np.zeros((400, 300), np.uint16)], axis=1)
    sizes = [len(coding.encode([a], [Spec(a.shape, 4, 2)], "range").data) for a in (wider[:, :100], wider)]
    assert sizes[1] < sizes[0] + 12


def test_empty_and_long_runs_of_zeros_cost_little():
    size = len(coding.encode([np.zeros((1000, 1000), np.uint8)], [Spec((1000, 1000), 0, 0)], "range").data)
    assert size <= 10


def test_the_probability_path_has_integers_alone():
    tables, _ = arithmetic.tables()
    squash, stretch = tables[:6144], tables[6144 : 6144 + 65536]
    assert tables.dtype == np.int32
    assert (squash[0], squash[3072], squash[-1]) == (4, 32768, 65532)
    assert np.all(np.diff(squash) >= 0)
    assert np.all(np.diff(stretch) >= 0)
    assert (stretch[0], stretch[32768], stretch[-1]) == (-3071, 0, 3071)


@given(st.integers(0, 2**20 - 1), st.integers(1, 2**32), st.integers(-1, 1))
def test_quotients_by_floats_are_exact(times, divisor, beside):
    """Right next to a multiple is where rounding would show."""
    number = max(times * divisor + beside, 0)
    assert arithmetic.quotient(number, divisor) == number // divisor
