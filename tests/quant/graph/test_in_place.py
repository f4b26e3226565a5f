"""Who reads a tensor that an operator overwrites."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from tests.conftest import photos, spec
from tests.helpers import converts_exactly
from utils.errors import UserError


def test_an_operator_in_place_on_a_part_of_what_is_read_again_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            y = self.a(x)
            torch.relu_(y[:, :4])
            return self.b(y).mean((2, 3))

    with pytest.raises(UserError, match="works in place on getitem, which shares its memory with a, and that is read"):
        quant.prepare(Net(), spec(method="ptq"))


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


@pytest.mark.parametrize(
    "overwrite",
    [
        nn.ReLU(inplace=True),
        nn.Hardswish(inplace=True),
        lambda y: F.relu(y, inplace=True),
        lambda y: y.relu_(),
        lambda y: y.mul_(2),
        lambda y: torch.sigmoid_(y),
    ],
)
def test_who_reads_a_tensor_after_it_was_overwritten_reads_the_result(overwrite):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.overwrite = nn.Conv2d(3, 4, 1), overwrite

        def forward(self, x):
            y = self.conv(x)
            before = y + 1
            self.overwrite(y)
            return before * y

    net, images = Net(), photos(2, 8)
    traced = quant.trace(net)
    conv, product = traced.graph.find_nodes(op="call_module", target="conv")[0], list(traced.graph.nodes)[-2]
    assert conv not in product.all_input_nodes, "the product reads what was written last"
    assert len(conv.users) == 2, "the sum, and what overwrites"
    with torch.no_grad():
        assert torch.allclose(traced(images), net(images))


def test_an_operator_in_place_on_an_unflattened_view_of_what_is_read_again_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.unflatten = nn.Conv2d(3, 8, 1), nn.Unflatten(1, (2, 4))

        def forward(self, x):
            y = self.a(x)
            torch.relu_(self.unflatten(y))
            return y.mean((2, 3))

    with pytest.raises(UserError, match="shares its memory with a, and that is read"):
        quant.prepare(Net(), spec(method="ptq"))
