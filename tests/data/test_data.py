"""Datasets give uint8 images in memory; batches augment, normalise and shuffle as they say, by a seed."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import data
from data.batches import PAD, Batches, FileBatches, MemoryBatches
from data.folders import open_image
from utils.errors import UserError

ONE = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}  # pixels come out as they are


@pytest.fixture
def folder(tmp_path):
    """Two classes of odd-sized images, 12 to train and 4 to test."""
    random = numpy.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (40 + i, 52, 3), dtype=numpy.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("name", ["digits", "fake"])
def test_embedded_datasets(name):
    dataset = data.DATASETS[name].load(16, None)
    for part in (dataset.train, dataset.test):
        assert part.pixels.dtype == torch.uint8
        assert part.pixels.shape == (len(part), 16, 16, 3)
        assert set(part.labels.tolist()) == set(range(10))
    again = data.DATASETS[name].load(16, None)
    assert torch.equal(dataset.train.pixels, again.train.pixels)
    assert torch.equal(dataset.test.labels, again.test.labels)


def test_digits_are_all_there_once():
    dataset = data.DATASETS["digits"].load(8, None)
    assert (len(dataset.train), len(dataset.test)) == (1437, 360)


def test_limit_takes_a_fixed_shuffle_of_both_parts():
    whole, few = data.DATASETS["digits"].load(8, None), data.DATASETS["digits"].load(8, 100)
    assert (len(few.train), len(few.test)) == (100, 100)
    assert len(few.train.labels.unique()) == 10
    assert torch.equal(few.train.pixels, data.first(whole.train, 100).pixels)


def test_validation_images_are_held_out_of_training():
    whole = data.DATASETS["digits"].load(8, None)
    parts = data.split(whole, 0.2)
    assert (len(parts.train), len(parts.val)) == (1437 - 287, 287)
    rows = torch.cat([parts.train.pixels, parts.val.pixels]).flatten(1)
    assert torch.equal(rows.double().sum(), whole.train.pixels.double().sum())
    assert data.split(whole, 0.0).val is None
    assert len(data.split(whole, 1e-6).val) == 1, "asked for some, there are some"


def imagefolder(folder: Path, workers: int = 0, **options) -> data.Dataset:
    return data.DATASETS["imagefolder"].load(32, None, root=str(folder), workers=workers, **options)


def test_imagefolder_in_memory(folder):
    dataset = imagefolder(folder, workers=2)
    assert dataset.classes == ["cat", "dog"]
    assert dataset.train.pixels.shape == (12, 32, 32, 3)
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 6
    assert 0.4 < dataset.mean[0] < 0.6
    assert type(imagefolder(folder, cache="never", workers=2).train) is data.Files


def test_imagefolder_too_large_for_memory_is_read_by_the_batch(folder, monkeypatch):
    monkeypatch.setattr("data.folders.MEMORY_BYTES", 1)
    dataset = imagefolder(folder, workers=2)
    assert type(imagefolder(folder, cache="always", workers=2).train) is data.Images
    for draw in (None, data.Draw(seed=0, augment=True, flip=True)):
        batches = data.batches(dataset.train, 5, dataset.mean, dataset.std, 32, draw)
        assert isinstance(batches, FileBatches)
        shapes = [tuple(x.shape) for x, _ in batches]
        assert shapes == [(5, 3, 32, 32), (5, 3, 32, 32), (2, 3, 32, 32)]


def test_unaugmented_batches_are_the_images_in_order():
    images = data.DATASETS["fake"].load(16, 50).train
    pixels, labels = zip(*MemoryBatches(images, 20, **ONE), strict=True)
    assert [len(p) for p in pixels] == [20, 20, 10]
    assert pixels[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(torch.cat(pixels), images.pixels.permute(0, 3, 1, 2).float(), atol=1e-3)
    assert torch.equal(torch.cat(labels), images.labels)


def test_normalisation():
    dataset = data.DATASETS["digits"].load(16, None)
    x = torch.cat([x for x, _ in MemoryBatches(dataset.train, 500, dataset.mean, dataset.std)])
    assert x.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert (x.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3


def test_images_normalised_otherwise_are_the_same_pixels():
    images = data.DATASETS["fake"].load(12, 20).train
    here, there = ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)), ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    (one, _), (other, _) = (next(iter(data.batches(images, 20, *norm, 12))) for norm in (here, there))
    gain, shift = data.renormalized(here, there)
    assert torch.allclose(one * gain + shift, other, atol=1e-5)


def test_every_augmented_image_is_a_crop_of_its_padded_self_or_its_mirror():
    images = data.DATASETS["fake"].load(12, 60).train
    draw = data.Draw(seed=3, augment=True, flip=True)
    batches = MemoryBatches(images, 60, **ONE, draw=draw)
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


def test_what_is_drawn_depends_on_the_seed_the_epoch_and_the_step_alone(drawn):
    draw = data.Draw(seed=5, augment=True, flip=True)
    every = [pixels(drawn(draw), epoch) for epoch in range(2)]
    assert not same(every[0], every[1])
    assert not same(every[0], pixels(drawn(data.Draw(seed=6, augment=True, flip=True))))
    torch.manual_seed(1)
    assert same(every[1], pixels(drawn(draw), 1)), "without the epoch before, and wherever torch's generator stands"
    assert same(every[1], pixels(drawn(draw, workers=2), 1))
    assert same(every[1][2:], pixels(drawn(draw), 1, first=2)), "in the middle of an epoch"


def test_processes_share_each_batch(drawn):
    alone = pixels(drawn(data.Draw(seed=5, augment=True)), 1)
    parts = [pixels(drawn(data.Draw(seed=5, augment=True, rank=rank, world=2)), 1) for rank in range(2)]
    assert len(alone) == 3, "twelve images: 5, 5 and 2"
    assert len(parts[0]) == 2, "two images are too few for two processes"
    for whole, first, second in zip(alone, *parts, strict=False):
        assert torch.equal(whole[0::2], first)
        assert torch.equal(whole[1::2], second)


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


def test_mistakes_are_named(folder):
    with pytest.raises(UserError, match=r"no folder .*/nowhere; expected"):
        imagefolder(folder / "nowhere")
    (folder / "train" / "cat" / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"broken\.jpg: not a readable image"):
        imagefolder(folder)
    (folder / "test" / "bird").mkdir()
    with pytest.raises(UserError, match="has classes that train/ has not: bird"):
        imagefolder(folder)


def test_a_last_training_batch_of_one_is_left_out():
    images = data.DATASETS["fake"].load(8, 41).train
    training = MemoryBatches(images, 20, **ONE, draw=data.Draw(seed=0))
    assert [len(y) for _, y in training] == [20, 20]
    assert len(training) == 2
    assert [len(y) for _, y in MemoryBatches(images, 20, **ONE)] == [20, 20, 1]


def test_a_validation_share_must_leave_images_to_train_on():
    with pytest.raises(UserError, match="leaves none to train on"):
        data.split(data.DATASETS["fake"].load(8, 3), 0.9)


def test_a_broken_file_is_named_by_worker_processes_too(folder, monkeypatch):
    monkeypatch.setattr("data.folders.MEMORY_BYTES", 1)
    dataset = imagefolder(folder, workers=1)
    dataset.test.paths[0].write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"^[^\n]*0\.png: not a readable image[^\n]*$"):
        list(data.batches(dataset.test, 2, dataset.mean, dataset.std, 32))


def broken_png(path) -> None:
    """Damage that shows while it is decoded: PIL has a SyntaxError for it."""
    Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=numpy.uint8)).save(path)
    content = bytearray(path.read_bytes())
    second = content.index(b"IDAT", content.index(b"IDAT") + 4)
    content[second : second + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)


def truncated_jpeg(path) -> None:
    Image.fromarray(numpy.zeros((64, 64, 3), numpy.uint8)).save(path, format="jpeg")
    path.write_bytes(path.read_bytes()[:-200])


def bomb(path) -> None:
    Image.new("1", (20_000, 20_000)).save(path)


@pytest.mark.parametrize("damage", [broken_png, truncated_jpeg, bomb])
def test_whatever_is_wrong_with_an_image_is_a_line_with_its_path(damage, tmp_path):
    damage(tmp_path / "0.png")
    with pytest.raises(UserError, match=r"^[^\n]*0\.png: not a readable image \([^\n]+\)$"):
        open_image(tmp_path / "0.png")


def on_its_side(image: Image.Image, path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def in_16_bits(image: Image.Image, path) -> None:
    Image.fromarray(numpy.asarray(image.convert("L")).astype(numpy.uint16) * 257).save(path)


def with_alpha(image: Image.Image, path) -> None:
    clear = image.convert("RGBA")
    clear.putalpha(Image.fromarray(255 * (numpy.asarray(image)[..., 0] < 128).astype(numpy.uint8)))
    clear.save(path)


def palette(image: Image.Image, path) -> None:
    few = Image.fromarray((numpy.asarray(image)[..., 0] // 128).astype(numpy.uint8), mode="P")
    few.putpalette([10, 20, 30, 40, 50, 60])
    few.save(path, transparency=b"\x00\xff")


def seen(image: Image.Image, save) -> numpy.ndarray:
    """What `save` stores, as it is to be seen."""
    pixels = numpy.asarray(image)
    if save is in_16_bits:
        return numpy.repeat(numpy.asarray(image.convert("L"))[..., None], 3, 2)
    if save is with_alpha:
        return numpy.where(pixels[..., :1] < 128, pixels, 255)
    return numpy.where(pixels[..., :1] < 128, 255, (40, 50, 60)) if save is palette else pixels


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("save", [on_its_side, in_16_bits, with_alpha, palette])
def test_images_are_read_as_people_see_them(save, tmp_path):
    image = Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=numpy.uint8))
    save(image, tmp_path / "0.png")
    assert numpy.array_equal(numpy.asarray(open_image(tmp_path / "0.png")), seen(image, save))


def test_a_class_without_images_is_named(folder):
    (folder / "train" / "emu").mkdir()
    (folder / "train" / "emu" / "0.psd").write_bytes(b"of a program that nobody else has")
    with pytest.raises(UserError, match=r"data.root: no images under .*train/emu \(looked for .*\.tif"):
        imagefolder(folder)


def test_images_none_of_which_can_be_read_are_no_dataset(folder):
    for path in (folder / "test").rglob("*.png"):
        path.write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"data.root: none of 4 images can be read"):
        imagefolder(folder, on_error="skip")


def test_hidden_files_are_no_images(folder):
    (folder / "train" / "cat" / "._0.png").write_bytes(b"what another system keeps beside a file")
    assert len(imagefolder(folder).train) == 12


def test_a_broken_file_is_left_out_if_asked(folder, monkeypatch, capsys):
    """In memory and by the batch, in training and in measuring; each is named once."""
    broken = folder / "train" / "cat" / "0.png"
    broken.write_bytes(b"not an image")
    for limit in (2**31, 1):
        monkeypatch.setattr("data.folders.MEMORY_BYTES", limit)
        dataset = imagefolder(folder, on_error="skip", workers=1)
        for draw in (None, data.Draw(seed=0, augment=True)):
            batches = data.batches(dataset.train, 6, dataset.mean, dataset.std, 32, draw)
            for epoch in range(2):
                assert sum(len(y) for _, y in batches.epoch(epoch)) == 11
            if limit == 1:
                assert capsys.readouterr().out.count("left out:") == 1
        if limit > 1:
            assert capsys.readouterr().out.count(f"left out: {broken}: not a readable image") == 1


def test_where_a_data_worker_dies_others_take_its_place(folder, monkeypatch, capsys):
    """The batches are those of a run in which none died."""
    monkeypatch.setattr("data.folders.MEMORY_BYTES", 1)
    dataset = imagefolder(folder, workers=1)

    def make():
        return data.batches(dataset.train, 2, dataset.mean, dataset.std, 32, data.Draw(seed=1, augment=True))

    whole, found = pixels(make()), []
    for images, _ in make().epoch(0):
        found.append(images)
        if len(found) == 2:
            for worker in multiprocessing.active_children():
                worker.kill()
    assert same(whole, found)
    assert "a data worker died" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["digits", "imagefolder"])
def test_no_images_are_no_batches(source, folder, monkeypatch):
    """A process's share of few validation images, say."""
    monkeypatch.setattr("data.folders.MEMORY_BYTES", 1)
    options = {"root": str(folder)} if source == "imagefolder" else {}
    dataset = data.DATASETS[source].load(16, None, **options)
    none = data.batches(dataset.test.take(torch.arange(0)), 2, dataset.mean, dataset.std, 16)
    assert len(none) == 0
    assert list(none) == []


def test_a_bug_in_a_worker_is_not_its_death(folder, monkeypatch):
    def bug(path):
        raise RuntimeError("a bug")

    monkeypatch.setattr("data.folders.MEMORY_BYTES", 1)
    dataset = imagefolder(folder, workers=1)
    monkeypatch.setattr(sys.modules["data.batches"], "open_image", bug)
    with pytest.raises(RuntimeError, match="a bug"):
        list(data.batches(dataset.test, 2, dataset.mean, dataset.std, 32))


def test_workers_that_always_die_end_the_run(folder, monkeypatch):
    monkeypatch.setattr(sys.modules["data.batches"], "RETRIES", 1)
    monkeypatch.setattr("data.folders.MEMORY_BYTES", 1)
    dataset = imagefolder(folder, workers=1)
    monkeypatch.setattr(sys.modules["data.batches"], "open_image", lambda path: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match=r"data.workers: workers died 2 times"):
        list(data.batches(dataset.test, 2, dataset.mean, dataset.std, 32))


def test_an_empty_folder_is_named(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="no images under"):
        imagefolder(tmp_path)


def test_cifar10_without_a_network_says_where_the_file_goes(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fail)
    with pytest.raises(UserError, match=r"put cifar-10-python.tar.gz into"):
        data.DATASETS["cifar10"].load(32, None, root=str(tmp_path))


def test_the_way_of_reading_a_folder_does_not_depend_on_the_part_or_the_limit(folder, monkeypatch):
    """8 test images would fit alone; training and measuring must see the same crops all the same."""
    (folder / "train" / ".hidden").mkdir()
    monkeypatch.setattr("data.folders.MEMORY_BYTES", 10 * 3 * 32**2)
    load = data.DATASETS["imagefolder"].load
    few, test_alone = load(32, 2, root=str(folder)), load(32, None, train=False, root=str(folder))
    for dataset in (imagefolder(folder), few, test_alone):
        assert isinstance(dataset.test, data.Files)
        assert dataset.classes == ["cat", "dog"]
