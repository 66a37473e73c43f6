"""Networks that Keras 2 saved: their configuration in the words of Keras 3, and their weights.

Keras 3 reads the configuration of Keras 2 in part. Where it does not, it raises an error or, worse, builds a network
that computes something else. So the whole configuration is translated here, and nothing is left to Keras's own rules.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np

from deepcomp import keras_private
from deepcomp.errors import FormatError, UnsupportedLayerError

Weights = list[tuple[str, np.ndarray]]  # the names and values of one layer's weights, in the order of the file

NETWORKS = ("Sequential", "Functional", "Model")
_RENAMED_LAYERS = {
    "BatchNormalizationV1": "BatchNormalization",
    "BatchNormalizationV2": "BatchNormalization",
    "SyncBatchNormalization": "BatchNormalization",
    "ThresholdedReLU": "ReLU",
}
_RENAMED_OPTIONS = {
    "InputLayer": {"batch_input_shape": "batch_shape"},
    "LeakyReLU": {"alpha": "negative_slope"},
    "ThresholdedReLU": {"theta": "threshold"},
}
# Options that Keras 3 does not have. Those of the first set never changed what a trained network computes; the others
# did not with these values. So did none that is None or False.
_WITHOUT_EFFECT = {
    "batch_input_shape",
    "fused",
    "implementation",
    "input_dtype",
    "input_length",
    "kernel_constraint",  # Depthwise and separable convolutions inherited the three from Conv2D, and ignored them.
    "kernel_initializer",
    "kernel_regularizer",
    "key_shape",
    "query_shape",
    "rng_type",
    "trainable",  # Layers that do not take it have no weights.
    "value_shape",
    "vocabulary_size",
}
_WITHOUT_EFFECT_AT = {"groups": 1, "unroll": False, "interpolation": "nearest"}

_ONLY_KERAS_2 = (
    *("CuDNNGRU", "CuDNNLSTM", "DenseFeatures", "LocallyConnected1D", "LocallyConnected2D", "RandomHeight"),
    *("RandomWidth", "SequenceFeatures", "TFOpLambda", "SlicingOpLambda", "TensorFlowOpLayer", "ClassMethod"),
    *("InstanceMethod", "InstanceProperty"),
)
_ARITHMETIC = {
    **dict.fromkeys(("__operators__.add", "math.add"), "Add"),
    **dict.fromkeys(("__operators__.sub", "math.subtract"), "Subtract"),
    **dict.fromkeys(("__operators__.mul", "math.multiply"), "Multiply"),
    **dict.fromkeys(("__operators__.truediv", "math.truediv", "math.divide"), "Divide"),
}
_ACTIVATIONS = {"nn.relu": "relu", "nn.relu6": "relu6", "math.sigmoid": "sigmoid", "math.tanh": "tanh"}
_RECURRENT = ("Bidirectional", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", "GRU", "LSTM", "RNN", "SimpleRNN")

LAMBDA = (
    "a Lambda layer whose Python code is not run from a file: open it yourself with "
    "keras.saving.load_model(..., safe_mode=False) and call deepcomp from Python."
)


def build(config: Mapping[str, Any]) -> keras.Model:
    """Build the network that a configuration of Keras 2 describes, with fresh weights; no code in it is run.

    Raises `UnsupportedLayerError`, with a message that goes on from "The file holds ", where a layer has no
    counterpart in Keras 3, and what Keras raises where the configuration is damaged.
    """
    model = keras.saving.deserialize_keras_object(_layer(_plain(config)), safe_mode=True)
    if not model.built:
        raise FormatError("a network that does not say the shape of its inputs")
    return model


def set_weights(model: keras.Model, config: Mapping[str, Any], weights: Mapping[str, Weights], trainable_first: bool):
    """Give a network from `build` the weights of a file, by the names of its layers there.

    With `trainable_first` the file lists the trainable weights of each layer before the others, else layer by layer.
    Raises `FormatError`, with a message that goes on from "The file holds ", where they do not fit.
    """
    names = _new_names(_layers_of(_plain(config)))
    found = {names.get(name, name): values for name, values in weights.items() if values}
    layers = [layer for layer in model.layers if layer.weights]
    if {layer.name for layer in layers} != found.keys():
        if len(layers) != len(found):
            raise FormatError(f"weights of {len(found)} layers for a network that has them in {len(layers)}")
        found = {layer.name: values for layer, values in zip(layers, found.values(), strict=True)}
    for layer in layers:
        variables = layer.trainable_weights + layer.non_trainable_weights if trainable_first else layer.weights
        _set_layer_weights(layer.name, variables, found[layer.name])


def _set_layer_weights(layer: str, variables: list, weights: Weights) -> None:
    if len(weights) > len(variables):  # A Normalization had a count, which nothing reads once it is adapted.
        weights = [weight for weight in weights if _end(weight[0], 1) != "count"]
        variables = [variable for variable in variables if variable.name != "count"]
    # Names decide where they are the same on both sides, first with the name of the inner layer; else the order does.
    for parts in (2, 1):
        theirs = sorted(_end(name, parts) for name, _ in weights)
        ours = sorted(_end(variable.path, parts) for variable in variables)
        if theirs == ours and (parts == 1 or len(set(ours)) == len(ours)):
            weights = sorted(weights, key=lambda weight, parts=parts: _end(weight[0], parts))
            variables = sorted(variables, key=lambda variable, parts=parts: _end(variable.path, parts))
            break
    expected = [tuple(variable.shape) for variable in variables]
    shapes = [value.shape for _, value in weights]
    if shapes != expected:
        raise FormatError(f"weights of the shapes {shapes} for the layer {layer!r}, which takes {expected}")
    for variable, (_, value) in zip(variables, weights, strict=True):
        variable.assign(value)


def _end(name: str, parts: int) -> str:
    """The last parts of a weight's name, without the number of TensorFlow's output."""
    return "/".join(name.partition(":")[0].split("/")[-parts:])


def in_order(model: keras.Model, config: Mapping[str, Any]) -> bool:
    """Whether a network from `build` lists its layers in the order of the file."""
    names = [layer.name for layer in model.layers]
    return [name for name in _new_names(_layers_of(_plain(config))).values() if name in names] == names


def finish(model: keras.Model) -> None:
    """Have a network with weights of Keras 2 compute what it computed there.

    The hard sigmoid of Keras 2 rises by 0.2, that of Keras 3 by 1/6. So weights in front of one are multiplied by 1.2.
    A regularizer of such weights then weighs 1.44 times as much. Raises `UnsupportedLayerError` like `build`.
    """
    for layer in keras_private.all_layers(model):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # It computes with constants made from its weights.
        elif getattr(layer, "cell", None) is not None or isinstance(layer, keras.layers.Activation):
            continue  # The cell comes by itself; an activation alone was given its factor by `_layer`.
        else:
            _stretch_hard_sigmoid(layer)


def _stretch_hard_sigmoid(layer: keras.layers.Layer) -> None:
    hard = keras.activations.hard_sigmoid
    gates = getattr(layer, "recurrent_activation", None) is hard
    whole = getattr(layer, "activation", None) is hard
    weights = [
        weight
        for name in ("pointwise_kernel", "depthwise_kernel", "kernel", "recurrent_kernel", "bias")
        if (weight := getattr(layer, name, None)) is not None
    ]
    if whole and not (hasattr(layer, "recurrent_activation") or not weights):
        if hasattr(layer, "pointwise_kernel"):  # Only the last of two factors is multiplied.
            weights = [weight for weight in weights if weight is not layer.depthwise_kernel]
        for weight in weights:
            weight.assign(weight * 1.2)
    elif whole:
        raise UnsupportedLayerError(
            f"the layer {layer.name!r} with the hard_sigmoid of Keras 2 as its activation, which Keras 3 computes "
            "otherwise: rebuild the network in Keras 3 with an activation that both have."
        )
    elif gates:
        for weight in weights:
            size = weight.shape[-1]
            # A GRU has two gates and a candidate, an LSTM the gates i and f, the candidate c, and the gate o.
            parts = [1.2, 1.2, 1.0] if isinstance(layer, keras.layers.GRUCell) else [1.2, 1.2, 1.0, 1.2]
            factors = np.repeat(np.array(parts, np.float32), size // len(parts))
            weight.assign(np.asarray(weight) * factors)


def _plain(value: Any) -> Any:
    """Lists in place of the tuples and shapes that SavedModels spell as objects."""
    if isinstance(value, Mapping):
        if value.get("class_name") in ("__tuple__", "TensorShape"):
            return _plain(value.get("items"))
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _layers_of(network: Mapping[str, Any]) -> list[dict]:
    config = network["config"]
    return config if isinstance(config, list) else config["layers"]  # before Keras 2.2.3 a Sequential was a list


def _name_of(layer: Mapping[str, Any]) -> str:
    config = layer["config"]
    return layer.get("name") or (config.get("name") if isinstance(config, Mapping) else None) or "sequential"


def _new_names(layers: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Keras 3 allows no slash in a name: the old names of a network's layers and the new ones, which stay unique."""
    old = [_name_of(layer) for layer in layers]
    new: dict[str, str] = {}
    for name in old:
        better = name.replace("/", "_")
        while better != name and (better in old or better in new.values()):
            better += "_"
        new[name] = better
    return new


def _layer(layer: Mapping[str, Any], name: str | None = None) -> dict:
    """A layer's or network's configuration in the words of Keras 3."""
    kind, config = layer["class_name"], layer["config"]
    name = name or _name_of(layer).replace("/", "_")
    if kind in NETWORKS:
        return _sequential(layer, name) if kind == "Sequential" else _functional(layer, name)
    if kind == "TFOpLambda" and config.get("function") in _ARITHMETIC:
        kind = _ARITHMETIC[config["function"]]
        return {**_object(kind, {"name": name}), "module": keras_private.OPERATIONS_MODULE}
    if kind == "TFOpLambda" and config.get("function") in _ACTIVATIONS:
        return _object("Activation", {"name": name, "activation": _ACTIVATIONS[config["function"]]})
    if kind == "Lambda":
        return _lambda(config, name)
    registered = keras.saving.get_registered_object(kind)
    if registered is not None:
        kept = {key: value for key, value in config.items() if key != "batch_input_shape"}
        return {"module": None, "class_name": kind, "config": {**kept, "name": name}, "registered_name": kind}
    modern = _RENAMED_LAYERS.get(kind, kind)
    cls = getattr(keras.layers, modern, None)
    if not inspect.isclass(cls):
        raise UnsupportedLayerError(unknown(kind, name))
    config = {_RENAMED_OPTIONS.get(kind, {}).get(key, key): value for key, value in config.items()}
    accepted = options_of(cls)
    kept = {"name": name}
    for key, value in config.items():
        if key == "name":
            continue
        if key in accepted:
            kept[key] = _value(key, value, name)
        elif key not in _WITHOUT_EFFECT and value not in (None, False) and _WITHOUT_EFFECT_AT.get(key, ()) != value:
            raise UnsupportedLayerError(
                f"the layer {name!r}, a {kind} with {key}={value!r}, which Keras 3 does not have: rebuild the network "
                "in Keras 3 without it."
            )
    kept = {key: value for key, value in kept.items() if value is not _DROP}
    axis = kept.get("axis")
    if modern == "BatchNormalization" and isinstance(axis, list):
        kept["axis"] = axis[0]
    elif modern == "Normalization" and axis == []:
        kept["axis"] = None
    elif modern == "GRU":
        kept.setdefault("reset_after", False)  # The option came with Keras 2.1.5; files from before do as if False.
    elif modern == "Activation" and kept.get("activation") == "hard_sigmoid":
        stretch = _object("Rescaling", {"name": f"{name}_scale", "scale": 1.2, "offset": 0.0})
        return _object("Sequential", {"name": name, "layers": [stretch, _object("Activation", kept)]})
    return _object(modern, kept)


def _object(kind: str, config: dict) -> dict:
    module = "keras" if kind in NETWORKS else "keras.layers"
    return {"module": module, "class_name": kind, "config": config, "registered_name": None}


def options_of(cls: type) -> set[str]:
    """The names that a class's constructor takes, with those that it passes on."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters
            names |= parameters.keys()
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                break
        if base is keras.layers.Layer:
            break
    return names


_DROP = object()


def _value(key: str, value: Any, name: str) -> Any:
    """The value of one option in the words of Keras 3, or `_DROP`."""
    if key == "dtype":
        return value["config"]["name"] if isinstance(value, Mapping) and "Policy" in value["class_name"] else value
    if key.endswith("_initializer"):
        return _initializer(value)
    if key in ("activation", "recurrent_activation") and value == "softmax_v2":
        return "softmax"
    if key in ("cell", "layer", "forward_layer", "backward_layer") and isinstance(value, Mapping):
        return _layer(value)
    if key == "cells":
        return [_layer(cell) for cell in value]
    known = {"regularizer": keras.regularizers, "constraint": keras.constraints, "activation": keras.activations}
    module = known.get(key.rpartition("_")[2])
    if module is None or value is None:
        return value
    kind = value["class_name"] if isinstance(value, Mapping) else value
    if isinstance(value, Mapping) and key == "activation" and inspect.isclass(getattr(keras.layers, kind, None)):
        return _layer(value)
    if kind == "function":
        kind = value["config"]
    if not (hasattr(module, str(kind)) or keras.saving.get_registered_object(kind)):
        try:
            module.get(value)  # Some names, like "leaky_relu" or "l2", are no attributes.
        except (ValueError, TypeError) as error:
            what = f"the {key} {kind!r} of the layer {name!r}"
            raise UnsupportedLayerError(unknown(str(kind), name, what)) from error
    return value


def _initializer(value: Any) -> Any:
    """An initializer that Keras 3 knows; any other is left out, for the weights of the file replace its values."""
    if not isinstance(value, Mapping) or not inspect.isclass(getattr(keras.initializers, value["class_name"], None)):
        return _DROP
    options = {key: inner for key, inner in value["config"].items() if key != "dtype"}
    return {**_object(value["class_name"], options), "module": "keras.initializers"}


def _lambda(config: Mapping[str, Any], name: str) -> dict:
    inner = config.get("function")
    if isinstance(inner, Mapping) and inner["class_name"] == "function":
        inner = inner.get("config")
    if not isinstance(inner, str) or config.get("function_type") == "lambda":
        raise UnsupportedLayerError(LAMBDA)
    if keras.saving.get_registered_object(inner) is None:
        raise UnsupportedLayerError(unknown(inner, name, f"a Lambda layer of the function {inner!r}"))
    function = {"module": "builtins", "class_name": "function", "config": inner, "registered_name": inner}
    kept = {key: config[key] for key in ("dtype", "trainable", "arguments") if key in config}
    return _object("Lambda", {**kept, "name": name, "function": function})


def unknown(kind: str, name: str, what: str | None = None) -> str:
    """Why a class or function that Keras 3 does not have cannot be made, and what to do, after "The file holds "."""
    what = what or f"the layer {name!r} of the class {kind}"
    if kind in _ONLY_KERAS_2:
        return f"{what}, which only Keras 2 has: rebuild the network with layers of Keras 3 and load its weights there."
    if kind.startswith("Addons>") or kind == "KerasLayer":
        package = "tensorflow_hub" if kind == "KerasLayer" else "tensorflow_addons"
        return f"{what} from the package {package}, which is for Keras 2: rebuild the network with layers of Keras 3."
    return (
        f"{what}, which is not Keras's own: register it with @keras.saving.register_keras_serializable and call "
        "deepcomp from Python."
    )


def _input_layer(batch_shape: list, dtype: Any = None) -> dict:
    config = {"batch_shape": batch_shape, "name": "input"}
    return _object("InputLayer", config | ({"dtype": dtype} if isinstance(dtype, str) else {}))


def _sequential(network: Mapping[str, Any], name: str) -> dict:
    old = _layers_of(network)
    names = _new_names(old)
    layers = [_layer(layer, names[_name_of(layer)]) for layer in old]
    if old and old[0]["class_name"] != "InputLayer":
        shape, dtype = _input_of(old[0])
        if shape is None and isinstance(network["config"], Mapping):
            shape = network["config"].get("build_input_shape")
        if shape is not None:
            layers.insert(0, _input_layer(shape, dtype))
    return _object("Sequential", {"name": name, "layers": layers})


def _input_of(layer: Mapping[str, Any]) -> tuple[list | None, Any]:
    """The shape and dtype of a layer's input where its configuration says them."""
    if layer["class_name"] == "Sequential":
        return _input_of(_layers_of(layer)[0]) if _layers_of(layer) else (None, None)
    if layer["class_name"] in NETWORKS:
        layer = next(inner for inner in _layers_of(layer) if inner["class_name"] == "InputLayer")
    config = layer["config"]
    return config.get("batch_input_shape", config.get("batch_shape")), config.get("dtype")


def _functional(network: Mapping[str, Any], name: str) -> dict:
    config, old = network["config"], _layers_of(network)
    names = _new_names(old)
    graph = _Graph(old, names)
    layers = []
    for layer in old:
        new_name = names[_name_of(layer)]
        nodes = [graph.call(layer["class_name"], node) for node in layer["inbound_nodes"]]
        layers.append({**_layer(layer, new_name), "name": new_name, "inbound_nodes": nodes})
    ends = {key: graph.ends(config[key]) for key in ("input_layers", "output_layers")}
    kept = {"trainable": config["trainable"]} if "trainable" in config else {}
    return _object("Model", {"name": name, **kept, "layers": layers, **ends})


class _Graph:
    """How the layers of one functional network are applied to each other.

    Keras 2 refers to the calls of a nested network from 1 on, for call 0 is the one that made it. Keras 3 counts from
    0; but where a nested functional network is an output, it counts from 1 too.
    """

    def __init__(self, layers: list[dict], names: dict[str, str]):
        self.names = names
        self.kinds = {_name_of(layer): layer["class_name"] for layer in layers}

    def call(self, kind: str, node: Any) -> dict:
        """A call in Keras 3's words: the arguments of the layer."""
        if isinstance(node, Mapping) and node.keys() >= {"args", "kwargs"}:
            return dict(node)  # a file of Keras 3
        options: dict = {}
        inputs = self._inputs(node, options)
        inputs = inputs[0] if isinstance(inputs, list) and len(inputs) == 1 else inputs
        options = {key: self._argument(value) for key, value in options.items() if value is not None and key != "name"}
        arguments = [inputs]
        if kind in _RECURRENT and isinstance(inputs, list):
            arguments, options["initial_state"] = inputs[:1], inputs[1:]
        elif kind == "TFOpLambda" and "y" in options:
            arguments.append(options.pop("y"))
            options = {}
        return {"args": arguments, "kwargs": options}

    def _inputs(self, entry: Any, options: dict) -> Any:
        if isinstance(entry, Mapping):
            return {key: self._inputs(value, options) for key, value in entry.items()}
        if entry and isinstance(entry[0], str):
            if len(entry) > 3:
                options.update(entry[3])
            return entry[2] if entry[0] == "_CONSTANT_VALUE" else self._tensor(*entry[:3])
        return [self._inputs(value, options) for value in entry]

    def _argument(self, value: Any) -> Any:
        if isinstance(value, list) and len(value) >= 3 and isinstance(value[0], str):
            if value[0] == "_CONSTANT_VALUE":
                return value[2]
            if value[0] in self.kinds:
                return self._tensor(*value[:3])
        if isinstance(value, Mapping):
            return {key: self._argument(inner) for key, inner in value.items()}
        return [self._argument(inner) for inner in value] if isinstance(value, list) else value

    def _tensor(self, layer: str, call: int, output: int) -> dict:
        history = [self.names[layer], call - (self.kinds[layer] in NETWORKS), output]
        # Keras replaces this by the tensor that the layer put out, so shape and dtype do not matter.
        config = {"shape": [], "dtype": "float32", "keras_history": history}
        return {"class_name": "__keras_tensor__", "config": config}

    def ends(self, entry: Any) -> Any:
        """Inputs or outputs of the network; one alone stands without a list around it."""
        if isinstance(entry, Mapping):
            return {key: self.ends(value) for key, value in entry.items()}
        if entry and isinstance(entry[0], str):
            return [self.names[entry[0]], entry[1] - (self.kinds[entry[0]] == "Sequential"), entry[2]]
        return self.ends(entry[0]) if len(entry) == 1 else [self.ends(value) for value in entry]
