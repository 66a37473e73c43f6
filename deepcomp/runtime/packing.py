"""Compressed weights as the kernels read them.

A weight is a tap (uint16: the number of the input within its unit or cell) and a value (uint8 or uint16 index into a
codebook, or float32). Weights stay in this form in memory, sorted by unit, or by cell in a dense layer. They do not
say where an input lies in a buffer, so one copy of them serves every layout. A layer without a pruned weight has values
alone.
"""

from typing import NamedTuple

import numpy as np

from deepcomp.runtime.vectors import FLOAT32, SHORT, UINT8, UINT16, WIDTH

_SLACK = 64  # zeros after the last weight
TILE = 65536  # inputs of a tile: uint16 taps tell so many apart
_SPAN = 256  # units of a cell: uint8 tells so many apart, and their sums for a few blocks of images stay in cache
_SPANS = 16  # the least spans of a large layer, so that threads can share it
_LARGE = 2**18  # weights of a large layer
_MIN_TILE = 256  # inputs of a cell: for a few blocks of images they nearly fit the first-level cache
_MIN_UNIT_WEIGHTS = 4  # weights of a unit in a cell: with fewer, its sums are not worth loading
_MAX_TILE = 2**15  # inputs of a cell
_MAX_REPACKED = 2**15  # weights, fillers included, of a layer that is packed a second time in a single tile
_SHORT_CODEBOOK = 32  # entries that two registers hold


class PackedConv(NamedTuple):
    """Compressed weights of a convolution, sorted by unit and within a unit by tile of 65,536 inputs.

    starts: int32, the first weight of each tile of each unit, then the end. longest: the most weights of a unit. The
    last weight is followed by zeros, which a vector may read.
    """

    kind: int
    taps: np.ndarray
    values: np.ndarray
    codebook: np.ndarray
    starts: np.ndarray
    units: int
    tiles: int
    longest: int

    @property
    def nbytes(self) -> int:
        """Bytes that stay in memory."""
        return self.taps.nbytes + self.values.nbytes + self.codebook.nbytes + self.starts.nbytes

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit, tap and value of each weight."""
        unit, tile = divmod(np.repeat(np.arange(self.units * self.tiles), np.diff(self.starts)), self.tiles)
        return unit, tile * TILE + self.taps[: len(unit)], self.values[: len(unit)]


class PackedDense(NamedTuple):
    """Compressed weights of a dense layer, sorted by cell: those of `span` neighbouring units in a tile of inputs.

    A cell has a slot for each of its units, sorted by falling number of weights: slot n belongs to unit `members[n]`
    of the cell and has `counts[n]` weights. `WIDTH` neighbouring slots are a group: their weights are interleaved (the
    first weight of each slot, then the second of each...), and shorter slots are filled up.

    starts: int32, for each cell its first weight and how many slots have weights; cells of the same units are
    neighbours. counts: uint16. members: uint8. The last weight is followed by zeros, which a vector may read.
    """

    kind: int
    taps: np.ndarray
    values: np.ndarray
    codebook: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    members: np.ndarray
    units: int
    tiles: int
    tile: int
    span: int

    @property
    def nbytes(self) -> int:
        """Bytes that stay in memory."""
        arrays = (self.taps, self.values, self.codebook, self.starts, self.counts, self.members)
        return sum(array.nbytes for array in arrays)

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit, tap and value of each weight."""
        slot, place = _interleaved(self.counts)
        part, tile = divmod(slot // self.span, self.tiles)
        unit, tap = part * self.span + self.members[slot], tile * self.tile + self.taps[place]
        return unit, tap, self.values[place]


class PackedFull(NamedTuple):
    """Weights of a layer without a pruned one, unit by unit: indices into `codebook`, or float32 where that is empty.

    values: `taps` for each unit, in the order of the taps. Indices are followed by zeros, which a vector may read.
    """

    kind: int
    values: np.ndarray
    codebook: np.ndarray
    units: int
    taps: int

    @property
    def nbytes(self) -> int:
        """Bytes that stay in memory."""
        return self.values.nbytes + self.codebook.nbytes

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Unit, tap and value of each weight."""
        unit, tap = np.divmod(np.arange(self.units * self.taps), self.taps)
        return unit, tap, self.values[: len(unit)]


class PackedTable(NamedTuple):
    """A table of `rows` x `units` weights, row by row: indices into `codebook`, or float32 where that is empty."""

    kind: int
    values: np.ndarray
    codebook: np.ndarray
    rows: int
    units: int

    @property
    def nbytes(self) -> int:
        """Bytes that stay in memory."""
        return self.values.nbytes + self.codebook.nbytes


def pack_conv(
    unit: np.ndarray, tap: np.ndarray, value: np.ndarray, codebook: np.ndarray | None, units: int, taps: int
) -> PackedConv:
    """The packed weights of a convolution.

    unit, tap: integers, for each remaining weight, sorted by unit, then tap. tap: (channel of the group * kernel
    height + row) * kernel width + column. value: uint8 or uint16 indices into `codebook`, or float32 weights if
    that is None. units, taps: how many there are.
    """
    tiles = max(1, -(-taps // TILE))
    starts = np.searchsorted(unit * tiles + tap // TILE, np.arange(units * tiles + 1))
    longest = int(np.bincount(unit, minlength=1).max())
    padded, values = (np.pad(array, (0, _SLACK)) for array in ((tap % TILE).astype(np.uint16), value))
    codebook, kind = _codebook_and_kind(value, codebook)
    return PackedConv(kind, padded, values, codebook, starts.astype(np.int32), units, tiles, longest)


def pack_dense(
    unit: np.ndarray, tap: np.ndarray, value: np.ndarray, codebook: np.ndarray | None, units: int, taps: int
) -> PackedDense:
    """The packed weights of a dense layer; arguments as in `pack_conv`. tap: position of the input.

    A tile has few inputs, so that they stay in cache for a few blocks of images, but several weights of each unit.
    """
    tile = _MIN_TILE
    while tile < min(taps, _MAX_TILE) and len(tap) * tile < _MIN_UNIT_WEIGHTS * units * taps:
        tile *= 2
    return _pack_cells(unit, tap, value, codebook, units, taps, -(-taps // tile))


def pack_single_tile(
    unit: np.ndarray, tap: np.ndarray, value: np.ndarray, codebook: np.ndarray | None, units: int, taps: int
) -> PackedDense:
    """The packed weights of a dense layer of at most 32,768 inputs in a single tile; arguments as in `pack_dense`.

    This suits one image, whose inputs all stay in cache.
    """
    return _pack_cells(unit, tap, value, codebook, units, taps, 1)


def pack_full(value: np.ndarray, codebook: np.ndarray | None) -> PackedFull:
    """The packed weights of a layer without a pruned one.

    value: `(units, taps)`, uint8 or uint16 indices into `codebook`, or float32 weights if that is None.
    """
    codebook_, kind = _codebook_and_kind(value, codebook)
    values = np.ascontiguousarray(value).ravel()
    return PackedFull(kind, values if codebook is None else np.pad(values, (0, _SLACK)), codebook_, *value.shape)


def needs_single_tile(cells: PackedDense | PackedFull) -> bool:
    """Whether a layer should also be packed in a single tile: it is so small that this takes little memory."""
    if isinstance(cells, PackedFull):
        return False
    return cells.tiles > 1 and cells.tiles * cells.tile <= _MAX_TILE and len(cells.taps) <= _MAX_REPACKED


def _pack_cells(
    unit: np.ndarray,
    tap: np.ndarray,
    value: np.ndarray,
    codebook: np.ndarray | None,
    units: int,
    taps: int,
    tiles: int,
) -> PackedDense:
    tiles = max(1, tiles)
    tile = -(-taps // tiles)
    spans = max(-(-units // _SPAN), min(_SPANS, -(-units // WIDTH)) if len(tap) >= _LARGE else 1)
    span = -(-units // (spans * WIDTH)) * WIDTH
    cell = unit // span * tiles + tap // max(tile, 1)

    counts = np.bincount(cell * span + unit % span, minlength=-(-units // span) * tiles * span).reshape(-1, span)
    members = np.argsort(-counts, axis=1, kind="stable")
    slots = np.argsort(members, axis=1)  # of each unit of each cell
    counts = np.take_along_axis(counts, members, axis=1)
    sequence = np.lexsort((tap, slots[cell, unit % span], cell))
    _, place = _interleaved(counts)
    most = counts[:, ::WIDTH].sum(axis=1) * WIDTH  # entries of each cell, fillers too
    starts = np.stack([np.cumsum(most) - most, np.count_nonzero(counts, axis=1)], axis=1)

    filled_taps, filled_values = np.zeros(most.sum() + _SLACK, np.uint16), np.zeros(most.sum() + _SLACK, value.dtype)
    filled_taps[place] = (tap - tap // max(tile, 1) * tile)[sequence]
    filled_values[place] = value[sequence]
    codebook, kind = _codebook_and_kind(value, codebook)
    return PackedDense(
        kind, filled_taps, filled_values, codebook, starts.astype(np.int32), counts.astype(np.uint16).ravel(),
        members.astype(np.uint8).ravel(), units, tiles, tile, span,
    )  # fmt: skip


def _interleaved(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slot and place of each weight, sorted by slot, where the weights of `WIDTH` neighbouring slots are interleaved.

    counts: the number of weights of each slot, in a group never rising.
    """
    counts = counts.ravel().astype(np.int64)
    most = counts[::WIDTH] * WIDTH
    slot = np.repeat(np.arange(len(counts)), counts)
    turn = np.arange(len(slot)) - np.repeat(np.cumsum(counts) - counts, counts)
    return slot, (np.cumsum(most) - most)[slot // WIDTH] + turn * WIDTH + slot % WIDTH


def _codebook_and_kind(value: np.ndarray, codebook: np.ndarray | None) -> tuple[np.ndarray, int]:
    """The codebook as the kernels read it, and the kind of the values."""
    kind = {"uint8": UINT8, "uint16": UINT16, "float32": FLOAT32}[value.dtype.name]
    codebook = np.zeros(0, np.float32) if codebook is None else np.asarray(codebook, np.float32)
    if kind == UINT8 and len(codebook) <= _SHORT_CODEBOOK and WIDTH == 16:
        return np.pad(codebook, (0, _SHORT_CODEBOOK - len(codebook))), SHORT
    return codebook, kind
