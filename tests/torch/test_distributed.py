"""Synchronized statistics: two and three processes with a part of the batch each, beside one with all of it."""

import os
import socket

import pytest

torch = pytest.importorskip("torch")

from torch import distributed, multiprocessing  # noqa: E402

import gennorm.torch as gt  # noqa: E402

SHAPE = (7, 5, 4)
LEVELS = {"batch": ("{0, 2}", 1), "groups": ("{0, 1, 2}", 1, {1: 5}), "instance": (2, 1)}
SETTINGS = [{}, {"method": "RMS"}, {"unbiased": True, "epsilon_placement": "outside"}, {"statistics": "input"}]


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(levels, settings, synchronized):
    settings = {"statistics": "moving", **settings}
    module = gt.NormalizationLayer(
        *levels,
        input_shape=SHAPE[1:],
        batched=True,
        dtype="float64",
        momentum=0.5,
        synchronized=synchronized,
        **settings,
    )
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            parameter.copy_(random(*parameter.shape, seed=seed))
    return module


def derivatives(module, x, mask, dy, along, total):
    """Output, gradients, gradients of a gradient; those of parameters are sums over everybody."""
    x = x.clone().requires_grad_()
    y = module(x, mask)
    dx, *of_parameters = torch.autograd.grad(y, [x, *module.parameters()], dy, create_graph=True)
    again, of_weight = torch.autograd.grad((dx * along).sum(), [x, module.weight])
    sums = [total(one.detach()) for one in (*of_parameters, of_weight)]
    buffers = [one for one in (module.mean, module.variance) if one is not None]
    return [y.detach(), dx.detach(), again], [*sums, *buffers]


def added(tensor):
    distributed.all_reduce(tensor)
    return tensor


def compare(start, stop):
    x, dy, along = (random(*SHAPE, seed=seed) + 2 for seed in (3, 4, 5))
    counted = random(*SHAPE, seed=6) < 0.5
    part = slice(start, stop)
    for name, levels in LEVELS.items():
        for settings in SETTINGS:
            if name == "instance" and settings.get("statistics") == "input":
                continue
            for mask in (None, counted):
                whole, shared = (made(levels, settings, synchronized) for synchronized in (False, True))
                for _ in range(2):
                    over, alike = derivatives(whole, x, mask, dy, along, lambda tensor: tensor)
                    found, same = derivatives(
                        shared, x[part], None if mask is None else mask[part], dy[part], along[part], added
                    )
                    for one, other in zip(found, over, strict=True):
                        torch.testing.assert_close(one, other[part], rtol=1e-11, atol=1e-11)
                    for one, other in zip(same, alike, strict=True):
                        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
                whole.eval()
                shared.eval()
                if settings.get("statistics") != "input":
                    torch.testing.assert_close(shared(x[part]), whole(x)[part], rtol=1e-11, atol=1e-11)


def work(rank, ends, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=len(ends) - 1)
    try:
        compare(ends[rank], ends[rank + 1])
    finally:
        distributed.destroy_process_group()


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize("ends", [[0, 2, 7], [0, 3, 3, 7]], ids=["two, unequal", "three, one of them empty"])
def test_as_one_process_with_the_whole_batch(ends):
    multiprocessing.spawn(work, (ends, free_port()), nprocs=len(ends) - 1)


def test_alone():
    """Without other processes it is the module as it is."""
    x = random(*SHAPE, seed=3)
    one, other = (made(LEVELS["batch"], {}, synchronized) for synchronized in (False, True))
    assert torch.equal(one(x), other(x))
    assert torch.equal(one.variance, other.variance)
    assert "synchronized=True" in repr(other)
