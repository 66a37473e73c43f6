"""Atomic writes: a file is complete, or as it was before, or absent."""

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepcomp.errors import OutputError


def write_atomically(path: Path, write: Callable[[str], Any]) -> None:
    """Have `write` fill a temporary file beside `path`, flush it to the disk, then rename it to `path`.

    The file gets the permissions of any new file. Raises `OutputError` if it cannot be written.
    """
    temporary = path.parent / f".writing-{secrets.token_hex(8)}{path.suffix}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The system applies the umask here. Python can read it only by changing it, for all threads of the process.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666))
    except OSError as error:
        raise OutputError(f"Cannot write in {path.parent}: {error.strerror}.") from error
    try:
        write(str(temporary))
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Flush a rename to the disk where the system can do so: Windows opens no folders, some network shares sync none.

    The file is there already, so a failure is no error.
    """
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a small UTF-8 text file atomically."""
    write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))
