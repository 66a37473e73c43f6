"""The order of hidden neurons: they can change places without changing what a network does.

So their order says nothing, yet n of them cost log2(n!) bits to tell apart. In the order that `coding.falling_order`
gives, the range coder need not spend them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from deepcomp import coding
from deepcomp.container import Layer, Network, Shared, entries
from deepcomp.kinds import KINDS

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
    users: list[list[int]] = [[] for _ in layers]
    for number, layer in enumerate(layers):
        for source in layer.inputs:
            users[source].append(number)
    for number in range(len(layers)):
        if not _weighs(layers[number]):
            continue
        path = list(_path(layers, users, number))
        if path and _weighs(layers[path[-1]]):
            order = coding.falling_order(entries(layers[number].weights["kernel"]))
            *between, reader = path
            for carrier in (number, *between):
                layers[carrier] = _turned(layers[carrier], dict.fromkeys(layers[carrier].weights, -1), order)
            layers[reader] = _turned(layers[reader], {"kernel": -2}, order)
    return replace(network, layers=tuple(layers))


def _weighs(layer: Layer) -> bool:
    return layer.kind in _WEIGHS and layer.options.get("groups", 1) == 1


def _path(layers: Sequence[Layer], users: Sequence[list[int]], number: int) -> Iterator[int]:
    """The layers after this one, each the only user of the one before, down to the first that is no carrier."""
    while len(users[number]) == 1:
        (number,) = users[number]
        yield number
        if layers[number].kind not in _CARRIES:
            return


def _turned(layer: Layer, axes: Mapping[str, int], order: np.ndarray) -> Layer:
    """A layer whose weights have their channels, along these axes, in this order."""
    return replace(layer, weights={**layer.weights, **{n: _taken(layer.weights[n], order, a) for n, a in axes.items()}})


def _taken(weight: Shared | np.ndarray, order: np.ndarray, axis: int) -> Shared | np.ndarray:
    if isinstance(weight, Shared):
        return Shared(weight.codebook, _taken(weight.indices, order, axis))
    pixels = weight.shape[axis] // len(order)  # behind a Flatten, each has all channels
    return np.take(weight, (np.arange(pixels)[:, None] * len(order) + order).ravel(), axis)
