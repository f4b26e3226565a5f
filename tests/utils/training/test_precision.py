"""run.precision=auto takes the faster precision, once a run."""

import copy

import pytest
import torch

from tests.nets import plain
from utils.distributed import Processes
from utils.training import precision

ALONE = Processes(0, 1, torch.device("cpu"))


@pytest.mark.parametrize(("seconds", "best", "steps"), [((1.0, 0.5), "bf16", 8), ((1.0, 1.5), "fp32", 8)])
def test_the_faster_one_by_the_median_of_steps_by_turns(seconds, best, steps, monkeypatch, capsys):
    asked = []

    def timed(model, images, name):
        asked.append(name)
        return dict(zip(("fp32", "bf16"), seconds, strict=True))[name]

    monkeypatch.setattr(precision, "timed_step", timed)
    assert precision.faster(plain(10), 32, 16, ALONE.device) == best
    assert asked == ["fp32", "bf16"] * (steps // 2)
    assert f"precision {best}" in capsys.readouterr().out


def test_bf16_without_instructions_for_it_is_tried_once(monkeypatch):
    asked = []
    monkeypatch.setattr(
        precision, "timed_step", lambda m, x, name: asked.append(name) or (9.0 if name == "bf16" else 1.0)
    )
    assert precision.faster(plain(10), 32, 16, ALONE.device) == "fp32"
    assert asked == ["fp32", "bf16"]


def test_the_model_is_left_as_it_was():
    model = plain(10)
    before = copy.deepcopy(model.state_dict())
    assert precision.faster(model, 8, 16, ALONE.device) in ("fp32", "bf16")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_a_run_that_goes_on_goes_on_alike(monkeypatch):
    monkeypatch.setattr(precision, "faster", lambda *_: "bf16")
    rest = (plain(10), 32, 16, ALONE)
    assert precision.choose("auto", None, *rest) == "bf16"
    assert precision.choose("auto", "fp32", *rest) == "fp32"
    assert precision.choose("fp32", "bf16", *rest) == "fp32"
