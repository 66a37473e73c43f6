"""Stage 2: remove the weights that matter least, and train the rest to make up for them (paper section 2).

Weights are ranked by magnitude, or by what the loss would lose with them; those removed are set to zero and stay zero,
in this stage and in every later one. With --scan nothing is removed: it says how much each layer alone can spare.
"""

from deepcomp.experiment import cli


def prune(job: cli.Job) -> None:
    from deepcomp import models, pruning
    from deepcomp.second_order import curvature
    from deepcomp.training import loop as training
    from deepcomp.training import parametrize

    recipe, seed = job.recipe, job.recipe.seed
    training.make_deterministic(seed)
    images = job.images()
    model = job.run.stage("full").load_model()

    # What to remove: a threshold, or a sparsity, for all layers or for each, given or chosen by a scan.
    how = recipe.pruned
    own = models.per_layer(how.layers, models.kernels(model), "pruned.layers")
    if how.tolerance:
        _, own = scanned(job, model, images, own)
    schedule = pruning.Schedule(ramp=how.ramp, every=how.every)
    costs = models.costs(model, how.flops_power)

    # A masked kernel is w * mask: what is pruned stays zero, whatever the optimizer does.
    network = parametrize.masked(model)

    def prune_now(step: int) -> None:
        squares = network.squared_gradients() if how.scores == "saliency" else None
        masks = pruning.masks(
            network.kernels(),
            by=how.by,
            value=how.value,
            layers=own,
            scope=how.scope,
            scores=how.scores,
            squares=squares,
            costs=costs,
            fraction=schedule.fraction(step),
        )
        network.set_masks(masks)

    learning = job.learning()

    # Prune in one shot or once in a while, and fine-tune what is left.
    history = training.train(
        network,
        images,
        **how.training(),
        **learning,
        seed=seed + 1,  # Another order of the images than in the stage before.
        update=prune_now,
        update_steps=schedule.steps,
        checkpoint=job.stage,
        label="pruned",
        tensorboard=job.tensorboard,
    )
    network.write_back()

    # Where rounds are asked for: go on by the loss's curvature, which knows what weights can make up for each other.
    if how.newton_shift >= 0:
        learning["shift"] = how.newton_shift
    goal = {"sparsity": how.newton_value, "rounds": how.newton_rounds}
    history = curvature.prune(model, images, **goal, **learning, seed=seed + 4, history=history)

    # Rounds take few long steps; many short ones settle what is left.
    if how.newton_steps:
        network = parametrize.masked(model)
        settled = training.train(network, images, **how.settling(), **learning, seed=seed + 5, label="settled")
        network.write_back()
        history = training.joined(history, settled)
    chosen = {"sparsities": own} if how.tolerance else {}
    job.finish(model, images, history, training.evaluate(model, images.x_test, images.y_test), **chosen)


def scan(job: cli.Job) -> None:
    from deepcomp import models, pruning
    from deepcomp.experiment import figures
    from deepcomp.training import loop as training

    recipe, run = job.recipe, job.run
    training.make_deterministic(recipe.seed)
    images = job.images()
    model = run.stage("full").load_model()
    own = models.per_layer(recipe.pruned.layers, models.kernels(model), "pruned.layers")
    accuracies, chosen = scanned(job, model, images, own)

    record = {"recipe": recipe.name, "seed": recipe.seed, "data": images.summary(), "sparsities": pruning.SPARSITIES}
    run.write_scan({**record, "accuracies": accuracies, "tolerance": recipe.pruned.tolerance, "chosen": chosen})
    title = f"{recipe.name} on {images.name}, seed {recipe.seed}: one layer alone pruned, not fine-tuned"
    figures.sensitivity(accuracies, pruning.SPARSITIES, run.scan_picture_path, chosen=chosen, title=title)
    print(f"scan: {len(images.x_validation):,} validation images -> {run.scan_path}, {run.scan_picture_path}")


def scanned(job: cli.Job, model, images, own: dict[str, float]) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Accuracies by layer and sparsity and, with a tolerance, each layer's sparsity: its `own` or the one chosen."""
    from deepcomp import compression, pruning
    from deepcomp.experiment import report

    accuracies = compression.sensitivity(model, images.x_validation, images.y_validation)
    tolerance = job.recipe.pruned.tolerance
    chosen = pruning.tolerated(accuracies, tolerance) | own if tolerance else {}
    print(report.scan_table(accuracies, pruning.SPARSITIES, chosen))
    return accuracies, chosen


if __name__ == "__main__":
    cli.main("pruned", __doc__, prune, scan)
