"""The pictures of the README, drawn from real arrays by the functions that the project runs.

    python tools/pictures.py --out imgs runs/seed runs/reference

makes them all; without runs, it makes the worked examples alone.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import log2
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Polygon, Rectangle

from deepcomp import pruning, quantization, tables
from deepcomp.drawing import BLUE, COLORS, GREY, INK, LINE, ORANGE, WIDTH, saved_figure, tint
from deepcomp.errors import DeepcompError, UnsupportedLayerError, shape_text
from deepcomp.experiment import figures
from deepcomp.experiment.run_folder import Run
from deepcomp.options import Pruning
from deepcomp.tables import shortened

TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"

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


def pruning_example(path: str | Path) -> None:
    """Pruning by magnitude, and a step of fine-tuning, on 5x5 weights (paper section 2)."""
    mask = _mask(WEIGHTS)
    pruned, step = WEIGHTS * mask, GRADIENT * mask
    with _canvas(path, 22, 14.4) as axes:
        _numbers(axes, 1, 1.6, WEIGHTS, "weights")
        _note(axes, 7.25, 4.1, TIMES)
        _grid(axes, 8.5, 1.6, mask.astype(int), tint(GREY, 0.3 * mask), f"mask: magnitude at least {THRESHOLD}")
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
    colors = np.array([to_rgb("white"), *(tint(color, 0.4) for color in COLORS)])
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
        pale, cell = tint(GREY, 0.08), (1.6, 1.6)
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
    kernel *= pruning.masks({"kernel": kernel}, Pruning(sparsity=0.4))["kernel"]
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


def make_all(runs: Sequence[Run], folder: Path) -> None:
    """The worked examples; accuracy, sparsity and, once deployed, bytes of each run; the last run's network.

    Raises `StageError` for a run that is not quantized yet, `FormatError` for a damaged one.
    """
    records = [run.stage("quantized").load_record() for run in runs]
    pruning_example(folder / "pruning.png")
    sharing_example(folder / "sharing.png")
    sparse_convolution(folder / "sparse-convolution.png")
    sparse_convolution_blocks(folder / "sparse-convolution-blocks.png")
    for run, record in zip(runs, records, strict=True):
        figures.save_accuracy(run, folder / f"accuracy-{run.folder.name}.png")
        figures.sparsity_per_layer(
            record["layers"], folder / f"sparsity-{run.folder.name}.png", title=figures.run_title(record)
        )
        if run.stage("deployed").done:
            file = run.stage("deployed").load_record()
            title = f"{figures.run_title(file)}: {file['file_bytes']:,} bytes, {file['ratio']:.0f}x"
            figures.bytes_by_layer(file["layers"], folder / f"bytes-{run.folder.name}.png", title=title)
    if runs:
        architecture(runs[-1].stage("quantized").load_model(), folder / "architecture.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command; a `DeepcompError` becomes one line on standard error and exit status 2."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", metavar="RUN", nargs="*", help="run folder; the last one's network is drawn")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("imgs"), help="default: imgs")
    options = parser.parse_args(arguments)
    try:
        make_all([Run(folder) for folder in options.runs], options.out)
    except DeepcompError as error:
        print(f"pictures: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def _canvas(path: str | Path, width: float, height: float) -> Iterator[Axes]:
    """A surface of `width` x `height` square cells, counted from the top left."""
    with saved_figure(path, WIDTH * height / width) as figure:
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
    colors = np.where((values > 0)[..., None], tint(BLUE, strength), tint(ORANGE, strength))
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


def _tap_colors(taps) -> np.ndarray:
    """A colour for each place of a 3x3 kernel, 0 to 8: a hue for each row, a strength for each column."""
    return np.concatenate([tint(hue, [0.2, 0.4, 0.65]) for hue in COLORS[:3]])[taps]


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
    return pruning.masks({"example": weights}, Pruning(threshold=THRESHOLD))["example"]


def _columns(model) -> list[tuple[tuple[int, ...], list[str]]]:
    """Of the input and of every layer, the shape and up to six lines of text."""
    import keras

    from deepcomp import models

    shape = models.input_shape(model)
    if shape is None:
        raise UnsupportedLayerError(f"The network {model.name!r} is a subclassed model: its shapes are not known.")
    rows = tables.layers(models.kernel_values(model))
    columns = [(shape, ["input", "", "", shape_text(shape)])]
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        shape = keras.tree.flatten(layer.output)[0].shape[1:]
        own = [row for row in rows if row["name"].split("/")[0] == layer.name]
        weights, left = (sum(row[key] for row in own) for key in ("weights", "nonzero"))
        lines = [shortened(layer.name, 15), shortened(type(layer).__name__, 18), _window(layer), shape_text(shape)]
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
        axes.add_patch(Polygon(corners, facecolor=tint(BLUE, strength), edgecolor=BLUE, linewidth=0.8))


if __name__ == "__main__":
    main()
