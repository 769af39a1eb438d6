"""The number of threads that a large call uses."""

from __future__ import annotations

import functools
import operator
import os
import threading

from gennorm.engine import limits
from gennorm.errors import ConfigError, shown

__all__ = ["Using", "get_num_threads", "set_num_threads", "shared"]

# Layer norm of 768 on 49,152, 98,304 and 196,608 elements takes 15, 24 and 48 us with one thread and 13, 17 and 27 with
# two; with gradients 46, 77 and 170 us, and 46, 68 and 108.
SHARED = 1 << 16  # elements of the smallest call that several threads share
WORTH_SHARING = SHARED // 2  # elements for each thread, at the least

_threads: int | None = None
_here = threading.local()  # .number: how many threads the calls from this thread use, inside `Using`


def get_num_threads() -> int:
    """Return how many threads a large call uses.

    Returns
    -------
    int
        The number passed to `set_num_threads`. Before the first such call it is the least of ``OMP_NUM_THREADS``, where
        that is set, the processors this process may run on, and the whole processors of the CPU quota of its container.

    Examples
    --------
    >>> import gennorm as gn
    >>> before = gn.get_num_threads()
    >>> gn.set_num_threads(1)
    >>> gn.get_num_threads()
    1
    >>> gn.set_num_threads(before)
    """
    here: int | None = getattr(_here, "number", None)
    if here is not None:
        return here
    if _threads is not None:
        return _threads
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    if quota is not None:
        available = min(available, quota)
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return min(available, int(wanted)) if wanted.isdecimal() and int(wanted) else available


@functools.cache
def _quota() -> int | None:
    """The quota of processors when it was first needed: reading the files takes longer than a call."""
    return limits.processors()


def set_num_threads(number: int) -> None:
    """Set how many threads a large call uses, the caller's own included.

    Parameters
    ----------
    number : int
        At least 1. Results do not depend on it.

    Raises
    ------
    ConfigError
        The number is not an integer of at least 1.

    Examples
    --------
    >>> import gennorm as gn
    >>> before = gn.get_num_threads()
    >>> gn.set_num_threads(2)
    >>> gn.get_num_threads()
    2
    >>> gn.set_num_threads(before)
    """
    global _threads  # noqa: PLW0603
    try:
        count = 0 if isinstance(number, bool) else operator.index(number)
    except TypeError:
        count = 0
    if count < 1:
        msg = f"the number of threads cannot be {shown(number)}\nwrite an integer of 1 or more"
        raise ConfigError(msg, code="C101")
    _threads = count  # the thread pool grows in the next large call


class Using:
    """A context in which calls from the current thread use a given number of threads.

    Parameters
    ----------
    number : int
        At least 1. It takes precedence over `set_num_threads`.

    Examples
    --------
    >>> with Using(3):
    ...     get_num_threads()
    3
    """

    __slots__ = ("_before", "_number")

    def __init__(self, number: int) -> None:
        self._number = number

    def __enter__(self) -> None:
        self._before = getattr(_here, "number", None)
        _here.number = self._number

    def __exit__(self, *_: object) -> None:
        _here.number = self._before


def shared(elements: int) -> bool:
    """Return whether several threads, where there are several, share a call on so many elements."""
    return elements >= SHARED
