"""Finds the random changes of images that the full network bears, for rounds of training to make."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import tensorflow as tf

from deepcomp.data import Part, leaves, mapped
from deepcomp.training.batches import Changes
from deepcomp.training.predict import rebuilt

_PIECE = 500  # examples that are changed at once
_LEAST_SIDE = 8  # of an image, in pixels; a shift is at most that part of the side
_ANGLES = 5.0, 10.0, 15.0  # degrees


def borne(none: Changes, held: Part, bears: Callable[[Part], bool], seed: int) -> Changes:
    """The largest changes, all made together, that `bears(held-out examples so changed)` holds for.

    Images are mirrored first, if that is borne, then moved farther and farther, then rotated. `none` are no changes of
    the images in question.
    """
    sides, found = none.sides(held.x), none
    if min(sides, default=0) < _LEAST_SIDE:
        return none
    for name, values in (("flip", [True]), ("shift", range(1, min(sides) // _LEAST_SIDE + 1)), ("rotate", _ANGLES)):
        for value in values:
            larger = replace(found, **{name: value})
            if not bears(_changed(held, larger, seed)):
                break
            found = larger
    return found


def _changed(part: Part, changes: Changes, seed: int) -> Part:
    """The examples with their images changed at random."""
    pieces = [
        mapped(np.asarray, changes.made(mapped(tf.constant, one.x), len(one), [seed, number], slice(None)))
        for number, one in enumerate(part.pieces(_PIECE))
    ]
    joined = (np.concatenate(arrays) for arrays in zip(*map(leaves, pieces), strict=True))
    return replace(part, x=rebuilt(part.x, joined))
