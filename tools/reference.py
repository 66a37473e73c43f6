"""The reference pages: docs/options.md from the option classes, docs/api/ from the docstrings, with pdoc.

python tools/reference.py --out docs
"""

import argparse
import os
import pkgutil
from collections.abc import Sequence
from pathlib import Path

import deepcomp
from deepcomp import files, options

# Not for callers: code for compilers, private API of Keras, and the command, which has --help.
LEFT_OUT = ("__main__", "keras_private", "runtime.cpu", "runtime.cuda", "runtime.kernels", "runtime.vectors")


def api_pages(folder: Path) -> None:
    """Write an HTML page for the package and for each of its modules that is not `LEFT_OUT`."""
    import pdoc

    for name in deepcomp.__all__:  # pdoc does not find names that are loaded when they are first used.
        setattr(deepcomp, name, getattr(deepcomp, name))
    inside = [f"deepcomp.{module.name}" for module in pkgutil.iter_modules(deepcomp.__path__)]
    pdoc.render.configure(docformat="markdown", search=False)
    pdoc.pdoc("deepcomp", *inside, *(f"!deepcomp.{name}" for name in LEFT_OUT), output_directory=folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("docs"), help="default: docs")
    folder = parser.parse_args(arguments).out
    files.write_text(folder / "options.md", options.reference_page())
    api_pages(folder / "api")


if __name__ == "__main__":
    main()
