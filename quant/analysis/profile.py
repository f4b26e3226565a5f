"""Which operators of an integer model take its time, and why: each is timed by itself, beside its float form.

    T       milliseconds of the whole program (the lower quartile of its calls)
    t_i     those of operator i in a program of its own, on what it reads in the model
    t_i - c are shown, c = (sum t_i - T) / n: what n calls cost more than one; 0 where t_i is less than c

The float form of a layer is its convolution in fp32, channels_last, with batch norm folded and its activation.
"""

import copy
import functools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from quant.analysis.integer_share import integer_share
from quant.analysis.slowness import Facts, reason_of
from quant.core.batch_norm import running_statistics
from quant.core.quantizer import Quantizer
from quant.engines.base import Engine, IntegerModel
from quant.engines.operator_programs import Program, compiled, of_node, values_of
from quant.engines.peak import peak
from quant.graph.node_view import target
from quant.graph.op_table import module_operator
from quant.graph.quant_layers import FloatLayer, FloatOperator, QuantLayer, QuantOperator
from quant.graph.typed_graph import TypedGraph
from quant.graph.views import LayerView, called_module, layer_view, operator_view, without_quantizers

SKIPPED = ("placeholder", "get_attr", "output")
QUANTILE = 25
"""Of the turns, which is reported: a short call that another program interrupts takes many times as long."""


@dataclass(frozen=True)
class Timed:
    """An operator of an integer model on one engine. macs: multiply-accumulates of all images of the call. float_ms:
    None where the float model has no such operator. gops: 10^9 operations a second, two for each of the macs."""

    name: str
    kernel: str
    output: tuple[int, ...]
    macs: int
    float_ms: float | None
    int8_ms: float
    gops: float
    peak_percent: float
    lost_ms: float
    """Milliseconds beyond what its multiply-accumulates take at the peak."""
    reason: str


@dataclass(frozen=True)
class Profile:
    """The operators of a model in the order in which they run; int8_ms and float_ms: of the whole programs. peak: the
    most 10^9 operations a second that this engine reached here on any large layer (engines/peak.py)."""

    operators: list[Timed]
    int8_ms: float
    float_ms: float
    peak: float


@torch.inference_mode()
def profile(
    prepared: fx.GraphModule, model: IntegerModel, plain: Callable[[Tensor], Any], images: Tensor, repeats: int
) -> Profile:
    """Time the operators of an integer model of a prepared one. plain: the float model in its fastest form.

    Float and integer programs take `repeats` turns.
    """
    images = images.contiguous(memory_format=model.engine.layout)
    prepared = copy.deepcopy(prepared).requires_grad_(False)  # a trace takes no constant that learns
    with model.engine.running():
        integer = _integer_programs(model, images)
        in_float = _float_programs(prepared, images.contiguous(memory_format=torch.channels_last))
        whole = {"int8": model.compile_for(images), "float": plain}
        taken = _times({"int8": integer, "float": in_float}, whole, images, repeats)
    int8, float_ = (_without_calls(*taken[kind]) for kind in ("int8", "float"))
    _pass_on(prepared, float_, int8)
    top = peak(model.engine)
    macs = integer_share(prepared, images.shape[-1], images.shape[1]).by_name
    facts = _facts(prepared, model, integer, len(images), macs)
    operators = [_timed(facts[name], int8[name], float_.get(name), top) for name in int8]
    return Profile(operators, taken["int8"][1], taken["float"][1], top)


def _integer_programs(model: IntegerModel, images: Tensor) -> dict[str, Program]:
    values = values_of(model.graph, images)
    computing = [node for node in model.graph.graph.nodes if node.op not in SKIPPED]
    return {node.name: of_node(model.graph, node, values) for node in computing if _is_tensor(values[node])}


def _is_tensor(value: Any) -> bool:
    """Whether a value is computed with pixels, and not a size."""
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(isinstance(v, Tensor) for v in value))


def _float_programs(prepared: fx.GraphModule, images: Tensor) -> dict[str, Program]:
    """The float forms of the operators of a prepared model, by the names of its nodes."""
    with without_quantizers(prepared):
        values = values_of(prepared, images)
    modules, found = dict(prepared.named_modules()), {}
    for node in prepared.graph.nodes:
        module = called_module(modules, node)
        if node.op in SKIPPED or isinstance(module, Quantizer) or module_operator(module).identity_in_eval:
            continue
        if layer := layer_view(modules, node):
            found[node.name] = compiled(_Function(_folded(layer)), (_dense(values[layer.x]),))
        elif operator := operator_view(modules, node):
            op, constants = operator.operator, [values[one] for one in operator.constants]
            run = FloatOperator(op.name, op.bound(constants), op.activation)
            found[node.name] = compiled(_Function(run), tuple(_dense(values[one]) for one in operator.values))
        elif _is_tensor(values[node]):
            found[node.name] = of_node(prepared, node, values)
    return found


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Any]):
        super().__init__()
        self.function = function

    def forward(self, *values: Tensor) -> Any:
        return self.function(*values)


def _folded(view: LayerView) -> FloatLayer:
    """The layer in float, its batch norm folded into weights and bias."""
    layer, norm = view.layer, view.norm
    weight, bias = layer.geometry.of_maps(layer.weight.detach()), layer.bias
    if norm is not None:
        mean, variance = running_statistics(norm)
        weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, norm.weight, norm.bias)
    bias = None if bias is None else bias.detach().clone()
    return FloatLayer(layer.geometry, _dense(weight.detach()), bias, None, copy.copy(layer.activation))


def _times(
    programs: dict[str, dict[str, Program]], whole: dict[str, Callable], images: Tensor, repeats: int
) -> dict[str, tuple[dict[str, float], float]]:
    """For each kind ({milliseconds of each program}, milliseconds of the whole): the lower quartiles of turns."""
    taken: dict[str, list[list[float]]] = {kind: [] for kind in programs}
    for _ in range(repeats):
        for kind, of_kind in programs.items():
            calls: list[Callable[[], Any]] = [*of_kind.values(), functools.partial(whole[kind], images)]
            taken[kind].append([_milliseconds(call) for call in calls])
    usual = {kind: numpy.percentile(turns, QUANTILE, 0).tolist() for kind, turns in taken.items()}
    return {kind: (dict(zip(programs[kind], each, strict=True)), total) for kind, (*each, total) in usual.items()}


def _milliseconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def _without_calls(each: dict[str, float], whole: float) -> dict[str, float]:
    """The milliseconds of operators, less what each call costs; their sum is about that of the whole program."""
    of_a_call = max(0.0, (sum(each.values()) - whole) / max(len(each), 1))
    return {name: max(0.0, taken - of_a_call) for name, taken in each.items()}


def _pass_on(prepared: fx.GraphModule, in_float: dict[str, float], integer: dict[str, float]) -> None:
    """Add the float time of a node that became part of another in integers to the first that reads it."""
    for node in prepared.graph.nodes:
        if node.name in in_float and node.name not in integer and node.users:
            reader = next(iter(node.users)).name
            in_float[reader] = in_float.get(reader, 0.0) + in_float.pop(node.name)


def _facts(
    prepared: fx.GraphModule, model: IntegerModel, programs: dict[str, Program], images: int, macs: dict[str, int]
) -> dict[str, Facts]:
    """What is known of each operator of the integer model, by the name of its node. macs: of one image."""
    graph, modules = TypedGraph(prepared), dict(prepared.named_modules())
    nodes, found = {node.name: node for node in graph.nodes}, {}
    calls = Counter(target(node) for node in graph.nodes if node.op == "call_module")
    for name, program in programs.items():
        node = nodes.get(name)  # None: a conversion that the integer model alone has
        row = target(node) if node is not None and node.op == "call_module" else name
        kernel, converted, output = _kernel(node, row, graph, model), model.layers.get(row), program()
        found[name] = Facts(
            name=row.removeprefix("operators.").removeprefix("quantizers."),
            kernel=kernel,
            layer=converted.layer if converted else None,
            output=tuple(output.shape) if isinstance(output, Tensor) else (),
            macs=images * macs.get(row, 0) // max(calls[row], 1),
            converts=node is None or isinstance(called_module(modules, node), Quantizer),
            moves=not kernel,
            plain=model.engine.name == Engine.name,
            in_layout=all(_in_layout(x, model.engine.layout) for x in program.inputs),
        )
    return found


def _kernel(node: fx.Node | None, row: str, graph: TypedGraph, model: IntegerModel) -> str:
    """What runs an operator: a kernel, "float", or "" for one that computes nothing."""
    if row in model.layers or row in model.operators:
        return model.layers[row].kernel if row in model.layers else model.operators[row]
    if node is None or graph.roles[node] in ("pass", "shape") or isinstance(graph.submodule(node), Quantizer):
        return ""
    return "float" if model.node_map[node.name][1] is None or _is_part(graph, node) else ""


def _is_part(graph: TypedGraph, node: fx.Node) -> bool:
    """Whether a node is a layer or an operator that prepare put in."""
    return isinstance(graph.submodule(node), QuantLayer | QuantOperator)


def _in_layout(x: Tensor, layout: torch.memory_format) -> bool:
    return x.ndim != 4 or x.is_contiguous(memory_format=layout) or x.is_contiguous(memory_format=torch.channels_last)


def _timed(facts: Facts, int8_ms: float, float_ms: float | None, top: float) -> Timed:
    gops = 2e-6 * facts.macs / int8_ms if int8_ms else 0.0
    lost = int8_ms - 2e-6 * facts.macs / top
    percent = 100 * gops / top
    reached = (int8_ms, gops, percent, max(0.0, lost), reason_of(facts, percent))
    return Timed(facts.name, facts.kernel, facts.output, facts.macs, float_ms, *reached)
