"""The bytes of a `.dcz` file: a whole compressed network in one small file (docs/format.md describes every byte).

No framework is needed, and nothing in a file is executed.
"""

import math
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deepcomp import files
from deepcomp.dcz import coding
from deepcomp.dcz.accounting import Part, Parts, apportion
from deepcomp.dcz.kinds import (
    KINDS,
    LAYERS,
    REQUIRED,
    SHAPE,
    InvalidNetworkError,
    Reader,
    Shape,
    Whole,
    located,
    require,
    varint,
)
from deepcomp.dcz.limits import LimitError, Limits
from deepcomp.dcz.network import Layer, Network, SharedWeight, layer_shapes
from deepcomp.errors import DeepcompError, FormatError, RecipeError, UnsupportedLayerError

MAGIC = b"DCZ"
VERSION = 2  # of files written; files of version 1 and 2 are read
MAX_CENTROIDS = coding.MAX_CENTROIDS
_LIMIT = 2**31  # weights
# A file may declare so many weights for each byte of coded weights, and so many more without any byte: a tensor that
# is pruned completely takes almost no bytes.
_WEIGHTS_PER_BYTE = 2**17
_FREE_WEIGHTS = 2**24
_CHECKSUM = 4  # bytes
_MAX_NAME = 255  # bytes
_MAX_ONE_VALUE = 4_096  # weights: larger arrays are coded, so that a tiny file cannot fill the memory
_CODING_TABLE = 16  # bytes that a coder may spend on a tensor's statistics
_LAYER_WORK = 2**20  # operations that take as long as reading a layer, checking it and planning it
_INDEX_WORK = 2**6  # and decoding an index
_OTHER_BYTES = 32  # that reading takes for each weight that is not of a kernel

_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}


# Reading and writing


def save(network: Network, path: str | Path, coder: str = "range") -> Parts:
    """Write `network` to `path`, atomically; returns what each part takes. Errors as for `dumps`."""
    data, where = _encode(network, coder)
    files.write_atomically(Path(path), lambda temporary: Path(temporary).write_bytes(data))
    return where


def load(path: str | Path, limit: int = _LIMIT, limits: Limits | None = None) -> Network:
    """Read a `.dcz` file. Raises `FormatError` if it cannot be read, else as `loads`."""
    return loads(read(path), limit, str(path), limits)


def read(path: str | Path) -> bytes:
    """The bytes of a file. Raises `FormatError` if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise FormatError(f"Cannot read {path}: {error.strerror or error}.") from error


def dumps(network: Network, coder: str = "range") -> bytes:
    """The `.dcz` file of `network`, its indices coded by one of `coding.CODERS`. The same input gives the same bytes.

    Raises `UnsupportedLayerError`, which names the layer, for what the format cannot hold: an unknown kind or option,
    shapes that do not fit each other, a weight that is not finite. Raises `RecipeError` for an unknown coder.
    """
    return _encode(network, coder)[0]


def parts(network: Network, coder: str = "range") -> Parts:
    """What each part of `dumps(network, coder)` takes. Errors as for `dumps`."""
    return _encode(network, coder)[1]


def coder_of(data: bytes) -> str:
    """The coder of a `.dcz` file: one of `coding.CODERS`. Raises `FormatError` if the file is damaged."""
    return _open(data, "This file")[1]


def loads(data: bytes, limit: int = _LIMIT, name: str = "This file", limits: Limits | None = None) -> Network:
    """The network in the bytes of a `.dcz` file. `dumps` makes the same bytes from it, if they are of this version.

    `limit` is the most weights that the network may have; `limits` are those of memory and work, by default those of a
    file of this size; errors call the file `name`. Raises `FormatError`, and nothing else, for a file that is damaged
    or incomplete, or that asks for more.
    """
    version, coder, source = _open(data, name)
    try:
        return _read(source, version, coder, limit, Limits.of(len(data)) if limits is None else limits)
    except LimitError as error:
        raise FormatError(f"{name}: {error}") from error
    except (InvalidNetworkError, FormatError) as error:
        raise FormatError(f"{name} is damaged: {error}") from error
    except MemoryError as error:
        raise FormatError(f"{name} declares more weights than fit into memory.") from error


# Architecture and names


def _write_architecture(network: Network) -> bytes:
    """The architecture of a network that `layer_shapes` has checked."""
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


def _read_architecture(source: Reader, limits: Limits) -> tuple[Shape, list[tuple[str, tuple[int, ...], dict]]]:
    shape, count = SHAPE.read(source), LAYERS.read(source)
    if 2 * count <= source.left:  # else the bytes end before the layers
        limits.check_work(_LAYER_WORK * count)
    return shape, [_read_layer(source, number) for number in range(1, count + 1)]


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
        require(name is not None, f"a name follows {before[-back]!r}, which has no next name.")
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


# Weights


@dataclass(frozen=True)
class StoredTensor:
    """A weight tensor as it is stored: the form and values for its table; indices and spec, if any, for the coder."""

    layer: str
    name: str
    shape: Shape
    form: int
    values: bytes
    nonzero: int
    indices: np.ndarray | None = None
    spec: Any = None

    def head(self, version: int) -> bytes:
        """The form, which includes the number of centroids; in version 1 that number follows it."""
        count = 0 if self.spec is None else self.spec.centroids
        if version > 1:
            return varint(self.form + 2 * count)
        return varint(self.form) + (b"" if self.spec is None else varint(count))


# The form of a tensor: add 1 if its values are float16, and 2 for each centroid.
_PLAIN, _ONE_VALUE, _SHARED = 0, 2, 4


def _is_kernel(name: str) -> bool:
    return name.endswith("kernel")


def _store(layer: Layer, name: str, shape: Shape, coded_shape: Shape) -> StoredTensor:
    weight = layer.weights[name]
    if isinstance(weight, SharedWeight):
        require(_is_kernel(name), "only kernels can be shared.")
        codebook, indices = np.asarray(weight.codebook), np.asarray(weight.indices)
        _check_codebook(codebook)
        fits = indices.dtype.kind == "u" and indices.shape == shape and indices.max() <= codebook.size
        require(fits, f"it needs unsigned indices of shape {shape}, none over {codebook.size}.")
    else:
        array = np.ascontiguousarray(weight)
        require(array.dtype == np.float32, f"it holds {array.dtype}, not float32.")
        require(array.shape == shape, f"it has the shape {array.shape}, not {shape}.")
        bad = array[~np.isfinite(array)]
        require(not bad.size, f"its values have {bad[:1]}: only finite weights can be stored. Has training diverged?")
        shared = None if _is_kernel(name) or _is_one_value(name, array) else _share(array)
        if shared is None:
            return _store_plain(layer, name, array)
        codebook, indices = shared
    half, values = _floats(codebook)
    indices = indices.astype(np.min_scalar_type(codebook.size), copy=False).reshape(coded_shape)
    return StoredTensor(
        layer.name,
        name,
        shape,
        _SHARED + half,
        values,
        int(np.count_nonzero(indices)),
        indices,
        _spec(coded_shape, codebook),
    )


def _store_plain(layer: Layer, name: str, array: np.ndarray) -> StoredTensor:
    one_value = _is_one_value(name, array)
    form = _ONE_VALUE if one_value else _PLAIN
    half, values = _floats(array.ravel()[:1] if one_value else array)
    return StoredTensor(layer.name, name, array.shape, form + half, values, int(np.count_nonzero(array)))


def _is_one_value(name: str, array: np.ndarray) -> bool:
    return not _is_kernel(name) and 1 < array.size <= _MAX_ONE_VALUE and len(np.unique(_bits(array))) == 1


def _share(array: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Codebook and indices of a plain array, if they take less room than its values in any case, else None."""
    if np.any((array == 0) & np.signbit(array)):  # Index 0 is 0.0, not -0.0.
        return None
    codebook = np.unique(array[array != 0])
    width = 4 - 2 * _floats(codebook)[0]
    index_bits = array.size * codebook.size.bit_length()
    room = 8 * (width * codebook.size + _CODING_TABLE) + index_bits
    if codebook.size > MAX_CENTROIDS or room >= 8 * width * array.size:
        return None
    indices = (np.searchsorted(codebook, array) + 1) * (array != 0)
    return codebook, indices.astype(np.min_scalar_type(codebook.size))


def _spec(shape: Shape, codebook: np.ndarray) -> Any:
    return coding.Spec(shape, codebook.size, int(np.count_nonzero(codebook < 0)))


def _check_codebook(codebook: np.ndarray) -> None:
    require(codebook.dtype == np.float32 and codebook.ndim == 1, "its codebook is not a float32 vector.")
    require(codebook.size <= MAX_CENTROIDS, f"its codebook of {codebook.size} is larger than {MAX_CENTROIDS}.")
    require(bool(np.isfinite(codebook).all()), "its codebook is not finite.")
    require(bool((codebook != 0).all()), "its codebook has a 0, which stands for pruned weights.")
    require(bool((codebook[1:] > codebook[:-1]).all()), "its codebook does not ascend.")


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint32)


def _floats(array: np.ndarray) -> tuple[int, bytes]:
    """1 and the values as float16 if that keeps every bit, else 0 and the values as float32."""
    with np.errstate(over="ignore"):
        half = array.astype("<f2")
    if np.array_equal(_bits(half.astype(np.float32)), _bits(np.ascontiguousarray(array))):
        return 1, half.tobytes()
    return 0, array.astype("<f4").tobytes()


def _read_floats(source: Reader, half: int, count: int) -> np.ndarray:
    raw = source.take(count * (2 if half else 4))
    values = np.frombuffer(raw, "<f2" if half else "<f4").astype(np.float32)
    require(bool(np.isfinite(values).all()), f"the values before byte {source.position} are not all finite.")
    return values


# The file


def _head(network: Network, coder: str, version: int) -> tuple[list[bytes], list[StoredTensor]]:
    """Header, architecture and names; the weight tensors."""
    stored = tensors(network)
    header = MAGIC + bytes([version, coding.CODERS.index(coder)])
    architecture, names = _write_architecture(network), _write_names(network, version)
    return [header, architecture, names], stored


def tensors(network: Network) -> list[StoredTensor]:
    """The weight tensors of a network as its file stores them. Raises `InvalidNetworkError`."""
    stored = []
    for layer, (_, weights, coded) in zip(network.layers, layer_shapes(network), strict=True):
        require(
            layer.weights.keys() == weights.keys(),
            f"The layer {layer.name!r} of kind {layer.kind} has the weights {', '.join(layer.weights) or 'none'}; "
            f"it must have {', '.join(weights) or 'none'}.",
        )
        for name, shape in weights.items():
            with located(f"The weight {name!r} of the layer {layer.name!r} cannot be stored"):
                stored.append(_store(layer, name, shape, coded[name]))
    return stored


def _tables(stored: list[StoredTensor], version: int) -> bytes:
    return b"".join(tensor.head(version) + tensor.values for tensor in stored)


def _encode(network: Network, coder: str) -> tuple[bytes, Parts]:
    if coder not in coding.CODERS:
        raise RecipeError(f"No coder {coder!r}: use {' or '.join(coding.CODERS)}.")
    try:
        head, stored = _head(network, coder, VERSION)
    except InvalidNetworkError as error:
        raise UnsupportedLayerError(str(error)) from error
    coded = [tensor for tensor in stored if tensor.indices is not None]
    section, bits = b"", []
    if coded:
        result = coding.encode([tensor.indices for tensor in coded], [tensor.spec for tensor in coded], coder)
        section, bits = bytes(result.data), result.bits
    _check_paid(sum(tensor.indices.size for tensor in coded), len(section), UnsupportedLayerError)
    body = b"".join([*head, _tables(stored, VERSION), section])
    data = body + zlib.crc32(body).to_bytes(_CHECKSUM, "little")
    header, architecture, names = map(len, head)
    rounded = iter(apportion([part for pair in bits for part in pair], 8 * len(section)))
    rows = []
    for tensor in stored:
        shared = tensor.indices is not None
        room = 8 * len(tensor.values)
        rows.append(
            Part(
                tensor.layer,
                tensor.name,
                tensor.shape,
                math.prod(tensor.shape),
                tensor.nonzero,
                tensor.spec.centroids if shared else None,
                codebook_bits=room if shared else 0,
                index_bits=next(rounded) if shared else 0,
                value_bits=next(rounded) if shared else 0,
                plain_bits=0 if shared else room,
            )
        )
    tables = sum(len(tensor.head(VERSION)) for tensor in stored)
    sizes = (header + _CHECKSUM, architecture, names, tables)
    return data, Parts(coder, *(8 * size for size in sizes), tuple(rows))


def _check_paid(weights: int, section: int, error: type[DeepcompError]) -> None:
    """Refuse more weights than the coded bytes can hold, before any memory is allocated for them."""
    if weights > section * _WEIGHTS_PER_BYTE + _FREE_WEIGHTS:
        raise error(f"{weights} weights in {section} bytes: a byte holds at most {_WEIGHTS_PER_BYTE}.")


def _open(data: bytes, name: str) -> tuple[int, str, Reader]:
    """Version, coder, and a reader of the bytes between header and checksum. Raises `FormatError`."""
    data = memoryview(data).cast("B")
    if bytes(data[:3]) != MAGIC:
        raise FormatError(f"{name} is not a .dcz file: it begins with {bytes(data[:3])!r}, not {MAGIC!r}.")
    if len(data) < 5 + _CHECKSUM:
        raise FormatError(f"{name} is damaged: it has only {len(data)} bytes.")
    version, coder = data[3], data[4]
    if not 1 <= version <= VERSION:
        newer = "a newer deepcomp" if version else "no deepcomp"
        raise FormatError(f"{name} has the format version {version} of {newer}; this one reads 1 to {VERSION}.")
    if coder >= len(coding.CODERS):
        raise FormatError(f"{name} has the unknown coder {coder}; known are 0 to {len(coding.CODERS) - 1}.")
    body = data[:-_CHECKSUM]
    if zlib.crc32(body) != int.from_bytes(data[-_CHECKSUM:], "little"):
        raise FormatError(f"{name} is damaged: its checksum does not fit its contents.")
    return version, coding.CODERS[coder], Reader(body, 5)


def _read(source: Reader, version: int, coder: str, limit: int, limits: Limits) -> Network:
    shape, found = _read_architecture(source, limits)
    found.insert(0, ("InputLayer", (), {}))
    name = _read_name(source, version, "", ())
    names: list[str] = []
    for default in _default_names([kind for kind, _, _ in found]):
        names.append(_read_name(source, version, default, names))
    layers = [Layer(kind, own, inputs, options) for (kind, inputs, options), own in zip(found, names, strict=True)]
    network = Network(name, shape, tuple(layers))
    shapes = layer_shapes(network)
    weights = sum(math.prod(shape) for one in shapes for shape in one.weights.values())
    require(weights <= limit, f"it declares {weights} weights, more than the limit of {limit}.")

    others = sum(math.prod(shape) for one in shapes for key, shape in one.weights.items() if not _is_kernel(key))
    arrays: list[dict[str, np.ndarray]] = []
    specs, places = [], []
    for number, (_, weights, coded) in enumerate(shapes):
        arrays.append({})
        for key, shape in weights.items():
            form, array = _read_table(source, version, key, math.prod(shape))
            if form == _ONE_VALUE:  # the first that takes more memory than bytes
                limits.check_memory(_OTHER_BYTES * others)
            if form == _SHARED:
                specs.append(_spec(coded[key], array))
                places.append((number, key, shape))
            arrays[number][key] = np.full(shape, array) if form == _ONE_VALUE else array
            if form == _PLAIN:
                arrays[number][key] = array.reshape(shape)
    end = source.position
    indices = sum(math.prod(spec.shape) for spec in specs)
    _check_paid(indices, source.left, FormatError)
    limits.check_work(_INDEX_WORK * indices)
    limits.check_memory(coding.memory(specs, coder) + _OTHER_BYTES * others)
    if specs:
        decoded = coding.decode(bytes(source.take(source.left)), specs, coder)
        for (number, key, shape), indices in zip(places, decoded, strict=True):
            arrays[number][key] = _join(key, arrays[number][key], indices, shape)
    require(not source.left, f"{source.left} bytes follow its end.")
    network = replace(
        network,
        layers=tuple(replace(layer, weights=own) for layer, own in zip(layers, arrays, strict=True)),
    )
    head, stored = _head(network, coder, version)
    again = b"".join([*head, _tables(stored, version)])
    require(again == source.data[:end], "it is not in the canonical form of its contents.")
    return network


def _read_table(source: Reader, version: int, name: str, size: int) -> tuple[int, np.ndarray]:
    """The form of a tensor, and its codebook or its values."""
    entry = source.varint()
    form, half = min(entry & ~1, _SHARED), entry & 1
    fits = form != _ONE_VALUE or (not _is_kernel(name) and size <= _MAX_ONE_VALUE)
    require(fits, f"a {name} of {size} weights cannot have one value for all.")
    require(version > 1 or entry < _SHARED + 2, f"version 1 has no form {entry} of a tensor.")
    if form == _SHARED:
        count = source.varint() if version == 1 else (entry - _SHARED) // 2
    else:
        count = 1 if form == _ONE_VALUE else size
    values = _read_floats(source, half, count)
    if form == _SHARED:
        _check_codebook(values)
    return form, values


def _join(name: str, codebook: np.ndarray, indices: np.ndarray, shape: Shape) -> SharedWeight | np.ndarray:
    require(indices.size == math.prod(shape) and indices.max() <= codebook.size, "an index is out of its codebook.")
    indices = indices.astype(np.min_scalar_type(codebook.size), copy=False).reshape(shape)
    if _is_kernel(name):
        return SharedWeight(codebook, indices)
    return np.concatenate((np.zeros(1, np.float32), codebook))[indices]
