"""The operators of a QDQ graph compute what the integer operators that they stand for compute."""

import torch

from quant.core.grid import Grid
from quant.core.integer_layer import Geometry, IntegerLayer
from quant.engines.qdq_operators import on_grid
from tests.helpers import grid

qdq = torch.ops.qdq
X, Y = grid(0.05, 100), grid(0.03, 90)


def test_a_grid_is_passed_with_its_least_integer_at_zero():
    shifted = Grid(torch.tensor(0.5), torch.tensor(-3, dtype=torch.int32), -8, 7)
    assert on_grid(shifted, -4, 7) == (0.5, 5, 4, 15)


def test_values_are_divided_by_the_step_rounded_clamped_and_put_on_the_scale():
    x = torch.linspace(-9, 9, 1001)
    for write in (qdq.quantize, qdq.to_fuse):
        found = write(x, 0.25, 0.5, 10, 4, 20)
        assert torch.equal(found, 0.5 * ((x / 0.25).round() + 10).clamp(4, 20).sub(10))


def test_what_is_on_the_grid_stays_there():
    values = X.value(torch.arange(256.0) - 100)
    for keep in (qdq.kept, qdq.unfused):
        assert torch.equal(keep(values, *on_grid(X, 0, 0)[:2]), values)
    assert torch.equal(qdq.concatenate([values, values], 0, *on_grid(X, 0, 0)[:2]), torch.cat([values, values]))


def test_integers_and_tables_of_them():
    n = torch.arange(256.0) - 100
    values = X.value(n)
    assert torch.equal(qdq.integers(values, *on_grid(X, 0, 0)[:2]), n)
    table = torch.randperm(256).to(torch.uint8)
    found = qdq.look_up(values, table, *on_grid(X, 0, 0)[:2], *on_grid(Y, 0, 0)[:2])
    assert torch.equal(found, Y.value(table.float() - 90))


def test_layers_with_and_without_an_output_grid():
    weight, n = torch.randint(-127, 128, (6, 4, 3, 3)).float(), torch.randint(-100, 156, (2, 4, 7, 7)).float()
    scale, bias = torch.full((6,), 1e-3), torch.arange(6.0)
    geometry = Geometry((1, 1), (1, 1), (1, 1))
    layer = IntegerLayer(geometry, weight, scale, bias, X, Y, 0, 200)
    given = (X.value(n), weight.to(torch.int8), scale, bias.int(), layer.accumulator_scale(), *on_grid(X, 0, 0)[:2])
    found = qdq.layer(*given, [1, 1, 1, 1, 1, 1, 1], *on_grid(Y, 0, 200))
    assert torch.equal(found, Y.value(layer(n)))
    last = IntegerLayer(geometry, weight, scale, bias, X, None, 0, 0)
    assert torch.equal(qdq.last_layer(*given, [1, 1, 1, 1, 1, 1, 1]), last(n))
