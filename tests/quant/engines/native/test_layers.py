"""Integer layers of every shape on every engine: exact at full range."""

import functools
import os

import pytest
import torch
from torch import nn

import quant
from quant.core.integer_layer import Geometry, IntegerLayer
from quant.engines.base import FLOAT32_KERNEL
from quant.engines.native import NativeEngine
from quant.engines.onednn import OnednnEngine
from quant.engines.onednn.layers import SUMS
from quant.engines.verify import choose_kernel, input_shape, layer_difference, with_full_range_weights
from tests.conftest import KERNELS, photos
from tests.helpers import assert_layerwise_exact, converts_exactly, grid, prepared_with


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


def normed(name: str, bias: bool) -> list[nn.Module]:
    c_in, c_out, kernel, stride, groups = CONVOLUTIONS[name]
    conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=bias)
    return [conv, nn.BatchNorm2d(c_out), nn.ReLU()]


@functools.lru_cache(maxsize=2)  # engines come after each other
def prepared_convolutions(bits: int, name: str):
    """Between 1x1 convolutions, the convolution with a bias and without, so that both read and write `bits`; images."""
    c_in, c_out, _, stride, _ = CONVOLUTIONS[name]
    between = nn.Conv2d(c_out, c_in, 1)
    module = nn.Sequential(
        *(nn.Conv2d(3, c_in, 1), nn.ReLU(), *normed(name, True), between, nn.ReLU(), *normed(name, False)),
        *(nn.Conv2d(c_out, 8, 1), nn.Flatten(), nn.Linear(8 * {1: 10, 2: 3}[stride] ** 2, 5)),
    )
    return prepared_with(module, bits, (3, 10, 10))


@pytest.mark.parametrize("engine", KERNELS)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(engine, bits, name):
    """With a bias and without."""
    prepared, images = prepared_convolutions(bits, name)
    assert_layerwise_exact(prepared, engine, images)


@functools.lru_cache(maxsize=2)
def full_range_convolution(name: str) -> tuple[IntegerLayer, torch.Tensor]:
    """The integer layer of a convolution with weights up to +-127, and inputs of 0..255."""
    c_in, c_out, kernel, stride, groups = CONVOLUTIONS[name]
    module = nn.Sequential(
        nn.Conv2d(3, c_in, 1), nn.ReLU(), nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups), nn.ReLU()
    )
    module.append(nn.Conv2d(c_out, 8, 1))
    prepared, _ = prepared_with(module, 8, (3, 10, 10))
    layer = with_full_range_weights(quant.convert(prepared, "reference").layers["2"].layer, 127)
    n = torch.randint(0, 256, (32, c_in, 10, 10)).float() - float(layer.x.zero_point)
    return layer, n.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("engine", KERNELS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_no_convolution_saturates(engine, name):
    """The kernel that conversion picks is exact with weights of +-127 and inputs of 0..255."""
    layer, n = full_range_convolution(name)
    chosen, operator, _ = choose_kernel(quant.engine(engine), layer)
    found = layer_difference(quant.engine(engine), layer, operator, n)
    assert found.counts_as_exact(), f"{chosen}: {found}"


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
        assert found.counts_as_exact(), f"{name} on {kernel}: {found}"
        if engine in ("fbgemm", "x86", "onednn") and VNNI:
            assert kernel != FLOAT32_KERNEL, f"{name}: no int8 kernel is exact"


def test_depthwise_layers_do_not_run_on_the_saturating_kernel(net):
    if "fbgemm" not in KERNELS or "onednn" not in KERNELS:
        pytest.skip("this build of torch lacks fbgemm or onednn")
    for converted in quant.convert(net, "fbgemm").layers.values():
        if converted.layer.geometry.groups > 1:
            assert converted.kernel.startswith("onednn")


needs_onednn = pytest.mark.skipif("onednn" not in KERNELS, reason="this build of torch lacks onednn")


def layer_of(multiplier: float, bias: float, groups: int, y_bits: int | None = 8) -> IntegerLayer:
    """A 1x1 convolution of 4 channels whose multipliers and biases are all the same."""
    weight, y = torch.ones(4, 4 // groups, 1, 1), None if y_bits is None else grid(1.0, 0, y_bits)
    geometry = Geometry((1, 1), (0, 0), (1, 1), groups)
    return IntegerLayer(geometry, weight, torch.full((4,), multiplier), torch.full((4,), bias), grid(1.0, 0), y, 0, 255)


CASES = {
    "off ties": (1 / 4095, 100.0),
    "a multiplier below 1 / 4,095": (1 / 4101, 100.0),
    "a bias of more than 512 steps": (0.5, 1026.0),
    "a negative bias of more than 512 steps": (0.5, -1026.0),
}


@needs_onednn
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("groups", [1, 2, 4], ids=["dense", "in groups", "depthwise"])
def test_onednn_rounds_by_itself_only_off_ties(groups, case):
    """fbgemm has its own kernel first, if the layer is not depthwise, and oneDNN's for groups."""
    layer = layer_of(*CASES[case], groups)
    assert layer.off_ties() == (case == "off ties")
    onednn, exact = ("onednn",) if case == "off ties" else (), (SUMS, FLOAT32_KERNEL)
    for name in ("onednn", "x86"):
        assert OnednnEngine(name).kernels(layer) == (*onednn, *exact)
    first = {1: ("fbgemm",), 2: ("fbgemm", *onednn), 4: onednn}[groups]
    assert NativeEngine("fbgemm").kernels(layer) == (*first, *exact)


@needs_onednn
def test_logits_leave_every_engine_but_qnnpack_as_exact_sums():
    layer = layer_of(0.5, 0.0, 1, None)
    for engine in (NativeEngine("fbgemm"), OnednnEngine("x86"), OnednnEngine("onednn")):
        assert engine.kernels(layer) == (SUMS, FLOAT32_KERNEL)
    assert NativeEngine("qnnpack").kernels(layer) == (FLOAT32_KERNEL,)
    assert NativeEngine("qnnpack").kernels(layer_of(0.5, 0.0, 1)) == ("qnnpack", FLOAT32_KERNEL)


@needs_onednn
def test_a_layer_of_one_channel_is_not_depthwise():
    one, x = torch.ones(1), grid(1.0, 0)
    layer = IntegerLayer(Geometry((1, 1), (0, 0), (1, 1)), one.view(1, 1, 1, 1), one, one, x, x, 0, 255)
    assert NativeEngine("fbgemm").kernels(layer)[0] == "fbgemm"


@needs_onednn
def test_a_bias_that_the_sums_cancel_is_exact_on_onednn():
    """A linear layer whose biases are 4,000 output steps and whose weights are all -127. oneDNN's own kernel rounds
    some of these sums to a neighbouring integer: in fp32, 4,000 steps away from zero, ties are too near."""
    m = (torch.randint(1, 30, (64,)).double() / 4095).float()
    full = (4000 / m / (255 * 127)).floor()  # inputs that are always 255, each of which takes 255 * 127 from the bias
    columns = torch.arange(float(full.max()))
    weight = torch.cat([torch.tensor([[-127.0, -1.0]]).expand(64, 2), -127.0 * (columns < full[:, None])], 1)
    bias = (full * 255 * 127 + torch.rand(64) * 200 / m).round()
    layer = IntegerLayer(Geometry(), weight, m, bias, grid(1.0, 0), grid(1.0, 0), 0, 255)
    some = torch.cartesian_prod(torch.arange(256.0), torch.arange(0.0, 256.0, 4))
    n = torch.cat([some, torch.full((len(some), len(columns)), 255.0)], 1)
    engine = quant.engine("onednn")
    _, operator, _ = choose_kernel(engine, layer)
    assert layer_difference(engine, layer, operator, n).differing == 0


WEIGHTS = {
    "dense": ((16, 8, 3, 3), 1),
    "grouped": ((16, 4, 3, 3), 2),
    "depthwise": ((8, 1, 3, 3), 8),
    "linear": ((16, 24), 0),
}


@pytest.mark.parametrize("engine", [name for name in KERNELS if name != "reference"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("bounds", ["all", "relu", "relu at zero", "between"])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_every_kernel_that_may_run_a_layer_computes_it(kind, bounds, bits, engine):
    """Also those behind the first: one that is wrong would be skipped in silence. Weights of 63 saturate nowhere."""
    shape, groups = WEIGHTS[kind]
    most, zero = 2**bits - 1, 0 if bounds == "relu at zero" else 2 ** (bits - 2)
    geometry = Geometry((1, 1), (1, 1), (1, 1), groups) if groups else Geometry()
    weight, x, y = torch.randint(-63, 64, shape).float(), grid(0.02, 5, bits), grid(1.0, zero, bits)
    spread = 63 * most / 3 * weight[0].numel() ** 0.5
    scale = (0.5 + torch.rand(shape[0])) * most / spread / 0.02
    lo, hi = {"all": (0, most), "between": (zero - 1, most - 2)}.get(bounds, (zero, most))
    given = geometry, weight, scale, (torch.randn(shape[0]) * spread / 4).round(), x
    n = torch.randint(-5, most - 4, (4, shape[1] * max(groups, 1), 9, 9) if groups else (64, shape[1])).float()
    n = n.contiguous(memory_format=torch.channels_last) if groups else n
    backend = quant.engine(engine)
    for layer in (IntegerLayer(*given, y, lo, hi), IntegerLayer(*given, None, 0, 0)):
        for kernel in backend.kernels(layer):
            found = layer_difference(backend, layer, backend.layer(layer, kernel), n)
            assert found.counts_as_exact(), f"{kernel}: {found}"
