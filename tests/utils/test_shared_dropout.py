"""The masks of several processes are the rows of the one that one process draws."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchvision.ops import StochasticDepth

from utils.shared_dropout import drawn_together

MODULES = {
    "dropout": lambda: nn.Dropout(0.4),
    "channels": lambda: nn.Dropout2d(0.4),
    "depth": lambda: StochasticDepth(0.4, "row"),
    "several": lambda: nn.Sequential(nn.Dropout(0.2), nn.Dropout2d(0.2), nn.Dropout(0.2)),
}


def share(model: nn.Module, x: torch.Tensor, rank: int, world: int, monkeypatch) -> torch.Tensor:
    """What a process computes of its rows, after other random numbers were drawn."""
    monkeypatch.setattr(dist, "get_rank", lambda: rank)
    monkeypatch.setattr(dist, "get_world_size", lambda: world)
    torch.manual_seed(1000 + rank)
    mine = x[rank::world]
    with drawn_together(model) as masks:
        masks.start(7, len(mine), len(x))
        return model(mine)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kind", MODULES)
def test_shares_make_up_what_one_process_draws(kind, layout, monkeypatch):
    model, x = MODULES[kind](), torch.randn(7, 4, 5, 5).contiguous(memory_format=layout)
    torch.manual_seed(7)
    whole = model(x)
    assert (whole == 0).any()
    for rank in range(3):
        assert torch.equal(share(model, x, rank, 3, monkeypatch), whole[rank::3]), rank


def test_several_rows_an_image_stay_together(monkeypatch):
    model, x = nn.Dropout(0.5), torch.ones(6, 4)
    torch.manual_seed(7)
    whole = model(x).view(3, 2, 4)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with drawn_together(model) as masks:
        masks.start(7, 1, 3)
        assert torch.equal(model(torch.ones(2, 4)), whole[1])


def test_other_random_numbers_are_what_they_would_be(monkeypatch):
    model, x = nn.Dropout(0.5), torch.randn(4, 3)
    share(model, x, 0, 2, monkeypatch)
    after = torch.rand(3)
    torch.manual_seed(1000)
    assert torch.equal(after, torch.rand(3))


def test_the_module_is_itself_again_and_eval_drops_nothing():
    model = MODULES["several"]()
    before = [set(vars(module)) for module in model.modules()]
    with drawn_together(model) as masks:
        assert masks is not None
        assert type(model[0]) is not nn.Dropout
        x = torch.randn(2, 3, 4, 4)
        assert torch.equal(model.eval()(x), x)
    assert [type(module) for module in model] == [nn.Dropout, nn.Dropout2d, nn.Dropout]
    assert [set(vars(module)) for module in model.modules()] == before


def test_a_model_without_dropout_has_no_masks():
    with drawn_together(nn.Linear(2, 2)) as masks:
        assert masks is None


def test_a_mask_is_the_gradient_too(monkeypatch):
    x = torch.randn(4, 3, requires_grad=True)
    y = share(nn.Dropout(0.5), x, 0, 2, monkeypatch)
    y.sum().backward()
    assert torch.equal(x.grad[::2] == 0, y == 0)
