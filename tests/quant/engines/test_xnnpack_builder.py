"""What operators need to be written: other scales for the same integers, layers, values in fp32."""

import pytest
import torch

from quant.engines.nhwc_builder import NotThere
from quant.engines.xnnpack_builder import XnnpackBuilder, bounds, multiplier, output_scale
from quant.engines.xnnpack_graph import Loaded
from tests.conftest import needs_executorch


@needs_executorch
@pytest.mark.parametrize("shape", [(1, 8, 4, 8), (2, 128), (1, 2, 128)])
@pytest.mark.parametrize("scale", [1.0, 0.37, 5.0])
def test_another_scale_keeps_every_integer(shape, scale):
    to = XnnpackBuilder()
    to.output(to.at_scale(to.input_on_grid(shape, 0.0213, 77), scale))
    every = torch.arange(-128, 128, dtype=torch.int8).reshape(shape)
    assert torch.equal(Loaded(to.program())(every)[0], every)


@needs_executorch
def test_a_value_on_a_grid_is_its_scale_times_its_integer_in_float():
    to = XnnpackBuilder()
    to.output(to.in_float(to.input_on_grid((1, 256), 0.0213, 77)))
    every = torch.arange(-128, 128, dtype=torch.int8).reshape(1, 256)
    expected = (every.float() + 128 - 77) * torch.tensor(0.0213)
    assert torch.equal(Loaded(to.program())(every)[0], expected)


@needs_executorch
def test_what_is_no_tensor_is_refused():
    with pytest.raises(NotThere, match="XNNPACK has no list as a tensor"):
        XnnpackBuilder().in_float([1])  # type: ignore[arg-type]


@needs_executorch
def test_bounds_are_those_of_the_integers():
    value = XnnpackBuilder().graph.value((1, 2), 0.5, -118)
    assert bounds(value, 0, 20) == (-5.0, 5.0)


def test_a_product_is_multiplied_by_what_it_was_tried_with():
    """5 of 65,536 products were a step apart where the step of a value was another than its grid's."""
    tried = multiplier((0.01682896725833416, 0.0027388709131628275), 0.008978733792901039)
    for step in torch.linspace(0.0166, 0.0171, 100).tolist():
        unit = output_scale((step, 0.00273882571993203), tried)
        assert unit is None or multiplier((step, 0.00273882571993203), unit) == tried
