"""The command `deepcomp`: look into a `.dcz` file, and convert between it and Keras's format."""

import argparse
import sys
from pathlib import Path

from deepcomp import coding, container, report
from deepcomp.errors import DeepcompError, RecipeError


def main(arguments: list[str] | None = None) -> None:
    """Run one command; a `DeepcompError` becomes one line on standard error and exit status 2."""
    options = _parser().parse_args(arguments)
    try:
        options.work(options)
    except DeepcompError as error:
        print(f"deepcomp: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        print(f"deepcomp: this needs the package {error.name}: pip install 'deepcomp[train]'.", file=sys.stderr)
        sys.exit(2)


def inspect(options: argparse.Namespace) -> None:
    """Print the architecture of a `.dcz` file and where every byte of it goes."""
    data = container.read(options.file)
    network = container.loads(data, name=str(options.file))
    parts = container.parts(network, container.coder_of(data))
    print(f"{options.file}: {network.name}, coder {parts.coder}, {len(data):,} bytes\n")
    print(report.architecture_table(network))
    print()
    print(report.byte_table(parts))
    print(f"\n{report.ratio_line(parts)}")


def save(options: argparse.Namespace) -> None:
    """Write a Keras file as a `.dcz` file."""
    from deepcomp import exchange, models

    _check_suffix(options.output, ".dcz")
    parts = exchange.save(models.load(options.model), options.output, options.coder)
    print(f"{options.output}: {report.ratio_line(parts)}")


def to_keras(options: argparse.Namespace) -> None:
    """Write a `.dcz` file as a Keras file."""
    _check_suffix(options.output, ".keras")
    network = container.load(options.file)
    from deepcomp import exchange, files

    model = exchange.to_keras(network)
    files.write_atomically(Path(options.output), model.save)
    print(f"{options.output}: {model.count_params():,} weights")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"deepcomp: {message} (see deepcomp --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="deepcomp", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = commands.add_parser("inspect", help="print the architecture and where every byte goes")
    one.add_argument("file", metavar="FILE.dcz")
    one.set_defaults(work=inspect)
    one = commands.add_parser("save", help="write a Keras file as a .dcz file")
    one.add_argument("model", metavar="MODEL.keras")
    one.add_argument("output", metavar="FILE.dcz")
    one.add_argument("--coder", choices=coding.CODERS, default="range", help="default: range")
    one.set_defaults(work=save)
    one = commands.add_parser("to-keras", help="write a .dcz file as a Keras file")
    one.add_argument("file", metavar="FILE.dcz")
    one.add_argument("output", metavar="MODEL.keras")
    one.set_defaults(work=to_keras)
    return parser


def _check_suffix(path: str, suffix: str) -> None:
    if not path.endswith(suffix):
        raise RecipeError(f"The output {path} must end in {suffix}.")


if __name__ == "__main__":
    main()
