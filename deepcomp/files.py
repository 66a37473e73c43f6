"""Atomic writes: a file is there whole, as it was before, or not at all."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepcomp.errors import StageError


def write_atomically(path: Path, write: Callable[[str], Any]) -> None:
    """Have `write` fill a temporary file beside `path`, bring it to the disk, then rename it into place.

    Raises `StageError`, one line, where the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".writing-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise StageError(f"Cannot write in {path.parent}: {error.strerror}.") from error
    try:
        write(temporary)
        with Path(temporary).open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)  # mkstemp makes files that only their owner may read.
        Path(temporary).replace(path)
    except OSError as error:
        raise StageError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 text file atomically."""
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
