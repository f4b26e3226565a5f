"""Roles of nodes, and what the table of operators knows of them."""

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from quant.graph.op_table import FLOAT_OPERATOR, OPERATORS
from quant.graph.typed_graph import TypedGraph, data_inputs


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.up, self.mirrored = nn.ConvTranspose2d(4, 4, 2), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")

    def forward(self, x):
        y = self.norm(self.conv(x))
        relu, relu6, tanh = F.relu(y), F.relu6(y), F.hardtanh(y)
        total = relu + relu6
        product = total * tanh
        gate = torch.sigmoid(product)
        pooled = F.max_pool2d(gate, 2)
        value, index = pooled.max(2)
        joined = torch.cat([pooled, pooled], 1)
        first, second = joined.chunk(2, 1)
        rows = first.size(0) + second.size(0)
        odd = torch.cumsum(self.mirrored(self.up(second)), 1)
        return self.fc(odd.mean((2, 3))), rows, value, index


@pytest.fixture(scope="module")
def graph():
    return TypedGraph(fx.symbolic_trace(Net().eval()))


def node(graph: TypedGraph, name: str) -> fx.Node:
    return next(node for node in graph.nodes if node.name == name)


def test_roles(graph):
    roles = {n.name: graph.roles[n] for n in graph.nodes}
    expected = {
        "x": "image",
        "conv": "layer",
        "norm": "norm",
        "relu": "activation",
        "relu6": "activation",
        "hardtanh": "activation",
        "add": "binary",
        "mul": "binary",
        "sigmoid": "function",
        "max_pool2d": "pass",
        "cat": "pass",
        "chunk": "pass",
        "size": "shape",
        "add_1": "shape",
        "cumsum": "float",
        "up": "float",
        "mirrored": "float",
        "mean": "average",
        "fc": "layer",
        "output": "output",
    }
    assert {name: roles[name] for name in expected} == expected


def test_a_part_of_what_a_float_operator_returns_is_float(graph):
    """The values and the indices of a maximum; a part of a split is on its grid."""
    parts = {data_inputs(n)[0].name: graph.roles[n] for n in graph.nodes if n.target is operator.getitem}
    assert parts == {"max_1": "float", "chunk": "pass"}


def test_what_preserves_the_grid(graph):
    """What moves values, and ReLU; another activation clips at a level that may lie off the grid."""
    names = ("relu", "relu6", "hardtanh", "max_pool2d", "cat", "chunk", "sigmoid", "add", "conv", "x", "cumsum")
    assert [name for name in names if graph.preserves_qparams(node(graph, name))] == [
        "relu",
        "max_pool2d",
        "cat",
        "chunk",
    ]


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("relu", [True], False),
        ("relu6", [True], False),
        ("hardtanh", [True], True),
        ("hardtanh", [False], True),
        ("add", [False, False], False),
        ("add", [False, True], True),
        ("mul", [False, False], False),
        ("mul", [True, False], True),
        ("sigmoid", [True], False),
        ("max_pool2d", [False], False),
        ("max_pool2d", [True], True),
        ("cat", [False, True], True),
        ("cat", [False, False], False),
        ("mean", [False], False),
        ("mean", [True], True),
        ("conv", [False], True),
        ("norm", [False], True),
        ("cumsum", [False], True),
        ("x", [], True),
    ],
)
def test_whether_a_value_can_be_negative(graph, name, given, expected):
    assert graph.signed(node(graph, name), given) is expected


def test_the_activation_of_a_node(graph):
    assert tuple(graph.activation(node(graph, "relu6"))) == (0.0, 6.0, 1.0, 0.0)
    assert tuple(graph.activation(node(graph, "hardtanh")))[:2] == (-1.0, 1.0)
    assert graph.activation(node(graph, "conv")) is None


def test_rows_of_the_table(graph):
    assert graph.operator(node(graph, "sigmoid")) is OPERATORS["sigmoid"]
    assert graph.name(node(graph, "sigmoid")) == "sigmoid"
    assert graph.operator(node(graph, "cumsum")) is FLOAT_OPERATOR
    with pytest.raises(ValueError, match=r"^cumsum is not in the table of operators"):
        graph.name(node(graph, "cumsum"))


def test_layers_of_nodes(graph):
    assert graph.layer(node(graph, "conv")) is graph.module.conv
    assert graph.submodule(node(graph, "relu")) is None
    with pytest.raises(TypeError, match=r"^norm is not a convolution or linear layer"):
        graph.layer(node(graph, "norm"))


def test_why_a_layer_is_float(graph):
    assert graph.why_float(node(graph, "mirrored")) == "padding without zeros of a fixed number"
    assert graph.why_float(node(graph, "up")) == "ConvTranspose2d has no integer form here"
    for name in ("conv", "relu", "norm"):
        assert graph.why_float(node(graph, name)) == ""


def test_a_value_that_something_is_divided_by_is_float_and_what_is_read_for_it_alone():
    class Net(nn.Module):
        def forward(self, x):
            y = x.relu()
            return y / (y.mean((2, 3), keepdim=True) + 1e-6) + y.mean((2, 3), keepdim=True)

    graph = TypedGraph(fx.symbolic_trace(Net()))
    assert {n.name: graph.roles[n] for n in graph.nodes} == {
        "x": "image", "relu": "activation", "mean": "float", "add": "float", "truediv": "float", "mean_1": "average",
        "add_1": "binary", "output": "output",
    }  # fmt: skip
    assert graph.why_float(node(graph, "add")) == "a divisor, or the argument of a root or logarithm"


def test_a_tensor_of_the_model_is_a_constant_also_in_another_shape():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x):
            return x * self.scale.view(1, -1, 1, 1)

    graph = TypedGraph(fx.symbolic_trace(Net()))
    assert [graph.roles[n] for n in graph.nodes] == ["image", "constant", "constant", "function", "output"]


def test_nodes_added_later_have_no_role(graph):
    traced = fx.symbolic_trace(Net().eval())
    typed = TypedGraph(traced)
    with traced.graph.inserting_after(typed.nodes[0]):
        later = traced.graph.call_function(torch.relu, (typed.nodes[0],))
    assert typed.operator(later) is FLOAT_OPERATOR
    assert not typed.preserves_qparams(later)


def test_data_inputs(graph):
    assert [n.name for n in data_inputs(node(graph, "cat"))] == ["max_pool2d", "max_pool2d"]
    assert [n.name for n in data_inputs(node(graph, "max_pool2d"))] == ["sigmoid"]
    assert data_inputs(node(graph, "x")) == []


def test_a_method_of_the_name_of_a_layer_is_not_a_call_of_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.mean(x).mean((2, 3))

    graph = TypedGraph(fx.symbolic_trace(Net()))
    assert [graph.roles[n] for n in graph.nodes] == ["image", "layer", "average", "output"]


@pytest.mark.parametrize(
    ("function", "given", "expected"),
    [
        (F.hardswish, False, True),
        (F.silu, False, True),
        (lambda x: torch.tanh(x), False, True),
        (lambda x: torch.sigmoid(x), True, False),
        (lambda x: x - 0.5, False, True),
        (lambda x: x + 0.5, False, True),
        (lambda x: F.max_pool2d(x, 2), False, False),
    ],
)
def test_whether_a_function_can_be_negative(function, given, expected):
    """Unless its row says otherwise it can, whatever it reads."""
    graph = TypedGraph(fx.symbolic_trace(function))
    assert graph.signed(graph.nodes[1], [given]) is expected
