"""Quantizers with an observed range: grids against NumPy, and when the range is updated."""

import numpy
import pytest
import torch

from quant.core.observed import ObservedActivationQuantizer
from tests.quant.core.helpers import make, observed


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_affine_quantizer_against_numpy(bits):
    x = torch.randn(4000) * 2 + 0.5
    y = observed(make("ptq", {}, "signed", bits, "per_tensor"), x)(x)
    values = x.numpy()
    low, high = min(values.min(), 0), max(values.max(), 0)
    scale = numpy.float32((high - low) / numpy.float32(2**bits - 1))
    zero = numpy.rint(-low / scale)
    q = numpy.clip(numpy.rint(values * (numpy.float32(1) / scale)) + zero, 0, 2**bits - 1)
    numpy.testing.assert_array_equal(y.numpy(), ((q - zero) * scale).astype(numpy.float32))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_symmetric_weights_against_numpy(bits):
    w = torch.randn(6, 5, 3, 3)
    y = observed(make("statassist", {}, "weight", bits, "per_channel"), w)(w)
    values, top = w.numpy(), 2 ** (bits - 1) - 1
    scale = numpy.abs(values).max(axis=(1, 2, 3), keepdims=True) / numpy.float32(top)
    q = numpy.clip(numpy.rint(values * (numpy.float32(1) / scale)), -top, top)
    numpy.testing.assert_array_equal(y.numpy(), q * scale)


def test_observers_rest_in_eval():
    quantizer = observed(make("statassist", {}, "signed", 8, "per_tensor"), torch.randn(100))
    before = quantizer.grid()
    quantizer.eval()(torch.randn(100) * 50)
    assert torch.equal(quantizer.grid().scale, before.scale)


@pytest.mark.parametrize(("observer", "kept"), [("minmax", 2), ("mse", 600)])
def test_members_that_await_others_keep_no_more_than_their_observer_uses(observer, kept):
    quantizer = ObservedActivationQuantizer(8, observer)
    quantizer.members, quantizer.observing = 2, True
    x = torch.randn(3, 200)
    quantizer(x)
    assert [member.numel() for member in quantizer._gathered] == [kept]
    assert not quantizer.is_calibrated()
    quantizer(9 * x)
    assert (quantizer.low, quantizer.high) == (9 * x.min(), 9 * x.max())
    assert quantizer._gathered == []
