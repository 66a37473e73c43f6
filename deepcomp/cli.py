"""What the stage scripts share: flags, the run they belong to, one-line errors."""

import argparse
import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deepcomp import data, report
from deepcomp import recipe as recipes
from deepcomp.checkpoint import SCRIPTS, STAGES, Run, Stage, write_text
from deepcomp.data import ImageSet
from deepcomp.errors import DeepcompError, StageError
from deepcomp.recipe import Recipe

SECTIONS = {
    "full": ("data", "model", "full"),
    "pruned": ("pruned",),
    "quantized": ("quantized",),
    "deployed": (),
}


@dataclass(frozen=True)
class Job:
    """What a stage script works on."""

    recipe: Recipe
    run: Run
    stage: Stage
    tensorboard: Path | None

    def images(self) -> ImageSet:
        """The run's images. What `auto` turned out to be is written down, for the stages to come."""
        choice = self.recipe.data
        images = data.load(choice.source, validation=choice.validation, seed=self.recipe.seed)
        if choice.source == "auto":
            fixed = dataclasses.replace(self.recipe, data=dataclasses.replace(choice, source=images.name))
            write_text(self.run.recipe_path, recipes.dumps(fixed))
        return images

    def finish(self, model, images: ImageSet, history: dict, test_accuracy: float) -> None:
        """Keep a trained network with its record, and print what came out."""
        from deepcomp import models

        record = {
            "stage": self.stage.name,
            "recipe": self.recipe.name,
            "seed": self.recipe.seed,
            "data": images.summary(),
            "steps": history["step"][-1],
            "seconds": round(self.stage.seconds, 1),
            "test_error": round(100 * (1 - test_accuracy), 4),
            "test_accuracy": test_accuracy,
            "parameters": int(model.count_params()),
            "history": history,
            "layers": report.layers(models.kernel_values(model)),
            "versions": report.versions(),
        }
        self.stage.finish(record, model)
        print(report.layer_table(record["layers"]))
        print(
            f"{self.stage.name}: test error {record['test_error']:.2f}% on {len(images.x_test):,} images of "
            f"{images.name}, {record['seconds']:.0f} s -> {self.stage.folder}"
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(name: str, description: str, work: Callable[[Job], None]) -> None:
    """Parse the flags of stage `name`, do `work` unless it is done, and end the process.

    A `DeepcompError` becomes one line on standard error and exit status 2, Ctrl-C exit status 130.
    """
    # TensorFlow reads this when it is imported, which `work` does.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    options = _parse(name, description)
    try:
        job = _begin_full(options) if name == "full" else _begin_later(name, options)
        if job.stage.done:
            print(f"{name}: done already in {job.stage.folder} (--force redoes it).")
        else:
            with _quiet():
                from deepcomp import training

                scope = training.start()
            with scope.scope():
                work(job)
    except DeepcompError as error:
        sys.exit(_one_line(name, error))
    except KeyboardInterrupt:
        print(
            f"\n{SCRIPTS[name]}: interrupted; the same command goes on from the last step saved.",
            file=sys.stderr,
        )
        sys.exit(130)


@contextlib.contextmanager
def _quiet():
    """Keep back what TensorFlow's libraries write to standard error as they start, unless the start fails.

    They write before their log levels take effect, so no setting of theirs can do it.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception as error:
            if not isinstance(error, DeepcompError):
                held.seek(0)
                os.write(kept, held.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _one_line(name: str, error: DeepcompError) -> int:
    print(f"{SCRIPTS[name]}: {' '.join(str(error).split())}", file=sys.stderr)
    return 2


def _parse(name: str, description: str) -> argparse.Namespace:
    parser = _Parser(prog=SCRIPTS[name], description=description)
    parser.add_argument("--run", metavar="DIR", help="run folder (default: runs/<recipe>)")
    if name == "full":
        parser.add_argument("--recipe", metavar="NAME|FILE", help="recipe name or .toml file (default: reference)")
        parser.add_argument("--data", metavar="SOURCE", help="auto, mnist, mnist-5k, fashion-mnist or FILE.npz")
        parser.add_argument("--model", metavar="NAME|FILE", help="reference, lenet-300-100, lenet-5 or FILE.keras")
        parser.add_argument("--seed", metavar="N", type=int, help="seed of weights, shuffling and k-means")
    else:
        parser.add_argument(
            "--recipe", metavar="NAME", default="reference", help="the run's recipe, if no --run is given"
        )
    if SECTIONS[name]:
        parser.add_argument(
            "--set",
            metavar="S.F=V",
            action="append",
            default=[],
            help=f"a recipe field, like {SECTIONS[name][-1]}.steps=500",
        )
        parser.add_argument("--tensorboard", action="store_true", help="write scalars for TensorBoard")
    parser.add_argument("--force", action="store_true", help="redo the stage; later stages are removed")
    return parser.parse_args()


def _begin_full(options: argparse.Namespace) -> Job:
    """Resolve the recipe and claim the run folder for it."""
    run = Run(options.run) if options.run else None
    if run and run.recipe_path.is_file() and not options.recipe:
        wanted = recipes.load(run.recipe_path)
    else:
        wanted = recipes.load(recipes.find(options.recipe or "reference"))
    wanted = recipes.override(wanted, options.set)
    if options.seed is not None:
        wanted = dataclasses.replace(wanted, seed=options.seed)
    if options.data:
        wanted = dataclasses.replace(
            wanted, data=dataclasses.replace(wanted.data, source=_absolute(options.data, ".npz"))
        )
    if options.model:
        model = dataclasses.replace(wanted.model, name=_absolute(options.model, ".keras"))
        wanted = dataclasses.replace(wanted, model=model)
    run = run or Run(Path("runs") / wanted.name)
    if run.recipe_path.is_file() and run.stage("full").begun and not options.force:
        present = recipes.load(run.recipe_path)
        if wanted.data.source == "auto":  # The run folder says what `auto` turned out to be.
            wanted = dataclasses.replace(wanted, data=dataclasses.replace(wanted.data, source=present.data.source))
        _refuse_changes(run, present, wanted)
    return _claim(run, "full", wanted, options)


def _begin_later(name: str, options: argparse.Namespace) -> Job:
    """Read the run's recipe and see that the stages before are done."""
    run = Run(options.run or Path("runs") / options.recipe)
    if not run.recipe_path.is_file():
        raise StageError(f"No run in {run.folder}: run {SCRIPTS['full']} first.")
    for earlier in STAGES[: STAGES.index(name)]:
        run.stage(earlier).require()
    present = recipes.load(run.recipe_path)
    settings = getattr(options, "set", [])
    for setting in settings:
        if setting.partition(".")[0] not in SECTIONS[name]:
            raise StageError(f"--set {setting!r}: {SCRIPTS[name]} sets fields of {', '.join(SECTIONS[name])} alone.")
    wanted = recipes.override(present, settings)
    if run.stage(name).begun and not options.force:
        _refuse_changes(run, present, wanted)
    return _claim(run, name, wanted, options)


def _claim(run: Run, name: str, wanted: Recipe, options: argparse.Namespace) -> Job:
    """Write the recipe down, and drop whatever was made with another one or is to be redone."""
    stage = run.stage(name)
    text = recipes.dumps(wanted)
    changed = not run.recipe_path.is_file() or run.recipe_path.read_text(encoding="utf-8") != text
    if options.force or (changed and not stage.done):
        run.discard_from(name)
    if changed:
        write_text(run.recipe_path, text)
    stage.sweep()
    folder = stage.tensorboard_path if getattr(options, "tensorboard", False) else None
    return Job(wanted, run, stage, folder)


def _refuse_changes(run: Run, present: Recipe, wanted: Recipe) -> None:
    if changes := recipes.differences(present, wanted):
        raise StageError(
            f"{run.folder} holds a run with {changes[0]}: choose another --run, or redo this one with --force."
        )


def _absolute(source: str, suffix: str) -> str:
    """A file's path made absolute, so that later stages find it from any folder; a name as it is."""
    return str(Path(source).resolve()) if source.endswith(suffix) else source
