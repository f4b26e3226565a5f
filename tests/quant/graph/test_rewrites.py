"""Operators in all the ways in which nets write them: in integers, equal on every engine and in a file."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.graph.typed_graph import TypedGraph
from tests.conftest import photos
from tests.helpers import assert_all_in_integers, converts_exactly


class Applied(nn.Module):
    """A convolution, a function of its output [N, 8, 7, 7], and a linear layer."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.function, self.fc = nn.Conv2d(3, 8, 3, 2), function, nn.LazyLinear(5)

    def forward(self, x):
        return self.fc(self.function(F.relu(self.conv(x)) - 0.3).flatten(1))


class Image(nn.Module):
    """A net that normalizes the image itself."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]))
        self.register_buffer("std", torch.tensor([0.2, 0.3, 0.1]))

    def forward(self, x):
        x = (x - self.mean[:, None, None]) / self.std.view(1, 3, 1, 1)
        return self.conv(x * 2 - 1)


class Scaled(nn.Module):
    """A layer scale, which is trained, and a slope for each channel."""

    def __init__(self):
        super().__init__()
        self.gamma, self.slopes = nn.Parameter(torch.linspace(-0.5, 1, 8)), nn.PReLU(8)

    def forward(self, x):
        return self.slopes(x) + self.gamma.view(1, -1, 1, 1) * x


class Alone(nn.Module):
    """Batch norms behind a sum and before the end."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)

    def forward(self, x):
        return self.last(F.relu(self.first(x + x.flip(2))))


FUNCTIONS = {
    "zero padding": nn.ZeroPad2d((1, 2, 0, 1)),
    "constant padding": nn.ConstantPad2d(1, 0.7),
    "constant padding function": lambda x: F.pad(x, (1, 0, 2, 1), value=-0.2),
    "negative padding": lambda x: F.pad(x, (-1, 0, 0, -2)),
    "channel padding": lambda x: F.pad(x, (0, 0, 0, 0, 2, 3)),
    "reflection": nn.ReflectionPad2d(2),
    "replication": nn.ReplicationPad2d((0, 1, 2, 0)),
    "circle": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
    "nearest": nn.Upsample(scale_factor=2),
    "nearest of a size": lambda x: F.interpolate(x, size=(9, 5)),
    "pixel unshuffle": lambda x: F.pixel_unshuffle(x[:, :, 1:, 1:], 2),
    "flip": lambda x: x.flip(3).flip(1),
    "roll": lambda x: torch.roll(x, (1, -2), (2, 3)),
    "maximum over height and width": lambda x: x.amax((2, 3)),
    "maxima one axis after another": lambda x: x.max(3)[0].max(2).values,
    "adaptive maximum": nn.AdaptiveMaxPool2d((2, 3)),
    "pool with indices": nn.MaxPool2d(2, return_indices=True),
    "pool with options": nn.MaxPool2d(3, 2, 1, dilation=2, ceil_mode=True),
    "average with options": nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "average with a divisor": nn.AvgPool2d(3, 2, divisor_override=8),
    "mean one axis after another": lambda x: x.mean(3).mean(2),
    "mean from behind": lambda x: x.mean(-1, keepdim=True).mean(-2, keepdim=True),
    "mean over what is flattened": lambda x: x.flatten(2).mean(-1),
    "mean over channels": lambda x: x.mean(1),
    "difference": lambda x: x - x.flip(1),
    "differences with constants": lambda x: torch.linspace(0, 1, 7) - x,
    "PReLU": nn.PReLU(init=0.1),
    "trained constants": Scaled(),
    "norms": Alone(),
    "reversed chunks": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "parts by name": lambda x: torch.cat([x.split([3, 5], 1)[-1], x.chunk(4, 1)[2]], 1),
    "swapped parts": lambda x: (lambda a, b: torch.cat([b, a, a], 1))(*(x.chunk(2, 1)[i] for i in (0, 1))),
}


class First(nn.Module):
    def __init__(self, pool):
        super().__init__()
        self.pool = pool

    def forward(self, x):
        return self.pool(x)[0]


def net(name: str) -> nn.Module:
    function = FUNCTIONS[name]
    model = Applied(First(function) if getattr(function, "return_indices", False) else function)
    model(photos(2, 15))  # which gives the last layer its width
    return model


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_in_integers_and_equal_on_every_engine_and_in_a_file(name, tmp_path):
    images = photos(8, 15)
    prepared = assert_all_in_integers(net(name).eval(), images, 0.06)
    quant.export_packed(prepared, tmp_path / "net.npz", 15, {})
    assert torch.equal(quant.load_packed(str(tmp_path / "net.npz"))(images), prepared(images))


def test_a_net_that_normalizes_its_images():
    images = torch.rand(8, 3, 15, 15, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(Image(), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 13 * 13, 5)).eval()
    with torch.no_grad():
        expected = model(images)
    found = converts_exactly(model, images)(images)
    assert (found - expected).abs().max() < 0.06 * expected.abs().max()


def test_small_denominators_are_not_made_zero():
    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3, bias=False), nn.Linear(8, 4)

        def forward(self, x):
            y = F.relu(self.conv(x))
            return self.fc((y / (y.sum((2, 3), keepdim=True) + 1e-6)).sum((2, 3)))

    images = photos(8, 12).clone()
    images[0] = 0
    model = Shares().eval()
    found = converts_exactly(model, images)(images)
    with torch.no_grad():
        assert torch.allclose(found, model(images), atol=0.05)


@pytest.mark.parametrize(
    "divided", [lambda x: 1 / (x + 1), lambda x: (x + 1).rsqrt(), lambda x: (x + 1).log(), lambda x: (x + 1) ** -0.5]
)
def test_what_is_divided_by_stays_in_float(divided):
    traced = quant.trace(Applied(divided))
    graph = TypedGraph(traced)
    assert graph.roles[next(node for node in traced.graph.nodes if node.name == "add")] == "float"


def test_one_mean_for_two():
    names = [node.name for node in quant.trace(Applied(lambda x: x.mean(2).mean(2))).graph.nodes]
    assert [name for name in names if "mean" in name] == ["mean_1"]


def test_indices_that_are_read_keep_the_pool_in_float():
    class Unpools(nn.Module):
        def forward(self, x):
            x, indices = F.max_pool2d(x, 2, return_indices=True)
            return F.max_unpool2d(x, indices, 2)

    images = photos(8, 17)
    model = Applied(Unpools())
    model(images)
    converts_exactly(model, images)
