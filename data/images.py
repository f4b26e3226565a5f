"""What a dataset is: images and labels for training and for testing, and how the pixels are normalized."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from data.decoding import Preprocessing
from data.imagenet_names import readable
from utils.errors import UserError

WORKERS = 2


@dataclass(frozen=True)
class Files:
    """Images on disk, decoded a batch at a time: their paths, labels int64 [N], and what is made of each.

    workers: threads that decode them. on_error: an unreadable image is named, and "fail" ends the run, "skip"
    continues without it. whole: random crops are cut out of the files as they are, not of the squares.
    """

    paths: Sequence[Path]
    labels: Tensor
    preprocessing: Preprocessing
    workers: int = WORKERS
    on_error: str = "fail"
    whole: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "Files":
        return replace(self, paths=[self.paths[i] for i in index.tolist()], labels=self.labels[index])


@dataclass(frozen=True)
class Images:
    """Images in memory: pixels uint8 [N, H, W, C], labels int64 [N]. source: the files that they were decoded from."""

    pixels: Tensor
    labels: Tensor
    source: Files | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "Images":
        return Images(self.pixels[index], self.labels[index], self.source and self.source.take(index))


@dataclass(frozen=True)
class Dataset:
    """train, val and test images (None: not there); mean and std of each channel, of pixels in [0, 1]."""

    train: Images | Files | None
    test: Images | Files
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    val: Images | Files | None = field(default=None)

    @property
    def names(self) -> list[str]:
        """The classes as they are shown: of ImageNet's ids, their names."""
        return readable(self.classes)

    @property
    def training(self) -> Images | Files:
        """The training images. Raises ValueError for a dataset that was loaded to be measured on."""
        if self.train is None:
            raise ValueError("the dataset was loaded without its training images")
        return self.train


def statistics(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation a channel of uint8 pixels [N, H, W, C], on the scale [0, 1]."""
    sample = pixels[:: max(1, len(pixels) // 5000)].double() / 255
    std = sample.std(dim=(0, 1, 2)).clamp(min=1e-3)
    return tuple(sample.mean(dim=(0, 1, 2)).tolist()), tuple(std.tolist())


def in_grey(dataset: Dataset) -> Dataset:
    """The same of one channel, 0.299 R + 0.587 G + 0.114 B (as Pillow rounds it), normalized by the averages of three.

    Images in files are left as they are.
    """
    train, val = (images and _in_grey(images) for images in (dataset.train, dataset.val))
    mean, std = (sum(dataset.mean) / 3,), (sum(dataset.std) / 3,)
    return replace(dataset, train=train, val=val, test=_in_grey(dataset.test), mean=mean, std=std)


def _in_grey(images: Images | Files) -> Images | Files:
    if isinstance(images, Files):
        return images
    red, green, blue = images.pixels.int().unbind(-1)
    grey = (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16
    return replace(images, pixels=grey.to(torch.uint8)[..., None])


def check_normalization(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> None:
    """Raise UserError unless mean and std, as far as they are given, have a number for each channel."""
    for key, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != channels:
            raise UserError(f"data.{key}: {len(values)} numbers for images of {channels} channel(s)")


def renormalized(here: tuple, there: tuple) -> tuple[Tensor, Tensor]:
    """(gain, shift), fp32 [C, 1, 1], from images normalized by (mean, std) `here` to the same images as `there`."""
    (mean, std), (other_mean, other_std) = (map(torch.tensor, pair) for pair in (here, there))
    return (std / other_std).view(-1, 1, 1), ((mean - other_mean) / other_std).view(-1, 1, 1)


def first(images, limit: int | None, after: int = 0):
    """`limit` images of a fixed shuffle, without the first `after` of it; without a limit, all images in order."""
    if not after and (limit is None or limit >= len(images)):
        return images
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[after:]
    return images.take(order[:limit])


def split(dataset: Dataset, fraction: float | None) -> Dataset:
    """Hold out a fixed random share of the training images as the validation set; None holds out none.

    Raises UserError if the dataset has validation images of its own.
    """
    if not fraction:
        return dataset
    if dataset.val is not None:
        raise UserError("data.val_fraction: the dataset has validation images of its own (val/): leave it at 0")
    images = dataset.training
    held = max(1, round(len(images) * fraction))
    if held >= len(images):
        raise UserError(f"data.val_fraction: {fraction} of {len(images)} images leaves none to train on")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    return replace(dataset, train=images.take(order[held:]), val=images.take(order[:held]))


def check_classes(found: list[str], trained: list[str]) -> None:
    """Raise UserError unless a dataset has the classes a model was trained on, in their order."""
    if readable(list(found)) != readable(list(trained)):
        raise UserError(
            f"data: {len(found)} classes ({', '.join(found[:3])}, ...) where the checkpoint was trained on "
            f"{len(trained)} ({', '.join(trained[:3])}, ...)"
        )
