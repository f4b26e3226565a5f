"""AlexNet as in arXiv 1404.5997: torchvision's definition, and a form for small images."""

from torch import nn


def alexnet(num_classes: int, form: str) -> nn.Module:
    """torchvision's model, with its dropout of 0.5; 61,100,840 parameters for 1000 classes.

    The cifar form starts with a 3 x 3 convolution of stride 1 and has no first max-pool. For 32 x 32 images, its last
    feature map is 7 x 7 and is pooled to 6 x 6 in overlapping windows, as the unchanged linear layers require. They
    have 54.6 of the 57.0 M parameters.
    """
    from torchvision.models import alexnet as torchvision_alexnet  # imported here because it takes seconds

    model = torchvision_alexnet(num_classes=num_classes)
    if form == "cifar":
        model.features[0] = nn.Conv2d(3, 64, 3, 1, 1)
        model.features[2] = nn.Identity()
    return model
