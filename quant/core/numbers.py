"""Numbers of kernels: Python floats where they are known, scalar tensors where they depend on data.

A scalar tensor on an accelerator is never read in training, because reading it waits until everything that was asked
of the device is done; and no tensor is made from a Python number in a step, which is a copy to the device.
"""

import functools

import torch
from torch import Tensor

Number = Tensor | float


def is_host(x: Tensor) -> bool:
    """Whether a number can be read from x without waiting for a device."""
    return x.device.type == "cpu"


def plain(number: Number) -> Number:
    """A scalar tensor in the host's memory as a Python float, for which torch has faster operators; others as they
    are."""
    return float(number) if isinstance(number, Tensor) and not number.ndim and is_host(number) else number


@functools.cache
def constant(value: float, device: torch.device) -> Tensor:
    """The fp32 scalar of this value, made once for each device."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float32, device=device)


def larger(a: Number, b: Number) -> Number:
    """The maximum; a Python float if both are."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.maximum(a, b)
    if isinstance(a, Tensor):
        return a.clamp(min=b)
    return b.clamp(min=a) if isinstance(b, Tensor) else max(a, b)


def smaller(a: Number, b: Number) -> Number:
    """The minimum; a Python float if both are."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.minimum(a, b)
    if isinstance(a, Tensor):
        return a.clamp(max=b)
    return b.clamp(max=a) if isinstance(b, Tensor) else min(a, b)


def clamp_(x: Tensor, least: Number, most: Number) -> Tensor:
    """x, clamped in place. torch's own clamp takes two tensors or two Python numbers."""
    if isinstance(least, Tensor) == isinstance(most, Tensor):
        return x.clamp_(least, most)  # type: ignore[arg-type]
    return x.clamp_(min=least).clamp_(max=most)
