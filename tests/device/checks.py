"""What else holds on a device: torch's own classes, transforms, errors, compiled blocks, other libraries."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, func, nn

import gennorm.torch as gt
from gennorm.errors import GennormError

EPS = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 6e-3, torch.bfloat16: 4e-2}

# torch's classes: arguments, the shape of an input, and settings.
CLASSES: dict[str, tuple[tuple[Any, ...], tuple[int, ...], dict[str, Any]]] = {
    "BatchNorm1d": ((6,), (16, 6, 5), {}),
    "BatchNorm2d": ((6,), (8, 6, 5, 4), {}),
    "BatchNorm3d": ((4,), (4, 4, 3, 4, 5), {}),
    "InstanceNorm1d": ((6,), (4, 6, 30), {"affine": True}),
    "InstanceNorm2d": ((6,), (4, 6, 5, 7), {"affine": True, "track_running_stats": True}),
    "InstanceNorm3d": ((4,), (2, 4, 3, 4, 5), {"affine": True}),
    "GroupNorm": ((3, 12), (4, 12, 5, 4), {}),
    "LayerNorm": ((48,), (7, 5, 48), {}),
    "RMSNorm": ((48,), (7, 5, 48), {}),
}


def sample(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers that are the same on every device."""
    numbers = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return numbers.to(dtype).to(device)


def near(found: Tensor, expected: Tensor, tolerance: float, what: str) -> float:
    """Return the largest error relative to the largest value, as a part of the tolerance; raise if it is larger."""
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    if "meta" in {found.device.type, expected.device.type}:
        return 0.0
    one, other = (value.detach().cpu().double() for value in (found, expected))
    scale = max(other.abs().max().item() if other.numel() else 0.0, 1e-3)
    error = (one - other).abs().max().item() / scale if one.numel() else 0.0
    assert error <= tolerance, (
        f"{what}: the largest error is {error:.3g} of the largest value, {tolerance:g} is allowed"
    )
    return error / tolerance


def all_near(found: Any, expected: Any, tolerance: float, what: str) -> float:
    """The same for several tensors."""
    pairs = list(zip(found, expected, strict=True))
    return max([0.0, *(near(a, b, tolerance, f"{what} {i}") for i, (a, b) in enumerate(pairs) if b is not None)])


def differing(module: nn.Module, seed: int = 5) -> nn.Module:
    """The module with parameters that differ from place to place."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(sample(*parameter.shape, device=parameter.device, dtype=parameter.dtype, seed=seed + i))
    return module


def computed(module: nn.Module, x: Tensor, seed: int = 9) -> list[Tensor]:
    """The output and the gradients of the input and the parameters."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = module(x)
    dy = sample(*y.shape, device=x.device, dtype=y.dtype, seed=seed)
    return [y, *torch.autograd.grad(y, [x, *module.parameters()], dy)]


# -------------------------------------------------------------------------------------------------- torch's own classes


def beside_torch(name: str, device: torch.device, dtype: torch.dtype, training: bool, last: bool) -> float:
    """Compare a drop-in class with torch's class in float64: values, gradients and running statistics."""
    arguments, shape, settings = CLASSES[name]
    theirs = differing(getattr(nn, name)(*arguments, **settings)).to(device)
    ours = getattr(gt, name)(*arguments, **settings).to(device)
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    assert list(ours.state_dict()) == list(theirs.state_dict())
    judge = copy.deepcopy(theirs).to(torch.float64 if device.type != "mps" else torch.float32)
    if dtype not in {torch.float16, torch.bfloat16}:
        ours = ours.to(dtype)
    x = sample(*shape, device=device, dtype=dtype) * 2 + 1
    if last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    for module in (ours, judge):
        module.train(training)
    eps = ours.eps if isinstance(ours, nn.RMSNorm) and ours.eps is not None else None
    if isinstance(ours, nn.RMSNorm) and eps is None:  # depends on the dtype of the input
        ours.eps = judge.eps = 1e-6
    found = computed(ours, x)
    assert found[0].dtype == dtype
    expected = computed(judge, x.to(next(judge.parameters()).dtype))
    worst = all_near(found, expected, EPS[dtype], "output and gradients")
    pairs = zip(ours.buffers(), judge.buffers(), strict=True)
    return max([worst, *(near(a.double() if device.type != "mps" else a, b, 1e-4, "a buffer") for a, b in pairs)])


def same_type(name: str, device: torch.device, dtype: torch.dtype, notes: dict[str, Any]) -> float:
    """Compare values in a network under autocast; write down where the dtype of the output differs from torch's."""
    arguments, shape, settings = CLASSES[name]
    theirs = differing(getattr(nn, name)(*arguments, **settings)).to(device)
    ours = getattr(gt, name)(*arguments, **settings).to(device)
    ours.load_state_dict(theirs.state_dict())
    worst = 0.0
    for given in (torch.float32, dtype):
        x = sample(*shape, device=device, dtype=given)
        with torch.autocast(device.type, dtype):
            y, expected = ours(x), theirs(x)
        if y.dtype != expected.dtype:
            key = f"autocast to {dtype}, input {given}: dtype of the output, gennorm and torch"
            notes.setdefault(key.replace("torch.", ""), {})[name] = [str(one.dtype)[6:] for one in (y, expected)]
        worst = max(worst, near(y, expected, EPS[dtype], "output"))
    return worst


def accelerated(device: torch.device, notes: dict[str, Any]) -> float:
    """`accelerate` on a model on the device, and a model that moves to the device after `accelerate`."""
    make: Callable[[], nn.Module] = lambda: nn.Sequential(  # noqa: E731
        nn.Linear(8, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 8), nn.RMSNorm(8)
    )
    model = differing(make()).to(device)
    x = sample(4, 8, device=device)
    expected = model(x)
    report = gt.accelerate(model)
    notes["accelerate on the device"] = {
        "replaced": len(report.replaced),
        "left": sorted({one.why for one in report.left}),
    }
    worst = near(model(x), expected, 1e-5, "on the device")
    moved = differing(make())
    gt.accelerate(moved)
    return max(worst, near(moved.to(device)(x), expected, 1e-5, "moved to the device"))


def copies(device: torch.device) -> float:
    """State dicts, pickles, deep copies and changes of the dtype keep the values."""
    module = gt.NormalizationLayer("{0, 2}", 1, input_shape=(5, None), batched=True, statistics="moving").to(device)
    x = sample(6, 5, 4, device=device)
    module(x)
    module.eval()
    expected = module(x)
    if device.type == "meta":
        return 0.0
    stream = io.BytesIO()
    torch.save(module.state_dict(), stream)
    stream.seek(0)
    other = copy.deepcopy(module)
    other.load_state_dict(torch.load(stream, weights_only=True, map_location=device))
    worst = near(other(x), expected, 1e-7, "a state dict")
    worst = max(worst, near(pickle.loads(pickle.dumps(module))(x), expected, 1e-7, "a pickle"))
    worst = max(worst, near(copy.deepcopy(module).cpu()(x.cpu()), expected, 1e-5, "on the CPU"))
    half = copy.deepcopy(module).bfloat16()
    assert half.variance is not None
    assert half.variance.dtype == (torch.float32 if device.type == "mps" else torch.float64)
    return max(worst, near(half(x.bfloat16()), expected, 5e-2, "in bfloat16"))


def means(device: torch.device, notes: dict[str, Any], compiled: bool) -> float:
    """Numbers whose mean is a million deviations away: the error of gennorm in deviations, and of torch's own."""
    x = sample(64, 1024, device=device) + 1e6
    wide = x.cpu().double()
    expected = nn.functional.layer_norm(wide, (1024,), eps=0.0)
    module: Any = gt.NormalizationLayer(-1, epsilon=0.0, scaling=None, biases=None).to(device)
    module = torch.compile(module, fullgraph=True) if compiled else module
    with torch.no_grad():
        ours = near(module(x), expected, 1e-5, "gennorm") * 1e-5
        theirs = nn.functional.layer_norm(x, (1024,), eps=0.0)
    if device.type != "meta":
        error = (theirs.cpu().double() - expected).abs().max().item() / expected.abs().max().item()
        kind = "compiled" if compiled else "eager"
        notes[f"a mean of a million deviations, {kind}: largest relative error"] = {"gennorm": ours, "torch": error}
    return ours / 1e-5


# ----------------------------------------------------------------------------------------------------------- transforms

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer": (lambda: gt.NormalizationLayer(-1, "Same", epsilon=1e-3, input_shape=(..., 5)), (3, 5)),
    "RMS": (lambda: gt.RMSNorm(5, eps=1e-3), (3, 5)),
    "groups": (lambda: gt.GroupNorm(2, 4, eps=1e-3), (2, 4, 3)),
    "batch": (lambda: gt.BatchNorm1d(4, track_running_stats=False), (3, 4, 2)),
    "instance": (lambda: gt.InstanceNorm1d(4, affine=True), (2, 4, 3)),
}


def cubed(module: nn.Module) -> Callable[[Tensor], Tensor]:
    """The sum of the cubes of the output."""
    return lambda x: (module(x) ** 3).sum()


def along(x: Tensor) -> Tensor:
    """A direction."""
    return sample(*x.shape, device=x.device, dtype=x.dtype, seed=3)


def double_gradient(module: nn.Module, x: Tensor) -> Tensor:
    """The gradient of the sum of the squared gradient."""
    x = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(cubed(module)(x), x, create_graph=True)
    return torch.autograd.grad((slope**2).sum(), x)[0]


TRANSFORMS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "vmap": lambda m, x: func.vmap(m)(torch.stack([x, 2 * x, x + 1])),
    "vmap along axis 1": lambda m, x: func.vmap(m, in_dims=1, out_dims=1)(torch.stack([x, 2 * x, x + 1], 1)),
    "grad": lambda m, x: func.grad(cubed(m))(x),
    "jvp": lambda m, x: func.jvp(m, (x,), (along(x),))[1],
    "jacrev": lambda m, x: func.jacrev(m)(x),
    "jacfwd": lambda m, x: func.jacfwd(m)(x),
    "hessian": lambda m, x: func.hessian(cubed(m))(x),
    "linearize": lambda m, x: func.linearize(m, x)[1](along(x)),
    "functionalize": lambda m, x: func.functionalize(m)(x),
    "double gradient": double_gradient,
    "vmap of grad": lambda m, x: func.vmap(func.grad(cubed(m)))(torch.stack([x, 2 * x])),
    "batched gradients": lambda m, x: torch.autograd.functional.jacobian(m, x, vectorize=True),
    "make_fx": lambda m, x: torch.fx.experimental.proxy_tensor.make_fx(m)(x)(x + 1),
    "export": lambda m, x: torch.export.export(m, (x,), strict=False).module()(x + 1),
}


def transformed(name: str, transform: str, device: torch.device) -> float:
    """Compare a transform on the device with the same on the CPU in float64."""
    make, shape = LAYERS[name]
    dtype = torch.float32 if device.type == "mps" else torch.float64
    module = differing(make())
    judge, module = copy.deepcopy(module).double(), module.to(device, dtype)
    x = sample(*shape, device=device, dtype=dtype)
    found = TRANSFORMS[transform](module, x)
    expected = TRANSFORMS[transform](judge, sample(*shape, device=torch.device("cpu"), dtype=torch.float64))
    return near(found, expected, 1e-9 if dtype is torch.float64 else 1e-3, transform)


# --------------------------------------------------------------------------------------------------------------- errors


def refused(call: Callable[[], Any], code: str) -> None:
    """Check that a call raises the error with this code."""
    try:
        call()
    except GennormError as error:
        assert error.code == code, f"the error has the code {error.code}, expected {code}: {error}"
        return
    msg = f"nothing was raised, expected the error {code}"
    raise AssertionError(msg)


def mixed(what: str, device: torch.device) -> None:
    """Tensors of two devices in one call."""
    other = torch.device("cpu" if device.type != "cpu" else "meta")
    make = lambda: gt.NormalizationLayer(-1, "Same", input_shape=(..., 5))  # noqa: E731
    module, x, far = make().to(device), sample(3, 5, device=device), sample(3, 5, device=other)
    calls: dict[str, tuple[Callable[[], Any], str]] = {
        "the input": (lambda: module(far), "T002"),
        "a parameter": (lambda: make().to(other)(x), "T002"),
        "the mask": (lambda: module(x, torch.ones(3, 5, dtype=torch.bool, device=other)), "T002"),
        "integers": (lambda: module(torch.ones(3, 5, dtype=torch.int32, device=device)), "T003"),
        "the size": (lambda: module(x[:, :4]), "S010"),
        "a drop-in class": (lambda: gt.LayerNorm(5).to(device)(far), "T002"),
    }
    refused(*calls[what])


MIXED = ("the input", "a parameter", "the mask", "integers", "the size", "a drop-in class")


# ------------------------------------------------------------------------------------------------------ compiled blocks


class Residual(nn.Module):
    """A block of a language model: a norm, a gated layer, and the input again."""

    def __init__(self, norm: Callable[[], nn.Module], size: int) -> None:
        super().__init__()
        self.norm, self.gate = norm(), nn.Linear(size, 2 * size)
        self.out = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input plus what the block computes."""
        one, other = self.gate(self.norm(x)).chunk(2, -1)
        return x + self.out(nn.functional.silu(one) * other)


class Masked(nn.Module):
    """A norm over the words that count."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = gt.NormalizationLayer("{0, 1}", 2, input_shape=(None, size), batched=True)
        self.linear = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """Leave out what is large."""
        return self.linear(self.norm(x, x.detach()[..., :1] < 1.0))


# A bias before a norm that keeps its level has the gradient 0, and what is found are rounding errors.
BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual, RMS norm, linear": (lambda: Residual(lambda: gt.RMSNorm(64, eps=1e-6), 64), (4, 10, 64)),
    "residual, layer norm, linear": (lambda: Residual(lambda: gt.LayerNorm(64), 64), (4, 10, 64)),
    "residual, the general layer": (
        lambda: Residual(lambda: gt.NormalizationLayer(-1, "Same", input_shape=(..., 64)), 64),
        (4, 10, 64),
    ),
    "convolution, group norm, relu": (
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3), gt.GroupNorm(4, 16), nn.ReLU(), nn.Conv2d(16, 4, 3)),
        (4, 3, 12, 12),
    ),
    "convolution, batch norm, relu": (
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), gt.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 3)),
        (4, 3, 12, 12),
    ),
    "convolution, instance norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), gt.InstanceNorm2d(8, affine=True), nn.Tanh()),
        (4, 3, 12, 12),
    ),
    "moving statistics of the general layer": (
        lambda: nn.Sequential(
            nn.Linear(6, 6),
            gt.NormalizationLayer("{0, 2}", 1, input_shape=(5, None), batched=True, statistics="moving"),
        ),
        (8, 5, 6),
    ),
    "a mask": (lambda: Masked(16), (4, 9, 16)),
}


def compiled(name: str, device: torch.device, dynamic: bool | None = None) -> float:
    """Compare a compiled block with the same in eager mode: values, gradients, buffers, another size of the batch."""
    make, shape = BLOCKS[name]
    module = make().to(device)
    torch._dynamo.reset()
    twin = copy.deepcopy(module)
    fast: Any = torch.compile(twin, fullgraph=True, dynamic=dynamic)
    x = sample(*shape, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = computed(module, x)
        x = x.detach().clone().requires_grad_()
        y = fast(x)
        dy = sample(*y.shape, device=device, dtype=y.dtype, seed=9)
        found = [y, *torch.autograd.grad(y, [x, *twin.parameters()], dy)]
        worst = all_near(found, expected, 1e-4, "output and gradients")
        worst = max(worst, all_near(twin.buffers(), module.buffers(), 1e-4, "buffers"))
        module.eval()
        twin.eval()
        more = sample(shape[0] + 3, *shape[1:], device=device, seed=2)
        with torch.no_grad():
            return max(worst, near(fast(more), module(more), 1e-4, "a larger batch in evaluation"))


# ------------------------------------------------------------------------------------------------------------------ JAX


def in_jax(levels: tuple[Any, ...], settings: dict[str, Any], shape: tuple[int, ...], name: str) -> float:
    """Compare the definition under `jax.jit` on the device of JAX with NumPy."""
    import jax
    import numpy as np

    from gennorm import definition
    from gennorm.spec.config import LayerConfig, resolve_config

    config = LayerConfig.make(*levels, **settings)
    resolved = resolve_config(config, shape)
    x = np.random.default_rng(0).normal(3.0, 2.0, shape)
    scaling = np.random.default_rng(1).normal(size=resolved.parameter_shape)
    expected, _ = definition.normalize(x, config, resolved, scaling=scaling)

    def function(x: Any, scaling: Any) -> Any:
        return definition.normalize(x, config, resolved, scaling=scaling)[0]

    found = jax.jit(function)(jax.numpy.asarray(x, name), jax.numpy.asarray(scaling, name))
    assert found.dtype == name
    tolerance = 1e-11 if name == "float64" else 1e-5
    worst = np.abs(np.asarray(found, np.float64) - expected).max() / np.abs(expected).max() / tolerance
    assert worst <= 1, f"the largest error is {worst:.3g} of the allowed one"
    value, grad = jax.jit(jax.value_and_grad(lambda x, s: (function(x, s) ** 3).sum(), argnums=(0, 1)))(x, scaling)
    assert np.isfinite(np.asarray(value))
    assert all(np.isfinite(np.asarray(one)).all() for one in grad)
    return float(worst)


JAX = {
    "layer": ((-1, "Same"), {}, (64, 256)),
    "RMS": ((-1, "Same"), {"method": "RMS"}, (64, 256)),
    "groups": (("All", 1, {1: 4}), {"batched": True}, (4, 16, 8, 8)),
    "instance": (("2;;All", 1), {"batched": True}, (4, 16, 8, 8)),
    "batch": (("{0, 2;;All}", 1), {"batched": True}, (4, 16, 8, 8)),
}


# ------------------------------------------------------------------------------------------------------------ all of it


def dtypes_of(device: torch.device) -> list[str]:
    """The dtypes that a device has."""
    names = ["float32", "bfloat16", "float16", "float64"]
    return [name for name in names if not (device.type == "mps" and name == "float64")]


def run(recorder: Any, device: torch.device, only: str | None = None) -> None:
    """Run the cases that take no compiler."""

    def case(group: str, table: str, name: str, function: Callable[[], float | None]) -> None:
        if only is None or only in f"{group}: {table}, {name}":
            recorder.case(group, table, name, function)

    kinds = [getattr(torch, name) for name in dtypes_of(device)]
    for name in CLASSES:
        for dtype in kinds:
            for training in (True, False):
                for last in (False, True):
                    if last and len(CLASSES[name][1]) != 4:
                        continue
                    label = f"{str(dtype)[6:]}, {'training' if training else 'evaluation'}"
                    case(
                        "drop-in classes",
                        name,
                        label + (", channels last" if last else ""),
                        lambda n=name, d=dtype, t=training, c=last: beside_torch(n, device, d, t, c),
                    )
    if device.type != "meta":
        for name in CLASSES:
            for dtype in (torch.bfloat16, torch.float16):
                if device.type == "cpu" and dtype is torch.float16:
                    continue
                case(
                    "autocast",
                    str(dtype)[6:],
                    name,
                    lambda n=name, d=dtype: same_type(n, device, d, recorder.notes),
                )
    for what in MIXED:
        case("errors", "errors", what, lambda w=what: mixed(w, device))
    case("models", "accelerate", "two layers", lambda: accelerated(device, recorder.notes))
    case("models", "copies", "moving statistics", lambda: copies(device))
    if device.type != "meta":
        case("precision", "eager", "a mean of a million deviations", lambda: means(device, recorder.notes, False))
    for name in LAYERS:
        for transform in TRANSFORMS:
            case("transforms", transform, name, lambda n=name, t=transform: transformed(n, t, device))


def run_compiled(recorder: Any, device: torch.device, only: str | None = None) -> None:
    """Run the cases that take a compiler."""
    for name in BLOCKS:
        for dynamic in (None, True):
            label = "dynamic=True" if dynamic else "fullgraph=True"
            if only is None or only in f"torch.compile: {label}, {name}":
                recorder.case("torch.compile", label, name, lambda n=name, d=dynamic: compiled(n, device, d))
    if only is None:
        recorder.case("precision", "compiled", "a mean", lambda: means(device, recorder.notes, True))


def run_jax(recorder: Any) -> None:
    """Run the definition under `jax.jit`."""
    try:
        import jax

        jax.config.update("jax_enable_x64", True)
        recorder.notes["JAX"] = f"{jax.__version__} on {jax.devices()[0].device_kind}"
    except Exception as error:  # noqa: BLE001 JAX may be missing, or be unable to start
        recorder.notes["JAX"] = f"cannot be used: {type(error).__name__}: {error}"[:300]
        return
    for name, arguments in JAX.items():
        for dtype in ("float32", "float64"):
            recorder.case("JAX", dtype, name, lambda a=arguments, d=dtype: in_jax(*a, d))
