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
    """Bits of each layer as the paper counts them, before Huffman coding (paper sections 2 and 3, equation 1).

    A kernel takes a fixed number of bits for each survivor's codebook entry and for its distance from the survivor
    before; where a distance is too long, a filler zero stands between. Codebook entries and the weights that are
    in no kernel (`others`: name -> number of them) take 32 bits. The number of index bits is the best for the layer.
    Each layer ends on a whole byte; `padding` is what that costs.
    """
    rows = []
    for name, kernel in kernels.items():
        positions = np.flatnonzero(kernel)
        centroids = len(np.unique(kernel[kernel != 0]))
        rows.append(_row(name, *_kernel_bits(positions, centroids), 32 * centroids, 0))
    for name, number in others.items():
        row = next((row for row in rows if row["name"] == name), None)
        if row is None:
            rows.append(_row(name, 0, 0, 0, 32 * number))
        else:
            row["bias_bits"] += 32 * number
    return rows


def total_bytes(rows: Sequence[Mapping]) -> int:
    """The sum of all parts of `accounting`, in bytes."""
    bits = sum(value for row in rows for key, value in row.items() if key.endswith("bits"))
    return bits // 8


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
    """`layers` as text, with the density in percent and a last line for all layers together."""
    whole = {
        "name": "all",
        "shape": "",
        "weights": sum(row["weights"] for row in rows),
        "nonzero": sum(row["nonzero"] for row in rows),
        "centroids": None,
    }
    shown = [
        {
            **row,
            "shape": "x".join(map(str, row["shape"])),
            "density": 100 * row["nonzero"] / max(1, row["weights"]),
        }
        for row in (*rows, whole)
    ]
    columns = {
        "name": "layer",
        "shape": "shape",
        "weights": "weights:,",
        "nonzero": "left:,",
        "density": "left %:.2f",
        "centroids": "values:,",
    }
    return table(shown, columns)


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


def _row(name: str, weights: int, indices: int, codebook: int, bias: int) -> dict:
    row = {
        "name": name,
        "weight_bits": weights,
        "index_bits": indices,
        "codebook_bits": codebook,
        "bias_bits": bias,
    }
    return {**row, "padding_bits": -(weights + indices + codebook + bias) % 8}
