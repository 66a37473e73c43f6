"""Keras models to `Network`s and back: the same layers, the same weights, the same outputs.

Options have Keras's own names, so `kinds.KINDS` is the only table. What a network cannot hold is refused, unless it
matters in training alone: initializers, regularizers, constraints, random seeds, frozen layers, and layers that pass
their inputs on in inference.
"""

import inspect
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from deepcomp import keras_private, quantization
from deepcomp.dcz import architecture, container, masks, neurons, operations
from deepcomp.dcz.accounting import Parts
from deepcomp.dcz.codes import InvalidNetworkError, Shape
from deepcomp.dcz.coding import floats
from deepcomp.dcz.kinds import ACTIVATIONS, DTYPES, KINDS, Inner, is_kernel, snake_case, supported
from deepcomp.dcz.network import Form, Layer, Network, SharedWeight, entries, layer_shapes, plan_layer
from deepcomp.errors import RecipeError, UnsupportedLayerError

_TRAINING_ONLY = (
    *("name", "trainable", "dtype", "seed", "noise_shape", "synchronized", "unit_forget_bias"),
    *("dropout", "recurrent_dropout", "unroll"),
)
_TRAINING_ONLY_ENDINGS = ("_initializer", "_regularizer", "_constraint")
# Options that are layers: the attributes that have them in a Bidirectional, and what Keras puts before their names.
_INNER = {"layer": ("forward_layer", "forward_"), "backward_layer": ("backward_layer", "")}
_QUERIES = ("MultiHeadAttention", "GroupedQueryAttention")  # called with query, value and key
_QUERY_NAMES = ("query", "value", "key")
_CALL_OPTIONS = ("use_causal_mask",)  # options that are arguments of a call
_EXPORTED = {"GroupedQueryAttention": "GroupQueryAttention"}  # classes that Keras exports under another name
# Layers that do the same for each step in time alone as for all at once.
_FOR_EACH_STEP = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")
# Classes of layers that pass their inputs on in inference; with them, those whose names begin with Random.
_TRAINING_ONLY_LAYERS = (
    *("ActivityRegularization", "AlphaDropout", "AugMix", "CutMix", "GaussianDropout", "GaussianNoise", "Identity"),
    *("MixUp", "RandAugment", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "StochasticDepth"),
)


@dataclass(frozen=True)
class Obstacle:
    """A reason why a model cannot be saved as a `.dcz` file, the layer that it lies in, and what to do about it.

    `layer` is the name of the layer, after those of the models that it is nested in; or the name of the model, where
    the model as a whole is meant. The text of an obstacle is one line.
    """

    layer: str
    reason: str
    advice: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.advice}."


def save(model: keras.Model, path: str | Path, coder: str = "range") -> Parts:
    """Write a Keras model as a `.dcz` file; returns what each part takes. Errors as for `from_keras`."""
    return container.save(from_keras(model), path, coder)


def check(model: keras.Model) -> list[Obstacle]:
    """Every obstacle to a `.dcz` file of a model, in the order of its layers; none if `save` works.

    The model may be of any kind; what lies inside layers that a file cannot hold is not looked at. Raises `RecipeError`
    for something else than a model.
    """
    return _read(model).obstacles


def left_out(model: keras.Model) -> list[str]:
    """The names of the layers that a `.dcz` file of a model leaves out, because they act in training alone."""
    return _read(model).left_out


def from_keras(model: keras.Model) -> Network:
    """The network in a Sequential or functional model of one input and one output; nested models are inlined.

    A kernel of at most 65,535 distinct non-zero values becomes `SharedWeight`, in which -0.0 is a pruned weight. Layers
    keep their names; if two have the same name, the name of the nested model goes in front. Layers that act in training
    alone are left out. Raises `UnsupportedLayerError` with the first obstacle that `check` finds.
    """
    return _converted(model).network


def order_neurons(model: keras.Model) -> None:
    """Put the hidden neurons of a model in the order in which its file is smallest (`neurons.order_neurons`).

    Its outputs change by rounding at most. A model that no file can hold is left as it is.
    """
    reading = _read(model)
    if reading.network is None:
        return
    ordered = neurons.order_neurons(reading.network)
    for layer, operation in zip(ordered.layers, reading.operations, strict=True):
        for name, variable in _variables(layer, operation).items():
            variable.assign(values(layer.weights[name]).reshape(variable.shape))


def without_unused_neurons(model: keras.Model) -> tuple[keras.Model, list[tuple[keras.Variable, np.ndarray]]]:
    """A smaller model that computes the same: without unused hidden neurons (`neurons.remove_unused`).

    With it comes, for each of its `trainable_variables`, the variable of `model` that it is a part of, and its flat
    positions there, `int64, its shape`, -1 for a pruned weight. A model is returned as it is if no file can hold it, or
    if the file would leave out layers that act in training.
    """
    reading = _read(model)
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
    first = network.layers[: len(network.input_shapes)]
    tensors = [
        keras.Input(shape, name=layer.name, dtype=layer.options["dtype"])
        for layer, shape in zip(first, network.input_shapes, strict=True)
    ]
    made: list[Any] = [None] * len(first)
    for layer in network.layers[len(first) :]:
        built = _built(layer) if layer.same_as is None else made[layer.same_as]
        made.append(built)
        tensors.append(_called_on(built, layer, [tensors[number] for number in layer.inputs]))
        for name, variable in _variables(layer, built).items():
            variable.assign(values(layer.weights[name]).reshape(variable.shape))
        if layer.kind == "Normalization":
            built.finalize_state()
    inputs = _structured(tensors[: len(first)], network.input_form)
    outputs = _structured([tensors[number] for number in network.outputs], network.output_form)
    return keras.Model(inputs, outputs, name=network.name)


def _called_on(built: Any, layer: Layer, inputs: list) -> Any:
    """The output of Keras's layer of a layer."""
    arguments = {name: layer.options[name] for name in _CALL_OPTIONS if layer.options.get(name)}
    if layer.kind in _QUERIES:
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
    class_ = _class(kind)
    options = {key: value for key, value in options.items() if key not in _CALL_OPTIONS}
    if "data_format" in _defaults(class_):
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
    for key, value in options.items():
        if isinstance(value, Inner):
            options[key] = _made(value.kind, value.options, value.name or snake_case(value.kind))
    return class_(name=name, dtype="float32", **options)


def _variables(layer: Layer, operation: Any) -> dict[str, Any]:
    """The variables of Keras's layer by the names of the weights, which are in their order.

    A Normalization of given numbers has none.
    """
    return dict(zip(layer.weights, operation.weights, strict=False))


def values(weight: SharedWeight | np.ndarray) -> np.ndarray:
    """The `float32` values of a weight, whichever way it is held."""
    return quantization.from_codebook(weight.codebook, weight.indices) if isinstance(weight, SharedWeight) else weight


class _Found(NamedTuple):
    """A layer of a network: Keras's layer, and the names of the models that it is nested in, followed by its own."""

    path: tuple[str, ...]
    operation: Any
    layer: Layer
    output: tuple[int, ...] | None = None  # its shape, where it is known


@dataclass
class _Reading:
    """What is read from a model: its network if there is no obstacle, and Keras's layer for each layer of it."""

    network: Network | None = None
    operations: list[Any] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)
    found: list[_Found] = field(default_factory=list)

    def refuse(self, layer: str, reason: str, advice: str) -> None:
        """Note an obstacle once, though the layer may be used several times."""
        obstacle = Obstacle(layer, " ".join(reason.split()).rstrip("."), " ".join(advice.split()))
        if obstacle not in self.obstacles:
            self.obstacles.append(obstacle)


def _converted(model: keras.Model) -> _Reading:
    """What is read from a model. Raises `UnsupportedLayerError` with the first obstacle, if there is one."""
    reading = _read(model)
    if reading.obstacles:
        first, *others = map(str, reading.obstacles)
        raise UnsupportedLayerError(f"{first} ({len(others)} more: see deepcomp.check)" if others else first)
    return reading


def _read(model: keras.Model) -> _Reading:
    if not isinstance(model, keras.Model):
        raise RecipeError(f"A Keras model is needed, not {type(model).__name__}.")
    reading = _Reading()
    graph = _graph(model)
    _check_name(reading, model.name, model.name, "the network")
    if graph is None:
        _refuse_without_graph(reading, model, ())
        return reading
    for number, tensor in enumerate(graph.inputs):
        shape, first = tuple(tensor.shape[1:]), keras_private.origin(tensor)
        said = f"The network {model.name!r} takes {tensor.dtype} inputs of shape {shape}"
        if tensor.dtype not in DTYPES:
            reading.refuse(model.name, f"{said}, not numbers", "build it with keras.Input(..., dtype='float32')")
        if None in shape:
            reading.refuse(model.name, f"{said}, with an open size", "build it with keras.Input of fixed sizes")
        options = {"dtype": tensor.dtype, "shape": shape if number else ()}
        reading.found.append(_Found((first.name,), first, Layer("InputLayer", first.name, (), options)))
    outputs = _inline(reading, graph, (), range(len(graph.inputs)))
    structures = keras_private.inputs_structure(model), keras_private.outputs_structure(model)
    forms = [
        _form(reading, model.name, structure, tensors)
        for structure, tensors in zip(structures, (graph.inputs, graph.outputs), strict=True)
    ]
    names = _names(reading.found)
    for name, one in zip(names, reading.found, strict=True):
        _check_name(reading, "/".join(one.path), name, "the layer")
    if reading.obstacles:
        return reading
    layers = tuple(replace(one.layer, name=name) for name, one in zip(names, reading.found, strict=True))
    network = Network(model.name, tuple(graph.inputs[0].shape[1:]), layers, tuple(outputs), *forms)
    try:
        layer_shapes(network)
    except InvalidNetworkError as error:
        reading.refuse(model.name, str(error), "change the model")
        return reading
    _check_masks(reading, network)
    if reading.obstacles:
        return reading
    reading.network, reading.operations = network, [one.operation for one in reading.found]
    return reading


def _check_masks(reading: _Reading, network: Network) -> None:
    """Refuse layers on which a mask has an effect that is not reproduced."""
    layers, shapes = network.layers, [one.output for one in layer_shapes(network)]

    def inputs(number: int) -> list[Shape]:
        return [shapes[source] for source in layers[number].inputs]

    def check(number: int, given: Sequence[Shape | None]) -> None:
        layer, one = layers[number], reading.found[number]
        name, is_layer = "/".join(one.path), isinstance(one.operation, keras.layers.Layer)
        if not is_layer and masks.passes_on(layer):
            said = f"The operation {name!r} gets a mask, which it does not pass on"
            reading.refuse(name, said, f"use a layer, like keras.layers.{layer.kind}")
        elif is_layer and not masks.is_heeded(layer, inputs(number), given):
            said = f"{_called(one.operation, one.path)} gets a mask of a sequence, which the engine does not heed there"
            reading.refuse(name, said, "leave out Masking, and mask_zero of Embedding")

    following = masks.Masks[Shape](
        lambda number: masks.mask_shape(layers[number], inputs(number)),
        lambda a, b: tuple(map(max, zip(a, b, strict=False))),
        lambda number, given: shapes[number][:1],
        check,
    )
    for layer in layers:
        following.enter(layer)


def _form(reading: _Reading, name: str, structure: Any, tensors: Sequence) -> Form:
    """How a model holds its inputs or outputs together; one alone is given as it is."""
    if len(tensors) == 1:
        return None
    if isinstance(structure, list | tuple) and all(map(keras.utils.is_keras_tensor, structure)):
        return ()
    if isinstance(structure, dict) and all(map(keras.utils.is_keras_tensor, structure.values())):
        return tuple(next(key for key, one in structure.items() if one is tensor) for tensor in tensors)
    said = f"The network {name!r} has inputs or outputs in a structure within another"
    reading.refuse(name, said, "give them as a list or as a dictionary")
    return ()


def _names(found: Sequence[_Found]) -> list[str]:
    """A name for each layer: unique, and for further calls of a layer that of the first with a number."""
    own = iter(_unique_names([one.path for one in found if one.layer.same_as is None]))
    names: list[str] = []
    calls: Counter[int] = Counter()
    for one in found:
        first = one.layer.same_as
        if first is None:
            names.append(next(own))
        else:
            calls[first] += 1
            names.append(architecture.call_name(names[first], calls[first]))
    return names


def _graph(model: keras.Model) -> Any | None:
    """Keras's graph of a model, with inputs and outputs; None if it computes more than the graph."""
    own_call = not getattr(type(model).call, "__module__", "").startswith("keras.")
    return None if own_call else keras_private.graph_of(model)


def _refuse_without_graph(reading: _Reading, model: keras.Model, place: Sequence[str]) -> None:
    """Note that a model has no graph, and the obstacles in its layers as far as they can be found."""
    name = "/".join(place) or model.name
    said = f"The network {name!r} is a {type(model).__name__} without a graph"
    if type(model) is keras.Sequential:
        reading.refuse(name, said, "put keras.Input in front of its layers")
    else:
        reading.refuse(name, said, "build it from keras.Input, as a Sequential or functional model")
    for layer in model.layers:
        inner = (*place, layer.name)
        if not isinstance(layer, keras.Model):
            if not _is_training_only(layer):
                _check_class(reading, layer, inner)
        elif (graph := _graph(layer)) is None:
            _refuse_without_graph(reading, layer, inner)
        else:
            _inline(reading, graph, inner, [0] * len(graph.inputs))


def _check_name(reading: _Reading, layer: str, name: str, what: str) -> None:
    try:
        architecture.check_name(name)
    except InvalidNetworkError as error:
        reading.refuse(layer, str(error), f"give {what} another name")


def _inline(
    reading: _Reading, graph: Any, path: tuple[str, ...], sources: Sequence[int], steps: int | None = None
) -> list[int]:
    """Read the layers of a graph that the layers numbered `sources` feed; returns the numbers of its outputs.

    `steps`: how often a TimeDistributed layer calls each of them, if one does.

    Where there is an obstacle, numbers may be wrong; reading goes on to find the other obstacles.
    """
    numbers = {id(tensor): source for tensor, source in zip(graph.inputs, sources, strict=True)}
    for node in keras_private.nodes_of(graph):
        if not node.is_input and not _makes_mask(node):
            inputs = tuple(numbers.get(id(tensor), 0) for tensor in _data_of(node))
            found = _read_node(reading, node, inputs, path, steps)
            found = found if len(found) == len(node.outputs) else found[:1] * len(node.outputs)
            numbers |= {id(output): number for output, number in zip(node.outputs, found, strict=True)}
    return [numbers[id(output)] for output in graph.outputs]


def _makes_mask(node: Any) -> bool:
    """Whether a node is an operation that computes the mask of a sequence."""
    return not isinstance(node.operation, keras.layers.Layer) and {tensor.dtype for tensor in node.outputs} == {"bool"}


def _data_of(node: Any) -> list[Any]:
    """The inputs of a node, without the mask that hangs on one of them."""
    mask, tensors = node.arguments.kwargs.get("mask"), list(node.input_tensors)
    if keras.utils.is_keras_tensor(mask) and any(_is_same(mask, keras_private.mask_of(tensor)) for tensor in tensors):
        tensors = [tensor for tensor in tensors if tensor is not mask]
    return tensors


def _is_same(one: Any, other: Any) -> bool:
    """Whether the same operations compute two tensors: in a copy of a model, a mask is computed once more."""
    if one is other or not (keras.utils.is_keras_tensor(one) and keras.utils.is_keras_tensor(other)):
        return one is other
    first, second = keras_private.call_of(one), keras_private.call_of(other)
    if isinstance(first.operation, keras.layers.Layer) or type(first.operation) is not type(second.operation):
        return False
    pairs = zip(first.input_tensors, second.input_tensors, strict=False)
    same = len(first.input_tensors) == len(second.input_tensors) and all(_is_same(a, b) for a, b in pairs)
    return same and _settings(first) == _settings(second)


def _settings(node: Any) -> list:
    """What an operation of a node is given besides tensors."""
    own = [(key, value) for key, value in vars(node.operation).items() if key[0] != "_" and key != "name"]
    given = keras.tree.flatten([node.arguments.args, node.arguments.kwargs, sorted(own, key=lambda pair: pair[0])])
    return [value for value in given if isinstance(value, int | float | str | type(None))]


def _read_node(
    reading: _Reading, node: Any, inputs: tuple[int, ...], path: tuple[str, ...], steps: int | None
) -> list[int]:
    """Read what one node of a graph calls, a layer or a nested model; returns the numbers of its outputs.

    `steps`: how often a TimeDistributed layer calls it, if it is inside of one.
    """
    operation, found = node.operation, reading.found
    place = (*path, operation.name)
    if isinstance(operation, keras.Model):
        graph = _graph(operation)
        if graph is None:
            _refuse_without_graph(reading, operation, place)
            return [inputs[0]]
        _check_call(reading, node, place)
        feeding = inputs if len(inputs) == len(graph.inputs) else inputs[:1] * len(graph.inputs)
        return _inline(reading, graph, place, feeding, steps)
    if type(operation) is keras.layers.TimeDistributed and isinstance(operation.layer, keras.Model):
        return _read_frames(reading, node, inputs, place, steps)
    if _is_training_only(operation) and node.outputs[0].shape == node.input_tensors[0].shape:
        _check_call(reading, node, place)
        _check_dtypes(reading, operation, place)
        name = "/".join(place)
        if name not in reading.left_out:
            reading.left_out.append(name)
        return [inputs[0]]
    if not isinstance(operation, keras.layers.Layer):
        before = len(found)
        number = _read_operation(reading, node, inputs, path)
        if steps is not None and any(one.layer.kind not in _FOR_EACH_STEP for one in found[before:]):
            said = f"The operation {'/'.join(place)!r} is in a model that a TimeDistributed layer calls"
            reading.refuse("/".join(place), said, "use a layer of one input, or Add")
        return [number]
    before = len(reading.obstacles)
    first = next((number for number, one in enumerate(found) if one.operation is operation), None)
    called = None if first is None else found[first].layer.weights
    layer, output = _layer(reading, node, inputs, place, steps, called) or (None, None)
    if layer is None or len(reading.obstacles) > before:
        return [inputs[0] if inputs else 0]
    found.append(_Found(place, operation, replace(layer, same_as=first if layer.weights else None), output))
    return [len(found) - 1]


def _read_frames(
    reading: _Reading, node: Any, inputs: tuple[int, ...], place: tuple[str, ...], steps: int | None
) -> list[int]:
    """Read the layers of a model that a TimeDistributed layer calls: each becomes a TimeDistributed layer."""
    model, count = node.operation.layer, _data_of(node)[0].shape[1]
    graph, inner = _graph(model), (*place, model.name)
    if graph is None:
        _refuse_without_graph(reading, model, inner)
        return [inputs[0]]
    _check_call(reading, node, place)
    if steps is not None or count is None or len(graph.inputs) != 1 or len(graph.outputs) != 1:
        said = f"The network {'/'.join(inner)!r} is called for each step in time"
        reading.refuse("/".join(inner), said, "give it one input, one output and fixed sizes, and nest it only once")
        return [inputs[0]]
    return _inline(reading, graph, place, inputs[:1], count)


def _read_operation(reading: _Reading, node: Any, inputs: tuple[int, ...], path: tuple[str, ...]) -> int:
    """Read an operation on tensors, such as `x + y`, as the layers that do the same; returns the output's number."""
    operation, place = node.operation, (*path, node.operation.name)
    arguments = tuple(
        None if isinstance(one, list) or keras.utils.is_keras_tensor(one) else one for one in node.arguments.args
    )
    shapes = tuple(tuple(tensor.shape[1:]) for tensor in node.input_tensors)
    output = tuple(node.outputs[0].shape[1:])
    steps = None
    if len(node.outputs) == 1 and None not in (*output, *(size for shape in shapes for size in shape)):
        steps = operations.layers_of(type(operation).__name__, operations.Call(operation, arguments, shapes, output))
    if steps is None or not _is_own_operation(operation):
        kind = _kind(operation)
        said = f"The operation {'/'.join(place)!r} of class {kind} is not one that a layer does"
        reading.refuse("/".join(place), said, f"use layers; supported are {supported()}")
        return inputs[0] if inputs else 0
    if not steps:
        return inputs[0]
    first = len(reading.found)
    for number, step in enumerate(steps):
        name = operation.name if number == len(steps) - 1 else f"{operation.name}_{step.kind.lower()}"
        sources = tuple(inputs[source] if source >= 0 else first - 1 - source for source in step.inputs)
        layer = Layer(step.kind, name, sources, step.options)
        reading.found.append(_Found((*path, name), operation, layer))
    return len(reading.found) - 1


def _is_own_operation(operation: Any) -> bool:
    return type(operation).__module__.startswith("keras.src.")


def _called(operation: Any, place: Sequence[str]) -> str:
    return f"The layer {'/'.join(place)!r} of class {type(operation).__name__}"


def _is_training_only(operation: Any) -> bool:
    name = type(operation).__name__
    listed = name in _TRAINING_ONLY_LAYERS or name.startswith("Random")
    return listed and type(operation) is _class(name)


def _check_call(reading: _Reading, node: Any, place: Sequence[str]) -> None:
    """Refuse arguments of a call that change what it computes, like `training=True` where that is not the default."""
    parameters = inspect.signature(type(node.operation).call).parameters
    kind, extra = _kind(node.operation), []
    usual_names = {"inputs", *(_QUERY_NAMES if kind in _QUERIES else ())}
    usual_names |= {*_CALL_OPTIONS} & ({*KINDS[kind].options} if kind in KINDS else set())
    most = 3 if kind in _QUERIES else 1
    for name, value in node.arguments.kwargs.items():
        usual = (None, False, parameters[name].default if name in parameters else None)
        if name == "mask" and len(_data_of(node)) < len(node.input_tensors):
            continue
        if name not in usual_names and not all(any(part is one for one in usual) for part in keras.tree.flatten(value)):
            extra.append(name)
    if extra or len(node.arguments.args) > most:
        said = f"{_called(node.operation, place)} is called with {', '.join(extra) or 'several arguments'}"
        reading.refuse("/".join(place), said, "call it with its inputs alone")


def _arguments(node: Any) -> dict[str, Any]:
    """The arguments of a call of a layer, by name."""
    bound = inspect.signature(type(node.operation).call).bind(None, *node.arguments.args, **node.arguments.kwargs)
    return bound.arguments


def _kind(operation: Any) -> str:
    """The kind of layer that an operation is, if it is one."""
    return type(operation).__name__


def _check_dtypes(reading: _Reading, operation: Any, place: Sequence[str]) -> None:
    variables = [variable for variable in operation.weights if variable.name != "count"]  # of a Normalization
    dtypes = {operation.compute_dtype, *(variable.dtype for variable in variables)}
    if dtypes != {"float32"}:
        said = f"{_called(operation, place)} computes in {', '.join(sorted(dtypes))}, not in float32"
        reading.refuse("/".join(place), said, "make it with dtype='float32'")


def _check_class(reading: _Reading, operation: Any, place: Sequence[str]) -> bool:
    """Whether an operation is of a class that a file can hold; an obstacle if not."""
    kind = _kind(operation)
    if kind in KINDS and type(operation) is _class(kind):
        return True
    held = next((base.__name__ for base in type(operation).__mro__[1:] if base is _class(base.__name__)), None)
    if held in KINDS:
        said = f"{_called(operation, place)} is not Keras's own class, but derived from {held}"
        advice = f"use keras.layers.{held} itself"
    else:
        said = f"{_called(operation, place)} is not supported"
        advice = f"use other layers; supported are {supported()}"
    reading.refuse("/".join(place), said, advice)
    return False


def _layer(
    reading: _Reading,
    node: Any,
    inputs: tuple[int, ...],
    place: Sequence[str],
    steps: int | None,
    weights: Mapping | None,
) -> tuple[Layer, tuple[int, ...] | None] | None:
    """The layer that a node calls, and the shape of its output if it is known; None for an unknown class.

    Notes all obstacles in it. Where Keras leaves a size open, it follows from those of the layers before.
    `weights` are its weights if an earlier node calls it too.
    """
    operation = node.operation
    if not _check_class(reading, operation, place):
        return None
    _check_call(reading, node, place)
    _check_dtypes(reading, operation, place)
    name, called, kind = "/".join(place), _called(operation, place), _kind(operation)
    tensors, arguments = _data_of(node), _arguments(node)
    if kind in _QUERIES:
        numbers = {id(tensor): number for tensor, number in zip(tensors, inputs, strict=True)}
        tensors = [arguments[one] for one in _QUERY_NAMES if arguments.get(one) is not None]
        inputs = tuple(numbers[id(tensor)] for tensor in tensors)
    sources, output = [tuple(tensor.shape[1:]) for tensor in tensors], tuple(node.outputs[0].shape[1:])
    follows = kind == "EinsumDense" or (kind != "Reshape" and any(None in shape for shape in sources))
    if steps is None:
        known = [reading.found[number].output for number in inputs]
        sources = [a if b is None else b for a, b in zip(sources, known, strict=True)]
    is_open = any(None in shape for shape in sources)
    if None in output and not (follows or is_open):
        reading.refuse(name, f"{called} has an output of open size {output}", "fix the sizes")
    options = _options(reading, operation, sources, output, place)
    if any(options[key] is None for key in options.keys() & _INNER.keys()):  # noted as an obstacle
        return None
    options |= {key: bool(arguments.get(key)) for key in _CALL_OPTIONS if key in options}
    layer = Layer(kind, operation.name, inputs, options)
    if steps is not None and kind not in _FOR_EACH_STEP:
        if not KINDS[kind].inner:
            reading.refuse(name, f"{called} is in a model that a TimeDistributed layer calls", "use another layer")
            return None
        inner = Inner(kind, options, "" if operation.name == snake_case(kind) else operation.name)
        layer = Layer("TimeDistributed", operation.name, inputs, {"layer": inner})
        sources = [(steps, *shape) for shape in sources]
    planned = None
    if not is_open and (follows or None not in output):
        try:
            planned, _ = plan_layer(layer, sources)
        except InvalidNetworkError as error:
            reading.refuse(name, f"{called} cannot be stored: {error}", "change this layer")
    if weights is None:
        weights = _weights(reading, layer, operation, sources, place)
    return replace(layer, weights=weights), planned


def _options(
    reading: _Reading, operation: Any, inputs: Sequence[Shape], output: Shape, place: Sequence[str]
) -> dict[str, Any]:
    """The options of a layer, from the shapes of its inputs and of its output. Notes what no file holds."""
    kind, called = _kind(operation), _called(operation, place)
    config = operation.get_config()
    options = {key: _plain(config.get(key)) for key in KINDS[kind].options if key not in _INNER}
    for key in KINDS[kind].options:
        if key in _INNER:
            options[key] = _inner(reading, operation, key, inputs, output, place)
    _adapt_options(kind, options, inputs)
    for key in ("activation", "recurrent_activation"):
        if key in options and getattr(operation, key) is not keras.activations.get(_name(options[key])):
            given = options[key] if isinstance(options[key], str) else _short_name(getattr(operation, key))
            said = f"{called} has the {key} {given!r}, which a file cannot hold"
            reading.refuse("/".join(place), said, f"name one of {', '.join(ACTIVATIONS)}")
            options[key] = "linear"
    if kind == "Reshape":
        options["target_shape"] = output
    _check_other_options(reading, operation, config, len(inputs[0]), place)
    if kind == "EinsumDense" and operation.bias is not None:
        _check_bias(reading, operation, output, place)
    return options


def _inner(
    reading: _Reading, outer: Any, key: str, inputs: Sequence[Shape], output: Shape, place: Sequence[str]
) -> Any:
    """The layer inside another that its option `key` names; None for one that no file holds."""
    attribute, prefix = _INNER[key]
    if _kind(outer) == "TimeDistributed":
        attribute, prefix, inputs, output = "layer", "", [shape[1:] for shape in inputs], output[1:]
    layer = getattr(outer, attribute)
    kind, inner = _kind(layer), (*place, layer.name)
    code = KINDS[_kind(outer)].options[key].code
    if not _check_class(reading, layer, inner):
        return None
    _check_dtypes(reading, layer, inner)
    if not code.holds(kind):
        said = f"{_called(layer, inner)} cannot be inside a layer of class {type(outer).__name__}"
        reading.refuse("/".join(inner), said, "use another layer")
        return None
    name = layer.name.removeprefix(prefix)
    name = "" if name == snake_case(kind) and key == "layer" else name
    return Inner(kind, _options(reading, layer, inputs, output, inner), name)


def _adapt_options(kind: str, options: dict[str, Any], inputs: Sequence[Shape]) -> None:
    """Give options the form in which a network holds them: axes are tuples and count from 1 behind the batch."""
    rank = len(inputs[0])
    if kind == "Concatenate":
        options["axis"] = -1 if options["axis"] in (-1, rank) else options["axis"] % (rank + 1)
    elif "axis" in options:
        axes = options["axis"] if isinstance(options["axis"], tuple) else (options["axis"],)
        axes = () if options["axis"] is None else axes
        options["axis"] = tuple(sorted(axis % (rank + 1) for axis in axes))
    if kind == "MultiHeadAttention":
        options["output_shape"] = options["output_shape"] or ()
    if kind == "EinsumDense":
        options["bias_axes"] = options["bias_axes"] or ""
        options["output_shape"] = tuple(size or 0 for size in options["output_shape"])
    if kind == "Dot":
        axes = options["axes"] if isinstance(options["axes"], tuple) else (options["axes"],) * 2
        options["axes"] = tuple(axis % (len(shape) + 1) for axis, shape in zip(axes, inputs, strict=True))
    if kind == "PReLU":
        options["shared_axes"] = options["shared_axes"] or ()
    if "output_padding" in options and isinstance(options["output_padding"], int):
        options["output_padding"] = (options["output_padding"],) * len(options["strides"])
    if "output_size" in options and isinstance(options["output_size"], int):
        options["output_size"] = (options["output_size"],) * (rank - 1)


def _check_other_options(reading: _Reading, operation: Any, config: Mapping[str, Any], rank: int, place) -> None:
    """Refuse options that a network does not hold, unless they have their usual values."""
    defaults = _defaults(type(operation))
    usual = {"data_format": ("channels_last",), "axis": (-1, rank, (-1,), (rank,)), "rms_scaling": (None, False)}
    usual |= {"attention_axes": (None, tuple(range(1, rank)))}
    # The weights tell these.
    usual |= {name: (config.get(name),) for name in ("projection_dim", "init_values", "mean", "variance")}
    for name, value in config.items():
        held = name in KINDS[type(operation).__name__].options
        if held or name in _TRAINING_ONLY or name.endswith(_TRAINING_ONLY_ENDINGS):
            continue
        allowed = usual.get(name, (defaults.get(name),))
        if _plain(value) not in map(_plain, allowed):
            said = f"{_called(operation, place)} has {name}={value!r}"
            reading.refuse("/".join(place), said, f"use {name}={allowed[0]!r}")


def _check_bias(reading: _Reading, operation: Any, output: Shape, place: Sequence[str]) -> None:
    """Refuse a bias that Keras adds along another axis than its own: with TensorFlow it looks for one of its size."""
    bias = tuple(operation.bias.shape)
    axes = [len(output) - len(bias) + axis for axis, size in enumerate(bias) if size > 1]
    if len(axes) != 1:
        return
    size = bias[axes[0] - len(output)]
    added = next((axis for axis in (len(output) - 1, 0) if output[axis] == size), axes[0])
    if added != axes[0]:
        said = f"{_called(operation, place)} has a bias for axis {axes[0] + 1}, which Keras adds along axis {added + 1}"
        reading.refuse("/".join(place), said, f"give axis {added + 1} another size than {size}, or leave out the bias")


def _weights(
    reading: _Reading, layer: Layer, operation: Any, sources: Sequence, place: Sequence[str]
) -> dict[str, SharedWeight | np.ndarray]:
    """The weights of a layer, by name; an obstacle for each that is not finite."""
    weights = {}
    for name, array in _arrays(layer, operation, sources).items():
        if array.dtype == np.float32 and not floats.are_finite(array):
            said = f"The weight {name!r} of the layer {'/'.join(place)!r} has {array[~np.isfinite(array)][:1]}"
            reading.refuse("/".join(place), said, "only finite weights can be stored; train with a lower learning rate")
        weights[name] = _weight(name, array)
    return weights


def _arrays(layer: Layer, operation: Any, sources: Sequence) -> dict[str, np.ndarray]:
    try:
        _, shapes = plan_layer(layer, sources)
    except (InvalidNetworkError, TypeError):  # noted as an obstacle
        return {}
    if layer.kind == "Normalization":
        return {name: np.asarray(getattr(operation, name), np.float32).reshape(shapes[name]) for name in shapes}
    return {name: np.atleast_1d(variable.numpy()) for name, variable in zip(shapes, operation.weights, strict=False)}


def _weight(name: str, array: np.ndarray) -> SharedWeight | np.ndarray:
    """A kernel as codebook and indices where that takes less room than its values do."""
    if is_kernel(name) and array.dtype == np.float32 and floats.are_finite(array):
        left = int(np.count_nonzero(array))
        # A value of its own takes about 24 bits, a shared one its index and its part of the codebook.
        most = min(container.MAX_CENTROIDS, left * 3 // 4)
        found = quantization.codebook_up_to(array, most)
        if found is not None and 32 * found[0].size + left * found[0].size.bit_length() <= max(24 * left, 32):
            return SharedWeight(*found)
        if np.count_nonzero(array.view(np.uint32)) > left:
            return array + np.float32(0)  # -0.0 is a pruned weight
    return array


def _class(kind: str) -> type | None:
    return getattr(keras.layers, _EXPORTED.get(kind, kind), None) or keras_private.application_layer(kind)


def _defaults(class_: type) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(class_.__init__).parameters.items()}


def _plain(value: Any) -> Any:
    """Tuples for lists and arrays, Python's numbers for NumPy's."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _name(activation: Any) -> str | None:
    return activation if activation in ACTIVATIONS else None


def _short_name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _unique_names(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """A name for each layer: its own, with as many names of the models around it in front as make it unique."""
    names = [""] * len(paths)
    for number in sorted(range(len(paths)), key=lambda number: len(paths[number])):
        path = paths[number]
        prefixed = ("_".join(path[-length:]) for length in range(1, len(path) + 1))
        numbered = ("_".join((*path, str(i))) for i in count(1))
        names[number] = next(name for name in chain(prefixed, numbered) if name not in names)
    return names
