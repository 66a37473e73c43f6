"""Stage 3: make the surviving weights of each layer share a few values, and train those values (paper section 3).

Each layer's survivors are clustered by k-means; then the centroids are trained, each with the sum of the gradients
of its members. With a rate_distortion_lambda, weights move to cheaper clusters on the way, and to zero. A recipe with a
tolerance has a search find values and zeros.
"""

from deepcomp.experiment import cli


def quantize(job: cli.Job) -> None:
    from deepcomp import compression, search
    from deepcomp.training import distribute

    distribute.make_deterministic(job.recipe.seed)
    data, record = job.data(), job.record()
    if job.recipe.searches:
        found = job.searched(search.compress, data, record)
        model = found.model
        found.report.picture(job.stage.search_picture_path)
    else:
        model = job.run.stage("pruned").load_model()
        model = compression.quantize(model, data, job.recipe.quantized.sharing, job.training(), record=record)
    job.finish(model, data, record)


if __name__ == "__main__":
    cli.main("quantized", __doc__, quantize)
