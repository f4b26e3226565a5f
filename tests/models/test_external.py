"""Other libraries' models and one's own: built by name, with options, refused in one line."""

import sys

import pytest
import torch

import models
from utils.errors import UserError

MODULE = """
import torch
from torch import nn

def small(num_classes, width=4):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))

def ten():
    return small(10)

class Squeezes(nn.Sequential):
    def forward(self, x):
        return self[1](self[0](x).mean((2, 3), keepdim=True).squeeze())

def squeezes(num_classes):
    return Squeezes(nn.Conv2d(3, 4, 3), nn.Linear(4, num_classes))

class Mixes(nn.Sequential):
    def forward(self, x):
        return super().forward(x - x.mean(0))

def mixes(num_classes):
    return Mixes(nn.Flatten(), nn.Linear(3 * 64 * 64, num_classes))

def broken(num_classes):
    raise ValueError("no such thing")

class Nets:
    @classmethod
    def from_name(cls, name, **options):
        return small(**options)

    @classmethod
    def of_width(cls, width=8, **options):
        return small(**options)
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(tmp_path))])
    sys.modules.pop("my_nets", None)


def outputs(model) -> tuple[int, ...]:
    return tuple(model.eval()(torch.zeros(2, 3, 64, 64)).shape)


def test_ones_own_function_beside_the_setting():
    model = models.build("my_nets:small", 7, 64, {"width": 6})
    assert outputs(model) == (2, 7)
    assert model[0].out_channels == 6
    assert outputs(models.build("my_nets:ten", 10, 64, {})) == (2, 10)
    assert outputs(models.build("my_nets:small", None, 64, {})) == (2, 10), "a trial of what needs a number"
    assert outputs(models.build("my_nets:ten", None, 64, {})) == (2, 10)
    assert all(module.training for module in model.train().modules())


def test_a_synchronized_batch_norm_is_a_plain_one():
    model = models.build("tests.nets_of_processes:synced", 5, 32, {})
    assert [type(m) for m in model.modules() if "Norm" in type(m).__name__] == [
        torch.nn.BatchNorm2d,
        torch.nn.BatchNorm1d,
    ]


def test_torchvisions_with_its_options():
    model = models.build("torchvision:mobilenet_v2", 5, 64, {"width_mult": 0.5})
    assert outputs(model) == (2, 5)
    assert sum(p.numel() for p in model.parameters()) < 1_000_000


def test_a_method_of_a_class():
    assert outputs(models.build("my_nets:Nets.of_width", 5, 64, {"width": 4})) == (2, 5)


def test_timms():
    pytest.importorskip("timm")
    assert outputs(models.build("timm:mobilenetv2_050", 3, 64, {})) == (2, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("my_nets:smal", {}, r"^model.name: my_nets has no function 'smal', did you mean small\?$"),
        ("my_net:small", {}, "^model.name: cannot import my_net: No module named 'my_net'$"),
        (
            "my_nets:ten",
            {},
            "^model my_nets:ten: returns 10 classes but the data has 7 classes; let ten take num_classes",
        ),
        ("my_nets:squeezes", {}, r"^model my_nets:squeezes: a batch of 1 gives \(7,\) or other logits than the same"),
        (
            "my_nets:Nets.from_name",
            {},
            r"^model.name: my_nets:Nets.from_name needs an argument 'name', and model.name is a",
        ),
        ("my_nets:mixes", {}, r"^model my_nets:mixes: a batch of 1 gives \(1, 7\) or other logits than the same"),
        ("my_nets:small", {"depth": 2}, r"cannot be called with num_classes=7, depth=2: .*unexpected keyword"),
        ("my_nets:broken", {}, "cannot be called with num_classes=7: no such thing$"),
        ("torchvision:resnet19", {}, r"^model.name: torchvision: unknown 'resnet19'; .*\(nearest: resnet1\d+\)$"),
        ("torchvision:alexnet", {}, "^model torchvision:alexnet: does not accept images of 16 x 16: "),
    ],
)
def test_refusals_are_one_line(name, options, message):
    with pytest.raises(UserError, match=message) as refused:
        models.build(name, 7, 16 if "alexnet" in name else 64, options)
    assert "\n" not in str(refused.value)


def test_a_model_of_timm_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"^model\.name: timm is not installed; pip install timm$"):
        models.check("timm:resnet18", {}, 32)


@pytest.mark.parametrize("name", ["os:system", "models.resnet:resnet20", "models.external:factory"])
def test_a_checkpoint_calls_a_factory_that_is_not_of_the_table_if_it_is_named(name):
    with pytest.raises(UserError, match=f"^the checkpoint would call {name} as its model's factory; set trust=true"):
        models.check_trusted(name, trust=False)
    models.check_trusted(name, trust=name)
    for safe in ("resnet20", "torchvision:resnet18", "timm:resnet18", "my_nets:small"):
        models.check_trusted(safe, trust=False)


def test_a_model_of_timm_reads_no_file_that_a_stranger_chose():
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"^model\.checkpoint_path: files are not timm's to read here; model\.weights"):
        models.build("timm:resnet18", 7, 64, {"checkpoint_path": "evil.pth"})
