"""Nets as other libraries build them, on real photographs: each operator of each engine against the simulation."""

import pytest
import torch

import models
import quant
from quant.engines.layerwise_check import check_layerwise
from quant.graph.quant_layers import QuantLayer
from tests.conftest import KERNELS, photos, spec, with_real_statistics
from utils.errors import UserError

SIZE = 64
NETS = {
    "torchvision:resnet18": {},
    "torchvision:mobilenet_v2": {},
    "torchvision:mobilenet_v3_small": {},
    "torchvision:mobilenet_v3_large": {},
    "torchvision:shufflenet_v2_x1_0": {},
    "torchvision:googlenet": {"aux_logits": False, "init_weights": False},
    "torchvision:regnet_x_400mf": {},
    "torchvision:efficientnet_b0": {},
    "timm:resnet18": {},
    "timm:mobilenetv2_100": {},
}
ENGINES = [name for name in KERNELS if name != "reference"]


@pytest.fixture(scope="module", params=NETS)
def zoo(request):
    """(name, prepared and calibrated at 8/8, images): random weights, batch norm statistics of real images."""
    if request.param.startswith("timm:"):
        pytest.importorskip("timm")
    images = photos(8, SIZE)
    torch.manual_seed(0)
    model = with_real_statistics(models.build(request.param, 10, SIZE, NETS[request.param]), images)
    prepared = quant.prepare(model, spec(method="ptq"))
    quant.calibrate(prepared, [images])
    return request.param, prepared, images


@pytest.mark.parametrize("engine", ENGINES)
def test_forced_equality_of_every_operator(zoo, engine):
    name, prepared, images = zoo
    model = quant.convert(prepared, engine)
    differences = check_layerwise(prepared, model, images)
    assert len(differences) >= len(model.layers)
    for node, found in differences.items():
        assert found.counts_as_exact(), f"{name}, {node}: {found}"


def test_nothing_stays_in_float(zoo):
    name, prepared, _ = zoo
    model = quant.convert(prepared, "reference")
    assert model.float_layers == {}
    layers = [m for m in prepared.modules() if isinstance(m, QuantLayer)]
    assert len(model.layers) == len(layers) >= 18
    islands = {row[0] for row in quant.layer_rows(prepared, model) if row[4] == "float"}
    assert islands == set(), f"{name}: {islands}"


def test_a_prepared_stranger_trains(zoo):
    _, prepared, images = zoo
    prepared.train()
    torch.nn.functional.cross_entropy(prepared(images), torch.arange(len(images)) % 10).backward()
    assert all(p.grad is not None for p in prepared.parameters())
    prepared.eval()


def test_auxiliary_heads_are_refused_with_the_cure():
    model = models.build("torchvision:googlenet", 10, 96, {"init_weights": False})
    with pytest.raises(UserError, match=r"switch the auxiliary heads off \(model.aux_logits=false\)$"):
        quant.trace(model)
