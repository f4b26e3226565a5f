"""Arguments of calls, by position, by name and of modules, and the conditions of the table's rows."""

import math
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from quant.graph.node_view import (
    NodeView,
    as_node,
    clamp_between,
    first_input,
    has_plain_arguments,
    has_tensor_and_number,
    has_two_tensors,
    inputs,
    is_mean_over_height_and_width,
    joins_tensors,
    pads_zeros,
    reads_shape,
    target,
    tracks_statistics,
    why_layer_is_float,
)


def call(function, *, of: str | None = None) -> NodeView:
    """The view of the last call of a traced function of x and y (or of the node with that name)."""
    traced = fx.symbolic_trace(function)
    nodes = [node for node in traced.graph.nodes if node.op in ("call_function", "call_method")]
    return NodeView(next(node for node in nodes if node.name == of) if of else nodes[-1])


def test_arguments_by_position_by_name_and_by_default():
    for view in (call(lambda x: F.pad(x, (1, 1), "reflect")), call(lambda x: F.pad(x, (1, 1), mode="reflect"))):
        assert view.argument(2, "mode", "constant") == "reflect"
        assert view.argument(3, "value", 0) == 0
    assert call(lambda x: F.pad(x, (1, 1), "constant", None)).argument(3, "value", 7) == 7, "None is the default"
    view = NodeView(call(F.relu).node, nn.MaxPool2d(3, 2))
    assert view.argument(9, "stride") == 2
    with pytest.raises(AttributeError):
        view.argument(0, "absent", 1)


def test_all_arguments_but_the_first():
    view = call(lambda x: F.pad(x, (1, 1), "constant", value=0.5))
    assert view.others() == [(1, 1), "constant", 0.5]
    assert NodeView(view.node, nn.ReLU()).others() == [], "a module has its own"


def test_names_and_nodes():
    view = call(lambda x, y: torch.add(x, y))
    first, second = view.node.args
    assert as_node(first) is first
    with pytest.raises(TypeError, match="3 is not a node of the graph"):
        as_node(3)
    with pytest.raises(TypeError, match=r"add.* calls a function, which is no name"):
        target(view.node)
    assert target(call(lambda x: x.mean()).node) == "mean"
    assert first_input(view.node) is first
    assert inputs(view.node) == [first, second]
    assert first_input(call(lambda x: torch.add(1, x)).node) is None
    assert first_input(first) is None, "the image has no input"
    assert len(inputs(call(lambda x: torch.add(1, x)).node)) == 1


def test_two_tensors_or_a_tensor_and_a_number():
    calls = {
        "two tensors": lambda x, y: torch.add(x, y),
        "scaled": lambda x, y: torch.add(x, y, alpha=2),
        "a number": lambda x, y: torch.add(x, 2.5),
        "a number first": lambda x, y: torch.add(3, y),
        "scaled number": lambda x, y: torch.add(x, 2, alpha=2),
        "one": lambda x, y: torch.relu(x),
        "three": lambda x, y: torch.where(x, y, 1.0),
        "text": lambda x, y: operator.getitem(x, "floor"),
        "more than one number": lambda x, y: torch.clamp(x, 1.0, 2.0),
        "a number and nothing": lambda x, y: torch.clamp(x, 1.0, None),
    }
    views = {name: call(function) for name, function in calls.items()}
    assert [name for name, view in views.items() if has_two_tensors(view)] == ["two tensors"]
    assert [name for name, view in views.items() if has_tensor_and_number(view)] == ["a number", "a number first"]
    assert [name for name, view in views.items() if not has_plain_arguments(view)] == [
        "two tensors",
        "scaled",
        "a number first",
        "three",
    ]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x.mean((2, 3)), True),
        (lambda x: x.mean([-1, -2]), True),
        (lambda x: x.mean(dim=(3, 2), keepdim=True), True),
        (lambda x: x.mean((1, 2)), False),
        (lambda x: x.mean((-1, 2)), False),
        (lambda x: x.mean((-2, 1)), False),
        (lambda x: x.mean((2, 3, 1)), False),
        (lambda x: x.mean(2), False),
        (lambda x: x.mean(), False),
    ],
)
def test_a_mean_over_height_and_width(function, expected):
    assert is_mean_over_height_and_width(call(function)) is expected


def test_clamps_between_numbers():
    bounds = clamp_between("min", "max", (-math.inf, math.inf))
    assert tuple(bounds(call(lambda x: torch.clamp(x, -1, 2))))[:2] == (-1.0, 2.0)
    assert tuple(bounds(call(lambda x: torch.clamp(x, max=3))))[:2] == (-math.inf, 3.0)
    assert tuple(bounds(call(lambda x: torch.clamp(x, 0.5))))[:2] == (0.5, math.inf)
    assert bounds(call(lambda x, y: torch.clamp(x, y, 2.0))) is None
    assert bounds(call(lambda x, y: torch.clamp(x, 0.0, max=y))) is None


def test_padding_with_zeros():
    assert pads_zeros(call(lambda x: F.pad(x, (1, 1))))
    assert pads_zeros(call(lambda x: F.pad(x, (1, 1), "constant", 0.0)))
    assert not pads_zeros(call(lambda x: F.pad(x, (1, 1), "reflect")))
    assert not pads_zeros(call(lambda x: F.pad(x, (1, 1), value=1)))


def test_what_a_concatenation_joins():
    assert joins_tensors(call(lambda x, y: torch.cat([x, y])))
    assert joins_tensors(call(lambda x, y: torch.cat((x, y))))
    assert not joins_tensors(call(lambda x, y: torch.cat(x)))


def test_attributes_that_are_shapes():
    assert reads_shape(call(lambda x: x.shape))
    assert reads_shape(call(lambda x: x.ndim))
    assert not reads_shape(call(lambda x: x.dtype))


def test_a_norm_tracks_statistics_or_not():
    node = call(F.relu).node
    assert tracks_statistics(NodeView(node, nn.BatchNorm2d(3)))
    assert not tracks_statistics(NodeView(node, nn.BatchNorm2d(3, track_running_stats=False)))


def test_why_a_layer_stays_float():
    node = call(F.relu).node
    hooked, before = nn.Conv2d(3, 3, 1), nn.Linear(3, 3)
    hooked.register_forward_hook(lambda *_: None)
    before.register_forward_pre_hook(lambda *_: None)
    assert why_layer_is_float(NodeView(node, nn.Conv2d(3, 3, 3, padding=1))) == ""
    assert why_layer_is_float(NodeView(node, nn.Linear(3, 3))) == ""
    for layer in (nn.Conv2d(3, 3, 3, padding="same"), nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")):
        assert why_layer_is_float(NodeView(node, layer)) == "padding without zeros of a fixed number"
    for layer in (hooked, before):
        assert why_layer_is_float(NodeView(node, layer)) == "it has hooks"
