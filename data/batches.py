"""Draws, augments and normalizes images: batches float32 [B, 3, H, W], channels_last.

Training batches are drawn: which images, their crops and mirrorings are a function of the seed, the epoch and the step
alone, whatever came before and however many processes and workers there are. So a run continues in the middle of an
epoch as if it had never stopped. Without a draw, images come in order and as they are.

Images in memory are cropped, flipped and normalized a whole batch at a time, by one gather; there is no Python per
image. Files go through a DataLoader with torchvision's transforms.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from data.folders import open_image, resize_and_crop
from data.images import Files, Images
from utils.console import say
from utils.errors import UserError
from utils.seed import derive_seed

PAD = 4
RETRIES = 3


@dataclass(frozen=True)
class Draw:
    """How training batches are drawn. Process `rank` of `world` takes its share of every batch."""

    seed: int
    augment: bool = False
    flip: bool = False
    rank: int = 0
    world: int = 1

    def generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, epoch))


class Batches:
    """Iterate (images, labels): `epoch(number, first)` from step `first` on; iter() is the first epoch.

    A last training batch that would leave a process fewer than two images is left out: batch norm has no statistics of
    one.
    """

    def __init__(self, images: Images | Files, batch_size: int, draw: Draw | None):
        self.images, self.batch_size, self.draw = images, batch_size, draw

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.batch_size)
        least = 1 if self.draw is None else min(2 * self.draw.world, self.batch_size)
        return whole + (rest >= least or (rest > 0 and whole == 0))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.epoch(0)

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self.images)
        if self.draw is None:
            yield from self.read([*torch.arange(n).split(self.batch_size)][first : len(self)], None)
            return
        generator = self.draw.generator(number)
        steps = torch.randperm(n, generator=generator).split(self.batch_size)[first : len(self)]
        yield from self.read([step[self.draw.rank :: self.draw.world] for step in steps], generator)

    def read(self, steps: list[Tensor], generator: torch.Generator | None) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of these indexes; `generator` gives what the epoch draws in addition to its order."""
        raise NotImplementedError


class MemoryBatches(Batches):
    """Of Images. Augmented: a random crop of the image padded by 4 black pixels on each side, half of them mirrored."""

    images: Images

    def __init__(self, images: Images, batch_size: int, mean, std, draw: Draw | None = None):
        super().__init__(images, batch_size, draw)
        pixels, self.augment = images.pixels, bool(draw and draw.augment)
        self.mirrored_share = 0.5 if draw is not None and draw.flip else 0.0
        self.pixels = torch.nn.functional.pad(pixels, (0, 0, PAD, PAD, PAD, PAD)) if self.augment else pixels
        self.scale = 1 / (255 * torch.tensor(std))
        self.shift = -torch.tensor(mean) / torch.tensor(std)

    def read(self, steps: list[Tensor], generator: torch.Generator | None) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self.images)
        if self.augment:
            corners = torch.randint(0, 2 * PAD + 1, (2, n), generator=generator)
            mirrored = torch.rand(n, generator=generator) < self.mirrored_share
        for index in steps:
            taken = self._crop(index, corners[:, index], mirrored[index]) if self.augment else self.pixels[index]
            values = taken.float().mul_(self.scale).add_(self.shift)
            yield values.permute(0, 3, 1, 2), self.images.labels[index]

    def _crop(self, index: Tensor, corners: Tensor, mirrored: Tensor) -> Tensor:
        size = torch.arange(self.images.pixels.shape[1])
        rows = corners[0, :, None] + size
        columns = corners[1, :, None] + torch.where(mirrored[:, None], len(size) - 1 - size, size)
        return self.pixels[index[:, None, None], rows[:, :, None], columns[:, None, :]]


class FileBatches(Batches):
    """Of Files: random resized crops to train, else the centre of 8/7 of the size.

    At 224 that is ImageNet's Resize(256) and CenterCrop(224). A worker process that dies is restarted.
    """

    def __init__(self, files: Files, batch_size: int, mean, std, image_size: int, draw: Draw | None = None):
        from torchvision.transforms import v2  # here: seconds to import, and images in memory do without

        super().__init__(files, batch_size, draw)
        augment, flip = (False, False) if draw is None else (draw.augment, draw.flip)
        crop = [v2.RandomResizedCrop(image_size)] if augment else [v2.CenterCrop(image_size)]
        mirror = [v2.RandomHorizontalFlip()] if augment and flip else []
        pixels = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
        side = None if augment else evaluation_side(image_size)
        self.decoded = _Decoded(files, side, v2.Compose([*crop, *mirror, *pixels]))
        self.workers = files.workers
        self.reported: set[str] = set()

    def read(self, steps: list[Tensor], generator: torch.Generator | None) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self.images)
        seeds = torch.zeros(n, dtype=torch.int64)
        if generator is not None:
            seeds = torch.randint(2**31, (n,), generator=generator)
        left = [[*zip(step.tolist(), seeds[step].tolist(), strict=True)] for step in steps]
        for _ in range(RETRIES + 1):
            try:
                for images, labels, unreadable in self._load(left):
                    left = left[1:]
                    self._report_unreadable(unreadable)
                    yield images.contiguous(memory_format=torch.channels_last), labels
                return
            except UserError as error:
                if not self.workers:
                    raise
                # a worker's: text of its traceback, whose last line is the message
                last_line = error.args[0].strip().splitlines()[-1]
                raise UserError(last_line.removeprefix("utils.errors.UserError: ")) from None
            except (RuntimeError, OSError, EOFError) as error:  # the last two: its socket is gone
                own = isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker")
                if own or not self.workers:
                    raise
                say(f"a data worker died ({str(error).partition('.')[0]}); it is restarted")
        raise UserError(f"data.workers: workers died {RETRIES + 1} times; out of memory? data.workers=0 does without")

    def _load(self, steps: list[list[tuple[int, int]]]) -> Iterator:
        with _quiet_children():
            loader = torch.utils.data.DataLoader(
                self.decoded, batch_sampler=steps, num_workers=self.workers, collate_fn=_collate
            )
            return iter(loader)

    def _report_unreadable(self, unreadable: list[str]) -> None:
        """Print each message once, although the image is skipped in every epoch."""
        for line in unreadable:
            if line not in self.reported:
                self.reported.add(line)
                say(f"left out: {line}")


class _Decoded(torch.utils.data.Dataset):
    """Images by (index, seed of the augmentation).

    An unreadable image raises UserError or, with on_error "skip", is returned as a one-line message.
    """

    def __init__(self, files: Files, side: int | None, transform):
        self.files, self.side, self.transform = files, side, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | str:
        i, seed = key
        try:
            image = open_image(self.files.paths[i])
        except UserError as error:
            if self.files.on_error == "skip":
                return str(error)
            raise
        image = image if self.side is None else resize_and_crop(image, self.side)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.transform(image), int(self.files.labels[i])


def _collate(samples: list) -> tuple[Tensor, Tensor, list[str]]:
    unreadable = [sample for sample in samples if isinstance(sample, str)]
    images = [sample for sample in samples if not isinstance(sample, str)]
    if not images:
        raise UserError(f"{unreadable[0]}, and no other image of its batch is")
    return torch.stack([x for x, _ in images]), torch.tensor([y for _, y in images]), unreadable


@contextlib.contextmanager
def _quiet_children() -> Iterator[None]:
    """Keep DataLoader's handler of SIGCHLD off: it raises wherever the main process happens to be, in a step, say.

    Without it a dead worker is found when its batch is asked for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


def check_training(images: int, batch_size: int, world: int) -> None:
    """Raise UserError where a process would have fewer than two images a step: batch norm has no statistics of one."""
    if batch_size < 2 * world:
        raise UserError(f"data.batch_size: {batch_size} images for {world} process(es); each takes two or more")
    if images < 2 * world:
        raise UserError(f"data: {images} training images for {world} process(es); each takes two or more")


def evaluation_side(image_size: int) -> int:
    """To what files' shorter sides are resized before the centre is cut out: 256 for 224."""
    return round(image_size * 8 / 7)


def evaluation_batch(image_size: int) -> int:
    """Images a batch outside training: 128 of 32 x 32, whose maps stay in the caches, fewer of larger ones."""
    return max(16, min(128, 2**21 // image_size**2))


def batches(images: Images | Files, batch_size: int, mean, std, image_size: int, draw: Draw | None = None) -> Batches:
    """The batches of Images or Files; see the two classes."""
    if isinstance(images, Images):
        return MemoryBatches(images, batch_size, mean, std, draw)
    return FileBatches(images, batch_size, mean, std, image_size, draw)
