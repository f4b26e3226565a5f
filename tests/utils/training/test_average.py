"""The average of the weights against a sum written out, in and out of the model, and through an optimizer's state."""

import copy

import pytest
import torch
from torch import nn

from utils.training.average import Average

DECAY = 0.6


def trained(steps: int, optimizer: torch.optim.Optimizer, model: nn.Module, average: Average) -> list[torch.Tensor]:
    """The weights after each step."""
    weights = []
    for _ in range(steps):
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        average.update()
        optimizer.zero_grad()
        weights.append(model.weight.detach().clone())
    return weights


def test_it_is_the_weighted_sum_of_the_weights_so_far():
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    average = Average(optimizer, DECAY)
    weights = trained(12, optimizer, model, average)
    expected = weights[0]
    for t, weight in enumerate(weights):
        d = min(DECAY, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * weight
    with average.applied_to(model):
        assert torch.allclose(model.weight, expected, atol=1e-6)
    assert torch.equal(model.weight, weights[-1])


def test_weights_and_buffers_come_back_whatever_happens_meanwhile():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    average = Average(optimizer, DECAY)
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    average.update()
    before = copy.deepcopy(model.state_dict())

    def disturbed() -> None:
        with average.applied_to(model):
            model[1].running_mean.add_(1)
            raise RuntimeError("meanwhile")

    with pytest.raises(RuntimeError, match="meanwhile"):
        disturbed()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_it_goes_on_from_an_optimizers_state_and_takes_up_what_comes_later(make):
    def fresh():
        torch.manual_seed(0)
        model, later = nn.Linear(3, 2), nn.Parameter(torch.ones(()))
        optimizer = make(model.parameters(), lr=0.01)
        average = Average(optimizer, DECAY)
        trained(3, optimizer, model, average)
        optimizer.add_param_group({"params": [later]})
        later.grad = torch.ones(())
        return model, later, optimizer, average

    model, later, optimizer, average = fresh()
    trained(1, optimizer, model, average)
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    value = later.detach().clone()
    torch.manual_seed(1)
    trained(3, optimizer, model, average)

    other, other_later, other_optimizer, other_average = fresh()
    other.load_state_dict(weights)
    with torch.no_grad():
        other_later.copy_(value)
    other_optimizer.load_state_dict(saved)
    other_later.grad = None
    torch.manual_seed(1)
    trained(3, other_optimizer, other, other_average)
    average.swap()
    other_average.swap()
    assert torch.equal(model.weight, other.weight)
    assert torch.equal(later, other_later)
