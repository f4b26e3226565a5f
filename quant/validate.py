"""What a setting asks of quantization, filled in, and refused in a line where it cannot be had."""

import fnmatch
from collections.abc import Iterable

from torch import nn

from quant.core.method import FLOAT, Method
from quant.engines.verify import exact_in_int8
from quant.graph.trace import trace
from quant.graph.typed_graph import TypedGraph
from quant.registry import ENGINES, METHODS, engine
from utils.config import LayerBits, QuantSettings
from utils.errors import UserError, choose, nearest
from utils.runs import tensor_file


def resolve(spec: QuantSettings) -> QuantSettings:
    """The spec with the method's defaults filled in. Raises UserError for what the method cannot do."""
    method = choose(METHODS, spec.method, "quant.method")
    choose(ENGINES, spec.engine, "quant.engine")
    _check_options(spec, method)
    if method is FLOAT:
        return spec
    _check_target(spec)
    spec = method.fill(spec)
    _check_all_bits(spec, method)
    spec = spec.model_copy(update={"observer": _observer(spec, method), "reduce_range": _reduce_range(spec)})
    method.check(spec)
    return spec


def _check_options(spec: QuantSettings, method: Method) -> None:
    """Refuse keys that are set and are another method's."""
    own = frozenset().union(*(m.options for m in METHODS.values()))
    for key in sorted(spec.model_fields_set & (own - method.options)):
        if _is_set(spec, key):
            others = ", ".join(sorted(method.options)) or "none of its own"
            raise UserError(f"quant.{key}: {spec.method} has no such option; it has {others}")


def _is_set(spec: QuantSettings, key: str) -> bool:
    return getattr(spec, key) != QuantSettings.model_fields[key].default


def _check_all_bits(spec: QuantSettings, method: Method) -> None:
    kinds = (("weight_bits", method.weight_bits), ("act_bits", method.act_bits))
    for key, allowed in kinds:
        _check_bits(f"quant.{key}", getattr(spec, key), allowed, spec.method)
    if spec.first_last_bits != "same":
        _check_bits("quant.first_last_bits", spec.first_last_bits, method.weight_bits, spec.method)
    _check_bits("quant.residual_bits", spec.residual_bits, method.act_bits, spec.method)
    for pattern, bits in spec.by_name.items():
        for key, allowed in kinds:
            if bits != "float" and getattr(bits, key) is not None:
                _check_bits(f"quant.layers.{pattern}.{key}", getattr(bits, key), allowed, spec.method)


def _check_bits(key: str, bits: int, allowed: range, method: str) -> None:
    if bits != 32 and bits not in allowed:
        raise UserError(f"{key}: {method} cannot use {bits} bits; choose {allowed[0]}..{allowed[-1]}, or 32 for float")


def _observer(spec: QuantSettings, method: Method) -> str | None:
    """What finds the ranges: as asked, or the method's first; None where it learns them."""
    observer = spec.observer or next(iter(method.observers), None)
    if observer not in (*method.observers, None):
        hint = nearest(observer, method.observers)
        raise UserError(
            f"quant.observer: {spec.method} cannot use {observer!r}; choose from {', '.join(method.observers)}"
            + (f" (nearest: {hint})" if hint else "")
        )
    return observer


def _reduce_range(spec: QuantSettings) -> bool:
    """Auto is whether this CPU's int8 kernels fail at full range."""
    if spec.reduce_range != "auto":
        return spec.reduce_range
    asked = engine(spec.engine)
    return not exact_in_int8(engine(asked.multiplies_like or asked.name), 127)


def _check_target(spec: QuantSettings) -> None:
    targets = [key for key in ("target_drop", "target_mb") if getattr(spec, key) is not None]
    if spec.layers == "auto" and len(targets) != 1:
        raise UserError("quant.layers: auto needs a target: quant.target_drop or quant.target_mb, and not both")
    if targets and not spec.layers:
        raise UserError(f"quant.{targets[0]}: nothing is chosen for it; quant.layers=auto does")


def ends_in_float(spec: QuantSettings, epochs: int) -> bool:
    """Whether a run of so many epochs trains in float to its end, so that there is a float net to measure beside."""
    return METHODS[spec.method].float_epochs(spec, epochs) >= epochs


def check_run(spec: QuantSettings, epochs: int, trained_before: bool) -> None:
    """Raise UserError for what a resolved spec cannot do in a run of so many epochs.

    trained_before: the run starts from trained weights.
    """
    method, in_float = spec.method, ends_in_float(spec, epochs)
    if spec.layers == "auto" and not trained_before and (not in_float or (method != "float" and epochs == 0)):
        raise UserError(f"quant.layers: auto chooses by a trained float net: {method} needs model.weights here")
    if epochs == 0 and METHODS[method].rescales(spec):
        raise UserError(
            f"run.epochs: 0 trains nothing, and {method}'s weights are on a scale of their own, which batch norm has "
            "to learn; quant.method=ptq quantizes a trained net as it is"
        )
    if spec.norm_images and in_float:
        raise UserError(
            "quant.norm_images: nothing is trained quantized here; quant.correct=norm is ptq's way to do it"
        )
    if spec.teacher and epochs == 0:
        raise UserError("quant.teacher: run.epochs=0 trains nothing")
    if spec.teacher:
        tensor_file.check_exists(spec.teacher)
    for key in ("teacher_share", "temperature"):
        if not spec.teacher and _is_set(spec, key):
            raise UserError(f"quant.{key}: there is no teacher; quant.teacher names one")


def check_layers(model: nn.Module, patterns: Iterable[str]) -> None:
    """Raise UserError unless each pattern of quant.layers matches a convolution or linear layer of a float model."""
    traced = trace(model)
    names = [node.target for node, role in TypedGraph(traced).roles.items() if role == "layer"]
    for pattern in patterns:
        if not names:
            raise UserError(f"quant.layers: {pattern!r} matches no layer; the model has none that can be quantized")
        if not fnmatch.filter(names, pattern):
            hint = nearest(pattern, names)
            raise UserError(
                f"quant.layers: {pattern!r} matches no layer; the first is {names[0]}, the last {names[-1]}"
                + (f" (nearest: {hint})" if hint else "")
            )


def allows(spec: QuantSettings, bits: int) -> bool:
    """Whether a layer may be given so many weight bits by name."""
    try:
        resolve(spec.model_copy(update={"layers": {"*": LayerBits(weight_bits=bits)}}))
    except UserError:
        return False
    return True
