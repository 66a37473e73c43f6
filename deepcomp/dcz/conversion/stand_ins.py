"""Layers that do in inference what another layer does, which a network holds in their place."""

from typing import Any

import keras
from keras import layers

# The recurrent layer that runs a cell.
_CELLS = {layers.SimpleRNNCell: layers.SimpleRNN, layers.LSTMCell: layers.LSTM, layers.GRUCell: layers.GRU}
_REVERSIBLE = getattr(layers, "ReversibleEmbedding", None)  # of later versions of Keras


def stand_in(operation: Any, shape: tuple[int | None, ...]) -> Any:
    """The layer to hold in place of one; the same layer for most. It has the same variables.

    `shape` is that of its input, with the batch; `()` where it is not known.
    """
    if type(operation) is layers.SpectralNormalization:  # its kernel changes in training alone
        return operation.layer
    if type(operation) is layers.RNN and type(operation.cell) in _CELLS:
        return _recurrent(operation)
    if type(operation) is _REVERSIBLE and not operation.mask_zero:
        return _embedding(operation)
    if type(operation) is layers.CenterCrop:
        return _cropping(operation, shape)
    return operation


def _recurrent(operation: layers.RNN) -> keras.layers.Layer:
    """The layer of a cell: the options of both, with the cell's variables."""
    config = operation.get_config()
    del config["cell"]
    own = {name: value for name, value in operation.cell.get_config().items() if name not in config}
    made = _CELLS[type(operation.cell)].from_config(own | config)
    made.cell = operation.cell
    made.built = True
    return made


def _embedding(operation: Any) -> keras.layers.Layer:
    """The table alone: only a call with `reverse` needs more."""
    config = layers.Embedding.get_config(operation)
    made = layers.Embedding.from_config(config)
    made._embeddings = operation._embeddings
    made.built = True
    return made


def _cropping(operation: layers.CenterCrop, shape: tuple[int | None, ...]) -> keras.layers.Layer:
    """The cropping of images of a size, unless they are too small: those are resized."""
    if len(shape) != 4 or operation.data_format != "channels_last" or shape[1] is None or shape[2] is None:
        return operation
    spare = shape[1] - operation.height, shape[2] - operation.width
    if min(spare) < 0:
        return operation
    margins = tuple((one // 2, one - one // 2) for one in spare)
    return layers.Cropping2D(margins, name=operation.name, dtype=operation.dtype_policy)
