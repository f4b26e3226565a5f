"""MobileNetV3 (arXiv 1905.02244). `variant`: "torchvision", or "reference" of StatAssist-GradBoost (clovaai).

In the cifar form, the first block with stride 2 has stride 1. The last feature map of a 32 x 32 image is 2 x 2
(imagenet form: 1 x 1). The _relu models use ReLU instead of hard-swish up to the last feature map. The hard-sigmoid of
squeeze and excitation and the hard-swish of the head stay.

The reference differs from torchvision's model in these points:

- every block has an expansion convolution, even if it does not change the width;
- squeeze and excitation (SE) stands between the depthwise batch norm and its activation, has no biases, and reduces to
  exactly a quarter of the width (torchvision rounds that to a multiple of 8);
- dropout of 0.8 on the last feature map (torchvision: 0.2 in the head);
- one more SE in the head of the small model;
- batch norm with torch's defaults: eps 1e-5, momentum 0.1 (torchvision: 1e-3, 0.01).

Here, SE has 1 x 1 convolutions instead of linear layers: the same parameters and arithmetic, without reshapes.

| parameters | torchvision, 1000 classes | reference, 1000 classes | reference, cifar form, 10 classes |
| large      |                 5,483,032 |               5,476,416 |                         4,208,226 |
| small      |                 2,542,856 |               2,700,544 |                         1,685,794 |
"""

from typing import NamedTuple

from torch import Tensor, nn

from models.mobilenet import conv_bn, replace_activations

HS, RE = nn.Hardswish, nn.ReLU


class Block(NamedTuple):
    """An inverted residual: kernel size and channels of the depthwise convolution, output channels, and so on."""

    kernel: int
    expanded: int
    channels: int
    se: bool
    activation: type[nn.Module]
    stride: int


class Net(NamedTuple):
    """The size of a model."""

    blocks: list[Block]
    hidden: int
    """The width of the hidden layer in the head."""
    head_se: bool
    """Whether the reference has SE in its head."""


LARGE_BLOCKS = [
    Block(3, 16, 16, False, RE, 1),
    Block(3, 64, 24, False, RE, 2),
    Block(3, 72, 24, False, RE, 1),
    Block(5, 72, 40, True, RE, 2),
    Block(5, 120, 40, True, RE, 1),
    Block(5, 120, 40, True, RE, 1),
    Block(3, 240, 80, False, HS, 2),
    Block(3, 200, 80, False, HS, 1),
    Block(3, 184, 80, False, HS, 1),
    Block(3, 184, 80, False, HS, 1),
    Block(3, 480, 112, True, HS, 1),
    Block(3, 672, 112, True, HS, 1),
    Block(5, 672, 160, True, HS, 2),
    Block(5, 960, 160, True, HS, 1),
    Block(5, 960, 160, True, HS, 1),
]
SMALL_BLOCKS = [
    Block(3, 16, 16, True, RE, 2),
    Block(3, 72, 24, False, RE, 2),
    Block(3, 88, 24, False, RE, 1),
    Block(5, 96, 40, True, HS, 2),
    Block(5, 240, 40, True, HS, 1),
    Block(5, 240, 40, True, HS, 1),
    Block(5, 120, 48, True, HS, 1),
    Block(5, 144, 48, True, HS, 1),
    Block(5, 288, 96, True, HS, 2),
    Block(5, 576, 96, True, HS, 1),
    Block(5, 576, 96, True, HS, 1),
]
LARGE, SMALL = Net(LARGE_BLOCKS, 1280, False), Net(SMALL_BLOCKS, 1024, True)
STEM = 16


def mobilenet_v3_large(num_classes: int, form: str, variant: str = "torchvision") -> nn.Module:
    return VARIANTS[variant](_in_form(LARGE, form), num_classes)


def mobilenet_v3_small(num_classes: int, form: str, variant: str = "torchvision") -> nn.Module:
    return VARIANTS[variant](_in_form(SMALL, form), num_classes)


def mobilenet_v3_large_relu(num_classes: int, form: str, variant: str = "torchvision") -> nn.Module:
    return _with_relu(mobilenet_v3_large(num_classes, form, variant))


def mobilenet_v3_small_relu(num_classes: int, form: str, variant: str = "torchvision") -> nn.Module:
    return _with_relu(mobilenet_v3_small(num_classes, form, variant))


def _in_form(net: Net, form: str) -> Net:
    """The network for a form of images. For small ones (cifar) the first block of stride 2 has stride 1."""
    blocks = list(net.blocks)
    if form == "cifar":
        first = next(i for i, block in enumerate(blocks) if block.stride == 2)
        blocks[first] = blocks[first]._replace(stride=1)
    return net._replace(blocks=blocks)


def _with_relu(model: nn.Module) -> nn.Module:
    """The model with ReLU instead of hard-swish, in place."""
    replace_activations(model.get_submodule("features"), nn.Hardswish, nn.ReLU)
    return model


def _torchvision(net: Net, num_classes: int) -> nn.Module:
    from torchvision.models.mobilenetv3 import (  # imported here because it takes seconds
        InvertedResidualConfig,
        MobileNetV3,
    )

    rows, c_in = [], STEM
    for kernel, expanded, channels, se, activation, stride in net.blocks:
        name = "HS" if activation is HS else "RE"
        rows.append(InvertedResidualConfig(c_in, kernel, expanded, channels, se, name, stride, 1, 1.0))
        c_in = channels
    return MobileNetV3(rows, net.hidden, num_classes)


class SqueezeExcite(nn.Module):
    """Multiply each channel by a factor in [0, 1] that is computed from the means of all channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.factor = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 4, 1, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // 4, channels, 1, bias=False),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor(x)


class Bottleneck(nn.Module):
    """Expansion, depthwise and projection convolution, with a shortcut if input and output have the same shape."""

    def __init__(self, c_in: int, block: Block):
        super().__init__()
        kernel, expanded, channels, se, activation, stride = block
        self.conv = nn.Sequential(
            *conv_bn(c_in, expanded, 1),
            activation(inplace=True),
            *conv_bn(expanded, expanded, kernel, stride, groups=expanded),
            *([SqueezeExcite(expanded)] if se else []),
            activation(inplace=True),
            *conv_bn(expanded, channels, 1),
        )
        self.residual = stride == 1 and c_in == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class ReferenceMobileNetV3(nn.Module):
    """The variant "reference"; see the top of the file."""

    def __init__(self, net: Net, num_classes: int):
        super().__init__()
        layers, c_in = [*conv_bn(3, STEM, 3, 2), HS(inplace=True)], STEM
        for block in net.blocks:
            layers.append(Bottleneck(c_in, block))
            c_in = block.channels
        last = 6 * c_in
        self.features = nn.Sequential(*layers, *conv_bn(c_in, last, 1), HS(inplace=True))
        self.dropout = nn.Dropout(0.8)
        self.squeeze = SqueezeExcite(last) if net.head_se else nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(
            nn.Conv2d(last, net.hidden, 1),
            HS(inplace=True),
            nn.Conv2d(net.hidden, num_classes, 1),
        )
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(self.dropout(self.features(x)))
        return self.head(self.pool(x)).flatten(1)


def _initialise(module: nn.Module) -> None:
    """Initialise as the reference does, where the layers of SE are linear layers.

    nn.Module.apply visits children before parents, so SE overrides the initialisation of its convolutions.
    """
    if isinstance(module, SqueezeExcite):
        for layer in module.factor:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0, 0.01)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


VARIANTS = {"torchvision": _torchvision, "reference": ReferenceMobileNetV3}
