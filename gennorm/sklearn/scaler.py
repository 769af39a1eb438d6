"""The estimator: moments of a data set for any levels, with the manners of scikit-learn."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy import sparse as scipy_sparse
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin, clone
from sklearn.utils.validation import _check_sample_weight, check_array, check_is_fitted, validate_data

import gennorm
from gennorm import definition
from gennorm.errors import ParameterError, shown
from gennorm.extend import held_variance, resolve_config
from gennorm.layer.statistics import accepted, ungrouped
from gennorm.moments import Moments, spread_of
from gennorm.sklearn import sparse
from gennorm.spec.config import LayerConfig

__all__ = ["LevelScaler"]

Array = npt.NDArray[Any]

# What data may be, in the checks of scikit-learn.
ALLOWED: dict[str, Any] = {
    "accept_sparse": ("csr", "csc"),
    "dtype": (np.float64, np.float32, np.float16),
    "ensure_all_finite": "allow-nan",
    "allow_nd": True,
}
SETTINGS = (*("aggregation_levels", "group_number", "method", "unbiased", "epsilon", "epsilon_placement", "constant"),)
FIXED: dict[str, Any] = {
    "scaling_levels": (),
    "scaling": None,
    "biases": None,
    "batched": True,
    "dtype": "float64",
    "statistics": "dataset",
}
PLAIN = (str, int, float, bool)  # types whose values are a key of a cache

# Checking the settings takes longer than measuring a small batch. The cache is typed, because True equals 1 as a key.
_remembered = functools.lru_cache(256, typed=True)(LayerConfig.make)


class LevelScaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    r"""Standardize by the mean and variance of a data set, taken over any levels.

    .. math:: y = \frac{x - \mu}{\sigma}

    With the default levels the estimator does what `sklearn.preprocessing.StandardScaler` does: each feature has its
    mean and variance, NaN is left out, and constant features are divided by 1. Level 0 is the samples, level 1 the
    second axis; arrays may have more axes. Levels that are not aggregated, and groups of those that are, have
    statistics of their own; the samples never have.

    Parameters
    ----------
    aggregation_levels : int, str or sequence, default "{0, 1;;-2}"
        The levels that are aggregated, as those of `gennorm.NormalizationLayer`: ``"0;;All"`` is one mean for
        everything, ``"{0, 2;;All}"`` is one for each channel of pictures, and 0 is one for each element of an example.
    group_number : int, sequence or mapping, optional
        Groups of aggregated levels, as those of `gennorm.NormalizationLayer`.
    method : {"Standardize", "RMS"}, default "Standardize"
        "RMS" divides by the root mean square and subtracts nothing.
    with_mean : bool, default True
        Whether the mean is subtracted.
    with_std : bool, default True
        Whether the deviations are divided.
    unbiased : bool, default False
        Divide the sum of squared deviations by the count minus one.
    epsilon : float, default 0.0
        As that of `gennorm.NormalizationLayer`.
    epsilon_placement : {"inside", "floor", "outside"}, default "inside"
        As that of `gennorm.NormalizationLayer`.
    constant : {"one", "floor", "raise"}, default "one"
        What is done with constant slices, as that of `gennorm.NormalizationLayer`. There is no warning.
    copy : bool, default True
        False writes the output into the input, where that is an array of floats that can be written to.

    Attributes
    ----------
    moments_ : gennorm.Moments
        Count, mean and second moment of every slice. They can be merged with ``+``.
    layer_ : gennorm.NormalizationLayer
        The layer that transforms.
    mean_ : ndarray of float64, or None
        The mean of every slice; None with method "RMS", or if nothing is subtracted and nothing divided.
    var_ : ndarray of float64, or None
        The variance of every slice, or its mean square; None without `with_std`.
    scale_ : ndarray of float64, or None
        What is divided by; None without `with_std`.
    n_samples_seen_ : int, float or ndarray
        The number of values of a slice, or the sum of their weights; an array if slices differ.
    n_features_in_ : int
        The size of the second axis.
    feature_names_in_ : ndarray of str
        The names of the columns, if the data have names that are all text.

    Raises
    ------
    GennormError
        `fit` raises the errors of `gennorm.NormalizationLayer` and its `adapt`; each is a ValueError or a TypeError.
    NotFittedError
        The estimator is used before it was fitted.

    Notes
    -----
    Moments are computed and merged in float64 with their rounding errors, so `partial_fit` on parts is as exact as
    `fit` on everything. ``a + b`` is an estimator as if fitted on the data of both.

    Examples
    --------
    >>> import numpy as np
    >>> scaler = LevelScaler().fit([[0.0, 5.0, 1.0], [2.0, 5.0, np.nan]])
    >>> scaler.transform([[0.0, 6.0, 1.0]])
    array([[-1.,  1.,  0.]])
    >>> scaler.scale_, scaler.n_samples_seen_
    (array([1., 1., 1.]), array([2, 2, 1]))
    >>> pictures = np.arange(48.0).reshape(2, 2, 2, 6)
    >>> LevelScaler("{0, 2;;All}").fit(pictures).mean_
    array([17.5, 29.5])
    """

    def __init__(
        self,
        aggregation_levels: Any = "{0, 1;;-2}",
        *,
        group_number: Any = None,
        method: str = "Standardize",
        with_mean: bool = True,
        with_std: bool = True,
        unbiased: bool = False,
        epsilon: float = 0.0,
        epsilon_placement: str = "inside",
        constant: str = "one",
        copy: bool = True,
    ) -> None:
        self.aggregation_levels = aggregation_levels
        self.group_number = group_number
        self.method = method
        self.with_mean = with_mean
        self.with_std = with_std
        self.unbiased = unbiased
        self.epsilon = epsilon
        self.epsilon_placement = epsilon_placement
        self.constant = constant
        self.copy = copy

    # Fitting ---------------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:  # noqa: N803
        """Take the moments of data; former ones are dropped.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n_samples, n_features, ...)
            Sparse matrices if nothing is subtracted.
        y : None
            Ignored.
        sample_weight : array_like of shape (n_samples,), optional
            A weight of 3 counts a sample three times.

        Returns
        -------
        LevelScaler
            The estimator itself.

        Examples
        --------
        >>> LevelScaler().fit([[1.0], [4.0]], sample_weight=[2, 1]).mean_
        array([2.])
        """
        del y
        return self._fit(X, sample_weight, None)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:  # noqa: N803
        """Add the moments of data to those of the data before.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.

        Returns
        -------
        LevelScaler
            The estimator itself.

        Examples
        --------
        >>> scaler = LevelScaler()
        >>> for batch in ([[1.0], [2.0]], [[9.0]]):
        ...     scaler = scaler.partial_fit(batch)
        >>> scaler.mean_, scaler.n_samples_seen_
        (array([4.]), 3)
        """
        del y
        return self._fit(X, sample_weight, getattr(self, "moments_", None))

    def _fit(self, given: Any, sample_weight: Any, before: Moments | None) -> Self:
        config = self._config()
        x = validate_data(self, given, reset=before is None, **ALLOWED)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, x, dtype=np.float64, ensure_non_negative=True)
        resolved = resolve_config(ungrouped(config, x.shape), x.shape)
        if scipy_sparse.issparse(x):
            self._require_sparse()
            found = sparse.measured(x, resolved, weights, center=config.method == "Standardize")
        else:
            found = _measured(x, config, weights)
        moments = found if before is None else before + found
        weighted = sample_weight is not None or (before is not None and self._weighted)
        self._hold(moments, config, weighted)
        return self

    def _config(self) -> LayerConfig:
        """Return the settings of the layer that measures the data."""
        for name in ("with_mean", "with_std", "copy"):
            if not isinstance(value := getattr(self, name), (bool, np.bool_)):
                msg = f"{name} cannot be {shown(value)}\nwrite True or False"
                raise ParameterError(msg, code="P140")
        settings = {name: getattr(self, name) for name in SETTINGS}
        plain = all(value is None or type(value) in PLAIN for value in settings.values())
        return (_remembered if plain else LayerConfig.make)(**settings, **FIXED)

    def _hold(self, moments: Moments, config: LayerConfig, weighted: bool) -> None:
        """Set the attributes that moments determine; nothing changes where the moments are refused."""
        adjusted = moments
        if config.unbiased:
            adjusted = Moments.from_variance(moments.mean, moments.variance(unbiased=True), moments.count)
        accepted(adjusted, config)
        empty = moments.count == 0
        mean = None if moments.mean is None else np.where(empty, np.nan, moments.mean)
        used = np.where(empty, np.nan, held_variance(adjusted, config))
        subtracted = mean if self._centers() else None if mean is None else np.zeros(mean.shape)
        own = replace(config, constant="floor", unbiased=False)
        if not self.with_std:
            own, used = replace(own, epsilon=0.0, epsilon_placement="inside"), np.ones(used.shape)
        self.moments_ = moments
        self.layer_ = _layer(own, Moments.from_variance(subtracted, used))
        self.mean_ = mean if self.with_mean or self.with_std else None
        self.var_ = np.where(empty, np.nan, spread_of(adjusted)) if self.with_std else None
        self.scale_ = np.asarray(definition.divisor_of(used, config)) if self.with_std else None
        counts = moments.count if weighted else moments.count.astype(np.int64)
        same = counts.size > 0 and (counts == counts.flat[0]).all()
        self.n_samples_seen_ = counts.flat[0].item() if same else counts
        self._weighted = weighted

    def _centers(self) -> bool:
        return bool(self.with_mean) and self.method != "RMS"

    def _require_sparse(self) -> None:
        if self._centers():
            msg = "sparse matrices cannot be centered: they become dense where a mean is subtracted from zeros\n"
            msg += "write with_mean=False, or pass X.toarray()"
            raise ParameterError(msg, code="P143")

    # Transforming ----------------------------------------------------------------------------------------------------

    def transform(self, X: Any, copy: bool | None = None) -> Any:  # noqa: N803
        """Normalize data by the moments of the fitted data.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n_samples, n_features, ...)
        copy : bool, optional
            Instead of the estimator's.

        Returns
        -------
        ndarray or sparse matrix
            In the dtype of floating data, else float64. NaN stays NaN.

        Examples
        --------
        >>> LevelScaler().fit([[1.0], [3.0]]).transform([[5.0]])
        array([[3.]])
        """
        check_is_fitted(self)
        own = self._copies(copy)
        x = validate_data(
            self, X, reset=False, copy=own and scipy_sparse.issparse(X), force_writeable=not own, **ALLOWED
        )
        return self._moved(x, own, inverse=False)

    def inverse_transform(self, X: Any, copy: bool | None = None) -> Any:  # noqa: N803
        """Return the data that were normalized to `X`.

        Parameters
        ----------
        X, copy
            As in `transform`.

        Returns
        -------
        ndarray or sparse matrix

        Examples
        --------
        >>> LevelScaler().fit([[1.0], [3.0]]).inverse_transform([[3.0]])
        array([[5.]])
        """
        check_is_fitted(self)
        own = self._copies(copy)
        x = check_array(
            X,
            copy=own and scipy_sparse.issparse(X),
            force_writeable=not own,
            estimator=self,
            input_name="X",
            **ALLOWED,
        )
        return self._moved(x, own, inverse=True)

    def _copies(self, copy: bool | None) -> bool:
        return bool(self.copy if copy is None else copy)

    def _moved(self, x: Any, own: bool, *, inverse: bool) -> Any:
        """Return the output of validated data, in new memory or in theirs."""
        if scipy_sparse.issparse(x):
            self._require_sparse()
            if self.scale_ is None:
                return x
            resolved = resolve_config(ungrouped(self.layer_._state.config, x.shape), x.shape)
            return sparse.scale(x, resolved, self.scale_, inverse=inverse)
        call = self.layer_.inverse if inverse else self.layer_
        return call(x, out=None if own else x)

    # Merging ---------------------------------------------------------------------------------------------------------

    def __add__(self, other: object) -> LevelScaler:
        """Return an estimator as if fitted on the data of both."""
        if not isinstance(other, LevelScaler):
            return NotImplemented
        for one in (self, other):
            check_is_fitted(one)
        mine, theirs = self.get_params(), other.get_params()
        for name, value in mine.items():
            if name != "copy" and value != theirs[name]:
                msg = f"estimators with {name}={shown(value)} and {name}={shown(theirs[name])} cannot be merged\n"
                msg += "merge estimators with the same parameters"
                raise ParameterError(msg, code="P141")
        names, others = (getattr(one, "feature_names_in_", None) for one in (self, other))
        if self.moments_.shape != other.moments_.shape or not np.array_equal(names, others):  # type: ignore[arg-type]
            msg = f"moments of shape {self.moments_.shape} of {_named(names)} cannot be merged with moments of shape "
            msg += f"{other.moments_.shape} of {_named(others)}\nfit both on the same features"
            raise ParameterError(msg, code="P142")
        merged: LevelScaler = clone(self)
        merged.n_features_in_ = self.n_features_in_
        if names is not None:
            merged.feature_names_in_ = names
        merged._hold(self.moments_ + other.moments_, self._config(), self._weighted or other._weighted)
        return merged

    def __radd__(self, other: object) -> LevelScaler:
        # sum() starts from the number 0.
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = not self._centers()
        tags.input_tags.three_d_array = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32", "float16"]
        return tags


def _layer(config: LayerConfig, moments: Moments | None) -> gennorm.NormalizationLayer:
    """Return a layer with these settings and moments, which were checked."""
    layer = gennorm.NormalizationLayer.__new__(gennorm.NormalizationLayer)
    layer.__setstate__({"config": config, "parameters": dict.fromkeys(("scaling", "biases")), "moments": moments})
    return layer


def _measured(x: Array, config: LayerConfig, weights: Array | None) -> Moments:
    """Return the moments of an array; NaN is left out, and slices that have nothing else have the count 0."""
    layer = _layer(replace(config, constant="floor"), None)
    by_element = None if weights is None else weights.reshape(-1, *[1] * (x.ndim - 1))
    moments = layer._part(x, None, by_element, "omit")
    assert moments is not None  # scikit-learn refuses data without samples
    return moments


def _named(names: Array | None) -> str:
    return "columns without names" if names is None else f"the columns {shown(names.tolist())}"
