"""The primitives that kernels compute on a CPU: normalizing, its derivative along a direction, and its gradient.

Each primitive is defined by `gennorm.definition`, and has a rule for every transformation. On one device of a CPU
normalizing and the gradient are lowered to kernels, which XLA calls by its foreign function interface. Elsewhere, under
`vmap`, and in derivatives of derivatives everything is the definition. So it is in a program that XLA partitions over
devices, since XLA would collect the whole array for a foreign function.
"""

from __future__ import annotations

import functools
import re
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from gennorm import definition
from gennorm.definition import SliceMoments
from gennorm.engine import CompilationError, fallback_reason, use_definition
from gennorm.extend import Computation
from gennorm.spec.config import LayerConfig, Resolved

if TYPE_CHECKING:
    from gennorm.engine.handlers import Call, Plan

__all__ = ["are_available", "are_possible_for", "normalize_by_kernels"]

Array = Any

# Where kernels are at least 1.5 times as fast as the definition under `jit`; docs/decisions/0014 has the figures.
WORTH = 1 << 15  # elements with a gradient, and without for the method Standardize
WORTH_RMS = 1 << 20  # elements of a forward pass alone with the method RMS, which XLA fuses
WORTH_LENGTH = 256  # elements of a row in a forward pass alone
DTYPES = ("float32", "float64", "bfloat16")

normalize_p = Primitive("gennorm_normalize")
tangent_p = Primitive("gennorm_tangent")
gradient_p = Primitive("gennorm_gradient")
for _primitive in (normalize_p, tangent_p, gradient_p):
    _primitive.multiple_results = True

_registering = threading.Lock()
_registered: set[str] = set()


def are_possible_for(x: Array, parameters: tuple[Array | None, ...], resolved: Resolved) -> bool:
    """Return whether an array is normalized by the primitives, whose kernels may be worth it for its size."""
    if not all(isinstance(size, int) for size in x.shape) or x.size < WORTH or x.dtype.name not in DTYPES:
        return False
    present = [one for one in parameters if one is not None]
    if any(one.ndim != len(resolved.scaling) or one.dtype.name not in DTYPES for one in present):
        return False  # one parameter for each example
    if any(_varies_over_devices(jax.typeof(one)) for one in (x, *present)):
        return False
    return jax.default_backend() == "cpu" and are_available()


def _varies_over_devices(kind: Any) -> bool:
    """Return whether an array is part of another, or in other memory: operations have to hand on what its type says.

    Versions of JAX have different names for that, but all of them print it.
    """
    return str(kind) != str(jax.core.ShapedArray(kind.shape, kind.dtype))


@functools.cache
def are_available() -> bool:
    """Return whether XLA can call kernels in this process: with a version of the interface that was checked."""
    if fallback_reason() is not None:
        return False
    from gennorm.engine import handlers

    return handlers.are_possible() and _api_version() == handlers.VERSION


def _api_version() -> tuple[int, ...] | None:
    """Return the version of the interface that JAX was built with, from its header; None where it cannot be read."""
    try:
        text = (Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text(encoding="utf-8")
    except (AttributeError, OSError):
        return None
    found = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", text) for part in ("MAJOR", "MINOR")]
    return tuple(int(one[1]) for one in found if one is not None)


def normalize_by_kernels(
    x: Array, scaling: Array | None, biases: Array | None, config: LayerConfig, resolved: Resolved
) -> tuple[Array, SliceMoments]:
    """Return the output of an array, and its moments as constants."""
    parameters = [one for one in (scaling, biases) if one is not None]
    has = scaling is not None, biases is not None
    y, _, moments = normalize_p.bind(x, *parameters, config=config, has=has, keep=False)
    mean, spread = lax.stop_gradient(moments)
    count = jnp.full(resolved.moments_shape, float(resolved.count), moments.dtype)
    return y, SliceMoments(count, mean if config.method == "Standardize" else None, spread)


# ------------------------------------------------------------------------------------------------------ the definition


@functools.lru_cache(maxsize=256)
def _resolved(config: LayerConfig, shape: tuple[int, ...]) -> Resolved:
    return Computation(config).resolve(shape)


def _named(parameters: Any, has: tuple[bool, bool], names: tuple[str, str] = ("scaling", "biases")) -> dict[str, Array]:
    return dict(zip([name for name, one in zip(names, has, strict=True) if one], parameters, strict=True))


def _normalize(x: Array, *parameters: Array, config: LayerConfig, has: tuple[bool, bool], keep: bool) -> list[Array]:
    y, moments = definition.normalize(x, config, _resolved(config, x.shape), **_named(parameters, has))
    assert isinstance(moments, SliceMoments)
    mean = jnp.zeros_like(moments.m2) if moments.mean is None else moments.mean
    found = jnp.stack([mean, moments.m2])
    return [y, _bytes_of_float64(found.reshape(-1)), found]


def _bytes_of_float64(numbers: Array) -> Array:
    """Return numbers as a kernel keeps them for the backward pass: the bytes of float64, which JAX may not have."""
    if numbers.dtype == np.float64:
        return lax.bitcast_convert_type(numbers, jnp.uint8).reshape(-1)
    bits = lax.bitcast_convert_type(numbers, jnp.uint32)
    sign, exponent, fraction = bits >> 31 << 31, bits >> 23 & 255, bits & 0x7FFFFF
    wide = jnp.where(exponent == 255, 2047, exponent + (1023 - 127)) << 20
    zero = exponent == 0  # subnormal numbers too
    high = jnp.where(zero, sign, sign | wide | fraction >> 3)
    low = jnp.where(zero, 0, fraction << 29)
    return lax.bitcast_convert_type(jnp.stack([low, high], -1), jnp.uint8).reshape(-1)


def _tangent(kept: Array, x: Array, *rest: Array, config: LayerConfig, has: tuple[bool, bool]) -> list[Array]:
    del kept  # of numbers that no derivative goes through: the definition computes them from x
    number = sum(has)
    parameters = _named(rest[:number], has)
    dx, *directions = rest[number:]
    named = _named(directions, has, ("dscaling", "dbiases"))
    along = definition.push_forward(
        x, dx, config, _resolved(config, x.shape), scaling=parameters.get("scaling"), **named
    )
    return [along]


def _gradient(
    kept: Array, x: Array, dy: Array, *parameters: Array, config: LayerConfig, has: tuple[bool, bool]
) -> list[Array]:
    del kept
    found = definition.pull_back(x, dy, config, _resolved(config, x.shape), **_named(parameters, has))
    return [one for one in found if one is not None]


def _widest_dtype() -> str:
    """Return the dtype of moments: float64 if JAX has it."""
    return str(jax.dtypes.canonicalize_dtype(np.float64))


@functools.lru_cache(maxsize=256)
def _shapes(function: Any, widest: str, *kinds: Any, **settings: Any) -> Any:
    del widest  # which the dtypes depend on
    outputs = jax.eval_shape(functools.partial(function, **settings), *kinds)
    return [jax.core.ShapedArray(one.shape, one.dtype) for one in outputs]


def _abstract(function: Any, *arguments: Any, **settings: Any) -> Any:
    kinds = (jax.ShapeDtypeStruct(one.shape, one.dtype) for one in arguments)
    return _shapes(function, _widest_dtype(), *kinds, **settings)


# --------------------------------------------------------------------------------------------------------- the kernels


def _normalize_by_kernel(
    x: Array, *parameters: Array, call: Call, plan: Plan, has: tuple[bool, bool], **_: Any
) -> list[Array]:
    named = _named(parameters, has)
    operands = [_laid_out(named.get(name), plan) for name in ("scaling", "biases")]
    y, kept, found, *_space = _called(call, x, *operands)
    return [y.reshape(x.shape), kept, found.reshape(2, *plan.resolved.moments_shape)]


def _gradient_by_kernel(
    kept: Array, x: Array, dy: Array, *parameters: Array, call: Call, plan: Plan, has: tuple[bool, bool], **_: Any
) -> list[Array]:
    named = _named(parameters, has)
    dx, scaling, biases, *_space = _called(call, x, dy, _laid_out(named.get("scaling"), plan), kept)
    found = {"scaling": scaling, "biases": biases}
    return [dx.reshape(x.shape), *(_parameter_from(found[name], plan, named[name]) for name in named)]


def _laid_out(parameter: Array | None, plan: Plan) -> Array:
    """Return a parameter in the order and the dtype of the kernel; an empty array for an absent one."""
    from gennorm.engine import handlers

    if parameter is None:
        return jnp.zeros(0, plan.compute)
    flat, order = parameter.reshape(-1).astype(plan.compute), handlers.parameter_order(plan)
    return flat if order is None else flat[order]


def _parameter_from(gradient: Array, plan: Plan, parameter: Array) -> Array:
    """Return the gradient of a parameter from that of the kernel, which may have a parameter several times."""
    from gennorm.engine import handlers

    order = handlers.parameter_order(plan)
    if order is not None:
        gradient = jnp.zeros(parameter.size, gradient.dtype).at[order].add(gradient)
    return gradient.reshape(parameter.shape).astype(parameter.dtype)


def _called(call: Call, *operands: Array) -> Any:
    """Return the results of a call of a kernel, as a part of the program that is traced."""
    name = f"gennorm_{call.name}"
    with _registering:
        if name not in _registered:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(call.address), platform="cpu")
            _registered.add(name)
    results = [jax.ShapeDtypeStruct((size,), dtype) for dtype, size in call.results]
    return jax.ffi.ffi_call(name, results)(*operands, **call.attributes)


def _kernel(
    primitive: Primitive, x: Any, config: LayerConfig, has: tuple[bool, bool], keep: bool = True
) -> tuple[Call, Plan] | None:
    """Return the call of a kernel and its plan; None where the definition is used."""
    from gennorm.engine import handlers

    plan = handlers.plan_of(config, x.shape, x.dtype.name)
    if not _is_worth_it(plan, keep):
        return None
    try:
        if primitive is gradient_p:
            return handlers.backward(plan, *has), plan
        return handlers.forward(plan, *has, _widest_dtype()), plan
    except CompilationError as error:
        use_definition(error)
        return None


def _is_worth_it(plan: Plan, keep: bool) -> bool:
    """Return whether a kernel is faster than XLA; `keep` says whether a backward pass follows."""
    if keep:
        return True
    if plan.config.method == "RMS":
        return plan.size >= WORTH_RMS
    return plan.family == "columns" or plan.runs[-1].size >= WORTH_LENGTH


# ------------------------------------------------------------------------------------------------------------- rules


def _arrays(primals: Any, tangents: Any) -> list[Array]:
    return [ad.instantiate_zeros(one) for _, one in zip(primals, tangents, strict=True)]


def _no_tangent(value: Array) -> Any:
    return ad.Zero(jax.typeof(value).to_tangent_aval())


def _normalize_jvp(primals: Any, tangents: Any, *, config: LayerConfig, has: tuple[bool, bool], keep: bool) -> Any:
    y, kept, moments = normalize_p.bind(*primals, config=config, has=has, keep=True)
    (along,) = tangent_p.bind(kept, *primals, *_arrays(primals, tangents), config=config, has=has)
    return [y, kept, moments], [along, _no_tangent(kept), _no_tangent(moments)]


def _defined_jvp(primitive: Primitive, function: Any, primals: Any, tangents: Any, **settings: Any) -> Any:
    """The derivative of a derivative: that of the definition. Nothing goes through what was kept."""
    kept, *others = primals
    outputs = primitive.bind(*primals, **settings)
    call = functools.partial(function, kept, **settings)
    _, along = jax.jvp(call, tuple(others), tuple(_arrays(others, tangents[1:])))
    return outputs, along


def _tangent_transpose(
    cotangents: Any, kept: Array, x: Array, *rest: Any, config: LayerConfig, has: tuple[bool, bool]
) -> Any:
    number = sum(has)
    directions = rest[number:]
    (dy,) = cotangents
    if type(dy) is ad.Zero:
        found: list[Any] = [ad.Zero(one.aval) if ad.is_undefined_primal(one) else None for one in directions]
    else:
        found = gradient_p.bind(kept, x, dy, *rest[:number], config=config, has=has)
        found = [value if ad.is_undefined_primal(one) else None for one, value in zip(directions, found, strict=True)]
    return [None] * (2 + number) + found


def _gradient_transpose(
    cotangents: Any, kept: Array, x: Array, dy: Any, *parameters: Array, config: LayerConfig, has: tuple[bool, bool]
) -> Any:
    """The gradient is linear in that of the output alone."""
    assert ad.is_undefined_primal(dy)
    directions = [ad.instantiate_zeros(one) for one in cotangents]
    (along,) = tangent_p.bind(kept, x, *parameters, *directions, config=config, has=has)
    return [None, None, along] + [None] * len(parameters)


def _batched(function: Any, arguments: Any, axes: Any, **settings: Any) -> Any:
    outputs = jax.vmap(functools.partial(function, **settings), in_axes=tuple(axes))(*arguments)
    return outputs, [0] * len(outputs)


def _lowered(by_kernel: Any, primitive: Primitive, function: Any, ctx: Any, *operands: Any, **settings: Any) -> Any:
    """Lower to a kernel where the program runs on one device, or XLA does not partition it."""
    context = ctx.module_context.axis_context
    defined = getattr(context, "num_devices", 1) > 1
    if hasattr(context, "manual_axes"):
        defined = context.manual_axes != frozenset(context.mesh.axis_names)
    defined |= ctx.module_context.lowering_parameters.for_export  # JAX stores no program with foreign functions
    x = ctx.avals_in[1 if primitive is gradient_p else 0]
    found = None if defined else _kernel(primitive, x, **settings)
    if found is not None:
        function = functools.partial(by_kernel, call=found[0], plan=found[1])
    return mlir.lower_fun(function, multiple_results=True)(ctx, *operands, **settings)


@functools.lru_cache(maxsize=256)
def _compiled(primitive: Primitive, **settings: Any) -> Any:
    return jax.jit(functools.partial(primitive.bind, **settings))


def _run(primitive: Primitive, function: Any, *arguments: Array, **settings: Any) -> Any:
    """Compute outside of a program, as the backward pass of a call without `jit` does."""
    flags: Any = jax.config
    if flags.jax_disable_jit:
        return function(*arguments, **settings)
    return _compiled(primitive, **settings)(*arguments)


for _primitive, _function in ((normalize_p, _normalize), (tangent_p, _tangent), (gradient_p, _gradient)):
    _primitive.def_impl(functools.partial(_run, _primitive, _function))
    _primitive.def_abstract_eval(functools.partial(_abstract, _function))
    batching.primitive_batchers[_primitive] = functools.partial(_batched, _function)
    mlir.register_lowering(_primitive, mlir.lower_fun(_function, multiple_results=True))
    if _primitive is not normalize_p:
        ad.primitive_jvps[_primitive] = functools.partial(_defined_jvp, _primitive, _function)
ad.primitive_jvps[normalize_p] = _normalize_jvp
ad.primitive_transposes[tangent_p] = _tangent_transpose
ad.primitive_transposes[gradient_p] = _gradient_transpose
for _primitive, _function, _by_kernel in (
    (normalize_p, _normalize, _normalize_by_kernel),
    (gradient_p, _gradient, _gradient_by_kernel),
):
    mlir.register_lowering(_primitive, functools.partial(_lowered, _by_kernel, _primitive, _function), platform="cpu")
