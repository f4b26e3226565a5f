"""How many multiply-accumulates run in integers: counted by hand, before and after a model is prepared."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
import quant
from quant.analysis.integer_share import IntegerShare, check_integer_share
from tests.conftest import spec
from utils.errors import UserError


class Net(nn.Module):
    """Of one image [3, 8, 8]: 3,888 multiply-accumulates in a, 1,152 in up, 2,880 in the product, 24 in fc."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.up = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 2, 2, 2)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.up(F.relu(self.norm(self.a(x)))).flatten(2)
        return self.fc(torch.cat([(x @ x.transpose(1, 2)).flatten(1)] * 2, 1))


COUNTS = {"up": 4 * 2 * 2 * 2 * 36, "matmul": 2 * 144 * 2}


def test_what_is_counted_is_what_is_multiplied():
    share = quant.planned_integer_share(Net(), spec(method="lsq", min_integer_share=0), 8)
    assert {name: count for name, (count, _) in share.in_float.items()} == COUNTS
    assert share.in_float["up"][1] == "ConvTranspose2d has no integer form here"
    integers = 3 * 9 * 4 * 36 + 24
    assert share.macs == integers + sum(COUNTS.values())
    assert share.by_name == {"a": integers - 24, "fc": 24} | COUNTS
    assert share.percent_of("fc") == pytest.approx(2400 / share.macs)
    assert share.percent_of("norm") == 0.0
    assert share.percent == pytest.approx(100 * integers / share.macs)
    assert str(share) == (
        "69.4 % of MACs in integers; in float: up (20.4 %, ConvTranspose2d has no integer form here), "
        "matmul (10.2 %, no integer form)"
    )


@pytest.mark.parametrize("keys", [{}, {"weight_bits": 32}, {"layers": {"fc": "float"}}])
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v3_small", "shufflenet_v2_x0_5", "own"])
def test_a_prepared_model_has_the_share_that_was_planned(name, keys):
    model, size = (Net(), 8) if name == "own" else (models.build(name, 10, 32, {}), 32)
    keys = {"method": "ptq", "min_integer_share": 0} | keys
    if name.startswith("mobilenet") and "layers" in keys:
        keys["layers"] = {"classifier.*": "float"}
    planned = quant.planned_integer_share(model, spec(**keys), size)
    found = quant.integer_share(quant.prepare(copy.deepcopy(model), spec(**keys)), size)
    assert found.macs == planned.macs
    assert found.percent == pytest.approx(planned.percent)
    assert planned.percent == 0 if "weight_bits" in keys else 30 < planned.percent <= 100
    if name != "own" and len(keys) == 2:
        assert planned.percent == 100


def test_the_model_stays_as_it_is():
    model = Net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    quant.planned_integer_share(model, spec(method="lsq"), 8)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {value.device.type for value in model.state_dict().values()} == {"cpu"}


def test_too_little_in_integers_is_refused_with_what_is_in_float():
    share = IntegerShare(1000, {"body.7": (700, "PReLU"), "head": (100, "no integer form")})
    with pytest.raises(UserError) as refused:
        check_integer_share(share, spec(method="lsq", weight_bits=2, act_bits=2))
    assert str(refused.value) == (
        "quant.min_integer_share: 20.0 % of MACs in integers; in float: body.7 (70.0 %, PReLU), head (10.0 %, no "
        "integer form); at least 50 % are asked for (quant.min_integer_share=0.2 takes it as it is)"
    )
    check_integer_share(share, spec(method="lsq", min_integer_share=0.2))


@pytest.mark.parametrize("keys", [{"act_bits": 32}, {"layers": {"body.*": "float"}}])
def test_what_the_setting_asks_for_is_not_refused(keys):
    check_integer_share(IntegerShare(1000, {"body.7": (700, "")}), spec(method="lsq", **keys))
