"""Quantizers switched on and off."""

import pytest
import torch

import quant
from tests.conftest import spec
from tests.helpers import SMALL, build, size_of


@pytest.mark.parametrize(("name", "form"), SMALL)
def test_with_quantizers_off_it_is_the_float_net(name, form):
    model = build(name, form).eval()
    x = torch.randn(2, 3, size_of(name, form), size_of(name, form))
    expected = model(x)
    prepared = quant.prepare(model, spec(method="ptq"))
    quant.set_enabled(prepared, False)
    assert torch.allclose(prepared.eval()(x), expected, rtol=1e-4, atol=1e-5)
