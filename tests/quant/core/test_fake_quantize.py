"""Rounding and its gradients, uncompiled and compiled, against formulas in fp64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
import quant
from quant.core import fake_quantize, kernels
from quant.core.activation import IDENTITY, ClampedAffine
from quant.graph.op_table import HARD_SIGMOID
from tests.conftest import spec
from tests.quant.core.helpers import compile_or_skip

RELU, RELU6 = ClampedAffine(0.0, float("inf")), ClampedAffine(0.0, 6.0)
METHODS = [name for name in quant.METHODS if name not in ("float", "ptq")]
LAYOUTS = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(2, 3),
    "every other": lambda x: torch.cat([x, x], 1)[:, ::2],
    "flat": lambda x: x.flatten(1),
}


def started(method: str, bits: int, signed: bool, x: torch.Tensor):
    quantizer = quant.METHODS[method].activation(spec(method=method, weight_bits=4), bits, signed)
    quantizer.train()(x)
    return quantizer


def off_edges(v: torch.Tensor, rounding: fake_quantize.Rounding, activation: ClampedAffine) -> torch.Tensor:
    """Where fp32 and fp64 cannot come to different integers, or sides of an edge."""
    steps, edge = v / rounding.scale.double(), 1e-3
    edges = torch.tensor([rounding.low, rounding.high, *(rounding.ends or ()), *activation[:2]], dtype=torch.float64)
    return ((steps - steps.floor() - 0.5).abs() > edge) & ((v[..., None] - edges).abs().min(-1).values > edge / 10)


def expected(v: torch.Tensor, g: torch.Tensor, r: fake_quantize.Rounding, activation: ClampedAffine):
    """(v_hat, the gradient of v, the terms of that of t, and of the offset if one is learned), in fp64.

    By the docstring of core/fake_quantize.py.
    """
    scale, least, most, low, high = map(float, (r.scale, r.least, r.most, r.low, r.high))
    u = v.clamp(*activation[:2])
    v_hat = scale * (u / scale).round().clamp(least, most)
    passing = (low < u) & (u < high) & (activation.low < v) & (v < activation.high)
    floor, ceiling = map(float, r.ends or (r.low, r.high))
    in_range, o = (floor < u) & (u < ceiling), 0.0 if r.origin is None else r.origin.double()
    derivative = torch.where(in_range, v_hat - u if r.counts_rounding_error else torch.zeros_like(u), v_hat - o)
    of_t = [r.gradient_scale * (g * derivative) / t.detach().double() for t in r.learned[:1]]
    of_offset = [r.gradient_scale * g * ~in_range for _ in r.learned[1:]]
    return v_hat, g * passing, of_t + of_offset


def gradients_are(learned: tuple[torch.Tensor, ...], terms: list[torch.Tensor]) -> bool:
    """Whether the gradient of each learned tensor is the sum of its terms."""
    return all(close(t.grad, of_t.sum(), of_t.abs().sum()) for t, of_t in zip(learned, terms, strict=True))


def close(ours: torch.Tensor, theirs: torch.Tensor, size: torch.Tensor | None = None) -> bool:
    """To 1e-6 of the size, which is that of `theirs`; of a sum that cancels it is the sum of the sizes."""
    size = theirs.detach().norm() if size is None else size
    return bool((ours.double() - theirs.detach()).norm() <= 1e-6 * size.clamp(min=1e-6))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("activation", [IDENTITY, RELU, RELU6], ids=["none", "relu", "relu6"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("method", METHODS)
def test_values_and_gradients(method, bits, activation, layout, way):
    x = LAYOUTS[layout](torch.randn(8, 16, 18, 18) * 4)
    quantizer = started(method, bits, activation == IDENTITY, activation(x))
    rounding = quantizer.rounding(x)
    v = x.clone().requires_grad_()  # in x's own layout
    fine = off_edges(x.double(), rounding, activation)
    assert fine.double().mean() > 0.9
    g = torch.randn_like(x) * fine
    y = fake_quantize.rounded(v, rounding.after(activation))
    y.backward(g)
    v_hat, of_v, terms = expected(x.double(), g.double(), rounding, activation)
    assert close(y.detach() * fine, v_hat * fine)
    assert close(v.grad, of_v)
    assert gradients_are(rounding.learned, terms)


@pytest.mark.parametrize("activation", [IDENTITY, RELU, RELU6], ids=["none", "relu", "relu6"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("method", METHODS)
def test_behind_a_batch_norm(method, bits, activation, way):
    """Values, all four gradients and the running statistics are those of the norm, the activation and the quantizer."""
    norm = nn.BatchNorm2d(16)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = (torch.randn(8, 16, 18, 18) * 3 + 5 * torch.randn(16, 1, 1)).contiguous(memory_format=torch.channels_last)
    quantizer = started(method, bits, activation == IDENTITY, activation(copy.deepcopy(norm)(x)).detach())
    apart, v64 = copy.deepcopy(norm), copy.deepcopy(norm).double()
    apart(x)
    inside, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    v = v64(exact)
    rounding = quantizer.rounding(x)
    fine = off_edges(v.detach(), rounding, activation)
    g = (torch.randn(x.shape) * fine).contiguous(memory_format=torch.channels_last)
    y = fake_quantize.norm_rounded(inside, norm, fake_quantize.normed(inside, norm), rounding.after(activation))
    y.backward(g)
    v_hat, of_v, terms = expected(v.detach(), g.double(), rounding, activation)
    v.backward(of_v)
    assert close(y.detach() * fine, v_hat * fine)
    size = of_v.abs().sum((0, 2, 3)).norm()
    assert close(inside.grad, exact.grad)
    assert close(norm.weight.grad, v64.weight.grad, size)
    assert close(norm.bias.grad, v64.bias.grad, size)
    assert gradients_are(rounding.learned, terms)
    for name, buffer in apart.named_buffers():
        assert torch.allclose(norm.get_buffer(name), buffer, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", METHODS)
def test_an_activation_that_scales_comes_first(method, bits):
    """Hard-sigmoid: it scales and shifts before it clamps."""
    x = torch.randn(8, 16, 18, 18) * 4
    quantizer = started(method, bits, False, HARD_SIGMOID(x))
    assert torch.equal(quantizer(x, HARD_SIGMOID), quantizer(F.hardsigmoid(x)))


def test_extremes_behind_a_norm_are_those_of_its_values(way):
    norm = nn.BatchNorm2d(16)
    nn.init.normal_(norm.weight)
    x = torch.randn(8, 16, 18, 18).contiguous(memory_format=torch.channels_last)
    assert torch.allclose(fake_quantize.normed(x, copy.deepcopy(norm)).extremes, torch.stack(torch.aminmax(norm(x))))


def test_half_precision_is_rounded_in_fp32(way):
    x = (torch.randn(8, 16, 18, 18) * 4).relu()
    quantizer = started("lsq", 4, False, x)
    half = x.bfloat16().requires_grad_()
    y = quantizer(half)
    assert torch.equal(y, quantizer(half.detach().float()).bfloat16())
    y.backward(torch.ones_like(y))
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("method", METHODS)
def test_a_net_trains_alike_in_either_way(method):
    """Values near a tie may fall to either side: compiled, gradients differ as much as weights that are 1e-6 off do."""
    model = quant.prepare(models.build("resnet20", 10, 32, {}), spec(method=method, weight_bits=4, act_bits=8))
    model = model.to(memory_format=torch.channels_last).train()
    images = torch.randn(8, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    model(images)

    def gradient(off: float = 0.0) -> torch.Tensor:
        twin = copy.deepcopy(model)
        for p in twin.parameters():
            p.data.mul_(1 + off * torch.randn_like(p))
        F.cross_entropy(twin(images), torch.arange(8)).backward()
        return torch.cat([p.grad.flatten() for p in twin.parameters()])

    plain, disturbed = gradient(), gradient(1e-6)
    compile_or_skip()
    compiled = gradient()
    kernels.interpret_all()
    least = torch.cosine_similarity(plain, disturbed, dim=0) - 0.1
    assert torch.cosine_similarity(plain, compiled, dim=0) > least
    assert compiled.norm() / plain.norm() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("method", ["lsq", "pact", "dorefa", "statassist"])
def test_other_bits_and_ranges_compile_nothing_again(method):
    compile_or_skip()
    x = LAYOUTS["channels_last"](torch.randn(8, 16, 18, 18))

    def train(bits: int, size: float) -> int:
        v = (x * size).requires_grad_()
        quantizer = quant.METHODS[method].activation(spec(method=method, weight_bits=4), bits, False)
        quantizer.train()(v, RELU).sum().backward()
        return torch._dynamo.utils.counters["stats"]["unique_graphs"]

    found = [train(bits, size) for bits, size in ((4, 1.0), (4, 3.0), (2, 0.1), (8, 7.0))]
    kernels.interpret_all()
    assert len(set(found)) == 1


def test_without_a_compiler_a_line_says_so_and_all_goes_on(monkeypatch, capsys):
    def absent(*_, **__):
        raise RuntimeError("No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')")

    monkeypatch.setattr(torch, "compile", absent)
    quant.compile_kernels()
    assert not kernels.compiled()
    out = capsys.readouterr().out
    assert "quantizers are not compiled (No working C++ compiler" in out
    assert out.count("\n") == 1


def test_a_compiler_that_fails_in_the_middle_of_a_run_does_not_end_it(monkeypatch, capsys):
    def broken(*_):
        raise torch._dynamo.exc.TorchDynamoException("CppCompileError: no space left on device")

    monkeypatch.setattr(kernels, "_compiled", {kernels.forward: broken})
    x = torch.randn(8, 16, 18, 18)
    quantizer = started("lsq", 4, True, x)
    y = quantizer(x)
    assert not kernels.compiled()
    assert torch.equal(y, quantizer(x))
    assert capsys.readouterr().out.count("not compiled (CppCompileError: no space left on device)") == 1


def test_a_batch_norm_that_counts_and_averages_in_training_fits(monkeypatch):
    """Each condition for itself: of the norm, of the activation, of the tensor, and that kernels are compiled."""
    monkeypatch.setattr(kernels, "_compiled", {kernels.forward: kernels.forward})
    x = torch.zeros(8, 16, 16, 16).contiguous(memory_format=torch.channels_last)
    assert x.numel() == kernels.SMALL

    class Own(nn.BatchNorm2d):
        pass

    assert fake_quantize.can_fuse_norm(nn.BatchNorm2d(16), x, RELU6)
    for norm in (
        Own(16),
        nn.BatchNorm2d(16, affine=False),
        nn.BatchNorm2d(16, track_running_stats=False),
        nn.BatchNorm2d(16, momentum=None),
        nn.BatchNorm2d(16).eval(),
        nn.InstanceNorm2d(16, affine=True, track_running_stats=True),
    ):
        assert not fake_quantize.can_fuse_norm(norm, x, RELU6), norm
    assert not fake_quantize.can_fuse_norm(nn.BatchNorm2d(16), x, HARD_SIGMOID)
    for other in (x.contiguous(), x[:7], x.flatten(1)):
        assert not fake_quantize.can_fuse_norm(nn.BatchNorm2d(16), other, RELU6), other.shape
    kernels.interpret_all()
    assert not fake_quantize.can_fuse_norm(nn.BatchNorm2d(16), x, RELU6)


def test_an_activation_in_front_narrows_the_integers_and_the_gradient():
    """clamp(round(clamp(v, -1, 1.2) / 0.3), -5, 10): the integers -3 .. 4."""
    numbers = (torch.tensor(number) for number in (0.3, -5.0, 10.0, -1.6, 3.1))
    rounding = fake_quantize.Rounding(*numbers, learned=(torch.tensor(0.3),))
    behind = rounding.after(ClampedAffine(-1.0, 1.2))
    assert (float(behind.least), float(behind.most)) == (-3.0, 4.0)
    assert float(behind.low) == -1.0
    assert float(behind.high) == pytest.approx(1.2)
    assert behind.ends == (rounding.low, rounding.high), "gradients of t still count between its own ends"
    assert rounding.after(IDENTITY) is rounding
    wide = rounding.after(ClampedAffine(-9.0, 9.0))
    assert (float(wide.least), float(wide.most)) == (-5.0, 10.0)
    assert (wide.low, wide.high) == (rounding.low, rounding.high)
