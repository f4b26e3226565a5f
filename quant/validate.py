"""Resolve the quant section of a setting: check it, and fill in what it leaves open."""

import fnmatch
from typing import Any

from torch import nn

from quant.core.method import FLOAT, AnyMethod
from quant.core.options import FLOAT_ACTIVATIONS, TrainingOptions
from quant.core.rounding_gradient import check_strength
from quant.core.settings import CommonSettings, LayerBits, QuantSettings, ResolvedQuant
from quant.engines.verify import exact_in_int8
from quant.graph.node_view import target
from quant.graph.trace import trace
from quant.graph.typed_graph import TypedGraph
from quant.registry import AUTO, ENGINES, METHODS, SECTIONS, available, engine
from utils.config import validate_section
from utils.errors import UserError, choose, nearest
from utils.runs import tensor_file
from utils.sections import FLOAT_BITS, part

AnyResolved = ResolvedQuant[Any]


def parse(**keys: Any) -> QuantSettings:
    """The quant section of these keys. Raises UserError for one that the method does not read."""
    return validate_section("quant", SECTIONS, keys)


def resolve(section: QuantSettings) -> AnyResolved:
    """The section with the method's defaults filled in. Raises UserError for what the method cannot do.

    A plain QuantSettings has the method's options at their defaults. Resolving the flat() of the result again gives
    the same.
    """
    method = choose(METHODS, section.method, "quant.method")
    if not isinstance(section, method.options):
        section = parse(**section.model_dump(exclude_unset=True))
    if section.engine != AUTO:
        choose(ENGINES, section.engine, "quant.engine", AUTO)
    if method is not FLOAT:
        _check_target(section)
    common = {key: getattr(section, key) for key in CommonSettings.model_fields}
    spec: AnyResolved = ResolvedQuant(
        **common,
        layers={} if section.layers == "auto" else section.layers,
        chooses_layers=section.layers == "auto",
        reduce_range=section.reduce_range is True if method is FLOAT else _reduce_range(section),
        options=method.fill(part(section, method.options)),
    )
    if method is not FLOAT:
        _check_bits_of(spec, method)
    if isinstance(spec.options, TrainingOptions):
        check_strength(spec.options.rounding_gradient, spec.options.gradient_strength)
    return spec


def _check_bits_of(spec: AnyResolved, method: AnyMethod) -> None:
    _check_all_bits(spec, method)
    method.check(spec)


def _check_all_bits(spec: AnyResolved, method: AnyMethod) -> None:
    kinds = (("weight_bits", method.weight_bits), ("act_bits", method.act_bits))
    for key, allowed in kinds:
        _check_bits(f"quant.{key}", getattr(spec, key), allowed, spec.method)
    if spec.first_last_bits != "same":
        _check_bits("quant.first_last_bits", spec.first_last_bits, method.weight_bits, spec.method)
    _check_bits("quant.residual_bits", spec.residual_bits, method.act_bits, spec.method)
    for pattern, bits in spec.layers.items():
        for key, allowed in kinds:
            if bits != "float" and getattr(bits, key) is not None:
                _check_bits(f"quant.layers.{pattern}.{key}", getattr(bits, key), allowed, spec.method)


def _check_bits(key: str, bits: int, allowed: range, method: str) -> None:
    if bits != FLOAT_BITS and bits not in allowed:
        raise UserError(f"{key}: {method} cannot use {bits} bits; choose {allowed[0]}..{allowed[-1]}, or 32 for float")


def _reduce_range(section: QuantSettings) -> bool:
    """Auto is whether this CPU's int8 kernels fail at full range; of engine auto, those of any engine."""
    if section.reduce_range != "auto":
        return section.reduce_range
    asked = available().values() if section.engine == AUTO else [engine(section.engine)]
    kernels = {one.multiplies_like or one.name for one in asked}
    return not all(exact_in_int8(engine(name), 127) for name in kernels)


def _check_target(section: QuantSettings) -> None:
    targets = [key for key in ("target_drop", "target_mb") if getattr(section, key) is not None]
    if section.layers == "auto" and len(targets) != 1:
        raise UserError("quant.layers: auto needs a target: quant.target_drop or quant.target_mb, and not both")
    if targets and not section.layers:
        raise UserError(f"quant.{targets[0]}: nothing is chosen for it; quant.layers=auto does")


def float_epochs(spec: AnyResolved, epochs: int) -> int:
    """The number of a run's epochs that train in float, before prepare."""
    return METHODS[spec.method].float_epochs(spec.options, epochs)


def ends_in_float(spec: AnyResolved, epochs: int) -> bool:
    """Whether a run of `epochs` epochs trains in float to its end, so that its float model can be measured too."""
    return float_epochs(spec, epochs) >= epochs


def check_run(spec: AnyResolved, epochs: int, trained_before: bool, averages: bool = False) -> None:
    """Raise UserError for what a spec cannot do in a run of `epochs` epochs, and for keys that it would not read.

    trained_before: the run starts from trained weights. averages: it ends with an average of its weights.
    """
    method, in_float = spec.method, ends_in_float(spec, epochs)
    if spec.chooses_layers and not trained_before and (not in_float or (method != "float" and epochs == 0)):
        raise UserError(f"quant.layers: auto chooses by a trained float model: {method} needs model.weights here")
    if epochs == 0 and rescales(spec):
        raise UserError(
            f"run.epochs: 0 trains nothing, and {method}'s weights are on a scale of their own, which batch norm has "
            "to learn; quant.method=ptq quantizes a trained model as it is"
        )
    if spec.teacher and epochs == 0:
        raise UserError("quant.teacher: run.epochs=0 trains nothing")
    if spec.teacher:
        tensor_file.check_exists(spec.teacher)
    _check_read(spec, in_float, averages)


def _check_read(spec: AnyResolved, in_float: bool, averages: bool) -> None:
    """Raise UserError for keys that are set and have no effect in this run.

    Combinations of a method's own options are refused by its `fill`.
    """
    asked = spec.flat() if spec.method == "float" else {}
    for key in ("layers", "target_drop", "target_mb"):
        if asked.get(key):
            raise UserError(f"quant.{key}: float quantizes nothing")
    calibrates = (in_float and spec.method != "float") or spec.chooses_layers or averages
    no_teacher = "there is no teacher; quant.teacher names one"
    read_if = {
        "bn_reestimation_images": (
            not in_float,
            "nothing is trained quantized here; quant.bias_correction=norm is ptq's way to do it",
        ),
        "calibration_images": (calibrates, f"{spec.method} finds its ranges while it trains, and calibrates nothing"),
        "symmetric_activations": (spec.quantizes_activations, FLOAT_ACTIVATIONS),
        "teacher_share": (bool(spec.teacher), no_teacher),
        "temperature": (bool(spec.teacher), no_teacher),
    }
    for key, (is_read, why) in read_if.items():
        if not is_read and getattr(spec, key) != CommonSettings.model_fields[key].default:
            raise UserError(f"quant.{key}: {why}")
    method = METHODS[spec.method]
    for key, why in method.unread(spec, in_float).items():
        if getattr(spec.options, key) != method.options.model_fields[key].default:
            raise UserError(f"quant.{key}: {why}")


def unread_by_float(spec: AnyResolved) -> list[str]:
    """The keys of a float run that are set and describe how it would be quantized. A sweep's cells may share them."""
    keys = ("weight_bits", "act_bits", "first_last_bits", "residual_bits", "granularity", "engine")
    changed = [key for key in keys if getattr(spec, key) != CommonSettings.model_fields[key].default]
    changed += ["reduce_range"] if spec.reduce_range else []
    return changed if spec.method == "float" else []


def rescales(spec: AnyResolved) -> bool:
    """Whether the method's weights are on another scale than the float model's, which batch norm has to learn."""
    return METHODS[spec.method].rescales(spec)


def check_layers(model: nn.Module, spec: AnyResolved) -> None:
    """Raise UserError unless the float model can be traced, and each pattern of quant.layers matches a convolution or
    linear layer of it."""
    traced, patterns = trace(model, METHODS[spec.method].trains_quantized(spec)), spec.layers
    names = [target(node) for node, role in TypedGraph(traced).roles.items() if role == "layer"]
    for pattern in patterns:
        if not names:
            raise UserError(f"quant.layers: {pattern!r} matches no layer; the model has none that can be quantized")
        if not fnmatch.filter(names, pattern):
            hint = nearest(pattern, names)
            raise UserError(
                f"quant.layers: {pattern!r} matches no layer; the first is {names[0]}, the last {names[-1]}"
                + (f" (nearest: {hint})" if hint else "")
            )


def allows(spec: AnyResolved, bits: int) -> bool:
    """Whether a layer may be given weights of `bits` bits by name."""
    try:
        _check_bits_of(spec.model_copy(update={"layers": {"*": LayerBits(weight_bits=bits)}}), METHODS[spec.method])
    except UserError:
        return False
    return True
