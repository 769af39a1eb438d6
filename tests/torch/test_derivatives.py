"""Derivatives by torch's own checkers, to the second order; torch.func."""

import itertools

import pytest

torch = pytest.importorskip("torch")

from torch import func  # noqa: E402
from torch.autograd import forward_ad, gradcheck, gradgradcheck  # noqa: E402

import gennorm.torch as gt  # noqa: E402

# Forward mode compiles some of torch's own formulas with torch.jit.script, which torch itself warns of.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

LEVELS = {
    "layer": ((-1, "Same"), (2, 5)),
    "batch": (("{0, 2}", 1), (3, 2, 2)),
    "groups": (("All", 1, {1: 2}), (2, 4, 2)),
    "ghosts": (("{0, 2}", 1, {0: 2}), (4, 2, 2)),
    "two scaling levels": ((-1, (2, 1)), (2, 2, 3)),
}
METHODS = [("Standardize", False), ("Standardize", True), ("RMS", False)]
PLACEMENTS = [("inside", 0.1), ("floor", 0.1), ("floor", 3.0), ("outside", 0.1)]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def called(levels, shape, mask=None, training=True, **settings):
    """A function of input, weight and bias, and values for them."""
    module = gt.NormalizationLayer(*levels, input_shape=shape[1:], batched=True, dtype="float64", **settings)
    module.train(training)
    inputs = [random(*shape), *(random(*module.weight.shape, seed=seed) for seed in (1, 2))]

    def function(x, weight, bias):
        return func.functional_call(module, {"weight": weight, "bias": bias}, (x, mask))

    return function, [one.requires_grad_() for one in inputs]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("placement", "epsilon"), PLACEMENTS)
@pytest.mark.parametrize(("method", "unbiased"), METHODS)
@pytest.mark.parametrize("name", LEVELS)
def test_every_setting(name, method, unbiased, placement, epsilon, masked):
    levels, shape = LEVELS[name]
    mask = random(*shape, seed=3) < 0.7 if masked else None
    function, inputs = called(
        levels, shape, mask, method=method, unbiased=unbiased, epsilon=epsilon, epsilon_placement=placement
    )
    assert gradcheck(function, inputs, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("method", ["Standardize", "RMS"])
def test_moving_statistics(method, training):
    function, inputs = called(*LEVELS["batch"], training=training, statistics="moving", method=method)
    assert gradcheck(function, inputs, check_forward_ad=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True)


def test_slowly():
    function, inputs = called(*LEVELS["groups"], epsilon=0.1)
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=False)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True)


def test_without_parameters():
    module = gt.NormalizationLayer(-1, scaling=None, biases=None, dtype="float64")
    assert gradcheck(module, random(3, 4).requires_grad_(), check_forward_ad=True)
    assert gradgradcheck(module, random(3, 4).requires_grad_(), check_fwd_over_rev=True)


def test_a_penalty_on_a_gradient():
    """What trains a critic: beside torch's own layer, down to the parameters' gradients."""
    ours = torch.nn.Sequential(
        torch.nn.Linear(6, 8),
        gt.NormalizationLayer(-1, "Same", epsilon=1e-5, input_shape=(..., 8)),
        torch.nn.Linear(8, 1),
    ).double()
    theirs = torch.nn.Sequential(ours[0], torch.nn.LayerNorm(8, dtype=torch.float64), ours[2])
    found = []
    for net in (ours, theirs):
        x = random(5, 6).requires_grad_()
        (dx,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        penalty = ((dx.norm(dim=1) - 1) ** 2).mean()
        found.append(torch.autograd.grad(penalty, [x, *net.parameters()], allow_unused=True, materialize_grads=True))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


# ----------------------------------------------------------------------------------------------------------- torch.func


@pytest.fixture
def pair():
    ours = gt.NormalizationLayer(-1, "Same", epsilon=1e-3, input_shape=(..., 5), dtype="float64")
    theirs = torch.nn.LayerNorm(5, eps=1e-3, dtype=torch.float64)
    with torch.no_grad():
        for seed, (one, other) in enumerate(zip(ours.parameters(), theirs.parameters(), strict=True)):
            one.copy_(random(5, seed=seed))
            other.copy_(one)
    return ours, theirs


def cubed(module):
    return lambda x: (module(x) ** 3).sum()


@pytest.mark.parametrize(
    "transform",
    [
        func.grad,
        func.hessian,
        lambda f: func.jacrev(func.jacrev(f)),
        lambda f: func.jacfwd(func.jacrev(f)),
        lambda f: func.vmap(func.grad(f)),
        func.vmap,
    ],
    ids=["grad", "hessian", "rev rev", "fwd rev", "vmap grad", "vmap"],
)
def test_transforms(pair, transform):
    x = random(3, 5, seed=8)
    ours, theirs = (transform(cubed(module))(x) for module in pair)
    torch.testing.assert_close(ours, theirs)


def test_reverse_over_forward(pair):
    """Beside torch's Hessian: its own reverse over forward of a layer norm with a weight is wrong (torch 2.13)."""
    x = random(3, 5, seed=8)
    ours, theirs = pair
    torch.testing.assert_close(func.jacrev(func.jacfwd(cubed(ours)))(x), func.hessian(cubed(theirs))(x))


def test_gradients_of_every_example(pair):
    x = random(4, 5, seed=8)

    def gradients(module):
        def loss(parameters, x):
            return (func.functional_call(module, parameters, (x,)) ** 2).sum()

        return func.vmap(func.grad(loss), in_dims=(None, 0))(dict(module.named_parameters()), x)

    ours, theirs = map(gradients, pair)
    torch.testing.assert_close(ours, theirs)


def test_models_side_by_side(pair):
    """Parameters that are mapped over, the input not, or along another axis."""
    ours, theirs = pair
    x, weights = random(3, 5, 4, seed=8), random(4, 5, seed=9)
    for in_dims in itertools.product((0, None), (2,)):
        given = weights if in_dims[0] == 0 else weights[0]
        found = [
            func.vmap(lambda w, x, m=m: func.functional_call(m, {"weight": w}, (x,)), in_dims=in_dims)(given, x)
            for m in (ours, theirs)
        ]
        torch.testing.assert_close(*found)


def test_dual_numbers(pair):
    x, t = random(3, 5, seed=8), random(3, 5, seed=9)
    found = []
    for module in pair:
        with forward_ad.dual_level(), torch.no_grad():
            found.append(forward_ad.unpack_dual(module(forward_ad.make_dual(x, t))).tangent)
    torch.testing.assert_close(*found)


def test_moments_cannot_be_folded_for_each_of_many():
    module = gt.NormalizationLayer("{0}", 1, input_shape=(3,), batched=True, statistics="moving")
    with pytest.raises(RuntimeError):
        func.vmap(module)(torch.randn(2, 4, 3))
    assert module.mean.tolist() == [0, 0, 0]
    module.eval()
    assert func.vmap(module)(torch.randn(2, 4, 3)).shape == (2, 4, 3)
