"""Writes the network of a `.dcz` file in the formats of other engines, by the converters that their makers keep."""

import contextlib
import importlib.util
import io
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import keras

from deepcomp import keras_private
from deepcomp.dcz import container, conversion
from deepcomp.errors import DeepcompError, RecipeError, UnsupportedLayerError
from deepcomp.files import write_atomically


class Exported(NamedTuple):
    """The bytes of an exported file, of the same in a zip archive, and of the `.dcz` file that it was made of."""

    bytes: int
    zipped: int
    own: int


def export(path: str | Path, output: str | Path) -> Exported:
    """Write the network of a `.dcz` file as a `.tflite` or an `.onnx` file, in float32; returns what each takes.

    Zeros and shared values stay what they are, but no other format has a form for them: a zip archive shows what is
    left of them there. Batch normalization is folded first. `.onnx` needs the package tf2onnx. Raises `FormatError`,
    `RecipeError` for another ending, and `UnsupportedLayerError` for a network that the converter refuses.
    """
    path, output = Path(path), Path(output)
    if output.suffix not in _WRITERS:
        raise RecipeError(f"The output {output} must end in {' or '.join(_WRITERS)}.")
    data = container.read(path)
    model = conversion.to_keras(container.loads(data, name=str(path)))
    conversion.fold_normalization(model)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            made = _WRITERS[output.suffix](model)
    except DeepcompError:
        raise
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UnsupportedLayerError(f"{path} cannot be converted to {output.suffix}: {lines[0]}") from error
    write_atomically(output, lambda temporary: Path(temporary).write_bytes(made))
    return Exported(len(made), _zipped(made), len(data))


def _litert(model: keras.Model) -> bytes:
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, verbose=False)
        return tf.lite.TFLiteConverter.from_saved_model(folder).convert()


def _onnx(model: keras.Model) -> bytes:
    if importlib.util.find_spec("tf2onnx") is None:
        raise RecipeError("An .onnx file needs the package tf2onnx: pip install 'deepcomp[onnx]'.")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        inputs = keras.tree.map_structure(
            lambda one: keras.InputSpec(shape=one.shape, dtype=one.dtype, name=one.name),
            keras_private.inputs_structure(model),
        )
        model.export(file, format="onnx", verbose=False, input_signature=[inputs])
        return file.read_bytes()


_WRITERS: dict[str, Callable[[keras.Model], bytes]] = {".tflite": _litert, ".onnx": _onnx}


def _zipped(data: bytes) -> int:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.writestr("model", data)
    return len(file.getvalue())
