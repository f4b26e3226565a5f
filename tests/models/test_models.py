"""Every registered model has the parameters and multiply-accumulates of tests/golden.json, and trains a step.

Nets are built on the meta device, without memory and arithmetic, where no values matter: vgg19 has 0.6 GB of them.
"""

import inspect
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import models
import quant
from models.mobilenet_v3 import SqueezeExcite
from tests.models.helpers import on_meta, shapes
from utils.complexity import complexity
from utils.errors import UserError
from utils.runs import checkpoint

GOLDEN = json.loads((Path(__file__).parent.parent / "golden.json").read_text())
FORMS = [(name, form) for name, row in models.MODELS.items() for form in row.forms]
CASES = [
    (name, form, dict(zip(row.options, choices, strict=True)))
    for name, row in models.MODELS.items()
    for form in row.forms
    for choices in itertools.product(*row.options.values())
]
SIZE, CLASSES = {"cifar": 32, "imagenet": 224}, {"cifar": 10, "imagenet": 1000}
THEIRS = [name for name, row in models.MODELS.items() if "imagenet" in row.forms and not name.endswith("_relu")]
HEAVY = ("alexnet", "vgg", "resnext")

# StatAssist-GradBoost's nets, counted layer by layer from its definitions, not with this code:
# imagenet form, 1000 classes; cifar form, 10 classes
REFERENCE_PARAMETERS = {
    "resnet18": (11_689_512, 11_173_962),
    "resnet50": (25_557_032, 23_520_842),
    "resnext101_32x8d": (88_791_336, 86_755_146),
    "mobilenet_v2": (3_504_872, 2_236_682),
    "mobilenet_v3_large": (5_476_416, 4_208_226),
    "mobilenet_v3_large_relu": (5_476_416, 4_208_226),
    "mobilenet_v3_small": (2_700_544, 1_685_794),
    "mobilenet_v3_small_relu": (2_700_544, 1_685_794),
    "shufflenet_v2_x0_5": (1_366_792, None),
    "shufflenet_v2_x1_0": (2_278_604, None),
    "shufflenet_v2_x1_5": (3_503_624, None),
    "shufflenet_v2_x2_0": (7_393_996, None),
    "alexnet": (61_100_840, 57_023_306),
    "vgg11": (132_860_584, 128_804_554),
    "vgg13": (133_044_904, 128_988_874),
    "vgg16": (138_353_320, 134_297_290),
    "vgg19": (143_661_736, 139_605_706),
    "vgg11_bn": (132_866_088, 128_804_554 + 5_504),
    "vgg13_bn": (133_050_792, 128_988_874 + 5_888),
    "vgg16_bn": (138_361_768, 134_297_290 + 8_448),
    "vgg19_bn": (143_672_744, 139_605_706 + 11_008),
}
# millions, at 32 x 32 and at 224 x 224, imagenet form: two for each MAC of a convolution and one for its bias, nothing
# for linear layers, nor for squeeze and excitation, which has linear layers there
REFERENCE_FLOPS = {
    "resnet18": (74.023, 3627.1),
    "shufflenet_v2_x0_5": (1.610, 78.9),
    "shufflenet_v2_x1_0": (5.873, 287.8),
    "mobilenet_v2": (12.224, 599.0),
    "mobilenet_v3_large": (13.827, 436.6),
    "mobilenet_v3_small": (5.583, 118.5),
}
# millions of MACs of convolutions at 32 x 32, cifar form
REFERENCE_CIFAR_MACS = {
    "resnet18": 555.4,
    "resnet50": 1297.8,
    "mobilenet_v2": 251.8,
    "mobilenet_v3_large": 17.2,
    "mobilenet_v3_small": 4.8,
    "alexnet": 797.4,
    "vgg16": 313.2,
}


def small(name: str, form: str) -> int:
    row = models.MODELS[name]
    return row.image_size or max(32, row.min_image_size.get(form, 1))


def reference(name: str) -> dict[str, str]:
    return {"variant": "reference"} if "variant" in models.MODELS[name].options else {}


def key(name: str, form: str, options: dict) -> str:
    own = [f"{key}={value}" for key, value in options.items() if value != models.MODELS[name].options[key][0]]
    return " ".join([name, form, str(models.MODELS[name].image_size or SIZE[form]), *own])


@pytest.mark.parametrize(("name", "form", "options"), CASES)
def test_golden_parameters_and_macs(name, form, options):
    """Of ten classes in the cifar form, of a thousand in the imagenet form."""
    size = models.MODELS[name].image_size or SIZE[form]
    model = on_meta(name, form, options, size, CLASSES[form])
    assert list(complexity(model, size)) == GOLDEN.get(key(name, form, options)), "tests/golden.json"
    assert all(module.training for module in model.modules()), "left as it was"


def test_golden_holds_nothing_else():
    assert set(GOLDEN) == {key(*case) for case in CASES}


@pytest.mark.parametrize("name", REFERENCE_PARAMETERS)
def test_parameters_are_those_of_the_reference(name):
    for form, wanted in zip(("imagenet", "cifar"), REFERENCE_PARAMETERS[name], strict=True):
        assert wanted in (None, GOLDEN[key(name, form, reference(name))][0])


def convolutions(model: nn.Module, size: int) -> int:
    """MACs of the convolutions, without those of squeeze and excitation."""
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    squeeze = sum(p.numel() for m in model.modules() if isinstance(m, SqueezeExcite) for p in m.parameters())
    return complexity(model, size)[1] - linear - squeeze


@pytest.mark.parametrize("name", REFERENCE_FLOPS)
def test_flops_are_those_of_the_reference(name):
    model = on_meta(name, "imagenet", reference(name), 224, 1000)
    biases = sum(m.bias.numel() for m in model.modules() if isinstance(m, nn.Conv2d) and m.bias is not None)
    found = [(2 * convolutions(model, size) + biases) / 1e6 for size in (32, 224)]
    assert (round(found[0], 3), round(found[1], 1)) == REFERENCE_FLOPS[name]


@pytest.mark.parametrize("name", REFERENCE_CIFAR_MACS)
def test_macs_at_32_are_those_of_the_reference(name):
    model = on_meta(name, "cifar", reference(name), 32, 10)
    assert round(convolutions(model, 32) / 1e6, 1) == REFERENCE_CIFAR_MACS[name]


@pytest.mark.parametrize(("name", "form"), [case for case in FORMS if not case[0].startswith(HEAVY)])
def test_macs_agree_with_thop(name, form):
    """thop's convolutions and linear layers; what it adds for norms, activations and pools is left out."""
    thop = pytest.importorskip("thop", exc_type=ImportError)
    size = small(name, form)
    model = models.build(name, 10, size, {"form": form}).eval()
    others = (nn.BatchNorm2d, nn.ReLU, nn.ReLU6, nn.AdaptiveAvgPool2d)
    nothing = dict.fromkeys(others, lambda module, inputs, output: None)
    macs, params = thop.profile(model, (torch.zeros(1, 3, size, size),), custom_ops=nothing, verbose=False)
    assert [int(params), int(macs)] == list(complexity(on_meta(name, form, {}, size, 10), size))


@pytest.mark.parametrize(("name", "form", "options"), CASES)
def test_a_step_reaches_every_parameter(name, form, options):
    size = small(name, form)
    with torch.device("meta" if name.startswith(HEAVY) else "cpu"):
        model = models.build(name, 10, size, {"form": form} | options)
        nn.functional.cross_entropy(model(torch.randn(4, 3, size, size)), torch.arange(4)).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(("name", "form", "options"), CASES)
def test_one_graph_in_train_and_eval(name, form, options):
    model = on_meta(name, form, options, models.MODELS[name].image_size or SIZE[form], CLASSES[form])
    assert set(dict(quant.trace(model).named_parameters())) == set(dict(model.named_parameters()))


@pytest.mark.parametrize("name", models.MODELS)
def test_every_option_reaches_its_factory(name, monkeypatch):
    row, calls = models.MODELS[name], []
    own = list(inspect.signature(row.factory).parameters.values())[2:]
    assert {p.name: p.default for p in own} == {key: choices[0] for key, choices in row.options.items()}
    monkeypatch.setitem(
        models.MODELS, name, replace(row, factory=lambda *args, **options: calls.append((args, options)))
    )
    cases = [(form, options) for of, form, options in CASES if of == name]
    for form, options in cases:
        models.build(name, 7, small(name, form), {"form": form} | options)
    assert calls == [((7, form), options) for form, options in cases]


@pytest.mark.parametrize("name", THEIRS)
def test_the_imagenet_form_is_torchvisions(name):
    """Module by module, and its state loads; parameters are as many as torchvision publishes."""
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name)
    ours = on_meta(name, "imagenet", {}, 224, 1000)
    assert type(ours) is type(theirs)
    assert repr(ours) == repr(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["num_params"]
    assert GOLDEN[key(name, "imagenet", {})][0] == published


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
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
    assert sum(isinstance(m, nn.Conv2d) for m in projected.modules()) == 57
    maps = []
    for layer in svhn.features:
        layer.register_forward_hook(lambda layer, _, out: maps.append(out.shape[-1]))
    svhn(torch.zeros(2, 3, 40, 40))
    assert list(dict.fromkeys(maps)) == [36, 18, 9, 7, 5, 1]


def test_form_follows_the_image_size():
    assert models.build("resnet18", 10, 32, {}).conv1.stride == (1, 1)
    assert models.build("resnet18", 10, 224, {}).conv1.stride == (2, 2)


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("resnet50", [32, 16, 8, 4]),
        ("shufflenet_v2_x1_0", [32, 16, 8, 4]),
        ("mobilenet_v3_large", [16, 8, 4, 2]),
        ("mobilenet_v3_small", [16, 8, 4, 2]),
    ],
)
def test_maps_of_the_cifar_form(name, sides):
    for options in ({}, reference(name)):
        found = [side for _, side in shapes(models.build(name, 10, 32, options), (nn.BatchNorm2d,))]
        assert list(dict.fromkeys(found)) == sides


@pytest.mark.parametrize(
    ("name", "size", "options", "message"),
    [
        ("vgg11", 31, {}, r"model.name: vgg11 accepts images of 32 pixels or more in its cifar form, not of 31"),
        ("alexnet", 62, {"form": "imagenet"}, r"alexnet accepts images of 63 pixels or more in its imagenet form"),
        ("vgg16", 32, {"variant": "refrence"}, r"model.variant of vgg16: unknown 'refrence'; choose from torchvision"),
        ("resnt20", 32, {}, r"model.name: unknown 'resnt20'; choose from resnet20, .*\(nearest: resnet20\)"),
        ("resnet18", 32, {"froms": 1}, r"model.froms: resnet18 has no such option, did you mean form\?"),
        ("resnet20", 32, {"form": "imagenet"}, r"model.form of resnet20: unknown 'imagenet'; choose from auto, cifar"),
        (
            "mobilenet_v2",
            32,
            {"activation": "gelu"},
            r"model.activation of mobilenet_v2: unknown 'gelu'; choose from relu6",
        ),
    ],
)
def test_mistakes_are_named(name, size, options, message):
    with pytest.raises(UserError, match=message):
        models.build(name, 10, size, options)
