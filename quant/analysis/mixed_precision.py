"""Mixed precision: choose the weight bits of each layer from what fewer bits cost and save (quant.layers: auto).

Every layer starts with the bits that it would have otherwise. Each step lowers one layer to the next of 8, 6, 4, 3 and
2 bits, from b to b'. It takes the layer l with the smallest cost per byte saved

    (KL_l(b') - KL_l(b)) / (bytes_l(b) - bytes_l(b'))

KL_l(b) is the KL divergence of the model's predictions if only the weights of layer l are quantized, to b bits
(analysis/sensitivity.py). How many steps are taken depends on the target:

    target_mb     until weights, scales and biases take at most target_mb MB
    target_drop   as many as possible, found by bisection, such that the predicted class changes for at most target_drop
                  percent of held-out images when the whole model is quantized. Top-1 cannot drop by more than that.

No labels are used. Weights and ranges are those of post-training quantization (with observer mse, for methods that
train), so what later training regains is not taken into account. The greedy order adds up the KL divergences of single
layers, which is an approximation; target_drop measures the whole model.
"""

import copy
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from quant.analysis.compare import layer_bytes, megabytes_at_bits
from quant.analysis.sensitivity import kl_divergence
from quant.core.quantizer import WeightQuantizer
from quant.core.settings import ResolvedQuant
from quant.graph.prepare import prepare
from quant.graph.views import LayerView, layers, only, without_quantizers
from quant.methods import ptq
from quant.ptq.calibrate import calibrate
from utils.console import say, tracked
from utils.errors import UserError


def choose_bits(
    model: nn.Module, spec: ResolvedQuant, allowed: Collection[int], sample: Collection, held_out: Collection
) -> dict[str, int]:
    """Choose the weight bits of each layer, by name, for a trained float model and a resolved spec.

    allowed: the bits that the method supports. sample, held_out: batches of (images, labels) for calibration and for
    target_drop; labels are not read. Raises UserError if the target cannot be met.
    """
    prepared = quantized_after_training(model, spec, sample)
    candidates = weight_candidates(prepared, spec, allowed, sample)
    if not candidates:
        raise UserError("quant.layers: auto has nothing to choose: the weights of all layers stay in float")
    path = GreedyPath(prepared, candidates)
    if spec.target_drop is not None:
        steps = path.steps_to_drop(spec.target_drop, held_out)
    elif spec.target_mb is not None:
        steps = path.steps_to_size(spec.target_mb)
    else:
        raise UserError("quant.layers: auto needs a target: quant.target_drop or quant.target_mb")
    say(f"layers: {path.summary(steps)}")
    return path.bits(steps)


@dataclass
class Candidate:
    """A layer's weights at a number of bits: the quantizer, the bytes of the layer, and the mean KL divergence."""

    bits: int
    quantizer: WeightQuantizer
    bytes: int
    kl_divergence: float = 0.0


Candidates = dict[str, list[Candidate]]
"""Name of a layer -> its candidates, from the most bits to the fewest."""


class GreedyPath:
    """The greedy order of steps from the most bits to the fewest.

    steps: for each step, the name of the layer that goes to its next candidate.
    """

    def __init__(self, prepared: fx.GraphModule, candidates: Candidates):
        self.prepared, self.candidates = prepared, candidates
        self.most_mb = megabytes_at_bits(prepared)
        self.steps = list(self._steps())
        self.drops: dict[int, float] = {}

    def _steps(self) -> Iterator[str]:
        """The names of the layers in the order of their steps."""
        at = dict.fromkeys(self.candidates, 0)
        while costs := {name: self._cost(name, at[name]) for name in at if at[name] + 1 < len(self.candidates[name])}:
            cheapest = min(costs, key=costs.__getitem__)
            at[cheapest] += 1
            yield cheapest

    def _cost(self, name: str, index: int) -> float:
        """KL divergence per byte saved, from this candidate to the next."""
        now, lower = self.candidates[name][index : index + 2]
        return (lower.kl_divergence - now.kl_divergence) / max(now.bytes - lower.bytes, 1)

    def after(self, count: int) -> dict[str, int]:
        """The index of each layer's candidate after `count` steps."""
        return {name: self.steps[:count].count(name) for name in self.candidates}

    def bits(self, count: int) -> dict[str, int]:
        return {name: self.candidates[name][index].bits for name, index in self.after(count).items()}

    def megabytes(self, count: int) -> float:
        saved = [
            self.candidates[name][0].bytes - self.candidates[name][index].bytes
            for name, index in self.after(count).items()
        ]
        return self.most_mb - sum(saved) / 1e6

    def steps_to_size(self, megabytes: float) -> int:
        """The smallest number of steps after which the model takes at most `megabytes` MB."""
        for count in range(len(self.steps) + 1):
            if self.megabytes(count) <= megabytes:
                return count
        least = self.megabytes(len(self.steps))
        raise UserError(
            f"quant.target_mb: {megabytes} MB cannot be reached; with the fewest bits the model takes {least:.4f} MB"
        )

    def steps_to_drop(self, percent: float, held_out: Collection) -> int:
        """The largest number of steps, by bisection, that changes at most `percent` of the predicted classes."""
        with without_quantizers(self.prepared):
            in_float = self._predictions(held_out)
        if self._drop(0, held_out, in_float) > percent:
            raise UserError(
                f"quant.target_drop: {percent} % cannot be reached: with the most bits, the predicted class changes "
                f"for {self.drops[0]:.2f} % of the held-out images"
            )
        low, high = 0, len(self.steps) + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._drop(middle, held_out, in_float) <= percent else (low, middle)
        return low

    def _drop(self, count: int, held_out: Collection, in_float: Tensor) -> float:
        """Percent of the images whose predicted class differs from the float model's after `count` steps."""
        views = layers(self.prepared)
        for name, index in self.after(count).items():
            views[name].layer.weight_quantizer = self.candidates[name][index].quantizer
        self.drops[count] = 100 * float((self._predictions(held_out) != in_float).double().mean())
        return self.drops[count]

    @torch.inference_mode()
    def _predictions(self, batches: Collection) -> Tensor:
        return torch.cat([self.prepared(images).argmax(1) for images in images_of(batches)])

    def summary(self, count: int) -> str:
        """What was chosen, in one line."""
        bits = list(self.bits(count).values())
        counts = ", ".join(f"{bits.count(b)} at {b} bits" for b in sorted(set(bits), reverse=True))
        drop = (
            f"; the predicted class of {self.drops[count]:.2f} % of held-out images changes"
            if count in self.drops
            else ""
        )
        return f"{counts}: {self.megabytes(count):.4f} MB{drop}"


BITS = (8, 6, 4, 3, 2)
IMAGES = 256
"""On how many calibration images the KL divergence is measured."""


def quantized_after_training(model: nn.Module, spec: ResolvedQuant, sample: Collection) -> fx.GraphModule:
    """A copy of the float model after post-training quantization, with the bits that the spec gives each layer."""
    prepared = prepare(copy.deepcopy(model).eval(), _spec(spec), ptq.METHOD)
    calibrate(prepared, images_of(sample))
    return prepared


@torch.no_grad()
def weight_candidates(
    prepared: fx.GraphModule, spec: ResolvedQuant, allowed: Collection[int], sample: Collection
) -> Candidates:
    """The candidates of each layer with quantized weights: its bits in the spec, then the lower allowed ones of BITS.

    Measures the KL divergence of each on the first IMAGES images of `sample`.
    """
    views = {name: view for name, view in layers(prepared).items() if view.layer.weight_quantizer is not None}
    candidates = {name: _layer_candidates(view, _spec(spec), allowed) for name, view in views.items()}
    seen = 0
    for images in images_of(sample, IMAGES):
        with without_quantizers(prepared):
            expected = prepared(images)
        seen += len(images)
        for name in tracked(views, len(views), "bits of each layer", "layers"):
            _add_kl_divergence(prepared, views[name], candidates[name], images, expected)
    for candidate in (candidate for row in candidates.values() for candidate in row):
        candidate.kl_divergence /= max(seen, 1)
    return candidates


def images_of(batches: Iterable, limit: int | None = None) -> Iterator[Tensor]:
    """The images of (images, labels) batches, at most the first `limit` of them."""
    left = float("inf") if limit is None else limit
    for images, _ in batches:
        yield images[: min(left, len(images))]
        left -= len(images)
        if left <= 0:
            return


def _spec(spec: ResolvedQuant) -> ResolvedQuant:
    """The spec; for a method that trains, the same with post-training quantization and observer mse."""
    own = ptq.fill(ptq.Options(observer="mse"))
    return spec if spec.method == "ptq" else spec.model_copy(update={"method": "ptq", "options": own})


def _layer_candidates(view: LayerView, spec: ResolvedQuant, allowed: Collection[int]) -> list[Candidate]:
    layer, source, norm = view.layer, view.source, view.norm
    first, candidates = layer.weight_quantizer, []
    if first is None:
        return []
    lower = [_calibrated_quantizer(layer.weight, spec, bits) for bits in BITS if bits < first.bits and bits in allowed]
    for quantizer in (first, *lower):
        layer.weight_quantizer = quantizer
        candidates.append(Candidate(quantizer.bits, quantizer, layer_bytes(layer, source, norm)))
    layer.weight_quantizer = first
    return candidates


def _calibrated_quantizer(weight: Tensor, spec: ResolvedQuant, bits: int) -> WeightQuantizer:
    """A weight quantizer of `bits` bits, calibrated on this weight."""
    quantizer = ptq.weight(spec, bits, tuple(weight.shape)).eval()
    quantizer.observing = True
    quantizer(weight)
    quantizer.finish_observing()
    quantizer.observing = False
    return quantizer


def _add_kl_divergence(
    prepared: fx.GraphModule, view: LayerView, candidates: list[Candidate], images: Tensor, expected: Tensor
) -> None:
    """Add to each candidate the sum over the images. expected: the float logits [N, classes]."""
    for candidate in candidates:
        view.layer.weight_quantizer = candidate.quantizer
        with only(prepared, [candidate.quantizer]):
            candidate.kl_divergence += float(kl_divergence(expected, prepared(images)).sum())
    view.layer.weight_quantizer = candidates[0].quantizer
