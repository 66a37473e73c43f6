"""Stage 2: remove the weights that matter least, and train the rest to make up for them (paper section 2).

Weights are ranked by magnitude, or by what the loss would lose with them; those removed are set to zero and stay zero,
in this stage and in every later one. A recipe with a tolerance has a search find how many. With --scan nothing is
removed: it says how much each layer alone can spare.
"""

from deepcomp.experiment import cli


def prune(job: cli.Job) -> None:
    from deepcomp import compression, search
    from deepcomp.training import distribute

    distribute.make_deterministic(job.recipe.seed)
    data, record = job.data(), job.record()
    if job.recipe.searches:
        model = job.searched(search.prune, data, record)
    else:
        model = job.run.stage("full").load_model()
        model = compression.prune(model, data, job.recipe.pruned.pruning, job.training(), record=record)
    job.finish(model, data, record)


def scan(job: cli.Job) -> None:
    from deepcomp import compression, models, pruning, tables
    from deepcomp.experiment import figures
    from deepcomp.training import distribute

    recipe, run, how = job.recipe, job.run, job.recipe.pruned.pruning
    distribute.make_deterministic(recipe.seed)
    data, model = job.data(), run.stage("full").load_model()
    goals = models.per_layer(how.own_goals, models.kernels(model), "pruned.layers")
    accuracies = compression.sensitivity(model, data, job.training())
    chosen = pruning.tolerated(accuracies, how.tolerance) | goals if how.tolerance else {}
    print(tables.scan_table(accuracies, pruning.SPARSITIES, chosen))

    record = {"recipe": recipe.name, "seed": recipe.seed, "data": data.summary(), "sparsities": pruning.SPARSITIES}
    run.write_scan({**record, "accuracies": accuracies, "tolerance": how.tolerance, "chosen": chosen})
    title = f"{recipe.name} on {data.name}, seed {recipe.seed}: one layer alone pruned, not fine-tuned"
    figures.sensitivity(accuracies, pruning.SPARSITIES, run.scan_picture_path, chosen=chosen, title=title)
    print(f"scan: {len(data.validation):,} validation examples -> {run.scan_path}, {run.scan_picture_path}")


if __name__ == "__main__":
    cli.main("pruned", __doc__, prune, scan)
