"""torch.fx's tracer, taught which modules to take whole and to record Python's in-place operators."""

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from quant.graph.op_table import OPERATORS
from quant.graph.plain_classes import pads_same, plain_class
from utils.errors import UserError

NORM_ACT = ("BatchNormAct2d", "SyncBatchNormAct")
"""timm's modules of a batch norm and an activation."""
LEAVES = {*NORM_ACT, *(name for row in OPERATORS.values() for name in row.module_names)}
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
    """Takes LEAVES and subclasses that only inherit a torch.nn class as one module each.

    failed_module: the name of the innermost module in which tracing failed.
    """

    failed_module = ""

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        self.same = {module for module in root.modules() if pads_same(module)}
        return super().trace(root, concrete_args)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if type(module).__name__ in LEAVES:
            return True
        of_torch = super().is_leaf_module(module, name) and "forward" not in vars(module)
        return of_torch or plain_class(module) is not None or module in self.same

    def call_module(self, module: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        try:
            return super().call_module(module, forward, args, kwargs)
        except Exception:
            self.failed_module = self.failed_module or self.path_of_module(module)
            raise

    def create_args_for_root(self, root_fn: Callable, is_module: bool, concrete_args: Any = None) -> tuple:
        """forward reads one tensor, the images; its other arguments keep their defaults."""
        model, images = self.root, _image_argument(self.root)
        proxy = self.create_proxy("placeholder", images.name, (), {})
        own = vars(model).get("forward")  # an instance may have a forward of its own
        forward = own or (lambda *args, **kwargs: root_fn(model, *args, **kwargs))
        if images.kind == images.KEYWORD_ONLY:
            return lambda x: forward(**{images.name: x}), [proxy]
        return forward, [proxy]

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Proxy(node, self)


def _image_argument(model: nn.Module) -> inspect.Parameter:
    """The argument of forward that takes the images: the only one without a default value, or else the first."""
    arguments = list(inspect.signature(model.forward).parameters.values())
    required = [a for a in arguments if a.default is a.empty and a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
    if len(required) > 1 or not arguments:
        raise UserError(
            f"model {type(model).__name__}: its forward takes {len(required)} inputs "
            f"({', '.join(argument.name for argument in required) or 'none'}); a classifier takes one, the images, and "
            "other arguments have default values"
        )
    return (required or arguments)[0]
