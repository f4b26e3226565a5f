"""The table of operators: everything that the product knows of one, in one row.

    role          what a node of a traced graph is; see ROLES
    modules       classes of modules that compute the operator, and their subclasses unless `exact`
    functions     functions that compute it
    methods       names of tensor methods that compute it
    in_place      functions and methods that write the result over their first argument
    accepts       which calls are meant: the others stay in float
    function      the function to call, out of place, with the tensors first; torch.onnx and the .npz file write this one
    attributes    attributes of the module that are keyword arguments of `function`
    arithmetic    the integer form (core/integer_operator.py) of an operator without weights
    activation    the ClampedAffine of an activation
    signed        from whether each input can be negative, whether the output can
    tail          bounds on the input beyond which a function is constant

A new element-wise function is a row. A new operator of two tensors is a row and, if no arithmetic is there for it, a
function in core/integer_operator.py.
"""

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from quant.core.activation import IDENTITY, ClampedAffine
from quant.core.integer_operator import Arithmetic, add, average, function, mul

Role = Literal[
    "image", "layer", "norm", "activation", "binary", "average", "function", "pass", "shape", "float", "output"
]
"""What a node of a traced graph is.

image       the input
layer       a convolution or linear layer that can run in integers
norm        a batch norm
activation  ReLU, ReLU6, Hardtanh, clamp, hard-sigmoid: an affine function between two levels
binary      the sum or product of two tensors
average     an average pool, or a mean over height and width
function    an element-wise function of one tensor (hard-swish, sigmoid, x + 3 ...)
pass        moves or selects values (max-pool, reshape, concatenation, dropout ...): its output is on its inputs' grid
shape       reads a tensor's shape, or computes with such numbers
float       anything else; it runs in float
output      the logits
"""


@dataclass(frozen=True)
class NodeView:
    """A node of a float graph, the module that it calls (None for a function or a method), and how often the graph
    calls that module."""

    node: fx.Node
    module: nn.Module | None = None
    calls: int = 1

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument beside the tensors: the module's attribute, or what the call passes by position or by name."""
        if self.module is not None:
            return getattr(self.module, name)
        given = self.node.args[position] if position < len(self.node.args) else None
        found = self.node.kwargs.get(name, given)
        return default if found is None else found

    def others(self) -> list[Any]:
        """All arguments of a function or method but the first."""
        return [] if self.module is not None else [*self.node.args[1:], *self.node.kwargs.values()]


@dataclass(frozen=True, kw_only=True)
class Operator:
    """A row of OPERATORS; the module's docstring says what the columns mean."""

    role: Role
    modules: tuple[type[nn.Module], ...] = ()
    functions: tuple[Callable, ...] = ()
    methods: tuple[str, ...] = ()
    in_place: tuple[Callable | str, ...] = ()
    module_names: tuple[str, ...] = ()
    """Classes of other libraries, by name."""
    exact: bool = False
    """A subclass of `modules` is not meant: it may compute something else."""
    accepts: Callable[[NodeView], bool] = lambda view: True
    function: Callable | None = None
    attributes: tuple[str, ...] = ()
    arithmetic: Arithmetic | None = None
    activation: Callable[[NodeView], ClampedAffine | None] = lambda view: None
    signed: Callable[[Iterable[bool]], bool] = lambda inputs: True
    tail: ClampedAffine = IDENTITY
    identity_in_eval: bool = False
    is_view: bool = False
    """The output may share the memory of the first input."""
    splits: bool = False
    """The output is a tuple of parts of a tensor."""
    pads: bool = False
    """Fills in a zero or minus infinity: not defined on unsigned integers that have a zero point."""
    commutes_with_scaling: bool = False
    """Scaling a channel of the input scales that channel of the output."""


FLOAT_OPERATOR = Operator(role="float")
"""The row of whatever the table does not have."""
RELU, HARD_SIGMOID = ClampedAffine(0.0, math.inf), ClampedAffine(0.0, 1.0, 1 / 6, 0.5)
HEIGHT_AND_WIDTH = ([2, 3], [-2, -1])


def why_layer_is_float(view: NodeView) -> str:
    """Why a convolution or linear layer cannot run in integers; empty if it can."""
    layer = view.module
    if isinstance(layer, nn.Conv2d) and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
        return "padding without zeros of a fixed number"
    if layer is not None and (layer._forward_hooks or layer._forward_pre_hooks):
        return "it has hooks"
    return "" if view.calls == 1 else "called more than once"


def _tracks_statistics(view: NodeView) -> bool:
    return bool(view.argument(0, "track_running_stats"))


def _is_activation(bounds: Callable[[NodeView], ClampedAffine | None]) -> dict[str, Callable]:
    """Columns of an activation whose bounds must be numbers."""
    return {"activation": bounds, "accepts": lambda view: bounds(view) is not None}


def _clamp_between(low: str, high: str, default: tuple[float, float]) -> Callable[[NodeView], ClampedAffine | None]:
    """The ClampedAffine between two arguments of those names."""

    def bounds(view: NodeView) -> ClampedAffine | None:
        found = view.argument(1, low, default[0]), view.argument(2, high, default[1])
        return None if any(isinstance(bound, fx.Node) for bound in found) else ClampedAffine(*map(float, found))

    return bounds


def _has_two_tensors(view: NodeView) -> bool:
    args = view.node.args
    return len(args) == 2 and not view.node.kwargs and all(isinstance(value, fx.Node) for value in args)


def _has_tensor_and_number(view: NodeView) -> bool:
    args = view.node.args
    if len(args) != 2 or view.node.kwargs:
        return False
    tensors, numbers = ([isinstance(value, kind) for value in args] for kind in (fx.Node, int | float))
    return sum(tensors) == sum(numbers) == 1


def _has_plain_arguments(view: NodeView) -> bool:
    return not any(isinstance(value, fx.Node) for value in view.others())


def _is_mean_over_height_and_width(view: NodeView) -> bool:
    axes = view.argument(1, "dim")
    return _has_plain_arguments(view) and isinstance(axes, list | tuple) and sorted(axes) in HEIGHT_AND_WIDTH


def _pads_zeros(view: NodeView) -> bool:
    return view.argument(2, "mode", "constant") == "constant" and not view.argument(3, "value", 0)


def _joins_tensors(view: NodeView) -> bool:
    values = view.node.args[0]
    return isinstance(values, list | tuple) and all(isinstance(value, fx.Node) for value in values)


def _reads_shape(view: NodeView) -> bool:
    return view.node.args[1] in ("shape", "ndim")


def shape_or_ndim(x: Tensor, name: str) -> Any:
    """getattr, for the two attributes that a graph may read."""
    return {"shape": x.shape, "ndim": x.ndim}[name]


def _any(inputs: Iterable[bool]) -> bool:
    return any(inputs)


def _never(inputs: Iterable[bool]) -> bool:
    return False


def _function(**columns: Any) -> Operator:
    """A row of an element-wise function."""
    return Operator(role="function", arithmetic=function, **columns)


def _scalar(*functions: Callable, methods: tuple[str, ...], in_place: tuple, canonical: Callable) -> Operator:
    """A row of arithmetic with a tensor and a number: an element-wise function."""
    return _function(
        functions=functions, methods=methods, in_place=in_place, function=canonical, accepts=_has_tensor_and_number
    )


def _view(function: Callable, *functions: Callable, methods: tuple[str, ...] = (), **columns: Any) -> Operator:
    """A row of an operator whose output shares its input's memory."""
    return Operator(
        role="pass", functions=functions, methods=methods, function=function, signed=_any, is_view=True, **columns
    )


_clamp = _clamp_between("min", "max", (-math.inf, math.inf))
_hardtanh = _clamp_between("min_val", "max_val", (-1.0, 1.0))
_POOL = ("kernel_size", "stride", "padding")

OPERATORS: dict[str, Operator] = {
    # layers
    "conv2d": Operator(
        role="layer", modules=(nn.Conv2d,), exact=True, accepts=lambda view: not why_layer_is_float(view)
    ),
    "linear": Operator(
        role="layer", modules=(nn.Linear,), exact=True, accepts=lambda view: not why_layer_is_float(view)
    ),
    "batch_norm": Operator(
        role="norm", modules=(nn.BatchNorm1d, nn.BatchNorm2d), exact=True, accepts=_tracks_statistics
    ),
    # activations
    "relu": Operator(
        role="activation",
        modules=(nn.ReLU,),
        exact=True,
        functions=(F.relu, torch.relu),
        methods=("relu",),
        in_place=(F.relu_, torch.relu_, "relu_"),
        function=F.relu,
        **_is_activation(lambda view: RELU),
    ),
    "relu6": Operator(
        role="activation",
        functions=(F.relu6,),
        function=F.relu6,
        **_is_activation(lambda view: ClampedAffine(0.0, 6.0)),
    ),
    "hardtanh": Operator(
        role="activation",
        modules=(nn.Hardtanh,),  # ReLU6 is one
        functions=(F.hardtanh,),
        function=F.hardtanh,
        attributes=("min_val", "max_val"),
        **_is_activation(_hardtanh),
    ),
    "clamp": Operator(
        role="activation",
        functions=(torch.clamp,),
        methods=("clamp",),
        in_place=(torch.clamp_, "clamp_"),
        function=torch.clamp,
        **_is_activation(_clamp),
    ),
    "hardsigmoid": Operator(
        role="activation",
        modules=(nn.Hardsigmoid,),
        exact=True,
        functions=(F.hardsigmoid,),
        function=F.hardsigmoid,
        **_is_activation(lambda view: HARD_SIGMOID),
    ),
    # two tensors
    "add": Operator(
        role="binary",
        functions=(operator.add, torch.add),
        methods=("add",),
        in_place=(operator.iadd, "add_"),
        function=operator.add,
        accepts=_has_two_tensors,
        arithmetic=add,
        signed=_any,
    ),
    "mul": Operator(
        role="binary",
        functions=(operator.mul, torch.mul),
        methods=("mul",),
        in_place=(operator.imul, "mul_"),
        function=operator.mul,
        accepts=_has_two_tensors,
        arithmetic=mul,
        signed=_any,
    ),
    # averages
    "avg_pool2d": Operator(
        role="average",
        modules=(nn.AvgPool2d,),
        functions=(F.avg_pool2d,),
        function=F.avg_pool2d,
        attributes=(*_POOL, "ceil_mode", "count_include_pad", "divisor_override"),
        accepts=_has_plain_arguments,
        arithmetic=average,
        signed=_any,
        commutes_with_scaling=True,
    ),
    "adaptive_avg_pool2d": Operator(
        role="average",
        modules=(nn.AdaptiveAvgPool2d,),
        functions=(F.adaptive_avg_pool2d,),
        function=F.adaptive_avg_pool2d,
        attributes=("output_size",),
        accepts=_has_plain_arguments,
        arithmetic=average,
        signed=_any,
        commutes_with_scaling=True,
    ),
    "mean": Operator(
        role="average",
        functions=(torch.mean,),
        methods=("mean",),
        function=torch.mean,
        accepts=_is_mean_over_height_and_width,
        arithmetic=average,
        signed=_any,
        commutes_with_scaling=True,
    ),
    # element-wise functions
    "hardswish": _function(
        modules=(nn.Hardswish,),
        functions=(F.hardswish,),
        function=F.hardswish,
        tail=ClampedAffine(-3.0, math.inf),  # below -3 hard-swish is 0, as it is at -3
    ),
    "sigmoid": _function(
        modules=(nn.Sigmoid,),
        functions=(F.sigmoid, torch.sigmoid),
        methods=("sigmoid",),
        in_place=(torch.sigmoid_, "sigmoid_"),
        function=torch.sigmoid,
        signed=_never,
    ),
    "tanh": _function(
        modules=(nn.Tanh,),
        functions=(F.tanh, torch.tanh),
        methods=("tanh",),
        in_place=(torch.tanh_, "tanh_"),
        function=torch.tanh,
    ),
    "silu": _function(modules=(nn.SiLU,), functions=(F.silu,), function=F.silu),
    "gelu": _function(modules=(nn.GELU,), functions=(F.gelu,), function=F.gelu, attributes=("approximate",)),
    "elu": _function(modules=(nn.ELU,), functions=(F.elu,), function=F.elu, attributes=("alpha",)),
    "selu": _function(modules=(nn.SELU,), functions=(F.selu,), function=F.selu),
    "celu": _function(modules=(nn.CELU,), functions=(F.celu,), function=F.celu, attributes=("alpha",)),
    "leaky_relu": _function(
        modules=(nn.LeakyReLU,), functions=(F.leaky_relu,), function=F.leaky_relu, attributes=("negative_slope",)
    ),
    "softplus": _function(
        modules=(nn.Softplus,), functions=(F.softplus,), function=F.softplus, attributes=("beta", "threshold")
    ),
    "softsign": _function(modules=(nn.Softsign,), functions=(F.softsign,), function=F.softsign),
    "mish": _function(modules=(nn.Mish,), functions=(F.mish,), function=F.mish),
    "neg": _function(functions=(operator.neg, torch.neg), methods=("neg",), function=torch.neg),
    "add_scalar": _scalar(
        operator.add, torch.add, methods=("add",), in_place=(operator.iadd, "add_"), canonical=operator.add
    ),
    "sub_scalar": _scalar(
        operator.sub, torch.sub, methods=("sub",), in_place=(operator.isub, "sub_"), canonical=operator.sub
    ),
    "mul_scalar": _scalar(
        operator.mul, torch.mul, methods=("mul",), in_place=(operator.imul, "mul_"), canonical=operator.mul
    ),
    "div_scalar": _scalar(
        operator.truediv, torch.div, methods=("div",), in_place=(operator.itruediv, "div_"), canonical=operator.truediv
    ),
    # values moved or selected
    "max_pool2d": Operator(
        role="pass",
        modules=(nn.MaxPool2d,),
        functions=(F.max_pool2d, torch.max_pool2d),
        function=F.max_pool2d,
        attributes=(*_POOL, "dilation", "ceil_mode"),
        signed=_any,
        pads=True,
        commutes_with_scaling=True,
    ),
    "pad": Operator(role="pass", functions=(F.pad,), function=F.pad, accepts=_pads_zeros, signed=_any, pads=True),
    "cat": Operator(
        role="pass", functions=(torch.cat, torch.concat), function=torch.cat, accepts=_joins_tensors, signed=_any
    ),
    "channel_shuffle": Operator(
        role="pass", modules=(nn.ChannelShuffle,), function=torch.channel_shuffle, attributes=("groups",), signed=_any
    ),
    "pixel_shuffle": Operator(
        role="pass", modules=(nn.PixelShuffle,), function=F.pixel_shuffle, attributes=("upscale_factor",), signed=_any
    ),
    "flatten": _view(
        Tensor.flatten,
        torch.flatten,
        methods=("flatten",),
        modules=(nn.Flatten,),
        attributes=("start_dim", "end_dim"),
    ),
    "reshape": _view(Tensor.reshape, torch.reshape, methods=("reshape", "view")),
    "permute": _view(Tensor.permute, torch.permute, methods=("permute",)),
    "transpose": _view(Tensor.transpose, torch.transpose, methods=("transpose",)),
    "squeeze": _view(Tensor.squeeze, torch.squeeze, methods=("squeeze",)),
    "unsqueeze": _view(Tensor.unsqueeze, torch.unsqueeze, methods=("unsqueeze",)),
    "chunk": _view(Tensor.chunk, torch.chunk, methods=("chunk",), splits=True),
    "split": _view(Tensor.split, torch.split, methods=("split",), splits=True),
    "getitem": _view(operator.getitem, operator.getitem),
    "contiguous": Operator(role="pass", methods=("contiguous",), function=Tensor.contiguous, signed=_any),
    "dropout": Operator(
        role="pass",
        modules=(nn.Dropout, nn.Dropout2d),
        signed=_any,
        identity_in_eval=True,
        is_view=True,
        commutes_with_scaling=True,
    ),
    "identity": Operator(
        role="pass",
        modules=(nn.Identity,),
        signed=_any,
        identity_in_eval=True,
        is_view=True,
        commutes_with_scaling=True,
    ),
    "stochastic_depth": Operator(
        role="pass",
        module_names=("StochasticDepth", "DropPath"),  # torchvision's and timm's
        signed=_any,
        identity_in_eval=True,
        is_view=True,
    ),
    # shapes, and numbers computed from them
    "size": Operator(role="shape", methods=("size",), function=Tensor.size),
    "dim": Operator(role="shape", methods=("dim",), function=Tensor.dim),
    "getattr": Operator(role="shape", functions=(getattr,), function=shape_or_ndim, accepts=_reads_shape),
    "floordiv": Operator(role="float", functions=(operator.floordiv,), function=operator.floordiv),
}


def _index() -> dict[Any, list[str]]:
    """The names of the rows that a class, a function, or the name of a method or of a class may mean."""
    found: dict[Any, list[str]] = {}
    for name, row in OPERATORS.items():
        methods = [f".{method}" for method in (*row.methods, *row.in_place) if isinstance(method, str)]
        functions = [f for f in (*row.functions, *row.in_place) if not isinstance(f, str)]
        for key in dict.fromkeys((*row.modules, *row.module_names, *functions, *methods)):
            found.setdefault(key, []).append(name)
    return found


_BY_TARGET = _index()
OUT_OF_PLACE: dict[Callable | str, Callable | str] = {
    target: target.removesuffix("_") if isinstance(target, str) else row.function
    for row in OPERATORS.values()
    for target in row.in_place
}
"""The out-of-place form of each in-place function and method."""


def operator_name(view: NodeView) -> str | None:
    """The name of the row that a node means, or None where the table has none."""
    names = _names_of_module(view.module) if view.module is not None else _names_of_call(view.node)
    return next((name for name in names if OPERATORS[name].accepts(view)), None)


def module_operator(module: nn.Module | None) -> Operator:
    """The row of a module's class, whatever the call; FLOAT_OPERATOR where there is none."""
    names = [] if module is None else _names_of_module(module)
    return OPERATORS[names[0]] if names else FLOAT_OPERATOR


def _names_of_module(module: nn.Module) -> list[str]:
    kinds = [*type(module).__mro__, type(module).__name__]
    names = [name for kind in kinds for name in _BY_TARGET.get(kind, ())]
    return [name for name in names if not OPERATORS[name].exact or type(module) in OPERATORS[name].modules]


def _names_of_call(node: fx.Node) -> list[str]:
    if node.op == "call_method":
        return _BY_TARGET.get(f".{node.target}", [])
    return _BY_TARGET.get(node.target, []) if node.op == "call_function" else []


def name_of(node: fx.Node) -> str:
    """The name of the function, method or module that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
