"""Data sets that `adapt` takes, as batches of arrays."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from gennorm.errors import InputError

__all__ = ["batches_of"]

Tensor = Any


def batches_of(data: Any) -> Iterator[np.ndarray[Any, Any]]:
    """Return the batches of a data set as arrays; everything is one batch where it is an array.

    Raises
    ------
    InputError
        The data are no array and no iterable of arrays.

    Examples
    --------
    >>> [batch.shape for batch in batches_of([(np.ones((2, 3)), np.zeros(2)), ops.ones((4, 3))])]
    [(2, 3), (4, 3)]
    """
    tensorflow = sys.modules.get("tensorflow")
    if isinstance(data, np.ndarray) or ops.is_tensor(data):
        yield _array(data)
        return
    if tensorflow is not None and isinstance(data, tensorflow.data.Dataset):
        spec = data.element_spec
        spec = spec[0] if isinstance(spec, tuple) else spec
        data = data.batch(128) if len(spec.shape) == 1 else data
    elif isinstance(data, keras.utils.PyDataset):
        data = map(data.__getitem__, range(data.num_batches))
    elif not isinstance(data, Iterable):
        msg = f"adapt() does not take data of type {type(data).__name__}\n"
        msg += "pass an array, a tensor, a tf.data.Dataset, a keras.utils.PyDataset or an iterable of batches"
        raise InputError(msg, code="K003")
    for batch in data:
        x = batch[0] if isinstance(batch, (tuple, list)) and len(batch) else batch
        if not hasattr(x, "shape"):
            msg = f"adapt() received a batch of type {type(x).__name__}, which has no `.shape`\n"
            msg += "pass batches that are arrays or tensors, or tuples (x, y) of them"
            raise InputError(msg, code="K004")
        yield _array(x)


def _array(x: Tensor) -> np.ndarray[Any, Any]:
    return x if isinstance(x, np.ndarray) else ops.convert_to_numpy(x) if ops.is_tensor(x) else np.asarray(x)
