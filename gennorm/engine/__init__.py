"""The engine, which computes. Importing this package does not import Numba: the first computation does.

======================== =============================================================================================
`interface`              what the layer uses of a prepared call
`call`, `layout`         the prepared call that runs kernels for arrays of one layout
`fallback`               the prepared call that uses the definition, where kernels cannot be compiled or are disabled
`kernels/`               the loops over elements
`compiler/`              how a kernel becomes machine code; the only part that knows Numba
`sharing`, `threads`     which threads share a call, and how many
`openmp`                 the OpenMP runtime of torch, whose threads share calls where it is loaded
`handlers`               calls of kernels by XLA
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
    from gennorm.engine.compiler.jit import Built
    from gennorm.engine.interface import PreparedCall

__all__ = [
    "CompilationError",
    "built",
    "extend_moments",
    "fallback_reason",
    "prepare",
    "prepare_threads",
    "use_definition",
]

VARIABLE = "GENNORM_ENGINE"
ENGINES = ("kernels", "definition")

_importing = (
    threading.RLock()
)  # a forked child could not finish an import that another thread of its parent had started
hold_in_forks(_importing)

_kernels: Any = None  # gennorm.engine.call
_reason: str | None = None  # why calls use the definition
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

    They use kernels, or the definition where kernels are not available.
    """
    if fallback_reason() is None:
        call: PreparedCall = _kernels.prepare(config, shape, dtype, strides, out_strides, per_example=per_example)
        return call
    from gennorm.engine.fallback import DefinitionCall

    plan = make_plan(config, shape, dtype, strides, out_strides, per_example=per_example)
    return DefinitionCall(plan, out_strides)


def extend_moments(x: Any, rows: Any) -> bool:
    """Merge the values of examples into the moments of slices, in place; see `gennorm.engine.call.extend_moments`.

    Where there are no kernels nothing is done, and the answer is False.
    """
    return fallback_reason() is None and bool(_kernels.extend_moments(x, rows))


def fallback_reason() -> str | None:
    """Return why calls use the definition instead of kernels; None if they use kernels.

    The environment variable ``GENNORM_ENGINE`` selects one explicitly.

    Raises
    ------
    ConfigError
        The variable has another value, or requires kernels where they are not available.
    """
    if not _chosen:
        run_uninterrupted(_choose)
    return _reason


def use_definition(error: BaseException) -> None:
    """Use the definition for all calls from now on, because a kernel could not be compiled; warn once."""
    global _reason  # noqa: PLW0603
    if _reason is None:
        cause = " ".join(str(error.__cause__ or error).split())
        _reason = f"Numba could not compile a kernel ({type(error.__cause__ or error).__name__}: {cause[:200]})"
        _warn(f"{_reason}; report it with the output of `numba -s`")


def compilation_failure() -> str | None:
    """Return the reason that `use_definition` stored, so that no kernel is compiled after one failed."""
    return _reason


def prepare_threads() -> None:
    """Compile the functions of the thread pool, if there will be more than one thread."""
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
            msg = f"{VARIABLE} requires kernels, and they are not available: {obstacle}\nor leave out {VARIABLE}"
            raise ConfigError(msg, code="C131")
        else:
            _reason = obstacle.partition(":")[0]
            _warn(obstacle)
        _chosen = True


def _warn(obstacle: str) -> None:
    text = f"gennorm computes by its definition in NumPy, which is correct but slow: {obstacle}"
    warnings.warn(text, RuntimeWarning, stacklevel=2)
