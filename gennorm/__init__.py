"""Generalized normalization: say over which levels, with parameters on which levels, and get it exact and fast.

>>> import numpy as np
>>> import gennorm as gn
>>> layer = gn.NormalizationLayer("2;;All", input_shape=(3, None, None))
>>> layer(np.ones((3, 4, 4))).shape
(3, 4, 4)
"""

from gennorm import errors
from gennorm.engine.memory import clear_reserve, get_reserve, set_reserve
from gennorm.engine.threads import get_num_threads, set_num_threads
from gennorm.errors import GennormError
from gennorm.layer import NormalizationLayer, load
from gennorm.moments import Moments
from gennorm.plan import Plan
from gennorm.precompiling import Precompiled, precompile
from gennorm.presets import batch_norm, feature_norm, group_norm, instance_norm, layer_norm, normalize, rms_norm

__version__ = "0.1.0.dev0"

__all__ = [
    "GennormError",
    "Moments",
    "NormalizationLayer",
    "Plan",
    "Precompiled",
    "batch_norm",
    "clear_reserve",
    "errors",
    "feature_norm",
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
]
