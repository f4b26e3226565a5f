"""What becomes of normalized training images and their labels last: random erasing, mixup and cutmix.

    erasing   a random rectangle of a share of the images becomes 0, the mean colour   Zhong et al.,  arXiv 1708.04896
    mixup     x <- l x + (1 - l) x',    y <- l y + (1 - l) y'                          Zhang et al.,  arXiv 1710.09412
    cutmix    a rectangle of x becomes that of x',  y <- l y + (1 - l) y'              Yun et al.,    arXiv 1905.04899

x', y' are the image before it in the batch, which is in random order. l is drawn from Beta(alpha, alpha), once a batch.
cutmix's rectangle has a share 1 - l of the area around a random centre; it is cut at the edges, and l is then the share
of x that is left. With both, one of them, at even odds, is taken for each batch, as torchvision's references do.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from data.augment import rectangles

ERASED_SHARES = (0.02, 0.33)
ERASED_RATIO = 3.3
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Mixing:
    """mixup, cutmix: alpha; 0: it is left out. classes: their number, of the probabilities that labels become."""

    mixup: float
    cutmix: float
    classes: int

    def mixed(self, batches: Iterator[Batch], seed: int, first: int) -> Iterator[Batch]:
        """(images, probabilities fp32 [B, classes]) of an epoch's batches from number `first` on.

        What is drawn for a batch depends on the epoch's seed and its number alone.
        """
        kinds = [(mix, alpha) for mix, alpha in ((mixup, self.mixup), (cutmix, self.cutmix)) if alpha]
        for number, (images, labels) in enumerate(batches, first):
            random = numpy.random.default_rng([seed, number])
            probabilities = F.one_hot(labels, self.classes).float()
            mix, alpha = kinds[random.integers(len(kinds))]
            yield mix(images, probabilities, alpha, random)


def mixup(images: Tensor, probabilities: Tensor, alpha: float, random: numpy.random.Generator) -> Batch:
    share = random.beta(alpha, alpha)
    return _blend(images, share), _blend(probabilities, share)


def cutmix(images: Tensor, probabilities: Tensor, alpha: float, random: numpy.random.Generator) -> Batch:
    high, wide = images.shape[-2:]
    side = math.sqrt(1 - random.beta(alpha, alpha))
    (top, bottom), (left, right) = (_part(random.random(), side, size) for size in (high, wide))
    share = 1 - (bottom - top) * (right - left) / (high * wide)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.roll(1, 0)[..., top:bottom, left:right]
    return mixed, _blend(probabilities, share)


def _part(centre: float, side: float, size: int) -> tuple[int, int]:
    """(first, end) of a stretch of this side around a centre, both as shares of size."""
    middle, half = int(centre * size), int(side * size / 2)
    return max(middle - half, 0), min(middle + half, size)


def _blend(values: Tensor, share: float) -> Tensor:
    """share of each, and the rest of the one before it."""
    return torch.lerp(values.roll(1, 0), values, share)


def erased(images: Tensor, drawn: Tensor, probability: float) -> Tensor:
    """The images [B, C, H, W], which it overwrites. drawn: uniform in [0, 1), [5, B], on the CPU.

    A rectangle has 2 to 33 % of the area and is at most 3.3 times as wide as high or as high as wide. Differs from
    torchvision: one that does not fit is cut at the edges, where that draws up to ten others.
    """
    high, wide = images.shape[-2:]
    sides = rectangles(drawn.double().numpy(), high, wide, ERASED_SHARES, ERASED_RATIO)
    top, left, bottom, right = (torch.from_numpy(side).round()[:, None] for side in sides)
    y, x = torch.arange(high), torch.arange(wide)
    down = (y >= top) & (y < bottom) & (drawn[4] < probability)[:, None]
    across = (x >= left) & (x < right)
    inside = (down[:, :, None] & across[:, None])[:, None]
    return images.masked_fill_(inside.to(images.device), 0.0)
