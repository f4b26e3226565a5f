"""Integer layers of every shape on every engine: exact at full range."""

import os

import pytest
import torch
from torch import nn

import quant
from quant.engines.base import FLOAT32_KERNEL
from quant.engines.verify import choose_kernel, input_shape, layer_difference, with_full_range_weights
from tests.conftest import KERNELS, photos
from tests.helpers import assert_layerwise_exact, converts_exactly, prepared_with


@pytest.mark.parametrize("bits", [3, 8])
def test_a_linear_layer_on_maps_is_clamped(bits):
    """Its integers lie in another order in memory than a convolution's."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Linear(16, 12), nn.ReLU6(), nn.Flatten(), nn.Linear(1536, 3))
    with torch.no_grad():
        net[2].weight.mul_(20)
    converts_exactly(net, photos(4, 16), weight_bits=bits, act_bits=bits, residual_bits=bits)


VNNI = torch.cpu._is_vnni_supported() and "ONEDNN_MAX_CPU_ISA" not in os.environ


# name: (in, out, kernel, stride, groups)
CONVOLUTIONS = {
    "1x1": (32, 48, 1, 1, 1),
    "3x3": (16, 24, 3, 1, 1),
    "5x5": (8, 16, 5, 1, 1),
    "3x3 stride 2": (16, 24, 3, 2, 1),
    "1x1 stride 2": (16, 24, 1, 2, 1),
    "stem": (3, 16, 3, 1, 1),
    "grouped": (32, 32, 3, 1, 4),
    "wide": (512, 64, 3, 1, 1),
    "depthwise 58": (58, 58, 3, 1, 58),
    "depthwise 64": (64, 64, 3, 1, 64),
    "depthwise 104 stride 2": (104, 104, 3, 2, 104),
    "depthwise 120 5x5": (120, 120, 5, 1, 120),
}


@pytest.mark.parametrize("engine", KERNELS)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(engine, bits, bias, name):
    """conv -> conv + BN + ReLU -> conv, so that the middle one reads `bits` and writes `bits`."""
    c_in, c_out, kernel, stride, groups = CONVOLUTIONS[name]
    module = nn.Sequential(
        nn.Conv2d(3, c_in, 1),
        nn.ReLU(),
        nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=bias),
        nn.BatchNorm2d(c_out),
        nn.ReLU(),
        nn.Conv2d(c_out, 8, 1),
        nn.Flatten(),
        nn.Linear(8 * (10 // stride) ** 2, 5),
    )
    prepared, images = prepared_with(module, bits, (3, 10, 10))
    assert_layerwise_exact(prepared, engine, images)


@pytest.mark.parametrize("engine", KERNELS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_no_convolution_saturates(engine, name):
    """The kernel that conversion picks is exact with weights of +-127 and inputs of 0..255."""
    c_in, c_out, kernel, stride, groups = CONVOLUTIONS[name]
    module = nn.Sequential(
        nn.Conv2d(3, c_in, 1), nn.ReLU(), nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups), nn.ReLU()
    )
    module.append(nn.Conv2d(c_out, 8, 1))
    prepared, _ = prepared_with(module, 8, (3, 10, 10))
    layer = with_full_range_weights(quant.convert(prepared, "reference").layers["2"].layer, 127)
    chosen, operator, _ = choose_kernel(quant.engine(engine), layer)
    n = torch.randint(0, 256, (32, c_in, 10, 10)).float() - float(layer.x.zero_point)
    found = layer_difference(quant.engine(engine), layer, operator, n.contiguous(memory_format=torch.channels_last))
    assert found.within(), f"{chosen}: {found}"


@pytest.mark.parametrize("engine", KERNELS)
def test_every_layer_of_a_net_at_full_range(engine, net):
    """Each layer of the trained nets with weights of +-127 and inputs from the whole grid."""
    backend, fresh = quant.engine(engine), torch.Generator().manual_seed(7)
    for name, converted in quant.convert(net, "reference").layers.items():
        layer = with_full_range_weights(converted.layer, 127)
        kernel, operator, _ = choose_kernel(backend, layer)
        q = torch.randint(layer.x.q_min, layer.x.q_max + 1, input_shape(layer), generator=fresh)
        n = (q - layer.x.zero_point).float()
        n = n if layer.geometry.linear else n.contiguous(memory_format=torch.channels_last)
        found = layer_difference(backend, layer, operator, n)
        assert found.within(), f"{name} on {kernel}: {found}"
        if engine in ("fbgemm", "x86", "onednn") and VNNI:
            assert kernel != FLOAT32_KERNEL, f"{name}: no int8 kernel is exact"


def test_depthwise_layers_do_not_run_on_the_saturating_kernel(net):
    if "fbgemm" not in KERNELS or "onednn" not in KERNELS:
        pytest.skip("this build of torch lacks fbgemm or onednn")
    for converted in quant.convert(net, "fbgemm").layers.values():
        if converted.layer.geometry.groups > 1:
            assert converted.kernel.startswith("onednn")
