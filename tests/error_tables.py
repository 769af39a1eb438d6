"""Tables of error texts: how they are read, and what is checked of each.

An entry of a table is an expression behind `>>>`; the line with the code and the class of the error; and its complete
text.
"""

import ast
import contextlib
import re
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from gennorm import errors
from gennorm.errors import GennormError

CODE = re.compile(r"[A-Z]\d{3}")


class Entry(NamedTuple):
    trigger: str
    code: str
    kind: str
    text: str


def entries(table: str) -> list[Entry]:
    """The entries of a table."""
    found = []
    for block in re.split(r"\n\n+", table.strip()):
        if block.startswith("#"):
            continue
        trigger, head, text = block.removeprefix(">>> ").split("\n", 2)
        found.append(Entry(trigger, *head.split(" "), text))
    return found


def constants(source: str) -> set[str]:
    """The error codes that are texts in a source."""
    nodes = ast.walk(ast.parse(source))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {text for text in texts if CODE.fullmatch(text)}


def makers(source: str) -> set[int]:
    """Return the lines that raise a new error, or that build one to be raised elsewhere; lack of memory has no code."""
    kinds = {name for name in errors.__all__ if name.endswith("Error")}
    lines = set()
    for node in ast.walk(ast.parse(source)):
        call = node.value if isinstance(node, ast.Return) else None
        builds = isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in kinds
        raises = isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        if (raises and ast.unparse(node.exc.func) != "MemoryError") or builds:
            lines.add(node.lineno)
    return lines


def lines_run(calls, files: set[str]) -> set[tuple[str, int]]:
    """The lines of these files that run while the calls raise what they raise."""
    seen = set()

    def trace(frame, event, _):
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            seen.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for call in calls:
            with contextlib.suppress(GennormError):
                call()
    finally:
        sys.settrace(before)
    return seen


class ErrorTable:
    """The table in a file, the names that its expressions use, and the modules whose errors it has."""

    def __init__(self, path, names, modules):
        self.path, self.names, self.modules = path, names, modules
        self.entries = entries(path.read_text(encoding="utf-8"))
        self.codes = {entry.code for entry in self.entries}
        self.each_entry = pytest.mark.parametrize(
            "entry", self.entries, ids=lambda entry: f"{entry.code} {entry.trigger}"
        )
        self.each_module = pytest.mark.parametrize("module", modules, ids=lambda module: module.__name__)

    def run(self, entry):
        eval(entry.trigger, {**self.names})

    def check_text(self, entry):
        """The error of an entry has its class, its code and its text."""
        with pytest.raises(GennormError) as caught:
            self.run(entry)
        assert caught.value.message == entry.text
        assert str(caught.value) == f"{entry.text} [{entry.code}]"
        assert caught.value.code == entry.code
        assert type(caught.value).__name__ == entry.kind

    def check_two_lines(self, entry):
        """What is wrong stands in the first line, what to write in the second."""
        lines = entry.text.split("\n")
        assert len(lines) == 2
        assert all(len(line) <= 120 and not line.endswith(".") for line in lines)

    def raised_codes(self):
        """The codes in the sources of the modules."""
        return set().union(*(constants(Path(module.__file__).read_text(encoding="utf-8")) for module in self.modules))

    def check_places(self, module):
        """Some entry reaches every line of a module that raises."""
        seen = lines_run([lambda entry=entry: self.run(entry) for entry in self.entries], {module.__file__})
        source = Path(module.__file__).read_text(encoding="utf-8")
        missed = sorted(line for line in makers(source) if (module.__file__, line) not in seen)
        place = f"{self.path.parent.name}/{self.path.name}"
        assert not missed, f"lines of {module.__name__} that raise and that no entry of {place} reaches: {missed}"
