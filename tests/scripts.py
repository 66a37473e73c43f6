"""The stage scripts, each in a process of its own.

Processes are forked from one that has imported TensorFlow: that import takes longer than what most of them are to do.
"""

import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path

import numpy as np

from deepcomp import opening

ROOT = Path(__file__).resolve().parents[1]
TRAINING_SCRIPTS = {"full": "train_full.py", "pruned": "prune.py", "quantized": "quantize.py"}

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["deepcomp.compression", "deepcomp.sparse", "deepcomp.experiment.cli"])


class Script:
    """A script that runs, with its output in files."""

    def __init__(self, script, arguments, environment):
        self._folder = tempfile.TemporaryDirectory()
        words = [str(ROOT / script), *map(str, arguments)]
        self._process = _FORKS.Process(target=_run_script, args=(words, environment, self._folder.name))
        self._process.start()

    def ended(self):
        return self._process.exitcode is not None

    def kill(self):
        self._process.kill()
        self._process.join()
        self._folder.cleanup()

    def outcome(self, timeout=300):
        """Exit status, standard output and standard error, once it has ended."""
        self._process.join(timeout)
        found = self._process.exitcode, *(Path(self._folder.name, name).read_text() for name in ("out", "err"))
        self.kill()
        return found


def _run_script(words, environment, folder):
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.update(environment)
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


def start(script, *arguments, **environment):
    return Script(script, arguments, environment)


def run(script, *arguments):
    status, output, errors = start(script, *arguments).outcome()
    assert status == 0, errors
    return output


def weights(folder):
    return opening.load(folder / "model.keras").get_weights()


def assert_same_weights(one, other):
    assert all(np.array_equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def refused(script, *arguments, says, program=None):
    status, output, errors = start(script, *arguments).outcome()
    assert (status, errors.count("\n")) == (2, 1), (status, output, errors)
    assert "Traceback" not in errors
    assert says in errors
    assert errors.startswith(f"{program or script}: ")
    return errors
