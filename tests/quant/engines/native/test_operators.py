"""Operators without weights on every engine, for every integer of their grids and in nets."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.core.activation import IDENTITY
from quant.core.integer_operator import add, average, function, integer_operator, mul
from quant.engines.base import FLOAT32_KERNEL
from quant.engines.native import NativeEngine
from quant.engines.verify import choose_operator
from quant.graph.op_table import OPERATORS
from tests.conftest import KERNELS, photos
from tests.helpers import assert_layerwise_exact, calibrated, converts_exactly, grid, other_arguments, prepared_with


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("engine", KERNELS)
def test_every_engine_computes_every_integer_as_the_operator_does(engine, bits):
    """All pairs of integers; maps with one value a channel; grids whose zero points are at either end."""
    backend = quant.engine(engine)
    for x_zero, y_zero in ((0, 0), (2**bits - 1, 1), (2 ** (bits - 1), 2 ** (bits - 1))):
        x, y = grid(8.0 / 2**bits, x_zero, bits), grid(7.0 / 2**bits, y_zero, bits)
        one = (torch.arange(2.0**bits) - x_zero).reshape(1, -1, 1, 1)
        every = one.flatten().expand(1, 2**bits, 1, 2**bits).contiguous()
        for arithmetic, run, given in (
            (add, torch.add, (one, every)),
            (mul, torch.mul, (every, one)),
            (mul, torch.mul, (one, every)),
            (function, F.hardswish, (every,)),
            (function, torch.sigmoid, (every,)),
            (average, lambda v: F.avg_pool2d(v, (1, 2)), (every,)),
        ):
            op = integer_operator(run.__name__, arithmetic, run, (x,) * len(given), y, IDENTITY)
            _, operator = choose_operator(backend, op)
            with backend.running():
                found = operator(*(backend.to_native(x)(n) for n in given))
            assert torch.equal(backend.from_native(y)(found), op(*given)), f"{arithmetic} {run}"


class Row(nn.Module):
    """Two convolutions, and an operator of the table on one or both of their outputs."""

    def __init__(self, name: str):
        super().__init__()
        self.a, self.b, self.fc, self.name = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Linear(8, 5), name

    def forward(self, x):
        x, y = self.a(x), self.b(x)
        row = OPERATORS[self.name]
        if row.role == "binary":
            return self.fc(row.function(x, y).mean((2, 3)))
        x = x if self.name in ("pad_constant", "prelu") or row.arithmetic is function else F.max_pool2d(x, 2)
        return self.fc(row.function(x, *other_arguments(self.name)).mean((2, 3)))


@pytest.mark.parametrize("name", [name for name, row in OPERATORS.items() if row.role in ("binary", "function")])
def test_every_row_runs_in_integers_on_every_engine_and_in_a_file(name, tmp_path):
    images = photos(8, 12)
    model = converts_exactly(Row(name), images, act_bits=4)
    assert len(model.operators) == 2, "it and the mean"
    prepared = calibrated(Row(name), images)
    assert quant.layer_summary(prepared, quant.convert(prepared, "reference")).endswith("every layer runs in integers")
    quant.export_packed(prepared, tmp_path / "net.npz", 12, {})
    assert torch.equal(quant.load_packed(str(tmp_path / "net.npz"))(images), prepared(images))


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


@functools.lru_cache(maxsize=2)  # engines come after each other
def prepared_net(net: type[nn.Module], bits: int, size: int):
    return prepared_with(net(), bits, (3, size, size))


@pytest.mark.parametrize("engine", KERNELS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_additions_pools_and_linear(engine, bits):
    prepared, images = prepared_net(Residual, bits, 16)
    model = assert_layerwise_exact(prepared, engine, images)
    assert sum(name.startswith("operators.add") for name in model.operators) == 3
    assert len(model.layers) == 4


@pytest.mark.parametrize("engine", KERNELS)
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
    assert_layerwise_exact(prepared, engine, images)


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


@pytest.mark.parametrize("engine", KERNELS)
@pytest.mark.parametrize("bits", [4, 8])
def test_split_concatenate_shuffle(engine, bits):
    prepared, images = prepared_net(Shuffle, bits, 10)
    model = assert_layerwise_exact(prepared, engine, images)
    assert len(model.layers) == 4


@pytest.mark.parametrize("engine", KERNELS)
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


def test_qnnpacks_addition_rounds_in_another_way_and_the_one_in_float_takes_its_place():
    y = grid(0.05, 100)
    op = integer_operator("add", add, torch.add, (grid(0.03, 7), grid(0.04, 9)), y, IDENTITY)
    kernels = {name: [kernel for kernel, _ in NativeEngine(name).operators(op)] for name in ("qnnpack", "fbgemm")}
    assert kernels == {"qnnpack": ["qnnpack", FLOAT32_KERNEL], "fbgemm": [*["fbgemm"] * 3, FLOAT32_KERNEL]}
    product = integer_operator("mul", mul, torch.mul, op.x, y, IDENTITY)
    assert [kernel for kernel, _ in NativeEngine("qnnpack").operators(product)] == ["qnnpack", FLOAT32_KERNEL]


def test_an_operator_with_a_float_output_runs_in_float32():
    pool = integer_operator("mean", average, lambda x: x.mean((2, 3)), (grid(0.1, 3),), None, IDENTITY)
    engine = NativeEngine("fbgemm")
    [(kernel, operator)] = engine.operators(pool)
    n = torch.randint(-3, 253, (2, 4, 5, 5)).float()
    assert kernel == FLOAT32_KERNEL
    assert torch.equal(operator(engine.to_native(grid(0.1, 3))(n)), pool(n))
