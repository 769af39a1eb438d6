"""For fronts: what a layer computes as a function of arrays, without a layer that holds parameters or moments.

A front is a package that brings the layer to a framework. It stores parameters and moments itself, passes them to each
call, and stores for the backward pass what the forward pass returns. `Computation` is made from a config and does only
that; its arguments are checked like those of a layer. The other functions that a front needs are named here too.

>>> import numpy as np
>>> import gennorm as gn
>>> computation = Computation.of(gn.layer_norm(4, epsilon=0))
>>> x, ones = np.array([[1.0, 2.0, 4.0, 5.0]]), np.ones(4)
>>> y, kept = computation.forward(x, ones, ones)
>>> kept
array([[ 3.],
       [10.]])
>>> computation.backward(x, y, kept, ones, ones).scaling
array([ 0.33508894, -0.23245553,  1.03245553,  2.86491106])
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gennorm.engine.threads import SHARED, Using
from gennorm.errors import ShapeError
from gennorm.layer import NormalizationLayer
from gennorm.layer.arrays import like_output, mask_for, real, result_dtype
from gennorm.layer.derivatives import Gradients, Merge, Residuals, directions_of, pull_back, push_forward
from gennorm.layer.parameters import Parameter, Parameters
from gennorm.layer.request import check_call, parameters_of, run
from gennorm.layer.request import laid as laid_parameters
from gennorm.layer.state import State
from gennorm.layer.statistics import (
    Given,
    following,
    held_variance,
    initial,
    is_one_example,
    measured,
    require_held,
    required,
    ungrouped,
)
from gennorm.moments import Moments
from gennorm.spec.config import LayerConfig, Resolved, kept_shape, parameter_shape, resolve_config

if TYPE_CHECKING:
    from gennorm.engine.interface import PreparedCall

__all__ = [
    "SHARED",
    "Computation",
    "Given",
    "Gradients",
    "Using",
    "held_variance",
    "initial",
    "is_one_example",
    "kept_shape",
    "parameter_shape",
    "required",
    "resolve_config",
]

Array = npt.NDArray[Any]

FLOAT64 = np.dtype(np.float64)


class Computation:
    """What a layer of some config computes, with everything that varies passed to each call.

    Parameters
    ----------
    config : LayerConfig
        Where its statistics come from does not matter: they are those of the input, or are passed.
    scaling, biases : ndarray, optional
        Used by the calls that pass None. They are not copied: a later call uses what has been written to them.

    Notes
    -----
    All methods take `scaling` and `biases` as arrays of the parameters' shape, or None where one is absent, and a
    `mask` of booleans that broadcasts to the input. `moments` are `Moments`, or `Given` arrays of mean and variance, to
    normalize by in place of the input's; they are constants unless they are `shared`: those of this array and others.

    Examples
    --------
    >>> import gennorm as gn
    >>> computation = Computation.of(gn.rms_norm(2, epsilon=0))
    >>> computation.normalize(np.array([[3.0, 4.0]]), np.array([1.0, 2.0]), None)
    array([[0.84852814, 2.2627417 ]])
    """

    __slots__ = ("_state",)

    def __init__(self, config: LayerConfig, scaling: Array | None = None, biases: Array | None = None) -> None:
        config = replace(config, statistics="input", scaling=None, biases=None)
        self._state = State(config, Parameters(scaling, biases), None)

    @classmethod
    def of(cls, layer: NormalizationLayer) -> Computation:
        """Return what a layer computes."""
        return cls(layer._state.config)

    @property
    def config(self) -> LayerConfig:
        """The settings, without those of parameters."""
        return self._state.config

    def normalize(
        self, x: Array, scaling: Array | None, biases: Array | None, *, mask: Array | None = None, moments: Any = None
    ) -> Array:
        """Return the output."""
        call = self._found(x, scaling, biases, mask) if moments is None else None
        if call is not None:
            y = call.output(x)
            call.normalize(x, y, *call.views)  # type: ignore[misc]
            return y
        request = check_call(self._state, x, scaling=scaling, biases=biases, mask=mask, moments=moments)
        run(request)
        return request.y

    def forward(
        self,
        x: Array,
        scaling: Array | None,
        biases: Array | None,
        *,
        mask: Array | None = None,
        moments: Any = None,
        shared: bool = False,
    ) -> tuple[Array, Array]:
        """Return the output, and what the derivatives need of the slices.

        Returns
        -------
        y : ndarray
        kept : ndarray of float64
            Arrays of the shape of the moments behind an axis of two or three: mean and second moment, with a mask or
            shared moments the count too. Mean and variance where the moments are given.
        """
        call = self._found(x, scaling, biases, mask) if moments is None else None
        if call is not None:
            y = call.output(x)
            return y, call.shaped(call.normalize(x, y, *call.views, keep=True))  # type: ignore[misc, arg-type]
        request = check_call(self._state, x, scaling=scaling, biases=biases, mask=mask, moments=moments, shared=shared)
        rows = run(request, keep=True)
        assert rows is not None
        return request.y, request.new.shaped(rows)

    def backward(
        self,
        x: Array,
        dy: Array,
        kept: Array,
        scaling: Array | None,
        biases: Array | None,
        *,
        mask: Array | None = None,
        given: bool = False,
        merge: Merge | None = None,
    ) -> Gradients:
        """Return the gradients of input, scaling and biases for the gradient ``dy`` of the output.

        Parameters
        ----------
        x, scaling, biases, mask
            What `forward` was called on.
        dy : ndarray
            Of the shape of `x`.
        kept : ndarray
            What `forward` returned.
        given : bool, default False
            Whether the moments were given, so that no gradient goes through them.
        merge : callable, optional
            As `gennorm.layer.Pullback` takes it.

        Raises
        ------
        ShapeError
            `kept` does not belong to such an input.
        GennormError
            As `forward`.
        """
        call = self._found(x, scaling, biases, mask, given)
        if call is not None and type(dy) is np.ndarray and (dy.shape, dy.dtype) == (x.shape, result_dtype(x.dtype)):
            shape = call.plan.resolved.moments_shape
            if type(kept) is np.ndarray and kept.dtype == FLOAT64 and kept.shape == (2, *shape):
                own, views = self._state.parameters, call.views
                parameters = Parameter(own.scaling, False), Parameter(own.biases, False)
                rows = call.ordered(kept)
                return pull_back(Residuals(x, call, parameters, views[0], None, rows, not given, given), dy, merge)  # type: ignore[index]
        state = self._kept(x, kept, scaling, biases, mask, given)
        return pull_back(
            state, like_output(dy, "the gradient of the output", x.shape, result_dtype(state.x.dtype)), merge
        )

    def tangent(
        self,
        x: Array,
        dx: Array | None,
        kept: Array,
        scaling: Array | None,
        biases: Array | None,
        dscaling: Array | None,
        dbiases: Array | None,
        *,
        mask: Array | None = None,
        given: bool = False,
        merge: Merge | None = None,
    ) -> Array:
        """Return the derivative of the output along directions of input, scaling and biases; None is no direction."""
        state = self._kept(x, kept, scaling, biases, mask, given)
        if dx is not None:
            dx = like_output(dx, "the direction", x.shape, result_dtype(state.x.dtype))
        directions = directions_of(self._state, state.x, given, dscaling, dbiases)
        return push_forward(self._state, state, dx, directions, merge)

    def measure(self, x: Array, mask: Array | None = None) -> Moments:
        """Return the moments of the slices."""
        x = real(x, "the input")
        call = self._state.calls.find(x, False)
        return measured(call, call.measure(x, None if mask is None else mask_for(mask, x)))

    def resolve(self, shape: tuple[int, ...], *, given: bool = False, cached: bool = True) -> Resolved:
        """Return what the config means for an array of a shape, whose moments are its own or `given` ones."""
        config = self.config
        if given and (config.unbiased or config.group_number is not None):
            config = replace(ungrouped(config, shape), statistics="dataset")
        return resolve_config(config, shape, cached=cached)

    def require_parameters(
        self, resolved: Resolved, scaling: tuple[int, ...] | None, biases: tuple[int, ...] | None
    ) -> None:
        """Refuse parameters of another shape than an array needs.

        Raises
        ------
        ParameterError
            A shape is not `resolved.parameter_shape`; the error names the level and both sizes.
        """
        if scaling in {None, resolved.parameter_shape} and biases in {None, resolved.parameter_shape}:
            return
        empty = (None if shape is None else np.broadcast_to(np.float32(0), shape) for shape in (scaling, biases))
        Parameters(*empty).require_fitting(resolved)

    def moments(self, shape: tuple[int, ...], kept: Array) -> Moments:
        """Return the moments that an array of a shape was normalized by, from what `forward` returned."""
        mean, spread, *counted = kept
        resolved = _resolved(self.config, shape)
        count = counted[0] if counted else np.full(resolved.moments_shape, float(resolved.count))
        return Moments.trusted(count, mean if self.config.method == "Standardize" else None, spread)

    def fold(
        self,
        mean: Array | None,
        variance: Array,
        moments: Moments,
        shape: tuple[int, ...],
        momentum: float,
        *,
        unbiased: bool = False,
    ) -> tuple[Array | None, Array]:
        """Return the moving mean and variance, as float64, after the moments of an array of a shape are folded in.

        Raises
        ------
        ParameterError
            The moving moments are of other slices than the array.
        """
        config = self.config if self.config.momentum == momentum else replace(self.config, momentum=momentum)
        resolved = _resolved(self.config, shape)
        require_held(variance, resolved)
        wide = None if mean is None else mean.astype(np.float64)
        return following(wide, variance.astype(np.float64), moments, resolved, config, unbiased=unbiased)

    def _found(self, x: Any, scaling: Any, biases: Any, mask: Any, given: bool = False) -> PreparedCall | None:
        """Return the prepared call of an array like a former one, without a mask and with the own parameters.

        Nothing is left to check in such a call. A small one takes half as long this way.
        """
        if type(x) is not np.ndarray or scaling is not None or biases is not None or mask is not None:
            return None
        call = self._state.calls.found.get((x.shape, x.strides, x.dtype, given))
        return None if call is None or call.views is None else call

    def _kept(
        self, x: Array, kept: Any, scaling: Array | None, biases: Array | None, mask: Array | None, given: bool
    ) -> Residuals:
        """Return what derivatives need, from what a front kept; everything is checked, since kernels check nothing."""
        state, x = self._state, real(x, "the input")
        call = state.calls.find(x, given)
        weights = None if mask is None else mask_for(mask, x)
        shape = call.plan.resolved.moments_shape
        allowed = {(2, *shape)} if given else {(2, *shape), (3, *shape)}
        if not isinstance(kept, np.ndarray) or kept.shape not in allowed or kept.dtype.name != "float64":
            has = f"{kept.dtype} of shape {kept.shape}" if isinstance(kept, np.ndarray) else type(kept).__name__
            msg = f"what was kept is {has}, and that of an input of shape {x.shape} is float64 of shape {(2, *shape)}"
            msg += "\npass what forward returned for this input"
            raise ShapeError(msg, code="S023")
        parameters = parameters_of(state, call, scaling, biases)
        per_example = parameters[0].per_example or parameters[1].per_example
        if per_example:
            call = state.calls.find(x, given, per_example=True)
        gains, _ = laid_parameters(call, parameters, per_example)
        rows = call.ordered(kept.astype(np.float64, copy=False))
        return Residuals(x, call, parameters, gains, weights, rows, not given, given)


_resolved = functools.lru_cache(1024)(resolve_config)
