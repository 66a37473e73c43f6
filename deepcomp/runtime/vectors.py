"""Innermost loops on vectors as wide as the host's registers, with accumulators that stay in registers.

Numba keeps an array of accumulators in memory, so that each multiply-add costs an extra load and store. The intrinsics
here emit the innermost loops as LLVM code with vector phi nodes instead. All outer loops are plain Numba, in
`kernels`. Memory is given by its address (int64): passing an array costs more than a short loop.
"""

import functools
import inspect
from collections.abc import Callable, Iterable

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import config
from numba.extending import intrinsic

from deepcomp.runtime import rows

UINT8, UINT16, FLOAT32, SHORT = range(4)  # kinds of values; SHORT: uint8 into a codebook of at most 32 entries
NONE, MAX, AVERAGE = range(3)  # pooling of 2 x 2 positions


def _host_features() -> list[str]:
    """Features of the processor that Numba compiles for, such as `+avx512f`: Numba's setting, else the host's."""
    features = config.CPU_FEATURES
    return (llvm.get_host_cpu_features().flatten() if features is None else features).split(",")


_FEATURES = _host_features()
WIDTH = 16 if "+avx512f" in _FEATURES else 8 if "+avx" in _FEATURES else 4  # floats in a register
TILE_COLUMNS = 14 if WIDTH == 16 or "+neon" in _FEATURES else 6  # two rows of sums leave registers for operands
STRIDED_COLUMNS = 4  # the same where the stride is not 1 or 2, so that addresses need registers too
_CHAINS = 6  # independent sums that hide the latency of a multiply-add
UNITS = 4  # units without pruned weights that are computed at once: a vector of inputs is loaded for all of them
# Vectors of inputs that are used at once: with their sums and a weight they fill the registers.
UNITS_COLUMNS = 6 if WIDTH == 16 or "+neon" in _FEATURES else 3
MAX_BLOCKS = 4  # blocks of images that a dense product computes at once
VALUE_BYTES = (1, 2, 4, 1)  # bytes of a value, by kind

_BYTE, _HALF, _WORD, _LONG, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_VECTOR, _WORDS = ir.VectorType(_FLOAT, WIDTH), ir.VectorType(_WORD, WIDTH)
_ZEROS = ir.Constant(_VECTOR, [0.0] * WIDTH)
_LANES = ir.Constant(_WORDS, list(range(WIDTH)))
_BYTES = 4 * WIDTH  # of a vector
_KINDS = (UINT8, UINT16, FLOAT32, SHORT) if WIDTH == 16 else (UINT8, UINT16, FLOAT32)


def _long(value: int) -> ir.Constant:
    return ir.Constant(_LONG, value)


class _CodeBuilder:
    """Emits LLVM code for the loops below; addresses are 64-bit integers."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def load(self, address: ir.Value, kind: ir.Type = _VECTOR) -> ir.Value:
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=1)

    def store(self, value: ir.Value, address: ir.Value) -> None:
        self.builder.store(value, self.builder.inttoptr(address, value.type.as_pointer()), align=1)

    def at(self, address: ir.Value, index: ir.Value, size: int) -> ir.Value:
        """The address of element number `index` where each has `size` bytes."""
        return self.builder.add(address, self.builder.mul(index, _long(size)))

    def call(self, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
        """A call of an LLVM intrinsic."""
        function = self.builder.module.globals.get(name) or ir.Function(
            self.builder.module, ir.FunctionType(result, [argument.type for argument in arguments]), name
        )
        return self.builder.call(function, arguments)

    def broadcast(self, scalar: ir.Value) -> ir.Value:
        one = ir.Constant(ir.VectorType(scalar.type, WIDTH), ir.Undefined)
        one = self.builder.insert_element(one, scalar, ir.Constant(_WORD, 0))
        return self.builder.shuffle_vector(one, one, ir.Constant(_WORDS, [0] * WIDTH))

    def first(self, count: ir.Value) -> ir.Value:
        """A mask of the first `count` lanes."""
        return self.builder.icmp_signed("<", _LANES, self.broadcast(self.builder.trunc(count, _WORD)))

    def store_first(self, value: ir.Value, address: ir.Value, count: ir.Value) -> None:
        """Store the first `count` lanes of a vector of any length up to `WIDTH`."""
        lanes = value.type.count
        mask = self.first(count)
        mask = self.builder.shuffle_vector(mask, mask, ir.Constant(ir.VectorType(_WORD, lanes), list(range(lanes))))
        pointer = self.builder.inttoptr(address, value.type.as_pointer())
        self.call(f"llvm.masked.store.v{lanes}f32.p0", ir.VoidType(), value, pointer, ir.Constant(_WORD, 1), mask)

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """`a * b + c`, in one rounding where the processor can."""
        return self.call(f"llvm.fmuladd.v{WIDTH}f32", _VECTOR, a, b, c)

    def clamp(self, y: ir.Value, low: ir.Value, high: ir.Value) -> ir.Value:
        """`y` within `low` and `high`; no comparison with NaN is true, so NaN stays."""
        y = self.builder.select(self.builder.fcmp_ordered(">", low, y), low, y)
        return self.builder.select(self.builder.fcmp_ordered("<", high, y), high, y)

    def maximum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The larger, or NaN where either is NaN."""
        larger = self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)  # b, where either is NaN
        return self.builder.select(self.builder.fcmp_unordered("uno", a, a), a, larger)

    def pool(self, kind: int, a: ir.Value, b: ir.Value, c: ir.Value, d: ir.Value) -> ir.Value:
        if kind == MAX:
            return self.maximum(self.maximum(a, b), self.maximum(c, d))
        total = self.builder.fadd(self.builder.fadd(a, b), self.builder.fadd(c, d))
        return self.builder.fmul(total, ir.Constant(_VECTOR, [0.25] * WIDTH))

    def loop(self, stop: ir.Value, step: ir.Value, carried: list[ir.Value], body: Callable) -> list[ir.Value]:
        """Emit `carried = body(index, carried)` for each index in `range(0, stop, step)`; returns the last."""
        builder = self.builder
        before, inside, after = builder.block, builder.append_basic_block(), builder.append_basic_block()
        builder.cbranch(builder.icmp_signed("<", _long(0), stop), inside, after)
        builder.position_at_end(inside)
        index, *phis = (builder.phi(value.type) for value in [_long(0), *carried])
        results = body(index, phis)
        following = builder.add(index, step)
        for phi, old, new in zip([index, *phis], [_long(0), *carried], [following, *results], strict=True):
            phi.add_incoming(old, before)
            phi.add_incoming(new, builder.block)
        last = builder.block
        builder.cbranch(builder.icmp_signed("<", following, stop), inside, after)
        builder.position_at_end(after)
        finals = [builder.phi(value.type) for value in carried]
        for final, old, new in zip(finals, carried, results, strict=True):
            final.add_incoming(old, before)
            final.add_incoming(new, last)
        return finals

    def sums(self, stop: ir.Value, width: int, terms: Callable) -> list[ir.Value]:
        """Emit `width` sums: zeros at first, then `sums = terms(index, sums)` for each index in `range(stop)`.

        A multiply-add waits for the previous one on the same sum. If there are too few sums to keep the processor busy
        in the meantime, each is split into several partial sums, which are used in turn.
        """
        turns = max(1, _CHAINS // width)

        def body(index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            return [*carried[width:], *terms(index, carried[:width])]

        carried = self.loop(stop, _long(1), [_ZEROS] * (width * turns), body)
        while len(carried) > width:
            last = len(carried) // width // 2 * width
            carried = [*map(self.builder.fadd, carried[:last], carried[-last:]), *carried[last:-last]]
        return carried

    def total(self, vector: ir.Value) -> ir.Value:
        """The sum of a vector's lanes."""
        lanes = [self.builder.extract_element(vector, ir.Constant(_WORD, lane)) for lane in range(WIDTH)]
        while len(lanes) > 1:
            lanes = [self.builder.fadd(*pair) for pair in zip(lanes[::2], lanes[1::2], strict=True)]
        return lanes[0]

    def switch(self, selector: ir.Value, cases: Iterable[int], emit: Callable) -> None:
        """Emit a switch: `emit(case)` runs for the one of `cases` that equals `selector`."""
        builder = self.builder
        end = builder.append_basic_block()
        switch = builder.switch(selector, end)
        for case in cases:
            block = builder.append_basic_block()
            switch.add_case(_long(case), block)
            builder.position_at_end(block)
            emit(case)
            builder.branch(end)
        builder.position_at_end(end)

    def gather(self, source: ir.Value, indices: ir.Value, size: int) -> ir.Value:
        """The floats of `source` at `WIDTH` indices of `size` bytes each, which lie at the address `indices`.

        Indices are loaded several at once and floats one by one: nearly twice as fast as the gather of AVX-512.
        """
        builder, vector = self.builder, _ZEROS
        word = ir.IntType(min(64, 8 * size * WIDTH))
        for lane in range(WIDTH):
            byte, bit = divmod(8 * size * lane, word.width)
            if bit == 0:
                packed = builder.zext(self.load(builder.add(indices, _long(byte * word.width // 8)), word), _LONG)
            index = builder.and_(builder.lshr(packed, _long(bit)), _long(256**size - 1))
            element = self.load(self.at(source, index, 4), _FLOAT)
            vector = builder.insert_element(vector, element, ir.Constant(_WORD, lane))
        return vector

    def permute(self, low: ir.Value, high: ir.Value, lanes: ir.Value) -> ir.Value:
        """A vector made of the `lanes` (0 to 31) of two vectors; AVX-512 only."""
        return self.call("llvm.x86.avx512.vpermi2var.ps.512", _VECTOR, low, lanes, high)

    def decode(self, kind: int, values: ir.Value, codebook: ir.Value) -> ir.Value:
        """The `WIDTH` weights whose values lie side by side at the address `values`."""
        if kind == FLOAT32:
            return self.load(values)
        if kind != SHORT:
            return self.gather(codebook, values, 1 if kind == UINT8 else 2)
        indices = self.builder.zext(self.load(values, ir.VectorType(_BYTE, WIDTH)), _WORDS)
        return self.permute(self.load(codebook), self.load(self.builder.add(codebook, _long(_BYTES))), indices)

    def decode_one(self, kind: int, values: ir.Value, index: ir.Value, codebook: ir.Value) -> ir.Value:
        """Weight number `index` of `values`, in every lane."""
        if kind != FLOAT32:
            size, integer = (2, _HALF) if kind == UINT16 else (1, _BYTE)
            index, values = self.builder.zext(self.load(self.at(values, index, size), integer), _LONG), codebook
        return self.broadcast(self.load(self.at(values, index, 4), _FLOAT))


def _intrinsic(arguments: str, result: types.Type = types.void) -> Callable:
    """Decorator: an intrinsic from a function that emits its code; `arguments`: `i` for int64, `f` for float32."""
    signature = result(*(types.float32 if letter == "f" else types.int64 for letter in arguments))

    def decorate(emit: Callable) -> Callable:
        def generate(context, builder: ir.IRBuilder, _signature, values):
            value = emit(_CodeBuilder(builder), *values)
            return context.get_dummy_value() if value is None else value

        def typed(_typing, *_arguments):
            return signature, generate

        functools.update_wrapper(typed, emit)
        typed.__signature__ = inspect.signature(emit)  # Numba takes the first parameter for the typing context
        return intrinsic(typed)

    return decorate


def _transpose(code: _CodeBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """The transpose of `WIDTH` rows of `WIDTH` floats that lie at these addresses.

    Squares of 4 x 4 floats are transposed, several at once, each in its own quarter of a register or half of it: a
    shuffle across these costs several times as much. Loads put a square where its transpose belongs.
    """
    builder, columns = code.builder, []

    def shuffle(a: ir.Value, b: ir.Value, *lanes: int) -> ir.Value:
        """Lanes of the squares of `a`, and from 4 on of those of `b`, square by square."""
        numbers = [4 * square + lane % 4 + lane // 4 * WIDTH for square in range(WIDTH // 4) for lane in lanes]
        return builder.shuffle_vector(a, b, ir.Constant(_WORDS, numbers))

    for left in range(0, WIDTH, 4):
        lines = []
        for line in range(4):
            parts = [code.load(builder.add(row, _long(4 * left)), ir.VectorType(_FLOAT, 4)) for row in rows[line::4]]
            while len(parts) > 1:
                size = 2 * parts[0].type.count
                whole = ir.Constant(ir.VectorType(_WORD, size), list(range(size)))
                parts = [builder.shuffle_vector(*pair, whole) for pair in zip(parts[::2], parts[1::2], strict=True)]
            lines += parts
        halves = [shuffle(*lines[line : line + 2], *lanes) for lanes in ((0, 4, 1, 5), (2, 6, 3, 7)) for line in (0, 2)]
        for pair in (halves[:2], halves[2:]):
            columns += [shuffle(*pair, 0, 1, 4, 5), shuffle(*pair, 2, 3, 6, 7)]
    return columns


@_intrinsic("iiii")
def transpose(code, source, stride, target, pitch) -> None:
    """Transpose `WIDTH` rows of `WIDTH` floats, `stride` bytes apart, to rows at `target`, `pitch` bytes apart."""
    rows = [code.builder.add(source, code.builder.mul(stride, _long(row))) for row in range(WIDTH)]
    for number, row in enumerate(_transpose(code, rows)):
        code.store(row, code.builder.add(target, code.builder.mul(pitch, _long(number))))


@_intrinsic("iiiii")
def transpose_few(code, source, stride, count, target, pitch) -> None:
    """Transpose `count` rows (1 to `WIDTH`) of `WIDTH` floats to `WIDTH` rows of `count`; arguments: `transpose`."""
    builder = code.builder
    numbers = [
        builder.select(builder.icmp_signed("<", _long(row), count), _long(row), _long(0)) for row in range(WIDTH)
    ]
    rows = [builder.add(source, builder.mul(stride, number)) for number in numbers]
    for number, row in enumerate(_transpose(code, rows)):
        code.store_first(row, builder.add(target, builder.mul(pitch, _long(number))), count)


@_intrinsic("i", types.int64)
def load_i32(code: _CodeBuilder, address: ir.Value) -> ir.Value:
    """The int32 at an address."""
    return code.builder.sext(code.load(address, _WORD), _LONG)


@_intrinsic("ii")
def store_i32(code, value, address) -> None:
    """Store an integer as int32."""
    code.store(code.builder.trunc(value, _WORD), address)


@_intrinsic("i", types.float32)
def load_f32(code: _CodeBuilder, address: ir.Value) -> ir.Value:
    """The float32 at an address."""
    return code.load(address, _FLOAT)


@_intrinsic("iiiiiiiii")
def unpack(code, kind, taps, values, codebook, count, offsets, unit, places, weights) -> None:
    """Decode `count` weights to `weights`, and write the positions of their inputs to `places`.

    offsets: int32 of each tap, in units of `unit` bytes; places: int32, in bytes. Up to `WIDTH` more may be written.
    """
    builder = code.builder
    unit = code.broadcast(builder.trunc(unit, _WORD))

    def expand(of: int) -> None:
        def body(index: ir.Value, _: list) -> list:
            numbers = code.decode(of, code.at(values, index, VALUE_BYTES[of]), codebook)
            positions = builder.bitcast(code.gather(offsets, code.at(taps, index, 2), 2), _WORDS)
            code.store(numbers, code.at(weights, index, 4))
            code.store(builder.mul(positions, unit), code.at(places, index, 4))
            return []

        code.loop(count, _long(WIDTH), [], body)

    code.switch(kind, _KINDS, expand)


@_intrinsic("iiiii")
def decode(code, kind, values, codebook, count, weights) -> None:
    """Decode `count` neighbouring weights to `weights`; up to `WIDTH` more may be read and written."""

    def expand(of: int) -> None:
        def body(index: ir.Value, _: list) -> list:
            code.store(code.decode(of, code.at(values, index, VALUE_BYTES[of]), codebook), code.at(weights, index, 4))
            return []

        code.loop(count, _long(WIDTH), [], body)

    code.switch(kind, _KINDS, expand)


@_intrinsic("iiii")
def scale_places(code, offsets, count, unit, places) -> None:
    """Write `count` int32 `offsets`, in units of `unit` bytes, to `places` in bytes."""
    unit = code.builder.trunc(unit, _WORD)

    def body(index: ir.Value, _: list) -> list:
        offset = code.load(code.at(offsets, index, 4), _WORD)
        code.store(code.builder.mul(offset, unit), code.at(places, index, 4))
        return []

    code.loop(count, _long(1), [], body)


def _products(code: _CodeBuilder, places, weights, count, number: int, inputs: Callable) -> list[ir.Value]:
    """Emit `number` sums over `count` weights: sums of a weight times each of the vectors `inputs(place)`."""

    def body(index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
        place = code.builder.sext(code.load(code.at(places, index, 4), _WORD), _LONG)
        weight = code.broadcast(code.load(code.at(weights, index, 4), _FLOAT))
        return [code.fma(weight, value, total) for value, total in zip(inputs(place), sums, strict=True)]

    return code.sums(count, number, body)


@_intrinsic("iiiiiiiiiiiffff")
def convolve_lanes(
    code, rows, columns, places, weights, count, source, row, column, pool, target, pitch, scale, shift, low, high
) -> None:
    """Compute a tile of `rows` (1 or 2) by `columns` positions of one output channel; a position is a vector of images.

    places: int32, bytes from `source` to the inputs of `count` weights (float32). row, column: bytes from one position
    of the tile to the next in the source. pitch: bytes between rows of the target, whose columns are side by side.
    columns: 1 to `TILE_COLUMNS`, or to `STRIDED_COLUMNS` where columns of the source are more than 2 vectors apart.
    With pooling, a tile has two rows and an even number of columns, and a quarter as many positions are stored.
    """
    builder = code.builder
    scale, shift, low, high = (code.broadcast(scalar) for scalar in (scale, shift, low, high))
    tiles = {
        (stride * 2 + height) * (TILE_COLUMNS + 1) + width: (stride, height, width)
        for stride, widest in ((1, TILE_COLUMNS), (2, TILE_COLUMNS), (0, STRIDED_COLUMNS))
        for height in (1, 2)
        for width in range(1, widest + 1)
    }

    def tile(case: int) -> None:
        stride, height, width = tiles[case]  # a known stride makes constant addresses, an unknown one needs registers
        steps = [code.builder.mul(_long(stride * _BYTES) if stride else column, _long(x)) for x in range(width)]
        starts = [source, builder.add(source, row)][:height]

        def inputs(place: ir.Value) -> list[ir.Value]:
            return [code.load(builder.add(builder.add(start, place), step)) for start in starts for step in steps]

        sums = _products(code, places, weights, count, height * width, inputs)
        sums = [code.clamp(code.fma(total, scale, shift), low, high) for total in sums]
        upper, lower = sums[:width], sums[width:]

        def finish(kind: int) -> None:
            if kind == NONE:
                for y, line in enumerate((upper, lower)):
                    for x, total in enumerate(line):
                        code.store(total, builder.add(code.at(target, pitch, y), _long(_BYTES * x)))
            else:
                for x in range(0, width, 2):
                    pooled = code.pool(kind, upper[x], upper[x + 1], lower[x], lower[x + 1])
                    code.store(pooled, builder.add(target, _long(_BYTES * x // 2)))

        code.switch(pool, (NONE, MAX, AVERAGE) if height == 2 and width % 2 == 0 else (NONE,), finish)

    stride = builder.sdiv(column, _long(_BYTES))
    stride = builder.select(builder.icmp_unsigned("<=", stride, _long(2)), stride, _long(0))
    case = builder.add(builder.mul(stride, _long(2)), rows)
    code.switch(builder.add(builder.mul(case, _long(TILE_COLUMNS + 1)), columns), tiles, tile)


@_intrinsic("iiiiiiffff")
def convolve_positions(code, columns, places, weights, count, source, target, scale, shift, low, high) -> None:
    """Compute 1 to `2 * TILE_COLUMNS` vectors of neighbouring positions of one output channel.

    Arguments as in `convolve_lanes`.
    """
    builder = code.builder
    scale, shift, low, high = (code.broadcast(scalar) for scalar in (scale, shift, low, high))

    def row(width: int) -> None:
        def inputs(place: ir.Value) -> list[ir.Value]:
            start = builder.add(source, place)
            return [code.load(builder.add(start, _long(_BYTES * x))) for x in range(width)]

        for x, total in enumerate(_products(code, places, weights, count, width, inputs)):
            y = code.clamp(code.fma(total, scale, shift), low, high)
            code.store(y, builder.add(target, _long(_BYTES * x)))

    code.switch(columns, range(1, 2 * TILE_COLUMNS + 1), row)


@_intrinsic("iiiiiiiiiiiiiiff")
def multiply_units(
    code, finishes, units, columns, places, weights, pitch, count, source, column, target, plane, gap, scale, shift,
    low, high,
) -> None:  # fmt: skip
    """Products of 1 or `UNITS` units without pruned weights with 1 to `UNITS_COLUMNS` vectors of inputs.

    weights: float32, `pitch` bytes from one unit to the next; places: as in `convolve_lanes`, the same for all units.
    column: bytes from one vector to the next in the source; plane, gap: from one unit and one vector to the next in the
    target. If `finishes` is 1, sums are scaled, shifted and clamped, else added to the target. scale, shift: addresses
    of a float32 for each unit.
    """
    builder = code.builder
    low, high = code.broadcast(low), code.broadcast(high)
    cases = {
        number * (UNITS_COLUMNS + 1) + width: (number, width)
        for number in (1, UNITS)
        for width in range(1, UNITS_COLUMNS + 1)
    }

    def product(case: int) -> None:
        number, width = cases[case]
        starts = [code.builder.add(source, builder.mul(column, _long(x))) for x in range(width)]
        rows = [builder.add(weights, builder.mul(pitch, _long(unit))) for unit in range(number)]

        def terms(index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            place = builder.sext(code.load(code.at(places, index, 4), _WORD), _LONG)
            inputs = [code.load(builder.add(start, place)) for start in starts]
            added = []
            for unit, row in enumerate(rows):
                weight = code.broadcast(code.load(code.at(row, index, 4), _FLOAT))
                added += map(code.fma, [weight] * width, inputs, sums[unit * width : (unit + 1) * width])
            return added

        sums = code.sums(count, number * width, terms)

        def store(finish: int) -> None:
            for unit in range(number):
                factors = [code.at(one, _long(unit), 4) for one in (scale, shift)] if finish else []
                factors = [code.broadcast(code.load(address, _FLOAT)) for address in factors]
                for x in range(width):
                    place = builder.add(builder.mul(plane, _long(unit)), builder.mul(gap, _long(x)))
                    address, total = builder.add(target, place), sums[unit * width + x]
                    if finish:
                        total = code.clamp(code.fma(total, *factors), low, high)
                    else:
                        total = builder.fadd(code.load(address), total)
                    code.store(total, address)

        code.switch(finishes, (0, 1), store)

    code.switch(builder.add(builder.mul(units, _long(UNITS_COLUMNS + 1)), columns), cases, product)


@_intrinsic("iiiiiii")
def multiply_rows(code, units, kind, values, codebook, count, source, target) -> None:
    """Products of 1 or `UNITS` units without pruned weights with `count` inputs that lie side by side, for one image.

    The weights of a unit follow those of the unit before. Sums are stored side by side.
    """
    builder = code.builder
    cases = {4 * number + of: (number, of) for number in (1, UNITS) for of in _KINDS}

    def product(case: int) -> None:
        number, of = cases[case]
        rows = [builder.mul(count, _long(unit)) for unit in range(number)]

        def vector(index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            inputs = code.load(code.at(source, index, 4))
            places = [code.at(values, builder.add(row, index), VALUE_BYTES[of]) for row in rows]
            weights = [code.decode(of, place, codebook) for place in places]
            return [code.fma(weight, inputs, total) for weight, total in zip(weights, sums, strict=True)]

        def single(index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
            index = builder.add(index, whole)
            one = code.load(code.at(source, index, 4), _FLOAT)
            weights = [code.decode_one(of, values, builder.add(row, index), codebook) for row in rows]
            weights = [builder.extract_element(weight, ir.Constant(_WORD, 0)) for weight in weights]
            return [builder.fadd(total, builder.fmul(weight, one)) for weight, total in zip(weights, sums, strict=True)]

        whole = builder.and_(count, _long(-WIDTH))
        sums = code.loop(whole, _long(WIDTH), [_ZEROS] * number, vector)
        sums = code.loop(builder.sub(count, whole), _long(1), [code.total(one) for one in sums], single)
        for unit, total in enumerate(sums):
            code.store(total, code.at(target, _long(unit), 4))

    code.switch(builder.add(builder.mul(units, _long(4)), kind), cases, product)


@_intrinsic("iiiii")
def pool_lanes(code, pool, upper, lower, count, target) -> None:
    """Pool two rows of `count` vectors, an even number, to half as many vectors."""
    builder = code.builder

    def emit(kind: int) -> None:
        def body(index: ir.Value, _: list) -> list:
            places = [builder.add(index, _long(x)) for x in (0, 1)]
            corners = [code.load(code.at(row, place, _BYTES)) for row in (upper, lower) for place in places]
            code.store(code.pool(kind, *corners), code.at(target, index, _BYTES // 2))
            return []

        code.loop(count, _long(2), [], body)

    code.switch(pool, (MAX, AVERAGE), emit)


@_intrinsic("iiiiiiiff")
def finish_row(code, pool, source, pitch, addend, target, odd, width, low, high) -> None:
    """Copy a row of `width` floats to `target`, or pool two rows that are `pitch` bytes apart into it.

    If `addend` is not 0, it is the address of a row to add; the sums are clamped, and nothing is pooled. If `odd` is
    not 0, every second float goes to another row, `odd` bytes after the first.
    """
    builder = code.builder
    split, added = (builder.zext(builder.icmp_signed("!=", address, _long(0)), _LONG) for address in (odd, addend))
    low, high = code.broadcast(low), code.broadcast(high)
    cases = {4 * kind + halves: (kind, halves, False) for kind in (NONE, MAX, AVERAGE) for halves in (0, 1)}
    cases |= {4 * NONE + 2 + halves: (NONE, halves, True) for halves in (0, 1)}

    def finish(case: int) -> None:
        kind, halves, adds = cases[case]

        def result(index: ir.Value) -> ir.Value:
            if kind == NONE:
                value = code.load(code.at(source, index, 4))
                if adds:
                    value = code.clamp(builder.fadd(value, code.load(code.at(addend, index, 4))), low, high)
                return value
            upper = code.at(source, index, 8)
            rows = [
                (code.load(y), code.load(builder.add(y, _long(_BYTES)))) for y in (upper, builder.add(upper, pitch))
            ]
            corners = [
                builder.shuffle_vector(*pair, ir.Constant(_WORDS, list(range(parity, 2 * WIDTH, 2))))
                for pair in rows
                for parity in (0, 1)
            ]
            return code.pool(kind, *corners)

        def store(index: ir.Value, left: ir.Value | None) -> None:
            """Store a vector, or the first `left` lanes of it: a masked store costs more."""
            value = result(index)
            parts = [(value, code.at(target, index, 4), left)]
            if halves:
                parts = []
                for parity, row in enumerate((target, builder.add(target, odd))):
                    lanes = list(range(parity, WIDTH, 2))
                    half = builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(_WORD, len(lanes)), lanes))
                    count = None if left is None else builder.ashr(builder.add(left, _long(1 - parity)), _long(1))
                    parts.append((half, code.at(row, index, 2), count))
            for part, address, count in parts:
                if count is None:
                    code.store(part, address)
                else:
                    code.store_first(part, address, count)

        def body(index: ir.Value, _: list) -> list:
            store(index, None)
            return []

        whole = builder.and_(width, _long(-WIDTH))
        code.loop(whole, _long(WIDTH), [], body)
        with builder.if_then(builder.icmp_signed("<", whole, width)):
            store(whole, builder.sub(width, whole))

    number = builder.add(builder.mul(pool, _long(4)), builder.add(builder.mul(added, _long(2)), split))
    code.switch(number, cases, finish)


@_intrinsic("ii")
def clear(code, target, count) -> None:
    """Set `count` floats, rounded up to whole vectors, to 0."""

    def body(index: ir.Value, _: list) -> list:
        code.store(_ZEROS, code.at(target, index, 4))
        return []

    code.loop(count, _long(WIDTH), [], body)


@_intrinsic("iiiif")
def pool_row(code, op, source, count, target, start) -> None:
    """Pool `count` floats to one as `cpu._reduce` does, for an operation of `rows.POOLS`; several are taken at once.

    start: what pooling starts with.
    """
    builder = code.builder

    def take(kind: int, total: ir.Value, value: ir.Value) -> ir.Value:
        if kind == rows.AVERAGE_POOL:
            return builder.fadd(total, value)
        if kind == rows.MAX_POOL:
            return builder.select(builder.fcmp_ordered(">", value, total), value, total)
        stays = builder.or_(builder.fcmp_ordered(">", total, value), builder.fcmp_unordered("uno", total, total))
        return builder.select(stays, total, value)

    def pool(kind: int) -> None:
        def vector(index: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
            return [take(kind, totals[0], code.load(code.at(source, index, 4)))]

        def number(index: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
            return [take(kind, totals[0], code.load(code.at(rest, index, 4), _FLOAT))]

        whole = builder.and_(count, _long(-WIDTH))
        (totals,) = code.loop(whole, _long(WIDTH), [code.broadcast(start)], vector)
        parts = [builder.extract_element(totals, ir.Constant(_WORD, lane)) for lane in range(WIDTH)]
        while len(parts) > 1:
            half = len(parts) // 2
            parts = [take(kind, *pair) for pair in zip(parts[:half], parts[half:], strict=True)]
        rest = code.at(source, whole, 4)
        (total,) = code.loop(builder.sub(count, whole), _long(1), parts, number)
        code.store(total, target)

    code.switch(op, rows.POOLS, pool)


@_intrinsic("iiii")
def clear_gaps(code, target, pitch, rows, count) -> None:
    """Set the first `count` floats of each of `rows` rows, `pitch` bytes apart, to 0."""

    def row(number: ir.Value, _: list) -> list:
        start = code.builder.add(target, code.builder.mul(pitch, number))

        def column(index: ir.Value, _: list) -> list:
            code.store(ir.Constant(_FLOAT, 0.0), code.at(start, index, 4))
            return []

        code.loop(count, _long(1), [], column)
        return []

    code.loop(rows, _long(1), [], row)


def _groups(code: _CodeBuilder, counts, slots, body: Callable) -> None:
    """Emit `body(slot, entry, most)` for each group of a cell: its first slot, its first weight, its longest slot.

    `slots` is the number of slots that have weights. A group is `WIDTH` neighbouring slots with interleaved weights.
    """
    builder = code.builder

    def group(slot: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
        most = builder.zext(code.load(code.at(counts, slot, 2), _HALF), _LONG)
        body(slot, carried[0], most)
        return [builder.add(carried[0], builder.mul(most, _long(WIDTH)))]

    code.loop(slots, _long(WIDTH), [_long(0)], group)


@_intrinsic("iiiiiiiiiiii")
def accumulate(code, blocks, kind, taps, values, codebook, counts, members, slots, source, block, target, gap) -> None:
    """Add a cell's products to the sums of its units, for 1 to `MAX_BLOCKS` blocks of images.

    counts: uint16, the number of weights of each slot; members: uint8, the unit of each slot; slots: how many slots
    have weights. block, gap: bytes between blocks of the source and of the target.
    """
    builder = code.builder
    sizes = [(kind, number) for kind in (UINT8, UINT16, FLOAT32) for number in range(1, MAX_BLOCKS + 1)]

    def product(case: int) -> None:
        of, number = sizes[case]
        starts = [code.at(source, block, number) for number in range(number)]

        def group(first: ir.Value, entry: ir.Value, _most: ir.Value) -> None:
            def slot(lane: ir.Value, _: list) -> list:
                own, place = builder.add(first, lane), builder.add(entry, lane)
                count = builder.zext(code.load(code.at(counts, own, 2), _HALF), _LONG)
                unit = code.at(target, builder.zext(code.load(builder.add(members, own), _BYTE), _LONG), _BYTES)
                targets = [code.at(unit, gap, number) for number in range(number)]

                def add(turn: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                    at = builder.add(place, builder.mul(turn, _long(WIDTH)))
                    tap = builder.zext(code.load(code.at(taps, at, 2), _HALF), _LONG)
                    weight = code.decode_one(of, values, at, codebook)
                    inputs = (code.load(code.at(start, tap, _BYTES)) for start in starts)
                    return [code.fma(weight, value, total) for value, total in zip(inputs, sums, strict=True)]

                sums = code.loop(count, _long(1), [code.load(address) for address in targets], add)
                for address, total in zip(targets, sums, strict=True):
                    code.store(total, address)
                return []

            left = builder.sub(slots, first)
            lanes = builder.select(builder.icmp_signed("<", left, _long(WIDTH)), left, _long(WIDTH))
            code.loop(lanes, _long(1), [], slot)

        _groups(code, counts, slots, group)

    # A single weight is read from a short codebook as from any other.
    kind = builder.select(builder.icmp_signed("==", kind, _long(SHORT)), _long(UINT8), kind)
    code.switch(
        builder.add(builder.mul(kind, _long(MAX_BLOCKS)), builder.sub(blocks, _long(1))), range(len(sizes)), product
    )


@_intrinsic("iiiiiiff")
def finish_lanes(code, blocks, units, target, gap, scale, shift, low, high) -> None:
    """Scale, shift and clamp the sums of neighbouring units, for 1 to `MAX_BLOCKS` blocks of images.

    scale, shift: addresses of a float32 for each unit; gap: bytes between blocks.
    """
    low, high = code.broadcast(low), code.broadcast(high)

    def finish(number: int) -> None:
        def body(unit: ir.Value, _: list) -> list:
            a, b = (code.broadcast(code.load(code.at(array, unit, 4), _FLOAT)) for array in (scale, shift))
            own = code.at(target, unit, _BYTES)
            for address in [code.at(own, gap, number) for number in range(number)]:
                code.store(code.clamp(code.fma(code.load(address), a, b), low, high), address)
            return []

        code.loop(units, _long(1), [], body)

    code.switch(blocks, range(1, MAX_BLOCKS + 1), finish)


@_intrinsic("iiiiiiiii")
def dot(code, kind, taps, values, codebook, counts, members, slots, source, target) -> None:
    """Add a cell's products to the sums of its units, for one image; arguments as in `accumulate`."""
    builder = code.builder

    def product(of: int) -> None:
        def group(first: ir.Value, entry: ir.Value, most: ir.Value) -> None:
            own = code.load(code.at(counts, first, 2), ir.VectorType(_HALF, WIDTH))

            def add(turn: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                at = builder.add(entry, builder.mul(turn, _long(WIDTH)))
                weights = code.decode(of, code.at(values, at, VALUE_BYTES[of]), codebook)
                inputs = code.gather(source, code.at(taps, at, 2), 2)
                # A filler must not be multiplied by an input, which may be infinite.
                there = builder.icmp_unsigned("<", code.broadcast(builder.trunc(turn, _HALF)), own)
                return [builder.select(there, code.fma(weights, inputs, sums[0]), sums[0])]

            (sums,) = code.loop(most, _long(1), [_ZEROS], add)
            for lane in range(WIDTH):
                member = code.load(builder.add(members, builder.add(first, _long(lane))), _BYTE)
                place = code.at(target, builder.zext(member, _LONG), 4)
                total = builder.extract_element(sums, ir.Constant(_WORD, lane))
                code.store(builder.fadd(code.load(place, _FLOAT), total), place)

        _groups(code, counts, slots, group)

    code.switch(kind, _KINDS, product)


@_intrinsic("iiiff")
def finish_vector(code, target, scale, shift, low, high) -> None:
    """Scale, shift and clamp the `WIDTH` sums at `target`; scale, shift: addresses of as many floats."""
    low, high = code.broadcast(low), code.broadcast(high)
    code.store(code.clamp(code.fma(code.load(target), code.load(scale), code.load(shift)), low, high), target)
