"""Everything that gennorm uses of Numba and llvmlite beyond their documented interface, and nothing else.

No other module imports a private name of theirs or calls a private method. Each name is written once, in a call of
`_private`, with what it is for. `missing` compares all of them with the Numba that is installed. A name that is absent
has a stand-in, so that this module can always be imported where Numba and llvmlite can.

The second half is the compilation target for kernels. Numba's own target for the processor spends most of its time on
what kernels do not need: it optimises and emits each inlined function by itself, and once more for every constant
argument; its passes look for constructs that kernels do not have; its registries import SciPy's linear algebra. This
target leaves that out. Functions that users compile with Numba are not affected.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pickle
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types

from . import Signature, foreign, workers

NAME = "gennorm"


# ------------------------------------------------------------------------------------------------------------- contract


@dataclass(frozen=True, slots=True)
class _Part:
    """A private name, and what this package expects of it."""

    path: str  # of the module, a colon, and the name in it
    purpose: str
    parameters: str | None = None  # the names of a function's parameters
    members: str = ""  # attributes of a class
    assigns: str = ""  # attributes that a constructor assigns

    def find(self) -> Any:
        module, _, name = self.path.partition(":")
        return functools.reduce(getattr, name.split("."), importlib.import_module(module))

    def fault(self) -> str | None:
        """Say how the installed version differs from what is expected, or None."""
        path = self.path.replace(":", ".")
        try:
            found = self.find()
        except (ImportError, AttributeError):
            return f"{path} is missing: {self.purpose}"
        if self.parameters is not None:
            takes = " ".join(inspect.signature(found).parameters) if callable(found) else "?"
            if takes != self.parameters:
                return f"{path} takes ({takes}) instead of ({self.parameters}): {self.purpose}"
        if lacking := [name for name in self.members.split() if not hasattr(found, name)]:
            return f"{path} lacks {', '.join(lacking)}: {self.purpose}"
        if lacking := [name for name in self.assigns.split() if name not in inspect.unwrap(found).__code__.co_names]:
            return f"{path} does not assign {', '.join(lacking)}: {self.purpose}"
        return None


class _StandIn:
    """Takes the place of a part that is missing, so that classes below can be derived from it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


_parts: list[_Part] = []


def _private(path: str, purpose: str, parameters: str | None = None, **expected: str) -> Any:
    """Add a name to the contract, and return what it refers to or a stand-in."""
    part = _Part(path, purpose, parameters, **expected)
    _parts.append(part)
    try:
        return part.find()
    except (ImportError, AttributeError):
        return _StandIn


def missing() -> tuple[str, ...]:
    """Name every private part of Numba and llvmlite that is absent or differs from what this package expects.

    Returns
    -------
    tuple of str
        One sentence for each part; empty if kernels can be compiled. What only exists on instances is not covered: if
        that is different, the first compilation fails with `CompilationError`.
    """
    return tuple(fault for part in _parts if (fault := part.fault()) is not None)


# Compilation: what jit.py calls.
config: Any = _private("numba.core:config", "environment variables that change machine code", members="DISABLE_JIT OPT")
lock: Any = _private(
    "numba.core.compiler_lock:global_compiler_lock", "one compilation at a time", members="acquire release is_locked"
)
dumps: Any = _private("numba.core.serialize:dumps", "pickles a compiled function", "obj")
_CompileResult: Any = _private(
    "numba.core.compiler:CompileResult", "a compiled function", members="library fndesc entry_point"
)
_private("numba.core.compiler:CompileResult._reduce", "what the cache on disk stores", "self")
_private(
    "numba.core.compiler:CompileResult._rebuild",
    "loads it without refreshing Numba's registries",
    "target_context libdata fndesc env signature objectmode lifted typeann reload_init referenced_envs",
)
_llvm_lock: Any = _private("llvmlite.binding.ffi:lib._lock", "held while LLVM works, and by a fork", members="_lock")
_private("numba.core.compiler_lock:_CompilerLock.__init__", "held by a fork", "self", assigns="_lock")
_jit: Any = _private(
    "numba.core.decorators:jit",
    "options of the compilation",
    "signature_or_function locals cache pipeline_class boundscheck options",
)
_private(
    "numba.core.cpu:CPUTargetOptions",
    "options of the compilation",
    members="_nrt error_model nogil forceinline no_cpython_wrapper no_cfunc_wrapper",
)

# The registration of a target.
_CPU: Any = _private("numba.core.target_extension:CPU", "the target that this one inherits functions from")
_target_registry: Any = _private("numba.core.target_extension:target_registry", "finds this target by its name")
_dispatcher_registry: Any = _private(
    "numba.core.target_extension:dispatcher_registry", "finds this target's dispatcher"
)
_jit_registry: Any = _private(
    "numba.core.target_extension:jit_registry", "compiles functions that kernels use of Python"
)
_target_override: Any = _private("numba.core.target_extension:target_override", "selects this target", "name")
_CPUTarget: Any = _private(
    "numba.core.registry:CPUTarget",
    "base class of the target",
    members="target_context typing_context _toplevel_target_context _toplevel_typing_context",
)
_CPUDispatcher: Any = _private(
    "numba.core.registry:CPUDispatcher", "base class of the dispatcher", members="compile targetdescr"
)
_private("numba.core.registry:CPUDispatcher.get_call_template", "overridden below", "self args kws")
_unliteral: Any = _private("numba.core.types.misc:unliteral", "the type of a constant without its value", "lit_type")

# Types and their lowering: what lowering.py and the contexts below register.
AbstractTemplate: Any = _private(
    "numba.core.typing.templates:AbstractTemplate", "infers the types of operators on vectors"
)
infer_global: Any = _private("numba.core.typing.templates:infer_global", "registers them", "val typ kwargs")
Registry: Any = _private("numba.core.imputils:Registry", "what is lowered differently here", members="lower")
_TypingContext: Any = _private(
    "numba.core.typing:Context", "base class of the typing context", members="install_registry"
)
_private("numba.core.typing:Context.load_additional_registries", "overridden below", "self")
_CPUContext: Any = _private(
    "numba.core.cpu:CPUContext",
    "base class of the lowering context",
    members="codegen create_module install_registry get_arg_packer call_conv get_executable make_array "
    "declare_function get_abi_sizeof",
)
_private("numba.core.cpu:CPUContext.init", "overridden below", "self", assigns="_internal_codegen")
_private("numba.core.cpu:CPUContext.load_additional_registries", "overridden below", "self")
_private("numba.core.cpu:CPUContext.post_lowering", "overridden below", "self mod library")
_private(
    "numba.core.cpu:CPUContext.create_cpython_wrapper",
    "overridden below",
    "self library fndesc env call_helper release_gil",
)
_PyCallWrapper: Any = _private(
    "numba.core.callwrapper:PyCallWrapper",
    "the entry point that Python calls",
    "context module func fndesc env call_helper release_gil",
    members="build",
)
_private("numba.core.callconv:CPUCallConv.get_function_type", "a kernel's LLVM type", "self restype argtypes")
_private("numba.core.callconv:CPUCallConv.get_arguments", "a kernel's LLVM arguments", "self func")
_private(
    "numba.core.callconv:CPUCallConv.call_function",
    "calls a kernel from the thread pool",
    "self builder callee resty argtys args attrs",
)

# Code generation.
_JITCPUCodegen: Any = _private("numba.core.codegen:JITCPUCodegen", "base class of the generator", members="magic_tuple")
_private("numba.core.codegen:JITCPUCodegen.set_env", "overridden below", "self env_name env")
_private("numba.core.codegen:CPUCodegen._init", "its engine", "self llvm_module", assigns="_engine")
_private("numba.core.codegen:JitEngine.is_symbol_defined", "which functions have machine code", "self name")
_private("numba.core.codegen:CPUCodegen._module_pass_manager", "LLVM's optimisations", "self kwargs")
_JITCodeLibrary: Any = _private(
    "numba.core.codegen:JITCodeLibrary",
    "base class of a function's machine code",
    members="add_ir_module add_linking_library get_pointer_to_function _finalized",
)
_private("numba.core.codegen:CodeLibrary.__init__", "its state", "self codegen name", assigns="_codegen")
_private("numba.core.codegen:CPUCodeLibrary.__init__", "its state", "self codegen name", assigns="_final_module")
_private("numba.core.codegen:CPUCodeLibrary._optimize_functions", "overridden below", "self ll_module")
_private("numba.core.codegen:CPUCodeLibrary._optimize_final_module", "overridden below", "self")
_private("numba.core.codegen:CPUCodeLibrary._finalize_final_module", "overridden below", "self")

# The passes from bytecode to LLVM's intermediate representation.
_CompilerBase: Any = _private("numba.core.compiler:CompilerBase", "base class of the pipeline")
_private("numba.core.compiler:CompilerBase.define_pipelines", "overridden below", "self")
_PassManager: Any = _private("numba.core.compiler_machinery:PassManager", "a list of passes", "pipeline_name")
_private("numba.core.compiler_machinery:PassManager.add_pass", "adds one", "self pss description")
_private("numba.core.compiler_machinery:PassManager.finalize", "completes the list", "self")

_UNTYPED, _TYPED = "numba.core.untyped_passes", "numba.core.typed_passes"
_DEAD_BRANCHES = f"{_UNTYPED}:DeadBranchPrune"
# Passes for closures, array expressions, parallel loops and reference counts are left out.
_PASSES = (
    _private(f"{_UNTYPED}:TranslateByteCode", "reads the bytecode"),
    _private(f"{_UNTYPED}:FixupArgs", "adapts the arguments"),
    _private(f"{_UNTYPED}:IRProcessing", "prepares Numba's intermediate representation"),
    _private(_DEAD_BRANCHES, "drops branches on settings, so that what they call is not compiled"),
    _private(f"{_UNTYPED}:ReconstructSSA", "gives each assignment a variable"),
    _private(_DEAD_BRANCHES, "drops branches that only this form shows to be dead"),
    _private(f"{_TYPED}:NopythonTypeInference", "infers types"),
    _private(f"{_TYPED}:PreLowerStripPhis", "removes phi nodes"),
    _private(f"{_TYPED}:NativeLowering", "emits LLVM's intermediate representation"),
    _private(f"{_TYPED}:NoPythonBackend", "completes the function"),
)


# --------------------------------------------------------------------------------------------------------------- target

registry = Registry(NAME)  # what lowering.py lowers differently for kernels


class _Pipeline(_CompilerBase):
    """From bytecode to LLVM's intermediate representation."""

    def define_pipelines(self) -> list[Any]:
        manager = _PassManager(NAME)
        for each in _PASSES:
            manager.add_pass(each, each.__name__)
        manager.finalize()
        return [manager]


class _Library(_JITCodeLibrary):
    """A function in LLVM's intermediate representation. Only kernels are optimised, after steps were linked in."""

    kernel = True  # libraries loaded from the cache are kernels

    def _optimize_functions(self, ll_module: Any) -> None:
        pass

    def _optimize_final_module(self) -> None:
        if self.kernel:
            manager, passes = self._codegen._module_pass_manager()
            manager.run(self._final_module, passes)

    def _finalize_final_module(self) -> None:
        if self.kernel:
            super()._finalize_final_module()
        self._finalized = True


class _Codegen(_JITCPUCodegen):
    _library_class = _Library

    def set_env(self, env_name: str, env: Any) -> None:
        if self._engine.is_symbol_defined(env_name):  # steps have no machine code
            super().set_env(env_name, env)


class _KernelLowering(_CPUContext):
    """Lowers kernels and steps."""

    def init(self) -> None:
        super().init()
        self._internal_codegen = _Codegen(NAME)
        # Of kernels that are being compiled, by qualified name: signatures, and functions to link with handlers.
        self.signatures: dict[str, Signature] = {}
        self.steps: dict[str, list[Any]] = {}

    def load_additional_registries(self) -> None:
        # Importing these registers what they lower.
        from numba.cpython import builtins, iterators, mathimpl, numbers, rangeobj, slicing, tupleobj  # noqa: F401
        from numba.np import arrayobj  # noqa: F401

        self.install_registry(registry)
        self.install_registry(mathimpl.registry)

    def post_lowering(self, mod: Any, library: _Library) -> None:
        """Do not link Numba's runtime, which counts references."""
        library.kernel = False  # create_cpython_wrapper, which runs for kernels only, sets it again

    def create_cpython_wrapper(
        self, library: _Library, fndesc: Any, env: Any, call_helper: Any, release_gil: bool = False
    ) -> None:
        library.kernel = True
        module = self.create_module("wrapper")
        kind = self.call_conv.get_function_type(fndesc.restype, fndesc.argtypes)
        entry = ir.Function(module, kind, fndesc.llvm_func_name)
        signature = self.signatures[fndesc.qualname]
        if signature.shared:
            entry = _shared_entry(self, entry, fndesc, signature)
        if signature.handler is not None:
            range_ = _range(self, entry, fndesc, signature)
            foreign.emit_handler(self, library, fndesc, signature, _array, range_, self.steps[fndesc.qualname])
        _PyCallWrapper(self, module, entry, fndesc, env, call_helper, release_gil).build()
        library.add_ir_module(module)


class _KernelTyping(_TypingContext):
    """Infers types of kernels and steps."""

    def load_additional_registries(self) -> None:
        from numba.core.typing import mathdecl

        self.install_registry(mathdecl.registry)


class _Target(_CPUTarget):
    @functools.cached_property
    def _toplevel_target_context(self) -> _KernelLowering:
        return _KernelLowering(self.typing_context, NAME)

    @functools.cached_property
    def _toplevel_typing_context(self) -> _KernelTyping:
        return _KernelTyping()


class _Processor(_CPU):
    """This target's entry in Numba's hierarchy of targets."""


class _Dispatcher(_CPUDispatcher):
    def get_call_template(self, args: Any, kws: Any) -> Any:
        """Compile a step once for all constants that it is called with; LLVM propagates them when it inlines."""
        return super().get_call_template(tuple(map(_unliteral, args)), kws)


@functools.cache
def target() -> Any:
    """Register the target with Numba, once, and return it."""
    _target_registry[NAME] = _Processor
    found = _Dispatcher.targetdescr = _Target(NAME)
    _dispatcher_registry[_Processor] = _Dispatcher
    # Numba implements some functions of Python in Python. A kernel that calls one has it compiled for this target.
    _jit_registry[_Processor] = functools.partial(_jit, _target=NAME)
    return found


# Options of numba.njit. Without nsz and nnan, which would break compensated sums and fold isnan to False; the kernels
# write reassociation out. error_model="numpy" keeps a division from branching to an exception, and _nrt=False makes a
# call 100 ns cheaper. No kernel is called from C.
_OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True, "_nrt": False}
_TARGET: dict[str, Any] = {"_target": NAME, "pipeline_class": _Pipeline, "no_cfunc_wrapper": True}
KERNEL: dict[str, Any] = {**_OPTIONS, **_TARGET}
# Numba's own inlining copies a step into its caller before types are inferred, which costs a third more to compile.
STEP: dict[str, Any] = {**KERNEL, "forceinline": True, "no_cpython_wrapper": True}

# Settings of the user's environment that change machine code.
_ENVIRONMENT = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "BOUNDSCHECK", "DEBUGINFO_DEFAULT")


def processor() -> tuple[str, str, str]:
    """Return what is compiled for: LLVM's triple, the name of the processor, and its features."""
    triple, name, features = target().target_context.codegen().magic_tuple()
    return triple, name, features


def settings() -> tuple[Any, ...]:
    """Return the options and the settings of the environment that machine code depends on."""
    return sorted(_OPTIONS.items()), [getattr(config, name, None) for name in _ENVIRONMENT]


def locks() -> tuple[Any, ...]:
    """Return the locks that another thread may hold while it compiles: a forked child could never take them."""
    return lock, _llvm_lock._lock


def compile_kernel(dispatcher: Any, signature: Signature, arguments: Any, steps: Any = ()) -> Any:
    """Compile what `numba.njit` returned for a kernel, and return the result.

    `steps` are pairs of what it returned for functions that are linked with a handler, and their arguments.
    """
    context = target().target_context
    name = dispatcher.py_func.__qualname__
    context.signatures[name] = signature
    try:
        with _target_override(NAME):
            for step, kinds in steps:
                step.compile(kinds)
            context.steps[name] = [step.overloads[kinds.args] for step, kinds in steps]
            dispatcher.compile(arguments)
    finally:
        del context.signatures[name]
        context.steps.pop(name, None)
    return dispatcher.overloads[arguments.args]


def to_bytes(result: Any) -> bytes:
    """Return a compiled kernel as bytes."""
    return bytes(dumps(result._reduce()))


def from_bytes(data: bytes) -> Any:
    """Return the compiled kernel that `to_bytes` was called with."""
    # Numba's own loading refreshes its registries first, half of the time that a process waits for its first call.
    # Only compilation needs them, and refreshes them as well.
    return _CompileResult._rebuild(target().target_context, *pickle.loads(data))


def address(result: Any) -> int:
    """Return the address of a compiled function, for calls from machine code."""
    found: int = result.library.get_pointer_to_function(result.fndesc.llvm_func_name)
    return found


def handler(result: Any) -> tuple[str, int]:
    """Return the name of a compiled kernel, and the address of the function by which XLA calls it."""
    found: int = result.library.get_pointer_to_function(foreign.name_of(result.fndesc))
    return result.fndesc.qualname.rpartition(".")[2], found


# -------------------------------------------------------------------------------------------------- shared entry points

_INT32, _INT64 = ir.IntType(32), ir.IntType(64)


def _field(builder: Any, structure: Any, number: int) -> Any:
    return builder.gep(structure, [ir.Constant(_INT32, 0), ir.Constant(_INT32, number)], inbounds=True)


def _range(context: Any, kernel: Any, fndesc: Any, signature: Signature) -> tuple[Any, Any]:
    """Return a function that calls a kernel for a range of tasks, and the type of the block of memory that it reads.

    The block has the number of parts of the scratch arrays, one for each thread, and the kernel's arguments. The
    function takes its address, the range, and the number of the thread.
    """
    kinds = fndesc.argtypes
    packer = context.get_arg_packer(kinds)
    flat_kinds = [argument.type for argument in context.call_conv.get_arguments(kernel)]
    block_kind = ir.LiteralStructType([_INT64, *flat_kinds])
    each = ir.Function(kernel.module, ir.FunctionType(ir.VoidType(), [_INT64] * 4), f"{kernel.name}.range")
    each.linkage = "internal"
    builder = ir.IRBuilder(each.append_basic_block())
    address, lo, hi, number = each.args
    block = builder.inttoptr(address, block_kind.as_pointer())
    parts, *flat = (builder.load(_field(builder, block, i)) for i in range(len(block_kind.elements)))
    values = list(packer.from_arguments(builder, flat))
    first = len(signature.arrays)
    for i in range(first, first + len(signature.scratch)):
        array = context.make_array(kinds[i])(context, builder, values[i])
        size = builder.udiv(array.nitems, parts)
        array.data = builder.gep(array.data, [builder.mul(size, builder.urem(number, parts))])
        array.nitems = size
        array.shape = builder.insert_value(ir.Constant(ir.ArrayType(_INT64, 1), ir.Undefined), size, 0)
        values[i] = array._getvalue()
    values[-3:-1] = lo, hi
    context.call_conv.call_function(builder, kernel, fndesc.restype, kinds, values, attrs=("noinline",))
    builder.ret_void()
    return each, block_kind


def _array(context: Any, builder: Any, kind: Any, address: Any, length: Any) -> Any:
    """Return memory at an address as an array of Numba."""
    array = context.make_array(kind)(context, builder)
    data = builder.inttoptr(address, array.data.type)
    itemsize = ir.Constant(_INT64, context.get_abi_sizeof(data.type.pointee))
    one = ir.Constant(ir.ArrayType(_INT64, 1), ir.Undefined)
    array.meminfo, array.parent = (ir.Constant(field.type, None) for field in (array.meminfo, array.parent))
    array.nitems, array.itemsize, array.data = length, itemsize, data
    array.shape, array.strides = builder.insert_value(one, length, 0), builder.insert_value(one, itemsize, 0)
    return array._getvalue()


def _shared_entry(context: Any, kernel: Any, fndesc: Any, signature: Signature) -> Any:
    """Return a function with the kernel's arguments that lets the thread pool run it, if the last argument is not 0.

    It stores the arguments in a block of memory and passes the address of `each` to `workers.share`, which calls it for
    one range of tasks after another, in any thread. Each thread has its own part of the scratch arrays.
    """
    each, block_kind = _range(context, kernel, fndesc, signature)
    entry = ir.Function(kernel.module, kernel.function_type, f"{kernel.name}.shared")
    entry.linkage = "internal"
    builder = ir.IRBuilder(entry.append_basic_block())
    flat = context.call_conv.get_arguments(entry)
    lo, hi, request = flat[-3:]
    with builder.if_then(builder.icmp_unsigned("==", request, ir.Constant(_INT64, 0))):
        builder.ret(builder.call(kernel, entry.args, attrs=("noinline",)))
    block = builder.alloca(block_kind)
    for i, value in enumerate([workers.read(builder, request, workers.PARTS), *flat]):
        builder.store(value, _field(builder, block, i))
    share_kind = context.call_conv.get_function_type(types.void, [types.intp] * 5).as_pointer()
    share = builder.inttoptr(workers.read(builder, request, workers.SHARE), share_kind)
    arguments = [builder.ptrtoint(each, _INT64), builder.ptrtoint(block, _INT64), lo, hi, request]
    builder.ret(builder.call(share, [*entry.args[:2], *arguments]))
    return entry
