"""The stage scripts as a user runs them, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from deepcomp import opening

ROOT = Path(__file__).resolve().parents[1]
TRAINING_SCRIPTS = {"full": "train_full.py", "pruned": "prune.py", "quantized": "quantize.py"}


def start(script, *arguments, **environment):
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env={**os.environ, **environment}, text=True, **pipes)


def outcome(process, timeout=300):
    try:
        output, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, output, errors


def run(script, *arguments):
    status, output, errors = outcome(start(script, *arguments))
    assert status == 0, errors
    return output


def weights(folder):
    return opening.load(folder / "model.keras").get_weights()


def assert_same_weights(one, other):
    assert all(np.array_equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def refused(script, *arguments, says):
    status, output, errors = outcome(start(script, *arguments))
    assert (status, errors.count("\n")) == (2, 1), (status, output, errors)
    assert "Traceback" not in errors
    assert says in errors
    assert errors.startswith(f"{script}: ")
