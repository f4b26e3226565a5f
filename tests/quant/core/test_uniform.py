"""Uniform quantizers with observed ranges, and clips of least squared error."""

import pytest
import torch

from quant.core.quantizer import TINY
from quant.core.uniform import affine, best_clip, clip_grid, signed_affine, steps_of, symmetric


def test_steps_of_a_clipped_range():
    assert [steps_of(bits, False) for bits in (1, 4, 8)] == [(0, 1), (0, 15), (0, 255)]
    assert [steps_of(bits, True) for bits in (2, 4, 8)] == [(-1, 1), (-7, 7), (-127, 127)]


def test_the_grid_of_a_clip():
    grid = clip_grid(torch.tensor(3.0), -7, 7)
    assert float(grid.scale) == pytest.approx(3 / 7)
    assert int(grid.zero_point) == 0
    assert grid.zero_point.dtype == torch.int32
    assert (grid.q_min, grid.q_max, grid.step) == (-7, 7, 1)
    rows = clip_grid(torch.tensor([3.0, 6.0], requires_grad=True), 0, 3)
    assert torch.equal(rows.scale, torch.tensor([1.0, 2.0]))
    assert not rows.scale.requires_grad
    assert clip_grid(torch.zeros(()), 0, 3).scale == pytest.approx(TINY / 3)


@pytest.mark.parametrize("per_channel", [False, True])
def test_symmetric_weights_follow_the_largest_of_each_channel_or_of_all(per_channel):
    w = torch.randn(4, 3, 2, 2) * torch.tensor([1.0, 2.0, 0.5, 4.0]).view(4, 1, 1, 1)
    quantizer = symmetric(8, (4, 3, 2, 2), per_channel, 63)
    quantizer.train()(10 * w)
    quantizer(w)
    grid = quantizer.grid()
    largest = w.abs().flatten(1).amax(1) if per_channel else w.abs().max()
    assert torch.allclose(grid.scale, largest / 63)
    assert (grid.q_min, grid.q_max) == (-63, 63)
    assert symmetric(4, (4, 3, 2, 2), per_channel, 63).q_max == 7


def test_affine_activations_in_an_observed_range():
    quantizer = affine(4, "minmax")
    quantizer.train()(torch.tensor([-1.0, 0.0, 2.0]))
    grid = quantizer.grid()
    assert (grid.q_min, grid.q_max) == (0, 15)
    assert float(grid.scale) == pytest.approx(3 / 15)
    assert int(grid.zero_point) == 5
    clipped = affine(8, "percentile", 90.0)
    clipped.train()(torch.linspace(0, 1, 101))
    clipped.finish_observing()
    assert float(clipped.high) == pytest.approx(0.9)


def test_inputs_that_can_be_negative_get_eight_bits_and_a_note():
    quantizer = signed_affine("minmax")
    assert quantizer.bits == 8
    assert quantizer.note == "its input can be negative: 8 bits, affine"
    assert affine(8, "minmax").note == ""


def squared_error(x: torch.Tensor, clip: float, q_min: int, q_max: int) -> float:
    """By definition, in fp64."""
    scale = clip / q_max
    steps = (x.double() / scale).round().clamp(q_min, q_max)
    return float((steps * scale - x.double()).square().mean())


@pytest.mark.parametrize(("q_min", "q_max"), [(0, 3), (-3, 3), (-1, 1)])
def test_the_clip_of_least_squared_error(q_min, q_max):
    x = torch.randn(2000) * 2
    x = x.relu() if q_min == 0 else x
    largest = float(x.abs().max())
    errors = {share: squared_error(x, largest * share / 100, q_min, q_max) for share in range(1, 101)}
    found = float(best_clip(x, q_min, q_max))
    assert found < 0.9 * largest
    assert squared_error(x, found, q_min, q_max) == pytest.approx(min(errors.values()), rel=1e-4)


def test_a_clip_of_each_row():
    x = torch.randn(3, 5, 7, 7) * torch.tensor([1.0, 3.0, 0.1]).view(3, 1, 1, 1)
    found = best_clip(x, -3, 3, per_channel=True)
    assert found.shape == (3,)
    for row, clip in zip(x, found, strict=True):
        assert float(clip) == pytest.approx(float(best_clip(row, -3, 3)), rel=1e-5)
    assert best_clip(x, -3, 3).shape == ()


def test_negative_values_count_for_the_clip_as_positive_ones_do():
    x = torch.randn(500)
    assert float(best_clip(-x, -7, 7)) == pytest.approx(float(best_clip(x, -7, 7)), rel=1e-6)
