"""prepare: the same parameters under the same names, quantizers as graph/bit_allocation.py says, nothing float in silence."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune
from torch import nn

import models
import quant
from quant.core.quantizer import Quantizer
from quant.graph.quant_layers import QuantLayer
from tests import nets
from tests.conftest import spec
from utils.errors import UserError

FORMS = [(name, form) for name, row in models.MODELS.items() for form in row.forms]
LARGE = ("alexnet", "vgg", "resnext")
SMALL = [(name, form) for name, form in FORMS if not name.startswith(LARGE)] + [("alexnet", "cifar")]
"""Without those of 60 million parameters and more, whose graphs alone are tested, on no memory."""


def size_of(name: str, form: str) -> int:
    return models.MODELS[name].image_size or max(32, models.MODELS[name].least.get(form, 0))


def build(name: str, form: str) -> nn.Module:
    return models.build(name, 10, size_of(name, form), {"form": form})


def structure(name: str, form: str) -> nn.Module:
    with torch.device("meta" if name.startswith(LARGE) else "cpu"):
        return build(name, form)


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_parameters_stay_the_same_objects_under_the_same_names(name, form):
    model = structure(name, form)
    before = dict(model.named_parameters())
    buffers = set(dict(model.named_buffers()))
    prepared = quant.prepare(model, spec(method="statassist"))
    after = dict(prepared.named_parameters())
    assert before.keys() == after.keys()
    assert all(after[key] is value for key, value in before.items())
    assert buffers <= set(dict(prepared.named_buffers())), "batch-norm statistics keep their names"
    missing = prepared.load_state_dict(structure(name, form).state_dict(), strict=False)
    assert not missing.unexpected_keys


@pytest.mark.parametrize(("name", "form"), SMALL)
def test_with_quantizers_off_it_is_the_float_net(name, form):
    model = build(name, form).eval()
    x = torch.randn(2, 3, size_of(name, form), size_of(name, form))
    expected = model(x)
    prepared = quant.prepare(model, spec(method="ptq"))
    quant.set_enabled(prepared, False)
    assert torch.allclose(prepared.eval()(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "form"), FORMS)
def test_every_layer_is_an_integer_layer(name, form):
    prepared = quant.prepare(structure(name, form), spec(method="statassist"))
    floats = [n for n, m in prepared.named_modules() if type(m) in (nn.Conv2d, nn.Linear)]
    assert floats == []
    layers = [m for m in prepared.modules() if isinstance(m, QuantLayer)]
    assert sum(layer.output is None for layer in layers) == 1, "only the logits are float"


def bits(prepared) -> dict[str, tuple[int, int | None]]:
    return {
        name: (m.weight_quantizer.bits, m.output and m.output.bits)
        for name, m in prepared.named_modules()
        if isinstance(m, QuantLayer)
    }


def test_bits_of_layers_and_edges():
    prepared = quant.prepare(build("resnet20", "cifar"), spec(method="statassist", weight_bits=4, act_bits=3))
    found = bits(prepared)
    assert found["conv1"] == (8, 8), "first layer; its output is read by an addition"
    assert found["layer1.0.conv1"] == (4, 3)
    assert found["layer1.0.conv2"] == (4, 8), "read by an addition: residual_bits"
    assert found["fc"] == (8, None)
    quantizers = {name: m.bits for name, m in prepared.named_modules() if isinstance(m, Quantizer)}
    assert quantizers["quantizers.x"] == 8, "the image"
    assert quantizers["quantizers.conv1_1_to_3"] == 3, "the second reader of the stem has its own quantizer"
    same = quant.prepare(build("resnet20", "cifar"), spec(method="statassist", weight_bits=4, first_last_bits="same"))
    assert bits(same)["conv1"][0] == bits(same)["fc"][0] == 4


def test_logits_stay_float_under_a_softmax():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.conv(x).relu().mean([2, 3])).softmax(1)

    prepared = quant.prepare(Net(), spec(method="statassist", weight_bits=4, act_bits=4))
    assert bits(prepared) == {"conv": (8, 8), "fc": (8, None)}


def test_one_value_narrowed_at_two_places_has_two_quantizers():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            x = self.a(x).relu()
            y = F.max_pool2d(self.b(x), 2) + self.c(F.max_pool2d(x, 2)) + F.max_pool2d(x, 2)
            return self.fc(y.mean([2, 3]))

    prepared = quant.prepare(Net(), spec(method="statassist", act_bits=3))
    narrow = [name for name, m in prepared.named_modules() if isinstance(m, Quantizer) and name.endswith("_to_3")]
    assert len(narrow) == 2


def test_reports_name_the_kernel_or_the_reason():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.twice = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
            self.up, self.fc = nn.ConvTranspose2d(4, 4, 2), nn.Linear(4, 3)

        def forward(self, x):
            x = self.twice(self.twice(self.conv(x).relu()))
            return self.fc(torch.sigmoid(self.up(x)).mean([2, 3]))

    prepared = quant.prepare(Net(), spec(method="ptq"))
    quant.calibrate(prepared, [torch.randn(4, 3, 8, 8)])
    rows = {row[0]: row for row in quant.report(prepared, quant.convert(prepared, "reference"))}
    assert rows["conv"][1:5] == ["8", "8", "8", "integers in float32"]
    assert rows["fc"][4] == "integers in float32"
    assert rows["up"][4:] == ["float", "ConvTranspose2d has no integer form here"]
    assert rows["twice"][4:] == ["float", "called more than once"]
    assert rows["sigmoid"][1:5] == rows["mean"][1:5] == ["", "8", "8", "integers in float32"]


@pytest.mark.parametrize(
    "keys", [{"weight_bits": 32}, {"act_bits": 32}, {"first_last_bits": 32}, {"residual_bits": 32}]
)
def test_parts_left_in_float_still_convert(keys):
    prepared = quant.prepare(build("resnet20", "cifar"), spec(method="ptq", **keys))
    x = torch.randn(8, 3, 32, 32)
    quant.calibrate(prepared, [x])
    for engine in ("reference", quant.QuantSettings().engine):
        model = quant.convert(prepared, engine)
        assert torch.allclose(model(x), prepared(x), atol=0.05)
        rows = quant.report(prepared, model)
        assert any(row[4] == "float" for row in rows)


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


def test_eval_changes_nothing_and_train_mode_observes():
    prepared = quant.prepare(build("resnet20", "cifar"), spec(method="statassist"))
    x = torch.randn(4, 3, 32, 32)
    prepared.train()(x)
    before = copy.deepcopy(prepared.state_dict())
    prepared.eval()
    first, second = prepared(x), prepared(x * 3) * 0 + prepared(x)
    assert torch.equal(first, second)
    assert all(torch.equal(before[k], v) for k, v in prepared.state_dict().items())
    prepared.train()(x * 3)
    assert any(not torch.equal(before[k], v) for k, v in prepared.state_dict().items() if k.endswith(".high"))


def test_a_copy_is_independent_and_equal():
    prepared = quant.prepare(build("mobilenet_v2", "imagenet"), spec(method="statassist"))
    x = torch.randn(4, 3, 32, 32)
    prepared.train()(x)
    twin = copy.deepcopy(prepared).eval()
    assert torch.equal(twin(x), prepared.eval()(x))
    assert twin.state_dict().keys() == prepared.state_dict().keys()


def simulated_against_float(net: nn.Module, shape=(3, 12, 12), **keys):
    """How far an 8-bit calibrated net is from its float self, relative to the largest value; and the prepared net."""
    net, x = net.eval(), torch.randn(64, *shape)
    expected = net(x)
    prepared = quant.prepare(copy.deepcopy(net), spec(method="ptq", **keys))
    quant.calibrate(prepared, [x])
    found = prepared(x)
    for engine in ("reference", quant.QuantSettings().engine):
        assert torch.allclose(quant.convert(prepared, engine)(x), found, atol=1e-4), engine
    return ((found - expected).abs().max() / expected.abs().max()).item(), prepared


class ReluHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return F.relu(self.conv(x)).mean([2, 3])


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.relu, self.fc = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 1),
            nn.ReLU(inplace=True),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        y = self.a(x)
        z = self.b(self.relu(y))
        return self.fc((z + y).mean([2, 3]))


class Tokens(nn.Module):
    """A batch norm behind a linear layer, over tokens and not over its outputs."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(12, 12), nn.BatchNorm1d(12), nn.Linear(12, 4)
        with torch.no_grad():
            self.norm.weight.uniform_(0.5, 2)
            self.norm.running_mean.normal_()

    def forward(self, x):
        return self.b(self.norm(self.a(x[:, 0])))[:, 0]


class Dense(nn.Module):
    """Batch norm and ReLU behind a concatenation; view, max with indices, sums of sizes, keyword arguments."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        y = self.a((x - 0.1) / 0.9)
        y = self.b(F.relu(self.norm(torch.cat([y, torch.sigmoid(y)], 1))))
        y = y.view(y.size(0), y.size(1) + 0 * y.size(2), -1).max(2)[0]
        return self.fc(torch.flatten(input=y, start_dim=1))


class PreActivation(nn.Module):
    """The block of a pre-activation net, whose shortcut is an Identity of what a ReLU overwrites."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)
        self.short, self.relu = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.stem(x)
        short = self.short(y)
        return self.fc((self.conv(self.relu(y)) + short).mean([2, 3]))


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm has it."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()
        nn.init.normal_(self.bias)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class NormTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), BatchNormAct2d(8)
        self.c = nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.c(torch.cat(dim=1, tensors=[self.norm(self.a(x)) - self.norm(self.b(x))])).mean([2, 3])


class SharedFunctions(nn.Module):
    """One activation and one pool, called again and again."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.act, self.pool = nn.SiLU(), nn.AvgPool2d(2)

    def forward(self, x):
        y = self.pool(self.act(self.a(x)))
        return self.c(self.pool(self.act(self.b(y)))).mean([2, 3])


class Hooked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.b.register_forward_hook(double)

    def forward(self, x):
        return self.c(self.b(self.a(x))).mean([2, 3])


def double(layer: nn.Module, given: tuple, found: torch.Tensor) -> torch.Tensor:
    return 2 * found


@pytest.mark.parametrize("net", [ReluHead, InPlace, Tokens, Dense, PreActivation, NormTwice, SharedFunctions, Hooked])
def test_eight_bits_are_close_to_float_whatever_the_graph(net):
    assert simulated_against_float(net())[0] < 0.03


@pytest.mark.parametrize("key", ["residual_bits", "first_last_bits"])
def test_close_to_float_with_parts_in_float(key):
    assert simulated_against_float(InPlace(), **{key: 32})[0] < 0.03


def test_an_activation_that_a_net_shares_is_an_integer_operator_wherever_it_is_called():
    _, prepared = simulated_against_float(SharedFunctions())
    rows = {row[0]: row for row in quant.report(prepared, quant.convert(prepared, "reference"))}
    assert all(rows[name][-2] == "integers in float32" for name in ("act", "act_1", "pool", "pool_1"))


def test_a_layer_with_hooks_stays_as_it_is():
    _, prepared = simulated_against_float(Hooked())
    rows = {row[0]: row for row in quant.report(prepared, quant.convert(prepared, "reference"))}
    assert rows["b"][-2:] == ["float", "it has hooks"]


@pytest.mark.parametrize(
    "compute", [lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.5), nn.utils.weight_norm]
)
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_a_weight_that_is_computed_is_refused_in_a_line(compute):
    net = nets.plain(10)
    compute(net[2])
    with pytest.raises(UserError, match=r"^2: its weight is computed at each call; make it plain first \("):
        quant.prepare(net, spec(method="lsq"))


class PooledFirst(nn.Module):
    """A pool between each convolution and its ReLU; one value that is read with and without one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        y = F.max_pool2d(self.a(x), 2)
        z = F.relu(torch.cat([F.max_pool2d(self.b(F.relu(y)), 2)], 1))
        return self.c(z).flatten(1)


@pytest.mark.parametrize("method", ["lsq", "pact", "dorefa", "statassist", "ptq"])
def test_a_relu_behind_a_pool_leaves_the_bits_to_what_is_not_negative(method):
    net, x = PooledFirst().eval(), torch.randn(16, 3, 20, 20)
    assert simulated_against_float(net, (3, 20, 20))[0] < 0.03
    prepared = quant.prepare(copy.deepcopy(net), spec(method=method, weight_bits=4, act_bits=2, first_last_bits="same"))
    prepared.train()(x)
    if method == "ptq":
        quant.calibrate(prepared, [x])
    prepared.eval()
    for name in ("a", "b"):
        grid = prepared.get_submodule(name).output.grid()
        assert (grid.q_max - grid.q_min, int(grid.zero_point) - grid.q_min) == (3, 0), name
    with torch.inference_mode():
        assert torch.equal(quant.convert(prepared, "fbgemm")(x), prepared(x))


def test_the_second_quantizer_of_a_value_sees_the_relu_in_front_of_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            y = self.a(x)
            return self.c(y + self.b(F.relu(y))).mean([2, 3])

    prepared = quant.prepare(Net(), spec(method="lsq", weight_bits=4, act_bits=4)).train()
    prepared(torch.randn(4, 3, 8, 8))
    (second,) = (one.grid() for name, one in quant.quantizers(prepared).items() if name.endswith("relu_to_4"))
    assert (second.q_max - second.q_min, int(second.zero_point) - second.q_min) == (15, 0)


def test_a_value_read_by_a_float_operator_keeps_residual_bits():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            y = self.a(x)
            return self.c(self.b(y) * torch.sigmoid(y)).mean([2, 3])

    assert bits(quant.prepare(Net(), spec(method="ptq", act_bits=2)))["a"] == (8, 8)


def test_the_first_layer_reads_eight_bits_behind_a_normalisation_too():
    prepared = quant.prepare(Dense(), spec(method="ptq", weight_bits=2, act_bits=2))
    assert bits(prepared)["a"][0] == 8
    assert prepared.get_submodule("operators.truediv.output").bits == 8


def test_graphs_that_depend_on_the_mode_are_refused():
    class Net(nn.Module):
        def forward(self, x):
            return x * 2 if self.training else x

    with pytest.raises(UserError, match="its graph in train mode is not that in eval mode"):
        quant.prepare(Net(), spec(method="ptq"))


def test_a_module_that_forward_does_not_reach_keeps_its_state():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.unused = nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(x.mean([2, 3]))

    model = Net()
    assert set(dict(quant.prepare(model, spec(method="ptq")).named_parameters())) == set(dict(model.named_parameters()))


def test_an_integer_model_shares_nothing_with_the_prepared_one():
    prepared = quant.prepare(Dense(), spec(method="ptq"))
    x = torch.randn(8, 3, 12, 12)
    with pytest.raises(UserError, match="has not been calibrated"):
        quant.convert(prepared, "reference")
    quant.calibrate(prepared, [x])
    model = quant.convert(prepared, "reference")
    before = model(x)
    prepared.train()(x * 5)
    assert torch.equal(model(x), before)


def test_autocast_does_not_touch_the_integers():
    prepared = quant.prepare(build("resnet20", "cifar"), spec(method="ptq"))
    x = torch.randn(4, 3, 32, 32)
    quant.calibrate(prepared, [x])
    with torch.autocast("cpu", torch.bfloat16):
        found = prepared(x)
    assert torch.allclose(found, prepared(x), atol=1e-2)


def test_an_auxiliary_output_of_train_mode_is_refused():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.aux = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            x = x.mean([2, 3])
            return (self.fc(x), self.aux(x)) if self.training else self.fc(x)

    with pytest.raises(UserError, match=r"^model Net: its graph in train mode is not that in eval mode \(at [^\n]*$"):
        quant.prepare(Net(), spec(method="ptq"))


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


def test_layers_have_bits_of_their_own_by_name():
    settings = spec(
        method="lsq",
        weight_bits=4,
        act_bits=4,
        layers={
            "layer2.*": {"weight_bits": 2},
            "layer2.0.conv1": {"act_bits": 3},
            "fc": "float",
            "conv1": {"weight_bits": 4},
        },
    )
    prepared = quant.prepare(build("resnet20", "cifar"), settings)
    found = {name: m for name, m in prepared.named_modules() if isinstance(m, QuantLayer)}
    assert found["layer1.0.conv1"].weight_quantizer.bits == 4
    assert found["layer2.0.conv1"].weight_quantizer.bits == found["layer2.1.conv2"].weight_quantizer.bits == 2
    assert found["layer2.0.conv1"].output.bits == 4, "its own act_bits are what it reads, not what it writes"
    assert any(name.endswith("_to_3") for name in quant.quantizers(prepared))
    assert found["conv1"].weight_quantizer.bits == 4, "a name comes before first_last_bits"
    assert found["fc"].weight_quantizer is None
    assert all("operators.mean" not in name and "avgpool" not in name for name in quant.quantizers(prepared))


def test_what_a_layer_reads_is_float_if_its_name_says_so():
    _, prepared = simulated_against_float(nets.plain(10), (3, 16, 16), residual_bits=2, layers={"4": "float"})
    assert "2.output" not in quant.quantizers(prepared)
    assert prepared.get_submodule("0").output.bits == 8


def test_a_pattern_that_matches_no_layer_is_an_error():
    model = build("resnet20", "cifar")
    quant.check_layers(model, ["layer?.*", "fc"])
    with pytest.raises(UserError, match=r"quant.layers: 'layer1.0.conv' matches no layer.*nearest: layer1.0.conv[12]"):
        quant.check_layers(model, ["layer1.0.conv"])


def test_hidden_layers_and_additions_read_grids_of_their_own():
    """A value that both read is on the 8-bit grid of the residual path, and again on the method's own."""
    prepared = quant.prepare(build("resnet20", "cifar"), spec(method="pact", weight_bits=8, act_bits=8))
    found = quant.quantizers(prepared)
    assert type(found["conv1.output"]).__name__ == "ObservedQuantizer"
    assert type(found["quantizers.conv1_1_to_8"]).__name__ == "LearnedClip"
    assert type(found["layer1.0.conv1.output"]).__name__ == "LearnedClip", "read by a hidden layer alone"
    assert type(found["layer1.0.conv2.output"]).__name__ == "ObservedQuantizer", "read by an addition"
    shared = quant.quantizers(quant.prepare(build("resnet20", "cifar"), spec(method="lsq")))
    assert not any("_to_" in name for name in shared), "one grid serves both where the method makes but one kind"


@pytest.mark.parametrize(
    ("method", "options", "note"),
    [
        ("dorefa", {}, "clipped on both sides"),
        ("dorefa", {"signed_edges": "affine"}, "8 bits, affine"),
        ("pact", {}, "clipped at +-alpha"),
        ("pact", {"signed_edges": "affine", "weights": "dorefa"}, "8 bits, affine"),
    ],
)
def test_inputs_that_can_be_negative_are_named_in_the_report(method, options, note):
    settings = spec(method=method, weight_bits=4, act_bits=4, **options)
    prepared = quant.prepare(models.build("mobilenet_v2", 10, 32, {"form": "imagenet"}), settings)
    prepared.train()(torch.randn(4, 3, 32, 32))
    rows = quant.report(prepared.eval(), quant.convert(prepared, "reference"))
    named = [row for row in rows if "its input can be negative" in row[-1] and note in row[-1]]
    assert len(named) == 17, "every expansion behind a linear bottleneck, and the last convolution"
    assert {row[2] for row in named} == {"8" if "affine" in note else "4"}


def test_gradients_are_quantized_wherever_a_hidden_layer_is():
    def quantized(**keys):
        model = quant.prepare(build("resnet20", "cifar"), spec(method="dorefa", weight_bits=4, grad_bits=4, **keys))
        return sum(isinstance(m, QuantLayer) and m.gradient is not None for m in model.modules())

    assert quantized() == 18
    assert quantized(layers={"layer1.0.conv1": "float"}) == 17
    assert quantized(layers={"layer1.0.conv1": {"weight_bits": 32}}) == 18, "it still reads few bits"


def test_a_layer_may_be_called_sigmoid_and_be_negative():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1))
    named = nn.Sequential()
    for name, module in zip(("first", "sigmoid_head", "bend", "third", "last"), net, strict=True):
        named.add_module(name, module)
    prepared = quant.prepare(named, spec(method="lsq", weight_bits=4, act_bits=4))
    assert prepared.get_submodule("first").output.Q_N > 0, "what sigmoid_head reads"
    assert prepared.get_submodule("operators.bend").output.Q_N == 0, "what follows a sigmoid"
