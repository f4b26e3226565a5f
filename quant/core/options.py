"""Options that several methods share, as base classes of their Options."""

from typing import Annotated, Any, Literal

from pydantic import Field

from quant.core.rounding_gradient import OF_WEIGHTS_ALONE
from quant.core.settings import ResolvedQuant
from utils.sections import Section

FLOAT_WEIGHTS = "no weights are quantized here (quant.weight_bits is 32)"
FLOAT_ACTIVATIONS = "no activations are quantized here (quant.act_bits is 32)"
NOTHING_QUANTIZED = "nothing is quantized here (quant.weight_bits and quant.act_bits are 32)"
NO_COARSE_WEIGHTS = "no weights have fewer than 8 bits here"
NOT_TRAINED_QUANTIZED = "nothing is trained quantized here"


class BatchObserver(Section):
    observer: Literal["moving_average", "minmax"] = "moving_average"
    """How ranges of activations are found while training: averages over the batches' extremes, or the extremes."""


class DampeningOptions(Section):
    oscillation_dampening: float = Field(0.0, ge=0)
    """How strongly weights are pulled to the middle of their integer at the end of training, against oscillation."""


def unread_dampening(spec: ResolvedQuant[Any], ends_in_float: bool) -> dict[str, str]:
    """Method.unread for DampeningOptions."""
    if ends_in_float:
        return {"oscillation_dampening": NOT_TRAINED_QUANTIZED}
    return {} if spec.quantizes_weights else {"oscillation_dampening": FLOAT_WEIGHTS}


class TrainingOptions(Section):
    """How quantized training differs from what the method's paper does; by default, it does not."""

    transition_rate: bool | Annotated[float, Field(gt=0, le=1)] = False
    """Schedule the share of integer weights of fewer than 8 bits that change in a step, in place of their learning
    rate. A number is that share at the start, over the square root of the bits; true: 0.005, the paper's."""
    rounding_gradient: Literal["straight", "ewgs", "fourier"] = "straight"
    """The gradient of rounding: straight through, scaled for each element by its rounding error (EWGS), or, for
    weights, that of a Fourier series (StableQAT)."""
    gradient_strength: float | None = Field(None, gt=0)
    """Rounding gradient ewgs: delta; fourier: the amplitude A, less than 0.2251. Null: the paper's, 0.001 or 0.21."""


def unread_training(spec: ResolvedQuant[Any], ends_in_float: bool) -> dict[str, str]:
    """Method.unread for TrainingOptions."""
    if ends_in_float or not spec.quantizes:
        why = NOT_TRAINED_QUANTIZED if ends_in_float else NOTHING_QUANTIZED
        return dict.fromkeys(TrainingOptions.model_fields, why)
    found = {} if spec.least_weight_bits < 8 else {"transition_rate": NO_COARSE_WEIGHTS}
    if spec.options.rounding_gradient == "straight":
        found["gradient_strength"] = "rounding_gradient straight has none"
    if spec.options.rounding_gradient in OF_WEIGHTS_ALONE and not spec.quantizes_weights:
        found["rounding_gradient"] = FLOAT_WEIGHTS
    return found


class SignedEdges(Section):
    signed_edges: Literal["clip", "affine"] = "clip"
    """Inputs of hidden layers that can be negative: clipped at either side on act_bits, or affine on 8 bits."""


class PipelineOptions(Section):
    """Options of the PTQ pipeline (quant/ptq/pipeline.py), which runs for methods that have them.

    It needs values for all of them but rounding_steps, and drop where rounding reads that: a method whose options can
    be null replaces them in its `fill`.
    """

    cross_layer_equalization: bool | None = None
    """Even out the ranges of channels across layers, where that leaves the float model as it is."""
    rounding: Literal["nearest", "adaround", "brecq"] | None = None
    """Weights to the nearest integer, or up or down as is learned, layer by layer or block by block."""
    rounding_steps: int | None = Field(None, ge=1)
    """Optimizer steps of learned rounding, for each layer (adaround) or block (brecq); null: 500, and fewer for nets of
    more than 100 million multiply-accumulates, down to 100."""
    drop: float | None = Field(None, ge=0, le=1)
    """Rounding brecq: share of the activations that each step of learned rounding leaves in float, as QDrop does."""
    bias_correction: Literal["none", "bias", "norm"] | None = None
    """Match the mean (bias), or mean and variance (norm), of each channel to the float model's."""
