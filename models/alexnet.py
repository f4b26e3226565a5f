"""AlexNet in the form of arXiv 1404.5997: torchvision's definition, and the same for small images."""

from torch import nn


def alexnet(num_classes: int, form: str) -> nn.Module:
    """torchvision's, with its dropout of 0.5; 61,100,840 parameters for 1000 classes.

    The cifar form starts with a 3 x 3 convolution of stride 1 and has no first max-pool. Its 7 x 7 map at 32 x 32 is
    pooled to 6 x 6, in windows that overlap, so that the linear layers stay as they are: 54.6 of its 57.0 M parameters.
    """
    from torchvision.models import alexnet as torchvision_alexnet  # here: seconds to import

    model = torchvision_alexnet(num_classes=num_classes)
    if form == "cifar":
        model.features[0] = nn.Conv2d(3, 64, 3, 1, 1)
        model.features[2] = nn.Identity()
    return model
