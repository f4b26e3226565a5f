"""Gradients of rounding against the papers' formulas, and that every quantizer has them, in either way and in nets."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.core import kernels
from quant.core.activation import IDENTITY
from quant.core.grid import along_channels
from quant.core.options import TrainingOptions
from quant.core.quantizer import ActivationQuantizer
from quant.core.rounding_gradient import SLOPES, Slope, ewgs, slope
from tests.conftest import photos, spec
from tests.nets import plain
from tests.quant.core.helpers import compile_or_skip
from utils.errors import UserError

METHODS = [name for name, method in quant.METHODS.items() if issubclass(method.options, TrainingOptions)]
STRENGTHS = {"ewgs": 0.4, "fourier": 0.2}


def by_the_paper(name: str, g: torch.Tensor, x: torch.Tensor, L: int) -> torch.Tensor:
    """The gradient of x, which rounds to x_q on a grid of L + 1 integers."""
    x_q, strength = x.round(), STRENGTHS[name]
    if name == "ewgs":
        return g * (1 + strength * g.sign() * (x / L - x_q / L))
    terms = strength * math.sqrt(2) * math.pi * torch.cos(math.pi * (x + x_q))
    return g * (1 - terms) / (1 + terms)


@pytest.mark.parametrize("name", SLOPES)
def test_formulas_are_those_of_the_papers(name):
    x, g = torch.linspace(-7.9, 7.9, 4001).double(), torch.randn(4001).double()
    found = slope(name, STRENGTHS[name], 15, True)(g, x - x.round())
    assert torch.allclose(found, by_the_paper(name, g, x, 15))


def test_defaults_are_the_papers_and_straight_is_none():
    assert slope("straight", None, 3, True) is slope("straight", None, 3, False) is None
    assert slope("ewgs", None, 3, False) == slope("ewgs", None, 3, True) == Slope(ewgs, 1e-3 / 3)
    assert slope("fourier", None, 3, True).strength == pytest.approx(0.21 * 2**0.5 * math.pi)


def test_fourier_is_of_weights_alone():
    """The mean of its factor would shrink gradients from layer to layer."""
    factors = slope("fourier", None, 3, True)(torch.ones(10001), torch.linspace(-0.5, 0.5, 10001))
    assert float(factors.mean()) == pytest.approx(0.3, abs=0.01)
    assert slope("fourier", None, 3, False) is None


def test_fourier_vanishes_nearly_at_integers_and_is_straight_between_them():
    found = slope("fourier", None, 3, True)(torch.ones(3), torch.tensor([0.0, 0.5, -0.5]))
    assert torch.allclose(found, torch.tensor([0.0347, 1.0, 1.0]), atol=1e-3)


def test_an_amplitude_that_turns_gradients_around_is_refused():
    with pytest.raises(UserError, match=r"^quant.gradient_strength: 0.23; .* choose less than 0.2251$"):
        spec(method="lsq", rounding_gradient="fourier", gradient_strength=0.23)
    spec(method="lsq", rounding_gradient="ewgs", gradient_strength=0.23)


def gradient(quantizer, x: torch.Tensor, g: torch.Tensor, found: Slope | None) -> torch.Tensor:
    quantizer.slope = found
    v = x.clone().requires_grad_()
    quantizer(v).backward(g)
    return v.grad


def away_from_ties(positions: torch.Tensor) -> torch.Tensor:
    return (positions - positions.floor() - 0.5).abs() > 1e-3


def check_activation(method: str, bits: int, name: str) -> None:
    """Inside the range it is the straight gradient, scaled; what quantizers learn has the same gradient as before."""
    x = (torch.randn(8, 16, 18, 18) * 2).relu()
    quantizer = quant.METHODS[method].activation(spec(method=method, weight_bits=4), bits, False).train()
    quantizer(x)
    grid = quantizer.eval().grid()
    positions, L = x.double() / grid.scale.double(), 2**bits - 1
    g = torch.randn_like(x) * away_from_ties(positions)
    straight = gradient(quantizer, x, g, None)
    learned = [p.grad.clone() for p in quantizer.parameters()]
    quantizer.zero_grad()
    found = gradient(quantizer, x, g, slope(name, STRENGTHS[name], L, True))
    assert torch.allclose(found.double(), by_the_paper(name, straight.double(), positions, L), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, straight)
    assert all(torch.allclose(p.grad, before) for p, before in zip(quantizer.parameters(), learned, strict=True))


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize("bits", [2, 5])
@pytest.mark.parametrize("method", METHODS)
def test_activations_take_it(method, bits, name):
    check_activation(method, bits, name)


def test_compiled_kernels_compute_the_same():
    """By themselves, and in one pass with a batch norm."""
    compile_or_skip()
    check_activation("lsq", 4, "ewgs")
    x = (torch.randn(8, 16, 18, 18) * 2).contiguous(memory_format=torch.channels_last)
    norm, quantizer = nn.BatchNorm2d(16), quant.METHODS["lsq"].activation(spec(method="lsq"), 4, True).train()
    quantizer(norm(x).detach())
    quantizer.slope = slope("ewgs", 8.0, 15, False)
    g, found = torch.randn_like(x), []
    for apply in (quantizer.forward_normed, lambda v, norm, activation: quantizer(norm(v), activation)):
        norm.zero_grad()
        quantizer.zero_grad()
        v = x.clone().requires_grad_()
        apply(v, norm, IDENTITY).backward(g)
        found.append((v.grad, norm.weight.grad.clone(), norm.bias.grad.clone(), quantizer.s.grad.clone()))
    kernels.interpret_all()
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= 2e-2 * theirs.norm(), "but for values near a tie"


WEIGHTS = {"lsq": {}, "statassist": {}, "dorefa": {}, "pact": {}, "pact, dorefa": {"weights": "dorefa"}}


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("method", WEIGHTS)
def test_weights_have_it(method, bits, name):
    """Straight gradients flow through what comes before rounding (tanh, max) linearly: they are compared with those
    that a scaled gradient of the output gives."""
    method, options = method.split(",")[0], WEIGHTS[method]
    w = torch.randn(6, 5, 4, 4) * 0.3
    quantizer = (
        quant.METHODS[method].weight(spec(method=method, weight_bits=4, **options), bits, tuple(w.shape)).train()
    )
    quantizer(w)
    quantizer.eval()
    grid = quantizer.grid()
    g, L = torch.randn_like(w), (grid.q_max - grid.q_min) / grid.step
    unrounded = w / along_channels(grid.scale, w)
    if type(quantizer).__name__ == "TanhWeights":
        most = torch.tanh(w).abs().flatten(1).amax(1)
        unrounded = torch.tanh(w) / along_channels(most, w) / grid.scale
    positions = (unrounded - grid.q_min) / grid.step
    g = g * away_from_ties(positions) * ((positions > 0) & (positions < L))
    scaled = by_the_paper(name, g.double(), positions.double(), L).float()
    expected, chosen = gradient(quantizer, w, scaled, None), slope(name, STRENGTHS[name], L, True)
    assert torch.allclose(gradient(quantizer, w, g, chosen), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("where", [{"weight_bits": 1}, {"weight_bits": 2, "layers": {"fc": {"weight_bits": 1}}}])
def test_signs_have_no_other_gradient(where):
    with pytest.raises(UserError, match=r"^quant.rounding_gradient: weights of 1 bit are signs"):
        spec(method="dorefa", rounding_gradient="ewgs", **where)


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize("method", METHODS)
def test_every_quantizer_of_a_net_has_it_and_the_net_learns(method, name):
    torch.manual_seed(0)
    model = quant.prepare(plain(10), spec(method=method, weight_bits=4, act_bits=4, rounding_gradient=name)).train()
    found = quant.quantizers(model).values()
    assert len(found) > 4
    for quantizer in found:
        assert (quantizer.slope is None) == (name == "fourier" and isinstance(quantizer, ActivationQuantizer))
    images, labels = photos(16, 32), torch.arange(16) % 10
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
