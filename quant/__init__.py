"""Quantization: methods, prepare (float -> trainable and simulated), convert (simulated -> integers on an engine).

A new method is one file and a row in METHODS.
"""

from torch import fx, nn

from quant import ptq, statassist
from quant.calibrate import calibrate, set_enabled
from quant.method import FLOAT, Method
from quant.prepare import prepare as _prepare
from quant.prepare import quantizers
from utils.config import QuantSettings
from utils.errors import UserError, choose, nearest

METHODS: dict[str, Method] = {
    "float": FLOAT,
    "ptq": ptq.METHOD,
    "statassist": statassist.METHOD,
}


def resolve(spec: QuantSettings) -> QuantSettings:
    """The spec with the method's defaults filled in. Raises UserError for what the method cannot do."""
    method = choose(METHODS, spec.method, "quant.method")
    own = frozenset().union(*(m.options for m in METHODS.values()))
    for key in sorted(spec.model_fields_set & (own - method.options)):
        if getattr(spec, key) != type(spec).model_fields[key].default:
            raise UserError(f"quant.{key}: {spec.method} has no such option; it has {', '.join(sorted(method.options))}")
    if method is FLOAT:
        return spec
    for key, allowed in (("weight_bits", method.weight_bits), ("act_bits", method.act_bits)):
        _check_bits(f"quant.{key}", getattr(spec, key), allowed, spec.method)
    if spec.first_last_bits != "same":
        _check_bits("quant.first_last_bits", spec.first_last_bits, method.weight_bits, spec.method)
    observer = spec.observer or method.observers[0]
    if observer not in method.observers:
        hint = nearest(observer, method.observers)
        raise UserError(
            f"quant.observer: {spec.method} cannot use {observer!r}; choose from {', '.join(method.observers)}"
            + (f" (nearest: {hint})" if hint else "")
        )
    reduce_range = _needs_reduced_range(spec.engine) if spec.reduce_range == "auto" else spec.reduce_range
    return spec.model_copy(update={"observer": observer, "reduce_range": reduce_range})


def prepare(model: nn.Module, spec: QuantSettings) -> fx.GraphModule:
    """quant/prepare.py with the method that a resolved spec names."""
    return _prepare(model, spec, METHODS[spec.method])


def _check_bits(key: str, bits: int, allowed: range, method: str) -> None:
    if bits != 32 and bits not in allowed:
        raise UserError(f"{key}: {method} cannot use {bits} bits; choose {allowed[0]}..{allowed[-1]}, or 32 for float")


def _needs_reduced_range(engine: str) -> bool:
    return False


__all__ = ["METHODS", "Method", "calibrate", "prepare", "quantizers", "resolve", "set_enabled"]
