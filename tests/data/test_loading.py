"""Batches are loaded ahead, in order and whole, by threads or by none, and end without a rest."""

import threading

import numpy
import pytest
import torch

from data.loading import AHEAD, TASK, Loader
from utils.errors import UserError

SHAPE = 2, 3, 1
STEPS = [[*range(first, first + 2 * TASK + 1)] for first in range(0, 200, 20)]


def image(i: int) -> numpy.ndarray:
    return numpy.full(SHAPE, i, numpy.uint8)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_the_images_in_order(workers):
    loader = Loader(SHAPE, workers)
    for _ in range(2):
        found = list(loader.batches(image, STEPS))
        assert [pixels[:, 0, 0, 0].tolist() for pixels, _ in found] == STEPS
        assert {pixels.shape[1:] for pixels, _ in found} == {SHAPE}
        assert not any(errors for _, errors in found)
    assert list(loader.batches(image, [])) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_so_many_batches_are_loaded_ahead(workers):
    asked = []
    loaded = Loader(SHAPE, workers).batches(image, (asked.append(step) or step for step in STEPS))
    next(loaded)
    assert len(asked) == 1 + (AHEAD if workers else 0)


def test_threads_live_through_epochs():
    loader, found = Loader(SHAPE, 2), set()
    for _ in range(3):
        list(loader.batches(lambda i: found.add(threading.get_ident()) or image(i), STEPS))
    assert 1 <= len(found) <= 2
    assert threading.get_ident() not in found


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_told_with_the_place_of_its_image(workers):
    def load(i: int) -> numpy.ndarray:
        if i % 10 == 3:
            raise UserError(f"image {i}")
        return image(i)

    for step, (pixels, errors) in zip(STEPS, Loader(SHAPE, workers).batches(load, STEPS), strict=True):
        assert {place: str(error) for place, error in errors.items()} == {
            place: f"image {i}" for place, i in enumerate(step) if i % 10 == 3
        }
        assert all(pixels[place, 0, 0, 0] == i for place, i in enumerate(step) if place not in errors)


def test_what_is_left_of_an_epoch_is_not_loaded():
    started, go = [], threading.Event()

    def load(i: int) -> numpy.ndarray:
        started.append(i)
        if i >= 20:
            go.wait(5)
        return image(i)

    loader = Loader(SHAPE, 1)
    loaded = loader.batches(load, STEPS)
    next(loaded)
    loaded.close()
    go.set()
    assert [pixels[0, 0, 0, 0] for pixels, _ in loader.batches(image, [[7]])] == [7]
    assert len(started) <= len(STEPS[0]) + 2 * TASK


def test_pinned_memory_is_asked_for(monkeypatch):
    asked = []
    empty = torch.empty
    monkeypatch.setattr(
        torch, "empty", lambda *shape, pin_memory, dtype: asked.append(pin_memory) or empty(shape, dtype=dtype)
    )
    for pinned in (False, True):
        list(Loader(SHAPE, 0, pinned).batches(image, [[1]]))
    assert asked == [False, True]
