"""What Keras's operations and functions on symbolic tensors mean as layers: `x + y`, `x / 255`, `ops.mean(x, 1)`.

An operation becomes one layer or a few, each of a kind of `kinds.KINDS`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Shape = tuple[int, ...]


class Step(NamedTuple):
    """A layer in place of an operation. `inputs` are numbers of the operation's inputs, or -1 - n for step n."""

    kind: str
    options: dict[str, Any]
    inputs: tuple[int, ...] = (0,)


class Call(NamedTuple):
    """A call of an operation: its settings, its arguments, and the shapes of inputs and output, without the batch.

    Symbolic tensors among the arguments are None. Sizes may be an example of those that are open.
    """

    operation: Any
    arguments: tuple
    inputs: tuple[Shape, ...]
    output: Shape
    is_example: bool = False


def layers_of(kind: str, call: Call) -> list[Step] | None:
    """The layers that do what an operation of class `kind` does; None if no layer does."""
    return _STEPS[kind](call) if kind in _STEPS else None


def _scalar(value: Any) -> float | None:
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    fits = fits or getattr(value, "shape", None) == ()
    return float(value) if fits and math.isfinite(value) else None


def _rescaling(scale: float, offset: float = 0.0) -> list[Step]:
    return [Step("Rescaling", {"scale": float(scale), "offset": float(offset)})]


def _arithmetic(kind: str, constant: Callable[[float, bool], list[Step] | None]) -> Callable[[Call], list[Step] | None]:
    """Two tensors, or a tensor and a number: `constant(number, whether it comes first)`."""

    def steps(call: Call) -> list[Step] | None:
        if len(call.inputs) == 2:
            return [Step(kind, {}, (0, 1))] if kind else None
        numbers = [_scalar(argument) for argument in call.arguments[:2] if argument is not None]
        if not numbers:  # x + x
            return [Step(kind, {}, (0, 0))] if kind else None
        return None if numbers[0] is None else constant(numbers[0], call.arguments[0] is not None)

    return steps


def _divide(number: float, first: bool) -> list[Step] | None:
    return None if first or number == 0 else _rescaling(1 / number)


def _subtract(number: float, first: bool) -> list[Step]:
    return _rescaling(-1, number) if first else _rescaling(1, -number)


def _power(call: Call) -> list[Step] | None:
    return _square(call) if len(call.arguments) == 2 and _scalar(call.arguments[1]) == 2 else None


def _square(call: Call) -> list[Step]:
    return [Step("Multiply", {}, (0, 0))]


def _absolute(call: Call) -> list[Step]:
    return [*_rescaling(-1), Step("Maximum", {}, (0, -1))]


def _activation(name: str, **settings: Any) -> Callable[[Call], list[Step] | None]:
    """An activation, if the operation's settings are those given here."""

    def steps(call: Call) -> list[Step] | None:
        same = all(getattr(call.operation, key) == value for key, value in settings.items())
        return [Step("Activation", {"activation": name})] if same else None

    return steps


def _gelu(call: Call) -> list[Step] | None:
    if not call.operation.approximate:
        return [Step("Activation", {"activation": "gelu"})]
    # x / 2 * (1 + tanh(factor * (x + 0.044715 * x^3))) = x * sigmoid(2 * factor * x * (1 + 0.044715 * x^2))
    factor = 2 * math.sqrt(2 / math.pi)
    return [
        Step("Multiply", {}, (0, 0)),
        Step("Rescaling", {"scale": 0.044715 * factor, "offset": factor}, (-1,)),
        Step("Multiply", {}, (0, -2)),
        Step("Activation", {"activation": "sigmoid"}, (-3,)),
        Step("Multiply", {}, (0, -4)),
    ]


def _relu(call: Call) -> list[Step]:
    operation = call.operation
    most = operation.max_value
    options = {
        "max_value": None if most is None else float(most),
        "negative_slope": float(operation.negative_slope),
        "threshold": float(operation.threshold),
    }
    return [Step("ReLU", options)]


def _leaky_relu(call: Call) -> list[Step]:
    return [Step("LeakyReLU", {"negative_slope": float(call.operation.negative_slope)})]


def _elu(call: Call) -> list[Step]:
    return [Step("ELU", {"alpha": float(call.operation.alpha)})]


def _clip(call: Call) -> list[Step] | None:
    low, high = _scalar(call.operation.x_min), _scalar(call.operation.x_max)
    if low != 0 or high is None or high < 0:
        return None
    return [Step("ReLU", {"max_value": high, "negative_slope": 0.0, "threshold": 0.0})]


def _reshape(call: Call) -> list[Step] | None:
    return [] if call.inputs[0] == call.output else [Step("Reshape", {"target_shape": call.output})]


def _permute(axes: Sequence[int]) -> list[Step] | None:
    """A permutation of axes, the batch's included, which stays where it is."""
    return [Step("Permute", {"dims": tuple(axes[1:])})] if axes[0] == 0 else None


def _positive(axis: int, shape: Shape) -> int:
    """An axis, the batch's included, counted from 0."""
    return axis % (len(shape) + 1)


def _transpose(call: Call) -> list[Step] | None:
    rank = len(call.inputs[0]) + 1
    axes = call.operation.axes
    return _permute([axis % rank for axis in axes] if axes is not None else [*range(rank)][::-1])


def _swap(call: Call) -> list[Step] | None:
    axes = [*range(len(call.inputs[0]) + 1)]
    a, b = (_positive(axis, call.inputs[0]) for axis in (call.operation.axis1, call.operation.axis2))
    axes[a], axes[b] = axes[b], axes[a]
    return _permute(axes)


def _concatenate(call: Call) -> list[Step] | None:
    axis = _positive(call.operation.axis, call.inputs[0])
    numbers = tuple(range(len(call.inputs)))
    axis = -1 if axis == len(call.output) else axis
    return [Step("Concatenate", {"axis": axis}, numbers)] if axis and len(numbers) > 1 else None


def _stack(call: Call) -> list[Step] | None:
    axis = _positive(call.operation.axis, call.output)
    shape = call.inputs[0]
    if not axis or len(call.inputs) < 2:
        return None
    target = (*shape[: axis - 1], 1, *shape[axis - 1 :])
    steps = [Step("Reshape", {"target_shape": target}, (number,)) for number in range(len(call.inputs))]
    axis = -1 if axis == len(call.output) else axis
    return [*steps, Step("Concatenate", {"axis": axis}, tuple(-1 - number for number in range(len(steps))))]


def _matmul(call: Call) -> list[Step] | None:
    ranks = [len(shape) for shape in call.inputs]
    return [Step("Dot", {"axes": (2, 1), "normalize": False}, (0, 1))] if ranks == [2, 2] else None


def _reduce(kind: str, total: bool = False) -> Callable[[Call], list[Step] | None]:
    """The mean, the maximum or the sum along some axes."""

    def steps(call: Call) -> list[Step] | None:
        shape = call.inputs[0]
        axis = call.operation.axis
        if axis is None or not call.output or getattr(call.operation, "initial", None) is not None:
            return None
        axes = sorted({_positive(one, shape) for one in (axis if isinstance(axis, list | tuple) else [axis])})
        if not axes or axes[0] == 0:
            return None
        rest = [number for number in range(1, len(shape) + 1) if number not in axes]
        count = math.prod(shape[number - 1] for number in axes)
        found = [
            Step("Permute", {"dims": (*axes, *rest)}),
            Step("Reshape", {"target_shape": (count, math.prod(shape) // count)}, (-1,)),
            Step(f"Global{kind}Pooling1D", {"keepdims": False}, (-2,)),
            Step("Reshape", {"target_shape": call.output}, (-3,)),
        ]
        if total:
            found.append(Step("Rescaling", {"scale": float(count), "offset": 0.0}, (-4,)))
        return found

    return steps


def _get_item(call: Call) -> list[Step] | None:
    """Slices of step 1, and single positions."""
    keys = call.arguments[1] if isinstance(call.arguments[1], tuple) else (call.arguments[1],)
    shape = call.inputs[0]
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        missing = len(shape) + 1 - sum(key is not None for key in keys) + 1
        keys = (*keys[:at], *(slice(None),) * missing, *keys[at + 1 :])
    if (
        not call.output
        or keys[0] != slice(None)
        or any(not isinstance(key, slice | int) or isinstance(key, bool) for key in keys)
    ):
        return None
    steps: list[Step] = []
    sizes = list(shape)
    for axis, key in enumerate(keys[1:]):
        bounds = [key, key] if isinstance(key, int) else [key.start, key.stop]
        if call.is_example and any(bound is not None and not -sizes[axis] <= bound <= sizes[axis] for bound in bounds):
            return None  # beyond the end of this size; a larger one tells what it does
        if isinstance(key, int):
            first, last = key % shape[axis], key % shape[axis] + 1
        else:
            first, last, stride = key.indices(shape[axis])
            if stride != 1 or last <= first:
                return None
        if (first, last) == (0, shape[axis]):
            continue
        before, after = math.prod(sizes[:axis]), math.prod(sizes[axis + 1 :])
        margins = ((0, 0), (first, shape[axis] - last))
        source = (-len(steps),) if steps else (0,)
        steps.append(Step("Reshape", {"target_shape": (before, shape[axis], after)}, source))
        steps.append(Step("Cropping2D", {"cropping": margins}, (-len(steps),)))
        sizes[axis] = last - first
    source = (-len(steps),) if steps else (0,)
    if steps or call.output != shape:
        steps.append(Step("Reshape", {"target_shape": call.output}, source))
    return steps


def _pad(call: Call) -> list[Step] | None:
    operation, rank = call.operation, len(call.inputs[0])
    value = getattr(operation, "constant_values", None)
    margins = tuple((int(a), int(b)) for a, b in operation.pad_width)
    if operation.mode != "constant" or value not in (None, 0) or rank not in (2, 3, 4):
        return None
    if margins[0] != (0, 0) or margins[-1] != (0, 0):
        return None
    inner = margins[1:-1]
    return [Step(f"ZeroPadding{rank - 1}D", {"padding": inner if rank > 2 else inner[0]})]


def _resize(call: Call) -> list[Step] | None:
    operation = call.operation
    plain = not (operation.antialias or operation.crop_to_aspect_ratio or operation.pad_to_aspect_ratio)
    if not plain or len(call.inputs[0]) != 3 or operation.interpolation not in ("nearest", "bilinear"):
        return None
    height, width = call.output[:2]
    return [Step("Resizing", {"height": height, "width": width, "interpolation": operation.interpolation})]


def _cast(call: Call) -> list[Step] | None:
    return [] if call.operation.dtype == "float32" else None


def _pooling(kind: str) -> Callable[[Call], list[Step] | None]:
    def steps(call: Call) -> list[Step] | None:
        operation, rank = call.operation, len(call.inputs[0]) - 1
        if rank not in (1, 2, 3):
            return None
        window, strides = (
            (size,) * rank if isinstance(size, int) else tuple(size)
            for size in (operation.pool_size, operation.strides or operation.pool_size)
        )
        options = {"pool_size": window, "strides": strides, "padding": operation.padding}
        return [Step(f"{kind}Pooling{rank}D", options)]

    return steps


_ACTIVATIONS = {
    "Relu": "relu",
    "Relu6": "relu6",
    "Sigmoid": "sigmoid",
    "HardSigmoid": "hard_sigmoid",
    "Tanh": "tanh",
    "Softplus": "softplus",
    "Softsign": "softsign",
    "SoftSign": "softsign",
    "Silu": "silu",
    "HardSilu": "hard_silu",
    "HardSwish": "hard_silu",
    "Selu": "selu",
    "Mish": "mish",
    "Exp": "exponential",
    "HardTanh": "hard_tanh",
    "TanhShrink": "tanh_shrink",
    "LogSigmoid": "log_sigmoid",
    "SparsePlus": "sparse_plus",
    "SparseSigmoid": "sparse_sigmoid",
}

_STEPS: dict[str, Callable[[Call], list[Step] | None]] = {
    "Add": _arithmetic("Add", lambda number, _: _rescaling(1, number)),
    "Subtract": _arithmetic("Subtract", _subtract),
    "Multiply": _arithmetic("Multiply", lambda number, _: _rescaling(number)),
    "TrueDivide": _arithmetic("", _divide),
    "Divide": _arithmetic("", _divide),
    "Maximum": _arithmetic("Maximum", lambda number, _: None),
    "Minimum": _arithmetic("Minimum", lambda number, _: None),
    "Negative": lambda call: _rescaling(-1),
    "Power": _power,
    "Square": _square,
    "Abs": _absolute,
    "Absolute": _absolute,
    **{kind: _activation(name) for kind, name in _ACTIVATIONS.items()},
    "Gelu": _gelu,
    "Celu": _activation("celu", alpha=1.0),
    "HardShrink": _activation("hard_shrink", threshold=0.5),
    "SoftShrink": _activation("soft_shrink", threshold=0.5),
    "Squareplus": _activation("squareplus", b=4),
    "Softmax": _activation("softmax", axis=-1),
    "ReLU": _relu,
    "LeakyRelu": _leaky_relu,
    "Elu": _elu,
    "Clip": _clip,
    **dict.fromkeys(("Reshape", "ExpandDims", "Squeeze", "Flatten", "Ravel"), _reshape),
    "Transpose": _transpose,
    "Swapaxes": _swap,
    "Concatenate": _concatenate,
    "Stack": _stack,
    "Matmul": _matmul,
    "Mean": _reduce("Average"),
    "Max": _reduce("Max"),
    "Sum": _reduce("Average", total=True),
    "GetItem": _get_item,
    "Pad": _pad,
    "Resize": _resize,
    "Cast": _cast,
    "AveragePool": _pooling("Average"),
    "MaxPool": _pooling("Max"),
}
