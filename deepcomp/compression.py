"""The library: prune and quantize any Keras model in one call each."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from deepcomp import data as image_sets
from deepcomp import models, pruning, quantization
from deepcomp.data import ImageSet
from deepcomp.dcz import conversion as exchange
from deepcomp.errors import DataError, RecipeError
from deepcomp.second_order import curvature
from deepcomp.training import loop as training
from deepcomp.training import parametrize

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
    flops_power: float = 0.0,
    ramp: int = 0,
    every: int = 100,
    newton_rounds: int = 0,
    newton_sparsity: float = 0.0,
    newton_steps: int = 0,
    newton_learning_rate: float = 1e-3,
    newton_shift: int | None = None,
    steps: int = 1000,
    seed: int = 0,
    **options,
) -> keras.Model:
    """A copy of `model` with its least weights set to exactly zero and the rest fine-tuned (paper section 2).

    `data` is an `ImageSet`, a pair `(images, labels)` or a source of `data.load`. Exactly one of `sparsity`,
    `quality` and `threshold` says what goes, as in `pruning.masks`: a number for every layer, or `{regular
    expression: number}`, where layers that none matches are left whole. With a `flops_power`, which needs a
    `sparsity` and `scope="global"`, scores are divided by that power of `models.multiplications`. `ramp` and `every`
    prune on the way, as in `pruning.Schedule`; `steps` and `options` go to `training.train`. Weights that are zero
    already stay zero. After training come `newton_rounds` of `curvature.prune`, which go on to `newton_sparsity`, that
    of all kernels together, and after them `newton_steps` more of training at `newton_learning_rate`, which prune
    nothing; both with a `newton_shift`, if there is one, instead of the `shift` among the options. Raises
    `RecipeError`, `DataError`, `UnsupportedLayerError`.
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
    costs = models.costs(pruned, flops_power)
    if costs and (by, scope) != ("sparsity", "global"):
        raise RecipeError(f"flops_power compares layers: it needs sparsity and scope='global', not {by} and {scope!r}.")
    if newton_steps < 0 or (newton_steps and not newton_rounds):
        raise RecipeError(
            f"newton_steps={newton_steps} after newton_rounds={newton_rounds}: they must be 0 or more, and need rounds."
        )
    _check_shift(newton_shift)
    network = parametrize.masked(pruned)

    def prune_now(step: int) -> None:
        how = {
            "by": by,
            "value": value,
            "layers": layers,
            "scope": scope,
            "scores": scores,
            "squares": network.squared_gradients() if scores == "saliency" else None,
            "costs": costs,
            "fraction": schedule.fraction(step),
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
    network.write_back()
    learning = _learning(options, newton_shift)
    curvature.prune(pruned, images, sparsity=newton_sparsity, rounds=newton_rounds, seed=seed, **learning)
    if newton_steps:
        settling = {"steps": newton_steps, "learning_rate": newton_learning_rate, "seed": seed + 1}
        beside = {"checkpoint": None, "tensorboard": None}  # they are those of the training before
        network = parametrize.masked(pruned)
        training.train(network, images, label="settled", **{**options, **learning, **settling, **beside})
        network.write_back()
    return pruned


def quantize(
    model: keras.Model,
    data: Images,
    *,
    bits: int | Mapping[str, int] = 5,
    init: str = "linear",
    bias_bits: int | None = None,
    bit_price: float = 0.0,
    ramp: int = 0,
    every: int = 50,
    newton_rounds: int = 0,
    newton_shift: int | None = None,
    steps: int = 500,
    seed: int = 0,
    **options,
) -> keras.Model:
    """A copy of `model` whose kernels have at most 2^`bits` distinct non-zero values each (paper section 3).

    `data` as in `prune`; `bits` is a number for every layer or `{regular expression: number}`, where layers that
    none matches are left unshared; `init` as in `quantization.cluster`. With `bias_bits` each layer's bias is shared
    too. With a `bit_price` weights go to cheaper clusters, or to none, as in `parametrize.Network.reassign`: every
    `every` steps while the price rises, until step `ramp`. Centroids are fine-tuned for `steps`; `options` go to
    `training.train`. Then come `newton_rounds` of `curvature.share`, at the whole price, with a `newton_shift`, if
    there is one, instead of the `shift` among the options. Neurons that nobody reads keep their weights, which count
    in the clusters. Raises `RecipeError`, `DataError`, `UnsupportedLayerError`.
    """
    images = _image_set(data, seed)
    shared = _copy(model, images)
    tensors = parametrize.shareable(shared, biases=bias_bits is not None)
    widths = models.per_layer(bits if isinstance(bits, Mapping) else {".*": bits}, models.kernels(shared), "bits")
    widths |= {name: bias_bits for name in tensors if name.endswith("/bias")}
    for name, width in widths.items():
        if not 0 <= width <= 16:
            raise RecipeError(f"bits={width} for {name}: it must be from 0 to 16.")
    if min(bit_price, newton_rounds) < 0 or (ramp and not bit_price) or (bit_price and not (ramp or newton_rounds)):
        raise RecipeError(
            f"bit_price={bit_price}, ramp={ramp}, newton_rounds={newton_rounds}: a bit_price above 0 needs a ramp or "
            "newton_rounds, and a ramp needs a bit_price."
        )
    _check_shift(newton_shift)
    unshared = {name: np.asarray(tensors[name].numpy()) for name in widths}
    for name, width in widths.items():
        tensors[name].assign(quantization.share(unshared[name], 2**width, init=init, seed=seed))
    network = parametrize.shared(shared, widths, latent=unshared if ramp or newton_rounds else None)
    schedule = pruning.Schedule(ramp=ramp, every=every)
    training.train(
        network,
        images,
        steps=steps,
        seed=seed,
        update=lambda step: network.reassign(bit_price * schedule.fraction(step)),
        update_steps=schedule.steps[1:],
        label="quantized",
        **options,
    )
    learning = _learning(options, newton_shift)
    curvature.share(network, images, rounds=newton_rounds, price=bit_price, seed=seed, **learning)
    network.write_back()
    exchange.order_neurons(shared)
    return shared


def sensitivity(
    model: keras.Model, images: np.ndarray, labels: np.ndarray, sparsities: Sequence[float] = pruning.SPARSITIES
) -> dict[str, list[float]]:
    """The accuracy of `model` with one layer alone pruned by magnitude to each of `sparsities`, without fine-tuning.

    `images` are uint8 or float `(N, H, W, C)`, `labels` integers `(N,)`, better not those of training. Returns
    fractions, a list for each layer (a sensitivity scan: Han et al., NIPS 2015, section 3.1); the model is left as it
    was. Raises `RecipeError`, `DataError`, `UnsupportedLayerError`.
    """
    if not len(images):
        raise DataError("There are no images to scan on: hold some out of training, with data.validation=0.1.")
    predict = training.predictor(model)
    kernels = models.kernels(model)
    accuracies: dict[str, list[float]] = {name: [] for name in kernels}
    look = {"desc": f"{'scan':9}", "unit": "network", "ncols": 100}
    pause = 0.1 if sys.stderr.isatty() else 15  # In a log file, a line now and then.
    with tqdm(total=len(kernels) * len(sparsities), mininterval=pause, **look) as bar:
        for name, variable in kernels.items():
            whole = variable.numpy()
            try:
                for sparsity in sparsities:
                    variable.assign(whole * pruning.masks({name: whole}, by="sparsity", value=sparsity)[name])
                    accuracies[name].append(float(np.mean(predict(images).argmax(axis=1) == labels)))
                    bar.update()
            finally:
                variable.assign(whole)
    return accuracies


def _check_shift(shift: int | None) -> None:
    if shift is not None and shift < 0:
        raise RecipeError(f"newton_shift={shift}: it must be 0 or more pixels, or None for the shift of the training.")


def _learning(options: Mapping[str, Any], shift: int | None) -> dict[str, Any]:
    """Of the options of `training.train` those that rounds by curvature take, with another `shift` if there is one."""
    options = options if shift is None else {**options, "shift": shift}
    return {name: options[name] for name in ("shift", "teacher", "distillation", "temperature") if name in options}


def _image_set(data: Images, seed: int) -> ImageSet:
    if isinstance(data, ImageSet):
        return data
    if isinstance(data, str):
        return image_sets.load(data, validation=0, seed=seed)
    return image_sets.from_arrays(*data, seed=seed)


def _copy(model: keras.Model, images: ImageSet) -> keras.Model:
    models.check_fits(model, images.shape, images.classes)
    return models.clone(model)
