"""The published normalizations of `gennorm.zoo` as modules: the same names, arguments and defaults.

>>> import gennorm.torch
>>> module = gennorm.torch.zoo.scale_norm(4)
>>> module(torch.tensor([[1.0, 1.0, 1.0, 1.0]])).detach()
tensor([[1., 1., 1., 1.]])

Parameters are float32 unless ``dtype`` is given. What `gennorm.zoo.describe` says of a call holds with functions of
torch in place of NumPy's; where the lines pass `moments`, write ``module.apply(x, moments)``, which has derivatives
with respect to these too.
"""

from __future__ import annotations

import functools
from typing import Any

import torch  # noqa: F401 - for the examples

from gennorm import zoo
from gennorm.errors import UnknownNameError, shown, suggest
from gennorm.torch.module import NormalizationLayer

__all__ = ["names"]


def names() -> tuple[str, ...]:
    """Return the names of the normalizations, in alphabetical order.

    Examples
    --------
    >>> "rev_in" in names()
    True
    """
    return zoo.names()


def __getattr__(name: str) -> Any:
    """Return the function that makes the module of a published normalization."""
    if name not in zoo.names():
        msg = f"gennorm.torch.zoo has no {shown(name)}{suggest(name, zoo.names())}\n"
        msg += "its names() lists what it has, gennorm.zoo.missing() what cannot be written"
        raise UnknownNameError(msg, code="T042")
    make = getattr(zoo, name)

    @functools.wraps(make)
    def module(*arguments: Any, **keywords: Any) -> NormalizationLayer:
        layer = make(*arguments, **{"dtype": "float32", **keywords})
        settings = layer._state.config.arguments()
        given = {one: getattr(layer, one) for one in ("scaling", "biases") if settings[one] == "explicit"}
        return NormalizationLayer(**{**settings, **given})

    return module


def __dir__() -> list[str]:
    return sorted({*globals(), *names()})
