"""What a network holds of one Keras layer: its kind, options and weights, or why it holds none of them.

Options have Keras's own names, so `kinds.KINDS` is the only table. What a network cannot hold is an obstacle, unless it
matters in training alone: initializers, regularizers, constraints, random seeds, frozen layers.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import keras
import numpy as np

from deepcomp import keras_private, quantization
from deepcomp.dcz import container
from deepcomp.dcz.codes import InvalidNetworkError, Shape
from deepcomp.dcz.coding import floats
from deepcomp.dcz.conversion.stand_ins import stand_in
from deepcomp.dcz.kinds import ACTIVATIONS, KINDS, Inner, is_kernel, snake_case, supported
from deepcomp.dcz.network import Layer, Network, SharedWeight, plan_layer

_TRAINING_ONLY = (
    *("name", "trainable", "dtype", "seed", "noise_shape", "synchronized", "unit_forget_bias"),
    *("dropout", "recurrent_dropout", "unroll"),
)
_TRAINING_ONLY_ENDINGS = ("_initializer", "_regularizer", "_constraint")
# Options that are layers: the attributes that have them in a Bidirectional, and what Keras puts before their names.
_INNER = {"layer": ("forward_layer", "forward_"), "backward_layer": ("backward_layer", "")}
QUERIES = ("MultiHeadAttention", "GroupedQueryAttention")  # called with query, value and key
_QUERY_NAMES = ("query", "value", "key")
CALL_OPTIONS = ("use_causal_mask",)  # options that are arguments of a call
_EXPORTED = {"GroupedQueryAttention": "GroupQueryAttention"}  # classes that Keras exports under another name
# Layers that do the same for each step in time alone as for all at once.
FOR_EACH_STEP = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")


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


class Found(NamedTuple):
    """A layer of a network: Keras's layer, and the names of the models that it is nested in, followed by its own."""

    path: tuple[str, ...]
    operation: Any
    layer: Layer
    output: Shape | None = None  # its shape, where it is known
    open_shape: tuple[int | None, ...] | None = None  # as Keras has it


class Call(NamedTuple):
    """A call of a layer or an operation in a graph."""

    operation: Any
    input_tensors: Sequence[Any]
    outputs: Sequence[Any]
    arguments: Any  # `args` and `kwargs`
    signature: inspect.Signature  # of the method that is called


@dataclass
class Reading:
    """What is read from a model: its network if there is no obstacle, and Keras's layer for each layer of it.

    `open_size` stands for each open size of an input. Without weights, no layers are found to be called again.
    """

    open_size: int | None = None
    holds_weights: bool = True
    network: Network | None = None
    operations: list[Any] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    obstacles: list[Obstacle] = field(default_factory=list)
    found: list[Found] = field(default_factory=list)
    stand_ins: dict[tuple, Any] = field(default_factory=dict)  # by the layer's id and the shape of its input

    def call_of(self, node: Any) -> Call:
        """What a node of a graph calls; a layer may have another one in its place."""
        operation = node.operation
        if isinstance(operation, keras.layers.Layer):
            shape = tuple(node.input_tensors[0].shape)
            operation = self.stand_ins.setdefault((id(operation), shape), stand_in(operation, shape))
        signature = inspect.signature(type(node.operation).call)
        return Call(operation, node.input_tensors, node.outputs, node.arguments, signature)

    def shapes_of(self, tensors: Sequence[Any], inputs: Sequence[int], steps: int | None) -> list[Any]:
        """The shapes of tensors that layers of these numbers put out, and from which open sizes follow.

        With `steps`, a TimeDistributed layer makes the call: they are those of one step.
        """
        own = [tuple(tensor.shape[1:]) for tensor in tensors]
        known = [self.found[number].output for number in inputs]
        known = [shape if shape is None or steps is None else shape[1:] for shape in known]
        return [shape if found is None else found for shape, found in zip(own, known, strict=True)]

    def refuse(self, layer: str, reason: str, advice: str) -> None:
        """Note an obstacle once, though the layer may be used several times."""
        obstacle = Obstacle(layer, " ".join(reason.split()).rstrip("."), " ".join(advice.split()))
        if obstacle not in self.obstacles:
            self.obstacles.append(obstacle)


def read_layer(
    reading: Reading,
    call: Call,
    inputs: tuple[int, ...],
    place: Sequence[str],
    steps: int | None,
    weights: Mapping | None,
) -> tuple[Layer, tuple[int, ...] | None] | None:
    """The layer of a call, and the shape of its output if it is known; None for an unknown class.

    Notes all obstacles in it. Where Keras leaves a size open, it follows from those of the layers before.
    `weights` are its weights if an earlier call is of it, too.
    """
    operation = call.operation
    if not check_class(reading, operation, place):
        return None
    check_call(reading, call, place)
    check_dtypes(reading, operation, place)
    name, called, kind = "/".join(place), described(operation, place), kind_of(operation)
    tensors, arguments = data_of(call), _arguments(call)
    if kind in QUERIES:
        numbers = {id(tensor): number for tensor, number in zip(tensors, inputs, strict=True)}
        tensors = [arguments[one] for one in _QUERY_NAMES if arguments.get(one) is not None]
        inputs = tuple(numbers[id(tensor)] for tensor in tensors)
    sources, output = reading.shapes_of(tensors, inputs, steps), tuple(call.outputs[0].shape[1:])
    follows = kind == "EinsumDense" or (kind != "Reshape" and any(None in tensor.shape[1:] for tensor in tensors))
    is_open = any(None in shape for shape in sources)
    if kind == "Reshape" and None in output and not is_open:
        output = _reshaped(operation, sources[0]) or output
    if None in output and not (follows or is_open):
        reading.refuse(name, f"{called} has an output of open size {output}", "fix the sizes")
    options = _options(reading, operation, sources, output, place)
    if any(options[key] is None for key in options.keys() & _INNER.keys()):  # noted as an obstacle
        return None
    options |= {key: bool(arguments.get(key)) for key in CALL_OPTIONS if key in options}
    layer = Layer(kind, operation.name, inputs, options)
    if steps is not None and kind not in FOR_EACH_STEP:
        if not KINDS[kind].inner:
            reading.refuse(name, f"{called} is in a model that a TimeDistributed layer calls", "use another layer")
            return None
        inner = Inner(kind, options, "" if operation.name == snake_case(kind) else operation.name)
        layer = Layer("TimeDistributed", operation.name, inputs, {"layer": inner})
    if steps is not None:
        sources = [(steps, *shape) for shape in sources]
    planned = None
    if not is_open and (follows or None not in output):
        try:
            planned, _ = plan_layer(layer, sources)
        except InvalidNetworkError as error:
            reading.refuse(name, f"{called} cannot be stored: {error}", "change this layer")
    if weights is None:
        weights = {} if not reading.holds_weights else _weights(reading, layer, operation, sources, place)
    return replace(layer, weights=weights), planned


def _reshaped(operation: Any, source: Shape) -> Shape | None:
    """The shape that a Reshape makes of an input of a size; None if it makes none."""
    try:
        return tuple(operation.compute_output_shape((None, *source))[1:])
    except ValueError:
        return None


def described(operation: Any, place: Sequence[str]) -> str:
    """A layer in words, by its name after those of the models around it, and its class."""
    return f"The layer {'/'.join(place)!r} of class {type(operation).__name__}"


def data_of(call: Any) -> list[Any]:
    """The inputs of a call, without the mask that hangs on one of them."""
    mask, tensors = call.arguments.kwargs.get("mask"), list(call.input_tensors)
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


def _settings(call: Any) -> list:
    """What an operation of a call is given besides tensors."""
    own = [(key, value) for key, value in vars(call.operation).items() if key[0] != "_" and key != "name"]
    given = keras.tree.flatten([call.arguments.args, call.arguments.kwargs, sorted(own, key=lambda pair: pair[0])])
    return [value for value in given if isinstance(value, int | float | str | type(None))]


def _arguments(call: Call) -> dict[str, Any]:
    """The arguments of a call of a layer, by name."""
    return call.signature.bind(None, *call.arguments.args, **call.arguments.kwargs).arguments


def kind_of(operation: Any) -> str:
    """The kind of layer that an operation is, if it is one."""
    return type(operation).__name__


def check_call(reading: Reading, call: Call, place: Sequence[str]) -> None:
    """Refuse arguments of a call that change what it computes, like `training=True` where that is not the default."""
    parameters = call.signature.parameters
    kind, extra = kind_of(call.operation), []
    usual_names = {"inputs", *(_QUERY_NAMES if kind in QUERIES else ())}
    usual_names |= {*CALL_OPTIONS} & ({*KINDS[kind].options} if kind in KINDS else set())
    most = 3 if kind in QUERIES else 1
    for name, value in call.arguments.kwargs.items():
        usual = (None, False, parameters[name].default if name in parameters else None)
        if name == "mask" and len(data_of(call)) < len(call.input_tensors):
            continue
        if name not in usual_names and not all(any(part is one for one in usual) for part in keras.tree.flatten(value)):
            extra.append(name)
    if extra or len(call.arguments.args) > most:
        said = f"{described(call.operation, place)} is called with {', '.join(extra) or 'several arguments'}"
        reading.refuse("/".join(place), said, "call it with its inputs alone")


def check_dtypes(reading: Reading, operation: Any, place: Sequence[str]) -> None:
    """Refuse a layer that does not compute in float32."""
    variables = [variable for variable in operation.weights if variable.name != "count"]  # of a Normalization
    dtypes = {operation.compute_dtype, *(variable.dtype for variable in variables)}
    if dtypes != {"float32"}:
        said = f"{described(operation, place)} computes in {', '.join(sorted(dtypes))}, not in float32"
        reading.refuse("/".join(place), said, "make it with dtype='float32'")


def check_class(reading: Reading, operation: Any, place: Sequence[str]) -> bool:
    """Whether an operation is of a class that a file can hold; an obstacle if not."""
    kind = kind_of(operation)
    if kind in KINDS and type(operation) is class_of(kind):
        return True
    held = next((base.__name__ for base in type(operation).__mro__[1:] if base is class_of(base.__name__)), None)
    if held in KINDS:
        said = f"{described(operation, place)} is not Keras's own class, but derived from {held}"
        advice = f"use keras.layers.{held} itself"
    else:
        said = f"{described(operation, place)} is not supported"
        advice = f"use other layers; supported are {supported()}"
    reading.refuse("/".join(place), said, advice)
    return False


def _options(
    reading: Reading,
    operation: Any,
    inputs: Sequence[Shape],
    output: Shape,
    place: Sequence[str],
    is_inner: bool = False,
) -> dict[str, Any]:
    """The options of a layer, from the shapes of its inputs and of its output. Notes what no file holds.

    A layer given as `activation` follows, unless this layer is inside another.
    """
    kind, called = kind_of(operation), described(operation, place)
    config = operation.get_config()
    options = {key: _plain(config.get(key)) for key in KINDS[kind].options if key not in _INNER}
    for key in KINDS[kind].options:
        if key in _INNER:
            options[key] = _inner(reading, operation, key, inputs, output, place)
    _adapt_options(kind, options, inputs)
    for key in options.keys() & {"activation", "recurrent_activation"}:
        function = getattr(operation, key)
        name = "linear" if not is_inner and activation_layer(operation) is function else _activation_name(function)
        if name is None:
            said = f"{called} has the {key} {_short_name(function)!r}, which a file cannot hold"
            reading.refuse("/".join(place), said, f"name one of {', '.join(ACTIVATIONS)}")
        options[key] = name or "linear"
    if kind == "Reshape":
        options |= {"target_shape": output, "open_axis": 0}
    _check_other_options(reading, operation, config, len(inputs[0]), place)
    if kind == "EinsumDense" and operation.bias is not None:
        _check_bias(reading, operation, output, place)
    return options


def _inner(reading: Reading, outer: Any, key: str, inputs: Sequence[Shape], output: Shape, place: Sequence[str]) -> Any:
    """The layer inside another that its option `key` names; None for one that no file holds."""
    attribute, prefix = _INNER[key]
    if kind_of(outer) == "TimeDistributed":
        attribute, prefix, inputs, output = "layer", "", [shape[1:] for shape in inputs], output[1:]
    layer = getattr(outer, attribute)
    kind, inner = kind_of(layer), (*place, layer.name)
    code = KINDS[kind_of(outer)].options[key].code
    if not check_class(reading, layer, inner):
        return None
    check_dtypes(reading, layer, inner)
    if not code.holds(kind):
        said = f"{described(layer, inner)} cannot be inside a layer of class {type(outer).__name__}"
        reading.refuse("/".join(inner), said, "use another layer")
        return None
    name = layer.name.removeprefix(prefix)
    name = "" if name == snake_case(kind) and key == "layer" else name
    return Inner(kind, _options(reading, layer, inputs, output, inner, is_inner=True), name)


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


def _check_other_options(reading: Reading, operation: Any, config: Mapping[str, Any], rank: int, place) -> None:
    """Refuse options that a network does not hold, unless they have their usual values."""
    defaults = defaults_of(type(operation))
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
            said = f"{described(operation, place)} has {name}={value!r}"
            reading.refuse("/".join(place), said, f"use {name}={allowed[0]!r}")


def _check_bias(reading: Reading, operation: Any, output: Shape, place: Sequence[str]) -> None:
    """Refuse a bias that Keras adds along another axis than its own: with TensorFlow it looks for one of its size."""
    bias = tuple(operation.bias.shape)
    axes = [len(output) - len(bias) + axis for axis, size in enumerate(bias) if size > 1]
    if len(axes) != 1:
        return
    size = bias[axes[0] - len(output)]
    fitting = [size] if reading.open_size is None else [size, None]  # an open size may be that of the bias, too
    added = next((axis for axis in (len(output) - 1, 0) if output[axis] in fitting), axes[0])
    if added != axes[0]:
        said = (
            f"{described(operation, place)} has a bias for axis {axes[0] + 1}, which Keras adds along axis {added + 1}"
        )
        reading.refuse("/".join(place), said, f"give axis {added + 1} another size than {size}, or leave out the bias")


def _weights(
    reading: Reading, layer: Layer, operation: Any, sources: Sequence, place: Sequence[str]
) -> dict[str, SharedWeight | np.ndarray]:
    """The weights of a layer, by name; an obstacle for each that is not finite."""
    weights = {}
    for name, array in _arrays(layer, operation, sources).items():
        if array.dtype == np.float32 and not floats.are_finite(array):
            said = f"The weight {name!r} of the layer {'/'.join(place)!r} has {array[~np.isfinite(array)][:1]}"
            reading.refuse("/".join(place), said, "only finite weights can be stored; train with a lower learning rate")
        weights[name] = weight_of(name, array)
    return weights


def _arrays(layer: Layer, operation: Any, sources: Sequence) -> dict[str, np.ndarray]:
    try:
        _, shapes = plan_layer(layer, sources)
    except (InvalidNetworkError, TypeError):  # noted as an obstacle
        return {}
    if layer.kind == "Normalization":
        return {name: np.asarray(getattr(operation, name), np.float32).reshape(shapes[name]) for name in shapes}
    return {name: np.atleast_1d(variable.numpy()) for name, variable in zip(shapes, operation.weights, strict=False)}


def weight_of(name: str, array: np.ndarray) -> SharedWeight | np.ndarray:
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


def class_of(kind: str) -> type | None:
    """Keras's own class of a kind of layer, None for another name."""
    return getattr(keras.layers, _EXPORTED.get(kind, kind), None) or keras_private.application_layer(kind)


def defaults_of(class_: type) -> dict[str, Any]:
    """The default of each parameter with which a class is made."""
    return {name: p.default for name, p in inspect.signature(class_.__init__).parameters.items()}


def _plain(value: Any) -> Any:
    """Tuples for lists and arrays, Python's numbers for NumPy's."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def activation_layer(operation: Any) -> Any | None:
    """The layer that a layer is given as `activation` and calls last; None without one."""
    function = getattr(operation, "activation", None)
    calls_last = isinstance(function, keras.layers.Layer) and not isinstance(operation, keras.layers.RNN)
    return function if calls_last else None


def _activation_name(function: Any) -> str | None:
    """The name of an activation, or of an operation of Keras or TensorFlow that does the same; None for another."""
    functions = {name: keras.activations.get(name) for name in ACTIVATIONS}
    for name, own in functions.items():
        if function is own:
            return name
    if not inspect.isroutine(function) or (function.__module__ or "").split(".")[0] not in ("keras", "tensorflow"):
        return None
    # Names differ, and so do defaults of parameters: what the function does tells which one it is.
    probe = np.concatenate([np.linspace(-9, 9, 143), [-1e3, -30, 30]]).astype(np.float32).reshape(2, 73)
    try:
        found = np.asarray(function(probe))
    except Exception:  # whatever it may be: a function that does not take such inputs is none of the named ones
        return None
    if found.shape != probe.shape:
        return None
    same = (name for name, own in functions.items() if np.allclose(found, own(probe), rtol=1e-6, atol=1e-7))
    return next(same, None)


def _short_name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)
