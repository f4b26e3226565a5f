"""MobileNetV2 (arXiv 1801.04381), torchvision's definition."""

from torch import nn

ACTIVATIONS = {"relu6": nn.ReLU6, "relu": nn.ReLU}

# expansion t, channels c, blocks n, stride s of each stage
IMAGENET = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
CIFAR = [(t, c, n, 2 if c == 160 else 1) for t, c, n, s in IMAGENET]


def mobilenet_v2(num_classes: int, form: str, activation: str = "relu6") -> nn.Module:
    """The cifar form keeps the stem's stride of 2 and only one other: a map of 8 x 8 at the end and 252 M MACs.

    The imagenet form at 32 x 32 ends at 1 x 1 and has 6.1 M MACs. `activation`: relu6 (the paper's) or relu.
    """
    from torchvision.models import mobilenet_v2 as torchvision_mobilenet_v2  # here: seconds to import

    stages = CIFAR if form == "cifar" else IMAGENET
    model = torchvision_mobilenet_v2(num_classes=num_classes, inverted_residual_setting=[list(s) for s in stages])
    kind = ACTIVATIONS[activation]
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(parent, name, kind(inplace=True))
    return model
