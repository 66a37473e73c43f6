"""What tests of figures and pictures share."""

from functools import cache

import keras
import numpy as np
from PIL import Image

from deepcomp import drawing, models, tables
from deepcomp.experiment import figures, run_folder

FULL = {"step": [0, 25, 50], "accuracy": [None, 0.5, 0.9], "validation_accuracy": [0.1, 0.9, 0.941]}

ONE_SHOT = {"step": [0, 25, 50], "accuracy": [None, 0.5, 0.9], "validation_accuracy": [0.6894, 0.9, 0.9364]}

SHARED = {"step": [0, 25, 50], "accuracy": [None, 0.5, 0.9], "validation_accuracy": [0.8464, 0.9, 0.9218]}


def check_picture(draw, folder):
    """A picture is a PNG file of the project's width, and drawing it again gives the same bytes."""
    for name in ("one.png", "two.png"):
        draw(folder / name)
    data = (folder / "one.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert b"Software" not in data
    assert 5_000 < len(data) < 150_000
    assert data == (folder / "two.png").read_bytes()
    with Image.open(folder / "one.png") as image:
        assert image.width == 1080
        assert 150 < image.height < 1400
    assert sorted(path.name for path in folder.iterdir()) == ["one.png", "two.png"]


def texts(figure):
    """Every text in a figure or panel, inset axes too."""
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_text()]


def drawn(monkeypatch, draw):
    """The figure that `draw` would save."""
    kept = []
    monkeypatch.setattr(drawing.Figure, "savefig", lambda self, *_, **__: kept.append(self))
    monkeypatch.setattr(drawing.files, "write_atomically", lambda path, write: write(str(path)))
    draw("unused.png")
    return kept[0]


@cache
def small_network():
    layers = [keras.layers.Conv2D(4, 3, name="conv"), keras.layers.Flatten(), keras.layers.Dense(3, name="fc")]
    model = keras.Sequential([keras.Input((6, 6, 1)), *layers])
    kernel = model.get_layer("fc").kernel.numpy()
    model.get_layer("fc").kernel.assign(np.where(np.arange(kernel.size).reshape(kernel.shape) < 40, 0, kernel))
    return model


def add_run(folder, recipe="tiny"):
    """A run folder whose three training stages are done."""
    run, model = run_folder.Run(folder), small_network()
    for name, history in zip(figures.PARTS, (FULL, ONE_SHOT, SHARED), strict=True):
        layers = tables.layers(models.kernel_values(model))
        known = {"stage": name, "recipe": recipe, "data": {"name": "digits"}, "history": history, "layers": layers}
        record = {**dict.fromkeys(run_folder.RECORD_KEYS[0], 0), **known}
        run.stage(name).finish(record, model)
    return run
