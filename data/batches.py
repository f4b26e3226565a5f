"""Draws, augments and normalizes images: batches float32 [B, C, H, W], channels_last.

Training batches are drawn: which images, their crops and mirrorings are a function of the seed, the epoch and the step
alone, whatever came before and however many processes and workers there are. So a run continues in the middle of an
epoch as if it had never stopped. Without a draw, images come in order and as they are.

Images in memory and files that a DataLoader decodes become the same uint8 squares, which are augmented
(data/augment.py) and normalized a whole batch at a time. So whether images are kept in memory changes no number.
"""

import contextlib
import ctypes
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy
import torch
from PIL import Image
from torch import Tensor

from data.augment import Center, PaddedCrop, ResizedCrop, rectangles
from data.decoding import LARGE, open_image, squared
from data.images import Files, Images
from data.mixing import Mixing, erased
from data.policies import POLICIES, transformed
from utils.console import say
from utils.errors import UserError
from utils.seed import derive_seed

RETRIES = 3
PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that a process gets when its parent ends."""


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

    mean, std: of each channel on the scale [0, 1]. A last training batch that would leave a process fewer than two
    images is left out: batch norm has no statistics of one.
    """

    seen: list[Tensor]
    """Which images each batch has had since the last iteration began, int64 [B]: not those that could not be read."""

    def __init__(self, images: Images | Files, batch_size: int, mean, std, image_size: int, draw: Draw | None = None):
        self.images, self.batch_size, self.draw, self.seen = images, batch_size, draw, []
        self.augmentation = _augmentation(images, image_size, draw)
        self.policy = POLICIES[draw.augment](draw.learned_on) if draw and draw.augment in POLICIES else None
        self.scale, self.shift = 1 / (255 * torch.tensor(std)), -torch.tensor(mean) / torch.tensor(std)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.images), self.batch_size)
        least = 1 if self.draw is None else min(2 * self.draw.world, self.batch_size)
        return whole + (rest >= least or (rest > 0 and whole == 0))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.epoch(0)

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
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
        for values, index in self.augmented(steps, drawn):
            seen.append(index)
            if self.policy and operations is not None:
                values = transformed(self.policy, _whole(values), operations[:, index])
            images = values.float().mul_(self.scale).add_(self.shift).permute(0, 3, 1, 2)
            if erasures is not None:
                erased(images, erasures[:, index], erasing)
            yield images, self.images.labels[index]

    def augmented(self, steps: list[Tensor], drawn: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(values 0..255 [B, H, W, C], index int64 [B]) of each step. drawn: the augmentation's, of all images."""
        raise NotImplementedError


def _whole(values: Tensor) -> Tensor:
    return values if values.dtype == torch.uint8 else values.round().to(torch.uint8)


def _augmentation(images: Images | Files, image_size: int, draw: Draw | None) -> Center:
    """Small images are shifted; of photographs, parts are cut out."""
    if draw is None or draw.augment == "none":
        return Center(image_size)
    files = images if isinstance(images, Files) else images.source
    return (PaddedCrop if files is None or image_size <= LARGE else ResizedCrop)(image_size, 0.5 * draw.flip)


class MemoryBatches(Batches):
    """Of Images."""

    def __init__(self, images: Images, batch_size: int, mean, std, image_size: int, draw: Draw | None = None):
        super().__init__(images, batch_size, mean, std, image_size, draw)
        self.pixels = self.augmentation.prepare(images.pixels)

    def augmented(self, steps: list[Tensor], drawn: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for index in steps:
            yield self.augmentation.apply(self.pixels, index, drawn[:, index]), index


class FileBatches(Batches):
    """Of Files. A worker process that dies is restarted."""

    def __init__(self, images: Files, batch_size: int, mean, std, image_size: int, draw: Draw | None = None):
        super().__init__(images, batch_size, mean, std, image_size, draw)
        self.workers = images.workers
        self.cut_from_file = images.whole and isinstance(self.augmentation, ResizedCrop)
        self.decoded = _Decoded(images, image_size)
        self.reported: set[str] = set()

    def augmented(self, steps: list[Tensor], drawn: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, index in self._decode(steps, drawn if self.cut_from_file else None):
            if self.cut_from_file:
                mirrored = (drawn[4, index] < self.augmentation.mirrored_share)[:, None, None, None]
                yield torch.where(mirrored, pixels.flip(2), pixels), index
            else:
                prepared = self.augmentation.prepare(pixels)
                yield self.augmentation.apply(prepared, torch.arange(len(index)), drawn[:, index]), index

    def _decode(self, steps: list[Tensor], drawn: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """(uint8 squares [B, S, S, C], index [B]) of each step, without what is unreadable.

        A training step has to have some, since other processes wait for it. Others of which nothing can be read are
        left out, unless all are.
        """
        found = False
        left = [[(i, None if drawn is None else drawn[:, i].tolist()) for i in step.tolist()] for step in steps]
        for _ in range(RETRIES + 1):
            try:
                for pixels, index, unreadable in self._load(left):
                    left = left[1:]
                    self._report_unreadable(unreadable)
                    found = found or len(index) > 0
                    if len(index):
                        yield pixels, index
                    elif self.draw is not None or not (found or left):
                        raise UserError(f"{unreadable[-1]}, and no other image of its batch is")
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

    def _load(self, steps: list[list[tuple[int, list[float] | None]]]) -> Iterator:
        with _quiet_children():
            loader = torch.utils.data.DataLoader(
                self.decoded,
                batch_sampler=steps,
                num_workers=self.workers,
                collate_fn=_collate,
                worker_init_fn=_end_with_parent,
            )
            return iter(loader)

    def _report_unreadable(self, unreadable: list[str]) -> None:
        """Print each message once, although the image is skipped in every epoch."""
        for line in unreadable:
            if line not in self.reported:
                self.reported.add(line)
                say(f"left out: {line}")


class _Decoded(torch.utils.data.Dataset):
    """(pixels uint8 [S, S, C], index) of images by (index, what was drawn for a crop of the file or None).

    An unreadable image raises UserError or, with on_error "skip", is returned as a one-line message.
    """

    def __init__(self, files: Files, image_size: int):
        self.files, self.image_size = files, image_size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: tuple[int, list[float] | None]) -> tuple[Tensor, int] | str:
        i, drawn = key
        asked = self.files.preprocessing
        try:
            image = open_image(self.files.paths[i], asked.channels)
        except UserError as error:
            if self.files.on_error == "skip":
                return str(error)
            raise
        square = squared(image, asked) if drawn is None else self._part(image, drawn)
        return torch.from_numpy(numpy.array(square)).view(*square.size, asked.channels), i

    def _part(self, image: Image.Image, drawn: list[float]) -> Image.Image:
        sides = rectangles(torch.tensor(drawn), image.height, image.width)
        top, left, bottom, right = (float(side) for side in sides)
        side, interpolation = self.image_size, Image.Resampling[self.files.preprocessing.interpolation.upper()]
        return image.resize((side, side), interpolation, (left, top, right, bottom))


def _collate(samples: list) -> tuple[Tensor, Tensor, list[str]]:
    unreadable = [sample for sample in samples if isinstance(sample, str)]
    images = [sample for sample in samples if not isinstance(sample, str)]
    if not images:
        return torch.empty(0), torch.empty(0, dtype=torch.int64), unreadable
    return torch.stack([x for x, _ in images]), torch.tensor([i for _, i in images]), unreadable


def _end_with_parent(worker: int) -> None:
    """Have the system end this worker with the process that it works for, on Linux.

    torch's worker looks for that process itself, but waits for ever, with all of its memory, if that was killed in the
    moment in which it told its workers to end.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


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


def evaluation_batch(image_size: int) -> int:
    """Images a batch outside training: 128 of 32 x 32, whose maps stay in the caches, fewer of larger ones."""
    return max(16, min(128, 2**21 // image_size**2))


def batches(images: Images | Files, batch_size: int, mean, std, image_size: int, draw: Draw | None = None) -> Batches:
    """The batches of Images or Files; see the two classes."""
    if isinstance(images, Images):
        return MemoryBatches(images, batch_size, mean, std, image_size, draw)
    return FileBatches(images, batch_size, mean, std, image_size, draw)


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
