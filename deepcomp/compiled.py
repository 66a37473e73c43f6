"""Compiles functions with Numba; the machine code is kept on disk if there is a folder to write to."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numba import njit

_PATIENCE = 2.0  # seconds until a terminal is told why nothing happens
_noticed = False


def compiled(
    *, error_model: str = "python", inline: str = "never", nogil: bool = False
) -> Callable[[Callable], Callable]:
    """Decorator: `numba.njit` with these options, and with the code kept on disk where possible.

    Numba keeps it in the folder that `NUMBA_CACHE_DIR` names, else beside the source, else in the user's cache folder.
    If none can be written, the function is compiled in memory, and standard error gets one line for the whole process.
    """

    options: dict[str, Any] = {"error_model": error_model, "inline": inline, "nogil": nogil}

    def decorate(function: Callable) -> Callable:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # "no locator available": Numba tries its folders when it decorates
            _notice()
            return njit(**options)(function)

    return decorate


@contextmanager
def told(line: str) -> Iterator[None]:
    """Print a line on standard error if the block takes long and a person may be waiting there."""
    timer = threading.Timer(_PATIENCE, print, [line], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    if sys.stderr is not None and sys.stderr.isatty():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _notice() -> None:
    global _noticed
    if not _noticed:
        _noticed = True
        print(
            "deepcomp: compiled code cannot be kept on disk, so each process compiles it anew;"
            " set NUMBA_CACHE_DIR to a folder that can be written.",
            file=sys.stderr,
        )
