"""Stage 3: make the surviving weights of each layer share a few values, and train those values (paper section 3).

Each layer's survivors are clustered by k-means; then the centroids are trained, each with the sum of the gradients
of its members. Where bits have a price, weights go to cheaper clusters on the way, and to zero.
"""

from deepcomp.experiment import cli


def quantize(job: cli.Job) -> None:
    from deepcomp import models, pruning, quantization
    from deepcomp.dcz import conversion as exchange
    from deepcomp.second_order import curvature
    from deepcomp.training import loop as training
    from deepcomp.training import parametrize

    recipe, seed = job.recipe, job.recipe.seed
    training.make_deterministic(seed)
    images = job.images()
    model = job.run.stage("pruned").load_model()
    how = recipe.quantized
    if how.newton_rounds:  # Neurons that nobody reads take no part in the clusters.
        model, _ = exchange.without_unused_neurons(model)

    # Share: each survivor becomes the centroid of its cluster. Zeros are no cluster; they stay zeros.
    tensors = parametrize.shareable(model, biases=how.bias_clusters > 0)
    own = models.per_layer(how.layers, tensors, "quantized.layers")
    unshared = {name: variable.numpy() for name, variable in tensors.items()}
    for name, variable in tensors.items():
        clusters = how.bias_clusters if name.endswith("/bias") else how.clusters
        shared = quantization.share(unshared[name], own.get(name, clusters), init=how.init, seed=seed)
        variable.assign(shared)

    # A shared kernel is centroids[indices]: the centroids train; where bits have a price, indices follow the weights.
    network = parametrize.shared(model, tensors, latent=unshared if how.ramp or how.newton_rounds else None)
    schedule = pruning.Schedule(ramp=how.ramp, every=how.every)

    def reassign(step: int) -> None:
        network.reassign(how.bit_price * schedule.fraction(step))

    learning = job.learning()
    history = training.train(
        network,
        images,
        **how.training(),
        **learning,
        seed=seed + 2,  # Another order of the images than in the stages before.
        update=reassign,
        update_steps=schedule.steps[1:],
        checkpoint=job.stage,
        label="quantized",
        tensorboard=job.tensorboard,
    )

    # Where rounds are asked for: clusters by the loss's curvature, which knows what weights can make up for each other.
    if how.newton_shift >= 0:
        learning["shift"] = how.newton_shift
    goal = {"price": how.bit_price, "rounds": how.newton_rounds}
    history = curvature.share(network, images, **goal, **learning, seed=seed + 3, history=history)
    network.write_back()
    if how.newton_rounds:  # Those that nobody reads any more go too, with all that they would take.
        model, _ = exchange.without_unused_neurons(model)

    # Reordering hidden neurons changes nothing; in descending order the file is smallest.
    exchange.order_neurons(model)
    job.finish(model, images, history, training.evaluate(model, images.x_test, images.y_test))


if __name__ == "__main__":
    cli.main("quantized", __doc__, quantize)
