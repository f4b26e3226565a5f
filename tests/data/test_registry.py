"""The table of datasets: a section names a row, and is loaded with the keys that the row reads."""

from dataclasses import replace

import numpy
import pytest
import torch
from PIL import Image

import data
from data import registry
from data.sources import NoOptions
from utils.config import validate_section
from utils.errors import UserError


def section(**keys) -> data.DataSettings:
    return validate_section("data", data.SECTIONS, keys)


def test_a_row_is_loaded_with_its_own_keys(folder):
    dataset = data.load(section(name="imagefolder", root=str(folder), image_size=16, limit=3, workers=0, cache="never"))
    assert type(dataset.train) is data.Files
    assert (len(dataset.train), len(dataset.test), dataset.train.workers) == (3, 3, 0)


def test_training_images_are_left_out_if_not_asked_for():
    dataset = data.load(section(image_size=8), train=False)
    assert torch.equal(dataset.test.pixels, data.load(section(image_size=8)).test.pixels)
    with pytest.raises(ValueError, match="without its training images"):
        _ = data.load(section(name="fake"), train=False).training


def test_a_key_of_another_dataset_is_refused():
    with pytest.raises(UserError, match=r"data.cache is read by imagefolder; data.name is digits"):
        section(cache="never")


def test_a_function_that_is_not_there_is_refused():
    registry.check(section())
    registry.check(section(name="tests.data.example:squares"))
    with pytest.raises(UserError, match="no_such_module"):
        registry.check(section(name="no_such_module:load"))


def test_other_values_override_those_of_a_section(folder):
    found = data.with_overrides(section(image_size=24, batch_size=7), {"limit": 5})
    assert (found.name, found.image_size, found.batch_size, found.limit) == ("digits", 24, 7, 5)
    trained = section(name="imagefolder", root=str(folder), image_size=24, workers=1)
    other = data.with_overrides(trained, {"name": "fake"})
    assert (other.name, other.image_size) == ("fake", 24)
    assert not hasattr(other, "root"), "a key that fake does not read"
    with pytest.raises(UserError, match=r"data.wrkers: unknown key, did you mean workers\?"):
        data.with_overrides(trained, {"wrkers": 2})


SIZES = {"digits": 16, "cifar10": 32, "cifar100": 32, "svhn": 32, "fashion_mnist": 28, "fake": 32}
SIZES |= {"imagenet": 224, "imagefolder": 224}


@pytest.mark.parametrize("name", list(data.DATASETS))
def test_each_dataset_has_an_image_size_of_its_own(name):
    assert section(name=name).image_size == SIZES[name]
    assert section(name=name, image_size=40).image_size == 40


def test_a_section_that_is_switch_dataset_keeps_what_the_other_reads():
    values = {"name": "imagefolder", "root": "here", "cache": "never", "image_size": 24, "batch_size": 5}
    assert data.switch_dataset(values, "svhn") == (
        {"name": "svhn", "root": "here", "batch_size": 5},
        ["cache", "image_size"],
    )
    assert data.switch_dataset(values, "digits") == (
        {"name": "digits", "batch_size": 5},
        ["root", "cache", "image_size"],
    )
    assert data.switch_dataset(values, "mine:images")[0] == {"name": "mine:images", "batch_size": 5}


def test_class_names_are_loaded_in_the_form_in_which_they_are_saved(monkeypatch):
    dataset = replace(registry.DATASETS["digits"].load(8, 20), classes=["caf\udce9", r"caf\xe9", "a\nb", 3])
    monkeypatch.setitem(registry.DATASETS, "digits", registry.Row(lambda *_: dataset, NoOptions))
    loaded = data.load(section(image_size=8))
    assert loaded.classes == [r"caf\xe9", r"caf\\xe9", r"a\x0ab", "3"]
    assert data.split(loaded, 0.5).classes == loaded.classes


@pytest.mark.parametrize("name", ["digits", "imagefolder", "fake"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_have_the_channels_that_are_asked_for(name, channels, folder):
    own = {"root": str(folder), "workers": 0} if name == "imagefolder" else {"limit": 5}
    dataset = data.load(section(name=name, channels=channels, image_size=16, **own))
    for images in (dataset.train, dataset.test):
        assert images.pixels.shape[1:] == (16, 16, channels)
    assert [len(dataset.mean), len(dataset.std)] == [channels] * 2


def test_grey_is_what_pillow_makes_of_rgb():
    colour, grey = (data.load(section(name="fake", channels=channels, limit=3)).train.pixels for channels in (3, 1))
    for image, found in zip(colour, grey, strict=True):
        assert numpy.array_equal(numpy.asarray(Image.fromarray(image.numpy()).convert("L")), found[..., 0].numpy())


def test_mean_and_std_are_those_of_the_section():
    dataset = data.load(section(mean=[0.1, 0.2, 0.3], limit=5))
    assert (dataset.mean, len(dataset.std)) == ((0.1, 0.2, 0.3), 3)
    registry.check(section(channels=1, std=[0.5]))
    with pytest.raises(UserError, match=r"^data.mean: 3 numbers for images of 1 channel"):
        registry.check(section(channels=1, mean=[0.1, 0.2, 0.3]))


def test_another_image_size_sees_as_large_a_part():
    d = section(name="imagefolder", image_size=224, resize=256)
    assert registry.with_overrides(d, {"image_size": 112}).resize == 128
    assert registry.with_overrides(d, {"image_size": 112, "resize": 112}).resize == 112
    assert registry.stated(section(name="imagefolder", image_size=112))["resize"] == 128


@pytest.mark.parametrize(
    ("keys", "parts", "share"),
    [
        ({"name": "imagefolder"}, ["train", "test"], 0.1),
        ({"name": "imagefolder"}, ["train", "val"], 0.1),
        ({"name": "imagefolder"}, ["train", "val", "test"], 0.0),
        ({"name": "imagefolder", "val_fraction": 0.0}, ["train", "test"], 0.0),
        ({"name": "digits"}, [], 0.0),
        ({"name": "digits", "val_fraction": 0.2}, [], 0.2),
    ],
)
def test_folders_without_validation_images_hold_out_a_tenth(keys, parts, share, tmp_path):
    for part in parts:
        (tmp_path / part).mkdir()
    own = {"root": str(tmp_path)} if keys["name"] == "imagefolder" else {}
    assert registry.with_val_fraction(section(**keys, **own)).val_fraction == share
