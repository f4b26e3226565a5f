"""The running statistics of a batch norm, which its eval mode computes with."""

import pytest
import torch
from torch import nn

from quant.core.batch_norm import running_statistics


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_the_statistics_are_those_of_eval_mode(kind):
    norm, x = kind(3, affine=False), torch.randn(5, 3, *[4] * (2 if kind is nn.BatchNorm2d else 1))
    norm(x)
    mean, variance = (value.view(1, 3, *[1] * (x.ndim - 2)) for value in running_statistics(norm))
    assert torch.allclose(norm.eval()(x), (x - mean) / (variance + norm.eps).sqrt(), atol=1e-5)


def test_a_norm_without_them_is_refused():
    with pytest.raises(ValueError, match="without running statistics"):
        running_statistics(nn.BatchNorm2d(3, track_running_stats=False))
