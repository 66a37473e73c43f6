"""All that deepcomp uses of Keras's private API, checked with Keras 3.15.1.

Each function says what stands behind it, so that a new version of Keras is adapted to here alone.
"""

from collections.abc import Sequence
from typing import Any

import keras


def all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model, those inside of others included, each once, in the order of definition.

    `Layer._flatten_layers`.
    """
    return list(model._flatten_layers(include_self=False))


def compile_arguments(model: keras.Model) -> dict[str, Any] | None:
    """Loss, loss weights, metrics and weighted metrics that a model was compiled with; None if it has no loss.

    `Trainer._compile_config`, whose objects are those that `compile` was given.
    """
    config = getattr(getattr(model, "_compile_config", None), "config", None)
    if not getattr(model, "compiled", False) or config is None or config.get("loss") is None:
        return None
    return {name: config.get(name) for name in ("loss", "loss_weights", "metrics", "weighted_metrics")}


def compiled_metrics(model: keras.Model) -> Any:
    """The metrics of a compiled model, as one object with `update_state`, `result`, `reset_state`; None without any.

    `Trainer._compile_metrics`.
    """
    return getattr(model, "_compile_metrics", None)


def second_moments(optimizer: keras.Optimizer, variables: Sequence[keras.Variable]) -> list[keras.Variable] | None:
    """The running means of the squared gradients that an optimizer keeps of `variables`; None if it keeps none.

    `_velocities` of Adam, AdamW, Nadam and RMSprop.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
    found = getattr(inner, "_velocities", None)
    if not found or not isinstance(inner, keras.optimizers.Adam | keras.optimizers.RMSprop | keras.optimizers.Nadam):
        return None
    return [found[inner._get_variable_index(variable)] for variable in variables]


def same_lambda(layer: keras.layers.Lambda) -> keras.layers.Lambda:
    """Another Lambda layer of the same function: its configuration would have to be run as code.

    `Lambda._output_shape`.
    """
    config = layer.get_config()
    kept = {key: config[key] for key in ("name", "trainable", "dtype") if key in config}
    shape = layer._output_shape
    return keras.layers.Lambda(layer.function, shape, mask=layer.mask, arguments=layer.arguments, **kept)


def origin(tensor: Any) -> Any:
    """The layer or operation that a symbolic tensor comes out of, None for what is no such tensor.

    `KerasTensor._keras_history`.
    """
    history = getattr(tensor, "_keras_history", None)
    return getattr(history, "operation", None)


def inputs_structure(model: keras.Model) -> Any:
    """The symbolic inputs of a functional or Sequential model in the structure in which it takes them.

    `Functional._inputs_struct`.
    """
    return getattr(getattr(model, "_functional", model), "_inputs_struct", getattr(model, "inputs", None))


def outputs_structure(model: keras.Model) -> Any:
    """The symbolic outputs of a functional or Sequential model in their structure; None for another model.

    `Functional._outputs_struct`.
    """
    return getattr(getattr(model, "_functional", model), "_outputs_struct", None)


def output_names(model: keras.Model) -> list[str]:
    """The names of the outputs of a functional or Sequential model; none for another model.

    `Functional.output_names`, which a Sequential model does not pass on.
    """
    return list(getattr(getattr(model, "_functional", model), "output_names", None) or [])
