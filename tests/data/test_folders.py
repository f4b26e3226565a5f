"""Folders of images: what is read into memory, how an image is decoded, and which mistakes are named."""

import pytest
from PIL import Image

import data
from data.batches import LoadedBatches
from data.decoding import IMAGENET_MEAN, IMAGENET_STD
from tests.data.conftest import imagefolder
from utils.errors import UserError


def test_imagefolder_in_memory(folder):
    dataset = imagefolder(folder, workers=2)
    assert dataset.classes == ["cat", "dog"]
    assert dataset.train.pixels.shape == (12, 32, 32, 3)
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 6
    assert (dataset.mean, dataset.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert type(imagefolder(folder, cache="never", workers=2).train) is data.Files


def test_imagefolder_too_large_for_memory_is_read_by_the_batch(folder, monkeypatch):
    monkeypatch.setattr("data.folders.MEMORY_BYTES", 1)
    dataset = imagefolder(folder, workers=2)
    assert type(imagefolder(folder, cache="always", workers=2).train) is data.Images
    for draw in (None, data.Draw(seed=0, augment="crop", flip=True)):
        batches = data.batches(dataset.train, 5, dataset.mean, dataset.std, 32, draw)
        assert isinstance(batches, LoadedBatches)
        shapes = [tuple(x.shape) for x, _ in batches]
        assert shapes == [(5, 3, 32, 32), (5, 3, 32, 32), (2, 3, 32, 32)]


def test_mistakes_are_named(folder):
    with pytest.raises(UserError, match=r"no folder .*/nowhere; expected"):
        imagefolder(folder / "nowhere")
    (folder / "train" / "cat" / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"broken\.jpg: not a readable image"):
        imagefolder(folder)
    (folder / "test" / "bird").mkdir()
    with pytest.raises(UserError, match="has classes that train/ has not: bird"):
        imagefolder(folder)


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


def test_an_empty_folder_is_named(tmp_path):
    for part in ("train", "val"):
        (tmp_path / part / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="no images under"):
        imagefolder(tmp_path)


def test_the_way_of_reading_a_folder_does_not_depend_on_the_part_or_the_limit(folder, monkeypatch):
    """8 test images would fit alone; training and measuring must see the same crops all the same."""
    (folder / "train" / ".hidden").mkdir()
    monkeypatch.setattr("data.folders.MEMORY_BYTES", 10 * 3 * 32**2)
    load = data.DATASETS["imagefolder"].load
    few, test_alone = load(32, 2, root=str(folder)), load(32, None, train=False, root=str(folder))
    for dataset in (imagefolder(folder), few, test_alone):
        assert isinstance(dataset.test, data.Files)
        assert dataset.classes == ["cat", "dog"]


def add_part(folder, name: str, count: int) -> None:
    for label, kind in enumerate(("cat", "dog")):
        (folder / name / kind).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 40), (label, i, 9)).save(folder / name / kind / f"{i}.png")


@pytest.mark.parametrize("cache", ["always", "never"])
def test_where_there_are_three_parts_val_is_held_out_and_test_is_measured(folder, cache):
    alone = imagefolder(folder, cache=cache)
    add_part(folder, "val", 3)
    dataset = imagefolder(folder, cache=cache)
    assert alone.val is None
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (12, 6, 4)
    assert dataset.val.labels.tolist() == [0] * 3 + [1] * 3
    assert dataset.mean == alone.mean
    measured = data.DATASETS["imagefolder"].load(32, None, train=False, root=str(folder), cache=cache)
    assert (measured.train, measured.val, len(measured.test)) == (None, None, 4)


def test_val_is_the_test_images_where_there_are_no_others(folder):
    (folder / "test").rename(folder / "val")
    dataset = imagefolder(folder)
    assert (len(dataset.test), dataset.val) == (4, None)


def test_images_of_val_exclude_a_share_of_the_training_images(folder):
    add_part(folder, "val", 1)
    assert len(data.split(imagefolder(folder), 0).val) == 2
    with pytest.raises(UserError, match=r"data\.val_fraction: the dataset has validation images of its own"):
        data.split(imagefolder(folder), 0.5)


@pytest.mark.parametrize("emptied", [False, True])
def test_a_class_that_a_part_lacks_is_named_and_the_others_keep_their_labels(folder, emptied, capsys):
    for path in (folder / "test" / "cat").iterdir():
        path.unlink()
    if not emptied:
        (folder / "test" / "cat").rmdir()
    assert imagefolder(folder).test.labels.tolist() == [1, 1]
    assert f"{folder / 'test'}: no images of 1 of 2 classes: cat\n" in capsys.readouterr().out


def test_a_class_that_a_part_has_alone_is_named_with_the_nearest(folder):
    (folder / "test" / "dogs").mkdir()
    with pytest.raises(UserError, match=r"has classes that train/ has not: dogs \(nearest to dogs: dog\)"):
        imagefolder(folder)


def test_files_that_are_no_images_are_counted_in_one_line_a_part(folder, capsys):
    for i in range(3):
        (folder / "train" / "cat" / f"{i}.txt").write_text("a cat")
    (folder / "train" / "dog" / "film.mov").write_bytes(bytes(50))
    (folder / "test" / "dog" / "film.mov").write_bytes(bytes(50))
    data.DATASETS["imagefolder"].load(32, None, train=False, root=str(folder))
    assert capsys.readouterr().out == f"{folder / 'test'}: not images: 1 .mov in class dog\n"
    imagefolder(folder)
    assert f"{folder / 'train'}: not images: 3 .txt in class cat; 1 .mov in class dog\n" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_with_a_hostile_name_is_named_in_one_printable_line(folder, workers):
    (folder / "test" / "cat" / "a\n\x1b[2J\udce9.png").write_bytes(b"not an image")
    dataset = imagefolder(folder, cache="never", workers=workers)
    with pytest.raises(UserError) as refused:
        list(data.batches(dataset.test, 8, dataset.mean, dataset.std, 32))
    path = folder / "test" / "cat" / r"a\x0a\x1b[2J\xe9.png"
    assert str(refused.value) == f"{path}: not a readable image (of no format that Pillow knows)"


@pytest.fixture
def classes(tmp_path):
    """A folder of classes: ten cats, five dogs, one emu."""
    for name, count in (("cat", 10), ("dog", 5), ("emu", 1)):
        (tmp_path / "all" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 40), (i, 0, 0)).save(tmp_path / "all" / name / f"{i}.png")
    return tmp_path / "all"


def test_of_a_folder_of_classes_a_share_of_each_is_held_out(classes, capsys):
    dataset = imagefolder(classes)
    assert dataset.classes == ["cat", "dog", "emu"]
    assert (dataset.train.labels.bincount().tolist(), dataset.test.labels.bincount(minlength=3).tolist()) == (
        [8, 4, 1],
        [2, 1, 0],
    )
    assert f"{classes}: no train/ and test/: of 16 images, 3 are held out to test on" in capsys.readouterr().out
    names = {path for part in (dataset.train, dataset.test) for path in part.source.paths}
    assert len(names) == 16
    assert imagefolder(classes, test_fraction=0.5).test.labels.bincount(minlength=3).tolist() == [5, 2, 0]


def test_what_is_held_out_does_not_depend_on_the_part_the_limit_or_the_folder(classes, tmp_path):
    whole = imagefolder(classes, cache="never")
    measured = data.DATASETS["imagefolder"].load(32, None, train=False, root=str(classes), cache="never")
    assert measured.test.paths == whole.test.paths
    assert measured.train is None
    classes.rename(tmp_path / "moved")
    moved = imagefolder(tmp_path / "moved", cache="never")
    assert [path.name for path in moved.test.paths] == [path.name for path in whole.test.paths]


def test_folders_of_images_look_like_classes(classes, folder, tmp_path):
    from data import looks_like_imagefolder as looks_like

    assert looks_like(str(classes))
    assert looks_like(str(folder))
    (classes / "notes").mkdir()
    assert not looks_like(str(classes)), "a folder without images"
    assert not looks_like(str(tmp_path / "nowhere"))
