"""Lowers the layers of a network to nodes of a graph, kind by kind."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from deepcomp.dcz import masks
from deepcomp.dcz.kinds import KINDS
from deepcomp.dcz.limits import Limits
from deepcomp.dcz.network import Layer, Network, SharedWeight, entries, output_shapes
from deepcomp.errors import FormatError
from deepcomp.runtime import sequences, spatial
from deepcomp.runtime.graph import (
    Graph,
    Node,
    Shape,
    Value,
    Window,
    add_margins,
    feature_map_of,
    grid_of,
    reshaped,
    view,
)
from deepcomp.runtime.rows import (
    ADD,
    AVERAGE_POOL,
    CENTERED,
    COPY,
    GATHER,
    INPUT,
    MAX_POOL,
    MAXIMUM,
    MINIMUM,
    MULTIPLY,
    REDUCE_MAX,
    ROOT_MEAN_SQUARE,
    SCALE,
    SOFTMAX,
    SUBTRACT,
    UNIT_NORM,
)

_MERGES = {
    "Add": ADD,
    "Multiply": MULTIPLY,
    "Subtract": SUBTRACT,
    "Average": ADD,
    "Maximum": MAXIMUM,
    "Minimum": MINIMUM,
}
_NORMALIZATIONS = {
    "LayerNormalization": CENTERED,
    "RMSNormalization": ROOT_MEAN_SQUARE,
    "UnitNormalization": UNIT_NORM,
}


def lower(network: Network, limits: Limits) -> Graph:
    """The graph of a network. Raises `UnsupportedLayerError` as `output_shapes`, and `FormatError` as `Graph.add`."""
    readers = Counter(source for layer in network.layers for source in layer.inputs)
    readers.update(network.outputs)
    graph, first = Graph(limits), 0
    values: list[Value] = []
    following = masks.Masks[Value](
        lambda number: sequences.make_mask(graph, network.layers[number], values[network.layers[number].inputs[0]]),
        lambda a, b: graph.merged(MAXIMUM, a, b),
        lambda number, given: sequences.join_masks(
            graph, given, [values[source] for source in network.layers[number].inputs]
        ),
        lambda number, given: _check_masks(
            network.layers[number], [values[source].shape for source in network.layers[number].inputs], given
        ),
    )
    for number, (layer, shape) in enumerate(zip(network.layers, output_shapes(network), strict=True)):
        graph.layer = layer.name
        given = following.enter(layer)
        if layer.kind == "InputLayer":
            values.append(graph.add(Node(INPUT, (), shape, first=first)))
            first += math.prod(shape)
        else:
            inputs = [values[source] for source in layer.inputs]
            if layer.kind == "Masking":
                given = [following.last]
            values.append(lower_layer(graph, layer, inputs, shape, given))
        if readers[number] > 1:
            graph.shared.add(values[number])
    graph.outputs = [values[number] for number in network.outputs]
    return graph


def _check_masks(layer: Layer, inputs: Sequence[Shape], given: Sequence[Value | None]) -> None:
    """Raise `FormatError` for masks whose effect is not that which Keras has."""
    if not masks.is_heeded(layer, inputs, [None if mask is None else mask.shape for mask in given]):
        raise FormatError(f"The {layer.kind} {layer.name!r} gets a mask of a sequence, which the engine does not heed.")


def lower_layer(
    graph: Graph, layer: Layer, inputs: list[Value], shape: Shape, given: Sequence[Value | None] = ()
) -> Value:
    """Lower one layer, which gets these masks with its inputs; returns its value."""
    if any(mask is not None for mask in given) and layer.kind in _LOWER_MASKED:
        return _LOWER_MASKED[layer.kind](graph, layer, inputs, shape, given)
    value = _LOWER[layer.kind](graph, layer, inputs, shape)
    if "recurrent_activation" in layer.options or layer.kind == "SimpleRNN":  # the activation is inside
        return value
    return graph.activated(value, layer.options.get("activation", "linear"))


# Each of these lowers a kind of layer: (layer, inputs, output shape) -> value


def _pass_through(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    return inputs[0]


def _dense(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    kernel, window = _kernel_2d(layer.weights["kernel"]), Window.sliding(inputs[0].shape, (1, 1), (1, 1))
    return graph.product(inputs[0], kernel, window, shape, layer.weights.get("bias"))


def _convolve(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    kernel, groups = layer.weights["kernel"], layer.options.get("groups")
    if groups is None:
        kernel, groups = _depthwise(kernel), inputs[0].shape[-1]
    window = _window_of(layer, inputs[0])
    return graph.product(inputs[0], _kernel_2d(kernel), window, shape, layer.weights.get("bias"), groups)


def _separate(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    depthwise, pointwise = _depthwise(layer.weights["depthwise_kernel"]), layer.weights["pointwise_kernel"]
    between = (*shape[:-1], entries(depthwise).shape[-1])
    window = _window_of(layer, inputs[0])
    value = graph.product(inputs[0], depthwise, window, between, None, inputs[0].shape[-1])
    window = Window.sliding(between, (1, 1), (1, 1))
    return graph.product(value, _kernel_2d(pointwise), window, shape, layer.weights.get("bias"))


def _normalize(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    weights = {name: array.astype(np.float64) for name, array in layer.weights.items()}
    scale = weights.get("gamma", 1.0) / np.sqrt(weights["moving_variance"] + layer.options["epsilon"])
    return graph.scaled(inputs[0], scale, weights.get("beta", 0.0) - weights["moving_mean"] * scale)


def _standardize(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    mean, variance = (_along(layer.weights[name], layer.options["axis"], shape) for name in ("mean", "variance"))
    deviation = np.maximum(np.sqrt(variance), 1e-7)
    if layer.options["invert"]:
        return graph.scaled(inputs[0], deviation, mean)
    return graph.scaled(inputs[0], 1 / deviation, -mean / deviation)


def _along(weight: np.ndarray, axes: Sequence[int], shape: Shape) -> np.ndarray:
    """A weight of some axes, counted from 1, as float64 that fits inputs of a shape; one number, or one a channel."""
    weight = weight.astype(np.float64)
    if not axes or tuple(axes) == (len(shape),):
        return weight.reshape(-1)
    return weight.reshape([size if axis in axes else 1 for axis, size in enumerate(shape, 1)])


def _normalize_example(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    """LayerNormalization, RMSNormalization and UnitNormalization."""
    axes = layer.options.get("axis", (len(shape),))
    kind, epsilon = _NORMALIZATIONS[layer.kind], layer.options.get("epsilon", 1e-12)
    value = graph.normalized(inputs[0], [axis - 1 for axis in axes], kind, epsilon)
    return _affine(graph, value, {name: _along(array, axes, shape) for name, array in layer.weights.items()})


def _affine(graph: Graph, value: Value, weights: Mapping[str, np.ndarray]) -> Value:
    """`value` times its scale or gamma plus its beta, where it has them."""
    scale, shift = weights.get("gamma", weights.get("scale")), weights.get("beta")
    if scale is None and shift is None:
        return value
    scale, shift = (np.ones(1) if scale is None else scale), (np.zeros(1) if shift is None else shift)
    return graph.scaled(value, scale, shift)


def _normalize_groups(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    groups = layer.options["groups"]
    split = (*shape[:-1], groups, shape[-1] // groups)
    axes = [*range(len(shape) - 1), len(shape)]
    value = graph.normalized(reshaped(inputs[0], split), axes, CENTERED, layer.options["epsilon"])
    weights = {name: array.astype(np.float64) for name, array in layer.weights.items()}
    return _affine(graph, reshaped(value, shape), weights)


def _scale_channels(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    return graph.scaled(inputs[0], layer.weights["gamma"].astype(np.float64), np.zeros(1))


def _parametric_relu(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    value, one, zero = inputs[0], np.ones(1), np.zeros(1)
    above = Node(SCALE, (value,), shape, low=0.0, scale=one, shift=zero)
    below = Node(SCALE, (value,), shape, high=0.0, scale=one, shift=zero)
    slopes = layer.weights["alpha"].astype(np.float64)
    scaled = graph.add(Node(SCALE, (graph.add(below),), shape, scale=slopes, shift=zero))
    return graph.merged(ADD, graph.add(above), scaled)


def _rescale(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    return graph.scaled(inputs[0], np.array([layer.options["scale"]]), np.array([layer.options["offset"]]))


def _pool(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    options = layer.options
    window = Window.sliding(inputs[0].shape, options["pool_size"], options["strides"], padding=options["padding"])
    return graph.pooled(MAX_POOL if layer.kind.startswith("Max") else AVERAGE_POOL, inputs[0], window, shape)


def _pool_globally(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    value = inputs[0]
    window = Window.sliding(value.shape, grid_of(value.shape)[:2], (1, 1))
    op = REDUCE_MAX if layer.kind.startswith("GlobalMax") else AVERAGE_POOL
    return reshaped(graph.add(Node(op, (value,), shape[-1:], window=window)), shape)


def _reshape(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    return reshaped(inputs[0], shape)


def _permute(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    axes = tuple(dim - 1 for dim in layer.options["dims"])
    return view(shape, lambda places: places.transpose(axes), inputs[0])


def _pad(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    padding = layer.options["padding"]
    rows, columns = padding if len(shape) == 3 else ((0, 0), padding)
    value, margins = inputs[0], (*rows, *columns)
    if value.margins is not None:
        (value,), margins = value.parts, add_margins(value.margins, margins)
    elif feature_map_of(value) is None:  # only the output of a node can have zeros around it
        value = graph.add(Node(COPY, (value,), value.shape))
    return Value(shape, parts=(value,), margins=margins)


def _concatenate(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    axis = layer.options["axis"]
    axis = axis - 1 if axis > 0 else len(shape) - 1
    return view(shape, lambda *places: np.concatenate(places, axis), *inputs)


def _merge(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    op = _MERGES[layer.kind]
    value = inputs[0]
    for other in inputs[1:]:
        value = graph.merged(op, value, other)
    if layer.kind == "Average":
        value = graph.scaled(value, np.array([1 / len(inputs)]), np.zeros(1))
    return value


def _add_scaled(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    scaled = graph.scaled(inputs[1], np.array([layer.options["scale"]]), np.zeros(1))
    return graph.merged(ADD, inputs[0], scaled)


def _dot(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    axes = [axis - 1 for axis in layer.options["axes"]]
    if layer.options["normalize"]:
        inputs = [graph.normalized(v, (axis,), UNIT_NORM, 1e-12) for v, axis in zip(inputs, axes, strict=True)]
    a, b = (_matrix(value, axis) for value, axis in zip(inputs, axes, strict=True))
    inner = a.shape[1]
    b = view((inner, b.shape[0]), lambda places: places.T, b)
    return reshaped(graph.matmul(a, b), shape)


def _matrix(value: Value, axis: int) -> Value:
    """A value as a matrix whose columns run along an axis."""
    inner = value.shape[axis]
    rows = math.prod(value.shape) // inner
    return view((rows, inner), lambda places: np.moveaxis(places, axis, -1).reshape(rows, inner), value)


def _embed(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    return graph.add(Node(GATHER, (inputs[0],), shape, kernel=layer.weights["embeddings"]))


def _activate(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    return inputs[0]  # the activation is an option, applied to the result of every layer


def _relu(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    options = layer.options
    most = math.inf if options["max_value"] is None else options["max_value"]
    if not options["negative_slope"] and not options["threshold"]:
        return graph.clamped(inputs[0], 0.0, most)
    if options["max_value"] is None and not options["threshold"]:
        return graph.mapped(inputs[0], "leaky_relu", options["negative_slope"])
    return graph.mapped(inputs[0], "relu", options["negative_slope"], options["threshold"], most)


def _leaky_relu(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    return graph.mapped(inputs[0], "leaky_relu", layer.options["negative_slope"])


def _elu(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    return graph.mapped(inputs[0], "elu", layer.options["alpha"])


def _softmax(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    return graph.add(Node(SOFTMAX, (inputs[0],), shape))


def _distribute(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    """TimeDistributed: for each step in time the nodes of the layer, which share the weights of the first step."""
    inner, value = sequences.inner_layer(layer.options["layer"], layer), inputs[0]
    if inner.kind == "Dense" or KINDS[inner.kind].keeps:
        return lower_layer(graph, inner, [value], shape)
    outputs, first = [], []
    for step in range(value.shape[0]):
        part = view(value.shape[1:], lambda places, step=step: places[step], value)
        begin = len(graph.nodes)
        outputs.append(lower_layer(graph, inner, [part], shape[1:]))
        own = graph.nodes[begin:]
        for node, twin in zip(own, first, strict=False):
            if node.kernel is not None:
                node.twin = twin.twin or twin
        first = first or own
    return view(shape, lambda *places: np.stack(places), *outputs)


_LOWER: dict[str, Callable[[Graph, Layer, list[Value], Shape], Value]] = {
    "Dense": _dense,
    **dict.fromkeys(("Conv1D", "Conv2D", "DepthwiseConv1D", "DepthwiseConv2D"), _convolve),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), _separate),
    "BatchNormalization": _normalize,
    **dict.fromkeys(("MaxPooling1D", "MaxPooling2D", "AveragePooling1D", "AveragePooling2D"), _pool),
    **dict.fromkeys(("GlobalMaxPooling1D", "GlobalMaxPooling2D"), _pool_globally),
    **dict.fromkeys(("GlobalAveragePooling1D", "GlobalAveragePooling2D"), _pool_globally),
    **dict.fromkeys(("Flatten", "Reshape"), _reshape),
    "Permute": _permute,
    **dict.fromkeys(("ZeroPadding1D", "ZeroPadding2D"), _pad),
    "Concatenate": _concatenate,
    **dict.fromkeys(("Dropout", "Activation"), _pass_through),
    "Rescaling": _rescale,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "ELU": _elu,
    "Softmax": _softmax,
    **dict.fromkeys(_MERGES, _merge),
    "CustomScaleLayer": _add_scaled,
    "Dot": _dot,
    "Embedding": _embed,
    "Conv3D": spatial.convolve_3d,
    **dict.fromkeys(("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), spatial.convolve_transposed),
    **dict.fromkeys(("MaxPooling3D", "AveragePooling3D"), spatial.pool_3d),
    **dict.fromkeys(("GlobalMaxPooling3D", "GlobalAveragePooling3D"), _pool_globally),
    **{f"Adaptive{what}Pooling{rank}D": spatial.pool_adaptively for what in ("Max", "Average") for rank in (1, 2, 3)},
    "ZeroPadding3D": spatial.pad_3d,
    **dict.fromkeys(("Cropping1D", "Cropping2D", "Cropping3D"), spatial.crop),
    **dict.fromkeys(("UpSampling1D", "UpSampling2D", "UpSampling3D"), spatial.up_sample),
    "Resizing": spatial.resize,
    "RepeatVector": spatial.repeat,
    "Normalization": _standardize,
    **dict.fromkeys(_NORMALIZATIONS, _normalize_example),
    "GroupNormalization": _normalize_groups,
    "LayerScale": _scale_channels,
    "PReLU": _parametric_relu,
    **dict.fromkeys(sequences.RECURRENT, sequences.recur),
    "Bidirectional": sequences.recur_both_ways,
    "TimeDistributed": _distribute,
    **dict.fromkeys(("ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"), sequences.recur_convolution),
    "MultiHeadAttention": sequences.attend_by_heads,
    "GroupedQueryAttention": sequences.attend_by_heads,
    "Attention": sequences.attend,
    "AdditiveAttention": sequences.attend,
    "EinsumDense": sequences.multiply,
    "Masking": sequences.mask,
}  # fmt: skip


_LOWER_MASKED = {
    **dict.fromkeys(sequences.RECURRENT, sequences.recur),
    "Bidirectional": sequences.recur_both_ways,
    **dict.fromkeys(("MultiHeadAttention", "GroupedQueryAttention"), sequences.attend_by_heads),
    **dict.fromkeys(("Attention", "AdditiveAttention"), sequences.attend),
    "GlobalAveragePooling1D": sequences.average_masked,
    "Masking": sequences.mask,
}


def _window_of(layer: Layer, value: Value) -> Window:
    options = layer.options
    return Window.sliding(
        value.shape, options["kernel_size"], options["strides"], options["dilation_rate"], options["padding"]
    )


def _reshaped_kernel(kernel: SharedWeight | np.ndarray, *shape: int) -> SharedWeight | np.ndarray:
    if isinstance(kernel, SharedWeight):
        return SharedWeight(kernel.codebook, kernel.indices.reshape(shape))
    return kernel.reshape(shape)


def _kernel_2d(kernel: SharedWeight | np.ndarray) -> SharedWeight | np.ndarray:
    """The kernel with rows and columns, of size 1 if it has none."""
    shape = entries(kernel).shape
    return _reshaped_kernel(kernel, *(1,) * (4 - len(shape)), *shape)


def _depthwise(kernel: SharedWeight | np.ndarray) -> SharedWeight | np.ndarray:
    """A depthwise kernel (..., channels, multiplier) as the kernel of a convolution with groups of one channel."""
    *window, channels, multiplier = entries(kernel).shape
    return _kernel_2d(_reshaped_kernel(kernel, *window, 1, channels * multiplier))
