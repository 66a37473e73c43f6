"""The steps of an exported network: each node of its graph becomes calls of the kernels in `kernels.c`."""

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import numpy as np

from deepcomp.dcz.network import entries
from deepcomp.errors import FormatError
from deepcomp.export.memory import Memory, Walk, arranged_like, in_order, planar, walks, without_margins
from deepcomp.export.tables import Tables, kernel, number, record, row, vector, whole_table
from deepcomp.runtime.graph import Function, Graph, Node, Value, Window, grid_of
from deepcomp.runtime.moves import BUFFER_BITS, affine, buffers_of
from deepcomp.runtime.rows import (
    ADD,
    AVERAGE_POOL,
    CELL,
    CONVOLUTION,
    COPY,
    DENSE,
    FUNCTIONS,
    GATES,
    GATHER,
    GRU,
    INPUT,
    LSTM,
    MAP,
    MATMUL,
    MAX_POOL,
    MAXIMUM,
    MERGES,
    MINIMUM,
    MULTIPLY,
    NORMALIZE,
    POOLS,
    REDUCE_MAX,
    SCALE,
    SIMPLE,
    SOFTMAX,
    SUBTRACT,
    UPDATE,
)
from deepcomp.runtime.vectors import AVERAGE, MAX, NONE

T = TypeVar("T")

_MERGES = {ADD: "add", MULTIPLY: "multiply", SUBTRACT: "subtract", MAXIMUM: "maximum", MINIMUM: "minimum"}
_POOLS = {MAX_POOL: 0, REDUCE_MAX: 1, AVERAGE_POOL: 2}
_FUNCTIONS = {number: name for name, number in FUNCTIONS.items()}
_MOST_POSITIONS = 2**31 - 2  # that an int of C holds
_POOLED = {NONE: 0, MAX: 1, AVERAGE: 2}
_CELLS = {SIMPLE: 0, LSTM: 1, GRU: 2, UPDATE: 3}


class Step(NamedTuple):
    """A statement of C with the places that it names, and the layer that it belongs to."""

    layer: str
    text: str
    target: int
    sources: tuple[int, ...]


class Program:
    """All that C needs to run a graph: tables, memory, steps, and the kernels that are used."""

    def __init__(self, graph: Graph, coded: bool = False) -> None:
        self.tables, self.memory = Tables(coded), Memory()
        self.steps: list[Step] = []
        self.kernels: set[str] = set()
        self.input_size = sum(math.prod(node.shape) for node in graph.nodes if node.op == INPUT)
        self._input = self.memory.add(self.input_size, "input")
        self._places: dict[Value | Node, np.ndarray] = {}
        self._layer = ""
        make = {CONVOLUTION: self._convolution, DENSE: self._dense, SCALE: self._scale, MAP: self._map}
        make |= {SOFTMAX: self._softmax, NORMALIZE: self._normalize, MATMUL: self._matmul, COPY: self._copy_node}
        make |= {GATHER: self._gather, CELL: self._recurrent}
        make |= dict.fromkeys(MERGES, self._merge) | dict.fromkeys(POOLS, self._pool)
        for node in graph.nodes:
            self._layer = node.layer
            if node.op == INPUT:
                self._places[node] = in_order(node.shape, self._input + node.first)
            else:
                make[node.op](node)
        self._layer = ""
        self.output_size = self._put_out(graph.outputs)
        self.memory.allocate()

    # Places

    def _of(self, value: Value) -> np.ndarray:
        """The places of a value; a padded one is written first."""
        needed = [value]  # a recursion would be too deep for long chains of views
        while needed:
            one = needed[-1]
            if self._known(one) is not None:
                needed.pop()
                continue
            missing = [part for part in one.parts if self._known(part) is None]
            if missing:
                needed += missing
            elif one.margins is not None:
                self._places[one] = self._padded(one)
            else:
                self._places[one] = _given(one.arrange)(*map(self._known, one.parts))
        return _given(self._known(value))

    def _known(self, value: Value) -> np.ndarray | None:
        return self._places.get(value if value.node is None else value.node)

    def _padded(self, value: Value) -> np.ndarray:
        top, _, left, _ = _given(value.margins)
        (inner,) = value.parts
        rows, columns, _ = grid = grid_of(inner.shape)
        base = self.memory.add(math.prod(value.shape))
        places = planar(value.shape, base)
        self._add("zero", f"zero({{to}}, {places.size});", base)
        target = places.reshape(grid_of(value.shape))[top : top + rows, left : left + columns]
        self._copy(target, _given(self._known(inner)).reshape(grid))
        return places

    def _affine(self, value: Value, shape: Sequence[int]) -> tuple[int, tuple[int, ...]]:
        """The first place of a value in a shape, and the step along each axis; it is copied if need be."""
        places = self._of(value).reshape(shape)
        first, steps = affine(places)
        if steps is None:
            first, steps = affine(self._copied(places))
        return first, _given(steps)

    def _side_by_side(self, value: Value) -> np.ndarray:
        """The places of a value whose last axes lie row by row, one after the other; it is copied if need be."""
        places = self._of(value)
        same = np.array_equal(places, in_order(places.shape, int(places.flat[0]))) and len(buffers_of(places)) < 2
        return places if same else self._copied(places)

    def _copied(self, places: np.ndarray) -> np.ndarray:
        """The places of a copy, in the order of the elements."""
        target = in_order(places.shape, self.memory.add(places.size))
        self._copy(target, places)
        return target

    # Steps

    def _add(self, kernel: str, text: str, target: int, *sources: int) -> None:
        """Append a call of a kernel: in its text, `{to}` stands for the target, `{0}` and so on for the sources."""
        self.kernels.add(kernel)
        for place in (target, *sources):
            self.memory.use(len(self.steps), place)
        self.steps.append(Step(self._layer, text, target, sources))

    def _copy(self, target: np.ndarray, source: np.ndarray) -> None:
        found = walks(target, source)
        for walk in found or ():
            self._add("copy", f"copy({{to}}, {{0}}, &{self._walk(walk)});", *walk.firsts)
        if found is not None:
            return
        # Walks would be too many: tables of places, one for each buffer that is read.
        for buffer in buffers_of(source):
            own = source >> BUFFER_BITS == buffer
            places = target[own], source[own]
            firsts = [int(one.min()) for one in places]
            names = [
                self.tables.add(self._name(f"places_{end}"), (one - first).astype(np.uint32))
                for end, one, first in zip(("to", "from"), places, firsts, strict=True)
            ]
            self._add("pick", f"pick({{to}}, {{0}}, {', '.join(names)}, {places[0].size});", *firsts)

    def _elementwise(self, node: Node, kernel: str, arguments: str, *arrays: np.ndarray) -> None:
        """A kernel that walks over the output, the first input and perhaps another array."""
        source, *others = (np.broadcast_to(one, node.shape) for one in arrays)
        target = self._places[node] = arranged_like(source, self.memory.add(source.size))
        found = walks(target, source, *others)
        if found is None:
            copies = [self._copied(source), *(self._copied(one) if kernel != "scale" else one for one in others)]
            target = self._places[node] = in_order(node.shape, self.memory.add(source.size))
            found = walks(target, *copies, most=math.inf)
        for walk in _given(found):
            to, first, *rest = walk.firsts
            own = arguments.format(
                "{to}", "{0}", "{1}", walk=self._walk(walk), at=f" + {rest[0]}" if rest and rest[0] else ""
            )
            self._add(kernel, f"{kernel}({own});", to, first, *(rest if kernel != "scale" else ()))

    def _scale(self, node: Node) -> None:
        scales, shifts = np.broadcast_arrays(_given(node.scale), _given(node.shift))
        numbers = np.arange(scales.size).reshape(scales.shape)
        names = [
            self.tables.add(self._name(what), array.ravel().astype(np.float32))
            for what, array in (("scales", scales), ("shifts", shifts))
        ]
        own = ", ".join(f"{name}{{at}}" for name in names)
        arguments = f"{{0}}, {{1}}, {own}, &{{walk}}, {_clamp(node)}"
        self._elementwise(node, "scale", arguments, self._of(node.inputs[0]), numbers)

    def _merge(self, node: Node) -> None:
        arguments = f"{{0}}, {{1}}, {{2}}, &{{walk}}, {_clamp(node)}"
        self._elementwise(node, _MERGES[node.op], arguments, *map(self._of, node.inputs))

    def _map(self, node: Node) -> None:
        function, parameters = self._function((node.function, node.parameters))
        arguments = f"{{0}}, {{1}}, &{{walk}}, {function}, {parameters}"
        self._elementwise(node, "map", arguments, self._of(node.inputs[0]))

    def _copy_node(self, node: Node) -> None:
        self._places[node] = self._copied(self._of(node.inputs[0]))

    def _function(self, function: Function) -> tuple[str, str]:
        """The name of a function of one number, and that of its parameters."""
        kind, parameters = function
        self.kernels.add(_FUNCTIONS[kind])
        array = np.array(parameters, np.float32)
        return f"{_FUNCTIONS[kind]}_of", self.tables.add(self._name("parameters"), array) if parameters else "0"

    def _rows(self, node: Node, kernel: str, arguments: str) -> None:
        """A kernel of rows that lie side by side."""
        source = self._side_by_side(node.inputs[0])
        target = self._places[node] = in_order(node.shape, self.memory.add(source.size))
        columns = node.shape[-1]
        sizes = f"{source.size // columns}, {columns}"
        self._add(kernel, f"{kernel}({{to}}, {{0}}, {sizes}{arguments});", int(target.flat[0]), int(source.flat[0]))

    def _softmax(self, node: Node) -> None:
        self._rows(node, "softmax", "")

    def _normalize(self, node: Node) -> None:
        self._rows(node, "normalize", f", {node.function}, {number(node.parameters[0])}")

    def _matmul(self, node: Node) -> None:
        *batch, rows, columns = node.shape
        matrices = [self._affine(value, (math.prod(batch), *value.shape[-2:])) for value in node.inputs]
        target = self._places[node] = in_order(node.shape, self.memory.add(math.prod(node.shape)))
        sizes = {"batch": math.prod(batch), "rows": rows, "inner": node.inputs[0].shape[-1], "columns": columns}
        steps = {end: row(steps) for end, (_, steps) in zip(("from", "other"), matrices, strict=True)}
        name = self._struct("products", {**sizes, **steps}, 10)
        self._add(
            "matmul", f"matmul(&{name}, {{to}}, {{0}}, {{1}});", int(target.flat[0]), *(one for one, _ in matrices)
        )

    def _pool(self, node: Node) -> None:
        window, (height, width, channels) = _given(node.window), grid_of(node.inputs[0].shape)
        source, (pitch, step, plane) = self._affine(node.inputs[0], (height, width, channels))
        fields = {"kind": _POOLS[node.op], "channels": channels, "height": height, "width": width}
        fields |= {"plane": plane, "pitch": pitch, "step": step} | _of_window(window)
        target = self.memory.add(math.prod(node.shape))
        self._places[node] = planar(node.shape, target)
        self._add("pool", f"pool(&{self._struct('pooling', fields, 15)}, {{to}}, {{0}});", target, source)

    def _convolution(self, node: Node) -> None:
        window, kernel = _given(node.window), entries(_given(node.kernel))
        inner, margins = without_margins(node.inputs[0])
        height, width, channels = grid_of(inner.shape)
        source, (pitch, step, plane) = self._affine(inner, (height, width, channels))
        unit, channel, i, j = np.nonzero(kernel.transpose(3, 2, 0, 1))
        area = kernel.shape[0] * kernel.shape[1]
        taps = kernel.shape[2] * area
        positions = unit * taps + channel * area + i * kernel.shape[1] + j
        per_group = kernel.shape[3] // node.groups
        fields = self._product(node, kernel[i, j, channel, unit], positions, kernel.shape[3], taps)
        fields["pool"] = _POOLED[node.pool]
        fields |= {"height": height, "width": width, "plane": plane, "pitch": pitch, "step": step}
        fields |= _of_window(window, margins)
        fields |= {"rate_y": window.dilation[0], "rate_x": window.dilation[1], "channels": kernel.shape[2]}
        fields |= {"per_group": per_group, "low": number(node.low), "high": number(node.high)}
        sources, added, line = [source], "0", "0"
        if node.addend is not None:
            places = self._of(node.addend)
            first = int(places.min())
            if not np.array_equal(places, planar(places.shape, first)) or len(buffers_of(places)) > 1:
                first = self.memory.add(places.size)
                self._copy(planar(places.shape, first), places)
            sources, added = [source, first], "{1}"
        if node.pool != NONE:
            sources.append(self.memory.add(math.prod(window.counts)))
            line = f"{{{len(sources) - 1}}}"
        target = self.memory.add(math.prod(node.shape))
        self._places[node] = planar(node.shape, target)
        name = self._struct("convolution", fields, 27)
        self._add("convolve", f"convolve(&{name}, {{to}}, {{0}}, {line}, {added});", target, *sources)

    def _product(self, node: Node, values: np.ndarray, positions: np.ndarray, units: int, taps: int) -> dict[str, Any]:
        """The fields that convolutions and dense layers share, given the entries that are not 0 and where they are."""
        if units * taps > _MOST_POSITIONS:
            raise FormatError(f"The layer {node.layer!r} is too large for C: it has {units * taps:,} weights.")
        fields: dict[str, Any] = {"kernel": kernel(self.tables, self._name, _given(node.kernel), values, positions)}
        for what, array, neutral in (("scales", _given(node.scale), 1), ("shifts", _given(node.shift), 0)):
            if (array != neutral).any():
                fields[what] = vector(self.tables, lambda part, of=what: self._name(f"{of}_{part}"), array)
        return {**fields, "units": units}

    def _dense(self, node: Node) -> None:
        """A convolution whose window has one position is a dense layer of the inputs in that window."""
        window, kernel = _given(node.window), entries(_given(node.kernel))
        grid = rows, columns, _ = grid_of(node.inputs[0].shape)
        places = self._of(node.inputs[0])
        if len(buffers_of(places)) > 1:
            places = self._copied(places)
        places, source = places.reshape(grid), int(places.min())
        i, j, channel, unit = np.nonzero(kernel)
        y = i * window.dilation[0] - window.before[0]
        x = j * window.dilation[1] - window.before[1]
        inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
        i, j, channel, unit, y, x = (one[inside] for one in (i, j, channel, unit, y, x))
        group = unit // (kernel.shape[3] // node.groups)
        taps = places[y, x, channel + group * kernel.shape[2]] - source
        span = int(places.max()) - source + 1
        name = self._struct("layer", self._layer_fields(node, kernel[i, j, channel, unit], taps, unit, span), 12)
        target = self.memory.add(math.prod(node.shape))
        self._places[node] = in_order(node.shape, target)
        self._add("dense", f"dense(&{name}, {{to}}, {{0}});", target, source)

    def _layer_fields(
        self, node: Node, values: np.ndarray, taps: np.ndarray, unit: np.ndarray, span: int
    ) -> dict[str, Any]:
        """The fields of a dense layer, given the entries that are not 0, and the input and unit of each."""
        positions = unit * span + taps
        order = np.argsort(positions)
        fields = self._product(node, values[order], positions[order], _given(node.scale).size, span)
        return fields | {"taps": span, "low": number(node.low), "high": number(node.high)}

    def _gather(self, node: Node) -> None:
        count, units = math.prod(node.shape[:-1]), node.shape[-1]
        source, (step,) = self._affine(node.inputs[0], (count,))
        table = entries(_given(node.kernel))
        name = self._struct("weights", whole_table(self.tables, self._name, _given(node.kernel)), 5)
        target = self._places[node] = in_order(node.shape, self.memory.add(count * units))
        text = f"gather({{to}}, {{0}}, &{name}, {table.shape[0]}, {units}, {count}, {step});"
        self._add("gather", text, int(target.flat[0]), source)

    def _recurrent(self, node: Node) -> None:
        count, units = node.shape
        kernel, gates = entries(_given(node.kernel)), node.inputs[0].shape[-1]
        source, (time, gate) = self._affine(node.inputs[0], (count, gates))
        scale, shift = _given(node.scale), _given(node.shift)
        fields: dict[str, Any] = {}
        parts = (0, 2 * units, 3 * units) if node.function == UPDATE else (0, GATES[node.function] * units)
        for what, (first, last) in zip(("product", "second"), pairwise(parts), strict=False):
            tap, unit = np.nonzero(kernel[:, first:last])
            own = replace(node, scale=scale[first:last], shift=shift[first:last])
            fields[what] = record(self._layer_fields(own, kernel[tap, first + unit], tap, unit, units))
        (activation, own), (gating, other) = (self._function(function) for function in node.cell_functions)
        fields |= {"kind": _CELLS[node.function], "units": units, "steps": count, "time": time, "gate": gate}
        sources, mask = [source], "0"
        if len(node.inputs) > 1:
            first, (fields["mask"],) = self._affine(node.inputs[1], (count,))
            sources, mask = [source, first], "{1}"
        fields |= {"backwards": int(node.backwards), "activation": activation, "gating": gating}
        fields |= {"parameters": own, "gating_parameters": other}
        sources.append(self.memory.add(6 * units))
        target = self._places[node] = in_order(node.shape, self.memory.add(count * units))
        text = f"recur(&{self._struct('recurrent', fields, 36)}, {{to}}, {{0}}, {mask}, {{{len(sources) - 1}}});"
        self._add("recur", text, int(target.flat[0]), *sources)

    def _put_out(self, outputs: Sequence[Value]) -> int:
        """Have each output lie where the caller wants it; returns how many numbers they have."""
        first = 0
        for value in outputs:
            places = self._of(value)
            base, size = int(places.flat[0]), places.size
            if self.memory.is_whole(base, size) and np.array_equal(places, in_order(places.shape, base)):
                self.memory.give(base, f"output+{first}")
            else:
                target = self.memory.add(size, f"output+{first}")
                self._copy(in_order(places.shape, target), places)
            first += size
        return first

    # Text

    def _struct(self, kind: str, fields: dict[str, Any], words: int) -> str:
        return self.tables.struct(kind, self._name(kind), record(fields), 4 * words)

    def _walk(self, walk: Walk) -> str:
        steps = zip(("to", "from", "other"), walk.steps, strict=False)
        fields = {"count": row(walk.counts), **{name: row(own) for name, own in steps}}
        return self.tables.struct("walk", self._name("walk"), record(fields), 64)

    def _name(self, what: str) -> str:
        """A name of C for something of the layer; its ending keeps it apart from all names of the standard library."""
        name = re.sub(r"\W", "_", self._layer, flags=re.ASCII) or "output"
        return f"{name}_{what}" if name[0].isalpha() else f"layer_{name}_{what}"


def _given(one: T | None) -> T:
    """What a node of this operation always has."""
    if one is None:
        raise TypeError("A node has not all that its operation needs.")
    return one


def _clamp(node: Node) -> str:
    return f"{number(node.low)}, {number(node.high)}"


def _of_window(window: Window, margins: Sequence[int] = (0, 0, 0, 0)) -> dict[str, int]:
    """The fields of a window over an input that has these zeros around it besides."""
    return {
        "rows": window.counts[0],
        "columns": window.counts[1],
        "size_y": window.size[0],
        "size_x": window.size[1],
        "stride_y": window.strides[0],
        "stride_x": window.strides[1],
        "above": window.before[0] + margins[0],
        "before": window.before[1] + margins[2],
    }
