"""The layers of one rank, each once: a space to search."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, SupportsIndex

from gennorm.errors import ConfigError, shown
from gennorm.layer.layer import NormalizationLayer
from gennorm.spec.config import METHODS, MOST_LEVELS, LayerConfig, integer
from gennorm.spec.equivalence import key, shortest_levels, shortest_scaling

__all__ = ["space"]

MOST_LAYERS = 100_000


def space(
    shape: SupportsIndex | Sequence[SupportsIndex | None],
    *,
    batch: bool = False,
    groups: Sequence[SupportsIndex] = (),
    methods: Sequence[str] = METHODS,
    **settings: Any,
) -> tuple[NormalizationLayer, ...]:
    """Return the layers for examples of one rank, each in its shortest spelling, and no two that are equivalent.

    They are the products of three choices: the levels that are aggregated, at least one; the levels that carry
    parameters, any or none, where none is one scalar; and the method. Layers that differ in levels of size 1 only, or
    in groups of one element, are listed once.

    Parameters
    ----------
    shape : int or sequence
        The rank of an example, or its sizes; None for one that varies.
    batch : bool, default False
        Whether level 0, the batch, may be aggregated.
    groups : sequence of int, optional
        The numbers of groups that an aggregated level may be split into, if they divide its size.
    methods : sequence of str, default ("Standardize", "RMS")
    **settings
        Other arguments of every layer, such as ``biases=None`` or ``epsilon=1e-5``. With ``scaling=None`` and
        ``biases=None`` the scaling levels make no difference, and one layer is listed for all of them.

    Returns
    -------
    tuple of NormalizationLayer
        New layers with the `input_shape` of the examples: the fewest levels first, whole levels before groups. Those
        whose sizes are not all known are initialized by ``layer.initialize(shape)``.

    Raises
    ------
    ConfigError
        The shape is none, or there are more than 100,000 layers.
    GennormError
        As `NormalizationLayer`.

    See Also
    --------
    gennorm.NormalizationLayer.equivalent

    Examples
    --------
    >>> import gennorm as gn
    >>> for layer in gn.space((4, 8), groups=[2], methods=["RMS"], scaling=None, biases=None)[:4]:
    ...     print(layer)
    NormalizationLayer(1, (), method='RMS', scaling=None, biases=None, input_shape=(4, 8))
    NormalizationLayer(2, (), method='RMS', scaling=None, biases=None, input_shape=(4, 8))
    NormalizationLayer('All', method='RMS', scaling=None, biases=None, input_shape=(4, 8))
    NormalizationLayer(1, (), 2, 'RMS', scaling=None, biases=None, input_shape=(4, 8))
    >>> len(gn.space(3)), len(gn.space(3, batch=True)), len(gn.space((3, 1, 1)))
    (112, 240, 8)
    """
    sizes = _sizes(shape)
    rank = len(sizes)
    numbers = sorted({_number(number) for number in groups} - {1})
    choices = [[1, *(one for one in numbers if size is None or size % one == 0)] for size in sizes]
    aggregations = math.prod(1 + len(one) for one in choices) * (1 + batch) - 1
    _require_few(aggregations * 2**rank * len(methods))
    NormalizationLayer("All", input_shape=sizes, **settings)  # raises where the settings are wrong
    found: dict[Any, LayerConfig] = {}
    for aggregated, split in _aggregations(choices, batch):
        spec = shortest_levels(aggregated, rank)
        for scaling in _subsets(range(1, rank + 1)):
            written = shortest_scaling(scaling, aggregated, rank)
            for method in methods:
                groups_ = next(iter(split.values())) if split and len(aggregated) == 1 else split or None
                given = {"group_number": groups_, "method": method, "input_shape": sizes, **settings}
                config = LayerConfig.make(spec, written, **given)
                found.setdefault(key(config), config)
    return tuple(NormalizationLayer.from_config(config.to_dict()) for config in found.values())


def _sizes(shape: Any) -> tuple[int | None, ...]:
    rank = integer(shape)
    sizes = (None,) * rank if rank is not None and 0 < rank <= MOST_LEVELS else shape
    if isinstance(sizes, (str, bytes)) or not isinstance(sizes, Sequence) or not sizes or ... in sizes:
        msg = f"the shape of a space of layers cannot be {shown(shape)}\n"
        msg += "write the rank of an example, 1 or more, or its sizes: 3, (64, 28, 28), (None, 768)"
        raise ConfigError(msg, code="C080")
    return tuple(sizes)


def _number(value: Any) -> int:
    number = integer(value)
    if number is None or number < 1:
        msg = f"groups of a space of layers cannot be {shown(value)}\nwrite a sequence of numbers of groups: [2, 4]"
        raise ConfigError(msg, code="C081")
    return number


def _require_few(number: int) -> None:
    if number > MOST_LAYERS:
        msg = f"a space of {number:,} spellings is too large to list\nwrite fewer groups or methods, or a lower rank: "
        msg += f"{MOST_LAYERS:,} are the most"
        raise ConfigError(msg, code="C082")


def _subsets(found: Iterable[int]) -> Iterator[tuple[int, ...]]:
    """Return the subsets of levels, the smallest first."""
    members = [*found]
    return itertools.chain.from_iterable(itertools.combinations(members, size) for size in range(len(members) + 1))


def _aggregations(choices: Sequence[Sequence[int]], batch: bool) -> Iterator[tuple[tuple[int, ...], dict[int, int]]]:
    """Return the levels that are aggregated and their groups: whole levels first, then with one grouped level, ..."""
    found = []
    for levels in _subsets(range(0 if batch else 1, len(choices) + 1)):
        for numbers in itertools.product(*([1] if level == 0 else choices[level - 1] for level in levels)):
            if levels:
                found.append((levels, {level: one for level, one in zip(levels, numbers, strict=True) if one > 1}))
    return iter(sorted(found, key=lambda one: (len(one[1]), len(one[0]))))
