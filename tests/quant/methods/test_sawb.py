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


@pytest.mark.parametrize("bits", SAWB)
def test_the_constants_of_sawb_are_the_regression_over_standard_distributions(bits):
    """The alpha of least squared error over E|w|, against sqrt(E[w^2]) over E|w|."""
    n = 2**bits - 1 if bits < 8 else 127
    shapes, best = [], []
    for w in DISTRIBUTIONS.values():
        size = numpy.abs(w).mean()

        def error(alpha, w=w):
            unit = numpy.clip(w / alpha, -1, 1)
            levels = 2 * numpy.rint((unit + 1) / 2 * n) - n if bits < 8 else numpy.rint(unit * n)
            return ((levels / n * alpha - w) ** 2).mean()

        bounds = (size / 2, numpy.abs(w).max())
        shapes.append(numpy.sqrt((w**2).mean()) / size)
        best.append(optimize.minimize_scalar(error, bounds=bounds, method="bounded", options={"xatol": 1e-4}).x / size)
    c1, c2 = numpy.polyfit(shapes, best, 1)
    assert SAWB[bits] == pytest.approx((c1, -c2), abs=0.02)


@pytest.mark.parametrize("bits", range(2, 9))
def test_sawb_weights_against_numpy(bits):
    w = torch.randn(6, 400).mul_(torch.linspace(0.1, 2, 6)[:, None])
    quantizer = Sawb(bits, 6, 127).train()
    out = quantizer(w).numpy()
    c1, c2 = SAWB[bits]
    for row, ours in zip(w.double().numpy(), out, strict=True):
        alpha = min(c1 * numpy.sqrt((row**2).mean()) - c2 * numpy.abs(row).mean(), numpy.abs(row).max())
        n = 2**bits - 1 if bits < 8 else 127
        unit = numpy.clip(row / alpha, -1, 1)
        levels = 2 * numpy.rint((unit + 1) / 2 * n) - n if bits < 8 else numpy.rint(unit * n)
        assert (numpy.abs(ours - levels / n * alpha) > 1e-5).mean() <= 0.01, "but for ties"


def test_sawb_bounds_hold_where_the_line_falls_short():
    even = torch.linspace(-1, 1, 9)
    assert sawb_alpha(even, 8) == pytest.approx(1.0), "the line alone says 0.73 here"
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
        quantizer.enabled.fill_(False)
        assert quantizer(w) is w


@pytest.mark.parametrize(("training", "observing"), [(True, False), (False, True), (False, False)])
def test_sawb_measures_weights_in_training_and_while_observing(training, observing):
    quantizer, w = Sawb(4, None, 127), torch.randn(6, 40)
    quantizer.train(training).observing = observing
    quantizer(w)
    measured = sawb_alpha(w.flatten(), 4)
    assert torch.equal(quantizer.alpha_w, measured if training or observing else torch.ones(()))
