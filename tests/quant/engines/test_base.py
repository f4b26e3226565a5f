"""The reference engine's operators, and what an integer model stores and compiles."""

import contextlib

import pytest
import torch
from torch import nn

import quant
from quant.core.activation import IDENTITY
from quant.core.integer_layer import Geometry, IntegerLayer
from quant.core.integer_operator import add, integer_operator, mul
from quant.engines import base
from quant.engines.base import FLOAT32_KERNEL, Converted, Engine, IntegerModel
from quant.engines.convert import convert
from quant.export.torch_export import PortableEngine
from tests.conftest import KERNELS, photos
from tests.helpers import calibrated, grid, prepared_gated

REFERENCE = Engine()
X, Y = grid(0.1, 20, 6), grid(0.13, 3, 4)


def test_the_reference_engine_works_on_centred_integers():
    x = torch.randn(5, 6)
    n = REFERENCE.quantize(X)(x)
    assert torch.equal(n, X.centred(x))
    assert torch.equal(REFERENCE.dequantize(X)(n), X.value(n))
    assert torch.equal(REFERENCE.requantize(X, Y)(n), Y.centred(X.value(n)))
    assert torch.equal(REFERENCE.relu(X)(n), n.clamp(min=0))
    for convert_integers in (REFERENCE.to_native(X), REFERENCE.from_native(X)):
        other = convert_integers(n)
        assert torch.equal(other, n)
        assert other.data_ptr() != n.data_ptr(), "later operators may work in place"


def test_the_reference_engine_is_always_there_and_has_one_kernel():
    assert REFERENCE.available()
    assert REFERENCE.missing() == ""
    layer = IntegerLayer(Geometry(), torch.ones(2, 3), torch.ones(2), torch.zeros(2), X, None, 0, 0)
    assert REFERENCE.kernels(layer) == (FLOAT32_KERNEL,)
    assert REFERENCE.layer(layer, FLOAT32_KERNEL) is layer
    assert REFERENCE.conversions_around(X, True) is None
    model = object()
    assert REFERENCE.finalize(model) is model


def test_an_engine_that_misses_something_is_not_available():
    class Absent(Engine):
        def missing(self) -> str:
            return "is not here"

    assert not Absent().available()


def test_channels_of_two_maps_alternate():
    p, q = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    found = REFERENCE.interleave(X)(p, q)
    assert torch.equal(found[:, ::2], p)
    assert torch.equal(found[:, 1::2], q)
    assert torch.equal(REFERENCE.concatenate(X, 2)([p, q]), torch.cat([p, q], 2))
    assert torch.equal(REFERENCE.shuffle(X, 3)(found), torch.channel_shuffle(found, 3))


@pytest.mark.parametrize("engine", KERNELS)
def test_any_operator_runs_in_fp32_between_two_conversions(engine):
    engine = quant.engine(engine)
    p, q = (torch.randint(-20, 44, (2, 3, 4, 5)).float() for _ in range(2))
    for arithmetic, run in ((add, torch.add), (mul, torch.mul)):
        op = integer_operator(run.__name__, arithmetic, run, (X, X), Y, IDENTITY)
        found = engine.in_float32(op)(engine.to_native(X)(p), engine.to_native(X)(q))
        assert torch.equal(engine.from_native(Y)(found), op(p, q))


def net_with_float_parts() -> tuple[nn.Module, torch.Tensor]:
    """Three integer layers, and one with its batch norm that stays in float."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU())
    net.extend([nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(980, 3)])
    images = photos(4, 16)
    return calibrated(net, images, layers={"4": "float"}), images


@pytest.mark.parametrize("engine", ["reference", *[name for name in KERNELS if name != "reference"][:1]])
def test_an_integer_model_stores_integers_and_what_stays_float(engine):
    prepared, _ = net_with_float_parts()
    model = quant.convert(prepared, engine)
    stored = model.stored()
    assert set(stored) == {"0", "2", "8", "float"}
    for name in ("0", "8"):
        layer = model.layers[name].layer
        assert {key: value.dtype for key, value in stored[name].items() if not key.startswith("output")} == {
            "weight": torch.int8,
            "scale": torch.float32,
            "bias": torch.int32,
        }
        assert torch.equal(stored[name]["weight"].float(), layer.weight)
        assert torch.equal(stored[name]["bias"].float(), layer.bias)
        assert torch.equal(stored[name]["scale"], layer.scale)
    outputs = {name: model.layers[name].layer.y for name in ("0", "8")}
    assert outputs["0"] is not None
    assert torch.equal(stored["0"]["output_scale"], outputs["0"].scale)
    assert torch.equal(stored["0"]["output_zero_point"], outputs["0"].zero_point)
    assert outputs["8"] is None, "the logits"
    assert not any(key.startswith("output") for key in stored["8"])
    assert torch.equal(stored["float"]["4.weight"], prepared.state_dict()["4.weight"])
    assert {"4.bias", "4.norm.weight", "4.norm.running_mean"} <= set(stored["float"])


def test_a_converted_layer_cannot_be_exchanged_in_place():
    layer = IntegerLayer(Geometry(), torch.ones(2, 3), torch.ones(2), torch.zeros(2), X, None, 0, 0)
    converted = Converted(layer, FLOAT32_KERNEL)
    with pytest.raises(AttributeError):
        converted.kernel = "another"
    with pytest.raises(AttributeError):
        layer.lo = 1


def test_a_program_that_differs_from_its_graph_is_refused(monkeypatch):
    prepared, images = prepared_gated()
    model = quant.convert(prepared, "reference")

    def off_by_a_bit(graph, packed_weights, images, optimize):
        return lambda x: torch.nextafter(graph(x), torch.tensor(torch.inf))

    monkeypatch.setattr(base, "to_torchscript", off_by_a_bit)
    with pytest.raises(RuntimeError, match=r"^reference: the compiled model differs from its graph"):
        model.compile_for(images)


def test_all_packed_weights_go_into_the_program(monkeypatch):
    name = next((name for name in KERNELS if name != "reference"), None)
    if name is None:
        pytest.skip("this build of torch has no native engine")
    prepared, images = prepared_gated()
    model, seen = quant.convert(prepared, name), []

    def remember(graph, packed_weights, images, optimize):
        seen.extend(packed_weights)
        return graph

    monkeypatch.setattr(base, "to_torchscript", remember)
    model.compile_for(images)
    packs = [getattr(node.target, "function", None) for node in model.graph.graph.nodes]
    count = sum(len(getattr(function, "packs", {})) for function in packs)
    assert len(seen) == count >= 2


def test_the_engine_runs_around_every_run_of_a_model():
    entered, active = [], []

    class Counting(Engine):
        @contextlib.contextmanager
        def running(self):
            entered.append(True)
            active.append(True)
            yield
            active.pop()

        def quantize(self, grid):
            def run(x):
                assert active, "outside of running()"
                return grid.centred(x)

            return run

    prepared, images = prepared_gated()
    model = convert(prepared, Counting())
    before = len(entered)
    model(images)
    assert len(entered) == before + 1
    program = model.compile_for(images)
    before = len(entered)
    program(images)
    assert len(entered) == before + 1
    assert not active


class Pooled(nn.Module):
    """Padded max-pools of values that are all negative, and a reshape."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.fc = nn.Conv2d(3, 4, 1), nn.MaxPool2d(3, 2, 1), nn.Linear(4 * 64, 3)
        nn.init.constant_(self.conv.bias, -9.0)

    def forward(self, x):
        return self.fc(self.pool(self.conv(x)).flatten(1))


def test_an_engine_converts_around_nodes_that_pad_by_themselves():
    """A max-pool pads with what is least: on unsigned bytes, that would be another value."""
    images = photos(4, 16)
    prepared = calibrated(Pooled(), images)
    expected = quant.convert(prepared, "reference")(images)
    model = convert(prepared, PortableEngine())
    names = {node.name for node in model.graph.graph.nodes}
    assert {"pool_in_float", "pool_native"} <= names
    assert not any(name.startswith("flatten_") for name in names), "a reshape needs none"
    assert torch.equal(model(images), expected)


def test_every_node_that_moves_values_is_between_the_conversions_of_its_engine():
    class Always(Engine):
        def conversions_around(self, grid, pads):
            return (lambda n: n + 1000), (lambda n: n - 1000)

    images = photos(4, 16)
    prepared = calibrated(Pooled(), images)
    model = convert(prepared, Always())
    names = {node.name for node in model.graph.graph.nodes}
    assert {"pool_in_float", "pool_native", "flatten_in_float", "flatten_native"} <= names
    assert torch.equal(model(images), quant.convert(prepared, "reference")(images))


def test_a_model_is_in_eval_without_gradients():
    prepared, images = prepared_gated()
    model = quant.convert(prepared, "reference")
    assert isinstance(model, IntegerModel)
    assert not model.graph.training
    assert model(images).is_inference()
