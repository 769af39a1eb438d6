"""The consoles and the progress bar of the commands."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["console", "progress"]

WIDE = 160  # columns of a file or a pipe, whose lines should not be broken


class _Console(Console):
    """A console that does not handle a closed pipe: the command line does, with its exit status."""

    def on_broken_pipe(self) -> None:
        """Raise the error that is being handled."""
        raise  # noqa: PLE0704 - rich calls this while it handles BrokenPipeError


def console(*, stderr: bool = False) -> Console:
    """A console for standard output, or for standard error, as the stream is now."""
    found = _Console(stderr=stderr, highlight=False)
    if not found.is_terminal and "COLUMNS" not in os.environ:
        found = _Console(stderr=stderr, highlight=False, width=WIDE)
    return found


@contextmanager
def progress(what: str, *, counted: bool = False) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error while the block runs, if that is a terminal; of bytes, or of a count.

    The block gets a function. Its arguments are how much is done, how much there is in all, and optionally a new
    description.
    """
    screen = console(stderr=True)
    amount = MofNCompleteColumn() if counted else DownloadColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(what, total=None)

        def report(done: int, total: int, doing: str | None = None) -> None:
            bar.update(task, completed=done, total=total, description=doing)

        yield report
