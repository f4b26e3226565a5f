"""Kernels of training with quantizers: each one pass over memory, written as a plain formula that torch.compile fuses.

`run` calls a kernel: compiled, if `compile_all` has been called and the tensor is large enough; otherwise as written,
one torch operator after the other, with the same values.

Shapes: tensors are flat in memory order with scalar numbers; or rows [R, K] with numbers [R, 1]; or, after a batch
norm, [images, positions, channels] with numbers [channels]. Arithmetic is fp32. Sums over images and positions are
taken one image at a time: its values stay in the cache, cores share the images, and fp32 loses less.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from quant.core.numbers import Number, clamp_, constant, plain
from utils.console import say
from utils.device import CPU
from utils.errors import first_line

SMALL = 2**15
"""Number of elements below which a call of a compiled kernel costs more than it saves."""
VARIANTS = 64
"""How many compiled variants of a kernel there may be: types, numbers of axes, learned tensors, activations."""
FUSED: dict[str, str | int | bool | Callable[..., Any]] = {
    "realize_reads_threshold": 1000,
    "realize_opcount_threshold": 1000,
}
"""Compiler options: never write intermediate results to memory, however often they are used. By default the compiler
does so after four uses or thirty operators, in fp32, and norm_sums takes at least twice as long."""
_compiled: dict[Callable, Callable] = {}
_tried_on: set[torch.device] = set()
"""The devices on which the compiled kernels are known to work."""


def run(kernel: Callable, *arguments: Any) -> Any:
    """kernel(*arguments); the first argument is the largest tensor."""
    if kernel in _compiled and arguments[0].numel() >= SMALL:
        try:
            return _compiled[kernel](*(_bare(each, arguments[0].device) for each in arguments))
        except torch._dynamo.exc.TorchDynamoException as error:  # a compiler that fails in the middle of a run
            _compiled.clear()
            _say_uncompiled(error)
    return kernel(*map(_plain, arguments))


def _say_uncompiled(error: Exception) -> None:
    say(f"quantizers are not compiled ({first_line(error, 100)}): training takes longer")


def _bare(argument: Any, device: torch.device) -> Any:
    """Tensors without autograd history, each another object, and Python floats as tensors: for arguments that are
    known, or the same, the compiler would compile again."""
    if isinstance(argument, tuple):
        return tuple(_bare(each, device) for each in argument)
    if isinstance(argument, float):
        argument = constant(argument, device)
    return argument.data if isinstance(argument, Tensor) else argument


def _plain(argument: Any) -> Any:
    return tuple(map(_plain, argument)) if isinstance(argument, tuple) else plain(argument)


def to_integers(u: Tensor, inverse: Number, least: Number, most: Number) -> Tensor:
    return clamp_((u * inverse).round_(), least, most)


def within(g: Tensor, v: Tensor, low: Number, high: Number) -> Tensor:
    """g where low < v < high, 0 elsewhere."""
    if isinstance(low, float) and isinstance(high, float):
        return torch.ops.aten.hardtanh_backward(g, v, low, high)  # in a single pass
    return g.masked_fill((v <= low) | (v >= high), 0)


def sloped(g: Tensor, v: Tensor, slope: tuple | None) -> Tensor:
    """The gradient of v from that of v_hat; slope: Rounding.of_slope, or None for straight through."""
    if slope is None:
        return g
    of_position, strength, inverse = slope
    p = v * inverse
    return of_position(g, p - p.round(), strength)


def learned_gradient_terms(
    g: Tensor,
    v: Tensor,
    passing: Tensor,
    low: Number,
    high: Number,
    bottom: Number,
    top: Number,
    counts_rounding_error: bool,
    ends: tuple[Number, Number] | None,
    offset: bool,
    inverse: Number,
    scale: Number,
    least: Number,
    most: Number,
) -> tuple[Tensor, ...]:
    """Per element, t times the gradient of the learned tensor t (LSQ's step, PACT's clip), for offset 0; and, where an
    offset is learned, the offset's gradient.

    That is g t d v_hat / d t and g d v_hat / d offset of core/fake_quantize.py. passing: g where low < v < high. The
    difference is taken before it is summed: fp32 would lose it otherwise. Rounding.gradients divides the sums by t.
    """
    unbounded = isinstance(bottom, float) and (bottom, top) == (-math.inf, math.inf)
    u = v if unbounded else v.clamp(bottom, top)  # type: ignore[arg-type]  # both are of one kind
    v_hat = to_integers(u, inverse, least, most).mul_(scale)
    error_passing = passing if ends is None or _known_equal(ends, (low, high)) else within(g, u, *ends)
    t_times_gradient = g * v_hat - error_passing * (u if counts_rounding_error else v_hat)
    return (t_times_gradient, g - error_passing) if offset else (t_times_gradient,)


def _known_equal(a: tuple[Number, Number], b: tuple[Number, Number]) -> bool:
    return all(isinstance(number, float) for number in (*a, *b)) and a == b


def forward(v: Tensor, inverse: Number, scale: Number, least: Number, most: Number) -> Tensor:
    """v_hat"""
    return to_integers(v.float(), inverse, least, most).mul_(scale).to(v.dtype)


def backward(g: Tensor, v: Tensor, low: Number, high: Number, slope: tuple | None) -> Tensor:
    """The gradient of v."""
    kind, v = g.dtype, v.float()
    return sloped(within(g.float(), v, low, high), v, slope).to(kind)


def backward_learning(
    g: Tensor, v: Tensor, low: Number, high: Number, slope: tuple | None, *to_terms: Any
) -> tuple[Tensor, ...]:
    """The gradient of v, and sums of learned_gradient_terms over each row, or over everything."""
    g, v, kind = g.float(), v.float(), g.dtype
    passing = within(g, v, low, high)
    terms = learned_gradient_terms(g, v, passing, low, high, *to_terms)
    return sloped(passing, v, slope).to(kind), *(term.sum(-1) for term in terms)


def statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Mean, variance (over N), least and greatest value of each channel of x, in one pass.

    Squares are of the distances from the first image's mean: else they would cancel where the mean is large.
    """
    x, count = x.float(), x.shape[0] * x.shape[1]
    near = x[0].mean(0)
    away = x - near
    mean = away.sum(1).sum(0) / count
    variance = away.square().sum(1).sum(0) / count - mean.square()
    return near + mean, variance.clamp(min=0), x.amin(1).amin(0), x.amax(1).amax(0)


def norm_forward(x: Tensor, a: Tensor, b: Tensor, *to_v_hat: Any) -> Tensor:
    """v_hat of v = a x + b"""
    return forward(x.float() * a + b, *to_v_hat).to(x.dtype)


def norm_sums(
    g: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    mean: Tensor,
    low: Number,
    high: Number,
    slope: tuple | None,
    *to_terms: Any,
) -> tuple[Tensor, ...]:
    """Sums over each channel: of h, the gradient of v; of h (x - mean); and of learned_gradient_terms, if any."""
    g, x = g.float(), x.float()
    v = x * a + b
    passing = within(g, v, low, high)
    h = sloped(passing, v, slope)
    learned = learned_gradient_terms(g, v, passing, low, high, *to_terms) if to_terms else ()
    terms = h, h * (x - mean), *learned
    return tuple(term.sum(1).sum(0) for term in terms)


def norm_backward(
    g: Tensor,
    x: Tensor,
    a: Tensor,
    b: Tensor,
    low: Number,
    high: Number,
    slope: tuple | None,
    p: Tensor,
    q: Tensor,
) -> Tensor:
    """The gradient of x: a h + p x + q"""
    kind, x = x.dtype, x.float()
    v = x * a + b
    return (sloped(within(g.float(), v, low, high), v, slope) * a + x * p + q).to(kind)


KERNELS = (forward, backward, backward_learning, statistics, norm_forward, norm_sums, norm_backward)


def compiled() -> bool:
    return bool(_compiled)


def compile_all(device: torch.device = CPU) -> None:
    """Compile the kernels, and try one on the device they are for. Without a working compiler a one-line message says
    so, and they run uncompiled."""
    if _compiled and device in _tried_on:
        return
    try:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
        with warnings.catch_warnings(), torch._inductor.config.patch(compile_threads=1), torch.no_grad():
            warnings.simplefilter("ignore")
            fast = {kernel: torch.compile(kernel, dynamic=True, fullgraph=True, options=FUSED) for kernel in KERNELS}
            fast[forward](torch.zeros(SMALL, device=device), *(constant(n, device).data for n in (1.0, 1.0, 0.0, 1.0)))
    except Exception as error:  # compilers fail in many ways
        _say_uncompiled(error)
        return
    _compiled.update(fast)
    _tried_on.add(device)


def interpret_all() -> None:
    """Run kernels uncompiled again."""
    _compiled.clear()
