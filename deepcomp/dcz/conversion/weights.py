"""The weights of any Keras model in a `.dcz` file, for models that no file holds: own layers, Lambda, subclasses.

The file has the path, shape and dtype of each variable in place of an architecture. The user builds the model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from deepcomp.dcz import container
from deepcomp.dcz.accounting import Parts
from deepcomp.dcz.coding import floats
from deepcomp.dcz.comparison import differing
from deepcomp.dcz.conversion.layer import weight_of
from deepcomp.dcz.network import Layer, Network, values
from deepcomp.dcz.variables import FLOATS, stored_shape
from deepcomp.errors import FormatError, RecipeError, UnsupportedLayerError


def save_weights(model: keras.Model, path: str | Path, coder: str = "range") -> Parts:
    """Write the weights of a Keras model of any kind as a `.dcz` file; returns what each part takes.

    Few values, zeros and plain floats are coded as by `save`; every dtype comes back to the bit, -0.0 as the pruned
    weight 0.0. Raises `RecipeError` for a model without weights, and `UnsupportedLayerError` for a weight that is not
    finite.
    """
    return container.save(weights_of(model), path, coder)


def weights_of(model: keras.Model) -> Network:
    """The weights of a Keras model as `save_weights` stores them. Errors as for that."""
    variables = _variables(model)
    layers = [Layer("InputLayer", "weights")]
    for number, variable in enumerate(variables):
        array = np.asarray(variable.numpy())
        if array.dtype.name in FLOATS and not floats.are_finite(array.astype(np.float32)):
            raise UnsupportedLayerError(
                f"The weight {variable.path!r} is not finite: train with a lower learning rate before it is stored."
            )
        options = {"path": variable.path, "shape": tuple(array.shape), "dtype": array.dtype.name}
        name = "variable" if not number else f"variable_{number}"
        held = "kernel" if len(stored_shape(options)) > 1 else "values"
        layers.append(Layer("Variable", name, (number,), options, {held: weight_of(held, _stored(array))}))
    return Network(model.name, (1,), tuple(layers))


def load_weights(model: keras.Model, path: str | Path) -> None:
    """Give a Keras model the weights in a file of `save_weights`, by their paths and shapes.

    Keras numbers names that it makes itself (`dense_1`). Where paths differ for that alone, order tells which is which.
    Raises `FormatError` for a file that is damaged or holds a network, and `RecipeError` for weights that are not those
    of the model; then the model is as it was.
    """
    give_weights(model, container.load(path), str(path))


def give_weights(model: keras.Model, network: Network, path: str) -> None:
    """Give a Keras model what `weights_of` made of its like. Errors as `load_weights`; they name the file `path`."""
    for variable, layer in _matched(model, network, path):
        (weight,) = layer.weights.values()
        variable.assign(_restored(values(weight), variable.numpy()))


def weight_differences(model: keras.Model, network: Network, path: str) -> list[str]:
    """A line for each weight of a Keras model that is another in a file of weights. Errors as `give_weights`."""
    found = []
    for variable, layer in _matched(model, network, path):
        ((name, weight),) = layer.weights.items()
        found += differing(variable.path, values(weight), values(weight_of(name, _stored(variable.numpy()))))
    return found


def _matched(model: keras.Model, network: Network, path: str) -> list[tuple[Any, Layer]]:
    """The variables of a model, each with the layer of the file that holds its values."""
    variables, layers = _variables(model), network.layers[1:]
    if not all(layer.kind == "Variable" for layer in layers):
        raise FormatError(f"{path} holds a network, not weights alone: use deepcomp.to_keras.")
    if len(variables) != len(layers):
        raise RecipeError(f"{path} holds {len(layers)} weights, and the model {model.name!r} has {len(variables)}.")
    by_path = {layer.options["path"]: layer for layer in layers}
    if len(by_path) == len(layers) and by_path.keys() == {variable.path for variable in variables}:
        layers = [by_path[variable.path] for variable in variables]
    for variable, layer in zip(variables, layers, strict=True):
        own, held = (tuple(variable.shape), variable.dtype), (layer.options["shape"], layer.options["dtype"])
        last = variable.path.rpartition("/")[2]
        if own != held or last != layer.options["path"].rpartition("/")[2]:
            said = f"The weight {variable.path!r}, {own[1]} {own[0]}, of the model {model.name!r} is not in {path}"
            raise RecipeError(f"{said}, which has {layer.options['path']!r}, {held[1]} {held[0]}, in its place.")
    return list(zip(variables, layers, strict=True))


def _variables(model: keras.Model) -> Sequence[Any]:
    if not isinstance(model, keras.Model):
        raise RecipeError(f"A Keras model is needed, not {type(model).__name__}.")
    if not model.weights:
        raise RecipeError(f"The model {model.name!r} has no weights: build it, or call it once.")
    return model.weights


def _stored(array: np.ndarray) -> np.ndarray:
    """An array as float32: its values where they fit into it, else the numbers of its bits, 16 or 8 at a time."""
    if array.dtype.name in FLOATS:
        return np.atleast_1d(array.astype(np.float32))
    words = np.ascontiguousarray(array).reshape(*array.shape, 1).view(_words(array.dtype))
    return words.astype(np.float32)


def _restored(stored: np.ndarray, like: np.ndarray) -> np.ndarray:
    """The array that `_stored` made so, of the shape and dtype of another."""
    if like.dtype.name in FLOATS:
        return stored.reshape(like.shape).astype(like.dtype)
    return np.ascontiguousarray(stored.astype(_words(like.dtype))).view(like.dtype).reshape(like.shape)


def _words(dtype: np.dtype) -> type:
    return np.uint8 if dtype.itemsize == 1 else np.uint16
