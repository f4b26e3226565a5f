"""The steps that bring names of others under a model's. Whole files: tests/utils/runs/test_weights.py."""

import copy

import pytest
import torch
from torch import nn

from tests.utils.runs.helpers import Net, prefixed, trained
from utils.runs.weight_names import best_prefixes, norms_behind, preferred, renamed_head, under_names_of


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model", "model_ema"], "model_ema"),
        (["state_dict", "state_dict_ema"], "state_dict_ema"),
        (["net", "ema.shadow"], "ema.shadow"),
        (["best", "state_dict", "model"], "state_dict"),
        (["a.model", "b"], "a.model"),
        (["cinema"], "cinema"),
        (["cinema", "schema"], None),
        (["ema", "ema2.ema"], None),
        (["student", "teacher"], None),
    ],
)
def test_an_average_is_preferred_then_the_usual_name(names, chosen):
    assert preferred(names, ("state_dict", "model", "net")) == chosen


def test_a_prefix_is_that_of_most_names_if_half_of_them_occur():
    assert best_prefixes(["m.a", "m.b", "x.a"], {"a", "b"}) == ["m."]
    assert best_prefixes(["m.a", "n.a"], {"a", "b"}) == ["m.", "n."]
    assert best_prefixes(["m.a"], {"a", "b", "c"}) == []
    assert best_prefixes(["a", "b"], {"a", "b"}) == [""]


def test_the_norm_behind_a_layer_is_found_by_what_flows_and_the_model_stays_as_it_is():
    class Computes(Net):
        def forward(self, x):
            return super().forward(x * torch.tensor(0.5))

    model = Computes()
    before = set(vars(model)), set(dict(model.named_buffers()))
    found = norms_behind(model)
    assert (found["conv1"], found["layer1.1.conv2"]) == ("bn1", "layer1.1.bn2")
    assert (set(vars(model)), set(dict(model.named_buffers()))) == before


def test_a_model_that_cannot_be_traced_has_no_norms_to_name():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    assert norms_behind(Branches()) == {}


def test_names_that_are_the_models_stay():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.observer = nn.Linear(2, 2), nn.Linear(2, 2)

    model = Wrapped()
    tensors, done = under_names_of(model, model.state_dict())
    assert set(tensors) == set(model.state_dict())
    assert done == []
    around, _ = under_names_of(model, prefixed("module.")(model.state_dict()))
    assert set(around) == set(model.state_dict())


def test_a_layer_of_another_shape_is_not_taken_for_the_head():
    state = trained()
    other = {name.replace("fc.", "head."): value for name, value in state.items()}
    assert "fc.weight" in renamed_head(dict(other), Net())[0]
    wider = other | {"head.weight": torch.ones(5, 6)}
    assert "fc.weight" not in renamed_head(dict(wider), Net())[0]


def test_the_files_tensors_are_not_written_on():
    state = {name: value.half() for name, value in trained().items()}
    before = copy.deepcopy(state)
    under_names_of(Net(), state)
    assert all(torch.equal(value, before[name]) for name, value in state.items())


@pytest.mark.parametrize("channels", [1, 6])
def test_filters_of_three_channels_see_the_same_in_copies_of_one(channels):
    """A grey image in each of the channels gives what it gave in three."""
    rgb, other = (nn.Sequential(nn.Conv2d(count, 4, 3), nn.BatchNorm2d(4)).eval() for count in (3, channels))
    tensors, done = under_names_of(other, rgb.state_dict())
    other.load_state_dict(tensors)
    grey = torch.rand(2, 1, 8, 8)
    assert torch.allclose(other(grey.expand(-1, channels, -1, -1)), rgb(grey.expand(-1, 3, -1, -1)), atol=1e-5)
    assert done == [f"the filters of 0.weight for {channels} channel(s) instead of 3"]
