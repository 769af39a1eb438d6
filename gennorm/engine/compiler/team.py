"""Threads that share a call of a kernel: they are told of it, begin and end without the interpreter.

Python's threads take turns, and one that sleeps wakes up in 50 microseconds; in these one does 150,000 elements. So the
threads of a team wait where the interpreter's lock is not needed: in ``serve``, which looks for work for a while before
they go to sleep. Whoever calls a kernel enters ``lead``, says what there is to do, does a part of it, and comes back
when nobody is at work any more; or does it all where the team has another leader. Both are compiled like kernels. A
team is an array of integers that its threads look at and change, two cache lines for each of these:

======== =========================================================================================
FUNCTION the kernel, for ranges: called with the block, from where to where, and the caller's number;
BLOCK    the other arguments of the call,
LO, HI   the units to work on,
THREADS  how many threads take part: those with higher numbers do not,
RANGES   and the ranges in a portion: each thread has one, and goes on with what is left of the others'
PATIENCE how often ``serve`` looks for work before it returns
GIVE_WAY a function of the system that lets another thread have this processor, if one is waiting
BUSY     whether there is a leader
STATE    which call this is, whether it is open to those who want to take part, and how many did
LEFT     how many of them are done
TAKEN    for each portion, how many of its ranges are taken
======== =========================================================================================

What a call asks for is another such array, which is never changed:

======== =========================================================================================
CONTROL  where the team is
LEAD     where ``lead`` is
SHARERS  how many threads are to take part
SHARES   the ranges in a portion
PARTS    of the workspace, all alike: one for each thread, or one for all
======== =========================================================================================
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

LINE = 16  # integers in two cache lines: processors fetch them in pairs
FUNCTION, BLOCK, LO, HI, THREADS, RANGES, PATIENCE, GIVE_WAY = range(8)  # what is only read while a call is open
BUSY, STATE, LEFT, TAKEN = LINE, 2 * LINE, 3 * LINE, 4 * LINE
CONTROL, LEAD, SHARERS, SHARES, PARTS = range(5)

OPEN = 1 << 15  # those who take part are counted below it, and calls above
CALL = 1 << 16

INT64 = ir.IntType(64)
VOID = ir.VoidType()


def lead(function: int, block: int, lo: int, hi: int, request: int) -> None:
    """Have the team call a kernel for ranges of ``lo`` to ``hi``; return when it is done and nobody is at it."""
    control, threads = peek(request, CONTROL), peek(request, SHARERS)
    if not swapped(control, BUSY, 0, 1):
        call(function, block, lo, hi, 0)
        return
    poke(control, FUNCTION, function)
    poke(control, BLOCK, block)
    poke(control, LO, lo)
    poke(control, HI, hi)
    poke(control, THREADS, threads)
    poke(control, RANGES, peek(request, SHARES))
    poke(control, LEFT, 0)
    for portion in range(threads):
        poke(control, TAKEN + portion * LINE, 0)
    calls = peek(control, STATE) // CALL
    poke(control, STATE, (calls + 1) * CALL + OPEN)
    take_part(0, control)
    entered = added(control, STATE, -OPEN) % OPEN  # whoever looks from now on finds it closed
    while peek(control, LEFT) < entered:
        give_way(peek(control, GIVE_WAY))
    poke(control, BUSY, 0)


def serve(number: int, control: int) -> None:
    """Take part in one call after another, until there was none for a while."""
    looked = 0
    seen = 0
    while looked < peek(control, PATIENCE):
        state = peek(control, STATE)
        latest = state // CALL
        if latest != seen and state % CALL >= OPEN and number < peek(control, THREADS):
            if swapped(control, STATE, state, state + 1):
                seen = latest
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
    for turn in range(threads):
        portion = (number + turn) % threads
        taken = added(control, TAKEN + portion * LINE, 1)
        while taken < ranges:
            at = portion * ranges + taken
            call(function, block, lo + tasks * at // many, lo + tasks * (at + 1) // many, number)
            taken = added(control, TAKEN + portion * LINE, 1)


# What these are written in: integers that several threads look at and change.


def _at(builder: Any, array: Any, index: Any) -> Any:
    return builder.inttoptr(builder.add(array, builder.shl(index, ir.Constant(INT64, 3))), INT64.as_pointer())


@intrinsic
def peek(typing: Any, array: Any, index: Any) -> Any:
    """Read an integer, before anything that follows is read."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(_at(builder, *args), "acquire", 8)

    return types.intp(types.intp, types.intp), lower


@intrinsic
def poke(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write an integer, after everything that was written before."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store_atomic(args[2], _at(builder, *args[:2]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), lower


@intrinsic
def added(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Add to an integer, and return what it was."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _at(builder, *args[:2]), args[2], "seq_cst")

    return types.intp(types.intp, types.intp, types.intp), lower


@intrinsic
def swapped(typing: Any, array: Any, index: Any, expected: Any, value: Any) -> Any:
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
    """Return a function like the kernel that has a team call it, if its last argument says where the request is.

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
    lo, hi, request = flat[-3:]
    with builder.if_then(builder.icmp_unsigned("==", request, ir.Constant(INT64, 0))):
        builder.ret(builder.call(kernel, function.args, attrs=("noinline",)))
    block = builder.alloca(block_kind)
    for i, value in enumerate([builder.load(_at(builder, request, ir.Constant(INT64, PARTS))), *flat]):
        builder.store(value, cgutils.gep_inbounds(builder, block, 0, i))
    entry = context.call_conv.get_function_type(types.void, [types.intp] * 5).as_pointer()
    leading = builder.inttoptr(builder.load(_at(builder, request, ir.Constant(INT64, LEAD))), entry)
    arguments = [builder.ptrtoint(each, INT64), builder.ptrtoint(block, INT64), lo, hi, request]
    builder.ret(builder.call(leading, [*function.args[:2], *arguments]))
    return function
