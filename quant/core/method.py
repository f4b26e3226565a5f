"""The interface of a method: which quantizers it creates, and when."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NoReturn

from quant.core.quantizer import ActivationQuantizer, GradientQuantizer, Shape, WeightQuantizer
from quant.core.settings import Options, ResolvedQuant
from utils.errors import UserError
from utils.sections import Section

MANY_EPOCHS = 10**6


class NoOptions(Section):
    """A method without options of its own."""


@dataclass(frozen=True)
class Method(Generic[Options]):
    """A row of quant.METHODS. Its functions take the resolved quant section; `spec.options` are the method's own."""

    options: type[Options]
    """The keys of the quant section that this method reads in addition to the common ones."""
    weight: Callable[[ResolvedQuant[Options], int, Shape], WeightQuantizer]
    """(spec, bits, shape) -> the quantizer of a weight tensor of that shape, whose axis 0 is the output channels."""
    activation: Callable[[ResolvedQuant[Options], int, bool], ActivationQuantizer]
    """(spec, bits, signed) -> the quantizer of inputs of hidden layers."""
    residual: Callable[[ResolvedQuant[Options], int, bool], ActivationQuantizer]
    """(spec, bits, signed) -> that of all else: the image, inputs of additions and pools, the last layer's input."""
    weight_bits: range
    act_bits: range
    float_epochs: Callable[[Options, int], int] = lambda options, epochs: 0
    """(options, epochs) -> how many epochs of the run come before prepare."""
    gradient: Callable[[ResolvedQuant[Options]], GradientQuantizer | None] = lambda spec: None
    """(spec) -> what quantizes the gradient of a hidden layer's output, if anything does."""
    fill: Callable[[Options], Options] = lambda options: options
    """(options) -> the options with values instead of nulls. Raises UserError for options that have no effect."""
    corrects: Callable[[Options], bool] = lambda options: False
    """(options) -> whether layers get a bias correction (quant/ptq/bias_correction.py)."""
    dampening: Callable[[Options], float] = lambda options: 0.0
    """(options) -> the strength of oscillation dampening (quant/qat/oscillation_dampening.py); 0: none."""
    rescales: Callable[[ResolvedQuant[Options]], bool] = lambda spec: False
    """(spec) -> whether its weights are on another scale than the float model's, which batch norm has to learn."""
    learns: bool = False
    """Whether its quantizers have parameters that the optimizer trains."""
    unread: Callable[[ResolvedQuant[Options], bool], dict[str, str]] = lambda spec, ends_in_float: {}
    """(spec, whether the run trains in float to its end) -> the options that such a run does not read: {key: why}. A
    new run in which one of them differs from its default is refused."""
    check: Callable[[ResolvedQuant[Options]], None] = lambda spec: None
    """Raises UserError for a combination of keys that the method cannot do."""

    def trains_quantized(self, spec: ResolvedQuant[Options]) -> bool:
        """Whether a prepared model is ever trained; PTQ and float train in float to the end of any run."""
        return self.float_epochs(spec.options, MANY_EPOCHS) < MANY_EPOCHS


AnyMethod = Method[Any]


def _no_quantizer(spec: ResolvedQuant[NoOptions], bits: int, of: Shape | bool) -> NoReturn:
    raise UserError("quant.method: float quantizes nothing")


FLOAT = Method(
    options=NoOptions,
    weight=_no_quantizer,
    activation=_no_quantizer,
    residual=_no_quantizer,
    float_epochs=lambda options, epochs: epochs,
    weight_bits=range(0),
    act_bits=range(0),
)
"""The row of plain float training: nothing is quantized."""
