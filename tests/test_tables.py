"""Tables of layers and aligned text."""

import numpy as np

from deepcomp import tables
from deepcomp.pruning import SPARSITIES


def test_layers_count_survivors_and_values():
    kernels = {"a": np.array([[0.0, 1.5], [1.5, -2.0]]), "b": np.zeros((3, 1))}
    assert tables.layers(kernels) == [
        {"name": "a", "shape": [2, 2], "weights": 4, "nonzero": 3, "centroids": 2},
        {"name": "b", "shape": [3, 1], "weights": 3, "nonzero": 0, "centroids": 0},
    ]


def test_layers_that_lost_neurons_count_the_weights_they_had():
    (row,) = tables.layers({"a": np.ones((2, 2))}, {"a": 12, "b": 3})
    assert (row["shape"], row["weights"], row["nonzero"]) == ([2, 2], 12, 4)


def test_tables_are_aligned():
    rows = [{"name": "conv1", "n": 1234, "x": 0.5}, {"name": "f", "n": 5, "x": None}]
    text = tables.table(rows, {"name": "layer", "n": "weights:,", "x": "left %:.2f"})
    assert text.splitlines() == [
        "layer  weights  left %",
        "-----  -------  ------",
        "conv1    1,234    0.50",
        "f            5       -",
    ]


def test_the_layer_table_ends_with_all():
    text = tables.layer_table(tables.layers({"a": np.array([[1.0, 0.0]]), "b": np.array([[0.0, 0.0]])}))
    assert text.splitlines()[-1].split() == ["all", "4", "1", "25.00", "-"]
    assert "1x2" in text


def test_the_scan_table_says_what_each_layer_can_spare():
    accuracies = {"conv": [0.991, 0.9845, 0.3155], "blocks/3/attention/key": [0.991, 0.991, 1.0]}
    assert tables.scan_table(accuracies, [0, 0.5, 0.995], {"conv": 0.5338}).splitlines() == [
        "Accuracy, %, with one layer alone pruned to a sparsity; with none 99.10:",
        "layer                 0.5   0.995  chosen",
        "------------------  -----  ------  ------",
        "conv                98.45   31.55  0.5338",
        "blocks/3/attenti..  99.10  100.00       -",
    ]
    assert "chosen" not in tables.scan_table(accuracies, [0, 0.5, 0.995])


def test_the_scan_table_fits_100_columns():
    text = tables.scan_table({"a" * 40: [1.0] * len(SPARSITIES)}, SPARSITIES, {"a" * 40: 0.5})
    assert max(map(len, text.splitlines())) == 98


def test_long_names_are_shortened():
    assert [tables.shortened(name, 5) for name in ("conv", "conv1", "conv12")] == ["conv", "conv1", "co..."]


def test_columns_have_room_for_rows_to_come():
    rows = [{"name": "a", "count": 7}]
    columns = {"name": "name", "count": "count:,"}
    assert tables.table(rows, columns, least={"name": 6, "count": 9}).splitlines() == [
        "name        count",
        "------  ---------",
        "a               7",
    ]
