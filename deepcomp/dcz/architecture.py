"""The architecture and the names of a network, as bytes of a `.dcz` file (docs/format.md)."""

from collections import Counter
from collections.abc import Sequence

from deepcomp.dcz.kinds import (
    KINDS,
    LAYERS,
    REQUIRED,
    SHAPE,
    InvalidNetworkError,
    Reader,
    Shape,
    Whole,
    require,
    varint,
)
from deepcomp.dcz.network import Layer, Network
from deepcomp.errors import FormatError

_MAX_NAME = 255  # bytes
_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}


def write(network: Network, version: int) -> tuple[bytes, bytes]:
    """The architecture and the names of a network that `layer_shapes` has checked."""
    return _write_architecture(network), _write_names(network, version)


def read(source: Reader, version: int) -> Network:
    """The network that comes next, without its weights."""
    shape, found = _read_architecture(source)
    found.insert(0, ("InputLayer", (), {}))
    name = _read_name(source, version, "", ())
    names: list[str] = []
    for default in _default_names([kind for kind, _, _ in found]):
        names.append(_read_name(source, version, default, names))
    layers = [Layer(kind, own, inputs, options) for (kind, inputs, options), own in zip(found, names, strict=True)]
    return Network(name, shape, tuple(layers))


def _write_architecture(network: Network) -> bytes:
    pieces = [SHAPE.write(network.input_shape), LAYERS.write(len(network.layers) - 1)]
    pieces += [_write_layer(number, layer) for number, layer in enumerate(network.layers) if number]
    return b"".join(pieces)


def _write_layer(number: int, layer: Layer) -> bytes:
    bit, mask, values = 1, 0, b""
    if layer.inputs != (number - 1,):
        mask = 1
        distances = [Whole(1, number).write(number - source) for source in layer.inputs]
        values = LAYERS.write(len(layer.inputs)) + b"".join(distances)
    for name, option in KINDS[layer.kind].options.items():
        value, written = layer.options[name], True
        if option.default is not REQUIRED:
            bit, written = 2 * bit, value != option.default_in(layer.options)
            mask |= bit * written
        if written:
            values += option.code.write(value)
    return varint(_NUMBERS[layer.kind]) + varint(mask) + values


def _read_architecture(source: Reader) -> tuple[Shape, list[tuple[str, tuple[int, ...], dict]]]:
    shape = SHAPE.read(source)
    return shape, [_read_layer(source, number) for number in range(1, LAYERS.read(source) + 1)]


def _read_layer(source: Reader, number: int) -> tuple[str, tuple[int, ...], dict]:
    found = source.varint()
    require(0 < found < len(KINDS), f"layer {number} is of the unknown kind {found}: is it of a newer deepcomp?")
    name = [*KINDS][found]
    bit, mask = 1, source.varint()
    inputs, options = (number - 1,), {}
    if mask & 1:
        count = LAYERS.read(source)
        inputs = tuple(number - Whole(1, number).read(source) for _ in range(count))
    for key, option in KINDS[name].options.items():
        written = True
        if option.default is not REQUIRED:
            bit *= 2
            written = mask & bit
        options[key] = option.code.read(source) if written else option.default_in(options)
    require(mask < 2 * bit, f"layer {number} has options that {name} does not have.")
    return name, inputs, options


def _default_names(kinds: list[str]) -> list[str]:
    """Keras's own names: `conv2d`, `conv2d_1`, ... for the first, second, ... layer of a kind."""
    seen: Counter[str] = Counter()
    names = []
    for kind in kinds:
        names.append(_snake_case(kind) + (f"_{seen[kind]}" if seen[kind] else ""))
        seen[kind] += 1
    return names


def _snake_case(kind: str) -> str:
    """`MaxPooling2D` -> `max_pooling2d`: an underscore before a capital after a small letter, or before a small one."""
    name = kind[0]
    for i in range(1, len(kind)):
        starts = kind[i].isupper() and (kind[i - 1].islower() or kind[i + 1 : i + 2].islower())
        name += "_" * starts + kind[i]
    return name.lower()


def _next_name(name: str) -> str | None:
    """The name with the number at its end raised by one: `conv1` -> `conv2`, `x09` -> `x10`; None without a number."""
    stem = name.rstrip("0123456789")
    digits = name[len(stem) :]
    found = f"{stem}{int(digits) + 1:0{len(digits)}}" if digits else None
    return found if found and len(found.encode()) <= _MAX_NAME else None


def _write_names(network: Network, version: int) -> bytes:
    pieces = [_write_name(network.name, version)]
    defaults = _default_names([layer.kind for layer in network.layers])
    numbers: dict[str | None, int] = {}  # of the last layer whose next name is the key
    for number, (layer, default) in enumerate(zip(network.layers, defaults, strict=True)):
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
    _check_characters(name)
    require(len(name.encode()) <= _MAX_NAME, f"The name {name!r} takes more than {_MAX_NAME} bytes.")


def _read_name(source: Reader, version: int, default: str, before: Sequence[str]) -> str:
    """The name of a layer, given the names `before` it. For the name of the network there are none, and no default."""
    entry = source.varint()
    if version > 1 and entry and entry % 2 == 0:
        back = entry // 2
        require(back <= len(before), f"a name follows that of {back} layers before, but there are {len(before)}.")
        name = _next_name(before[-back])
        if name is None:
            raise InvalidNetworkError(f"a name follows {before[-back]!r}, which has no next name.")
        return name
    length = entry if version == 1 else (entry + 1) // 2
    require(length <= _MAX_NAME, f"a name of {length} bytes is longer than {_MAX_NAME}.")
    try:
        name = str(source.take(length), "utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"a name before byte {source.position} is not UTF-8.") from error
    _check_characters(name)
    return name or default


def _check_characters(name: str) -> None:
    bad = [c for c in name if c < " " or c in "/\x7f" or "\ud800" <= c <= "\udfff"]
    require(not bad, f"The name {name!r} has the character {''.join(bad[:1])!r}, which no name may have.")
