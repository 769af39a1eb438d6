"""The machine code by which XLA calls a kernel: a handler of its foreign function interface, without the interpreter.

A handler is a C function that takes the address of a call frame. The frame has the addresses of the operands, of the
results and of the attributes, which are arrays of numbers that are constants of the program. The handler passes all of
them to a kernel as arrays. It returns 0, or an error of XLA where the frame is not what the kernel was compiled for.

The kernel is called before the tasks (`BEFORE`), for ranges of tasks, and after them (`AFTER`). `share` divides the
tasks among the caller and threads of XLA's pool, each of which runs `take_task`, sooner or later or when the call has
long ended. So what they access is not on the stack but in a control block (see `workers`) of the handler, which is not
used for another call before all of them have ended. The caller waits only for threads that have joined.

The offsets are those of ``xla/ffi/api/c_api.h`` in version `VERSION`. Every structure begins with its size, and the
handler compares the sizes too.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gennorm.engine.kernels.handlers import AFTER, BEFORE

from . import Signature
from .workers import (
    ARGUMENTS,
    BUSY,
    FINISHED,
    FUNCTION,
    HI,
    LINE,
    LO,
    OPEN,
    RANGES,
    STATE,
    TAKEN,
    THREADS,
    atomic_load,
    atomic_store,
    call,
    compare_and_swap,
    fetch_add,
    run_ranges,
    yield_processor,
)

VERSION = 0, 3

INT8, INT32, INT64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)

# Offsets in bytes of the fields of XLA_FFI_CallFrame, and of what it points to.
FRAME_EXTENSION, FRAME_API, FRAME_STAGE, FRAME_ARGUMENTS, FRAME_RESULTS, FRAME_ATTRIBUTES = 8, 16, 32, 40, 80, 120
LIST_LENGTH, LIST_ITEMS, LIST_NAMED_ITEMS = 16, 32, 40  # attributes have names between their types and their items
EXTENSION_KIND, EXTENSION_NEXT, EXTENSION_METADATA = 8, 16, 24
METADATA_MAJOR, METADATA_MINOR = 24, 28
BUFFER_DTYPE, BUFFER_DATA, BUFFER_RANK, BUFFER_SIZES = 16, 24, 32, 40
ATTRIBUTE_LENGTH, ATTRIBUTE_DATA = 8, 16
FRAME_CONTEXT = 24
API_ERROR_CREATE, API_ERROR_DESTROY, API_SCHEDULE, API_POOL_SIZE = 48, 64, 136, 144
FRAME_SIZE, LIST_SIZE, NAMED_LIST_SIZE, BUFFER_SIZE, ERROR_SIZE = 168, 40, 48, 48, 28

METADATA, EXECUTE, INTERNAL = 1, 3, 13  # a kind of extension, a stage, the code of an error
BYTES = 6  # the dtype of a buffer of numbers that the program does not see
DTYPES = {"float16": 10, "float32": 11, "float64": 12, "bfloat16": 16}
ITEMSIZE = {"float16": 2, "float32": 4, "float64": 8, "bfloat16": 2}

MOST = 32  # threads that share a call
RANGES_EACH = 8  # ranges of tasks for each thread, as in ``engine.sharing``
REFERENCES = 6  # in a control block: how many threads may still access it
BLOCK, BLOCKS = TAKEN + MOST * LINE, 8  # integers in a control block; how many calls of a handler are shared at a time

SHARE_SIGNATURE, TAKE_SIGNATURE = Signature(integers=7), Signature(integers=1)

MESSAGE = "gennorm: the buffers of a call are not those that its kernel was compiled for\0"


class _Code:
    """Emits accesses to memory at addresses."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def at(self, base: Any, offset: int, kind: Any = INT64) -> Any:
        return self.builder.inttoptr(self.builder.add(base, ir.Constant(INT64, offset)), kind.as_pointer())

    def read(self, base: Any, offset: int, kind: Any = INT64) -> Any:
        return self.builder.load(self.at(base, offset, kind))

    def store(self, base: Any, offset: int, value: Any, kind: Any = INT64) -> None:
        value = ir.Constant(kind, value) if isinstance(value, int) else value
        self.builder.store(value, self.at(base, offset, kind))

    def require(self, found: Any, expected: Any, otherwise: Any) -> None:
        """Branch to a block if two integers differ."""
        expected = ir.Constant(found.type, expected) if isinstance(expected, int) else expected
        following = self.builder.append_basic_block()
        self.builder.cbranch(self.builder.icmp_unsigned("==", found, expected), following, otherwise)
        self.builder.position_at_end(following)

    def call_api(self, frame: Any, function: int, *arguments: Any) -> Any:
        """Call a function of XLA with a structure of integers, and return whether there was no error."""
        builder = self.builder
        structure = _allocated(builder, 2 + len(arguments))
        for i, value in enumerate((8 * (2 + len(arguments)), 0, *arguments)):
            self.store(structure, 8 * i, value)
        api = self.read(frame, FRAME_API)
        kind = ir.FunctionType(INT64, [INT64]).as_pointer()
        error = builder.call(builder.inttoptr(self.read(api, function), kind), [structure])
        good = builder.icmp_unsigned("==", error, ir.Constant(INT64, 0))
        with builder.if_then(builder.not_(good), likely=False):
            for i, value in enumerate((24, 0, error)):
                self.store(structure, 8 * i, value)
            builder.call(builder.inttoptr(self.read(api, API_ERROR_DESTROY), kind), [structure])
        return good

    def count(self, buffer: Any) -> Any:
        """Return the number of elements of a buffer."""
        builder, before = self.builder, self.builder.block
        rank, sizes = self.read(buffer, BUFFER_RANK), self.read(buffer, BUFFER_SIZES)
        head, body, after = (builder.append_basic_block() for _ in range(3))
        builder.branch(head)
        builder.position_at_end(head)
        axis, product = builder.phi(INT64), builder.phi(INT64)
        axis.add_incoming(ir.Constant(INT64, 0), before)
        product.add_incoming(ir.Constant(INT64, 1), before)
        builder.cbranch(builder.icmp_signed("<", axis, rank), body, after)
        builder.position_at_end(body)
        size = self.read(builder.add(sizes, builder.shl(axis, ir.Constant(INT64, 3))), 0)
        product.add_incoming(builder.mul(product, size), body)
        axis.add_incoming(builder.add(axis, ir.Constant(INT64, 1)), body)
        builder.branch(head)
        builder.position_at_end(after)
        return product


def _allocated(builder: Any, count: int) -> Any:
    """Allocate integers on the stack, once for each call of the function, and return their address."""
    with builder.goto_entry_block():
        memory = builder.alloca(ir.ArrayType(INT64, count))
    return builder.ptrtoint(memory, INT64)


def share(function: int, arguments: int, tasks: int, parts: int, blocks: int, task: int, frame: int) -> None:
    """Run a function for all tasks with threads of XLA, and return when all of them are done."""
    control = 0
    threads = min(parts, tasks)
    if threads > 1:
        threads = min(threads, pool_size(frame))
    if threads > 1:
        for i in range(BLOCKS):
            if control == 0 and compare_and_swap(blocks + 8 * BLOCK * i, BUSY, 0, 1):
                control = blocks + 8 * BLOCK * i
    if control == 0:
        call(function, arguments, 0, tasks, 0)
        return
    atomic_store(control, FUNCTION, function)
    atomic_store(control, ARGUMENTS, arguments)
    atomic_store(control, LO, 0)
    atomic_store(control, HI, tasks)
    atomic_store(control, THREADS, threads)
    atomic_store(control, RANGES, RANGES_EACH)
    atomic_store(control, FINISHED, 0)
    for portion in range(threads):
        atomic_store(control, TAKEN + portion * LINE, 0)
    atomic_store(control, REFERENCES, threads)
    atomic_store(control, STATE, OPEN)
    for _ in range(1, threads):
        if not schedule(frame, task, control):
            fetch_add(control, REFERENCES, -1)
    run_ranges(0, control)
    joined = fetch_add(control, STATE, -OPEN) - OPEN  # no thread joins after this
    while atomic_load(control, FINISHED) < joined:
        yield_processor(yield_address())
    release(control)


def take_task(control: int) -> None:
    """Take part in a call, unless it has ended."""
    state = fetch_add(control, STATE, 1)
    if state >= OPEN:
        run_ranges(state - OPEN + 1, control)
        fetch_add(control, FINISHED, 1)
    release(control)


def release(control: int) -> None:
    """Make a control block free for another call, if no other thread may access it."""
    if fetch_add(control, REFERENCES, -1) == 1:
        atomic_store(control, BUSY, 0)


@intrinsic
def pool_size(typing: Any, frame: Any) -> Any:
    """Return the number of threads in XLA's pool; 1 if it has none."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        code = _Code(builder)
        (frame,) = args
        found = _allocated(builder, 1)
        code.store(found, 0, 1)
        code.call_api(frame, API_POOL_SIZE, code.read(frame, FRAME_CONTEXT), found)
        return code.read(found, 0)

    return types.intp(types.intp), lower


@intrinsic
def schedule(typing: Any, frame: Any, task: Any, control: Any) -> Any:
    """Let a thread of XLA's pool call a C function with a control block, and return whether one will."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        code = _Code(builder)
        frame, task, control = args
        return code.call_api(frame, API_SCHEDULE, code.read(frame, FRAME_CONTEXT), task, control)

    return types.boolean(types.intp, types.intp, types.intp), lower


@intrinsic
def yield_address(typing: Any) -> Any:
    """Return the address of the system's function that lets another thread use this processor."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        name = "sched_yield"
        function = builder.module.globals.get(name)
        if function is None:
            function = ir.Function(builder.module, ir.FunctionType(INT32, []), name)
        return builder.ptrtoint(function, INT64)

    return types.intp(), lower


def emit_handler(
    context: Any, library: Any, fndesc: Any, signature: Signature, array: Any, range_: tuple[Any, Any], steps: Any
) -> None:
    """Define the handler of a kernel in its module.

    Parameters
    ----------
    context, library, fndesc
        Of Numba.
    signature : Signature
        Of the kernel.
    array : callable
        Returns memory at an address as an array of Numba.
    range_ : tuple
        A function that calls the kernel for a range of tasks, and the type of the memory that it reads.
    steps : list
        `share` and `take_task`, compiled by Numba.
    """
    handler, (each, block_kind) = signature.handler, range_
    module = each.module
    assert handler is not None
    share, take_task = (context.declare_function(module, one.fndesc) for one in steps)
    for one in steps:
        library.add_linking_library(one.library)
    task = ir.Function(module, ir.FunctionType(ir.VoidType(), [INT64]), "gennorm.task")
    task.linkage = "internal"
    builder = ir.IRBuilder(task.append_basic_block())
    context.call_conv.call_function(builder, take_task, types.none, [types.intp], [task.args[0]])
    builder.ret_void()
    blocks = ir.GlobalVariable(module, ir.ArrayType(INT64, BLOCK * BLOCKS), "gennorm.blocks")
    blocks.linkage, blocks.align = "internal", 8 * LINE
    blocks.initializer = ir.Constant(blocks.value_type, None)

    function = ir.Function(module, ir.FunctionType(INT64, [INT64]), name_of(fndesc))
    code = _Code(ir.IRBuilder(function.append_basic_block()))
    builder, (frame,) = code.builder, function.args
    _answer_queries(code, frame)
    with builder.if_then(
        builder.icmp_unsigned("!=", code.read(frame, FRAME_STAGE, INT32), ir.Constant(INT32, EXECUTE))
    ):
        builder.ret(ir.Constant(INT64, 0))
    failed = function.append_basic_block()
    found = _checked(code, frame, signature, failed)
    first = len(signature.arrays) - handler.attributes
    values = [array(context, builder, kind, *one) for kind, one in zip(fndesc.argtypes, found, strict=False)]
    block = builder.alloca(block_kind)
    packed = context.get_arg_packer(fndesc.argtypes).as_arguments(builder, [*values, *[ir.Constant(INT64, 0)] * 3])
    fields = found[first][0]
    tasks, parts = code.read(fields, 0), code.read(fields, 8)
    for i, value in enumerate([parts, *packed]):
        builder.store(value, builder.gep(block, [ir.Constant(INT32, 0), ir.Constant(INT32, i)]))
    arguments, zero = builder.ptrtoint(block, INT64), ir.Constant(INT64, 0)
    builder.call(each, [arguments, ir.Constant(INT64, BEFORE), zero, zero])
    addresses = (builder.ptrtoint(one, INT64) for one in (blocks, task))
    shared = [builder.ptrtoint(each, INT64), arguments, tasks, parts, *addresses, frame]
    context.call_conv.call_function(builder, share, types.none, [types.intp] * 7, shared)
    builder.call(each, [arguments, ir.Constant(INT64, AFTER), zero, zero])
    builder.ret(zero)
    builder.position_at_end(failed)
    builder.ret(_error(code, frame))


def _checked(code: _Code, frame: Any, signature: Signature, failed: Any) -> list[tuple[Any, Any]]:
    """Return address and length of all arrays of a frame, in the order of the kernel; branch where it has others."""
    builder, handler = code.builder, signature.handler
    assert handler is not None
    results = len(signature.arrays) + len(signature.scratch) - handler.operands - handler.attributes
    lists = (
        (FRAME_ARGUMENTS, LIST_SIZE, handler.operands),
        (FRAME_RESULTS, LIST_SIZE, results),
        (FRAME_ATTRIBUTES, NAMED_LIST_SIZE, handler.attributes),
    )
    code.require(code.read(frame, 0), FRAME_SIZE, failed)
    for offset, size, length in lists:
        code.require(code.read(frame, offset), size, failed)
        code.require(code.read(frame, offset + LIST_LENGTH), length, failed)
    operands, returned = (code.read(frame, offset + LIST_ITEMS) for offset in (FRAME_ARGUMENTS, FRAME_RESULTS))
    named = code.read(frame, FRAME_ATTRIBUTES + LIST_NAMED_ITEMS)

    # The last attribute has the lengths of the buffers. Scratch arrays are the last results.
    attributes = [code.read(named, 8 * i) for i in range(handler.attributes)]
    lengths = code.read(attributes[-1], ATTRIBUTE_DATA)
    code.require(code.read(attributes[-1], ATTRIBUTE_LENGTH), handler.operands + results, failed)
    buffers = [code.read(operands, 8 * i) for i in range(handler.operands)]
    buffers += [code.read(returned, 8 * i) for i in range(results)]
    first = len(signature.arrays) - handler.attributes
    found = []
    for i, (buffer, name) in enumerate(zip(buffers, (*signature.arrays[:first], *signature.scratch), strict=True)):
        code.require(code.read(buffer, 0), BUFFER_SIZE, failed)
        length = code.count(buffer)
        code.require(length, code.read(lengths, 8 * i), failed)
        dtype = code.read(buffer, BUFFER_DTYPE, INT32)
        hidden = builder.icmp_unsigned("==", dtype, ir.Constant(INT32, BYTES))
        code.require(builder.select(hidden, ir.Constant(INT32, DTYPES[name]), dtype), DTYPES[name], failed)
        elements = builder.udiv(length, ir.Constant(INT64, ITEMSIZE[name]))
        found.append((code.read(buffer, BUFFER_DATA), builder.select(hidden, elements, length)))
    found[first:first] = [(code.read(one, ATTRIBUTE_DATA), code.read(one, ATTRIBUTE_LENGTH)) for one in attributes]
    return found


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
        code.store(metadata, METADATA_MAJOR, VERSION[0], INT32)
        code.store(metadata, METADATA_MINOR, VERSION[1], INT32)
        builder.ret(ir.Constant(INT64, 0))
    builder.branch(following)
    builder.position_at_end(following)
    extension.add_incoming(code.read(extension, EXTENSION_NEXT), following)
    builder.branch(head)
    builder.position_at_end(after)


def _error(code: _Code, frame: Any) -> Any:
    """Return an error of XLA."""
    builder = code.builder
    data = bytearray(MESSAGE.encode())
    text = ir.GlobalVariable(builder.module, ir.ArrayType(INT8, len(data)), "gennorm.message")
    text.linkage, text.global_constant = "internal", True
    text.initializer = ir.Constant(text.value_type, data)
    arguments = _allocated(builder, 4)
    for offset, value in ((0, ERROR_SIZE), (8, 0), (16, builder.ptrtoint(text, INT64))):
        code.store(arguments, offset, value)
    code.store(arguments, 24, INTERNAL, INT32)
    create = code.read(code.read(frame, FRAME_API), API_ERROR_CREATE)
    kind = ir.FunctionType(INT64, [INT64])
    return builder.call(builder.inttoptr(create, kind.as_pointer()), [arguments])
