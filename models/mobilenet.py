"""MobileNetV2 (arXiv 1801.04381): torchvision's definition, and one with projected shortcuts for small images."""

import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS = {"relu6": nn.ReLU6, "relu": nn.ReLU}

# expansion t, channels c, blocks n, stride s of each stage
IMAGENET = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
PROJECTED = [(1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
CIFAR = [(t, c, n, 2 if c == 160 else 1) for t, c, n, s in IMAGENET]


def mobilenet_v2(num_classes: int, form: str, activation: str = "relu6") -> nn.Module:
    """torchvision's model. activation: relu6 (the paper's) or relu.

    The cifar form keeps the stem's stride of 2 and only one other. For 32 x 32 images, its last feature map is 8 x 8
    and it has 252 M MACs. The imagenet form ends at 1 x 1 for such images and has 6.1 M MACs.
    """
    from torchvision.models import mobilenet_v2 as torchvision_mobilenet_v2  # imported here because it takes seconds

    stages = CIFAR if form == "cifar" else IMAGENET
    model = torchvision_mobilenet_v2(num_classes=num_classes, inverted_residual_setting=[list(s) for s in stages])
    replace_activations(model, nn.ReLU6, ACTIVATIONS[activation])
    return model


def replace_activations(model: nn.Module, old: type[nn.Module], new: type[nn.Module]) -> None:
    """Replace all activations of class `old` in a model by new(inplace=True). Changes the model itself."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, old):
                setattr(parent, name, new(inplace=True))


class ProjectedResidual(nn.Module):
    """Expansion, depthwise and projection convolution.

    With stride 1 also a shortcut, with a convolution if widths differ.
    """

    def __init__(self, c_in: int, c_out: int, expansion: int, stride: int):
        super().__init__()
        hidden = c_in * expansion
        self.conv = nn.Sequential(
            *conv_bn(c_in, hidden, 1),
            nn.ReLU6(inplace=True),
            *conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(inplace=True),
            *conv_bn(hidden, c_out, 1),
        )
        self.residual = stride == 1
        self.shortcut = nn.Sequential(*conv_bn(c_in, c_out, 1)) if stride == 1 and c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(x)
        return out + self.shortcut(x) if self.residual else out


class ProjectedMobileNetV2(nn.Module):
    """See mobilenet_v2_projected."""

    def __init__(self, num_classes: int):
        super().__init__()
        layers, c_in = [*conv_bn(3, 32, 3), nn.ReLU6(inplace=True)], 32
        for t, c, n, s in PROJECTED:
            for i in range(n):
                layers.append(ProjectedResidual(c_in, c, t, s if i == 0 else 1))
                c_in = c
        self.features = nn.Sequential(*layers, *conv_bn(c_in, 1280, 1), nn.ReLU6(inplace=True))
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


def conv_bn(c_in: int, c_out: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the size at stride 1, and a batch norm."""
    return [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(c_out)]


def mobilenet_v2_projected(num_classes: int, form: str) -> nn.Module:
    """The MobileNetV2 of many CIFAR-10 repositories: 2,296,922 parameters, 57 convolutions.

    For 32 x 32 images, its last feature map is 4 x 4. Differs from the paper: blocks of expansion 1 have an expansion
    convolution, too; blocks that only change the width have a shortcut with a projection; strides fit small images;
    there is no dropout.
    """
    return ProjectedMobileNetV2(num_classes)
