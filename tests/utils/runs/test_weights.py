"""Weights as people save them are loaded, each kind and each pair of kinds, to the last bit of what was saved."""

import argparse
import collections
import os
import pathlib

import numpy
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.utils.runs.helpers import Names, Net, load, prefixed, trained
from utils.errors import UserError
from utils.runs import checkpoint


class Around(nn.Module):
    """A user's model around another."""

    def __init__(self):
        super().__init__()
        self.backbone = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.backbone(x)


def without_counters(state: Names) -> Names:
    return {name: value for name, value in state.items() if "num_batches" not in name}


def with_thop(state: Names) -> Names:
    layers = {name.rpartition(".")[0] for name in state}
    counts = {f"{layer}.{kind}": torch.zeros(1) for layer in layers for kind in ("total_ops", "total_params")}
    return state | counts | {"total_ops": torch.zeros(1), "total_params": torch.zeros(1)}


def lsq_net(state: Names) -> Names:
    layers = [name.removesuffix(".weight") for name, value in state.items() if value.ndim > 1]
    steps = {f"{layer}.quan_{kind}_fn.s": torch.ones(1) for layer in layers for kind in "wa"}
    return state | steps


def fake_quantized(name: str) -> Names:
    parts = ["scale", "zero_point", "fake_quant_enabled", "observer_enabled"]
    return {
        f"{name}.{part}": torch.ones(1)
        for part in [*parts, *(f"activation_post_process.{m}_val" for m in ("min", "max"))]
    }


def mqbench(state: Names) -> Names:
    """As MQBench and torch.ao train it: batch norm within its convolution, fake quantizers everywhere."""
    norm = {"bn1": "conv1.bn", "bn2": "conv2.bn"}
    found = {".".join(norm.get(part, part) for part in name.split(".")): value for name, value in state.items()}
    layers = [name.removesuffix(".weight") for name, value in state.items() if value.ndim > 1]
    for quantizer in (*(f"{layer}.weight_fake_quant" for layer in layers), "x_post_act_fake_quantizer"):
        found |= fake_quantized(quantizer)
    return found


def fused_pairs(state: Names) -> Names:
    """As torch.ao fuses a float model: a convolution and its batch norm are members 0 and 1 of what was the first."""
    norm = {"bn1": "conv1.1", "bn2": "conv2.1", "conv1": "conv1.0", "conv2": "conv2.0"}
    return {".".join(norm.get(part, part) for part in name.split(".")): value for name, value in state.items()}


def pruned(state: Names) -> Names:
    """As torch.nn.utils.prune leaves a weight: the whole one and its mask."""
    name = "fc.weight"
    if name not in state:
        return state
    kept = {key: value for key, value in state.items() if key != name}
    return kept | {f"{name}_orig": state[name], f"{name}_mask": torch.ones_like(state[name])}


def renamed_head(state: Names) -> Names:
    return {name.replace("fc.", "linear."): value for name, value in state.items()}


def as_convolution(state: Names) -> Names:
    return state | ({"fc.weight": state["fc.weight"][..., None, None]} if "fc.weight" in state else {})


NAMES = {
    "as it is": lambda state: state,
    "DataParallel": prefixed("module."),
    "torch.compile": prefixed("_orig_mod."),
    "compiled in DataParallel": prefixed("module._orig_mod."),
    "Lightning": lambda state: prefixed("model.")(state) | {"loss.weight": torch.ones(7)},
    "any prefix": prefixed("encoder_q."),
    "part in DataParallel": lambda state: {name.replace("layer1.", "layer1.module."): v for name, v in state.items()},
    "without counters": without_counters,
    "with thop's counters": with_thop,
    "an average's counter": lambda state: prefixed("module.")(state) | {"n_averaged": torch.tensor(9)},
    "lsq-net": lsq_net,
    "MQBench": mqbench,
    "fused in pairs": fused_pairs,
    "pruned": pruned,
    "a renamed head": renamed_head,
    "a head as convolution": as_convolution,
    "an auxiliary classifier": lambda state: state | {"aux1.fc.weight": torch.ones(9, 4)},
    "a constant that is saved": lambda state: state | {"offset": torch.ones(3, 1, 1)},
}
OTHER = prefixed("")(Net().state_dict())
ARGS = argparse.Namespace(lr=0.1, out=pathlib.Path("/runs"), seeds=[1, 2], best=numpy.float32(0.5))
FILES = {
    "alone": lambda state: state,
    "ordered": collections.OrderedDict,
    "state_dict": lambda state: {"epoch": 3, "arch": "net", "state_dict": state, "best_acc1": torch.tensor(1.0)},
    "model and args": lambda state: {"model": state, "optimizer": {"state": {0: {"exp_avg": OTHER}}}, "args": ARGS},
    "net": lambda state: {"net": state, "acc": 93.2},
    "deep": lambda state: {"checkpoint": {"model_state_dict": state}},
    "averaged": lambda state: {"model": OTHER, "model_ema": state, "args": ARGS},
    "timm's average": lambda state: {"state_dict": OTHER, "state_dict_ema": state, "metric": numpy.float64(71.2)},
    "an average's shadow": lambda state: {"net": OTHER, "ema": {"shadow": state, "decay": numpy.float64(0.99)}},
    "NumPy's numbers": lambda state: {"state_dict": state, "best": numpy.float64(7.5), "rng": numpy.random.get_state()},
    "NumPy's arrays": lambda state: {name: value.numpy() for name, value in state.items()},
    "merged": lambda state: {**state, "epoch": 3},
}
KINDS = {"float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16, "double": torch.float64}


def assert_same(found: Names, expected: Names) -> None:
    for name, value in found.items():
        if "num_batches" not in name:
            assert torch.equal(value, expected[name].float()), name


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("names", NAMES)
def test_every_kind_of_names_in_every_kind_of_file(names, file, tmp_path):
    state = trained()
    found, loaded = load(FILES[file](NAMES[names](state)), tmp_path)
    assert_same(found, state)
    assert not loaded.new_head
    if file not in ("alone", "ordered", "merged", "NumPy's arrays"):
        assert loaded.done[0].startswith("its ")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", NAMES)
def test_every_kind_of_names_in_every_precision_and_as_safetensors(names, kind, tmp_path):
    state = {name: v.to(KINDS[kind]) if v.is_floating_point() else v for name, v in trained().items()}
    found, loaded = load(NAMES[names](state), tmp_path)
    assert_same(found, state)
    assert any("as float32" in what for what in loaded.done) == (kind != "float")
    save_file({name: v.clone() for name, v in NAMES[names](state).items()}, tmp_path / "theirs.safetensors")
    model = Net()
    checkpoint.load_weights(model, str(tmp_path / "theirs.safetensors"))
    assert_same(model.state_dict(), state)


@pytest.mark.parametrize("second", NAMES)
@pytest.mark.parametrize("first", NAMES)
def test_two_things_may_have_happened_to_the_names(first, second, tmp_path):
    state = trained()
    if {first, second} <= {"MQBench", "fused in pairs"}:
        return  # fused twice
    assert_same(load(NAMES[second](NAMES[first](state)), tmp_path)[0], state)


def test_a_model_around_another_takes_that_ones_weights(tmp_path):
    state = trained()
    found, loaded = load(prefixed("module.")(state), tmp_path, Around())
    assert_same({name.removeprefix("backbone."): value for name, value in found.items()}, state)
    assert loaded.done == ("without module in names", "as backbone.*")


def test_pruned_weights_are_those_that_computed(tmp_path):
    state = trained()
    mask = (torch.arange(20) % 2).reshape(5, 4).float()
    found, _ = load(pruned(state) | {"fc.weight_mask": mask}, tmp_path)
    assert torch.equal(found["fc.weight"], state["fc.weight"] * mask)


def test_what_was_done_is_said(tmp_path):
    contents = {"state_dict": lsq_net(without_counters(prefixed("module.")(trained()))), "epoch": 1}
    _, loaded = load(contents, tmp_path)
    assert loaded.done == (
        "its state_dict",
        "without module in names",
        "tensors of quantizers left out: 12",
        "counters as built: 5",
    )
    assert load(trained(), tmp_path)[1].done == (), "nothing to say of a plain one"


def test_batch_norms_that_are_registered_in_another_order_keep_their_own(tmp_path):
    """The block registers conv1, conv2, bn1, bn2: the order of names alone would mistake one for another."""
    state = trained()
    found, _ = load(mqbench(state), tmp_path)
    assert torch.equal(found["layer1.0.bn2.running_var"], state["layer1.0.bn2.running_var"])
    assert not torch.equal(state["layer1.0.bn1.running_var"], state["layer1.0.bn2.running_var"])


def test_one_of_two_models_is_not_guessed(tmp_path):
    one, two = trained(), trained()
    message = r"theirs.pth: holds several models: student, teacher; save the state dict of the one that you mean alone$"
    with pytest.raises(UserError, match=message):
        load({"student": one, "teacher": two}, tmp_path)
    with pytest.raises(UserError, match=r"several models in it \(student\.\*, teacher\.\*\)"):
        load(prefixed("student.")(one) | prefixed("teacher.")(two), tmp_path)
    assert_same(load({"one": one, "same": dict(one)}, tmp_path)[0], one)


def test_other_classes_leave_the_head_random_wherever_it_is_registered(tmp_path):
    class HeadFirst(nn.Module):
        def __init__(self, classes: int):
            super().__init__()
            self.fc, self.conv = nn.Linear(4, classes), nn.Conv2d(3, 4, 3)

    state = HeadFirst(7).state_dict()
    found, loaded = load({"state_dict": prefixed("module.")(state)}, tmp_path, HeadFirst(5), allow_new_head=True)
    assert loaded.new_head == ("fc",)
    assert torch.equal(found["conv.weight"], state["conv.weight"])


def test_a_backbone_without_classifier_leaves_it_random(tmp_path):
    state = {name: value for name, value in trained().items() if not name.startswith("fc.")}
    with pytest.raises(UserError, match=r"no classifier in it: .*; with run.epochs > 0 fc starts from random weights"):
        load(state, tmp_path)
    assert load(state, tmp_path, allow_new_head=True)[1].new_head == ("fc",)


class Runs:
    def __reduce__(self):
        return os.system, ("touch code_was_run",)


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_would_run_code_is_refused_in_every_kind_of_file(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if file == "NumPy's arrays":
        contents: dict = FILES[file](trained()) | {"conv1.weight": Runs()}
    else:
        contents = FILES[file](trained() | {"conv1.weight": Runs()})
    with pytest.raises(
        UserError, match=r"theirs.pth: not a readable checkpoint \(loading it would run code of \w+.system"
    ):
        load(contents, tmp_path)
    assert not pathlib.Path("code_was_run").exists()
