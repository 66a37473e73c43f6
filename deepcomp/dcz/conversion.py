"""Keras models to `Network`s and back: the same layers, the same weights, the same outputs.

Options go by Keras's own names, so `kinds.KINDS` is the only table. What a network cannot hold is refused, unless
it matters to training alone: initializers, regularizers, constraints, random seeds and what is frozen are left behind.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from deepcomp import quantization
from deepcomp.dcz import container, neurons
from deepcomp.dcz.accounting import Parts
from deepcomp.dcz.kinds import ACTIVATIONS, KINDS, supported
from deepcomp.dcz.network import Layer, Network, SharedWeight, entries, output_shapes
from deepcomp.errors import UnsupportedLayerError

_TRAINING_ONLY = ("name", "trainable", "dtype", "seed", "noise_shape", "synchronized")
_TRAINING_ONLY_ENDINGS = ("_initializer", "_regularizer", "_constraint")


def save(model: keras.Model, path: str | Path, coder: str = "range") -> Parts:
    """Write a Keras model as a `.dcz` file; returns where every byte went. Errors as for `from_keras`."""
    return container.save(from_keras(model), path, coder)


def from_keras(model: keras.Model) -> Network:
    """The network in a Sequential or functional model of one input and one output; nested models are inlined.

    A kernel of at most 65,535 distinct non-zero values becomes `SharedWeight`, in which -0.0 is a pruned weight. Layers
    keep their names; where two have the same, the nested model's goes in front. Raises `UnsupportedLayerError`, naming
    the layer, for what a network cannot hold: other kinds of layers, unusual options, weights in use at several places.
    """
    return _found_in(model)[0]


def order_neurons(model: keras.Model) -> None:
    """Put the hidden neurons of a model in the order in which its file is smallest (`neurons.order_neurons`).

    It stays the same network, but for rounding. A model that no file can hold is left as it is.
    """
    try:
        network, operations = _found_in(model)
    except UnsupportedLayerError:
        return
    for layer, operation in zip(neurons.order_neurons(network).layers, operations, strict=True):
        for variable in operation.weights:
            variable.assign(values(layer.weights[variable.name]))


def without_unused_neurons(model: keras.Model) -> tuple[keras.Model, list[tuple[keras.Variable, np.ndarray]]]:
    """A smaller model that computes the same: without the hidden neurons that nobody reads (`neurons.remove_unused`).

    With it comes, for each of its `trainable_variables`, the variable of `model` that it is a part of, and its flat
    places there, `int64, its shape`, -1 for a pruned weight. A model that no file can hold is returned as it is.
    """
    try:
        network, operations = _found_in(model)
    except UnsupportedLayerError:
        return model, [(v, np.arange(math.prod(v.shape)).reshape(v.shape)) for v in model.trainable_variables]
    numbered = [
        replace(layer, weights={n: _numbers(n, w) for n, w in layer.weights.items()}) for layer in network.layers
    ]
    kept = neurons.remove_unused(replace(network, layers=tuple(numbered))).layers
    origins = [{variable.name: variable for variable in operation.weights} for operation in operations]
    layers = []
    for layer, own in zip(kept, origins, strict=True):
        taken = {name: np.append(np.ravel(own[name].numpy()), 0)[at - 1] for name, at in layer.weights.items()}
        layers.append(replace(layer, weights=taken))
    small = to_keras(replace(network, layers=tuple(layers)))
    parts = {}
    for layer, own in zip(kept, origins, strict=True):
        for variable in small.get_layer(layer.name).weights:
            parts[id(variable)] = own[variable.name], layer.weights[variable.name] - 1
    return small, [parts[id(variable)] for variable in small.trainable_variables]


def _numbers(name: str, weight: SharedWeight | np.ndarray) -> np.ndarray:
    """The flat places of a weight, from 1 on, and 0 for what is pruned of a kernel."""
    held = entries(weight)
    places = np.arange(1, held.size + 1).reshape(held.shape)
    return places * (held != 0) if name.endswith("kernel") else places


def _found_in(model: keras.Model) -> tuple[Network, list[Any]]:
    """The network in a model, and Keras's layer for each of its layers."""
    (tensor,) = _graph(model).inputs
    shape = tuple(tensor.shape[1:])
    if None in shape or tensor.dtype != "float32":
        raise UnsupportedLayerError(
            f"The network {model.name!r} takes {tensor.dtype} inputs of shape {shape}: only float32 inputs whose sizes "
            "are all given can be saved."
        )
    first = tensor._keras_history.operation
    found = [_Found((first.name,), first, Layer("InputLayer", first.name))]
    _inline(model, (), 0, found)
    names = _unique_names([one.path for one in found])
    layers = tuple(replace(one.layer, name=name) for name, one in zip(names, found, strict=True))
    network = Network(model.name, shape, layers)
    output_shapes(network)
    return network, [one.operation for one in found]


def with_unscaled_inputs(network: Network) -> Network:
    """The same network with a Rescaling by 1 at its front, unless it rescales: uint8 inputs are taken as they are."""
    if any(layer.kind == "Rescaling" for layer in network.layers):
        return network
    first, *others = network.layers
    names = {layer.name for layer in network.layers}
    name = next(name for name in ("unscaled", *(f"unscaled_{n}" for n in count(1))) if name not in names)
    rescaling = Layer("Rescaling", name, (0,), {"scale": 1.0, "offset": 0.0})
    moved = [replace(layer, inputs=tuple(number + 1 for number in layer.inputs)) for layer in others]
    return replace(network, layers=(first, rescaling, *moved))


def to_keras(source: Network | str | Path) -> keras.Model:
    """The functional Keras model of a network, or of a `.dcz` file: the same layers, names and weights, bit for bit.

    Raises `FormatError` for a file that is missing or damaged.
    """
    network = source if isinstance(source, Network) else container.load(source)
    first, *others = network.layers
    tensors = [keras.Input(network.input_shape, name=first.name, dtype="float32")]
    for layer in others:
        class_ = _class(layer.kind)
        options = dict(layer.options)
        if "data_format" in _defaults(class_):
            options["data_format"] = "channels_last"
        built = class_(name=layer.name, dtype="float32", **options)
        inputs = [tensors[number] for number in layer.inputs]
        tensors.append(built(inputs if KINDS[layer.kind].merges else inputs[0]))
        for variable in built.weights:
            variable.assign(values(layer.weights[variable.name]))
    return keras.Model(tensors[0], tensors[network.output], name=network.name)


def values(weight: SharedWeight | np.ndarray) -> np.ndarray:
    """The `float32` values of a weight, whichever way it is held."""
    return quantization.from_codebook(weight.codebook, weight.indices) if isinstance(weight, SharedWeight) else weight


class _Found(NamedTuple):
    """A layer, where it was found: the names of the models it is in and its own; Keras's layer."""

    path: tuple[str, ...]
    operation: Any
    layer: Layer


def _graph(model: keras.Model) -> Any:
    """What Keras keeps of a model's graph: inputs, outputs and nodes."""
    graph = getattr(model, "_functional", model)
    own_call = not type(model).call.__module__.startswith("keras.")
    if own_call or not hasattr(graph, "_nodes_by_depth"):
        raise UnsupportedLayerError(
            f"The network {model.name!r} is a {type(model).__name__} without a graph: only Sequential and functional "
            "models that were built with keras.Input can be saved."
        )
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise UnsupportedLayerError(
            f"The network {model.name!r} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs: only "
            "networks with one of each can be saved."
        )
    return graph


def _inline(model: keras.Model, path: tuple[str, ...], source: int, found: list[_Found]) -> int:
    """Append the layers of `model`, fed by layer number `source`, to `found`; returns the number of its output."""
    graph = _graph(model)
    numbers = {id(graph.inputs[0]): source}
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            operation = node.operation
            if node.is_input:
                continue
            inputs = tuple(numbers[id(tensor)] for tensor in node.input_tensors)
            if isinstance(operation, keras.Model):
                _check_call(node)
                number = _inline(operation, (*path, operation.name), inputs[0], found)
            else:
                layer = _layer(node, inputs)
                if layer.weights and any(one.operation is operation for one in found):
                    raise _unsupported(operation, "is used at several places and has weights")
                number = len(found)
                found.append(_Found((*path, operation.name), operation, layer))
            numbers[id(node.outputs[0])] = number
    return numbers[id(graph.outputs[0])]


def _check_call(node) -> None:
    """Refuse arguments of a call that change what comes out, like `training=True`."""
    given = node.arguments.kwargs.items()
    extra = [name for name, value in given if name != "inputs" and value is not None and value is not False]
    if extra or len(node.arguments.args) > 1:
        raise _unsupported(node.operation, f"is called with {', '.join(extra) or 'several arguments'}")


def _layer(node, inputs: tuple[int, ...]) -> Layer:
    operation = node.operation
    kind = type(operation).__name__
    if kind not in KINDS or type(operation) is not _class(kind):
        raise UnsupportedLayerError(
            f"The layer {operation.name!r} is of class {kind}; supported are {supported()}: Keras's own "
            "classes, none derived from them, and no operations."
        )
    _check_call(node)
    dtypes = {operation.compute_dtype, *(variable.dtype for variable in operation.weights)}
    if dtypes != {"float32"}:
        raise _unsupported(operation, f"computes in {', '.join(sorted(dtypes))}, not in float32")
    shapes = [tuple(tensor.shape[1:]) for tensor in (*node.input_tensors, *node.outputs)]
    if any(None in shape for shape in shapes):
        raise _unsupported(operation, f"has open sizes ({shapes[-1]})")
    rank = len(shapes[0])
    config = operation.get_config()
    options = {name: _plain(config[name]) for name in KINDS[kind].options}
    if "activation" in options and operation.activation is not keras.activations.get(_name(options["activation"])):
        raise _unsupported(operation, f"has the activation {options['activation']!r}, which is not Keras's own")
    if kind == "Reshape":
        options["target_shape"] = shapes[-1]
    if kind == "Concatenate":
        options["axis"] = -1 if options["axis"] in (-1, rank) else options["axis"] % (rank + 1)
    _check_other_options(operation, config, rank)
    weights = {variable.name: _weight(variable) for variable in operation.weights}
    return Layer(kind, operation.name, inputs, options, weights)


def _check_other_options(operation, config: Mapping[str, Any], rank: int) -> None:
    """Refuse options that a network does not hold, where they are not as usual."""
    defaults = _defaults(type(operation))
    usual = {"data_format": ("channels_last",), "axis": (-1, rank)}
    for name, value in config.items():
        held = name in KINDS[type(operation).__name__].options
        if held or name in _TRAINING_ONLY or name.endswith(_TRAINING_ONLY_ENDINGS):
            continue
        if value not in usual.get(name, (defaults.get(name),)):
            raise _unsupported(operation, f"has {name}={value!r}")


def _weight(variable) -> SharedWeight | np.ndarray:
    array = np.asarray(variable.numpy())
    if variable.name.endswith("kernel") and np.isfinite(array).all():
        codebook, indices = quantization.codebook(array)
        if codebook.size <= container.MAX_CENTROIDS:
            return SharedWeight(codebook, indices)
    return array


def _unsupported(operation, what: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"The layer {operation.name!r} of class {type(operation).__name__} {what}: this cannot be saved."
    )


def _class(kind: str) -> type | None:
    return getattr(keras.layers, kind, None)


def _defaults(class_: type) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(class_.__init__).parameters.items()}


def _plain(value: Any) -> Any:
    """Tuples for lists, Python's numbers for NumPy's."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _name(activation: Any) -> str | None:
    return activation if activation in ACTIVATIONS else None


def _unique_names(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """A name for each layer, given the names of the models it is in and its own: as few of them as make it unique."""
    names = [""] * len(paths)
    for number in sorted(range(len(paths)), key=lambda number: len(paths[number])):
        path = paths[number]
        prefixed = ("_".join(path[-length:]) for length in range(1, len(path) + 1))
        numbered = ("_".join((*path, str(i))) for i in count(1))
        names[number] = next(name for name in chain(prefixed, numbered) if name not in names)
    return names
