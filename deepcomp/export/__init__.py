"""Networks where there is no Python: C99 for microcontrollers, a page, and `deepcomp.mjs` for browsers and Node."""

import math
from pathlib import Path
from typing import NamedTuple

from deepcomp.dcz import container, neurons
from deepcomp.dcz.limits import Limits
from deepcomp.dcz.network import require_layers
from deepcomp.errors import FormatError, RecipeError
from deepcomp.export import c, page
from deepcomp.files import write_text

__all__ = ["WEIGHTS", "ExportedC", "ExportedPage", "export_c", "export_page"]

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


class ExportedPage(NamedTuple):
    """The page that was written, its bytes, and those of the file in it."""

    page: Path
    bytes: int
    file_bytes: int


def export_page(
    path: str | Path,
    out: str | Path | None = None,
    *,
    value_range: tuple[float, float] | None = None,
    max_memory: int | None = None,
    max_work: int | None = None,
) -> ExportedPage:
    """Write the network in a `.dcz` file as one HTML page that runs it, by default beside the file.

    A black and a white pixel have the two numbers of `value_range`: by default 0 and 1, or 0 and 255 where the network
    begins with a Rescaling. `max_memory` (bytes) and `max_work` (operations) are limits as for `deepcomp.load`, in the
    page too. Raises `FormatError` and `RecipeError`.
    """
    if value_range is not None:
        value_range = _checked_range(value_range)
    path = Path(path)
    data = container.read(path)
    container.loads(data, name=str(path), limits=Limits.of(len(data), max_memory, max_work))
    limits = {key: value for key, value in (("memory", max_memory), ("work", max_work)) if value is not None}
    text = page.document(data, path.name, limits, value_range)
    target = path.with_suffix(".html") if out is None else Path(out)
    write_text(target, text)
    return ExportedPage(target, len(text.encode()), len(data))


def _checked_range(value_range: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = map(float, value_range)
    except (TypeError, ValueError):
        low = high = math.nan
    if not math.isfinite(low) or not math.isfinite(high) or low == high:
        raise RecipeError(f"A range of pixels of {value_range!r}: it must be two different numbers, like 0 and 255.")
    return low, high
