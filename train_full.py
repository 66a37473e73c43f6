"""Stage 1: train the full network, the one that the later stages must not fall behind.

A dense network is trained from scratch; or a network of your own (--model FILE) is trained on, or taken as it is with
--set full.steps=0.
"""

from deepcomp.errors import StageError, UnsupportedLayerError, printable
from deepcomp.experiment import cli


def train_full(job: cli.Job) -> None:
    from deepcomp import compression, models, opening, sparse
    from deepcomp.training import distribute

    recipe = job.recipe
    distribute.make_deterministic(recipe.seed)
    data = job.data()

    # The network: one of ours, or one from a file.
    if opening.is_model_file(recipe.model.name):
        model = opening.load(recipe.model.name)
    else:
        model = models.build(recipe.model.name, data.shape, data.classes, stddev=recipe.model.stddev)
    if not recipe.model.weights_only:
        refuse_what_no_file_holds(model)
    try:
        sparse.check(model)
    except UnsupportedLayerError as error:
        print(printable(f"Note: deploy.py will not run this network as sparse products. {error}"))

    # Every weight trains by itself.
    record = job.record()
    model = compression.train(model, data, job.training(), record=record)
    job.finish(model, data, record)


def refuse_what_no_file_holds(model) -> None:
    """Raise `StageError` now, not after hours of training, for a network that deploy.py could not write."""
    from deepcomp.dcz import conversion

    if obstacles := conversion.check(model):
        more = f" ({len(obstacles) - 1} more: see deepcomp check)" if obstacles[1:] else ""
        advice = "With --weights-only it writes the weights alone."
        raise StageError(f"deploy.py could not write this network. {obstacles[0]}{more} {advice}")


if __name__ == "__main__":
    cli.main("full", __doc__, train_full)
