"""quant.symmetric_activations: zero point 0 and int8 in every method, on every engine and in the ONNX file."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.core.grid import Grid
from quant.core.quantizer import ActivationQuantizer
from quant.core.symmetric import check_symmetric, with_symmetric_activations
from quant.core.uniform import affine
from quant.engines.onnx_sessions import onnxruntime_session
from tests.conftest import KERNELS, RUNTIMES, photos, spec, with_real_statistics
from utils.errors import UserError

METHODS = [name for name in quant.METHODS if name != "float"]


class Net(nn.Module):
    """Values of both signs and of one, and every kind of integer operator."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 1)
        self.norm, self.fc, self.last = nn.BatchNorm2d(8), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.a(x)))
        y = F.max_pool2d(F.pad(self.b(x) + x, (1, 1, 1, 1)), 3, 1)
        y = F.hardswish(self.c(torch.cat([x, y], 1))) * torch.sigmoid(x.mean((2, 3), keepdim=True))
        return self.last(F.relu(self.fc(y.mean((2, 3)))))


class Halved(nn.Module):
    def forward(self, x):
        return x * 0.5


def prepared(images, **keys):
    model = quant.prepare(with_real_statistics(Net(), images), spec(**keys))
    quant.calibrate(model, [images])
    return model.eval()


def activations(model) -> list[ActivationQuantizer]:
    return [q for q in quant.quantizers(model).values() if isinstance(q, ActivationQuantizer)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [8, 4])
def test_every_grid_has_zero_point_0_and_fits_int8_and_engines_agree(method, bits):
    images = photos(8, 16)
    weights = min(bits, 6) if method == "dorefa" else bits
    model = prepared(images, method=method, weight_bits=weights, act_bits=bits, symmetric_activations=True)
    grids = [quantizer.grid() for quantizer in activations(model)]
    assert all(int(grid.zero_point) == 0 and grid.q_min >= -128 and grid.q_max <= 127 for grid in grids)
    assert any(grid.q_min < 0 for grid in grids)
    assert any(grid.q_min == 0 for grid in grids)
    with torch.inference_mode():
        simulated = model(images)
    for engine in KERNELS:
        assert torch.equal(quant.convert(model, engine)(images), simulated), engine


@pytest.mark.skipif("onnxruntime" not in RUNTIMES, reason="onnxruntime is not installed")
@pytest.mark.parametrize("method", METHODS)
def test_the_file_has_int8_and_zeros_for_zero_points_and_predicts_what_is_simulated(method, tmp_path):
    onnx = pytest.importorskip("onnx")
    images = photos(16, 16)
    model = prepared(images, method=method, weight_bits=4, act_bits=8, symmetric_activations=True)
    quant.export_onnx(model, tmp_path / "model.onnx", 16, {})
    graph = onnx.load(tmp_path / "model.onnx").graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    ends = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zeros = [values[node.input[2]] for node in ends if len(node.input) > 2]  # weights and biases have none: 0
    assert len(zeros) > 20
    assert all(zero.dtype == "int8" and zero == 0 for zero in zeros)
    assert not any(node.op_type in ("MatMulInteger", "ConvInteger") for node in graph.node)
    session = onnxruntime_session((tmp_path / "model.onnx").read_bytes(), images.shape, 1)
    with torch.inference_mode():
        simulated = model(images)
    assert torch.allclose(session(images), simulated, rtol=1e-5, atol=1e-5 * float(simulated.abs().max()))


def test_without_the_option_nothing_is_symmetric():
    images = photos(8, 16)
    model = prepared(images, method="ptq")
    assert not any(quantizer.symmetric for quantizer in activations(model))
    assert any(int(quantizer.grid().zero_point) != 0 for quantizer in activations(model))


def test_a_grid_with_a_zero_point_or_beyond_int8_is_refused():
    zero = torch.zeros((), dtype=torch.int32)
    check_symmetric(Grid(torch.tensor(0.1), zero, -128, 127), "Mine")
    with pytest.raises(UserError, match=r"^quant.symmetric_activations: Mine has a zero point"):
        check_symmetric(Grid(torch.tensor(0.1), zero + 3, -128, 127), "Mine")
    with pytest.raises(UserError, match=r"^quant.symmetric_activations: 0 .. 255 of Mine do not fit in int8"):
        check_symmetric(Grid(torch.tensor(0.1), zero, 0, 255), "Mine")


def test_one_signed_bit_is_refused():
    method = with_symmetric_activations(quant.METHODS["ptq"])
    assert method.residual is method.activation
    with pytest.raises(UserError, match="needs 2 bits or more"):
        method.activation(spec(method="ptq"), 1, True)


def test_a_symmetric_range_reaches_as_far_as_the_larger_end():
    quantizer = affine(8, "minmax")
    quantizer.make_symmetric(signed=True)
    quantizer.train()(torch.tensor([-2.0, 1.0]))
    grid = quantizer.grid()
    assert (grid.q_min, grid.q_max, int(grid.zero_point)) == (-127, 127, 0)
    assert torch.isclose(grid.scale, torch.tensor(2 / 127))


def test_float_activations_do_not_read_the_option():
    with pytest.raises(UserError, match=r"^quant.symmetric_activations: no activations are quantized"):
        quant.check_run(spec(method="lsq", act_bits=32, symmetric_activations=True), 1, False)


@pytest.mark.skipif("onnxruntime" not in RUNTIMES, reason="onnxruntime is not installed")
def test_a_function_that_is_a_table_has_int8_entries(tmp_path):
    """x / 2 on the grid of x: every other value is a tie."""
    onnx = pytest.importorskip("onnx")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), Halved(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(784, 3))
    images = photos(8, 16)
    model = quant.prepare(net.eval(), spec(method="ptq", symmetric_activations=True))
    quant.calibrate(model, [images])
    found = quant.quantizers(model)
    found["operators.mul.output"].low.copy_(found["0.output"].low)
    found["operators.mul.output"].high.copy_(found["0.output"].high)
    quant.export_onnx(model.eval(), tmp_path / "model.onnx", 16, {})
    assert "Gather" in [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    session = onnxruntime_session((tmp_path / "model.onnx").read_bytes(), images.shape, 1)
    with torch.inference_mode():
        assert torch.allclose(session(images), model(images), rtol=1e-5, atol=1e-6)
