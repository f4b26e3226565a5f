"""Parameters and multiply-accumulates, counted by hand."""

import pytest
from torch import nn

from utils.complexity import complexity


def net() -> nn.Sequential:
    conv = nn.Conv2d(3, 4, 3, padding=1, stride=2, bias=False)
    depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    return nn.Sequential(conv, nn.BatchNorm2d(4), depthwise, nn.Flatten(), nn.Linear(4 * 16, 10))


def test_counted_by_hand():
    params = 3 * 4 * 9 + 2 * 4 + (4 * 9 + 4) + (64 * 10 + 10)
    convolutions = 3 * 9 * 4 * 16 + 9 * 4 * 16
    assert complexity(net(), 8) == (params, convolutions + 640)
    assert complexity(net(), 8, (nn.Conv2d,)) == (params, convolutions)


def test_the_model_is_left_as_it_was():
    model = net().train()
    model[1].eval()
    complexity(model, 8)
    assert [m.training for m in model] == [True, False, True, True, True]
    assert model[1].num_batches_tracked == 0
    with pytest.raises(RuntimeError):
        complexity(model, 16)
    assert [m.training for m in model] == [True, False, True, True, True]
    assert not any(m._forward_hooks for m in model)
