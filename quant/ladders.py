"""What fewer bits of each layer's weights cost and save.

harm_l(b)    divergence (quant/sensitivity.py) of the net's answers, the weights of layer l alone on b bits
bytes_l(b)   of layer l in a packed file (quant/packed.py)
"""

import copy
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from quant import ptq
from quant.calibrate import calibrate
from quant.prepare import prepare
from quant.quantizer import Quantizer
from quant.records import layer_bytes
from quant.sensitivity import divergence
from quant.switch import Placed, layers, only, set_enabled
from utils.config import QuantSettings
from utils.say import tracked

BITS = (8, 6, 4, 3, 2)
IMAGES = 256
"""How many images of the calibration the harm is measured on."""


@dataclass
class Rung:
    """A layer's weights on so many bits."""

    bits: int
    quantizer: Quantizer
    bytes: int
    harm: float = 0.0


Ladders = dict[str, list[Rung]]
"""The rungs of each layer by its name, from the most bits down."""


def quantized_after_training(model: nn.Module, spec: QuantSettings, sample: Collection) -> fx.GraphModule:
    """A copy of the float model after post-training quantization, each layer on the bits that the spec gives it."""
    prepared = prepare(copy.deepcopy(model).eval(), _spec(spec), ptq.METHOD)
    calibrate(prepared, images_of(sample))
    return prepared


@torch.no_grad()
def ladders(prepared: fx.GraphModule, spec: QuantSettings, allowed: Collection[int], sample: Collection) -> Ladders:
    """For each layer with quantized weights the bits that it has, then those of BITS that are fewer and allowed."""
    placed = {name: one for name, one in layers(prepared).items() if one.layer.weight_quantizer is not None}
    found = {name: _ladder(one, _spec(spec), allowed) for name, one in placed.items()}
    seen = 0
    for images in images_of(sample, IMAGES):
        set_enabled(prepared, False)
        expected = prepared(images)
        seen += len(images)
        for name in tracked(placed, len(placed), "bits by layer", "layers"):
            _add_harm(prepared, placed[name], found[name], images, expected)
    set_enabled(prepared, True)
    for rung in (rung for ladder in found.values() for rung in ladder):
        rung.harm /= max(seen, 1)
    return found


def images_of(batches: Iterable, limit: int | None = None) -> Iterator[Tensor]:
    """The images of (images, labels) batches, or the first `limit` of them."""
    left = float("inf") if limit is None else limit
    for images, _ in batches:
        yield images[: min(left, len(images))]
        left -= len(images)
        if left <= 0:
            return


def _spec(spec: QuantSettings) -> QuantSettings:
    """The spec with post-training quantization for a method that trains."""
    return spec if spec.method == "ptq" else ptq.fill(spec.model_copy(update={"method": "ptq", "observer": "mse"}))


def _ladder(placed: Placed, spec: QuantSettings, allowed: Collection[int]) -> list[Rung]:
    layer, source, norm = placed
    first, rungs = layer.weight_quantizer, []
    lower = [_found(layer.weight, spec, bits) for bits in BITS if bits < first.bits and bits in allowed]
    for quantizer in (first, *lower):
        layer.weight_quantizer = quantizer
        x = source.grid() if layer.runs_in_integers(source) else None
        rungs.append(Rung(quantizer.bits, quantizer, layer_bytes(layer, x, norm)))
    layer.weight_quantizer = first
    return rungs


def _found(weight: Tensor, spec: QuantSettings, bits: int) -> Quantizer:
    """A quantizer of so many bits with the ranges of this weight."""
    quantizer = ptq.weight(spec, bits, tuple(weight.shape)).eval()
    quantizer.observing = True
    quantizer(weight)
    quantizer.finish_observing()
    quantizer.observing = False
    return quantizer


def _add_harm(prepared: fx.GraphModule, placed: Placed, ladder: list[Rung], images: Tensor, expected: Tensor) -> None:
    for rung in ladder:
        placed.layer.weight_quantizer = rung.quantizer
        with only(prepared, [rung.quantizer]):
            rung.harm += float(divergence(expected, prepared(images)).sum())
    placed.layer.weight_quantizer = ladder[0].quantizer
