"""Weights and rates against the paper's equations written out, and that the share of changing integers is followed."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import quant
from quant.core.options import TrainingOptions
from quant.graph.quant_layers import QuantLayer
from quant.qat.transition_rate import TransitionRate, fix_steps, scheduled_layers
from tests.conftest import photos, spec
from tests.nets import plain
from utils.errors import UserError
from utils.training import optim

METHODS = [name for name, method in quant.METHODS.items() if issubclass(method.options, TrainingOptions)]
ETA, BETAS, EPS, MOMENTUM, DECAY = 0.05, (0.9, 0.999), 1e-8, 0.9, 1e-2


def a_net(method: str, bits: int = 3):
    """A prepared net after a step in train mode, which initializes what awaits data."""
    model = quant.prepare(plain(10), spec(method=method, weight_bits=bits, act_bits=4)).train()
    model(photos(8, 32))
    fix_steps(model)
    return model, [p for p in model.parameters() if p.requires_grad]


def with_gradients(parameters: list[nn.Parameter], size: float = 1.0) -> None:
    for p in parameters:
        p.grad = size * torch.randn_like(p)


def directions(optimizer: str, gradients: list[torch.Tensor], weights: list[torch.Tensor]):
    """The g of each step, in fp64, from the gradients and the weights before them."""
    m, v = torch.zeros_like(gradients[0]), torch.zeros_like(gradients[0])
    for t, (gradient, w) in enumerate(zip(gradients, weights, strict=True), 1):
        d = gradient + DECAY * w
        if optimizer == "sgd":
            m = MOMENTUM * m + d if t > 1 else d
            yield m
        else:
            m, v = BETAS[0] * m + (1 - BETAS[0]) * d, BETAS[1] * v + (1 - BETAS[1]) * d.square()
            yield (m / (1 - BETAS[0] ** t)) / ((v / (1 - BETAS[1] ** t)).sqrt() + EPS)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=9.0, momentum=MOMENTUM, weight_decay=DECAY),
    "adam": lambda p: torch.optim.Adam(p, lr=9.0, betas=BETAS, eps=EPS, weight_decay=DECAY),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_weights_and_rates_are_those_of_the_equations(method, optimizer):
    """Of every layer, over six steps; the optimizer's own learning rate, 9, does not matter."""
    model, trained = a_net(method)
    torch_optimizer = OPTIMIZERS[optimizer](trained)
    share = 0.5
    schedule = TransitionRate(torch_optimizer, model, 0.1, ETA, lambda: share)
    layers = scheduled_layers(model)
    seen = [([], []) for _ in layers]
    for _ in range(6):
        with_gradients(trained)
        for (w, _), (gradients, weights) in zip(layers, seen, strict=True):
            gradients.append(w.grad.double().clone())
            weights.append(w.detach().double().clone())
        torch_optimizer.step()
    for i, ((w, quantizer), (gradients, weights)) in enumerate(zip(layers, seen, strict=True)):
        K, U, R = 0.0, ETA * share, 0.1 * 3**0.5 * share
        path = [*weights, w.detach().double()]
        for t, g in enumerate(directions(optimizer, gradients, weights)):
            U = max(0.0, U + ETA * (R - K))
            assert torch.allclose(path[t + 1], path[t] - U * g, rtol=1e-5, atol=1e-6)
            before, after = (quantizer.to_int(path[step].float()) for step in (t, t + 1))
            K = 0.99 * K + 0.01 * float((before != after).double().mean())
        assert float(schedule.K[i]) == pytest.approx(K, rel=1e-4)
        assert ETA * float(schedule.u[i]) == pytest.approx(U, rel=1e-4)


def test_integers_that_change_are_counted_by_rounding():
    """LSQ's, against round and clip."""
    model, trained = a_net("lsq", bits=2)
    optimizer = torch.optim.SGD(trained, lr=0.0)
    schedule = TransitionRate(optimizer, model, 0.1, 0.1, lambda: 1.0)
    (w, quantizer), *_ = scheduled_layers(model)
    s = quantizer.s.detach().view(-1, *[1] * (w.ndim - 1))
    before = (w.detach() / s).round().clamp(-2, 1)
    with_gradients(trained)
    optimizer.step()
    changed = ((w.detach() / s).round().clamp(-2, 1) != before).float().mean()
    assert changed > 0
    assert schedule.K[0] == pytest.approx(0.01 * float(changed), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_share_follows_its_target(method):
    """Upwards from a rate that changes nothing, and downwards until nothing moves."""
    model, trained = a_net(method, bits=2)
    optimizer = torch.optim.SGD(trained, lr=0.1)
    target = 1.0
    schedule = TransitionRate(optimizer, model, 0.02, 0.01, lambda: target)
    for _ in range(800):
        with_gradients(trained, 0.05)
        optimizer.step()
    assert torch.allclose(schedule.K, torch.full_like(schedule.K, 0.02 * 2**0.5), rtol=0.5)
    target = 0.0
    schedule.u.fill_(0.1)
    schedule.K.fill_(0.2)
    weights = [w.detach().clone() for w, _ in schedule.layers]
    with_gradients(trained)
    optimizer.step()
    assert all(torch.equal(w, before) for (w, _), before in zip(schedule.layers, weights, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_what_is_not_scheduled_keeps_the_ordinary_learning_rate(method):
    """Weights of 8 bits, biases, batch norms, clips and steps of activations; and what is scheduled has no other."""
    model, trained = a_net(method)
    optimizer = torch.optim.SGD(trained, lr=1.0)
    TransitionRate(optimizer, model, 0.1, ETA, lambda: 1.0)
    optim.check_covers(optimizer, model)
    wide = [m.weight for m in model.modules() if isinstance(m, QuantLayer) and m.weight_quantizer.bits == 8]
    scheduled = {id(w) for w, _ in scheduled_layers(model)}
    assert wide
    assert scheduled
    others = [p for p in trained if id(p) not in scheduled]
    assert {id(w) for w in wide} <= {id(p) for p in others}
    before = [p.detach().clone() for p in others]
    with_gradients(trained)
    optim.set_rate(optimizer, 0.5)
    optimizer.step()
    for p, start in zip(others, before, strict=True):
        assert torch.allclose(p, start - 0.5 * p.grad)
    assert optimizer.param_groups[0]["lr"] == 0.5, "which the log shows"


def test_steps_of_weights_are_fixed_and_those_of_activations_are_not():
    model, _ = a_net("lsq")
    weights = {id(m.weight_quantizer.s) for m in model.modules() if isinstance(m, QuantLayer)}
    learned = {id(p) for parameters, _ in quant.learned(model) for p in parameters}
    assert learned
    assert not learned & weights
    model(photos(8, 32)).sum().backward()
    assert all(p.grad is None for m in model.modules() if isinstance(m, QuantLayer) for p in [m.weight_quantizer.s])


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_it_goes_on_from_an_optimizers_state(make):
    def fresh():
        torch.manual_seed(0)
        model, trained = a_net("lsq")
        optimizer = make(trained)
        return model, trained, optimizer, TransitionRate(optimizer, model, 0.1, ETA, lambda: 1.0)

    def steps(count: int, trained: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        for _ in range(count):
            with_gradients(trained)
            optimizer.step()

    model, trained, optimizer, schedule = fresh()
    steps(3, trained, optimizer)
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    steps(3, trained, optimizer)
    other, other_trained, other_optimizer, other_schedule = fresh()
    other.load_state_dict(weights)
    other_optimizer.load_state_dict(saved)
    torch.manual_seed(1)
    steps(3, other_trained, other_optimizer)
    assert torch.equal(schedule.K, other_schedule.K)
    assert torch.equal(schedule.u, other_schedule.u)
    assert all(torch.equal(one, two) for one, two in zip(trained, other_trained, strict=True))


class NoReads(TorchDispatchMode):
    """Refuses to read a tensor's value, which would wait for a device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", METHODS)
def test_no_step_waits_for_a_value(method):
    model, trained = a_net(method)
    optimizer = torch.optim.SGD(trained, lr=0.1)
    schedule = TransitionRate(optimizer, model, 0.1, 0.1, lambda: 1.0)
    with_gradients(trained)
    with NoReads():
        schedule.before_step()
        schedule.after_step()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_it_starts_at_the_optimizers_own_learning_rate(share):
    model, trained = a_net("lsq")
    schedule = TransitionRate(torch.optim.SGD(trained, lr=0.1), model, 0.01, 0.1, lambda: share)
    assert schedule.u.tolist() == [share] * len(schedule.layers)


def test_a_net_without_narrow_weights_is_refused():
    model, trained = a_net("lsq", bits=8)
    with pytest.raises(UserError, match=r"quant.transition_rate: no layer's weights have 7 bits or fewer"):
        TransitionRate(torch.optim.SGD(trained, lr=0.1), model, 0.01, 0.1, lambda: 1.0)
