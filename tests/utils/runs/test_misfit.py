"""What does not fit is named by its cause, in one line."""

import pytest
import torch
from torch import nn

from tests.utils.runs.helpers import Names, Net, load, prefixed, trained
from utils.errors import UserError


class BiasNet(Net):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)


def folded(state: Names) -> Names:
    return {name: value for name, value in state.items() if ".bn" not in name and not name.startswith("bn")}


def integers(state: Names) -> Names:
    state = dict(state) | {"fc.weight": state["fc.weight"].to(torch.int8)}
    return state | {"fc.zero_point": torch.tensor(0), "conv1.zero_point": torch.tensor(0)}


def weight_norm(state: Names) -> Names:
    kept = {name: value for name, value in state.items() if name != "fc.weight"}
    return kept | {"fc.weight_g": torch.ones(5, 1), "fc.weight_v": state["fc.weight"]}


CAUSES = {
    "classes": (
        lambda: trained(Net(classes=7)),
        r"another number of classes: fc.weight is \(7, 4\) there, \(5, 4\)",
    ),
    "width": (lambda: trained(Net(width=6)), r"another width of its layers: conv1.weight is \(6, 3, 3, 3\) there"),
    "kernel": (lambda: trained(Net(kernel=5)), r"kernels of 5 x 5 there, 3 x 3 here: conv1.weight is"),
    "deeper": (
        lambda: trained(Net(blocks=3)),
        r"another depth: 4 layers there that the other has not: it also has layer1",
    ),
    "flatter": (lambda: trained(Net(blocks=1)), r"another depth: 4 layers here that the other has not: layer1.1.conv1"),
    "channels": (
        lambda: Net(channels=1).state_dict(),
        r"images of 1 channels there, 3 here: conv1.weight is \(4, 1, 3, 3\)",
    ),
    "deeper, of other classes": (lambda: trained(Net(blocks=3, classes=7)), "another depth: 4 layers there"),
    "bias": (
        lambda: trained(BiasNet()),
        r"layers with more tensors, such as a bias: it also has conv1.bias \(1 name does",
    ),
    "folded": (lambda: folded(trained()), "batch norms are missing, perhaps folded into their convolutions"),
    "statistics": (
        lambda: {name: value for name, value in trained().items() if "running" not in name},
        r"the statistics of batch norm are missing: .*; save state_dict\(\), not parameters\(\)",
    ),
    "integers": (lambda: integers(trained()), "integers of a model that another library quantized"),
    "weight_norm": (lambda: weight_norm(trained()), "weights in parts .*make them plain before saving"),
    "LoRA": (lambda: trained() | {"fc.lora_A": torch.ones(1)}, "adapters .LoRA.: .*; merge them before saving"),
    "architecture": (
        lambda: {"state_dict": nn.Sequential(nn.Linear(3, 4)).state_dict(), "arch": "mlp"},
        r"another architecture \(0 of 32 tensors are alike\): .* not fit\); the file says arch=mlp$",
    ),
    "architecture and classes": (
        lambda: (
            trained(Net(classes=7))
            | {"layer1.0.conv3.weight": torch.ones(4, 4, 1, 1), "layer1.0.conv2.weight": torch.ones(4, 6, 3, 3)}
        ),
        r"another architecture \(29 of 32 tensors are alike\): it also has layer1.0.conv3.weight",
    ),
    "nothing": (lambda: {"epoch": 3, "lr": 0.1}, "no tensors by name in it"),
    "optimizer": (lambda: {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}, "no tensors by name in it"),
}


@pytest.mark.parametrize("kind", CAUSES)
def test_the_cause_is_named(kind, tmp_path):
    make, message = CAUSES[kind]
    with pytest.raises(UserError, match=rf"theirs.pth: not weights of this model: {message}") as refused:
        load(make(), tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", sorted(set(CAUSES) - {"architecture", "nothing", "optimizer", "channels"}))
def test_the_cause_is_the_same_within_other_things(kind, tmp_path):
    make, message = CAUSES[kind]
    with pytest.raises(UserError, match=message):
        load({"state_dict": prefixed("module.")(make()), "epoch": 1}, tmp_path)
