"""SyncBatchNorm: batch norm whose statistics are those of the images of all processes, on any device.

torch's own computes on accelerators alone, and for tracing it is a layer of another kind. So a model gets plain batch
norms in its place, with the same Parameters and buffers, marked; and where several processes train, the marked ones
compute, while `synchronized` lasts, what one process would on the whole batch:

    mean = sum of x / N,    var = sum of (x - mean)^2 / N,    each sum over the N values of a channel in all processes
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.eval_mode import in_eval_mode

MARK = "synchronizes"
Norm = nn.modules.batchnorm._BatchNorm


def use_plain_batch_norms(model: nn.Module, images: Tensor) -> None:
    """Replace each SyncBatchNorm of a model by a marked BatchNorm1d, 2d or 3d, by what it gets from these images."""
    found: list[nn.Module] = [module for module in model.modules() if type(module) is nn.SyncBatchNorm]
    if not found:
        return
    dimensions = _input_dimensions(model, found, images)
    plain = {module: _plain(module, dimensions.get(module, 4)) for module in found}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in plain:
                setattr(parent, name, plain[child])


def _input_dimensions(model: nn.Module, norms: list[nn.Module], images: Tensor) -> dict[nn.Module, int]:
    """The number of dimensions of each norm's input. The model computes in eval mode, and then is in its own again."""
    dimensions: dict[nn.Module, int] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        dimensions[module] = inputs[0].ndim

    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    try:
        with torch.no_grad(), in_eval_mode(model):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return dimensions


def _plain(norm: Any, dimensions: int) -> nn.Module:
    kinds: dict[int, type[Norm]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 5: nn.BatchNorm3d}
    kind = kinds.get(dimensions, nn.BatchNorm2d)
    plain = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    plain._parameters, plain._buffers, plain.training = norm._parameters, norm._buffers, norm.training
    setattr(plain, MARK, True)
    return plain


@contextlib.contextmanager
def synchronized(model: nn.Module) -> Iterator[None]:
    """While it lasts, the marked batch norms in training take their statistics over all processes."""
    marked = [module for module in model.modules() if isinstance(module, Norm) and hasattr(module, MARK)]
    kinds: dict[Any, type[Norm]] = {module: type(module) for module in marked}
    for module in marked:
        module.__class__ = SYNCHRONIZED[kinds[module]]
    try:
        yield
    finally:
        for module, kind in kinds.items():
            module.__class__ = kind


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class _Synchronized(Norm):
    """A batch norm that in training takes the statistics of all processes; without gradients, its own."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):  # looking for what is not finite, one process stops earlier
            return super().forward(x)
        self._check_input_dim(x)
        values = x.transpose(0, 1).flatten(1).float()
        number = _summed(values.new_tensor([float(values.shape[1])]))
        mean = _summed(values.sum(1)) / number
        var = _summed((values - mean[:, None]).square().sum(1)) / number
        self._update(mean.detach(), var.detach() * (number / (number - 1)))
        shape = [1, -1, *[1] * (x.ndim - 2)]
        y = (x.float() - mean.view(shape)) / (var.view(shape) + self.eps).sqrt()
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)

    def _update(self, mean: Tensor, unbiased: Tensor) -> None:
        """The running statistics, as F.batch_norm updates them."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased, share)


def _summed(x: Tensor) -> Tensor:
    return _Sum.apply(x)


class _Synchronized1d(_Synchronized, nn.BatchNorm1d):
    pass


class _Synchronized2d(_Synchronized, nn.BatchNorm2d):
    pass


class _Synchronized3d(_Synchronized, nn.BatchNorm3d):
    pass


SYNCHRONIZED: dict[type[Norm], type[Norm]] = {
    nn.BatchNorm1d: _Synchronized1d,
    nn.BatchNorm2d: _Synchronized2d,
    nn.BatchNorm3d: _Synchronized3d,
}
