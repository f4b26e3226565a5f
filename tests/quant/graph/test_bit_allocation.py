"""Which values get a quantizer, of how many bits, signed or not, and which of them share one."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.core.quantizer import Quantizer
from quant.graph.quant_layers import QuantLayer
from tests import nets
from tests.conftest import spec
from tests.helpers import bits, build, float_range, prepared_gated, simulated_against_float
from tests.nets import Dense, PooledFirst


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


@pytest.mark.parametrize("method", ["lsq", "pact", "dorefa", "statassist", "ptq"])
def test_a_relu_behind_a_pool_leaves_the_bits_to_what_is_not_negative(method):
    net, x = PooledFirst().eval(), torch.randn(16, 3, 20, 20)
    assert simulated_against_float(net, (3, 20, 20))[0] < 0.03
    prepared = quant.prepare(copy.deepcopy(net), spec(method=method, weight_bits=4, act_bits=2, first_last_bits="same"))
    prepared.train()(x)
    if method == "ptq":
        quant.calibrate(prepared, [x])
    prepared.eval()
    for name in ("a", "b"):
        grid = prepared.get_submodule(name).output.grid()
        assert (grid.q_max - grid.q_min, int(grid.zero_point) - grid.q_min) == (3, 0), name
    with torch.inference_mode():
        assert torch.equal(quant.convert(prepared, "fbgemm")(x), prepared(x))


def test_the_second_quantizer_of_a_value_sees_the_relu_in_front_of_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            y = self.a(x)
            return self.c(y + self.b(F.relu(y))).mean([2, 3])

    prepared = quant.prepare(Net(), spec(method="lsq", weight_bits=4, act_bits=4)).train()
    prepared(torch.randn(4, 3, 8, 8))
    (second,) = (one.grid() for name, one in quant.quantizers(prepared).items() if name.endswith("relu_to_4"))
    assert (second.q_max - second.q_min, int(second.zero_point) - second.q_min) == (15, 0)


def test_a_value_read_by_a_float_operator_keeps_residual_bits():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            y = self.a(x)
            return self.c(self.b(y) * torch.sigmoid(y)).mean([2, 3])

    assert bits(quant.prepare(Net(), spec(method="ptq", act_bits=2)))["a"] == (8, 8)


def test_the_first_layer_reads_eight_bits_behind_a_normalization_too():
    prepared = quant.prepare(Dense(), spec(method="ptq", weight_bits=2, act_bits=2))
    assert bits(prepared)["a"][0] == 8
    assert prepared.get_submodule("operators.truediv.output").bits == 8


def test_layers_have_bits_of_their_own_by_name():
    settings = spec(
        method="lsq",
        weight_bits=4,
        act_bits=4,
        layers={
            "layer2.*": {"weight_bits": 2},
            "layer2.0.conv1": {"act_bits": 3},
            "fc": "float",
            "conv1": {"weight_bits": 4},
        },
    )
    prepared = quant.prepare(build("resnet20", "cifar"), settings)
    found = {name: m for name, m in prepared.named_modules() if isinstance(m, QuantLayer)}
    assert found["layer1.0.conv1"].weight_quantizer.bits == 4
    assert found["layer2.0.conv1"].weight_quantizer.bits == found["layer2.1.conv2"].weight_quantizer.bits == 2
    assert found["layer2.0.conv1"].output.bits == 4, "its own act_bits are what it reads, not what it writes"
    assert any(name.endswith("_to_3") for name in quant.quantizers(prepared))
    assert found["conv1"].weight_quantizer.bits == 4, "a name comes before first_last_bits"
    assert found["fc"].weight_quantizer is None
    assert all("operators.mean" not in name and "avgpool" not in name for name in quant.quantizers(prepared))


def test_what_a_layer_reads_is_float_if_its_name_says_so():
    _, prepared = simulated_against_float(nets.plain(10), (3, 16, 16), residual_bits=2, layers={"4": "float"})
    assert "2.output" not in quant.quantizers(prepared)
    assert prepared.get_submodule("0").output.bits == 8


def test_hidden_layers_and_additions_read_grids_of_their_own():
    """A value that both read is on the 8-bit grid of the residual path, and again on the method's own."""
    prepared = quant.prepare(build("resnet20", "cifar"), spec(method="pact", weight_bits=8, act_bits=8))
    found = quant.quantizers(prepared)
    assert type(found["conv1.output"]).__name__ == "ObservedActivationQuantizer"
    assert type(found["quantizers.conv1_1_to_8"]).__name__ == "LearnedClip"
    assert type(found["layer1.0.conv1.output"]).__name__ == "LearnedClip", "read by a hidden layer alone"
    assert type(found["layer1.0.conv2.output"]).__name__ == "ObservedActivationQuantizer", "read by an addition"
    shared = quant.quantizers(quant.prepare(build("resnet20", "cifar"), spec(method="lsq")))
    assert not any("_to_" in name for name in shared), "one grid serves both where the method makes but one kind"


def test_a_layer_may_be_called_sigmoid_and_be_negative():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1))
    named = nn.Sequential()
    for name, module in zip(("first", "sigmoid_head", "bend", "third", "last"), net, strict=True):
        named.add_module(name, module)
    prepared = quant.prepare(named, spec(method="lsq", weight_bits=4, act_bits=4))
    assert prepared.get_submodule("first").output.Q_N > 0, "what sigmoid_head reads"
    assert prepared.get_submodule("operators.bend").output.Q_N == 0, "what follows a sigmoid"


def test_what_meets_in_concatenations_shares_a_quantizer():
    prepared, images = prepared_gated()
    outputs = [prepared.get_submodule(name).output for name in ("left", "right", "last", "operators.avg_pool2d")]
    assert len({id(output) for output in outputs}) == 1
    names = [name for name, m in prepared.named_modules(remove_duplicate=False) if m is outputs[0]]
    assert names == ["quantizers.cat_1"], "one name, one entry of the state"
    twin = copy.deepcopy(prepared)
    assert twin.get_submodule("left").output is twin.get_submodule("quantizers.cat_1") is not outputs[0]
    for p in prepared.parameters():
        p.data.mul_(2)
    prepared.train()(images)
    assert not torch.equal(*(float_range(m.get_submodule("quantizers.cat_1")) for m in (prepared, twin)))


def test_a_pool_shares_nothing():
    """The quantizer of what it reads stays that of the layer."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(5, 3)
    )
    found = quant.quantizers(quant.prepare(net.eval(), spec(method="ptq")))
    names = ["0.output", "0.weight_quantizer", "3.output", "3.weight_quantizer", "5.weight_quantizer"]
    assert sorted(found) == [*names, "quantizers.input_1"]
