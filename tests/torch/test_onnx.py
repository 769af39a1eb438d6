"""Exported to ONNX: standard operators, and the same values in ONNX Runtime."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("array_api_compat")

from torch import nn  # noqa: E402

import gennorm.torch as gt  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
    pytest.mark.slow,
]


def general(*levels, **settings):
    return lambda: gt.NormalizationLayer(*levels, **settings)


CASES = {
    "LayerNorm": (lambda: gt.LayerNorm(8), (6, 3, 8)),
    "RMSNorm": (lambda: gt.RMSNorm(8), (6, 3, 8)),
    "GroupNorm": (lambda: gt.GroupNorm(3, 6), (4, 6, 5, 8)),
    "InstanceNorm2d": (lambda: gt.InstanceNorm2d(6, affine=True), (4, 6, 5, 8)),
    "BatchNorm2d": (lambda: gt.BatchNorm2d(6), (4, 6, 5, 8)),
    "moving": (
        general("{0, 2;;All}", 1, input_shape=(6, ...), batched=True, statistics="moving"),
        (4, 6, 5, 8),
    ),
    "floor": (
        general("2;;All", 1, input_shape=(6, None, None), batched=True, epsilon_placement="floor"),
        (4, 6, 5, 8),
    ),
    "in a network": (
        lambda: nn.Sequential(nn.Conv2d(6, 4, 3), gt.GroupNorm(2, 4), nn.ReLU(), gt.BatchNorm2d(4)),
        (4, 6, 5, 8),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_values_in_onnx_runtime(name, tmp_path):
    make, shape = CASES[name]
    module = make()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2 + 1
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
    module(x)
    module.eval()
    path = tmp_path / "model.onnx"
    sizes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(module, (x,), dynamo=True, verbose=False, dynamic_shapes=sizes).save(path)
    model = onnx.load(path)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    assert not model.functions
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    more = torch.cat([x, x + 1, x * 3])
    (found,) = session.run(None, {session.get_inputs()[0].name: more.numpy()})
    np.testing.assert_allclose(found, module(more).detach().numpy(), rtol=1e-4, atol=1e-5)
