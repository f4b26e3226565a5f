"""Compare an ONNX file, run by ONNX Runtime, with the integer model that it was written from.

Both compute integers, so that they differ at most where an operator stays in float. What that may do is measured: the
logits may move by no more than one step of the image moves the integer model's own.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx

from quant.engines.base import IntegerModel
from quant.engines.onnx_sessions import onnxruntime_session
from quant.engines.onnx_writer import onnx_model
from quant.export.batch_check import COUNTS
from utils.errors import UserError

IMAGES, BATCH = 32, 8
FLOAT_ERROR = 1e-5
"""What other orders of summing may change in float, as a share of the logits."""


@torch.inference_mode()
def check_by_running(
    proto: Any, model: IntegerModel, image_size: int, symmetric: bool = False, channels: int = 3
) -> None:
    """Raise UserError, with the first operator that differs, if ONNX Runtime computes another function."""
    images = torch.randn(IMAGES, channels, image_size, image_size, generator=torch.Generator().manual_seed(0))
    step = next(float(grid.scale) for _, grid in model.node_map.values() if grid is not None)
    ours, moved = (_in_batches(model, x) for x in (images, images + step))
    file = proto.SerializeToString()
    theirs = _in_batches(onnxruntime_session(file, images[:BATCH].shape, 1), images)
    allowed, off = float((moved - ours).norm() + FLOAT_ERROR * ours.norm()), float((theirs - ours).norm())
    if not off <= allowed:
        same = 100 * float((theirs.argmax(1) == ours.argmax(1)).float().mean())
        raise UserError(
            f"export: ONNX Runtime does not compute this net: it predicts the same class for {same:.0f} % of {IMAGES} "
            f"random images, and its logits are off {off / allowed:.1f} times as far as a step of the image moves them"
            f"; the first difference is at {first_difference(model, images[:BATCH], symmetric)}"
        )
    _check_few(file, images, theirs)


def _check_few(file: bytes, images: Tensor, logits: Tensor) -> None:
    """Raise UserError unless the file has the same logits for these images in smaller batches."""
    for count in COUNTS:
        found = onnxruntime_session(file, images[:count].shape, 1)(images[:count])
        same = found.shape == logits[:count].shape and torch.allclose(found, logits[:count], rtol=1e-3, atol=1e-4)
        if not same:
            raise UserError(
                f"export: a batch of {count} gives {tuple(found.shape)} or other logits in ONNX Runtime than the same "
                f"images in a batch of {BATCH}"
            )


def _in_batches(model, images: Tensor) -> Tensor:
    return torch.cat([model(batch) for batch in images.split(BATCH)])


def first_difference(model: IntegerModel, images: Tensor, symmetric: bool = False) -> str:
    """The name of the first value on a grid that ONNX Runtime computes otherwise, or "the logits". Takes a while.

    Found by halving: the graph up to a value is written and run by itself.
    """
    values = [new for new, grid in model.node_map.values() if grid is not None and _is_tensor(model, new)]
    equal, differs = -1, len(values)
    while differs - equal > 1:
        middle = (equal + differs) // 2
        equal, differs = (middle, differs) if _same(model, values[middle], images, symmetric) else (equal, middle)
    return values[differs] if differs < len(values) else "the logits"


def _is_tensor(model: IntegerModel, name: str) -> bool:
    """Whether a node of the graph is one tensor, not the parts of one: those are read by an index."""
    node = next(node for node in model.graph.graph.nodes if node.name == name)
    return not any(user.target is operator.getitem for user in node.users)


def _same(model: IntegerModel, name: str, images: Tensor, symmetric: bool) -> bool:
    graph = _until(model.graph, name)
    session = onnxruntime_session(onnx_model(graph, images[:2], symmetric).SerializeToString(), images.shape, 1)
    return torch.equal(session(images), graph(images))


def _until(graph: fx.GraphModule, name: str) -> fx.GraphModule:
    """The graph whose output is the value of the node with this name."""
    part = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in graph.graph.nodes:
        copied[node] = part.node_copy(node, copied.__getitem__)
        if node.name == name:
            part.output(copied[node])
            return fx.GraphModule(graph, part).eval()
    raise ValueError(f"the graph has no node {name}")
