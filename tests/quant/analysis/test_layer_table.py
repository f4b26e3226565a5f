"""The layer table: bits of each layer, the kernel that it runs on, or why it stays in float."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
import quant
from quant.analysis.integer_share import integer_share
from quant.analysis.layer_table import layer_records
from quant.engines.base import Engine
from quant.engines.convert import convert
from quant.graph.quant_layers import QuantLayer, QuantOperator
from tests.conftest import spec
from tests.helpers import prepared_gated
from tests.nets import Residual


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
    rows = {row[0]: row for row in quant.layer_rows(prepared, quant.convert(prepared, "reference"))}
    assert rows["conv"][1:5] == ["8", "8", "8", "integers in float32"]
    assert rows["fc"][4] == "integers in float32"
    assert rows["up"][4:] == ["float", "ConvTranspose2d has no integer form here"]
    assert rows["twice"][1:5] == rows["layers.twice_1"][1:5] == ["8", "8", "8", "integers in float32"]
    share = integer_share(prepared, 8)
    records = {one["layer"]: one for one in layer_records(prepared, quant.convert(prepared, "reference"), share)}
    assert records["conv"]["weight_bits"] == "8"
    assert records["up"]["runs_on"] == "float"
    assert sum(one["macs_percent"] for one in records.values()) == pytest.approx(100)
    assert records["sigmoid"]["macs_percent"] == 0
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
    rows = quant.layer_rows(prepared.eval(), quant.convert(prepared, "reference"))
    named = [row for row in rows if "its input can be negative" in row[-1] and note in row[-1]]
    assert len(named) == 17, "every expansion behind a linear bottleneck, and the last convolution"
    assert {row[2] for row in named} == {"8" if "affine" in note else "4"}


def test_a_layer_and_an_operator_are_listed_with_what_they_read():
    prepared, _ = prepared_gated()
    rows = {row[0]: row for row in quant.layer_rows(prepared, quant.convert(prepared, "reference"))}
    kinds = {
        name.removeprefix("operators.")
        for name, m in prepared.named_modules()
        if isinstance(m, QuantLayer | QuantOperator)
    }
    assert kinds <= set(rows)
    assert all(row[2] == row[3] == "8" for name, row in rows.items() if name.startswith(("mul", "hardswish", "mean")))


def rows_of(prepared, engine: str = "reference") -> dict[str, list[str]]:
    return {row[0]: row for row in quant.layer_rows(prepared, quant.convert(prepared, engine))}


def calibrated_residual(**keys):
    prepared = quant.prepare(Residual(10), spec(**({"method": "ptq", "weight_bits": 4, "act_bits": 3} | keys)))
    quant.calibrate(prepared, [torch.randn(4, 3, 32, 32)])
    return prepared


def test_every_column_of_every_row_of_a_net():
    on, by_norm = "integers in float32", "one weight scale per tensor, per channel after absorbing batch norm"
    prepared = calibrated_residual(granularity="per_tensor")
    assert list(rows_of(prepared).values()) == [
        ["image", "", "float", "8", "quantize", ""],
        ["stem.0", "8", "8", "8", on, by_norm],
        ["stem_4_to_3", "", "8", "3", "requantize", ""],
        ["first.0", "4", "3", "3", on, by_norm],
        ["second.0", "4", "3", "8", on, by_norm],
        ["add", "", "8", "3", on, ""],
        ["depthwise.0", "4", "3", "3", on, by_norm],
        ["point.0", "4", "3", "8", on, by_norm],
        ["head_0", "", "8", "8", on, ""],
        ["head.2", "8", "8", "float", on, ""],
    ]


def test_a_layer_in_float_says_what_keeps_it_there():
    weights = rows_of(calibrated_residual(weight_bits=32))
    assert weights["first.0"][1:] == ["float", "3", "3", "float", "its weights stay in float"]
    inputs = rows_of(calibrated_residual(act_bits=32))
    assert inputs["first.0"][1:] == ["4", "float", "float", "float", "its input stays in float"]
    assert inputs["add"][1:] == ["", "", "float", "float", "no integer form: works on dequantized values"]


def test_an_operator_between_values_in_float_is_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            return F.relu(self.c(F.relu(torch.softmax(self.b(self.a(x)), 1))))

    prepared = quant.prepare(Net(), spec(method="ptq"))
    quant.calibrate(prepared, [torch.randn(4, 3, 8, 8)])
    rows, why = rows_of(prepared), "no integer form: works on dequantized values"
    assert rows["softmax"][1:] == ["", "", "float", "float", why]
    assert rows["relu"][1:] == ["", "", "8", "float", why], "an activation of a value that is float"
    assert rows["relu_1"][1:] == ["", "", "float", "float", why], "an activation of the logits"
    assert rows["c"][1:5] == ["8", "8", "float", "integers in float32"]


class NoInt8(Engine):
    name = "no int8"


def test_a_layer_without_an_exact_int8_kernel_is_noted_unless_the_engine_has_none():
    prepared = calibrated_residual()
    noted = {row[0]: row[-1] for row in quant.layer_rows(prepared, convert(prepared, NoInt8()))}
    assert noted["first.0"] == "no int8 kernel of this CPU is exact for it"
    assert noted["head.2"] == "", "logits are exact sums: they need no int8 kernel"
    assert rows_of(prepared)["first.0"][-1] == ""


def test_the_line_counts_kernels_and_names_eight_operators_in_float():
    prepared = calibrated_residual()
    model = quant.convert(prepared, "reference")
    assert quant.layer_summary(prepared, model) == "reference: 8 on integers in float32; every layer runs in integers"
    floats = calibrated_residual(act_bits=32)
    line = quant.layer_summary(floats, quant.convert(floats, "reference"))
    named = [row[0] for row in rows_of(floats).values() if row[4] == "float"]
    shown, rest = ", ".join(named[:8]), len(named) - 8
    assert line.endswith(f"in float: {shown}" + (f" and {rest} more" if rest > 0 else ""))


def test_the_table_has_the_rows_under_a_header():
    prepared = calibrated_residual()
    model = quant.convert(prepared, "reference")
    lines = quant.analysis.layer_table.layer_table(prepared, model).splitlines()
    assert lines[0].split() == ["layer", "weight", "bits", "input", "bits", "output", "bits", "runs", "on", "note"]
    for row in quant.layer_rows(prepared, model):
        assert any(line.split()[0] == row[0] and row[4] in line for line in lines), row
