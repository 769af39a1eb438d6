"""The module gives the values of the core, and behaves like a module of torch."""

import copy
import io
import pickle
import threading
import weakref

import numpy as np
import pytest

import gennorm as gn
from gennorm.engine import sharing
from gennorm.errors import ParameterError, ShapeError
from gennorm.extend import Computation

torch = pytest.importorskip("torch")
pytest.importorskip("ml_dtypes")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from torch.utils.checkpoint import checkpoint  # noqa: E402

import gennorm.torch as gt  # noqa: E402
from gennorm.torch.tensors import array_of, tensor_of  # noqa: E402

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}


def layer_norm(size=8, **keywords):
    return gt.NormalizationLayer(-1, "Same", epsilon=1e-5, input_shape=(..., size), **keywords)


def batch_norm(channels=5, **keywords):
    settings = {"input_shape": (channels, ...), "batched": True, "statistics": "moving", **keywords}
    return gt.NormalizationLayer("{0, 2;;All}", 1, **settings)


def instance_norm(channels=5, **keywords):
    return gt.NormalizationLayer("2;;All", 1, input_shape=(channels, ...), batched=True, **keywords)


def group_norm(groups=2, channels=4, **keywords):
    return gt.NormalizationLayer("All", 1, {1: groups}, input_shape=(channels, ...), batched=True, **keywords)


MADE = {
    "layer": (layer_norm, (3, 6, 8)),
    "batch": (batch_norm, (4, 5, 3, 2)),
    "instance": (instance_norm, (4, 5, 3, 2)),
}
MADE["group"] = group_norm, (3, 4, 5, 2)
made = pytest.mark.parametrize(("make", "shape"), MADE.values(), ids=MADE)


def sample(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def differing(module, seed=1):
    """The module with parameters that differ from place to place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator, dtype=torch.float64) + 0.5)
    return module


def core_of(module):
    """A layer of the core with the module's settings, parameters and moments, all its own."""
    core = gn.NormalizationLayer.from_config(
        {**module.config.to_dict(), "scaling": "Automatic", "biases": "Automatic"},
        scaling=None if module.weight is None else array_of(module.weight),
        biases=None if module.bias is None else array_of(module.bias),
    )
    if module.config.statistics != "input":
        mean = None if module.mean is None else array_of(module.mean)
        core.moments = gn.Moments.from_variance(mean, array_of(module.variance))
    return core


# --------------------------------------------------------------------------------------------------- the core's numbers


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@made
def test_the_core_s_bits(make, shape, dtype, training, grad):
    """The same kernels: outputs, gradients and moments are those of the core, bit for bit."""
    module = differing(make(dtype=dtype)).train(training)
    core, x = core_of(module), sample(*shape, dtype=DTYPES[dtype])
    dy = sample(*shape, dtype=DTYPES[dtype], seed=3)
    y, pullback = core.vjp(array_of(x), training=training)
    x.requires_grad_(grad)
    with torch.set_grad_enabled(grad):
        for _ in range(1 if training else 2):  # a second call takes a shorter way
            found = module(x)
            assert found.dtype == x.dtype
            assert array_of(found).tobytes() == y.tobytes()
    if core.moments is not None and training:
        wanted = core.moments.mean, core.moments.variance()
        for buffer, value in zip((module.mean, module.variance), wanted, strict=True):
            assert array_of(buffer).tobytes() == value.astype(array_of(buffer).dtype).tobytes()
    if grad:
        expected = pullback(array_of(dy))
        gradients = torch.autograd.grad(found, [x, module.weight, module.bias], dy)
        for one, other in zip(gradients, (expected.input, expected.scaling, expected.biases), strict=True):
            assert array_of(one).tobytes() == other.tobytes()
            assert one.dtype == x.dtype


SETTINGS = [
    {"method": "RMS"},
    {"unbiased": True},
    {"epsilon_placement": "floor", "epsilon": 0.7},
    {"scaling": None},
    {"biases": None},
    {"scaling": None, "biases": None},
    {"method": "RMS", "biases": None},
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(
    ("levels", "shape"),
    [
        (("{0, 2}", 1), (6, 5, 4)),
        ((2, 1), (6, 5, 4)),
        (("All", 1, {1: 5}), (6, 5, 4)),
        (("{0, 2}", 1, {0: 3}), (6, 5, 4)),
    ],
    ids=str,
)
def test_moving_statistics_with_every_setting(levels, shape, settings, masked):
    """Three steps of training, then inference; groups of the batch have no part in what is held."""
    module = gt.NormalizationLayer(
        *levels, input_shape=shape[1:], batched=True, statistics="moving", momentum=0.75, dtype="float64", **settings
    )
    core = core_of(differing(module))
    mask = sample(*shape, seed=5) < 0.5 if masked else None
    for step in range(3):
        x = sample(*shape, dtype=torch.float64, seed=step) * (step + 1) + step
        expected = core(x.numpy(), training=True, mask=None if mask is None else mask.numpy())
        torch.testing.assert_close(module(x, mask).detach(), torch.from_numpy(expected))
    held = core.moments
    spread = held.mean_square() if held.mean is None else held.variance()
    np.testing.assert_allclose(module.variance.numpy(), spread, rtol=1e-13)
    assert (module.mean is None) == (held.mean is None)
    module.eval()
    x = sample(5, *shape[1:], dtype=torch.float64, seed=9)  # no multiple of the batch's groups
    torch.testing.assert_close(module(x).detach(), torch.from_numpy(core(x.numpy())))


def test_layer_norm_is_torch_s():
    ours, theirs = differing(layer_norm(48)), nn.LayerNorm(48)
    theirs.load_state_dict(ours.state_dict())
    x, dy = sample(7, 48).requires_grad_(), sample(7, 48, seed=2)
    torch.testing.assert_close(ours(x), theirs(x))
    found, expected = (torch.autograd.grad(m(x), [x, *m.parameters()], dy) for m in (ours, theirs))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_float32_parameters_beside_halves(half):
    """As torch's layers take them, in what autocast makes of a network."""
    module, x = differing(layer_norm()), sample(5, 8, dtype=DTYPES[half]).requires_grad_()
    with torch.no_grad():
        plain = module(x)
    y = module(x)
    assert y.dtype == DTYPES[half]
    assert torch.equal(y, plain)
    torch.testing.assert_close(y, F.layer_norm(x.float(), (8,), module.weight, module.bias).to(y.dtype))
    y.sum().backward()
    assert module.weight.grad.dtype == torch.float32
    assert x.grad.dtype == DTYPES[half]


def test_a_data_set():
    module = gt.NormalizationLayer(
        "{0, 1;;-2}", batched=True, statistics="dataset", scaling=None, biases=None, epsilon_placement="floor"
    )
    data = sample(50, 3, 4) * 3 + 2
    core = gn.feature_norm(epsilon=1e-3).adapt(data.numpy())
    loader = torch.utils.data.DataLoader(data, batch_size=7)
    assert module.adapt(loader) is module
    for x in (data[:9], data[0], data[0, 0]):  # one example is a batch of one
        torch.testing.assert_close(module(x), torch.from_numpy(core(x.numpy())))
    fresh = gt.NormalizationLayer(
        "{0, 1;;-2}", batched=True, statistics="dataset", scaling=None, biases=None, epsilon_placement="floor"
    )
    assert not fresh.state_dict()
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(data), module(data))
    mask = data > 0
    core.adapt(data.numpy(), mask=mask.numpy())
    module.adapt(data, mask=mask)
    torch.testing.assert_close(module(data), torch.from_numpy(core(data.numpy())))
    with pytest.raises(gn.errors.InputError):
        module.adapt([(data, data)])


# --------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_and_arrays_share_their_memory(dtype):
    tensor = sample(3, 4, dtype=DTYPES[dtype]).t()
    array = array_of(tensor)
    assert array.dtype.name == dtype
    assert array.ctypes.data == tensor.data_ptr()
    assert array.shape == tuple(tensor.shape)
    assert [step // array.itemsize for step in array.strides] == [*tensor.stride()]
    assert np.array_equal(array.astype(float), tensor.double().numpy())
    again = tensor_of(array)
    assert (again.data_ptr(), again.dtype, again.stride()) == (tensor.data_ptr(), tensor.dtype, tensor.stride())
    assert torch.equal(again, tensor)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("training", [False, True])
def test_kernels_get_the_memory_of_tensors(dtype, training, grad, monkeypatch):
    """No copy of the input on its way in, nor of the output on its way out, nor of either's gradient."""
    module, x = differing(batch_norm(dtype=dtype)).train(training), sample(4, 5, 6, dtype=DTYPES[dtype])
    seen = []
    for name in ("normalize", "forward", "backward"):
        original = getattr(Computation, name)

        def spy(self, array, *args, _original=original, **keywords):
            found = _original(self, array, *args, **keywords)
            seen.append((array.ctypes.data, found))
            return found

        monkeypatch.setattr(Computation, name, spy)
    x = x.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(grad)
    y = module(x)
    (at, found), *_ = seen
    assert at == x.data_ptr()
    assert y.data_ptr() == (found[0] if isinstance(found, tuple) else found).ctypes.data
    assert y.stride() == x.stride()
    if grad:
        (dx,) = torch.autograd.grad(y, x, sample(4, 5, 6, dtype=x.dtype))
        assert seen[-1][0] == x.data_ptr()
        assert dx.data_ptr() == seen[-1][1].input.ctypes.data
        assert dx.stride() == x.stride()


@pytest.mark.parametrize("grad", [False, True])
def test_memory_formats_are_kept(grad):
    module = differing(instance_norm())
    x = sample(4, 5, 3, 2).requires_grad_(grad)
    expected = module(x)
    for form in (torch.channels_last, torch.contiguous_format):
        y = module(x.to(memory_format=form))
        assert y.is_contiguous(memory_format=form)
        torch.testing.assert_close(y, expected)
    sliced = F.pad(x, (1, 2, 3, 1))[:, :, 3:-1, 1:-2]
    assert not sliced.is_contiguous()
    torch.testing.assert_close(module(sliced), expected)
    for view in (x.flip(0), x.expand(4, 5, 3, 2), x.permute(0, 1, 3, 2)):
        torch.testing.assert_close(module(view), module(view.clone(memory_format=torch.contiguous_format)))
    assert module(torch.view_as_complex(sample(4, 5, 3, 2)).conj().imag).shape == (4, 5, 3)  # of negative sign


def test_the_input_is_not_written_and_not_kept():
    module, x = differing(layer_norm()), sample(5, 8)
    before = x.clone()
    with torch.no_grad():
        y = module(x)
    assert torch.equal(x, before)
    gone = weakref.ref(x)
    del x
    assert gone() is None
    assert y.shape == (5, 8)


def test_memory_of_an_output_is_reused_only_when_no_tensor_refers_to_it():
    """A view counts as a reference."""
    module = layer_norm(1024)
    x = sample(256, 1024)
    with torch.no_grad():
        kept = module(x)[3:5].view(-1)
        before = kept.clone()
        for seed in range(5):
            module(sample(256, 1024, seed=seed + 7))
    assert torch.equal(kept, before)


# ---------------------------------------------------------------------------------------------------- parameters change


def outputs(module, x):
    """The output without a gradient and with one, which take different ways."""
    with torch.no_grad():
        plain = module(x).clone()
    found = module(x)
    assert torch.equal(found, plain)
    return plain


def step(module):
    with torch.no_grad():
        module.weight.mul_(2)


def reallocated(module):
    module.weight.data = module.weight.data * 2


def strided(module):
    module.weight.data = torch.stack([module.weight.data * 2, module.weight.data], 1)[:, 0]


def loaded(module):
    module.load_state_dict({"weight": module.weight.detach() * 2, "bias": module.bias.detach()})


def assigned(module):
    module.load_state_dict({"weight": module.weight.detach() * 2, "bias": module.bias.detach()}, assign=True)


def replaced(module):
    module.weight = nn.Parameter(module.weight.detach() * 2)


def shared(module):
    module.share_memory()
    step(module)


def optimized(module):
    optimizer = torch.optim.SGD([module.weight], 1.0)
    module.weight.grad = -module.weight.detach().clone()
    optimizer.step()


CHANGES = [step, reallocated, strided, loaded, assigned, replaced, shared, optimized]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_parameter_counts_in_the_next_call(change, dtype):
    module = differing(layer_norm(dtype=dtype, biases=np.zeros(8)))
    with torch.no_grad():
        module.bias.zero_()
    x = sample(3, 8, dtype=DTYPES[dtype])
    for _ in range(2):
        before = outputs(module, x)
        change(module)
        assert torch.equal(outputs(module, x), 2 * before)


def test_parameters_come_and_go():
    module, x = differing(layer_norm()), sample(3, 8)
    outputs(module, x)
    module.bias = None
    torch.testing.assert_close(outputs(module, x), F.layer_norm(x, (8,), module.weight))
    module.weight = None
    torch.testing.assert_close(outputs(module, x), F.layer_norm(x, (8,)))
    module.weight = nn.Parameter(sample(8))
    torch.testing.assert_close(outputs(module, x), F.layer_norm(x, (8,), module.weight))
    module.weight = nn.Parameter(sample(7))
    for _ in range(2):
        with pytest.raises((ParameterError, ShapeError)):
            module(x)
        with torch.no_grad(), pytest.raises((ParameterError, ShapeError)):
            module(x)


def test_a_parameter_that_is_cut_is_refused():
    """Pruning cuts a view out of a parameter, which begins where it did."""
    module, x = layer_norm(), sample(3, 8)
    outputs(module, x)
    module.weight.data = module.weight.data[:4]
    for _ in range(2):
        with torch.no_grad(), pytest.raises((ParameterError, ShapeError)):
            module(x)


def test_functional_call_takes_other_parameters():
    module, x = differing(layer_norm()), sample(3, 8)
    before = outputs(module, x)
    with torch.no_grad():
        others = {name: 2 * value for name, value in module.named_parameters()}
        assert torch.equal(torch.func.functional_call(module, others, (x,)), 2 * before)
    assert torch.equal(outputs(module, x), before)


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))],
    ids=["copy", "deep", "pickle"],
)
@made
def test_copies(make, shape, copied):
    module = differing(make())
    x = sample(*shape)
    expected = outputs(module.eval(), x)
    other = copied(module)
    assert repr(other) == repr(module)
    assert torch.equal(outputs(other, x), expected)
    if copied is not copy.copy:
        step(other)
        assert not torch.equal(outputs(other, x), expected)
        assert torch.equal(outputs(module, x), expected)


@made
def test_a_state_dict_makes_the_round_trip(make, shape):
    module, x = differing(make()), sample(*shape)
    module(x)
    stream = io.BytesIO()
    torch.save(module.state_dict(), stream)
    stream.seek(0)
    other = make()
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(outputs(other.eval(), x), outputs(module.eval(), x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_to_another_dtype(dtype):
    module, x = differing(batch_norm()).eval(), sample(4, 5, 6)
    before = outputs(module, x)
    assert module.to(DTYPES[dtype]) is module
    assert module.weight.dtype == DTYPES[dtype]
    # Moments keep their dtype: in 16 bits they would stand still.
    assert module.variance.dtype == torch.float64
    near = {"float16": 1e-2, "bfloat16": 1e-1}.get(dtype, 1e-6)
    torch.testing.assert_close(outputs(module, x.to(DTYPES[dtype])).float(), before, rtol=near, atol=near)


def test_moments_move_in_half_precision_too():
    module = batch_norm(momentum=0.999).bfloat16()
    x = torch.full((4, 5, 6), 100.0, dtype=torch.bfloat16)
    for _ in range(20):
        module(x)
    torch.testing.assert_close(module.mean, torch.full((5,), 100 * (1 - 0.999**20), dtype=torch.float64))


# ------------------------------------------------------------------------------------------------------ torch's manners


def test_texts_and_state_dict_keys():
    assert repr(layer_norm(768)) == "NormalizationLayer(-1, 'Same', epsilon=1e-05, input_shape=(..., 768))"
    assert "statistics='moving'" in repr(batch_norm())
    assert repr(layer_norm(8, scaling=None)) == (
        "NormalizationLayer(-1, 'Same', epsilon=1e-05, scaling=None, input_shape=(..., 8))"
    )
    assert {*layer_norm().state_dict()} == {"weight", "bias"}
    assert [*batch_norm().state_dict()] == ["weight", "bias", "mean", "variance", "batches"]
    assert {*batch_norm(method="RMS").state_dict()} == {"weight", "bias", "variance", "batches"}


def test_arguments_may_be_torch_s():
    module = layer_norm(3, scaling=torch.tensor([1.0, 2.0, 3.0]), dtype=torch.float64)
    assert module.weight.tolist() == [1, 2, 3]
    assert module.weight.dtype == torch.float64
    assert module.bias.dtype == torch.float64
    given = torch.ones(3)
    module = layer_norm(3, scaling=given)
    given.zero_()
    assert module.weight.tolist() == [1, 1, 1]


def test_a_layer_that_is_not_trainable():
    module = batch_norm(trainable=False)
    x = sample(4, 5, 6)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    assert torch.equal(module(x), module.eval()(x))
    assert module.mean.tolist() == [0] * 5


def test_no_grad_and_inference_mode():
    module, x = differing(layer_norm()), sample(3, 8).requires_grad_()
    y = module(x)
    assert y.requires_grad
    with torch.no_grad():
        assert not module(x).requires_grad
    with torch.inference_mode():
        z = module(x)
        assert z.is_inference()
        assert torch.equal(module(z), module(z.clone()))
    assert torch.equal(z.clone(), y)
    frozen = module.requires_grad_(False)
    assert not frozen(x.detach()).requires_grad
    assert frozen(x).requires_grad
    moving = batch_norm()
    with torch.inference_mode():
        assert moving(sample(4, 5, 6)).shape == (4, 5, 6)


def test_gradients_of_what_requires_them_only():
    module, x = differing(layer_norm()), sample(3, 8)
    module.weight.requires_grad_(False)
    module(x).sum().backward()
    assert module.weight.grad is None
    torch.testing.assert_close(module.bias.grad, torch.full((8,), 3.0))
    assert x.grad is None


def test_an_input_that_was_modified_is_noticed():
    module, x = layer_norm(), sample(3, 8).requires_grad_()
    z = x * 2
    y = module(z)
    z.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_graph_can_be_kept():
    module, x = layer_norm(), sample(3, 8).requires_grad_()
    y = module(x)
    dy = sample(3, 8, seed=2)
    (one,) = torch.autograd.grad(y, x, dy, retain_graph=True)
    (two,) = torch.autograd.grad(y, x, dy)
    assert torch.equal(one, two)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, x, dy)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_let_go_of_the_input(reentrant):
    net = nn.Sequential(nn.Linear(8, 8), differing(layer_norm()), nn.Tanh())
    x, dy = sample(6, 8).requires_grad_(), sample(6, 8, seed=4)
    expected = torch.autograd.grad(net(x), [x, *net.parameters()], dy)
    inside = []
    net[1].register_forward_pre_hook(lambda _, args: inside.append(weakref.ref(args[0])))
    y = checkpoint(net, x, use_reentrant=reentrant)
    assert inside[0]() is None
    y.backward(dy)
    for one, other in zip([x, *net.parameters()], expected, strict=True):
        assert torch.equal(one.grad, other)


def test_what_is_saved_can_be_kept_elsewhere():
    module, x, dy = differing(layer_norm()), sample(3, 8).requires_grad_(), sample(3, 8, seed=2)
    (expected,) = torch.autograd.grad(module(x), x, dy)
    packed = []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.numpy().copy() if not tensor.requires_grad else tensor.detach().numpy().copy()

    with torch.autograd.graph.saved_tensors_hooks(pack, torch.from_numpy):
        y = module(x)
    assert x.shape in packed
    (found,) = torch.autograd.grad(y, x, dy)
    assert torch.equal(found, expected)


def test_autocast():
    net = nn.Sequential(nn.Linear(8, 8), layer_norm(), nn.Linear(8, 8))
    theirs = nn.Sequential(net[0], nn.LayerNorm(8), net[2])
    x = sample(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = net(x), theirs(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected)
    y.float().sum().backward()
    assert net[1].weight.grad.dtype == torch.float32


def test_hooks():
    module, x, called = layer_norm(), sample(3, 8).requires_grad_(), []
    module.register_forward_pre_hook(lambda *_: called.append("before"))
    module.register_forward_hook(lambda *args: called.append("after") or 2 * args[-1])
    module.register_full_backward_hook(lambda *_: called.append("back"))
    y = module(x)
    torch.testing.assert_close(y, 2 * F.layer_norm(x, (8,)))
    y.sum().backward()
    assert called == ["before", "after", "back"]


def test_data_parallel_threads():
    """Many threads call one module, while its parameters are put elsewhere."""
    module, x = differing(layer_norm()), sample(3, 8)
    expected = outputs(module, x)
    wrong, running = [], threading.Event()

    def work():
        with torch.no_grad():
            while not running.is_set():
                if not torch.equal(module(x), expected):
                    wrong.append(1)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for _ in range(200):
        module.weight.data = module.weight.data.clone()
    running.set()
    for worker in workers:
        worker.join()
    assert not wrong


@made
def test_what_is_empty(make, shape):
    module = make()
    x = torch.zeros(0, *shape[1:], requires_grad=True)
    y = module(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert not module.weight.grad.any()
    with torch.no_grad():
        assert module(x).shape == x.shape


# -------------------------------------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("number", [1, 2, 3])
def test_threads_are_torch_s(number, monkeypatch):
    asked, gather = [], sharing.Executor.request
    monkeypatch.setattr(
        sharing.Executor,
        "request",
        lambda pool, n, parts: asked.append(n) or gather(pool, n, parts),
    )
    before, own = torch.get_num_threads(), gn.get_num_threads()
    module, x = layer_norm(1024), sample(1024, 1024).requires_grad_()
    torch.set_num_threads(number)
    try:
        module(x).sum().backward()
        with torch.no_grad():
            for _ in range(2):
                module(x)
        assert asked == ([] if number == 1 else [number] * 4)
        assert gn.get_num_threads() == own
    finally:
        torch.set_num_threads(before)


def test_the_thread_pool_grows():
    """From one number of threads to another, and back, without a result that changes."""
    module, x = layer_norm(1024), sample(2048, 1024)
    before, found = torch.get_num_threads(), []
    try:
        with torch.no_grad():
            for number in (1, 3, 2, 5):
                torch.set_num_threads(number)
                found.append(module(x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)
