"""convert: the integer model of a prepared one, on every engine."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.core.fake_quantize import Rounding
from quant.core.grid import Grid
from quant.core.observed import ObservedActivationQuantizer
from quant.core.quantizer import DataInitializedWeightQuantizer
from quant.graph.prepare import prepare
from tests.conftest import KERNELS, photos, spec
from tests.helpers import build, converts_exactly, prepared_gated
from tests.nets import Dense, Residual, plain
from utils.errors import UserError


@pytest.mark.parametrize(
    "keys", [{"weight_bits": 32}, {"act_bits": 32}, {"first_last_bits": 32}, {"residual_bits": 32}]
)
def test_parts_left_in_float_still_convert(keys):
    prepared = quant.prepare(build("resnet20", "cifar"), spec(method="ptq", **keys))
    x = torch.randn(8, 3, 32, 32)
    quant.calibrate(prepared, [x])
    for engine in ("reference", quant.parse().engine):
        model = quant.convert(prepared, engine)
        assert torch.allclose(model(x), prepared(x), atol=0.05)
        rows = quant.layer_rows(prepared, model)
        assert any(row[4] == "float" for row in rows)


def test_an_integer_model_shares_nothing_with_the_prepared_one():
    prepared = quant.prepare(Dense(), spec(method="ptq"))
    x = torch.randn(8, 3, 12, 12)
    with pytest.raises(UserError, match="has not been calibrated"):
        quant.convert(prepared, "reference")
    quant.calibrate(prepared, [x])
    model = quant.convert(prepared, "reference")
    before = model(x)
    prepared.train()(x * 5)
    assert torch.equal(model(x), before)


METHODS = [name for name in quant.METHODS if name != "float"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [4, 8])
def test_every_method_trains_and_converts_it(method, bits):
    weight_bits = 6 if (method, bits) == ("dorefa", 8) else bits
    prepared, images = prepared_gated(method=method, weight_bits=weight_bits, act_bits=bits)
    F.cross_entropy(prepared.train()(images), torch.arange(8) % 3).backward()
    assert all(p.grad is not None for p in prepared.parameters())
    with torch.inference_mode():
        simulated = prepared.eval()(images)
        for engine in KERNELS:
            model = quant.convert(prepared, engine)
            assert torch.equal(model(images), simulated), engine
            assert quant.layer_summary(prepared, model).endswith("every layer runs in integers")


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_concatenations_along_other_axes(axis):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 3)

        def forward(self, x):
            one, two = F.relu(self.a(x)).chunk(2, axis)
            return self.fc(torch.cat([two, one], axis).mean((2, 3)))

    converts_exactly(Net(), photos(4, 16))


def test_what_has_not_been_calibrated_is_refused_and_counted():
    prepared = quant.prepare(Dense(), spec(method="ptq"))
    count = sum(not quantizer.is_calibrated() for quantizer in quant.quantizers(prepared).values())
    with pytest.raises(UserError, match=rf"has not been calibrated: .*\({count} such quantizers\)$") as caught:
        quant.convert(prepared, "reference")
    assert str(caught.value).startswith(next(iter(quant.quantizers(prepared))))


def test_a_net_in_train_mode_converts_as_in_eval_and_is_left_as_it_was():
    prepared, images = prepared_gated()
    expected = quant.convert(prepared.eval(), "reference")(images)
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    assert torch.equal(quant.convert(prepared.train(), "reference")(images), expected)
    assert all(module.training for module in prepared.modules())
    assert all(torch.equal(before[name], value) for name, value in prepared.state_dict().items())


class Joined(nn.Module):
    """Two branches, joined and shuffled, read by one layer or by two."""

    def __init__(self, groups: int, twice: bool):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 3, 1)
        self.shuffle, self.twice = nn.ChannelShuffle(groups), twice

    def forward(self, x):
        y = torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1)
        z = self.c(self.shuffle(y)).mean((2, 3))
        return z + y.mean((2, 3))[:, :3] if self.twice else z


@pytest.mark.parametrize(("groups", "twice", "joined"), [(2, False, True), (4, False, False), (2, True, False)])
def test_a_concatenation_and_a_shuffle_in_halves_become_one_operator(groups, twice, joined):
    model = converts_exactly(Joined(groups, twice), photos(4, 16))
    names = [node.name for node in model.graph.graph.nodes]
    assert ("cat" not in names) is joined
    assert "shuffle" in names


def test_a_value_in_float_is_dequantized_once_for_all_its_readers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 3)

        def forward(self, x):
            y = self.conv(x)
            return self.fc((torch.softmax(y, 1) - torch.exp(y)).mean((2, 3)))

    model = converts_exactly(Net(), photos(4, 16))
    names = [node.name for node in model.graph.graph.nodes]
    assert sum("dequantize" in name for name in names) == 1


def test_layers_operators_and_float_layers_are_listed():
    prepared, _ = prepared_gated(layers={"last": {"weight_bits": 32}})
    model = quant.convert(prepared, "reference")
    assert set(model.layers) == {"stem", "squeeze", "excite", "left", "right", "fc"}
    assert set(model.float_layers) == {"last.weight", "last.bias"}
    assert {"operators.mul", "operators.hardswish", "operators.mean", "operators.mean_1"} <= set(model.operators)


def test_weights_left_in_float_take_their_batch_norm_along():
    prepared = quant.prepare(Residual(10), spec(method="ptq", weight_bits=32, first_last_bits=32))
    x = torch.randn(4, 3, 32, 32)
    quant.calibrate(prepared, [x])
    model = quant.convert(prepared, "reference")
    assert model.layers == {}
    assert {"first.0.weight", "first.0.norm.weight", "first.0.norm.running_var"} <= set(model.float_layers)
    assert torch.allclose(model(x), prepared(x), atol=1e-4)


class WrongWithData(DataInitializedWeightQuantizer):
    """Keeps the contract until it has seen the weight; then its scale is negative, or it trains tanh(w)."""

    def __init__(self, wrong: str):
        super().__init__(4, started=False)
        self.wrong = wrong

    def initialize(self, w):
        pass

    def forward(self, w):
        self.observe(w)
        grid = self.grid()
        return torch.tanh(w) if self.started and self.wrong == "forward" else grid.value(grid.centred(w))

    def grid(self):
        sign = -1 if self.started and self.wrong == "scale" else 1
        return Grid(torch.tensor(0.1 * sign), torch.tensor(0, dtype=torch.int32), -7, 7)


class WrongActivation(ObservedActivationQuantizer):
    """Its grid has a scale for the tensor until it has a range, then two."""

    def grid(self):
        grid = super().grid()
        return replace(grid, scale=grid.scale.expand(2)) if self.observed else grid

    def rounding(self, x):
        grid = super().grid()
        least, most = grid.q_min - grid.zero_point, grid.q_max - grid.zero_point
        return Rounding(grid.scale, least.float(), most.float(), grid.scale * least, grid.scale * most)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": lambda *_: WrongWithData("scale")}, "WrongWithData: the scale of its grid must be positive"),
        ({"weight": lambda *_: WrongWithData("forward")}, "WrongWithData.forward: its outputs in eval mode are not"),
        ({"residual": lambda *_: WrongActivation(8, "minmax")}, "WrongActivation: .* must have one scale"),
    ],
)
def test_quantizers_that_are_wrong_once_they_have_data_are_refused(changed, message):
    prepared = prepare(plain(3), spec(method="statassist"), replace(quant.METHODS["statassist"], **changed))
    prepared.train()(photos(4, 16))
    with pytest.raises(UserError, match=message):
        quant.convert(prepared, "reference")
