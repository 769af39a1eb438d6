"""gennorm and the libraries that it is compared with, called as their users call them."""

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
from gennorm.bench.cases import Array, Arrays, Case, Work
from gennorm.bench.values import compute
from gennorm.layer.arrays import dtype_named

__all__ = ["COPY", "MODULES", "PEERS", "Competitor", "Gennorm", "Peer", "copies", "found"]

COPY = "np.copyto"
CHUNK = 8 << 20  # bytes of a data set that one step reads
MODULES = {Work.MODULE, Work.EVALUATION}


@dataclass(frozen=True, slots=True)
class Competitor:
    """The call of one library for one case.

    Attributes
    ----------
    call : callable
        The function that is timed.
    values : callable
        Converts what `call` returned into NumPy arrays by the names of `values.compute`.
    """

    call: Callable[[], Any]
    values: Callable[[Any], Mapping[str, Any]]


class Peer:
    """A library: its name, the modules it needs, and how it is limited to a number of threads."""

    name: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]
    slack: ClassVar[float] = 16  # allowed error over that of gennorm: torch adds up bfloat16 in bfloat16

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @classmethod
    def absence(cls) -> str | None:
        """Why the library cannot be used here; None where it can."""
        for module in cls.modules:
            if find_spec(module) is None:
                return f"{module} is not installed"
            try:
                import_module(module)
            except ImportError as error:  # an incomplete installation
                return f"{module} cannot be imported: {error}"
        return None

    @property
    def version(self) -> str:
        """The version of the library."""
        return version(self.modules[0]).partition("+")[0]

    def competitor(self, case: Case, arrays: Arrays) -> Competitor | None:
        """The call for a case; None where the library has no such function."""
        raise NotImplementedError

    def context(self, case: Case) -> AbstractContextManager[Any]:  # noqa: ARG002
        """The context in which the calls for a case are made."""
        return nullcontext()


def found(names: Mapping[str, type[Peer]], threads: int) -> tuple[list[Peer], dict[str, str]]:
    """The libraries that can be used, and the reasons why the others cannot."""
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
    """gennorm itself."""

    name = "gennorm"
    modules = ("gennorm",)
    slack = 1

    def competitor(self, case: Case, arrays: Arrays) -> Competitor:
        """The call of a layer, or of its module for torch."""
        if case.work in MODULES:
            import gennorm.torch

            return _module(gennorm.torch, case, arrays)
        layer, x, dy = self.layer(case, arrays), arrays.x, arrays.dy
        if case.work is Work.BACKWARD:

            def both() -> tuple[Array, Any]:
                y, pullback = layer.vjp(x)
                return y, pullback(dy)

            return Competitor(both, _gradients_of)
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

    def context(self, case: Case) -> AbstractContextManager[Any]:
        """The same context as for the modules of torch."""
        return Torch.gradient_mode(case) if case.work in MODULES else nullcontext()

    @staticmethod
    def layer(case: Case, arrays: Arrays) -> gn.NormalizationLayer:
        """The layer for a case."""
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


def _gradients_of(returned: Any) -> dict[str, Any]:
    y, gradients = returned
    return {
        "output": y,
        "gradient of the input": gradients.input,
        "gradient of scaling": gradients.scaling,
        "gradient of biases": gradients.biases,
    }


# --------------------------------------------------------------------------------------------------------------- torch


class Torch(Peer):
    """The functions of torch, called eagerly; gradients by its autograd."""

    name = "torch"
    modules = ("torch",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import torch

        torch.set_num_threads(threads)

    def context(self, case: Case) -> AbstractContextManager[Any]:
        """Inference mode, where no gradient is computed."""
        return self.gradient_mode(case)

    @staticmethod
    def gradient_mode(case: Case) -> AbstractContextManager[Any]:
        """Inference mode, where no gradient is computed."""
        import torch

        return nullcontext() if case.derived else torch.inference_mode()

    def competitor(self, case: Case, arrays: Arrays) -> Competitor | None:
        """The function or the module of the case's norm."""
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
        dy = _output_gradient(case, arrays)
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
        """The function itself."""
        return function


class Compiled(Torch):
    """The same functions, through `torch.compile`."""

    name = "torch.compile"

    @classmethod
    def absence(cls) -> str | None:
        """Why `torch.compile` cannot be used: it needs a C++ compiler besides torch."""
        compiler = os.environ.get("CXX", "g++")
        lacks = super().absence()
        return lacks or (None if shutil.which(compiler) else f"there is no C++ compiler ({compiler})")

    def prepared(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, compiled for static shapes."""
        import torch

        torch.compiler.reset()  # it stops compiling a function after a few times
        return torch.compile(function, fullgraph=True, dynamic=False)


def _torch_function(case: Case) -> Callable[..., Any]:
    """The function of torch for a case, for arrays with channels first."""
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
        # The channels are moved to the end and back, as in ConvNeXt.
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
            """Move the axes of the groups to the end, which is a copy, and back."""
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
    """The call of a module, in training with its gradients or in evaluation."""
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
    dy, x = _output_gradient(case, arrays), x.detach().requires_grad_()
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


def _output_gradient(case: Case, arrays: Arrays) -> Any:
    """The gradient of the output as a tensor with channels first."""
    dy, _ = _channels_first(case, _tensor(arrays.dy))
    if case.norm == "instance" and case.shape[0] == 1:
        dy = dy.contiguous()  # torch's gradient is wrong for one image with channels last
    return dy


def _tensor(array: Array) -> Any:
    """A tensor in the memory of an array."""
    import torch

    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _array(tensor: Any) -> Array:
    """An array in the memory of a tensor."""
    import torch

    tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        bits: Array = tensor.view(torch.int16).numpy()
        return bits.view(dtype_named("bfloat16"))
    found: Array = tensor.numpy()
    return found


def _channels_first(case: Case, tensor: Any) -> tuple[Any, Callable[[Any], Any]]:
    """A view with channels first of a tensor with channels last, and the inverse."""
    if case.channel == -1 and len(case.shape) > 2:
        return tensor.movedim(-1, 1), lambda y: y.movedim(1, -1)
    return tensor, lambda y: y


# ----------------------------------------------------------------------------------------------------------------- JAX


class Jax(Peer):
    """Formulas of Flax in `jax.numpy`, compiled by `jax.jit`; gradients by `jax.vjp` inside it."""

    name = "JAX"
    modules = ("jax",)

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import jax

        config: Any = jax.config
        config.update("jax_enable_x64", True)  # without it, float64 becomes float32
        config.update("jax_platforms", "cpu")

    def competitor(self, case: Case, arrays: Arrays) -> Competitor | None:
        """The compiled formula."""
        if case.work in {Work.OUT, *MODULES}:
            return None
        import jax
        import jax.numpy as jnp

        function = _jax_function(case)
        ready: Callable[[Any], Any] = jax.block_until_ready
        names = ("scaling", "biases") if case.biased else ("scaling",)
        inference = case.work is Work.INFERENCE
        # JAX has no views: it gets the rows with their padding, and slices them in the compiled function.
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
    """The formula of Flax: moments in one pass, in float32 at least."""
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
    """The operator of ONNX in a graph with that operator only. It has no gradients."""

    name = "ONNX Runtime"
    modules = ("onnxruntime", "onnx")

    def competitor(self, case: Case, arrays: Arrays) -> Competitor | None:
        """A session for a graph with one operator."""
        import onnxruntime as ort
        from onnxruntime.capi import onnxruntime_pybind11_state as state

        model = _onnx_model(case, arrays)
        if model is None:
            return None
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads do not spin after a call
        try:
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except (state.NotImplemented, state.Fail, state.InvalidGraph):
            return None
        given = {"x": arrays.x}
        return Competitor(lambda: session.run(None, given), lambda found: _output(found[0]))


def _onnx_model(case: Case, arrays: Arrays) -> bytes | None:
    """A graph with one operator; None where ONNX has no operator for the case."""
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
    """The definition in NumPy; 16-bit floats are computed in float32."""

    name = "NumPy"
    modules = ("numpy",)

    def competitor(self, case: Case, arrays: Arrays) -> Competitor | None:
        """The formula, and the conversion to the dtype of the input."""
        if case.work in {Work.OUT, *MODULES}:
            return None
        half = case.dtype in {"float16", "bfloat16"}
        arithmetic = np.dtype(np.float32) if half else arrays.x.dtype

        def call() -> dict[str, Array]:
            found = compute(case, arrays, arithmetic)
            return {name: value.astype(arrays.x.dtype) for name, value in found.items()} if half else found

        return Competitor(call, dict)


class Sklearn(Peer):
    """`StandardScaler`, fed a few megabytes at a time, as with data larger than memory."""

    name = "scikit-learn"
    modules = ("sklearn",)

    @property
    def version(self) -> str:
        """The version of the package; the module has another name."""
        return version(self.name)

    def competitor(self, case: Case, arrays: Arrays) -> Competitor | None:
        """The moments of a data set; it has no other function."""
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
    """`np.copyto` of the input into an existing array, by one thread and by all threads."""
    x, y = arrays.x, np.empty(arrays.x.shape, arrays.x.dtype)
    y.fill(0)  # the system maps its pages now
    found: dict[str, Callable[[], Any]] = {COPY: lambda: np.copyto(y, x)}
    if threads > 1 and len(x) >= threads:
        pool = ThreadPoolExecutor(threads)
        bounds = [len(x) * part // threads for part in range(threads + 1)]
        parts = [(y[lo:hi], x[lo:hi]) for lo, hi in itertools.pairwise(bounds)]
        found["shared copy"] = lambda: list(pool.map(np.copyto, *zip(*parts, strict=True)))
    return found


PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (Torch, Compiled, Jax, OnnxRuntime, Numpy, Sklearn)}
