"""Kernels as plain formulas: what they compute, and when the compiled ones run."""

import math

import pytest
import torch

from quant.core import kernels
from quant.core.kernels import SMALL, learned_gradient_terms, run, statistics, to_integers, within


@pytest.fixture
def compiled(monkeypatch):
    """A stand-in for the compiled form of `forward`, and the arguments that it gets."""
    seen = []

    def fast(*arguments):
        seen.append(arguments)
        return "compiled"

    monkeypatch.setattr(kernels, "_compiled", {kernels.forward: fast})
    return seen


def test_only_large_tensors_go_to_the_compiled_kernel(compiled):
    numbers = torch.tensor(2.0), torch.tensor(0.5), torch.tensor(0.0), torch.tensor(3.0)
    assert run(kernels.forward, torch.zeros(SMALL), *numbers) == "compiled"
    found = run(kernels.forward, torch.ones(SMALL - 1), *numbers)
    assert torch.equal(found, torch.ones(SMALL - 1))
    assert len(compiled) == 1
    ones = torch.ones(SMALL)
    assert torch.is_tensor(run(kernels.backward, ones, ones, *numbers[:2], None)), "not compiled"


def test_compiled_kernels_get_tensors_without_history(compiled):
    """Else the compiler would compile another variant for them."""
    learned = torch.tensor(2.0, requires_grad=True)
    run(kernels.forward, torch.zeros(SMALL, requires_grad=True), learned, (learned, None), True)
    x, number, (inner, nothing), flag = compiled[0]
    assert not x.requires_grad
    assert not number.requires_grad
    assert not inner.requires_grad
    assert torch.is_tensor(number)
    assert nothing is None
    assert flag is True


def test_compiled_kernels_get_known_numbers_as_tensors_and_no_tensor_twice(compiled):
    """Else the compiler would compile another variant for each value, and for equal ones."""
    same = torch.tensor(0.5)
    run(kernels.forward, torch.zeros(SMALL), same, same, (0.0, math.inf), 0.0)
    _, *numbers, (low, high), least = compiled[0]
    found = [*numbers, low, high, least]
    assert [float(number) for number in found] == [0.5, 0.5, 0.0, math.inf, 0.0]
    assert len({id(number) for number in found}) == len(found)


def test_plain_kernels_get_python_numbers():
    seen = []
    run(lambda *arguments: seen.extend(arguments), torch.zeros(2), torch.tensor(2.0), (torch.tensor(3.0), None), "text")
    x, number, (inner, nothing), text = seen
    assert x.shape == (2,)
    assert type(number) is float
    assert type(inner) is float
    assert nothing is None
    assert text == "text"


def test_integers_are_rounded_to_even_and_clamped():
    u = torch.tensor([-9.0, -0.5, 0.5, 1.5, 2.5, 9.0])
    assert torch.equal(to_integers(u, 1.0, -2.0, 3.0), torch.tensor([-2.0, 0.0, 0.0, 2.0, 2.0, 3.0]))
    assert torch.equal(u, torch.tensor([-9.0, -0.5, 0.5, 1.5, 2.5, 9.0])), "not in place"


@pytest.mark.parametrize("as_tensors", [False, True])
def test_gradients_pass_strictly_inside(as_tensors):
    v, g = torch.tensor([-1.0, -0.5, 0.0, 1.0, 2.0]), torch.full((5,), 3.0)
    low, high = (torch.tensor(-1.0), torch.tensor(1.0)) if as_tensors else (-1.0, 1.0)
    assert torch.equal(within(g, v, low, high), torch.tensor([0.0, 3.0, 3.0, 0.0, 0.0]))


def test_a_nan_does_not_pass_as_a_gradient_of_zero():
    g = torch.tensor([math.nan, 1.0])
    assert within(g, torch.zeros(2), torch.tensor(-1.0), torch.tensor(1.0)).isnan().tolist() == [True, False]


def test_statistics_of_channels():
    """The mean, the variance over N, and the extremes, of values far from zero."""
    x = torch.randn(3, 10, 4) + torch.tensor([0.0, 1000.0, -50.0, 3.0])
    mean, variance, least, greatest = statistics(x)
    flat = x.double().flatten(0, 1)
    assert torch.allclose(mean.double(), flat.mean(0), rtol=1e-6, atol=1e-6)
    assert torch.allclose(variance.double(), flat.var(0, unbiased=False), rtol=1e-4)
    assert torch.equal(least, x.flatten(0, 1).amin(0))
    assert torch.equal(greatest, x.flatten(0, 1).amax(0))


def test_the_variance_of_a_constant_is_not_negative():
    assert (statistics(torch.full((3, 7, 2), 0.1))[1] >= 0).all()


@pytest.mark.parametrize("inside", [True, False])
def test_terms_of_learned_tensors(inside):
    """scale 0.5, integers 0 .. 3, values clamped at 1.2 by the activation; each by definition."""
    v, g = torch.tensor([-1.0, 0.3, 0.7, 1.4, 9.0]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    u = v.clamp(-0.2, 1.2)
    v_hat = (u / 0.5).round().clamp(0, 3) * 0.5
    passing = g * ((v > 0) & (v < 1))
    to_terms = g, v, passing, 0.0, 1.0
    (term,) = learned_gradient_terms(*to_terms, -0.2, 1.2, inside, None, False, 2.0, 0.5, 0.0, 3.0)
    assert torch.allclose(term, g * v_hat - passing * (u if inside else v_hat))
    found, of_offset = learned_gradient_terms(*to_terms, -0.2, 1.2, inside, (0.0, 1.3), True, 2.0, 0.5, 0.0, 3.0)
    felt = g * ((u > 0) & (u < 1.3))
    assert torch.allclose(found, g * v_hat - felt * (u if inside else v_hat))
    assert torch.equal(of_offset, g - felt)
    (free,) = learned_gradient_terms(*to_terms, -math.inf, math.inf, inside, None, False, 2.0, 0.5, 0.0, 3.0)
    assert not torch.allclose(free, term)


def test_compiling_twice_is_compiling_once(monkeypatch):
    calls = []
    monkeypatch.setattr(kernels, "_compiled", {kernels.forward: kernels.forward})
    monkeypatch.setattr(kernels, "_tried_on", {torch.device("cpu")})
    monkeypatch.setattr(torch, "compile", lambda *a, **k: calls.append(a))
    kernels.compile_all()
    assert calls == [], "on the same device"
    assert kernels.compiled()
    kernels.interpret_all()
    assert not kernels.compiled()


def test_all_kernels_are_compiled_and_the_first_is_tried(monkeypatch):
    monkeypatch.setattr(kernels, "_compiled", {})
    ran = []

    def compile_one(kernel, **_):
        def fast(*arguments):
            ran.append((kernel, arguments[0].device.type))
            return kernel(*arguments)

        return fast

    monkeypatch.setattr(torch, "compile", compile_one)
    kernels.compile_all(torch.device("meta"))
    assert set(kernels._compiled) == set(kernels.KERNELS)
    assert ran == [(kernels.forward, "meta")]
