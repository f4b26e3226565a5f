"""The layer table: bits of each layer, the kernel that it runs on, or why it stays in float."""

import pytest
import torch
from torch import nn

import models
import quant
from quant.graph.quant_layers import QuantLayer, QuantOperator
from tests.conftest import spec
from tests.helpers import prepared_gated


def test_reports_name_the_kernel_or_the_reason():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.twice = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
            self.up, self.fc = nn.ConvTranspose2d(4, 4, 2), nn.Linear(4, 3)

        def forward(self, x):
            x = self.twice(self.twice(self.conv(x).relu()))
            return self.fc(torch.sigmoid(self.up(x)).mean([2, 3]))

    prepared = quant.prepare(Net(), spec(method="ptq"))
    quant.calibrate(prepared, [torch.randn(4, 3, 8, 8)])
    rows = {row[0]: row for row in quant.report(prepared, quant.convert(prepared, "reference"))}
    assert rows["conv"][1:5] == ["8", "8", "8", "integers in float32"]
    assert rows["fc"][4] == "integers in float32"
    assert rows["up"][4:] == ["float", "ConvTranspose2d has no integer form here"]
    assert rows["twice"][4:] == ["float", "called more than once"]
    assert rows["sigmoid"][1:5] == rows["mean"][1:5] == ["", "8", "8", "integers in float32"]


@pytest.mark.parametrize(
    ("method", "options", "note"),
    [
        ("dorefa", {}, "clipped on both sides"),
        ("dorefa", {"signed_edges": "affine"}, "8 bits, affine"),
        ("pact", {}, "clipped at +-alpha"),
        ("pact", {"signed_edges": "affine", "weights": "dorefa"}, "8 bits, affine"),
    ],
)
def test_inputs_that_can_be_negative_are_named_in_the_report(method, options, note):
    settings = spec(method=method, weight_bits=4, act_bits=4, **options)
    prepared = quant.prepare(models.build("mobilenet_v2", 10, 32, {"form": "imagenet"}), settings)
    prepared.train()(torch.randn(4, 3, 32, 32))
    rows = quant.report(prepared.eval(), quant.convert(prepared, "reference"))
    named = [row for row in rows if "its input can be negative" in row[-1] and note in row[-1]]
    assert len(named) == 17, "every expansion behind a linear bottleneck, and the last convolution"
    assert {row[2] for row in named} == {"8" if "affine" in note else "4"}


def test_a_layer_and_an_operator_are_listed_with_what_they_read():
    prepared, _ = prepared_gated()
    rows = {row[0]: row for row in quant.report(prepared, quant.convert(prepared, "reference"))}
    kinds = {
        name.removeprefix("operators.")
        for name, m in prepared.named_modules()
        if isinstance(m, QuantLayer | QuantOperator)
    }
    assert kinds <= set(rows)
    assert all(row[2] == row[3] == "8" for name, row in rows.items() if name.startswith(("mul", "hardswish", "mean")))
