"""Axes of moments that are pooled: 0-based, as NumPy counts them; checked, without arrays."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any, NamedTuple, SupportsIndex

from gennorm.errors import ParameterError

__all__ = ["Pooling", "checked_axes"]


def checked_axes(axes: SupportsIndex | Sequence[SupportsIndex] | None, rank: int) -> tuple[int, ...]:
    """Return axes of an array of some rank, at least 0, in the order given; None means all.

    Raises
    ------
    ParameterError
        An axis does not exist, is named twice or is not an integer.

    Examples
    --------
    >>> checked_axes((0, -1), 3)
    (0, 2)
    """
    if axes is None:
        return tuple(range(rank))
    given = axes if isinstance(axes, tuple) else (axes,)
    try:
        numbers = [index(axis) for axis in given]
    except TypeError:
        msg = f"axes={axes!r} are no axes of an array\nan axis is an integer, several are a tuple of integers"
        raise ParameterError(msg, code="P105") from None
    for axis in numbers:
        if not -rank <= axis < rank:
            allowed = f"axes run from 0 to {rank - 1}, or -{rank} to -1" if rank else "give axes=()"
            msg = f"axis {axis} does not exist in an array of rank {rank}\n{allowed}"
            raise ParameterError(msg, code="P105")
    found = tuple(axis % rank for axis in numbers)
    if len({*found}) != len(found):
        msg = f"axes={axes!r} names an axis twice in an array of rank {rank}\nname every axis once"
        raise ParameterError(msg, code="P105")
    return found


class Pooling(NamedTuple):
    """How an array of moments is pooled: its shape with every grouped axis split in two, and the axes that vanish.

    Attributes
    ----------
    split : tuple of int
        The shape, with the number of groups and the size of a group in place of the size of a grouped axis.
    axes : tuple of int
        The axes of `split` that are pooled.
    """

    split: tuple[int, ...]
    axes: tuple[int, ...]

    @classmethod
    def of(cls, axes: Any, groups: Any, shape: tuple[int, ...]) -> Pooling:
        """Check the arguments of `pooled` for moments of a shape.

        Raises
        ------
        ParameterError
            As `checked_axes`; the groups are not one number for each axis, or do not divide its size.

        Examples
        --------
        >>> Pooling.of(1, None, (8, 6))
        Pooling(split=(8, 6), axes=(1,))
        >>> Pooling.of((0, 1), (1, 2), (8, 6))
        Pooling(split=(8, 2, 3), axes=(0, 2))
        """
        over = checked_axes(axes, len(shape))
        try:
            numbers = (
                [1] * len(over) if groups is None else [*map(index, groups if isinstance(groups, tuple) else (groups,))]
            )
        except TypeError:
            numbers = []
        if len(numbers) != len(over) or any(number < 1 for number in numbers):
            msg = f"groups={groups!r} do not fit axes={axes!r}\n"
            msg += "give one number of groups, at least 1, for each of the axes: an integer, or a tuple of integers"
            raise ParameterError(msg, code="P117")
        number_of = dict(zip(over, numbers, strict=True))
        split: list[int] = []
        pooled: list[int] = []
        for axis, size in enumerate(shape):
            number = number_of.get(axis, 1)
            if number > 1:
                if size % number:
                    msg = f"axis {axis} of the moments has size {size}, which {number} groups do not divide\n"
                    msg += f"give a number of groups that divides {size}"
                    raise ParameterError(msg, code="P116")
                split.append(number)
                size //= number  # noqa: PLW2901
            if axis in number_of:
                pooled.append(len(split))
            split.append(size)
        return cls(tuple(split), tuple(pooled))

    @property
    def kept(self) -> tuple[int, ...]:
        """The shape of the pooled moments.

        Examples
        --------
        >>> Pooling.of((0, 1), (1, 2), (8, 6)).kept
        (2,)
        """
        return tuple(size for axis, size in enumerate(self.split) if axis not in self.axes)
