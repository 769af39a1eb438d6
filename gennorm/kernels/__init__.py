"""The engine: a plan and arrays in, kernels called. The only folder that knows Numba.

======================================== ====================================================================
`rows`, `row_gradients`                  kernels for slices that are rows of memory, forward and backward
`columns`, `column_gradients`            kernels for tiles of slices that lie side by side
`steps`, `vector`                        what both families are made of: formulas, and words for sixteen lanes
`layout`, `bound`, `shortcut`            from a plan and arrays to calls of kernels, and the short way of small ones
`sharing`, `_team`                       threads that share a call, seen from Python and from machine code
`_jit`, `_target`, `_lowering`           how a kernel becomes machine code, and what Numba and LLVM are told of words
======================================== ====================================================================

Read `rows` first.
"""

from __future__ import annotations

from dataclasses import replace

from gennorm.config import LayerConfig
from gennorm.plan import ITEMSIZE, dense_strides, make_plan

from . import _jit
from .bound import Bound
from .shortcut import Shortcut

__all__ = ["Bound", "Shortcut", "bind"]


def bind(
    config: LayerConfig,
    shape: tuple[int, ...],
    dtype: str,
    strides: tuple[int, ...],
    out_strides: tuple[int, ...],
    *,
    per_example: bool = False,
) -> Bound:
    """Plan a layer for arrays of one shape, dtype and layout, and give the plan its kernels."""
    if _jit.JIT:
        return Bound(make_plan(config, shape, dtype, strides, out_strides, per_example=per_example))
    # Plain Python cannot reach beyond a view by its strides: everything but C order goes through copies.
    plan = make_plan(config, shape, dtype, per_example=per_example)
    plain = (plan.order, dense_strides(shape, ITEMSIZE[dtype]), dense_strides(shape, ITEMSIZE[plan.result]))
    direct = plain == (tuple(range(len(shape))), strides, out_strides)
    return Bound(plan if direct else replace(plan, copies="both", order=tuple(range(len(shape)))))
