"""Optimizers learn, decay what they should, and hold every parameter exactly once."""

import pytest
import torch
from torch import nn

from experiment.settings import OPTIM_SECTIONS
from tests.conftest import build_optimizer
from utils.config import validate_section
from utils.errors import UserError
from utils.training import optim


@pytest.mark.parametrize("name", list(optim.OPTIMIZERS))
def test_optimizers_learn_and_decay_weights_alone(name):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = build_optimizer(model, name=name, lr=0.01, weight_decay=0.1)
    optim.check_covers(optimizer, model)
    assert {p.ndim for p in optimizer.param_groups[0]["params"]} == {2}
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert optimizer.param_groups[1]["weight_decay"] == 0.0
    x, y = torch.randn(64, 4), torch.randint(0, 2, (64,))
    y = (x[:, 0] > 0).long()
    losses = []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_a_parameter_replaced_after_the_optimizer_was_built_is_noticed():
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, weight_decay=0.0)
    model.bias = nn.Parameter(torch.zeros(2))
    with pytest.raises(RuntimeError, match=r"not trained: \['bias'\]"):
        optim.check_covers(optimizer, model)


def test_what_quantizers_learn_gets_groups_of_its_own():
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, weight_decay=0.5)
    model.step = nn.Parameter(torch.ones(()))
    optim.add_learned(optimizer, [([model.step], 4e-4)], 0.1)
    optim.check_covers(optimizer, model)
    optim.set_rate(optimizer, 0.2)
    assert optimizer.param_groups[2]["weight_decay"] == 4e-4
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.2, 0.02])


def test_the_reference_decays_by_shape():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.Linear(8, 2))
    optimizer = build_optimizer(model, weight_decay=1e-2, decay="statassist")
    optim.check_covers(optimizer, model)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay[id(model[0].weight)] == 0
    assert decay[id(model[1].weight)] == 1e-2
    assert all(decay[id(p)] == pytest.approx(1e-4) for p in [*model[2].parameters(), *model[3].parameters()])


@pytest.mark.parametrize("name", OPTIM_SECTIONS.kinds)
def test_keys_that_an_optimizer_does_not_read_are_refused(name):
    own = OPTIM_SECTIONS.kinds[name].model_fields
    assert all(field.description for field in own.values())
    for key in {key for kind in OPTIM_SECTIONS.kinds.values() for key in kind.model_fields} - set(own):
        readers = ", ".join(OPTIM_SECTIONS.readers(key))
        with pytest.raises(UserError, match=rf"^optim.{key} is read by {readers}; optim.name is {name}$"):
            validate_section("optim", OPTIM_SECTIONS, {"name": name, key: None})


def test_gradboosts_keys_belong_to_the_boosted_optimizers():
    assert OPTIM_SECTIONS.readers("clip_by") == list(optim.BOOSTED)
    assert OPTIM_SECTIONS.readers("momentum") == ["sgd", "rmsprop", "qsgd", "qrmsprop"]


@pytest.mark.parametrize("schedule", ["cosine", "step", "linear", "constant"])
def test_milestones_are_read_by_schedule_step(schedule):
    def resolved(**keys) -> optim.OptimSettings:
        return optim.resolve(optim.OptimSettings(schedule=schedule, **keys))

    if schedule == "step":
        assert resolved().milestones == [0.5, 0.75]
        assert resolved(milestones=[0.1]).milestones == [0.1]
        return
    assert resolved().milestones is None
    with pytest.raises(UserError, match=rf"^optim.milestones is read by schedule step; optim.schedule is {schedule}$"):
        resolved(milestones=[0.1])
