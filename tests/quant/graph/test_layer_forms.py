"""What computes a convolution, a linear layer or a batch norm is one, on the same Parameters, on every engine."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import quant
from quant.graph.layer_forms import free_name
from quant.graph.typed_graph import TypedGraph
from tests.conftest import photos, spec, with_real_statistics
from tests.helpers import assert_all_in_integers, converts_exactly
from utils.errors import UserError


class Inherits(nn.Conv2d):
    def __init__(self, c_in, c_out):
        super().__init__(c_in, c_out, 3, padding=1)


class Pads(nn.Conv2d):
    def __init__(self, c_in, c_out):
        super().__init__(c_in, c_out, 3, stride=2)

    def forward(self, x):
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Static(nn.Conv2d):
    """With its padding in a module of its own."""

    def __init__(self, c_in, c_out):
        super().__init__(c_in, c_out, 3, stride=2, bias=False)
        self.static_padding = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        return F.conv2d(self.static_padding(x), self.weight, self.bias, self.stride)


class Dynamic(nn.Conv2d):
    """TensorFlow's 'same', as torch.fx cannot trace it."""

    def __init__(self, c_in, c_out):
        super().__init__(c_in, c_out, 3, stride=2)

    def forward(self, x):
        height, width = x.shape[-2:]
        tall, wide = (max((-(-side // 2) - 1) * 2 + 3 - side, 0) for side in (height, width))
        if tall or wide:
            x = F.pad(x, [wide // 2, wide - wide // 2, tall // 2, tall - tall // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride)


class Functional(nn.Module):
    """Two convolutions whose Parameters one module owns under names of its own."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.first = nn.Parameter(torch.randn(c_out, c_in, 3, 3) / 5)
        self.second = nn.Parameter(torch.randn(c_out, 1, 3, 3) / 3)
        self.shift = nn.Parameter(torch.randn(c_out))

    def forward(self, x):
        x = F.relu(F.conv2d(x, self.first, self.shift, padding=1))
        return F.conv2d(x, self.second, None, 2, 1, groups=8)


class Twice(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.widen, self.shared = nn.Conv2d(c_in, c_out, 1), nn.Conv2d(c_out, c_out, 3, padding="same")

    def forward(self, x):
        return self.shared(F.relu(self.shared(F.relu(self.widen(x)))))


class Attention(nn.Module):
    """A Conv1d over channels, as in ECA."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv, self.line = nn.Conv2d(c_in, c_out, 3), nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        x = self.conv(x)
        y = self.line(x.mean((2, 3)).view(x.size(0), 1, -1))
        return x * y.sigmoid().view(x.size(0), -1, 1, 1)


class Rows(nn.Module):
    """Conv1d with padding by words and a BatchNorm1d."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.line = nn.Conv1d(c_in, c_out, 3, 2, padding=1)
        self.norm, self.same = nn.BatchNorm1d(c_out), nn.Conv1d(c_out, c_out, 4, padding="same")

    def forward(self, x):
        return self.same(F.relu(self.norm(self.line(x.flatten(2))))).unsqueeze(-1)


class Blurs(nn.Module):
    """A fixed filter: a convolution with a constant."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3)
        self.register_buffer("filter", torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])) / 16)

    def forward(self, x):
        x = F.relu(self.conv(x))
        weight = self.filter.expand(x.shape[1] if isinstance(x.shape[1], int) else 8, 1, 3, 3)
        return F.conv2d(F.pad(x, (1,) * 4, mode="reflect"), weight, stride=2, groups=8)


def normed(norm) -> type[nn.Module]:
    class Normed(nn.Module):
        def __init__(self, c_in, c_out):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(c_in, c_out, 3, bias=False), norm(c_out)

        def forward(self, x):
            return F.relu(self.norm(self.conv(x)))

    return Normed


class InheritedNorm(nn.BatchNorm2d):
    pass


class WrittenNorm(nn.BatchNorm2d):
    def forward(self, x):
        if self.training:
            self.num_batches_tracked.add_(1)
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, self.training, self.momentum or 0.1, self.eps)


class Frozen(nn.Module):
    """Constants for each channel, as in a detection backbone."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("scale", torch.logspace(-2, 0, channels))
        self.register_buffer("shift", torch.linspace(-1, 1, channels))

    def forward(self, x):
        return x * self.scale.view(1, -1, 1, 1) + self.shift.view(1, -1, 1, 1)


def conv(**options):
    return lambda c_in, c_out: nn.Conv2d(c_in, c_out, **options)


LAYERS = {
    "subclass": Inherits,
    "subclass that pads": Pads,
    "static padding": Static,
    "dynamic padding": Dynamic,
    "functions": Functional,
    "called twice": Twice,
    "same": conv(kernel_size=3, padding="same"),
    "same, even": conv(kernel_size=4, padding="same", dilation=2),
    "valid": conv(kernel_size=3, padding="valid"),
    "reflect": conv(kernel_size=3, padding=1, padding_mode="reflect"),
    "replicate": conv(kernel_size=3, padding=(0, 2), padding_mode="replicate"),
    "circular": conv(kernel_size=3, padding=1, padding_mode="circular", stride=2),
    "conv1d in attention": Attention,
    "conv1d": Rows,
    "constant filter": Blurs,
    "inherited norm": normed(InheritedNorm),
    "written norm": normed(WrittenNorm),
    "sync norm": normed(nn.SyncBatchNorm),
    "constants": normed(Frozen),
}


class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.stem, self.layer, self.fc = nn.Conv2d(3, 6, 3, 2), layer(6, 8), nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(F.relu(self.layer(F.relu(self.stem(x)))).mean((2, 3)))


pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.fixture(params=LAYERS)
def net(request) -> nn.Module:
    return with_real_statistics(Net(LAYERS[request.param]), photos(8, 25))


def test_all_of_it_is_in_integers_and_equal_on_every_engine(net):
    assert_all_in_integers(net, photos(8, 25), 0.05)


@pytest.mark.parametrize("method", ["lsq", "statassist"])
def test_it_trains_on_the_same_parameters_and_keeps_its_buffers(net, method):
    given, buffers = dict(net.named_parameters()), set(dict(net.named_buffers()))
    prepared = quant.prepare(net, spec(method=method)).train()
    assert {name: p for name, p in prepared.named_parameters() if name in given} == given
    assert buffers <= set(dict(prepared.named_buffers()))
    prepared(photos(8, 25)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in given.values())
    assert set(copy.deepcopy(prepared).state_dict()) == set(prepared.state_dict())


def test_a_layer_that_is_called_twice_has_one_weight_quantizer():
    prepared = quant.prepare(Net(Twice), spec(method="lsq", weight_bits=4))
    first, second = prepared.get_submodule("layer.shared"), prepared.get_submodule("layers.layer_shared_1")
    assert first.weight is second.weight
    assert first.weight_quantizer is second.weight_quantizer
    assert first.output is not second.output
    assert not [name for name in prepared.state_dict() if name.startswith("layers.") and "weight" in name]
    twin = copy.deepcopy(prepared)
    assert twin.get_submodule("layer.shared").weight is twin.get_submodule("layers.layer_shared_1").weight


def test_the_model_is_not_written_on():
    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.fc = WrittenNorm(3), nn.Linear(3, 2)

        def forward(self, x):
            self.last = x
            return self.fc(self.norm(x).mean((2, 3)) * torch.tensor([1.0, 2.0, 3.0]))

    model = Writes().train()
    before = set(vars(model)), {name: value.clone() for name, value in model.state_dict().items()}
    quant.prepare(model, spec(method="lsq"))
    assert set(vars(model)) == before[0]
    assert all(torch.equal(value, before[1][name]) for name, value in model.state_dict().items())


def test_names_that_the_model_has_are_left_to_it():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.operators = nn.ModuleDict({"add": nn.Conv2d(3, 8, 3, padding=1)})
            self.quantizers, self.layers, self.fc = nn.Parameter(torch.ones(1)), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)

        def forward(self, x):
            y = self.operators["add"](x)
            return self.fc((self.layers(self.layers(y)) + F.relu(y) * self.quantizers).mean((2, 3)))

    model = Named()
    assert free_name(model, "operators") == "operators_"
    converts_exactly(model, photos(4, 16))
    prepared = quant.prepare(model, spec(method="ptq"))
    assert set(dict(model.named_parameters())) <= set(dict(prepared.named_parameters()))


def test_nodes_may_be_named_like_methods_of_modules():
    class Casts(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

        def forward(self, x):
            return self.fc(self.conv(x).float().to(torch.float32).mean((2, 3)))

    converts_exactly(Casts(), photos(4, 16))


@pytest.mark.parametrize("name", ["graph", "code", "meta", "recompile"])
def test_names_that_torch_fx_uses_are_refused_in_a_line(name):
    net = nn.Sequential()
    net.add_module(name, nn.Conv2d(3, 4, 1))
    with pytest.raises(UserError, match=f"^model Sequential: torch.fx has another use for the name '{name}'"):
        quant.trace(net)


def test_a_weight_that_forward_computes_stays_in_float_and_is_named():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)

    traced = quant.trace(nn.Sequential(Standardized(3, 4, 3)))
    (node,) = [node for node in traced.graph.nodes if node.target is F.conv2d]
    assert TypedGraph(traced).roles[node] == "float"


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x, y: x + y, r"forward takes 2 inputs \(x, y\)"),
        (lambda self: torch.ones(1), r"forward takes 0 inputs \(none\)"),
    ],
)
def test_a_forward_of_several_inputs_is_refused_in_a_line(forward, message):
    with pytest.raises(UserError, match=message):
        quant.trace(type("Several", (nn.Module,), {"forward": forward})())


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x, mask=None: self.fc(x if mask is None else x * mask),
        lambda self, x, features=False: x if features else self.fc(x),
        lambda self, *images: self.fc(images[0]),
        lambda self, *, images: self.fc(images),
    ],
)
def test_other_arguments_of_forward_keep_their_defaults(forward):
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 3)

    Optional.forward = forward
    net, x = Optional(), torch.randn(2, 6)
    traced = quant.trace(net)
    assert torch.equal(traced(x), net.fc(x))
    assert [node.op for node in traced.graph.nodes].count("placeholder") == 1
