"""Every engine reproduces the integer arithmetic: single layers at full range, and each layer of whole trained nets."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.engines.base import FLOAT32_KERNEL, Engine
from quant.engines.convert import convert
from quant.engines.layerwise_check import forced
from quant.engines.verify import choose_kernel, input_shape, layer_difference, with_full_range_weights
from quant.ptq.calibrate import calibrate
from tests.conftest import KERNELS as ENGINES
from tests.conftest import spec
from utils.environment import environment

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


def full_range(module: nn.Module) -> None:
    """Even random weights, and batch norms with negative and zero gamma."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            with torch.no_grad():
                layer.weight.uniform_(-1, 1)
        if isinstance(layer, nn.BatchNorm2d):
            with torch.no_grad():
                layer.weight.uniform_(-1, 1)
                layer.weight[::5] = 0
                layer.bias.normal_()
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)


def prepared_with(module: nn.Module, bits: int, shape: tuple[int, ...]):
    """The module prepared at `bits` everywhere and calibrated on even random images, and such images."""
    images = torch.rand(16, *shape).mul_(2).sub_(1).contiguous(memory_format=torch.channels_last)
    full_range(module)
    settings = spec(method="ptq", weight_bits=bits, act_bits=bits, first_last_bits="same", residual_bits=bits)
    prepared = quant.prepare(module.eval(), settings)
    calibrate(prepared, [images])
    return prepared, images


def assert_forced_equal(prepared, engine: str, images):
    model = quant.convert(prepared, engine)
    differences = forced(prepared, model, images)
    assert differences
    for name, found in differences.items():
        assert found.within(), f"{name}: {found}"
    return model


@pytest.mark.parametrize("engine", ENGINES)
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
    assert_forced_equal(prepared, engine, images)


@pytest.mark.parametrize("engine", ENGINES)
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


class Residual(nn.Module):
    """Additions with and without ReLU and ReLU6, pools, a max-pool and a strided, padded shortcut."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 24, 1)
        self.pool, self.average, self.relu6 = nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 2, 1), nn.ReLU6()
        self.fc = nn.Linear(24, 7)

    def forward(self, x):
        x = self.pool(F.relu(self.a(x)))
        x = x + self.b(x)
        x = F.relu(x + F.avg_pool2d(x, 3, 1, 1))
        y = self.c(self.average(x))
        x = self.relu6(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_additions_pools_and_linear(engine, bits):
    prepared, images = prepared_with(Residual(), bits, (3, 16, 16))
    model = assert_forced_equal(prepared, engine, images)
    assert sum(name.startswith("operators.add") for name in model.operators) == 3
    assert len(model.layers) == 4


@pytest.mark.parametrize("engine", ENGINES)
def test_adaptive_pool_with_overlapping_bins(engine):
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(6),
        nn.Flatten(),
        nn.Linear(16 * 36, 20),
        nn.ReLU(),
        nn.Linear(20, 5),
    )
    prepared, images = prepared_with(module, 8, (3, 9, 9))
    assert_forced_equal(prepared, engine, images)


class Shuffle(nn.Module):
    """A channel split, two branches, a concatenation and a channel shuffle by the tensor's own sizes."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 8, 1)
        self.head, self.fc = nn.Conv2d(16, 8, 1), nn.Linear(8, 5)

    def forward(self, x):
        a, b = F.relu(self.stem(x)).chunk(2, dim=1)
        x = torch.cat([a, F.relu(self.branch(b))], dim=1)
        n, channels, height, width = x.size()
        x = x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, x.shape[2], x.shape[3])
        return self.fc(F.hardswish(self.head(x)).mean([2, 3]))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("bits", [4, 8])
def test_split_concatenate_shuffle(engine, bits):
    prepared, images = prepared_with(Shuffle(), bits, (3, 10, 10))
    model = assert_forced_equal(prepared, engine, images)
    assert len(model.layers) == 4


@pytest.mark.parametrize("engine", ENGINES)
def test_whole_net_on_real_images(engine, net, digits32):
    """Forced equality of every operator on real images; and the same predictions, with an accuracy that means it."""
    _, images, labels = digits32
    model = assert_forced_equal(net, engine, images)
    with torch.inference_mode():
        simulated, integer = net(images), model(images)
    assert (simulated.argmax(1) == labels).float().mean() >= 0.95
    assert (simulated.argmax(1) == integer.argmax(1)).float().mean() >= 0.995
    assert torch.equal(simulated, integer), "all logits are the same to the bit"


@pytest.mark.parametrize("engine", ENGINES)
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


@pytest.mark.parametrize("engine", [e for e in ENGINES if e != "reference"])
def test_running_does_not_depend_on_the_global_engine(engine, net, digits32):
    _, images, _ = digits32
    model, before = quant.convert(net, engine), torch.backends.quantized.engine
    expected = model(images[:16])
    try:
        for other in torch.backends.quantized.supported_engines:
            torch.backends.quantized.engine = other
            assert torch.equal(model(images[:16]), expected)
            assert torch.backends.quantized.engine == other, "left as it was"
    finally:
        torch.backends.quantized.engine = before


def test_depthwise_layers_do_not_run_on_the_saturating_kernel(net):
    if "fbgemm" not in ENGINES or "onednn" not in ENGINES:
        pytest.skip("this build of torch lacks fbgemm or onednn")
    for converted in quant.convert(net, "fbgemm").layers.values():
        if converted.layer.geometry.groups > 1:
            assert converted.kernel.startswith("onednn")


class Broken(Engine):
    """An engine whose best kernel adds one to each weight, and whose second refuses every layer."""

    name = "broken"

    def kernels(self, layer):
        return ("wrong", "absent", FLOAT32_KERNEL)

    def layer(self, layer, kernel):
        if kernel == "absent":
            raise RuntimeError("not in this build")
        return layer if kernel == FLOAT32_KERNEL else replace(layer, weight=layer.weight + 1)


def test_a_wrong_or_absent_kernel_is_passed_over():
    prepared, images = prepared_with(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(512, 3)), 8, (3, 10, 10))
    model = convert(prepared, Broken())
    assert {converted.kernel for converted in model.layers.values()} == {FLOAT32_KERNEL}
    assert torch.equal(model(images), prepared(images))


@pytest.mark.skipif("ONEDNN_MAX_CPU_ISA" in os.environ, reason="this is that run")
@pytest.mark.skipif("onednn" not in ENGINES, reason="this build of torch lacks onednn")
@pytest.mark.skipif(not any("vnni" in flag for flag in environment()["cpu_flags"]), reason="so does this CPU")
def test_all_of_this_holds_without_vnni(nets_folder):
    """oneDNN held to AVX2, whose int8 kernels saturate: the same tests, in a process of their own."""
    held = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "TRAINED_NETS": str(nets_folder)}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=held, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("engine", ENGINES)
def test_an_addition_of_one_channel_to_many(engine):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 1, 1), nn.Linear(8, 5)

        def forward(self, x):
            y = F.relu(self.a(x))
            return self.fc(F.relu(self.b(y) + y).mean((2, 3)))

    prepared, images = prepared_with(Net(), 8, (3, 10, 10))
    assert torch.equal(quant.convert(prepared, engine)(images), prepared(images))


def test_an_average_of_more_pixels_than_fp32_can_sum():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    prepared, _ = prepared_with(net, 8, (3, 10, 10))
    images = 0.9 + 0.1 * torch.rand(1, 3, 600, 600)
    model = quant.convert(prepared, "reference")
    with torch.inference_mode():
        assert torch.equal(model(images), prepared(images))
        assert torch.equal(model(images.contiguous(memory_format=torch.channels_last)), prepared(images))
