"""Where every byte went: weights, survivors and distinct values by layer; the paper's accounting; tables."""

import platform
from collections.abc import Mapping, Sequence

import numpy as np

import deepcomp


def layers(kernels: Mapping[str, np.ndarray]) -> list[dict]:
    """Name, shape, number of weights, of non-zero weights and of distinct non-zero values of each kernel."""
    rows = []
    for name, kernel in kernels.items():
        nonzero = kernel[kernel != 0]
        rows.append(
            {
                "name": name,
                "shape": list(kernel.shape),
                "weights": int(kernel.size),
                "nonzero": int(nonzero.size),
                "centroids": len(np.unique(nonzero)),
            }
        )
    return rows


def accounting(kernels: Mapping[str, np.ndarray], others: Mapping[str, int]) -> list[dict]:
    """`layers` with the bits of each as the paper counts them, before Huffman coding (paper sections 2 and 3).

    A kernel takes a fixed number of bits for each survivor's codebook entry and for its distance from the survivor
    before; where a distance is too long, a filler zero stands between. Codebook entries and the weights that are
    in no kernel (`others`: name -> number of them) take 32 bits. The number of index bits is the best for the layer.
    Each layer ends on a whole byte; `padding_bits` is what that costs.
    """
    rows = layers(kernels)
    for row in rows:
        row["weight_bits"], row["index_bits"] = _kernel_bits(np.flatnonzero(kernels[row["name"]]), row["centroids"])
        row["codebook_bits"] = 32 * row["centroids"]
        row["bias_bits"] = 32 * others.get(row["name"], 0)
    for name in sorted(others.keys() - kernels.keys()):
        number = others[name]
        row = {"name": name, "shape": [number], "weights": number, "nonzero": number, "centroids": None}
        rows.append({**row, "weight_bits": 0, "index_bits": 0, "codebook_bits": 0, "bias_bits": 32 * number})
    for row in rows:
        row["padding_bits"] = -layer_bits(row) % 8
    return rows


def layer_bits(row: Mapping) -> int:
    """The sum of all parts of a row of `accounting`."""
    return sum(value for key, value in row.items() if key.endswith("_bits"))


def total_bytes(rows: Sequence[Mapping]) -> int:
    """The sum of all parts of all rows of `accounting`, in bytes."""
    return sum(map(layer_bits, rows)) // 8


def versions() -> dict[str, str]:
    """Versions of what made a result."""
    import keras
    import tensorflow as tf

    return {
        "deepcomp": deepcomp.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
    }


def table(rows: Sequence[Mapping], columns: Mapping[str, str]) -> str:
    """Rows as aligned text; `columns` maps a key of the rows to `heading` or `heading:format`."""
    cells = []
    for row in rows:
        line = []
        for key, column in columns.items():
            value, form = row[key], column.partition(":")[2]
            line.append(format(value, form) if form and value is not None else "-" if value is None else str(value))
        cells.append(line)
    headings = [column.partition(":")[0] for column in columns.values()]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]

    def line(texts, first="<") -> str:
        padded = [f"{t:{first if i == 0 else '>'}{w}}" for i, (t, w) in enumerate(zip(texts, widths, strict=True))]
        return "  ".join(padded).rstrip()

    return "\n".join([line(headings), "  ".join("-" * w for w in widths), *map(line, cells)])


def layer_table(rows: Sequence[Mapping]) -> str:
    """`layers` as text, with the part left in percent, and a last line for all together."""
    columns = {"name": "layer", "shape": "shape", "weights": "weights:,", "nonzero": "left:,", "percent": "left %:.2f"}
    return table([_shown(row) for row in (*rows, _sum(rows))], {**columns, "centroids": "values:,"})


def byte_table(rows: Sequence[Mapping]) -> str:
    """`accounting` as text, in the paper's columns: bits for a surviving weight and its index, bytes, ratio."""
    shown = []
    for row in (*rows, _sum(rows)):
        survivors, size = max(1, row["nonzero"]), layer_bits(row) / 8
        per_survivor = {"weight": row["weight_bits"] / survivors, "index": row["index_bits"] / survivors}
        shown.append({**_shown(row), **per_survivor, "bytes": size, "ratio": 4 * row["weights"] / max(1, size)})
    columns = {"name": "layer", "weights": "weights:,", "percent": "left %:.2f", "weight": "weight bits:.1f"}
    return table(shown, {**columns, "index": "index bits:.1f", "bytes": "bytes:,.0f", "ratio": "ratio:.1f"})


def stage_table(records: Sequence[Mapping]) -> str:
    """What each training stage reached, from its `stage.json`, as text."""
    shown = [{**record, **_shown(_sum(record["layers"])), "name": record["stage"]} for record in records]
    columns = {"name": "stage", "test_error": "test error %:.2f", "nonzero": "weights left:,", "percent": "left %:.2f"}
    return table(shown, {**columns, "steps": "steps:,", "seconds": "seconds:.0f"})


def _shown(row: Mapping) -> dict:
    percent = 100 * row["nonzero"] / max(1, row["weights"])
    return {**row, "shape": "x".join(map(str, row["shape"])), "percent": percent}


def _sum(rows: Sequence[Mapping]) -> dict:
    """A row that adds up the numbers of all rows."""
    added = {key for row in rows for key in row} - {"name", "shape", "centroids"}
    total = {key: sum(row.get(key, 0) for row in rows) for key in sorted(added)}
    return {"name": "all", "shape": [], **total, "centroids": None}


def _kernel_bits(positions: np.ndarray, centroids: int) -> tuple[int, int]:
    """Bits for codebook entries and for relative indices, with the index width that makes their sum least."""
    if not len(positions):
        return 0, 0
    gaps = np.diff(positions, prepend=-1) - 1
    best = None
    for index_bits in range(1, 17):
        fillers = int(np.sum(gaps >> index_bits))
        symbols = centroids + (fillers > 0)
        weight_bits = max(1, int(symbols - 1).bit_length())
        entries = len(positions) + fillers
        candidate = (entries * weight_bits, entries * index_bits)
        best = candidate if best is None or sum(candidate) < sum(best) else best
    return best
