"""Derivatives of a layer's output: what a call keeps for them, and what they are given back as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gennorm.engine.memory import empty_like
from gennorm.layer.arrays import like_output
from gennorm.layer.parameters import Parameter
from gennorm.layer.statistics import measured
from gennorm.moments import Moments

if TYPE_CHECKING:
    from gennorm.engine.bound import Bound
    from gennorm.engine.shortcut import Shortcut

__all__ = ["Gradients", "Kept", "Merge", "Pullback", "Settled"]

Array = npt.NDArray[Any]
Merge = Callable[[Array], Array]


@dataclass(frozen=True, slots=True, eq=False)
class Gradients:
    """What a pullback gives: the gradient of the input, and those of the parameters that there are.

    Attributes
    ----------
    input : ndarray
        Of the input's shape, in the output's dtype.
    scaling, biases : ndarray or None
        Of the parameters' shape and dtype; None where the parameter is absent.

    Examples
    --------
    >>> import numpy as np
    >>> import gennorm as gn
    >>> y, pullback = gn.layer_norm(3).vjp(np.array([[1.0, 2.0, 4.0]]))
    >>> gradients = pullback(np.array([[1.0, 1.0, 1.0]]))
    >>> gradients.biases
    array([1., 1., 1.], dtype=float32)
    >>> bool(abs(gradients.input.sum()) < 1e-12)
    True
    """

    input: Array
    scaling: Array | None
    biases: Array | None


class Settled(NamedTuple):
    """What plain calls of a layer on arrays of one shape, dtype and layout have in common; see `Shortcut`.

    Examples
    --------
    >>> Settled._fields
    ('shortcut', 'parameters')
    """

    shortcut: Shortcut
    parameters: tuple[Parameter, Parameter]

    def pull(
        self, x: Array, dy: Array, factors: Array, scaling: Array | None
    ) -> tuple[Array, Array | None, Array | None]:
        """The gradients of the input, the scaling and the biases, for a scaling that lies as the layer's own."""
        dx, to_scaling, to_biases = self.shortcut.backward(x, dy, factors, scaling)
        gains, shifts = self.parameters
        return dx, gains.gradient(to_scaling), shifts.gradient(to_biases)


class Kept(NamedTuple):
    """What the derivatives of a call need of it; nobody else changes what it refers to, the input excepted.

    The plan `bound` is that of a new output. `found` is what it measured: rows in its order, or moments it was given.

    Examples
    --------
    >>> Kept._fields[:2]
    ('x', 'bound')
    """

    x: Array
    bound: Bound
    parameters: tuple[Parameter, Parameter]
    scaling: Array | None
    biases: Array | None
    weights: Array | None
    factors: Array
    found: Any
    settled: Settled | None = None  # of the call, where it was a plain one

    @property
    def grouped(self) -> bool:
        """Whether groups of the batch had a part in the moments."""
        return self.bound.plan.config.statistics != "dataset"

    def own(self) -> Kept:
        """The same with a scaling and a mask of its own."""
        weights = self.weights
        if weights is not None:  # what broadcasts to the input is copied before it is broadcast
            once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in weights.strides)
            weights = np.broadcast_to(weights[once].copy(), weights.shape)
        scaling = None if self.scaling is None else self.scaling.copy()
        return self._replace(scaling=scaling, weights=weights)

    def pull(self, dy: Array, merge: Merge | None) -> Gradients:
        """The gradients for one of the output."""
        if self.settled is not None and merge is None:
            return Gradients(*self.settled.pull(self.x, dy, self.factors, self.scaling))
        dx = empty_like(self.x, dy.dtype)
        to_scaling, to_biases = self.bound.backward(
            self.x, dy, dx, self.factors, self.scaling, self.biases, self.weights, merge=merge
        )
        scaling, biases = self.parameters
        return Gradients(dx, scaling.gradient(to_scaling), biases.gradient(to_biases))

    def push(self, dx: Array, merge: Merge | None) -> Array:
        """The derivative of the output along a direction of the input."""
        dy = empty_like(self.x, dx.dtype)
        self.bound.backward(
            self.x, dx, dy, self.factors, self.scaling, self.biases, self.weights, tangent=True, merge=merge
        )
        return dy


class Pullback:
    """From the gradient of an output to the gradients of what it was made of.

    Keeps the input itself, not a copy of it, and four numbers for each slice; no normalized copy. It can be called any
    number of times and from any thread, as long as nobody writes into the input.

    Parameters
    ----------
    kept : Kept
        The call.
    shape, dtype
        Of the output.

    Examples
    --------
    >>> import numpy as np
    >>> import gennorm as gn
    >>> x = np.array([1.0, 2.0, 4.0])
    >>> y, pullback = gn.NormalizationLayer(1, (), epsilon=0).vjp(x)
    >>> pullback(y).scaling
    array(3., dtype=float32)
    """

    __slots__ = ("_dtype", "_kept", "_shape")

    def __init__(self, kept: Kept, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._kept, self._shape, self._dtype = kept, shape, dtype

    @property
    def factors(self) -> Array:
        """All that it keeps of the slices: what `NormalizationLayer.pullback` makes it anew from."""
        return self._kept.factors

    @property
    def moments(self) -> Moments | None:
        """What the input was normalized by, unless that was held by the layer."""
        found = self._kept.found
        return measured(self._kept.bound, found) if isinstance(found, np.ndarray) else found

    def __call__(self, dy: Any, *, merge: Merge | None = None) -> Gradients:
        """Return the gradients for the gradient ``dy`` of the output.

        Parameters
        ----------
        dy : ndarray
            Of the output's shape.
        merge : callable, optional
            Where moments are shared with other arrays: from an array of this one's sums to that of everybody's. Called
            once, with two sums for each slice, of shape ``(2, *shape of the moments)``, in float64.

        Returns
        -------
        Gradients

        Raises
        ------
        ShapeError, InputError, DtypeError
            It is not an array of real numbers of that shape.
        """
        dy = like_output(dy, "the gradient of the output", self._shape, self._dtype)
        if len(self._shape) == self._kept.x.ndim:
            return self._kept.pull(dy, merge)
        found = self._kept.pull(dy[None], merge)  # one example was a batch of one
        return Gradients(found.input[0], found.scaling, found.biases)
