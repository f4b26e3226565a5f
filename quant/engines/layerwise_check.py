"""Compare an integer model with the simulation operator by operator.

Every operator of the integer model gets the inputs that the simulation computed. So a difference of one step does not
propagate to later operators, and each operator that deviates is found by its name.
"""

import torch
from torch import Tensor, fx

from quant.engines.base import IntegerModel
from quant.engines.verify import Difference, difference


@torch.inference_mode()
def check_layerwise(prepared: fx.GraphModule, model: IntegerModel, images: Tensor) -> dict[str, Difference]:
    """The Difference of each value on a grid, by the name of its node in the prepared graph. images: [N, 3, H, W]."""
    simulated = _Recorder(prepared.eval())
    simulated.run(images)
    integer = _LayerwiseInterpreter(model, simulated.values)
    with model.engine.running():
        integer.run(images)
    return integer.differences


class _Recorder(fx.Interpreter):
    """Runs a graph and records every tensor by the name of its node."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.values: dict[str, Tensor] = {}

    def run_node(self, node: fx.Node):
        value = super().run_node(node)
        if isinstance(value, Tensor):
            self.values[node.name] = value.clone()  # an in-place activation may overwrite it
        return value


class _LayerwiseInterpreter(fx.Interpreter):
    """Runs an integer graph. After each operator, it records the difference and continues with the simulated value."""

    def __init__(self, model: IntegerModel, simulated: dict[str, Tensor]):
        super().__init__(model.graph)
        self.engine, self.simulated = model.engine, simulated
        self.prepared_node = {new: (name, grid) for name, (new, grid) in model.node_map.items()}
        self.differences: dict[str, Difference] = {}

    def run_node(self, node: fx.Node):
        value = super().run_node(node)
        name, grid = self.prepared_node.get(node.name, (None, None))
        if grid is None or name not in self.simulated or not isinstance(value, Tensor):
            return value
        n = grid.centred(self.simulated[name])
        self.differences[name] = difference(n, self.engine.from_native(grid)(value))
        return self.engine.to_native(grid)(n)
