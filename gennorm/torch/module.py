"""The layer as a module: parameters, buffers, train and eval."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx.proxy import Proxy

import gennorm
from gennorm.errors import ConfigError, InitializationError, TensorError
from gennorm.extend import initial, is_one_example, kept_shape, parameter_shape, required, resolve_config
from gennorm.layer.parameters import Parameters
from gennorm.layer.state import State
from gennorm.layer.texts import represent
from gennorm.spec import levels
from gennorm.spec.config import LayerConfig
from gennorm.torch.computation import TensorComputation
from gennorm.torch.distributed import process_group
from gennorm.torch.tensors import HALVES, array_of, tensor_of

__all__ = ["Normalization", "NormalizationLayer", "text_of"]

PARAMETERS = {"scaling": "weight", "biases": "bias"}  # the core's names and torch's
BUFFERS = ("mean", "variance")
MISSING: Any = object()


class Normalization(nn.Module):
    """The base of every module: it has parameters `weight` and `bias`, and a computation, which `_gennorm_begin` makes.

    The parameters of a call are what the attributes `weight` and `bias` are at that moment.
    """

    _gennorm: TensorComputation

    def _gennorm_settings(self) -> LayerConfig:
        """Return the config of what the module computes."""
        raise NotImplementedError

    def _gennorm_begin(self) -> None:
        self._gennorm = TensorComputation(self._gennorm_settings())

    def _gennorm_parameter(self, name: str) -> Tensor | None:
        """Return `weight` or `bias`; None where the module has none."""
        found = self._parameters.get(name, MISSING)  # saves most of the microsecond that an attribute takes
        return getattr(self, name, None) if found is MISSING else found

    def __prepare_scriptable__(self) -> Any:
        # torch.jit.script calls this before it compiles.
        msg = "torch.jit.script cannot compile the module, whose forward is Python\n"
        msg += "pass torch.jit.trace(module, x), or call torch.compile(module)"
        raise TensorError(msg, code="T012")

    def _gennorm_recorded(self, x: Any, *others: Any) -> Any:
        """Record the call of a proxy of `torch.fx.symbolic_trace`, as for torch's layers; None for other inputs."""
        tracer: Any = None if type(x) is Tensor or not isinstance(x, Proxy) else x.tracer
        if tracer is None or self is tracer.root:
            return None
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (x, *others), {})


class NormalizationLayer(Normalization):
    r"""A module that normalizes over any levels, with parameters on any levels.

    The arguments are those of `gennorm.NormalizationLayer`, where they are explained; `scaling` is the parameter
    ``weight`` and `biases` the parameter ``bias``. The sizes of the parameters have to be known from the arguments.

    With ``statistics="moving"`` the buffers ``mean`` and ``variance`` hold the moving moments: in training the module
    normalizes by the moments of its input and folds them in, in evaluation it normalizes by the buffers.
    With ``statistics="dataset"`` the same buffers are those of the data that `adapt` was given. Buffers are float64
    where the parameters are, and else float32, also in a module that is converted to 16 bits.

    Parameters
    ----------
    aggregation_levels, scaling_levels, group_number, method, unbiased, epsilon, **keywords
        As those of `gennorm.NormalizationLayer`. Arrays may be tensors, and ``dtype`` a `torch.dtype`.
    synchronized : bool, default False
        Whether the batch is spread over the processes of `torch.distributed`. Where level 0 is aggregated, the moments
        are those of all processes together, and so are the gradients; where it is not, only what is folded is.
    process_group : ProcessGroup, optional
        Of which processes; of all, if not given. It needs a backend for the device of the tensors, such as gloo.

    Raises
    ------
    InitializationError
        The size of a scaling level, or of a level that moving moments keep, is not known.
    ConfigError
        There is nothing to synchronize.
    GennormError
        As `gennorm.NormalizationLayer`.

    Examples
    --------
    >>> layer = NormalizationLayer("All", 1, {1: 2}, input_shape=(4, None, None))
    >>> y = layer(torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0)))
    >>> y.unflatten(1, (2, 2)).mean((2, 3, 4)).abs().max() < 1e-6
    tensor(True)
    """

    config: LayerConfig
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
        *,
        synchronized: bool = False,
        process_group: Any = None,
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
            parameter_shape(config)  # raises, and names the level whose size is not known
        super().__init__()
        self.config = config
        for name, array in zip(PARAMETERS.values(), (made.scaling, made.biases), strict=True):
            self.register_parameter(name, None if array is None else nn.Parameter(tensor_of(array).clone()))
        self._gennorm_begin()
        if not config.trainable:
            self.requires_grad_(False)
        self.synchronized, self.process_group = synchronized, process_group
        self._across = levels.uses_batch(config.aggregation_levels)
        if synchronized and (config.statistics == "dataset" or (config.statistics == "input" and not self._across)):
            if config.statistics == "input":
                msg = "there is nothing to synchronize: every example is normalized by itself\n"
                msg += "aggregate level 0, the batch, or leave out synchronized=True"
            else:
                msg = "there is nothing to synchronize: the moments are those of a data set\n"
                msg += "leave out synchronized=True"
            raise ConfigError(msg, code="C120")
        shape = kept_shape(config)
        if config.statistics == "moving" and shape is None:
            msg = "the sizes of the levels that moving moments keep are not known\ndeclare them in input_shape"
            raise InitializationError(msg, code="I020")
        self.register_buffer("mean", None)
        self.register_buffer("variance", None)
        self._hold(initial(config, shape))

    def _gennorm_settings(self) -> LayerConfig:
        return self.config

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalize an example, or every example of a batch.

        Parameters
        ----------
        x : Tensor
            Of `input_shape`, or with one axis more, a batch; of floats, dense, with any strides.
        mask : Tensor of bool, optional
            Broadcasts to the input; what is True counts in the statistics. Everything is normalized.

        Returns
        -------
        Tensor
            Of the shape, dtype and memory order of `x`.

        Raises
        ------
        TensorError
            A tensor is sparse, on another device than the others, or of a dtype that is not normalized.
        GennormError
            As a call of `gennorm.NormalizationLayer`.
        """
        recorded = self._gennorm_recorded(x, mask)
        if recorded is not None:
            return recorded
        weight, bias, computation = self._gennorm_parameter("weight"), self._gennorm_parameter("bias"), self._gennorm
        config, statistics = self.config, self.config.statistics
        if statistics == "input":
            group = self._group(x) if self.synchronized else None
            return computation.normalize(x, weight, bias, mask=mask, group=group)
        mean, variance = self.mean, self.variance
        if statistics == "moving" and self.training and config.trainable:
            return computation.normalize_and_fold(
                x,
                weight,
                bias,
                (mean, cast("Tensor", variance)),
                config.momentum,
                mask=mask,
                group=self._group(x),
                across=self._across,
            )
        if variance is None:
            required(None)  # raises
        moments = mean, cast("Tensor", variance)
        if statistics == "dataset" and is_one_example(config, tuple(x.shape)):
            return computation.normalize(x[None], weight, bias, mask=mask, moments=moments)[0]
        return computation.normalize(x, weight, bias, mask=mask, moments=moments)

    def adapt(self, data: Any, *, mask: Any = None) -> NormalizationLayer:
        """Take the moments of a data set, in one pass.

        Parameters
        ----------
        data : Tensor, or iterable of Tensor
            A batch of everything, or batches of any sizes, from a `DataLoader` or a generator.
        mask : Tensor of bool, or iterable of them, optional
            True counts.

        Returns
        -------
        NormalizationLayer
            The module itself.

        Raises
        ------
        GennormError
            As `gennorm.NormalizationLayer.adapt`.

        Examples
        --------
        >>> layer = NormalizationLayer(
        ...     "{0, 1;;-2}", batched=True, statistics="dataset", scaling=None, biases=None, epsilon_placement="floor"
        ... )
        >>> layer.adapt([torch.tensor([[0.0, 10.0]]), torch.tensor([[2.0, 30.0]])]).mean
        tensor([ 1., 20.])
        >>> layer(torch.tensor([[0.0, 30.0]]))
        tensor([[-1.,  1.]])
        """
        config = replace(self.config, scaling=None, biases=None)
        core = gennorm.NormalizationLayer.from_config(config.to_dict())
        self._hold(core.adapt(_batches(data), mask=_batches(mask)).moments)
        return self

    def extra_repr(self) -> str:
        """Return the arguments that make the module."""
        modes = {
            name: None if self._gennorm_parameter(key) is None else "Automatic" for name, key in PARAMETERS.items()
        }
        arguments = text_of(replace(self.config, **modes)).removeprefix("NormalizationLayer(")[:-1]  # type: ignore[arg-type]
        return arguments + (", synchronized=True" if self.synchronized else "")

    def _group(self, x: Tensor) -> Any:
        """Return the group of processes to synchronize with, if there are others."""
        if not self.synchronized:
            return None
        if self._across:
            resolved = resolve_config(self.config, tuple(x.shape))
            if resolved.groups[0] > 1:
                msg = f"level 0, the batch, is split into {resolved.groups[0]} groups, and processes hold parts of it\n"
                msg += "leave out its groups or synchronized=True: every process is a group then"
                raise ConfigError(msg, code="C121")
        return process_group(self.process_group)

    def _hold(self, moments: gennorm.Moments | None) -> None:
        """Set the buffers to these values."""
        if moments is None:
            return
        spread = moments.mean_square() if moments.mean is None else moments.variance()
        for name, array in (("mean", moments.mean), ("variance", spread)):
            if array is not None:
                dtype = torch.float64 if self.config.dtype == "float64" else torch.float32
                self._buffers[name] = torch.tensor(array, dtype=dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> NormalizationLayer:
        # Moving moments of 16 bits would not move: what a batch adds to them is less than their rounding.
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.dtype in HALVES:
                self._buffers[name] = cast("Tensor", before[name]).to(buffer.device, torch.float32)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # The moments of a data set can be loaded into a module that has not been adapted.
        for name in BUFFERS:
            found = state_dict.get(prefix + name)
            if found is not None and self._buffers[name] is None and self.config.statistics == "dataset":
                self._buffers[name] = torch.empty_like(found)
        super()._load_from_state_dict(state_dict, prefix, *others)


def text_of(config: LayerConfig) -> str:
    """Return the call that makes a layer of the core with a config."""
    return represent(State(config, Parameters(None, None), None))


def _batches(data: Any) -> Any:
    """Return tensors as arrays, one by one."""
    if data is None or isinstance(data, Tensor):
        return None if data is None else array_of(data)
    return (array_of(batch) if isinstance(batch, Tensor) else batch for batch in data)
