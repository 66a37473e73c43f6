"""The picture of the speed benchmark's ratios."""

import json

import pytest

from tests.drawing import check_picture, drawn, texts
from tools import speed_plot

SPEEDS = [
    {"network": network, "batch": batch, "threads": threads, "engine": engine, "ratio": ratio}
    for network in ("lenet-5", "lenet-300-100")
    for threads in (2, 1)
    for batch in (1, 1024)
    for engine, ratio in (("deepcomp", 1.0), ("A", 12.5 * threads), ("B", 0.5 * batch), ("C", None))
    if (network, batch) != ("lenet-300-100", 1024)
]


def test_picture_is_a_png_and_the_same_twice(tmp_path):
    check_picture(lambda path: speed_plot.speed_ratios(SPEEDS, path), tmp_path)


def test_speed_ratios_tell_the_least(monkeypatch):
    found = texts(drawn(monkeypatch, lambda path: speed_plot.speed_ratios(SPEEDS, path)))
    for text in ("lenet-5, batch 1", "batch 1,024", "A", "B", "1 thread", "2 threads", "not measured", "10x"):
        assert text in found, text
    assert [found.count(text) for text in ("0.5x", "12.5x", "25.0x")] == [4, 1, 1]
    assert not {"C", "deepcomp"} & set(found)


def test_command_draws_what_the_benchmark_wrote(tmp_path):
    (tmp_path / "speed.json").write_text(json.dumps({"cells": SPEEDS}))
    speed_plot.main([str(tmp_path / "speed.json"), "--out", str(tmp_path / "speed.png")])
    assert (tmp_path / "speed.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{}", "speed.json is no output of benchmarks/speed.py: 'cells'"),
        ('{"cells": ', "speed.json is no output of benchmarks/speed.py: Expecting value"),
        ('{"cells": [{"ratio": null}]}', "speed.json has no ratios"),
    ],
)
def test_a_file_without_ratios_is_one_line_and_status_2(tmp_path, capsys, text, says):
    (tmp_path / "speed.json").write_text(text)
    with pytest.raises(SystemExit) as stop:
        speed_plot.main([str(tmp_path / "speed.json")])
    assert stop.value.code == 2
    assert says in capsys.readouterr().err
