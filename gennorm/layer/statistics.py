"""Held moments of a layer, moving ones or those of a data set: their shape, their use, their update."""

from __future__ import annotations

import functools
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gennorm.errors import (
    ConfigError,
    GennormError,
    InitializationError,
    LevelRangeError,
    ParameterError,
    ShapeError,
)
from gennorm.moments import Moments, are_constant, spread_of
from gennorm.spec import levels
from gennorm.spec.config import GroupMapping, LayerConfig, Resolved, resolve_config

if TYPE_CHECKING:
    from gennorm.engine.interface import PreparedCall

__all__ = [
    "Given",
    "accepted",
    "applicable",
    "checked",
    "folded",
    "folded_rows",
    "following",
    "held",
    "held_shape",
    "held_variance",
    "initial",
    "is_one_example",
    "measured",
    "require_dataset",
    "require_held",
    "require_inverse",
    "required",
    "ungrouped",
    "used",
]

Array = npt.NDArray[Any]


def initial(config: LayerConfig, shape: tuple[int, ...] | None) -> Moments | None:
    """Return the initial held moments: mean 0 and variance 1 for moving ones, otherwise None."""
    if config.statistics != "moving":
        return None
    mean = None if config.method == "RMS" else np.zeros(shape or ())
    return Moments.from_variance(mean, np.ones(shape or ()))


def held_shape(resolved: Resolved) -> tuple[int, ...]:
    """Return the shape of held moments: that of the moments of an array, without the batch and its groups.

    Examples
    --------
    >>> config = LayerConfig.make("2;;All", input_shape=(3, None, None))
    >>> held_shape(resolve_config(config, (8, 3, 4, 4))), held_shape(resolve_config(config, (3, 4, 4)))
    ((3,), (3,))
    """
    return resolved.moments_shape[_keeps_batch(resolved) :]


def _keeps_batch(resolved: Resolved) -> bool:
    """Return whether the first axis of an array's moments is the batch, or its groups."""
    return resolved.batched and (0 not in resolved.aggregation or resolved.groups[0] > 1)


def ungrouped(config: LayerConfig, shape: tuple[int, ...]) -> LayerConfig:
    """Return the config without groups of the batch, which held moments do not have.

    Examples
    --------
    >>> config = LayerConfig.make("{0, 2}", 1, [8, 1], batched=True, statistics="moving")
    >>> ungrouped(config, (3, 4, 5)).group_number
    GroupMapping(items=((2, 1),))
    """
    groups = config.group_number
    if groups is None or not shape or not levels.uses_batch(config.aggregation_levels):
        return config
    if not isinstance(groups, GroupMapping):
        aggregated = levels.resolve(
            config.aggregation_levels, len(shape) - 1, batched=True, argument=levels.AGGREGATION
        )
        numbers = (groups,) if isinstance(groups, int) else groups
        groups = GroupMapping(tuple(zip(aggregated, numbers, strict=True)))
    rest = tuple((level, number) for level, number in groups.items if level != 0)
    return replace(config, group_number=GroupMapping(rest) if rest else None)


def is_one_example(config: LayerConfig, shape: tuple[int, ...]) -> bool:
    """Return whether level 0 is aggregated and an array is not a batch but one example.

    A layer with held moments treats such an example as a batch of one.

    Examples
    --------
    >>> config = LayerConfig.make("{0, 1;;-2}", batched=True, statistics="dataset")
    >>> is_one_example(config, (3,)), is_one_example(config, (8, 3))
    (True, False)
    """
    if not levels.uses_batch(config.aggregation_levels):
        return False
    try:
        resolve_config(ungrouped(config, shape), shape)
    except (LevelRangeError, ShapeError) as error:
        if error.code == "S010":  # a size differs from the declared one
            return False
    else:
        return False
    try:
        resolve_config(ungrouped(config, (1, *shape)), (1, *shape))
    except GennormError:
        return False
    return True


# --------------------------------------------------------------------------------------------------------- the use


def measured(call: PreparedCall, rows: Array) -> Moments:
    """Make moments of rows in the order of a call (mean, second moment and perhaps count); they share the memory."""
    rows.setflags(write=False)
    shaped = call.shaped(rows)
    if shaped.flags.writeable:  # a copy in another order
        shaped.setflags(write=False)
    count = shaped[2, ...] if len(rows) == 3 else _filled(shaped.shape[1:], call.plan.resolved.count)
    return Moments.of_read_only(count, shaped[0, ...] if call.center else None, shaped[1, ...])


def applicable(moments: Any, resolved: Resolved, config: LayerConfig) -> Array:
    """Return mean and variance of given moments, one value for each slice of an array."""
    mean, variance = used(moments, config)
    try:
        return _over_slices(mean, variance, resolved.moments_shape)
    except ValueError:
        msg = f"the moments have the shape {variance.shape}, and an input of shape {resolved.shape} needs "
        msg += f"{resolved.moments_shape}, or fewer that broadcast to it\n"
        msg += "their axes are the kept levels, including the batch, and the groups of grouped levels"
        raise ParameterError(msg, code="P022") from None


class Given(NamedTuple):
    """A mean and a variance that are used without change: arrays of floats; the mean is None for the method RMS.

    Examples
    --------
    >>> Given(None, np.ones(3)).mean is None
    True
    """

    mean: Array | None
    variance: Array


def used(moments: Any, config: LayerConfig) -> tuple[Array | None, Array]:
    """Return mean and variance of moments; the mean is None for the method RMS."""
    center = config.method == "Standardize"
    if type(moments) is Given:
        return moments if center else (None, moments.variance)
    if type(moments) is tuple:
        if len(moments) != 2:
            msg = f"moments are a tuple of {len(moments)} values, and a pair of mean and variance has 2\n"
            msg += "pass (mean, variance), what measure(x) returned, or gn.Moments"
            raise ParameterError(msg, code="P025")
        mean, variance = moments
        moments = Moments.from_variance(mean if center else None, variance)
        _require_kind(moments, config)
        return moments.mean, moments.m2
    _require_kind(moments, config)
    return (moments.mean, moments.variance(config.unbiased)) if center else (None, moments.mean_square())


def held(moments: Moments | None, resolved: Resolved, config: LayerConfig) -> Array:
    """Return held mean and variance, one value for each slice of an array.

    Raises
    ------
    InitializationError
        The layer has no moments yet.
    ParameterError
        The held moments do not fit the slices.
    """
    moments = required(moments)
    require_held(moments, resolved)
    return _over_slices(moments.mean, held_variance(moments, config), resolved.moments_shape)


def held_variance(moments: Moments, config: LayerConfig) -> Array:
    """Return the variance that a layer with these held moments divides by, or their mean square with the method RMS.

    It is used without change, except that it is 1 in constant slices where the layer has ``constant="one"``.

    Examples
    --------
    >>> moments = Moments([4, 4], [2.0, 3.0], [8.0, 0.0])
    >>> held_variance(moments, LayerConfig.make(statistics="dataset")).tolist()
    [2.0, 0.0]
    >>> held_variance(moments, LayerConfig.make(statistics="dataset", constant="one")).tolist()
    [2.0, 1.0]
    """
    variance = spread_of(moments)
    if config.constant != "one":
        return variance
    return np.where(_constant(moments, variance), 1.0, variance)


def _constant(moments: Moments, variance: Array) -> Array:
    with np.errstate(all="ignore"):
        return np.asarray(are_constant(moments.count, moments.mean, variance))


def accepted(moments: Moments, config: LayerConfig, *, warn: bool = False) -> Moments:
    """Return moments that a layer is going to hold; refuse constant slices if it has ``constant="raise"``.

    With `warn`, it warns of constant slices if it has ``constant="one"``.

    Raises
    ------
    ParameterError
        The message has the number of constant slices and the position of the first.
    """
    if config.constant == "floor":
        return moments
    found = _constant(moments, spread_of(moments))
    if not found.any():
        return moments
    at = f", the first at {tuple(np.argwhere(found)[0].tolist())}" if found.ndim else ""
    what = "mean square" if moments.mean is None else "variance"
    msg = f"{np.count_nonzero(found):,} of {found.size:,} slices are constant{at}: their {what} is not more "
    msg += "than rounding may make it"
    if config.constant == "raise":
        msg += '\nleave them out, or write constant="one" to divide them by 1, constant="floor" to divide by epsilon'
        raise ParameterError(msg, code="P121")
    if warn:
        warnings.warn(f"{msg}; 1 is used for it", UserWarning, stacklevel=4)
    return moments


def required(moments: Moments | None) -> Moments:
    """Return held moments; refuse a layer that was not adapted yet."""
    if moments is None:
        msg = 'the layer has no moments yet: with statistics="dataset" they come from adapt\n'
        msg += "call adapt(data), or set layer.moments"
        raise InitializationError(msg, code="I010")
    return moments


def require_held(moments: Moments | Array, resolved: Resolved) -> None:
    """Refuse an array whose slices do not fit the held moments."""
    expected = held_shape(resolved)
    if moments.shape == expected or _broadcasts(moments.shape, expected):
        return
    axes = range(len(resolved.shape))
    kept = [axis for axis in axes if axis not in resolved.aggregation or resolved.groups[axis] > 1]
    kept = kept[len(kept) - len(expected) :]
    if len(moments.shape) == len(expected):
        wrong = next(i for i, size in enumerate(expected) if moments.shape[i] not in {1, size})
        place = resolved.name(kept[wrong])
        size = expected[wrong]
        has = f"{size} groups" if kept[wrong] in resolved.aggregation else f"size {size}"
        msg = f"{place} of the input has {has}, and the moments of the layer have {moments.shape[wrong]} there\n"
    else:
        msg = f"the input has {len(expected)} kept levels, and the moments of the layer have {len(moments.shape)}\n"
    msg += f"an input of shape {resolved.shape} needs moments of shape {expected}; the layer's have {moments.shape}"
    raise ParameterError(msg, code="P023")


def require_dataset(config: LayerConfig) -> None:
    """Refuse `adapt` for a layer that does not take its moments from a data set."""
    if config.statistics != "dataset":
        msg = f'the layer takes no moments from a data set: it was made with statistics="{config.statistics}"\n'
        msg += 'make it with statistics="dataset", or with gn.feature_norm'
        raise ConfigError(msg, code="C111")


def require_inverse(config: LayerConfig, moments: Moments | None, scaling: Array | None) -> None:
    """Refuse to invert an output without known moments, or one that was multiplied by 0."""
    if moments is None and config.statistics == "input":
        msg = 'inverse needs moments: with statistics="input" the layer holds none\n'
        msg += "pass those that the input was normalized by: inverse(y, layer.measure(x))"
        raise ParameterError(msg, code="P030")
    if scaling is not None and not np.all(scaling):
        at = np.argwhere(scaling == 0)[0].tolist()
        msg = f"scaling is 0 at {at}, and the input of a product with 0 cannot be computed\n"
        msg += "set a scaling without zeros, or scaling=None"
        raise ParameterError(msg, code="P031")


def checked(value: Any, config: LayerConfig, shape: tuple[int, ...] | None) -> Moments:
    """Check moments that are assigned to a layer: their method and, if it is known, their shape.

    Raises
    ------
    ConfigError
        The layer takes its moments from its input.
    ParameterError
        The value is not a `Moments`, or has another method or shape.
    """
    if config.statistics == "input":
        msg = 'the layer holds no moments: with statistics="input" it uses those of the input\n'
        msg += 'call apply(x, moments), or make the layer with statistics="dataset" or "moving"'
        raise ConfigError(msg, code="C110")
    _require_kind(value, config)
    moments: Moments = value
    if config.method == "RMS" and moments.mean is not None:
        moments = Moments.from_variance(None, moments.mean_square(), moments.count)
    if shape is None or moments.shape == shape:
        return accepted(moments, config)
    if not _broadcasts(moments.shape, shape):
        msg = f"the moments have the shape {moments.shape}, and those of the layer {shape}\n"
        msg += "their axes are the kept levels of an example, and the groups of grouped levels"
        raise ParameterError(msg, code="P024")
    mean = None if moments.mean is None else np.broadcast_to(moments.mean, shape)
    return accepted(Moments(moments.count, mean, np.broadcast_to(moments.m2, shape)), config)


def _require_kind(moments: Any, config: LayerConfig) -> None:
    if not isinstance(moments, Moments):
        msg = f"moments are of type {type(moments).__name__}\npass what measure(x) returned, or gn.Moments"
        raise ParameterError(msg, code="P020")
    if config.method == "Standardize" and moments.mean is None:
        msg = "the moments have no mean, and method Standardize subtracts one\n"
        msg += 'pass moments with a mean, or make the layer with method="RMS"'
        raise ParameterError(msg, code="P021")


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def _over_slices(mean: Array | None, variance: Array, shape: tuple[int, ...]) -> Array:
    rows = np.empty((2, *shape))
    if variance.shape == shape:  # broadcasting takes as long as planning a small array
        rows[0], rows[1] = 0.0 if mean is None else mean, variance
    else:
        rows[0] = 0.0 if mean is None else np.broadcast_to(mean, shape)
        rows[1] = np.broadcast_to(variance, shape)
    return rows


# ---------------------------------------------------------------------------------------------------------- the update


@functools.lru_cache(64)
def _filled(shape: tuple[int, ...], count: int) -> Array:
    """Return a read-only array of one number, which takes no memory: the count of slices that are counted in full."""
    number = np.array(float(count))
    number.setflags(write=False)
    return np.broadcast_to(number, shape)


def _ones(shape: tuple[int, ...]) -> Array:
    """Return the count of moving moments, which is 1 for every slice."""
    return _filled(shape, 1)


def folded(
    moving: Moments, batch: Moments, resolved: Resolved, config: LayerConfig, *, unbiased: bool = False
) -> Moments:
    r"""Return the moving moments after an update by the moments of an array.

    .. math:: v \leftarrow \text{momentum} \cdot v + (1 - \text{momentum}) \cdot v_\text{batch}

    The variance of the batch is biased, or `unbiased` as in PyTorch. If the batch is kept or grouped, its slices are
    averaged first. A slice without counted elements has no effect.

    Examples
    --------
    >>> config = LayerConfig.make(0, 1, batched=True, statistics="moving", momentum=0.75)
    >>> resolved = resolve_config(config, (4, 1))
    >>> moments = folded(Moments.from_variance(0.0, 1.0), Moments([4], [8.0], [20.0]), resolved, config)
    >>> moments.mean, moments.variance()
    (array([2.]), array([2.]))
    """
    require_held(moving, resolved)
    mean, variance = following(moving.mean, spread_of(moving), batch, resolved, config, unbiased=unbiased)
    return Moments.trusted(_ones(variance.shape), mean, variance)


def folded_rows(moving: Moments, rows: Array, call: PreparedCall, config: LayerConfig) -> Moments:
    """Return the same as `folded` for the rows that a call measured, in a few microseconds."""
    count, mean, shape = moving.count, moving.mean, moving.m2.shape
    if (
        len(rows) > 2
        or call.plan.resolved.count == 0
        or not 0 < config.momentum < 1
        or shape != call.held_shape
        or count is not _ones(shape)
    ):
        return folded(moving, measured(call, rows.copy()), call.plan.resolved, config)
    new = np.empty((2, *shape))
    new[0] = 0.0 if mean is None else mean
    new[1] = moving.m2
    call.fold(rows, new)
    new.setflags(write=False)
    return Moments.of_read_only(count, None if mean is None else new[0, ...], new[1, ...])


def following(
    mean: Array | None,
    variance: Array,
    batch: Moments,
    resolved: Resolved,
    config: LayerConfig,
    *,
    unbiased: bool = False,
) -> tuple[Array | None, Array]:
    """Do the same as `folded` for arrays of float64; return new arrays."""
    with np.errstate(all="ignore"):
        olds = [variance] if mean is None else [variance, mean]
        news = [batch.mean_square()] if batch.mean is None else [batch.variance(unbiased), batch.mean]
        counted = batch.count
        if _keeps_batch(resolved):
            counts = (counted > 0).astype(np.float64)
            counted = counts.sum(axis=0)
            news = [(new * counts).sum(axis=0) / np.maximum(counted, 1.0) for new in news]
        found = [_step(old, new, config.momentum) for old, new in zip(olds, news, strict=True)]
        if not (counted.size and counted.min() > 0):
            found = [np.where(counted == 0, old, new) for old, new in zip(olds, found, strict=True)]
    spread, *means = map(np.asarray, found)
    return means[0] if means else None, spread


def _step(old: Array, new: Array, momentum: float) -> Array:
    # With weight 0 even NaN and infinities have no effect.
    if momentum == 1:
        return old + np.zeros_like(new)
    return new + np.zeros_like(old) if momentum == 0 else momentum * old + (1 - momentum) * new
