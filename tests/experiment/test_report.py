import numpy as np
import pytest

from deepcomp.dcz.accounting import Part, Parts
from deepcomp.dcz.network import Layer, Network
from deepcomp.experiment import report

WHOLE = {"kernel": np.ones((10, 10), np.float32), "bias": np.ones(10, np.float32)}


def test_layers_that_lost_neurons_count_the_weights_they_had():
    network = Network("x", (10,), (Layer("InputLayer", "image"), Layer("Dense", "fc", (0,), {"units": 10}, WHOLE)))
    fc, norm, _ = report.byte_rows(parts(), network)
    assert (fc["weights"], fc["positions"], fc["survivors"], norm["weights"]) == (110, 100, 8, 4)
    assert report.byte_table(parts(), whole=network).splitlines()[2].split() == [
        *("fc", "110", "8.00", "1.50", "2.00", "26", "17.3")
    ]


def test_a_depthwise_kernel_keeps_its_percentage():
    weights = {"depthwise_kernel": np.ones((3, 3, 4, 1), np.float32)}
    layers = Layer("InputLayer", "image"), Layer("DepthwiseConv2D", "depth", (0,), {"kernel_size": (3, 3)}, weights)
    part = Part("depth", "depthwise_kernel", (3, 3, 4, 1), 36, 9, 2, 64, 8, 8, 0)
    row, _ = report.byte_rows(Parts("range", 72, 40, 16, 8, (part,)), Network("x", (9, 9, 4), layers))
    assert (row["weights"], row["positions"], row["survivors"]) == (36, 36, 9)


def parts():
    tensors = (
        Part("fc", "kernel", (4, 5), 20, 8, 3, codebook_bits=96, index_bits=16, value_bits=12, plain_bits=0),
        Part("fc", "bias", (5,), 5, 5, None, codebook_bits=0, index_bits=0, value_bits=0, plain_bits=80),
        Part("norm", "gamma", (4,), 4, 4, 1, codebook_bits=32, index_bits=3, value_bits=1, plain_bits=0),
    )
    return Parts("range", 72, 40, 16, 8, tensors)


def test_rows_add_up_to_the_file():
    fc, norm, overhead = rows = report.byte_rows(parts())
    assert (fc["weight_bits"], fc["index_bits"], fc["codebook_bits"], fc["bias_bits"]) == (12, 16, 96, 80)
    assert (fc["weights"], fc["positions"], fc["survivors"]) == (25, 20, 8)
    assert (norm["bias_bits"], overhead["overhead_bits"]) == (36, 136)
    assert sum(value for row in rows for key, value in row.items() if key.endswith("_bits")) == parts().bits


def test_the_byte_table_has_the_paper_s_columns():
    assert report.byte_table(parts()).splitlines() == [
        "layer     weights  left %  value  index  bytes  ratio",
        "--------  -------  ------  -----  -----  -----  -----",
        "fc             25   40.00   1.50   2.00     26    3.9",
        "norm            4       -      -      -      4    3.6",
        "overhead        -       -      -      -     17      -",
        "all            29   40.00   1.50   2.00     47    2.5",
    ]
    both = report.byte_table(parts(), parts())
    assert both.splitlines()[0].count("range: value") == 2
    assert report.ratio_line(parts()) == "116 bytes -> 47, 2.5x"


def test_speed_is_of_all_images_and_of_one(monkeypatch):
    clock, asked = [0.0], []

    def run(images):
        asked.append(len(images))
        clock[0] += 0.5 if len(images) > 1 else 0.001

    monkeypatch.setattr(report.time, "perf_counter", lambda: clock[0])
    assert report.speed(run, np.zeros((100, 2)), seconds=1) == pytest.approx(
        {"images_per_second": 200, "microseconds_for_one": 1000}
    )
    assert asked[:5] == [100] * 5
    assert set(asked[5:]) == {1}


def test_speeds_as_a_table():
    speeds = {"ours": {"images_per_second": 164_999.4, "microseconds_for_one": 19.25}}
    assert report.speed_table(speeds).splitlines() == [
        "engine  images a second  one image, us",
        "------  ---------------  -------------",
        "ours            164,999           19.2",
    ]
