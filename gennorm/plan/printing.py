"""A plan as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gennorm.spec import levels
from gennorm.spec.config import Resolved

if TYPE_CHECKING:
    from gennorm.plan.planner import Plan

__all__ = ["text_of"]


def text_of(plan: Plan) -> str:
    """Return the plan as a table with one fact in each line."""
    resolved = plan.resolved
    scaled = [name for name in ("scaling", "biases") if getattr(plan.config, name) is not None]
    parameters = ", ".join(f"{name} {resolved.parameter_shape}" for name in scaled) or "no parameters"
    groups = [
        f"{resolved.name(axis)} in {number} of {resolved.shape[axis] // number}"
        for axis, number in enumerate(resolved.groups)
        if number > 1
    ]
    runs = " x ".join(f"{run.size} {'aggregated' if run.aggregated else 'kept'}" for run in plan.runs)
    copied = {"nothing": "", "input": " after a copy of the input", "both": " between copies of input and output"}
    copies = {"nothing": "", "input": ", 1 copy", "both": ", 2 copies"}
    source = {"input": "", "moving": ": the moving ones, in training the input's", "dataset": ": those of the data set"}
    once = " (1 in inference)" if plan.reads == 2 and plan.config.statistics == "moving" else ""
    read, written = map(_bytes, plan.traffic)
    whole = "slice" if plan.family == "rows" else "tile"
    shared = f": {_count(plan.tasks // plan.cut.units, whole)} in {plan.cut.units} units each"
    units = shared if plan.cut.units > 1 and plan.tasks else ""
    lines = {
        "array": f"{plan.dtype} {resolved.shape}, {_examples(resolved)}",
        "aggregates": f"{_places(resolved, resolved.aggregation)}: {_count(plan.slices, 'slice')} of "
        f"{_count(resolved.count, 'element')}",
        "groups": "; ".join(groups) or "none",
        "scales": f"{_places(resolved, resolved.scaling) or 'no level'}: {parameters}",
        "moments": f"{resolved.moments_shape}, float64{source[plan.config.statistics]}",
        "runs": runs,
        "kernel": f"{plan.family}, {plan.compute} arithmetic{copied[plan.copies]}"
        if plan.fallback is None
        else f"none, the definition in NumPy: {plan.fallback}",
        "memory": f"{_count(plan.reads, 'read')}{once}, {_count(min(plan.reads, 1), 'write')}{copies[plan.copies]}: "
        f"{read} read, {written} written",
        "parallel": f"{_count(plan.tasks, 'task')}{units}",
    }
    return "\n".join(f"{name:<11}{line}" for name, line in lines.items())


def _examples(resolved: Resolved) -> str:
    if not resolved.batched:
        return "one example"
    return f"a batch of {_count(resolved.shape[0], 'example')} of shape {resolved.shape[1:]}"


def _places(resolved: Resolved, axes: tuple[int, ...]) -> str:
    if not axes:
        return ""
    word = "level" if len(axes) == 1 else "levels"
    numbers = ", ".join(levels.numbered(resolved.level(axis), resolved.names, resolved.rank) for axis in axes)
    return f"{word} {numbers} ({'axis' if len(axes) == 1 else 'axes'} {', '.join(map(str, axes))})"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _bytes(number: int) -> str:
    """Bytes in the largest decimal unit that leaves a digit before the point."""
    size, unit = float(number), 0
    while size >= 1000 and unit < 4:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"
