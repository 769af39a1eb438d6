"""Prove that the forward of a layer of any class is a norm.

The forward runs on fake tensors, which have sizes and no values. Every ATen operator that it calls is recorded as an
operation on polynomials: the output becomes a sum of products of the input, its means, the parameters, and powers of
sums. Two ways to write a norm, such as ``x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()`` and
``x * torch.rsqrt(...)``, have the same polynomial. The layer is a norm if its polynomial is equal to that of one. An
operator without a polynomial (``clamp``, ``where``, ``nan_to_num``) ends the proof.

Fake tensors cannot show what Python code does besides: the code that runs is searched for assignments to attributes,
names of mutable globals, and questions about the state of torch. Where it reads sizes, it is traced with symbolic sizes
too, and every comparison of a size ends the proof.
"""

from __future__ import annotations

import builtins
import dis
import logging
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Norm", "NotProvedError", "prove"]

RANKS = (1, 2, 3, 4, 5)
PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)
INTERNAL = frozenset(vars(nn.Module())) - {"training"}  # attributes that every module has
MOST_TERMS = 64  # of a polynomial; norms have at most 8


class NotProvedError(Exception):
    """The forward of a layer is not proved to be a norm; the text says why."""


@dataclass(frozen=True, slots=True)
class Norm:
    """What a forward was proved to compute, for tensors of one rank.

    Attributes
    ----------
    method : {"Standardize", "RMS"}
        What is divided by.
    axes : tuple of int
        The aggregated axes; for groups, the axis of the channels.
    groups : int
        The number of groups of channels; 0 if the axes are aggregated whole.
    epsilon : float
        Added to the variance.
    weight, bias : str or None
        Names of the parameters.
    zero_centred : bool
        Whether the scaling is ``1 + weight``.
    """

    method: str
    axes: tuple[int, ...]
    groups: int
    epsilon: float
    weight: str | None
    bias: str | None
    zero_centred: bool


def prove(module: nn.Module, dtype: torch.dtype, rank: int, sizes: dict[int, int]) -> Norm:
    """Return the norm that a module computes for tensors of a dtype and a rank.

    Parameters
    ----------
    module : Module
        Its parameters are of `dtype`. It is not changed.
    dtype : torch.dtype
        Of the input.
    rank : int
        Of the input.
    sizes : dict
        The sizes of axes that the proof depends on. All other axes may have any size.

    Raises
    ------
    NotProvedError
        The module computes something else, or it may.

    Examples
    --------
    >>> prove(nn.LayerNorm(4), torch.float32, 2, {1: 4})
    Norm(method='Standardize', axes=(1,), groups=0, epsilon=1e-05, weight='weight', bias='bias', zero_centred=False)
    """
    require_plain_attributes(module)
    free = [axis for axis in range(rank) if axis not in sizes]
    usual = [sizes.get(axis, 3 + 2 * axis) for axis in range(rank)]
    frames = _Frames(module)
    frames.add(type(module).forward)
    frames.require_pure(module)  # before it runs, and has effects

    def traced(shape: list[int], training: bool) -> Value:
        try:
            with frames:
                value = _traced(module, dtype, shape, sizes, training)
        finally:
            frames.require_pure(module)  # the better reason, where both end the proof
        return value

    found = traced(usual, training=False)
    if frames.reads_training and traced(usual, training=True) != found:
        msg = "its forward computes something else in training"
        raise NotProvedError(msg)
    if frames.reads_sizes and free:
        # Symbolic sizes are at least 2.
        shapes = [[1 if axis in free else size for axis, size in enumerate(usual)]]
        shapes += [[other if axis == free[0] else size for axis, size in enumerate(usual)] for other in (0, 1)]
        for shape in shapes:
            for training in {False, frames.reads_training}:
                if traced(shape, training) != found:
                    msg = f"its forward computes something else for the shape {tuple(shape)}"
                    raise NotProvedError(msg)
        _require_no_comparison(module, dtype, usual, sizes)
    return _matched(found, rank)


# ------------------------------------------------------------------------------------------------------- polynomials

Atom = tuple[Any, ...]  # ("x",), ("parameter", name, axes), ("mean", axes, Poly), ("sum", Poly), ("groups", g, epsilon)
X: Atom = ("x",)


class Poly:
    """A sum of products of powers of atoms; equal polynomials are equal objects in a dictionary."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[frozenset[tuple[Atom, Fraction]], float]) -> None:
        rounded = {key: float(f"{value:.12g}") for key, value in terms.items()}
        self.terms = frozenset((key, value) for key, value in rounded.items() if value != 0)
        if len(self.terms) > MOST_TERMS or not all(math.isfinite(value) for _, value in self.terms):
            msg = "its forward is not a norm"
            raise NotProvedError(msg)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Poly) and self.terms == other.terms

    def __hash__(self) -> int:
        return hash(self.terms)

    def __add__(self, other: Poly) -> Poly:
        terms = dict(self.terms)
        for key, value in other.terms:
            terms[key] = terms.get(key, 0.0) + value
        return Poly(terms)

    def __mul__(self, other: Poly) -> Poly:
        total: Poly = constant(0.0)
        for one, left in self.terms:
            for two, right in other.terms:
                exponents = dict(one)
                for atom, exponent in two:
                    exponents[atom] = exponents.get(atom, Fraction(0)) + exponent
                product = Poly(
                    {
                        frozenset(
                            (atom, exponent)
                            for atom, exponent in exponents.items()
                            if exponent != 0 and not _is_whole_sum(atom, exponent)
                        ): left * right
                    }
                )
                for atom, exponent in exponents.items():
                    if _is_whole_sum(atom, exponent):  # the square of a square root
                        product = product * (atom[1] ** exponent)
                total = total + product
        return total

    def __pow__(self, exponent: Fraction) -> Poly:
        if exponent == 0:
            return constant(1.0)
        if len(self.terms) == 1:
            ((key, value),) = self.terms
            whole = exponent.denominator == 1
            if whole or (value > 0 and all(_is_positive(atom, power) for atom, power in key)):
                return Poly({frozenset((atom, power * exponent) for atom, power in key): float(value**exponent)})
        elif exponent.denominator == 1 and 0 < exponent <= 4:
            product = self
            for _ in range(int(exponent) - 1):
                product = product * self
            return product
        elif len(self.terms) > 1:
            return Poly({frozenset({(("sum", self), exponent)}): 1.0})
        msg = "its forward is not a norm"
        raise NotProvedError(msg)

    def mean(self, axes: tuple[int, ...]) -> Poly:
        """Return the mean over axes; factors that are constant along them are taken out."""
        total = constant(0.0)
        for key, value in self.terms:
            fixed = frozenset((atom, power) for atom, power in key if _is_constant_along(atom, axes))
            varying = key - fixed
            inner = Poly({varying: 1.0})
            if not varying:
                term = Poly({fixed: value})
            else:
                over = axes
                if len(varying) == 1:
                    ((atom, power),) = varying
                    if atom[0] == "mean" and power == 1 and not set(atom[1]) & set(axes):  # the mean of a mean
                        over, inner = tuple(sorted({*axes, *atom[1]})), atom[2]
                term = Poly({fixed: value}) * single(("mean", over, inner))
            total = total + term
        return total

    def bound(self, axes: dict[tuple[str, int], int]) -> Poly:
        """Return the polynomial with the axes of its parameters."""
        terms: dict[frozenset[tuple[Atom, Fraction]], float] = {}
        for key, value in self.terms:
            new = []
            for atom, power in key:
                if atom[0] == "parameter":
                    places = tuple(axes.get(one, one) if isinstance(one, tuple) else one for one in atom[2])
                    atom = ("parameter", atom[1], places)  # noqa: PLW2901
                elif atom[0] == "sum":
                    atom = ("sum", atom[1].bound(axes))  # noqa: PLW2901
                new.append((atom, power))
            terms[frozenset(new)] = value
        return Poly(terms)


def constant(value: float) -> Poly:
    """Return a number as a polynomial."""
    return Poly({frozenset(): value})


def single(atom: Atom, exponent: Fraction | int = 1) -> Poly:
    """Return a power of an atom as a polynomial."""
    return Poly({frozenset({(atom, Fraction(exponent))}): 1.0})


def _is_whole_sum(atom: Atom, exponent: Fraction) -> bool:
    return bool(atom[0] == "sum") and exponent.denominator == 1 and 0 < exponent <= 4


def _is_positive(atom: Atom, power: Fraction) -> bool:
    """Return whether the power of an atom has a root whose powers are those of the atom: not so for ``x**2``."""
    return bool(atom[0] == "sum") or (atom[0] == "mean" and power == 1)


def _is_constant_along(atom: Atom, axes: tuple[int, ...]) -> bool:
    if atom[0] == "mean":
        return set(axes) <= set(atom[1])
    if atom[0] == "parameter":
        return not any(isinstance(axis, tuple) or axis in axes for axis in atom[2])
    if atom[0] == "sum":
        return all(_is_constant_along(one, axes) for key, _ in atom[1].terms for one, _ in key)
    return False


# ---------------------------------------------------------------------------------------------------------- recording

Place = int | tuple[str, int] | None  # an axis of the input, an axis of a parameter, or an axis of size 1


@dataclass(frozen=True, slots=True)
class Value:
    """What a tensor is: a polynomial, and which axis of the input each of its axes is."""

    poly: Poly
    places: tuple[Place, ...]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records what every fake tensor is as a function of the input and the parameters."""

    def __init__(self, dtype: torch.dtype, sizes: dict[int, int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.sizes = dtype, sizes
        self.values: dict[int, tuple[Tensor, Value]] = {}  # with the tensor, so that its id is not used again
        self.fresh: set[int] = set()  # results that no other tensor shares memory with

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name in {"sym_size", "sym_stride", "sym_numel", "size", "stride", "numel"} or not _has_tensor(out):
            return out
        in_place = func._schema.is_mutable
        rule = RULES.get(name.removesuffix("_") if in_place and id(args[0]) in self.fresh else name)
        if rule is None:
            msg = f"its forward calls {name}"
            raise NotProvedError(msg)
        given = {argument.name: argument.default_value for argument in func._schema.arguments}
        given.update({argument.name: one for argument, one in zip(func._schema.arguments, args, strict=False)})
        given.update(kwargs)
        read = {key: self.value(one) if isinstance(one, Tensor) else one for key, one in given.items()}
        found = rule(self, read, given)
        if in_place:
            self.set(args[0], found)
            return out
        outputs = out if isinstance(out, (tuple, list)) else (out,)
        if any(returned.alias_info is not None for returned in func._schema.returns):
            self.fresh.difference_update(id(one) for one in args)
        else:
            self.fresh.update(id(one) for one in outputs)
        for one, value in zip(outputs, found if isinstance(found, tuple) else (found,), strict=False):
            self.set(one, value)
        return out

    def set(self, tensor: Tensor, value: Value) -> None:
        self.values[id(tensor)] = tensor, value

    def value(self, tensor: Tensor) -> Value:
        found = self.values.get(id(tensor))
        if found is None:
            msg = "its forward uses a tensor that is neither its input nor its parameter"
            raise NotProvedError(msg)
        return found[1]

    def count(self, axes: Iterable[Place]) -> int:
        """Return the number of elements along axes of fixed size."""
        number = 1
        for axis in axes:
            if axis is None:
                continue
            if axis not in self.sizes:
                msg = "its forward computes a sum whose number of elements varies"
                raise NotProvedError(msg)
            number *= self.sizes[axis]
        return number


def _has_tensor(out: Any) -> bool:
    return isinstance(out, Tensor) or (isinstance(out, (tuple, list)) and any(isinstance(one, Tensor) for one in out))


def _number(value: Any) -> Fraction:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return Fraction(value)
    msg = "its forward computes with the sizes of its input"
    raise NotProvedError(msg)


def _joined(one: Value, two: Value) -> tuple[Poly, Poly, tuple[Place, ...]]:
    """Return two polynomials and the places of what they are combined to; parameters take the input's axes."""
    rank = max(len(one.places), len(two.places))
    lefts = (None,) * (rank - len(one.places)) + one.places
    rights = (None,) * (rank - len(two.places)) + two.places
    places: list[Place] = []
    axes: dict[tuple[str, int], int] = {}
    for left, right in zip(lefts, rights, strict=True):
        if left is None or right is None or left == right:
            places.append(right if left is None else left)
        elif isinstance(left, tuple) and isinstance(right, int):
            axes[left] = right
            places.append(right)
        elif isinstance(right, tuple) and isinstance(left, int):
            axes[right] = left
            places.append(left)
        else:
            msg = "its forward combines different axes"
            raise NotProvedError(msg)
    return one.poly.bound(axes), two.poly.bound(axes), tuple(places)


def _value(given: Any) -> Value:
    return given if isinstance(given, Value) else Value(constant(float(_number(given))), ())


def _plus(one: Any, two: Any, factor: Any = 1) -> Value:
    left, right, places = _joined(_value(one), _value(two))
    return Value(left + right * constant(float(_number(factor))), places)


def _times(one: Any, two: Any) -> Value:
    left, right, places = _joined(_value(one), _value(two))
    return Value(left * right, places)


def _power(one: Any, exponent: Any) -> Value:
    value = _value(one)
    return Value(value.poly ** _number(exponent).limit_denominator(4), value.places)


def _chosen(value: Value, axes: Any) -> list[int]:
    chosen = range(len(value.places)) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
    return sorted(axis % max(1, len(value.places)) for axis in chosen)


def _mean(value: Value, axes: Any, keep: bool) -> Value:
    chosen = _chosen(value, axes)
    over = tuple(sorted(place for axis in chosen if isinstance(place := value.places[axis], int)))
    if any(isinstance(value.places[axis], tuple) for axis in chosen):
        msg = "its forward computes a mean of a parameter"
        raise NotProvedError(msg)
    places = [None if axis in chosen else place for axis, place in enumerate(value.places)]
    if not keep:
        places = [place for axis, place in enumerate(places) if axis not in chosen]
    return Value(value.poly.mean(over) if over else value.poly, tuple(places))


def _variance(recorder: _Recorder, read: Any, given: Any) -> Value:
    value, axes, keep = read["self"], given.get("dim"), given.get("keepdim", False)
    correction = given["unbiased"] if "unbiased" in given else given.get("correction")
    mean = _mean(value, axes, keep)
    square = _mean(_power(value, 2), axes, keep)
    variance = _plus(square, _power(mean, 2), -1)
    correction = 1 if correction is None else correction
    if correction:
        count = recorder.count(value.places[axis] for axis in _chosen(value, axes))
        variance = _times(variance, count / max(count - correction, 1e-9))
    return variance


def _standardized(value: Value, axes: list[int], epsilon: float, weight: Any, bias: Any, method: str) -> Value:
    y = value
    variance = _mean(_power(value, 2), axes, True)
    if method == "Standardize":
        mean = _mean(value, axes, True)
        y, variance = _plus(value, mean, -1), _plus(variance, _power(mean, 2), -1)
    y = _times(y, _power(_plus(variance, epsilon), -0.5))
    y = y if weight is None else _times(y, weight)
    return y if bias is None else _plus(y, bias)


def _layer_norm(recorder: _Recorder, read: Any, given: Any) -> Value:
    axes = list(range(len(read["input"].places)))[-len(given["normalized_shape"]) :]
    epsilon = given["eps"]
    method = "Standardize"
    if "bias" not in given:
        method = "RMS"
        wide = torch.float64 if recorder.dtype is torch.float64 else torch.float32
        epsilon = torch.finfo(wide).eps if epsilon is None else epsilon
    return _standardized(read["input"], axes, epsilon, read["weight"], read.get("bias"), method)


def _group_norm(recorder: _Recorder, read: Any, given: Any) -> Value:
    x = read["input"]
    if x.poly != single(X) or x.places != tuple(range(len(x.places))):
        msg = "its forward is not a norm of its input alone"
        raise NotProvedError(msg)
    y = Value(single(("groups", int(given["group"]), float(given["eps"]))), x.places)
    for name, combine in (("weight", _times), ("bias", _plus)):
        if read[name] is not None:
            own = read[name]
            rank = len(x.places) - 2  # channels are axis 1
            y = combine(y, Value(own.poly, own.places + (None,) * rank))
    return y


def _cast(recorder: _Recorder, read: Any, given: Any) -> Any:
    to = given.get("dtype")
    if to is not None and to not in {recorder.dtype, torch.float32, torch.float64}:
        msg = f"its forward computes in {to}"
        raise NotProvedError(msg)
    if recorder.dtype is torch.float64 and to not in {None, torch.float64}:
        msg = f"its forward computes {recorder.dtype} in {to}"
        raise NotProvedError(msg)
    return read["self"]


def _same(recorder: _Recorder, read: Any, given: Any) -> Any:
    return read["self"]


def _reshaped(recorder: _Recorder, read: Any, given: Any) -> Value:
    """Return a view whose axes are the same except for those of size 1."""
    value, tensor = read["self"], given["self"]
    old = [(size, place) for size, place in zip(tensor.shape, value.places, strict=True) if place is not None]
    wanted = list(given["size"])
    places: list[Place] = []
    for size in wanted:
        if old and (old[0][0] == size or size == -1):
            places.append(old.pop(0)[1])
        elif size == 1:
            places.append(None)
        else:
            msg = "its forward splits or joins axes"
            raise NotProvedError(msg)
    if old:
        msg = "its forward splits or joins axes"
        raise NotProvedError(msg)
    return Value(value.poly, tuple(places))


def _expanded(recorder: _Recorder, read: Any, given: Any) -> Value:
    value = read["self"]
    extra = len(given["size"]) - len(value.places)
    if any(
        place is None and size not in {1, -1} for size, place in zip(given["size"][extra:], value.places, strict=True)
    ):
        msg = "its forward expands an axis"
        raise NotProvedError(msg)
    return Value(value.poly, (None,) * extra + value.places)


def _unsqueezed(recorder: _Recorder, read: Any, given: Any) -> Value:
    value = read["self"]
    places = list(value.places)
    places.insert(given["dim"] % (len(places) + 1), None)
    return Value(value.poly, tuple(places))


def _squeezed(recorder: _Recorder, read: Any, given: Any) -> Value:
    value = read["self"]
    chosen = _chosen(value, given["dim"]) if "dim" in given else []
    if not chosen or any(value.places[axis] is not None for axis in chosen):
        msg = "its forward removes an axis whose size varies"
        raise NotProvedError(msg)
    return Value(value.poly, tuple(place for axis, place in enumerate(value.places) if axis not in chosen))


def _permuted(recorder: _Recorder, read: Any, given: Any) -> Value:
    value = read["self"]
    rank = len(value.places)
    order = list(range(rank))
    if "dims" in given:
        order = [axis % rank for axis in given["dims"]]
    elif "dim0" in given:
        one, two = given["dim0"] % rank, given["dim1"] % rank
        order[one], order[two] = order[two], order[one]
    elif rank == 2:
        order = [1, 0]
    return Value(value.poly, tuple(value.places[axis] for axis in order))


def _sum(recorder: _Recorder, read: Any, given: Any) -> Value:
    _require_dtype(recorder, given)
    count = recorder.count(read["self"].places[axis] for axis in _chosen(read["self"], given.get("dim")))
    return _times(_mean(read["self"], given.get("dim"), given.get("keepdim", False)), count)


def _mean_rule(recorder: _Recorder, read: Any, given: Any) -> Value:
    _require_dtype(recorder, given)
    return _mean(read["self"], given.get("dim"), given.get("keepdim", False))


def _require_dtype(recorder: _Recorder, given: Any) -> None:
    _cast(recorder, {"self": None}, given)


def _divided(recorder: _Recorder, read: Any, given: Any) -> Value:
    if given.get("rounding_mode") is not None:
        msg = "its forward calls div with a rounding mode"
        raise NotProvedError(msg)
    return _times(read["self"], _power(read["other"], -1))


RULES: dict[str, Any] = {
    "add": lambda _, r, g: _plus(r["self"], r["other"], g.get("alpha", 1)),
    "sub": lambda _, r, g: _plus(r["self"], r["other"], -g.get("alpha", 1)),
    "rsub": lambda _, r, g: _plus(r["other"], _times(r["self"], g.get("alpha", 1)), -1),
    "mul": lambda _, r, __: _times(r["self"], r["other"]),
    "div": _divided,
    "neg": lambda _, r, __: _times(r["self"], -1),
    "pow": lambda _, r, g: _power(r["self"], g["exponent"]),
    "square": lambda _, r, __: _power(r["self"], 2),
    "sqrt": lambda _, r, __: _power(r["self"], 0.5),
    "rsqrt": lambda _, r, __: _power(r["self"], -0.5),
    "reciprocal": lambda _, r, __: _power(r["self"], -1),
    "addcmul": lambda _, r, g: _plus(r["self"], _times(r["tensor1"], r["tensor2"]), g.get("value", 1)),
    "mean": _mean_rule,
    "sum": _sum,
    "var": _variance,
    "var_mean": lambda s, r, g: (_variance(s, r, g), _mean(r["self"], g.get("dim"), g.get("keepdim", False))),
    "std": lambda s, r, g: _power(_variance(s, r, g), 0.5),
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "_to_copy": _cast,
    "clone": _same,
    "alias": _same,
    "view": _reshaped,
    "_unsafe_view": _reshaped,
    "reshape": _reshaped,
    "expand": _expanded,
    "unsqueeze": _unsqueezed,
    "squeeze": _squeezed,
    "permute": _permuted,
    "transpose": _permuted,
    "t": _permuted,
}


def _copied(module: nn.Module, training: bool) -> Any:
    """Return a copy whose attributes can be replaced; parameters and buffers are shared."""
    copy = object.__new__(type(module))
    vars(copy).update(vars(module))
    for name in ("_parameters", "_buffers"):
        vars(copy)[name] = dict(vars(module)[name])
    vars(copy)["training"] = training
    return copy


def _traced(module: nn.Module, dtype: torch.dtype, shape: list[int], sizes: dict[int, int], training: bool) -> Value:
    """Return what the forward computes of a fake tensor of a shape."""
    copy, mode = _copied(module, training), FakeTensorMode()
    before = {name: value for name, value in vars(copy).items() if name not in INTERNAL}
    recorder = _Recorder(dtype, sizes)
    for tensors in (vars(copy)["_parameters"], vars(copy)["_buffers"]):
        for name, tensor in tensors.items():
            if tensor is not None:
                tensors[name] = _fake(mode, tensor.shape, tensor.stride(), tensor.dtype)
                own = [(name, axis) if size != 1 else None for axis, size in enumerate(tensor.shape)]
                atom = "parameter", name, tuple(place for place in own if place is not None)
                recorder.set(tensors[name], Value(single(atom), tuple(own)))
    x = _fake(mode, shape, torch.empty(shape, device="meta").stride(), dtype)
    recorder.set(x, Value(single(X), tuple(range(len(shape)))))
    with torch.no_grad(), mode, recorder:
        y = _called(copy, x)
        if not isinstance(y, Tensor) or id(y) not in recorder.values:
            msg = "its forward does not return a new tensor"
            raise NotProvedError(msg)
    after = {name: value for name, value in vars(copy).items() if name not in INTERNAL}
    if before.keys() != after.keys() or any(before[name] is not after[name] for name in before):
        msg = "its forward assigns to attributes"
        raise NotProvedError(msg)
    if y.dtype != dtype or list(y.shape) != shape or y.device.type != "cpu":
        msg = "its output has another dtype, shape or device than its input"
        raise NotProvedError(msg)
    return recorder.value(y)


def _fake(mode: FakeTensorMode, shape: Any, strides: Any, dtype: torch.dtype) -> Tensor:
    empty = torch.empty_strided(tuple(shape), strides, dtype=dtype, device="meta")
    return FakeTensor(mode, empty, torch.device("cpu"))


def _called(copy: Any, x: Tensor) -> Any:
    """Call the forward of a copy; every error that it raises ends the proof."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")  # it logs every error, with a traceback
    logged, logger.disabled = logger.disabled, True
    try:
        return type(copy).forward(copy, x)
    except NotProvedError:
        raise
    except Exception as error:
        if type(error).__name__ in {"DataDependentOutputException", "GuardOnDataDependentSymNode"}:
            msg = "its forward branches on values"
        else:
            msg = f"its forward does not take one tensor of rank {x.dim()}"
        raise NotProvedError(msg) from error
    finally:
        logger.disabled = logged


def _require_no_comparison(module: nn.Module, dtype: torch.dtype, shape: list[int], sizes: dict[int, int]) -> None:
    """Run the forward with symbolic sizes, and refuse comparisons of them."""
    environment = ShapeEnv()
    mode = FakeTensorMode(shape_env=environment)
    for training in (True, False):
        copy = _copied(module, training)
        for tensors in (vars(copy)["_parameters"], vars(copy)["_buffers"]):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = mode.from_tensor(tensor.detach(), static_shapes=True)
        dynamic = [DimDynamic.STATIC if axis in sizes else DimDynamic.DYNAMIC for axis in range(len(shape))]
        context: Any = StatelessSymbolicContext(dynamic_sizes=dynamic)
        x = mode.from_tensor(torch.empty(shape, dtype=dtype), symbolic_context=context)
        with torch.no_grad(), mode:
            _called(copy, x)
    if environment.guards:
        msg = f"its forward branches on the sizes of its input: {environment.guards[0].expr}"
        raise NotProvedError(msg)


# ------------------------------------------------------------------------------------------------------ what may run

TRUSTED = {"torch", "sympy", "mpmath", "numpy", "gennorm", *(sys.stdlib_module_names - {"__main__"})}
NUMERIC = {"torch", "math"}  # modules whose names a forward may use
WRITES = {"STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL", "STORE_SUBSCR", "DELETE_SUBSCR", "IMPORT_NAME"}
SIZES = {"shape", "size", "numel", "nelement", "len", "nbytes", "__len__", "broadcast_shapes", "is_same_size"}
BUILTINS = {
    *("abs", "bool", "enumerate", "float", "int", "isinstance", "len", "list", "max", "min", "pow", "range"),
    *("reversed", "round", "slice", "sorted", "str", "sum", "super", "tuple", "type", "zip", "all", "any"),
}
STATE = {
    *("__dict__", "_version", "apply", "backends", "data_ptr", "get_autocast_dtype", "get_default_dtype", "grad"),
    *("get_num_threads", "grad_fn", "is_autocast_enabled", "is_compiling", "is_contiguous", "is_dynamo_compiling"),
    *("is_exporting", "is_grad_enabled", "is_inference", "is_inference_mode_enabled", "is_leaf", "is_scripting"),
    *("is_tracing", "register_buffer", "register_parameter", "requires_grad", "set_", "storage", "storage_offset"),
    *("stride", "untyped_storage", "data", "is_nested", "layout", "names", "is_fake", "_backward_hooks", "_modules"),
}  # what an answer depends on other than the values of the tensors


class _Frames:
    """The code that runs in a context, except for that of torch and of Python's library."""

    def __init__(self, module: nn.Module) -> None:
        self.packages = {kind.__module__.partition(".")[0] for kind in type(module).__mro__} - TRUSTED
        self.found: dict[CodeType, tuple[dict[str, Any], dict[str, Any]]] = {}
        self.reads_sizes = self.reads_training = False
        self._checked: set[CodeType] = set()

    def __enter__(self) -> None:
        self._before = sys.getprofile()
        sys.setprofile(self._note)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            code, back = frame.f_code, frame.f_back
            package = _package(frame.f_globals)
            # The code of packages that torch imports at its first use is no part of the forward.
            called = back is not None and back.f_code in self.found
            if package not in TRUSTED and (package in self.packages or called) and code not in self.found:
                free = {name: frame.f_locals[name] for name in code.co_freevars if name in frame.f_locals}
                self.found[code] = frame.f_globals, free

    def require_pure(self, module: nn.Module) -> None:
        """Refuse code whose result depends on more than the tensors and the attributes of the module."""
        while unchecked := self.found.keys() - self._checked:
            for code in unchecked:
                self._checked.add(code)
                for inner in _codes(code):
                    self._require_pure(module, inner, *self.found[code])

    def add(self, function: Any) -> None:
        """Add the code of a function, before it runs."""
        if isinstance(function, FunctionType) and _package(function.__globals__) not in TRUSTED:
            cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
            free = {name: cell.cell_contents for name, cell in cells}
            self.found.setdefault(function.__code__, (function.__globals__, free))

    def _require_pure(self, module: nn.Module, code: CodeType, names: Any, free: dict[str, Any]) -> None:
        for step in dis.get_instructions(code):
            name, kind = step.argval, step.opname
            reason = None
            if kind in WRITES or (kind == "STORE_DEREF" and name in code.co_freevars):
                reason = "assigns to attributes, items or globals" if kind != "IMPORT_NAME" else "imports modules"
            elif kind in {"LOAD_GLOBAL", "LOAD_NAME"}:
                own = name in names
                if own and not _is_fixed(names[name]):
                    reason = f"reads the global name {name}"
                elif not own and name not in BUILTINS and not _is_error(getattr(builtins, name, None)):
                    reason = f"uses {name}"
                else:
                    self.add(names.get(name))
                self.reads_sizes |= name in SIZES
            elif kind in {"LOAD_DEREF", "LOAD_CLASSDEREF"}:
                if name in free and not _is_fixed(free[name]):
                    reason = f"reads the variable {name} of an outer function"
            elif kind in {"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"}:
                self.reads_sizes |= name in SIZES
                self.reads_training |= name == "training"
                if name in STATE:
                    reason = f"reads {name}"
                elif _is_class_value(module, name):
                    reason = f"reads the class attribute {name}"
                else:
                    self.add(getattr(type(module), name, None))
            if reason is not None:
                msg = f"its forward {reason}"
                raise NotProvedError(msg)


def _package(names: dict[str, Any]) -> str:
    return str(names.get("__name__", "")).partition(".")[0]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _codes(one)


def _is_error(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def _is_fixed(value: Any) -> bool:
    """Return whether a global is code: a module of numbers, a class, or a function whose code is seen when it runs."""
    if isinstance(value, ModuleType):
        return value.__name__.partition(".")[0] in NUMERIC
    if isinstance(value, type):
        own = value.__module__.partition(".")[0] in {*NUMERIC, "builtins"}
        return (own or issubclass(value, nn.Module)) and not issubclass(value, torch.autograd.Function)
    if isinstance(value, (BuiltinFunctionType, MethodType)):
        return str(getattr(value, "__module__", None)).partition(".")[0] in {*NUMERIC, "_operator", "builtins"}
    return isinstance(value, (FunctionType, torch.dtype))


def _is_class_value(module: nn.Module, name: str) -> bool:
    """Return whether a name of the code may be read from the class, where an assignment is not seen."""
    if name in vars(module) or name in module._parameters or name in module._buffers:
        return False
    for kind in type(module).__mro__:
        if name in vars(kind):
            if kind is object or kind.__module__.partition(".")[0] == "torch":
                return False
            return not callable(getattr(kind, name)) and not isinstance(vars(kind)[name], property)
    return False


def require_plain_attributes(module: nn.Module) -> None:
    """Refuse attributes that can change without an assignment.

    Raises
    ------
    NotProvedError
        An attribute is neither a parameter, a buffer nor an immutable value.
    """
    for name, value in vars(module).items():
        if name not in INTERNAL and not _is_plain_value(value):
            msg = f"its attribute {name} is of the mutable type {type(value).__name__}"
            raise NotProvedError(msg)


def _is_plain_value(value: Any) -> bool:
    if type(value) is tuple:
        return all(_is_plain_value(one) for one in value)
    return type(value) in PLAIN


# ----------------------------------------------------------------------------------------------------------- matching


def _matched(value: Value, rank: int) -> Norm:
    """Return the norm with this polynomial."""
    if value.places != tuple(range(rank)):
        msg = "its forward does not return every axis of its input"
        raise NotProvedError(msg)
    atoms = {(atom, power) for key, _ in value.poly.terms for atom, power in key}
    parameters = sorted(atom for atom, _ in atoms if atom[0] == "parameter")
    if all(power == 1 for atom, power in atoms if atom[0] == "parameter") and len(parameters) <= 2:
        for method, axes, groups, epsilon, core in _cores(atoms):
            for weight, bias in ((None, None), *_roles(parameters)):
                used = [one for one in (weight, bias) if one is not None]
                places = (1,) if groups else axes
                if len(used) != len(parameters) or any(one[2] != places for one in used):
                    continue
                for zero_centred in (False, True)[: 1 + (weight is not None)]:
                    scaling = constant(1.0) if weight is None else single(weight)
                    y = core * (scaling + constant(1.0) if zero_centred else scaling)
                    if bias is not None:
                        y = y + single(bias)
                    if y == value.poly:
                        scale, shift = (None if one is None else one[1] for one in (weight, bias))
                        return Norm(method, axes, groups, epsilon, scale, shift, zero_centred)
    msg = "its forward is not a norm"
    raise NotProvedError(msg)


def _roles(parameters: list[Atom]) -> Iterator[tuple[Atom | None, Atom | None]]:
    """Yield which parameter may be the weight and which the bias."""
    if len(parameters) == 1:
        yield parameters[0], None
        yield None, parameters[0]
    elif len(parameters) == 2:
        yield parameters[0], parameters[1]
        yield parameters[1], parameters[0]


def _cores(atoms: Iterable[tuple[Atom, Fraction]]) -> Iterator[tuple[str, tuple[int, ...], int, float, Poly]]:
    """Yield norms without parameters whose divisor is among the atoms: method, axes, groups, epsilon, polynomial."""
    for atom, power in atoms:
        if atom[0] == "groups" and power == 1:
            yield "Standardize", (1,), atom[1], atom[2], single(atom)
        if power != Fraction(-1, 2) or atom[0] not in {"sum", "mean"}:
            continue
        inner: Poly = atom[1] if atom[0] == "sum" else single(atom)
        epsilon = dict(inner.terms).get(frozenset(), 0.0)
        means = [one for key, _ in inner.terms for one, _ in key if one[0] == "mean" and one[2] == single(X, 2)]
        for square in means:
            axes = square[1]
            mean = single(("mean", axes, single(X)))
            spread = single(square)
            for method, centre, variance in (
                ("RMS", single(X), spread),
                ("Standardize", single(X) + mean * constant(-1.0), spread + mean * mean * constant(-1.0)),
            ):
                if variance + constant(epsilon) == inner:
                    yield method, axes, 0, epsilon, centre * single(atom, Fraction(-1, 2))
