"""Models with Keras' normalization layers as models with those of gennorm, and the other way round."""

from __future__ import annotations

from typing import Any

import keras

from gennorm.errors import InputError
from gennorm.keras import layers

__all__ = ["convert_model"]


def convert_model(model: Any, *, to: str = "gennorm") -> Any:
    """Return a copy of a model whose normalization layers are those of gennorm, or of Keras.

    Keras does not let ``load_model`` replace its own classes. Load a model that was saved with them, and convert it.

    Parameters
    ----------
    model : keras.Model
        A functional or sequential model. It is not changed.
    to : {"gennorm", "keras"}, default "gennorm"
        Whose classes the layers of the copy have.

    Returns
    -------
    keras.Model
        With the same layers, names, weights and, where the model is compiled, the same loss, metrics and optimizer
        settings. Layers of other classes are copied, subclasses of Keras' layers too.

    Raises
    ------
    InputError
        The model is no functional or sequential one, or `to` is another word.

    Examples
    --------
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.LayerNormalization()])
    >>> convert_model(model).layers[0].__module__
    'gennorm.keras.layers'
    >>> convert_model(convert_model(model), to="keras").layers[0] == model.layers[0]
    False
    """
    if to not in {"gennorm", "keras"}:
        msg = f"a model cannot be converted to {to!r}\nwrite 'gennorm' or 'keras'"
        raise InputError(msg, code="K005")
    if not isinstance(model, (keras.Sequential, keras.src.models.Functional)):
        msg = f"a model of type {type(model).__name__} cannot be copied layer by layer\n"
        msg += "pass a functional or sequential model, or write the layers of gennorm where the model makes its own"
        raise InputError(msg, code="K006")
    pairs = [(getattr(keras.layers, name), getattr(layers, name)) for name in layers.__all__]
    becomes = dict(pairs if to == "gennorm" else [(new, old) for old, new in pairs])

    def copied(layer: Any) -> Any:
        kind = becomes.get(type(layer), type(layer))
        return kind.from_config(layer.get_config())

    copy = keras.models.clone_model(model, clone_function=copied, recursive=True)
    copy.set_weights(model.get_weights())
    for layer in copy._flatten_layers():
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
    if model.compiled:
        copy.compile_from_config(model.get_compile_config())
    return copy
