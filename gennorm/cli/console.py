"""Where the commands write to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["console", "progress"]

WIDE = 160  # columns where nobody is looking: a file or a pipe should not have broken lines


def console(*, stderr: bool = False) -> Console:
    """A console for standard output, or for standard error, as it is now."""
    found = Console(stderr=stderr, highlight=False)
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found = Console(stderr=stderr, highlight=False, width=WIDE)
    return found


@contextmanager
def progress(what: str, *, counted: bool = False) -> Iterator[Callable[..., None]]:
    """A bar on standard error, where that is a terminal, for as long as the block runs; of bytes if not `counted`.

    It is moved by a call with how much is done, how much there is, and if that changes, what is being done.
    """
    screen = console(stderr=True)
    amount = MofNCompleteColumn() if counted else DownloadColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def report(done: int, total: int, doing: str | None = None) -> None:
            bar.update(task, completed=done, total=total, description=doing)

        yield report
