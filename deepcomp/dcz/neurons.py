"""Hidden neurons: they can be reordered, and unused ones removed, without changing what a network computes.

Because the order carries no information, it should cost no bits; an arbitrary order of n neurons costs log2(n!) bits.
In the order of `coding.descending_order` the range coder does not spend them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from deepcomp.dcz import coding
from deepcomp.dcz.kinds import KINDS
from deepcomp.dcz.network import Layer, Network, SharedWeight, entries

_WITH_NEURONS = ("Dense", "Conv1D", "Conv2D")
# Layers that treat every channel alike and on its own.
_CHANNELWISE = (
    *(kind for kind, entry in KINDS.items() if entry.keeps),
    *(kind for kind in KINDS if "Pooling" in kind or kind.startswith("ZeroPadding")),
    "Flatten",
)


def order_neurons(network: Network) -> Network:
    """The same network with the outputs of each hidden kernel in descending order.

    Outputs are reordered if one other kernel reads them all, with only channelwise layers in between. The kernel, its
    bias, the weights of the layers in between and the inputs of the other kernel are reordered together. Outputs of
    the network differ by rounding at most.
    """
    layers = list(network.layers)
    for number, path in _hidden(network, layers):
        _select(layers, number, path, coding.descending_order(entries(layers[number].weights["kernel"])))
    return replace(network, layers=tuple(layers))


def remove_unused(network: Network) -> Network:
    """The same network without the outputs of hidden kernels that no weight of the next kernel reads.

    Outputs that a softmax compares stay. If no output of a kernel is read, its first one stays.
    """
    layers = list(network.layers)
    for number, path in reversed([*_hidden(network, layers)]):  # the neurons before may become unused
        if any(_is_softmax(layers[other]) for other in (number, *path[:-1])):
            continue
        units = entries(layers[number].weights["kernel"]).shape[-1]
        nonzero = np.moveaxis(entries(layers[path[-1]].weights["kernel"]), -2, 0) != 0
        read = nonzero.reshape(-1, units, nonzero[0].size).any(axis=(0, 2))
        read[0] |= not read.any()
        if not read.all():
            _select(layers, number, path, np.flatnonzero(read))
    return replace(network, layers=tuple(layers))


def _hidden(network: Network, layers: Sequence[Layer]) -> Iterator[tuple[int, list[int]]]:
    """Each hidden kernel, and the path from it to the only kernel that reads its outputs."""
    users: list[list[int]] = [[] for _ in layers]
    for number, layer in enumerate(layers):
        for source in layer.inputs:
            users[source].append(number)
    for number in network.outputs:
        users[number] += [number] * 2  # an output is read from outside: no path goes through it
    called = [number for number, layer in enumerate(layers) if layer.same_as is not None]
    often = {*called, *(layers[number].same_as for number in called)}
    for number in range(len(layers)):
        if _has_neurons(layers[number]):
            path = list(_path(layers, users, number))
            if path and _has_neurons(layers[path[-1]]) and not often & {number, *path}:
                yield number, path


def _select(layers: list[Layer], number: int, path: Sequence[int], order: np.ndarray) -> None:
    """Keep the outputs `order` of a hidden kernel, in this order, in the kernel and in all layers of its path."""
    units = entries(layers[number].weights["kernel"]).shape[-1]
    *between, reader = path
    for other in (number, *between):
        layers[other] = _with_channels(layers[other], dict.fromkeys(layers[other].weights, -1), order, units)
    layers[reader] = _with_channels(layers[reader], {"kernel": -2}, order, units)
    if len(order) < units:
        name = "units" if layers[number].kind == "Dense" else "filters"
        layers[number] = replace(layers[number], options={**layers[number].options, name: len(order)})


def _has_neurons(layer: Layer) -> bool:
    return layer.kind in _WITH_NEURONS and layer.options.get("groups", 1) == 1


def _is_softmax(layer: Layer) -> bool:
    """Whether each output depends on the other outputs."""
    return layer.kind == "Softmax" or layer.options.get("activation") == "softmax"


def _path(layers: Sequence[Layer], users: Sequence[list[int]], number: int) -> Iterator[int]:
    """The layers after this one, each the only user of the one before, up to the first that is not channelwise."""
    while len(users[number]) == 1:
        (number,) = users[number]
        yield number
        if layers[number].kind not in _CHANNELWISE:
            return


def _with_channels(layer: Layer, axes: Mapping[str, int], order: np.ndarray, units: int) -> Layer:
    """A layer whose weights keep, along these axes of `units` channels, the channels `order`."""
    chosen = {name: _channels(layer.weights[name], order, axis, units) for name, axis in axes.items()}
    return replace(layer, weights={**layer.weights, **chosen})


def _channels(weight: SharedWeight | np.ndarray, order: np.ndarray, axis: int, units: int) -> SharedWeight | np.ndarray:
    if isinstance(weight, SharedWeight):
        return SharedWeight(weight.codebook, _channels(weight.indices, order, axis, units))
    pixels = weight.shape[axis] // units  # Behind a Flatten, every pixel has all channels.
    return np.take(weight, (np.arange(pixels)[:, None] * units + order).ravel(), axis)
