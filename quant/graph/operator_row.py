"""What the table of operators (graph/op_table.py) knows of an operator: the fields of a row."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from quant.core.activation import IDENTITY, ClampedAffine
from quant.core.integer_operator import Arithmetic
from quant.graph import node_view as calls
from quant.graph.node_view import NodeView

Role = Literal[
    "image",
    "constant",
    "layer",
    "norm",
    "activation",
    "binary",
    "average",
    "function",
    "pass",
    "shape",
    "float",
    "output",
]
"""What a node of a traced graph is.

image       the input
constant    a tensor of the model, or what is computed from such tensors alone
layer       a convolution or linear layer that can run in integers
norm        a batch norm: fused into the convolution before it, or an operator by itself
activation  ReLU, ReLU6, Hardtanh, clamp, hard-sigmoid: an affine function between two levels
binary      the sum, difference or product of two tensors
average     an average pool, or a mean over other axes than that of the images
function    an element-wise function of one tensor, and of numbers or constants (hard-swish, x + 3, PReLU ...)
pass        moves or selects values (max-pool, reshape, concatenation, dropout ...): its output is on its inputs' grid
shape       reads a tensor's shape, or computes with such numbers
float       anything else; it runs in float
output      the logits
"""
Sign = Callable[[Iterable[bool]], bool]
"""From whether each input can be negative, whether the output can."""


def always(inputs: Iterable[bool]) -> bool:
    return True


def never(inputs: Iterable[bool]) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Operator:
    """A row of OPERATORS."""

    role: Role
    modules: tuple[type[nn.Module], ...] = ()
    """Classes of modules that compute it, and their subclasses unless `exact`."""
    functions: tuple[Callable, ...] = ()
    """Functions that compute it. torch.onnx and the .npz file write the first one, unless `call` is given."""
    methods: tuple[str, ...] = ()
    """Names of tensor methods that compute it."""
    in_place: tuple[Callable | str, ...] = ()
    """Functions and names of methods that write the result over their first argument (Python's: graph/tracer.py)."""
    as_modules: tuple[tuple[Callable, type[nn.Module]], ...] = ()
    """Functions of self.training, which tracing freezes, and the module that each becomes."""
    module_names: tuple[str, ...] = ()
    """Names of other libraries' classes that compute it."""
    exact: bool = False
    """A subclass of `modules` does not count: it may compute something else."""
    accepts: Callable[[NodeView], bool] = calls.any_call
    """Which calls count; others stay in float."""
    call: Callable | None = None
    """The function to write, tensors first, where it is not the first of `functions`."""
    attributes: tuple[str, ...] = ()
    """Attributes of the module that are keyword arguments of the function."""
    arithmetic: Arithmetic | None = None
    """Its integer form (core/integer_operator.py), if it has no weights."""
    activation: Callable[[NodeView], ClampedAffine | None] | None = None
    """From a call, the ClampedAffine of an activation, or None where its bounds are no numbers."""
    signed: Sign = always
    tail: ClampedAffine = IDENTITY
    """Bounds on the input beyond which a function is constant: a grid for the input needs no more."""
    identity_in_eval: bool = False
    is_view: bool = False
    """The output may share the memory of the first input."""
    flattens: Callable[[NodeView], bool] = calls.no_call
    """Which calls make feature maps [N, C, H, W] a matrix in which each channel's values stay together."""
    on_quantized: bool = True
    """For an operator that moves values: torch runs it on quantized tensors."""
    shuffles: bool = False
    """Permutes the channels as nn.ChannelShuffle does; its argument is `groups`."""
    splits: bool = False
    """The output is a tuple of parts of a tensor."""
    pads: bool = False
    """Fills in a zero or minus infinity: not defined on unsigned integers that have a zero point."""
    commutes_with_scaling: bool = False
    """Scaling a channel of the input scales that channel of the output."""
    divides_by: Callable[[NodeView], Any] = calls.nothing
    """The argument that a call divides by, or takes the logarithm or root of: near 0 a step of a grid changes
    everything, so this value stays in float."""

    @property
    def function(self) -> Callable | None:
        """What computes the operator out of place, tensors first; None where there is nothing to compute."""
        return self.call or next(iter(self.functions), None)

    def counts(self, view: NodeView) -> bool:
        """Whether a call that matches is this operator."""
        return self.accepts(view) and (self.activation is None or self.activation(view) is not None)
