"""The layer for JAX: a function of arrays, a layer that is a pytree, and modules of Flax.

>>> import jax.numpy as jnp
>>> import gennorm.jax
>>> gennorm.jax.normalize(jnp.array([[1.0, 2.0, 3.0]]), -1, epsilon=0).round(4)
Array([[-1.2247,  0.    ,  1.2247]], dtype=float32)

The modules: `arrays` checks arrays; `computation` normalizes them by `gennorm.definition`; `merging` merges moments over
mapped axes; `layer` has the pytree; `nnx` has the modules of Flax and is imported with `import gennorm.jax.nnx`.
"""

from gennorm.jax.computation import measure, normalize
from gennorm.jax.layer import NormalizationLayer

__all__ = ["NormalizationLayer", "measure", "normalize"]
