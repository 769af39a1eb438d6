"""Small inputs, for which drop-in layers call torch's own operators, and `set_batch_invariant`."""

import copy

import pytest

torch = pytest.importorskip("torch")

import gennorm.torch as gt  # noqa: E402
from gennorm.errors import GennormError  # noqa: E402
from gennorm.torch import crossover, layers  # noqa: E402
from tests.torch.test_layers import CASES, gradients, laid_out, pair, sample, titled  # noqa: E402

LIMITS = ("LAYER", "RMS", "GROUP", "GROUP_LAST", "BATCH", "BATCH_LAST", "EVALUATION", "INSTANCE", "INSTANCE_LAST")


@pytest.fixture(autouse=True)
def small(batch_invariant, monkeypatch):
    """Let every layer call torch for inputs below 2,000 elements."""
    for name in LIMITS:
        monkeypatch.setattr(layers, name, crossover.Crossover(2000, 2000, 2000, 2000))
    gt.set_batch_invariant(False)


@pytest.fixture
def threads_of_torch():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def by_kernel(y):
    return type(y.grad_fn).__name__ == "NormalizeBackward" or (
        y.grad_fn is not None and any(type(one).__name__ == "NormalizeBackward" for one, _ in y.grad_fn.next_functions)
    )


def equal(one, other):
    return torch.equal(one.nan_to_num(), other.nan_to_num()) and torch.equal(one.isnan(), other.isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=titled)
def test_small_inputs_have_the_bits_of_torch(case, dtype):
    """Output, gradients and state, for every class, in training and in evaluation."""
    *made, shape = case
    theirs, ours = pair(*made, dtype)
    for step, training in enumerate([True, True, False]):
        theirs.train(training), ours.train(training)
        x, dy = sample(shape, dtype, seed=step), sample(shape, dtype, seed=20 + step)
        (expected, expected_gradients), (found, found_gradients) = (gradients(m, x, dy) for m in (theirs, ours))
        assert found.grad_fn is None or not by_kernel(found)
        assert equal(found, expected)
        assert found.stride() == expected.stride()
        assert all(equal(*both) for both in zip(found_gradients, expected_gradients, strict=True))
        state = ours.state_dict()
        assert all(equal(value, state[key]) for key, value in theirs.state_dict().items())
        with torch.no_grad():
            assert equal(ours(x), theirs(x))


@pytest.mark.parametrize("case", [case for case in CASES if len(case[-1]) == 4], ids=titled)
def test_small_inputs_have_the_memory_format_of_torch(case):
    *made, shape = case
    theirs, ours = pair(*made)
    for layout in ("channels_last", "gaps"):
        x = laid_out(sample(shape), layout)
        assert ours(x).stride() == theirs(x).stride()


@pytest.mark.parametrize("case", CASES[::3], ids=titled)
def test_batch_invariant_layers_use_kernels(case):
    *made, shape = case
    _, ours = pair(*made)
    x = sample(shape).requires_grad_()
    other = copy.deepcopy(ours)
    y = ours(x)
    assert not gt.get_batch_invariant()
    gt.set_batch_invariant(True)
    assert gt.get_batch_invariant()
    z = other(x)
    assert by_kernel(z)
    assert not by_kernel(y)
    torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-5)


def test_bits_do_not_depend_on_the_batch_where_that_is_wanted():
    layer = gt.LayerNorm(96)
    x = sample((64, 96))
    gt.set_batch_invariant(True)
    with torch.no_grad():
        assert torch.equal(layer(x)[:3], layer(x[:3]))


@pytest.mark.parametrize(
    ("elements", "derived", "expected"),
    [(9, False, True), (10, False, False), (19, True, True), (20, True, False)],
)
@pytest.mark.usefixtures("threads_of_torch")
def test_the_limit_depends_on_gradients_and_threads(elements, derived, expected):
    limit = crossover.Crossover(10, 20, 30, 40)
    torch.set_num_threads(1)
    x, weight = torch.ones(elements), torch.ones(elements).requires_grad_(derived)
    assert crossover.is_faster_in_torch(x, weight, limit) is expected
    assert crossover.is_faster_in_torch(x.clone().requires_grad_(derived), None, limit) is expected
    with torch.no_grad():
        assert crossover.is_faster_in_torch(x, weight, limit) is (elements < 10)
        assert crossover.is_faster_in_torch(x.half(), weight, limit)
        torch.set_num_threads(2)
        assert crossover.is_faster_in_torch(x, weight, limit)
        assert not crossover.is_faster_in_torch(torch.ones(30), weight, limit)
    assert crossover.is_faster_in_torch(torch.ones(30).requires_grad_(), None, limit)
    assert not crossover.is_faster_in_torch(torch.ones(40).requires_grad_(), None, limit)


def test_channels_last_have_a_limit_of_their_own():
    first, last = crossover.Crossover(100, 100, 100, 100), crossover.Crossover(10, 10, 10, 10)
    x = torch.ones(2, 3, 2, 2)
    assert crossover.is_faster_in_torch(x, None, first, last)
    assert not crossover.is_faster_in_torch(x.contiguous(memory_format=torch.channels_last), None, first, last)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace` is deprecated")
def test_only_plain_tensors_are_given_to_torch():
    """Others are computed by the definition, as they are for large inputs."""
    limit, x = crossover.Crossover(100, 100, 100, 100), torch.ones(4)
    assert crossover.is_faster_in_torch(x, None, limit)
    assert not crossover.is_faster_in_torch(x.to("meta"), None, limit)
    assert not crossover.is_faster_in_torch(torch.nn.Parameter(x), None, limit)
    assert not crossover.is_faster_in_torch(x.to_sparse(), None, limit)
    seen = []
    torch.func.vmap(lambda one: seen.append(crossover.is_faster_in_torch(one, None, limit)) or one)(x)
    torch.jit.trace(
        lambda one: seen.append(crossover.is_faster_in_torch(one, None, limit)) or one + 1, x, check_trace=False
    )
    with torch.autograd.forward_ad.dual_level():
        seen.append(crossover.is_faster_in_torch(x, None, limit))
    assert seen
    assert not any(seen)


def test_a_compiled_layer_is_not_bound_to_a_size():
    layer = gt.LayerNorm(8)
    explained = torch._dynamo.explain(layer)(torch.ones(3, 8))
    assert explained.graph_break_count == 0


WRONG = {
    "LayerNorm": (lambda: gt.LayerNorm(6), (4, 7)),
    "RMSNorm": (lambda: gt.RMSNorm(6), (4, 7)),
    "GroupNorm": (lambda: gt.GroupNorm(2, 6), (4, 7, 3)),
    "BatchNorm1d": (lambda: gt.BatchNorm1d(6), (4, 7)),
    "BatchNorm1d in evaluation": (lambda: gt.BatchNorm1d(6).eval(), (4, 7)),
    "InstanceNorm1d": (lambda: gt.InstanceNorm1d(6, affine=True, track_running_stats=True), (4, 7, 3)),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors_are_those_of_large_inputs(name):
    """And nothing has changed after an error."""
    make, shape = WRONG[name]
    layer, texts = make(), []
    before = copy.deepcopy(layer.state_dict())
    for invariant in (False, True):
        gt.set_batch_invariant(invariant)
        with pytest.raises((GennormError, ValueError)) as caught:
            layer(torch.ones(shape))
        texts.append((type(caught.value), str(caught.value)))
    assert texts[0] == texts[1]
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_dtypes_that_torch_refuses_are_refused_with_its_error():
    layer, theirs = gt.LayerNorm(8), torch.nn.LayerNorm(8)
    for one in (layer, theirs):
        one.weight.data = one.weight.data.double()
        with pytest.raises(RuntimeError, match="mixed dtype"):
            one(torch.ones(2, 8))


def test_subclasses_and_accelerated_layers_take_part():
    net = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.BatchNorm1d(8))
    gt.accelerate(net)
    y = net[0](torch.randn(4, 8))
    assert not by_kernel(y)
    gt.set_batch_invariant(True)
    assert by_kernel(net[0](torch.randn(4, 8)))
    gt.restore(net)


def test_the_limits_are_measured_ones():
    """Every limit is at least a few thousand elements, or the kernels are faster from the first one on."""
    assert set(LIMITS) == {name for name in vars(layers) if isinstance(getattr(layers, name), crossover.Crossover)}
