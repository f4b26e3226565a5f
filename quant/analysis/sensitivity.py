"""Sensitivity: how much the quantization of each single layer changes the model's predictions.

    SQNR = 10 log10(sum v^2 / sum (v - v_hat)^2)     dB, of a layer's weights and of its inputs in the float model
    KL   = mean over images of sum_c p_c log(p_c / q_c)

p is the softmax of the float logits, q that of the logits with only this layer quantized. The KL divergence needs no
labels and shows smaller changes than accuracy does. A layer's quantizers are those of its weights and of its input. The
quantizer of an input that several layers read counts for each of them. "Float" means that quantizers are disabled. For
a model that was trained with quantizers, this is not the model that float training would have given.
"""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from quant.core.grid import along_channels
from quant.core.quantizer import Quantizer
from quant.graph.views import LayerView, layer_arguments, layers, only, quantizers, without_quantizers
from utils.console import tracked
from utils.metrics import Score
from utils.sections import FLOAT_BITS


class _Sqnr:
    """Running sums of signal and quantization noise."""

    def __init__(self):
        self.signal, self.noise = 0.0, 0.0

    def add(self, v: Tensor, quantizer: Quantizer) -> None:
        grid = quantizer.grid()
        v_hat = grid.value(quantizer.to_int(v) - along_channels(grid.zero_point, v))
        self.signal += float(v.square().sum(dtype=torch.float64))
        self.noise += float((v - v_hat).square().sum(dtype=torch.float64))

    def decibels(self) -> float | None:
        """The SQNR in dB; None if there is no signal or no noise."""
        if not self.signal or not self.noise:
            return None
        return 10 * float(torch.log10(torch.tensor(self.signal / self.noise)))


class _Layer:
    """The measurements of one layer."""

    def __init__(self, view: LayerView):
        self.view, self.quantizers = view, view.quantizers()
        self.weights, self.inputs = _Sqnr(), _Sqnr()
        self.only, self.all_but, self.kl_divergence = Score(), Score(), 0.0
        if view.layer.weight_quantizer is not None:
            self.weights.add(view.layer.weight.float(), view.layer.weight_quantizer)

    def add_input(self, module: nn.Module, arguments: tuple) -> None:
        """Add the layer's float input to its SQNR; a forward pre-hook."""
        if self.view.source is not None:
            self.inputs.add(layer_arguments(arguments).x.float(), self.view.source)

    def row(self, name: str) -> dict:
        weights, source = self.view.layer.weight_quantizer, self.view.source
        return {
            "layer": name,
            "weight_bits": FLOAT_BITS if weights is None else weights.bits,
            "input_bits": FLOAT_BITS if source is None else source.bits,
            "weight_sqnr_db": self.weights.decibels(),
            "input_sqnr_db": self.inputs.decibels(),
            "only_top1": self.only.summary()["top1"],
            "all_but_top1": self.all_but.summary()["top1"],
            "kl_divergence": self.kl_divergence / max(self.only.images, 1),
        }


@torch.inference_mode()
def sensitivity(prepared: fx.GraphModule, batches: Collection) -> dict:
    """Measure each quantized layer over batches of (images, labels), with a progress bar.

    Returns {"float_top1", "all_top1", "rows"}: top-1 in percent without and with all quantizers, and one row for each
    layer, the largest KL divergence first, with

        layer, weight_bits, input_bits           name and bits (32: float)
        weight_sqnr_db, input_sqnr_db            or None
        only_top1, all_but_top1                  top-1 with only this layer quantized, and with all but this one
        kl_divergence                            from the float output, with only this layer quantized
    """
    every = list(quantizers(prepared).values())
    measured = {name: _Layer(view) for name, view in layers(prepared).items() if view.quantizers()}
    in_float, all_quantized = Score(), Score()
    for images, labels in tracked(batches, len(batches), "layer by layer", "batches"):
        logits = _float_logits(prepared, images, list(measured.values()))
        in_float.add(logits, labels)
        all_quantized.add(prepared(images), labels)
        for layer in measured.values():
            with only(prepared, layer.quantizers):
                only_this = prepared(images)
            with only(prepared, [one for one in every if one not in layer.quantizers]):
                layer.all_but.add(prepared(images), labels)
            layer.only.add(only_this, labels)
            layer.kl_divergence += float(kl_divergence(logits, only_this).sum())
    rows = [layer.row(name) for name, layer in measured.items()]
    rows.sort(key=lambda row: -row["kl_divergence"])
    return {"float_top1": in_float.summary()["top1"], "all_top1": all_quantized.summary()["top1"], "rows": rows}


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """sum_c p_c log(p_c / q_c) of the softmax of logits p and q [N, classes], for each image: [N], in fp64."""
    p, q = F.log_softmax(p.double(), 1), F.log_softmax(q.double(), 1)
    return F.kl_div(q, p, log_target=True, reduction="none").sum(1)


def _float_logits(prepared: fx.GraphModule, images: Tensor, measured: list[_Layer]) -> Tensor:
    hooks = [layer.view.layer.register_forward_pre_hook(layer.add_input) for layer in measured]
    try:
        with without_quantizers(prepared):
            return prepared(images)
    finally:
        for hook in hooks:
            hook.remove()
