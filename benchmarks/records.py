"""The four stages of several recipes and seeds: what each run reached, and the median; `make records`, or

    python benchmarks/records.py [--data mnist] [--recipes NAME ...] [--seeds 0 1 2] [--only-table]
    python benchmarks/records.py --recipes resnet-8 resnet-8-small --data CIFAR10.npz --model FILE.h5

What is done is skipped and what was interrupted goes on; a stage that fails is named, and the other runs go on. A
finished run counts if it followed its recipe as it is now, on the same data, and if its file, loaded once more, has the
size and the test error that its report says. Whatever was chosen to run, all finished runs of the records of that data
set, seeds 0, 1 and 2, go into the table of docs/records.md, and the file of the median size of each recipe goes into
models/. The row of a recipe without a run stays as it is.

Exit status: 0, or 1 where a stage failed or a finished run does not count, 2 for a mistake, or 130 where interrupted.
"""

import argparse
import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median_high

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np

import deepcomp
from deepcomp import data, files, tables
from deepcomp.errors import DeepcompError, StageError
from deepcomp.experiment import recipe as recipes
from deepcomp.experiment.recipe import Recipe
from deepcomp.experiment.run_folder import STAGES, Run

ROOT = Path(__file__).resolve().parent.parent
MNIST = (
    *("lenet-5", "lenet-5-small", "lenet-300-100", "reference", "lenet-5-plain", "lenet-300-100-plain"),
    *("lenet-5-fast", "reference-fast", "lenet-300-100-fast"),
)
CIFAR10 = ("resnet-8", "resnet-8-small")
RECIPES = (*MNIST, *CIFAR10)
SEEDS = (0, 1, 2)
BEGIN, END = "<!-- records -->\n", "<!-- end of records -->"
_ROW = re.compile(r"\| `([\w-]+?)(?:\.dcz)?` \|")  # of a table of records, with the recipe's name
FIGURES = ("full", "pruned", "error", "left", "values", "bytes", "minutes")

Rows = dict[str, list[dict]]  # the finished runs of each recipe, in the order of their seeds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", metavar="SOURCE", default="mnist", help="mnist, or FILE.npz, but not auto")
    parser.add_argument("--recipes", metavar="NAME", nargs="+", default=MNIST, help="default: those of MNIST")
    parser.add_argument("--model", metavar="NAME|FILE", help="the network to begin with; default: that of the recipe")
    parser.add_argument("--seeds", metavar="N", type=int, nargs="+", default=SEEDS, help="default: 0 1 2")
    parser.add_argument("--runs", metavar="DIR", type=Path, default=Path("runs/records"), help="default: runs/records")
    parser.add_argument("--out", metavar="DIR", type=Path, default=ROOT, help="where docs/records.md and models/ are")
    parser.add_argument("--only-table", action="store_true", help="train nothing: what is finished")
    options = parser.parse_args()
    if options.data == "auto":
        parser.error("--data auto may be one set today and another tomorrow: name one, such as mnist.")
    try:
        return work(options)
    except DeepcompError as error:
        print(f"records.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("records.py: interrupted; the same command goes on from the last step saved.", file=sys.stderr)
        return 130


def work(options: argparse.Namespace) -> int:
    failures = []
    for seed in () if options.only_table else options.seeds:
        for name in options.recipes:
            failure = run_stages(name, options.data, options.model, seed, options.runs / f"{name}-{seed}")
            failures += [failure] if failure else []
    alike = CIFAR10 if set(options.recipes) & set(CIFAR10) else MNIST
    names, seeds = dict.fromkeys([*alike, *options.recipes]), sorted({*SEEDS, *options.seeds})
    wanted = [asked(name, seed, options.data, options.model) for name in names for seed in seeds]
    rows, refused = collect(options.runs, wanted)
    shown = chosen(rows, options.recipes, options.seeds)
    print(f"\n{run_tables(shown)}" if shown else f"No finished run in {options.runs}.")
    if records := chosen(rows, RECIPES, SEEDS):
        publish(records, options.runs, options.out)
    for complaint in (complaints := failures + refused):
        print(f"records.py: {complaint}", file=sys.stderr)
    return int(bool(complaints))


def run_stages(name: str, source: str, model: str | None, seed: int, folder: Path) -> str | None:
    """Run the stages of one recipe and seed; returns a line about the stage that failed, or None."""
    first = ["train_full.py", "--recipe", name, "--data", source, "--seed", str(seed)]
    first += ["--model", model] if model else []
    for script, *flags in (first, ["prune.py"], ["quantize.py"], ["deploy.py"]):
        print(f"{folder}: {script}", flush=True)
        status = subprocess.run([sys.executable, ROOT / script, *flags, "--run", folder], check=False).returncode
        if status:
            return f"{folder}: {script} failed with exit status {status}."
    return None


def collect(folder: Path, wanted: Iterable[Recipe]) -> tuple[Rows, list[str]]:
    """The finished runs of recipes of the same data that count, and a line for each that does not."""
    rows, refused, images, labels = {}, [], None, None
    for recipe in wanted:
        run = Run(folder / f"{recipe.name}-{recipe.seed}")
        if not run.stage("deployed").done:
            continue
        if images is None:
            _, images, labels = data.load_test(recipe.data.source)
        try:
            row = row_of(run, recipe, images, labels)
        except DeepcompError as error:
            refused.append(f"{run.folder} is left out: {error}")
        else:
            rows.setdefault(recipe.name, []).append(row)
    return rows, refused


def chosen(rows: Rows, names: Sequence[str], seeds: Sequence[int]) -> Rows:
    """The runs of these recipes and seeds; a recipe without one is left out."""
    found = {name: [row for row in rows.get(name, []) if row["seed"] in seeds] for name in names}
    return {name: runs for name, runs in found.items() if runs}


def asked(name: str, seed: int, source: str, model: str | None = None) -> Recipe:
    """A recipe as it is now, for this seed, data and network, as in a run folder."""
    recipe = recipes.load(recipes.find(name))
    chosen_data = dataclasses.replace(recipe.data, source=source)
    network = dataclasses.replace(recipe.model, name=model) if model else recipe.model
    return recipes.with_absolute_paths(dataclasses.replace(recipe, seed=seed, data=chosen_data, model=network))


def row_of(run: Run, recipe: Recipe, images: np.ndarray, labels: np.ndarray) -> dict:
    """What a finished run reached: errors and weights left in percent, sizes in bytes.

    Raises `StageError` where the run followed another recipe, or where its file is not what its report says.
    """
    if changes := recipes.differences(recipes.load(run.recipe_path), recipe):
        raise StageError(f"it was made with {changes[0]}. Redo it: train_full.py --run {run.folder} --force")
    full, pruned, quantized, deployed = (run.stage(name).load_record() for name in STAGES)
    path = run.stage("deployed").file_path
    outputs = deepcomp.load(path)(images)
    found = (path.stat().st_size, round(100 * float(np.mean(outputs.argmax(axis=1) != labels)), 4))
    if found != (reported := (deployed["file_bytes"], deployed["test_error"])):
        raise StageError(
            f"its file has {found[0]:,} bytes and {found[1]}% error, but its report says {reported[0]:,} and "
            f"{reported[1]}%. Redo it: deploy.py --run {run.folder} --force"
        )
    return {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "training": protocol(recipe.data.shift, recipe.data.flip, recipe.data.rotate),
        "full": full["test_error"],
        "pruned": pruned["test_error"],
        "error": found[1],
        "left": 100 * sum(x["nonzero"] for x in quantized["layers"]) / sum(x["weights"] for x in quantized["layers"]),
        "values": max(layer["centroids"] for layer in quantized["layers"]),
        "bytes": found[0],
        "dense_bytes": deployed["dense_bytes"],
        "ratio": deployed["dense_bytes"] / found[0],
        "minutes": sum(record["seconds"] for record in (full, pruned, quantized, deployed)) / 60,
    }


def middle(rows: Sequence[Mapping]) -> dict:
    """The median of each figure by itself, of an even number the higher; the ratio is that of the median bytes."""
    found = {key: median_high(row[key] for row in rows) for key in FIGURES}
    return {**rows[0], **found, "seed": "median", "ratio": rows[0]["dense_bytes"] / found["bytes"]}


def median_run(rows: Sequence[Mapping]) -> Mapping:
    """The run whose file has the median size, of an even number the larger, of equal ones the first."""
    size = middle(rows)["bytes"]
    return next(row for row in rows if row["bytes"] == size)


def protocol(shift: int, flip: bool = False, rotate: float = 0.0) -> str:
    """How the images of training were augmented."""
    ways = [f"random shifts of {shift} pixel{'s' * (shift > 1)}"] if shift else []
    ways += [f"rotations of up to {rotate:g} degrees"] if rotate else []
    return ", ".join([*ways, *["flips"] * flip]) or "plain"


def data_of(name: str) -> tuple[str, str]:
    """The data of a recipe of the records, and what `deepcomp evaluate --data` takes for it."""
    return ("CIFAR-10 (JPEG copy)", "CIFAR10.npz") if name in CIFAR10 else ("MNIST", "mnist")


def run_tables(rows: Rows) -> str:
    """Every run and the medians as text, a table for each protocol of training."""
    columns = {"recipe": "recipe", "seed": "seed", "full": "full %:.2f", "pruned": "pruned %:.2f"}
    columns |= {"error": "file %:.2f", "left": "left %:.2f", "values": "values", "bytes": "bytes:,"}
    columns |= {"ratio": "ratio:.0f", "minutes": "minutes:.1f"}
    shown = ["Test errors of the full and the pruned network and of the file; weights left; values a layer."]
    for training in sorted({runs[0]["training"] for runs in rows.values()}, reverse=True):
        lines = [line for runs in rows.values() if runs[0]["training"] == training for line in (*runs, middle(runs))]
        shown.append(f"Training: {training}\n\n{tables.table(lines, columns)}")
    return "\n\n".join(shown)


def records_table(rows: Rows) -> str:
    """The medians in Markdown, every seed in brackets, a row for each recipe."""
    lines = [
        "| recipe | data | training | seeds | error of the full network, % | error of the file, % | file, bytes "
        "| ratio | minutes |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in rows.items():
        known = middle(runs)

        def cell(key: str, form: str, mark: str = "", runs=runs, known=known) -> str:
            return f"{mark}{known[key]:{form}}{mark} ({', '.join(format(row[key], form) for row in runs)})"

        cells = [f"`{name}`", data_of(name)[0], known["training"], ", ".join(str(row["seed"]) for row in runs)]
        cells += [cell("full", ".2f"), cell("error", ".2f", "**"), cell("bytes", ",")]
        cells += [f"**{known['ratio']:.0f}x**", f"{known['minutes']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def models_table(rows: Rows) -> str:
    """The files of `models/` in Markdown, each with the command that checks it."""
    lines = [
        "| file | data | bytes | ratio | error, % | training | seed | check |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in rows.items():
        row, (title, source) = median_run(runs), data_of(name)
        lines.append(
            f"| `{name}.dcz` | {title} | {row['bytes']:,} | {row['ratio']:.0f}x | {row['error']:.2f} "
            f"| {row['training']} | {row['seed']} | `deepcomp evaluate models/{name}.dcz --data {source}` |"
        )
    return "\n".join(lines)


def splice(text: str, table: str, name: str = "the text") -> str:
    """Put a table between the two markers of a text; raises `StageError` unless each is there once, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise StageError(f"{name} must have the lines {BEGIN.strip()} and {END} once each, in this order.")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table}\n\n{END}{rest.partition(END)[2]}"


def completed(text: str, table: str) -> str:
    """A table, in the records' order, with the rows of other recipes that stand between the markers of a text."""
    heading, rule, *new = table.splitlines()
    old = text.partition(BEGIN)[2].partition(END)[0].splitlines()
    shown = {found[1]: line for line in (*old, *new) if (found := _ROW.match(line))}
    return "\n".join([heading, rule, *(shown[name] for name in RECIPES if name in shown)])


def publish(rows: Rows, runs: Path, out: Path) -> None:
    """Write the tables of `docs/records.md` and `models/README.md`, and each recipe's file of the median size."""
    pages = {out / "docs" / "records.md": records_table(rows), out / "models" / "README.md": models_table(rows)}
    texts = {}
    for path, table in pages.items():  # Both markers are seen to before anything is written.
        if not path.is_file():
            raise StageError(f"No {path}: it holds the two markers that the table goes between.")
        text = path.read_bytes().decode()
        texts[path] = splice(text, completed(text, table), str(path))
    for name, found in rows.items():
        file = Run(runs / f"{name}-{median_run(found)['seed']}").stage("deployed").file_path
        _write(out / "models" / f"{name}.dcz", file.read_bytes())
    for path, text in texts.items():
        _write(path, text.encode())
    print(f"\nWritten: {', '.join(str(path) for path in pages)}, and {len(rows)} files in {out / 'models'}.")


def _write(path: Path, content: bytes) -> None:
    files.write_atomically(path, lambda temporary: Path(temporary).write_bytes(content))


if __name__ == "__main__":
    sys.exit(main())
