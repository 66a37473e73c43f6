import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from deepcomp import report


def test_layers_count_survivors_and_values():
    kernels = {"a": np.array([[0.0, 1.5], [1.5, -2.0]]), "b": np.zeros((3, 1))}
    assert report.layers(kernels) == [
        {"name": "a", "shape": [2, 2], "weights": 4, "nonzero": 3, "centroids": 2},
        {"name": "b", "shape": [3, 1], "weights": 3, "nonzero": 0, "centroids": 0},
    ]


def bits(row):
    return tuple(row[f"{part}_bits"] for part in ("weight", "index", "codebook", "bias", "padding"))


def test_accounting_by_hand():
    # Gaps 0, 1, 3 and 4 values: with 2 index bits, 4 weights take 2 + 2 bits each; a codebook entry takes 32.
    kernel = np.array([1.0, 0, 2.0, 0, 0, 0, 3.0, 4.0])
    (row,) = report.accounting({"a": kernel}, {})
    assert bits(row) == (8, 8, 128, 0, 0)
    # A gap of 4 needs a filler zero with 2 bits, which is a fifth symbol; 3 index bits are cheaper: 2 x (1 + 3).
    (row,) = report.accounting({"a": np.array([1.0, 0, 0, 0, 0, 2.0])}, {})
    assert bits(row) == (2, 6, 64, 0, 0)


def test_a_long_gap_takes_fillers_where_they_are_cheaper():
    kernel = np.zeros(100_000)
    kernel[:1000] = np.tile([1.0, 2.0], 500)
    kernel[1300] = 1.0
    (row,) = report.accounting({"a": kernel}, {})
    # 1 bit for a gap: 1,001 weights and 150 fillers, 3 symbols, 2 + 1 bits; 9 bits would take 1,001 x (1 + 9).
    assert bits(row)[:2] == (1151 * 2, 1151)


def test_empty_layers_and_other_weights():
    rows = report.accounting({"a": np.zeros(5)}, {"a": 3, "norm": 4})
    assert [(row["name"], bits(row)) for row in rows] == [("a", (0, 0, 0, 96, 0)), ("norm", (0, 0, 0, 128, 0))]
    assert report.total_bytes(rows) == 28


@given(st.lists(st.sampled_from([0.0, 0.0, 0.0, 1.0, -2.0, 3.0]), min_size=1, max_size=300))
def test_parts_add_up_to_whole_bytes_and_are_enough_to_rebuild_the_layer(values):
    kernel = np.array(values)
    rows = report.accounting({"a": kernel}, {"a": 1})
    (row,) = rows
    assert sum(bits(row)) % 8 == 0
    assert report.total_bytes(rows) * 8 == sum(bits(row))
    survivors = np.count_nonzero(kernel)
    assert row["weight_bits"] >= survivors * np.ceil(np.log2(max(1, len(np.unique(kernel[kernel != 0])))))
    assert row["index_bits"] >= survivors


def test_tables_are_aligned():
    rows = [{"name": "conv1", "n": 1234, "x": 0.5}, {"name": "f", "n": 5, "x": None}]
    text = report.table(rows, {"name": "layer", "n": "weights:,", "x": "left %:.2f"})
    assert text.splitlines() == [
        "layer  weights  left %",
        "-----  -------  ------",
        "conv1    1,234    0.50",
        "f            5       -",
    ]


def test_the_layer_table_ends_with_all():
    text = report.layer_table(report.layers({"a": np.array([[1.0, 0.0]]), "b": np.array([[0.0, 0.0]])}))
    assert text.splitlines()[-1].split() == ["all", "4", "1", "25.00", "-"]
    assert "1x2" in text
