"""How long a training will take, from a step that changes nothing."""

import time

import pytest
import torch
from torch import nn

from utils.training import estimate

CPU = torch.device("cpu")


class Slow(nn.Module):
    """A hundredth of a second an image; what it has seen is counted."""

    def __init__(self, seconds: float = 0.01):
        super().__init__()
        self.seconds, self.seen = seconds, []
        self.norm, self.drop, self.fc = nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Linear(3, 2)

    def __deepcopy__(self, memo):
        other = Slow(self.seconds)
        other.load_state_dict(self.state_dict())
        other.seen = self.seen  # so that a test sees what the copy was given
        return other

    def forward(self, x):
        self.seen.append(len(x))
        time.sleep(self.seconds * len(x))
        return self.fc(self.drop(self.norm(x)).mean((2, 3)))


def test_a_quick_net_is_timed_with_a_whole_batch_and_a_slow_one_with_a_few_images():
    quick, slow = Slow(0.002), Slow(0.1)
    assert estimate.seconds_of_step(quick, 20, 8, CPU, "fp32") == pytest.approx(0.04, rel=0.8)
    assert set(quick.seen) == {4, 20}
    assert estimate.seconds_of_step(slow, 40, 8, CPU, "fp32") == pytest.approx(4.0, rel=0.5)
    assert set(slow.seen) == {4}


def test_a_step_that_was_interrupted_does_not_count(monkeypatch):
    taken = iter([3.0, 0.5, 0.04, 0.03, 0.9, 0.05, *[0.01] * 20])
    monkeypatch.setattr(estimate, "timed_step", lambda *_: next(taken))
    monkeypatch.setattr(estimate, "PATIENCE", 100.0)
    assert estimate.seconds_of_step(Slow(), 4, 8, CPU, "fp32") == 0.03, "the fastest of five, after the first"


def test_neither_the_model_nor_what_is_drawn_next_changes():
    model = Slow(0.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(5)
    torch.manual_seed(3)
    estimate.seconds_of_step(model, 6, 8, CPU, "bf16")
    assert torch.equal(torch.rand(5), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
