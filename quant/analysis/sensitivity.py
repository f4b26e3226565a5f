"""Where quantization hurts: what the rounding of each single layer does to the net's answers.

    SQNR = 10 log10(sum v^2 / sum (v - v_hat)^2)     dB, of a layer's weights and of what it reads in the float net
    harm = mean over images of sum_c p_c log(p_c / q_c)

p is the softmax of the float logits, q that of the logits with this layer alone quantized. harm, a Kullback-Leibler
divergence, needs no labels and is finer than any count of hits. A layer's quantizers are that of its weights and that
of what it reads; where several layers read one value, it goes with each of them. Float means that quantizers are off:
of a net that was trained with them, not the net it would have been without.
"""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from quant.core.grid import along_channels
from quant.core.quantizer import Quantizer
from quant.graph.views import LayerView, layers, only, quantizers, set_enabled
from utils.console import tracked
from utils.metrics import Score


class _Noise:
    """Running sums of signal and noise."""

    def __init__(self):
        self.signal, self.noise = 0.0, 0.0

    def add(self, v: Tensor, quantizer: Quantizer) -> None:
        grid = quantizer.grid()
        v_hat = grid.value(quantizer.to_int(v) - along_channels(grid.zero_point, v))
        self.signal += float(v.square().sum(dtype=torch.float64))
        self.noise += float((v - v_hat).square().sum(dtype=torch.float64))

    def decibels(self) -> float | None:
        """None where there is nothing, or nothing is lost."""
        if not self.signal or not self.noise:
            return None
        return 10 * float(torch.log10(torch.tensor(self.signal / self.noise)))


class _Layer:
    """What is measured of one layer."""

    def __init__(self, placed: LayerView):
        self.placed, self.own = placed, placed.quantizers()
        self.weights, self.inputs = _Noise(), _Noise()
        self.alone, self.left_out, self.divergence = Score(), Score(), 0.0
        if placed.layer.weight_quantizer is not None:
            self.weights.add(placed.layer.weight.float(), placed.layer.weight_quantizer)

    def reads(self, module: nn.Module, arguments: tuple) -> None:
        """A hook on the layer in the float net."""
        if self.placed.source is not None:
            self.inputs.add(arguments[0].float(), self.placed.source)

    def row(self, name: str) -> dict:
        weights, source = self.placed.layer.weight_quantizer, self.placed.source
        return {
            "layer": name,
            "weight_bits": 32 if weights is None else weights.bits,
            "input_bits": 32 if source is None else source.bits,
            "weight_sqnr_db": self.weights.decibels(),
            "input_sqnr_db": self.inputs.decibels(),
            "only_top1": self.alone.summary()["top1"],
            "all_but_top1": self.left_out.summary()["top1"],
            "harm": self.divergence / max(self.alone.images, 1),
        }


@torch.inference_mode()
def sensitivity(prepared: fx.GraphModule, batches: Collection) -> dict:
    """Measure each quantized layer over (images, labels) batches, with a progress bar.

    Returns {"float_top1", "all_top1", "rows"}, a row a layer, the most harmful first: "layer", "weight_bits",
    "input_bits", "weight_sqnr_db", "input_sqnr_db", "only_top1" (with this layer alone quantized), "all_but_top1" (with
    all but this) and "harm".
    """
    every = list(quantizers(prepared).values())
    measured = {name: _Layer(placed) for name, placed in layers(prepared).items() if placed.quantizers()}
    in_float, in_all = Score(), Score()
    for images, labels in tracked(batches, len(batches), "layer by layer", "batches"):
        logits = _float_logits(prepared, images, list(measured.values()))
        in_float.add(logits, labels)
        in_all.add(prepared(images), labels)
        for layer in measured.values():
            with only(prepared, layer.own):
                alone = prepared(images)
            with only(prepared, [one for one in every if one not in layer.own]):
                layer.left_out.add(prepared(images), labels)
            layer.alone.add(alone, labels)
            layer.divergence += float(divergence(logits, alone).sum())
    rows = [layer.row(name) for name, layer in measured.items()]
    rows.sort(key=lambda row: -row["harm"])
    return {"float_top1": in_float.summary()["top1"], "all_top1": in_all.summary()["top1"], "rows": rows}


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """sum_c p_c log(p_c / q_c) of the softmax of logits p and q [N, classes], for each image, in fp64."""
    p, q = F.log_softmax(p.double(), 1), F.log_softmax(q.double(), 1)
    return F.kl_div(q, p, log_target=True, reduction="none").sum(1)


def _float_logits(prepared: fx.GraphModule, images: Tensor, measured: list[_Layer]) -> Tensor:
    hooks = [layer.placed.layer.register_forward_pre_hook(layer.reads) for layer in measured]
    set_enabled(prepared, False)
    try:
        return prepared(images)
    finally:
        set_enabled(prepared, True)
        for hook in hooks:
            hook.remove()
