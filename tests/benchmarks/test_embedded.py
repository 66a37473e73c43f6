"""The benchmark on an emulated microcontroller: sizes, outputs, and what it says where tools are missing."""

import shutil
from pathlib import Path

import pytest

from benchmarks import embedded

FILE = Path(__file__).parents[2] / "models" / "lenet-5-small.dcz"


def test_a_network_on_a_cortex_m4_puts_out_what_the_engine_does():
    missing = [tool for tool in embedded.TOOLS if not shutil.which(tool)]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    direct, coded = embedded.measured(str(FILE), 1)
    assert (direct["weights"], coded["weights"]) == ("direct", "coded")
    for row in (direct, coded):
        flash, ram, constants = (int(row[key].replace(",", "")) for key in ("flash", "ram", "constants"))
        assert float(row["off"]) < 1e-5
        assert constants < 4096
        assert constants < flash < 8192
        assert ram < 24 * 1024
    assert int(coded["constants"].replace(",", "")) < int(direct["constants"].replace(",", ""))


def test_missing_tools_are_one_line(monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    monkeypatch.setattr("sys.argv", ["embedded"])
    with pytest.raises(SystemExit) as error:
        embedded.main()
    assert error.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
