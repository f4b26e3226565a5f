"""The layer table: the bits of each layer and the kernel that runs it, or 'float' and the reason.

Everything that stays in float has a row, so nothing does so silently.
"""

from collections import Counter
from typing import Any

from torch import fx, nn

from quant.analysis.integer_share import IntegerShare
from quant.core.quantizer import Quantizer
from quant.engines.base import FLOAT32_KERNEL, IntegerModel
from quant.graph.node_view import as_node, target
from quant.graph.quant_layers import QuantLayer, QuantOperator
from quant.graph.typed_graph import TypedGraph
from quant.graph.views import LayerView, OperatorView, called_module, layer_view, operator_view
from utils.table import text_table

COMPUTING_ROLES = ("binary", "function", "float", "norm", "layer")
MAX_NAMED = 8
"""How many float operators the one-line summary names."""
HEADER = ["layer", "weight bits", "input bits", "output bits", "runs on", "note"]


def layer_rows(prepared: fx.GraphModule, model: IntegerModel) -> list[list[str]]:
    """The rows of the table, with the columns of HEADER: one for each layer and each other operator that computes."""
    modules, graph = dict(prepared.named_modules()), TypedGraph(prepared)
    rows = []
    for node in graph.nodes:
        module = called_module(modules, node)
        if layer := layer_view(modules, node):
            rows.append(_layer_row(target(node), layer, model))
        elif operator := operator_view(modules, node):
            rows.append(_quant_operator_row(target(node), operator, model))
        elif isinstance(module, Quantizer):
            rows += _quantizer_row(node, module, modules)
        elif node.op != "get_attr" and (graph.roles[node] in COMPUTING_ROLES or _acts_in_float(node, graph, model)):
            rows.append(_operator_row(node, graph, modules))
    return rows


def _acts_in_float(node: fx.Node, graph: TypedGraph, model: IntegerModel) -> bool:
    """Whether an activation is a separate operator on float values. Most are part of the operator before them."""
    return graph.roles[node] == "activation" and model.node_map.get(node.name, ("", True))[1] is None


def layer_records(prepared: fx.GraphModule, model: IntegerModel, share: IntegerShare) -> list[dict[str, Any]]:
    """The rows with the names of HEADER as keys, and macs_percent: the layer's part of all multiply-accumulates."""
    keys = [name.replace(" ", "_") for name in HEADER]
    rows = layer_rows(prepared, model)
    return [dict(zip(keys, row, strict=True)) | {"macs_percent": share.percent_of(row[0])} for row in rows]


def layer_table(prepared: fx.GraphModule, model: IntegerModel) -> str:
    """The layer table as text."""
    return text_table(HEADER, layer_rows(prepared, model))


def layer_summary(prepared: fx.GraphModule, model: IntegerModel) -> str:
    """The layer table in one line: how many operators run on which kernel, and which stay in float."""
    rows = layer_rows(prepared, model)
    kernels = Counter(row[4] for row in rows if row[4] not in ("float", "quantize", "requantize"))
    integers = ", ".join(f"{count} on {kernel}" for kernel, count in kernels.items())
    return f"{model.engine.name}: {integers}; {_in_float(rows)}"


def float_operators(prepared: fx.GraphModule, model: IntegerModel) -> str:
    """Which operators stay in float, in one line: 'in float: fc, softmax'."""
    return _in_float(layer_rows(prepared, model))


def _in_float(rows: list[list[str]]) -> str:
    names = [row[0] for row in rows if row[4] == "float"]
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return f"in float: {', '.join(names[:MAX_NAMED])}{more}" if names else "every layer runs in integers"


def _layer_row(name: str, view: LayerView, model: IntegerModel) -> list[str]:
    layer, source, norm = view.layer, view.source, view.norm
    converted = model.layers.get(name)
    notes = [quantizer.note for quantizer in (source, layer.weight_quantizer) if quantizer is not None]
    if converted is None:
        notes.append("its weights stay in float" if layer.weight_quantizer is None else "its input stays in float")
    elif converted.kernel == FLOAT32_KERNEL and layer.output is not None and model.engine.name != "reference":
        notes.append("no int8 kernel of this CPU is exact for it")
    elif layer.weight_quantizer is not None and layer.weight_quantizer.grid().scale.ndim == 0 and norm is not None:
        notes.append("one weight scale per tensor, per channel after absorbing batch norm")
    where, note = "float" if converted is None else converted.kernel, "; ".join(filter(None, notes))
    return [name, _bits(layer.weight_quantizer), _bits(source), _bits(layer.output), where, note]


def _quant_operator_row(name: str, view: OperatorView, model: IntegerModel) -> list[str]:
    kernel = model.operators.get(name)
    where, note = ("float", "its input stays in float") if kernel is None else (kernel, "")
    input_bits = " ".join(dict.fromkeys(map(_bits, view.sources)))
    return [name.removeprefix("operators."), "", input_bits, _bits(view.operator.output), where, note]


def _quantizer_row(node: fx.Node, quantizer: Quantizer, modules: dict[str, nn.Module]) -> list[list[str]]:
    producer = as_node(node.args[0])
    if producer.op == "placeholder":
        return [["image", "", "float", _bits(quantizer), "quantize", ""]]
    module = called_module(modules, producer)
    if not isinstance(module, Quantizer | QuantLayer | QuantOperator):
        return []  # the output quantizer of a float operator, which has its own row
    input_quantizer = module if isinstance(module, Quantizer) else module.output
    return [[target(node).removeprefix("quantizers."), "", _bits(input_quantizer), _bits(quantizer), "requantize", ""]]


def _operator_row(node: fx.Node, graph: TypedGraph, modules: dict[str, nn.Module]) -> list[str]:
    name = target(node) if node.op == "call_module" else node.name
    reason = graph.why_float(node) or "no integer form: works on dequantized values"
    return [name, "", "", _output_bits(node, modules), "float", reason]


def _output_bits(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    """The bits of the quantizer that reads a node's value, or "float"."""
    users = [called_module(modules, user) for user in node.users]
    return next((_bits(u) for u in users if isinstance(u, Quantizer)), "float")


def _bits(quantizer: Quantizer | None) -> str:
    return "float" if quantizer is None else str(quantizer.bits)
