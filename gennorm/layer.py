"""The layer: settings and parameters, and the calls that bring arrays to the engine and back."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gennorm import config as configs
from gennorm import levels
from gennorm.arrays import dtype_name, dtype_named, real, result_dtype, shape_of, writable
from gennorm.config import LayerConfig, Resolved, resolve_config
from gennorm.errors import (
    ConfigError,
    DtypeError,
    InitializationError,
    InputError,
    OutputError,
    ParameterError,
    suggest,
)
from gennorm.moments import Moments
from gennorm.plan import ITEMSIZE, Plan, make_plan

if TYPE_CHECKING:
    from gennorm.kernels import Bound

__all__ = ["Information", "NormalizationLayer"]

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
            scaling=_mode(scaling),
            biases=_mode(biases),
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
        self._lock = threading.Lock()
        self._bound: dict[Any, Bound] = {}
        self._shortcuts: dict[Any, Any] = {}
        self._parameters: dict[str, Array | None] = dict.fromkeys(PARAMETERS)
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
        out: Array | None = None,
    ) -> Any:
        """Normalize an example, or every example of a batch as if it were alone.

        Parameters
        ----------
        x : ndarray, or list of ndarray
            An array of the layer's `input_shape`, or with one axis more, a batch. A list is answered by a list.
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
            The array fits neither `input_shape` nor the parameters.
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
        """
        try:
            shortcut = self._shortcuts[x.shape, x.strides, x.dtype] if out is None and type(x) is np.ndarray else None
        except KeyError:
            shortcut = None
        if shortcut is not None:
            return shortcut(x)
        if isinstance(x, (list, tuple)) and x and all(isinstance(example, np.ndarray) for example in x):
            if out is not None:
                msg = "out cannot be given for a list of arrays\ncall the layer on one array at a time"
                raise OutputError(msg, code="O001")
            return [self(example) for example in x]
        x = real(x, "the input")
        bound, y = self._prepared(x, out)
        scaling, biases = self._ready(bound.plan.resolved)
        bound.normalize(x, y, scaling, biases)
        if out is None:
            self._remember(x, bound)
        return _returned(y, out)

    def measure(self, x: Any) -> Moments:
        """Return the moments of the slices of an array: what the layer would normalize it by.

        Parameters
        ----------
        x : ndarray
            An example or a batch.

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
        bound = self._bind(x, None)
        mean, spread = bound.measure(x)
        resolved = bound.plan.resolved
        count = np.full(resolved.moments_shape, float(resolved.count))
        return Moments(count, mean if self._config.method == "Standardize" else None, spread)

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
        bound, y = self._prepared(x, out)
        resolved = bound.plan.resolved
        scaling, biases = self._ready(resolved)
        mean, variance = _applicable(moments, resolved, self._config)
        bound.apply(x, y, mean, variance, scaling, biases)
        return _returned(y, out)

    def plan(self, shape_or_array: Any, dtype: Any = None) -> Plan:
        """Return what the engine will do for arrays of one shape, dtype and layout. Print it.

        Parameters
        ----------
        shape_or_array : tuple of int or ndarray
            A shape, taken in C order, or an array, whose layout and dtype count.
        dtype : dtype, optional
            For a shape; float32 if not given.

        Returns
        -------
        Plan

        Raises
        ------
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
            return make_plan(self._config, x.shape, x.dtype.name, x.strides)
        shape = shape_of(shape_or_array)
        return make_plan(self._config, shape, dtype_name(np.dtype("float32" if dtype is None else dtype)))

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
        self._fill(resolved.parameter_shape)
        return self

    def _known_shape(self) -> tuple[int, ...]:
        """The shape of the parameters, from one that is there or from the declared input shape."""
        for array in self._parameters.values():
            if array is not None:
                return array.shape
        return configs.parameter_shape(self._config)

    def _fill(self, shape: tuple[int, ...]) -> None:
        for name in PARAMETERS:
            if getattr(self._config, name) == "Automatic" and self._parameters[name] is None:
                self._parameters[name] = np.full(shape, INITIAL[name], dtype_named(self._config.dtype))

    def _value(self, name: str) -> Any:
        array = self._parameters[name]
        return getattr(self._config, name) if array is None else array

    def _set(self, name: str, value: Any) -> None:
        if value is self._parameters[name] and value is not None:
            return  # `layer.scaling -= step` has written into the array already
        mode = _mode(value)
        config = _with_mode(self._config, name, mode)
        array = self._checked(name, value) if mode == "explicit" else None
        with self._lock:
            self._config, self._bound, self._shortcuts = config, {}, {}
            self._parameters[name] = array
        if mode == "Automatic":
            with suppress(InitializationError):
                self._fill(self._known_shape())

    def _checked(self, name: str, value: Any) -> Array:
        """The layer's own copy of a parameter that was given, once its shape is known to be right."""
        if isinstance(value, np.ma.MaskedArray):
            msg = f"{name} is a masked array\nparameters have no missing values: pass an array"
            raise InputError(msg, code="A010")
        try:
            given = np.asarray(value)
        except ValueError:
            given = np.array(None)
        if given.dtype.name not in ITEMSIZE:
            msg = f"{name} has the dtype {given.dtype}\nparameters are real numbers: pass an array of floats"
            raise DtypeError(msg, code="D010")
        try:
            expected = self._known_shape()
        except InitializationError:
            return np.array(given, dtype_named(self._config.dtype))
        if given.shape != expected:
            msg = f"{name} has the shape {given.shape}, and the parameters of this layer {expected}\n"
            msg += f"the scaling levels are {levels.format(self._config.scaling_levels)}; their sizes, in that order, "
            msg += "are the shape of the parameters"
            raise ParameterError(msg, code="P010")
        return np.array(given, dtype_named(self._config.dtype))

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

    def _ready(self, resolved: Resolved) -> tuple[Array | None, Array | None]:
        """Scaling and biases for a call."""
        for name in PARAMETERS:
            if getattr(self._config, name) is not None and self._parameters[name] is None:
                configs.parameter_shape(self._config)  # raises, naming the level that is not known
        self._require_fitting(resolved)
        return self._parameters["scaling"], self._parameters["biases"]

    # Binding ---------------------------------------------------------------------------------------------------------

    def _prepared(self, x: Array, out: Array | None) -> tuple[Bound, Array]:
        """The plan for a call, and the array its output goes to."""
        if out is None:
            bound = self._bind(x, None)
            return bound, np.empty_like(x, result_dtype(x.dtype))
        resolve_config(self._config, x.shape)  # what is wrong with the input is said first
        target = writable(out, x, self._parameters)
        return self._bind(x, target), target

    def _bind(self, x: Array, out: Array | None) -> Bound:
        """The plan for one shape, dtype and layout, with its kernels; made once and remembered."""
        key = (x.shape, x.strides, x.dtype, None if out is None else out.strides)
        bound = self._bound.get(key)
        if bound is None:
            from gennorm.kernels import bind  # Numba is imported when something is first computed

            strides = (np.empty_like(x, result_dtype(x.dtype)) if out is None else out).strides
            bound = bind(self._config, x.shape, x.dtype.name, x.strides, strides)
            with self._lock:
                if len(self._bound) >= REMEMBERED:
                    self._bound.clear()
                self._bound[key] = bound
        return bound

    def _remember(self, x: Array, bound: Bound) -> None:
        """Have the next call on such an array go straight to its kernel, where it is one kernel's work."""
        with self._lock:
            shortcut = bound.shortcut(self._parameters["scaling"], self._parameters["biases"])
            if len(self._shortcuts) >= REMEMBERED:
                self._shortcuts.clear()
            self._shortcuts[x.shape, x.strides, x.dtype] = shortcut

    # Telling about it ------------------------------------------------------------------------------------------------

    def information(self, name: str | None = None) -> Any:
        """Return what is known about the layer: a report that prints as a table, or one of its entries.

        Parameters
        ----------
        name : str, optional
            An argument of the layer, "initialized", "parameter_shape" or "parameter_count".

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
                "initialized": self.initialized,
                "parameter_shape": shape,
                "parameter_count": sum(array.size for array in present),
            }
        )
        if name is None:
            return found
        if name not in found:
            allowed = ", ".join(found)
            msg = f"a layer has no property {name!r}{suggest(str(name), found)}\nthere are {allowed}"
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
            if _mode(given[name]) == "explicit":
                settings = _with_mode(settings, name, "explicit")
            elif getattr(settings, name) == "explicit":
                msg = f"the config says that {name} was given as an array, and holds no arrays\n"
                msg += f"pass it: from_config(config, {name}=array)"
                raise ParameterError(msg, code="P012")
        layer = cls.__new__(cls)
        layer._begin(settings, given)
        return layer

    def __repr__(self) -> str:
        arguments = self._config.arguments()
        for name in PARAMETERS:
            array = self._parameters[name]
            if array is not None and not (
                getattr(self._config, name) == "Automatic" and bool(np.all(array == INITIAL[name]))
            ):
                arguments[name] = array
        shown: list[str] = []
        for position, (name, default) in enumerate(DEFAULTS.items()):
            value = arguments[name]
            if not isinstance(value, np.ndarray) and value == default:
                continue
            leading = position < POSITIONAL and len(shown) == position
            shown.append(_written(value) if leading else f"{name}={_written(value)}")
        return f"NormalizationLayer({', '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self._config, "parameters": self._parameters}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copy, shallow or deep, has its own parameters; plans and locks are made anew.
        self._config = state["config"]
        self._parameters = {
            name: None if array is None else array.copy() for name, array in state["parameters"].items()
        }
        self._lock = threading.Lock()
        self._bound, self._shortcuts = {}, {}


DEFAULTS = LayerConfig.make().arguments()
POSITIONAL = 6  # arguments before the first that is by keyword only


class Information(dict[str, Any]):
    """What is known about a layer, by name; prints as a table."""

    def __str__(self) -> str:
        width = max(map(len, self)) + 2
        return "\n".join(f"{name:<{width}}{value}" for name, value in self.items())


def _mode(value: Any) -> Any:
    """The setting that stands for a parameter given as this value."""
    return value if value is None or isinstance(value, str) else "explicit"


def _with_mode(config: LayerConfig, name: str, mode: Any) -> LayerConfig:
    return replace(config, scaling=mode) if name == "scaling" else replace(config, biases=mode)


def _written(value: Any) -> str:
    """Python for a value, down to the last bit of an array; one that is constant is written as such."""
    if isinstance(value, np.ndarray):
        dtype = f"dtype={value.dtype.name!r}"
        if value.size and bool(np.all(value == value.flat[0])):
            return f"np.full({value.shape}, {value.flat[0].item()!r}, {dtype})"
        return f"np.array({value.tolist()!r}, {dtype})"
    if isinstance(value, tuple):
        inside = ", ".join("..." if item is ... else repr(item) for item in value)
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    return repr(value)


def _returned(y: Array, out: Array | None) -> Any:
    return y if out is None else out


def _applicable(moments: Any, resolved: Resolved, config: LayerConfig) -> tuple[Array, Array]:
    """Mean and variance of given moments, one value for each slice of an array."""
    if not isinstance(moments, Moments):
        msg = f"moments are of type {type(moments).__name__}\npass what measure(x) returned, or gn.Moments"
        raise ParameterError(msg, code="P020")
    center = config.method == "Standardize"
    if center and moments.mean is None:
        msg = "the moments have no mean, and method Standardize subtracts one\nthey were measured with method RMS"
        raise ParameterError(msg, code="P021")
    variance = moments.variance(config.unbiased) if center else moments.mean_square()
    mean = moments.mean if center and moments.mean is not None else np.zeros(())
    try:
        return (
            np.broadcast_to(mean, resolved.moments_shape),
            np.broadcast_to(variance, resolved.moments_shape),
        )
    except ValueError:
        msg = f"the moments have the shape {moments.shape}, and the slices of an input of shape {resolved.shape} "
        msg += f"{resolved.moments_shape}\n"
        msg += "they have one axis for each level that is kept, and the groups of one that is not"
        raise ParameterError(msg, code="P022") from None
