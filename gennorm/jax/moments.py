"""Moments as arrays of JAX: count, mean and second moment of every slice."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

import gennorm
from gennorm.definition import SliceMoments

__all__ = ["Moments"]


class Moments(SliceMoments):
    r"""Count :math:`n`, mean :math:`\mu` and second moment :math:`M = \sum w (x - \mu)^2` of slices: a pytree.

    The arrays have one axis for each level that is kept, the batch included, and a grouped level counts its groups.
    They are float64 if ``jax_enable_x64`` is set and else float32. The method RMS has no mean, and its `m2` is the sum
    of squares.

    ``one + other`` are the moments of what is counted in either, `pooled` those of all slices along some axes, and
    `mixed` convex combinations. Derivatives go through all of them.

    Attributes
    ----------
    count : Array
    mean : Array or None
    m2 : Array

    Examples
    --------
    >>> one = Moments(jnp.array([2.0]), jnp.array([1.0]), jnp.array([2.0]))
    >>> both = one + Moments(jnp.array([2.0]), jnp.array([5.0]), jnp.array([2.0]))
    >>> both.mean, both.variance()
    (Array([3.], dtype=float32), Array([5.], dtype=float32))
    """

    __slots__ = ()

    def to_core(self) -> gennorm.Moments:
        """Return the moments as arrays of NumPy, as the layer of the core takes them.

        Examples
        --------
        >>> Moments(jnp.array([2.0]), jnp.array([1.0]), jnp.array([8.0])).to_core()
        Moments(count=[2.], mean=[1.], m2=[8.])
        """
        count, m2 = (np.asarray(one, np.float64) for one in (self.count, self.m2))
        return gennorm.Moments(count, None if self.mean is None else np.asarray(self.mean, np.float64), m2)

    @classmethod
    def from_core(cls, moments: gennorm.Moments) -> Moments:
        """Return moments of the core as arrays of JAX.

        Examples
        --------
        >>> Moments.from_core(gennorm.Moments.from_variance([1.0], [4.0], 2)).m2
        Array([8.], dtype=float32)
        """
        return cls(*(None if one is None else jnp.asarray(one) for one in (moments.count, moments.mean, moments.m2)))
