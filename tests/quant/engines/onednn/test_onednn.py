"""The engines on oneDNN in a torch without quantized tensors."""

import subprocess
import sys

import pytest

from quant.engines.onednn import OnednnEngine
from tests.conftest import KERNELS

WITHOUT_QUANTIZED_TENSORS = """
import sys

import torch


def removed(*_, **__):
    raise AssertionError("quantized tensors were removed")


class Removed:
    __getattr__ = removed


for name in [name for name in dir(torch) if "quantize" in name and callable(getattr(torch, name))]:
    setattr(torch, name, lambda *_, **__: removed())  # torch.fx asks for a function of each name
for name in ("int_repr", "q_scale", "q_zero_point", "dequantize"):
    setattr(torch.Tensor, name, removed)
ao, torch.ao = torch.ao, Removed()
torch.ops.quantized = torch.backends.quantized = Removed()
for name in [name for name in sys.modules if name == "torch.ao" or name.startswith("torch.ao.")]:
    sys.modules[name] = None
"""
NET = """
import torch.nn.functional as F
from torch import nn

import quant


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.wide, self.pool, self.fc = nn.Conv2d(32, 24, 1), nn.MaxPool2d(3, 2, 1), nn.Linear(24, 5)

    def forward(self, x):
        x = self.pool(F.relu(self.stem(x)))
        x = x + F.hardswish(self.depthwise(x))
        x = torch.cat([x, F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1)], 1)
        x = torch.channel_shuffle(F.relu6(self.wide(x)), 2)
        return self.fc((x * x.mean((2, 3), keepdim=True).sigmoid()).mean((2, 3)))


torch.manual_seed(0)
images = torch.randn(8, 3, 33, 33)
prepared = quant.prepare(Net(), quant.resolve(quant.parse(method="ptq", weight_bits=8, act_bits=8, engine="x86")))
quant.calibrate(prepared, [images])
prepared.eval()
models = []
for name in ("x86", "onednn"):
    model = quant.convert(prepared, name)
    assert len(model.layers) == 4 and len(model.operators) == 7, model.operators
    assert "integers in float32" not in model.operators.values(), model.operators
    assert torch.equal(model(images), prepared(images)), name
    models.append(model)
torch.ao = ao  # torch.jit.trace itself reads it
for model in models:
    assert torch.equal(model.compile_for(images[:1])(images[:1]), prepared(images[:1])), model.engine.name
"""


def run(program: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", WITHOUT_QUANTIZED_TENSORS + program]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif("onednn" not in KERNELS, reason="this build of torch lacks onednn")
def test_a_net_runs_without_quantized_tensors():
    """Convolutions, a depthwise one, a sum, a product, pools, a concatenation and functions: to the bit."""
    done = run(NET)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("use", ["torch.quantize_per_tensor()", "torch.ops.quantized.add", "torch.ao.quantization"])
def test_what_that_test_removes_raises(use):
    assert "quantized tensors were removed" in run(use).stderr


def test_a_build_of_torch_without_onednn_is_told(monkeypatch):
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    assert OnednnEngine("x86").missing() == "needs oneDNN, which is not in this build of torch"
