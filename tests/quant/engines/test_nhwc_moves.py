"""Operators that move values return what torch's do."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quant.engines.nhwc_builder import NotThere
from quant.engines.nhwc_moves import pooled
from tests.helpers import run_on

MOVES = {
    "relu": torch.relu,
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool_ceil": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "max_pool_sides": lambda x: F.max_pool2d(x, (3, 2), (2, 1), (1, 0)),
    "flatten": lambda x: x.flatten(1),
    "to_tokens": lambda x: x.flatten(2).transpose(1, 2),
    "from_tokens": lambda x: x.flatten(2).transpose(1, 2).transpose(1, 2).reshape(x.shape),
    "view": lambda x: x.view(2, 3, 2, 63),
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "transpose": lambda x: x.transpose(2, 3),
    "cat": lambda x: torch.cat([x, x + 1, x, x, x, x], 1),
    "cat_rows": lambda x: torch.cat([x, x + 1], -2),
    "slice": lambda x: x[:, 1:5, 2:, :-1],
    "slice_channels": lambda x: torch.cat([x[:, ::2], x[:, 3:6:2]], 1),
    "slice_columns": lambda x: x[..., 1::3] + x[:, :, :, 4::3][..., :1],
    "chunk": lambda x: torch.cat([*x.chunk(2, 1)][::-1], 1),
    "split": lambda x: x.split([1, 5], 1)[1],
    "select": lambda x: x[:, 2],
    "squeeze": lambda x: x[:, :1].squeeze(1).unsqueeze(1),
    "nearest": lambda x: F.interpolate(x, scale_factor=(2, 5)),
    "nearest_to_size": lambda x: F.interpolate(x, size=(7, 18)),
    "relu_in_place": lambda x: F.relu_(y := x + 1) + y,
    "roll": lambda x: x.roll((2, -3), (1, 3)),
    "cast": lambda x: x.to(torch.float32) + 1,
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "swap": lambda x: x.swapaxes(1, 2),
    "expand": lambda x: x[:, :, :1, :1].expand(-1, -1, 4, 5),
    "expand_as": lambda x: x[:, :1].expand_as(x),
    "expand_front": lambda x: x[0].expand(3, -1, -1, -1),
    "unbind": lambda x: torch.stack(x.unbind(1)[::-1], 2),
    "new_zeros": lambda x: x + x.new_zeros(9).fill_(0.5),
    "constants": lambda x: x + torch.arange(9.0).cumsum(0).cos(),
    "pad": lambda x: F.pad(x, (1, 2, 0, 1, 3, 0)),
    "pad_value": lambda x: F.pad(x, (1, 2), value=0.5),
}


class Call(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.run = run

    def forward(self, x):
        return self.run(x)


@pytest.mark.parametrize("name", MOVES)
def test_values_are_moved_as_torch_moves_them(name, builder):
    x = torch.randn(2, 6, 7, 9)
    assert torch.equal(run_on(builder, Call(MOVES[name]), x), MOVES[name](x))


REFUSED = {
    "reflected": lambda x: F.pad(x, (1, 1, 1, 1), "reflect"),
    "step": lambda x: x[:, ::3],
    "double": lambda x: x.to(torch.float64),
}
REFUSED_BY = {
    "XNNPACK": {"rows_left_out": lambda x: F.max_pool2d(x, 1, 2)},
    "LiteRT": {"dilated_pool": lambda x: F.max_pool2d(x, 2, 1, dilation=2)},
}


def test_what_a_runtime_does_not_have_is_refused(builder):
    for run in (REFUSED | REFUSED_BY[builder.runtime]).values():
        with pytest.raises(NotThere, match=rf"^{builder.runtime} has no"):
            run_on(builder, Call(run), torch.zeros(1, 4, 6, 6))


def test_windows_of_a_pool():
    assert pooled(7, 3, 2, 1, 1, False) == (4, 1)
    assert pooled(8, 3, 2, 0, 1, True) == (4, 1)
