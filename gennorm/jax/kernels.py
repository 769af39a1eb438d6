"""The primitives that kernels compute on a CPU: normalizing, its derivative along a direction, and its gradient.

Each primitive is defined by `gennorm.definition`, and has a rule for every transformation. On one device of a CPU
normalizing and the gradient are lowered to kernels, as handlers of XLA's foreign function interface; elsewhere, under
`vmap`, and in derivatives of derivatives everything is the definition. A program that is partitioned over devices by
XLA is lowered to the definition too: XLA would collect the whole array for a foreign function.
"""

from __future__ import annotations

import ctypes
import functools
import re
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from gennorm import definition
from gennorm.definition import SliceMoments
from gennorm.extend import Computation
from gennorm.plan import Plan, make_plan
from gennorm.spec.config import LayerConfig, Resolved

if TYPE_CHECKING:
    from gennorm.engine.handlers import Call

__all__ = ["is_worth_a_kernel", "normalize"]

Array = Any

WORTH = 1
CHECKED = ((0, 3),)  # versions of the interface for which offsets and stages were checked
DTYPES = ("float32", "float64", "float16", "bfloat16")

normalize_p = Primitive("gennorm_normalize")
tangent_p = Primitive("gennorm_tangent")
gradient_p = Primitive("gennorm_gradient")
for _primitive in (normalize_p, tangent_p, gradient_p):
    _primitive.multiple_results = True

_registering = threading.Lock()
_registered: set[str] = set()


def is_worth_a_kernel(x: Array, parameters: tuple[Array | None, ...], resolved: Resolved) -> bool:
    """Return whether an array is normalized by the primitives: its size, dtype and platform allow kernels."""
    if not all(isinstance(size, int) for size in x.shape) or x.size < WORTH or x.dtype.name not in DTYPES:
        return False
    for one in parameters:
        if one is not None and (one.ndim != len(resolved.scaling) or one.dtype.name not in DTYPES):
            return False
    if any(getattr(jax.typeof(one), "vma", None) for one in (x, *parameters) if one is not None):
        return False  # inside shard_map, which follows what varies over devices through every operation
    return jax.default_backend() == "cpu" and is_available()


def normalize(
    x: Array, scaling: Array | None, biases: Array | None, config: LayerConfig, resolved: Resolved
) -> tuple[Array, SliceMoments]:
    """Return the output of an array, and its moments as constants."""
    parameters = [one for one in (scaling, biases) if one is not None]
    has = scaling is not None, biases is not None
    y, _, moments = normalize_p.bind(x, *parameters, config=Computation(config).config, has=has, keep=False)
    mean, spread = jax.lax.stop_gradient(moments)
    count = jnp.full(resolved.moments_shape, float(resolved.count), moments.dtype)
    return y, SliceMoments(count, mean if config.method == "Standardize" else None, spread)


# ------------------------------------------------------------------------------------------------------ the definition


@functools.lru_cache(maxsize=256)
def _resolved(config: LayerConfig, shape: tuple[int, ...]) -> Resolved:
    return Computation(config).resolve(shape)


def _named(parameters: Any, has: tuple[bool, bool], names: tuple[str, str] = ("scaling", "biases")) -> dict[str, Array]:
    return dict(zip([name for name, one in zip(names, has, strict=True) if one], parameters, strict=True))


def _kept_size(resolved: Resolved) -> int:
    """Return the bytes of what the backward pass needs: numbers in float64, which JAX may not have."""
    return 16 * int(np.prod(resolved.moments_shape, dtype=np.int64))


def _normalize(x: Array, *parameters: Array, config: LayerConfig, has: tuple[bool, bool], keep: bool) -> list[Array]:
    resolved = _resolved(config, x.shape)
    y, moments = definition.normalize(x, config, resolved, **_named(parameters, has))
    assert isinstance(moments, SliceMoments)
    mean = jnp.zeros_like(moments.m2) if moments.mean is None else moments.mean
    return [y, jnp.zeros(_kept_size(resolved), jnp.uint8), jnp.stack([mean, moments.m2])]


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


def _abstract(function: Any, *arguments: Any, **settings: Any) -> list[Any]:
    outputs = jax.eval_shape(functools.partial(function, **settings), *arguments)
    return [jax.core.ShapedArray(one.shape, one.dtype) for one in outputs]


# --------------------------------------------------------------------------------------------------------- the kernels


@functools.lru_cache(maxsize=256)
def _plan(config: LayerConfig, shape: tuple[int, ...], dtype: str) -> Plan:
    return make_plan(config, shape, dtype)


def _normalize_by_kernel(
    x: Array, *parameters: Array, config: LayerConfig, has: tuple[bool, bool], keep: bool
) -> list[Array]:
    from gennorm.engine import handlers

    plan = _plan(config, x.shape, x.dtype.name)
    moments = "float64" if jax.config.read("jax_enable_x64") else "float32"
    named = _named(parameters, has)
    operands = [_laid_out(named.get(name), plan) for name in ("scaling", "biases")]
    y, kept, found, *_ = _called(handlers.forward(plan, *has, moments), x, *operands)
    return [y.reshape(x.shape), kept, found.reshape(2, *plan.resolved.moments_shape)]


def _gradient_by_kernel(
    kept: Array, x: Array, dy: Array, *parameters: Array, config: LayerConfig, has: tuple[bool, bool]
) -> list[Array]:
    from gennorm.engine import handlers

    plan = _plan(config, x.shape, x.dtype.name)
    named = _named(parameters, has)
    scaling = _laid_out(named.get("scaling"), plan)
    dx, *gradients = _called(handlers.backward(plan, *has), x, dy, scaling, kept)
    found = [dx.reshape(x.shape)]
    for name, gradient in zip(("scaling", "biases"), gradients, strict=False):
        if name in named:
            found.append(_parameter_from(gradient, plan, named[name]))
    return found


def _laid_out(parameter: Array | None, plan: Plan) -> Array:
    """Return a parameter in the kernel's order and dtype; an empty array for an absent one."""
    if parameter is None:
        return jnp.zeros(0, plan.compute)
    flat = parameter.reshape(-1).astype(plan.compute)
    order = _order(plan)
    return flat if order is None else flat[order]


def _parameter_from(gradient: Array, plan: Plan, parameter: Array) -> Array:
    order = _order(plan)
    if order is not None:
        gradient = jnp.zeros(parameter.size, gradient.dtype).at[order].add(gradient)
    return gradient.reshape(parameter.shape).astype(parameter.dtype)


@functools.lru_cache(maxsize=256)
def _order(plan: Plan) -> np.ndarray[Any, Any] | None:
    """Return which parameter each one of the kernel is; None if they are in the same order."""
    from gennorm.engine.layout import Layout

    own = np.arange(np.prod(plan.resolved.parameter_shape, dtype=np.int64), dtype=np.float64)
    order = Layout(plan).parameter(own.reshape(plan.resolved.parameter_shape))
    assert order is not None
    return None if order.shape == own.shape and np.array_equal(order, own) else order.astype(np.int64)


def _called(call: Call, *operands: Array) -> Any:
    name = f"gennorm_{call.name}"
    with _registering:
        if name not in _registered:
            jax.ffi.register_ffi_target(name, _capsule(call.address), platform="cpu")
            _registered.add(name)
    results = []
    for dtype, size in call.results:
        results.append(jax.ShapeDtypeStruct((size,), dtype))
    return jax.ffi.ffi_call(name, results)(*operands, **call.attributes)


def _capsule(address: int) -> Any:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
    return new(address, None, None)


def api_version() -> tuple[int, int] | None:
    """Return the version of the interface that JAX was built with, from its header; None where it cannot be read."""
    try:
        text = (Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text(encoding="utf-8")
    except (AttributeError, OSError):
        return None
    found = [re.search(rf"#define XLA_FFI_API_{part} (\d+)", text) for part in ("MAJOR", "MINOR")]
    return None if None in found else tuple(int(one[1]) for one in found if one)  # type: ignore[return-value]


@functools.cache
def is_available() -> bool:
    """Return whether kernels can be called by XLA in this process."""
    from gennorm.engine import fallback_reason

    if sys.byteorder != "little" or ctypes.sizeof(ctypes.c_void_p) != 8 or api_version() not in CHECKED:
        return False
    return fallback_reason() is None


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


def _lowered(by_kernel: Any, function: Any, ctx: Any, *operands: Any, **settings: Any) -> Any:
    """Lower to a kernel where the program runs on one device, or XLA does not partition it."""
    context = ctx.module_context.axis_context
    defined = getattr(context, "num_devices", 1) > 1
    if hasattr(context, "manual_axes"):
        defined = context.manual_axes != frozenset(context.mesh.axis_names)
    defined |= ctx.module_context.lowering_parameters.for_export  # JAX stores no program with foreign functions
    return mlir.lower_fun(function if defined else by_kernel, multiple_results=True)(ctx, *operands, **settings)


@functools.lru_cache(maxsize=256)
def _compiled(primitive: Primitive, **settings: Any) -> Any:
    return jax.jit(functools.partial(primitive.bind, **settings))


def _run(primitive: Primitive, function: Any, *arguments: Array, **settings: Any) -> Any:
    """Compute outside of a program, as the backward pass of a call without `jit` does."""
    if jax.config.read("jax_disable_jit"):
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
mlir.register_lowering(normalize_p, functools.partial(_lowered, _normalize_by_kernel, _normalize), platform="cpu")
mlir.register_lowering(gradient_p, functools.partial(_lowered, _gradient_by_kernel, _gradient), platform="cpu")
