"""The tests of the modules are about kernels, also for the small inputs for which drop-in layers call torch."""

import pytest


@pytest.fixture(autouse=True)
def batch_invariant():
    """Use kernels for inputs of all sizes. `test_crossover` has the tests of the other choice."""
    pytest.importorskip("torch")
    import gennorm.torch as gt

    gt.set_batch_invariant(True)
    yield
    gt.set_batch_invariant(False)
