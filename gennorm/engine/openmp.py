"""The OpenMP runtime that torch has loaded, whose threads also run kernels.

Torch divides its operators among the threads of an OpenMP runtime. After an operator these threads poll for the next
one for some milliseconds, and occupy the processors. A thread pool beside them would compete with them: after an
operator of torch a call takes twice as long. So kernels run on the same threads.

The runtime has the function ``GOMP_parallel``, which GCC calls for every parallel region. It is part of libgomp, of
LLVM's libomp and of Intel's libiomp5. It is looked up in torch's own library and the libraries that this one was
linked with, so it belongs to the runtime that torch itself uses. Nothing is loaded, and torch is not imported.

A child of a fork has none of the runtime's threads, and a parallel region would wait for them forever. So a child uses
the thread pool if torch was loaded before the fork.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import NamedTuple

__all__ = ["Runtime", "runtime"]

LIBRARIES = ("libtorch_cpu.so", "libtorch_cpu.dylib")  # on Windows OpenMP has no such function


class Runtime(NamedTuple):
    """The addresses of three functions of an OpenMP runtime."""

    parallel: int  # GOMP_parallel: runs a function in several threads
    thread_number: int  # omp_get_thread_num
    in_parallel: int  # omp_in_parallel: whether the caller is inside a parallel region


_process: int | None = os.getpid()  # the process that may use the runtime; None if a fork has left it unusable
_found: Runtime | None = None
_absent = False  # whether torch is loaded and has no such runtime


def runtime() -> Runtime | None:
    """Return the OpenMP runtime of torch, or None if torch is not loaded or its threads cannot be used.

    Returns
    -------
    Runtime or None
        None also in a process that was forked after torch was loaded.
    """
    global _absent, _found  # noqa: PLW0603
    if _found is None:
        torch = sys.modules.get("torch")
        if torch is None or _absent:
            return None
        _found = _of_library(Path(getattr(torch, "__file__", None) or "").parent / "lib")
        # An import that is going on in another thread loads the library later.
        _absent = _found is None and hasattr(torch, "get_num_threads")
    return _found if os.getpid() == _process else None


def _of_library(folder: Path) -> Runtime | None:
    """Return the runtime that torch's library in a folder is linked with, if this library is loaded."""
    for name in LIBRARIES:
        try:
            library = ctypes.CDLL(str(folder / name), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
            functions = library.GOMP_parallel, library.omp_get_thread_num, library.omp_in_parallel
        except (OSError, AttributeError):  # no such library, not loaded, other functions, or a system without the flags
            continue
        return Runtime(*(ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions))
    return None


def _after_fork() -> None:
    global _process  # noqa: PLW0603
    _process = None if "torch" in sys.modules or _process is None else os.getpid()


if hasattr(os, "register_at_fork"):  # a fork without these hooks is noticed by its number of the process
    os.register_at_fork(after_in_child=_after_fork)
