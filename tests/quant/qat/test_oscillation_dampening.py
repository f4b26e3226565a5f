"""The gradient of the dampening term against autograd, and that it keeps weights at their integers."""

import pytest
import torch

import quant
from quant.graph.quant_layers import QuantLayer
from quant.qat.oscillation_dampening import Dampening, distance_to_grid
from tests.conftest import photos, spec
from tests.nets import plain
from utils.errors import UserError

METHODS = [name for name, method in quant.METHODS.items() if "oscillation_dampening" in method.options.model_fields]


def a_net(method: str, bits: int = 3):
    model = quant.prepare(plain(10), spec(method=method, weight_bits=bits, act_bits=4)).train()
    model(photos(8, 32))
    layers = [module for module in model.modules() if isinstance(module, QuantLayer)]
    return model, [layer for layer in layers if layer.weight_quantizer is not None]


@pytest.mark.parametrize("method", METHODS)
def test_it_adds_the_gradient_of_the_term(method):
    model, layers = a_net(method)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    Dampening(optimizer, model, 0.25, lambda: 0.5)
    for layer in layers:
        layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.step()
    for layer in layers:
        grid = layer.weight_quantizer.grid()
        w = layer.weight.detach().double().requires_grad_()
        s = grid.scale.double().view(-1, *[1] * (w.ndim - 1)) if grid.scale.ndim else grid.scale.double()
        w_hat = s * (w.detach() / s).round().clamp(grid.q_min, grid.q_max)
        inside = torch.minimum(torch.maximum(w, s * grid.q_min), s * grid.q_max)
        (0.125 * (w_hat - inside).square().sum()).backward()  # half of the way: half of the strength
        added = layer.weight.grad - 1
        close = (added - w.grad).abs() < 1e-5
        assert close.float().mean() > 0.999, "but for ties"


@pytest.mark.parametrize("method", METHODS)
def test_it_starts_at_nothing_and_draws_weights_to_their_integers(method):
    model, layers = a_net(method)
    optimizer = torch.optim.SGD([layer.weight for layer in layers], lr=0.1)
    progress = 0.0
    Dampening(optimizer, model, 1.0, lambda: progress)

    @torch.no_grad()
    def far() -> float:
        return float(sum(distance_to_grid(layer).square().sum() for layer in layers))

    def step() -> None:
        for layer in layers:
            layer.weight.grad = torch.zeros_like(layer.weight)
        optimizer.step()

    before = far()
    step()
    assert far() == before
    progress = 1.0
    for _ in range(20):
        step()
    assert far() < 0.01 * before


def test_methods_whose_weights_are_not_rounded_as_they_are_refuse_it():
    with pytest.raises(
        UserError, match=r"quant.oscillation_dampening is read by lsq, statassist.*; quant.method is dorefa"
    ):
        spec(method="dorefa", weight_bits=4, oscillation_dampening=0.1)
