"""Atomic writes: a file is complete, or as it was before, or absent."""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deepcomp.errors import OutputError, StageError


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


@contextlib.contextmanager
def locked(folder: Path, *, shared: bool = False, other: str = "another folder") -> Iterator[None]:
    """Keep other processes out of a folder, which is made where there is none, but for `shared` ones.

    Raises `StageError` if another process is at work in it, with the advice to choose `other`, and `OutputError` if it
    cannot be made. A system or a network share that does not lock folders keeps nobody out. A folder that stays empty
    is removed again.
    """
    made = not folder.is_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be a run folder: {error.strerror}.") from error
    handle = _lock(folder, shared, other)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _lock(folder: Path, shared: bool, other: str) -> int | None:
    """Lock a folder until the handle that it returns is closed, or the process ends; None where that cannot be done."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows opens no folders
        return None
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise StageError(f"Another script is at work in {folder}: wait for it, or choose {other}.") from error
    except OSError:
        os.close(handle)
        return None
    return handle
