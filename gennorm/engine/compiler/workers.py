"""The machine code that divides a kernel call among threads, without Python's interpreter.

There are two kinds of threads: the workers of the thread pool, and the threads of an OpenMP runtime. The entry point of
a kernel calls `share` for the first and `share_openmp` for the second. Both return when the whole call is done and no
other thread is running a part of it. All functions here are compiled like kernels.

A thread that waits for Python's lock or sleeps needs 50 microseconds to wake up; in these a kernel processes 150,000
elements. So workers wait without the lock, in `work_until_idle`, which polls for a call for a while before it
returns to Python, where the worker goes to sleep. If another thread is using the pool, `share` runs the whole call
itself.

`share_openmp` starts a parallel region of OpenMP, in which each thread runs `take_part`. Inside another parallel region
it runs the whole call itself.

The threads communicate through a *control block*, an array of integers that they access atomically. The thread pool has
one; `share_openmp` allocates one on its stack for each call. These are the positions in it. The first eight change only
between calls; the others have two cache lines each:

========== ==========================================================================================
FUNCTION   the function to call for a range: it takes ARGUMENTS, the range's start and end, and the thread's number
ARGUMENTS  the address of the other arguments
LO, HI     the tasks of the call
THREADS    how many threads take part: numbers below this
RANGES     how many ranges there are in a portion: each thread has one, and helps with the others' after it
POLLS      thread pool: how often `work_until_idle` polls before it returns
YIELD      thread pool: the address of the system's function that yields the processor to another thread
NUMBER     OpenMP, at the place of POLLS: the address of ``omp_get_thread_num``
TAKE_PART  OpenMP, at the place of YIELD: the address of `take_part`
BUSY       1 while a caller uses the pool
STATE      the number of the call times CALL, plus OPEN while workers may join, plus how many joined
FINISHED   how many of these are done
TAKEN      for each portion, how many of its ranges were taken
========== ==========================================================================================

A *request* is an array of integers that describes how a call is to be divided. It never changes:

============ ========================================================================================
CONTROL      the address of the control block of the thread pool; of `take_part` for OpenMP
SHARE        the address of `share` or `share_openmp`
PARTICIPANTS how many threads take part, the caller included
PORTION      how many ranges there are in a portion
PARTS        how many equal parts the scratch arrays have: one for each thread, or one for all
LAUNCH       OpenMP: the addresses of ``GOMP_parallel``, and behind it of ``omp_get_thread_num`` and ``omp_in_parallel``
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
NUMBER, TAKE_PART = POLLS, YIELD
BUSY, STATE, FINISHED, TAKEN = LINE, 2 * LINE, 3 * LINE, 4 * LINE
CONTROL, SHARE, PARTICIPANTS, PORTION, PARTS, LAUNCH, THREAD_NUMBER, IN_PARALLEL = range(8)

OPEN = 1 << 15
CALL = 1 << 16

SHARE_SIGNATURE = Signature(integers=5)
WORK_SIGNATURE = Signature(integers=2)
TAKE_PART_SIGNATURE = Signature(integers=1)

INT32 = ir.IntType(32)
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


def share_openmp(function: int, arguments: int, lo: int, hi: int, request: int) -> None:
    """Run a function for the tasks from ``lo`` to ``hi`` in a parallel region, and return when all of them are done."""
    if call_for_integer(atomic_load(request, IN_PARALLEL)) != 0:
        call(function, arguments, lo, hi, 0)
        return
    threads = atomic_load(request, PARTICIPANTS)
    control = allocate(TAKEN + threads * LINE)
    atomic_store(control, FUNCTION, function)
    atomic_store(control, ARGUMENTS, arguments)
    atomic_store(control, LO, lo)
    atomic_store(control, HI, hi)
    atomic_store(control, THREADS, threads)
    atomic_store(control, RANGES, atomic_load(request, PORTION))
    atomic_store(control, NUMBER, atomic_load(request, THREAD_NUMBER))
    atomic_store(control, TAKE_PART, atomic_load(request, CONTROL))
    for portion in range(threads):
        atomic_store(control, TAKEN + portion * LINE, 0)
    launch(atomic_load(request, LAUNCH), control, threads)


def take_part(control: int) -> None:
    """Do the part of one thread in a parallel region, and what is left of the others' parts."""
    run_ranges(call_for_integer(atomic_load(control, NUMBER)), control)


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
        kind = ir.FunctionType(INT32, [])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [])
        if platform.machine().lower() in {"x86_64", "amd64"}:
            name = "llvm.x86.sse2.pause"
            pause = builder.module.globals.get(name) or ir.Function(builder.module, ir.FunctionType(VOID, []), name)
            builder.call(pause, [])
        return context.get_dummy_value()

    return types.void(types.intp), lower


@intrinsic
def allocate(typing: Any, count: Any) -> Any:
    """Allocate integers on the stack of the function that is compiled, and return their address."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        memory = builder.alloca(INT64, size=args[0])
        memory.align = 8 * LINE
        return builder.ptrtoint(memory, INT64)

    return types.intp(types.intp), lower


@intrinsic
def call_for_integer(typing: Any, function: Any) -> Any:
    """Call a C function at an address, ``int function(void)``."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(INT32, [])
        return builder.sext(builder.call(builder.inttoptr(args[0], kind.as_pointer()), []), INT64)

    return types.intp(types.intp), lower


@intrinsic
def launch(typing: Any, function: Any, control: Any, threads: Any) -> Any:
    """Call ``void GOMP_parallel(void (*region)(void *), void *data, unsigned threads, unsigned flags)``."""

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        region = _region(context, builder.module)
        kind = ir.FunctionType(VOID, [region.type, INT64.as_pointer(), INT32, INT32])
        data = builder.inttoptr(args[1], INT64.as_pointer())
        arguments = [region, data, builder.trunc(args[2], INT32), ir.Constant(INT32, 0)]
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), arguments)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), lower


def _region(context: Any, module: Any) -> Any:
    """Define a C function that calls `take_part`, which has the calling convention of Numba."""
    region = ir.Function(module, ir.FunctionType(VOID, [INT64.as_pointer()]), "gennorm.region")
    region.linkage = "internal"
    builder = ir.IRBuilder(region.append_basic_block())
    control = builder.ptrtoint(region.args[0], INT64)
    kind = context.call_conv.get_function_type(types.void, [types.intp])
    found, raised = (builder.alloca(argument.pointee) for argument in kind.args[:2])
    take_part = builder.inttoptr(read(builder, control, TAKE_PART), kind.as_pointer())
    builder.call(take_part, [found, raised, control])
    builder.ret_void()
    return region
