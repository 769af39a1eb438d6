"""Pictures of layers, moments and plans: what they show is computed by pure functions; Matplotlib only renders it."""

from __future__ import annotations

from types import ModuleType

from gennorm.errors import DrawingError

__all__ = ["matplotlib_figures"]


def matplotlib_figures() -> ModuleType:
    """Import the module that renders with Matplotlib.

    Raises
    ------
    DrawingError
        Matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: F401 - another module that is missing is another error
    except ModuleNotFoundError:
        msg = "pictures need matplotlib, which is not installed\npip install 'gennorm[plot]'"
        raise DrawingError(msg, code="V010") from None
    from gennorm.drawing import figures

    return figures
