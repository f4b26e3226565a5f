"""Grids: the integers of values, against brute force."""

import pytest
import torch

from quant.core.grid import Grid


def grid_of(q_min: int, q_max: int, step: int = 1, zero_point: int = 0, scale=0.1) -> Grid:
    scale = torch.tensor(scale)
    return Grid(scale, torch.full_like(scale, zero_point, dtype=torch.int32), q_min, q_max, step)


@pytest.mark.parametrize("grid", [grid_of(-7, 7), grid_of(0, 15, zero_point=6), grid_of(-3, 3, 2), grid_of(-15, 15, 2)])
def test_integers_are_the_nearest_on_the_grid(grid):
    x = torch.randn(500)
    q = torch.arange(grid.q_min, grid.q_max + 1, grid.step)
    nearest = q[(x[:, None] - grid.value(q - grid.zero_point)).abs().argmin(1)].float()
    assert torch.equal(grid.to_int(x), nearest)
    assert torch.equal(grid.centred(x), nearest - grid.zero_point)
    assert torch.equal(grid.to_int(grid.value(grid.centred(x))), nearest)


@pytest.mark.parametrize("step", [1, 2])
def test_a_scale_for_each_channel(step):
    grid, x = grid_of(-3, 3, step, scale=[0.1, 1.0]), torch.randn(2, 50)
    rows = [grid_of(-3, 3, step, scale=scale).centred(row) for scale, row in zip([0.1, 1.0], x, strict=True)]
    assert torch.equal(grid.centred(x), torch.stack(rows))


def test_an_offset_is_added_before_the_clamp():
    x = torch.tensor([0.0, 0.1, 0.7, -0.7])
    assert grid_of(-7, 7).to_int(x, torch.tensor([1, -1, 1, -1])).tolist() == [1, 0, 7, -7]


@pytest.mark.parametrize(("q_min", "q_max", "step"), [(-8, 7, 2), (-6, 6, 2), (-6, 6, 3), (-7, 7, 0)])
def test_other_steps_are_refused(q_min, q_max, step):
    with pytest.raises(ValueError, match="step 1, or step 2 between odd integers"):
        grid_of(q_min, q_max, step)
