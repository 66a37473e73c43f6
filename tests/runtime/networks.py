"""Networks written layer by layer, with weights drawn from a seed: what tests of plans share."""

import numpy as np

from deepcomp.dcz.network import Layer, Network, SharedWeight


def network(shape, *found):
    """A network of (kind, options) or (kind, options, weights) in a row."""
    stack = [Layer("InputLayer", "image")]
    for number, (kind, options, *weights) in enumerate(found):
        inputs = options.pop("inputs", (number,))
        stack.append(Layer(kind, f"{kind}_{number}", inputs, options, weights[0] if weights else {}))
    return Network("network", shape, tuple(stack))


def kernel(*shape, density=0.5, centroids=7, seed=0):
    rng = np.random.default_rng(seed)
    indices = rng.integers(1, centroids + 1, shape) * (rng.random(shape) < density)
    codebook = np.linspace(0.5, 1.5, centroids).astype(np.float32)
    return SharedWeight(codebook, indices.astype(np.min_scalar_type(centroids)))


def conv(filters, channels, size=3, **options):
    weights = {"kernel": kernel(size, size, channels, filters), "bias": np.zeros(filters, np.float32)}
    return "Conv2D", {"filters": filters, "kernel_size": (size, size), **options}, weights


def dense(units, inputs, **options):
    return "Dense", {"units": units, **options}, {"kernel": kernel(inputs, units), "bias": np.ones(units, np.float32)}


def recurrent(kind, units, inputs, gates, density=0.5, **options):
    sizes = {"kernel": (inputs, gates * units), "recurrent_kernel": (units, gates * units)}
    weights = {name: kernel(*size, density=density) for name, size in sizes.items()}
    return kind, {"units": units, "use_bias": False, **options}, weights


def normalization(channels):
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    return "BatchNormalization", {}, {name: np.full(channels, 0.25, np.float32) for name in names}
