"""Tables for people: aligned text, and what is left of each layer. NumPy only."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deepcomp.errors import printable, shape_text


def layers(kernels: Mapping[str, np.ndarray], whole: Mapping[str, int] | None = None) -> list[dict]:
    """Name, shape, number of weights, of non-zero weights and of distinct non-zero values of each kernel.

    `whole` has the numbers of weights by name where a kernel was larger in the full network.
    """
    rows = []
    for name, kernel in kernels.items():
        nonzero = kernel[kernel != 0]
        rows.append(
            {
                "name": name,
                "shape": list(kernel.shape),
                "weights": (whole or {}).get(name, int(kernel.size)),
                "nonzero": int(nonzero.size),
                "centroids": len(np.unique(nonzero)),
            }
        )
    return rows


def sizes(kernels: Mapping[str, np.ndarray]) -> dict[str, int]:
    """How many weights each kernel has, by name."""
    return {name: kernel.size for name, kernel in kernels.items()}


def table(
    rows: Sequence[Mapping],
    columns: Mapping[str, str],
    left: Sequence[str] = (),
    least: Mapping[str, int] | None = None,
) -> str:
    """Rows as aligned text; `columns` maps a key of the rows to `heading` or `heading:format`.

    Names may come from anybody's file and go to a terminal: they are made printable.
    The first column and those named in `left` are aligned to the left; columns are at least as wide as `least` says.
    """
    headings = [column.rpartition(":")[0] or column for column in columns.values()]
    formats = [column.rpartition(":")[2] if ":" in column else "" for column in columns.values()]
    keys = [*zip(columns, formats, strict=True)]
    cells = [["-" if row[key] is None else printable(format(row[key], form)) for key, form in keys] for row in rows]
    lengths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    widths = [max(own, (least or {}).get(key, 0)) for key, own in zip(columns, lengths, strict=True)]

    def line(texts) -> str:
        sides = ("<" if key in left or not number else ">" for number, key in enumerate(columns))
        return "  ".join(f"{t:{side}{w}}" for t, side, w in zip(texts, sides, widths, strict=True)).rstrip()

    return "\n".join([line(headings), "  ".join("-" * w for w in widths), *map(line, cells)])


def layer_table(rows: Sequence[Mapping]) -> str:
    """`layers` as text, with the part left in percent, and a last line for all together."""
    columns = {"name": "layer", "shape": "shape", "weights": "weights:,", "nonzero": "left:,", "percent": "left %:.2f"}
    return table([with_percent(row) for row in (*rows, sum_row(rows))], {**columns, "centroids": "values:,"})


def scan_table(
    accuracies: Mapping[str, Sequence[float]], sparsities: Sequence[float], chosen: Mapping[str, float] | None = None
) -> str:
    """A sensitivity scan as text: accuracies in percent at each sparsity but the first, 0, and the `chosen` sparsities.

    `accuracies` and `sparsities` as in `pruning.tolerated`. With its nine sparsities it is 100 characters wide at most.
    """
    rows = []
    for name, own in accuracies.items():
        row = {"name": name if len(name) <= 18 else f"{name[:16]}..", "chosen": (chosen or {}).get(name)}
        rows.append(row | {f"{s:g}": 100 * accuracy for s, accuracy in zip(sparsities, own, strict=True)})
    columns = {"name": "layer"} | {f"{s:g}": f"{s:g}:.2f" for s in sparsities[1:]}
    whole = 100 * next(iter(accuracies.values()))[0]
    heading = f"Accuracy, %, with one layer alone pruned to a sparsity; with none {whole:.2f}:"
    return f"{heading}\n{table(rows, columns | ({'chosen': 'chosen:.4f'} if chosen else {}))}"


def shortened(name: str, limit: int) -> str:
    """A name of at most `limit` characters; a longer one ends in three dots."""
    return name if len(name) <= limit else f"{name[: limit - 3]}..."


def with_percent(row: Mapping) -> dict[str, Any]:
    """A row of `layers` with its shape as text and what is left in percent."""
    percent = 100 * row["nonzero"] / max(1, row["weights"])
    return {**row, "shape": shape_text(row["shape"]), "percent": percent}


def sum_row(rows: Sequence[Mapping]) -> dict[str, Any]:
    """A row that adds up the numbers of all rows."""
    added = {key for row in rows for key in row} - {"name", "shape", "centroids"}
    total = {key: sum(row.get(key, 0) for row in rows) for key in sorted(added)}
    return {"name": "all", "shape": [], **total, "centroids": None}
