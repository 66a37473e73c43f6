"""The benchmark of weights that are not shared: its main path on a tiny network."""

import sys

import numpy as np

from benchmarks import unshared


def test_a_row_for_each_sparsity(network, tmp_path, monkeypatch, capsys):
    path = tmp_path / "tiny.keras"
    network.save(path)
    monkeypatch.setattr(sys, "argv", ["unshared.py", str(path), "--sparsity", "0", "0.9"])
    unshared.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("tiny")]
    assert [row[1] for row in rows] == ["0%", "90%"]
    floats = 4 * sum(int(np.prod(weight.shape)) for weight in network.weights)
    assert all(int(row[2].replace(",", "")) == floats for row in rows)
    assert float(rows[0][5]) < 1.01 + 200 / floats  # names and architecture weigh something in a tiny file
    assert float(rows[1][5]) < 0.5
    assert all(float(row[6]) < 0.85 for row in rows)
