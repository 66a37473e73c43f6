"""Canonical Huffman codes: symbols of one alphabet as a stream of bytes that carries its own code table.

Source: Han, Mao and Dally, Deep Compression, ICLR 2016, section 4; lengths are limited by the package-merge of
Larmore and Hirschberg, JACM 1990.

A stream of no symbols is no bytes. Any other is, from the highest bit of the first byte on:

1. Which of the symbols 0 to alphabet - 1 occur. They stand in runs of neighbours, with holes between the runs:
   the number of holes plus 1; the number of symbols below the first run plus 1; the number above the last run
   plus 1; then for each hole the size of the run before it and the size of the hole. Each number v >= 1 is in
   Elias gamma code: b - 1 zero bits, then v in its b bits. The last run takes what is left of the alphabet.
2. The lengths of their codewords in the order of the symbols, all but the last one: each as the step d from the one
   before, the first as the step from the b bits that the number of symbols that occur, minus 1, is written in. A
   step d > 0 is 2d - 1 zero bits and a one bit; a step d <= 0 is -2d zero bits and a one bit. The last length is the
   one that makes the sum of 2^-length 1. A symbol that occurs alone has length 0.
3. The codewords of the symbols, one after the other. Codewords are numbered through from zero bits, shorter ones first,
   of equal length the lower symbol first.
4. Zero bits up to a whole byte.

The lengths are at most 24 bits and otherwise the best for the counts of the symbols; of two equally frequent symbols
the lower has no longer codeword than the higher, and where there is still a choice, symbols are preferred to
packages of equal weight. So a sequence of symbols has exactly one stream, and `decode` takes no other.
"""

from collections.abc import Iterator

import numpy as np

from deepcomp.compiled import compiled
from deepcomp.errors import FormatError, RecipeError

_PIECE = 2**22  # symbols that are coded at once
LIMIT = 24  # bits of the longest codeword: costs nothing measurable, and fits a 64-bit buffer with room to spare
MAX_ALPHABET = 65_536
_MAX_COUNT = 2**40  # sums of 65,536 such counts over 24 levels fit int64
_WHOLE = 1 << LIMIT  # a code is measured in codewords of the longest kind
_FAST = 12  # bits looked up at once: a table of 16 kB stays in the first-level cache
_LONG = 31  # stands for a length in that table where the codeword goes on
_MAX_STEP = 2 * (LIMIT - 1) + 1  # bits


def lengths(counts: np.ndarray) -> np.ndarray:
    """The best lengths of codewords, in bits, for symbols that occur `counts` times.

    counts: `int64 (alphabet,)`, each up to 2^40. Returns `uint8 (alphabet,)`: 0 for a symbol that does not occur or
    that occurs alone, else 1 to 24. Raises RecipeError for counts or an alphabet out of range. Source: section 4.
    """
    counts = np.asarray(counts, np.int64)
    _check_alphabet(counts.size, RecipeError)
    if counts.size and not 0 <= counts.min() <= counts.max() <= _MAX_COUNT:
        raise RecipeError(f"Counts from {counts.min()} to {counts.max()}: they must be from 0 to {_MAX_COUNT}.")
    present = np.flatnonzero(counts)
    best = np.zeros(counts.size, np.uint8)
    if present.size:
        rarest_first = present[np.lexsort((-present, counts[present]))]
        best[rarest_first] = _package_merge(counts[rarest_first], LIMIT)
    return best


def codewords(lengths: np.ndarray) -> np.ndarray:
    """The canonical code of these lengths: shorter codewords first, of equal length the lower symbol first.

    lengths: `uint8 (alphabet,)`, bits, 0 for no codeword. Returns `uint32 (alphabet,)`, the codeword in the lowest
    bits, 0 for none. Raises FormatError where a length is over 24 or the code is over-full. Source: section 4.
    """
    lengths = np.asarray(lengths, np.int64)
    present = np.flatnonzero(lengths)
    order = present[np.argsort(lengths[present], kind="stable")]
    _check_lengths(lengths[order])
    size = _sizes(lengths[order])
    if size.sum() > _WHOLE:
        raise FormatError("A Huffman code is over-full: its Kraft sum is above 1.")
    codes = np.zeros(lengths.size, np.uint32)
    codes[order] = (np.cumsum(size) - size) >> (LIMIT - lengths[order])
    return codes


def histogram(symbols: np.ndarray, alphabet: int) -> np.ndarray:
    """How often each symbol occurs: `int64 (alphabet,)`."""
    counts = np.zeros(alphabet, np.int64)
    _count(symbols.ravel(), counts)
    return counts


def size_bits(counts: np.ndarray) -> tuple[int, int]:
    """The bits of the code table and of the codewords in the stream of symbols that occur `counts` times.

    counts: `int64 (alphabet,)`, as for `lengths`. The stream has their sum, rounded up to whole bytes.
    """
    counts = np.asarray(counts, np.int64)
    own = lengths(counts)
    return len(_table(counts, own)), int(counts @ own.astype(np.int64))


def encode(symbols: np.ndarray, alphabet: int) -> bytes:
    """Code symbols, with the code table; for the bits see the top of this module.

    symbols: `unsigned, any shape`, less than alphabet; alphabet: 0 to 65,536. Raises RecipeError for a symbol or an
    alphabet out of range. Source: section 4.
    """
    return b"".join(encode_pieces(symbols, alphabet))


def encode_pieces(symbols: np.ndarray, alphabet: int) -> Iterator[bytes | memoryview]:
    """What `encode` returns, as pieces of a few megabytes that follow each other."""
    _check_alphabet(alphabet, RecipeError)
    symbols = _plain(symbols, alphabet)
    if not symbols.size:
        return
    counts = histogram(symbols, alphabet)
    own = lengths(counts)
    table, codes = _table(counts, own), codewords(own)
    head, held = _bytes(table), len(table) % 8  # bits of the last byte so far
    yield head[: len(table) // 8]
    last = head[-1] if held else 0
    for first in range(0, symbols.size, _PIECE):
        part = symbols[first : first + _PIECE]
        end = held + int(histogram(part, alphabet) @ own.astype(np.int64))
        out = np.zeros((end + 7) // 8, np.uint8)
        out[0] = last
        _pack(part, codes, own, out, held)
        held, last = end % 8, out[-1]
        yield out[: end // 8].data
    if held:
        yield bytes([last])


def decode(data: bytes | memoryview, count: int, alphabet: int) -> tuple[np.ndarray, int]:
    """Read `count` symbols from the start of `data`: the inverse of `encode`.

    data: bytes, or anything contiguous that has a buffer; it may go on after the stream. Returns the symbols, `uint8 or
    uint16 (count,)`, whichever is enough for the alphabet, and the number of bytes the stream took.

    Raises FormatError where `data` is not what `encode` makes of `count` symbols of this alphabet: truncated; a code
    that is over-full, incomplete, over 24 bits long or not the best one; padding other than zeros.
    """
    _check_alphabet(alphabet, FormatError)
    if count < 0:
        raise FormatError(f"A Huffman stream has {count} symbols: there must be 0 or more.")
    if not count:
        return np.zeros(0, _dtype(alphabet)), 0
    data = np.frombuffer(data, np.uint8)
    data.flags.writeable = False  # one type for Numba to compile for
    present, own, position = _read_table(data, alphabet)
    if position + count * int(own.min()) > 8 * data.size:  # before anything is allocated by `count`
        raise _truncated(data)
    symbols = np.empty(count, _dtype(alphabet))
    end = _unpack(data, position, *_lookup(present, own), symbols)
    consumed = (end + 7) // 8
    if consumed > data.size:
        raise _truncated(data)
    if data[consumed - 1] & ((1 << (8 * consumed - end)) - 1):
        raise FormatError("A Huffman stream is padded with bits that are not zero.")
    if not np.array_equal(lengths(histogram(symbols, alphabet)), _spread(present, own, alphabet)):
        raise FormatError("A Huffman code is not the best one for its symbols.")
    return symbols, consumed


def _check_alphabet(alphabet: int, error: type[Exception]) -> None:
    if not 0 <= alphabet <= MAX_ALPHABET:
        raise error(f"An alphabet of {alphabet} symbols: it must be from 0 to {MAX_ALPHABET}.")


def _check_lengths(own: np.ndarray) -> None:
    if own.size and not 1 <= own.min() <= own.max() <= LIMIT:
        raise FormatError(
            f"A Huffman code has lengths from {own.min()} to {own.max()}: they must be from 1 to {LIMIT}."
        )


def _truncated(data: np.ndarray) -> FormatError:
    return FormatError(f"A Huffman stream is truncated: it goes on after its {data.size} bytes.")


def _dtype(alphabet: int) -> np.dtype:
    """The smallest type that holds every symbol."""
    return np.min_scalar_type(max(alphabet - 1, 0))


def _sizes(own: np.ndarray) -> np.ndarray:
    """How much of a code, in codewords of 24 bits, each length takes: `int64`."""
    return np.int64(1) << (LIMIT - own.astype(np.int64))


def _spread(present: np.ndarray, own: np.ndarray, alphabet: int) -> np.ndarray:
    """The lengths of all symbols from those of the present ones."""
    spread = np.zeros(alphabet, np.uint8)
    spread[present] = own
    return spread


def _plain(symbols: np.ndarray, alphabet: int) -> np.ndarray:
    """Symbols as a flat array of the smallest type, so that few types are compiled for; checked."""
    symbols = np.asarray(symbols).ravel()
    if symbols.size and symbols.dtype.kind not in "ui":
        raise RecipeError(f"Symbols of type {symbols.dtype}: they must be whole numbers.")
    if symbols.size and not 0 <= symbols.min() <= symbols.max() < alphabet:
        raise RecipeError(f"Symbols from {symbols.min()} to {symbols.max()}: an alphabet of {alphabet} begins at 0.")
    return symbols.astype(_dtype(alphabet), copy=False)


def _table(counts: np.ndarray, own: np.ndarray) -> str:
    """The code table as a text of zeros and ones."""
    present = np.flatnonzero(counts)
    if not present.size:
        return ""
    ends = np.flatnonzero(np.diff(present) > 1)  # of the runs before a hole
    runs = np.diff(ends, prepend=-1)
    holes = present[ends + 1] - present[ends] - 1
    numbers = [ends.size + 1, present[0] + 1, counts.size - present[-1], *np.stack((runs, holes), 1).ravel()]
    steps = np.diff(own[present][:-1].astype(np.int64), prepend=_first_guess(present.size))
    zeros = np.where(steps > 0, 2 * steps - 1, -2 * steps)
    return "".join([_gamma(int(number)) for number in numbers] + ["0" * z + "1" for z in zeros.tolist()])


def _gamma(number: int) -> str:
    """Elias gamma code of a number from 1."""
    binary = f"{number:b}"
    return "0" * (len(binary) - 1) + binary


def _bytes(bits: str) -> bytes:
    """A text of zeros and ones as bytes, highest bit first, padded with zeros."""
    size = (len(bits) + 7) // 8
    return int(bits.ljust(8 * size, "0"), 2).to_bytes(size, "big")


def _first_guess(present: int) -> int:
    """The length that codewords would have were all symbols equally frequent."""
    return (present - 1).bit_length()


def _read_table(data: np.ndarray, alphabet: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The symbols that occur, their lengths, both `int64 (present,)`, and the bit after the table."""
    present, position = _read_present(data, alphabet)
    own, position = _read_lengths(data, position, present.size)
    return present, own, position


def _read_present(data: np.ndarray, alphabet: int) -> tuple[np.ndarray, int]:
    """The symbols that occur, `int64 (present,)`, and the bit after their description."""
    holes, position = _read_gamma(data, 0)
    below, position = _read_gamma(data, position)
    above, position = _read_gamma(data, position)
    sizes = [below - 1]
    left = alphabet - (below - 1) - (above - 1)
    for _ in range(2 * (holes - 1)):
        size, position = _read_gamma(data, position)
        sizes.append(size)
        left -= size
        if left < 1:
            break
    if left < 1:
        raise FormatError(f"A Huffman code has symbols beyond its alphabet of {alphabet}.")
    sizes += [left, above - 1]
    return np.flatnonzero(np.repeat(np.arange(len(sizes)) % 2 == 1, sizes)), position


def _read_gamma(data: np.ndarray, position: int) -> tuple[int, int]:
    """One number in Elias gamma code, and the bit after it; after the end of the data there are zeros."""
    start = position // 8
    window = int.from_bytes(data[start : start + 8].tobytes().ljust(8, b"\0"), "big")
    window = (window << position % 8) & (2**64 - 1)
    width = 2 * (64 - window.bit_length()) + 1
    if width > 2 * MAX_ALPHABET.bit_length() - 1:
        raise FormatError(f"A Huffman code table has a number over {MAX_ALPHABET} or is truncated.")
    return window >> (64 - width), position + width


def _read_lengths(data: np.ndarray, position: int, present: int) -> tuple[np.ndarray, int]:
    """The lengths of the present symbols, `int64 (present,)`, and the bit after them."""
    start = position // 8
    bits = np.unpackbits(data[start : start + (_MAX_STEP * present + 7) // 8 + 1])[position % 8 :]
    ones = np.flatnonzero(bits)[: present - 1]
    if ones.size < present - 1:
        raise FormatError("A Huffman code table is truncated or has a length out of range.")
    zeros = np.diff(ones, prepend=-1) - 1
    steps = np.where(zeros % 2, (zeros + 1) // 2, -zeros // 2)
    own = _first_guess(present) + np.cumsum(steps)
    _check_lengths(own)
    left = _WHOLE - int(_sizes(own).sum())
    if left <= 0:
        raise FormatError("A Huffman code is over-full: its Kraft sum is above 1.")
    if left & (left - 1):
        raise FormatError("A Huffman code is incomplete: no length of the last codeword makes its Kraft sum 1.")
    return np.append(own, LIMIT + 1 - left.bit_length()), position + (int(ones[-1]) + 1 if ones.size else 0)


def _lookup(present: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, int, np.ndarray, np.ndarray, np.ndarray]:
    """What `_unpack` needs of a complete code.

    Returns `fast`, `int32 (2^width,)`: for the next bits 32 x symbol + length, or `_LONG` where the codeword is
    longer than `width`; width; `ends`, `int64 (25,)`: up to which number of 24 bits codewords of at most that length
    reach; `ranks`, `int64 (25,)`: how many codewords are shorter; and `ranked`, the symbols in the order of their
    codewords.
    """
    order = np.argsort(own, kind="stable")
    ranked, own = present[order], own[order]
    width = min(_FAST, int(own[-1]))
    short = own <= width
    fast = np.full(1 << width, _LONG, np.int32)
    entries = np.repeat(32 * ranked[short] + own[short], 1 << (width - own[short]))
    fast[: entries.size] = entries
    number = np.bincount(own, minlength=LIMIT + 1)
    ends = np.cumsum(number << (LIMIT - np.arange(LIMIT + 1)))
    return fast, width, ends, np.cumsum(number) - number, ranked


@compiled()
def _count(symbols, counts):
    for symbol in symbols:
        counts[symbol] += 1


@compiled()
def _package_merge(counts, limit):
    """The best lengths of up to 2^limit codewords for ascending counts, at least one: `uint8 (n,)`, descending.

    A package is two neighbours of the list of a level; the next list has the symbols and the packages by weight. The
    lightest 2n - 2 of the last list, taken apart again, have each symbol as often as its codeword has bits.
    """
    n = counts.size
    is_symbol = np.zeros((limit, 2 * n), np.bool_)
    weights = np.zeros(2 * n, np.int64)
    merged = np.zeros(2 * n, np.int64)
    size = 0
    for level in range(limit):
        packages = size // 2
        size = n + packages
        symbol = package = 0
        for i in range(size):
            weight = weights[2 * package] + weights[2 * package + 1] if package < packages else 0
            if symbol < n and (package == packages or counts[symbol] <= weight):
                merged[i] = counts[symbol]
                is_symbol[level, i] = True
                symbol += 1
            else:
                merged[i] = weight
                package += 1
        weights, merged = merged, weights
    lengths = np.zeros(n, np.uint8)
    taken = 2 * n - 2
    for level in range(limit - 1, -1, -1):
        symbols = 0
        for i in range(taken):
            symbols += is_symbol[level, i]
        for i in range(symbols):  # as a slice it would take seconds to compile, for the errors of shapes
            lengths[i] += np.uint8(1)
        taken = 2 * (taken - symbols)
    return lengths


@compiled()
def _pack(symbols, codes, lengths, out, position):
    """Write codewords into `out`, zeros from the bit `position` on, which is big enough for them."""
    at = position // 8
    held = position % 8  # bits in the buffer that are not written yet
    buffer = np.int64(out[at]) >> (8 - held) if held else np.int64(0)
    for symbol in symbols:
        buffer = (buffer << np.int64(lengths[symbol])) | np.int64(codes[symbol])
        held += np.int64(lengths[symbol])
        if held >= 32:
            held -= 32
            word = buffer >> held
            out[at] = (word >> 24) & 255
            out[at + 1] = (word >> 16) & 255
            out[at + 2] = (word >> 8) & 255
            out[at + 3] = word & 255
            at += 4
    while held >= 8:
        held -= 8
        out[at] = (buffer >> held) & 255
        at += 1
    if held:
        out[at] = (buffer << (8 - held)) & 255


@compiled()
def _unpack(data, position, fast, width, ends, ranks, ranked, symbols):
    """Fill `symbols` from the bit `position` on and return the bit after them.

    After the end of `data` there are zeros, so that this needs no check a symbol: the caller compares the end. The
    code is complete, so every sequence of bits begins with one of its codewords.
    """
    at = position // 8
    held = (8 - position % 8) % 8  # bits in the buffer that are not read yet
    buffer = np.int64(data[at]) if held else np.int64(0)
    at += 1 if held else 0
    mask = (1 << width) - 1
    for i in range(symbols.size):
        if held < 32:
            word = np.int64(0)
            if at + 4 <= data.size:
                word = np.int64(data[at]) << 24 | np.int64(data[at + 1]) << 16
                word |= np.int64(data[at + 2]) << 8 | np.int64(data[at + 3])
            else:
                for j in range(at, at + 4):
                    word = word << 8 | (np.int64(data[j]) if j < data.size else 0)
            buffer = buffer << 32 | word
            held += 32
            at += 4
        entry = np.int64(fast[(buffer >> (held - width)) & mask])
        length = entry & 31
        symbol = entry >> 5
        if length == _LONG:
            code = (buffer >> (held - LIMIT)) & (_WHOLE - 1)
            length = width + 1
            while code >= ends[length]:
                length += 1
            symbol = ranked[ranks[length] + ((code - ends[length - 1]) >> (LIMIT - length))]
        held -= length
        symbols[i] = symbol
    return 8 * at - held
