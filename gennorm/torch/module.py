"""The layer as a module: parameters, buffers, train and eval."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, from_numpy, is_grad_enabled, nn, strided
from torch.autograd import forward_ad
from torch.compiler import is_dynamo_compiling

import gennorm
from gennorm.engine.threads import SHARED
from gennorm.errors import ConfigError, InitializationError
from gennorm.layer.statistics import initial, is_one_example, required
from gennorm.moments import Moments
from gennorm.spec import levels
from gennorm.spec.config import LayerConfig, kept_shape, parameter_shape, resolve_config
from gennorm.torch import functional, operators
from gennorm.torch._autograd import Adopted, Job, arrays, record, threads_for, transforms
from gennorm.torch.distributed import group_name
from gennorm.torch.functional import require
from gennorm.torch.operators import modes, tracing
from gennorm.torch.tensors import HALVES, Held, array_of, moments_of, require_tensor, tensor_of

__all__ = ["DERIVED", "Normalization", "NormalizationLayer"]

PARAMETERS = {"scaling": "weight", "biases": "bias"}  # the core's names and torch's
BUFFERS = ("mean", "variance")
DERIVED = ("core", "_job", "_adopted", "_own", "_measuring")  # what a module makes of its config, and anew in a copy


class Normalization(nn.Module):
    """What every module of gennorm is: a config, the parameters `weight` and `bias`, and a core that computes.

    A subclass sets `config`, registers the parameters, and in its `forward` calls `normalize` or
    `normalize_and_measure`. Everything else follows: the core is made by `_begin`, at the latest when it is first
    needed, is handed the parameters' own memory, and anew when they lie elsewhere; it is made anew where the module is
    copied or unpickled.

    Attributes
    ----------
    config : LayerConfig
        Says how to normalize. Its `statistics` are not looked at: moments are the input's, or given.
    """

    config: LayerConfig
    core: gennorm.NormalizationLayer
    _present: tuple[bool, ...] | None = None  # which parameters the core was made for; None before there is a core
    _adopted = Adopted()  # nothing yet

    def _begin(self) -> None:
        """Make what is derived from the config and from which parameters there are."""
        present = [self._parameters.get(key) is not None for key in PARAMETERS.values()]
        modes: dict[str, Any] = {
            name: "Automatic" if there else None for name, there in zip(PARAMETERS, present, strict=True)
        }
        config = replace(self.config, **modes)
        self._present = tuple(present)
        self._text = json.dumps(config.to_dict())
        self.core = gennorm.NormalizationLayer.from_config(replace(config, statistics="input").to_dict())
        self._job = Job(self.core, self.config.method)
        self._adopted = Adopted()
        self._own = replace(self._job, adopted=self._adopted)
        self._measuring = replace(self._own, measures=True)

    def normalize(self, x: Tensor, mask: Tensor | None = None, moments: Held | None = None) -> Tensor:
        """Normalize a tensor by its own moments, or by a mean and a variance that are given."""
        parameters = self._parameters
        weight, bias = parameters.get("weight"), parameters.get("bias")
        alone = mask is None and self._settled(x, weight, bias)
        if alone and not (
            is_grad_enabled()
            and (
                x.requires_grad
                or (weight is not None and weight.requires_grad)
                or (bias is not None and bias.requires_grad)
            )
        ):
            try:
                array = x.numpy()
            except (TypeError, RuntimeError):  # bfloat16, which NumPy lacks, or a gradient; or no memory to have
                array = array_of(require_tensor(x, "the input"))
            else:
                settled = self.core.settled(array) if moments is None else None
                if settled is not None and array.size < SHARED:
                    return from_numpy(settled.shortcut.normalize(array))
                if settled is not None:
                    with threads_for(x):
                        return from_numpy(settled.shortcut.normalize(array))
            with threads_for(x):
                return tensor_of(self.core(array, moments=None if moments is None else moments.arrays()))
        if not alone:
            if not isinstance(x, Tensor):
                require_tensor(x, "the input")
            self._require_present(weight, bias)
        laid = None if moments is None else moments.stacked(unbiased=self.config.unbiased)
        if alone:
            return record(self._own, x, weight, bias, None, laid)[0]
        if operators.traced(x):
            return operators.normalize(x, weight, bias, mask, laid, self._text, None)[0]
        return functional.normalize(self._job, x, weight, bias, mask=mask, moments=laid)

    def normalize_and_measure(
        self, x: Tensor, *, mask: Tensor | None = None, group: str | None = None
    ) -> tuple[Tensor, Moments | Tensor]:
        """Normalize a tensor by its own moments and return them, for `_fold`; see the function of this name.

        With a `group` of processes, by the moments of the inputs of all of them.
        """
        weight, bias = self._parameters.get("weight"), self._parameters.get("bias")
        if mask is None and group is None and self._settled(x, weight, bias):
            y, _, measured = record(self._measuring, x, weight, bias, None, None)
            return y, measured
        if not isinstance(x, Tensor):
            require_tensor(x, "the input")
        self._require_present(weight, bias)
        if operators.traced(x):
            y, _, measured = operators.normalize(x, weight, bias, mask, None, self._text, group)
            return y, measured.detach()
        job = self._job if group is None else replace(self._job, group=group)
        return functional.normalize_and_measure(job, x, weight, bias, mask=mask)

    def _settled(self, x: Any, weight: Tensor | None, bias: Tensor | None) -> bool:
        """Whether nobody but autograd looks at what is computed; the core has the parameters then.

        A small call is mostly Python, and this is what comes before the core.
        """
        if (
            type(x) is not Tensor
            or not x.is_cpu
            or x.layout is not strided
            or is_dynamo_compiling()
            or modes()
            or tracing() is not None
            or transforms()
            or forward_ad._current_level >= 0
        ):
            return False
        if x.dtype is not self._adopted.dtype or not self._adopted.has(weight, bias):
            self._adopt(x, weight, bias)
        return True

    def _fold(
        self,
        x: Tensor,
        measured: Moments | Tensor,
        mean: Tensor | None,
        variance: Any,
        *,
        group: str | None = None,
        unbiased: bool = False,
    ) -> None:
        """Fold the moments of a batch into these buffers; see `gennorm.torch.functional.fold`."""
        if operators.traced(x):
            found = operators.fold(mean, variance, measured, list(x.shape), self._text, group, unbiased)
        else:
            batch = moments_of(measured, self.config.method) if isinstance(measured, Tensor) else measured
            found = functional.fold(self.config, mean, variance, batch, tuple(x.shape), group, unbiased)
        for buffer, value in zip((mean, variance), found, strict=True):
            if buffer is not None:
                buffer.copy_(value)

    def _adopt(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> None:
        """Hand the parameters' memory to the core, and remember where it is; for inputs of this dtype."""
        self._adopted.dtype = None
        require(x, weight, bias, None)
        self._require_present(weight, bias)
        scaling, biases = arrays(weight, bias)
        self.core.adopt(scaling=scaling, biases=biases)
        self._adopted.take(x.dtype, weight, bias)

    def _require_present(self, weight: Tensor | None, bias: Tensor | None) -> None:
        """Make the core where there is none, and anew where a parameter has been taken away or put there since."""
        if self._present != (weight is not None, bias is not None):
            self._begin()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._begin()


class NormalizationLayer(Normalization):
    r"""A module that normalizes over any levels, with parameters on any levels.

    The arguments are those of `gennorm.NormalizationLayer`, where they are explained; `scaling` is the parameter
    ``weight`` and `biases` the parameter ``bias``. The sizes of the parameters have to be known from the arguments.

    With ``statistics="moving"`` the buffers ``mean`` and ``variance`` hold the moving moments: in training the module
    normalizes by the moments of its input and folds them in, in evaluation it normalizes by the buffers.
    With ``statistics="dataset"`` the same buffers are those of the data that `adapt` was given. Buffers are float64
    where the parameters are, and else float32, whatever half type the module is taken to.

    Parameters
    ----------
    aggregation_levels, scaling_levels, group_number, method, unbiased, epsilon, **keywords
        As those of `gennorm.NormalizationLayer`. Arrays may be tensors, and ``dtype`` a `torch.dtype`.
    synchronized : bool, default False
        Whether the batch is spread over the processes of `torch.distributed`. Where level 0 is aggregated, the moments
        are those of all processes together, and so are the gradients; where it is not, only what is folded is.
    process_group : ProcessGroup, optional
        Of which processes; of all, if not given. It needs a backend for tensors on the CPU, such as gloo.

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
            parameter_shape(config)  # raises, naming the level whose size is not known
        arrays = (made.scaling, made.biases)
        super().__init__()
        self.config = config
        for name, array in zip(PARAMETERS.values(), arrays, strict=True):
            self.register_parameter(name, None if array is None else nn.Parameter(tensor_of(array).clone()))
        self._begin()
        if not config.trainable:
            self.requires_grad_(False)
        self.synchronized, self.process_group = synchronized, process_group
        self._plain = config.statistics == "input" and not synchronized
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
        if self._plain:
            return self.normalize(x, mask)
        statistics = self.config.statistics
        if statistics == "input":
            return self.normalize_and_measure(x, mask=mask, group=self._group(x))[0]
        if statistics == "moving" and self.training and self.config.trainable:
            group = self._group(x)
            y, measured = self.normalize_and_measure(x, mask=mask, group=group if self._across else None)
            self._fold(x, measured, self.mean, self.variance, group=None if self._across else group)
            return y
        if self.variance is None:
            required(None)  # raises
        moments = Held(self.mean, cast("Tensor", self.variance))
        if statistics == "dataset" and is_one_example(self.config, tuple(x.shape)):
            return self.normalize(x[None], mask=mask, moments=moments)[0]
        return self.normalize(x, mask=mask, moments=moments)

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
        layer = gennorm.NormalizationLayer.from_config(json.loads(self._text))
        arguments = repr(layer).removeprefix("NormalizationLayer(")[:-1]
        return arguments + (", synchronized=True" if self.synchronized else "")

    def _group(self, x: Tensor) -> str | None:
        """The name of the group of processes to synchronize with, if there are others."""
        if not self.synchronized:
            return None
        if self._across:
            resolved = resolve_config(self.config, tuple(x.shape))
            if resolved.groups[0] > 1:
                msg = f"level 0, the batch, is split into {resolved.groups[0]} groups, and processes hold parts of it\n"
                msg += "leave out its groups or synchronized=True: every process is a group then"
                raise ConfigError(msg, code="C121")
        return group_name(self.process_group)

    def _hold(self, moments: gennorm.Moments | None) -> None:
        """Let the buffers have these values."""
        if moments is None:
            return
        spread = moments.mean_square() if moments.mean is None else moments.variance()
        for name, array in (("mean", moments.mean), ("variance", spread)):
            if array is not None:
                dtype = torch.float64 if self.config.dtype == "float64" else torch.float32
                self._buffers[name] = torch.tensor(array, dtype=dtype)

    def _apply(self, fn: Any, recurse: bool = True) -> NormalizationLayer:
        # Moving moments in half precision stand still: what a batch adds to them is less than their rounding.
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.dtype in HALVES:
                self._buffers[name] = cast("Tensor", before[name]).to(buffer.device, torch.float32)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        # What a data set has told another module can be loaded into one that has not seen it.
        for name in BUFFERS:
            found = state_dict.get(prefix + name)
            if found is not None and self._buffers[name] is None and self.config.statistics == "dataset":
                self._buffers[name] = torch.empty_like(found)
        super()._load_from_state_dict(state_dict, prefix, *others)


def _batches(data: Any) -> Any:
    """Tensors as arrays, one by one."""
    if data is None or isinstance(data, Tensor):
        return None if data is None else array_of(data)
    return (array_of(batch) if isinstance(batch, Tensor) else batch for batch in data)
