"""The layer for JAX: a function of arrays, a layer that is a pytree, and modules of Flax.

>>> import jax.numpy as jnp
>>> import gennorm.jax
>>> gennorm.jax.normalize(jnp.array([[1.0, 2.0, 3.0]]), -1, epsilon=0).round(4)
Array([[-1.2247,  0.    ,  1.2247]], dtype=float32)

Everything can be computed by `gennorm.definition` in JAX's own operations. The modules, from the inside out: `arrays`
checks arrays; `kernels` has the primitives that kernels compute on a CPU; `moments` has moments of arrays; `merging`
merges them over mapped axes; `computation` normalizes; `layer` has the pytree; `nnx` has the modules of Flax, with
`import gennorm.jax.nnx`.
"""

from gennorm.jax.computation import measure, normalize
from gennorm.jax.layer import NormalizationLayer
from gennorm.jax.moments import Moments

__all__ = ["Moments", "NormalizationLayer", "measure", "normalize"]
