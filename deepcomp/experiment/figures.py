"""The figures of a run: its accuracy curve, what is left of each layer, where bytes went, and a sensitivity scan."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.ticker import EngFormatter, MaxNLocator, StrMethodFormatter

from deepcomp.drawing import BLUE, COLORS, GREEN, GREY, INK, LINE, ORANGE, PURPLE, saved_figure, tint
from deepcomp.errors import shape_text
from deepcomp.experiment.run_folder import Run
from deepcomp.runtime.profiling import LayerTime
from deepcomp.tables import shortened

PARTS = {
    "full": "full training",
    "pruned": "pruning and fine-tuning",
    "quantized": "quantization and fine-tuning",
}
POINTS = ("trained", "{} pruning", "recovered", "{} quantization", "in the end")

Values = Sequence[float] | np.ndarray
Part = tuple[str, Mapping[str, Sequence], np.ndarray]


def accuracy_curve(parts: Sequence[Part], path: str | Path, *, title: str = "", layer: str = "one layer") -> None:
    """One accuracy curve over the three training stages laid end to end, and one layer's weights after each.

    Each of `parts` is a stage's name, its history and the kernel of `layer` at its end, `float32, any shape`. The
    history has a list `step` and, where they are known, `validation_accuracy` (or another accuracy, as of
    `binary_accuracy`) and `accuracy`, the training accuracy, which takes the place of the first where that is None.
    """
    accuracy_curves({title: (layer, parts)}, path)


def accuracy_curves(runs: Mapping[str, tuple[str, Sequence[Part]]], path: str | Path) -> None:
    """`accuracy_curve` for several runs, title -> (layer, parts), one below the other."""
    with saved_figure(path, 5.1 * len(runs)) as figure:
        panels = figure.subfigures(len(runs), 1, squeeze=False)[:, 0]
        for panel, (title, (layer, parts)) in zip(panels, runs.items(), strict=True):
            _draw_accuracy(panel, title, layer, parts)


def save_accuracy(run: Run, path: str | Path) -> None:
    """`accuracy_curve` of a run and its layer of most weights. Raises `StageError`, `FormatError`."""
    accuracy_curves(_accuracy_of([run]), path)


def five_points(full: Values, pruned: Values, quantized: Values) -> list[tuple[int, int]]:
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


def profile(layers: Sequence[LayerTime], path: str | Path, *, title: str = "") -> None:
    """The microseconds of each layer of a call as bars, with its part of them all, and its multiply-adds."""
    total = sum(layer.microseconds for layer in layers) or 1.0
    places = range(len(layers))
    inches = 1.2 + 0.22 * len(layers)
    with saved_figure(path, inches) as figure:
        axes = figure.add_axes((0.22, 0.6 / inches, 0.42, 1 - 1.1 / inches))
        axes.set(ylim=(len(layers) - 0.4, -0.6), xlabel="microseconds")
        axes.barh(places, [layer.microseconds for layer in layers], height=0.62, color=BLUE)
        axes.set_yticks(places, [shortened(layer.layer or "(outputs)", 24) for layer in layers], color=INK)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        for place, layer in zip(places, layers, strict=True):
            work = f", {EngFormatter(places=1)(layer.multiply_adds)} multiply-adds" if layer.multiply_adds else ""
            text = f"{100 * layer.microseconds / total:.1f}%  {shortened(layer.steps, 28)}{work}"
            axes.text(1.03, place, text, transform=axes.get_yaxis_transform(), va="center", size=8)
        figure.text(0.22, 1 - 0.3 / inches, title, size=11, weight="bold")


def sparsity_per_layer(layers: Sequence[Mapping], path: str | Path, *, title: str = "") -> None:
    """How many percent of each layer's weights are left: a bar for each of the rows that `tables.layers` returns.

    The scale is logarithmic where a layer has under 5% left.
    """
    percent = np.array([100 * row["nonzero"] / max(1, row["weights"]) for row in layers])
    log = bool((percent < 5).any())
    low = 10 ** np.floor(np.log10(percent[percent > 0].min(initial=1))) if log else 0
    places = range(len(layers))
    inches = 1.2 + 0.36 * len(layers)
    with saved_figure(path, inches) as figure:
        axes = figure.add_axes((0.22, 0.6 / inches, 0.42, 1 - 1.1 / inches))
        axes.set(xscale="log" if log else "linear", xlim=(low, 100), ylim=(len(layers) - 0.4, -0.6))
        axes.set_xlabel("weights left")
        axes.barh(places, 100 - low, left=low, height=0.62, color=tint(GREY, 0.08))
        axes.barh(places, np.maximum(percent - low, 0), left=low, height=0.62, color=ORANGE)
        axes.set_yticks(
            places, [f"{shortened(row['name'], 18)}  {shape_text(row['shape'])}" for row in layers], color=INK
        )
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
    names, chosen = list(accuracies), chosen or {}
    whole = 100 * accuracies[names[0]][0]
    best = 100 * max(map(max, accuracies.values()))
    across = np.union1d(sparsities, 1 - np.geomspace(1, 1 - sparsities[-1], 500))
    legend = 0.2 * -(-len(names) // 4)
    inches = 3.9 + legend
    with saved_figure(path, inches) as figure:
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
                look = {"color": color, "linestyle": style, "label": shortened(name, 18)}
                axes.plot(1 - across, np.interp(across, sparsities, percent), linewidth=1.4, **look)
                axes.plot(1 - np.array(sparsities), percent, "o", color=color, markersize=3)
                if name in chosen:
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
    totals = np.sum(list(sizes.values()), axis=0)
    places = range(len(rows))
    inches = 1.5 + 0.36 * len(rows)
    with saved_figure(path, inches) as figure:
        axes = figure.add_axes((0.22, 0.6 / inches, 0.62, 1 - 1.4 / inches))
        axes.set(xlim=(0, max(1, totals.max())), ylim=(len(rows) - 0.4, -0.6))
        axes.set_xlabel("bytes")
        left = np.zeros(len(rows))
        for (kind, name), color in zip(kinds.items(), (BLUE, ORANGE, GREEN, PURPLE, GREY), strict=True):
            axes.barh(places, sizes[kind], left=left, height=0.62, color=color, label=name)
            left += sizes[kind]
        axes.set_yticks(places, [shortened(row["name"], 18) for row in rows], color=INK)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        for place, total in zip(places, totals, strict=True):
            axes.text(1.03, place, f"{total:,.0f}", transform=axes.get_yaxis_transform(), va="center", size=8)
        figure.text(0.22, 1 - 0.3 / inches, title, size=11, weight="bold")
        above = (0, 1 + 0.05 / (inches - 1.4))
        axes.legend(loc="lower left", bbox_to_anchor=above, ncols=5, frameon=False, borderpad=0, handlelength=1)


def run_title(record: Mapping) -> str:
    """Recipe, data and seed of a run, from the record of one of its stages."""
    return f"{record['recipe']} on {record['data']['name']}, seed {record['seed']}"


def _accuracy_of(runs: Sequence[Run]) -> dict[str, tuple[str, list[Part]]]:
    """What `accuracy_curves` takes, of the layers of most weights."""
    from deepcomp import models

    curves = {}
    for run in runs:
        records = {name: run.stage(name).load_record() for name in PARTS}
        layer = max(records["full"]["layers"], key=lambda row: row["weights"])["name"]
        kernels = {name: models.kernel_values(run.stage(name).load_model())[layer] for name in PARTS}
        parts = [(text, records[name]["history"], kernels[name]) for name, text in PARTS.items()]
        curves[run_title(records["full"])] = (layer, parts)
    return curves


def _draw_accuracy(figure, title: str, layer: str, parts: Sequence[Part]) -> None:
    """A run's curve, and the weights below each of its parts."""
    curves = [_curve(history) for _, history, _ in parts]
    known = [accuracies for _, accuracies in curves]
    limit = float(max(np.abs(kernel).max() for _, _, kernel in parts))
    axes = figure.add_axes((0.08, 0.45, 0.89, 0.42), xlim=(0, 3), ylim=_limits(*known))
    held = any(value is not None for _, history, _ in parts for value in _validation_accuracy(history))
    axes.set(xlabel="iterations", ylabel="validation accuracy" if held else "training accuracy")
    figure.text(0.08, 0.95, title, size=11, weight="bold")
    begin, ticks = 0, {}
    for number, ((name, history, kernel), (places, accuracies)) in enumerate(zip(parts, curves, strict=True)):
        color, steps = COLORS[number], history["step"][-1]
        axes.axvspan(number, number + 1, color=tint(color, 0.07), linewidth=0)
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
    steps = np.array(history["step"])
    unknown = [None] * len(steps)
    pairs = zip(_validation_accuracy(history) or unknown, history.get("accuracy", unknown), strict=True)
    accuracies = np.array([training if held is None else held for held, training in pairs], float)
    if not steps[-1]:
        return np.array([0.0, 1.0]), np.repeat(accuracies[-1], 2)
    known = np.isfinite(accuracies)
    return steps[known] / steps[-1], accuracies[known]


def _validation_accuracy(history: Mapping[str, Sequence]) -> Sequence:
    """The first measure on validation examples that is an accuracy of some kind, or nothing."""
    names = (name for name in history if name.startswith("validation_") and name.endswith("accuracy"))
    return history.get(next(names, ""), ())


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
