"""LSQ against its equations in NumPy, its steps in training, and its nets in integers."""

import copy

import numpy
import pytest
import torch

import models
import quant
from quant.methods import lsq
from tests.conftest import a_step, agrees_in_integers, build_optimizer, spec, trained
from utils.training import optim


def numpy_lsq(v, s, Q_N, Q_P, upstream):
    """Equations 1, 2, 3 and 5, element by element: v_hat, and the gradients of v and of s."""
    out, of_v, of_s = numpy.zeros_like(v), numpy.zeros_like(v), 0.0
    for i, value in enumerate(v):
        ratio = value / s
        out[i] = numpy.rint(min(max(ratio, -Q_N), Q_P)) * s
        if ratio <= -Q_N:
            slope = -Q_N
        elif ratio >= Q_P:
            slope = Q_P
        else:
            slope, of_v[i] = numpy.rint(ratio) - ratio, upstream[i]
        of_s += slope * upstream[i]
    return out, of_v, of_s


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("kind", ["weight", "unsigned", "signed"])
def test_forward_and_gradients_against_the_equations(bits, kind):
    settings = spec(method="lsq", granularity="per_tensor")
    if kind == "weight":
        quantizer, N = lsq.weight(settings, bits, (6, 40)), 6 * 40
    else:
        quantizer, N = lsq.activation(settings, bits, kind == "signed"), 40
    v = torch.randn(6, 40)
    quantizer.train()(v)
    Q_N, Q_P = quantizer.Q_N, quantizer.Q_P
    expected_start = 2 * v.abs().mean() / Q_P**0.5
    assert torch.allclose(quantizer.s.detach(), expected_start)
    with torch.no_grad():
        quantizer.s.fill_(2.5 / (Q_N + Q_P))  # so that some values lie beyond both ends
    v.requires_grad_()
    out = quantizer(v)
    upstream = torch.randn(6, 40)
    out.backward(upstream)
    found = numpy_lsq(
        *(t.double().numpy().ravel() if t.ndim else float(t) for t in (v.detach(), quantizer.s.detach())),
        Q_N,
        Q_P,
        upstream.double().numpy().ravel(),
    )
    assert numpy.allclose(out.detach().numpy().ravel(), found[0], atol=1e-6)
    assert numpy.allclose(v.grad.numpy().ravel(), found[1], atol=1e-6)
    assert numpy.allclose(float(quantizer.s.grad), found[2] / (N * Q_P) ** 0.5, rtol=1e-4)
    assert ((v < -Q_N * quantizer.s) | (v > Q_P * quantizer.s)).any()


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_steps_of_least_error(bits):
    w = torch.randn(3, 500) * torch.tensor([[0.1], [1.0], [5.0]])
    quantizer = lsq.weight(spec(method="lsq", step_init="mse"), bits, (3, 500)).train()
    quantizer(w)

    def error(row, s):
        return ((numpy.clip(numpy.rint(row / s), -quantizer.Q_N, quantizer.Q_P) * s - row) ** 2).mean()

    for row, s in zip(w.numpy(), quantizer.s.tolist(), strict=True):
        tried = numpy.linspace(0.01, 1, 400) * numpy.abs(row).max() / quantizer.Q_P
        assert error(row, s) <= 1.02 * min(error(row, t) for t in tried)


def test_ranges_are_those_of_the_paper():
    settings = spec(method="lsq", reduce_range=False)
    ranges = {bits: (q.Q_N, q.Q_P) for bits in (2, 4, 8) for q in [lsq.weight(settings, bits, (4, 10))]}
    assert ranges == {2: (2, 1), 4: (8, 7), 8: (127, 127)}
    assert [(q.Q_N, q.Q_P) for q in (lsq.activation(settings, 2, False), lsq.activation(settings, 2, True))] == [
        (0, 3),
        (2, 1),
    ]


def test_a_step_a_channel_has_its_own_gradient_and_scale():
    weight = torch.randn(3, 4, 3, 3)
    whole, single = lsq.weight(spec(method="lsq"), 4, (3, 4, 3, 3)), []
    whole.train()(weight).square().sum().backward()
    for row in weight:
        one = lsq.weight(spec(method="lsq", granularity="per_tensor"), 4, (1, 4, 3, 3))
        one.train()(row[None]).square().sum().backward()
        single.append(one)
    assert torch.allclose(whole.s, torch.stack([one.s for one in single]))
    assert torch.allclose(whole.s.grad, torch.stack([one.s.grad for one in single]), rtol=1e-4)


def test_the_steps_that_the_optimizer_holds_are_the_ones_that_move():
    """The classic mistake is a Parameter replaced in forward: the optimizer would hold, and train, another."""
    model = models.build("resnet20", 10, 32, {})
    optimizer = build_optimizer(model, lr=0.05)
    model = quant.prepare(model, spec(method="lsq", weight_bits=4, act_bits=4)).train()
    optim.add_learned(optimizer, quant.learned(model), 1.0)
    optim.check_covers(optimizer, model)
    steps = {name: q.s for name, q in quant.quantizers(model).items()}
    a_step(model, optimizer)
    started = {name: s.detach().clone() for name, s in steps.items()}
    a_step(model, optimizer)
    optim.check_covers(optimizer, model)
    for name, quantizer in quant.quantizers(model).items():
        assert quantizer.s is steps[name], "the same Parameter"
        assert not torch.equal(quantizer.s, started[name]), f"{name} moves"
    held = next(g for g in optimizer.param_groups if any(p is steps[name] for p in g["params"]))
    assert held["weight_decay"] == 0
    assert len(held["params"]) == len(steps)


def test_a_step_starts_once_and_never_in_eval():
    quantizer = lsq.activation(spec(method="lsq"), 4, False)
    quantizer.eval()(torch.rand(4, 9))
    assert not quantizer.is_calibrated()
    quantizer.train()(torch.rand(4, 9))
    first = copy.deepcopy(quantizer.state_dict())
    again = lsq.activation(spec(method="lsq"), 4, False)
    again.load_state_dict(first)
    again.train()(100 * torch.rand(4, 9))
    assert torch.equal(again.s, first["s"]), "a restored step is not initialized again"


@pytest.mark.parametrize("bits", [2, 4])
def test_a_net_learned_on_digits_is_the_same_in_integers(bits, digits16):
    settings = spec(method="lsq", weight_bits=bits, act_bits=bits)
    agrees_in_integers(trained(digits16, "tests.nets:Residual", {}, 15, settings), digits16, {2: 85, 4: 95}[bits])


def test_a_step_that_was_taken_below_zero_comes_back():
    """Of channels at an optimizer's mercy one must not be dead for ever."""
    v = torch.randn(4, 200)
    quantizer = lsq.weight(spec(method="lsq"), 4, (4, 200)).train()
    quantizer(v)
    good = quantizer.s.detach().clone()
    optimizer = torch.optim.SGD([quantizer.s], lr=0.05)
    with torch.no_grad():
        quantizer.s[0] = -0.3
    for _ in range(300):
        optimizer.zero_grad()
        (quantizer(v) - v).square().sum(1).sum().backward()
        optimizer.step()
    assert (quantizer.s > 0).all()
    assert (quantizer.s / good > 0.5).all()
