"""Hidden neurons: they can change places, and those that nobody reads can go, without changing what a network does.

So their order says nothing, yet n of them cost log2(n!) bits to tell apart. In the order that `coding.falling_order`
gives, the range coder need not spend them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from deepcomp.dcz import coding
from deepcomp.dcz.kinds import KINDS
from deepcomp.dcz.network import Layer, Network, Shared, entries

_WEIGHS = ("Dense", "Conv1D", "Conv2D")
_CARRIES = (
    *(kind for kind, entry in KINDS.items() if entry.keeps),
    *(kind for kind in KINDS if "Pooling" in kind or kind.startswith("ZeroPadding")),
    "Flatten",
)


def fall(network: Network) -> Network:
    """The same network, the outputs of each hidden kernel in falling order.

    Outputs change places where one other kernel takes them all, over layers that treat every channel alike: theirs
    are kernel, bias, what normalizes them, and the inputs of the other kernel. Results differ by rounding at most.
    """
    layers = list(network.layers)
    for number, path in _hidden(layers):
        _take(layers, number, path, coding.falling_order(entries(layers[number].weights["kernel"])))
    return replace(network, layers=tuple(layers))


def drop_unread(network: Network) -> Network:
    """The same network without the outputs of hidden kernels of which the kernel that takes them kept no weight.

    Outputs that a softmax compares stay, and of a kernel of which nothing is read the first one does.
    """
    layers = list(network.layers)
    for number, path in reversed([*_hidden(layers)]):  # what goes reads nothing more
        if any(_compares(layers[carrier]) for carrier in (number, *path[:-1])):
            continue
        units = entries(layers[number].weights["kernel"]).shape[-1]
        taken = np.moveaxis(entries(layers[path[-1]].weights["kernel"]), -2, 0) != 0
        read = taken.reshape(-1, units, taken[0].size).any(axis=(0, 2))
        read[0] |= not read.any()
        if not read.all():
            _take(layers, number, path, np.flatnonzero(read))
    return replace(network, layers=tuple(layers))


def _hidden(layers: Sequence[Layer]) -> Iterator[tuple[int, list[int]]]:
    """Each hidden kernel, and the way from it to the kernel that alone takes its outputs."""
    users: list[list[int]] = [[] for _ in layers]
    for number, layer in enumerate(layers):
        for source in layer.inputs:
            users[source].append(number)
    for number in range(len(layers)):
        if _weighs(layers[number]):
            path = list(_path(layers, users, number))
            if path and _weighs(layers[path[-1]]):
                yield number, path


def _take(layers: list[Layer], number: int, path: Sequence[int], order: np.ndarray) -> None:
    """Give a hidden kernel those of its outputs that `order` says, in this order, and what is on their way the same."""
    units = entries(layers[number].weights["kernel"]).shape[-1]
    *between, reader = path
    for carrier in (number, *between):
        layers[carrier] = _turned(layers[carrier], dict.fromkeys(layers[carrier].weights, -1), order, units)
    layers[reader] = _turned(layers[reader], {"kernel": -2}, order, units)
    if len(order) < units:
        name = "units" if layers[number].kind == "Dense" else "filters"
        layers[number] = replace(layers[number], options={**layers[number].options, name: len(order)})


def _weighs(layer: Layer) -> bool:
    return layer.kind in _WEIGHS and layer.options.get("groups", 1) == 1


def _compares(layer: Layer) -> bool:
    """Whether one output depends on the others."""
    return layer.kind == "Softmax" or layer.options.get("activation") == "softmax"


def _path(layers: Sequence[Layer], users: Sequence[list[int]], number: int) -> Iterator[int]:
    """The layers after this one, each the only user of the one before, down to the first that is no carrier."""
    while len(users[number]) == 1:
        (number,) = users[number]
        yield number
        if layers[number].kind not in _CARRIES:
            return


def _turned(layer: Layer, axes: Mapping[str, int], order: np.ndarray, units: int) -> Layer:
    """A layer whose weights have of `units` channels, along these axes, those of `order`."""
    taken = {name: _taken(layer.weights[name], order, axis, units) for name, axis in axes.items()}
    return replace(layer, weights={**layer.weights, **taken})


def _taken(weight: Shared | np.ndarray, order: np.ndarray, axis: int, units: int) -> Shared | np.ndarray:
    if isinstance(weight, Shared):
        return Shared(weight.codebook, _taken(weight.indices, order, axis, units))
    pixels = weight.shape[axis] // units  # behind a Flatten, each has all channels
    return np.take(weight, (np.arange(pixels)[:, None] * units + order).ravel(), axis)
