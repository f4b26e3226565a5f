"""Which operations an image gets in training, and how strong: data.augment trivial, rand and auto.

    trivial   one of 14, of any of 31 strengths          TrivialAugment, wide   Mueller and Hutter, arXiv 2103.10158
    rand      two of 14, of the tenth of 31 strengths    RandAugment            Cubuk et al.,       arXiv 1909.13719
    auto      two of 15, as one of 25 pairs says         AutoAugment            Cubuk et al.,       arXiv 1805.09501

The tables of operations, strengths and pairs are torchvision's; here is how a whole batch is drawn by them. A policy
draws its numbers for an epoch, one column an image (as data/augment.py says), and turns them into rounds:

    draw(images, generator) -> numbers                                       [k, images], uniform in [0, 1)
    rounds(drawn, high, wide) -> (operation int64 [B], strength fp64 [B])    of each round, for [k, B]; -1: none
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from data.operations import OPERATIONS

NAMES = [*OPERATIONS]
BINS = 31
RAND_ROUNDS, RAND_BIN = 2, 9
AUTO_BINS = 10
Round = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Space:
    """operations int64 [n], numbers in NAMES; strengths fp64 [n, bins]; signed bool [n]: it has two directions."""

    operations: Tensor
    strengths: Tensor
    signed: Tensor

    def strength(self, row: Tensor, column: Tensor, negative: Tensor) -> Tensor:
        """Of each image, fp64 [B]. row, column: int64 [B]; negative: bool [B]."""
        strength = self.strengths[row, column]
        return torch.where(self.signed[row] & negative, -strength, strength)


@functools.lru_cache
def space(transform: str, bins: int, high: int, wide: int) -> Space:
    """The operations of a transform of torchvision.transforms.v2, for images of high x wide pixels."""
    from torchvision.transforms import v2  # here: seconds to import, and only this needs it

    table = getattr(v2, transform)._AUGMENTATION_SPACE
    strengths = [make(bins, high, wide) for make, _ in table.values()]
    rows = [torch.zeros(bins) if found is None else found for found in strengths]
    return Space(
        torch.tensor([NAMES.index(name) for name in table]),
        torch.stack([row.double() for row in rows]),
        torch.tensor([signed for _, signed in table.values()]),
    )


def whole(drawn: Tensor, count: int) -> Tensor:
    """Uniform in [0, 1) to uniform in 0 .. count - 1."""
    return (drawn * count).long()


@dataclass(frozen=True)
class Trivial:
    def draw(self, images: int, generator: torch.Generator | None) -> Tensor:
        return torch.rand(3, images, generator=generator)

    def rounds(self, drawn: Tensor, high: int, wide: int) -> Iterator[Round]:
        found = space("TrivialAugmentWide", BINS, high, wide)
        row = whole(drawn[0], len(found.operations))
        yield found.operations[row], found.strength(row, whole(drawn[1], BINS), drawn[2] < 0.5)


@dataclass(frozen=True)
class Rand:
    def draw(self, images: int, generator: torch.Generator | None) -> Tensor:
        return torch.rand(2 * RAND_ROUNDS, images, generator=generator)

    def rounds(self, drawn: Tensor, high: int, wide: int) -> Iterator[Round]:
        found = space("RandAugment", BINS, high, wide)
        for which, sign in drawn.view(RAND_ROUNDS, 2, -1):
            row = whole(which, len(found.operations))
            yield found.operations[row], found.strength(row, torch.full_like(row, RAND_BIN), sign < 0.5)


@dataclass(frozen=True)
class Auto:
    """learned_on: the dataset that the pairs were learned on: imagenet, cifar10 or svhn."""

    learned_on: str

    def draw(self, images: int, generator: torch.Generator | None) -> Tensor:
        return torch.rand(5, images, generator=generator)

    def rounds(self, drawn: Tensor, high: int, wide: int) -> Iterator[Round]:
        found, pairs = space("AutoAugment", AUTO_BINS, high, wide), _pairs(self.learned_on)
        pair = whole(drawn[0], len(pairs))
        for (row, probability, column), (chance, sign) in zip(
            pairs[pair].permute(1, 2, 0), drawn[1:].view(2, 2, -1), strict=True
        ):
            strength = found.strength(row.long(), column.long(), sign < 0.5)
            yield torch.where(chance < probability, found.operations[row.long()], -1), strength


@functools.lru_cache
def _pairs(learned_on: str) -> Tensor:
    """fp64 [25, 2, 3] of the pairs of operations: row in the space, probability, column (0 where it has none)."""
    from torchvision.transforms import AutoAugmentPolicy, v2  # as above

    rows = [*v2.AutoAugment._AUGMENTATION_SPACE]
    pairs = v2.AutoAugment(AutoAugmentPolicy(learned_on))._policies
    return torch.tensor(
        [[[rows.index(name), chance, column or 0] for name, chance, column in pair] for pair in pairs],
        dtype=torch.float64,
    )


Policy = Trivial | Rand | Auto


POLICIES: dict[str, Callable[[str], Policy]] = {
    "trivial": lambda learned_on: Trivial(),
    "rand": lambda learned_on: Rand(),
    "auto": Auto,
}
"""Of a value of data.augment and the dataset that auto's pairs were learned on."""


def transformed(policy: Policy, pixels: Tensor, drawn: Tensor) -> Tensor:
    """The pixels, uint8 [B, H, W, C], after the operations that were drawn, [k, B]. It overwrites what it is given.

    pixels are on any device, drawn is on the CPU.
    """
    images = pixels.permute(0, 3, 1, 2)
    for operations, strengths in policy.rounds(drawn, *images.shape[-2:]):
        for operation in operations.unique().tolist():
            index = torch.nonzero(operations == operation)[:, 0]
            if operation >= 0:
                planes = images[index].contiguous()  # in planes, most operations take half of the time
                images[index] = OPERATIONS[NAMES[operation]](planes, strengths[index])
    return pixels
