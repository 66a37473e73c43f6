"""What deepcomp uses of Keras's private API, and of TensorFlow's: checked with Keras 3.15.1 and TensorFlow 2.21.0."""

from collections.abc import Iterator
from typing import BinaryIO

import keras

# Operations that Keras makes of `x + y` and the like; a network's configuration names them by their private module.
OPERATIONS_MODULE = "keras.src.ops.numpy"


def load_archive(file: BinaryIO) -> keras.Model:
    """Open a `.keras` archive under any file name, uncompiled; code in it is not run."""
    from keras.src.saving import saving_lib

    return saving_lib.load_model(file, compile=False, safe_mode=True)


def innermost_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Each layer of a model once, with those inside nested models, wrappers and recurrent layers."""
    seen = set()
    for layer in model._flatten_layers(include_self=False):
        if id(layer) not in seen:
            seen.add(id(layer))
            yield layer


def saved_model_graph(data: bytes):
    """Parse a `saved_model.pb` file: the message `SavedObjectGraph` of its first graph."""
    from tensorflow.core.protobuf import saved_model_pb2

    message = saved_model_pb2.SavedModel()
    message.ParseFromString(data)
    return message.meta_graphs[0].object_graph_def


def keras_metadata(data: bytes):
    """Parse a `keras_metadata.pb` file: the message `SavedMetadata`."""
    from tensorflow.python.keras.protobuf import saved_metadata_pb2

    message = saved_metadata_pb2.SavedMetadata()
    message.ParseFromString(data)
    return message


def checkpoint_graph(data: bytes):
    """Parse a checkpoint's object graph: the message `TrackableObjectGraph`."""
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    message = trackable_object_graph_pb2.TrackableObjectGraph()
    message.ParseFromString(data)
    return message


def load_hdf5(file) -> keras.Model:
    """Open an HDF5 file that Keras 3 wrote, an `h5py.File`, uncompiled; code in it is not run."""
    from keras.src.legacy.saving import legacy_h5_format

    return legacy_h5_format.load_model_from_hdf5(file, compile=False, safe_mode=True)
