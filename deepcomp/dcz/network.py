"""A network as a `.dcz` file holds it: layers, their options, their weights, and the shapes that follow from them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from deepcomp import quantization
from deepcomp.dcz import kinds
from deepcomp.dcz.codes import MAX_SIZE, SHAPE, InvalidNetworkError, Shape, located, require
from deepcomp.dcz.kinds import KINDS, MAX_LAYERS, check_options, supported, with_defaults
from deepcomp.errors import FormatError, UnsupportedLayerError, shape_text

# The sizes of an example are multiplied with the first that works, to find which others follow from them.
_FACTORS = (64, 16, 8, 4, 3, 2)


@dataclass(frozen=True, eq=False)
class SharedWeight:
    """A kernel of few distinct values.

    `codebook`, `float32 (k,)`, is ascending and distinct, has no 0, and has at most 65,535 values. `indices`, unsigned,
    has the kernel's shape: 0 for a pruned weight, i + 1 for `codebook[i]`.
    """

    codebook: np.ndarray
    indices: np.ndarray


def values(weight: SharedWeight | np.ndarray) -> np.ndarray:
    """The `float32` values of a weight, whichever way it is held."""
    return quantization.from_codebook(weight.codebook, weight.indices) if isinstance(weight, SharedWeight) else weight


def entries(weight: SharedWeight | np.ndarray) -> np.ndarray:
    """The array of a weight that is 0 where the weight is pruned: its indices, or its values where none are shared."""
    return weight.indices if isinstance(weight, SharedWeight) else weight


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: its kind (a key of `KINDS`), its name, the numbers of its input layers, its options and its weights.

    `options` are plain values under Keras's names; those left out get Keras's defaults. `weights` maps Keras's names
    to a `SharedWeight` (kernels only) or a `float32` array. A layer that is called again is another `Layer`, whose
    `same_as` is the number of the first call, and which has its options and weights.
    """

    kind: str
    name: str
    inputs: tuple[int, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, SharedWeight | np.ndarray] = field(default_factory=dict)
    same_as: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", with_defaults(self.kind, self.options))


OpenShape = tuple[int | None, ...]  # without the batch; None for a size that is open
# How several tensors are held together: None for one alone, () for a list, or the keys of a dictionary.
Form = tuple[str, ...] | None


@dataclass(frozen=True, eq=False)
class Network:
    """A network: layers in an order in which each comes after its input layers.

    The first layers are each an `InputLayer`. `input_shape` is the shape of the first input, without the batch,
    channels last; the others say their own. An input may have open axes: the network runs on any size there, and the
    shape has one at which it does. `outputs` are the numbers of the layers that are outputs, by default the
    last alone, and every other layer leads to one of them. `input_form` and `output_form` tell how a caller gives
    several inputs and gets several outputs.
    """

    name: str
    input_shape: Shape
    layers: tuple[Layer, ...]
    outputs: tuple[int, ...] = ()
    input_form: Form = None
    output_form: Form = None

    def __post_init__(self) -> None:
        if not self.outputs:
            object.__setattr__(self, "outputs", (len(self.layers) - 1,))

    @property
    def input_shapes(self) -> list[Shape]:
        """The shape of each input, without the batch."""
        own = [layer.options["shape"] for layer in self.layers if layer.kind == "InputLayer"]
        return [self.input_shape, *own[1:]]

    @property
    def open_shapes(self) -> list[OpenShape]:
        """The shape of each input, without the batch; None for a size that is open."""
        shapes = zip(self.layers, self.input_shapes, strict=False)
        return [
            tuple(None if axis in layer.options["open_axes"] else size for axis, size in enumerate(shape, 1))
            for layer, shape in shapes
        ]

    @property
    def has_open_sizes(self) -> bool:
        """Whether an input has an axis of any size."""
        return any(layer.kind == "InputLayer" and layer.options["open_axes"] for layer in self.layers)

    @property
    def is_weights_alone(self) -> bool:
        """Whether it stands for the weights of a model, which nothing can run."""
        return any(layer.kind == "Variable" for layer in self.layers)


class LayerShapes(NamedTuple):
    """The shapes of one layer: of its output, without the batch, and of its weights, by name.

    `coded` has the shapes in which a coder sees the weights. A Dense kernel behind a Flatten is seen with the pixels
    and channels that were flattened.
    """

    output: Shape
    weights: dict[str, Shape]
    coded: dict[str, Shape]


def output_shapes(network: Network) -> list[Shape]:
    """The output shape of each layer for one input. Raises `UnsupportedLayerError` for a network that no file holds."""
    try:
        return [layer.output for layer in layer_shapes(network)]
    except InvalidNetworkError as error:
        raise UnsupportedLayerError(str(error)) from error


def require_layers(network: Network, name: str) -> None:
    """Raise `FormatError`, which names the file, for the weights of a model alone: nothing can run them."""
    if network.is_weights_alone:
        raise FormatError(
            f"{name} holds the weights of a model alone: build the model, and give it them with deepcomp.load_weights."
        )


def layer_shapes(network: Network) -> list[LayerShapes]:
    """Check a network, all but its weights; returns the shapes of each layer.

    Raises `InvalidNetworkError` for an unknown kind or option, and for shapes that do not fit each other.
    """
    layers = network.layers
    require(bool(network.name), "The network has no name.")
    count = len(layers) - 1
    fits = 0 < count <= MAX_LAYERS
    require(fits, f"The network {network.name!r} has {count} layers after its input: it needs 1 to {MAX_LAYERS}.")
    with located(f"The input shape {network.input_shape} of {network.name!r} cannot be stored"):
        SHAPE.write(network.input_shape)
    twice = [name for name, count in Counter(layer.name for layer in layers).items() if count > 1]
    require(not twice, f"The name {''.join(twice[:1])!r} is that of several layers: names must be unique.")

    shapes: list[LayerShapes] = []
    flattened: list[Shape | None] = []  # for each layer: the shape before the Flatten whose positions it still has
    inputs_shapes = network.input_shapes
    leading = next((number for number, layer in enumerate(layers) if layer.kind != "InputLayer"), len(layers))
    for number, layer in enumerate(layers):
        is_input = number < max(leading, 1)
        said = f"Layer {number}, {layer.name!r}, is of kind {layer.kind}"
        require((layer.kind == "InputLayer") == is_input, f"{said}: the first layers alone are InputLayers.")
        if layer.kind not in KINDS:
            require(False, f"The layer {layer.name!r} is of kind {layer.kind}; supported are {supported()}.")
        with located(f"The layer {layer.name!r} of kind {layer.kind} cannot be stored"):
            inputs = [inputs_shapes[number]] if is_input else _input_shapes(layer, shapes)
            output, weights = plan_layer(layer, inputs)
            if layer.same_as is not None:
                _check_repeated(layer, number, layers, weights, shapes)
                weights = {}
        before = flattened[layer.inputs[0]] if not is_input else None
        coded = dict(weights)
        if layer.kind == "Dense" and before is not None and weights:
            coded["kernel"] = (*before, weights["kernel"][-1])
        shapes.append(LayerShapes(output, weights, coded))
        flattened.append(inputs[0] if layer.kind == "Flatten" else before if KINDS[layer.kind].keeps else None)

    fits = all(0 <= number < len(layers) for number in network.outputs)
    require(fits, f"The outputs {network.outputs} are not all layers: those are 0 to {count}.")
    used = {source for layer in layers for source in layer.inputs} | {*network.outputs}
    unused = [layer.name for number, layer in enumerate(layers) if number not in used]
    require(not unused, f"The layer {''.join(unused[:1])!r} leads nowhere, and it is no output.")
    for form, number in ((network.input_form, len(inputs_shapes)), (network.output_form, len(network.outputs))):
        fits = form is not None if number > 1 else True
        require(fits and (not form or len(form) == number == len({*form})), f"{form!r} does not hold {number} tensors.")
    return shapes


def with_sizes(network: Network, shapes: Sequence[Shape]) -> Network:
    """A network with other sizes of its open axes: `shapes` are those of its inputs, without the batch.

    Raises `InvalidNetworkError` where it cannot have them: they do not fit, or weights would have other shapes.
    """
    for number, (wanted, given) in enumerate(zip(network.open_shapes, shapes, strict=True)):
        fits = len(wanted) == len(given) and all(a in (None, b) for a, b in zip(wanted, given, strict=True))
        require(fits, f"input {number} has the shape {shape_text(wanted)}, not {shape_text(given)}.")
    layers = [*network.layers]
    for number, shape in enumerate(shapes[1:], 1):
        layers[number] = replace(layers[number], options={**layers[number].options, "shape": shape})
    resized = replace(network, input_shape=tuple(shapes[0]), layers=tuple(layers))
    for layer, before, after in zip(layers, layer_shapes(network), layer_shapes(resized), strict=True):
        require(before.weights == after.weights, f"the weights of {layer.name!r} do not fit these sizes.")
    return resized


def open_output_shapes(network: Network) -> list[OpenShape]:
    """The output shape of each layer, without the batch; None for a size that follows from open ones of the inputs.

    Errors as for `output_shapes`.
    """
    shapes = output_shapes(network)
    if not network.has_open_sizes:
        return [*shapes]
    for factor in _FACTORS:
        larger = [
            tuple(size * factor if wanted is None else size for wanted, size in zip(open_shape, shape, strict=True))
            for open_shape, shape in zip(network.open_shapes, network.input_shapes, strict=True)
        ]
        try:
            others = [one.output for one in layer_shapes(with_sizes(network, larger))]
        except InvalidNetworkError:
            continue
        return [
            tuple(a if a == b else None for a, b in zip(one, other, strict=True))
            for one, other in zip(shapes, others, strict=True)
        ]
    return [(None,) * len(shape) for shape in shapes]


def _check_repeated(layer: Layer, number: int, layers: Sequence[Layer], weights: dict, shapes: Sequence) -> None:
    """Require a layer that is called again to be the one of its first call."""
    first = layer.same_as or 0
    require(0 < first < number, f"it is layer {first} again, which is no earlier one.")
    earlier = layers[first]
    same = earlier.same_as is None and (earlier.kind, earlier.options) == (layer.kind, layer.options)
    require(same and shapes[first].weights == weights, f"it is not the layer {earlier.name!r} again.")


def plan_layer(layer: Layer, inputs: Sequence[Shape]) -> tuple[Shape, dict[str, Shape]]:
    """Check the options of a layer; returns the shapes of its output and of its weights, given those of its inputs.

    Raises `InvalidNetworkError`.
    """
    check_options(layer.kind, layer.options)
    kind = KINDS[layer.kind]
    fits = len(inputs) > 1 if kind.merges else len(inputs) == 1
    require(fits, f"it takes {'two or more inputs' if kind.merges else 'one input'}, not {len(inputs)}.")
    try:
        output, weights = kind.plan(layer.options, *inputs)
    except IndexError as error:  # an input of one number an example has no last axis
        raise InvalidNetworkError(f"it does not take inputs of {len(min(inputs, key=len))} dimensions.") from error
    for shape in (output, *weights.values()):
        require(math.prod(shape) <= MAX_SIZE, f"a tensor of {shape_text(shape)} is too large.")
    return output, weights


def changed_options(layer: Layer) -> dict[str, Any]:
    """The options of a layer that are required or differ from their defaults."""
    return kinds.changed_options(layer.kind, layer.options)


def _input_shapes(layer: Layer, shapes: list[LayerShapes]) -> list[Shape]:
    earlier = all(0 <= source < len(shapes) for source in layer.inputs)
    require(earlier, f"it takes the layers {layer.inputs}, not earlier ones: those are 0 to {len(shapes) - 1}.")
    return [shapes[source].output for source in layer.inputs]
