"""What two networks have in common: their layers, and their weights to the bit."""

import numpy as np

from deepcomp.dcz.network import Layer, Network, values
from deepcomp.errors import shape_text


def differences(first: Network, second: Network) -> list[str]:
    """Each way in which two networks differ, one line each; none for the same network.

    Layers are compared in order, and weights bit by bit, where their layers are of one kind.
    """
    found = []
    for what, one, other in (
        ("name", first.name, second.name),
        ("inputs", first.input_shapes, second.input_shapes),
        ("outputs", first.outputs, second.outputs),
        ("form of the inputs", first.input_form, second.input_form),
        ("form of the outputs", first.output_form, second.output_form),
        ("number of layers", len(first.layers), len(second.layers)),
    ):
        if one != other:
            found.append(f"{what}: {one!r} and {other!r}")
    for number, (one, other) in enumerate(zip(first.layers, second.layers, strict=False)):
        found += _of_layers(number, one, other)
    return found


def _of_layers(number: int, one: Layer, other: Layer) -> list[str]:
    said = f"layer {number}, {one.name}"
    if one.kind != other.kind:
        return [f"{said}: of kind {one.kind} and, as {other.name}, of kind {other.kind}"]
    pairs = [("named", one.name, other.name), ("takes layers", one.inputs, other.inputs)]
    pairs += [(name, one.options[name], other.options[name]) for name in one.options]
    pairs.append(("is a call of layer", one.same_as, other.same_as))
    found = [f"{said}: {what} {a!r} and {b!r}" for what, a, b in pairs if a != b]
    for name in sorted(one.weights.keys() | other.weights.keys()) if one.same_as is None else ():
        if name not in one.weights or name not in other.weights:
            found.append(f"{said}: {name} is in the {'first' if name in one.weights else 'second'} alone")
        else:
            found += differing(f"{said}: {name}", values(one.weights[name]), values(other.weights[name]))
    return found


def differing(said: str, one: np.ndarray, other: np.ndarray) -> list[str]:
    """A line if two arrays are not the same to the bit, which begins with what is `said`."""
    if one.shape != other.shape:
        return [f"{said} has the shapes {shape_text(one.shape)} and {shape_text(other.shape)}"]
    differ = one.view(np.uint32) != other.view(np.uint32)
    if not differ.any():
        return []
    most = np.abs(one.astype(np.float64) - other).max()
    return [f"{said} has {np.count_nonzero(differ):,} of {one.size:,} values that differ, by at most {most:.3g}"]
