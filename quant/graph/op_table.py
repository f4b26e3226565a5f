"""What each node of a traced model is.

image     the input
layer     a convolution or linear layer that can run in integers
norm      a batch norm
act       ReLU, ReLU6, Hardtanh, clamp, hard-sigmoid: a line between two levels
add, mul  the sum and the product of two tensors
average   an average pool, or a mean over height and width
function  of one tensor, element by element (hard-swish, sigmoid, x + 3 ...)
pass      moves or selects values without changing them (max-pool, reshape, concatenation, dropout ...): keeps the
          grid of its inputs
shape     asks for a tensor's shape, or computes with such numbers
float     anything else; it runs in float
output    the logits
"""

import math
import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from quant.core.activation import IDENTITY, ClampedAffine

PASS_MODULES = (nn.MaxPool2d, nn.Flatten, nn.PixelShuffle, nn.ChannelShuffle)
PASS_FUNCTIONS = {F.max_pool2d, torch.max_pool2d, torch.flatten, torch.reshape, torch.permute, torch.transpose}
PASS_FUNCTIONS |= {torch.chunk, torch.split, torch.squeeze, torch.unsqueeze, operator.getitem}
CONCATENATIONS = {torch.cat, torch.concat}
PASS_METHODS = {"flatten", "reshape", "permute", "transpose", "contiguous", "chunk", "split", "squeeze"}
PASS_METHODS |= {"unsqueeze"}
AVERAGE_MODULES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
AVERAGE_FUNCTIONS = {F.avg_pool2d, F.adaptive_avg_pool2d}
HEIGHT_AND_WIDTH = ([2, 3], [-2, -1])
INSPECT_METHODS = {"size", "dim"}
PAIRS = {operator.add: "add", operator.iadd: "add", torch.add: "add", "add": "add", "add_": "add"}
PAIRS |= {operator.mul: "mul", operator.imul: "mul", torch.mul: "mul", "mul": "mul", "mul_": "mul"}
"""Functions and methods of two tensors. With a number in place of one, they are functions of one."""
WITH_NUMBER = {*PAIRS, operator.sub, operator.truediv, operator.isub, operator.itruediv, torch.sub, torch.div}
WITH_NUMBER |= {"sub", "sub_", "div", "div_"}
FUNCTION_MODULES = (nn.Hardswish, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Tanh, nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU)
FUNCTION_MODULES += (nn.Softplus, nn.Softsign, nn.Mish)
FUNCTIONS = {F.hardswish, F.sigmoid, torch.sigmoid, torch.sigmoid_, F.silu, F.gelu, F.tanh, torch.tanh, torch.tanh_}
FUNCTIONS |= {F.elu, F.selu, F.celu, F.leaky_relu, F.softplus, F.softsign, F.mish, operator.neg, torch.neg}
FUNCTIONS |= {"sigmoid", "sigmoid_", "tanh", "tanh_", "neg"}
RELU, HARD_SIGMOID = ClampedAffine(0.0, math.inf), ClampedAffine(0.0, 1.0, 1 / 6, 0.5)
ACT_FUNCTIONS = {F.relu: RELU, F.relu_: RELU, torch.relu: RELU, torch.relu_: RELU, F.relu6: ClampedAffine(0.0, 6.0)}
ACT_FUNCTIONS |= {F.hardsigmoid: HARD_SIGMOID}
HARD_SWISH_TAIL = ClampedAffine(-3.0, math.inf)
"""Below -3 hard-swish is 0, as it is at -3: a grid for what it reads need reach no further."""
CLAMPS = {torch.clamp, torch.clamp_, F.hardtanh}
DROPS = {"StochasticDepth", "DropPath"}
"""torchvision's and timm's modules that drop whole branches in training and are the identity in eval."""


def roles(traced: fx.GraphModule) -> dict[fx.Node, str]:
    """The role of each node. Layers called twice, and layers the integer arithmetic does not cover, have role float."""
    calls: dict[str, int] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module":
            calls[node.target] = calls.get(node.target, 0) + 1
    found: dict[fx.Node, str] = {}
    for node in traced.graph.nodes:
        found[node] = _role(traced, node, calls)
        given = {found[n] for n in node.all_input_nodes}
        if node.op != "output" and (reads_shape(node) or given == {"shape"}):
            found[node] = "shape"
        elif node.target is operator.getitem and found[node.args[0]] == "float" and isinstance(node.args[1], int):
            found[node] = "float"  # a part of a tuple that an operator returned, not of a tensor on a grid
    return found


def why_float(traced: fx.GraphModule, node: fx.Node) -> str:
    """Why a convolution or linear layer has role float; empty for other nodes."""
    if node.op != "call_module":
        return ""
    layer = traced.get_submodule(node.target)
    if type(layer) in (nn.Conv2d, nn.Linear):
        padded = isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str))
        if _has_hooks(layer):
            return "it has hooks"
        return "padding without zeros of a fixed number" if padded else "called more than once"
    known = isinstance(layer, nn.modules.conv._ConvNd | nn.Linear)
    return f"{type(layer).__name__} has no integer form here" if known else ""


def preserves_qparams(traced: fx.GraphModule, role: dict[fx.Node, str], node: fx.Node) -> bool:
    """Whether a node hands its inputs' grid on. Pass nodes do, and a ReLU by itself: zero is on every grid."""
    return role[node] == "pass" or (role[node] == "act" and activation_of(traced, node) == RELU)


def data_inputs(node: fx.Node) -> list[fx.Node]:
    """The values that a node hands on: one, or all that a concatenation joins."""
    first = node.args[0] if node.args else None
    return [n for n in (first if isinstance(first, list | tuple) else [first]) if isinstance(n, fx.Node)]


def pools_or_pads(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a pass node is a max-pool or a padding: torch has neither for plain integers with a zero point."""
    if node.op == "call_module":
        return isinstance(traced.get_submodule(node.target), nn.MaxPool2d)
    return node.target in (F.max_pool2d, torch.max_pool2d, F.pad)


def splits(node: fx.Node) -> bool:
    """Whether a node returns a tuple of parts of a tensor."""
    return name_of(node) in ("chunk", "split")


def is_identity_in_eval(module: nn.Module | None) -> bool:
    """Whether a module does nothing in eval."""
    return isinstance(module, nn.Dropout | nn.Dropout2d | nn.Identity) or type(module).__name__ in DROPS


def reads_shape(node: fx.Node) -> bool:
    """Whether a node only asks for a tensor's shape."""
    if node.op == "call_method":
        return node.target in INSPECT_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim")


def activation_of(traced: fx.GraphModule, node: fx.Node) -> ClampedAffine | None:
    """What an activation lets through, or None if it is more than a clamp."""
    if node.op == "call_module":
        module = traced.get_submodule(node.target)
        if isinstance(module, nn.Hardtanh):  # ReLU6 is one
            return ClampedAffine(float(module.min_val), float(module.max_val))
        return {nn.ReLU: RELU, nn.Hardsigmoid: HARD_SIGMOID}.get(type(module))
    if node.op == "call_method" and node.target in ("relu", "relu_"):
        return RELU
    if node.target in ACT_FUNCTIONS:
        return ACT_FUNCTIONS[node.target]
    if node.target in CLAMPS or (node.op == "call_method" and node.target in ("clamp", "clamp_")):
        return _clamp_bounds(node)
    return None


def tail_of(traced: fx.GraphModule, node: fx.Node) -> ClampedAffine:
    """ClampedAffine on what a function reads, beyond which it is constant."""
    module = traced.get_submodule(node.target) if node.op == "call_module" else None
    return HARD_SWISH_TAIL if isinstance(module, nn.Hardswish) or node.target is F.hardswish else IDENTITY


def _clamp_bounds(node: fx.Node) -> ClampedAffine | None:
    default = (-1.0, 1.0) if node.target is F.hardtanh else IDENTITY
    given = [*node.args[1:], None, None][:2]
    low = node.kwargs.get("min", node.kwargs.get("min_val", given[0]))
    high = node.kwargs.get("max", node.kwargs.get("max_val", given[1]))
    if any(isinstance(v, fx.Node) for v in (low, high)):
        return None
    return ClampedAffine(float(default[0] if low is None else low), float(default[1] if high is None else high))


def _role(traced: fx.GraphModule, node: fx.Node, calls: dict[str, int]) -> str:
    if node.op in ("placeholder", "output"):
        return "image" if node.op == "placeholder" else "output"
    if node.op == "call_module":
        return _module_role(traced.get_submodule(node.target), calls[node.target], activation_of(traced, node))
    if activation_of(traced, node) is not None:
        return "act"
    if node.op == "get_attr":
        return "float"
    if node.target in WITH_NUMBER:
        return _role_of_arithmetic(node)
    if _averages(node):
        return "average"
    if node.target in FUNCTIONS:
        return "function"
    functions, methods = node.op == "call_function", node.op == "call_method"
    passes = (functions and node.target in PASS_FUNCTIONS) or (methods and node.target in PASS_METHODS)
    return "pass" if passes or _pads_zeros(node) or _concatenates(node) else "float"


def _role_of_arithmetic(node: fx.Node) -> str:
    tensors = [isinstance(a, fx.Node) for a in node.args]
    if len(tensors) != 2 or node.kwargs:
        return "float"
    if all(tensors):
        return PAIRS.get(node.target, "float")
    number = node.args[1 if tensors[0] else 0]
    return "function" if any(tensors) and isinstance(number, int | float) else "float"


def _concatenates(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target not in CONCATENATIONS or not isinstance(node.args[0], list | tuple):
        return False
    return all(isinstance(value, fx.Node) for value in node.args[0])


def _module_role(module: nn.Module, calls: int, bounds: ClampedAffine | None) -> str:
    if bounds is not None:
        return "act"
    if isinstance(module, PASS_MODULES) or is_identity_in_eval(module):
        return "pass"
    if isinstance(module, AVERAGE_MODULES):
        return "average"
    if isinstance(module, FUNCTION_MODULES):
        return "function"
    if type(module) in (nn.BatchNorm1d, nn.BatchNorm2d) and module.track_running_stats:
        return "norm"
    whole = type(module) is nn.Linear or (
        type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    )
    return "layer" if whole and calls == 1 and not _has_hooks(module) else "float"


def _has_hooks(module: nn.Module) -> bool:
    """Whether something changes what it reads or gives."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _averages(node: fx.Node) -> bool:
    """Whether a function or method averages over space. Its other arguments must be numbers."""
    if any(isinstance(value, fx.Node) for value in [*node.args[1:], *node.kwargs.values()]):
        return False
    if node.op == "call_function" and node.target in AVERAGE_FUNCTIONS:
        return True
    if not (node.target is torch.mean or (node.op == "call_method" and node.target == "mean")):
        return False
    axes = [*node.args[1:2], node.kwargs.get("dim")][0]
    return isinstance(axes, list | tuple) and sorted(axes) in HEIGHT_AND_WIDTH


def _pads_zeros(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target is not F.pad:
        return False
    mode, value = [*node.args[2:], *[None, None]][:2]
    mode, value = node.kwargs.get("mode", mode), node.kwargs.get("value", value)
    return mode in (None, "constant") and not value


def name_of(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
