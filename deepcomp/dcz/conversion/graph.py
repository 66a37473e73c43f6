"""Reads the graph of a Keras model: the layers that it calls, in order, nested models inlined, and every obstacle."""

import inspect
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, count
from types import SimpleNamespace
from typing import Any

import keras

from deepcomp import keras_private
from deepcomp.dcz import architecture, masks, operations
from deepcomp.dcz.codes import InvalidNetworkError, Shape
from deepcomp.dcz.conversion.layer import (
    FOR_EACH_STEP,
    Call,
    Found,
    Reading,
    activation_layer,
    check_call,
    check_class,
    check_dtypes,
    class_of,
    data_of,
    described,
    kind_of,
    read_layer,
)
from deepcomp.dcz.conversion.stand_ins import stand_in
from deepcomp.dcz.kinds import DTYPES, supported
from deepcomp.dcz.network import Form, Layer, Network, OpenShape, layer_shapes, plan_layer
from deepcomp.errors import RecipeError

# Classes of layers that pass their inputs on in inference; with them, those whose names begin with Random.
_TRAINING_ONLY_LAYERS = (
    *("ActivityRegularization", "AlphaDropout", "AugMix", "CutMix", "GaussianDropout", "GaussianNoise", "Identity"),
    *("MixUp", "RandAugment", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "StochasticDepth"),
)


# Open sizes are read as one of these, the first that works: powers of 2, which networks halve and double again.
_EXAMPLE_SIZES = (32, 64, 128, 256, 96, 16, 8, 4, 2, 1, 512, 1024, 2048, 4096, 16384)


def read(model: keras.Model) -> Reading:
    """Read a model: its network, or every obstacle to one. Raises `RecipeError` for something else than a model."""
    if not isinstance(model, keras.Model):
        raise RecipeError(f"A Keras model is needed, not {type(model).__name__}.")
    graph = _graph(model)
    if graph is None:
        reading = Reading()
        _check_name(reading, model.name, model.name, "the network")
        _refuse_without_graph(reading, model, ())
        return reading
    if any(None in tensor.shape[1:] for tensor in graph.inputs):
        return _read_open(model, graph)
    return _read_graph(Reading(), model, graph)


def _read_open(model: keras.Model, graph: Any) -> Reading:
    """Read a model with open sizes: at an example of them, and once more at another to see what follows from them."""
    trials: list[tuple[Reading, Network]] = []
    refused: list[Reading] = []
    fixed: Found | None = None
    for size in _EXAMPLE_SIZES:
        trial = _read_graph(Reading(open_size=size, holds_weights=False), model, graph)
        if trial.network is None:
            refused.append(trial)
            if len(refused) == 2 and refused[0].obstacles == refused[1].obstacles:  # whatever the size
                break
            continue
        trials.append((trial, trial.network))
        fixed = _same_for_all(trials[0][0], trial)
        if fixed is None:
            break
    if not trials:
        return refused[-1]
    (first, one), (_, others) = trials[0], trials[-1]
    reading = _read_graph(Reading(open_size=first.open_size), model, graph)
    if reading.network is None:
        return reading
    if fixed is not None or len(others.layers) != len(one.layers):
        return _refuse_sizes(reading, model.name if fixed is None else _title(fixed))
    layers = [*reading.network.layers]
    for number, (layer, other) in enumerate(zip(one.layers, others.layers, strict=True)):
        axis = _open_axis(layer, other)
        if axis is None:
            _refuse_sizes(reading, _title(reading.found[number]))
        elif axis:
            target = layer.options["target_shape"]
            options = {"target_shape": (*target[: axis - 1], 1, *target[axis:]), "open_axis": axis}
            layers[number] = replace(layers[number], options=options)
    if reading.network is not None:
        reading.network = replace(reading.network, layers=tuple(layers))
    return reading


def _same_for_all(one: Reading, other: Reading) -> Found | None:
    """The first layer or operation with a size that Keras leaves open, and that two readings do not tell apart.

    So small a size looks like a fixed one. None if there is no such layer.
    """
    for found, changed in zip(one.found, other.found, strict=False):
        sizes = zip(found.open_shape or (), found.output or (), changed.output or (), strict=False)
        if any(size is None and a == b for size, a, b in sizes):
            return found
    return None


def _title(found: Found) -> str:
    """The names of a layer or operation and of the models around it."""
    return "/".join((*found.path[:-1], found.operation.name))


def _open_axis(layer: Layer, other: Layer) -> int | None:
    """How a layer depends on open sizes: 0 not at all; the axis, from 1 on, of a Reshape; None in another way."""
    if (layer.kind, layer.inputs) != (other.kind, other.inputs):
        return None
    if layer.kind == "InputLayer" or layer.options == other.options:
        return 0
    if layer.kind != "Reshape":
        return None
    one, changed = layer.options["target_shape"], other.options["target_shape"]
    axes = [axis for axis, (a, b) in enumerate(zip(one, changed, strict=False), 1) if a != b]
    return axes[0] if len(axes) == 1 and len(one) == len(changed) else None


def _refuse_sizes(reading: Reading, layer: str) -> Reading:
    """Note that a layer, or a model, is not the same for each of its open sizes."""
    reading.network = None
    said = f"{layer!r} computes something else for each of the open sizes"
    reading.refuse(layer, said, "build the model with keras.Input of fixed sizes")
    return reading


def _read_graph(reading: Reading, model: keras.Model, graph: Any) -> Reading:
    """Read the graph of a model; its open sizes are those of the reading."""
    _check_name(reading, model.name, model.name, "the network")
    shapes = []
    for number, tensor in enumerate(graph.inputs):
        open_shape, first = tuple(tensor.shape[1:]), keras_private.origin(tensor)
        said = f"The network {model.name!r} takes {tensor.dtype} inputs of shape {open_shape}"
        if tensor.dtype not in DTYPES:
            reading.refuse(model.name, f"{said}, not numbers", "build it with keras.Input(..., dtype='float32')")
        shape = tuple(size or reading.open_size or 1 for size in open_shape)
        axes = tuple(axis for axis, size in enumerate(open_shape, 1) if size is None)
        options = {"dtype": tensor.dtype, "shape": shape if number else (), "open_axes": axes}
        reading.found.append(
            Found((first.name,), first, Layer("InputLayer", first.name, (), options), shape, open_shape)
        )
        shapes.append(shape)
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
    network = Network(model.name, shapes[0], layers, tuple(outputs), *forms)
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


def _check_masks(reading: Reading, network: Network) -> None:
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
            said = (
                f"{described(one.operation, one.path)} gets a mask of a sequence, which the engine does not heed there"
            )
            reading.refuse(name, said, "leave out Masking, and mask_zero of Embedding")

    following = masks.Masks[Shape](
        lambda number: masks.mask_shape(layers[number], inputs(number)),
        lambda a, b: tuple(map(max, zip(a, b, strict=False))),
        lambda number, given: shapes[number][:1],
        check,
    )
    for layer in layers:
        following.enter(layer)


def _form(reading: Reading, name: str, structure: Any, tensors: Sequence) -> Form:
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


def _names(found: Sequence[Found]) -> list[str]:
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


def _refuse_without_graph(reading: Reading, model: keras.Model, place: Sequence[str]) -> None:
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
                check_class(reading, stand_in(layer, ()), inner)
        elif (graph := _graph(layer)) is None:
            _refuse_without_graph(reading, layer, inner)
        else:
            _inline(reading, graph, inner, [0] * len(graph.inputs))


def _check_name(reading: Reading, layer: str, name: str, what: str) -> None:
    try:
        architecture.check_name(name)
    except InvalidNetworkError as error:
        reading.refuse(layer, str(error), f"give {what} another name")


def _inline(
    reading: Reading, graph: Any, path: tuple[str, ...], sources: Sequence[int], steps: int | None = None
) -> list[int]:
    """Read the layers of a graph that the layers numbered `sources` feed; returns the numbers of its outputs.

    `steps`: how often a TimeDistributed layer calls each of them, if one does.

    Where there is an obstacle, numbers may be wrong; reading goes on to find the other obstacles.
    """
    numbers = {id(tensor): source for tensor, source in zip(graph.inputs, sources, strict=True)}
    for node in keras_private.nodes_of(graph):
        if not node.is_input and not _makes_mask(node):
            inputs = tuple(numbers.get(id(tensor), 0) for tensor in data_of(node))
            found = _read_call(reading, reading.call_of(node), inputs, path, steps)
            found = found if len(found) == len(node.outputs) else found[:1] * len(node.outputs)
            numbers |= {id(output): number for output, number in zip(node.outputs, found, strict=True)}
    return [numbers[id(output)] for output in graph.outputs]


def _makes_mask(node: Any) -> bool:
    """Whether a node is an operation that computes the mask of a sequence."""
    return not isinstance(node.operation, keras.layers.Layer) and {tensor.dtype for tensor in node.outputs} == {"bool"}


def _read_call(
    reading: Reading, call: Call, inputs: tuple[int, ...], path: tuple[str, ...], steps: int | None
) -> list[int]:
    """Read what one call of a graph is of, a layer or a nested model; returns the numbers of its outputs.

    `steps`: how often a TimeDistributed layer calls it, if it is inside of one.
    """
    operation, found = call.operation, reading.found
    place = (*path, operation.name)
    if isinstance(operation, keras.Model):
        graph = _graph(operation)
        if graph is None:
            _refuse_without_graph(reading, operation, place)
            return [inputs[0]]
        check_call(reading, call, place)
        feeding = inputs if len(inputs) == len(graph.inputs) else inputs[:1] * len(graph.inputs)
        return _inline(reading, graph, place, feeding, steps)
    if type(operation) is keras.layers.TimeDistributed and isinstance(operation.layer, keras.Model):
        return _read_frames(reading, call, inputs, place, steps)
    if _is_training_only(operation) and call.outputs[0].shape == call.input_tensors[0].shape:
        check_call(reading, call, place)
        check_dtypes(reading, operation, place)
        name = "/".join(place)
        if name not in reading.left_out:
            reading.left_out.append(name)
        return [inputs[0]]
    if not isinstance(operation, keras.layers.Layer):
        before = len(found)
        number = _read_operation(reading, call, inputs, path, steps)
        if steps is not None and any(one.layer.kind not in FOR_EACH_STEP for one in found[before:]):
            said = f"The operation {'/'.join(place)!r} is in a model that a TimeDistributed layer calls"
            reading.refuse("/".join(place), said, "use a layer of one input, or Add")
        return [number]
    before = len(reading.obstacles)
    first = next((number for number, one in enumerate(found) if one.operation is operation), None)
    called = None if first is None else found[first].layer.weights
    layer, output = read_layer(reading, call, inputs, place, steps, called) or (None, None)
    if layer is None or len(reading.obstacles) > before:
        return [inputs[0] if inputs else 0]
    layer = replace(layer, same_as=first if layer.weights else None)
    open_shape = _open_shape(call, steps) if layer.kind != "EinsumDense" else None
    found.append(Found(place, operation, layer, output, open_shape))
    following = activation_layer(operation)
    if following is None:
        return [len(found) - 1]
    return _read_call(reading, _call_after(call, following), (len(found) - 1,), place, steps)


def _call_after(call: Call, layer: Any) -> Call:
    """The call of a layer by another one, on what that one puts out."""
    if not layer.built:  # Keras does so at the first call that computes something
        layer.build(call.outputs[0].shape)
    arguments = SimpleNamespace(args=call.outputs, kwargs={})
    return Call(layer, call.outputs, call.outputs, arguments, inspect.signature(type(layer).call))


def _read_frames(
    reading: Reading, call: Call, inputs: tuple[int, ...], place: tuple[str, ...], steps: int | None
) -> list[int]:
    """Read the layers of a model that a TimeDistributed layer calls: each becomes a TimeDistributed layer."""
    model, count = call.operation.layer, reading.shapes_of(data_of(call), inputs, steps)[0][0]
    graph, inner = _graph(model), (*place, model.name)
    if graph is None:
        _refuse_without_graph(reading, model, inner)
        return [inputs[0]]
    check_call(reading, call, place)
    if steps is not None or count is None or len(graph.inputs) != 1 or len(graph.outputs) != 1:
        said = f"The network {'/'.join(inner)!r} is called for each step in time"
        reading.refuse("/".join(inner), said, "give it one input, one output and fixed sizes, and nest it only once")
        return [inputs[0]]
    return _inline(reading, graph, place, inputs[:1], count)


def _read_operation(
    reading: Reading, call: Call, inputs: tuple[int, ...], path: tuple[str, ...], steps: int | None
) -> int:
    """Read an operation on tensors, such as `x + y`, as the layers that do the same; returns the output's number."""
    operation, place = call.operation, (*path, call.operation.name)
    arguments = tuple(
        None if isinstance(one, list) or keras.utils.is_keras_tensor(one) else one for one in call.arguments.args
    )
    shapes = tuple(tuple(tensor.shape[1:]) for tensor in call.input_tensors)
    if len(inputs) == len(shapes):
        shapes = tuple(reading.shapes_of(call.input_tensors, inputs, steps))
    output, found = _output_shape(call, shapes) if len(call.outputs) == 1 else None, None
    if output is not None:
        own = operations.Call(operation, arguments, shapes, output, reading.open_size is not None)
        found = operations.layers_of(type(operation).__name__, own)
    if found is None or not _is_own_operation(operation):
        kind = kind_of(operation)
        said = f"The operation {'/'.join(place)!r} of class {kind} is not one that a layer does"
        reading.refuse("/".join(place), said, f"use layers; supported are {supported()}")
        return inputs[0] if inputs else 0
    if not found:
        return inputs[0]
    first = len(reading.found)
    for number, step in enumerate(found):
        name = operation.name if number == len(found) - 1 else f"{operation.name}_{step.kind.lower()}"
        sources = tuple(inputs[source] if source >= 0 else first - 1 - source for source in step.inputs)
        layer = Layer(step.kind, name, sources, step.options)
        open_shape = _open_shape(call, steps) if number == len(found) - 1 else None
        reading.found.append(Found((*path, name), operation, layer, _planned(reading, layer), open_shape))
    return len(reading.found) - 1


def _output_shape(call: Call, shapes: Sequence[OpenShape]) -> Shape | None:
    """The shape of what an operation puts out for inputs of these shapes, without the batch; None if it has none."""
    output = tuple(call.outputs[0].shape[1:])
    if any(None in shape for shape in shapes) or len(shapes) != len(call.input_tensors):
        return None
    if None not in output:
        return output
    sized = {
        id(tensor): keras.KerasTensor((tensor.shape[0], *shape), tensor.dtype)
        for tensor, shape in zip(call.input_tensors, shapes, strict=True)
    }
    args, kwargs = keras.tree.map_structure(
        lambda one: sized.get(id(one), one), (call.arguments.args, call.arguments.kwargs)
    )
    try:
        output = tuple(call.operation.compute_output_spec(*args, **kwargs).shape[1:])
    except (ValueError, TypeError, AttributeError):  # the sizes do not fit, or there are several outputs
        return None
    return None if None in output else output


def _open_shape(call: Call, steps: int | None) -> OpenShape:
    """The shape of what a call puts out as Keras has it; with the steps in time, if it is called for each of them."""
    return (*(() if steps is None else (steps,)), *call.outputs[0].shape[1:])


def _planned(reading: Reading, layer: Layer) -> Shape | None:
    """The shape of what a layer puts out, if those of its inputs are known and fit."""
    shapes = [reading.found[number].output for number in layer.inputs]
    try:
        return plan_layer(layer, [shape for shape in shapes if shape is not None])[0] if None not in shapes else None
    except InvalidNetworkError:  # noted when the whole network is checked
        return None


def _is_own_operation(operation: Any) -> bool:
    return type(operation).__module__.startswith("keras.src.")


def _is_training_only(operation: Any) -> bool:
    name = type(operation).__name__
    listed = name in _TRAINING_ONLY_LAYERS or name.startswith("Random")
    return listed and type(operation) is class_of(name)


def _unique_names(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """A name for each layer: its own, with as many names of the models around it in front as make it unique."""
    names = [""] * len(paths)
    for number in sorted(range(len(paths)), key=lambda number: len(paths[number])):
        path = paths[number]
        prefixed = ("_".join(path[-length:]) for length in range(1, len(path) + 1))
        numbered = ("_".join((*path, str(i))) for i in count(1))
        names[number] = next(name for name in chain(prefixed, numbered) if name not in names)
    return names
