"""What `test_devices.py` runs with eight devices. Each check prints its name."""

import functools
import re
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import gennorm as gn
import gennorm.jax as gj
from gennorm.jax import kernels

MESH = jax.make_mesh((8,), ("n",), axis_types=(jax.sharding.AxisType.Auto,)) if jax.device_count() == 8 else None
X = np.random.default_rng(0).normal(2, 3, (16, 4, 6)).astype("float32")
KEPT = functools.partial(gj.normalize, aggregation_levels="All", scaling_levels=1, group_number={1: 2}, batched=True)
JOINED = functools.partial(gj.normalize, aggregation_levels="{0, 2}", scaling_levels=1, batched=True)
COLLECTIVE = re.compile(r"all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute")


def report(name):
    sys.stdout.write(f"{name}\n")
    sys.stdout.flush()


def collectives(function, *arguments):
    """Return how many collectives the compiled function has."""
    return len(COLLECTIVE.findall(function.lower(*arguments).compile().as_text()))


def mapped(call, **keywords):
    return jax.jit(jax.shard_map(call, mesh=MESH, in_specs=P("n"), out_specs=P("n"), **keywords))


def close(one, other, tolerance=2e-5):
    np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


def slope_of(call):
    return jax.jit(jax.grad(lambda x: (call(x) ** 3).sum()))


def sharded():
    x = jax.device_put(X, NamedSharding(MESH, P("n")))
    for call, most in ((KEPT, 0), (JOINED, 100)):
        for function in (call, slope_of(call)):
            compiled = jax.jit(function).lower(x).compile()
            y = compiled(x)
            close(y, function(jnp.asarray(X)), 2e-4)
            number = len(COLLECTIVE.findall(compiled.as_text()))
            assert number <= most, (call, number)
            assert (number > 0) == (most > 0)
            assert y.sharding.is_equivalent_to(x.sharding, 3)
    report("sharded")


def with_shard_map():
    for check in (True, False):
        kept = mapped(functools.partial(KEPT, axis_name="n"), check_vma=check)
        joined = mapped(functools.partial(JOINED, axis_name="n"), check_vma=check)
        close(kept(X), KEPT(X))
        close(joined(X), JOINED(X))
        assert collectives(kept, X) == 0
        assert 0 < collectives(joined, X) <= 4, collectives(joined, X)
        x = jnp.asarray(X)
        close(slope_of(joined)(x), slope_of(JOINED)(x), 2e-4)
        assert collectives(slope_of(kept), X) == 0
    report("shard_map")


def moving():
    keywords = {"batched": True, "input_shape": (4, 6), "statistics": "moving", "momentum": 0.5}
    for levels in ("{0, 2}", "2"):
        alone = gj.NormalizationLayer(levels, 1, **keywords)
        layer = gj.NormalizationLayer(levels, 1, **keywords, axis_name="n")
        fold = jax.shard_map(gj.NormalizationLayer.fold, mesh=MESH, in_specs=(P(), P("n")), out_specs=(P("n"), P()))
        y, new = jax.jit(fold)(layer, X)
        expected, folded = alone.fold(X)
        close(y, expected)
        close(new.mean, folded.mean)
        close(new.variance, folded.variance)
    report("moving")


def gradients():
    """Of the parameters, which every device has, along a direction, and of second order."""
    x, scaling = jnp.asarray(X), jnp.asarray([1.0, 2.0, -1.0, 0.5])
    parted = jax.shard_map(
        lambda x, scaling: JOINED(x, scaling=scaling, axis_name="n"),
        mesh=MESH,
        in_specs=(P("n"), P()),
        out_specs=P("n"),
    )

    def found(call):
        def loss(x, scaling):
            return (call(x, scaling) ** 3).sum()

        def all_of_them(x):
            along = jax.jvp(lambda x: call(x, scaling), (x,), (x * x,))[1]
            again = jax.grad(lambda x: (jax.grad(loss)(x, scaling) ** 2).sum())(x)
            return (*jax.grad(loss, (0, 1))(x, scaling), along, again)

        return jax.jit(all_of_them)(x)

    whole = found(lambda x, scaling: JOINED(x, scaling=scaling))
    for one, other in zip(found(parted), whole, strict=True):
        scale = jnp.abs(other).max()
        close(one / scale, other / scale, 5e-4)
    report("gradients")


def masks():
    """Uneven counts: one device counts nothing, another everything; padding is NaN."""
    mask = np.random.default_rng(1).random(X.shape) < np.linspace(0, 1, 16)[:, None, None]
    mask[:2], mask[-2:] = False, True
    x = jnp.where(mask, X, jnp.nan)

    def slope(call):
        return jax.jit(jax.grad(lambda x: (jnp.where(mask, call(x, mask), 0) ** 3).sum()))(x)

    parted = jax.jit(
        jax.shard_map(
            lambda x, mask: JOINED(x, mask=mask, axis_name="n"), mesh=MESH, in_specs=(P("n"), P("n")), out_specs=P("n")
        )
    )
    whole = lambda x, mask: JOINED(x, mask=mask)  # noqa: E731
    close(jnp.nan_to_num(parted(x, mask)), jnp.nan_to_num(whole(x, mask)))
    close(slope(parted), slope(whole), 2e-4)
    report("masks")


def groups():
    """Devices that are merged in groups, which `pmap` and Flax know."""
    try:
        import flax  # noqa: F401
    except ImportError:
        report("groups")
        return
    from flax import nnx

    import gennorm.jax.nnx as gnx

    keywords = {"axis_name": "n", "axis_index_groups": [[0, 1, 2, 3], [4, 5, 6, 7]], "use_fast_variance": False}
    found = []
    for kind in (gnx.BatchNorm, nnx.BatchNorm):
        graph, state = nnx.split(kind(6, **keywords, rngs=nnx.Rngs(0)))
        call = lambda state, x, graph=graph: nnx.merge(graph, state)(x)  # noqa: E731
        mapped = jax.shard_map(call, mesh=MESH, in_specs=(P(), P("n")), out_specs=P("n"), check_vma=False)
        found.append(jax.jit(mapped)(state, X))
    close(found[0], found[1])
    close(found[0][:8], gnx.BatchNorm(6, rngs=nnx.Rngs(0))(X[:8]), 1e-4)
    report("groups")


def on_each():
    """Kernels run on one of the devices, on each of them at the same time, and on several threads."""
    if not kernels.are_available():
        report("kernels")
        return
    from gennorm.engine import handlers

    def called(function, *arguments):
        return "@gennorm_forward" in function.lower(*arguments).as_text()

    x = jax.device_put(X, jax.devices()[3])
    alone, parted = jax.jit(KEPT), jax.device_put(X, NamedSharding(MESH, P("n")))
    assert called(alone, x)
    assert alone(x).devices() == x.devices()
    assert not called(alone, parted)
    unchecked = mapped(KEPT, check_vma=False)
    assert called(unchecked, X)
    close(unchecked(X), alone(x))
    assert collectives(unchecked, X) == 0
    close(jax.pmap(KEPT)(X.reshape(8, 2, 4, 6)).reshape(X.shape), alone(x))

    handlers.WORTH_SHARING = 1
    gn.set_num_threads(8)
    large = np.random.default_rng(1).normal(2, 3, (64, 16, 64)).astype("float32")
    step = jax.jit(jax.value_and_grad(lambda x: (gj.normalize(x, -1, batched=True) ** 3).sum()))
    expected, wrong = step(large), []
    programs = [(step, jax.device_put(large, one)) for one in jax.devices()]

    def work(step, x):
        for _ in range(20):
            found = step(x)
            if not all(map(np.array_equal, found, expected)):
                wrong.append(found)

    callers = [threading.Thread(target=work, args=one) for one in (*programs, *programs)]
    for one in callers:
        one.start()
    for one in callers:
        one.join()
    assert not wrong
    report("kernels")


if __name__ == "__main__":
    kernels.WORTH = kernels.WORTH_LENGTH = 1  # every array is worth a kernel
    for check in (sharded, with_shard_map, moving, gradients, masks, groups, on_each):
        check()
