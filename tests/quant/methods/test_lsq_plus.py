"""LSQ+'s learned offset (quant.offset): gradients against autograd in fp64, where it starts, training, and integers."""

import pytest
import torch
from torch import nn

import quant
from quant.core import fake_quantize, kernels
from quant.core.activation import IDENTITY, ClampedAffine
from quant.core.contract import check_activation_quantizer
from quant.methods import lsq
from quant.methods.lsq import LearnedOffsetActivation
from tests.conftest import agrees_in_integers, spec, trained
from tests.quant.core.helpers import compile_or_skip
from utils.errors import UserError

RELU6 = ClampedAffine(0.0, 6.0)


@pytest.fixture
def interpreted_after():
    yield
    kernels.interpret_all()


def started(bits: int, x: torch.Tensor) -> LearnedOffsetActivation:
    quantizer = LearnedOffsetActivation(bits).train()
    quantizer(x)
    with torch.no_grad():
        quantizer.s.mul_(0.7)  # so that values are clipped at both ends
        quantizer.beta.mul_(0.6)
    return quantizer


def straight_round(x: torch.Tensor) -> torch.Tensor:
    return x + (x.round() - x).detach()


def in_fp64(quantizer: LearnedOffsetActivation, v: torch.Tensor):
    """(v_hat, s, beta) by the equations, of plain operators."""
    s, beta = (p.detach().double().requires_grad_() for p in (quantizer.s, quantizer.beta))
    on_grid = beta + (-(-beta / s).round() * s - beta).detach()
    return straight_round(((v - on_grid) / s).clamp(0, quantizer.Q_P)) * s + on_grid, s, beta


def off_edges(quantizer: LearnedOffsetActivation, u: torch.Tensor) -> torch.Tensor:
    """Where fp32 and fp64 cannot come to different integers or to different sides of the ends."""
    steps, grid = u / quantizer.s.double(), quantizer.grid()
    ends = torch.tensor([-int(grid.zero_point), quantizer.Q_P - int(grid.zero_point)])
    return ((steps - steps.floor() - 0.5).abs() > 1e-3) & ((steps[..., None] - ends).abs().amin(-1) > 1e-3)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("activation", [IDENTITY, RELU6], ids=["none", "relu6"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_gradients_against_autograd_in_fp64(bits, activation, compiled, interpreted_after):
    if compiled:
        compile_or_skip()
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
    quantizer = LearnedOffsetActivation(4).train()
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


def test_it_starts_at_the_least_squared_error():
    """But for a tenth: the search tries shares of the full range, this test all zero points and many steps."""
    x = torch.nn.functional.leaky_relu(torch.randn(64, 64), 0.4)
    quantizer = LearnedOffsetActivation(3).train()
    quantizer(x)

    def error(s: torch.Tensor, z: torch.Tensor) -> float:
        return float((s * ((x / s).round() + z).clamp(0, 7).sub(z) - x).square().mean())

    tried = min(error(s, torch.tensor(float(z))) for z in range(8) for s in torch.linspace(0.05, 2, 200))
    assert quantizer.zero_point() > 0
    assert error(quantizer.s.detach(), quantizer.zero_point()) <= 1.1 * tried


def test_values_that_cannot_be_negative_have_no_offset():
    asked = spec(method="lsq", offset="learned")
    assert isinstance(lsq.activation(asked, 4, True), LearnedOffsetActivation)
    assert not isinstance(lsq.activation(asked, 4, False), LearnedOffsetActivation)


def test_a_zero_point_is_refused_where_none_may_be():
    with pytest.raises(UserError, match=r"^quant.offset: learned gives activations zero points; quant.symmetric_"):
        spec(method="lsq", offset="learned", symmetric_activations=True)


def test_a_net_that_learns_offsets_is_the_same_in_integers(digits16):
    asked = spec(method="lsq", offset="learned", weight_bits=4, act_bits=4)
    model = trained(digits16, "tests.nets:Residual", {}, 15, asked)
    offsets = [q for q in quant.quantizers(model).values() if isinstance(q, LearnedOffsetActivation)]
    assert len(offsets) == 2, "of the image, and where two signed values are added"
    assert any(q.beta != 0 for q in offsets)
    agrees_in_integers(model, digits16, 90)
