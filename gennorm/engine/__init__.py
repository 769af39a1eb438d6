"""The engine. Importing it is light: Numba is imported when something is first computed."""

from __future__ import annotations

import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gennorm.engine.threads import get_num_threads, hold_in_forks, unbroken

if TYPE_CHECKING:
    from gennorm.engine.call import PreparedCall
    from gennorm.engine.compiler.jit import Built

__all__ = ["assemble", "built", "prepare"]

_importing = threading.RLock()  # a child cannot import what another thread of its parent was importing
hold_in_forks(_importing)

_kernels: Any = None


def prepare(*layout: Any, **others: Any) -> PreparedCall:
    """Return a prepared call for arrays of one shape, dtype and layout; see `gennorm.engine.call.prepare`."""
    prepared: PreparedCall = _opened().prepare(*layout, **others)
    return prepared


def assemble() -> None:
    """Compile what threads live in that share the calls of any layer, if there is to be more than one."""
    kernels = _opened()
    if kernels.jit.JIT and get_num_threads() > 1:
        kernels.assembled()


def built() -> list[Built]:
    """Every kernel that this process has compiled or loaded so far, in that order."""
    return list(_opened().jit.built)


def _opened() -> Any:
    global _kernels  # noqa: PLW0603
    if _kernels is None:
        _kernels = unbroken(_imported)
    return _kernels


def _imported() -> ModuleType:
    with _importing:
        from gennorm.engine import call

        return call
