"""Files for other engines: they compute what the network does, and say what they take."""

import zipfile

import numpy as np
import pytest
import tensorflow as tf

import deepcomp
from deepcomp import converters
from deepcomp.__main__ import main
from deepcomp.errors import RecipeError, UnsupportedLayerError
from tests.zoo import fill


@pytest.fixture
def file(network, tmp_path):
    deepcomp.save(fill(network), tmp_path / "small.dcz")
    return tmp_path / "small.dcz"


def run_litert(path, inputs):
    interpreter = tf.lite.Interpreter(str(path))
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(source["index"], inputs.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(source["index"], inputs)
    interpreter.invoke()
    return interpreter.get_tensor(result["index"])


def run_onnx(path, inputs):
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(str(path))
    return session.run(None, {session.input_names[0]: inputs})[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("ending", "run"), [(".tflite", run_litert), (".onnx", run_onnx)])
def test_another_engine_computes_what_the_network_does(network, file, tmp_path, ending, run):
    if ending == ".onnx":
        pytest.importorskip("tf2onnx")
    output = tmp_path / f"small{ending}"
    found = converters.export(file, output)
    assert (found.bytes, found.own) == (output.stat().st_size, file.stat().st_size)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.write(output, "model")
    assert found.own < found.zipped < found.bytes
    assert abs(found.zipped - (tmp_path / "a.zip").stat().st_size) < 200
    inputs = np.random.default_rng(0).random((3, 28, 28, 1), np.float32)
    expected = network(inputs).numpy()
    np.testing.assert_allclose(run(output, inputs), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.filterwarnings("ignore")
def test_the_command_prints_three_sizes(file, tmp_path, capfd):
    main(["export", str(file), str(tmp_path / "small.tflite")])
    line = capfd.readouterr().out.splitlines()[-1]
    sizes = [int(word.replace(",", "")) for word in line.split() if word.replace(",", "").isdigit()]
    assert sizes[0] == (tmp_path / "small.tflite").stat().st_size
    assert sizes[2] == file.stat().st_size


def test_another_ending_is_one_line(file, tmp_path):
    with pytest.raises(RecipeError, match=r"m.h5 must end in .tflite or .onnx"):
        converters.export(file, tmp_path / "m.h5")


def test_a_missing_converter_is_one_line(file, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"needs the package tf2onnx: pip install 'deepcomp\[onnx\]'"):
        converters.export(file, tmp_path / "m.onnx")


@pytest.mark.filterwarnings("ignore")
def test_what_a_converter_refuses_is_one_line(file, tmp_path, monkeypatch):
    def refuse(model):
        raise ValueError("no such operation\nand much more")

    monkeypatch.setitem(converters._WRITERS, ".tflite", refuse)
    with pytest.raises(UnsupportedLayerError, match=r"small.dcz cannot be converted to .tflite: no such operation$"):
        converters.export(file, tmp_path / "m.tflite")
    assert not (tmp_path / "m.tflite").exists()
