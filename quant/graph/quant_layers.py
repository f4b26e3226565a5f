"""The modules of a prepared model: layers with batch norm, activation and quantizers, and operators without weights.

A QuantLayer replaces the float layer under the same name and holds the same Parameter objects. In train mode it
computes in float with fake-quantized weights, its batch norm live and unfolded. In eval mode, with its quantizers
enabled, it *is* the integer layer (core/integer_layer.py), computed on integers stored in fp32. A QuantOperator does
the same for an operator without weights (core/integer_operator.py).
"""

import copy
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quant.core.activation import IDENTITY, ChannelAffine, ClampedAffine, channel_affine
from quant.core.batch_norm import BatchNorm, running_statistics
from quant.core.grid import Grid
from quant.core.integer_layer import Geometry, IntegerLayer, build_integer_layer
from quant.core.integer_operator import Arithmetic, IntegerOperator, integer_operator
from quant.core.quantizer import ActivationQuantizer, GradientQuantizer, WeightQuantizer


class Correction(nn.Module):
    """gain y + shift, for each output channel: restores the statistics of a layer's output that rounding changed
    (ptq/bias_correction.py). Its gain is 1 and its shift 0 until `set`."""

    gain: Tensor
    shift: Tensor

    def __init__(self, channels: int, linear: bool):
        super().__init__()
        self.register_buffer("gain", torch.ones(channels))
        self.register_buffer("shift", torch.zeros(channels))
        self.shape = (-1,) if linear else (-1, 1, 1)

    def forward(self, y: Tensor) -> Tensor:
        return y * self.gain.view(self.shape) + self.shift.view(self.shape)

    def set(self, gain: Tensor | float, shift: Tensor | float) -> None:
        self.gain.copy_(torch.as_tensor(gain))
        self.shift.copy_(torch.as_tensor(shift))

    @torch.no_grad()
    def absorbed(
        self, weight: Tensor, bias: Tensor | None, norm: BatchNorm | None
    ) -> tuple[Tensor, Tensor | None, BatchNorm | None]:
        """Weight, bias and norm of a layer with the correction absorbed: in the norm, or without one in the others."""
        if norm is None:
            shift = self.shift if bias is None else bias * self.gain + self.shift
            return weight * self.gain.view(-1, *[1] * (weight.ndim - 1)), shift, None
        norm = copy.deepcopy(norm)
        gamma = torch.ones_like(self.gain) if norm.weight is None else norm.weight
        beta = torch.zeros_like(self.gain) if norm.bias is None else norm.bias
        norm.weight, norm.bias = nn.Parameter(gamma * self.gain), nn.Parameter(beta * self.gain + self.shift)
        return weight, bias, norm

    def line(self) -> ChannelAffine:
        return ChannelAffine(self.gain, self.shift)


class QuantLayer(nn.Module):
    """A convolution or linear layer, prepared. weight and bias are the Parameters of `layer`.

    weight_quantizer: None leaves the weights in float. gradient: the module that quantizes the gradient of the layer's
    sums, or None. correction: active while the weight quantizer is enabled, or None. output: the activation quantizer
    of the result, after `activation`; None for a result in float. limit: the largest integer weight. borrows: whether
    another module of the model registers weight and bias.

    forward(x, source, norm): x [N, C, H, W], or [N, .., C] for a linear layer; `source` is the activation quantizer on
    whose grid x lies and `norm` the batch norm. Both live elsewhere in the model under their own names; the graph
    passes them in, or None.
    """

    def __init__(
        self,
        layer: nn.Conv2d | nn.Linear,
        weight_quantizer: WeightQuantizer | None,
        gradient: GradientQuantizer | None,
        correction: Correction | None,
        limit: int,
        borrows: bool = False,
    ):
        super().__init__()
        if borrows:
            share(self, weight=layer.weight, bias=layer.bias)
        else:
            self.weight, self.bias = layer.weight, layer.bias
        self.geometry = geometry_of(layer)
        self.weight_quantizer, self.gradient, self.correction = weight_quantizer, gradient, correction
        self.output: ActivationQuantizer | None = None
        self.activation: ClampedAffine = IDENTITY
        self.limit = limit

    def forward(self, x: Tensor, source: ActivationQuantizer | None, norm: BatchNorm | None) -> Tensor:
        if source is not None and not self.training and self.runs_in_integers(source):
            with torch.autocast(x.device.type, enabled=False):  # sums in bf16 would not be exact
                layer = self.integer(source.grid(), norm)
                n = layer(layer.x.centred(x.float()))
                return n if layer.y is None else layer.y.value_(n)
        return self.simulate(x, norm)

    def simulate(self, x: Tensor, norm: BatchNorm | None) -> Tensor:
        """The fake-quantized computation in float."""
        weight = self.used_weight()
        if self.output is None or self.active_correction() is not None:
            y = self.in_float(x, weight, norm)
            return y if self.output is None else self.output(y)
        return self.output.forward_normed(self._summed(x, weight), norm, self.activation)

    def frozen(self, norm: BatchNorm | None) -> "FloatLayer":
        """What `simulate` computes in eval before the output quantizer, with the current weights."""
        weight, bias = self.used_weight().detach(), self.bias
        correction = self.active_correction()
        if correction is not None:
            weight, bias, norm = correction.absorbed(weight, bias, norm)
        return FloatLayer(self.geometry, weight, bias, norm, self.activation)

    def in_float(self, x: Tensor, weight: Tensor, norm: BatchNorm | None) -> Tensor:
        """The output before the output quantizer, with these weights."""
        return self.activation(self.before_activation(x, weight, norm))

    def before_activation(self, x: Tensor, weight: Tensor, norm: BatchNorm | None) -> Tensor:
        y = self._summed(x, weight)
        y = y if norm is None else norm(y)
        correction = self.active_correction()
        return y if correction is None else correction(y)

    def _summed(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution or linear map. Its gradient is quantized if the method says so."""
        y = self.geometry(x, weight, self.bias)
        return y if self.gradient is None else self.gradient(y)

    def used_weight(self) -> Tensor:
        return self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)

    def active_correction(self) -> Correction | None:
        """The correction while the weight quantizer is enabled, else None: it belongs to the quantized weights."""
        if self.correction is None or self.weight_quantizer is None or not self.weight_quantizer.enabled:
            return None
        return self.correction

    def runs_in_integers(self, source: ActivationQuantizer | None) -> bool:
        """Whether weights and input are on integer grids, and those quantizers are enabled."""
        needed = [source, self.weight_quantizer, *([] if self.output is None else [self.output])]
        return all(q is not None and q.enabled for q in needed)

    @torch.no_grad()
    def integer(self, x: Grid, norm: BatchNorm | None) -> IntegerLayer:
        """The integer layer, for inputs on the grid x."""
        if self.weight_quantizer is None:
            raise ValueError("a layer whose weights are float has no integer form")
        grid = self.weight_quantizer.grid()
        q = self.geometry.of_maps(self.weight_quantizer.to_int(self.weight.float()))
        y = None if self.output is None else self.output.grid()
        line = None if self.correction is None else self.correction.line()
        return build_integer_layer(self.geometry, q, grid, self.bias, norm, x, y, self.activation, self.limit, line)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, {self.geometry}, activation={self.activation}"


@dataclass(frozen=True)
class FloatLayer:
    """A layer that runs in float, with its batch norm (in eval) and its activation."""

    geometry: Geometry
    weight: Tensor
    bias: Tensor | None
    norm: BatchNorm | None
    activation: ClampedAffine

    def __call__(self, x: Tensor) -> Tensor:
        y = self.geometry(x, self.weight, self.bias)
        return self.activation(y if self.norm is None else self.norm(y))


class QuantOperator(nn.Module):
    """An operator without weights (a row of graph/op_table.py) and the activation after it.

    forward(values, sources, constants): the tensors that it reads, the activation quantizers on whose grids they lie
    (None for a value in float), and the constants of `run`. `output` is the quantizer of the result; only an average
    may have none.
    """

    def __init__(self, name: str, arithmetic: Arithmetic, run: Callable[..., Tensor], activation: ClampedAffine):
        super().__init__()
        self.name, self.arithmetic, self.run, self.activation = name, arithmetic, run, activation
        self.output: ActivationQuantizer | None = None

    def forward(
        self,
        values: Sequence[Tensor],
        sources: Sequence[ActivationQuantizer | None],
        constants: Sequence[Tensor | nn.Module] = (),
    ) -> Tensor:
        if self.training or not self.runs_in_integers(sources):
            return self.simulate(values, constants)
        grids = [source.grid() for source in sources if source is not None]
        operator = self.integer(grids, constants)
        n = operator(*(grid.centred(x.float()) for grid, x in zip(grids, values, strict=True)))
        return n if operator.y is None else operator.y.value(n)

    def simulate(self, values: Sequence[Tensor], constants: Sequence[Tensor | nn.Module] = ()) -> Tensor:
        """The fake-quantized computation in float."""
        y = self.in_float(values, constants) if self.output is None else self.bound(constants)(*values)
        return y if self.output is None else self.output(y, self.activation)

    def in_float(self, values: Sequence[Tensor], constants: Sequence[Tensor | nn.Module] = ()) -> Tensor:
        return self.activation(self.bound(constants)(*values))

    def bound(self, constants: Sequence[Tensor | nn.Module]) -> Callable[..., Tensor]:
        """`run` as a function of the values alone."""
        return self.run.bound(constants) if isinstance(self.run, FunctionCall) else self.run

    def runs_in_integers(self, sources: Sequence[ActivationQuantizer | None]) -> bool:
        needed = [*sources, *([] if self.output is None else [self.output])]
        return all(q is not None and q.enabled for q in needed)

    @torch.no_grad()
    def integer(self, grids: Sequence[Grid], constants: Sequence[Tensor | nn.Module] = ()) -> IntegerOperator:
        """The integer operator, for inputs on these grids."""
        y, run = None if self.output is None else self.output.grid(), frozen(self.bound(constants))
        return integer_operator(self.name, self.arithmetic, run, tuple(grids), y, self.activation)

    def extra_repr(self) -> str:
        return f"{self.name}, activation={self.activation}"


@dataclass(frozen=True)
class FloatOperator:
    """An operator without weights that runs in float. name: its row of the table of operators."""

    name: str
    run: Callable[..., Tensor]
    activation: ClampedAffine

    def __call__(self, *values: Tensor) -> Tensor:
        return self.activation(self.run(*values))


@dataclass(frozen=True)
class FunctionCall:
    """A function with its fixed arguments. TENSOR in `args` marks the place of each tensor that a call passes, and
    CONSTANT that of each Parameter, constant or batch norm of the model."""

    function: Callable[..., Tensor]
    args: tuple
    kwargs: dict[str, Any]

    def bound(self, constants: Sequence[Any]) -> "FunctionCall":
        """The call with these constants in their places."""
        rest = iter(constants)
        args = tuple(next(rest) if value is CONSTANT else value for value in self.args)
        return FunctionCall(self.function, args, self.kwargs)

    def __call__(self, *tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        return self.function(*(next(rest) if value is TENSOR else value for value in self.args), **self.kwargs)


class _Place(enum.Enum):
    """An enum, because a copied FunctionCall must hold the same object."""

    TENSOR = "tensor"
    CONSTANT = "constant"


TENSOR, CONSTANT = _Place.TENSOR, _Place.CONSTANT


def normalize(x: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
    """A batch norm by itself, as a function of x and a constant of the model."""
    return norm(x)


def frozen(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A batch norm by itself as the affine map of each channel that it is in eval; others as they are."""
    if not (isinstance(run, FunctionCall) and run.function is normalize):
        return run
    norm = run.args[1]
    mean, variance = (tensor.double() for tensor in running_statistics(norm))
    gain, shift = (variance + norm.eps).rsqrt(), torch.zeros_like(mean)
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    if norm.bias is not None:
        shift = norm.bias.double()
    return FunctionCall(channel_affine, (TENSOR, gain.float(), (shift - mean * gain).float()), {})


def share(module: nn.Module, **attributes: nn.Module | Tensor | None) -> None:
    """Set attributes to Parameters and modules that are registered elsewhere in the model, without registering them
    again."""
    for name, value in attributes.items():
        module.__dict__[name] = value


def geometry_of(layer: nn.Conv2d | nn.Linear) -> Geometry:
    if isinstance(layer, nn.Linear):
        return Geometry()
    if isinstance(layer.padding, str):
        raise ValueError(f"padding {layer.padding!r} is not a number of zeros")
    return Geometry(tuple(layer.stride), layer.padding, tuple(layer.dilation), layer.groups)
