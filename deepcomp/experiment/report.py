"""What came out of a run: where every byte went, how fast the file runs, and the tables that say so."""

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

import deepcomp
from deepcomp.dcz import container
from deepcomp.dcz.accounting import Parts
from deepcomp.dcz.kinds import Inner, is_kernel
from deepcomp.dcz.network import Network, changed_options, entries, open_output_shapes
from deepcomp.errors import shape_text
from deepcomp.tables import sum_row, table, with_percent


def byte_rows(parts: Parts, whole: Network | None = None) -> list[dict]:
    """Where the bytes of a `.dcz` file went, layer by layer, in bits; they add up to 8 x its size.

    Numbers of weights are those of the `whole` network, if it is given, where the file's has lost neurons.

    A kernel has `weight_bits` for values, `index_bits` for positions and `codebook_bits`; `bias_bits` are those of
    weights that are in no kernel, or in one that is not shared. The last row is for all that is not weight data.
    """
    sizes = {
        (layer.name, name): entries(weight).size
        for layer in (whole.layers if whole else ())
        for name, weight in layer.weights.items()
    }
    rows: dict[str, dict] = {}
    for part in parts.tensors:
        size = sizes.get((part.layer, part.weight), part.weights)
        row = rows.setdefault(part.layer, _empty_row(part.layer))
        shared = is_kernel(part.weight) and part.centroids is not None
        row["weights"] += size
        if shared:
            row["weight_bits"] += part.value_bits
            row["index_bits"] += part.index_bits
            row["codebook_bits"] += part.codebook_bits
            row["survivors"] += part.nonzero
            row["positions"] += size
        else:
            row["bias_bits"] += part.bits
    overhead = _empty_row("overhead")
    overhead["overhead_bits"] = parts.overhead_bits
    return [*rows.values(), overhead]


def speed(run: Callable[[np.ndarray], np.ndarray], images: np.ndarray, seconds: float = 0.5) -> dict[str, float]:
    """How fast `run` is on `images`: images a second, all of them at once, and microseconds for one image alone.

    Medians over calls that take about `seconds` each, after two that warm up.
    """

    def typical(batch: np.ndarray) -> float:
        for _ in range(2):
            run(batch)
        taken, end = [], time.perf_counter() + seconds
        while len(taken) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            run(batch)
            taken.append(time.perf_counter() - start)
        return median(taken)

    return {"images_per_second": len(images) / typical(images), "microseconds_for_one": 1e6 * typical(images[:1])}


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


def byte_table(parts: Parts, other: Parts | None = None, whole: Network | None = None) -> str:
    """`byte_rows` as text, in the paper's columns: bits of a survivor's value and of its index, bytes, ratio.

    With the parts of the same network by an `other` coder, their columns stand beside. `whole` as in `byte_rows`.
    """
    shown, columns = [], {"name": "layer", "weights": "weights:,", "percent": "left %:.2f"}
    tables = [byte_rows(one, whole) for one in (other, parts) if one is not None]
    for rows in zip(*(_with_sum(rows) for rows in tables), strict=True):
        first = rows[0]
        percent = 100 * first["survivors"] / first["positions"] if first["positions"] else None
        line = {"name": first["name"], "weights": first["weights"] or None, "percent": percent}
        for number, row in enumerate(rows):
            for kind in ("weight", "index"):
                line[f"{kind}{number}"] = row[f"{kind}_bits"] / row["survivors"] if row["survivors"] else None
            line[f"bytes{number}"] = _row_bits(row) / 8
        line["ratio"] = 32 * row["weights"] / _row_bits(row) if row["weights"] and _row_bits(row) else None
        shown.append(line)
    for number, one in enumerate([other, parts] if other else [parts]):
        name = f"{one.coder}: " if other else ""
        columns |= {f"weight{number}": f"{name}value:.2f", f"index{number}": "index:.2f"}
        columns[f"bytes{number}"] = "bytes:,.0f"
    return table(shown, {**columns, "ratio": "ratio:.1f"})


def ratio_line(parts: Parts) -> str:
    """The sizes of the dense network and of its file, in bytes, and their ratio."""
    dense = 4 * sum(part.weights for part in parts.tensors)
    return f"{dense:,} bytes -> {parts.bits // 8:,}, {8 * dense / parts.bits:.1f}x"


def architecture_table(network: Network) -> str:
    """The layers of a `.dcz` file as text: name, kind, output shape, inputs, and options that are not the default."""
    rows = []
    for number, (layer, shape) in enumerate(zip(network.layers, open_output_shapes(network), strict=True)):
        options = changed_options(layer)
        options.pop("open_axes", None)  # the shape has them
        follows = "" if layer.inputs == (number - 1,) else ", ".join(network.layers[n].name for n in layer.inputs)
        rows.append(
            {
                "name": layer.name,
                "kind": layer.kind,
                "from": follows,
                "shape": shape_text(shape),
                "options": ", ".join(f"{key}={_short(value)}" for key, value in options.items()),
            }
        )
    columns = {"name": "layer", "kind": "kind", "shape": "output"}
    columns |= {"from": "from"} if any(row["from"] for row in rows[1:]) else {}
    return table(rows, {**columns, "options": "options"}, left=("kind", "from", "options"))


def inspection(network: Network, parts: Parts) -> dict[str, Any]:
    """What a `.dcz` file holds, as plain values for JSON: sizes in bytes, layers, and each weight with its room."""
    rooms = {(part.layer, part.weight): part for part in parts.tensors}
    layers = []
    for layer, shape in zip(network.layers, open_output_shapes(network), strict=True):
        weights = []
        for name in layer.weights if layer.same_as is None else ():
            part = rooms[container.title(layer), name]
            weights.append(
                {
                    "name": name,
                    "shape": part.shape,
                    "nonzero": part.nonzero,
                    "values": part.centroids,  # of a codebook, if there is one
                    "bytes": part.bits / 8,
                }
            )
        layers.append(
            {
                "name": layer.name,
                "kind": layer.kind,
                "inputs": layer.inputs,
                "output": shape,
                "options": {key: _plain(value) for key, value in layer.options.items()},
                "weights": weights,
                **({} if layer.same_as is None else {"same_as": layer.same_as}),
            }
        )
    return {
        "name": network.name,
        "coder": parts.coder,
        "bytes": parts.bits // 8,
        "overhead_bytes": parts.overhead_bits / 8,
        "outputs": network.outputs,
        "layers": layers,
    }


def _plain(value: Any) -> Any:
    """An option as a plain value; that of a layer inside another is a dictionary."""
    if not isinstance(value, Inner):
        return value
    options = {key: _plain(own) for key, own in value.options.items()}
    return {"kind": value.kind, "name": value.name, "options": options}


def stage_table(records: Sequence[Mapping]) -> str:
    """What each training stage reached, from its `stage.json`, as text."""
    shown = [{**record, **with_percent(sum_row(record["layers"])), "name": record["stage"]} for record in records]
    columns = {"name": "stage", "test_error": "test error %:.2f", "nonzero": "weights left:,", "percent": "left %:.2f"}
    return table(shown, {**columns, "steps": "steps:,", "seconds": "seconds:.0f"})


def measures_line(measures: Mapping[str, float]) -> str:
    """What was measured of a network that is not judged by accuracy, as `loss 0.1234`."""
    return ", ".join(f"test {name} {value:.4g}" for name, value in measures.items())


def speed_table(speeds: Mapping[str, Mapping[str, float]]) -> str:
    """`speed` of several engines, by name, as text."""
    rows = [{"name": name, **one} for name, one in speeds.items()]
    columns = {"images_per_second": "images a second:,.0f", "microseconds_for_one": "one image, us:,.1f"}
    return table(rows, {"name": "engine", **columns})


def _empty_row(name: str) -> dict:
    numbers = ("weights", "positions", "survivors")
    bits = ("weight_bits", "index_bits", "codebook_bits", "bias_bits", "overhead_bits")
    return {"name": name, **dict.fromkeys((*numbers, *bits), 0)}


def _row_bits(row: Mapping) -> int:
    return sum(value for key, value in row.items() if key.endswith("_bits"))


def _with_sum(rows: list[dict]) -> list[dict]:
    return [*rows, {key: sum(row[key] for row in rows) if key != "name" else "all" for key in rows[0]}]


def _short(value) -> str:
    return shape_text(value) if isinstance(value, tuple) else str(value)
