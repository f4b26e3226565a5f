"""Checkpoints: what is refused in one line, and which weights are loaded."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from utils.errors import UserError
from utils.runs import checkpoint, tensor_file

DATASET = SimpleNamespace(classes=["a", "b"], mean=(0.5,) * 3, std=(0.25,) * 3)
SETTINGS = {"model": {"name": "mine"}}


def net(classes: int = 2) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, classes))


@pytest.fixture
def packed():
    return checkpoint.pack(net(), SETTINGS, DATASET, False, 1)


def saved(tmp_path, state: dict) -> str:
    tensor_file.save(tmp_path / "a.pt", state)
    return str(tmp_path / "a.pt")


def test_what_is_packed_is_loaded(tmp_path, packed):
    state = checkpoint.load(saved(tmp_path, packed))
    assert state["settings"] == SETTINGS
    model = net()
    checkpoint.restore(model, state, "a.pt")
    assert all(torch.equal(value, packed["model"][name]) for name, value in model.state_dict().items())


def test_class_names_that_are_not_printable_are_read_as_they_would_be_saved_now(tmp_path, packed):
    state = checkpoint.load(saved(tmp_path, packed | {"classes": ["caf\udce9", "a\x1b[2J", r"b\xe9"]}))
    assert state["classes"] == [r"caf\xe9", r"a\x1b[2J", r"b\xe9"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "written by an older version: train again"),
        ({"format": 99}, r"format \d+ \(it says 99\)$"),
        ({"format": None}, r"it says None\)$"),
        ({"epoch": -1}, "epoch"),
        ({"classes": []}, "classes"),
        ({"std": [1.0, 1.0, 0.0]}, "std"),
        ({"model": []}, "model is a list"),
        ({"training": 3}, "training is a int"),
        ({"settings": []}, "settings is a list"),
        ({"settings": {"note": torch.zeros(1)}}, "not plain values"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_in_one_line(changes, message, tmp_path, packed):
    path = saved(tmp_path, packed | changes)
    with pytest.raises(UserError, match=message) as refused:
        checkpoint.load(path)
    assert str(refused.value).startswith(path)
    assert "\n" not in str(refused.value)


def test_weights_of_others_are_no_checkpoint_but_may_become_one(tmp_path):
    with pytest.raises(UserError, match=r"train.py but weights alone: give them to train.py as model.weights "):
        checkpoint.load(saved(tmp_path, {"state_dict": net().state_dict()}))


def test_a_state_that_does_not_fit_its_model_is_refused(packed):
    with pytest.raises(UserError, match="does not fit the model it names"):
        checkpoint.restore(net(3), packed, "a.pt")


def test_a_new_head_stays_random_where_that_is_allowed(tmp_path, packed):
    path, model = saved(tmp_path, packed), net(5)
    before = model[1].weight.clone()
    with pytest.raises(UserError, match=r"1.weight is \(2, 4\) there, \(5, 4\) here"):
        checkpoint.load_weights(model, path)
    assert checkpoint.load_weights(model, path, allow_new_head=True).new_head == ("1",)
    assert torch.equal(model[0].weight, packed["model"]["0.weight"])
    assert torch.equal(model[1].weight, before)
    assert not checkpoint.load_weights(net(), path, allow_new_head=True).new_head, "the same classes: none is left out"


def test_only_the_last_layer_may_differ_and_only_in_its_outputs(tmp_path):
    other = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2))
    path = saved(tmp_path, other.state_dict())
    with pytest.raises(UserError, match="not weights of this model"):
        checkpoint.load_weights(net(), path, allow_new_head=True)


def test_weights_of_another_model_are_refused_by_name(tmp_path, packed):
    path = saved(tmp_path, packed)
    checkpoint.check_weights(net(), path, "mine")
    with pytest.raises(UserError, match="a checkpoint of mine, not of other"):
        checkpoint.check_weights(net(), path, "other")


def test_names_must_fit_but_those_of_quantizers_may_be_there(tmp_path, packed):
    more = packed["model"] | {"2.scale": torch.ones(())}
    with pytest.raises(UserError, match=r"it also has 2.scale \(1 name does not fit\)"):
        checkpoint.check_weights(net(), saved(tmp_path, packed | {"model": more}))
    checkpoint.check_weights(net(), saved(tmp_path, packed | {"model": more, "prepared": True}))
    fewer = {name: value for name, value in packed["model"].items() if name != "0.bias"}
    with pytest.raises(UserError, match=r"0.bias is missing \(1 name does not fit\)"):
        checkpoint.check_weights(net(), saved(tmp_path, fewer))


@pytest.mark.parametrize(("name", "number"), [("1.running_var", -1e-9), ("1.running_var", float("nan"))])
@pytest.mark.parametrize("way", ["restore", "load_weights", "check_weights"])
def test_a_variance_that_is_none_is_refused(name, number, way, tmp_path):
    refuses(way, nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), name, number, tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("way", ["restore", "load_weights", "check_weights"])
def test_weights_that_are_not_finite_are_refused(number, way, tmp_path):
    refuses(way, net(), "0.weight", number, tmp_path)


def refuses(way: str, model: nn.Module, name: str, number: float, tmp_path) -> None:
    """A state with this number in it is not taken, in one line that names the tensor."""
    state = checkpoint.pack(model, SETTINGS, DATASET, False, 1)
    state["model"] = {key: value.clone() for key, value in state["model"].items()}
    state["model"][name].view(-1)[0] = number
    path = saved(tmp_path, state)
    given = (model, path) if way != "restore" else (model, checkpoint.load(path), path)
    with pytest.raises(UserError, match=rf"^{path}: {name} is (not finite|negative)"):
        getattr(checkpoint, way)(*given)
