"""ShuffleNetV2 (arXiv 1807.11164): torchvision's definition, and a form for small images.

The cifar form starts with a 3 x 3 convolution of stride 1 and has no max-pool. The last feature map of a 32 x 32 image
is 4 x 4 (imagenet form: 1 x 1). The paper has no such form.

| MACs at | 224, imagenet form | 32, cifar form | parameters, 1000 classes |
| x0_5    |             40.5 M |         10.9 M |                1,366,792 |
| x1_0    |            144.9 M |         45.0 M |                2,278,604 |
| x1_5    |            295.8 M |         94.3 M |                3,503,624 |
| x2_0    |            583.2 M |        187.8 M |                7,393,996 |
"""

from torch import nn


def shufflenet_v2_x0_5(num_classes: int, form: str) -> nn.Module:
    return _shufflenet("shufflenet_v2_x0_5", num_classes, form)


def shufflenet_v2_x1_0(num_classes: int, form: str) -> nn.Module:
    return _shufflenet("shufflenet_v2_x1_0", num_classes, form)


def shufflenet_v2_x1_5(num_classes: int, form: str) -> nn.Module:
    return _shufflenet("shufflenet_v2_x1_5", num_classes, form)


def shufflenet_v2_x2_0(num_classes: int, form: str) -> nn.Module:
    return _shufflenet("shufflenet_v2_x2_0", num_classes, form)


def _shufflenet(name: str, num_classes: int, form: str) -> nn.Module:
    from torchvision import models  # imported here because it takes seconds

    model = models.get_model(name, num_classes=num_classes)
    if form == "cifar":
        model.conv1[0] = nn.Conv2d(3, model.conv1[0].out_channels, 3, 1, 1, bias=False)
        model.maxpool = nn.Identity()
    return model
