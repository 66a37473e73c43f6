"""Where the values of a network lie while it runs: buffers, the places of each value, and loops that walk over them."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from deepcomp.runtime.graph import Value, grid_of
from deepcomp.runtime.moves import BUFFER_BITS, affine, buffers_of, first_fit

AXES = 4  # of a walk
_MOST_WALKS = 16  # in place of a table of places


class Walk(NamedTuple):
    """Loops inside of each other over some arrays: of each axis its count, of each array its first place and steps."""

    counts: tuple[int, ...]
    firsts: tuple[int, ...]
    steps: tuple[tuple[int, ...], ...]


class Buffer(NamedTuple):
    """Floats of memory; `array` is what the caller gives them by, or empty for scratch memory."""

    size: int
    array: str = ""


class Memory:
    """The buffers of a network, and when each of them is in use."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self._first: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._starts: dict[int, int] = {}
        self.size = 0  # floats of scratch memory

    def add(self, size: int, array: str = "") -> int:
        """A new buffer; returns its first place."""
        self.buffers.append(Buffer(size, array))
        return (len(self.buffers) - 1) << BUFFER_BITS

    def use(self, step: int, places: np.ndarray | int) -> None:
        """Say that a step uses what lies at some places."""
        for buffer in buffers_of(places):
            self._first.setdefault(buffer, step)
            self._last[buffer] = step

    def is_whole(self, place: int, size: int) -> bool:
        """Whether scratch memory of just this size begins at a place."""
        number = place >> BUFFER_BITS
        return self.buffers[number] == Buffer(size) and number << BUFFER_BITS == place

    def give(self, place: int, array: str) -> None:
        """Have a buffer be memory of the caller."""
        number = place >> BUFFER_BITS
        self.buffers[number] = Buffer(self.buffers[number].size, array)

    def allocate(self) -> None:
        """Give each buffer the first floats of scratch memory that are free while it is in use, largest first."""
        own = [number for number, one in enumerate(self.buffers) if not one.array and number in self._first]
        own.sort(key=lambda number: -self.buffers[number].size)
        sizes = np.array([self.buffers[number].size for number in own], np.int64)
        first, last = (np.array([of[number] for number in own], np.int64) for of in (self._first, self._last))
        starts = first_fit(sizes, first, last, 0)
        self._starts = dict(zip(own, starts.tolist(), strict=True))
        self.size = int((starts + sizes).max(initial=0))

    def address(self, place: int) -> str:
        """A place as an expression of C."""
        number, offset = place >> BUFFER_BITS, place & ((1 << BUFFER_BITS) - 1)
        array = self.buffers[number].array
        base, _, start = array.partition("+") if array else ("scratch", "", self._starts[number])
        offset += int(start or 0)
        return f"{base} + {offset}" if offset else base


def planar(shape: Sequence[int], first: int) -> np.ndarray:
    """The places of a feature map that lies channel by channel, `int64` of its shape."""
    rows, columns, channels = grid_of(tuple(shape))
    order = np.arange(rows * columns * channels).reshape(channels, rows, columns)
    return first + order.transpose(1, 2, 0).reshape(shape)


def in_order(shape: Sequence[int], first: int) -> np.ndarray:
    """The places of a value that lies in the order of its elements, `int64` of its shape."""
    return first + np.arange(math.prod(shape)).reshape(shape)


def arranged_like(places: np.ndarray, first: int) -> np.ndarray:
    """Places from `first` on, in the order of others where these fill a part of one buffer, else of the elements."""
    order = places - places.min() if places.size else places
    whole = places.size and order.max() == places.size - 1 and np.unique(order).size == places.size
    return first + order if whole else in_order(places.shape, first)


def walks(*arrays: np.ndarray, most: float = _MOST_WALKS) -> list[Walk] | None:
    """As few walks as possible over arrays of places of one shape; None where it takes more than `most`.

    The last axis of each is that along which the places of the first array are next to each other.
    """
    found: list[Walk] = []
    for parts in _affine_parts(arrays, most):
        found += _walks_of(parts)
        if len(found) > most:
            return None
    return found


def _affine_parts(arrays: Sequence[np.ndarray], most: float) -> Iterator[Sequence[np.ndarray]]:
    """Parts of the arrays in each of which places follow from the numbers along the axes."""
    pending, made = [[*arrays]], 0
    while pending and made <= most:
        parts = pending.pop()
        if all(affine(one)[1] is not None for one in parts):
            made += 1
            yield parts
            continue
        axis, cuts = min(
            ((axis, _breaks(parts, axis)) for axis, size in enumerate(parts[0].shape) if size > 1),
            key=lambda pair: len(pair[1]) or math.inf,
        )
        cuts = cuts or [1]
        pieces = [np.split(one, cuts[:1], axis) for one in parts]
        pending += [[*two] for two in zip(*pieces, strict=True)][::-1]
    yield from pending


def _breaks(arrays: Sequence[np.ndarray], axis: int) -> list[int]:
    """Where places do not go on along an axis as they began."""
    found: set[int] = set()
    for one in arrays:
        steps = np.diff(one, axis=axis)
        if steps.shape[axis]:
            first = np.take(steps, [0], axis)
            others = tuple(other for other in range(one.ndim) if other != axis)
            found.update((np.flatnonzero((steps != first).any(axis=others)) + 1).tolist())
    return sorted(found)


def _walks_of(parts: Sequence[np.ndarray]) -> list[Walk]:
    """The walks over arrays whose places follow from the numbers along the axes."""
    firsts, steps = zip(*((first, own) for first, own in map(affine, parts)), strict=True)
    axes = [(size, tuple(own[axis] for own in steps)) for axis, size in enumerate(parts[0].shape) if size > 1]
    axes.sort(key=lambda pair: -abs(pair[1][0]))
    merged: list[tuple[int, tuple[int, ...]]] = []
    for size, own in axes:
        if merged and all(outer == size * inner for outer, inner in zip(merged[-1][1], own, strict=True)):
            merged[-1] = merged[-1][0] * size, own
        else:
            merged.append((size, own))
    rest = merged[-AXES:]
    rest = [(1, (0,) * len(parts))] * (AXES - len(rest)) + rest
    found = []
    for at in np.ndindex(*(size for size, _ in merged[:-AXES])):
        moved = [
            first + sum(number * own[which] for number, (_, own) in zip(at, merged[:-AXES], strict=True))
            for which, first in enumerate(firsts)
        ]
        counts = tuple(size for size, _ in rest)
        found.append(
            Walk(counts, tuple(moved), tuple(tuple(own[which] for _, own in rest) for which in range(len(parts))))
        )
    return found


def without_margins(value: Value) -> tuple[Value, tuple[int, ...]]:
    """The value in a padded view, and the zeros above, below, left and right of it."""
    margins = (0, 0, 0, 0)
    while value.margins is not None:
        margins = tuple(a + b for a, b in zip(margins, value.margins, strict=True))
        (value,) = value.parts
    return value, margins
