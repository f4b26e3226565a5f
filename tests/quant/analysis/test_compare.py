"""Sizes, accuracy and agreement of a prepared net and its integer models."""

import copy

import numpy
import torch
from torch import nn

import models
import quant
from quant.analysis.compare import megabytes_at_bits
from tests.conftest import photos, spec
from tests.packed import exported


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
