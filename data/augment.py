"""From a batch of square pixels to what a model sees in training: random crops and mirrorings, or just the centre.

An augmentation draws its numbers for a whole epoch, one column an image, so that an image's own do not depend on the
batch, the process or the worker that it is in. There is no Python per image.

    prepare(pixels) -> pixels              once, for images in memory
    draw(images, generator) -> numbers     [k, images], for an epoch
    apply(pixels, index, drawn) -> values  uint8 pixels [N, S, S, C], int64 [B], [k, B] -> 0..255, [B, H, W, C]
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

PAD = 4
SHARES = (0.08, 1.0)
WIDEST_RATIO = 4 / 3


@dataclass(frozen=True)
class Center:
    """The centre, and nothing random."""

    image_size: int
    mirrored_share: float = 0.0

    def prepare(self, pixels: Tensor) -> Tensor:
        return pixels

    def draw(self, images: int, generator: torch.Generator | None) -> Tensor:
        return torch.empty(0, images)

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

    def draw(self, images: int, generator: torch.Generator | None) -> Tensor:
        return torch.rand(5, images, generator=generator)

    def apply(self, pixels: Tensor, index: Tensor, drawn: Tensor) -> Tensor:
        high, wide = pixels.shape[1:3]
        top, left, bottom, right = rectangles(drawn, high, wide)
        mirror = torch.where(drawn[4] < self.mirrored_share, -1.0, 1.0)
        zero = torch.zeros_like(mirror)
        across = torch.stack([mirror * (right - left) / wide, zero, (left + right) / wide - 1], 1)
        down = torch.stack([zero, (bottom - top) / high, (top + bottom) / high - 1], 1)
        planes = pixels[index].permute(0, 3, 1, 2).float()
        shape = [len(index), planes.shape[1], self.image_size, self.image_size]
        grid = F.affine_grid(torch.stack([across, down], 1), shape, align_corners=False)
        resized = F.grid_sample(planes, grid, align_corners=False, padding_mode="border")
        return resized.permute(0, 2, 3, 1).contiguous()


def rectangles(
    drawn: Tensor, high: int, wide: int, shares: tuple[float, float] = SHARES, widest: float = WIDEST_RATIO
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(top, left, bottom, right) in pixels of random rectangles in images of high x wide.

    drawn: uniform in [0, 1): [area, ratio, top, left, ...], each [B]. shares: least and most of the area. widest: most
    that one side is of the other.
    """
    least, most = shares
    area = (least + (most - least) * drawn[0]) * high * wide
    ratio = torch.exp((2 * drawn[1] - 1) * math.log(widest))
    width, height = (area * ratio).sqrt().clamp(max=wide), (area / ratio).sqrt().clamp(max=high)
    top, left = drawn[2] * (high - height), drawn[3] * (wide - width)
    return top, left, top + height, left + width
