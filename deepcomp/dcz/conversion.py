"""Keras models to `Network`s and back: the same layers, the same weights, the same outputs.

Options have Keras's own names, so `kinds.KINDS` is the only table. What a network cannot hold is refused, unless it
matters in training alone: initializers, regularizers, constraints, random seeds, frozen layers, and layers that pass
their inputs on in inference.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from deepcomp import keras_private, quantization
from deepcomp.dcz import architecture, container, neurons
from deepcomp.dcz.accounting import Parts
from deepcomp.dcz.coding import floats
from deepcomp.dcz.kinds import ACTIVATIONS, KINDS, InvalidNetworkError, supported
from deepcomp.dcz.network import Layer, Network, SharedWeight, entries, layer_shapes, plan_layer
from deepcomp.errors import RecipeError, UnsupportedLayerError

_TRAINING_ONLY = ("name", "trainable", "dtype", "seed", "noise_shape", "synchronized")
_TRAINING_ONLY_ENDINGS = ("_initializer", "_regularizer", "_constraint")
# Classes of layers that pass their inputs on in inference; with them, those whose names begin with Random.
_TRAINING_ONLY_LAYERS = (
    *("ActivityRegularization", "AlphaDropout", "AugMix", "CutMix", "GaussianDropout", "GaussianNoise", "Identity"),
    *("MixUp", "RandAugment", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D"),
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
        for variable in operation.weights:
            variable.assign(values(layer.weights[variable.name]))


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
    origins = [{variable.name: variable for variable in operation.weights} for operation in operations]
    layers = []
    for layer, own in zip(kept, origins, strict=True):
        taken = {name: np.append(np.ravel(own[name].numpy()), 0)[at - 1] for name, at in layer.weights.items()}
        layers.append(replace(layer, weights=taken))
    small = to_keras(replace(network, layers=tuple(layers)))
    parts = {}
    for layer, own, operation in zip(kept, origins, operations, strict=True):
        made = small.get_layer(layer.name)
        for variable in made.weights:
            parts[id(variable)] = own[variable.name], layer.weights[variable.name] - 1
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
    return places * (held != 0) if name.endswith("kernel") else places


def with_unscaled_inputs(network: Network) -> Network:
    """The same network with a Rescaling by 1 at its front, unless it rescales: uint8 inputs are taken as they are."""
    if any(layer.kind == "Rescaling" for layer in network.layers):
        return network
    first, *others = network.layers
    names = {layer.name for layer in network.layers}
    name = next(name for name in chain(["unscaled"], map("unscaled_{}".format, count(1))) if name not in names)
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
    """A layer of a network: Keras's layer, and the names of the models that it is nested in, followed by its own."""

    path: tuple[str, ...]
    operation: Any
    layer: Layer


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
    _check_ends(reading, graph, (), model.name)
    for tensor in graph.inputs:
        shape = tuple(tensor.shape[1:])
        said = f"The network {model.name!r} takes {tensor.dtype} inputs of shape {shape}"
        if tensor.dtype != "float32":
            reading.refuse(model.name, f"{said}, not float32", "build it with keras.Input(..., dtype='float32')")
        if None in shape:
            reading.refuse(model.name, f"{said}, with an open size", "build it with keras.Input of fixed sizes")
    first = keras_private.origin(graph.inputs[0])
    reading.found.append(_Found((first.name,), first, Layer("InputLayer", first.name)))
    _inline(reading, graph, (), [0] * len(graph.inputs))
    names = _unique_names([one.path for one in reading.found])
    for name, one in zip(names, reading.found, strict=True):
        _check_name(reading, "/".join(one.path), name, "the layer")
    if reading.obstacles:
        return reading
    layers = tuple(replace(one.layer, name=name) for name, one in zip(names, reading.found, strict=True))
    network = Network(model.name, tuple(graph.inputs[0].shape[1:]), layers)
    try:
        layer_shapes(network)
    except InvalidNetworkError as error:
        reading.refuse(model.name, str(error), "change the model")
        return reading
    reading.network, reading.operations = network, [one.operation for one in reading.found]
    return reading


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


def _check_ends(reading: _Reading, graph: Any, place: Sequence[str], name: str) -> None:
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        name = "/".join(place) or name
        said = f"The network {name!r} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
        reading.refuse(name, said, "a file holds networks with one of each")


def _inline(reading: _Reading, graph: Any, path: tuple[str, ...], sources: Sequence[int]) -> int:
    """Read the layers of a graph that the layers numbered `sources` feed; returns the number of its first output.

    Where there is an obstacle, numbers may be wrong; reading goes on to find the other obstacles.
    """
    numbers = {id(tensor): source for tensor, source in zip(graph.inputs, sources, strict=True)}
    for node in keras_private.nodes_of(graph):
        if not node.is_input:
            inputs = tuple(numbers[id(tensor)] for tensor in node.input_tensors)
            number = _read_node(reading, node, inputs, path)
            numbers |= {id(output): number for output in node.outputs}
    return numbers[id(graph.outputs[0])]


def _read_node(reading: _Reading, node: Any, inputs: tuple[int, ...], path: tuple[str, ...]) -> int:
    """Read what one node of a graph calls, a layer or a nested model; returns the number of its output."""
    operation, found = node.operation, reading.found
    place = (*path, operation.name)
    if isinstance(operation, keras.Model):
        graph = _graph(operation)
        if graph is None:
            _refuse_without_graph(reading, operation, place)
            return inputs[0]
        _check_ends(reading, graph, place, operation.name)
        _check_call(reading, node, place)
        feeding = inputs if len(inputs) == len(graph.inputs) else inputs[:1] * len(graph.inputs)
        return _inline(reading, graph, place, feeding)
    if _is_training_only(operation) and node.outputs[0].shape == node.input_tensors[0].shape:
        _check_call(reading, node, place)
        _check_dtypes(reading, operation, place)
        name = "/".join(place)
        if name not in reading.left_out:
            reading.left_out.append(name)
        return inputs[0]
    before = len(reading.obstacles)
    layer = _layer(reading, node, inputs, place)
    if layer is None or len(reading.obstacles) > before:
        return inputs[0] if inputs else 0
    if layer.weights and any(one.operation is operation for one in found):
        said = f"{_called(operation, place)} is used at several places and has weights"
        reading.refuse("/".join(place), said, "give every place a layer of its own")
    found.append(_Found(place, operation, layer))
    return len(found) - 1


def _called(operation: Any, place: Sequence[str]) -> str:
    return f"The layer {'/'.join(place)!r} of class {type(operation).__name__}"


def _is_training_only(operation: Any) -> bool:
    name = type(operation).__name__
    listed = name in _TRAINING_ONLY_LAYERS or name.startswith("Random")
    return listed and type(operation) is _class(name)


def _check_call(reading: _Reading, node: Any, place: Sequence[str]) -> None:
    """Refuse arguments of a call that change what it computes, like `training=True` where that is not the default."""
    parameters = inspect.signature(type(node.operation).call).parameters
    extra = []
    for name, value in node.arguments.kwargs.items():
        usual = (None, False, parameters[name].default if name in parameters else None)
        if name != "inputs" and not all(any(part is one for one in usual) for part in keras.tree.flatten(value)):
            extra.append(name)
    if extra or len(node.arguments.args) > 1:
        said = f"{_called(node.operation, place)} is called with {', '.join(extra) or 'several arguments'}"
        reading.refuse("/".join(place), said, "call it with its inputs alone")


def _check_dtypes(reading: _Reading, operation: Any, place: Sequence[str]) -> None:
    dtypes = {operation.compute_dtype, *(variable.dtype for variable in operation.weights)}
    if dtypes != {"float32"}:
        said = f"{_called(operation, place)} computes in {', '.join(sorted(dtypes))}, not in float32"
        reading.refuse("/".join(place), said, "make it with dtype='float32'")


def _check_class(reading: _Reading, operation: Any, place: Sequence[str]) -> bool:
    """Whether an operation is of a class that a file can hold; an obstacle if not."""
    kind = type(operation).__name__
    if kind in KINDS and type(operation) is _class(kind):
        return True
    held = next((base.__name__ for base in type(operation).__mro__[1:] if base is _class(base.__name__)), None)
    if not isinstance(operation, keras.layers.Layer):
        said = f"The operation {'/'.join(place)!r} of class {kind} is not a layer"
        advice = (
            f"use keras.layers.{kind} in its place" if kind in KINDS else f"use layers; supported are {supported()}"
        )
    elif held in KINDS:
        said = f"{_called(operation, place)} is not Keras's own class, but derived from {held}"
        advice = f"use keras.layers.{held} itself"
    else:
        said = f"{_called(operation, place)} is not supported"
        advice = f"use other layers; supported are {supported()}"
    reading.refuse("/".join(place), said, advice)
    return False


def _layer(reading: _Reading, node: Any, inputs: tuple[int, ...], place: Sequence[str]) -> Layer | None:
    """The layer that a node calls, or None for an unknown class. Notes all obstacles in it."""
    operation = node.operation
    if not _check_class(reading, operation, place):
        return None
    _check_call(reading, node, place)
    _check_dtypes(reading, operation, place)
    name, called, kind = "/".join(place), _called(operation, place), type(operation).__name__
    sources, output = [tuple(tensor.shape[1:]) for tensor in node.input_tensors], tuple(node.outputs[0].shape[1:])
    is_open = any(None in shape for shape in sources)
    if None in output and not is_open:
        reading.refuse(name, f"{called} has an output of open size {output}", "fix the sizes")
    rank = len(sources[0])
    config = operation.get_config()
    options = {key: _plain(config[key]) for key in KINDS[kind].options}
    if "activation" in options and operation.activation is not keras.activations.get(_name(options["activation"])):
        given = options["activation"] if isinstance(options["activation"], str) else _short_name(operation.activation)
        said = f"{called} has the activation {given!r}, which a file cannot hold"
        reading.refuse(name, said, f"name one of {', '.join(ACTIVATIONS)}")
        options["activation"] = "linear"
    if kind == "Reshape":
        options["target_shape"] = output
    if kind == "Concatenate":
        options["axis"] = -1 if options["axis"] in (-1, rank) else options["axis"] % (rank + 1)
    _check_other_options(reading, operation, config, rank, place)
    layer = Layer(kind, operation.name, inputs, options)
    if not is_open and None not in output:
        try:
            plan_layer(layer, sources)
        except InvalidNetworkError as error:
            reading.refuse(name, f"{called} cannot be stored: {error}", "change this layer")
    return replace(layer, weights=_weights(reading, operation, place))


def _check_other_options(reading: _Reading, operation: Any, config: Mapping[str, Any], rank: int, place) -> None:
    """Refuse options that a network does not hold, unless they have their usual values."""
    defaults = _defaults(type(operation))
    usual = {"data_format": ("channels_last",), "axis": (-1, rank)}
    for name, value in config.items():
        held = name in KINDS[type(operation).__name__].options
        if held or name in _TRAINING_ONLY or name.endswith(_TRAINING_ONLY_ENDINGS):
            continue
        allowed = usual.get(name, (defaults.get(name),))
        if _plain(value) not in map(_plain, allowed):
            said = f"{_called(operation, place)} has {name}={value!r}"
            reading.refuse("/".join(place), said, f"use {name}={allowed[0]!r}")


def _weights(reading: _Reading, operation: Any, place: Sequence[str]) -> dict[str, SharedWeight | np.ndarray]:
    """The weights of a layer, by name; an obstacle for each that is not finite."""
    weights = {}
    for variable in operation.weights:
        array = np.asarray(variable.numpy())
        if array.dtype == np.float32 and not floats.are_finite(array):
            said = f"The weight {variable.name!r} of the layer {'/'.join(place)!r} has {array[~np.isfinite(array)][:1]}"
            reading.refuse("/".join(place), said, "only finite weights can be stored; train with a lower learning rate")
        weights[variable.name] = _weight(variable.name, array)
    return weights


def _weight(name: str, array: np.ndarray) -> SharedWeight | np.ndarray:
    """A kernel as codebook and indices where that takes less room than its values do."""
    if name.endswith("kernel") and array.dtype == np.float32 and floats.are_finite(array):
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
    return getattr(keras.layers, kind, None)


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
