"""Calls of torch in plain values: what a file may ask to be called, and how a graph's node becomes such a call.

CALLS is all there is: a name that is not in it is refused, written or read.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from quant.graph.op_table import name_of
from utils.errors import UserError


def _shape_or_ndim(x: Tensor, name: str) -> Any:
    return {"shape": x.shape, "ndim": x.ndim}[name]


METHODS = ("flatten", "reshape", "permute", "transpose", "contiguous", "chunk", "split", "squeeze", "unsqueeze")
METHODS += ("size", "dim", "mean", "clamp", "sigmoid", "tanh", "neg")
FUNCTIONS = (F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.pad, F.pixel_shuffle, torch.channel_shuffle)
FUNCTIONS += (F.relu, F.relu6, F.hardtanh, F.hardsigmoid, F.hardswish, F.silu, F.gelu, F.elu, F.leaky_relu)
ARITHMETIC = (operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.getitem)
CALLS: dict[str, Callable] = {name: getattr(Tensor, name) for name in METHODS}
CALLS |= {function.__name__: function for function in (*FUNCTIONS, *ARITHMETIC)}
CALLS |= {"getattr": _shape_or_ndim, "cat": torch.cat, "concat": torch.cat}

POOL = ("kernel_size", "stride", "padding")
MODULES: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.MaxPool2d: ("max_pool2d", (*POOL, "dilation", "ceil_mode")),
    nn.AvgPool2d: ("avg_pool2d", (*POOL, "ceil_mode", "count_include_pad", "divisor_override")),
    nn.AdaptiveAvgPool2d: ("adaptive_avg_pool2d", ("output_size",)),
    nn.Flatten: ("flatten", ("start_dim", "end_dim")),
    nn.PixelShuffle: ("pixel_shuffle", ("upscale_factor",)),
    nn.ChannelShuffle: ("channel_shuffle", ("groups",)),
    nn.ReLU: ("relu", ()),
    nn.Hardtanh: ("hardtanh", ("min_val", "max_val")),
    nn.Hardsigmoid: ("hardsigmoid", ()),
    nn.Hardswish: ("hardswish", ()),
    nn.Sigmoid: ("sigmoid", ()),
    nn.SiLU: ("silu", ()),
    nn.Tanh: ("tanh", ()),
}
"""Modules without weights: the call that does the same, and the attributes that are its arguments."""


@dataclass(frozen=True)
class Call:
    """CALLS[name] with its last arguments; those before, and more by name, come with each call."""

    name: str
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def __call__(self, *before: Any, **more: Any) -> Any:
        return CALLS[self.name](*before, *self.args, **self.kwargs, **more)


def call_of(run: Callable) -> Call:
    """The call that a module, or the function of a QuantOperator, stands for. Raises UserError if there is none."""
    for kind, (name, attributes) in MODULES.items():
        if isinstance(run, kind):
            return Call(name, tuple(getattr(run, attribute) for attribute in attributes))
    function, given = getattr(run, "function", run), getattr(run, "given", ())
    name = getattr(function, "__name__", type(run).__name__)
    tensors = [isinstance(value, fx.Node) for value in given]
    if isinstance(run, nn.Module) or name not in CALLS or tensors != sorted(tensors, reverse=True):
        raise refused(name)
    return Call(name, tuple(given[sum(tensors) :]), dict(getattr(run, "kwargs", {})))


def call_of_node(node: fx.Node, modules: dict[str, nn.Module]) -> Call:
    """The call, without arguments of its own, that a node of a graph makes."""
    if node.op == "call_module":
        return call_of(modules[node.target])
    scaled = CALLS.get(name_of(node)) in ARITHMETIC and node.kwargs  # torch.add's alpha, which + has not
    if node.op not in ("call_function", "call_method") or name_of(node) not in CALLS or scaled:
        raise refused(name_of(node))
    return Call(name_of(node))


def refused(name: str) -> UserError:
    return UserError(f"export: {name} has no place in a packed file; export=FOLDER or FILE.onnx take it")


@dataclass(frozen=True)
class Value:
    """The value of another node, by its name."""

    of: str


def to_plain(value: Any) -> Any:
    """Arguments of a node as JSON holds them. Raises UserError for what it cannot."""
    if isinstance(value, fx.Node):
        return {"of": value.name}
    if isinstance(value, slice):
        return {"slice": [to_plain(part) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, tuple):
        return {"tuple": [to_plain(part) for part in value]}
    if isinstance(value, list):
        return [to_plain(part) for part in value]
    if isinstance(value, dict):
        return {"dict": {key: to_plain(part) for key, part in value.items()}}
    if value is None or isinstance(value, int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise refused(f"an argument {value!r}")


def from_plain(value: Any) -> Any:
    """to_plain's value again, with a Value for each node. Raises ValueError for anything else."""
    if isinstance(value, list):
        return [from_plain(part) for part in value]
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "of":
        return Value(str(inside))
    if kind == "dict":
        return {key: from_plain(part) for key, part in inside.items()}
    if kind in ("slice", "tuple"):
        return {"slice": lambda parts: slice(*parts), "tuple": tuple}[kind](from_plain(inside))
    raise ValueError(f"{kind!r} is no kind of argument")


def filled(value: Any, values: dict[str, Any]) -> Any:
    """from_plain's value with the values of nodes in their places."""
    if isinstance(value, Value):
        return values[value.of]
    if isinstance(value, list | tuple):
        return type(value)(filled(part, values) for part in value)
    if isinstance(value, dict):
        return {key: filled(part, values) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(*(filled(part, values) for part in (value.start, value.stop, value.step)))
    return value


def mentioned(value: Any) -> set[str]:
    """The names of the nodes whose values an argument holds."""
    if isinstance(value, Value):
        return {value.of}
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    parts = (value.start, value.stop, value.step) if isinstance(value, slice) else parts
    return set().union(*map(mentioned, parts))
