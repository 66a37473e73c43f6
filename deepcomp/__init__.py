"""Deep Compression for Keras 3 (Han, Mao and Dally, ICLR 2016, arXiv 1510.00149).

Importing this package imports no framework: what needs TensorFlow is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from deepcomp.errors import (
    DataError,
    DeepcompError,
    DeepcompWarning,
    FormatError,
    OutputError,
    RecipeError,
    StageError,
    UnsupportedLayerError,
)
from deepcomp.options import (
    Distillation,
    Pruning,
    Search,
    SecondOrderPruning,
    SecondOrderSharing,
    Sharing,
    Training,
)

if TYPE_CHECKING:  # the names of _HOMES, for type checkers
    from deepcomp.callbacks import PruningCallback, SharingCallback
    from deepcomp.compression import prune, quantize, sensitivity, train
    from deepcomp.data import DataSet
    from deepcomp.dcz.conversion import check, save, to_keras
    from deepcomp.dcz.conversion.weights import load_weights, save_weights
    from deepcomp.export import export_c, export_page
    from deepcomp.runtime import load
    from deepcomp.search import Compressed, compress
    from deepcomp.training.record import Record

__version__ = "0.1.0"

_HOMES = {
    "compress": "deepcomp.search",
    "Compressed": "deepcomp.search",
    "train": "deepcomp.compression",
    "prune": "deepcomp.compression",
    "quantize": "deepcomp.compression",
    "sensitivity": "deepcomp.compression",
    "PruningCallback": "deepcomp.callbacks",
    "SharingCallback": "deepcomp.callbacks",
    "load": "deepcomp.runtime",
    "export_c": "deepcomp.export",
    "export_page": "deepcomp.export",
    "check": "deepcomp.dcz.conversion",
    "save": "deepcomp.dcz.conversion",
    "to_keras": "deepcomp.dcz.conversion",
    "save_weights": "deepcomp.dcz.conversion.weights",
    "load_weights": "deepcomp.dcz.conversion.weights",
    "DataSet": "deepcomp.data",
    "Record": "deepcomp.training.record",
}

__all__ = [
    "check",
    "compress",
    "export_c",
    "export_page",
    "load",
    "load_weights",
    "prune",
    "quantize",
    "save",
    "save_weights",
    "sensitivity",
    "to_keras",
    "train",
    "Compressed",
    "DataSet",
    "Record",
    "Distillation",
    "Pruning",
    "Search",
    "SecondOrderPruning",
    "SecondOrderSharing",
    "Sharing",
    "Training",
    "PruningCallback",
    "SharingCallback",
    "DeepcompError",
    "DeepcompWarning",
    "FormatError",
    "UnsupportedLayerError",
    "DataError",
    "StageError",
    "OutputError",
    "RecipeError",
]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'deepcomp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
