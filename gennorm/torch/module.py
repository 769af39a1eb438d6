"""The layer as a module: parameters, buffers, train and eval."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import gennorm
from gennorm.config import LayerConfig, kept_shape, parameter_shape, resolve_config
from gennorm.errors import InitializationError
from gennorm.statistics import folded, initial, is_one_example, required
from gennorm.torch.functional import differentiates, normalize, normalize_and_measure
from gennorm.torch.tensors import array_of, held, moments_of, require_parameter, tensor_of

__all__ = ["Normalization", "NormalizationLayer"]

PARAMETERS = {"scaling": "weight", "biases": "bias"}  # the core's names and torch's


class Normalization(nn.Module):
    """What every module of gennorm is: a config, the parameters `weight` and `bias`, and a core that computes.

    A subclass calls `super().__init__(config, weight, bias)` and, in its `forward`, `normalize` or
    `normalize_and_measure`. Everything else follows: the core is handed the parameters' own memory, and anew when they
    lie elsewhere; it is made anew from the config where the module is copied or unpickled.

    Parameters
    ----------
    config : LayerConfig
        Says how to normalize. Its `statistics` are not looked at: moments are the input's, or given.
    weight, bias : Tensor or None
        Become the parameters; None for one that is absent.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, config: LayerConfig, weight: Tensor | None, bias: Tensor | None) -> None:
        super().__init__()
        self.config = config
        self.register_parameter("weight", None if weight is None else nn.Parameter(weight))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias))
        self._begin()

    def _begin(self) -> None:
        modes: dict[str, Any] = {
            name: None if self._parameters[key] is None else "Automatic" for name, key in PARAMETERS.items()
        }
        config = replace(self.config, statistics="input", **modes)
        self.core = gennorm.NormalizationLayer.from_config(config.to_dict())
        self._adopted: tuple[Any, ...] | None = None
        self._taken: set[torch.dtype] = set()

    def normalize(self, x: Tensor, *, mask: Tensor | None = None, moments: Tensor | None = None) -> Tensor:
        """Normalize a tensor by its own moments, or by given ones; see `gennorm.torch.functional.normalize`."""
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        if mask is None and moments is None and type(x) is Tensor and not differentiates(x, weight, bias):
            try:
                array = x.numpy()
            except (TypeError, RuntimeError):
                pass  # no memory that an array can have, or a dtype that NumPy lacks: another way, or an error there
            else:
                if x.dtype in self._taken and self._lie(weight, bias) == self._adopted:
                    return torch.from_numpy(self.core(array))
                self._adopt(x, weight, bias)
        return normalize(self.core, x, weight, bias, mask=mask, moments=moments)

    def normalize_and_measure(self, x: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normalize a tensor by its own moments and return them; see the function of this name."""
        return normalize_and_measure(self.core, x, self.weight, self.bias, mask=mask)

    @staticmethod
    def _lie(weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
        """Where the parameters lie in memory, and how."""
        return (
            None if weight is None else (weight.data_ptr(), weight.stride(), weight.dtype),
            None if bias is None else (bias.data_ptr(), bias.stride(), bias.dtype),
        )

    def _adopt(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        """Hand the parameters' memory to the core, if they can be taken with such an input."""
        self._taken = set()
        for name, value in (("weight", weight), ("bias", bias)):
            if value is not None:
                require_parameter(value, name, x)
        self.core.adopt(
            scaling=None if weight is None else array_of(weight), biases=None if bias is None else array_of(bias)
        )
        self._adopted, self._taken = self._lie(weight, bias), {x.dtype}

    def extra_repr(self) -> str:
        """Return the arguments that make the layer."""
        config = replace(self.config, scaling=self.core.to_config()["scaling"], biases=self.core.to_config()["biases"])
        return repr(gennorm.NormalizationLayer.from_config(config.to_dict())).removeprefix("NormalizationLayer(")[:-1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in {"core", "_adopted", "_taken"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._begin()


class NormalizationLayer(Normalization):
    r"""A module that normalizes over any levels, with parameters on any levels.

    The arguments are those of `gennorm.NormalizationLayer`, where they are explained; `scaling` is the parameter
    ``weight`` and `biases` the parameter ``bias``. The sizes of the parameters have to be known from the arguments.

    With ``statistics="moving"`` the buffers ``mean`` and ``variance`` hold the moving moments: in training the module
    normalizes by the moments of its input and folds them in, in evaluation it normalizes by the buffers.
    With ``statistics="dataset"`` the same buffers are those of the data that `adapt` was given.

    Parameters
    ----------
    aggregation_levels, scaling_levels, group_number, method, unbiased, epsilon, **keywords
        As those of `gennorm.NormalizationLayer`. Arrays may be tensors, and ``dtype`` a `torch.dtype`.

    Raises
    ------
    InitializationError
        The size of a scaling level, or of a level that moving moments keep, is not known.
    GennormError
        As `gennorm.NormalizationLayer`.

    Examples
    --------
    >>> layer = NormalizationLayer("All", 1, {1: 2}, input_shape=(4, None, None))
    >>> y = layer(torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0)))
    >>> y.unflatten(1, (2, 2)).mean((2, 3, 4)).abs().max() < 1e-6
    tensor(True)
    """

    mean: Tensor | None
    variance: Tensor | None

    def __init__(
        self,
        aggregation_levels: Any = "2;;All",
        scaling_levels: Any = "Complement",
        group_number: Any = None,
        method: str = "Standardize",
        unbiased: bool = False,
        epsilon: float = 1e-3,
        **keywords: Any,
    ) -> None:
        for name in PARAMETERS:
            if isinstance(keywords.get(name), Tensor):
                keywords[name] = array_of(keywords[name])
        if isinstance(keywords.get("dtype"), torch.dtype):
            keywords["dtype"] = str(keywords["dtype"]).removeprefix("torch.")
        made = gennorm.NormalizationLayer(
            aggregation_levels, scaling_levels, group_number, method, unbiased, epsilon, **keywords
        )
        config = LayerConfig.from_dict(made.to_config())
        if not made.initialized:
            parameter_shape(config)  # raises, naming the level whose size is not known
        arrays = (made.scaling, made.biases)
        super().__init__(config, *(None if array is None else tensor_of(array.copy()) for array in arrays))
        self.requires_grad_(config.trainable)
        shape = kept_shape(config)
        if config.statistics == "moving" and shape is None:
            msg = "the sizes of the levels that moving moments keep are not known\n"
            msg += "declare them in input_shape"
            raise InitializationError(msg, code="I020")
        self.register_buffer("mean", None)
        self.register_buffer("variance", None)
        self._hold(initial(config, shape))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize an example, or every example of a batch.

        Parameters
        ----------
        x : Tensor
            Of `input_shape`, or with one axis more, a batch; of floats, in the memory of the CPU, however it lies.
        mask : Tensor of bool, optional
            Broadcasts to the input; what is True counts in the statistics. Everything is normalized.

        Returns
        -------
        Tensor
            Of the shape, dtype and memory order of `x`.

        Raises
        ------
        TensorError
            A tensor is on another device, sparse, or of a dtype that is not normalized.
        GennormError
            As a call of `gennorm.NormalizationLayer`.
        """
        statistics = self.config.statistics
        if statistics == "input":
            return self.normalize(x, mask=mask)
        if statistics == "moving" and self.training and self.config.trainable:
            y, measured = self.normalize_and_measure(x, mask=mask)
            self._fold(x, measured)
            return y
        if self.variance is None:
            required(None)
        moments = held(self.mean, self.variance, unbiased=self.config.unbiased)
        if statistics == "dataset" and is_one_example(self.config, tuple(x.shape)):
            return self.normalize(x[None], mask=mask, moments=moments)[0]
        return self.normalize(x, mask=mask, moments=moments)

    def _fold(self, x: Tensor, measured: Tensor) -> None:
        """Fold the moments of a batch into the moving ones."""
        method = self.config.method
        moving = moments_of(held(self.mean, self.variance), method)
        resolved = resolve_config(self.config, tuple(x.shape))
        self._hold(folded(moving, moments_of(measured, method), resolved, self.config))

    def _hold(self, moments: gennorm.Moments | None) -> None:
        """Let the buffers have these values."""
        if moments is None:
            self.mean = self.variance = None
            return
        dtype = torch.float64 if self.config.dtype == "float64" else torch.float32
        spread = moments.mean_square() if moments.mean is None else moments.variance()
        for name, array in (("mean", moments.mean), ("variance", spread)):
            buffer = self._buffers[name]
            if array is None:
                continue
            if buffer is None or buffer.shape != array.shape:
                self._buffers[name] = torch.tensor(array, dtype=dtype)
            else:
                buffer.copy_(torch.tensor(array))
