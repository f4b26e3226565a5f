"""Datasets. A new one is a function in data/sources.py (or data/folders.py) and a row here."""

from data.batches import Draw, batches, check_training, evaluation_batch, evaluation_side
from data.folders import imagefolder, imagenet
from data.images import Dataset, Files, Images, check_classes, first, renormalized, split
from data.sources import cifar10, cifar100, digits, fake, fashion_mnist, svhn

DATASETS = {
    "digits": digits,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
    "fashion_mnist": fashion_mnist,
    "imagenet": imagenet,
    "imagefolder": imagefolder,
    "fake": fake,
}

__all__ = ["DATASETS", "Dataset", "Draw", "Files", "Images", "batches", "check_classes", "check_training"]
__all__ += ["evaluation_batch", "evaluation_side", "first", "renormalized", "split"]
