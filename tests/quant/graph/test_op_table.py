"""Operators without weights: their arithmetic against NumPy, and how whole nets come to consist of integers."""

import copy

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
import quant
from quant.core.activation import IDENTITY, ClampedAffine
from quant.core.grid import Grid
from quant.core.integer_operator import integer_operator
from quant.engines.verify import choose_operator
from quant.graph.op_table import HARD_SIGMOID, roles
from quant.graph.quant_layers import QuantLayer, QuantOperator
from tests.conftest import KERNELS, photos, spec, with_real_statistics

METHODS = [name for name in quant.METHODS if name != "float"]


def grid(scale: float, zero_point: int, bits: int = 8) -> Grid:
    return Grid(torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), 0, 2**bits - 1)


def pairs(x: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Every pair of centred integers of a grid."""
    n = torch.arange(x.q_min, x.q_max + 1.0) - int(x.zero_point)
    p, q = torch.meshgrid(n, n, indexing="ij")
    return p.contiguous(), q.contiguous()


def to_grid(value: numpy.ndarray, y: Grid, low: float, high: float) -> numpy.ndarray:
    """Centred integers of real values, in fp64, and how near each is to a tie."""
    steps = numpy.clip(value, low, high) / float(y.scale)
    return numpy.clip(numpy.rint(steps) + int(y.zero_point), y.q_min, y.q_max) - int(y.zero_point)


@pytest.mark.parametrize("bounds", [IDENTITY, ClampedAffine(0.0, float("inf")), ClampedAffine(0.0, 6.0)])
@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize(("kind", "run"), [("add", torch.add), ("mul", torch.mul)])
def test_sums_and_products_of_every_pair(kind, run, bits, bounds):
    x, y = grid(0.0831, 3, bits), grid(0.0927, 5, bits)
    op = integer_operator(kind, run, (x, x), y, bounds)
    p, q = pairs(x)
    a, b = (float(x.scale) * n.double().numpy() for n in (p, q))
    exact = a + b if kind == "add" else a * b
    ours, theirs = op(p.clone(), q.clone()).numpy(), to_grid(exact, y, bounds.low, bounds.high)
    fraction = numpy.abs(exact / float(y.scale)) % 1
    clear = numpy.abs(fraction - 0.5) > 1e-4  # at ties fp32 may round the other way
    assert (ours == theirs)[clear].all()
    assert clear.mean() > 0.98


def test_averages_are_rounded_once():
    x, y = grid(0.05, 100), grid(0.03, 90)
    op = integer_operator("average", lambda v: v.mean((2, 3)), (x,), y, IDENTITY)
    q = torch.randint(0, 256, (4, 8, 7, 5))
    n = (q - 100).float()
    exact = float(x.scale) * n.double().numpy().mean((2, 3))
    ours, theirs = op(n).numpy(), to_grid(exact, y, -1e9, 1e9)
    clear = numpy.abs(numpy.abs(exact / float(y.scale)) % 1 - 0.5) > 1e-4
    assert (ours == theirs)[clear].all()


FUNCTIONS = {
    "hardswish": (F.hardswish, lambda v: v * numpy.clip(v + 3, 0, 6) / 6),
    "sigmoid": (torch.sigmoid, lambda v: 1 / (1 + numpy.exp(-v))),
    "silu": (F.silu, lambda v: v / (1 + numpy.exp(-v))),
    "tanh": (torch.tanh, numpy.tanh),
}


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_a_table(name, bits):
    ours, theirs = FUNCTIONS[name]
    x, y = grid(12.0 / 2**bits, 2 ** (bits - 1), bits), grid(6.0 / 2**bits, 2 ** (bits - 3), bits)
    op = integer_operator("function", ours, (x,), y, IDENTITY)
    n = torch.arange(2.0**bits) - int(x.zero_point)
    exact = theirs(float(x.scale) * n.double().numpy())
    clear = numpy.abs(numpy.abs(exact / float(y.scale)) % 1 - 0.5) > 1e-4
    assert (op(n).numpy() == to_grid(exact, y, -1e9, 1e9))[clear].all()
    assert torch.equal(op.table(), op(n))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("engine", KERNELS)
def test_every_engine_computes_every_integer_as_the_operator_does(engine, bits):
    """All pairs of integers; maps with one value a channel; grids whose zero points are at either end."""
    backend = quant.engine(engine)
    for x_zero, y_zero in ((0, 0), (2**bits - 1, 1), (2 ** (bits - 1), 2 ** (bits - 1))):
        x, y = grid(8.0 / 2**bits, x_zero, bits), grid(7.0 / 2**bits, y_zero, bits)
        one = (torch.arange(2.0**bits) - x_zero).reshape(1, -1, 1, 1)
        every = one.flatten().expand(1, 2**bits, 1, 2**bits).contiguous()
        for kind, run, given in (
            ("add", torch.add, (one, every)),
            ("mul", torch.mul, (every, one)),
            ("mul", torch.mul, (one, every)),
            ("function", F.hardswish, (every,)),
            ("function", torch.sigmoid, (every,)),
            ("average", lambda v: F.avg_pool2d(v, (1, 2)), (every,)),
        ):
            op = integer_operator(kind, run, (x,) * len(given), y, IDENTITY)
            _, operator = choose_operator(backend, op)
            with backend.running():
                found = operator(*(backend.to_native(x)(n) for n in given))
            assert torch.equal(backend.centred(y)(found), op(*given)), f"{kind} {run}"


class Gated(nn.Module):
    """Squeeze and excitation with a hard-sigmoid, hard-swish, and a chain of concatenations."""

    def __init__(self):
        super().__init__()
        self.stem, self.squeeze, self.excite = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.norm, self.gate = nn.BatchNorm2d(8), nn.Hardsigmoid()
        self.left, self.right, self.last = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(10, 5, 1)
        self.fc = nn.Linear(23, 3)

    def forward(self, x):
        x = F.hardswish(self.norm(self.stem(x)))
        x = x * self.gate(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = torch.cat([F.relu(self.left(x)), F.max_pool2d(F.relu(self.right(x)), 3, 1, 1)], 1)
        x = torch.cat([x, F.relu(self.last(x)), F.avg_pool2d(x[:, :8], 3, 1, 1)], 1)
        return self.fc(x.mean((2, 3)))


def prepared_gated(**keys):
    images = photos(8, 16)
    prepared = quant.prepare(with_real_statistics(Gated(), images), spec(**({"method": "ptq"} | keys)))
    quant.calibrate(prepared, [images])
    return prepared, images


def test_a_hard_sigmoid_is_the_line_of_a_batch_norm():
    prepared, _ = prepared_gated()
    excite = prepared.get_submodule("excite")
    assert excite.bounds == HARD_SIGMOID
    assert "gate" not in [node.target for node in prepared.graph.nodes], "no operator of its own"
    source = prepared.get_submodule("squeeze").output
    x = source(torch.rand(64, 4, 1, 1))
    with torch.inference_mode():
        found = excite.eval()(x, source, None)
        wanted = F.hardsigmoid(F.conv2d(x, excite.weight_quantizer(excite.weight), excite.bias))
    low, high = float_range(excite.output)
    assert (found - wanted.clamp(low, high)).abs().max() <= 0.55 * float(excite.output.grid().scale)


def test_what_hard_swish_does_not_tell_apart_costs_no_steps():
    """Below -3 it is 0: the grid it reads ends there."""
    prepared, _ = prepared_gated(observer="minmax")
    grid = prepared.get_submodule("stem").output.grid()
    assert float(grid.scale) * (grid.q_min - int(grid.zero_point)) == pytest.approx(-3, abs=float(grid.scale))
    assert prepared.get_submodule("stem").bounds == ClampedAffine(-3.0, float("inf"))


def test_what_meets_in_concatenations_shares_a_quantizer():
    prepared, images = prepared_gated()
    outputs = [prepared.get_submodule(name).output for name in ("left", "right", "last", "operators.avg_pool2d")]
    assert len({id(output) for output in outputs}) == 1
    names = [name for name, m in prepared.named_modules(remove_duplicate=False) if m is outputs[0]]
    assert names == ["quantizers.cat_1"], "one name, one entry of the state"
    twin = copy.deepcopy(prepared)
    assert twin.get_submodule("left").output is twin.get_submodule("quantizers.cat_1") is not outputs[0]
    for p in prepared.parameters():
        p.data.mul_(2)
    prepared.train()(images)
    assert not torch.equal(*(float_range(m.get_submodule("quantizers.cat_1")) for m in (prepared, twin)))


def float_range(quantizer) -> torch.Tensor:
    grid = quantizer.grid()
    return grid.scale * (torch.tensor([grid.q_min, grid.q_max]) - grid.zero_point)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bits", [4, 8])
def test_every_method_trains_and_converts_it(method, bits):
    weight_bits = 6 if (method, bits) == ("dorefa", 8) else bits
    prepared, images = prepared_gated(method=method, weight_bits=weight_bits, act_bits=bits)
    F.cross_entropy(prepared.train()(images), torch.arange(8) % 3).backward()
    assert all(p.grad is not None for p in prepared.parameters())
    with torch.inference_mode():
        simulated = prepared.eval()(images)
        for engine in KERNELS:
            model = quant.convert(prepared, engine)
            assert torch.equal(model(images), simulated), engine
            assert quant.report_line(prepared, model).endswith("in float: nothing")


class Shuffles(nn.Module):
    def __init__(self, swap: bool):
        super().__init__()
        self.conv, self.swap = nn.Conv2d(3, 12, 1), swap
        self.fc = nn.Linear(12, 3)

    def forward(self, x):
        x = self.conv(x)
        n, c, h, w = x.size()
        height, width = (w, h) if self.swap else (h, w)
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).contiguous().view(n, c, height, width)
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("swap", [True, False])
def test_a_channel_shuffle_is_known_by_what_it_does(swap):
    images, net = photos(2, 16), Shuffles(swap).eval()
    traced = quant.trace(net)
    assert any(isinstance(m, nn.ChannelShuffle) and m.groups == 3 for m in traced.modules()) is not swap
    assert torch.allclose(traced(images), net(images), atol=1e-6)
    assert "shape" not in roles(traced).values() or swap, "nothing asks for sizes any more"


@pytest.mark.parametrize("engine", KERNELS)
@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small", "mobilenet_v2", "alexnet"])
def test_a_frozen_program_gives_the_same_integers(name, engine):
    images = photos(3, 64)
    torch.manual_seed(0)
    model = with_real_statistics(models.build(name, 10, 64, {"form": "imagenet"}), images)
    prepared = quant.prepare(model, spec(method="ptq"))
    quant.calibrate(prepared, [images])
    integer = quant.convert(prepared, engine)
    with torch.inference_mode():
        expected = prepared(images)
    for count in (1, 3):
        program = integer.frozen(images[:count])
        assert torch.equal(program(images[:count]), expected[:count])
    assert torch.equal(integer(images), expected)


def test_a_layer_and_an_operator_are_listed_with_what_they_read():
    prepared, _ = prepared_gated()
    rows = {row[0]: row for row in quant.report(prepared, quant.convert(prepared, "reference"))}
    kinds = {
        name.removeprefix("operators.")
        for name, m in prepared.named_modules()
        if isinstance(m, QuantLayer | QuantOperator)
    }
    assert kinds <= set(rows)
    assert all(row[2] == row[3] == "8" for name, row in rows.items() if name.startswith(("mul", "hardswish", "mean")))


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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("function", [nn.Hardswish, nn.SiLU])
def test_a_function_in_place_trains_as_one_that_is_not(function, method):
    """Its input is the output of a quantizer, which the backward pass needs as it was."""
    images, gradients = photos(4, 16), []
    for inplace in (True, False):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), function(inplace=inplace), nn.Flatten(), nn.Linear(784, 3))
        prepared = quant.prepare(net, spec(method=method, weight_bits=4, act_bits=4)).train()
        prepared(images).square().sum().backward()
        gradients.append([p.grad for p in prepared.parameters()])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*gradients, strict=True))


class Meeting(nn.Module):
    """Two values meet, one of which is ten times the other."""

    def __init__(self, axis: dict):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Linear(8, 3)
        self.axis = axis

    def forward(self, x):
        return self.fc(torch.cat([self.a(x), 10 * self.b(x)], **self.axis).mean((2, 3)))


@pytest.mark.parametrize("method", METHODS)
def test_what_meets_starts_on_the_range_of_all(method):
    images = photos(4, 16)
    net = Meeting({"dim": 1})
    prepared = quant.prepare(net, spec(method=method, weight_bits=4, act_bits=4)).train()
    prepared(images)
    shared = prepared.get_submodule("quantizers.cat")
    assert shared.ready()
    if method in ("ptq", "statassist"):  # which start on the smallest and the largest
        with torch.no_grad():
            every = torch.cat([net.a(images), 10 * net.b(images)], 1)
        assert torch.allclose(float_range(shared), torch.stack(every.aminmax()), rtol=0.3)
    assert shared.parts == [], "nothing is kept between batches"


@pytest.mark.parametrize("axis", [{"axis": 1}, {"dim": -3}, {"dim": 1}])
def test_the_axis_of_a_concatenation_has_many_names(axis):
    converts_exactly(Meeting(axis), photos(4, 16))


@pytest.mark.parametrize("axis", [0, 2, -1])
def test_concatenations_along_other_axes(axis):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 3)

        def forward(self, x):
            one, two = F.relu(self.a(x)).chunk(2, axis)
            return self.fc(torch.cat([two, one], axis).mean((2, 3)))

    converts_exactly(Net(), photos(4, 16))


def test_modules_and_buffers_keep_their_names():
    """torch.fx calls the sum `add`: so may the model call what it likes."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.add, self.fc = nn.Conv2d(3, 4, 1), nn.Hardswish(), nn.Linear(4, 3)
            self.register_buffer("mul", torch.tensor(2.0))

        def forward(self, x):
            x = self.add(self.a(x))
            x = self.add(x + F.relu(x)) * x
            return self.fc(x.mean((2, 3))) * self.mul

    net, images = Net(), photos(4, 16)
    with torch.no_grad():
        expected = net(images)
    model = converts_exactly(net, images)
    assert torch.allclose(model(images), expected, atol=0.05 * float(expected.abs().max()))


def test_augmented_assignments_change_who_reads():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 3)

        def forward(self, x):
            x = y = F.relu(self.a(x))
            x += F.avg_pool2d(y, 3, 1, 1)
            x *= 0.5
            return self.fc((x + y).mean((2, 3)))

    net, images = Net(), photos(4, 16)
    with torch.no_grad():
        expected = net(images)
    assert torch.allclose(converts_exactly(net, images)(images), expected, atol=0.05 * float(expected.abs().max()))


@pytest.mark.parametrize("bits", [3, 8])
def test_a_linear_layer_on_maps_is_clamped(bits):
    """Its integers lie in another order in memory than a convolution's."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Linear(16, 12), nn.ReLU6(), nn.Flatten(), nn.Linear(1536, 3))
    with torch.no_grad():
        net[2].weight.mul_(20)
    converts_exactly(net, photos(4, 16), weight_bits=bits, act_bits=bits, residual_bits=bits)


def test_an_average_of_a_map_that_is_larger_than_those_tried():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AvgPool2d(40), nn.Conv2d(4, 3, 1), nn.Flatten())
    converts_exactly(net, photos(4, 40))


def test_a_value_without_a_batch_can_be_quantized():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.temperature = nn.Linear(768, 8), nn.Parameter(torch.tensor(0.5))
            self.out = nn.Linear(8, 3)

        def forward(self, x):
            return self.out(F.relu(self.fc(x.flatten(1))) * torch.sigmoid(self.temperature))

    prepared = quant.prepare(Net(), spec(method="lsq", weight_bits=4, act_bits=4)).train()
    prepared(photos(4, 16)).sum().backward()
    assert all(p.grad is not None for p in prepared.parameters())


def test_a_frozen_program_is_for_one_shape():
    prepared, images = prepared_gated()
    program = quant.convert(prepared, "reference").frozen(images)
    assert torch.equal(program(images), program(images.contiguous()))
    with pytest.raises(ValueError, match=r"for images \(8, 3, 16, 16\), not \(2, 3, 16, 16\)"):
        program(images[:2])
