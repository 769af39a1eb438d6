"""Who takes part: gennorm, and each of its peers as its users would call it."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np

import gennorm as gn
from gennorm.cli.bench.cases import Array, Arrays, Case, Work
from gennorm.cli.bench.values import compute
from gennorm.layer.arrays import dtype_named

__all__ = ["COPY", "MODULES", "PEERS", "Competitor", "Gennorm", "Peer", "copies", "found"]

COPY = "np.copyto"
CHUNK = 8 << 20  # bytes of a data set that are taken at a time
MODULES = {Work.MODULE, Work.EVALUATION}


@dataclass(frozen=True, slots=True)
class Competitor:
    """What one of them does for one case.

    Attributes
    ----------
    call : callable
        What is timed.
    values : callable
        What it returned, as NumPy arrays by the names of `values.compute`.
    """

    call: Callable[[], Any]
    values: Callable[[Any], Mapping[str, Any]]


class Peer:
    """One of those that are compared: what it is called, what it needs, and how it is made to use so many threads."""

    name: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]
    slack: ClassVar[float] = 16  # times the error that is allowed to gennorm: torch adds up bfloat16 in bfloat16

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @classmethod
    def absence(cls) -> str | None:
        """What it lacks here, in words; None where it can take part."""
        for module in cls.modules:
            if find_spec(module) is None:
                return f"{module} is not installed"
            try:
                import_module(module)
            except ImportError as error:  # half an installation
                return f"{module} cannot be imported: {error}"
        return None

    @property
    def version(self) -> str:
        """Of its package."""
        return version(self.modules[0]).partition("+")[0]

    def competitor(self, case: Case, arrays: Arrays) -> Competitor | None:
        """What it does for a case; None where it has no such function."""
        raise NotImplementedError

    def during(self, case: Case) -> AbstractContextManager[Any]:  # noqa: ARG002
        """What surrounds its calls for a case."""
        return nullcontext()


def found(names: Mapping[str, type[Peer]], threads: int) -> tuple[list[Peer], dict[str, str]]:
    """Those that can take part, and what the others lack."""
    present, absent = [], {}
    for name, peer in names.items():
        lacks = peer.absence()
        if lacks is None:
            present.append(peer(threads))
        else:
            absent[name] = lacks
    return present, absent


# ------------------------------------------------------------------------------------------------------------- gennorm


class Gennorm(Peer):
    """The package itself."""

    name = "gennorm"
    modules = ("gennorm",)
    slack = 1

    def competitor(self, case: Case, arrays: Arrays) -> Competitor:
        """A layer, called; or its module of torch."""
        if case.work in MODULES:
            import gennorm.torch

            return _module(gennorm.torch, case, arrays)
        layer, x, dy = self.layer(case, arrays), arrays.x, arrays.dy
        if case.work is Work.BACKWARD:

            def both() -> tuple[Array, Any]:
                y, pullback = layer.vjp(x)
                return y, pullback(dy)

            return Competitor(both, _ours)
        if case.work is Work.ADAPT:
            adapted = gn.feature_norm(case.channel)
            return Competitor(
                lambda: adapted.adapt(x, progress=False),
                lambda layer: _moments(layer.moments.mean, layer.moments.variance()),
            )
        if case.work is Work.OUT:
            out = np.empty(x.shape, x.dtype)
            return Competitor(lambda: layer(x, out=out), _output)
        return Competitor(lambda: layer(x), _output)

    def during(self, case: Case) -> AbstractContextManager[Any]:
        """As torch's own module has it."""
        return Torch.tape(case) if case.work in MODULES else nullcontext()

    @staticmethod
    def layer(case: Case, arrays: Arrays) -> gn.NormalizationLayer:
        """The layer of a case."""
        if case.norm == "feature":
            return gn.feature_norm(mean=arrays.mean, variance=arrays.variance, epsilon=case.epsilon)
        channels = case.shape[case.channel]
        settings: dict[str, Any] = {"epsilon": case.epsilon, "dtype": case.dtype, "scaling": arrays.scaling}
        if case.biased:
            settings["biases"] = arrays.biases
        if case.norm in {"layer", "RMS"}:
            return (gn.rms_norm if case.norm == "RMS" else gn.layer_norm)(case.parameters, **settings)
        if case.norm == "instance":
            return gn.instance_norm(channels, channel_level=case.channel, **settings)
        if case.norm == "batch":
            inference = case.work is Work.INFERENCE
            statistics = "moving" if inference else "input"
            layer = gn.batch_norm(channels, channel_level=case.channel, statistics=statistics, **settings)
            if inference:
                layer.moments = gn.Moments.from_variance(arrays.mean, arrays.variance)
            return layer
        if case.norm == "group" and len(case.groups) == 1:
            return gn.group_norm(case.groups[0][1], channels, channel_level=case.channel, **settings)
        levels = case.channel if case.norm == "channel-wise layer" else "All"
        shape = (channels, *[None] * (len(case.shape) - 2))
        return gn.NormalizationLayer(
            levels, case.channel, dict(case.groups) or None, input_shape=shape, batched=True, **settings
        )


def _output(y: Any) -> dict[str, Any]:
    return {"output": y}


def _moments(mean: Any, variance: Any) -> dict[str, Any]:
    return {"mean": np.asarray(mean), "variance": np.asarray(variance)}


def _ours(returned: Any) -> dict[str, Any]:
    y, gradients = returned
    return {
        "output": y,
        "gradient of the input": gradients.input,
        "gradient of scaling": gradients.scaling,
        "gradient of biases": gradients.biases,
    }


# --------------------------------------------------------------------------------------------------------------- torch


class Torch(Peer):
    """Torch's own functions, called one after the other; gradients by its autograd."""

    name = "torch"
    modules = ("torch",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import torch

        torch.set_num_threads(threads)

    def during(self, case: Case) -> AbstractContextManager[Any]:
        """Without the tape, where nothing is derived."""
        return self.tape(case)

    @staticmethod
    def tape(case: Case) -> AbstractContextManager[Any]:
        """Whether calls are recorded for a gradient."""
        import torch

        return nullcontext() if case.derived else torch.inference_mode()

    def competitor(self, case: Case, arrays: Arrays) -> Competitor | None:
        """The function of the case's name, or the module."""
        if case.work is Work.OUT:
            return None
        import torch

        if case.work in MODULES:
            return _module(torch.nn, case, arrays) if self.name == Torch.name else None
        function = self.prepared(_torch_function(case))
        if case.work is Work.ADAPT:
            data = _tensor(arrays.x)
            return Competitor(lambda: function(data), lambda found: _moments(*map(_array, reversed(found))))
        names = ("scaling", "biases") if case.biased else ("scaling",)
        parameters = [_tensor(getattr(arrays, name)) for name in names]
        moments = [_tensor(arrays.mean), _tensor(arrays.variance)] if case.work is Work.INFERENCE else []
        x, back = _channels_first(case, _tensor(arrays.x))
        if case.work is not Work.BACKWARD:
            return Competitor(lambda: function(x, *parameters, *moments), lambda y: _output(_array(back(y))))
        dy = _slopes(case, arrays)
        wanted = [tensor.requires_grad_() for tensor in (x.detach(), *parameters)]

        def both() -> Any:
            y = function(*wanted)
            return y, torch.autograd.grad(y, wanted, dy)

        def values(returned: Any) -> dict[str, Any]:
            y, (dx, *others) = returned
            gradients = {f"gradient of {name}": _array(other) for name, other in zip(names, others, strict=True)}
            return {"output": _array(back(y)), "gradient of the input": _array(back(dx)), **gradients}

        return Competitor(both, values)

    def prepared(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as it is."""
        return function


class Compiled(Torch):
    """The same functions, through `torch.compile`."""

    name = "torch.compile"

    @classmethod
    def absence(cls) -> str | None:
        """What `torch.compile` needs besides torch."""
        compiler = os.environ.get("CXX", "g++")
        lacks = super().absence()
        return lacks or (None if shutil.which(compiler) else f"there is no C++ compiler ({compiler})")

    def prepared(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled for the shapes it will see."""
        import torch

        torch.compiler.reset()  # it compiles one function a few times only
        return torch.compile(function, fullgraph=True, dynamic=False)


def _torch_function(case: Case) -> Callable[..., Any]:
    """What torch's users write; channels come first."""
    import torch
    from torch.nn import functional

    eps, shape = case.epsilon, case.parameters
    if case.work is Work.ADAPT:
        return lambda x: torch.var_mean(x, case.aggregated, correction=0)
    if case.norm == "layer":
        return lambda x, scaling, biases: functional.layer_norm(x, shape, scaling, biases, eps)
    if case.norm == "RMS":
        return lambda x, scaling: functional.rms_norm(x, shape, scaling, eps)
    if case.norm == "instance":
        return lambda x, scaling, biases: functional.instance_norm(x, weight=scaling, bias=biases, eps=eps)
    if case.norm == "channel-wise layer":
        # To the end, there, and back, as ConvNeXt does.
        return lambda x, scaling, biases: functional.layer_norm(
            x.permute(0, 2, 3, 1), shape, scaling, biases, eps
        ).permute(0, 3, 1, 2)
    if case.norm == "group" and len(case.groups) == 1:
        groups = case.groups[0][1]
        return lambda x, scaling, biases: functional.group_norm(x, groups, scaling, biases, eps)
    if case.norm == "group":
        sizes, axes = case.split
        kept = [axis for axis in range(len(sizes)) if axis not in axes]
        back = [[*kept, *axes].index(axis) for axis in range(len(sizes))]

        def grouped(x: Any, scaling: Any, biases: Any) -> Any:
            """Every group to the end, which is a copy, and back."""
            moved = x.reshape(sizes).permute(*kept, *axes)
            z = functional.layer_norm(moved, moved.shape[len(kept) :], eps=eps).permute(*back).reshape(x.shape)
            return torch.addcmul(biases.reshape(case.broadcast), z, scaling.reshape(case.broadcast))

        return grouped
    if case.work is not Work.INFERENCE:
        return lambda x, scaling, biases: functional.batch_norm(x, None, None, scaling, biases, training=True, eps=eps)
    if case.norm == "feature":
        return lambda x, _, mean, variance: functional.batch_norm(x, mean, variance, eps=eps)
    return lambda x, scaling, biases, mean, variance: functional.batch_norm(x, mean, variance, scaling, biases, eps=eps)


def _module(library: Any, case: Case, arrays: Arrays) -> Competitor:
    """A module of torch's classes, in training with its gradients or in evaluation."""
    channels = case.shape[case.channel]
    settings = {"eps": case.epsilon, "dtype": _tensor(arrays.x).dtype}
    if case.norm in {"layer", "RMS"}:
        module = (library.LayerNorm if case.norm == "layer" else library.RMSNorm)(case.parameters, **settings)
    elif case.norm == "group":
        module = library.GroupNorm(case.groups[0][1], channels, **settings)
    elif case.norm == "instance":
        module = library.InstanceNorm2d(channels, affine=True, **settings)
    else:
        module = library.BatchNorm2d(channels, **settings)
    state = {
        "weight": arrays.scaling,
        "bias": arrays.biases,
        "running_mean": arrays.mean,
        "running_var": arrays.variance,
    }
    given = {name: _tensor(array) for name, array in state.items() if name in module.state_dict()}
    module.load_state_dict(given, strict=False)
    x, back = _channels_first(case, _tensor(arrays.x))
    if case.work is Work.EVALUATION:
        module.eval()
        return Competitor(lambda: module(x), lambda y: _output(_array(back(y))))
    dy, x = _slopes(case, arrays), x.detach().requires_grad_()
    wanted = [x, *module.parameters()]

    def both() -> Any:
        for tensor in wanted:
            tensor.grad = None
        y = module(x)
        y.backward(dy)
        return y

    def values(y: Any) -> dict[str, Any]:
        dx, *others = (tensor.grad for tensor in wanted)
        names = ("gradient of scaling", "gradient of biases")
        gradients = {name: _array(other) for name, other in zip(names, others, strict=False)}
        return {"output": _array(back(y)), "gradient of the input": _array(back(dx)), **gradients}

    return Competitor(both, values)


def _slopes(case: Case, arrays: Arrays) -> Any:
    """The gradient of the output as torch takes it."""
    dy, _ = _channels_first(case, _tensor(arrays.dy))
    if case.norm == "instance" and case.shape[0] == 1:
        dy = dy.contiguous()  # its gradient of the input is wrong for one image whose channels are last
    return dy


def _tensor(array: Array) -> Any:
    """The same memory."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _array(tensor: Any) -> Array:
    """The way back."""
    import torch

    tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        bits: Array = tensor.view(torch.int16).numpy()
        return bits.view(dtype_named("bfloat16"))
    found: Array = tensor.numpy()
    return found


def _channels_first(case: Case, tensor: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Torch's own view of channels that are last, and the way back."""
    if case.channel == -1 and len(case.shape) > 2:
        return tensor.movedim(-1, 1), lambda y: y.movedim(1, -1)
    return tensor, lambda y: y


# ----------------------------------------------------------------------------------------------------------------- JAX


class Jax(Peer):
    """Formulas in `jax.numpy` as Flax has them, through `jax.jit`; gradients by `jax.vjp` inside of it."""

    name = "JAX"
    modules = ("jax",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import jax

        config: Any = jax.config
        config.update("jax_enable_x64", True)  # otherwise float64 is float32
        config.update("jax_platforms", "cpu")

    def competitor(self, case: Case, arrays: Arrays) -> Competitor | None:
        """The formula, compiled."""
        if case.work in {Work.OUT, *MODULES}:
            return None
        import jax
        import jax.numpy as jnp

        function = _jax_function(case)
        ready: Callable[[Any], Any] = jax.block_until_ready
        names = ("scaling", "biases") if case.biased else ("scaling",)
        inference = case.work is Work.INFERENCE
        # A row that is padded is the beginning of another array's: JAX has no views.
        given = [jnp.asarray(array) for array in (arrays.whole, *(getattr(arrays, name) for name in names))]
        if case.work is Work.ADAPT:
            measured = jax.jit(lambda x: (x.mean(case.aggregated), x.var(case.aggregated)))
            return Competitor(lambda: ready(measured(given[0])), lambda found: _moments(*found))
        if case.work is not Work.BACKWARD:
            given += [jnp.asarray(arrays.mean), jnp.asarray(arrays.variance)] if inference else []
            compiled = jax.jit(function)
            return Competitor(lambda: ready(compiled(*given)), lambda y: _output(np.asarray(y)))
        dy = jnp.asarray(arrays.dy)

        @jax.jit
        def derived(dy: Any, *given: Any) -> Any:
            y, pullback = jax.vjp(function, *given)
            return y, pullback(dy)

        def values(returned: Any) -> dict[str, Any]:
            y, (dx, *others) = returned
            gradients = {f"gradient of {name}": np.asarray(other) for name, other in zip(names, others, strict=True)}
            dx = np.asarray(dx)[..., : case.shape[-1]]
            return {"output": np.asarray(y), "gradient of the input": dx, **gradients}

        return Competitor(lambda: ready(derived(dy, *given)), values)


def _jax_function(case: Case) -> Callable[..., Any]:
    """Flax's own: moments in one pass, in float32 at least, and the parameters folded into one factor."""
    import jax
    import jax.numpy as jnp

    sizes, axes = case.split

    def moments(x: Any) -> tuple[Any, Any]:
        x = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(sizes)
        square = jnp.mean(x * x, axes, keepdims=True)
        if case.norm == "RMS":
            return 0.0, square
        mean = jnp.mean(x, axes, keepdims=True)
        return mean, jnp.maximum(0.0, square - mean * mean)

    def function(whole: Any, *given: Any) -> Any:
        x = whole[..., : case.shape[-1]]
        parameters = [parameter.reshape(case.broadcast) for parameter in given]
        mean, variance = parameters[-2:] if case.work is Work.INFERENCE else moments(x)
        shape = case.shape if case.work is Work.INFERENCE else sizes
        z = ((x.reshape(shape) - mean) * jax.lax.rsqrt(variance + case.epsilon)).reshape(case.shape)
        if case.norm != "feature":
            z = z * parameters[0]
        return (z + parameters[1] if case.biased else z).astype(x.dtype)

    return function


# -------------------------------------------------------------------------------------------------------- ONNX Runtime


class OnnxRuntime(Peer):
    """The operator of ONNX in a graph of its own; what has no operator, and gradients, are beyond it."""

    name = "ONNX Runtime"
    modules = ("onnxruntime", "onnx")

    def competitor(self, case: Case, arrays: Arrays) -> Competitor | None:
        """A session with one operator."""
        import onnxruntime as ort
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        model = _onnx_model(case, arrays)
        if model is None:
            return None
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads end with their call
        try:
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except (state.NotImplemented, state.Fail, state.InvalidGraph):
            return None
        given = {"x": arrays.x}
        return Competitor(lambda: session.run(None, given), lambda found: _output(found[0]))


def _onnx_model(case: Case, arrays: Arrays) -> bytes | None:
    """A graph of one operator; None where there is none for the case."""
    from onnx import TensorProto, helper, numpy_helper

    training = case.work is Work.BACKWARD or (case.norm == "batch" and case.work is Work.FORWARD)
    if (
        training
        or case.work in {Work.OUT, Work.ADAPT, *MODULES}
        or case.padding
        or case.dtype == "bfloat16"
        or len(case.groups) > 1
    ):
        return None
    if case.channel == -1 and len(case.shape) > 2:
        return None
    kinds = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE, "float16": TensorProto.FLOAT16}
    names = ["x", "scaling", "biases"]
    attributes: dict[str, Any] = {"epsilon": case.epsilon}
    kind = {"layer": "LayerNormalization", "RMS": "RMSNormalization", "group": "GroupNormalization"}.get(case.norm)
    if case.norm in {"batch", "feature"}:
        kind, names = "BatchNormalization", [*names, "mean", "variance"]
    elif case.norm == "instance":
        kind = "InstanceNormalization"
    elif case.norm in {"layer", "RMS"}:
        attributes["axis"] = -case.trailing
        names = names if case.norm == "layer" else names[:2]
    elif case.norm == "group":
        attributes |= {
            "num_groups": case.groups[0][1],
            "stash_type": TensorProto.DOUBLE if case.dtype == "float64" else TensorProto.FLOAT,
        }
    if kind is None:
        return None
    given = {name: getattr(arrays, name) for name in names[1:]}
    if case.norm == "feature":
        given |= {"scaling": np.ones_like(arrays.scaling), "biases": np.zeros_like(arrays.biases)}
    array = kinds[case.dtype]
    graph = helper.make_graph(
        [helper.make_node(kind, names, ["y"], **attributes)],
        case.norm,
        [helper.make_tensor_value_info("x", array, case.shape)],
        [helper.make_tensor_value_info("y", array, case.shape)],
        [numpy_helper.from_array(value, name) for name, value in given.items()],
    )
    opset = helper.make_opsetid("", 23)
    model: bytes = helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
    return model


# --------------------------------------------------------------------------------------------------------------- NumPy


class Numpy(Peer):
    """The definition, written down in NumPy; half precision in float32."""

    name = "NumPy"
    modules = ("numpy",)

    def competitor(self, case: Case, arrays: Arrays) -> Competitor | None:
        """The formula, and the way back to the dtype."""
        if case.work in {Work.OUT, *MODULES}:
            return None
        half = case.dtype in {"float16", "bfloat16"}
        arithmetic = np.dtype(np.float32) if half else arrays.x.dtype

        def call() -> dict[str, Array]:
            found = compute(case, arrays, arithmetic)
            return {name: value.astype(arrays.x.dtype) for name, value in found.items()} if half else found

        return Competitor(call, dict)


class Sklearn(Peer):
    """`StandardScaler`, a few megabytes at a time, as for data that is larger than memory."""

    name = "scikit-learn"
    modules = ("sklearn",)

    @property
    def version(self) -> str:
        """Of the package that its module is in."""
        return version(self.name)

    def competitor(self, case: Case, arrays: Arrays) -> Competitor | None:
        """The moments of a data set, which is what it has."""
        if case.work is not Work.ADAPT:
            return None
        from sklearn.preprocessing import StandardScaler

        rows = max(1, CHUNK // arrays.x[0].nbytes)

        def call() -> Any:
            scaler = StandardScaler()
            for lo in range(0, len(arrays.x), rows):
                scaler.partial_fit(arrays.x[lo : lo + rows])
            return scaler

        return Competitor(call, lambda scaler: _moments(scaler.mean_, scaler.var_))


def copies(arrays: Arrays, threads: int) -> dict[str, Callable[[], Any]]:
    """`np.copyto` of the input into an array that is there, by one thread and by all of them."""
    x, y = arrays.x, np.empty(arrays.x.shape, arrays.x.dtype)
    y.fill(0)  # its pages are there
    found: dict[str, Callable[[], Any]] = {COPY: lambda: np.copyto(y, x)}
    if threads > 1 and len(x) >= threads:
        pool = ThreadPoolExecutor(threads)
        bounds = [len(x) * part // threads for part in range(threads + 1)]
        parts = [(y[lo:hi], x[lo:hi]) for lo, hi in itertools.pairwise(bounds)]
        found["shared copy"] = lambda: list(pool.map(np.copyto, *zip(*parts, strict=True)))
    return found


PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (Torch, Compiled, Jax, OnnxRuntime, Numpy, Sklearn)}
