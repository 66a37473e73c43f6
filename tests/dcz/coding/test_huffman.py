import heapq
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcomp.dcz.coding import huffman
from deepcomp.errors import FormatError, RecipeError


def u8(*values):
    return np.array(values, np.uint8)


def stream(bits):
    """A text of zeros, ones and spaces as bytes, padded with zeros."""
    bits = bits.replace(" ", "")
    return bytes(int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8))


def damaged(data, count, alphabet, message):
    with pytest.raises(FormatError, match=message) as caught:
        huffman.decode(data, count, alphabet)
    assert "\n" not in str(caught.value)


def entropy_bits(counts):
    """What the best code of whole sequences takes, in bits."""
    counts = np.asarray(counts, float)
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def huffman_cost(counts):
    """Bits of an unlimited Huffman code, from a heap of weights."""
    heap = [int(count) for count in counts if count]
    heapq.heapify(heap)
    cost = 0
    while len(heap) > 1:
        weight = heapq.heappop(heap) + heapq.heappop(heap)
        cost += weight
        heapq.heappush(heap, weight)
    return cost


def kraft(lengths):
    return sum(2.0 ** -int(length) for length in lengths if length)


def cost(counts, lengths):
    return int(np.asarray(counts) @ lengths.astype(np.int64))


def fibonacci(n):
    counts = [1, 1]
    while len(counts) < n:
        counts.append(counts[-1] + counts[-2])
    return np.array(counts)


def plain_decode(data, count, alphabet):
    """The stream as the module's first lines describe it, read bit by bit."""
    if not count:
        return []
    bits = iter("".join(f"{byte:08b}" for byte in data))

    def zeros():
        return sum(1 for _ in itertools.takewhile(lambda bit: bit == "0", bits))

    def gamma():
        more = zeros()
        return int("1" + "".join(next(bits) for _ in range(more)), 2)

    holes, below, above = gamma() - 1, gamma() - 1, gamma() - 1
    present, at = [], below
    for _ in range(holes):
        run, hole = gamma(), gamma()
        present += range(at, at + run)
        at += run + hole
    present += range(at, alphabet - above)
    lengths, length = [], (len(present) - 1).bit_length()
    for _ in present[:-1]:
        n = zeros()
        length += (n + 1) // 2 if n % 2 else -n // 2
        lengths.append(length)
    lengths.append(round(-np.log2(1 - kraft(lengths))))
    code, names = 0, {}
    for length, symbol in sorted(zip(lengths, present, strict=True)):
        names[format(code >> (24 - length), f"0{length}b") if length else ""] = symbol
        code += 1 << (24 - length)
    symbols = []
    for _ in range(count):
        word = ""
        while word not in names:
            word += next(bits)
        symbols.append(names[word])
    return symbols


# Lengths and codewords


@pytest.mark.parametrize(
    ("counts", "lengths", "codewords"),
    [
        ([5, 2, 1, 1], [1, 2, 3, 3], [0b0, 0b10, 0b110, 0b111]),
        ([1, 1, 2, 5], [3, 3, 2, 1], [0b110, 0b111, 0b10, 0b0]),
        ([3, 0, 1, 0, 3, 2], [2, 0, 2, 0, 2, 2], [0b00, 0, 0b01, 0, 0b10, 0b11]),
        ([7, 7, 7], [1, 2, 2], [0b0, 0b10, 0b11]),
        ([1, 1, 2, 2], [2, 2, 2, 2], [0b00, 0b01, 0b10, 0b11]),
        ([45, 13, 12, 16, 9, 5], [1, 3, 3, 3, 4, 4], [0b0, 0b100, 0b101, 0b110, 0b1110, 0b1111]),
        ([0, 9], [0, 0], [0, 0]),
        ([4, 9], [1, 1], [0, 1]),
        ([0, 0, 0], [0, 0, 0], [0, 0, 0]),
        ([], [], []),
    ],
)
def test_golden_codes(counts, lengths, codewords):
    own = huffman.lengths(np.array(counts, np.int64))
    assert own.dtype == np.uint8
    assert own.tolist() == lengths
    code = huffman.codewords(own)
    assert code.dtype == np.uint32
    assert code.tolist() == codewords


@given(st.lists(st.integers(0, 1000), max_size=40))
def test_lengths_cost_what_huffman_costs(counts):
    counts = np.array(counts, np.int64)
    lengths = huffman.lengths(counts)
    assert cost(counts, lengths) == huffman_cost(counts)
    if np.count_nonzero(counts) > 1:
        assert kraft(lengths) == 1
        assert (lengths > 0).tolist() == (counts > 0).tolist()
        assert entropy_bits(counts) - 1e-6 <= cost(counts, lengths) <= entropy_bits(counts) + counts.sum()
    for a, b in itertools.combinations(np.flatnonzero(counts), 2):
        assert counts[a] < counts[b] or lengths[a] <= lengths[b]


@given(st.lists(st.integers(1, 100), min_size=5, max_size=6))
def test_limited_lengths_are_the_best_there_are(counts):
    counts = np.sort(np.array(counts, np.int64))
    lengths = huffman._package_merge(counts, 3)
    assert max(lengths) <= 3
    assert kraft(lengths) == 1
    codes = (np.array(code) for code in itertools.product((1, 2, 3), repeat=counts.size) if kraft(code) <= 1)
    assert cost(counts, lengths) == min(cost(counts, code) for code in codes)


def test_fibonacci_counts_meet_the_limit():
    counts = fibonacci(50)
    lengths = huffman.lengths(counts)
    assert lengths.max() == huffman.LIMIT
    assert kraft(lengths) == 1
    assert huffman_cost(counts) < cost(counts, lengths) < huffman_cost(counts) * 1.00001
    unlimited = fibonacci(25)
    assert huffman.lengths(unlimited).max() == 24
    assert cost(unlimited, huffman.lengths(unlimited)) == huffman_cost(unlimited)


def test_a_whole_alphabet_of_equals():
    lengths = huffman.lengths(np.full(65_536, 2**40))
    assert (lengths == 16).all()
    assert huffman.codewords(lengths).tolist() == list(range(65_536))


@pytest.mark.parametrize(("counts", "message"), [([1, -1], "from -1"), ([2**40 + 1], "to 1099511627777")])
def test_counts_out_of_range(counts, message):
    with pytest.raises(RecipeError, match=message):
        huffman.lengths(np.array(counts, np.int64))


def test_codewords_of_no_code():
    with pytest.raises(FormatError, match="over-full"):
        huffman.codewords(u8(1, 1, 1))
    with pytest.raises(FormatError, match="to 25"):
        huffman.codewords(u8(1, 25))


# Streams


@pytest.mark.parametrize(
    ("symbols", "alphabet", "bits"),
    [
        # no hole, from the first symbol to the last; lengths 1, 2, 3 from 2 on; 0 10 110 111
        ([0, 0, 0, 0, 0, 1, 1, 2, 3], 4, "1 1 1  001 01 01  0 0 0 0 0 10 10 110 111"),
        # one hole, one symbol below, one above; a run of 2, a hole of 3; lengths 1, 2 from 2 on; 0 10 11
        ([1, 6, 2, 1], 8, "010 010 010 010 011  001 01  0 11 10 0"),
        ([3, 3, 3], 8, "1 00100 00101"),
        ([0], 1, "1 1 1"),
        ([1, 0, 0, 1, 1], 2, "1 1 1  1  1 0 0 1 1"),
        ([65_535, 0], 65_536, "010 1 1 1 000000000000000 1111111111111110  1  1 0"),
        ([], 16, ""),
        ([], 0, ""),
    ],
)
def test_golden_streams(symbols, alphabet, bits):
    data = huffman.encode(np.array(symbols, np.uint16), alphabet)
    assert data == stream(bits)
    decoded, consumed = huffman.decode(data, len(symbols), alphabet)
    assert decoded.tolist() == symbols
    assert decoded.dtype == (np.uint8 if alphabet <= 256 else np.uint16)
    assert consumed == len(data)


def test_golden_bytes():
    assert huffman.encode(u8(0, 0, 0, 0, 0, 1, 1, 2, 3), 4).hex() == "e5415b80"
    assert huffman.encode(u8(1, 6, 2, 1), 8).hex() == "49265700"


@st.composite
def messages(draw):
    """Symbols of an alphabet, often few of them and skewed."""
    alphabet = draw(st.sampled_from([1, 2, 3, 8, 31, 32, 256, 257, 65_536]))
    some = draw(st.lists(st.integers(0, alphabet - 1), min_size=1, max_size=40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chosen = rng.geometric(draw(st.sampled_from([0.02, 0.2, 0.7])), draw(st.integers(0, 3000)))
    return np.array(some)[chosen % len(some)], alphabet


@given(messages(), st.binary(max_size=5))
def test_round_trip(message, rest):
    symbols, alphabet = message
    data = huffman.encode(symbols, alphabet)
    decoded, consumed = huffman.decode(data + rest, symbols.size, alphabet)
    np.testing.assert_array_equal(decoded, symbols)
    assert consumed == len(data)
    assert plain_decode(data, symbols.size, alphabet) == symbols.tolist()
    table, payload = huffman.size_bits(np.bincount(symbols, minlength=alphabet))
    assert len(data) == (table + payload + 7) // 8


def test_codewords_at_the_limit():
    counts = fibonacci(28)
    symbols = np.random.default_rng(0).permutation(np.repeat(np.arange(28, dtype=np.uint8), counts))
    data = huffman.encode(symbols, 28)
    decoded, consumed = huffman.decode(data, symbols.size, 28)
    np.testing.assert_array_equal(decoded, symbols)
    assert consumed == len(data)
    damaged(data[:-1], symbols.size, 28, "truncated")


def test_a_whole_alphabet_round_trip():
    symbols = np.random.default_rng(0).integers(0, 65_536, 300_000, dtype=np.uint16)
    data = huffman.encode(symbols, 65_536)
    np.testing.assert_array_equal(huffman.decode(data, symbols.size, 65_536)[0], symbols)


def test_any_array_and_any_buffer():
    symbols = np.arange(24, dtype=np.int64).reshape(4, 6) % 5
    data = huffman.encode(symbols[:, ::2], 5)
    assert data == huffman.encode(np.ascontiguousarray(symbols[:, ::2]).astype(np.uint8), 5)
    for buffer in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint8).copy()):
        assert huffman.decode(buffer, 12, 5)[0].tolist() == symbols[:, ::2].ravel().tolist()


@pytest.mark.parametrize(
    ("symbols", "alphabet", "message"),
    [
        (u8(0, 4), 4, "Symbols from 0 to 4"),
        (np.array([-1, 0]), 4, "Symbols from -1"),
        (u8(0), 0, "alphabet of 0"),
        (u8(0), 65_537, "An alphabet of 65537"),
        (np.zeros(3), 4, "type float64"),
    ],
)
def test_what_cannot_be_encoded(symbols, alphabet, message):
    with pytest.raises(RecipeError, match=message):
        huffman.encode(symbols, alphabet)


# Sizes


def laplacian_counts(total):
    """How often 32 levels, evenly spaced to 3.65 times the scale on both sides, occur; what is beyond is clipped."""
    edges = np.linspace(-3.65, 3.65, 33)
    below = np.where(edges < 0, np.exp(edges) / 2, 1 - np.exp(-edges) / 2)
    below[[0, -1]] = 0, 1
    return np.round(total * np.diff(below)).astype(np.int64)


def test_laplacian_values_take_their_entropy():
    counts = laplacian_counts(1_000_000)
    table, payload = huffman.size_bits(counts)
    assert entropy_bits(counts) / counts.sum() == pytest.approx(4.4545, abs=0.01)
    assert payload <= 1.01 * entropy_bits(counts)
    assert table < 8 * 10  # 5 bits a length would be 20 bytes
    data = huffman.encode(np.repeat(np.arange(32, dtype=np.uint8), counts), 32)
    assert len(data) == (table + payload + 7) // 8


def test_nine_zeros_in_ten_take_a_bit_each():
    counts = np.concatenate(([900_000], laplacian_counts(100_000)))
    _, payload = huffman.size_bits(counts)
    assert entropy_bits(counts) / counts.sum() == pytest.approx(0.911, abs=0.005)
    assert payload / counts.sum() == pytest.approx(1.446, abs=0.005)


def test_sizes_of_nothing_and_of_one_symbol():
    assert huffman.size_bits(np.zeros(16, np.int64)) == (0, 0)
    assert huffman.size_bits(np.array([0, 1_000_000, 0, 0])) == (1 + 3 + 3, 0)


# Damage, by name


def test_overfull_tables():
    damaged(stream("1 1 1  1 1 001  0000"), 1, 4, "over-full")  # 2, 2, 1
    damaged(stream("1 1 1  001 1 1  0000"), 1, 4, "over-full")  # 1, 1, 1
    damaged(stream("1 1 1  001 1  0000"), 1, 3, "over-full")  # 1, 1: nothing is left for the last


def test_incomplete_tables():
    damaged(stream("1 1 1  1 01  0000"), 1, 3, "incomplete")  # 2, 3: 5/8 are left
    damaged(stream("1 1 1  1 01 01  0000"), 1, 4, "incomplete")  # 2, 3, 4


def test_lengths_out_of_range():
    damaged(stream("1 1 1  001 " + 47 * "0" + "1 00"), 1, 3, "lengths from 1 to 25")
    damaged(stream("1 1 1  " + 47 * "0" + "1 00"), 1, 2, "lengths from 25 to 25")
    damaged(stream("1 1 1  001 00"), 1, 2, "lengths from 0 to 0")


def test_symbols_beyond_the_alphabet():
    damaged(stream("1 00101 1"), 1, 4, "beyond its alphabet")
    damaged(stream("1 1 00101"), 1, 4, "beyond its alphabet")
    damaged(stream("010 1 1 010 010"), 1, 4, "beyond its alphabet")
    damaged(stream("1 1 1"), 1, 0, "beyond its alphabet")
    damaged(stream("000000000000000010000000000000000 1 1"), 1, 65_536, "beyond|truncated")


def test_endless_holes():
    damaged(stream("0000000000000001 000000000000000" + 4000 * "1"), 1, 65_536, "truncated|over-full|lengths")
    damaged(bytes(1000), 1, 65_536, "truncated")
    damaged(b"\xff" * 1000, 100, 65_536, "truncated")


def test_codes_that_are_not_the_best():
    good = "1 1 1  001 01 01  0 0 0 0 0 10 10 110 111"
    assert huffman.decode(stream(good), 9, 4)[0].tolist() == [0, 0, 0, 0, 0, 1, 1, 2, 3]
    damaged(stream("1 1 1  1 1 1  00 00 00 00 00 01 01 10 11"), 9, 4, "not the best")
    damaged(stream("1 1 1  001 01 01  0 0 0 0 0 10 10 110 110"), 9, 4, "not the best")  # symbol 3 does not occur


def test_padding_and_truncation():
    data = huffman.encode(u8(0, 0, 0, 0, 0, 1, 1, 2, 3), 4)
    for end in range(len(data)):
        damaged(data[:end], 9, 4, "truncated")
    damaged(data[:-1] + bytes([data[-1] | 1]), 9, 4, "padded")


def test_nothing_is_allocated_for_symbols_that_are_not_there():
    damaged(huffman.encode(u8(0, 1, 1), 2), 10**18, 2, "truncated")


@pytest.mark.parametrize(("count", "alphabet"), [(-1, 4), (1, -1), (1, 65_537)])
def test_declared_numbers_out_of_range(count, alphabet):
    damaged(b"\xe0", count, alphabet, "must be")


def test_random_and_mutated_bytes():
    rng = np.random.default_rng(0)
    accepted = 0
    for trial in range(6000):
        alphabet = int(rng.choice([1, 2, 4, 5, 32, 256, 65_536]))
        count = int(rng.integers(1, 60))
        if trial % 3:
            symbols = np.minimum(rng.geometric(rng.choice([0.05, 0.4]), count) - 1, alphabet - 1)
            data = np.frombuffer(huffman.encode(symbols, alphabet), np.uint8).copy()
            for _ in range(rng.integers(1, 3)):
                data[rng.integers(data.size)] ^= 1 << rng.integers(8)
        else:
            data = rng.integers(0, 256, rng.integers(0, 40), dtype=np.uint8)
        data = data.tobytes()
        try:
            decoded, consumed = huffman.decode(data, count, alphabet)
        except FormatError as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            accepted += 1
            assert huffman.encode(decoded, alphabet) == data[:consumed]
    assert 10 < accepted < 5000


@pytest.mark.parametrize("piece", [1, 2, 7, 64])
def test_pieces_are_the_whole_stream(piece, monkeypatch):
    symbols = np.random.default_rng(0).geometric(0.3, 500).astype(np.uint8) % 9
    whole = huffman.encode(symbols, 9)
    monkeypatch.setattr(huffman, "_PIECE", piece)
    assert huffman.encode(symbols, 9) == whole
    assert len([*huffman.encode_pieces(symbols, 9)]) >= 500 // piece
