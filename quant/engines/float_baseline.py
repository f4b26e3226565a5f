"""The baseline of latency comparisons: the float model in its fastest form for a CPU.

Batch norms are folded into convolutions, memory is channels_last, and the model is one flat graph.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from quant.core.batch_norm import BatchNorm
from quant.engines.torchscript import to_torchscript
from quant.graph.node_view import first_input, target
from quant.graph.trace import trace
from quant.graph.typed_graph import TypedGraph


class FloatModel(nn.Module):
    """A float graph that is run in inference mode, as IntegerModel is."""

    def __init__(self, graph: fx.GraphModule):
        super().__init__()
        self.graph = graph.eval()

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        return self.graph(images)

    def torchscript_variants(self, images: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
        """TorchScript programs of the model for images of this shape, by name: "frozen", "optimized for inference".

        Which of them is faster depends on the model.
        """
        return {
            "frozen": to_torchscript(self.graph, [], images, torch.jit.freeze),
            "optimized for inference": to_torchscript(self.graph, [], images, torch.jit.optimize_for_inference),
        }


def float_baseline(model: nn.Module) -> FloatModel:
    """A copy of a float model, in eval mode, with each batch norm folded into the convolution before it."""
    traced = trace(copy.deepcopy(model).eval(), trains=False)
    role = TypedGraph(traced).roles
    for node in list(traced.graph.nodes):
        before = first_input(node) if role[node] == "norm" else None
        if before is None or role[before] != "layer" or len(before.users) > 1:
            continue
        convolution, norm = traced.get_submodule(target(before)), traced.get_submodule(target(node))
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, BatchNorm):
            traced.set_submodule(target(before), fuse_conv_bn_eval(convolution.eval(), norm.eval()))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return FloatModel(traced.to(memory_format=torch.channels_last))
