"""Nets that tests name as model factories: package.module:function."""

from torch import Tensor, nn


def plain(num_classes: int) -> nn.Module:
    """Three convolutions and a linear layer, without batch norm and dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, num_classes),
    )


class Residual(nn.Module):
    """A stem, a residual block, and a depthwise and a pointwise convolution with a linear end, all with batch norms."""

    def __init__(self, num_classes: int):
        super().__init__()
        self.stem = normed(3, 16, 3, stride=2)
        self.first, self.second = normed(16, 24, 3), nn.Sequential(*list(normed(24, 16, 3))[:2])
        self.relu = nn.ReLU()
        self.depthwise, self.point = normed(16, 16, 3, groups=16, stride=2), normed(16, 32, 1)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.relu(self.second(self.first(x)) + x)
        return self.head(self.point(self.depthwise(x)))


def normed(c_in: int, c_out: int, kernel: int, **options) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(c_out), nn.ReLU())
