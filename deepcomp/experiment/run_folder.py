"""The run folder: its file names, what is done and what was interrupted."""

import contextlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deepcomp.errors import FormatError, StageError
from deepcomp.files import locked, write_atomically, write_text

STAGES = ("full", "pruned", "quantized", "deployed")
SCRIPTS = {"full": "train_full.py", "pruned": "prune.py", "quantized": "quantize.py", "deployed": "deploy.py"}

# What later stages and pictures read from a training stage's record, and from the report; a float may be whole.
_BOTH = {"stage": str, "recipe": str, "test_error": float, "layers": list}
RECORD_KEYS: tuple[dict[str, type], dict[str, type]] = (
    {**_BOTH, "seed": int, "data": dict, "steps": int, "seconds": float, "parameters": int, "history": dict},
    {**_BOTH, "file_bytes": int, "dense_bytes": int, "ratio": float},
)
_LAYER_KEYS = {"name": str, "shape": list, "weights": int, "nonzero": int, "centroids": int}
_REPORT_LAYER_KEYS = {"name": str, "weights": int}
_OPEN = ("test_error", "centroids")  # may be null


class Run:
    """A run folder: `recipe.toml`, a folder for each stage, and the scan of the full network, if there is one."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.recipe_path = self.folder / "recipe.toml"
        self.scan_path = self.folder / "scan.json"
        self.scan_picture_path = self.folder / "scan.png"

    def stage(self, name: str) -> "Stage":
        """The folder of one of `STAGES`."""
        return Stage(self, name)

    def discard_from(self, name: str) -> None:
        """Remove the stage `name` and the later ones, whose results no longer follow from it."""
        for later in reversed(STAGES[STAGES.index(name) :]):
            self.stage(later).discard()
        if name == "full":  # A scan is of the full network.
            self.scan_path.unlink(missing_ok=True)
            self.scan_picture_path.unlink(missing_ok=True)

    def locked(self, *, shared: bool = False) -> contextlib.AbstractContextManager[None]:
        """Keep other scripts out of the folder, but for the `shared` ones of workers that train together.

        Raises as `files.locked`.
        """
        return locked(self.folder, shared=shared, other="another --run")

    def write_scan(self, record: dict) -> None:
        """Keep what `prune.py --scan` measured."""
        write_text(self.scan_path, json.dumps(record, indent=1, allow_nan=False) + "\n")


class Stage:
    """One stage's folder: the model, `stage.json` (written last: it says that the stage is done), interrupted state."""

    def __init__(self, run: Run, name: str):
        self.run, self.name = run, name
        self.folder = run.folder / name
        self.model_path = self.folder / "model.keras"
        self.record_path = self.folder / ("report.json" if name == "deployed" else "stage.json")
        self.state_path = self.folder / "state.npz"
        self.search_folder = self.folder / "search"
        self.search_picture_path = self.folder / "search.png"
        self.curve_path = self.folder / "accuracy.png"
        self.bytes_path = self.folder / "bytes.png"
        self.file_path = self.folder / "model.dcz"
        self.tensorboard_path = run.folder / "tensorboard" / name
        self._began = time.monotonic()
        self.recipe_text: str | None = None
        self._anew = False

    @property
    def seconds(self) -> float:
        """Time spent on the stage, also before an interruption, as far as it was saved."""
        return time.monotonic() - self._began

    @property
    def done(self) -> bool:
        """Whether the stage went through to its end."""
        return self.record_path.is_file()

    @property
    def begun(self) -> bool:
        """Whether there is anything of the stage to lose."""
        return self.done or self.state_path.is_file() or self.search_folder.is_dir()

    def begin(self, recipe_text: str | None, *, anew: bool) -> None:
        """Say what the stage's first write is to settle: the run's new recipe, if any, and that it starts `anew`.

        Until then nothing is lost: a stage that fails on its data or settings leaves the run folder as it was.
        """
        self.recipe_text, self._anew = recipe_text, anew
        for leftover in [*self.run.folder.glob(".writing-*"), *self.folder.glob(".writing-*")]:
            leftover.unlink(missing_ok=True)

    def _settle(self) -> None:
        if self._anew:
            self.run.discard_from(self.name)
        if self.recipe_text is not None:
            write_text(self.run.recipe_path, self.recipe_text)
        self.recipe_text, self._anew = None, False

    def begin_search(self) -> Path:
        """The folder of the stage's search; one that begins goes on from that of the stage before, if it has any."""
        self._settle()
        before = self.run.stage(STAGES[STAGES.index(self.name) - 1]).search_folder
        if before.is_dir() and not self.search_folder.is_dir():
            temporary = self.folder / "search-copy"
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(before, temporary)
            temporary.rename(self.search_folder)
        return self.search_folder

    def require(self) -> None:
        """Raise `StageError` unless the stage is done."""
        if not self.done:
            raise StageError(f"No checkpoint in {self.folder}: run {SCRIPTS[self.name]} first.")

    def load_model(self):
        """The stage's network, a plain `keras.Model`. Raises `StageError`, or `FormatError` if it is damaged."""
        from deepcomp import opening

        self.require()
        try:
            return opening.load(self.model_path)
        except FormatError as error:
            raise FormatError(f"{error} Redo it: {SCRIPTS[self.name]} --run {self.run.folder} --force") from error

    def load_record(self) -> dict:
        """What `finish` wrote. Raises `StageError`, or `FormatError` if it is damaged."""
        self.require()
        try:
            record = json.loads(self.record_path.read_text(encoding="utf-8"))
            deployed = self.name == "deployed"
            _check_types("it", record, RECORD_KEYS[deployed])
            for row in record["layers"]:
                _check_types("a layer", row, _REPORT_LAYER_KEYS if deployed else _LAYER_KEYS)
            if not deployed:
                _check_types("data", record["data"], {"name": str})
                _check_types("history", record["history"], dict.fromkeys(record["history"], list))
        except (ValueError, RecursionError, OSError) as error:
            raise FormatError(
                f"{self.record_path} is damaged: {error}. Redo it: {SCRIPTS[self.name]} --run {self.run.folder} --force"
            ) from error
        return record

    def finish(self, record: dict, model=None) -> None:
        """Write the model, then the record, and drop the interrupted state."""
        self._settle()
        if model is not None:
            write_atomically(self.model_path, model.save)
        write_text(self.record_path, json.dumps(record, indent=1, allow_nan=False) + "\n")
        self.state_path.unlink(missing_ok=True)

    def write_file(self, data: bytes) -> None:
        """Keep a deployed network's `.dcz` file."""
        self._settle()
        write_atomically(self.file_path, lambda temporary: Path(temporary).write_bytes(data))

    def discard(self) -> None:
        """Remove all that the stage left; the record goes first, so that a kill halfway leaves no finished stage."""
        self.record_path.unlink(missing_ok=True)
        if self.folder.is_dir():
            shutil.rmtree(self.folder)

    def save_state(self, arrays: Sequence[np.ndarray], progress: dict[str, Any]) -> None:
        """Keep training's state; on return it is on the disk, and a kill during the call leaves the one before."""
        from deepcomp.training.record import StateFile

        self._settle()
        StateFile(self.state_path).save_state(arrays, {**progress, "seconds": self.seconds})

    def load_state(self) -> tuple[list[np.ndarray], dict[str, Any]] | None:
        """What `save_state` kept, or None. Raises `FormatError` if it is damaged."""
        from deepcomp.training.record import StateFile

        if self._anew:
            return None
        try:
            state = StateFile(self.state_path).load_state()
            if state is not None:
                self._began -= state[1].pop("seconds")
        except (FormatError, KeyError, TypeError) as error:
            raise FormatError(
                f"{self.state_path} is damaged: {error} Redo it: {SCRIPTS[self.name]} --run {self.run.folder} --force"
            ) from error
        return state


def _check_types(name: str, found: Any, kinds: Mapping[str, type]) -> None:
    """Raise `ValueError` unless `found` has these keys with values of these types."""
    if not isinstance(found, dict) or not found.keys() >= kinds.keys():
        raise ValueError(f"{name} must have {', '.join(kinds)}")
    for key, kind in kinds.items():
        value = found[key]
        fits = isinstance(value, int | float if kind is float else kind) and not isinstance(value, bool)
        if not fits and not (value is None and key in _OPEN):
            raise ValueError(f"{key} of {name} is {str(value)[:40]!r}, not of type {kind.__name__}")
