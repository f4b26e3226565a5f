"""The views of a prepared graph, and quantizers switched on and off."""

import pytest
import torch
from torch import nn

import quant
from quant.core.quantizer import ActivationQuantizer
from quant.graph.views import (
    layer_arguments,
    layer_view,
    layers,
    only,
    operator_arguments,
    operator_view,
    quantizers,
    switch,
)
from tests.conftest import spec
from tests.helpers import SMALL, build, prepared_gated, prepared_like_float, size_of
from tests.nets import Residual


@pytest.mark.parametrize(("name", "form"), SMALL)
def test_with_quantizers_off_it_is_the_float_net(name, form):
    prepared_like_float(build(name, form), torch.randn(2, 3, size_of(name, form), size_of(name, form)))


def enabled(prepared: nn.Module) -> set[str]:
    return {name for name, quantizer in quantizers(prepared).items() if quantizer.enabled}


def test_only_some_quantizers_for_a_while():
    prepared, images = prepared_gated()
    every = quantizers(prepared)
    name, other = list(every)[:2]
    with only(prepared, [every[name]]):
        assert enabled(prepared) == {name}
        inside = prepared(images)
    assert enabled(prepared) == set(every)
    with only(prepared, []):
        assert not enabled(prepared)
        assert not torch.equal(prepared(images), inside)
    with only(prepared, [every[name], every[other]]):
        assert enabled(prepared) == {name, other}
    with pytest.raises(ZeroDivisionError), only(prepared, []):
        1 / 0  # noqa: B018
    assert enabled(prepared) == set(every), "also after an error"


def test_switched_quantizers_observe_or_not():
    prepared, _ = prepared_gated()
    first, *others = quantizers(prepared).values()
    switch([first], enabled=False, observing=True)
    assert not first.enabled
    assert first.observing
    assert all(one.enabled and not one.observing for one in others)
    switch([first], enabled=True)
    assert first.enabled
    assert not first.observing, "unless it is asked for"


def test_quantizers_on_and_off_together():
    prepared, images = prepared_gated()
    simulated = prepared(images)
    quant.set_enabled(prepared, False)
    assert not enabled(prepared)
    assert not torch.equal(prepared(images), simulated)
    quant.set_enabled(prepared, True)
    assert torch.equal(prepared(images), simulated)


def test_a_layer_with_its_quantizer_and_norm():
    prepared = quant.prepare(Residual(3).eval(), spec(method="ptq"))
    found, modules = layers(prepared), dict(prepared.named_modules())
    assert len(found) == 6
    for name, view in found.items():
        assert view.layer is modules[name]
        assert isinstance(view.source, ActivationQuantizer)
        assert view.quantizers() == [view.layer.weight_quantizer, view.source]
        assert (view.norm is None) == (name == "head.2")
    assert found["stem.0"].norm is modules["stem.1"]


def test_a_layer_without_quantizers():
    prepared = quant.prepare(Residual(3).eval(), spec(method="ptq", weight_bits=32, act_bits=32))
    view = layers(prepared)["first.0"]
    assert view.source is None
    assert view.quantizers() == []


def test_other_nodes_are_neither_layers_nor_operators():
    prepared, _ = prepared_gated()
    modules = dict(prepared.named_modules())
    kinds = {node: (layer_view(modules, node), operator_view(modules, node)) for node in prepared.graph.nodes}
    assert all(layer is None or operator is None for layer, operator in kinds.values())
    assert any(operator is not None for _, operator in kinds.values())
    for node, (layer, operator) in kinds.items():
        if node.op != "call_module":
            assert (layer, operator) == (None, None)
        if operator is not None:
            assert operator.operator is modules[node.target]
            assert len(operator.values) == len(operator.sources) >= 1
            assert all(source is None or isinstance(source, ActivationQuantizer) for source in operator.sources)


def test_a_graph_that_passes_something_else_is_refused():
    """A layer gets an activation quantizer, or None, and a batch norm, or None."""
    prepared, _ = prepared_gated()
    modules = dict(prepared.named_modules())
    node = next(node for node in prepared.graph.nodes if layer_view(modules, node) and node.args[1] is not None)
    _, source, _ = node.args
    with pytest.raises(TypeError, match="is not an activation quantizer"):
        layer_view(modules | {source.target: nn.ReLU()}, node)
    normed = next(n for n in prepared.graph.nodes if layer_view(modules, n) and n.args[2] is not None)
    with pytest.raises(TypeError, match="is not a batch norm"):
        layer_view(modules | {normed.args[2].target: nn.ReLU()}, normed)


def test_the_arguments_of_a_call_by_name():
    """As the views read them from the graph."""
    prepared, _ = prepared_gated()
    modules = dict(prepared.named_modules())
    for node in prepared.graph.nodes:
        if layer := layer_view(modules, node):
            given = layer_arguments(node.args)
            assert given.x is layer.x
            assert (given.source is None) == (layer.source is None)
            assert (given.norm is None) == (layer.norm is None)
        if operator := operator_view(modules, node):
            given = operator_arguments(node.args)
            assert tuple(given.values) == operator.values
            assert len(given.sources) == len(operator.sources)
