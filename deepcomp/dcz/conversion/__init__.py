"""Keras models to `Network`s and back: the same layers, the same weights, the same outputs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import keras
import numpy as np

from deepcomp.dcz import container, folding, neurons
from deepcomp.dcz.accounting import Parts
from deepcomp.dcz.conversion.graph import read
from deepcomp.dcz.conversion.layer import CALL_OPTIONS, QUERIES, Obstacle, Reading, class_of, defaults_of
from deepcomp.dcz.kinds import KINDS, Inner, is_kernel, snake_case
from deepcomp.dcz.network import Form, Layer, Network, SharedWeight, entries, require_layers, values
from deepcomp.errors import FormatError, UnsupportedLayerError


def save(model: keras.Model, path: str | Path, coder: str = "range") -> Parts:
    """Write a Keras model as a `.dcz` file; returns what each part takes. Errors as for `from_keras`."""
    return container.save(from_keras(model), path, coder)


def check(model: keras.Model) -> list[Obstacle]:
    """Every obstacle to a `.dcz` file of a model, in the order of its layers; none if `save` works.

    The model may be of any kind; what lies inside layers that a file cannot hold is not looked at. Raises `RecipeError`
    for something else than a model.
    """
    return read(model).obstacles


def left_out(model: keras.Model) -> list[str]:
    """The names of the layers that a `.dcz` file of a model leaves out, because they act in training alone."""
    return read(model).left_out


def from_keras(model: keras.Model) -> Network:
    """The network in a Sequential or functional model of one input and one output; nested models are inlined.

    A kernel of at most 65,535 distinct non-zero values becomes `SharedWeight`, in which -0.0 is a pruned weight. Layers
    keep their names; if two have the same name, the name of the nested model goes in front. Layers that act in training
    alone are left out. Raises `UnsupportedLayerError` with the first obstacle that `check` finds.
    """
    return _converted(model).network


def _converted(model: keras.Model) -> Reading:
    """What is read from a model. Raises `UnsupportedLayerError` with the first obstacle, if there is one."""
    reading = read(model)
    if reading.obstacles:
        first, *others = map(str, reading.obstacles)
        raise UnsupportedLayerError(f"{first} ({len(others)} more: see deepcomp.check)" if others else first)
    return reading


def order_neurons(model: keras.Model) -> None:
    """Put the hidden neurons of a model in the order in which its file is smallest (`neurons.order_neurons`).

    Its outputs change by rounding at most. A model that no file can hold is left as it is.
    """
    reading = read(model)
    if reading.network is not None:
        _assign(neurons.order_neurons(reading.network), reading.operations)


def fold_normalization(model: keras.Model, keep_frozen: bool = False) -> None:
    """Fold the batch normalization of a model into 16 bits for a scale and for a shift (`folding.fold_normalization`).

    What has a constraint stays as it is, and so does a model that no file can hold; with `keep_frozen`, frozen layers
    do. The model computes the same in inference, but is not to be trained further: its moving statistics are gone.
    """
    reading = read(model)
    if reading.network is None:
        return
    kept = [
        number
        for number, operation in enumerate(reading.operations)
        if isinstance(operation, keras.layers.Layer)
        and (any(v.constraint is not None for v in operation.variables) or (keep_frozen and not operation.trainable))
    ]
    _assign(folding.fold_normalization(reading.network, kept), reading.operations)


def _assign(network: Network, operations: Sequence[Any]) -> None:
    """Give Keras's layers the weights of a network."""
    for layer, operation in zip(network.layers, operations, strict=True):
        for name, variable in _variables(layer, operation).items():
            variable.assign(values(layer.weights[name]).reshape(variable.shape))


def without_unused_neurons(model: keras.Model) -> tuple[keras.Model, list[tuple[keras.Variable, np.ndarray]]]:
    """A smaller model that computes the same: without unused hidden neurons (`neurons.remove_unused`).

    With it comes, for each of its `trainable_variables`, the variable of `model` that it is a part of, and its flat
    positions there, `int64, its shape`, -1 for a pruned weight. A model is returned as it is if no file can hold it, or
    if the file would leave out layers that act in training.
    """
    reading = read(model)
    network, operations = reading.network, reading.operations
    if network is None or reading.left_out:
        return model, [(v, np.arange(math.prod(v.shape)).reshape(v.shape)) for v in model.trainable_variables]
    numbered = [
        replace(layer, weights={n: _numbers(n, w) for n, w in layer.weights.items()}) for layer in network.layers
    ]
    kept = neurons.remove_unused(replace(network, layers=tuple(numbered))).layers
    origins = [_variables(layer, operation) for layer, operation in zip(network.layers, operations, strict=True)]
    layers = []
    for layer, own in zip(kept, origins, strict=True):
        taken = {name: np.append(np.ravel(own[name].numpy()), 0)[at - 1] for name, at in layer.weights.items()}
        layers.append(replace(layer, weights=taken))
    small = to_keras(replace(network, layers=tuple(layers)))
    parts = {}
    for layer, own, operation in zip(kept, origins, operations, strict=True):
        if layer.same_as is not None:
            continue
        made = small.get_layer(layer.name)
        for name, variable in _variables(layer, made).items():
            parts[id(variable)] = own[name], (layer.weights[name] - 1).reshape(variable.shape)
        for seed, old in zip(_random_state(made), _random_state(operation), strict=True):
            seed.assign(old.value)  # of dropout, say: training goes on as it would have
    return small, [parts[id(variable)] for variable in small.trainable_variables]


def _random_state(layer: keras.layers.Layer) -> list[keras.Variable]:
    weights = {id(variable) for variable in layer.weights}
    return [variable for variable in layer.variables if id(variable) not in weights]


def _numbers(name: str, weight: SharedWeight | np.ndarray) -> np.ndarray:
    """The flat positions of a weight, counted from 1, and 0 for a pruned weight of a kernel."""
    held = entries(weight)
    places = np.arange(1, held.size + 1).reshape(held.shape)
    return places * (held != 0) if is_kernel(name) else places


def with_unscaled_inputs(network: Network) -> Network:
    """The same network with a Rescaling by 1 at its front, unless it rescales: uint8 inputs are taken as they are."""
    if any(layer.kind == "Rescaling" for layer in network.layers):
        return network
    inputs = len(network.input_shapes)
    names = {layer.name for layer in network.layers}
    name = next(name for name in chain(["unscaled"], map("unscaled_{}".format, count(1))) if name not in names)
    rescaling = Layer("Rescaling", name, (0,), {"scale": 1.0, "offset": 0.0})

    def moved(number: int) -> int:
        return inputs if number == 0 else number + (number >= inputs)

    others = [
        replace(
            layer,
            inputs=tuple(map(moved, layer.inputs)),
            same_as=None if layer.same_as is None else moved(layer.same_as),
        )
        for layer in network.layers[inputs:]
    ]
    layers = (*network.layers[:inputs], rescaling, *others)
    return replace(network, layers=layers, outputs=tuple(map(moved, network.outputs)))


def to_keras(source: Network | str | Path) -> keras.Model:
    """The functional Keras model of a network, or of a `.dcz` file: the same layers, names and weights, bit for bit.

    Raises `FormatError` for a file that is missing or damaged.
    """
    network = source if isinstance(source, Network) else container.load(source)
    name = "This file" if isinstance(source, Network) else str(source)
    require_layers(network, name)
    first = network.layers[: len(network.input_shapes)]
    tensors = [
        keras.Input(shape, name=layer.name, dtype=layer.options["dtype"])
        for layer, shape in zip(first, network.open_shapes, strict=True)
    ]
    made: list[Any] = [None] * len(first)
    for layer in network.layers[len(first) :]:
        built = _built(layer) if layer.same_as is None else made[layer.same_as]
        made.append(built)
        try:
            tensors.append(_called_on(built, layer, [tensors[number] for number in layer.inputs]))
        except ValueError as error:  # a file may declare sizes open on which weights depend
            if not network.has_open_sizes:
                raise
            raise FormatError(
                f"{name}: Keras cannot build the layer {layer.name!r} for inputs of open sizes."
            ) from error
        for name, variable in _variables(layer, built).items():
            variable.assign(values(layer.weights[name]).reshape(variable.shape))
        if layer.kind == "Normalization":
            built.finalize_state()
    inputs = _structured(tensors[: len(first)], network.input_form)
    outputs = _structured([tensors[number] for number in network.outputs], network.output_form)
    return keras.Model(inputs, outputs, name=network.name)


def _called_on(built: Any, layer: Layer, inputs: list) -> Any:
    """The output of Keras's layer of a layer."""
    arguments = {name: layer.options[name] for name in CALL_OPTIONS if layer.options.get(name)}
    if layer.kind in QUERIES:
        return built(*inputs, **arguments)
    return built(inputs if KINDS[layer.kind].merges else inputs[0], **arguments)


def _structured(tensors: Sequence, form: Form) -> Any:
    if form is None:
        return tensors[0]
    return dict(zip(form, tensors, strict=True)) if form else [*tensors]


def _built(layer: Layer) -> Any:
    """Keras's layer of a layer, without its weights."""
    options = dict(layer.options)
    if layer.kind == "LayerScale":
        options |= {"init_values": 1.0, "projection_dim": layer.weights["gamma"].size}
    return _made(layer.kind, options, layer.name)


def _made(kind: str, options: Mapping[str, Any], name: str) -> Any:
    class_ = class_of(kind)
    options = {key: value for key, value in options.items() if key not in CALL_OPTIONS}
    if "data_format" in defaults_of(class_):
        options["data_format"] = "channels_last"
    if kind == "Bidirectional" and options["backward_layer"] == KINDS[kind].options["backward_layer"].default_in(
        options
    ):
        del options["backward_layer"]  # Keras makes it from the other
    if kind == "EinsumDense":
        options["output_shape"] = tuple(size or None for size in options["output_shape"])
        options["bias_axes"] = options["bias_axes"] or None
    if kind == "MultiHeadAttention":
        options["output_shape"] = options["output_shape"] or None
    if kind == "Reshape":
        axis, target = options.pop("open_axis"), [*options["target_shape"]]
        options["target_shape"] = tuple(-1 if number == axis else size for number, size in enumerate(target, 1))
    for key, value in options.items():
        if isinstance(value, Inner):
            options[key] = _made(value.kind, value.options, value.name or snake_case(value.kind))
    return class_(name=name, dtype="float32", **options)


def _variables(layer: Layer, operation: Any) -> dict[str, Any]:
    """The variables of Keras's layer by the names of the weights, which are in their order.

    A Normalization of given numbers has none, and neither has an operation, like `x + y`.
    """
    return dict(zip(layer.weights, operation.weights, strict=False)) if layer.weights else {}
