"""Loads images one by one, in threads, into uint8 batches that are ready before they are asked for.

Threads do what processes would: files are read and decoded, and parts of them resized, by libraries that release
Python's lock meanwhile. And they share memory, so that a batch is copied nowhere, and end with the process.
"""

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor

from utils.errors import UserError

AHEAD = 2
"""Batches that are being loaded while one is used."""
TASK = 8
"""Images that a thread loads before it looks for the next task."""
Load = Callable[[int], numpy.ndarray]
Errors = dict[int, UserError]
"""By the place in the batch."""


class Loader:
    """Batches of images of one shape, [H, W, C], loaded by `workers` threads; by 0, when they are asked for.

    pinned: in memory that an accelerator copies from by itself. The threads start with the first batch and live as long
    as the loader.
    """

    def __init__(self, shape: tuple[int, int, int], workers: int, pinned: bool = False):
        self.shape, self.pinned = shape, pinned
        self.threads = ThreadPoolExecutor(workers, "data") if workers else None

    def batches(self, load: Load, steps: Iterable[list[int]]) -> Iterator[tuple[Tensor, Errors]]:
        """(uint8 [B, H, W, C], errors) of each step's images, as `load` returns them by their index.

        An image of which `load` raises UserError leaves its place undefined. Other exceptions are raised.
        """
        started = deque[_Started]()
        try:
            for step in steps:
                started.append(self._start(load, step))
                if len(started) > (AHEAD if self.threads else 0):
                    yield started.popleft().finished()
            while started:
                yield started.popleft().finished()
        finally:
            for batch in started:
                batch.cancel()

    def _start(self, load: Load, step: list[int]) -> "_Started":
        pixels = torch.empty(len(step), *self.shape, dtype=torch.uint8, pin_memory=self.pinned)
        fill = functools.partial(_fill, load, pixels.numpy(), step)
        tasks = [range(first, min(first + TASK, len(step))) for first in range(0, len(step), TASK)]
        return _Started(pixels, [self._submit(functools.partial(fill, places)) for places in tasks])

    def _submit(self, task: Callable[[], Errors]) -> "Future[Errors]":
        if self.threads:
            return self.threads.submit(task)
        done: Future[Errors] = Future()
        done.set_result(task())
        return done


@dataclass(frozen=True)
class _Started:
    """A batch that is being loaded."""

    pixels: Tensor
    tasks: list[Future[Errors]]

    def finished(self) -> tuple[Tensor, Errors]:
        return self.pixels, {place: error for task in self.tasks for place, error in task.result().items()}

    def cancel(self) -> None:
        for task in self.tasks:
            task.cancel()


def _fill(load: Load, pixels: numpy.ndarray, step: list[int], places: range) -> Errors:
    errors = {}
    for place in places:
        try:
            numpy.copyto(pixels[place], load(step[place]))
        except UserError as error:
            errors[place] = error
    return errors
