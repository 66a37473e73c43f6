"""Every error that deepcomp raises on purpose: one line that says what was received and what to do."""

from collections.abc import Iterable


class DeepcompError(Exception):
    """A mistake in what deepcomp was given; its message is one line for the person who gave it."""


class FormatError(DeepcompError):
    """A file is damaged, truncated, or not of the format it should be."""


class UnsupportedLayerError(DeepcompError, ValueError):
    """A network has a layer that this operation cannot treat; the message names it and what is supported."""


class DataError(DeepcompError, ValueError):
    """A data set is missing, malformed, or does not fit the network."""


class StageError(DeepcompError):
    """A stage was run before its predecessor, or on a run folder that is not its own."""


class OutputError(DeepcompError):
    """A file cannot be written."""


class RecipeError(DeepcompError, ValueError):
    """A recipe, a flag or an argument has a value that cannot be used."""


class DeepcompWarning(UserWarning):
    """Something that may not be meant, such as a layer without weights."""


def printable(text: str) -> str:
    """A text without characters that a terminal could take for commands: they are escaped, like `\\x1b`; lines stay."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def shape_text(shape: Iterable[int | None]) -> str:
    """A shape as messages show it: `28x28x1`; an open size is `?`."""
    return "x".join("?" if size is None else str(size) for size in shape)
