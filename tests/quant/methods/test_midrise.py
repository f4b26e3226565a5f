"""DoReFa's weights, on mid-rise grids, against the equations in NumPy."""

import numpy
import pytest
import torch

from quant.methods import dorefa
from tests.conftest import spec
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


def test_eight_bit_weights_are_refused_with_the_reason():
    with pytest.raises(UserError, match="odd integers up to"):
        spec(method="dorefa", weight_bits=8)
    with pytest.raises(UserError, match=r"quant.weights=sawb"):
        spec(method="pact", weight_bits=8, weights="dorefa")


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-9, 1e-4])
def test_a_dead_channel_has_no_endless_gradient(size, granularity):
    """Its weights' gradients are at most 16 times those of the largest channel's, and those stay as they are."""
    quantizer = dorefa.METHOD.weight(spec(method="dorefa", weight_bits=4, granularity=granularity), 4, (6, 4, 3, 3))
    w, upstream = torch.randn(6, 4, 3, 3).mul_(0.3), torch.randn(6, 4, 3, 3)
    alive, dead = w.clone().requires_grad_(), w.clone()
    dead[2] *= size
    dead.requires_grad_()
    for weights in (alive, dead):
        (quantizer(weights) * upstream).sum().backward()
    assert dead.grad[2].norm() <= 16.1 * alive.grad.norm()
    others = [0, 1, 3, 4, 5]
    assert dead.grad[others].norm() <= 1.1 * alive.grad.norm()
    if granularity == "per_channel":
        assert torch.equal(dead.grad[others], alive.grad[others])


def test_a_layer_of_zeros_has_a_gradient_that_is_bounded():
    quantizer = dorefa.METHOD.weight(spec(method="dorefa", weight_bits=4), 4, (6, 4, 3, 3))
    w = torch.zeros(6, 4, 3, 3, requires_grad=True)
    quantizer(w).sum().backward()
    assert 0 < w.grad.abs().max() <= 2**10
