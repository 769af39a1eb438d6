"""Moments of slices that extend over a mapped axis: of `jax.shard_map`, `jax.vmap(axis_name=...)` or `jax.pmap`.

Every device has a part of each slice. All parts of an axis have the same shape, but masks may count any number of
elements in each. Everything here is differentiable: the transpose of a sum over an axis is a sum over the axis.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gennorm.definition import SliceMoments

__all__ = ["MappedAxis", "concatenated", "merged", "shared_mean"]

Array = Any


class MappedAxis(NamedTuple):
    """The name of one or several mapped axes, and groups of indices along it that are merged apart from each other.

    Examples
    --------
    >>> MappedAxis.of("batch")
    MappedAxis(name='batch', groups=None)
    """

    name: Any
    groups: tuple[tuple[int, ...], ...] | None = None

    @classmethod
    def of(cls, name: Any, groups: Any = None) -> MappedAxis | None:
        """Return the axis of these arguments in a form that can be hashed; None where there is no name."""
        if name is None:
            return None
        names = tuple(name) if isinstance(name, list) else name
        return cls(names, None if groups is None else tuple(tuple(map(int, group)) for group in groups))

    def sum(self, values: Array) -> Array:
        """Return the sum over the axis, the same on every device of a group."""
        return lax.psum(values, self.name, axis_index_groups=self.groups)

    def largest(self, values: Array) -> Array:
        """Return the largest of the values along the axis. It has no derivative."""
        return lax.pmax(lax.stop_gradient(values), self.name, axis_index_groups=self.groups)


def shared_mean(part: SliceMoments, axis: MappedAxis) -> Array:
    """Return the mean of every slice, rounded, as a constant without a derivative.

    It is not outside the means of the parts, so that it is exact where all elements are equal.
    """
    constants: Any = lax.stop_gradient(part)
    count, mean, _ = constants
    counted = count > 0
    number, total = axis.sum(jnp.stack([count, jnp.where(counted, count * mean, 0)]))
    bounds = axis.largest(jnp.stack([jnp.where(counted, -mean, -jnp.inf), jnp.where(counted, mean, -jnp.inf)]))
    found = jnp.clip(total / jnp.where(number == 0, 1, number), -bounds[0], bounds[1])
    return jnp.where(number == 0, 0, found)


def merged(part: SliceMoments, axis: MappedAxis) -> SliceMoments:
    r"""Return the moments of whole slices, from those of the parts.

    .. math:: n = \sum n_d, \qquad \mu = \frac1n \sum n_d \mu_d, \qquad
              M = \sum (M_d + n_d \mu_d^2) - n \mu^2

    The means of the parts are small in comparison with the deviations of the elements, because `shared_mean` was
    subtracted from the elements before they were measured. So nothing is cancelled in the last difference.
    """
    count, mean, m2 = part
    if mean is None:  # the sum of squares of the method RMS
        number, total = axis.sum(jnp.stack([count, m2]))
        return SliceMoments(number, None, total)
    counted = count > 0
    moved = jnp.where(counted, count * mean, 0)
    number, added, squares = axis.sum(jnp.stack([count, moved, jnp.where(counted, m2 + moved * mean, 0)]))
    found = added / jnp.where(number == 0, 1, number)
    return SliceMoments(number, found, jnp.maximum(squares - added * found, 0))


def concatenated(moments: SliceMoments, axis: MappedAxis) -> SliceMoments:
    """Return the moments of the slices of all devices, along their first axis, the batch.

    A sum of arrays that are zero but for the part of one device is the same on every device, also for `shard_map`,
    which takes the result of `all_gather` for different ones.
    """
    size, index = lax.axis_size(axis.name), lax.axis_index(axis.name)

    def gathered(values: Array) -> Array:
        whole = jnp.zeros((size, *values.shape), values.dtype)
        whole = axis.sum(whole.at[index].set(values))
        return whole.reshape((size * values.shape[0], *values.shape[1:]))

    return SliceMoments(*(None if one is None else gathered(one) for one in jax.lax.stop_gradient(tuple(moments))))
