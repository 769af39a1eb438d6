"""Moments: count, mean and centred second moment of slices, as a value that can be merged.

A normalization needs these three numbers of each slice. The moments of the parts of a slice can be merged to the
moments of the whole slice, in any order and for any number of parts: threads, batches, files and machines merge their
results with ``+``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from operator import index
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Self, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gennorm import definition
from gennorm.errors import DtypeError, FrozenError, InputError, ParameterError, suggest
from gennorm.masks import broadcast, broadcast_mask
from gennorm.spec.axes import Pooling, checked_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Moments", "are_constant", "checked_weights", "real_array", "spread_of", "two_sum"]

Floats = NDArray[np.float64]

FORMAT: Final = "gennorm/moments"
VERSION: Final = 1
_KEYS: Final = ("format", "version", "shape", "count", "mean", "m2")
_NOT_FINITE: Final = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
# A sum of squares below this may have lost terms that underflowed: the squares of numbers below 1e-154 do.
_TINY: Final = 1e-250
_PUBLIC: Final = ("count", "mean", "m2")
_EPSILON: Final = 2.0**-52  # of float64
_set: Final = object.__setattr__


class Moments:
    r"""Count, mean and centred second moment of each slice, in float64.

    .. math:: n = \sum_i w_i, \qquad
              m = \frac{1}{n} \sum_i w_i x_i, \qquad
              M_2 = \sum_i w_i (x_i - m)^2

    The arrays have one axis for each kept level, including the batch, and one for the groups of a grouped level: the
    moments of a layer norm of ``(N, T, D)`` have the shape ``(N, T)``, of a group norm ``(N, G)``, of a batch norm
    ``(C,)``.

    Moments of the RMS method have no mean: ``mean`` is None and ``m2`` is the plain sum of squares,
    :math:`\sum_i w_i x_i^2`.

    Parameters
    ----------
    count : array_like
        The number of elements of each slice, or the sum of their weights; finite and at least 0.
    mean : array_like or None
        Mean of each slice, or None for moments of the RMS method.
    m2 : array_like
        Sum of squared deviations from the mean, at least 0; the sum of squares where `mean` is None.

    Attributes
    ----------
    count, m2 : ndarray of float64
        Broadcast against each other, copied and read-only.
    mean : ndarray of float64, or None

    Raises
    ------
    ParameterError
        The shapes do not broadcast; a count is negative, infinite or NaN; a second moment is negative.
    DtypeError
        The values are not real numbers.
    InputError
        A masked array was given.
    FrozenError
        An attribute is assigned or deleted.

    Notes
    -----
    ``a + b`` are the moments of everything counted in `a` or in `b`, by the formula of Chan, Golub and LeVeque. A slice
    whose count is 0 is neutral: its mean and second moment are set to 0, and merging it returns the other one, bit by
    bit.

    Merging is as exact as one computation over all elements. The mean and `m2` are stored in two float64 numbers each,
    the value and its rounding error, so that the error does not grow with the number of merges. Let :math:`u =
    2^{-53}`. For moments that `Moments.of` computed, or ``layer.adapt``, in pieces of any sizes and merged in any
    order,

    - the mean is at most 1 unit in the last place plus :math:`8u` standard deviations away from the exact mean;
    - the relative error of `m2` and of the variance is at most :math:`32u`, plus that of NumPy's sum over a piece.

    Moments that were made from one float64 mean, by the constructor, `from_variance`, `from_dict`, ``layer.measure`` or
    a file, are as exact as that mean. Pickles and copies keep both numbers; `to_dict` and files keep the first.

    A result beyond the range of float64 is infinite, never another finite number. An infinite value in a slice makes
    its mean infinite and its `m2` NaN; NaN makes both NaN.

    Two moments are equal if their shapes and all their values are equal; NaN equals NaN.

    References
    ----------
    T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances",
    1979, formulas 2.1a and 2.1b.

    Examples
    --------
    >>> import numpy as np
    >>> from gennorm.moments import Moments
    >>> first = Moments.of(np.array([1.0, 2.0, 3.0]))
    >>> second = Moments.of(np.array([10.0]))
    >>> first + second
    Moments(count=4., mean=4., m2=50.)
    >>> (first + second).variance()
    array(12.5)
    >>> (first + second).variance(unbiased=True)
    array(16.66666667)
    """

    __slots__ = ("_lost_m2", "_lost_mean", "count", "m2", "mean")

    count: Floats
    mean: Floats | None
    m2: Floats
    # The rounding errors of mean and m2; 0 where they are not known.
    _lost_mean: Floats | float
    _lost_m2: Floats | float

    def __init__(self, count: ArrayLike, mean: ArrayLike | None, m2: ArrayLike) -> None:
        counts, squares = _floats(count, "count"), _floats(m2, "m2")
        means = None if mean is None else _floats(mean, "mean")
        if not counts.shape == squares.shape == (counts if means is None else means).shape:
            counts, means, squares = _broadcast(counts, means, squares)
        # A NaN makes the first comparison false.
        if counts.size and not 0 < counts.min() <= counts.max() < np.inf:
            _all(np.isfinite(counts) & (counts >= 0), counts, "a count", "finite and at least 0")
            empty = counts == 0
            squares = np.where(empty & ~(squares < 0), 0.0, squares)
            means = None if means is None else np.where(empty, 0.0, means)
        if (squares < 0).any():
            _all(~(squares < 0), squares, "a second moment", "at least 0")
        own = None if means is None else np.array(means, np.float64)
        _fill(self, np.array(counts, np.float64), own, np.array(squares, np.float64))

    def __setattr__(self, name: str, value: object = None) -> NoReturn:
        if name in _PUBLIC:
            msg = f"{name} of moments cannot be assigned: moments do not change\n"
            msg += "make new ones: Moments(count, mean, m2)"
        else:
            msg = f'moments have no attribute "{name}"{suggest(name, _PUBLIC)}\n'
            msg += "they have count, mean and m2, which cannot be assigned; make new ones: Moments(count, mean, m2)"
        raise FrozenError(msg, code="P111")

    __delattr__ = __setattr__

    # Constructors ---------------------------------------------------------------------------------------------------

    @classmethod
    def trusted(
        cls,
        count: Floats,
        mean: Floats | None,
        m2: Floats,
        lost_mean: Floats | float = 0.0,
        lost_m2: Floats | float = 0.0,
    ) -> Self:
        """Make moments of new float64 arrays of one shape without checking or copying them.

        The arrays become read-only, so nothing else may refer to them. `mean` and `m2` are 0 where `count` is 0.
        `lost_mean` and `lost_m2` are their rounding errors, at most half a unit in the last place.

        Examples
        --------
        >>> import numpy as np
        >>> Moments.trusted(np.ones(2), None, np.array([1.0, 4.0]))
        Moments(count=[1., 1.], mean=None, m2=[1., 4.])
        """
        moments = cls.__new__(cls)
        _fill(moments, count, mean, m2, lost_mean, lost_m2)
        return moments

    @classmethod
    def of_read_only(
        cls,
        count: Floats,
        mean: Floats | None,
        m2: Floats,
        lost_mean: Floats | float = 0.0,
        lost_m2: Floats | float = 0.0,
    ) -> Self:
        """Make moments of read-only float64 arrays of one shape, whose bases are read-only too.

        Examples
        --------
        >>> import numpy as np
        >>> rows = np.ones((3, 2))
        >>> rows.setflags(write=False)
        >>> Moments.of_read_only(*rows)
        Moments(count=[1., 1.], mean=[1., 1.], m2=[1., 1.])
        """
        moments = cls.__new__(cls)
        _set(moments, "count", count)
        _set(moments, "mean", mean)
        _set(moments, "m2", m2)
        _set(moments, "_lost_mean", lost_mean)
        _set(moments, "_lost_m2", lost_m2)
        return moments

    @classmethod
    def from_variance(cls, mean: ArrayLike | None, variance: ArrayLike, count: ArrayLike = 1) -> Self:
        """Make moments that have this mean and this biased variance.

        Parameters
        ----------
        mean : array_like or None
            Mean of each slice; None makes moments of the RMS method, and `variance` is the mean square.
        variance : array_like
            Variance over the count, at least 0.
        count : array_like, default 1
            The weight of these moments when they are merged.

        Returns
        -------
        Moments

        Raises
        ------
        ParameterError, DtypeError, InputError
            As the constructor; a variance is negative.

        Examples
        --------
        >>> import numpy as np
        >>> moments = Moments.from_variance([0.0, 5.0], [1.0, 4.0], count=10)
        >>> moments.m2
        array([10., 40.])
        >>> moments.variance()
        array([1., 4.])
        """
        spread, weight = _floats(variance, "variance"), _floats(count, "count")
        _all(~(spread < 0), spread, "a variance", "at least 0")
        try:
            with np.errstate(all="ignore"):
                m2 = spread * weight
        except ValueError:
            msg = f"a variance of shape {spread.shape} and a count of shape {weight.shape} do not broadcast"
            raise ParameterError(msg, code="P101") from None
        return cls(weight, mean, m2)

    @classmethod
    def of(
        cls,
        array: NDArray[Any],
        *,
        axes: SupportsIndex | tuple[SupportsIndex, ...] | None = None,
        mask: NDArray[np.bool] | None = None,
        weights: ArrayLike | None = None,
        method: Literal["Standardize", "RMS"] = "Standardize",
    ) -> Self:
        """Compute the moments of the slices of an array, in float64.

        There are two passes: the mean, then the deviations from it, which also give the rounding error of the mean.
        Numbers whose sums or squares would overflow or underflow are first scaled by a power of two.

        Parameters
        ----------
        array : ndarray
            Real numbers of any dtype and rank.
        axes : int or tuple of int, optional
            The axes (0-based, negative from the end) that are aggregated, as in ``np.mean(array, axis=axes)``; by
            default all of them. The moments have the remaining axes.
        mask : ndarray of bool, optional
            True elements count; other elements have no effect, even NaN. It broadcasts to the array as in NumPy: its
            axes are the last ones of the array. A mask with fewer axes must not fit the first axes as well.
        weights : array_like, optional
            Finite and at least 0; a weight of 3 means three repetitions. They broadcast as `mask` does.
        method : {"Standardize", "RMS"}
            "RMS" computes the sum of squares and no mean.

        Returns
        -------
        Moments

        Raises
        ------
        InputError
            `array` is not an ndarray, or is a masked array; `mask` is not an ndarray.
        DtypeError
            `array` is complex or not numeric, or `mask` is not boolean.
        ShapeError
            `mask` or `weights` do not broadcast to the array, or fit its first axes as well as its last.
        ParameterError
            An axis does not exist or is named twice; a weight is negative or not finite; an unknown method.

        Examples
        --------
        >>> import numpy as np
        >>> x = np.array([[1.0, 3.0, np.nan], [2.0, 2.0, 5.0]])
        >>> Moments.of(x, axes=1, mask=~np.isnan(x))
        Moments(count=[2., 3.], mean=[2., 3.], m2=[2., 6.])
        >>> Moments.of(x[1], weights=[1, 1, 2])
        Moments(count=4., mean=3.5, m2=9.)
        """
        given: object = array
        if not isinstance(given, np.ndarray):
            msg = (
                f"moments are computed of a NumPy array, not of {_kind(given)}\n"
                "write np.asarray(...) around it if its values are in memory"
            )
            raise InputError(msg, code="A101")
        if method not in ("Standardize", "RMS"):
            msg = f'method is "Standardize" or "RMS", not {method!r}'
            raise ParameterError(msg, code="P108")
        x = _floats(array, "array")
        over = checked_axes(axes, x.ndim)
        weight: NDArray[Any] | None = None if weights is None else checked_weights(weights, x.shape)
        if mask is not None:
            counted = broadcast_mask(mask, x.shape, "an array")
            weight = counted if weight is None else np.where(counted, weight, 0.0)
        return cls.of_floats(x, over, weight, center=method == "Standardize")

    @classmethod
    def of_floats(
        cls, x: Floats, over: tuple[int, ...], weight: NDArray[Any] | None = None, *, center: bool = True
    ) -> Self:
        """Compute the moments of an array of float64, as `of` does, without checking the arguments.

        Parameters
        ----------
        x : ndarray of float64
        over : tuple of int
            The axes that are aggregated, at least 0.
        weight : ndarray, optional
            Weights or a mask, of the shape of `x`.
        center : bool
            Whether there is a mean; moments of the RMS method otherwise.

        Examples
        --------
        >>> import numpy as np
        >>> Moments.of_floats(np.array([[1.0, 3.0], [2.0, 2.0]]), (1,))
        Moments(count=[2., 2.], mean=[2., 2.], m2=[2., 0.])
        """
        if weight is not None:
            # NaN times a weight of 0 is NaN, so elements that do not count are replaced before the multiplication.
            x = np.where(weight > 0, x, 0.0)
        with np.errstate(all="ignore"):
            count, mean, lost, m2, doubtful = _two_passes(x, over, weight, center=center)
            if doubtful:
                count, mean, lost, m2 = _scaled_passes(x, over, weight, center=center)
        if weight is not None and not np.isfinite(count).all():
            return cls(count, mean, m2)  # raises
        return cls.trusted(count, mean, m2, lost)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Read moments that `to_dict` wrote.

        Parameters
        ----------
        data : mapping
            With exactly the keys ``format``, ``version``, ``shape``, ``count``, ``mean``, ``m2``.

        Returns
        -------
        Moments

        Raises
        ------
        ParameterError
            A key is missing or unknown, the format or version is another one, or the values do not fill the shape.

        Examples
        --------
        >>> moments = Moments(8, [0.0, 1.5], [2.0, float("inf")])
        >>> Moments.from_dict(moments.to_dict()) == moments
        True
        """
        if not isinstance(data, Mapping):
            _malformed(f"moments are read from a mapping, not from {_kind(data)}")
        missing = [key for key in _KEYS if key not in data]
        unknown = [key for key in data if key not in _KEYS]
        if missing or unknown:
            _malformed(f"moments with missing keys {missing} and unknown keys {unknown}")
        if data["format"] != FORMAT or data["version"] != VERSION:
            _malformed(f"moments of format {data['format']!r}, version {data['version']!r}")
        try:
            shape = tuple(index(size) for size in data["shape"])
            arrays = [None if data[key] is None else _read(data[key], shape) for key in ("count", "mean", "m2")]
        except (TypeError, ValueError, KeyError):
            _malformed("moments whose values do not fill their shape with numbers")
        count, mean, m2 = arrays
        if count is None or m2 is None:
            _malformed("moments without a count or without m2")
        return cls(count, mean, m2)

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary of numbers, lists and text, which `json` writes and reads without loss.

        Returns
        -------
        dict
            ``format``, ``version``, ``shape``, and flat lists ``count``, ``mean`` (or None), ``m2``. NaN and the
            infinities, for which JSON has no number, are the texts ``"nan"``, ``"inf"`` and ``"-inf"``.

        Examples
        --------
        >>> Moments(8, 0.5, 2.0).to_dict()
        {'format': 'gennorm/moments', 'version': 1, 'shape': [], 'count': [8.0], 'mean': [0.5], 'm2': [2.0]}
        """
        return {
            "format": FORMAT,
            "version": VERSION,
            "shape": list(self.shape),
            "count": _written(self.count),
            "mean": None if self.mean is None else _written(self.mean),
            "m2": _written(self.m2),
        }

    # Properties -----------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """Return one size for each kept level, and the number of groups of a grouped level."""
        return self.count.shape

    def variance(self, unbiased: bool = False) -> Floats:
        """Return the variance of each slice: ``m2 / count``, or ``m2 / (count - 1)``.

        Parameters
        ----------
        unbiased : bool, default False
            Divide by the count minus one. With weights, the count is their sum, so weights mean repetitions.

        Returns
        -------
        ndarray of float64
            0 where the divisor is not positive: nothing counted, or `unbiased` and at most one counted.

        Raises
        ------
        ParameterError
            These are moments of the RMS method, which have no mean.

        Examples
        --------
        >>> Moments([4, 1, 0], 0.0, [8.0, 0.0, 0.0]).variance(unbiased=True)
        array([2.66666667, 0.        , 0.        ])
        """
        if self.mean is None:
            msg = (
                "moments of the RMS method have no variance: they have no mean, and m2 is the sum of squares\n"
                "write mean_square(), the mean of the squares"
            )
            raise ParameterError(msg, code="P103")
        return _quotient(self.m2, self.count - 1 if unbiased else self.count)

    def show(self, *, dark: bool = False) -> Figure:
        """Draw the mean and the deviation of each slice, or its root mean square for moments of the RMS method.

        Parameters
        ----------
        dark : bool, default False
            Whether the page is dark.

        Returns
        -------
        matplotlib.figure.Figure
            With up to 48 slices.

        Raises
        ------
        DrawingError
            Matplotlib is not installed: ``pip install 'gennorm[plot]'``.

        Examples
        --------
        >>> figure = Moments(8, [0.0, 1.5], [2.0, 8.0]).show()
        >>> [axes.get_title(loc="left") for axes in figure.axes]
        ['mean and deviation of 2 slices, of 8 elements each']
        """
        from gennorm.drawing import matplotlib_figures
        from gennorm.drawing.comparison import summarize

        square = spread_of(self)
        figure: Figure = matplotlib_figures().figure_of_moments(summarize(self.count, self.mean, square), dark=dark)
        return figure

    def mean_square(self) -> Floats:
        """Return the mean of the squares of each slice: ``m2 / count``, plus ``mean**2`` where there is a mean.

        Returns
        -------
        ndarray of float64
            0 where nothing was counted.

        Examples
        --------
        >>> import numpy as np
        >>> x = np.array([3.0, 4.0])
        >>> Moments.of(x).mean_square(), Moments.of(x, method="RMS").mean_square()
        (array(12.5), array(12.5))
        """
        quotient = _quotient(self.m2, self.count)
        with np.errstate(all="ignore"):
            return quotient if self.mean is None else np.asarray(quotient + self.mean * self.mean)

    def __add__(self, other: object) -> Moments:
        if not isinstance(other, Moments):
            return NotImplemented
        if self.shape != other.shape:
            msg = (
                f"moments of shape {self.shape} and {other.shape} are not of the same slices\n"
                "moments are merged slice by slice and never broadcast"
            )
            raise ParameterError(msg, code="P102")
        if (self.mean is None) != (other.mean is None):
            msg = "moments with a mean and moments of the RMS method, which have none, cannot be merged"
            raise ParameterError(msg, code="P103")
        with np.errstate(all="ignore"):
            return _merged(self, other)

    def rows(self) -> Floats:
        """Return count, mean, second moment, and what rounding the last two lost, in one new array.

        Examples
        --------
        >>> Moments([4, 2], [1.0, 2.0], [8.0, 0.0]).rows().tolist()
        [[4.0, 2.0], [1.0, 2.0], [8.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
        """
        rows = np.empty((5, *self.shape))
        rows[0] = self.count
        rows[1] = 0.0 if self.mean is None else self.mean
        rows[2], rows[3], rows[4] = self.m2, self._lost_mean, self._lost_m2
        return rows

    @classmethod
    def of_rows(cls, rows: Floats) -> Self:
        """Make moments with a mean of an array such as `rows` returns, which becomes read-only.

        Examples
        --------
        >>> Moments.of_rows(Moments([4, 2], [1.0, 2.0], [8.0, 0.0]).rows())
        Moments(count=[4., 2.], mean=[1., 2.], m2=[8., 0.])
        """
        rows.setflags(write=False)
        return cls.of_read_only(rows[0, ...], rows[1, ...], rows[2, ...], rows[3, ...], rows[4, ...])

    def pooled(
        self,
        axes: SupportsIndex | tuple[SupportsIndex, ...] | None = 0,
        *,
        groups: SupportsIndex | tuple[SupportsIndex, ...] | None = None,
        spread: bool = False,
    ) -> Moments:
        r"""Return the moments of all slices along some axes together.

        .. math:: n = \sum_k n_k, \qquad m = \frac{1}{n} \sum_k n_k m_k, \qquad
                  M = \sum_k M_k + \sum_k n_k (m_k - m)^2

        From the moments (N, C) of an instance norm, axis 0 gives those of a batch norm, axis 1 those of a layer norm,
        and axis 1 in groups those of a group norm.

        Parameters
        ----------
        axes : int or tuple of int, default 0
            The axes (0-based, negative from the end) that are pooled; None means all of them.
        groups : int or tuple of int, optional
            One number for each of the axes: an axis of size d becomes an axis of g contiguous groups of d/g. With 1,
            the default, it vanishes.
        spread : bool, default False
            Return the pooled moments of every slice: the result has the shape of these moments.

        Returns
        -------
        Moments
            As exact as those of one computation over all elements; see the class.

        Raises
        ------
        ParameterError
            An axis does not exist or is named twice; the groups do not divide its size.

        Examples
        --------
        >>> moments = Moments([3, 1], [2.0, 10.0], [2.0, 0.0])
        >>> moments.pooled()
        Moments(count=4., mean=4., m2=50.)
        >>> moments.pooled(0, spread=True).mean
        array([4., 4.])
        >>> Moments(1, [[0.0, 2.0, 5.0, 5.0]], 0).pooled(1, groups=2)
        Moments(count=[[2., 2.]], mean=[[1., 5.]], m2=[[2., 0.]])
        """
        way = Pooling.of(axes, groups, self.shape)
        order = (*way.axes, *(axis for axis in range(len(way.split)) if axis not in way.axes))
        length = math.prod([way.split[axis] for axis in way.axes])

        def in_front(array: Floats) -> Floats:
            return np.broadcast_to(array, self.shape).reshape(way.split).transpose(order).reshape(length, *way.kept)

        if length == 0:
            nothing = np.zeros(way.kept)
            pooled = Moments(nothing, None if self.mean is None else nothing, nothing)
        else:
            pooled = _pooled(_changed(self, in_front), length)
        if not spread:
            return pooled
        ones = [1 if axis in way.axes else size for axis, size in enumerate(way.split)]

        def over_slices(array: Any) -> Floats | None:
            if array is None:
                return None
            values = np.broadcast_to(array, way.kept).reshape(ones)
            return np.broadcast_to(values, way.split).reshape(self.shape)

        return Moments.trusted(*map(over_slices, _members(pooled)))  # type: ignore[arg-type]

    def mixed(self, other: Moments, share: ArrayLike, *, between: bool = False) -> Moments:
        r"""Return moments between these and others: convex combinations of their means and of their variances.

        .. math:: m = (1 - s)\, m_1 + s\, m_2, \qquad v = (1 - s)\, v_1 + s\, v_2
                  \quad [\, + s (1 - s) (m_1 - m_2)^2 \,]

        The last term is added if `between` is True: then `v` is the variance of a mixture, of which a share :math:`1 -
        s` is distributed as these moments say and :math:`s` as the others say. Methods differ: alpha-BN has no such
        term, TTN has it. Moments of the RMS method have mean squares in place of variances, and no such term.

        Parameters
        ----------
        other : Moments
            Of the same method; shapes broadcast.
        share : array_like
            The share of `other`, from 0 to 1; it broadcasts to the slices.
        between : bool, default False
            Whether the variance between the two means counts.

        Returns
        -------
        Moments
            The count is mixed like the mean. A slice in which nothing is counted has no part: the result is the other
            one.

        Raises
        ------
        ParameterError
            `other` is not `Moments`, or has another method; shapes do not broadcast; a share is not from 0 to 1.

        Examples
        --------
        >>> source, batch = Moments.from_variance(0.0, 1.0), Moments.from_variance(4.0, 3.0)
        >>> mixed = source.mixed(batch, 0.25)
        >>> mixed.mean, mixed.variance()
        (array(1.), array(1.5))
        >>> source.mixed(batch, 0.25, between=True).variance()
        array(4.5)
        """
        if not isinstance(other, Moments):
            definition.mix(self, other, share)  # raises
        part = _floats(share, "share")
        _all((part >= 0) & (part <= 1), part, "a share", "from 0 to 1")
        with np.errstate(all="ignore"):
            mixed = definition.mix(self, other, part, between=between)  # type: ignore[arg-type]
        return Moments(*mixed)

    def __radd__(self, other: object) -> Moments:
        # sum() starts from the number 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Moments):
            return NotImplemented
        if (self.mean is None) != (other.mean is None):
            return False
        pairs = [(self.count, other.count), (self.mean, other.mean), (self.m2, other.m2)]
        return all(
            a is b or (a is not None and b is not None and np.array_equal(a, b, equal_nan=True)) for a, b in pairs
        )

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Callable[..., Moments], tuple[Any, ...]]:
        # Through `trusted`, which makes the arrays read-only again.
        return self.trusted, _members(self)

    def __repr__(self) -> str:
        members = {"count": self.count, "mean": self.mean, "m2": self.m2}
        return f"Moments({', '.join(f'{name}={_shown(array)}' for name, array in members.items())})"


def checked_weights(weights: ArrayLike, shape: tuple[int, ...], of: str = "an array") -> Floats:
    """Check weights and broadcast them to the shape of their array.

    Raises
    ------
    ParameterError, DtypeError, InputError, ShapeError
        As `Moments.of`.

    Examples
    --------
    >>> checked_weights([[2.0], [3.0]], (2, 2))
    array([[2., 2.],
           [3., 3.]])
    """
    weight = _floats(weights, "weights")
    _all(np.isfinite(weight) & (weight >= 0), weight, "a weight", "finite and at least 0")
    return broadcast(weight, shape, "weights", of)


def spread_of(moments: Moments, *, unbiased: bool = False) -> Floats:
    """Return the variance of each slice, or the mean square for moments of the RMS method.

    Examples
    --------
    >>> spread_of(Moments(4, 1.0, 8.0)), spread_of(Moments(4, None, 8.0))
    (array(2.), array(2.))
    """
    return moments.mean_square() if moments.mean is None else moments.variance(unbiased)


def are_constant(count: Any, mean: Any, variance: Any) -> Any:
    r"""Return where a variance is not more than rounding may make of a slice whose elements are all equal.

    .. math:: v \le n u v + (n u m)^2, \qquad u = 2^{-52}

    This is the error bound of a variance that is computed in two passes, and how scikit-learn decides. A slice in which
    nothing counts is constant; one whose variance is not finite is not.

    Parameters
    ----------
    count, mean, variance : array
        Of one shape, of any library; the mean is None for the method RMS, and the variance the mean square.

    Returns
    -------
    array of bool

    References
    ----------
    T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for computing the sample variance: analysis and
    recommendations", The American Statistician 37(3), 1983.

    Examples
    --------
    >>> import numpy as np
    >>> are_constant(10, np.array([1.0, 1e9, 0.0]), np.array([1e-20, 1e-20, 1e-20]))
    array([False,  True, False])
    """
    scaled = count * _EPSILON
    bound = scaled * variance
    if mean is not None:
        bound = bound + (scaled * mean) ** 2
    return (variance <= bound) & (variance < math.inf)


# The arithmetic -------------------------------------------------------------------------------------------------------


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """Return a + b rounded, and the rounding error (Knuth), which is NaN where the sum is not finite.

    Examples
    --------
    >>> two_sum(1e16, 1.0)
    (1e+16, 1.0)
    """
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _merged(a: Moments, b: Moments) -> Moments:
    """Merge moments of slices of one shape: formula 2.1b, about the mean of the part that counts more."""
    lighter = a.count < b.count
    if np.logical_or.reduce(lighter, axis=None):
        a, b = (b, a) if lighter.all() else (_chosen(lighter, b, a), _chosen(lighter, a, b))
    total = a.count + b.count
    added = b.m2
    mean: Any = 0.0
    lost_mean: Any = 0.0
    if a.mean is not None and b.mean is not None:
        share = b.count / total
        away = (b.mean - a.mean) + (b._lost_mean - a._lost_mean)
        mean, lost_mean = two_sum(a.mean, away * share)
        mean, lost_mean = _renormalized(mean, lost_mean + a._lost_mean)
        # With the root of the counts no factor overflows or underflows where the product does not.
        root = away * np.sqrt(b.count * (a.count / total))
        added = added + root * root
    m2, lost_m2 = two_sum(a.m2, added)
    m2, lost_m2 = _renormalized(m2, lost_m2 + (a._lost_m2 + b._lost_m2))
    if not np.logical_and.reduce(np.isfinite(lost_m2 + lost_mean + total), axis=None):
        return _merged_carefully(a, b, total, (mean, lost_mean, m2, lost_m2))
    return Moments.trusted(total, None if a.mean is None else mean, m2, lost_mean, lost_m2)


def _merged_carefully(a: Moments, b: Moments, total: Any, found: tuple[Any, Any, Any, Any]) -> Moments:
    """Correct merged moments where a part is empty or not finite, or the difference of two means overflowed.

    `b` counts no more than `a` in any slice.
    """
    mean, lost_mean, m2, lost_m2 = found
    sound, empty = np.isfinite(lost_m2 + lost_mean), b.count == 0
    squares = a.m2 + b.m2
    if a.mean is not None and b.mean is not None:
        finite = np.isfinite(a.mean) & np.isfinite(b.mean)
        part, share = a.count / total, b.count / total
        root = (b.mean / 2 - a.mean / 2) * np.sqrt(b.count * part)
        squares = np.where(finite, squares + 4 * (root * root), np.nan)
        means = np.where(finite, a.mean * part + b.mean * share, a.mean + b.mean)
        mean = np.where(empty, a.mean, np.where(sound, mean, means))
        lost_mean = np.where(empty, a._lost_mean, np.where(sound, lost_mean, 0.0))
    m2 = np.where(empty, a.m2, np.where(sound, m2, squares))
    lost_m2 = np.where(empty, a._lost_m2, np.where(sound, lost_m2, 0.0))
    if not np.isfinite(total).all():
        return Moments(total, None, m2)  # raises: a count is finite
    return Moments.trusted(total, None if a.mean is None else mean, m2, lost_mean, lost_m2)


def _chosen(where: Any, a: Moments, b: Moments) -> Moments:
    """Return the moments of `a` where the condition is true, and of `b` elsewhere."""
    members = zip(_members(a), _members(b), strict=True)
    return Moments.trusted(*(None if one is None else np.where(where, one, two) for one, two in members))  # type: ignore[arg-type]


def _members(moments: Moments) -> tuple[Any, Any, Any, Any, Any]:
    return moments.count, moments.mean, moments.m2, moments._lost_mean, moments._lost_m2


def _renormalized(value: Any, lost: Any) -> tuple[Any, Any]:
    """Return the rounded sum of both, and its rounding error; `lost` is the smaller one (Dekker)."""
    total = value + lost
    return total, lost - (total - value)


def _sliced(moments: Moments, key: Any) -> Moments:
    """Return the moments of some slices, by an index of the first axis."""
    # A rounding error that is one number for all slices is 0.
    return Moments.trusted(*(array[key].copy() if np.ndim(array) else array for array in _members(moments)))


def _changed(moments: Moments, change: Callable[[Floats], Floats]) -> Moments:
    """Return moments whose arrays have another shape. A rounding error that is one number for all slices stays 0."""
    members = (None if array is None else change(array) if np.ndim(array) else array for array in _members(moments))
    return Moments.trusted(*members)  # type: ignore[arg-type]


def _pooled(parts: Moments, length: int) -> Moments:
    """Return the moments of all slices along the first axis together, merged as a tree."""
    while length > 1:
        half = length // 2
        merged = _sliced(parts, slice(half)) + _sliced(parts, slice(half, 2 * half))
        parts = merged if length % 2 == 0 else _joined(merged, _sliced(parts, slice(2 * half, None)))
        length = len(parts.count)
    return _sliced(parts, 0)


def _joined(*parts: Moments) -> Moments:
    """Return moments side by side along the first axis."""
    found = []
    for column in zip(*map(_members, parts), strict=True):
        arrays = [np.broadcast_to(array, part.shape) for array, part in zip(column, parts, strict=True)]
        found.append(None if column[0] is None else np.concatenate(arrays))
    return Moments.trusted(*found)  # type: ignore[arg-type]


def _two_passes(
    x: Floats, over: tuple[int, ...], weight: NDArray[Any] | None, *, center: bool
) -> tuple[Floats, Floats | None, Floats | float, Floats, bool]:
    """Return count, mean, its rounding error, second moment, and whether a sum may have over- or underflowed."""
    total = np.add.reduce
    shape = tuple([size for axis, size in enumerate(x.shape) if axis not in over])
    if weight is None:
        divisor: Any = math.prod([x.shape[axis] for axis in over])
        count = np.empty(shape)
        count.fill(divisor)
        divisor = divisor or 1
    else:
        divisor = total(weight, axis=over, keepdims=True, dtype=np.float64)
        count = divisor.reshape(shape)
        divisor = np.where(divisor == 0, 1.0, divisor)
    mean: Any = None
    lost: Any = 0.0
    deviation = x
    if center:
        mean = total(x if weight is None else weight * x, axis=over, keepdims=True) / divisor
        deviation = x - mean
    weighted = deviation if weight is None else weight * deviation
    squares = total(weighted * deviation, axis=over, keepdims=True)
    if center:
        lost = total(weighted, axis=over, keepdims=True) / divisor
        squares = squares - divisor * lost * lost
        mean, lost = _renormalized(mean, lost)
        mean, lost = mean.reshape(shape), lost.reshape(shape)
    doubtful = False
    if not np.logical_and.reduce((squares >= _TINY) & (squares < np.inf), axis=None):
        varies = np.logical_or.reduce(deviation != 0, axis=over, keepdims=True)
        doubtful = not ((squares < np.inf) & ((squares >= _TINY) | ~varies)).all()
        squares = np.maximum(squares, 0.0)
    if weight is not None and not doubtful:
        # Rounding a weighted mean may give a constant slice a variance; products with tiny weights may underflow.
        least = 0.0 if mean is None else 1e-28 * count * mean * mean
        doubtful = bool(((squares.reshape(shape) <= least) | (count < 1e-100)).any())
    return count, mean, lost, squares.reshape(shape), doubtful


def _scaled_passes(
    x: Floats, over: tuple[int, ...], weight: NDArray[Any] | None, *, center: bool
) -> tuple[Floats, Floats | None, Floats | float, Floats]:
    """Compute the same from numbers that are scaled by powers of two, so that only results can overflow."""

    def total(values: Any) -> Any:
        return np.add.reduce(np.broadcast_to(values, x.shape), axis=over, keepdims=True)

    def exponent(values: Any) -> Any:
        magnitudes = np.where(np.isfinite(values), np.abs(values), 0.0)
        return np.frexp(magnitudes.max(axis=over, keepdims=True, initial=0.0))[1]

    counted = np.broadcast_to(True, x.shape) if weight is None else weight > 0
    weights = counted.astype(np.float64) if weight is None else np.asarray(weight, np.float64)
    count = total(weights)
    heaviest = exponent(weights)
    weights = np.ldexp(weights, -heaviest)
    divisor = np.where(count == 0, 1.0, total(weights))
    scale = exponent(x)
    x = np.ldexp(x, -scale)
    mean: Any = None
    lost: Any = 0.0
    if center:
        mean = total(weights * x) / divisor
        # A rounded mean must stay within its slice, or a constant slice would have a variance.
        least = np.where(counted, x, np.inf).min(axis=over, keepdims=True, initial=np.inf)
        greatest = np.where(counted, x, -np.inf).max(axis=over, keepdims=True, initial=-np.inf)
        mean = np.where(count == 0, 0.0, np.minimum(np.maximum(mean, least), greatest))
        x = np.where(counted, x - mean, 0.0)
        nearer = exponent(x)
        x = np.ldexp(x, -nearer)
        lost = total(weights * x) / divisor
    squares = total(weights * x * x)
    if center:
        squares = np.maximum(squares - divisor * lost * lost, 0.0)
        mean, lost = _renormalized(mean, np.where(np.isfinite(mean), np.ldexp(lost, nearer), 0.0))
        mean, lost = np.ldexp(mean, scale), np.where(np.isfinite(lost), np.ldexp(lost, scale), 0.0)
        scale = scale + nearer
    squares = np.ldexp(squares, 2 * scale + heaviest)
    shape = [size for axis, size in enumerate(x.shape) if axis not in over]
    if mean is not None:
        mean, lost = mean.reshape(shape), lost.reshape(shape)
    return count.reshape(shape), mean, lost, squares.reshape(shape)


# Checks and values ----------------------------------------------------------------------------------------------------


def _fill(
    moments: Moments,
    count: Any,
    mean: Any,
    m2: Any,
    lost_mean: Floats | float = 0.0,
    lost_m2: Floats | float = 0.0,
) -> None:
    _set(moments, "count", _read_only(count))
    _set(moments, "mean", None if mean is None else _read_only(mean))
    _set(moments, "m2", _read_only(m2))
    _set(moments, "_lost_mean", lost_mean)
    _set(moments, "_lost_m2", lost_m2)


def _read_only(array: Any) -> Floats:
    """Return a read-only array with a read-only base; NumPy returns scalars instead of arrays of rank 0."""
    if type(array) is not np.ndarray:
        array = np.array(array, np.float64)
    base = array.base
    if base is not None:
        if type(base) is np.ndarray and base.flags.owndata:
            base.setflags(write=False)
        else:
            array = array.copy()
    array.setflags(write=False)
    found: Floats = array
    return found


def _broadcast(count: Floats, mean: Floats | None, m2: Floats) -> tuple[Floats, Floats | None, Floats]:
    named = {"count": count, "m2": m2} | ({} if mean is None else {"mean": mean})
    try:
        shape = np.broadcast_shapes(*(array.shape for array in named.values()))
    except ValueError:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in named.items())
        msg = f"the arrays of these moments do not broadcast: {shapes}\ngive arrays of one shape, one value per slice"
        raise ParameterError(msg, code="P101") from None
    means = None if mean is None else np.broadcast_to(mean, shape)
    return np.broadcast_to(count, shape), means, np.broadcast_to(m2, shape)


def _quotient(numerator: Floats, divisor: Floats) -> Floats:
    with np.errstate(all="ignore"):
        if divisor.size and divisor.min() > 0:
            return np.asarray(numerator / divisor)
        return np.asarray(np.where(divisor > 0, numerator, 0.0) / np.where(divisor > 0, divisor, 1.0))


def real_array(value: ArrayLike, name: str) -> NDArray[Any]:
    """Return the values as an array, and refuse values that are not real numbers.

    Examples
    --------
    >>> real_array([1, 2], "weights")
    array([1, 2])
    """
    if isinstance(value, np.ma.MaskedArray):
        msg = f"{name} is a masked array\ngive its data and, to Moments.of, mask=~array.mask"
        raise InputError(msg, code="A102")
    try:
        array = np.asarray(value)
    except ValueError:
        msg = f"{name} is a nested sequence of unequal lengths"
        raise ParameterError(msg, code="P107") from None
    # bfloat16 and its relatives from ml_dtypes have the kind "V".
    real = array.dtype.kind in "buif" or (array.dtype.kind == "V" and "float" in array.dtype.name)
    if not real:
        msg = f"{name} has dtype {array.dtype}; moments are those of real numbers: floats, integers or booleans"
        raise DtypeError(msg, code="D101")
    return array


def _floats(value: ArrayLike, name: str) -> Floats:
    return real_array(value, name).astype(np.float64, copy=False)


def _all(valid: NDArray[np.bool], values: Floats, name: str, allowed: str) -> None:
    if not valid.all():
        position = tuple(int(i) for i in np.argwhere(~valid)[0])
        at = f" at {position}" if position else ""
        msg = f"{name} is {float(values[position])!r}{at}; it is {allowed}"
        raise ParameterError(msg, code="P106")


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def _malformed(text: str) -> NoReturn:
    msg = f'{text}\nMoments.to_dict() writes what from_dict reads: format "{FORMAT}", version {VERSION}'
    raise ParameterError(msg, code="P109") from None


def _written(array: Floats) -> list[float | str]:
    return [value if np.isfinite(value) else str(value) for value in array.ravel().tolist()]


def _read(values: list[float | str], shape: tuple[int, ...]) -> Floats:
    numbers = [_NOT_FINITE[value] if isinstance(value, str) else float(value) for value in values]
    return np.array(numbers, dtype=np.float64).reshape(shape)


def _shown(array: Floats | None) -> str:
    return "None" if array is None else np.array2string(array, separator=", ", threshold=20)
