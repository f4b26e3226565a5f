"""Batch norm's re-estimation: statistics are those of the images, of the quantized net, and nothing else moves."""

import copy

import pytest
import torch
from torch import nn

import quant
from quant.graph.quant_layers import QuantLayer
from quant.graph.views import layers
from tests.conftest import photos, spec
from tests.nets import Residual

METHODS = [name for name in quant.METHODS if name not in ("float", "ptq")]


def a_net(method: str) -> nn.Module:
    """A net in the middle of its training."""
    bits = {"statassist": 8}.get(method, 4)
    model = quant.prepare(Residual(10), spec(method=method, weight_bits=bits, act_bits=bits))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(3):
        model.train()(photos(16, 32)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize("method", METHODS)
def test_they_are_those_of_the_images_in_the_quantized_net(method):
    model = a_net(method)
    one, other = photos(16, 32).split(8)
    view = next(iter(layers(model).values()))  # the first layer, which reads the image alone
    layer, source, norm = view.layer, view.source, view.norm
    with torch.no_grad():
        model.eval()
        layer.weight_quantizer.train()
        sums = [layer.geometry(source(x), layer.used_weight(), layer.bias) for x in (one, other)]
    expected = torch.stack([y.mean((0, 2, 3)) for y in sums]).mean(0)
    spread = torch.stack([y.var((0, 2, 3)) for y in sums]).mean(0)
    quant.reestimate_batch_norm(model, [one, other])
    assert torch.allclose(norm.running_mean, expected, atol=1e-4)
    assert torch.allclose(norm.running_var, spread, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_else_moves_and_the_net_stays_exact_in_integers(method):
    model = a_net(method)
    model.train()(photos(16, 32))  # ranges of weights follow the last step
    before = copy.deepcopy(model.state_dict())
    quant.reestimate_batch_norm(model, [photos(16, 32)])
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") for name in changed)
    assert not any(module.training for module in model.modules())
    assert {module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}
    with torch.inference_mode():
        assert torch.equal(model(photos(16, 32)), quant.convert(model, "reference")(photos(16, 32)))


def test_the_same_images_give_the_same_again():
    model = a_net("lsq")
    quant.reestimate_batch_norm(model, [photos(16, 32)])
    first = copy.deepcopy(model.state_dict())
    quant.reestimate_batch_norm(model, [photos(16, 32)])
    assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())


def test_ranges_of_weights_are_those_of_the_weights_as_they_are():
    model = a_net("statassist")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.5)
    quant.reestimate_batch_norm(model, [photos(16, 32)])
    for module in model.modules():
        if isinstance(module, QuantLayer) and module.weight_quantizer is not None:
            assert torch.allclose(module.weight_quantizer.high, module.weight.flatten(1).amax(1))


def test_a_float_net_has_them_too():
    model = Residual(10)
    quant.reestimate_batch_norm(model, [photos(16, 32)])
    norm, convolution = (
        next(m for m in model.modules() if isinstance(m, kind)) for kind in (nn.BatchNorm2d, nn.Conv2d)
    )
    with torch.no_grad():
        assert torch.allclose(norm.running_mean, convolution(photos(16, 32)).mean((0, 2, 3)), atol=1e-5)
