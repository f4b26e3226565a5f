"""torch.fx's tracer, taught which modules to take whole and to record Python's in-place operators."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from quant.graph.op_table import OPERATORS

NORM_ACT = "BatchNormAct2d"
"""timm's module of a batch norm and an activation."""
LEAVES = {NORM_ACT, *(name for row in OPERATORS.values() for name in row.module_names)}
"""Modules of other libraries that have a meaning here: torch.fx does not trace into them."""
PYTHON_IN_PLACE: dict[Any, Callable] = {
    getattr(operator, name): getattr(operator, f"__{name.removeprefix('__i')}")
    for name in dir(operator)
    if name.startswith("__i") and hasattr(operator, f"__{name.removeprefix('__i')}") and hasattr(torch.Tensor, name)
}
"""Python's operators that write over their first argument if it is a tensor (+=, **= ...), each with the operator that
does not (+, ** ...). @= is not one: torch computes it out of place."""


class Proxy(fx.Proxy):
    """torch.fx takes y += 1 for y = y + 1, and other names of y keep the old value. This proxy records the in-place
    operator, under the node name that torch.fx gives the other one."""


def _recorder(function: Any, plain: Callable) -> Callable[[fx.Proxy, object], fx.Proxy]:
    def record(x: fx.Proxy, other: object) -> fx.Proxy:
        return x.tracer.create_proxy("call_function", function, (x, other), {}, name=plain.__name__)

    return record


for _function, _plain in PYTHON_IN_PLACE.items():
    setattr(Proxy, f"__{_function.__name__}__", _recorder(_function, _plain))


class Tracer(fx.Tracer):
    """Does not trace into LEAVES."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return super().is_leaf_module(module, name) or type(module).__name__ in LEAVES

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Proxy(node, self)
