"""Layers of other libraries, read from their names and arguments, and written as them. No framework is imported.

Each library has a table of functions. Each has the arguments and defaults of one class or operator there, and returns
the layer that computes the same. The names of the parameters here are those there. To write a layer, likely arguments
are read, until one makes a layer that is equivalent: what is written is what would be read.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gennorm import presets
from gennorm.errors import ConfigError, GennormError, InputError, shown, suggest
from gennorm.layer.layer import NormalizationLayer
from gennorm.spec.config import LayerConfig, integer
from gennorm.spec.equivalence import KEPT, Axes, covers, different_settings, meaning

__all__ = [
    "Spelling",
    "from_flax",
    "from_keras",
    "from_onnx",
    "from_torch",
    "to_flax",
    "to_keras",
    "to_onnx",
    "to_torch",
]

Reader = Callable[..., NormalizationLayer]

SINGLE = 2.0**-23  # the epsilon of float32


# ------------------------------------------------------------------------------------------------------------- reading


def from_torch(kind: Any, *arguments: Any, **keywords: Any) -> NormalizationLayer:
    """Return the layer that computes what a normalization of ``torch.nn`` computes.

    Parameters
    ----------
    kind : str or class
        "LayerNorm", "RMSNorm", "GroupNorm", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm",
        "InstanceNorm1d", "InstanceNorm2d" or "InstanceNorm3d", or the class.
    *arguments, **keywords
        The arguments of that class, with its defaults. ``device`` is ignored.

    Returns
    -------
    NormalizationLayer
        With torch's epsilon, and its ``momentum`` as the weight of the old moments. The layers differ in one number:
        the moving variance here is the biased one that the batch was normalized by.

    Raises
    ------
    ConfigError
        Torch has no such class, the arguments do not fit it, or no layer computes the same; the message says why.
    GennormError
        As `NormalizationLayer`.

    See Also
    --------
    gennorm.from_keras, gennorm.from_flax, gennorm.from_onnx

    Examples
    --------
    >>> import gennorm as gn
    >>> gn.from_torch("LayerNorm", (8, 768), bias=False)
    NormalizationLayer('-2;;All', 'Same', epsilon=1e-05, biases=None, input_shape=(..., 8, 768))
    >>> gn.from_torch("BatchNorm2d", 64).momentum
    0.9
    """
    return _read("torch.nn", TORCH, kind, arguments, keywords)


def from_keras(kind: Any, **keywords: Any) -> NormalizationLayer:
    """Return the layer that computes what a normalization layer of Keras computes.

    Axis `k` there is level `k` here, and the first axis is the batch. A Keras layer knows its sizes when it is built;
    the layer here is initialized by ``initialize(shape)``.

    Parameters
    ----------
    kind : str, class or mapping
        "LayerNormalization", "BatchNormalization", "GroupNormalization", "RMSNormalization" or "Normalization", the
        class, or what ``keras.layers.serialize`` returns: a mapping with the keys "class_name" and "config".
    **keywords
        The arguments of that class, with its defaults; ``**layer.get_config()`` are such.

    Returns
    -------
    NormalizationLayer

    Raises
    ------
    ConfigError
        Keras has no such class, the arguments do not fit it, or no layer computes the same; the message says why.
    GennormError
        As `NormalizationLayer`.

    See Also
    --------
    gennorm.from_torch, gennorm.from_flax, gennorm.from_onnx

    Examples
    --------
    >>> import gennorm as gn
    >>> gn.from_keras("LayerNormalization", axis=[1, 3], center=False)
    NormalizationLayer('{1, 3}', 'Same', biases=None, batched=True)
    >>> gn.from_keras("GroupNormalization", groups=8)
    NormalizationLayer('All', -1, {-1: 8}, input_shape=(..., None), batched=True)
    """
    if isinstance(kind, Mapping) and "class_name" in kind:
        keywords = {**kind.get("config", {}), **keywords}
        kind = kind["class_name"]
    return _read("keras.layers", KERAS, kind, (), keywords)


def from_flax(kind: Any, *arguments: Any, **keywords: Any) -> NormalizationLayer:
    """Return the layer that computes what a normalization of ``flax.linen`` or ``flax.nnx`` computes.

    ``reduction_axes`` are the aggregation levels, and ``feature_axes`` the scaling levels: axis `k` there is level `k`
    here, and the first axis is the batch.

    Parameters
    ----------
    kind : str or class
        "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm" or "BatchNorm", or the class.
    *arguments, **keywords
        ``num_features``, which ``flax.nnx`` takes first, and the keywords of that class, with its defaults.

    Returns
    -------
    NormalizationLayer

    Raises
    ------
    ConfigError
        Flax has no such class, the arguments do not fit it, or no layer computes the same; the message says why.
    GennormError
        As `NormalizationLayer`.

    See Also
    --------
    gennorm.from_torch, gennorm.from_keras, gennorm.from_onnx

    Examples
    --------
    >>> import gennorm as gn
    >>> gn.from_flax("LayerNorm", reduction_axes=(1, 2), feature_axes=3)
    NormalizationLayer('1;;2', 3, epsilon=1e-06, batched=True)
    >>> gn.from_flax("RMSNorm", 768)
    NormalizationLayer(-1, 'Same', method='RMS', epsilon=1e-06, biases=None, input_shape=(..., 768))
    """
    return _read("flax", FLAX, kind, arguments, keywords)


def from_onnx(kind: Any, **attributes: Any) -> NormalizationLayer:
    """Return the layer that computes what a normalization operator of ONNX computes.

    The first axis is the batch; where there are channels, they are on axis 1. The sizes and values of parameters are
    inputs there: the layer here is initialized by ``initialize(shape)``, or by assigning them.

    Parameters
    ----------
    kind : str
        "LayerNormalization", "RMSNormalization", "GroupNormalization", "InstanceNormalization", "BatchNormalization"
        or "MeanVarianceNormalization".
    **attributes
        The attributes of that operator, with its defaults. ``training_mode`` is that of a call here.

    Returns
    -------
    NormalizationLayer

    Raises
    ------
    ConfigError
        ONNX has no such operator, the attributes do not fit it, or no layer computes the same.
    GennormError
        As `NormalizationLayer`.

    See Also
    --------
    gennorm.from_torch, gennorm.from_keras, gennorm.from_flax

    Examples
    --------
    >>> import gennorm as gn
    >>> gn.from_onnx("LayerNormalization", axis=2)
    NormalizationLayer(scaling_levels='Same', epsilon=1e-05, batched=True)
    >>> gn.from_onnx("MeanVarianceNormalization").epsilon_placement
    'outside'
    """
    return _read("onnx", ONNX, kind, (), attributes)


def _read(
    library: str, table: Mapping[str, Reader], kind: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> NormalizationLayer:
    """Return the layer for a class or operator, which is a name or a class."""
    name = kind.__name__ if isinstance(kind, type) else kind
    if not isinstance(name, str):
        msg = f"a normalization of {library} cannot be {shown(kind)}\n"
        msg += f'write its name, such as "{next(iter(table))}", and its arguments'
        raise ConfigError(msg, code="C070")
    reader = table.get(name)
    if reader is None:
        reason = REFUSED.get(name)
        if reason is not None:
            msg = f"{library}.{name} is no setting of a layer\n{reason}"
        else:
            msg = f"no normalization of {library} is called {shown(name)}{suggest(name, table)}\n"
            msg += f"those that are read are {_listed(table)}"
        raise ConfigError(msg, code="C071")
    try:
        bound = inspect.signature(reader).bind(*arguments, **keywords)
    except TypeError as error:
        msg = f"{library}.{name}: {error}\nits arguments are {_listed(inspect.signature(reader).parameters)}"
        raise ConfigError(msg, code="C072") from None
    return reader(*bound.args, **bound.kwargs)


# What other libraries call a normalization, and what stands for it here.
REFUSED = {
    "LocalResponseNorm": "its statistics are those of a window",
    "CrossMapLRN2d": "its statistics are those of a window",
    "LRN": "its statistics are those of a window",
    "UnitNormalization": "gn.zoo.unit_norm(size) divides by the Euclidean length: it has to know the size",
    "LpNormalization": "with p=2, gn.zoo.unit_norm(size) computes it: it has to know the size",
    "SpectralNormalization": "it divides weights by their largest singular value",
    "SpectralNorm": "it divides weights by their largest singular value",
    "WeightNorm": "gn.zoo.weight_norm(shape) normalizes weights",
}


def _listed(names: Iterable[str]) -> str:
    """Return names as a list that fits a line of an error."""
    words = [*names]
    listed = ", ".join(words)
    return listed if len(listed) < 100 else f"{', '.join(words[:5])}, ... and {words[-1]}"


def _refuse(kind: str, settings: Iterable[tuple[Any, str, str]]) -> None:
    """Refuse the settings whose condition holds, all of them in one error; each comes with what to write instead."""
    found = [(setting, instead) for condition, setting, instead in settings if condition]
    if found:
        msg = f"{kind} with {', '.join(setting for setting, _ in found)} is no setting of a layer\n"
        msg += "; ".join(dict.fromkeys(instead for _, instead in found))
        raise ConfigError(msg, code="C073")


def _affine(scaling: Any, biases: Any) -> dict[str, Any]:
    """Return the settings for the parameters that are present."""
    return {name: None for name, present in (("scaling", scaling), ("biases", biases)) if not present}


def _dtype(value: Any) -> dict[str, Any]:
    """Return the setting for the dtype of parameters: a name, a dtype, or a policy of Keras."""
    if isinstance(value, Mapping):
        value = value.get("config", {}).get("name")
    if value is None:
        return {}
    name = str(getattr(value, "name", value)).rpartition(".")[2]
    return {"dtype": "float32" if name.startswith("mixed_") else name}


def _axes(kind: str, argument: str, value: Any) -> tuple[int, ...]:
    """Return the axes of an argument, which is one or several, ascending where the signs are alike."""
    items = [value] if integer(value) is not None else value
    found = [] if isinstance(items, (str, bytes)) or not isinstance(items, Sequence) else [*map(integer, items)]
    axes = [axis for axis in found if axis is not None]
    if not axes or len(axes) < len(found):
        given = repr(value) if isinstance(value, (list, tuple)) and len(value) < 9 else shown(value)
        msg = f"{argument} of {kind} cannot be {given}\nwrite an axis or a sequence of axes: -1, (1, 2)"
        raise ConfigError(msg, code="C074")
    return tuple(sorted(axes)) if min(axes) >= 0 or max(axes) < 0 else tuple(axes)


def _spec(axes: Sequence[int]) -> Any:
    """Return the level spec for axes of a batch."""
    if len(axes) > 1 and [*axes] == [*range(axes[0], axes[-1] + 1)]:
        return f"{axes[0]};;{'All' if axes[-1] == -1 else axes[-1]}"
    return axes[0] if len(axes) == 1 else tuple(axes)


def _over(axes: Sequence[int], parameters: Sequence[int] | None = None, **settings: Any) -> NormalizationLayer:
    """Return the layer over some axes of a batch, with parameters on the same axes or on others."""
    same = parameters is None or [*parameters] == [*axes]
    absent = "scaling" in settings and "biases" in settings
    used = [*axes, *(parameters or ())]
    return NormalizationLayer(
        _spec(axes),
        () if absent and 0 in axes else "Same" if same else _spec(parameters or ()),
        batched=True if any(axis >= 0 for axis in used) else None,
        **settings,
    )


# ------------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True, slots=True)
class Spelling:
    """A normalization of another library: what to write there. It prints as that.

    Attributes
    ----------
    library : str
        "torch.nn", "keras.layers", "flax" or "onnx".
    kind : str
        The class or operator.
    arguments : mapping
        Its arguments that differ from the defaults there.

    Examples
    --------
    >>> print(Spelling("torch.nn", "LayerNorm", {"normalized_shape": 768, "bias": False}))
    torch.nn.LayerNorm(normalized_shape=768, bias=False)
    """

    library: str
    kind: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.library}.{self.kind}({given})"


def to_torch(layer: NormalizationLayer) -> Spelling:
    """Return the class of ``torch.nn`` that computes what a layer computes, and its arguments.

    Parameters
    ----------
    layer : NormalizationLayer
        The values of its parameters and moments are not written.

    Returns
    -------
    Spelling
        ``gn.from_torch(found.kind, **found.arguments)`` is the layer again, for arrays of the ranks that both take.

    Raises
    ------
    ConfigError
        No class of ``torch.nn`` computes the same; the message lists what cannot be said there.

    Examples
    --------
    >>> import gennorm as gn
    >>> print(gn.to_torch(gn.group_norm(32, 256, epsilon=1e-5)))
    torch.nn.GroupNorm(num_groups=32, num_channels=256)
    >>> gn.to_torch(gn.layer_norm(768, unbiased=True))
    Traceback (most recent call last):
    gennorm.errors.ConfigError: no normalization of torch.nn computes what this layer does
    it cannot say unbiased=True [C075]
    """
    return _write("torch.nn", TORCH, layer, _torch_guesses)


def to_keras(layer: NormalizationLayer) -> Spelling:
    """Return the layer of ``keras.layers`` that computes what a layer computes, and its arguments.

    Parameters
    ----------
    layer : NormalizationLayer
        The values of its parameters and moments are not written.

    Returns
    -------
    Spelling

    Raises
    ------
    ConfigError
        No layer of Keras computes the same; the message lists what cannot be said there.

    Examples
    --------
    >>> import gennorm as gn
    >>> print(gn.to_keras(gn.NormalizationLayer([1, 3], "Same", batched=True)))
    keras.layers.LayerNormalization(axis=(1, 3))
    """
    return _write("keras.layers", KERAS, layer, _keras_guesses)


def to_flax(layer: NormalizationLayer) -> Spelling:
    """Return the norm of ``flax.linen`` that computes what a layer computes, and its arguments.

    Parameters
    ----------
    layer : NormalizationLayer
        The values of its parameters and moments are not written.

    Returns
    -------
    Spelling

    Raises
    ------
    ConfigError
        No norm of Flax computes the same; the message lists what cannot be said there.

    Examples
    --------
    >>> import gennorm as gn
    >>> print(gn.to_flax(gn.NormalizationLayer("1;;2", 3, epsilon=1e-6, batched=True)))
    flax.LayerNorm(reduction_axes=(1, 2), feature_axes=3)
    """
    return _write("flax", FLAX, layer, _flax_guesses)


def to_onnx(layer: NormalizationLayer) -> Spelling:
    """Return the operator of ONNX that computes what a layer computes, and its attributes.

    Parameters
    ----------
    layer : NormalizationLayer
        The values of its parameters and moments, which are inputs there, are not written.

    Returns
    -------
    Spelling

    Raises
    ------
    ConfigError
        No operator of ONNX computes the same; the message lists what cannot be said there.

    Examples
    --------
    >>> import gennorm as gn
    >>> print(gn.to_onnx(gn.rms_norm(768)))
    onnx.RMSNormalization(epsilon=1e-06)
    """
    return _write("onnx", ONNX, layer, _onnx_guesses)


Guesses = Iterable[tuple[str, dict[str, Any]]]

# Settings that an error names, where no normalization of a library has them.
SAYABLE = ("method", "unbiased", "epsilon", "epsilon_placement", "statistics", "momentum")


def _write(
    library: str, table: Mapping[str, Reader], layer: Any, guess: Callable[[LayerConfig, Axes], Guesses]
) -> Spelling:
    """Read likely arguments until they make the layer."""
    if not isinstance(layer, NormalizationLayer):
        msg = f"{shown(layer)} cannot be written as a normalization of {library}\npass a gn.NormalizationLayer"
        raise InputError(msg, code="A051")
    state = layer._state
    config, shape = state.config, state.parameters.shape
    agreed: set[str] = set()
    reasons: dict[str, str] = {}
    axes = meaning(config, shape)
    for kind, arguments in () if axes is None else guess(config, axes):
        try:
            read = _read(library, table, kind, (), arguments)._state.config
        except GennormError:
            continue
        read = replace(read, trainable=config.trainable, dtype=config.dtype)
        if (library, kind) == ("onnx", "LayerNormalization") and config.biases is None:
            read = replace(read, biases=None)  # an input that may be absent
        found = covers(read, config, shape)
        if found:
            defaults = inspect.signature(table[kind]).parameters
            given = {name: value for name, value in arguments.items() if value != defaults[name].default}
            return Spelling(library, kind, given)
        differing = different_settings(read, config)
        agreed |= {one for one in SAYABLE if one not in differing}
        if not differing:
            reasons.setdefault(kind, found.reason)
    values = config.arguments()
    unsaid = [f"{name}={values[name]!r}" for name in SAYABLE if name not in agreed]
    if unsaid:
        what = f"it cannot say {', '.join(unsaid)}"
    elif reasons:
        kind, reason = next(iter(reasons.items()))
        reason = re.sub(" (by|in) the first layer", " there", re.sub(" (by|in) the second( layer)?", " here", reason))
        what = f"{kind} is the nearest, but {reason}"
    else:
        what = "none has these levels with this method and these parameters"
    msg = f"no normalization of {library} computes what this layer does\n{what}"
    raise ConfigError(msg, code="C075")


@dataclass(frozen=True, slots=True)
class _Guess:
    """What a layer means, as other libraries name it: axes from the front and from the end."""

    scaling: bool
    biases: bool
    aggregated: tuple[tuple[int, ...], ...]  # from the front, and from the end
    parameters: tuple[tuple[int, ...], ...]
    kept: tuple[tuple[int, ...], ...]
    groups: int
    sizes: tuple[int | None, ...]  # of one example

    @classmethod
    def of(cls, config: LayerConfig, axes: Axes) -> _Guess:
        roles = {axis + axes.first: role for axis, role in enumerate(axes.roles)}

        def both(found: list[int]) -> tuple[tuple[int, ...], ...]:
            ends = [[level, level - axes.rank - 1] if level else [0] for level in found]
            every = [*itertools.product(*ends)] if len(found) < 4 else [(*found,), tuple(one[-1] for one in ends)]
            return tuple(sorted(every, key=lambda one: len({axis < 0 for axis in one})))

        return cls(
            config.scaling is not None,
            config.biases is not None,
            both([level for level, role in roles.items() if role != KEPT]),
            both(sorted(axis + axes.first for axis in axes.scaling)),
            both([level for level, role in roles.items() if level and role in {KEPT, axes.sizes[level - axes.first]}]),
            max(1, *roles.values()),
            axes.sizes[axes.batched :],
        )

    @property
    def channels(self) -> list[int]:
        """Axes that may be those of the channels."""
        found = [*self.parameters, *self.kept, (1,), (-1,)]
        return [*dict.fromkeys(axes[0] for axes in found if len(axes) == 1 and axes[0])]


def _torch_guesses(config: LayerConfig, axes: Axes) -> Guesses:
    guess = _Guess.of(config, axes)
    affine, eps = {"bias": guess.biases}, {"eps": config.epsilon}
    for number in range(1, len(guess.sizes) + 1):
        sizes = guess.sizes[-number:]
        shape = sizes[0] if number == 1 else sizes
        if None not in sizes:
            present = {"elementwise_affine": guess.scaling}
            yield "LayerNorm", {"normalized_shape": shape, **eps, **present, **(affine if guess.scaling else {})}
            yield "RMSNorm", {"normalized_shape": shape, **eps, **present}
    channels = guess.sizes[0] if guess.sizes else None
    present = {"affine": guess.scaling, **(affine if guess.scaling else {})}
    yield "GroupNorm", {"num_groups": guess.groups, "num_channels": channels, **eps, **present}
    tracks = config.statistics != "input"
    running = {"track_running_stats": tracks, **({"momentum": round(1 - config.momentum, 15)} if tracks else {})}
    rank = len(guess.sizes) if config.input_shape is not None and ... not in config.input_shape else 3
    for kind in (f"BatchNorm{max(1, rank - 1)}d", f"InstanceNorm{rank - 1}d"):
        yield kind, {"num_features": channels, **eps, **present, **running}


def _keras_guesses(config: LayerConfig, axes: Axes) -> Guesses:
    guess = _Guess.of(config, axes)
    affine = {"epsilon": config.epsilon, "center": guess.biases, "scale": guess.scaling}
    for found in guess.aggregated:
        yield "LayerNormalization", {"axis": _one_or_all(found), **affine}
        yield "RMSNormalization", {"axis": _one_or_all(found), "epsilon": config.epsilon}
    for axis in guess.channels:
        yield "GroupNormalization", {"groups": guess.groups, "axis": axis, **affine}
        yield "GroupNormalization", {"groups": -1, "axis": axis, **affine}
        trains = {} if config.trainable else {"trainable": False}
        yield "BatchNormalization", {"axis": axis, "momentum": config.momentum, **affine, **trains}
    for found in guess.kept:
        yield "Normalization", {"axis": _one_or_all(found) if found else None}


def _flax_guesses(config: LayerConfig, axes: Axes) -> Guesses:
    guess = _Guess.of(config, axes)
    scaled = {"epsilon": config.epsilon, "use_scale": guess.scaling}
    affine = {**scaled, "use_bias": guess.biases}
    for found, parameters in itertools.product(guess.aggregated, guess.parameters):
        features = {"feature_axes": _one_or_all(parameters)} if parameters else {}
        if parameters or not (guess.scaling or guess.biases):
            yield "LayerNorm", {"reduction_axes": _one_or_all(found), **features, **affine}
            yield "RMSNorm", {"reduction_axes": _one_or_all(found), **features, **scaled}
    yield "GroupNorm", {"num_groups": guess.groups, **affine}
    for found in guess.aggregated:
        yield "GroupNorm", {"num_groups": guess.groups, "reduction_axes": (*found[:-1], -1), **affine}
    for found in guess.parameters:
        yield "InstanceNorm", {**({"feature_axes": _one_or_all(found)} if found else {}), **affine}
    for axis in guess.channels:
        yield "BatchNorm", {"axis": axis, "momentum": config.momentum, **affine}


def _onnx_guesses(config: LayerConfig, axes: Axes) -> Guesses:
    guess, epsilon = _Guess.of(config, axes), {"epsilon": config.epsilon}
    for found in guess.aggregated:
        for kind in ("LayerNormalization", "RMSNormalization"):
            yield kind, {"axis": found[0], **epsilon}
        yield "MeanVarianceNormalization", {"axes": found}
    yield "GroupNormalization", {"num_groups": guess.groups, **epsilon}
    yield "InstanceNormalization", epsilon
    yield "BatchNormalization", {**epsilon, "momentum": config.momentum}


def _one_or_all(axes: tuple[int, ...]) -> Any:
    return axes[0] if len(axes) == 1 else axes


# --------------------------------------------------------------------------------------------------------------- torch


def _torch_layer_norm(
    normalized_shape: Any,
    eps: float = 1e-5,
    elementwise_affine: bool = True,
    bias: bool = True,
    device: Any = None,
    dtype: Any = None,
) -> NormalizationLayer:
    affine = _affine(elementwise_affine, elementwise_affine and bias)
    return presets.layer_norm(normalized_shape, epsilon=eps, **affine, **_dtype(dtype))


def _torch_rms_norm(
    normalized_shape: Any,
    eps: float | None = None,
    elementwise_affine: bool = True,
    device: Any = None,
    dtype: Any = None,
) -> NormalizationLayer:
    # Without eps torch takes that of the dtype it computes in, which is float32 for halves too.
    epsilon = SINGLE if eps is None and "float64" not in _dtype(dtype).values() else 2.0**-52 if eps is None else eps
    return presets.rms_norm(normalized_shape, epsilon=epsilon, **_affine(elementwise_affine, True), **_dtype(dtype))


def _torch_group_norm(
    num_groups: int,
    num_channels: int,
    eps: float = 1e-5,
    affine: bool = True,
    device: Any = None,
    dtype: Any = None,
    *,
    bias: bool = True,
) -> NormalizationLayer:
    absent = _affine(affine, affine and bias)
    return presets.group_norm(num_groups, num_channels, epsilon=eps, **absent, **_dtype(dtype))


def _torch_batch_norm(kind: str, spatial_levels: int | None) -> Reader:
    def read(
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> NormalizationLayer:
        settings = _torch_running(kind, momentum, track_running_stats)
        absent = _affine(affine, affine and bias)
        return presets.batch_norm(
            num_features, spatial_levels=spatial_levels, epsilon=eps, **settings, **absent, **_dtype(dtype)
        )

    return read


def _torch_sync_batch_norm(
    num_features: int,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    affine: bool = True,
    track_running_stats: bool = True,
    process_group: Any = None,
    device: Any = None,
    dtype: Any = None,
    *,
    bias: bool = True,
) -> NormalizationLayer:
    refused = (process_group is not None, "process_group", "gennorm.torch merges the moments of all processes")
    _refuse("torch.nn.SyncBatchNorm", [refused])
    read = _torch_batch_norm("SyncBatchNorm", None)
    return read(num_features, eps, momentum, affine, track_running_stats, dtype=dtype, bias=bias)


def _torch_instance_norm(kind: str, spatial_levels: int) -> Reader:
    def read(
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: Any = None,
        dtype: Any = None,
        *,
        bias: bool = True,
    ) -> NormalizationLayer:
        settings = _torch_running(kind, momentum, track_running_stats)
        absent = _affine(affine, affine and bias)
        return presets.instance_norm(
            num_features, spatial_levels=spatial_levels, epsilon=eps, **settings, **absent, **_dtype(dtype)
        )

    return read


def _torch_running(kind: str, momentum: float | None, tracks: bool) -> dict[str, Any]:
    """Return the settings of running statistics; torch's momentum is the weight of the new ones."""
    if not tracks:
        return {"statistics": "input"}
    averages = "momentum=None averages the statistics of batches: layer.adapt(data) pools those of all data"
    _refuse(f"torch.nn.{kind}", [(momentum is None, "momentum=None", averages)])
    old = 1 - momentum if isinstance(momentum, (int, float)) else momentum
    return {"statistics": "moving", "momentum": round(old, 15) if isinstance(old, float) else old}


TORCH: dict[str, Reader] = {
    "LayerNorm": _torch_layer_norm,
    "RMSNorm": _torch_rms_norm,
    "GroupNorm": _torch_group_norm,
    "BatchNorm1d": _torch_batch_norm("BatchNorm1d", None),  # of sequences, or of features alone
    "BatchNorm2d": _torch_batch_norm("BatchNorm2d", 2),
    "BatchNorm3d": _torch_batch_norm("BatchNorm3d", 3),
    "SyncBatchNorm": _torch_sync_batch_norm,
    "InstanceNorm1d": _torch_instance_norm("InstanceNorm1d", 1),
    "InstanceNorm2d": _torch_instance_norm("InstanceNorm2d", 2),
    "InstanceNorm3d": _torch_instance_norm("InstanceNorm3d", 3),
}


# --------------------------------------------------------------------------------------------------------------- Keras

# The arguments of every Keras layer that a config has.
COMMON = ("name", "dtype", "trainable", "activity_regularizer", "autocast", "input_shape", "input_dtype")
INITIAL = {"beta": "zeros", "gamma": "ones", "moving_mean": "zeros", "moving_variance": "ones"}
WEIGHTS = tuple(f"{name}_{part}" for name in ("beta", "gamma") for part in ("initializer", "regularizer", "constraint"))
MOVING = ("moving_mean_initializer", "moving_variance_initializer")


def _keras(kind: str, defaults: Mapping[str, Any], read: Reader, *, own: Sequence[str] = ()) -> Reader:
    """Return a reader of the config of a Keras layer, which checks what all of them have."""

    def reader(**config: Any) -> NormalizationLayer:
        _refuse(f"keras.layers.{kind}", _keras_refused(config))
        settings = {**defaults, **{name: value for name, value in config.items() if name in defaults}}
        common = {"trainable": config.get("trainable", True), **_dtype(config.get("dtype"))}
        return read(**settings, common=common)

    names = [*defaults, *own, *COMMON]
    kinds = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, kinds, default=defaults.get(name)) for name in names]
    reader.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return reader


def _keras_refused(config: Mapping[str, Any]) -> Iterable[tuple[Any, str, str]]:
    """Return the settings of a config that are not those of a new Keras layer, as `_refuse` takes them."""
    for name, value in config.items():
        part = name.rpartition("_")[2]
        if part == "initializer":
            given = value.get("class_name") if isinstance(value, Mapping) else value
            given = str(getattr(given, "__name__", None) or given).lower()
            expected = INITIAL[name.removesuffix("_initializer")]
            yield given != expected, name, "assign layer.scaling, layer.biases or layer.moments"
        elif part in {"regularizer", "constraint"}:
            yield value is not None, name, "losses and constraints belong to the optimizer"


def _keras_layer(axis: Any, epsilon: float, center: bool, scale: bool, rms_scaling: bool, common: Any) -> Any:
    about = "it divides by the standard deviation without subtracting the mean"
    _refuse("keras.layers.LayerNormalization", [(rms_scaling, "rms_scaling=True", about)])
    axes = _axes("keras.layers.LayerNormalization", "axis", axis)
    return _over(axes, epsilon=epsilon, **_affine(scale, center), **common)


def _keras_rms(axis: Any, epsilon: float, common: Any) -> Any:
    axes = _axes("keras.layers.RMSNormalization", "axis", axis)
    return _over(axes, method="RMS", epsilon=epsilon, biases=None, **common)


def _keras_group(groups: Any, axis: Any, epsilon: float, center: bool, scale: bool, common: Any) -> Any:
    (level,) = _one_axis("keras.layers.GroupNormalization", axis)
    settings = {"channel_level": level, "epsilon": epsilon, **_affine(scale, center), **common}
    if groups == -1:
        return presets.instance_norm(None, **settings)
    return presets.group_norm(groups, None, **settings)


def _keras_batch(
    axis: Any,
    momentum: float,
    epsilon: float,
    center: bool,
    scale: bool,
    renorm: bool,
    renorm_clipping: Any,
    renorm_momentum: Any,
    synchronized: bool,
    common: Any,
) -> Any:
    (level,) = _one_axis("keras.layers.BatchNormalization", axis)
    front = "gennorm.keras.BatchNormalization computes that"
    refused = [(renorm, "renorm=True", front), (synchronized, "synchronized=True", front)]
    _refuse("keras.layers.BatchNormalization", refused)
    settings = {"channel_level": level, "momentum": momentum, "epsilon": epsilon, **_affine(scale, center)}
    return presets.batch_norm(None, **settings, **common)


def _keras_features(axis: Any, mean: Any, variance: Any, invert: bool, common: Any) -> Any:
    backwards = "layer.inverse(y) computes that, for the layer with invert=False"
    _refuse("keras.layers.Normalization", [(invert, "invert=True", backwards)])
    return presets.feature_norm(None if axis in (None, [], ()) else axis, mean=mean, variance=variance, **common)


def _one_axis(kind: str, axis: Any) -> tuple[int, ...]:
    axes = _axes(kind, "axis", axis)
    _refuse(kind, [(len(axes) > 1, f"axis={axes}", "its channels are on one axis")])
    return axes


KERAS: dict[str, Reader] = {
    "LayerNormalization": _keras(
        "LayerNormalization",
        {"axis": -1, "epsilon": 1e-3, "center": True, "scale": True, "rms_scaling": False},
        _keras_layer,
        own=WEIGHTS,
    ),
    "BatchNormalization": _keras(
        "BatchNormalization",
        {
            "axis": -1,
            "momentum": 0.99,
            "epsilon": 1e-3,
            "center": True,
            "scale": True,
            "renorm": False,
            "renorm_clipping": None,
            "renorm_momentum": 0.99,
            "synchronized": False,
        },
        _keras_batch,
        own=(*WEIGHTS, *MOVING),
    ),
    "GroupNormalization": _keras(
        "GroupNormalization",
        {"groups": 32, "axis": -1, "epsilon": 1e-3, "center": True, "scale": True},
        _keras_group,
        own=WEIGHTS,
    ),
    "RMSNormalization": _keras("RMSNormalization", {"axis": -1, "epsilon": 1e-6}, _keras_rms),
    "Normalization": _keras(
        "Normalization", {"axis": -1, "mean": None, "variance": None, "invert": False}, _keras_features
    ),
}


# ---------------------------------------------------------------------------------------------------------------- Flax


def _flax(kind: str, read: Reader, *, own: Mapping[str, Any]) -> Reader:
    """Return a reader of the arguments of a norm of Flax, which checks what all of them have."""

    def reader(*arguments: Any, **keywords: Any) -> NormalizationLayer:
        given = signature.bind(*arguments, **keywords)
        given.apply_defaults()
        values = given.arguments
        across = "gennorm.jax.NormalizationLayer merges the moments of all devices"
        values_set = "assign the values: layer.scaling, layer.biases"
        refused = [
            (values["axis_name"] is not None, "axis_name", across),
            (values["axis_index_groups"] is not None, "axis_index_groups", across),
            (values["scale_init"] is not None, "scale_init", values_set),
            (values["bias_init"] is not None, "bias_init", values_set),
            (values["dtype"] is not None, "dtype", "the output has the dtype of the input"),
        ]
        _refuse(f"flax.{kind}", refused)
        affine = _affine(values["use_scale"], values["use_bias"] and kind != "RMSNorm")
        settings = {**affine, "epsilon": values["epsilon"], **_dtype(values["param_dtype"])}
        return read(values["num_features"], *(values[name] for name in own), settings)

    defaults_of = {"epsilon": 1e-5 if kind == "BatchNorm" else 1e-6, **FLAX_COMMON}
    kinds = inspect.Parameter
    parameters = [
        kinds("num_features", kinds.POSITIONAL_OR_KEYWORD, default=None),
        *(kinds(name, kinds.KEYWORD_ONLY, default=default) for name, default in {**own, **defaults_of}.items()),
    ]
    signature = inspect.Signature(parameters)
    reader.__signature__ = signature  # type: ignore[attr-defined]
    return reader


# What the norms of Flax have in common. None stands for the initializers that make ones and zeros.
FLAX_COMMON = {
    "use_scale": True,
    "use_bias": True,
    "scale_init": None,
    "bias_init": None,
    "dtype": None,
    "param_dtype": None,
    "axis_name": None,
    "axis_index_groups": None,
    "use_fast_variance": True,
    "force_float32_reductions": True,
    "rngs": None,
    "name": None,
    "parent": None,
}


def _flax_over(kind: str, features: int | None, reduction_axes: Any, feature_axes: Any, settings: Any) -> Any:
    axes = _axes(f"flax.{kind}", "reduction_axes", reduction_axes)
    parameters = _axes(f"flax.{kind}", "feature_axes", feature_axes)
    shape: tuple[Any, ...] | None = None
    if features is not None and len(parameters) == 1 and parameters[0] != 0:
        level = parameters[0]
        rest = [None] * (abs(level) - 1)
        shape = (*rest, features, ...) if level > 0 else (..., features, *rest)
    return _over(axes, parameters, input_shape=shape, **settings)


def _flax_layer(features: Any, reduction_axes: Any, feature_axes: Any, settings: Any) -> Any:
    return _flax_over("LayerNorm", features, reduction_axes, feature_axes, settings)


def _flax_rms(features: Any, reduction_axes: Any, feature_axes: Any, settings: Any) -> Any:
    return _flax_over("RMSNorm", features, reduction_axes, feature_axes, {**settings, "method": "RMS"})


def _flax_instance(features: Any, feature_axes: Any, settings: Any) -> Any:
    axes = _axes("flax.InstanceNorm", "feature_axes", feature_axes)
    if len(axes) == 1:
        return presets.instance_norm(features, channel_level=axes[0], **settings)
    rest = presets._listed(*presets._other_levels(None, *axes))
    return NormalizationLayer(rest, _spec(axes), batched=True, **settings)


def _flax_group(features: Any, num_groups: Any, group_size: Any, reduction_axes: Any, settings: Any) -> Any:
    both = num_groups is not None and group_size is not None
    sizes = "write num_groups=None where group_size counts" if both else "write num_groups"
    unknown = group_size is not None and integer(features) is None
    uneven = not unknown and group_size is not None and (group_size < 1 or features % group_size > 0)
    refused = [
        (both, "num_groups and group_size", sizes),
        (num_groups is None and group_size is None, "neither num_groups nor group_size", sizes),
        (unknown, "group_size without num_features", "write num_features: the number of groups follows from both"),
        (uneven, f"group_size={group_size}", f"write a size that divides the {features} features"),
    ]
    _refuse("flax.GroupNorm", refused)
    groups = num_groups if group_size is None else features // group_size
    if reduction_axes is None:
        return presets.group_norm(groups, features, channel_level=-1, **settings)
    axes = _axes("flax.GroupNorm", "reduction_axes", reduction_axes)
    last = "write the last axis as -1 among the reduction_axes"
    _refuse("flax.GroupNorm", [(-1 not in axes, f"reduction_axes={axes}", last)])
    shape = (..., integer(features))
    return NormalizationLayer(_spec(axes), -1, {-1: groups}, input_shape=shape, batched=True, **settings)


def _flax_batch(features: Any, axis: Any, momentum: float, use_running_average: Any, settings: Any) -> Any:
    (level,) = _one_axis("flax.BatchNorm", axis)
    trainable = not use_running_average  # the norm then uses the running averages in every call
    return presets.batch_norm(features, channel_level=level, momentum=momentum, trainable=trainable, **settings)


FLAX: dict[str, Reader] = {
    "LayerNorm": _flax("LayerNorm", _flax_layer, own={"reduction_axes": -1, "feature_axes": -1}),
    "RMSNorm": _flax("RMSNorm", _flax_rms, own={"reduction_axes": -1, "feature_axes": -1}),
    "GroupNorm": _flax("GroupNorm", _flax_group, own={"num_groups": 32, "group_size": None, "reduction_axes": None}),
    "InstanceNorm": _flax("InstanceNorm", _flax_instance, own={"feature_axes": -1}),
    "BatchNorm": _flax("BatchNorm", _flax_batch, own={"axis": -1, "momentum": 0.99, "use_running_average": None}),
}


# ---------------------------------------------------------------------------------------------------------------- ONNX


def _onnx_layer(axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> NormalizationLayer:
    _refuse_stash("LayerNormalization", stash_type)
    return _onnx_trailing("LayerNormalization", axis, epsilon=epsilon)


def _onnx_rms(axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> NormalizationLayer:
    _refuse_stash("RMSNormalization", stash_type)
    return _onnx_trailing("RMSNormalization", axis, epsilon=epsilon, method="RMS", biases=None)


def _onnx_trailing(kind: str, axis: Any, **settings: Any) -> NormalizationLayer:
    """Return the layer over an axis and all behind it."""
    (first,) = _one_axis(f"onnx.{kind}", axis)
    aggregation = -1 if first == -1 else f"{first};;All"
    return NormalizationLayer(aggregation, "Same", batched=True if first >= 0 else None, **settings)


def _onnx_group(num_groups: int, epsilon: float = 1e-5, stash_type: int = 1) -> NormalizationLayer:
    _refuse_stash("GroupNormalization", stash_type)
    return presets.group_norm(num_groups, None, epsilon=epsilon)


def _onnx_instance(epsilon: float = 1e-5) -> NormalizationLayer:
    return presets.instance_norm(None, epsilon=epsilon)


def _onnx_batch(epsilon: float = 1e-5, momentum: float = 0.9, training_mode: int = 0) -> NormalizationLayer:
    return presets.batch_norm(None, epsilon=epsilon, momentum=momentum)


def _onnx_features(axes: Any = (0, 2, 3)) -> NormalizationLayer:
    found = _axes("onnx.MeanVarianceNormalization", "axes", axes)
    return _over(found, (), epsilon=1e-9, epsilon_placement="outside", scaling=None, biases=None)


def _refuse_stash(kind: str, stash_type: int) -> None:
    wide = "statistics are computed in float32 or better"
    _refuse(f"onnx.{kind}", [(stash_type != 1, f"stash_type={stash_type}", wide)])


ONNX: dict[str, Reader] = {
    "LayerNormalization": _onnx_layer,
    "RMSNormalization": _onnx_rms,
    "GroupNormalization": _onnx_group,
    "InstanceNormalization": _onnx_instance,
    "BatchNormalization": _onnx_batch,
    "MeanVarianceNormalization": _onnx_features,
}
