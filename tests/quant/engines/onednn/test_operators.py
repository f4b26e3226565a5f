"""Tables. tests/quant/engines/native/test_operators.py runs every operator on every engine."""

import pytest
import torch

from quant.engines.onednn import OnednnEngine
from tests.helpers import grid


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integers_are_put_on_another_grid_by_a_table(bits):
    x, y, engine = grid(0.3, 1, bits), grid(0.2, 2, 8), OnednnEngine("onednn")
    n = torch.arange(x.q_min, x.q_max + 1.0) - 1
    found = engine.requantize(x, y)(engine.to_native(x)(n))
    assert torch.equal(engine.from_native(y)(found), y.centred(x.value(n)))
