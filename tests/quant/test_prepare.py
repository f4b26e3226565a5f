"""prepare: the same parameters under the same names, quantizers as quant/plan.py says, nothing float in silence."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
import quant
from quant.layers import QuantLayer
from quant.quantizer import Quantizer
from tests.conftest import spec
from utils.errors import UserError

FORMS = [(name, form) for name, row in models.MODELS.items() for form in row.forms]


def build(name: str, form: str) -> nn.Module:
    return models.build(name, 10, 32, {"form": form})


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_parameters_stay_the_same_objects_under_the_same_names(name, form):
    model = build(name, form)
    before = dict(model.named_parameters())
    buffers = set(dict(model.named_buffers()))
    prepared = quant.prepare(model, spec(method="statassist"))
    after = dict(prepared.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[key] is value for key, value in before.items())
    assert buffers <= set(dict(prepared.named_buffers())), "batch-norm statistics keep their names"
    prepared.load_state_dict(build(name, form).state_dict(), strict=False)


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_with_quantizers_off_it_is_the_float_net(name, form):
    model = build(name, form).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    prepared = quant.prepare(model, spec(method="ptq"))
    quant.set_enabled(prepared, False)
    assert torch.allclose(prepared.eval()(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_every_layer_is_an_integer_layer(name, form):
    prepared = quant.prepare(build(name, form), spec(method="statassist"))
    floats = [n for n, m in prepared.named_modules() if type(m) in (nn.Conv2d, nn.Linear)]
    assert floats == []
    layers = [m for m in prepared.modules() if isinstance(m, QuantLayer)]
    assert sum(layer.output is None for layer in layers) == 1, "only the logits are float"


def bits(prepared) -> dict[str, tuple[int, int | None]]:
    return {
        name: (m.weight_quantizer.bits, m.output and m.output.bits)
        for name, m in prepared.named_modules()
        if isinstance(m, QuantLayer)
    }


def test_bits_of_layers_and_edges():
    prepared = quant.prepare(build("resnet20", "cifar"), spec(method="statassist", weight_bits=4, act_bits=3))
    found = bits(prepared)
    assert found["conv1"] == (8, 8), "first layer; its output is read by an addition"
    assert found["layer1.0.conv1"] == (4, 3)
    assert found["layer1.0.conv2"] == (4, 8), "read by an addition: residual_bits"
    assert found["fc"] == (8, None)
    quantizers = {name: m.bits for name, m in prepared.named_modules() if isinstance(m, Quantizer)}
    assert quantizers["quantizers.x"] == 8, "the image"
    assert quantizers["quantizers.conv1_1_to_3"] == 3, "the second reader of the stem has its own quantizer"
    same = quant.prepare(build("resnet20", "cifar"), spec(method="statassist", weight_bits=4, first_last_bits="same"))
    assert bits(same)["conv1"][0] == bits(same)["fc"][0] == 4


def test_logits_stay_float_under_a_softmax():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.conv(x).relu().mean([2, 3])).softmax(1)

    prepared = quant.prepare(Net(), spec(method="statassist", weight_bits=4, act_bits=4))
    assert bits(prepared) == {"conv": (8, 8), "fc": (8, None)}


def test_one_value_narrowed_at_two_places_has_two_quantizers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            x = self.a(x).relu()
            y = F.max_pool2d(self.b(x), 2) + self.c(F.max_pool2d(x, 2)) + F.max_pool2d(x, 2)
            return self.fc(y.mean([2, 3]))

    prepared = quant.prepare(Net(), spec(method="statassist", act_bits=3))
    narrow = [name for name, m in prepared.named_modules() if isinstance(m, Quantizer) and name.endswith("_to_3")]
    assert len(narrow) == 2


def test_reports_name_the_kernel_or_the_reason():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.twice = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
            self.up, self.fc = nn.ConvTranspose2d(4, 4, 2), nn.Linear(4, 3)

        def forward(self, x):
            x = self.twice(self.twice(self.conv(x).relu()))
            return self.fc(torch.sigmoid(self.up(x)).mean([2, 3]))

    prepared = quant.prepare(Net(), spec(method="ptq"))
    quant.calibrate(prepared, [torch.randn(4, 3, 8, 8)])
    rows = {row[0]: row for row in quant.report(prepared, quant.convert(prepared, "reference"))}
    assert rows["conv"][1:5] == ["8", "8", "8", "integers in float32"]
    assert rows["fc"][4] == "integers in float32"
    assert rows["up"][4:] == ["float", "ConvTranspose2d has no integer form here"]
    assert rows["twice"][4:] == ["float", "called more than once"]
    assert rows["sigmoid"][4] == rows["mean"][4] == "float"


@pytest.mark.parametrize(
    "keys", [{"weight_bits": 32}, {"act_bits": 32}, {"first_last_bits": 32}, {"residual_bits": 32}]
)
def test_parts_left_in_float_still_convert(keys):
    prepared = quant.prepare(build("resnet20", "cifar"), spec(method="ptq", **keys))
    x = torch.randn(8, 3, 32, 32)
    quant.calibrate(prepared, [x])
    for engine in ("reference", quant.QuantSettings().engine):
        model = quant.convert(prepared, engine)
        assert torch.allclose(model(x), prepared(x), atol=0.05)
        rows = quant.report(prepared, model)
        assert any(row[4] == "float" for row in rows)


def test_functional_dropout_follows_train_and_eval():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 5)

        def forward(self, x):
            return self.fc(F.dropout(x.flatten(1), 0.5, self.training))

    prepared = quant.prepare(Net(), spec(method="statassist"))
    x = torch.randn(4, 3, 2, 2)
    assert not torch.equal(prepared.train()(x), prepared(x))
    prepared.eval()
    assert torch.equal(prepared(x), prepared(x))


def test_untraceable_models_are_refused_in_one_line():
    class Net(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UserError, match=r"^model Net: torch.fx cannot trace it: [^\n]*$"):
        quant.prepare(Net(), spec(method="ptq"))


def test_eval_changes_nothing_and_train_mode_observes():
    prepared = quant.prepare(build("resnet20", "cifar"), spec(method="statassist"))
    x = torch.randn(4, 3, 32, 32)
    prepared.train()(x)
    before = copy.deepcopy(prepared.state_dict())
    prepared.eval()
    first, second = prepared(x), prepared(x * 3) * 0 + prepared(x)
    assert torch.equal(first, second)
    assert all(torch.equal(before[k], v) for k, v in prepared.state_dict().items())
    prepared.train()(x * 3)
    assert any(not torch.equal(before[k], v) for k, v in prepared.state_dict().items() if k.endswith(".high"))


def test_a_copy_is_independent_and_equal():
    prepared = quant.prepare(build("mobilenet_v2", "imagenet"), spec(method="statassist"))
    x = torch.randn(4, 3, 32, 32)
    prepared.train()(x)
    twin = copy.deepcopy(prepared).eval()
    assert torch.equal(twin(x), prepared.eval()(x))
    assert twin.state_dict().keys() == prepared.state_dict().keys()
