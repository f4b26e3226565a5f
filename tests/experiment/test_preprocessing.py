"""What a setting leaves open of how images are made is as for its weights; what it says stays."""

import pytest

import data
import models
from experiment import preprocessing, training
from experiment.settings import ModelSettings, TrainSettings
from tests.data.conftest import folder  # noqa: F401  a fixture
from utils.config import validate, validate_section
from utils.runs import checkpoint, tensor_file

THEIRS = {
    "image_size": 224,
    "resize": 240,
    "crop": "center",
    "interpolation": "bicubic",
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
}


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A file of weights of which it is known what images it was trained with."""
    monkeypatch.setattr(models, "preprocessing", lambda name, weights: THEIRS)
    tensor_file.save(tmp_path / "theirs.pt", models.build("resnet20", 10, 32, {}).state_dict())
    return ModelSettings(name="resnet20", weights=str(tmp_path / "theirs.pt"))


def section(**keys) -> data.DataSettings:
    return validate_section("data", data.SECTIONS, {"name": "imagefolder"} | keys)


def test_null_is_what_the_weights_were_trained_with(published):
    found = preprocessing.as_weights(section(image_size=224), published)
    assert {key: getattr(found, key) for key in THEIRS} == THEIRS
    assert preprocessing.as_weights(section(image_size=112), published).resize == 120


def test_what_a_setting_says_stays(published):
    asked = {"image_size": 224, "resize": 224, "mean": [0.5] * 3, "std": [0.25] * 3}
    found = preprocessing.as_weights(section(**asked), published)
    assert {key: getattr(found, key) for key in asked} == asked
    assert found.interpolation == "bicubic"


def test_without_weights_all_stays_open(published):
    d = section(image_size=224)
    assert preprocessing.as_weights(d, ModelSettings()) == d


def test_a_dataset_takes_what_it_reads(published):
    found = preprocessing.as_weights(section(name="digits"), published)
    assert found.mean == THEIRS["mean"]
    assert not hasattr(found, "resize")


def test_means_of_three_channels_are_not_those_of_one(published):
    assert preprocessing.as_weights(section(channels=1), published).mean is None


def run(folder, tmp_path, *overrides):  # noqa: F811
    common = [f"data.root={folder}", f"run.dir={tmp_path}", "data.name=imagefolder", "data.workers=0"]
    training.main([*common, "data.batch_size=4", "model.name=resnet20", "quant.method=float", *overrides])


def test_a_run_from_a_checkpoint_sees_images_as_that_did(folder, tmp_path):  # noqa: F811
    """Its own geometry, scaled to another image size, and its means."""
    run(
        folder,
        tmp_path,
        "run.name=a",
        "run.epochs=1",
        "data.resize=40",
        "data.mean=[0.4,0.4,0.4]",
        "data.image_size=32",
    )
    state = checkpoint.load(str(tmp_path / "a" / "last.pt"))
    assert (state["mean"], state["settings"]["data"]["std"]) == ([0.4] * 3, None)
    asked = {"data": {"name": "imagefolder", "image_size": 48}, "model": {"weights": str(tmp_path / "a" / "last.pt")}}
    settings = validate(TrainSettings, asked, "")
    found = preprocessing.as_weights(settings.data, settings.model)
    assert (found.resize, found.crop, found.mean, found.std) == (60, "center", [0.4] * 3, state["std"])


def test_a_run_continues_on_images_in_memory_or_in_files(folder, tmp_path, capsys):  # noqa: F811
    """The numbers are the same, at a size at which parts of the images are drawn."""
    keys = ["data.image_size=72", "run.epochs=2"]
    for cache in ("always", "never"):
        run(folder, tmp_path, f"run.name={cache}", f"data.cache={cache}", *keys)
    one, other = (checkpoint.load(str(tmp_path / cache / "last.pt")) for cache in ("always", "never"))
    assert tensor_file.checksum(one["model"]) == tensor_file.checksum(other["model"])
    assert one["mean"] == other["mean"]
