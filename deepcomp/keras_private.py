"""All that deepcomp uses of the private API of Keras, and of TensorFlow: checked with Keras 3.15.1, TensorFlow 2.21.

Each function says what stands behind it, so that a new version of Keras is adapted to here alone.
"""

from collections.abc import Sequence
from typing import Any, BinaryIO

import keras

# Operations that Keras makes of `x + y` and the like; a network's configuration names them by their private module.
OPERATIONS_MODULE = "keras.src.ops.numpy"


def all_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model, those inside of others included, each once, in the order of definition.

    `Layer._flatten_layers`.
    """
    return list({id(layer): layer for layer in model._flatten_layers(include_self=False)}.values())


def compile_arguments(model: keras.Model) -> dict[str, Any] | None:
    """Loss, loss weights, metrics and weighted metrics that a model was compiled with; None if it has no loss.

    `Trainer._compile_config`, whose objects are those that `compile` was given.
    """
    config = getattr(getattr(model, "_compile_config", None), "config", None)
    if not getattr(model, "compiled", False) or config is None or config.get("loss") is None:
        return None
    return {name: config.get(name) for name in ("loss", "loss_weights", "metrics", "weighted_metrics")}


def compiled_metrics(model: keras.Model) -> Any:
    """The metrics of a compiled model, as one object with `update_state`, `result`, `reset_state`; None without any.

    `Trainer._compile_metrics`.
    """
    return getattr(model, "_compile_metrics", None)


def second_moments(optimizer: keras.Optimizer, variables: Sequence[keras.Variable]) -> list[keras.Variable] | None:
    """The running means of the squared gradients that an optimizer keeps of `variables`; None if it keeps none.

    `_velocities` of Adam, AdamW, Nadam and RMSprop.
    """
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
    found = getattr(inner, "_velocities", None)
    if not found or not isinstance(inner, keras.optimizers.Adam | keras.optimizers.RMSprop | keras.optimizers.Nadam):
        return None
    return [found[inner._get_variable_index(variable)] for variable in variables]


def same_lambda(layer: keras.layers.Lambda) -> keras.layers.Lambda:
    """Another Lambda layer of the same function: its configuration would have to be run as code.

    `Lambda._output_shape`.
    """
    config = layer.get_config()
    kept = {key: config[key] for key in ("name", "trainable", "dtype") if key in config}
    shape = layer._output_shape
    return keras.layers.Lambda(layer.function, shape, mask=layer.mask, arguments=layer.arguments, **kept)


def origin(tensor: Any) -> Any:
    """The layer or operation that a symbolic tensor comes out of, None for what is no such tensor.

    `KerasTensor._keras_history`.
    """
    history = getattr(tensor, "_keras_history", None)
    return getattr(history, "operation", None)


def call_of(tensor: Any) -> Any:
    """The node that a symbolic tensor comes out of: `operation`, `input_tensors`, `arguments`.

    `KerasTensor._keras_history`, `Operation._inbound_nodes`.
    """
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]


def mask_of(tensor: Any) -> Any:
    """The mask of a sequence that hangs on a tensor, None without one.

    `KerasTensor._keras_mask`.
    """
    return getattr(tensor, "_keras_mask", None)


def inputs_structure(model: keras.Model) -> Any:
    """The symbolic inputs of a functional or Sequential model in the structure in which it takes them.

    `Functional._inputs_struct`.
    """
    return getattr(getattr(model, "_functional", model), "_inputs_struct", getattr(model, "inputs", None))


def outputs_structure(model: keras.Model) -> Any:
    """The symbolic outputs of a functional or Sequential model in their structure; None for another model.

    `Functional._outputs_struct`.
    """
    return getattr(getattr(model, "_functional", model), "_outputs_struct", None)


def output_names(model: keras.Model) -> list[str]:
    """The names of the outputs of a functional or Sequential model; none for another model.

    `Functional.output_names`, which a Sequential model does not pass on.
    """
    return list(getattr(getattr(model, "_functional", model), "output_names", None) or [])


def graph_of(model: keras.Model) -> Any:
    """What holds the inputs, outputs and nodes of a functional or Sequential model; None for another model.

    `Sequential._functional`, `Functional._nodes_by_depth`.
    """
    graph = getattr(model, "_functional", model)
    return graph if hasattr(graph, "_nodes_by_depth") else None


def nodes_of(graph: Any) -> list[Any]:
    """The nodes of a graph, each after those that it takes: `operation`, `is_input`, `input_tensors`, `outputs`.

    `Functional._nodes_by_depth`.
    """
    return [node for depth in sorted(graph._nodes_by_depth, reverse=True) for node in graph._nodes_by_depth[depth]]


def calls_of(layer: keras.layers.Layer) -> list[Any]:
    """The nodes that call a layer, one for each place in a graph.

    `Operation._inbound_nodes`.
    """
    return list(layer._inbound_nodes)


def application_layer(name: str) -> type | None:
    """A class of layers that `keras.applications` defines for itself, None for another name.

    `LayerScale` of ConvNeXt, `CustomScaleLayer` of InceptionResNetV2.
    """
    from keras.src.applications import convnext, inception_resnet_v2

    return {
        "LayerScale": convnext.LayerScale,
        "StochasticDepth": convnext.StochasticDepth,
        "CustomScaleLayer": inception_resnet_v2.CustomScaleLayer,
    }.get(name)


def load_archive(file: BinaryIO) -> keras.Model:
    """Open a `.keras` archive under any file name, uncompiled; code in it is not run."""
    from keras.src.saving import saving_lib

    return saving_lib.load_model(file, compile=False, safe_mode=True)


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
