"""A profile has a row for each operator of the integer model, with what is known of it, and adds up to the whole."""

import copy

import pytest
import torch

import quant
from quant.analysis import profile as profiles
from quant.engines.operator_programs import values_of
from quant.graph.views import without_quantizers
from tests.helpers import calibrated, prepared_gated, prepared_with
from tests.nets import Gated, Residual
from tests.quant.engines.test_operator_programs import prepared_parts


@pytest.fixture
def gated(monkeypatch):
    """A function engine -> (the prepared net, its integer model, its profile)."""
    monkeypatch.setattr(profiles, "peak", lambda engine: 100.0)
    prepared, images = prepared_gated()

    def take(engine: str):
        model = quant.convert(prepared, engine)
        plain = quant.float_baseline(Gated().eval())
        return prepared, model, quant.profile(prepared, model, plain, images[:2], 3)

    return take


@pytest.mark.parametrize("engine", ["reference", "fbgemm", "x86"])
def test_every_layer_and_operator_has_a_row_with_its_kernel(engine, gated):
    _, model, found = gated(engine)
    rows = {timed.name: timed for timed in found.operators}
    assert set(model.layers) <= set(rows)
    for name, converted in model.layers.items():
        assert rows[name].kernel == converted.kernel
        assert rows[name].float_ms is not None
    for name, kernel in model.operators.items():
        assert rows[name.removeprefix("operators.")].kernel == kernel
    assert rows["x"].reason.startswith("conversion")
    assert rows["x"].float_ms is None, "the float model quantizes no image"


def test_macs_are_those_of_all_images_and_give_operations_a_second(gated):
    prepared, _, found = gated("reference")
    counted = sum(timed.macs for timed in found.operators)
    assert counted == 2 * sum(quant.integer_share(prepared, 16).by_name.values())
    stem = next(timed for timed in found.operators if timed.name == "stem")
    assert stem.output == (2, 8, 14, 14)
    assert stem.macs == 2 * 27 * 8 * 14 * 14
    assert stem.gops == pytest.approx(2e-6 * stem.macs / stem.int8_ms)
    assert stem.peak_percent == pytest.approx(stem.gops)
    assert stem.lost_ms == pytest.approx(max(0, stem.int8_ms - 2e-6 * stem.macs / 100))


def test_what_calls_cost_is_left_out():
    assert profiles._without_calls({"a": 3.0, "b": 5.0}, 6.0) == {"a": 2.0, "b": 4.0}
    assert profiles._without_calls({"a": 3.0, "b": 5.0}, 9.0) == {"a": 3.0, "b": 5.0}
    assert profiles._without_calls({"a": 0.5, "b": 5.5}, 4.0) == {"a": 0.0, "b": 4.5}


def test_float_forms_compute_what_the_float_model_does():
    prepared, images = prepared_with(Residual(3), 8, (3, 12, 12))
    with torch.no_grad(), without_quantizers(prepared):
        expected = {node.name: value for node, value in values_of(prepared, images).items()}
    programs = profiles._float_programs(copy.deepcopy(prepared).requires_grad_(False), images)
    assert len(programs) > 5
    for name, program in programs.items():
        assert torch.allclose(program(), expected[name], atol=1e-4), name


def test_a_part_in_float_is_named_and_what_is_around_it_converts(gated):
    images = torch.randn(8, 3, 12, 12)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(1), torch.nn.Softmax(1))
    prepared = calibrated(torch.nn.Sequential(*net, torch.nn.Linear(400, 3)), images)
    model = quant.convert(prepared, "reference")
    found = quant.profile(prepared, model, prepared, images[:1], 2)
    reasons = {timed.name: timed.reason for timed in found.operators}
    assert any(reason.startswith("conversion") for name, reason in reasons.items() if "dequantize" in name)
    assert reasons["3"].startswith("in float"), "the softmax"


def test_a_layer_that_is_called_twice_has_the_macs_of_a_call_in_each_row(gated):
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.shared, self.fc = torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 4, 1), torch.nn.Linear(4, 3)

        def forward(self, x):
            x = torch.relu(self.shared(torch.relu(self.shared(torch.relu(self.stem(x))))))
            return self.fc(x.mean((2, 3)))

    images = torch.randn(8, 3, 6, 6)
    prepared = calibrated(Twice(), images)
    found = quant.profile(prepared, quant.convert(prepared, "reference"), prepared, images[:1], 2)
    assert [timed.macs for timed in found.operators if "shared" in timed.name] == [4 * 4 * 36] * 2


@pytest.mark.parametrize("engine", ["reference", "x86"])
def test_a_net_with_tuples_and_learned_constants_can_be_taken_apart(engine, gated):
    prepared, images = prepared_parts()
    found = quant.profile(prepared, quant.convert(prepared, engine), prepared, images[:1], 2)
    assert {"a", "fc"} <= {timed.name for timed in found.operators}
