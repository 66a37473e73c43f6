"""The pictures: what they show is right, they are PNG files, and the same input gives the same bytes."""

import subprocess
import sys
from functools import cache

import keras
import matplotlib
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from deepcomp import models, quantization
from deepcomp.errors import StageError, UnsupportedLayerError
from deepcomp.experiment import figures, report
from deepcomp.experiment import run_folder as checkpoint
from deepcomp.pruning import SPARSITIES
from deepcomp.training import parametrize

FULL = {"step": [0, 25, 50], "accuracy": [None, 0.5, 0.9], "validation_accuracy": [0.1, 0.9, 0.941]}
ONE_SHOT = {"step": [0, 25, 50], "accuracy": [None, 0.5, 0.9], "validation_accuracy": [0.6894, 0.9, 0.9364]}
SHARED = {"step": [0, 25, 50], "accuracy": [None, 0.5, 0.9], "validation_accuracy": [0.8464, 0.9, 0.9218]}
NO_STEPS = {"step": [0], "accuracy": [None], "validation_accuracy": [0.97]}
NOTHING_KNOWN = {"step": [0], "accuracy": [None], "validation_accuracy": [None]}
LAYERS = [
    {"name": "conv1", "shape": [5, 5, 1, 32], "weights": 800, "nonzero": 702, "centroids": 16},
    {"name": "fc1", "shape": [3136, 1024], "weights": 3_211_264, "nonzero": 26_600, "centroids": 16},
    {"name": "gone", "shape": [10, 10], "weights": 100, "nonzero": 0, "centroids": 0},
]


def kernels():
    """A bell, the bell without its middle, four values."""
    full = np.random.default_rng(0).normal(0, 0.1, (50, 40)).astype(np.float32)
    pruned = np.where(np.abs(full) < 0.1, np.float32(0), full)
    shared = np.select([pruned > 0.15, pruned > 0, pruned < -0.15, pruned < 0], [0.2, 0.12, -0.2, -0.12], 0)
    return full, pruned, shared.astype(np.float32)


def parts(*histories):
    return list(zip(figures.PARTS.values(), histories, kernels(), strict=True))


@cache
def network():
    layers = [keras.layers.Conv2D(4, 3, name="conv"), keras.layers.Flatten(), keras.layers.Dense(3, name="fc")]
    model = keras.Sequential([keras.Input((6, 6, 1)), *layers])
    kernel = model.get_layer("fc").kernel.numpy()
    model.get_layer("fc").kernel.assign(np.where(np.arange(kernel.size).reshape(kernel.shape) < 40, 0, kernel))
    return model


@cache
def deep_network():
    return keras.Sequential([keras.Input((4, 4, 1)), *(keras.layers.Dense(2) for _ in range(19))])


def add_run(folder, recipe="tiny"):
    """A run folder whose three training stages are done."""
    run, model = checkpoint.Run(folder), network()
    for name, history in zip(figures.PARTS, (FULL, ONE_SHOT, SHARED), strict=True):
        layers = report.layers(models.kernel_values(model))
        known = {"stage": name, "recipe": recipe, "data": {"name": "digits"}, "history": history, "layers": layers}
        record = {**dict.fromkeys(checkpoint.RECORD_KEYS[0], 0), **known}
        run.stage(name).finish(record, model)
    return run


BYTES = [
    {"name": "fc1", "index_bits": 40, "weight_bits": 20, "codebook_bits": 16, "bias_bits": 4, "overhead_bits": 0},
    {"name": "overhead", "index_bits": 0, "weight_bits": 0, "codebook_bits": 0, "bias_bits": 0, "overhead_bits": 16},
]
SPEEDS = [
    {"network": network, "batch": batch, "threads": threads, "engine": engine, "ratio": ratio}
    for network in ("lenet-5", "lenet-300-100")
    for threads in (2, 1)
    for batch in (1, 1024)
    for engine, ratio in (("deepcomp", 1.0), ("A", 12.5 * threads), ("B", 0.5 * batch), ("C", None))
    if (network, batch) != ("lenet-300-100", 1024)
]
SCAN = {"conv": [0.99, 0.98, 0.5], "fc": [0.99, 0.99, 0.98]}
MANY = {f"layer{n}": [1 - (n + 1) / 20 * s**4 for s in SPARSITIES] for n in range(17)}
PICTURES = {
    "accuracy": lambda path: figures.accuracy_curve(parts(FULL, ONE_SHOT, SHARED), path, title="run", layer="fc1"),
    "panels": lambda path: figures.accuracy_curves(
        {"a": ("fc1", parts(FULL, ONE_SHOT, SHARED)), "b": ("fc1", parts(FULL, FULL, FULL))}, path
    ),
    "no steps": lambda path: figures.accuracy_curve(parts(NO_STEPS, ONE_SHOT, NO_STEPS), path),
    "nothing known": lambda path: figures.accuracy_curve(parts(*3 * [NOTHING_KNOWN]), path),
    "architecture": lambda path: figures.architecture(network(), path),
    "architecture of 19 layers": lambda path: figures.architecture(deep_network(), path),
    "bytes": lambda path: figures.bytes_by_layer(BYTES, path, title="12 bytes"),
    "pruning": figures.pruning_example,
    "sharing": figures.sharing_example,
    "convolution": figures.sparse_convolution,
    "blocks": figures.sparse_convolution_blocks,
    "sparsity": lambda path: figures.sparsity_per_layer(LAYERS, path, title="run"),
    "sparsity, linear": lambda path: figures.sparsity_per_layer(LAYERS[:1], path),
    "speed": lambda path: figures.speed_ratios(SPEEDS, path),
    "scan": lambda path: figures.sensitivity(SCAN, (0, 0.5, 0.9), path, chosen={"conv": 0.6}, title="run"),
    "scan of 17 layers": lambda path: figures.sensitivity(MANY, SPARSITIES, path),
}


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_picture_is_a_png_and_the_same_twice(draw, tmp_path):
    for name in ("one.png", "two.png"):
        draw(tmp_path / name)
    data = (tmp_path / "one.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert b"Software" not in data
    assert 5_000 < len(data) < 150_000
    assert data == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as image:
        assert image.width == 1080
        assert 150 < image.height < 1400
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.png", "two.png"]


def test_pictures_leave_the_style_of_others_alone(tmp_path):
    before = {name: matplotlib.rcParams[name] for name in figures.STYLE}
    figures.sparsity_per_layer(LAYERS, tmp_path / "s.png")
    assert {name: matplotlib.rcParams[name] for name in figures.STYLE} == before


@pytest.mark.parametrize(
    ("full", "pruned", "quantized", "expected"),
    [
        # In one shot.
        ([0.1, 0.941], [0.6894, 0.9, 0.9364], [0.8464, 0.9, 0.9218], [0.941, 0.6894, 0.9364, 0.8464, 0.9218]),
        # In one shot, with a lower value later, which is noise.
        ([0.1, 0.99], [0.98, 0.97, 0.985], [0.98, 0.99], [0.99, 0.98, 0.985, 0.98, 0.99]),
        # Gradually: at step 0 nothing is pruned.
        ([0.1, 0.99], [0.99, 0.98, 0.96, 0.97, 0.988], [0.985, 0.98, 0.989], [0.99, 0.96, 0.988, 0.985, 0.989]),
        # Nothing lost, nothing gained; one entry each.
        ([0.9], [0.9], [0.9], [0.9] * 5),
    ],
)
def test_five_points(full, pruned, quantized, expected):
    curves = (full, pruned, quantized)
    points = figures.five_points(*curves)
    assert [curves[part][entry] for part, entry in points] == expected
    assert [part for part, _ in points] == [0, 1, 1, 2, 2]


def texts(figure):
    """Every text in a figure or panel, inset axes too."""
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_text()]


def drawn(monkeypatch, draw):
    """The figure that `draw` would save."""
    kept = []
    monkeypatch.setattr(figures.Figure, "savefig", lambda self, *_, **__: kept.append(self))
    monkeypatch.setattr(figures.files, "write_atomically", lambda path, write: write(str(path)))
    draw("unused.png")
    return kept[0]


def test_accuracy_curve_tells_the_five_values(monkeypatch):
    found = texts(drawn(monkeypatch, PICTURES["accuracy"]))
    for text in ("0.9410", "0.6894", "0.9364", "0.8464", "0.9218", "right after pruning", "fc1: 4 values", "150"):
        assert text in found, text
    assert "validation accuracy" in found


def test_accuracy_curve_falls_back_to_training_accuracy(monkeypatch):
    history = {"step": [0, 10, 20], "accuracy": [None, 0.5, 0.75], "validation_accuracy": [None] * 3}
    found = texts(drawn(monkeypatch, lambda path: figures.accuracy_curve(parts(*3 * [history]), path)))
    assert found.count("0.7500") == 3
    assert found.count("0.5000") == 2
    assert "training accuracy" in found


def test_labels_of_an_accurate_run_stay_inside_and_apart(monkeypatch):
    rng = np.random.default_rng(1)
    step = list(range(0, 4001, 250))
    histories = [
        {"step": step, "accuracy": step, "validation_accuracy": [start, *rng.normal(0.993, 0.0005, 16)]}
        for start in (0.1, 0.993, 0.9925)
    ]
    figure = drawn(monkeypatch, lambda path: figures.accuracy_curve(parts(*histories), path))
    figure.draw_without_rendering()
    (panel,) = figure.subfigs
    labels = [text for text in panel.axes[0].texts if text.get_text().startswith("0.99")]
    boxes = [label.get_window_extent() for label in labels]
    assert len(boxes) == 5
    inside = panel.axes[0].get_window_extent()
    for number, box in enumerate(boxes):
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1
        assert inside.y0 <= box.y0 < box.y1 <= inside.y1
        assert not any(box.overlaps(other) for other in boxes[:number])


def test_quantized_weights_are_counted_by_value():
    kernel = np.array([[0.5, 0, -0.25], [0.5, -0.0, 0.5], [-0.25, 1, 0]], np.float32)
    values, counts = figures.weight_counts(kernel, np.linspace(-1, 1, 5))
    assert values.tolist() == [-0.25, 0.5, 1.0]
    assert counts.tolist() == [2, 3, 1]


def test_many_values_are_counted_by_bin_without_zeros():
    kernel = np.concatenate([np.zeros(50), np.linspace(0.001, 1, 300)]).astype(np.float32)
    edges, counts = figures.weight_counts(kernel, np.linspace(-1, 1, 5))
    assert edges.tolist() == [-1, -0.5, 0, 0.5, 1]
    assert counts.tolist() == [0, 0, 150, 150]


def test_summed_gradients_are_those_of_training():
    pruned = figures.WEIGHTS * (np.abs(figures.WEIGHTS) >= figures.THRESHOLD)
    centroids, indices, sums = figures.share_once(pruned, figures.GRADIENT, figures.CLUSTERS)
    shared = parametrize.Shared(keras.Variable(quantization.from_codebook(centroids, indices)))
    np.testing.assert_array_equal(shared.trained.numpy(), centroids)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(shared.kernel() * figures.GRADIENT.astype(np.float32))
    np.testing.assert_allclose(sums, tape.gradient(loss, shared.trained.value), rtol=1e-5)
    np.testing.assert_allclose(sums, [0.05, 0.04, -0.05, 0.04], atol=1e-12)
    np.testing.assert_array_equal(indices == 0, np.abs(figures.WEIGHTS) < 0.1)


def test_architecture_tells_shapes_and_what_is_left(monkeypatch):
    found = texts(drawn(monkeypatch, PICTURES["architecture"]))
    for text in ("6x6x1", "conv", "3x3", "4x4x4", "36 weights", "64", "192 weights", "152 left"):
        assert text in found, text
    assert sum(text.endswith("left") for text in found) == 1


def test_architecture_of_a_subclassed_model_is_refused(tmp_path):
    class Subclassed(keras.Model):
        pass

    with pytest.raises(UnsupportedLayerError, match="subclassed"):
        figures.architecture(Subclassed(), tmp_path / "a.png")


def test_sparse_convolution_shows_the_matrix(monkeypatch):
    found = texts(drawn(monkeypatch, figures.sparse_convolution))
    # Each weight stands once in the kernel, and in the matrix once for each output where it meets the image.
    counts = {name: found.count(name) - 1 for name in figures._names("w", 3).ravel()}
    assert counts == {"w11": 4, "w12": 6, "w13": 4, "w21": 6, "w22": 9, "w23": 6, "w31": 4, "w32": 6, "w33": 4}


def test_decimals():
    assert figures._decimals(np.array([[0.0, -0.125, 1]])).tolist() == [["0", f"{figures.MINUS}0.12", "1.00"]]
    assert figures._decimals(np.array([[0.5]]), 3).tolist() == [["0.500"]]


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (keras.layers.Conv2D(1, 5, strides=2), "5x5, stride 2"),
        (keras.layers.Conv2D(1, (3, 1), strides=(2, 1)), "3x1, stride 2x1"),
        (keras.layers.Conv1D(1, 3), "3"),
        (keras.layers.MaxPooling2D(2), "2x2, stride 2"),
        (keras.layers.Dense(1), ""),
    ],
)
def test_window(layer, text):
    assert figures._window(layer) == text


EXAMPLES = ["pruning.png", "sharing.png", "sparse-convolution-blocks.png", "sparse-convolution.png"]


def test_command_makes_the_examples_without_a_run(tmp_path):
    figures.main(["--out", str(tmp_path / "imgs")])
    assert sorted(path.name for path in (tmp_path / "imgs").iterdir()) == EXAMPLES


def test_command_makes_all_pictures_of_two_runs(tmp_path):
    runs = [add_run(tmp_path / recipe, recipe).folder for recipe in ("seed", "reference")]
    figures.main(["--out", str(tmp_path / "imgs"), *map(str, runs)])
    names = ["accuracy-seed", "accuracy-reference", "sparsity-seed", "sparsity-reference", "architecture"]
    expected = sorted(EXAMPLES + [f"{name}.png" for name in names])
    assert sorted(path.name for path in (tmp_path / "imgs").iterdir()) == expected


def test_save_accuracy_of_a_run(tmp_path):
    figures.save_accuracy(add_run(tmp_path / "run"), tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").stat().st_size > 5_000


def test_unfinished_run_is_one_line_and_status_2(tmp_path, capsys):
    run = add_run(tmp_path / "run")
    run.discard_from("quantized")
    with pytest.raises(StageError, match="quantize"):
        figures.save_accuracy(run, tmp_path / "accuracy.png")
    with pytest.raises(SystemExit) as stop:
        figures.main(["--out", str(tmp_path / "imgs"), str(run.folder)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error == f"figures: No checkpoint in {run.stage('quantized').folder}: run quantize.py first.\n"
    assert not (tmp_path / "imgs").exists()


def test_import_needs_no_tensorflow():
    code = "import sys, deepcomp.experiment.figures; print({'tensorflow', 'matplotlib.pyplot'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_sensitivity_shows_what_was_measured_and_chosen(monkeypatch):
    figure = drawn(monkeypatch, PICTURES["scan"])
    for axes in figure.axes:
        dots = [line.get_xydata() for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata()) == 3]
        np.testing.assert_allclose(dots[0], [[1, 99], [0.5, 98], [0.1, 50]])
        np.testing.assert_allclose(dots[1], [[1, 99], [0.5, 99], [0.1, 98]])
        (ring,) = [line.get_xydata() for line in axes.lines if len(line.get_xdata()) == 1]
        np.testing.assert_allclose(ring, [[0.4, 86]])  # a quarter of the way from 98 to 50
    assert figure.axes[1].get_ylim() == pytest.approx((97, 99.15))
    assert {"conv", "fc", "run", "sparsity", "0.9"} <= set(texts(figure))


def test_speed_ratios_tell_the_least(monkeypatch):
    found = texts(drawn(monkeypatch, lambda path: figures.speed_ratios(SPEEDS, path)))
    for text in ("lenet-5, batch 1", "batch 1,024", "A", "B", "1 thread", "2 threads", "not measured", "10x"):
        assert text in found, text
    assert [found.count(text) for text in ("0.5x", "12.5x", "25.0x")] == [4, 1, 1]
    assert not {"C", "deepcomp"} & set(found)
