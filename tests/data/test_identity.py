"""A dataset is told apart by its classes and images, not by where, since when and how they are kept."""

import os
import shutil

import pytest
import torch

import data
from data.identity import identity
from data.images import Images
from tests.data.conftest import imagefolder


def test_it_names_classes_and_counts_images_of_each(folder):
    found = identity(imagefolder(folder))
    names = found["classes"]
    assert names == {str(i): name for i, name in enumerate(sorted(p.name for p in (folder / "train").iterdir()))}
    for part, place in (("training", "train"), ("test", "test")):
        counted = {f"{i} {name}": len([*(folder / place / name).iterdir()]) for i, name in names.items()}
        assert found[part]["images"] == counted


def test_it_is_the_same_elsewhere_later_and_whether_images_are_kept_or_not(folder, tmp_path):
    kept = identity(imagefolder(folder, cache="always"))
    assert identity(imagefolder(folder, cache="never")) == kept
    elsewhere = tmp_path / "deep" / "er"
    shutil.copytree(folder, elsewhere)
    for path in elsewhere.rglob("*"):
        os.utime(path, (1, 1))
    assert identity(imagefolder(elsewhere, cache="always")) == kept


def rename_a_class(folder):
    first, *_, last = sorted((folder / "train").iterdir())
    for part in ("train", "test"):
        (folder / part / first.name).rename(folder / part / f"{last.name}z")


def exchange_two_classes(folder):
    first, second, *_ = sorted((folder / "train").iterdir())
    first.rename(folder / "train" / "0")
    second.rename(first)
    (folder / "train" / "0").rename(second)


def rename_an_image(folder):
    image = next(path for path in sorted((folder / "test").rglob("*")) if path.is_file())
    image.rename(image.with_name("zz" + image.name))


def grow_an_image(folder):
    image = next(path for path in sorted((folder / "train").rglob("*")) if path.is_file())
    image.write_bytes(image.read_bytes() + b"\0")


@pytest.mark.parametrize("change", [rename_a_class, exchange_two_classes, rename_an_image, grow_an_image])
@pytest.mark.parametrize("cache", ["always", "never"])
def test_any_change_of_the_folder_is_seen(change, cache, folder):
    before = identity(imagefolder(folder, cache=cache))
    change(folder)
    assert identity(imagefolder(folder, cache=cache)) != before


def test_images_of_no_files_are_told_apart_by_their_contents():
    dataset = data.DATASETS["fake"].load(16, 40)
    same = data.DATASETS["fake"].load(16, 40)
    assert identity(dataset) == identity(same)
    same.training.pixels[7, 3, 2, 1] ^= 1
    assert identity(dataset)["training"] != identity(same)["training"]
    assert identity(dataset)["test"] == identity(same)["test"]


def test_taken_images_keep_their_files(folder):
    images = imagefolder(folder, cache="always").training
    taken = images.take(torch.tensor([3, 1]))
    assert taken.source.paths == [images.source.paths[3], images.source.paths[1]]
    assert Images(images.pixels, images.labels).take(torch.tensor([0])).source is None


def test_held_out_images_are_a_part_of_their_own(folder):
    whole = imagefolder(folder)
    found = identity(data.split(whole, 0.5))
    counts = [sum(found[part]["images"].values()) for part in ("training", "validation")]
    assert sum(counts) == len(whole.training)
    assert min(counts) > 0
