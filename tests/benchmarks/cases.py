"""What is timed: layers in one thread, float32, against torch's eager functions and a copy of the same bytes.

Every case compares what the competitors return before anything is timed. Outputs are allocated in the call, by
everybody, unless the name of the case says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

import gennorm as gn

from .timing import Measured, best

Array = npt.NDArray[np.float32]
Peer = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

EPSILON = 1e-3
NEAR = 1e-4  # of the largest value: both round in float32, torch also sums in it
IMAGES = (8, 64, 224, 224)
MAPS = (32, 256, 56, 56)


@dataclass(frozen=True, slots=True)
class Norm:
    """One layer and what torch calls the same; channels first in the shape, whatever the memory holds."""

    shape: tuple[int, ...]
    parameters: tuple[int, ...]
    make: Callable[[dict[str, Any]], gn.NormalizationLayer]
    peer: Peer
    biased: bool = True
    channels_last: bool = False

    def arrays(self) -> tuple[Array, Array, Array, Array]:
        """Input, gradient of the output, scaling and biases, the first two in the memory order that is asked for."""
        generator = np.random.default_rng(0)
        shape = (self.shape[0], *self.shape[2:], self.shape[1]) if self.channels_last else self.shape
        x = 2 * generator.standard_normal(shape, np.float32) + 1
        dy = generator.standard_normal(shape, np.float32)
        scaling = generator.standard_normal(self.parameters, np.float32) + 1
        biases = generator.standard_normal(self.parameters, np.float32)
        return x, dy, scaling, biases

    def layer(self, scaling: Array, biases: Array) -> gn.NormalizationLayer:
        """Ours, with these parameters."""
        return self.make({"scaling": scaling, "biases": biases} if self.biased else {"scaling": scaling})

    def tensor(self, array: Array) -> torch.Tensor:
        """The same memory, seen by torch: its own view of channels that are last."""
        given = torch.from_numpy(array)
        return given.movedim(-1, 1) if self.channels_last else given

    def array(self, tensor: torch.Tensor) -> Array:
        """The way back."""
        detached = tensor.detach()
        found: Array = (detached.movedim(1, -1) if self.channels_last else detached).numpy()
        return found


def layer_norm(*shape: int) -> Norm:
    """Layer norm of the last level."""
    size = shape[-1:]
    return Norm(
        shape,
        size,
        lambda given: gn.layer_norm(size, epsilon=EPSILON, **given),
        lambda x, scaling, biases: functional.layer_norm(x, size, scaling, biases, EPSILON),
    )


def rms_norm(*shape: int) -> Norm:
    """RMS norm of the last level."""
    size = shape[-1:]
    return Norm(
        shape,
        size,
        lambda given: gn.rms_norm(size, epsilon=EPSILON, **given),
        lambda x, scaling, _: functional.rms_norm(x, size, scaling, EPSILON),
        biased=False,
    )


def instance_norm(channels_last: bool = False) -> Norm:
    """Instance norm of images."""
    channels, level = IMAGES[1], -1 if channels_last else 1
    return Norm(
        IMAGES,
        (channels,),
        lambda given: gn.instance_norm(channels, channel_level=level, epsilon=EPSILON, **given),
        lambda x, scaling, biases: functional.instance_norm(x, weight=scaling, bias=biases, eps=EPSILON),
        channels_last=channels_last,
    )


def group_norm(channels_last: bool = False) -> Norm:
    """Group norm of feature maps."""
    channels, level = MAPS[1], -1 if channels_last else 1
    return Norm(
        MAPS,
        (channels,),
        lambda given: gn.group_norm(32, channels, channel_level=level, epsilon=EPSILON, **given),
        lambda x, scaling, biases: functional.group_norm(x, 32, scaling, biases, EPSILON),
        channels_last=channels_last,
    )


def batch_norm(channels_last: bool = False) -> Norm:
    """Batch norm of images by the moments of the batch, which nobody remembers."""
    channels, level = IMAGES[1], -1 if channels_last else 1
    return Norm(
        IMAGES,
        (channels,),
        lambda given: gn.batch_norm(channels, channel_level=level, epsilon=EPSILON, statistics="input", **given),
        lambda x, scaling, biases: functional.batch_norm(x, None, None, scaling, biases, training=True, eps=EPSILON),
        channels_last=channels_last,
    )


def same(found: Any, expected: Any, what: str) -> None:
    """Fail where two arrays differ by more than rounding."""
    worst = float(np.abs(np.asarray(found) - expected).max())
    assert np.shape(found) == np.shape(expected), what
    assert worst <= NEAR * float(np.abs(expected).max()), f"{what} differs by {worst}"


def copied(x: Array) -> Array:
    """A copy of the same bytes in the same order: what reading the input and writing an output costs at least."""
    y = np.empty_like(x)
    np.copyto(y, x)
    return y


def forward(norm: Norm, seconds: float) -> dict[str, float]:
    """Outputs, allocated in the call."""
    x, _, scaling, biases = norm.arrays()
    layer = norm.layer(scaling, biases)
    tensors = norm.tensor(x), torch.from_numpy(scaling), torch.from_numpy(biases)
    with torch.inference_mode():
        same(layer(x), norm.array(norm.peer(*tensors)), "the output")
        return best(
            {"gennorm": lambda: layer(x), "torch": lambda: norm.peer(*tensors), "np.copyto": lambda: copied(x)},
            seconds,
        )


def forward_out(norm: Norm, seconds: float) -> dict[str, float]:
    """Outputs into an array that is there, against the copy alone: torch's functions take none."""
    x, _, scaling, biases = norm.arrays()
    layer, out = norm.layer(scaling, biases), np.empty_like(x)
    with torch.inference_mode():
        expected = norm.peer(norm.tensor(x), torch.from_numpy(scaling), torch.from_numpy(biases))
        same(layer(x, out=out), norm.array(expected), "the output")
    del expected
    return best({"gennorm": lambda: layer(x, out=out), "np.copyto": lambda: np.copyto(out, x)}, seconds)


def backward(norm: Norm, seconds: float) -> dict[str, float]:
    """Outputs and the gradients of everything that has one."""
    x, dy, scaling, biases = norm.arrays()
    layer = norm.layer(scaling, biases)
    tensors = (
        norm.tensor(x).requires_grad_(),
        *(torch.from_numpy(array).requires_grad_() for array in (scaling, biases)),
    )
    wanted, direction = tensors if norm.biased else tensors[:2], norm.tensor(dy)

    def ours() -> Any:
        y, pullback = layer.vjp(x)
        return y, pullback(dy)

    def theirs() -> Any:
        y = norm.peer(*tensors)
        return y, torch.autograd.grad(y, wanted, direction)

    (y, found), (expected_y, expected) = ours(), theirs()
    same(y, norm.array(expected_y), "the output")
    same(found.input, norm.array(expected[0]), "the gradient of the input")
    same(found.scaling, expected[1].numpy(), "the gradient of scaling")
    if norm.biased:
        same(found.biases, expected[2].numpy(), "the gradient of biases")
    del y, found, expected_y, expected
    return best({"gennorm": ours, "torch": theirs}, seconds)


def adapt(gigabytes: float, seconds: float) -> dict[str, float]:
    """The moments of a file that is in the page cache, mapped anew by everybody, against partial fits of batches."""
    from sklearn.preprocessing import StandardScaler

    features, batch = 4096, 512  # 8 MB, which is what adapt() takes at a time
    batches = math.ceil(gigabytes * 2**30 / (4 * features * batch))
    generator = np.random.default_rng(0)
    with TemporaryDirectory(prefix="gennorm-bench-") as folder:
        path = Path(folder) / "data.npy"
        data = np.lib.format.open_memmap(path, "w+", np.float32, (batches * batch, features))
        first = 2 * generator.standard_normal((batch, features), np.float32) + 1
        for start in range(0, len(data), batch):
            data[start : start + batch] = np.roll(first, start // batch, axis=1)
        data.flush()
        del data

        def ours() -> gn.NormalizationLayer:
            return gn.feature_norm().adapt(np.load(path, mmap_mode="r"), progress=False)

        def theirs() -> Any:
            scaler, data = StandardScaler(), np.load(path, mmap_mode="r")
            for start in range(0, len(data), batch):
                scaler.partial_fit(data[start : start + batch])
            return scaler

        moments, scaler = ours().moments, theirs()
        assert moments is not None
        np.testing.assert_allclose(np.asarray(moments.mean), scaler.mean_, rtol=1e-5)
        np.testing.assert_allclose(np.asarray(moments.variance()), scaler.var_, rtol=1e-5)
        return best({"gennorm": ours, "scikit-learn": theirs}, seconds, least=2)


@dataclass(frozen=True, slots=True)
class Case:
    """A name, what times it for so many seconds, and how many times faster than which peer it is to be."""

    name: str
    run: Callable[[float], dict[str, float]]
    goals: Mapping[str, float] = field(default_factory=dict)

    def measure(self, seconds: float) -> Measured:
        """Time it, in one thread."""
        with one_thread():
            return Measured(self.name, self.run(seconds), dict(self.goals))


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for everybody."""
    before = gn.get_num_threads(), torch.get_num_threads()
    gn.set_num_threads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        gn.set_num_threads(before[0])
        torch.set_num_threads(before[1])


def cases(gigabytes: float = 2) -> list[Case]:
    """All of them, in the order of the table."""
    images, maps = ("×".join(map(str, shape)) for shape in (IMAGES, MAPS))
    last, both = "channels last", "forward and backward"

    def case(name: str, run: Callable[..., dict[str, float]], norm: Norm, **goals: float) -> Case:
        return Case(name, partial(run, norm), goals)

    return [
        case("layer norm 1×768", forward, layer_norm(1, 768)),
        case("layer norm 512×768", forward, layer_norm(512, 768)),
        case("layer norm 4096×1024", forward, layer_norm(4096, 1024), torch=1.5),
        case("layer norm 32768×1024 with `out=`", forward_out, layer_norm(32768, 1024), **{"np.copyto": 1 / 1.25}),
        case("RMS norm 1×768", forward, rms_norm(1, 768)),
        case("RMS norm 4096×1024", forward, rms_norm(4096, 1024)),
        case(f"instance norm {images}", forward, instance_norm(), torch=4),
        case(f"instance norm {images}, {last}", forward, instance_norm(True), torch=8),
        case(f"group norm {maps}", forward, group_norm(), torch=3),
        case(f"group norm {maps}, {last}", forward, group_norm(True)),
        case(f"batch norm {images}", forward, batch_norm()),
        case(f"batch norm {images}, {last}", forward, batch_norm(True)),
        case(f"layer norm 4096×1024, {both}", backward, layer_norm(4096, 1024), torch=1.8),
        case(f"RMS norm 4096×1024, {both}", backward, rms_norm(4096, 1024), torch=4),
        case(f"group norm {maps}, {both}", backward, group_norm(), torch=3),
        case(f"instance norm {images}, {last}, {both}", backward, instance_norm(True), torch=8),
        case(f"batch norm {images}, {both}", backward, batch_norm(), torch=3),
        Case(f"adapt, {gigabytes:g} GB in a file, 4096 features", partial(adapt, gigabytes), {"scikit-learn": 4}),
    ]


def one_pass(place: int, gigabytes: float, seconds: float) -> Measured:
    """One case, in the process that this is called in."""
    return cases(gigabytes)[place].measure(seconds)
