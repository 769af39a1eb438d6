"""The layer as a Keras layer, on every backend of Keras 3, and Keras' own normalization layers computed by gennorm.

>>> import keras
>>> import gennorm.keras
>>> layer = gennorm.keras.NormalizationLayer("2;;All")
>>> tuple(layer(keras.ops.ones((2, 3, 8, 8))).shape)
(2, 3, 8, 8)

The modules, from the inside out: `tensorflow_arrays` has tensors of TensorFlow as arrays of the array API standard;
`computation` normalizes tensors of any backend; `data` has what `adapt` takes; `layers` has Keras' own layers;
`normalization` has `NormalizationLayer`; `converting` changes models.
"""

from gennorm.keras.converting import convert_model
from gennorm.keras.layers import (
    BatchNormalization,
    GroupNormalization,
    LayerNormalization,
    Normalization,
    RMSNormalization,
)
from gennorm.keras.normalization import NormalizationLayer

__all__ = [
    "BatchNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "Normalization",
    "NormalizationLayer",
    "RMSNormalization",
    "convert_model",
]
