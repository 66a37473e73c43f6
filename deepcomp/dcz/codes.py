"""How the options of layers are written: numbers, choices and tuples, and the reader of bytes (docs/format.md)."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepcomp.errors import DeepcompError, FormatError

MAX_SIZE = 2**31 - 1  # of a dimension and of a tensor
MAX_TEXT = 255  # bytes
MAX_RANK = 8

Shape = tuple[int, ...]


class InvalidNetworkError(DeepcompError):
    """A network that cannot exist. It becomes a `FormatError` when read, an `UnsupportedLayerError` when written."""


def require(condition: bool, message: str) -> None:
    """Raise `InvalidNetworkError` with this message unless the condition holds."""
    if not condition:
        raise InvalidNetworkError(message)


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put `where` in front of the message of an `InvalidNetworkError`."""
    try:
        yield
    except InvalidNetworkError as error:
        raise InvalidNetworkError(f"{where}: {error}") from error


class Reader:
    """Reads bytes from a position to an end, and never beyond.

    `data` has a length and gives bytes as integers, slices of them as buffers: a memoryview, or what reads a file.
    """

    def __init__(self, data: Any, position: int, end: int | None = None):
        self.data, self.position, self.end = data, position, len(data) if end is None else end
        self.depth = 0  # of the layer that is read, inside of others

    @property
    def left(self) -> int:
        return self.end - self.position

    def take(self, count: int) -> memoryview:
        if count > self.left:
            raise FormatError(f"it needs {count} more bytes at byte {self.position} and has {self.left}.")
        self.position += count
        return self.data[self.position - count : self.position]

    def varint(self) -> int:
        """An unsigned LEB128 number of at most 5 bytes, in its shortest form."""
        value = 0
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                if byte == 0 and shift:
                    raise FormatError(f"the number before byte {self.position} is overlong.")
                return value
        raise FormatError(f"the number before byte {self.position} has more than 5 bytes.")


def varint(value: int) -> bytes:
    """A number from 0 on as an unsigned LEB128 number."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


@dataclass(frozen=True)
class Whole:
    """A whole number from `low` to `high`: the difference from `low`, as a varint."""

    low: int
    high: int = MAX_SIZE

    def write(self, value: Any) -> bytes:
        fits = isinstance(value, int) and not isinstance(value, bool) and self.low <= value <= self.high
        require(fits, f"{value!r} is not a whole number from {self.low} to {self.high}.")
        return varint(value - self.low)

    def read(self, source: Reader) -> int:
        value = source.varint() + self.low
        require(value <= self.high, f"{value} is more than {self.high}.")
        return value


@dataclass(frozen=True)
class Choice:
    """One of a few values: its position among them, as a varint."""

    values: tuple

    def write(self, value: Any) -> bytes:
        require(value in self.values, f"{value!r} is not one of {', '.join(map(str, self.values))}.")
        return varint(self.values.index(value))

    def read(self, source: Reader) -> Any:
        number = source.varint()
        require(number < len(self.values), f"there is no choice {number} among {', '.join(map(str, self.values))}.")
        return self.values[number]


@dataclass(frozen=True)
class Real:
    """A finite number from `low` to `high`, as a float64."""

    low: float = -math.inf
    high: float = math.inf

    def write(self, value: Any) -> bytes:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        fits = fits and math.isfinite(value) and self.low <= value <= self.high
        require(fits, f"{value!r} is not a finite number from {self.low} to {self.high}.")
        return np.array(value, "<f8").tobytes()

    def read(self, source: Reader) -> float:
        value = float(np.frombuffer(source.take(8), "<f8")[0])
        self.write(value)
        return value


@dataclass(frozen=True)
class Row:
    """A tuple of `length` values, one after the other. If `length` is None, their number, 1 to 8, comes first."""

    code: Any
    length: int | None = None

    def write(self, value: Any) -> bytes:
        require(isinstance(value, tuple), f"{value!r} is not a tuple.")
        require(self.length in (None, len(value)), f"{value!r} does not have {self.length} entries.")
        length = b"" if self.length else RANK.write(len(value))
        return length + b"".join(map(self.code.write, value))

    def read(self, source: Reader) -> tuple:
        return tuple(self.code.read(source) for _ in range(self.length or RANK.read(source)))


@dataclass(frozen=True)
class Some:
    """A tuple of 0 to 8 values: their number, as a varint, then one after the other."""

    code: Any

    def write(self, value: Any) -> bytes:
        require(isinstance(value, tuple), f"{value!r} is not a tuple.")
        return Whole(0, MAX_RANK).write(len(value)) + b"".join(map(self.code.write, value))

    def read(self, source: Reader) -> tuple:
        return tuple(self.code.read(source) for _ in range(Whole(0, MAX_RANK).read(source)))


@dataclass(frozen=True)
class Text:
    """A text of at most 255 bytes in UTF-8, without control characters: the number of bytes, then the bytes.

    It has no slashes, unless it is a path.
    """

    is_path: bool = False

    def write(self, value: Any) -> bytes:
        require(isinstance(value, str), f"{value!r} is not a text.")
        check_characters(value, self.is_path)
        encoded = value.encode()
        require(len(encoded) <= MAX_TEXT, f"{value!r} takes more than {MAX_TEXT} bytes.")
        return varint(len(encoded)) + encoded

    def read(self, source: Reader) -> str:
        length = source.varint()
        require(length <= MAX_TEXT, f"a text of {length} bytes is longer than {MAX_TEXT}.")
        return read_text(source, length, self.is_path)


def read_text(source: Reader, length: int, is_path: bool = False) -> str:
    """The text in the next bytes. Raises `FormatError` where they are not UTF-8."""
    try:
        text = str(source.take(length), "utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"a name before byte {source.position} is not UTF-8.") from error
    check_characters(text, is_path)
    return text


def check_characters(text: str, is_path: bool = False) -> None:
    """Require a text without control characters, slashes and halves of characters; a path may have slashes."""
    bad = [c for c in text if c < " " or c in ("\x7f" if is_path else "/\x7f") or "\ud800" <= c <= "\udfff"]
    require(not bad, f"The name {text!r} has the character {''.join(bad[:1])!r}, which no name may have.")


SIZE, ANY_SIZE, RANK = Whole(1), Whole(0), Whole(1, MAX_RANK)
FLAG, POSITIVE = Choice((False, True)), Real(0)
SHAPE = Row(SIZE)
