"""ResNets: of the CIFAR-10 experiments of He et al. (arXiv 1512.03385, section 4.2), of MLPerf Tiny, and torchvision's.

| name     | layers | parameters (10 classes) |
| resnet20 | 20     | 269,722                 |
| resnet32 | 32     | 464,154                 |
| resnet44 | 44     | 658,586                 |
| resnet56 | 56     | 853,018                 |
| resnet8  | 8      | 77,946                  |

resnet8 is that of MLPerf Tiny's image classification (arXiv 2106.07597), whose shortcuts are 1 x 1 convolutions without
batch norm. Differs from it: convolutions before a batch norm have no bias, which the norm would take out again, and
strided ones pad both sides, where TensorFlow pads one.

The cifar form of torchvision's models starts with a 3 x 3 convolution of stride 1 and has no max-pool.

| name             | parameters: imagenet form, 1000 classes | cifar form, 10 classes |
| resnet18         |                              11,689,512 |             11,173,962 |
| resnet34         |                              21,797,672 |             21,282,122 |
| resnet50         |                              25,557,032 |             23,520,842 |
| resnext101_32x8d |                              88,791,336 |             86,755,146 |
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters (option A: subsample, and pad with zero channels)."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.stride, self.extra = stride, c_out - c_in

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.skipped(x))

    def skipped(self, x: Tensor) -> Tensor:
        """What is added to the second convolution."""
        if not self.extra:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.extra // 2, self.extra // 2))


class CifarResNet(nn.Module):
    """Three stages of n blocks with 16, 32 and 64 channels: 6 n + 2 layers. Input [N, 3, H, W], meant for 32 x 32."""

    def __init__(self, n: int, num_classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [(16, 16, 1), (16, 32, 2), (32, 64, 2)]
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(Block(a, b, stride), *(Block(b, b, 1) for _ in range(n - 1))) for a, b, stride in widths
        )
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class TinyBlock(Block):
    """With the input as the shortcut, or a 1 x 1 convolution of it where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__(c_in, c_out, stride)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride) if self.extra else nn.Identity()

    def skipped(self, x: Tensor) -> Tensor:
        return self.shortcut(x)


class TinyResNet(nn.Sequential):
    """A convolution and three blocks with 16, 32 and 64 channels. Input [N, 3, H, W], meant for 32 x 32."""

    def __init__(self, num_classes: int):
        first = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        blocks = TinyBlock(16, 16, 1), TinyBlock(16, 32, 2), TinyBlock(32, 64, 2)
        super().__init__(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet8(num_classes: int, form: str) -> nn.Module:
    return TinyResNet(num_classes)


def resnet20(num_classes: int, form: str) -> nn.Module:
    return CifarResNet(3, num_classes)


def resnet32(num_classes: int, form: str) -> nn.Module:
    return CifarResNet(5, num_classes)


def resnet44(num_classes: int, form: str) -> nn.Module:
    return CifarResNet(7, num_classes)


def resnet56(num_classes: int, form: str) -> nn.Module:
    return CifarResNet(9, num_classes)


def resnet18(num_classes: int, form: str) -> nn.Module:
    return _torchvision("resnet18", num_classes, form)


def resnet34(num_classes: int, form: str) -> nn.Module:
    return _torchvision("resnet34", num_classes, form)


def resnet50(num_classes: int, form: str) -> nn.Module:
    return _torchvision("resnet50", num_classes, form)


def resnext101_32x8d(num_classes: int, form: str) -> nn.Module:
    """arXiv 1611.05431: like resnet101, with 32 groups in the 3 x 3 convolutions, of 8 channels in the first stage."""
    return _torchvision("resnext101_32x8d", num_classes, form)


def _torchvision(name: str, num_classes: int, form: str) -> nn.Module:
    from torchvision import models  # imported here because it takes seconds

    model = models.get_model(name, num_classes=num_classes)
    if form == "cifar":
        model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model
