"""The pictures of the README: what they show is right, they are PNG files, and the same input gives the same bytes."""

from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf

from deepcomp import quantization
from deepcomp.errors import UnsupportedLayerError
from deepcomp.training import parametrize
from tests.drawing import add_run, check_picture, drawn, small_network, texts
from tools import pictures


@cache
def deep_network():
    return keras.Sequential([keras.Input((4, 4, 1)), *(keras.layers.Dense(2) for _ in range(19))])


PICTURES = {
    "architecture": lambda path: pictures.architecture(small_network(), path),
    "architecture of 19 layers": lambda path: pictures.architecture(deep_network(), path),
    "pruning": pictures.pruning_example,
    "sharing": pictures.sharing_example,
    "convolution": pictures.sparse_convolution,
    "blocks": pictures.sparse_convolution_blocks,
}


@pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)
def test_picture_is_a_png_and_the_same_twice(draw, tmp_path):
    check_picture(draw, tmp_path)


def test_summed_gradients_are_those_of_training():
    pruned = pictures.WEIGHTS * (np.abs(pictures.WEIGHTS) >= pictures.THRESHOLD)
    centroids, indices, sums = pictures.share_once(pruned, pictures.GRADIENT, pictures.CLUSTERS)
    shared = parametrize.SharedKernel(keras.Variable(quantization.from_codebook(centroids, indices)))
    np.testing.assert_array_equal(shared.trained.numpy(), centroids)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(shared.kernel() * pictures.GRADIENT.astype(np.float32))
    np.testing.assert_allclose(sums, tape.gradient(loss, shared.trained.value), rtol=1e-5)
    np.testing.assert_allclose(sums, [0.05, 0.04, -0.05, 0.04], atol=1e-12)
    np.testing.assert_array_equal(indices == 0, np.abs(pictures.WEIGHTS) < 0.1)


def test_architecture_tells_shapes_and_what_is_left(monkeypatch):
    found = texts(drawn(monkeypatch, PICTURES["architecture"]))
    for text in ("6x6x1", "conv", "3x3", "4x4x4", "36 weights", "64", "192 weights", "152 left"):
        assert text in found, text
    assert sum(text.endswith("left") for text in found) == 1


def test_architecture_of_a_subclassed_model_is_refused(tmp_path):
    class Subclassed(keras.Model):
        pass

    with pytest.raises(UnsupportedLayerError, match="subclassed"):
        pictures.architecture(Subclassed(), tmp_path / "a.png")


def test_sparse_convolution_shows_the_matrix(monkeypatch):
    found = texts(drawn(monkeypatch, pictures.sparse_convolution))
    # Each weight stands once in the kernel, and in the matrix once for each output where it meets the image.
    counts = {name: found.count(name) - 1 for name in pictures._names("w", 3).ravel()}
    assert counts == {"w11": 4, "w12": 6, "w13": 4, "w21": 6, "w22": 9, "w23": 6, "w31": 4, "w32": 6, "w33": 4}


def test_decimals():
    assert pictures._decimals(np.array([[0.0, -0.125, 1]])).tolist() == [["0", f"{pictures.MINUS}0.12", "1.00"]]
    assert pictures._decimals(np.array([[0.5]]), 3).tolist() == [["0.500"]]


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
    assert pictures._window(layer) == text


EXAMPLES = ["pruning.png", "sharing.png", "sparse-convolution-blocks.png", "sparse-convolution.png"]


def test_command_makes_the_examples_without_a_run(tmp_path):
    pictures.main(["--out", str(tmp_path / "imgs")])
    assert sorted(path.name for path in (tmp_path / "imgs").iterdir()) == EXAMPLES


def test_command_makes_all_pictures_of_two_runs(tmp_path):
    runs = [add_run(tmp_path / recipe, recipe).folder for recipe in ("seed", "reference")]
    pictures.main(["--out", str(tmp_path / "imgs"), *map(str, runs)])
    names = ["accuracy-seed", "accuracy-reference", "sparsity-seed", "sparsity-reference", "architecture"]
    expected = sorted(EXAMPLES + [f"{name}.png" for name in names])
    assert sorted(path.name for path in (tmp_path / "imgs").iterdir()) == expected


def test_unfinished_run_is_one_line_and_status_2(tmp_path, capsys):
    run = add_run(tmp_path / "run")
    run.discard_from("quantized")
    with pytest.raises(SystemExit) as stop:
        pictures.main(["--out", str(tmp_path / "imgs"), str(run.folder)])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error == f"pictures: No checkpoint in {run.stage('quantized').folder}: run quantize.py first.\n"
    assert not (tmp_path / "imgs").exists()
