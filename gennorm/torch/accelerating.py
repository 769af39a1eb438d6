"""Replace the normalization layers of a model by those of gennorm, and undo it.

A layer stays the same object, with its parameters, buffers, hooks and name. Its class changes to a subclass of the one
it had, whose `forward` is that of gennorm. Torch's classes become those of `gennorm.torch.layers`. A layer of another
class is probed first: a copy with random parameters is called, and each layer of the core that it could be, on inputs
of several scales and ranks; outputs and gradients must agree. For inputs that were not probed, such as those of another
dtype, the layer calls the forward that it had.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

import gennorm
from gennorm.errors import GennormError, InputError
from gennorm.torch import layers
from gennorm.torch.layers import Configured
from gennorm.torch.module import Normalization, text_of
from gennorm.torch.tensors import FLOATING, HALVES

__all__ = ["Left", "Replaced", "Report", "accelerate", "restore"]

DROPINS: dict[type, type] = {getattr(nn, name): getattr(layers, name) for name in layers.__all__}
OTHERS = (nn.modules.batchnorm._NormBase, nn.LocalResponseNorm, nn.CrossMapLRN2d)  # torch's that have no drop-in
ATTRIBUTES = ("_gennorm", "_gennorm_float64", "_gennorm_proof")  # those of ours; the rest is the layer's own

# Largest difference of two right answers, in units of the dtype's rounding and relative to the largest value. For 8 to
# 8,192 elements the layers of Llama, T5 and torch, and layer norm written out in torch, differ by 2.6 units at most in
# float32, 9.7 in float64 and 1.8 in 16 bits. A wrong layer differs by far more: n instead of n - 1 in a variance makes
# 513 units of float32 for 8,192 elements. In 16 bits it makes 1.3, so layers of 16 bits are probed in float32 too.
UNITS = {torch.float32: 16.0, torch.float64: 32.0, torch.bfloat16: 4.0, torch.float16: 4.0}
Verdict = tuple[type, "Proof | None"]  # the class that a layer becomes
SCALES = (1.0, 30.0)  # of inputs; a third one is that at which epsilon is as large as the variance
RANKS = (2, 3, 4)


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

    Torch's own layers are replaced, and layers of other classes, such as ``LlamaRMSNorm``, that agree with a layer of
    the core on probe inputs. The model keeps its parameters, buffers, hooks and names: optimizers and state dicts work
    as before. For inputs of a dtype that was not probed a layer calls its own forward: convert the model to its dtype
    first. Calls use as many threads as torch, `torch.get_num_threads`.

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
        if isinstance(module, Normalization):
            if _original(module) is not None:
                left.append(Left(name, kind, "it was replaced before"))
        elif _is_candidate(module):
            verdict = judge(module)
            if isinstance(verdict, str):
                left.append(Left(name, kind, verdict))
            else:
                replaced.append(Replaced(name, kind, _install(module, *verdict)))
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
        original = _original(module)
        if original is not None:
            for name in ATTRIBUTES:
                vars(module).pop(name, None)
            object.__setattr__(module, "__class__", original)
            number += 1
    return number


# ------------------------------------------------------------------------------------------------- the new classes


@dataclass(frozen=True, slots=True)
class Guess:
    """What a layer of an unknown class may compute.

    Attributes
    ----------
    method : str
        As in a config.
    place : {"last", "channels", "groups"}
        The aggregated axes: the last ones, the channels of a batch, or groups of channels and all axes after them.
    epsilon : str or float
        The name of the attribute that holds it, or a value.
    """

    method: str
    place: str
    epsilon: str | float

    def layer(self, module: Any) -> gennorm.NormalizationLayer:
        """Make the layer of the core, for the sizes of a module."""
        weight = module._parameters.get("weight")
        shape = getattr(module, "normalized_shape", None) if weight is None else tuple(weight.shape)
        epsilon = getattr(module, self.epsilon) if isinstance(self.epsilon, str) else self.epsilon
        settings: dict[str, Any] = {"method": self.method, "epsilon": epsilon}
        if self.place == "groups":
            return gennorm.group_norm(module.num_groups, module.num_channels if module.affine else None, **settings)
        if self.place == "channels":
            sizes = shape or (None,)
            return gennorm.NormalizationLayer(1, "Same", batched=True, input_shape=(*sizes, ...), **settings)
        if shape is None:
            return gennorm.NormalizationLayer(-1, "Same", scaling=None, biases=None, **settings)
        return gennorm.layer_norm(shape, **settings)


@dataclass(frozen=True, slots=True)
class Proof:
    """What a layer of an unknown class computes, for inputs of some dtypes and ranks."""

    guess: Guess
    inputs: frozenset[tuple[torch.dtype, int]]


class Proved(Configured):
    """A layer of any class, computed by a layer of the core for the inputs for which the two agree."""

    _gennorm_proof: Proof

    @property
    def __constants__(self) -> tuple[str, ...]:
        epsilon = self._gennorm_proof.guess.epsilon
        return (epsilon,) if isinstance(epsilon, str) else ()

    def layer(self) -> gennorm.NormalizationLayer:
        """Make the layer of the core that was proved."""
        return self._gennorm_proof.guess.layer(self)

    def forward(self, *given: Any, **named: Any) -> Any:
        """Compute by the layer of the core, or by the original forward for inputs without a proof."""
        if len(given) == 1 and not named:
            x, weight = given[0], self._parameter("weight")
            if (
                isinstance(x, Tensor)
                and (x.dtype, x.dim()) in self._gennorm_proof.inputs
                and x.is_cpu
                and (weight is None or weight.dtype is x.dtype)
            ):
                return self._normalized(x)
        return super().forward(*given, **named)


@functools.cache
def _class(original: Any, base: Any) -> Any:
    """Return a subclass of the original whose forward is that of the base."""

    def reduce(self: Any, protocol: Any) -> Any:
        return _revived, (original, base), self.__getstate__()

    own = {"__reduce_ex__": reduce, "__doc__": original.__doc__, "_gennorm_original": original}
    # A drop-in class of torch's class is a subclass of it already.
    return type(original.__name__, (base,) if issubclass(base, original) else (base, original), own)


def _revived(original: Any, base: Any) -> Any:
    kind = _class(original, base)
    return kind.__new__(kind)


def _original(module: nn.Module) -> type | None:
    """Return the class that a replaced layer had."""
    return getattr(type(module), "_gennorm_original", None)


def _install(module: Any, becomes: type, proof: Proof | None = None) -> str:
    """Change the class of a layer; return the text of the layer of the core."""
    if proof is not None:
        vars(module)["_gennorm_proof"] = proof
    module.__class__ = becomes
    module._begin()
    return text_of(module._settings())


# -------------------------------------------------------------------------------------------------------- the probes


def _is_candidate(module: nn.Module) -> bool:
    """Return whether a module is a normalization layer, by its class or the name of its class."""
    if isinstance(module, (*DROPINS, *OTHERS)):
        return True
    return next(module.children(), None) is None and "norm" in type(module).__name__.lower()


class _Judge:
    """Decides which class replaces a layer, or why none does; layers with the same settings are probed once."""

    def __init__(self) -> None:
        self.known: dict[Any, Verdict | str] = {}

    def __call__(self, module: nn.Module) -> Verdict | str:
        reason = _unfit(module)
        if reason is not None:
            return reason
        kind: Any = type(module)
        base = next((one for one in DROPINS if isinstance(module, one)), None)
        if base is not None and _computes_as(kind, base):
            own = DROPINS[base]
            return _class(kind, own), None
        settings = {name: repr(value) for name, value in vars(module).items() if not name.startswith("_")}
        settings.pop("training")
        tensors = [(name, one.shape, one.dtype) for name, one in module.named_parameters()]
        key = (kind, *sorted(settings.items()), *tensors)
        if key not in self.known:
            self.known[key] = _probed(module)
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
    own = {name for name, _ in module.named_parameters()}
    held = {name for name, _ in module.named_buffers()}
    if type(module) not in DROPINS and not isinstance(module, tuple(DROPINS)) and (held or own - {"weight", "bias"}):
        return f"its class is not known, and has {', '.join(sorted(held | own - {'weight', 'bias'}))}"
    return None


def _computes_as(kind: type, base: type) -> bool:
    """Return whether a class computes what torch's class does: it overrides no method that takes part."""
    methods = ("forward", "_apply_instance_norm", "_handle_no_batch_input")
    return all(getattr(kind, name, None) is getattr(base, name, None) for name in methods)


def _probed(module: nn.Module) -> Verdict | str:
    """Find what a layer of an unknown class computes, by calling it."""
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return "it has a forward of its own, and running statistics, which cannot be probed"
    kind: Any = type(module)
    dtype = next((one.dtype for one in module.parameters()), torch.float32)
    nearest, differs = "", float("inf")
    with (
        torch.random.fork_rng(devices=[]),
        torch.autocast("cpu", enabled=False),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
    ):
        for guess in _guesses(module):
            least, ranks = _judged(module, guess, dtype)
            if ranks:
                proved = frozenset((dtype, rank) for rank in ranks)
                return _class(kind, Proved), Proof(guess, proved)
            if least < differs:
                nearest, differs = repr(guess.layer(module)), least
    if not nearest:
        return "it does not turn one tensor into one of the same shape, or has no derivative"
    return f"on a probe it differs by {differs:.1g} of the largest value from {nearest}"


def _guesses(module: nn.Module) -> Iterator[Guess]:
    """Yield what a layer may compute, by its attributes that are numbers."""
    held: Iterable[str | float] = [
        name for name, value in vars(module).items() if isinstance(value, float) and 0 <= value < 0.1
    ]
    places = ["groups"] if isinstance(module, nn.GroupNorm) else ["last", "channels"]
    likely = isinstance(module, nn.RMSNorm) or module._parameters.get("bias") is None
    methods = ("RMS", "Standardize") if likely else ("Standardize", "RMS")  # a wrong guess compiles kernels
    for epsilon in held or (1e-5, 1e-6, 1e-12, torch.finfo(torch.float32).eps):
        for place in places:
            for method in methods:
                yield Guess(method, place, epsilon)


def _judged(module: nn.Module, guess: Guess, dtype: torch.dtype) -> tuple[float, list[int]]:
    """Return the least difference on inputs of any rank, and the ranks for which it is only rounding."""
    least, ranks = float("inf"), []
    for rank in RANKS:
        for one in (torch.float32, dtype) if dtype in HALVES else (dtype,):
            found = _difference(module, guess, one, rank)
            least = min(least, found)
            if not found <= UNITS[one] * torch.finfo(one).eps:
                break
        else:
            ranks.append(rank)
    return least, ranks


def _difference(module: nn.Module, guess: Guess, dtype: torch.dtype, rank: int) -> float:
    """Return the largest relative difference of outputs and gradients; infinite where a call or a gradient fails."""
    kind: Any = type(module)
    verdict = _class(kind, Proved), Proof(guess, frozenset({(dtype, rank)}))
    generator = torch.Generator().manual_seed(rank)
    theirs, ours = (copy.deepcopy(module).to(dtype) for _ in range(2))
    _randomize(theirs, ours, generator=generator)
    try:
        core = guess.layer(module)
        _install(ours, *verdict)
    except GennormError:
        return float("inf")
    weight = module._parameters.get("weight")
    sizes = getattr(module, "normalized_shape", (16,)) if weight is None else tuple(weight.shape)
    free = rank - len(sizes)
    if free < 0 or (guess.place != "last" and free < 1):
        return float("inf")
    others = (2, 3, 2)[:free]
    shape = (*others, *sizes) if guess.place == "last" else (others[0], *sizes, *others[1:])
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


def _computed(module: nn.Module, x: Tensor, dy: Tensor) -> Iterator[Tensor]:
    """Yield the output and then every gradient, without the module's hooks."""
    x = x.detach().requires_grad_()
    y = module.forward(x)
    yield y
    yield from torch.autograd.grad(y, [x, *module.parameters()], dy)


def _apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference, relative to the largest value; infinite for NaN and for other shapes."""
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
