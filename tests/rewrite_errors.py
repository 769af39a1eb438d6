"""Rewrite every printed error text to what is raised now: ``python -m tests.rewrite_errors``.

It rewrites the tables of errors and the tracebacks in the examples of documents and docstrings. Read the difference
before you commit it: a text that became worse is rewritten too.
"""

import contextlib
import doctest
import importlib
import io
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LONGEST = 120


def rewritten_table(table: str, evaluate) -> str:
    """The table with the code, class and text that each trigger raises now."""
    from gennorm.errors import GennormError

    blocks = []
    for block in re.split(r"\n\n+", table.strip()):
        if not block.startswith("#"):
            trigger = block.removeprefix(">>> ").split("\n", 1)[0]
            try:
                evaluate(trigger)
            except GennormError as error:
                block = f">>> {trigger}\n{error.code} {type(error).__name__}\n{error.message}"  # noqa: PLW2901
            except Exception as error:  # noqa: BLE001 - the table is left as it is, and the test fails
                sys.stderr.write(f"{trigger}: {error!r}\n")
            else:
                sys.stderr.write(f"{trigger}: raises nothing\n")
        blocks.append(block)
    return "\n\n".join(blocks) + "\n"


def rewritten_examples(text: str, names: dict) -> str:
    """A document or a module, with these names in it, whose examples show the errors that they raise now."""
    import numpy as np

    import gennorm as gn
    from gennorm.errors import GennormError

    lines = text.split("\n")
    found = {**names, "np": np, "gn": gn, "gennorm": gn}
    changes = []
    for example in doctest.DocTestParser().get_examples(text):
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                exec(example.source, found)
        except GennormError as error:
            if example.exc_msg and " ".join(example.exc_msg.split()).partition(": ")[2] != " ".join(str(error).split()):
                changes.append((example, error))
        except Exception:  # noqa: BLE001 - an example that needs the names of its module
            continue
    for example, error in reversed(changes):
        start = example.lineno + example.source.count("\n")
        stop = start + len(example.want.rstrip("\n").split("\n"))
        place = next(i for i in range(start, stop) if re.match(r" *gennorm\.errors\.\w+: ", lines[i]))
        stop = next((i for i in range(place, stop) if re.match(r'\s*("""|```)?$', lines[i])), stop)
        margin = " " * example.indent
        *new, last = [margin + line for line in f"gennorm.errors.{type(error).__name__}: {error}".split("\n")]
        if len(last) > LONGEST:  # the examples are compared without regard to white space
            last, _, code = last.rpartition(" ")
            new, last = [*new, last], margin + code
        lines[place:stop] = [*new, last]
    return "\n".join(lines)


def main() -> None:
    """Rewrite the files of this checkout."""
    from tests import test_errors

    tables = [test_errors.TABLE]
    for front in ("torch", "jax", "keras", "sklearn"):
        with contextlib.suppress(ImportError, pytest.skip.Exception):  # the framework is not installed
            tables.append(importlib.import_module(f"tests.{front}.test_errors").TABLE)
    for table in tables:
        text = table.path.read_text(encoding="utf-8")
        found = rewritten_table(text, lambda trigger, names=table.names: eval(trigger, {**names}))
        table.path.write_text(found, encoding="utf-8")
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("spec/*.md"), *ROOT.glob("gennorm/**/*.py")]
    for path in documents:
        text = path.read_text(encoding="utf-8")
        if "gennorm.errors." in text and "Traceback" in text:
            names = {}
            if path.suffix == ".py":
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
                names = vars(importlib.import_module(module))
            path.write_text(rewritten_examples(text, names), encoding="utf-8")


if __name__ == "__main__":
    main()
