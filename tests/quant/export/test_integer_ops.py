"""The operators that travel with an exported model: exact with oneDNN's kernels and without them."""

import numpy
import pytest
import torch

from quant.export import integer_ops
from quant.export.integer_ops import _exact, _float64, layer, logits

GEOMETRIES = {
    "3x3": ((6, 4, 3, 3), [1, 1, 1, 1, 1, 1, 1]),
    "strided": ((6, 4, 3, 2), [2, 1, 0, 1, 1, 1, 1]),
    "dilated": ((6, 4, 3, 3), [1, 1, 2, 2, 2, 2, 1]),
    "grouped": ((6, 2, 3, 3), [1, 1, 1, 1, 1, 1, 2]),
    "linear": ((6, 4), []),
}


@pytest.fixture(params=["onednn", "float64"])
def way(request, monkeypatch):
    if request.param == "onednn" and not _exact():
        pytest.skip("oneDNN's int8 kernels are not exact on this CPU")
    monkeypatch.setattr(integer_ops, "_exact", lambda: request.param == "onednn")
    return request.param


def integer_sums(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, geometry: list[int], zero: int):
    """sum (x - zero) weight + bias in int64, by definition."""
    n, w = x.numpy().astype(numpy.int64) - zero, weight.numpy().astype(numpy.int64)
    if not geometry:
        return n @ w.T + bias.numpy().astype(numpy.int64)
    (sh, sw, ph, pw, dh, dw, groups), (out, each, kh, kw) = geometry, w.shape
    n = numpy.pad(n, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    height, width = (n.shape[2] - dh * (kh - 1) - 1) // sh + 1, (n.shape[3] - dw * (kw - 1) - 1) // sw + 1
    y = numpy.zeros((len(n), out, height, width), numpy.int64) + bias.numpy().astype(numpy.int64).reshape(-1, 1, 1)
    for o in range(out):
        group = o // (out // groups)
        for c in range(each):
            for i in range(kh):
                for j in range(kw):
                    part = n[:, group * each + c, i * dh :, j * dw :][:, ::sh, ::sw][:, :height, :width]
                    y[:, o] += part * w[o, c, i, j]
    return y


def example(name: str):
    shape, geometry = GEOMETRIES[name]
    x = torch.randint(0, 256, (2, 4, 8, 8) if geometry else (5, 4), dtype=torch.uint8)
    weight = torch.randint(-127, 128, shape).to(torch.int8)
    bias, scale = torch.randint(-5000, 5000, (6,)).float(), 0.001 + 0.002 * torch.rand(6)
    return x, weight, bias, scale, geometry


@pytest.mark.parametrize("name", GEOMETRIES)
def test_logits_are_exact_sums_times_their_scale(name, way):
    x, weight, bias, scale, geometry = example(name)
    sums = torch.from_numpy(integer_sums(x, weight, bias, geometry, 17)).float()
    expected = sums * (scale.view(-1, 1, 1) if geometry else scale)
    assert torch.equal(logits(x, weight, bias, scale, geometry, 17), expected)


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("fused", [False, True])
def test_a_layer_rounds_and_clamps(name, fused, way):
    x, weight, bias, scale, geometry = example(name)
    sums = torch.from_numpy(integer_sums(x, weight, bias, geometry, 17)).float()
    real = sums * (scale.view(-1, 1, 1) if geometry else scale)
    expected = (real.round() + 100).clamp(30, 190).to(torch.uint8)
    found = layer(x, weight, bias, scale, geometry, 17, 100, 30, 190, fused)
    near_tie = (real - real.floor() - 0.5).abs() < 1e-4
    assert found.dtype == torch.uint8
    assert torch.equal(found[~near_tie], expected[~near_tie])
    assert fused or torch.equal(found, expected)
    assert len(found.unique()) > 20
    assert found.min() >= 30
    assert found.max() <= 190
    assert name == "linear" or (found.min(), found.max()) == (30, 190)


def test_a_saturating_onednn_is_not_used(monkeypatch):
    """Then sums are computed in float64: the same integers."""
    real = integer_ops._onednn

    def saturating(x, weight, scale, bias, geometry, x_zero_point, zero_point, out):
        found = real(x, weight, scale, bias, geometry, x_zero_point, zero_point, out)
        return found.clamp(max=2.0**15) if out is torch.float32 else found.clamp(max=99)

    monkeypatch.setattr(integer_ops, "_onednn", saturating)
    _exact.cache_clear()
    try:
        assert not _exact()
        x, weight, bias, scale, geometry = example("3x3")
        sums = torch.from_numpy(integer_sums(x, weight, bias, geometry, 0)).float()
        assert sums.max() > 2.0**15
        assert torch.equal(logits(x, weight, bias, torch.ones(6), geometry, 0), sums)
        expected = (sums * scale.view(-1, 1, 1)).round().add(100).clamp(0, 255).to(torch.uint8)
        assert torch.equal(layer(x, weight, bias, scale, geometry, 0, 100, 0, 255, True), expected)
    finally:
        _exact.cache_clear()


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, AttributeError])
def test_a_build_without_onednn_computes_in_float64(error, monkeypatch):
    def absent(*_):
        raise error

    monkeypatch.setattr(integer_ops, "_onednn", absent)
    _exact.cache_clear()
    try:
        assert not _exact()
        x, weight, bias, scale, geometry = example("linear")
        sums = _float64(x, weight, bias, geometry, 3).float()
        assert torch.equal(logits(x, weight, bias, scale, geometry, 3), sums * scale)
    finally:
        _exact.cache_clear()


@pytest.mark.parametrize("name", ["strided", "linear"])
def test_the_graph_knows_shapes_and_types(name):
    """torch.export runs the operators on no memory at all."""
    x, weight, bias, scale, geometry = example(name)
    expected = logits(x, weight, bias, scale, geometry, 0)
    with torch._subclasses.FakeTensorMode() as mode:
        given = [mode.from_tensor(value) for value in (x, weight, bias, scale)]
        floats = torch.ops.integer.logits(*given, geometry, 0)
        integers = torch.ops.integer.layer(*given, geometry, 0, 0, 0, 255, False)
    assert (floats.shape, floats.dtype) == (expected.shape, torch.float32)
    assert (integers.shape, integers.dtype) == (expected.shape, torch.uint8)
    assert integers.stride() == expected.stride()
