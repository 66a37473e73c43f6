"""Lowers the layers of a network to nodes of a graph, kind by kind."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np

from deepcomp.dcz.network import Layer, Network, SharedWeight, entries, output_shapes
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
    sliding,
    view,
)
from deepcomp.runtime.rows import ADD, AVERAGE_POOL, COPY, INPUT, MAX_POOL, MULTIPLY, REDUCE_MAX, SOFTMAX


def lower(network: Network) -> Graph:
    """The graph of a network. Raises `UnsupportedLayerError` as `network.output_shapes`."""
    readers = Counter(source for layer in network.layers for source in layer.inputs)
    readers[network.output] += 1
    graph = Graph()
    values = [graph.add(Node(INPUT, (), network.input_shape))]
    for number, (layer, shape) in enumerate(zip(network.layers, output_shapes(network), strict=True)):
        if number:
            inputs = [values[source] for source in layer.inputs]
            value = _LOWER[layer.kind](graph, layer, inputs, shape)
            values.append(graph.activated(value, layer.options.get("activation", "linear")))
        if readers[number] > 1:
            graph.shared.add(values[number])
    graph.output = values[-1]
    return graph


# Each of these lowers a kind of layer: (layer, inputs, output shape) -> value


def _pass_through(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    return inputs[0]


def _dense(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    kernel, window = _kernel_2d(layer.weights["kernel"]), sliding(inputs[0].shape, (1, 1), (1, 1))
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
    window = sliding(between, (1, 1), (1, 1))
    return graph.product(value, _kernel_2d(pointwise), window, shape, layer.weights.get("bias"))


def _normalize(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    weights = {name: array.astype(np.float64) for name, array in layer.weights.items()}
    scale = weights.get("gamma", 1.0) / np.sqrt(weights["moving_variance"] + layer.options["epsilon"])
    return graph.scaled(inputs[0], scale, weights.get("beta", 0.0) - weights["moving_mean"] * scale)


def _rescale(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    return graph.scaled(inputs[0], np.array([layer.options["scale"]]), np.array([layer.options["offset"]]))


def _pool(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    options = layer.options
    window = sliding(inputs[0].shape, options["pool_size"], options["strides"], padding=options["padding"])
    return graph.pooled(MAX_POOL if layer.kind.startswith("Max") else AVERAGE_POOL, inputs[0], window, shape)


def _pool_globally(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    value = inputs[0]
    window = sliding(value.shape, grid_of(value.shape)[:2], (1, 1))
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
    op = ADD if layer.kind == "Add" else MULTIPLY
    value = inputs[0]
    for other in inputs[1:]:
        value = graph.merged(op, value, other)
    return value


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
    **dict.fromkeys(("Add", "Multiply"), _merge),
    "Concatenate": _concatenate,
    **dict.fromkeys(("Dropout", "Activation"), _pass_through),
    "Rescaling": _rescale,
    "ReLU": _relu,
    "LeakyReLU": _leaky_relu,
    "ELU": _elu,
    "Softmax": _softmax,
}  # fmt: skip


def _window_of(layer: Layer, value: Value) -> Window:
    options = layer.options
    return sliding(
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
