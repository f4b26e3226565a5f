"""What operators need to be written: other scales for the same integers, layers, values in fp32."""

import pytest
import torch

from quant.engines.xnnpack_builder import Builder, NotThere, bounds, convolved_shape, place
from quant.engines.xnnpack_graph import Loaded
from tests.conftest import needs_executorch


@needs_executorch
@pytest.mark.parametrize("shape", [(1, 8, 4, 8), (2, 128), (1, 2, 128)])
@pytest.mark.parametrize("scale", [1.0, 0.37, 5.0])
def test_another_scale_keeps_every_integer(shape, scale):
    to = Builder()
    to.output(to.at_scale(to.input_on_grid(shape, 0.0213, 77), scale))
    every = torch.arange(-128, 128, dtype=torch.int8).reshape(shape)
    assert torch.equal(Loaded(to.graph.program())(every)[0], every)


@needs_executorch
def test_a_value_on_a_grid_is_its_scale_times_its_integer_in_float():
    to = Builder()
    to.output(to.in_float(to.input_on_grid((1, 256), 0.0213, 77)))
    every = torch.arange(-128, 128, dtype=torch.int8).reshape(1, 256)
    expected = (every.float() + 128 - 77) * torch.tensor(0.0213)
    assert torch.equal(Loaded(to.graph.program())(every)[0], expected)


@needs_executorch
def test_what_is_no_tensor_is_refused():
    with pytest.raises(NotThere, match="XNNPACK has no list as a tensor"):
        Builder().in_float([1])  # type: ignore[arg-type]


def test_places_and_shapes():
    assert [place(axis, (1, 2, 3, 4)) for axis in range(4)] == [0, 3, 1, 2]
    assert place(1, (1, 2)) == 1
    assert convolved_shape((1, 3, 9, 8), torch.zeros(5, 3, 3, 3), [2, 1, 1, 0, 1, 2, 1]) == [1, 5, 5, 4]


@needs_executorch
def test_bounds_are_those_of_the_integers():
    value = Builder().graph.value((1, 2), 0.5, -118)
    assert bounds(value, 0, 20) == (-5.0, 5.0)
