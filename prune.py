"""Stage 2: remove the weights that matter least, and train the rest to make up for them (paper section 2).

Weights are ranked by magnitude; those removed are set to zero and stay zero, in this stage and in every later one.
"""

from deepcomp import cli


def prune(job: cli.Job) -> None:
    from deepcomp import models, parametrize, pruning, training

    recipe, seed = job.recipe, job.recipe.seed
    training.make_deterministic(seed)
    images = job.images()
    model = job.run.stage("full").load_model()

    # What to remove: a threshold, or a sparsity, for all layers or for each.
    how = recipe.pruned
    own = models.per_layer(how.layers, models.kernels(model), "pruned.layers")
    schedule = pruning.Schedule(ramp=how.ramp, every=how.every)

    # A masked kernel is w * mask: what is pruned stays zero, whatever the optimizer does.
    network = parametrize.masked(model)

    def prune_now(step: int) -> None:
        masks = pruning.masks(
            network.kernels(),
            by=how.by,
            value=how.value,
            layers=own,
            scope=how.scope,
            scores=how.scores,
            fraction=schedule.fraction(step),
        )
        network.set_masks(masks)

    # Prune in one shot or once in a while, and fine-tune what is left.
    history = training.train(
        network,
        images,
        **how.training(),
        seed=seed + 1,  # Another order of the images than in the stage before.
        shift=recipe.data.shift,
        update=prune_now,
        update_steps=schedule.steps,
        checkpoint=job.stage,
        label="pruned",
        tensorboard=job.tensorboard,
    )
    network.write_back()
    job.finish(model, images, history, training.evaluate(model, images.x_test, images.y_test))


if __name__ == "__main__":
    cli.main("pruned", __doc__, prune)
