"""The architecture and the names of a network, as bytes of a `.dcz` file (docs/format.md)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from deepcomp.dcz.codes import (
    MAX_RANK,
    MAX_TEXT,
    SHAPE,
    Reader,
    Row,
    Whole,
    check_characters,
    located,
    read_text,
    require,
    varint,
)
from deepcomp.dcz.kinds import DTYPES, KINDS, KINDS_BEFORE_3, LAYERS, NUMBERS, read_options, snake_case, write_options
from deepcomp.dcz.limits import Limits
from deepcomp.dcz.network import Form, Layer, Network

_AGAIN = 120  # the number of a kind that stands for an earlier layer, called again
_OPEN = 32  # what is added to the dtype of the first input if it has open axes
_OPEN_AXES = Row(Whole(1, MAX_RANK))  # at least one
_LAYER_WORK = 2**20  # operations that take as long as reading a layer, checking it and planning it


def write(network: Network, version: int) -> tuple[bytes, bytes]:
    """The architecture and the names of a network that `layer_shapes` has checked."""
    return _write_architecture(network, version), _write_names(network, version)


def read(source: Reader, version: int, limits: Limits) -> Network:
    """The network that comes next, without its weights."""
    network = _read_architecture(source, version, limits)
    name = _read_name(source, version, "", ())
    names: list[str] = []
    calls: Counter[int] = Counter()
    for layer, default in zip(network.layers, _default_names(_own_kinds(network.layers)), strict=True):
        if layer.same_as is None:
            names.append(_read_name(source, version, default, names))
        else:
            calls[layer.same_as] += 1
            names.append(call_name(names[layer.same_as], calls[layer.same_as]))
    layers = tuple(replace(layer, name=own) for layer, own in zip(network.layers, names, strict=True))
    return replace(network, name=name, layers=layers)


def call_name(name: str, number: int) -> str:
    """The name of a further call of a layer: 1 for the second."""
    return f"{name}:{number + 1}"


def _write_architecture(network: Network, version: int) -> bytes:
    ends, count = _write_ends(network), len(network.layers) - 1
    pieces = [SHAPE.write(network.input_shape)]
    pieces.append(LAYERS.write(count) if version < 3 else varint(2 * (count - 1) + bool(ends)))
    pieces += [_write_layer(number, layer) for number, layer in enumerate(network.layers) if number]
    return b"".join([*pieces, ends])


def _read_architecture(source: Reader, version: int, limits: Limits) -> Network:
    shape = SHAPE.read(source)
    has_ends, count = 0, LAYERS.read(source) if version < 3 else 0
    if version > 2:
        count, has_ends = divmod(source.varint() + 2, 2)
        LAYERS.write(count)
    if 2 * count <= source.left:  # else the bytes end before the layers
        limits.check_work(_LAYER_WORK * count)
    layers = [Layer("InputLayer", "")]
    for number in range(1, count + 1):
        layers.append(_read_layer(source, number, layers, version))
    if not has_ends:
        return Network("", shape, tuple(layers))
    layers[0], last = _read_first(source), len(layers) - 1
    outputs = tuple(last - Whole(0, last).read(source) for _ in range(LAYERS.read(source)))
    return Network("", shape, tuple(layers), outputs, _read_form(source), _read_form(source))


def _write_ends(network: Network) -> bytes:
    """Inputs and outputs; nothing where one float32 tensor comes in, and the last layer alone goes out."""
    first, last = _write_first(network.layers[0]), len(network.layers) - 1
    forms = network.input_form, network.output_form
    if (first, network.outputs, *forms) == (b"\0", (last,), None, None):
        return b""
    pieces = [first, LAYERS.write(len(network.outputs))]
    pieces += [varint(last - number) for number in network.outputs]
    return b"".join([*pieces, *map(_write_form, forms)])


def _write_first(layer: Layer) -> bytes:
    """The dtype and the open axes of the first input."""
    axes = layer.options["open_axes"]
    number = DTYPES.index(layer.options["dtype"])
    return varint(number + _OPEN) + _OPEN_AXES.write(axes) if axes else varint(number)


def _read_first(source: Reader) -> Layer:
    has_open, number = divmod(Whole(0, _OPEN + len(DTYPES) - 1).read(source), _OPEN)
    require(number < len(DTYPES), f"the first input is of the unknown dtype {number}.")
    axes = _OPEN_AXES.read(source) if has_open else ()
    return Layer("InputLayer", "", (), {"dtype": DTYPES[number], "open_axes": axes})


def _write_form(form: Form) -> bytes:
    """0 for one tensor alone, 1 for a list, else 2 and the number and names of the keys."""
    if not form:
        return varint(0 if form is None else 1)
    return varint(2) + LAYERS.write(len(form)) + b"".join(_write_name(key, 2) for key in form)


def _read_form(source: Reader) -> Form:
    kind = Whole(0, 2).read(source)
    if kind < 2:
        return () if kind else None
    return tuple(_read_name(source, 2, "", ()) for _ in range(LAYERS.read(source)))


def _write_layer(number: int, layer: Layer) -> bytes:
    if layer.same_as is not None:
        distances = [Whole(1, number).write(number - source) for source in (layer.same_as, *layer.inputs)]
        return varint(_AGAIN) + LAYERS.write(len(layer.inputs)) + b"".join(distances)
    mask, values = write_options(layer.kind, layer.options)
    inputs = b""
    if layer.inputs != (number - 1,) and layer.kind != "InputLayer":
        mask |= 1
        distances = [Whole(1, number).write(number - source) for source in layer.inputs]
        inputs = LAYERS.write(len(layer.inputs)) + b"".join(distances)
    return varint(NUMBERS[layer.kind]) + varint(mask) + inputs + values


def _read_layer(source: Reader, number: int, before: Sequence[Layer], version: int) -> Layer:
    found = source.varint()
    if found == _AGAIN and version > 2:
        count = LAYERS.read(source)
        first, *inputs = (number - Whole(1, number).read(source) for _ in range(count + 1))
        return replace(before[first], inputs=tuple(inputs), same_as=first)
    known = len(KINDS) if version > 2 else KINDS_BEFORE_3
    fits = (0 if version > 2 else 1) <= found < known
    require(fits, f"layer {number} is of the unknown kind {found}: is it of a newer deepcomp?")
    name = [*KINDS][found]
    mask = source.varint()
    inputs = () if name == "InputLayer" else (number - 1,)
    if mask & 1:
        count = LAYERS.read(source)
        inputs = tuple(number - Whole(1, number).read(source) for _ in range(count))
    with located(f"layer {number}"):
        return Layer(name, "", inputs, read_options(source, name, mask))


def _own_kinds(layers: Sequence[Layer]) -> list[str]:
    """The kinds of layers; none for a layer that is called again."""
    return ["" if layer.same_as is not None else layer.kind for layer in layers]


def _default_names(kinds: Sequence[str]) -> list[str]:
    """Keras's own names: `conv2d`, `conv2d_1`, ... for the first, second, ... layer of a kind."""
    seen: Counter[str] = Counter()
    names = []
    for kind in kinds:
        names.append(snake_case(kind) + (f"_{seen[kind]}" if seen[kind] else "") if kind else "")
        seen[kind] += 1
    return names


def _next_name(name: str) -> str | None:
    """The name with the number at its end raised by one: `conv1` -> `conv2`, `x09` -> `x10`; None without a number."""
    stem = name.rstrip("0123456789")
    digits = name[len(stem) :]
    found = f"{stem}{int(digits) + 1:0{len(digits)}}" if digits else None
    return found if found and len(found.encode()) <= MAX_TEXT else None


def _write_names(network: Network, version: int) -> bytes:
    pieces = [_write_name(network.name, version)]
    defaults = _default_names(_own_kinds(network.layers))
    numbers: dict[str | None, int] = {}  # of the last layer whose next name is the key
    calls: Counter[int] = Counter()
    for number, (layer, default) in enumerate(zip(network.layers, defaults, strict=True)):
        if layer.same_as is not None:
            calls[layer.same_as] += 1
            own = call_name(network.layers[layer.same_as].name, calls[layer.same_as])
            require(
                layer.name == own, f"Call {calls[layer.same_as] + 1} of a layer is named {layer.name!r}, not {own!r}."
            )
            numbers[_next_name(layer.name)] = number
            continue
        written = _write_name(layer.name, version)
        if layer.name == default:
            written = varint(0)
        elif version > 1 and layer.name in numbers:
            written = varint(2 * (number - numbers[layer.name]))
        pieces.append(written)
        numbers[_next_name(layer.name)] = number
    return b"".join(pieces)


def _write_name(name: str, version: int) -> bytes:
    check_name(name)
    encoded = name.encode()
    length = len(encoded)
    return varint(length if version == 1 else 2 * length - 1) + encoded


def check_name(name: str) -> None:
    """Raise `InvalidNetworkError` for a name that no file can hold."""
    require(isinstance(name, str) and name != "", f"A name must be a text and not empty, not {name!r}.")
    check_characters(name)
    require(len(name.encode()) <= MAX_TEXT, f"The name {name!r} takes more than {MAX_TEXT} bytes.")


def _read_name(source: Reader, version: int, default: str, before: Sequence[str]) -> str:
    """The name of a layer, given the names `before` it. For the name of the network there are none, and no default."""
    entry = source.varint()
    if version > 1 and entry and entry % 2 == 0:
        back = entry // 2
        require(back <= len(before), f"a name follows that of {back} layers before, but there are {len(before)}.")
        name = _next_name(before[-back])
        require(name is not None, f"a name follows {before[-back]!r}, which has no next name.")
        return name or ""
    length = entry if version == 1 else (entry + 1) // 2
    require(length <= MAX_TEXT, f"a name of {length} bytes is longer than {MAX_TEXT}.")
    return read_text(source, length) or default
