"""Every error text of the front in full, and each an error of torch's class too."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gennorm.errors import GennormError
from tests.error_tables import ErrorTable

torch = pytest.importorskip("torch")

import gennorm.torch as gt  # noqa: E402
from gennorm.torch import (  # noqa: E402
    accelerating,
    computation,
    distributed,
    folding,
    layers,
    layouts,
    module,
    moments,
    tensors,
    zoo,
)

MODULES = [accelerating, computation, distributed, folding, layers, layouts, module, moments, tensors, zoo]
OF_THE_CORE = {"I001", "S010", "I010", "P021", "P030", "P031", "C110", "C111"}  # reached through a module


def layer_norm(size, **keywords):
    return gt.NormalizationLayer(-1, "Same", input_shape=(..., size), **keywords)


def moving_norm(channels):
    return gt.NormalizationLayer("{0, 2;;All}", 1, input_shape=(channels, ...), batched=True, statistics="moving")


def without_a_count():
    layer = gt.NormalizationLayer(0, (), batched=True, statistics="dataset", scaling=None, biases=None)
    layer.load_state_dict({"mean": torch.zeros(3), "variance": torch.ones(3)})
    return layer


def without_cpu():
    distributed.added(torch.zeros(2), SimpleNamespace(_device_types=[torch.device("cuda")], group_name="lonely"))


def without_memory(tensor=None):
    """A module whose weight has no memory, or a tensor without."""
    module = layer_norm(3)
    (module.weight if tensor is None else tensor).untyped_storage().resize_(0)
    return module if tensor is None else tensor


NAMES = {
    "gt": gt,
    "np": np,
    "torch": torch,
    **{f.__name__: f for f in (layer_norm, moving_norm, without_a_count, without_cpu, without_memory)},
}


TABLE = ErrorTable(Path(__file__).parent / "errors.txt", NAMES, MODULES)


@TABLE.each_entry
def test_text(entry):
    TABLE.check_text(entry)
    TABLE.check_two_lines(entry)


def test_the_table_has_every_code_and_no_other():
    assert TABLE.codes == TABLE.raised_codes() | OF_THE_CORE


@TABLE.each_module
def test_the_table_reaches_every_place_that_raises(module):
    TABLE.check_places(module)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(2, 3, dtype=torch.int64),
        torch.zeros(2, 3, dtype=torch.float64),
        torch.zeros(2, 3, dtype=torch.complex64),
        torch.zeros(2, 3, device="meta"),
        torch.zeros(2, 3).to_sparse(),
        [1.0, 2.0, 3.0],
        np.zeros((2, 3)),
        None,
    ],
    ids=str,
)
def test_torch_s_own_layer_raises_the_same_class(x, grad):
    """Twice, because a second call takes a shorter way."""
    ours, theirs = layer_norm(3), torch.nn.LayerNorm(3)
    with torch.set_grad_enabled(grad):
        ours(torch.zeros(2, 3))
        with pytest.raises((RuntimeError, TypeError)) as expected:
            theirs(x).tolist()
        for _ in range(2):
            with pytest.raises(RuntimeError if isinstance(expected.value, RuntimeError) else TypeError) as caught:
                ours(x)
            assert isinstance(caught.value, GennormError)
        assert ours(torch.zeros(2, 3)).shape == (2, 3)
