"""The library: prune and quantize any Keras model in one call each."""

from collections.abc import Mapping

import keras
import numpy as np

from deepcomp import data as image_sets
from deepcomp import models, parametrize, pruning, quantization, training
from deepcomp.data import ImageSet
from deepcomp.errors import RecipeError

Images = ImageSet | tuple[np.ndarray, np.ndarray] | str


def prune(
    model: keras.Model,
    data: Images,
    *,
    sparsity: float | Mapping[str, float] | None = None,
    quality: float | Mapping[str, float] | None = None,
    threshold: float | Mapping[str, float] | None = None,
    scope: str = "layer",
    scores: str = "magnitude",
    ramp: int = 0,
    every: int = 100,
    steps: int = 1000,
    seed: int = 0,
    **options,
) -> keras.Model:
    """A copy of `model` with its least weights set to exactly zero and the rest fine-tuned (paper section 2).

    `data` is an `ImageSet`, a pair `(images, labels)` or a source of `data.load`. Exactly one of `sparsity`,
    `quality` and `threshold` says what goes, as in `pruning.masks`: a number for every layer, or `{regular
    expression: number}`, where layers that none matches are left whole. `ramp` and `every` prune on the way, as in
    `pruning.Schedule`; `steps` and `options` go to `training.train`. Weights that are zero already stay zero.
    Raises `RecipeError`, `DataError`, `UnsupportedLayerError`.
    """
    goals = {"sparsity": sparsity, "quality": quality, "threshold": threshold}
    given = {by: value for by, value in goals.items() if value is not None}
    if len(given) != 1:
        raise RecipeError(f"prune needs exactly one of sparsity, quality and threshold, not {len(given)} of them.")
    ((by, value),) = given.items()
    images = _image_set(data, seed)
    pruned = _copy(model, images)
    layers = {}
    if isinstance(value, Mapping):
        value, layers = 0.0, models.per_layer(value, models.kernels(pruned), by)
    schedule = pruning.Schedule(ramp=ramp, every=every)
    network = parametrize.masked(pruned)

    def prune_now(step: int) -> None:
        fraction = schedule.fraction(step)
        how = {
            "by": by,
            "value": value,
            "layers": layers,
            "scope": scope,
            "scores": scores,
            "fraction": fraction,
        }
        network.set_masks(pruning.masks(network.kernels(), **how))

    training.train(
        network,
        images,
        steps=steps,
        seed=seed,
        update=prune_now,
        update_steps=schedule.steps,
        label="pruned",
        **options,
    )
    return network.write_back()


def quantize(
    model: keras.Model,
    data: Images,
    *,
    bits: int | Mapping[str, int] = 5,
    init: str = "linear",
    steps: int = 500,
    seed: int = 0,
    **options,
) -> keras.Model:
    """A copy of `model` whose kernels have at most 2^`bits` distinct non-zero values each (paper section 3).

    `data` as in `prune`; `bits` is a number for every layer or `{regular expression: number}`, where layers that
    none matches are left unshared; `init` as in `quantization.cluster`. Centroids are fine-tuned for `steps`; `options`
    go to `training.train`. Raises `RecipeError`, `DataError`, `UnsupportedLayerError`.
    """
    images = _image_set(data, seed)
    shared = _copy(model, images)
    kernels = models.kernels(shared)
    widths = models.per_layer(bits if isinstance(bits, Mapping) else {".*": bits}, kernels, "bits")
    for name, width in widths.items():
        if not 0 <= width <= 16:
            raise RecipeError(f"bits={width} for {name}: it must be from 0 to 16.")
        values = np.asarray(kernels[name].numpy())
        kernels[name].assign(quantization.share(values, 2**width, init=init, seed=seed))
    network = parametrize.shared(shared, widths)
    training.train(network, images, steps=steps, seed=seed, label="quantized", **options)
    return network.write_back()


def _image_set(data: Images, seed: int) -> ImageSet:
    if isinstance(data, ImageSet):
        return data
    if isinstance(data, str):
        return image_sets.load(data, validation=0, seed=seed)
    return image_sets.from_arrays(*data, seed=seed)


def _copy(model: keras.Model, images: ImageSet) -> keras.Model:
    models.check_fits(model, images.shape, images.classes)
    return models.clone(model)
