"""Networks where there is no Python: C99 for microcontrollers, and `deepcomp.mjs` for browsers and Node."""

from pathlib import Path
from typing import NamedTuple

from deepcomp.dcz import container, neurons
from deepcomp.dcz.limits import Limits
from deepcomp.dcz.network import require_layers
from deepcomp.errors import FormatError, RecipeError
from deepcomp.export import c
from deepcomp.files import write_text

__all__ = ["WEIGHTS", "ExportedC", "export_c"]

WEIGHTS = "direct", "coded"


class ExportedC(NamedTuple):
    """The files that were written, and the bytes that their constants take."""

    header: Path
    source: Path
    constants: int


def export_c(
    path: str | Path,
    folder: str | Path,
    name: str = "net",
    weights: str = "direct",
    *,
    max_memory: int | None = None,
    max_work: int | None = None,
) -> ExportedC:
    """Write the network in a `.dcz` file as `NAME.h` and `NAME.c` in a folder.

    They are C99 without dependencies, and their outputs are those of the engine within rounding. Kernels are `direct`,
    read where they lie, or `coded`, bytes of a range coder that are decoded on each run: smaller and slower.
    `max_memory` (bytes) and `max_work` (operations) are limits as for `deepcomp.load`. Raises `FormatError` and
    `RecipeError`.
    """
    if weights not in WEIGHTS:
        raise RecipeError(f"weights={weights!r}: it must be {' or '.join(WEIGHTS)}.")
    data = container.read(path)
    limits = Limits.of(len(data), max_memory, max_work)
    network = container.loads(data, name=str(path), limits=limits)
    require_layers(network, str(path))
    network = neurons.remove_unused(network)
    try:
        made = c.sources(network, name, limits, weights == "coded")
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.h", folder / f"{name}.c"
    for target, text in zip(paths, (made.header, made.source), strict=True):
        write_text(target, text)
    return ExportedC(*paths, made.constants)
