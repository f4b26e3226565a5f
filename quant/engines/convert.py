"""convert: a prepared model becomes integer operators of one engine; every layer is checked before it is handed out."""

import copy

import torch
from torch import Tensor, fx, nn

from quant.core.grid import Grid
from quant.core.quantizer import Quantizer
from quant.engines.base import Converted, Engine, IntegerModel
from quant.engines.verify import choose_kernel, choose_operator
from quant.graph.op_table import module_operator
from quant.graph.typed_graph import TypedGraph, data_inputs
from quant.graph.views import LayerView, OperatorView, layer_view, operator_view, quantizers
from utils.errors import UserError


@torch.no_grad()
def convert(prepared: fx.GraphModule, engine: Engine) -> IntegerModel:
    """Build the integer twin of a prepared model, which is on the CPU, on `engine`; the two share nothing.

    Raises UserError if a range was never observed, RuntimeError if no kernel of the engine reproduces a layer exactly.
    """
    blank = [name for name, quantizer in quantizers(prepared).items() if not quantizer.is_calibrated()]
    if blank:
        raise UserError(f"{blank[0]} has not been calibrated: train or calibrate first ({len(blank)} such quantizers)")
    return engine.finished(_Converter(copy.deepcopy(prepared).eval(), engine).run())


class _Converter:
    """Walks the prepared graph once and writes the engine's."""

    def __init__(self, prepared: fx.GraphModule, engine: Engine):
        self.prepared, self.engine = prepared, engine
        self.modules = dict(prepared.named_modules())
        self.typed = TypedGraph(prepared)
        self.graph = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.grid: dict[fx.Node, Grid | None] = {}
        self.floats: dict[fx.Node, fx.Node] = {}
        self.layers: dict[str, Converted] = {}
        self.operators: dict[str, str] = {}
        self.float_layers: dict[str, Tensor] = {}
        self.joined: dict[fx.Node, list[fx.Node]] = {}

    def run(self) -> IntegerModel:
        for node in self.prepared.graph.nodes:
            self._put(node)
        self.graph.lint()
        twins = {node.name: (new.name, self.grid[node]) for node, new in self.new.items()}
        graph = fx.GraphModule(self.prepared, self.graph)
        return IntegerModel(self.engine, graph, self.layers, self.operators, self.float_layers, twins)

    def _put(self, node: fx.Node) -> None:
        module = self.modules.get(node.target) if node.op == "call_module" else None
        if node.op == "get_attr" and isinstance(self.modules.get(node.target), nn.Module):
            return  # a quantizer or batch norm that a layer is given: its numbers are in the integer layer
        if layer := layer_view(self.modules, node):
            self._put_layer(node, layer)
        elif operator := operator_view(self.modules, node):
            self._put_operator(node, operator)
        elif isinstance(module, Quantizer):
            self._put_quantizer(node, module)
        elif module_operator(module).identity_in_eval:
            self._set(node, self.new[node.args[0]], self.grid[node.args[0]])
        elif self._on_grid(node):
            self._put_pass(node)
        elif self.typed.roles[node] == "shape":
            self._set(node, self.graph.node_copy(node, lambda n: self.new[n]), None)
        else:
            self._set(node, self.graph.node_copy(node, self._float), None)

    def _put_layer(self, node: fx.Node, view: LayerView) -> None:
        module, x, source, norm = view
        grid = None if module.output is None else module.output.grid()
        if module.runs_in_integers(source) and self.grid[x] is not None:
            layer = module.integer(self.grid[x], norm)
            kernel, run, _ = choose_kernel(self.engine, layer)
            self.layers[node.target] = Converted(layer, kernel)
            self._set(node, self._call(run, (self.new[x],), node.name), grid)
            return
        for suffix, part in (("", module), (".norm", norm)):
            if part is not None:
                tensors = part.state_dict().items()
                self.float_layers |= {f"{node.target}{suffix}.{name}": value for name, value in tensors}
        value = self._call(module.frozen(norm), (self._float(x),), node.name)
        self._set(node, self._quantized(value, grid, node), grid)

    def _put_operator(self, node: fx.Node, view: OperatorView) -> None:
        module, values, sources = view
        grid = None if module.output is None else module.output.grid()
        grids = [self.grid[value] for value in values]
        if module.runs_in_integers(sources) and all(grids):
            kernel, run = choose_operator(self.engine, module.integer(grids))
            self.operators[node.target] = kernel
            self._set(node, self._call(run, [self.new[value] for value in values], node.name), grid)
            return
        value = self._call(module.in_float, [self._float(value) for value in values], node.name)
        self._set(node, self._quantized(value, grid, node), grid)

    def _put_quantizer(self, node: fx.Node, quantizer: Quantizer) -> None:
        x, y = node.args[0], quantizer.grid()
        run = self.engine.quantize(y) if self.grid[x] is None else self.engine.requantize(self.grid[x], y)
        self._set(node, self._call(run, (self.new[x],), node.name), y)

    def _put_pass(self, node: fx.Node) -> None:
        if self.typed.roles[node] == "activation":
            x = node.args[0]
            self._set(node, self._call(self.engine.relu(self.grid[x]), (self.new[x],), node.name), self.grid[x])
            return
        x, grid = data_inputs(node)[0], self.grid[data_inputs(node)[0]]
        if len(data_inputs(node)) > 1 or self.typed.names[node] == "channel_shuffle":
            self._put_channels(node, grid)
            return
        around = self.engine.around(grid, self.typed.operator(node).pads)
        if around is None or self.typed.operator(node).splits:
            self._set(node, self.graph.node_copy(node, lambda n: self.new[n]), grid)
            return
        entered = self._call(around[0], (self.new[x],), f"{node.name}_in_float")
        inside = self.graph.node_copy(node, lambda n: entered if n is x else self.new[n])
        self._set(node, self._call(around[1], (inside,), f"{node.name}_held"), grid)

    def _put_channels(self, node: fx.Node, grid: Grid) -> None:
        """A concatenation or a channel shuffle: one operator where the one follows the other."""
        if node in self.joined:
            self._set(node, self._call(self.engine.interleave(grid), self.joined[node], node.name), grid)
            return
        values = [self.new[value] for value in data_inputs(node)]
        if len(values) == 2 and node.args[1] in (1, -3) and len(node.users) == 1 and self._halves(*node.users):
            self.joined[next(iter(node.users))], self.grid[node] = values, grid
        elif len(values) > 1:
            self._set(node, self._call(self.engine.concatenate(grid, node.args[1]), (values,), node.name), grid)
        else:
            groups = self.modules[node.target].groups
            self._set(node, self._call(self.engine.shuffle(grid, groups), values, node.name), grid)

    def _halves(self, node: fx.Node) -> bool:
        """Whether a node shuffles channels in two groups."""
        module = self.modules.get(node.target) if node.op == "call_module" else None
        return isinstance(module, nn.ChannelShuffle) and module.groups == 2

    def _on_grid(self, node: fx.Node) -> bool:
        """Whether a node works on held integers as it stands."""
        values = data_inputs(node)
        if not values or any(self.grid.get(value) is None for value in values):
            return False
        return self.typed.preserves_qparams(node)

    def _float(self, node: fx.Node) -> fx.Node:
        """The value of a node in float."""
        if self.grid[node] is None:
            return self.new[node]
        if node not in self.floats:
            run = self.engine.dequantize(self.grid[node])
            self.floats[node] = self._call(run, (self.new[node],), f"{node.name}_dequantize")
        return self.floats[node]

    def _quantized(self, value: fx.Node, grid: Grid | None, node: fx.Node) -> fx.Node:
        """What a float operator writes, put on its grid."""
        return value if grid is None else self._call(self.engine.quantize(grid), (value,), f"{node.name}_quantize")

    def _call(self, function, arguments, name: str) -> fx.Node:
        return self.graph.create_node("call_function", _Named(function, name), tuple(arguments), name=name)

    def _set(self, node: fx.Node, new: fx.Node, grid: Grid | None) -> None:
        self.new[node], self.grid[node] = new, grid


class _Named:
    """A callable under a name that reads well in the graph's code."""

    def __init__(self, function, name: str):
        self.__name__ = self.__qualname__ = name
        self.function = function

    def __call__(self, *arguments):
        return self.function(*arguments)
