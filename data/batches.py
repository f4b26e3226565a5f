"""Draws, augments and normalizes images: batches float32 [B, C, H, W], channels_last.

Training batches are drawn: which images, their crops and mirrorings are a function of the seed, the epoch and the step
alone, whatever came before and however many processes and workers there are. So a run continues in the middle of an
epoch as if it had never stopped. Without a draw, images come in order and as they are.

Small images are kept on the training device, as uint8. Of photographs, threads decode files and cut out parts
(data/loading.py), and the uint8 batch is copied to the device. There, a whole batch at a time is changed in colour and
shape (data/policies.py) and normalized. Images are the same whatever the number of threads, and whether they are kept
in memory.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy
import torch
from torch import Tensor

from data import decoding
from data.augment import GRAIN, Center, PaddedCrop, ResizedCrop
from data.decoding import LARGE
from data.images import Files, Images
from data.loading import Errors, Loader
from data.mixing import Mixing, erased
from data.policies import POLICIES, transformed
from utils.console import say
from utils.device import CPU, copied, is_pinned_for, prefetched
from utils.errors import UserError
from utils.seed import derive_seed


@dataclass(frozen=True)
class Draw:
    """How training batches are drawn. Process `rank` of `world` takes its share of every batch.

    augment: none, crop (mirrored at random if `flip`), or a row of POLICIES, which is applied after the crop.
    learned_on: the dataset of auto's pairs. erasing: share of the images in which a rectangle is erased. mixing: mixup
    or cutmix of each batch, or None. balanced: all classes are equally frequent.
    """

    seed: int
    augment: str = "none"
    flip: bool = False
    learned_on: str = "imagenet"
    erasing: float = 0.0
    mixing: Mixing | None = None
    balanced: bool = False
    rank: int = 0
    world: int = 1

    def epoch_seed(self, epoch: int) -> int:
        return derive_seed(self.seed, epoch)

    def generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.epoch_seed(epoch))

    def order(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Indexes of an epoch's images, int64 [N]: each once or, if balanced, those of rarer classes more often."""
        if not self.balanced:
            return torch.randperm(len(labels), generator=generator)
        weights = 1 / labels.bincount().double()
        return torch.multinomial(weights[labels], len(labels), replacement=True, generator=generator)


class Batches:
    """Iterate (images, labels): `epoch(number, first)` from step `first` on; iter() is the first epoch.

    mean, std: of each channel on the scale [0, 1]. device: where batches are made. A last training batch that would
    leave a process fewer than two images is left out: batch norm has no statistics of one.
    """

    seen: list[Tensor]
    """Which images each batch has had since the last iteration began, int64 [B]: not those that could not be read."""

    def __init__(
        self,
        images: Images | Files,
        batch_size: int,
        mean,
        std,
        image_size: int,
        draw: Draw | None = None,
        device: torch.device = CPU,
    ):
        self.images, self.batch_size, self.draw, self.device, self.seen = images, batch_size, draw, device, []
        self.augmentation = _augmentation(images, image_size, draw)
        self.policy = POLICIES[draw.augment](draw.learned_on) if draw and draw.augment in POLICIES else None
        scale, shift = 1 / (255 * torch.tensor(std)), -torch.tensor(mean) / torch.tensor(std)
        self.scale, self.shift = scale.to(device), shift.to(device)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.batch_size)
        least = 1 if self.draw is None else min(2 * self.draw.world, self.batch_size)
        return whole + (rest >= least or (rest > 0 and whole == 0))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.epoch(0)

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        return prefetched(self._epoch(number, first), self.device)

    def _epoch(self, number: int, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        draw = self.draw
        if draw is None:
            yield from self.read([*torch.arange(len(self.images)).split(self.batch_size)][first : len(self)], None)
            return
        generator = draw.generator(number)
        steps = draw.order(self.images.labels, generator).split(self.batch_size)[first : len(self)]
        batches = self.read([step[draw.rank :: draw.world] for step in steps], generator)
        yield from draw.mixing.mixed(batches, draw.epoch_seed(number), first) if draw.mixing else batches

    def read(self, steps: list[Tensor], generator: torch.Generator | None) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of these indexes; `generator` gives what the epoch draws in addition to its order."""
        n, erasing = len(self.images), self.draw.erasing if self.draw else 0.0
        drawn, seen = self.augmentation.draw(n, generator), list[Tensor]()
        operations = self.policy.draw(n, generator) if self.policy else None
        erasures = torch.rand(5, n, generator=generator) if erasing else None
        self.seen = seen
        for pixels, index in self.augmented(steps, drawn):
            seen.append(index)
            if self.policy and operations is not None:
                pixels = transformed(self.policy, pixels, operations[:, index])
            images = self._normalized(pixels)
            if erasures is not None:
                erased(images, erasures[:, index], erasing)
            yield images, copied(self.images.labels[index], self.device)

    def augmented(self, steps: list[Tensor], drawn: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(pixels uint8 [B, H, W, C] on the device, index int64 [B]) of each step. drawn: the augmentation's, of all
        images."""
        raise NotImplementedError

    def _normalized(self, pixels: Tensor) -> Tensor:
        """fp32 [B, C, H, W], channels_last.

        On a CPU a few rows at a time, which stay in the cache of the core that the threads leave to this one.
        """
        wide = pixels.shape[2]
        images, scale, shift = (
            torch.empty(pixels.shape, device=self.device),
            self.scale.repeat(wide),
            self.shift.repeat(wide),
        )
        rows = max(1, GRAIN // len(scale)) if self.device == CPU else len(pixels) * pixels.shape[1]
        for some, found in zip(*(x.reshape(-1, len(scale)).split(rows) for x in (images, pixels)), strict=True):
            some.copy_(found).mul_(scale).add_(shift)
        return images.permute(0, 3, 1, 2)


def _augmentation(images: Images | Files, image_size: int, draw: Draw | None) -> Center:
    """Small images are shifted; of photographs, parts are cut out."""
    if draw is None or draw.augment == "none":
        return Center(image_size)
    files, mirrored = images if isinstance(images, Files) else images.source, 0.5 * draw.flip
    if files is None or image_size <= LARGE:
        return PaddedCrop(image_size, mirrored)
    return ResizedCrop(image_size, mirrored, files.preprocessing.interpolation)


class MemoryBatches(Batches):
    """Of Images, small ones of which are kept on the device."""

    def __init__(self, images: Images, *arguments, **named):
        super().__init__(images, *arguments, **named)
        small = images.pixels.shape[1] <= LARGE
        self.pixels = self.augmentation.prepare(images.pixels).to(self.device if small else CPU)

    def augmented(self, steps: list[Tensor], drawn: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for index in steps:
            yield copied(self.augmentation.apply(self.pixels, index, drawn[:, index]), self.device), index


class LoadedBatches(Batches):
    """Of images that threads load: Files, and Images out of which parts are cut."""

    def __init__(self, images: Images | Files, *arguments, **named):
        super().__init__(images, *arguments, **named)
        files = images if isinstance(images, Files) else images.source
        assert files is not None
        self.files, self.cuts = files, isinstance(self.augmentation, ResizedCrop)
        side = self.augmentation.image_size if self.cuts else files.preprocessing.image_size
        shape = side, side, files.preprocessing.channels
        self.loader = Loader(shape, files.workers, is_pinned_for(self.device))
        self.reported: set[str] = set()

    def augmented(self, steps: list[Tensor], drawn: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What is unreadable is left out. A training step has to have some images, since other processes wait for it.
        Others of which nothing can be read are left out, unless all are."""
        load, found = functools.partial(self._load, drawn.double().numpy()), False
        loaded = self.loader.batches(load, (step.tolist() for step in steps))
        for number, (index, (pixels, errors)) in enumerate(zip(steps, loaded, strict=True), 1):
            if errors:
                self._report(errors)
                readable = torch.tensor([place not in errors for place in range(len(index))])
                pixels, index = pixels[readable], index[readable]
            found = found or len(index) > 0
            if len(index):
                prepared = self.augmentation.prepare(copied(pixels, self.device))
                yield self.augmentation.apply(prepared, torch.arange(len(index)), drawn[:, index]), index
            elif self.draw is not None or not (found or number < len(steps)):
                raise UserError(f"{[*errors.values()][-1]}, and no other image of its batch is")

    def _load(self, drawn: numpy.ndarray, i: int) -> numpy.ndarray:
        return self.augmentation.part(self._read(i), drawn[:, i])

    def _read(self, i: int) -> numpy.ndarray:
        """One image before parts are cut out of it, uint8 [H, W, C]."""
        if isinstance(self.images, Images):
            return self.images.pixels[i].numpy()
        path, asked = self.images.paths[i], self.images.preprocessing
        return decoding.whole(path, asked.channels) if self.images.whole and self.cuts else decoding.square(path, asked)

    def _report(self, errors: Errors) -> None:
        """Print each message once, although the image is skipped in every epoch; with on_error "fail", raise it."""
        for error in errors.values():
            if self.files.on_error == "fail":
                raise error
            if str(error) not in self.reported:
                self.reported.add(str(error))
                say(f"left out: {error}")


def check_training(images: int, batch_size: int, world: int) -> None:
    """Raise UserError where a process would have fewer than two images a step: batch norm has no statistics of one."""
    if batch_size < 2 * world:
        raise UserError(f"data.batch_size: {batch_size} images for {world} process(es); each takes two or more")
    if images < 2 * world:
        raise UserError(f"data: {images} training images for {world} process(es); each takes two or more")


def evaluation_batch(image_size: int) -> int:
    """Images a batch outside training: 128 of 32 x 32, whose maps stay in the caches, fewer of larger ones."""
    return max(16, min(128, 2**21 // image_size**2))


def batches(
    images: Images | Files,
    batch_size: int,
    mean,
    std,
    image_size: int,
    draw: Draw | None = None,
    device: torch.device = CPU,
) -> Batches:
    """The batches of Images or Files; see the two classes."""
    cuts = isinstance(_augmentation(images, image_size, draw), ResizedCrop)
    if isinstance(images, Images) and not cuts:
        return MemoryBatches(images, batch_size, mean, std, image_size, draw, device)
    return LoadedBatches(images, batch_size, mean, std, image_size, draw, device)


def pixels(images: Images | Files, index: Tensor, image_size: int) -> Tensor:
    """These images as a model sees them but for the normalization, uint8 [B, H, W, C].

    Raises UserError if a file cannot be read.
    """
    few = images.take(index)
    if isinstance(few, Files):
        few = replace(few, workers=0, on_error="fail")
    made = batches(few, max(1, len(few)), (0.0,), (1.0,), image_size)
    nothing_random = made.augmentation.draw(len(few), None)
    return next(iter(made.augmented([torch.arange(len(few))], nothing_random)))[0]
