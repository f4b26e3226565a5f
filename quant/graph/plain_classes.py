"""Which class of torch.nn a module computes like, and two classes that are added to those."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HARMLESS = {
    "__init__",
    "__doc__",
    "__module__",
    "__annotations__",
    "extra_repr",
    "__repr__",
    "reset_parameters",
    "train",
}
"""What a subclass may define without computing anything else."""


def plain_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch.nn, or of this file, that computes what a module computes: its own, or one whose methods it
    inherits unchanged.

    None for containers, for modules that define a forward or a property of their own, and for all others.
    """
    kinds: tuple[Any, ...] = type(module).__mro__
    plain = next((kind for kind in kinds if kind.__module__.startswith(("torch.nn.modules.", __name__))), nn.Module)
    if plain.forward is nn.Module.forward or issubclass(plain, nn.Sequential) or "forward" in vars(module):
        return None
    own = {name: value for kind in kinds[: kinds.index(plain)] for name, value in vars(kind).items()}
    changed = [name for name, value in own.items() if hasattr(plain, name) or isinstance(value, property)]
    return None if set(changed) - HARMLESS - set(vars(object)) - set(vars(type("", (), {}))) else plain


@torch.no_grad()
def pads_same(module: nn.Module) -> bool:
    """Whether a subclass of nn.Conv2d computes TensorFlow's 'same' convolution: found out on small inputs, since
    torch.fx cannot trace how it computes its padding."""
    if not isinstance(module, nn.Conv2d) or plain_class(module) is not None or module._forward_hooks:
        return False
    weight = module.weight
    for extra in ((4, 5), (5, 4), (7, 8)):
        sides = [d * (k - 1) + 1 + more for d, k, more in zip(module.dilation, module.kernel_size, extra, strict=True)]
        x = torch.linspace(-1, 1, module.in_channels * sides[0] * sides[1]).view(1, -1, *sides).to(weight)
        padded = pad_same(x, module.kernel_size, module.stride, module.dilation)
        same = F.conv2d(padded, weight, module.bias, module.stride, 0, module.dilation, module.groups)
        try:
            found = module.forward(x)
        except Exception:  # whatever its own forward raises on an image that small
            return False
        if not (isinstance(found, Tensor) and torch.equal(found, same)):
            return False
    return True


def pad_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> Tensor:
    """Zeros around the maps [N, C, H, W], so that a convolution makes ceil(H / stride) rows of them: TensorFlow's
    'same'. If the number of zeros is odd, the one more is behind."""
    amounts: list[int] = []
    for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation, strict=True):
        total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        amounts = [total // 2, total - total // 2, *amounts]
    return F.pad(x, amounts)


class RowConvolution(nn.Conv2d):
    """An nn.Conv1d, with its Parameters [O, I/g, k] and [O], on maps [N, C, 1, L]."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight.unsqueeze(2), self.bias)


class FrozenBatchNorm(nn.BatchNorm2d):
    """A batch norm that stays in eval mode: one whose function was called with training=False."""

    def train(self, mode: bool = True) -> "FrozenBatchNorm":
        return super().train(False)
