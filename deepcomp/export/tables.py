"""The constants of an exported network as tables of C: each has a name, and equal ones stand there once."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from deepcomp.dcz.network import SharedWeight
from deepcomp.export import streams

_TYPES = {"float32": "float", "uint8": "uint8_t", "uint32": "uint32_t"}
_WIDTH = 110  # of a line


class Tables:
    """Constant arrays, in the order in which they were added; with `coded`, kernels are bytes of the range coder."""

    def __init__(self, coded: bool = False) -> None:
        self.coded = coded
        self._names: dict[tuple[str, bytes], str] = {}
        self._taken: set[str] = set()
        self._text: list[str] = []
        self.bytes = 0

    def add(self, name: str, array: np.ndarray) -> str:
        """Add an array of one axis, float32, uint8 or uint32; returns the name by which C knows it."""
        array = np.ascontiguousarray(array)
        key = array.dtype.name, array.tobytes()
        if key not in self._names:
            self._names[key] = name = self.unique(name)
            write = number if array.dtype == np.float32 else str
            lines = "\n".join(_lines(write(one) for one in array.tolist()))
            self._text.append(f"static const {_TYPES[array.dtype.name]} {name}[{array.size}] = {{\n{lines}\n}};")
            self.bytes += array.nbytes
        return self._names[key]

    def struct(self, kind: str, name: str, initializer: str, size: int) -> str:
        """Add a constant of a struct, of so many bytes; returns its name."""
        key = kind, initializer.encode()
        if key not in self._names:
            self._names[key] = name = self.unique(name)
            self._text.append("\n".join([f"static const {kind} {name} =", *_lines(initializer.split(", "))]) + ";")
            self.bytes += size
        return self._names[key]

    def unique(self, name: str) -> str:
        """The name, with a number behind it if another has it."""
        found, count = name, 1
        while found in self._taken:
            count += 1
            found = f"{name}_{count}"
        self._taken.add(found)
        return found

    def __str__(self) -> str:
        return "\n".join(self._text)


def number(value: float) -> str:
    """A float32 as a constant of C."""
    if value != value:
        return "NAN"
    if value in (float("inf"), float("-inf")):
        return "INFINITY" if value > 0 else "-INFINITY"
    text = np.format_float_positional(np.float32(value), unique=True, trim="0")
    short = np.format_float_scientific(np.float32(value), unique=True, trim="0")
    return min(text, short, key=len) + "f"


def kernel(
    tables: Tables, name: Callable[[str], str], own: SharedWeight | np.ndarray, left: np.ndarray, positions: np.ndarray
) -> str:
    """The `kernel` of C of the entries `left` of a kernel, at ascending positions.

    Entries are indices of a shared kernel, counted from 1, or values.
    """
    codebook, steps = own.codebook if isinstance(own, SharedWeight) else None, np.diff(positions, prepend=-1)
    indices = (left - 1).astype(np.int64) if codebook is not None else np.zeros(left.size, np.int64)
    if tables.coded:
        bits = 0 if codebook is None else max(1, (codebook.size - 1).bit_length())
        fields: dict[str, Any] = {"bits": bits, "count": left.size}
        if left.size:
            coded, numbers = streams.encode(steps, indices, bits), left if codebook is None else codebook
            fields["values"] = tables.add(name("values"), numbers.astype(np.float32))
            fields["bytes"] = array = tables.add(name("bytes"), coded)
            fields["end"] = f"{array} + {coded.size}"
        return record(fields)
    values = left if codebook is None else codebook[indices]
    fields = {"own": record(_values(tables, name, codebook, indices, values)), "count": left.size}
    if not (steps == 1).all():
        fields["steps"] = tables.add(name("steps"), _steps(steps))
    return record(fields)


def whole_table(tables: Tables, name: Callable[[str], str], kernel: SharedWeight | np.ndarray) -> dict[str, Any]:
    """The fields of the `weights` of C of a table whose rows are read, zeros included."""
    if isinstance(kernel, SharedWeight):
        codebook = np.append(np.float32(0), kernel.codebook)
        return _values(tables, name, codebook, kernel.indices.ravel(), codebook[kernel.indices.ravel()])
    return _values(tables, name, None, kernel.ravel(), kernel.ravel())


def vector(tables: Tables, name: Callable[[str], str], array: np.ndarray) -> str:
    """The `weights` of C of numbers, one for each unit."""
    codebook, indices = np.unique(array.astype(np.float32), return_inverse=True)
    return record(_values(tables, name, codebook, indices, array))


def _values(
    tables: Tables, name: Callable[[str], str], codebook: np.ndarray | None, indices: np.ndarray, values: np.ndarray
) -> dict[str, Any]:
    """The fields of values of weights: indices of a codebook where they take less."""
    if codebook is not None:
        bits = 4 if codebook.size <= 16 else 8 if codebook.size <= 256 else 16
        packed = _packed(indices, bits)
        if packed.nbytes + codebook.nbytes < 4 * values.size:
            own = {"values": tables.add(name("values"), codebook), "indices": tables.add(name("indices"), packed)}
            return {"bits": bits, **own}
    if not values.size:
        return {}
    return {"values": tables.add(name("values"), values.astype(np.float32))}


def row(numbers: Iterable[Any]) -> str:
    """An initializer of an array."""
    return "{" + ", ".join(map(str, numbers)) + "}"


def record(fields: Mapping[str, Any]) -> str:
    """An initializer of a struct; fields that are left out are 0."""
    return "{" + (", ".join(f".{name} = {value}" for name, value in fields.items()) or "0") + "}"


def _steps(steps: np.ndarray) -> np.ndarray:
    """Steps as bytes: 255 as often as it fits, then the rest."""
    whole, rest = np.divmod(steps, 255)
    ends = np.cumsum(whole + 1)
    found = np.full(int(ends[-1]) if ends.size else 0, 255, np.uint8)
    found[ends - 1] = rest
    return found


def _packed(indices: np.ndarray, bits: int) -> np.ndarray:
    """Indices of 4, 8 or 16 bits as bytes, the lower ones first."""
    if bits == 4:
        pairs = np.append(indices, [0] * (indices.size % 2)).astype(np.uint8).reshape(-1, 2)
        return pairs[:, 0] | pairs[:, 1] << 4
    return indices.astype("<u2").view(np.uint8) if bits == 16 else indices.astype(np.uint8)


def _lines(words: Iterable[str]) -> Iterable[str]:
    line = ""
    for word in words:
        if line and len(line) + len(word) + 2 > _WIDTH:
            yield line + ","
            line = ""
        line = f"{line}, {word}" if line else f"    {word}"
    yield line
