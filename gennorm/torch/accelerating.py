"""Replace the normalization layers of a model by those of gennorm, and undo it.

A layer stays the same object, with its parameters, buffers, hooks and name. Its class changes to a subclass of the one
it had, whose `forward` is that of gennorm. Torch's classes become those of `gennorm.torch.layers`. A layer of another
class is replaced if `gennorm.torch.proving` proves that its forward is a norm, and if a copy with random parameters
agrees with gennorm on inputs of several scales and ranks, outputs and gradients. For other inputs than those of the
proof, such as those of another dtype, the layer calls its original forward. An assignment to one of its attributes ends
the proof, and with it the use of gennorm.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

import gennorm
from gennorm.errors import GennormError, InputError
from gennorm.spec.config import LayerConfig
from gennorm.torch import layers
from gennorm.torch.computation import TensorComputation
from gennorm.torch.layouts import RULES, arranged
from gennorm.torch.module import Normalization, text_of
from gennorm.torch.proving import INTERNAL, NotProvedError, prove
from gennorm.torch.tensors import FLOATING, HALVES, is_eager, is_plain

__all__ = ["Left", "Replaced", "Report", "accelerate", "restore"]

DROPINS: dict[type, type] = {getattr(nn, name): getattr(layers, name) for name in layers.__all__}
OTHERS = (nn.modules.batchnorm._NormBase, nn.LocalResponseNorm, nn.CrossMapLRN2d)  # torch's that have no drop-in
PROOF = "_gennorm_proof"
MISSING: Any = object()
# Attributes that torch and transformers assign, and that are no part of what a layer computes.
OF_TORCH = {"training", "__class__", "__dict__", "_is_replica", "_former_parameters", "_is_hf_initialized"}

# Largest difference of two right answers, in units of the dtype's rounding and relative to the largest value. For 8 to
# 8,192 elements the layers of Llama, T5 and torch, and layer norm written out in torch, differ by 2.6 units at most in
# float32, 9.7 in float64 and 1.8 in 16 bits. A wrong layer differs by far more: n instead of n - 1 in a variance makes
# 513 units of float32 for 8,192 elements. In 16 bits it makes 1.3, so layers of 16 bits are probed in float32 too.
UNITS = {torch.float32: 16.0, torch.float64: 32.0, torch.bfloat16: 4.0, torch.float16: 4.0}
Verdict = tuple[type, "Proof | None"]  # the class that a layer becomes
SCALES = (1.0, 30.0)  # of inputs; a third one is that at which epsilon is as large as the variance
RANKS = (3, 4, 2, 1, 5)  # a layer that is a norm for none of the first three is one for no rank


@dataclass(frozen=True, slots=True)
class Replaced:
    """A layer that gennorm computes: its name in the model, the name of its class, and the layer of the core."""

    name: str
    kind: str
    by: str


@dataclass(frozen=True, slots=True)
class Left:
    """A layer that is unchanged: its name in the model, the name of its class, and the reason."""

    name: str
    kind: str
    why: str


@dataclass(frozen=True, slots=True)
class Report:
    """The normalization layers of a model, `replaced` and `left`; prints as a table.

    Examples
    --------
    >>> print(accelerate(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8))))
    replaced by
      1 LayerNorm  1  NormalizationLayer(-1, 'Same', epsilon=1e-05, input_shape=(..., 8))
    """

    replaced: tuple[Replaced, ...] = ()
    left: tuple[Left, ...] = ()

    def __str__(self) -> str:
        parts = [
            *_table("replaced by", [(one.kind, one.by, one.name) for one in self.replaced]),
            *_table("left because", [(one.kind, one.why, one.name) for one in self.left]),
        ]
        return "\n".join(parts) or "no normalization layers"


def accelerate(model: nn.Module) -> Report:
    """Replace the normalization layers of a model, in place.

    Torch's own layers are replaced, and layers of other classes, such as ``LlamaRMSNorm``, whose forward is proved to
    be a norm. The model keeps its parameters, buffers, hooks and names: optimizers and state dicts work as before. For
    inputs of a dtype that was not proved a layer calls its own forward: convert the model to its dtype first. Calls use
    as many threads as torch, `torch.get_num_threads`.

    Parameters
    ----------
    model : torch.nn.Module
        A model, or one layer.

    Returns
    -------
    Report
        The layers that were replaced, and those that were not and why. A second call replaces nothing.

    Raises
    ------
    InputError
        The model is not a module.

    See Also
    --------
    gennorm.torch.restore : Undo it.

    Examples
    --------
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.BatchNorm2d(8, device="meta"))
    >>> print(accelerate(model))
    replaced by
      1 GroupNorm  1  NormalizationLayer('All', 1, {1: 2}, epsilon=1e-05, input_shape=(8, ...), batched=True)
    left because
      1 BatchNorm2d  2  its parameters are on the device meta
    >>> isinstance(model[1], nn.GroupNorm), restore(model)
    (True, 1)
    """
    _require_module(model)
    judge = _Judge()
    replaced, left = [], []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, Proved) and module._gennorm_proof is None:
            _restore(module)
        if isinstance(module, (Normalization, Proved)):
            if _original(module) is not None:
                left.append(Left(name, kind, "it was replaced before"))
        elif _is_candidate(module):
            verdict = judge(module)
            if not isinstance(verdict, str):
                try:
                    replaced.append(Replaced(name, kind, _install(module, *verdict)))
                    continue
                except GennormError as error:
                    verdict = error.message.partition("\n")[0]
            if _is_named_norm(module):
                left.append(Left(name, kind, verdict))
    return Report(tuple(replaced), tuple(left))


def restore(model: nn.Module) -> int:
    """Undo `accelerate`: every layer gets its former class back.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place. Parameters and buffers keep their values.

    Returns
    -------
    int
        The number of layers that were restored.

    Raises
    ------
    InputError
        The model is not a module.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.LayerNorm(8))
    >>> report = accelerate(model)
    >>> restore(model), restore(model), type(model[0]).__module__
    (1, 0, 'torch.nn.modules.normalization')
    """
    _require_module(model)
    number = 0
    for module in model.modules():
        if "_gennorm_original" in vars(type(module)):
            _restore(module)
            number += 1
    return number


# ------------------------------------------------------------------------------------------------- the new classes


@dataclass(frozen=True, slots=True)
class Proof:
    """What a layer of an unknown class computes, and for which inputs that was proved.

    Attributes
    ----------
    method : str
        As in a config.
    place : {"last", "channels", "groups"}
        The aggregated axes: the last ones, the channels of a batch, or groups of channels and all axes after them.
    sizes : tuple of (int, int)
        Axes of an input and the sizes that they have to have.
    groups : int
        The number of groups of channels.
    epsilon : float
        Added to the variance.
    weight, bias : str or None
        Names of attributes.
    zero_centred : bool
        Whether the scaling is ``1 + weight``.
    tensors : tuple of (str, torch.Size or None)
        All parameters and buffers, and their shapes.
    dtype : torch.dtype
        Of the input and of the parameters.
    ranks : frozenset of int
        Numbers of axes of an input.
    arrangement : str
        Which strides the output has, one of `gennorm.torch.layouts.RULES`.
    contiguous : bool
        Whether that was proved for contiguous inputs only.
    """

    method: str
    place: str
    sizes: tuple[tuple[int, int], ...]
    groups: int
    epsilon: float
    weight: str | None
    bias: str | None
    zero_centred: bool
    tensors: tuple[tuple[str, torch.Size | None], ...]
    dtype: torch.dtype
    ranks: frozenset[int]
    arrangement: str = "like"
    contiguous: bool = True

    def layer(self) -> gennorm.NormalizationLayer:
        """Make the layer of the core."""
        sizes = tuple(size for _, size in self.sizes)
        settings: dict[str, Any] = {"method": self.method, "epsilon": self.epsilon}
        if self.place == "groups":
            affine = self.weight is not None or self.bias is not None
            return gennorm.group_norm(self.groups, sizes[0] if affine else None, **settings)
        if self.place == "channels":
            return gennorm.NormalizationLayer(1, "Same", batched=True, input_shape=(*sizes, ...), **settings)
        if not sizes:
            return gennorm.NormalizationLayer(-1, "Same", scaling=None, biases=None, **settings)
        return gennorm.layer_norm(sizes, **settings)

    def takes(self, x: Tensor) -> bool:
        """Return whether the proof holds for an input."""
        return (
            x.dtype is self.dtype
            and x.dim() in self.ranks
            and x.numel() > 0
            and all(x.shape[axis] == size for axis, size in self.sizes)
            and (not self.contiguous or x.is_contiguous())
        )

    def parameters(self, module: nn.Module) -> tuple[Tensor | None, Tensor | None] | None:
        """Return scaling and biases; None where a tensor of the module is not as it was in the proof."""
        found: dict[str | None, Tensor | None] = {None: None}
        for name, shape in self.tensors:
            value = module._parameters.get(name, MISSING)
            value = getattr(module, name, MISSING) if value is MISSING else value
            if shape is None:
                if value is not None:
                    return None
            elif not is_plain(value) or value.shape != shape or value.dtype is not self.dtype:
                return None
            found[name] = value
        scaling = found[self.weight]
        if self.zero_centred:
            assert scaling is not None
            # 16-bit weights are widened first: 1 + weight would be rounded to 16 bits.
            scaling = 1.0 + (scaling.float() if self.dtype in HALVES else scaling)
        return scaling, found[self.bias]


class Proved(nn.Module):
    """A layer of any class, computed by gennorm for the inputs that its proof holds for.

    Every name that this class adds to the layer's begins with ``_gennorm``, so that it hides no name of the layer's.
    """

    _gennorm_proof: Proof | None = None
    _gennorm: TensorComputation

    def forward(self, *given: Any, **named: Any) -> Any:
        """Compute by gennorm, or by the original forward for inputs without a proof."""
        proof = self._gennorm_proof
        if proof is not None and len(given) == 1 and not named:
            x = given[0]
            if is_eager() and is_plain(x) and proof.takes(x):
                parameters = proof.parameters(self)
                if parameters is not None:
                    return self._gennorm.normalize(arranged(x, proof.arrangement), *parameters)
        return super().forward(*given, **named)

    def __setattr__(self, name: str, value: Any) -> None:
        _end_proof(self, name)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        _end_proof(self, name)
        super().__delattr__(name)

    def __prepare_scriptable__(self) -> nn.Module:
        # torch.jit.script compiles what this returns: the layer with its original class.
        return _scriptable(self)


def _end_proof(module: nn.Module, name: str) -> None:
    """Give a layer its own forward back when an attribute other than its parameters is assigned or deleted."""
    proof = vars(module).get(PROOF)
    if proof is None or name in INTERNAL or name in OF_TORCH:
        return
    if all(name != own for own, _ in proof.tensors):
        vars(module).pop(PROOF)
        vars(module).pop("_gennorm", None)


def _scriptable(module: nn.Module) -> nn.Module:
    original: Any = _original(module)
    made: nn.Module = object.__new__(original)
    vars(made).update({name: value for name, value in vars(module).items() if not name.startswith("_gennorm")})
    return made


@functools.cache
def _class(original: Any, base: Any) -> Any:
    """Return a subclass of the original whose forward is that of the base."""

    def reduce(self: Any, protocol: Any) -> Any:
        return _revived, (original, base), self.__getstate__()

    own = {
        "__reduce_ex__": reduce,
        "__doc__": original.__doc__,
        "_gennorm_original": original,
        "__module__": original.__module__,  # torch.fx decides by it which modules are leaves
    }
    if issubclass(base, original):  # a drop-in class of torch's class
        own["__module__"] = base.__module__
        return type(original.__name__, (base,), own)
    return type(original.__name__, (base, original), own)


def _revived(original: Any, base: Any) -> Any:
    kind = _class(original, base)
    return kind.__new__(kind)


def _original(module: nn.Module) -> type | None:
    """Return the class that a replaced layer had."""
    return getattr(type(module), "_gennorm_original", None)


def _restore(module: nn.Module) -> None:
    """Give a replaced layer its former class."""
    original = _original(module)
    for name in [name for name in vars(module) if name.startswith("_gennorm")]:
        vars(module).pop(name)
    object.__setattr__(module, "__class__", original)


def _install(module: Any, becomes: type, proof: Proof | None = None) -> str:
    """Change the class of a layer; return the text of the layer of the core."""
    if proof is not None:
        config = LayerConfig.from_dict(proof.layer().to_config())
        vars(module).update({PROOF: proof, "_gennorm": TensorComputation(config)})
        object.__setattr__(module, "__class__", becomes)
        text = text_of(config)
        return text + " of 1 + weight" if proof.zero_centred else text
    before = type(module)
    object.__setattr__(module, "__class__", becomes)
    try:
        config = module._gennorm_settings()  # raises for settings that gennorm does not have
        module._gennorm_begin()
    except GennormError:
        object.__setattr__(module, "__class__", before)
        raise
    return text_of(config)


# -------------------------------------------------------------------------------------------------------- the judgement


def _is_named_norm(module: nn.Module) -> bool:
    """Return whether a module is a normalization layer by its class or the name of its class."""
    if isinstance(module, (*DROPINS, *OTHERS)):
        return True
    return next(module.children(), None) is None and "norm" in type(module).__name__.lower()


def _is_candidate(module: nn.Module) -> bool:
    """Return whether a module may be a norm: by its name, or because it has one or two parameters of one shape."""
    if _is_named_norm(module):
        return True
    if next(module.children(), None) is not None or type(module).__module__.partition(".")[0] == "torch":
        return False
    shapes = [one.shape for one in module.parameters(recurse=False)]
    return 1 <= len(shapes) <= 2 and len(set(shapes)) == 1 and len(shapes[0]) > 0


class _Judge:
    """Decides which class replaces a layer, or why none does; layers with the same settings are proved once."""

    def __init__(self) -> None:
        self.known: dict[Any, Verdict | str] = {}

    def __call__(self, module: nn.Module) -> Verdict | str:
        reason = _unfit(module)
        if reason is not None:
            return reason
        kind: Any = type(module)
        base = next((one for one in DROPINS if isinstance(module, one)), None)
        if base is not None and _computes_as(kind, base):
            return _class(kind, DROPINS[base]), None
        settings = {
            name: (type(value).__name__, repr(value)) for name, value in vars(module).items() if name not in INTERNAL
        }
        settings.pop("training")
        tensors = [
            (name, None if one is None else (one.shape, one.dtype))
            for name, one in [*module._parameters.items(), *module._buffers.items()]
        ]
        key = (kind, *sorted(settings.items()), *tensors)
        if key not in self.known:
            self.known[key] = _proved(module)
        return self.known[key]


def _unfit(module: nn.Module) -> str | None:
    """Return why a layer cannot be replaced, whatever it computes; None if it can."""
    tensors = [*module.parameters(), *module.buffers()]
    if "forward" in vars(module):
        return "its forward has been replaced by another"
    if any(isinstance(one, (UninitializedBuffer, UninitializedParameter)) for one in tensors):
        return "its parameters have no sizes yet: call the model once"
    for one in tensors:
        if one.device.type != "cpu":
            return f"its parameters are on the device {one.device}"
    for one in module.parameters():
        if one.dtype not in FLOATING:
            return f"its parameters are of the dtype {one.dtype}"
    if nn.utils.parametrize.is_parametrized(module):
        return "its class was made by torch.nn.utils.parametrize: call accelerate before it"
    return None


def _computes_as(kind: type, base: type) -> bool:
    """Return whether a class computes what torch's class does: it overrides no method that takes part."""
    methods = ("forward", "_apply_instance_norm", "_handle_no_batch_input", "__getattr__", "__getattribute__")
    return all(getattr(kind, name, None) is getattr(base, name, None) for name in methods)


def _proved(module: nn.Module) -> Verdict | str:
    """Prove what a layer of an unknown class computes, and check it by calling it."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return "it has its own forward and running statistics"
    dtypes = {one.dtype for one in [*module.parameters(), *module.buffers()] if one.is_floating_point()}
    if len(dtypes) > 1:
        return "its parameters are of several dtypes"
    dtype = dtypes.pop() if dtypes else torch.float32
    kind: Any = type(module)
    reason = ""
    with (
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        torch.autocast("cpu", enabled=False),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")  # where warnings are errors, a probe would fail
        proofs: list[Proof] = []
        for place in ["groups"] if isinstance(module, nn.GroupNorm) else ["last", "channels"]:
            found = _proof(module, dtype, place)
            if isinstance(found, str):
                reason = reason or found
            else:
                proofs.append(found)
        # With two axes the last one is that of the channels: the place that was proved for more ranks is the right one.
        for proof in sorted(proofs, key=lambda one: len(one.ranks), reverse=True):
            checked = _checked(module, proof)
            if not isinstance(checked, str):
                return _class(kind, Proved), checked
            reason = checked
    return reason


def _sizes(module: nn.Module, place: str, rank: int) -> dict[int, int] | None:
    """Return the axes of an input that have sizes of the parameters; None if the rank is too small."""
    shapes = [tuple(one.shape) for one in module.parameters() if one.dim()]
    given = getattr(module, "normalized_shape", ()) if place == "last" else ()
    shape = shapes[0] if shapes else tuple(given) if isinstance(given, (tuple, list)) else ()
    if place == "groups":
        return {1: module.num_channels} if rank > 1 else None  # type: ignore[dict-item] # an integer
    if place == "channels":
        return {1: shape[0]} if rank > 1 and len(shape) == 1 else None
    return None if len(shape) > rank else {rank - len(shape) + i: size for i, size in enumerate(shape)}


def _proof(module: nn.Module, dtype: torch.dtype, place: str) -> Proof | str:
    """Prove what a layer computes for inputs of several ranks, or return why it cannot be proved."""
    reason = ""
    norms: dict[Any, list[int]] = {}
    for tried, rank in enumerate(RANKS):
        sizes = _sizes(module, place, rank)
        if sizes is None or (tried == 3 and not norms):
            continue
        try:
            norm = prove(module, dtype, rank, sizes)
        except NotProvedError as error:
            reason = reason or str(error)
            continue
        last = tuple(axis - rank for axis in norm.axes)
        width = max(1, len(sizes))
        if place == "last" and (norm.groups or last != tuple(range(-width, 0))):
            reason = reason or "its forward normalizes over other axes than the last ones"
        elif place != "last" and norm.axes != (1,):
            reason = reason or "its forward normalizes over other axes than the channels"
        else:
            key = norm.method, norm.groups, norm.epsilon, norm.weight, norm.bias, norm.zero_centred
            norms.setdefault(key, []).append(rank)
    if not norms:
        return reason or "its forward is not a norm"
    (method, groups, epsilon, weight, bias, zero_centred), ranks = max(norms.items(), key=lambda one: len(one[1]))
    sizes = _sizes(module, place, ranks[0]) or {}
    return Proof(
        method=method,
        place="groups" if groups else place,
        sizes=tuple((axis - ranks[0] if place == "last" else axis, size) for axis, size in sizes.items()),
        groups=groups,
        epsilon=epsilon,
        weight=weight,
        bias=bias,
        zero_centred=zero_centred,
        tensors=tuple(
            (name, None if one is None else one.shape)
            for name, one in [*module._parameters.items(), *module._buffers.items()]
        ),
        dtype=dtype,
        ranks=frozenset(ranks),
    )


# -------------------------------------------------------------------------------------------------------- the probes


def _checked(module: nn.Module, proof: Proof) -> Proof | str:
    """Compare a layer with the core on inputs; return the proof for the ranks and layouts for which they agree."""
    ranks, most = [], 0.0
    try:
        core = proof.layer()
    except GennormError as error:
        return str(error.message.partition("\n")[0])
    for rank in sorted(proof.ranks):
        for dtype in (torch.float32, proof.dtype) if proof.dtype in HALVES else (proof.dtype,):
            found = _difference(module, proof, core, dtype, rank)
            if not found <= UNITS[dtype] * torch.finfo(dtype).eps:
                most = max(most, found)
                break
        else:
            ranks.append(rank)
    if not ranks:
        return f"on a probe it differs by {most:.1g} of the largest value from {core!r}"
    proof = replace(proof, ranks=frozenset(ranks))
    with torch.no_grad():
        for contiguous in (False, True):
            for name in RULES:
                if all(_is_arranged(module, x, name) for rank in ranks for x in _inputs(proof, rank, contiguous)):
                    return replace(proof, arrangement=name, contiguous=contiguous)
    return "its output has strides that gennorm does not give"


def _shape(proof: Proof, rank: int) -> list[int]:
    """Return a shape that a proof holds for."""
    shape = [2, 3, 4, 2, 3][:rank]
    if not proof.sizes and proof.place == "last":
        shape[-1] = 16
    for axis, size in proof.sizes:
        shape[axis] = size
    return shape


def _inputs(proof: Proof, rank: int, contiguous: bool) -> Iterator[Tensor]:
    """Yield inputs of one shape in several layouts."""
    shape = _shape(proof, rank)
    x = torch.rand(shape, dtype=torch.float32).to(proof.dtype)
    yield x
    if not contiguous:
        yield torch.stack([x, x], -1)[..., 0]
        if rank > 1:
            yield x.transpose(-1, -2).contiguous().transpose(-1, -2)
            yield x[:1].expand(shape)
            yield x.movedim(1, -1).contiguous().movedim(-1, 1)


def _is_arranged(module: Any, x: Tensor, rule: str) -> bool:
    """Return whether the output of a layer has the strides of a rule."""
    return bool(module.forward(x).stride() == torch.empty_like(arranged(x, rule)).stride())


def _difference(
    module: nn.Module, proof: Proof, core: gennorm.NormalizationLayer, dtype: torch.dtype, rank: int
) -> float:
    """Return the largest relative difference of outputs and gradients; infinite where a call or a gradient fails."""
    kind: Any = type(module)
    generator = torch.Generator().manual_seed(rank)
    theirs, ours = (copy.deepcopy(module).to(dtype) for _ in range(2))
    _randomize(theirs, ours, generator=generator)
    _install(ours, _class(kind, Proved), replace(proof, dtype=dtype, contiguous=False))
    shape = _shape(proof, rank)
    most = 0.0
    for scale in (*SCALES, core.epsilon**0.5 or 1e-3):
        x, dy = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        x = (x + 0.5) * scale
        for training in (True, False):
            try:
                pairs = zip(*(_computed(one.train(training), x, dy) for one in (ours, theirs)), strict=True)
                for one, other in pairs:  # the output first: where it differs no gradient is computed
                    most = max(most, _apart(one, other))
                    if most > UNITS[dtype] * torch.finfo(dtype).eps:
                        return most
            except Exception:  # noqa: BLE001 a layer that raises anything is not replaced
                return float("inf")
    return most


def _randomize(*modules: nn.Module, generator: torch.Generator) -> None:
    """Set the parameters of copies of a module to the same random values."""
    with torch.no_grad():
        for together in zip(*(module.parameters() for module in modules), strict=True):
            values = torch.rand(together[0].shape, generator=generator) + 0.5
            for parameter in together:
                parameter.copy_(values)
                parameter.requires_grad_(True)


def _computed(module: nn.Module, x: Tensor, dy: Tensor) -> Iterator[Tensor | None]:
    """Yield the output and then every gradient, without the module's hooks."""
    x = x.detach().requires_grad_()
    y = module.forward(x)
    yield y
    yield from torch.autograd.grad(y, [x, *module.parameters()], dy, allow_unused=True)


def _apart(one: Tensor | None, other: Tensor | None) -> float:
    """Return the largest difference, relative to the largest value; infinite for NaN and for other shapes."""
    if one is None or other is None:  # the gradient of a parameter that is not used
        return 0.0 if one is other else float("inf")
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    largest = other.abs().max().double()
    apart = (one.double() - other.double()).abs().max() / largest
    return apart.item() if apart.isfinite() else float("inf")


# -------------------------------------------------------------------------------------------------------- the report


def _table(title: str, rows: list[tuple[str, str, str]]) -> Iterator[str]:
    """Yield the lines of a table; rows that differ only in the name of the layer are one line."""
    places: dict[tuple[str, str], list[str]] = {}
    for kind, text, name in rows:
        places.setdefault((kind, text), []).append(name or "the model itself")
    if not places:
        return
    lines = [
        (str(len(names)), kind, names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}", text)
        for (kind, text), names in places.items()
    ]
    digits, kinds, names = (max(len(line[column]) for line in lines) for column in range(3))
    yield title
    for number, kind, where, text in lines:
        yield f"  {number:>{digits}} {kind:<{kinds}}  {where:<{names}}  {text}"


def _require_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        msg = f"the model is of type {type(model).__name__}\npass a torch.nn.Module"
        raise InputError(msg, code="A022")
