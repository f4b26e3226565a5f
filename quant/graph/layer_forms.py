"""What computes a convolution, a linear layer or a batch norm becomes a module that does.

    F.conv2d, F.conv1d, F.linear      a module with the same Parameters, under the name of the module that owns them
    padding="same", padding modes     F.pad and a convolution without padding; symmetric zeros become its padding
    Conv1d                            a convolution of maps of height 1
    a layer that is called again      a second module with the same Parameters
    SyncBatchNorm, F.batch_norm       BatchNorm2d with the same tensors
    timm's norm with activation       BatchNorm2d and the activation

The Parameters are the same objects. Where their owner has more than one layer's tensors, they keep their names there,
and the new module, under `layers`, borrows them (`borrows`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from quant.graph.layer_modules import (
    ARGUMENTS,
    affine_norm,
    batch_norm_of_call,
    by_channel,
    extend_norm,
    layer_of_call,
    on_same_parameters,
    padding_of_sides,
    plain_convolution,
    row_convolution,
    with_tensors_of,
)
from quant.graph.node_view import NodeView, as_node, first_input, has_tensor_then_constant, target
from quant.graph.op_table import name_of
from quant.graph.plain_classes import pad_same, pads_same, plain_class
from quant.graph.rewrites import attribute, constant_value
from quant.graph.tracer import NORM_ACT


def free_name(model: nn.Module, wanted: str) -> str:
    """The name, or with underscores behind it the first that the model has no attribute of."""
    while hasattr(model, wanted):
        wanted += "_"
    return wanted


def child_name(parent: str, name: str) -> str:
    """The name of a new module below `parent`: nn.Module has methods of some names, such as `to` and `float`."""
    return f"{parent}.{name}_" if hasattr(nn.Module, name) else f"{parent}.{name}"


def split_norms_and_activations(traced: fx.GraphModule) -> None:
    """Split timm's batch norms with an activation into a plain batch norm and the activation."""
    split_names: dict[str, list[str]] = {}
    for node in list(traced.graph.nodes):
        _split_norm_and_act(traced, node, split_names)


def write_layers_as_modules(traced: fx.GraphModule) -> None:
    """Write all layers and batch norms of the graph as modules."""
    _Writer(traced).run()
    traced.graph.eliminate_dead_code(lambda node: node.op != "get_attr")


class _Writer:
    """Rewrites the nodes of a graph. called: the layers that earlier nodes call, as they were, by name."""

    def __init__(self, traced: fx.GraphModule):
        self.traced, self.graph = traced, traced.graph
        self.extra = free_name(traced, "layers")
        self.called: dict[str, nn.Module] = {}
        self.same: set[str] = set()

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if node.op == "call_function" and node.target in ARGUMENTS:
                self._function_as_module(node)
            if node.op == "call_module":
                self._norm_as_batch_norm(node)
                self._same_as_padding(node)
                self._module_for_each_call(node)
                self._padding_before(node)
                self._conv1d_as_conv2d(node)
            self._constant_as_norm(node)

    def _module(self, node: fx.Node) -> Any:
        return self.traced.get_submodule(target(node))

    def _function_as_module(self, node: fx.Node) -> None:
        """F.conv2d, F.conv1d, F.linear and F.batch_norm on Parameters and constants of the model."""
        given = dict(zip(ARGUMENTS[node.target], node.args, strict=False)) | node.kwargs
        tensors = {name: value for name, value in given.items() if isinstance(value, fx.Node) and name != "input"}
        if given.get("weight") is None or any(value.op != "get_attr" for value in tensors.values()):
            return
        values = {name: attribute(self.traced, value) for name, value in tensors.items()}
        make = batch_norm_of_call if node.target is F.batch_norm else layer_of_call
        module = make(node, {name: values.get(name, value) for name, value in given.items()})
        if module is None:
            return
        name = self._name_of_owner(tensors, values)
        if name is None:
            name = self._extra_name(node, module)
        else:
            self.traced.set_submodule(name, module)
        node.op, node.target, node.args, node.kwargs = "call_module", name, (given["input"],), {}

    def _name_of_owner(self, tensors: dict[str, fx.Node], values: dict[str, Any]) -> str | None:
        """The name of the module that owns these tensors under the names of the arguments, and owns nothing else."""
        owners = {target(value).rpartition(".")[0] for value in tensors.values()}
        named = all(target(value).rpartition(".")[2] == name for name, value in tensors.items())
        name = next(iter(owners)) if len(owners) == 1 else ""
        if not (name and named) or any(len(value.users) > 1 for value in tensors.values()):
            return None
        owner = self.traced.get_submodule(name)
        own = {id(value) for value in (*owner.parameters(), *owner.buffers())}
        return name if own <= {id(value) for value in values.values()} and not any(owner.children()) else None

    def _extra_name(self, node: fx.Node, module: nn.Module) -> str:
        """Add a module whose Parameters another one owns."""
        name = child_name(self.extra, node.name)
        module.__dict__["borrows_parameters"] = True
        self.traced.add_submodule(name, module)
        return name

    def _norm_as_batch_norm(self, node: fx.Node) -> None:
        norm = self._module(node)
        if plain_class(norm) is nn.SyncBatchNorm:
            self.traced.set_submodule(target(node), with_tensors_of(norm, nn.BatchNorm2d))

    def _same_as_padding(self, node: fx.Node) -> None:
        """TensorFlow's 'same' convolution of another library becomes pad_same and a plain convolution."""
        layer, name = self._module(node), target(node)
        if name not in self.same and pads_same(layer):
            self.same.add(name)
            self.traced.set_submodule(name, plain_convolution(layer))
        if name in self.same:
            self._insert_before(node, pad_same, layer.kernel_size, layer.stride, layer.dilation)

    def _module_for_each_call(self, node: fx.Node) -> None:
        """Give each further call of a layer a module of its own, on the same Parameters."""
        layer, name = self._module(node), target(node)
        if name in self.called:
            node.target = self._extra_name(node, on_same_parameters(self.called[name]))
        elif plain_class(layer) in (nn.Conv1d, nn.Conv2d, nn.Linear):
            self.called[name] = layer

    def _padding_before(self, node: fx.Node) -> None:
        """Padding that a convolution of integers does not have becomes F.pad before it."""
        layer = self._module(node)
        if not isinstance(layer, nn.Conv1d | nn.Conv2d) or plain_class(layer) is None:
            return
        sides = padding_of_sides(layer)
        symmetric = layer.padding_mode == "zeros" and all(before == after for before, after in sides)
        if symmetric and not isinstance(layer.padding, str):
            return
        plain = on_same_parameters(layer)
        plain.padding_mode = "zeros"
        plain.padding = tuple(before if symmetric else 0 for before, _ in sides)
        self.traced.set_submodule(target(node), plain)
        if not symmetric and any(map(any, sides)):
            amounts = [amount for pair in reversed(sides) for amount in pair]
            mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
            self._insert_before(node, F.pad, amounts, mode)

    def _constant_as_norm(self, node: fx.Node) -> None:
        """A constant for each channel behind a convolution, which multiplies or is added, becomes a batch norm, or the
        gamma or beta of the one that another constant became."""
        name, before = name_of(node), first_input(node)
        known = name in ("add", "sub", "mul", "truediv", "div") and has_tensor_then_constant(NodeView(node))
        if not known or before is None or before.op != "call_module" or len(before.users) > 1:
            return
        layer, constant = self._module(before), constant_value(self.traced, as_node(node.args[1]))
        values = None if constant is None else by_channel(constant, layer)
        if values is None:
            return
        if isinstance(layer, nn.Conv2d):
            norm = affine_norm(layer.out_channels, values.dtype)
            self.traced.add_submodule(f"{self.extra}.{node.name}", norm)
            extend_norm(norm, name, values)
            node.op, node.target, node.args, node.kwargs = "call_module", f"{self.extra}.{node.name}", (before,), {}
        else:
            extend_norm(layer, name, values)
            node.replace_all_uses_with(before)
            self.graph.erase_node(node)

    def _insert_before(self, node: fx.Node, function: Any, *arguments: Any) -> None:
        x = as_node(node.args[0])
        with self.graph.inserting_before(node):
            node.args = (self.graph.call_function(function, (x, *arguments)),)

    def _conv1d_as_conv2d(self, node: fx.Node) -> None:
        """Conv1d, with the BatchNorm1d behind it, on maps of height 1."""
        layer = self._module(node)
        if plain_class(layer) is not nn.Conv1d or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            return
        self.traced.set_submodule(target(node), row_convolution(layer))
        self._insert_before(node, torch.unsqueeze, 2)
        last, norm = node, next(iter(node.users), node)
        if len(node.users) == 1 and norm.op == "call_module" and plain_class(self._module(norm)) is nn.BatchNorm1d:
            self.traced.set_submodule(target(norm), with_tensors_of(self._module(norm), nn.BatchNorm2d))
            last = norm
        with self.graph.inserting_after(last):
            row = self.graph.call_function(torch.squeeze, (last, 2))
        last.replace_all_uses_with(row, delete_user_cb=lambda user: user is not row)


def _split_norm_and_act(traced: fx.GraphModule, node: fx.Node, split_names: dict[str, list[str]]) -> None:
    """Split one call of a batch norm with an activation.

    split_names: filled in here: the name of each such module -> the names of the modules inside, for its other calls.
    """
    if node.op != "call_module":
        return
    path = target(node)
    both = traced.get_submodule(path)
    if isinstance(both, nn.modules.batchnorm._BatchNorm) and type(both).__name__ in NORM_ACT:
        inside = [name for name, module in both.named_children() if not isinstance(module, nn.Identity)]
        split_names[path] = [f"{path}.{name}" for name in inside]
        traced.set_submodule(path, with_tensors_of(both, nn.BatchNorm2d))
    last = node
    for name in split_names.get(path, ()):
        last = _call_after(traced, last, name)


def _call_after(traced: fx.GraphModule, node: fx.Node, name: str) -> fx.Node:
    """Insert a call of a module after a node; all other readers of the node then read the module's output."""
    with traced.graph.inserting_after(node):
        call = traced.graph.call_module(name, (node,))
    node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
    return call
