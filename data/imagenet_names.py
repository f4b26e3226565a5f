"""What ImageNet-1K's classes are called. Their folders, and so a checkpoint's classes, are WordNet ids: n01440764."""

import hashlib

IDS = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
"""SHA-256 of the 1,000 ids of ILSVRC2012 in their order, a line each."""


def readable(classes: list[str]) -> list[str]:
    """The names by which torchvision calls the classes (tench), if they are ImageNet-1K's ids; else as they are."""
    known = len(classes) == 1000 and hashlib.sha256("\n".join(classes).encode()).hexdigest() == IDS
    return imagenet_names() if known else classes


def imagenet_names() -> list[str]:
    """In the order in which published weights have them."""
    from torchvision.models import ResNet18_Weights  # here: seconds to import

    return list(ResNet18_Weights.DEFAULT.meta["categories"])
