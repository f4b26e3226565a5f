"""The passes over memory that training with quantizers is made of, as plain formulas, which torch.compile can fuse.


`run` calls a kernel: compiled where `compile_all` has been called and the tensor is worth it, else as it stands below,
an operator after the other, with the same values. Tensors are flat in memory order, or rows [R, K] with numbers [R, 1],
or behind a batch norm [images, positions, channels] with numbers [channels]; all other numbers are scalars. Arithmetic
is fp32. Sums over images and positions are taken an image at a time: its values stay in the cache, cores share the
images, and fp32 loses less.
"""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from utils.console import say

Number = Tensor | float
SMALL = 2**15
"""Elements below which a call of a compiled kernel costs more than it saves."""
VARIANTS = 64
"""Of a kernel: types, numbers of axes, what is learned, activations."""
FUSED = {"realize_reads_threshold": 1000, "realize_opcount_threshold": 1000}
"""Options of the compiler: what a formula computes on the way is never written to memory, however often it is used.
By itself the compiler does so after four uses or thirty operators, in fp32; norm_sums took twice as long, or longer."""
_compiled: dict[Callable, Callable] = {}


def run(kernel: Callable, *arguments: Any) -> Any:
    """kernel(*arguments), the first of which is the largest tensor."""
    if kernel in _compiled and arguments[0].numel() >= SMALL:
        try:
            return _compiled[kernel](*map(_bare, arguments))
        except torch._dynamo.exc.TorchDynamoException as error:  # a compiler that fails in the middle of a run
            _compiled.clear()
            _say_uncompiled(error)
    return kernel(*map(_plain, arguments))


def _say_uncompiled(error: Exception) -> None:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:100]
    say(f"quantizers are not compiled ({reason}): training takes longer")


def _bare(argument: Any) -> Any:
    """Tensors without their history, which the compiler would tell apart."""
    if isinstance(argument, tuple):
        return tuple(map(_bare, argument))
    return argument.data if isinstance(argument, Tensor) else argument


def _plain(argument: Any) -> Any:
    """Scalars as Python's numbers: then torch has faster operators."""
    if isinstance(argument, tuple):
        return tuple(map(_plain, argument))
    return float(argument) if isinstance(argument, Tensor) and not argument.ndim else argument


def to_integers(u: Tensor, inverse: Number, least: Number, most: Number) -> Tensor:
    return (u * inverse).round_().clamp_(least, most)


def within(g: Tensor, v: Tensor, low: Number, high: Number) -> Tensor:
    """g where low < v < high, 0 elsewhere."""
    if isinstance(low, float):
        return torch.ops.aten.hardtanh_backward(g, v, low, high)  # in a single pass
    return torch.where((v > low) & (v < high), g, 0)


def of_log_t(
    g: Tensor,
    v: Tensor,
    passing: Tensor,
    bottom: Number,
    top: Number,
    inside: bool,
    ends: tuple[Number, Number] | None,
    inverse: Number,
    scale: Number,
    least: Number,
    most: Number,
) -> Tensor:
    """g t d v_hat / d t; passing: g where low < v < high. Subtracted before it is summed, or fp32 would lose it."""
    unbounded = isinstance(bottom, float) and (bottom, top) == (-math.inf, math.inf)
    u = v if unbounded else v.clamp(bottom, top)
    v_hat = to_integers(u, inverse, least, most).mul_(scale)
    felt = passing if ends is None else within(g, u, *ends)
    return g * v_hat - felt * (u if inside else v_hat)


def forward(v: Tensor, inverse: Number, scale: Number, least: Number, most: Number) -> Tensor:
    """v_hat"""
    return to_integers(v.float(), inverse, least, most).mul_(scale).to(v.dtype)


def backward(g: Tensor, v: Tensor, low: Number, high: Number) -> Tensor:
    """The gradient of v."""
    return within(g.float(), v.float(), low, high).to(g.dtype)


def backward_learning(g: Tensor, v: Tensor, low: Number, high: Number, *to_t: Any) -> tuple[Tensor, Tensor]:
    """The gradient of v, and that of ln t, of each row or of everything."""
    g, v, kind = g.float(), v.float(), g.dtype
    passing = within(g, v, low, high)
    return passing.to(kind), of_log_t(g, v, passing, *to_t).sum(-1)


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


def norm_forward(x: Tensor, a: Tensor, b: Tensor, *to_v_hat: Number) -> Tensor:
    """v_hat of v = a x + b"""
    return forward(x.float() * a + b, *to_v_hat).to(x.dtype)


def norm_sums(
    g: Tensor, x: Tensor, a: Tensor, b: Tensor, mean: Tensor, low: Number, high: Number, *to_t: Any
) -> tuple[Tensor, ...]:
    """Of h, the gradient of v: sum h and sum h (x - mean) of each channel; and, if there is a t, that of ln t."""
    g, x = g.float(), x.float()
    v = x * a + b
    h = within(g, v, low, high)
    terms = h, h * (x - mean), *((of_log_t(g, v, h, *to_t),) if to_t else ())
    return tuple(term.sum(1).sum(0) for term in terms)


def norm_backward(
    g: Tensor, x: Tensor, a: Tensor, b: Tensor, low: Number, high: Number, p: Tensor, q: Tensor
) -> Tensor:
    """The gradient of x: a h + p x + q"""
    kind, x = x.dtype, x.float()
    return (within(g.float(), x * a + b, low, high) * a + x * p + q).to(kind)


KERNELS = (forward, backward, backward_learning, statistics, norm_forward, norm_sums, norm_backward)


def compiled() -> bool:
    return bool(_compiled)


def compile_all() -> None:
    """From now on, run kernels as loops of their own. Where there is no compiler: as before, and a line says so."""
    if _compiled:
        return
    try:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
        with warnings.catch_warnings(), torch._inductor.config.patch(compile_threads=1), torch.no_grad():
            warnings.simplefilter("ignore")
            fast = {kernel: torch.compile(kernel, dynamic=True, fullgraph=True, options=FUSED) for kernel in KERNELS}
            fast[forward](torch.zeros(SMALL), *map(torch.tensor, (1.0, 1.0, 0.0, 1.0)))
    except Exception as error:  # whatever the compiler has to say
        _say_uncompiled(error)
        return
    _compiled.update(fast)


def interpret_all() -> None:
    """From now on, run kernels as they stand."""
    _compiled.clear()
