"""Batches augment, normalize and shuffle by a seed, in memory and from files, in one process and in several."""

from dataclasses import replace

import numpy
import pytest
import torch
from PIL import Image

import data
from data.augment import PAD
from data.batches import Batches, MemoryBatches
from data.images import Images
from data.mixing import Mixing
from data.policies import POLICIES
from tests.data.conftest import imagefolder
from utils.errors import UserError

ONE = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}  # pixels come out as they are


def test_unaugmented_batches_are_the_images_in_order():
    images = data.DATASETS["fake"].load(16, 50).train
    pixels, labels = zip(*MemoryBatches(images, 20, **ONE, image_size=16), strict=True)
    assert [len(p) for p in pixels] == [20, 20, 10]
    assert pixels[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(torch.cat(pixels), images.pixels.permute(0, 3, 1, 2).float(), atol=1e-3)
    assert torch.equal(torch.cat(labels), images.labels)


def test_normalization():
    dataset = data.DATASETS["digits"].load(16, None)
    x = torch.cat([x for x, _ in MemoryBatches(dataset.train, 500, dataset.mean, dataset.std, 16)])
    assert x.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert (x.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3


def test_every_augmented_image_is_a_crop_of_its_padded_self_or_its_mirror():
    images = data.DATASETS["fake"].load(12, 60).train
    draw = data.Draw(seed=3, augment="crop", flip=True)
    batches = MemoryBatches(images, 60, **ONE, image_size=12, draw=draw)
    order = torch.randperm(60, generator=draw.generator(epoch=0))
    x, labels = next(iter(batches))
    assert torch.equal(labels, images.labels[order])
    padded = torch.nn.functional.pad(images.pixels.permute(0, 3, 1, 2).float(), (PAD,) * 4)
    shifts, mirrored = set(), 0
    for found, original in zip(x, padded[order], strict=True):
        matches = [
            (top, left, flip)
            for top in range(2 * PAD + 1)
            for left in range(2 * PAD + 1)
            for flip in (False, True)
            if (original[:, top : top + 12, left : left + 12] - (found.flip(2) if flip else found)).abs().max() < 1e-2
        ]
        assert len(matches) == 1
        shifts.add(matches[0][:2])
        mirrored += matches[0][2]
    assert len(shifts) > 20
    assert 15 < mirrored < 45


@pytest.fixture(params=["memory", "files"])
def drawn(request, folder, monkeypatch):
    """Makes batches of 5 of twelve images, in memory or from files, by a draw and so many workers."""
    if request.param == "files":
        monkeypatch.setattr("data.folders.MEMORY_BYTES", 1)

    def make(draw: data.Draw | None, workers: int = 0) -> Batches:
        dataset = imagefolder(folder, workers=workers)
        return data.batches(dataset.train, 5, dataset.mean, dataset.std, 32, draw)

    return make


def pixels(batches, epoch: int = 0, first: int = 0) -> list[torch.Tensor]:
    return [x for x, _ in batches.epoch(epoch, first)]


def same(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(map(torch.equal, some, others))


CROP = data.Draw(seed=5, augment="crop", flip=True)
ALL = replace(CROP, augment="trivial", erasing=0.5, mixing=Mixing(0.4, 1.0, 2), balanced=True)


@pytest.mark.parametrize("draw", [CROP, ALL], ids=["crop", "all"])
def test_what_is_drawn_depends_on_the_seed_the_epoch_and_the_step_alone(draw, drawn):
    every = [pixels(drawn(draw), epoch) for epoch in range(2)]
    assert not same(every[0], every[1])
    assert not same(every[0], pixels(drawn(replace(draw, seed=6))))
    torch.manual_seed(1)
    assert same(every[1], pixels(drawn(draw), 1)), "without the epoch before, and wherever torch's generator stands"
    assert same(every[1], pixels(drawn(draw, workers=2), 1))
    assert same(every[1][2:], pixels(drawn(draw), 1, first=2)), "in the middle of an epoch"


@pytest.mark.parametrize("draw", [CROP, replace(ALL, mixing=None)], ids=["crop", "all"])
def test_processes_share_each_batch(draw, drawn):
    """But for mixing, in which each process's images are mixed with each other."""
    alone = pixels(drawn(draw), 1)
    parts = [pixels(drawn(replace(draw, rank=rank, world=2)), 1) for rank in range(2)]
    assert len(alone) == 3, "twelve images: 5, 5 and 2"
    assert len(parts[0]) == 2, "two images are too few for two processes"
    for whole, first, second in zip(alone, *parts, strict=False):
        assert torch.equal(whole[0::2], first)
        assert torch.equal(whole[1::2], second)


@pytest.mark.parametrize("image_size", [32, 72])
@pytest.mark.parametrize("draw", [None, CROP, ALL], ids=["plain", "crop", "all"])
@pytest.mark.parametrize("part", ["train", "test"])
def test_whether_images_are_kept_in_memory_changes_no_bit(image_size, draw, part, folder):
    """Nor does the number of workers; small images are shifted, of larger ones parts are cut out."""
    found = []
    for cache, workers in (("always", 2), ("never", 0), ("never", 1)):
        load = data.DATASETS["imagefolder"].load
        dataset = load(image_size, None, root=str(folder), cache=cache, workers=workers, interpolation="bicubic")
        found.append(
            pixels(data.batches(getattr(dataset, part), 5, dataset.mean, dataset.std, image_size, draw), epoch=1)
        )
    assert found[0][0].shape[1:] == (3, image_size, image_size)
    assert same(found[0], found[1])
    assert same(found[0], found[2])


@pytest.mark.parametrize("change", [{"augment": name} for name in POLICIES] + [{"erasing": 1.0}], ids=str)
def test_what_is_asked_for_changes_the_cropped_images(change, drawn):
    plain, changed = (torch.cat(pixels(drawn(draw))) for draw in (CROP, replace(CROP, **change)))
    assert (plain != changed).flatten(1).any(1).float().mean() >= 0.5


def test_mixed_batches_have_probabilities(drawn):
    for _, probabilities in drawn(ALL):
        assert probabilities.shape[1:] == (2,)
        assert torch.allclose(probabilities.sum(1), torch.ones(len(probabilities)))


def test_balanced_sampling_takes_each_class_as_often_and_all_of_its_images():
    uneven = torch.cat([torch.zeros(900), torch.ones(90), torch.full((10,), 3)]).long()
    images = Images(torch.zeros(1000, 8, 8, 1, dtype=torch.uint8), uneven)
    batches = MemoryBatches(images, 100, (0.5,), (1.0,), 8, data.Draw(seed=0, balanced=True))
    labels = torch.cat([labels for number in range(4) for _, labels in batches.epoch(number)])
    assert len(labels) == 4000
    for label, share in ((0, 1 / 3), (1, 1 / 3), (2, 0), (3, 1 / 3)):
        assert (labels == label).float().mean() == pytest.approx(share, abs=0.03)
    list(batches.epoch(0))
    of_rarest = torch.cat(batches.seen)
    assert {*of_rarest[of_rarest >= 990].tolist()} == {*range(990, 1000)}


def test_parts_of_imagenet_are_cut_out_of_the_files_as_they_are(folder):
    """Not of the squares that are measured: one that is larger than those has details of the file."""
    (folder / "test").rename(folder / "val")
    random = numpy.random.default_rng(0)
    for path in (folder / "train").rglob("*.png"):
        Image.fromarray(random.integers(0, 256, (400, 400, 3), dtype=numpy.uint8)).save(path)
    draw = data.Draw(seed=1, augment="crop")
    sharp, soft = (
        data.batches(
            replace(data.DATASETS["imagenet"].load(72, None, root=str(folder), workers=0).train, whole=whole),
            12,
            **ONE,
            image_size=72,
            draw=draw,
        )
        for whole in (True, False)
    )
    (one, labels), (other, same_labels) = next(iter(sharp)), next(iter(soft))
    assert torch.equal(labels, same_labels)
    assert one.shape == (12, 3, 72, 72)
    assert one.std() > 1.5 * other.std(), "noise that is resized once, and twice"


@pytest.mark.parametrize(
    ("images", "batch_size", "world", "refused"),
    [
        (100, 1, 1, "data.batch_size: 1 images for 1 process"),
        (100, 15, 8, "data.batch_size: 15 images for 8 process"),
        (1, 32, 1, "data: 1 training images for 1 process"),
    ],
)
def test_each_process_has_two_images_a_step(images, batch_size, world, refused):
    data.check_training(2 * world, 2 * world, world)
    with pytest.raises(UserError, match=refused):
        data.check_training(images, batch_size, world)


def test_a_last_training_batch_of_one_is_left_out():
    images = data.DATASETS["fake"].load(8, 41).train
    training = MemoryBatches(images, 20, **ONE, image_size=8, draw=data.Draw(seed=0))
    assert [len(y) for _, y in training] == [20, 20]
    assert len(training) == 2
    assert [len(y) for _, y in MemoryBatches(images, 20, **ONE, image_size=8)] == [20, 20, 1]


def test_a_broken_file_is_named_by_threads_too(folder, monkeypatch):
    monkeypatch.setattr("data.folders.MEMORY_BYTES", 1)
    dataset = imagefolder(folder, workers=1)
    dataset.test.paths[0].write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"^[^\n]*0\.png: not a readable image[^\n]*$"):
        list(data.batches(dataset.test, 2, dataset.mean, dataset.std, 32))


def test_a_broken_file_is_left_out_if_asked(folder, monkeypatch, capsys):
    """In memory and by the batch, in training and in measuring; each is named once."""
    broken = folder / "train" / "cat" / "0.png"
    broken.write_bytes(b"not an image")
    for limit in (2**31, 1):
        monkeypatch.setattr("data.folders.MEMORY_BYTES", limit)
        dataset = imagefolder(folder, on_error="skip", workers=1)
        for draw in (None, data.Draw(seed=0, augment="crop")):
            batches = data.batches(dataset.train, 6, dataset.mean, dataset.std, 32, draw)
            for epoch in range(2):
                assert sum(len(y) for _, y in batches.epoch(epoch)) == 11
            if limit == 1:
                assert capsys.readouterr().out.count("left out:") == 1
        if limit > 1:
            assert capsys.readouterr().out.count(f"left out: {broken}: not a readable image") == 1


@pytest.mark.parametrize("broken", [[0, 1], [3], [0, 1, 2, 3]])
def test_batches_of_broken_files_alone_are_left_out_where_nothing_is_trained(broken, folder):
    dataset = imagefolder(folder, on_error="skip", cache="never")
    for i in broken:
        dataset.test.paths[i].write_bytes(b"not an image")
    batches = data.batches(dataset.test, 2 if len(broken) != 1 else 3, dataset.mean, dataset.std, 32)
    if len(broken) == 4:
        with pytest.raises(UserError, match=r"\.png: not a readable image .*, and no other image of its batch is"):
            list(batches)
    else:
        assert sum(len(labels) for _, labels in batches) == 4 - len(broken)


def test_a_training_step_of_broken_files_alone_ends_the_run(folder):
    dataset = imagefolder(folder, on_error="skip", cache="never")
    for path in dataset.train.paths[:-1]:
        path.write_bytes(b"not an image")
    with pytest.raises(UserError, match="and no other image of its batch is"):
        list(data.batches(dataset.train, 2, dataset.mean, dataset.std, 32, data.Draw(seed=0)))


@pytest.mark.parametrize("source", ["digits", "imagefolder"])
def test_no_images_are_no_batches(source, folder, monkeypatch):
    """A process's share of few validation images, say."""
    monkeypatch.setattr("data.folders.MEMORY_BYTES", 1)
    options = {"root": str(folder)} if source == "imagefolder" else {}
    dataset = data.DATASETS[source].load(16, None, **options)
    none = data.batches(dataset.test.take(torch.arange(0)), 2, dataset.mean, dataset.std, 16)
    assert len(none) == 0
    assert list(none) == []


def test_a_bug_in_a_thread_is_not_an_unreadable_image(folder, monkeypatch):
    def bug(path, channels):
        raise RuntimeError("a bug")

    dataset = imagefolder(folder, workers=1, cache="never", on_error="skip")
    monkeypatch.setattr("data.decoding.open_image", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        list(data.batches(dataset.test, 2, dataset.mean, dataset.std, 32))


ACCELERATOR = torch.device("meta")
"""It stands for one: it refuses to compute with tensors of the CPU, but has no values."""


@pytest.mark.parametrize("image_size", [32, 72])
@pytest.mark.parametrize("draw", [None, CROP, replace(ALL, augment="rand"), replace(ALL, augment="auto")], ids=str)
@pytest.mark.parametrize("cache", ["always", "never"])
def test_batches_are_made_on_the_device(image_size, draw, cache, folder):
    dataset = data.DATASETS["imagefolder"].load(image_size, None, root=str(folder), cache=cache, workers=1)
    made = data.batches(dataset.train, 5, dataset.mean, dataset.std, image_size, draw, ACCELERATOR)
    found = list(made)
    assert [len(images) for images, _ in found] == [5, 5, 2]
    assert {values.device for batch in found for values in batch} == {ACCELERATOR}
    assert found[0][0].is_contiguous(memory_format=torch.channels_last)


def test_small_images_stay_on_the_device(folder):
    images = data.DATASETS["fake"].load(32, 50).train
    assert MemoryBatches(images, 20, **ONE, image_size=32, device=ACCELERATOR).pixels.device == ACCELERATOR
    large = replace(images, pixels=torch.zeros(50, 72, 72, 3, dtype=torch.uint8))
    assert MemoryBatches(large, 20, **ONE, image_size=72, device=ACCELERATOR).pixels.device == torch.device("cpu")


def test_batches_say_which_images_they_had(folder, monkeypatch):
    """Of those with an unreadable image, too; and again from the start when they are iterated again."""
    monkeypatch.setattr("data.folders.MEMORY_BYTES", 1)
    dataset = imagefolder(folder, on_error="skip")
    dataset.train.paths[2].write_bytes(b"none")
    made = data.batches(dataset.train, 5, dataset.mean, dataset.std, 32)
    assert made.seen == []
    for _ in range(2):
        labels = torch.cat([labels for _, labels in made])
        seen = torch.cat(made.seen)
        assert seen.tolist() == [i for i in range(12) if i != 2]
        assert torch.equal(labels, dataset.train.labels[seen])
    memory = MemoryBatches(data.DATASETS["fake"].load(16, 50).train, 20, **ONE, image_size=16)
    next(iter(memory))
    assert [index.tolist() for index in memory.seen] == [[*range(20)]]


@pytest.mark.parametrize("in_memory", [True, False])
def test_the_pixels_are_what_the_model_sees(in_memory, folder, monkeypatch):
    monkeypatch.setattr("data.folders.MEMORY_BYTES", 10**9 if in_memory else 1)
    images = imagefolder(folder, workers=2).test
    assert isinstance(images, data.Images) == in_memory
    (seen, _), *_ = data.batches(images, len(images), **ONE, image_size=32)
    found = data.pixels(images, torch.tensor([3, 0]), 32)
    assert found.dtype == torch.uint8
    assert torch.allclose(seen[[3, 0]].permute(0, 2, 3, 1), found.float(), atol=1e-2)


def test_pixels_of_a_file_that_is_gone_are_an_error(folder, monkeypatch):
    monkeypatch.setattr("data.folders.MEMORY_BYTES", 1)
    images = imagefolder(folder, on_error="skip").test
    images.paths[1].unlink()
    with pytest.raises(UserError, match=r"1\.png"):
        data.pixels(images, torch.tensor([0, 1]), 32)
