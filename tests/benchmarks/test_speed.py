"""The benchmark of speed: its networks, the formats that it writes itself, its turns, tables and ratios."""

import json
from types import SimpleNamespace

import keras
import numpy as np
import pytest

import deepcomp
from benchmarks import speed
from deepcomp import data
from deepcomp.dcz import container


def cell(engine, microseconds, batch=1, threads=1, network="net", reason=""):
    known = speed.summary([] if microseconds is None else [microseconds] * 3, reason)
    return {"network": network, "threads": threads, "batch": batch, "engine": engine, **known}


def test_summary_is_the_median_and_half_of_the_distance_of_the_quartiles():
    found = speed.summary([40.0, 10.0, 30.0, 20.0, 50.0])
    assert (found["microseconds"], found["spread"], found["reason"]) == (30.0, pytest.approx(100 / 3), "")
    assert speed.summary([7.0])["spread"] == 0
    assert speed.summary([], "No module named 'x'")["reason"] == "No module named 'x'"
    assert speed.summary([])["microseconds"] is None


def test_ratios_are_over_ours():
    cells = [cell("deepcomp", 4.0), cell("A", 12.0), cell("B", 3.0), cell("C", None, reason="gone")]
    assert [one["ratio"] for one in speed.with_ratios(cells)] == [1.0, 3.0, 0.75, None]
    assert [one["ratio"] for one in speed.with_ratios(cells[1:])] == [None] * 3


def test_table_has_every_cell_marks_what_is_lost_and_fits():
    cells = []
    for batch, ours in ((1, 4.0), (64, 400.0), (1024, 4_000_000.0)):
        peers = [
            cell("LiteRT dynamic int8", 3.0, batch),
            cell("B", 12345.6, batch),
            cell("C", None, batch, reason="no C"),
        ]
        cells += speed.with_ratios([cell("deepcomp", ours, batch), *peers])
    lines = speed.speed_table(cells).splitlines()
    shown = [" ".join(line.split()) for line in lines]
    assert shown[0] == "engine batch 1 +- ours is batch 64 +- ours is batch 1024 +- ours is"
    assert shown[2] == "deepcomp 4.0 0% - 400.0 0% - 4,000,000 0% -"
    assert shown[3] == "LiteRT dynamic int8 3.0 0% 0.75x LOST 3.0 0% 0.01x LOST 3.0 0% 0.00x LOST"
    assert shown[4] == "B 12,346 0% 3086.40x 12,346 0% 30.86x 12,346 0% 0.00x LOST"
    assert shown[5] == "C - - - - - - - - -"
    assert shown[6].startswith("fastest peer 3.0 0% 0.75x LOST")
    assert lines[7] == "missing: C: no C"
    assert max(map(len, lines)) <= 120


def test_goals_are_over_the_fastest_of_some_peers():
    peers = [cell("A", 40.0), cell("B", 29.0), cell("LiteRT full int8", 11.0)]
    cells = speed.with_ratios([cell("deepcomp", 10.0), *peers])
    cells += speed.with_ratios([cell("deepcomp", 10.0, 64), cell("A", 40.0, 64)])
    goals = [[1, "all", 3], [1, "float32", 3], [1, "int8", 1.1], [64, "all", 4], [64, "int8", 1], [1024, "all", 5]]
    rows = speed.goal_rows(cells, [{"network": "net", "goals": goals}], 1)
    assert [(row["peers"], row["fastest"], row["ratio"], row["goal"]) for row in rows] == [
        ("all", "LiteRT full int8", "1.10x missed", "3x"),
        ("float32", "B", "2.90x missed", "3x"),
        ("int8", "LiteRT full int8", "1.10x met", "1.1x"),
        ("all", "A", "4.00x met", "4x"),
    ]


@pytest.mark.parametrize("name", ["lenet-5", "reference", "lenet-300-100"])
def test_network_is_that_of_its_file_and_runs_on_digits(name):
    file = speed.NETWORKS[name].file
    images = speed.pictures(1024, (28, 28, 1))
    assert (images.shape, images.dtype, images.min(), images.max()) == ((1024, 28, 28, 1), np.float32, 0, 1)
    outputs = speed.build(name)(images[:200]).numpy()
    np.testing.assert_allclose(deepcomp.load(file)(images[:200]), outputs, rtol=1e-4, atol=1e-4)
    _, _, labels = data.load_test("mnist-5k")
    assert np.mean(outputs.argmax(axis=1) == labels[:200]) > 0.97


def test_the_layer_of_vgg_16_has_the_density_of_the_paper(monkeypatch):
    shape, left, values = speed.FC6
    assert (shape, left, values) == ((25088, 4096), round(0.04 * 25088 * 4096), 32)
    monkeypatch.setattr(speed, "FC6", ((250, 40), 400, 32))
    kernel = speed.build("vgg-fc6").layers[0].kernel.numpy()
    assert (np.count_nonzero(kernel), len(np.unique(kernel[kernel != 0]))) == (400, 32)
    assert speed.pictures(3, (250,)).shape == (3, 250)


def tiny():
    """Every kind of layer that peers run, with sizes that leave remainders."""
    layers = [
        keras.layers.Conv2D(3, 3, activation="relu", name="conv1"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(5, (3, 2), strides=2, padding="same", use_bias=False, name="conv2"),
        keras.layers.Flatten(),
        keras.layers.Dense(7, activation="relu", bias_initializer="random_normal"),
        keras.layers.Dense(4),
    ]
    return keras.Sequential([keras.Input((11, 9, 2)), *layers])


@pytest.mark.parametrize(("images", "threads"), [(1, 1), (5, 2)])
def test_scipy_gives_what_keras_gives(images, threads, tmp_path):
    model = tiny()
    inputs = np.random.default_rng(0).random((images, 11, 9, 2), np.float32)
    speed.write_keras(model, tmp_path, [images], inputs)
    ways = speed.run_scipy(tmp_path, inputs, threads)
    assert len(ways) == threads
    for call in ways.values():
        np.testing.assert_allclose(call(), model(inputs).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_onnx_gives_what_keras_gives(tmp_path):
    pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model, inputs = tiny(), np.random.default_rng(0).random((3, 11, 9, 2), np.float32)
    speed.write_onnx(model, tmp_path, [3], inputs)
    (outputs,) = ReferenceEvaluator(str(tmp_path / "model.onnx")).run(None, {"images": inputs})
    np.testing.assert_allclose(outputs, model(inputs).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_onnx_holds_what_known_architectures_are_made_of(tmp_path):
    pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    def normalize(x):
        return layers.BatchNormalization(gamma_initializer="random_normal", beta_initializer="random_normal")(x)

    layers = keras.layers
    inputs = keras.Input((9, 9, 3))
    x = layers.ReLU(6.0)(normalize(layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False)(inputs)))
    y = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = layers.Activation("relu")(layers.Add()([x, normalize(y)]))
    x = layers.MaxPooling2D(3, strides=2)(layers.ZeroPadding2D(((1, 0), (0, 1)))(x))
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D(keepdims=True)(layers.AveragePooling2D(2)(x)))
    x = layers.Reshape((5,))(layers.Conv2D(5, 1)(x))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(layers.Activation("softmax")(x)))
    images = np.random.default_rng(0).random((3, 9, 9, 3), np.float32)
    speed.write_onnx(model, tmp_path, [3], images)
    (outputs,) = ReferenceEvaluator(str(tmp_path / "model.onnx")).run(None, {"images": images})
    np.testing.assert_allclose(outputs, model(images).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Conv2D(2, 3, groups=2),
        keras.layers.Conv2D(2, 3, dilation_rate=2),
        keras.layers.Conv2D(2, 3, activation="gelu"),
        keras.layers.ReLU(negative_slope=0.5),
        keras.layers.Reshape((2, 8, 8)),
        keras.layers.UpSampling2D(),
    ],
)
def test_what_onnx_files_do_not_hold_is_refused(layer, tmp_path):
    pytest.importorskip("onnx")
    model = keras.Sequential([keras.Input((8, 8, 2)), layer])
    with pytest.raises(NotImplementedError, match=layer.name):
        speed.write_onnx(model, tmp_path, [1], None)


def test_known_architectures_are_pruned_to_their_sparsity(tmp_path):
    model = speed.build("resnet-8-90")
    kernels = [layer.kernel.numpy() for layer in model.layers if hasattr(layer, "kernel")]
    assert len(kernels) == 10
    for kernel in kernels:
        assert np.count_nonzero(kernel) == round(0.1 * kernel.size)
        assert len(np.unique(kernel[kernel != 0])) <= speed.VALUES
    assert sum(kernel.size for kernel in kernels) == 77_360
    images = speed.pictures(2, (32, 32, 3))
    deepcomp.save(model, tmp_path / "a.dcz", coder="huffman")
    np.testing.assert_allclose(deepcomp.load(tmp_path / "a.dcz")(images), model(images).numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        keras.layers.Conv2D(2, 3, groups=2),
        keras.layers.Conv2D(2, 3, dilation_rate=2),
        keras.layers.Conv2D(2, 3, activation="gelu"),
        keras.layers.DepthwiseConv2D(3),
        keras.layers.MaxPooling2D(3),
    ],
)
def test_networks_that_peers_cannot_be_given_are_refused(layer):
    model = keras.Sequential([keras.Input((8, 8, 2)), layer])
    with pytest.raises(NotImplementedError, match=layer.name):
        speed.chain_of(model)


def test_network_is_written_once(tmp_path, monkeypatch):
    written = []

    def write(model, folder, batches, images):
        written.append(images.shape)

    def fail(*_):
        raise ModuleNotFoundError("No module named 'peer'")

    monkeypatch.setattr(speed, "WRITERS", {"dcz": speed.write_dcz, "keras": write})
    first = speed.prepare("lenet-300-100", tmp_path, [1, 3])
    assert (first["network"], first["batches"], first["weights"]) == ("lenet-300-100", [1, 3], 266200)
    kernels = [layer.weights["kernel"] for layer in container.load(speed.NETWORKS["lenet-300-100"].file).layers[2:]]
    assert first["left"] == sum(np.count_nonzero(kernel.indices) for kernel in kernels)
    assert first["dense_bytes"] == 4 * 266610
    assert container.load(tmp_path / "lenet-300-100" / "model.dcz").input_shape == (28, 28, 1)
    assert json.loads(json.dumps(first)) == first == speed.prepare("lenet-300-100", tmp_path, [1, 3])
    assert written == [(3, 28, 28, 1)]
    monkeypatch.setattr(speed, "WRITERS", {"onnx": fail})
    assert speed.prepare("lenet-300-100", tmp_path, [2])["missing"] == {
        "onnx": "ModuleNotFoundError: No module named 'peer'"
    }


class FakeEngine:
    """An engine that says how long it takes; it fails after some answers."""

    def __init__(self, log, name, seconds, difference=0.0, answers=99):
        self.log, self.name, self.seconds, self.difference, self.answers = log, name, seconds, difference, answers
        self.reason = ""

    def ask(self, request, number):
        self.log.append((request, self.name))
        if len([one for one in self.log if one[1] == self.name]) > self.answers:
            self.reason = "It ended."
            return None
        known = {"way": "", "seconds": self.seconds, "agreement": 1.0, "difference": self.difference}
        return known if request == "load" else self.seconds


def test_engines_take_turns_and_those_that_fail_are_named():
    log = []
    running = {
        "deepcomp": FakeEngine(log, "deepcomp", 1e-6),
        "A": FakeEngine(log, "A", 3e-6),
        "wrong": FakeEngine(log, "wrong", 1e-6, difference=0.5),
        "ends": FakeEngine(log, "ends", 1e-6, answers=2),
    }
    options = SimpleNamespace(rounds=4, seconds=0.01)
    cells = speed.measure(running, {"network": "net"}, 1, 64, options)
    assert [one["microseconds"] for one in cells] == [1.0, 3.0, None, None]
    assert [one["ratio"] for one in cells] == [1.0, 3.0, None, None]
    assert [one["reason"][:10] for one in cells] == ["", "", "Its output", "It ended."]
    runs = [name for request, name in log if request == "run"]
    assert all(sorted(runs[3 * turn : 3 * turn + 3]) == ["A", "deepcomp", "ends"] for turn in range(4))
    assert "wrong" not in runs


def test_multiply_adds_are_counted_right():
    (first, *_) = speed.vector_lanes()
    run = speed.multiply_adds(first)
    # Each sum goes to s / 2 + 100; twelve start at 0 to 11.
    assert run(1) == pytest.approx(12 * 100 + 66 / 2)
    assert run(2) == pytest.approx(12 * 150 + 66 / 4)
    assembly = next(iter(run.inspect_llvm().values()))
    assert assembly.count("call <4 x float> @llvm.fma.v4f32") == 12
