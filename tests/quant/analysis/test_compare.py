"""Sizes, accuracy and agreement of a prepared net and its integer models."""

import copy

import numpy
import pytest
import torch
from torch import nn

import models
import quant
from quant.analysis.compare import compare, float_state, megabytes_at_bits
from quant.graph.views import quantizers
from tests.conftest import photos, spec
from tests.helpers import calibrated
from tests.packed import exported
from utils.errors import UserError
from utils.runs import tensor_file


def test_the_size_counts_what_stays_float(tmp_path):
    """A batch norm behind a pool, and a convolution that has no integer form."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    prepared = quant.prepare(net.eval(), spec(method="ptq"))
    quant.calibrate(prepared, [photos(4, 32)])
    exported(prepared, tmp_path / "m.npz")
    with numpy.load(tmp_path / "m.npz", allow_pickle=False) as file:
        arrays = sum(file[name].nbytes for name in ("uint8", "float32", "int32"))
    assert 1e6 * megabytes_at_bits(prepared) == arrays
    more = nn.Sequential(*copy.deepcopy(net), nn.ConvTranspose2d(4, 2, 5)).eval()
    size = 1e6 * megabytes_at_bits(quant.prepare(more, spec(method="ptq")))
    assert size == arrays + 4 * (4 * 2 * 5 * 5 + 2)


def test_the_size_does_not_depend_on_dead_channels():
    prepared = quant.prepare(models.build("resnet20", 10, 32, {}), spec(method="ptq", weight_bits=4)).eval()
    quant.calibrate(prepared, [photos(4, 32)])
    before = megabytes_at_bits(prepared)
    with torch.no_grad():
        prepared.get_submodule("bn1").weight[:3] = 0
    assert megabytes_at_bits(prepared) == before


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3))


class Altered:
    """An integer model whose logits for some images are not the simulation's."""

    def __init__(self, prepared, change):
        self.prepared, self.change, self.images = prepared, change, 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.prepared(images).clone()
        for i in range(len(logits)):
            logits[i] = self.change(self.images + i, logits[i])
        self.images += len(images)
        return logits

    def stored(self):
        return {"layer": {"weight": torch.zeros(1000, dtype=torch.int8)}}


def last_raised(logits: torch.Tensor) -> torch.Tensor:
    """The same first choice, and another last one, by one logit."""
    first, second, last = logits.argsort(descending=True)
    return logits.index_fill(0, last, float(logits[first] + logits[second]) / 2)


def test_the_numbers_are_those_of_all_images():
    """Ten images in batches of 6 and 4: of one, an engine has another first choice; of three, other logits."""
    images = photos(10, 16)
    prepared = calibrated(net(), images)
    with torch.no_grad():
        labels = prepared(images).argmax(1)
    labels[0] = (labels[0] + 1) % 3
    batches = [(images[:6], labels[:6]), (images[6:], labels[6:])]
    engines = {
        "same": Altered(prepared, lambda i, logits: logits),
        "other": Altered(
            prepared, lambda i, logits: {7: -logits, 8: last_raised(logits), 2: logits + 1}.get(i, logits)
        ),
    }
    result, predictions = compare(prepared, engines, batches, with_float=True)
    assert torch.equal(predictions.labels, labels)
    for name, predicted in predictions.predicted.items():
        assert 100 * float((predicted == labels).float().mean()) == pytest.approx(result["accuracy"][name]["top1"])
    with torch.no_grad():
        assert torch.allclose(predictions.probability["simulated"], prepared(images).softmax(1).max(1).values)
    assert list(result["accuracy"]) == ["float", "simulated", "same", "other"]
    assert result["agreement"] == {"same": 100.0, "other": 90.0}
    assert result["bit_equal"] == {"same": 100.0, "other": 70.0}
    assert result["accuracy"]["simulated"]["top1"] == result["accuracy"]["same"]["top1"] == 90.0
    assert result["accuracy"]["other"]["top1"] == 80.0
    assert result["accuracy"]["simulated"]["top5"] == 100.0
    quant.set_enabled(prepared, False)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(prepared(images), labels)
    quant.set_enabled(prepared, True)
    assert result["accuracy"]["float"]["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert result["accuracy"]["float"]["loss"] != result["accuracy"]["simulated"]["loss"]
    assert set(result["size_mb"]) == {"float", "same", "other"}
    assert result["size_mb"]["float"] == tensor_file.megabytes(float_state(prepared))
    assert result["size_mb"]["same"] == tensor_file.megabytes(engines["same"].stored())
    assert result["size_mb_at_bits"] == megabytes_at_bits(prepared)


def test_the_float_net_is_measured_on_demand_and_quantizers_stay_on():
    images = photos(2, 16)
    prepared = calibrated(net(), images)
    result = compare(prepared, {}, [(images, torch.zeros(2).long())], with_float=False).result
    assert list(result["accuracy"]) == ["simulated"]
    assert result["agreement"] == result["bit_equal"] == {}
    compare(prepared, {}, [(images, torch.zeros(2).long())], with_float=True)
    assert all(quantizer.enabled for quantizer in quantizers(prepared).values())


def test_a_net_without_quantizers_is_float():
    images = photos(2, 16)
    model = quant.prepare(net().eval(), spec(method="ptq", weight_bits=32, act_bits=32, first_last_bits=32))
    for quantizer in quantizers(model):
        raise AssertionError(quantizer)
    result = compare(model, {}, [(images, torch.zeros(2).long())], with_float=False).result
    assert list(result["accuracy"]) == ["float"]


def test_no_images_are_no_error():
    result, predictions = compare(calibrated(net(), photos(2, 16)), {"same": Altered(None, None)}, [], with_float=False)
    assert len(predictions.labels) == len(predictions.predicted["same"]) == 0
    assert result["agreement"] == {"same": 0.0}


def test_the_state_of_the_float_model_holds_nothing_of_quantizers():
    images = photos(4, 16)
    prepared = calibrated(net(), images, bias_correction="norm")
    expected = {"0.weight", "0.bias", "4.weight", "4.bias"}
    expected |= {f"1.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    assert set(float_state(prepared)) == expected


def test_an_engine_that_fails_is_left_out_and_the_others_are_measured():
    prepared, images = calibrated(net(), photos(8, 16)), photos(8, 16)
    labels = torch.zeros(8, dtype=torch.long)

    class Failing:
        def __call__(self, images):
            raise quant.EngineFailed("engines: other cannot run this model: no such shape")

    engines = {"other": Failing(), "reference": quant.convert(prepared, "reference")}
    result, predictions = compare(prepared, engines, [(images[:4], labels[:4]), (images[4:], labels[4:])], False)
    assert list(predictions.predicted) == list(predictions.probability) == ["simulated", "reference"]
    assert result["failed"] == {"other": "engines: other cannot run this model: no such shape"}
    assert list(result["accuracy"]) == ["simulated", "reference"]
    assert result["agreement"] == result["bit_equal"] == {"reference": 100.0}
    assert list(result["size_mb"]) == ["float", "reference"]
    assert "failed" not in compare(prepared, {}, [(images, labels)], False).result


@pytest.mark.parametrize("with_float", [True, False])
def test_logits_that_are_not_finite_are_named(with_float):
    """What is saved is finite, and overflows all the same."""
    model = calibrated(net(), photos(4, 16), first_last_bits=32)
    with torch.no_grad():
        model.get_submodule("4").bias.fill_(torch.finfo(torch.float32).max)
        model.get_submodule("4").weight.mul_(1e38)
    name = "float" if with_float else "simulated"
    with pytest.raises(UserError, match=rf"^{name}: logits that are not finite, on 4 images: "):
        compare(model, {}, [(photos(4, 16), torch.zeros(4).long())], with_float)
