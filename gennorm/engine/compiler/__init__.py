"""Compilation of kernels by Numba: whether it is possible, and how a kernel's arguments are described.

Importing this package does not import Numba. Ask `available` first; if it returns None, import the rest:

- `jit` compiles a kernel for one combination of settings and dtypes, and stores the machine code on disk;
- `lowering` emits the vector operations that kernels are written in;
- `workers` is the machine code by which the thread pool divides a call;
- `foreign` is the machine code by which XLA calls a kernel;
- `private` contains everything that is used of Numba beyond its documented interface.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from gennorm.engine.forks import run_uninterrupted

__all__ = ["CompilationError", "Handler", "Signature", "available"]

LOWEST, BELOW = (0, 67), (0, 69)  # the versions of Numba that were tested, as in pyproject.toml
INSTALL = "pip install 'numba>={}.{},<{}.{}'".format(*LOWEST, *BELOW)


@dataclass(frozen=True, slots=True)
class Handler:
    """How many of a kernel's arrays are operands and attributes of a call by XLA; see `foreign`.

    The arrays are the operands, the results, the attributes and, as scratch arrays, results that nothing reads.
    """

    operands: int
    attributes: int


@dataclass(frozen=True, slots=True)
class Signature:
    """The arguments of a kernel, in order: arrays, scratch arrays, integers. Arrays are flat and contiguous.

    Attributes
    ----------
    arrays, scratch : tuple of str
        The dtype of each array. A scratch array is workspace: if threads share a call, each gets a part of it.
    integers : int
        How many integers follow.
    shared : bool
        Whether threads may share a call. The last three integers are then the first task, the end of the tasks, and
        the address of a request to the thread pool (0: the caller runs all tasks). The kernel does not read the last.
    handler : Handler, optional
        If XLA calls the kernel.
    """

    arrays: tuple[str, ...] = ()
    scratch: tuple[str, ...] = ()
    integers: int = 0
    shared: bool = False
    handler: Handler | None = None


class CompilationError(RuntimeError):
    """A kernel could not be compiled. The exception that Numba or LLVM raised is its ``__cause__``."""


@functools.cache
def available() -> str | None:
    """Say why kernels cannot be compiled in this process; None if they can.

    The first call imports Numba, and takes as long as that: 0.15 s. It never raises because of Numba.

    Returns
    -------
    str or None
        One sentence: what is wrong with the installed Numba and, behind the colon, what to do.
    """
    return run_uninterrupted(_obstacle)  # Numba is useless to the process if a KeyboardInterrupt breaks off its import


def _obstacle() -> str | None:
    try:
        import numba
    except ModuleNotFoundError as error:
        if error.name == "numba":
            return f"Numba is not installed: {INSTALL}"
        return _not_importable(error)
    except Exception as error:  # noqa: BLE001  a NumPy that it refuses, a library that is not found
        return _not_importable(error)
    version = tuple(int(part) for part in numba.__version__.split(".")[:2] if part.isdecimal())
    if not LOWEST <= version < BELOW:
        return f"gennorm has not been tested with Numba {numba.__version__}: {INSTALL}"
    try:
        from . import private

        if missing := private.missing():
            return f"Numba {numba.__version__} differs from what was tested ({'; '.join(missing)}): {INSTALL}"
        from . import jit  # noqa: F401
    except Exception as error:  # noqa: BLE001  whatever it is, there is another way to compute
        return _not_importable(error)
    return None


def _not_importable(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return f"Numba cannot be imported ({type(error).__name__}, {text}): {INSTALL}"
