"""Post-training quantization: a trained float net, ranges found on training images, no training after.

    weights       q = clamp(round(w / s) + offset, -Q, Q),  Q = 2^(b-1) - 1,  s = max(|low|, |high|) / Q    symmetric
    activations   q = clamp(round(x / s) + z, 0, 2^b - 1),  s = (high - low) / (2^b - 1),  z = round(-low / s)

[low, high] comes from core/observers.py: of each output channel (or the whole tensor) for weights, of the whole tensor
for activations, measured in the float net on unaugmented training images. See Krishnamoorthi, arXiv 1806.08342,
sections 2 and 3; the mse range search is that of Nagel et al., arXiv 2106.08295, section 3.1.

Three steps around that, each with its own key, all of them with recipe=best: cross-layer equalization
(ptq/cross_layer_equalization.py), learned rounding (ptq/adaround.py, ptq/brecq.py) and bias correction
(ptq/bias_correction.py). None of them uses labels.

Differs from the papers: batch norm is not folded into the weights before their ranges are found; it is absorbed
afterwards (core/integer_layer.py), which changes no per-channel result. Signed activations keep an affine grid.
"""

from typing import Any

from quant.core.method import Method
from quant.core.observed import ObservedWeightQuantizer
from quant.core.quantizer import Shape, WeightQuantizer
from quant.core.uniform import affine
from utils.config import QuantSettings
from utils.errors import UserError

RECIPES: dict[str, dict[str, Any]] = {
    "plain": {"observer": "minmax", "equalize": False, "rounding": "nearest", "correct": "none"},
    "best": {"observer": "mse", "equalize": True, "rounding": "brecq", "correct": "norm"},
}
LEARNED: dict[str, dict[str, Any]] = {
    "nearest": {},
    "adaround": {"rounding_steps": 500},
    "brecq": {"rounding_steps": 500, "drop": 0.5},
}
"""The keys that each rounding reads, with their defaults."""


def weight(spec: QuantSettings, bits: int, shape: Shape) -> WeightQuantizer:
    count = shape[0] if spec.granularity == "per_channel" else None
    observer = "last_minmax" if spec.observer in ("minmax", "moving_average") else spec.observer
    learned = None if spec.rounding == "nearest" else shape
    return ObservedWeightQuantizer(bits, count, observer, spec.percentile, spec.weight_limit, learned)


def fill(spec: QuantSettings) -> QuantSettings:
    """What the user left null, from the recipe; then what the rounding reads."""
    spec = _filled(spec, RECIPES[spec.recipe])
    return _filled(spec, LEARNED[spec.rounding])


def _filled(spec: QuantSettings, defaults: dict[str, Any]) -> QuantSettings:
    return spec.model_copy(update={key: value for key, value in defaults.items() if getattr(spec, key) is None})


def check(spec: QuantSettings) -> None:
    for key in ("rounding_steps", "drop"):
        if getattr(spec, key) is not None and key not in LEARNED[spec.rounding]:
            readers = " or ".join(name for name, keys in LEARNED.items() if key in keys)
            raise UserError(f"quant.{key}: rounding {spec.rounding} has no such option; it is {readers}'s")
    if spec.observer != "percentile" and spec.percentile != QuantSettings.model_fields["percentile"].default:
        raise UserError(f"quant.percentile: observer {spec.observer} has none; quant.observer=percentile")


METHOD = Method(
    weight,
    affine,
    affine,
    float_epochs=lambda spec, epochs: epochs,
    weight_bits=range(2, 9),
    act_bits=range(1, 9),
    observers=("minmax", "moving_average", "percentile", "mse"),
    options=frozenset({"observer", "percentile", "recipe", *RECIPES["plain"], *LEARNED["brecq"]}),
    fill=fill,
    check=check,
)
