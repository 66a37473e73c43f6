"""The networks, how a Keras file is opened, and which of a network's weights are kernels."""

import math
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import keras
import numpy as np

from deepcomp import keras_private
from deepcomp.errors import DataError, RecipeError, UnsupportedLayerError

Number = TypeVar("Number", int, float)


def reference(classes: int, initializer: str | dict) -> list[keras.layers.Layer]:
    """The reference system's network: no biases, two 5x5 convolutions of stride 2, two dense layers."""
    options = {"use_bias": False, "kernel_initializer": initializer}
    convolution = {"kernel_size": 5, "strides": 2, "padding": "same", "activation": "relu", **options}
    return [
        keras.layers.Conv2D(32, name="conv1", **convolution),
        keras.layers.Conv2D(64, name="conv2", **convolution),
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dense(1024, activation="relu", name="fc1", **options),
        keras.layers.Dense(classes, name="fc2", **options),
    ]


def lenet_300_100(classes: int, initializer: str | dict) -> list[keras.layers.Layer]:
    """LeNet-300-100 (LeCun et al., 1998): three dense layers with biases."""
    return [
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dense(300, activation="relu", kernel_initializer=initializer, name="fc1"),
        keras.layers.Dense(100, activation="relu", kernel_initializer=initializer, name="fc2"),
        keras.layers.Dense(classes, kernel_initializer=initializer, name="fc3"),
    ]


def lenet_5(classes: int, initializer: str | dict) -> list[keras.layers.Layer]:
    """LeNet-5 in Caffe's sizes, with a ReLU after every hidden layer."""
    convolution = {"kernel_size": 5, "activation": "relu", "kernel_initializer": initializer}
    return [
        keras.layers.Conv2D(20, name="conv1", **convolution),
        keras.layers.MaxPooling2D(name="pool1"),
        keras.layers.Conv2D(50, name="conv2", **convolution),
        keras.layers.MaxPooling2D(name="pool2"),
        keras.layers.Flatten(name="flatten"),
        keras.layers.Dense(500, activation="relu", kernel_initializer=initializer, name="fc1"),
        keras.layers.Dense(classes, kernel_initializer=initializer, name="fc2"),
    ]


def resnet_8(classes: int, initializer: str | dict) -> Callable[[keras.KerasTensor], keras.KerasTensor]:
    """The residual network of MLPerf Tiny for CIFAR-10 (Banbury et al., 2021), without its softmax.

    Layers are named as Keras names them in a new process: such names take no bytes in a file.
    """
    counts: Counter[str] = Counter()

    def name(kind: str) -> str:
        counts[kind] += 1
        return kind if counts[kind] == 1 else f"{kind}_{counts[kind] - 1}"

    def convolved(x, units: int, size: int = 3, strides: int = 1):
        options = {"strides": strides, "padding": "same", "kernel_initializer": initializer}
        return keras.layers.Conv2D(units, size, name=name("conv2d"), **options)(x)

    def normalized(x):
        return keras.layers.BatchNormalization(name=name("batch_normalization"))(x)

    def rectified(x):
        return keras.layers.ReLU(name=name("re_lu"))(x)

    def outputs(image):
        x = rectified(normalized(convolved(image, 16)))
        for units, strides in ((16, 1), (32, 2), (64, 2)):
            y = rectified(normalized(convolved(x, units, strides=strides)))
            y = normalized(convolved(y, units))
            short = convolved(x, units, 1, strides) if strides > 1 else x
            x = rectified(keras.layers.Add(name=name("add"))([short, y]))
        x = keras.layers.AveragePooling2D(x.shape[1:3], name="average_pooling2d")(x)
        x = keras.layers.Flatten(name="flatten")(x)
        return keras.layers.Dense(classes, kernel_initializer=initializer, name="dense")(x)

    return outputs


NETWORKS = {"reference": reference, "lenet-300-100": lenet_300_100, "lenet-5": lenet_5, "resnet-8": resnet_8}


def build(
    name: str, shape: tuple[int, ...] = (28, 28, 1), classes: int | None = 10, *, stddev: float = 0.0
) -> keras.Model:
    """Build one of `NETWORKS` for images of `shape`; its outputs are `classes` logits.

    Kernels are drawn from N(0, `stddev`), or by He's rule where `stddev` is 0, with Keras's global seed.
    Raises `RecipeError` for an unknown name, `DataError` for images that the network cannot take.
    """
    if name not in NETWORKS:
        raise RecipeError(f"No network {name!r}: use {', '.join(NETWORKS)} or a model file, like FILE.keras.")
    if classes is None:
        raise DataError(
            f"The network {name!r} tells classes apart, and the labels are no class numbers: use --model FILE."
        )
    # A name or a config, not an instance: one instance would give all layers of a shape the same weights.
    initializer = {"class_name": "RandomNormal", "config": {"stddev": stddev}} if stddev else "he_normal"
    made, image, own = NETWORKS[name](classes, initializer), keras.Input(shape, name="image"), name.replace("-", "_")
    try:
        if callable(made):
            return keras.Model(image, made(image), name=own)
        return keras.Sequential([image, *made], name=own)
    except ValueError as error:
        raise DataError(f"Images of {'x'.join(map(str, shape))} do not fit the network {name!r}.") from error


def clone(
    model: keras.Model,
    replace: Callable[[keras.layers.Layer], keras.layers.Layer] | None = None,
    inputs: Any = None,
) -> keras.Model:
    """A copy of a built model with the same weights and state; it shares nothing with `model`, and is not compiled.

    In a Sequential or functional model `replace` may make each innermost layer anew, nested models included; a new
    layer of the same class gets the old one's weights. `inputs` are some examples, as the model takes them: a
    subclassed model is built with them, and the copy is checked to compute the same. Raises `UnsupportedLayerError` for
    a model or layer that cannot be made from its own configuration.
    """
    try:
        if input_shape(model) is None:
            copy = type(model).from_config(model.get_config())
            copy(_build_inputs(model) if inputs is None else inputs)  # calling it builds it
            pairs = list(zip(keras_private.all_layers(model), keras_private.all_layers(copy), strict=True))
        else:
            pairs = []

            def again(layer):
                made = replace(layer) if replace else _remade(layer)
                pairs.append((layer, made))
                return made

            with _uncompiled(model):
                copy = keras.models.clone_model(model, clone_function=again, recursive=True)
        for old, new in pairs:
            if type(old) is type(new) and isinstance(old, keras.layers.Layer):  # and not an operation like `x + y`
                for one, other in zip(_with_parts(old), _with_parts(new), strict=True):
                    _copy_state(one, other)
        if replace is None:
            for own, others in zip(copy.variables, model.variables, strict=True):
                own.assign(others.value)
                if own.trainable != others.trainable:
                    own.trainable = others.trainable
    except (NotImplementedError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise UnsupportedLayerError(
            f"The network {model.name!r} cannot be copied, is it built? {_first_line(error)}"
        ) from error
    if inputs is not None and replace is None:
        _check_same(model, copy, inputs)
    return copy


def _remade(layer: Any) -> Any:
    """A new layer of the same configuration; a Lambda keeps its function."""
    if type(layer) is keras.layers.Lambda:
        return keras_private.same_lambda(layer)
    return type(layer).from_config(layer.get_config())


def _with_parts(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    return [layer, *keras_private.all_layers(layer)]


def _copy_state(old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Give a layer the weights, random seeds and other state of another of its class, as Keras's files keep them."""
    if not old.variables and not hasattr(old, "save_assets"):
        return
    if type(old).load_own_variables is not keras.layers.Layer.load_own_variables:
        store: dict[str, np.ndarray] = {}
        old.save_own_variables(store)
        new.load_own_variables({name: np.asarray(value) for name, value in store.items()})
    if hasattr(old, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)
    for mine, others in zip(new.variables, old.variables, strict=True):
        mine.assign(others.value)
    if isinstance(new, keras.layers.Normalization) and new.built:
        new.finalize_state()  # It computes with constants made from its weights.


def _build_inputs(model: keras.Model) -> Any:
    """Zeros of the shapes that a subclassed model was built with."""
    config = model.get_build_config() or {}
    shapes = config.get("input_shape") or config.get("shapes_dict")
    if shapes is None:
        raise ValueError("it was never called on data, so its input shapes are not known.")

    def zeros(shape):
        if isinstance(shape, dict):
            return {name: zeros(one) for name, one in shape.items()}
        if shape and isinstance(shape[0], list | tuple):
            return [zeros(one) for one in shape]
        return np.zeros((1, *(size or 1 for size in shape[1:])), np.float32)

    return zeros(shapes)


def _check_same(model: keras.Model, copy: keras.Model, inputs: Any) -> None:
    """Raise `UnsupportedLayerError` where a copy computes something else than the model, and this is not by chance."""

    def outputs(one: keras.Model) -> list[np.ndarray]:
        found = keras.tree.flatten(one(inputs, training=False))
        return [np.asarray(keras.ops.convert_to_numpy(output), np.float64) for output in found]

    def largest(values: np.ndarray) -> float:
        return float(np.nanmax(np.abs(values), initial=0))

    def apart(one: list[np.ndarray], other: list[np.ndarray]) -> float:
        return max((largest(a - b) / (1e-6 + largest(a)) for a, b in zip(one, other, strict=True)), default=0.0)

    first = outputs(model)
    if (distance := apart(first, outputs(copy))) > 1e-3 and apart(first, outputs(model)) < distance / 10:
        raise UnsupportedLayerError(
            f"A copy of the network {model.name!r} computes something else (by {distance:.2g} of its outputs): a layer "
            "of it has state that is neither in its configuration nor in its weights; give it save_own_variables and "
            "load_own_variables."
        )


def kernels(model: keras.Model) -> dict[str, keras.Variable]:
    """The trainable kernels of every layer, by name: what pruning and quantization act on.

    A kernel is a trainable weight of two or more dimensions whose name ends in `kernel` or `embeddings`; so the rule
    covers nested models, recurrent layers, attention, tables of embeddings and custom layers. The name is the layer's
    path; biases and normalization are not kernels. Raises `UnsupportedLayerError` if there is none.
    """
    found = named(model, (variable for variable in model.trainable_variables if is_kernel(variable)))
    if not found:
        frozen = sum(map(is_kernel, model.non_trainable_variables))
        raise UnsupportedLayerError(
            f"The network {model.name!r} has no trainable kernel: "
            + (
                f"{frozen} are frozen; freeze=False includes them."
                if frozen
                else "it needs a layer with one, like Dense or Conv2D."
            )
        )
    return found


def is_kernel(variable: keras.Variable) -> bool:
    """Whether a variable is a kernel, trainable or not."""
    return len(variable.shape) >= 2 and variable.name.endswith(("kernel", "embeddings"))


def named(model: keras.Model, variables: Iterable[keras.Variable]) -> dict[str, keras.Variable]:
    """Variables by the paths of their layers, kernels without their own name; a number makes names unique."""
    found: dict[str, keras.Variable] = {}
    for variable in variables:
        path = variable.path
        inner = path.removeprefix(f"{model.name}/")
        if "/" in inner:  # else the prefix is a layer that is named as the model
            path = inner
        name = path.removesuffix("/kernel")
        unique, number = name, 1
        while unique in found:
            number += 1
            unique = f"{name}_{number}"
        found[unique] = variable
    return found


def frozen_line(model: keras.Model) -> str:
    """What of a network's kernels is frozen, for people; an empty text where nothing is."""
    every = [variable for variable in model.variables if is_kernel(variable)]
    trainable = {id(variable) for variable in model.trainable_variables}
    frozen = [math.prod(variable.shape) for variable in every if id(variable) not in trainable]
    if not frozen:
        return ""
    whole = sum(math.prod(variable.shape) for variable in every)
    return (
        f"Note: {len(frozen)} of {len(every)} kernels are frozen and stay as they are. They have {sum(frozen):,} of "
        f"{whole:,} weights, which no pruning or sharing reaches; freeze=False includes them."
    )


@contextmanager
def unfrozen(model: keras.Model) -> Iterator[None]:
    """Let every layer of a model train; afterwards what was frozen is frozen again."""
    layers = [model, *keras_private.all_layers(model)]
    flags = [(layer, layer.trainable) for layer in layers], [(v, v.trainable) for v in model.variables]
    model.trainable = True
    for variable in filter(is_kernel, model.variables):  # a variable may be frozen by itself
        variable.trainable = True
    try:
        yield
    finally:
        for layer, flag in flags[0]:
            layer.trainable = flag
        for variable, flag in flags[1]:
            variable.trainable = flag


def kernel_values(model: keras.Model) -> dict[str, np.ndarray]:
    """The values of `kernels`, as arrays."""
    return {name: np.asarray(variable.numpy()) for name, variable in kernels(model).items()}


def costs(model: keras.Model, power: float) -> dict[str, float]:
    """`multiplications` to a power from 0 to 10, by the name of the kernel; nothing for 0. Raises `RecipeError`."""
    if not 0 <= power <= 10:
        raise RecipeError(f"flops_power={power}: it must be a number from 0 to 10.")
    return {name: count**power for name, count in multiplications(model).items()} if power else {}


def multiplications(model: keras.Model) -> dict[str, int]:
    """How often each weight of a kernel is multiplied for one image, by the name of the kernel.

    That is once for each position of what its layer puts out; in a transposed convolution, of what it takes. A layer
    that is applied several times counts once. Raises `UnsupportedLayerError` where these positions are not known.
    """
    names = {id(variable): name for name, variable in kernels(model).items()}
    counts: dict[str, int] = {}
    for layer in keras_private.all_layers(model):
        own = {names[id(variable)] for variable in layer.trainable_variables if id(variable) in names} - {*counts}
        if own and not isinstance(layer, keras.Model):
            counts |= dict.fromkeys(own, _positions(layer, min(own)))
    return counts


def _positions(layer: keras.layers.Layer, name: str) -> int:
    unclear = (keras.layers.RNN, keras.layers.MultiHeadAttention, keras.layers.EinsumDense)
    try:
        side = layer.input if "Transpose" in type(layer).__name__ else layer.output
        shape = (None,) * 3 if isinstance(layer, unclear) else keras.tree.flatten(side)[0].shape
    except (AttributeError, ValueError):  # a part of another layer, or a network that was never built
        shape = (None,) * 3
    sizes = shape[2:] if getattr(layer, "data_format", None) == "channels_first" else shape[1:-1]
    if None in sizes:
        raise UnsupportedLayerError(
            f"How often the layer {name!r} is applied to an image is not known: prune without flops_power."
        )
    return math.prod(sizes)


def input_shape(model: keras.Model) -> tuple[int | None, ...] | None:
    """The shape of one input as the network takes it, or None for a subclassed model, which does not say."""
    inputs = getattr(model, "inputs", None)
    return tuple(inputs[0].shape[1:]) if inputs else None


def per_layer(patterns: Mapping[str, Number], names: Iterable[str], what: str) -> dict[str, Number]:
    """The settings that regular expressions give to layers: `{pattern: value}` -> `{name: value}`.

    A pattern must match the whole name and the first that does decides; layers that none matches are left out.
    Raises `RecipeError`, calling the setting `what`, for a pattern that is malformed or matches no layer.
    """
    names = list(names)
    chosen: dict[str, Number] = {}
    for pattern, value in patterns.items():
        try:
            matched = [name for name in names if re.fullmatch(pattern, name)]
        except re.error as error:
            raise RecipeError(f"{what}: {pattern!r} is not a regular expression: {error}.") from error
        if not matched:
            raise RecipeError(f"{what}: {pattern!r} matches no layer; the layers are {', '.join(names)}.")
        for name in matched:
            chosen.setdefault(name, value)
    return chosen


@contextmanager
def _uncompiled(model: keras.Model) -> Iterator[None]:
    """Keep Keras from compiling the copy of a compiled model: it fails where the loss is not registered."""
    compiled = [part for part in _with_parts(model) if getattr(part, "compiled", False)]
    for part in compiled:
        part.compiled = False
    try:
        yield
    finally:
        for part in compiled:
            part.compiled = True


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
