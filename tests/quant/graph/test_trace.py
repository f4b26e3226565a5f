"""The graph of a model: written in few ways, read as the model computes, or refused in a one-line message."""

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn

import quant
from quant.graph.typed_graph import TypedGraph
from tests import nets
from tests.conftest import photos, spec
from tests.helpers import converts_exactly
from tests.nets import Meeting, Residual
from utils.errors import UserError


def test_functional_dropout_follows_train_and_eval():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 5)

        def forward(self, x):
            return self.fc(F.dropout(x.flatten(1), 0.5, self.training))

    prepared = quant.prepare(Net(), spec(method="statassist"))
    x = torch.randn(4, 3, 2, 2)
    assert not torch.equal(prepared.train()(x), prepared(x))
    prepared.eval()
    assert torch.equal(prepared(x), prepared(x))


def test_untraceable_models_are_refused_in_one_line():
    class Net(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UserError, match=r"^model Net: torch.fx cannot trace it: [^\n]*$"):
        quant.prepare(Net(), spec(method="ptq"))


@pytest.mark.parametrize(
    "compute", [lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.5), nn.utils.weight_norm]
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_a_weight_that_is_computed_is_refused_in_a_line(compute):
    net = nets.plain(10)
    compute(net[2])
    with pytest.raises(UserError, match=r"^2: its weight is computed at each call; make it plain first \("):
        quant.prepare(net, spec(method="lsq"))


def test_graphs_that_depend_on_the_mode_are_refused():
    class Net(nn.Module):
        def forward(self, x):
            return x * 2 if self.training else x

    with pytest.raises(UserError, match="its graph in train mode is not that in eval mode"):
        quant.prepare(Net(), spec(method="lsq"))


def test_what_is_not_trained_needs_the_graph_of_eval_mode_alone():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            x = self.conv(x)
            return self.fc((x * 2 if self.training else x).mean((2, 3)))

    converts_exactly(Net(), photos(4, 16))


def test_a_module_that_forward_does_not_reach_keeps_its_state():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.unused = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(x.mean([2, 3]))

    model = Net()
    assert set(dict(quant.prepare(model, spec(method="ptq")).named_parameters())) == set(dict(model.named_parameters()))


def test_an_auxiliary_output_of_train_mode_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.aux = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            x = x.mean([2, 3])
            return (self.fc(x), self.aux(x)) if self.training else self.fc(x)

    with pytest.raises(UserError, match=r"^model Net: its graph in train mode is not that in eval mode \(at [^\n]*$"):
        quant.prepare(Net(), spec(method="pact"))


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
    assert "shape" not in TypedGraph(traced).roles.values() or swap, "nothing asks for sizes any more"


def test_axes_that_are_computed_do_not_make_a_channel_shuffle():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 12, 1), nn.Linear(12, 3)

        def forward(self, x):
            x = self.conv(x)
            n, c, h, w = x.size()
            x = x.reshape(n, 3, c // 3, h, w).transpose(1, x.dim() - 2).reshape(n, c, h, w)
            return self.fc(x.mean((2, 3)))

    images, net = photos(2, 16), Net().eval()
    traced = quant.trace(net)
    assert not any(isinstance(module, nn.ChannelShuffle) for module in traced.modules())
    assert torch.allclose(traced(images), net(images), atol=1e-6)


@pytest.mark.parametrize("axis", [{"axis": 1}, {"dim": -3}, {"dim": 1}])
def test_the_axis_of_a_concatenation_has_many_names(axis):
    converts_exactly(Meeting(axis), photos(4, 16))


def test_a_traced_net_is_the_net_on_the_same_modules_in_the_same_mode():
    net = Residual(10).eval()
    net.first.train()
    modes, parameters = {name: m.training for name, m in net.named_modules()}, dict(net.named_parameters())
    traced = quant.trace(net)
    assert {name: m.training for name, m in net.named_modules()} == modes
    assert {name: id(p) for name, p in traced.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    images = photos(4, 32)
    assert torch.equal(traced.eval()(images), net.eval()(images))


def test_a_net_that_cannot_be_traced_keeps_its_mode():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout()

        def forward(self, x):
            return x if x.sum() > 0 else self.drop(x)

    net = Net().eval()
    with pytest.raises(UserError, match=r"torch\.fx cannot trace it"):
        quant.trace(net)
    assert not net.training
    assert not net.drop.training


@pytest.mark.parametrize(
    ("drop", "kind", "rate"),
    [
        (lambda x, flag: F.dropout(x, 0.2, flag), nn.Dropout, 0.2),
        (lambda x, flag: F.dropout(x, p=0.3, training=flag), nn.Dropout, 0.3),
        (lambda x, flag: F.dropout2d(x, training=flag), nn.Dropout2d, 0.5),
        (lambda x, flag: torch.dropout(x, 0.4, flag), nn.Dropout, 0.4),
        (lambda x, flag: F.alpha_dropout(x, 0.1, flag), nn.AlphaDropout, 0.1),
        (lambda x, flag: F.feature_alpha_dropout(x, 0.6, flag), nn.FeatureAlphaDropout, 0.6),
    ],
)
def test_a_dropout_function_of_self_training_becomes_a_module_of_its_rate(drop, kind, rate):
    class Net(nn.Module):
        def forward(self, x):
            return drop(x, self.training)

    (module,) = [m for m in quant.trace(Net()).modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    assert module.p == rate
    assert type(module) is kind


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("flag", [True, False])
def test_a_dropout_function_with_a_fixed_flag_does_what_it_says(flag, training):
    class Net(nn.Module):
        def forward(self, x):
            return F.dropout(x, 0.5, flag)

    net, x = Net().train(training), torch.randn(4, 8)
    for module in (net, quant.trace(net).train(training)):
        assert torch.equal(module(x), module(x)) is not flag


def test_modules_that_drop_branches_are_left_whole():
    from torchvision.ops import StochasticDepth

    traced = quant.trace(nn.Sequential(nn.Conv2d(3, 4, 1), StochasticDepth(0.5, "row"), nn.Identity(), nn.ReLU()))
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1", "3"]


def test_an_identity_leaves_the_graph_and_a_view_becomes_a_reshape():
    class Net(nn.Module):
        def forward(self, x):
            return x.view(x.size(0), -1)

    assert [n.target for n in quant.trace(Net()).graph.nodes if n.op == "call_method"] == ["size", "reshape"]
