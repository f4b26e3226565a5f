"""Which layer hurts: measured by the switches of the prepared net, checked against layers quantized by hand."""

import copy

import pytest
import torch

import quant
from quant.analysis.sensitivity import kl_divergence
from quant.graph.views import layers, only
from tests.conftest import a_step, spec

BITS = {"method": "ptq", "weight_bits": 8, "act_bits": 8, "observer": "mse", "layers": {"2": {"weight_bits": 2}}}


@pytest.fixture(scope="module")
def prepared(plain_net, digits16):
    model = quant.prepare(copy.deepcopy(plain_net), spec(**BITS))
    quant.calibrate(model, (x for x, _ in digits16[0]))
    return model


def in_two(digits16) -> list:
    _, images, labels = digits16
    return [(images[:200], labels[:200]), (images[200:], labels[200:])]


def test_the_layer_of_two_bits_hurts_most_and_the_net_is_left_as_it_was(prepared, digits16):
    with torch.inference_mode():
        before = prepared(digits16[1])
    found = quant.sensitivity(prepared, in_two(digits16))
    worst = found["rows"][0]
    assert (worst["layer"], worst["weight_bits"], worst["input_bits"]) == ("2", 2, 8)
    assert worst["kl_divergence"] > 10 * found["rows"][1]["kl_divergence"] > 0
    assert worst["weight_sqnr_db"] < 12 < 30 < min(row["weight_sqnr_db"] for row in found["rows"][1:])
    divergences = [row["kl_divergence"] for row in found["rows"]]
    assert divergences == sorted(divergences, reverse=True)
    assert {row["layer"] for row in found["rows"]} == {"0", "2", "4", "8"}
    assert all(quantizer.enabled for quantizer in quant.quantizers(prepared).values())
    with torch.inference_mode():
        assert torch.equal(prepared(digits16[1]), before)


def on_grid(grid, seen: list):
    def hook(module, given):
        seen.append(given[0])
        return grid.value(grid.centred(given[0]))

    return hook


def test_it_is_what_a_layer_quantized_by_hand_gives(prepared, plain_net, digits16):
    _, images, labels = digits16
    found = quant.sensitivity(prepared, in_two(digits16))
    for name, placed in layers(prepared).items():
        w, x = placed.layer.weight_quantizer.grid(), placed.source.grid()
        by_hand = copy.deepcopy(plain_net).requires_grad_(False)
        layer, seen = by_hand.get_submodule(name), []
        with torch.no_grad():
            weight = layer.weight.clone()
            layer.weight.copy_(w.value(w.centred(weight)))
            layer.register_forward_pre_hook(on_grid(x, seen))
            logits, in_float = by_hand(images), plain_net(images)
        row = next(row for row in found["rows"] if row["layer"] == name)
        assert row["only_top1"] == pytest.approx(100 * float((logits.argmax(1) == labels).float().mean()))
        p, q = in_float.double().softmax(1), logits.double().softmax(1)
        assert row["kl_divergence"] == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-2, abs=1e-9)
        for v, v_hat, key in ((weight, layer.weight, "weight"), (seen[0], x.value(x.centred(seen[0])), "input")):
            by_formula = 10 * torch.log10(v.double().square().sum() / (v - v_hat).double().square().sum())
            assert row[f"{key}_sqnr_db"] == pytest.approx(float(by_formula), abs=0.01)


def test_all_but_a_layer_is_the_net_without_its_quantizers(prepared, digits16):
    _, images, labels = digits16
    found = quant.sensitivity(prepared, in_two(digits16))
    own = layers(prepared)["2"].quantizers()
    with only(prepared, [q for q in quant.quantizers(prepared).values() if q not in own]), torch.inference_mode():
        top1 = 100 * float((prepared(images).argmax(1) == labels).float().mean())
    assert next(row for row in found["rows"] if row["layer"] == "2")["all_but_top1"] == pytest.approx(top1)
    assert top1 > found["all_top1"]


@pytest.mark.parametrize("method", [name for name in quant.METHODS if name not in ("float", "ptq")])
def test_every_method_is_measured(method, plain_net, digits16):
    model = quant.prepare(copy.deepcopy(plain_net), spec(method=method, weight_bits=4, act_bits=4))
    a_step(model.train(), torch.optim.SGD(model.parameters(), lr=0.0))
    found = quant.sensitivity(model.eval(), in_two(digits16))
    assert len(found["rows"]) == 4
    assert all(row["kl_divergence"] > 0 for row in found["rows"])
    assert found["float_top1"] > 90


def test_what_stays_float_has_no_noise_and_a_layer_all_in_float_no_row(plain_net, digits16):
    settings = spec(method="ptq", act_bits=32, layers={"2": "float"})
    model = quant.prepare(copy.deepcopy(plain_net), settings)
    quant.calibrate(model, (x for x, _ in digits16[0]))
    rows = {row["layer"]: row for row in quant.sensitivity(model, in_two(digits16))["rows"]}
    assert set(rows) == {"0", "4", "8"}
    assert all(row["input_bits"] == 32 and row["input_sqnr_db"] is None for row in rows.values())
    assert all(row["weight_sqnr_db"] > 30 for row in rows.values())


def test_the_divergence_is_zero_of_equals_and_grows():
    p = torch.randn(5, 10)
    assert (kl_divergence(p, p + 3.0).abs() < 1e-6).all(), "softmax does not see a constant"
    assert (kl_divergence(p, p + 0.1 * torch.randn(5, 10)) < kl_divergence(p, torch.randn(5, 10) * 3)).all()
