"""A model of a layer: its state as plain arrays, and what a call has to return by `spec/reference.py`.

The model uses nothing of the package, so that it can judge every part of it. `tests/test_fuzz_layers.py` changes a
layer and its model in the same way and compares them after each step.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, NamedTuple

import numpy as np

from spec import reference
from tests import accuracy, derivatives
from tests.strategies import RESULTS

NAMES = ("aggregation_levels", "scaling_levels", "group_number", "method", "unbiased", "epsilon", "epsilon_placement")
HALVES = ("float16", "bfloat16")


def result_of(x):
    """Name of the output's dtype for an input."""
    return RESULTS[x.dtype.newbyteorder("=").name]


class Held(NamedTuple):
    """Moments: how much was counted, the mean (None with method RMS) and the variance or the mean square."""

    count: np.ndarray
    mean: np.ndarray | None
    variance: np.ndarray

    @classmethod
    def of(cls, moments):
        """The values of `gennorm.Moments`, computed from their three arrays."""
        divisor = np.where(moments.count == 0, 1, moments.count)
        mean = None if moments.mean is None else np.array(moments.mean)
        return cls(np.array(moments.count), mean, np.asarray(moments.m2 / divisor))


@dataclasses.dataclass
class Model:
    """The state of a layer.

    ``shape`` is that of a batch if ``batched`` is None (the layer declares the rank of an example and takes both) or
    True, and that of an example if it is False. ``groups`` maps levels to group numbers.
    """

    shape: tuple[int, ...]
    settings: dict[str, Any]
    groups: dict[int, int]
    batched: bool | None
    dtype: str = "float32"
    statistics: str = "input"
    momentum: float = 0.99
    trainable: bool = True
    scaling: np.ndarray | None = None
    biases: np.ndarray | None = None
    held: Held | None = None

    def copy(self):
        """Return a model that shares no array with this one."""
        return copy.deepcopy(self)

    # What a shape means ----------------------------------------------------------------------------------------------

    @property
    def rank(self):
        return len(self.shape) - (self.batched is not False)

    @property
    def aggregated(self):
        return reference.levels(self.settings["aggregation_levels"], self.rank)

    def is_batch(self, x):
        return x.ndim == self.rank + 1

    def is_alone(self, x):
        """Whether an array is one example for a layer that aggregates the batch and holds moments."""
        return self.batched is None and not self.is_batch(x) and 0 in self.aggregated

    def settings_for(self, x, *, apart=False):
        """The arguments of the reference. Groups of the batch have no part in moments that are set `apart` from it."""
        groups = {level: number for level, number in self.groups.items() if level or not apart}
        return {**{name: self.settings[name] for name in NAMES}, "group_number": groups, "batched": self.is_batch(x)}

    def geometry(self, x, *, apart=False):
        where = self.settings_for(x, apart=apart)
        return reference.geometry(x.shape, *(where[name] for name in NAMES[:3]), where["batched"])

    def keeps_batch(self, x):
        """Whether the first axis of the moments of an array is the batch, or its groups."""
        return self.is_batch(x) and (0 not in self.aggregated or self.groups.get(0, 1) > 1)

    @property
    def parameter_shape(self):
        example = np.empty(self.shape)
        return tuple(self.shape[axis] for axis in self.geometry(example).scaling)

    def learns(self, training):
        return training and self.statistics == "moving" and self.trainable

    # What a call returns ---------------------------------------------------------------------------------------------

    def moments_for(self, training, given=None):
        """Mean and variance that a call normalizes by, where these are not those of its input."""
        if given is not None:
            return {"mean": given[0], "variance": given[1]}
        if self.statistics == "input" or self.learns(training):
            return {}
        return {"mean": self.held.mean, "variance": self.held.variance}

    def judge(self, y, x, settings, scaling, biases, mask=None, **moments):
        """Assert that an output is what the reference says, within a bound of rounding errors."""
        accuracy.assert_within(y, *expected(x, settings, scaling, biases, mask, **moments))

    def measured(self, x, mask=None):
        """Count, mean and variance of the slices of an array."""
        where = self.settings_for(x)
        names = ("aggregation_levels", "scaling_levels", "group_number", "method")
        arguments = {name: where[name] for name in names}
        with np.errstate(all="ignore"):
            count, mean, m2 = reference.moments(x.astype(np.float64), **arguments, batched=where["batched"], mask=mask)
            return Held(count, mean, m2 / np.maximum(count, 1.0))

    def learned(self, x, mask=None):
        """The moving moments after an array was folded in."""
        batch = x if self.is_batch(x) else x[None]
        weights = mask if mask is None or self.is_batch(x) else mask[None]
        where = self.settings_for(batch)
        names = ("aggregation_levels", "scaling_levels", "group_number", "method")
        old = self.held
        with np.errstate(all="ignore"):
            mean, variance = reference.moving(
                0.0 if old.mean is None else old.mean,
                old.variance,
                batch.astype(np.float64),
                **{name: where[name] for name in names},
                momentum=self.momentum,
                mask=weights,
            )
        return Held(old.count, None if old.mean is None else mean, variance)

    def adapted(self, batches, weights):
        """The moments of a data set, all examples together; `weights` has an array for each batch or None."""
        parts = []
        for x, given in zip(batches, weights, strict=True):
            values, where = x.astype(np.float64), self.geometry(x, apart=True)
            weight = np.broadcast_to(np.ones(()) if given is None else given, x.shape).astype(np.float64)
            count = where.total(weight)
            mean = where.total(weight * values) / np.where(count == 0, 1.0, count)
            center = 0.0 if self.settings["method"] == "RMS" else where.over_slices(mean)
            part = count, mean, where.total(weight * (values - center) ** 2)
            parts += [part] if 0 in self.aggregated else [tuple(value[i] for value in part) for i in range(len(x))]
        if self.held is not None:
            count, mean, variance = self.held
            parts.insert(0, (count, mean, count * variance))
        return parts


def pooled(parts, rms):
    """Merge moments of parts, in float64 and all at once."""
    counts = np.stack([np.broadcast_to(part[0], part[2].shape) for part in parts])
    total = counts.sum(0)
    divisor = np.where(total == 0, 1.0, total)
    m2 = np.stack([part[2] for part in parts]).sum(0)
    if rms:
        return Held(total, None, m2 / divisor)
    means = np.stack([part[1] for part in parts])
    pivot = means[0]
    mean = pivot + (counts * (means - pivot)).sum(0) / divisor
    return Held(total, np.where(total == 0, 0.0, mean), (m2 + (counts * (means - mean) ** 2).sum(0)) / divisor)


def expected(x, settings, scaling=None, biases=None, mask=None, mean=None, variance=None):
    """What the reference makes of an array, and what an output may be off by; see `tests.accuracy`."""
    result, x = result_of(x), x.astype(np.float64)
    first = [settings[name] for name in derivatives.NAMES]
    batched, placement = settings["batched"], settings["epsilon_placement"]
    with np.errstate(all="ignore"):
        s = reference._statistics(x, *first, batched, placement, mask, mean, variance)
        exact = reference.normalize(
            x, **settings, scaling=scaling, biases=biases, mask=mask, mean=mean, variance=variance
        )
        scale, shift = (
            default if value is None else np.abs(s.where.over_levels(np.asarray(value, np.float64), batched))
            for value, default in ((scaling, 1.0), (biases, 0.0))
        )
        scaled, far = scale * np.abs((x - s.mean) * s.factor), np.abs(s.mean * s.factor)
        most = float(s.where.size)
        error = accuracy.error_bound(scaled, scale, shift, far, most, result)
        error = error + accuracy.V * (8 * scaled + 2 * shift + scale * (most + 8 + 25 * far))
    return exact, np.broadcast_to(error, exact.shape)


def assert_moments(found, wanted, halves):
    """Assert that moments are those of the model: float32 sums of halves lose digits, nothing else does."""
    found = Held.of(found)
    assert (found.mean is None) == (wanted.mean is None)
    np.testing.assert_allclose(found.count, np.broadcast_to(wanted.count, found.count.shape), rtol=1e-12)
    part = 2e-4 if halves else 1e-10
    with np.errstate(all="ignore"):
        mean = 0.0 if wanted.mean is None else wanted.mean
        deviation = np.sqrt(wanted.variance)
        pairs = [(found.variance, wanted.variance, part * wanted.variance + (1e-14 * np.abs(mean)) ** 2)]
        if wanted.mean is not None:
            pairs.append((found.mean, wanted.mean, part * deviation + 1e-14 * np.abs(mean)))
        for one, other, room in pairs:
            assert one.shape == np.shape(other), (one.shape, np.shape(other))
            right = (np.abs(one - other) <= room + 1e-300) | (one == other) | (~np.isfinite(one) & ~np.isfinite(other))
            assert np.all(right), f"{one} instead of {other}"
