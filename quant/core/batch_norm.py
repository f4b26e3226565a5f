"""Batch norms that `build_integer_layer` (core/integer_layer.py) can absorb, and their running statistics."""

from torch import Tensor, nn

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d


def running_statistics(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """(mean, variance) that the batch norm computes with in eval mode. Raises ValueError if it does not track them."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("a batch norm without running statistics has no fixed affine map")
    return norm.running_mean, norm.running_var
