"""torch's global engine, which the native engines read and leave as it was."""

import pytest
import torch

import quant
from tests.conftest import KERNELS


@pytest.mark.parametrize("engine", [e for e in KERNELS if e != "reference"])
def test_running_does_not_depend_on_the_global_engine(engine, net, digits32):
    _, images, _ = digits32
    model, before = quant.convert(net, engine), torch.backends.quantized.engine
    expected = model(images[:16])
    try:
        for other in torch.backends.quantized.supported_engines:
            torch.backends.quantized.engine = other
            assert torch.equal(model(images[:16]), expected)
            assert torch.backends.quantized.engine == other, "left as it was"
    finally:
        torch.backends.quantized.engine = before
