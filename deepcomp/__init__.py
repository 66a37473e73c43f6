"""Deep Compression for Keras 3 (Han, Mao and Dally, ICLR 2016, arXiv 1510.00149).

Importing this package imports no framework: what needs TensorFlow is imported when it is first used.
"""

from importlib import import_module

from deepcomp.errors import (
    DataError,
    DeepcompError,
    FormatError,
    RecipeError,
    StageError,
    UnsupportedLayerError,
)

__version__ = "0.1.0"

_HOMES = {
    "prune": "deepcomp.compression",
    "quantize": "deepcomp.compression",
    "load": "deepcomp.runtime",
    "check": "deepcomp.dcz.conversion",
    "save": "deepcomp.dcz.conversion",
    "to_keras": "deepcomp.dcz.conversion",
}

__all__ = [
    "check",
    "load",
    "prune",
    "quantize",
    "save",
    "to_keras",
    "DeepcompError",
    "FormatError",
    "UnsupportedLayerError",
    "DataError",
    "StageError",
    "RecipeError",
]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'deepcomp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
