"""From axes to a plan: what the engine will do for arrays of one shape, dtype and layout."""

from gennorm.plan.planner import COMPUTED, ITEMSIZE, Plan, Run, dense_strides, make_plan

__all__ = ["COMPUTED", "ITEMSIZE", "Plan", "Run", "dense_strides", "make_plan"]
