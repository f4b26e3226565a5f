"""Forced equality: each operator of an integer model, fed the simulation's own inputs, against the simulation.

Propagated through a net, single steps grow; forced, every operator stands on its own, and a wrong one is named.
"""

import torch
from torch import Tensor, fx

from quant.engines.base import IntegerModel
from quant.engines.verify import Difference, difference


@torch.inference_mode()
def forced(prepared: fx.GraphModule, model: IntegerModel, images: Tensor) -> dict[str, Difference]:
    """The difference of each value on a grid, by its node's name in the prepared graph; images [N, 3, H, W]."""
    simulated = _Recorder(prepared.eval())
    simulated.run(images)
    integer = _Forced(model, simulated.values)
    with model.engine.running():
        integer.run(images)
    return integer.differences


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps every tensor by its node's name."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.values: dict[str, Tensor] = {}

    def run_node(self, node: fx.Node):
        value = super().run_node(node)
        if isinstance(value, Tensor):
            self.values[node.name] = value.clone()  # an activation may overwrite it
        return value


class _Forced(fx.Interpreter):
    """Runs an integer graph; after each operator, records its difference and goes on with the simulation's value."""

    def __init__(self, model: IntegerModel, simulated: dict[str, Tensor]):
        super().__init__(model.graph)
        self.engine, self.simulated = model.engine, simulated
        self.twin = {new: (name, grid) for name, (new, grid) in model.twins.items()}
        self.differences: dict[str, Difference] = {}

    def run_node(self, node: fx.Node):
        value = super().run_node(node)
        name, grid = self.twin.get(node.name, (None, None))
        if grid is None or name not in self.simulated or not isinstance(value, Tensor):
            return value
        n = grid.centred(self.simulated[name])
        self.differences[name] = difference(n, self.engine.from_native(grid)(value))
        return self.engine.to_native(grid)(n)
