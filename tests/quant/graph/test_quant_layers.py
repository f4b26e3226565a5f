"""Prepared layers and operators: what they compute in train mode, in eval and under autocast."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.core.integer_layer import Geometry
from quant.graph.op_table import HARD_SIGMOID
from quant.graph.quant_layers import geometry_of
from tests.conftest import photos, spec
from tests.helpers import build, float_range, prepared_gated


def test_eval_changes_nothing_and_train_mode_observes():
    prepared = quant.prepare(build("resnet20", "cifar"), spec(method="statassist"))
    x = torch.randn(4, 3, 32, 32)
    prepared.train()(x)
    before = copy.deepcopy(prepared.state_dict())
    prepared.eval()
    first, second = prepared(x), prepared(x * 3) * 0 + prepared(x)
    assert torch.equal(first, second)
    assert all(torch.equal(before[k], v) for k, v in prepared.state_dict().items())
    prepared.train()(x * 3)
    assert any(not torch.equal(before[k], v) for k, v in prepared.state_dict().items() if k.endswith(".high"))


def test_autocast_does_not_touch_the_integers():
    prepared = quant.prepare(build("resnet20", "cifar"), spec(method="ptq"))
    x = torch.randn(4, 3, 32, 32)
    quant.calibrate(prepared, [x])
    with torch.autocast("cpu", torch.bfloat16):
        found = prepared(x)
    assert torch.allclose(found, prepared(x), atol=1e-2)


def test_a_hard_sigmoid_is_the_line_of_a_batch_norm():
    prepared, _ = prepared_gated()
    excite = prepared.get_submodule("excite")
    assert excite.activation == HARD_SIGMOID
    assert "gate" not in [node.target for node in prepared.graph.nodes], "no operator of its own"
    source = prepared.get_submodule("squeeze").output
    x = source(torch.rand(64, 4, 1, 1))
    with torch.inference_mode():
        found = excite.eval()(x, source, None)
        wanted = F.hardsigmoid(F.conv2d(x, excite.weight_quantizer(excite.weight), excite.bias))
    low, high = float_range(excite.output)
    assert (found - wanted.clamp(low, high)).abs().max() <= 0.55 * float(excite.output.grid().scale)


def test_a_value_without_a_batch_can_be_quantized():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.temperature = nn.Linear(768, 8), nn.Parameter(torch.tensor(0.5))
            self.out = nn.Linear(8, 3)

        def forward(self, x):
            return self.out(F.relu(self.fc(x.flatten(1))) * torch.sigmoid(self.temperature))

    prepared = quant.prepare(Net(), spec(method="lsq", weight_bits=4, act_bits=4)).train()
    prepared(photos(4, 16)).sum().backward()
    assert all(p.grad is not None for p in prepared.parameters())


def test_the_geometry_of_a_layer():
    assert geometry_of(nn.Linear(3, 4)).linear
    geometry = geometry_of(nn.Conv2d(4, 8, (3, 5), (2, 1), (1, 2), (1, 3), groups=2))
    assert geometry == Geometry((2, 1), (1, 2), (1, 3), 2)
    with pytest.raises(ValueError, match="padding 'same' is not a number of zeros"):
        geometry_of(nn.Conv2d(3, 4, 3, padding="same"))
