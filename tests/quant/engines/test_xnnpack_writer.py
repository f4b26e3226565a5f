"""An exported module is written operator by operator, or refused with the operator's name."""

import numpy
import pytest
import torch

from quant.engines.xnnpack_builder import NotThere
from quant.engines.xnnpack_graph import Graph
from quant.engines.xnnpack_writer import TABLE, multiplier, output_scale
from tests.conftest import needs_executorch
from tests.helpers import run_on_xnnpack
from tests.quant.engines.test_xnnpack_moves import Call

qdq = torch.ops.qdq


@needs_executorch
def test_integers_of_another_step_than_their_grid_are_read_as_they_are():
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
    assert torch.allclose(run_on_xnnpack(Call(run), x), run(x), rtol=1e-6, atol=1e-5)


def test_a_product_is_multiplied_by_what_it_was_tried_with():
    """5 of 65,536 products were a step apart where the step of a value was another than its grid's."""
    tried = multiplier((0.01682896725833416, 0.0027388709131628275), 0.008978733792901039)
    for step in torch.linspace(0.0166, 0.0171, 100).tolist():
        unit = output_scale((step, 0.00273882571993203), tried)
        assert unit is None or multiplier((step, 0.00273882571993203), unit) == tried


@needs_executorch
def test_the_file_has_scales_as_they_are_even_between_two_numbers_of_fp32():
    scale = 0.01682958845049143  # half way: who wrote the file rounded up, numpy and torch round down
    graph = Graph()
    x = graph.input((1, 4), scale, 0)
    y = graph.value((1, 4), scale, 0)
    graph.node("XNNCopy", input_id=x.id, output_id=y.id)
    graph.output(y)
    assert x.scale == float(numpy.float32(scale))
    assert graph.program().count(numpy.float32(scale).tobytes()) == 2


@needs_executorch
def test_an_operator_that_is_not_there_is_named():
    with pytest.raises(NotThere, match=r"^XNNPACK has no aten\.cumsum\.default$"):
        run_on_xnnpack(Call(lambda x: x.cumsum(-1)), torch.zeros(1, 3))
    assert torch.ops.qdq.outside.default not in TABLE
