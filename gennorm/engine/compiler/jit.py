"""The one door to Numba: a kernel and its settings in, a callable out, compiled once and kept on disk.

A kernel has one signature for each set of settings, and its place in the cache is a digest of everything that its
machine code depends on: the sources of this package, the settings, the processor and the versions. Two processes that
race can therefore only overwrite like with like, and whatever goes wrong with the cache (a full disk, a truncated
file, no writable directory) costs a compilation and never an answer.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from numba.core import config as numba_config
from numba.core import serialize, types
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.target_extension import jit_registry, target_override

from gennorm.engine.threads import hold_in_forks, unbroken

from . import lowering, target
from .notice import announce_compilation

JIT = not numba_config.DISABLE_JIT

# nsz would break compensated sums and nnan folds isnan to False; reassociation is written out in the kernels. What is
# left, error_model="numpy", keeps a division from branching to an exception; _nrt=False makes a call 100 ns cheaper.
OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True, "_nrt": False}

# Neither a step nor a kernel is called from C.
COMPILED: dict[str, Any] = {"_target": target.NAME, "pipeline_class": target.Pipeline, "no_cfunc_wrapper": True}

# What the user's environment says about machine code, and which is therefore part of a kernel's name.
ENVIRONMENT = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT")

# Numba's own inlining copies a step into the caller before types are inferred, which costs a third more to compile.
INLINED: dict[str, Any] = {"forceinline": True, "no_cpython_wrapper": True}

# Whatever of Python a kernel uses that Numba has as a function in Python is compiled like a step.
jit_registry[target.Processor] = functools.partial(numba.jit, _target=target.NAME)

# Numba's own lock is the only one around a compilation, and a fork waits for it: in a child that is forked while
# another thread compiles nobody would ever release it. LLVM's is held by whoever lets go of an object of LLVM, too.
hold_in_forks(global_compiler_lock)
hold_in_forks(llvmlite.binding.ffi.lib._lock._lock)


@dataclass(frozen=True, slots=True)
class Built:
    """A kernel that this process has compiled, or read from the cache, in so many seconds."""

    name: str
    settings: tuple[str, ...]
    dtypes: tuple[str, str, str]
    compiled: bool
    seconds: float

    def __str__(self) -> str:
        settings = f" ({', '.join(self.settings).lower()})" if self.settings else ""
        return f"{self.name} of {' to '.join(dict.fromkeys(self.dtypes[:2]))}{settings}, {self.seconds:.2f} s"


built: list[Built] = []  # in the order in which it happened

# The machine code of each kernel, by its content. It lives as long as the process may call it.
_kept: dict[str, CompileResult] = {}

# The functions that kernels are made of: the next kernel takes from here what is as the last one's.
_steps: dict[tuple[Any, ...], Any] = {}


@functools.cache
def _sources() -> bytes:
    """The digest of this package's sources; where there are none to read, one that no other process has."""
    paths = sorted(Path(__file__).parent.parent.rglob("*.py"))
    digest = hashlib.sha256(b"" if paths else os.urandom(32))
    for path in paths:
        digest.update(path.read_bytes())
    return digest.digest()


def cache_directory() -> Path:
    """Return where compiled kernels are kept: GENNORM_CACHE_DIR, NUMBA_CACHE_DIR, or the user's cache directory."""
    given = os.environ.get("GENNORM_CACHE_DIR") or os.environ.get("NUMBA_CACHE_DIR")
    if given:
        return Path(given) / "gennorm"
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "gennorm"


def _load(name: str) -> CompileResult | None:
    """Machine code from the cache: one file a kernel, which begins with the checksum of its name and the rest."""
    try:
        checksum, payload = (data := (cache_directory() / name).read_bytes())[:32], data[32:]
        if hashlib.sha256(name.encode() + payload).digest() != checksum:  # a file that was renamed is as wrong
            return None
        # Numba's own loading refreshes its registries first, half of the time that a process waits for its first
        # call. Types and lowerings are for compiling, which does it as well.
        return CompileResult._rebuild(target.target.target_context, *pickle.loads(payload))
    except Exception:  # noqa: BLE001  whatever is wrong with a cached file, the answer is to compile
        return None


def _save(name: str, result: CompileResult) -> None:
    try:
        path = cache_directory() / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        payload = serialize.dumps(result._reduce())
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".kernel-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(name.encode() + payload).digest() + payload)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink()
            raise
    except Exception:  # noqa: BLE001  a cache that cannot be written costs the next process a compilation
        return


def _specialised(function: FunctionType, names: dict[str, Any]) -> tuple[FunctionType, dict[str, Any]]:
    """Return the function with the words and settings in ``names`` in place of its module's own, and those it uses."""
    used = {name: names[name] for name in function.__code__.co_names if name in names}
    for name in function.__code__.co_names:
        helper = function.__globals__.get(name)
        if name not in names and isinstance(helper, FunctionType) and helper.__module__.startswith("gennorm.engine."):
            used[name] = _step(helper, names)
    clone = FunctionType(function.__code__, {**function.__globals__, **used}, function.__name__, function.__defaults__)
    clone.__module__ = function.__module__
    return clone, used


def _step(function: FunctionType, names: dict[str, Any]) -> Any:
    """A function that kernels call, one for all of them that give it the same words, settings and steps of its own."""
    clone, used = _specialised(function, names)
    if not JIT:
        return clone
    return _steps.setdefault((function, *used.items()), numba.njit(**OPTIONS, **COMPILED, **INLINED)(clone))


def signature(arrays: tuple[str, ...], integers: int) -> Any:
    """Return the one signature of a kernel: C-contiguous one-dimensional arrays of these types, then integers."""
    stored = {"float16": "uint16", "bfloat16": "uint16", "bool": "uint8"}
    vectors = [types.Array(getattr(types, stored.get(name, name)), 1, "C") for name in arrays]
    return types.void(*vectors, *[types.intp] * integers)


def build(
    kernel: Callable[..., None],
    settings: dict[str, int],
    storage: tuple[str, str, str],
    arrays: tuple[str, ...],
    integers: int,
) -> Callable[..., None]:
    """Compile ``kernel`` for one set of settings and types, or take it from the cache.

    Parameters
    ----------
    kernel
        A function of one-dimensional arrays and then integers, in the words of ``vector``.
    settings
        Values for the module's constants in capitals, such as ``CENTER``.
    storage
        Names of the input's dtype, the output's dtype and the type of the arithmetic.
    arrays
        The dtype of each array argument.
    integers
        How many integer arguments follow the arrays.

    Returns
    -------
    callable
        The machine code's entry point. It trusts its caller: dtypes, contiguity and bounds are not checked again.
    """
    assert isinstance(kernel, FunctionType)
    if not JIT:  # NumPy does not warn of what machine code does not warn of
        return np.errstate(all="ignore")(_specialised(kernel, _constants(settings, storage))[0])
    entry: Callable[..., None] = _compiled(kernel, settings, storage, arrays, integers).entry_point
    return entry


def address(
    function: Callable[..., None],
    settings: dict[str, int],
    storage: tuple[str, str, str],
    arrays: tuple[str, ...],
    integers: int,
) -> int:
    """Return where the machine code of a function is that other machine code calls; the rest is as for `build`."""
    assert isinstance(function, FunctionType)
    result = _compiled(function, settings, storage, arrays, integers)
    found: int = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)
    return found


def _constants(settings: dict[str, int], storage: tuple[str, str, str]) -> dict[str, Any]:
    real = np.float64 if storage[2] == "float64" else np.float32
    return {**settings, "real": real, "COMPUTE": real}


def _compiled(
    kernel: FunctionType,
    settings: dict[str, int],
    storage: tuple[str, str, str],
    arrays: tuple[str, ...],
    integers: int,
) -> CompileResult:
    names = _constants(settings, storage)
    shape = signature(arrays, integers)
    module = kernel.__module__.rpartition(".")[2]
    described = (
        kernel.__qualname__,
        module,
        sorted(settings.items()),
        storage,
        str(shape),
        sorted(OPTIONS.items()),
    )
    environment = [getattr(numba_config, name, None) for name in ENVIRONMENT]
    versions = (numba.__version__, llvmlite.__version__, np.__version__, sys.version_info[:3], sys.byteorder)

    def once() -> CompileResult:
        with global_compiler_lock:
            processor = target.target.target_context.codegen().magic_tuple()
            key = repr((described, versions, environment, processor)).encode()
            content = hashlib.sha256(_sources() + key).hexdigest()[:40]
            if content in _kept:  # another thread was first
                return _kept[content]
            begin = time.perf_counter()
            name = f"{module}-{kernel.__name__}-{content}.kernel"
            found = _load(name)
            result = found
            if result is None:
                announce_compilation(cache_directory())
                clone, _ = _specialised(kernel, {**names, **lowering.words(*storage)})
                clone.__qualname__ = f"{kernel.__name__}_{content[:16]}"  # keeps the symbols of two variants apart
                dispatcher = numba.njit(**OPTIONS, **COMPILED)(clone)
                with target_override(target.NAME):
                    dispatcher.compile(shape)
                result = dispatcher.overloads[shape.args]
                _save(name, result)
            _kept[content] = result
            flags = tuple(sorted(flag for flag, value in settings.items() if value))
            taken = time.perf_counter() - begin
            built.append(Built(f"{module}.{kernel.__name__}", flags, storage, found is None, taken))
            return result

    # Where Numba itself is compiling what calls a layer, another thread would wait for this one.
    return once() if global_compiler_lock.is_locked() else unbroken(once)
