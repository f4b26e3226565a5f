"""ExecuTorch and LiteRT give the simulation's logits bit for bit: trained nets, the zoo, every operator."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
import quant
from quant.engines import programs
from quant.graph.op_table import OPERATORS
from tests.conftest import ON_PROGRAMS, photos
from tests.helpers import assert_layerwise_exact, calibrated, prepared_with
from tests.quant.engines.native.test_operators import Residual, Row, Shuffle


@pytest.fixture(params=ON_PROGRAMS)
def engine(request) -> str:
    return request.param


def is_exact(prepared, images, engine: str) -> quant.IntegerModel:
    model = quant.convert(prepared, engine)
    with torch.inference_mode():
        assert torch.equal(model(images), prepared(images))
    return model


def test_a_trained_net_has_the_logits_that_it_simulates(net, simulated, digits32, engine):
    _, images, labels = digits32
    logits = quant.convert(net, engine)(images)
    assert torch.equal(logits, simulated)
    assert (logits.argmax(1) == labels).float().mean() >= 0.95


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
def test_the_zoo_at_fewer_bits(name, bits, engine):
    images = photos(4, 32)
    net = models.build(name, 10, 32, {})
    is_exact(calibrated(net, images, method="lsq", weight_bits=bits, act_bits=bits), images, engine)


@pytest.mark.parametrize("name", [name for name, row in OPERATORS.items() if row.role in ("binary", "function")])
def test_every_row_of_the_table_of_operators(name, engine):
    images = photos(4, 12)
    model = is_exact(calibrated(Row(name), images), images, engine)
    assert quant.engine(engine).outside not in model.operators.values()


@pytest.mark.parametrize("bits", [2, 8])
def test_each_operator_of_a_net_is_exact_by_itself(bits, engine):
    for net, size in ((Residual, 16), (Shuffle, 10)):
        prepared, images = prepared_with(net(), bits, (3, size, size))
        assert_layerwise_exact(prepared, engine, images)
        is_exact(prepared, images, engine)


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


def test_pools_flattening_and_layers_along_other_axes(engine):
    images = photos(4, 25)
    is_exact(calibrated(Pools(), images), images, engine)


def test_any_number_of_images_and_of_threads(engine):
    images = photos(5, 32)
    model = quant.convert(calibrated(models.build("resnet20", 10, 32, {}), images), engine)
    whole, threads = model(images), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(torch.cat([model(images[:2]), model(images[2:])]), whole)
    finally:
        torch.set_num_threads(threads)
    for count in range(1, programs.MAX_PROGRAMS + 2):
        model(images[:1].expand(count, -1, -1, -1))
    assert len(model.programs) == programs.MAX_PROGRAMS


def test_parts_in_float_are_named_and_run(capfd, engine):
    """Attention and layer norm are near torch's, all else is exact."""
    images = photos(8, 32)
    prepared = calibrated(models.build("timm:vit_tiny_patch16_224", 10, 32, {"img_size": 32, "depth": 2}), images)
    model = quant.convert(prepared, engine)
    with torch.inference_mode():
        found, expected = model(images), prepared(images)
    assert (found - expected).norm() < 0.2 * expected.norm()
    named = quant.layer_rows(prepared, model)
    assert {"layer_norm", "scaled_dot_product_attention"} <= {row[0] for row in named if row[4] == "float"}
    assert capfd.readouterr().err == ""


class Attention(nn.Module):
    """A part in float that these graphs do not have."""

    def __init__(self):
        super().__init__()
        self.a, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x):
        x = self.a(x)
        return self.fc((x * x.flatten(2).cumsum(-1).softmax(-1).reshape(x.shape)).mean((2, 3)))


def test_a_model_with_other_operators_is_refused_in_a_line(engine):
    images = photos(4, 12)
    model, runtime = quant.convert(calibrated(Attention(), images), engine), quant.engine(engine).builder.runtime
    with pytest.raises(quant.EngineFailed, match=rf"^engines: {engine} cannot run this model: {runtime} has no aten"):
        model(images)
