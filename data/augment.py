"""From square pixels to what a model sees in training: random crops and mirrorings, or just the centre.

An augmentation draws its numbers for a whole epoch, one column an image, so that an image's own do not depend on the
batch, the process or the thread that it is in. All of it is arithmetic of integers, the same on every device.

    draw(images, generator) -> numbers     [k, images], for an epoch
    part(image, drawn) -> image            uint8 [H, W, C], [k]: of one image, by the thread that loads it
    prepare(pixels) -> pixels              uint8 [N, H, W, C]: once, for images in memory
    apply(pixels, index, drawn) -> pixels  uint8 [N, H, W, C], int64 [B], [k, B] -> uint8 [B, S, S, C]: of a batch
"""

import math
from dataclasses import dataclass

import numpy
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

PAD = 4
SHARES = (0.08, 1.0)
WIDEST_RATIO = 4 / 3
GRAIN = 2**15 - 1
"""The most elements of which torch computes most operations in the calling thread alone."""
INTEGER_MODES = ("bilinear", "bicubic")
"""Interpolations that torch has for uint8, at several times Pillow's speed."""


@dataclass(frozen=True)
class Center:
    """The centre, and nothing random."""

    image_size: int
    mirrored_share: float = 0.0

    def draw(self, images: int, generator: torch.Generator | None) -> Tensor:
        return torch.empty(0, images)

    def part(self, image: numpy.ndarray, drawn: numpy.ndarray) -> numpy.ndarray:
        return image

    def prepare(self, pixels: Tensor) -> Tensor:
        return pixels

    def apply(self, pixels: Tensor, index: Tensor, drawn: Tensor) -> Tensor:
        return self.cut(pixels)[index]

    def cut(self, pixels: Tensor) -> Tensor:
        first = round((pixels.shape[1] - self.image_size) / 2)
        return pixels.narrow(1, first, self.image_size).narrow(2, first, self.image_size)


@dataclass(frozen=True)
class PaddedCrop(Center):
    """A random crop of the image padded by 4 black pixels on each side; a share of them mirrored."""

    def prepare(self, pixels: Tensor) -> Tensor:
        return F.pad(self.cut(pixels), (0, 0, PAD, PAD, PAD, PAD))

    def draw(self, images: int, generator: torch.Generator | None) -> Tensor:
        corners = torch.randint(0, 2 * PAD + 1, (2, images), generator=generator)
        mirrored = torch.rand(images, generator=generator) < self.mirrored_share
        return torch.cat([corners, mirrored[None]])

    def apply(self, pixels: Tensor, index: Tensor, drawn: Tensor) -> Tensor:
        top, left, mirrored = drawn
        size = torch.arange(self.image_size)
        rows = top[:, None] + size
        columns = left[:, None] + torch.where(mirrored[:, None] > 0, len(size) - 1 - size, size)
        return pixels[index[:, None, None], rows[:, :, None], columns[:, None, :]]


@dataclass(frozen=True)
class ResizedCrop(Center):
    """A random rectangle of the image, resized to the model's square; a share of them mirrored.

    It has 8 to 100 % of the area and is at most a third wider than high or higher than wide (Szegedy et al., 2015, sec.
    6). Differs from torchvision: a rectangle that does not fit is cut at the edges, where that draws up to ten others.
    """

    interpolation: str = "bilinear"

    def draw(self, images: int, generator: torch.Generator | None) -> Tensor:
        return torch.rand(5, images, generator=generator)

    def part(self, image: numpy.ndarray, drawn: numpy.ndarray) -> numpy.ndarray:
        top, left, bottom, right = (round(float(side)) for side in rectangles(drawn, *image.shape[:2]))
        bottom, right = max(bottom, 1), max(right, 1)
        rectangle = image[min(top, bottom - 1) : bottom, min(left, right - 1) : right]
        square = resized(rectangle, self.image_size, self.interpolation)
        return mirrored(square) if drawn[4] < self.mirrored_share else square

    def apply(self, pixels: Tensor, index: Tensor, drawn: Tensor) -> Tensor:
        """Of parts."""
        return pixels


def resized(image: numpy.ndarray, side: int, interpolation: str) -> numpy.ndarray:
    """uint8 [H, W, C] to [side, side, C], antialiased."""
    channels = image.shape[2]
    if interpolation not in INTEGER_MODES or channels == 4:  # Pillow weighs colours by their opacity
        found = Image.fromarray(image if channels > 1 else image[..., 0])
        return numpy.asarray(found.resize((side, side), Image.Resampling[interpolation.upper()])).reshape(
            side, side, channels
        )
    planes = _planes(image.copy())  # contiguous, or torch would copy it in several threads
    return _image(F.interpolate(planes, (side, side), mode=interpolation, antialias=True))


def mirrored(image: numpy.ndarray) -> numpy.ndarray:
    """Left to right."""
    rows = max(1, GRAIN // image[0].size)
    return numpy.concatenate([_image(some.flip(3)) for some in _planes(image).split(rows, 2)])


def _planes(image: numpy.ndarray) -> Tensor:
    """[H, W, C] as [1, C, H, W], channels_last."""
    return torch.from_numpy(numpy.require(image, requirements="W"))[None].permute(0, 3, 1, 2)


def _image(planes: Tensor) -> numpy.ndarray:
    return planes[0].permute(1, 2, 0).numpy()


def rectangles(
    drawn: numpy.ndarray, high: int, wide: int, shares: tuple[float, float] = SHARES, widest: float = WIDEST_RATIO
) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """(top, left, bottom, right) in pixels of random rectangles in images of high x wide.

    drawn: uniform in [0, 1): [area, ratio, top, left, ...], each [B], or a number. shares: least and most of the area.
    widest: most that one side is of the other.
    """
    least, most = shares
    area = (least + (most - least) * drawn[0]) * high * wide
    ratio = numpy.exp((2 * drawn[1] - 1) * math.log(widest))
    width, height = numpy.minimum(numpy.sqrt(area * ratio), wide), numpy.minimum(numpy.sqrt(area / ratio), high)
    top, left = drawn[2] * (high - height), drawn[3] * (wide - width)
    return top, left, top + height, left + width
