"""The picture of the speed benchmark's ratios.

    python tools/speed_plot.py runs/speed.json --out imgs/speed.png

reads what `benchmarks/speed.py` wrote.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from deepcomp.drawing import COLORS, GREY, INK, saved_figure, tint
from deepcomp.tables import shortened


def speed_ratios(cells: Sequence[Mapping], path: str | Path) -> None:
    """How many times as long as deepcomp each engine takes: a panel for each network and batch, a dot for each engine.

    Each of `cells` has `network`, `batch`, `threads`, `engine` and `ratio`, the engine's time over deepcomp's, or None
    where it was not measured. Every number of threads has its colour; above a panel are the least ratios. The dot of
    an engine that is faster than deepcomp is hollow.
    """
    known = [cell for cell in cells if cell["ratio"] is not None and cell["engine"] != "deepcomp"]
    networks, engines = (list(dict.fromkeys(cell[key] for cell in known)) for key in ("network", "engine"))
    batches, threads = (sorted({cell[key] for cell in known}) for key in ("batch", "threads"))
    colors = dict(zip(threads, cycle(COLORS)))
    ratios = [cell["ratio"] for cell in known]
    limits = min(0.7, min(ratios) / 1.3), max(2, max(ratios) * 1.3)
    high = 0.2 * len(engines) + 0.1  # inches of a panel
    inches = 1.3 + (high + 0.5) * len(networks) - 0.5
    with saved_figure(path, inches) as figure:
        edges = {"left": 0.16, "right": 0.98, "bottom": 0.55 / inches, "top": 1 - 0.75 / inches}
        spaces = {"hspace": 0.5 / high, "wspace": 0.08}
        panels = figure.subplots(len(networks), len(batches), squeeze=False, gridspec_kw={**edges, **spaces})
        for (row, column), axes in np.ndenumerate(panels):
            here = [cell for cell in known if (cell["network"], cell["batch"]) == (networks[row], batches[column])]
            axes.set(xscale="log", xlim=limits, ylim=(len(engines) - 0.5, -0.5))
            name = "" if column else f"{shortened(networks[row], 18)}, "
            axes.set_title(f"{name}batch {batches[column]:,}", size=9, loc="left", pad=4)
            axes.set_yticks(range(len(engines)), [] if column else engines, color=INK)
            ticks = [tick for tick in _ratio_ticks() if limits[0] <= tick <= limits[1]]
            axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks] if row == len(networks) - 1 else [])
            axes.set_xticks([], minor=True)
            axes.tick_params(length=0)
            axes.grid(axis="x", color=tint(GREY, 0.2), linewidth=0.6)
            axes.axvspan(limits[0], 1, color=tint(GREY, 0.08), linewidth=0)
            axes.axvline(1, color=INK, linewidth=1)
            if not here:
                axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=GREY, size=8)
            for cell in here:
                color, shift = colors[cell["threads"]], threads.index(cell["threads"]) - (len(threads) - 1) / 2
                face = "white" if cell["ratio"] < 1 else color
                look = {"markersize": 4.5, "color": color, "markerfacecolor": face}
                axes.plot(cell["ratio"], engines.index(cell["engine"]) + 0.36 * shift, "o", **look)
            for place, count in enumerate(reversed(threads)):
                least = min((cell["ratio"] for cell in here if cell["threads"] == count), default=None)
                text = "" if least is None else f"{least:.1f}x"
                look = {"color": colors[count], "ha": "right", "size": 8, "weight": "bold"}
                axes.annotate(text, (1, 1), (-34 * place, 4), "axes fraction", "offset points", **look)
        top = 1 - 0.3 / inches
        figure.text(0.16, top, "Time of each engine over deepcomp's", size=11, weight="bold")
        for place, count in enumerate(reversed(threads)):
            text = f"{count} thread{'s' if count > 1 else ''}"
            figure.text(0.98 - 0.1 * place, top, text, color=colors[count], ha="right", weight="bold")
        note = "right of the line deepcomp is faster, at a hollow dot the engine is; above: over the fastest engine"
        figure.text(0.57, 0.12 / inches, note, color=GREY, ha="center", size=8)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; a file without ratios is one line on standard error and exit status 2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", metavar="FILE.json", type=Path, help="the output of benchmarks/speed.py")
    parser.add_argument("--out", metavar="FILE.png", type=Path, default=Path("imgs/speed.png"))
    options = parser.parse_args(arguments)
    try:
        cells = json.loads(options.file.read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError) as error:
        parser.error(f"{options.file} is no output of benchmarks/speed.py: {error}")
    if not any(cell["ratio"] for cell in cells):
        parser.error(f"{options.file} has no ratios: deepcomp or all other engines could not run.")
    speed_ratios(cells, options.out)


def _ratio_ticks() -> list[float]:
    """Ticks for a logarithmic scale of ratios: 1 and 3 of every power of ten."""
    return [digit * 10.0**power for power in range(-3, 5) for digit in (1, 3)]


if __name__ == "__main__":
    main()
