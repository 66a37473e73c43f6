"""The time that a block of code takes."""

import contextlib
import gc
import time
from collections.abc import Iterator


@contextlib.contextmanager
def seconds() -> Iterator[list[float]]:
    """A list that holds, after the block, its processor seconds on this thread, without other tests' garbage."""
    taken = []
    gc.disable()
    begin = time.thread_time()
    try:
        yield taken
    finally:
        taken.append(time.thread_time() - begin)
        gc.enable()
