"""Masks of sequences: which layers make them, pass them on and heed them, as Keras does when it runs a model.

A mask tells for each step of a sequence whether it counts. In Keras, a mask hangs on a tensor. Layers with an argument
`mask` take it from the graph, the others from the tensor, where a MultiHeadAttention that reads it takes it off.
"""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from deepcomp.dcz.codes import Shape
from deepcomp.dcz.network import Layer

Mask = TypeVar("Mask")

_RECURRENT = ("SimpleRNN", "LSTM", "GRU", "Bidirectional")
_QUERIES = ("MultiHeadAttention", "GroupedQueryAttention", "Attention", "AdditiveAttention")
_MERGES = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum")
_BY_ARGUMENT = (*_RECURRENT, "TimeDistributed", "GlobalAveragePooling1D", "BatchNormalization", "Softmax")
_PASSED_ON = (
    *("Dense", "BatchNormalization", "LayerNormalization", "GroupNormalization", "UnitNormalization"),
    *("Normalization", "Dropout", "Rescaling", "Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax"),
    *("TimeDistributed", *_QUERIES),
)
_UNKNOWN = ("Softmax", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")  # what a mask does to them is not reproduced
HEEDED = (*_RECURRENT, *_QUERIES, "GlobalAveragePooling1D")


class Masks(Generic[Mask]):
    """Follows masks through the layers of a network, in their order.

    `make(number)` is the mask that layer `number` makes, `either(a, b)` one that is set where one of two is, and
    `join(number, masks)` that of layer `number`, which puts sequences one after the other; None is no mask.
    `check(number, masks)` may refuse the masks that layer `number` gets, before they are used.
    """

    def __init__(
        self,
        make: Callable[[int], Mask],
        either: Callable[[Mask, Mask], Mask],
        join: Callable[[int, list[Mask | None]], Mask],
        check: Callable[[int, list[Mask | None]], None] = lambda number, given: None,
    ):
        self._make, self._either, self._join, self._check = make, either, join, check
        self._in_graph: list[Mask | None] = []  # of each layer
        self._tensors: list[int] = []  # the layer whose output it is that a layer puts out
        self._on_tensor: list[Mask | None] = []

    def enter(self, layer: Layer) -> list[Mask | None]:
        """The masks that the next layer gets with its inputs."""
        number = len(self._in_graph)
        graph = [self._in_graph[source] for source in layer.inputs]
        tensors = [self._tensors[source] for source in layer.inputs]
        given = graph if layer.kind in _BY_ARGUMENT else [self._on_tensor[tensor] for tensor in tensors]
        if any(mask is not None for mask in given):
            self._check(number, given)
        after = self._after(number, layer, given)
        same = all(a is b for a, b in zip(given, graph, strict=True))
        self._in_graph.append(after if same else self._after(number, layer, graph))
        if layer.kind == "MultiHeadAttention":
            for tensor in tensors:
                self._on_tensor[tensor] = None
        passes = layer.kind == "Dropout" or (layer.options.get("activation") == "linear" and layer.kind == "Activation")
        self._tensors.append(tensors[0] if passes else number)
        self._on_tensor.append(after)
        return given

    @property
    def last(self) -> Mask | None:
        """The mask of the output of the last layer."""
        return self._on_tensor[-1]

    def _after(self, number: int, layer: Layer, given: Sequence[Mask | None]) -> Mask | None:
        """The mask of the output of a layer that gets these."""
        kind, options = layer.kind, layer.options
        if kind == "Masking" or (kind == "Embedding" and options["mask_zero"]):
            return self._make(number)
        if kind in _PASSED_ON:
            return given[0]
        if kind in _RECURRENT:
            inner = options["layer"].options if kind == "Bidirectional" else options
            return given[0] if inner["return_sequences"] else None
        known = [mask for mask in given if mask is not None]
        if kind == "Concatenate" and known and options["axis"] == 1:
            return self._join(number, list(given))
        if kind in (*_MERGES, "Concatenate") and known and len(known) == len(given):
            mask = known[0]
            for other in known[1:]:
                mask = mask if mask is other else self._either(mask, other)
            return mask
        return None


def mask_shape(layer: Layer, inputs: Sequence[Shape]) -> Shape:
    """The shape of the mask that an Embedding or a Masking makes; one vector alone is one step."""
    return inputs[0] if layer.kind == "Embedding" else inputs[0][:-1] or (1,)


def is_heeded(layer: Layer, inputs: Sequence[Shape], masks: Sequence[Shape | None]) -> bool:
    """Whether the engine does with masks what Keras does, for a layer that gets some, of these shapes."""
    if layer.kind in _UNKNOWN:
        return False
    known = [(shape, mask) for shape, mask in zip(inputs, masks, strict=True) if mask is not None]
    if layer.kind == "TimeDistributed":
        inner = layer.options["layer"]
        output, _ = inner.plan(inputs[0][1:])
        keeps = len(output) + 1 == len(inputs[0]) or len(known[0][1]) == 1
        return keeps and inner.kind not in (*HEEDED, *_UNKNOWN, "TimeDistributed")
    if layer.kind in HEEDED:
        return len(inputs[0]) == 2 and all(mask == shape[:-1] for shape, mask in known)
    if layer.kind == "Concatenate":
        return len(inputs[0]) == 2
    return layer.kind not in _MERGES or len({len(mask) for _, mask in known}) == 1


def passes_on(layer: Layer) -> bool:
    """Whether a layer in place of an operation would pass a mask on, which an operation does not."""
    return layer.kind in (*_PASSED_ON, *_MERGES, "Concatenate")
