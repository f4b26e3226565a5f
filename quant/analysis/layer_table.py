"""What became of each layer: bits, and the kernel it runs on, or 'float' and why. Nothing is left in float silently."""

from collections import Counter

from torch import fx, nn

from quant.core.quantizer import Quantizer
from quant.engines.base import FLOAT32_KERNEL, IntegerModel
from quant.graph.quant_layers import QuantLayer, QuantOperator
from quant.graph.typed_graph import TypedGraph
from quant.graph.views import LayerView, OperatorView, layer_view, operator_view
from utils.table import text_table

COMPUTING_ROLES = ("binary", "function", "float", "norm", "layer")
NAMED = 8
"""How many float operators the one-line report names."""
HEADER = ["layer", "weight bits", "input bits", "output bits", "runs on", "note"]


def report(prepared: fx.GraphModule, model: IntegerModel) -> list[list[str]]:
    """A row (as HEADER) for each layer, and for each other operator that computes."""
    modules, graph = dict(prepared.named_modules()), TypedGraph(prepared)
    rows = []
    for node in graph.nodes:
        module = modules.get(node.target) if node.op == "call_module" else None
        if layer := layer_view(modules, node):
            rows.append(_layer_row(node.target, layer, model))
        elif operator := operator_view(modules, node):
            rows.append(_quant_operator_row(node.target, operator, model))
        elif isinstance(module, Quantizer):
            rows += _quantizer_row(node, module, modules)
        elif node.op != "get_attr" and (graph.roles[node] in COMPUTING_ROLES or _acts_in_float(node, graph, model)):
            rows.append(_operator_row(node, graph, modules))
    return rows


def _acts_in_float(node: fx.Node, graph: TypedGraph, model: IntegerModel) -> bool:
    """Whether an activation is a separate operator on float values; most are part of the operator before them."""
    return graph.roles[node] == "activation" and model.twins.get(node.name, ("", True))[1] is None


def report_table(prepared: fx.GraphModule, model: IntegerModel) -> str:
    return text_table(HEADER, report(prepared, model))


def report_line(prepared: fx.GraphModule, model: IntegerModel) -> str:
    """The report in a line: how many operators run on which kernels, and which in float."""
    rows = report(prepared, model)
    kernels = Counter(row[4] for row in rows if row[4] not in ("float", "quantize", "requantize"))
    floats = [row[0] for row in rows if row[4] == "float"]
    integers = ", ".join(f"{count} on {kernel}" for kernel, count in kernels.items())
    shown = ", ".join(floats[:NAMED]) + (f" and {len(floats) - NAMED} more" if len(floats) > NAMED else "")
    return f"{model.engine.name}: {integers}; in float: {shown or 'nothing'}"


def _layer_row(name: str, view: LayerView, model: IntegerModel) -> list[str]:
    layer, _, source, norm = view
    converted = model.layers.get(name)
    notes = [quantizer.note for quantizer in (source, layer.weight_quantizer) if quantizer is not None]
    if converted is None:
        notes.append("its weights stay float" if layer.weight_quantizer is None else "its input stays float")
    elif converted.kernel == FLOAT32_KERNEL and layer.output is not None and model.engine.name != "reference":
        notes.append("no int8 kernel of this CPU is exact for it")
    elif layer.weight_quantizer.grid().scale.ndim == 0 and norm is not None:
        notes.append("scales per tensor, per channel with the batch norm absorbed")
    where, note = "float" if converted is None else converted.kernel, "; ".join(filter(None, notes))
    return [name, _bits(layer.weight_quantizer), _bits(source), _bits(layer.output), where, note]


def _quant_operator_row(name: str, view: OperatorView, model: IntegerModel) -> list[str]:
    kernel = model.operators.get(name)
    where, note = ("float", "its input stays float") if kernel is None else (kernel, "")
    input_bits = " ".join(dict.fromkeys(map(_bits, view.sources)))
    return [name.removeprefix("operators."), "", input_bits, _bits(view.operator.output), where, note]


def _quantizer_row(node: fx.Node, quantizer: Quantizer, modules: dict) -> list[list[str]]:
    below = node.args[0]
    if below.op == "placeholder":
        return [["image", "", "float", _bits(quantizer), "quantize", ""]]
    above = modules.get(below.target) if below.op == "call_module" else None
    if not isinstance(above, Quantizer | QuantLayer | QuantOperator):
        return []  # what it closes has a row of its own
    before = above if isinstance(above, Quantizer) else above.output
    return [[node.target.removeprefix("quantizers."), "", _bits(before), _bits(quantizer), "requantize", ""]]


def _operator_row(node: fx.Node, graph: TypedGraph, modules: dict) -> list[str]:
    name = node.target if node.op == "call_module" else node.name
    why = graph.why_float(node) or "no integer form: works on dequantized values"
    return [name, "", "", _output_bits(node, modules), "float", why]


def _output_bits(node: fx.Node, modules: dict) -> str:
    """Bits of the quantizer that reads a node's value."""
    users = [modules.get(u.target) if u.op == "call_module" else None for u in node.users]
    return next((_bits(u) for u in users if isinstance(u, Quantizer)), "float")


def _bits(quantizer: nn.Module | None) -> str:
    return "float" if quantizer is None else str(quantizer.bits)
