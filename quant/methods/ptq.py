"""Post-training quantization: a trained float model, ranges found on training images, no training after.

    weights       q = clamp(round(w / s) + offset, -Q, Q),  Q = 2^(b-1) - 1,  s = max(|low|, |high|) / Q    symmetric
    activations   q = clamp(round(x / s) + z, 0, 2^b - 1),  s = (high - low) / (2^b - 1),  z = round(-low / s)

[low, high] comes from core/observers.py: of each output channel (or the whole tensor) for weights, of the whole tensor
for activations, measured in the float model on unaugmented training images. See Krishnamoorthi, arXiv 1806.08342,
sections 2 and 3; the mse range search is that of Nagel et al., arXiv 2106.08295, section 3.1.

Three steps around that, each with its own key, all of them with recipe=best: cross-layer equalization
(ptq/cross_layer_equalization.py), learned rounding (ptq/adaround.py, ptq/brecq.py) and bias correction
(ptq/bias_correction.py). None of them uses labels.

Differs from the papers: batch norm is not folded into the weights before their ranges are found; it is absorbed
afterwards (core/integer_layer.py), which changes no per-channel result. Signed activations keep an affine grid.
"""

from typing import Any, Literal

from pydantic import Field

from quant.core.method import Method
from quant.core.observed import ObservedWeightQuantizer
from quant.core.options import FLOAT_WEIGHTS, NOTHING_QUANTIZED, PipelineOptions
from quant.core.quantizer import ActivationQuantizer, Shape, WeightQuantizer
from quant.core.settings import ResolvedQuant
from quant.core.uniform import affine
from utils.errors import UserError


class Options(PipelineOptions):
    observer: Literal["minmax", "moving_average", "percentile", "mse"] | None = None
    """How ranges are found; null: as the recipe says."""
    percentile: float = Field(99.99, gt=50.0, le=100.0)
    """Observer percentile: values beyond this percentile are clipped, at either end of the range."""
    recipe: Literal["plain", "best"] = "plain"
    """What the keys of these options that are null stand for: a row of RECIPES (quant/methods/ptq.py)."""


RECIPES: dict[str, dict[str, Any]] = {
    "plain": {
        "observer": "minmax",
        "cross_layer_equalization": False,
        "rounding": "nearest",
        "bias_correction": "none",
    },
    "best": {"observer": "mse", "cross_layer_equalization": True, "rounding": "brecq", "bias_correction": "norm"},
}
LEARNED: dict[str, dict[str, Any]] = {
    "nearest": {},
    "adaround": {"rounding_steps": None},
    "brecq": {"rounding_steps": None, "drop": 0.5},
}
"""The keys that each rounding reads, with their defaults. rounding_steps: null depends on the net (ptq/brecq.py)."""


def weight(spec: ResolvedQuant[Options], bits: int, shape: Shape) -> WeightQuantizer:
    own = spec.options
    count = shape[0] if spec.per_channel else None
    observer = "last_minmax" if own.observer in ("minmax", "moving_average") else str(own.observer)
    learned = None if own.rounding == "nearest" else shape
    return ObservedWeightQuantizer(bits, count, observer, own.percentile, spec.weight_limit, learned)


def activation(spec: ResolvedQuant[Options], bits: int, signed: bool) -> ActivationQuantizer:
    return affine(bits, str(spec.options.observer), spec.options.percentile)


def fill(options: Options) -> Options:
    """The recipe's values for keys that are null, then those of the rounding."""
    options = _filled(options, RECIPES[options.recipe])
    options = _filled(options, LEARNED[str(options.rounding)])
    _check_read(options)
    return options


def _filled(options: Options, defaults: dict[str, Any]) -> Options:
    return options.model_copy(update={key: value for key, value in defaults.items() if getattr(options, key) is None})


def _check_read(options: Options) -> None:
    """Raise UserError for keys that the rounding or the observer does not read."""
    for key in ("rounding_steps", "drop"):
        readers = [name for name, keys in LEARNED.items() if key in keys]
        if getattr(options, key) is not None and options.rounding not in readers:
            raise UserError(
                f"quant.{key} is read by rounding {', '.join(readers)}; quant.rounding is {options.rounding}"
            )
    if options.observer != "percentile" and options.percentile != Options.model_fields["percentile"].default:
        raise UserError(f"quant.percentile is read by observer percentile; quant.observer is {options.observer}")


def unread(spec: ResolvedQuant[Options], ends_in_float: bool) -> dict[str, str]:
    """What the recipe fills in is not among them: a setting with these values does not tell who chose them."""
    found: dict[str, str] = {}
    if not spec.quantizes_weights:
        found |= dict.fromkeys(("rounding", "rounding_steps", "drop", "bias_correction"), FLOAT_WEIGHTS)
    if not spec.quantizes:
        found |= dict.fromkeys(("observer", "percentile", "cross_layer_equalization"), NOTHING_QUANTIZED)
    by_recipe = fill(Options(recipe=spec.options.recipe))
    switched_off = {"rounding": "nearest", "bias_correction": "none", "cross_layer_equalization": False}
    harmless = {key: (getattr(by_recipe, key), switched_off.get(key)) for key in found}
    return {key: why for key, why in found.items() if getattr(spec.options, key) not in harmless[key]}


METHOD = Method(
    Options,
    weight,
    activation,
    activation,
    float_epochs=lambda options, epochs: epochs,
    weight_bits=range(2, 9),
    act_bits=range(1, 9),
    fill=fill,
    unread=unread,
    corrects=lambda options: options.bias_correction != "none",
)
