"""SAWB against its equations in NumPy, and the fit of its constants."""

import numpy
import pytest
import torch
from scipy import optimize, stats

from quant.methods.sawb import SAWB, Sawb, sawb_alpha

EVEN = (numpy.arange(20_000) + 0.5) / 20_000


CIRCLE = numpy.linspace(-numpy.pi, numpy.pi, 400_001)


DISTRIBUTIONS = {
    "normal": stats.norm.ppf(EVEN),
    "Laplace": stats.laplace.ppf(EVEN),
    "logistic": stats.logistic.ppf(EVEN),
    "uniform": 2 * EVEN - 1,
    "triangular": stats.triang(0.5, -1, 2).ppf(EVEN),
    "von Mises": numpy.interp(EVEN, numpy.cumsum(w := numpy.exp(numpy.cos(CIRCLE))) / w.sum(), CIRCLE),
}
"""20,000 even quantiles of each."""


def quantized(w, alpha, bits: int):
    n = 2**bits - 1 if bits < 8 else 127
    unit = numpy.clip(w / alpha, -1, 1)
    return (2 * numpy.rint((unit + 1) / 2 * n) - n if bits < 8 else numpy.rint(unit * n)) / n * alpha


def excess(c1: float, c2: float, bits: int) -> float:
    """The mean squared error over the distributions, each divided by the least that any range gives, less 1."""
    found = []
    for w in DISTRIBUTIONS.values():

        def error(alpha, w=w):
            return ((quantized(w, alpha, bits) - w) ** 2).mean()

        size = numpy.abs(w)
        best = optimize.minimize_scalar(error, bounds=(size.mean() / 2, size.max()), method="bounded").fun
        found.append(error(min(c1 * numpy.sqrt((w**2).mean()) - c2 * size.mean(), size.max())) / best - 1)
    return sum(found) / len(found)


def test_the_constants_of_five_bits_have_the_least_error_over_standard_distributions():
    c1, c2 = SAWB[5]
    here = excess(c1, c2, 5)
    assert here < 0.05
    for there in ((c1 * 1.01, c2), (c1 * 0.99, c2), (c1, c2 * 1.01), (c1, c2 * 0.99)):
        assert excess(*there, 5) > here


def test_up_to_four_bits_the_constants_are_the_authors():
    assert {bits: SAWB[bits] for bits in (2, 3, 4)} == {2: (3.12, 2.064), 3: (7.509, 6.892), 4: (12.68, 12.80)}


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_range_of_a_channel_is_near_that_of_least_error(bits):
    """Of 576 normal weights, as of a 3 x 3 convolution of 64 channels: at most a seventh more error."""
    w = torch.randn(32, 576, generator=torch.Generator().manual_seed(0)).double()
    alpha = sawb_alpha(w, bits)[:, None].numpy()
    ours = ((quantized(w.numpy(), alpha, bits) - w.numpy()) ** 2).sum(1)
    ranges = (w.abs().amax(1, keepdim=True).numpy() * share for share in numpy.linspace(0.2, 1, 81))
    best = numpy.min([((quantized(w.numpy(), one, bits) - w.numpy()) ** 2).sum(1) for one in ranges], 0)
    assert (ours / best).mean() < 1.15


@pytest.mark.parametrize("bits", range(2, 9))
def test_sawb_weights_against_numpy(bits):
    w = torch.randn(6, 400).mul_(torch.linspace(0.1, 2, 6)[:, None])
    out = Sawb(bits, 6, 127).train()(w).numpy()
    for row, ours in zip(w.double().numpy(), out, strict=True):
        alpha = numpy.abs(row).max()
        if bits in SAWB:
            c1, c2 = SAWB[bits]
            alpha = min(c1 * numpy.sqrt((row**2).mean()) - c2 * numpy.abs(row).mean(), alpha)
        assert (numpy.abs(ours - quantized(row, alpha, bits)) > 1e-5).mean() <= 0.01, "but for ties"


def test_sawb_bounds_hold_where_the_line_falls_short():
    even = torch.linspace(-1, 1, 1001)
    line = SAWB[4][0] * even.square().mean().sqrt() - SAWB[4][1] * even.abs().mean()
    assert line < sawb_alpha(even, 4) == pytest.approx(2 * (1 - 2**-4) * float(even.abs().mean()))
    assert sawb_alpha(torch.ones(9), 4) == 1.0


@pytest.mark.parametrize("channels", [None, 6])
def test_sawb_weights_lie_on_their_grid_and_pass_when_disabled(channels):
    """Mid-rise below 8 bits, or where so many integers fit; else symmetric about zero."""
    w = torch.randn(6, 400)
    for bits, limit, n, step in ((4, 127, 15, 2), (8, 127, 127, 1), (7, 127, 127, 2), (7, 63, 63, 1), (4, 7, 7, 1)):
        quantizer = Sawb(bits, channels, limit).train()
        y, grid = quantizer(w), quantizer.grid()
        assert grid.scale.shape == quantizer.alpha_w.shape == (() if channels is None else (6,))
        assert (grid.q_min, grid.q_max, grid.step) == (-n, n, step)
        assert torch.equal(y, grid.value(quantizer.to_int(w)))
        quantizer.enabled = False
        assert quantizer(w) is w


@pytest.mark.parametrize(("training", "observing"), [(True, False), (False, True), (False, False)])
def test_sawb_measures_weights_in_training_and_while_observing(training, observing):
    quantizer, w = Sawb(4, None, 127), torch.randn(6, 40)
    quantizer.train(training).observing = observing
    quantizer(w)
    measured = sawb_alpha(w.flatten(), 4)
    assert torch.equal(quantizer.alpha_w, measured if training or observing else torch.ones(()))
