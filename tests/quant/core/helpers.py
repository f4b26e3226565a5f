"""What the tests of quantizers share: one of each kind, data for it, and its calibration."""

import pytest
import torch

import quant
from quant.core import kernels
from tests.conftest import spec


def compile_or_skip() -> None:
    """Compile the kernels; skip the test where no C++ compiler is installed."""
    quant.compile_kernels()
    if not kernels.compiled():
        pytest.skip("no C++ compiler")


def make(method: str, options: dict, kind: str, bits: int, granularity: str):
    settings = spec(method=method, granularity=granularity, weight_bits=4, reduce_range=False, **options)
    row = quant.METHODS[method]
    if kind == "weight":
        return row.weight(settings, bits, (6, 5, 4, 4))
    if kind == "residual":
        return row.residual(settings, bits, True)
    return row.activation(settings, bits, kind == "signed")


def sample(kind: str) -> torch.Tensor:
    x = torch.randn(6, 5, 4, 4) * torch.linspace(0.1, 2, 6).view(6, 1, 1, 1)
    return x.relu() if kind == "unsigned" else x


def observed(quantizer, x):
    quantizer.train()(x)
    quantizer.finish_observing()
    return quantizer.eval()
