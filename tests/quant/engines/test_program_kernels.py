"""A kernel by itself: what it returns, and that one which is refused returns no numbers."""

import pytest
import torch

import quant
from quant.engines.program_kernels import Kernel, Tried, exported, outside
from tests.conftest import ON_PROGRAMS
from tests.quant.engines.test_nhwc_moves import Call

GRID = (0.5, 100)
qdq = torch.ops.qdq


def halved(x: torch.Tensor) -> torch.Tensor:
    return qdq.quantize(x * 0.5, 0.5, *GRID, 0, 255)


def test_a_kernel_returns_values_on_the_grid_for_inputs_of_any_shape(builder):
    kernel = Kernel(halved, [GRID], GRID, builder)
    for shape in ((1, 1, 16, 16), (4, 64)):
        x = (torch.arange(256.0) - 100).reshape(shape) * 0.5
        assert torch.equal(kernel(x), halved(x))


@pytest.mark.parametrize("engine", ON_PROGRAMS)
def test_a_kernel_that_is_refused_returns_no_numbers(engine):
    x = torch.zeros(1, 4)
    tried = Tried(lambda x: halved(x.cumsum(-1)), [GRID], GRID, quant.engine(engine).builder)
    assert tried(x).isnan().all()
    assert tried(x).shape == x.shape


def test_traced_a_kernel_is_what_it_calls_and_one_outside_says_so(builder):
    x = torch.zeros(1, 4)
    for run, target in ((Kernel(halved, [GRID], GRID, builder), qdq.quantize), (outside(halved), qdq.outside)):
        called = [node.target for node in exported(Call(run), x).graph.nodes]
        assert target.default in called
