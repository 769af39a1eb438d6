"""The machine code by which XLA calls a kernel: a handler of its foreign function interface, without the interpreter.

A handler is a C function that takes the address of a call frame. The frame has the addresses of the operands, of the
results and of the attributes, which are arrays of numbers that are constants of the program. The handler passes all of
them to a kernel as arrays. It returns 0, or an error of XLA where the frame is not what the kernel was compiled for.

The offsets are those of ``xla/ffi/api/c_api.h`` in version `VERSION`. Every structure begins with its size, and the
handler compares the sizes too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from . import Signature

VERSION = 0, 3

INT8, INT32, INT64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)

# Offsets in bytes of the fields of XLA_FFI_CallFrame, and of what it points to.
FRAME_EXTENSION, FRAME_API, FRAME_STAGE, FRAME_ARGUMENTS, FRAME_RESULTS, FRAME_ATTRIBUTES = 8, 16, 32, 40, 80, 120
LIST_LENGTH, LIST_ITEMS, LIST_NAMED_ITEMS = 16, 32, 40  # attributes have names between their types and their items
EXTENSION_KIND, EXTENSION_NEXT, EXTENSION_METADATA = 8, 16, 24
METADATA_MAJOR, METADATA_MINOR = 24, 28
BUFFER_DTYPE, BUFFER_DATA, BUFFER_RANK, BUFFER_SIZES = 16, 24, 32, 40
ATTRIBUTE_LENGTH, ATTRIBUTE_DATA = 8, 16
API_ERROR_CREATE = 48
FRAME_SIZE, LIST_SIZE, NAMED_LIST_SIZE, BUFFER_SIZE, ERROR_SIZE = 168, 40, 48, 48, 28

METADATA, EXECUTE, INTERNAL = 1, 3, 13  # a kind of extension, a stage, the code of an error
BYTES = 6  # the dtype of a buffer of numbers that the program does not see
DTYPES = {"float16": 10, "float32": 11, "float64": 12, "bfloat16": 16}

MESSAGE = "gennorm: the buffers of a call are not those that its kernel was compiled for\0"


class _Code:
    """Emits reads of memory at addresses."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.builder = ir.IRBuilder(function.append_basic_block())

    def at(self, base: Any, offset: int, kind: Any = INT64) -> Any:
        return self.builder.inttoptr(self.builder.add(base, ir.Constant(INT64, offset)), kind.as_pointer())

    def read(self, base: Any, offset: int, kind: Any = INT64) -> Any:
        return self.builder.load(self.at(base, offset, kind))

    def write(self, base: Any, offset: int, value: int) -> None:
        self.builder.store(ir.Constant(INT32, value), self.at(base, offset, INT32))

    def require(self, found: Any, expected: Any, otherwise: Callable[[], None]) -> None:
        """Return from the function with what `otherwise` emits, if two integers differ."""
        expected = ir.Constant(found.type, expected) if isinstance(expected, int) else expected
        with self.builder.if_then(self.builder.icmp_unsigned("!=", found, expected), likely=False):
            otherwise()


def emit_handler(context: Any, module: Any, kernel: Any, fndesc: Any, signature: Signature) -> None:
    """Define the handler of a kernel in its module."""
    handler = signature.handler
    assert handler is not None
    function = ir.Function(module, ir.FunctionType(INT64, [INT64]), name_of(fndesc))
    code = _Code(function)
    builder, frame = code.builder, function.args[0]
    _answer_queries(code, frame)
    with builder.if_then(
        builder.icmp_unsigned("!=", code.read(frame, FRAME_STAGE, INT32), ir.Constant(INT32, EXECUTE))
    ):
        builder.ret(ir.Constant(INT64, 0))

    def fail() -> None:
        builder.ret(_error(code, frame))

    results = len(signature.arrays) + len(signature.scratch) - handler.operands - handler.attributes
    lists = (
        (FRAME_ARGUMENTS, LIST_SIZE, handler.operands),
        (FRAME_RESULTS, LIST_SIZE, results),
        (FRAME_ATTRIBUTES, NAMED_LIST_SIZE, handler.attributes),
    )
    code.require(code.read(frame, 0), FRAME_SIZE, fail)
    for offset, size, length in lists:
        code.require(code.read(frame, offset), size, fail)
        code.require(code.read(frame, offset + LIST_LENGTH), length, fail)
    operands, returned = (code.read(frame, offset + LIST_ITEMS) for offset in (FRAME_ARGUMENTS, FRAME_RESULTS))
    named = code.read(frame, FRAME_ATTRIBUTES + LIST_NAMED_ITEMS)

    # Arrays of the kernel: operands, results, attributes, and scratch, which is the last of the results. The last
    # attribute has the expected lengths of the buffers.
    attributes = [code.read(named, 8 * i) for i in range(handler.attributes)]
    lengths = code.read(attributes[-1], ATTRIBUTE_DATA)
    code.require(code.read(attributes[-1], ATTRIBUTE_LENGTH), handler.operands + results, fail)
    buffers = [code.read(operands, 8 * i) for i in range(handler.operands)]
    buffers += [code.read(returned, 8 * i) for i in range(results)]
    names = (*signature.arrays, *signature.scratch)
    first, last = handler.operands + results - len(signature.scratch), len(signature.arrays)
    of_buffers = (*names[:first], *names[last:])
    found = []
    count = _count(module)
    for i, (buffer, name) in enumerate(zip(buffers, of_buffers, strict=True)):
        code.require(code.read(buffer, 0), BUFFER_SIZE, fail)
        length = builder.call(count, [buffer])
        code.require(length, code.read(lengths, 8 * i), fail)
        dtype = code.read(buffer, BUFFER_DTYPE, INT32)
        opaque = builder.icmp_unsigned("==", dtype, ir.Constant(INT32, BYTES))
        known = builder.select(opaque, ir.Constant(INT32, DTYPES[name]), dtype)
        code.require(known, DTYPES[name], fail)
        itemsize = 8 if name == "float64" else 4 if name == "float32" else 2
        elements = builder.select(opaque, builder.udiv(length, ir.Constant(INT64, itemsize)), length)
        found.append((code.read(buffer, BUFFER_DATA), elements))
    found[first:first] = [(code.read(one, ATTRIBUTE_DATA), code.read(one, ATTRIBUTE_LENGTH)) for one in attributes]
    kinds = fndesc.argtypes
    values = [_array(context, builder, kind, *one) for kind, one in zip(kinds, found, strict=False)]

    def call(lo: Any, hi: Any) -> None:
        numbers = [lo, hi, ir.Constant(INT64, 0)]
        context.call_conv.call_function(
            builder, kernel, fndesc.restype, kinds, [*values, *numbers], attrs=("noinline",)
        )

    zero = ir.Constant(INT64, 0)
    call(ir.Constant(INT64, -1), zero)
    call(zero, code.read(found[first][0], 0))
    call(ir.Constant(INT64, -2), zero)
    builder.ret(zero)


def name_of(fndesc: Any) -> str:
    """Return the symbol of the handler of a kernel."""
    return f"{fndesc.llvm_func_name}.handler"


def _answer_queries(code: _Code, frame: Any) -> None:
    """Report the version of the interface where the frame asks for it."""
    builder = code.builder
    before = builder.block
    head, body, following, after = (builder.append_basic_block() for _ in range(4))
    first = code.read(frame, FRAME_EXTENSION)
    builder.branch(head)
    builder.position_at_end(head)
    extension = builder.phi(INT64)
    extension.add_incoming(first, before)
    builder.cbranch(builder.icmp_unsigned("==", extension, ir.Constant(INT64, 0)), after, body)
    builder.position_at_end(body)
    kind = code.read(extension, EXTENSION_KIND, INT32)
    with builder.if_then(builder.icmp_unsigned("==", kind, ir.Constant(INT32, METADATA))):
        metadata = code.read(extension, EXTENSION_METADATA)
        code.write(metadata, METADATA_MAJOR, VERSION[0])
        code.write(metadata, METADATA_MINOR, VERSION[1])
        builder.ret(ir.Constant(INT64, 0))
    builder.branch(following)
    builder.position_at_end(following)
    extension.add_incoming(code.read(extension, EXTENSION_NEXT), following)
    builder.branch(head)
    builder.position_at_end(after)


def _count(module: Any) -> Any:
    """Define a function that returns the number of elements of a buffer."""
    function = ir.Function(module, ir.FunctionType(INT64, [INT64]), "gennorm.count")
    function.linkage = "internal"
    code = _Code(function)
    builder, buffer = code.builder, function.args[0]
    before = builder.block
    rank, sizes = code.read(buffer, BUFFER_RANK), code.read(buffer, BUFFER_SIZES)
    head, body, after = (builder.append_basic_block() for _ in range(3))
    builder.branch(head)
    builder.position_at_end(head)
    axis, product = builder.phi(INT64), builder.phi(INT64)
    axis.add_incoming(ir.Constant(INT64, 0), before)
    product.add_incoming(ir.Constant(INT64, 1), before)
    builder.cbranch(builder.icmp_signed("<", axis, rank), body, after)
    builder.position_at_end(body)
    size = code.read(builder.add(sizes, builder.shl(axis, ir.Constant(INT64, 3))), 0)
    product.add_incoming(builder.mul(product, size), body)
    axis.add_incoming(builder.add(axis, ir.Constant(INT64, 1)), body)
    builder.branch(head)
    builder.position_at_end(after)
    builder.ret(product)
    return function


def _array(context: Any, builder: Any, kind: Any, address: Any, length: Any) -> Any:
    """Return memory at an address as an array of Numba."""
    array = context.make_array(kind)(context, builder)
    data = builder.inttoptr(address, array.data.type)
    itemsize = ir.Constant(INT64, context.get_abi_sizeof(data.type.pointee))
    one = ir.Constant(ir.ArrayType(INT64, 1), ir.Undefined)
    array.meminfo, array.parent = (ir.Constant(field.type, None) for field in (array.meminfo, array.parent))
    array.nitems, array.itemsize, array.data = length, itemsize, data
    array.shape, array.strides = builder.insert_value(one, length, 0), builder.insert_value(one, itemsize, 0)
    return array._getvalue()


def _error(code: _Code, frame: Any) -> Any:
    """Return an error of XLA."""
    builder, module = code.builder, code.function.module
    text = module.globals.get("gennorm.message")
    if text is None:
        data = bytearray(MESSAGE.encode())
        text = ir.GlobalVariable(module, ir.ArrayType(INT8, len(data)), "gennorm.message")
        text.linkage, text.global_constant = "internal", True
        text.initializer = ir.Constant(text.value_type, data)
    arguments = builder.ptrtoint(builder.alloca(ir.ArrayType(INT64, 4)), INT64)
    for offset, value in ((0, ERROR_SIZE), (8, 0)):
        builder.store(ir.Constant(INT64, value), code.at(arguments, offset))
    builder.store(builder.ptrtoint(text, INT64), code.at(arguments, 16))
    code.write(arguments, 24, INTERNAL)
    create = code.read(code.read(frame, FRAME_API), API_ERROR_CREATE)
    kind = ir.FunctionType(INT64, [INT64])
    return builder.call(builder.inttoptr(create, kind.as_pointer()), [arguments])
