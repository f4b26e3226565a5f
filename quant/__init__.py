"""Quantization: methods, prepare (float -> trainable and simulated), convert (simulated -> integers on an engine).

A new method is one file and a row in METHODS, quant/registry.py.
"""

from collections.abc import Collection, Iterable
from typing import TypeGuard

import torch
from torch import Tensor, fx, nn

from quant.analysis.compare import accuracy_table, compare
from quant.analysis.layer_table import report, report_line, report_table
from quant.analysis.mixed_precision import choose_bits
from quant.analysis.sensitivity import sensitivity
from quant.core.kernels import compile_all as compile_kernels
from quant.core.kernels import interpret_all as interpret_kernels
from quant.core.method import Method
from quant.core.settings import LayerBits, QuantSettings, ResolvedQuant
from quant.engines.base import IntegerModel
from quant.engines.convert import convert as _convert
from quant.engines.float_baseline import fold
from quant.export.npz.read import export as export_packed
from quant.export.npz.read import load as load_packed
from quant.export.onnx import check_onnx, export_onnx
from quant.export.torch_export import export
from quant.graph.prepare import prepare as _prepare
from quant.graph.trace import trace
from quant.graph.views import quantizers, set_enabled
from quant.methods import ptq
from quant.methods.dorefa import GradientQuantizer
from quant.ptq import pipeline
from quant.ptq.calibrate import calibrate
from quant.ptq.cross_layer_equalization import equalize
from quant.qat.bn_reestimation import reestimate_batch_norm
from quant.qat.oscillation_dampening import Dampening
from quant.registry import ENGINES, METHODS, SECTIONS, engine
from quant.validate import allows, check_layers, check_run, ends_in_float, float_epochs, parse, rescales, resolve
from utils.console import tracked


def prepare(model: nn.Module, spec: ResolvedQuant) -> fx.GraphModule:
    """graph/prepare.py with the method that a resolved spec names."""
    return _prepare(model, spec, METHODS[spec.method])


def refine(prepared: fx.GraphModule, images: Iterable[Tensor], spec: ResolvedQuant) -> None:
    """ptq/pipeline.py, for a calibrated model, where the method has such options."""
    if isinstance(spec.options, ptq.Options):
        pipeline.refine(prepared, images, spec.options)


def equalizes(spec: ResolvedQuant) -> bool:
    """Whether cross-layer equalization comes before prepare."""
    return isinstance(spec.options, ptq.Options) and bool(spec.options.cross_layer_equalization)


def dampening(spec: ResolvedQuant) -> float:
    """The strength of oscillation dampening; 0: none."""
    return METHODS[spec.method].dampening(spec.options)


def learned(prepared: nn.Module) -> list[tuple[list[nn.Parameter], float]]:
    """What quantizers learn (LSQ's steps, PACT's clips), with the weight decay that each part is to get."""
    found: dict[float, list[nn.Parameter]] = {}
    for quantizer in quantizers(prepared).values():
        found.setdefault(quantizer.weight_decay, []).extend(quantizer.parameters())
    return [(parameters, decay) for decay, parameters in found.items() if parameters]


def draw_from(prepared: nn.Module, generator: torch.Generator) -> None:
    """Let quantizers of gradients draw their noise from `generator`, of the model's device."""
    for module in prepared.modules():
        if isinstance(module, GradientQuantizer):
            module.generator = generator


def choose_layers(model: nn.Module, spec: ResolvedQuant, sample: Collection, held_out: Collection) -> dict:
    """What analysis/mixed_precision.py chooses for `layers` of a resolved spec, as a setting holds it."""
    allowed = [bits for bits in range(1, 9) if allows(spec, bits)]
    chosen = choose_bits(model, spec, allowed, sample, held_out)
    return {name: {"weight_bits": bits} for name, bits in chosen.items() if bits in allowed}  # others have them anyway


def is_prepared(model: nn.Module) -> TypeGuard[fx.GraphModule]:
    """Whether `prepare` has put quantizers in."""
    return bool(quantizers(model))


def convert(prepared: fx.GraphModule, engine_name: str) -> IntegerModel:
    """engines/convert.py on the engine of that name."""
    return _convert(prepared, engine(engine_name))


def measure(model: nn.Module, engine_names: list[str], batches: Collection, with_float: bool) -> tuple[dict, str]:
    """Convert a model to each engine and compare them all over (images, labels) batches, with a progress bar.

    Returns the result of analysis/compare.py and the layer tables of the engines as text; a float model has neither.
    """
    shown = tracked(batches, len(batches), "measuring", "batches")
    if not is_prepared(model):
        return compare(model, {}, shown, with_float), "float: nothing is quantized\n"
    engines = {name: convert(model, name) for name in engine_names}
    tables = [f"{report_line(model, twin)}\n\n{report_table(model, twin)}\n" for twin in engines.values()]
    result = compare(model, engines, shown, with_float)
    return result, "\n".join(tables) or "no engine: nothing was converted\n"


__all__ = [
    "ENGINES",
    "METHODS",
    "SECTIONS",
    "Dampening",
    "LayerBits",
    "Method",
    "QuantSettings",
    "ResolvedQuant",
    "accuracy_table",
    "calibrate",
    "check_layers",
    "check_onnx",
]
__all__ += ["check_run", "choose_layers", "compare", "compile_kernels", "convert", "draw_from", "ends_in_float"]
__all__ += ["engine", "equalize", "export", "export_onnx", "export_packed", "fold", "interpret_kernels", "is_prepared"]
__all__ += [
    "dampening",
    "equalizes",
    "float_epochs",
    "learned",
    "load_packed",
    "measure",
    "parse",
    "prepare",
    "quantizers",
    "reestimate_batch_norm",
    "refine",
    "report",
    "rescales",
    "resolve",
    "sensitivity",
    "set_enabled",
    "trace",
]
