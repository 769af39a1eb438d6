"""Compiles kernels for combinations of settings and dtypes, and stores the machine code on disk.

A kernel has one signature for each combination. Its file in the cache is named by a digest of everything that the
machine code depends on: the code of the kernels and of the compiler layer, the settings, the processor and the
versions. Two processes that write the same file therefore write the same content, and whatever goes wrong with the
cache (a full disk, a truncated file, no writable directory) costs a compilation and never gives a wrong result.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import pkgutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import llvmlite
import numba
import numpy as np
from numba import types

from gennorm.engine import kernels
from gennorm.engine.forks import hold_in_forks, run_uninterrupted

from . import CompilationError, Signature, foreign, lowering, private
from .notice import announce_compilation

__all__ = ["JIT", "Built", "Signature", "address", "build", "built"]

JIT = not private.config.DISABLE_JIT

for _lock in private.locks():
    hold_in_forks(_lock)


@dataclass(frozen=True, slots=True)
class Built:
    """A kernel that this process has compiled or loaded from the cache."""

    name: str
    settings: tuple[str, ...]
    dtypes: tuple[str, str, str]
    compiled: bool
    seconds: float

    def __str__(self) -> str:
        settings = f" ({', '.join(self.settings).lower()})" if self.settings else ""
        return f"{self.name} of {' to '.join(dict.fromkeys(self.dtypes[:2]))}{settings}, {self.seconds:.2f} s"


built: list[Built] = []  # in the order in which it happened

_results: dict[str, Any] = {}  # compiled kernels by digest; they must exist as long as the process may call them
_steps: dict[tuple[Any, ...], Any] = {}  # the functions that kernels call, shared by all kernels that use the same


# ------------------------------------------------------------------------------------------------------------ interface


def build(
    kernel: Callable[..., None], settings: dict[str, int], dtypes: tuple[str, str, str], signature: Signature
) -> Callable[..., None]:
    """Compile a kernel for one combination of settings and dtypes, or load it from the cache.

    Parameters
    ----------
    kernel
        A function of arrays and integers, written in the vector operations of ``kernels.vector``.
    settings
        Values for the constants in capitals of the kernel's module, such as ``CENTER``.
    dtypes
        The dtypes of input, output and arithmetic.
    signature
        The kernel's arguments.

    Returns
    -------
    callable
        The entry point. It does not check its arguments: dtypes, contiguity and sizes are the caller's business.

    Raises
    ------
    CompilationError
        Numba or LLVM failed.
    """
    assert isinstance(kernel, FunctionType)
    if not JIT:  # machine code does not warn of overflow, so NumPy must not
        return np.errstate(all="ignore")(_specialised(kernel, _constants(settings, dtypes))[0])
    entry: Callable[..., None] = _compiled(kernel, settings, dtypes, signature).entry_point
    return entry


def address(
    function: Callable[..., None], settings: dict[str, int], dtypes: tuple[str, str, str], signature: Signature
) -> int:
    """Compile a function that machine code calls, and return its address; the rest is as in `build`."""
    assert isinstance(function, FunctionType)
    return private.address(_compiled(function, settings, dtypes, signature))


def handler(
    kernel: Callable[..., None], settings: dict[str, int], dtypes: tuple[str, str, str], signature: Signature
) -> tuple[str, int]:
    """Compile a kernel that XLA calls, and return a name of its machine code and the address of its handler.

    The name stands for everything that the machine code depends on, so that no other has it. The rest is as in `build`.
    """
    assert isinstance(kernel, FunctionType)
    return private.handler(_compiled(kernel, settings, dtypes, signature))


# ---------------------------------------------------------------------------------------------------------- compilation


def _compiled(
    kernel: FunctionType, settings: dict[str, int], dtypes: tuple[str, str, str], signature: Signature
) -> Any:
    arguments = _numba_types(signature)
    module = kernel.__module__.rpartition(".")[2]
    described = (kernel.__qualname__, module, sorted(settings.items()), dtypes, signature, str(arguments))
    versions = (numba.__version__, llvmlite.__version__, np.__version__, sys.version_info[:3], sys.byteorder)

    def compile_once() -> Any:
        with private.lock:
            key = repr((described, versions, private.settings(), private.processor())).encode()
            source = _digest_of_package(kernel.__module__)
            content = hashlib.sha256((source or b"") + key).hexdigest()[:40]
            if content in _results:  # another thread was first
                return _results[content]
            begin = time.perf_counter()
            name = f"{module}-{kernel.__name__}-{content}.kernel"
            result = loaded = None if source is None else _load(name)
            if result is None:
                announce_compilation(cache_directory)
                operations = lowering.vector_operations(*dtypes)
                clone, _ = _specialised(kernel, _constants(settings, dtypes) | operations)
                clone.__qualname__ = f"{kernel.__name__}_{content[:16]}"  # keeps the symbols of two variants apart
                result = private.compile_kernel(
                    numba.njit(**private.KERNEL)(clone), signature, arguments, _linked(signature)
                )
                if source is not None:
                    _save(name, result)
            _results[content] = result
            flags = tuple(sorted(flag for flag, value in settings.items() if value))
            seconds = time.perf_counter() - begin
            built.append(Built(f"{module}.{kernel.__name__}", flags, dtypes, loaded is None, seconds))
            return result

    try:
        # If Numba is compiling a function that calls a layer, this thread has the lock, and another would wait for it.
        return compile_once() if private.lock.is_locked() else run_uninterrupted(compile_once)
    except MemoryError:
        raise
    except Exception as error:
        msg = f"{module}.{kernel.__name__} could not be compiled by Numba {numba.__version__}"
        raise CompilationError(msg) from error


def _linked(signature: Signature) -> list[tuple[Any, Any]]:
    """Return the functions that are linked with a handler, with the types of their arguments."""
    if signature.handler is None:
        return []
    steps: Any = (foreign.share, foreign.SHARE_SIGNATURE), (foreign.take_task, foreign.TAKE_SIGNATURE)
    return [(_step(function, {}), _numba_types(kinds)) for function, kinds in steps]


def _numba_types(signature: Signature) -> Any:
    stored = {"float16": "uint16", "bfloat16": "uint16", "bool": "uint8"}
    arrays = [stored.get(name, name) for name in (*signature.arrays, *signature.scratch)]
    flat = [types.Array(getattr(types, name), 1, "C") for name in arrays]
    return types.void(*flat, *[types.intp] * signature.integers)


def _constants(settings: dict[str, int], dtypes: tuple[str, str, str]) -> dict[str, Any]:
    real = np.float64 if dtypes[2] == "float64" else np.float32
    return {**settings, "real": real, "COMPUTE": real}


def _specialised(function: FunctionType, names: dict[str, Any]) -> tuple[FunctionType, dict[str, Any]]:
    """Return a copy of the function with other values for some globals, and the values that it uses.

    These are the constants and vector operations in ``names``, and the steps that it calls, specialised as well.
    """
    used = {name: names[name] for name in function.__code__.co_names if name in names}
    for name in function.__code__.co_names:
        helper = function.__globals__.get(name)
        if name not in names and isinstance(helper, FunctionType) and helper.__module__.startswith("gennorm.engine."):
            used[name] = _step(helper, names)
    clone = FunctionType(function.__code__, {**function.__globals__, **used}, function.__name__, function.__defaults__)
    clone.__module__ = function.__module__
    return clone, used


def _step(function: FunctionType, names: dict[str, Any]) -> Any:
    """Return a function for kernels to call; kernels that use the same values of its globals share it."""
    clone, used = _specialised(function, names)
    if not JIT:
        return clone
    return _steps.setdefault((function, *used.items()), numba.njit(**private.STEP)(clone))


# ---------------------------------------------------------------------------------------------------------------- cache


def cache_directory() -> Path:
    """Return the directory of compiled kernels: GENNORM_CACHE_DIR, NUMBA_CACHE_DIR, or the user's cache directory."""
    given = os.environ.get("GENNORM_CACHE_DIR") or os.environ.get("NUMBA_CACHE_DIR")
    if given:
        return Path(given) / "gennorm"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "gennorm"


def _load(name: str) -> Any:
    """Return a compiled kernel from its file, which begins with a checksum of its name and the rest; None without."""
    try:
        checksum, payload = (data := (cache_directory() / name).read_bytes())[:32], data[32:]
        if hashlib.sha256(name.encode() + payload).digest() != checksum:  # damaged, or renamed
            return None
        return private.from_bytes(payload)
    except Exception:  # noqa: BLE001  whatever is wrong with a file, the kernel is compiled
        return None


def _save(name: str, result: Any) -> None:
    try:
        path = cache_directory() / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        payload = private.to_bytes(result)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".kernel-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(name.encode() + payload).digest() + payload)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink()
            raise
    except Exception:  # noqa: BLE001  without a cache the next process compiles
        return


@functools.cache
def _digest_of_package(module: str) -> bytes | None:
    """Return a digest of what kernels are made of, and of the module of one; None if it cannot be read.

    That is the source of each module or, in an installation without sources, its code; an archive is as good as a
    directory. A kernel that cannot be identified like this is not stored on disk.
    """
    packages = sys.modules[__package__], kernels
    names = {
        f"{package.__name__}.{found.name}" for package in packages for found in pkgutil.iter_modules(package.__path__)
    }
    digest = hashlib.sha256()
    for name in sorted({*names, *(package.__name__ for package in packages), module}):
        found = _digest_of_module(name)
        if found is None:
            return None
        digest.update(name.encode() + found)
    return digest.digest()


def _digest_of_module(name: str) -> bytes | None:
    try:
        spec: Any = importlib.util.find_spec(name)
        source = spec.loader.get_source(spec.name)
        lines = [source] if source is not None else _described(spec.loader.get_code(spec.name))
        return hashlib.sha256("\n".join(lines).encode()).digest()
    except Exception:  # noqa: BLE001  no loader, one without these methods, a file that is gone
        return None


def _described(code: CodeType) -> Iterator[str]:
    """Describe what a code object does, the same in every process: pickled sets, for example, have any order."""
    yield repr((code.co_code, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_flags))
    yield repr(
        (code.co_name, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_exceptiontable)
    )
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _described(constant)
        else:
            yield repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)
