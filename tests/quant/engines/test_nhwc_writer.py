"""An exported module is written operator by operator, or refused with the operator's name."""

import pytest
import torch

from quant.engines.nhwc_builder import NotThere
from quant.engines.nhwc_writer import TABLE
from tests.helpers import run_on
from tests.quant.engines.test_nhwc_moves import Call

qdq = torch.ops.qdq


def test_integers_of_another_step_than_their_grid_are_read_as_they_are(builder):
    """Rounded with step 0.3, on a grid of 0.25: a layer, a sum and a concatenation read them."""
    grid = (0.25, 100, 0, 255)

    weight, scale, bias = torch.eye(6, dtype=torch.int8)[:, :, None, None], torch.full((6,), 0.25), torch.zeros(6)
    layer = (weight, scale, bias.int(), 0.25 * scale, 0.25, 100, [1, 1, 0, 0, 1, 1, 1], 0.07, 99, 10, 200)

    def run(x):
        x = qdq.quantize(x, 0.3, *grid)
        y = qdq.layer(x, *layer)
        z = qdq.sum(x, x, [0.25, 0.25], [100, 100], 1, 0.61, 50, 0, 255)
        return qdq.integers(qdq.concatenate([x, x], 1, 0.25, 100), 0.25, 100) + torch.cat([y, z], 1)

    x = torch.randn(1, 6, 5, 7) * 20
    assert torch.allclose(run_on(builder, Call(run), x), run(x), rtol=1e-6, atol=1e-5)


def test_an_operator_that_is_not_there_is_named(builder):
    with pytest.raises(NotThere, match=rf"^{builder.runtime} has no aten\.cumsum\.default$"):
        run_on(builder, Call(lambda x: x.cumsum(-1)), torch.zeros(1, 3))
    assert torch.ops.qdq.outside.default not in TABLE
    with pytest.raises(NotThere, match=rf"^{builder.runtime} has no aten\.neg\.default, or computes it otherwise$"):
        run_on(builder, Call(lambda x: -qdq.outside(x)), torch.zeros(1, 3))


def test_an_argument_that_is_not_written_is_a_line_too(builder):
    with pytest.raises(NotThere, match=rf"^{builder.runtime}: aten\.add\.Tensor with alpha is not written$"):
        run_on(builder, Call(lambda x: torch.add(x, x, alpha=2)), torch.zeros(1, 3))
