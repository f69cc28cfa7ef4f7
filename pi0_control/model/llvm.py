"""Instructions for ``amx.py``: what LLVM is to compile for a row of tokens or a step of a product, on addresses."""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from pi0_control.model.gemma import RMS_NORM_EPS
from pi0_control.model.siglip import LAYER_NORM_EPS

_settings = {name: getattr(config, name) for name in ("CPU_NAME", "CPU_FEATURES", "DISABLE_JIT")}
if any(_settings.values()) or not get_host_cpu_features().get("amx-bf16"):
    raise ImportError(f"Numba does not compile for this CPU's tile registers; its settings are {_settings}")

LINES = 5  # of 64 bytes of the next panel to fetch in each step, so that 7 blocks fetch all of it
TILE = 1024  # bytes

_BYTE, _SHORT, _INT, _LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_FLOAT = ir.FloatType()
_FLOATS, _SHORTS, _INTS = (ir.VectorType(kind, 16) for kind in (_FLOAT, _SHORT, _INT))


def _instructions(write: Callable[..., None]) -> Any:
    """What Numba makes of a call with addresses and numbers: the instructions that ``write`` gives the builder."""

    @intrinsic
    def call(_: Any, *arguments: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            write(builder, *cgutils.unpack_tuple(builder, values[0]))
            return context.get_dummy_value()

        return types.void(types.StarArgTuple.from_types(arguments)), code

    return call


def _emit(builder: Any, name: str, *values: Any, result: Any = None) -> Any:
    kind = ir.FunctionType(result or ir.VoidType(), [value.type for value in values])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), values)


def _at(builder: Any, address: Any, offset: int = 0, kind: Any = _BYTE) -> Any:
    return builder.inttoptr(builder.add(address, _LONG(offset)), ir.PointerType(kind))


def _item(builder: Any, address: Any, index: Any, size: int) -> Any:
    return builder.add(address, builder.mul(index, _LONG(size)))


def _splat(kind: Any, value: float) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _float32(builder: Any, address: Any, offset: int = 0) -> Any:
    """16 numbers."""
    return builder.load(_at(builder, address, offset, _FLOATS), align=4)


def _bfloat16(builder: Any, address: Any, offset: int = 0) -> Any:
    """16 numbers, in float32."""
    bits = builder.zext(builder.load(_at(builder, address, offset, _SHORTS), align=2), _INTS)
    return builder.bitcast(builder.shl(bits, _splat(_INTS, 16)), _FLOATS)


def _rounded(builder: Any, x: Any) -> Any:
    """The bits of x in bfloat16, ties to even; what is not a number stays none."""
    bits = builder.bitcast(x, _INTS)
    is_odd = builder.and_(builder.lshr(bits, _splat(_INTS, 16)), _splat(_INTS, 1))
    bits = builder.add(bits, builder.add(is_odd, _splat(_INTS, 0x7FFF)))
    bits = builder.select(builder.fcmp_unordered("uno", x, x), _splat(_INTS, 0x7FC00000), bits)
    return builder.trunc(builder.lshr(bits, _splat(_INTS, 16)), _SHORTS)


def _write(builder: Any, x: Any, address: Any) -> None:
    """16 numbers in bfloat16."""
    builder.store(_rounded(builder, x), _at(builder, address, kind=_SHORTS), align=2)


def _write_line(builder: Any, halves: Sequence[Any], address: Any) -> None:
    """32 numbers in bfloat16, a whole line of a cache."""
    order = ir.Constant(ir.VectorType(_INT, 32), list(range(32)))
    line = builder.shuffle_vector(*(_rounded(builder, half) for half in halves), order)
    builder.store(line, _at(builder, address, kind=line.type), align=2)


@_instructions
def copy_line(builder: Any, source: Any, target: Any) -> None:
    """64 bytes."""
    builder.store(builder.load(_at(builder, source, kind=_INTS), align=2), _at(builder, target, kind=_INTS), align=2)


@_instructions
def copy_pair(builder: Any, source: Any, target: Any) -> None:
    """4 bytes: two numbers in bfloat16."""
    builder.store(builder.load(_at(builder, source, kind=_INT), align=2), _at(builder, target, kind=_INT), align=4)


def _load_tile(builder: Any, tile: int, address: Any, offset: int = 0) -> None:
    _emit(builder, "llvm.x86.tileloadd64", _BYTE(tile), _at(builder, address, offset), _LONG(64))


@_instructions
def begin(builder: Any, layout: Any) -> None:
    """Tiles as laid out from here on."""
    _emit(builder, "llvm.x86.ldtilecfg", _at(builder, layout))


@_instructions
def clear(builder: Any) -> None:
    """The sums of a block to 0."""
    for tile in range(4):
        _emit(builder, "llvm.x86.tilezero", _BYTE(tile))


@_instructions
def resume(builder: Any, sums: Any) -> None:
    """The sums of a block as they were kept."""
    for tile in range(4):
        _load_tile(builder, tile, sums, TILE * tile)


@_instructions
def keep(builder: Any, sums: Any) -> None:
    """The sums of a block, four tiles, in memory."""
    for tile in range(4):
        _emit(builder, "llvm.x86.tilestored64", _BYTE(tile), _at(builder, sums, TILE * tile), _LONG(64))


@_instructions
def end(builder: Any) -> None:
    """No tiles from here on."""
    _emit(builder, "llvm.x86.tilerelease")


@_instructions
def step(builder: Any, above: Any, below: Any, weights: Any, coming: Any) -> None:
    """32 tokens by 32 columns, 32 deep; fetches a tile of tokens of the step after the next, and weights to come."""
    _load_tile(builder, 4, above)
    _load_tile(builder, 5, below)
    _load_tile(builder, 6, weights)
    _load_tile(builder, 7, weights, TILE)
    for tile in range(4):
        _emit(builder, "llvm.x86.tdpbf16ps", _BYTE(tile), _BYTE(4 + tile // 2), _BYTE(6 + tile % 2))
    into_first, into_second = 3, 2
    for line in range(LINES):
        _fetch(builder, coming, 64 * line, into_second)
    for line in range(TILE // 64):  # of one of both tiles: more would hold up the weights
        _fetch(builder, above, 2 * TILE + 64 * line, into_first)


def _fetch(builder: Any, address: Any, offset: int, level: int) -> None:
    _emit(builder, "llvm.prefetch.p0", _at(builder, address, offset), _INT(0), _INT(level), _INT(1))


def _sums(builder: Any, row: Any, bias: Any) -> list[Any]:
    """A row of a block: 32 columns."""
    pairs = ((_float32(builder, row, TILE * half), _float32(builder, bias, 64 * half)) for half in range(2))
    return [builder.fadd(*pair) for pair in pairs]


@_instructions
def finish(builder: Any, row: Any, bias: Any, out: Any) -> None:
    """A row of sums -> 32 columns."""
    _write_line(builder, _sums(builder, row, bias), out)


@_instructions
def finish_added(builder: Any, row: Any, bias: Any, residual: Any, out: Any) -> None:
    """A row of sums, and 32 columns of a residual -> 32 columns."""
    before = [_bfloat16(builder, residual, 32 * half) for half in range(2)]
    pairs = zip(before, _sums(builder, row, bias), strict=True)
    _write_line(builder, [builder.fadd(*pair) for pair in pairs], out)


@_instructions
def finish_added_wide(builder: Any, row: Any, bias: Any, residual: Any, out: Any) -> None:
    """The same if residual and result are float32."""
    for half, branch in enumerate(_sums(builder, row, bias)):
        total = builder.fadd(_float32(builder, residual, 64 * half), branch)
        builder.store(total, _at(builder, out, 64 * half, _FLOATS), align=4)


@_instructions
def finish_gelu(builder: Any, row: Any, bias: Any, out: Any) -> None:
    """A row of sums -> 32 columns."""
    _write_line(builder, [_gelu(builder, half) for half in _sums(builder, row, bias)], out)


@_instructions
def finish_gated(builder: Any, row: Any, bias: Any, out: Any) -> None:
    """A row of sums, 16 gates and what they gate -> 16 columns."""
    gate, up = _sums(builder, row, bias)
    _write(builder, builder.fmul(_gelu(builder, gate), up), out)


def _gelu(builder: Any, x: Any) -> Any:
    """GELU by its tanh approximation: x / (1 + exp(-2 u)) with u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    times, plus = builder.fmul, builder.fadd
    cubic = plus(times(times(x, x), _splat(_FLOATS, -2.3022082 * 0.044715)), _splat(_FLOATS, -2.3022082))
    power = times(x, cubic)  # of two; 2^128 is infinite
    for sign, limit in (("<", 128.0), (">", -126.0)):
        power = builder.select(builder.fcmp_ordered(sign, power, _splat(_FLOATS, limit)), power, _splat(_FLOATS, limit))
    whole = _emit(builder, "llvm.floor.v16f32", power, result=_FLOATS)
    rest = builder.fsub(power, whole)
    result = _splat(_FLOATS, 0.00178967)
    for factor in (0.0091968, 0.05565866, 0.24020687, 0.69314758, 1.0):  # 2^rest, to 2e-7
        result = plus(times(result, rest), _splat(_FLOATS, factor))
    exponent = builder.shl(builder.add(builder.fptosi(whole, _INTS), _splat(_INTS, 127)), _splat(_INTS, 23))
    exponential = times(result, builder.bitcast(exponent, _FLOATS))
    return builder.fdiv(x, plus(exponential, _splat(_FLOATS, 1.0)))


@_instructions
def rms_norm_row(builder: Any, x: Any, scale: Any, shift: Any, depth: Any, target: Any, line_size: Any) -> None:
    """RMS norm of a row so many tiles deep, with scale and shift in float32, to lines so many bytes apart."""

    def column(index: Any, half: int) -> Any:
        return _bfloat16(builder, _item(builder, x, index, 64), 32 * half)

    mean = _mean(builder, depth, lambda *place: _square(builder, column(*place)))
    factor = _one_over_root(builder, mean, RMS_NORM_EPS)
    with cgutils.for_range(builder, depth) as loop:
        normed = []
        for half in range(2):
            scales, shifts = (
                _float32(builder, _item(builder, table, loop.index, 128), 64 * half) for table in (scale, shift)
            )
            scaled = builder.fmul(builder.fmul(column(loop.index, half), factor), scales)
            normed.append(builder.fadd(scaled, shifts))
        _write_line(builder, normed, builder.add(target, builder.mul(loop.index, line_size)))


@_instructions
def layer_norm_row(builder: Any, x: Any, scale: Any, shift: Any, depth: Any, target: Any) -> None:
    """LayerNorm of a row in float32 so many tiles deep, with scale and shift, to a row of tiles."""

    def column(address: Any, index: Any, half: int) -> Any:
        return _float32(builder, _item(builder, address, index, 128), 64 * half)

    def centred(index: Any, half: int) -> Any:
        return builder.fsub(column(x, index, half), mean)

    mean = _broadcast(builder, _mean(builder, depth, lambda *place: column(x, *place)))
    variance = _mean(builder, depth, lambda *place: _square(builder, centred(*place)))
    factor = _one_over_root(builder, variance, LAYER_NORM_EPS)
    with cgutils.for_range(builder, depth) as loop:
        normed = []
        for half in range(2):
            scaled = builder.fmul(builder.fmul(centred(loop.index, half), factor), column(scale, loop.index, half))
            normed.append(builder.fadd(scaled, column(shift, loop.index, half)))
        _write_line(builder, normed, _item(builder, target, loop.index, TILE))


def _mean(builder: Any, depth: Any, value: Callable[[Any, int], Any]) -> Any:
    """Of the values at both halves of so many tiles."""
    totals = cgutils.alloca_once_value(builder, _splat(_FLOATS, 0.0))
    with cgutils.for_range(builder, depth) as loop:
        for half in range(2):
            builder.store(builder.fadd(builder.load(totals), value(loop.index, half)), totals)
    total = _emit(builder, "llvm.vector.reduce.fadd.v16f32", _FLOAT(0.0), builder.load(totals), result=_FLOAT)
    return builder.fdiv(total, builder.sitofp(builder.mul(depth, _LONG(32)), _FLOAT))


def _square(builder: Any, x: Any) -> Any:
    return builder.fmul(x, x)


def _one_over_root(builder: Any, x: Any, eps: float) -> Any:
    """1 / sqrt(x + eps), 16 times."""
    root = _emit(builder, "llvm.sqrt.f32", builder.fadd(x, _FLOAT(eps)), result=_FLOAT)
    return _broadcast(builder, builder.fdiv(_FLOAT(1.0), root))


def _broadcast(builder: Any, x: Any) -> Any:
    first = builder.insert_element(ir.Constant(_FLOATS, ir.Undefined), x, _INT(0))
    return builder.shuffle_vector(first, first, _splat(_INTS, 0))


@_instructions
def rotate_head(builder: Any, x: Any, cos: Any, sin: Any, half: Any, target: Any) -> None:
    """A head of twice ``half`` times 16 columns, by the cosines and signed sines of all of them."""
    with cgutils.for_range(builder, half) as loop:
        far = builder.add(loop.index, half)
        columns = [_bfloat16(builder, _item(builder, x, index, 32)) for index in (loop.index, far)]
        for index, (own, other) in ((loop.index, columns), (far, columns[::-1])):
            cosines, sines = (_float32(builder, _item(builder, table, index, 64)) for table in (cos, sin))
            rotated = builder.fadd(builder.fmul(own, cosines), builder.fmul(other, sines))
            _write(builder, rotated, _item(builder, target, index, 32))
