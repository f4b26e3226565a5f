"""DoReFa against its equations in NumPy, its gradients on average, and its nets in integers."""

import numpy
import pytest
import torch
from torch import nn

import models
import quant
from quant.methods import dorefa
from tests.conftest import agrees_in_integers, spec, trained
from utils.errors import UserError


def numpy_round(x, k):
    return numpy.rint(x * (2**k - 1)) / (2**k - 1)


def numpy_weights(w, k, upstream):
    """Equation 9 and its gradient, through tanh and through the maximum."""
    t = numpy.tanh(w)
    top = numpy.abs(t).argmax()
    M = abs(t[top])
    out = 2 * numpy_round(t / (2 * M) + 0.5, k) - 1
    of_t = upstream / M
    of_t[top] -= numpy.sign(t[top]) * (upstream * t).sum() / M**2
    return out, of_t * (1 - t**2)


@pytest.mark.parametrize("k", range(2, 8))
def test_weights_against_the_equations(k):
    quantizer = dorefa.METHOD.weight(spec(method="dorefa", weight_bits=4, granularity="per_tensor"), k, (6, 40))
    w, upstream = torch.randn(6, 40).mul_(0.3).requires_grad_(), torch.randn(6, 40)
    out = quantizer(w)
    out.backward(upstream)
    expected = numpy_weights(w.detach().double().numpy().ravel(), k, upstream.double().numpy().ravel())
    assert numpy.allclose(out.detach().numpy().ravel(), expected[0], atol=1e-6)
    assert numpy.allclose(w.grad.numpy().ravel(), expected[1], rtol=1e-3, atol=1e-5)
    assert len(out.unique()) <= 2**k
    assert (out != 0).all(), "odd multiples have no zero"


def test_a_maximum_a_channel_is_the_paper_on_each_channel():
    w = torch.randn(3, 4, 3, 3)
    whole = dorefa.METHOD.weight(spec(method="dorefa", weight_bits=4), 4, (3, 4, 3, 3))(w)
    single = dorefa.METHOD.weight(spec(method="dorefa", weight_bits=4, granularity="per_tensor"), 4, (1, 4, 3, 3))
    assert torch.equal(whole, torch.cat([single(row[None]) for row in w]))


def test_one_bit_weights_are_signs_times_the_mean():
    w = torch.randn(5, 8).requires_grad_()
    quantizer = dorefa.METHOD.weight(spec(method="dorefa", weight_bits=1, granularity="per_tensor"), 1, (5, 8)).train()
    out, upstream = quantizer(w), torch.randn(5, 8)
    out.backward(upstream)
    assert numpy.allclose(out.detach().numpy(), numpy.sign(w.detach().numpy()) * w.detach().abs().mean().numpy())
    assert torch.equal(w.grad, upstream)


@pytest.mark.parametrize("k", range(1, 9))
def test_activations_against_the_equations(k):
    a, upstream = (torch.randn(500) * 1.2).requires_grad_(), torch.randn(500)
    out = dorefa.activation(spec(method="dorefa", weight_bits=4), k, False)(a)
    out.backward(upstream)
    values = a.detach().numpy()
    assert numpy.allclose(out.detach().numpy(), numpy_round(numpy.clip(values, 0, 1), k), atol=1e-6)
    assert numpy.array_equal(a.grad.numpy(), upstream.numpy() * ((values >= 0) & (values <= 1)))


@pytest.mark.parametrize("k", [2, 4, 8])
def test_another_clip_is_another_bounded_activation(k):
    a = (torch.randn(500) * 3).requires_grad_()
    out = dorefa.activation(spec(method="dorefa", weight_bits=4, act_clip=2.5), k, False)(a)
    out.sum().backward()
    values = a.detach().numpy()
    assert numpy.allclose(out.detach().numpy(), 2.5 * numpy_round(numpy.clip(values / 2.5, 0, 1), k), atol=1e-6)
    assert numpy.array_equal(a.grad.numpy(), (values >= 0) & (values <= 2.5))


def test_signed_activations_are_clipped_on_both_sides_or_affine():
    a = (torch.randn(500) * 1.2).requires_grad_()
    out = dorefa.activation(spec(method="dorefa", weight_bits=4), 3, True)(a)
    out.sum().backward()
    assert numpy.allclose(out.detach().numpy(), numpy.rint(numpy.clip(a.detach().numpy(), -1, 1) * 3) / 3, atol=1e-6)
    assert torch.equal(a.grad, (a.abs() <= 1).float())
    affine = dorefa.activation(spec(method="dorefa", weight_bits=4, signed_edges="affine"), 3, True)
    assert affine.bits == 8
    assert "affine" in affine.note


@pytest.mark.parametrize("k", [1, 2, 4, 6, 8])
def test_gradients_against_the_equation_with_the_same_noise(k):
    d = torch.randn(4, 3, 5, 5)
    d[2] = 0
    found = dorefa.quantize_gradient(d, k, torch.Generator().manual_seed(5))
    uniform = torch.rand(d.shape, generator=torch.Generator().manual_seed(5)).numpy() - 0.5
    for sample, noise, ours in zip(d.numpy(), uniform / (2**k - 1), found.numpy(), strict=True):
        M = numpy.abs(sample).max()
        expected = 2 * M * (numpy_round(numpy.clip(sample / (2 * M or 1) + 0.5 + noise, 0, 1), k) - 0.5)
        assert numpy.allclose(ours, expected, atol=1e-6)
    assert (found[2] == 0).all(), "a sample without gradient stays without"


def test_quantized_gradients_are_right_on_average():
    d = torch.randn(2, 200)
    d = d.clamp(-1, 1) / 2  # with the clip at M out of the way
    d[:, 0] = 1
    generator = torch.Generator().manual_seed(0)
    mean = sum(dorefa.quantize_gradient(d, 2, generator) for _ in range(3000)) / 3000
    assert (mean - d).abs()[:, 1:].max() < 0.05


def test_the_forward_pass_and_eval_know_nothing_of_the_gradient_quantizer():
    layer = dorefa.GradientQuantizer(2)
    x = torch.randn(3, 4, requires_grad=True)
    assert torch.equal(layer.train()(x), x)
    assert layer.eval()(x) is x


def test_noise_comes_from_the_generator_that_the_run_gives():
    def gradients(seed):
        torch.manual_seed(3)
        model = models.build("resnet20", 10, 32, {})
        model = quant.prepare(model, spec(method="dorefa", weight_bits=4, act_bits=4, grad_bits=4)).train()
        quant.draw_from(model, torch.Generator().manual_seed(seed))
        nn.functional.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.arange(4)).backward()
        return model.get_submodule("layer1.0.conv1").weight.grad

    assert torch.equal(gradients(1), gradients(1))
    assert not torch.equal(gradients(1), gradients(2))


def test_gradients_of_hidden_layers_alone_are_quantized():
    model = models.build("resnet20", 10, 32, {})
    model = quant.prepare(model, spec(method="dorefa", weight_bits=4, grad_bits=6))
    assert model.get_submodule("layer1.0.conv1").gradient.k == 6
    assert model.conv1.gradient is None
    assert model.fc.gradient is None
    plain = quant.prepare(models.build("resnet20", 10, 32, {}), spec(method="dorefa", weight_bits=4))
    assert not any(isinstance(m, dorefa.GradientQuantizer) for m in plain.modules())


def test_eight_bit_weights_are_refused_with_the_reason():
    with pytest.raises(UserError, match="odd integers up to"):
        spec(method="dorefa", weight_bits=8)
    with pytest.raises(UserError, match=r"quant.weights=sawb"):
        spec(method="pact", weight_bits=8, weights="dorefa")


@pytest.mark.parametrize(("weight_bits", "act_bits", "least"), [(1, 1, 50), (2, 2, 75), (7, 8, 90)])
def test_a_net_learned_on_digits_is_the_same_in_integers(weight_bits, act_bits, least, digits16):
    settings = spec(method="dorefa", weight_bits=weight_bits, act_bits=act_bits, reduce_range=False)
    agrees_in_integers(trained(digits16, "tests.nets:Residual", {}, 15, settings), digits16, least)
