"""Modules that graph/layer_forms.py puts in the place of what computes a layer or a batch norm in another form."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from quant.graph.plain_classes import FrozenBatchNorm, RowConvolution, plain_class
from quant.graph.rewrites import FOLLOWS_TRAINING

ARGUMENTS: dict[Any, tuple[str, ...]] = {
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.conv1d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.linear: ("input", "weight", "bias"),
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
}
"""The arguments of the functions that become modules, in their order."""


def padding_of_sides(layer: Any) -> list[tuple[int, int]]:
    """The padding before and after each axis, as torch computes it."""
    if layer.padding == "valid":
        return [(0, 0) for _ in layer.kernel_size]
    if layer.padding == "same":
        totals = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(int(amount), int(amount)) for amount in layer.padding]


class ConstantNorm(FrozenBatchNorm):
    """The norm of constants of the model; mean 0 and variance 1."""


def affine_norm(channels: int, dtype: torch.dtype) -> FrozenBatchNorm:
    """The batch norm that changes nothing."""
    norm = ConstantNorm(channels, eps=0.0, dtype=dtype).eval()
    return norm.requires_grad_(False)


def by_channel(constant: Tensor, layer: Any) -> Tensor | None:
    """A constant that multiplies or is added to the output of a convolution, or of a norm from constants, as [C]; None
    if it has other values than one for each channel."""
    channels = layer.out_channels if plain_class(layer) is nn.Conv2d else getattr(layer, "num_features", 0)
    if not isinstance(layer, nn.Conv2d | ConstantNorm) or not channels:
        return None
    if constant.numel() == 1:
        return constant.reshape(1).expand(channels)
    shape = (1,) * (4 - constant.ndim) + tuple(constant.shape)
    return constant.reshape(-1) if shape == (1, channels, 1, 1) else None


def extend_norm(norm: nn.BatchNorm2d, operation: str, values: Tensor) -> None:
    """Let a norm from constants also do y + values, y - values, y * values or y / values."""
    with torch.no_grad():
        if operation in ("add", "sub"):
            norm.bias.add_(values, alpha=1 if operation == "add" else -1)
        else:
            factor = values if operation == "mul" else 1 / values
            norm.weight.mul_(factor)
            norm.bias.mul_(factor)


def on_same_parameters(layer: Any) -> Any:
    """A module of the same class on the same Parameters."""
    same = copy.copy(layer)
    same._parameters, same._buffers, same._modules = dict(layer._parameters), dict(layer._buffers), dict(layer._modules)
    return same


def plain_convolution(layer: nn.Conv2d) -> nn.Conv2d:
    """nn.Conv2d without padding on the Parameters of a subclass."""
    plain = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        (layer.kernel_size[0], layer.kernel_size[1]),
        (layer.stride[0], layer.stride[1]),
        0,
        (layer.dilation[0], layer.dilation[1]),
        layer.groups,
        layer.bias is not None,
        device="meta",
    )
    plain._parameters, plain.training = dict(layer._parameters), layer.training
    return plain


def row_convolution(layer: Any) -> RowConvolution:
    (stride,), (padding,), (dilation,), (kernel,) = layer.stride, layer.padding, layer.dilation, layer.kernel_size
    row = RowConvolution(
        layer.in_channels,
        layer.out_channels,
        (1, kernel),
        (1, stride),
        (0, int(padding)),
        (1, dilation),
        layer.groups,
        layer.bias is not None,
        device="meta",
    )
    row._parameters, row.training = dict(layer._parameters), layer.training
    if borrows(layer):
        row.__dict__["borrows_parameters"] = True
    return row


def parameter(value: Any) -> nn.Parameter | None:
    """The value as a module holds it: a Parameter is the same object, a constant becomes one that is not trained."""
    return value if value is None or isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False)


def layer_of_call(node: fx.Node, given: dict[str, Any]) -> nn.Module | None:
    """The module of a call of F.conv2d, F.conv1d or F.linear; None if an argument is computed."""
    options = {name: given[name] for name in ("stride", "padding", "dilation", "groups") if name in given}
    if any(isinstance(value, fx.Node) for value in options.values()):
        return None
    weight, bias = parameter(given["weight"]), parameter(given.get("bias"))
    assert weight is not None  # the caller saw it
    if node.target is F.linear:
        module: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        kind: Any = nn.Conv1d if node.target is F.conv1d else nn.Conv2d
        outputs, inputs, *kernel = weight.shape
        inputs *= options.get("groups", 1)
        module = kind(inputs, outputs, tuple(kernel), **options, bias=bias is not None, device="meta")
    module._parameters = {"weight": weight, "bias": bias}
    return module


def batch_norm_of_call(node: fx.Node, given: dict[str, Any]) -> nn.Module | None:
    """The module of a call of F.batch_norm; None if it does not compute with running statistics in eval mode."""
    follows = bool(node.meta.get(FOLLOWS_TRAINING))
    mean, variance, weight, bias = (given.get(name) for name in ARGUMENTS[F.batch_norm][1:5])
    if mean is None or variance is None or (given.get("training", False) and not follows):
        return None
    kind = nn.BatchNorm2d if follows else FrozenBatchNorm
    norm = kind(len(mean), given.get("eps", 1e-5), given.get("momentum", 0.1), weight is not None, device="meta")
    norm._parameters = {"weight": parameter(weight), "bias": parameter(bias)}
    norm._buffers = {"running_mean": mean, "running_var": variance}
    norm.__dict__["num_batches_tracked"] = None  # its owner counts, if anybody does
    return norm if follows else norm.eval()


def with_tensors_of(norm: Any, kind: type[nn.BatchNorm2d]) -> nn.BatchNorm2d:
    """A batch norm of another class on the tensors, and with the child modules, of a norm."""
    same = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta")
    same._parameters, same._buffers, same.training = norm._parameters, norm._buffers, norm.training
    for name, module in norm.named_children():
        same.add_module(name, module)
    return same


def borrows(layer: nn.Module) -> bool:
    """Whether another module of the model owns the Parameters of a layer that write_layers_as_modules made."""
    return bool(getattr(layer, "borrows_parameters", False))
