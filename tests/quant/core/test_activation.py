"""ClampedAffine computes torch's own activations."""

import pytest
import torch
import torch.nn.functional as F

from quant.core.activation import IDENTITY, ClampedAffine

ACTIVATIONS = {
    F.relu: ClampedAffine(0.0, float("inf")),
    F.relu6: ClampedAffine(0.0, 6.0),
    F.hardtanh: ClampedAffine(-1.0, 1.0),
    F.hardsigmoid: ClampedAffine(0.0, 1.0, 1 / 6, 0.5),
}


@pytest.mark.parametrize("function", ACTIVATIONS, ids=lambda function: function.__name__)
def test_it_is_the_activation(function):
    x = torch.linspace(-8, 8, 1001)
    assert torch.allclose(ACTIVATIONS[function](x), function(x), rtol=0, atol=1e-6)


def test_only_hard_sigmoid_does_more_than_clamp():
    assert [a.is_clamp for a in ACTIVATIONS.values()] == [True, True, True, False]


def test_the_identity_returns_its_input():
    x = torch.randn(3)
    assert IDENTITY(x) is x
    assert IDENTITY.is_clamp
