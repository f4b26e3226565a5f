"""Datasets in memory, and what a loader is.

A loader takes (image_size, limit, train, **the dataset's own options) and returns a Dataset. limit: take only
this many images, the first of a fixed shuffle; None: all. train=False does not load the training images, since the test
images suffice for measuring. Those that download their files do not if download=False: then they only read.
"""

import contextlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from data import idx
from data.images import Dataset, Images, first, statistics
from utils.errors import UserError, first_line
from utils.sections import PathText, Section

ROOT = "datasets"


class NoOptions(Section):
    """A dataset that needs no files."""


class Root(Section):
    root: PathText = ROOT
    """Folder of the dataset's files, and where they are downloaded to."""


def digits(image_size: int, limit: int | None, train: bool = True) -> Dataset:
    """1,797 real handwritten digits of 8 x 8 (scikit-learn's, no file needed): 1,437 to train, 360 to test."""
    from sklearn.datasets import load_digits  # here: seconds to import, and only this needs it

    table = load_digits()
    grey = torch.from_numpy(table.images / 16).float()[:, None]
    pixels = _grey_to_pixels(F.interpolate(grey, size=(image_size, image_size), mode="bilinear"))
    every = Images(pixels, torch.from_numpy(table.target).long())
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    training, test = first(every.take(order[360:]), limit), first(every.take(order[:360]), limit)
    mean, std = statistics(training.pixels)
    return Dataset(training if train else None, test, [str(i) for i in range(10)], mean, std, flip=False)


def fake(image_size: int, limit: int | None, train: bool = True) -> Dataset:
    """Seeded noise over a colour and a brightness gradient per class: learnable, for trials and tests."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(10, 1, 1, 3, generator=generator)
    ramp = torch.linspace(-1, 1, image_size)
    slopes = torch.randn(10, 2, generator=generator)
    planes = (slopes[:, 0, None, None] * ramp[:, None] + slopes[:, 1, None, None] * ramp)[..., None]

    def draw(n: int) -> Images:
        labels = torch.randint(0, 10, (n,), generator=generator)
        noise = torch.randn(n, image_size, image_size, 3, generator=generator)
        values = 0.6 * colours[labels] + 0.2 + 0.1 * planes[labels] + 0.1 * noise
        return Images((values * 255).clamp(0, 255).to(torch.uint8), labels)

    training, test = draw(min(limit or 2048, 2048)), draw(min(limit or 512, 512))
    classes = [f"class{i}" for i in range(10)]
    return Dataset(training if train else None, test, classes, (0.5,) * 3, (0.25,) * 3, flip=True)


def cifar10(image_size: int, limit: int | None, train: bool = True, root: str = ROOT, download: bool = True) -> Dataset:
    """CIFAR-10: 50,000 and 10,000 images of 32 x 32."""
    from torchvision.datasets import CIFAR10  # here: seconds to import, and only this needs it

    parts = _torchvision_parts(CIFAR10, train, root, download, "CIFAR-10", f"put cifar-10-python.tar.gz into {root}")
    images = [_images(part.data, part.targets, image_size, limit) for part in parts]
    return _dataset(images, train, parts[0].classes, (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616), flip=True)


def cifar100(
    image_size: int, limit: int | None, train: bool = True, root: str = ROOT, download: bool = True
) -> Dataset:
    """CIFAR-100: as CIFAR-10, with 100 classes."""
    from torchvision.datasets import CIFAR100

    parts = _torchvision_parts(CIFAR100, train, root, download, "CIFAR-100", f"put cifar-100-python.tar.gz into {root}")
    images = [_images(part.data, part.targets, image_size, limit) for part in parts]
    return _dataset(images, train, parts[0].classes, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), flip=True)


def svhn(image_size: int, limit: int | None, train: bool = True, root: str = ROOT, download: bool = True) -> Dataset:
    """Street View House Numbers, cropped: 73,257 and 26,032 digits of 32 x 32. Not mirrored: digits are not."""
    from torchvision.datasets import SVHN

    def load(root: str, train: bool, download: bool) -> SVHN:
        return SVHN(root, split="train" if train else "test", download=download)

    parts = _torchvision_parts(
        load, train, root, download, "SVHN", f"put train_32x32.mat and test_32x32.mat into {root}"
    )
    images = [_images(part.data.transpose(0, 2, 3, 1), part.labels, image_size, limit) for part in parts]
    classes = [str(i) for i in range(10)]
    return _dataset(images, train, classes, (0.4377, 0.4438, 0.4728), (0.198, 0.201, 0.197), flip=False)


def fashion_mnist(
    image_size: int, limit: int | None, train: bool = True, root: str = ROOT, download: bool = True
) -> Dataset:
    """Fashion-MNIST: 60,000 and 10,000 grey images of 28 x 28, shown to the model as RGB.

    Its four files are read where they lie in `root`, packed or not, as Debian's dataset-fashion-mnist has them.
    """
    from torchvision.datasets import FashionMNIST

    cure = f"put train- and t10k-images-idx3-ubyte.gz and -labels-idx1-ubyte.gz into {root}"
    parts = idx.parts(Path(root), train) or [
        (part.data, part.targets)
        for part in _torchvision_parts(FashionMNIST, train, root, download, "Fashion-MNIST", cure)
    ]
    images = [_images(grey[..., None].expand(-1, -1, -1, 3), labels, image_size, limit) for grey, labels in parts]
    return _dataset(images, train, FashionMNIST.classes, (0.286,) * 3, (0.353,) * 3, flip=True)


def _torchvision_parts(load: Callable, train: bool, root: str, download: bool, name: str, cure: str) -> list[Any]:
    """torchvision's dataset, training part (if asked for) and test part: found in `root`, else downloaded into it."""
    made = _missing(Path(root))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return [load(root=root, train=part, download=download) for part in ([True] if train else []) + [False]]
    except (RuntimeError, OSError, EOFError) as error:
        _remove_empty_folders(made())
        reason = first_line(error)
        if not download:
            asked = "which only the checkpoint names, so that nothing is written there; set data.root yourself"
            raise UserError(f"data.root: {name} is not in {root}, {asked}") from None
        raise UserError(f"data.root: {name} is not in {root} and could not be downloaded ({reason}); {cure}") from None


def _missing(root: Path) -> Callable[[], list[Path]]:
    """A function that returns what has been made in `root`, or the first folder above it that was made."""
    if root.is_dir():
        before = {*root.iterdir()}
        return lambda: [path for path in root.iterdir() if path not in before]
    first = [folder for folder in (root, *root.parents) if not folder.exists()][-1]
    return lambda: [first]


def _remove_empty_folders(made: list[Path]) -> None:
    """Remove what a download that failed has made and left empty."""
    for folder, _, _ in [found for path in made for found in os.walk(path, topdown=False)]:
        with contextlib.suppress(OSError):  # it is not empty
            os.rmdir(folder)


def _dataset(images: list[Images], train: bool, classes: list[str], mean, std, flip: bool) -> Dataset:
    return Dataset(images[0] if train else None, images[-1], list(classes), mean, std, flip)


def _images(pixels: Any, labels: Any, image_size: int, limit: int | None) -> Images:
    """uint8 pixels [N, H, W, 3] and labels as Images of image_size."""
    every = Images(torch.as_tensor(pixels), torch.as_tensor(labels).long())
    few = first(every, limit)
    return Images(_resized(few.pixels, image_size), few.labels)


def _grey_to_pixels(grey: Tensor) -> Tensor:
    """[N, 1, H, W] in [0, 1] to uint8 [N, H, W, 3]."""
    return (grey * 255).round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()


def _resized(pixels: Tensor, image_size: int) -> Tensor:
    if pixels.shape[1] == image_size:
        return pixels.contiguous()
    planes = F.interpolate(pixels.permute(0, 3, 1, 2), size=(image_size, image_size), mode="bilinear", antialias=True)
    return planes.permute(0, 2, 3, 1).contiguous()
