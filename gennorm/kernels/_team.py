"""Threads that share a call of a kernel: they are told of it, begin and end without the interpreter.

Python's threads take turns, and a thread that sleeps wakes up in 50 microseconds; in these one does 150,000 elements.
So the threads of a team wait where the interpreter's lock is not needed: in ``serve``, which looks for work for a while
before it goes to sleep. The thread that calls a kernel enters ``lead``, says what there is to do, does its part, and
comes back when nobody is at work any more. Both are compiled like kernels, and a team is an array of integers that all
of them look at:

======== ===============================================================================================
FUNCTION the kernel, for ranges: it is called with the block, from where to where, and who calls
BLOCK    the other arguments of the call
LO, HI   the units to work on
THREADS  how many threads may take part; with a higher number one waits for another call
RANGES   ranges in a portion: each thread has one, and does what is left of the others' when it is done
PARTS    equal parts of the workspace, one a thread
LEAD     where ``lead`` is
PATIENCE how often ``serve`` looks for work before it goes to sleep
GIVE_WAY a function of the system that lets another thread have this processor, if one is waiting for it
STATE    which call this is, whether it is open to those who want to take part, and how many did
LEFT     how many of them are done
TAKEN    of each portion, how many ranges are taken
======== ===============================================================================================
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

__all__ = ["LINE", "OPEN", "lead", "serve"]

LINE = 16  # integers that no two threads write side by side: two cache lines, because processors fetch them in pairs
FUNCTION, BLOCK, LO, HI, THREADS, RANGES, PARTS, LEAD, PATIENCE, GIVE_WAY = range(10)
STATE, LEFT, TAKEN = LINE, 2 * LINE, 3 * LINE

OPEN = 1 << 15  # those who take part are counted below it, and calls above
CALL = 1 << 16

INT64 = ir.IntType(64)
VOID = ir.VoidType()


def lead(function: int, block: int, lo: int, hi: int, control: int) -> None:
    """Have the team call a kernel for ranges of ``lo`` to ``hi``; return when it is done and nobody is at it."""
    poke(control, FUNCTION, function)
    poke(control, BLOCK, block)
    poke(control, LO, lo)
    poke(control, HI, hi)
    poke(control, LEFT, 0)
    for portion in range(peek(control, THREADS)):
        poke(control, TAKEN + portion * LINE, 0)
    calls = peek(control, STATE) // CALL
    poke(control, STATE, (calls + 1) * CALL + OPEN)
    take_part(0, control)
    entered = added(control, STATE, -OPEN) % OPEN  # whoever looks from now on finds it closed
    while peek(control, LEFT) < entered:
        give_way(peek(control, GIVE_WAY))


def serve(number: int, control: int) -> None:
    """Take part in one call after another, until there was none for a while."""
    looked = 0
    seen = 0
    while looked < peek(control, PATIENCE):
        state = peek(control, STATE)
        call = state // CALL
        if call != seen and state % CALL >= OPEN and number < peek(control, THREADS):
            if swapped(control, STATE, state, state + 1):
                seen = call
                take_part(number, control)
                added(control, LEFT, 1)
                looked = 0
        else:
            give_way(peek(control, GIVE_WAY))
            looked += 1


def take_part(number: int, control: int) -> None:
    """Do a portion, then what is left of the others'."""
    function, block, lo = peek(control, FUNCTION), peek(control, BLOCK), peek(control, LO)
    threads, ranges = peek(control, THREADS), peek(control, RANGES)
    tasks, many = peek(control, HI) - lo, threads * ranges
    for turn in range(threads if number < threads else 0):  # who looked too late is one too many for this call
        portion = (number + turn) % threads
        taken = added(control, TAKEN + portion * LINE, 1)
        while taken < ranges:
            at = portion * ranges + taken
            call(function, block, lo + tasks * at // many, lo + tasks * (at + 1) // many, number)
            taken = added(control, TAKEN + portion * LINE, 1)


# What these are written in: integers that several threads look at and change.


def _at(builder: Any, control: Any, index: Any) -> Any:
    return builder.inttoptr(builder.add(control, builder.shl(index, ir.Constant(INT64, 3))), INT64.as_pointer())


@intrinsic
def peek(typing: Any, control: Any, index: Any) -> Any:
    """Read an integer, before anything that follows is read."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(_at(builder, *args), "acquire", 8)

    return types.intp(types.intp, types.intp), lower


@intrinsic
def poke(typing: Any, control: Any, index: Any, value: Any) -> Any:
    """Write an integer, after everything that was written before."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store_atomic(args[2], _at(builder, *args[:2]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), lower


@intrinsic
def added(typing: Any, control: Any, index: Any, value: Any) -> Any:
    """Add to an integer, and return what it was."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _at(builder, *args[:2]), args[2], "seq_cst")

    return types.intp(types.intp, types.intp, types.intp), lower


@intrinsic
def swapped(typing: Any, control: Any, index: Any, expected: Any, value: Any) -> Any:
    """Change an integer if it is what is expected, and return whether it was."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        found = builder.cmpxchg(_at(builder, *args[:2]), args[2], args[3], "seq_cst")
        return builder.extract_value(found, 1)

    return types.boolean(types.intp, types.intp, types.intp, types.intp), lower


@intrinsic
def call(typing: Any, function: Any, block: Any, lo: Any, hi: Any, number: Any) -> Any:
    """Call a kernel for a range."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(VOID, [INT64] * 4)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), lower


@intrinsic
def give_way(typing: Any, function: Any) -> Any:
    """Let another thread have the processor if one is waiting for it; if not, the other half of the core."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [])
        if platform.machine().lower() in {"x86_64", "amd64"}:
            pause = cgutils.get_or_insert_function(builder.module, ir.FunctionType(VOID, []), "llvm.x86.sse2.pause")
            builder.call(pause, [])
        return context.get_dummy_value()

    return types.void(types.intp), lower


# And what the door to Numba puts before every kernel.


def shareable(context: Any, kernel: Any, described: Any) -> Any:
    """Return a function like the kernel that has its team call it, if its last argument names one.

    Of the arguments behind ``numbers``, arrays are workspace: each thread has its part.
    """
    module, types_, names = kernel.module, described.argtypes, described.args
    packed = context.get_arg_packer(types_)
    kinds = [argument.type for argument in context.call_conv.get_arguments(kernel)]
    block_kind = ir.LiteralStructType([INT64, *kinds])

    each = ir.Function(module, ir.FunctionType(VOID, [INT64] * 4), f"{kernel.name}.range")
    each.linkage = "internal"
    builder = ir.IRBuilder(each.append_basic_block())
    address, lo, hi, number = each.args
    block = builder.inttoptr(address, block_kind.as_pointer())
    parts, *flat = (builder.load(cgutils.gep_inbounds(builder, block, 0, i)) for i in range(len(block_kind.elements)))
    values = dict(zip(names, packed.from_arguments(builder, flat), strict=True))
    for name in names[names.index("numbers") + 1 :]:
        kind = types_[names.index(name)]
        if isinstance(kind, types.Array):
            array = context.make_array(kind)(context, builder, values[name])
            size = builder.udiv(array.nitems, parts)
            array.data = builder.gep(array.data, [builder.mul(size, builder.urem(number, parts))])
            array.nitems = size
            array.shape = cgutils.pack_array(builder, [size])
            values[name] = array._getvalue()
    values |= {"lo": lo, "hi": hi}
    context.call_conv.call_function(
        builder, kernel, described.restype, types_, list(values.values()), attrs=("noinline",)
    )
    builder.ret_void()

    function = ir.Function(module, kernel.function_type, f"{kernel.name}.shared")
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block())
    flat = context.call_conv.get_arguments(function)
    lo, hi, control = flat[-3:]
    with builder.if_then(builder.icmp_unsigned("==", control, ir.Constant(INT64, 0))):
        builder.ret(builder.call(kernel, function.args, attrs=("noinline",)))
    block = builder.alloca(block_kind)
    for i, value in enumerate([builder.load(_at(builder, control, ir.Constant(INT64, PARTS))), *flat]):
        builder.store(value, cgutils.gep_inbounds(builder, block, 0, i))
    entry = context.call_conv.get_function_type(types.void, [types.intp] * 5).as_pointer()
    leading = builder.inttoptr(builder.load(_at(builder, control, ir.Constant(INT64, LEAD))), entry)
    arguments = [builder.ptrtoint(each, INT64), builder.ptrtoint(block, INT64), lo, hi, control]
    builder.ret(builder.call(leading, [*function.args[:2], *arguments]))
    return function
