"""The benchmark of coding: its main path on a tiny run, with and without the peer."""

import subprocess
import sys

import numpy as np
import pytest

from benchmarks import coding
from deepcomp import models
from deepcomp.dcz import conversion
from deepcomp.experiment.run_folder import Run


@pytest.fixture
def run(network, tmp_path):
    """A run whose quantized network has a sixth of its weights left, with 3 values in each kernel."""
    rng = np.random.default_rng(0)
    for kernel in models.kernels(network).values():
        values = rng.choice([-0.5, 0.25, 0.75], kernel.shape) * (rng.random(kernel.shape) < 1 / 6)
        kernel.assign(values.astype(np.float32))
    Run(tmp_path).stage("quantized").finish({}, network)
    return tmp_path


def test_without_the_peer_a_table_has_both_coders(run, monkeypatch, capsys):
    def failed(folder):
        raise subprocess.CalledProcessError(1, "pip", stderr="No matching distribution")

    monkeypatch.setattr(coding, "peer_python", failed)
    monkeypatch.setattr(sys, "argv", ["coding.py", str(run), "--environment", str(run / "none")])
    coding.main()
    output = capsys.readouterr().out
    assert "ours are alone: No matching distribution" in output
    lines = [line.split() for line in output.splitlines()]
    assert ["bytes", "weights", "left", "%", "values", "entropy", "huffman", "range"] in lines
    rows = {line[0]: line[1:] for line in lines if line and line[0] in ("conv", "dense")}
    assert (rows["conv"][:2], rows["dense"][:2]) == (["kernel", "100"], ["kernel", "1,440"])
    assert output.count(str(run)) >= 2  # above its table, and in that of all runs

    path = run / "network.dcz"
    conversion.save(Run(run).stage("quantized").load_model(), path)
    monkeypatch.setattr(sys, "argv", ["coding.py", str(path), "--environment", str(run / "none")])
    coding.main()
    again = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line for line in again if line and line[0] in ("conv", "dense")] == [
        line for line in lines if line and line[0] in ("conv", "dense")
    ]


def test_rows_add_up_and_the_peer_stands_beside(run, monkeypatch):
    monkeypatch.setattr(coding, "peer_sizes", lambda python, arrays, specs: [10, 200, 205])
    conv, dense, whole = coding.rows_of(coding.tensors_of(run), run / "python")
    assert (conv["weights"], dense["weights"], whole["weights"]) == (100, 1440, 1540)
    assert (conv["values"], dense["values"]) == (3, 3)
    assert conv["entropy"] + dense["entropy"] == pytest.approx(whole["entropy"])
    for row, peer in ((conv, 10), (dense, 200), (whole, 205)):
        assert 0 < row["range"] < 4 * row["weights"]
        assert 0 < row["huffman"] < 4 * row["weights"]
        assert row["ratio"] == row["range"] / peer
        assert row["left"] == pytest.approx(100 / 6, abs=8)


def test_entropy_of_two_equal_halves_is_a_bit_each():
    assert coding.entropy(np.array([[0, 1], [1, 0]] * 4), 1) == 2.0
