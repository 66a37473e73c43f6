"""Stage 1: train the full network, the one that the later stages must not fall behind.

A dense network is trained from scratch on labelled images; or a network of your own (--model FILE.keras, FILE.h5 or a
SavedModel of Keras 2) is trained on, or taken as it is with --set full.steps=0.
"""

from deepcomp.errors import UnsupportedLayerError
from deepcomp.experiment import cli


def train_full(job: cli.Job) -> None:
    from deepcomp import models, opening, sparse
    from deepcomp.training import loop as training
    from deepcomp.training import parametrize

    recipe, seed = job.recipe, job.recipe.seed
    training.make_deterministic(seed)

    images = job.images()

    # The network: one of ours, or a Keras file.
    if opening.is_model_file(recipe.model.name):
        model = opening.load(recipe.model.name)
    else:
        model = models.build(recipe.model.name, images.shape, images.classes, stddev=recipe.model.stddev)
    models.check_fits(model, images.shape, images.classes)
    try:
        sparse.check(model)
    except UnsupportedLayerError as error:
        print(f"Note: deploy.py will not run this network as sparse products. {error}")

    # Every weight trains by itself.
    network = parametrize.free(model)
    history = training.train(
        network,
        images,
        **recipe.full.training(),
        seed=seed,
        shift=recipe.data.shift,
        checkpoint=job.stage,
        label="full",
        tensorboard=job.tensorboard,
    )
    job.finish(model, images, history, training.evaluate(model, images.x_test, images.y_test))


if __name__ == "__main__":
    cli.main("full", __doc__, train_full)
