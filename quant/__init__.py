"""Quantization: `prepare` turns a float model into a simulated, trainable one, `convert` that into an integer model.

A new method is one file in quant/methods and a row of METHODS in quant/registry.py.
"""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, fx, nn

from quant.analysis.compare import compare
from quant.analysis.fastest import fastest
from quant.analysis.integer_share import IntegerShare, check_integer_share, integer_share
from quant.analysis.integer_share import planned_integer_share as planned
from quant.analysis.layer_table import float_operators, layer_records, layer_rows, layer_summary, layer_table
from quant.analysis.mixed_precision import choose_bits
from quant.analysis.predictions import Predictions
from quant.analysis.profile import Profile, profile
from quant.analysis.sensitivity import sensitivity
from quant.core.kernels import compile_all as compile_kernels
from quant.core.kernels import interpret_all as interpret_kernels
from quant.core.options import PipelineOptions, TrainingOptions
from quant.core.quantizer import GradientQuantizer
from quant.core.settings import QuantSettings, ResolvedQuant
from quant.engines.base import EngineFailed, IntegerModel
from quant.engines.convert import convert as _convert
from quant.engines.float_baseline import float_baseline
from quant.engines.litert_graph import Loaded as litert_program
from quant.engines.onnx_sessions import onnxruntime_session
from quant.engines.xnnpack_graph import Loaded as executorch_program
from quant.export.executorch import check_executorch, export_executorch
from quant.export.litert import check_litert, export_litert
from quant.export.npz.read import load as load_packed
from quant.export.npz.write import export as export_packed
from quant.export.onnx import check_onnx, export_onnx
from quant.export.program import PROGRAMS, check_beside
from quant.export.torch_export import export
from quant.graph.prepare import prepare as _prepare
from quant.graph.trace import trace
from quant.graph.views import quantizers, set_enabled, without_range
from quant.ptq import pipeline
from quant.ptq.calibrate import calibrate
from quant.ptq.cross_layer_equalization import equalize_cross_layer
from quant.qat.bn_reestimation import reestimate_batch_norm
from quant.qat.oscillation_dampening import Dampening
from quant.qat.transition_rate import LAMBDA, TransitionRate, fix_steps
from quant.registry import AUTO, ENGINES, METHODS, SECTIONS, available, engine
from quant.validate import (
    allows,
    check_layers,
    check_run,
    ends_in_float,
    float_epochs,
    parse,
    rescales,
    resolve,
    unread_by_float,
)
from utils.console import say, tracked


def prepare(model: nn.Module, spec: ResolvedQuant) -> fx.GraphModule:
    """Prepare a float model for quantization (graph/prepare.py) with the method that a resolved spec names."""
    return _prepare(model, spec, METHODS[spec.method])


def run_ptq_pipeline(prepared: fx.GraphModule, images: Iterable[Tensor], spec: ResolvedQuant) -> None:
    """Run the PTQ pipeline (ptq/pipeline.py) on a calibrated model if the method has such options, else do nothing."""
    if isinstance(spec.options, PipelineOptions):
        pipeline.run_ptq_pipeline(prepared, images, spec.options)


def equalizes(spec: ResolvedQuant) -> bool:
    """Whether the float model is equalized (equalize_cross_layer) before `prepare`."""
    return isinstance(spec.options, PipelineOptions) and bool(spec.options.cross_layer_equalization)


def dampening(spec: ResolvedQuant) -> float:
    """The strength of oscillation dampening; 0: none."""
    return METHODS[spec.method].dampening(spec.options)


def transition_rate(spec: ResolvedQuant) -> float:
    """lambda of transition rate scheduling (qat/transition_rate.py); 0: none."""
    asked = spec.options.transition_rate if isinstance(spec.options, TrainingOptions) else False
    return LAMBDA if asked is True else float(asked)


def learned(prepared: nn.Module) -> list[tuple[list[nn.Parameter], float]]:
    """The parameters that quantizers learn (LSQ's steps, PACT's clips): (parameters, their weight decay) pairs."""
    found: dict[float, list[nn.Parameter]] = {}
    for quantizer in quantizers(prepared).values():
        trained = [p for p in quantizer.parameters() if p.requires_grad]
        found.setdefault(quantizer.weight_decay, []).extend(trained)
    return [(parameters, decay) for decay, parameters in found.items() if parameters]


def draw_from(prepared: nn.Module, generator: torch.Generator) -> None:
    """Let gradient quantizers draw their noise from `generator`, which must be on the model's device."""
    for module in prepared.modules():
        if isinstance(module, GradientQuantizer):
            module.generator = generator


def choose_layers(model: nn.Module, spec: ResolvedQuant, sample: Collection, held_out: Collection) -> dict:
    """The bits that analysis/mixed_precision.py chooses for a resolved spec, as a value of the setting `layers`."""
    allowed = [bits for bits in range(1, 9) if allows(spec, bits)]
    chosen = choose_bits(model, spec, allowed, sample, held_out)
    # layers whose bits are not in `allowed` keep the bits that they have anyway
    return {name: {"weight_bits": bits} for name, bits in chosen.items() if bits in allowed}


def is_prepared(model: nn.Module) -> TypeGuard[fx.GraphModule]:
    """Whether a model has quantizers."""
    return bool(quantizers(model))


def convert(prepared: fx.GraphModule, engine_name: str) -> IntegerModel:
    """Convert a prepared model to integers (engines/convert.py) on the engine with this name."""
    return _convert(prepared, engine(engine_name))


def resolve_engines(names: list[str], prepared: fx.GraphModule, images: Tensor) -> list[str]:
    """The names with the fastest exact engine (analysis/fastest.py), which is said in a line, in the place of "auto".

    images: normalized, [N, C, H, W], on which engines are tried.
    """
    if AUTO not in names:
        return names
    say(f"converting the model for {', '.join(available())}, to find the fastest exact engine")
    choice = fastest(prepared, available(), images)
    say(str(choice))
    return list(dict.fromkeys(choice.name if name == AUTO else name for name in names))


class Measurement(NamedTuple):
    """What `measure` finds.

    result: of analysis/compare.py. in_float: one line: the share of MACs in integers, and what stays in float.
    layers: the layer table of each engine, as text. predictions: of each image. engine: the one that the line and
    layer_records, the layer table as values, are about.
    """

    result: dict
    in_float: str
    layers: str
    predictions: Predictions
    engine: str
    layer_records: list[dict[str, Any]]


def _on_engines(prepared: fx.GraphModule, names: list[str]) -> dict[str, IntegerModel]:
    if names:
        say(f"converting the model for {', '.join(names)}")
    return {name: convert(prepared, name) for name in tracked(names, len(names), "converting", "engines")}


def planned_integer_share(model: nn.Module, spec: ResolvedQuant, image_size: int, channels: int = 3) -> IntegerShare:
    """The share of a float model that will run in integers (analysis/integer_share.py).

    Raises UserError if that is less than the spec asks for.
    """
    share = planned(model, spec, METHODS[spec.method], image_size, channels)
    check_integer_share(share, spec)
    return share


def measure(
    model: nn.Module,
    engine_names: list[str],
    batches: Collection,
    with_float: bool,
    image_size: int,
    channels: int = 3,
    meant_for: str = "",
) -> Measurement:
    """Convert a model to each engine and compare all of them over batches of (images, labels), with a progress bar.

    meant_for: the engine whose layer table is returned, if it is among these; else the first that is not the reference.
    The engine auto stands for the fastest exact one, which is chosen on the first batch and said in a line.
    """
    if AUTO in engine_names and is_prepared(model):
        engine_names = resolve_engines(engine_names, model, next(iter(batches))[0])
    shown = tracked(batches, len(batches), "measuring", "batches")
    engines = _on_engines(model, engine_names) if is_prepared(model) else {}
    records: list[dict[str, Any]] = []
    told = min(engines, key=lambda name: (name != meant_for, name == "reference"), default="")
    if is_prepared(model) and engines:
        share, integer = integer_share(model, image_size, channels), engines[told]
        in_float = f"{share.percent:.1f} % of MACs in integers; {float_operators(model, integer)}"
        records = layer_records(model, integer, share)
        layers = "\n".join(f"{layer_summary(model, one)}\n\n{layer_table(model, one)}\n" for one in engines.values())
    else:
        in_float = "no engine: nothing was converted" if is_prepared(model) else "float: nothing is quantized"
        layers = f"{in_float}\n"
    result, predictions = compare(model, engines, shown, with_float)
    return Measurement(result, in_float, layers, predictions, told, records)


__all__ = [
    "AUTO",
    "ENGINES",
    "METHODS",
    "PROGRAMS",
    "SECTIONS",
    "Dampening",
    "EngineFailed",
    "IntegerModel",
    "Measurement",
    "Predictions",
    "Profile",
    "QuantSettings",
    "ResolvedQuant",
    "TransitionRate",
    "calibrate",
    "check_beside",
    "check_executorch",
    "check_layers",
    "check_litert",
    "check_onnx",
    "check_run",
    "choose_layers",
    "compile_kernels",
    "convert",
    "dampening",
    "draw_from",
    "ends_in_float",
    "engine",
    "equalize_cross_layer",
    "equalizes",
    "executorch_program",
    "export",
    "export_executorch",
    "export_litert",
    "export_onnx",
    "export_packed",
    "fix_steps",
    "float_baseline",
    "float_epochs",
    "integer_share",
    "interpret_kernels",
    "is_prepared",
    "layer_rows",
    "learned",
    "litert_program",
    "load_packed",
    "measure",
    "onnxruntime_session",
    "parse",
    "planned_integer_share",
    "prepare",
    "profile",
    "quantizers",
    "reestimate_batch_norm",
    "rescales",
    "resolve",
    "resolve_engines",
    "run_ptq_pipeline",
    "sensitivity",
    "set_enabled",
    "trace",
    "transition_rate",
    "unread_by_float",
    "without_range",
]
