"""What tests of several modules share: small grids, nets prepared and calibrated, and checks of whole models."""

import copy

import torch
from torch import nn

import models
import quant
from quant.core.grid import Grid
from quant.engines.layerwise_check import check_layerwise
from quant.engines.nhwc_builder import Builder
from quant.engines.nhwc_writer import write
from quant.engines.program_kernels import exported
from quant.graph.quant_layers import QuantLayer
from quant.ptq.calibrate import calibrate
from tests.conftest import KERNELS, photos, spec, with_real_statistics
from tests.nets import Gated

FORMS = [(name, form) for name, row in models.MODELS.items() for form in row.forms]
LARGE = ("alexnet", "vgg", "resnext")
SMALL = [(name, form) for name, form in FORMS if not name.startswith(LARGE)] + [("alexnet", "cifar")]
"""Without those of 60 million parameters and more, whose graphs alone are tested, on no memory."""


def other_arguments(row: str) -> tuple:
    """What the function of a row of the table of operators reads besides the tensors that a net computes."""
    if row == "pad_constant":
        return [1, 1], "constant", 0.5
    if row == "pow_scalar":
        return (3,)
    if row == "prelu":
        return (torch.tensor([0.25]),)
    if row.endswith("_constant"):
        return (torch.tensor([0.5]),)
    return (0.5,) if row.endswith("_scalar") else ()


def size_of(name: str, form: str) -> int:
    return models.MODELS[name].image_size or max(32, models.MODELS[name].min_image_size.get(form, 0))


def build(name: str, form: str) -> nn.Module:
    return models.build(name, 10, size_of(name, form), {"form": form})


def structure(name: str, form: str) -> nn.Module:
    with torch.device("meta"):
        return build(name, form)


def bits(prepared) -> dict[str, tuple[int, int | None]]:
    return {
        name: (m.weight_quantizer.bits, m.output and m.output.bits)
        for name, m in prepared.named_modules()
        if isinstance(m, QuantLayer)
    }


def simulated_against_float(net: nn.Module, shape=(3, 12, 12), **keys):
    """How far an 8-bit calibrated net is from its float self, relative to the largest value; and the prepared net."""
    net, x = net.eval(), torch.randn(64, *shape)
    expected = net(x)
    prepared = quant.prepare(copy.deepcopy(net), spec(method="ptq", **keys))
    quant.calibrate(prepared, [x])
    found = prepared(x)
    for engine in ("reference", quant.parse().engine):
        assert torch.allclose(quant.convert(prepared, engine)(x), found, atol=1e-4), engine
    return ((found - expected).abs().max() / expected.abs().max()).item(), prepared


def prepared_like_float(net: nn.Module, x: torch.Tensor):
    """The prepared net, whose logits without quantizers must be those of the float net."""
    net = net.eval()
    expected = net(x)
    prepared = quant.prepare(net, spec(method="ptq"))
    quant.set_enabled(prepared, False)
    assert torch.allclose(prepared.eval()(x), expected, rtol=1e-4, atol=1e-5)
    return prepared


def grid(scale: float, zero_point: int, bits: int = 8) -> Grid:
    return Grid(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), 0, 2**bits - 1)


def prepared_gated(**keys):
    images = photos(8, 16)
    prepared = quant.prepare(with_real_statistics(Gated(), images), spec(**({"method": "ptq"} | keys)))
    quant.calibrate(prepared, [images])
    return prepared, images


def float_range(quantizer) -> torch.Tensor:
    grid = quantizer.grid()
    return grid.scale * (torch.tensor([grid.q_min, grid.q_max]) - grid.zero_point)


def converts_exactly(net: nn.Module, images: torch.Tensor, **keys) -> quant.IntegerModel:
    """On every engine, and the model of the last."""
    prepared = quant.prepare(net.eval(), spec(**({"method": "ptq"} | keys)))
    quant.calibrate(prepared, [images])
    with torch.inference_mode():
        simulated = prepared(images)
        for engine in KERNELS:
            model = quant.convert(prepared, engine)
            assert torch.equal(model(images), simulated), engine
    return model


def assert_all_in_integers(net: nn.Module, images: torch.Tensor, tolerance: float):
    """On every engine the net has the logits that are simulated, which are near those in float, and nothing in it runs
    in float. Returns the prepared net."""
    with torch.no_grad():
        expected = net(images)
    found = converts_exactly(net, images)(images)
    assert (found - expected).abs().max() < tolerance * expected.abs().max()
    prepared = calibrated(net, images)
    rows = quant.layer_rows(prepared, quant.convert(prepared, "reference"))
    assert [row for row in rows if row[4] == "float"] == []
    return prepared


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


def assert_layerwise_exact(prepared, engine: str, images):
    model = quant.convert(prepared, engine)
    differences = check_layerwise(prepared, model, images)
    assert differences
    for name, found in differences.items():
        assert found.counts_as_exact(), f"{name}: {found}"
    return model


def calibrated(model: nn.Module, images: torch.Tensor, **keys):
    prepared = quant.prepare(with_real_statistics(model, images), spec(**({"method": "ptq"} | keys)))
    quant.calibrate(prepared, [images])
    return prepared


def run_on(builder: type[Builder], module: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
    """The output of a module as a program of the builder's runtime."""
    to = builder()
    to.output(write(to, exported(module, *inputs), [to.input(x.shape) for x in inputs]))
    return to.loaded()(*inputs)[0].clone()
