"""How much memory and work a network may ask for: a small file must not fill a computer or keep it busy for hours."""

from typing import NamedTuple

from deepcomp.errors import FormatError, RecipeError

# Every file may ask for so much, and for so much more with each of its bytes.
_FREE_MEMORY, _MEMORY_PER_BYTE = 2**30, 2**14
_FREE_WORK, _WORK_PER_BYTE = 2**32, 2**17


class LimitError(FormatError):
    """A network asks for more than its limits."""


class Limits(NamedTuple):
    """The most bytes of memory, and the most operations: to read the file, to load it, and to run one image, each.

    An operation is a multiply-add or a comparison, or anything that takes as long: about a nanosecond.
    """

    memory: int
    work: int

    @classmethod
    def of(cls, size: int, memory: int | None = None, work: int | None = None) -> "Limits":
        """The limits of a file of `size` bytes, unless others are given. Raises `RecipeError`."""
        for name, value in (("max_memory", memory), ("max_work", work)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise RecipeError(f"{name}={value!r} is not a whole number from 1 on.")
        return cls(
            _FREE_MEMORY + _MEMORY_PER_BYTE * size if memory is None else memory,
            _FREE_WORK + _WORK_PER_BYTE * size if work is None else work,
        )

    def check_memory(self, needed: int) -> None:
        """Raise `LimitError` where more bytes are needed than allowed."""
        if needed > self.memory:
            raise LimitError(
                f"The network needs more than {needed:,} bytes of memory, over the limit of {self.memory:,}: if you "
                "trust it, give load a larger max_memory (--max-memory)."
            )

    def check_work(self, needed: int) -> None:
        """Raise `LimitError` where more operations are needed than allowed."""
        if needed > self.work:
            raise LimitError(
                f"The network needs {needed:,} operations, over the limit of {self.work:,}: if you trust it, give load "
                "a larger max_work (--max-work)."
            )
