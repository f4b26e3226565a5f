"""From an nn.Module to a graph in which each operator is written in one way (graph/op_table.py reads it).

torch.fx traces the model, which stays as it is; its modules and Parameters are the same objects under the same names in
the graph. What computes a convolution, a linear layer or a batch norm becomes such a module (graph/layer_forms.py), and
each other operator is written in one form (graph/rewrites.py). Where an operator overwrites a tensor, later readers of
that tensor are redirected to the operator's result (graph/in_place.py).
"""

import contextlib
import itertools
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import fx, nn

from quant.graph import layer_forms, rewrites
from quant.graph.in_place import redirect_readers
from quant.graph.node_view import NodeView
from quant.graph.op_table import name_of
from quant.graph.plain_classes import plain_class
from quant.graph.rewrites import FOLLOWS_TRAINING, TRAINING_FLAGS
from quant.graph.tracer import PYTHON_IN_PLACE, Tracer
from utils.errors import UserError, first_line

CURES = {
    "control flow": "an if or a loop depends on a tensor; decide by numbers that are known when the model is built",
    "'len' is not supported": "write x.shape[0] for len(x)",
    "cannot be iterated": "a tensor is unpacked or looped over; write x.unbind(0), or index it",
    "does not support item assignment": "x[...] = y writes on a part of a tensor; write torch.where or torch.cat",
    "integer": "a size of a tensor is used as a Python number; write it in tensor operators, or fix it in __init__",
}
"""A part of torch.fx's message -> the usual cure."""


def trace(model: nn.Module, trains: bool = True) -> fx.GraphModule:
    """The model as a graph on the same modules. Raises UserError, in one line, for what torch.fx cannot follow.

    torch.fx takes one side of `if self.training`, so the model is traced in train and in eval mode, and the two must be
    the same graph. trains: whether the graph will be trained; otherwise the one of eval mode is enough.
    """
    _refuse_computed_weights(model)
    _refuse_names_of_graphs(model)
    try:
        traced = _traced_in_both_modes(model)
    except UserError:
        if trains:
            raise
        traced = _traced(model, False)
    _write_in_one_way(traced)
    _keep_unread_tensors(model, traced)
    return traced


def _keep_unread_tensors(model: nn.Module, traced: fx.GraphModule) -> None:
    """Keep Parameters and buffers that forward does not read, and the modules of those that it does not reach."""
    for name, module in model.named_modules():
        tensors = {**module._parameters, **module._buffers}
        if tensors and not _has(traced, name):
            traced.add_submodule(name, module)
        elif tensors and (held := traced.get_submodule(name)) is not module:
            for table in ("_parameters", "_buffers"):
                getattr(held, table).update(
                    {key: value for key, value in getattr(module, table).items() if key not in getattr(held, table)}
                )
            held._non_persistent_buffers_set |= module._non_persistent_buffers_set


def _traced_in_both_modes(model: nn.Module) -> fx.GraphModule:
    traced, in_eval = _traced(model, True), _traced(model, False)
    for ours, theirs in itertools.zip_longest(traced.graph.nodes, in_eval.graph.nodes):
        if ours is not None and theirs is not None:
            _mark_if_it_follows_training(ours, theirs)
        if ours is None or theirs is None or not _same(traced, ours, in_eval, theirs):
            raise UserError(
                f"model {type(model).__name__}: its graph in train mode is not that in eval mode (at "
                f"{_written(ours or theirs)}); torch.fx freezes self.training: {_cure_of_modes(model)}"
            )
    return traced


def _cure_of_modes(model: nn.Module) -> str:
    if any("aux" in name.lower() for name, _ in model.named_children()):
        return "switch the auxiliary heads off (model.aux_logits=false)"
    return "use modules, such as nn.Dropout, instead of functions of self.training, or quant.method=ptq"


def _mark_if_it_follows_training(ours: fx.Node, theirs: fx.Node) -> None:
    """Mark a function whose flag is self.training: True in the graph of train mode and False in that of eval mode."""
    if ours.target in TRAINING_FLAGS and ours.target is theirs.target:
        position, name = TRAINING_FLAGS[ours.target]
        flags = [NodeView(node).argument(position, name) for node in (ours, theirs)]
        ours.meta[FOLLOWS_TRAINING] = flags == [True, False]


def _same(traced: fx.GraphModule, ours: fx.Node, in_eval: fx.GraphModule, theirs: fx.Node) -> bool:
    """Whether two nodes compute the same; tensors that forward computed from constants are compared by value."""
    if ours.meta.get(FOLLOWS_TRAINING):
        return _written(ours).replace("True", "False") == _written(theirs).replace("True", "False")
    if _written(ours) != _written(theirs):
        return False
    if ours.op != "get_attr":
        return True
    value, other = (rewrites.attribute(graph, node) for graph, node in ((traced, ours), (in_eval, theirs)))
    return value is other or not isinstance(value, torch.Tensor) or torch.equal(value, other)


def _written(node: fx.Node) -> str:
    return f"{node.name} = {name_of(node)}({node.args}, {node.kwargs})"


def _refuse_computed_weights(model: nn.Module) -> None:
    """Refuse torch's older weight_norm and pruning: they compute a weight at each call; it cannot be copied."""
    for name, module in model.named_modules():
        plain = plain_class(module) in (nn.Conv1d, nn.Conv2d, nn.Linear)
        if plain and not isinstance(module._parameters.get("weight"), nn.Parameter):
            raise UserError(
                f"{name}: its weight is computed at each call; make it plain first (torch.nn.utils.prune.remove, "
                "torch.nn.utils.remove_weight_norm)"
            )


def _refuse_names_of_graphs(model: nn.Module) -> None:
    """Refuse names of the model's own modules and tensors that torch.fx's graphs have for something else."""
    of_graphs = fx.GraphModule(nn.Module(), fx.Graph())
    taken = [name for name in (*model._modules, *model._parameters, *model._buffers) if hasattr(of_graphs, name)]
    if taken:
        raise UserError(
            f"model {type(model).__name__}: torch.fx has another use for the name {taken[0]!r} of one of its modules "
            "or tensors; rename it"
        )


def _traced(model: nn.Module, mode: bool) -> fx.GraphModule:
    tracer = Tracer()
    with _untouched(model):
        try:
            model.train(mode)
            return fx.GraphModule(model, tracer.trace(model), type(model).__name__)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"model {type(model).__name__}: torch.fx cannot trace it: {first_line(error)}"
                f"{_place(error, tracer.failed_module)}{_cure(error)}"
            ) from error


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Give the model back what it held: its modes, its buffers, and no attribute that tracing or forward left on it."""
    modules = list(model.modules())
    held = [(vars(m), dict(vars(m)), [(own, dict(own)) for own in (m._parameters, m._buffers)]) for m in modules]
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for attributes, before, tables in held:
            for table, then in ((attributes, before), *tables):
                table.clear()
                table.update(then)
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)


def _place(error: Exception, module: str) -> str:
    """Where in the user's code an error arose: ' (in layer1.0, nets.py:12)'."""
    libraries = (str(Path(torch.__file__).parent), str(Path(__file__).parent), str(Path(contextlib.__file__).parent))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(libraries)]
    line = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    where = ", ".join(filter(None, (module, line)))
    return f" (in {where})" if where else ""


def _cure(error: Exception) -> str:
    return next((f"; {cure}" for part, cure in CURES.items() if part in str(error)), "")


def _write_in_one_way(traced: fx.GraphModule) -> None:
    layer_forms.split_norms_and_activations(traced)
    for node in list(traced.graph.nodes):
        rewrites.remove_identity(traced, node)
    order = {node: i for i, node in enumerate(traced.graph.nodes)}
    for node in traced.graph.nodes:
        rewrites.rewrite_node(traced, node)
        redirect_readers(traced, node, order)
        node.target = PYTHON_IN_PLACE.get(node.target, node.target)
    layer_forms.write_layers_as_modules(traced)
    rewrites.rewrite_groups(traced)
    traced.recompile()


def _has(traced: fx.GraphModule, name: str) -> bool:
    try:
        traced.get_submodule(name)
    except AttributeError:
        return False
    return True
