"""Which class of torch.nn a module computes like."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from quant.graph.plain_classes import FrozenBatchNorm, RowConvolution, pad_same, pads_same, plain_class


class Inherits(nn.Conv2d):
    """With an initialization of its own."""

    def __init__(self):
        super().__init__(3, 4, 3)

    def reset_parameters(self):
        nn.init.zeros_(self.weight)


class Forward(nn.Conv2d):
    def forward(self, x):
        return -super().forward(x)


class Helper(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight.abs(), bias)


class Computed(nn.Conv2d):
    @property
    def scale(self):
        return 2


class Block(nn.Sequential):
    pass


def with_a_forward_of_its_own() -> nn.Module:
    module = nn.ReLU()
    module.forward = lambda x: -x
    return module


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Conv2d(3, 4, 3), nn.Conv2d),
        (Inherits(), nn.Conv2d),
        (nn.ReLU6(), nn.ReLU6),
        (Forward(3, 4, 3), None),
        (Helper(3, 4, 3), None),
        (Computed(3, 4, 3), None),
        (with_a_forward_of_its_own(), None),
        (parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), None),
        (nn.Sequential(nn.ReLU()), None),
        (Block(), None),
        (nn.ModuleList(), None),
        (type("Own", (nn.Module,), {"forward": lambda self, x: x})(), None),
        (FrozenBatchNorm(3), FrozenBatchNorm),
        (RowConvolution(3, 4, (1, 3)), RowConvolution),
    ],
)
def test_a_module_computes_like_the_class_that_it_inherits_unchanged(module, expected):
    assert plain_class(module) is expected


def test_a_frozen_batch_norm_stays_in_eval_mode():
    norm, x = FrozenBatchNorm(3).train(), torch.randn(2, 3, 4, 4)
    norm(x)
    assert not norm.training
    assert torch.equal(norm.running_mean, torch.zeros(3))


def test_a_convolution_of_rows_is_the_one_of_lines():
    line = nn.Conv1d(4, 6, 3, 2, padding=1, groups=2)
    row = RowConvolution(4, 6, (1, 3), (1, 2), (0, 1), groups=2)
    row._parameters, x = line._parameters, torch.randn(2, 4, 9)
    assert torch.allclose(row(x.unsqueeze(2)).squeeze(2), line(x), atol=1e-6)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [7, 8, 9])
def test_zeros_for_as_many_outputs_as_strides_fit(size, kernel, stride):
    x = torch.ones(1, 1, size, size)
    padded = pad_same(x, (kernel, kernel), (stride, stride), (1, 1))
    assert F.max_pool2d(padded, kernel, stride).shape[-1] == -(-size // stride)
    more = padded.shape[-1] - size
    assert padded[0, 0, more // 2, more // 2] == 1, "of an odd number, the one more is behind"
    assert padded.sum() == size * size


class Same(nn.Conv2d):
    def forward(self, x):
        return F.conv2d(pad_same(x, self.kernel_size, self.stride, self.dilation), self.weight, self.bias, self.stride)


class Front(nn.Conv2d):
    """The zeros in front: no 'same' of TensorFlow's."""

    def forward(self, x):
        return F.conv2d(F.pad(x, (1, 0, 1, 0)), self.weight, self.bias, self.stride)


def test_same_is_known_by_what_it_computes():
    assert pads_same(Same(3, 4, 3, 2))
    assert not pads_same(Front(3, 4, 3, 2))
    assert not pads_same(nn.Conv2d(3, 4, 3, padding="same")), "which is no subclass"
    assert not pads_same(Forward(3, 4, 3))
    assert not pads_same(nn.ReLU())
