"""Programs of these tests are compiled without most optimizations: compiling them takes most of the time."""

import pytest


@pytest.fixture(autouse=True, scope="package")
def _quick_to_compile():
    try:
        import jax
    except ImportError:  # the tests are skipped by name
        yield
        return
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
