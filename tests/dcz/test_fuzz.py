import os
import re
import signal
import struct
import time
import tracemalloc
from unittest.mock import Mock

import numpy as np
import pytest

from benchmarks import fuzz
from deepcomp.dcz import coding, container
from deepcomp.dcz.coding import arithmetic, huffman, mixing_2
from deepcomp.dcz.kinds import KINDS
from deepcomp.dcz.network import Layer, Network, SharedWeight
from deepcomp.errors import FormatError, UnsupportedLayerError
from tests.clock import seconds

HUFFMAN, RANGE = 0, 1
MB = 1 << 20


@pytest.fixture(autouse=True, scope="module")
def compiled():
    """Compile before anything is timed."""
    for file in fuzz.originals():
        container.loads(file.data)


# The pieces of a file: one Dense without bias that makes 2 of 8, 16 weights of 2 values


def varint(number):
    digits = bytearray()
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def dense(units, *inputs):
    """A Dense without bias; `inputs` are the distances to the layers that it takes, if not the one before."""
    taken = varint(len(inputs) - 1) + b"".join(varint(distance - 1) for distance in inputs) if inputs else b""
    return b"\x01" + varint(0b101 if inputs else 0b100) + taken + varint(units - 1) + b"\0"


def architecture(*layers, shape=(8,)):
    sizes = b"".join(varint(size - 1) for size in shape)
    return varint(len(shape) - 1) + sizes + varint(len(layers) - 1) + b"".join(layers)


def names(*own):
    """Lengths and bytes; "" for the default."""
    return b"".join(varint(len(name.encode())) + name.encode() for name in own)


def codebook(*values):
    return b"\x05" + varint(len(values)) + struct.pack(f"<{len(values)}e", *values)


def entries(bits, gaps, values, centroids=2):
    """A tensor as the Huffman coder has it: survivors and fillers."""
    coded = huffman.encode(np.array(gaps, np.uint16), 1 << bits) if gaps else b""
    coded += huffman.encode(np.array(values, np.uint16), centroids + 1) if values else b""
    return bytes([bits]) + varint(len(gaps)) + coded


def stream(bits):
    """A text of zeros, ones and spaces as bytes, padded with zeros."""
    bits = bits.replace(" ", "")
    return bytes(int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8))


ONE_DENSE = architecture(dense(2))
NAMES = names("net", "", "")
TABLES = codebook(-0.5, 1)
ENTRIES = entries(2, [0, 3, 1], [1, 2, 2])


def file(architecture=ONE_DENSE, names=NAMES, tables=TABLES, section=ENTRIES, coder=HUFFMAN):
    return fuzz.seal(b"DCZ\x01" + bytes([coder]) + architecture + names + tables + section)


def refused(data, message, limit=0.05, memory=10 * MB):
    """A file is refused, soon and before much is allocated."""
    with seconds() as taken, pytest.raises(FormatError, match=message):
        container.loads(data)
    assert taken[0] < limit
    assert peak(data) < memory


def peak(data):
    """The most bytes that are allocated at a time while a file is loaded."""
    tracemalloc.start()
    try:
        container.loads(data)
    except FormatError:
        pass
    finally:
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return most


def declared(data):
    """How many weights a file declares; None if it is refused before that is known."""
    with pytest.raises(FormatError) as caught:
        container.loads(data, limit=0)
    found = re.search(r"declares (\d+) weights", str(caught.value))
    return int(found[1]) if found else None


def test_the_pieces_make_a_file():
    kernel = container.loads(file()).layers[1].weights["kernel"]
    assert kernel.codebook.tolist() == [-0.5, 1]
    assert kernel.indices.ravel().tolist() == [1, 0, 0, 0, 2, 0, 2] + [0] * 9
    ranged, _ = arithmetic.encode([kernel.indices], [coding.Spec((8, 2), 2, 1)], mixing_2.MODEL)
    assert fuzz.same(container.loads(file(section=ranged, coder=RANGE)), container.loads(file()))


# Damage by the thousand


@pytest.mark.parametrize("count", [300, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_files_by_the_thousand(count, tmp_path):
    results = list(fuzz.run(count, count, seed=0, memory=MB << 9, patience=10))
    assert len({(result.repaired, result.number) for result in results}) == len(results) == 2 * count
    bad = [(result, fuzz.keep(result, 0, tmp_path)) for result in results if result.outcome in fuzz.BAD]
    assert not bad
    assert {result.damage for result in results} == set(fuzz.DAMAGE)
    assert {result.outcome for result in results if not result.repaired} <= {"refused", "same"}
    assert {result.outcome for result in results if result.repaired} == {"refused", "another"}
    assert max(result.seconds for result in results) < 5


def test_memory_follows_what_a_damaged_file_declares():
    files = fuzz.originals()
    for number in range(300):
        data = fuzz.make(files, 1, True, number).data
        assert peak(data) < MB + 64 * 4 * (declared(data) or 0)


def fate(case):
    return {"truncated": "crash", "FF run": "hang"}.get(case.damage, "refused")


def crash_or_hang(case, repaired):
    if fate(case) == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if fate(case) == "hang":
        time.sleep(60)
    return "refused", "", 0.0


@pytest.mark.slow
def test_crashes_and_hangs_are_noticed():
    results = {result.number: result for result in fuzz.run(0, 8, seed=3, patience=0.5, judge=crash_or_hang)}
    cases = [fuzz.make(fuzz.originals(), 3, True, number) for number in range(8)]
    assert {fate(case) for case in cases} == {"crash", "hang", "refused"}
    for number, case in enumerate(cases):
        assert (results[number].damage, results[number].outcome) == (case.damage, fate(case))


@pytest.mark.parametrize("damage", fuzz.DAMAGE)
def test_damage_is_reproducible_and_is_damage(damage):
    files = fuzz.originals()[:2]
    for repaired in (False, True):
        cases = [case for n in range(120) if (case := fuzz.make(files, 2, repaired, n)).damage == damage]
        again = [case for n in range(120) if (case := fuzz.make(files, 2, repaired, n)).damage == damage]
        assert cases
        assert [case.data for case in cases] == [case.data for case in again]
        assert all(case.data != case.file.data for case in cases)


def test_every_verdict(monkeypatch):
    one, _, two, *_ = fuzz.originals()
    assert fuzz.judge(fuzz.Case("", one, one.data), False)[0] == "same"
    assert fuzz.judge(fuzz.Case("", one, two.data), False)[0] == "wrong"
    assert fuzz.judge(fuzz.Case("", one, two.data), True)[0] == "another"
    assert fuzz.judge(fuzz.Case("", one, b""), True)[0] == "refused"
    for error, verdict in ((MemoryError, "memory"), (IndexError, "exception")):
        monkeypatch.setattr(container, "loads", Mock(side_effect=error))
        assert fuzz.judge(fuzz.Case("", one, two.data), True)[0] == verdict


def test_an_unsound_network_is_found():
    def network(codebook, indices):
        kernel = SharedWeight(np.array(codebook, np.float32), np.array(indices, np.uint8).reshape(2, 1))
        layers = (
            Layer("InputLayer", "in"),
            Layer("Dense", "fc", (0,), {"units": 1, "use_bias": False}, {"kernel": kernel}),
        )
        return Network("net", (2,), layers)

    assert fuzz.flaw(network([-1, 1], [0, 2])) == ""
    assert "not sound" in fuzz.flaw(network([-1, 1], [0, 3]))
    assert "not sound" in fuzz.flaw(network([1, 1], [0, 2]))
    assert "not sound" in fuzz.flaw(network([0, 1], [0, 2]))


# Bombs


HUGE = 2**31 - 1


@pytest.mark.parametrize(
    ("shape", "layer", "message"),
    [
        ((HUGE,) * 8, dense(1), "too large"),
        ((HUGE,), dense(2), "too large"),
        ((8,), dense(HUGE), "too large"),
        ((8,), dense(HUGE + 1), "2147483648 is more than 2147483647"),
        ((HUGE, 1), b"\x14\x02" + varint(HUGE) + varint(HUGE), "too large"),  # ZeroPadding1D
        ((2, 2, 2), b"\x03\x40" + varint(HUGE - 1) * 3 + b"\0", "does not fit"),  # Conv2D
        ((2, 2, 2), b"\x05\x10\0\0" + varint(HUGE - 1), "too large"),  # DepthwiseConv2D
    ],
)
def test_huge_shapes(shape, layer, message):
    refused(file(architecture(layer, shape=shape)), message)


def test_shapes_that_double_in_every_layer():
    concatenate = b"\x18\x01" + varint(1) + b"\0\0"
    refused(file(architecture(*[concatenate] * 40), names("net", *[""] * 41)), "too large")


@pytest.mark.parametrize("count", [2, 65_535])
def test_more_layers_than_there_are(count):
    start = ONE_DENSE.index(dense(2))
    refused(file(ONE_DENSE[: start - 1] + varint(count - 1) + dense(2), b"", b"", b""), "needs 1 more bytes")


@pytest.mark.parametrize("count", [65_536, 2**31, 2**35 - 1])
def test_huge_layer_count(count):
    start = ONE_DENSE.index(dense(2))
    refused(file(ONE_DENSE[: start - 1] + varint(count - 1) + dense(2)), "is more than 65535")


def test_a_layer_that_takes_more_than_there_are():
    refused(file(architecture(b"\x16\x01" + varint(65_534) + b"\0" * 9), b"", b"", b""), "needs 1 more bytes")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"names": b"\x04net\0\0"}, "character"),  # a name reaches into the next
        ({"names": b"\x02net\0\0"}, "needs 116 more bytes"),  # "t" is the length of the next
        ({"tables": b"\x05\x03" + TABLES[2:]}, "ascend|finite"),  # a codebook reaches into the indices
        ({"tables": b"\x05\x01" + TABLES[2:]}, "bytes follow"),  # and the indices into a codebook
        ({"section": b"\x02\x10" + ENTRIES[2:]}, "Huffman"),  # more entries than the streams have
        ({"section": b"\x02\x02" + ENTRIES[2:]}, "Huffman|bytes follow"),  # fewer
        ({"section": b"\x02\x11" + ENTRIES[2:]}, "16 weights has 17 entries"),
        ({"section": b"\x11" + ENTRIES[1:]}, "of 17 index bits"),
        ({"section": ENTRIES + b"\0"}, "1 bytes follow"),
        ({"section": b"\x02\x83\0" + ENTRIES[2:]}, "not in its shortest form"),
        ({"section": b"\x02" + b"\x83" * 6 + b"\0"}, "does not end"),
        ({"architecture": b"\x08" + varint(7) * 9 + b"\0" + dense(2)}, "9 is more than 8"),
        ({"architecture": b"\0\x87\0\0" + dense(2)}, "overlong"),
        ({"architecture": b"\0" + b"\x87" * 5 + b"\0\0" + dense(2)}, "more than 5 bytes"),
    ],
)
def test_contradicting_lengths(parts, message):
    refused(file(**parts), message)


def test_overlapping_tensors():
    two = {"architecture": architecture(dense(8), dense(2)), "names": NAMES + b"\0", "tables": TABLES * 2}
    first = entries(2, [0], [1])
    container.loads(file(**two, section=first + ENTRIES))
    refused(file(**two, section=ENTRIES), "end before the last tensor")  # one tensor's bytes for both
    for shared in range(1, len(first)):  # the second begins within the first
        refused(file(**two, section=first[:-shared] + ENTRIES), "damaged")


def with_values(bits):
    """A file whose three values have these bits for code table and codewords."""
    return file(section=ENTRIES[: -len(huffman.encode(np.uint8([1, 2, 2]), 3))] + stream(bits))


# Occurring are all three symbols: no hole, none below, none above. A length of 1 is the step -1 from 2.
ALL = "1 1 1"


def test_huffman_table_of_a_good_file():
    container.loads(with_values("1 010 1 1 0 1 1"))  # 1 and 2 occur, each by one bit: 1, 2, 2


def test_overfull_huffman_table():
    refused(with_values(f"{ALL} 001 1 0 0 0"), "over-full")  # 1 bit, 1 bit and any


def test_incomplete_huffman_table():
    refused(with_values(f"{ALL} 1 01 0 0 0"), "incomplete")  # 2 bits, 3 bits and any


def test_huffman_table_of_too_long_codewords():
    refused(with_values(f"{ALL} {'0' * 45}1 1"), "lengths from 25|lengths from 1 to 25|out of range")


def test_huffman_table_that_is_not_the_best():
    refused(with_values(f"{ALL} 001 01 0 0 0"), "not the best|filler")


def test_huffman_table_that_does_not_end():
    refused(file(section=ENTRIES[:2]), "truncated")
    refused(file(section=b"\x10\x03" + b"\0" * 4), "truncated")


def test_huffman_padding():
    data = bytearray(ENTRIES)
    data[-1] |= 1
    refused(file(section=bytes(data)), "padded")


def test_index_out_of_the_codebook():
    refused(file(section=entries(2, [0, 1], [1, 3], centroids=3)), "Huffman")
    refused(with_values("010 1 1 010 010"), "beyond its alphabet of 3")  # two symbols, a hole of two, and more
    refused(with_values("1 00100 1 1"), "beyond its alphabet of 3")  # the first that occurs is 3
    left, _ = arithmetic.encode([np.ones((8, 2), np.uint8)], [coding.Spec((8, 2), 0, 0)], mixing_2.MODEL)
    refused(file(tables=codebook(), section=left, coder=RANGE), "codebook")


@pytest.mark.parametrize("gaps", [[0, 15], [15, 0], [15, 15, 15], [15] * 16])
def test_gap_past_the_end(gaps):
    container.loads(file(section=entries(4, [0, 14], [1, 2])))
    refused(file(section=entries(4, gaps, [1] * len(gaps))), "gap past the end")


def test_filler_past_the_end():
    refused(file(section=entries(4, [15, 15], [0, 1])), "gap past the end")


def test_needless_filler():
    container.loads(file(section=entries(2, [3, 0], [0, 1])))
    refused(file(section=entries(2, [2, 0], [0, 1])), "filler with a gap of 2")
    refused(file(section=entries(2, [0, 3], [1, 0])), "ends in a filler")
    refused(file(section=entries(2, [3], [0])), "ends in a filler")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([bytes([len(KINDS)]) + ONE_DENSE], "unknown kind"),  # no kind holds layers
        ([b"\x7f" + ONE_DENSE], "unknown kind"),
        ([b"\0\0", dense(2)], "unknown kind"),  # an input within the network
        ([dense(2, 2)], "2 is more than 1"),  # a layer before the input
        ([dense(2), dense(2, 3)], "3 is more than 2"),
        ([dense(2, 2**32)], "more than 1"),  # forward, were numbers to wrap around
        ([dense(2), dense(2, 2)], "leads nowhere"),
        ([dense(2, 1, 1)], "one input"),
        ([b"\x16\0"], "two or more"),  # an Add of one
        ([dense(2, 1)], "canonical form"),  # takes the layer before, and says so
        ([b"\x01\x0c\x01\0"], "options that Dense does not have"),
    ],
)
def test_nested_or_circular_architecture(layers, message):
    refused(file(architecture(*layers), names("net", *[""] * (len(layers) + 1))), message)


def test_a_writer_refuses_layers_that_take_themselves_or_later_ones():
    first, second = container.loads(file()).layers
    for taken in (1, 2, -1):
        circular = Layer(second.kind, second.name, (taken,), second.options, second.weights)
        with pytest.raises(UnsupportedLayerError):
            container.dumps(Network("net", (8,), (first, circular)))


@pytest.mark.parametrize("own", [("net", "a", "a"), ("net", "dense", ""), ("net", "", "input_layer")])
def test_duplicate_names(own):
    refused(file(names=names(*own)), "must be unique|canonical form")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (names("", "", ""), "no name"),
        (names("net", "", "dense"), "canonical form"),  # the default, written out
        (names("net", "", "a/b"), "character"),
        (names("net", "", "a\0"), "character"),
        (b"\x03net\0\x01\xff", "UTF-8"),
        (b"\x03net\0\x80\x02" + b"a" * 256, "longer than 255"),
    ],
)
def test_bad_names(own, message):
    refused(file(names=own), message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((1, -0.5), "ascend"),
        ((1, 1), "ascend"),
        ((0, 1), "has a 0"),
        ((-0.0, 1), "has a 0"),
        ((-0.5, float("nan")), "finite"),
        ((-0.5, float("inf")), "finite"),
    ],
)
def test_unsorted_codebook(values, message):
    refused(file(tables=codebook(*values)), message)


def test_codebook_that_float16_would_hold():
    refused(file(tables=b"\x04\x02" + struct.pack("<2f", -0.5, 1)), "canonical form")


def test_codebook_of_too_many_values():
    ascending = struct.pack("<65536f", *range(1, 65_537))
    refused(file(tables=b"\x04" + varint(65_536) + ascending), "larger than 65535")


@pytest.mark.parametrize("first", ["architecture", "names", "tables", "section"])
@pytest.mark.parametrize("coder", [HUFFMAN, RANGE])
def test_zero_length_sections(first, coder):
    parts = ["architecture", "names", "tables", "section"]
    refused(file(**dict.fromkeys(parts[parts.index(first) :], b""), coder=coder), "damaged")
    refused(file(**{first: b""}, coder=coder), "damaged")


def test_empty_file():
    for size in range(9):
        refused(file()[:size], "not a .dcz file|has only")
    refused(fuzz.seal(b"DCZ\x01\0"), "needs 1 more bytes")


@pytest.mark.parametrize(
    "parts",
    [
        {"names": b"\xff\x01net"},
        {"tables": b"\x05" + varint(65_535) + TABLES[2:]},
        {"tables": b"\x05" + varint(2**35 - 1) + TABLES[2:]},
        {"architecture": architecture(dense(2**20)), "tables": b"\0" + bytes(16)},  # a kernel value by value
    ],
)
def test_section_longer_than_the_file(parts):
    refused(file(**parts), "more bytes")


def test_indices_cut_short():
    for size in range(len(ENTRIES)):
        refused(file(section=ENTRIES[:size]), "damaged")


@pytest.mark.parametrize("coder", [HUFFMAN, RANGE])
@pytest.mark.parametrize("tables", [codebook(), codebook(1), TABLES])
def test_a_billion_weights(coder, tables):
    data = file(architecture(dense(1_000_000), shape=(1_000,)), tables=tables, section=bytes(100), coder=coder)
    assert len(data) < 200
    assert declared(data) == 1_000_000_000
    refused(data, "1000000000 weights in 100 bytes")


def test_a_billion_weights_value_by_value():
    data = file(architecture(dense(1_000_000), shape=(1_000,)), tables=b"\0" + bytes(100), section=b"")
    refused(data, "needs 4000000000 more bytes")


def test_a_billion_weights_of_one_value():
    normalize = b"\x08\0"  # gamma, beta, moving mean and moving variance
    data = file(architecture(normalize, shape=(2**28,)), tables=b"\x03\0\x3c" * 4, section=b"")
    refused(data, "cannot have one value")


def test_more_weights_than_the_limit():
    with pytest.raises(FormatError, match="declares 16 weights, more than the limit of 15"):
        container.loads(file(), limit=15)
    container.loads(file(), limit=16)


@pytest.mark.parametrize("shape", [(1, 1_000_000), (1_000_000, 1), (1_000, 1_000)])
def test_memory_follows_the_weights_of_wide_kernels(shape):
    """A coder's statistics by row and column take little beside the tensor itself."""
    inputs, units = shape
    values = codebook(*range(1, 65))
    data = file(architecture(dense(units), shape=(inputs,)), tables=values, section=bytes(40), coder=RANGE)
    assert declared(data) == 1_000_000
    assert peak(data) < 64 * 1_000_000


def test_time_follows_the_number_of_layers():
    """Thousands of Dense at the end of a chain of thousands take no longer to read than those before it."""
    count = 6_000
    chain = [b"\x1f\0"] * count  # Softmax
    branches = [dense(1)] + [dense(1, number + 1) for number in range(1, count)]
    add = b"\x16\x01" + varint(count - 1) + b"".join(map(varint, range(count)))
    parts = names("net", *[""] * (2 * count + 2)), TABLES * count, entries(1, [0], [1]) * count

    def read(*layers):
        data = file(architecture(*layers, shape=(1,)), *parts)
        with seconds() as taken:
            assert len(container.loads(data).layers) == 2 * count + 2
        return taken[0]

    behind, before = read(*chain, *branches, add), read(*branches, add, *chain)
    assert behind < 1.7 * before + 0.1


def test_range_stream_cut_short():
    """Bytes that an encoder would have written must be there, even those that a decoder can guess."""
    spec = coding.Spec((8, 2), 2, 1)
    draw = np.random.default_rng(0)
    for _ in range(20):
        whole = coding.encode([draw.integers(0, 3, (8, 2)).astype(np.uint8)], [spec], "range").data
        for size in range(len(whole)):
            try:
                (indices,) = coding.decode(whole[:size], [spec], "range")
            except FormatError:
                continue
            assert len(coding.encode([indices], [spec], "range").data) <= size
