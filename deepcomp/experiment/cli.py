"""What the stage scripts share: flags, the run they belong to, one-line errors."""

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcomp import data
from deepcomp.data import DataSet
from deepcomp.dcz import coding
from deepcomp.errors import DeepcompError, RecipeError, StageError
from deepcomp.experiment import command_line, report
from deepcomp.experiment import recipe as recipes
from deepcomp.experiment.recipe import Recipe
from deepcomp.experiment.run_folder import SCRIPTS, STAGES, Run, Stage
from deepcomp.options import Training

if TYPE_CHECKING:
    from deepcomp.training.record import Record

# The sections of a recipe that a later stage may set; the first stage sets any.
SECTIONS = {"full": ("full",), "pruned": ("search", "pruned"), "quantized": ("quantized",), "deployed": ()}


@dataclass(frozen=True)
class Job:
    """What a stage script works on."""

    recipe: Recipe
    run: Run
    stage: Stage
    tensorboard: Path | None
    coder: str

    def data(self) -> DataSet:
        """What the run learns from. What `auto` turned out to be is written down, for the stages to come."""
        choice = self.recipe.data
        dataset = data.load(choice.source, validation=choice.validation, seed=self.recipe.seed)
        if choice.source == "auto":
            fixed = dataclasses.replace(self.recipe, data=dataclasses.replace(choice, source=dataset.name))
            self.stage.recipe_text = recipes.dumps(fixed)
        return dataset

    def training(self) -> Training:
        """How the stage trains; its teacher, if it has one, is the run's full network."""
        how = self.recipe.training(self.stage.name)
        if self.stage.name == "full" or not how.distillation.weight:
            return how
        teacher = self.run.stage("full").load_model()
        return dataclasses.replace(how, distillation=dataclasses.replace(how.distillation, teacher=teacher))

    def record(self) -> "Record":
        """What the library keeps of the stage's work; its state goes into the run folder."""
        from deepcomp.training.record import Record

        return Record(checkpoint=self.stage, tensorboard=self.tensorboard)

    def searched(self, search: Callable[..., Any], data: DataSet, record: "Record") -> Any:
        """What a search, `search.prune` or `search.compress`, makes of the run's full network."""
        from deepcomp.training.record import continued

        full, how = self.run.stage("full").load_model(), self.recipe.search
        options = {"tolerance": how.tolerance, "search": how.search, "training": self.training()}
        found = search(full, data, **options, folder=self.stage.begin_search(), record=record)
        if self.stage.name == "quantized":  # The search went on from that of the stage before.
            record.history = continued(record.history, self.run.stage("pruned").load_record()["steps"])
        return found

    def finish(self, model, dataset: DataSet, record: "Record") -> None:
        """Test a network, keep it with its record, and print what came out."""
        from deepcomp.training import losses, predict

        task, dataset = losses.task_of(model, model, dataset, self.recipe.testing(self.stage.name))
        tested = task.measured(predict.predictor(model, scale=bool(dataset.scale)), dataset.test)
        accuracy = next((value for name, value in tested.items() if "accuracy" in name), None)
        written = {
            "stage": self.stage.name,
            "recipe": self.recipe.name,
            "model": self.recipe.model.name,
            "seed": self.recipe.seed,
            "data": dataset.summary(),
            "loss": task.description,
            "steps": record.history["step"][-1],
            "seconds": round(self.stage.seconds, 1),
            "test_error": None if accuracy is None else round(100 * (1 - accuracy), 4),
            "test_accuracy": accuracy,
            "test": tested,
            "parameters": int(model.count_params()),
            "history": record.history,
            "layers": record.layers,
            "versions": report.versions(),
            **({"sparsities": record.sparsities} if record.sparsities else {}),
        }
        self.stage.finish(written, model)
        reached = f"test error {written['test_error']:.2f}%" if accuracy is not None else report.measures_line(tested)
        print(
            f"{self.stage.name}: {reached} on {len(dataset.test):,} examples of {dataset.name}, "
            f"{written['seconds']:.0f} s -> {self.stage.folder}"
        )


def main(name: str, description: str, work: Callable[[Job], None], scan: Callable[[Job], None] | None = None) -> None:
    """Parse the flags of stage `name`, do `work` unless it is done, and end the process.

    With the flag --scan, which there is where there is a `scan`, do that instead. A `DeepcompError` becomes one line on
    standard error and exit status 2, Ctrl-C exit status 130.
    """
    # TensorFlow reads this when it is imported, which `work` does.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    options = _parse(name, description, scan is not None)
    if options.scan:
        work = scan
    then = "" if options.scan else "; the same command, without --force, goes on from the last step saved"
    run = Run(options.run or Path("runs") / Path(options.recipe or recipes.DEFAULT).stem)
    with (
        command_line.one_line_errors(SCRIPTS[name], "pip install -e '.[train]'", f"interrupted{then}"),
        run.locked(shared="TF_CONFIG" in os.environ),
    ):
        _run(name, options, work, run)


def _run(name: str, options: argparse.Namespace, work: Callable[[Job], None], run: Run) -> None:
    job = _begin(name, options, run)
    done = job.stage.done and not options.force and not options.scan
    if done and "TF_CONFIG" not in os.environ:  # Other workers may be waiting for this one.
        print(f"{name}: done already in {job.stage.folder} (--force redoes it).")
        return
    if "TF_CONFIG" in os.environ:
        print(f"{name}: waiting for the other workers of TF_CONFIG", flush=True)
    with _quiet():
        from deepcomp.training import distribute

        scope = distribute.start()
    with scope.scope():
        if distribute.agreed(done):
            print(f"{name}: done already in {job.stage.folder} (--force redoes it).")
        else:
            work(job)


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


def _parse(name: str, description: str, may_scan: bool) -> argparse.Namespace:
    parser = command_line.Parser(prog=SCRIPTS[name], description=description)
    parser.add_argument("--run", metavar="DIR", help="run folder (default: runs/<recipe>)")
    if name == "full":
        parser.add_argument(
            "--recipe", metavar="NAME|FILE", help=f"recipe name or .toml file (default: {recipes.DEFAULT})"
        )
        parser.add_argument("--data", metavar="SOURCE", help="auto, mnist, mnist-5k, fashion-mnist or FILE.npz")
        parser.add_argument(
            "--model", metavar="NAME|FILE", help="reference, lenet-300-100, lenet-5, resnet-8 or a model file"
        )
        text = "have deploy.py write the weights alone, of a network that no file holds as a whole"
        parser.add_argument("--weights-only", action="store_true", help=text)
        parser.add_argument("--seed", metavar="N", type=int, help="seed of weights, shuffling and k-means")
    else:
        parser.add_argument("--recipe", metavar="NAME", help="names the run folder where --run does not")
    if SECTIONS[name]:
        parser.add_argument(
            "--set",
            metavar="S.F=V",
            action="append",
            default=[],
            help=f"a recipe field, like {SECTIONS[name][-1]}.steps=500",
        )
        parser.add_argument("--tensorboard", action="store_true", help="write scalars for TensorBoard")
    if name == "deployed":
        coders = "range, the smallest and the default, or huffman, the paper's"
        parser.add_argument("--coder", choices=coding.CODERS, default="range", help=coders)
    parser.add_argument("--force", action="store_true", help="begin the stage anew; it and later stages are replaced")
    parser.set_defaults(scan=False)
    if may_scan:
        text = "accuracy against sparsity, layer by layer, into scan.json and scan.png; nothing is trained or replaced"
        parser.add_argument("--scan", action="store_true", help=text)
    options = parser.parse_args()
    if options.scan and (options.force or options.tensorboard):
        parser.error("--scan trains nothing: it goes without --force and --tensorboard")
    return options


def _begin(name: str, options: argparse.Namespace, run: Run) -> Job:
    """Find the run's recipe, and see that the stage may begin; nothing is written yet."""
    recipe = options.recipe or recipes.DEFAULT
    stage = run.stage(name)
    present = _present_recipe(run, options.force and name == "full")
    if name == "full":
        base = present if present and not options.recipe else recipes.load(recipes.find(recipe))
        flags = {"seed": options.seed, "data.source": options.data, "model.name": options.model}
        flags |= {"model.weights_only": options.weights_only or None}
        settings = [*options.set, *(f"{key}={json.dumps(value)}" for key, value in flags.items() if value is not None)]
    else:
        for earlier in STAGES[: STAGES.index(name)]:
            run.stage(earlier).require()
        if present is None:
            raise StageError(f"No recipe in {run.folder}: run {SCRIPTS['full']} first.")
        base, settings = present, getattr(options, "set", [])
    for setting in settings if name != "full" else ():
        if setting.partition(".")[0] not in SECTIONS[name]:
            raise StageError(f"--set {setting!r}: {SCRIPTS[name]} sets fields of {' and '.join(SECTIONS[name])} alone.")
    wanted = recipes.with_absolute_paths(recipes.override(base, settings))
    if wanted.searches and not options.scan:
        _check_search(wanted)
    if options.scan:  # It leaves stage and recipe as they are.
        return Job(wanted, run, stage, None, "")
    if stage.begun and present and not options.force:
        if wanted.data.source == "auto":  # The run says what `auto` turned out to be.
            wanted = dataclasses.replace(wanted, data=dataclasses.replace(wanted.data, source=present.data.source))
        _refuse_changes(run, present, wanted)
    changed = wanted != present
    stage.begin(recipes.dumps(wanted) if changed else None, anew=options.force or changed)
    folder = stage.tensorboard_path if getattr(options, "tensorboard", False) else None
    return Job(wanted, run, stage, folder, getattr(options, "coder", "range"))


def _check_search(recipe: Recipe) -> None:
    """Raise `StageError` for what does not go with a search."""
    begin = f"search.tolerance={recipe.search.tolerance:g}"
    advice = "take a recipe without a tolerance, such as --recipe reference."
    if "TF_CONFIG" in os.environ:
        raise StageError(f"{begin}: a search runs on one worker. Unset TF_CONFIG, or {advice}")
    if ignored := recipes.differences(recipe, recipes.searched(recipe)):
        raise StageError(f"{begin} finds the goals, so {ignored[0].partition(',')[0]} does nothing: {advice}")


def _present_recipe(run: Run, may_be_damaged: bool) -> Recipe | None:
    """The recipe of a run folder, or None if it has none, or has one that is to be redone anyway."""
    if not run.recipe_path.is_file():
        return None
    try:
        return recipes.load(run.recipe_path)
    except RecipeError:
        if may_be_damaged:
            return None
        raise


def _refuse_changes(run: Run, present: Recipe, wanted: Recipe) -> None:
    if changes := recipes.differences(present, wanted):
        raise StageError(
            f"{run.folder} holds a run with {changes[0]}: choose another --run, or redo this one with --force."
        )
