"""The layer: its settings, its parameters, and the calls that normalize arrays.

This module has the public methods and their documentation. Other modules do the work: `request` checks a call and runs
it, `state` has the contents of a layer, `derivatives` has pullbacks, `statistics` the held moments, `files` saves.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from gennorm.engine import CompilationError, fallback_reason, use_definition
from gennorm.engine.forks import changing
from gennorm.engine.memory import copied
from gennorm.errors import (
    ConfigError,
    FrozenError,
    InitializationError,
    InputError,
    OutputError,
    ParameterError,
    shown,
    suggest,
)
from gennorm.layer import files
from gennorm.layer.arrays import (
    dtype_given,
    dtype_name,
    dtype_named,
    front_of,
    in_range,
    like_output,
    mask_for,
    parameter_values,
    real,
    shape_of,
    writable,
)
from gennorm.layer.derivatives import Merge, MomentsPullback, Pullback, Residuals, directions_of, push_forward
from gennorm.layer.hints import checked_arguments, unknown_attribute
from gennorm.layer.parameters import NAMES, Parameters
from gennorm.layer.request import Request, check_call, given_rows, laid, parameters_of, require_learnable, run
from gennorm.layer.state import State, same_values
from gennorm.layer.statistics import (
    accepted,
    checked,
    folded_rows,
    held_shape,
    initial,
    is_one_example,
    measured,
    require_dataset,
    require_held,
    require_inverse,
    required,
)
from gennorm.layer.texts import DEFAULTS, INITIAL, Information, represent
from gennorm.moments import Moments
from gennorm.plan import Plan, make_plan
from gennorm.spec import config as configs
from gennorm.spec import levels
from gennorm.spec.config import LayerConfig, resolve_config
from gennorm.spec.equivalence import Equivalence, compare, simplified

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gennorm.engine.interface import PreparedCall

__all__ = [
    "NormalizationLayer",
    "checked_parameter",
    "filled",
    "known_shape",
    "load",
    "parameter_mode",
    "with_fallback",
    "with_mode",
]

Array = npt.NDArray[Any]
CHANGEABLE = ("epsilon", "epsilon_placement", "momentum", "trainable", "unbiased", "learning_rate_multipliers")
ASSIGNED = frozenset(("_state", "scaling", "biases", "moments"))
Method = TypeVar("Method", bound=Callable[..., Any])


def with_fallback(method: Method) -> Method:
    """Make a method of the layer use the definition if a kernel cannot be compiled."""

    @functools.wraps(method)
    def attempt(self: Any, *arguments: Any, **keywords: Any) -> Any:
        try:
            return method(self, *arguments, **keywords)
        except CompilationError as error:
            self._fall_back(error)
            return method(self, *arguments, **keywords)

    return attempt  # type: ignore[return-value]


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
        A level, a span such as ``"2;;All"`` or ``"0;;-2"``, several of them, or the text ``"{1, 3;;4}"``; or names of
        all levels with brackets around those that are aggregated: ``"b [c h w]"``, ``"b (32 [c]) [h w]"``.
    scaling_levels : int, str or sequence, default "Complement"
        Level specs like the aggregation levels, or ``"Same"``, or ``"Complement"``: every level of an example that is
        not aggregated. ``()`` is one scalar parameter.
    group_number : int, sequence or mapping, optional
        The number of groups that an aggregated level is split into, which are normalized separately: an int if one
        level is aggregated, one int for each aggregation level, or ``{level: groups}``.
    method : {"Standardize", "RMS"}
        Subtract the mean and divide by the standard deviation, or divide by the root mean square.
    unbiased : bool, default False
        Divide the sum of squared deviations by the number of elements minus one.
    epsilon : float, default 1e-3
        A small number that keeps the divisor away from 0.
    scaling, biases : "Automatic", None or array_like
        Ones or zeros, once their shape is known; absent; or these values.
    input_shape : tuple, optional
        Shape of one example: sizes, None for one that varies, one ``...`` for any number of levels.
    input_levels : str or sequence of str, optional
        Names of the levels of one example, which every level spec may use beside numbers:
        ``"channel height width"``, ``"channel ..."``. A first name ``b`` or ``batch`` is that of level 0, and arrays
        are then batches.
    batched : bool, optional
        Whether arrays are batches of examples, if the rank does not determine it. By default they are one example.
    dtype : {"float32", "float64", "float16", "bfloat16"}
        Type of the parameters.
    statistics : {"input", "moving", "dataset"}
        The source of mean and variance.
    momentum : float, default 0.99
        The weight of the old moving moments in an update.
    trainable : bool, default True
        Whether training may change the layer.
    epsilon_placement : {"inside", "floor", "outside"}
        :math:`\sqrt{v + \epsilon}`, :math:`\max(\sqrt{v}, \epsilon)` or :math:`\sqrt{v} + \epsilon`.
    constant : {"floor", "one", "raise"}
        What a layer with ``statistics="dataset"`` does with constant slices, whose variance is not more than rounding
        may make it. "floor" divides by what epsilon makes of their variance. "one" replaces the variance by 1, so that
        epsilon 0 divides by 1. "raise" refuses such moments.
    learning_rate_multipliers : float or mapping, optional
        Stored for optimizers; the layer does not use it.

    Raises
    ------
    GennormError
        An argument is wrong; the message says which, and what is allowed.

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

    __slots__ = ("__weakref__", "_state")

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
        input_levels: Any = None,
        batched: bool | None = None,
        dtype: Any = "float32",
        statistics: str = "input",
        momentum: float = 0.99,
        trainable: bool = True,
        epsilon_placement: str = "inside",
        constant: str = "floor",
        learning_rate_multipliers: Any = None,
    ) -> None:
        settings = locals()  # the arguments have the names of the settings
        modes = {name: parameter_mode(name, settings[name]) for name in NAMES}
        config = LayerConfig.make(**{name: settings[name] for name in DEFAULTS} | modes)
        self._begin(config, scaling, biases)

    def _begin(self, config: LayerConfig, scaling: Any, biases: Any) -> None:
        parameters = Parameters(None, None)
        for name, value in zip(NAMES, (scaling, biases), strict=True):
            if getattr(config, name) == "explicit":
                parameters = parameters._replace(**{name: checked_parameter(config, parameters, name, value)})
        self._state = State(config, filled(config, parameters), initial(config, configs.kept_shape(config)))

    # Calls -----------------------------------------------------------------------------------------------------------

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
        """Normalize an example, or every example of a batch separately.

        Parameters
        ----------
        x : ndarray, or list of ndarray
            An array of the layer's `input_shape`, or a batch with one more axis. A list of arrays returns a list.
        training : bool, default False
            Whether a layer with moving moments uses the statistics of the input and updates the moving ones.
        mask : ndarray of bool, optional
            Broadcasts to the input; True elements count in the statistics. All elements are normalized.
        scaling, biases : array_like, optional
            Parameters for this call instead of those of the layer. They have the shape of the parameters, or a leading
            axis for the examples of the batch.
        moments : Moments, or tuple of ndarray, optional
            The moments to normalize by, as in `apply`; they have no axis for groups of the batch. A tuple is a mean
            (None with method RMS) and a variance, which are used without change.
        out : ndarray, optional
            Array for the output, with its shape and dtype; `x` itself is allowed.

        Returns
        -------
        ndarray
            The output, with the shape and the memory order of `x`. It has the dtype of floating input; for booleans and
            integers of up to 16 bits it is float32, for wider integers float64.

        Raises
        ------
        InitializationError
            The shape of a parameter is not known yet. Every method that takes an array raises these errors.
        ShapeError, ParameterError
            The array fits neither `input_shape` nor the parameters, or the mask does not fit the array.
        InputError, DtypeError
            The input is not a NumPy array of real numbers.
        OutputError
            The output cannot be written to `out`, which is unchanged.

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
        try:
            plain = mask is None and scaling is None and biases is None and moments is None and out is None
            if plain and type(x) is np.ndarray:
                state = self._state
                learns = training and state.learnable
                of_input = learns or state.of_input
                call = state.calls.found.get((x.shape, x.strides, x.dtype, not of_input))
                if call is not None and call.views is not None and not call.single:
                    if of_input:
                        if learns:
                            require_learnable(state, call)
                        y = call.output(x)
                        rows = call.normalize(x, y, *call.views, keep=learns)
                        if learns:
                            self._learn(call, rows)
                        return y
                    rows = call.last(state.moments)
                    if rows is not None:
                        y = call.output(x)
                        call.apply(x, y, rows, *call.views)
                        return y
            if isinstance(x, (list, tuple)) and all(isinstance(example, np.ndarray) for example in x):
                if not plain:
                    msg = "out, mask, scaling, biases and moments cannot be given for a list of arrays\n"
                    msg += "call the layer on one array at a time"
                    raise OutputError(msg, code="O001")
                # All arrays are checked before the first is normalized, and normalized before the layer learns.
                requests = [check_call(self._state, array, training) for array in x]
                found = [run(request) for request in requests]
                for request, rows in zip(requests, found, strict=True):
                    if request.learns:
                        self._learn(request.new, rows)
                return [request.y[0] if request.single else request.y for request in requests]
            front = front_of(x)
            if front is not None:
                given = {"scaling": scaling, "biases": biases, "out": out}
                return front.call(self, x, training=training, mask=mask, moments=moments, **given)
            y = self._answer(check_call(self._state, x, training, mask, scaling, biases, moments, out))
        except CompilationError as error:
            self._fall_back(error)
            return self(x, training=training, mask=mask, scaling=scaling, biases=biases, moments=moments, out=out)
        return y if out is None else out

    def _answer(self, request: Request) -> Array:
        """Compute the output of a request, and update the moving moments if the request says so."""
        rows = run(request)
        if request.learns:
            self._learn(request.new, rows)
        return request.y[0] if request.single else request.y

    def _fall_back(self, error: CompilationError) -> None:
        """Use the definition for all calls from now on."""
        use_definition(error)
        with changing:
            state = self._state
            self._state = State(state.config, state.parameters, state.moments)

    @with_fallback
    def vjp(
        self,
        x: Any,
        *,
        training: bool = False,
        mask: Array | None = None,
        scaling: Any = None,
        biases: Any = None,
        moments: Moments | tuple[Array | None, Array] | None = None,
        shared: bool = False,
    ) -> tuple[Array, Pullback]:
        """Return the output, and the function that maps its gradient to the gradients of input and parameters.

        Parameters
        ----------
        x : ndarray
            An example or a batch.
        training, mask, scaling, biases
            As in a call.
        moments : Moments, or tuple of ndarray, optional
            The moments to normalize by, as in `apply`; they have no axis for groups of the batch. The pullback returns
            their gradients too.
        shared : bool, default False
            Whether `moments` are those of `x` merged with those of other arrays, so that the gradient of the input goes
            through them. The pullback then needs `merge`, which adds the sums of the others.

        Returns
        -------
        y : ndarray
            The output.
        pullback : Pullback
            A function from the gradient of the output to `Gradients`. They go through the statistics of the input, if
            the call used these, and not through held moments. `measure_vjp` takes the gradients of given moments on to
            the array that they were measured of.

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
        request = check_call(self._state, x, training, mask, scaling, biases, moments, shared=shared)
        rows = run(request, keep=True)
        assert rows is not None
        residuals = Residuals.of(request, rows)
        if request.learns:
            self._learn(request.new, rows)
        y = request.y[0] if request.single else request.y
        return y, Pullback(residuals, y.shape, y.dtype, moments)

    @with_fallback
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
            An example or a batch, and a direction of its shape; None for a constant input.
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

        Examples
        --------
        >>> import numpy as np
        >>> import gennorm as gn
        >>> x = np.array([1.0, 2.0, 4.0])
        >>> y, dy = gn.NormalizationLayer(1, (), epsilon=0).jvp(x, x)
        >>> bool(abs(dy).max() < 1e-12)  # scaling the input does not change the output
        True
        """
        state = self._state
        request = check_call(state, x, training, mask, scaling, biases, moments, shared=shared)
        shape, dtype = request.y.shape[request.single :], request.y.dtype
        if dx is not None:
            dx = like_output(dx, "the direction", shape, dtype)
            dx = dx[None] if request.single else dx
        directions = directions_of(state, request.x, request.rows is not None, dscaling, dbiases)
        rows = run(request, keep=True)
        assert rows is not None
        dy = push_forward(state, Residuals.of(request, rows), dx, directions, merge)
        if request.learns:  # after everything that can fail
            self._learn(request.new, rows)
        return request.y[0] if request.single else request.y, dy[0] if request.single else dy

    def measure(self, x: Any, mask: Array | None = None) -> Moments:
        """Return the moments of the slices of an array.

        Parameters
        ----------
        x : ndarray
            An example or a batch.
        mask : ndarray of bool, optional
            Broadcasts to the input; True elements count.

        Returns
        -------
        Moments
            One axis for each level that is kept, the batch included; a grouped level counts its groups. With method
            "RMS" the mean is None.

        Examples
        --------
        >>> import numpy as np
        >>> import gennorm as gn
        >>> gn.NormalizationLayer(-1).measure(np.array([[1.0, 3.0], [2.0, 2.0]]))
        Moments(count=[2., 2.], mean=[2., 2.], m2=[2., 0.])
        """
        front = front_of(x)
        if front is not None:
            found: Moments = front.measure(self, x, mask)
            return found
        try:
            return self._measured(x, mask)[3]
        except CompilationError as error:
            self._fall_back(error)
            return self.measure(x, mask)

    @with_fallback
    def measure_vjp(self, x: Any, mask: Array | None = None) -> tuple[Moments, MomentsPullback]:
        """Return the moments of the slices, and the function that maps their gradients to the gradient of the array.

        With ``vjp(x, moments=...)`` these are the two halves of a normalization, and the moments can be changed in
        between. Gradients of moments are those of the mean and of the variance that the layer divides by.

        Parameters
        ----------
        x, mask
            As in `measure`.

        Returns
        -------
        moments : Moments
        pullback : MomentsPullback
            A function from `MomentGradients`, such as a pullback of `vjp` returns, or a pair of arrays.

        Examples
        --------
        >>> import numpy as np
        >>> import gennorm as gn
        >>> layer, x, dy = gn.layer_norm(3), np.array([[1.0, 2.0, 4.0]]), np.array([[1.0, 0.0, 0.0]])
        >>> moments, to_input = layer.measure_vjp(x)
        >>> y, pullback = layer.vjp(x, moments=moments)
        >>> gradients = pullback(dy)
        >>> by_halves = gradients.input + to_input(gradients.moments)
        >>> y, pullback = layer.vjp(x)
        >>> bool(np.allclose(by_halves, pullback(dy).input))
        True
        """
        call, whole, weights, moments = self._measured(x, mask)
        return moments, MomentsPullback(whole, call, weights, moments)

    def _measured(self, x: Any, mask: Array | None) -> tuple[PreparedCall, Array, Array | None, Moments]:
        """Return the moments of an array, and the call, the array and the weights that they were measured with."""
        x = real(x, "the input")
        call = self._state.calls.find(x, False)
        whole = x[None] if call.single else x
        weights = None if mask is None else mask_for(mask, whole)
        return call, whole, weights, measured(call, call.measure(whole, weights))

    @with_fallback
    def apply(self, x: Any, moments: Moments, *, out: Array | None = None) -> Any:
        """Normalize an array by given moments.

        Parameters
        ----------
        x : ndarray
            An example or a batch.
        moments : Moments
            One mean and variance for each slice of `x`, or fewer that broadcast to that shape.
        out : ndarray, optional
            Array for the output; `x` itself is allowed.

        Returns
        -------
        ndarray

        Raises
        ------
        ParameterError
            The moments do not fit the slices of `x`.

        Examples
        --------
        >>> import numpy as np
        >>> import gennorm as gn
        >>> layer = gn.NormalizationLayer(1, (), epsilon=0)
        >>> layer.apply(np.array([1.0, 2.0, 3.0]), gn.Moments.from_variance(1.0, 4.0))
        array([0. , 0.5, 1. ])
        """
        front = front_of(x)
        if front is not None:
            return front.apply(self, x, moments, out=out)
        request = check_call(self._state, x, moments=moments, out=out, grouped=True)
        run(request)
        return out if out is not None else request.y[0] if request.single else request.y

    @with_fallback
    def inverse(self, y: Any, moments: Moments | None = None, *, out: Array | None = None) -> Any:
        r"""Return the input that has this output.

        .. math:: x = \frac{y - b}{s} \sqrt{\sigma^2 + \epsilon} + \mu

        Parameters
        ----------
        y : ndarray
            An output of the layer.
        moments : Moments, optional
            The moments that the input was normalized by; by default the held ones.
        out : ndarray, optional
            Array for the input; `y` itself is allowed.

        Returns
        -------
        ndarray
            The input. Where the divisor is 0, it is the mean.

        Raises
        ------
        ParameterError
            A scaling is 0; there are no moments, or they do not fit the slices of `y`.

        Examples
        --------
        >>> import numpy as np
        >>> import gennorm as gn
        >>> layer = gn.NormalizationLayer(1, (), input_shape=(None,), epsilon=0)
        >>> layer.inverse(np.array([0.0, 0.5, 1.0]), gn.Moments.from_variance(1.0, 4.0))
        array([1., 2., 3.])
        """
        state = self._state
        front = front_of(y)
        if front is not None:
            return front.inverse(self, y, moments, out=out)
        y = real(y, "the output to invert")
        require_inverse(state.config, moments, state.parameters.scaling)
        call = state.calls.find(y, moments is None)
        single, target = call.single, out
        if single:
            y, target = y[None], out[None] if isinstance(out, np.ndarray) else out
        parameters = parameters_of(state, call, None, None)
        if out is None:
            x = call.output(y)
        else:
            x = writable(target, y, *state.parameters)
            if x.strides != call.strides:
                call = state.calls.find(y, moments is None, out=x.strides)
        call.invert(y, x, given_rows(state, moments, call), *laid(call, parameters, False))
        return out if out is not None else x[0] if single else x

    def plan(self, shape_or_array: Any, dtype: Any = None) -> Plan:
        """Return the plan for arrays of one shape, dtype and layout; it can be printed.

        Parameters
        ----------
        shape_or_array : tuple of int or ndarray
            A shape, for arrays in C order, or an array with its layout and dtype.
        dtype : dtype, optional
            The dtype for a shape, float32 by default. It is not allowed with an array.

        Returns
        -------
        Plan

        Raises
        ------
        DtypeError
            The dtype does not exist or is not supported.
        ConfigError
            A dtype was passed with an array.
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
            shape, name, strides = x.shape, x.dtype.name, x.strides
        else:
            shape, strides = shape_of(shape_or_array), None
            name = dtype_name(dtype_given("float32" if dtype is None else dtype))
        config = self._state.config
        if config.statistics == "dataset" and is_one_example(config, shape):
            shape, strides = (1, *shape), None if strides is None else (0, *strides)
        return replace(make_plan(config, shape, name, strides), fallback=fallback_reason())

    # Pictures --------------------------------------------------------------------------------------------------------

    def draw(
        self,
        shape: Any = None,
        path: str | os.PathLike[str] | None = None,
        *,
        labels: Sequence[str | None] | None = None,
        dark: bool = False,
        per_example: bool = False,
    ) -> Figure:
        """Draw which elements share one mean and deviation, and which levels have parameters.

        An array is drawn as a cube that is cut into its slices, or as a grid of cubes if it has more than three axes.
        Long levels are drawn with a few positions, and the picture says so.

        Parameters
        ----------
        shape : tuple of int or ndarray, optional
            The shape of an input, or an input. If not given, a shape that the layer takes, if possible of three axes.
        path : str or path-like, optional
            The file to write: ``.svg``, ``.png`` or ``.pdf``.
        labels : sequence of str, optional
            A name for each axis, such as ``["N", "C", "L"]``; None leaves the number of the level. The names in
            `input_levels` if not given.
        dark : bool, default False
            Whether the page is dark.
        per_example : bool, default False
            Whether the parameters are those of a call that has one set for each example of the batch.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        GennormError
            The shape does not fit the layer.
        DrawingError
            Matplotlib is not installed (``pip install 'gennorm[plot]'``), the array has more than eight axes or no
            elements, the labels do not fit it, or the path has another suffix.
        FileError
            The file cannot be written.

        Examples
        --------
        >>> import gennorm as gn
        >>> figure = gn.group_norm(2, 4).draw((3, 4, 4), labels=["N", "C", "L"])
        >>> [text.get_text() for text in figure.axes[0].texts][:6]
        ['N', 'level 0', 'C', 'level 1', '2 groups', 'L']
        """
        from gennorm.layer.pictures import draw

        sizes = None if shape is None else shape.shape if isinstance(shape, np.ndarray) else shape_of(shape)
        return draw(self._state.config, sizes, path, labels, dark=dark, per_example=per_example)

    @with_fallback
    def show(self, x: Any, *, dark: bool = False) -> Figure:
        """Draw an array before and after the layer: histograms, means and deviations by slice, and the array itself.

        The array itself is drawn where its first example is a picture (one or three channels, first or last) or a
        sequence. Of many slices, some are drawn: 6 histograms, 48 means.

        Parameters
        ----------
        x : ndarray
            An example or a batch. The layer normalizes it as in a call, and does not change.
        dark : bool, default False
            Whether the page is dark.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        GennormError
            As in a call.
        DrawingError
            Matplotlib is not installed (``pip install 'gennorm[plot]'``), or the array has no elements.

        Examples
        --------
        >>> import numpy as np
        >>> import gennorm as gn
        >>> x = np.random.default_rng(0).normal(5, 2, (3, 16, 16))
        >>> figure = gn.NormalizationLayer().initialize(x).show(x)
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['before', 'after', '', '', '', '']
        """
        from gennorm.layer.pictures import show

        return show(self, real(x, "the input"), dark=dark)

    def _repr_html_(self) -> str:
        from gennorm.layer.pictures import html

        return html(self._state, self.plan)

    # Parameters ------------------------------------------------------------------------------------------------------

    @property
    def scaling(self) -> Any:
        """Return the scaling: an array, None where it is absent, "Automatic" where its shape is not known yet.

        This is the array that the layer uses: the next call uses what is written into it.

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

        This is the array that the layer uses: the next call uses what is written into it.

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
        """Return the number that keeps the divisor away from 0.

        Examples
        --------
        >>> import gennorm as gn
        >>> gn.NormalizationLayer().epsilon
        0.001
        """
        return self._state.config.epsilon

    @property
    def initialized(self) -> bool:
        """Return whether the layer can be called: the shape of every parameter is known.

        Examples
        --------
        >>> import gennorm as gn
        >>> layer = gn.NormalizationLayer()
        >>> layer.initialized, layer.initialize((3, 224, 224)).initialized
        (False, True)
        """
        state = self._state
        return all(
            array is not None or getattr(state.config, name) is None
            for name, array in state.parameters._asdict().items()
        )

    def initialize(self, input_shape_or_array: Any) -> NormalizationLayer:
        """Create automatic parameters for a shape: ones for scaling, zeros for biases.

        Parameters
        ----------
        input_shape_or_array : tuple of int or ndarray
            The shape of an input, or an input.

        Returns
        -------
        NormalizationLayer
            The layer itself. Existing parameters do not change.

        Raises
        ------
        GennormError
            The shape does not fit the layer or its parameters.

        Examples
        --------
        >>> import gennorm as gn
        >>> gn.NormalizationLayer().initialize((3, 224, 224)).scaling
        array([1., 1., 1.], dtype=float32)
        """
        given = input_shape_or_array
        shape = given.shape if isinstance(given, np.ndarray) else shape_of(given)
        with changing:
            state = self._state
            if state.config.statistics == "dataset" and is_one_example(state.config, shape):
                shape = (1, *shape)
            resolved = resolve_config(state.config, shape)
            state.parameters.require_fitting(resolved)
            moments = state.moments
            if moments is not None:
                require_held(moments, resolved)
                moments = checked(moments, state.config, held_shape(resolved))
            self._state = State(state.config, filled(state.config, state.parameters, resolved.parameter_shape), moments)
        return self

    def _value(self, name: str) -> Any:
        array = getattr(self._state.parameters, name)
        return getattr(self._state.config, name) if array is None else array

    def _set(self, name: str, value: Any) -> None:
        if value is not None and value is getattr(self._state.parameters, name):
            return  # `layer.scaling -= step` has written into the array already
        mode = parameter_mode(name, value)
        with changing:
            state = self._state
            config = with_mode(state.config, name, mode)
            parameters = state.parameters._replace(**{name: None})
            if mode == "explicit":
                array = checked_parameter(state.config, state.parameters, name, value)
                parameters = parameters._replace(**{name: array})
            elif mode == "Automatic":
                parameters = filled(config, parameters)
            self._state = State(config, parameters, state.moments)

    # Held moments --------------------------------------------------------------------------------------------------

    @property
    def moments(self) -> Moments | None:
        """Return the held moments: moving ones, or those of a data set; None if there are none.

        They have one axis for each kept level of an example and for the groups of a grouped level. Moving moments start
        with mean 0 and variance 1, and their count is 1. `Moments` of this shape can be assigned.

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
        return self._state.moments

    @moments.setter
    def moments(self, value: Any) -> None:
        with changing:
            config = self._state.config
            self._state = self._state.holding(checked(value, config, configs.kept_shape(config)))

    def reset_moments(self) -> NormalizationLayer:
        """Reset the held moments to mean 0 and variance 1, or to None for those of a data set.

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
        with changing:
            config = self._state.config
            self._state = self._state.holding(initial(config, configs.kept_shape(config)))
        return self

    @property
    def trainable(self) -> bool:
        """Return whether training changes the layer: with moving moments, False means inference and no update.

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
        return self._state.config.trainable

    @with_fallback
    def adapt(
        self,
        data: Any,
        *,
        mask: Any = None,
        weights: Any = None,
        reset: bool = True,
        nan: str = "propagate",
        progress: bool | None = None,
    ) -> NormalizationLayer:
        """Compute and store the moments of a data set, in one pass and in chunks of a few MB.

        Chunks are measured and merged in float64, for every dtype and size of chunks; the result is as exact as NumPy
        for the whole array: see `Moments`. If the computation fails or is interrupted, the moments of the layer do not
        change.

        Parameters
        ----------
        data : ndarray, or iterable of ndarray
            All examples in one batch, which may be mapped from a file (``np.load(path, mmap_mode="r")``) or be an array
            of Dask, or batches of any sizes, in a list or from a generator.
        mask : ndarray of bool, or iterable of them, optional
            True elements count. One mask for the data or for all batches, or an iterable with one for each batch. Its
            axes are the last axes of the data. A mask with fewer axes that also fits the first axes is an error: for a
            mask of shape ``(N,)`` and data of shape ``(N, F)``, write ``mask[:, None]``.
        weights : array_like, or iterable of them, optional
            Weights of the elements, finite and at least 0; broadcast like `mask`.
        reset : bool, default True
            False adds the data to the moments that the layer holds.
        nan : {"propagate", "omit", "raise"}
            How NaN in the data is handled. By default, as in NumPy and Keras, the moments of its slice are NaN, with a
            warning. "omit" ignores NaN, as a mask would. "raise" raises an error with its position.
        progress : bool, optional
            Whether to show a progress bar on standard error; by default on a terminal, after a second.

        Returns
        -------
        NormalizationLayer
            The layer itself.

        Warns
        -----
        RuntimeWarning
            A variance is not finite: the data have NaN or an infinity, or numbers whose squares are too large.
        UserWarning
            Slices are constant, and the layer has ``constant="one"``. Or the data are one example, and each slice has
            one value: ``feature_norm().adapt(np.arange(1000.0))`` is one example of 1000 features, as in Keras, where
            ``x[:, None]`` is 1000 examples of one.

        Raises
        ------
        ConfigError
            The layer's moments are not those of a data set.
        InputError, DtypeError
            The data are not arrays of real numbers, or are pairs of inputs and targets; a mask is not one of bool.
        ShapeError
            A batch has slices of another shape than the ones before; a mask or weights do not fit.
        InitializationError
            The data have no element that counts.
        ParameterError
            Slices are constant, and the layer has ``constant="raise"``; there are more or fewer masks or weights than
            batches; a weight is negative or not finite; there is NaN and `nan` is "raise"; with ``reset=False``, the
            held moments have another shape.

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
        from gennorm.layer.adapting import NAN, added, complete, extended, moments_of, require_policy

        state = self._state
        require_dataset(state.config)
        front = front_of(data)
        plain = mask is None and weights is None and not progress and state.config.constant == "floor"
        if not reset and plain and nan in NAN:
            while (found := extended(state.moments, data, state.config)) is not None:
                with changing:
                    if self._state is state:
                        object.__setattr__(self, "_state", state.holding(found))
                        return self
                    state = self._state  # another thread has changed the layer: once more
        if front is not None:
            require_policy(nan)
            found = complete(front.moments_of(self, data, mask, weights, nan))
        else:
            found = moments_of(
                data,
                state.config,
                mask=mask,
                weights=weights,
                nan=nan,
                reset=reset,
                progress=progress,
                measure=self._measure_all,
            )
        with changing:
            held = self._state.moments
            if not reset and held is not None:
                found = added(held, found)
            found = accepted(found, self._state.config, warn=True)
            self._state = self._state.holding(found)
        return self

    @with_fallback
    def _part(self, x: Array, mask: Array | None, weights: Array | None, nan: str) -> Moments | None:
        """Return the moments of a part of a data set: without warnings, and where nothing counts too."""
        from gennorm.layer.adapting import merged

        return merged(x, mask, weights, self._state.config, nan, False, self._measure_all)[0]

    def _measure_all(self, x: Array, weights: Array | None) -> Moments:
        """Return the moments of all examples of an array together, in the shape of held moments."""
        call = self._state.calls.find(x, True)
        with np.errstate(all="ignore"):
            moments = measured(call, call.measure(x, weights))
        return moments if moments.shape == held_shape(call.plan.resolved) else moments.pooled()

    def _learn(self, call: PreparedCall, rows: Array | None) -> None:
        """Update the moving moments by those of an array, in one assignment of a new state."""
        assert rows is not None
        with changing:
            state = self._state
            moments = folded_rows(required(state.moments), rows, call, state.config)
            object.__setattr__(self, "_state", state.holding(moments))

    # Other spellings -----------------------------------------------------------------------------------------------

    def equivalent(self, other: NormalizationLayer) -> Equivalence:
        """Prove or refute that two layers compute the same output, for every array and after the same training.

        The layers are compared by their levels, for every number of axes that an array can have. Parameters that one
        layer lacks and the other has as ones or zeros are a difference, since training changes them; the values of
        parameters and of held moments count. Only shapes differ between layers whose parameters lie on the same levels
        in another order, or where a level of size 1 is aggregated in one and kept in the other.

        Parameters
        ----------
        other : NormalizationLayer

        Returns
        -------
        Equivalence
            True or false as a condition; printed, it gives the reason: what both layers do, or the first difference.

        Raises
        ------
        InputError
            `other` is not a layer.

        See Also
        --------
        gennorm.space

        Examples
        --------
        >>> import gennorm as gn
        >>> groups = gn.NormalizationLayer("All", 1, {1: 3}, input_shape=(3, None, None))
        >>> print(groups.equivalent(gn.NormalizationLayer(input_shape=(3, None, None))))
        the same: equal settings, slices and parameters in arrays with 3 or 4 axes
        >>> print(groups.equivalent(gn.NormalizationLayer("All", 1, input_shape=(3, None, None))))
        not the same: of an array with 3 axes, level 1 (axis 0) is kept by the first layer and aggregated by the second
        """
        if not isinstance(other, NormalizationLayer):
            msg = f"a layer cannot be compared with {shown(other)}\npass a gn.NormalizationLayer"
            raise InputError(msg, code="A050")
        ours, theirs = self._state, other._state
        found = compare(ours.config, theirs.config, (ours.parameters.shape, theirs.parameters.shape))
        return found and same_values(found, ours, theirs)

    def simplified(self) -> NormalizationLayer:
        """Return the same layer in its shortest spelling, with copies of its parameters and moments.

        Levels are spelled as short as the declared shape allows, groups of one element keep their level, and settings
        without effect get their defaults. The shapes of parameters and moments stay.

        Returns
        -------
        NormalizationLayer

        Examples
        --------
        >>> import gennorm as gn
        >>> gn.NormalizationLayer("{3, 2}", [1], [1, 1], input_shape=(3, None, None), momentum=0.5).simplified()
        NormalizationLayer(input_shape=(3, None, None))
        >>> gn.NormalizationLayer("1;;3", 1, [8, 1, 1], input_shape=(8, 28, 28)).simplified()
        NormalizationLayer(input_shape=(8, 28, 28))
        """
        state = self._state
        layer = NormalizationLayer.__new__(NormalizationLayer)
        config = simplified(state.config)
        layer.__setstate__({"config": config, "parameters": state.parameters._asdict(), "moments": state.moments})
        return layer

    # Information ---------------------------------------------------------------------------------------------------

    def information(self, name: str | None = None) -> Any:
        """Return the settings and properties of the layer: a table that can be printed, or one entry of it.

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
            The property does not exist.

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
        input_levels               None
        batched                    None
        dtype                      float32
        statistics                 input
        momentum                   0.99
        trainable                  True
        epsilon_placement          inside
        constant                   floor
        learning_rate_multipliers  None
        moments                    None
        initialized                True
        parameter_shape            (3,)
        parameter_count            6
        """
        state = self._state
        shape: tuple[int, ...] | None = None
        with suppress(InitializationError):
            shape = known_shape(state.config, state.parameters)
        found = Information(
            {
                **state.config.arguments(),
                **{name: self._value(name) for name in NAMES},
                "moments": state.moments,
                "initialized": self.initialized,
                "parameter_shape": shape,
                "parameter_count": sum(array.size for array in state.parameters if array is not None),
            }
        )
        if name is None:
            return found
        if name not in found:
            msg = f"a layer has no property {shown(name)}{suggest(name, found)}\n"
            msg += "information() without a name returns all of them"
            raise ConfigError(msg, code="C102")
        return found[name]

    def to_config(self) -> dict[str, Any]:
        """Return all settings of the layer, without arrays, as values that JSON can represent.

        Returns
        -------
        dict
            The argument of `from_config`; ``spec/layer.schema.json`` describes it.

        Examples
        --------
        >>> import gennorm as gn
        >>> gn.layer_norm(768).to_config()["input_shape"]
        ['...', 768]
        """
        return self._state.config.to_dict()

    def to_brackets(self) -> str:
        """Return the aggregation levels and groups in the bracket notation of einops and einx.

        Returns
        -------
        str
            The names of all levels, with brackets around those that are aggregated. As the aggregation levels of a
            layer it means the same.

        Raises
        ------
        ConfigError
            The levels have no names, or some have none that are not alike.

        Examples
        --------
        >>> import gennorm as gn
        >>> layer = gn.NormalizationLayer("b (g [c]) [h w]", "c", {"g": 32})
        >>> layer
        NormalizationLayer('{c, h, w}', 'c', {'c': 32}, input_levels='b c h w')
        >>> layer.to_brackets()
        'b (32 [c]) [h w]'
        """
        return self._state.config.to_brackets()

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, scaling: Any = "Automatic", biases: Any = "Automatic"
    ) -> NormalizationLayer:
        """Make a layer from what `to_config` returned.

        Parameters
        ----------
        config : mapping
            All settings; a missing or unknown key is an error.
        scaling, biases : array_like
            The arrays of a layer whose config has "explicit" parameters: a config contains no arrays.

        Returns
        -------
        NormalizationLayer

        Raises
        ------
        GennormError
            The config is not valid, or an array of an "explicit" parameter is missing.

        Examples
        --------
        >>> import gennorm as gn
        >>> layer = gn.group_norm(32, 256)
        >>> gn.NormalizationLayer.from_config(layer.to_config())
        NormalizationLayer('All', 1, {1: 32}, input_shape=(256, ...), batched=True)
        """
        settings = LayerConfig.from_dict(config)
        given = {"scaling": scaling, "biases": biases}
        for name in NAMES:
            if parameter_mode(name, given[name]) == "explicit":
                settings = with_mode(settings, name, "explicit")
            elif getattr(settings, name) == "explicit":
                msg = f"the config says that {name} was given as an array, and a config contains no arrays\n"
                msg += f"pass it: from_config(config, {name}=array)"
                raise ParameterError(msg, code="P012")
        layer = cls.__new__(cls)
        layer._begin(settings, scaling, biases)
        return layer

    def save(self, path: files.Target) -> None:
        """Write the layer to a file: its settings, its parameters and its moments, bit for bit.

        The file is written completely or not at all. It replaces an existing file and gets its permissions. Ctrl-C is
        handled when the file is complete.

        Parameters
        ----------
        path : str, path-like or binary file object
            A path that ends in ``.npz`` or ``.safetensors``, or a file object, which is written as ``.npz`` unless its
            name ends in ``.safetensors``.

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
        state = self._state
        files.write(path, files.Stored(state.config, state.parameters._asdict(), state.moments))

    if not TYPE_CHECKING:  # to a type checker, every name would be an attribute

        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):  # Python's protocols look up such names, also before __init__
                return object.__getattribute__(self, name)
            if name in DEFAULTS:
                return self._state.config.arguments()[name]
            raise unknown_attribute(name, [one for one in dir(self) if one[0] != "_"])

        def __setattr__(self, name: str, value: Any) -> None:
            if name in CHANGEABLE:
                with changing:
                    state = self._state
                    config = LayerConfig.make(**{**state.config.arguments(), name: value})
                    self._state = State(config, state.parameters, state.moments)
            elif name in ASSIGNED or (type(self) is not NormalizationLayer and not hasattr(type(self), name)):
                object.__setattr__(self, name, value)
            elif name in DEFAULTS:
                msg = f"{name} of a layer cannot be changed\n"
                msg += f"make another layer: NormalizationLayer.from_config({{**layer.to_config(), {name!r}: ...}})"
                raise FrozenError(msg, code="C140")
            elif hasattr(type(self), name):
                msg = f"{name} of a layer cannot be assigned\n"
                msg += "scaling, biases, moments, epsilon, momentum, trainable and unbiased can be"
                raise FrozenError(msg, code="C141")
            else:
                raise unknown_attribute(name, [one for one in dir(self) if one[0] != "_"])

    def __repr__(self) -> str:
        return represent(self._state)

    def __getstate__(self) -> dict[str, Any]:
        state = self._state
        return {"config": state.config, "parameters": state.parameters._asdict(), "moments": state.moments}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy, shallow or deep, has copies of the parameters.
        own = (None if array is None else copied(array, array.dtype) for array in state["parameters"].values())
        self._state = State(state["config"], Parameters(*own), state["moments"])


def load(path: files.Source) -> NormalizationLayer:
    """Read a layer that `NormalizationLayer.save` wrote.

    Nothing in the file is executed, and its checksum, settings and shapes are checked.

    Parameters
    ----------
    path : str, path-like or binary file object
        A path that ends in ``.npz`` or ``.safetensors``, or a file object, which is read from its position to its end.

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


def parameter_mode(name: str, value: Any) -> Any:
    """Return the setting for a parameter that was passed as this value."""
    if (isinstance(value, str) and value != "Automatic") or isinstance(value, (bool, np.bool_)):
        msg = f'{name} cannot be {shown(value)}{suggest(value, ["Automatic"])}\nwrite "Automatic", None or an array'
        raise ConfigError(msg, code="C004")
    return value if value is None or isinstance(value, str) else "explicit"


def with_mode(config: LayerConfig, name: str, mode: Any) -> LayerConfig:
    """Return the config with another mode of one parameter."""
    return replace(config, scaling=mode) if name == "scaling" else replace(config, biases=mode)


def filled(config: LayerConfig, parameters: Parameters, shape: tuple[int, ...] | None = None) -> Parameters:
    """Return the parameters with ones and zeros for automatic ones, if their shape is given or known."""
    if shape is None:
        with suppress(InitializationError):  # a size that is not known yet: a call names it
            shape = known_shape(config, parameters)
    if shape is None:
        return parameters
    for name in NAMES:
        if getattr(config, name) == "Automatic" and getattr(parameters, name) is None:
            values = np.broadcast_to(np.float32(INITIAL[name]), shape)
            parameters = parameters._replace(**{name: copied(values, dtype_named(config.dtype))})
    return parameters


def known_shape(config: LayerConfig, parameters: Parameters) -> tuple[int, ...]:
    """Return the shape of the parameters, from one that is present or from the declared input shape."""
    return configs.parameter_shape(config) if parameters.shape is None else parameters.shape


def checked_parameter(config: LayerConfig, parameters: Parameters, name: str, value: Any) -> Array:
    """Check a parameter and return a copy of it."""
    given = in_range(name, parameter_values(name, value), dtype_named(config.dtype))
    expected = None
    with suppress(InitializationError):
        expected = known_shape(config, parameters)
    if expected is not None and given.shape != expected:
        msg = f"{name} has the shape {given.shape}, and the parameters of this layer {expected}\n"
        written = levels.format(config.scaling_levels, config.input_levels)
        msg += f"the scaling levels are {written}; their sizes, in that order, "
        msg += "are the shape of the parameters"
        raise ParameterError(msg, code="P010")
    return copied(given, given.dtype)
