"""Where a feature map lies in a buffer: channel by channel, with margins, in phases."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_MOST_PHASES = 4  # of a map whose margins alone are set to 0: each phase takes a step


@dataclass(frozen=True)
class Layout:
    """Where a planar feature map lies: `place(y, x, c)` of channel c, row y, column x, which do not count margins.

    `phases` (sy, sx): every sy-th row and sx-th column make a map of their own. In a single phase, the margin on the
    right of a row is that on the left of the next.
    """

    margins: tuple[int, int, int, int]
    phases: tuple[int, int]
    pitch: int
    phase: int  # places of one phase
    plane: int  # places of one channel

    @classmethod
    def of(cls, grid: tuple[int, int, int], margins=(0, 0, 0, 0), phases=(1, 1), gap=0, unit=1) -> "Layout":
        """The layout of a feature map of `grid` rows, columns and channels.

        `gap`: the least places between two rows of a single phase; `unit`: what the places of a channel are a multiple
        of.
        """
        rows = -(-(margins[0] + grid[0] + margins[1]) // phases[0])
        if phases == (1, 1):
            pitch = grid[1] + max(gap, *margins[2:])
            phase = margins[2] + rows * pitch
        else:
            pitch = -(-(margins[2] + grid[1] + margins[3]) // phases[1])
            phase = rows * pitch
        return cls(margins, phases, pitch, phase, -(-phases[0] * phases[1] * phase // unit) * unit)

    def place(self, y, x, c):
        """The place of an element; arguments are integers or arrays of them."""
        (sy, sx), y, x = self.phases, y + self.margins[0], x + self.margins[2]
        if sy == sx == 1:
            return y * self.pitch + x + c * self.plane
        return c * self.plane + (y % sy * sx + x % sx) * self.phase + y // sy * self.pitch + x // sx

    def places(self, grid: tuple[int, int, int], margins=(0, 0, 0, 0)) -> np.ndarray:
        """The places of a whole feature map and of some of its margins."""
        top, bottom, left, right = margins
        rows, columns, channels = (
            np.arange(-top, grid[0] + bottom),
            np.arange(-left, grid[1] + right),
            np.arange(grid[2]),
        )
        return self.place(rows[:, None, None], columns[:, None], channels)

    def gaps(self, grid: tuple[int, int, int]) -> Iterator[tuple[int, int, int, int, int]]:
        """What each phase of a channel has beside the map itself, as `ClearStep` says it.

        Yields the places to the phase, its size, the places to its first row, the number of rows, and their width.
        """
        if self.phases[0] * self.phases[1] > _MOST_PHASES:
            yield 0, self.plane, self.plane, 0, 0
            return
        for number in range(self.phases[0] * self.phases[1]):
            place = divmod(number, self.phases[1])
            before = self.margins[0], self.margins[2]
            axes = [*zip(before, grid[:2], self.phases, place, strict=True)]
            first = [-(-max(margin - own, 0) // phases) for margin, _, phases, own in axes]
            last = [(margin + size - 1 - own) // phases for margin, size, phases, own in axes]
            rows, width = (max(0, end - begin + 1) for begin, end in zip(first, last, strict=True))
            if rows and width:
                yield number * self.phase, self.phase, first[0] * self.pitch + first[1], rows, width
            else:
                yield number * self.phase, self.phase, self.phase, 0, 0
