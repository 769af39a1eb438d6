"""Outputs and gradients have the strides that torch's own layers give them; storages stay resizable."""

import copy
import warnings

import pytest

torch = pytest.importorskip("torch")

import gennorm.torch as gt  # noqa: E402

nn = torch.nn


def layouts(shape):
    """A tensor of a shape in every layout that views of dense tensors have."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    yield "contiguous", x
    yield "gaps in the last axis", torch.stack([x, x], -1)[..., 0]
    yield "gaps in the first axis", torch.stack([x, x], 1)[:, 0]
    yield "expanded over the last axis", x[..., :1].expand(shape)
    if x.dim() > 1:
        yield "expanded over the first axis", x[:1].expand(shape)
        yield "expanded over the channels", x[:, :1].expand(shape)
        yield "gaps in the channels", torch.stack([x, x], 2)[:, :, 0]
        yield "transposed", x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if x.dim() > 2:
        yield "batch and channels exchanged", x.transpose(0, 1).contiguous().transpose(0, 1)
        inner = x.movedim(1, -1)
        yield "channels last", inner.contiguous().movedim(-1, 1)
        last = inner.contiguous().movedim(-1, 1)
        yield (
            "channels last, with any steps along axes of size 1",
            last.as_strided(shape, [1 if size == 1 else step for step, size in zip(last.stride(), shape, strict=True)]),
        )
        yield "channels last, with gaps", torch.stack([inner, inner], -1).flatten(-2)[..., ::2].movedim(-1, 1)


SHAPES = [
    (6,),
    (4, 6),
    (2, 6, 5),
    (2, 6, 3, 5),
    (2, 6, 3, 4, 5),
    (2, 6, 1, 5),
    (1, 6, 3, 1),
    (2, 1, 3, 5),
    (6, 1, 1, 1),
]
RUNNING = {"affine": True, "track_running_stats": True}
CASES = [
    *(("LayerNorm", (shape[-1],), {}, shape) for shape in SHAPES),
    *(("LayerNorm", (shape[-2:],), {"elementwise_affine": False}, shape) for shape in SHAPES[1:]),
    *(("RMSNorm", (shape[-1],), {}, shape) for shape in SHAPES),
    *(("GroupNorm", (3 if shape[1] > 1 else 1, shape[1]), {}, shape) for shape in SHAPES[1:]),
    *(("BatchNorm1d", (shape[1],), {}, shape) for shape in SHAPES[1:3]),
    *(
        ("BatchNorm2d", (shape[1],), settings, shape)
        for shape in SHAPES
        if len(shape) == 4
        for settings in ({}, {"affine": False})
    ),
    ("BatchNorm2d", (6,), {"track_running_stats": False}, SHAPES[3]),
    ("BatchNorm3d", (6,), {}, SHAPES[4]),
    *(("InstanceNorm1d", (6,), settings, SHAPES[2]) for settings in ({}, RUNNING)),
    *(
        ("InstanceNorm2d", (shape[-3],), settings, shape)
        for shape in [(6, 3, 5), *SHAPES[3:4], *SHAPES[5:8]]
        for settings in ({}, RUNNING)
    ),
    ("InstanceNorm3d", (6,), {}, SHAPES[4]),
]


def outcome(module, x, *, grad):
    """The output and its strides, and those of the gradient of a leaf; an error's class."""
    x = x.detach()
    try:
        if not grad:
            with torch.no_grad():
                y = module(x)
            return y, steps(y)
        leaf = x.clone().requires_grad_()
        y = module(torch.as_strided(leaf, leaf.shape, leaf.stride()) if leaf.stride() != x.stride() else leaf)
        y.sum().backward()
    except (ValueError, RuntimeError) as error:
        return None, isinstance(error, ValueError)
    return y, (steps(y), steps(leaf.grad))


def steps(x):
    """The strides along axes of more than one element: others mean nothing."""
    return tuple(step for step, size in zip(x.stride(), x.shape, strict=True) if size > 1)


@pytest.mark.parametrize(("name", "arguments", "settings", "shape"), CASES, ids=str)
def test_strides_are_those_of_torch(name, arguments, settings, shape):
    theirs = getattr(nn, name)(*arguments, **settings)
    ours = getattr(gt, name)(*arguments, **settings)
    for layout, x in layouts(shape):
        for training in (True, False):
            for grad in (False, True):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    (expected, strides), (y, own) = (
                        outcome(copy.deepcopy(module).train(training), x, grad=grad) for module in (theirs, ours)
                    )
                assert own == strides, (layout, training, grad)
                if expected is not None:
                    torch.testing.assert_close(y, expected, rtol=2e-5, atol=2e-5)


def test_a_token_norm_can_be_viewed():
    conv, norm, x = nn.Conv2d(3, 8, 3), gt.LayerNorm(8), torch.randn(2, 3, 6, 6)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            assert norm(conv(x).flatten(2).transpose(1, 2)).view(2, -1).shape == (2, 128)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (lambda: gt.LayerNorm(64), (2048, 64)),
        (lambda: gt.BatchNorm2d(64), (32, 64, 8, 8)),
        (lambda: gt.NormalizationLayer(-1, "Same", input_shape=(..., 64)), (2048, 64)),
    ],
)
def test_storages_stay_resizable(made, shape, grad, dtype):
    """As sharding needs it: parameters are freed after a call, and get other memory before the next one."""
    module = made().to(dtype)
    x = torch.randn(shape).to(dtype).requires_grad_(grad)
    values = [parameter.detach().clone() for parameter in module.parameters()]
    expected = module(x).detach().clone()
    for _ in range(3):
        y = module(x)
        if grad:
            y.backward(torch.ones_like(y))
        assert torch.equal(y, expected)
        for parameter, value in zip(module.parameters(), values, strict=True):
            storage = parameter.untyped_storage()
            size = storage.nbytes()
            storage.resize_(0)
            storage.resize_(size)
            with torch.no_grad():
                parameter.copy_(value)
    x.detach().untyped_storage().resize_(0)


@pytest.mark.parametrize(("rows", "dtype"), [(5, torch.float32), (5000, torch.float32), (5, torch.bfloat16)], ids=str)
def test_tensors_that_stand_for_others(rows, dtype):
    """Negated views and zeros without memory: torch computes such tensors when they are read."""
    numbers = torch.randn(2, rows, 16, generator=torch.Generator().manual_seed(0)).to(dtype)

    def negated(x):
        return torch._neg_view(x)

    ours, theirs = (kind(16, dtype=dtype) for kind in (gt.LayerNorm, nn.LayerNorm))
    gains = torch.linspace(0.5, 2, 16).to(dtype)
    for module in (ours, theirs):
        del module.weight
        module.weight = negated(gains)
    zeros = torch._efficientzerotensor(numbers[0].shape, dtype=dtype)
    gt.set_batch_invariant(True)
    try:
        for given, dy in (
            (negated(numbers[0]), numbers[1]),
            (numbers[0], negated(numbers[1])),
            (numbers[0], zeros),
            (zeros, numbers[1]),
        ):
            for _ in range(3):  # the weight is bound to a kernel when it comes again
                gains.mul_(-1)  # the view of it follows
                results = []
                for module in (ours, theirs):
                    x = given.detach().requires_grad_()
                    y = module(x)
                    results.append((y, *torch.autograd.grad(y, [x, module.bias], dy)))
                torch.testing.assert_close(
                    *results,
                    **({"rtol": 1e-4, "atol": 1e-3} if dtype is torch.float32 else {"rtol": 3e-2, "atol": 1e-1}),
                )
    finally:
        gt.set_batch_invariant(False)
