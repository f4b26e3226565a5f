"""A model in eval mode for a while, and then in its modes again."""

import contextlib

import pytest
from torch import nn

from utils.eval_mode import in_eval_mode


@pytest.mark.parametrize("fails", [False, True])
def test_each_module_gets_its_mode_back(fails):
    model = nn.Sequential(nn.ReLU(), nn.Dropout()).train()
    model[0].eval()
    with contextlib.suppress(ValueError), in_eval_mode(model):
        assert not any(module.training for module in model.modules())
        if fails:
            raise ValueError
    assert [module.training for module in model.modules()] == [True, False, True]
