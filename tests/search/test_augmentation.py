"""Which random changes of images a search lets training make."""

import keras
import numpy as np
import pytest

import deepcomp
from deepcomp.data import DataSet, Part
from deepcomp.search import augmentation
from deepcomp.training.batches import Changes

IMAGES = np.random.default_rng(0).integers(0, 255, (40, 24, 32, 1)).astype(np.uint8)


def test_changes_grow_until_they_are_not_borne():
    tried = []

    def bears(changed):
        tried.append(changed.x)
        assert (changed.x.shape, changed.x.dtype) == (IMAGES.shape, np.uint8)
        return len(tried) not in (1, 4)  # neither mirrored, nor moved by three pixels

    found = augmentation.borne(Changes(), Part(IMAGES), bears, seed=0)
    assert found == Changes(shift=2, rotate=15.0)
    assert len(tried) == 7
    assert not np.array_equal(tried[1], IMAGES)


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (IMAGES, Changes(flip=True, shift=3, rotate=15.0)),
        (IMAGES[:, :16], Changes(flip=True, shift=2, rotate=15.0)),
        (IMAGES[:, :7], Changes()),
        (IMAGES[:, 0, :, 0], Changes()),
        ({"image": IMAGES, "other": IMAGES[:, 0, :4, 0]}, Changes(flip=True, shift=3, rotate=15.0)),
    ],
)
def test_a_shift_is_small_and_what_is_no_image_is_left_alone(x, found):
    assert augmentation.borne(Changes(), Part(x), lambda changed: True, seed=0) == found


def test_flat_images_are_changed_too():
    found = augmentation.borne(Changes(image_shape=(8, 8, 1)), Part(IMAGES[:, :2].reshape(40, 64)), lambda *_: True, 0)
    assert (found.flip, found.shift, found.rotate) == (True, 1, 15.0)


def left_or_right(count, seed):
    """Images with a bright bar on one side, and which side it is on."""
    rng = np.random.default_rng(seed)
    images, labels = rng.normal(0, 0.05, (count, 16, 16, 1)).astype(np.float32), rng.integers(0, 2, count)
    images[labels == 0, 3:13, 3:5] += 1
    images[labels == 1, 3:13, 11:13] += 1
    return images, labels


@pytest.fixture(scope="module")
def sides():
    """A network that tells the sides apart."""
    model = keras.Sequential([keras.Input((16, 16, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    rows = np.zeros((16, 16, 2), np.float32)
    rows[:, :8, 0] = rows[:, 8:, 1] = 1
    model.layers[-1].set_weights([rows.reshape(256, 2), np.zeros(2, np.float32)])
    return model


def test_a_search_makes_the_changes_that_the_full_network_bears(sides):
    """A mirrored image would be of the other class; one that is moved or rotated a little is not."""
    data = DataSet.of(left_or_right(400, 0), left_or_right(200, 1))
    how = {"steps": 60, "rounds": 1, "verbose": False}
    notes = deepcomp.compress(sides, data, **how).report.notes
    assert (
        "Images were moved by up to 2 pixels, rotated by up to 15 degrees in training, as the full network" in notes[0]
    )
    for other in ({"augment": False}, {"shift": 1}, {"flip": True}, {"train": False}):
        assert not any("Images" in note for note in deepcomp.compress(sides, data, **how, **other).report.notes)
