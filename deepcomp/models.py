"""The networks, how a Keras file is opened, and which of a network's weights are kernels."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np

from deepcomp.errors import DataError, FormatError, RecipeError, UnsupportedLayerError, shape_text


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


NETWORKS = {"reference": reference, "lenet-300-100": lenet_300_100, "lenet-5": lenet_5}


def build(name: str, shape: tuple[int, ...] = (28, 28, 1), classes: int = 10, *, stddev: float = 0.0) -> keras.Model:
    """Build one of `NETWORKS` for images of `shape`; its outputs are `classes` logits.

    Kernels are drawn from N(0, `stddev`), or by He's rule where `stddev` is 0, with Keras's global seed.
    Raises `RecipeError` for an unknown name, `DataError` for images that the network cannot take.
    """
    if name not in NETWORKS:
        raise RecipeError(f"No network {name!r}: use {', '.join(NETWORKS)} or a path that ends in .keras.")
    # A name or a config, not an instance: one instance would give all layers of a shape the same weights.
    initializer = {"class_name": "RandomNormal", "config": {"stddev": stddev}} if stddev else "he_normal"
    layers = NETWORKS[name](classes, initializer)
    try:
        return keras.Sequential([keras.Input(shape, name="image"), *layers], name=name.replace("-", "_"))
    except ValueError as error:
        raise DataError(f"Images of {'x'.join(map(str, shape))} do not fit the network {name!r}.") from error


def load(path: str | Path) -> keras.Model:
    """Open a `.keras` file; nothing that the file holds is executed.

    Raises `FormatError` if it is missing or damaged, `UnsupportedLayerError` if Keras does not know a layer of it.
    """
    path = Path(path)
    if not path.is_file():
        raise FormatError(f"No model file {path}.")
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except TypeError as error:
        layer = re.search(r"class '(\w+)'", str(error))
        raise UnsupportedLayerError(
            f"{path} needs {layer[1] if layer else 'a layer'} that Keras does not know: register it with "
            "@keras.saving.register_keras_serializable and call deepcomp from Python."
        ) from error
    except Exception as error:  # Keras lets zipfile's, h5py's, json's and its own errors through.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FormatError(f"{path} is damaged or not a .keras file: {reason}") from error


def clone(model: keras.Model, replace: Callable[[keras.layers.Layer], keras.layers.Layer] | None = None) -> keras.Model:
    """A copy of a built model with the same weights and random state; it shares nothing with `model`.

    In a Sequential or functional model `replace` may make each innermost layer anew, nested models included; a new
    layer of the same class gets the old one's weights. The copy is not compiled. Raises `UnsupportedLayerError` for
    a model or layer that cannot be made from its own configuration.
    """
    copies = []

    def again(layer):
        copy = replace(layer) if replace else type(layer).from_config(layer.get_config())
        copies.append((layer, copy))
        return copy

    try:
        if input_shape(model) is None:
            copy = type(model).from_config(model.get_config())
            copy(np.zeros((1, *model.get_build_config()["input_shape"][1:]), np.float32))  # calling it builds it
            copies.append((model, copy))
        else:
            with _uncompiled(model):
                copy = keras.models.clone_model(model, clone_function=again, recursive=True)
        for old, new in copies:
            if type(old) is type(new) and isinstance(old, keras.layers.Layer):  # and not an operation like `x + y`
                new.set_weights(old.get_weights())
                for mine, others in zip(new.non_trainable_variables, old.non_trainable_variables, strict=True):
                    mine.assign(others.value)
            if isinstance(new, keras.layers.Normalization):
                new.finalize_state()  # It computes with constants made from its weights.
    except (NotImplementedError, TypeError, ValueError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnsupportedLayerError(f"The network {model.name!r} cannot be copied, is it built? {reason}") from error
    return copy


def check_fits(model: keras.Model, shape: tuple[int, ...], classes: int) -> None:
    """Raise `DataError` unless `model` takes images of `shape` and gives one output for each of `classes`."""
    expected = input_shape(model)
    if expected is None:
        return
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise DataError(f"The network {model.name!r} needs exactly one input and one output.")
    if None in expected:
        fits = len(expected) == len(shape) and all(e in (None, s) for e, s in zip(expected, shape, strict=True))
    else:
        fits = np.prod(expected) == np.prod(shape) and (len(expected) < 3 or tuple(expected) == tuple(shape))
    if not fits:
        raise DataError(
            f"The data has images of {shape_text(shape)} but the network {model.name!r} takes {shape_text(expected)}."
        )
    outputs = model.outputs[0].shape
    if len(outputs) != 2 or outputs[1] < classes:
        raise DataError(
            f"The data has {classes} classes but the network {model.name!r} gives outputs of {shape_text(outputs[1:])}."
        )


def kernels(model: keras.Model) -> dict[str, keras.Variable]:
    """The trainable kernels of every layer, by name: what pruning and quantization act on.

    A kernel is a trainable weight of two or more dimensions whose name ends in `kernel`; so the rule covers nested
    models, recurrent layers, attention and custom layers. The name is the layer's path; biases, normalization and
    embeddings are not kernels. Raises `UnsupportedLayerError` if there is none.
    """
    found = {}
    for variable in model.trainable_variables:
        if len(variable.shape) < 2 or not variable.name.endswith("kernel"):
            continue
        name = variable.path.removeprefix(f"{model.name}/").removesuffix("/kernel")
        unique, number = name, 1
        while unique in found:
            number += 1
            unique = f"{name}_{number}"
        found[unique] = variable
    if not found:
        raise UnsupportedLayerError(
            f"The network {model.name!r} has no trainable kernel: it needs a layer with one, like Dense or Conv2D."
        )
    return found


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
    for layer in model._flatten_layers(include_self=False):
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


def per_layer(patterns: Mapping[str, float], names: Iterable[str], what: str) -> dict[str, float]:
    """The settings that regular expressions give to layers: `{pattern: value}` -> `{name: value}`.

    A pattern must match the whole name and the first that does decides; layers that none matches are left out.
    Raises `RecipeError`, calling the setting `what`, for a pattern that is malformed or matches no layer.
    """
    names = list(names)
    chosen: dict[str, float] = {}
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
    compiled = [part for part in model._flatten_layers() if getattr(part, "compiled", False)]
    for part in compiled:
        part.compiled = False
    try:
        yield
    finally:
        for part in compiled:
            part.compiled = True
