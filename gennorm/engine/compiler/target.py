"""What Numba does to compile a kernel, and no more of it: a target of its own beside Numba's for the processor.

Of the time that Numba's target takes for a kernel, most goes where it gains nothing: the steps that a kernel is made
of are optimised and made machine code each by itself, though nobody calls them, and once more for every constant that
they are called with; the passes look for what kernels do not have; and the registries import what kernels do not use,
SciPy's linear algebra with them. Numba compiles other functions as before.
"""

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir
from numba.core import codegen, cpu, intrinsics, typing
from numba.core.callwrapper import PyCallWrapper
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager
from numba.core.registry import CPUDispatcher, CPUTarget
from numba.core.target_extension import CPU, dispatcher_registry, target_registry
from numba.core.typed_passes import NativeLowering, NoPythonBackend, NopythonTypeInference, PreLowerStripPhis
from numba.core.types.misc import unliteral
from numba.core.untyped_passes import DeadBranchPrune, FixupArgs, IRProcessing, ReconstructSSA, TranslateByteCode

from . import lowering, team

NAME = "gennorm"

# Without array expressions, closures and parallel loops to rewrite, and without references to count.
PASSES = (
    TranslateByteCode,
    FixupArgs,
    IRProcessing,
    DeadBranchPrune,  # of branches on settings: what they call is not compiled
    ReconstructSSA,
    DeadBranchPrune,
    NopythonTypeInference,
    PreLowerStripPhis,
    NativeLowering,
    NoPythonBackend,
)


class Pipeline(CompilerBase):
    """From bytecode to LLVM's language."""

    def define_pipelines(self) -> list[PassManager]:
        manager = PassManager(NAME)
        for each in PASSES:
            manager.add_pass(each, each.__name__)
        manager.finalize()
        return [manager]


class Library(codegen.JITCodeLibrary):
    """One function in LLVM's language. LLVM works on kernels alone, when their steps have been put into them."""

    kernel = True  # as are those that come from the cache

    def _optimize_functions(self, module: Any) -> None:
        pass

    def _optimize_final_module(self) -> None:
        if self.kernel:
            manager, passes = self._codegen._module_pass_manager()
            manager.run(self._final_module, passes)

    def _finalize_final_module(self) -> None:
        if self.kernel:
            super()._finalize_final_module()
        self._finalized = True


class Codegen(codegen.JITCPUCodegen):
    _library_class = Library

    def set_env(self, name: str, environment: Any) -> None:
        if self._engine.is_symbol_defined(name):  # a step's is not
            super().set_env(name, environment)


class Lowering(cpu.CPUContext):
    """What kernels are lowered with."""

    def init(self) -> None:
        super().init()
        self._internal_codegen = Codegen(NAME)

    def load_additional_registries(self) -> None:
        # Being imported is what registers the others.
        from numba.cpython import builtins, iterators, mathimpl, numbers, rangeobj, slicing, tupleobj  # noqa: F401
        from numba.np import arrayobj  # noqa: F401

        # The first takes up the words as they are met, and what Numba adds for a target: other targets never see it.
        self.install_registry(lowering.registry)
        self.install_registry(mathimpl.registry)

    def post_lowering(self, module: Any, library: Library) -> None:
        """Numba's links its runtime, which counts references."""
        library.kernel = False  # until there is a wrapper by which Python calls it
        if self.is32bit:
            intrinsics.fix_divmod(module)

    def create_cpython_wrapper(
        self, library: Library, fndesc: Any, env: Any, call_helper: Any, release_gil: bool = False
    ) -> None:
        library.kernel = True
        module = self.create_module("wrapper")
        kind = self.call_conv.get_function_type(fndesc.restype, fndesc.argtypes)
        called = ir.Function(module, kind, fndesc.llvm_func_name)
        if "team" in fndesc.args:
            called = team.shareable(self, called, fndesc)
        PyCallWrapper(self, module, called, fndesc, env, call_helper, release_gil).build()
        library.add_ir_module(module)


class Typing(typing.Context):
    """What kernels' types are inferred with."""

    def load_additional_registries(self) -> None:
        from numba.core.typing import mathdecl

        self.install_registry(mathdecl.registry)


class Target(CPUTarget):
    @functools.cached_property
    def _toplevel_target_context(self) -> Lowering:
        return Lowering(self.typing_context, NAME)

    @functools.cached_property
    def _toplevel_typing_context(self) -> Typing:
        return Typing()


class Processor(CPU):
    """This target's place among Numba's."""


target_registry[NAME] = Processor
target = Target(NAME)


class Dispatcher(CPUDispatcher):
    targetdescr = target

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """A step is compiled once for all constants that it is called with; LLVM puts these in, as it inlines."""
        return super().get_call_template(tuple(map(unliteral, args)), kws)


dispatcher_registry[Processor] = Dispatcher
