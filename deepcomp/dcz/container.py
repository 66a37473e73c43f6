"""The bytes of a `.dcz` file: a whole compressed network in one small file (docs/format.md describes every byte).

No framework is needed, and nothing in a file is executed.
"""

import math
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deepcomp import files
from deepcomp.dcz import architecture, coding
from deepcomp.dcz.accounting import Part, Parts, apportion
from deepcomp.dcz.codes import InvalidNetworkError, Reader, Shape, located, require, varint
from deepcomp.dcz.coding import floats, planes
from deepcomp.dcz.kinds import is_kernel
from deepcomp.dcz.limits import LimitError, Limits
from deepcomp.dcz.network import Layer, Network, SharedWeight, layer_shapes
from deepcomp.errors import DeepcompError, FormatError, RecipeError, UnsupportedLayerError

MAGIC = b"DCZ"
VERSION = 3  # of files written; files of the versions 1 to 3 are read
MAX_CENTROIDS = coding.MAX_CENTROIDS
_LIMIT = 2**31  # weights
# A file may declare so many weights for each byte of coded weights, and so many more without any byte: a tensor that
# is pruned completely takes almost no bytes.
_WEIGHTS_PER_BYTE = 2**17
_FREE_WEIGHTS = 2**24
_CHECKSUM = 4  # bytes
_CHUNK = 2**22  # bytes that are read at once for the checksum
_MAX_ONE_VALUE = 4_096  # weights: larger arrays are coded, so that a tiny file cannot fill the memory
_CODING_TABLE = 16  # bytes that a coder may spend on a tensor's statistics
_INDEX_WORK = 2**6  # and decoding an index
_VALUE_BYTES = 8  # that decoding takes for each value in planes
_OTHER_BYTES = 32  # that reading takes for each weight that is not of a kernel


# Reading and writing


def save(network: Network, path: str | Path, coder: str = "range") -> Parts:
    """Write `network` to `path`, atomically; returns what each part takes. Errors as for `dumps`."""
    where, prepared = [], _prepared(network, coder)

    def write(temporary: str | Path) -> None:
        with Path(temporary).open("wb") as file:  # piece by piece: together they may be as large as the network
            where.append(_encode(*prepared, coder, file.write))

    files.write_atomically(Path(path), write)
    return where[0]


def load(path: str | Path, limit: int = _LIMIT, limits: Limits | None = None) -> Network:
    """Read a `.dcz` file. Raises `FormatError` if it cannot be read, else as `loads`."""
    try:
        with Path(path).open("rb") as file:
            data = _FileBytes(file) if file.seekable() else memoryview(file.read())
            return _loads(data, limit, str(path), limits)
    except OSError as error:
        raise FormatError(f"Cannot read {path}: {error.strerror or error}.") from error


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
    pieces: list[bytes] = []
    _encode(*_prepared(network, coder), coder, pieces.append)
    return b"".join(pieces)


def parts(network: Network, coder: str = "range") -> Parts:
    """What each part of `dumps(network, coder)` takes. Errors as for `dumps`."""
    return _encode(*_prepared(network, coder), coder, lambda piece: None)


def coder_of(data: bytes) -> str:
    """The coder of a `.dcz` file: one of `coding.CODERS`. Raises `FormatError` if the file is damaged."""
    return _open(memoryview(data).cast("B"), "This file")[1]


def loads(data: bytes, limit: int = _LIMIT, name: str = "This file", limits: Limits | None = None) -> Network:
    """The network in the bytes of a `.dcz` file. `dumps` makes the same bytes from it, if they are of this version.

    `limit` is the most weights that the network may have; `limits` are those of memory and work, by default those of a
    file of this size; errors call the file `name`. Raises `FormatError`, and nothing else, for a file that is damaged
    or incomplete, or that asks for more.
    """
    return _loads(memoryview(data).cast("B"), limit, name, limits)


def _loads(data: Any, limit: int, name: str, limits: Limits | None) -> Network:
    try:
        version, coder, source = _open(data, name)
    except _ShorterError as error:
        raise FormatError(f"{name} is damaged: {error}") from error
    try:
        return _read(source, version, coder, limit, Limits.of(len(data)) if limits is None else limits)
    except LimitError as error:
        raise FormatError(f"{name}: {error}") from error
    except (InvalidNetworkError, FormatError) as error:
        raise FormatError(f"{name} is damaged: {error}") from error
    except MemoryError as error:
        raise FormatError(f"{name} declares more weights than fit into memory.") from error


# Weights


@dataclass(frozen=True)
class StoredTensor:
    """A weight tensor as it is stored: its form and values; indices and spec, if any, for the coder.

    `values` are the codebook, or what the form says: all values, one value, or those that are not 0.0.
    """

    layer: str
    name: str
    shape: Shape
    form: int
    values: np.ndarray
    nonzero: int
    indices: np.ndarray | None = None
    spec: Any = None

    def table(self, version: int) -> tuple[bytes, bytes]:
        """Its entry in the tables: the form, and the values if they stand there."""
        words = self.words(version)
        centroids = 0 if self.form != _SHARED else self.spec.centroids
        if version > 2:
            count = varint(self.values.size) if self.form == _SPARSE else b""
            head = varint(_TYPES * (self.form + centroids) + words.type) + count
            return head, b"" if self.form in _PLANES else words.words.tobytes()
        form = 2 * _FORMS_1.index(_ALL if self.form in _PLANES else self.form) + words.type
        if version > 1:
            head = varint(form + 2 * centroids)
        else:
            head = varint(form) + (varint(centroids) if self.form == _SHARED else b"")
        return head, words.words.tobytes()

    def words(self, version: int) -> floats.Words:
        return floats.smallest(self.values) if version > 2 else floats.narrow(self.values)


# The forms of a tensor: all values in its table; one for all; all in planes; those that are not 0.0 in planes, and
# their positions among the indices; a codebook, of this form and one more for each centroid.
_ALL, _ONE, _DENSE, _SPARSE, _SHARED = range(5)
_PLANES = (_DENSE, _SPARSE)
_FORMS_1 = (_ALL, _ONE, _SHARED)  # of versions 1 and 2
_TYPES = 4  # of values; the last is not used yet
_MIN_PLANES = 256  # weights: smaller tensors are not coded, unless they are shared
_SPARSE_FROM = 64  # A tensor is sparse if at least one in so many values is 0.0.


def _store(layer: Layer, name: str, shape: Shape, coded_shape: Shape) -> StoredTensor:
    weight = layer.weights[name]
    if isinstance(weight, SharedWeight):
        require(is_kernel(name), "only kernels can be shared.")
        codebook, indices = np.asarray(weight.codebook), np.asarray(weight.indices)
        _check_codebook(codebook)
        fits = indices.dtype.kind == "u" and indices.shape == shape and indices.max() <= codebook.size
        require(fits, f"it needs unsigned indices of shape {shape}, none over {codebook.size}.")
    else:
        array = np.ascontiguousarray(weight)
        require(array.dtype == np.float32, f"it holds {array.dtype}, not float32.")
        require(array.shape == shape, f"it has the shape {array.shape}, not {shape}.")
        if not floats.are_finite(array):
            bad = array[~np.isfinite(array)]
            require(False, f"its values have {bad[:1]}: only finite weights can be stored. Has training diverged?")
        shared = None if is_kernel(name) or _is_one_value(name, array) else _share(array)
        if shared is None:
            return _store_plain(layer, name, array, coded_shape)
        codebook, indices = shared
    indices = indices.astype(np.min_scalar_type(codebook.size), copy=False).reshape(coded_shape)
    return StoredTensor(
        title(layer),
        name,
        shape,
        _SHARED,
        codebook,
        int(np.count_nonzero(indices)),
        indices,
        _spec(coded_shape, codebook),
    )


def title(layer: Layer) -> str:
    """What tables call a layer: its name, or the path of a variable."""
    return layer.options.get("path", layer.name)


def _store_plain(layer: Layer, name: str, array: np.ndarray, coded_shape: Shape) -> StoredTensor:
    nonzero, flat = int(np.count_nonzero(array)), array.ravel()
    if _is_one_value(name, array):
        return StoredTensor(title(layer), name, array.shape, _ONE, flat[:1], nonzero)
    if array.size < _MIN_PLANES:
        return StoredTensor(title(layer), name, array.shape, _ALL, flat, nonzero)
    left = int(np.count_nonzero(_bits(flat)))  # with -0.0
    if not _is_sparse(left, array.size):
        return StoredTensor(title(layer), name, array.shape, _DENSE, flat, nonzero)
    held = _bits(flat) != 0
    spec = coding.Spec(coded_shape, 1, 0)
    indices = held.astype(np.uint8).reshape(coded_shape)
    return StoredTensor(title(layer), name, array.shape, _SPARSE, flat[held], nonzero, indices, spec)


def _is_sparse(left: int, size: int) -> bool:
    return _SPARSE_FROM * (size - left) >= size


def _is_one_value(name: str, array: np.ndarray) -> bool:
    return not is_kernel(name) and 1 < array.size <= _MAX_ONE_VALUE and len(np.unique(_bits(array))) == 1


def _share(array: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Codebook and indices of a plain array, if they take less room than its values in any case, else None."""
    if np.any((array == 0) & np.signbit(array)):  # Index 0 is 0.0, not -0.0.
        return None
    codebook = np.unique(array[array != 0])
    width = floats.narrow(codebook).words.itemsize
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


def _read_values(source: Reader, type: int, count: int) -> np.ndarray:
    dtype = floats.TYPES[type]
    return _finite(source, floats.values(type, np.frombuffer(source.take(count * dtype.itemsize), dtype)))


def _finite(source: Reader, values: np.ndarray) -> np.ndarray:
    require(floats.are_finite(values), f"the values before byte {source.position} are not all finite.")
    return values


# The file


def _head(network: Network, coder: str, version: int) -> tuple[list[bytes], list[StoredTensor]]:
    """Header, architecture and names; the weight tensors."""
    stored = tensors(network)
    header = MAGIC + bytes([version, coding.CODERS.index(coder)])
    return [header, *architecture.write(network, version)], stored


def tensors(network: Network) -> list[StoredTensor]:
    """The weight tensors of a network as its file stores them. Raises `InvalidNetworkError`."""
    stored = []
    for layer, (_, weights, coded) in zip(network.layers, layer_shapes(network), strict=True):
        if layer.same_as is not None:
            continue
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
    return b"".join(piece for tensor in stored for piece in tensor.table(version))


class _ShorterError(FormatError):
    """A file ended before its end."""


class _FileBytes:
    """The bytes of an open file, read where they are asked for."""

    def __init__(self, file: BinaryIO):
        self._file, self._size = file, file.seek(0, os.SEEK_END)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, where: Any) -> Any:
        if not isinstance(where, slice):
            return self[where : where + 1][0]
        first, end, _ = where.indices(self._size)
        self._file.seek(first)
        data = self._file.read(max(end - first, 0))
        if len(data) < end - first:
            raise _ShorterError(f"it has become shorter than its {self._size} bytes.")
        return memoryview(data)


def _prepared(network: Network, coder: str) -> tuple[list[bytes], list[StoredTensor]]:
    """What `_encode` writes, checked: header, architecture and names; the weight tensors."""
    if coder not in coding.CODERS:
        raise RecipeError(f"No coder {coder!r}: use {' or '.join(coding.CODERS)}.")
    try:
        return _head(network, coder, VERSION)
    except InvalidNetworkError as error:
        raise UnsupportedLayerError(str(error)) from error


def _encode(head: list[bytes], stored: list[StoredTensor], coder: str, write: Callable[[Any], Any]) -> Parts:
    """Write a file, piece by piece; returns what each part takes."""
    checksum = 0

    def put(*pieces: Any) -> int:
        nonlocal checksum
        for piece in pieces:
            checksum = zlib.crc32(piece, checksum)
            write(piece)
        return sum(map(len, pieces))

    tables = [tensor.table(VERSION) for tensor in stored]
    put(*head, *(piece for entry in tables for piece in entry))
    values = [
        sum(map(put, planes.encode(tensor.words(VERSION).words))) if tensor.form in _PLANES else 0 for tensor in stored
    ]
    coded = [tensor for tensor in stored if tensor.indices is not None]
    section, bits = b"", []
    if coded:
        result = coding.encode([tensor.indices for tensor in coded], [tensor.spec for tensor in coded], coder)
        section, bits = bytes(result.data), result.bits
    _check_paid(stored, sum(values) + len(section), UnsupportedLayerError)
    put(section)
    put(checksum.to_bytes(_CHECKSUM, "little"))
    header, structure, names = map(len, head)
    rounded = iter(apportion([part for pair in bits for part in pair], 8 * len(section)))
    rows = []
    for tensor, entry, own in zip(stored, tables, values, strict=True):
        shared, coded = tensor.form == _SHARED, tensor.indices is not None
        room = 8 * (len(entry[1]) + own)
        rows.append(
            Part(
                tensor.layer,
                tensor.name,
                tensor.shape,
                math.prod(tensor.shape),
                tensor.nonzero,
                tensor.spec.centroids if shared else None,
                codebook_bits=room if shared else 0,
                index_bits=next(rounded) if coded else 0,
                value_bits=next(rounded) if coded else 0,
                plain_bits=0 if shared else room,
            )
        )
    sizes = (header + _CHECKSUM, structure, names, sum(len(entry[0]) for entry in tables))
    return Parts(coder, *(8 * size for size in sizes), tuple(rows))


def _check_paid(tensors: Sequence[Any], section: int, error: type[DeepcompError]) -> None:
    """Refuse more coded weights than the bytes can hold, before any memory is allocated for them."""
    weights = sum(math.prod(tensor.shape) for tensor in tensors if tensor.form in (*_PLANES, _SHARED))
    if weights > section * _WEIGHTS_PER_BYTE + _FREE_WEIGHTS:
        raise error(f"{weights} weights in {section} bytes: a byte holds at most {_WEIGHTS_PER_BYTE}.")


def _open(data: Any, name: str) -> tuple[int, str, Reader]:
    """Version, coder, and a reader of the bytes between header and checksum. Raises `FormatError`."""
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
    end, checksum = len(data) - _CHECKSUM, 0
    for first in range(0, end, _CHUNK):
        checksum = zlib.crc32(data[first : min(first + _CHUNK, end)], checksum)
    if checksum != int.from_bytes(data[end : end + _CHECKSUM], "little"):
        raise FormatError(f"{name} is damaged: its checksum does not fit its contents.")
    return version, coding.CODERS[coder], Reader(data, 5, end)


def _read(source: Reader, version: int, coder: str, limit: int, limits: Limits) -> Network:
    network = architecture.read(source, version, limits)
    shapes = layer_shapes(network)
    weights = sum(math.prod(shape) for one in shapes for shape in one.weights.values())
    require(weights <= limit, f"it declares {weights} weights, more than the limit of {limit}.")

    entries = []
    for number, (_, weights, coded) in enumerate(shapes):
        for key, shape in weights.items():
            entries.append(_read_table(source, version, number, key, shape, coded[key]))
    end = source.position
    _check_paid(entries, source.left, FormatError)
    specs = [entry.spec for entry in entries if entry.form in (_SPARSE, _SHARED)]
    coded = sum(entry.count for entry in entries if entry.form in _PLANES)
    limits.check_work(_INDEX_WORK * (coded + sum(math.prod(spec.shape) for spec in specs)))
    others = sum(math.prod(shape) for one in shapes for key, shape in one.weights.items() if not is_kernel(key))
    limits.check_memory(coding.memory(specs, coder, version) + _VALUE_BYTES * coded + _OTHER_BYTES * others)
    for entry in entries:
        if entry.form in _PLANES:
            words, used = planes.decode(source.data, entry.count, floats.TYPES[entry.type], source.position)
            require(used <= source.left, "its values end within a plane.")
            source.position += used
            entry.values = _finite(source, floats.values(entry.type, words))
    indexed = [entry for entry in entries if entry.form in (_SPARSE, _SHARED)]
    if indexed:
        decoded = coding.decode(bytes(source.take(source.left)), specs, coder, version)
        for entry, indices in zip(indexed, decoded, strict=True):
            entry.indices = indices
    arrays: list[dict[str, SharedWeight | np.ndarray]] = [{} for _ in shapes]
    for entry in entries:
        arrays[entry.layer][entry.name] = entry.weight()
        entry.indices = None  # memory for the next
    require(not source.left, f"{source.left} bytes follow its end.")
    layers = [
        replace(layer, weights=arrays[number if layer.same_as is None else layer.same_as])
        for number, layer in enumerate(network.layers)
    ]
    network = replace(network, layers=tuple(layers))
    head, stored = _head(network, coder, version)
    again = b"".join([*head, _tables(stored, version)])
    require(again == source.data[:end], "it is not in the canonical form of its contents.")
    return network


@dataclass
class _Entry:
    """A weight tensor as it is read: its place in the network, its form, the type and the number of its values."""

    layer: int
    name: str
    shape: Shape
    coded_shape: Shape
    form: int
    type: int
    count: int
    values: Any = None
    indices: Any = None

    @property
    def spec(self) -> Any:
        return _spec(self.coded_shape, self.values) if self.form == _SHARED else coding.Spec(self.coded_shape, 1, 0)

    def weight(self) -> SharedWeight | np.ndarray:
        if self.form in (_ALL, _DENSE):
            return self.values.reshape(self.shape)
        if self.form == _ONE:
            return np.full(self.shape, self.values)
        if self.form == _SHARED:
            return _join(self.name, self.values, self.indices, self.shape)
        held, array = self.indices.ravel() != 0, np.zeros(self.shape, np.float32)
        count = int(np.count_nonzero(held))
        require(count == self.count, f"a {self.name} has {count} positions for {self.count} values.")
        array.ravel()[held] = self.values
        return array


def _read_table(source: Reader, version: int, layer: int, name: str, shape: Shape, coded_shape: Shape) -> _Entry:
    """The entry of a tensor in the tables, with its values if they stand there."""
    entry, size = source.varint(), math.prod(shape)
    if version > 2:
        form, type = divmod(entry, _TYPES)
        require(type < len(floats.TYPES), f"there is no type {type} of values.")
        count = form - _SHARED
        form = min(form, _SHARED)
    else:
        form, type = divmod(entry, 2)
        count = form - 2
        form = _FORMS_1[min(form, 2)]
        require(version > 1 or count < 1, f"version 1 has no form {entry} of a tensor.")
    fits = form != _ONE or (not is_kernel(name) and size <= _MAX_ONE_VALUE)
    require(fits, f"a {name} of {size} weights cannot have one value for all.")
    if form == _SHARED:
        count = source.varint() if version == 1 else count
    elif form == _SPARSE:
        count = source.varint()
        require(count <= size and _is_sparse(count, size), f"a {name} of {size} weights has {count} values in planes.")
    else:
        count = 1 if form == _ONE else size
    found = _Entry(layer, name, shape, coded_shape, form, type, count)
    if form not in _PLANES:
        found.values = _read_values(source, type, count)
    if form == _SHARED:
        _check_codebook(found.values)
    return found


def _join(name: str, codebook: np.ndarray, indices: np.ndarray, shape: Shape) -> SharedWeight | np.ndarray:
    require(indices.size == math.prod(shape) and indices.max() <= codebook.size, "an index is out of its codebook.")
    indices = indices.astype(np.min_scalar_type(codebook.size), copy=False).reshape(shape)
    if is_kernel(name):
        return SharedWeight(codebook, indices)
    return np.concatenate((np.zeros(1, np.float32), codebook))[indices]
