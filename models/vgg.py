"""VGG (arXiv 1409.1556): torchvision's definition. The cifar and the imagenet form are the same model.

The last feature map of a 32 x 32 image is 1 x 1. The pool before the linear layers repeats it to 7 x 7, so the 119.6 M
parameters of the linear layers, most of the model, read the same 512 values 49 times.

`variant`: "torchvision", whose convolutions have biases; or "reference", the models of StatAssist-GradBoost (clovaai),
whose convolutions have none, with or without batch norm. torchvision's weight files therefore do not fit the reference.

| 1000 classes        | torchvision | reference   |
| vgg11               | 132,863,336 | 132,860,584 |
| vgg13               | 133,047,848 | 133,044,904 |
| vgg16               | 138,357,544 | 138,353,320 |
| vgg19               | 143,667,240 | 143,661,736 |
| with _bn, more: 11, 13, 16, 19: 5,504, 5,888, 8,448, 11,008 |
"""

from torch import nn


def vgg11(num_classes: int, form: str, variant: str = "torchvision") -> nn.Module:
    return _vgg("vgg11", num_classes, variant)


def vgg13(num_classes: int, form: str, variant: str = "torchvision") -> nn.Module:
    return _vgg("vgg13", num_classes, variant)


def vgg16(num_classes: int, form: str, variant: str = "torchvision") -> nn.Module:
    return _vgg("vgg16", num_classes, variant)


def vgg19(num_classes: int, form: str, variant: str = "torchvision") -> nn.Module:
    return _vgg("vgg19", num_classes, variant)


def vgg11_bn(num_classes: int, form: str, variant: str = "torchvision") -> nn.Module:
    return _vgg("vgg11_bn", num_classes, variant)


def vgg13_bn(num_classes: int, form: str, variant: str = "torchvision") -> nn.Module:
    return _vgg("vgg13_bn", num_classes, variant)


def vgg16_bn(num_classes: int, form: str, variant: str = "torchvision") -> nn.Module:
    return _vgg("vgg16_bn", num_classes, variant)


def vgg19_bn(num_classes: int, form: str, variant: str = "torchvision") -> nn.Module:
    return _vgg("vgg19_bn", num_classes, variant)


def _vgg(name: str, num_classes: int, variant: str) -> nn.Module:
    from torchvision import models  # imported here because it takes seconds

    model = models.get_model(name, num_classes=num_classes)
    if variant == "reference":
        for layer in model.features:
            if isinstance(layer, nn.Conv2d):
                layer.bias = None
    return model
