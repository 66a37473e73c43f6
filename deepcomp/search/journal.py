"""What a search keeps in its folder: each candidate's file, and the state from which it goes on."""

import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from deepcomp.errors import FormatError, StageError
from deepcomp.files import write_atomically, write_text
from deepcomp.second_order.layerwise import Moved
from deepcomp.training.record import StateFile

AS_IT_IS, LAYERS, PRUNED, SHARED = "as it is", "layer by layer", "pruned", "shared"
_VERSION = 1


@dataclass(frozen=True)
class Candidate:
    """One network that was tried.

    how: `AS_IT_IS`, `LAYERS`, `PRUNED` or `SHARED`. source: the number of the candidate it was made of. goal: the price
    of a bit, the part of the weights that was left, or the bits of the values. steps: of training. bytes: of its file.
    metric: on held-out examples. error: the standard error of its difference from that of the full network, 0 where
    nothing depends on it. within: whether both are within the limit. seconds: of the search until then.
    """

    number: int
    how: str
    source: int
    goal: float
    steps: int
    bytes: int
    metric: float
    error: float
    within: bool
    seconds: float


@dataclass(frozen=True)
class State:
    """A network on its way: all its `variables`, and by name what else is known of its shared kernels."""

    weights: Sequence[np.ndarray]
    moved: Mapping[str, Moved]

    @classmethod
    def of(cls, model: keras.Model, moved: Mapping[str, Moved] | None = None) -> "State":
        """The state that a network is in."""
        return cls([np.asarray(variable.numpy()) for variable in model.variables], moved or {})

    def put_into(self, model: keras.Model) -> keras.Model:
        """Give a network of the same architecture this state; returns it."""
        for variable, values in zip(model.variables, self.weights, strict=True):
            variable.assign(values)
        return model


class Journal:
    """The folder of a search. What is written is on the disk: a search that is killed goes on after its last candidate.

    fingerprint: what decides the results; a folder of another search is refused with `StageError`.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any]):
        self.folder = folder
        self.path = folder / "search.json"
        self.checkpoint = StateFile(folder / "training.npz")
        self.candidates: list[Candidate] = []
        self.plan: dict[str, Any] = {}
        self._began, self._fingerprint = time.monotonic(), dict(fingerprint)
        if self.path.is_file():
            self._read()

    @property
    def seconds(self) -> float:
        """Time spent, also before an interruption, as far as it was written down."""
        return time.monotonic() - self._began

    def add(self, how: str, data: bytes, state: State, found: Mapping[str, Any]) -> Candidate:
        """Keep a candidate: its file and state first, then the entry that says so.

        found: the fields of `Candidate` that say what was aimed at and reached.
        """
        candidate = Candidate(len(self.candidates), how, bytes=len(data), seconds=round(self.seconds, 1), **found)
        write_atomically(self._file(candidate), lambda temporary: Path(temporary).write_bytes(data))
        arrays = [*state.weights, *(array for one in state.moved.values() for array in one)]
        StateFile(self._state(candidate)).save_state(arrays, {"names": list(state.moved)})
        self.candidates.append(candidate)
        self.plan = {}
        self._write()
        self.checkpoint.path.unlink(missing_ok=True)
        return candidate

    def drop_states(self, kept: Collection[int]) -> None:
        """Remove the states of all candidates but those of these numbers."""
        for one in self.candidates:
            if one.number not in kept:
                self._state(one).unlink(missing_ok=True)

    def begin(self, plan: Mapping[str, Any]) -> None:
        """Say what comes next, so that after an interruption the same comes."""
        self.checkpoint.path.unlink(missing_ok=True)  # A kill may have left that of the round before.
        self.plan = {**plan}
        self._write()

    @property
    def smallest(self) -> Candidate:
        """The smallest candidate within the limit; the first is always within."""
        return min((one for one in self.candidates if one.within), key=lambda one: one.bytes)

    def of(self, how: str) -> list[Candidate]:
        """The candidates that were made in one way, in their order."""
        return [one for one in self.candidates if one.how == how]

    def data(self, candidate: Candidate) -> bytes:
        """The bytes of a candidate's file."""
        return self._file(candidate).read_bytes()

    def state(self, candidate: Candidate) -> State:
        """The state of one of the candidates that are gone on from. Raises `FormatError`."""
        loaded = StateFile(self._state(candidate)).load_state()
        if loaded is None:
            raise FormatError(f"{self._state(candidate)} is missing: remove {self.folder} to begin anew.")
        arrays, progress = loaded
        names = progress["names"]
        count = len(arrays) - 2 * len(names)
        pairs = map(Moved, arrays[count::2], arrays[count + 1 :: 2])
        return State(arrays[:count], dict(zip(names, pairs, strict=True)))

    def _file(self, candidate: Candidate) -> Path:
        return self.folder / "candidates" / f"{candidate.number:03d}.dcz"

    def _state(self, candidate: Candidate) -> Path:
        return self.folder / "candidates" / f"{candidate.number:03d}.npz"

    def _write(self) -> None:
        found = {
            "version": _VERSION,
            "search": self._fingerprint,
            "seconds": round(self.seconds, 1),
            "candidates": [asdict(one) for one in self.candidates],
            "plan": self.plan,
        }
        write_text(self.path, json.dumps(found, indent=1) + "\n")

    def _read(self) -> None:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            written, seconds = found["search"], float(found["seconds"])
            candidates, plan = [Candidate(**one) for one in found["candidates"]], dict(found["plan"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"{self.path} is damaged: {error}; remove {self.folder} to begin anew.") from error
        if written != self._fingerprint:
            other = [key for key in self._fingerprint if written.get(key) != self._fingerprint[key]]
            raise StageError(
                f"{self.folder} holds another search, of another {other[0] if other else 'version'}: choose another "
                "folder."
            )
        self.candidates, self.plan = candidates, plan
        self._began -= seconds
