"""Stage 3: make the surviving weights of each layer share a few values, and train those values (paper section 3).

Each layer's survivors are clustered by k-means; then the centroids are trained, each with the sum of the gradients
of its members.
"""

from deepcomp import cli


def quantize(job: cli.Job) -> None:
    from deepcomp import models, parametrize, quantization, training

    recipe, seed = job.recipe, job.recipe.seed
    training.make_deterministic(seed)
    images = job.images()
    model = job.run.stage("pruned").load_model()

    # Share: each survivor becomes the centroid of its cluster. Zeros are no cluster; they stay zeros.
    how = recipe.quantized
    kernels = models.kernels(model)
    own = models.per_layer(how.layers, kernels, "quantized.layers")
    for name, variable in kernels.items():
        shared = quantization.share(variable.numpy(), own.get(name, how.clusters), init=how.init, seed=seed)
        variable.assign(shared)

    # A shared kernel is centroids[indices]: only the centroids train.
    network = parametrize.shared(model)
    history = training.train(
        network,
        images,
        **how.training(),
        seed=seed + 2,  # Another order of the images than in the stages before.
        shift=recipe.data.shift,
        checkpoint=job.stage,
        label="quantized",
        tensorboard=job.tensorboard,
    )
    network.write_back()
    job.finish(model, images, history, training.evaluate(model, images.x_test, images.y_test))


if __name__ == "__main__":
    cli.main("quantized", __doc__, quantize)
