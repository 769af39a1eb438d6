"""The command line, ``gennorm demo | apply | adapt | explain | presets | bench``, behind a door that needs no extra.

The commands are in `gennorm.cli.app`. What they need besides gennorm is an extra, and where it is not installed the
command says so in a line.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

__all__ = ["main", "missing"]

# What the commands import or look into, and the extra that installs it.
EXTRAS = {
    **dict.fromkeys(("typer", "click", "rich", "PIL", "matplotlib"), "cli"),
    "ml_dtypes": "bfloat16",
    "safetensors": "safetensors",
}
INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended: 128 plus the number of the signal


def main() -> NoReturn:
    """Run the command line with the arguments of this process, and exit with its status.

    0: done. 1: an error of gennorm or of a file. 2: the command line itself is wrong. 130: interrupted.

    Raises
    ------
    SystemExit
        Always.
    """
    try:
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # Windows has not both
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:  # nohup has one ignored
                signal.signal(number, _ended)
        try:
            from gennorm.cli.app import app
        except ModuleNotFoundError as error:
            text = missing(error)
            if text is None:
                raise
            print(text, file=sys.stderr)
            raise SystemExit(1) from None
        app(prog_name="gennorm")
    except KeyboardInterrupt:
        print("gennorm: interrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    raise SystemExit(0)


def missing(error: ModuleNotFoundError) -> str | None:
    """What to install, in a line; None where the module is not one of an extra.

    Examples
    --------
    >>> missing(ModuleNotFoundError(name="rich.table"))
    "gennorm: this command needs rich, which is not installed: pip install 'gennorm[cli]'"
    """
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        return None
    return f"gennorm: this command needs {module}, which is not installed: pip install 'gennorm[{EXTRAS[module]}]'"


def _ended(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - what signal.signal calls
    """Leave by the way of an exception, so that no temporary file stays behind."""
    raise SystemExit(128 + number)
