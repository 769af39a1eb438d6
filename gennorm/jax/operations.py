"""The primitives that kernels compute on a CPU: normalizing, its derivative along a direction, and its gradient.

Each primitive is defined by `gennorm.definition`, and has a rule for every transformation. On one device of a CPU
normalizing and the gradient are lowered to kernels (`gennorm.jax.ffi`); elsewhere, under `vmap`, and in derivatives of
derivatives everything is the definition. A program that is partitioned over devices by XLA is lowered to the definition
too: XLA would collect the whole array for a foreign function.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from gennorm import definition
from gennorm.definition import SliceMoments
from gennorm.extend import Computation
from gennorm.jax import ffi
from gennorm.spec.config import LayerConfig, Resolved

__all__ = ["is_worth_a_kernel", "normalize"]

Array = Any

# Elements from which kernels are at least 1.5 times as fast as the definition under jit, forward and backward together,
# and forward alone. Measured on two cores with float32, for layer, batch (both layouts) and group norm. Forward and
# backward: 0.9 to 2.6 times as fast with 65,536 elements, 1.2 to 3.2 with 262,144, 2.4 to 10 with 1,048,576, 2.4 to 9.6
# with 4,194,304. Forward alone: 1.1 to 1.8 with 262,144, 1.2 to 3.5 with 1,048,576, 2.5 to 4.3 with 4,194,304.
WORTH = 1 << 20
WORTH_FORWARD = 1 << 22
# Kernels are off unless the environment asks for them.
ENABLED = os.environ.get("GENNORM_JAX_KERNELS") == "1"
DTYPES = ("float32", "float64", "float16", "bfloat16")

normalize_p = Primitive("gennorm_normalize")
tangent_p = Primitive("gennorm_tangent")
gradient_p = Primitive("gennorm_gradient")
for _primitive in (normalize_p, tangent_p, gradient_p):
    _primitive.multiple_results = True


def is_worth_a_kernel(x: Array, parameters: tuple[Array | None, ...], resolved: Resolved) -> bool:
    """Return whether an array is normalized by the primitives: its size, dtype and platform allow kernels."""
    if (
        not ENABLED
        or not all(isinstance(size, int) for size in x.shape)
        or x.size < WORTH
        or x.dtype.name not in DTYPES
    ):
        return False
    for one in parameters:
        if one is not None and (one.ndim != len(resolved.scaling) or one.dtype.name not in DTYPES):
            return False
    if any(getattr(jax.typeof(one), "vma", None) for one in (x, *parameters) if one is not None):
        return False  # inside shard_map, which follows what varies over devices through every operation
    return jax.default_backend() == "cpu" and ffi.is_available()


def normalize(
    x: Array, scaling: Array | None, biases: Array | None, config: LayerConfig, resolved: Resolved
) -> tuple[Array, SliceMoments]:
    """Return the output of an array, and its moments as constants."""
    parameters = [one for one in (scaling, biases) if one is not None]
    has = scaling is not None, biases is not None
    y, _, moments = normalize_p.bind(x, *parameters, config=config, has=has, keep=False)
    mean, spread = jax.lax.stop_gradient(moments)
    count = jnp.full(resolved.moments_shape, float(resolved.count), moments.dtype)
    return y, SliceMoments(count, mean if config.method == "Standardize" else None, spread)


# ------------------------------------------------------------------------------------------------- what they compute


@functools.lru_cache(maxsize=256)
def _resolved(config: LayerConfig, shape: tuple[int, ...]) -> Resolved:
    return Computation(config).resolve(shape)


def _named(parameters: Any, has: tuple[bool, bool], names: tuple[str, str] = ("scaling", "biases")) -> dict[str, Array]:
    return dict(zip([name for name, one in zip(names, has, strict=True) if one], parameters, strict=True))


def _kept_shape(resolved: Resolved) -> tuple[int, int]:
    """The shape of what the backward pass needs: numbers of float64, which JAX has as two integers without x64."""
    return 2 * int(np.prod(resolved.moments_shape, dtype=np.int64)) + 1, 2


def _normalize(x: Array, *parameters: Array, config: LayerConfig, has: tuple[bool, bool], keep: bool) -> list[Array]:
    resolved = _resolved(config, x.shape)
    y, moments = definition.normalize(x, config, resolved, **_named(parameters, has))
    assert isinstance(moments, SliceMoments)
    mean = jnp.zeros_like(moments.m2) if moments.mean is None else moments.mean
    return [y, jnp.zeros(_kept_shape(resolved), jnp.uint32), jnp.stack([mean, moments.m2])]


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


def _lowered(name: str, function: Any, ctx: Any, *operands: Any, config: LayerConfig, has: Any, **settings: Any) -> Any:
    """Lower to a kernel where the program runs on one device, or XLA does not partition it."""
    context = ctx.module_context.axis_context
    defined = getattr(context, "num_devices", 1) > 1
    if hasattr(context, "manual_axes"):
        defined = context.manual_axes != frozenset(context.mesh.axis_names)
    defined |= ctx.module_context.lowering_parameters.for_export  # JAX stores no program with foreign functions
    defined |= not settings.get("keep", True) and ctx.avals_in[0].size < WORTH_FORWARD
    if defined:
        return mlir.lower_fun(function, multiple_results=True)(ctx, *operands, config=config, has=has, **settings)
    described = [[(one.dtype.name, one.shape) for one in avals] for avals in (ctx.avals_in, ctx.avals_out)]
    key = ffi.key_of(config, has, *described)
    return jax.ffi.ffi_lowering(name)(ctx, *operands, key=key)


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
mlir.register_lowering(normalize_p, functools.partial(_lowered, ffi.FORWARD, _normalize), platform="cpu")
mlir.register_lowering(gradient_p, functools.partial(_lowered, ffi.BACKWARD, _gradient), platform="cpu")
