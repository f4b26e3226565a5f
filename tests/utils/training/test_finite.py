"""The first module whose output is NaN or infinite is named."""

import pytest
import torch
from torch import nn

from utils.training.finite import first_not_finite


class Divide(nn.Module):
    def forward(self, x):
        return x / 0.0


def test_the_first_module_in_the_order_of_computation_is_named():
    model = nn.Sequential(nn.Linear(3, 3), Divide(), nn.Linear(3, 2))
    assert first_not_finite(model, torch.ones(2, 3)) == "1"
    assert not any(m._forward_hooks for m in model.modules()), "hooks are removed"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_mentioned(value):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    nn.init.constant_(model[1].weight, value)
    assert first_not_finite(model, torch.ones(2, 3)) == "1, whose weights are not finite either"


def test_finite_outputs_leave_the_loss():
    assert first_not_finite(nn.Sequential(nn.Linear(3, 3)), torch.ones(2, 3)).startswith("no module's")
