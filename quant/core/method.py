"""What a quantization method is to the rest: which quantizers it puts where, and when."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from quant.core.quantizer import ActivationQuantizer, Shape, WeightQuantizer
from utils.config import QuantSettings


@dataclass(frozen=True)
class Method:
    """A row of quant.METHODS."""

    weight: Callable[[QuantSettings, int, Shape], WeightQuantizer] | None
    """(spec, bits, shape) -> the quantizer of a weight tensor of that shape, whose axis 0 is the output channels."""
    activation: Callable[[QuantSettings, int, bool], ActivationQuantizer] | None
    """(spec, bits, signed) -> the quantizer of what hidden layers read."""
    residual: Callable[[QuantSettings, int, bool], ActivationQuantizer] | None
    """(spec, bits, signed) -> that of all else: the image, inputs of additions and pools, the last layer's input."""
    float_epochs: Callable[[QuantSettings, int], int]
    """(spec, epochs) -> how many epochs of the run come before prepare."""
    weight_bits: range
    act_bits: range
    observers: tuple[str, ...]
    """Observers it takes, its default first."""
    options: frozenset[str]
    """Keys of the quant section that only some methods read, and this one does."""
    gradient: Callable[[QuantSettings], nn.Module | None] = lambda spec: None
    """(spec) -> what quantizes the gradient of a hidden layer's output, if anything does."""
    fill: Callable[[QuantSettings], QuantSettings] = lambda spec: spec
    """(spec) -> the spec with the method's own defaults in the place of nulls."""
    rescales: Callable[[QuantSettings], bool] = lambda spec: False
    """(spec) -> whether its weights are on a scale of their own, which batch norm has to learn."""
    check: Callable[[QuantSettings], None] = lambda spec: None
    """Raises UserError for what the method cannot do for a reason of its own."""


FLOAT = Method(
    weight=None,
    activation=None,
    residual=None,
    float_epochs=lambda spec, epochs: epochs,
    weight_bits=range(0),
    act_bits=range(0),
    observers=(),
    options=frozenset(),
)
"""The row of plain float training: nothing is quantized."""
