"""Lowers layers of three dimensions, transposed convolutions, adaptive poolings and changes of size.

None of them has a step of its own. They become convolutions and poolings over two dimensions, elementwise operations,
and views, which copy nothing.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from deepcomp.dcz.network import Layer, SharedWeight, entries
from deepcomp.runtime.graph import Graph, Node, Shape, Value, Window, pads, reshaped, view
from deepcomp.runtime.rows import ADD, AVERAGE_POOL, COPY, MAX_POOL, MAXIMUM, SCALE

Kernel = SharedWeight | np.ndarray


def crop(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    """Cropping1D to Cropping3D."""
    margins = layer.options["cropping"]
    margins = margins if len(shape) > 2 else (margins,)
    kept = tuple(slice(first, first + size) for (first, _), size in zip(margins, shape[:-1], strict=True))
    return view(shape, lambda places: places[kept], inputs[0])


def repeat(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    """RepeatVector."""
    return view(shape, lambda places: np.broadcast_to(places, shape), inputs[0])


def up_sample(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    """UpSampling1D to UpSampling3D."""
    if layer.options.get("interpolation") == "bilinear":
        return _interpolated(graph, inputs[0], shape)
    return _nearest(inputs[0], shape)


def resize(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    """Resizing."""
    if layer.options["interpolation"] == "bilinear":
        return _interpolated(graph, inputs[0], shape)
    return _nearest(inputs[0], shape)


def _nearest(value: Value, shape: Shape) -> Value:
    numbers = [
        np.minimum((np.arange(size) + 0.5) * before / size, before - 1).astype(np.int64)
        for size, before in zip(shape[:-1], value.shape[:-1], strict=True)
    ]
    return view(shape, lambda places: places[np.ix_(*numbers)], value)


def _interpolated(graph: Graph, value: Value, shape: Shape) -> Value:
    """Linear interpolation between the centers of pixels, along rows, then along columns."""
    for axis in (0, 1):
        size, before = shape[axis], value.shape[axis]
        if size == before:
            continue
        center = (np.arange(size) + 0.5) * before / size - 0.5
        lower = np.floor(center)
        part = center - lower
        near, far = (np.clip(number, 0, before - 1).astype(np.int64) for number in (lower, lower + 1))
        value = _weighted(graph, value, axis, [(near, 1 - part), (far, part)])
    return value


def _taken(value: Value, axis: int, numbers: np.ndarray) -> Value:
    """The elements of these numbers along an axis."""
    shape = (*value.shape[:axis], len(numbers), *value.shape[axis + 1 :])
    return view(shape, lambda places: np.take(places, numbers, axis), value)


def _weighted(graph: Graph, value: Value, axis: int, terms: Iterable[tuple[np.ndarray, np.ndarray]]) -> Value:
    """Sums along an axis; a term is the number of an element for each sum, and its factor."""

    def product_of(number: np.ndarray, factor: np.ndarray) -> Value:
        part = _taken(value, axis, number)
        factor = factor.reshape(-1, *(1,) * (len(value.shape) - axis - 1))
        return graph.add(Node(SCALE, (part,), part.shape, scale=factor, shift=np.zeros(1)))

    products = (product_of(number, factor) for number, factor in terms if factor.any())
    return functools.reduce(functools.partial(graph.merged, ADD), products)


def _largest(graph: Graph, value: Value, axis: int, candidates: Iterable[np.ndarray]) -> Value:
    """The largest of elements along an axis; a candidate is the number of an element for each maximum."""
    parts = (_taken(value, axis, number) for number in candidates)
    return functools.reduce(functools.partial(graph.merged, MAXIMUM), parts)


# Pooling


def _pool_axis(graph: Graph, value: Value, axis: int, first: np.ndarray, last: np.ndarray, maximum: bool) -> Value:
    """Pool an axis: output n is that of the elements from `first[n]` up to, but without, `last[n]`."""
    steps = range(int((last - first).max()))
    # Where a window is shorter than others, its last element is repeated: no maximum changes, nor a sum by a factor 0.
    end = last - 1
    numbers = (np.minimum(first + step, end) for step in steps)
    if maximum:
        return _largest(graph, value, axis, numbers)
    factors = ((first + step < last) / (last - first) for step in steps)
    return _weighted(graph, value, axis, zip(numbers, factors, strict=True))


def pool_adaptively(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    """AdaptiveMaxPooling1D to AdaptiveAveragePooling3D."""
    value = inputs[0]
    for axis, size in enumerate(shape[:-1]):
        number, before = np.arange(size), value.shape[axis]
        first, last = number * before // size, -(-(number + 1) * before // size)
        value = _pool_axis(graph, value, axis, first, last, layer.kind.startswith("AdaptiveMax"))
    return value


def pool_3d(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    """MaxPooling3D and AveragePooling3D: rows and columns of all frames at once, then the frames."""
    options, (frames, *image, channels) = layer.options, inputs[0].shape
    maximum = layer.kind.startswith("Max")
    stacked = view(
        (*image, frames * channels),
        lambda places: np.moveaxis(places, 0, 2).reshape(*image, frames * channels),
        inputs[0],
    )
    (size, *window), (stride, *strides) = options["pool_size"], options["strides"]
    window = Window.sliding(stacked.shape, window, strides, padding=options["padding"])
    op = MAX_POOL if maximum else AVERAGE_POOL
    value = graph.pooled(op, stacked, window, (*window.counts, frames * channels))
    unstacked = (*window.counts, frames, channels)
    value = view((frames, *window.counts, channels), lambda places: np.moveaxis(places.reshape(unstacked), 2, 0), value)
    before, _ = pads(frames, size, stride, options["padding"])
    start = np.arange(shape[0]) * stride - before
    return _pool_axis(graph, value, 0, np.maximum(start, 0), np.minimum(start + size, frames), maximum)


# Convolutions


def convolve_3d(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    """Conv3D."""
    kernel, bias = layer.weights["kernel"], layer.weights.get("bias")
    return convolve_frames(graph, inputs[0], kernel, layer.options, bias, shape, {})


Twins = dict[range, tuple[Kernel, Node | None]]  # the weights and the first node of each part of a kernel


def convolve_frames(
    graph: Graph,
    value: Value,
    kernel: Kernel,
    options: Mapping[str, Any],
    bias: SharedWeight | np.ndarray | None,
    shape: Shape,
    first: Twins,
) -> Value:
    """For each output frame, a convolution of the input frames in its window, as more channels.

    `first` keeps the parts of the kernel for another convolution by it: by the taps of the window that lie inside.
    """
    groups = options["groups"]
    (size, *_), (stride, *strides), (rate, *dilation) = (
        options[name] for name in ("kernel_size", "strides", "dilation_rate")
    )
    frames = value.shape[0]
    before, _ = pads(frames, (size - 1) * rate + 1, stride, options["padding"])
    outputs = []
    for frame in range(shape[0]):
        start = frame * stride - before
        taps = range(max(0, -(start // rate)), min(size, -((start - frames) // rate)))
        # A window wholly outside is its bias: the kernel of any frame, with no weights left.
        part = _frames(value, range(start, start + size * rate, rate)[taps.start : taps.stop] or [0], groups)
        own, twin = first.get(taps) or (_window_frames(kernel, taps) if taps else _empty(kernel), None)
        window = Window.sliding(part.shape, options["kernel_size"][1:], strides, dilation, options["padding"])
        outputs.append(graph.product(part, own, window, shape[1:], bias, groups, twin))
        first.setdefault(taps, (own, outputs[-1].node))
    return view(shape, lambda *places: np.stack(places), *outputs)


def _frames(value: Value, numbers: Sequence[int], groups: int = 1) -> Value:
    """Some frames side by side as channels, those of one group together."""
    _, *image, channels = value.shape
    shape = (*image, len(numbers) * channels)

    def arrange(places: np.ndarray) -> np.ndarray:
        taken = places[list(numbers)].reshape(len(numbers), *image, groups, channels // groups)
        return np.moveaxis(taken, 0, -2).reshape(shape)

    return view(shape, arrange, value)


def arranged(kernel: Kernel, arrange) -> Kernel:
    """A kernel whose entries `arrange` has put in another order or shape."""
    if isinstance(kernel, SharedWeight):
        return SharedWeight(kernel.codebook, np.ascontiguousarray(arrange(kernel.indices)))
    return np.ascontiguousarray(arrange(kernel))


def _window_frames(kernel: Kernel, taps: Sequence[int]) -> Kernel:
    """The kernel (frames, rows, columns, inputs, outputs) of some frames, which are its inputs now."""

    def arrange(array: np.ndarray) -> np.ndarray:
        taken = np.moveaxis(array[list(taps)], 0, 2)
        return taken.reshape(*taken.shape[:2], -1, taken.shape[-1])

    return arranged(kernel, arrange)


def convolve_transposed(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    """Conv1DTranspose to Conv3DTranspose.

    Output y is the sum of the inputs i times the taps t with i * stride + t * dilation - before = y. Outputs that are
    equal modulo the stride have the same taps, so they are a convolution with stride 1.
    """
    options, value, bias = layer.options, inputs[0], layer.weights.get("bias")
    missing = 3 - len(options["kernel_size"])
    kernel = arranged(
        layer.weights["kernel"], lambda e: np.swapaxes(e.reshape(*(1,) * missing, *e.shape), -1, -2)
    )  # (frames, rows, columns, inputs, outputs)
    size, strides, rates = ((*(1,) * missing, *options[name]) for name in ("kernel_size", "strides", "dilation_rate"))
    value = reshaped(value, (*(1,) * missing, *value.shape))
    full = (*(1,) * missing, *shape)
    before = []
    for axis in range(3):
        reach = (size[axis] - 1) * rates[axis] + 1
        extra = (value.shape[axis] - 1) * strides[axis] + reach - full[axis] if options["padding"] == "same" else 0
        before.append(max(extra, 0) // 2)
    outputs = []
    for frame in range(full[0]):
        numbers = (frame + before[0] - np.arange(size[0]) * rates[0]) / strides[0]
        inside = (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers < value.shape[0])
        taps = [int(tap) for tap in np.flatnonzero(inside)]
        # A frame without any input is its bias: the kernel of an input of zeros.
        part = _frames(value, [int(numbers[tap]) for tap in taps] or [0])
        own = _window_frames(kernel, taps) if taps else _empty(kernel)
        outputs.append(_frame_transposed(graph, part, own, bias, strides[1:], rates[1:], before[1:], full[1:]))
    stacked = view(full, lambda *places: np.stack(places), *outputs)
    return reshaped(stacked, shape)


def _empty(kernel: Kernel) -> Kernel:
    """The kernel of one frame, with no weights left."""
    return arranged(kernel, lambda array: np.zeros_like(array[0]))


def _frame_transposed(graph: Graph, value: Value, kernel: Kernel, bias, strides, rates, before, shape: Shape) -> Value:
    """A transposed convolution of one frame: a convolution for each residue of rows and columns, interleaved."""
    residues = [range(min(stride, size)) for stride, size in zip(strides, shape[:2], strict=True)]
    parts = []
    for residue in product(*residues):
        taps, starts, steps, counts = [], [], [], []
        for axis in (0, 1):
            own = _taps_of(entries(kernel).shape[axis], strides[axis], rates[axis], residue[axis] + before[axis])
            taps.append(own[0])
            starts.append(own[1])
            steps.append(own[2])
            counts.append(-(-(shape[axis] - residue[axis]) // strides[axis]))
        own = arranged(kernel, lambda array, taps=taps: _picked(array, *taps))
        window = Window(
            size=tuple(map(len, taps)),
            strides=(1, 1),
            dilation=tuple(steps),
            before=tuple(-start for start in starts),
            after=tuple(
                max(0, count - 1 + start + (len(numbers) - 1) * step - (size - 1))
                for count, start, numbers, step, size in zip(counts, starts, taps, steps, value.shape[:2], strict=True)
            ),
            counts=tuple(counts),
        )
        parts.append((residue, graph.product(value, own, window, (*counts, shape[-1]), bias)))

    def arrange(*places: np.ndarray) -> np.ndarray:
        whole = np.empty(shape, np.int64)
        for (residue, _), own in zip(parts, places, strict=True):
            whole[residue[0] :: strides[0], residue[1] :: strides[1]] = own
        return whole

    return view(shape, arrange, *(part for _, part in parts))


def _taps_of(size: int, stride: int, rate: int, target: int) -> tuple[list[int], int, int]:
    """The taps, first input and step of a convolution with stride 1 that computes one residue.

    They are the taps t of `size` for which i = (target - t * rate) / stride is whole, by ascending i; stride or rate is
    1. A tap -1 has no weight: it makes the first input 0 at most.
    """
    taps = [*reversed(range(target % stride, size, stride))]
    if not taps:
        return [-1], 0, 1
    start = (target - taps[0] * rate) // stride
    missing = max(0, -(-start // rate))
    return [-1] * missing + taps, start - missing * rate, rate


def _picked(array: np.ndarray, rows: Sequence[int], columns: Sequence[int]) -> np.ndarray:
    """Some rows and columns of a kernel; -1 stands for one without weights."""
    picked = array[np.ix_(list(rows), list(columns))]
    picked[np.less(rows, 0)] = 0
    picked[:, np.less(columns, 0)] = 0
    return picked


def pad_3d(graph: Graph, layer: Layer, inputs: list[Value], shape: Shape) -> Value:
    """ZeroPadding3D: the input among zeros."""
    any_number = view((1, 1, 1), lambda places: places.reshape(-1)[:1].reshape(1, 1, 1), inputs[0])
    one = graph.add(Node(COPY, (any_number,), any_number.shape))
    zero = Value((2, 1, 1), parts=(one,), margins=(1, 0, 0, 0))  # the first of them lies in the margin
    inner = tuple(
        slice(first, first + size)
        for (first, _), size in zip(layer.options["padding"], inputs[0].shape[:-1], strict=True)
    )

    def arrange(zeros: np.ndarray, places: np.ndarray) -> np.ndarray:
        whole = np.full(shape, zeros.flat[0])
        whole[inner] = places
        return whole

    return view(shape, arrange, zero, inputs[0])
