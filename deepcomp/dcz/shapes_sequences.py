"""The output shape and the weights of layers of sequences: recurrent layers, attention, products by an equation."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from deepcomp.dcz.codes import Shape, require
from deepcomp.dcz.shapes import convolution
from deepcomp.errors import shape_text

Weights = dict[str, Shape]


def _require_sequence(shape: Shape) -> None:
    require(len(shape) == 2, f"it takes sequences of vectors, of 2 dimensions, not {shape_text(shape)}.")


def recurrent(gates: int) -> Callable[..., tuple[Shape, Weights]]:
    """The plan of a recurrent layer with so many gates."""

    def plan(options: Mapping[str, Any], shape: Shape) -> tuple[Shape, Weights]:
        _require_sequence(shape)
        for name in ("activation", "recurrent_activation"):
            require(options.get(name) != "softmax", f"{name}='softmax' is not one for each unit alone.")
        units = options["units"]
        weights = {"kernel": (shape[1], gates * units), "recurrent_kernel": (units, gates * units)}
        if options["use_bias"]:
            weights["bias"] = (2, gates * units) if options.get("reset_after") else (gates * units,)
        return (shape[0], units) if options["return_sequences"] else (units,), weights

    return plan


def bidirectional(options: Mapping[str, Any], shape: Shape) -> tuple[Shape, Weights]:
    """A recurrent layer in each direction."""
    layers = {"forward": options["layer"], "backward": options["backward_layer"]}
    outputs, weights = [], {}
    for direction, layer in layers.items():
        output, own = layer.plan(shape)
        outputs.append(output)
        weights |= {f"{direction}_{name}": size for name, size in own.items()}
    opposite = len({layer.options["go_backwards"] for layer in layers.values()}) == 2
    require(opposite, "both of its layers run in the same direction.")
    if options["merge_mode"] == "concat":
        fits = outputs[0][:-1] == outputs[1][:-1]
        output = (*outputs[0][:-1], outputs[0][-1] + outputs[1][-1])
    else:
        fits, output = outputs[0] == outputs[1], outputs[0]
    require(fits, f"its layers put out {shape_text(outputs[0])} and {shape_text(outputs[1])}.")
    return output, weights


def _attention(query: Shape, value: Shape, key: Shape, options: Mapping[str, Any]) -> None:
    """Require inputs that fit each other: positions, then features."""
    said = ", ".join(map(shape_text, (query, value, key)))
    require(min(map(len, (query, value, key))) > 1, f"it takes sequences of vectors, not {said}.")
    require(value[:-1] == key[:-1], f"value and key differ in their positions: {said}.")
    ordered = options["use_causal_mask"] or options.get("sliding_window")
    fits = not ordered or len(query) == len(value) == 2
    require(bool(fits), f"use_causal_mask and sliding_window need sequences of vectors, not {said}.")


def _given(shapes: tuple[Shape, ...]) -> tuple[Shape, Shape, Shape]:
    """The shapes of query, value and key, which is the value if it is not given."""
    require(len(shapes) in (2, 3), f"it takes query, value and key, not {len(shapes)} inputs.")
    return shapes[0], shapes[1], shapes[-1]


def _projections(options: Mapping[str, Any], *sizes: tuple[str, Shape, int]) -> Weights:
    """A kernel, and a bias if there is one, for each name, shape, and number of dimensions of units."""
    weights: Weights = {}
    for name, shape, units in sizes:
        weights[f"{name}_kernel"] = shape
        if options["use_bias"]:
            weights[f"{name}_bias"] = shape[-units:]
    return weights


def multi_head_attention(options: Mapping[str, Any], *shapes: Shape) -> tuple[Shape, Weights]:
    """Attention of several heads, each with its own projections."""
    query, value, key = _given(shapes)
    _attention(query, value, key, options)
    heads, size, value_size = options["num_heads"], options["key_dim"], options["value_dim"]
    output = options["output_shape"] or query[-1:]
    gate = [("gate", (query[-1], heads, value_size), 2)] if options["use_gate"] else []
    weights = _projections(
        options,
        ("query", (query[-1], heads, size), 2),
        ("key", (key[-1], heads, size), 2),
        *gate,
        ("value", (value[-1], heads, value_size), 2),
        ("output", (heads, value_size, *output), len(output)),
    )
    return (*query[:-1], *output), weights


def grouped_query_attention(options: Mapping[str, Any], *shapes: Shape) -> tuple[Shape, Weights]:
    """Attention of several heads; several of the query share one of key and value."""
    query, value, key = _given(shapes)
    _attention(query, value, key, options)
    require(len(query) == len(value) == 2, f"it takes sequences of vectors, not {shape_text(query)}.")
    size, heads, groups = options["head_dim"], options["num_query_heads"], options["num_key_value_heads"]
    require(heads % groups == 0, f"{groups} heads of keys and values do not divide {heads} heads of queries.")
    gate = [("gate", (query[-1], heads, size), 2)] if options["use_gate"] else []
    weights = _projections(
        options,
        ("query", (query[-1], heads, size), 2),
        ("key", (key[-1], groups, size), 2),
        *gate,
        ("value", (value[-1], groups, size), 2),
        ("output", (heads, size, query[-1]), 1),
    )
    return query, weights


def _scored(options: Mapping[str, Any], shapes: tuple[Shape, ...]) -> Shape:
    query, value, key = _given(shapes)
    _attention(query, value, key, options)
    fits = len(query) == len(value) == 2 and query[-1] == key[-1]
    said = ", ".join(map(shape_text, shapes))
    require(fits, f"it takes sequences of vectors, and queries as long as keys, not {said}.")
    return query[0], value[1]


def attention(options: Mapping[str, Any], *shapes: Shape) -> tuple[Shape, Weights]:
    """Attention whose scores are products of queries and keys, or of their sums."""
    names = ["scale"] * options["use_scale"] + ["concat_score_weight"] * (options["score_mode"] == "concat")
    return _scored(options, shapes), dict.fromkeys(names, (1,))


def additive_attention(options: Mapping[str, Any], *shapes: Shape) -> tuple[Shape, Weights]:
    """Attention whose scores are sums over functions of queries plus keys."""
    return _scored(options, shapes), {"scale": shapes[0][-1:]} if options["use_scale"] else {}


def time_distributed(options: Mapping[str, Any], shape: Shape) -> tuple[Shape, Weights]:
    """A layer that is called for each step in time."""
    require(len(shape) > 1, f"it takes inputs of two dimensions and more, not {shape_text(shape)}.")
    output, weights = options["layer"].plan(shape[1:])
    return (shape[0], *output), weights


def convolutional_lstm(options: Mapping[str, Any], shape: Shape) -> tuple[Shape, Weights]:
    """An LSTM whose products are convolutions."""
    window, filters = options["kernel_size"], options["filters"]
    require(len(shape) == len(window) + 2, f"it takes inputs of {len(window) + 2} dimensions, not {shape_text(shape)}.")
    for name in ("activation", "recurrent_activation"):
        require(options[name] != "softmax", f"{name}='softmax' is not one for each unit alone.")
    own = {**options, "filters": 4 * filters, "groups": 1}
    (*image, _), weights = convolution(own, shape[1:])
    weights = {
        "kernel": weights["kernel"],
        "recurrent_kernel": (*window, filters, 4 * filters),
        **({"bias": weights["bias"]} if options["use_bias"] else {}),
    }
    return (*shape[:1], *image, filters) if options["return_sequences"] else (*image, filters), weights


class Product(NamedTuple):
    """A product by an equation, brought to one of matrices.

    Axes are without the batch. The input is permuted to `input_order`, first `positions` axes of positions, then those
    that are summed; the kernel to `kernel_order`, first the axes that are summed. The product has the axes of
    positions, then those of units; `output_order` permutes them.
    """

    input_order: tuple[int, ...]
    positions: int
    kernel_order: tuple[int, ...]
    output_order: tuple[int, ...]
    output: Shape
    kernel: Shape
    bias: Shape | None

    @classmethod
    def of(cls, options: Mapping[str, Any], shape: Shape) -> "Product":
        """The product of an EinsumDense. Raises `InvalidNetworkError` for an equation that is none of matrices."""
        equation = options["equation"]
        found = re.fullmatch(r"(\.\.\.)?([a-zA-Z]+)(\.\.\.)?,([a-zA-Z]+)->(\.\.\.)?([a-zA-Z]+)(\.\.\.)?", equation)
        require(found is not None, f"{equation!r} is no equation of an input and a kernel.")
        left, source, right, weight, left_out, target, right_out = found.groups()  # type: ignore[union-attr]
        fits = (left, right) == (left_out, right_out) and not (left and right)
        require(fits, f"the equation {equation!r} has an ellipsis that input and output do not share.")
        full = (0, *shape)  # the batch has any size
        more = len(full) - len(source)
        require(
            more >= bool(left or right) if left or right else more == 0,
            f"{equation!r} does not fit {shape_text(shape)}.",
        )
        elided = [str(number) for number in range(more)]  # names of the axes that the ellipsis stands for
        inputs = [*elided, *source] if left else [*source, *elided]
        outputs = [*elided, *target] if left else [*target, *elided]
        for axes in (inputs, [*weight], outputs):
            require(len({*axes}) == len(axes), f"the equation {equation!r} names an axis twice.")
        sizes = dict(zip(inputs, full, strict=True))
        batch = inputs[0]
        require(len(outputs) > 1, f"the equation {equation!r} leaves no axis but the batch.")
        fits = outputs[:1] == [batch] and batch not in weight
        require(fits, f"the equation {equation!r} does not keep the batch first.")
        given = options["output_shape"]
        inner = (*shape[: more - 1], *given) if left else (*given, *shape[len(shape) - more :])
        require(len(inner) == len(outputs) - 1, f"output_shape={given} does not fit the equation {equation!r}.")
        for axis, size in zip(outputs[1:], inner, strict=True):
            known = sizes.setdefault(axis, size)
            require(size in (0, known) and known > 0, f"output_shape={given} does not fit {shape_text(shape)}.")
        summed = [axis for axis in weight if axis in inputs]
        units = [axis for axis in weight if axis not in inputs]
        positions = [axis for axis in inputs[1:] if axis not in weight]
        fits = {*outputs[1:]} == {*positions, *units}
        require(fits, f"the equation {equation!r} is no product of two matrices: use Dense or another equation.")
        bias = None
        if options["bias_axes"]:
            fits = {*options["bias_axes"]} <= {*target} - {batch}
            require(fits, f"bias_axes={options['bias_axes']!r} are no axes of the output of {equation!r}.")
            first = min(map(outputs.index, options["bias_axes"]))
            bias = tuple(sizes[axis] if axis in options["bias_axes"] else 1 for axis in outputs[first:])
        product = [*positions, *units]
        return cls(
            tuple(inputs.index(axis) - 1 for axis in (*positions, *summed)),
            len(positions),
            tuple(map(weight.index, (*summed, *units))),
            tuple(map(product.index, outputs[1:])),
            tuple(sizes[axis] for axis in outputs[1:]),
            tuple(sizes[axis] for axis in weight),
            bias,
        )


def einsum_dense(options: Mapping[str, Any], shape: Shape) -> tuple[Shape, Weights]:
    """A product of the input and a kernel, by an equation. A size 0 of `output_shape` is that of the input."""
    product = Product.of(options, shape)
    bias = {} if product.bias is None else {"bias": product.bias}
    return product.output, {"kernel": product.kernel, **bias}
