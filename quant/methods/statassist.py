"""StatAssist: quantization-aware training from scratch, after a short float start (arXiv 2006.09679).

The first `float_epochs` epochs train the plain float model. Then fake-quantization switches on in the same model: the
very same Parameter objects under the very same optimizer, so that momentum, the 'statistics' of the name, assists the
first quantized steps. From there on, each step is

    w_hat = s_w clamp(round(w / s_w), -Q, Q),          s_w = max|w| / Q of each output channel, of w as it is now
    x_hat = s_x (clamp(round(x / s_x) + z, 0, 2^b - 1) - z),  [low, high] <- moving averages of the batches' extremes
    gradients straight through where the value is in range, 0 outside             (Jacob et al., arXiv 1712.05877)

Observers do nothing in eval: test images change no range, and weight ranges are those of the last training step.

Differs from the reference: weight scales follow the current weights (there: a moving average, per tensor), batch norm
is not folded, and the float start is governed by float_epochs alone (there: skipped without a learning-rate warm-up).
The GradBoost optimizers that the paper pairs it with are not part of this file.
"""

from pydantic import Field

from quant.core.method import Method
from quant.core.options import (
    FLOAT_ACTIVATIONS,
    BatchObserver,
    DampeningOptions,
    TrainingOptions,
    unread_dampening,
    unread_training,
)
from quant.core.quantizer import Shape, WeightQuantizer
from quant.core.settings import ResolvedQuant
from quant.core.uniform import batch_affine, symmetric


class Options(BatchObserver, DampeningOptions, TrainingOptions):
    float_epochs: int = Field(1, ge=0)
    """Epochs in float, at the start of the run, before fake-quantization switches on."""


def weight(spec: ResolvedQuant[Options], bits: int, shape: Shape) -> WeightQuantizer:
    return symmetric(bits, shape, spec.per_channel, spec.weight_limit)


def unread(spec: ResolvedQuant[Options], ends_in_float: bool) -> dict[str, str]:
    found = {} if spec.quantizes_activations else {"observer": FLOAT_ACTIVATIONS}
    return found | unread_dampening(spec, ends_in_float) | unread_training(spec, ends_in_float)


METHOD = Method(
    Options,
    weight,
    batch_affine,
    batch_affine,
    float_epochs=lambda options, epochs: min(options.float_epochs, epochs),
    weight_bits=range(2, 9),
    act_bits=range(1, 9),
    dampening=lambda options: options.oscillation_dampening,
    unread=unread,
)
