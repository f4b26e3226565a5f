"""prepare: the same parameters under the same names, and values close to the float net's, whatever the graph."""

import copy
import functools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.core.grid import Grid
from quant.core.quantizer import WeightQuantizer
from quant.graph.prepare import prepare
from quant.graph.quant_layers import QuantLayer
from quant.graph.views import layers
from tests.conftest import photos, spec
from tests.helpers import FORMS, build, converts_exactly, simulated_against_float, structure
from tests.nets import (
    Dense,
    Hooked,
    InPlace,
    NormTwice,
    PreActivation,
    ReluHead,
    Residual,
    SharedFunctions,
    Tokens,
    plain,
)
from utils.errors import UserError


@functools.cache
def prepared_structure(name: str, form: str):
    """(a net's parameters, and all of its state, before it is prepared; the net prepared), on the meta device."""
    model = structure(name, form)
    before, state = dict(model.named_parameters()), model.state_dict()
    return before, state, quant.prepare(model, spec(method="statassist"))


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_parameters_stay_the_same_objects_under_the_same_names(name, form):
    before, state, prepared = prepared_structure(name, form)
    after = dict(prepared.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[key] is value for key, value in before.items())
    assert state.keys() - before.keys() <= set(dict(prepared.named_buffers())), "batch-norm statistics keep their names"
    missing = prepared.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_every_layer_is_an_integer_layer(name, form):
    *_, prepared = prepared_structure(name, form)
    floats = [n for n, m in prepared.named_modules() if type(m) in (nn.Conv2d, nn.Linear)]
    assert floats == []
    layers = [m for m in prepared.modules() if isinstance(m, QuantLayer)]
    assert sum(layer.output is None for layer in layers) == 1, "only the logits are float"


def test_a_copy_is_independent_and_equal():
    prepared = quant.prepare(build("mobilenet_v2", "imagenet"), spec(method="statassist"))
    x = torch.randn(4, 3, 32, 32)
    prepared.train()(x)
    twin = copy.deepcopy(prepared).eval()
    assert torch.equal(twin(x), prepared.eval()(x))
    assert twin.state_dict().keys() == prepared.state_dict().keys()


@pytest.mark.parametrize("net", [ReluHead, InPlace, Tokens, Dense, PreActivation, NormTwice, SharedFunctions, Hooked])
def test_eight_bits_are_close_to_float_whatever_the_graph(net):
    assert simulated_against_float(net())[0] < 0.03


@pytest.mark.parametrize("key", ["residual_bits", "first_last_bits"])
def test_close_to_float_with_parts_in_float(key):
    assert simulated_against_float(InPlace(), **{key: 32})[0] < 0.03


def test_gradients_are_quantized_wherever_a_hidden_layer_is():
    def quantized(**keys):
        model = quant.prepare(build("resnet20", "cifar"), spec(method="dorefa", weight_bits=4, grad_bits=4, **keys))
        return sum(isinstance(m, QuantLayer) and m.gradient is not None for m in model.modules())

    assert quantized() == 18
    assert quantized(layers={"layer1.0.conv1": "float"}) == 17
    assert quantized(layers={"layer1.0.conv1": {"weight_bits": 32}}) == 18, "it still reads few bits"


METHODS = [name for name in quant.METHODS if name != "float"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("function", [nn.Hardswish, nn.SiLU])
def test_a_function_in_place_trains_as_one_that_is_not(function, method):
    """Its input is the output of a quantizer, which the backward pass needs as it was."""
    images, gradients = photos(4, 16), []
    for inplace in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), function(inplace=inplace), nn.Flatten(), nn.Linear(784, 3))
        prepared = quant.prepare(net, spec(method=method, weight_bits=4, act_bits=4)).train()
        prepared(images).square().sum().backward()
        gradients.append([p.grad for p in prepared.parameters()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


def test_modules_and_buffers_keep_their_names():
    """torch.fx calls the sum `add`: so may the model call what it likes."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.add, self.fc = nn.Conv2d(3, 4, 1), nn.Hardswish(), nn.Linear(4, 3)
            self.register_buffer("mul", torch.tensor(2.0))

        def forward(self, x):
            x = self.add(self.a(x))
            x = self.add(x + F.relu(x)) * x
            return self.fc(x.mean((2, 3))) * self.mul

    net, images = Net(), photos(4, 16)
    with torch.no_grad():
        expected = net(images)
    model = converts_exactly(net, images)
    assert torch.allclose(model(images), expected, atol=0.05 * float(expected.abs().max()))


def test_inputs_of_hidden_layers_come_from_the_methods_activation_and_all_else_from_residual():
    asked = {"activation": [], "residual": []}

    def recording(kind: str):
        make = getattr(quant.METHODS["ptq"], kind)

        def quantizer(settings, bits, signed):
            asked[kind].append((bits, signed))
            return make(settings, bits, signed)

        return quantizer

    method = replace(quant.METHODS["ptq"], **{kind: recording(kind) for kind in asked})
    settings = spec(method="ptq", act_bits=4, residual_bits=6)
    prepared = prepare(Residual(3).eval(), settings, method)
    assert set(asked["activation"]) == {(4, False)}
    assert asked["residual"].count((8, True)) == 1, "the image"
    assert (4, False) not in asked["residual"]
    hidden = layers(prepared)["second.0"].source
    assert hidden is not None
    assert hidden.bits == 4


class Shifted(WeightQuantizer):
    """A grid that a test chooses, and its nearest integers."""

    def __init__(self, scale: torch.Tensor, zero_point: int, q_max: int):
        super().__init__(4)
        self.fixed = Grid(scale, torch.full_like(scale, zero_point, dtype=torch.int32), -q_max, q_max)

    def forward(self, w):
        return self.fixed.value(self.fixed.centred(w))

    def grid(self):
        return self.fixed


@pytest.mark.parametrize(
    ("scale", "zero_point", "q_max", "message"),
    [
        (torch.tensor(0.1), 1, 7, "must have zero_point 0"),
        (torch.tensor(0.1), 0, 8, "do not fit in 4 bits"),
        (torch.tensor(0.1), 0, 128, "within -127 .. 127"),
        (torch.tensor(-0.1), 0, 7, "must be positive"),
        (torch.ones(5), 0, 7, r"must be \[\], or \[32\]"),
    ],
)
def test_the_grid_of_every_weight_is_checked_not_only_of_the_first(scale, zero_point, q_max, message):
    def weight(settings, bits, shape):
        return Shifted(torch.tensor(0.1), 0, 7) if shape[0] == 16 else Shifted(scale, zero_point, q_max)

    method = replace(quant.METHODS["lsq"], weight=weight)
    with pytest.raises(UserError, match=message):
        prepare(plain(3), spec(method="lsq", weight_bits=4), method)
