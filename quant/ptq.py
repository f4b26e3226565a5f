"""Post-training quantization: a trained float net, ranges found on training images, no training after.

    weights       q = clamp(round(w / s), -Q, Q),  Q = 2^(b-1) - 1,  s = max(|low|, |high|) / Q    symmetric
    activations   q = clamp(round(x / s) + z, 0, 2^b - 1),  s = (high - low) / (2^b - 1),  z = round(-low / s)

[low, high] comes from quant.observers: of each output channel (or the whole tensor) for weights, of the whole tensor
for activations, measured in the float net on unaugmented training images. See Krishnamoorthi, arXiv 1806.08342,
sections 2 and 3; the mse range search is that of Nagel et al., arXiv 2106.08295, section 3.1.

Differs from the papers: batch norm is not folded into the weights before their ranges are found; it is absorbed
afterwards (quant/integer.py), which changes no per-channel result. Signed activations keep an affine grid.
"""

from quant.linear import affine
from quant.method import Method
from quant.quantizer import ObservedQuantizer, Quantizer, Shape
from utils.config import QuantSettings


def weight(spec: QuantSettings, bits: int, shape: Shape) -> Quantizer:
    count = shape[0] if spec.granularity == "per_channel" else None
    observer = "last_minmax" if spec.observer in ("minmax", "moving_average") else spec.observer
    return ObservedQuantizer(bits, True, count, observer, spec.percentile, q_limit=spec.weight_limit)


METHOD = Method(
    weight,
    affine,
    affine,
    float_epochs=lambda spec, epochs: epochs,
    weight_bits=range(2, 9),
    act_bits=range(1, 9),
    observers=("minmax", "moving_average", "percentile", "mse"),
    options=frozenset({"observer", "percentile"}),
)
