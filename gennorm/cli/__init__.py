"""The entry point of the command line: ``gennorm demo | apply | adapt | explain | draw | presets | bench``.

The commands are in `gennorm.cli.app`. This module imports nothing that takes time, so that Ctrl-C is handled before
NumPy and the packages of the extra ``cli`` are imported.
"""

from __future__ import annotations

# `signal` makes enumerations of the same numbers, which takes milliseconds.
import _signal as signal  # type: ignore[import-not-found]
import os
import sys

TYPE_CHECKING = False  # importing `typing` takes longer than the rest of this module
if TYPE_CHECKING:
    from types import FrameType
    from typing import Any, NoReturn

__all__ = ["main", "missing"]

# The packages that the commands import, and the extra that installs each.
EXTRAS = {
    **dict.fromkeys(("typer", "click", "rich", "PIL", "matplotlib"), "cli"),
    "ml_dtypes": "bfloat16",
    "safetensors": "safetensors",
}
# A shell reports 128 plus the number of the signal for a program that a signal ended.
INTERRUPTED = 128 + 2
BROKEN_PIPE = 128 + 13
TEXT = "gennorm: interrupted"

_ended_by: int | None = None  # the number of the signal that ends this process


def main() -> NoReturn:
    """Run the command line with the arguments of this process, and exit with its status.

    0: done. 1: an error of gennorm or of a file. 2: the command line itself is wrong. 130: interrupted. 141: the reader
    of standard output closed it.

    Raises
    ------
    SystemExit
        Always.
    """
    handled = _handle(signal.SIGINT, _exit_now, signal.default_int_handler)
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has only one of them
        if number is not None:
            _handle(number, _end, signal.SIG_DFL)
    _prepare_streams()
    status: Any = 0
    try:
        try:
            from gennorm.cli.app import app
        except ModuleNotFoundError as error:
            text = missing(error)
            if text is None:
                raise
            _say(text)
            raise SystemExit(1) from None
        if handled:
            signal.signal(signal.SIGINT, _end)
        app(prog_name="gennorm")
    except SystemExit as error:
        status = error.code
        if status == 1 and type(sys.stdout).__name__ == "PacifyFlushWrapper":  # what Click puts there after EPIPE
            status = BROKEN_PIPE
    except OSError as error:  # the help is written before a command handles errors
        status = BROKEN_PIPE if isinstance(error, BrokenPipeError) else 1
        if status == 1 and _ended_by is None:
            _say(f"gennorm: {error.strerror or error}")
    except KeyboardInterrupt:
        _note_signal(signal.SIGINT)
    except BaseException:
        if _ended_by is None:  # otherwise a library replaced the exception of the signal
            raise
    finally:
        if handled:
            signal.signal(signal.SIGINT, _exit_now)
        _remove_unfinished()
    if _ended_by is not None:
        status = 128 + _ended_by
        if _ended_by == signal.SIGINT:
            _say(TEXT)
    raise SystemExit(_flushed(status))


def missing(error: ModuleNotFoundError) -> str | None:
    """Return a line that says what to install; None if the module does not belong to an extra.

    Examples
    --------
    >>> missing(ModuleNotFoundError(name="rich.table"))
    "gennorm: this command needs rich, which is not installed: pip install 'gennorm[cli]'"
    """
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        return None
    return f"gennorm: this command needs {module}, which is not installed: pip install 'gennorm[{EXTRAS[module]}]'"


# -------------------------------------------------------------------------------------------------------------- signals


def _handle(number: int, handler: Any, default: Any) -> bool:
    """Install a handler for a signal, unless it is ignored (as by nohup) or handled already."""
    if signal.getsignal(number) is not default:
        return False
    signal.signal(number, handler)
    return True


def _note_signal(number: int) -> None:
    global _ended_by  # noqa: PLW0603
    _ended_by = number


def _exit_now(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - what signal.signal calls
    """Exit without an exception, which a running import would turn into another error."""
    try:
        os.write(2, f"{TEXT}\n".encode())
    finally:
        os._exit(INTERRUPTED)


def _end(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001 - what signal.signal calls
    """Exit by an exception, so that temporary files are removed. A second signal exits at once."""
    if _ended_by is not None:
        _remove_unfinished()
        os._exit(128 + number)
    _note_signal(number)
    sys.unraisablehook = _unraisable
    raise SystemExit(128 + number)


def _unraisable(about: Any) -> None:
    """Exit if the exception of a signal was raised in a callback, which cannot propagate it."""
    if about.exc_type is SystemExit:
        _remove_unfinished()
        if _ended_by == signal.SIGINT:
            _say(TEXT)
        os._exit(128 + (_ended_by or 0))


def _remove_unfinished() -> None:
    """Remove the temporary files of this process, if the module that makes them is imported."""
    files = sys.modules.get("gennorm.layer.files")
    remove = getattr(files, "remove_unfinished", None)
    if remove is not None:
        remove()


# --------------------------------------------------------------------------------------------------------------- output


def _prepare_streams() -> None:
    """Write characters that a terminal cannot show as escape sequences, and hide warnings of libraries."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
    if not sys.warnoptions:
        import warnings

        warnings.simplefilter("ignore")


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return  # standard error is closed or full


def _flushed(status: Any) -> Any:
    """Flush standard output and return the exit status; the interpreter would report a failure in several lines."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except ValueError:
        return status  # it is closed
    except OSError as error:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        except OSError:
            return status or 1
        if isinstance(error, BrokenPipeError):
            return status or BROKEN_PIPE
        if not status:
            _say(f"gennorm: standard output cannot be written: {error.strerror}")
        return status or 1
    return status
