"""GradBoost against a transcription of its authors' optimizers, and what its parts promise."""

import copy

import numpy
import pytest
import torch

from quant.methods.gradboost import GradBoost, end_warm_up
from tests.conftest import build_optimizer
from utils.training import optim

CLIP, DECAY, LR, WD = 1e-2, 2e-2, 0.02, 0.03
SHAPES = [(3, 4), (5,), ()]


class NumpyBoost:
    """The boost of one parameter, in either mode, as SPEC gives it."""

    def __init__(self, mode, beta, toss_coin):
        self.mode, self.beta, self.toss_coin, self.t, self.n = mode, beta, toss_coin, 0, 0
        self.hi = self.lo = None

    def __call__(self, g, warming_up, noise, coin):
        size, beta = numpy.abs(g), self.beta
        if self.hi is None:
            self.hi = self.lo = numpy.zeros_like(g) if self.mode == "reference" else size
        self.t += 1
        self.hi = beta * self.hi + (1 - beta) * numpy.maximum(self.hi, size)
        self.lo = beta * self.lo + (1 - beta) * numpy.minimum(self.lo, size)
        if self.mode == "reference":
            self.hi, self.lo = self.hi / (1 - beta**self.t), self.lo / (1 - beta**self.t)
        if warming_up:
            return g
        self.n += 1
        noise = noise * (self.hi - self.lo) * (1 - DECAY) ** self.n
        noise = noise * coin if self.toss_coin else noise
        return g + numpy.clip(noise * numpy.sign(g), -CLIP, CLIP)


class NumpyOptimizer:
    """SGD with Nesterov momentum, RMSprop with momentum, Adam and AdamW of one parameter, each with its boost."""

    def __init__(self, name, boost):
        self.name, self.boost, self.v, self.s, self.t = name, boost, 0.0, 0.0, 0

    def step(self, p, g, *draw):
        self.t += 1
        if self.name == "qadam":
            g = g + WD * p
        if self.name == "qadamw":
            p = p * (1 - LR * WD)
        g = self.boost(g, *draw)
        if self.name in ("qsgd", "qrmsprop"):
            g = g + WD * p
        if self.name == "qsgd":
            self.v = g if self.t == 1 else 0.9 * self.v + g
            return p - LR * (g + 0.9 * self.v)
        if self.name == "qrmsprop":
            self.s = 0.9 * self.s + 0.1 * g**2
            self.v = 0.9 * self.v + g / (numpy.sqrt(self.s) + 1e-8)
            return p - LR * self.v
        self.v = 0.9 * self.v + 0.1 * g
        self.s = 0.999 * self.s + 0.001 * g**2
        bias = numpy.sqrt(1 - 0.999**self.t)
        return p - LR / (1 - 0.9**self.t) * self.v / (numpy.sqrt(self.s) / bias + 1e-8)


def build(name, mode, toss_coin=True, seed=7):
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.randn(shape).double()) for shape in SHAPES])
    optimizer = build_optimizer(model, name=name, lr=LR, weight_decay=WD, decay="all")
    if name in optim.BOOSTED:
        GradBoost(optimizer, mode, CLIP, DECAY, toss_coin, torch.Generator().manual_seed(seed))
    return model, optimizer


def gradients(step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator).double() * 0.1 for shape in SHAPES]


def step(model, optimizer, number):
    for p, g in zip(model, gradients(number), strict=True):
        p.grad = g.clone()
    optimizer.step()


@pytest.mark.parametrize("toss_coin", [True, False])
@pytest.mark.parametrize("mode", ["intended", "reference"])
@pytest.mark.parametrize("name", list(optim.BOOSTED))
def test_fifty_steps_against_the_transcription_with_the_same_noise(name, mode, toss_coin):
    model, optimizer = build(name, mode, toss_coin)
    theirs = [NumpyOptimizer(name, NumpyBoost(mode, 0.9, toss_coin)) for _ in SHAPES]
    values = [p.detach().numpy().copy() for p in model]
    generator, count = torch.Generator().manual_seed(7), sum(p.numel() for p in model)
    for number in range(50):
        warming_up = number < 10
        if number == 10:
            end_warm_up(optimizer)
        noise, coin = torch.zeros(count), torch.ones(count)
        if not warming_up:
            noise.exponential_(generator=generator)
            if toss_coin:
                coin.bernoulli_(0.5, generator=generator)
        step(model, optimizer, number)
        parts = [torch.split(t, [p.numel() for p in model]) for t in (noise, coin)]
        for i, g in enumerate(gradients(number)):
            drawn = [part[i].view(g.shape).double().numpy() for part in parts]
            values[i] = theirs[i].step(values[i], g.numpy(), warming_up, *drawn)
    for ours, expected in zip(model, values, strict=True):
        assert numpy.allclose(ours.detach().numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", list(optim.BOOSTED))
def test_without_noise_it_is_the_plain_optimizer(name):
    torch.manual_seed(0)
    boosted = build(name, "reference")
    torch.manual_seed(0)
    plain = build(name[1:], None)
    for number in range(20):
        step(*boosted, number)
        step(*plain, number)
    assert all(torch.equal(a, b) for a, b in zip(boosted[0], plain[0], strict=True))


@pytest.mark.parametrize("name", list(optim.BOOSTED))
def test_a_restored_optimizer_goes_on_to_the_bit(name):
    model, optimizer = build(name, "intended")
    for number in range(12):
        if number == 5:
            end_warm_up(optimizer)
        step(model, optimizer, number)
    state, values = copy.deepcopy(optimizer.state_dict()), [p.detach().clone() for p in model]
    again, restored = build(name, "intended")
    with torch.no_grad():
        for p, value in zip(again, values, strict=True):
            p.copy_(value)
    restored.load_state_dict(state)
    assert not restored.gradboost.warming_up
    for number in range(12, 20):
        step(model, optimizer, number)
        step(again, restored, number)
    assert all(torch.equal(a, b) for a, b in zip(model, again, strict=True))


def test_the_state_loads_with_weights_only(tmp_path):
    model, optimizer = build("qsgd", "intended")
    step(model, optimizer, 0)
    torch.save(optimizer.state_dict(), tmp_path / "o.pt")
    again = torch.load(tmp_path / "o.pt", weights_only=True)
    assert again["gradboost"]["warming_up"] is True
    assert torch.equal(again["gradboost"]["kept"][0]["hi"], gradients(0)[0].abs())


def test_constant_gradients_leave_nothing_between_the_extremes():
    model, optimizer = build("qsgd", "intended")
    for _ in range(5):
        step(model, optimizer, 3)
    boost = optimizer.gradboost
    assert all(torch.equal(k["hi"], k["lo"]) for k in boost.kept.values())
    reference, optimizer = build("qsgd", "reference")
    for _ in range(10):
        step(reference, optimizer, 3)
    found = optimizer.gradboost.kept[reference[0]]
    assert (found["lo"] == 0).all()
    assert torch.allclose(found["hi"] / gradients(3)[0].abs(), torch.tensor(2482.6).double(), rtol=1e-4)


def test_noise_has_the_sign_of_the_gradient_and_spares_zeros():
    model, optimizer = build("qsgd", "reference", toss_coin=False)
    end_warm_up(optimizer)
    step(model, optimizer, 0)
    for p, g in zip(model, gradients(1), strict=True):
        p.grad = g.clone()
    model[0].grad[0] = 0
    before = [p.grad.clone() for p in model]
    optimizer.gradboost.boost(optimizer)
    for p, g in zip(model, before, strict=True):
        noise = p.grad - g
        assert (noise * g >= 0).all()
        assert (noise.abs() <= CLIP + 1e-9).all()
    assert (model[0].grad[0] == 0).all()
    assert (model[0].grad[1:] != before[0][1:]).all()


def test_a_state_of_another_kind_is_refused():
    plain, other = build("sgd", None)[1].state_dict(), build("qsgd", "reference")[1].state_dict()
    for state in (plain, other):
        with pytest.raises(ValueError, match="not the state of an optimizer with GradBoost in mode intended"):
            build("qsgd", "intended")[1].load_state_dict(state)


def test_a_parameter_without_a_gradient_is_left_out():
    model, optimizer = build("qsgd", "intended")
    end_warm_up(optimizer)
    for p, g in zip(model, gradients(0), strict=True):
        p.grad = g.clone()
    model[1].grad = None
    before = model[1].detach().clone()
    optimizer.step()
    assert set(optimizer.gradboost.kept) == {model[0], model[2]}
    assert torch.equal(model[1], before)
