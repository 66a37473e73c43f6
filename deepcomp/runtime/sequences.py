"""Lowers layers of sequences: recurrent layers, attention, and products by an equation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from deepcomp.dcz.kinds import Inner
from deepcomp.dcz.masks import mask_shape
from deepcomp.dcz.network import Layer, entries
from deepcomp.dcz.shapes_sequences import Product
from deepcomp.runtime import rows
from deepcomp.runtime.graph import Graph, Node, Shape, Value, Window, function_of, reshaped, view
from deepcomp.runtime.spatial import Kernel, Twins, arranged, convolve_frames

_CELLS = {"SimpleRNN": rows.SIMPLE, "LSTM": rows.LSTM, "GRU": rows.GRU}
RECURRENT = tuple(_CELLS)


def project(graph: Graph, value: Value, kernel: Kernel, bias: np.ndarray | None) -> Value:
    """The product of the last axis and a kernel (inputs, units)."""
    kernel = arranged(kernel, lambda weights: weights.reshape(1, 1, *weights.shape))
    shape = (*value.shape[:-1], entries(kernel).shape[-1])
    return graph.product(value, kernel, Window.sliding(value.shape, (1, 1), (1, 1)), shape, bias)


def _plain(layer: Layer, name: str) -> np.ndarray | None:
    """A weight of a layer that is not shared, as float64; None without it."""
    weight = layer.weights.get(name)
    return weight.astype(np.float64) if isinstance(weight, np.ndarray) else None


# Recurrent layers


def recur(
    graph: Graph, layer: Layer, inputs: list[Value], shape: Shape, given: Sequence[Value | None] = (None,)
) -> Value:
    """SimpleRNN, LSTM and GRU: a product of all inputs, and a node that runs through them step by step."""
    kind = _CELLS[layer.kind]
    options, weights = layer.options, layer.weights
    kernel, bias = weights["recurrent_kernel"], _plain(layer, "bias")
    own = np.zeros(entries(kernel).shape[1])
    if layer.kind == "GRU" and not options["reset_after"]:
        kind = rows.UPDATE
    elif layer.kind == "GRU" and bias is not None:
        bias, own = bias[0], bias[1]
    gates = project(graph, inputs[0], weights["kernel"], bias)
    node = Node(
        rows.CELL,
        (gates,) if given[0] is None else (gates, given[0]),
        (gates.shape[0], options["units"]),
        function=kind,
        cell_functions=(function_of(options["activation"]), function_of(options.get("recurrent_activation", "linear"))),
        kernel=kernel,
        scale=np.ones(own.size),
        shift=own,
        backwards=options["go_backwards"],
    )
    states = graph.add(node)
    if given[0] is not None and options["zero_output_for_mask"]:
        counts = view((gates.shape[0], 1), lambda p: (p[::-1] if node.backwards else p)[:, None], given[0])
        states = graph.merged(rows.MULTIPLY, states, counts)
    return states if options["return_sequences"] else view(shape, lambda places: places[-1], states)


def recur_both_ways(
    graph: Graph, layer: Layer, inputs: list[Value], shape: Shape, given: Sequence[Value | None] = (None,)
) -> Value:
    """Bidirectional."""
    outputs = []
    for name, direction in (("layer", "forward"), ("backward_layer", "backward")):
        inner = inner_layer(layer.options[name], layer, f"{direction}_")
        units = inner.options["units"]
        options = {**inner.options, "zero_output_for_mask": inner.options["return_sequences"]}
        inner = replace(inner, options=options)
        outputs.append(recur(graph, inner, inputs, (*shape[:-1], units), given))
    forward, backward = outputs
    if layer.options["layer"].options["return_sequences"]:
        backward = view(backward.shape, lambda places: places[::-1], backward)
    mode = layer.options["merge_mode"]
    if mode == "concat":
        return view(shape, lambda *places: np.concatenate(places, -1), forward, backward)
    value = graph.merged(rows.MULTIPLY if mode == "mul" else rows.ADD, forward, backward)
    return graph.scaled(value, np.array([0.5]), np.zeros(1)) if mode == "ave" else value


def inner_layer(inner: Inner, outer: Layer, prefix: str = "") -> Layer:
    """A layer inside another as one of its own; the names of its weights are without the prefix."""
    weights = {name.removeprefix(prefix): own for name, own in outer.weights.items() if name.startswith(prefix)}
    return Layer(inner.kind, outer.name, outer.inputs, inner.options, weights)


def recur_convolution(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    """ConvLSTM1D to ConvLSTM3D: for each step in time a convolution of the input and one of the state."""
    options, weights, value = layer.options, layer.weights, inputs[0]
    rank = len(options["kernel_size"])
    image, filters = shape[-rank - 1 : -1], options["filters"]
    gates, ones = (*image, 4 * filters), (1,) * rank
    activation, gate = options["activation"], options["recurrent_activation"]
    outer = _Convolution(graph, weights["kernel"], {**options, "groups": 1}, weights.get("bias"), gates)
    same = {"kernel_size": options["kernel_size"], "padding": "same", "strides": ones, "dilation_rate": ones}
    inner = _Convolution(graph, weights["recurrent_kernel"], {**same, "groups": 1}, None, gates)
    outputs, state, carry = [], None, None
    order = range(value.shape[0])
    for step in reversed(order) if options["go_backwards"] else order:
        total = outer(view(value.shape[1:], lambda places, step=step: places[step], value))
        if state is not None:
            total = graph.merged(rows.ADD, total, inner(state))
            graph.shared.add(total)
        taken, kept, new, shown = (
            graph.activated(_channels(total, number * filters, filters), activation if number == 2 else gate)
            for number in range(4)
        )
        new = graph.merged(rows.MULTIPLY, taken, new)
        carry = new if carry is None else graph.merged(rows.ADD, graph.merged(rows.MULTIPLY, kept, carry), new)
        graph.shared.add(carry)
        state = graph.merged(rows.MULTIPLY, shown, graph.activated(carry, activation))
        graph.shared.add(state)
        outputs.append(state)
    if not options["return_sequences"]:
        return outputs[-1]
    return view(shape, lambda *places: np.stack(places), *outputs)


class _Convolution:
    """A convolution that is done several times: its weights are packed once. Nothing is fused into it."""

    def __init__(self, graph: Graph, kernel: Kernel, options: Mapping[str, Any], bias, shape: Shape):
        self._graph, self._options, self._bias, self._shape = graph, options, bias, shape
        self._rank = len(options["kernel_size"])
        self._kernel = kernel if self._rank == 3 else _window_kernel(kernel)
        self._node: Node | None = None
        self._twins: Twins = {}

    def __call__(self, value: Value) -> Value:
        options = self._options
        if self._rank == 3:
            return convolve_frames(self._graph, value, self._kernel, options, self._bias, self._shape, self._twins)
        names = ("kernel_size", "strides", "dilation_rate", "padding")
        window = Window.sliding(value.shape, *(options[name] for name in names))
        made = self._graph.product(value, self._kernel, window, self._shape, self._bias, twin=self._node)
        self._graph.shared.add(made)
        self._node = self._node or made.node
        return made


def _window_kernel(kernel: Kernel) -> Kernel:
    """The kernel of a convolution, with rows of size 1 if it has none."""
    return arranged(kernel, lambda weights: weights.reshape(*(1,) * (4 - weights.ndim), *weights.shape))


def _channels(value: Value, first: int, count: int) -> Value:
    """Some channels of a value."""
    shape = (*value.shape[:-1], count)
    return view(shape, lambda places: places[..., first : first + count], value)


# Attention

_NEVER = -1e9  # added to a score, it makes the weight of a position 0


def attend_by_heads(
    graph: Graph, layer: Layer, inputs: list[Value], shape: Shape, given: Sequence[Value | None] = (None, None)
) -> Value:
    """MultiHeadAttention and GroupedQueryAttention; positions of several axes are seen as one."""
    options, weights = layer.options, layer.weights
    query, value, key = (_sequence(one) for one in (inputs[0], inputs[1], inputs[-1]))

    def heads(name: str, source: Value) -> Value:
        """A projection, (heads, positions, size)."""
        count, size = entries(weights[f"{name}_kernel"]).shape[1:]
        bias = _plain(layer, f"{name}_bias")
        kernel = arranged(weights[f"{name}_kernel"], lambda own: own.reshape(len(own), -1))
        made = project(graph, source, kernel, None if bias is None else bias.ravel())
        if name == "query":
            made = graph.scaled(made, np.array([1 / math.sqrt(size)]), np.zeros(1))
        elif name == "gate":
            made = graph.activated(made, "sigmoid")
        positions = source.shape[0]
        return view((count, positions, size), lambda p: p.reshape(positions, count, size).transpose(1, 0, 2), made)

    queries, keys, values = heads("query", query), heads("key", key), heads("value", value)
    repeated = queries.shape[0] // keys.shape[0]
    if repeated > 1:
        keys, values = (
            view((queries.shape[0], *one.shape[1:]), lambda places: np.repeat(places, repeated, 0), one)
            for one in (keys, values)
        )
    scores = graph.matmul(queries, _transposed(keys))
    mixed = graph.matmul(_weights_of(graph, scores, layer, given), values)
    if options["use_gate"]:
        mixed = graph.merged(rows.MULTIPLY, mixed, heads("gate", query))
    count, positions, size = mixed.shape
    mixed = view((positions, count * size), lambda places: places.transpose(1, 0, 2).reshape(positions, -1), mixed)
    kernel = arranged(weights["output_kernel"], lambda own: own.reshape(count * size, -1))
    bias = _plain(layer, "output_bias")
    return reshaped(project(graph, mixed, kernel, None if bias is None else bias.ravel()), shape)


def attend(
    graph: Graph, layer: Layer, inputs: list[Value], shape: Shape, given: Sequence[Value | None] = (None, None)
) -> Value:
    """Attention and AdditiveAttention."""
    query, value, key = inputs[0], inputs[1], inputs[-1]
    scale, weight = _plain(layer, "scale"), _plain(layer, "concat_score_weight")
    if layer.options.get("score_mode") == "dot":
        scores = graph.matmul(query, _transposed(key))
        if scale is not None:
            scores = graph.scaled(scores, scale, np.zeros(1))
    else:
        (count, size), (keys, _) = query.shape, key.shape
        full = (count, keys, size)
        wide = view(full, lambda places: np.broadcast_to(places[:, None], full), query)
        total = graph.merged(rows.ADD, wide, reshaped(key, (1, keys, size)))
        factor = np.ones(size) if weight is None else np.repeat(weight, size)
        if scale is not None and weight is None:
            factor = scale
        elif scale is not None:
            total = graph.scaled(total, scale, np.zeros(1))
        total = graph.activated(total, "tanh")
        scores = reshaped(project(graph, total, factor[:, None].astype(np.float32), None), (count, keys))
    mixed = graph.matmul(_weights_of(graph, scores, layer, (None, given[1])), value)
    return mixed if given[0] is None else _kept(graph, mixed, given[0])


def _sequence(value: Value) -> Value:
    """A value with all of its positions along one axis."""
    return reshaped(value, (math.prod(value.shape[:-1]), value.shape[-1]))


def _transposed(value: Value) -> Value:
    """A value with its last two axes exchanged."""
    shape = (*value.shape[:-2], value.shape[-1], value.shape[-2])
    return view(shape, lambda places: places.swapaxes(-1, -2), value)


def _weights_of(graph: Graph, scores: Value, layer: Layer, given: Sequence[Value | None]) -> Value:
    """The softmax of scores, (..., queries, keys), over the keys that a query may see.

    `given` are the masks of queries and of what they may see; a query that may see nothing sees all alike.
    """
    count, size = scores.shape[-2:]
    queries, keys = np.ogrid[:count, :size]
    window = layer.options.get("sliding_window")
    seen = np.ones((count, size), bool)
    if layer.options["use_causal_mask"]:
        seen &= queries >= keys
    if window is not None:
        seen &= abs(queries - keys) < window
    full = (*(1,) * (len(scores.shape) - 2), count, size)
    factors = [] if given[0] is None else [reshaped(given[0], (*full[:-1], 1))]
    factors += [reshaped(mask, (*full[:-2], 1, size)) for mask in given[1:] if mask is not None]
    if factors:
        total = factors[0]
        for factor in factors[1:]:
            total = graph.merged(rows.MULTIPLY, total, factor)
        total = view(full, lambda places: np.broadcast_to(places, full), total)
        scale = np.where(seen, -_NEVER, 0).reshape(full)
        shift = graph.add(Node(rows.SCALE, (total,), full, scale=scale, shift=np.full(1, _NEVER)))
        scores = graph.merged(rows.ADD, scores, shift)
        if layer.options.get("dropout"):  # then Keras has no weights where a query may see nothing
            found = graph.add(Node(rows.SOFTMAX, (scores,), scores.shape))
            one = np.where(seen, 1, 0).reshape(full)
            kept = graph.add(Node(rows.SCALE, (total,), full, scale=one, shift=np.zeros(1)))
            return graph.merged(rows.MULTIPLY, found, kept)
    elif not seen.all():
        shift = np.where(seen, 0, _NEVER).reshape(full)
        scores = graph.add(Node(rows.SCALE, (scores,), scores.shape, scale=np.ones(1), shift=shift))
    return graph.add(Node(rows.SOFTMAX, (scores,), scores.shape))


# Masks of sequences: 1 for a step that counts, else 0


def make_mask(graph: Graph, layer: Layer, value: Value) -> Value:
    """The mask that an Embedding or a Masking makes of its input."""
    if layer.kind == "Embedding":
        return graph.mapped(value, "differs", 0.0)
    differs = graph.mapped(value, "differs", float(np.float32(layer.options["mask_value"])))
    *shape, channels = value.shape
    columns = view((channels, math.prod(shape)), lambda places: places.reshape(-1, channels).T, differs)
    window = Window.sliding(columns.shape, (1, channels), (1, 1))
    most = graph.add(Node(rows.REDUCE_MAX, (columns,), (math.prod(shape),), window=window))
    return reshaped(most, mask_shape(layer, [value.shape]))


def join_masks(graph: Graph, given: Sequence[Value | None], values: Sequence[Value]) -> Value:
    """The mask of sequences one after the other; where one has none, all of its steps count."""
    known = [_all_steps(graph, value) if mask is None else mask for mask, value in zip(given, values, strict=True)]
    shape = (sum(one.shape[0] for one in known), *known[0].shape[1:])
    return view(shape, lambda *places: np.concatenate(places), *known)


def _all_steps(graph: Graph, value: Value) -> Value:
    """A mask in which every step of a value counts."""
    return graph.mapped(view(value.shape[:-1], lambda places: places[..., 0], value), "differs", math.nan)


def mask(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape, given: Sequence[Value | None] = ()) -> Value:
    """Masking."""
    own = given[0] if given else None
    return _kept(graph, inputs[0], make_mask(graph, layer, inputs[0]) if own is None else own)


def average_masked(
    graph: Graph, layer: Layer, inputs: list[Value], shape: Shape, given: Sequence[Value | None]
) -> Value:
    """GlobalAveragePooling1D of the steps that count: the mean of those and of zeros, by the part that counts."""
    (own,) = (one for one in given if one is not None)
    value, counts = inputs[0], reshaped(own, (inputs[0].shape[0], 1))
    sums, number = (_mean(graph, one) for one in (graph.merged(rows.MULTIPLY, value, counts), counts))
    mean = graph.merged(rows.MULTIPLY, sums, graph.mapped(number, "reciprocal"))
    return reshaped(mean, shape)


def _mean(graph: Graph, value: Value) -> Value:
    window = Window.sliding(value.shape, (1, value.shape[0]), (1, 1))
    return graph.add(Node(rows.AVERAGE_POOL, (value,), value.shape[-1:], window=window))


def _kept(graph: Graph, value: Value, mask: Value) -> Value:
    """A sequence with zeros in place of the steps that do not count."""
    return graph.merged(rows.MULTIPLY, value, reshaped(mask, (*value.shape[:-1], 1)))


# Products by an equation


def multiply(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    """EinsumDense."""
    value, product = inputs[0], Product.of(layer.options, inputs[0].shape)
    moved = tuple(value.shape[axis] for axis in product.input_order)
    positions, summed = moved[: product.positions], math.prod(moved[product.positions :])
    matrix = view((*positions, summed), lambda p: p.transpose(product.input_order).reshape(*positions, summed), value)
    kernel = arranged(layer.weights["kernel"], lambda w: w.transpose(product.kernel_order).reshape(summed, -1))
    bias = _plain(layer, "bias")
    units = [shape[axis] for axis in np.argsort(product.output_order)[product.positions :]]
    # A bias of the units alone, in their order, is added by the product.
    plain = bias is not None and bias.shape == tuple(units) and product.output_order == tuple(range(len(shape)))
    value = project(graph, matrix, kernel, bias.ravel() if plain and bias is not None else None)
    split = (*positions, *units)
    value = view(shape, lambda places: places.reshape(split).transpose(product.output_order), value)
    if bias is None or plain:
        return value
    missing = (1,) * (len(shape) - bias.ndim)
    return graph.scaled(value, np.ones(1), bias.reshape(*missing, *bias.shape))
