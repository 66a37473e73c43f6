"""Every picture of the project, drawn from real arrays by the functions that the project runs.

`python -m deepcomp.experiment.figures --out imgs runs/seed runs/reference` makes them all; without runs, the examples.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, pairwise
from math import log2
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

from deepcomp import files, pruning, quantization
from deepcomp.errors import DeepcompError, UnsupportedLayerError, shape_text
from deepcomp.experiment import run_folder as checkpoint

# Told apart by the colour-blind too (after Okabe and Ito, 2008). The three stages have the first three.
COLORS = BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#A6579B"
INK, GREY, LINE = "#222222", "#666666", "#CCCCCC"
TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"
WIDTH = 9  # inches, of every picture
STYLE = {
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
PARTS = {
    "full": "full training",
    "pruned": "pruning and fine-tuning",
    "quantized": "quantization and fine-tuning",
}
POINTS = ("trained", "{} pruning", "recovered", "{} quantization", "in the end")

# The kernel of the worked examples, and its gradient.
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


def accuracy_curve(parts: Sequence[Part], path: str | Path, *, title: str = "", layer: str = "one layer") -> None:
    """One accuracy curve over the three training stages laid end to end, and one layer's weights after each.

    Each of `parts` is a stage's name, its history (lists `step`, `validation_accuracy` and `accuracy`, the training
    accuracy, which stands in where the other is None) and the kernel of `layer` at its end, `float32, any shape`.
    """
    accuracy_curves({title: (layer, parts)}, path)


def accuracy_curves(runs: Mapping[str, tuple[str, Sequence[Part]]], path: str | Path) -> None:
    """`accuracy_curve` for several runs, title -> (layer, parts), one below the other."""
    with _figure(path, 5.1 * len(runs)) as figure:
        panels = figure.subfigures(len(runs), 1, squeeze=False)[:, 0]
        for panel, (title, (layer, parts)) in zip(panels, runs.items(), strict=True):
            _draw_accuracy(panel, title, layer, parts)


def save_accuracy(run: checkpoint.Run, path: str | Path) -> None:
    """`accuracy_curve` of a run and its layer of most weights. Raises `StageError`, `FormatError`."""
    accuracy_curves(_accuracy_of([run]), path)


def five_points(full: Sequence[float], pruned: Sequence[float], quantized: Sequence[float]) -> list[tuple[int, int]]:
    """The entries of three lists of accuracies that tell the story, each as (number of the list, position in it).

    They are the end of full training, right after pruning, the end of that stage, right after quantization and the
    end. Where the first entry of pruning shows no loss, weights went gradually: then its lowest entry is taken.
    """
    dip = 0 if pruned[0] < full[-1] else int(np.argmin(pruned))
    return [(0, len(full) - 1), (1, dip), (1, len(pruned) - 1), (2, 0), (2, len(quantized) - 1)]


def weight_counts(kernel: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct non-zero values of a kernel, `(k,)`, and how many weights have each, `(k,)`.

    If there are over 256 of them: `edges`, `(bins + 1,)`, and how many non-zero weights are in each bin, `(bins,)`.
    """
    values, counts = np.unique(kernel[kernel != 0], return_counts=True)
    return (values, counts) if len(values) <= 256 else (edges, np.histogram(values, edges, weights=counts)[0])


def architecture(model, path: str | Path) -> None:
    """The layers of a `keras.Model` as volumes, with the weights of their kernels, and those left if some are zero.

    Layers stand in the model's order, as a chain. Raises `UnsupportedLayerError` for a model without a kernel or
    whose shapes are not known.
    """
    columns = _columns(model)
    across = min(len(columns), 8)
    largest = max((size for shape, _ in columns for size in shape[:-1]), default=1)
    with _canvas(path, 3 * across, 6.4 * -(-len(columns) // across)) as axes:
        for number, (shape, lines) in enumerate(columns):
            x, y = 3 * (number % across) + 1.5, 6.4 * (number // across) + 3.1
            _volume(axes, x, y, shape, largest)
            if number % across:
                _arrow(axes, (x - 1.75, y - 0.5), (x - 1.2, y - 0.5))
            for line, text in enumerate(lines):
                look = {0: {"weight": "bold"}, 5: {"color": ORANGE}}.get(line, {})
                axes.text(x, y + 0.5 + 0.45 * line, text, ha="center", va="center", size=8, **look)


def pruning_example(path: str | Path) -> None:
    """Pruning by magnitude, and a step of fine-tuning, on 5x5 weights (paper section 2)."""
    mask = _mask(WEIGHTS)
    pruned, step = WEIGHTS * mask, GRADIENT * mask
    with _canvas(path, 22, 14.4) as axes:
        _numbers(axes, 1, 1.6, WEIGHTS, "weights")
        _note(axes, 7.25, 4.1, TIMES)
        _grid(axes, 8.5, 1.6, mask.astype(int), _tint(GREY, 0.3 * mask), f"mask: magnitude at least {THRESHOLD}")
        _note(axes, 14.75, 4.1, "=")
        _numbers(axes, 16, 1.6, pruned, "pruned weights")
        _numbers(axes, 1, 8.6, GRADIENT, "gradient")
        _note(axes, 7.25, 11.1, f"{TIMES} mask =")
        _numbers(axes, 8.5, 8.6, step, "masked gradient")
        _note(axes, 14.75, 11.1, "pruned\nweights\nminus this =")
        _numbers(axes, 16, 8.6, pruned - step, "fine-tuned weights")


def sharing_example(path: str | Path) -> None:
    """Weight sharing, and a step of fine-tuning the centroids, on 5x5 pruned weights (paper section 3, figure 3)."""
    pruned = WEIGHTS * _mask(WEIGHTS)
    centroids, indices, sums = share_once(pruned, GRADIENT, CLUSTERS)
    colors = np.array([to_rgb("white"), *(_tint(color, 0.4) for color in COLORS)])
    with _canvas(path, 22, 14.4) as axes:

        def column(left, top, values, title):
            _grid(axes, left, top, _decimals(values[:, None], 3), colors[1:, None], title, cell=(1.6, 1))

        _grid(axes, 1, 1.6, _decimals(pruned), colors[indices], "pruned weights")
        _arrow(axes, (6.4, 4.1), (8.1, 4.1), "k-means")
        _grid(axes, 8.5, 1.6, indices, colors[indices], "cluster indices, 0: pruned")
        column(15, 1.6, centroids, "centroids")
        _arrow(axes, (17, 3.6), (19, 3.6), f"{MINUS} sums")
        column(19.4, 1.6, centroids - sums, "fine-tuned")
        _grid(axes, 1, 8.6, _decimals(GRADIENT), colors[indices], "gradient")
        _arrow(axes, (6.4, 11.1), (8.1, 11.1), "group")
        for cluster in range(1, len(centroids) + 1):
            members = GRADIENT[indices == cluster]
            _grid(axes, 8.5, 7.6 + cluster, _decimals(members[None]), colors[cluster])
        _note(axes, 11, 8.1, "gradient by cluster", color=INK)
        _arrow(axes, (13.2, 10.6), (14.6, 10.6), "sum")
        column(15, 8.6, sums, "sums")
        _arrow(axes, (17, 10.6), (18, 3.9), connectionstyle="angle,angleA=0,angleB=90,rad=6")


def share_once(weights: np.ndarray, gradient: np.ndarray, clusters: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cluster the non-zero `weights`, and sum the `gradient`, of the same shape, over each cluster's members.

    Returns centroids, `float32 (k,)`; indices, `unsigned, shape of weights`, 0 where pruned and i + 1 in cluster i;
    sums, `float64 (k,)`.
    """
    shared = np.zeros(weights.shape, np.float32)
    centroids, members = quantization.cluster(weights[weights != 0], clusters)
    shared[weights != 0] = centroids[members]
    centroids, indices = quantization.codebook(shared)
    sums = np.bincount(indices.ravel(), gradient.ravel(), minlength=len(centroids) + 1)
    return centroids, indices, sums[1:]


def sparse_convolution(path: str | Path) -> None:
    """The matrix of a convolution of one channel: 5x5 image, 3x3 kernel, stride 2, padding same."""
    matrix = _convolution_matrix(np.arange(1.0, 10).reshape(3, 3, 1, 1))
    inputs, weights, outputs = _names("x", 5), _names("w", 3), _names("y", 3)
    texts = np.full(matrix.shape, "", weights.dtype)
    texts[matrix.rows, matrix.columns] = weights.ravel()[matrix.weights]
    # As an example, what the output in the middle is made from.
    y, x = np.divmod(matrix.rows[matrix.columns == 4], 5)
    window = (x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1)
    with _canvas(path, 32, 28.4) as axes:
        pale, cell = _tint(GREY, 0.08), (1.6, 1.6)
        _grid(axes, 1.5, 2.2, inputs, pale, "input 5x5", cell=cell, frame=window)
        _grid(axes, 3.1, 12.8, weights, _tap_colors(np.arange(9).reshape(3, 3)), "kernel 3x3, stride 2", cell=cell)
        _grid(axes, 3.1, 20.2, outputs, pale, "output 3x3", cell=cell, frame=(1, 1, 1, 1))
        title = "sparse matrix: a row for each input, a column for each output"
        edges = {"rows": inputs.ravel(), "columns": outputs.ravel(), "frame": (4, 0, 1, 25)}
        _grid(axes, 14, 2.2, texts, _matrix_colors(matrix), title, cell=(1.8, 1), **edges)


def sparse_convolution_blocks(path: str | Path) -> None:
    """The matrix of a pruned convolution of several channels: each weight of `sparse_convolution` becomes a block.

    Images are flattened channels last, so that the channels of a pixel are neighbours; a block is the kernel's matrix
    of input by output channels at one place. What is pruned is missing in every copy.
    """
    inputs, outputs = 2, 3
    kernel = np.random.default_rng(3).normal(size=(3, 3, inputs, outputs))
    kernel *= pruning.masks({"kernel": kernel}, by="sparsity", value=0.4)["kernel"]
    matrix = _convolution_matrix(kernel)
    with _canvas(path, 32, 28.4) as axes:
        _note(axes, 6.15, 1, "kernel 3x3, 2 channels to 3: nine blocks", color=INK)
        for (y, x), name in np.ndenumerate(_names("w", 3)):
            block = kernel[y, x]
            colors = np.where(block[..., None] == 0, 1, _tap_colors(3 * y + x))
            _grid(axes, 1 + 3.8 * x, 3 + 3.6 * y, np.full(block.shape, ""), colors, name, cell=(0.9, 0.9))
            if name == "w22":
                edges = {"rows": ["from 1", "from 2"], "columns": ["to 1", "to 2", "to 3"]}
                _grid(axes, 3.9, 17.6, _decimals(block), colors, "one block: w22", cell=(2, 2), **edges)
        _note(axes, 6.9, 24, "It stands wherever the matrix\nof one channel has w22.\nPruned weights are white.")
        title = "sparse matrix: rows and columns are pixels, each with its channels"
        edges = {"rows": _names("x", 5).ravel(), "columns": _names("y", 3).ravel()}
        blank = np.full(matrix.shape, "")
        _grid(axes, 14, 2.2, blank, _matrix_colors(matrix), title, cell=(1.8 / outputs, 1 / inputs), **edges)
        axes.hlines(2.2 + np.arange(26), 14, 30.2, color=GREY, linewidth=0.7)
        axes.vlines(14 + 1.8 * np.arange(10), 2.2, 27.2, color=GREY, linewidth=0.7)


def sparsity_per_layer(layers: Sequence[Mapping], path: str | Path, *, title: str = "") -> None:
    """How many percent of each layer's weights are left: a bar for each of the rows that `report.layers` returns.

    The scale is logarithmic where a layer has under 5% left.
    """
    percent = np.array([100 * row["nonzero"] / max(1, row["weights"]) for row in layers])
    log = bool((percent < 5).any())
    low = 10 ** np.floor(np.log10(percent[percent > 0].min(initial=1))) if log else 0
    places = np.arange(len(layers))
    inches = 1.2 + 0.36 * len(layers)
    with _figure(path, inches) as figure:
        axes = figure.add_axes((0.22, 0.6 / inches, 0.42, 1 - 1.1 / inches))
        axes.set(xscale="log" if log else "linear", xlim=(low, 100), ylim=(len(layers) - 0.4, -0.6))
        axes.set_xlabel("weights left")
        axes.barh(places, 100 - low, left=low, height=0.62, color=_tint(GREY, 0.08))
        axes.barh(places, np.maximum(percent - low, 0), left=low, height=0.62, color=ORANGE)
        axes.set_yticks(places, [f"{_short(row['name'], 18)}  {shape_text(row['shape'])}" for row in layers], color=INK)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}%"))
        for place, row, left in zip(places, layers, percent, strict=True):
            text = f"{left:.3g}%: {row['nonzero']:,} of {row['weights']:,}, {row['centroids']:,} values"
            axes.text(1.03, place, text, transform=axes.get_yaxis_transform(), va="center", size=8)
        figure.text(0.22, 1 - 0.3 / inches, title, size=11, weight="bold")


def sensitivity(
    accuracies: Mapping[str, Sequence[float]],
    sparsities: Sequence[float],
    path: str | Path,
    *,
    chosen: Mapping[str, float] | None = None,
    title: str = "",
) -> None:
    """Accuracy against sparsity, a line for each layer, pruned alone: the whole scale, and the first two points lost.

    `accuracies` and `sparsities` as in `pruning.tolerated`; rings are around `chosen` sparsities.
    """
    names = list(accuracies)
    whole = 100 * accuracies[names[0]][0]
    best = 100 * max(map(max, accuracies.values()))
    across = np.union1d(sparsities, 1 - np.geomspace(1, 1 - sparsities[-1], 500))
    legend = 0.2 * -(-len(names) // 4)
    inches = 3.9 + legend
    with _figure(path, inches) as figure:
        edges = {"left": 0.06, "right": 0.98, "bottom": 0.55 / inches, "top": 1 - (0.75 + legend) / inches}
        everything, close = figure.subplots(1, 2, gridspec_kw={**edges, "wspace": 0.14})
        everything.set(ylim=(0, 102), ylabel="validation accuracy, %")
        close.set(ylim=(whole - 2, best + 0.15))
        ticks = [s for s in (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995) if s <= sparsities[-1]]
        for axes in (everything, close):
            axes.set(xscale="log", xlim=(1, 0.96 * (1 - sparsities[-1])), xlabel="sparsity")
            axes.set_xticks([1 - s for s in ticks], [f"{s:g}" for s in ticks])
            axes.set_xticks([], minor=True)
            axes.axhline(whole, color=LINE, linewidth=0.8)
            for number, (name, own) in enumerate(accuracies.items()):
                color, style = COLORS[number % len(COLORS)], ("-", "--", ":", "-.")[number // len(COLORS) % 4]
                percent = 100 * np.array(own)
                look = {"color": color, "linestyle": style, "label": _short(name, 18)}
                axes.plot(1 - across, np.interp(across, sparsities, percent), linewidth=1.4, **look)
                axes.plot(1 - np.array(sparsities), percent, "o", color=color, markersize=3)
                if name in (chosen or {}):
                    ring = {"markersize": 9, "markeredgecolor": color, "markerfacecolor": "none", "zorder": 3}
                    axes.plot(1 - chosen[name], np.interp(chosen[name], sparsities, percent), "o", **ring)
        figure.text(0.06, 1 - 0.3 / inches, title, size=11, weight="bold")
        handles = everything.get_legend_handles_labels()
        place = {"loc": "upper left", "bbox_to_anchor": (0.06, 1 - 0.46 / inches), "borderaxespad": 0, "borderpad": 0}
        figure.legend(*handles, **place, ncols=4, frameon=False)
        if chosen:
            look = {"ha": "right", "size": 8, "color": GREY}
            figure.text(0.98, 1 - 0.3 / inches, "rings: the sparsities chosen", **look)


def bytes_by_layer(rows: Sequence[Mapping], path: str | Path, *, title: str = "") -> None:
    """Where the bytes of a `.dcz` file went: a bar for each of the rows that `report.byte_rows` returns."""
    kinds = {
        "index": "positions",
        "weight": "values",
        "codebook": "codebooks",
        "bias": "other weights",
        "overhead": "rest",
    }
    sizes = {kind: np.array([row[f"{kind}_bits"] / 8 for row in rows]) for kind in kinds}
    totals = sum(sizes.values())
    places = np.arange(len(rows))
    inches = 1.5 + 0.36 * len(rows)
    with _figure(path, inches) as figure:
        axes = figure.add_axes((0.22, 0.6 / inches, 0.62, 1 - 1.4 / inches))
        axes.set(xlim=(0, max(1, totals.max())), ylim=(len(rows) - 0.4, -0.6))
        axes.set_xlabel("bytes")
        left = np.zeros(len(rows))
        for (kind, name), color in zip(kinds.items(), (BLUE, ORANGE, GREEN, PURPLE, GREY), strict=True):
            axes.barh(places, sizes[kind], left=left, height=0.62, color=color, label=name)
            left += sizes[kind]
        axes.set_yticks(places, [_short(row["name"], 18) for row in rows], color=INK)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        for place, total in zip(places, totals, strict=True):
            axes.text(1.03, place, f"{total:,.0f}", transform=axes.get_yaxis_transform(), va="center", size=8)
        figure.text(0.22, 1 - 0.3 / inches, title, size=11, weight="bold")
        above = (0, 1 + 0.05 / (inches - 1.4))
        axes.legend(loc="lower left", bbox_to_anchor=above, ncols=5, frameon=False, borderpad=0, handlelength=1)


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
    with _figure(path, inches) as figure:
        edges = {"left": 0.16, "right": 0.98, "bottom": 0.55 / inches, "top": 1 - 0.75 / inches}
        spaces = {"hspace": 0.5 / high, "wspace": 0.08}
        panels = figure.subplots(len(networks), len(batches), squeeze=False, gridspec_kw={**edges, **spaces})
        for (row, column), axes in np.ndenumerate(panels):
            here = [cell for cell in known if (cell["network"], cell["batch"]) == (networks[row], batches[column])]
            axes.set(xscale="log", xlim=limits, ylim=(len(engines) - 0.5, -0.5))
            name = "" if column else f"{_short(networks[row], 18)}, "
            axes.set_title(f"{name}batch {batches[column]:,}", size=9, loc="left", pad=4)
            axes.set_yticks(range(len(engines)), [] if column else engines, color=INK)
            ticks = [tick for tick in _ratio_ticks() if limits[0] <= tick <= limits[1]]
            axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks] if row == len(networks) - 1 else [])
            axes.set_xticks([], minor=True)
            axes.tick_params(length=0)
            axes.grid(axis="x", color=_tint(GREY, 0.2), linewidth=0.6)
            axes.axvspan(limits[0], 1, color=_tint(GREY, 0.08), linewidth=0)
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


def make_all(runs: Sequence[checkpoint.Run], folder: Path) -> None:
    """The worked examples; accuracy, sparsity and, once deployed, bytes of each run; the last run's network.

    Raises `StageError` for a run that is not quantized yet, `FormatError` for a damaged one.
    """
    records = [run.stage("quantized").load_record() for run in runs]
    pruning_example(folder / "pruning.png")
    sharing_example(folder / "sharing.png")
    sparse_convolution(folder / "sparse-convolution.png")
    sparse_convolution_blocks(folder / "sparse-convolution-blocks.png")
    for run, record in zip(runs, records, strict=True):
        save_accuracy(run, folder / f"accuracy-{run.folder.name}.png")
        sparsity_per_layer(record["layers"], folder / f"sparsity-{run.folder.name}.png", title=_title(record))
        if run.stage("deployed").done:
            file = run.stage("deployed").load_record()
            title = f"{_title(file)}: {file['file_bytes']:,} bytes, {file['ratio']:.0f}x"
            bytes_by_layer(file["layers"], folder / f"bytes-{run.folder.name}.png", title=title)
    if runs:
        architecture(runs[-1].stage("quantized").load_model(), folder / "architecture.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; a `DeepcompError` becomes one line on standard error and exit status 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parser = argparse.ArgumentParser(prog="python -m deepcomp.experiment.figures", description=__doc__.splitlines()[0])
    parser.add_argument("runs", metavar="RUN", nargs="*", help="run folder; the last one's network is drawn")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("imgs"), help="default: imgs")
    options = parser.parse_args(arguments)
    try:
        make_all([checkpoint.Run(folder) for folder in options.runs], options.out)
    except DeepcompError as error:
        print(f"figures: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def _figure(path: str | Path, height: float) -> Iterator[Figure]:
    """A figure of `height` inches in the project's style, saved at the end; the same picture has the same bytes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure((WIDTH, height))
        yield figure
        options = {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}}  # No version of Matplotlib in it.
        files.write_atomically(Path(path), lambda temporary: figure.savefig(temporary, **options))


@contextmanager
def _canvas(path: str | Path, width: float, height: float) -> Iterator[Axes]:
    """A surface of `width` x `height` square cells, counted from the top left."""
    with _figure(path, WIDTH * height / width) as figure:
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        yield axes


def _grid(axes, left, top, texts, colors, title="", *, cell=(1, 1), rows=(), columns=(), frame=None) -> None:
    """A table of `texts` on `colors`, with a title above, names along its edges and a frame (x, y, width, height)."""
    (down, across), (wide, high) = texts.shape, cell
    bottom, right = top + high * down, left + wide * across
    edges = np.linspace(left, right, across + 1), np.linspace(top, bottom, down + 1)
    axes.pcolormesh(*edges, np.broadcast_to(colors, (down, across, 3)), edgecolors=LINE, linewidth=0.4)
    centered = {"ha": "center", "va": "center_baseline", "size": 8}
    for (y, x), text in np.ndenumerate(texts):
        if text != "":
            axes.text(left + wide * (x + 0.5), top + high * (y + 0.5), text, **centered)
    for y, name in zip(np.linspace(top, bottom, 2 * len(rows) + 1)[1::2], rows, strict=True):
        axes.text(left - 0.3, y, name, ha="right", va="center_baseline", size=7, color=GREY)
    for x, name in zip(np.linspace(left, right, 2 * len(columns) + 1)[1::2], columns, strict=True):
        axes.text(x, top - 0.3, name, ha="center", size=7, color=GREY)
    _note(axes, (left + right) / 2, top - (1.2 if len(columns) else 0.5), title, color=INK)
    if frame is not None:
        x, y, width, height = np.multiply(frame, (*cell, *cell))
        look = {"fill": False, "edgecolor": INK, "linewidth": 1.8}
        axes.add_patch(Rectangle((left + x, top + y), width, height, **look))


def _numbers(axes, left, top, values, title) -> None:
    """A table of numbers: blue above zero, orange below, and the stronger the larger."""
    strength = 0.6 * np.abs(values) / np.abs(values).max()
    colors = np.where((values > 0)[..., None], _tint(BLUE, strength), _tint(ORANGE, strength))
    _grid(axes, left, top, _decimals(values), colors, title)


def _decimals(values: np.ndarray, digits: int = 2) -> np.ndarray:
    """Numbers as text; zeros are short."""
    return np.array([[f"{v:.{digits}f}".replace("-", MINUS) if v else "0" for v in row] for row in values])


def _names(letter: str, size: int) -> np.ndarray:
    """`letter` with row and column: 11, 12 and so on, `(size, size)`."""
    return np.array([[f"{letter}{y}{x}" for x in range(1, size + 1)] for y in range(1, size + 1)])


def _note(axes, x, y, text, color=GREY) -> None:
    axes.text(x, y, text, ha="center", va="center", size=9, color=color)


def _arrow(axes, start, end, text="", connectionstyle="arc3") -> None:
    """An arrow with a text above its middle."""
    look = {"arrowstyle": "-|>", "color": GREY, "connectionstyle": connectionstyle, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=look)
    _note(axes, (start[0] + end[0]) / 2, start[1] - 0.5, text)


def _tint(color: str, strength) -> np.ndarray:
    """A colour mixed with white, `(*shape of strength, 3)`: strength 0 is white, 1 the colour."""
    return 1 - np.multiply.outer(strength, 1 - np.array(to_rgb(color)))


def _tap_colors(taps) -> np.ndarray:
    """A colour for each place of a 3x3 kernel, 0 to 8: a hue for each row, a strength for each column."""
    return np.concatenate([_tint(hue, [0.2, 0.4, 0.65]) for hue in COLORS[:3]])[taps]


def _matrix_colors(matrix) -> np.ndarray:
    """The colours of a `SparseMatrix` of a 3x3 kernel: each entry has that of its weight's place."""
    channels = matrix.input_shape[-1] * matrix.output_shape[-1]
    colors = np.ones((*matrix.shape, 3))
    colors[matrix.rows, matrix.columns] = _tap_colors(matrix.weights // channels)
    return colors


def _convolution_matrix(kernel: np.ndarray):
    from deepcomp import sparse

    return sparse.convolution_matrix(kernel, (5, 5, kernel.shape[2]), strides=2, padding="same")


def _mask(weights: np.ndarray) -> np.ndarray:
    return pruning.masks({"example": weights}, by="threshold", value=THRESHOLD)["example"]


def _accuracy_of(runs: Sequence[checkpoint.Run]) -> dict[str, tuple[str, list[Part]]]:
    """What `accuracy_curves` takes, of the layers of most weights."""
    from deepcomp import models

    curves = {}
    for run in runs:
        records = {name: run.stage(name).load_record() for name in PARTS}
        layer = max(records["full"]["layers"], key=lambda row: row["weights"])["name"]
        kernels = {name: models.kernel_values(run.stage(name).load_model())[layer] for name in PARTS}
        parts = [(text, records[name]["history"], kernels[name]) for name, text in PARTS.items()]
        curves[_title(records["full"])] = (layer, parts)
    return curves


def _title(record: Mapping) -> str:
    return f"{record['recipe']} on {record['data']['name']}, seed {record['seed']}"


def _draw_accuracy(figure, title: str, layer: str, parts: Sequence[Part]) -> None:
    """A run's curve, and the weights below each of its parts."""
    curves = [_curve(history) for _, history, _ in parts]
    known = [accuracies for _, accuracies in curves]
    limit = float(max(np.abs(kernel).max() for _, _, kernel in parts))
    axes = figure.add_axes((0.08, 0.45, 0.89, 0.42), xlim=(0, 3), ylim=_limits(*known))
    held = any(value is not None for _, history, _ in parts for value in history["validation_accuracy"])
    axes.set(xlabel="iterations", ylabel="validation accuracy" if held else "training accuracy")
    figure.text(0.08, 0.95, title, size=11, weight="bold")
    begin, ticks = 0, {}
    for number, ((name, history, kernel), (places, accuracies)) in enumerate(zip(parts, curves, strict=True)):
        color, steps = COLORS[number], history["step"][-1]
        axes.axvspan(number, number + 1, color=_tint(color, 0.07), linewidth=0)
        axes.plot(number + places, accuracies, color=color, linewidth=1.6)
        axes.text(number + 0.5, 1.03, name, transform=axes.get_xaxis_transform(), color=color, ha="center")
        ticks |= {number + half / 2: f"{begin + steps * half // 2:,}" for half in range(3)}
        begin += steps
        _draw_weights(axes.inset_axes((number / 3 + 0.045, -0.92, 0.27, 0.52)), kernel, limit, color, layer)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_yticks([tick for tick in axes.get_yticks() if axes.get_ylim()[0] <= tick <= 1])
    for number, (before, after) in enumerate(pairwise(curves)):
        step = [number + before[0][-1], number + 1 + after[0][0]], [before[1][-1], after[1][0]]
        axes.plot(*step, color=GREY, linewidth=1, linestyle=":")
    for number, (part, entry) in enumerate(five_points(*known)):
        text = POINTS[number].format("lowest while" if entry else "right after")
        _label(axes, part, *curves[part], entry, text, below=number % 2 == 1)


def _curve(history: Mapping[str, Sequence]) -> tuple[np.ndarray, np.ndarray]:
    """Where in its part accuracy is known, 0 to 1, and the accuracy there; a flat line for a stage of no steps."""
    pairs = zip(history["validation_accuracy"], history["accuracy"], strict=True)
    accuracies = np.array([training if held is None else held for held, training in pairs], float)
    steps = np.array(history["step"])
    if not steps[-1]:
        return np.array([0.0, 1.0]), np.repeat(accuracies[-1], 2)
    known = np.isfinite(accuracies)
    return steps[known] / steps[-1], accuracies[known]


def _limits(full: np.ndarray, pruned: np.ndarray, quantized: np.ndarray) -> tuple[float, float]:
    """The ends of the accuracy axis: all from the end of full training on is in view, with room for labels."""
    later = np.concatenate([full[-1:], pruned, quantized])
    if np.isnan(later).all():
        return 0, 1
    span = max(np.nanmax(later) - np.nanmin(later), 0.004)
    return np.nanmin(later) - 0.4 * span, np.nanmax([*full, *later]) + 0.35 * span


def _label(axes, part, places, accuracies, entry, text, below) -> None:
    """Mark an entry of a part's curve; its value stands clear of the curve around it."""
    place, accuracy = places[entry], accuracies[entry]
    if np.isnan(accuracy):
        return
    near = accuracies[np.abs(places - place) < 0.4]
    clear = (part + place, near.min() if below else near.max())
    side, x = ("left", 5) if place < 0.25 else ("right", -5) if place > 0.75 else ("center", 0)
    look = {"textcoords": "offset points", "ha": side, "va": "top" if below else "bottom"}
    axes.plot(part + place, accuracy, "o", color=COLORS[part], markersize=5, clip_on=False, zorder=3)
    axes.annotate(f"{accuracy:.4f}", clear, (x, -5 if below else 16), weight="bold", **look)
    axes.annotate(text, clear, (x, -17 if below else 6), size=8, color=GREY, **look)


def _draw_weights(axes, kernel, limit, color, layer) -> None:
    """A histogram of the weights that are left, or a spike for each of few values."""
    places, counts = weight_counts(kernel, np.linspace(-limit, limit, 102))
    if len(places) == len(counts):
        axes.vlines(places, 0, counts, color=color, linewidth=2)
        title = f"{layer}: {len(places)} values"
    else:
        axes.stairs(counts, places, fill=True, color=color)
        title = f"{layer}: {counts.sum():,.0f} weights" + (" left" if (kernel == 0).any() else "")
    axes.set(xlim=(-limit, limit), ylim=(0, None))
    axes.set_title(title, size=8)
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))


def _columns(model) -> list[tuple[tuple[int, ...], list[str]]]:
    """Of the input and of every layer, the shape and up to six lines of text."""
    import keras

    from deepcomp import models
    from deepcomp.experiment import report

    shape = models.input_shape(model)
    if shape is None:
        raise UnsupportedLayerError(f"The network {model.name!r} is a subclassed model: its shapes are not known.")
    rows = report.layers(models.kernel_values(model))
    columns = [(shape, ["input", "", "", shape_text(shape)])]
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        shape = keras.tree.flatten(layer.output)[0].shape[1:]
        own = [row for row in rows if row["name"].split("/")[0] == layer.name]
        weights, left = (sum(row[key] for row in own) for key in ("weights", "nonzero"))
        lines = [_short(layer.name, 15), _short(type(layer).__name__, 18), _window(layer), shape_text(shape)]
        lines += [f"{weights:,} weights"] * bool(own) + [f"{left:,} left"] * (left < weights)
        columns.append((shape, lines))
    return [(tuple(size or 1 for size in shape), lines) for shape, lines in columns]


def _window(layer) -> str:
    """Size and stride of a convolution or pooling, in words."""
    size, strides = getattr(layer, "kernel_size", getattr(layer, "pool_size", None)), getattr(layer, "strides", None)
    if not isinstance(size, tuple) or not isinstance(strides, tuple):
        return ""
    return shape_text(size) + (
        f", stride {shape_text(strides if len(set(strides)) > 1 else strides[:1])}" if max(strides) > 1 else ""
    )


def _volume(axes, x, y, shape, largest) -> None:
    """A box that stands on `y` around `x`: an image's height and depth to scale, channels and vectors logarithmic."""
    flat = len(shape) == 1
    width = 0.3 if flat else 0.15 + 0.12 * log2(1 + shape[-1])
    height = 0.2 * log2(1 + shape[0]) if flat else max(0.2, 2 * shape[0] / largest)
    slant = max(0.1, 0.7 * shape[1] / largest) if len(shape) > 2 else 0
    x -= (width + slant) / 2
    front = [(x, y), (x + width, y), (x + width, y - height), (x, y - height)]
    back = [(a + slant, b - slant) for a, b in front]
    side, roof = [front[1], front[2], back[2], back[1]], [front[2], front[3], back[3], back[2]]
    for corners, strength in ((front, 0.35), (side, 0.55), (roof, 0.2)):
        axes.add_patch(Polygon(corners, facecolor=_tint(BLUE, strength), edgecolor=BLUE, linewidth=0.8))


def _ratio_ticks() -> list[float]:
    """Ticks for a logarithmic scale of ratios: 1 and 3 of every power of ten."""
    return [digit * 10.0**power for power in range(-3, 5) for digit in (1, 3)]


def _short(name: str, limit: int) -> str:
    return name if len(name) <= limit else f"{name[: limit - 2]}..."


if __name__ == "__main__":
    main()
