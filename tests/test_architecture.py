"""The shape of the house: who may import whom, one door to Numba, a light import, public names that are documented."""

import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gennorm as gn

PACKAGE = Path(gn.__file__).parent
FRONTS = {
    "torch": {"torch"},
    "jax": {"jax", "flax"},
    "keras": {"keras"},
    "sklearn": {"sklearn", "scipy"},
    "xarray": {"xarray"},
    "dask": {"dask"},
}

# What each module may import from gennorm. Read downwards: nothing imports from below itself.
INSIDE = {
    "errors": set(),
    "spec": {"errors"},
    "drawing": {"errors", "spec"},
    "plan": {"spec", "drawing"},
    "definition": {"errors", "spec", "plan"},
    "masks": {"errors"},
    "moments": {"errors", "masks", "spec", "definition", "drawing"},
    "engine": {"errors", "spec", "plan", "definition"},
    "layer": {"errors", "spec", "drawing", "plan", "definition", "masks", "moments", "engine"},
    "presets": {"errors", "spec", "moments", "layer"},
    "zoo": {"errors", "spec", "layer", "presets"},
    "elsewhere": {"errors", "spec", "layer", "presets"},
    "searching": {"errors", "spec", "layer"},
    "precompiling": {"engine", "layer"},
    "extend": {"errors", "spec", "moments", "engine", "layer"},
    "": {"errors", "plan", "moments", "engine", "layer", "presets", "zoo", "elsewhere", "searching", "precompiling"},
    "bench": {"", "errors", "plan", "layer", "torch"},
    "cli": {"", "errors", "spec", "drawing", "plan", "moments", "engine", "layer", "presets", "zoo", "bench"},
    "__main__": {"cli"},
    **{
        front: {"", "errors", "spec", "masks", "moments", "engine", "layer", "presets", "zoo", "extend", "definition"}
        for front in FRONTS
    },
}
INSIDE["keras"] |= {"torch"}  # which computes the tensors of the backend torch
# The libraries that `gennorm bench` measures, imported where they are measured.
BENCHED = {"torch", "jax", "onnx", "onnxruntime", "sklearn", "transformers"}
# What each may import from elsewhere, the standard library apart.
OUTSIDE = {
    "definition": {"array_api_compat"},
    "drawing": {"numpy", "matplotlib"},
    "plan": {"matplotlib"},  # the type of a figure, as in moments and layer
    "masks": {"numpy"},
    "moments": {"numpy", "matplotlib"},
    "engine": {"numpy", "numba", "llvmlite", "ml_dtypes"},
    "layer": {"numpy", "ml_dtypes", "safetensors", "rich", "tqdm", "matplotlib"},
    "precompiling": {"numpy"},
    "extend": {"numpy"},
    "presets": {"numpy"},
    "zoo": {"numpy"},
    "bench": {"numpy", "rich", "matplotlib", *BENCHED},
    "cli": {"numpy", "ml_dtypes", "typer", "rich", "PIL", "matplotlib"},
    **{front: {"numpy", "ml_dtypes", *frameworks} for front, frameworks in FRONTS.items()},
}
OUTSIDE["keras"] |= {"jax", "tensorflow"}


def room(path: Path) -> str:
    """The top-level room of a file: that of `engine/kernels/rows.py` is `engine`, that of `__init__.py` is unnamed."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def files() -> list[Path]:
    """Every Python file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def imports(source: str, package: str) -> set[str]:
    """Full names of the modules that `source` imports, anywhere in it; `package` resolves the relative ones."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([base] if base else [])])
            # `from gennorm import levels` imports a module; `from gennorm.spec.levels import parse` does not.
            found |= {f"{base}.{alias.name}" if base == "gennorm" else base for alias in node.names}
    return found


def package_of(path: Path) -> str:
    """The package in which a file's relative imports start."""
    return ".".join(["gennorm", *path.relative_to(PACKAGE).parts[:-1]])


def strangers(source: str, package: str, name: str) -> list[str]:
    """The imports of `source` that the tables do not allow to the module called `name`."""
    wrong = []
    for module in sorted(imports(source, package)):
        top, _, rest = module.partition(".")
        if top == "gennorm":
            target = rest.split(".")[0]
            # A public name that is no module comes from the package itself.
            target = target if target in INSIDE else ""
            if target != name and target not in INSIDE[name]:
                wrong.append(module)
        elif top not in sys.stdlib_module_names and top not in OUTSIDE.get(name, set()):
            wrong.append(module)
    return wrong


def test_strangers_are_found():
    assert strangers("from gennorm.layer import NormalizationLayer", "gennorm", "plan") == ["gennorm.layer"]
    assert strangers("from . import engine", "gennorm", "moments") == ["gennorm.engine"]
    assert strangers("from ..threads import x\nfrom ...layer import y", "gennorm.engine.kernels", "engine") == [
        "gennorm.layer"
    ]
    assert strangers("def f():\n    import numba", "gennorm", "layer") == ["numba"]
    assert strangers("import numpy.linalg", "gennorm", "spec") == ["numpy.linalg"]
    assert strangers("import os\nfrom gennorm.errors import ShapeError", "gennorm", "spec") == []


@pytest.mark.parametrize("path", files(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_direction_of_imports(path):
    name = room(path)
    assert name in INSIDE, f"gennorm/{name} is new: give it its place in INSIDE, and in docs/contributing.md"
    assert strangers(path.read_text(encoding="utf-8"), package_of(path), name) == []


def calls_numba_jit(source: str) -> bool:
    """Whether `source` takes a compiler decorator from Numba, by attribute or by name."""
    doors = {"njit", "jit", "vectorize", "guvectorize", "stencil", "cfunc", "generated_jit"}
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="numba" | "nb"), attr=name) if name in doors:
                return True
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] == "numba":
                if doors & {alias.name for alias in names}:
                    return True
    return False


def test_one_module_imports_numba():
    assert calls_numba_jit("import numba\n@numba.njit(nogil=True)\ndef f(): pass")
    assert calls_numba_jit("from numba import njit")
    assert not calls_numba_jit("from numba import types")
    callers = {
        path.relative_to(PACKAGE).as_posix() for path in files() if calls_numba_jit(path.read_text(encoding="utf-8"))
    }
    assert callers == {"engine/compiler/jit.py"}


def test_import_is_light():
    heavy = [
        "numba",
        "llvmlite",
        "typer",
        "rich",
        "PIL",
        "scipy",
        "matplotlib",
        "ml_dtypes",
        "safetensors",
        *BENCHED,
        *set().union(*FRONTS.values()),
        "keras",
    ]
    assert loaded("gennorm", heavy) == []


def test_the_front_for_torch_leaves_torch_s_compiler_alone():
    pytest.importorskip("torch")
    assert loaded("gennorm.torch", ["torch._dynamo", "numba", "llvmlite", "ml_dtypes", "transformers"]) == []


def loaded(module, names):
    """Which of these a new process has loaded with a module."""
    script = f"import {module}, sys; print(*[name for name in {names!r} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=300)
    return answer.stdout.split()


def public_names(module) -> set[str]:
    """The names a module defines for others: classes and functions of its own that do not start with an underscore."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and getattr(value, "__module__", "").split(".")[0] == "gennorm"
    }


def test_all_lists_the_public_names():
    assert len(gn.__all__) == len(set(gn.__all__))
    assert all(hasattr(gn, name) for name in gn.__all__)
    assert public_names(gn) <= set(gn.__all__)
    assert set(gn.__all__) <= set(dir(gn))


MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if not path.stem.startswith("_") and room(path) not in {"bench", "cli", "engine", *FRONTS}
)


@pytest.mark.parametrize("name", MODULES)
def test_all_of_each_module(name):
    module = importlib.import_module(f"gennorm.{name}")
    own = {public for public in public_names(module) if getattr(module, public).__module__ == module.__name__}
    declared = {public for public in module.__all__ if public in vars(module)}
    assert set(module.__all__) == declared
    if name != "extend":  # which names for fronts what stands in other modules
        assert own == {public for public in declared if public in public_names(module)}
    assert own <= declared


SECTION = re.compile(r"^(?P<title>[A-Z][A-Za-z ]+)\n(?P<rule>-+)$", re.MULTILINE)
SECTIONS = [
    "Parameters",
    "Attributes",
    "Returns",
    "Yields",
    "Raises",
    "Warns",
    "Other Parameters",
    "See Also",
    "Notes",
    "References",
    "Examples",
    "Methods",
]


def docstring_faults(value, *, example: bool) -> list[str]:
    """What is wrong with the numpydoc docstring of `value`, in words; empty if nothing is."""
    text = inspect.cleandoc(value.__doc__ or "")
    if not text:
        return ["no docstring"]
    faults = []
    sections = {}
    marks = list(SECTION.finditer(text))
    for index, mark in enumerate(marks):
        sections[mark["title"]] = text[mark.end() : marks[index + 1].start() if index + 1 < len(marks) else None]
        if len(mark["rule"]) != len(mark["title"]):
            faults.append(f"the rule under {mark['title']} has another length")
        if mark["title"] not in SECTIONS:
            faults.append(f"{mark['title']} is no numpydoc section")
    if not text.splitlines()[0].rstrip().endswith("."):
        faults.append("the first line is no sentence")
    if example and ">>> " not in sections.get("Examples", ""):
        faults.append("no example")
    if "Parameters" in sections and callable(value):
        listed = re.findall(r"^(\*{0,2}\w+(?:, \*{0,2}\w+)*)(?: :|$)", sections["Parameters"], re.MULTILINE)
        names = {name.strip().lstrip("*") for line in listed for name in line.split(",")}
        taken = set(inspect.signature(value).parameters) - {"self"}
        faults += [f"{name} is documented but not taken" for name in sorted(names - taken)]
        faults += [f"{name} is taken but not documented" for name in sorted(taken - names)]
    return faults


def public_objects():
    """Every public function and class of the package, and every public method of those classes."""
    for name in sorted(gn.__all__):
        value = getattr(gn, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            # One error shows how all of them are caught; what each says is asserted where it is raised.
            derived = inspect.isclass(value) and issubclass(value, Exception) and value is not gn.GennormError
            yield pytest.param(value, not derived, id=name)
        if inspect.isclass(value) and not issubclass(value, Exception):
            for attribute, member in sorted(vars(value).items()):
                described = isinstance(member, property | classmethod | staticmethod) or inspect.isfunction(member)
                if described and not attribute.startswith("_"):
                    yield pytest.param(member, False, id=f"{name}.{attribute}")


def test_docstring_faults_are_found():
    def undocumented(x):
        return x

    def wrong(x, y):
        """Add x to z

        Parameters
        ----------
        x, z : float
            A number.

        Example
        ----
        >>> 1
        1
        """

    assert docstring_faults(undocumented, example=True) == ["no docstring"]
    assert docstring_faults(wrong, example=True) == [
        "the rule under Example has another length",
        "Example is no numpydoc section",
        "the first line is no sentence",
        "no example",
        "z is documented but not taken",
        "y is taken but not documented",
    ]


@pytest.mark.parametrize(("value", "example"), [*public_objects()])
def test_docstrings(value, example):
    assert docstring_faults(value, example=example) == []
