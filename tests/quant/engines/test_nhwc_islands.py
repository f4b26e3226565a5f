"""What stays in float returns what torch's operators do, but for the order of sums."""

import pytest
import torch
import torch.nn.functional as F

from tests.helpers import run_on
from tests.quant.engines.test_nhwc_moves import Call

WEIGHT, BIAS = torch.linspace(-1, 1, 9), torch.linspace(1, 2, 9)
MAPS = {
    "softmax_channels": lambda x: x.softmax(1),
    "softmax_columns": lambda x: x.softmax(-1),
    "sum": lambda x: x.sum(1) + x.sum((1, 2)).unsqueeze(1),
    "sum_keep": lambda x: x.sum(-1, keepdim=True),
    "norm": lambda x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True),
    "layer_norm": lambda x: F.layer_norm(x, (9,), WEIGHT, BIAS),
    "layer_norm_plain": lambda x: F.layer_norm(x, (9,)),
    "matmul": lambda x: x @ x.transpose(-2, -1),
    "linear": lambda x: F.linear(x, torch.ones(4, 9)),
    "attention": lambda x: F.scaled_dot_product_attention(x, x * 2, x),
    "attention_mask": lambda x: F.scaled_dot_product_attention(x, x, x, torch.eye(7), scale=0.3),
    "constants_of_other_rank": lambda x: x * WEIGHT + torch.ones(6, 1, 1) * torch.arange(6.0)[:, None, None],
}


def near(builder, name: str, run, x: torch.Tensor) -> None:
    found, expected = run_on(builder, Call(run), x), run(x)
    assert found.shape == expected.shape, name
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5), name


@pytest.mark.parametrize("name", MAPS)
def test_of_maps(name, builder):
    near(builder, name, MAPS[name], torch.randn(2, 6, 7, 9))


@pytest.mark.parametrize("name", [name for name in MAPS if name not in ("attention_mask", "constants_of_other_rank")])
def test_of_tokens(name, builder):
    near(builder, name, MAPS[name], torch.randn(2, 7, 9))
