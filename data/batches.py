"""Batches for the net: float32 [B, 3, H, W], channels_last, normalised.

Images in memory are cropped, flipped and normalised a whole batch at a time, by one gather with a seeded generator;
there is no Python per image. Files go through a DataLoader with torchvision's transforms.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from data.folders import open_image, square
from data.images import Files, Images
from utils.errors import UserError

PAD = 4


class MemoryBatches:
    """Iterate (images, labels) over Images. With a generator: shuffled, and augmented if asked; else in order.

    A last training batch of a single image is left out: batch norm has no statistics of one.
    Crops are taken at random from the image padded by 4 black pixels on each side; flips with probability 1/2.
    """

    def __init__(self, images: Images, batch_size: int, mean, std, generator=None, augment=False, flip=False):
        self.images, self.batch_size, self.generator = images, batch_size, generator
        self.augment, self.flip = augment, flip
        self.pixels = torch.nn.functional.pad(images.pixels, (0, 0, PAD, PAD, PAD, PAD)) if augment else images.pixels
        self.scale = 1 / (255 * torch.tensor(std))
        self.shift = -torch.tensor(mean) / torch.tensor(std)

    def __len__(self) -> int:
        return math.ceil(self._count() / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self.images)
        order = torch.arange(n) if self.generator is None else torch.randperm(n, generator=self.generator)
        for index in order[: self._count()].split(self.batch_size):
            taken = self._crop(index) if self.augment else self.pixels[index]
            values = taken.float().mul_(self.scale).add_(self.shift)
            yield values.permute(0, 3, 1, 2), self.images.labels[index]

    def _count(self) -> int:
        n = len(self.images)
        return n - _single_last(n, self.batch_size) if self.generator is not None else n

    def _crop(self, index: Tensor) -> Tensor:
        size = self.images.pixels.shape[1]
        top, left = torch.randint(0, 2 * PAD + 1, (2, len(index), 1), generator=self.generator)
        rows, columns = top + torch.arange(size), torch.arange(size).expand(len(index), -1)
        if self.flip:
            mirrored = torch.rand(len(index), 1, generator=self.generator) < 0.5
            columns = torch.where(mirrored, size - 1 - columns, columns)
        columns = left + columns
        return self.pixels[index[:, None, None], rows[:, :, None], columns[:, None, :]]


def _single_last(images: int, batch_size: int) -> bool:
    return images > batch_size > 1 and images % batch_size == 1


class _Decoded(torch.utils.data.Dataset):
    def __init__(self, files: Files, side: int | None, transform):
        self.files, self.side, self.transform = files, side, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = open_image(self.files.paths[i])
        image = image if self.side is None else square(image, self.side)
        return self.transform(image), int(self.files.labels[i])


class FileBatches:
    """Iterate (images, labels) over Files: random resized crops to train, else the centre of 8/7 of the size.

    At 224 that is ImageNet's Resize(256) and CenterCrop(224).
    """

    def __init__(self, files, batch_size, mean, std, image_size, workers, generator=None, augment=False, flip=False):
        from torchvision.transforms import v2  # here: seconds to import, and images in memory do without

        crop = [v2.RandomResizedCrop(image_size)] if augment else [v2.CenterCrop(image_size)]
        mirror = [v2.RandomHorizontalFlip()] if augment and flip else []
        pixels = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        side = None if augment else evaluation_side(image_size)
        self.loader = torch.utils.data.DataLoader(
            _Decoded(files, side, v2.Compose([*crop, *mirror, *pixels])),
            batch_size,
            shuffle=generator is not None,
            drop_last=generator is not None and _single_last(len(files), batch_size),
            num_workers=workers,
            generator=generator,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            for images, labels in self.loader:
                yield images.contiguous(memory_format=torch.channels_last), labels
        except UserError as error:  # a worker's, wrapped in its traceback
            raise UserError(str(error).strip().splitlines()[-1].removeprefix("utils.errors.UserError: ")) from None


def evaluation_side(image_size: int) -> int:
    """To what files' shorter sides are resized before the centre is cut out: 256 for 224."""
    return round(image_size * 8 / 7)


def evaluation_batch(image_size: int) -> int:
    """Images a batch outside training: 512 of 32 x 32, fewer of larger ones."""
    return max(16, min(512, 2**21 // image_size**2))


def batches(images, batch_size, mean, std, image_size, workers, generator=None, augment=False, flip=False):
    """The batches of Images or Files; see the two classes."""
    if isinstance(images, Images):
        return MemoryBatches(images, batch_size, mean, std, generator, augment, flip)
    return FileBatches(images, batch_size, mean, std, image_size, workers, generator, augment, flip)
