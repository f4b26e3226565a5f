"""StatAssist: momentum gathered in float is there at the first quantized step."""

import pytest
import torch

import models
import quant
from tests.conftest import build_optimizer, spec
from utils.training import optim


def step(model, optimizer):
    x, y = torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def test_momentum_survives_the_switch():
    model = models.build("resnet20", 10, 32, {})
    optimizer = build_optimizer(model)
    step(model.train(), optimizer)
    before = {id(p): optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()}
    assert all(buffer.abs().sum() > 0 for buffer in before.values())

    prepared = quant.prepare(model, spec(method="statassist"))
    optim.add_learned(optimizer, quant.learned(prepared), 1.0)
    optim.check_covers(optimizer, prepared)
    parameters = list(prepared.parameters())
    assert {id(p) for p in parameters} == set(before)
    assert all(torch.equal(optimizer.state[p]["momentum_buffer"], before[id(p)]) for p in parameters)

    weights = [p.detach().clone() for p in parameters]
    step(prepared.train(), optimizer)
    assert all(not torch.equal(p, w) for p, w in zip(parameters, weights, strict=True)), (
        "the optimizer still trains them"
    )


@pytest.mark.parametrize("mode", [True, False])
def test_a_prepared_model_starts_in_the_mode_of_the_float_model(mode):
    model = models.build("mobilenet_v2", 10, 32, {}).train(mode)
    assert {m.training for m in quant.prepare(model, spec(method="statassist")).modules()} == {mode}
