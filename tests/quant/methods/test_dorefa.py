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
    layer = dorefa.NoisyGradient(2)
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
    assert not any(isinstance(m, dorefa.NoisyGradient) for m in plain.modules())


@pytest.mark.parametrize(("weight_bits", "act_bits", "least"), [(1, 1, 50), (2, 2, 75), (7, 8, 90)])
def test_a_net_learned_on_digits_is_the_same_in_integers(weight_bits, act_bits, least, digits16):
    settings = spec(method="dorefa", weight_bits=weight_bits, act_bits=act_bits, reduce_range=False)
    agrees_in_integers(trained(digits16, "tests.nets:Residual", {}, 15, settings), digits16, least)


def test_weights_that_do_not_fit_in_int8_are_refused():
    with pytest.raises(UserError, match=r"^quant.weight_bits: dorefa cannot use 8 bits: .* fewer, or 32 for float"):
        spec(method="dorefa", weight_bits=8)
    with pytest.raises(UserError, match=r"^quant.weight_bits: dorefa cannot use 7 bits: .* \+-63 \(reduce_range\)"):
        spec(method="dorefa", weight_bits=7, reduce_range=True)
    spec(method="dorefa", weight_bits=7, reduce_range=False)
    assert dorefa.METHOD.rescales(spec(method="dorefa", weight_bits=4))
    assert not dorefa.METHOD.rescales(spec(method="dorefa", weight_bits=32))


def test_inputs_that_can_be_negative_are_clipped_or_affine():
    clip, other = spec(method="dorefa", weight_bits=4), spec(method="dorefa", weight_bits=4, signed_edges="affine")
    for settings, signed, bits, affine in (
        (clip, True, 4, False),
        (clip, True, 1, True),
        (clip, False, 1, False),
        (other, True, 4, True),
        (other, False, 4, False),
    ):
        quantizer = dorefa.activation(settings, bits, signed)
        assert isinstance(quantizer, dorefa.BoundedActivation) != affine
        assert quantizer.bits == (8 if affine else bits)
