"""Writes Keras models as ONNX files for the benchmark of speed; images and kernels go channels first, as in ONNX."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

ACTIVATIONS = {"linear": "", "relu": "Relu", "softmax": "Softmax"}


def write(model, path: Path) -> None:
    """The graph of a model with one input and one output, the size of its batch unknown.

    Raises `NotImplementedError` for a layer that is not in `WRITERS`, or that has options which are not written.
    """
    import keras
    import onnx
    from onnx import TensorProto, helper

    graph = _Graph()
    graph.names[id(model.inputs[0])] = "images"
    if len(model.inputs[0].shape) == 4:
        graph.names[id(model.inputs[0])] = graph.add("Transpose", ["images"], perm=(0, 3, 1, 2))
    for layer in model.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        sources = layer.input if isinstance(layer.input, list) else [layer.input]
        inputs = [graph.names[id(source)] for source in sources]
        graph.names[id(layer.output)] = WRITERS.get(type(layer).__name__, _refuse)(graph, layer, inputs)
    last = graph.names[id(model.outputs[0])]
    if len(model.outputs[0].shape) == 4:
        last = graph.add("Transpose", [last], perm=(0, 2, 3, 1))
    sizes = {"images": model.inputs[0].shape[1:], last: model.outputs[0].shape[1:]}
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *size]) for name, size in sizes.items()]
    made = helper.make_graph(graph.nodes, "network", tensors[:1], tensors[1:], graph.constants)
    # Versions that every ONNX Runtime and OpenVINO of the last years reads.
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


class _Graph:
    """Nodes and constants; `names` has the name of each Keras tensor, by its identity."""

    def __init__(self) -> None:
        self.nodes, self.constants = [], []
        self.names: dict[int, str] = {}

    def add(self, kind: str, inputs: list[str], *arrays: np.ndarray, **attributes) -> str:
        """A node of inputs and constants; returns the name of its output."""
        from onnx import helper, numpy_helper

        number = len(self.nodes)
        names = [f"{kind}{number}_{which}" for which in range(len(arrays))]
        self.constants.extend(map(numpy_helper.from_array, arrays, names))
        self.nodes.append(helper.make_node(kind, [*inputs, *names], [f"{kind}{number}"], **attributes))
        return f"{kind}{number}"

    def activate(self, layer, name: str) -> str:
        """What the activation of a layer makes of its output."""
        activation = getattr(layer.activation, "__name__", "")
        if activation not in ACTIVATIONS:
            return _refuse(self, layer, [name])
        axis = {"axis": 1} if activation == "softmax" else {}  # of the channels
        kind = ACTIVATIONS[activation]
        return self.add(kind, [name], **axis) if kind else name


def _refuse(graph: _Graph, layer, inputs: list[str]) -> str:
    raise NotImplementedError(f"The layer {layer.name} is none that the benchmark can hand to this engine.")


def _windows(graph: _Graph, layer, inputs: list[str]) -> dict:
    """Strides and padding as attributes."""
    if layer.data_format != "channels_last":
        _refuse(graph, layer, inputs)
    return {"strides": layer.strides, "auto_pad": "SAME_UPPER" if layer.padding == "same" else "VALID"}


def _convolution(graph: _Graph, layer, inputs: list[str]) -> str:
    attributes = _windows(graph, layer, inputs)
    if type(layer).__name__ == "DepthwiseConv2D":
        kernel = layer.kernel.numpy()
        attributes["group"], kernel = kernel.shape[2], kernel.reshape(*kernel.shape[:2], 1, -1)
    elif layer.groups == 1:
        kernel = layer.kernel.numpy()
    else:
        return _refuse(graph, layer, inputs)
    if {*layer.dilation_rate} != {1}:
        return _refuse(graph, layer, inputs)
    bias = [layer.bias.numpy()] if layer.use_bias else []
    kernel = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
    return graph.activate(layer, graph.add("Conv", inputs, kernel, *bias, **attributes))


def _dense(graph: _Graph, layer, inputs: list[str]) -> str:
    if len(layer.input.shape) != 2:
        return _refuse(graph, layer, inputs)
    bias = [layer.bias.numpy()] if layer.use_bias else []
    return graph.activate(layer, graph.add("Gemm", inputs, layer.kernel.numpy(), *bias))


def _normalize(graph: _Graph, layer, inputs: list[str]) -> str:
    if layer.axis not in (-1, 3) or not (layer.scale and layer.center):
        return _refuse(graph, layer, inputs)
    arrays = [layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance]
    return graph.add("BatchNormalization", inputs, *(one.numpy() for one in arrays), epsilon=layer.epsilon)


def _relu(graph: _Graph, layer, inputs: list[str]) -> str:
    if layer.negative_slope or layer.threshold:
        return _refuse(graph, layer, inputs)
    if layer.max_value is None:
        return graph.add("Relu", inputs)
    return graph.add("Clip", inputs, np.array(0, np.float32), np.array(layer.max_value, np.float32))


def _pad(graph: _Graph, layer, inputs: list[str]) -> str:
    (top, bottom), (left, right) = layer.padding
    return graph.add("Pad", inputs, np.array([0, 0, top, left, 0, 0, bottom, right]))


def _pool(kind: str) -> Callable:
    return lambda graph, layer, inputs: graph.add(
        kind, inputs, kernel_shape=layer.pool_size, **_windows(graph, layer, inputs)
    )


def _pool_globally(graph: _Graph, layer, inputs: list[str]) -> str:
    name = graph.add("GlobalAveragePool", inputs)
    return name if layer.keepdims else graph.add("Flatten", [name])


def _flatten(graph: _Graph, layer, inputs: list[str]) -> str:
    """To a row, in Keras's order; a Reshape does the same where it makes one."""
    if len(layer.output.shape) != 2:
        return _refuse(graph, layer, inputs)
    if len(layer.input.shape) == 4:
        inputs = [graph.add("Transpose", inputs, perm=(0, 2, 3, 1))]
    return graph.add("Flatten", inputs)


WRITERS: dict[str, Callable[..., str]] = {
    "Conv2D": _convolution,
    "DepthwiseConv2D": _convolution,
    "Dense": _dense,
    "BatchNormalization": _normalize,
    "ReLU": _relu,
    "Activation": lambda graph, layer, inputs: graph.activate(layer, inputs[0]),
    "Add": lambda graph, layer, inputs: graph.add("Add", inputs) if len(inputs) == 2 else _refuse(graph, layer, inputs),
    "ZeroPadding2D": _pad,
    "MaxPooling2D": _pool("MaxPool"),
    "AveragePooling2D": _pool("AveragePool"),
    "GlobalAveragePooling2D": _pool_globally,
    "Flatten": _flatten,
    "Reshape": _flatten,
    "Dropout": lambda graph, layer, inputs: inputs[0],
}
