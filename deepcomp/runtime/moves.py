"""Lists of moves, made by compiled loops: a network has many elementwise steps, and NumPy's calls would take longer."""

import numpy as np

from deepcomp.compiled import compiled
from deepcomp.runtime import bounds

BUFFER_BITS = 40  # before allocation, place p of buffer b is b * 2^BUFFER_BITS + p
_PLACE = (1 << BUFFER_BITS) - 1


def list_moves(
    target: np.ndarray,
    source: np.ndarray,
    other: np.ndarray,
    located: tuple[bool, bool, bool],
    bases: np.ndarray,
    common: int,
) -> np.ndarray:
    """As few moves as possible that write all targets, sorted by target: `int32`, the columns of `Move`.

    target: `int64 (..., channels)`; source and other fit its shape. located: which of the three are places before
    allocation; bases: the first place of each buffer. A move has places below `common` or other places only: a kernel
    looks at its first one. Raises `FormatError` for places that do not fit 32 bits.
    """
    shape, axes = target.shape, (*range(1, target.ndim), 0)
    places = np.empty((3, target.size), np.int64)
    for row, array, moved in zip(places, (target, source, other), located, strict=True):
        if located[0]:  # most maps lie channel by channel
            row.reshape(shape[-1:] + shape[:-1]).transpose(axes)[...] = array
        else:
            row.reshape(shape)[...] = array
        if moved:
            _locate(row, bases)
    if not _ascends(places[0]):
        places = places[:, np.argsort(places[0], kind="stable")]
    regions = np.where(located, common, np.iinfo(np.int64).min)
    moves = np.empty((_fill(places, regions, np.empty((0, 6), np.int64)), 6), np.int64)
    _fill(places, regions, moves)
    return bounds.as_int32(moves, 1, "of moves")


def buffers_of(places: np.ndarray | int) -> set[int]:
    """The buffers in which places before allocation lie."""
    places = np.asarray(places)
    if not places.size:
        return set()
    first, last = int(places.min()) >> BUFFER_BITS, int(places.max()) >> BUFFER_BITS
    return {first} if first == last else set(np.unique(places >> BUFFER_BITS).tolist())


def affine(places: np.ndarray) -> tuple[int, tuple[int, ...] | None]:
    """The first of some places, and the step along each axis where they follow from it in one buffer, else None."""
    base = int(places.flat[0])
    ends = [
        places[tuple(int(axis == other) for other in range(places.ndim))] if size > 1 else base
        for axis, size in enumerate(places.shape)
    ]
    steps = tuple(int(end) - base for end in ends)
    grid = np.ix_(*map(np.arange, places.shape))
    same = np.array_equal(places, base + sum(axis * step for axis, step in zip(grid, steps, strict=True)))
    one = places.min() >> BUFFER_BITS == places.max() >> BUFFER_BITS
    return base, steps if same and one else None


@compiled()
def first_fit(sizes, first, last, start):
    """The first place of each buffer: the lowest from `start` on that is free from step `first` to step `last`.

    All are `int64 (buffers,)`; the buffers are placed one after the other.
    """
    count = len(sizes)
    low = np.zeros(count, np.int64)
    order = np.zeros(count, np.int64)  # of those placed, by place
    for i in range(count):
        place, at = start, i
        for k in range(i):
            j = order[k]
            if first[j] <= last[i] and first[i] <= last[j]:
                if place + sizes[i] <= low[j]:
                    break
                place = max(place, low[j] + sizes[j])
        while at > 0 and low[order[at - 1]] > place:
            order[at] = order[at - 1]
            at -= 1
        low[i], order[at] = place, i
    return low


@compiled()
def _locate(places, bases):
    for i in range(len(places)):
        places[i] = bases[places[i] >> BUFFER_BITS] + (places[i] & _PLACE)


@compiled()
def _ascends(places):
    i = 1
    while i < len(places) and places[i] >= places[i - 1]:
        i += 1
    return i >= len(places)


@compiled()
def _follows(places, regions, i):
    """Whether place i can stand in one move with place i - 1."""
    fits = places[0, i] == places[0, i - 1] + 1
    for k in range(3):
        fits = fits and (places[k, i] >= regions[k]) == (places[k, i - 1] >= regions[k])
    return fits


@compiled()
def _fill(places, regions, moves):
    """Write as many moves as there is room for; returns how many there are."""
    count, size, first = 0, places.shape[1], 0
    while first < size:
        step, other_step, end = np.int64(1), np.int64(0), first + 1
        if end < size and _follows(places, regions, end):
            step = places[1, end] - places[1, first]
            other_step = places[2, end] - places[2, first]
            end += 1
            while (
                end < size
                and _follows(places, regions, end)
                and places[1, end] - places[1, end - 1] == step
                and places[2, end] - places[2, end - 1] == other_step
            ):
                end += 1
        if count < len(moves):
            moves[count, 0] = places[0, first]
            moves[count, 1] = places[1, first]
            moves[count, 2] = places[2, first]
            moves[count, 3] = step
            moves[count, 4] = other_step
            moves[count, 5] = end - first
        count += 1
        first = end
    return count
