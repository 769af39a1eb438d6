"""Machine code for the vector operations of ``kernels.vector``: the LLVM instructions that each of them emits."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, lower_builtin, models, register_model

from gennorm.engine.kernels.vector import LANES, WIDE

from .private import AbstractTemplate, infer_global, processor, registry

INT32 = ir.IntType(32)
INT64 = ir.IntType(64)
FLOAT = ir.FloatType()
DOUBLE = ir.DoubleType()


class VectorType(types.Type):
    """A vector of ``LANES`` or ``WIDE`` numbers of one floating type, in registers."""

    def __init__(self, element: types.Float, lanes: int = LANES) -> None:
        self.element, self.lanes = element, lanes
        super().__init__(name=f"vector({element} x {lanes})")


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, ir.VectorType(manager.lookup(kind.element).get_value_type(), kind.lanes))


def _elementwise(operation: Callable[..., Any], instruction: str) -> None:
    """Define an operator for two vectors, or for a vector and a number, which is broadcast to all lanes."""

    @infer_global(operation)
    class Elementwise(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            kinds = [kind for kind in args if isinstance(kind, VectorType)]
            if len(args) == 2 and kinds and all(kind in (kinds[0], kinds[0].element) for kind in args):
                return kinds[0](*args)
            return None

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*_alike(builder, *args))

    for kinds in ((VectorType, VectorType), (VectorType, types.Float), (types.Float, VectorType)):
        lower_builtin(operation, *kinds)(lower)


def _alike(builder: Any, *values: Any) -> list[Any]:
    """Broadcast numbers to vectors if one of the values is a vector."""
    lanes = max(value.type.count if isinstance(value.type, ir.VectorType) else 0 for value in values)
    return [
        _splat(builder, value, lanes) if lanes and not isinstance(value.type, ir.VectorType) else value
        for value in values
    ]


for _operation in (operator.add, operator.iadd):
    _elementwise(_operation, "fadd")
for _operation in (operator.sub, operator.isub):
    _elementwise(_operation, "fsub")
for _operation in (operator.mul, operator.imul):
    _elementwise(_operation, "fmul")
_elementwise(operator.truediv, "fdiv")


def _constant(kind: ir.Type, values: Sequence[float]) -> ir.Constant:
    return ir.Constant(ir.VectorType(kind, len(values)), values)


def _splat(builder: Any, scalar: Any, lanes: int = LANES) -> Any:
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
    return builder.shuffle_vector(first, undefined, _constant(INT32, [0] * lanes))


def _lanes_below(builder: Any, count: Any) -> Any:
    """Return the mask of the first ``count`` lanes. The comparison is signed: a negative count selects no lane."""
    return builder.icmp_signed("<", _constant(INT64, list(range(LANES))), _splat(builder, count))


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.data_model_manager[array_type].get(builder, array, "data"), [index])


def _name(kind: ir.Type) -> str:
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{_name(kind.element)}"
    if isinstance(kind, ir.IntType):
        return f"i{kind.width}"
    return {FLOAT: "f32", DOUBLE: "f64"}[kind]


def _pointer(builder: Any, address: Any, kind: ir.Type, lanes: int) -> Any:
    return builder.bitcast(address, ir.VectorType(kind, lanes).as_pointer())


def _function(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    declared = builder.module.globals.get(name)
    return declared or ir.Function(builder.module, ir.FunctionType(result, arguments), name)


def _read(builder: Any, address: Any, kind: ir.Type, lanes: int, count: Any = None) -> Any:
    """Load a vector from any address: with alignment 1, unaligned arrays are allowed."""
    pointer = _pointer(builder, address, kind, lanes)
    if count is None:
        loaded = builder.load(pointer)
        loaded.align = 1
        return loaded
    vector, mask = pointer.type.pointee, _lanes_below(builder, count)
    function = _function(
        builder, f"llvm.masked.load.{_name(vector)}.p0", vector, [pointer.type, INT32, mask.type, vector]
    )
    return builder.call(function, [pointer, ir.Constant(INT32, 1), mask, ir.Constant(vector, None)])


def _write(builder: Any, address: Any, vector: Any, count: Any = None) -> None:
    pointer = _pointer(builder, address, vector.type.element, vector.type.count)
    if count is None:
        builder.store(vector, pointer).align = 1
        return
    mask = _lanes_below(builder, count)
    function = _function(
        builder,
        f"llvm.masked.store.{_name(vector.type)}.p0",
        ir.VoidType(),
        [vector.type, pointer.type, INT32, mask.type],
    )
    builder.call(function, [vector, pointer, ir.Constant(INT32, 1), mask])


class Bfloat16(ir.Type):
    """LLVM's type bfloat, which llvmlite does not have."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bfloat16)

    def __hash__(self) -> int:
        return hash(Bfloat16)


def _bfloat16_from(builder: Any, vector: Any) -> Any:
    """Round float32 to the nearest bfloat16, ties to even; NaN stays a (quiet) NaN.

    The instruction that some processors have gives the same results, NaN included, but takes subnormal numbers for 0. A
    vector with one of these is converted with integer instructions: 10 operations, instead of 4 for the instruction
    and the check.
    """
    if not _has("avx512bf16", "avx512dq"):
        return _bfloat16_in_integers(builder, vector)
    short = ir.VectorType(ir.IntType(16), LANES)
    rounded, subnormal = [], ir.Constant(short.element, 0)
    for first in range(0, vector.type.count, LANES):
        lanes = _constant(INT32, list(range(first, first + LANES)))
        part = builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), lanes)
        native = ir.VectorType(Bfloat16(), LANES)
        function = _function(builder, "llvm.x86.avx512bf16.cvtneps2bf16.512", native, [part.type])
        rounded.append(builder.bitcast(builder.call(function, [part]), short))
        mask = ir.VectorType(ir.IntType(1), LANES)
        function = _function(builder, "llvm.x86.avx512.fpclass.ps.512", mask, [part.type, INT32])
        found = builder.call(function, [part, ir.Constant(INT32, 0x20)])  # the class of subnormal numbers
        subnormal = builder.or_(subnormal, builder.bitcast(found, short.element))
    while len(rounded) > 1:
        both = _constant(INT32, list(range(2 * rounded[0].type.count)))
        rounded = [builder.shuffle_vector(*pair, both) for pair in zip(rounded[::2], rounded[1::2], strict=True)]
    before = builder.basic_block
    with builder.if_then(builder.icmp_unsigned("!=", subnormal, ir.Constant(subnormal.type, 0)), likely=False):
        exact = _bfloat16_in_integers(builder, vector)
        inside = builder.basic_block
    chosen = builder.phi(exact.type)
    chosen.add_incoming(rounded[0], before)
    chosen.add_incoming(exact, inside)
    return chosen


def _bfloat16_in_integers(builder: Any, vector: Any) -> Any:
    """Do the same on any processor, with integer instructions."""
    lanes = vector.type.count

    def each(value: int) -> ir.Constant:
        return _constant(INT32, [value] * lanes)

    bits = builder.bitcast(vector, ir.VectorType(INT32, lanes))
    high = builder.lshr(bits, each(16))
    odd = builder.and_(high, each(1))
    nearest = builder.lshr(builder.add(bits, builder.add(odd, each(0x7FFF))), each(16))
    nan = builder.fcmp_unordered("uno", vector, vector)
    chosen = builder.select(nan, builder.or_(high, each(0x40)), nearest)
    return builder.trunc(chosen, ir.VectorType(ir.IntType(16), lanes))


def _has(*features: str) -> bool:
    """Return whether the processor that is compiled for has all of these features."""
    return {f"+{feature}" for feature in features} <= {*processor()[2].split(",")}


def _has_halves() -> bool:
    """Return whether the processor converts float16. If not, LLVM would call a function that is not linked."""
    triple, _, _ = processor()
    return _has("f16c") or triple.startswith(("aarch64", "arm64"))


def _float16_to(builder: Any, vector: Any) -> Any:
    """Convert float16 to float32 with integer instructions, to the bits that processors give; NaN becomes quiet."""
    lanes = vector.type.count
    single = ir.VectorType(FLOAT, lanes)

    def each(value: int) -> ir.Constant:
        return _constant(INT32, [value] * lanes)

    bits = builder.zext(vector, ir.VectorType(INT32, lanes))
    sign, size = builder.shl(builder.and_(bits, each(0x8000)), each(16)), builder.and_(bits, each(0x7FFF))
    moved = builder.shl(size, each(13))
    normal = builder.add(moved, each(112 << 23))  # the exponent's bias is 127 instead of 15
    beyond = builder.or_(moved, each(0x7F800000))
    quiet = builder.select(builder.icmp_unsigned(">", size, each(0x7C00)), each(0x400000), each(0))
    # No float32 here is subnormal: a process may have set its processor to take subnormal numbers for 0.
    least = builder.fmul(builder.uitofp(size, single), _constant(FLOAT, [2.0**-24] * lanes))
    found = builder.select(builder.icmp_unsigned("<", size, each(0x7C00)), normal, builder.or_(beyond, quiet))
    small = builder.icmp_unsigned("<", size, each(0x400))
    found = builder.select(small, builder.bitcast(least, ir.VectorType(INT32, lanes)), found)
    return builder.bitcast(builder.or_(found, sign), single)


def _float16_from(builder: Any, vector: Any) -> Any:
    """Round float32 to the nearest float16, ties to even, with integer instructions; NaN becomes quiet.

    The upper bits of its payload are preserved.
    """
    lanes = vector.type.count
    integers = ir.VectorType(INT32, lanes)

    def each(value: int) -> ir.Constant:
        return _constant(INT32, [value] * lanes)

    bits = builder.bitcast(vector, integers)
    sign, size = builder.and_(builder.lshr(bits, each(16)), each(0x8000)), builder.and_(bits, each(0x7FFFFFFF))
    most = each(0x47800000)  # 2**16 and larger numbers are infinite
    bounded = builder.select(builder.icmp_unsigned(">", size, most), most, size)
    odd = builder.and_(builder.lshr(bounded, each(13)), each(1))
    normal = builder.lshr(builder.add(builder.add(bounded, odd), each(0xFFF - (112 << 23))), each(13))
    # The last place of 0.5 is that of a float16 below 2**-14, so adding 0.5 rounds to it.
    half = builder.fadd(builder.bitcast(size, vector.type), _constant(FLOAT, [0.5] * lanes))
    subnormal = builder.sub(builder.bitcast(half, integers), each(0x3F000000))
    nan = builder.or_(builder.and_(builder.lshr(size, each(13)), each(0x3FF)), each(0x7E00))
    found = builder.select(builder.icmp_unsigned("<", size, each(0x38800000)), subnormal, normal)
    found = builder.select(builder.icmp_unsigned(">", size, each(0x7F800000)), nan, found)
    return builder.trunc(builder.or_(found, sign), ir.VectorType(ir.IntType(16), lanes))


def _decoded(builder: Any, vector: Any, storage: str) -> Any:
    """Convert a loaded vector from its storage dtype to the type of the arithmetic."""
    lanes = vector.type.count
    single, double = ir.VectorType(FLOAT, lanes), ir.VectorType(DOUBLE, lanes)
    if storage == "float16":
        if not _has_halves():
            return _float16_to(builder, vector)
        halves = builder.bitcast(vector, ir.VectorType(ir.HalfType(), lanes))
        # Without the fence LLVM merges this with a later conversion to float64, and one such instruction is slower.
        fence = _function(builder, f"llvm.arithmetic.fence.{_name(single)}", single, [single])
        return builder.call(fence, [builder.fpext(halves, single)])
    if storage == "bfloat16":
        bits = builder.zext(vector, ir.VectorType(INT32, lanes))
        return builder.bitcast(builder.shl(bits, _constant(INT32, [16] * lanes)), single)
    if storage in ("bool", "uint8", "uint16"):
        return builder.uitofp(vector, single)
    if storage in ("int8", "int16"):
        return builder.sitofp(vector, single)
    if storage in ("uint32", "uint64"):
        return builder.uitofp(vector, double)
    if storage in ("int32", "int64"):
        return builder.sitofp(vector, double)
    return vector  # float32 and float64 need no conversion


def _encoded(builder: Any, vector: Any, storage: str) -> Any:
    """Convert a vector from the type of the arithmetic to the storage dtype, before it is stored."""
    lanes = vector.type.count
    if storage == "float16":
        if not _has_halves():
            return _float16_from(builder, vector)
        half = builder.fptrunc(vector, ir.VectorType(ir.HalfType(), lanes))
        return builder.bitcast(half, ir.VectorType(ir.IntType(16), lanes))
    return _bfloat16_from(builder, vector) if storage == "bfloat16" else vector


def _loader(storage: str, compute: types.Float, lanes: int, *, partial: bool = False) -> Any:
    def read(array: Any, *where: Any) -> Any:
        # Parameters and scratch arrays have the type of the arithmetic, whatever the input's storage dtype is.
        plain = isinstance(array.dtype, types.Float)

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            address = _address(context, builder, sig.args[0], args[0], args[1])
            vector = _read(builder, address, address.type.pointee, lanes, *args[2:])
            return vector if plain else _decoded(builder, vector, storage)

        result = VectorType(array.dtype if plain else compute, lanes)
        return result(array, *[types.intp] * len(where)), lower

    if partial:
        return intrinsic(lambda typing, array, start, count: read(array, start, count))
    return intrinsic(lambda typing, array, start: read(array, start))


def _storer(storage: str, *, partial: bool = False) -> Any:
    def write(array: Any, vector: Any, *where: Any) -> Any:
        plain = isinstance(array.dtype, types.Float)

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            address = _address(context, builder, sig.args[0], args[0], args[1])
            stored = args[-1] if plain else _encoded(builder, args[-1], storage)
            _write(builder, address, stored, *args[2:-1])
            return context.get_dummy_value()

        return types.void(array, *[types.intp] * len(where), vector), lower

    if partial:
        return intrinsic(lambda typing, array, start, count, vector: write(array, vector, start, count))
    return intrinsic(lambda typing, array, start, vector: write(array, vector, start))


def _splatter(lanes: int) -> Any:
    def splat(typing: Any, value: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _splat(builder, args[0], lanes)

        return VectorType(value, lanes)(value), lower

    return intrinsic(splat)


@intrinsic
def widen(typing: Any, vector: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if vector.element == types.float64:
            return args[0]
        return builder.fpext(args[0], ir.VectorType(DOUBLE, vector.lanes))

    return VectorType(types.float64, vector.lanes)(vector), lower


@intrinsic
def like(typing: Any, vector: Any, number: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if vector.element == number:
            return args[0]
        return builder.fpext(args[0], ir.VectorType(DOUBLE, vector.lanes))

    return VectorType(number, vector.lanes)(vector, number), lower


def _narrower(compute: types.Float) -> Any:
    def narrow(typing: Any, vector: Any) -> Any:
        result = VectorType(compute, vector.lanes)

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            if compute == types.float64:
                return args[0]
            return builder.fptrunc(args[0], context.get_value_type(result))

        return result(vector), lower

    return intrinsic(narrow)


@intrinsic
def root(typing: Any, value: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        return builder.call(_function(builder, f"llvm.sqrt.{_name(kind)}", kind, [kind]), args)

    return value(value), lower


@intrinsic
def inverse(typing: Any, value: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, one, zero = _alike(builder, args[0], ir.Constant(DOUBLE, 1.0), ir.Constant(DOUBLE, 0.0))
        return builder.select(builder.fcmp_ordered("==", value, zero), zero, builder.fdiv(one, value))

    return value(value), lower


@intrinsic
def larger(typing: Any, value: Any, least: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, least = _alike(builder, *args)
        return builder.select(builder.fcmp_ordered("<", value, least), least, value)

    return value(value, least), lower


@intrinsic
def exceeds(typing: Any, value: Any, limit: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, limit, one, zero = _alike(builder, *args, ir.Constant(DOUBLE, 1.0), ir.Constant(DOUBLE, 0.0))
        return builder.select(builder.fcmp_ordered(">", value, limit), one, zero)

    return value(value, limit), lower


@intrinsic
def choose(typing: Any, flag: Any, one: Any, other: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        flag = builder.fcmp_unordered("!=", args[0], ir.Constant(args[0].type, None))
        return builder.select(flag, args[1], args[2])

    return one(flag, one, other), lower


@intrinsic
def muladd(typing: Any, one: Any, two: Any, three: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        function = _function(builder, f"llvm.fmuladd.{_name(kind)}", kind, [kind] * 3)
        return builder.call(function, args)

    return one(one, two, three), lower


@intrinsic
def first_lanes(typing: Any, vector: Any, count: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(_lanes_below(builder, args[1]), args[0], ir.Constant(args[0].type, None))

    return vector(vector, types.intp), lower


@intrinsic
def total(typing: Any, vector: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, width = args[0], LANES
        while width > 1:
            width //= 2
            undefined = ir.Constant(value.type, ir.Undefined)
            low = builder.shuffle_vector(value, undefined, _constant(INT32, list(range(width))))
            high = builder.shuffle_vector(value, undefined, _constant(INT32, list(range(width, 2 * width))))
            value = builder.fadd(low, high)
        return builder.extract_element(value, ir.Constant(INT32, 0))

    return vector.element(vector), lower


@intrinsic
def to_alignment(typing: Any, array: Any, start: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        itemsize = array.dtype.bitwidth // 8
        address = builder.ptrtoint(_address(context, builder, sig.args[0], args[0], args[1]), INT64)
        beyond = builder.and_(builder.neg(address), ir.Constant(INT64, min(64, LANES * itemsize) - 1))
        return builder.udiv(beyond, ir.Constant(INT64, itemsize))

    return types.intp(array, types.intp), lower


@intrinsic
def is_aligned(typing: Any, array: Any, start: Any, step: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        itemsize = ir.Constant(INT64, array.dtype.bitwidth // 8)
        address = builder.ptrtoint(_address(context, builder, sig.args[0], args[0], args[1]), INT64)
        odd = builder.and_(builder.or_(address, builder.mul(args[2], itemsize)), ir.Constant(INT64, 15))
        return builder.icmp_unsigned("==", odd, ir.Constant(INT64, 0))

    return types.boolean(array, types.intp, types.intp), lower


def _streamer(storage: str, alignment: int = 64) -> Any:
    def stream(typing: Any, array: Any, start: Any, vector: Any) -> Any:
        plain = isinstance(array.dtype, types.Float)

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            address = _address(context, builder, sig.args[0], args[0], args[1])
            stored = args[2] if plain else _encoded(builder, args[2], storage)
            instruction = builder.store(stored, _pointer(builder, address, stored.type.element, stored.type.count))
            instruction.align = min(alignment, LANES * (array.dtype.bitwidth // 8))
            instruction.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(INT32, 1)]))
            return context.get_dummy_value()

        return types.void(array, types.intp, vector), lower

    return intrinsic(stream)


@intrinsic
def prefetch(typing: Any, array: Any, start: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        address = _address(context, builder, sig.args[0], args[0], args[1])
        pointer = builder.bitcast(address, ir.IntType(8).as_pointer())
        function = _function(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer.type, INT32, INT32, INT32])
        builder.call(function, [pointer, ir.Constant(INT32, 0), ir.Constant(INT32, 3), ir.Constant(INT32, 1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), lower


@intrinsic
def fence(typing: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), lower


@intrinsic
def least(typing: Any, one: Any, two: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.icmp_signed("<", *args), *args)

    return types.intp(types.intp, types.intp), lower


@intrinsic
def most(typing: Any, one: Any, two: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.icmp_signed(">", *args), *args)

    return types.intp(types.intp, types.intp), lower


@intrinsic
def whole(typing: Any, value: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.fptosi(args[0], INT64)

    return types.intp(types.float64), lower


@registry.lower(operator.getitem, types.Array, types.Integer)
def _getitem(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    """Load an element without Numba's check for a negative index: kernels do not use negative indices."""
    loaded = builder.load(_address(context, builder, sig.args[0], *args))
    loaded.align = 1  # as everywhere: parameters and moments may be unaligned arrays
    return loaded


@registry.lower(operator.setitem, types.Array, types.Integer, types.Any)
def _setitem(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    array, index, value = args
    converted = context.cast(builder, value, sig.args[2], sig.args[0].dtype)
    builder.store(converted, _address(context, builder, sig.args[0], array, index)).align = 1
    return context.get_dummy_value()


@functools.cache
def vector_operations(storage: str, result: str, compute: str) -> dict[str, Any]:
    """Return all operations of ``vector`` for one input dtype, one output dtype and one type of arithmetic, by name."""
    real: types.Float = types.float64 if compute == "float64" else types.float32
    return {
        # Python's functions, for two integers and for a float. Numba would compile a function for each.
        "min": least,
        "max": most,
        "int": whole,
        "load": _loader(storage, real, LANES),
        "load_part": _loader(storage, real, LANES, partial=True),
        "load_wide": _loader(storage, real, WIDE),
        "store": _storer(result),
        "store_part": _storer(result, partial=True),
        "splat": _splatter(LANES),
        "splat_wide": _splatter(WIDE),
        "widen": widen,
        "like": like,
        "narrow": _narrower(real),
        "root": root,
        "inverse": inverse,
        "larger": larger,
        "exceeds": exceeds,
        "choose": choose,
        "muladd": muladd,
        "first_lanes": first_lanes,
        "total": total,
        "to_alignment": to_alignment,
        "stream": _streamer(result),
        "is_aligned": is_aligned,
        "stream_aligned": _streamer(result, 16),
        "fence": fence,
        "prefetch": prefetch,
    }
