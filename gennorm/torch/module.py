"""The layer as a module: parameters, buffers, train and eval."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx.proxy import Proxy

import gennorm
from gennorm.errors import ConfigError, FrozenError, InitializationError, ParameterError, TensorError, UnknownNameError
from gennorm.extend import initial, is_one_example, kept_shape, parameter_shape, required, resolve_config
from gennorm.layer.parameters import Parameters
from gennorm.layer.state import State
from gennorm.layer.statistics import checked, require_dataset, require_inverse
from gennorm.layer.texts import represent
from gennorm.moments import are_constant, spread_of
from gennorm.spec import levels
from gennorm.spec.config import LayerConfig
from gennorm.torch.computation import TensorComputation
from gennorm.torch.distributed import process_group
from gennorm.torch.moments import Moments, mean_and_variance, moments_dtype
from gennorm.torch.tensors import array_of, is_eager, is_plain, tensor_of

__all__ = ["Normalization", "NormalizationLayer", "text_of"]

PARAMETERS = {"scaling": "weight", "biases": "bias"}  # the core's names and torch's
BUFFERS = ("mean", "variance", "count")
CHANGEABLE = ("epsilon", "epsilon_placement", "momentum", "trainable", "unbiased", "learning_rate_multipliers")
FIXED = (
    "aggregation_levels",
    "scaling_levels",
    "group_number",
    "method",
    "input_shape",
    "batched",
    "statistics",
    "constant",
)
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

    def _gennorm_recorded(self, x: Any, *others: Any, **named: Any) -> Any:
        """Record the call of a proxy of `torch.fx.symbolic_trace`, as for torch's layers; None for other inputs."""
        tracer: Any = None if type(x) is Tensor or not isinstance(x, Proxy) else x.tracer
        if tracer is None or self is tracer.root:
            return None
        return tracer.create_proxy("call_module", tracer.path_of_module(self), (x, *others), named)


def _fixed(name: str) -> FrozenError:
    msg = f"{name} of a layer cannot be changed\n"
    msg += f"make another layer: NormalizationLayer(..., {name}=...)"
    return FrozenError(msg, code="T040")


def _setting(name: str) -> Any:
    """Return a property for a setting: it can be read, and assigned where the layer stays the same kind of layer."""

    def get(self: Any) -> Any:
        if name == "momentum" and self._cumulative:
            return None
        return self.config.arguments()[name]

    def change(self: Any, value: Any) -> None:
        if name in FIXED:
            raise _fixed(name)
        if name == "momentum" and value is None:  # as torch.optim.swa_utils.update_bn assigns it
            self._cumulative = True
            return
        self.config = LayerConfig.make(**{**self.config.arguments(), name: value})
        self._cumulative = self._cumulative and name != "momentum"
        self._gennorm_begin()

    return property(get, change, doc=f"The setting `{name}` of `gennorm.NormalizationLayer`.")


class NormalizationLayer(Normalization):
    r"""A module that normalizes over any levels, with parameters on any levels.

    The arguments are those of `gennorm.NormalizationLayer`, where they are explained; `scaling` is the parameter
    ``weight`` and `biases` the parameter ``bias``. The sizes of the parameters have to be known from the arguments.

    With ``statistics="moving"`` the buffers ``mean`` and ``variance`` hold the moving moments: in training the module
    normalizes by the moments of its input and updates the moving ones, in evaluation it normalizes by the buffers. The
    buffer ``batches`` counts the updates.
    With ``statistics="dataset"`` the buffers ``mean``, ``variance`` and ``count`` are the moments of the data that
    `adapt` was called with. The buffers of moments are float64 in a module of any dtype, and float32 on a device that
    has no float64.

    The settings `epsilon`, `epsilon_placement`, `momentum`, `trainable`, `unbiased` and `learning_rate_multipliers` can
    be assigned.

    Parameters
    ----------
    aggregation_levels, scaling_levels, group_number, method, unbiased, epsilon, **keywords
        As those of `gennorm.NormalizationLayer`. Arrays may be tensors, and ``dtype`` a `torch.dtype`.
    synchronized : bool, default False
        Whether the batch is spread over the processes of `torch.distributed`. Where level 0 is aggregated, the moments
        are those of all processes together, and so are the gradients; where it is not, only the moving moments are.
    process_group : ProcessGroup, optional
        The processes; all of them, if not given. It needs a backend for the device of the tensors, such as gloo.

    Raises
    ------
    InitializationError
        The size of a scaling level, or of a level of the moving moments, is not known.
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
    count: Tensor | None
    batches: Tensor | None

    def __new__(cls, *arguments: Any, **keywords: Any) -> Any:
        """Make an instance; with moving statistics, of a class that torch takes for a batch norm."""
        statistics = keywords.get("statistics")
        return super().__new__(_MovingLayer if cls is NormalizationLayer and statistics == "moving" else cls)

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
        nn.Module.__init__(self)
        self.config, self._cumulative = config, False
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
        for name in BUFFERS:
            self.register_buffer(name, None)
        self.register_buffer("batches", torch.tensor(0) if config.statistics == "moving" else None)
        self._hold(initial(config, shape))

    def _gennorm_settings(self) -> LayerConfig:
        return self.config

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        scaling: Tensor | None = None,
        biases: Tensor | None = None,
    ) -> Tensor:
        """Normalize an example, or every example of a batch.

        Parameters
        ----------
        x : Tensor
            Of `input_shape`, or with one axis more, a batch; of floats, dense, with any strides.
        mask : Tensor of bool, optional
            Broadcasts to the input; what is True counts in the statistics. Everything is normalized.
        scaling, biases : Tensor, optional
            Used in this call instead of `weight` and `bias`: of the shape of the parameters, or with an axis for the
            examples of the batch in front (adaptive instance norm, FiLM). They may have a gradient.

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

        Examples
        --------
        >>> layer = NormalizationLayer(2, 1, input_shape=(1, 2), scaling=None, biases=None, epsilon=0)
        >>> styles = torch.tensor([[3.0], [5.0]])
        >>> layer(torch.tensor([[[0.0, 2.0]], [[0.0, 2.0]]]), scaling=styles)
        tensor([[[-3.,  3.]],
        <BLANKLINE>
                [[-5.,  5.]]])
        """
        named = {key: value for key, value in (("scaling", scaling), ("biases", biases)) if value is not None}
        recorded = self._gennorm_recorded(x, mask, **named)
        if recorded is not None:
            return recorded
        weight, bias = self._parameters_of(scaling, biases)
        config, statistics, computation = self.config, self.config.statistics, self._gennorm
        if statistics == "input":
            group = self._group(x) if self.synchronized else None
            return computation.normalize(x, weight, bias, mask=mask, group=group)
        if statistics == "moving" and self.training and config.trainable:
            return self._train(x, weight, bias, mask)
        moments = self._held()
        if statistics == "dataset" and is_one_example(config, tuple(x.shape)):
            return computation.normalize(x[None], weight, bias, mask=mask, moments=moments)[0]
        return computation.normalize(x, weight, bias, mask=mask, moments=moments)

    def _train(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        """Normalize by the moments of the input, and update the moving ones."""
        batches = cast("Tensor", self.batches)
        momentum: float | Tensor = self.config.momentum
        if self._cumulative:  # each batch counts as much as every one before it
            momentum = (batches + 1).to(moments_dtype(batches.device)).reciprocal()
        moving, group = (self.mean, cast("Tensor", self.variance)), self._group(x)
        y = self._gennorm.normalize_and_fold(
            x, weight, bias, moving, momentum, mask=mask, group=group, across=self._across
        )
        batches.add_(1)
        return y

    # Moments ---------------------------------------------------------------------------------------------------------

    def measure(self, x: Tensor, mask: Tensor | None = None) -> Moments:
        """Return the moments of the slices of a tensor: what the layer would normalize it by.

        Parameters
        ----------
        x : Tensor
            An example or a batch.
        mask : Tensor of bool, optional
            Broadcasts to the input; what is True counts.

        Returns
        -------
        Moments
            Tensors of float64, with one axis for each level that is kept, the batch included. They are differentiable
            where `x` has a gradient.

        Raises
        ------
        GennormError
            As in a call.

        Examples
        --------
        >>> NormalizationLayer(-1, (), scaling=None, biases=None).measure(torch.tensor([[1.0, 3.0], [2.0, 2.0]])).mean
        tensor([2., 2.], dtype=torch.float64)
        """
        x = x[None] if self._is_single(x) else x
        return Moments(*self._gennorm.measure(x, mask))

    def apply(self, x: Any, moments: Any = None) -> Any:
        """Normalize a tensor by given moments. The output is differentiable by both and by the parameters.

        A call with a function is `torch.nn.Module.apply`.

        Parameters
        ----------
        x : Tensor
            An example or a batch.
        moments : Moments, gennorm.Moments, or tuple of Tensor
            For each slice of `x`, or fewer that broadcast to that shape: what `measure` returned, or a pair of mean and
            variance.

        Returns
        -------
        Tensor

        Raises
        ------
        ParameterError
            The moments do not fit the slices of `x`.
        GennormError
            As in a call.

        Examples
        --------
        >>> layer = NormalizationLayer(1, (), epsilon=0, scaling=None, biases=None)
        >>> layer.apply(torch.tensor([1.0, 2.0, 3.0]), (torch.tensor(1.0), torch.tensor(4.0)))
        tensor([0.0000, 0.5000, 1.0000])
        """
        if moments is None and not isinstance(x, Tensor):
            return super().apply(x)
        weight, bias = self._parameters_of(None, None)
        given = mean_and_variance(moments, self.config, x.device)
        single = self._is_single(x)
        y = self._gennorm.apply(x[None] if single else x, weight, bias, given)
        return y[0] if single else y

    def inverse(self, y: Tensor, moments: Any = None) -> Tensor:
        r"""Return the input whose normalization a tensor is; differentiable with respect to everything.

        .. math:: x = \frac{y - b}{s} \sqrt{\sigma^2 + \epsilon} + \mu

        Parameters
        ----------
        y : Tensor
            An output of the layer.
        moments : Moments, gennorm.Moments, or tuple of Tensor, optional
            What the input was normalized by, as in `apply`; those that the layer holds, if not given.

        Returns
        -------
        Tensor
            Where the divisor is 0, the mean.

        Raises
        ------
        ParameterError
            A scaling is 0 (seen on a CPU only; elsewhere the result is not finite); there are no moments, or they do
            not fit the slices of `y`.
        GennormError
            As in a call.

        Examples
        --------
        >>> layer = NormalizationLayer(-1, (), scaling=None, biases=None)
        >>> x = torch.tensor([[1.0, 2.0, 6.0]])
        >>> layer.inverse(layer(x), layer.measure(x))
        tensor([[1.0000, 2.0000, 6.0000]])
        """
        weight, bias = self._parameters_of(None, None)
        seen = weight is not None and is_eager() and is_plain(weight)
        require_inverse(self.config, moments, array_of(cast("Tensor", weight)) if seen else None)
        given = self._held() if moments is None else mean_and_variance(moments, self.config, y.device)
        single = self._is_single(y)
        x = self._gennorm.invert(y[None] if single else y, weight, bias, given, held=moments is None)
        return x[0] if single else x

    @property
    def moments(self) -> Moments | None:
        """The held moments: moving ones with the count 1, or those of a data set; None if there are none.

        `Moments` of tensors or of the core can be assigned, and None.

        Examples
        --------
        >>> layer = NormalizationLayer("{0, 1;;-2}", batched=True, statistics="dataset", scaling=None, biases=None)
        >>> layer.moments = layer.adapt([torch.tensor([[1.0], [3.0]])]).moments + layer.moments
        >>> layer.count, layer.mean
        (tensor([4.], dtype=torch.float64), tensor([2.], dtype=torch.float64))
        """
        if self.variance is None:
            return None
        count = torch.ones_like(self.variance) if self.count is None else self.count
        return Moments(count, self.mean, self.variance * count)

    @moments.setter
    def moments(self, value: Any) -> None:
        if value is None and self.config.statistics == "dataset":
            self.reset_moments()
            return
        found = value.to_core() if isinstance(value, Moments) else value
        self._hold(checked(found, self.config, kept_shape(self.config)))

    def reset_parameters(self) -> None:
        """Set the weight to ones, the bias to zeros, and the moments to what they were at first."""
        for name, value in (("weight", 1.0), ("bias", 0.0)):
            parameter = self._gennorm_parameter(name)
            if parameter is not None:
                nn.init.constant_(parameter, value)
        self.reset_moments()

    def reset_moments(self) -> NormalizationLayer:
        """Set the moments that the layer held when it was made: mean 0 and variance 1, or none.

        Returns
        -------
        NormalizationLayer
            The module itself.

        Examples
        --------
        >>> layer = NormalizationLayer("{0, 1}", batched=True, statistics="dataset", scaling=None, biases=None)
        >>> layer.adapt(torch.ones(3, 4)).reset_moments().moments is None
        True
        """
        self._hold(initial(self.config, kept_shape(self.config)))
        if self.batches is not None:
            self.batches.zero_()
        return self

    def adapt(self, data: Any, *, mask: Any = None, reset: bool = True) -> NormalizationLayer:
        """Take the moments of a data set, in one pass.

        Parameters
        ----------
        data : Tensor, or iterable of Tensor
            A batch of everything, or batches of any sizes, from a `DataLoader` or a generator.
        mask : Tensor of bool, or iterable of them, optional
            True counts.
        reset : bool, default True
            False adds the data to the moments that the layer holds.

        Returns
        -------
        NormalizationLayer
            The module itself.

        Raises
        ------
        ParameterError
            With ``reset=False``: it is not known how many values the moments of the layer count.
        GennormError
            As `gennorm.NormalizationLayer.adapt`.

        Examples
        --------
        >>> layer = NormalizationLayer(
        ...     "{0, 1;;-2}", batched=True, statistics="dataset", scaling=None, biases=None, epsilon_placement="floor"
        ... )
        >>> layer.adapt([torch.tensor([[0.0, 10.0]]), torch.tensor([[2.0, 30.0]])]).mean
        tensor([ 1., 20.], dtype=torch.float64)
        >>> layer(torch.tensor([[0.0, 30.0]]))
        tensor([[-1.,  1.]])
        >>> layer.adapt(torch.tensor([[4.0, 50.0]]), reset=False).mean
        tensor([ 2., 30.], dtype=torch.float64)
        """
        config = replace(self.config, scaling=None, biases=None)
        core = gennorm.NormalizationLayer.from_config(config.to_dict())
        require_dataset(config)
        if not reset and self.variance is not None:
            if self.count is None:
                msg = (
                    "the layer holds moments from a state dict without their count, and nothing can be added to them\n"
                )
                msg += "assign layer.moments, which have a count, or call adapt(data) without reset=False"
                raise ParameterError(msg, code="T032")
            core.moments = cast("Moments", self.moments).to_core()
        self._hold(core.adapt(_batches(data), mask=_batches(mask), reset=reset).moments)
        return self

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return the parameters as groups for an optimizer, with `learning_rate_multipliers` applied.

        Parameters
        ----------
        learning_rate : float
            That of the model.

        Returns
        -------
        list of dict
            One for each parameter, with the keys ``"params"`` and ``"lr"``.

        Examples
        --------
        >>> layer = NormalizationLayer(-1, "Same", input_shape=(4,), learning_rate_multipliers={"biases": 2.0})
        >>> optimizer = torch.optim.SGD([*layer.parameter_groups(0.1), {"params": []}], lr=0.1)
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.1, 0.2, 0.1]
        """
        factors = self.config.learning_rate_multipliers
        found = []
        for name, key in PARAMETERS.items():
            parameter = self._gennorm_parameter(key)
            if parameter is not None:
                factor = dict(factors).get(name, 1.0) if isinstance(factors, tuple) else factors
                found.append({"params": [parameter], "lr": learning_rate * (1.0 if factor is None else factor)})
        return found

    def extra_repr(self) -> str:
        """Return the arguments that make the module."""
        modes = {
            name: None if self._gennorm_parameter(key) is None else "Automatic" for name, key in PARAMETERS.items()
        }
        arguments = text_of(replace(self.config, **modes)).removeprefix("NormalizationLayer(")[:-1]  # type: ignore[arg-type]
        return arguments + (", synchronized=True" if self.synchronized else "")

    def _get_name(self) -> str:
        return "NormalizationLayer" if type(self) is _MovingLayer else super()._get_name()  # type: ignore[no-untyped-call]

    def _parameters_of(self, scaling: Tensor | None, biases: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the parameters of a call, which may be passed to it."""
        return (
            self._gennorm_parameter("weight") if scaling is None else scaling,
            self._gennorm_parameter("bias") if biases is None else biases,
        )

    def _is_single(self, x: Tensor) -> bool:
        """Return whether a tensor is one example of a layer that holds the moments of batches."""
        return self.config.statistics == "dataset" and is_one_example(self.config, tuple(x.shape))

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

    def _held(self) -> tuple[Tensor | None, Tensor]:
        """Return the held mean and variance; with ``constant="one"`` the variance is 1 in constant slices."""
        mean, variance = self.mean, self.variance
        if variance is None:
            required(None)  # raises
        found = cast("Tensor", variance)
        if self.config.constant == "one":
            counted: Any = 1.0 if self.count is None else self.count
            found = torch.where(are_constant(counted, mean, found), 1.0, found)
        return mean, found

    def _hold(self, moments: gennorm.Moments | None) -> None:
        """Set the buffers to moments of the core, on the device where the module is."""
        values: tuple[Any, ...] = (None, None, None)
        if moments is not None:
            counted = moments.count if self.config.statistics == "dataset" else None
            values = moments.mean, spread_of(moments), counted
        device = next((one.device for one in (*self.parameters(), *self.buffers())), torch.device("cpu"))
        for name, array in zip(BUFFERS, values, strict=True):
            held = self._buffers[name]
            if array is not None and held is not None and held.shape == array.shape:
                held.copy_(torch.tensor(array))  # the same tensor, for those that refer to it
            else:
                tensor = None if array is None else torch.tensor(array, dtype=moments_dtype(device), device=device)
                self._buffers[name] = tensor

    def _apply(self, fn: Any, recurse: bool = True) -> NormalizationLayer:
        # Moments keep their dtype: in 16 bits moving ones would not move, since what a batch adds is less than their
        # rounding, and in float32 a mean that is a million deviations away is off by 0.03 deviations.
        before = dict(self._buffers)
        for name in BUFFERS:
            self._buffers[name] = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in BUFFERS:
            held = before[name]
            self._buffers[name] = None if held is None else _moved(held, fn)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # The moments of a data set can be loaded into a module that has not been adapted. Older state dicts have no
        # count and no number of batches.
        local_metadata, strict, missing, *rest = others
        for name in BUFFERS:
            found = state_dict.get(prefix + name)
            if self.config.statistics == "dataset":
                if found is None:
                    self._buffers[name] = None if name == "count" else self._buffers[name]
                elif (own := self._buffers[name]) is None or own.shape != found.shape:
                    self._buffers[name] = torch.empty_like(found, dtype=moments_dtype(found.device))
        absent: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, absent, *rest)
        missing += [key for key in absent if key != prefix + "batches"]


for _name in (*CHANGEABLE, *FIXED):
    setattr(NormalizationLayer, _name, _setting(_name))


class _MovingLayer(NormalizationLayer, nn.modules.batchnorm._BatchNorm):
    """A layer with moving statistics, which torch's tools find where they look for batch norms.

    `torch.optim.swa_utils.update_bn` resets and recomputes its moments, and FSDP leaves its buffers in their dtype.
    """

    track_running_stats = False  # for torch's loading of state dicts
    _version = 1

    __constants__: Any = ()  # torch.jit reads those of the base

    def __getattr__(self, name: str) -> Any:
        if name == "num_features":  # SyncBatchNorm.convert_sync_batchnorm reads it first
            msg = "torch.nn.SyncBatchNorm cannot compute a NormalizationLayer\n"
            msg += "make the layer with synchronized=True, and leave it out of convert_sync_batchnorm"
            raise UnknownNameError(msg, code="T041")
        return super().__getattr__(name)

    def reset_running_stats(self) -> None:
        """Reset the moving moments."""
        self.reset_moments()


def text_of(config: LayerConfig) -> str:
    """Return the call that makes a layer of the core with a config."""
    return represent(State(config, Parameters(None, None), None))


def _moved(buffer: Tensor, fn: Any) -> Tensor:
    """Return a buffer of moments on the device that a function moves tensors to, in the dtype of moments there."""
    device = fn(torch.empty(0, device=buffer.device)).device
    buffer = buffer.to(moments_dtype(device))
    moved: Tensor = fn(buffer)
    return moved if moved.dtype is buffer.dtype else buffer.to(device)


def _batches(data: Any) -> Any:
    """Return tensors as arrays, one by one."""
    if data is None or isinstance(data, Tensor):
        return None if data is None else array_of(data.detach().cpu())
    return (array_of(batch.detach().cpu()) if isinstance(batch, Tensor) else batch for batch in data)
