"""One line on a terminal when a process compiles its first kernel, which takes seconds."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

__all__ = ["announce_compilation"]

_announced = False


def announce_compilation(cache: Callable[[], object]) -> None:
    """Say once, on standard error, that kernels are compiled and where they are stored.

    Nothing is written if standard error is not a terminal, or if ``GENNORM_QUIET`` is set and not 0.

    Parameters
    ----------
    cache : callable
        Returns the folder where compiled kernels are stored.
    """
    global _announced  # noqa: PLW0603
    if _announced:
        return
    _announced = True
    if os.environ.get("GENNORM_QUIET", "0") not in {"", "0"}:
        return
    try:
        if sys.stderr is not None and sys.stderr.isatty():
            text = f"gennorm: compiling kernels, which takes seconds; later processes load them from {cache()}"
            print(text, file=sys.stderr, flush=True)  # noqa: T201 - it is for the person at the terminal
    except (OSError, ValueError, RuntimeError):
        return  # a terminal that is gone, or a user without a home
