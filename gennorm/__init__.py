"""Generalized normalization: say over which levels, with parameters on which levels, and get it exact and fast.

>>> import numpy as np
>>> import gennorm as gn
>>> layer = gn.NormalizationLayer("2;;All", input_shape=(3, None, None))
>>> layer(np.ones((3, 4, 4))).shape
(3, 4, 4)
"""

# The modules are imported when their names are first used. So the command line can handle Ctrl-C before NumPy, which
# takes most of the start, is imported; and nothing is imported that a program does not use.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from gennorm import errors, zoo
    from gennorm.elsewhere import (
        Spelling,
        from_flax,
        from_keras,
        from_onnx,
        from_torch,
        to_flax,
        to_keras,
        to_onnx,
        to_torch,
    )
    from gennorm.engine.memory import clear_reserve, get_reserve, set_reserve
    from gennorm.engine.threads import get_num_threads, set_num_threads
    from gennorm.errors import GennormError
    from gennorm.layer import NormalizationLayer, load
    from gennorm.moments import Moments
    from gennorm.plan import Plan
    from gennorm.precompiling import Precompiled, precompile
    from gennorm.presets import batch_norm, feature_norm, group_norm, instance_norm, layer_norm, normalize, rms_norm
    from gennorm.searching import space

__version__ = "0.1.0.dev0"

__all__ = [
    "GennormError",
    "Moments",
    "NormalizationLayer",
    "Plan",
    "Precompiled",
    "Spelling",
    "batch_norm",
    "clear_reserve",
    "errors",
    "feature_norm",
    "from_flax",
    "from_keras",
    "from_onnx",
    "from_torch",
    "get_num_threads",
    "get_reserve",
    "group_norm",
    "instance_norm",
    "layer_norm",
    "load",
    "normalize",
    "precompile",
    "rms_norm",
    "set_num_threads",
    "set_reserve",
    "space",
    "to_flax",
    "to_keras",
    "to_onnx",
    "to_torch",
    "zoo",
]

_MODULES = {
    "gennorm.elsewhere": (
        *("Spelling", "from_flax", "from_keras", "from_onnx", "from_torch"),
        *("to_flax", "to_keras", "to_onnx", "to_torch"),
    ),
    "gennorm.engine.memory": ("clear_reserve", "get_reserve", "set_reserve"),
    "gennorm.engine.threads": ("get_num_threads", "set_num_threads"),
    "gennorm.errors": ("GennormError",),
    "gennorm.layer": ("NormalizationLayer", "load"),
    "gennorm.moments": ("Moments",),
    "gennorm.plan": ("Plan",),
    "gennorm.precompiling": ("Precompiled", "precompile"),
    "gennorm.presets": (
        *("batch_norm", "feature_norm", "group_norm", "instance_norm", "layer_norm", "normalize", "rms_norm"),
    ),
    "gennorm.searching": ("space",),
}
_PLACES = {name: module for module, names in _MODULES.items() for name in names}
_SUBMODULES = (
    *(
        "bench",
        "definition",
        "elsewhere",
        "engine",
        "errors",
        "extend",
        "keras",
        "layer",
        "masks",
        "moments",
        "plan",
        "precompiling",
    ),
    *("presets", "searching", "spec", "zoo"),
)

if not TYPE_CHECKING:  # to a type checker, every name would be in the package

    def __getattr__(name: str) -> object:
        """Import the module of a name when the name is first used (PEP 562)."""
        from importlib import import_module

        if name in _PLACES:
            value = getattr(import_module(_PLACES[name]), name)
        elif name in _SUBMODULES:
            value = import_module(f"gennorm.{name}")
        elif name.startswith("_"):
            msg = f"module 'gennorm' has no attribute {name!r}"
            raise AttributeError(msg)
        else:
            from gennorm.layer.hints import unknown_name

            raise unknown_name(name, __all__)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
