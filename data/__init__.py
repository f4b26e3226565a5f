"""Datasets. A new one is a function in data/sources.py and a row here."""

from data.batches import batches, evaluation_batch
from data.images import Dataset, Files, Images, check_classes, first, split
from data.sources import cifar10, digits, fake, imagefolder

DATASETS = {
    "digits": digits,
    "cifar10": cifar10,
    "imagefolder": imagefolder,
    "fake": fake,
}

__all__ = ["DATASETS", "Dataset", "Files", "Images", "batches", "check_classes", "evaluation_batch", "first", "split"]
