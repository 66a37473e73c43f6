"""The output shape and the weights of each kind of layer: `plan(options, *input_shapes)`, shapes without the batch."""

import math

from deepcomp.dcz.codes import require
from deepcomp.errors import shape_text


def same(options, shape):
    """The input's shape, and no weights."""
    return shape, {}


def of_input(options, shape):
    """An input; its open axes are in order, from 1 on."""
    axes = options["open_axes"]
    in_order = [*axes] == sorted({*axes}) and all(axis <= len(shape) for axis in axes)
    require(in_order, f"the open axes {axes} are not axes of {shape_text(shape)} in order.")
    return shape, {}


def _bias(options, size):
    return {"bias": (size,)} if options["use_bias"] else {}


def dense(options, shape):
    """A dense layer along the last axis."""
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
    """A convolution of any number of spatial dimensions, in groups of channels."""
    image, filters, groups = _convolve(options, shape), options["filters"], options["groups"]
    require(shape[-1] % groups == filters % groups == 0, f"{groups} groups do not divide {shape[-1]} and {filters}.")
    kernel = (*options["kernel_size"], shape[-1] // groups, filters)
    return (*image, filters), {"kernel": kernel, **_bias(options, filters)}


def depthwise(options, shape):
    """A convolution of each channel by itself."""
    image, multiplier = _convolve(options, shape), options["depth_multiplier"]
    channels = shape[-1] * multiplier
    kernel = (*options["kernel_size"], shape[-1], multiplier)
    return (*image, channels), {"kernel": kernel, **_bias(options, channels)}


def separable(options, shape):
    """A convolution of each channel by itself, then one over channels."""
    image, multiplier, filters = _convolve(options, shape), options["depth_multiplier"], options["filters"]
    window = options["kernel_size"]
    kernels = {
        "depthwise_kernel": (*window, shape[-1], multiplier),
        "pointwise_kernel": (*(1,) * len(window), shape[-1] * multiplier, filters),
    }
    return (*image, filters), {**kernels, **_bias(options, filters)}


def batch_normalization(options, shape):
    """A normalization of channels by running means and variances."""
    names = ["gamma"] * options["scale"] + ["beta"] * options["center"] + ["moving_mean", "moving_variance"]
    return shape, dict.fromkeys(names, shape[-1:])


def pooling(options, shape):
    """A pooling of any number of spatial dimensions."""
    window = options["pool_size"]
    return (*_slide(options, shape, window, (1,) * len(window)), shape[-1]), {}


def global_pooling(rank):
    """The plan of a layer that pools all positions of inputs of so many dimensions."""

    def plan(options, shape):
        _require_rank(shape, rank)
        return ((1,) * (rank - 1) if options["keepdims"] else ()) + shape[-1:], {}

    return plan


def flatten(options, shape):
    """A vector of all numbers."""
    return (math.prod(shape),), {}


def reshape(options, shape):
    """The same numbers in another shape; an open axis takes those that are left."""
    target, axis = options["target_shape"], options["open_axis"]
    if axis:
        fits = axis <= len(target) and target[axis - 1] == 1
        require(fits, f"{shape_text(target)} has no open axis {axis}, whose size is given as 1.")
        target = (*target[: axis - 1], max(1, math.prod(shape) // math.prod(target)), *target[axis:])
    require(math.prod(target) == math.prod(shape), f"{shape_text(shape)} cannot become {shape_text(target)}.")
    return target, {}


def permute(options, shape):
    """The axes in another order."""
    dims = options["dims"]
    require(sorted(dims) == [*range(1, len(shape) + 1)], f"dims={dims} do not permute {shape_text(shape)}.")
    return tuple(shape[dim - 1] for dim in dims), {}


def zero_padding(rank):
    """The plan of a layer that pads inputs of so many dimensions."""

    def plan(options, shape):
        _require_rank(shape, rank)
        margins = options["padding"] if rank > 2 else (options["padding"],)
        return (*(size + sum(margin) for size, margin in zip(shape[:-1], margins, strict=True)), shape[-1]), {}

    return plan


def elementwise(options, *shapes):
    """An elementwise operation on inputs of one rank; sizes of 1 are repeated."""
    require(len(set(map(len, shapes))) == 1, f"its inputs differ in rank: {', '.join(map(shape_text, shapes))}.")
    output = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    fits = all(size in (1, most) for shape in shapes for size, most in zip(shape, output, strict=True))
    require(fits, f"its inputs do not fit each other: {', '.join(map(shape_text, shapes))}.")
    return output, {}


def concatenate(options, *shapes):
    """Inputs side by side along an axis."""
    rank, axis = len(shapes[0]), options["axis"]
    require(axis == -1 or 0 < axis < rank, f"axis={axis} is neither -1 nor 1 to {rank - 1}.")
    place = axis - 1 if axis > 0 else rank - 1
    rests = {(len(shape), shape[:place], shape[place + 1 :]) for shape in shapes}
    require(len(rests) == 1, f"its inputs do not fit each other: {', '.join(map(shape_text, shapes))}.")
    return (*shapes[0][:place], sum(shape[place] for shape in shapes), *shapes[0][place + 1 :]), {}


def cropping(rank):
    """The plan of a layer that crops inputs of so many dimensions."""

    def plan(options, shape):
        _require_rank(shape, rank)
        margins = options["cropping"] if rank > 2 else (options["cropping"],)
        sizes = tuple(size - sum(margin) for size, margin in zip(shape[:-1], margins, strict=True))
        require(min(sizes) > 0, f"cropping={options['cropping']} leaves nothing of {shape_text(shape)}.")
        return (*sizes, shape[-1]), {}

    return plan


def up_sampling(rank):
    """The plan of a layer that repeats inputs of so many dimensions."""

    def plan(options, shape):
        _require_rank(shape, rank)
        factors = options["size"] if rank > 2 else (options["size"],)
        return (*(size * factor for size, factor in zip(shape[:-1], factors, strict=True)), shape[-1]), {}

    return plan


def resizing(options, shape):
    """Images of another height and width."""
    _require_rank(shape, 3)
    return (options["height"], options["width"], shape[-1]), {}


def repeat_vector(options, shape):
    """A vector, repeated along a new axis."""
    _require_rank(shape, 1)
    return (options["n"], *shape), {}


def transposed_convolution(options, shape):
    """A transposed convolution of any number of spatial dimensions."""
    window, filters = options["kernel_size"], options["filters"]
    _require_rank(shape, len(window) + 1)
    beyond = options["output_padding"]
    image = []
    for axis, size in enumerate(shape[:-1]):
        stride = options["strides"][axis]
        reach = (window[axis] - 1) * options["dilation_rate"][axis] + 1
        if options["padding"] == "valid":
            more = reach + (max(stride - reach, 0) if beyond is None else beyond[axis])
        else:
            more = stride if beyond is None else reach % 2 + beyond[axis]
        image.append((size - 1) * stride + more)
        require(image[-1] > 0, f"nothing comes out of {shape_text(shape)}.")
    fits = options["padding"] == "valid" or all(
        -(-out // stride) == size for out, stride, size in zip(image, options["strides"], shape[:-1], strict=True)
    )
    require(fits, f"output_padding={beyond} does not fit strides={options['strides']}.")
    fits = max(options["strides"]) == 1 or max(options["dilation_rate"]) == 1
    require(fits, f"strides={options['strides']} and dilation_rate={options['dilation_rate']} are both over 1.")
    return (*image, filters), {"kernel": (*window, filters, shape[-1]), **_bias(options, filters)}


def adaptive_pooling(rank):
    """The plan of a layer that pools inputs of so many dimensions to a given size."""

    def plan(options, shape):
        _require_rank(shape, rank)
        sizes = options["output_size"]
        fits = all(size <= most for size, most in zip(sizes, shape[:-1], strict=True))
        require(fits, f"output_size={sizes} is larger than {shape_text(shape)}.")
        return (*sizes, shape[-1]), {}

    return plan


def _axes(options, shape):
    """The sizes of the axes that an option names, counted from 1 behind the batch."""
    axes = options["axis"]
    fits = all(1 <= axis <= len(shape) for axis in axes) and list(axes) == sorted({*axes})
    require(fits, f"axis={axes} does not fit inputs of {shape_text(shape)}: axes ascend, and the first is 1.")
    return tuple(shape[axis - 1] for axis in axes)


def statistics(options, shape):
    """A normalization with known means and variances."""
    return shape, dict.fromkeys(("mean", "variance"), _axes(options, shape) or (1,))


def layer_normalization(options, shape):
    """A normalization of each example along some axes."""
    names = ["gamma"] * options["scale"] + ["beta"] * options["center"]
    sizes = _axes(options, shape)
    require(bool(sizes), "it needs an axis.")
    return shape, dict.fromkeys(names, sizes)


def root_mean_square_normalization(options, shape):
    """A normalization of each example along the last axis by its root mean square."""
    return shape, {"scale": shape[-1:]}


def unit_normalization(options, shape):
    """A normalization of each example to length 1 along some axes."""
    require(bool(_axes(options, shape)), "it needs an axis.")
    return shape, {}


def group_normalization(options, shape):
    """A normalization of groups of channels."""
    require(len(shape) > 1, f"it takes inputs of two dimensions and more, not {shape_text(shape)}.")
    require(shape[-1] % options["groups"] == 0, f"{options['groups']} groups do not divide {shape[-1]} channels.")
    names = ["gamma"] * options["scale"] + ["beta"] * options["center"]
    return shape, dict.fromkeys(names, shape[-1:])


def channel_scale(options, shape):
    """A factor for each channel."""
    return shape, {"gamma": shape[-1:]}


def parametric_relu(options, shape):
    """A slope for each position, or one for all along shared axes."""
    shared = options["shared_axes"]
    require(all(1 <= axis <= len(shape) for axis in shared), f"shared_axes={shared} do not fit {shape_text(shape)}.")
    return shape, {"alpha": tuple(1 if axis in shared else size for axis, size in enumerate(shape, 1))}


def pair(options, *shapes):
    """An elementwise operation on two inputs."""
    require(len(shapes) == 2, f"it takes two inputs, not {len(shapes)}.")
    return elementwise(options, *shapes)


def dot(options, *shapes):
    """A product of two inputs along one axis of each."""
    require(len(shapes) == 2, f"it takes two inputs, not {len(shapes)}.")
    first, second = options["axes"]
    a, b = shapes
    fits = 1 <= first <= len(a) <= 3 and 1 <= second <= len(b) <= 3 and a[first - 1] == b[second - 1]
    require(fits, f"axes={options['axes']} do not fit {shape_text(a)} and {shape_text(b)}.")
    rest = (*a[: first - 1], *a[first:], *b[: second - 1], *b[second:])
    return rest or (1,), {}


def embedding(options, shape):
    """A row of a table for each whole number."""
    return (*shape, options["output_dim"]), {"embeddings": (options["input_dim"], options["output_dim"])}
