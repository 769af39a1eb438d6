"""The layer: settings and parameters, and the calls that bring arrays to the engine and back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gennorm.engine import bind
from gennorm.engine.memory import copied, empty_like
from gennorm.engine.threads import changing
from gennorm.errors import (
    ConfigError,
    InitializationError,
    OutputError,
    ParameterError,
    ShapeError,
    shown,
    suggest,
)
from gennorm.layer import files
from gennorm.layer.arrays import (
    dtype_given,
    dtype_name,
    dtype_named,
    in_range,
    like_output,
    mask_for,
    parameter_values,
    real,
    result_dtype,
    shape_of,
    writable,
)
from gennorm.layer.derivatives import Gradients, Kept, Merge, Pullback, Settled
from gennorm.layer.hints import checked_arguments, unknown_attribute
from gennorm.layer.parameters import Parameter, together
from gennorm.layer.statistics import (
    applicable,
    checked,
    folded,
    held,
    held_shape,
    initial,
    is_one_example,
    measured,
    require_dataset,
    require_held,
    require_inverse,
    required,
    ungrouped,
    used,
)
from gennorm.moments import Moments
from gennorm.plan import Plan, make_plan
from gennorm.spec import config as configs
from gennorm.spec import levels
from gennorm.spec.config import LayerConfig, Resolved, resolve_config

if TYPE_CHECKING:
    from gennorm.engine.bound import Bound


__all__ = ["Information", "NormalizationLayer", "load"]

Array = npt.NDArray[Any]

REMEMBERED = 256  # layouts a layer keeps a plan for
PARAMETERS = ("scaling", "biases")
INITIAL = {"scaling": 1, "biases": 0}


class NormalizationLayer:
    r"""A layer that normalizes over any levels, with parameters on any levels.

    .. math:: y = s \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + b
              \qquad\text{or, with method "RMS",}\qquad
              y = s \frac{x}{\sqrt{\overline{x^2} + \epsilon}} + b

    The mean :math:`\mu` and the variance :math:`\sigma^2` are taken over the aggregation levels, separately for every
    position on the other levels; scaling :math:`s` and biases :math:`b` have one value for each position on the scaling
    levels. Level 1 is the first dimension of one example, negative levels count from the last, level 0 is the batch.

    Parameters
    ----------
    aggregation_levels : int, str or sequence, default "2;;All"
        A level, a span such as ``"2;;All"`` or ``"0;;-2"``, several of them, or the text ``"{1, 3;;4}"``.
    scaling_levels : int, str or sequence, default "Complement"
        The same, or ``"Same"``, or ``"Complement"``: every level of an example that is not aggregated. ``()`` is one
        scalar parameter.
    group_number : int, sequence or mapping, optional
        Into how many groups an aggregated level is split, each normalized by itself: an int where one level is
        aggregated, one int for each aggregation level, or ``{level: groups}``.
    method : {"Standardize", "RMS"}
        Whether the mean is subtracted and the deviation divided by, or the root mean square.
    unbiased : bool, default False
        Divide the sum of squared deviations by the number of elements minus one.
    epsilon : float, default 1e-3
        Keeps the divisor away from 0.
    scaling, biases : "Automatic", None or array_like
        Ones and zeros once their shape is known, absent, or these values.
    input_shape : tuple, optional
        Shape of one example: sizes, None for one that varies, one ``...`` for any number of levels.
    batched : bool, optional
        Whether arrays are batches of examples, where their rank does not say it. One example if not given.
    dtype : {"float32", "float64", "float16", "bfloat16"}
        Type of the parameters.
    statistics : {"input", "moving", "dataset"}
        Where mean and variance come from.
    momentum : float, default 0.99
        What the moving moments keep of themselves in an update.
    trainable : bool, default True
        Whether anything of the layer may change in training.
    epsilon_placement : {"inside", "floor", "outside"}
        :math:`\sqrt{v + \epsilon}`, :math:`\max(\sqrt{v}, \epsilon)` or :math:`\sqrt{v} + \epsilon`.
    learning_rate_multipliers : float or mapping, optional
        For optimizers that ask; kept and reported.

    Raises
    ------
    GennormError
        Anything about the arguments is wrong; the message says what, and what is allowed.

    See Also
    --------
    gennorm.batch_norm, gennorm.layer_norm, gennorm.rms_norm, gennorm.instance_norm, gennorm.group_norm

    References
    ----------
    Wolfram Research, "NormalizationLayer", Wolfram Language function, 2019, updated 2025.

    Examples
    --------
    Instance normalization of an example with three channels, and of a batch of them:

    >>> import numpy as np
    >>> import gennorm as gn
    >>> layer = gn.NormalizationLayer(input_shape=(3, None, None))
    >>> x = np.random.default_rng(0).normal(5, 2, (3, 8, 8))
    >>> y = layer(x)
    >>> np.allclose(y.mean((1, 2)), 0), np.allclose(y.std((1, 2)), 1, atol=1e-3)
    (True, True)
    >>> np.array_equal(layer(np.stack([x, 2 * x]))[0], y)
    True
    """

    @checked_arguments("NormalizationLayer")
    def __init__(
        self,
        aggregation_levels: Any = "2;;All",
        scaling_levels: Any = "Complement",
        group_number: Any = None,
        method: str = "Standardize",
        unbiased: bool = False,
        epsilon: float = 1e-3,
        *,
        scaling: Any = "Automatic",
        biases: Any = "Automatic",
        input_shape: Any = None,
        batched: bool | None = None,
        dtype: Any = "float32",
        statistics: str = "input",
        momentum: float = 0.99,
        trainable: bool = True,
        epsilon_placement: str = "inside",
        learning_rate_multipliers: Any = None,
    ) -> None:
        config = LayerConfig.make(
            aggregation_levels,
            scaling_levels,
            group_number,
            method,
            unbiased,
            epsilon,
            scaling=_mode("scaling", scaling),
            biases=_mode("biases", biases),
            input_shape=input_shape,
            batched=batched,
            dtype=dtype,
            statistics=statistics,
            momentum=momentum,
            trainable=trainable,
            epsilon_placement=epsilon_placement,
            learning_rate_multipliers=learning_rate_multipliers,
        )
        self._begin(config, {"scaling": scaling, "biases": biases})

    def _begin(self, config: LayerConfig, given: Mapping[str, Any]) -> None:
        self._config = config
        self._bound: dict[Any, Bound] = {}
        self._shortcuts: dict[Any, Settled | None] = {}
        self._parameters: dict[str, Array | None] = dict.fromkeys(PARAMETERS)
        self._held = initial(config, configs.kept_shape(config))
        for name in PARAMETERS:
            if getattr(config, name) == "explicit":
                self._parameters[name] = self._checked(name, given[name])
        with suppress(InitializationError):  # a size that is not known yet: a call will say which
            self._fill(self._known_shape())

    # Calling it ------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        x: Any,
        *,
        training: bool = False,
        mask: Array | None = None,
        scaling: Any = None,
        biases: Any = None,
        moments: Moments | tuple[Array | None, Array] | None = None,
        out: Array | None = None,
    ) -> Any:
        """Normalize an example, or every example of a batch as if it were alone.

        Parameters
        ----------
        x : ndarray, or list of ndarray
            An array of the layer's `input_shape`, or with one axis more, a batch. A list is answered by a list.
        training : bool, default False
            Whether moving moments are set aside for the input's, and learn from them.
        mask : ndarray of bool, optional
            Broadcasts to the input; what is True counts in the statistics. Everything is normalized.
        scaling, biases : array_like, optional
            For this call instead of the layer's own: of the shape of the parameters, or with an axis for the examples
            of the batch before it.
        moments : Moments, or tuple of ndarray, optional
            What to normalize by instead of anything else, as in `apply`; groups of the batch have no part in them. A
            mean, None with method RMS, and a variance are used as they are.
        out : ndarray, optional
            Where to write the output; `x` itself will do. It has the shape and the dtype of the output.

        Returns
        -------
        ndarray
            Of the shape and the memory order of `x`. Floating input gives its own dtype, booleans and integers of up
            to 16 bits give float32, wider ones float64.

        Raises
        ------
        InitializationError
            The shape of a parameter is not known yet.
        ShapeError, ParameterError
            The array fits neither `input_shape` nor the parameters, or the mask does not fit the array.
        InputError, DtypeError
            The input is not a NumPy array of real numbers.
        OutputError
            `out` cannot take the output; it has not been touched.

        Examples
        --------
        >>> import numpy as np
        >>> import gennorm as gn
        >>> layer = gn.NormalizationLayer(1, scaling=None, biases=None, epsilon=0)
        >>> layer(np.array([1.0, 2.0, 3.0]))
        array([-1.22474487,  0.        ,  1.22474487])
        >>> layer(np.array([1.0, 2.0, 3.0]), mask=np.array([True, False, True]))
        array([-1.,  0.,  1.])
        """
        plain = mask is None and scaling is None and biases is None and out is None
        own = moments is None
        if plain and type(x) is np.ndarray and not (training and self._learns(training)):
            try:
                found = self._shortcuts[x.shape, x.strides, x.dtype, own]
            except KeyError:
                found = None
            if found is not None:
                if own:
                    return found.shortcut.normalize(x)
                applied = found.shortcut.apply(x, *used(moments, self._config))
                if applied is not None:
                    return applied[0]
        if isinstance(x, (list, tuple)) and all(isinstance(example, np.ndarray) for example in x):
            if not (plain and own):
                msg = "out, mask, scaling, biases and moments cannot be given for a list of arrays\n"
                msg += "call the layer on one array at a time"
                raise OutputError(msg, code="O001")
            return [self(example, training=training) for example in x]
        if self._is_one(x):
            y = self(x[None], mask=mask, scaling=scaling, biases=biases, moments=moments, out=_of_one(out))
            return y[0] if out is None else out
        y, _ = self._forward(x, training, mask, scaling, biases, out, moments=moments)
        if plain and not (own and self._learns(training)):
            self._remember(x, own=own)
        return y if out is None else out

    def vjp(
        self,
        x: Any,
        *,
        training: bool = False,
        mask: Array | None = None,
        scaling: Any = None,
        biases: Any = None,
        moments: Moments | None = None,
        shared: bool = False,
    ) -> tuple[Array, Pullback]:
        """Return the output, and a function from its gradient to those of the input and the parameters.

        Parameters
        ----------
        x : ndarray
            An example or a batch.
        training, mask, scaling, biases
            As in a call.
        moments : Moments, optional
            What to normalize by instead of anything else, as in `apply`; groups of the batch have no part in them.
        shared : bool, default False
            Whether `moments` are those of `x` and of other arrays together, so that the derivative goes through them;
            they are constants otherwise. The pullback is then told how to `merge` its sums with those of the others.

        Returns
        -------
        y : ndarray
            The output.
        pullback : Pullback
            Called with the gradient of the output it returns `Gradients`: through the input's statistics where they
            are used, not through moments that the layer holds.

        Raises
        ------
        GennormError
            As in a call.

        Examples
        --------
        >>> import numpy as np
        >>> import gennorm as gn
        >>> layer = gn.layer_norm(4)
        >>> y, pullback = layer.vjp(np.array([[1.0, 2.0, 4.0, 8.0]]))
        >>> gradients = pullback(np.array([[1.0, 0.0, 0.0, 0.0]]))
        >>> gradients.biases
        array([1., 0., 0., 0.], dtype=float32)
        """
        plain = mask is None and scaling is None and biases is None and not shared and type(x) is np.ndarray
        found = self.settled(x, given=moments is not None) if plain else None
        if found is not None:
            if moments is None:
                y, rows, factors = found.shortcut.keep(x)
                return y, Pullback(_kept(x, found, factors, rows, own=True), y.shape, y.dtype)
            applied = found.shortcut.apply(x, *used(moments, self._config))
            if applied is not None:
                y, factors = applied
                return y, Pullback(_kept(x, found, factors, moments, own=True), y.shape, y.dtype)
        one = self._is_one(x)
        y, kept = self._forward(
            x[None] if one else x, training, mask, scaling, biases, None, keep=True, moments=moments, shared=shared
        )
        if plain and not one and (moments is not None or self._config.statistics == "input"):
            self._remember(x, own=moments is None)
        y = y[0] if one else y
        return y, Pullback(kept.own(), y.shape, y.dtype)

    def pullback(
        self, x: Any, factors: Array, *, mask: Array | None = None, scaling: Any = None, biases: Any = None
    ) -> Pullback:
        """Return the pullback of an earlier `vjp` on the same array again, from what it kept of the slices.

        For those who keep inputs themselves, or let go of them and make them anew, as frameworks do.

        Parameters
        ----------
        x : ndarray
            What `vjp` was called on.
        factors : ndarray
            The `factors` of the pullback that it returned.
        mask, scaling, biases
            What it was given; kept as they are, not copied.

        Returns
        -------
        Pullback

        Raises
        ------
        ShapeError
            The factors are not those of such an array.
        GennormError
            As in a call.

        Examples
        --------
        >>> import numpy as np
        >>> import gennorm as gn
        >>> layer, x = gn.layer_norm(4), np.array([[1.0, 2.0, 4.0, 8.0]])
        >>> y, pullback = layer.vjp(x)
        >>> again = layer.pullback(x.copy(), pullback.factors)
        >>> bool(np.array_equal(again(y).input, pullback(y).input))
        True
        """
        plain = mask is None and scaling is None and biases is None and type(x) is type(factors) is np.ndarray
        found = self.settled(x) or self.settled(x, given=True) if plain else None
        if found is not None and found.shortcut.fits(factors):
            return Pullback(_kept(x, found, factors), x.shape, result_dtype(x.dtype))
        x = real(x, "the input")
        weights = None if mask is None else mask_for(mask, x)
        bound = self._bind(x, None)
        # Where they have another shape, groups of the batch had no part in the moments.
        shape = getattr(factors, "shape", None)
        grouped = shape == (4, *bound.plan.resolved.moments_shape)
        if not grouped:
            bound = self._bind(x, None, grouped=False)
        expected = (4, *bound.plan.resolved.moments_shape)
        if not isinstance(factors, np.ndarray) or factors.dtype != np.float64 or shape != expected:
            kind = f"{factors.dtype} of shape {shape}" if isinstance(factors, np.ndarray) else type(factors).__name__
            msg = f"the factors are {kind}, and those of an input of shape {x.shape} are float64 of shape {expected}\n"
            msg += "pass the factors of the pullback that vjp returned for this input"
            raise ShapeError(msg, code="S023")
        parameters = self._ready(bound.plan.resolved, scaling, biases)
        per_example, scaling, biases = together(parameters, bound.plan.resolved)
        if per_example:
            bound = self._bind(x, None, grouped=grouped, per_example=True)
        kept = Kept(x, bound, parameters, scaling, biases, weights, factors, None)
        return Pullback(kept, x.shape, result_dtype(x.dtype))

    def jvp(
        self,
        x: Any,
        dx: Any,
        *,
        training: bool = False,
        mask: Array | None = None,
        scaling: Any = None,
        biases: Any = None,
        dscaling: Any = None,
        dbiases: Any = None,
        moments: Moments | None = None,
        shared: bool = False,
        merge: Merge | None = None,
    ) -> tuple[Array, Array]:
        """Return the output, and its derivative along a direction of the input and of the parameters.

        Parameters
        ----------
        x, dx : ndarray
            An example or a batch, and a direction of its shape; None for one that stays what it is.
        training, mask, scaling, biases
            As in a call.
        dscaling, dbiases : array_like, optional
            Directions of the parameters, of their shape.
        moments, shared
            As in `vjp`.
        merge : callable, optional
            As for a pullback.

        Returns
        -------
        y, dy : ndarray

        Raises
        ------
        GennormError
            As in a call.

        Examples
        --------
        >>> import numpy as np
        >>> import gennorm as gn
        >>> x = np.array([1.0, 2.0, 4.0])
        >>> y, dy = gn.NormalizationLayer(1, (), epsilon=0).jvp(x, x)
        >>> bool(abs(dy).max() < 1e-12)  # scaling the input does not change the output
        True
        """
        one = self._is_one(x)
        y, kept = self._forward(
            x[None] if one else x, training, mask, scaling, biases, None, keep=True, moments=moments, shared=shared
        )
        direction = np.zeros_like(y) if dx is None else like_output(dx, "the direction", x.shape, y.dtype)
        dy = kept.push(direction[None] if one and dx is not None else direction, merge)
        if dscaling is not None or dbiases is not None:
            dy += self._along_parameters(kept, dscaling, dbiases, y.dtype)
        return (y[0], dy[0]) if one else (y, dy)

    def _along_parameters(self, kept: Kept, dscaling: Any, dbiases: Any, dtype: np.dtype[Any]) -> Array:
        """What directions of the parameters add to the output's: it is linear in them, so the output that they give."""
        x = kept.x
        resolved = self._bind(x, None, grouped=kept.grouped).plan.resolved  # not that of parameters for each example
        given = [
            Parameter.given("dscaling", np.zeros(np.shape(dbiases)) if dscaling is None else dscaling, resolved),
            Parameter(None, False) if dbiases is None else Parameter.given("dbiases", dbiases, resolved),
        ]
        per_example, gains, shifts = together(given, resolved)
        added = empty_like(x, dtype)
        bound = self._bind(x, None, grouped=kept.grouped, per_example=per_example)
        bound.apply(x, added, bound.ordered(kept.factors[:2]), gains, shifts)
        return added

    def second(
        self,
        x: Any,
        dy: Any,
        along: Gradients,
        *,
        training: bool = False,
        mask: Array | None = None,
        scaling: Any = None,
        biases: Any = None,
        moments: Moments | None = None,
        shared: bool = False,
        merge: Merge | None = None,
    ) -> tuple[Array, Gradients]:
        """Differentiate what a pullback gives: a second derivative, as a penalty on a gradient needs it.

        Parameters
        ----------
        x, dy : ndarray
            What `vjp` is called on, and the gradient its pullback is.
        along : Gradients
            The gradient of whatever is differentiated by the three gradients of the pullback; None for one that has no
            part in it.
        training, mask, scaling, biases, moments, shared
            As in `vjp`; nothing is learned from the input once more.
        merge : callable, optional
            As for a pullback; here it is given seven sums for each slice.

        Returns
        -------
        ddy : ndarray
            The gradient by `dy`.
        gradients : Gradients
            Those by the input and the scaling; the biases have no part in it, and theirs is None.

        Raises
        ------
        GennormError
            As in a call.

        Examples
        --------
        How the squared length of a gradient changes with the input, beside a small step:

        >>> import numpy as np
        >>> import gennorm as gn
        >>> layer, x, dy = gn.layer_norm(3), np.array([1.0, 2.0, 4.0]), np.array([1.0, 0.0, 0.0])
        >>> def length(x):
        ...     return (layer.vjp(x)[1](dy).input ** 2).sum()
        >>> found = layer.vjp(x)[1](dy)
        >>> _, gradients = layer.second(x, dy, gn.layer.Gradients(2 * found.input, None, None))
        >>> step = np.array([0.0, 1e-6, 0.0])
        >>> bool(abs((length(x + step) - length(x - step)) / 2e-6 - gradients.input[1]) < 1e-8)
        True
        """
        from gennorm.layer.second import second

        if self._is_one(x):
            along = along if along.input is None else replace(along, input=along.input[None])
            ddy, found = self.second(
                x[None], dy[None], along, mask=mask, scaling=scaling, biases=biases, moments=moments
            )
            return ddy[0], replace(found, input=found.input[0])
        x = real(x, "the input")
        result = result_dtype(x.dtype)
        dy = like_output(dy, "the gradient of the output", x.shape, result)
        if along.input is not None:
            along = replace(along, input=like_output(along.input, "the direction", x.shape, result))
        weights = None if mask is None else mask_for(mask, x)
        through = shared or self._measures(training, moments)
        resolved = self._bind(x, None, grouped=through and not shared).plan.resolved
        own, _ = self._ready(resolved, scaling, biases)
        config = self._config
        if not through:
            given = self._applied(moments, resolved)
            config, moments = replace(config, unbiased=False), Moments.from_variance(*given)
        elif moments is None:
            moments = self.measure(x, mask)
        ddy, dx, to_scaling = second(
            config, resolved, moments, x, dy, along, own.own, weights, through=through, merge=merge
        )
        ddy, dx = (np.asarray(array, result) for array in (ddy, dx))
        return ddy, Gradients(dx, own.gradient(to_scaling), None)

    def _forward(
        self,
        x: Any,
        training: bool,
        mask: Array | None,
        scaling: Any,
        biases: Any,
        out: Array | None,
        *,
        keep: bool = False,
        moments: Any = None,
        shared: bool = False,
    ) -> tuple[Array, Any]:
        """Compute the output, and what its derivatives need if that is to be kept."""
        x = real(x, "the input")
        weights = None if mask is None else mask_for(mask, x)
        learns = moments is None and self._learns(training)
        grouped = self._measures(training, moments)
        # Weights and gradients are laid out as a new output would be.
        bound = back = self._bind(x, None, grouped=grouped)
        resolved = back.plan.resolved
        if learns:
            self._require_learnable(resolved)
        given = None if grouped else self._instead(moments, back)
        parameters = self._ready(resolved, scaling, biases)
        per_example, scaling, biases = together(parameters, resolved)
        if per_example:
            bound = back = self._bind(x, None, grouped=grouped, per_example=True)
        if out is None:
            y = empty_like(x, result_dtype(x.dtype))
        else:
            y = writable(out, x, {"scaling": scaling, "biases": biases})
            bound = self._bind(x, y, grouped=grouped, per_example=per_example)

        rows: Array
        if given is not None:
            rows = given
            bound.apply(x, y, rows if bound is back else bound.ordered(back.shaped(rows)), scaling, biases)
        elif weights is None:
            rows = bound.normalize(x, y, scaling, biases, keep=keep or learns)
        else:
            rows = back.measure(x, weights)
            given = np.stack(applicable(measured(back, rows), resolved, self._config))
            bound.apply(x, y, bound.ordered(given), scaling, biases)
        kept = None
        if keep:
            if shared and moments is not None:
                mean = np.zeros(moments.shape) if moments.mean is None else moments.mean
                shape = (3, *resolved.moments_shape)
                factors = back.factors(
                    back.ordered(np.broadcast_to(np.stack([mean, moments.m2, moments.count]), shape))
                )
            else:
                factors = back.factors(rows, given=not grouped)
            found = rows if grouped else moments
            kept = Kept(x, back, parameters, scaling, biases, weights, factors, found)
        if learns:
            self._learn(measured(bound if weights is None else back, rows), resolved)
        return y, kept

    def _measures(self, training: bool, moments: Any) -> bool:
        """Whether a call normalizes by the moments of its input."""
        return moments is None and (self._config.statistics == "input" or self._learns(training))

    def _applied(self, moments: Any, resolved: Resolved) -> tuple[Array, Array]:
        """Mean and variance of every slice that are applied instead of the input's: those given, else those held."""
        if moments is None:
            return held(self._held, resolved)
        return applicable(moments, resolved, self._config)

    def _instead(self, moments: Any, bound: Bound) -> Array:
        """The same as rows, in the order of a plan."""
        return bound.ordered(np.stack(self._applied(moments, bound.plan.resolved)))

    def _is_one(self, x: Any) -> bool:
        """Whether this is one example to a layer that knows the moments of batches: a batch of one."""
        if self._config.statistics != "dataset" or not isinstance(x, np.ndarray):
            return False
        return _key(x, None, False, False) not in self._bound and is_one_example(self._config, x.shape)

    def measure(self, x: Any, mask: Array | None = None) -> Moments:
        """Return the moments of the slices of an array: what the layer would normalize it by.

        Parameters
        ----------
        x : ndarray
            An example or a batch.
        mask : ndarray of bool, optional
            Broadcasts to the input; what is True counts.

        Returns
        -------
        Moments
            One axis for each level that is kept, the batch included; a grouped level counts its groups. With method
            "RMS" the mean is None.

        Raises
        ------
        GennormError
            As in a call.

        Examples
        --------
        >>> import numpy as np
        >>> import gennorm as gn
        >>> gn.NormalizationLayer(-1).measure(np.array([[1.0, 3.0], [2.0, 2.0]]))
        Moments(count=[2., 2.], mean=[2., 2.], m2=[2., 0.])
        """
        x = real(x, "the input")
        if self._is_one(x):
            return self.measure(x[None], mask)
        weights = None if mask is None else mask_for(mask, x)
        bound = self._bind(x, None)
        return measured(bound, bound.measure(x, weights))

    def apply(self, x: Any, moments: Moments, *, out: Array | None = None) -> Any:
        """Normalize an array by moments that are given instead of its own.

        Parameters
        ----------
        x : ndarray
            An example or a batch.
        moments : Moments
            One mean and variance for each slice of `x`, or fewer that broadcast to that shape.
        out : ndarray, optional
            Where to write the output; `x` itself will do.

        Returns
        -------
        ndarray

        Raises
        ------
        ParameterError
            The moments do not fit the slices of `x`.
        GennormError
            As in a call.

        Examples
        --------
        >>> import numpy as np
        >>> import gennorm as gn
        >>> layer = gn.NormalizationLayer(1, (), epsilon=0)
        >>> layer.apply(np.array([1.0, 2.0, 3.0]), gn.Moments.from_variance(1.0, 4.0))
        array([0. , 0.5, 1. ])
        """
        x = real(x, "the input")
        if self._is_one(x):
            y = self.apply(x[None], moments, out=_of_one(out))
            return y[0] if out is None else out
        resolved = self._bind(x, None).plan.resolved
        scaling, biases = (parameter.own for parameter in self._ready(resolved))
        mean, variance = applicable(moments, resolved, self._config)
        y = empty_like(x, result_dtype(x.dtype)) if out is None else writable(out, x, self._parameters)
        bound = self._bind(x, None if out is None else y)
        bound.apply(x, y, bound.ordered(np.stack([mean, variance])), scaling, biases)
        return y if out is None else out

    def inverse(self, y: Any, moments: Moments | None = None, *, out: Array | None = None) -> Any:
        r"""Return the input whose normalization an array is.

        .. math:: x = \frac{y - b}{s} \sqrt{\sigma^2 + \epsilon} + \mu

        Parameters
        ----------
        y : ndarray
            An output of the layer.
        moments : Moments, optional
            What the input was normalized by; those that the layer holds, if not given.
        out : ndarray, optional
            Where to write it; `y` itself will do.

        Returns
        -------
        ndarray
            Where the divisor is 0, the mean: the output knew no more of the input.

        Raises
        ------
        ParameterError
            A scaling is 0; there are no moments, or they do not fit the slices of `y`.
        GennormError
            As in a call.

        Examples
        --------
        >>> import numpy as np
        >>> import gennorm as gn
        >>> layer = gn.NormalizationLayer(1, (), input_shape=(None,), epsilon=0)
        >>> layer.inverse(np.array([0.0, 0.5, 1.0]), gn.Moments.from_variance(1.0, 4.0))
        array([1., 2., 3.])
        """
        y = real(y, "the output to invert")
        require_inverse(self._config, moments, self._parameters["scaling"])
        if self._is_one(y):
            x = self.inverse(y[None], moments, out=_of_one(out))
            return x[0] if out is None else out
        grouped = moments is not None
        resolved = self._bind(y, None, grouped=grouped).plan.resolved
        scaling, biases = (parameter.own for parameter in self._ready(resolved))
        mean, variance = self._applied(moments, resolved)
        x = empty_like(y, result_dtype(y.dtype)) if out is None else writable(out, y, self._parameters)
        bound = self._bind(y, None if out is None else x, grouped=grouped)
        bound.invert(y, x, bound.ordered(np.stack([mean, variance])), scaling, biases)
        return x if out is None else out

    def plan(self, shape_or_array: Any, dtype: Any = None) -> Plan:
        """Return what the engine will do for arrays of one shape, dtype and layout. Print it.

        Parameters
        ----------
        shape_or_array : tuple of int or ndarray
            A shape, taken in C order, or an array, whose layout and dtype count.
        dtype : dtype, optional
            For a shape, and only for one: an array has its own. float32 if not given.

        Returns
        -------
        Plan

        Raises
        ------
        DtypeError
            No such dtype, or one that is not normalized.
        ConfigError
            A dtype besides an array.
        GennormError
            The shape does not fit the layer.

        Examples
        --------
        >>> import gennorm as gn
        >>> print(gn.layer_norm(768).plan((8, 128, 768)))
        array      float32 (8, 128, 768), one example
        aggregates level 3 (axis 2): 1,024 slices of 768 elements
        groups     none
        scales     level 3 (axis 2): scaling (768,), biases (768,)
        moments    (8, 128), float64
        runs       1024 kept x 768 aggregated
        kernel     rows, float32 arithmetic
        memory     1 read, 1 write: 3.15 MB read, 3.15 MB written
        parallel   1,024 tasks
        """
        if isinstance(shape_or_array, np.ndarray):
            x = real(shape_or_array, "the input")
            if dtype is not None:
                msg = (
                    f"dtype is given, and so is an array, which is of {x.dtype.name}\npass x.astype(dtype), or x.shape"
                )
                raise ConfigError(msg, code="C103")
            return make_plan(self._config, x.shape, x.dtype.name, x.strides)
        shape = shape_of(shape_or_array)
        return make_plan(self._config, shape, dtype_name(dtype_given("float32" if dtype is None else dtype)))

    # Parameters ------------------------------------------------------------------------------------------------------

    @property
    def scaling(self) -> Any:
        """Return the scaling: an array, None where it is absent, "Automatic" where its shape is not known yet.

        The array is the layer's own: what is written into it counts in the next call.

        Examples
        --------
        >>> import gennorm as gn
        >>> layer = gn.layer_norm(3)
        >>> layer.scaling
        array([1., 1., 1.], dtype=float32)
        >>> layer.scaling = [1, 2, 3]
        >>> layer.scaling -= 1
        >>> layer.scaling
        array([0., 1., 2.], dtype=float32)
        """
        return self._value("scaling")

    @scaling.setter
    def scaling(self, value: Any) -> None:
        self._set("scaling", value)

    @property
    def biases(self) -> Any:
        """Return the biases: an array, None where they are absent, "Automatic" where their shape is not known yet.

        The array is the layer's own: what is written into it counts in the next call.

        Examples
        --------
        >>> import gennorm as gn
        >>> gn.layer_norm(3).biases
        array([0., 0., 0.], dtype=float32)
        >>> gn.rms_norm(3).biases is None
        True
        """
        return self._value("biases")

    @biases.setter
    def biases(self, value: Any) -> None:
        self._set("biases", value)

    @property
    def epsilon(self) -> float:
        """Return what keeps the divisor away from 0.

        Examples
        --------
        >>> import gennorm as gn
        >>> gn.NormalizationLayer().epsilon
        0.001
        """
        return self._config.epsilon

    @property
    def initialized(self) -> bool:
        """Return whether every parameter is there or absent, so that the layer can be called.

        Examples
        --------
        >>> import gennorm as gn
        >>> layer = gn.NormalizationLayer()
        >>> layer.initialized, layer.initialize((3, 224, 224)).initialized
        (False, True)
        """
        return all(getattr(self._config, name) is None or self._parameters[name] is not None for name in PARAMETERS)

    def initialize(self, input_shape_or_array: Any) -> NormalizationLayer:
        """Make the automatic parameters, now that a shape is known: scaling of ones, biases of zeros.

        Parameters
        ----------
        input_shape_or_array : tuple of int or ndarray
            The shape of what the layer will be called on, or such an array.

        Returns
        -------
        NormalizationLayer
            The layer itself. Parameters that it already has are left alone.

        Raises
        ------
        GennormError
            The shape does not fit the layer, or parameters it already has.

        Examples
        --------
        >>> import gennorm as gn
        >>> gn.NormalizationLayer().initialize((3, 224, 224)).scaling
        array([1., 1., 1.], dtype=float32)
        """
        given = input_shape_or_array
        shape = given.shape if isinstance(given, np.ndarray) else shape_of(given)
        resolved = resolve_config(self._config, shape)
        self._require_fitting(resolved)
        if self._held is not None:
            require_held(self._held, resolved)
            self.moments = checked(self._held, self._config, held_shape(resolved))
        self._fill(resolved.parameter_shape)
        return self

    def adopt(self, *, scaling: Array | None = None, biases: Array | None = None) -> NormalizationLayer:
        """Take arrays as the parameters themselves, in place of copies, whoever else has them.

        Parameters
        ----------
        scaling, biases : ndarray, optional
            Of the shape of the parameters, and of any floating dtype. One that is not given stays what it is.

        Returns
        -------
        NormalizationLayer
            The layer itself.

        Raises
        ------
        ParameterError
            An array has another shape.
        DtypeError, InputError
            It is no array of real numbers.

        Examples
        --------
        >>> import numpy as np
        >>> import gennorm as gn
        >>> ours = np.ones(3, np.float32)
        >>> layer = gn.layer_norm(3).adopt(scaling=ours)
        >>> ours *= 2
        >>> layer.scaling
        array([2., 2., 2.], dtype=float32)
        """
        for name, array in (("scaling", scaling), ("biases", biases)):
            if array is not None:
                self._set(name, array, adopt=True)
        return self

    def settled(self, x: Array, *, given: bool = False) -> Settled | None:
        """Return what plain calls on arrays of this shape, dtype and layout have in common, once there was one.

        For those who know that their arrays are right and look at none of them twice, as frameworks do.

        Parameters
        ----------
        x : ndarray
            Like those that the layer is called on.
        given : bool, default False
            Whether moments are given to each call; those of the input are taken otherwise.

        Returns
        -------
        Settled or None
            None before the first call, where one is more than a call of a kernel, where the arithmetic is in another
            dtype than the parameters, and for moments that the layer holds.

        Examples
        --------
        >>> import numpy as np
        >>> import gennorm as gn
        >>> layer, x = gn.layer_norm(2, epsilon=0), np.array([[1.0, 7.0]], np.float32)
        >>> layer.settled(x) is None
        True
        >>> y = layer(x)
        >>> layer.settled(x).shortcut.normalize(x)
        array([[-1.,  1.]], dtype=float32)
        """
        if not given and self._config.statistics != "input":
            return None
        return self._shortcuts.get((x.shape, x.strides, x.dtype, not given))

    def _known_shape(self) -> tuple[int, ...]:
        """The shape of the parameters, from one that is there or from the declared input shape."""
        for array in self._parameters.values():
            if array is not None:
                return array.shape
        return configs.parameter_shape(self._config)

    def _fill(self, shape: tuple[int, ...]) -> None:
        for name in PARAMETERS:
            if getattr(self._config, name) == "Automatic" and self._parameters[name] is None:
                values = np.broadcast_to(np.float32(INITIAL[name]), shape)
                self._parameters[name] = copied(values, dtype_named(self._config.dtype))

    def _value(self, name: str) -> Any:
        array = self._parameters[name]
        return getattr(self._config, name) if array is None else array

    def _set(self, name: str, value: Any, *, adopt: bool = False) -> None:
        if value is self._parameters[name] and value is not None:
            return  # `layer.scaling -= step` has written into the array already
        mode = _mode(name, value)
        array = self._checked(name, value, adopt=adopt) if mode == "explicit" else None
        with changing:
            self._config, self._bound, self._shortcuts = _with_mode(self._config, name, mode), {}, {}
            self._parameters[name] = array
        if mode == "Automatic":
            with suppress(InitializationError):
                self._fill(self._known_shape())

    def _checked(self, name: str, value: Any, *, adopt: bool = False) -> Array:
        """A parameter that was given, or the layer's own copy of it, once its shape is known to be right."""
        given = parameter_values(name, value)
        if not adopt:
            given = in_range(name, given, dtype_named(self._config.dtype))
        own = given if adopt else copied(given, given.dtype)
        try:
            expected = self._known_shape()
        except InitializationError:
            return own
        if given.shape != expected:
            msg = f"{name} has the shape {given.shape}, and the parameters of this layer {expected}\n"
            msg += f"the scaling levels are {levels.format(self._config.scaling_levels)}; their sizes, in that order, "
            msg += "are the shape of the parameters"
            raise ParameterError(msg, code="P010")
        return own

    def _require_fitting(self, resolved: Resolved) -> None:
        """Refuse an array whose scaling levels have other sizes than the parameters."""
        for name, array in self._parameters.items():
            if array is None or array.shape == resolved.parameter_shape:
                continue
            if array.ndim == len(resolved.scaling):
                wrong = next(i for i, axis in enumerate(resolved.scaling) if array.shape[i] != resolved.shape[axis])
                axis = resolved.scaling[wrong]
                place = levels.name(resolved.level(axis), batched=resolved.batched)
                msg = f"{place} of the input has size {resolved.shape[axis]}, and {name} {array.shape[wrong]}\n"
            else:
                msg = f"the input has {len(resolved.scaling)} scaling levels, and {name} {array.ndim}\n"
            msg += f"an input of shape {resolved.shape} needs parameters of shape {resolved.parameter_shape}; "
            msg += f"{name} has the shape {array.shape}"
            raise ParameterError(msg, code="P011")

    def _ready(self, resolved: Resolved, scaling: Any = None, biases: Any = None) -> tuple[Parameter, Parameter]:
        """Scaling and biases for a call: those given for it, else the layer's own."""
        found = []
        for name, value in zip(PARAMETERS, (scaling, biases), strict=True):
            own = self._parameters[name]
            if own is None and value is None and getattr(self._config, name) is not None:
                configs.parameter_shape(self._config)  # raises, naming the level that is not known
            found.append(Parameter(own, False) if value is None else Parameter.given(name, value, resolved))
        self._require_fitting(resolved)
        return found[0], found[1]

    # Moments that the layer holds ------------------------------------------------------------------------------------

    @property
    def moments(self) -> Moments | None:
        """Return the moments that the layer holds: moving ones, or those of a data set. None where it holds none.

        They have one axis for each level of an example that is kept, and the groups of one that is not. Moving moments
        begin with mean 0 and variance 1, and their count is 1. Any `Moments` that fit can be set, as a whole.

        Examples
        --------
        >>> import gennorm as gn
        >>> layer = gn.batch_norm(2)
        >>> layer.moments
        Moments(count=[1., 1.], mean=[0., 0.], m2=[1., 1.])
        >>> layer.moments = gn.Moments.from_variance([5, 6], [1, 4])
        >>> layer.moments.mean
        array([5., 6.])
        """
        return self._held

    @moments.setter
    def moments(self, value: Any) -> None:
        self._hold(checked(value, self._config, configs.kept_shape(self._config)))

    def reset_moments(self) -> NormalizationLayer:
        """Let the layer hold what it held before it saw anything: mean 0 and variance 1, or nothing.

        Returns
        -------
        NormalizationLayer
            The layer itself.

        Examples
        --------
        >>> import gennorm as gn
        >>> layer = gn.feature_norm(mean=3.0, variance=2.0)
        >>> layer.reset_moments().moments is None
        True
        """
        self._hold(initial(self._config, configs.kept_shape(self._config)))
        return self

    @property
    def trainable(self) -> bool:
        """Return whether the layer learns: with moving moments, False means inference and no update.

        Examples
        --------
        >>> import numpy as np
        >>> import gennorm as gn
        >>> layer = gn.batch_norm(1)
        >>> layer.trainable = False
        >>> _ = layer(np.array([[2.0], [4.0]]), training=True)
        >>> layer.moments.mean
        array([0.])
        """
        return self._config.trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        with changing:
            self._config = LayerConfig.make(**{**self._config.arguments(), "trainable": value})

    def adapt(
        self,
        data: Any,
        *,
        mask: Any = None,
        weights: Any = None,
        reset: bool = True,
        progress: bool | None = None,
    ) -> NormalizationLayer:
        """Take the moments of a data set, in one pass and in chunks of a few MB.

        The moments of the chunks are merged exactly, in float64, whatever the size of the chunks. If anything fails,
        or is interrupted, the layer holds what it held before.

        Parameters
        ----------
        data : ndarray, or iterable of ndarray
            A batch of everything, which may be mapped from a file (``np.load(path, mmap_mode="r")``), or batches of
            any sizes, from a list or a generator.
        mask : ndarray of bool, or iterable of them, optional
            True counts. Broadcastable to the data, or to each batch, or one for each batch.
        weights : ndarray, or iterable of them, optional
            How much an element counts, finite and at least 0; broadcast like `mask`.
        reset : bool, default True
            False adds the data to the moments that the layer holds.
        progress : bool, optional
            Whether to show a bar on standard error; if not given, where that is a terminal and it takes a while.

        Returns
        -------
        NormalizationLayer
            The layer itself.

        Raises
        ------
        ConfigError
            The layer's moments are not those of a data set.
        InputError, DtypeError
            The data are no arrays of real numbers, or pairs of inputs and targets.
        ShapeError
            A batch has slices of another shape than the ones before.
        InitializationError
            There was nothing in the data.
        ParameterError
            A mask or weights do not fit.

        Examples
        --------
        >>> import numpy as np
        >>> import gennorm as gn
        >>> data = np.array([[0.0, 7.0, 4.0], [2.0, 9.0, 6.0], [0.0, 7.0, 4.0], [2.0, 9.0, 6.0]])
        >>> layer = gn.feature_norm().adapt(data)
        >>> layer(np.array([[0.0, 7.0, 4.0]]))
        array([[-1., -1., -1.]])
        >>> gn.feature_norm().adapt(data[start : start + 3] for start in (0, 3)).moments.mean
        array([1., 8., 5.])
        """
        from gennorm.layer.adapting import moments_of

        require_dataset(self._config)
        found = moments_of(data, self._config, mask=mask, weights=weights, progress=progress)
        with changing:
            if not reset and self._held is not None:
                found = checked(self._held, self._config, found.shape) + found
            self._hold(checked(found, self._config, configs.kept_shape(self._config)))
        return self

    def _hold(self, moments: Moments | None) -> None:
        """Let the layer hold these moments. They are never changed, only set anew, and shortcuts know the old ones."""
        with changing:
            self._shortcuts = {}
            self._held = moments

    def _learns(self, training: bool) -> bool:
        """Whether a call normalizes by the moments of its input, and folds them into those that the layer holds."""
        return bool(training) and self._config.statistics == "moving" and self._config.trainable

    def _require_learnable(self, resolved: Resolved) -> None:
        """Refuse what could not be folded into the moments, before anything is written."""
        require_held(required(self._held), resolved)
        if self._config.unbiased:
            configs.require_unbiased(resolved)

    def _learn(self, batch: Moments, resolved: Resolved) -> None:
        """Fold the moments of an array into the moving ones: one store of a new value, or nothing at all."""
        with changing:
            self._hold(folded(required(self._held), batch, resolved, self._config))

    # Binding ---------------------------------------------------------------------------------------------------------

    def _bind(self, x: Array, out: Array | None, *, grouped: bool = True, per_example: bool = False) -> Bound:
        """The plan for one shape, dtype and layout, with its kernels; made once and remembered."""
        key = _key(x, out, grouped, per_example)
        bound = self._bound.get(key)
        if bound is None:
            config = self._config if grouped else _given(self._config, x.shape)
            strides = (np.empty_like(x, result_dtype(x.dtype)) if out is None else out).strides
            bound = bind(config, x.shape, x.dtype.name, x.strides, strides, per_example=per_example)
            with changing:
                if len(self._bound) >= REMEMBERED:
                    self._bound.clear()
                self._bound[key] = bound
        return bound

    def _remember(self, x: Array, *, own: bool = True) -> None:
        """Have the next call on such an array go straight to its kernel, where it is one kernel's work.

        By its own moments, or by those that it is given.
        """
        x = real(x, "the input")
        key = x.shape, x.strides, x.dtype, own
        if key in self._shortcuts:
            return
        measures, moments = own and self._config.statistics == "input", self._held
        bound = self._bind(x, None, grouped=measures)
        parameters = self._ready(bound.plan.resolved)
        scaling, biases = (parameter.own for parameter in parameters)
        rows = bound.ordered(np.stack(held(moments, bound.plan.resolved))) if own and not measures else None
        shortcut = bound.shortcut(scaling, biases, rows, measures=measures)
        with changing:
            now = self._parameters["scaling"], self._parameters["biases"], self._held
            if now[0] is not scaling or now[1] is not biases or now[2] is not moments:
                return  # what was set meanwhile is not what the shortcut uses
            if len(self._shortcuts) >= REMEMBERED:
                self._shortcuts.clear()
            self._shortcuts[key] = None if shortcut is None else Settled(shortcut, parameters)

    # Telling about it ------------------------------------------------------------------------------------------------

    def information(self, name: str | None = None) -> Any:
        """Return what is known about the layer: a report that prints as a table, or one of its entries.

        Parameters
        ----------
        name : str, optional
            An argument of the layer, "moments", "initialized", "parameter_shape" or "parameter_count".

        Returns
        -------
        Information or object

        Raises
        ------
        ConfigError
            There is no such property.

        Examples
        --------
        >>> import gennorm as gn
        >>> layer = gn.NormalizationLayer(input_shape=(3, None, None))
        >>> layer.information("parameter_count")
        6
        >>> print(layer.information())
        aggregation_levels         2;;All
        scaling_levels             Complement
        group_number               None
        method                     Standardize
        unbiased                   False
        epsilon                    0.001
        scaling                    [1. 1. 1.]
        biases                     [0. 0. 0.]
        input_shape                (3, None, None)
        batched                    None
        dtype                      float32
        statistics                 input
        momentum                   0.99
        trainable                  True
        epsilon_placement          inside
        learning_rate_multipliers  None
        moments                    None
        initialized                True
        parameter_shape            (3,)
        parameter_count            6
        """
        present = [array for array in self._parameters.values() if array is not None]
        try:
            shape: tuple[int, ...] | None = self._known_shape()
        except InitializationError:
            shape = None
        found = Information(
            {
                **self._config.arguments(),
                **{name: self._value(name) for name in PARAMETERS},
                "moments": self._held,
                "initialized": self.initialized,
                "parameter_shape": shape,
                "parameter_count": sum(array.size for array in present),
            }
        )
        if name is None:
            return found
        if name not in found:
            msg = f"a layer has no property {shown(name)}{suggest(name, found)}\n"
            msg += "information() without a name tells all of them"
            raise ConfigError(msg, code="C102")
        return found[name]

    def to_config(self) -> dict[str, Any]:
        """Return every setting of the layer and no array, as values that JSON can hold.

        Returns
        -------
        dict
            What `from_config` takes; ``spec/layer.schema.json`` describes it.

        Examples
        --------
        >>> import gennorm as gn
        >>> gn.layer_norm(768).to_config()["input_shape"]
        ['...', 768]
        """
        return self._config.to_dict()

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, scaling: Any = "Automatic", biases: Any = "Automatic"
    ) -> NormalizationLayer:
        """Make a layer from what `to_config` returned.

        Parameters
        ----------
        config : mapping
            Every setting; a missing or unknown key is an error.
        scaling, biases : array_like
            The arrays of a layer whose config says "explicit": a config holds none.

        Returns
        -------
        NormalizationLayer

        Raises
        ------
        GennormError
            The config is not one, or an array that it speaks of is not given.

        Examples
        --------
        >>> import gennorm as gn
        >>> layer = gn.group_norm(32, 256)
        >>> gn.NormalizationLayer.from_config(layer.to_config())
        NormalizationLayer('All', 1, {1: 32}, input_shape=(256, ...), batched=True)
        """
        settings = LayerConfig.from_dict(config)
        given = {"scaling": scaling, "biases": biases}
        for name in PARAMETERS:
            if _mode(name, given[name]) == "explicit":
                settings = _with_mode(settings, name, "explicit")
            elif getattr(settings, name) == "explicit":
                msg = f"the config says that {name} was given as an array, and holds no arrays\n"
                msg += f"pass it: from_config(config, {name}=array)"
                raise ParameterError(msg, code="P012")
        layer = cls.__new__(cls)
        layer._begin(settings, given)
        return layer

    def save(self, path: files.Target) -> None:
        """Write the layer to a file: its settings, its parameters and its moments, bit for bit.

        The file is complete or not there. It replaces an existing file, whose permissions it takes over. Ctrl-C is
        handled when the file is complete.

        Parameters
        ----------
        path : str, path-like or binary file object
            A path ends in ``.npz`` or ``.safetensors``. A file object is written as ``.npz``, unless its name ends in
            ``.safetensors``.

        Raises
        ------
        FileError
            The path has another suffix, or cannot be written.

        See Also
        --------
        gennorm.load : Read it.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> import gennorm as gn
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "layer.npz")
        ...     gn.feature_norm(mean=3.0, variance=2.0).save(path)
        ...     gn.load(path).moments
        Moments(count=1., mean=3., m2=2.)
        """
        files.write(path, files.Stored(self._config, dict(self._parameters), self._held))

    if not TYPE_CHECKING:  # to a type checker, every name would be an attribute

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):  # protocols look for such names, also before the layer has its own
                return object.__getattribute__(self, name)
            raise unknown_attribute(name, [one for one in dir(self) if one[0] != "_"], DEFAULTS)

    def __repr__(self) -> str:
        arguments = self._config.arguments()
        for name in PARAMETERS:
            array = self._parameters[name]
            if array is not None and not (
                getattr(self._config, name) == "Automatic" and _constant(array, array.dtype.type(INITIAL[name]))
            ):
                arguments[name] = array
        words: list[str] = []
        for position, (name, default) in enumerate(DEFAULTS.items()):
            value = arguments[name]
            if not isinstance(value, np.ndarray) and value == default:
                continue
            leading = position < POSITIONAL and len(words) == position
            words.append(_written(value) if leading else f"{name}={_written(value)}")
        return f"NormalizationLayer({', '.join(words)})"

    def __getstate__(self) -> dict[str, Any]:
        with changing:
            return {"config": self._config, "parameters": dict(self._parameters), "moments": self._held}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy, shallow or deep, has its own parameters; plans are made anew.
        self._config = state["config"]
        self._parameters = {
            name: None if array is None else copied(array, array.dtype) for name, array in state["parameters"].items()
        }
        self._held = state["moments"]
        self._bound, self._shortcuts = {}, {}


def load(path: files.Source) -> NormalizationLayer:
    """Read a layer that `NormalizationLayer.save` wrote.

    Nothing in the file is executed, and its checksum, settings and shapes are checked.

    Parameters
    ----------
    path : str, path-like or binary file object
        A path ends in ``.npz`` or ``.safetensors``. A file object is read from its position to its end.

    Returns
    -------
    NormalizationLayer

    Raises
    ------
    FileError
        The file does not exist, is damaged, is not the file of a layer, or was written by a newer gennorm.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import gennorm as gn
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "layer.npz")
    ...     gn.layer_norm(4).save(path)
    ...     gn.load(path)
    NormalizationLayer(-1, 'Same', input_shape=(..., 4))
    """
    stored = files.read(path)
    layer = NormalizationLayer.__new__(NormalizationLayer)
    layer.__setstate__({"config": stored.config, "parameters": stored.parameters, "moments": stored.moments})
    return layer


DEFAULTS = LayerConfig.make().arguments()
POSITIONAL = 6  # arguments before the first that is by keyword only


class Information(dict[str, Any]):
    """What is known about a layer, by name; prints as a table."""

    def __str__(self) -> str:
        width = max(map(len, self)) + 2
        written = {name: _written(value) if isinstance(value, tuple) else value for name, value in self.items()}
        return "\n".join(f"{name:<{width}}{value}" for name, value in written.items())


def _of_one(out: Any) -> Any:
    """Where the output of a batch of one goes, so that that of its example goes there."""
    return out[None] if isinstance(out, np.ndarray) else out


def _kept(x: Array, settled: Settled, factors: Array, found: Any = None, *, own: bool = False) -> Kept:
    """What the derivatives of a plain call need of it; with a scaling of its `own` if it is asked for."""
    shortcut, parameters = settled
    scaling, biases = parameters[0].own, parameters[1].own
    if own and scaling is not None:
        scaling = scaling.copy()
    return Kept(x, shortcut.bound, parameters, scaling, biases, None, factors, found, settled)


def _mode(name: str, value: Any) -> Any:
    """The setting that stands for a parameter given as this value."""
    if (isinstance(value, str) and value != "Automatic") or isinstance(value, (bool, np.bool_)):
        msg = f'{name} cannot be {shown(value)}{suggest(value, ["Automatic"])}\nwrite "Automatic", None or an array'
        raise ConfigError(msg, code="C004")
    return value if value is None or isinstance(value, str) else "explicit"


def _with_mode(config: LayerConfig, name: str, mode: Any) -> LayerConfig:
    return replace(config, scaling=mode) if name == "scaling" else replace(config, biases=mode)


def _given(config: LayerConfig, shape: tuple[int, ...]) -> LayerConfig:
    """The config of a call whose moments are not those of its input: groups of the batch have no part in them."""
    return replace(ungrouped(config, shape), statistics="dataset")


def _constant(array: Array, value: Any) -> bool:
    """Whether every element has the bits of the value; 0 is not -0."""
    return bool(array.tobytes() == value.tobytes() * array.size)


def _written(value: Any) -> str:
    """Python for a value, down to the last bit of an array; one that is constant is written as such."""
    if isinstance(value, np.ndarray):
        dtype = f"dtype={value.dtype.name!r}"
        if value.size and np.isfinite(value.flat[0]) and _constant(value, value.flat[0]):
            return f"np.full({value.shape}, {value.flat[0].item()!r}, {dtype})"
        if value.size == 0:
            return f"np.zeros({value.shape}, {dtype})"
        numbers = re.sub(r"\b(nan|inf)\b", r"np.\1", repr(value.tolist()))
        return f"np.array({numbers}, {dtype})"
    if isinstance(value, tuple):
        inside = ", ".join("..." if item is ... else repr(item) for item in value)
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    return repr(value)


def _key(x: Array, out: Array | None, grouped: bool, per_example: bool) -> tuple[Any, ...]:
    """What a plan depends on besides the layer's settings."""
    return x.shape, x.strides, x.dtype, None if out is None else out.strides, grouped, per_example
