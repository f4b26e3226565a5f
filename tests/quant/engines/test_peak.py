"""The peak is what the engine itself reaches: positive, and measured once for a number of threads."""

import torch

import quant
from quant.engines import peak


def test_the_peak_is_measured_on_large_layers_and_once(monkeypatch):
    monkeypatch.setattr(peak, "LARGE", peak.LARGE[2:])
    engine, calls = quant.engine("reference"), []
    real = peak._gops
    monkeypatch.setattr(peak, "_gops", lambda *given: calls.append(given) or real(*given))
    first = peak.peak(engine)
    assert first == peak.peak(engine) > 0
    assert len(calls) == 1


def test_operations_are_two_for_each_multiply_accumulate(monkeypatch):
    monkeypatch.setattr(peak, "_seconds", lambda run, x: 2.0)
    for geometry, weight, images in peak.LARGE:
        with torch.device("meta"):
            x = torch.empty(images)
            y = geometry(x, torch.empty(weight))
        macs = y.numel() * torch.Size(weight[1:]).numel()
        assert peak._gops(quant.engine("reference"), geometry, weight, images) == 1e-9 * macs
