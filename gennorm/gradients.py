"""Derivatives of a layer's output: what a call keeps for them, and what they are given back as."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gennorm.config import LayerConfig
from gennorm.moments import Moments
from gennorm.parameters import Parameter

if TYPE_CHECKING:
    from gennorm.kernels import Bound

__all__ = ["Forward", "Gradients", "Merge", "Pullback", "factors"]

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


@dataclass(frozen=True, slots=True, eq=False)
class Forward:
    """A call that was made, and what its derivatives need of it.

    The plan `back` is that of a new output, as which gradients are laid out; it is `bound` where the output is new.
    The moments are those that it measured or was given, None where the layer holds them. The factors are those of
    `factors`, None where no derivative was asked for.

    Examples
    --------
    >>> "factors" in Forward.__slots__
    True
    """

    x: Array
    y: Array
    bound: Bound
    back: Bound
    given: tuple[Parameter, Parameter]
    scaling: Array | None
    biases: Array | None
    weights: Array | None
    moments: Moments | None
    factors: Any

    def kept(self) -> Forward:
        """What a pullback keeps: no output, and parameters and a mask of its own, which nobody changes."""
        scaling, biases = (None if array is None else array.copy() for array in (self.scaling, self.biases))
        weights = self.weights
        if weights is not None:  # what broadcasts to the input is copied before it is broadcast
            once = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in weights.strides)
            weights = np.broadcast_to(weights[once].copy(), weights.shape)
        return replace(self, y=np.empty(0, self.y.dtype), scaling=scaling, biases=biases, weights=weights)


class Pullback:
    """From the gradient of an output to the gradients of what it was made of.

    Keeps the input itself, not a copy of it, and the moments of its slices; no normalized copy. It can be called any
    number of times and from any thread, as long as nobody writes into the input.

    Parameters
    ----------
    pull : callable
        Does the work, for a gradient whose shape and dtype are right.
    checked : callable
        Brings a gradient to that shape and dtype, or says what is wrong with it.
    factors : ndarray
        All that it keeps of the slices: what `NormalizationLayer.pullback` makes it anew from.
    moments : Moments or None
        What the input was normalized by, unless that was held by the layer.

    Examples
    --------
    >>> import numpy as np
    >>> import gennorm as gn
    >>> x = np.array([1.0, 2.0, 4.0])
    >>> y, pullback = gn.NormalizationLayer(1, (), epsilon=0).vjp(x)
    >>> pullback(y).scaling
    array(3., dtype=float32)
    """

    def __init__(
        self,
        pull: Callable[[Array, Merge | None], Gradients],
        checked: Callable[[Any], Array],
        factors: Array,
        moments: Moments | None,
    ) -> None:
        self._pull, self._checked = pull, checked
        self.factors, self.moments = factors, moments

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
        return self._pull(self._checked(dy), merge)


def factors(config: LayerConfig, moments: Moments, *, through: bool) -> Array:
    r"""Return what the gradient of a slice needs of it: mean, inverse deviation, and the factors of two sums.

    With the deviation :math:`\delta(v)` that is divided by, :math:`r = 1 / \delta`, :math:`n` elements counted and the
    variance over :math:`n` or :math:`n - 1`, the derivative of :math:`g \cdot (x - \mu) r` is

    .. math:: r g_i - \frac{r}{n} \sum g + \frac{2}{n'} \frac{dr}{dv} \left(\sum g (x - \mu)\right) (x_i - \mu)

    where the last two terms come through the statistics, and only then. The method RMS has no middle term.
    """
    center = config.method == "Standardize"
    count = moments.count
    variance = moments.variance(config.unbiased) if center else moments.mean_square()
    mean = moments.mean if center and moments.mean is not None else np.zeros_like(variance)
    epsilon = config.epsilon
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        root = np.sqrt(variance)
        if config.epsilon_placement == "inside":
            divisor = np.sqrt(variance + epsilon)
            slope = -0.5 / divisor**3
        elif config.epsilon_placement == "floor":
            divisor = np.maximum(root, epsilon)
            slope = np.where(root > epsilon, -0.5 / divisor**3, 0.0)
        else:
            divisor = root + epsilon
            slope = np.where(root > 0, -0.5 / (divisor**2 * root), 0.0)
        inverse = np.where(divisor == 0, 0.0, 1 / divisor)
        slope = np.where(divisor == 0, 0.0, slope)
        if not through:
            nothing = np.zeros_like(inverse)
            return np.stack([mean, inverse, nothing, nothing])
        degrees = count - config.unbiased
        added = np.where(count > 0, -inverse / count, 0.0) if center else np.zeros_like(inverse)
        squared = np.where(degrees > 0, 2 * slope / degrees, 0.0)
    return np.stack([mean, inverse, added, squared])
