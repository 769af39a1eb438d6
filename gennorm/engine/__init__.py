"""The door to the kernels. It opens when something is first computed: behind it is Numba, which takes a while."""

from __future__ import annotations

import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gennorm.engine.forks import hold_in_forks, run_uninterrupted
from gennorm.engine.threads import get_num_threads

if TYPE_CHECKING:
    from gennorm.engine.bound import Bound
    from gennorm.engine.compiler.jit import Built

__all__ = ["assemble", "bind", "built"]

_importing = threading.RLock()  # a child cannot import what another thread of its parent was importing
hold_in_forks(_importing)

_kernels: Any = None


def bind(*layout: Any, **others: Any) -> Bound:
    """Plan a layer for arrays of one shape, dtype and layout, and give the plan its kernels: `kernels.bind`."""
    bound: Bound = _opened().bind(*layout, **others)
    return bound


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
        _kernels = run_uninterrupted(_imported)
    return _kernels


def _imported() -> ModuleType:
    with _importing:
        from gennorm.engine import bound

        return bound
