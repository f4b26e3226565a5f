"""ExecuTorch computes the simulation's logits bit for bit: trained nets, the zoo, every operator of the table."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
import quant
from quant.engines import executorch
from quant.graph.op_table import OPERATORS
from tests.conftest import needs_executorch, photos
from tests.helpers import assert_layerwise_exact, calibrated, prepared_with
from tests.quant.engines.native.test_operators import Residual, Row, Shuffle
from utils.errors import UserError


def is_exact(prepared, images) -> quant.IntegerModel:
    model = quant.convert(prepared, "executorch")
    with torch.inference_mode():
        assert torch.equal(model(images), prepared(images))
    return model


@needs_executorch
def test_a_trained_net_has_the_logits_that_it_simulates(net, simulated, digits32):
    _, images, labels = digits32
    logits = quant.convert(net, "executorch")(images)
    assert torch.equal(logits, simulated)
    assert (logits.argmax(1) == labels).float().mean() >= 0.95


@needs_executorch
@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("resnet20", 2),
        ("mobilenet_v2", 4),
        ("mobilenet_v3_small", 2),
        ("mobilenet_v3_small", 8),
        ("shufflenet_v2_x0_5", 3),
    ],
)
def test_the_zoo_at_fewer_bits(name, bits):
    images = photos(4, 32)
    net = models.build(name, 10, 32, {})
    is_exact(calibrated(net, images, method="lsq", weight_bits=bits, act_bits=bits), images)


@needs_executorch
@pytest.mark.parametrize("name", [name for name, row in OPERATORS.items() if row.role in ("binary", "function")])
def test_every_row_of_the_table_of_operators(name):
    images = photos(4, 12)
    model = is_exact(calibrated(Row(name), images), images)
    assert "not in xnnpack" not in model.operators.values()


@needs_executorch
@pytest.mark.parametrize("bits", [2, 8])
def test_each_operator_of_a_net_is_exact_by_itself(bits):
    for net, size in ((Residual, 16), (Shuffle, 10)):
        prepared, images = prepared_with(net(), bits, (3, size, size))
        assert_layerwise_exact(prepared, "executorch", images)
        is_exact(prepared, images)


class Pools(nn.Module):
    """Pools of all kinds, a flattening of maps, a linear layer along the channels of maps."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.along, self.fc = (
            nn.Conv2d(3, 8, 3),
            nn.Conv2d(8, 8, 3, 2, 1, groups=4),
            nn.Linear(8, 6),
            None,
        )
        self.fc = nn.Linear(6 * 3 * 3, 5)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.a(x)), 3, 2, 1, ceil_mode=True)
        x = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) + F.avg_pool2d(x, 3, 1, 1)
        x = F.avg_pool2d(self.b(x), 2, 2, ceil_mode=True)
        x = self.along(F.adaptive_avg_pool2d(x, 3).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.fc(x.flatten(1))


@needs_executorch
def test_pools_flattening_and_layers_along_other_axes():
    images = photos(4, 25)
    is_exact(calibrated(Pools(), images), images)


@needs_executorch
def test_any_number_of_images_and_of_threads():
    images = photos(5, 32)
    model = quant.convert(calibrated(models.build("resnet20", 10, 32, {}), images), "executorch")
    whole, threads = model(images), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(torch.cat([model(images[:2]), model(images[2:])]), whole)
    finally:
        torch.set_num_threads(threads)
    for count in range(1, executorch.MAX_PROGRAMS + 2):
        model(images[:1].expand(count, -1, -1, -1))
    assert len(model.programs) == executorch.MAX_PROGRAMS


@needs_executorch
def test_parts_in_float_are_named_and_run(capfd):
    """Attention and layer norm are near torch's, all else is exact."""
    images = photos(8, 32)
    prepared = calibrated(models.build("timm:vit_tiny_patch16_224", 10, 32, {"img_size": 32, "depth": 2}), images)
    model = quant.convert(prepared, "executorch")
    with torch.inference_mode():
        found, expected = model(images), prepared(images)
    assert (found - expected).norm() < 0.2 * expected.norm()
    named = quant.layer_rows(prepared, model)
    assert {"layer_norm", "scaled_dot_product_attention"} <= {row[0] for row in named if row[4] == "float"}
    assert capfd.readouterr().err == ""


class Attention(nn.Module):
    """A part in float that XNNPACK's graph does not have here."""

    def __init__(self):
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        x = self.a(x)
        return self.fc((x * x.flatten(2).cumsum(-1).softmax(-1).reshape(x.shape)).mean((2, 3)))


@needs_executorch
def test_a_model_with_other_operators_is_refused_in_a_line():
    images = photos(4, 12)
    model = quant.convert(calibrated(Attention(), images), "executorch")
    with pytest.raises(quant.EngineFailed, match=r"^engines: executorch cannot run this model: XNNPACK has no aten"):
        model(images)


def test_what_is_missing_is_a_line(monkeypatch):
    monkeypatch.setattr(executorch, "_is_here", lambda name: name != "torchao")
    quant.engine.cache_clear()
    with pytest.raises(
        UserError, match=r"^engines: executorch needs torchao: pip install --no-deps -r requirements-exec"
    ):
        quant.engine("executorch", "engines")
    quant.engine.cache_clear()
