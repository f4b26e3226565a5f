"""Mixed precision: the bits of each layer's weights, by what fewer of them cost and save (quant.layers: auto).

Every layer starts on the bits that it would have without all this. Each step takes one layer to the next lower of 8, 6,
4, 3 and 2 bits: the one with the least (analysis/mixed_precision.py)

    (harm_l(b') - harm_l(b)) / (bytes_l(b) - bytes_l(b'))

    target_mb     steps until weights, scales and biases are no larger
    target_drop   as many steps, found by bisection, as leave all but so many percent of held-out images their first
                  choice in the float net, all of the net quantized; top-1 on them has then not fallen by more

No label is used. Weights and ranges are those of post-training quantization (observer mse, for methods that train):
what training will win back is not foreseen. The harm of layers together is taken to be the sum of theirs, which it is
not; target_drop measures the whole net.
"""

import copy
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from quant.analysis.compare import layer_bytes, megabytes_at_bits
from quant.analysis.sensitivity import divergence
from quant.core.quantizer import Quantizer
from quant.core.settings import ResolvedQuant
from quant.graph.prepare import prepare
from quant.graph.views import LayerView, layers, only, set_enabled
from quant.methods import ptq
from quant.ptq.calibrate import calibrate
from utils.console import say, tracked
from utils.errors import UserError


def choose_bits(
    model: nn.Module, spec: ResolvedQuant, allowed: Collection[int], sample: Collection, held_out: Collection
) -> dict[str, int]:
    """Weight bits of each layer by name, for a trained float model and a resolved spec.

    allowed: the bits that the method can have; sample, held_out: (images, labels) batches, the labels unread. Raises
    UserError if the target cannot be met.
    """
    prepared = quantized_after_training(model, spec, sample)
    found = ladders(prepared, spec, allowed, sample)
    if not found:
        raise UserError("quant.layers: auto has nothing to choose: the weights of all layers stay float")
    path = Path(prepared, found)
    steps = path.to_size(spec.target_mb) if spec.target_drop is None else path.to_drop(spec.target_drop, held_out)
    say(f"layers: {path.line(steps)}")
    return path.bits(steps)


@dataclass
class Rung:
    """A layer's weights on so many bits."""

    bits: int
    quantizer: Quantizer
    bytes: int
    harm: float = 0.0


Ladders = dict[str, list[Rung]]
"""The rungs of each layer by its name, from the most bits down."""


class Path:
    """The greedy order of steps from the most bits to the fewest."""

    def __init__(self, prepared: fx.GraphModule, found: Ladders):
        self.prepared, self.ladders = prepared, found
        self.most_mb = megabytes_at_bits(prepared)
        self.steps = list(self._steps())
        self.drops: dict[int, float] = {}

    def _steps(self) -> Iterator[str]:
        """Names of layers, each to go a rung down."""
        at = dict.fromkeys(self.ladders, 0)
        while costs := {name: self._cost(name, at[name]) for name in at if at[name] + 1 < len(self.ladders[name])}:
            cheapest = min(costs, key=costs.get)
            at[cheapest] += 1
            yield cheapest

    def _cost(self, name: str, rung: int) -> float:
        """Harm a byte of going down from a rung."""
        here, below = self.ladders[name][rung : rung + 2]
        return (below.harm - here.harm) / max(here.bytes - below.bytes, 1)

    def after(self, count: int) -> dict[str, int]:
        """The rung of each layer after so many steps."""
        return {name: self.steps[:count].count(name) for name in self.ladders}

    def bits(self, count: int) -> dict[str, int]:
        return {name: self.ladders[name][rung].bits for name, rung in self.after(count).items()}

    def megabytes(self, count: int) -> float:
        saved = [
            self.ladders[name][0].bytes - self.ladders[name][rung].bytes for name, rung in self.after(count).items()
        ]
        return self.most_mb - sum(saved) / 1e6

    def to_size(self, megabytes: float) -> int:
        """The least number of steps to that size."""
        for count in range(len(self.steps) + 1):
            if self.megabytes(count) <= megabytes:
                return count
        least = self.megabytes(len(self.steps))
        raise UserError(f"quant.target_mb: {megabytes} MB cannot be had; on the fewest bits it is {least:.4f} MB")

    def to_drop(self, percent: float, held_out: Collection) -> int:
        """The most steps, found by bisection, that change no more than so many percent of the first choices."""
        set_enabled(self.prepared, False)
        in_float = self._first_choices(held_out)
        set_enabled(self.prepared, True)
        if self._drop(0, held_out, in_float) > percent:
            raise UserError(
                f"quant.target_drop: {percent} % cannot be had: on the most bits {self.drops[0]:.2f} % of the held-out "
                "images change their first choice"
            )
        low, high = 0, len(self.steps) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._drop(middle, held_out, in_float) <= percent else (low, middle)
        return low

    def _drop(self, count: int, held_out: Collection, in_float: Tensor) -> float:
        """Percent of the images whose first choice is another than in float, after so many steps."""
        placed = layers(self.prepared)
        for name, rung in self.after(count).items():
            placed[name].layer.weight_quantizer = self.ladders[name][rung].quantizer
        self.drops[count] = 100 * float((self._first_choices(held_out) != in_float).double().mean())
        return self.drops[count]

    @torch.inference_mode()
    def _first_choices(self, batches: Collection) -> Tensor:
        return torch.cat([self.prepared(images).argmax(1) for images in images_of(batches)])

    def line(self, count: int) -> str:
        """What was chosen, in a line."""
        bits = list(self.bits(count).values())
        counts = ", ".join(f"{bits.count(b)} on {b} bits" for b in sorted(set(bits), reverse=True))
        drop = f"; {self.drops[count]:.2f} % of held-out first choices change" if count in self.drops else ""
        return f"{counts}: {self.megabytes(count):.4f} MB{drop}"


BITS = (8, 6, 4, 3, 2)
IMAGES = 256
"""How many images of the calibration the harm is measured on."""


def quantized_after_training(model: nn.Module, spec: ResolvedQuant, sample: Collection) -> fx.GraphModule:
    """A copy of the float model after post-training quantization, each layer on the bits that the spec gives it."""
    prepared = prepare(copy.deepcopy(model).eval(), _spec(spec), ptq.METHOD)
    calibrate(prepared, images_of(sample))
    return prepared


@torch.no_grad()
def ladders(prepared: fx.GraphModule, spec: ResolvedQuant, allowed: Collection[int], sample: Collection) -> Ladders:
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


def _spec(spec: ResolvedQuant) -> ResolvedQuant:
    """The spec with post-training quantization for a method that trains."""
    own = ptq.fill(ptq.Options(observer="mse"))
    return spec if spec.method == "ptq" else spec.model_copy(update={"method": "ptq", "options": own})


def _ladder(placed: LayerView, spec: ResolvedQuant, allowed: Collection[int]) -> list[Rung]:
    layer, source, norm = placed.layer, placed.source, placed.norm
    first, rungs = layer.weight_quantizer, []
    lower = [_found(layer.weight, spec, bits) for bits in BITS if bits < first.bits and bits in allowed]
    for quantizer in (first, *lower):
        layer.weight_quantizer = quantizer
        rungs.append(Rung(quantizer.bits, quantizer, layer_bytes(layer, source, norm)))
    layer.weight_quantizer = first
    return rungs


def _found(weight: Tensor, spec: ResolvedQuant, bits: int) -> Quantizer:
    """A quantizer of so many bits with the ranges of this weight."""
    quantizer = ptq.weight(spec, bits, tuple(weight.shape)).eval()
    quantizer.observing = True
    quantizer(weight)
    quantizer.finish_observing()
    quantizer.observing = False
    return quantizer


def _add_harm(
    prepared: fx.GraphModule, placed: LayerView, ladder: list[Rung], images: Tensor, expected: Tensor
) -> None:
    for rung in ladder:
        placed.layer.weight_quantizer = rung.quantizer
        with only(prepared, [rung.quantizer]):
            rung.harm += float(divergence(expected, prepared(images)).sum())
    placed.layer.weight_quantizer = ladder[0].quantizer
