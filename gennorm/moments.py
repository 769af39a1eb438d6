"""Moments: what is known of a set of slices, as a value that merges exactly.

A count, a mean and a centred second moment are all that a normalization needs, and they have a sum: the moments of two
parts of a slice give the moments of the whole, in any order and any number of parts. Threads, batches, files and
machines all combine by it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import index
from typing import Any, Final, Literal, NoReturn, Self, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gennorm.errors import DtypeError, InputError, ParameterError

__all__ = ["Moments", "weights_for"]

Floats = NDArray[np.float64]

FORMAT: Final = "gennorm/moments"
VERSION: Final = 1
_KEYS: Final = ("format", "version", "shape", "count", "mean", "m2")
_NOT_FINITE: Final = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}


@dataclass(frozen=True, slots=True, eq=False, init=False, repr=False)
class Moments:
    r"""Count, mean and centred second moment of each slice, in float64.

    .. math:: n = \sum_i w_i, \qquad
              m = \frac{1}{n} \sum_i w_i x_i, \qquad
              M_2 = \sum_i w_i (x_i - m)^2

    The arrays have one axis for each level that is kept, the batch included, and a grouped level counts its groups: the
    moments of a layer norm of ``(N, T, D)`` have the shape ``(N, T)``, of a group norm ``(N, G)``, of a batch norm
    ``(C,)``.

    Moments of the RMS method know nothing of the mean: ``mean`` is None and ``m2`` is the plain sum of squares,
    :math:`\sum_i w_i x_i^2`.

    Parameters
    ----------
    count : array_like
        How much was counted in each slice, finite and at least 0: a number of elements, or a sum of weights.
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

    Notes
    -----
    ``a + b`` are the moments of everything counted in `a` or in `b`, by the formula of Chan, Golub and LeVeque, which
    loses nothing where the means are large beside the deviations. It is associative and commutative up to rounding.
    What was never counted is neutral: where the count is 0, mean and second moment are set to 0, so that merging with
    an empty part returns the other one, bit by bit.

    Two moments are equal where their shapes and all their values are, NaN being equal to NaN.

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

    count: Floats
    mean: Floats | None
    m2: Floats

    def __init__(self, count: ArrayLike, mean: ArrayLike | None, m2: ArrayLike) -> None:
        named = {"count": _floats(count, "count"), "m2": _floats(m2, "m2")}
        if mean is not None:
            named["mean"] = _floats(mean, "mean")
        try:
            shape = np.broadcast_shapes(*(array.shape for array in named.values()))
        except ValueError:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in named.items())
            msg = (
                f"the arrays of these moments do not broadcast: {shapes}\ngive arrays of one shape, one value per slice"
            )
            raise ParameterError(msg, code="P101") from None
        _all(np.isfinite(named["count"]) & (named["count"] >= 0), named["count"], "a count", "finite and at least 0")
        _all(~(named["m2"] < 0), named["m2"], "a second moment", "at least 0")

        for name in ("count", "mean", "m2"):
            array = named.get(name)
            if array is not None:
                # np.where makes the copy that belongs to this value alone.
                array = np.where(named["count"] == 0, 0.0, np.broadcast_to(array, shape))
                array = np.asarray(array, dtype=np.float64)
                array.setflags(write=False)
            object.__setattr__(self, name, array)

    # Making them -----------------------------------------------------------------------------------------------------

    @classmethod
    def trusted(cls, count: Floats, mean: Floats | None, m2: Floats) -> Self:
        """Moments of new float64 arrays of one shape that nobody else has, which are as the constructor wants them.

        Examples
        --------
        >>> import numpy as np
        >>> Moments.trusted(np.ones(2), None, np.array([1.0, 4.0]))
        Moments(count=[1., 1.], mean=None, m2=[1., 4.])
        """
        moments = cls.__new__(cls)
        assign = object.__setattr__
        count.setflags(write=False)
        m2.setflags(write=False)
        if mean is not None:
            mean.setflags(write=False)
        assign(moments, "count", count)
        assign(moments, "mean", mean)
        assign(moments, "m2", m2)
        return moments

    @classmethod
    def from_variance(cls, mean: ArrayLike | None, variance: ArrayLike, count: ArrayLike = 1) -> Self:
        """Moments that have this mean and this biased variance.

        Parameters
        ----------
        mean : array_like or None
            Mean of each slice; None makes moments of the RMS method, and `variance` is the mean square.
        variance : array_like
            Variance over the count, at least 0.
        count : array_like, default 1
            What the moments weigh when they are merged.

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
        """Moments of the slices of an array, in two passes over float64.

        Parameters
        ----------
        array : ndarray
            Real numbers of any dtype and rank.
        axes : int or tuple of int, optional
            The axes (0-based, negative from the end) that are aggregated, as in ``np.mean(array, axis=axes)``; all of
            them where not given. The moments have the axes that remain.
        mask : ndarray of bool, optional
            Broadcastable to the array; True counts. What does not count is not looked at, NaN included.
        weights : array_like, optional
            Broadcastable to the array, finite and at least 0; a whole number means as much as that many repetitions.
        method : {"Standardize", "RMS"}
            "RMS" collects the sum of squares and no mean.

        Returns
        -------
        Moments

        Raises
        ------
        InputError
            `array` is not an ndarray, or is a masked array.
        DtypeError
            `array` is complex or not numeric, or `mask` is not boolean.
        ParameterError
            An axis does not exist or is named twice; `mask` or `weights` do not broadcast to the array; a weight is
            negative or not finite; an unknown method.

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
                f"moments are those of a NumPy array, not of {_kind(given)}\n"
                "write np.asarray(...) around it if its values are in memory"
            )
            raise InputError(msg, code="A101")
        if method not in ("Standardize", "RMS"):
            msg = f'method is "Standardize" or "RMS", not {method!r}'
            raise ParameterError(msg, code="P108")
        x = _floats(array, "array")
        over = _axes(axes, x.ndim)
        weight = np.ones(()) if weights is None else _floats(weights, "weights")
        _all(np.isfinite(weight) & (weight >= 0), weight, "a weight", "finite and at least 0")
        weight = _over(weight, x.shape, "weights")
        if mask is not None:
            weight = np.where(_over(_bools(mask), x.shape, "mask"), weight, 0.0)

        counted = weight > 0
        count = np.asarray(weight.sum(axis=over))
        # NaN times a weight of 0 is NaN: what does not count is taken out before anything is multiplied.
        x = np.where(counted, x, 0.0)
        with np.errstate(all="ignore"):
            if method == "RMS":
                return cls(count, None, (weight * x * x).sum(axis=over))
            divisor = np.where(count == 0, 1.0, count)
            mean = (weight * x).sum(axis=over) / divisor
            # Rounding must not take a mean out of its slice, or a constant slice would have a variance.
            least = np.where(counted, x, np.inf).min(axis=over, initial=np.inf)
            mean = np.maximum(mean, least)
            greatest = np.where(counted, x, -np.inf).max(axis=over, initial=-np.inf)
            mean = np.where(count == 0, 0.0, np.minimum(mean, greatest))
            deviation = x - np.expand_dims(mean, over)
            return cls(count, mean, (weight * deviation * deviation).sum(axis=over))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The moments that `to_dict` wrote.

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
        """A dictionary that `json` writes and reads without loss: numbers, lists and text.

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

    # Using them ------------------------------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        """One size for each level that is kept; a grouped level counts its groups."""
        return self.count.shape

    def variance(self, unbiased: bool = False) -> Floats:
        """Variance of each slice: ``m2 / count``, or ``m2 / (count - 1)``.

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
                "moments of the RMS method have no variance: they hold no mean, and m2 is the sum of squares\n"
                "mean_square() is what that method divides by"
            )
            raise ParameterError(msg, code="P103")
        return _quotient(self.m2, self.count - 1 if unbiased else self.count)

    def mean_square(self) -> Floats:
        """Mean of the squares of each slice: ``m2 / count``, plus ``mean**2`` where there is a mean.

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
        with np.errstate(over="ignore", invalid="ignore"):
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
        a, b = self, other
        total = a.count + b.count
        with np.errstate(all="ignore"):
            if a.mean is None and b.mean is None:
                return Moments(total, None, a.m2 + b.m2)
            if a.mean is None or b.mean is None:
                msg = "moments with a mean and moments of the RMS method do not merge: one of them knows no mean"
                raise ParameterError(msg, code="P103")
            share = b.count / np.where(total == 0, 1.0, total)
            difference = b.mean - a.mean
            mean = a.mean + difference * share
            m2 = a.m2 + b.m2 + difference * difference * (a.count * share)
        # Where one part is empty the other is the answer, an infinite or overflowing one too.
        mean = np.where(b.count == 0, a.mean, np.where(a.count == 0, b.mean, mean))
        m2 = np.where(b.count == 0, a.m2, np.where(a.count == 0, b.m2, m2))
        return Moments(total, mean, m2)

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

    def __reduce__(self) -> tuple[Callable[..., Moments], tuple[Floats | None, ...]]:
        # Through the constructor, which makes the arrays read-only again.
        return type(self), (self.count, self.mean, self.m2)

    def __repr__(self) -> str:
        members = {"count": self.count, "mean": self.mean, "m2": self.m2}
        return f"Moments({', '.join(f'{name}={_shown(array)}' for name, array in members.items())})"


def weights_for(shape: tuple[int, ...], mask: object, weights: ArrayLike | None) -> NDArray[Any] | None:
    """What the elements of an array of this shape count: bools where only a mask is given, None for one each.

    Raises
    ------
    ParameterError, DtypeError, InputError
        As `Moments.of`.

    Examples
    --------
    >>> weights_for((2, 2), np.array([True, False]), [[2.0], [3.0]])
    array([[2., 0.],
           [3., 0.]])
    """
    counted = None if mask is None else _over(_bools(mask), shape, "mask")
    if weights is None:
        return counted
    weight = _floats(weights, "weights")
    _all(np.isfinite(weight) & (weight >= 0), weight, "a weight", "finite and at least 0")
    weight = _over(weight, shape, "weights")
    return weight if counted is None else np.where(counted, weight, 0.0)


# Helpers --------------------------------------------------------------------------------------------------------------


def _quotient(numerator: Floats, divisor: Floats) -> Floats:
    if divisor.size and divisor.min() > 0:
        return np.asarray(numerator / divisor)
    return np.asarray(np.where(divisor > 0, numerator, 0.0) / np.where(divisor > 0, divisor, 1.0))


def _floats(value: ArrayLike, name: str) -> Floats:
    if isinstance(value, np.ma.MaskedArray):
        msg = f"{name} is a masked array\ngive its data and, to Moments.of, mask=~array.mask"
        raise InputError(msg, code="A102")
    try:
        array = np.asarray(value)
    except ValueError:
        msg = f"{name} is a nested sequence of unequal lengths"
        raise ParameterError(msg, code="P107") from None
    # bfloat16 and its relatives from ml_dtypes have the kind "V" and a name of their own.
    real = array.dtype.kind in "buif" or (array.dtype.kind == "V" and "float" in array.dtype.name)
    if not real:
        msg = f"{name} has dtype {array.dtype}; moments are those of real numbers: floats, integers or booleans"
        raise DtypeError(msg, code="D101")
    return array.astype(np.float64, copy=False)


def _bools(mask: object) -> NDArray[np.bool]:
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool:
        given = f"dtype {mask.dtype}" if isinstance(mask, np.ndarray) else _kind(mask)
        msg = f"mask is {given}; it is a NumPy array of bool, True where an element counts"
        raise DtypeError(msg, code="D102")
    return mask


def _axes(axes: SupportsIndex | tuple[SupportsIndex, ...] | None, rank: int) -> tuple[int, ...]:
    if axes is None:
        return tuple(range(rank))
    given = axes if isinstance(axes, tuple) else (axes,)
    try:
        numbers = [index(axis) for axis in given]
    except TypeError:
        msg = f"axes={axes!r}; an axis is an integer, several are a tuple of integers"
        raise ParameterError(msg, code="P105") from None
    for axis in numbers:
        if not -rank <= axis < rank:
            allowed = f"axes run from 0 to {rank - 1}, or -{rank} to -1" if rank else "give axes=()"
            msg = f"axis {axis} does not exist in an array of rank {rank}\n{allowed}"
            raise ParameterError(msg, code="P105")
    found = tuple(axis % rank for axis in numbers)
    if len({*found}) != len(found):
        msg = f"axes={axes!r} names an axis twice in an array of rank {rank}"
        raise ParameterError(msg, code="P105")
    return found


def _over(values: NDArray[Any], shape: tuple[int, ...], name: str) -> NDArray[Any]:
    try:
        return np.broadcast_to(values, shape)
    except ValueError:
        msg = f"{name}: the shape {values.shape} does not broadcast to the shape {shape} of the array"
        raise ParameterError(msg, code="P104") from None


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
