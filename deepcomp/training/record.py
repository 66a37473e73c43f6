"""What a training keeps: its history, the state from which an interrupted one goes on, and scalars for TensorBoard."""

import importlib.util
import json
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from deepcomp.errors import FormatError, RecipeError
from deepcomp.files import write_atomically


class Checkpoint(Protocol):
    """Where training keeps its state, so that an interrupted run goes on."""

    def load_state(self) -> tuple[list[np.ndarray], dict[str, Any]] | None:
        """What `save_state` kept, or None."""
        ...

    def save_state(self, arrays: Sequence[np.ndarray], progress: dict[str, Any]) -> None:
        """Keep the state of a training; on return it is on the disk."""
        ...


class StateFile:
    """A `Checkpoint` in one `.npz` file, written atomically."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def save_state(self, arrays: Sequence[np.ndarray], progress: dict[str, Any]) -> None:
        """Keep the state of a training; a kill during the call leaves the state before."""
        text = np.frombuffer(json.dumps(progress).encode(), np.uint8)
        named = {f"{number:05d}": array for number, array in enumerate(arrays)}

        def write(path: str) -> None:
            with Path(path).open("wb") as file:
                np.savez(file, progress=text, **named)

        write_atomically(self.path, write)

    def load_state(self) -> tuple[list[np.ndarray], dict[str, Any]] | None:
        """What `save_state` kept, or None without a file. Raises `FormatError` if it is damaged."""
        if not self.path.is_file():
            return None
        try:
            with self.path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                progress = json.loads(file["progress"].tobytes())
                return [file[name] for name in sorted(set(file.files) - {"progress"})], progress
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise FormatError(f"{self.path} is damaged: {error}; remove it to begin anew.") from error


class Record:
    """What a call of the library keeps and tells.

    With a `checkpoint`, a path of an `.npz` file or a `Checkpoint`, an interrupted call goes on from it when it is made
    again. With `tensorboard`, a folder, scalars go there. After the call `history` has lists by name, an entry every
    `evaluate_every` steps; `layers` a row for each kernel; `before` and `after` the measures
    of the network, `sparsities` those that a scan chose. A `transient` progress bar goes when training ends.
    """

    def __init__(
        self,
        checkpoint: str | Path | Checkpoint | None = None,
        tensorboard: str | Path | None = None,
        label: str = "training",
        *,
        transient: bool = False,
    ):
        self.checkpoint = StateFile(checkpoint) if isinstance(checkpoint, str | Path) else checkpoint
        self.label, self.transient = label, transient
        self.history: dict[str, list] = {}
        self.layers: list[dict[str, Any]] = []
        self.sparsities: dict[str, float] = {}
        self.before: dict[str, float] = {}
        self.after: dict[str, float] = {}
        self._writer = None if tensorboard is None else _scalar_writer(Path(tensorboard))

    def write_scalars(self, history: Mapping[str, list]) -> None:
        """The last entry of a history, for TensorBoard."""
        if self._writer is None:
            return
        import tensorflow as tf

        with self._writer.as_default():
            for name, values in history.items():
                if name != "step" and values[-1] is not None:
                    tf.summary.scalar(name, values[-1], step=history["step"][-1])
        self._writer.flush()


def joined(before: Mapping[str, list], after: Mapping[str, list]) -> dict[str, list]:
    """One history out of that of a training and that of another after it, whose steps are counted on.

    The entry before the other's first step is left out: it is that after the last step.
    """
    last = before["step"][-1]
    steps = {"step": [last + step for step in after["step"]]}
    return {key: before[key] + values[1:] for key, values in {**after, **steps}.items()}


def continued(history: Mapping[str, list], step: int) -> dict[str, list]:
    """The part of a history from `step` on, which becomes step 0."""
    first = history["step"].index(step)
    found = {key: values[first:] for key, values in history.items()}
    return {**found, "step": [own - step for own in found["step"]]}


def _scalar_writer(folder: Path) -> Any:
    if importlib.util.find_spec("tensorboard") is None:
        raise RecipeError("Scalars for TensorBoard need the package tensorboard: pip install tensorboard.")
    import tensorflow as tf

    return tf.summary.create_file_writer(str(folder))


def progress_bar(
    label: str, start: int, steps: int, unit: str = "step", *, shown: bool = True, transient: bool = False
) -> tqdm:
    """A progress bar for long work; in a log file, a line now and then."""
    terminal = sys.stderr.isatty()
    return tqdm(
        disable=not shown,
        leave=not transient,
        initial=start,
        total=steps,
        desc=f"{label:9}",
        unit=unit,
        mininterval=0.1 if terminal else 15,
        dynamic_ncols=terminal,
        ncols=None if terminal else 100,
    )
