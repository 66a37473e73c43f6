"""What a search shows: a row for each candidate as it comes, and at the end a report and a picture."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deepcomp import tables
from deepcomp.search.journal import AS_IT_IS, LAYERS, PRUNED, SHARED, Candidate
from deepcomp.search.limit import Limit

_STUDENT = 2.093  # half the width of a 95% interval, in standard errors of the mean of 20 differences
_COLUMNS = {
    "number": "#",
    "how": "how",
    "source": "of",
    "steps": "steps:,",
    "bytes": "bytes:,",
    "ratio": "ratio:.1f",
    "metric": "",
    "within": "within",
    "minutes": "min:.1f",
}
_WIDTHS = {"number": 3, "how": 14, "source": 3, "steps": 7, "bytes": 11, "ratio": 7, "metric": 8, "minutes": 6}


@dataclass(frozen=True)
class Interval:
    """How much higher the metric of a network is than that of another, and the ends of a 95% confidence interval."""

    difference: float
    low: float
    high: float

    @classmethod
    def of(cls, difference: float, error: float) -> "Interval":
        """From a difference and its standard error."""
        return cls(difference, difference - _STUDENT * error, difference + _STUDENT * error)


@dataclass(frozen=True)
class Report:
    """What a search found.

    candidates: all that was tried, in their order. chosen: the smallest within the limit. dense_bytes: 4 for each
    parameter of the full network. held_out: how many examples chose. interval: how much better the chosen network is
    than the full one on these, and how far sampling alone could move that. test: the metrics of the full and of the
    chosen network on separate test examples, None if there were none. notes: what else there is to know.
    """

    candidates: Sequence[Candidate]
    chosen: Candidate
    limit: Limit
    dense_bytes: int
    held_out: int
    interval: Interval
    test: tuple[float, float] | None
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{table(self.candidates, self.limit, self.dense_bytes)}\n\n{self.summary()}"

    def summary(self) -> str:
        """What was chosen and why, for people: the report without the table of candidates."""
        limit, chosen = self.limit, self.chosen
        lines = [f"chosen: #{chosen.number}, {self.ratio_line()}", f"limit: {limit}"]
        lines.append(f"on {self.held_out:,} held-out examples, which chose it: {self._change()}")
        if self.test is not None:
            lines.append(f"on the test examples: {limit.metric} {' -> '.join(map(limit.shown, self.test))}")
        return "\n".join([*lines, *self.notes])

    def ratio_line(self) -> str:
        """The bytes before and after, for people."""
        return f"{self.dense_bytes:,} bytes -> {self.chosen.bytes:,}, {self.dense_bytes / self.chosen.bytes:.1f}x"

    def table(self) -> dict[str, Any]:
        """All of it for programs, as JSON has it."""
        limit = {**asdict(self.limit), "bound": self.limit.bound}
        return {
            "file_bytes": self.chosen.bytes,
            "dense_bytes": self.dense_bytes,
            "ratio": self.dense_bytes / self.chosen.bytes,
            "chosen": self.chosen.number,
            "limit": limit,
            "held_out": self.held_out,
            "interval": asdict(self.interval),
            "test": None if self.test is None else dict(zip(("full", "chosen"), self.test, strict=True)),
            "candidates": [asdict(one) for one in self.candidates],
            "notes": list(self.notes),
        }

    def picture(self, path: str | Path) -> None:
        """Draw bytes against the metric of all that was tried, the limit, and the one chosen, as a PNG."""
        from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

        from deepcomp import drawing

        factor = 100 if self.limit.rises else 1
        colors = dict(zip((AS_IT_IS, LAYERS, PRUNED, SHARED), drawing.COLORS, strict=False))
        with drawing.saved_figure(path, 4.2) as figure:
            axes = figure.subplots()
            for how, color in colors.items():
                own = [one for one in self.candidates if one.how == how]
                x, y = [one.bytes for one in own], [factor * one.metric for one in own]
                axes.plot(x, y, "o", color=color, label=how, markersize=5)
            axes.axhline(factor * self.limit.bound, color=drawing.GREY, linewidth=0.8, linestyle="--")
            axes.annotate(
                f"limit {self.limit.shown(self.limit.bound)}",
                (1, factor * self.limit.bound),
                xycoords=("axes fraction", "data"),
                xytext=(-2, 3),
                textcoords="offset points",
                ha="right",
                color=drawing.GREY,
            )
            chosen = self.chosen.bytes, factor * self.chosen.metric
            axes.plot(*chosen, "o", markersize=12, markerfacecolor="none", color=drawing.INK)
            text = f"{self.chosen.bytes:,} bytes, {self.limit.shown(self.chosen.metric)}"
            # Smaller files are less exact: there is room above, to the left.
            axes.annotate(text, chosen, xytext=(-8, 9), textcoords="offset points", ha="right", color=drawing.INK)
            axes.set_xscale("log")
            axes.margins(x=0.12, y=0.12)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_locator(MaxNLocator(6))
            axes.set_xlabel("bytes of the file")
            axes.set_ylabel(f"{self.limit.metric} on held-out examples{', %' if self.limit.rises else ''}")
            axes.legend(frameon=False, loc="lower right")
            figure.suptitle(self.ratio_line(), x=0.02, ha="left")
            figure.tight_layout()

    def _change(self) -> str:
        low, middle, high = self.interval.low, self.interval.difference, self.interval.high
        factor, unit = (100, " points") if self.limit.rises else (1, "")
        form = "+.2f" if self.limit.rises else "+.3g"
        return (
            f"{self.limit.metric} {factor * middle:{form}}{unit} "
            f"(95% interval {factor * low:{form}} to {factor * high:{form}})"
        )


class Table:
    """Prints a row for each candidate as it comes."""

    def __init__(self, limit: Limit, dense_bytes: int, shown: bool):
        self._limit, self._dense_bytes, self._shown = limit, dense_bytes, shown
        self._headed = False

    def add(self, candidate: Candidate, left: float | None) -> None:
        """Print a candidate, and the minutes that are left."""
        if not self._shown:
            return
        lines = table([candidate], self._limit, self._dense_bytes, wide=True).splitlines()
        if not self._headed:
            print(f"limit: {self._limit}")
            print("\n".join(lines[:2]))
            self._headed = True
        print(lines[2] + ("" if left is None else f"  {max(0.0, left / 60):5.1f} left"), flush=True)


def table(candidates: Sequence[Candidate], limit: Limit, dense_bytes: int, *, wide: bool = False) -> str:
    """Candidates as text; `wide` columns have room for later rows."""
    rows = [
        {
            **asdict(one),
            "source": one.source if one.number else None,
            "steps": one.steps or None,
            "ratio": dense_bytes / one.bytes,
            "metric": limit.shown(one.metric),
            "within": "yes" if one.within else "no",
            "minutes": one.seconds / 60,
        }
        for one in candidates
    ]
    columns = {**_COLUMNS, "metric": tables.shortened(limit.metric, 16)}
    return tables.table(rows, columns, left=("how",), least=_WIDTHS if wide else None)
