"""The table of operators: which can run in integers, with all that is known of each.

A new element-wise function is a row. A new operator of two tensors is a row and, if its arithmetic is not there yet, a
function in core/integer_operator.py.
"""

import math
import operator
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from quant.core.activation import ClampedAffine, channel_affine
from quant.core.integer_operator import add, average, elementwise, function, mul, sub
from quant.graph import node_view as calls
from quant.graph.node_view import NodeView, has_hooks
from quant.graph.operator_row import Operator, always, never
from quant.graph.plain_classes import FrozenBatchNorm, RowConvolution, pad_same, plain_class


def shape_or_ndim(x: Tensor, name: str) -> Any:
    """getattr, for the two attributes that a graph may read."""
    return {"shape": x.shape, "ndim": x.ndim}[name]


RELU, RELU6 = ClampedAffine(0.0, math.inf), ClampedAffine(0.0, 6.0)
HARD_SIGMOID = ClampedAffine(0.0, 1.0, 1 / 6, 0.5)
CLAMP = calls.clamp_between("min", "max", (-math.inf, math.inf))
HARDTANH = calls.clamp_between("min_val", "max_val", (-1.0, 1.0))
POOL = ("kernel_size", "stride", "padding")
AVERAGE_POOL = (*POOL, "ceil_mode", "count_include_pad", "divisor_override")
_layer = partial(Operator, role="layer", exact=True, accepts=lambda view: not calls.why_layer_is_float(view))
_activation = partial(Operator, role="activation")
_binary = partial(Operator, role="binary", accepts=calls.has_two_tensors, signed=any)
_average = partial(Operator, role="average", arithmetic=average, signed=any, commutes_with_scaling=True)
_function = partial(Operator, role="function", arithmetic=function)
_scalar = partial(_function, accepts=calls.has_tensor_and_number)
_constant = partial(Operator, role="function", arithmetic=elementwise, accepts=calls.has_tensor_and_constant)
_pass = partial(Operator, role="pass", signed=any)
_view = partial(_pass, is_view=True)
_removed = partial(_view, identity_in_eval=True)
_root = partial(Operator, role="float", divides_by=calls.first_argument)

OPERATORS: dict[str, Operator] = {
    # layers and batch norms
    "conv2d": _layer(modules=(nn.Conv2d, RowConvolution)),
    "linear": _layer(modules=(nn.Linear,)),
    "batch_norm": Operator(
        role="norm",
        modules=(nn.BatchNorm1d, nn.BatchNorm2d, FrozenBatchNorm),
        exact=True,
        accepts=calls.tracks_statistics,
        call=F.batch_norm,
    ),
    "channel_affine": Operator(role="norm", call=channel_affine, arithmetic=elementwise),  # one by itself, in integers
    # activations; ReLU6 is a Hardtanh
    "relu": _activation(
        modules=(nn.ReLU,),
        exact=True,
        functions=(F.relu, torch.relu),
        methods=("relu",),
        in_place=(F.relu_, torch.relu_, "relu_"),
        activation=lambda view: RELU,
    ),
    "relu6": _activation(functions=(F.relu6,), activation=lambda view: RELU6),
    "hardtanh": _activation(
        modules=(nn.Hardtanh,), functions=(F.hardtanh,), attributes=("min_val", "max_val"), activation=HARDTANH
    ),
    "clamp": _activation(
        functions=(torch.clamp,), methods=("clamp",), in_place=(torch.clamp_, "clamp_"), activation=CLAMP
    ),
    "hardsigmoid": _activation(
        modules=(nn.Hardsigmoid,), exact=True, functions=(F.hardsigmoid,), activation=lambda view: HARD_SIGMOID
    ),
    # two tensors
    "add": _binary(functions=(operator.add, torch.add), methods=("add",), in_place=("add_",), arithmetic=add),
    "sub": _binary(
        functions=(operator.sub, torch.sub), methods=("sub",), in_place=("sub_",), arithmetic=sub, signed=always
    ),
    "mul": _binary(functions=(operator.mul, torch.mul), methods=("mul",), in_place=("mul_",), arithmetic=mul),
    # averages over height and width
    "avg_pool2d": _average(
        modules=(nn.AvgPool2d,), functions=(F.avg_pool2d,), attributes=AVERAGE_POOL, accepts=calls.has_plain_arguments
    ),
    "adaptive_avg_pool2d": _average(
        modules=(nn.AdaptiveAvgPool2d,),
        functions=(F.adaptive_avg_pool2d,),
        attributes=("output_size",),
        accepts=calls.has_plain_arguments,
    ),
    "mean": _average(
        functions=(torch.mean,),
        methods=("mean",),
        accepts=calls.is_mean_within_images,
        flattens=calls.is_mean_over_height_and_width,
    ),
    # element-wise functions; hard-swish is 0 below -3, as it is at -3
    "hardswish": _function(modules=(nn.Hardswish,), functions=(F.hardswish,), tail=ClampedAffine(-3.0, math.inf)),
    "sigmoid": _function(
        modules=(nn.Sigmoid,),
        functions=(torch.sigmoid, F.sigmoid),
        methods=("sigmoid",),
        in_place=(torch.sigmoid_, "sigmoid_"),
        signed=never,
    ),
    "tanh": _function(
        modules=(nn.Tanh,), functions=(torch.tanh, F.tanh), methods=("tanh",), in_place=(torch.tanh_, "tanh_")
    ),
    "silu": _function(modules=(nn.SiLU,), functions=(F.silu,)),
    "gelu": _function(modules=(nn.GELU,), functions=(F.gelu,), attributes=("approximate",)),
    "elu": _function(modules=(nn.ELU,), functions=(F.elu,), attributes=("alpha",)),
    "selu": _function(modules=(nn.SELU,), functions=(F.selu,)),
    "celu": _function(modules=(nn.CELU,), functions=(F.celu,), attributes=("alpha",)),
    "leaky_relu": _function(modules=(nn.LeakyReLU,), functions=(F.leaky_relu,), attributes=("negative_slope",)),
    "softplus": _function(modules=(nn.Softplus,), functions=(F.softplus,), attributes=("beta", "threshold")),
    "softsign": _function(modules=(nn.Softsign,), functions=(F.softsign,)),
    "mish": _function(modules=(nn.Mish,), functions=(F.mish,)),
    "neg": _function(functions=(torch.neg, operator.neg), methods=("neg",)),
    "abs": _function(functions=(torch.abs, operator.abs), methods=("abs",), in_place=("abs_",), signed=never),
    "square": _function(functions=(torch.square,), methods=("square",), in_place=("square_",), signed=never),
    # a tensor and a number: element-wise functions
    "add_scalar": _scalar(functions=(operator.add, torch.add), methods=("add",), in_place=("add_",)),
    "sub_scalar": _scalar(functions=(operator.sub, torch.sub), methods=("sub",), in_place=("sub_",)),
    "mul_scalar": _scalar(functions=(operator.mul, torch.mul), methods=("mul",), in_place=("mul_",)),
    "div_scalar": _function(
        functions=(operator.truediv, torch.div),
        methods=("div",),
        in_place=("div_",),
        accepts=calls.has_tensor_then_number,
    ),
    "pow_scalar": _function(functions=(operator.pow, torch.pow), methods=("pow",), accepts=calls.is_positive_power),
    # a tensor and a Parameter or another constant of the model
    "add_constant": _constant(functions=(operator.add, torch.add), methods=("add",), in_place=("add_",)),
    "sub_constant": _constant(functions=(operator.sub, torch.sub), methods=("sub",), in_place=("sub_",)),
    "rsub_constant": _constant(functions=(torch.rsub,), accepts=calls.has_tensor_then_constant),
    "mul_constant": _constant(functions=(operator.mul, torch.mul), methods=("mul",), in_place=("mul_",)),
    "div_constant": _constant(
        functions=(operator.truediv, torch.div),
        methods=("div",),
        in_place=("div_",),
        accepts=calls.has_tensor_then_constant,
    ),
    "prelu": _constant(functions=(F.prelu,), methods=("prelu",), accepts=calls.has_tensor_then_constant),
    # divisors, roots and logarithms
    "div": _root(functions=(operator.truediv, torch.div), methods=("div",), divides_by=calls.second_argument),
    "pow": _root(functions=(operator.pow, torch.pow), methods=("pow",)),
    "reciprocal": _root(functions=(torch.reciprocal,), methods=("reciprocal",)),
    "rsqrt": _root(functions=(torch.rsqrt,), methods=("rsqrt",)),
    "sqrt": _root(functions=(torch.sqrt,), methods=("sqrt",)),
    "log": _root(functions=(torch.log,), methods=("log",)),
    "log2": _root(functions=(torch.log2,), methods=("log2",)),
    "log10": _root(functions=(torch.log10,), methods=("log10",)),
    # values moved or selected
    "max_pool2d": _pass(
        modules=(nn.MaxPool2d,),
        functions=(F.max_pool2d, torch.max_pool2d),
        attributes=(*POOL, "dilation", "ceil_mode"),
        accepts=calls.returns_no_indices,
        pads=True,
        commutes_with_scaling=True,
    ),
    "adaptive_max_pool2d": _pass(
        modules=(nn.AdaptiveMaxPool2d,),
        functions=(F.adaptive_max_pool2d,),
        attributes=("output_size",),
        accepts=calls.returns_no_indices,
        on_quantized=False,
        commutes_with_scaling=True,
    ),
    "amax": _pass(functions=(torch.amax,), methods=("amax",), accepts=calls.reduces_within_images, on_quantized=False),
    "amin": _pass(
        functions=(torch.amin,), methods=("amin",), accepts=calls.reduces_within_images, on_quantized=False, signed=any
    ),
    "pad": _pass(functions=(F.pad,), accepts=calls.pads_zeros, pads=True),
    "pad_copies": _pass(functions=(F.pad,), accepts=calls.pads_copies, on_quantized=False),
    "pad_constant": _function(functions=(F.pad,), accepts=calls.pads_number, arithmetic=elementwise, signed=always),
    "pad_same": _pass(functions=(pad_same,), pads=True),
    "interpolate": _pass(
        modules=(nn.Upsample, nn.UpsamplingNearest2d),
        functions=(F.interpolate,),
        attributes=("size", "scale_factor", "mode"),
        accepts=calls.copies_nearest,
    ),
    "flip": _pass(functions=(torch.flip,), methods=("flip",), call=Tensor.flip),
    "roll": _pass(functions=(torch.roll,), methods=("roll",), on_quantized=False),
    "cat": _pass(functions=(torch.cat, torch.concat), accepts=calls.joins_tensors),
    "channel_shuffle": _pass(
        modules=(nn.ChannelShuffle,), call=torch.channel_shuffle, attributes=("groups",), shuffles=True
    ),
    "pixel_shuffle": _pass(modules=(nn.PixelShuffle,), call=F.pixel_shuffle, attributes=("upscale_factor",)),
    "pixel_unshuffle": _pass(
        modules=(nn.PixelUnshuffle,), functions=(F.pixel_unshuffle,), attributes=("downscale_factor",)
    ),
    "contiguous": _pass(methods=("contiguous",), call=Tensor.contiguous),
    "clone": _pass(functions=(torch.clone,), methods=("clone",), call=Tensor.clone),
    "flatten": _view(
        modules=(nn.Flatten,),
        functions=(torch.flatten,),
        methods=("flatten",),
        attributes=("start_dim", "end_dim"),
        flattens=calls.flattens_all_but_batch,
    ),
    "reshape": _view(functions=(torch.reshape,), methods=("reshape", "view"), call=Tensor.reshape),
    "permute": _view(functions=(torch.permute,), methods=("permute",), call=Tensor.permute),
    "transpose": _view(functions=(torch.transpose,), methods=("transpose",)),
    "squeeze": _view(functions=(torch.squeeze,), methods=("squeeze",)),
    "expand": _view(methods=("expand",), call=Tensor.expand),
    "unsqueeze": _view(functions=(torch.unsqueeze,), methods=("unsqueeze",)),
    "chunk": _view(functions=(torch.chunk,), methods=("chunk",), splits=True),
    "split": _view(functions=(torch.split,), methods=("split",), splits=True),
    "getitem": _view(functions=(operator.getitem,)),
    # nothing in eval; stochastic depth is torchvision's StochasticDepth and timm's DropPath
    "dropout": _removed(
        modules=(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
        as_modules=(
            (F.dropout, nn.Dropout),
            (torch.dropout, nn.Dropout),
            (F.dropout1d, nn.Dropout1d),
            (F.dropout2d, nn.Dropout2d),
            (F.dropout3d, nn.Dropout3d),
            (F.alpha_dropout, nn.AlphaDropout),
            (F.feature_alpha_dropout, nn.FeatureAlphaDropout),
        ),
        commutes_with_scaling=True,
    ),
    "identity": _removed(modules=(nn.Identity,), commutes_with_scaling=True),
    "stochastic_depth": _removed(module_names=("StochasticDepth", "DropPath")),
    # shapes and numbers computed from them, and a view in float
    "size": Operator(role="shape", methods=("size",), call=Tensor.size),
    "dim": Operator(role="shape", methods=("dim",), call=Tensor.dim),
    "getattr": Operator(role="shape", functions=(getattr,), call=shape_or_ndim, accepts=calls.reads_shape),
    "floordiv": Operator(role="float", functions=(operator.floordiv,)),
    "unflatten": Operator(role="float", modules=(nn.Unflatten,), is_view=True),
}
FLOAT_OPERATOR = Operator(role="float")
"""The row of whatever the table does not have."""
OUT_OF_PLACE: dict[Callable | str, Callable | str] = {
    target: target.removesuffix("_") if isinstance(target, str) else row.function
    for row in OPERATORS.values()
    if row.function is not None
    for target in row.in_place
}
"""The out-of-place form of each in-place function and method."""


def _index() -> dict[Any, list[str]]:
    """The names of the rows that a class, a function, or the name of a method (after a dot) or of a class may mean."""
    found: dict[Any, list[str]] = {}
    for name, row in OPERATORS.items():
        methods = [f".{method}" for method in (*row.methods, *row.in_place) if isinstance(method, str)]
        functions = [f for f in (*row.functions, *row.in_place) if not isinstance(f, str)]
        for key in dict.fromkeys((*row.modules, *row.module_names, *functions, *methods)):
            found.setdefault(key, []).append(name)
    return found


_BY_TARGET = _index()


def operator_name(view: NodeView) -> str | None:
    """The name of a node's row, or None where the table has none."""
    if has_hooks(view.module):
        return None
    names = _names_of_call(view.node) if view.module is None else _names_of_module(view.module)
    return next((name for name in names if OPERATORS[name].counts(view)), None)


def module_operator(module: nn.Module | None) -> Operator:
    """The row of a module's class, whatever the call; FLOAT_OPERATOR where there is none."""
    names = [] if module is None else _names_of_module(module)
    return OPERATORS[names[0]] if names else FLOAT_OPERATOR


def _names_of_module(module: nn.Module) -> list[str]:
    plain = plain_class(module)
    kinds = [*(() if plain is None else plain.__mro__), type(module).__name__]
    names = [name for kind in kinds for name in _BY_TARGET.get(kind, ())]
    return [name for name in names if not OPERATORS[name].exact or plain in OPERATORS[name].modules]


def _names_of_call(node: fx.Node) -> list[str]:
    if node.op == "call_method":
        return _BY_TARGET.get(f".{node.target}", [])
    return _BY_TARGET.get(node.target, []) if node.op == "call_function" else []


def name_of(node: fx.Node) -> str:
    """The name of the function, method or module that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
