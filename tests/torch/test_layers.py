"""One suite over torch's own layers and ours: the same outputs, gradients, statistics, states, texts and errors."""

import copy
import inspect
import pickle

import numpy as np
import pytest

from gennorm.errors import GennormError

torch = pytest.importorskip("torch")

import gennorm.torch as gt  # noqa: E402

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
# Torch sums float32 in float32, and every 16-bit step of its own is rounded: what two right answers may differ by.
TOLERANCES = {
    torch.float32: {"rtol": 2e-5, "atol": 2e-5},
    torch.float64: {"rtol": 1e-11, "atol": 1e-11},
    torch.bfloat16: {"rtol": 2e-2, "atol": 3e-2},
}
RUNNING = [
    {},
    {"affine": False, "track_running_stats": True},
    {"affine": True, "momentum": 0.3, "eps": 1e-2, "track_running_stats": True},
    {"affine": True, "bias": False, "track_running_stats": False},
    {"affine": True, "momentum": None, "track_running_stats": True},
]
AFFINE = [{}, {"affine": False}, {"bias": False, "eps": 1e-2}]
CASES = [
    *(("BatchNorm1d", (6,), settings, (5, 6)) for settings in RUNNING),
    *(("BatchNorm1d", (6,), settings, (4, 6, 7)) for settings in RUNNING),
    *(("BatchNorm2d", (6,), settings, (4, 6, 5, 3)) for settings in RUNNING),
    *(("BatchNorm3d", (6,), settings, (2, 6, 3, 2, 4)) for settings in RUNNING[:3]),
    *(("InstanceNorm1d", (6,), settings, (6, 9)) for settings in RUNNING),
    *(("InstanceNorm1d", (6,), settings, (4, 6, 9)) for settings in RUNNING),
    *(("InstanceNorm2d", (6,), settings, (4, 6, 5, 3)) for settings in RUNNING),
    *(("InstanceNorm3d", (6,), settings, (2, 6, 3, 2, 4)) for settings in RUNNING[:3]),
    *(("GroupNorm", (2, 12), settings, (4, 12, *more)) for settings in AFFINE for more in [(), (7,), (5, 3)]),
    ("LayerNorm", (16,), {}, (16,)),
    ("LayerNorm", (16,), {"eps": 1e-2}, (3, 16)),
    ("LayerNorm", (16,), {"bias": False}, (2, 3, 16)),
    ("LayerNorm", ([3, 16],), {}, (2, 3, 16)),
    ("LayerNorm", ((3, 16),), {"elementwise_affine": False}, (2, 3, 16)),
    ("RMSNorm", (16,), {}, (3, 16)),
    ("RMSNorm", (16,), {"eps": 1e-2}, (2, 3, 16)),
    ("RMSNorm", ((3, 16),), {"elementwise_affine": False}, (2, 3, 16)),
]
NAMES = sorted({name for name, *_ in CASES})


def titled(case):
    name, arguments, settings, shape = case
    return f"{name}{arguments}{settings}{shape}".replace(" ", "")


def sample(shape, dtype=torch.float32, seed=0):
    return (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(2).add(1).to(dtype)
    )


def pair(name, arguments, settings, dtype=torch.float32):
    """Torch's layer with parameters that differ from place to place, and ours with the same state."""
    theirs = getattr(torch.nn, name)(*arguments, **settings, dtype=dtype)
    with torch.no_grad():
        for i, parameter in enumerate(theirs.parameters()):
            parameter.copy_(sample(parameter.shape, seed=10 + i))
    ours = getattr(gt, name)(*arguments, **settings, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def laid_out(x, layout):
    if layout == "channels_last":
        return x.contiguous(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()])
    if layout == "gaps":
        return torch.stack([x, x], -1)[..., 0]
    return x.clone()


def gradients(module, x, dy):
    x = x.detach().requires_grad_()
    y = module(x)
    return y, torch.autograd.grad(y, [x, *module.parameters()], dy)


VARIANTS = [
    *((case, dtype, "contiguous") for dtype in DTYPES for case in CASES),
    *((case, dtype, "channels_last") for dtype in DTYPES[::2] for case in CASES if len(case[-1]) > 3),
    *((case, torch.float32, "gaps") for case in CASES[::3]),
]


@pytest.mark.parametrize(
    ("case", "dtype", "layout"), VARIANTS, ids=lambda one: titled(one) if len(str(one)) > 20 else str(one)
)
def test_same_numbers(case, dtype, layout):
    """In training three steps and then in evaluation, with and without gradients."""
    *made, shape = case
    theirs, ours = pair(*made, dtype)
    tolerance = TOLERANCES[dtype]
    for step, training in enumerate([True, True, True, False]):
        theirs.train(training), ours.train(training)
        x, dy = laid_out(sample(shape, dtype, seed=step), layout), sample(shape, dtype, seed=20 + step)
        before = x.clone()
        (expected, expected_gradients), (found, found_gradients) = (gradients(m, x, dy) for m in (theirs, ours))
        torch.testing.assert_close(found, expected, **tolerance)
        for one, other in zip(found_gradients, expected_gradients, strict=True):
            scale = max(1.0, other.abs().max().item())
            torch.testing.assert_close(one / scale, other / scale, **tolerance)
        assert torch.equal(x, before)
        assert found.stride() == expected.stride()
        for key, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[key], value, **tolerance)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), **tolerance)
        torch.testing.assert_close(ours(x), theirs(x), **tolerance)


@pytest.mark.parametrize("case", CASES, ids=titled)
def test_same_state(case):
    """Keys, versions, texts and values: each loads what the other saved."""
    *made, _ = case
    theirs, ours = pair(*made)
    assert repr(ours) == repr(theirs)
    assert isinstance(ours, type(theirs))
    for one, other in ((theirs, ours), (ours, theirs)):
        state = one.state_dict()
        assert list(state) == list(other.state_dict())
        assert state._metadata == other.state_dict()._metadata
        other.load_state_dict(state)
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in state.items())


@pytest.mark.parametrize("name", NAMES)
def test_same_signature(name):
    assert inspect.signature(getattr(gt, name)) == inspect.signature(getattr(torch.nn, name))


@pytest.mark.parametrize("momentum", [0, 1, True, np.float32(0.25), np.float64(0.25), torch.tensor(0.25)], ids=repr)
@pytest.mark.parametrize("name", ["BatchNorm1d", "InstanceNorm1d"])
@pytest.mark.parametrize("invariant", [False, True])
def test_momentum_is_any_number(name, momentum, invariant):
    both = pair(name, (6,), {"momentum": momentum, "track_running_stats": True})
    gt.set_batch_invariant(invariant)
    try:
        for module in both:
            module(sample((4, 6, 7)) + 3)
    finally:
        gt.set_batch_invariant(False)
    for ours, theirs in zip(*(module.buffers() for module in both), strict=True):
        torch.testing.assert_close(ours, theirs, **TOLERANCES[torch.float32])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@pytest.mark.parametrize("case", CASES, ids=titled)
def test_a_copy_computes_the_same(case, copied):
    *made, shape = case
    _, ours = pair(*made)
    other = copied(ours)  # before it was ever called
    x = sample(shape)
    assert torch.equal(other(x), ours(x))
    assert torch.equal(copied(ours)(x), ours(x))


@pytest.mark.parametrize(
    ("name", "arguments", "assigned"),
    [
        ("LayerNorm", (16,), {"eps": 0.5}),
        ("RMSNorm", (16,), {"eps": 0.5}),
        ("GroupNorm", (4, 16), {"eps": 0.5, "num_groups": 2}),
        ("BatchNorm1d", (16,), {"eps": 0.5, "momentum": 0.5}),
        ("InstanceNorm1d", (3,), {"eps": 0.5, "track_running_stats": False}),
    ],
)
def test_settings_may_be_assigned(name, arguments, assigned):
    theirs, ours = pair(name, arguments, {})
    x = sample((3, 16))
    torch.testing.assert_close(ours(x), theirs(x))
    for module in (theirs, ours):
        for setting, value in assigned.items():
            setattr(module, setting, value)
    torch.testing.assert_close(ours(x), theirs(x))
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)


def test_parameters_may_be_put_in_place_of_others():
    theirs, ours = pair("LayerNorm", (16,), {})
    x = sample((3, 16))
    with torch.no_grad():
        for module in (theirs, ours):
            module(x)
            module.weight = torch.nn.Parameter(sample((16,), seed=3))
            module.bias = None
        torch.testing.assert_close(ours(x), theirs(x))


def test_epsilon_of_rms_norm_is_that_of_the_dtype():
    theirs, ours = pair("RMSNorm", (4,), {"elementwise_affine": False})
    for dtype in (torch.float32, torch.float64, torch.float32):
        x = sample((3, 4), dtype) * 1e-8
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("name", "arguments", "settings", "x"),
    [
        ("LayerNorm", (16,), {}, torch.ones(3, 15)),
        ("LayerNorm", (16,), {"elementwise_affine": False}, torch.ones(3, 15)),
        ("LayerNorm", ((3, 16),), {}, torch.ones(16)),
        ("LayerNorm", (16,), {}, torch.ones(3, 16, dtype=torch.int64)),
        ("LayerNorm", (16,), {}, torch.ones(3, 16, dtype=torch.float64)),
        ("LayerNorm", (16,), {}, None),
        ("LayerNorm", (16,), {}, [1.0] * 16),
        ("RMSNorm", (16,), {}, torch.ones(3, 15)),
        ("RMSNorm", (16,), {}, torch.ones(3, 16, dtype=torch.int64)),
        ("GroupNorm", (3, 6), {}, torch.ones(2, 5, 4)),
        ("GroupNorm", (3, 6), {"affine": False}, torch.ones(2, 5, 4)),
        ("GroupNorm", (3, 6), {}, torch.ones(6)),
        ("GroupNorm", (6, 6), {}, torch.ones(1, 6)),
        ("BatchNorm1d", (6,), {}, torch.ones(6)),
        ("BatchNorm1d", (6,), {}, torch.ones(1, 6)),
        ("BatchNorm1d", (6,), {}, torch.ones(3, 5)),
        ("BatchNorm1d", (6,), {"affine": False}, torch.ones(3, 5)),
        ("BatchNorm1d", (6,), {"eps": 0.0}, torch.ones(3, 6)),
        ("BatchNorm2d", (6,), {}, torch.ones(3, 6)),
        ("BatchNorm2d", (6,), {}, torch.ones(1, 6, 1, 1)),
        ("BatchNorm2d", (6,), {}, torch.ones(2, 6, 2, 2, dtype=torch.int64)),
        ("BatchNorm3d", (6,), {}, torch.ones(3, 6, 2, 2)),
        ("InstanceNorm1d", (6,), {}, torch.ones(6)),
        ("InstanceNorm1d", (6,), {"affine": True}, torch.ones(3, 5, 4)),
        ("InstanceNorm1d", (6,), {}, torch.ones(3, 6, 1)),
        ("InstanceNorm2d", (6,), {"track_running_stats": True}, torch.ones(3, 6, 1, 1)),
        ("InstanceNorm3d", (6,), {}, torch.ones(3, 6, 2)),
    ],
)
@pytest.mark.parametrize("grad", [False, True])
def test_same_error_classes(name, arguments, settings, x, grad):
    theirs, ours = pair(name, arguments, settings)
    with torch.set_grad_enabled(grad):
        with pytest.raises((ValueError, RuntimeError, TypeError)) as expected:
            theirs(x)
        kind = next(one for one in (ValueError, TypeError, RuntimeError) if isinstance(expected.value, one))
        with pytest.raises(kind) as caught:
            ours(x)
    # Where torch's own Python looks at the input first, the text is torch's.
    assert isinstance(caught.value, GennormError) or str(caught.value) == str(expected.value)


def test_channels_that_nobody_counted_are_warned_of():
    _, ours = pair("InstanceNorm1d", (6,), {})
    with pytest.warns(UserWarning, match="does not match num_features"):
        assert ours(torch.ones(3, 5, 4)).shape == (3, 5, 4)


@pytest.mark.filterwarnings("ignore:input's size")
def test_channels_that_have_no_running_statistics():
    theirs, ours = pair("InstanceNorm1d", (6,), {"track_running_stats": True})
    for module in (theirs, ours):
        with pytest.raises(RuntimeError):
            module(torch.ones(3, 5, 4))


@pytest.mark.parametrize("case", [case for case in CASES if case[2].get("momentum", 0) is not None][::4], ids=titled)
def test_compiled_without_a_break(case):
    *made, shape = case
    _, ours = pair(*made)
    other = copy.deepcopy(ours)
    x = sample(shape)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(x), other(x))
    for key, value in other.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)


# --------------------------------------------------------------------------------------- running statistics that change


def in_place(module):
    module.running_mean.add_(1)


def beneath_autograd(module):
    module.running_var.data.mul_(2)


def by_an_array(module):
    module.running_mean.numpy()[:] += 3


def other_memory(module):
    module.running_var.data = module.running_var.data * 3


def other_buffer(module):
    module.running_mean = module.running_mean + 2


def loaded(module):
    module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()})


def assigned(module):
    module.load_state_dict({name: value + 1 for name, value in module.state_dict().items()}, assign=True)


def begun_anew(module):
    module.reset_running_stats()


def trained(module):
    module.train()(sample((4, 6, 5, 3), seed=9))
    module.eval()


CHANGES = [in_place, beneath_autograd, by_an_array, other_memory, other_buffer, loaded, assigned, begun_anew, trained]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", ["BatchNorm2d", "InstanceNorm2d"])
@pytest.mark.parametrize("change", CHANGES)
def test_running_statistics_count_in_the_next_call(change, name, grad):
    """However they are written: nothing is kept of them from one call to the next."""
    both = pair(name, (6,), {"affine": True, "track_running_stats": True})
    x = sample((4, 6, 5, 3))
    for module in both:
        module.eval()
    before = None
    for _ in range(3):
        with torch.set_grad_enabled(grad):
            expected, found = (module(x) for module in both)
        torch.testing.assert_close(found, expected, **TOLERANCES[torch.float32])
        assert before is None or not torch.equal(found, before) or change is begun_anew
        before = found
        with torch.no_grad():
            for module in both:
                change(module)


@pytest.mark.parametrize("grad", [False, True])
def test_running_statistics_of_other_channels_are_refused(grad):
    _, module = pair("BatchNorm2d", (6,), {})
    module.eval()
    x = sample((4, 6, 5, 3))
    with torch.set_grad_enabled(grad):
        module(x)
        module.running_mean, module.running_var = torch.zeros(5), torch.ones(5)
        for _ in range(2):
            with pytest.raises(GennormError):
                module(x)


def test_running_statistics_of_double_precision():
    both = pair("BatchNorm2d", (6,), {})
    for module in both:
        module.eval()(sample((4, 6, 5, 3)))
        module.double()
    x = sample((4, 6, 5, 3), torch.float64)
    expected, found = (module(x) for module in both)
    torch.testing.assert_close(found, expected, **TOLERANCES[torch.float64])


def test_a_backward_pass_after_the_parameters_were_others():
    """Between a call and its backward pass the module computes with parameters that lie elsewhere."""
    theirs, ours = pair("LayerNorm", (16,), {})
    x, dy = sample((3, 16)), sample((3, 16), seed=3)
    others = {"weight": torch.ones(16), "bias": torch.zeros(16)}
    found = []
    for module in (theirs, ours):
        given = x.clone().requires_grad_()
        for _ in range(2):
            y = module(given)
            torch.func.functional_call(module, others, (x,))
            found.append(torch.autograd.grad(y, [given, *module.parameters()], dy))
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], **TOLERANCES[torch.float32])


# ---------------------------------------------------------------------- what torch takes, the same way


FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
MIXED = {
    "LayerNorm": ((6,), {}, (4, 6)),
    "RMSNorm": ((6,), {}, (4, 6)),
    "GroupNorm": ((2, 6), {}, (4, 6, 5)),
    "BatchNorm2d": ((6,), {}, (4, 6, 5, 3)),
    "InstanceNorm1d": ((6,), {"affine": True, "track_running_stats": True}, (4, 6, 5)),
}


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # of torch's RMS norm
@pytest.mark.parametrize("values", FLOATS, ids=str)
@pytest.mark.parametrize("name", MIXED)
def test_mixed_dtypes_as_torch_takes_them(name, values):
    """The same values and dtype where torch's layer takes them, and an error of its class where it does not."""
    arguments, settings, shape = MIXED[name]
    x = sample(shape, values)
    for parameters in FLOATS:
        for training in (True, False):
            theirs, ours = pair(name, arguments, settings, parameters)
            theirs.train(training), ours.train(training)
            try:
                expected = theirs(x)
            except (ValueError, RuntimeError) as error:
                with pytest.raises(RuntimeError if isinstance(error, RuntimeError) else ValueError):
                    ours(x)
                continue
            found = ours(x)
            assert found.dtype is expected.dtype
            coarse = max(torch.finfo(dtype).eps for dtype in (values, parameters))
            tolerance = max(8 * coarse, 2e-5)
            torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=4 * tolerance)
            for one, other in zip(ours.buffers(), theirs.buffers(), strict=True):
                torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_settings_that_only_torch_takes():
    """The constructor takes them, and torch's own forward computes."""
    for name, settings in (
        ("BatchNorm1d", {"momentum": 1.5}),
        ("LayerNorm", {"eps": -1.0}),
        ("RMSNorm", {"eps": -1.0}),
    ):
        theirs, ours = pair(name, (6,), settings)
        x = sample((4, 6))
        for training in (True, False):
            torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x), equal_nan=True)
        for one, other in zip(ours.buffers(), theirs.buffers(), strict=True):
            assert torch.equal(one, other)


def test_jagged_tensors():
    theirs, ours = pair("LayerNorm", (6,), {})
    jagged = torch.nested.nested_tensor([sample((2, 6)), sample((3, 6))], layout=torch.jagged)
    assert torch.equal(ours(jagged).values(), theirs(jagged).values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [("LayerNorm", (6,), (3, 2, 6)), ("GroupNorm", (2, 6), (3, 6, 4)), ("InstanceNorm1d", (6,), (3, 6, 4))],
)
def test_per_sample_gradients(name, arguments, shape):
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    settings = {"affine": True} if name == "InstanceNorm1d" else {}
    theirs, ours = pair(name, arguments, settings)
    for module in (theirs, ours):
        call_for_per_sample_grads(module)(sample(shape)).sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert one.grad_sample.shape[0] == shape[0]
        torch.testing.assert_close(one.grad_sample, other.grad_sample, **TOLERANCES[torch.float32])


def test_running_statistics_that_vmap_maps_over():
    """`vmap` maps over the buffers too, one for each example; one buffer for all examples is an error, as in torch."""
    theirs, ours = pair("BatchNorm1d", (6,), {})
    x = sample((3, 5, 6))
    found = []
    for module in (theirs, ours):
        state = {key: torch.stack([value] * 3) for key, value in module.named_buffers()}

        def call(buffers, x, module=module):
            y = torch.func.functional_call(module, buffers, (x,))
            return y, buffers

        y, state = torch.func.vmap(call)(state, x)
        found.append((y, state["running_mean"], state["running_var"], state["num_batches_tracked"]))
        with pytest.raises(RuntimeError):
            torch.func.vmap(module)(x)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, **TOLERANCES[torch.float32])
