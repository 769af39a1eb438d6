"""Names of other libraries, and what to write in gennorm instead.

There is one table for arguments, one for attributes of a layer, and one for names of the package. An unknown name is
looked up in its table first; then the most similar known name is suggested.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeVar

from gennorm.errors import ConfigError, UnknownNameError, shown, suggest

__all__ = [
    "checked_arguments",
    "foreign_argument",
    "foreign_attribute",
    "foreign_name",
    "list_advice",
    "unknown_argument",
    "unknown_attribute",
    "unknown_name",
]

F = TypeVar("F", bound=Callable[..., Any])

LEVELS = "write aggregation_levels: level 1 is the first of one example, -1 the last, 0 the batch"
PARAMETERS = "write scaling=None for no scaling, biases=None for no biases"
SIZES = "the sizes come first: gn.layer_norm(768), gn.batch_norm(64), gn.group_norm(32, 256)"
MOVING = 'write statistics="moving" for moving moments (gn.batch_norm has them), "input" for those of each input'

ARGUMENTS = {
    **dict.fromkeys(("axis", "axes", "dim", "dims", "reduction_axes", "reduce_axes", "axis_name"), LEVELS),
    **dict.fromkeys(("normalized_shape", "num_features", "n_features", "num_channels", "features"), SIZES),
    **dict.fromkeys(("affine", "elementwise_affine", "use_bias", "use_scale", "with_mean", "with_std"), PARAMETERS),
    **dict.fromkeys(("eps", "epsilon_value", "variance_epsilon", "layer_norm_eps", "rms_norm_eps"), "write epsilon"),
    **dict.fromkeys(("num_groups", "groups", "n_groups"), "write group_number, or gn.group_norm(groups, channels)"),
    **dict.fromkeys(("track_running_stats", "use_running_average", "use_batch_statistics"), MOVING),
    **dict.fromkeys(("training", "train", "is_training"), "pass training=True to the call: layer(x, training=True)"),
    **dict.fromkeys(("running_mean", "running_var", "moving_mean", "moving_variance"), "set layer.moments"),
    **dict.fromkeys(("mean", "variance", "var"), "write gn.feature_norm(mean=..., variance=...), or set layer.moments"),
    **dict.fromkeys(("data_format", "channel_axis", "channels_last", "feature_axis"), "write channel_level=1 or -1"),
    **dict.fromkeys(("ddof", "correction"), "write unbiased=True for a variance over n - 1"),
    "decay": "write momentum",
    "center": "write biases=None for no biases",
    "bias": "write biases: None for no biases, or an array",
    "beta": "write biases: None for no biases, or an array",
    "beta_initializer": "write biases: None for no biases, or an array",
    "scale": "write scaling: None for no scaling, or an array",
    "gain": "write scaling: None for no scaling, or an array",
    "weight": "write scaling: None for no scaling, or an array",
    "gamma": "write scaling: None for no scaling, or an array",
    "gamma_initializer": "write scaling: None for no scaling, or an array",
    "shape": "write input_shape, the sizes of one example",
    "device": "leave it out: the layer works on NumPy arrays; gennorm.torch has a module for tensors",
}

STATE = "write layer.moments: its .mean and .variance() are what the layer normalizes by"
MODES = "pass training=True to the call: layer(x, training=True); layer.trainable = False freezes a layer"

ATTRIBUTES = {
    **dict.fromkeys(("weight", "gamma", "gain", "scale", "kernel"), "write layer.scaling"),
    **dict.fromkeys(("bias", "beta", "offset"), "write layer.biases"),
    **dict.fromkeys(("running_mean", "running_var", "moving_mean", "moving_variance", "mean", "variance"), STATE),
    **dict.fromkeys(("mean_", "var_", "scale_", "n_samples_seen_", "num_batches_tracked"), STATE),
    **dict.fromkeys(("train", "eval", "training"), MODES),
    **dict.fromkeys(("fit", "partial_fit"), "write layer.adapt(data); reset=False adds to the held moments"),
    **dict.fromkeys(("transform", "forward", "predict", "normalize"), "call the layer: layer(x)"),
    "call": "call the layer: layer(x)",
    "fit_transform": "write layer.adapt(x)(x)",
    **dict.fromkeys(("inverse_transform", "denormalize", "invert"), "write layer.inverse(y)"),
    **dict.fromkeys(("backward", "grad", "gradients"), "write y, pullback = layer.vjp(x), and pullback(dy)"),
    **dict.fromkeys(("parameters", "weights", "trainable_weights"), "write layer.scaling and layer.biases"),
    **dict.fromkeys(("state_dict", "get_weights", "get_params"), "write layer.save(path), or pickle the layer"),
    **dict.fromkeys(("load_state_dict", "set_weights", "set_params"), "write gn.load(path), or layer.scaling = ..."),
    "get_config": "write layer.to_config()",
    "build": "write layer.initialize(shape_or_array)",
    "eps": "write layer.epsilon",
    "reset_running_stats": "write layer.reset_moments()",
    "reset_state": "write layer.reset_moments()",
    **dict.fromkeys(("to", "cuda", "cpu", "device"), "use gennorm.torch: the layer works on NumPy arrays"),
    **dict.fromkeys(("half", "float", "double"), "make the layer with dtype="),
    "num_groups": 'write layer.information("group_number")',
    "axis": 'write layer.information("aggregation_levels")',
    "axes": 'write layer.information("aggregation_levels")',
    "normalized_shape": 'write layer.information("input_shape")',
    "num_features": 'write layer.information("input_shape")',
}

PACKAGE = {
    **dict.fromkeys(("LayerNorm", "LayerNormalization", "layernorm"), "write gn.layer_norm(768)"),
    **dict.fromkeys(("BatchNorm", "BatchNormalization", "batchnorm"), "write gn.batch_norm(64)"),
    **dict.fromkeys(("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"), "write gn.batch_norm(64)"),
    **dict.fromkeys(("GroupNorm", "GroupNormalization", "groupnorm"), "write gn.group_norm(32, 256)"),
    **dict.fromkeys(("InstanceNorm", "InstanceNormalization", "instancenorm"), "write gn.instance_norm(64)"),
    **dict.fromkeys(("InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"), "write gn.instance_norm(64)"),
    **dict.fromkeys(("RMSNorm", "RMSNormalization", "rmsnorm"), "write gn.rms_norm(768)"),
    **dict.fromkeys(("Normalization", "StandardScaler", "standard_scaler"), "write gn.feature_norm().adapt(data)"),
    **dict.fromkeys(("standardize", "normalise", "functional", "zscore"), "write gn.normalize(x, levels)"),
    **dict.fromkeys(("Layer", "Norm", "Module", "nn"), "write gn.NormalizationLayer(levels)"),
    **dict.fromkeys(("save", "dump"), "write layer.save(path)"),
}


def foreign_argument(name: object) -> str | None:
    """Return what to write for an argument of another library; None for an unknown name.

    Examples
    --------
    >>> foreign_argument("eps"), foreign_argument("zeta")
    ('write epsilon', None)
    """
    return ARGUMENTS.get(name) if isinstance(name, str) else None


def foreign_attribute(name: str) -> str | None:
    """Return what to write for an attribute of another library's layer.

    Examples
    --------
    >>> foreign_attribute("weight")
    'write layer.scaling'
    """
    return ATTRIBUTES.get(name)


def foreign_name(name: str) -> str | None:
    """Return what to write for a name of another library's package.

    Examples
    --------
    >>> foreign_name("LayerNorm")
    'write gn.layer_norm(768)'
    """
    return PACKAGE.get(name)


def unknown_argument(what: str, name: object, known: Iterable[str]) -> ConfigError:
    """Return the error for a keyword that a constructor does not have."""
    known = [*known]
    hint = foreign_argument(name)
    nearest = "" if hint else suggest(name, known)
    msg = f"{what} has no argument {shown(name)}{nearest}\n{hint or f'its arguments are {_listed(known)}'}"
    return ConfigError(msg, code="C060")


def unknown_attribute(name: str, known: Iterable[str]) -> UnknownNameError:
    """Return the error for an attribute that a layer does not have."""
    hint = foreign_attribute(name)
    nearest = "" if hint else suggest(name, known)
    msg = f"a layer has no attribute {shown(name)}{nearest}\n{hint or 'help(gn.NormalizationLayer) lists what it has'}"
    return UnknownNameError(msg, code="N001")


def unknown_name(name: str, known: Iterable[str]) -> UnknownNameError:
    """Return the error for a name that the package does not have."""
    known = [*known]
    hint = foreign_name(name)
    nearest = "" if hint else suggest(name, known)
    msg = f"gennorm has no {shown(name)}{nearest}\n{hint or 'help(gennorm) lists its names'}"
    return UnknownNameError(msg, code="N002")


def list_advice(value: list[Any] | tuple[Any, ...]) -> str:
    """Return what to pass instead of a list of numbers.

    Examples
    --------
    >>> list_advice([[1, 2], [3, 4]])
    'pass np.array(x)'
    >>> list_advice([[1, 2], [3]])
    'its rows have 1 to 2 elements: pass a list of arrays, or pad the rows and pass a mask'
    """
    sizes = [len(row) for row in value if isinstance(row, (list, tuple))]
    if len({*sizes}) > 1:
        fewest, most = min(sizes), max(sizes)
        return f"its rows have {fewest} to {most} elements: pass a list of arrays, or pad the rows and pass a mask"
    return "pass np.array(x)"


def checked_arguments(what: str) -> Callable[[F], F]:
    """Decorate a constructor so that wrong arguments raise a ConfigError that says what to write.

    The decorated function has the signature and the documentation of the constructor.

    Parameters
    ----------
    what : str
        The name of the constructor in errors.

    Examples
    --------
    >>> @checked_arguments("f")
    ... def f(shape, *, epsilon=0): return shape
    >>> f(3)
    3
    >>> f(3, eps=1)
    Traceback (most recent call last):
    gennorm.errors.ConfigError: f has no argument "eps"
    write epsilon [C060]
    """

    def decorated(function: F) -> F:
        signature = inspect.signature(function)
        kinds = inspect.Parameter
        open_ended = any(one.kind is kinds.VAR_KEYWORD for one in signature.parameters.values())
        named = [name for name, one in signature.parameters.items() if one.kind is not kinds.VAR_KEYWORD]
        known = [name for name in named if name != "self"]

        @functools.wraps(function)
        def checked(*arguments: Any, **keywords: Any) -> Any:
            for value in arguments:
                if _is_data(value):
                    raise _given_data(what, value)
            try:
                return function(*arguments, **keywords)
            except TypeError as error:
                if isinstance(error, ConfigError):
                    raise
                try:
                    signature.bind(*arguments, **keywords)
                except TypeError as wrong:
                    _refuse(what, keywords, known, wrong, open_ended=open_ended)
                raise

        return checked  # type: ignore[return-value]

    return decorated


def _is_data(value: object) -> bool:
    """Return whether a value is an array of data; a one-dimensional array of integers may be sizes or levels."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if not isinstance(shape, tuple) or not shape or dtype is None:
        return False
    return len(shape) > 1 or getattr(dtype, "kind", "") not in {"i", "u"}


def _given_data(what: str, value: Any) -> ConfigError:
    sizes = value.shape
    first = sizes[1] if len(sizes) > 1 else sizes[0]
    calls = {
        "layer_norm": f"gn.layer_norm({sizes[-1]})(x)",
        "rms_norm": f"gn.rms_norm({sizes[-1]})(x)",
        "batch_norm": f"gn.batch_norm({first})(x)",
        "instance_norm": f"gn.instance_norm({first})(x)",
        "group_norm": f"gn.group_norm(groups, {first})(x)",
        "feature_norm": "gn.feature_norm().adapt(x)",
    }
    msg = f"{what} takes settings, and was given an array of shape {sizes}\n"
    msg += f"make the layer first and call it with the array: {calls.get(what, 'gn.NormalizationLayer(-1)(x)')}"
    return ConfigError(msg, code="C062")


def _refuse(what: str, keywords: dict[str, Any], known: list[str], wrong: TypeError, *, open_ended: bool) -> NoReturn:
    """Raise the error for arguments that do not fit the signature."""
    for name in keywords:
        if name not in known and (not open_ended or foreign_argument(name)):
            raise unknown_argument(what, name, known) from None
    msg = f"{what}: {wrong}\nits arguments are {_listed(known)}"
    raise ConfigError(msg, code="C061") from None


def _listed(names: list[str]) -> str:
    shortest = names if len(", ".join(names)) < 80 else [*names[:5], "... (help() lists them)"]
    return ", ".join(shortest)
