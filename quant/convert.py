"""convert: a prepared model becomes integer operators of one engine; every layer is checked before it is handed out."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from quant.engine import Engine, Operator
from quant.grid import Grid
from quant.integer import UNBOUNDED, Bounds, IntegerLayer
from quant.layers import QuantAverage, QuantLayer
from quant.prepare import quantizers
from quant.quantizer import Quantizer
from quant.trace import bounds_of, hands_on, pools_or_pads, roles, vanishes
from quant.verify import Difference, choose_addition, choose_kernel


@dataclass(frozen=True)
class Converted:
    """A layer on its kernel."""

    layer: IntegerLayer
    kernel: str
    operator: Operator
    difference: Difference


class IntegerModel(nn.Module):
    """Float images [N, 3, H, W] in, float logits out, integers between.

    `layers`: the Converted layers by name; `additions`: kernel and output bits of each integer addition by its node's
    name; `float_layers`: the tensors of layers that stay in float;
    `twins`: for each node of the prepared graph that has one, its node here and the grid its value is on, or None.
    """

    def __init__(
        self,
        engine: Engine,
        graph: fx.GraphModule,
        layers: dict[str, Converted],
        additions: dict[str, tuple[str, int]],
        float_layers: dict[str, Tensor],
        twins: dict[str, tuple[str, Grid | None]],
    ):
        super().__init__()
        self.engine, self.graph, self.layers, self.additions = engine, graph.eval(), layers, additions
        self.float_layers, self.twins = float_layers, twins

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        with self.engine.running():
            return self.graph(images)

    def stored(self) -> dict[str, dict[str, Tensor]]:
        """What there is to store: int8 weights, fp32 scales and int32 biases of each layer, and its output's grid;
        and under "float" the tensors of what stays in float.
        """
        integers = {name: _stored(converted.layer) for name, converted in self.layers.items()}
        return integers | {"float": self.float_layers | self.graph.state_dict()}


@torch.no_grad()
def convert(prepared: fx.GraphModule, engine: Engine) -> IntegerModel:
    """Build the integer twin of a prepared model, which is on the CPU, on `engine`; the two share nothing.

    Raises RuntimeError if a range was never observed, or if no kernel of the engine reproduces a layer exactly.
    """
    blank = [name for name, quantizer in quantizers(prepared).items() if not quantizer.ready()]
    if blank:
        raise RuntimeError(f"{blank[0]} has not seen any data: train or calibrate first ({len(blank)} such quantizers)")
    return _Converter(copy.deepcopy(prepared).eval(), engine).run()


class _Converter:
    """Walks the prepared graph once and writes the engine's."""

    def __init__(self, prepared: fx.GraphModule, engine: Engine):
        self.prepared, self.engine = prepared, engine
        self.modules = dict(prepared.named_modules())
        self.role = roles(prepared)
        self.graph = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.grid: dict[fx.Node, Grid | None] = {}
        self.floats: dict[fx.Node, fx.Node] = {}
        self.layers: dict[str, Converted] = {}
        self.additions: dict[str, tuple[str, int]] = {}
        self.float_layers: dict[str, Tensor] = {}
        self.sums = self._find_sums()
        self.inside = {node for add, act, _ in self.sums.values() for node in (add, act) if node is not None}

    def run(self) -> IntegerModel:
        for node in self.prepared.graph.nodes:
            if node not in self.inside:
                self._put(node)
        self.graph.lint()
        twins = {node.name: (new.name, self.grid[node]) for node, new in self.new.items()}
        graph = fx.GraphModule(self.prepared, self.graph)
        return IntegerModel(self.engine, graph, self.layers, self.additions, self.float_layers, twins)

    def _put(self, node: fx.Node) -> None:
        module = self.modules.get(node.target) if node.op == "call_module" else None
        if node.op == "get_attr" and isinstance(self.modules.get(node.target), nn.Module):
            return  # a quantizer or norm that a layer is given; its numbers are in the integer layer
        if isinstance(module, QuantLayer):
            self._put_layer(node, module)
        elif isinstance(module, QuantAverage):
            self._put_average(node, module)
        elif node in self.sums:
            self._put_sum(node, module)
        elif isinstance(module, Quantizer):
            self._put_quantizer(node, module)
        elif vanishes(module):
            self._set(node, self.new[node.args[0]], self.grid[node.args[0]])
        elif self._on_grid(node):
            self._put_pass(node)
        elif self.role[node] == "shape":
            self._set(node, self.graph.node_copy(node, lambda n: self.new[n]), None)
        else:
            self._set(node, self.graph.node_copy(node, self._float), None)

    def _put_layer(self, node: fx.Node, module: QuantLayer) -> None:
        x, source, norm = node.args
        quantizer = source and self.modules[source.target]
        norm = norm and self.modules[norm.target]
        grid = None if module.output is None else module.output.grid()
        if module.runs_in_integers(quantizer) and self.grid[x] is not None:
            layer = module.integer(self.grid[x], norm)
            kernel, run, difference = choose_kernel(self.engine, layer)
            self.layers[node.target] = Converted(layer, kernel, run, difference)
            self._set(node, self._call(run, (self.new[x],), node.name), grid)
            return
        for part, held in (("", module), (".norm", norm)):
            if held is not None:
                tensors = held.state_dict().items()
                self.float_layers |= {f"{node.target}{part}.{name}": value for name, value in tensors}
        value = self._call(module.frozen(norm), (self._float(x),), node.name)
        if grid is not None:
            value = self._call(self.engine.quantize(grid), (value,), f"{node.name}_quantize")
        self._set(node, value, grid)

    def _put_average(self, node: fx.Node, module: QuantAverage) -> None:
        x, grid, average = node.args[0], self.grid[node.args[0]], module.of_integers
        if grid is None:
            value = self._call(module.average, (self.new[x],), node.name)
        else:
            centred = self.engine.centred(grid)
            value = self._call(lambda held: grid.value(average(centred(held))), (self.new[x],), node.name)
        self._set(node, value, None)

    def _put_sum(self, node: fx.Node, quantizer: Quantizer) -> None:
        add, _, bounds = self.sums[node]
        y = quantizer.grid()
        kernel, run = choose_addition(self.engine, *(self.grid[a] for a in add.args), y, bounds)
        self.additions[add.name] = kernel, quantizer.bits
        self._set(node, self._call(run, [self.new[a] for a in add.args], add.name), y)

    def _put_quantizer(self, node: fx.Node, quantizer: Quantizer) -> None:
        x, y = node.args[0], quantizer.grid()
        run = self.engine.quantize(y) if self.grid[x] is None else self.engine.requantize(self.grid[x], y)
        self._set(node, self._call(run, (self.new[x],), node.name), y)

    def _put_pass(self, node: fx.Node) -> None:
        if self.role[node] == "act":
            x = node.args[0]
            self._set(node, self._call(self.engine.relu(self.grid[x]), (self.new[x],), node.name), self.grid[x])
            return
        x, grid = node.args[0], self.grid[node.args[0]]
        around = self.engine.in_float(grid) if pools_or_pads(self.prepared, node) else None
        if around is None:
            self._set(node, self.graph.node_copy(node, lambda n: self.new[n]), grid)
            return
        entered = self._call(around[0], (self.new[x],), f"{node.name}_in_float")
        inside = self.graph.node_copy(node, lambda n: entered if n is x else self.new[n])
        self._set(node, self._call(around[1], (inside,), f"{node.name}_held"), grid)

    def _on_grid(self, node: fx.Node) -> bool:
        """Whether a node works on held integers as it stands."""
        if not node.args or not isinstance(node.args[0], fx.Node) or self.grid.get(node.args[0]) is None:
            return False
        return hands_on(self.prepared, self.role, node)

    def _float(self, node: fx.Node) -> fx.Node:
        """The value of a node in float."""
        if self.grid[node] is None:
            return self.new[node]
        if node not in self.floats:
            run = self.engine.dequantize(self.grid[node])
            self.floats[node] = self._call(run, (self.new[node],), f"{node.name}_dequantize")
        return self.floats[node]

    def _find_sums(self) -> dict[fx.Node, tuple[fx.Node, fx.Node | None, Bounds]]:
        """Quantizer nodes that close addition (+ activation) of two values on grids: their one integer operator."""
        found = {}
        for node in self.prepared.graph.nodes:
            if not isinstance(self.modules.get(node.target) if node.op == "call_module" else None, Quantizer):
                continue
            below, act, bounds = node.args[0], None, UNBOUNDED
            if self.role[below] == "act" and len(below.users) == 1 and self.role[below.args[0]] == "add":
                act, bounds = below, bounds_of(self.prepared, below)
                below = act.args[0]
            if self.role[below] == "add" and len(below.users) == 1 and all(map(self._will_have_grid, below.args)):
                found[node] = below, act, bounds
        return found

    def _will_have_grid(self, node: fx.Node) -> bool:
        module = self.modules.get(node.target) if node.op == "call_module" else None
        if isinstance(module, Quantizer):
            return True
        if isinstance(module, QuantLayer):
            return module.output is not None
        return hands_on(self.prepared, self.role, node) and self._will_have_grid(node.args[0])

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


def _stored(layer: IntegerLayer) -> dict[str, Tensor]:
    stored = {"weight": layer.weight.to(torch.int8), "scale": layer.scale, "bias": layer.bias.to(torch.int32)}
    if layer.y is not None:
        stored |= {"output_scale": layer.y.scale, "output_zero_point": layer.y.zero_point}
    return stored
