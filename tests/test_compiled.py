import io
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import deepcomp
from deepcomp import compiled
from deepcomp.dcz import container
from deepcomp.dcz.network import Layer, Network

# Imports all modules with compiled functions, and runs one of them.
PROGRAM = """
import sys
import deepcomp, deepcomp.quantization, deepcomp.dcz.coding
print(deepcomp.load(sys.argv[1], threads=1))
"""


def test_without_a_folder_for_compiled_code_it_is_compiled_in_memory(tmp_path):
    """A package and a home that cannot be written: files in place of their cache folders stop root too."""
    package = tmp_path / "site" / "deepcomp"
    shutil.copytree(Path(deepcomp.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in [package, *(path for path in package.rglob("*") if path.is_dir())]:
        (folder / "__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    weights = {"kernel": np.full((3, 2), 0.5, np.float32), "bias": np.zeros(2, np.float32)}
    layers = (Layer("InputLayer", "image"), Layer("Dense", "dense", (0,), {"units": 2}, weights))
    container.save(Network("network", (3,), layers), tmp_path / "model.dcz", coder="huffman")
    changed = {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(tmp_path / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {**os.environ, **changed, "XDG_CACHE_HOME": str(tmp_path / "home"), "NUMBA_CACHE_DIR": ""}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "model.dcz")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("<Engine 3 -> 2:")
    assert done.stderr == (
        "deepcomp: compiled code cannot be kept on disk, so each process compiles it anew;"
        " set NUMBA_CACHE_DIR to a folder that can be written.\n"
    )


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_is_told_what_takes_long(monkeypatch):
    monkeypatch.setattr(compiled, "_PATIENCE", 0.05)
    for stream, seconds, said in ((Terminal(), 0.5, "Wait.\n"), (Terminal(), 0, ""), (io.StringIO(), 0.2, "")):
        monkeypatch.setattr(sys, "stderr", stream)
        with compiled.told("Wait."):
            time.sleep(seconds)
        assert stream.getvalue() == said
