"""What goes into a network and comes out of it: how callers give inputs and get outputs."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from deepcomp.dcz.network import Form, Layer, Network, Shape
from deepcomp.errors import DataError, shape_text


def _reads_numbers(layer: Layer) -> bool:
    """Whether the inputs of a layer are whole numbers."""
    inner = layer.options.get("layer")
    return "Embedding" in (layer.kind, inner.kind if inner is not None else "")


class Ends(NamedTuple):
    """The inputs and outputs of a network: shapes without the batch, names of the inputs, and forms.

    Shapes have None for an open size; `sizes` tells those of given inputs, and the rest needs all of them fixed.

    An input of `whole` numbers takes any integers as they are. To another, uint8 is scaled to 0..1, unless the network
    `rescales` its inputs itself.
    """

    inputs: tuple[tuple, ...]
    outputs: tuple[tuple, ...]
    names: tuple[str, ...]
    input_form: Form
    output_form: Form
    whole: tuple[bool, ...]
    rescales: bool

    @classmethod
    def of(cls, network: Network, outputs: tuple[tuple, ...]) -> "Ends":
        """The inputs and outputs of a network, whose outputs have these shapes."""
        inputs = tuple(network.input_shapes)
        numbers = {source for layer in network.layers if _reads_numbers(layer) for source in layer.inputs}
        first = network.layers[: len(inputs)]
        whole = tuple(number in numbers or "int" in one.options["dtype"] for number, one in enumerate(first))
        return cls(
            inputs,
            outputs,
            tuple(layer.name for layer in first),
            network.input_form,
            network.output_form,
            whole,
            any(layer.kind == "Rescaling" for layer in network.layers),
        )

    @property
    def input_shape(self) -> tuple:
        """The shape of the input, or the shapes of all inputs."""
        return self.inputs[0] if len(self.inputs) == 1 else self.inputs

    @property
    def output_shape(self) -> tuple:
        """The shape of the output, or the shapes of all outputs."""
        return self.outputs[0] if len(self.outputs) == 1 else self.outputs

    @property
    def input_floats(self) -> int:
        """The numbers of all inputs of one example."""
        return sum(map(math.prod, self.inputs))

    @property
    def output_floats(self) -> int:
        """The numbers of all outputs of one example."""
        return sum(map(math.prod, self.outputs))

    def __str__(self) -> str:
        sides = (" and ".join(map(shape_text, shapes)) for shapes in (self.inputs, self.outputs))
        return " -> ".join(sides)

    def sizes(self, inputs: Any) -> tuple[Shape, ...]:
        """The shapes of given inputs, which have the open sizes of these. Raises `DataError`."""
        return tuple(self._shaped(array, number).shape[1:] for number, array in enumerate(self._listed(inputs)))

    def flat(self, inputs: Any) -> np.ndarray:
        """The inputs of all examples, `float32 (N, input_floats)` or `(N, *input_shape)`. Raises `DataError`."""
        arrays = [self._checked(array, number) for number, array in enumerate(self._listed(inputs))]
        if len(arrays) == 1:
            return arrays[0]
        counts = {len(array) for array in arrays}
        if len(counts) > 1:
            raise DataError(f"The inputs have {', '.join(str(len(array)) for array in arrays)} examples: give as many.")
        return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)

    def examples(self, count: int) -> np.ndarray:
        """Inputs for so many examples, `float32 (count, input_floats)`: random in 0..1, and 0 for whole numbers."""
        draw = np.random.default_rng(0)
        sizes = zip(map(math.prod, self.inputs), self.whole, strict=True)
        arrays = [draw.random((count, size), np.float32) * (not whole) for size, whole in sizes]
        return np.concatenate(arrays, axis=1, dtype=np.float32)

    def _listed(self, inputs: Any) -> list:
        if len(self.inputs) == 1 and not isinstance(inputs, Mapping):
            if isinstance(inputs, list | tuple) and len(inputs) == 1 and np.ndim(inputs[0]) == len(self.inputs[0]) + 1:
                (inputs,) = inputs
            return [inputs]
        keys = self.input_form or self.names
        if isinstance(inputs, Mapping):
            for names in (keys, self.names):
                if inputs.keys() == {*names}:
                    return [inputs[name] for name in names]
            raise DataError(f"The inputs are {', '.join(map(str, inputs))}: the network takes {', '.join(keys)}.")
        if not isinstance(inputs, list | tuple) or len(inputs) != len(self.inputs):
            got = f"{len(inputs)} arrays" if isinstance(inputs, list | tuple) else type(inputs).__name__
            raise DataError(f"The inputs are {got}: the network takes a list of {len(self.inputs)}, {', '.join(keys)}.")
        return [*inputs]

    def _checked(self, array: Any, number: int) -> np.ndarray:
        """An input as float32, C-contiguous."""
        array = self._array(array, number)
        called, kinds = self._called(number), "uib" if self.whole[number] else ""
        if array.dtype != np.uint8 and array.dtype.kind not in kinds and not np.issubdtype(array.dtype, np.floating):
            what = "of whole numbers" if kinds else "uint8 (0 to 255)"
            raise DataError(f"{called} are {array.dtype}: they must be {what} or float.")
        array = self._shaped(array, number)
        if array.dtype == np.uint8:
            array = array.astype(np.float32) / np.float32(1 if kinds or self.rescales else 255)
        return np.require(array, np.float32, ("C", "A", "W"))

    def _called(self, number: int) -> str:
        return "Images" if len(self.inputs) == 1 else f"The inputs {self.names[number]!r}"

    def _array(self, array: Any, number: int) -> np.ndarray:
        try:
            return np.asarray(array)
        except ValueError as error:
            raise DataError(f"{self._called(number)} must be an array: {error}.") from error

    def _shaped(self, array: Any, number: int) -> np.ndarray:
        """An input as an array of a shape that the network takes."""
        array, shape, called = self._array(array, number), self.inputs[number], self._called(number)
        own = array.shape[1:]
        if array.ndim and len(own) + 1 == len(shape) and shape[-1] == 1:
            own = (*own, 1)
        fits = array.ndim and len(own) == len(shape)
        if not fits or not all(wanted in (None, size) for wanted, size in zip(shape, own, strict=True)):
            sizes = "".join(f", {'?' if size is None else size}" for size in shape)
            raise DataError(f"{called} have the shape {array.shape}: the network takes (N{sizes}).")
        return array.reshape(len(array), *own)

    def split(self, outputs: np.ndarray) -> Any:
        """The outputs in the form in which the network gives them, from `float32 (N, output_floats)`."""
        count, arrays, first = len(outputs), [], 0
        for shape in self.outputs:
            size = math.prod(shape)
            arrays.append(np.ascontiguousarray(outputs[:, first : first + size]).reshape(count, *shape))
            first += size
        return dict(zip(self.output_form, arrays, strict=True)) if self.output_form else arrays
