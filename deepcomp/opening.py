"""Opening a model file of any kind that Keras 2 or 3 writes; nothing that a file holds is executed.

The content decides what a file is, not its name. Importing this module imports no framework.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcomp.errors import FormatError, UnsupportedLayerError

if TYPE_CHECKING:
    import h5py
    import keras
    import numpy as np

_HDF5 = b"\x89HDF\r\n\x1a\n"
_ZIP = b"PK\x03\x04"
_FOREIGN = {
    ".ckpt": "a TensorFlow checkpoint, which holds weights alone",
    ".dcz": "a compressed network: convert it with `deepcomp to-keras`",
    ".json": "a network without its weights",
    ".npz": "a set of arrays",
    ".onnx": "an ONNX network, which cannot be trained in Keras",
    ".pb": "a TensorFlow graph without Keras layers; a SavedModel is opened by its folder",
    ".pt": "a PyTorch network",
    ".pth": "a PyTorch network",
    ".tflite": "a TensorFlow Lite network, which cannot be trained",
}
_USE = "give the network as Keras saved it, a .keras or .h5 file"
# What a reader may ask for, in bytes, for each byte of the file: zlib packs 1 KiB into one byte at the very best.
_EXPANSION = 1100
_FLOOR = 1 << 20


def is_model_file(name: str) -> bool:
    """Whether `name` means a model file or a SavedModel folder, and not one of deepcomp's own networks."""
    path = Path(name)
    return bool(path.suffix) or len(path.parts) > 1 or (path / "saved_model.pb").is_file()


def load(path: str | Path) -> keras.Model:
    """Open a `.keras` or HDF5 file, or a SavedModel folder that Keras 2 wrote; nothing in it is executed.

    If the file says with which loss and metrics of Keras's own the network was compiled, it is compiled with them.
    Raises `FormatError` if the file is missing, damaged, or holds no whole Keras network, and `UnsupportedLayerError`
    if it holds a layer that cannot be made here.
    """
    path = Path(path)
    kind = _kind_of(path)
    with _one_line(path):
        model, compiled = {"zip": _from_zip, "hdf5": _from_hdf5, "folder": _from_folder}[kind](path)
        _compile(model, compiled)
    return model


def _kind_of(path: Path) -> str:
    """Which of the three kinds a path is: `zip`, `hdf5` or `folder`. Raises `FormatError` for any other."""
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return "folder"
        raise FormatError(f"{path} is a folder without a saved_model.pb: {_USE}.")
    if not path.is_file():
        raise FormatError(f"No model file {path}.")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise FormatError(f"Cannot read {path}: {error.strerror}.") from error
    if not head:
        raise FormatError(f"{path} is empty.")
    if head.startswith(_HDF5):
        return "hdf5"
    if head.startswith(b"version https://git-lfs"):
        raise FormatError(f"{path} is a pointer of Git LFS, not the network: run `git lfs pull`.")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise FormatError(f"{path} is a web page, not a network: download the file itself.")
    suffix = ".tflite" if head[4:8] == b"TFL3" else path.suffix.lower()
    if suffix in _FOREIGN:
        raise FormatError(f"{path} is {_FOREIGN[suffix]}: {_USE}.")
    if head.startswith(_ZIP):
        return "zip"
    raise FormatError(f"{path} is damaged or no Keras network: {_USE}.")


@contextmanager
def _one_line(path: Path) -> Iterator[None]:
    """Put the path in front of this module's errors, and make any other error a `FormatError` of one line."""
    try:
        yield
    except (FormatError, UnsupportedLayerError) as error:
        raise type(error)(f"{path} holds {str(error).removesuffix('.')}.") from error
    except Exception as error:  # Keras lets zipfile's, h5py's, json's and its own errors through.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FormatError(f"{path} is damaged, or not what this version of Keras reads: {reason}") from error


# .keras: a zip archive with config.json, metadata.json and model.weights.h5.


def _from_zip(path: Path) -> tuple[keras.Model, Any]:
    import h5py

    from deepcomp import keras2, keras_private

    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for member in archive.infolist():
            if member.file_size > _FLOOR + _EXPANSION * member.compress_size:
                raise FormatError(f"a member {member.filename!r} that unpacks to {member.file_size:,} bytes")
        if "config.json" not in names:
            raise FormatError("a zip archive, but no Keras network (config.json is not in it)")
        config = json.loads(archive.read("config.json"))
        metadata = json.loads(archive.read("metadata.json")) if "metadata.json" in names else {}
        if "model.weights.h5" in names:
            with archive.open("model.weights.h5") as member, h5py.File(member) as weights:
                _refuse_foreign_storage(weights, path)
        compiled = config.pop("compile_config", None)
        if not str(metadata.get("keras_version", "3")).startswith("2."):
            _refuse_unknown(config)
            with path.open("rb") as file:
                return keras_private.load_archive(file), compiled
        model = keras2.build(config)
        if not keras2.in_order(model, config):  # The archive numbers the layers of one class by their order.
            raise UnsupportedLayerError(
                "a network whose layers Keras 3 puts in another order: save it as .h5 with Keras 2 (package tf_keras)"
            )
        with tempfile.TemporaryDirectory() as folder:
            model.load_weights(archive.extract("model.weights.h5", folder))
    keras2.finish(model)
    return model, compiled


# HDF5: the attribute model_config, and the group model_weights with a group for each layer.


def _from_hdf5(path: Path) -> tuple[keras.Model, Any]:
    import h5py

    from deepcomp import keras2, keras_private

    with h5py.File(path) as file:
        _refuse_foreign_storage(file, path)
        config = _attribute(file, "model_config")
        if config is None:
            alone = "layer_names" in file.attrs or {"layers", "_layer_checkpoint_dependencies"} & file.keys()
            raise FormatError(
                "weights alone, not the network: build it in Python, call load_weights and save it as .keras"
                if alone
                else f"data, but no Keras network: {_USE}"
            )
        if "model_weights" not in file:
            raise FormatError(f"a network without its weights: {_USE}")
        config, compiled = json.loads(config), json.loads(_attribute(file, "training_config") or "null")
        version = str(_attribute(file, "keras_version") or _attribute(file["model_weights"], "keras_version") or "1")
        if version.startswith("1"):
            raise FormatError("a network of Keras 1: open it with Keras 2.0 and save it again")
        if not version.startswith("2"):
            _refuse_unknown(config)
            return keras_private.load_hdf5(file), compiled
        model = keras2.build(config)
        keras2.set_weights(model, config, _hdf5_weights(file["model_weights"]), trainable_first=True)
    keras2.finish(model)
    return model, compiled


def _attribute(group: h5py.Group, name: str) -> str | None:
    value = group.attrs.get(name)
    return value.decode() if isinstance(value, bytes) else value


def _texts(group: h5py.Group, name: str) -> list[str]:
    """A list of names; one too long for an attribute stands in several, numbered from 0."""
    parts = [group.attrs[name]] if name in group.attrs else []
    while f"{name}{len(parts)}" in group.attrs:
        parts.append(group.attrs[f"{name}{len(parts)}"])
    return [text.decode() if isinstance(text, bytes) else str(text) for part in parts for text in part]


def _hdf5_weights(group: h5py.Group) -> dict[str, list[tuple[str, np.ndarray]]]:
    return {
        layer: [(name, group[layer][name][()]) for name in _texts(group[layer], "weight_names")]
        for layer in _texts(group, "layer_names")
    }


def _refuse_foreign_storage(file: h5py.File, path: Path) -> None:
    """Raise `FormatError` for links, storage outside the file, and arrays larger than the file can hold."""
    import h5py

    size = path.stat().st_size
    groups = [file]
    seen = set()
    while groups:
        group = groups.pop()
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise FormatError(f"a link from {name!r} to elsewhere, which is not followed")
            child = group[name]
            if isinstance(child, h5py.Group):
                if child.id.__hash__() not in seen:
                    seen.add(child.id.__hash__())
                    groups.append(child)
            elif isinstance(child, h5py.Dataset):
                if child.external or child.is_virtual:
                    raise FormatError(f"an array {name!r} whose values lie in another file, which is not read")
                if child.nbytes > _FLOOR + _EXPANSION * size:
                    raise FormatError(f"an array {name!r} of {child.nbytes:,} bytes in a file of {size:,}")


# SavedModel: the configuration in keras_metadata.pb, before Keras 2.5 in saved_model.pb; the weights in a checkpoint.


def _from_folder(path: Path) -> tuple[keras.Model, Any]:
    from deepcomp import keras2

    metadata = _metadata(path)
    root = metadata.get("root", {})
    config = root.get("model_config") or root
    if "layers" not in (config.get("config") or {}):
        if root.get("class_name") and root.get("is_graph_network") is False:
            raise UnsupportedLayerError(keras2.unknown(root["class_name"], root.get("name", "model")))
        raise FormatError(f"a TensorFlow graph for inference, not the Keras layers: {_USE}")
    model = keras2.build(config)
    keras2.set_weights(model, config, _checkpoint_weights(path, metadata), trainable_first=False)
    keras2.finish(model)
    return model, root.get("training_config")


def _metadata(path: Path) -> dict[str, dict]:
    """What Keras 2 wrote about each object of a SavedModel, by the object's path from `root`."""
    from deepcomp import keras_private

    file = path / "keras_metadata.pb"
    if file.is_file():
        nodes = keras_private.keras_metadata(file.read_bytes()).nodes
        return {node.node_path: json.loads(node.metadata) for node in nodes if node.metadata}
    nodes = keras_private.saved_model_graph((path / "saved_model.pb").read_bytes()).nodes
    paths = {0: "root"} | {child.node_id: f"root.{child.local_name}" for child in (nodes[0].children if nodes else ())}
    objects = {name: nodes[number].user_object for number, name in paths.items()}
    return {
        name: json.loads(item.metadata)
        for name, item in objects.items()
        if item.identifier.startswith("_tf_keras") and item.metadata
    }


def _checkpoint_weights(path: Path, metadata: Mapping[str, dict]) -> dict[str, list[tuple[str, np.ndarray]]]:
    import tensorflow as tf

    from deepcomp import keras_private

    reader = tf.train.load_checkpoint(str(path / "variables" / "variables"))
    nodes = keras_private.checkpoint_graph(reader.get_tensor("_CHECKPOINTABLE_OBJECT_GRAPH")).nodes
    weights = {}
    for child in nodes[0].children:
        layer = metadata.get(f"root.{child.local_name}")
        if layer is None:
            continue
        parts = nodes[child.node_id].children
        listed = [inner.node_id for inner in parts if inner.local_name == "variables"]
        variables = dict.fromkeys(inner.node_id for inner in (nodes[listed[0]].children if listed else parts))
        found = [nodes[number].attributes[0] for number in variables if nodes[number].attributes]
        weights[layer["name"]] = [(item.full_name, reader.get_tensor(item.checkpoint_key)) for item in found]
    return weights


# What a file of Keras 3 may hold, and how a network was compiled.


def _refuse_unknown(config: Any, is_layer: bool = True) -> None:
    """Raise `UnsupportedLayerError` for code, and for a class or function that neither Keras nor anybody registered."""
    import keras

    from deepcomp import keras2

    if isinstance(config, list):
        for value in config:
            _refuse_unknown(value, is_layer)
    if not isinstance(config, Mapping):
        return
    kind, module, inner = config.get("class_name"), config.get("module"), config.get("config")
    if kind == "__lambda__":
        raise UnsupportedLayerError(keras2.LAMBDA)
    if isinstance(kind, str) and ("registered_name" in config or is_layer):
        name = inner if kind == "function" else config.get("registered_name") or kind
        # In HDF5 files layers come without a module.
        known = "registered_name" not in config and (kind in keras2.NETWORKS or hasattr(keras.layers, kind))
        package = "keras" if known else str(module).partition(".")[0]
        if package not in ("keras", "builtins") and keras.saving.get_registered_object(str(name)) is None:
            if package in ("keras_hub", "keras_nlp", "keras_cv"):
                raise UnsupportedLayerError(f"{kind} of the package {package}: import {package} before you open it")
            label = inner.get("name", kind) if isinstance(inner, Mapping) else kind
            what = f"the function {name!r}" if kind == "function" else None
            raise UnsupportedLayerError(keras2.unknown(kind, label, what))
    for key, value in config.items():
        if key != "compile_config":
            _refuse_unknown(value, key == "layers")


def _compile(model: keras.Model, compiled: Any) -> None:
    """Compile a network as the file says if the loss is Keras's own or registered; else leave it uncompiled.

    The state of the optimizer is not restored.
    """
    if not isinstance(compiled, Mapping) or not compiled.get("loss"):
        return
    try:
        loss = _each(_loss, compiled["loss"])
    except (ValueError, TypeError, KeyError):
        return
    options = {"loss": loss, "loss_weights": compiled.get("loss_weights"), "optimizer": _optimizer(compiled)}
    try:
        metrics = {key: _metrics(model, compiled.get(key)) for key in ("metrics", "weighted_metrics")}
    except (ValueError, TypeError, KeyError):  # Metrics of somebody's own say nothing about the loss.
        metrics = {}
    model.compile(**options, **metrics)


def _each(make: Callable[[Any], Any], value: Any) -> Any:
    """`make` of each loss or metric in lists and dictionaries; None stays None."""
    if isinstance(value, Mapping) and "class_name" not in value:
        return {key.replace("/", "_"): _each(make, inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_each(make, inner) for inner in value]
    return None if value is None else make(value)


def _loss(value: str | Mapping) -> Any:
    import keras

    if isinstance(value, str) or value["class_name"] == "function":
        name = value if isinstance(value, str) else value["config"]
        keras.losses.get(name)
        return name
    config = {key: inner for key, inner in value["config"].items() if key != "fn" and inner != "auto"}
    return keras.losses.get({**value, "config": config})


def _metrics(model: keras.Model, value: Any) -> Any:
    import keras

    def metric(value: str | Mapping) -> Any:
        if isinstance(value, Mapping) and ("fn" in value["config"] or value["class_name"] == "function"):
            inner = value["config"]
            name = inner if isinstance(inner, str) else inner.get("name")
            value = name if isinstance(inner, str) or name in ("accuracy", "acc") else inner["fn"]
        if value not in ("accuracy", "acc", "crossentropy", "ce"):
            found = keras.metrics.get(value)
            return value if isinstance(value, str) else found
        return value

    outputs = getattr(model, "outputs", None) or ()  # A subclassed network does not say.
    if len(outputs) == 1 and isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    return _each(metric, value)


def _optimizer(compiled: Mapping) -> Any:
    """The optimizer with its settings, or Keras's default one where Keras does not know it."""
    import keras

    from deepcomp import keras2

    config = compiled.get("optimizer_config") or compiled.get("optimizer")
    try:
        cls = getattr(keras.optimizers, config["class_name"].rpartition(">")[2])
        options = {{"lr": "learning_rate"}.get(key, key): value for key, value in config["config"].items()}
        kept = {key: value for key, value in options.items() if key in keras2.options_of(cls)}
        if isinstance(kept.get("learning_rate"), Mapping):
            kept["learning_rate"] = keras.optimizers.schedules.deserialize(kept["learning_rate"])
        return cls(**kept)
    except (AttributeError, KeyError, TypeError, ValueError):
        return "rmsprop"
