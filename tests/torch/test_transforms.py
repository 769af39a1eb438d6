"""Every class beside torch's, in everything that torch can do with a function: the same values and gradients.

Where torch's own formulas of higher derivatives are wrong (those of its layer norm, in torch 2.13), and for the general
layer, the judge is the layer written out in torch's operations.
"""

import copy
import warnings

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("array_api_compat")

from torch import func, nn  # noqa: E402
from torch.nn.utils import parametrize, prune  # noqa: E402

import gennorm.torch as gt  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")

EPS = 1e-3


def written_out(axes, over, *, groups=1, rms=False):
    """A layer in torch's operations: axes that are aggregated, and the axis of the parameters; channels in groups."""

    def function(module, x, mask=None, moments=None):
        shape, size = x.shape, groups
        values = x.reshape(*shape[:1], size, shape[1] // size, *shape[2:]) if groups > 1 else x
        if moments is not None:
            mean, variance = (one.reshape([-1 if axis == over else 1 for axis in range(x.ndim)]) for one in moments)
        elif mask is not None:
            counted = mask.expand(values.shape).to(values.dtype)
            mean = (values * counted).sum(axes, keepdim=True) / counted.sum(axes, keepdim=True)
            variance = ((values - mean) ** 2 * counted).sum(axes, keepdim=True) / counted.sum(axes, keepdim=True)
        else:
            mean = 0.0 if rms else values.mean(axes, keepdim=True)
            variance = ((values - mean) ** 2).mean(axes, keepdim=True)
        y = ((values - mean) / (variance + EPS).sqrt()).reshape(shape)
        sizes = [-1 if axis == over % x.ndim else 1 for axis in range(x.ndim)]
        bias = getattr(module, "bias", None)
        y = y * module.weight.reshape(sizes)
        return y if bias is None else y + bias.reshape(sizes)

    return function


def general(*levels, **settings):
    return lambda: gt.NormalizationLayer(*levels, epsilon=EPS, batched=True, **settings)


# The class, torch's, the layer written out and the shape of an input.
CASES = {
    "BatchNorm1d": (lambda: gt.BatchNorm1d(4, eps=EPS), (3, 4), written_out((0,), 1)),
    "BatchNorm2d": (lambda: gt.BatchNorm2d(4, eps=EPS), (2, 4, 2, 2), written_out((0, 2, 3), 1)),
    "BatchNorm3d": (lambda: gt.BatchNorm3d(2, eps=EPS), (2, 2, 2, 1, 2), written_out((0, 2, 3, 4), 1)),
    "InstanceNorm1d": (lambda: gt.InstanceNorm1d(4, eps=EPS, affine=True), (2, 4, 3), written_out((2,), 1)),
    "InstanceNorm2d": (lambda: gt.InstanceNorm2d(2, eps=EPS, affine=True), (2, 2, 2, 3), written_out((2, 3), 1)),
    "InstanceNorm3d": (
        lambda: gt.InstanceNorm3d(2, eps=EPS, affine=True),
        (1, 2, 2, 1, 3),
        written_out((2, 3, 4), 1),
    ),
    "GroupNorm": (lambda: gt.GroupNorm(2, 4, eps=EPS), (2, 4, 3), written_out((2, 3), 1, groups=2)),
    "LayerNorm": (lambda: gt.LayerNorm(5, eps=EPS), (3, 5), written_out((-1,), -1)),
    "RMSNorm": (lambda: gt.RMSNorm(5, eps=EPS), (3, 5), written_out((-1,), -1, rms=True)),
    "NormalizationLayer": (general("{0, 2}", 1, input_shape=(4, None)), (3, 4, 2), written_out((0, 2), 1)),
    "groups": (
        general("All", 1, {1: 2}, input_shape=(4, None)),
        (2, 4, 3),
        written_out((2, 3), 1, groups=2),
    ),
}
cases = pytest.mark.parametrize("name", CASES)


def sample(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Judge(nn.Module):
    """The layer written out, with the parameters of another module."""

    def __init__(self, module, function):
        super().__init__()
        self.weight, self.function = nn.Parameter(module.weight.detach().clone()), function
        if getattr(module, "bias", None) is not None:
            self.bias = nn.Parameter(module.bias.detach().clone())

    def forward(self, *given):
        return self.function(self, *given)


def made(name):
    """The module, the judge, and an input; running statistics take no part but where a test has them do so."""
    make, shape, function = CASES[name]
    module = make().double()
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters(), 5):
            parameter.copy_(sample(*parameter.shape, seed=seed))
    if hasattr(module, "running_mean"):
        module.running_mean = module.running_var = module.num_batches_tracked = None
        module.track_running_stats = False
    return module, Judge(module, function), sample(*shape)


def theirs(name, module):
    """Torch's own layer with the same parameters; None for the general layer."""
    if not hasattr(nn, name):
        return None
    kind = getattr(nn, name)
    other = copy.deepcopy(module)
    other.__class__ = kind
    return other


def cubed(module):
    return lambda x: (module(x) ** 3).sum()


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def beside_torch(name, transform, *, right=True):
    """Compare with the layer written out, and with torch's layer where torch is right."""
    module, judge, x = made(name)
    found = transform(module, x)
    close(found, transform(judge, x))
    other = theirs(name, module)
    if right and other is not None:
        close(found, transform(other, x))


# ------------------------------------------------------------------------------------------------------- derivatives


def gradients(module, x):
    x = x.clone().requires_grad_()
    y = module(x)
    return y.detach(), torch.autograd.grad(y, [x, *module.parameters()], sample(*x.shape, seed=9))


def derivatives(order):
    """Of a cube, along the gradient, again and again: by the input and every parameter."""

    def transform(module, x):
        x = x.clone().requires_grad_()
        value = cubed(module)(x)
        for _ in range(order - 1):
            (gradient,) = torch.autograd.grad(value, x, create_graph=True)
            value = (gradient.sin() * sample(*x.shape, seed=order)).sum()
        return torch.autograd.grad(value, [x, *module.parameters()], allow_unused=True, materialize_grads=True)

    return transform


@cases
def test_eager(name):
    beside_torch(name, gradients)


@cases
@pytest.mark.parametrize("order", [2, 3, 4])
def test_higher_derivatives(name, order):
    beside_torch(name, derivatives(order), right=order == 2)


@cases
def test_torch_s_own_checks(name):
    module, _, x = made(name)
    assert torch.autograd.gradcheck(module, x.requires_grad_(), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(module, x, check_fwd_over_rev=True, check_batched_grad=True)


@cases
def test_batched_gradients(name):
    module, judge, x = made(name)
    x.requires_grad_()
    dy = sample(3, *x.shape, seed=4)
    for one, other in zip(
        *(torch.autograd.grad(m(x), [x, *m.parameters()], dy, is_grads_batched=True) for m in (module, judge)),
        strict=True,
    ):
        close(one, other)
    jacobians = [torch.autograd.functional.jacobian(m, x.detach(), vectorize=True) for m in (module, judge)]
    close(*jacobians)


# ---------------------------------------------------------------------------------------------------------- transforms


def directional(function):
    return lambda x: func.jvp(function, (x,), (sample(*x.shape, seed=3),))[1]


TRANSFORMS = {
    "grad": lambda m, x: func.grad(cubed(m))(x),
    "jacrev": lambda m, x: func.jacrev(m)(x),
    "jacfwd": lambda m, x: func.jacfwd(m)(x),
    "hessian": lambda m, x: func.hessian(cubed(m))(x),
    "jvp": lambda m, x: directional(m)(x),
    "linearize": lambda m, x: func.linearize(m, x)[1](sample(*x.shape, seed=3)),
    "functionalize": lambda m, x: func.functionalize(m)(x),
    "jvp of jvp": lambda m, x: directional(directional(cubed(m)))(x),
    "grad of jvp": lambda m, x: func.grad(directional(cubed(m)))(x),
    "jvp of grad": lambda m, x: directional(func.grad(cubed(m)))(x),
    "vmap": lambda m, x: func.vmap(m)(torch.stack([x, 2 * x, x + 1])),
    "vmap along axis 1": lambda m, x: func.vmap(m, in_dims=1, out_dims=1)(torch.stack([x, 2 * x, x + 1], 1)),
    "vmap in chunks": lambda m, x: func.vmap(m, chunk_size=2)(torch.stack([x, 2 * x, x + 1])),
    "vmap with different random numbers": lambda m, x: func.vmap(
        lambda x: m(x + 0 * torch.rand_like(x)), randomness="different"
    )(torch.stack([x, 2 * x])),
    "vmap of vmap": lambda m, x: func.vmap(func.vmap(m), in_dims=1)(torch.stack([torch.stack([x, 2 * x])] * 3)),
    "functionalize of grad": lambda m, x: func.functionalize(func.grad(cubed(m)))(x),
    "make_fx of grad": lambda m, x: torch.fx.experimental.proxy_tensor.make_fx(func.grad(cubed(m)))(x)(x + 1),
    "vmap of grad": lambda m, x: func.vmap(func.grad(cubed(m)))(torch.stack([x, 2 * x])),
    "functional call": lambda m, x: func.functional_call(m, {k: 2 * v for k, v in m.named_parameters()}, (x,)),
    "per example": lambda m, x: func.vmap(
        func.grad(lambda p, x: (func.functional_call(m, p, (x,)) ** 2).sum()), in_dims=(None, 0)
    )(dict(m.named_parameters()), torch.stack([x, 2 * x])),
}
WRONG = {"jvp of jvp", "grad of jvp", "hessian"}  # of torch's layer norm with a weight


@cases
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_func(name, transform):
    beside_torch(name, TRANSFORMS[transform], right=transform not in WRONG)


@cases
def test_dual_tensors(name):
    def transform(module, x):
        with torch.autograd.forward_ad.dual_level(), torch.no_grad():
            dual = torch.autograd.forward_ad.make_dual(x, sample(*x.shape, seed=3))
            return torch.autograd.forward_ad.unpack_dual(module(dual)).tangent

    beside_torch(name, transform)


def test_models_side_by_side():
    """Parameters that vmap maps over, and running statistics that it maps over too."""
    models = [gt.BatchNorm1d(4).double() for _ in range(3)]
    x = sample(3, 5, 4)
    parameters, buffers = func.stack_module_state(models)
    y = func.vmap(lambda p, b, x: func.functional_call(models[0], (p, b), (x,)))(parameters, buffers, x)
    for i, model in enumerate(models):
        close(y[i], model(x[i]))
        close(buffers["running_var"][i], model.running_var)


# --------------------------------------------------------------------------------------------------- tracing, compiling


@cases
def test_make_fx(name):
    module, judge, x = made(name)
    close(torch.fx.experimental.proxy_tensor.make_fx(module)(x)(x + 1), judge(x + 1))


@cases
def test_symbolic_trace(name):
    """A module of ours is recorded as a call, like torch's own."""
    module, judge, x = made(name)
    traced = torch.fx.symbolic_trace(nn.Sequential(module, nn.Tanh()))
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "call_module", "output"]
    close(traced(x), judge(x).tanh())


@cases
def test_jit_trace(name):
    module, judge, x = made(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module.requires_grad_(False), x, check_trace=False)
    close(traced(x + 1), judge(x + 1).detach())


@cases
def test_compile(name):
    torch._dynamo.reset()
    module, judge, x = made(name)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager", dynamic=True)
    close(gradients(compiled, x), gradients(judge, x))
    more = torch.cat([x, x + 1, 2 * x])
    close(compiled(more), judge(more))


@cases
@pytest.mark.parametrize("strict", [False, True])
def test_export(name, strict):
    module, judge, x = made(name)
    x = torch.cat([x, x])
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=strict)
    more = torch.cat([x, x + 1])
    close(exported.module()(more), judge(more))


@cases
def test_export_with_every_size_open(name):
    """But those that the parameters declare; a pattern of sizes can be another one in the exported model."""
    module, judge, x = made(name)
    declared = x.dim() - 1 if name in {"LayerNorm", "RMSNorm"} else 1
    more = x
    for axis in range(x.dim()):
        if axis != declared:
            x = torch.cat([x, x + 0.3], axis)
            more = torch.cat([more, more + 0.3, 2 * more], axis)
    sizes = {axis: torch.export.Dim.DYNAMIC for axis in range(x.dim()) if axis != declared}
    exported = torch.export.export(module, (x,), dynamic_shapes=(sizes,), strict=True)
    close(exported.module()(more), judge(more))


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "InstanceNorm2d", "NormalizationLayer"])
def test_running_statistics_in_a_compiled_module(name):
    torch._dynamo.reset()
    make, shape, _ = CASES[name]
    settings = {"statistics": "moving"} if name == "NormalizationLayer" else {}
    module = make() if not settings else general("{0, 2}", 1, input_shape=(4, None), **settings)()
    if name.startswith("Instance"):
        module = gt.InstanceNorm2d(2, track_running_stats=True)
    module, twin = module.double(), copy.deepcopy(module).double()
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for seed in range(2):
        x = sample(*shape, seed=seed) + seed
        close(compiled(x), module(x))
    module.eval(), twin.eval()
    close(compiled(x), module(x))
    for one, other in zip(twin.buffers(), module.buffers(), strict=True):
        close(one, other)


# ------------------------------------------------------------------------------------------------- devices, subclasses


@cases
def test_meta(name):
    module, _, x = made(name)
    y = module.to("meta")(x.to("meta").requires_grad_())
    assert (y.device.type, y.shape, y.dtype) == ("meta", x.shape, x.dtype)
    y.sum().backward()
    assert module.weight.grad.device.type == "meta"


@cases
def test_fake_tensors(name):
    module, _, x = made(name)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        y = module(mode.from_tensor(x))
        assert type(y) is torch._subclasses.FakeTensor
        assert y.shape == x.shape


class Tagged(torch.Tensor):
    pass


class Counting(torch.overrides.TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen += 1
        return function(*args, **(kwargs or {}))


class Dispatching(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen += 1
        return function(*args, **(kwargs or {}))


@cases
def test_subclasses_and_modes(name):
    module, judge, x = made(name)
    y = module(x.as_subclass(Tagged))
    assert type(y) is Tagged
    close(y.as_subclass(torch.Tensor), judge(x))
    for mode in (Counting(), Dispatching()):
        with mode:
            y = module(x)
        assert mode.seen > 3
        close(y, judge(x))


@pytest.fixture
def mesh():
    distributed = pytest.importorskip("torch.distributed.tensor")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,)), distributed
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", sorted({*CASES} - {"InstanceNorm3d"}))  # of one example, which cannot be sharded
def test_distributed_tensors(name, mesh):
    mesh, tensors = mesh
    module, judge, x = made(name)
    module = tensors.distribute_module(module, mesh)
    y = module(tensors.distribute_tensor(x, mesh, [tensors.Shard(0)]))
    assert type(y) is tensors.DTensor
    close(y.full_tensor(), judge(x))
    y.full_tensor().pow(3).sum().backward()
    judge(x).pow(3).sum().backward()
    close(module.weight.grad.full_tensor(), judge.weight.grad)


# --------------------------------------------------------------------------------------------------- masks and moments


@pytest.mark.parametrize(
    "transform", ["eager", "second", "third", "grad", "hessian", "jvp of jvp", "grad of jvp", "vmap", "functionalize"]
)
def test_masks(transform):
    module, judge, x = made("NormalizationLayer")
    found = []
    for one in (module, judge):
        called = Masked(one, sample(*x.shape, seed=6) < 0.5)
        by = {"eager": gradients, "second": derivatives(2), "third": derivatives(3), **TRANSFORMS}[transform]
        found.append(by(called, x))
    close(*found)


class Masked(nn.Module):
    def __init__(self, module, mask):
        super().__init__()
        self.module, self.mask = module, mask

    def forward(self, x):
        return self.module(x, self.mask)


class Given(nn.Module):
    """The layer written out, by given moments."""

    def __init__(self, judge, mean, variance):
        super().__init__()
        self.judge, self.moments = judge, (mean, variance)

    def forward(self, x):
        return self.judge(x, None, self.moments)


@pytest.mark.parametrize("name", ["BatchNorm1d", "BatchNorm2d", "NormalizationLayer"])
@pytest.mark.parametrize(
    "transform", ["eager", "second", "third", "grad", "hessian", "jvp of jvp", "grad of jvp", "vmap", "functionalize"]
)
def test_held_moments(name, transform):
    _, judge, x = made(name)
    make = CASES[name][0]
    if name == "NormalizationLayer":
        make = general("{0, 2}", 1, input_shape=(4, None), statistics="moving")
    module = make().double()
    module(x + 1)
    module.load_state_dict({**module.state_dict(), **judge.state_dict()})
    module.eval()
    moments = list(module.buffers())[:2]
    by = {"eager": gradients, "second": derivatives(2), "third": derivatives(3)}.get(
        transform, TRANSFORMS.get(transform)
    )
    close(by(module, x), by(Given(judge, *moments), x))


# ----------------------------------------------------------------------------------------------- what a parameter is


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def parametrized(module):
    parametrize.register_parametrization(module, "weight", Doubled())
    return module.parametrizations.weight.original


def pruned(module):
    prune.custom_from_mask(module, "weight", (torch.arange(len(module.weight)) % 2).to(module.weight))
    return module.weight_orig


def plain(module):
    weight = module.weight.detach().clone().requires_grad_()
    del module.weight
    module.weight = weight
    return weight


def computed(module):
    original = module.weight.detach().clone().requires_grad_()
    del module.weight
    module.weight = original.exp()
    return original


def a_buffer(module):
    weight = module.weight.detach().clone()
    del module.weight
    module.register_buffer("weight", weight)


# A class of torch's can also be what `accelerate` makes of it.
OURS_AND_ACCELERATED = [(name, False) for name in CASES] + [(name, True) for name in CASES if hasattr(nn, name)]


@pytest.mark.parametrize(("name", "accelerated"), OURS_AND_ACCELERATED)
@pytest.mark.parametrize("change", [parametrized, pruned, plain, computed, a_buffer])
@pytest.mark.parametrize("grad", [False, True])
def test_a_parameter_is_what_the_attribute_is(name, change, accelerated, grad):
    module, judge, x = made(name)
    if accelerated:
        module = theirs(name, module)
        gt.accelerate(module)
    leaves = [change(module), change(judge)]
    with torch.set_grad_enabled(grad):
        for _ in range(3):
            found, expected = module(x), judge(x)
            close(found.detach(), expected.detach())
    if grad and leaves[0] is not None:
        close(*(torch.autograd.grad((y**2).sum(), leaf)[0] for y, leaf in zip((found, expected), leaves, strict=True)))


def test_tied_parameters_and_swapped_tensors():
    one, other = gt.LayerNorm(5), gt.LayerNorm(5)
    other.weight = one.weight
    x = sample(3, 5).float()
    one(x), other(x)
    with torch.no_grad():
        one.weight.mul_(3)
    close(other(x), 3 * gt.LayerNorm(5)(x))
    torch.utils.swap_tensors(one.weight, nn.Parameter(torch.zeros(5)))
    assert not one(x).any()
    assert not other(x).any()
