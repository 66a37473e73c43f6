"""The output shape and the weights of each kind of layer: `plan(options, *input_shapes)`, shapes without the batch."""

import math

from deepcomp.dcz.codes import require
from deepcomp.errors import shape_text


def same(options, shape):
    return shape, {}


def _bias(options, size):
    return {"bias": (size,)} if options["use_bias"] else {}


def dense(options, shape):
    units = options["units"]
    return (*shape[:-1], units), {"kernel": (shape[-1], units), **_bias(options, units)}


def _require_rank(shape, rank):
    require(len(shape) == rank, f"it takes inputs of {rank} dimensions, not {shape_text(shape)}.")


def _slide(options, shape, window, dilation):
    """The number of positions of a window along each spatial dimension."""
    _require_rank(shape, len(window) + 1)
    counts = []
    for size, reach, rate, step in zip(shape[:-1], window, dilation, options["strides"], strict=True):
        beyond = (reach - 1) * rate if options["padding"] == "valid" else 0
        counts.append(-((beyond - size) // step))
    require(min(counts) > 0, f"its window of {shape_text(window)} does not fit into {shape_text(shape)}.")
    return tuple(counts)


def _convolve(options, shape):
    require(
        max(options["strides"]) == 1 or max(options["dilation_rate"]) == 1,
        f"strides={options['strides']} and dilation_rate={options['dilation_rate']} cannot both be over 1.",
    )
    return _slide(options, shape, options["kernel_size"], options["dilation_rate"])


def convolution(options, shape):
    image, filters, groups = _convolve(options, shape), options["filters"], options["groups"]
    require(shape[-1] % groups == filters % groups == 0, f"{groups} groups do not divide {shape[-1]} and {filters}.")
    kernel = (*options["kernel_size"], shape[-1] // groups, filters)
    return (*image, filters), {"kernel": kernel, **_bias(options, filters)}


def depthwise(options, shape):
    image, multiplier = _convolve(options, shape), options["depth_multiplier"]
    channels = shape[-1] * multiplier
    kernel = (*options["kernel_size"], shape[-1], multiplier)
    return (*image, channels), {"kernel": kernel, **_bias(options, channels)}


def separable(options, shape):
    image, multiplier, filters = _convolve(options, shape), options["depth_multiplier"], options["filters"]
    window = options["kernel_size"]
    kernels = {
        "depthwise_kernel": (*window, shape[-1], multiplier),
        "pointwise_kernel": (*(1,) * len(window), shape[-1] * multiplier, filters),
    }
    return (*image, filters), {**kernels, **_bias(options, filters)}


def batch_normalization(options, shape):
    names = ["gamma"] * options["scale"] + ["beta"] * options["center"] + ["moving_mean", "moving_variance"]
    return shape, dict.fromkeys(names, shape[-1:])


def pooling(options, shape):
    window = options["pool_size"]
    return (*_slide(options, shape, window, (1,) * len(window)), shape[-1]), {}


def global_pooling(rank):
    def plan(options, shape):
        _require_rank(shape, rank)
        return ((1,) * (rank - 1) if options["keepdims"] else ()) + shape[-1:], {}

    return plan


def flatten(options, shape):
    return (math.prod(shape),), {}


def reshape(options, shape):
    target = options["target_shape"]
    require(math.prod(target) == math.prod(shape), f"{shape_text(shape)} cannot become {shape_text(target)}.")
    return target, {}


def permute(options, shape):
    dims = options["dims"]
    require(sorted(dims) == [*range(1, len(shape) + 1)], f"dims={dims} do not permute {shape_text(shape)}.")
    return tuple(shape[dim - 1] for dim in dims), {}


def zero_padding(rank):
    def plan(options, shape):
        _require_rank(shape, rank)
        margins = options["padding"] if rank > 2 else (options["padding"],)
        return (*(size + sum(margin) for size, margin in zip(shape[:-1], margins, strict=True)), shape[-1]), {}

    return plan


def elementwise(options, *shapes):
    require(len(set(map(len, shapes))) == 1, f"its inputs differ in rank: {', '.join(map(shape_text, shapes))}.")
    output = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    fits = all(size in (1, most) for shape in shapes for size, most in zip(shape, output, strict=True))
    require(fits, f"its inputs do not fit each other: {', '.join(map(shape_text, shapes))}.")
    return output, {}


def concatenate(options, *shapes):
    rank, axis = len(shapes[0]), options["axis"]
    require(axis == -1 or 0 < axis < rank, f"axis={axis} is neither -1 nor 1 to {rank - 1}.")
    place = axis - 1 if axis > 0 else rank - 1
    rests = {(len(shape), shape[:place], shape[place + 1 :]) for shape in shapes}
    require(len(rests) == 1, f"its inputs do not fit each other: {', '.join(map(shape_text, shapes))}.")
    return (*shapes[0][:place], sum(shape[place] for shape in shapes), *shapes[0][place + 1 :]), {}
