"""A network as a `.dcz` file holds it: layers, their options, their weights, and the shapes that follow from them."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from deepcomp.dcz.codes import MAX_SIZE, SHAPE, InvalidNetworkError, Shape, located, require
from deepcomp.dcz.kinds import KINDS, MAX_LAYERS, REQUIRED, supported
from deepcomp.errors import UnsupportedLayerError, shape_text


@dataclass(frozen=True, eq=False)
class SharedWeight:
    """A kernel of few distinct values.

    `codebook`, `float32 (k,)`, is ascending and distinct, has no 0, and has at most 65,535 values. `indices`, unsigned,
    has the kernel's shape: 0 for a pruned weight, i + 1 for `codebook[i]`.
    """

    codebook: np.ndarray
    indices: np.ndarray


def entries(weight: SharedWeight | np.ndarray) -> np.ndarray:
    """The array of a weight that is 0 where the weight is pruned: its indices, or its values where none are shared."""
    return weight.indices if isinstance(weight, SharedWeight) else weight


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer: its kind (a key of `KINDS`), its name, the numbers of its input layers, its options and its weights.

    `options` are plain values under Keras's names; those left out get Keras's defaults. `weights` maps Keras's names
    to a `SharedWeight` (kernels only) or a `float32` array.
    """

    kind: str
    name: str
    inputs: tuple[int, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, SharedWeight | np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        options = dict(self.options)
        for name, option in KINDS[self.kind].options.items() if self.kind in KINDS else ():
            if name not in options and option.default is not REQUIRED:
                options[name] = option.default_in(options)
        object.__setattr__(self, "options", options)


@dataclass(frozen=True, eq=False)
class Network:
    """A network: layers in an order in which each comes after its input layers.

    Layer 0 is the `InputLayer`. `input_shape` is the shape of one input, without the batch, channels last. The last
    layer is the output, and every other layer leads to it.
    """

    name: str
    input_shape: Shape
    layers: tuple[Layer, ...]

    @property
    def output(self) -> int:
        """The number of the output layer."""
        return len(self.layers) - 1


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
    for number, layer in enumerate(layers):
        fits = (layer.kind == "InputLayer") == (number == 0)
        require(fits, f"Layer {number}, {layer.name!r}, is of kind {layer.kind}: layer 0 alone is the InputLayer.")
        require(layer.kind in KINDS, f"The layer {layer.name!r} is of kind {layer.kind}; supported are {supported()}.")
        with located(f"The layer {layer.name!r} of kind {layer.kind} cannot be stored"):
            inputs = _input_shapes(layer, shapes) if number else [network.input_shape]
            output, weights = plan_layer(layer, inputs)
        before = flattened[layer.inputs[0]] if number else None
        coded = dict(weights)
        if layer.kind == "Dense" and before is not None:
            coded["kernel"] = (*before, weights["kernel"][-1])
        shapes.append(LayerShapes(output, weights, coded))
        flattened.append(inputs[0] if layer.kind == "Flatten" else before if KINDS[layer.kind].keeps else None)

    used = {source for layer in layers for source in layer.inputs}
    unused = [layer.name for number, layer in enumerate(layers[:-1]) if number not in used]
    require(not unused, f"The layer {''.join(unused[:1])!r} leads nowhere: the last must be the only output.")
    return shapes


def plan_layer(layer: Layer, inputs: Sequence[Shape]) -> tuple[Shape, dict[str, Shape]]:
    """Check the options of a layer; returns the shapes of its output and of its weights, given those of its inputs.

    Raises `InvalidNetworkError`.
    """
    _check_options(layer)
    kind = KINDS[layer.kind]
    fits = len(inputs) > 1 if kind.merges else len(inputs) == 1
    require(fits, f"it takes {'two or more inputs' if kind.merges else 'one input'}, not {len(inputs)}.")
    output, weights = kind.plan(layer.options, *inputs)
    for shape in (output, *weights.values()):
        require(math.prod(shape) <= MAX_SIZE, f"a tensor of {shape_text(shape)} is too large.")
    return output, weights


def changed_options(layer: Layer) -> dict[str, Any]:
    """The options of a layer that are required or differ from their defaults."""
    options = KINDS[layer.kind].options
    return {
        name: value
        for name, value in layer.options.items()
        if options[name].default is REQUIRED or value != options[name].default_in(layer.options)
    }


def _check_options(layer: Layer) -> None:
    options = KINDS[layer.kind].options
    wrong = layer.options.keys() ^ options.keys()
    require(not wrong, f"{', '.join(sorted(wrong))}: it has the options {', '.join(options) or 'none'}.")
    for name, value in changed_options(layer).items():
        with located(name):
            options[name].code.write(value)


def _input_shapes(layer: Layer, shapes: list[LayerShapes]) -> list[Shape]:
    earlier = all(0 <= source < len(shapes) for source in layer.inputs)
    require(earlier, f"it takes the layers {layer.inputs}, not earlier ones: those are 0 to {len(shapes) - 1}.")
    return [shapes[source].output for source in layer.inputs]
