"""The named normalizations. Each is one call of `NormalizationLayer`."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsIndex

from gennorm.errors import ConfigError, GroupError, LevelConflictError, LevelRangeError, ParameterError, shown, suggest
from gennorm.layer.hints import checked_arguments, unknown_argument
from gennorm.layer.layer import NormalizationLayer
from gennorm.layer.texts import DEFAULTS
from gennorm.moments import Moments
from gennorm.spec import names as level_names
from gennorm.spec.config import MOST_LEVELS, integer
from gennorm.spec.names import Names

__all__ = ["batch_norm", "feature_norm", "group_norm", "instance_norm", "layer_norm", "normalize", "rms_norm"]

PLAIN = frozenset((str, int, float, bool))  # types of settings that can be keys of a dictionary


@checked_arguments("batch_norm")
def batch_norm(
    channels: SupportsIndex | None,
    *,
    channel_level: SupportsIndex | str = 1,
    spatial_levels: SupportsIndex | None = None,
    momentum: float = 0.99,
    epsilon: float = 1e-3,
    **keywords: Any,
) -> NormalizationLayer:
    r"""Batch normalization: over the batch and everything but the channels, with parameters for each channel.

    .. math:: y_{nci} = \gamma_c \frac{x_{nci} - \mu_c}{\sqrt{\sigma_c^2 + \epsilon}} + \beta_c

    ``batch_norm(64)`` is ``NormalizationLayer("{0, 2;;All}", 1, input_shape=(64, ...), batched=True,
    statistics="moving")``, for batches of any rank. Called with ``training=True`` it normalizes by the moments of the
    batch and folds them into the moving ones; otherwise by the moving ones. With ``statistics="input"`` it always
    normalizes by those of the batch.

    Parameters
    ----------
    channels : int or None
        Size of the channel level; None if it varies.
    channel_level : int or str, default 1
        The level of the channels: 1 for channels first, -1 for channels last, or its name in `input_levels`.
    spatial_levels : int, optional
        Number of levels of an example besides the channels: 1 for sequences, 2 for pictures, 3 for volumes. The layer
        then refuses arrays of another rank. Batches of any rank if not given.
    momentum : float, default 0.99
        The weight of the old moving moments in an update: ``momentum * old + (1 - momentum) * new``.
    epsilon : float, default 1e-3
        Added to the variance.
    **keywords
        The other arguments of `NormalizationLayer`.

    Returns
    -------
    NormalizationLayer

    Raises
    ------
    GennormError
        As `NormalizationLayer`.

    References
    ----------
    S. Ioffe, C. Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate
    Shift", 2015, arXiv:1502.03167.

    Examples
    --------
    >>> import numpy as np
    >>> import gennorm as gn
    >>> layer = gn.batch_norm(3, channel_level=-1, momentum=0.5)
    >>> x = np.random.default_rng(0).normal(5, 2, (16, 8, 8, 3))
    >>> np.allclose(layer(x, training=True).mean((0, 1, 2)), 0)
    True
    >>> layer.moments.mean.round(1)
    array([2.4, 2.5, 2.5])
    """
    names = _names(keywords)
    level = _channel_level(channel_level, names)
    fixed = {
        "aggregation_levels": _listed("0", *_other_levels(names, level)),
        "scaling_levels": level,
        "input_shape": _example(channels, level, spatial_levels),
    }
    settings = {"epsilon": epsilon, "momentum": momentum, "batched": True, "statistics": "moving"}
    return _made(batch_norm, fixed, settings, keywords)


@checked_arguments("instance_norm")
def instance_norm(
    channels: SupportsIndex | None,
    *,
    channel_level: SupportsIndex | str = 1,
    spatial_levels: SupportsIndex | None = None,
    **keywords: Any,
) -> NormalizationLayer:
    r"""Instance normalization: over everything but the channels of one example, with parameters for each channel.

    .. math:: y_{nci} = \gamma_c \frac{x_{nci} - \mu_{nc}}{\sqrt{\sigma_{nc}^2 + \epsilon}} + \beta_c

    ``instance_norm(64)`` is ``NormalizationLayer("2;;All", 1, input_shape=(64, ...), batched=True)``, for batches of
    any rank. Without `spatial_levels` the first axis is always the batch: with ``channel_level=-1``, an array of shape
    (H, W, C) is a batch of H sequences. For one picture write ``spatial_levels=2``.

    Parameters
    ----------
    channels : int or None
        Size of the channel level; None if it varies.
    channel_level : int or str, default 1
        The level of the channels: 1 for channels first, -1 for channels last, or its name in `input_levels`.
    spatial_levels : int, optional
        Number of levels of an example besides the channels: 1 for sequences, 2 for pictures, 3 for volumes. The layer
        then takes one example too, and refuses arrays of another rank. Batches of any rank if not given.
    **keywords
        The other arguments of `NormalizationLayer`.

    Returns
    -------
    NormalizationLayer

    Raises
    ------
    GennormError
        As `NormalizationLayer`.

    References
    ----------
    D. Ulyanov, A. Vedaldi, V. Lempitsky, "Instance Normalization: The Missing Ingredient for Fast Stylization", 2016,
    arXiv:1607.08022.

    Examples
    --------
    >>> import numpy as np
    >>> import gennorm as gn
    >>> y = gn.instance_norm(3)(np.random.default_rng(0).normal(5, 2, (16, 3, 8, 8)))
    >>> np.allclose(y.mean((2, 3)), 0)
    True

    One picture, and a batch of them:

    >>> layer = gn.instance_norm(3, channel_level=-1, spatial_levels=2)
    >>> picture = np.random.default_rng(0).normal(5, 2, (20, 30, 3))
    >>> np.allclose(layer(picture).mean((0, 1)), 0)
    True
    >>> np.array_equal(layer(picture[None])[0], layer(picture))
    True
    """
    names = _names(keywords)
    level = _channel_level(channel_level, names)
    fixed = {
        "aggregation_levels": _listed(*_other_levels(names, level)),
        "scaling_levels": level,
        "input_shape": _example(channels, level, spatial_levels),
    }
    return _made(instance_norm, fixed, {"batched": _batched(spatial_levels, names)}, keywords)


@checked_arguments("group_norm")
def group_norm(
    groups: SupportsIndex,
    channels: SupportsIndex | None,
    *,
    channel_level: SupportsIndex | str = 1,
    spatial_levels: SupportsIndex | None = None,
    **keywords: Any,
) -> NormalizationLayer:
    r"""Group normalization: over groups of channels and everything else of one example, parameters for each channel.

    .. math:: y_{nci} = \gamma_c \frac{x_{nci} - \mu_{ng}}{\sqrt{\sigma_{ng}^2 + \epsilon}} + \beta_c, \qquad c \in g

    ``group_norm(32, 256)`` is ``NormalizationLayer("All", 1, {1: 32}, input_shape=(256, ...), batched=True)``, for
    batches of any rank. Without `spatial_levels` the first axis is always the batch: with ``channel_level=-1``, an
    array of shape (H, W, C) is a batch of H sequences. For one picture write ``spatial_levels=2``.

    Parameters
    ----------
    groups : int
        Number of groups, which divides the number of channels. Neighbouring channels make a group.
    channels : int or None
        Size of the channel level; None if it varies.
    channel_level : int or str, default 1
        The level of the channels: 1 for channels first, -1 for channels last, or its name in `input_levels`.
    spatial_levels : int, optional
        Number of levels of an example besides the channels: 1 for sequences, 2 for pictures, 3 for volumes. The layer
        then takes one example too, and refuses arrays of another rank. Batches of any rank if not given.
    **keywords
        The other arguments of `NormalizationLayer`.

    Returns
    -------
    NormalizationLayer

    Raises
    ------
    GennormError
        As `NormalizationLayer`.

    References
    ----------
    Y. Wu, K. He, "Group Normalization", 2018, arXiv:1803.08494.

    Examples
    --------
    >>> import numpy as np
    >>> import gennorm as gn
    >>> x = np.random.default_rng(0).normal(5, 2, (16, 8, 4, 4))
    >>> y = gn.group_norm(2, 8)(x)
    >>> np.allclose(y.reshape(16, 2, -1).mean(-1), 0)
    True
    >>> gn.group_norm(2, 8, spatial_levels=2)
    NormalizationLayer('All', 1, {1: 2}, input_shape=(8, None, None))
    """
    names = _names(keywords)
    level = _channel_level(channel_level, names)
    number = integer(groups)
    if number is None or number < 1:
        msg = f"groups cannot be {shown(groups)}\nwrite into how many groups the channels are split, 1 or more"
        raise ConfigError(msg, code="C055")
    size = integer(channels)
    if size is not None and 0 < size < number:
        swap = f"the number of groups comes first: gn.group_norm({size}, {number})"
        msg = f"group_norm({number}, {size}) would split {size} channels into {number} groups\n"
        msg += swap if number % size == 0 else f"write a number of groups that divides {size}"
        raise GroupError(msg, code="G021")
    fixed = {
        "aggregation_levels": "All",
        "scaling_levels": level,
        "group_number": {level: number},
        "input_shape": _example(channels, level, spatial_levels),
    }
    return _made(group_norm, fixed, {"batched": _batched(spatial_levels, names)}, keywords)


@checked_arguments("layer_norm")
def layer_norm(shape: SupportsIndex | Sequence[SupportsIndex], **keywords: Any) -> NormalizationLayer:
    r"""Layer normalization: over the trailing levels of this shape, with parameters for each of their elements.

    .. math:: y_{ni} = \gamma_i \frac{x_{ni} - \mu_n}{\sqrt{\sigma_n^2 + \epsilon}} + \beta_i

    ``layer_norm(768)`` is ``NormalizationLayer(-1, "Same", input_shape=(..., 768))``, for arrays of any rank.

    Parameters
    ----------
    shape : int or sequence of int
        Sizes of the trailing levels.
    **keywords
        The other arguments of `NormalizationLayer`.

    Returns
    -------
    NormalizationLayer

    Raises
    ------
    GennormError
        As `NormalizationLayer`.

    References
    ----------
    J. L. Ba, J. R. Kiros, G. E. Hinton, "Layer Normalization", 2016, arXiv:1607.06450.

    Examples
    --------
    >>> import numpy as np
    >>> import gennorm as gn
    >>> y = gn.layer_norm(768)(np.random.default_rng(0).normal(5, 2, (4, 10, 768)))
    >>> np.allclose(y.mean(-1), 0), np.allclose(y.std(-1), 1, atol=1e-3)
    (True, True)
    """
    return _made(layer_norm, _trailing("layer_norm", shape), {}, keywords)


@checked_arguments("rms_norm")
def rms_norm(
    shape: SupportsIndex | Sequence[SupportsIndex], *, epsilon: float = 1e-6, **keywords: Any
) -> NormalizationLayer:
    r"""Root mean square normalization over the trailing levels of this shape, with scaling and without biases.

    .. math:: y_{ni} = \gamma_i \frac{x_{ni}}{\sqrt{\frac{1}{d} \sum_{j=1}^{d} x_{nj}^2 + \epsilon}}

    ``rms_norm(768)`` is ``NormalizationLayer(-1, "Same", method="RMS", epsilon=1e-6, biases=None,
    input_shape=(..., 768))``, for arrays of any rank.

    Parameters
    ----------
    shape : int or sequence of int
        Sizes of the trailing levels.
    epsilon : float, default 1e-6
        Added to the mean square.
    **keywords
        The other arguments of `NormalizationLayer`.

    Returns
    -------
    NormalizationLayer

    Raises
    ------
    GennormError
        As `NormalizationLayer`.

    References
    ----------
    B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization", 2019, arXiv:1910.07467.

    Examples
    --------
    >>> import numpy as np
    >>> import gennorm as gn
    >>> y = gn.rms_norm(768)(np.random.default_rng(0).normal(5, 2, (4, 10, 768)))
    >>> np.allclose((y**2).mean(-1), 1)
    True
    """
    fixed = {**_trailing("rms_norm", shape), "method": "RMS"}
    return _made(rms_norm, fixed, {"epsilon": epsilon, "biases": None}, keywords)


@checked_arguments("feature_norm")
def feature_norm(
    level: SupportsIndex | str | Sequence[SupportsIndex | str] | None = -1,
    *,
    mean: Any = None,
    variance: Any = None,
    epsilon: float = 1e-7,
    **keywords: Any,
) -> NormalizationLayer:
    r"""Feature normalization: by the mean and variance of a data set, for each position on the levels that are kept.

    .. math:: y = \frac{x - \mu}{\max(\sigma, \epsilon)}

    ``feature_norm()`` is ``NormalizationLayer("{0, 1;;-2}", epsilon=1e-7, scaling=None, biases=None, batched=True,
    statistics="dataset", epsilon_placement="floor")``, for batches of any rank and for one example without a batch
    axis. Its moments come from `NormalizationLayer.adapt`, or from `mean` and `variance`.

    Parameters
    ----------
    level : int, str, sequence of them, or None, default -1
        The levels that are kept, by number or by their names in `input_levels`: each position on them has its own mean
        and variance. None keeps no level.
    mean, variance : array_like, optional
        The mean and variance to normalize by, broadcast to the sizes of the kept levels.
    epsilon : float, default 1e-7
        The smallest divisor.
    **keywords
        The other arguments of `NormalizationLayer`.

    Returns
    -------
    NormalizationLayer

    Raises
    ------
    LevelConflictError
        A kept level is level 0, the batch.
    ParameterError
        A mean without a variance, or a variance without a mean.
    GennormError
        As `NormalizationLayer`.

    References
    ----------
    Keras, "Normalization layer", keras.io/api/layers/preprocessing_layers/numerical/normalization, version 3.6.

    Examples
    --------
    >>> import numpy as np
    >>> import gennorm as gn
    >>> layer = gn.feature_norm().adapt(np.array([[0.0, 10.0], [2.0, 30.0]]))
    >>> layer(np.array([[0.0, 30.0], [1.0, 20.0]]))
    array([[-1.,  1.],
           [ 0.,  0.]])
    >>> layer.inverse(np.array([[-1.0, 1.0]]))
    array([[ 0., 30.]])
    >>> gn.feature_norm(None, mean=3, variance=4)(np.array([1.0, 3.0, 7.0]))
    array([-1.,  0.,  2.])
    """
    write = "write a level, a sequence of them or None: -1, (1, 3)"
    names = _names(keywords)
    kept = () if level is None else _integers("level", _numbered(level, names), write)
    if 0 in kept:
        msg = "level 0 is the batch, and the moments of a data set are those of all its examples\n"
        msg += "keep levels from 1 on, or from -1 down; None keeps no level"
        raise LevelConflictError(msg, code="L207")
    if (mean is None) != (variance is None):
        given, absent = ("variance", "mean") if mean is None else ("mean", "variance")
        msg = f"{given} is given, and {absent} is not\ngive both, or neither and call adapt(data)"
        raise ParameterError(msg, code="P032")
    settings = {
        "epsilon": epsilon,
        "scaling": None,
        "biases": None,
        "batched": True,
        "statistics": "dataset",
        "epsilon_placement": "floor",
    }
    fixed = {"aggregation_levels": _listed("0", *_other_levels(names, *kept)) if kept else "0;;All"}
    layer = _made(feature_norm, fixed, settings, keywords)
    if mean is not None:
        layer.moments = Moments.from_variance(mean, variance)
    return layer


def normalize(x: Any, aggregation_levels: Any = "2;;All", *, out: Any = None, **keywords: Any) -> Any:
    """Normalize an array over the given levels, without parameters.

    ``normalize(x, -1)`` is ``NormalizationLayer(-1, scaling=None, biases=None)(x)``.

    Parameters
    ----------
    x : ndarray
        One example, or a batch with ``batched=True``.
    aggregation_levels : int, str or sequence, default "2;;All"
        The levels to normalize over.
    out : ndarray, optional
        Where to write the output.
    **keywords
        The other arguments of `NormalizationLayer`, `scaling` and `biases` included.

    Returns
    -------
    ndarray

    Raises
    ------
    GennormError
        As `NormalizationLayer` and its call.

    Examples
    --------
    >>> import numpy as np
    >>> import gennorm as gn
    >>> gn.normalize(np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]]), -1, epsilon=0)
    array([[-1.22474487,  0.        ,  1.22474487],
           [-0.70710678, -0.70710678,  1.41421356]])
    """
    settings = {"aggregation_levels": aggregation_levels, "scaling": None, "biases": None, **keywords}
    plain = all(value is None or type(value) in PLAIN for value in settings.values())
    return (_remembered if plain else _normalizing)(**settings)(x, out=out)


def _normalizing(**settings: Any) -> NormalizationLayer:
    return _made(normalize, {}, {}, settings)


# Making a layer takes as long as a hundred small calls of it. The cache is typed, because True equals 1 as a key.
_remembered = functools.lru_cache(maxsize=256, typed=True)(_normalizing)


def _made(
    preset: Callable[..., Any], fixed: Mapping[str, Any], settings: Mapping[str, Any], keywords: Mapping[str, Any]
) -> NormalizationLayer:
    """The layer of a preset: the settings that define it, and its defaults unless keywords replace them."""
    for name in keywords:
        if name in fixed:
            msg = f"{preset.__name__} takes no {name}: it sets {', '.join(fixed)} itself\n"
            msg += "for other values, call gn.NormalizationLayer"
            raise ConfigError(msg, code="C053")
        if name not in DEFAULTS:
            known = {**inspect.signature(preset).parameters, **DEFAULTS}
            raise unknown_argument(preset.__name__, name, [one for one in known if one not in {*fixed, "keywords"}])
    return NormalizationLayer(**fixed, **{**settings, **keywords})


def _names(keywords: Mapping[str, Any]) -> Names | None:
    """The names of the levels, if a preset was given any."""
    given = keywords.get("input_levels")
    return None if given is None else level_names.read(given)


def _numbered(value: Any, names: Names | None) -> Any:
    """The numbers of levels that are given by name; other values as they are."""
    if names is None:
        return value
    if isinstance(value, (list, tuple)):
        return [_numbered(item, names) for item in value]
    if not isinstance(value, str):
        return value
    number = names.number(value)
    if number is None:
        msg = f"unknown name {shown(value)} of a level{suggest(value, names.all())}\n"
        msg += f"the names in input_levels are {level_names.listed(names)}"
        raise ConfigError(msg, code="C057")
    return number


def _batched(spatial_levels: Any, names: Names | None) -> bool | None:
    """Whether arrays are always batches: where neither argument declares the rank of an example."""
    return True if spatial_levels is None and (names is None or names.rank is None) else None


def _channel_level(value: Any, names: Names | None) -> int:
    """The level of the channels, which cannot be the batch."""
    write = "1 for channels first, -1 for channels last"
    level = integer(_numbered(value, names))
    level = level if level is None or names is None else names.canonical(level)
    if level is None or abs(level) > MOST_LEVELS:
        msg = f"channel_level cannot be {shown(value)}\nwrite a level: {write}"
        raise ConfigError(msg, code="C051")
    if level == 0:
        msg = f"channel_level cannot be 0, the batch\nwrite {write}"
        raise LevelConflictError(msg, code="L208")
    return level


def _integers(what: str, value: Any, write: str, *, least: int = -MOST_LEVELS) -> tuple[int, ...]:
    """The integers of an argument, which is one or a sequence of them."""
    alone = integer(value) is not None
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError  # a text is a sequence of characters
        items = (value,) if alone else tuple(value)
    except TypeError:
        msg = f"{what} cannot be {shown(value)}\n{write}"
        raise ConfigError(msg, code="C050") from None
    numbers = []
    for place, item in enumerate(items, 1):
        number = integer(item)
        if number is None or number < least:
            has = f"cannot be {shown(item)}" if alone else f"cannot be {shown(item)} at place {place}"
            msg = f"{what} {has}\n{write}"
            raise ConfigError(msg, code="C050")
        numbers.append(number)
    return tuple(numbers)


def _listed(*items: str) -> str:
    """The level spec of one or more items."""
    return "{" + ", ".join(items) + "}" if len(items) > 1 else items[0]


def _other_levels(names: Names | None, *kept: int) -> list[str]:
    """The spans of all levels of an example but the kept ones, for any rank, or for that which the names declare."""
    spans: list[str] = []
    kept = kept if names is None else tuple(map(names.canonical, kept))
    start = 1
    for level in [*sorted(level for level in kept if level > 0), *sorted(level for level in kept if level < 0)]:
        crosses = start > 0 > level  # from levels that are counted from the front to those counted from the end
        if crosses or start < level:
            spans.append(f"{start};;{level - 1}")
        start = level + 1
    ends = start == 0 or (bool(spans) and names is not None and start - 1 == names.rank)
    return spans if ends else [*spans, f"{start};;All"]


def _example(channels: Any, level: int, spatial_levels: Any) -> tuple[Any, ...]:
    """Return the `input_shape` of examples with channels on this level, for any rank unless that is given."""
    size = integer(channels)
    if channels is not None and (size is None or size < 0):
        msg = f"channels cannot be {shown(channels)}\nwrite how many there are, or None where that varies"
        raise ConfigError(msg, code="C052")
    before, after = (level - 1, None) if level > 0 else (None, -level - 1)
    if spatial_levels is not None:
        number = integer(spatial_levels)
        if number is None or not 0 <= number < MOST_LEVELS:
            msg = f"spatial_levels cannot be {shown(spatial_levels)}\n"
            msg += "write how many levels an example has besides the channels: 1 for sequences, 2 for pictures"
            raise ConfigError(msg, code="C056")
        if abs(level) > number + 1:
            msg = f"channel_level={level} does not exist in examples with spatial_levels={number}\n"
            msg += f"they have {number + 1} levels, the channels included: write a level from 1 to {number + 1}, or -1"
            raise LevelRangeError(msg, code="L110")
        before = level - 1 if level > 0 else number + level + 1
        after = number - before
    return (*([...] if before is None else [None] * before), size, *([...] if after is None else [None] * after))


def _trailing(preset: str, shape: Any) -> dict[str, Any]:
    """The settings that normalize over the last levels, which have these sizes."""
    write = "write a size or a tuple of sizes: 768, (14, 14)"
    sizes = _integers(f"the shape of {preset}", shape, write, least=0)
    if not sizes:
        msg = f"{preset} needs at least one size\n{write}"
        raise ConfigError(msg, code="C054")
    levels = -1 if len(sizes) == 1 else f"-{len(sizes)};;All"
    return {"aggregation_levels": levels, "scaling_levels": "Same", "input_shape": (..., *sizes)}
