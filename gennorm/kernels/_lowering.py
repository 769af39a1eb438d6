"""The machine's version of the words in ``vector``: what LLVM is told for each of them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

from .vector import LANES

INT32 = ir.IntType(32)
INT64 = ir.IntType(64)
FLOAT = ir.FloatType()
DOUBLE = ir.DoubleType()


class VectorType(types.Type):
    """``LANES`` numbers of one floating type in registers."""

    def __init__(self, element: types.Float) -> None:
        self.element = element
        super().__init__(name=f"vector({element} x {LANES})")


@register_model(VectorType)
class VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, ir.VectorType(manager.lookup(kind.element).get_value_type(), LANES))


def _elementwise(operation: Callable[..., Any], instruction: str) -> None:
    @infer_global(operation)
    class Elementwise(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            if len(args) == 2 and isinstance(args[0], VectorType) and args[0] == args[1]:
                return signature(args[0], *args)
            return None

    @lower_builtin(operation, VectorType, VectorType)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)


for _operation in (operator.add, operator.iadd):
    _elementwise(_operation, "fadd")
for _operation in (operator.sub, operator.isub):
    _elementwise(_operation, "fsub")
for _operation in (operator.mul, operator.imul):
    _elementwise(_operation, "fmul")


def _constant(kind: ir.Type, values: list[int]) -> ir.Constant:
    return ir.Constant(ir.VectorType(kind, len(values)), values)


def _splat(builder: Any, scalar: Any, lanes: int = LANES) -> Any:
    undefined = ir.Constant(ir.VectorType(scalar.type, lanes), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(INT32, 0))
    return builder.shuffle_vector(first, undefined, _constant(INT32, [0] * lanes))


def _lanes_below(builder: Any, count: Any) -> Any:
    """The mask of the first ``count`` lanes. The comparison is signed: a negative count selects none."""
    return builder.icmp_signed("<", _constant(INT64, list(range(LANES))), _splat(builder, count))


def _address(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    return builder.gep(context.make_array(array_type)(context, builder, array).data, [index])


def _name(kind: ir.Type) -> str:
    if isinstance(kind, ir.IntType):
        return f"i{kind.width}"
    return {FLOAT: "f32", DOUBLE: "f64"}[kind]


def _pointer(builder: Any, address: Any, kind: ir.Type) -> Any:
    return builder.bitcast(address, ir.VectorType(kind, LANES).as_pointer())


def _function(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _read(builder: Any, address: Any, kind: ir.Type, count: Any = None) -> Any:
    """Load a vector from any address: alignment 1, so that an unaligned array is as legal as another."""
    pointer = _pointer(builder, address, kind)
    if count is None:
        loaded = builder.load(pointer)
        loaded.align = 1
        return loaded
    vector, mask = pointer.type.pointee, _lanes_below(builder, count)
    function = _function(
        builder, f"llvm.masked.load.v{LANES}{_name(kind)}.p0", vector, [pointer.type, INT32, mask.type, vector]
    )
    return builder.call(function, [pointer, ir.Constant(INT32, 1), mask, ir.Constant(vector, None)])


def _write(builder: Any, address: Any, vector: Any, count: Any = None) -> None:
    pointer = _pointer(builder, address, vector.type.element)
    if count is None:
        builder.store(vector, pointer).align = 1
        return
    mask = _lanes_below(builder, count)
    function = _function(
        builder,
        f"llvm.masked.store.v{LANES}{_name(vector.type.element)}.p0",
        ir.VoidType(),
        [vector.type, pointer.type, INT32, mask.type],
    )
    builder.call(function, [vector, pointer, ir.Constant(INT32, 1), mask])


def _bfloat16_from(builder: Any, vector: Any) -> Any:
    """Round float32 to the nearest bfloat16, ties to even, in integers; NaN stays a (quiet) NaN."""

    def each(value: int) -> ir.Constant:
        return _constant(INT32, [value] * LANES)

    bits = builder.bitcast(vector, ir.VectorType(INT32, LANES))
    high = builder.lshr(bits, each(16))
    odd = builder.and_(high, each(1))
    nearest = builder.lshr(builder.add(bits, builder.add(odd, each(0x7FFF))), each(16))
    nan = builder.fcmp_unordered("uno", vector, vector)
    chosen = builder.select(nan, builder.or_(high, each(0x40)), nearest)
    return builder.trunc(chosen, ir.VectorType(ir.IntType(16), LANES))


def _decoder(storage: str) -> Callable[[Any, Any], Any]:
    """Storage to arithmetic, for a vector just loaded."""
    single, double = ir.VectorType(FLOAT, LANES), ir.VectorType(DOUBLE, LANES)
    if storage == "float16":
        return lambda builder, v: builder.fpext(builder.bitcast(v, ir.VectorType(ir.HalfType(), LANES)), single)
    if storage == "bfloat16":
        wide = ir.VectorType(INT32, LANES)
        shift = _constant(INT32, [16] * LANES)
        return lambda builder, v: builder.bitcast(builder.shl(builder.zext(v, wide), shift), single)
    if storage in ("bool", "uint8", "uint16"):
        return lambda builder, v: builder.uitofp(v, single)
    if storage in ("int8", "int16"):
        return lambda builder, v: builder.sitofp(v, single)
    if storage in ("uint32", "uint64"):
        return lambda builder, v: builder.uitofp(v, double)
    if storage in ("int32", "int64"):
        return lambda builder, v: builder.sitofp(v, double)
    return lambda builder, v: v  # float32 and float64 are stored as they are computed with


def _encoder(storage: str) -> Callable[[Any, Any], Any]:
    """Arithmetic to storage, for a vector about to be stored."""
    if storage == "float16":
        half, bits = ir.VectorType(ir.HalfType(), LANES), ir.VectorType(ir.IntType(16), LANES)
        return lambda builder, v: builder.bitcast(builder.fptrunc(v, half), bits)
    if storage == "bfloat16":
        return _bfloat16_from
    return lambda builder, v: v


def _loader(decode: Callable[[Any, Any], Any], compute: types.Float, partial: bool) -> Any:
    def typed(array: Any) -> tuple[Any, Callable[[Any, Any], Any]]:
        # Parameters and workspaces are stored as they are computed with, whatever the input's storage is.
        plain = isinstance(array.dtype, types.Float)
        return VectorType(array.dtype if plain else compute), (lambda _, v: v) if plain else decode

    if partial:

        @intrinsic
        def load_part(typing: Any, array: Any, start: Any, count: Any) -> Any:
            result, decoded = typed(array)

            def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                address = _address(context, builder, sig.args[0], args[0], args[1])
                return decoded(builder, _read(builder, address, address.type.pointee, args[2]))

            return result(array, types.intp, types.intp), lower

        return load_part

    @intrinsic
    def load(typing: Any, array: Any, start: Any) -> Any:
        result, decoded = typed(array)

        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            address = _address(context, builder, sig.args[0], args[0], args[1])
            return decoded(builder, _read(builder, address, address.type.pointee))

        return result(array, types.intp), lower

    return load


def _storer(encode: Callable[[Any, Any], Any], partial: bool) -> Any:
    def encoded(array: Any) -> Callable[[Any, Any], Any]:
        return (lambda _, v: v) if isinstance(array.dtype, types.Float) else encode

    if partial:

        @intrinsic
        def store_part(typing: Any, array: Any, start: Any, count: Any, vector: Any) -> Any:
            def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
                address = _address(context, builder, sig.args[0], args[0], args[1])
                _write(builder, address, encoded(array)(builder, args[3]), args[2])
                return context.get_dummy_value()

            return types.void(array, types.intp, types.intp, vector), lower

        return store_part

    @intrinsic
    def store(typing: Any, array: Any, start: Any, vector: Any) -> Any:
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            address = _address(context, builder, sig.args[0], args[0], args[1])
            _write(builder, address, encoded(array)(builder, args[2]))
            return context.get_dummy_value()

        return types.void(array, types.intp, vector), lower

    return store


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, args[0])

    return VectorType(value)(value), lower


@intrinsic
def widen(typing: Any, vector: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if vector.element == types.float64:
            return args[0]
        return builder.fpext(args[0], ir.VectorType(DOUBLE, LANES))

    return VectorType(types.float64)(vector), lower


@intrinsic
def squared_onto(typing: Any, vector: Any, onto: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = args[0].type
        function = _function(builder, f"llvm.fmuladd.v{LANES}{_name(kind.element)}", kind, [kind] * 3)
        return builder.call(function, [args[0], args[0], args[1]])

    return vector(vector, onto), lower


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
def misaligned(typing: Any, array: Any, start: Any) -> Any:
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        itemsize = array.dtype.bitwidth // 8
        address = builder.ptrtoint(_address(context, builder, sig.args[0], args[0], args[1]), INT64)
        beyond = builder.and_(builder.neg(address), ir.Constant(INT64, min(64, LANES * itemsize) - 1))
        return builder.udiv(beyond, ir.Constant(INT64, itemsize))

    return types.intp(array, types.intp), lower


def words(storage: str, result: str, compute: str) -> dict[str, Any]:
    """Every word of ``vector``, lowered for one input storage, one output storage and one type of arithmetic."""
    real = {"float32": types.float32, "float64": types.float64}[compute]
    decode, encode = _decoder(storage), _encoder(result)
    return {
        "load": _loader(decode, real, partial=False),
        "load_part": _loader(decode, real, partial=True),
        "store": _storer(encode, partial=False),
        "store_part": _storer(encode, partial=True),
        "splat": splat,
        "widen": widen,
        "squared_onto": squared_onto,
        "first_lanes": first_lanes,
        "total": total,
        "misaligned": misaligned,
    }
