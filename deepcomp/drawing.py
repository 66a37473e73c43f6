"""The style of all pictures: colours, sizes, and a figure that is saved atomically."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from deepcomp import files

# Told apart by the colour-blind too (after Okabe and Ito, 2008). The three stages have the first three.
COLORS = BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#A6579B"
INK, GREY, LINE = "#222222", "#666666", "#CCCCCC"
WIDTH = 9  # inches, of every picture
STYLE: dict[Any, Any] = {
    "savefig.dpi": 120,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": GREY,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}


@contextmanager
def saved_figure(path: str | Path, height: float) -> Iterator[Figure]:
    """A figure of `height` inches in the project's style, saved at the end; the same picture has the same bytes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, height))
        yield figure
        options = {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}}  # No version of Matplotlib in it.
        files.write_atomically(Path(path), lambda temporary: figure.savefig(temporary, **options))


def tint(color: str, strength) -> np.ndarray:
    """A colour mixed with white, `(*shape of strength, 3)`: strength 0 is white, 1 the colour."""
    return 1 - np.multiply.outer(strength, 1 - np.array(to_rgb(color)))
