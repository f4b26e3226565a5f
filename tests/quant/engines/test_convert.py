"""convert: the integer model of a prepared one, on every engine."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from tests.conftest import KERNELS, photos, spec
from tests.helpers import build, converts_exactly, prepared_gated
from tests.nets import Dense
from utils.errors import UserError


@pytest.mark.parametrize(
    "keys", [{"weight_bits": 32}, {"act_bits": 32}, {"first_last_bits": 32}, {"residual_bits": 32}]
)
def test_parts_left_in_float_still_convert(keys):
    prepared = quant.prepare(build("resnet20", "cifar"), spec(method="ptq", **keys))
    x = torch.randn(8, 3, 32, 32)
    quant.calibrate(prepared, [x])
    for engine in ("reference", quant.QuantSettings().engine):
        model = quant.convert(prepared, engine)
        assert torch.allclose(model(x), prepared(x), atol=0.05)
        rows = quant.report(prepared, model)
        assert any(row[4] == "float" for row in rows)


def test_an_integer_model_shares_nothing_with_the_prepared_one():
    prepared = quant.prepare(Dense(), spec(method="ptq"))
    x = torch.randn(8, 3, 12, 12)
    with pytest.raises(UserError, match="has not been calibrated"):
        quant.convert(prepared, "reference")
    quant.calibrate(prepared, [x])
    model = quant.convert(prepared, "reference")
    before = model(x)
    prepared.train()(x * 5)
    assert torch.equal(model(x), before)


METHODS = [name for name in quant.METHODS if name != "float"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [4, 8])
def test_every_method_trains_and_converts_it(method, bits):
    weight_bits = 6 if (method, bits) == ("dorefa", 8) else bits
    prepared, images = prepared_gated(method=method, weight_bits=weight_bits, act_bits=bits)
    F.cross_entropy(prepared.train()(images), torch.arange(8) % 3).backward()
    assert all(p.grad is not None for p in prepared.parameters())
    with torch.inference_mode():
        simulated = prepared.eval()(images)
        for engine in KERNELS:
            model = quant.convert(prepared, engine)
            assert torch.equal(model(images), simulated), engine
            assert quant.report_line(prepared, model).endswith("in float: nothing")


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_concatenations_along_other_axes(axis):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 3)

        def forward(self, x):
            one, two = F.relu(self.a(x)).chunk(2, axis)
            return self.fc(torch.cat([two, one], axis).mean((2, 3)))

    converts_exactly(Net(), photos(4, 16))
