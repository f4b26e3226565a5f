"""A quantizer that learns two tensors: LSQ+ (Bhalgat et al., arXiv 2004.09576), written for this test alone.

It shows that the contract carries a learned offset: gradients against autograd in fp64, training, and integers.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn

import quant
from quant.core import fake_quantize, kernels
from quant.core.activation import IDENTITY, ClampedAffine
from quant.core.contract import check_activation_quantizer
from quant.core.fake_quantize import Rounding
from quant.core.grid import Grid
from quant.core.quantizer import TINY, DataInitializedActivationQuantizer
from quant.methods import lsq
from tests.conftest import agrees_in_integers, spec, trained
from tests.quant.core.helpers import compile_or_skip

RELU6 = ClampedAffine(0.0, 6.0)


class LsqPlus(DataInitializedActivationQuantizer):
    """v_hat = s round(clip((v - beta) / s, 0, p)) + beta, with beta rounded to a multiple of s; p = 2^bits - 1."""

    def __init__(self, bits: int):
        super().__init__(bits, started=False)
        self.p = 2**bits - 1
        self.s, self.beta = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.0))

    def initialize(self, x):
        self.s.copy_(((x.max() - x.min().clamp(max=0)) / self.p).clamp(min=TINY))
        self.beta.copy_(x.min().clamp(max=0))

    def grid(self) -> Grid:
        s = self.s.detach().clamp(min=TINY)
        z = (-self.beta.detach() / s).round().clamp(0, self.p).int()
        return Grid(s, z, 0, self.p)

    def rounding(self, x) -> Rounding:
        grid = self.grid()
        s, z = grid.scale, grid.zero_point
        least, most = (-z).float(), (self.p - z).float()
        share = 1 / (x[0].numel() * self.p) ** 0.5
        return Rounding(
            s, least, most, least * s, most * s, learned=(self.s, self.beta), origin=-z * s, gradient_scale=share
        )


def started(bits: int, x: torch.Tensor) -> LsqPlus:
    quantizer = LsqPlus(bits).train()
    quantizer(x)
    with torch.no_grad():
        quantizer.s.mul_(0.7)  # so that values are clipped at both ends
        quantizer.beta.mul_(0.6)
    return quantizer


def straight_round(x: torch.Tensor) -> torch.Tensor:
    return x + (x.round() - x).detach()


def in_fp64(quantizer: LsqPlus, v: torch.Tensor):
    """(v_hat, s, beta) by the equations, of plain operators."""
    s, beta = (p.detach().double().requires_grad_() for p in (quantizer.s, quantizer.beta))
    on_grid = beta + (-(-beta / s).round() * s - beta).detach()
    return straight_round(((v - on_grid) / s).clamp(0, quantizer.p)) * s + on_grid, s, beta


def off_edges(quantizer: LsqPlus, u: torch.Tensor) -> torch.Tensor:
    """Where fp32 and fp64 cannot come to different integers or to different sides of the ends."""
    steps, grid = u / quantizer.s.double(), quantizer.grid()
    ends = torch.tensor([-int(grid.zero_point), quantizer.p - int(grid.zero_point)])
    return ((steps - steps.floor() - 0.5).abs() > 1e-3) & ((steps[..., None] - ends).abs().amin(-1) > 1e-3)


@pytest.mark.parametrize("activation", [IDENTITY, RELU6], ids=["none", "relu6"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradients_against_autograd_in_fp64(bits, activation, way):
    x = (torch.randn(8, 16, 18, 18) * 3).contiguous(memory_format=torch.channels_last)
    quantizer = started(bits, x)
    exact = x.double().requires_grad_()
    u = exact.clamp(*activation[:2])
    g = torch.randn_like(x) * off_edges(quantizer, u.detach()) * ((x - 6).abs() > 1e-3) * (x.abs() > 1e-3)
    expected, s, beta = in_fp64(quantizer, u)
    expected.backward(g.double())
    v = x.clone().requires_grad_()
    y = fake_quantize.rounded(v, quantizer.rounding(x).after(activation))
    y.backward(g)
    share, size = quantizer.rounding(x).gradient_scale, g.abs().double().sum()
    assert torch.allclose(y.double() * (g != 0), expected * (g != 0), atol=1e-5)
    assert torch.allclose(v.grad.double(), exact.grad, atol=1e-6)
    assert beta.grad != 0 or activation == RELU6, "which leaves nothing to clip"
    assert abs(quantizer.s.grad - share * s.grad) <= 1e-5 * share * size
    assert abs(quantizer.beta.grad - share * beta.grad) <= 1e-6 * share * size


@pytest.mark.parametrize("activation", [IDENTITY, RELU6], ids=["none", "relu6"])
def test_after_a_batch_norm_in_one_pass(activation):
    """The fused pass gives the gradients of the separate ones."""
    compile_or_skip()
    x = (torch.randn(8, 16, 18, 18) * 3).contiguous(memory_format=torch.channels_last)
    norm = nn.BatchNorm2d(16)
    with torch.no_grad():
        quantizer = started(4, norm(x))
    g = torch.randn_like(x)
    found = []
    for fused in (True, False):
        quantizer.zero_grad()
        inside = x.clone().requires_grad_()
        if fused:
            assert fake_quantize.can_fuse_norm(norm, inside, activation)
            y = quantizer.forward_normed(inside, norm, activation)
        else:
            y = quantizer(norm(inside), activation)
        y.backward(g)
        found.append((inside.grad, quantizer.s.grad.clone(), quantizer.beta.grad.clone()))
    kernels.interpret_all()
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).norm() <= 2e-2 * theirs.norm(), "but for values near a tie"


def test_the_offset_finds_the_range_of_the_data():
    x = torch.rand(4096, 8) * 3 - 1
    quantizer = LsqPlus(4).train()
    quantizer(x)
    with torch.no_grad():
        quantizer.beta.fill_(-0.2)
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    errors = []
    for _ in range(200):
        optimizer.zero_grad()
        error = (quantizer(x) - x).square().sum(1).mean()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.2 * errors[0]
    assert float(quantizer.beta.detach()) == pytest.approx(-1, abs=0.15)


def test_it_keeps_the_contract():
    x = torch.randn(64, 32) * 2 + 0.5
    for bits in (1, 2, 4, 8):
        quantizer = started(bits, x).eval()
        check_activation_quantizer(quantizer)
        grid = quantizer.grid()
        assert torch.equal(quantizer(x), grid.scale * (quantizer.to_int(x) - grid.zero_point))


def test_a_net_that_learns_offsets_is_the_same_in_integers(digits16, monkeypatch):
    method = replace(lsq.METHOD, activation=lambda spec, bits, signed: LsqPlus(bits))
    monkeypatch.setitem(quant.METHODS, "lsq", method)
    model = trained(digits16, "tests.nets:Residual", {}, 15, spec(method="lsq", weight_bits=4, act_bits=4))
    offsets = [q.beta for q in quant.quantizers(model).values() if isinstance(q, LsqPlus)]
    assert len(offsets) >= 3
    agrees_in_integers(model, digits16, 90)
