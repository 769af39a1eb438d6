"""The engine: what computes. Importing it is light: Numba is imported when something is first computed.

======================== =============================================================================================
`call`, `layout`         the prepared call, which runs the kernels for arrays of one layout
`fallback`               the same by the definition, where kernels cannot be compiled or are switched off
`kernels/`               the loops over elements
`compiler/`              how a kernel becomes machine code; the only part that knows Numba
`sharing`, `threads`     which threads share a call, and how many
`openmp`                 the OpenMP runtime of torch, whose threads share calls where it is loaded
`memory`                 memory for outputs
======================== =============================================================================================
"""

from __future__ import annotations

import os
import threading
import warnings
from typing import TYPE_CHECKING, Any

from gennorm.engine.compiler import CompilationError, available
from gennorm.engine.forks import hold_in_forks, run_uninterrupted
from gennorm.engine.threads import get_num_threads
from gennorm.errors import ConfigError, shown, suggest
from gennorm.plan import make_plan
from gennorm.spec.config import LayerConfig

if TYPE_CHECKING:
    from gennorm.engine.call import PreparedCall
    from gennorm.engine.compiler.jit import Built

__all__ = ["CompilationError", "built", "fallback_reason", "prepare", "prepare_threads", "use_definition"]

VARIABLE = "GENNORM_ENGINE"
ENGINES = ("kernels", "definition")

_importing = threading.RLock()  # a forked child could not import what another thread of its parent was importing
hold_in_forks(_importing)

_kernels: Any = None  # gennorm.engine.call
_reason: str | None = None  # why calls go by the definition
_chosen = False


def prepare(
    config: LayerConfig,
    shape: tuple[int, ...],
    dtype: str,
    strides: tuple[int, ...],
    out_strides: tuple[int, ...],
    *,
    per_example: bool = False,
) -> PreparedCall:
    """Plan a layer for arrays of one shape, dtype and layout, and prepare the calls on them.

    They go by kernels, or by the definition where kernels are not available.
    """
    if fallback_reason() is None:
        call: PreparedCall = _kernels.prepare(config, shape, dtype, strides, out_strides, per_example=per_example)
        return call
    from gennorm.engine.fallback import DefinitionCall

    plan = make_plan(config, shape, dtype, strides, out_strides, per_example=per_example)
    return DefinitionCall(plan, out_strides)  # type: ignore[return-value]  # it has the same methods


def fallback_reason() -> str | None:
    """Return why calls go by the definition and not by kernels; None where they go by kernels.

    The environment variable ``GENNORM_ENGINE`` chooses one by hand.

    Raises
    ------
    ConfigError
        The variable names no engine, or asks for kernels where they are not available.
    """
    if not _chosen:
        run_uninterrupted(_choose)
    return _reason


def use_definition(error: BaseException) -> None:
    """Let calls go by the definition from now on, because a kernel could not be compiled; warn of it once."""
    global _reason  # noqa: PLW0603
    if _reason is None:
        cause = " ".join(str(error.__cause__ or error).split())
        _reason = f"Numba could not compile a kernel ({type(error.__cause__ or error).__name__}: {cause[:200]})"
        _warn(f"{_reason}; report it with the output of `numba -s`")


def compilation_failure() -> str | None:
    """Return what `use_definition` was told, so that no kernel is compiled after one failed."""
    return _reason


def prepare_threads() -> None:
    """Compile what the threads run that share the calls of any layer, if there will be more than one."""
    if fallback_reason() is None and _kernels.jit.JIT and get_num_threads() > 1:
        _kernels.executor()


def built() -> list[Built]:
    """Return every kernel that this process has compiled or loaded so far, in that order."""
    return [] if fallback_reason() is not None else list(_kernels.jit.built)


def _choose() -> None:
    global _chosen, _kernels, _reason  # noqa: PLW0603
    with _importing:
        if _chosen:
            return
        wanted = os.environ.get(VARIABLE, "")
        if wanted and wanted not in ENGINES:
            msg = f"{VARIABLE} cannot be {shown(wanted)}{suggest(wanted, ENGINES)}\n"
            msg += 'set it to "kernels" or "definition", or leave it out'
            raise ConfigError(msg, code="C130")
        if wanted == "definition":
            _reason = f"{VARIABLE}=definition"
        elif (obstacle := available()) is None:
            from gennorm.engine import call

            _kernels = call
        elif wanted == "kernels":
            msg = f"{VARIABLE} asks for kernels, and there are none: {obstacle}\nor leave out {VARIABLE}"
            raise ConfigError(msg, code="C131")
        else:
            _reason = obstacle.partition(":")[0]
            _warn(obstacle)
        _chosen = True


def _warn(obstacle: str) -> None:
    text = f"gennorm computes by its definition in NumPy, which is right and slow: {obstacle}"
    warnings.warn(text, RuntimeWarning, stacklevel=2)
