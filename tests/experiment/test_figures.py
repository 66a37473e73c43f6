"""The figures of a run: what they show is right, they are PNG files, and the same input gives the same bytes."""

import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from deepcomp import drawing
from deepcomp.errors import StageError
from deepcomp.experiment import figures
from deepcomp.pruning import SPARSITIES
from tests.drawing import FULL, ONE_SHOT, SHARED, add_run, check_picture, drawn, texts

NO_STEPS = {"step": [0], "accuracy": [None], "validation_accuracy": [0.97]}

NOTHING_KNOWN = {"step": [0], "accuracy": [None], "validation_accuracy": [None]}

LAYERS = [
    {"name": "conv1", "shape": [5, 5, 1, 32], "weights": 800, "nonzero": 702, "centroids": 16},
    {"name": "fc1", "shape": [3136, 1024], "weights": 3_211_264, "nonzero": 26_600, "centroids": 16},
    {"name": "gone", "shape": [10, 10], "weights": 100, "nonzero": 0, "centroids": 0},
]


def kernels():
    """Normal values, the same without the small ones, four values."""
    full = np.random.default_rng(0).normal(0, 0.1, (50, 40)).astype(np.float32)
    pruned = np.where(np.abs(full) < 0.1, np.float32(0), full)
    shared = np.select([pruned > 0.15, pruned > 0, pruned < -0.15, pruned < 0], [0.2, 0.12, -0.2, -0.12], 0)
    return full, pruned, shared.astype(np.float32)


def parts(*histories):
    return list(zip(figures.PARTS.values(), histories, kernels(), strict=True))


BYTES = [
    {"name": "fc1", "index_bits": 40, "weight_bits": 20, "codebook_bits": 16, "bias_bits": 4, "overhead_bits": 0},
    {"name": "overhead", "index_bits": 0, "weight_bits": 0, "codebook_bits": 0, "bias_bits": 0, "overhead_bits": 16},
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
    "bytes": lambda path: figures.bytes_by_layer(BYTES, path, title="12 bytes"),
    "sparsity": lambda path: figures.sparsity_per_layer(LAYERS, path, title="run"),
    "sparsity, linear": lambda path: figures.sparsity_per_layer(LAYERS[:1], path),
    "scan": lambda path: figures.sensitivity(SCAN, (0, 0.5, 0.9), path, chosen={"conv": 0.6}, title="run"),
    "scan of 17 layers": lambda path: figures.sensitivity(MANY, SPARSITIES, path),
}


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_picture_is_a_png_and_the_same_twice(draw, tmp_path):
    check_picture(draw, tmp_path)


def test_pictures_leave_the_style_of_others_alone(tmp_path):
    before = {name: matplotlib.rcParams[name] for name in drawing.STYLE}
    figures.sparsity_per_layer(LAYERS, tmp_path / "s.png")
    assert {name: matplotlib.rcParams[name] for name in drawing.STYLE} == before


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


def test_save_accuracy_of_a_run(tmp_path):
    figures.save_accuracy(add_run(tmp_path / "run"), tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").stat().st_size > 5_000


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


def test_accuracy_of_an_unfinished_run_is_refused(tmp_path):
    run = add_run(tmp_path / "run")
    run.discard_from("quantized")
    with pytest.raises(StageError, match="quantize"):
        figures.save_accuracy(run, tmp_path / "accuracy.png")


def test_accuracy_curve_takes_an_accuracy_of_another_name(monkeypatch):
    history = {
        "step": [0, 10],
        "loss": [None, 0.3],
        "validation_auc": [0.5, 0.7],
        "validation_binary_accuracy": [0.5, 0.75],
    }
    found = texts(drawn(monkeypatch, lambda path: figures.accuracy_curve(parts(*3 * [history]), path)))
    assert found.count("0.7500") == 3
    assert "validation accuracy" in found
