"""A network in plain NumPy learns to read digits, with a layer inside and without: what the papers promise, holds."""

import functools
import itertools

import numpy as np
import pytest

import gennorm as gn

datasets = pytest.importorskip("sklearn.datasets")

SIZES = (64, 64, 64, 64, 64, 10)
BATCH = 64
NORMS = {
    "nothing": None,
    "batch norm": lambda: gn.batch_norm(64, momentum=0.9),
    "layer norm": lambda: gn.layer_norm(64),
    "RMS norm": lambda: gn.rms_norm(64),
    "group norm": lambda: gn.group_norm(8, 64),
}


@functools.cache
def digits():
    """Pictures of 8 by 8 and their numbers: those to learn from, and those to be tested on."""
    pictures, numbers = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(pictures))
    pictures, numbers = (pictures[order] / 16).astype(np.float32), numbers[order]
    return (pictures[:1347], numbers[:1347]), (pictures[1347:], numbers[1347:])


class Network:
    """Five matrices; between two of them a normalization, if there is one, and max(., 0)."""

    def __init__(self, norm, seed):
        rng = np.random.default_rng(seed)
        pairs = itertools.pairwise(SIZES)
        self.weights = [(rng.normal(size=pair) / np.sqrt(pair[0])).astype(np.float32) for pair in pairs]
        self.norms = [None if norm is None else norm() for _ in SIZES[1:-1]]

    def __call__(self, x, training=False):
        for weights, norm in zip(self.weights, self.norms, strict=False):
            z = x @ weights
            x = np.maximum(z if norm is None else norm(z, training=training), 0)
        return x @ self.weights[-1]

    def accuracy(self, x, numbers, **call):
        return float(np.mean(self(x, **call).argmax(1) == numbers))

    def gradients(self, x, numbers):
        """The loss, and the gradients of the weights and, by name, of the parameters of the norms."""
        inputs, pullbacks = [x], []
        for weights, norm in zip(self.weights, self.norms, strict=False):
            z, pullback = inputs[-1] @ weights, None
            if norm is not None:
                z, pullback = norm.vjp(z, training=True)
            pullbacks.append((z > 0, pullback))
            inputs.append(np.maximum(z, 0))
        out = inputs[-1] @ self.weights[-1]
        likely = np.exp(out - out.max(1, keepdims=True))
        likely /= likely.sum(1, keepdims=True)
        right = np.arange(len(numbers)), numbers
        loss = -np.log(likely[right] + 1e-12).mean()
        likely[right] -= 1
        g = likely / len(numbers)
        of_weights, of_norms = [], []
        for i in reversed(range(len(self.weights))):
            of_weights.append(inputs[i].T @ g)
            g = g @ self.weights[i].T
            if i:
                positive, pullback = pullbacks[i - 1]
                g = g * positive
                found = None if pullback is None else pullback(g)
                g = g if found is None else found.input
                of_norms.append(found)
        return loss, of_weights[::-1], of_norms[::-1]

    def step(self, x, numbers, rate):
        """Go a step down the gradient, and return the loss before it."""
        loss, of_weights, of_norms = self.gradients(x, numbers)
        for weights, gradient in zip(self.weights, of_weights, strict=True):
            weights[...] -= rate * gradient
        for norm, found in zip(self.norms, of_norms, strict=True):
            if norm is not None:
                norm.scaling -= rate * found.scaling
                if norm.biases is not None:
                    norm.biases -= rate * found.biases
        return loss


@functools.cache
def trained(name, rate, seed=1, epochs=4):
    """A network after some epochs, and its losses."""
    network, (x, numbers) = Network(NORMS[name], seed), digits()[0]
    rng, losses = np.random.default_rng(2), []
    with np.errstate(over="ignore", invalid="ignore"):  # without a norm a large rate leads anywhere
        for _ in range(epochs):
            order = rng.permutation(len(x))
            for first in range(0, len(x) - BATCH + 1, BATCH):
                chosen = order[first : first + BATCH]
                losses.append(network.step(x[chosen], numbers[chosen], np.float32(rate)))
    return network, np.array(losses)


def accuracy_of(name, rate, **others):
    return trained(name, rate, **others)[0].accuracy(*digits()[1])


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", [name for name in NORMS if name != "nothing"])
def test_it_learns_faster_with_a_norm(name, seed):
    """At the same small rate: after four epochs without a norm it has hardly begun."""
    plain, losses = trained("nothing", 0.05, seed)[1], trained(name, 0.05, seed)[1]
    first, last = slice(21, 42), slice(-21, None)
    assert losses[first].mean() < 0.6 * plain[first].mean()
    assert losses[last].mean() < 0.3 * plain[last].mean()
    assert accuracy_of(name, 0.05, seed=seed) > accuracy_of("nothing", 0.05, seed=seed) + 0.2


@pytest.mark.parametrize("seed", [1, 2])
def test_batch_norm_tolerates_rates_that_are_the_end_of_it_otherwise(seed):
    """Ioffe and Szegedy, 3.3: at the rate 1 and at 3 there is no learning without."""
    for rate in (1.0, 3.0):
        assert accuracy_of("nothing", rate, seed=seed) < 0.3
        assert accuracy_of("batch norm", rate, seed=seed) > 0.9
    assert trained("batch norm", 1.0, seed)[1][-21:].mean() < 0.15
    # And the best rate with it beats the best rate without it.
    rates = (0.05, 0.3, 1.0)
    best = max(accuracy_of("nothing", rate, seed=seed) for rate in rates)
    assert max(accuracy_of("batch norm", rate, seed=seed) for rate in rates) > best + 0.1


# At a rate of 1 the weights run ahead of the moving moments: the two accuracies are a point or so apart there.
@pytest.mark.parametrize("rate", [0.05, 0.3])
def test_inference_is_as_good_as_training(rate):
    """By the moving moments it reads digits as well as by those of the batch, and one digit alone as in a batch."""
    network, _ = trained("batch norm", rate)
    x, numbers = digits()[1]
    held = [norm.moments for norm in network.norms]
    inferred = network.accuracy(x, numbers)
    normalized = network.accuracy(x, numbers, training=True)
    for norm, moments in zip(network.norms, held, strict=True):
        norm.moments = moments
    assert inferred > 0.94
    assert abs(inferred - normalized) <= 0.01
    np.testing.assert_allclose(network(x[:1]), network(x)[:1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NORMS)
def test_it_is_the_gradient_of_the_loss(name):
    """Differences of the whole network in float64, in steps so small that hardly a max(., 0) turns its corner."""
    network = Network(NORMS[name], seed=3)
    network.weights = [weights.astype(np.float64) for weights in network.weights]
    if NORMS[name] is not None:
        stored = [norm.to_config() | {"dtype": "float64"} for norm in network.norms]
        network.norms = [gn.NormalizationLayer.from_config(config) for config in stored]
    (x, numbers), _ = digits()
    x, numbers, step = x[:40].astype(np.float64), numbers[:40], 1e-7
    _, of_weights, of_norms = network.gradients(x, numbers)
    arrays, gradients = list(network.weights), list(of_weights)
    for norm, found in zip(network.norms, of_norms, strict=True):
        for which in ("scaling", "biases") if norm is not None else ():
            if getattr(norm, which) is not None:
                arrays.append(getattr(norm, which))
                gradients.append(getattr(found, which))
    rng = np.random.default_rng(4)
    for array, gradient in zip(arrays, gradients, strict=True):
        away, before, losses = rng.normal(size=array.shape), array.copy(), []
        for side in (1, -1):
            array[...] = before + side * step * away
            losses.append(network.gradients(x, numbers)[0])
        array[...] = before
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx((gradient * away).sum(), rel=1e-4, abs=1e-7)


def test_it_is_the_same_every_time():
    """To the bit, for seeds are all there is to chance."""
    one = trained("batch norm", 0.3)[1]
    trained.cache_clear()
    assert trained("batch norm", 0.3)[1].tobytes() == one.tobytes()
