"""Convert a prepared model into an integer model that runs on one engine.

For each layer the fastest kernel is chosen that passes the check of engines/verify.py.
"""

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from quant.core.contract import check_activation_quantizer, check_weight_quantizer
from quant.core.grid import Grid
from quant.core.quantizer import ActivationQuantizer, Quantizer
from quant.engines.base import Converted, Engine, IntegerModel
from quant.engines.verify import choose_kernel, choose_operator
from quant.graph.node_view import as_node, concatenated_axis, target
from quant.graph.op_table import module_operator
from quant.graph.quant_layers import FloatOperator
from quant.graph.rewrites import attribute, called
from quant.graph.typed_graph import TypedGraph, data_inputs
from quant.graph.views import LayerView, OperatorView, called_module, layer_view, layers, operator_view, quantizers
from utils.errors import UserError


@torch.no_grad()
def convert(prepared: fx.GraphModule, engine: Engine) -> IntegerModel:
    """Build the integer model of a prepared model, which must be on the CPU. The two share no tensors.

    Raises UserError if a quantizer has not been calibrated, or breaks its contract (core/contract.py), and RuntimeError
    if no kernel of the engine is exact for a layer.
    """
    uncalibrated = [name for name, quantizer in quantizers(prepared).items() if not quantizer.is_calibrated()]
    if uncalibrated:
        raise UserError(
            f"{uncalibrated[0]} has not been calibrated: train or calibrate first ({len(uncalibrated)} such quantizers)"
        )
    _check_quantizers(prepared)
    return engine.finalize(_Converter(copy.deepcopy(prepared).eval().requires_grad_(False), engine).run())


def _check_quantizers(prepared: fx.GraphModule) -> None:
    """Check all quantizers again: many had no range yet when prepare checked them."""
    checked: set = set()
    for view in layers(prepared).values():
        if view.layer.weight_quantizer is not None:
            check_weight_quantizer(view.layer.weight_quantizer, view.layer.weight, checked)
    for quantizer in quantizers(prepared).values():
        if isinstance(quantizer, ActivationQuantizer):
            check_activation_quantizer(quantizer)


class _Converter:
    """Visits the nodes of the prepared graph in order and builds the engine's graph.

    converted: prepared node -> its node in the new graph.
    grid: prepared node -> the grid of its value, or None if the value is float.
    dequantized: prepared node -> the node of the new graph with its value in float, created when first needed.
    interleaved: channel shuffle -> the inputs of the concatenation before it; the two become one operator.
    """

    def __init__(self, prepared: fx.GraphModule, engine: Engine):
        self.prepared, self.engine = prepared, engine
        self.modules = dict(prepared.named_modules())
        self.typed = TypedGraph(prepared)
        self.graph = fx.Graph()
        self.converted: dict[fx.Node, fx.Node] = {}
        self.grid: dict[fx.Node, Grid | None] = {}
        self.dequantized: dict[fx.Node, fx.Node] = {}
        self.layers: dict[str, Converted] = {}
        self.operators: dict[str, str] = {}
        self.float_layers: dict[str, Tensor] = {}
        self.interleaved: dict[fx.Node, list[fx.Node]] = {}

    def run(self) -> IntegerModel:
        """Convert every node, in topological order."""
        for node in self.prepared.graph.nodes:
            self._convert(node)
        self.graph.lint()
        node_map = {node.name: (new.name, self.grid[node]) for node, new in self.converted.items()}
        graph = fx.GraphModule(self.prepared, self.graph)
        return IntegerModel(self.engine, graph, self.layers, self.operators, self.float_layers, node_map)

    def _convert(self, node: fx.Node) -> None:
        module = called_module(self.modules, node)
        if node.op == "get_attr" and isinstance(self.modules.get(target(node)), nn.Module):
            return  # a quantizer or batch norm passed to a layer: the integer layer already contains its numbers
        if self.typed.roles[node] == "constant" and not self._read_in_float(node):
            return
        if layer := layer_view(self.modules, node):
            self._convert_layer(node, layer)
        elif operator := operator_view(self.modules, node):
            self._convert_operator(node, operator)
        elif isinstance(module, Quantizer):
            self._convert_quantizer(node, module)
        elif module_operator(module).identity_in_eval:
            x = as_node(node.args[0])
            self._set(node, self.converted[x], self.grid[x])
        elif self._on_grid(node):
            self._convert_passthrough(node)
        elif self.typed.roles[node] == "shape":
            self._set(node, self.graph.node_copy(node, lambda n: self.converted[n]), None)
        else:
            self._set(node, self.graph.node_copy(node, self._float), None)

    def _convert_layer(self, node: fx.Node, view: LayerView) -> None:
        module, x, norm = view.layer, view.x, view.norm
        grid = None if module.output is None else module.output.grid()
        input_grid = self.grid[x]
        if input_grid is not None and module.runs_in_integers(view.source):
            layer = module.integer(input_grid, norm)
            kernel, run, _ = choose_kernel(self.engine, layer)
            self.layers[target(node)] = Converted(layer, kernel)
            self._set(node, self._call(run, (self.converted[x],), node.name), grid)
            return
        for suffix, submodule in (("", module), (".norm", norm)):
            if submodule is not None:
                tensors = submodule.state_dict().items()
                self.float_layers |= {f"{node.target}{suffix}.{name}": value for name, value in tensors}
        value = self._call(module.frozen(norm), (self._float(x),), node.name)
        self._set(node, self._quantized(value, grid, node), grid)

    def _convert_operator(self, node: fx.Node, view: OperatorView) -> None:
        module, values = view.operator, view.values
        grid = None if module.output is None else module.output.grid()
        grids = [grid for grid in map(self.grid.__getitem__, values) if grid is not None]
        constants = [self._constant(one) for one in view.constants]
        if module.runs_in_integers(view.sources) and len(grids) == len(values):
            kernel, run = choose_operator(self.engine, module.integer(grids, constants))
            self.operators[target(node)] = kernel
            self._set(node, self._call(run, [self.converted[value] for value in values], node.name), grid)
            return
        in_float = FloatOperator(module.name, module.bound(constants), module.activation)
        value = self._call(in_float, [self._float(value) for value in values], node.name)
        self._set(node, self._quantized(value, grid, node), grid)

    def _read_in_float(self, constant: fx.Node) -> bool:
        """Whether an operator in float reads a constant, or what is computed from it; others hold its value."""
        return any(
            self._read_in_float(user) if self.typed.roles[user] == "constant" else not operator_view(self.modules, user)
            for user in constant.users
        )

    def _constant(self, node: fx.Node) -> Any:
        """The value of a constant of the model: a tensor, or a batch norm."""
        if node.op == "get_attr":
            return self.modules.get(target(node)) or attribute(self.prepared, node)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._constant)
        return called(node)(*args, **kwargs)

    def _convert_quantizer(self, node: fx.Node, quantizer: Quantizer) -> None:
        x, y = as_node(node.args[0]), quantizer.grid()
        grid = self.grid[x]
        run = self.engine.quantize(y) if grid is None else self.engine.requantize(grid, y)
        self._set(node, self._call(run, (self.converted[x],), node.name), y)

    def _convert_passthrough(self, node: fx.Node) -> None:
        """A node whose output lies on the grid of its input: an activation, or a node that only moves values."""
        if self.typed.roles[node] == "activation":
            x = as_node(node.args[0])
            grid = self._grid(x)
            self._set(node, self._call(self.engine.relu(grid), (self.converted[x],), node.name), grid)
            return
        x = data_inputs(node)[0]
        grid = self._grid(x)
        if len(data_inputs(node)) > 1 or self.typed.operator(node).shuffles:
            self._convert_channels(node, grid)
            return
        if own := self.engine.moving(self.typed.names[node], self.typed.views[node]):
            self._set(node, self._call(own, (self.converted[x],), node.name), grid)
            return
        conversions = self.engine.conversions_around(grid, self.typed.operator(node))
        if conversions is None or self.typed.operator(node).splits:
            self._set(node, self.graph.node_copy(node, lambda n: self.converted[n]), grid)
            return
        before, after = conversions
        value = self._call(before, (self.converted[x],), f"{node.name}_in_float")
        moved = self.graph.node_copy(node, lambda n: value if n is x else self.converted[n])
        self._set(node, self._call(after, (moved,), f"{node.name}_native"), grid)

    def _convert_channels(self, node: fx.Node, grid: Grid) -> None:
        """A concatenation or a channel shuffle.

        A shuffle that alone reads a concatenation becomes one operator with it.
        """
        if node in self.interleaved:
            self._set(node, self._call(self.engine.interleave(grid), self.interleaved[node], node.name), grid)
            return
        values = [self.converted[value] for value in data_inputs(node)]
        if (
            len(values) == 2
            and concatenated_axis(node) in (1, -3)
            and len(node.users) == 1
            and self._shuffles_in_two_groups(*node.users)
        ):
            self.interleaved[next(iter(node.users))], self.grid[node] = values, grid
        elif self.typed.operator(node).shuffles:
            self._set(node, self._call(self.engine.shuffle(grid, self._groups(node)), values, node.name), grid)
        else:
            concatenate = self.engine.concatenate(grid, concatenated_axis(node))
            self._set(node, self._call(concatenate, (values,), node.name), grid)

    def _shuffles_in_two_groups(self, node: fx.Node) -> bool:
        """Whether a node is a channel shuffle in two groups."""
        return self.typed.operator(node).shuffles and self._groups(node) == 2

    def _groups(self, shuffle: fx.Node) -> int:
        return self.typed.views[shuffle].argument(1, "groups")

    def _on_grid(self, node: fx.Node) -> bool:
        """Whether all data inputs of a node have a grid, and its output lies on the same one."""
        values = data_inputs(node)
        if not values or any(self.grid.get(value) is None for value in values):
            return False
        return self.typed.preserves_qparams(node)

    def _grid(self, node: fx.Node) -> Grid:
        """The grid of a value that is in integers."""
        grid = self.grid[node]
        if grid is None:
            raise ValueError(f"{node.name} is in float")
        return grid

    def _float(self, node: fx.Node) -> fx.Node:
        """The value of a node in float."""
        grid = self.grid[node]
        if grid is None:
            return self.converted[node]
        if node not in self.dequantized:
            run = self.engine.dequantize(grid)
            self.dequantized[node] = self._call(run, (self.converted[node],), f"{node.name}_dequantize")
        return self.dequantized[node]

    def _quantized(self, value: fx.Node, grid: Grid | None, node: fx.Node) -> fx.Node:
        """The result of a float operator, quantized to its output grid if it has one."""
        return value if grid is None else self._call(self.engine.quantize(grid), (value,), f"{node.name}_quantize")

    def _call(self, function, arguments, name: str) -> fx.Node:
        return self.graph.create_node("call_function", _Named(function, name), tuple(arguments), name=name)

    def _set(self, node: fx.Node, new: fx.Node, grid: Grid | None) -> None:
        self.converted[node], self.grid[node] = new, grid


class _Named:
    """A callable with a readable name, which appears in the code of the graph."""

    def __init__(self, function, name: str):
        self.__name__ = self.__qualname__ = name
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)
