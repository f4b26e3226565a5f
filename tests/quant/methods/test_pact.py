"""PACT against its equations in NumPy, and its nets in integers."""

import numpy
import pytest
import torch

import models
import quant
from quant.methods import pact
from tests.conftest import a_step, agrees_in_integers, build_optimizer, spec, trained
from utils.errors import UserError
from utils.training import optim


@pytest.mark.parametrize("k", range(2, 9))
@pytest.mark.parametrize("signed", [False, True])
def test_forward_and_gradients_against_the_equations(k, signed):
    quantizer = pact.activation(spec(method="pact", alpha_init=1.3), k, signed).train()
    x, upstream = torch.randn(6, 40, requires_grad=True), torch.randn(6, 40)
    out = quantizer(x)
    out.backward(upstream)
    values, g, alpha = x.detach().double().numpy(), upstream.double().numpy(), 1.3
    low, steps = (-alpha, 2 ** (k - 1) - 1) if signed else (0, 2**k - 1)
    expected = numpy.rint(numpy.clip(values, low, alpha) * steps / alpha) * alpha / steps
    of_alpha = (g * (values >= alpha)).sum() - ((g * (values <= -alpha)).sum() if signed else 0)
    assert numpy.allclose(out.detach().numpy(), expected, atol=1e-6)
    assert numpy.allclose(x.grad.numpy(), g * ((values >= low) & (values <= alpha)), atol=1e-6)
    assert numpy.isclose(float(quantizer.alpha.grad), of_alpha, rtol=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_calibration_finds_the_clip_of_least_error(bits):
    quantizer = pact.activation(spec(method="pact"), bits, False).train()
    x = torch.randn(20_000).relu()
    quantizer(x)

    def error(alpha):
        steps = 2**bits - 1
        return ((numpy.rint(numpy.clip(x.numpy(), 0, alpha) * steps / alpha) * alpha / steps - x.numpy()) ** 2).mean()

    best = min(error(alpha) for alpha in numpy.linspace(0.2, float(x.max()), 300))
    assert error(quantizer.alpha.item()) <= 1.02 * best


def test_alpha_stays_positive():
    quantizer = pact.activation(spec(method="pact", alpha_init=1.0), 4, False).train()
    with torch.no_grad():
        quantizer.alpha.fill_(-1)
    quantizer(torch.rand(10)).sum().backward()
    assert quantizer.alpha > 0
    assert quantizer.grid().scale > 0
    assert quantizer.alpha.grad == 10, "and can grow again"


def test_the_clips_that_the_optimizer_holds_move_and_their_decay_is_counted_once():
    model = models.build("resnet20", 10, 32, {})
    optimizer = build_optimizer(model, lr=0.05, momentum=0.0, nesterov=False, weight_decay=0.5)
    model = quant.prepare(model, spec(method="pact", weight_bits=4, act_bits=4, alpha_decay=0.01)).train()
    optim.add_learned(optimizer, quant.learned(model), 1.0)
    optim.check_covers(optimizer, model)
    clips = {name: q.alpha for name, q in quant.quantizers(model).items() if hasattr(q, "alpha")}
    assert len(clips) >= 18, "one for each input of a hidden layer"
    a_step(model, optimizer)
    before = {name: alpha.detach().clone() for name, alpha in clips.items()}
    a_step(model, optimizer)
    optim.check_covers(optimizer, model)
    held = next(g for g in optimizer.param_groups if any(p is next(iter(clips.values())) for p in g["params"]))
    assert {id(p) for p in held["params"]} == {id(p) for p in clips.values()}
    assert held["weight_decay"] == 0.02, "the gradient of 0.01 alpha^2 is 0.02 alpha"
    for name, quantizer in quant.quantizers(model).items():
        if name in clips:
            assert quantizer.alpha is clips[name]
            assert not torch.equal(quantizer.alpha, before[name]), f"{name} moves"


@pytest.mark.parametrize(("bits", "options", "least"), [(2, {}, 85), (8, {}, 95), (4, {"weights": "dorefa"}, 95)])
def test_a_net_learned_on_digits_is_the_same_in_integers(bits, options, least, digits16):
    settings = spec(method="pact", weight_bits=bits, act_bits=bits, **options)
    agrees_in_integers(trained(digits16, "tests.nets:Residual", {}, 15, settings), digits16, least)


def test_only_dorefas_weights_are_on_another_scale_and_must_fit_in_int8():
    rescales = pact.METHOD.rescales
    assert rescales(spec(method="pact", weights="dorefa", weight_bits=4))
    assert not rescales(spec(method="pact", weights="dorefa", weight_bits=32))
    assert not rescales(spec(method="pact", weights="sawb", weight_bits=4))
    spec(method="pact", weights="sawb", weight_bits=8)
    with pytest.raises(UserError, match=r"^quant.weight_bits: pact with weights dorefa cannot use 8 bits"):
        spec(method="pact", weights="dorefa", weight_bits=8)
