"""Calibration finds all ranges in the float net."""

import torch
from torch import nn

import quant
from quant.graph.views import layers, quantizers
from quant.ptq.calibrate import calibrate
from tests.conftest import photos, spec


def net() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten())
    return model.append(nn.Linear(720, 3)).eval()


def test_ranges_are_those_of_the_float_net_on_all_batches():
    """Each quantizer sees what the float net computes, not what the quantizers before it make of it."""
    model, batches = net(), [photos(4, 16), 3 * photos(4, 16), photos(2, 16)]
    prepared = quant.prepare(model, spec(method="ptq", weight_bits=2, act_bits=2, observer="minmax"))
    calibrate(prepared, batches)
    with torch.no_grad():
        image = torch.cat(batches)
        hidden = model[:3](image)
        last = model[3](hidden)
    inputs = {name: view.source for name, view in layers(prepared).items()}
    assert list(inputs) == ["0", "3", "5"]
    for quantizer, values in zip(inputs.values(), (image, hidden, last), strict=True):
        found, expected = torch.stack([quantizer.low, quantizer.high]), torch.stack(torch.aminmax(values))
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_quantizers_are_on_and_observe_no_longer():
    prepared = quant.prepare(net(), spec(method="ptq"))
    assert not any(q.is_calibrated() for q in quantizers(prepared).values())
    calibrate(prepared.train(), [photos(4, 16)])
    assert not prepared.training
    assert all(q.is_calibrated() and q.enabled and not q.observing for q in quantizers(prepared).values())
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    prepared(100 * photos(4, 16))
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())


def test_batch_norm_statistics_and_weights_stay():
    model = net()
    prepared = quant.prepare(model, spec(method="ptq"))
    calibrate(prepared.train(), [photos(4, 16)])
    state = prepared.state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(state[name], value), name


def test_a_range_of_all_batches_together_is_searched_at_the_end():
    """`mse` and `percentile` keep a sample of every batch."""
    prepared = quant.prepare(net(), spec(method="ptq", act_bits=2, observer="mse"))
    calibrate(prepared, [photos(4, 16), 9 * photos(2, 16)])
    quantizer = next(q for q in quantizers(prepared).values() if q.bits == 2 and not q.low.ndim)
    assert quantizer.observer.range is None, "nothing is left over"
    assert quantizer.observer.sample == []


def test_no_gradients_are_recorded():
    prepared = quant.prepare(net(), spec(method="ptq"))
    calibrate(prepared, [photos(2, 16)])
    assert all(p.grad is None for p in prepared.parameters())
