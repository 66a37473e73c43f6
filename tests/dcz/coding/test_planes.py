"""Byte planes of words, and the words of values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcomp.dcz.coding import floats, planes
from deepcomp.errors import FormatError


def coded(words):
    return b"".join(bytes(piece) for piece in planes.encode(words))


def test_golden_planes():
    """A word's sign moves to its lowest bit: C102 becomes 8205."""
    assert coded(np.array([0xC102, 0x4102, 0xC103], "<u2")).hex(" ") == "00 82 82 82 00 05 04 07"
    assert coded(np.array([0x80000001, 0xBF812345], "<u4")).hex(" ") == "00 00 7f 00 00 02 00 00 46 00 03 8b"
    # 100 equal bytes are one Huffman code without bits, whose table takes four bytes.
    assert coded(np.array([0xC102] * 100, "<u2")).hex(" ") == "01 80 83 03 f0 01 98 07 d8"
    assert coded(np.zeros(0, "<u4")) == b""


WORDS = st.sampled_from(["<u2", "<u4"]).flatmap(
    lambda dtype: st.lists(st.integers(0, 2 ** (8 * np.dtype(dtype).itemsize) - 1), max_size=300).map(
        lambda numbers: np.array(numbers, dtype)
    )
)


@given(WORDS)
def test_any_words_come_back(words):
    data = coded(words)
    back, used = planes.decode(memoryview(data + b"more"), words.size, words.dtype)
    assert used == len(data) <= words.nbytes + words.itemsize
    assert back.tobytes() == words.tobytes()


@given(WORDS, st.data())
def test_damaged_planes_are_refused_or_others(words, data):
    bytes_ = bytearray(coded(words))
    if bytes_:
        bytes_[data.draw(st.integers(0, len(bytes_) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    cut = bytes(bytes_[: data.draw(st.integers(0, len(bytes_)))])
    try:
        back, used = planes.decode(memoryview(cut), words.size, words.dtype)
    except FormatError:
        return
    assert coded(back) == cut[:used]


def test_planes_coded_in_the_other_way_are_refused():
    words = np.array([0xC102] * 100, "<u2")
    with pytest.raises(FormatError, match="is not coded, though that is shorter"):
        planes.decode(memoryview(b"\0" + bytes(100) + b"\0" + bytes(100)), 100, words.dtype)
    with pytest.raises(FormatError, match="end within a plane"):
        planes.decode(memoryview(b"\2" + bytes(300)), 100, words.dtype)


@pytest.mark.parametrize(
    ("values", "type", "words"),
    [
        ([], 1, []),
        ([0.5, -0.0, 65504], 1, [0x3800, 0x8000, 0x7BFF]),
        ([2.0**-24], 1, [1]),
        ([65536, -1], 2, [0x4780, 0xBF80]),
        ([65536, 0.1], 0, [0x47800000, 0x3DCCCCCD]),
        ([1e-45], 0, [1]),
        ([0.5] * 300 + [0.1], 0, [0x3F000000] * 300 + [0x3DCCCCCD]),
    ],
)
def test_words_of_values(values, type, words):
    array = np.array(values, np.float32)
    found = floats.smallest(array)
    assert (found.type, found.words.tolist()) == (type, words)
    assert found.words.dtype == floats.TYPES[type]
    assert floats.values(*found).tobytes() == array.tobytes()
    assert floats.narrow(array).type == (1 if type == 1 else 0)
    assert floats.values(*floats.narrow(array)).tobytes() == array.tobytes()


def test_values_that_are_not_finite_are_found():
    assert floats.are_finite(np.zeros(0, np.float32))
    assert floats.are_finite(np.array([3e38, -3e38], np.float32))
    for value in (np.inf, -np.inf, np.nan):
        assert not floats.are_finite(np.array([1, value, 2], np.float32))
