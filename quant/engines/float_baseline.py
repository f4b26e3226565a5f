"""The float net in its best form for a CPU, to compare with: batch norms folded, channels_last, one flat graph."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from quant.engines.torchscript import program
from quant.graph.trace import trace
from quant.graph.typed_graph import TypedGraph


class FloatModel(nn.Module):
    """A float graph, run as IntegerModel runs its own."""

    def __init__(self, graph: fx.GraphModule):
        super().__init__()
        self.graph = graph.eval()

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        return self.graph(images)

    def forms(self, images: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
        """Ways to run the net on images of this shape fast, as TorchScript programs: which is the faster differs."""
        return {
            "frozen": program(self.graph, [], images, torch.jit.freeze),
            "optimized for inference": program(self.graph, [], images, torch.jit.optimize_for_inference),
        }


def fold(model: nn.Module) -> FloatModel:
    """A copy of a float model in eval with each batch norm behind a convolution folded into it."""
    traced = trace(copy.deepcopy(model).eval())
    role = TypedGraph(traced).roles
    for node in list(traced.graph.nodes):
        before = node.args[0] if role[node] == "norm" else None
        if before is None or role[before] != "layer" or len(before.users) > 1:
            continue
        convolution, norm = traced.get_submodule(before.target), traced.get_submodule(node.target)
        if isinstance(convolution, nn.Conv2d):
            parent, _, child = before.target.rpartition(".")
            setattr(traced.get_submodule(parent), child, fuse_conv_bn_eval(convolution.eval(), norm.eval()))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return FloatModel(traced.to(memory_format=torch.channels_last))
