"""Nets that tests name as model factories: package.module:function."""

import torch
import torch.nn.functional as F
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


class ReluHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x):
        return F.relu(self.conv(x)).mean([2, 3])


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.relu, self.fc = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 1),
            nn.ReLU(inplace=True),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        y = self.a(x)
        z = self.b(self.relu(y))
        return self.fc((z + y).mean([2, 3]))


class Tokens(nn.Module):
    """A batch norm behind a linear layer, over tokens and not over its outputs."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(12, 12), nn.BatchNorm1d(12), nn.Linear(12, 4)
        with torch.no_grad():
            self.norm.weight.uniform_(0.5, 2)
            self.norm.running_mean.normal_()

    def forward(self, x):
        return self.b(self.norm(self.a(x[:, 0])))[:, 0]


class Dense(nn.Module):
    """Batch norm and ReLU behind a concatenation; view, max with indices, sums of sizes, keyword arguments."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        y = self.a((x - 0.1) / 0.9)
        y = self.b(F.relu(self.norm(torch.cat([y, torch.sigmoid(y)], 1))))
        y = y.view(y.size(0), y.size(1) + 0 * y.size(2), -1).max(2)[0]
        return self.fc(torch.flatten(input=y, start_dim=1))


class PreActivation(nn.Module):
    """The block of a pre-activation net, whose shortcut is an Identity of what a ReLU overwrites."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Linear(8, 3)
        self.short, self.relu = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.stem(x)
        short = self.short(y)
        return self.fc((self.conv(self.relu(y)) + short).mean([2, 3]))


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm has it."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU()
        nn.init.normal_(self.bias)

    def forward(self, x):
        return self.act(self.drop(super().forward(x)))


class NormTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), BatchNormAct2d(8)
        self.c = nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.c(torch.cat(dim=1, tensors=[self.norm(self.a(x)) - self.norm(self.b(x))])).mean([2, 3])


class SharedFunctions(nn.Module):
    """One activation and one pool, called again and again."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.act, self.pool = nn.SiLU(), nn.AvgPool2d(2)

    def forward(self, x):
        y = self.pool(self.act(self.a(x)))
        return self.c(self.pool(self.act(self.b(y)))).mean([2, 3])


class Hooked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)
        self.b.register_forward_hook(double)

    def forward(self, x):
        return self.c(self.b(self.a(x))).mean([2, 3])


def double(layer: nn.Module, given: tuple, found: torch.Tensor) -> torch.Tensor:
    return 2 * found


class PooledFirst(nn.Module):
    """A pool between each convolution and its ReLU; one value that is read with and without one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        y = F.max_pool2d(self.a(x), 2)
        z = F.relu(torch.cat([F.max_pool2d(self.b(F.relu(y)), 2)], 1))
        return self.c(z).flatten(1)


class Gated(nn.Module):
    """Squeeze and excitation with a hard-sigmoid, hard-swish, and a chain of concatenations."""

    def __init__(self):
        super().__init__()
        self.stem, self.squeeze, self.excite = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.norm, self.gate = nn.BatchNorm2d(8), nn.Hardsigmoid()
        self.left, self.right, self.last = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(10, 5, 1)
        self.fc = nn.Linear(23, 3)

    def forward(self, x):
        x = F.hardswish(self.norm(self.stem(x)))
        x = x * self.gate(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = torch.cat([F.relu(self.left(x)), F.max_pool2d(F.relu(self.right(x)), 3, 1, 1)], 1)
        x = torch.cat([x, F.relu(self.last(x)), F.avg_pool2d(x[:, :8], 3, 1, 1)], 1)
        return self.fc(x.mean((2, 3)))


class Meeting(nn.Module):
    """Two values meet, one of which is ten times the other."""

    def __init__(self, axis: dict):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Linear(8, 3)
        self.axis = axis

    def forward(self, x):
        return self.fc(torch.cat([self.a(x), 10 * self.b(x)], **self.axis).mean((2, 3)))
