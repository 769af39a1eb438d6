"""The machine code of the thread pool: a caller and its workers divide a kernel call without Python's interpreter.

A thread that waits for Python's lock or sleeps needs 50 microseconds to wake up; in these a kernel processes 150,000
elements. So workers wait without the lock, in `work_until_idle`, which polls for a call for a while before it
returns to Python, where the worker goes to sleep. The entry point of a kernel calls `share`, which publishes the call,
runs part of it, and returns when all of it is done and no worker is running any more. If another thread is using the
pool, `share` runs the whole call itself. Both functions are compiled like kernels.

Caller and workers communicate through a *control block*, an array of integers that they access atomically. These are
the positions in it. The first eight change only between calls; the others have two cache lines each:

========== ==========================================================================================
FUNCTION   the function to call for a range: it takes ARGUMENTS, the range's start and end, and the thread's number
ARGUMENTS  the address of the other arguments
LO, HI     the tasks of the call
THREADS    how many threads take part: numbers below this
RANGES     how many ranges there are in a portion: each thread has one, and helps with the others' after it
POLLS      how often `work_until_idle` polls before it returns
YIELD      the address of the system's function that yields the processor to another thread
BUSY       1 while a caller uses the pool
STATE      the number of the call times CALL, plus OPEN while workers may join, plus how many joined
FINISHED   how many of these are done
TAKEN      for each portion, how many of its ranges were taken
========== ==========================================================================================

A *request* is an array of integers that describes how a call is to be divided. It never changes:

============ ========================================================================================
CONTROL      the address of the control block
SHARE        the address of `share`
PARTICIPANTS how many threads take part, the caller included
PORTION      how many ranges there are in a portion
PARTS        how many equal parts the scratch arrays have: one for each thread, or one for all
============ ========================================================================================
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from . import Signature

LINE = 16  # integers in two cache lines: processors fetch them in pairs
FUNCTION, ARGUMENTS, LO, HI, THREADS, RANGES, POLLS, YIELD = range(8)
BUSY, STATE, FINISHED, TAKEN = LINE, 2 * LINE, 3 * LINE, 4 * LINE
CONTROL, SHARE, PARTICIPANTS, PORTION, PARTS = range(5)

OPEN = 1 << 15
CALL = 1 << 16

SHARE_SIGNATURE = Signature(integers=5)
WORK_SIGNATURE = Signature(integers=2)

INT64 = ir.IntType(64)
VOID = ir.VoidType()


def share(function: int, arguments: int, lo: int, hi: int, request: int) -> None:
    """Run a function for the tasks from ``lo`` to ``hi`` with the workers, and return when all of them are done."""
    control, threads = atomic_load(request, CONTROL), atomic_load(request, PARTICIPANTS)
    if not compare_and_swap(control, BUSY, 0, 1):
        call(function, arguments, lo, hi, 0)
        return
    atomic_store(control, FUNCTION, function)
    atomic_store(control, ARGUMENTS, arguments)
    atomic_store(control, LO, lo)
    atomic_store(control, HI, hi)
    atomic_store(control, THREADS, threads)
    atomic_store(control, RANGES, atomic_load(request, PORTION))
    atomic_store(control, FINISHED, 0)
    for portion in range(threads):
        atomic_store(control, TAKEN + portion * LINE, 0)
    calls = atomic_load(control, STATE) // CALL
    atomic_store(control, STATE, (calls + 1) * CALL + OPEN)
    run_ranges(0, control)
    joined = fetch_add(control, STATE, -OPEN) % OPEN  # no worker joins after this
    while atomic_load(control, FINISHED) < joined:
        yield_processor(atomic_load(control, YIELD))
    atomic_store(control, BUSY, 0)


def work_until_idle(number: int, control: int) -> None:
    """Take part in one call after another, until there has been none for a while."""
    polls = 0
    seen = 0
    while polls < atomic_load(control, POLLS):
        state = atomic_load(control, STATE)
        latest = state // CALL
        if latest != seen and state % CALL >= OPEN and number < atomic_load(control, THREADS):
            if compare_and_swap(control, STATE, state, state + 1):
                seen = latest
                run_ranges(number, control)
                fetch_add(control, FINISHED, 1)
                polls = 0
        else:
            yield_processor(atomic_load(control, YIELD))
            polls += 1


def run_ranges(number: int, control: int) -> None:
    """Run the ranges of this thread's portion, then those that are left of the others'."""
    function, arguments, lo = atomic_load(control, FUNCTION), atomic_load(control, ARGUMENTS), atomic_load(control, LO)
    threads, ranges = atomic_load(control, THREADS), atomic_load(control, RANGES)
    tasks, count = atomic_load(control, HI) - lo, threads * ranges
    for turn in range(threads):
        portion = (number + turn) % threads
        taken = fetch_add(control, TAKEN + portion * LINE, 1)
        while taken < ranges:
            at = portion * ranges + taken
            call(function, arguments, lo + tasks * at // count, lo + tasks * (at + 1) // count, number)
            taken = fetch_add(control, TAKEN + portion * LINE, 1)


# Atomic access to arrays of integers, given by their addresses.


def _element(builder: Any, array: Any, index: Any) -> Any:
    return builder.inttoptr(builder.add(array, builder.shl(index, ir.Constant(INT64, 3))), INT64.as_pointer())


def read(builder: Any, array: Any, position: int) -> Any:
    """Emit a plain load of an integer from an array at an address."""
    return builder.load(_element(builder, array, ir.Constant(INT64, position)))


@intrinsic
def atomic_load(typing: Any, array: Any, index: Any) -> Any:
    """Read an integer before anything that follows is read (acquire)."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load_atomic(_element(builder, *args), "acquire", 8)

    return types.intp(types.intp, types.intp), lower


@intrinsic
def atomic_store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Write an integer after everything that was written before (release)."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store_atomic(args[2], _element(builder, *args[:2]), "release", 8)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), lower


@intrinsic
def fetch_add(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Add to an integer, and return its former value."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _element(builder, *args[:2]), args[2], "seq_cst")

    return types.intp(types.intp, types.intp, types.intp), lower


@intrinsic
def compare_and_swap(typing: Any, array: Any, index: Any, expected: Any, value: Any) -> Any:
    """Replace an integer if it has the expected value, and return whether it had."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        found = builder.cmpxchg(_element(builder, *args[:2]), args[2], args[3], "seq_cst")
        return builder.extract_value(found, 1)

    return types.boolean(types.intp, types.intp, types.intp, types.intp), lower


@intrinsic
def call(typing: Any, function: Any, arguments: Any, lo: Any, hi: Any, number: Any) -> Any:
    """Call a function at an address for a range of tasks."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(VOID, [INT64] * 4)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), lower


@intrinsic
def yield_processor(typing: Any, function: Any) -> Any:
    """Yield the processor to a thread that waits for it, and then for a moment to the other half of the core."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [])
        if platform.machine().lower() in {"x86_64", "amd64"}:
            name = "llvm.x86.sse2.pause"
            pause = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(VOID, []), name)
            builder.call(pause, [])
        return context.get_dummy_value()

    return types.void(types.intp), lower
