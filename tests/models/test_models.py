"""Every registered model has the parameters and multiply-accumulates of tests/golden.json, and trains a step."""

import json
from pathlib import Path

import pytest
import torch
import torchvision

import models
from utils import checkpoint
from utils.complexity import complexity
from utils.errors import UserError

GOLDEN = json.loads((Path(__file__).parent.parent / "golden.json").read_text())
FORMS = [(name, form) for name, row in models.MODELS.items() for form in row.forms]


def small(name: str) -> int:
    return models.MODELS[name].image_size or 32


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_golden_parameters_and_macs(name, form):
    size = models.MODELS[name].image_size or {"cifar": 32, "imagenet": 224}[form]
    model = models.build(name, 10, size, {"form": form})
    assert list(complexity(model, size)) == GOLDEN[f"{name} {form} {size}"]
    assert all(module.training for module in model.modules()), "left as it was"


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_macs_agree_with_thop(name, form):
    """thop's convolutions and linear layers; what it adds for norms, activations and pools is left out."""
    thop = pytest.importorskip("thop", exc_type=ImportError)
    size = small(name)
    model = models.build(name, 10, size, {"form": form}).eval()
    others = (torch.nn.BatchNorm2d, torch.nn.ReLU, torch.nn.ReLU6, torch.nn.AdaptiveAvgPool2d)
    nothing = dict.fromkeys(others, lambda module, inputs, output: None)
    macs, params = thop.profile(model, (torch.zeros(1, 3, size, size),), custom_ops=nothing, verbose=False)
    assert [int(params), int(macs)] == list(complexity(models.build(name, 10, size, {"form": form}), size))


def test_golden_holds_nothing_else():
    assert len(GOLDEN) == len(FORMS)


def test_parameters_at_a_thousand_classes_are_the_published_ones():
    assert complexity(models.build("resnet18", 1000, 224, {}), 224)[0] == 11_689_512
    assert complexity(models.build("mobilenet_v2", 1000, 224, {}), 224) == (3_504_872, 300_774_272)


def test_imagenet_strides_at_32_are_the_cheap_mobilenet():
    assert complexity(models.build("mobilenet_v2", 10, 32, {"form": "imagenet"}), 32)[1] == 6_124_928


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_a_step_reaches_every_parameter(name, form):
    size = small(name)
    model = models.build(name, 10, size, {"form": form})
    torch.nn.functional.cross_entropy(model(torch.randn(4, 3, size, size)), torch.arange(4)).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision_weights_load_into_the_imagenet_form(name, tmp_path):
    theirs = getattr(torchvision.models, name)(num_classes=1000)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    ours = models.build(name, 1000, 224, {})
    checkpoint.load_weights(ours, str(tmp_path / "weights.pth"))
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_the_nets_of_the_reference_experiments_have_its_parameters():
    svhn, projected = models.build("svhn_cnn", 10, 40, {}), models.build("mobilenet_v2_projected", 10, 32, {})
    assert complexity(svhn, 40) == (2_083_402, 41_730_304 + 5_120)
    assert complexity(projected, 32)[0] == 2_296_922
    assert sum(isinstance(m, torch.nn.Conv2d) for m in projected.modules()) == 57
    maps = []
    for layer in svhn.features:
        layer.register_forward_hook(lambda layer, _, out: maps.append(out.shape[-1]))
    svhn(torch.zeros(2, 3, 40, 40))
    assert list(dict.fromkeys(maps)) == [36, 18, 9, 7, 5, 1]


def test_form_follows_the_image_size():
    assert models.build("resnet18", 10, 32, {}).conv1.stride == (1, 1)
    assert models.build("resnet18", 10, 224, {}).conv1.stride == (2, 2)


def test_activation_of_mobilenet():
    relu = models.build("mobilenet_v2", 10, 32, {"activation": "relu"})
    assert not any(isinstance(m, torch.nn.ReLU6) for m in relu.modules())
    assert any(type(m) is torch.nn.ReLU for m in relu.modules())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnt20", {}, r"model.name: unknown 'resnt20'; choose from resnet20, .*\(nearest: resnet20\)"),
        ("resnet18", {"froms": 1}, r"model.froms: resnet18 has no such option, did you mean form\?"),
        ("resnet20", {"form": "imagenet"}, r"model.form of resnet20: unknown 'imagenet'; choose from auto, cifar"),
        (
            "mobilenet_v2",
            {"activation": "gelu"},
            r"model.activation of mobilenet_v2: unknown 'gelu'; choose from relu6",
        ),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(UserError, match=message):
        models.build(name, 10, 32, options)
