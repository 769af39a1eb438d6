"""The state of JAX in these tests: 32 bits, and programs that are compiled quickly."""

import pytest


@pytest.fixture(autouse=True, scope="package")
def _state_of_jax():
    try:
        import jax
    except ImportError:  # the tests are skipped by name
        yield
        return
    # Compiling takes most of the time of the tests. Tests of other modules of the process may have switched on 64 bits.
    states = {"jax_disable_most_optimizations": True, "jax_enable_x64": False}
    before = {name: jax.config.read(name) for name in states}
    for name, value in states.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
