"""The pipeline, once: train, prune and quantize a Keras model. The four scripts call it, and so does anybody else."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
import numpy as np
from tqdm import tqdm

from deepcomp import models, options, quantization, tables
from deepcomp import pruning as scoring
from deepcomp.dcz import conversion
from deepcomp.errors import DataError, DeepcompWarning, RecipeError
from deepcomp.options import Pruning, Schedule, Sharing, Training
from deepcomp.second_order.pruning import prune as prune_by_curvature
from deepcomp.second_order.sharing import share as share_by_curvature
from deepcomp.training import loop, parametrize
from deepcomp.training.predict import as_array, predictor
from deepcomp.training.record import Record, joined
from deepcomp.work import prepared

# Each stage sees the training examples in an order of its own, whatever the stage before did.
_PRUNING, _SHARING, _SHARING_ROUNDS, _PRUNING_ROUNDS, _SETTLING = 1, 2, 3, 4, 5


@options.by_name({"training": Training})
def train(
    model: keras.Model, data: Any, training: Training = Training(), *, record: Record | None = None
) -> keras.Model:
    """A copy of `model`, all of its weights trained. Arguments, and what is raised, as for `prune`."""
    with prepared(model, data, training, record, "full") as work:
        work.train(parametrize.free(work.model), training)
    return work.model


@options.by_name({"pruning": Pruning, "training": Training})
def prune(
    model: keras.Model,
    data: Any = None,
    pruning: Pruning = Pruning(),
    training: Training = Training(),
    *,
    record: Record | None = None,
) -> keras.Model:
    """A copy of `model` with its least weights set to exactly zero and the rest fine-tuned (paper section 2).

    `data` is what `model.fit` takes (`x`, `(x, y)`, `(x, y, weights)`, a `tf.data.Dataset`, a `PyDataset`), a source of
    `data.load`, a `DataSet`, or None for `steps=0`. Fields of the option classes can be given by name:
    `prune(model, data, sparsity=0.9, steps=2000)`. The loss is that of the compiled model, or `training.loss`, or the
    one that outputs and labels imply. Weights that are zero already stay zero, also in later calls. `record` keeps the
    history and the state of an interrupted call. Raises `RecipeError`, `DataError`, `UnsupportedLayerError`; warns with
    `DeepcompWarning` of a layer without weights.
    """
    with prepared(model, data, training, record, "pruned") as work:
        network = parametrize.masked(work.model)
        goals = models.per_layer(pruning.own_goals, network.kernels(), "layers")
        if pruning.tolerance:
            accuracies = sensitivity(work.model, work.dataset, training)
            goals = scoring.tolerated(accuracies, pruning.tolerance) | goals
            work.record.sparsities = goals
            if training.verbose:
                print(tables.scan_table(accuracies, scoring.SPARSITIES, goals), flush=True)
        if pruning.scores == "saliency":
            work.required_task("scores by saliency")
        costs = models.costs(work.model, pruning.flops_power)

        def prune_now(step: int) -> None:
            squares = network.squared_gradients() if pruning.scores == "saliency" else None
            fraction = pruning.fraction(step)
            masks = scoring.masks(network.kernels(), pruning, goals, fraction=fraction, squares=squares, costs=costs)
            network.set_masks(masks)
            if fraction == 1:
                work.check_alive(network, [name for name, mask in masks.items() if not mask.any()])

        learning = replace(training, seed=training.seed + _PRUNING)
        history = work.train(network, learning, update=prune_now, update_steps=pruning.update_steps)

        # Rounds by curvature take few long steps; after them, many short ones adjust what is left.
        rounds = pruning.second_order
        learning = _shifted(training, rounds.shift, _PRUNING_ROUNDS)
        if rounds.rounds:
            how = {"task": work.required_task("rounds by curvature"), "training": learning, "history": history}
            history = prune_by_curvature(work.model, work.dataset, rounds, **how)
        if rounds.steps:
            network = parametrize.masked(work.model)
            settling = replace(learning, steps=rounds.steps, learning_rate=rounds.learning_rate)
            settling = replace(settling, seed=training.seed + _SETTLING)
            after = loop.train(
                network,
                work.dataset,
                settling,
                task=work.required_task("second_order_steps"),
                record=Record(label="settled"),
            )
            network.write_back()
            history = joined(history, after)
        work.record.history = history
    return work.model


@options.by_name({"sharing": Sharing, "training": Training})
def quantize(
    model: keras.Model,
    data: Any = None,
    sharing: Sharing = Sharing(),
    training: Training = Training(),
    *,
    record: Record | None = None,
) -> keras.Model:
    """A copy of `model` whose kernels have few distinct non-zero values each, fine-tuned (paper section 3).

    Each layer's survivors are clustered by k-means; then the centroids are trained, each with the sum of the gradients
    of its members. With a `rate_distortion_lambda` weights move to cheaper clusters, or to none, as in
    `parametrize.ParametrizedModel.reassign`: every `every` steps while lambda rises, until step `end`. Codebooks,
    biases and the like become float16 numbers where these can hold them; batch normalization is folded into a scale and
    a shift (`folding.fold_normalization`), so the result is not to be trained further. Other arguments as for `prune`.
    """
    with prepared(model, data, training, record, "quantized") as work:
        rounds = sharing.second_order.rounds
        if rounds:  # Unused neurons take no part in the clusters.
            work.remove_unused_neurons()
        counts = _cluster_counts(work.model, sharing)
        tensors = parametrize.shareable(work.model)
        unshared = {name: np.asarray(tensors[name].numpy()) for name in counts}
        for name, clusters in counts.items():
            made = quantization.share(unshared[name], clusters, init=sharing.init, seed=training.seed)
            tensors[name].assign(made)
        network = parametrize.shared(work.model, counts, latent=unshared if sharing.end or rounds else None)
        rising = Schedule(begin=sharing.begin, end=sharing.end, every=sharing.every)

        def reassign(step: int) -> None:
            network.reassign(sharing.rate_distortion_lambda * rising.fraction(step))

        learning = replace(training, seed=training.seed + _SHARING)
        changes = {"update": reassign, "update_steps": rising.update_steps[1:]}
        rate = sharing.centroid_learning_rate
        history = work.train(network, learning, centroid_learning_rate=rate, write_back=False, **changes)
        if rounds:
            learning = _shifted(training, sharing.second_order.shift, _SHARING_ROUNDS)
            how = {"task": work.required_task("rounds by curvature"), "training": learning, "history": history}
            work.record.history = share_by_curvature(network, work.dataset, sharing, **how)
        network.write_back()
        _check_constraints(work.model)
        if rounds:
            work.remove_unused_neurons()
        conversion.fold_normalization(work.model, keep_frozen=training.freeze)
        conversion.order_neurons(work.model)
    return work.model


@options.by_name({"training": Training})
def sensitivity(
    model: keras.Model, data: Any, training: Training = Training(), sparsities: Sequence[float] = scoring.SPARSITIES
) -> dict[str, list[float]]:
    """The accuracy of `model` with one layer alone pruned by magnitude to each of `sparsities`, without fine-tuning.

    The accuracy is that of the validation part of `data`, or of all of it where there is none. Returns fractions, a
    list for each layer (a sensitivity scan: Han et al., NIPS 2015, section 3.1); the model is left as it is. Raises
    `RecipeError`, also for a network that is not judged by an accuracy, `DataError`, `UnsupportedLayerError`.
    """
    with prepared(model, data, replace(training, steps=0, verbose=False), None, "scan") as work:
        if work.task is None:
            raise DataError("A sensitivity scan needs data: there are no examples to scan on.")
        part = work.dataset.validation if len(work.dataset.validation) else work.dataset.train
        predict = predictor(work.model, scale=bool(work.dataset.scale))
        kernels = models.kernels(work.model)
        accuracies: dict[str, list[float]] = {name: [] for name in kernels}
        look = {"desc": f"{'scan':9}", "unit": "network", "ncols": 100}
        pause = 0.1 if sys.stderr.isatty() else 15  # In a log file, a line now and then.
        with tqdm(total=len(kernels) * len(sparsities), mininterval=pause, **look) as bar:
            for name, variable in kernels.items():
                whole = np.asarray(variable.numpy())
                for sparsity in sparsities:
                    mask = scoring.masks({name: whole}, Pruning(sparsity=sparsity, scope="layer"), {})[name]
                    variable.assign(whole * mask)
                    accuracies[name].append(_accuracy(work.task.measured(predict, part)))
                    bar.update()
                variable.assign(whole)
    return accuracies


def _shifted(training: Training, shift: int | None, seed: int) -> Training:
    """The training of rounds by curvature: another seed, and another shift if there is one."""
    return replace(training, seed=training.seed + seed, shift=training.shift if shift is None else shift)


def _cluster_counts(model: keras.Model, sharing: Sharing) -> dict[str, int]:
    """How many values each kernel and bias is to share, by name; what stays unshared is left out."""
    kernels, own_biases = models.kernels(model), parametrize.biases(model) if sharing.bias_clusters else {}
    counts: dict[str, int] = {}
    if isinstance(sharing.clusters, Mapping):
        counts |= models.per_layer(sharing.clusters, kernels, "clusters")
    else:
        counts |= dict.fromkeys(kernels, sharing.clusters)
    counts |= dict.fromkeys(own_biases, sharing.bias_clusters)
    return counts | models.per_layer(sharing.layers, {**kernels, **own_biases}, "layers")


def _check_constraints(model: keras.Model) -> None:
    """Warn of constraints that shared values cannot keep, such as unit norms."""
    for name, variable in models.kernels(model).items():
        if variable.constraint is None:
            continue
        kernel, held = np.asarray(variable.numpy()), as_array(variable.constraint(variable.value))
        if not np.allclose(kernel, held, rtol=1e-3, atol=1e-6):
            warnings.warn(
                f"The constraint {type(variable.constraint).__name__} of {name!r} holds only nearly: its weights share "
                f"values. Leave the layer unshared with clusters={{...}} if it must hold.",
                DeepcompWarning,
                stacklevel=4,
            )


def _accuracy(measures: Mapping[str, float]) -> float:
    name = next(iter(measures))
    if "acc" not in name:
        raise RecipeError(f"A scan goes by accuracy, and this network is judged by {name}: give metrics=['accuracy'].")
    return measures[name]
