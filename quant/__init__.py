"""Quantization: methods, prepare (float -> trainable and simulated), convert (simulated -> integers on an engine).

A new method is one file and a row in METHODS.
"""

import fnmatch
import functools
from collections.abc import Callable, Collection, Iterable

import torch
from torch import fx, nn

from quant import dorefa, lsq, pact, ptq, statassist
from quant.calibrate import calibrate
from quant.compare import accuracy_table, compare
from quant.convert import IntegerModel
from quant.convert import convert as _convert
from quant.dampen import Damping
from quant.engine import Engine
from quant.equalize import equalize
from quant.export import export
from quant.fold import fold
from quant.kernels import compile_all as compile_kernels
from quant.kernels import interpret_all as interpret_kernels
from quant.method import FLOAT, Method
from quant.mixed import choose_bits
from quant.packed_model import export as export_packed
from quant.packed_model import load as load_packed
from quant.prepare import prepare as _prepare
from quant.prepare import quantizers
from quant.qdq import check_onnx, export_onnx
from quant.refine import refine
from quant.renorm import renorm
from quant.report import report, report_line, report_table
from quant.roles import roles
from quant.runtimes import onnxruntime_engine, openvino_engine
from quant.sensitivity import sensitivity
from quant.switch import set_enabled
from quant.trace import trace
from quant.verify import exact_in_int8
from utils.config import LayerBits, QuantSettings
from utils.errors import UserError, choose, nearest
from utils.say import tracked

METHODS: dict[str, Method] = {
    "float": FLOAT,
    "ptq": ptq.METHOD,
    "dorefa": dorefa.METHOD,
    "pact": pact.METHOD,
    "lsq": lsq.METHOD,
    "statassist": statassist.METHOD,
}


def _native(name: str) -> Callable[[], Engine]:
    def make() -> Engine:
        from quant.native import NativeEngine  # here, since torch has announced to remove what it stands on

        return NativeEngine(name)

    return make


ENGINES: dict[str, Callable[[], Engine]] = {
    "reference": Engine,
    "fbgemm": _native("fbgemm"),
    "qnnpack": _native("qnnpack"),
    "x86": _native("x86"),
    "onednn": _native("onednn"),
    "onnxruntime": onnxruntime_engine,
    "openvino": openvino_engine,
}


def resolve(spec: QuantSettings) -> QuantSettings:
    """The spec with the method's defaults filled in. Raises UserError for what the method cannot do."""
    method = choose(METHODS, spec.method, "quant.method")
    choose(ENGINES, spec.engine, "quant.engine")
    own = frozenset().union(*(m.options for m in METHODS.values()))
    for key in sorted(spec.model_fields_set & (own - method.options)):
        if getattr(spec, key) != type(spec).model_fields[key].default:
            others = ", ".join(sorted(method.options)) or "none of its own"
            raise UserError(f"quant.{key}: {spec.method} has no such option; it has {others}")
    if method is FLOAT:
        return spec
    _check_target(spec)
    spec = method.fill(spec)
    for key, allowed in (("weight_bits", method.weight_bits), ("act_bits", method.act_bits)):
        _check_bits(f"quant.{key}", getattr(spec, key), allowed, spec.method)
    if spec.first_last_bits != "same":
        _check_bits("quant.first_last_bits", spec.first_last_bits, method.weight_bits, spec.method)
    for pattern, bits in spec.by_name.items():
        for key, allowed in (("weight_bits", method.weight_bits), ("act_bits", method.act_bits)):
            if bits != "float" and getattr(bits, key) is not None:
                _check_bits(f"quant.layers.{pattern}.{key}", getattr(bits, key), allowed, spec.method)
    observer = spec.observer or next(iter(method.observers), None)
    if observer not in (*method.observers, None):
        hint = nearest(observer, method.observers)
        raise UserError(
            f"quant.observer: {spec.method} cannot use {observer!r}; choose from {', '.join(method.observers)}"
            + (f" (nearest: {hint})" if hint else "")
        )
    reduce_range = spec.reduce_range
    if reduce_range == "auto":
        asked = engine(spec.engine)
        reduce_range = not exact_in_int8(engine(asked.multiplies_like or asked.name), 127)
    spec = spec.model_copy(update={"observer": observer, "reduce_range": reduce_range})
    method.check(spec)
    return spec


def prepare(model: nn.Module, spec: QuantSettings) -> fx.GraphModule:
    """quant/prepare.py with the method that a resolved spec names."""
    return _prepare(model, spec, METHODS[spec.method])


def _check_bits(key: str, bits: int, allowed: range, method: str) -> None:
    if bits != 32 and bits not in allowed:
        raise UserError(f"{key}: {method} cannot use {bits} bits; choose {allowed[0]}..{allowed[-1]}, or 32 for float")


@functools.cache
def engine(name: str, key: str = "quant.engine") -> Engine:
    """The engine of that name, which the setting has under `key`. Raises UserError if there is none."""
    found = choose(ENGINES, name, key)()
    if not found.available():
        here = [other for other, make in ENGINES.items() if make().available()]
        raise UserError(f"{key}: {name} {found.missing()} (here: {', '.join(here)})")
    return found


def ends_in_float(spec: QuantSettings, epochs: int) -> bool:
    """Whether a run of so many epochs trains in float to its end, so that there is a float net to measure beside."""
    return METHODS[spec.method].float_epochs(spec, epochs) >= epochs


def learned(prepared: nn.Module) -> list[tuple[list[nn.Parameter], float]]:
    """What quantizers learn (LSQ's steps, PACT's clips), with the weight decay that each part is to get."""
    found: dict[float, list[nn.Parameter]] = {}
    for quantizer in quantizers(prepared).values():
        found.setdefault(quantizer.weight_decay, []).extend(quantizer.parameters())
    return [(parameters, decay) for decay, parameters in found.items() if parameters]


def draw_from(prepared: nn.Module, generator: torch.Generator) -> None:
    """Let quantizers of gradients draw their noise from `generator`, of the model's device."""
    for module in prepared.modules():
        if isinstance(module, dorefa.GradientQuantizer):
            module.generator = generator


def check_layers(model: nn.Module, patterns: Iterable[str]) -> None:
    """Raise UserError unless each pattern of quant.layers matches a convolution or linear layer of a float model."""
    traced = trace(model)
    names = [node.target for node, role in roles(traced).items() if role == "layer"]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            hint = nearest(pattern, names)
            raise UserError(
                f"quant.layers: {pattern!r} matches no layer; the first is {names[0]}, the last {names[-1]}"
                + (f" (nearest: {hint})" if hint else "")
            )


def choose_layers(model: nn.Module, spec: QuantSettings, sample: Collection, held_out: Collection) -> dict:
    """What quant/mixed.py chooses for `layers` of a resolved spec, as a setting holds it."""
    allowed = [bits for bits in range(1, 9) if _allows(spec, bits)]
    chosen = choose_bits(model, spec, allowed, sample, held_out)
    return {name: {"weight_bits": bits} for name, bits in chosen.items() if bits in allowed}  # others have them anyway


def _allows(spec: QuantSettings, bits: int) -> bool:
    """Whether a layer may be given so many weight bits by name."""
    try:
        resolve(spec.model_copy(update={"layers": {"*": LayerBits(weight_bits=bits)}}))
    except UserError:
        return False
    return True


def _check_target(spec: QuantSettings) -> None:
    targets = [key for key in ("target_drop", "target_mb") if getattr(spec, key) is not None]
    if spec.layers == "auto" and len(targets) != 1:
        raise UserError("quant.layers: auto needs a target: quant.target_drop or quant.target_mb, and not both")
    if targets and not spec.layers:
        raise UserError(f"quant.{targets[0]}: nothing is chosen for it; quant.layers=auto does")


def is_prepared(model: nn.Module) -> bool:
    return bool(quantizers(model))


def convert(prepared: fx.GraphModule, engine_name: str) -> IntegerModel:
    """quant/convert.py on the engine of that name."""
    return _convert(prepared, engine(engine_name))


def measure(model: nn.Module, engine_names: list[str], batches: Collection, with_float: bool) -> tuple[dict, str]:
    """Convert a model to each engine and compare them all over (images, labels) batches, with a progress bar.

    Returns the result of quant/compare.py and the layer tables of the engines as text; a float model has neither.
    """
    engines = {name: convert(model, name) for name in engine_names} if is_prepared(model) else {}
    result = compare(model, engines, tracked(batches, len(batches), "measuring", "batch"), with_float)
    tables = [f"{report_line(model, twin)}\n\n{report_table(model, twin)}\n" for twin in engines.values()]
    return result, "\n".join(tables) if tables else "float: nothing is quantized\n"


__all__ = ["ENGINES", "METHODS", "Damping", "Method", "accuracy_table", "calibrate", "check_layers", "check_onnx"]
__all__ += ["choose_layers", "compare", "compile_kernels", "convert", "draw_from", "ends_in_float", "engine"]
__all__ += ["equalize", "export", "export_onnx", "export_packed", "fold", "interpret_kernels", "is_prepared", "learned"]
__all__ += [
    "load_packed",
    "measure",
    "prepare",
    "quantizers",
    "refine",
    "renorm",
    "report",
    "resolve",
    "sensitivity",
    "set_enabled",
    "trace",
]
