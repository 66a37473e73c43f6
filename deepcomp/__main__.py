"""The command `deepcomp`: look into a `.dcz` file, run it, and convert between it and Keras's format."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deepcomp.dcz import coding, comparison, container
from deepcomp.dcz.limits import Limits
from deepcomp.dcz.network import Network
from deepcomp.errors import DataError, RecipeError, printable, shape_text
from deepcomp.experiment import command_line, report


def main(arguments: list[str] | None = None) -> None:
    """Run one command; a mistake of the user's is one line on standard error and exit status 2."""
    options = _parser().parse_args(arguments)
    with command_line.one_line_errors("deepcomp", "pip install 'deepcomp[train]'"):
        options.work(options)


def inspect(options: argparse.Namespace) -> None:
    """Print the architecture of a `.dcz` file and where every byte of it goes."""
    network, data = _load(options.file, options)
    parts = container.parts(network, container.coder_of(data))
    if options.json:
        print(json.dumps({"file": str(options.file), **report.inspection(network, parts)}, indent=1))
        return
    # Names come from the file, which may be anybody's, and go to a terminal.
    print(printable(f"{options.file}: {network.name}, coder {parts.coder}, {len(data):,} bytes\n"))
    print(printable(report.architecture_table(network)))
    print()
    print(printable(report.byte_table(parts)))
    print(f"\n{report.ratio_line(parts)}")


def diff(options: argparse.Namespace) -> None:
    """Print each difference of two `.dcz` files, one a line; exit status 1 if there is one."""
    (first, _), (second, _) = (_load(path, options) for path in (options.file, options.other))
    _print_differences(comparison.differences(first, second))
    print(f"{options.file} and {options.other} hold the same network, bit for bit.")


def verify(options: argparse.Namespace) -> None:
    """Print each difference between a `.dcz` file and a Keras file, one a line; exit status 1 if there is one."""
    from deepcomp import opening
    from deepcomp.dcz import conversion
    from deepcomp.dcz.conversion import weights

    (network, _), model = _load(options.file, options), opening.load(options.model)
    if network.is_weights_alone:
        _print_differences(weights.weight_differences(model, network, str(options.file)))
    else:
        _print_differences(comparison.differences(network, conversion.from_keras(model)))
    what = "the weights of" if network.is_weights_alone else "the network in"
    print(f"{options.file} holds {what} {options.model}, bit for bit.")


def _load(path: str, options: argparse.Namespace) -> tuple[Network, bytes]:
    """The network in a file, within the limits that the options set, and the file's bytes."""
    data = container.read(path)
    limits = Limits.of(len(data), options.max_memory, options.max_work)
    return container.loads(data, name=str(path), limits=limits), data


def _print_differences(found: list[str]) -> None:
    for line in found:
        print(printable(line))
    if found:
        sys.exit(1)


def check(options: argparse.Namespace) -> None:
    """Print every obstacle to a `.dcz` file of a Keras file, one a line; exit status 1 if there is one."""
    from deepcomp import opening
    from deepcomp.dcz import conversion

    model = opening.load(options.model)
    obstacles = conversion.check(model)
    for obstacle in obstacles:
        print(printable(str(obstacle)))
    if obstacles:
        sys.exit(1)
    print(f"{options.model} can be saved as a .dcz file.")
    _print_left_out(conversion.left_out(model))


def save(options: argparse.Namespace) -> None:
    """Write a Keras file as a `.dcz` file, the network or its weights alone."""
    from deepcomp import opening
    from deepcomp.dcz import conversion
    from deepcomp.dcz.conversion.weights import save_weights

    _check_suffix(options.output, ".dcz")
    model = opening.load(options.model)
    if options.weights_only:
        parts = save_weights(model, options.output, options.coder)
    else:
        parts = conversion.save(model, options.output, options.coder)
    print(f"{options.output}: {report.ratio_line(parts)}")
    if not options.weights_only:
        _print_left_out(conversion.left_out(model))


def to_keras(options: argparse.Namespace) -> None:
    """Write a `.dcz` file as a Keras file."""
    _check_suffix(options.output, ".keras")
    network, _ = _load(options.file, options)
    from deepcomp import files
    from deepcomp.dcz import conversion

    model = conversion.to_keras(network)
    files.write_atomically(Path(options.output), model.save)
    print(f"{options.output}: {model.count_params():,} weights")


def evaluate(options: argparse.Namespace) -> None:
    """Run a `.dcz` file on the test part of an image set: its error, images a second, and microseconds for one."""
    from deepcomp import data, runtime

    name, images, labels = data.load_test(options.data)
    engine = runtime.load(options.file, options.threads, max_memory=options.max_memory, max_work=options.max_work)
    outputs = engine(images)
    if outputs.ndim != 2 or labels.max() >= outputs.shape[1]:
        shape, classes = shape_text(engine.output_shape), labels.max() + 1
        raise DataError(f"{options.file} puts out {shape}, which does not fit the {classes} classes of {name}.")
    wrong = int(np.count_nonzero(outputs.argmax(axis=1) != labels))
    speed = report.speed(engine, images)
    print(
        f"{options.file} on {len(images):,} test images of {name}: error {100 * wrong / len(images):.2f}% ({wrong:,} "
        f"wrong)\n{speed['images_per_second']:,.0f} images a second with threads={engine.threads}; "
        f"{speed['microseconds_for_one']:,.1f} microseconds for one image alone"
    )


def predict(options: argparse.Namespace) -> None:
    """Run a `.dcz` file on images; print the class of each, or write all outputs to a file."""
    from deepcomp import data, files, runtime

    if options.output:
        _check_suffix(options.output, ".npz")
    engine = runtime.load(options.file, options.threads, max_memory=options.max_memory, max_work=options.max_work)
    outputs = engine(data.load_images(Path(options.images), options.key))
    if options.output:
        files.write_atomically(Path(options.output), lambda temporary: np.savez(temporary, outputs=outputs))
        print(f"{options.output}: outputs, {outputs.dtype} {outputs.shape}")
    elif outputs.ndim == 2:
        print("\n".join(map(str, outputs.argmax(axis=1))))
    else:
        raise DataError(f"{options.file} puts out {outputs.shape[1:]} an image, not classes: use --output FILE.npz.")


def compress(options: argparse.Namespace) -> None:
    """Find the smallest file of a Keras model whose accuracy on held-out data falls by at most the tolerance."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads it when it is imported
    from deepcomp import data, files, opening, search
    from deepcomp.experiment import recipe
    from deepcomp.training import distribute

    _check_suffix(options.out, ".dcz")
    out = Path(options.out)
    folder = Path(options.folder) if options.folder else out.with_suffix(".search")
    fields: dict[str, Any] = {}
    for setting in options.set:
        name, equals, text = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set {setting!r}: write it as field=value, like learning_rate=0.001.")
        fields[name.strip()] = recipe.parsed(text.strip())
    if options.steps is not None:
        fields["steps"] = options.steps
    distribute.make_deterministic(options.seed)
    dataset = data.load_any(options.data, seed=options.seed)
    found = search.compress(
        opening.load(options.model),
        dataset,
        options.tolerance,
        options.minutes,
        folder=folder,
        train=not options.no_training,
        seed=options.seed,
        **fields,
    )
    files.write_text(folder / "report.json", json.dumps(found.report.table(), indent=1) + "\n")
    found.report.picture(folder / "search.png")
    files.write_atomically(out, lambda temporary: Path(temporary).write_bytes(found.data))
    print(f"{found.report.ratio_line()} -> {out}; all that was tried: {folder}")


def export_c(options: argparse.Namespace) -> None:
    """Write a `.dcz` file as a header and a source file of C99."""
    from deepcomp import export

    limits = {"max_memory": options.max_memory, "max_work": options.max_work}
    found = export.export_c(options.file, options.out, options.name, options.weights, **limits)
    print(f"{found.header}, {found.source}: {found.constants:,} bytes of constants")


def demo(options: argparse.Namespace) -> None:
    """Write a `.dcz` file as one HTML page that runs it in a browser."""
    from deepcomp import export

    if options.out:
        _check_suffix(options.out, ".html")
    limits = {"max_memory": options.max_memory, "max_work": options.max_work}
    found = export.export_page(options.file, options.out, value_range=options.range, **limits)
    print(f"{found.page}: {found.bytes:,} bytes, with the {found.file_bytes:,} of {options.file}; open it in a browser")


def export(options: argparse.Namespace) -> None:
    """Write a `.dcz` file as a `.tflite` or an `.onnx` file."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow reads it when it is imported
    from deepcomp import converters

    found = converters.export(options.file, options.output)
    print(f"{options.output}: {found.bytes:,} bytes, {found.zipped:,} zipped; {options.file}: {found.own:,} bytes")


def profile(options: argparse.Namespace) -> None:
    """Run a `.dcz` file on random inputs: the microseconds of each layer, as a table and as bars."""
    from deepcomp import runtime

    if options.picture:
        _check_suffix(options.picture, ".png")
    engine = runtime.load(options.file, 1, max_memory=options.max_memory, max_work=options.max_work)
    found = engine.profile(options.batch)
    print(found)
    each = "" if options.batch == 1 else f", {found.microseconds / options.batch:,.1f} for each example"
    print(f"\n{options.file}, batch {options.batch}, one thread: a call takes {found.microseconds:,.1f} us{each}")
    if options.picture:
        from deepcomp.experiment import figures

        title = f"{Path(options.file).name}: {found.microseconds:,.1f} us for a batch of {options.batch}, one thread"
        figures.profile(found.layers, options.picture, title=printable(title))
        print(f"{options.picture}: the layers as bars")


def warm(options: argparse.Namespace) -> None:
    """Compile the engine ahead of time, such as in the image of a container."""
    from deepcomp.runtime.warming import warm as compile_all

    seconds = compile_all()
    print(f"The engine is compiled: {seconds:.1f} s.")


def _parser() -> argparse.ArgumentParser:
    parser = command_line.Parser(prog="deepcomp", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    one = _add_reader(commands, inspect, "print the architecture and where every byte goes")
    one.add_argument("--json", action="store_true", help="for programs: all of it as JSON")
    one = _add_reader(commands, diff, "list how two .dcz files differ")
    one.add_argument("other", metavar="OTHER.dcz")
    one = _add_reader(commands, verify, "see that a .dcz file holds what a Keras file does")
    one.add_argument("model", metavar="MODEL.keras")
    one = commands.add_parser("compress", help="find the smallest file of a Keras model within a limit of accuracy")
    one.add_argument("model", metavar="MODEL", help="a .keras or .h5 file, or a SavedModel folder of Keras 2")
    one.add_argument("--data", metavar="SOURCE", default="auto", help="mnist, mnist-5k, ... or FILE.npz with x_train")
    one.add_argument("--out", metavar="FILE.dcz", required=True)
    points = "percentage points of accuracy that may be lost on held-out examples (default: 0)"
    one.add_argument("--tolerance", metavar="POINTS", type=float, default=0.0, help=points)
    one.add_argument("--minutes", metavar="N", type=float, default=30.0, help="time for it (default: 30)")
    one.add_argument("--steps", metavar="N", type=int, help="steps of training in place of a time: reproducible")
    one.add_argument("--no-training", action="store_true", help="by some hundred inputs alone; they need no labels")
    one.add_argument("--seed", metavar="N", type=int, default=0, help="default: 0")
    one.add_argument("--folder", metavar="DIR", help="where candidates are kept (default: FILE.search)")
    text = "a field of docs/options.md, like flip=true, shift=2, batch=64, metric=auc"
    one.add_argument("--set", metavar="FIELD=V", action="append", default=[], help=text)
    one.set_defaults(work=compress)
    one = commands.add_parser("check", help="list what keeps a Keras file from being saved as a .dcz file")
    one.add_argument("model", metavar="MODEL.keras")
    one.set_defaults(work=check)
    one = commands.add_parser("save", help="write a Keras file as a .dcz file")
    one.add_argument("model", metavar="MODEL", help="a .keras or .h5 file, or a SavedModel folder of Keras 2")
    one.add_argument("output", metavar="FILE.dcz")
    one.add_argument("--coder", choices=coding.CODERS, default="range", help="default: range")
    one.add_argument("--weights-only", action="store_true", help="for deepcomp.load_weights: any model will do")
    one.set_defaults(work=save)
    one = _add_reader(commands, to_keras, "write a .dcz file as a Keras file")
    one.add_argument("output", metavar="MODEL.keras")
    one = _add_reader(commands, evaluate, "run a .dcz file on test images: error and speed")
    one.add_argument("--data", metavar="SOURCE", default="auto", help="auto, mnist, mnist-5k, ... or FILE.npz")
    _add_threads(one)
    one = commands.add_parser("export", help="write a network for LiteRT or ONNX engines")
    one.add_argument("file", metavar="FILE.dcz")
    one.add_argument("output", metavar="FILE", help="FILE.tflite or FILE.onnx; the latter needs the package tf2onnx")
    one.set_defaults(work=export)
    one = _add_reader(commands, export_c, "write a network as plain C, for a microcontroller")
    one.add_argument("--out", metavar="DIR", default=".", help="where NAME.h and NAME.c go (default: here)")
    one.add_argument("--name", default="net", help="of the files and of the function NAME_run (default: net)")
    text = "direct: kernels are read as they lie (default); coded: bytes that are decoded on each run"
    one.add_argument("--weights", metavar="HOW", default="direct", help=text)
    one = _add_reader(commands, demo, "write a page that runs a network in a browser, to draw its input")
    one.add_argument("--out", metavar="FILE.html", help="default: beside FILE.dcz")
    text = "the values of a black and a white pixel (default: 0 1, or 0 255 where the network begins with a Rescaling)"
    one.add_argument("--range", metavar=("BLACK", "WHITE"), nargs=2, type=float, help=text)
    one = _add_reader(commands, profile, "time the layers of a .dcz file")
    one.add_argument("--batch", metavar="N", type=int, default=1, help="examples of a call (default: 1)")
    one.add_argument("--picture", metavar="FILE.png", help="draw the times as bars too")
    one = commands.add_parser("warm", help="compile the engine ahead of time, once for a machine")
    one.set_defaults(work=warm)
    one = _add_reader(commands, predict, "run a .dcz file on images, and print the class of each")
    one.add_argument("images", metavar="IMAGES.npz")
    one.add_argument("--key", help="the array in IMAGES.npz (default: its only one, or x_test)")
    one.add_argument("--output", metavar="FILE.npz", help="write all outputs there instead")
    _add_threads(one)
    return parser


def _add_reader(commands: Any, work: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
    """A command of the name of the function that does its work, which reads a `.dcz` file within limits."""
    one = commands.add_parser(work.__name__.replace("_", "-"), help=text)
    one.add_argument("file", metavar="FILE.dcz")
    of_size = "(default: by the file's size)"
    one.add_argument("--max-memory", metavar="BYTES", type=int, help=f"refuse a file that needs more {of_size}")
    one.add_argument("--max-work", metavar="N", type=int, help=f"the most operations for an image {of_size}")
    one.set_defaults(work=work)
    return one


def _add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", metavar="N", type=int, help="default: one for each core")


def _print_left_out(names: list[str]) -> None:
    if names:
        print(printable(f"Left out, because they act in training alone: {', '.join(names)}"))


def _check_suffix(path: str, suffix: str) -> None:
    if not path.endswith(suffix):
        raise RecipeError(f"The output {path} must end in {suffix}.")


if __name__ == "__main__":
    main()
