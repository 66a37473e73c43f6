"""Every picture of the project, drawn from real arrays by the functions that the project runs.

`python -m deepcomp.figures --out imgs runs/seed runs/reference` makes them all; without runs, the worked examples.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import log2
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from deepcomp import checkpoint, pruning, quantization
from deepcomp.errors import DeepcompError, UnsupportedLayerError

# Told apart by the colour-blind too (after Okabe and Ito, 2008). The stages, in order, have the first three.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#A6579B"
COLORS = (BLUE, ORANGE, GREEN, PURPLE)
INK, GREY, LINE, PALE = "#222222", "#666666", "#BBBBBB", "#F3F3F3"
STYLE = {
    "savefig.dpi": 144,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.titlesize": 9,
    "axes.labelcolor": GREY,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
}
TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
WIDTH = 9  # inches, for all pictures
PARTS = {
    "full": "full training",
    "pruned": "pruning and fine-tuning",
    "quantized": "quantization and fine-tuning",
}
POINTS = ("trained", "right after pruning", "recovered", "right after quantization", "the end")

# The worked examples: a kernel and its gradient.
WEIGHTS = np.array(
    [
        [0.21, -0.03, 0.35, -0.14, 0.06],
        [-0.32, 0.08, -0.19, 0.02, 0.28],
        [0.05, 0.17, -0.11, 0.41, -0.07],
        [-0.24, 0.01, 0.13, -0.36, 0.09],
        [0.30, -0.16, -0.04, 0.23, 0.04],
    ]
)
GRADIENT = np.array(
    [
        [-0.02, 0.01, 0.03, 0.02, -0.01],
        [0.04, -0.03, 0.01, 0.02, -0.02],
        [0.01, -0.01, 0.03, 0.02, 0.05],
        [-0.01, 0.02, -0.03, 0.02, -0.04],
        [0.01, -0.02, 0.03, 0.01, -0.01],
    ]
)
THRESHOLD, CLUSTERS = 0.1, 4

Part = tuple[str, Mapping[str, Sequence], np.ndarray]


def accuracy_curve(parts: Sequence[Part], path: str | Path, *, title: str = "", layer: str = "") -> None:
    """One accuracy curve over the three training stages laid end to end, and one layer's weights after each.

    Each of `parts` is a stage's name, its history (lists `step`, `validation_accuracy` and `accuracy`, the training
    accuracy, which stands in where the other is None) and the kernel of `layer` at its end, `float32, any shape`.
    """
    accuracy_curves({title: (layer, parts)}, path)


def accuracy_curves(runs: Mapping[str, tuple[str, Sequence[Part]]], path: str | Path) -> None:
    """`accuracy_curve` for several runs, title -> (layer, parts), one below the other."""
    with _figure(path, 5.2 * len(runs)) as figure:
        panels = figure.subfigures(len(runs), 1, squeeze=False)[:, 0]
        for panel, (title, (layer, parts)) in zip(panels, runs.items(), strict=True):
            _draw_accuracy(panel, title, layer, parts)


def save_accuracy(run: checkpoint.Run, path: str | Path) -> None:
    """`accuracy_curve` of a run and its layer of most weights. Raises `StageError`, `FormatError`."""
    accuracy_curves(dict([_run_parts(run)]), path)


def five_points(full: Sequence[float], pruned: Sequence[float], quantized: Sequence[float]) -> list[tuple[int, int]]:
    """The entries of three lists of accuracies that are annotated: (number of the list, position in it) of each.

    They are the end of full training, right after pruning, the end of that stage, right after quantization and the
    end. Where the first entry of pruning shows no loss, weights went gradually, and its lowest entry is taken.
    """
    dip = 0 if pruned[0] < full[-1] else int(np.argmin(pruned))
    return [(0, len(full) - 1), (1, dip), (1, len(pruned) - 1), (2, 0), (2, len(quantized) - 1)]


def weight_counts(kernel: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct non-zero values of a kernel and how many weights have each, `(k,)` both.

    Of more than 256 distinct values: `edges`, `(bins + 1,)`, and how many weights lie in each bin, `(bins,)`.
    """
    values, counts = np.unique(kernel[kernel != 0], return_counts=True)
    return (values, counts) if len(values) <= 256 else (edges, np.histogram(values, edges, weights=counts)[0])


def architecture(model, path: str | Path) -> None:
    """The layers of a `keras.Model` as volumes, with shapes and weights, and how many are left if some are zero.

    Layers stand in the model's order, as a chain. Raises `UnsupportedLayerError` for a model without a kernel or
    whose shapes are not known.
    """
    columns = _columns(model)
    across = min(len(columns), 8)
    rows = -(-len(columns) // across)
    largest = max((size for shape, _ in columns for size in shape[:-1]), default=1)
    with _canvas(path, 3 * across, 6.4 * rows) as axes:
        for number, (shape, lines) in enumerate(columns):
            x, y = 3 * (number % across) + 1.5, 6.4 * (number // across) + 3.2
            _volume(axes, x, y, shape, largest)
            for line, text in enumerate(lines):
                look = ({"weight": "bold"}, {}, {}, {}, {}, {"color": ORANGE})[line]
                axes.text(x, y + 0.5 + 0.45 * line, text, ha="center", va="center", size=8, **look)


def pruning_example(path: str | Path) -> None:
    """Pruning by magnitude, and a step of fine-tuning, on 5x5 weights (paper section 2)."""
    mask = _mask(WEIGHTS)
    pruned, step = WEIGHTS * mask, GRADIENT * mask
    with _canvas(path, 22, 14.8) as axes:
        _numbers(axes, 1, 1.6, WEIGHTS, "weights")
        _note(axes, 7.25, 4.1, TIMES)
        _grid(
            axes,
            8.5,
            1.6,
            _tint(GREY, 0.3 * mask[..., None]),
            mask.astype(int),
            f"mask: magnitude at least {THRESHOLD}",
        )
        _note(axes, 14.75, 4.1, "=")
        _numbers(axes, 16, 1.6, pruned, "pruned weights")
        _numbers(axes, 1, 9, GRADIENT, "gradient")
        _note(axes, 7.25, 11.5, f"{TIMES} mask =")
        _numbers(axes, 8.5, 9, step, "masked gradient")
        _note(axes, 14.75, 11.5, "pruned\nweights\nminus this =")
        _numbers(axes, 16, 9, pruned - step, "fine-tuned weights")


def share_once(weights: np.ndarray, gradient: np.ndarray, clusters: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cluster the non-zero `weights` and sum the `gradient`, of the same shape, over each cluster's members.

    Returns centroids, `float32 (k,)`, indices, `integer, shape of weights`, 0 where pruned and i + 1 in cluster i,
    and sums, `float64 (k,)`.
    """
    shared = np.zeros(weights.shape, np.float32)
    centroids, members = quantization.cluster(weights[weights != 0], clusters)
    shared[weights != 0] = centroids[members]
    centroids, indices = quantization.codebook(shared)
    sums = np.bincount(indices.ravel(), gradient.ravel(), minlength=len(centroids) + 1)
    return centroids, indices, sums[1:]


def sharing_example(path: str | Path) -> None:
    """Weight sharing, and a step of fine-tuning the centroids, on 5x5 pruned weights (paper section 3, figure 3)."""
    pruned = WEIGHTS * _mask(WEIGHTS)
    centroids, indices, sums = share_once(pruned, GRADIENT, CLUSTERS)
    groups = [GRADIENT[indices == cluster] for cluster in range(1, len(centroids) + 1)]
    colors = np.array([to_rgb("white"), *(_tint(color, 0.45) for color in COLORS)])
    column = {"colors": colors[1 : len(centroids) + 1, None], "cell": (1.6, 1)}
    grouped = np.full((len(groups), max(map(len, groups))), np.nan)
    for row, group in zip(grouped, groups, strict=True):
        row[: len(group)] = group
    with _canvas(path, 22, 14.8) as axes:
        _grid(axes, 1, 1.6, colors[indices], _decimals(pruned), "pruned weights")
        _arrow(axes, (6.5, 4.1), (8, 4.1), "k-means")
        _grid(axes, 8.5, 1.6, colors[indices], indices, "cluster indices, 0: pruned")
        _grid(axes, 15, 1.6, texts=_decimals(centroids[:, None], 3), title="centroids", **column)
        _note(axes, 17.9, 3.6, MINUS)
        tuned = centroids - sums
        _grid(axes, 19.4, 1.6, texts=_decimals(tuned[:, None], 3), title="fine-tuned", **column)
        _grid(axes, 1, 9, colors[indices], _decimals(GRADIENT), "gradient")
        _arrow(axes, (6.5, 11.5), (8, 11.5), "group")
        blank = np.where(np.isnan(grouped)[..., None], 1.0, column["colors"])
        _grid(axes, 8.5, 9, blank, _decimals(grouped), "grouped by cluster")
        _arrow(axes, (13.8, 11.5), (14.8, 11.5), "sum")
        _grid(axes, 15, 9, texts=_decimals(sums[:, None], 3), title="sums", **column)


def sparse_convolution(path: str | Path) -> None:
    """The matrix of a convolution of one channel: 5x5 image, 3x3 kernel, stride 2, padding same."""
    matrix = _convolution_matrix(np.arange(1.0, 10).reshape(3, 3, 1, 1))
    inputs, names, outputs = _names("x", 5), _names("w", 3), _names("y", 3)
    texts = np.full(matrix.shape, "", names.dtype)
    texts[matrix.rows, matrix.columns] = names.ravel()[matrix.weights]
    example = 4  # the output whose inputs are framed
    met = np.argwhere(texts[:, example].reshape(inputs.shape) != "")
    (y, x), (height, width) = met.min(axis=0), np.ptp(met, axis=0) + 1
    with _canvas(path, 32, 28.4) as axes:
        _grid(axes, 1.5, 2.2, _pale(inputs), inputs, "input 5x5", cell=(1.6, 1.6))
        _frame(axes, 1.5 + 1.6 * x, 2.2 + 1.6 * y, 1.6 * width, 1.6 * height)
        _grid(axes, 3.1, 12.8, _tap_colors(np.arange(9).reshape(3, 3)), names, "kernel 3x3, stride 2", cell=(1.6, 1.6))
        _grid(axes, 3.1, 20.2, _pale(outputs), outputs, "output 3x3", cell=(1.6, 1.6))
        _frame(axes, 3.1 + 1.6 * (example % 3), 20.2 + 1.6 * (example // 3), 1.6, 1.6)
        title = "sparse matrix: a row for each input, a column for each output"
        edges = {"rows": inputs.ravel(), "columns": outputs.ravel()}
        _grid(axes, 14, 2.2, _matrix_colors(matrix, 1), texts, title, cell=(1.8, 1), **edges)
        _frame(axes, 14 + 1.8 * example, 2.2, 1.8, 25)


def sparse_convolution_blocks(path: str | Path) -> None:
    """The matrix of a pruned convolution with several channels: each weight of `sparse_convolution` is a block.

    Images are flattened channels last, so the channels of a pixel are neighbours, and a block is the kernel's matrix
    of input by output channels at one place. What is pruned is missing in every copy.
    """
    inputs, outputs = 2, 3
    kernel = np.random.default_rng(3).normal(size=(3, 3, inputs, outputs))
    kernel *= pruning.masks({"kernel": kernel}, by="sparsity", value=0.4)["kernel"]
    matrix = _convolution_matrix(kernel)
    pixels, places = _names("x", 5).ravel(), _names("y", 3).ravel()
    with _canvas(path, 32, 28.4) as axes:
        for (y, x), name in np.ndenumerate(_names("w", 3)):
            colors = np.where(kernel[y, x, ..., None] == 0, 1, _tap_colors(3 * y + x))
            _grid(axes, 1 + 3.7 * x, 2.2 + 3.4 * y, colors, title=name, cell=(0.9, 0.9))
        edges = {"rows": [f"from {i + 1}" for i in range(inputs)], "columns": [f"to {i + 1}" for i in range(outputs)]}
        numbers = _decimals(kernel[1, 1])
        _grid(
            axes, 3, 16.4, np.where(numbers[..., None] == "0", 1, _tap_colors(4)), numbers, "w22", cell=(2, 2), **edges
        )
        title = "sparse matrix: a row for each channel of each pixel"
        _grid(
            axes,
            14,
            2.2,
            _matrix_colors(matrix, inputs * outputs),
            title=title,
            cell=(0.6, 0.5),
            rows=pixels,
            columns=places,
        )
        axes.hlines(2.2 + inputs * 0.5 * np.arange(26), 14, 14 + 0.6 * 9 * outputs, color=GREY, linewidth=0.8)
        axes.vlines(14 + outputs * 0.6 * np.arange(10), 2.2, 27.2, color=GREY, linewidth=0.8)


def sparsity_per_layer(layers: Sequence[Mapping], path: str | Path, *, title: str = "") -> None:
    """How many percent of each layer's weights are left, a bar for each of the rows of `report.layers`."""
    percent = np.array([100 * row["nonzero"] / max(1, row["weights"]) for row in layers])
    log = bool((percent < 5).any())
    low = 10 ** np.floor(np.log10(percent[percent > 0].min(initial=1))) if log else 0
    places = np.arange(len(layers))
    with _figure(path, 1.1 + 0.38 * len(layers)) as figure:
        margin = 1 / figure.get_figheight()
        axes = figure.add_axes((0.16, 0.5 * margin, 0.46, 1 - 0.9 * margin))
        axes.set(xscale="log" if log else "linear", xlim=(low, 100), ylim=(len(layers) - 0.4, -0.6), title=title)
        axes.barh(places, 100 - low, left=low, height=0.62, color=PALE)
        axes.barh(places, np.maximum(percent - low, 0), left=low, height=0.62, color=ORANGE)
        names = [f"{_short(row['name'])}  {_times(row['shape'])}" for row in layers]
        axes.set_yticks(places, names, color=INK)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
        axes.set_xlabel("weights left")
        for place, row, left in zip(places, layers, percent, strict=True):
            text = f"{left:.2f}%: {row['nonzero']:,} of {row['weights']:,}, {row['centroids']:,} values"
            axes.annotate(text, (1.02, place), xycoords=axes.get_yaxis_transform(), va="center", size=8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the pictures that the command line asks for; a `DeepcompError` becomes one line and exit status 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parser = argparse.ArgumentParser(prog="python -m deepcomp.figures", description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", metavar="RUN", nargs="*", help="run folders; architecture.png shows the last one's network"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("imgs"), help="where pictures go (default: imgs)"
    )
    options = parser.parse_args(arguments)
    try:
        make_all([checkpoint.Run(folder) for folder in options.runs], options.out)
    except DeepcompError as error:
        print(f"figures: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def make_all(runs: Sequence[checkpoint.Run], folder: Path) -> None:
    """The worked examples and, of each run, its accuracy and sparsity. Raises `StageError`, `FormatError`."""
    pruning_example(folder / "pruning.png")
    sharing_example(folder / "sharing.png")
    sparse_convolution(folder / "sparse-convolution.png")
    sparse_convolution_blocks(folder / "sparse-convolution-blocks.png")
    for run in runs:
        record = run.stage("quantized").load_record()
        save_accuracy(run, folder / f"accuracy-{record['recipe']}.png")
        sparsity_per_layer(record["layers"], folder / f"sparsity-{record['recipe']}.png", title=_title(record))
    if len(runs) > 1:
        accuracy_curves(dict(map(_run_parts, runs)), folder / "accuracy.png")
    if runs:
        architecture(runs[-1].stage("quantized").load_model(), folder / "architecture.png")


def _run_parts(run: checkpoint.Run) -> tuple[str, tuple[str, list[Part]]]:
    """Title, layer of most weights and parts of a run, for `accuracy_curves`."""
    from deepcomp import models

    records = {name: run.stage(name).load_record() for name in PARTS}
    layer = max(records["full"]["layers"], key=lambda row: row["weights"])["name"]
    kernels = {name: models.kernel_values(run.stage(name).load_model())[layer] for name in PARTS}
    parts = [(PARTS[name], records[name]["history"], kernels[name]) for name in PARTS]
    return _title(records["full"]), (layer, parts)


def _title(record: Mapping) -> str:
    return f"{record['recipe']} on {record['data']['name']}"


def _draw_accuracy(figure, title: str, layer: str, parts: Sequence[Part]) -> None:
    """A run's curve, and below each of its parts the weights."""
    curves = [_curve(history) for _, history, _ in parts]
    points = five_points(*(accuracies for _, accuracies in curves))
    axes = figure.add_axes((0.075, 0.45, 0.91, 0.42))
    axes.set(xlim=(0, len(parts)), ylim=_limits(curves, points), xlabel="iterations")
    figure.text(0.075, 0.955, title, size=11, weight="bold")
    limit = max(np.abs(kernel).max() for _, _, kernel in parts)
    begin, ticks = 0, {}
    for number, ((name, history, kernel), (places, accuracies)) in enumerate(zip(parts, curves, strict=True)):
        color, steps = COLORS[number], history["step"][-1]
        axes.axvspan(number, number + 1, color=_tint(color, 0.07), linewidth=0)
        axes.plot(number + places, accuracies, color=color, linewidth=1.6)
        axes.text(number + 0.5, 1.03, name, transform=axes.get_xaxis_transform(), color=color, ha="center")
        ticks |= {number + half / 2: f"{begin + steps * half // 2:,}" for half in range(3)}
        begin += steps
        inset = axes.inset_axes((number / 3 + 0.045, -0.92, 1 / 3 - 0.06, 0.52))
        _draw_weights(inset, kernel, limit, color, layer)
    axes.set_xticks(list(ticks), list(ticks.values()))


def _curve(history: Mapping[str, Sequence]) -> tuple[np.ndarray, np.ndarray]:
    """Where in its part, 0 to 1, accuracy is known, and the accuracy."""
    pairs = zip(history["validation_accuracy"], history["accuracy"], strict=True)
    chosen = [training if held is None else held for held, training in pairs]
    places = np.array(history["step"]) / max(history["step"][-1], 1)
    known = np.array([value is not None for value in chosen])
    return places[known], np.array(chosen, float)[known]


@contextmanager
def _figure(path: str | Path, height: float) -> Iterator[Figure]:
    """A figure of `height` inches in the project's style, saved at the end; same picture, same bytes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, height))
        yield figure
        save = {"format": "png", "metadata": {"Software": None}}  # Matplotlib would write its version.
        checkpoint.write_atomically(Path(path), lambda temporary: figure.savefig(temporary, **save))


@contextmanager
def _canvas(path: str | Path, width: float, height: float) -> Iterator[Axes]:
    """A drawing surface of `width` x `height` cells, the first at the top left."""
    with _figure(path, WIDTH * height / width) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        yield axes


def _grid(axes, left, top, colors, texts=None, title="", *, cell=(1, 1), rows=(), columns=(), size=8) -> None:
    """A grid of cells of `colors`, `(height, width, 3)`, with a text in each, a title above, names along its edges."""
    height, width = np.multiply(colors.shape[:2], cell[::-1])
    across = np.linspace(left, left + width, colors.shape[1] + 1)
    down = np.linspace(top, top + height, colors.shape[0] + 1)
    axes.pcolormesh(across, down, colors, edgecolors=LINE, linewidth=0.6)
    for (y, x), text in np.ndenumerate(np.empty((0, 0)) if texts is None else texts):
        place = (left + cell[0] * (x + 0.5), top + cell[1] * (y + 0.5))
        axes.text(*place, text, ha="center", va="center_baseline", size=size)
    for number, name in enumerate(rows):
        y = top + height * (number + 0.5) / len(rows)
        axes.text(left - 0.3, y, name, ha="right", va="center_baseline", size=7, color=GREY)
    for number, name in enumerate(columns):
        x = left + width * (number + 0.5) / len(columns)
        axes.text(x, top - 0.25, name, ha="center", va="baseline", size=7, color=GREY)
    axes.text(left + width / 2, top - (1.2 if len(columns) else 0.4), title, ha="center", size=9)


def _numbers(axes, left, top, values, title) -> None:
    """A grid of numbers, blue above zero and orange below, the stronger the larger."""
    strength = 0.6 * np.abs(values)[..., None] / np.abs(values).max()
    colors = np.where((values > 0)[..., None], _tint(BLUE, strength), _tint(ORANGE, strength))
    _grid(axes, left, top, colors, _decimals(values), title)


def _decimals(values: np.ndarray, digits: int = 2) -> np.ndarray:
    """Numbers as text; 0 is short, and what is not a number is blank."""

    def text(value) -> str:
        return "" if np.isnan(value) else f"{value:.{digits}f}".replace("-", MINUS) if value else "0"

    return np.vectorize(text, otypes=[str])(values)


def _names(letter: str, size: int) -> np.ndarray:
    """`letter` with row and column, from 11 on, `(size, size)`."""
    return np.array([[f"{letter}{y}{x}" for x in range(1, size + 1)] for y in range(1, size + 1)])


def _tint(color: str, strength) -> np.ndarray:
    """A colour mixed with white: `strength` 0 is white, 1 the colour."""
    return 1 - strength * (1 - np.array(to_rgb(color)))


def _note(axes, x, y, text) -> None:
    axes.text(x, y, text, ha="center", va="center", size=9, color=GREY)


def _arrow(axes, start, end, text="") -> None:
    """An arrow, its text above it."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": GREY, "linewidth": 1})
    _note(axes, (start[0] + end[0]) / 2, min(start[1], end[1]) - 0.5, text)


def _frame(axes, left, top, width, height) -> None:
    axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor=INK, linewidth=1.8))


def _tap_colors(taps) -> np.ndarray:
    """A colour for each of the nine places of a 3x3 kernel: a hue for each row, a strength for each column."""
    colors = [_tint(hue, strength) for hue in COLORS[:3] for strength in (0.2, 0.4, 0.65)]
    return np.array(colors)[taps]


def _matrix_colors(matrix, weights_per_tap: int) -> np.ndarray:
    """The colours of a `SparseMatrix`: white, and at each entry that of its weight's place in the kernel."""
    colors = np.ones((*matrix.shape, 3))
    colors[matrix.rows, matrix.columns] = _tap_colors(matrix.weights // weights_per_tap)
    return colors


def _convolution_matrix(kernel: np.ndarray):
    from deepcomp import sparse

    return sparse.convolution_matrix(kernel, (5, 5, kernel.shape[2]), strides=2, padding="same")


def _pale(cells: np.ndarray) -> np.ndarray:
    return np.broadcast_to(to_rgb(PALE), (*cells.shape, 3))


def _mask(weights: np.ndarray) -> np.ndarray:
    return pruning.masks({"example": weights}, by="threshold", value=THRESHOLD)["example"]


def _limits(curves, points) -> tuple[float, float]:
    """The lower and upper end of the accuracy axis: all of the five points in view, and room for their labels."""
    told = np.array([curves[part][1][entry] for part, entry in points])
    span = max(np.ptp(told), 0.004)
    return told.min() - 0.4 * span, max(accuracies.max() for _, accuracies in curves) + 0.35 * span


def _draw_weights(axes, kernel, limit, color, layer) -> None:
    places, counts = weight_counts(kernel, np.linspace(-limit, limit, 102))
    left = np.count_nonzero(kernel)
    if len(places) == len(counts):
        axes.vlines(places, 0, counts, color=color, linewidth=2)
        title = f"{layer}: {len(places)} values"
    else:
        axes.stairs(counts, places, fill=True, color=color)
        title = f"{layer}: {left:,} weights" + (" left" if left < kernel.size else "")
    axes.set(xlim=(-limit, limit), ylim=(0, None))
    axes.set_title(title, size=8)
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _columns(model) -> list[tuple[tuple[int, ...], list[str]]]:
    """For `architecture`: shape and six lines of text of the input and of every layer."""
    import keras

    from deepcomp import models, report

    if models.input_shape(model) is None:
        raise UnsupportedLayerError(f"The network {model.name!r} is a subclassed model, whose shapes are not known.")
    rows = report.layers(models.kernel_values(model))
    shape = models.input_shape(model)
    columns = [(shape, ["input", "", "", _times(shape)])]
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        shape = keras.tree.flatten(layer.output)[0].shape[1:]
        own = [row for row in rows if row["name"].split("/")[0] == layer.name]
        weights, left = (sum(row[key] for row in own) for key in ("weights", "nonzero"))
        lines = [_short(layer.name), _short(type(layer).__name__), _geometry(layer), _times(shape)]
        lines += [f"{weights:,} weights"] if own else []
        lines += [f"{left:,} left"] if left < weights else []
        columns.append((shape, lines))
    return [(tuple(size or 1 for size in shape), lines) for shape, lines in columns]


def _geometry(layer) -> str:
    """Size and stride of a convolution's or pooling layer's window."""
    size = getattr(layer, "kernel_size", getattr(layer, "pool_size", None))
    strides = getattr(layer, "strides", ())
    if not isinstance(size, tuple):
        return ""
    return _times(size) + (f", stride {_times(sorted(set(strides)))}" if set(strides) != {1} else "")


def _times(shape) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"


def _volume(axes, x, y, shape, largest) -> None:
    """A box for images of `shape` on the ground `y` around `x`: height and depth to scale, channels logarithmic."""
    width = 0.15 + 0.12 * log2(1 + shape[-1]) if len(shape) > 1 else 0.3
    height = max(0.2, 2 * shape[0] / largest) if len(shape) > 1 else 0.2 * log2(1 + shape[0])
    slant = 0.35 * height if len(shape) > 2 else 0
    x -= (width + slant) / 2
    front = [(x, y), (x + width, y), (x + width, y - height), (x, y - height)]
    back = [(a + slant, b - slant) for a, b in front]
    for corners, strength in ((front, 0.35), ([*front[1:3], *back[2:0:-1]], 0.55), ([*front[2:], *back[:1:-1]], 0.2)):
        axes.add_patch(Polygon(corners, facecolor=_tint(BLUE, strength), edgecolor=BLUE, linewidth=0.8))


if __name__ == "__main__":
    main()
